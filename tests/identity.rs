//! The user of a request: sessions, how they are bound to users, and what clients claim.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tirreno_tests::backend::{Answer, Backend, BackendRequest};
use tirreno_tests::client::{self, Connection, RequestHeaders, Response, WebSocket};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_until};
use tirreno_tests::written::written_lines;

/// No request but those of its own session may be recorded as this user's.
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
    tirreno_event page_edit POST /posts bind=answer:user_id session=required:201
        user=session user=answer:user_id;
    tirreno_event page_view GET /open anonymous=on;
    tirreno_event page_view GET /socket status=101 user=session anonymous=on;
    tirreno_event account_edit POST /csrf status=401,2xx user=session;
    tirreno_event page_view * '/action/{*rest}' session=required;
    location / {
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $http_connection;
        proxy_pass http://%BACKEND%;
    }
    location /mine/ {
        tirreno_event page_view * '/mine/{*rest}' session=required;
        auth_basic off;
        deny all;
    }"#;

/// The application's sessions: the user of each token.
type Sessions = Arc<Mutex<HashMap<String, String>>>;

static TOKENS: AtomicU64 = AtomicU64::new(0);

/// An application that signs anybody in, and names the user of a session as Mattermost does.
fn application(sessions: &Sessions, request: &BackendRequest) -> Answer {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let cookie = request.header("Cookie").unwrap_or_default();
    let cookies =
        cookie.split(';').filter_map(|pair| pair.trim_matches([' ', '\t']).split_once('='));
    // As Go does it, which skips other values.
    let is_read =
        |value: &str| value.bytes().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'));
    let mut cookies = cookies.into_iter().filter(|(_, value)| is_read(value));
    let cookie = cookies.find(|(name, _)| *name == "MMAUTHTOKEN");
    let authorization = request.header("Authorization").unwrap_or_default();
    let bearer = || {
        let scheme = authorization.get(..6)?;
        scheme.eq_ignore_ascii_case("bearer").then(|| authorization.get(7..)).flatten()
    };
    let token = cookie.map(|(_, token)| token).or_else(bearer);
    // As Go does it, which takes the first.
    let argument = || query.split('&').find_map(|pair| pair.strip_prefix("access_token="));
    let token = token.or_else(argument).unwrap_or_default();
    let user = sessions.lock().unwrap().get(token).cloned();
    if let Some(other) = &request.header("X-Until") {
        wait_until(SOON, "that session", || sessions.lock().unwrap().contains_key(other));
    }
    let mut sessions = sessions.lock().unwrap();
    let mut answer = Answer { status: 200, ..Answer::default() };
    let mut header = |name: &str, value: &str| answer.headers.push((name.into(), value.into()));
    match (path, user) {
        ("/login", _) => {
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            let name = body["login_id"].as_str().unwrap();
            if name == "wrong" || request.header("X-Wrong").is_some() {
                answer.status = 401;
                return answer;
            }
            let token = format!("token-{}", TOKENS.fetch_add(1, Relaxed));
            let token = request.header("X-Keep").unwrap_or(token);
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
        // The application takes these paths for pages of another user, unlike nginx.
        (path, _) if path != "/users/me" && path.contains("/users/") => {
            header("Etag", &format!("9.5.{VICTIM}.17"));
            answer.body = format!(r#"{{"id":"{VICTIM}","user_id":"{VICTIM}"}}"#).into();
        }
        ("/missing", _) => answer.status = 404,
        ("/form" | "/basic", _) => answer.status = 401,
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

/// The access log's line of a request.
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

/// The configuration of each nginx besides the server.
const HTTP: &str = "
            log_format seen '$tirreno_event|$tirreno_user|$tirreno_identity|$tirreno_claimed|$tirreno_captured|$cookie_MMUSERID|';
            access_log %PREFIX%/seen.log seen;
            tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }
            tirreno_target audit { type file; path %PREFIX%/audit.json; interval 20ms; }
            proxy_set_header Accept-Encoding '';
            server { listen 127.0.0.1:%PORT9%; location = /status { access_log off; tirreno_status; } }";

/// nginx with the application behind it.
struct Site {
    nginx: Nginx,
    _sensor: Sensor,
    backend: Backend,
    sessions: Sessions,
    /// Whether the application fails at everything.
    is_down: Arc<AtomicBool>,
}

impl Site {
    fn start(server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let sessions = Sessions::default();
        let own = Arc::clone(&sessions);
        let sensor = Sensor::start(SensorOptions::default());
        let is_down = Arc::new(AtomicBool::new(false));
        let down = Arc::clone(&is_down);
        let backend = Backend::answering(move |request| match down.load(Relaxed) {
            true => Answer { status: 500, ..Answer::default() },
            false => application(&own, request),
        });
        let builder = Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address());
        let nginx = more(builder.http(HTTP).server(server)).start();
        Self { nginx, _sensor: sensor, backend, sessions, is_down }
    }

    fn simple() -> Self {
        Self::start(SERVER, |builder| builder)
    }

    fn lines(&self) -> Vec<String> {
        let text = written_lines(&self.nginx.prefix().join("seen.log"));
        text.lines().map(str::to_owned).collect()
    }

    /// Sends a request, and returns its line of the access log.
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

    /// Signs in as a browser, and returns the token.
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
fn a_claim_is_the_cookie_that_nginx_finds() {
    let server = SERVER.replace("tirreno_user cookie:MMUSERID", "tirreno_user $cookie_MMUSERID");
    let site = Site::start(&server, |builder| builder);
    let token = site.log_in("ann");
    let send = |cookies: &str| {
        let cookies = format!("{cookies}; MMAUTHTOKEN={token}");
        let seen = site.send("GET", "/action/1", &[("Cookie", &cookies)], "");
        assert!(seen.is("page_view", "ann-id", "session"), "{cookies}: {seen:?}");
        let line = site.lines().pop().unwrap();
        (seen.claimed, line.split('|').nth(5).unwrap().to_owned())
    };
    for cookies in [
        "MMUSERID=ann-id",
        "MMUSERID=victim; MMUSERID=ann-id",
        "mmuserid=victim; MMUSERID=ann-id",
        "MMUSERID=ann-id; mmuserid=victim",
        "a=b,MMUSERID=victim; MMUSERID=ann-id",
        "a=b,  mmUserId = ann-id; MMUSERID=victim",
        "MMUSERID;MMUSERID=victim; MMUSERID=ann-id",
        "xMMUSERID=victim; MMUSERID=ann-id",
        "MMUSERIDs=victim; MMUSERID=ann-id",
        "MMUSERID=; MMUSERID=ann-id",
        "MMUSERID=ann-i",
        "MMUSERID=ann-id2",
    ] {
        let (claimed, nginx) = send(cookies);
        let expected = if ["ann-id", "-", ""].contains(&&*nginx) { "" } else { &nginx };
        assert_eq!(claimed, expected, "{cookies}");
    }
    for (cookies, expected) in [
        ("MMUSERID=ann%2did", ""),
        ("MMUSERID=ann-id%20x", "ann-id x"),
        ("MMUSERID=\"ann-id\"", ""),
    ] {
        assert_eq!(send(cookies).0, expected, "{cookies}");
    }
}

/// The application may read a token where the module is not certain of one: no claim counts beside it.
#[test]
fn nobody_is_claimed_beside_a_token_that_cannot_be_read() {
    let server = SERVER.replace("tirreno_verify session", "tirreno_verify answer");
    let site = Site::start(&server, |builder| builder);
    let own = site.unbound("eve-id");
    let name = format!("MMUSERID={VICTIM}");
    for (query, cookies) in [
        (format!("access_token={own}&access_token=x"), name.clone()),
        (format!("access_token={own}&access_token="), name.clone()),
        (format!("access_token={own}&access_token=x"), format!("{name}; MMAUTHTOKEN=x\"y")),
    ] {
        let seen = site.send("GET", &format!("/action/1?{query}"), &[("Cookie", &cookies)], "");
        assert!(seen.is("page_view", "", "none"), "{query} {cookies}: {seen:?}");
    }
    let unreadable = site.status()["identity"]["unreadable_session"].as_u64();
    assert_eq!(unreadable, Some(3));
}

/// Where several cookies have a prefix, nobody knows which one the application has checked.
#[test]
fn a_cookie_beside_the_one_that_the_application_checks_binds_nobody() {
    for bind in ["bind=cookie:MMUSER*", "bind=$cookie_MMUSERID", "bind=answer:id"] {
        let server = SERVER
            .replace("tirreno_session cookie:MMAUTHTOKEN", "tirreno_session cookie:MMAUTH*")
            .replace(
                "tirreno on;",
                &format!("tirreno on; tirreno_event off GET /users/me session=required {bind};"),
            );
        let site = Site::start(&server, |builder| builder);
        let get = |path: &str, cookies: &str| site.send("GET", path, &[("Cookie", cookies)], "");
        let victims = site.unbound(VICTIM);
        let own = site.unbound("eve-id");
        // With a cookie that eve has planted, the victim asks; then eve does, beside the victim's name.
        get("/users/me", &format!("MMAUTHX=x; MMAUTHTOKEN={victims}; MMUSERID={VICTIM}"));
        let eves = format!("MMAUTHX=x; MMAUTHTOKEN={own}; MMUSERX={VICTIM}; MMUSERID=eve-id");
        let eves = format!("mmuserid={VICTIM}; {eves}");
        get("/users/me", &eves);
        let seen = get("/action/1", &eves);
        assert!(seen.user != VICTIM && seen.captured == "1", "{bind}: {seen:?}");
        let eves = format!("MMAUTHTOKEN={own}; MMUSERID=eve-id");
        get("/users/me", &eves);
        let seen = get("/action/1", &eves);
        assert!(seen.is("page_view", "eve-id", "session"), "{bind}: {seen:?}");
    }
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

/// A session whose id stays while its user changes.
#[test]
fn a_request_is_of_the_user_whose_session_it_was_when_it_began() {
    let site = Site::simple();
    let keep = |name: &str, token: &str| {
        let body = format!(r#"{{"login_id":"{name}"}}"#);
        let seen = site.send("POST", "/login", &[("X-Keep", token)], &body);
        assert!(seen.is("account_login", &format!("{name}-id"), "answer"), "{seen:?}");
    };
    // Sends a request that the application answers once `meanwhile` is over, and returns its line.
    let during = |token: &str, path: &str, meanwhile: &dyn Fn()| {
        let (gate, cookie) = (format!("gate-{path}"), cookie(token));
        let before = site.backend.requests().len();
        thread::scope(|scope| {
            let headers = [("Cookie", &*cookie), ("X-Until", &*gate)];
            let port = site.nginx.port();
            let slow = scope.spawn(move || client::get(port, path, &headers).unwrap());
            wait_until(SOON, "the request", || site.backend.requests().len() > before);
            meanwhile();
            let lines = site.lines().len();
            site.sessions.lock().unwrap().insert(gate.clone(), String::new());
            slow.join().unwrap();
            wait_until(SOON, "the request to be logged", || site.lines().len() > lines);
        });
        seen(&site.lines().pop().unwrap())
    };
    let token = site.log_in("ann");
    let log_out = || {
        site.send("POST", "/logout", &[("Cookie", &cookie(&token))], "");
    };
    let found = during(&token, "/action/both", &|| {
        log_out();
        keep("bob", &token);
    });
    assert!(found.is("page_view", "ann-id", "session"), "{found:?}");
    let found = during(&token, "/action/login", &|| keep("eve", &token));
    assert!(found.is("page_view", "bob-id", "session"), "{found:?}");
    let found = during(&token, "/action/logout", &log_out);
    assert!(found.is("page_view", "eve-id", "session"), "{found:?}");
    // Whose it was while the application looked is not known, where it was nobody's at the beginning.
    let found = during(&token, "/action/after", &|| keep("ann", &token));
    assert!(found.user.is_empty() || found.user.starts_with("session-"), "{found:?}");
    // A token that was never another's is the user's, whenever that is learned.
    let new = site.unbound("zoe-id");
    let found = during(&new, "/action/new", &|| {
        site.send("GET", "/users/me", &[("Cookie", &cookie(&new))], "");
    });
    assert!(found.is("page_view", "zoe-id", "session"), "{found:?}");
}

#[test]
fn nothing_is_ever_put_on_a_victims_record() {
    let site = Site::simple();
    let (own, victims) = (site.log_in("eve"), site.log_in("victim"));
    let planted = format!("MMUSERID={VICTIM}");
    let both = format!("{planted}; {}", cookie(&own));
    let seen = site.send("GET", "/action/1", &[("Cookie", &both)], "");
    assert!(seen.is("page_view", "eve-id", "session") && seen.claimed == VICTIM, "{seen:?}");
    // Also where the answer itself names the user.
    let seen = site.send("POST", "/posts", &[("Cookie", &both)], "{}");
    assert!(seen.is("page_edit", "eve-id", "answer") && seen.claimed == VICTIM, "{seen:?}");
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
    // The victim's session is still the victim's, after all these answers to others.
    let seen = site.send("GET", "/action/1", &[("Cookie", &cookie(&victims))], "");
    assert!(seen.is("page_view", VICTIM, "session"), "{seen:?}");
    assert!(site.status()["identity"]["mismatched"].as_u64() > Some(0));
    site.nginx.wait_log("claimed to be of another user");
}

#[test]
fn who_goes_away_within_the_body_has_only_tried() {
    let server = format!(
        "{SERVER}
        client_body_timeout 200ms;
        tirreno_event account_login_fail POST /own status=4xx user=body:login_id body=json;
        location = /own {{ return 400; }}"
    );
    let site = Site::start(&server, |builder| builder);
    let send = |bytes: &str| {
        let before = site.lines().len();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, site.nginx.port())).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        drop(stream);
        wait_until(SOON, "the request to be logged", || site.lines().len() > before);
        seen(&site.lines()[before])
    };
    let victim = r#"{"login_id":"victim"}"#;
    for (head, body) in [
        ("Content-Length: 200", victim),
        ("Content-Length: 200", r#"{"login_id":"v"#),
        ("Transfer-Encoding: chunked", "15\r\n"),
        ("Transfer-Encoding: chunked", &format!("15\r\n{victim}\r\n")),
    ] {
        let seen = send(&format!("POST /login HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n{body}"));
        assert!(seen.is("account_login", "", "none"), "{head} {body}: {seen:?}");
    }
    // Nor has who is silent.
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, site.nginx.port())).unwrap();
    let before = site.lines().len();
    silent.write_all(b"POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n{").unwrap();
    wait_until(SOON, "the time-out to be logged", || site.lines().len() > before);
    let last = seen(&site.lines()[before]);
    assert!(last.is("account_login", "", "none"), "{last:?}");
    // What nginx itself refuses is a failure still, whether or not the body is complete.
    let seen = send("POST /own HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n{");
    assert_eq!((&*seen.event, &*seen.user), ("account_login_fail", "unknown-unread"), "{seen:?}");
}

/// The application may have handled another method than the one that the rule matches.
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
        // Nor does it hide the event.
        assert!(seen.is("page_edit", "", "none"), "{path} {body:.100}: {seen:?}");
    }
    for (kind, body) in [(FORM, "a=_method&method=PUT"), (PARTS, &part("c"))] {
        let token = cookie(&site.unbound("ann-id"));
        let seen = site.send("POST", "/posts?a=_method", &[kind, ("Cookie", &token)], body);
        assert!(seen.is("page_edit", "ann-id", "answer"), "{body}: {seen:?}");
    }
}

#[test]
fn no_spelling_of_a_path_and_no_override_leaves_an_event_out() {
    let server = SERVER.replace("tirreno_verify session", "tirreno_verify answer");
    let site = Site::start(&server, |builder| builder);
    let token = cookie(&site.unbound("bob-id"));
    let send = |path: &str, more: &[(&str, &str)], headers: &[(&str, &str)]| {
        site.send("DELETE", path, &[more, headers].concat(), "")
    };
    let alias = send("/action/1", &[("Cookie", &*token)], &[]).user;
    assert!(alias.starts_with("session-"), "{alias}");
    // Clients have to encode these.
    for path in ["/action/my%20photo.jpg", "/action/%C3%A4.txt", "/action/eve%40example.com?a=%2f"]
    {
        let seen = send(path, &[("Cookie", &*token)], &[]);
        assert!(seen.is("page_view", &alias, "none"), "{path}: {seen:?}");
    }
    let before = site.status()["identity"]["unreadable_session"].as_u64().unwrap();
    // Perhaps the application sees something else: nobody is named, and the event is there.
    let override_header = [("X-HTTP-Method-Override", "GET")];
    let others = [
        ("/action/%751", &[][..]),
        ("//action/1", &[]),
        ("/action/a%2fb", &[]),
        ("/action/1?_method=x", &[]),
        ("/action/1", &override_header),
    ];
    for (path, headers) in others {
        let seen = send(path, &[("Cookie", &*token)], headers);
        assert!(seen.is("page_view", "", "none"), "{path}: {seen:?}");
    }
    let after = site.status()["identity"]["unreadable_session"].as_u64().unwrap();
    assert_eq!(after - before, others.len() as u64);
    // What the application refuses shows nothing of a session.
    let seen = send("//action/1", &[("Cookie", "MMAUTHTOKEN=garbage")], &[]);
    assert_eq!((&*seen.user, &*seen.captured), ("", "anonymous"), "{seen:?}");
    // The user of basic authentication is a claim, of an accepted request or of none.
    let server = "tirreno on;
        tirreno_verify answer;
        tirreno_event page_edit * '/open/{*rest}' session=required user=basic;
        location / { rewrite ^ /open break; proxy_pass http://%BACKEND%; }";
    let site = Site::start(server, |builder| builder);
    let basic = [("Authorization", "Basic Ym9iOng=")];
    for (path, user) in
        [("/open/my%20photo.jpg", "bob"), ("/open/%35", ""), ("/open/a?_method=x", "")]
    {
        let seen = site.send("PUT", path, &basic, "x");
        assert!(
            seen.is("page_edit", user, if user.is_empty() { "none" } else { "claim" }),
            "{path}: {seen:?}"
        );
    }
}

/// nginx's own pages, caches, sockets, and other spellings of paths: the session's user is known, but the
/// answers teach nothing about other sessions.
#[test]
fn nothing_teaches_but_the_applications_own_answer_to_the_very_request() {
    let cached = "
        tirreno_event page_view GET /users/cached bind=$upstream_http_etag~^[0-9.]+\\.([a-z-]+)\\.[0-9]+$
            session=required;
        location = /users/cached {
            proxy_cache sessions;
            proxy_cache_valid 200 1s;
            proxy_cache_use_stale error http_500;
            proxy_ignore_headers Set-Cookie;
            add_header X-Cache $upstream_cache_status;
            proxy_pass http://%BACKEND%/users/me;
        }";
    let http = "proxy_cache_path %PREFIX%/cache keys_zone=sessions:1m;";
    let site = Site::start(&format!("{cached} {SERVER}"), |builder| builder.http(http));
    let (own, victims) = (site.log_in("eve"), site.log_in("victim"));
    let whose = |token: &str| site.send("GET", "/action/1", &[("Cookie", &cookie(token))], "").user;
    let is_unbound = |token: &str, why: &str| {
        let user = whose(token);
        assert!(user.starts_with("session-"), "{why}: {user}");
    };

    // From the cache, fresh and stale, of the victim's page.
    let get_cached = |token: &str| {
        let headers = [("Cookie", &*cookie(token))];
        let (answer, seen) = site.send_for("GET", "/users/cached", &headers, "");
        (answer.header("X-Cache").unwrap_or_default(), seen)
    };
    let (from, seen) = get_cached(&victims);
    assert!(from == "MISS" && seen.is("page_view", VICTIM, "answer"), "{from} {seen:?}");
    let mut from = vec![from];
    site.is_down.store(true, Relaxed);
    wait_until(SOON, "a stale answer", || {
        let token = site.unbound("eve-id");
        let (status, seen) = get_cached(&token);
        assert_ne!(seen.user, VICTIM, "{status}");
        site.is_down.store(false, Relaxed);
        is_unbound(&token, &status);
        site.is_down.store(true, Relaxed);
        // The user of a known session is known even if the cache answers.
        let (status_of_own, seen) = get_cached(&own);
        assert!(seen.is("page_view", "eve-id", "session"), "{status_of_own} {seen:?}");
        from.extend([status, status_of_own]);
        from.iter().any(|status| status == "STALE")
    });
    site.is_down.store(false, Relaxed);
    assert!(from.iter().any(|status| status == "HIT"), "{from:?}");

    // The application may take these paths for other pages, or have handled an overridden method.
    for path in [
        "/users//me",
        "//users/me",
        "/users/./me",
        "/users/%6de",
        "/users/victim-id/../me",
        "/users/victim-id/..%2fme",
        "/users/me%3fa",
        "/users/me;a",
        "/users/me%00",
    ] {
        let token = site.unbound("eve-id");
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: h\r\nCookie: {}\r\n\r\n", cookie(&token));
        let before = site.lines().len();
        client::raw(site.nginx.port(), bytes.as_bytes()).unwrap();
        wait_until(SOON, "the request to be logged", || site.lines().len() > before);
        is_unbound(&token, path);
    }
    for name in ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"] {
        let token = site.unbound("eve-id");
        let headers = [("Cookie", &*cookie(&token)), (name, "DELETE")];
        site.send("GET", "/users/me", &headers, "");
        is_unbound(&token, name);
        // These requests of the session are still its user's.
        let headers = [("Cookie", &*cookie(&own)), (name, "DELETE")];
        let seen = site.send("GET", "/action/1", &headers, "");
        assert!(seen.is("page_view", "eve-id", "session"), "{name}: {seen:?}");
    }
    let token = site.unbound("eve-id");
    site.send("GET", "/users/me?_method=DELETE", &[("Cookie", &cookie(&token))], "");
    is_unbound(&token, "_method");

    // With an older cookie, planted or left behind, a login teaches nothing wrong about either session.
    for (planted, name) in [(&victims, "eve"), (&own, "victim")] {
        let cookies = format!("MMUSERID={VICTIM}; {}", cookie(planted));
        let headers = [("Cookie", &*cookies), ("X-Requested-With", "XMLHttpRequest")];
        let body = format!(r#"{{"login_id":"{name}"}}"#);
        let (answer, seen) = site.send_for("POST", "/login", &headers, &body);
        assert!(seen.is("account_login", &format!("{name}-id"), "answer"), "{seen:?}");
        assert_eq!(whose(&answer.header("Token").unwrap()), format!("{name}-id"));
        let body = r#"{"login_id":"wrong"}"#;
        let seen = site.send("POST", "/login", &headers, body);
        assert!(
            seen.event == "account_login_fail" && seen.user.starts_with("unknown-"),
            "{seen:?}"
        );
    }
    assert_eq!((whose(&victims), whose(&own)), (VICTIM.into(), "eve-id".into()));
    assert!(site.nginx.crashes(&[]).is_empty());
}

#[test]
fn no_other_text_hides_the_token_that_the_application_reads() {
    let site = Site::simple();
    let (own, other) = (site.log_in("eve"), site.log_in("victim"));
    let path = format!("/action/1?access_token={own}");
    for header in ["zzz", "Bearer", &format!("Basic {other}"), ""] {
        let seen = site.send("GET", &path, &[("Authorization", header)], "");
        assert!(seen.is("page_view", "eve-id", "session"), "{header}: {seen:?}");
    }
    let twice = format!("{path}&access_token={own}");
    let seen = site.send("GET", &twice, &[], "");
    assert!(seen.is("page_view", "eve-id", "session"), "{seen:?}");
    // Which of two an application takes, the module does not know.
    for second in [&*other, "", "zzz"] {
        let seen = site.send("GET", &format!("{path}&access_token={second}"), &[], "");
        assert!(seen.is("page_view", "", "none"), "{second}: {seen:?}");
    }
    assert_eq!(site.status()["identity"]["unreadable_session"], 3);
    // An application that reads the header without a scheme.
    let server = SERVER.replace("header:Authorization", r"header:Authorization~^(?:Own\s)?(.+)$");
    let site = Site::start(&server, |builder| builder);
    let token = site.log_in("ann");
    for header in [token.clone(), format!("Own {token}")] {
        let seen = site.send("POST", "/csrf", &[("Authorization", &header)], "");
        assert!(seen.is("account_edit", "ann-id", "session"), "{header}: {seen:?}");
    }
}

/// The same cookies in many forms, and connections that change their protocol.
#[test]
fn cookies_count_as_the_application_reads_them() {
    let http2 = if nginx_is_before(25) { "http2;" } else { "; http2 on;" };
    let second = format!("server {{ listen 127.0.0.1:%PORT7% {http2} {SERVER} }}");
    let site = Site::start(SERVER, |builder| builder.http(&second));
    let (own, garbage) = (site.log_in("eve"), "garbage");
    let victim = format!("MMUSERID={VICTIM}");
    // The first of two cookies counts; a known token in the second is not believed.
    for (first, second, user) in [(&*own, garbage, "eve-id"), (garbage, &*own, "")] {
        let cookies = format!("{victim}; {}; {}", cookie(first), cookie(second));
        let seen = site.send("GET", "/action/1", &[("Cookie", &cookies)], "");
        assert_ne!(seen.user, VICTIM, "{cookies}: {seen:?}");
        assert!(user.is_empty() || seen.is("page_view", user, "session"), "{cookies}: {seen:?}");
    }
    // What is not a cookie's value hides no token, and never becomes one: not even where who plants it has the
    // victim ask who it is.
    let victims = site.unbound(VICTIM);
    let white = ["\tx", "x\ty"];
    let odd = ["x\"y", "\"x", "\"", "\"x\"y\"", "x\\y", "x\u{e9}", "12345678\\"];
    for junk in odd.into_iter().chain(white) {
        let with = |token: &str| format!("{}; {}", cookie(junk), cookie(token));
        let seen = site.send("GET", "/action/1", &[("Cookie", &with(&own))], "");
        assert!(seen.is("page_view", "eve-id", "session"), "{junk:?}: {seen:?}");
        site.send("GET", "/users/me", &[("Cookie", &with(&victims))], "");
        let unknown = site.unbound("bob-id");
        let seen = site.send("GET", "/action/1", &[("Cookie", &with(&unknown))], "");
        assert!(seen.user.starts_with("session-"), "{junk:?}: {seen:?}");
        let seen = site.send("GET", "/action/1", &[("Cookie", &with(&victims))], "");
        assert!(seen.is("page_view", VICTIM, "session"), "{junk:?}: {seen:?}");
    }
    // HTTP/1.1 may have several headers.
    let other = site.log_in("eve");
    for headers in [[&*cookie(&own), &*victim], [&*victim, &*cookie(&other)]] {
        let seen = site.send("GET", "/action/1", &headers.map(|header| ("Cookie", header)), "");
        assert!(seen.is("page_view", "eve-id", "session"), "{headers:?}: {seen:?}");
    }
    // HTTP/2 splits cookies into several fields.
    let before = site.lines().len();
    for (n, crumbs) in [
        vec![&*victim, &*cookie(&own)],
        vec!["a=b", &*cookie(&own), &*victim, "c=d"],
        vec![&*victim],
        vec![&*victim, &*cookie(garbage)],
    ]
    .into_iter()
    .enumerate()
    {
        let headers: Vec<_> = crumbs.iter().map(|crumb| ("cookie", *crumb)).collect();
        let request = client::h2_request("GET", "/action/1", &headers, b"");
        client::h2(site.nginx.port_n(7), &[request]).unwrap();
        wait_until(SOON, "the request to be logged", || site.lines().len() > before + n);
        let seen = seen(&site.lines()[before + n]);
        match n {
            0 | 1 => assert!(seen.is("page_view", "eve-id", "session"), "{crumbs:?}: {seen:?}"),
            _ => assert_eq!(seen.user, "", "{crumbs:?}"),
        }
    }
    // The application accepts a WebSocket before it knows the user.
    for (cookies, user) in [
        (&*victim, ""),
        (&*format!("{victim}; {}", cookie(garbage)), ""),
        (&*cookie(&own), "eve-id"),
    ] {
        let before = site.lines().len();
        let mut socket =
            WebSocket::open(site.nginx.port(), "/socket", &[("Cookie", cookies)]).unwrap();
        assert_eq!(socket.echo("hello").unwrap(), "hello");
        drop(socket);
        wait_until(SOON, "the socket to be logged", || site.lines().len() > before);
        let seen = seen(&site.lines()[before]);
        assert_eq!((&*seen.event, &*seen.user), ("page_view", user), "{cookies}: {seen:?}");
    }
    // Answered by nginx itself, and refused by the application: the user of the session, or none.
    for (path, event) in [("/mine/1", "page_view"), ("/csrf", "account_edit")] {
        let seen =
            site.send("POST", path, &[("Cookie", &format!("{victim}; {}", cookie(&own)))], "");
        assert!(seen.is(event, "eve-id", "session") && seen.claimed == VICTIM, "{path}: {seen:?}");
        for cookies in [victim.clone(), format!("{victim}; {}", cookie(garbage))] {
            let seen = site.send("POST", path, &[("Cookie", &cookies)], "");
            assert_eq!((&*seen.user, &*seen.captured), ("", "anonymous"), "{path}: {seen:?}");
        }
    }
    assert!(site.nginx.crashes(&[]).is_empty());
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
    // The answer to "who am I" names the session's user.
    site.send("GET", "/users/me", &headers, "");
    let seen = site.send("GET", "/action/3", &headers, "");
    assert!(seen.is("page_view", "ann-id", "session") && seen.claimed == VICTIM, "{seen:?}");
    // An answer that names its user also determines the user of its own request.
    let token = site.unbound("bob-id");
    let headers = [("Authorization", &*format!("Bearer {token}"))];
    let seen = site.send("POST", "/posts", &headers, "{}");
    assert!(seen.is("page_edit", "bob-id", "answer"), "{seen:?}");
    let seen = site.send("GET", "/action/3", &headers, "");
    assert!(seen.is("page_view", "bob-id", "session"), "{seen:?}");
    // The application accepts the request without a readable token.
    let seen = site.send("GET", "/action/1", &[("X-Other", "token")], "");
    assert_eq!(seen.captured, "anonymous", "the application has refused it: {seen:?}");
}

#[test]
fn a_logout_ends_a_session_and_a_401_does_not() {
    let site = Site::simple();
    let token = site.log_in("ann");
    let headers = [("Cookie", &*cookie(&token))];
    let seen = site.send("POST", "/csrf", &headers, "");
    assert!(seen.is("account_edit", "ann-id", "session"), "{seen:?}");
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
    // All processes are killed at once, as by the kernel when memory runs out. The sessions in the file are
    // restored.
    site.nginx.signal(Signal::STOP);
    for worker in site.nginx.workers() {
        site.nginx.signal_worker(worker, Signal::KILL);
    }
    assert!(site.nginx.kill().is_some_and(|status| !status.success()));
    site.nginx.start();
    is_bound(&site);
    let bytes = fs::read(&file).unwrap();
    // The file contains only hashes of tokens.
    assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()));
    let key = fs::metadata(file.with_extension("key")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
    // After an edit of the file, no false user appears, and nginx runs.
    site.nginx.quit();
    let edited = bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    fs::write(&file, edited).unwrap();
    site.nginx.start();
    let seen = site.send("GET", "/action/1", &headers, "");
    assert!(seen.user.starts_with("session-"), "{seen:?}");
}

#[test]
fn bound_sessions_stay_bound_over_a_binary_upgrade() {
    let mut site = Site::start(SERVER, |builder| builder.daemon().workers(2).http(STATE));
    let token = site.log_in("ann");
    let user = |site: &Site, token: &str| {
        site.send("GET", "/action/1", &[("Cookie", &cookie(token))], "").user
    };
    let is_bound = |site: &Site, token: &str| (0..16).all(|_| user(site, token) == "ann-id");
    let file = site.nginx.prefix().join("state");
    wait_until(SOON, "the state file", || fs::metadata(&file).is_ok_and(|about| about.len() > 0));
    let old = site.nginx.master_pid();
    site.nginx.usr2();
    // Old and new workers serve requests.
    assert!(is_bound(&site, &token));
    let other = site.log_in("ann");
    let pid = rustix::process::Pid::from_raw(old as i32).unwrap();
    rustix::process::kill_process(pid, Signal::QUIT).unwrap();
    site.nginx.wait_gone(old);
    assert!(is_bound(&site, &token));
    // Both soon know what either learns.
    wait_until(SOON, "the other's session", || is_bound(&site, &other));
    assert!(site.nginx.crashes(&[]).is_empty());
}

/// The workers' user owns the file, and can at worst delete what was learned.
#[test]
fn who_writes_the_state_file_forges_nobody() {
    let mut site = Site::start(SERVER, |builder| builder.http(STATE));
    let tokens: Vec<_> =
        (0..6).map(|n| (site.log_in(&format!("user{n}")), format!("user{n}-id"))).collect();
    let file = site.nginx.prefix().join("state");
    let ids = |bytes: &[u8]| {
        let is = |id: &String| bytes.windows(id.len()).any(|part| part == id.as_bytes());
        tokens.iter().filter(|(_, id)| is(id)).count()
    };
    wait_until(SOON, "the state file", || fs::read(&file).is_ok_and(|bytes| ids(&bytes) == 6));
    site.nginx.quit();
    let good = fs::read(&file).unwrap();
    // Each session's user is right, or unknown; returns how many are right.
    let known = |site: &Site| {
        let user = |(token, id): &(String, String)| {
            let seen = site.send("GET", "/action/1", &[("Cookie", &cookie(token))], "");
            assert!(seen.user == *id || seen.user.starts_with("session-"), "{id}: {seen:?}");
            seen.user == *id
        };
        tokens.iter().filter(|token| user(token)).count()
    };
    let swapped = {
        let text = good.clone();
        let place = |id: &str| text.windows(id.len()).position(|part| part == id.as_bytes());
        let mut text = text.clone();
        for (one, other) in [("user0-id", "user1-id"), ("user1-id", "user0-id")] {
            let at = place(one).unwrap();
            text[at..at + one.len()].copy_from_slice(other.as_bytes());
        }
        text
    };
    let each_byte = |step: usize| {
        let flip = |(at, byte): (usize, &u8)| if at % step == 7 { byte ^ 0x10 } else { *byte };
        good.iter().enumerate().map(flip).collect::<Vec<_>>()
    };
    let files = [
        ("as it was", good.clone(), 6..=6),
        ("twice", [&*good, &good].concat(), 6..=6),
        ("cut", good[..good.len() / 2].to_vec(), 1..=5),
        ("cut within an entry", good[..good.len() - 3].to_vec(), 5..=5),
        ("without its beginning", good[good.len() / 2..].to_vec(), 0..=5),
        ("users exchanged", swapped, 4..=4),
        ("a byte of each entry changed", each_byte(29), 0..=5),
        ("empty", Vec::new(), 0..=0),
        ("long", b"tirreno".repeat(100_000), 0..=0),
        ("zeros", vec![0; 1 << 20], 0..=0),
    ];
    for (what, bytes, wanted) in files {
        fs::write(&file, &bytes).unwrap();
        site.nginx.start();
        let found = known(&site);
        assert!(wanted.contains(&found), "{what}: {found} of 6 are known");
        site.nginx.quit();
    }
    // While nginx runs, it keeps what it knows, and saves what it learns next.
    fs::write(&file, &good).unwrap();
    site.nginx.start();
    for (n, change) in ["truncate", "garbage", "remove", "replace"].into_iter().enumerate() {
        match change {
            "truncate" => {
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(1).unwrap()
            }
            "garbage" => fs::write(&file, b"garbage".repeat(5000)).unwrap(),
            "remove" => fs::remove_file(&file).unwrap(),
            _ => {
                let other = file.with_extension("other");
                fs::write(&other, each_byte(31)).unwrap();
                fs::rename(other, &file).unwrap();
            }
        }
        assert_eq!(known(&site), 6, "{change}");
        let (name, id) = (format!("new{n}"), format!("new{n}-id"));
        let token = site.log_in(&name);
        wait_until(SOON, "the new session in the file", || {
            fs::read(&file).is_ok_and(|bytes| bytes.windows(id.len()).any(|p| p == id.as_bytes()))
        });
        site.nginx.quit();
        site.nginx.start();
        let seen = site.send("GET", "/action/1", &[("Cookie", &cookie(&token))], "");
        assert!(seen.is("page_view", &id, "session"), "{change}: {seen:?}");
        known(&site);
        site.nginx.quit();
        fs::write(&file, &good).unwrap();
        site.nginx.start();
    }
    assert!(site.nginx.crashes(&[]).is_empty());
}

/// Looks the user of a token up in the application itself.
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
        let text = written_lines(&site.nginx.prefix().join("audit.json"));
        let records = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let user = |record: serde_json::Value| {
            (record["user_id"].clone(), record["identity"].as_str().unwrap_or("").to_owned())
        };
        records.map(user).collect::<Vec<_>>()
    };
    // The event waits for the look-up of its user.
    site.send("GET", "/action/1", &headers, "");
    wait_until(SOON, "the event", || users(&site).len() == 1);
    assert_eq!(users(&site), [("ann-id".into(), "lookup".to_owned())]);
    let seen = site.send("GET", "/action/2", &headers, "");
    assert!(seen.is("page_view", "ann-id", "lookup") && seen.claimed == VICTIM, "{seen:?}");
    // Only tokens that the application has accepted are looked up, and never twice in a row.
    for _ in 0..3 {
        site.send("GET", "/action/3", &[("Cookie", &cookie("garbage"))], "");
        site.send("GET", "/action/4", &headers, "");
    }
    let asked = site.backend.requests();
    let asked = asked.iter().filter(|request| request.header("X-Tirreno-Lookup").is_some());
    assert_eq!(asked.count(), 1);
    assert_eq!(site.status()["identity"]["lookup"].as_u64(), Some(5));
}

#[test]
fn a_token_that_the_application_refuses_is_nobodys() {
    let lookup =
        LOOKUP.replace("send bearer;", "send cookie:MMAUTHTOKEN; cache 1ms; concurrency 1;");
    let lookup = lookup.replace("token_format [a-z0-9-]+;", "");
    let site = Site::start(&format!("tirreno_lookup chat; {SERVER}"), |b| b.http(&lookup));
    let token = site.unbound("ann-id");
    let open = |token: &str| site.send("GET", "/open", &[("Cookie", &cookie(token))], "");
    site.send("GET", "/action/1", &[("Cookie", &cookie(&token))], "");
    wait_until(SOON, "the look-up", || open(&token).is("page_view", "ann-id", "lookup"));
    site.sessions.lock().unwrap().remove(&token);
    wait_until(SOON, "the refusal", || open(&token).user.is_empty());
    // What the client has encoded would be two cookies.
    let victims = site.unbound(VICTIM);
    let encoded = format!("zz%3BMMAUTHTOKEN={victims}");
    site.sessions.lock().unwrap().insert(encoded.clone(), "eve-id".into());
    let seen = site.send("GET", "/action/1", &[("Cookie", &cookie(&encoded))], "");
    assert!(seen.user.starts_with("session-"), "{seen:?}");
    let asked = site
        .backend
        .requests()
        .into_iter()
        .filter_map(|r| r.header("X-Tirreno-Lookup").and(r.header("Cookie")));
    assert_eq!(asked.filter(|sent| sent.contains(';')).collect::<Vec<_>>(), [""; 0]);
}

/// A server whose first answer is this one, and has no end if it is none, and whose other answers name this user.
fn odd_once(first: Option<&'static str>, id: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || {
                let mut read = stream.read(&mut [0; 4096]);
                if number == 0 {
                    if let Some(first) = first {
                        let _ = stream.write_all(first.as_bytes());
                        return;
                    }
                    let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                    while sent.is_ok() {
                        thread::sleep(Duration::from_millis(200));
                        sent = stream.write_all(b"X-Field: value\r\n");
                    }
                    return;
                }
                let body = format!("{{\"id\":\"{id}\"}}");
                while read.is_ok_and(|read| read > 0) {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    let _ = stream.write_all((head + &body).as_bytes());
                    read = stream.read(&mut [0; 4096]);
                }
            });
        }
    });
    port
}

#[test]
fn an_application_that_answers_without_an_end_holds_up_no_further_question() {
    assert_asked_again(None);
}

#[test]
fn an_application_that_answers_what_is_no_status_holds_up_no_further_question() {
    assert_asked_again(Some("HTTP/1.1 000 x\r\nContent-Length: 0\r\n\r\n"));
}

/// After this answer to the first question, the second one is answered.
#[track_caller]
fn assert_asked_again(first: Option<&'static str>) {
    let application = format!("127.0.0.1:{}", odd_once(first, "bob-id"));
    let lookup = LOOKUP.replace("%BACKEND%", &application);
    let lookup = lookup.replace("send bearer;", "send bearer; concurrency 1; timeout 500ms;");
    let site = Site::start(&format!("tirreno_lookup chat; {SERVER}"), |b| b.http(&lookup));
    let ask = |token: &str| site.send("GET", "/action/1", &[("Cookie", &cookie(token))], "");
    let (first, second) = (site.unbound("ann-id"), site.unbound("bob-id"));
    let lookups = || site.status()["identity"]["lookup"].as_u64();
    ask(&first);
    ask(&second);
    wait_until(SOON, "the second answer", || {
        ask(&second);
        lookups() > Some(0)
    });
    let seen = ask(&second);
    assert!(seen.is("page_view", "bob-id", "lookup"), "{seen:?}");
    let log = site.nginx.error_log();
    assert!(!log.contains("internal error"), "{log}");
}

/// A text that all secrets of clients contain, and how one of them is sent in basic authentication.
const MARKS: [&str; 2] = ["5ecr3t", "dXNlcjo1ZWNyM3QtaW4tYmFzaWM="];

/// The secrets, by their kind.
const SECRETS: [(&str, &str); 8] = [
    ("a session's token in a cookie", "5ecr3t-token-in-cookie"),
    ("a token in Authorization", "5ecr3t-token-of-bearer"),
    ("access_token", "5ecr3t-token-of-access"),
    ("a token that is asked about", "5ecr3t-token-to-ask"),
    ("a password in JSON", "5ecr3t-in-json"),
    ("a password in a form", "5ecr3t-in-form"),
    ("a name that nobody has signed in with", "typed-5ecr3t-name"),
    ("a password in basic authentication", "dXNlcjo1ZWNyM3QtaW4tYmFzaWM="),
];

/// The readable and writable memory of a process, as in a core dump.
fn core_of(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let process = std::path::Path::new("/proc").join(pid.to_string());
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    let memory = fs::File::open(process.join("mem")).unwrap();
    let mut core = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
        let mut bytes = vec![0; (end - start) as usize];
        // A core dump does not contain unreadable memory either.
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            core.extend(bytes);
        }
    }
    core
}

/// The secrets in these bytes, each with the text around it.
fn found(bytes: &[u8]) -> Vec<String> {
    let places = MARKS.iter().flat_map(|mark| memchr::memmem::find_iter(bytes, mark));
    let around = |at: usize| {
        bytes[at.saturating_sub(60)..(at + 60).min(bytes.len())].escape_ascii().to_string()
    };
    places.map(around).collect()
}

/// The secrets of clients are only in the worker that serves the client, and only during the request.
#[test]
fn secrets_are_nowhere_but_in_their_request() {
    // With these settings, freed memory is overwritten, which nginx itself does not do.
    let overwritten = "glibc.malloc.tcache_count=0:glibc.malloc.perturb=165";
    for tunables in [overwritten, ""] {
        let server = format!(
            "tirreno_event account_login_fail POST /form body=php status=401 user=body:log;
             tirreno_event account_login_fail GET /basic status=401 if=header:Authorization user=basic
                 anonymous=on;
             {SERVER}"
        );
        let http = format!(
            "{STATE} {LOOKUP}
             tirreno_target spooled {{
                 url %SENSOR%; api_key test-key; interval 20ms; spool %PREFIX%/spool; repeat off;
             }}
             server {{
                 listen 127.0.0.1:%PORT1% reuseport;
                 tirreno_lookup chat;
                 location = /pid {{ access_log off; tirreno off; return 200 $pid; }}
                 {server}
             }}"
        );
        let site = Site::start(SERVER, |builder| {
            builder.workers(2).env("GLIBC_TUNABLES", tunables).http(&http)
        });
        let serving = send_secrets(&site);
        look_for_secrets(&site);
        let memory = core_of(serving);
        match tunables.is_empty() {
            false => {
                let found = found(&memory);
                assert!(found.is_empty(), "the serving worker's memory: {found:#?}");
            }
            // The client sends this token as a cookie; only the look-up sends it as a bearer token.
            true => {
                let bearer = memchr::memmem::find(&memory, b"Bearer 5ecr3t-token-to-ask");
                assert_eq!(bearer, None, "the look-up's copy of the token");
            }
        }
    }
}

/// Sends all secrets to the worker that is not the collector. Returns that worker once it has closed the
/// connections and all events are delivered.
fn send_secrets(site: &Site) -> u32 {
    let collects =
        |pid: &u32| site.nginx.thread_names(*pid).iter().any(|name| name == "tirreno-target");
    wait_until(SOON, "a collector", || site.nginx.workers().iter().any(&collects));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, site.nginx.port_n(1)));
    let mut serving = 0;
    let mut connections = Vec::new();
    wait_until(SOON, "connections to the other worker", || {
        let mut connection = Connection::open(address).unwrap();
        let answer = connection.request("GET", "/pid", &[], b"").unwrap();
        let pid: u32 = answer.text().parse().unwrap();
        if !collects(&pid) {
            serving = pid;
            connections.push(connection);
        }
        connections.len() == 4
    });
    let secret = |kind: &str| SECRETS.iter().find(|(own, _)| own.starts_with(kind)).expect(kind).1;
    let tokens = ["a session", "a token in", "access", "a token that"].map(secret);
    for (n, token) in tokens.into_iter().enumerate() {
        site.sessions.lock().unwrap().insert(token.into(), format!("user{n}-id"));
    }
    let [in_cookie, bearer, argument, asked] = tokens;
    let name = secret("a name");
    let json = format!(r#"{{"login_id":"{name}","password":"{}"}}"#, secret("a password in JSON"));
    let form = format!("log={name}&pwd={}", secret("a password in a form"));
    let basic = format!("Basic {}", secret("a password in basic"));
    let bearer = format!("Bearer {bearer}");
    let by_argument = |path: &str| format!("{path}?access_token={argument}");
    let before = site.lines().len();
    let mut sent = 0;
    for connection in &mut connections {
        let mut send = |method: &str, path: &str, headers: RequestHeaders<'_>, body: &str| {
            connection.request(method, path, headers, body.as_bytes()).unwrap();
            sent += 1;
        };
        let is_form = ("Content-Type", "application/x-www-form-urlencoded");
        send("POST", "/login", &[("X-Wrong", "1")], &json);
        send("POST", "/form", &[is_form], &form);
        send("GET", "/basic", &[("Authorization", &basic)], "");
        send("POST", "/posts", &[("Cookie", &cookie(in_cookie))], "{}");
        send("GET", "/action/1", &[("Cookie", &cookie(in_cookie))], "");
        send("GET", "/users/me", &[("Authorization", &bearer)], "");
        send("GET", "/action/2", &[("Authorization", &bearer)], "");
        send("GET", &by_argument("/action/3"), &[], "");
        send("GET", &by_argument("/users/me"), &[], "");
        send("GET", "/action/4", &[("Cookie", &cookie(asked))], "");
        send("GET", "/open", &[], "");
    }
    drop(connections);
    wait_until(SOON, "the access log", || site.lines().len() >= before + sent);
    wait_until(SOON, "the look-ups", || site.status()["identity"]["lookup"].as_u64() >= Some(4));
    wait_until(SOON, "all events", || {
        let targets = &site.status()["targets"];
        ["tirreno", "audit", "spooled"].iter().all(|name| {
            let count = |what: &str| targets[name][what].as_u64();
            count("pending") == Some(0) && count("captured") >= Some(30)
        })
    });
    let state = site.nginx.prefix().join("state");
    wait_until(SOON, "the state file", || fs::read(&state).is_ok_and(|bytes| !bytes.is_empty()));
    wait_until(SOON, "the connections' end", || {
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X} ", site.nginx.port_n(1));
        // 01: established, 08: the client has closed it.
        !sockets.lines().any(|line| {
            let local = line
                .split_whitespace()
                .nth(1)
                .is_some_and(|own| format!("{own} ").ends_with(&port));
            local && matches!(line.split_whitespace().nth(3), Some("01" | "08"))
        })
    });
    serving
}

/// No secret is in the collector's memory, shared memory, sent events, files, logs and the status.
fn look_for_secrets(site: &Site) {
    let mut remains = vec![("shared memory".to_owned(), site.nginx.shared_memory())];
    for pid in site.nginx.workers() {
        if site.nginx.thread_names(pid).iter().any(|name| name == "tirreno-target") {
            remains.push(("the collector's memory".to_owned(), core_of(pid)));
        }
    }
    assert_eq!(remains.len(), 2, "one collects");
    for format in ["json", "prometheus", "html"] {
        let path = format!("/status?format={format}");
        let status = client::get(site.nginx.port_n(9), &path, &[("Accept", "text/html")]);
        remains.push((path, status.unwrap().body));
    }
    for post in site._sensor.requests() {
        remains.push(("what the sensor got".into(), post.body));
        remains.extend(post.headers);
    }
    let mut directories = vec![site.nginx.prefix().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                remains.push((path.display().to_string(), bytes));
            }
        }
    }
    for wanted in ["/spool", "/state", "/error.log", "/audit.json", "/seen.log"] {
        assert!(remains.iter().any(|(name, _)| name.contains(wanted)), "{wanted}");
    }
    for (name, bytes) in &remains {
        let found = found(bytes);
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// Two hosts behind a balancer, each of which learns alone: the percentage of a working day's events with a
/// known user. `docs/identity.md` has the numbers.
#[test]
fn two_hosts_behind_a_balancer_know_most_users() {
    // The requests of each person after the sign-in, in a random order: the events that a web page sends,
    // and how often it asks for the user.
    let day = [("GET", "/users/me", 2), ("POST", "/posts", 8), ("GET", "/action/1", 33)];
    let share = |lookups: bool| {
        let server = match lookups {
            true => format!("tirreno_lookup chat; {SERVER}"),
            false => SERVER.to_owned(),
        };
        // The whole day takes seconds here, so the limits are higher.
        let lookup = LOOKUP.replace("send bearer;", "send bearer; rate 1000r/s; concurrency 16;");
        let lookup = format!("{lookup} keepalive_requests 100000;");
        let one = Site::start(&server, |builder| builder.http(STATE).http(&lookup));
        let mut other = Nginx::builder()
            .sensor(&one._sensor.url())
            .var("BACKEND", &one.backend.address())
            .http(HTTP)
            .http(STATE)
            .http(&lookup)
            .server(&server)
            .build();
        // The other host has the same key, with the same owner and mode.
        fs::copy(one.nginx.prefix().join("state.key"), other.prefix().join("state.key")).unwrap();
        other.start();
        let hosts = [&one.nginx, &other];
        let mut connections = hosts.map(|nginx| {
            Connection::open(SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.port()))).unwrap()
        });
        let mut random = fastrand::Rng::with_seed(7);
        let mut sent = 0;
        for person in 0..100 {
            let body = format!(r#"{{"login_id":"p{person}"}}"#);
            let host = random.usize(..2);
            let answer = connections[host].request("POST", "/login", &[], body.as_bytes()).unwrap();
            let token = format!("Bearer {}", answer.header("Token").unwrap());
            let mut requests: Vec<_> = day
                .iter()
                .flat_map(|(method, path, times)| vec![(*method, *path); *times])
                .collect();
            random.shuffle(&mut requests);
            // When the page has loaded, it asks for the user.
            requests.sort_by_key(|(_, path)| *path != "/users/me");
            requests[1..].rotate_left(20);
            sent += 1 + requests.iter().filter(|(_, path)| *path != "/users/me").count();
            for (method, path) in requests {
                let host = random.usize(..2);
                let headers = [("Authorization", &*token)];
                connections[host].request(method, path, &headers, b"").unwrap();
            }
        }
        if !lookups {
            // Both hosts give an unknown session the same name.
            let token = one.unbound("p-id");
            for connection in &mut connections {
                let headers = [("Authorization", &*format!("Bearer {token}"))];
                connection.request("GET", "/action/1", &headers, b"").unwrap();
            }
        }
        let records = || {
            let text = |nginx: &&Nginx| written_lines(&nginx.prefix().join("audit.json"));
            let all = hosts.iter().map(text).collect::<String>();
            all.lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .collect::<Vec<_>>()
        };
        let all = sent + if lookups { 0 } else { 2 };
        wait_until(SOON, "all records", || records().len() >= all);
        let mut records = records();
        assert_eq!(records.len(), all);
        if !lookups {
            let user = |nginx: &Nginx| {
                let text = fs::read_to_string(nginx.prefix().join("audit.json")).unwrap();
                let last: serde_json::Value =
                    serde_json::from_str(text.lines().last().unwrap()).unwrap();
                last["user_id"].clone()
            };
            let name = user(&one.nginx);
            assert_eq!(name, user(&other));
            records.retain(|record| record["user_id"] != name);
            assert_eq!(records.len(), sent);
        }
        let known = records.iter().filter(|record| {
            let user = record["user_id"].as_str().unwrap();
            // Each user is right, or unknown.
            assert!(user.starts_with('p') || user.starts_with("session-"), "{record}");
            user.starts_with('p')
        });
        known.count() as f64 * 100. / sent as f64
    };
    let (without, with) = (share(false), share(true));
    println!("{without:.1} % without look-ups, {with:.1} % with them");
    assert!((90. ..92.).contains(&without) && with == 100., "{without} {with}");
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
fn an_event_that_waits_while_nginx_exits_goes_without_the_answer() {
    let server = format!("tirreno_lookup chat; {SERVER}");
    // It accepts questions and answers none.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let lookup = LOOKUP.replace("%BACKEND%", &silent.local_addr().unwrap().to_string());
    let mut site = Site::start(&server, |builder| builder.http(&lookup));
    let token = site.unbound("ann-id");
    let seen = site.send("GET", "/action/1", &[("Cookie", &*cookie(&token))], "");
    assert!(seen.is("page_view", &seen.user, "none") && seen.captured == "1", "{seen:?}");
    site.nginx.quit();
    let text = fs::read_to_string(site.nginx.prefix().join("audit.json")).unwrap();
    let users = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let users: Vec<_> = users.map(|record| record["user_id"].clone()).collect();
    assert_eq!(users, [seen.user]);
}

#[test]
fn a_session_stands_for_its_user_where_no_rule_binds_any() {
    let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
    let nginx = Nginx::builder()
        .sensor(&sensor.url())
        .var("BACKEND", &backend.address())
        .http("tirreno_target { url %SENSOR%; api_key test-key; interval 50ms; }")
        .server(
            "tirreno on; tirreno_default_event off; tirreno_session cookie:PHPSESSID;
             tirreno_event page_view GET /profile session=required;
             location / { proxy_pass http://%BACKEND%; }",
        )
        .start();
    for _ in 0..2 {
        let cookie = [("Cookie", "PHPSESSID=abcdefghijklm")];
        client::get(nginx.port(), "/profile", &cookie).unwrap();
    }
    let stored = sensor.wait_stored(2, SOON).unwrap();
    let [first, second] = [0, 1].map(|n| &stored[n].user_name);
    assert!(first.starts_with("session-") && first == second, "{first} {second}");
}

/// WordPress has cookies for its pages and for their administration: the first that it accepts counts.
#[test]
fn junk_in_one_cookie_hides_no_other() {
    let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
    let rules = "
        tirreno_verify session;
        tirreno_event account_login POST /login
            user=set_cookie:page_*~^(\\w+) bind=set_cookie:page_*~^(\\w+);
        tirreno_event account_logout POST /logout user=session session=required;
        tirreno_event page_edit POST /named user=session bind=answer:id session=required;
        tirreno_event page_view GET /page session=required;
        location / { proxy_pass http://%BACKEND%; }";
    let nginx = Nginx::builder()
        .sensor(&sensor.url())
        .var("BACKEND", &backend.address())
        .http("tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; } tirreno on;")
        .server(&format!("tirreno_session cookie:page_* cookie:admin_*; {rules}"))
        .http(&format!(
            "server {{ listen 127.0.0.1:%PORT1%; tirreno_session cookie:page_a cookie:admin_a; {rules} }}"
        ))
        .start();
    let user = |port: u16, method: &str, path: &str, cookies: &str| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut connection = Connection::open(address).unwrap();
        connection.request(method, path, &[("Cookie", cookies)], b"").unwrap();
        let user = sensor.wait_stored(1, SOON).unwrap()[0].user_name.clone();
        sensor.forget();
        user
    };
    let login = "/login?set_cookie=page_a%3Dann-1&set_cookie=admin_a%3Dann-2";
    for port in [nginx.port(), nginx.port_n(1)] {
        assert_eq!(user(port, "POST", login, ""), "ann");
        for cookies in ["page_a=ann-1", "admin_a=ann-2", "admin_a=x; page_a=ann-1"] {
            assert_eq!(user(port, "GET", "/page", cookies), "ann", "{cookies}");
        }
    }
    let port = nginx.port();
    // An answer tells of the first cookie, not of the one whose user is known: else the victim's name would be
    // ann's later, or ann's session nobody's.
    let hidden = "page_a=junk; admin_a=ann-2";
    for (method, path) in [
        ("GET", "/page"),
        ("POST", "/named?body={%22id%22:%22victim%22}"),
        ("POST", "/logout"),
        ("GET", "/page?set_cookie=page_a%3D;%20Max-Age%3D0"),
    ] {
        user(port, method, path, hidden);
        assert_eq!(user(port, "GET", "/page", hidden), "ann", "{method} {path}");
        assert_eq!(user(port, "GET", "/page", "admin_a=ann-2"), "ann", "{method} {path}");
    }
    assert!(user(port, "GET", "/page", "page_a=junk").starts_with("session-"));
    // Cookies with a name of their own count in the order of the application.
    assert!(user(nginx.port_n(1), "GET", "/page", hidden).starts_with("session-"));
    // A logout with the first cookie ends that one.
    user(port, "POST", "/logout", "page_a=ann-1; admin_a=x");
    assert!(user(port, "GET", "/page", "page_a=ann-1").starts_with("session-"));
}

#[test]
fn what_cannot_work_is_an_error_of_the_configuration() {
    let server = |text: &str| format!("server {{ listen 127.0.0.1:%PORT8%; {text} }}");
    let on = "tirreno_target { url http://127.0.0.1:1/sensor/; api_key k; } ";
    let presets = |builder: Builder| {
        let session = |name: &str| format!("tirreno_session cookie:{name};");
        builder.file("a.conf", &session("a")).file("b.conf", &session("b"))
    };
    for (http, error) in [
        (server("tirreno on; tirreno_verify session;"), "needs \"tirreno_session\""),
        (server("tirreno_verify session dry_run;"), "needs \"tirreno_session\""),
        (
            server("tirreno on; tirreno_verify session; tirreno_session cookie:a;"),
            "needs a rule with \"bind=\", or \"tirreno_lookup\"",
        ),
        (
            // No other directive uses the block.
            format!(
                "tirreno_identity x {{ url http://a/; map id userName; }} {}",
                server("tirreno on; tirreno_verify session; tirreno_session cookie:a;")
            ),
            "needs a rule with \"bind=\", or \"tirreno_lookup\"",
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
        (
            "tirreno_identity x { token_format \"\"; }".into(),
            "in \"token_format\" directive, it must be a regular expression of a whole token",
        ),
        (
            "tirreno_identity x { map a..b userName; }".into(),
            "in \"map\" directive, it must be a field of the answer, like \"id\" or \"user.id\"",
        ),
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
        // Two presets at one level: the second one's `tirreno_session` applies, but the rules of both do.
        (
            server("tirreno on; tirreno_user x; include %PREFIX%/a.conf; include %PREFIX%/b.conf;"),
            "beside that in %PREFIX%/a.conf:1: if they are of two applications, add \"tirreno_realm\" to \
             each, in %PREFIX%/b.conf:1",
        ),
    ] {
        let nginx = presets(Nginx::builder()).http(on).http(&http).build();
        let warning = warning.replace("%PREFIX%", nginx.prefix().to_str().unwrap());
        let (good, output) = nginx.test();
        assert!(good && output.contains(&warning), "{http}: {output}");
    }
    for http in [
        server("tirreno on; tirreno_user verified $cookie_id;"),
        server("tirreno on; tirreno_user $cookie_id; tirreno_verify answer;"),
        server(
            "tirreno on; tirreno_user x; location /a { tirreno_realm a; tirreno_session cookie:a; }
             location /b { tirreno_realm b; tirreno_session cookie:b; }",
        ),
        server(
            "tirreno on; tirreno_user x; tirreno_realm a; include %PREFIX%/a.conf;
             include %PREFIX%/b.conf;",
        ),
        server("tirreno on; tirreno_user x; tirreno_session cookie:a; tirreno_session cookie:b;"),
    ] {
        let (good, output) = presets(Nginx::builder()).http(on).http(&http).build().test();
        assert!(good && !output.contains("warn"), "{http}: {output}");
    }
}
