//! The presets: which requests of an application are events, and of which users.
//!
//! Each test has a table of requests. nginx passes them to an application that gives the answers in the
//! table; the stored events are then compared line by line.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tirreno_tests::backend::Backend;
use tirreno_tests::cases::{self, CASE, is_alias};
use tirreno_tests::client::{self, Connection, RequestHeaders, WebSocket};
use tirreno_tests::nginx::{Builder, Nginx};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::status::Row;
use tirreno_tests::wait::{SOON, wait_until};

/// Marks data that must not leave the request.
const SECRET: &str = "5ecret";

/// Passes requests on. The instructions for the backend's answer come in a header, because a query
/// argument, which the backend reads, would be in the event's URL.
const LOCATION: &str = "location / {
    proxy_http_version 1.1;
    proxy_set_header Upgrade    $http_upgrade;
    proxy_set_header Connection $http_connection;
    proxy_pass http://%BACKEND%/?$http_x_script;
}";

/// An application's table, and the names in it.
struct App {
    /// The table: requests, the application's answers, the clients, and the events with their users.
    /// Tirreno stores a refused page as `page_error`.
    name: &'static str,
    /// Clients: a name in the table, and their headers.
    clients: &'static [(&'static str, RequestHeaders<'static>)],
    /// The parts of an answer besides its status: a name in the table, and the instructions for the
    /// backend.
    answers: &'static [(&'static str, &'static str)],
    /// Lines before the table, in which sessions begin.
    before: &'static str,
    /// The body of requests that have one; `bodies` has the exceptions, by client.
    body: &'static str,
    bodies: &'static [(&'static str, &'static str)],
}

/// nginx with presets, an application, and the sensor that gets the events.
struct Site {
    app: &'static App,
    sensor: Sensor,
    nginx: Nginx,
    /// How many tables were checked.
    checked: Cell<usize>,
    _backend: Backend,
}

/// A line of a table.
struct Line<'t> {
    text: &'t str,
    method: &'t str,
    target: &'t str,
    status: u16,
    script: String,
    /// Whether nginx refuses the request line, and reads no header after it.
    is_unread: bool,
    client: RequestHeaders<'static>,
    body: &'static str,
    /// The event's type and user.
    event: Option<(&'t str, &'t str)>,
}

fn presets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf/presets")
}

/// The preset of that name, as text.
fn preset(name: &str) -> String {
    fs::read_to_string(presets().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

impl Site {
    /// With `server` in the server at `%PORT%`, before the location that passes requests on; `more`
    /// adds to the rest.
    fn start(app: &'static App, server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
        let builder = Nginx::builder()
            .sensor(&sensor.url())
            .var("BACKEND", &backend.address())
            .http(&format!(
                "tirreno_target {{
                     url %SENSOR%; api_key test-key; interval 20ms; spool %PREFIX%/spool;
                     login_fail_delay 0; repeat off;
                 }}
                 keepalive_requests 100000;
                 {}",
                cases::LOG
            ));
        let builder = more(builder.server(&format!("{server} {LOCATION}")));
        Self { app, sensor, nginx: builder.start(), checked: Cell::new(0), _backend: backend }
    }

    /// Sends the lines before the table, with `prefix` before their paths.
    #[track_caller]
    fn begin(&self, port: u16, prefix: &str) {
        self.check(port, prefix, self.app.before);
    }

    /// Sends the requests of a table to the port, with `prefix` before their paths, compares the events,
    /// and returns the number of requests.
    #[track_caller]
    fn check(&self, port: u16, prefix: &str, table: &str) -> usize {
        let lines: Vec<_> = lines(table).map(|line| self.app.read(line)).collect();
        let round = self.checked.replace(self.checked.get() + 1);
        let name = |n: usize| format!("{round}-{n}");
        let mut wire = Wire { port, connection: None };
        for (n, line) in lines.iter().enumerate() {
            wire.send(line, &format!("{prefix}{}", line.target), &name(n));
        }
        let names: Vec<_> = (0..lines.len()).map(name).collect();
        let read = names.iter().zip(&lines).filter(|(_, line)| !line.is_unread);
        let read = read.map(|(name, _)| name.as_str());
        let events = cases::events(&self.nginx, &self.sensor, read);
        assert!(!events.contains_key("-"), "what nginx does not read is no event");
        assert!(self.sensor.lost().is_empty(), "{:?}", self.sensor.lost());
        let mut wrong = String::new();
        for (name, line) in names.iter().zip(&lines) {
            let expected: Vec<_> = line
                .event
                .map(|(kind, user)| (kind, if user == "-" { "N/A" } else { user }))
                .into_iter()
                .collect();
            let found = events.get(name).into_iter().flatten();
            let found: Vec<_> = found
                .map(|event| {
                    assert!(event.flagged.is_empty(), "{}", event.to_line());
                    // The name for an unknown account differs in each run.
                    let user = match &*event.user_name {
                        user if is_alias(user) => "unknown",
                        user if user.starts_with("session-") => "session",
                        user => user,
                    };
                    (&*event.event_type, user)
                })
                .collect();
            if found != expected {
                wrong += &format!("\n{}: {found:?}", line.text);
            }
        }
        assert!(wrong.is_empty(), "under {prefix:?}:{wrong}");
        lines.len()
    }

    /// The bytes that are searched for secrets, each with its name: all that the sensor received, and
    /// nginx's files and shared memory.
    fn remains(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = self.nginx.remains(self.nginx.prefix());
        for request in self.sensor.requests() {
            let head = request
                .headers
                .iter()
                .flat_map(|(name, value)| [name.as_bytes(), b": ", value, b"\n"].concat());
            let bytes =
                [request.path.as_bytes(), b"\n", &*head.collect::<Vec<u8>>(), &request.body];
            all.push(("the sensor".to_owned(), bytes.concat()));
        }
        all
    }
}

impl App {
    /// Its table, in which `<many>` stands for as many arguments as PHP reads.
    fn table(&self) -> String {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/presets");
        let path = data.join(format!("{}.txt", self.name));
        let table = fs::read_to_string(&path);
        let table = table.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        table.replace("<many>", &"a&".repeat(1000))
    }

    /// Parses `METHOD TARGET STATUS[+ANSWER…] CLIENT TYPE USER`. Without an event, type and user are `- -`.
    /// With the answer `unread`, nginx refuses the request line.
    fn read<'t>(&self, text: &'t str) -> Line<'t> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [method, target, answer, client, kind, user] = *words else {
            panic!("{} words in {text:?}", words.len());
        };
        let mut answers = answer.split('+');
        let status: u16 = answers.next().and_then(|s| s.parse().ok()).expect(text);
        let mut script = format!("status={status}");
        let mut is_unread = false;
        for name in answers {
            if name == "unread" {
                is_unread = true;
                continue;
            }
            let answer = self.answers.iter().find(|(n, _)| *n == name);
            script += &format!("&{}", answer.unwrap_or_else(|| panic!("{name} in {text:?}")).1);
        }
        let own = self.bodies.iter().find(|(name, _)| *name == client);
        let body = own.map_or(self.body, |(_, body)| body);
        let client = self.clients.iter().find(|(name, _)| *name == client);
        let client = client.unwrap_or_else(|| panic!("the client in {text:?}")).1;
        let event = (kind != "-").then_some((kind, user));
        Line { text, method, target, status, script, is_unread, client, body, event }
    }
}

/// A connection to nginx, opened again where it ends.
struct Wire {
    port: u16,
    connection: Option<Connection>,
}

impl Wire {
    fn send(&mut self, line: &Line<'_>, target: &str, case: &str) {
        let mut headers = vec![("X-Script", &*line.script), (CASE, case)];
        headers.extend_from_slice(line.client);
        if line.status == 101 {
            let socket = WebSocket::open(self.port, target, &headers);
            assert_eq!(socket.expect(line.text).echo("hello").expect(line.text), "hello");
            return;
        }
        let connection = self.connection.get_or_insert_with(|| {
            Connection::open(SocketAddr::from(([127, 0, 0, 1], self.port))).expect("nginx listens")
        });
        let body = if matches!(line.method, "POST" | "PUT") { line.body } else { "" };
        if !body.is_empty() && !body.starts_with('{') {
            headers.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        let answer = connection.request(line.method, target, &headers, body.as_bytes());
        assert_eq!(answer.expect(line.text).status, line.status, "{}", line.text);
        if connection.ended() {
            self.connection = None;
        }
    }
}

/// The lines of a table that are no comments.
fn lines(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The headers that every client of Mattermost sends, followed by `own`.
macro_rules! mattermost_client {
    ($($own:expr),*) => {
        &[
            ("Referer", "https://u:5ecret@chat.example.com/x?token=5ecret&code=5ecret#token=5ecret"),
            $($own),*
        ]
    };
}

/// victim:5ecret
const VICTIMS_BASIC: &str = "Basic dmljdGltOjVlY3JldA==";

const XHR: (&str, &str) = ("X-Requested-With", "XMLHttpRequest");

const MATTERMOST: App = App {
    name: "mattermost",
    clients: &[
        // The web page and the desktop application.
        (
            "ann",
            mattermost_client![
                XHR,
                ("Cookie", "MMAUTHTOKEN=5ecretann; MMUSERID=ann; MMCSRF=5ecret"),
                ("X-CSRF-Token", "5ecret")
            ],
        ),
        // A client with the cookies of an earlier, unknown session.
        ("old", mattermost_client![XHR, ("Cookie", "MMUSERID=old; MMAUTHTOKEN=5ecretold")]),
        // Signed out: no user.
        ("nobody", mattermost_client![XHR]),
        ("switch", mattermost_client![XHR]),
        // A bot, mmctl, with an unknown token.
        ("token", mattermost_client![("Authorization", "Bearer 5ecrettoken")]),
        // A mobile application that sends the cookie of another user.
        (
            "phone",
            mattermost_client![("Authorization", "BEARER 5ecretphone"), ("Cookie", "MMUSERID=old")],
        ),
        // Names a user without having a session.
        ("forged", mattermost_client![("Cookie", "MMUSERID=victim; MMAUTHTOKEN=forged5ecret")]),
        ("claim", mattermost_client![("Cookie", "MMUSERID=victim")]),
        (
            "alone-bearer",
            mattermost_client![
                ("Authorization", "Bearer forged5ecret"),
                ("Cookie", "MMUSERID=victim")
            ],
        ),
        ("alone-basic", mattermost_client![("Authorization", VICTIMS_BASIC)]),
        // Ann, who claims to be another user.
        (
            "mixed-cookie",
            mattermost_client![XHR, ("Cookie", "MMUSERID=victim; MMAUTHTOKEN=5ecretann")],
        ),
        (
            "mixed-twice",
            mattermost_client![
                XHR,
                (
                    "cOOKIE",
                    "MMUSERID=victim; MMAUTHTOKEN=5ecretann; MMAUTHTOKEN=forged5ecret; MMUSERID=ann"
                )
            ],
        ),
        (
            "mixed-bearer",
            mattermost_client![
                ("AUTHORIZATION", "bearer\t5ecretphone"),
                ("Cookie", "MMUSERID=victim")
            ],
        ),
        (
            "mixed-basic",
            mattermost_client![
                XHR,
                ("Authorization", VICTIMS_BASIC),
                ("Cookie", "MMAUTHTOKEN=5ecretann; MMUSERID=victim")
            ],
        ),
    ],
    answers: &[
        (
            "cookies",
            "header=Token:5ecret&set_cookie=MMAUTHTOKEN%3D5ecret&set_cookie=MMUSERID%3Dnew\
             &set_cookie=MMCSRF%3D5ecret&body=5ecret",
        ),
        (
            "ann",
            "header=Token:5ecretann&set_cookie=MMAUTHTOKEN%3D5ecretann\
             &set_cookie=MMUSERID%3Dann&body={%22id%22:%22ann%22,%22username%22:%22ann%22}",
        ),
        (
            "phone",
            "header=Token:5ecretphone\
             &body={%22id%22:%22ann%22,%22username%22:%22ann%22}",
        ),
        ("token", "header=Token:5ecret&body=5ecret"),
        // An answer to a mobile application.
        (
            "mobile",
            "header=Token:5ecretmobile\
             &body={%22id%22:%22new%22,%22username%22:%22new%22}",
        ),
        ("mine", "body={%22id%22:%22p1%22,%22user_id%22:%22ann%22}"),
        ("ended", "set_cookie=MMAUTHTOKEN%3D;%20Max-Age%3D0"),
        (
            "expired",
            "set_cookie=MMUSERID%3Dold;%20Max-Age%3D0&set_cookie=MMAUTHTOKEN%3D;%20Max-Age%3D0",
        ),
    ],
    before: "
        POST /api/v4/users/login 200+ann   nobody account_login ann
        POST /api/v4/users/login 200+phone nobody account_login ann
    ",
    body: r#"{"login_id": "ann", "password": "5ecret", "token": "5ecret"}"#,
    bodies: &[(
        "switch",
        r#"{"current_service":"email","new_service":"gitlab","email":"ann@example.com"}"#,
    )],
};

#[test]
fn mattermost() {
    let server = format!("tirreno on; {}", preset("mattermost.conf"));
    let site = Site::start(&MATTERMOST, &server, |builder| {
        builder.http(&format!(
            "server {{
                 listen 127.0.0.1:%PORT1%;
                 {server}
                 tirreno_event_prefix /chat/;
                 tirreno_realm chat;
                 {LOCATION}
             }}
             server {{
                 listen 127.0.0.1:%PORT2%;
                 location = /status {{ tirreno_status; }}
             }}"
        ))
    });
    // Nobody has signed in yet.
    let unknown = "
        POST /api/v4/users/login 401 nobody account_login_fail unknown
        POST /api/v4/users/login 401 old    account_login_fail unknown
    ";
    let (port, table) = (site.nginx.port(), MATTERMOST.table());
    site.check(port, "", unknown);
    site.begin(port, "");
    let count = site.check(port, "", &table);
    assert!(count >= 150, "{count} requests");
    let stored = site.sensor.stored();
    assert!(stored.iter().all(|event| event.user_name != "old" && event.user_name != "victim"));
    no_secret_is_left(&site);

    // Under a subpath the same, and nothing above it.
    let chat = site.nginx.port_n(1);
    let tried: Vec<_> = table.lines().filter(|line| !line.contains("../../")).collect();
    site.begin(chat, "/chat");
    site.check(chat, "/chat", &tried.join("\n"));
    no_secret_is_left(&site);
    let request = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    let above = lines(&table).filter(|line| line.ends_with(" ann"));
    let above: String = above.map(|line| request(line) + " - -\n").collect();
    site.check(chat, "", &above);

    // These events wait on disk while the sensor is down.
    site.sensor.refuse();
    let mut wire = Wire { port, connection: None };
    for line in lines(&table).map(|line| MATTERMOST.read(line)) {
        wire.send(&line, line.target, "-");
    }
    let last = "PUT /api/v4/teams/the_last_one 200 ann page_edit ann";
    let login = MATTERMOST.read("POST /api/v4/users/login 200+ann nobody account_login ann");
    wire.send(&login, login.target, "-");
    let last = MATTERMOST.read(last);
    wire.send(&last, last.target, "-");
    let is_spooled = |(name, bytes): &(String, Vec<u8>)| {
        let last = b"the_last_one";
        name.contains("/spool") && bytes.windows(last.len()).any(|window| window == last)
    };
    wait_until(SOON, "the spool", || site.remains().iter().any(is_spooled));
    no_secret_is_left(&site);
    site.sensor.listen_again();
}

#[test]
fn a_sign_in_that_mattermost_wants_a_code_for_is_no_failure() {
    let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
    let nginx = Nginx::builder()
        .sensor(&sensor.url())
        .var("BACKEND", &backend.address())
        .http("tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }")
        .server(&format!(
            "tirreno on; {} location = /status {{ tirreno_status; }} {LOCATION}",
            preset("mattermost.conf")
        ))
        .start();
    let sign_in = |body: &str, script: &str| {
        let headers = [("Content-Type", "application/json"), ("X-Script", script)];
        client::post(nginx.port(), "/api/v4/users/login", &headers, body.as_bytes()).unwrap()
    };
    // The error ids after which Mattermost's web page and apps ask for the code, in all versions.
    let questions = [
        "mfa.validate_token.authenticate.app_error",
        "ent.mfa.validate_token.authenticate.app_error",
        "api.user.check_user_mfa.bad_code.app_error",
    ];
    let good = "body={%22id%22:%22ann%22}&header=Token:5ecretann";
    // Mattermost may read a code of these.
    let long = format!(r#""token": "{}""#, "1".repeat(9000));
    let unreadable = [
        r#""token": "", "token": "123456""#,
        r#""TOKEN": "123456""#,
        r#""to\u212aen": "123456""#,
        &long,
    ];
    for code in unreadable {
        let refused = format!("status=401&body={{%22id%22:%22{}%22}}", questions[0]);
        let body = format!(r#"{{"login_id": "ann", "password": "5ecret", {code}}}"#);
        assert_eq!(sign_in(&body, &refused).status, 401);
    }
    for (n, question) in questions.iter().enumerate() {
        let refused = format!("status=401&body={{%22id%22:%22{question}%22}}");
        // At first, a browser sends no code, and an app an empty one.
        let code = if n == 0 { "" } else { r#", "token": """# };
        let first = format!(r#"{{"login_id": "ann", "password": "5ecret"{code}}}"#);
        let with =
            |code| format!(r#"{{"login_id": "ann", "password": "5ecret", "token": "{code}"}}"#);
        assert_eq!(sign_in(&first, &refused).status, 401);
        assert_eq!(sign_in(&with("123456"), &refused).status, 401);
        assert_eq!(sign_in(&with("654321"), good).status, 200);
    }
    let count = questions.len() as u64;
    let row = Row::settled(&nginx, "tirreno");
    let more = unreadable.len() as u64;
    let expected = (3 * count + more, 2 * count + more, count);
    assert_eq!((row.captured, row.delivered, row.withdrawn), expected);
    let failures = sensor.stored();
    let failures = failures.iter().filter(|event| event.event_type == "account_login_fail").count();
    assert_eq!(failures, questions.len() + unreadable.len(), "a wrong code is a failure");
}

/// Searches all bytes that remain of the requests for secrets.
#[track_caller]
fn no_secret_is_left(site: &Site) {
    let mut remains = site.remains();
    for (format, accept) in [("json", "*/*"), ("prometheus", "*/*"), ("html", "text/html")] {
        let path = format!("/status?format={format}");
        let answer = client::get(site.nginx.port_n(2), &path, &[("Accept", accept)]).unwrap();
        assert_eq!(answer.status, 200, "{format}");
        remains.push((path, answer.body));
    }
    assert!(remains.iter().any(|(name, _)| name.contains("/spool")), "there is a spool");
    assert!(remains.iter().any(|(name, _)| name.ends_with("/logs/error.log")), "there is a log");
    for (name, bytes) in remains {
        let found = bytes.windows(SECRET.len()).position(|window| window == SECRET.as_bytes());
        let around = found.map(|at| {
            let around = at.saturating_sub(80)..(at + 80).min(bytes.len());
            String::from_utf8_lossy(&bytes[around]).into_owned()
        });
        assert_eq!(around, None, "{name}");
    }
}

/// A person at work: the requests of the web page, and how many.
const WORKING_DAY: &[(usize, &str)] = &[
    (1, "POST /api/v4/users/login 200+ann nobody - -"),
    (1, "GET /team/channels/town-square 200 ann - -"),
    (40, "GET /static/main.js 200 ann - -"),
    (1, "GET /api/v4/websocket 101 ann - -"),
    (3, "GET /api/v4/config/client?format=old 200 ann - -"),
    (2, "GET /api/v4/users/me 200 ann - -"),
    (2, "GET /api/v4/users/me/teams/unread 200 ann - -"),
    (30, "GET /api/v4/users/u1/image 200 ann - -"),
    (20, "GET /api/v4/channels/c1/posts?since=1 200 ann - -"),
    (15, "POST /api/v4/channels/members/me/view 200 ann - -"),
    (15, "POST /api/v4/channels/c1/members/ids 200 ann - -"),
    (60, "POST /api/v4/users/status/ids 200 ann - -"),
    (10, "POST /api/v4/users/ids 200 ann - -"),
    (25, "POST /api/v4/users/ann/typing 200 ann - -"),
    (10, "PUT /api/v4/users/ann/preferences 200 ann - -"),
    (8, "POST /api/v4/posts 201 ann - -"),
    (2, "PUT /api/v4/posts/p1/patch 200 ann - -"),
    (1, "DELETE /api/v4/posts/p1 200 ann - -"),
    (1, "POST /api/v4/files 201 ann - -"),
    (10, "GET /api/v4/files/f1/thumbnail 200 ann - -"),
    (2, "GET /api/v4/files/f1 200 ann - -"),
    (3, "POST /api/v4/teams/t1/posts/search 200 ann - -"),
    (20, "GET /plugins/playbooks/api/v0/runs 200 ann - -"),
    (12, "POST /api/v4/client_perf 200 ann - -"),
    (1, "POST /api/v4/users/logout 200 ann - -"),
];

#[test]
fn mattermost_sends_a_part_of_what_it_would_without() {
    let quiet = format!("{}{}", preset("mattermost-quiet.conf"), preset("mattermost.conf"));
    let mut counts = Vec::new();
    for events in [&*quiet, &*preset("mattermost.conf"), "tirreno_user $cookie_MMUSERID;"] {
        let site = Site::start(&MATTERMOST, &format!("tirreno on; {events}"), |builder| builder);
        let mut wire = Wire { port: site.nginx.port(), connection: None };
        let mut sent = 0;
        for (times, line) in WORKING_DAY {
            let line = MATTERMOST.read(line);
            for _ in 0..*times {
                sent += 1;
                wire.send(&line, line.target, &sent.to_string());
            }
        }
        let names: Vec<_> = (1..=sent).map(|n| n.to_string()).collect();
        let events = cases::events(&site.nginx, &site.sensor, names.iter().map(String::as_str));
        counts.push(events.values().map(Vec::len).sum::<usize>());
    }
    let requests: usize = WORKING_DAY.iter().map(|(times, _)| times).sum();
    println!("{requests} requests, {counts:?} events");
    // The same file is downloaded twice, which is one event; without the preset the login has no user.
    assert_eq!(counts, [34, 44, requests - 1]);
}

#[test]
fn mattermosts_preset_can_be_changed_around_it() {
    let preset = preset("mattermost.conf");
    let server = format!(
        "tirreno on;
         tirreno_event off       POST \"/api/v4/channels/members/{{user_id}}/view\";
         tirreno_event page_view GET  \"/playbooks/{{*rest}}\";
         {preset}
         tirreno_event field_edit POST /api/v4/posts;
         tirreno_default_event page_error;
         location /api/v4/teams {{
             tirreno_event page_error PUT \"/api/v4/teams/{{team_id}}\";
             proxy_pass http://%BACKEND%/?$http_x_script;
         }}"
    );
    let site = Site::start(&MATTERMOST, &server, |builder| builder);
    site.begin(site.nginx.port(), "");
    let table = "
        POST /api/v4/channels/members/me/view 200 ann - -
        GET  /playbooks/runs                  200 ann page_view ann
        # The preset's rule stands before one after it.
        POST /api/v4/posts                    201 ann page_edit ann
        # A default of one's own; noise stays off.
        GET  /api/v4/users/ann                200 ann page_error ann
        POST /api/v4/users/ids                200 ann - -
        # An inner level comes first.
        PUT  /api/v4/teams/t1                 200 ann page_error ann
        PUT  /api/v4/teams/t1/patch           200 ann page_edit ann
    ";
    site.check(site.nginx.port(), "", table);
}

const NEXTCLOUD: App = App {
    name: "nextcloud",
    clients: &[
        (
            "ann",
            &[(
                "Cookie",
                "oc1a2b3c4d5e=5ecretann; oc_sessionPassphrase=5ecret; nc_username=ann; nc_token=5ecret",
            )],
        ),
        ("old", &[("Cookie", "nc_username=old; nc_token=5ecretold")]),
        ("phrase", &[("Cookie", "oc_sessionPassphrase=5ecret")]),
        ("nobody", &[]),
        // dav:5ecret
        ("dav", &[("Authorization", "Basic ZGF2OjVlY3JldA==")]),
        ("alone-cookie", &[("Cookie", "nc_username=victim; nc_token=forged5ecret")]),
        (
            "alone-session",
            &[(
                "Cookie",
                "oc1a2b3c4d5e=forged5ecret; oc_sessionPassphrase=forged5ecret; nc_username=victim",
            )],
        ),
        ("alone-basic", &[("Authorization", VICTIMS_BASIC)]),
        (
            "alone-remember",
            &[
                ("Authorization", VICTIMS_BASIC),
                ("Cookie", "nc_username=eve; nc_token=5ecreteve; nc_session_id=5ecret"),
            ],
        ),
        (
            "mixed-cookie",
            &[(
                "Cookie",
                "nc_username=victim; oc1a2b3c4d5e=5ecretann; oc_sessionPassphrase=5ecret; nc_username=ann",
            )],
        ),
        (
            "mixed-basic",
            &[
                ("Authorization", VICTIMS_BASIC),
                (
                    "cOOKIE",
                    "oc_sessionPassphrase=5ecret; oc1a2b3c4d5e=5ecretann; nc_username=victim",
                ),
            ],
        ),
    ],
    answers: &[
        ("cookies", "set_cookie=nc_username%3Dnew&set_cookie=nc_token%3D5ecret"),
        (
            "ann",
            "set_cookie=nc_username%3Dann&set_cookie=nc_token%3D5ecret\
             &set_cookie=oc1a2b3c4d5e%3D5ecretann",
        ),
        ("form", "header=Location:/login?user%3Dann%26direct%3D1"),
        ("second", "header=Location:/login/challenge/totp"),
        ("begun", "header=Location:/apps/dashboard/&set_cookie=oc1a2b3c4d5e%3D5ecretnew"),
        ("again", "header=Location:/login?redirect_url%3D/apps/files"),
        ("client", "header=Location:nc://login/server:h%26user:ann%26password:5ecret"),
        ("failed", "body={%22ocs%22:{%22meta%22:{%22status%22:%22failure%22}}}"),
        ("error", "body={%22status%22:%22error%22}"),
        ("expired", "set_cookie=nc_username%3Ddeleted;%20Max-Age%3D0"),
    ],
    before: "POST /login 303+ann phrase account_login ann",
    body: "user=ann&password=5ecret",
    bodies: &[],
};

const GITLAB: App = App {
    name: "gitlab",
    clients: &[
        ("ann", &[("Cookie", "_gitlab_session=5ecret; known_sign_in=5ecret")]),
        ("token", &[("Private-Token", "5ecret")]),
        // git:5ecret
        ("git", &[("Authorization", "Basic Z2l0OjVlY3JldA==")]),
        ("none", &[]),
        ("otp", &[]),
        ("ldap", &[]),
        ("oauth", &[]),
        ("new", &[]),
    ],
    answers: &[
        ("cookies", "set_cookie=known_sign_in%3D5ecret&set_cookie=_gitlab_session%3D5ecret"),
        ("form", "header=Location:https%3A%2F%2Fh%2Fusers%2Fsign_in"),
        ("welcome", "header=Location:https%3A%2F%2Fh%2Fusers%2Fsign_up%2Fwelcome"),
        ("otp", "body=<input%20name%3D%22user[otp_attempt]%22>"),
    ],
    before: "",
    body: "user[login]=ann&user[password]=5ecret",
    bodies: &[
        ("otp", "user[otp_attempt]=123456&user[login]=victim"),
        ("ldap", "username=eve&password=5ecret"),
        ("oauth", "grant_type=password&username=joe&password=5ecret"),
        ("new", "user[username]=zoe&user[email]=zoe%40example.com&user[password]=5ecret"),
    ],
};

const WORDPRESS: App = App {
    name: "wordpress",
    clients: &[
        (
            "ann",
            &[(
                "Cookie",
                "wordpress_test_cookie=WP; \
                 wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret; a=b",
            )],
        ),
        (
            "forged",
            &[(
                "Cookie",
                "wordpress_logged_in_x=victim|1; \
                 wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret",
            )],
        ),
        // Another cookie whose value contains the name.
        (
            "other",
            &[("Cookie", "x=wordpress_logged_in_1=eve%7C5ecret; y_wordpress_logged_in_1=eve%7C1")],
        ),
        ("nobody", &[("Cookie", "wordpress_test_cookie=WP")]),
        ("victim", &[("Cookie", "wordpress_logged_in_0a1b2c3d=victim%7C1%7Cx%7Cx")]),
        // app:5ecret
        ("app", &[("Authorization", "Basic YXBwOjVlY3JldA==")]),
        (
            "alone-sec",
            &[
                ("Authorization", VICTIMS_BASIC),
                ("Cookie", "wordpress_sec_0a1b2c3d=eve%7C1700000000%7C5ecret%7C5ecret"),
            ],
        ),
        // The cookie of wp-admin counts there, whatever is in the other.
        (
            "hidden",
            &[(
                "Cookie",
                "wordpress_logged_in_0a1b=x%7C1%7Cx%7Cx; wordpress_sec_0a1b=new%7C17%7C5ecret",
            )],
        ),
        (
            "alone-auth",
            &[
                ("Authorization", VICTIMS_BASIC),
                ("Cookie", "wordpress_0a1b2c3d=eve%7C1700000000%7C5ecret%7C5ecret"),
            ],
        ),
        // app:5ecret
        (
            "test-cookie",
            &[
                ("Authorization", "Basic YXBwOjVlY3JldA=="),
                ("Cookie", "wordpress_test_cookie=WP%20Cookie%20check"),
            ],
        ),
        (
            "alone-twice",
            &[("Cookie", "wordpress_logged_in_x=victim|1|x|x; wordpress_logged_in_y=victim|2|x|x")],
        ),
        ("alone-basic", &[("Authorization", VICTIMS_BASIC)]),
        (
            "mixed-cookie",
            &[(
                "cOOKIE",
                "wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret; \
                 wordpress_logged_in_x=victim%7C1700000000%7C5ecret%7C5ecret",
            )],
        ),
        (
            "mixed-basic",
            &[
                ("Authorization", VICTIMS_BASIC),
                (
                    "Cookie",
                    "wordpress_logged_in_0a1b2c3d=victim%7C1%7Cx%7Cx; \
                     wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret",
                ),
            ],
        ),
        ("reset", &[("Cookie", "wp-resetpass-0a1b=bob%3A5ecret")]),
        ("resets", &[("Cookie", "wp-resetpass-x=victim%3Ax; wp-resetpass-0a1b=bob%3A5ecret")]),
        // A new password, and the session that it begins.
        (
            "password",
            &[("Cookie", "wordpress_logged_in_0a1b2c3d=ann%7C1700000000%7C5ecret%7C5ecret")],
        ),
        (
            "renewed",
            &[("Cookie", "wordpress_logged_in_0a1b2c3d=ann%7C1800000000%7C5ecret%7C5ecret")],
        ),
        ("signup", &[]),
        ("xml", &[]),
        ("array", &[]),
        ("open", &[]),
        ("blanks", &[]),
        ("cdata", &[]),
        ("behind", &[]),
        ("many", &[]),
        ("list", &[]),
        ("key", &[]),
    ],
    answers: &[
        (
            "cookies",
            "set_cookie=wordpress_sec_0a1b%3Dnew%257C17%257C5ecret\
             &set_cookie=wordpress_logged_in_0a1b%3Dnew%257C17%257C5ecret%257C5ecret",
        ),
        (
            "ann",
            "set_cookie=wordpress_test_cookie%3DWP\
             &set_cookie=wordpress_logged_in_0a1b2c3d%3Dann%257C1700000000%257C5ecret%257C5ecret",
        ),
        (
            "renewed",
            "set_cookie=wordpress_logged_in_0a1b2c3d%3D%2520;%20Max-Age%3D0\
             &set_cookie=wordpress_logged_in_0a1b2c3d%3Dann%257C1800000000%257C5ecret%257C5ecret",
        ),
        ("fault", "body=<fault><int>403</int>"),
        ("done", "body=<methodResponse><params>"),
        ("again", "body=<form%20id=%22resetpassform%22>"),
        ("setup", "body=<form%20id=%22setupform%22>"),
        ("nonce", "body={%22code%22:%22rest_cookie_invalid_nonce%22}"),
        ("cleared", "set_cookie=wordpress_logged_in_0a1b%3D%2520;%20Max-Age%3D0"),
        ("recovered", "set_cookie=wordpress_rec_0a1b%3D%2520;%20Max-Age%3D0"),
        ("admin", "header=Location:https%3A%2F%2Fh%2Fwp-admin%2F"),
        ("login", "header=Location:https%3A%2F%2Fh%2Fwp-login.php?redirect_to%3Dx%26reauth%3D1"),
        ("updated", "header=Location:https%3A%2F%2Fh%2Fwp-admin%2Fprofile.php?updated%3D1"),
        ("registered", "header=Location:wp-login.php?checkemail%3Dregistered"),
    ],
    before: "POST /wp-login.php 302+ann nobody account_login ann",
    body: "log=ann&pwd=5ecret",
    bodies: &[
        ("list", "action[]=x&log=ann&pwd=5ecret"),
        ("key", "action[x]=x&log=ann&pwd=5ecret"),
        ("reset", "pass1=5ecret&pass2=5ecret"),
        ("resets", "pass1=5ecret&pass2=5ecret"),
        ("password", "pass1=5ecret&pass2=5ecret"),
        ("signup", "user_name=victim&user_email=victim%40example.com"),
        (
            "xml",
            "<methodCall><methodName>wp.newPost</methodName><params>\
             <param><value><i4>1</i4></value></param><param><value>ann</value></param>\
             <param><value>5ecret</value></param></params></methodCall>",
        ),
        // Parsers other than WordPress's would read another parameter here; and a call that needs no user.
        (
            "array",
            "<methodCall><methodName>wp.newPost</methodName><params><param><value><array><data>\
             <value>x</value><value>victim</value></data></array></value></param>\
             <param><value>ann</value></param><param><value>5ecret</value></param></params></methodCall>",
        ),
        (
            "open",
            "<methodCall><methodName>mt.supportedMethods</methodName><params>\
             <param><value>1</value></param><param><value>victim</value></param></params></methodCall>",
        ),
        (
            "blanks",
            "<methodCall><methodName>\nwp.getUsersBlogs </methodName><params>\
             <param><value><string>ann\n</string></value></param><param><value>5ecret</value></param>\
             </params></methodCall>",
        ),
        (
            "cdata",
            "<methodCall><methodName>wp.deletePost</methodName><params><param><value><i4>1</i4></value></param>\
             <param><value>x<string a='>'><!-- > --><![CDATA[a]]>&#110;n</string></value></param>\
             <param><value>5ecret</value></param></params></methodCall>",
        ),
        (
            "behind",
            "<methodCall><params><param><value><array><data><value>x</value></data></array></value></param>\
             </params><methodName>system.multicall</methodName></methodCall>",
        ),
        (
            "many",
            "<methodCall><methodName>system.multicall</methodName><params><param><value><array><data>\
             <value><struct><member><name>methodName</name><value>demo.sayHello</value></member>\
             <member><name>params</name><value><array><data><value>victim</value></data></array></value>\
             </member></struct></value></data></array></value></param></params></methodCall>",
        ),
    ],
};

/// The status, for [`no_secret_is_left`].
const STATUS: &str = "server { listen 127.0.0.1:%PORT2%; location = /status { tirreno_status; } }";

#[test]
fn nextcloud() {
    check(&NEXTCLOUD, &preset("nextcloud.conf"));
}

#[test]
fn gitlab() {
    check(&GITLAB, &preset("gitlab.conf"));
}

#[test]
fn wordpress() {
    check(&WORDPRESS, &preset("wordpress.conf"));
}

/// For many calls in one request, the event has their number.
#[test]
fn a_multicall_of_wordpress_tells_how_many_calls_it_has() {
    let server = format!("tirreno on; {}", preset("wordpress.conf"));
    let site = Site::start(&WORDPRESS, &server, |builder| builder.http(STATUS));
    let try_one =
        "<value><struct><member><name>methodName</name><value>wp.getUsersBlogs</value></member>
        <member><name>params</name><value><array><data><value><string>ann</string></value>
        <value><string>5ecret</string></value></data></array></value></member></struct></value>";
    let body = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>system.multicall</methodName><params><param><value>
         <array><data>{}</data></array></value></param></params></methodCall>",
        try_one.repeat(20)
    );
    let answer = ("X-Script", "body=<int>403</int>");
    client::post(site.nginx.port(), "/xmlrpc.php", &[answer], body.as_bytes()).unwrap();
    site.sensor.wait_stored(1, SOON).unwrap();
    let event = &site.sensor.stored()[0];
    assert_eq!((&*event.event_type, &*event.url), ("account_login_fail", "/xmlrpc?calls=20"));
    assert!(is_alias(&event.user_name), "{}", event.user_name);
    no_secret_is_left(&site);
}

/// A request that names a victim in cookies or by basic authentication is not recorded as the victim's:
/// requests in Ann's session are Ann's, whatever else she sends, and requests that the application refuses,
/// or answers to everybody, are not the victim's. `refusals`: the application's answers to clients without
/// a session.
#[track_caller]
fn nobody_can_be_forged(app: &'static App, preset: &str, refusals: &[&str]) {
    let site = Site::start(app, &format!("tirreno on; {preset}"), |builder| builder);
    let port = site.nginx.port();
    site.begin(port, "");
    let table = app.table();
    let rows: Vec<Vec<&str>> =
        lines(&table).map(|line| line.split_whitespace().collect()).collect();
    let clients = |prefix: &str| {
        let names = app.clients.iter().map(|(name, _)| *name);
        names.filter(|name| name.starts_with(prefix)).collect::<Vec<_>>()
    };
    // The second of two downloads is the same event.
    let is_hers = |row: &&Vec<&str>| {
        row[3] == "ann"
            && row[5] == "ann"
            && !matches!(row[4], "account_logout" | "account_login" | "page_view")
    };
    for client in clients("mixed") {
        let line = |row: &Vec<&str>| [row[0], row[1], row[2], client, row[4], row[5]].join(" ");
        let own: Vec<_> = rows.iter().filter(is_hers).map(line).collect();
        assert!(own.len() >= 15, "{own:?}");
        site.check(port, "", &own.join("\n"));
    }
    let mut sent = Vec::new();
    let mut wire = Wire { port, connection: None };
    for client in clients("alone") {
        for refusal in refusals {
            for row in rows.iter().filter(|row| !row[2].ends_with("+unread") && row[2] != "101") {
                let text = [row[0], row[1], refusal, client, "-", "-"].join(" ");
                let line = app.read(&text);
                wire.send(&line, row[1], &format!("alone-{}", sent.len()));
                sent.push(text);
            }
        }
    }
    let names: Vec<_> = (0..sent.len()).map(|n| format!("alone-{n}")).collect();
    let events = cases::events(&site.nginx, &site.sensor, names.iter().map(String::as_str));
    for (name, text) in names.iter().zip(&sent) {
        for event in events.get(name).into_iter().flatten() {
            // A failed login names the account that was tried.
            let tries = |(name, headers): &&(&str, RequestHeaders<'_>)| {
                text.contains(name) && headers.iter().any(|header| header.1 == VICTIMS_BASIC)
            };
            let is_tried = event.event_type == "account_login_fail"
                && app.clients.iter().any(|client| tries(&client));
            assert!(event.user_name != "victim" || is_tried, "{text}: {}", event.to_line());
        }
    }
}

#[test]
fn nobody_is_forged_in_mattermost() {
    let preset = preset("mattermost.conf");
    let refusals = ["200", "401", "401+ended", "403", "404", "429"];
    nobody_can_be_forged(&MATTERMOST, &preset, &refusals);
}

#[test]
fn nobody_is_forged_in_nextcloud() {
    let refusals = ["303+again", "401", "404", "412", "429", "503"];
    nobody_can_be_forged(&NEXTCLOUD, &preset("nextcloud.conf"), &refusals);
}

#[test]
fn nobody_is_forged_in_wordpress() {
    let refusals = ["302+login", "401", "403+nonce", "404", "429", "500"];
    nobody_can_be_forged(&WORDPRESS, &preset("wordpress.conf"), &refusals);
}

/// Tests an application's table.
#[track_caller]
fn check(app: &'static App, preset: &str) {
    let site = Site::start(app, &format!("tirreno on; {preset}"), |builder| builder.http(STATUS));
    site.begin(site.nginx.port(), "");
    site.check(site.nginx.port(), "", &app.table());
    no_secret_is_left(&site);
}

/// nginx logs nothing about a preset, at any level where it may be included.
#[test]
fn presets_pass_without_a_warning() {
    let mut names: Vec<_> = fs::read_dir(presets())
        .expect("the presets")
        .map(|entry| entry.expect("the presets").file_name().into_string().expect("a name"))
        .collect();
    names.sort_unstable();
    let known = ["gitlab.conf", "mattermost-quiet.conf", "mattermost.conf", "nextcloud.conf"];
    assert_eq!(names, [&known[..], &["wordpress.conf"]].concat(), "each preset has a test");
    for name in &names {
        // This preset must be included before the other, as its comment says.
        let is_quiet = name == "mattermost-quiet.conf";
        let own = "tirreno_event off POST \"/api/v4/channels/members/{user_id}/view\";";
        let include = match is_quiet {
            true => format!("{own} include preset.conf; include mattermost.conf;"),
            false => "include preset.conf;".to_owned(),
        };
        let nginx = Nginx::builder()
            .file("preset.conf", &preset(name))
            .file("mattermost.conf", &preset("mattermost.conf"))
            .http("tirreno_target { url http://127.0.0.1:9/sensor/; api_key test-key; }")
            .server(&format!("tirreno on; {include} location / {{ return 204; }}"))
            .http(&format!(
                "server {{
                     listen 127.0.0.1:%PORT1%;
                     location / {{ tirreno on; {include} return 204; }}
                 }}"
            ))
            .build();
        let (ok, output) = nginx.test();
        let complaints = ["[emerg]", "[error]", "[warn]"];
        assert!(ok && !complaints.iter().any(|word| output.contains(word)), "{name}: {output}");
    }
}
