//! The user of a login: the account that a body names, what the module learns from it, and failed logins
//! that were only the first step of a successful one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, Connection, RequestHeaders};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::sensor::{Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_until};

/// Must not leave the request.
const SECRET: &str = "5ecr3t";

/// How Tirreno shows an event without a user.
const NOBODY: &str = "N/A";

/// Only logins are events. The client sets its address.
const SERVER: &str = "
    tirreno on;
    tirreno_default_event off;
    tirreno_user $cookie_user;
    tirreno_ip $http_x_address;
    tirreno_verify answer;
    tirreno_event account_login POST /login body=rails confirmed=body
        status=2xx user=$upstream_cookie_user user=body:login_id,id anonymous=on;
    tirreno_event account_login_fail POST /login body=rails first_step=$upstream_http_x_step
        status=4xx user=body:login_id,id anonymous=on;
    location / { proxy_pass http://%BACKEND%; }";

/// The application accepts the password and names the user, or refuses it.
const GOOD: &str = "/login?set_cookie=user%3Du1";
const FAILED: &str = "/login?status=401";

/// The application asks for a second factor.
const STEP: &str = "/login?status=401&header=X-Step:mfa";

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];

/// The name for an account whose name cannot be read.
const UNREADABLE: &str = "unknown-unreadable";

/// nginx, the application behind it and the sensor.
struct Site {
    sensor: Sensor,
    backend: Backend,
    nginx: Nginx,
}

impl Site {
    /// With `target` in the target, `server` in the server, and the additions of `more`.
    fn start(target: &str, server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
        let http = format!(
            "access_log off;
             keepalive_requests 100000;
             tirreno_target {{ url %SENSOR%; api_key test-key; interval 20ms; {target} }}
             server {{
                 listen 127.0.0.1:%PORT9%;
                 location = /status {{ tirreno_status; }}
             }}"
        );
        let builder = Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address());
        let nginx = more(builder.http(&http).server(server)).start();
        Self { sensor, backend, nginx }
    }

    /// A site without a second factor.
    fn simple() -> Self {
        Self::start("login_fail_delay 0;", SERVER, |builder| builder)
    }

    /// Posts a form, or JSON if the body looks like it.
    fn post(&self, path: &str, headers: RequestHeaders<'_>, body: &str) -> u16 {
        let is_json = body.starts_with(['{', '[']);
        let form = if is_json { "application/json" } else { "application/x-www-form-urlencoded" };
        let is_given = headers.iter().any(|(name, _)| *name == "Content-Type");
        let more = if is_given { &[][..] } else { &[("Content-Type", form)] };
        let headers = [headers, more].concat();
        let answer = client::post(self.nginx.port(), path, &headers, body.as_bytes());
        answer.unwrap_or_else(|error| panic!("{path}: {error}")).status
    }

    /// The events in the order of capture, once there are `count`.
    #[track_caller]
    fn events(&self, count: usize) -> Vec<Arc<StoredEvent>> {
        self.sensor.wait_stored(count, SOON).unwrap();
        let events = self.sensor.stored();
        assert_eq!(events.len(), count, "{events:#?}");
        self.sensor.forget();
        events
    }

    /// The type and user of the one event.
    #[track_caller]
    fn event(&self) -> (String, String) {
        let event = self.events(1).remove(0);
        (event.event_type.clone(), event.user_name.clone())
    }

    /// Asserts that a failed login with that body has that user.
    #[track_caller]
    fn assert_failed_as(&self, body: &str, user: &str) {
        self.post(FAILED, &[], body);
        assert_eq!(self.event(), ("account_login_fail".to_owned(), user.to_owned()), "{body}");
    }

    fn count(&self, name: &str) -> u64 {
        let answer = client::get(self.nginx.port_n(9), "/status", &[]).expect("nginx answers");
        let status: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        status["targets"]["tirreno"][name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"))
    }

    /// Waits until a counter has that value, and nothing is pending.
    #[track_caller]
    fn wait_count(&self, name: &str, count: u64) {
        wait_until(SOON, &format!("{count} {name}"), || self.count(name) == count);
        let sum = || {
            ["delivered", "rejected", "dropped", "merged", "withdrawn", "pending"]
                .map(|n| self.count(n))
        };
        wait_until(SOON, "the accounts to add up", || {
            self.count("captured") == sum().iter().sum::<u64>()
        });
    }

    /// Asserts that the secret is neither in what the sensor received, nor in nginx's files, nor in the
    /// rings.
    #[track_caller]
    fn assert_no_secret(&self) {
        let is_there =
            |bytes: &[u8]| bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        for post in self.sensor.requests() {
            assert!(!is_there(&post.body), "sent");
            assert!(!post.headers.iter().any(|(_, value)| is_there(value)), "sent");
        }
        assert!(!is_there(&self.nginx.shared_memory()), "in shared memory");
        assert!(!is_there(self.nginx.error_log().as_bytes()), "in the log");
        let status = client::get(self.nginx.port_n(9), "/status", &[]).unwrap();
        assert!(!is_there(&status.body), "in the status");
    }
}

fn is_alias(user: &str) -> bool {
    user.strip_prefix("unknown-").is_some_and(|digits| digits.len() == 16)
}

fn json(name: &str) -> String {
    format!(r#"{{"login_id": "{name}", "password": "{SECRET}"}}"#)
}

#[test]
fn a_failed_login_is_of_the_account_that_the_body_names() {
    let site = Site::simple();
    // The user is not the one in the cookie.
    site.post(FAILED, &[("Cookie", "user=victim")], &json("Ann@example.com"));
    let (kind, unknown) = site.event();
    assert!(kind == "account_login_fail" && is_alias(&unknown), "{unknown}");
    site.assert_failed_as(&json("ann@example.com"), &unknown);
    assert_eq!(site.post(GOOD, &[("Cookie", "user=victim")], &json("ann@example.com")), 200);
    assert_eq!(site.event(), ("account_login".to_owned(), "u1".to_owned()));
    for body in [
        json("ann@example.com"),
        json(" ANN@EXAMPLE.COM "),
        format!("login_id=ann%40example.com&password={SECRET}"),
        format!("password={SECRET}&id=ann%40example.com"),
        format!(r#"{{"password":"{SECRET}","login\u005fid":"ann\u0040example.com"}}"#),
    ] {
        site.assert_failed_as(&body, "u1");
    }
    for body in ["", "{", "[]", "{\"login_id\": 7}", "password=5ecr3t", "{\"login_id\":\"\"}", "\0"]
    {
        site.assert_failed_as(body, UNREADABLE);
    }
    // A successful login of a mobile application, with no cookie in the answer.
    site.post("/login", &[("Cookie", "user=victim")], &json("ann@example.com"));
    assert_eq!(site.event(), ("account_login".to_owned(), "u1".to_owned()));
    site.assert_no_secret();
}

/// Programs send the name that people type: an address of mail, or the name in other letters.
#[test]
fn a_name_in_basic_authentication_is_of_who_signed_in_with_it() {
    let rule = "tirreno_event page_edit PUT \"/dav/{file}\" session=required user=basic;";
    let site = Site::start("", &format!("{rule} {SERVER}"), |builder| builder);
    let put = |name: &str| {
        let basic = STANDARD.encode(format!("{name}:{SECRET}"));
        let headers = [("Authorization", &*format!("Basic {basic}"))];
        let address = SocketAddr::from(([127, 0, 0, 1], site.nginx.port()));
        let mut connection = Connection::open(address).unwrap();
        connection.request("PUT", "/dav/a", &headers, b"").unwrap();
        site.event().1
    };
    assert_eq!(put("ann@example.com"), "ann@example.com");
    site.post(GOOD, &[], &json("ann@example.com"));
    assert_eq!(site.event(), ("account_login".to_owned(), "u1".to_owned()));
    for (name, user) in
        [("ann@example.com", "u1"), ("ANN@example.com", "u1"), ("ann", "ann"), ("bob", "bob")]
    {
        assert_eq!(put(name), user);
    }
    // In other letters it may be another account.
    site.post("/login?set_cookie=user%3Deve", &[], &json("eve"));
    assert_eq!(site.event().1, "eve");
    assert_eq!(put("EVE"), "EVE");
    site.assert_no_secret();
}

#[test]
fn a_password_typed_as_a_name_is_not_sent() {
    let site = Site::start("login_fail_delay 0; spool %PREFIX%/spool;", SERVER, |b| b);
    site.post(FAILED, &[], &json(SECRET));
    assert!(is_alias(&site.event().1));
    site.sensor.refuse();
    site.post(FAILED, &[], &json(SECRET));
    site.wait_count("pending", 1);
    site.assert_no_secret();
    for entry in std::fs::read_dir(site.nginx.prefix().join("spool")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
    }
}

/// nginx discards the body of a request that it refuses itself, even a body that came with the head.
#[test]
fn a_body_that_nginx_refused_is_unread() {
    let server = SERVER.replace(
        "location / {",
        "location /login { deny all; proxy_pass http://%BACKEND%; }
         location / {",
    );
    let site = Site::start("login_fail_delay 0;", &server, |builder| builder);
    assert_eq!(site.post("/login", &[], &json("ann")), 403);
    assert_eq!(site.event().1, "unknown-unread");
    assert_eq!(site.post("/login", &[], ""), 403);
    assert_eq!(site.event().1, UNREADABLE);
}

#[test]
fn a_confirmed_login_is_its_names() {
    let server = "
        tirreno on;
        tirreno_default_event off;
        tirreno_event account_login POST /login body=php status=2xx user=body:name confirmed=body;
        tirreno_event account_login POST /omit body=php user=body:name confirmed=body unknown=omit
            anonymous=on;
        tirreno_event account_edit POST /lost body=php user=body:name confirmed=body;
        tirreno_event account_login_fail POST /login body=php status=4xx user=body:name;
        location / { proxy_pass http://%BACKEND%; }";
    let site = Site::start("login_fail_delay 0;", server, |builder| builder);
    site.post("/lost", &[], "name=ann");
    assert!(is_alias(&site.event().1));
    site.post("/login", &[], "name=ann");
    assert_eq!(site.event().1, "ann");
    site.post("/login?status=401", &[], "name=ann");
    assert_eq!(site.event().1, "ann");
    site.post("/login?status=401", &[], "name=bob");
    assert!(is_alias(&site.event().1));
    site.post("/omit", &[], "name=bob");
    assert_eq!(site.event().1, NOBODY);
}

#[test]
fn what_becomes_of_an_unknown_account_is_the_rules() {
    let server = "
        tirreno on;
        tirreno_default_event off;
        tirreno_event account_login_fail POST /send body=php user=body:name unknown=send;
        tirreno_event account_login_fail POST /hash body=php user=body:name unknown=hash;
        tirreno_event account_login_fail POST /omit body=php user=body:name unknown=omit anonymous=on;
        tirreno_event account_login_fail POST /next body=php user=body:name user=next unknown=omit;
        tirreno_event account_login_fail POST /skip body=php user=body:name unknown=omit;
        location / { proxy_pass http://%BACKEND%; }";
    let site = Site::start("login_fail_delay 0;", server, |builder| builder);
    for (path, user) in [("/send", "b\u{f6}b & co"), ("/omit", NOBODY), ("/next", "next")] {
        site.post(&format!("{path}?status=401"), &[], "name=b%C3%B6b+%26+co&x=y");
        assert_eq!(site.event().1, user, "{path}");
    }
    site.post("/skip?status=401", &[], "name=bob");
    site.post("/hash?status=401", &[], "name=bob");
    assert!(is_alias(&site.event().1));
}

#[test]
fn a_body_may_come_in_any_shape_and_passes_unchanged() {
    let http2 = if nginx_is_before(25) { "http2;" } else { "; http2 on;" };
    let more = |builder: Builder| {
        let server = |listen: &str, text: &str| {
            format!("server {{ listen 127.0.0.1:{listen} {SERVER} {text} }}")
        };
        builder
            // One application with several host names.
            .http("client_max_body_size 2m; tirreno_realm app;")
            .http(&server("%PORT1%;", "proxy_request_buffering off; proxy_http_version 1.1;"))
            .http(&server("%PORT2%;", "client_body_in_file_only clean;"))
            .http(&server("%PORT3%;", "client_body_buffer_size 16;"))
            .http(&server(&format!("%PORT7% {http2}"), ""))
    };
    let site = Site::start("login_fail_delay 0; repeat off;", SERVER, more);
    site.post(GOOD, &[], &json("ann"));
    assert_eq!(site.event().1, "u1");
    let body = format!(r#"{{"pad": "{}", "login_id": "ann"}}"#, "x".repeat(3000));
    let passed = || site.backend.requests().pop().expect("a request").body;
    for port in
        [site.nginx.port(), site.nginx.port_n(1), site.nginx.port_n(2), site.nginx.port_n(3)]
    {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut connection = Connection::open(address).unwrap();
        assert_eq!(connection.request("POST", FAILED, &JSON, body.as_bytes()).unwrap().status, 401);
        assert_eq!(
            (site.event().1, passed()),
            ("u1".to_owned(), body.clone().into_bytes()),
            "{port}"
        );

        // In pieces, with and without a length.
        for chunked in [false, true] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            let framing = match chunked {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {}", body.len()),
            };
            let head = format!(
                "POST {FAILED} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
                 Content-Type: application/json\r\n{framing}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            for piece in body.as_bytes().chunks(700) {
                match chunked {
                    true => {
                        write!(stream, "{:x}\r\n", piece.len()).unwrap();
                        stream.write_all(&[piece, b"\r\n"].concat()).unwrap();
                    }
                    false => stream.write_all(piece).unwrap(),
                }
                // The pause usually separates the pieces; pieces that arrive together are correct, too.
                std::thread::sleep(Duration::from_millis(2));
            }
            if chunked {
                stream.write_all(b"0\r\n\r\n").unwrap();
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            // nginx logs the request once the connection is closed on both sides.
            drop(stream);
            assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
            let got = (site.event().1, passed());
            assert_eq!(got, ("u1".to_owned(), body.clone().into_bytes()), "{port} {chunked}");
        }
    }
    let request = client::h2_request("POST", FAILED, &JSON, body.as_bytes());
    let answers = client::h2(site.nginx.port_n(7), &[request]).unwrap();
    assert_eq!((answers[0].status, site.event().1), (401, "u1".to_owned()));

    // A body over 1 MB is not read, whether its length is known in advance or not.
    let long = format!(r#"{{"login_id": "ann", "pad": "{}"}}"#, "x".repeat(1 << 20));
    site.assert_failed_as(&long, UNREADABLE);
    assert_eq!(passed(), long.as_bytes());
    let head = format!(
        "POST {FAILED} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let chunked = format!("{head}{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    client::raw(site.nginx.port(), chunked.as_bytes()).unwrap();
    assert_eq!((site.event().1, passed()), (UNREADABLE.to_owned(), long.into_bytes()));
    assert!(site.nginx.crashes(&[]).is_empty());
}

#[test]
fn an_error_page_does_not_lose_the_account() {
    let server = "
        tirreno on;
        tirreno_default_event off;
        tirreno_event account_login_fail POST /login body=rails user=body:login_id unknown=send;
        location / {
            proxy_pass http://%BACKEND%;
            proxy_intercept_errors on;
            error_page 401 /sorry;
        }
        location = /sorry { internal; return 200 sorry; }";
    let site = Site::start("login_fail_delay 0;", server, |builder| builder);
    site.post(FAILED, &[], &json("ann"));
    assert_eq!(site.event().1, "ann");
}

#[test]
fn what_one_worker_learns_all_know_over_reloads_and_kills() {
    let site = Site::start("login_fail_delay 0; repeat off;", SERVER, |builder| builder.workers(4));
    site.post(GOOD, &[], &json("ann"));
    assert_eq!(site.event().1, "u1");
    let all_know = || {
        for _ in 0..16 {
            site.assert_failed_as(&json("ann"), "u1");
        }
    };
    all_know();
    site.nginx.reload();
    all_know();
    let killed = site.nginx.workers()[0];
    site.nginx.signal_worker(killed, Signal::KILL);
    site.nginx.wait_gone(killed);
    wait_until(SOON, "four workers", || site.nginx.workers().len() == 4);
    all_know();
}

#[test]
fn a_request_cannot_teach_whose_an_account_is() {
    let server = "
        tirreno on;
        tirreno_default_event off;
        tirreno_event account_login POST /login body=rails status=2xx user=$cookie_user user=body:login_id;
        tirreno_event account_login_fail POST /login body=rails user=body:login_id unknown=send;
        location / { proxy_pass http://%BACKEND%; }";
    let site = Site::start("login_fail_delay 0;", server, |builder| builder);
    site.post("/login", &[("Cookie", "user=victim")], &json("mallory"));
    assert_eq!(site.event().1, "victim");
    site.assert_failed_as(&json("mallory"), "mallory");
}

#[test]
fn a_failure_before_a_successful_login_is_its_first_half() {
    for target in ["", "spool %PREFIX%/spool;"] {
        let mut site = Site::start(target, SERVER, |builder| builder);
        let post = |path: &str, name: &str, address: &str| {
            site.post(path, &[("X-Address", address)], &json(name));
        };
        let (here, there) = ("192.0.2.1", "192.0.2.2");
        post(STEP, "ann", here);
        post(GOOD, "ann", here);
        site.wait_count("withdrawn", 1);
        site.wait_count("delivered", 1);
        // A wrong password is sent at once, and no successful login withdraws it.
        post(FAILED, "ann", here);
        site.wait_count("delivered", 2);
        // A successful login withdraws only the failure directly before it, of the same account from the same
        // address.
        for (name, address) in [("ann", here), ("ann", here), ("bob", here), ("ann", there)] {
            post(STEP, name, address);
        }
        site.wait_count("pending", 4);
        post(GOOD, "ann", here);
        site.wait_count("withdrawn", 2);
        site.wait_count("delivered", 3);
        // A second successful login would need another failure to withdraw.
        post(GOOD, "ann", there);
        post(GOOD, "ann", there);
        site.wait_count("withdrawn", 3);
        site.wait_count("delivered", 5);
        assert_eq!((site.count("pending"), site.count("captured")), (2, 10), "{target}");
        // Failures without a successful login are sent, and at once if nginx stops.
        let kinds = |site: &Site, kind: &str| {
            site.sensor.stored().iter().filter(|event| event.event_type == kind).count()
        };
        assert_eq!((kinds(&site, "account_login"), kinds(&site, "account_login_fail")), (4, 1));
        assert!(site.nginx.quit().unwrap().success());
        let sent = if target.is_empty() { 3 } else { 1 };
        assert_eq!(kinds(&site, "account_login_fail"), sent, "{target}");
    }
}

#[test]
fn only_the_accounts_own_user_withdraws_its_failure() {
    let site = Site::start("", SERVER, |builder| builder);
    let post = |path: &str, name: &str| {
        site.post(path, &[("X-Address", "192.0.2.1")], &json(name));
    };
    let user = |path: &str| {
        post(path, "ann");
        site.event().1
    };
    assert_eq!(user(GOOD), "u1");
    post(STEP, "ann");
    // Logins whose answer names no user, or another user than before, withdraw nothing.
    assert_eq!(user("/login"), "u1");
    assert_eq!(user("/login?set_cookie=user%3Dmallory"), "mallory");
    site.wait_count("delivered", 3);
    assert_eq!((site.count("withdrawn"), site.count("pending")), (0, 1));
    // The account's user is in doubt until a login's answer names it again.
    assert!(is_alias(&user("/login")));
    assert_eq!(user(GOOD), "u1");
    assert!(is_alias(&user("/login")));
    assert_eq!(user(GOOD), "u1");
    assert_eq!(user("/login"), "u1");
    site.wait_count("pending", 0);
    assert_eq!(site.count("withdrawn"), 1);
}

#[test]
fn what_applications_read_in_different_ways_is_nobodys() {
    let site = Site::simple();
    site.post(GOOD, &[], &json("victim"));
    assert_eq!(site.event().1, "u1");
    for body in [
        r#"{"login_id":"victim","login_id":"me"}"#,
        r#"{"login_id":"victim","LOGIN_ID":"me"}"#,
        r#"{"login_id":"victim","\ud800":"","login_id":"me"}"#,
        "login_id=victim&+login_id=me",
    ] {
        site.post("/login", &[], body);
        assert_eq!(site.event(), ("account_login".to_owned(), NOBODY.to_owned()), "{body}");
    }
    site.post(FAILED, &[("Content-Type", "application/x-www-form-urlencoded")], &json("victim"));
    assert_eq!(site.event().1, UNREADABLE);
    // The presets' applications ignore this header.
    site.post(FAILED, &[("Content-Encoding", "gzip")], &json("victim"));
    assert_eq!(site.event().1, "u1");
    let part =
        format!("--x\r\nContent-Disposition: form-data; name=\"p\"\r\n\r\na&login_id={SECRET}&");
    let multipart = [("Content-Type", "multipart/form-data; boundary=x")];
    client::post(site.nginx.port(), FAILED, &multipart, part.as_bytes()).unwrap();
    assert_eq!(site.event().1, UNREADABLE);
    site.assert_no_secret();
}

#[test]
fn failures_that_wait_leave_room_for_other_events() {
    let site = Site::start("queue 400; repeat off;", SERVER, |builder| builder);
    for n in 0..300 {
        site.post(STEP, &[], &json(&format!("u{n}")));
    }
    // Waiting failures may take a quarter of the queue; the others were sent.
    site.wait_count("delivered", 200);
    site.post(GOOD, &[], &json("ann"));
    site.wait_count("delivered", 201);
    assert_eq!((site.count("pending"), site.count("dropped")), (100, 0));
}

#[test]
fn failures_that_have_waited_do_not_wait_for_a_backlog() {
    const VIEWS: usize = 4000;
    let server = format!("{SERVER} tirreno_event page_view GET /view anonymous=on;");
    let site = Site::start("login_fail_delay 100ms; spool %PREFIX%/spool;", &server, |b| b);
    site.sensor.refuse();
    for _ in 0..3 {
        site.post(STEP, &[], &json("ann"));
    }
    let address = SocketAddr::from(([127, 0, 0, 1], site.nginx.port()));
    let mut connection = Connection::open(address).unwrap();
    for _ in 0..VIEWS {
        assert_eq!(connection.request("GET", "/view", &[], b"").unwrap().status, 200);
    }
    site.wait_count("pending", VIEWS as u64 + 3);
    site.sensor.listen_again();
    site.wait_count("delivered", VIEWS as u64 + 3);
    let events = site.sensor.stored();
    let last = events.iter().rposition(|event| event.event_type == "account_login_fail");
    assert!(last.unwrap() < VIEWS - 500, "{last:?}");
}

#[test]
fn a_failure_that_nothing_follows_is_sent_after_the_delay() {
    for target in ["", "spool %PREFIX%/spool;"] {
        // Long enough for two requests on a busy machine.
        let delay = "login_fail_delay 3s;";
        let site = Site::start(&format!("{delay} {target}"), SERVER, |builder| builder);
        site.post(STEP, &[("X-Address", "192.0.2.1")], &json("ann"));
        site.post("/login?status=400", &[("X-Address", "192.0.2.1")], &json("ann"));
        site.sensor.wait_stored(2, SOON).unwrap();
        let codes: Vec<_> = site.sensor.stored().iter().map(|e| e.url.clone()).collect();
        assert_eq!(codes, ["/login?status=400", STEP], "{target}");
        // The successful login comes too late.
        site.post(GOOD, &[("X-Address", "192.0.2.1")], &json("ann"));
        site.wait_count("delivered", 3);
        assert_eq!(site.count("withdrawn"), 0);
    }
}

#[test]
fn what_is_no_field_is_refused() {
    let says = |keys: &str| {
        let server =
            format!("tirreno on; tirreno_event account_login POST /login body=json {keys};");
        let builder = Nginx::builder()
            .http("tirreno_target { url http://127.0.0.1:1/sensor/; api_key k; }")
            .server(&server);
        builder.build().test()
    };
    for name in
        ["password", "user[password]", "login_id,Passwd", "new_password", "pwd", "otp", "token"]
    {
        let (passed, output) = says(&format!("user=body:{name}"));
        assert!(!passed && output.contains("is a secret, and no user in "), "{name}: {output}");
    }
    for (keys, message) in [
        ("user=body:", "a field's name is missing"),
        ("user=body:a,", "a field's name is missing"),
        ("user=body:a unknown=x", "it must be \"hash\", \"send\" or \"omit\""),
        ("user=$cookie_a unknown=hash", "\"unknown=\" needs \"user=body:FIELD\""),
    ] {
        let (passed, output) = says(keys);
        assert!(!passed && output.contains(message), "{keys}: {output}");
    }
    assert!(says("user=body:login_id,id unknown=omit").0);
}
