//! Which requests are captured, and with which data, through the directives that an administrator writes.
//!
//! A request is known not to be captured once the status says that no event is pending.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{env, fs};

use chrono::{DateTime, NaiveDateTime, Utc};
use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, Connection, RequestHeaders, WebSocket};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::sensor::{RequestRecord, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_for, wait_until};
use tirreno_tests::written::written_lines;

/// Every request of a user is captured.
const ON: &str = "tirreno on; tirreno_user $cookie_user;";

/// Every request is captured.
const ON_ANONYMOUS: &str = "tirreno on; tirreno_user $cookie_user; tirreno_anonymous on;";

/// The cookie that [`ON`] reads.
const ANN: (&str, &str) = ("Cookie", "user=ann");

/// nginx and the sensor that its target `main` names.
struct Site {
    sensor: Sensor,
    nginx: Nginx,
}

impl Site {
    /// With `http` in `http {}` and `server` in the server at `%PORT%`.
    fn start(http: &str, server: &str) -> Self {
        Self::build(http, |builder| builder.server(server))
    }

    /// As [`Site::start`], with a backend's address as `%BACKEND%`.
    fn before(backend: &Backend, http: &str, server: &str) -> Self {
        Self::build(http, |builder| builder.var("BACKEND", &backend.address()).server(server))
    }

    /// With `http` in `http {}`, and what `more` adds.
    fn build(http: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let sensor = Sensor::start(SensorOptions::default());
        let builder = Nginx::builder()
            .sensor(&sensor.url())
            .http(
                "tirreno_target main { url %SENSOR%; api_key test-key; interval 20ms; }
                 server {
                     listen 127.0.0.1:%PORT9%;
                     tirreno off;
                     location = /status { tirreno_status; }
                 }",
            )
            .http(http);
        let nginx = more(builder).start();
        Self { sensor, nginx }
    }

    fn port(&self) -> u16 {
        self.nginx.port()
    }

    fn get(&self, path: &str, headers: RequestHeaders<'_>) -> client::Response {
        client::get(self.port(), path, headers).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A GET by the user `ann`.
    fn visit(&self, path: &str) -> u16 {
        self.get(path, &[ANN]).status
    }

    /// The `count` events since the last call, and no more.
    fn events(&self, count: usize) -> Vec<Arc<StoredEvent>> {
        self.take(count).0
    }

    /// The one event since the last call.
    fn event(&self) -> Arc<StoredEvent> {
        self.events(1).remove(0)
    }

    /// The one event since the last call, as it was sent.
    fn post(&self) -> RequestRecord {
        self.take(1).1.remove(0)
    }

    fn take(&self, count: usize) -> (Vec<Arc<StoredEvent>>, Vec<RequestRecord>) {
        take(&self.sensor, &self.nginx, count)
    }
}

fn status(nginx: &Nginx) -> serde_json::Value {
    let status = client::get(nginx.port_n(9), "/status", &[]).expect("nginx answers").body;
    serde_json::from_slice(&status).expect("JSON")
}

/// Waits until every target has delivered what was captured for it.
#[track_caller]
fn settle(nginx: &Nginx) {
    wait_for(SOON, "everything to be delivered", || {
        let status = status(nginx);
        let mut targets = status["targets"].as_object().expect("targets").values();
        let done = targets
            .all(|target| target["pending"] == 0 && target["captured"] == target["delivered"]);
        if done { Ok(()) } else { Err(status.to_string()) }
    });
}

/// The `count` events that `sensor` got since the last call, and no more.
#[track_caller]
fn take(
    sensor: &Sensor,
    nginx: &Nginx,
    count: usize,
) -> (Vec<Arc<StoredEvent>>, Vec<RequestRecord>) {
    // A request may be captured a moment after its response: these are waited for.
    let waited = sensor.wait_stored(count, SOON);
    settle(nginx);
    let (events, mut posts) = (sensor.stored(), sensor.requests());
    assert!(sensor.lost().is_empty(), "{:?}", sensor.lost());
    sensor.forget();
    posts.retain(|post| post.path == "/sensor/");
    let lines: Vec<_> = events.iter().map(|event| event.to_line()).collect();
    assert_eq!(events.len(), count, "{lines:#?} {:?}", waited.err());
    assert!(events.iter().all(|event| event.flagged.is_empty()), "{lines:#?}");
    (events, posts)
}

/// Sends `request`, with `Host` and the end of the head added, over a connection of its own.
fn raw(port: u16, request: &str) -> String {
    let request = format!("{request}\r\nHost: localhost\r\n\r\n");
    let answer = client::raw(port, request.as_bytes());
    String::from_utf8_lossy(&answer.unwrap_or_else(|e| panic!("{request:?}: {e}"))).into_owned()
}

/// What `nginx -V` says of the nginx under test.
fn nginx_about() -> String {
    let binary = env::var_os("TEST_NGINX_BINARY").expect("TEST_NGINX_BINARY is set");
    let output = Command::new(binary).arg("-V").output().expect("nginx runs");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_trace_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The clock, in the resolution of an event's time.
fn now() -> NaiveDateTime {
    let millis = DateTime::<Utc>::from(SystemTime::now()).timestamp_millis();
    DateTime::from_timestamp_millis(millis).expect("a date").naive_utc()
}

#[test]
fn every_field_is_what_the_client_sent() {
    let site = Site::start(ON, "location / { return 201; }");
    let headers = [
        ("Cookie", "a=b; user=u1; MMAUTHTOKEN=secret1"),
        ("Authorization", "Bearer secret2"),
        ("User-Agent", "Agent/1.0 (x; y)"),
        ("Referer", "http://example.com/?a=1&b=%20+"),
        ("Accept-Language", "de-DE,de;q=0.9"),
        ("X-Token", "secret3"),
    ];
    let before = now();
    let response =
        client::post(site.port(), "/a/b?c=d&e=%20+", &headers, b"password=secret4").unwrap();
    let after = now();
    assert_eq!(response.status, 201);
    let (events, posts) = site.take(1);
    let event = &events[0];
    assert!(before <= event.event_time && event.event_time <= after);
    let trace_id = event.trace_id.clone().unwrap_or_default();
    assert!(is_trace_id(&trace_id), "{trace_id}");
    let time = event.event_time.format("%F %T%.3f").to_string();
    let expected = [
        ("eventType", "page_view"),
        ("userName", "u1"),
        ("ipAddress", "127.0.0.1"),
        ("httpMethod", "POST"),
        ("url", "/a/b?c=d&e=%20+"),
        ("httpCode", "201"),
        ("eventTime", &*time),
        ("userAgent", "Agent/1.0 (x; y)"),
        ("httpReferer", "http://example.com/?a=1&b=%20+"),
        ("browserLanguage", "de-DE,de;q=0.9"),
        ("X-Request-Id", &*trace_id),
    ];
    assert_eq!(event.fields(), expected.map(|(name, value)| (name, value.to_owned())));

    let post = &posts[0];
    let names: BTreeSet<_> = post.params.keys().map(String::as_str).collect();
    let sent = expected.into_iter().map(|(name, _)| name).filter(|name| *name != "X-Request-Id");
    assert_eq!(names, sent.collect(), "nothing else is sent");
    let all = format!("{:?} {}", post.headers, String::from_utf8_lossy(&post.body));
    let values = post.headers.iter().map(|(_, value)| &**value).chain([&*post.body]);
    for value in values {
        assert!(!value.windows(6).any(|window| window == b"secret"), "{all}");
    }
}

#[test]
fn a_request_without_headers_sends_only_what_it_has() {
    let site = Site::start(ON_ANONYMOUS, "location / { return 204; }");
    assert!(raw(site.port(), "GET / HTTP/1.1").starts_with("HTTP/1.1 204"));
    let post = site.post();
    let names: Vec<_> = post.params.keys().map(String::as_str).collect();
    let expected = ["eventTime", "eventType", "httpCode", "httpMethod", "ipAddress", "url"];
    assert_eq!(names, expected);
}

#[test]
fn the_time_is_the_requests_start_in_utc_whatever_the_time_zone() {
    let backend = Backend::start();
    for zone in ["Asia/Tokyo", "America/St_Johns", "XYZ-5:30"] {
        let site = Site::build(ON, |builder| {
            builder
                .env("TZ", zone)
                .var("BACKEND", &backend.address())
                .server("location / { proxy_pass http://%BACKEND%; }")
        });
        let before = now();
        site.visit("/?delay=200");
        let latest = now() - Duration::from_millis(200);
        let time = site.event().event_time;
        assert!(before <= time && time <= latest, "{zone}: {before} {time} {latest}");
    }
}

#[test]
fn the_trace_id_is_nginxs_request_id() {
    let backend = Backend::start();
    let site = Site::before(
        &backend,
        &format!(
            "{ON}
             log_format ids '$uri $request_id';
             access_log off;"
        ),
        "location / { proxy_pass http://%BACKEND%; }
         location /log { access_log %PREFIX%/logs/ids.log ids; proxy_pass http://%BACKEND%; }
         location /upstream {
             proxy_set_header X-Request-Id $request_id;
             proxy_pass http://%BACKEND%;
         }
         location /response { add_header X-Trace $request_id; return 204; }
         location /all {
             access_log %PREFIX%/logs/ids.log ids;
             add_header X-Trace $request_id;
             proxy_set_header X-Request-Id $request_id;
             proxy_pass http://%BACKEND%;
         }",
    );
    let mut seen = BTreeSet::new();
    for (path, readers) in [("/", 0), ("/log", 1), ("/upstream", 1), ("/response", 1), ("/all", 3)]
    {
        let response = site.get(path, &[ANN]);
        let trace_id = site.event().trace_id.clone().unwrap_or_default();
        assert!(is_trace_id(&trace_id), "{path}: {trace_id}");
        let log = written_lines(&site.nginx.prefix().join("logs/ids.log"));
        let logged = log.lines().find_map(|line| line.strip_prefix(&format!("{path} ")));
        let requests = backend.requests();
        let request = requests.iter().find(|request| request.target == path);
        let backend_saw = request.and_then(|request| request.header("X-Request-Id"));
        let read: Vec<_> = [logged.map(str::to_owned), response.header("X-Trace"), backend_saw]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(read, vec![trace_id.clone(); readers], "{path}");
        assert!(seen.insert(trace_id), "{path}");
    }
}

#[test]
fn trace_ids_are_never_the_same_twice() {
    const ROUND: usize = 40;
    let site = Site::start(ON, "location / { return 204; }");
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        for _ in 0..ROUND {
            site.visit("/");
        }
        let events = site.events(ROUND);
        seen.extend(events.iter().filter_map(|event| event.trace_id.clone()));
        site.nginx.reload();
    }
    assert_eq!(seen.len(), 3 * ROUND);
    assert!(seen.iter().all(|id| is_trace_id(id)), "{seen:?}");
}

#[test]
fn a_clients_own_request_id_does_not_reach_the_sensor() {
    let site = Site::start(ON, "location / { return 204; }");
    for id in ["0123456789abcdef0123456789abcdef", &"f".repeat(37), "x"] {
        site.get("/", &[ANN, ("X-Request-Id", id)]);
        let post = site.post();
        let sent: Vec<_> = post
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("X-Request-Id"))
            .map(|(_, value)| String::from_utf8_lossy(value))
            .collect();
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert!(is_trace_id(&sent[0]) && sent[0] != id, "{sent:?}");
    }
}

#[test]
fn every_method_is_captured() {
    let site = Site::start(ON, "location / { return 200; }");
    let mut connection = Connection::open(local(site.port())).unwrap();
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "BREW"] {
        let response = connection.request(method, "/", &[ANN], b"").unwrap();
        assert_eq!(response.status, 200, "{method}");
        assert_eq!(site.post().param("httpMethod").as_deref(), Some(method));
    }
}

#[test]
fn every_version_of_http_is_captured() {
    let site = Site::build(
        &format!("{ON} access_log off; log_format version '$server_protocol';"),
        |builder| {
            let listen = if nginx_is_before(25) {
                "listen 127.0.0.1:%PORT1% http2;"
            } else {
                "listen 127.0.0.1:%PORT1%; http2 on;"
            };
            let answer = "access_log %PREFIX%/logs/version.log version; location / { return 200; }";
            builder.server(answer).http(&format!("server {{ {listen} {answer} }}"))
        },
    );
    for version in ["1.0", "1.1"] {
        raw(site.port(), &format!("GET /{version} HTTP/{version}\r\nCookie: user=ann"));
        let event = site.event();
        assert_eq!((&*event.url, &*event.user_name), (&*format!("/{version}"), "ann"));
    }
    // A browser sends each cookie as a header of its own, and many requests at once.
    let crumbs = [("cookie", "a=b"), ("cookie", "user=ann"), ("user-agent", "two")];
    let requests: Vec<_> = (0..20)
        .map(|i| match i % 2 {
            0 => client::h2_request("GET", &format!("/2?{i}"), &crumbs, b""),
            _ => client::h2_request("POST", &format!("/2?{i}"), &crumbs, b"body"),
        })
        .collect();
    let responses = client::h2(site.nginx.port_n(1), &requests).unwrap();
    assert!(responses.iter().all(|response| response.status == 200));
    let mut seen = BTreeSet::new();
    for event in site.events(requests.len()) {
        assert_eq!((&*event.user_name, event.user_agent.as_deref()), ("ann", Some("two")));
        let number: usize = event.url.strip_prefix("/2?").unwrap().parse().unwrap();
        let method = if number.is_multiple_of(2) { "GET" } else { "POST" };
        assert_eq!(event.http_method.as_deref(), Some(method));
        seen.insert(number);
    }
    assert_eq!(seen.len(), requests.len());
    let log = fs::read_to_string(site.nginx.prefix().join("logs/version.log")).unwrap();
    let versions: BTreeSet<_> = log.lines().collect();
    assert_eq!(versions, BTreeSet::from(["HTTP/1.0", "HTTP/1.1", "HTTP/2.0"]));
}

#[test]
fn a_kept_alive_connections_requests_are_captured_in_their_order() {
    let site = Site::start(ON, "location / { return 200; }");
    let mut connection = Connection::open(local(site.port())).unwrap();
    let urls: Vec<_> = (0..50).map(|i| format!("/series?{i}")).collect();
    for url in &urls {
        connection.request("GET", url, &[ANN], b"").unwrap();
    }
    let pipelined: Vec<_> = (0..5).map(|i| format!("/pipelined?{i}")).collect();
    let mut stream = TcpStream::connect(local(site.port())).unwrap();
    for url in &pipelined {
        write!(stream, "GET {url} HTTP/1.1\r\nHost: a\r\nCookie: user=ann\r\n\r\n").unwrap();
    }
    let expected: Vec<_> = urls.into_iter().chain(pipelined).collect();
    let events = site.events(expected.len());
    assert_eq!(events.iter().map(|event| event.url.clone()).collect::<Vec<_>>(), expected);
}

/// nginx ends these requests itself.
#[test]
fn requests_that_end_early_are_captured() {
    let backend = Backend::start();
    let site = Site::build(
        &format!(
            "{ON_ANONYMOUS}
             limit_req_zone $binary_remote_addr zone=slow:64k rate=1r/m;
             limit_req_zone $binary_remote_addr zone=slow429:64k rate=1r/m;"
        ),
        |builder| {
            builder
                .var("BACKEND", &backend.address())
                .file("html/page", "page")
                .file("users", "ann:{PLAIN}password\n")
                .server(
                    "root %PREFIX%/html;
                     large_client_header_buffers 2 1k;
                     location /return { return 418; }
                     location /redirect { return 302 /elsewhere; }
                     location /deny { deny all; }
                     location /auth { auth_basic x; auth_basic_user_file %PREFIX%/users; }
                     location /limit { limit_req zone=slow; }
                     location /limit429 { limit_req zone=slow429; limit_req_status 429; }
                     location /drop { return 444; }
                     location /small { client_max_body_size 2; proxy_pass http://%BACKEND%; }
                     location /down { proxy_pass http://127.0.0.1:%PORT8%; }
                     location /internal { internal; }",
                )
                .http("server { listen 127.0.0.1:%PORT1%; client_header_timeout 100ms; }")
        },
    );
    let long = "x".repeat(2000);
    let cookie = "Cookie: user=ann";
    let host = "Host: a";
    // Request line and headers, then the user, status and URL of the event.
    let cases: &[(&[&str], &str, u16, &str)] = &[
        (&["GET /return HTTP/1.1", host, cookie], "ann", 418, "/return"),
        (&["GET /redirect?a HTTP/1.1", host, cookie], "ann", 302, "/redirect?a"),
        (&["GET /deny HTTP/1.1", host, cookie], "ann", 403, "/deny"),
        (&["GET /auth HTTP/1.1", host, cookie], "ann", 401, "/auth"),
        (&["GET /limit HTTP/1.1", host, cookie], "ann", 404, "/limit"),
        (&["GET /limit HTTP/1.1", host, cookie], "ann", 503, "/limit"),
        (&["GET /limit429 HTTP/1.1", host, cookie], "ann", 404, "/limit429"),
        (&["GET /limit429 HTTP/1.1", host, cookie], "ann", 429, "/limit429"),
        (&["GET /drop HTTP/1.1", host, cookie], "ann", 444, "/drop"),
        (&["GET /nowhere HTTP/1.1", host, cookie], "ann", 404, "/nowhere"),
        (&["GET /internal HTTP/1.1", host, cookie], "ann", 404, "/internal"),
        (&["POST /page HTTP/1.1", host, cookie, "Content-Length: 0"], "ann", 405, "/page"),
        (&["POST /small HTTP/1.1", host, cookie, "Content-Length: 9"], "ann", 413, "/small"),
        (&["GET /down HTTP/1.1", host, cookie], "ann", 502, "/down"),
        (&["GET /no-host HTTP/1.1", cookie], "ann", 400, "/no-host"),
        (&["GET /two HTTP/1.1", cookie, host, host], "ann", 400, "/two"),
        (&["GET /big HTTP/1.1", host, cookie, &format!("X: {long}")], "ann", 400, "/big"),
        (&["GET /version HTTP/9.9", host, cookie], "N/A", 505, ""),
        (&[&format!("GET /{long} HTTP/1.1"), host], "N/A", 414, ""),
        (&["GET /a b HTTP/1.1", host], "N/A", 400, ""),
        (&["nonsense"], "N/A", 400, ""),
    ];
    for (lines, user, status, url) in cases {
        let request = format!("{}\r\n\r\n", lines.join("\r\n"));
        client::raw(site.port(), request.as_bytes()).unwrap();
        let event = site.event();
        let found = (&*event.user_name, event.http_code, &*event.url);
        assert_eq!(found, (*user, Some(*status), *url), "{request:.100?}");
        let kind = if *status < 400 { "page_view" } else { "page_error" };
        assert_eq!(event.event_type, kind, "{request:.100?}");
    }
    // The client does not say the rest. If it begins too late, there is no request.
    let captured = || status(&site.nginx)["targets"]["main"]["captured"].as_u64();
    let before = captured();
    let begun = b"GET /slow HTTP/1.1\r\nCookie: user=ann\r\n";
    wait_until(SOON, "a request", || {
        client::raw(site.nginx.port_n(1), begun).unwrap();
        captured() > before
    });
    assert_eq!(site.event().http_code, Some(408));
}

#[test]
fn a_request_whose_client_gives_up_is_captured() {
    let backend = Backend::start();
    let site = Site::before(&backend, ON, "location / { proxy_pass http://%BACKEND%; }");
    let mut stream = TcpStream::connect(local(site.port())).unwrap();
    stream.write_all(b"GET /?delay=2000 HTTP/1.1\r\nHost: a\r\nCookie: user=ann\r\n\r\n").unwrap();
    wait_until(SOON, "the request at the backend", || !backend.requests().is_empty());
    drop(stream);
    // An attempt: Tirreno gets no code, and what the client says about itself does not count.
    let event = site.event();
    let found = (event.http_code, &*event.url, &*event.user_name, &*event.event_type);
    assert_eq!(found, (None, "/?delay=2000", "N/A", "page_view"));
}

#[test]
fn an_internal_redirect_counts_once_with_the_clients_url() {
    let backend = Backend::start();
    let site = Site::build(ON, |builder| {
        builder
            .var("BACKEND", &backend.address())
            .file("html/dir/index.html", "index")
            .file("html/page.html", "page")
            .server(
                "root %PREFIX%/html;
                 error_page 404 /page.html;
                 recursive_error_pages on;
                 location /named { error_page 403 = @named; deny all; }
                 location @named { return 202; }
                 location /chain { error_page 404 = /named; }
                 location /try { try_files $uri $uri.html /page.html; }
                 location /last { rewrite ^ /page.html last; }
                 location /break { rewrite ^ /page.html break; }
                 location /twice { rewrite ^ /last last; }
                 location /accel { proxy_pass http://%BACKEND%; }
                 location /proxied { proxy_pass http://%BACKEND%/changed; }
                 location /inside { internal; alias %PREFIX%/html/page.html; }",
            )
    });
    for (url, status) in [
        ("/dir/", 200),
        ("/missing?a=b", 404),
        ("/named?x", 202),
        ("/chain", 202),
        ("/try?y=%20", 200),
        ("/last", 200),
        ("/break", 200),
        ("/twice", 200),
        ("/accel?header=X-Accel-Redirect:/inside", 200),
        ("/proxied/%61//b/../c", 200),
    ] {
        assert_eq!(site.visit(url), status, "{url}");
        let event = site.event();
        assert_eq!((&*event.url, event.http_code), (url, Some(status)));
    }
}

#[test]
fn subrequests_are_not_captured() {
    let about = nginx_about();
    let mut locations = String::from(
        "location /mirror { mirror /sub; proxy_pass http://%BACKEND%; }
         location /ssi {
             ssi on;
             ssi_types text/plain;
             proxy_pass http://%BACKEND%;
         }",
    );
    let mut urls =
        vec!["/mirror", "/ssi?body=%3C!--%23include+virtual=%22/sub%22--%3E%3C!--%23echo--%3E"];
    if about.contains("http_auth_request_module") {
        locations += "location /auth { auth_request /sub; proxy_pass http://%BACKEND%; }";
        urls.push("/auth");
    }
    if about.contains("http_addition_module") {
        locations += "location /add {
            add_before_body /sub;
            add_after_body /sub;
            addition_types *;
            proxy_pass http://%BACKEND%;
        }";
        urls.push("/add");
    }
    let backend = Backend::start();
    // nginx runs its log phase for these subrequests.
    let site = Site::before(
        &backend,
        &format!("{ON} log_subrequest on;"),
        &format!("{locations} location /sub {{ proxy_pass http://%BACKEND%/subrequest; }}"),
    );
    for url in urls {
        assert_eq!(site.visit(url), 200, "{url}");
        let asked = || backend.requests().iter().any(|request| request.target == "/subrequest");
        wait_until(SOON, &format!("the subrequest of {url}"), asked);
        assert_eq!(site.event().url, url);
    }
}

#[test]
fn a_websocket_is_captured_when_it_opens_and_only_then() {
    let backend = Backend::start();
    let site = Site::before(
        &backend,
        &format!("{ON} access_log off; log_format ids '$uri $status $request_id';"),
        "location / {
             access_log %PREFIX%/logs/ids.log ids;
             proxy_pass http://%BACKEND%;
             proxy_http_version 1.1;
             proxy_set_header Upgrade $http_upgrade;
             proxy_set_header Connection upgrade;
         }",
    );
    let mut socket = WebSocket::open(site.port(), "/ws?a", &[ANN]).unwrap();
    assert_eq!(socket.echo("hello").unwrap(), "hello");
    let event = site.event();
    assert_eq!(
        (&*event.url, &*event.user_name, event.http_code),
        ("/ws?a", "ann", Some(101)),
        "while it is open"
    );
    let log = || written_lines(&site.nginx.prefix().join("logs/ids.log"));
    assert_eq!(log(), "", "nginx has not logged it yet");

    assert_eq!(socket.echo("again").unwrap(), "again");
    drop(socket);
    wait_until(SOON, "nginx to log the request", || !log().is_empty());
    assert_eq!(site.events(0).len(), 0);
    let trace_id = event.trace_id.clone().unwrap_or_default();
    assert_eq!(log(), format!("/ws 101 {trace_id}\n"), "later readers agree");
}

#[test]
fn a_refused_websocket_is_captured_once() {
    let site = Site::start(ON, "location / { return 403; }");
    assert!(WebSocket::open(site.port(), "/ws", &[ANN]).is_err());
    assert_eq!(site.event().http_code, Some(403));
}

#[test]
fn tirreno_is_inherited_and_overridden_at_each_level() {
    let site = Site::build("tirreno_user $cookie_user;", |builder| {
        builder
            .server(
                "tirreno on;
                 location / { return 204; }
                 location /off {
                     tirreno off;
                     return 204;
                     location /off/on { tirreno on; return 204; }
                     location /off/nested { return 204; }
                 }
                 location /if { if ($arg_x) { tirreno off; } return 204; }",
            )
            .http(
                "server {
                     listen 127.0.0.1:%PORT1%;
                     location / { return 204; }
                     location /if-on { if ($arg_x) { tirreno on; } return 204; }
                 }",
            )
    });
    let first = ["/", "/off", "/off/on", "/off/nested", "/if", "/if?x=1"];
    let second = ["/default", "/if-on", "/if-on?x=1"];
    for path in first {
        assert_eq!(site.visit(path), 204);
    }
    for path in second {
        assert_eq!(client::get(site.nginx.port_n(1), path, &[ANN]).unwrap().status, 204);
    }
    let urls: Vec<_> = site.events(4).iter().map(|event| event.url.clone()).collect();
    assert_eq!(urls, ["/", "/off/on", "/if", "/if-on?x=1"]);
}

#[test]
fn tirreno_follows_a_variable() {
    let site = Site::start(
        "map $arg_on $switch { default $arg_on; mapped off; never 0; }
         tirreno $switch;
         tirreno_user $cookie_user;",
        "location / { return 204; }
         location /text { tirreno o$arg_on; return 204; }",
    );
    for (url, on) in [
        ("/", false),
        ("/?on=", false),
        ("/?on=0", false),
        ("/?on=off", false),
        ("/?on=mapped", false),
        ("/?on=never", false),
        ("/?on=on", true),
        ("/?on=1", true),
        ("/?on=00", true),
        ("/?on=no", true),
        ("/text?on=n", true),
        ("/text?on=ff", false),
    ] {
        site.visit(url);
        assert_eq!(site.events(usize::from(on)).len(), usize::from(on), "{url}");
    }
}

/// Three targets, two of them on sensors of their own.
#[test]
fn tirreno_targets_chooses_among_targets() {
    let (a, b) = (Sensor::start(SensorOptions::default()), Sensor::start(SensorOptions::default()));
    let site = Site::build(ON, |builder| {
        builder
            .var("A", &a.url())
            .var("B", &b.url())
            .http(
                "tirreno_target a { url %A%; api_key test-key; interval 20ms; }
                 tirreno_target b { url %B%; api_key test-key; interval 20ms; }
                 tirreno_target spare { type none; }",
            )
            .server(
                "tirreno_targets a;
                 location / { return 204; }
                 location /b { tirreno_targets b; return 204; }
                 location /ab { tirreno_targets a b; return 204; }
                 location /all { tirreno_targets all; return 204; }
                 location /none { tirreno_targets spare; return 204; }
                 location /spare { tirreno_targets spare main; return 204; }",
            )
            .http(
                "server {
                     listen 127.0.0.1:%PORT1%;
                     tirreno_targets b main;
                     location / { return 204; }
                     location /a { tirreno_targets a; return 204; }
                 }",
            )
    });
    for path in ["/", "/b", "/ab", "/all", "/none", "/spare"] {
        site.visit(path);
    }
    for path in ["/second", "/a"] {
        client::get(site.nginx.port_n(1), path, &[ANN]).unwrap();
    }
    let main = ["/all", "/spare", "/second"];
    let first = ["/", "/ab", "/all", "/a"];
    let second = ["/b", "/ab", "/all", "/second"];
    let mut traces = Vec::new();
    for (name, sensor, expected) in
        [("main", &site.sensor, &main[..]), ("a", &a, &first), ("b", &b, &second)]
    {
        let (events, _) = take(sensor, &site.nginx, expected.len());
        let urls: Vec<_> = events.iter().map(|event| &*event.url).collect();
        assert_eq!(urls, expected, "{name}");
        let all = events.iter().find(|event| event.url == "/all");
        traces.extend(all.and_then(|event| event.trace_id.clone()));
    }
    assert_eq!(traces.len(), 3);
    assert!(traces.iter().all(|trace| *trace == traces[0]), "one event, one trace id");
}

#[test]
fn tirreno_targets_is_inherited_from_the_http_level() {
    let other = Sensor::start(SensorOptions::default());
    let site = Site::build(&format!("{ON} tirreno_targets other;"), |builder| {
        builder
            .var("OTHER", &other.url())
            .http("tirreno_target other { url %OTHER%; api_key test-key; interval 20ms; }")
            .server(
                "location / { return 204; }
                 location /main { tirreno_targets main; return 204; }",
            )
    });
    site.visit("/");
    site.visit("/main");
    assert_eq!(site.event().url, "/main");
    assert_eq!(take(&other, &site.nginx, 1).0[0].url, "/");
}

#[test]
fn a_target_gets_the_types_that_it_asks_for() {
    let logins = Sensor::start(SensorOptions::default());
    let site = Site::build(&format!("{ON} tirreno_param eventType $arg_type;"), |builder| {
        builder
            .var("LOGINS", &logins.url())
            .http(
                "tirreno_target logins {
                     url %LOGINS%;
                     api_key test-key;
                     interval 20ms;
                     events account_* !account_logout field_edit;
                 }",
            )
            .server("location / { return 204; }")
    });
    let types = ["page_edit", "account_login", "account_logout", "field_edit", "", "nonsense"];
    for kind in types {
        site.visit(&format!("/?type={kind}"));
    }
    settle(&site.nginx);
    let got = |sensor: &Sensor| -> Vec<String> {
        let mut kinds: Vec<_> = sensor.stored().iter().map(|e| e.event_type.clone()).collect();
        // Higher ranks go first.
        kinds.sort();
        kinds
    };
    assert_eq!(got(&logins), ["account_login", "field_edit"]);
    let all =
        ["account_login", "account_logout", "field_edit", "page_edit", "page_view", "page_view"];
    assert_eq!(got(&site.sensor), all);
}

#[test]
fn the_first_user_that_is_not_empty_wins() {
    let site = Site::build("tirreno on; tirreno_user $arg_a $arg_b;", |builder| {
        builder.file("users", "ann:{PLAIN}password\n").file("html/basic", "").server(
            "root %PREFIX%/html;
             location / { return 204; }
             location /three { tirreno_user $arg_c $arg_a fixed; return 204; }
             location /repeated { tirreno_user $arg_a; tirreno_user $arg_b; return 204; }
             location /text { tirreno_user $arg_a$arg_b ${arg_c}-x; return 204; }
             location /basic {
                 auth_basic x;
                 auth_basic_user_file %PREFIX%/users;
                 tirreno_user $remote_user;
             }",
        )
    });
    for (url, user) in [
        ("/?a=1&b=2", Some("1")),
        ("/?a=&b=2", Some("2")),
        ("/?b=2", Some("2")),
        ("/", None),
        ("/three?a=1&c=3", Some("3")),
        ("/three?a=1&b=2", Some("1")),
        ("/three", Some("fixed")),
        ("/repeated?a=1&b=2", Some("2")),
        ("/repeated?a=1", None),
        ("/text?a=1&b=2&c=3", Some("12")),
        ("/text?c=3", Some("3-x")),
        ("/text", Some("-x")),
    ] {
        site.get(url, &[]);
        let events = site.events(usize::from(user.is_some()));
        assert_eq!(events.first().map(|event| &*event.user_name), user, "{url}");
    }
    let credentials = [("Authorization", "Basic YW5uOnBhc3N3b3Jk")];
    assert_eq!(site.get("/basic", &credentials).status, 200);
    assert_eq!(site.event().user_name, "ann");
}

#[test]
fn tirreno_ip_is_an_address_or_the_peers() {
    let site = Site::start(
        &format!("{ON} tirreno_ip $http_ip;"),
        "location / { return 204; }
         location /fixed { tirreno_ip 192.0.2.9; return 204; }
         location /param { tirreno_param ipAddress $http_ip; return 204; }",
    );
    let long = "1".repeat(500);
    for (value, expected) in [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::1", "::1"),
        ("", "127.0.0.1"),
        ("nonsense", "127.0.0.1"),
        ("203.0.113.7, 10.0.0.1", "127.0.0.1"),
        ("203.0.113.7:80", "127.0.0.1"),
        ("203.0.113.777", "127.0.0.1"),
        ("unix:", "127.0.0.1"),
        (&long, "127.0.0.1"),
    ] {
        for path in ["/", "/param"] {
            site.get(path, &[ANN, ("Ip", value)]);
            assert_eq!(site.event().ip_address, expected, "{path} {value}");
        }
    }
    site.get("/fixed", &[ANN, ("Ip", "203.0.113.7")]);
    assert_eq!(site.event().ip_address, "192.0.2.9");
}

#[test]
fn the_realip_module_gives_the_clients_address() {
    if !nginx_about().contains("http_realip_module") {
        return;
    }
    let site = Site::build(
        &format!("{ON} set_real_ip_from 127.0.0.0/8; set_real_ip_from 2001:db8::/32;"),
        |builder| {
            builder
                .server(
                    "real_ip_header X-Forwarded-For;
                     location / { return 204; }",
                )
                .http(
                    "server {
                         listen 127.0.0.1:%PORT1% proxy_protocol;
                         real_ip_header proxy_protocol;
                         location / { return 204; }
                     }
                     server {
                         listen 127.0.0.1:%PORT2%;
                         real_ip_header X-Forwarded-For;
                         real_ip_recursive on;
                         location / { return 204; }
                     }",
                )
        },
    );
    for (n, forwarded, expected) in [
        (0, "203.0.113.7", "203.0.113.7"),
        (0, "2001:db8::5", "2001:db8::5"),
        (0, "::ffff:203.0.113.7", "203.0.113.7"),
        (0, "10.0.0.1, 203.0.113.7", "203.0.113.7"),
        (0, "nonsense", "127.0.0.1"),
        (2, "10.0.0.1, 2001:db8::5, 127.0.0.9", "10.0.0.1"),
    ] {
        client::get(site.nginx.port_n(n), "/", &[ANN, ("X-Forwarded-For", forwarded)]).unwrap();
        assert_eq!(site.event().ip_address, expected, "{forwarded}");
    }
    raw(
        site.nginx.port_n(1),
        "PROXY TCP6 2001:db9::7 ::1 1000 80\r\nGET / HTTP/1.1\r\nCookie: user=ann",
    );
    assert_eq!(site.event().ip_address, "2001:db9::7");
}

#[test]
fn listeners_of_every_family_are_captured() {
    let site = Site::build(ON, |builder| {
        builder.http(
            "server {
                 listen unix:%PREFIX%/socket;
                 listen [::1]:%PORT1%;
                 listen [::]:%PORT2% ipv6only=off;
                 location / { return 204; }
                 location /ip { tirreno_ip $http_ip; return 204; }
             }",
        )
    });
    fn ask(mut stream: impl Read + Write, path: &str) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
             Cookie: user=ann\r\nIp: 203.0.113.7\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204"));
    }
    let unix = || UnixStream::connect(site.nginx.prefix().join("socket")).unwrap();
    ask(unix(), "/");
    assert_eq!(site.event().ip_address, "0.0.0.0");
    ask(unix(), "/ip");
    assert_eq!(site.event().ip_address, "203.0.113.7");
    ask(TcpStream::connect(("::1", site.nginx.port_n(1))).unwrap(), "/");
    assert_eq!(site.event().ip_address, "::1");
    ask(TcpStream::connect(local(site.nginx.port_n(2))).unwrap(), "/");
    assert_eq!(site.event().ip_address, "127.0.0.1");
}

#[test]
fn tirreno_param_replaces_adds_and_omits() {
    let site = Site::start(
        ON,
        r#"location / { return 204; }
         location /url { tirreno_param url $host$request_uri; return 204; }
         location /captured {
             tirreno_param userName u-$arg_u;
             tirreno_param ipAddress 192.0.2.1;
             tirreno_param userAgent robot;
             tirreno_param eventTime "2024-02-29 01:02:03.004";
             tirreno_param httpReferer "/a?b=%20+c";
             tirreno_param httpMethod PUT;
             tirreno_param httpCode 302;
             tirreno_param browserLanguage eo;
             tirreno_param eventType page_edit;
             return 204;
         }
         location /added {
             tirreno_param emailAddress Ann@Example.com;
             tirreno_param firstName Ann;
             tirreno_param lastName Łuczak;
             tirreno_param fullName "Ann Łuczak";
             tirreno_param pageTitle "a & b";
             tirreno_param phoneNumber +491234567;
             tirreno_param userCreated "2023-01-02 03:04:05";
             tirreno_param eventType page_search;
             tirreno_param payload '{"field_id": "q", "value": "$arg_q"}';
             return 204;
         }
         location /history {
             tirreno_param eventType field_edit;
             tirreno_param fieldHistory '[{"field_id": "f", "new_value": "n"}]';
             return 204;
         }
         location /omitted {
             tirreno_param url "";
             tirreno_param userAgent "";
             tirreno_param httpReferer $arg_none;
             tirreno_param httpMethod "";
             tirreno_param httpCode "";
             tirreno_param browserLanguage "";
             tirreno_param ipAddress "";
             tirreno_param eventTime "";
             tirreno_param firstName "";
             return 204;
         }"#,
    );
    let headers = [
        ANN,
        ("User-Agent", "browser"),
        ("Referer", "/referer"),
        ("Accept-Language", "en"),
        ("Host", "chat.example.com"),
    ];
    let sent = |path: &str, names: &[&str]| -> Vec<Option<String>> {
        assert_eq!(site.get(path, &headers).status, 204);
        let event = site.event();
        let fields = event.fields();
        let field = |name: &&str| fields.iter().find(|(have, _)| have == name);
        names.iter().map(|name| field(name).map(|(_, value)| value.clone())).collect()
    };
    let some = |values: &[&str]| -> Vec<Option<String>> {
        values.iter().map(|value| Some((*value).to_owned())).collect()
    };
    let captured = [
        "userName",
        "ipAddress",
        "url",
        "userAgent",
        "httpReferer",
        "httpMethod",
        "httpCode",
        "browserLanguage",
        "eventType",
    ];

    assert_eq!(sent("/url?a=b", &["url", "userName"]), some(&["chat.example.com/url?a=b", "ann"]));
    let replaced = some(&[
        "u-7",
        "192.0.2.1",
        "/captured?u=7",
        "robot",
        "/a?b=%20+c",
        "PUT",
        "302",
        "eo",
        "page_edit",
        "2024-02-29 01:02:03.004",
    ]);
    assert_eq!(sent("/captured?u=7", &[&captured[..], &["eventTime"]].concat()), replaced);
    let names = [
        "userName",
        "emailAddress",
        "firstName",
        "lastName",
        "fullName",
        "pageTitle",
        "phoneNumber",
        "userCreated",
        "eventType",
        "payload",
    ];
    let added = some(&[
        "ann",
        "ann@example.com",
        "Ann",
        "Łuczak",
        "Ann Łuczak",
        "a & b",
        "+491234567",
        "2023-01-02 03:04:05.000",
        "page_search",
        r#"{"field_id":"q","value":"x","field_name":null}"#,
    ]);
    assert_eq!(sent("/added?q=x", &names), added);
    let history = sent("/history", &["eventType", "fieldHistory"]);
    assert_eq!(history[0].as_deref(), Some("field_edit"));
    assert!(history[1].as_deref().is_some_and(|h| h.contains(r#""new_value":"n""#)), "{history:?}");

    let before = now();
    assert_eq!(site.get("/omitted", &headers).status, 204);
    let (events, posts) = site.take(1);
    let names: Vec<_> = posts[0].params.keys().map(String::as_str).collect();
    // What Tirreno requires is always there.
    assert_eq!(names, ["eventTime", "eventType", "ipAddress", "url", "userName"]);
    assert_eq!((&*events[0].url, &*events[0].ip_address), ("", "127.0.0.1"));
    assert!(before <= events[0].event_time && events[0].event_time <= now());
}

#[test]
fn tirreno_param_is_inherited_all_or_nothing() {
    let site = Site::build(
        &format!("{ON} tirreno_param firstName http; tirreno_param lastName http;"),
        |builder| {
            builder
                .server(
                    "location / { return 204; }
                     location /own {
                         tirreno_param lastName location;
                         return 204;
                         location /own/nested { return 204; }
                     }",
                )
                .http(
                    "server {
                         listen 127.0.0.1:%PORT1%;
                         tirreno_param fullName server;
                         location / { return 204; }
                     }",
                )
        },
    );
    let names = |event: &StoredEvent| {
        let texts = [&event.first_name, &event.last_name, &event.full_name];
        texts.map(|text| text.clone().unwrap_or_default())
    };
    for (port, path, expected) in [
        (site.port(), "/", ["http", "http", ""]),
        (site.port(), "/own", ["", "location", ""]),
        (site.port(), "/own/nested", ["", "location", ""]),
        (site.nginx.port_n(1), "/", ["", "", "server"]),
    ] {
        client::get(port, path, &[ANN]).unwrap();
        assert_eq!(names(&site.event()), expected, "{path}");
    }
}

#[test]
fn event_types_are_what_tirreno_param_says() {
    let site = Site::start(
        &format!("{ON} tirreno_param eventType $arg_type;"),
        "location /ok { return 200; }
         location /failed { return 401; }",
    );
    // The type as stored, and the code as sent.
    for (url, kind, code) in [
        ("/ok?type=account_login", "account_login", Some("200")),
        ("/failed?type=account_login_fail", "account_login_fail", None),
        ("/failed?type=account_login", "page_error", Some("401")),
        ("/ok?type=Account_Login", "page_view", Some("200")),
        ("/ok?type=", "page_view", Some("200")),
    ] {
        site.visit(url);
        let (events, posts) = site.take(1);
        assert_eq!(events[0].event_type, kind, "{url}");
        assert_eq!(posts[0].param("httpCode").as_deref(), code, "{url}");
    }
}

#[test]
fn an_email_address_is_sent_only_with_a_user() {
    let site = Site::start(
        &format!("{ON_ANONYMOUS} tirreno_param emailAddress ann@example.com;"),
        "location / { return 204; }",
    );
    site.get("/", &[]);
    let post = site.post();
    assert_eq!((post.param("userName"), post.param("emailAddress")), (None, None));
    site.visit("/");
    let post = site.post();
    assert_eq!(post.param("emailAddress").as_deref(), Some("ann@example.com"));
}

#[test]
fn requests_without_a_user_are_skipped_unless_anonymous_is_on() {
    let site = Site::start(
        ON,
        "location / { return 204; }
         location /anonymous {
             tirreno_anonymous on;
             return 204;
             location /anonymous/nested { return 204; }
             location /anonymous/off { tirreno_anonymous off; return 204; }
         }
         location /param { tirreno_param userName $arg_u; return 204; }
         location = /status { tirreno off; tirreno_status; }",
    );
    let skipped = || site.nginx.status("/status")["skipped"].clone();
    for path in ["/", "/anonymous/off", "/param"] {
        site.get(path, &[]);
    }
    // An empty parameter omits the user that the request has.
    site.visit("/param");
    assert_eq!(site.events(0).len(), 0);
    assert_eq!(skipped(), serde_json::json!({"anonymous": 4, "event_off": 0, "invalid": 0}));

    for path in ["/anonymous", "/anonymous/nested"] {
        site.get(path, &[]);
        let (events, posts) = site.take(1);
        assert_eq!((&*events[0].url, &*events[0].user_name), (path, "N/A"));
        assert_eq!(posts[0].param("userName"), None);
    }
    site.get("/param?u=x", &[]);
    assert_eq!(site.event().user_name, "x");
    assert_eq!(skipped()["anonymous"], 4);
    let main = site.nginx.status("/status")["targets"]["main"].clone();
    for (name, count) in [("captured", 3), ("delivered", 3), ("rejected", 0), ("dropped", 0)] {
        assert_eq!(main[name], count, "{name}: {main}");
    }
}

#[test]
fn the_location_where_processing_ends_applies() {
    let site = Site::start(
        "tirreno_user $cookie_user; tirreno on; tirreno_param pageTitle begin;",
        "location /to-off { rewrite ^ /off last; }
         location /off { tirreno off; return 204; }
         location /to-on { tirreno off; rewrite ^ /on last; }
         location /on { tirreno_param pageTitle end; return 204; }
         location /refused { error_page 403 = @refused; deny all; }
         location @refused { tirreno_param pageTitle refused; tirreno_user other; return 403; }",
    );
    assert_eq!(site.visit("/to-off"), 204);
    assert_eq!(site.events(0).len(), 0);
    for (path, title, user) in [("/to-on", "end", "ann"), ("/refused", "refused", "other")] {
        site.visit(path);
        let event = site.event();
        assert_eq!((&*event.url, &*event.user_name), (path, user));
        assert_eq!(event.page_title.as_deref(), Some(title), "{path}");
    }
}

#[test]
fn a_request_that_cannot_be_parsed_uses_the_default_server() {
    for (default, other, count) in [("on", "off", 1), ("off", "on", 0)] {
        let site = Site::build("tirreno_anonymous on;", |builder| {
            builder
                .http(&format!(
                    "server {{
                         listen 127.0.0.1:%PORT%;
                         server_name other;
                         tirreno {other};
                         location / {{ return 204; }}
                     }}"
                ))
                .http(&format!(
                    "server {{
                         listen 127.0.0.1:%PORT% default_server;
                         tirreno {default};
                         location / {{ return 204; }}
                     }}"
                ))
        });
        raw(site.port(), "nonsense");
        let events = site.events(count);
        assert!(events.iter().all(|event| event.http_code == Some(400)), "{default}");
        client::get(site.port(), "/", &[("Host", "other")]).unwrap();
        site.events(1 - count);
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
