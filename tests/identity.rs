//! Whose request it is: sessions, what binds them, and what clients claim.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tirreno_tests::backend::{Answer, Backend, BackendRequest};
use tirreno_tests::client::{self, Connection, RequestHeaders, Response};
use tirreno_tests::nginx::{Builder, Nginx};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(20);

/// Nobody may be recorded as this user but by its own session.
const VICTIM: &str = "victim-id";

/// A server before the application, with rules as a preset has them.
const SERVER: &str = r#"
    tirreno on;
    tirreno_realm chat;
    tirreno_default_event off;
    tirreno_session cookie:MMAUTHTOKEN header:Authorization header:Token arg:access_token;
    tirreno_user cookie:MMUSERID;
    tirreno_verify session;
    tirreno_event account_login POST /login status=set_cookie:MMUSERID
        user=$upstream_cookie_MMUSERID bind=$upstream_cookie_MMUSERID;
    tirreno_event account_login POST /login status=header:Token user=answer:id bind=answer:id;
    tirreno_event account_login_fail POST /login status=4xx user=body:login_id body=json;
    tirreno_event account_logout POST /logout session=required;
    tirreno_event off GET /users/me 'bind=$upstream_http_etag~^[0-9.]+\.([a-z-]+)\.[0-9]+$'
        session=required:200,304;
    tirreno_event page_edit POST /posts bind=answer:user_id session=required:201;
    tirreno_event page_view GET /open anonymous=on;
    tirreno_event page_view * '/action/{*rest}' session=required;
    location / { proxy_pass http://%BACKEND%; }
    location /mine/ {
        tirreno_event page_view * '/mine/{*rest}' session=required;
        auth_basic off;
        deny all;
    }"#;

/// The application's sessions: whose each token is.
type Sessions = Arc<Mutex<HashMap<String, String>>>;

static TOKENS: AtomicU64 = AtomicU64::new(0);

/// An application that signs anybody in, and tells who is who as Mattermost does.
fn application(sessions: &Sessions, request: &BackendRequest) -> Answer {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let cookie = request.header("Cookie").unwrap_or_default();
    let cookies = cookie.split(';').filter_map(|pair| pair.trim().split_once('='));
    let cookie = cookies.into_iter().find(|(name, _)| *name == "MMAUTHTOKEN");
    let authorization = request.header("Authorization").unwrap_or_default();
    let bearer = || {
        let scheme = authorization.get(..6)?;
        scheme.eq_ignore_ascii_case("bearer").then(|| authorization.get(7..)).flatten()
    };
    let token = cookie.map(|(_, token)| token).or_else(bearer);
    let token = token.or_else(|| query.strip_prefix("access_token=")).unwrap_or_default();
    let mut sessions = sessions.lock().unwrap();
    let user = sessions.get(token).cloned();
    let mut answer = Answer { status: 200, ..Answer::default() };
    let mut header = |name: &str, value: &str| answer.headers.push((name.into(), value.into()));
    match (path, user) {
        ("/login", _) => {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            let name = body["login_id"].as_str().unwrap();
            if name == "wrong" {
                answer.status = 401;
                return answer;
            }
            let token = format!("token-{}", TOKENS.fetch_add(1, Relaxed));
            sessions.insert(token.clone(), format!("{name}-id"));
            header("Token", &token);
            if request.header("X-Requested-With").is_some() {
                header("Set-Cookie", &format!("MMAUTHTOKEN={token}; Path=/; HttpOnly"));
                header("Set-Cookie", &format!("MMUSERID={name}-id; Path=/"));
            }
            answer.body = format!(r#"{{"username":"x","id":"{name}-id"}}"#).into();
        }
        ("/logout", user) => {
            sessions.remove(token);
            header("Set-Cookie", "MMAUTHTOKEN=; Path=/; Max-Age=-1");
            if user.is_none() {
                header("X-Session", "none");
            }
        }
        ("/open", _) => {}
        ("/csrf", _) => answer.status = 401,
        ("/missing", _) => answer.status = 404,
        (_, None) => {
            answer.status = 401;
            header("Set-Cookie", "MMAUTHTOKEN=; Path=/; Max-Age=-1");
        }
        ("/users/me", Some(user)) => {
            header("Etag", &format!("9.5.{user}.17"));
            answer.body = format!(r#"{{"id":"{user}"}}"#).into();
        }
        ("/posts", Some(user)) => {
            answer.status = 201;
            answer.body = format!(r#"{{"id":"post","user_id":"{user}"}}"#).into();
        }
        _ => answer.body = b"{}".into(),
    }
    answer
}

/// What the access log says of a request.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    event: String,
    user: String,
    identity: String,
    claimed: String,
    captured: String,
}

impl Seen {
    fn is(&self, event: &str, user: &str, identity: &str) -> bool {
        self.event == event
            && self.user == user
            && self.identity == identity
            && self.captured == "1"
    }
}

/// nginx with the application behind it.
struct Site {
    nginx: Nginx,
    _sensor: Sensor,
    _backend: Backend,
    sessions: Sessions,
}

impl Site {
    fn start(server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let sessions = Sessions::default();
        let own = Arc::clone(&sessions);
        let sensor = Sensor::start(SensorOptions::default());
        let backend = Backend::answering(move |request| application(&own, request));
        let http = "
            log_format seen '$tirreno_event|$tirreno_user|$tirreno_identity|$tirreno_claimed|$tirreno_captured|';
            access_log %PREFIX%/seen.log seen;
            tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }
            tirreno_target audit { type file; path %PREFIX%/audit.json; interval 20ms; }
            proxy_set_header Accept-Encoding '';
            server { listen 127.0.0.1:%PORT9%; location = /status { access_log off; tirreno_status; } }";
        let builder = Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address());
        let nginx = more(builder.http(http).server(server)).start();
        Self { nginx, _sensor: sensor, _backend: backend, sessions }
    }

    fn simple() -> Self {
        Self::start(SERVER, |builder| builder)
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.nginx.prefix().join("seen.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Sends a request, and says what became of it.
    #[track_caller]
    fn send(&self, method: &str, path: &str, headers: RequestHeaders<'_>, body: &str) -> Seen {
        self.send_for(method, path, headers, body).1
    }

    #[track_caller]
    fn send_for(
        &self,
        method: &str,
        path: &str,
        headers: RequestHeaders<'_>,
        body: &str,
    ) -> (Response, Seen) {
        let before = self.lines().len();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.nginx.port()));
        let mut connection = Connection::open(address).unwrap();
        let answer = connection.request(method, path, headers, body.as_bytes()).unwrap();
        drop(connection);
        wait_until(SOON, "the request to be logged", || self.lines().len() > before);
        (answer, seen(&self.lines()[before]))
    }

    /// Signs in as a browser; the token.
    fn log_in(&self, name: &str) -> String {
        let headers = [("X-Requested-With", "XMLHttpRequest")];
        let (answer, seen) =
            self.send_for("POST", "/login", &headers, &format!(r#"{{"login_id":"{name}"}}"#));
        assert!(seen.is("account_login", &format!("{name}-id"), "answer"), "{seen:?}");
        answer.header("Token").unwrap()
    }

    /// A token that the application knows and nginx does not.
    fn unbound(&self, user: &str) -> String {
        let token = format!("token-{}", TOKENS.fetch_add(1, Relaxed));
        self.sessions.lock().unwrap().insert(token.clone(), user.into());
        token
    }

    fn status(&self) -> serde_json::Value {
        let answer = client::get(self.nginx.port_n(9), "/status", &[]).unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }
}

fn seen(line: &str) -> Seen {
    let mut parts = line.split('|').map(|part| part.trim_start_matches('-').to_owned());
    let mut next = || parts.next().unwrap_or_default();
    Seen { event: next(), user: next(), identity: next(), claimed: next(), captured: next() }
}

fn cookie(token: &str) -> String {
    format!("MMAUTHTOKEN={token}")
}

#[test]
fn a_login_binds_the_token_that_it_gives() {
    let site = Site::simple();
    let token = site.log_in("ann");
    for headers in [
        [("Cookie", cookie(&token))],
        [("Cookie", format!("a=b; MMUSERID={VICTIM}; MMAUTHTOKEN={token}"))],
        [("cOOkie", format!("MMAUTHTOKEN={token};"))],
        [("Authorization", format!("Bearer {token}"))],
        [("AUTHORIZATION", format!("BEARER {token}"))],
        [("Authorization", format!("Bearer:{token}"))],
        [("Authorization", format!("bearer\t{token}"))],
    ] {
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let seen = site.send("GET", "/action/1", &headers, "");
        assert!(seen.is("page_view", "ann-id", "session"), "{headers:?}: {seen:?}");
    }
    let seen = site.send("GET", &format!("/action/1?access_token={token}"), &[], "");
    assert!(seen.is("page_view", "ann-id", "session"), "{seen:?}");
    // A mobile application's login sets no cookie.
    let (answer, seen) = site.send_for("POST", "/login", &[], r#"{"login_id":"bob"}"#);
    assert!(seen.is("account_login", "bob-id", "answer"), "{seen:?}");
    let token = format!("Bearer {}", answer.header("Token").unwrap());
    let seen = site.send("GET", "/action/1", &[("Authorization", &token)], "");
    assert!(seen.is("page_view", "bob-id", "session"), "{seen:?}");
}

#[test]
fn nothing_is_ever_put_on_a_victims_record() {
    let site = Site::simple();
    let (own, victims) = (site.log_in("eve"), site.log_in("victim"));
    let planted = format!("MMUSERID={VICTIM}");
    let both = format!("{planted}; {}", cookie(&own));
    let seen = site.send("GET", "/action/1", &[("Cookie", &both)], "");
    assert!(seen.is("page_view", "eve-id", "session") && seen.claimed == VICTIM, "{seen:?}");
    let basic = [("Authorization", "Basic dmljdGltLWlkOng="), ("Cookie", &cookie(&own))];
    let seen = site.send("GET", "/action/1", &basic, "");
    assert!(seen.is("page_view", "eve-id", "session"), "{seen:?}");
    for path in [
        "/open",
        "/missing",
        "/csrf",
        "/action/1",
        "/mine/1",
        "/users/me",
        "/users/victim-id/..%2fme",
        "/logout",
        "/nothing",
    ] {
        for token in ["", "; MMAUTHTOKEN=garbage", &format!("; MMAUTHTOKEN={own}")] {
            for method in ["GET", "POST", "HEAD"] {
                let cookies = format!("{planted}{token}");
                let seen = site.send(method, path, &[("Cookie", &cookies)], "");
                assert_ne!(seen.user, VICTIM, "{method} {path} {cookies}: {seen:?}");
            }
        }
    }
    // A session is still its user's whatever the others were answered.
    let seen = site.send("GET", "/action/1", &[("Cookie", &cookie(&victims))], "");
    assert!(seen.is("page_view", VICTIM, "session"), "{seen:?}");
    assert!(site.status()["identity"]["mismatched"].as_u64() > Some(0));
    site.nginx.wait_log("claimed to be of another user");
}

/// The application may have answered as to another method than the rule is for.
#[test]
fn an_overridden_method_proves_nothing() {
    const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
    const PARTS: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=x");
    let part = |name: &str| {
        let head = "Content-Disposition: form-data; name=";
        format!("--x\r\n{head}\"a\"\r\n\r\nb\r\n--x\r\n{head}\"{name}\"\r\n\r\nPUT\r\n--x--\r\n")
    };
    let site = Site::start(
        "tirreno on;
         tirreno_verify session;
         tirreno_session cookie:MMAUTHTOKEN;
         tirreno_event page_edit POST /posts bind=answer:user_id session=required:201;
         client_max_body_size 4m;
         location / { proxy_pass http://%BACKEND%; }",
        |builder| builder,
    );
    let long = format!("a={}&_method=PUT", "x".repeat(1 << 20));
    let padded = format!("a={}&%5fmethod=PUT", "x".repeat(900_000));
    let overrides: [(&str, RequestHeaders<'_>, &str); 11] = [
        ("/posts?_method=PUT", &[], ""),
        ("/posts?a=b&%5Fmethod=PUT", &[], ""),
        ("/posts?X-HTTP-Method-Override=PUT", &[], ""),
        ("/posts", &[("x-http-method-override", "PUT")], ""),
        ("/posts", &[FORM], "_method=PUT"),
        ("/posts", &[FORM], "a=b&_%6dethod=&c=d"),
        ("/posts", &[FORM], "X-HTTP-Method-Override=PUT"),
        ("/posts", &[FORM], &padded),
        ("/posts", &[FORM], &long),
        ("/posts", &[PARTS], &part("_method")),
        ("/posts", &[], "_method=PUT"),
    ];
    let token = cookie(&site.unbound("ann-id"));
    for (path, headers, body) in overrides {
        let headers = [headers, &[("Cookie", &*token)]].concat();
        let seen = site.send("POST", path, &headers, body);
        assert_eq!((&*seen.user, &*seen.captured), ("", "anonymous"), "{path} {body:.100}");
    }
    for (kind, body) in [(FORM, "a=_method&method=PUT"), (PARTS, &part("c"))] {
        let token = cookie(&site.unbound("ann-id"));
        let seen = site.send("POST", "/posts?a=_method", &[kind, ("Cookie", &token)], body);
        assert!(seen.is("page_edit", "ann-id", "answer"), "{body}: {seen:?}");
    }
}

#[test]
fn a_session_that_is_nobodys_yet_is_its_own_user_until_an_answer_tells() {
    let site = Site::simple();
    let token = site.unbound("ann-id");
    let headers = [("Cookie", &*format!("MMUSERID={VICTIM}; MMAUTHTOKEN={token}"))];
    let first = site.send("GET", "/action/1", &headers, "");
    assert!(first.user.strip_prefix("session-").is_some_and(|d| d.len() == 16), "{first:?}");
    assert_eq!((first.event.as_str(), first.identity.as_str()), ("page_view", "none"));
    assert_eq!(site.send("GET", "/action/2", &headers, "").user, first.user);
    // Who asks who it is, is told.
    site.send("GET", "/users/me", &headers, "");
    let seen = site.send("GET", "/action/3", &headers, "");
    assert!(seen.is("page_view", "ann-id", "session") && seen.claimed == VICTIM, "{seen:?}");
    // An answer that names the actor tells it of its own request, too.
    let token = site.unbound("bob-id");
    let headers = [("Authorization", &*format!("Bearer {token}"))];
    let seen = site.send("POST", "/posts", &headers, "{}");
    assert!(seen.is("page_edit", "bob-id", "answer"), "{seen:?}");
    let seen = site.send("GET", "/action/3", &headers, "");
    assert!(seen.is("page_view", "bob-id", "session"), "{seen:?}");
    // Accepted without a token that can be read.
    let seen = site.send("GET", "/action/1", &[("X-Other", "token")], "");
    assert_eq!(seen.captured, "anonymous", "the application has refused it: {seen:?}");
}

#[test]
fn a_logout_ends_a_session_and_a_401_does_not() {
    let site = Site::simple();
    let token = site.log_in("ann");
    let headers = [("Cookie", &*cookie(&token))];
    let seen = site.send("POST", "/csrf", &headers, "");
    assert_eq!(seen.event, "");
    let seen = site.send("GET", "/action/1", &headers, "");
    assert!(seen.is("page_view", "ann-id", "session"), "{seen:?}");
    let seen = site.send("POST", "/logout", &headers, "");
    assert!(seen.is("account_logout", "ann-id", "session"), "{seen:?}");
    let seen = site.send("GET", "/action/1", &headers, "");
    assert_eq!(seen.user, "", "{seen:?}");
}

#[test]
fn another_answer_that_names_a_user_binds_the_session_anew() {
    let site = Site::simple();
    let token = site.log_in("ann");
    site.sessions.lock().unwrap().insert(token.clone(), "bob-id".into());
    let headers = [("Cookie", &*cookie(&token))];
    site.send("GET", "/users/me", &headers, "");
    let seen = site.send("GET", "/action/1", &headers, "");
    assert!(seen.is("page_view", "bob-id", "session"), "{seen:?}");
}

/// `tirreno_state` in a directory that the workers can write to.
const STATE: &str = "tirreno_state %PREFIX%/state;";

#[test]
fn bound_sessions_stay_bound_over_restart_reload_and_kill() {
    let mut site = Site::start(SERVER, |builder| builder.http(STATE));
    let token = site.log_in("ann");
    let headers = [("Cookie", &*cookie(&token))];
    let is_bound = |site: &Site| {
        let seen = site.send("GET", "/action/1", &headers, "");
        assert!(seen.is("page_view", "ann-id", "session"), "{seen:?}");
    };
    let file = site.nginx.prefix().join("state");
    site.nginx.reload();
    is_bound(&site);
    site.nginx.quit();
    site.nginx.start();
    is_bound(&site);
    wait_until(SOON, "the state file", || fs::metadata(&file).is_ok_and(|about| about.len() > 0));
    let worker = site.nginx.workers()[0];
    site.nginx.signal_worker(worker, Signal::KILL);
    site.nginx.wait_gone(worker);
    wait_until(SOON, "a new worker", || !site.nginx.workers().is_empty());
    is_bound(&site);
    // Nothing but hashes of tokens.
    let bytes = fs::read(&file).unwrap();
    assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()));
    let key = fs::metadata(file.with_extension("key")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
    // Edited: no false user, and nginx runs.
    site.nginx.quit();
    let edited = bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    fs::write(&file, edited).unwrap();
    site.nginx.start();
    let seen = site.send("GET", "/action/1", &headers, "");
    assert!(seen.user.starts_with("session-"), "{seen:?}");
}

/// Asks the application itself whose a token is.
const LOOKUP: &str = "
    tirreno_identity chat {
        url http://%BACKEND%/users/me;
        send bearer;
        token_format [a-z0-9-]+;
        map id userName;
    }";

#[test]
fn the_application_is_asked_whose_token_it_has_accepted() {
    let server = format!("tirreno_lookup chat; {SERVER}");
    let site = Site::start(&server, |builder| builder.http(LOOKUP));
    let token = site.unbound("ann-id");
    let headers = [("Cookie", &*format!("MMUSERID={VICTIM}; MMAUTHTOKEN={token}"))];
    let users = |site: &Site| {
        let text = fs::read_to_string(site.nginx.prefix().join("audit.json")).unwrap_or_default();
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let user = |record: serde_json::Value| {
            (record["user_id"].clone(), record["identity"].as_str().unwrap_or("").to_owned())
        };
        records.map(user).collect::<Vec<_>>()
    };
    // The event waits until it is known whose it is.
    site.send("GET", "/action/1", &headers, "");
    wait_until(SOON, "the event", || users(&site).len() == 1);
    assert_eq!(users(&site), [("ann-id".into(), "lookup".to_owned())]);
    let seen = site.send("GET", "/action/2", &headers, "");
    assert!(seen.is("page_view", "ann-id", "lookup") && seen.claimed == VICTIM, "{seen:?}");
    // Only tokens that the application has accepted are asked about, and never twice in a row.
    for _ in 0..3 {
        site.send("GET", "/action/3", &[("Cookie", &cookie("garbage"))], "");
        site.send("GET", "/action/4", &headers, "");
    }
    let asked = site._backend.requests();
    let asked = asked.iter().filter(|request| request.header("X-Tirreno-Lookup").is_some());
    assert_eq!(asked.count(), 1);
    assert_eq!(site.status()["identity"]["lookup"].as_u64(), Some(5));
}

#[test]
fn an_event_waits_no_longer_than_its_answer_can_come() {
    let server = format!("tirreno_lookup chat; {SERVER}");
    let lookup = LOOKUP.replace("/users/me", "/nobody-knows").replace("map id", "map none");
    let site = Site::start(&server, |builder| builder.http(&lookup));
    let token = site.unbound("ann-id");
    let headers = [("Cookie", &*cookie(&token))];
    for _ in 0..2 {
        let seen = site.send("GET", "/action/1", &headers, "");
        assert!(seen.user.starts_with("session-"), "{seen:?}");
    }
    wait_until(SOON, "both events", || site.status()["identity"]["none"].as_u64() == Some(2));
}

#[test]
fn what_cannot_work_is_an_error_of_the_configuration() {
    let server = |text: &str| format!("server {{ listen 127.0.0.1:%PORT8%; {text} }}");
    let on = "tirreno_target { url http://127.0.0.1:1/sensor/; api_key k; } ";
    for (http, error) in [
        (server("tirreno on; tirreno_verify session;"), "needs \"tirreno_session\""),
        (
            server("tirreno on; tirreno_verify session; tirreno_session cookie:a;"),
            "needs a rule with \"bind=\"",
        ),
        (server("tirreno on; tirreno_lookup x; tirreno_session cookie:a;"), "unknown name \"x\""),
        (
            format!(
                "tirreno_identity x {{ url http://a/; map id userName; }} {}",
                server("tirreno on; tirreno_lookup x;")
            ),
            "needs \"tirreno_session\"",
        ),
        ("tirreno_identity x { map id userName; }".into(), "has no \"url\""),
        ("tirreno_identity x { url ftp://a/; map id userName; }".into(), "must be like"),
        ("tirreno_identity x { url http://a/; }".into(), "map FIELD userName"),
        ("tirreno_identity x { url http://a/; send x; }".into(), "\"bearer\" or \"cookie:NAME\""),
        ("tirreno_state %PREFIX%/nowhere/state;".into(), "does not exist, make it"),
    ] {
        let nginx = Nginx::builder().http(on).http(&http).build();
        let (good, output) = nginx.test();
        assert!(!good && output.contains(error), "{http}: {output}");
        assert!(output.contains("nginx.conf:"), "{http}: {output}");
    }
    for (http, warning) in [
        (server("tirreno on; tirreno_user $cookie_id;"), "what any client can write"),
        (server("tirreno on; tirreno_user header:X-User;"), "what any client can write"),
        (
            server(
                "tirreno on; tirreno_user x; location /a { tirreno_session cookie:a; }
                 location /b { tirreno_session cookie:b; }",
            ),
            "add \"tirreno_realm\"",
        ),
    ] {
        let nginx = Nginx::builder().http(on).http(&http).build();
        let (good, output) = nginx.test();
        assert!(good && output.contains(warning), "{http}: {output}");
    }
    for http in [
        server("tirreno on; tirreno_user verified $cookie_id;"),
        server("tirreno on; tirreno_user $cookie_id; tirreno_verify answer;"),
        server(
            "tirreno on; tirreno_user x; location /a { tirreno_realm a; tirreno_session cookie:a; }
             location /b { tirreno_realm b; tirreno_session cookie:b; }",
        ),
    ] {
        let (good, output) = Nginx::builder().http(on).http(&http).build().test();
        assert!(good && !output.contains("warn"), "{http}: {output}");
    }
}
