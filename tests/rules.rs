//! Which event a request is, when its user is believed, and which parts of it are hidden, through the
//! directives that an administrator writes.
//!
//! A request is known not to be captured once the status says that no event is pending. Requests are
//! numbered, because users and ranks take turns in delivery.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, RequestHeaders, WebSocket, percent_encode};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::sensor::{RequestRecord, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_for, wait_until};

/// The number of the last request, which is its `User-Agent`.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Every request is captured.
const ON: &str = "tirreno on; tirreno_user $cookie_user; tirreno_anonymous on;";

/// The cookie that [`ON`] reads.
const ANN: (&str, &str) = ("Cookie", "user=ann");

/// A text that no sensor may get. It needs no encoding, so it can be searched for in sent data.
const SECRET: &str = "5ecr3t";

/// How Tirreno shows an event without a user.
const NOBODY: &str = "N/A";

/// nginx, the application behind it and the sensor.
struct Site {
    sensor: Sensor,
    backend: Backend,
    nginx: Nginx,
}

impl Site {
    /// With `http` in `http {}` and `server` in the server at `%PORT%`.
    fn start(http: &str, server: &str) -> Self {
        Self::build(http, |builder| builder.server(server))
    }

    /// With `http` in `http {}`, and what `more` adds. `%BACKEND%` is the application's address.
    fn build(http: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let sensor = Sensor::start(SensorOptions::default());
        let backend = Backend::start();
        let builder = Nginx::builder()
            .sensor(&sensor.url())
            .var("BACKEND", &backend.address())
            .http(
                "access_log off;
                 tirreno_target main { url %SENSOR%; api_key test-key; interval 20ms; }
                 server {
                     listen 127.0.0.1:%PORT9%;
                     tirreno off;
                     location = /status { tirreno_status; }
                 }",
            )
            .http(http);
        let nginx = more(builder).start();
        Self { sensor, backend, nginx }
    }

    fn port(&self) -> u16 {
        self.nginx.port()
    }

    fn get(&self, path: &str, headers: RequestHeaders<'_>) -> client::Response {
        let number = next_number();
        let headers = [headers, &[("User-Agent", &*number)]].concat();
        client::get(self.port(), path, &headers).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Sends a request by the user `ann`, its target as it is, and returns the status.
    fn send(&self, method: &str, target: &str) -> u16 {
        send(self.port(), method, target)
    }

    fn status(&self) -> serde_json::Value {
        let response = client::get(self.nginx.port_n(9), "/status", &[]).expect("nginx answers");
        serde_json::from_slice(&response.body).expect("JSON")
    }

    /// How many requests were skipped for a reason.
    fn skipped(&self, reason: &str) -> u64 {
        self.status()["skipped"][reason].as_u64().expect("a count")
    }

    /// The events since the last call and their POSTs, in the order of their numbers; without numbers, in
    /// the order of arrival.
    #[track_caller]
    fn take(&self) -> (Vec<Arc<StoredEvent>>, Vec<RequestRecord>) {
        wait_for(SOON, "everything to be delivered", || {
            let status = self.status();
            let target = &status["targets"]["main"];
            let count = |name: &str| target[name].as_u64().expect("a count");
            let told = count("delivered") + count("merged");
            if count("pending") == 0 && count("captured") == told {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
        let (mut events, mut posts) = (self.sensor.stored(), self.sensor.requests());
        assert!(self.sensor.lost().is_empty(), "{:?}", self.sensor.lost());
        self.sensor.forget();
        posts.retain(|post| post.path == "/sensor/");
        assert_eq!(events.len(), posts.len());
        events.sort_by_key(|event| number_of(event.user_agent.as_deref()));
        posts.sort_by_key(|post| number_of(post.param("userAgent").as_deref()));
        (events, posts)
    }

    fn events(&self) -> Vec<Arc<StoredEvent>> {
        self.take().0
    }

    /// The one event since the last call.
    #[track_caller]
    fn event(&self) -> Arc<StoredEvent> {
        let mut events = self.events();
        assert_eq!(events.len(), 1, "{events:#?}");
        events.remove(0)
    }

    /// Sends each row's method and target by the user `ann`; the rest is the event's type, empty for
    /// none.
    #[track_caller]
    fn assert_types(&self, rows: &[(&str, &str, &str)]) {
        for (method, target, _) in rows {
            self.send(method, target);
        }
        self.assert_sent_types(rows);
    }

    /// Asserts that the events since the last call are those of `rows`.
    #[track_caller]
    fn assert_sent_types(&self, rows: &[(&str, &str, &str)]) {
        // Compared as sent, because Tirreno changes some methods and types.
        let names = ["httpMethod", "url", "eventType"];
        let sent = |post: &RequestRecord| names.map(|name| post.param(name).unwrap_or_default());
        let got: Vec<(String, String, String)> =
            self.take().1.iter().map(|post| sent(post).into()).collect();
        let wanted: Vec<_> = rows
            .iter()
            .filter(|(.., kind)| !kind.is_empty())
            .map(|(method, url, kind)| (method.to_string(), shown(url), kind.to_string()))
            .collect();
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_eq!(got, wanted);
        }
        assert_eq!(got, wanted);
    }

    /// GETs each row's path by the user `ann`; the rest is the event's user, empty for no event.
    #[track_caller]
    fn assert_users(&self, rows: &[(&str, u16, &str)]) {
        for (path, status, _) in rows {
            assert_eq!(self.send("GET", path), *status, "{path}");
        }
        let events = self.events();
        let got: Vec<_> = events.iter().map(|e| (&*e.url, &*e.user_name)).collect();
        let wanted = rows.iter().filter(|(.., user)| !user.is_empty());
        let wanted: Vec<_> = wanted.map(|(path, _, user)| (shown(path), *user)).collect();
        let wanted: Vec<_> = wanted.iter().map(|(path, user)| (&**path, *user)).collect();
        assert_eq!(got, wanted);
    }

    /// The lines of a log in nginx's directory, when there are `count` of them.
    #[track_caller]
    fn log(&self, name: &str, count: usize) -> Vec<String> {
        let path = self.nginx.prefix().join("logs").join(name);
        wait_for(SOON, &format!("{count} lines in {name}"), || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() == count { Ok(lines) } else { Err(text) }
        })
    }
}

/// Sends a request by the user `ann`, its target as it is, and returns the status.
fn send(port: u16, method: &str, target: &str) -> u16 {
    let number = next_number();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nCookie: user=ann\r\n\
         User-Agent: {number}\r\nContent-Length: 0\r\n\r\n"
    );
    status_of(&client::raw(port, request.as_bytes()).unwrap_or_else(|e| panic!("{target}: {e}")))
}

/// The target as events show it: `set_cookie`, which instructs the backend, has a secret's name.
fn shown(target: &str) -> String {
    let hidden = |part: &str| match part.split_once("set_cookie=") {
        Some((before, _)) => format!("{before}set_cookie=***"),
        None => part.to_owned(),
    };
    target.split('&').map(hidden).collect::<Vec<_>>().join("&")
}

fn next_number() -> String {
    (LAST.fetch_add(1, Ordering::Relaxed) + 1).to_string()
}

fn number_of(agent: Option<&str>) -> u64 {
    agent.and_then(|agent| agent.parse().ok()).unwrap_or(u64::MAX)
}

fn status_of(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no answer: {text:?}"))
}

/// The number of the port of [`http2_server`].
const HTTP2: usize = 7;

/// A server that speaks HTTP/2, with `text` inside.
fn http2_server(text: &str) -> String {
    let listen = if nginx_is_before(25) {
        "listen 127.0.0.1:%PORT7% http2;"
    } else {
        "listen 127.0.0.1:%PORT7%; http2 on;"
    };
    format!("server {{ {listen} {text} }}")
}

/// Asserts that the secret was not sent, not even in headers.
#[track_caller]
fn assert_no_secret(posts: &[RequestRecord]) {
    let holds = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
    for post in posts {
        let values = post.headers.iter().map(|(_, value)| &**value);
        let all = [post.path.as_bytes(), &post.body].into_iter().chain(values);
        for bytes in all {
            assert!(!holds(bytes), "{}", String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn the_first_rule_whose_method_and_path_match_decides() {
    let site = Site::start(
        ON,
        r#"location / { return 204; }
           tirreno_event page_search * /any;
           tirreno_event account_login POST /login;
           tirreno_event page_edit POST,PUT "/posts/{id}";
           tirreno_event page_delete DELETE "/posts/{id}";
           tirreno_event account_edit * "/files/{*rest}";
           tirreno_event account_logout * "/order/{id}";
           tirreno_event page_error * "/order/me";
           tirreno_event account_registration * "/exact/me";
           tirreno_event field_edit * "/exact/{id}";
           tirreno_event account_email_change GET "/by/{method}";
           tirreno_event account_password_change * "/by/{method}";
           tirreno_event account_login_fail * "/a/{b}/c/{d}/{*e}";
           tirreno_event off * "/health/{*rest}";
           tirreno_event page_edit * /;"#,
    );
    site.assert_types(&[
        ("GET", "/any", "page_search"),
        ("BREW", "/any", "page_search"),
        ("HEAD", "/any?a=/login", "page_search"),
        ("POST", "/login", "account_login"),
        ("POST", "/login?next=/any", "account_login"),
        ("GET", "/login", "page_view"),
        ("POST", "/LOGIN", "page_view"),
        ("POST", "/login/x", "page_view"),
        ("POST", "/loginx", "page_view"),
        ("POST", "/posts/1", "page_edit"),
        ("PUT", "/posts/1", "page_edit"),
        ("DELETE", "/posts/1", "page_delete"),
        ("PATCH", "/posts/1", "page_view"),
        ("PUT", "/posts", "page_view"),
        ("PUT", "/posts/", "page_view"),
        ("PUT", "/posts/1/2", "page_view"),
        ("GET", "/files/a", "account_edit"),
        ("GET", "/files/a/b/c.txt", "account_edit"),
        ("GET", "/files", "page_view"),
        ("GET", "/files/", "page_view"),
        ("GET", "/order/me", "account_logout"),
        ("GET", "/exact/me", "account_registration"),
        ("GET", "/exact/you", "field_edit"),
        ("GET", "/by/x", "account_email_change"),
        ("PUT", "/by/x", "account_password_change"),
        ("GET", "/a/1/c/2/3/4", "account_login_fail"),
        ("GET", "/a/1/x/2/3/4", "page_view"),
        ("GET", "/health/live", ""),
        ("GET", "/", "page_edit"),
        ("GET", "/?a", "page_edit"),
        ("GET", "/unknown", "page_view"),
    ]);
    assert_eq!((site.skipped("event_off"), site.skipped("anonymous")), (1, 0));
}

#[test]
fn inner_rules_come_before_outer_ones_until_none_cuts_them_off() {
    let site = Site::start(
        &format!(
            r#"{ON}
               tirreno_event account_edit * "/h/{{*rest}}";
               tirreno_event page_search * /in/h;"#
        ),
        r#"tirreno_event field_edit * "/h/server";
           tirreno_event page_edit * "/in/{x}";
           tirreno_event page_edit * "/cut/{x}";
           location / { return 204; }
           location /in/ {
               tirreno_event page_delete * "/in/{y}";
               return 204;
           }
           location /in/a {
               tirreno_event page_delete * "/{a}/{b}";
               return 204;
               location /in/a/b {
                   tirreno_event page_error * "/in/a/b";
                   return 204;
               }
           }
           location /cut/ {
               tirreno_event account_registration * /cut/a;
               tirreno_event none;
               return 204;
               location /cut/deep {
                   tirreno_event account_logout * /cut/deeper;
                   return 204;
               }
           }
           location /cut/all { tirreno_event none; return 204; }
           location /if {
               tirreno_event account_login * /if;
               if ($arg_off) { tirreno off; }
               if ($arg_on) { return 204; }
               return 204;
           }
           location /limited {
               tirreno_event account_login * /limited;
               limit_except GET { deny all; }
               proxy_pass http://%BACKEND%;
           }"#,
    );
    site.assert_types(&[
        ("GET", "/h/x", "account_edit"),
        ("GET", "/h/server", "field_edit"),
        ("GET", "/in/x", "page_delete"),
        ("GET", "/in/h", "page_delete"),
        ("GET", "/in/a", "page_delete"),
        ("GET", "/in/a/b", "page_error"),
        ("GET", "/in/a/b/c", "page_view"),
        ("GET", "/cut/a", "account_registration"),
        ("GET", "/cut/b", "page_view"),
        ("GET", "/cut/deeper", "account_logout"),
        ("GET", "/cut/deepest", "page_view"),
        ("GET", "/cut/all", "page_view"),
        ("GET", "/if", "account_login"),
        ("GET", "/if?on=1", "account_login"),
        ("GET", "/if?off=1", ""),
        ("GET", "/limited", "account_login"),
        ("POST", "/limited", "account_login"),
    ]);
}

#[test]
fn a_request_that_no_rule_matches_is_the_default_event() {
    let site = Site::start(
        "tirreno on; tirreno_user $cookie_user; tirreno_default_event off;",
        r#"tirreno_event account_login POST /off/login;
           tirreno_event off * "/page/static/{*rest}";
           tirreno_event account_logout * /page/out anonymous=on;
           location / { return 204; }
           location /page/ { tirreno_default_event page_view; return 204; }
           location /error { tirreno_default_event page_error; return 204; }
           location /twice {
               tirreno_default_event off;
               tirreno_default_event field_edit;
               return 204;
               location /twice/inner { return 204; }
               location /twice/off {
                   tirreno_default_event page_view;
                   tirreno_default_event off;
                   return 204;
               }
           }"#,
    );
    site.assert_types(&[
        ("GET", "/", ""),
        ("GET", "/off/login", ""),
        ("POST", "/off/login", "account_login"),
        ("GET", "/page/1", "page_view"),
        ("GET", "/page/static/a.js", ""),
        ("GET", "/error", "page_error"),
        ("GET", "/twice", "field_edit"),
        ("GET", "/twice/inner", "field_edit"),
        ("GET", "/twice/off", ""),
    ]);
    assert_eq!((site.skipped("event_off"), site.skipped("anonymous")), (4, 0));

    for path in ["/page/1", "/page/static/a.js", "/", "/page/out"] {
        site.get(path, &[]);
    }
    let event = site.event();
    assert_eq!((&*event.url, &*event.user_name), ("/page/out", NOBODY));
    assert_eq!((site.skipped("event_off"), site.skipped("anonymous")), (6, 1));
}

#[test]
fn no_spelling_of_a_path_slips_past_a_rule() {
    const LOGIN: &str = "account_login";
    let rule = "tirreno_event account_login POST /api/v4/users/login;
                tirreno_event page_delete * /other;";
    let site = Site::build(ON, |builder| {
        builder
            .server(&format!("{rule} location / {{ proxy_pass http://%BACKEND%; }}"))
            .http(&http2_server(&format!("{rule} location / {{ return 204; }}")))
            .http(&format!(
                "server {{
                     listen 127.0.0.1:%PORT1%;
                     merge_slashes off;
                     {rule}
                     location / {{ return 204; }}
                 }}"
            ))
    });
    let logins = [
        "/api/v4/users/login",
        "/api/v4/users/login/",
        "/api/v4/users/login//",
        "/api/v4/users/login?a=b",
        "/api/v4/users/login/?a=b",
        "/api/v4/users/login#a",
        "/api/v4/../v4/users/login",
        "/x/../api/v4/users/login",
        "/api/./v4/users/login",
        "/api/v4/users/login/.",
        "/api/v4/users/login/x/..",
        "/api/v4/users/x/../login",
        "//api//v4///users/login",
        "/api/v4/users/%6cogin",
        "/api/v4/users/%6Cogin",
        "/%61%70%69/v4/users/login",
        "/api%2fv4%2Fusers/login",
        "/api/v4/%2e%2e/v4/users/login",
        "/api/v4/%2E./v4/users/login",
        "/api/%2e/v4/users/login",
        "/api/v4/users/login%2f",
        "/api/v4/x%2f..%2fusers/login",
        "/api/v4/users/login%2F%2e",
    ];
    let others = [
        "/api/v4/users/login%20",
        "/api/v4/users/%256cogin",
        "/api/v4/users/login;a=b",
        "/api/v4/users/login%3fa",
        "/api/v4/users/login%23a",
        "/api/v4/users/Login",
        "/api/v4/users/login/x",
        "/api/v4/users",
        "/login",
        "/?/api/v4/users/login",
    ];
    let rows: Vec<_> = logins
        .iter()
        .map(|target| ("POST", *target, LOGIN))
        .chain(others.iter().map(|target| ("POST", *target, "page_view")))
        .collect();
    site.assert_types(&rows);

    // Without `merge_slashes`, rules still ignore repeated slashes, as the application may.
    for target in ["/api//v4/users/login", "//api/v4/users/login"] {
        send(site.nginx.port_n(1), "POST", target);
        assert_eq!(site.event().event_type, LOGIN, "{target}");
    }

    // A request line may contain a whole URL.
    for target in
        ["http://localhost/api/v4/users/login", "http://h:1/x/../api/v4/users/%6cogin/?a=/"]
    {
        site.send("POST", target);
        assert_eq!(site.event().event_type, LOGIN, "{target}");
    }

    let targets = logins.iter().filter(|target| !target.contains('#'));
    let requests: Vec<_> =
        targets.map(|target| client::h2_request("POST", target, &[ANN], b"")).collect();
    let count = requests.len();
    client::h2(site.nginx.port_n(HTTP2), &requests).expect("HTTP/2");
    wait_until(SOON, "the events", || site.sensor.stored_count() == count);
    let events = site.events();
    assert_eq!(events.len(), count);
    for event in events {
        assert_eq!(event.event_type, LOGIN, "{}", event.url);
    }
}

#[test]
fn rules_match_what_the_client_asked_for_whatever_it_was_rewritten_to() {
    let site = Site::build(ON, |builder| {
        builder.file("html/page.html", "a page").server(
            r#"root %PREFIX%/html;
               tirreno_event account_login * "/login/{*how}";
               tirreno_event page_error * "/to/{*rest}";
               tirreno_event page_delete * /page.html;
               location / { return 204; }
               location /to/ { return 204; }
               location = /login/last { rewrite ^ /to/last last; }
               location = /login/break { rewrite ^ /page.html break; }
               location = /login/try { try_files /none /to/try; }
               location = /login/file { try_files /page.html =404; }
               location = /login/named { try_files /none @named; }
               location @named { return 204; }
               location = /login/error { error_page 403 /page.html; deny all; }
               location = /login/error-named { error_page 403 = @named; deny all; }
               location = /login/backend { proxy_pass http://%BACKEND%/to/backend; }
               location = /login/accel { proxy_pass http://%BACKEND%; }
               location = /login/intercepted {
                   proxy_intercept_errors on;
                   error_page 404 =200 /to/intercepted;
                   proxy_pass http://%BACKEND%;
               }
               location /to/internal { internal; return 204; }"#,
        )
    });
    let rows = [
        ("GET", "/to/x", "page_error"),
        ("GET", "/page.html", "page_delete"),
        ("GET", "/login/last", "account_login"),
        ("GET", "/login/break", "account_login"),
        ("GET", "/login/try", "account_login"),
        ("GET", "/login/file", "account_login"),
        ("GET", "/login/named", "account_login"),
        ("GET", "/login/error", "account_login"),
        ("GET", "/login/error-named", "account_login"),
        ("GET", "/login/backend", "account_login"),
        ("GET", "/login/accel?header=X-Accel-Redirect:/to/internal", "account_login"),
        ("GET", "/login/intercepted?status=404", "account_login"),
        ("GET", "/to/internal", "page_error"),
    ];
    site.assert_types(&rows);
    assert!(site.backend.requests().iter().any(|request| request.target == "/to/backend"));
}

/// On an internal redirect, nginx changes the method to GET; the client's method stays the same for rules.
#[test]
fn rules_match_the_method_of_the_client_after_an_internal_redirect() {
    let site = Site::start(
        ON,
        r#"tirreno_event account_login_fail POST /login status=401;
           tirreno_event account_edit PUT /accel;
           location = /login {
               proxy_intercept_errors on;
               error_page 401 /login.html;
               proxy_pass http://%BACKEND%;
           }
           location = /login.html { internal; empty_gif; }
           location = /accel { proxy_pass http://%BACKEND%; }
           location = /internal { internal; empty_gif; }"#,
    );
    assert_eq!(site.send("POST", "/login?status=401"), 401);
    assert_eq!(site.send("PUT", "/accel?header=X-Accel-Redirect:/internal"), 200);
    site.assert_sent_types(&[
        ("POST", "/login?status=401", "account_login_fail"),
        ("PUT", "/accel?header=X-Accel-Redirect:/internal", "account_edit"),
    ]);
}

#[test]
fn a_prefix_stands_before_the_rules_paths() {
    let site = Site::start(
        ON,
        r#"tirreno_event account_login POST /login;
           tirreno_event page_search * /;
           tirreno_event account_edit * "/u/{*rest}";
           tirreno_event_prefix /chat/;
           location / { return 204; }
           location /sub/ { tirreno_event_prefix /sub/path; return 204; }
           location /none/ { tirreno_event_prefix /; return 204; }"#,
    );
    site.assert_types(&[
        ("POST", "/chat/login", "account_login"),
        ("POST", "/x/../chat//%6cogin/", "account_login"),
        ("POST", "/%63hat/login", "account_login"),
        ("GET", "/chat/", "page_search"),
        ("GET", "/chat", "page_search"),
        ("GET", "/chat/u/a/b", "account_edit"),
        ("POST", "/chatx/login", "page_view"),
        ("POST", "/chatx", "page_view"),
        ("POST", "/login", "page_view"),
        ("POST", "/chat/chat/login", "page_view"),
        ("POST", "/chat/../login", "page_view"),
        ("POST", "/sub/path/login", "account_login"),
        ("POST", "/sub/login", "page_view"),
        ("POST", "/none/login", "page_view"),
    ]);
}

#[test]
fn a_rule_can_be_for_some_responses_only() {
    let site = Site::start(
        &format!("{ON} tirreno_default_event off; map $arg_x $flag {{ default $arg_x; }}"),
        r#"proxy_hide_header X-Hidden;
           proxy_hide_header Set-Cookie;
           tirreno_event page_view * /one status=401;
           tirreno_event page_view * /class status=2xx;
           tirreno_event page_view * /range status=4xx-5xx;
           tirreno_event page_view * /list status=200,301-303,5xx;
           tirreno_event page_view * /cookie status=set_cookie:SID;
           tirreno_event page_view * /header status=header:X-Hidden;
           tirreno_event page_view * /shown status=header:x-shown;
           tirreno_event page_view * /mixed status=500,set_cookie:SID;
           tirreno_event page_view * /if if=$flag;
           tirreno_event page_view * /both status=200 if=$arg_x$arg_y;
           tirreno_event page_view * /response if=$upstream_http_x_new;
           tirreno_event account_login * /then status=2xx;
           tirreno_event account_login_fail * /then status=4xx;
           tirreno_event page_error * /then;
           tirreno_event page_view * /nginx status=403;
           tirreno_event page_view * /nginx status=header:X-Added;
           location / { proxy_pass http://%BACKEND%; }
           location = /nginx { add_header X-Added $arg_added; deny all; }"#,
    );
    let past = "Thu, 01 Jan 1970 00:00:00 GMT";
    let future = "Thu, 01 Jan 2099 00:00:00 GMT";
    let cookies = |cookies: &[&str]| -> String {
        cookies.iter().map(|cookie| format!("&set_cookie={}", percent_encode(cookie))).collect()
    };
    let cookie_rows = [
        (&["SID=abc"][..], true),
        (&["SID=abc; HttpOnly; SameSite=Lax"], true),
        (&["SID=\"abc\""], true),
        (&["a=b", "SID=abc", "c=d"], true),
        (&["SID=", "SID=abc"], true),
        (&[&format!("SID=abc; Expires={future}")], true),
        (&["SID=abc; Max-Age=60"], true),
        (&[&format!("SID=abc; Max-Age=60; Expires={past}")], true),
        (&["SID="], false),
        (&["SID=\"\""], false),
        (&["SID"], false),
        (&["sid=abc"], false),
        (&["XSID=abc"], false),
        (&["a=SID=abc"], false),
        (&["a=b; SID=abc"], false),
        (&["SID=abc; Max-Age=0"], false),
        (&["SID=abc; max-age=-1"], false),
        (&[&format!("SID=abc; Expires={past}")], false),
        (&[&format!("SID=abc; expires={past}; Secure")], false),
        (&["SID=; Max-Age=60", "a=b"], false),
    ];
    let mut rows: Vec<(String, &str)> = [
        ("/one?status=401", "page_view"),
        ("/one?status=200", ""),
        ("/one?status=402", ""),
        ("/class?status=200", "page_view"),
        ("/class?status=204", "page_view"),
        ("/class?status=304", ""),
        ("/range?status=400", "page_view"),
        ("/range?status=599", "page_view"),
        ("/range?status=399", ""),
        ("/list?status=200", "page_view"),
        ("/list?status=201", ""),
        ("/list?status=301", "page_view"),
        ("/list?status=303", "page_view"),
        ("/list?status=304", ""),
        ("/list?status=503", "page_view"),
        ("/cookie", ""),
        ("/header?header=x-hidden:a", "page_view"),
        ("/header?header=X-Hidden:", ""),
        ("/header?header=X-Other:a", ""),
        ("/shown?header=X-Shown:a", "page_view"),
        ("/mixed?status=500", "page_view"),
        ("/mixed?set_cookie=SID%3Da", "page_view"),
        ("/mixed", ""),
        ("/if?x=1", "page_view"),
        ("/if?x=0", ""),
        ("/if?x=off", ""),
        ("/if?x=", ""),
        ("/if", ""),
        ("/both?x=1", "page_view"),
        ("/both?y=1", "page_view"),
        ("/both", ""),
        ("/both?status=404&x=1", ""),
        ("/response?header=X-New:1", "page_view"),
        ("/response?header=X-New:0", ""),
        ("/response", ""),
        ("/then", "account_login"),
        ("/then?status=401", "account_login_fail"),
        ("/then?status=500", "page_error"),
        ("/nginx", "page_view"),
    ]
    .map(|(path, kind)| (path.to_owned(), kind))
    .into();
    rows.extend(cookie_rows.iter().enumerate().map(|(row, (list, set))| {
        (format!("/cookie?row={row}{}", cookies(list)), if *set { "page_view" } else { "" })
    }));
    let rows: Vec<_> = rows.iter().map(|(path, kind)| ("GET", &**path, *kind)).collect();
    site.assert_types(&rows);
    let response = site.get("/cookie?set_cookie=SID%3Dabc&header=X-Hidden:a", &[]);
    assert_eq!((response.header("Set-Cookie"), response.header("X-Hidden")), (None, None));
    assert_eq!(site.events().len(), 1, "hidden from the client only");
}

#[test]
fn a_websocket_is_an_event_when_it_opens() {
    let site = Site::start(
        &format!("{ON} log_format vars '$status $tirreno_event $tirreno_captured';"),
        "tirreno_event account_login * /ws status=101;
         location / {
             access_log %PREFIX%/logs/vars.log vars;
             proxy_pass http://%BACKEND%;
             proxy_http_version 1.1;
             proxy_set_header Upgrade $http_upgrade;
             proxy_set_header Connection upgrade;
         }",
    );
    let mut socket = WebSocket::open(site.port(), "/ws", &[ANN]).expect("an upgrade");
    let event = site.event();
    assert_eq!((&*event.event_type, &*event.user_name), ("account_login", "ann"));
    assert_eq!(socket.echo("hello").expect("an echo"), "hello");
    drop(socket);
    assert_eq!(site.log("vars.log", 1), ["101 account_login 1"]);
    assert_eq!(site.events().len(), 0);
}

#[test]
fn a_rule_names_the_user_and_may_do_without() {
    let site = Site::start(
        "tirreno on; tirreno_user $cookie_user; map $upstream_http_x_new $mapped { default $upstream_http_x_new; }",
        "tirreno_event page_view * /first user=$arg_a user=$arg_b;
         tirreno_event page_view * /none user=$arg_a;
         tirreno_event page_view * /cookie user=$upstream_cookie_SID anonymous=on;
         tirreno_event page_view * /header user=$upstream_http_x_new user=constant;
         tirreno_event page_view * /sent user=x-$sent_http_x_new;
         tirreno_event page_view * /map user=$mapped;
         tirreno_event page_view * /anonymous anonymous=on;
         tirreno_event page_view * /both anonymous=on user=$arg_a;
         tirreno_event page_view * /param user=$arg_a;
         location / { proxy_pass http://%BACKEND%; }
         location /param { tirreno_param userName given; proxy_pass http://%BACKEND%; }",
    );
    site.assert_users(&[
        ("/other", 200, "ann"),
        ("/first?a=1&b=2", 200, "1"),
        ("/first?a=&b=2", 200, "2"),
        ("/first?b=2", 200, "2"),
        ("/none", 200, ""),
        ("/cookie?set_cookie=SID%3Dbob%3B+HttpOnly", 200, "bob"),
        ("/cookie", 200, NOBODY),
        ("/header?header=X-New:eve", 200, "eve"),
        ("/header", 200, "constant"),
        ("/sent?header=X-New:eve", 200, "x-eve"),
        ("/map?header=X-New:eve", 200, "eve"),
        ("/anonymous", 200, "ann"),
        ("/both?a=1", 200, "1"),
        ("/both", 200, NOBODY),
        ("/param?a=1", 200, "given"),
    ]);
    assert_eq!(site.skipped("anonymous"), 1);
    for path in ["/other", "/anonymous", "/first"] {
        site.get(path, &[]);
    }
    let event = site.event();
    assert_eq!((&*event.url, &*event.user_name), ("/anonymous", NOBODY));
    assert_eq!(site.skipped("anonymous"), 3);
}

#[test]
fn a_user_is_believed_when_the_application_answers() {
    let site = Site::build("tirreno on; tirreno_user $cookie_user;", |builder| {
        builder.file("users", "").file("html/page.html", "a page").server(
            r#"root %PREFIX%/html;
               tirreno_verify answer;
               tirreno_event page_view * /login/unmarked;
               tirreno_event page_view * /login/anonymous anonymous=on session=required;
               tirreno_event page_view * /login/response user=$upstream_cookie_SID;
               tirreno_event page_view * /login/sent
                   user=$cookie_user user=$sent_http_x_new session=required;
               tirreno_event page_view * /login/both
                   user=$upstream_cookie_SID$cookie_user session=required;
               tirreno_event page_view * /deny/anonymous anonymous=on session=required;
               tirreno_event page_view * /deny/response user=$sent_http_x_own;
               tirreno_event page_view * / session=required:2xx,404;
               tirreno_event page_view * "/{*rest}" session=required;
               location / { proxy_pass http://%BACKEND%; }
               location /deny { add_header X-Own own always; deny all; }
               location /basic {
                   auth_basic users;
                   auth_basic_user_file %PREFIX%/users;
                   proxy_pass http://%BACKEND%;
               }
               location /down { proxy_pass http://127.0.0.1:%PORT8%; }
               location /return { return 403; }
               location /moved { return 302 /; }
               location /page.html { }
               location /missing { }
               location /intercepted {
                   proxy_intercept_errors on;
                   error_page 401 403 /page.html;
                   proxy_pass http://%BACKEND%;
               }
               location /unverified {
                   tirreno_verify off;
                   proxy_pass http://%BACKEND%;
                   location /unverified/deny { deny all; }
                   location /unverified/inner {
                       tirreno_verify answer;
                       proxy_pass http://%BACKEND%;
                   }
               }"#,
        )
    });
    let cookie = "&set_cookie=SID%3Dbob";
    let rows = [
        ("/", 200, "ann"),
        ("/?status=401", 401, ""),
        ("/?status=403", 403, ""),
        ("/?status=404", 404, "ann"),
        ("/x?status=404", 404, ""),
        ("/?status=500", 500, ""),
        ("/?status=302", 302, ""),
        ("/login/unmarked", 200, ""),
        ("/?close=1", 502, ""),
        ("/deny", 403, ""),
        ("/basic", 401, ""),
        ("/down", 502, ""),
        ("/return", 403, ""),
        ("/moved", 302, ""),
        ("/page.html", 200, ""),
        ("/missing", 404, ""),
        ("/intercepted?status=401", 401, ""),
        ("/intercepted?status=403", 403, ""),
        ("/login/anonymous", 200, "ann"),
        ("/login/anonymous?status=401", 401, NOBODY),
        ("/login/anonymous?status=403", 403, NOBODY),
        (&format!("/login/response?status=401{cookie}"), 401, "bob"),
        (&format!("/login/response?status=403{cookie}"), 403, "bob"),
        ("/login/response?status=401", 401, ""),
        ("/login/sent?status=401&header=X-New:eve", 401, "eve"),
        ("/login/sent?status=200&header=X-New:eve", 200, "ann"),
        (&format!("/login/both?status=401{cookie}"), 401, ""),
        (&format!("/login/both?status=200{cookie}"), 200, "bobann"),
        ("/deny/anonymous", 403, NOBODY),
        ("/deny/response", 403, "own"),
        ("/unverified?status=401", 401, "ann"),
        ("/unverified/deny", 403, "ann"),
        ("/unverified/inner?status=401", 401, ""),
    ];
    site.assert_users(&rows);

    let off = Site::start(
        "tirreno on; tirreno_user $cookie_user;",
        "location / { proxy_pass http://%BACKEND%; }
         location /deny { deny all; }",
    );
    off.assert_users(&[("/?status=401", 401, "ann"), ("/deny", 403, "ann")]);
}

/// A page that replaces a refusal does not make the refused user a believed one.
#[test]
fn a_user_who_was_refused_is_not_believed_when_the_refusal_is_answered_with_200() {
    let site = Site::build("tirreno on; tirreno_user $cookie_user;", |builder| {
        builder.file("html/page.html", "a page").server(
            "root %PREFIX%/html;
             tirreno_verify answer;
             location /application {
                 proxy_intercept_errors on;
                 error_page 401 =200 /page.html;
                 proxy_pass http://%BACKEND%;
             }
             location /named {
                 proxy_intercept_errors on;
                 error_page 401 = @login;
                 proxy_pass http://%BACKEND%;
             }
             location @login { proxy_pass http://%BACKEND%; }
             location /deny { error_page 403 =200 /page.html; deny all; }
             location = /page.html { }",
        )
    });
    site.assert_users(&[
        ("/application?status=401", 200, ""),
        ("/deny", 200, ""),
        ("/named?status=401", 401, ""),
    ]);
}

#[test]
fn a_user_given_as_a_parameter_is_verified_too() {
    let site = Site::start(
        "tirreno on;",
        "tirreno_verify answer;
         tirreno_event page_view * / session=required;
         tirreno_param userName $cookie_user;
         location / { proxy_pass http://%BACKEND%; }",
    );
    site.assert_users(&[("/", 200, "ann"), ("/?status=401", 401, "")]);
}

#[test]
fn a_user_whom_the_configuration_names_is_believed() {
    let site = Site::start(
        "tirreno on; tirreno_user backup;",
        "tirreno_verify answer;
         location / { proxy_pass http://%BACKEND%; }",
    );
    site.assert_users(&[("/", 200, "backup"), ("/?status=401", 401, "backup")]);
}

/// nginx refuses an answer that it cannot parse.
#[test]
fn an_answer_that_nginx_cannot_use_is_no_answer() {
    let site = Site::start(
        "tirreno on; tirreno_user $cookie_user;",
        "tirreno_verify answer;
         tirreno_event page_view * / session=required;
         location / { proxy_pass http://%BACKEND%; }",
    );
    site.assert_users(&[("/", 200, "ann"), ("/?header=no+colon", 502, "")]);
}

#[test]
fn secrets_are_hidden_in_urls() {
    const S: &str = SECRET;
    let server = r#"
        tirreno_redact two Three;
        tirreno_event account_edit POST "/reset/{token}/done" status=2xx redact=token;
        tirreno_event page_search GET "/s/{id}/{*secret}" redact=secret;
        location / { proxy_pass http://%BACKEND%; }
        location /deep { tirreno_redact four; tirreno_redact five; proxy_pass http://%BACKEND%; }
        location /off {
            tirreno_redact off;
            proxy_pass http://%BACKEND%;
            location /off/inner { proxy_pass http://%BACKEND%; }
            location /off/on { tirreno_redact four; proxy_pass http://%BACKEND%; }
        }"#;
    let site = Site::build(
        &format!(
            r#"{ON} tirreno_redact one;
               tirreno_event page_view * "/hooks/{{hook}}" redact=hook;
               tirreno_event page_view * "/pair/{{a}}/x/{{b}}" redact=a redact=b if=$arg_never;"#
        ),
        |builder| {
            let given = |port: &str, url: &str| {
                format!("server {{ listen 127.0.0.1:{port}; tirreno_param url {url}; {server} }}")
            };
            builder
                .server(server)
                .http(&given("%PORT1%", "$host$request_uri"))
                .http(&given("%PORT2%", "$scheme://$http_host$request_uri"))
                .http(&given("%PORT3%", "$host:$server_port$request_uri"))
        },
    );
    // Both URLs and Referers.
    let rows: &[(String, &str)] = &[
        // Arguments.
        (format!("/?token={S}"), "/?token=***"),
        (format!("/?a=1&access_token={S}&b=2"), "/?a=1&access_token=***&b=2"),
        (format!("/?password={S}&private_token={S}"), "/?password=***&private_token=***"),
        (format!("/?one={S}&two={S}&three={S}&four=4"), "/?one=***&two=***&three=***&four=4"),
        (format!("/?%74oken={S}&t%6Fk%65n={S}"), "/?%74oken=***&t%6Fk%65n=***"),
        (format!("/?%6fne={S}&TWO={S}"), "/?%6fne=***&TWO=***"),
        (format!("/?token={S}&x=1&token={S}"), "/?token=***&x=1&token=***"),
        (format!("/?token[]={S}&user[password]={S}"), "/?token[]=***&user[password]=***"),
        (format!("/?a=1;token={S}"), "/?a=1;token=***"),
        (format!("/?to=%2Fx%3Ftoken%3D{S}&a=1"), "/?to=***&a=1"),
        (format!("/a;jsessionid={S}?b=1"), "/a;jsessionid=***?b=1"),
        ("/?page_token=1&tokens=2&monkey=3".into(), "/?page_token=1&tokens=2&monkey=3"),
        // Names of inner levels.
        (
            format!("/deep?one={S}&three={S}&four={S}&five={S}&jwt={S}"),
            "/deep?one=***&three=***&four=***&five=***&jwt=***",
        ),
        ("/off?one=1&token=2&two=3".into(), "/off?one=1&token=2&two=3"),
        ("/off/inner?one=1&token=2".into(), "/off/inner?one=1&token=2"),
        (format!("/off/on?four={S}&token={S}"), "/off/on?four=***&token=***"),
        // Segments.
        (format!("/hooks/{S}"), "/hooks/***"),
        (format!("/hooks/{S}/?a=1"), "/hooks/***/?a=1"),
        (format!("/hooks/{S}?token={S}"), "/hooks/***?token=***"),
        (format!("/hooks//{S}"), "/hooks/***"),
        (format!("/x/../hooks/./{S}"), "/hooks/***"),
        (format!("/%68ooks/{S}"), "/hooks/***"),
        (format!("/hooks%2f{S}"), "/hooks/***"),
        (format!("/hooks/%2e%2e/hooks/{S}%20"), "/hooks/***"),
        (format!("/reset/{S}/done"), "/reset/***/done"),
        (format!("/reset/{S}/done?status=404"), "/reset/***/done?status=404"),
        (format!("/s/1/{S}/2/{S}"), "/s/1/***"),
        (format!("/pair/{S}/x/{S}"), "/pair/***/x/***"),
    ];
    for (port, prefix) in [
        (site.port(), String::new()),
        (site.nginx.port_n(1), "localhost".to_owned()),
        (site.nginx.port_n(2), "http://localhost".to_owned()),
        (site.nginx.port_n(3), format!("localhost:{}", site.nginx.port_n(3))),
    ] {
        for method in ["GET", "POST", "BREW"] {
            for (path, _) in rows {
                send(port, method, path);
            }
            let (events, posts) = site.take();
            assert_no_secret(&posts);
            assert_eq!(events.len(), rows.len());
            for (event, (path, url)) in events.iter().zip(rows) {
                assert_eq!(event.url, format!("{prefix}{url}"), "{method} {path}");
            }
        }
    }

    // The Referer is redacted by the directives of the request's location, not of its own.
    let referers: Vec<_> = rows
        .iter()
        .filter(|(path, _)| !path.starts_with("/off") && !path.starts_with("/deep"))
        .flat_map(|(path, url)| {
            [
                (format!("https://localhost{path}"), format!("https://localhost{url}")),
                (format!("https://u:{S}@localhost{path}"), format!("https://localhost{url}")),
                (format!("http://h:1{path}#{S}"), format!("http://h:1{url}")),
                (format!("//h{path}#token={S}"), format!("//h{url}")),
            ]
        })
        .collect();
    for (referer, _) in &referers {
        site.get("/", &[("Referer", referer)]);
    }
    let (events, posts) = site.take();
    assert_no_secret(&posts);
    assert_eq!(events.len(), referers.len());
    for (event, (referer, hidden)) in events.iter().zip(&referers) {
        assert_eq!(event.http_referer.as_ref(), Some(hidden), "{referer}");
    }

    // With `off` for arguments, segments, users and fragments are still hidden.
    let referer = format!("https://u:{S}@h/hooks/{S}?token=1#{S}");
    site.get("/off", &[("Referer", &referer)]);
    let (events, posts) = site.take();
    assert_no_secret(&posts);
    assert_eq!(events[0].http_referer.as_deref(), Some("https://h/hooks/***?token=1"));

    let request = client::h2_request;
    let h2 = Site::build(ON, |builder| builder.http(&http2_server(server)));
    let path = format!("/s/./1/{S}?password={S}");
    let referer = format!("https://h/reset/{S}/done");
    client::h2(h2.nginx.port_n(HTTP2), &[request("PUT", &path, &[("referer", &referer)], b"")])
        .expect("HTTP/2");
    wait_until(SOON, "the event", || h2.sensor.stored_count() == 1);
    let (events, posts) = h2.take();
    assert_no_secret(&posts);
    assert_eq!(events[0].url, "/s/1/***?password=***");
    assert_eq!(events[0].http_referer.as_deref(), Some("https://h/reset/***/done"));
}

#[test]
fn a_prefix_counts_for_secrets_and_rewrites_do_not() {
    const S: &str = SECRET;
    let site = Site::start(
        &format!(
            r#"{ON} tirreno_event_prefix /chat;
               tirreno_event page_view POST "/hooks/{{hook}}" redact=hook;"#
        ),
        "location / { proxy_pass http://%BACKEND%; }
         location /chat/hooks { rewrite ^ /elsewhere last; }
         location /elsewhere { error_page 404 /error; return 404; }
         location /error { return 204; }",
    );
    for path in [format!("/chat/hooks/{S}"), format!("/%63hat//hooks/{S}/?a=b")] {
        site.get(&path, &[("Referer", &format!("https://h{path}"))]);
    }
    let (events, posts) = site.take();
    assert_no_secret(&posts);
    let urls: Vec<_> = events.iter().map(|event| &*event.url).collect();
    assert_eq!(urls, ["/chat/hooks/***", "/chat/hooks/***/?a=b"]);
}

#[test]
fn variables_tell_what_became_of_a_request() {
    let site = Site::start(
        "tirreno on; tirreno_user $cookie_user;
         log_format vars '$request_uri [$tirreno_event] [$tirreno_user] [$tirreno_captured]';
         log_format twice '$tirreno_captured $tirreno_captured $tirreno_event $mapped';
         map $tirreno_event $mapped { default $tirreno_event; '' early; }
         map $tirreno_event $early { default $tirreno_event; '' early; }",
        r#"access_log %PREFIX%/logs/vars.log vars;
           access_log %PREFIX%/logs/twice.log twice if=$tirreno_captured;
           access_log %PREFIX%/logs/logins.log twice if=$tirreno_user;
           tirreno_event account_login * /login user=$arg_u anonymous=on;
           tirreno_event off * "/off/{*rest}";
           add_header X-Early "[$early$tirreno_event$tirreno_user$tirreno_captured]" always;
           location / { if ($tirreno_event) { return 500; } proxy_pass http://%BACKEND%; }
           location /not { tirreno off; return 204; }
           location /to { rewrite ^ /login last; }
           location /fail { error_page 403 /login; deny all; }"#,
    );
    let rows = [
        ("/login?u=bob", 200, "[account_login] [bob] [1]"),
        ("/login", 200, "[account_login] [] [1]"),
        ("/page", 200, "[page_view] [ann] [1]"),
        ("/page?status=404", 404, "[page_view] [ann] [1]"),
        ("/off/a", 200, "[] [] [event_off]"),
        ("/not", 204, "[-] [-] [-]"),
        ("/to", 200, "[page_view] [ann] [1]"),
        ("/fail", 403, "[page_view] [ann] [1]"),
    ];
    for (path, status, _) in rows {
        let response = site.get(path, &[ANN]);
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.header("X-Early").as_deref(), Some("[early]"), "{path}");
    }
    assert_eq!(site.get("/nobody", &[]).status, 200);
    let lines = site.log("vars.log", rows.len() + 1);
    for ((path, _, values), line) in rows.iter().zip(&lines) {
        assert_eq!(*line, format!("{path} {values}"));
    }
    assert_eq!(lines[rows.len()], "/nobody [page_view] [] [anonymous]");
    let twice = site.log("twice.log", 8);
    assert_eq!(twice[0], "1 1 account_login account_login");
    assert_eq!(twice[4], "event_off event_off  early");
    assert_eq!(site.log("logins.log", 5).len(), 5);
    assert_eq!(site.events().len(), 6, "one for each request");

    let requests = [client::h2_request("GET", "/page", &[ANN], b"")];
    let h2 = Site::build(
        &format!("{ON} log_format vars '$tirreno_event $tirreno_user $tirreno_captured';"),
        |builder| {
            builder.http(&http2_server(
                "access_log %PREFIX%/logs/vars.log vars;
                 location / { add_header X-Early [$tirreno_event]; return 204; }",
            ))
        },
    );
    let response = client::h2(h2.nginx.port_n(HTTP2), &requests).expect("HTTP/2").remove(0);
    assert_eq!(response.header("X-Early").as_deref(), Some("[]"));
    assert_eq!(h2.log("vars.log", 1), ["page_view ann 1"]);
    assert_eq!(h2.event().url, "/page");
}

/// Directives whose values depend on the module's own variables.
#[test]
fn variables_in_the_modules_own_directives_are_empty() {
    let site = Site::start(
        "tirreno_user $cookie_user;
         log_format vars '$request_uri [$tirreno_event] [$tirreno_user] [$tirreno_captured]';",
        r#"access_log %PREFIX%/logs/vars.log vars;
           location /switch { tirreno $tirreno_event; return 204; }
           location /rule {
               tirreno on;
               tirreno_event account_login * /rule if=$tirreno_event;
               return 204;
           }
           location /user { tirreno on; tirreno_user $tirreno_user x; return 204; }
           location /param {
               tirreno on;
               tirreno_param pageTitle [$tirreno_captured];
               tirreno_param url /$tirreno_event;
               return 204;
           }"#,
    );
    for path in ["/switch", "/rule", "/user", "/param"] {
        assert_eq!(site.get(path, &[ANN]).status, 204);
    }
    let events = site.events();
    let got: Vec<_> = events.iter().map(|e| (&*e.url, &*e.event_type, &*e.user_name)).collect();
    let wanted =
        [("/rule", "page_view", "ann"), ("/user", "page_view", "x"), ("/", "page_view", "ann")];
    assert_eq!(got, wanted);
    assert_eq!(events[2].page_title.as_deref(), Some("[]"));
    let lines = site.log("vars.log", 4);
    assert!(lines[0].starts_with("/switch ["), "{}", lines[0]);
    assert_eq!(lines[1], "/rule [page_view] [ann] [1]");
}

#[test]
fn variables_without_a_target_that_takes_events_tell_so() {
    for (target, expected) in [
        ("", "[-] [-] [-]"),
        ("tirreno on; tirreno_target { type none; }", "[page_view] [ann] [no_target]"),
    ] {
        let nginx = Nginx::builder()
            .http(&format!(
                "{target} tirreno_user $cookie_user;
                 log_format vars '[$tirreno_event] [$tirreno_user] [$tirreno_captured]';"
            ))
            .server(
                "access_log %PREFIX%/logs/vars.log vars;
                 location / { add_header X-Early [$tirreno_event]; return 204; }",
            )
            .start();
        assert_eq!(send(nginx.port(), "GET", "/"), 204);
        let line = wait_for(SOON, "the log", || {
            let text = fs::read_to_string(nginx.prefix().join("logs/vars.log"));
            text.ok().filter(|text| text.ends_with('\n')).ok_or_else(String::new)
        });
        assert_eq!(line.trim_end(), expected, "{target}");
    }
}

/// A request that nginx could not parse has no path that a rule could match.
#[test]
fn a_request_that_cannot_be_read_matches_no_rule() {
    let site = Site::start(
        ON,
        r#"tirreno_event account_login * / user=root;
           tirreno_event account_login * "/{*rest}" user=rest;
           location / { return 204; }"#,
    );
    for request in ["nonsense\r\n\r\n", "GET /%zz HTTP/1.1\r\n\r\n", "GET /.. HTTP/1.1\r\n\r\n"] {
        let answer = client::raw(site.port(), request.as_bytes()).expect("an answer");
        assert_eq!(status_of(&answer), 400, "{request}");
    }
    let (_, posts) = site.take();
    // Two workers may log the requests in another order.
    let unread: Vec<_> = posts.iter().filter(|p| p.param("httpMethod").is_none()).collect();
    assert_eq!(unread.len(), 1, "{posts:?}");
    let kind = unread[0].param("eventType");
    assert_eq!(kind.as_deref(), Some("page_view"), "{:?}", unread[0].params);
}

/// Each key that a rule accepts has an effect.
#[test]
fn a_rule_can_be_stricter_than_its_location() {
    let site = Site::start(
        ON,
        "tirreno_event account_login * /strict anonymous=off;
         location / { return 204; }",
    );
    for path in ["/", "/strict"] {
        site.get(path, &[]);
    }
    assert_eq!(site.event().url, "/");
}

#[test]
fn a_log_of_subrequests_captures_nothing_by_itself() {
    let site = Site::start(
        &format!("{ON} log_format vars '$uri [$tirreno_event] [$tirreno_captured]';"),
        "access_log %PREFIX%/logs/vars.log vars;
         log_subrequest on;
         location / { mirror /mirror; proxy_pass http://%BACKEND%; }
         location = /mirror { internal; return 204; }",
    );
    assert_eq!(site.send("GET", "/page"), 200);
    let mut lines = site.log("vars.log", 2);
    lines.sort();
    assert!(lines[0].starts_with("/mirror ["), "{lines:?}");
    assert_eq!(lines[1], "/page [page_view] [1]");
    assert_eq!(site.event().http_code, Some(200), "captured when there is a response");
}

#[test]
fn an_answer_that_is_redirected_internally_keeps_its_cookies() {
    let site = Site::start(
        &format!("{ON} tirreno_default_event off;"),
        "tirreno_event account_login * /login status=set_cookie:SID user=$upstream_cookie_SID;
         location /login { proxy_pass http://%BACKEND%; }
         location /internal { internal; empty_gif; }",
    );
    let path = "/login?header=X-Accel-Redirect:/internal&set_cookie=SID%3Dbob";
    assert_eq!(site.send("GET", path), 200);
    let event = site.event();
    assert_eq!((&*event.event_type, &*event.user_name), ("account_login", "bob"));
}

const TYPES: &str = "page_view, page_edit, page_delete, page_search, page_error, account_login, \
    account_logout, account_login_fail, account_registration, account_email_change, \
    account_password_change, account_edit, field_edit";

#[test]
fn values_come_from_the_request_and_its_answer() {
    let site = Site::start(
        "tirreno on;",
        r#"tirreno_user cookie:user;
           tirreno_event page_view   * /cookie  user=cookie:sid_*~^([^|]+);
           tirreno_event page_view   * /header  user=header:X-User~^user-(.+)$;
           tirreno_event page_view   * /arg     user=arg:u;
           tirreno_event page_view   * /answer  user=set_cookie:wp_*~^([^|]+);
           tirreno_event page_edit   * /if      if=arg:do=edit,save if=!arg:draft;
           tirreno_event page_delete * /if      if=arg:do~^(del);
           tirreno_event page_delete * /if      if=arg:do~^remove=(all);
           tirreno_event page_edit   * /if      if=arg:do~^([^=]+)\=(?:now|=)=move,star;
           tirreno_event page_search * /if      status=!404,!5xx;
           tirreno_event page_edit   * /moved   status=location:/done;
           tirreno_event page_view   * /moved;
           tirreno_event page_view   * /param   param=fullName:header:X-Full title=arg:t;
           location / { proxy_pass http://%BACKEND%; }
           location /case { tirreno_user_case off; proxy_pass http://%BACKEND%; }"#,
    );
    let user = |path: &str, headers: RequestHeaders<'_>| {
        site.get(path, headers);
        site.event().user_name.clone()
    };
    assert_eq!(user("/", &[("Cookie", r#"user="An%6e%40example.com""#)]), "Ann@example.com");
    assert_eq!(user("/case", &[("Cookie", "user=ANN")]), "ann");
    assert_eq!(user("/cookie", &[("Cookie", "sid_1=; sid_2=bob|9; user=ann")]), "bob");
    assert_eq!(user("/header", &[("X-User", "user-eve"), ANN]), "eve");
    assert_eq!(user("/arg?u=a&u=b%20c", &[ANN]), "b c");
    assert_eq!(user("/answer?set_cookie=wp_x%3Djoe%257C1%7C2", &[ANN]), "joe");
    let long = "x".repeat(101);
    let names: Vec<_> =
        ["a", "b"].map(|end| user("/", &[("Cookie", &format!("user={long}{end}"))])).into();
    assert!(names[0] != names[1] && names[0].len() == 100, "{names:?}");
    site.assert_types(&[
        ("GET", "/if?do=edit", "page_edit"),
        ("GET", "/if?do=save", "page_edit"),
        ("GET", "/if?do=edit&draft=1", "page_search"),
        ("GET", "/if?do=delete", "page_delete"),
        ("GET", "/if?do=remove%3Dall", "page_delete"),
        ("GET", "/if?do=move%3Dnow", "page_edit"),
        ("GET", "/if?do=star%3D%3D", "page_edit"),
        ("GET", "/if?do=copy%3Dnow", "page_search"),
        ("GET", "/if?do=move", "page_search"),
        ("GET", "/if?do=other", "page_search"),
        ("GET", "/moved?status=302&header=Location:/done", "page_edit"),
        ("GET", "/moved?status=302&header=Location:/sorry", "page_view"),
    ]);
    site.get("/param?t=A%20title", &[ANN, ("X-Full", "Ann A.")]);
    let (events, posts) = site.take();
    assert_eq!(posts[0].param("fullName").as_deref(), Some("Ann A."));
    assert_eq!((posts[0].param("pageTitle").as_deref(), events.len()), (Some("A title"), 1));
}

#[test]
fn tirreno_sees_a_page_in_place_of_a_path() {
    let site = Site::start(
        ON,
        r#"tirreno_url page;
           tirreno_event page_edit "*" "/posts/{post_id}/{action}";
           tirreno_event page_view * "/files/{*path}" page=/files;
           tirreno_event page_edit * "/hooks/{key}/{id}" redact=key;
           tirreno_event page_edit * "/args/{id}" arg=q:arg:q arg=token:arg:t;
           location / { proxy_pass http://%BACKEND%; }
           location /posts/plain { tirreno_url request; proxy_pass http://%BACKEND%; }
           location /posts/own { tirreno_param url /own; proxy_pass http://%BACKEND%; }"#,
    );
    let url = |target: &str| {
        site.get(target, &[ANN]);
        site.event().url.clone()
    };
    assert_eq!(url("/posts/4y%71/pin?a=b"), "/posts/{post_id}/{action}?post_id=4yq&action=pin");
    assert_eq!(url("/files/a%20b/%C3%A9.txt?x=1"), "/files?path=a%20b%2F%C3%A9.txt");
    assert_eq!(url(&format!("/hooks/{SECRET}/7")), "/hooks/{key}/{id}?key=***&id=7");
    for (query, arguments) in [
        ("q=a%20b", "&q=a%20b"),
        ("t=5ecret", "&token=***"),
        (&format!("q=Bearer%20{SECRET}"), "&q=***"),
        ("q=u%3A5ecret%40h", "&q=***"),
        ("q={\"password\":\"5ecret\"}", "&q=***"),
        ("q=/hooks/5ecret/1", "&q=***"),
    ] {
        assert_eq!(url(&format!("/args/7?{query}")), format!("/args/{{id}}?id=7{arguments}"));
    }
    assert_eq!(url("/other/4yq?a=b"), "/other/4yq?a=b");
    assert_eq!(url("/posts/plain?a=b"), "/posts/plain?a=b");
    assert_eq!(url("/posts/own"), "/own");
    let long = url(&format!("/posts/{}/pin", "x".repeat(1000)));
    assert!(long.ends_with("x&action=pin"), "{long}");
    let long = url(&format!("/posts/{}/pin", "%25".repeat(690)));
    assert_eq!(long, "/posts/{post_id}/{action}?truncated=1");
}

#[test]
fn who_hangs_up_has_made_an_attempt() {
    let site = Site::start(
        "tirreno on; tirreno_user $cookie_user; tirreno_default_event off;",
        "tirreno_event account_login_fail POST /login status=4xx body=json user=body:id;
         tirreno_event account_login POST /login status=2xx body=json user=body:id confirmed=body;
         tirreno_event page_edit POST /post status=2xx;
         tirreno_event page_edit POST /none if=arg:never;
         location / { proxy_pass http://%BACKEND%; proxy_read_timeout 300ms; }",
    );
    for (path, kind) in [("/login", "page_view"), ("/post", "page_edit")] {
        let target = format!("{path}?delay=60000");
        let answer = client::post(site.port(), &target, &[ANN], br#"{"id":"victim"}"#).unwrap();
        assert_eq!(answer.status, 504);
        let event = site.event();
        assert_eq!((&*event.event_type, &*event.user_name), (kind, NOBODY), "{path}");
    }
    client::post(site.port(), "/none?delay=60000", &[ANN], b"").unwrap();
    assert_eq!(site.events().len(), 0);
}

/// The messages of `nginx -t` about `lines` in a server, without those that it always prints, and the place
/// of each line.
fn nginx_says(lines: &[String]) -> (bool, Vec<String>, Vec<String>) {
    let nginx = Nginx::builder()
        .http("tirreno_target { url http://127.0.0.1:9/; api_key k; } tirreno_anonymous on;")
        .server(&lines.join("\n"))
        .build();
    let (ok, output) = nginx.test();
    let file = nginx.prefix().join("nginx.conf");
    let text = fs::read_to_string(&file).expect("the configuration");
    let line = |wanted: &String| text.lines().position(|line| line == wanted).expect("a line") + 1;
    let places = lines.iter().map(|l| format!("{}:{}", file.display(), line(l))).collect();
    let ends = |line: &&str| {
        line.starts_with("nginx: configuration file ") || line.ends_with(" syntax is ok")
    };
    let said = output.lines().filter(|line| !ends(line));
    let said = said.map(|line| line.trim_start_matches("nginx: ").to_owned()).collect();
    (ok, said, places)
}

#[test]
fn a_malformed_rule_is_refused_with_what_it_must_be() {
    let kind =
        |kind: &str| format!("unknown event type \"{kind}\", it must be \"off\" or one of {TYPES}");
    let methods = |methods: &str, what: &str| format!("invalid methods \"{methods}\", {what}");
    let path = |path: &str, what: &str| format!("invalid path \"{path}\", {what}");
    let key = |key: &str| {
        format!(
            "invalid \"{key}\", it must be one of \"status=\", \"if=\", \"body=\", \"user=\", \
             \"confirmed=\", \"unknown=\", \"bind=\", \"session=\", \"first_step=\", \"param=\", \"field=\", \
             \"arg=\", \"page=\", \"title=\", \"outcome=\", \"anonymous=\", \"redact=\", \"audit=\", \"level=\", \"once=\""
        )
    };
    let status = |key: &str| {
        format!(
            "invalid \"{key}\", a status must be like 200, 2xx, 400-404, 4xx-5xx, set_cookie:NAME, \
             header:NAME or location:PREFIX, or one of them behind \"!\""
        )
    };
    let name = |key: &str| {
        format!("invalid \"{key}\", \"set_cookie:\" and \"header:\" must be followed by a name")
    };
    let short = "it must be \"tirreno_event TYPE METHODS PATH [KEY=VALUE ...]\"";
    let braces = "braces must enclose a whole segment of a path, as in \"/{id}/{*rest}\"";
    let a_name = "a segment's name must be of a-z, 0-9 and _ and not begin with a digit";
    let slash = "a path must not end with \"/\": without it, it matches requests with and without";
    let dots = "a path must not have \".\" or \"..\": those of requests are resolved";
    let query = "a path must not have \"?\" or \"#\": it is matched without arguments";
    let case = "a method has a character that no method can have";
    let empty = "methods must be \"*\" or names like \"POST,PUT\", without spaces";
    let deep = "/a".repeat(65);
    let audit = |key: &str| {
        format!(
            "invalid \"{key}\", it must be 1 to 100 letters, digits, \"_\", \"-\", \".\" and \":\""
        )
    };
    let everybodys = "it would be everybody's name: a source is like \"cookie:NAME\", a variable like \
         \"$remote_user\", \"verified\" stands once and first, and \"session\" or \"basic\" in \"user=\" of a rule";
    let of_answer = "a value of the answer, like \"set_cookie:NAME\" or \"answer:FIELD\"";
    let differs = |key: &str| {
        let like = "like \"arg:NAME\", \"$VARIABLE\" or \"answer~TEXT\"";
        format!("invalid \"{key}\", it must be what differs from request to request, {like}")
    };
    let long = format!("audit={}", "a".repeat(101));
    let level = |key: &str| {
        let names = "audit-api, audit-content, audit-permissions, audit-cli";
        format!("invalid \"{key}\", it must be one of {names}, or 100 to 103")
    };
    let must = |key: &str, what: &str| format!("invalid \"{key}\", it must be {what}");
    let wrong = |key: &str, what: &str| format!("invalid \"{key}\", {what}");
    let star = "a \"*\" in a path matches only itself: write \"{name}\" for a segment, a last \
                \"{*rest}\" for the rest";
    let body = "a rule that reads the request's body needs \"body=json\", \"body=php\", \
                \"body=rails\" or \"body=xmlrpc\": as the application reads it";
    let secret = "what has such a name is a secret, and no user";
    let rows: &[(&str, String)] = &[
        ("page_view", short.into()),
        ("off", short.into()),
        ("none *", short.into()),
        ("page_view *", short.into()),
        ("none * /", kind("none")),
        ("login * /", kind("login")),
        ("Page_View * /", kind("Page_View")),
        ("$arg_a * /", kind("$arg_a")),
        ("\"\" * /", kind("")),
        ("page_view get /", methods("get", "methods must be in upper case")),
        ("page_view \"\" /", methods("", empty)),
        ("page_view GET, /", methods("GET,", empty)),
        ("page_view \"GET, PUT\" /", methods("GET, PUT", case)),
        ("page_view GET,* /", methods("GET,*", "\"*\" means every method and must stand alone")),
        ("page_view GET,GET /", methods("GET,GET", "a method is named twice")),
        ("page_view /a *", methods("/a", case)),
        ("page_view * a", path("a", "a path must begin with \"/\"")),
        ("page_view * \"\"", path("", "a path must begin with \"/\"")),
        ("page_view * http://h/", path("http://h/", "a path must begin with \"/\"")),
        ("page_view * /a/", path("/a/", slash)),
        ("page_view * //", path("//", slash)),
        (
            "page_view * /a//b",
            path("/a//b", "a path must not have \"//\": slashes of requests are merged"),
        ),
        ("page_view * /a/../b", path("/a/../b", dots)),
        ("page_view * /./b", path("/./b", dots)),
        ("page_view * /a?b", path("/a?b", query)),
        ("page_view * \"/a#b\"", path("/a#b", query)),
        ("page_view * \"/a{b}\"", path("/a{b}", braces)),
        ("page_view * \"/{a}{b}\"", path("/{a}{b}", braces)),
        ("page_view * \"/{a\"", path("/{a", braces)),
        ("page_view * \"/{}\"", path("/{}", a_name)),
        ("page_view * \"/{*}\"", path("/{*}", a_name)),
        ("page_view * \"/{1a}\"", path("/{1a}", a_name)),
        ("page_view * \"/{Id}\"", path("/{Id}", a_name)),
        (
            "page_view * \"/{a}/{a}\"",
            path("/{a}/{a}", "two segments of a path must not have the same name"),
        ),
        (
            "page_view * \"/{*a}/b\"",
            path("/{*a}/b", "\"{*name}\" must be the last segment of a path"),
        ),
        (&format!("page_view * {deep}"), path(&deep, "a path must not have over 64 segments")),
        ("page_view * / status", "invalid \"status\", it must be KEY=VALUE".into()),
        ("page_view * / $arg_a", "invalid \"$arg_a\", it must be KEY=VALUE".into()),
        ("page_view * / colour=red", key("colour=red")),
        ("page_view * / =red", key("=red")),
        ("page_view * / Status=200", key("Status=200")),
        ("page_view * / audit=", audit("audit=")),
        ("page_view * / audit=$uri", audit("audit=$uri")),
        ("page_view * / \"audit=a b\"", audit("audit=a b")),
        (&format!("page_view * / {long}"), audit(&long)),
        ("page_view * / level=", level("level=")),
        ("page_view * / level=104", level("level=104")),
        ("page_view * / level=content", level("level=content")),
        ("page_view * / if=", must("if=", "a value")),
        ("page_view * / if=!", must("if=!", "a value")),
        ("page_view * / if=answer", differs("if=answer")),
        ("page_view * / if=0", differs("if=0")),
        ("page_view * / if=!constant=a,b", differs("if=!constant=a,b")),
        ("account_login_fail * / first_step=answer", differs("first_step=answer")),
        ("page_view * / user=Session", wrong("user=Session", everybodys)),
        ("page_view * / user=verified", wrong("user=verified", everybodys)),
        ("page_view * / user=Cookie:a", wrong("user=Cookie:a", everybodys)),
        ("page_view * / user=cooky:a", wrong("user=cooky:a", everybodys)),
        ("page_view * / user=cookie_a", wrong("user=cookie_a", everybodys)),
        ("page_view * / bind=", must("bind=", of_answer)),
        ("page_view * / bind=constant", must("bind=constant", of_answer)),
        (
            "page_view * / bind=cookie:a",
            "\"bind=\" with what the client says needs \"session=required\" beside it, which says that the \
             application has accepted it"
                .into(),
        ),
        ("page_view * /api/*", path("/api/*", star)),
        (
            "page_view * /a%20b",
            path(
                "/a%20b",
                "a path is matched decoded: write the character itself in the place of its \"%\" and digits",
            ),
        ),
        (
            "page_view * / status=2xx,200,!200",
            wrong("status=2xx,200,!200", "the same must not stand with and without \"!\""),
        ),
        (
            "page_view * \"/{a}\" \"page=/p/{b}\"",
            "\"page=/p/{b}\" names no segment of \"/{a}\"".into(),
        ),
        ("page_view * / user=body:a", wrong("user=body:a", body)),
        ("page_view * / if=request:a", wrong("if=request:a", body)),
        ("page_view * / body=xml", must("body=xml", "\"json\", \"php\", \"rails\" or \"xmlrpc\"")),
        ("page_view * / body=json user=body:password", wrong("user=body:password", secret)),
        (
            "page_view * / user=cookie:",
            wrong("user=cookie:", "\"cookie:\" must be followed by a name"),
        ),
        ("page_view * / if=answer~", wrong("if=answer~", "the text is missing")),
        (
            "page_view * / \"user=cookie:a~(\"",
            wrong("user=cookie:a~(", "the regular expression is wrong: unclosed group"),
        ),
        ("page_view * / confirmed=yes", must("confirmed=yes", "\"body\"")),
        ("page_view * / outcome=fail", must("outcome=fail", "\"attempt\"")),
        (
            "page_view * / session=on",
            must("session=on", "\"required\" or \"required:LIST\", the list as in \"status=\""),
        ),
        ("page_view * / session=required:ok", status("session=required:ok")),
        (
            "page_view * / body=json bind=body:a",
            wrong("bind=body:a", "a body is the client's word, bind what the answer says"),
        ),
        (
            "page_view * / first_step=answer:a",
            "\"first_step=\" belongs into a rule of the type account_login_fail".into(),
        ),
        ("page_view * / param=fullName", must("param=fullName", "NAME:VALUE")),
        (
            "page_view * / param=fullName:a param=fullName:b",
            "duplicate parameter in \"param=fullName:b\"".into(),
        ),
        ("page_view * / field=a:b field=a:c", "duplicate field in \"field=a:c\"".into()),
        ("page_view * / arg=a:b arg=a:c", "duplicate argument in \"arg=a:c\"".into()),
        ("page_view * \"/{a}\" arg=a:c", "duplicate argument in \"arg=a:c\"".into()),
        (
            "page_view * / page=a",
            must("page=a", "a path that begins with \"/\", without \"?\", \"#\" and variables"),
        ),
        (
            "page_view * / title=a param=pageTitle:b",
            "\"title=\" is the parameter \"pageTitle\", use one of them".into(),
        ),
        ("page_view * / status=200 status=201", "duplicate key \"status=\"".into()),
        ("page_view * / anonymous=on anonymous=on", "duplicate key \"anonymous=\"".into()),
        ("page_view * / audit=a audit=b", "duplicate key \"audit=\"".into()),
        (
            "page_view * / anonymous=yes",
            "invalid \"anonymous=yes\", it must be \"on\" or \"off\"".into(),
        ),
        ("page_view * / status=", status("status=")),
        ("page_view * / status=ok", status("status=ok")),
        ("page_view * / status=20", status("status=20")),
        ("page_view * / status=2000", status("status=2000")),
        ("page_view * / status=600", status("status=600")),
        ("page_view * / status=6xx", status("status=6xx")),
        ("page_view * / status=20x", status("status=20x")),
        ("page_view * / status=200,", status("status=200,")),
        ("page_view * / status=200-", status("status=200-")),
        ("page_view * / status=$status", status("status=$status")),
        (
            "page_view * / status=404-400",
            "invalid \"status=404-400\", a range of statuses must not end before it begins".into(),
        ),
        ("page_view * / status=set_cookie:", name("status=set_cookie:")),
        ("page_view * / status=header:", name("status=header:")),
        ("page_view * / \"status=header:a b\"", name("status=header:a b")),
        ("page_view * \"/{a}\" redact=b", "\"redact=b\" names no segment of \"/{a}\"".into()),
        ("page_view * /a redact=a", "\"redact=a\" names no segment of \"/a\"".into()),
        ("page_view * \"/{a}\" redact=", "\"redact=\" names no segment of \"/{a}\"".into()),
    ];
    for (rule, message) in rows {
        let wanted = format!("[emerg] {message} in \"tirreno_event\" directive in ");
        let (ok, said, places) = nginx_says(&[format!("tirreno_event {rule};")]);
        assert_eq!(said, [wanted + &places[0]], "{rule}");
        assert!(!ok);
    }
}

#[test]
fn other_malformed_lines_are_refused_with_what_they_must_be() {
    let beside = "\"tirreno_redact off\" cannot stand beside names";
    let invalid = |name: &str, value: &str, must: &str| {
        format!("invalid value \"{value}\" in \"{name}\" directive, it must be {must}")
    };
    let prefix = |value: &str| {
        let must = "a path like \"/chat\", decoded and without \"//\", \"?\", braces or segments \".\" and \"..\"";
        invalid("tirreno_event_prefix", value, must)
    };
    let address = "an address, or a variable like \"$remote_addr\"";
    let argument = |name: &str| {
        format!(
            "invalid name \"{name}\" in \"tirreno_redact\" directive, it must be that of an argument, with \
             letters or digits and without \"*\""
        )
    };
    let joined = "on both sides of a \"+\" stands a source, as in \"cookie:USER+cookie:SESSION\"";
    let verify =
        |value: &str| invalid("tirreno_verify", value, "\"off\", \"answer\" or \"session\"");
    let kind = |kind: &str| {
        format!(
            "unknown event type \"{kind}\", it must be \"off\" or one of {TYPES} \
             in \"tirreno_default_event\" directive"
        )
    };
    let rows: &[(&str, String)] = &[
        ("tirreno_default_event login;", kind("login")),
        ("tirreno_default_event none;", kind("none")),
        ("tirreno_event_prefix chat;", prefix("chat")),
        ("tirreno_event_prefix \"\";", prefix("")),
        ("tirreno_event_prefix //chat;", prefix("//chat")),
        ("tirreno_event_prefix /a/../chat;", prefix("/a/../chat")),
        ("tirreno_event_prefix /%63hat;", prefix("/%63hat")),
        ("tirreno_event_prefix /chat?;", prefix("/chat?")),
        ("tirreno_event_prefix \"/{a}\";", prefix("/{a}")),
        ("tirreno_ip header:X-Real-IP;", invalid("tirreno_ip", "header:X-Real-IP", address)),
        ("tirreno_ip \"\";", invalid("tirreno_ip", "", address)),
        ("tirreno_redact a*;", argument("a*")),
        ("tirreno_redact a ---;", argument("---")),
        ("tirreno_redact !;", argument("!")),
        ("tirreno_redact \"\";", argument("")),
        ("tirreno_verify on;", verify("on")),
        ("tirreno_verify off dry_run;", "invalid parameter \"dry_run\"".into()),
        ("tirreno_verify answer dry;", "invalid parameter \"dry\"".into()),
        ("tirreno_realm \"a b\";", "invalid value \"a b\" in \"tirreno_realm\" directive".into()),
        ("tirreno_realm $host;", "\"tirreno_realm\" cannot contain variables".into()),
        ("tirreno_url path;", invalid("tirreno_url", "path", "\"request\" or \"page\"")),
        ("tirreno_user verified;", "\"tirreno_user verified\" names no user".into()),
        ("tirreno_user cookie:a session;", "write \"user=session\" in a \"tirreno_event\"".into()),
        ("tirreno_user verified basic;", "write \"user=basic\" in a \"tirreno_event\"".into()),
        ("tirreno_user cookie:;", "\"cookie:\" must be followed by a name".into()),
        ("tirreno_user body:a;", "\"body:a\" needs a body, which only rules read".into()),
        ("tirreno_session SID;", "is one session for all requests, it must be like".into()),
        ("tirreno_session cookie:SID a+b;", "\"a+b\" in \"tirreno_session\"".into()),
        ("tirreno_session cookie:a+;", joined.into()),
        ("tirreno_session +cookie:a;", joined.into()),
        ("tirreno_session a+cookie:b;", joined.into()),
        ("tirreno_session answer:a;", "\"answer:a\" needs a body, which only rules read".into()),
        ("tirreno_param fullName request:a;", "needs a body, which only rules read".into()),
        ("tirreno_redact off a;", beside.into()),
        ("tirreno_redact a off;", beside.into()),
        ("tirreno_event page_view * /a user=$;", "invalid variable name".into()),
        ("tirreno_event page_view * /a if=$none;", "unknown \"none\" variable".into()),
    ];
    for (line, message) in rows {
        let (ok, said, places) = nginx_says(&[(*line).to_owned()]);
        assert!(!ok && said[0].contains(&**message), "{line}: {said:#?}");
        let last = said.last().expect("a message");
        let unplaced = message.starts_with("unknown \"none\"");
        assert!(unplaced || last.ends_with(&places[0]), "{line}: {said:#?}");
    }
    for lines in
        [["tirreno_redact off;", "tirreno_redact a;"], ["tirreno_redact a;", "tirreno_redact off;"]]
    {
        let (ok, said, places) = nginx_says(&lines.map(str::to_owned));
        assert_eq!((ok, said), (false, vec![format!("[emerg] {beside} in {}", places[1])]));
    }
}

#[test]
fn a_rule_that_no_request_reaches_is_warned_of() {
    let warns = |first: &str, second: &str| {
        let lines = [first, second].map(|rule| format!("tirreno_event {rule};"));
        let (ok, said, places) = nginx_says(&lines);
        assert!(ok, "{said:#?}");
        if said.is_empty() {
            return false;
        }
        let wanted = format!(
            "[warn] no request reaches this \"tirreno_event\", the one in {} is for all of them, in {}",
            places[0], places[1]
        );
        assert_eq!(said, [wanted]);
        true
    };
    for (first, second) in [
        ("page_view * /a", "page_edit * /a "),
        ("page_view * /a", "page_edit GET /a status=200"),
        ("page_view GET,PUT /a", "page_edit PUT /a"),
        ("off * \"/{a}\"", "page_edit * /b"),
        ("page_view * \"/{*a}\"", "page_edit * \"/b/{c}\""),
        ("page_view * \"/a/{b}\" user=$arg_a", "page_edit * \"/a/{c}\" if=$uri"),
    ] {
        assert!(warns(first, second), "{first} {second}");
    }
    for (first, second) in [
        ("page_view GET /a", "page_edit * /a"),
        ("page_view * /a", "page_edit * \"/{a}\""),
        ("page_view * /a status=200", "page_edit * /a"),
        ("page_view * /a if=$uri", "page_edit * /a"),
        ("page_view * \"/a/{*b}\"", "page_edit * /a"),
    ] {
        assert!(!warns(first, second), "{first} {second}");
    }
    // A rule of an inner level is meant to come before one of an outer level.
    let (ok, said, _) = nginx_says(&[
        "tirreno_event page_view * /a;".to_owned(),
        "location / { tirreno_event page_edit * /a; }".to_owned(),
    ]);
    assert!(ok && said.is_empty(), "{said:#?}");
}

/// RFC 6265, section 5.2: an invalid age is ignored, and a date may have dashes.
#[test]
fn a_cookie_expires_as_browsers_have_it() {
    let site = Site::start(
        ON,
        "tirreno_event account_login * /cookie status=set_cookie:SID;
         location / { proxy_pass http://%BACKEND%; }",
    );
    let cookies = [
        ("SID=a; Max-Age=x", "account_login"),
        ("SID=a; Max-Age=", "account_login"),
        ("SID=a; Expires=soon", "account_login"),
        ("SID=a; Expires=Thu, 01-Jan-70 00:00:01 GMT", "page_view"),
        ("SID=a; Expires=Thu, 01-Jan-1970 00:00:01 GMT", "page_view"),
        ("SID=a; Max-Age=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT", "page_view"),
    ];
    let mut rows: Vec<_> = cookies
        .iter()
        .enumerate()
        .map(|(row, (cookie, kind))| {
            (format!("/cookie?row={row}&set_cookie={}", percent_encode(cookie)), *kind)
        })
        .collect();
    let (set, clear) = ("SID=a", percent_encode("SID=; Max-Age=0"));
    rows.extend([
        (format!("/cookie?set_cookie={set}&set_cookie={clear}"), "page_view"),
        (format!("/cookie?set_cookie={clear}&set_cookie={set}"), "account_login"),
    ]);
    let rows: Vec<_> = rows.iter().map(|(path, kind)| ("GET", &**path, *kind)).collect();
    site.assert_types(&rows);
}

#[test]
fn nginxs_own_headers_are_headers_of_the_response() {
    let site = Site::start(
        ON,
        "tirreno_event account_login * /moved status=header:Location;
         tirreno_event account_logout * /typed status=header:Content-Type;
         location /moved { return 302 /; }
         location /typed { return 200 text; }",
    );
    site.assert_types(&[("GET", "/moved", "account_login"), ("GET", "/typed", "account_logout")]);
}

/// Equal requests of one user within the time are one event with their number; a refused request is an
/// event of its own.
#[test]
fn the_same_request_within_a_time_is_one_event() {
    let server = "
        tirreno on;
        tirreno_default_event off;
        tirreno_user $arg_u;
        tirreno_event page_view GET \"/files/{id}\" once=24h;
        location / { proxy_pass http://%BACKEND%; }";
    let site = Site::start("tirreno_target kept { type file; path %PREFIX%/events; }", server);
    let today = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / (24 * 3600);
    let mut asked = 0;
    // After midnight (UTC), it is an event of another day. Then the test is repeated once.
    let sent = loop {
        let before = today();
        for target in ["u=ann", "u=ann&part=2", "u=ann&status=206", "u=bob", "u=ann&status=403"] {
            site.get(&format!("/files/{before}?{target}"), &[]);
        }
        site.get(&format!("/files/{before}?u=ann&status=404"), &[]);
        site.get("/files/x", &[]);
        asked += 6;
        let events = site.events();
        if today() == before {
            break events;
        }
    };
    let sent: Vec<_> = sent.iter().map(|e| (&*e.user_name, &*e.event_type)).collect();
    assert_eq!(sent, [("ann", "page_view"), ("bob", "page_view"), ("ann", "page_error")]);
    for target in ["main", "kept"] {
        let counts = || {
            let answer = client::get(site.nginx.port_n(9), "/status", &[]).expect("nginx answers");
            let status: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            ["captured", "delivered", "merged", "pending"]
                .map(|name| status["targets"][target][name].as_u64().unwrap())
        };
        wait_until(SOON, "the counters", || counts()[3] == 0);
        let [captured, delivered, merged, _] = counts();
        assert_eq!((captured, merged), (delivered + merged, asked / 6 * 3), "{target}");
    }
}
