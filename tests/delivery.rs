//! How captured events reach the server: each one once and in its user's order, whatever the server does,
//! without effect on clients, and without data that Tirreno must not get.
//!
//! Clients send requests through nginx over kept-alive connections, and read each request's trace id in its
//! response, so that each stored event can be identified. With `TEST_FULL` in the environment, tests that
//! need a minute or more also run.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tirreno_tests::client::{self, Connection, RequestHeaders, Response};
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Answer, Rate, RequestRecord, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::tls::{Authority, Leaf};
use tirreno_tests::wait::{SOON, wait_for, wait_until};

/// So many users take turns.
const USERS: usize = 10;

/// nginx with the target `tirreno`, and `target` added to its block.
fn site(sensor: &Sensor, target: &str) -> Builder {
    site_at(&sensor.url(), &format!("api_key test-key; {target}"))
}

/// nginx with the target `tirreno` at `url`, and `target`, which names the key, added to its block.
fn site_at(url: &str, target: &str) -> Builder {
    site_with(&format!("tirreno_target {{ url {url}; interval 20ms; {target} }}"))
}

/// nginx with `targets`.
fn site_with(targets: &str) -> Builder {
    Nginx::builder().http(targets).http("tirreno on; tirreno_user $cookie_user;").server(
        "add_header X-Trace $request_id always;
             location / { return 200 hello; }
             location = /status { tirreno off; tirreno_status; }",
    )
}

/// A request of a client, answered.
#[derive(Clone)]
struct Visit {
    trace: String,
    user: String,
    at: Instant,
    latency: Duration,
}

/// [`USERS`] users in turn get `/PATH/0`, `/PATH/1`, …: `count` requests over one connection.
fn visit(nginx: &Nginx, path: &str, count: usize) -> Vec<Visit> {
    let user = |n: usize| format!("user{}", n % USERS);
    visits(nginx, (0..count).map(|n| (user(n), format!("/{path}/{n}"))))
}

/// `user` gets `path` once.
fn visit_as(nginx: &Nginx, user: &str, path: &str) -> Visit {
    visits(nginx, [(user.to_owned(), path.to_owned())]).remove(0)
}

/// Users get paths, one after the other over one connection.
fn visits(nginx: &Nginx, what: impl IntoIterator<Item = (String, String)>) -> Vec<Visit> {
    let mut connection = connect(nginx);
    what.into_iter().map(|(user, path)| visit_over(&mut connection, user, &path)).collect()
}

fn visit_over(connection: &mut Connection, user: String, path: &str) -> Visit {
    let cookie = format!("user={user}");
    let at = Instant::now();
    let response = connection.request("GET", path, &[("Cookie", &cookie)], b"");
    let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(response.status, 200, "{path}");
    let trace = response.header("X-Trace").expect("the response tells the trace id");
    Visit { trace, user, at, latency: response.latency }
}

fn connect(nginx: &Nginx) -> Connection {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.port()));
    Connection::open(address).expect("nginx takes connections")
}

fn request(nginx: &Nginx, method: &str, path: &str, headers: RequestHeaders<'_>) -> Response {
    let response = connect(nginx).request(method, path, headers, b"");
    response.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

/// A target's account in the status.
#[derive(Debug)]
struct Account {
    state: String,
    captured: u64,
    delivered: u64,
    rejected: u64,
    dropped: u64,
    pending: u64,
    retries: u64,
    last_error: Option<String>,
    oldest_pending_seconds: u64,
}

fn account(nginx: &Nginx) -> Account {
    account_of(nginx, "tirreno")
}

fn account_of(nginx: &Nginx, target: &str) -> Account {
    let status = nginx.status("/status");
    let account = &status["targets"][target];
    let number = |key: &str| account[key].as_u64().unwrap_or_else(|| panic!("{key} in {status}"));
    Account {
        state: account["state"].as_str().expect("the state is a string").to_owned(),
        captured: number("captured"),
        delivered: number("delivered"),
        rejected: number("rejected"),
        dropped: number("dropped"),
        pending: number("pending"),
        retries: number("retries"),
        last_error: account["last_error"].as_str().map(str::to_owned),
        oldest_pending_seconds: number("oldest_pending_seconds"),
    }
}

/// Waits until the account is as `wanted`.
#[track_caller]
fn wait_account(nginx: &Nginx, wanted: impl Fn(&Account) -> bool) -> Account {
    wait_for(SOON, "the status", || {
        let account = account(nginx);
        if wanted(&account) { Ok(account) } else { Err(format!("{account:?}")) }
    })
}

/// Waits until `captured` events are captured and none is pending, and asserts that the account adds up.
#[track_caller]
fn wait_settled(nginx: &Nginx, captured: usize) -> Account {
    let account = wait_account(nginx, |a| a.captured == captured as u64 && a.pending == 0);
    assert_eq!(
        account.captured,
        account.delivered + account.rejected + account.dropped,
        "{account:?}"
    );
    account
}

/// Waits until all `sent` events are delivered, and the target has no error.
#[track_caller]
fn wait_delivered(nginx: &Nginx, sent: &[Visit]) -> Account {
    let account = wait_settled(nginx, sent.len());
    assert_eq!((account.delivered, account.state.as_str()), (account.captured, "ok"));
    account
}

/// The POSTs of events, in order of arrival.
fn posts(sensor: &Sensor) -> Vec<RequestRecord> {
    let mut requests = sensor.requests();
    requests.retain(|request| request.path.ends_with("/sensor/"));
    requests
}

fn unanswered(sensor: &Sensor) -> usize {
    posts(sensor).iter().filter(|post| post.answer.is_none()).count()
}

/// How many groups of POSTs there were for the event at `path`: between two groups, other events were
/// accepted.
fn rounds(sensor: &Sensor, path: &str) -> usize {
    let mut rounds = 0;
    let mut others_accepted = true;
    for post in posts(sensor) {
        if post.param("url").is_some_and(|url| url == path) {
            rounds += usize::from(others_accepted);
            others_accepted = false;
        } else {
            others_accepted |= post.answer == Some(204);
        }
    }
    rounds
}

/// Asserts that the sensor has stored all of `sent` and nothing else: each event once, except for one
/// repeat for each POST without an answer, and each user's in order.
#[track_caller]
fn assert_arrived(sensor: &Sensor, sent: &[Visit]) {
    let stored = sensor.stored();
    let mut seen = BTreeSet::new();
    let mut arrived: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in &stored {
        let trace = event.trace_id.as_deref().expect("each event has a trace id");
        if seen.insert(trace) {
            arrived.entry(&event.user_name).or_default().push(trace);
        }
    }
    let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for visit in sent {
        wanted.entry(&visit.user).or_default().push(&visit.trace);
    }
    assert_eq!(arrived, wanted);
    let repeats = stored.len() - seen.len();
    let unanswered = unanswered(sensor);
    assert!(repeats <= unanswered, "{repeats} repeats, {unanswered} POSTs without an answer");
    assert!(sensor.lost().is_empty(), "{:?}", sensor.lost());
}

/// Like [`visit`], but asserts that requests take no longer than without the module, which is measured in
/// between.
#[track_caller]
fn visit_unaffected(nginx: &Nginx, path: &str, count: usize) -> Vec<Visit> {
    let bare = Nginx::builder()
        .without_module()
        .server("add_header X-Trace $request_id always; location / { return 200 hello; }")
        .start();
    let mut connections = [connect(&bare), connect(nginx)];
    let mut visits = [Vec::new(), Vec::new()];
    for n in 0..count {
        for (connection, visits) in connections.iter_mut().zip(&mut visits) {
            let user = format!("user{}", n % USERS);
            visits.push(visit_over(connection, user, &format!("/{path}/{n}")));
        }
    }
    let [without, with] = visits;
    let (usual, median) = (median(&without), median(&with));
    let bound = 5 * usual + Duration::from_millis(2);
    assert!(median < bound, "the median is {median:?}, without the module {usual:?}");
    let longest = |visits: &[Visit]| visits.iter().map(|visit| visit.latency).max().unwrap();
    let (usual, worst) = (longest(&without), longest(&with));
    assert!(worst < usual + Duration::from_secs(1), "one took {worst:?}, without {usual:?}");
    with
}

fn median(visits: &[Visit]) -> Duration {
    let mut latencies: Vec<_> = visits.iter().map(|visit| visit.latency).collect();
    latencies.sort_unstable();
    latencies[latencies.len() / 2]
}

/// The error log's lines that contain `text`.
fn lines(nginx: &Nginx, text: &str) -> Vec<String> {
    nginx.error_log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

/// The name under which messages speak of the target `tirreno`.
fn label(url: &str) -> String {
    format!("target \"tirreno\" {url}")
}

/// Whether tests that take a minute or more run.
fn is_full() -> bool {
    let full = env::var_os("TEST_FULL").is_some();
    if !full {
        println!("skipped without TEST_FULL");
    }
    full
}

// While the server is in trouble.

/// The server is in trouble and recovers: clients notice nothing, the status and the log show the trouble,
/// and all events arrive.
#[track_caller]
fn outage(target: &str, trouble: impl Fn(&Sensor), recover: impl Fn(&Sensor), error: &str) {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, target).start();
    // Enough events that the rate learned from a 429 is high enough for the rest of the test.
    let mut sent = visit(&nginx, "before", 40);
    wait_delivered(&nginx, &sent);

    trouble(&sensor);
    let during = visit_unaffected(&nginx, "during", 30);
    sent.extend(during);
    let account = wait_account(&nginx, |a| a.retries >= 3 && a.state == "retrying");
    assert_eq!(account.last_error.as_deref(), Some(error));
    assert_eq!((account.captured, account.delivered, account.pending), (70, 40, 30));
    let line = nginx.wait_log(&format!("{}: {error}: ", label(&sensor.url())));
    assert!(line.to_lowercase().contains("events are kept"), "{line}");

    recover(&sensor);
    sent.extend(visit(&nginx, "after", 10));
    let account = wait_delivered(&nginx, &sent);
    assert_eq!(account.last_error.as_deref(), Some(error), "it stays, with its time");
    assert_arrived(&sensor, &sent);
}

/// An outage in which the server gives this answer to all events.
#[track_caller]
fn outage_answering(answer: Answer, error: &str) {
    outage(
        // Long enough that a loaded machine can still send this answer in time.
        "timeout 2s;",
        |sensor| sensor.set_default(answer.clone()),
        |sensor| sensor.set_default(Answer::normal()),
        error,
    );
}

#[test]
fn a_server_that_is_down_costs_no_event_and_no_time() {
    outage("", Sensor::refuse, Sensor::listen_again, "connection refused");
}

#[test]
fn a_server_that_hangs_costs_no_event_and_no_time() {
    outage_answering(Answer::hang(), "timed out");
}

#[test]
fn a_server_that_hangs_after_its_work_gets_an_event_again_for_each_time_only() {
    outage_answering(Answer::hang().storing(), "timed out");
}

#[test]
fn a_server_that_resets_connections_costs_no_event_and_no_time() {
    outage_answering(Answer::reset(), "connection broken");
}

#[test]
fn a_server_that_resets_after_its_work_gets_an_event_again_for_each_time_only() {
    outage_answering(Answer::reset().storing(), "connection broken");
}

#[test]
fn a_server_that_answers_429_costs_no_event_and_no_time() {
    outage_answering(Answer::code(429), "answered 429");
}

#[test]
fn a_server_that_answers_500_costs_no_event_and_no_time() {
    outage_answering(Answer::code(500), "answered 500");
}

#[test]
fn a_server_that_answers_502_costs_no_event_and_no_time() {
    outage_answering(Answer::code(502), "answered 502");
}

#[test]
fn a_server_that_answers_503_costs_no_event_and_no_time() {
    outage_answering(Answer::code(503), "answered 503");
}

#[test]
fn a_server_that_answers_403_to_everything_costs_no_event_and_no_time() {
    outage_answering(Answer::code(403), "answered 403");
}

#[test]
fn a_redirect_is_an_error_and_is_not_followed() {
    let elsewhere = Sensor::start(SensorOptions::default());
    outage_answering(Answer::redirect(301, &elsewhere.url()), "answered 301");
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn a_slow_server_costs_no_event_and_no_time() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    sensor.set_default(Answer::normal().after(Duration::from_secs(2)));
    let sent = visit_unaffected(&nginx, "slow", 30);
    let account = wait_account(&nginx, |a| a.delivered >= 1);
    assert_eq!((account.state.as_str(), account.pending), ("ok", 29));
    sensor.set_default(Answer::normal());
    let account = wait_delivered(&nginx, &sent);
    assert_eq!((account.retries, account.last_error), (0, None));
    assert_eq!(posts(&sensor).len(), sent.len(), "slow is not failed");
    assert_arrived(&sensor, &sent);
}

#[test]
fn a_server_that_is_down_at_the_start_gets_everything_once_it_is_up() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.refuse();
    let nginx = site(&sensor, "").start();
    let line = nginx.wait_log("the API key could not be checked");
    assert!(line.contains("[error]"), "{line}");
    assert!(line.contains(&format!("{}: key check: connection refused: ", label(&sensor.url()))));
    let sent = visit(&nginx, "early", 30);
    wait_account(&nginx, |a| a.state == "retrying" && a.pending == 30);
    sensor.listen_again();
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

#[test]
fn an_event_that_failed_in_an_outage_does_not_wait_after_it() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "first", 1);
    wait_delivered(&nginx, &sent);
    sensor.set_default(Answer::code(503));
    sent.push(visit_as(&nginx, "early", "/early"));
    // After four failures, the next attempt would be two seconds later.
    wait_account(&nginx, |a| a.retries == 4);
    sensor.set_default(Answer::normal());
    sent.push(visit_as(&nginx, "late", "/late"));
    wait_delivered(&nginx, &sent);
    let at = |path: &str| {
        sensor.stored().iter().find(|event| event.url == path).map(|event| event.at).unwrap()
    };
    let apart = at("/early").max(at("/late")) - at("/early").min(at("/late"));
    assert!(apart < Duration::from_secs(1), "both come when the server is back: {apart:?} apart");
}

#[test]
fn two_targets_do_not_hold_up_each_other() {
    let [up, down] = [(); 2].map(|()| Sensor::start(SensorOptions::default()));
    let target = |name: &str, sensor: &Sensor| {
        let url = sensor.url();
        format!("tirreno_target {name} {{ url {url}; api_key test-key; interval 20ms; }}")
    };
    down.refuse();
    let nginx = site_with(&(target("up", &up) + &target("down", &down))).start();
    let sent = visit_unaffected(&nginx, "both", 50);
    up.wait_stored(50, SOON).unwrap();
    assert_arrived(&up, &sent);
    wait_for(SOON, "the accounts", || {
        let [up, down] = ["up", "down"].map(|name| account_of(&nginx, name));
        let up_is_done = (up.state.as_str(), up.delivered, up.pending) == ("ok", 50, 0);
        let down_waits = (down.state.as_str(), down.delivered, down.pending) == ("retrying", 0, 50);
        if up_is_done && down_waits { Ok(()) } else { Err(format!("{up:?} {down:?}")) }
    });
    down.listen_again();
    down.wait_stored(50, SOON).unwrap();
    assert_arrived(&down, &sent);
}

// One event that is refused.

/// While `refused` are refused with 403, other users' events go on at once, until `rejected` events
/// have been set aside. Returns the others' visits.
fn visit_beside_refused(nginx: &Nginx, sensor: &Sensor, rejected: u64) -> Vec<Visit> {
    let mut others = Vec::new();
    wait_for(3 * SOON, "the refused events to be set aside", || {
        let visit = visit_as(nginx, &format!("user{}", others.len() % USERS), "/good");
        let arrival = wait_for(SOON, "an event of another user", || {
            let stored = sensor.stored();
            let event = stored.iter().rfind(|e| e.trace_id.as_deref() == Some(&visit.trace));
            event.map(|event| event.at).ok_or_else(String::new)
        });
        let waited = arrival - visit.at;
        assert!(waited < Duration::from_secs(1), "an event of another user waited {waited:?}");
        others.push(visit);
        let account = account(nginx);
        if account.rejected == rejected { Ok(()) } else { Err(format!("{account:?}")) }
    });
    others
}

/// Asserts that the event with this URL was sent whole in all attempts but the last, and then without the
/// parts to which a firewall may object.
#[track_caller]
fn assert_stripped(sensor: &Sensor, path: &str) {
    let url = |post: &RequestRecord| post.param("url").unwrap_or_default();
    let posts = posts(sensor);
    let of_event = posts.iter().filter(|post| url(post).starts_with(path));
    let mut rest = of_event.skip_while(|post| url(post) == path).peekable();
    assert!(rest.peek().is_some(), "{path} was not stripped");
    for post in rest {
        assert_eq!(url(post), format!("{path}?stripped=1"));
        assert_eq!((post.param("userAgent"), post.param("httpReferer")), (None, None));
    }
}

#[test]
fn a_firewall_does_not_erase_who_uses_a_user_agent_that_it_dislikes() {
    for code in [403, 400, 413] {
        let sensor = Sensor::start(SensorOptions::default());
        sensor.set_rule_of("userAgent", "sqlmap", Answer::code(code));
        let nginx = site(&sensor, "").start();
        let mut sent = visit(&nginx, "before", 3);
        wait_delivered(&nginx, &sent);
        for n in 0..10 {
            let headers = [
                ("Cookie", "user=mallory"),
                ("User-Agent", "sqlmap/1.7"),
                ("Referer", "https://a/b?c"),
            ];
            let response = request(&nginx, "GET", &format!("/attack/{n}?id=1'--"), &headers);
            let trace = response.header("X-Trace").expect("a trace id");
            let (at, latency) = (Instant::now(), response.latency);
            sent.push(Visit { trace, user: "mallory".into(), at, latency });
            sent.push(visit_as(&nginx, "somebody", "/good"));
        }
        let attacks = |sensor: &Sensor| {
            let urls = sensor.stored().into_iter().map(|event| event.url.clone());
            let mut urls: Vec<_> = urls.filter(|url| url.starts_with("/attack/")).collect();
            urls.sort();
            urls
        };
        // A refusal counts against the event only if other events are accepted meanwhile.
        wait_for(3 * SOON, "the attacks", || {
            let visit = visit_as(&nginx, "another", "/good");
            wait_until(SOON, "another's event", || {
                let stored = sensor.stored();
                stored.iter().any(|event| event.trace_id.as_ref() == Some(&visit.trace))
            });
            sent.push(visit);
            let attacks = attacks(&sensor);
            if attacks.len() == 10 { Ok(()) } else { Err(format!("{attacks:?}")) }
        });
        let account = wait_settled(&nginx, sent.len());
        assert_eq!((account.rejected, account.dropped), (0, 0), "{code}");
        let expected: Vec<_> = (0..10).map(|n| format!("/attack/{n}?stripped=1")).collect();
        assert_eq!(attacks(&sensor), expected);
        assert_arrived(&sensor, &sent);
    }
}

#[test]
fn an_event_that_alone_is_refused_five_times_is_set_aside_and_holds_up_nobody_else() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_rule("/bad", Answer::code(403));
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 20);
    wait_delivered(&nginx, &sent);

    let bad = visit_as(&nginx, "mallory", "/bad/secret-path");
    sent.push(visit_as(&nginx, "mallory", "/next"));
    sent.extend(visit_beside_refused(&nginx, &sensor, 1));
    let account = wait_settled(&nginx, sent.len() + 1);
    assert_eq!((account.rejected, account.dropped, account.state.as_str()), (1, 0, "ok"));
    assert_eq!(account.last_error.as_deref(), Some("answered 403"));
    assert_eq!(rounds(&sensor, "/bad/secret-path"), 5);
    assert_stripped(&sensor, "/bad/secret-path");
    let status = nginx.status("/status");
    assert_eq!(
        status["targets"]["tirreno"]["rejected_by_reason"],
        serde_json::json!({"answered 403": 1})
    );
    assert!(sensor.stored().iter().all(|event| event.trace_id.as_ref() != Some(&bad.trace)));
    assert_arrived(&sensor, &sent);

    nginx.wait_log(&format!("answered 403: the event {} is rejected", bad.trace));
    let line = nginx.wait_log("is set aside");
    let start = format!("{}: answered 403: one event was refused five times", label(&sensor.url()));
    assert!(line.contains("[error]") && line.contains(&start), "{line}");
    assert_eq!(lines(&nginx, "does a firewall refuse it").len(), 1);
    assert_eq!(lines(&nginx, "events are accepted again").len(), 1, "once for each complaint");
    assert!(!nginx.error_log().contains("secret-path"), "the log tells nothing of clients");
}

#[test]
fn several_users_refused_events_are_set_aside_and_hold_up_nobody_else() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_rule("/bad", Answer::code(403));
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 1);
    wait_delivered(&nginx, &sent);
    let mallories = ["mallory", "melanie", "maxine"];
    visits(&nginx, mallories.map(|user| (user.to_owned(), format!("/bad/{user}"))));
    sent.extend(mallories.map(|user| visit_as(&nginx, user, "/next")));
    sent.extend(visit_beside_refused(&nginx, &sensor, 3));
    let account = wait_settled(&nginx, sent.len() + 3);
    assert_eq!((account.rejected, account.dropped), (3, 0));
    for user in mallories {
        assert_eq!(rounds(&sensor, &format!("/bad/{user}")), 5, "{user}");
        assert_stripped(&sensor, &format!("/bad/{user}"));
    }
    assert_arrived(&sensor, &sent);
}

#[test]
fn a_400_sets_its_event_aside_at_once() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_rule("/bad", Answer::code(400));
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 3);
    visit_as(&nginx, "user0", "/bad");
    sent.extend(visit(&nginx, "after", 3));
    let account = wait_settled(&nginx, 7);
    assert_eq!((account.delivered, account.rejected, account.retries), (6, 1, 1));
    assert_eq!(
        (account.state.as_str(), account.last_error.as_deref()),
        ("ok", Some("answered 400"))
    );
    // One more attempt, without the parts to which a firewall may object.
    assert_eq!(posts(&sensor).len(), 8);
    assert_stripped(&sensor, "/bad");
    assert_arrived(&sensor, &sent);
    let line = nginx.wait_log("answered 400");
    let start = format!("{}: answered 400: this event is invalid", label(&sensor.url()));
    assert!(line.contains("[error]") && line.contains(&start), "{line}");
}

#[test]
fn another_2xx_is_said_and_its_events_are_kept() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 3);
    wait_delivered(&nginx, &sent);
    sensor.set_default(Answer::code(202));
    sent.extend(visit(&nginx, "accepted", 20));
    let account = wait_account(&nginx, |a| a.captured == 23 && a.retries > 7);
    assert_eq!(account.last_error.as_deref(), Some("answered 202, which is not understood"));
    assert_eq!((account.state.as_str(), account.delivered, account.pending), ("retrying", 3, 20));
    nginx.wait_log("answered 202, which is not understood: the server is not understood");
    sensor.set_default(Answer::normal());
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

#[test]
fn an_answer_with_a_status_that_is_none_is_said_and_its_events_are_kept() {
    const REASON: &str = "the answer cannot be read";
    for code in [0, 1, 99] {
        let sensor = Sensor::start(SensorOptions::default());
        sensor.set_key_check(Answer::code(code));
        sensor.set_default(Answer::code(code));
        let nginx = site(&sensor, "").start();
        nginx.wait_log(&format!("key check: {REASON}: the API key could not be checked"));
        let sent = visit(&nginx, "odd", 10);
        let account = wait_account(&nginx, |a| a.captured == 10 && a.retries > 7);
        assert_eq!(account.last_error.as_deref(), Some(REASON), "{code}");
        assert_eq!((account.state.as_str(), account.pending), ("retrying", 10), "{code}");
        nginx.wait_log(&format!("{REASON}: the server is not understood"));
        sensor.set_default(Answer::normal());
        wait_delivered(&nginx, &sent);
        assert_arrived(&sensor, &sent);
        assert!(lines(&nginx, "internal error").is_empty(), "{code}");
    }
}

#[test]
fn a_server_that_says_when_to_come_again_is_left_alone_until_then() {
    for code in [429, 503] {
        let sensor = Sensor::start(SensorOptions::default());
        let nginx = site(&sensor, "").start();
        let mut sent = visit(&nginx, "before", 3);
        wait_delivered(&nginx, &sent);
        sensor.set_default(Answer::code(code).retry_after("4"));
        sent.extend(visit(&nginx, "busy", 10));
        // One 503 may be the event's fault, so two are needed for a pause; one 429 is enough.
        let asked = if code == 503 { 2 } else { 1 };
        let refused = |sensor: &Sensor| {
            let posts = posts(sensor).into_iter().filter(|post| post.answer == Some(code));
            posts.map(|post| post.at).collect::<Vec<_>>()
        };
        wait_until(SOON, "the refusals", || refused(&sensor).len() >= asked);
        sensor.set_default(Answer::normal());
        wait_delivered(&nginx, &sent);
        let refused = refused(&sensor);
        let after = posts(&sensor)
            .into_iter()
            .map(|post| post.at)
            .find(|at| *at > refused[asked - 1])
            .unwrap();
        let waited = after - refused[asked - 1];
        assert!(waited >= Duration::from_secs(4), "{code}: it came again after {waited:?}");
        assert_arrived(&sensor, &sent);
    }
}

#[test]
fn interim_answers_are_no_answers() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::code(204).storing().with_interim(103).with_interim(102));
    let nginx = site(&sensor, "").start();
    let sent = visit(&nginx, "hinted", 20);
    assert_eq!(wait_delivered(&nginx, &sent).retries, 0);
    assert_eq!(posts(&sensor).len(), 20);
    assert_arrived(&sensor, &sent);
}

#[test]
fn odd_answers_are_understood_and_no_event_is_sent_twice() {
    let accepted = || Answer::code(204).storing();
    for (what, answer) in [
        ("a body", accepted().with_rest("<html>hello</html>")),
        ("the end of a body in chunks", accepted().with_rest("0\r\n\r\n")),
        ("another answer", accepted().with_rest("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")),
        ("150 header fields", accepted().with_fields(150)),
    ] {
        let sensor = Sensor::start(SensorOptions::default());
        sensor.set_default(answer);
        let nginx = site(&sensor, "").start();
        let sent = visit(&nginx, "odd", 20);
        let account = wait_delivered(&nginx, &sent);
        assert_eq!((account.retries, account.last_error), (0, None), "{what}");
        assert_eq!(posts(&sensor).len(), 20, "{what}");
        assert_arrived(&sensor, &sent);
    }
}

#[test]
fn an_answer_without_an_end_is_none() {
    let authority = Authority::new("test");
    for (pause, tls, error) in [
        (20, false, "timed out"),
        (20, true, "timed out"),
        (0, false, "connection broken"),
        (0, true, "connection broken"),
    ] {
        let (sensor, builder) = match tls {
            true => tls_site(&authority.localhost(), &authority, &format!("{TRUST} timeout 1s;")),
            false => {
                let sensor = Sensor::start(SensorOptions::default());
                let builder = site(&sensor, "timeout 1s;");
                (sensor, builder)
            }
        };
        let nginx = builder.start();
        let mut sent = visit(&nginx, "before", 3);
        wait_delivered(&nginx, &sent);
        sensor.set_default(Answer::endless(Duration::from_millis(pause)));
        sent.extend(visit(&nginx, "endless", 10));
        let account = wait_account(&nginx, |account| account.state == "retrying");
        assert_eq!(account.last_error.as_deref(), Some(error), "{tls}");
        assert_eq!((account.delivered, account.pending, account.rejected), (3, 10, 0));
        sensor.set_default(Answer::normal());
        wait_delivered(&nginx, &sent);
        assert_arrived(&sensor, &sent);
    }
}

/// A server that accepts 20 events, stores none of them, and breaks the connection at the next one. Returns
/// how often each event was sent.
/// was sent.
fn sends_over_a_failure(parameters: &str, failure: Answer) -> Vec<usize> {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::code(204));
    sensor.set_rule("/break", failure);
    let nginx = site(&sensor, &format!("rate 1000r/s; {parameters}")).start();
    let mut sent: Vec<_> = (0..20).map(|n| ("user".to_owned(), format!("/{n}"))).collect();
    sent.push(("user".to_owned(), "/break".to_owned()));
    let sent = visits(&nginx, sent);
    let is_break = |post: &RequestRecord| post.param("url").as_deref() == Some("/break");
    wait_until(SOON, "the failure", || posts(&sensor).iter().any(is_break));
    sensor.clear_rules();
    sensor.set_default(Answer::normal());
    let row = wait_settled(&nginx, sent.len());
    assert_eq!((row.delivered, row.rejected, row.dropped), (21, 0, 0));
    let posts = posts(&sensor);
    let failed = posts.iter().find(|post| is_break(post)).unwrap().at;
    let recent = |visit: &&Visit| {
        let of_visit =
            |post: &&RequestRecord| post.header("X-Request-Id").as_deref() == Some(&*visit.trace);
        let at = posts.iter().find(of_visit).unwrap().at;
        // Another program may have slowed the machine down.
        at + Duration::from_millis(700) >= failed
    };
    // The stored events are in order.
    let order: Vec<_> = sensor.stored().iter().filter_map(|event| event.trace_id.clone()).collect();
    let places = order.iter().map(|trace| sent.iter().position(|visit| visit.trace == *trace));
    let places: Vec<_> = places.flatten().collect();
    assert!(places.is_sorted(), "{places:?}");
    sent.iter()
        .filter(recent)
        .map(|visit| {
            posts
                .iter()
                .filter(|post| post.header("X-Request-Id").as_deref() == Some(&*visit.trace))
                .count()
        })
        .collect()
}

#[test]
fn what_a_failing_server_accepted_last_is_sent_again_if_that_is_wanted() {
    for failure in [Answer::reset(), Answer::code(500)] {
        for spool in ["", "spool %PREFIX%/spool;"] {
            let sends = sends_over_a_failure(&format!("resend on; {spool}"), failure.clone());
            let (broken, others) = sends.split_last().unwrap();
            assert!(!others.is_empty() && *broken >= 2, "{sends:?}");
            assert!(others.iter().all(|sends| *sends == 2), "{sends:?}");
        }
        let sends = sends_over_a_failure("", failure.clone());
        let (broken, others) = sends.split_last().unwrap();
        assert!(*broken >= 2 && others.iter().all(|sends| *sends == 1), "{sends:?}");
    }
}

#[test]
fn what_may_be_sent_again_is_counted_when_nginx_stops() {
    let sensor = Sensor::start(SensorOptions::default());
    let mut nginx = site(&sensor, "resend on; rate 1000r/s;").start();
    let sent = visit(&nginx, "last", 20);
    sensor.wait_stored(20, SOON).unwrap();
    nginx.quit();
    assert_arrived(&sensor, &sent);
    let log = nginx.error_log();
    assert!(!log.contains("could not be delivered"), "{log}");
    assert_eq!(posts(&sensor).len(), 20);
}

// What a 200 and a 401 mean: the key.

#[test]
fn a_200_for_one_event_sets_it_aside_when_the_key_is_good() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_rule("/bad", Answer::code(200));
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 3);
    wait_delivered(&nginx, &sent);
    assert_eq!(sensor.key_checks().len(), 1, "at the start");
    visit_as(&nginx, "user0", "/bad/1");
    sent.extend(visit(&nginx, "between", 3));
    visit_as(&nginx, "user0", "/bad/2");
    sent.extend(visit(&nginx, "after", 3));
    let account = wait_settled(&nginx, 11);
    assert_eq!((account.delivered, account.rejected, account.retries), (9, 2, 0));
    assert_eq!(account.state, "ok");
    assert_eq!(sensor.key_checks().len(), 2, "the answer is remembered");
    assert_arrived(&sensor, &sent);
    nginx.wait_log("answered 200: the key is good: this event lacks");
}

#[test]
fn several_200s_in_a_row_pause_the_target_and_its_events_are_kept() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let sent = visit(&nginx, "before", 3);
    wait_delivered(&nginx, &sent);
    sensor.set_default(Answer::code(200));
    visit(&nginx, "puzzle", 20);
    let account = wait_account(&nginx, |a| a.captured == 23 && a.state == "paused");
    assert_eq!(account.last_error.as_deref(), Some("answered 200 to several events in a row"));
    assert_eq!((account.delivered, account.rejected, account.pending), (3, 2, 18));
    let line = nginx.wait_log("the server is not understood");
    assert!(line.contains("[error]") && line.contains("accept_200 on"), "{line}");
}

#[test]
fn a_200_before_the_first_204_sets_nothing_aside() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::code(200));
    let nginx = site(&sensor, "").start();
    visit(&nginx, "puzzle", 20);
    let account = wait_account(&nginx, |a| a.captured == 20 && a.state == "paused");
    assert_eq!((account.rejected, account.dropped, account.pending), (0, 0, 20));
}

#[test]
fn accept_200_takes_200_for_success() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::code(200).storing());
    let nginx = site(&sensor, "accept_200 on;").start();
    let sent = visit(&nginx, "other-release", 20);
    let account = wait_delivered(&nginx, &sent);
    assert_eq!((account.retries, account.last_error), (0, None));
    assert_eq!(posts(&sensor).len(), 20);
    assert_arrived(&sensor, &sent);
}

#[test]
fn a_200_is_a_503_while_the_key_check_does_not_answer() {
    for closed in [404, 503] {
        let sensor = Sensor::start(SensorOptions::default());
        sensor.set_key_check(Answer::code(closed));
        let nginx = site(&sensor, "").start();
        let line = nginx.wait_log("the API key could not be checked");
        assert!(line.contains(&format!("key check: answered {closed}: ")), "{line}");
        assert!(lines(&nginx, "key accepted").is_empty());
        // The key is unchecked, and the server accepts events.
        let mut sent = visit(&nginx, "before", 3);
        wait_delivered(&nginx, &sent);

        sensor.set_rule("/questionable", Answer::code(200));
        sent.push(visit_as(&nginx, "user0", "/questionable"));
        sent.extend(visit(&nginx, "after", 3));
        let account = wait_account(&nginx, |a| a.captured == 7 && a.retries >= 2);
        assert!(account.pending >= 1 && account.rejected == 0, "{account:?}");
        assert_eq!(account.last_error, Some(format!("answered {closed}")));
        nginx.wait_log("the key check does not tell why");
        sensor.clear_rules();
        wait_delivered(&nginx, &sent);
        assert_arrived(&sensor, &sent);
    }
}

#[test]
fn with_a_wrong_key_everything_is_kept_until_it_is_corrected() {
    let sensor = Sensor::start(SensorOptions::default());
    let mut nginx = site_at(&sensor.url(), "api_key %KEY%;").var("KEY", "wrong-key").start();
    let line = nginx.wait_log("API key refused with 401");
    let start = format!("{}: API key refused with 401: check api_key", label(&sensor.url()));
    assert!(line.contains("[error]") && line.contains(&start), "{line}");
    assert!(line.contains("kept in memory; a reload drops those"), "{line}");
    visit_unaffected(&nginx, "wrong", 20);
    // The deliverer, which has the events, publishes the age of the oldest.
    let account = wait_account(&nginx, |a| a.oldest_pending_seconds >= 1);
    assert_eq!(account.state, "paused");
    assert_eq!(account.last_error.as_deref(), Some("API key refused with 401"));
    assert_eq!((account.delivered, account.rejected, account.dropped), (0, 0, 0));
    assert_eq!((account.captured, account.pending), (20, 20));
    assert_eq!(sensor.events_received(), 0, "nothing is sent with a key that is known to be wrong");

    nginx.reconfigure(|builder| builder.var("KEY", "test-key"));
    nginx.reload();
    nginx.wait_log("key accepted");
    let sent = visit(&nginx, "right", 20);
    let account = wait_settled(&nginx, 40);
    assert_eq!((account.delivered, account.rejected, account.dropped), (20, 0, 20));
    assert_eq!(account.state, "ok");
    assert_arrived(&sensor, &sent);
    nginx.wait_log("20 events could not be delivered, shutdown_timeout is over; dropped");
    assert_eq!(lines(&nginx, "API key refused").len(), 1);
}

#[test]
fn with_a_spool_the_reload_that_corrects_the_key_loses_nothing() {
    let sensor = Sensor::start(SensorOptions::default());
    let target = "api_key %KEY%; spool %PREFIX%/spool;";
    let mut nginx = site_at(&sensor.url(), target).var("KEY", "wrong-key").start();
    let line = nginx.wait_log("API key refused with 401");
    assert!(line.contains("Events are kept in the spool"), "{line}");
    let sent = visit(&nginx, "wrong", 20);
    nginx.reconfigure(|builder| builder.var("KEY", "test-key"));
    nginx.reload();
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

/// The key is revoked after the events of `before` were delivered; the events of the 20 visits after that
/// are kept.
fn revoke_key(sensor: &Sensor, nginx: &Nginx, sent: &mut Vec<Visit>) {
    sent.extend(visit(nginx, "before", 10));
    wait_delivered(nginx, sent);
    sensor.set_keys([]);
    sent.extend(visit(nginx, "revoked", 20));
    let account = wait_account(nginx, |a| a.captured == 30 && a.state == "paused");
    assert_eq!(account.last_error.as_deref(), Some("API key refused with 401"));
    assert_eq!((account.delivered, account.rejected, account.dropped), (10, 0, 0));
    assert_eq!(account.pending, 20);
}

#[test]
fn a_200_pauses_the_target_when_the_key_check_says_that_the_key_is_wrong() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    revoke_key(&sensor, &nginx, &mut Vec::new());
    nginx.wait_log("API key refused with 401");
    assert_eq!(posts(&sensor).len(), 11, "one event found it out");
    assert_eq!(sensor.key_checks().len(), 2);
    assert_eq!(lines(&nginx, "API key refused").len(), 1);
}

#[test]
fn a_401_pauses_the_target_and_its_events_are_kept() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::code(401));
    let nginx = site(&sensor, "").start();
    let sent = visit(&nginx, "refused", 20);
    let account = wait_account(&nginx, |a| a.captured == 20 && a.state == "paused");
    assert_eq!(account.last_error.as_deref(), Some("API key refused with 401"));
    assert_eq!((account.rejected, account.dropped, account.pending), (0, 0, 20));
    assert_eq!(posts(&sensor).len(), 1, "one event found it out");
    if is_full() {
        sensor.set_default(Answer::normal());
        wait_until(3 * SOON, "the key to be asked for again", || sensor.key_checks().len() == 2);
        wait_delivered(&nginx, &sent);
        assert_arrived(&sensor, &sent);
    }
}

#[test]
fn a_key_that_becomes_good_again_is_noticed_without_help() {
    if !is_full() {
        return;
    }
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let mut sent = Vec::new();
    revoke_key(&sensor, &nginx, &mut sent);
    let checks = || sensor.key_checks().iter().map(|check| check.at).collect::<Vec<_>>();
    wait_until(6 * SOON, "the key to be asked for again", || checks().len() == 5);
    for pair in checks()[1..].windows(2) {
        let apart = (pair[1] - pair[0]).as_secs_f64();
        assert!((29.0..33.0).contains(&apart), "asked again after {apart} s");
    }
    let refusals = lines(&nginx, "API key refused").len();
    assert!((1..=2).contains(&refusals), "{refusals} lines in 90 s");

    sensor.set_keys(["test-key"]);
    wait_until(2 * SOON, "the key to be asked for again", || checks().len() == 6);
    wait_delivered(&nginx, &sent);
    assert_eq!(posts(&sensor).len(), 31, "nothing is sent while the key is wrong");
    assert_arrived(&sensor, &sent);
    wait_until(SOON, "the log to say so", || lines(&nginx, "key accepted").len() == 2);
}

// Connections.

/// The connections over which each user's events came.
fn connections_of(stored: &[Arc<StoredEvent>]) -> BTreeMap<&str, BTreeSet<u64>> {
    let mut connections: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for event in stored {
        connections.entry(event.user_name.as_str()).or_default().insert(event.connection);
    }
    connections
}

#[test]
fn users_are_spread_over_connections_and_each_users_events_use_one_in_order() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_default(Answer::normal().after(Duration::from_millis(5)));
    let nginx = site(&sensor, "connections 4;").start();
    let user = |n: usize| format!("user{}", n * 7 % 32);
    let sent = visits(&nginx, (0..320).map(|n| (user(n), format!("/{n}"))));
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
    let stored = sensor.stored();
    let of_users = connections_of(&stored);
    assert!(of_users.values().all(|connections| connections.len() == 1), "{of_users:?}");
    let used: BTreeSet<_> = of_users.values().flatten().collect();
    assert!((3..=4).contains(&used.len()), "{of_users:?}");
    assert!(sensor.connections() <= 4);
}

#[test]
fn one_kept_alive_connection_carries_all_events() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let sent = visit(&nginx, "page", 100);
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
    assert_eq!(sensor.connections(), 1, "the key check's connection is used again");
}

#[test]
fn a_server_that_closes_each_connection_gets_a_new_one_for_each_event() {
    let sensor = Sensor::start(SensorOptions { close: true, ..SensorOptions::default() });
    let nginx = site(&sensor, "").start();
    let sent = visit(&nginx, "page", 50);
    let account = wait_delivered(&nginx, &sent);
    assert_eq!(account.retries, 0);
    assert_arrived(&sensor, &sent);
    assert_eq!(sensor.connections(), 51, "one for the key check");
}

#[test]
fn a_connection_that_died_while_idle_costs_neither_time_nor_event() {
    let options =
        SensorOptions { idle_close: Some(Duration::from_millis(100)), ..SensorOptions::default() };
    let sensor = Sensor::start(options);
    let nginx = site(&sensor, "").start();
    let mut sent = Vec::new();
    for round in 0..5 {
        sent.extend(visit(&nginx, &format!("round-{round}"), 5));
        let account = wait_delivered(&nginx, &sent);
        assert_eq!((account.retries, account.last_error), (0, None));
        wait_until(SOON, "the sensor to close", || sensor.open_connections() == 0);
    }
    assert_eq!((posts(&sensor).len(), unanswered(&sensor)), (25, 0));
    assert_arrived(&sensor, &sent);
}

#[test]
fn a_connection_that_dies_under_an_event_is_replaced_at_once() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let mut sent = visit(&nginx, "before", 5);
    wait_delivered(&nginx, &sent);
    sensor.set_rule("/closing", Answer::close());
    sent.push(visit_as(&nginx, "user0", "/closing"));
    wait_account(&nginx, |a| a.retries >= 2);
    sensor.clear_rules();
    let account = wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
    // The first attempt used an open connection: it counts as failed only if the attempt on a new
    // connection fails, too.
    assert_eq!(unanswered(&sensor) as u64, account.retries + 1);
}

/// As `docker pause` and a suspended machine do: the connection is as good as before.
#[test]
fn an_event_on_its_way_while_its_worker_is_stopped_is_sent_once() {
    let authority = Authority::new("test");
    let sites = [
        {
            let sensor = Sensor::start(SensorOptions::default());
            let builder = site(&sensor, "");
            (sensor, builder)
        },
        tls_site(&authority.localhost(), &authority, TRUST),
    ];
    for (sensor, builder) in sites {
        let nginx = builder.start();
        sensor.set_rule("/slow", Answer::normal().after(Duration::from_secs(2)));
        let sent = [visit_as(&nginx, "user0", "/slow")];
        wait_until(SOON, "the event at the sensor", || !posts(&sensor).is_empty());
        let worker = nginx.workers()[0];
        nginx.signal_worker(worker, Signal::STOP);
        wait_until(SOON, "the threads to stop", || nginx.is_stopped(worker));
        nginx.signal_worker(worker, Signal::CONT);
        let account = wait_delivered(&nginx, &sent);
        assert_eq!((account.retries, posts(&sensor).len(), unanswered(&sensor)), (0, 1, 0));
        assert_arrived(&sensor, &sent);
    }
}

// Names and certificates.

#[test]
fn a_host_is_found_by_name() {
    let sensor = Sensor::start(SensorOptions::default());
    let url = format!("http://localhost:{}/sensor/", sensor.port());
    let nginx = site_at(&url, "api_key test-key;").start();
    let sent = visit(&nginx, "page", 10);
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

#[test]
fn an_unknown_host_is_said_and_its_events_are_kept() {
    let url = "http://does-not-exist.invalid/sensor/";
    let nginx = site_at(url, "api_key test-key; timeout 1s;").start();
    nginx.wait_log(&format!("{}: key check: host not found: ", label(url)));
    visit_unaffected(&nginx, "page", 20);
    let is_retrying = |a: &Account| a.captured == 20 && a.retries >= 1 && a.state == "retrying";
    let account = wait_account(&nginx, is_retrying);
    assert_eq!(account.last_error.as_deref(), Some("host not found"));
    assert_eq!((account.rejected, account.dropped, account.pending), (0, 0, 20));
    nginx.wait_log(&format!("{}: host not found: events are kept", label(url)));
}

/// nginx and a sensor that speaks TLS with `leaf`; `target` is added to the block. `authority` is
/// the content of `%PREFIX%/ca.pem`.
fn tls_site(leaf: &Leaf, authority: &Authority, target: &str) -> (Sensor, Builder) {
    let tls = Some(leaf.server_config());
    let sensor = Sensor::start(SensorOptions { tls, ..SensorOptions::default() });
    let builder = site(&sensor, target).file("ca.pem", &authority.pem());
    (sensor, builder)
}

const TRUST: &str = "ssl_trusted_certificate %PREFIX%/ca.pem;";

#[test]
fn a_certificate_of_a_trusted_authority_is_accepted() {
    let authority = Authority::new("ours");
    let (sensor, builder) = tls_site(&authority.localhost(), &authority, TRUST);
    let nginx = builder.start();
    let sent = visit(&nginx, "page", 20);
    let account = wait_delivered(&nginx, &sent);
    assert_eq!((account.retries, account.last_error), (0, None));
    assert_arrived(&sensor, &sent);
    assert_eq!(sensor.connections(), 1);
}

/// Asserts that the server's certificate is refused, and that all events are kept until it has a good one.
#[track_caller]
fn certificate_not_accepted(authority: &Authority, leaf: &Leaf, why: &str) {
    let (sensor, builder) = tls_site(leaf, authority, TRUST);
    let nginx = builder.start();
    let reason = format!("certificate not accepted: {why}");
    let line = nginx.wait_log(&format!("key check: {reason}"));
    assert!(line.contains("[error]"), "{line}");
    let sent = visit(&nginx, "page", 20);
    let is_retrying = |a: &Account| a.captured == 20 && a.retries >= 1 && a.state == "retrying";
    let account = wait_account(&nginx, is_retrying);
    assert!(account.last_error.as_deref().is_some_and(|e| e.starts_with(&reason)), "{account:?}");
    assert_eq!((account.rejected, account.dropped, account.pending), (0, 0, 20));
    assert!(sensor.requests().is_empty(), "nothing is said to a stranger");
    sensor.set_tls(Some(authority.localhost().server_config()));
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

#[test]
fn a_certificate_of_another_authority_is_not_accepted() {
    let theirs = Authority::new("theirs").localhost();
    certificate_not_accepted(&Authority::new("ours"), &theirs, "its issuer is unknown, name");
}

#[test]
fn an_expired_certificate_is_not_accepted() {
    let authority = Authority::new("ours");
    certificate_not_accepted(&authority, &authority.expired_localhost(), "it has expired");
}

#[test]
fn a_certificate_for_another_name_is_not_accepted() {
    let authority = Authority::new("ours");
    certificate_not_accepted(
        &authority,
        &authority.leaf(&["tirreno.example"]),
        "it is for another name",
    );
}

#[test]
fn a_server_without_tls_has_no_certificate_to_complain_about() {
    let authority = Authority::new("ours");
    // nginx answers the handshake with an error page.
    let url = "https://localhost:%PORT%/sensor/";
    let target = format!("api_key test-key; {TRUST}");
    let nginx = site_at(url, &target).file("ca.pem", &authority.pem()).start();
    visit(&nginx, "page", 1);
    let account = wait_account(&nginx, |a| a.retries >= 1 && a.state == "retrying");
    let error = account.last_error.unwrap_or_default();
    assert!(error.starts_with("the server does not speak TLS on this port"), "{error}");
}

#[test]
fn ssl_verify_off_accepts_any_certificate() {
    let stranger = Authority::new("theirs").expired_localhost();
    let (sensor, builder) = tls_site(&stranger, &Authority::new("ours"), "ssl_verify off;");
    let nginx = builder.start();
    let sent = visit(&nginx, "page", 20);
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
}

#[test]
fn the_systems_authorities_are_trusted_unless_others_are_named() {
    let system = Authority::new("the system's");
    let directory = tempfile::tempdir().expect("a directory");
    let bundle = directory.path().join("ca-certificates.crt");
    system.write_pem(&bundle);
    let bundle = bundle.to_str().expect("a path in UTF-8");
    let other = Authority::new("ours");

    let (sensor, builder) = tls_site(&system.localhost(), &other, "");
    let nginx = builder.env("SSL_CERT_FILE", bundle).start();
    let mut sent = visit(&nginx, "page", 10);
    wait_delivered(&nginx, &sent);
    // On a reload, the master reads the configuration.
    nginx.reload();
    sent.extend(visit(&nginx, "reloaded", 10));
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);

    let (_sensor, builder) = tls_site(&system.localhost(), &other, TRUST);
    let nginx = builder.env("SSL_CERT_FILE", bundle).start();
    nginx.wait_log("certificate not accepted");
}

// What is sent, and what is not.

#[test]
fn each_post_has_the_configured_headers_and_none_of_the_clients() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "header X-Site \"main site\"; header X-Token t0ken;").start();
    let headers = [
        ("Cookie", "user=ann; session=planted-cookie"),
        ("Authorization", "Bearer planted-authorization"),
        ("X-Request-Id", "planted-request-id"),
        ("X-Forwarded-For", "198.51.100.99"),
        ("Forwarded", "for=198.51.100.99"),
        ("X-Site", "planted-site"),
        ("X-Custom", "planted-custom"),
        ("User-Agent", "Agent/1.0"),
    ];
    let trace = request(&nginx, "GET", "/page", &headers).header("X-Trace");
    let stored = sensor.wait_stored(1, SOON).unwrap();
    assert_eq!(stored[0].trace_id, trace);
    assert_eq!(stored[0].user_agent.as_deref(), Some("Agent/1.0"));
    let post = &posts(&sensor)[0];
    assert_eq!(post.header("X-Site").as_deref(), Some("main site"));
    assert_eq!(post.header("X-Token").as_deref(), Some("t0ken"));
    assert_eq!(post.header("Api-Key").as_deref(), Some("test-key"));
    let mut names: Vec<_> =
        post.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.sort_unstable();
    let expected = [
        "api-key",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "x-request-id",
        "x-site",
        "x-token",
    ];
    assert_eq!(names, expected);
    assert!(post.header("User-Agent").is_some_and(|agent| agent.starts_with("ngx-tirreno/")));
    for request in sensor.requests() {
        let all = format!("{:?} {:?}", request.headers, String::from_utf8_lossy(&request.body));
        assert!(!all.contains("planted") && !all.contains("198.51.100.99"), "{all}");
    }
}

#[test]
fn no_secret_appears_in_the_log_or_the_status_whatever_goes_wrong() {
    const SECRETS: [&str; 6] = [
        "planted-key",
        "planted-header",
        "planted-cookie",
        "planted-authorization",
        "planted-user",
        "planted-path",
    ];
    let keys = vec!["planted-key".to_owned()];
    let sensor = Sensor::start(SensorOptions { keys, ..SensorOptions::default() });
    let target = "api_key planted-key; header X-Token planted-header; timeout 200ms;";
    let nginx = site_at(&sensor.url(), target).start();
    let mut captured = 0;
    let mut visit = || {
        for user in 0..3 {
            let cookie = format!("user=planted-user-{user}; session=planted-cookie");
            let headers = [("Cookie", &*cookie), ("Authorization", "Bearer planted-authorization")];
            request(&nginx, "GET", "/planted-path?token=planted-path", &headers);
            captured += 1;
        }
        captured
    };
    visit();
    nginx.wait_log("first event accepted");
    let troubles = [
        (Answer::code(500), "answered 500"),
        (Answer::redirect(302, "http://planted-path/"), "answered 302"),
        (Answer::code(404), "answered 404"),
        (Answer::code(429), "answered 429"),
        (Answer::code(400), "answered 400"),
        (Answer::hang(), "timed out"),
        (Answer::reset(), "connection broken"),
        // The last one, because it pauses the target.
        (Answer::code(401), "API key refused with 401"),
    ];
    let mut status = String::new();
    for (answer, error) in troubles {
        sensor.set_default(answer);
        visit();
        nginx.wait_log(error);
        status += &wait_for(SOON, "the reason in the status", || {
            let text = request(&nginx, "GET", "/status", &[]).text();
            if text.contains(error) { Ok(text) } else { Err(text) }
        });
        sensor.set_default(Answer::normal());
        if !error.starts_with("API key") {
            wait_settled(&nginx, captured_by(&nginx));
        }
    }
    let log = nginx.error_log();
    for secret in SECRETS {
        assert!(!status.contains(secret), "{secret} in {status}");
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

fn captured_by(nginx: &Nginx) -> usize {
    usize::try_from(account(nginx).captured).expect("a small number")
}

// How fast.

#[test]
fn a_rate_is_kept_evenly_and_used() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "rate 20r/s; connections 3;").start();
    let sent = visit(&nginx, "backlog", 60);
    wait_delivered(&nginx, &sent);
    assert_arrived(&sensor, &sent);
    let at: Vec<_> = sensor.stored().iter().map(|event| event.at).collect();
    // 20 more events take a second, and 4 a fifth of one. A thread may be late by a little, and, on a busy machine,
    // a few times by more.
    for (events, least) in [(20, 900), (4, 100)] {
        let mut times: Vec<_> = at.windows(events + 1).map(|w| w[events] - w[0]).collect();
        times.sort_unstable();
        assert!(times[times.len() / 8] >= Duration::from_millis(least), "{events}: {times:?}");
    }
    let total = at[59] - at[0];
    assert!(total <= Duration::from_secs(4), "60 events took {total:?}");
}

/// `rate auto` with a sensor of this window, and a backlog of one user: the share of refused POSTs and the
/// share of the allowed rate that is used, once the rate is found, over at least `accepted` events.
fn settled_shares(rate: Rate, accepted: usize) -> (f64, f64) {
    let sensor = Sensor::start(SensorOptions { rate: Some(rate), ..SensorOptions::default() });
    let nginx = site(&sensor, "").start();
    // The window is filled twice: by the start, and by the search for the host's share.
    let first = 3 * rate.events;
    visits(&nginx, (0..first + 2 * accepted).map(|n| ("ann".to_owned(), format!("/{n}"))));
    let allowed = rate.events as f64 / rate.window.as_secs_f64();
    let limit = SOON + Duration::from_secs_f64(3.0 * (first + accepted) as f64 / allowed);
    let stored = sensor.wait_stored(first + accepted, limit).unwrap();
    let (from, to) = (stored[first - 1].at, stored[first + accepted - 1].at);
    let measured: Vec<_> =
        posts(&sensor).into_iter().filter(|post| post.at > from && post.at <= to).collect();
    let refused = measured.iter().filter(|post| post.answer == Some(429)).count();
    assert!(posts(&sensor).iter().any(|post| post.answer == Some(429)), "the limit was never met");
    let used = accepted as f64 / (to - from).as_secs_f64() / allowed;
    (refused as f64 / measured.len() as f64, used)
}

#[test]
fn rate_auto_finds_the_servers_limit() {
    let (refused, used) = settled_shares(Rate::new(40, 4), 100);
    println!("{refused:.3} refused, {used:.3} of the rate used");
    assert!(refused <= 0.1, "{refused:.3} of the POSTs were refused");
    assert!(used >= 0.85, "{used:.3} of the rate was used");
}

#[test]
fn rate_auto_uses_what_tirrenos_own_limit_allows() {
    if !is_full() {
        return;
    }
    let (refused, used) = settled_shares(Rate::new(25, 5), 300);
    println!("{refused:.3} refused, {used:.3} of the rate used");
    assert!(refused <= 0.1, "{refused:.3} of the POSTs were refused");
    assert!(used >= 0.85, "{used:.3} of the rate was used");
}

#[test]
fn a_reload_goes_on_with_the_rate_that_was_learned() {
    let rate = Rate::new(40, 4);
    let sensor = Sensor::start(SensorOptions { rate: Some(rate), ..SensorOptions::default() });
    let directory = tempfile::tempdir().unwrap();
    let spool = format!("spool {};", directory.path().join("spool").display());
    let nginx = site(&sensor, &spool).workers(2).start();
    visits(&nginx, (0..1000).map(|n| (format!("user{}", n % USERS), format!("/{n}"))));
    let refused = || posts(&sensor).iter().filter(|post| post.answer == Some(429)).count();
    let wait_stored = |count| sensor.wait_stored(count, 2 * SOON).unwrap();
    // The window was filled twice, and the rate is settled.
    wait_stored(3 * rate.events);
    let before = refused();
    for _ in 0..3 {
        let stored = sensor.stored().len();
        nginx.reload();
        wait_stored(stored + rate.events);
    }
    let refused = refused() - before;
    println!("{refused} refused after three reloads");
    // A pacer without this knowledge would start fast and be refused after each reload.
    assert!(refused < 3, "{refused} were refused after three reloads");
}

/// With `--full`, each of five rounds has to hold; else one of three, because other tests may take the processors
/// from the three hosts.
#[test]
fn three_hosts_share_a_limit_and_end_together() {
    if is_full() {
        (0..5).for_each(|round| {
            share_between_three_hosts().unwrap_or_else(|no| panic!("{round}: {no}"))
        });
        return;
    }
    let missed: Vec<_> = (0..3).map_while(|_| share_between_three_hosts().err()).collect();
    assert!(missed.len() < 3, "{missed:#?}");
}

/// Sends 60 events from each of three hosts to a server with one limit. Returns what was missed.
fn share_between_three_hosts() -> Result<(), String> {
    let rate = Rate::new(25, 5);
    let sensor = Sensor::start(SensorOptions { rate: Some(rate), ..SensorOptions::default() });
    // With this interval, each host collects all of its events at the same moment.
    let target =
        format!("tirreno_target {{ url {}; api_key test-key; interval 2s; }}", sensor.url());
    let hosts = [(); 3].map(|()| site_with(&target).start());
    let hosts: Vec<_> = hosts.iter().enumerate().collect();
    std::thread::scope(|scope| {
        for (number, nginx) in &hosts {
            scope.spawn(move || visit(nginx, &format!("host-{number}"), 60));
        }
    });
    let stored = sensor.wait_stored(180, 5 * SOON).unwrap();
    let posts = posts(&sensor);
    let first = posts.first().expect("there are POSTs").at;
    let ends: Vec<_> = (0..3)
        .map(|number| {
            let path = format!("/host-{number}/");
            let own = stored.iter().filter(|event| event.url.starts_with(&path));
            let last = own.map(|event| event.at).max().expect("each host has events");
            (last - first).as_secs_f64()
        })
        .collect();
    let fastest = ends.iter().copied().fold(f64::MAX, f64::min);
    let slowest = ends.iter().copied().fold(0.0, f64::max);
    let refused = posts.iter().filter(|post| post.answer == Some(429)).count();
    let refused = refused as f64 / posts.len() as f64;
    let used = 180.0 / (5.0 * slowest);
    let seen =
        format!("{used:.3} of the limit used, {refused:.3} of the POSTs refused, ends {ends:.1?}");
    println!("{seen}");
    if used >= 0.85 && refused <= 0.15 && slowest <= 1.3 * fastest { Ok(()) } else { Err(seen) }
}

#[test]
fn a_rate_above_the_targets_is_said_with_both_numbers() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "rate 2r/s;").start();
    visit(&nginx, "burst", 60);
    let line = nginx.wait_log("events a second are captured");
    assert!(line.contains("[warn]") && line.contains(&label(&sensor.url())), "{line}");
    let (_, numbers) = line.split_once(&format!("{}: ", label(&sensor.url()))).unwrap();
    let (captured, numbers) =
        numbers.split_once(" events a second are captured, but only ").unwrap();
    let (taken, cures) = numbers.split_once(" a second are taken, ").unwrap();
    let captured: f64 = captured.parse().expect("a number");
    assert!((2.1..=6.0).contains(&captured), "60 events in 10 s: {line}");
    assert_eq!(taken, "2.0");
    for cure in ["LEAKY_BUCKET_RPS", "\"rate\"", "tirreno off"] {
        assert!(cures.contains(cure), "{cure} in {line}");
    }
    if !is_full() {
        return;
    }
    let first = Instant::now();
    wait_until(5 * SOON, "the warning to be repeated", || {
        visit(&nginx, "more", 1);
        lines(&nginx, "events a second are captured").len() > 1
    });
    assert!(first.elapsed() >= Duration::from_secs(58), "again after {:?}", first.elapsed());
}

// The first minutes.

#[test]
fn the_log_says_that_the_key_and_the_first_event_were_accepted() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let line = nginx.wait_log("key accepted");
    assert!(line.contains("[notice]"), "{line}");
    assert!(line.contains(&format!("{}: key accepted", label(&sensor.url()))), "{line}");
    assert!(lines(&nginx, "first event").is_empty());
    let sent = visit(&nginx, "page", 5);
    wait_delivered(&nginx, &sent);
    let line = nginx.wait_log("first event accepted");
    assert!(line.contains("[notice]"), "{line}");
    assert!(line.contains(&format!("{}: first event accepted", label(&sensor.url()))), "{line}");
    assert_eq!(lines(&nginx, "first event accepted").len(), 1);
    assert_eq!(sensor.key_checks().len(), 1, "the key is asked for once");
}

/// The trace ids of the rejected events in the status, as listed.
fn listed(status: &Value) -> Vec<String> {
    let events = status["targets"]["tirreno"]["rejected_events"].as_array().expect("a list");
    events.iter().map(|event| event["trace_id"].as_str().expect("a string").to_owned()).collect()
}

/// Has one event rejected as invalid by a server that accepts others; returns its visit.
fn visit_rejected(nginx: &Nginx, path: &str) -> Visit {
    let before = account(nginx);
    let wait = |what, wanted: &dyn Fn(&Account) -> bool| {
        wait_for(SOON, what, || match account(nginx) {
            account if wanted(&account) => Ok(()),
            account => Err(format!("{account:?}")),
        });
    };
    visit_as(nginx, "user1", "/good");
    wait("the other event", &|account| account.delivered > before.delivered);
    let visit = visit_as(nginx, "mallory", path);
    wait("the rejection", &|account| account.rejected > before.rejected);
    visit
}

#[test]
fn rejected_events_are_listed_by_every_worker_and_over_a_reload() {
    let schema: Value = serde_json::from_str(include_str!("../docs/status.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    for has_spool in [false, true] {
        let sensor = Sensor::start(SensorOptions::default());
        sensor.set_rule("/bad", Answer::code(400));
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let spool = format!("spool {};", path("spool").display());
        let audit = path("audit.log");
        let mut nginx = site(&sensor, if has_spool { &spool } else { "" })
            .http(&format!(
                "tirreno_target audit {{ type file; path {}; format json; interval 20ms; }}",
                audit.display()
            ))
            .http("server { listen 127.0.0.1:%PORT1%; add_header X-Worker $pid; location / { tirreno off; tirreno_status; } }")
            .workers(2)
            .start();
        wait_delivered(&nginx, &visit(&nginx, "before", 3));
        assert_eq!(listed(&nginx.status("/status")), Vec::<String>::new());

        let mut bad: Vec<_> =
            (0..3).map(|n| visit_rejected(&nginx, &format!("/bad/secret/{n}"))).collect();
        let wanted = |bad: &[Visit]| -> Vec<_> {
            bad.iter().rev().map(|visit| visit.trace.clone()).collect()
        };
        let wait_listed = |nginx: &Nginx, wanted: &[String]| {
            wait_for(SOON, "the list", || match nginx.status("/status") {
                status if listed(&status) == wanted => Ok(status),
                status => Err(status["targets"].to_string()),
            })
        };
        let status = wait_listed(&nginx, &wanted(&bad));
        schema.validate(&status).unwrap_or_else(|error| panic!("{error}: {status:#}"));
        let event = &status["targets"]["tirreno"]["rejected_events"][0];
        assert_eq!(
            (&event["type"], &event["reason"]),
            (&"page_view".into(), &"answered 400".into())
        );
        assert_eq!(event["spool_id"].is_u64(), has_spool, "{event}");
        let written = fs::read_to_string(&audit).unwrap();
        let record = written.lines().find(|line| line.contains(&bad[2].trace)).expect("a record");
        let record: Value = serde_json::from_str(record).unwrap();
        assert_eq!(
            (&record["trace_id"], &record["user_id"]),
            (&event["trace_id"], &"mallory".into())
        );

        // All workers give the same list.
        let mut told = BTreeSet::new();
        wait_until(SOON, "both workers", || {
            let response = client::get(nginx.port_n(1), "/", &[]).expect("an answer");
            assert_eq!(listed(&serde_json::from_slice(&response.body).unwrap()), wanted(&bad));
            told.insert(response.header("X-Worker"));
            told.len() == 2
        });
        nginx.reload();
        assert_eq!(listed(&nginx.status("/status")), wanted(&bad));
        bad.push(visit_rejected(&nginx, "/bad/secret/3"));
        wait_listed(&nginx, &wanted(&bad));

        let page = request(&nginx, "GET", "/status?format=html", &[]).text();
        let metrics = request(&nginx, "GET", "/status?format=prometheus", &[]).text();
        let (json, log) = (nginx.status("/status").to_string(), nginx.error_log());
        for visit in &bad {
            assert!(page.contains(&visit.trace) && !metrics.contains(&visit.trace));
            let line = lines(&nginx, &format!("the event {} is rejected", visit.trace));
            assert_eq!(line.len(), 1, "{log}");
            assert!(line[0].contains("answered 400") && line[0].contains(": page_view, captured "));
            assert_eq!(line[0].contains("kept in the spool with the id "), has_spool);
        }
        assert!(metrics.contains("tirreno_rejected_events_total{target=\"tirreno\"} 4"));
        for text in [&page, &metrics, &json, &log] {
            assert!(!text.contains("mallory") && !text.contains("secret"), "{text}");
        }

        if has_spool {
            // With a spool, the list comes from the spool: it survives a restart, and lacks events that
            // were deleted from it.
            nginx.quit();
            nginx.start();
            wait_listed(&nginx, &wanted(&bad));
            let id =
                nginx.status("/status")["targets"]["tirreno"]["rejected_events"][0]["spool_id"]
                    .clone();
            let files = fs::read_dir(path("spool")).unwrap().map(|entry| entry.unwrap().path());
            let file = files.into_iter().find(|file| file.extension().is_some_and(|e| e == "db"));
            let database = rusqlite::Connection::open(file.expect("a database")).unwrap();
            database.busy_timeout(SOON).unwrap();
            let delete = "DELETE FROM rejected WHERE id = ?1";
            assert_eq!(database.execute(delete, [id.as_i64()]).unwrap(), 1);
            bad.pop();
            wait_listed(&nginx, &wanted(&bad));
        }
    }
}

#[test]
fn of_many_rejected_events_the_last_are_listed_and_few_are_logged() {
    let sensor = Sensor::start(SensorOptions::default());
    sensor.set_rule("/bad", Answer::code(400));
    let nginx = site(&sensor, "").start();
    wait_delivered(&nginx, &visit(&nginx, "before", 1));
    let bad: Vec<_> = (0..60).map(|n| visit_rejected(&nginx, &format!("/bad/{n}"))).collect();
    let last: Vec<_> = bad[10..].iter().rev().map(|visit| visit.trace.clone()).collect();
    assert_eq!(listed(&nginx.status("/status")), last);
    assert_eq!(account(&nginx).rejected, 60);
    // At most ten lines a minute; the test takes less than a minute, or two on a very slow machine.
    let said = lines(&nginx, " is rejected: ").len();
    assert!((10..=20).contains(&said), "{said} lines");
    assert!(!lines(&nginx, "others are only in the status").is_empty());
}

// The status.

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn the_status_has_exactly_the_documented_keys_for_each_target() {
    let [one, two] = [(); 2].map(|()| Sensor::start(SensorOptions::default()));
    two.set_default(Answer::code(503));
    let target = |name: &str, sensor: &Sensor| {
        let url = sensor.url();
        format!("tirreno_target {name} {{ url {url}; api_key test-key; interval 20ms; }}")
    };
    let nginx = site_with(&(target("one", &one) + &target("two", &two))).start();
    let fresh = nginx.status("/status");
    assert_eq!(
        keys(&fresh),
        ["version", "targets", "skipped", "identity", "events", "zone"].into()
    );
    assert_eq!(fresh["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(keys(&fresh["skipped"]), ["anonymous", "event_off", "invalid"].into());
    assert_eq!(keys(&fresh["targets"]), ["one", "two"].into());
    let expected = [
        "type",
        "state",
        "captured",
        "delivered",
        "rejected",
        "rejected_by_reason",
        "rejected_events",
        "dropped",
        "dropped_by_reason",
        "delivered_per_second",
        "delivery_seconds",
        "merged",
        "withdrawn",
        "pending",
        "retries",
        "last_error",
        "last_error_time",
        "oldest_pending_seconds",
    ];
    for name in ["one", "two"] {
        let account = &fresh["targets"][name];
        assert_eq!(keys(account), expected.into());
        assert_eq!((&account["type"], &account["state"]), (&"tirreno".into(), &"ok".into()));
        assert_eq!(
            (&account["last_error"], &account["last_error_time"]),
            (&Value::Null, &Value::Null)
        );
        for key in ["captured", "delivered", "rejected", "dropped", "pending", "retries"] {
            assert_eq!(account[key], 0, "{key}");
        }
    }

    visit(&nginx, "page", 5);
    request(&nginx, "GET", "/no-user", &[]);
    let one = wait_for(SOON, "the first target to be done", || {
        let account = account_of(&nginx, "one");
        if account.delivered == 5 { Ok(account) } else { Err(format!("{account:?}")) }
    });
    assert_eq!((one.state.as_str(), one.captured, one.pending, one.last_error), ("ok", 5, 0, None));
    let two = wait_for(SOON, "the second target to fail", || {
        let status = nginx.status("/status");
        let account = status["targets"]["two"].clone();
        if account["retries"].as_u64() > Some(0) { Ok(account) } else { Err(status.to_string()) }
    });
    assert_eq!((&two["state"], &two["last_error"]), (&"retrying".into(), &"answered 503".into()));
    let time = two["last_error_time"].as_str().expect("a string");
    let parsed = DateTime::parse_from_rfc3339(time).unwrap_or_else(|e| panic!("{time}: {e}"));
    assert!(time.ends_with('Z'), "{time} is in UTC");
    let now = DateTime::<Utc>::from(SystemTime::now());
    assert!((now - parsed.to_utc()).num_seconds().abs() < 60, "{time} is now");
    assert_eq!(nginx.status("/status")["skipped"]["anonymous"], 1);
}

#[test]
fn the_status_answers_get_and_head_only() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    let get = request(&nginx, "GET", "/status", &[]);
    assert_eq!(get.status, 200);
    assert_eq!(get.header("Content-Type").as_deref(), Some("application/json"));
    assert_eq!(get.header("Content-Length"), Some(get.body.len().to_string()));
    let head = request(&nginx, "HEAD", "/status", &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Type"), get.header("Content-Type"));
    assert_eq!(head.header("Content-Length"), get.header("Content-Length"));
    for method in ["POST", "PUT", "DELETE"] {
        assert_eq!(request(&nginx, method, "/status", &[]).status, 405, "{method}");
    }
    assert_eq!(client::post(nginx.port(), "/status", &[], b"a body").unwrap().status, 405);
}

#[test]
fn the_age_of_the_oldest_pending_event_grows_and_ends() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = site(&sensor, "").start();
    assert_eq!(account(&nginx).oldest_pending_seconds, 0);
    sensor.refuse();
    let sent = visit(&nginx, "page", 5);
    for age in 1..=2 {
        let account = wait_account(&nginx, |a| a.oldest_pending_seconds >= age);
        // nginx's clock may be some milliseconds late, and then another second begins.
        let bound = sent[0].at.elapsed().as_secs() + 1;
        assert!(account.oldest_pending_seconds <= bound, "{account:?} after {bound} s");
    }
    sensor.listen_again();
    wait_delivered(&nginx, &sent);
    wait_account(&nginx, |a| a.oldest_pending_seconds == 0);
}
