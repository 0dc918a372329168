//! Replays recorded requests to real applications with their answers, and compares the events with the ones
//! that an administrator expects.
//!
//! `tests/data/cases` has the requests of real servers, with their answers; its README describes the
//! format. nginx with the preset runs before an application that answers as recorded.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};
use tirreno_tests::backend::{Answer, Backend};
use tirreno_tests::cases::{self, CASE, is_alias};
use tirreno_tests::client::{Connection, WebSocket};
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{RequestRecord, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_until};
use tirreno_tests::written::written_lines;

/// Marks data that must not leave the request: tokens, passwords, message texts, contents of files.
const SECRET: &str = "5ecret";

fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cases").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn presets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf/presets")
}

/// The preset of that name, as text.
fn preset(name: &str) -> String {
    fs::read_to_string(presets().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The columns of a table's lines, without comments.
fn rows(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
}

/// nginx before an application whose next answer can be set, and the sensor behind nginx.
struct Replay {
    sensor: Sensor,
    nginx: Nginx,
    next: Arc<Mutex<Answer>>,
    _backend: Backend,
    connection: Option<Connection>,
}

/// A request to send.
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Replay {
    /// With `server` in the server, and the directives of `targets`.
    fn start(targets: &str, server: &str) -> Self {
        let sensor = Sensor::start(SensorOptions::default());
        let next: Arc<Mutex<Answer>> = Arc::default();
        let backend = {
            let next = Arc::clone(&next);
            Backend::answering(move |_| next.lock().expect("the test goes on").clone())
        };
        let nginx = Nginx::builder()
            .sensor(&sensor.url())
            .var("BACKEND", &backend.address())
            .http(&format!(
                "tirreno_target {{
                     url %SENSOR%; api_key test-key; interval 20ms; spool %PREFIX%/spool;
                     login_fail_delay 0; repeat off;
                 }}
                 {targets}
                 tirreno_state %PREFIX%/state;
                 keepalive_requests 100000;
                 large_client_header_buffers 4 32k;
                 proxy_buffer_size 32k;
                 proxy_buffers 8 32k;
                 {}",
                cases::LOG
            ))
            .server(&format!(
                "{server}
                 location / {{
                     proxy_http_version 1.1;
                     proxy_set_header Upgrade         $http_upgrade;
                     proxy_set_header Connection      $http_connection;
                     proxy_set_header Accept-Encoding \"\";
                     proxy_pass http://%BACKEND%;
                 }}"
            ))
            .start();
        Self { sensor, nginx, next, _backend: backend, connection: None }
    }

    /// Makes a request to which the application gives this answer.
    #[track_caller]
    fn send(&mut self, case: &str, request: &Request, answer: Answer) {
        let status = if answer.status == 0 { 502 } else { answer.status };
        *self.next.lock().expect("the test goes on") = answer;
        let mut headers = vec![(CASE, case)];
        headers.extend(request.headers.iter().map(|(name, value)| (&**name, &**value)));
        if status == 101 {
            let socket = WebSocket::open(self.nginx.port(), &request.target, &headers);
            assert_eq!(socket.expect(case).echo("hello").expect(case), "hello");
            return;
        }
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.port()));
        let connection = self
            .connection
            .get_or_insert_with(|| Connection::open(address).expect("nginx listens"));
        let response =
            connection.request(&request.method, &request.target, &headers, &request.body);
        let response = response.unwrap_or_else(|error| panic!("case {case}: {error}"));
        assert_eq!(response.status, status, "case {case}");
        if connection.ended() {
            self.connection = None;
        }
    }

    fn events(&self, names: &[String]) -> BTreeMap<String, Vec<Arc<StoredEvent>>> {
        cases::events(&self.nginx, &self.sensor, names.iter().map(String::as_str))
    }

    /// All bytes that are searched for secrets, each with its name: the data that the sensor received, and
    /// nginx's files except its configuration.
    fn remains(&self) -> Vec<(String, Vec<u8>)> {
        let sent = |request: RequestRecord| ("the sensor".to_owned(), request.body);
        let mut all = self.nginx.remains(self.nginx.prefix());
        all.extend(self.sensor.requests().into_iter().map(sent));
        all
    }

    /// Asserts that no secret has left its request.
    #[track_caller]
    fn no_secret_is_left(&self) {
        for (name, bytes) in self.remains() {
            let found = bytes.windows(SECRET.len()).position(|window| window == SECRET.as_bytes());
            if let Some(at) = found {
                let around = &bytes[at.saturating_sub(60)..(at + 60).min(bytes.len())];
                panic!("{name}: {}", String::from_utf8_lossy(around));
            }
        }
    }
}

/// One line of `mattermost.jsonl`.
struct Case(Map<String, Value>);

impl Case {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    fn number(&self) -> u64 {
        self.0["seq"].as_u64().expect("a number")
    }
}

/// The users of the recorded clients, and their tokens.
#[derive(Default)]
struct World {
    made: u32,
    /// The tokens of each user's browser and telephone, the latest session's last, and all named tokens.
    tokens: HashMap<String, Vec<String>>,
}

impl World {
    /// The id of a name: 26 characters, as in Mattermost.
    fn id(name: &str) -> String {
        format!("{name:0<26}")
    }

    fn new_token(&mut self, holder: String) -> String {
        self.made += 1;
        let token = format!("t{SECRET}{:0>18}0", self.made);
        self.tokens.entry(holder).or_default().push(token.clone());
        token
    }

    /// Ends the holder's latest session.
    fn end(&mut self, holder: &str) {
        self.tokens.get_mut(holder).and_then(Vec::pop);
    }

    fn token(&mut self, holder: &str) -> String {
        match self.tokens.get(holder).and_then(|tokens| tokens.last()) {
            Some(token) => token.clone(),
            None => self.new_token(holder.to_owned()),
        }
    }

    /// Replaces placeholders: `{name}`, and `<…>` by `token`; `own` is the client's own token.
    fn fill(text: &str, mut token: impl FnMut(&str) -> String) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '<']) {
            filled.push_str(&rest[..at]);
            let end = if rest[at..].starts_with('{') { '}' } else { '>' };
            let Some(length) = rest[at..].find(end) else { break };
            let name = &rest[at + 1..at + length];
            filled.push_str(&if end == '}' { Self::id(name) } else { token(name) });
            rest = &rest[at + length + 1..];
        }
        filled + rest
    }

    /// Replaces a shape by a value: `name` is the member's name, `value` its placeholder.
    fn body(value: &Value, name: &str, own: &HashMap<&str, Value>) -> Value {
        match value {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone(), Self::body(value, name, own)))
                .collect(),
            // An item like "…2" only says how many more there were.
            Value::Array(items) => items
                .iter()
                .filter(|item| !item.as_str().is_some_and(|text| text.starts_with('…')))
                .map(|item| Self::body(item, name, own))
                .collect(),
            Value::String(kind) => match (own.get(name), &**kind) {
                (Some(value), _) => value.clone(),
                (None, "int") => 1.into(),
                (None, "bool") => true.into(),
                (None, "NoneType") => Value::Null,
                _ => match name {
                    "id" | "team_id" | "channel_id" | "post_id" | "creator_id" => {
                        Self::id(name.trim_end_matches("_id")).into()
                    }
                    "message" | "text" | "password" | "new_password" | "current_password"
                    | "token" | "client_secret" | "command" | "content" => {
                        format!("{SECRET} {name}").into()
                    }
                    "roles" => "system_user".into(),
                    _ => format!("some {name}").into(),
                },
            },
            other => other.clone(),
        }
    }
}

/// Facts that the replay adds to a case of `mattermost.jsonl`.
struct Accounts {
    actor: Option<String>,
    typed: Option<String>,
    expected: String,
}

fn accounts() -> HashMap<u64, Accounts> {
    let table = data("mattermost-accounts.tsv");
    let given = |text: &str| (text != "-").then(|| text.to_owned());
    let read = |row: Vec<&str>| {
        let [seq, actor, typed, expected] = *row else { panic!("{row:?}") };
        let accounts =
            Accounts { actor: given(actor), typed: given(typed), expected: expected.to_owned() };
        (seq.parse().expect("a number"), accounts)
    };
    rows(&table).map(read).collect()
}

/// Makes the request and the answer of a case.
fn play(world: &mut World, case: &Case, accounts: Option<&Accounts>) -> (Request, Answer) {
    let braces = |text: &str| text.trim_matches(['{', '}']).to_owned();
    let named = |text: &str| {
        let at = text.find("MMUSERID={")?;
        text[at + 9..].split_inclusive('}').next().map(braces)
    };
    let request = case.0["request"].as_object().expect("headers");
    let cookie = request.get("Cookie").and_then(Value::as_str).unwrap_or_default();
    let expected = case.0["expected_user"].as_str().map(braces);
    let actor = accounts.and_then(|a| a.actor.clone());
    let response = case.0["response"].as_object().expect("headers");
    let etag = response.get("Etag").and_then(Value::as_str).unwrap_or_default();
    let in_etag = etag.split_once('{').and_then(|(_, rest)| rest.split('}').next());
    let whose = named(cookie)
        .or_else(|| expected.clone())
        .or_else(|| in_etag.map(str::to_owned))
        .or_else(|| actor.clone())
        .unwrap_or_else(|| "somebody".into());
    let is_bearer = request.contains_key("Authorization");
    // The client's own token, of its browser or telephone.
    let client = format!("{} {whose}", if is_bearer { "mobile" } else { "web" });

    let mut headers = Vec::new();
    for (name, value) in request {
        let value = value.as_str().unwrap_or_default();
        if name == "Upgrade" || name == "X-CSRF-Token" && value.is_empty() {
            continue;
        }
        if name == "Cookie or auth" {
            let cookies = match value.starts_with("MMAUTHTOKEN") {
                true => "MMAUTHTOKEN=<TOKEN>; MMUSERID={alice}",
                false => "MMUSERID={alice}",
            };
            let filled = World::fill(cookies, |_| world.token("web alice"));
            headers.push(("Cookie".to_owned(), filled));
            continue;
        }
        let filled = World::fill(value, |token| match token {
            "TOKEN" | "MMAUTHTOKEN" if name != "X-CSRF-Token" => world.token(&client),
            "MMCSRF" | "TOKEN" => format!("csrf{SECRET}"),
            other => world.token(other),
        });
        headers.push((name.clone(), filled));
    }
    let target = World::fill(case.text("path"), |name| {
        if name == "OAUTHTOKEN" { world.token(name) } else { format!("{SECRET}{name}") }
    });

    let mut own: HashMap<&str, Value> = HashMap::new();
    let typed = accounts.and_then(|a| a.typed.as_deref());
    match typed.map(|typed| (typed, typed.strip_prefix('='))) {
        Some((_, Some(id))) => {
            own.insert("id", World::id(id).into());
            own.insert("login_id", "bob@example.com".into());
        }
        Some((typed, None)) => {
            own.insert("login_id", typed.into());
            own.insert("email", typed.into());
        }
        None => {}
    }
    own.insert("user_id", World::id("carol").into());
    own.insert("terms", "budget".into());
    own.insert("term", "budget".into());
    own.insert("device_id", "android:1234".into());
    let body = match &case.0["request_body"] {
        Value::Null => Vec::new(),
        // In case 343, the recording has a stream instead of the body.
        Value::String(kind) if kind.starts_with("application/json") => {
            let typed = typed.unwrap_or_default();
            format!(r#"{{"login_id": "{typed}", "password": "{SECRET}"}}"#).into_bytes()
        }
        Value::String(kind) if kind == "int" => SECRET.into(),
        Value::String(kind) => {
            let kind = kind.rsplit_once(' ').and_then(|(text, _)| text.rsplit_once(' '));
            let kind = kind.map_or("", |(kind, _)| kind);
            if !headers.iter().any(|(name, _)| name == "Content-Type") {
                headers.push(("Content-Type".into(), kind.into()));
            }
            SECRET.into()
        }
        shape => World::body(shape, "", &own).to_string().into_bytes(),
    };

    // The user in the answer.
    let path = case.text("path");
    let subject = path
        .strip_prefix("/api/v4/users/{")
        .and_then(|rest| rest.split('}').next())
        .map(str::to_owned);
    let is_login = path
        .split('?')
        .next()
        .is_some_and(|p| p.ends_with("/users/login") || p.ends_with("%2Flogin"));
    let signs_up = case.text("method") == "POST" && path.split('?').next() == Some("/api/v4/users");
    let who = match () {
        () if is_login => actor.clone().unwrap_or(whose.clone()),
        // The new account: the administrator's own if it is the first one.
        () if signs_up => match case.number() {
            5 => "dave".into(),
            215 => "newcomer".into(),
            _ => actor.clone().unwrap_or_else(|| "newcomer".into()),
        },
        () => subject.unwrap_or_else(|| whose.clone()),
    };
    let mut answered = HashMap::new();
    if path.starts_with("/api/v4/users") {
        answered.insert("id", Value::from(World::id(&who)));
    }
    answered.insert("username", who.clone().into());
    answered.insert("email", format!("{who}@example.com").into());
    let author = if path.contains("/members") { "carol" } else { &whose };
    answered.insert("user_id", World::id(author).into());
    if let Some(error) = case.0["error_id"].as_str() {
        answered.insert("id", error.into());
    }
    answered.insert("status_code", case.0["status"].clone());
    let status = case.0["status"].as_u64().expect("a status") as u16;
    let mut answer = Answer { status, ..Answer::default() };
    for (name, value) in response {
        // A sign-in gets a new token.
        let holder = match (is_login || path.contains("/complete"), &**name) {
            (true, "Set-Cookie") => Some(format!("web {who}")),
            (true, "Token") if response.contains_key("Set-Cookie") && is_login => None,
            (true, "Token") => Some(format!("mobile {who}")),
            _ => None,
        };
        let values = match value {
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        for value in values.iter().filter_map(Value::as_str) {
            let filled = World::fill(value, |token| match (token, &holder) {
                ("TOKEN" | "MMAUTHTOKEN", Some(holder)) => world.new_token(holder.clone()),
                ("TOKEN" | "MMAUTHTOKEN", None) if is_login => world.token(&format!("web {who}")),
                ("TOKEN" | "MMAUTHTOKEN", None) => world.token(&client),
                (other, _) => format!("{SECRET}{other}"),
            });
            answer.headers.push((name.clone(), filled));
        }
    }
    let clears = |(name, value): &(String, String)| {
        name == "Set-Cookie" && value.starts_with("MMAUTHTOKEN=;")
    };
    if answer.headers.iter().any(clears) {
        world.end(&client);
    }
    answer.body = match &case.0["response_body"] {
        Value::Null => Vec::new(),
        Value::String(kind) => match kind.starts_with("text/html") && status == 502 {
            // nginx answered itself, because Mattermost was down.
            true => {
                answer.status = 0;
                Vec::new()
            }
            false if kind.ends_with(" 0 bytes") => Vec::new(),
            false => SECRET.into(),
        },
        shape => World::body(shape, "", &answered).to_string().into_bytes(),
    };
    let method = case.text("method").to_owned();
    (Request { method, target, headers, body }, answer)
}

/// Events as a message has them: types and users.
fn in_words(events: &[(String, String)]) -> String {
    match events {
        [] => "none".to_owned(),
        events => {
            let words: Vec<_> =
                events.iter().map(|(kind, user)| format!("{kind} {user}")).collect();
            words.join(", ")
        }
    }
}

/// An event's type and user, as the tables write them.
fn told(event: &StoredEvent) -> (String, String) {
    let user = match &*event.user_name {
        "N/A" => "nobody".to_owned(),
        name if is_alias(name) => "unknown".to_owned(),
        // See `World::id`.
        name if name.len() == 26 => format!("{{{}}}", name.trim_end_matches('0')),
        name => name.to_owned(),
    };
    (event.event_type.clone(), user)
}

/// Whether an event of the type `kind` is expected for a request answered with `status`.
fn is_expected(expected: &str, kind: &str, status: u16) -> bool {
    match expected {
        "event" => true,
        "refused" => status >= 400,
        "account" => kind.starts_with("account_"),
        _ => kind == expected || kind == "page_error" && status >= 400,
    }
}

/// The known exceptions of a table: the case, the actual record, and the reason.
fn exceptions(name: &str) -> HashMap<String, String> {
    let table = data(name);
    let read = |row: Vec<&str>| {
        let [case, got, _why] = *row else { panic!("{row:?}") };
        (case.to_owned(), got.to_owned())
    };
    rows(&table).map(read).collect()
}

/// Each request to Mattermost is exactly the event that its administrator expects, of the right user.
#[test]
fn mattermost() {
    let server = format!(
        "tirreno on; {}
         location /chat/ {{
             tirreno_event_prefix /chat;
             proxy_set_header Accept-Encoding \"\";
             proxy_pass http://%BACKEND%;
         }}",
        preset("mattermost.conf")
    );
    let audit = "tirreno_target audit {
        type file; path %PREFIX%/audit.log; format mattermost cluster_id=c1; interval 20ms;
    }";
    let mut replay = Replay::start(audit, &server);
    let cases: Vec<Case> = data("mattermost.jsonl")
        .lines()
        .map(|line| Case(serde_json::from_str(line).expect("a case")))
        .collect();
    let (accounts, mut world) = (accounts(), World::default());
    for case in &cases {
        let number = case.number();
        let (request, answer) = play(&mut world, case, accounts.get(&number));
        // The learned sessions outlive the processes that learned them.
        match number {
            400 => {
                replay.nginx.reload();
                replay.connection = None;
            }
            414 => {
                replay.nginx.quit();
                replay.nginx.start();
                replay.connection = None;
            }
            _ => {}
        }
        replay.send(&number.to_string(), &request, answer);
    }
    let names: Vec<_> = cases.iter().map(|case| case.number().to_string()).collect();
    let events = replay.events(&names);
    let known = exceptions("mattermost-exceptions.tsv");
    let (mut wrong, mut right) = (String::new(), 0);
    for case in &cases {
        let number = case.number().to_string();
        let status = case.0["status"].as_u64().expect("a status") as u16;
        let got: Vec<_> = events.get(&number).into_iter().flatten().map(|e| told(e)).collect();
        let said = in_words(&got);
        let user = case.0["expected_user"]
            .as_str()
            .map(str::to_owned)
            .or_else(|| accounts.get(&case.number()).map(|a| a.expected.clone()));
        let as_expected = match (case.0["expected_type"].as_str(), &*got) {
            (None, got) => got.is_empty(),
            (Some(kind), [(got, who)]) => {
                is_expected(kind, got, status) && user.as_ref().is_none_or(|user| user == who)
            }
            _ => false,
        };
        let as_known = known.get(&number).is_some_and(|known| *known == said);
        if as_expected && !known.contains_key(&number) || as_known {
            right += 1;
            continue;
        }
        wrong += &format!(
            "\n{number}\t{}\t{} {} {status}\texpected {} {}\tgot {said}",
            case.text("step"),
            case.text("method"),
            case.text("path"),
            case.text("expected_type"),
            user.unwrap_or_default(),
        );
    }
    assert!(wrong.is_empty(), "{right} of {} cases as expected, but:{wrong}", cases.len());
    elastics_fields(&replay);
    replay.no_secret_is_left();
}

/// The audit records fill all fields that Elastic's integration reads, except those with a documented
/// reason.
#[track_caller]
fn elastics_fields(replay: &Replay) {
    let log = replay.nginx.prefix().join("audit.log");
    let wanted = replay.sensor.stored_count();
    let lines = || written_lines(&log);
    wait_until(SOON, "the audit records", || lines().lines().count() >= wanted);
    let records: Vec<Value> =
        lines().lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    let is_filled = |key: &str| {
        let value = |record: &Value| {
            let value = key.split('.').try_fold(record, |value, part| value.get(part));
            value.is_some_and(|value| !value.is_null() && value != "")
        };
        records.iter().any(value)
    };
    let table = data("elastic-fields.tsv");
    let mut wrong = String::new();
    for row in rows(&table) {
        let [key, field, state] = *row else { panic!("{row:?}") };
        if is_filled(key) != (state == "filled") {
            wrong += &format!("\n{key} ({field}): {state}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Plays a table of actions with its exchanges: `name.tsv` has the expected event of each action,
/// `name-exchanges.jsonl` the requests and answers.
fn play_table(name: &str, before: &[(&str, &str, Value)]) {
    let server = format!("tirreno on; {}", preset(&format!("{name}.conf")));
    let mut replay = Replay::start("", &server);
    let hidden = |text: &str| text.replace("SECRET", SECRET);
    let (table, exchanges) =
        (data(&format!("{name}.tsv")), data(&format!("{name}-exchanges.jsonl")));
    for (number, (method, target, exchange)) in before.iter().enumerate() {
        let (request, answer) = exchange_of(method, target, exchange);
        replay.send(&format!("before-{number}"), &request, answer);
    }
    let rows: Vec<_> = rows(&table).collect();
    let exchanges: Vec<Value> =
        exchanges.lines().map(|line| serde_json::from_str(line).expect("an exchange")).collect();
    assert_eq!(rows.len(), exchanges.len(), "an exchange for each action");
    for (number, (row, exchange)) in rows.iter().zip(&exchanges).enumerate() {
        let (request, answer) = exchange_of(row[0], &hidden(row[1]), exchange);
        replay.send(&(number + 1).to_string(), &request, answer);
    }
    let names: Vec<_> = (1..=rows.len()).map(|number| number.to_string()).collect();
    let events = replay.events(&names);
    let known = exceptions(&format!("{name}-exceptions.tsv"));
    let (mut wrong, mut right) = (String::new(), 0);
    for (number, row) in rows.iter().enumerate() {
        let number = (number + 1).to_string();
        let got: Vec<_> = events.get(&number).into_iter().flatten().map(|e| told(e)).collect();
        let said = in_words(&got);
        let [_, _, _, _, expected, user] = **row else { panic!("{row:?}") };
        let kind = expected.split([' ', ';']).next().unwrap_or_default();
        let who = |got: &str| match user {
            "unknown-*" => got == "unknown",
            "never victim" => got != "victim",
            "" => got == "nobody",
            user if user.starts_with("none known") => got == "admin",
            user => got == user.split(' ').next().unwrap_or_default(),
        };
        let as_expected = match &*got {
            [] => kind == "none" || expected.ends_with("or none"),
            [(got, name)] => got == kind && who(name),
            _ => false,
        };
        match known.get(&number) {
            Some(known) if *known == said => right += 1,
            None if as_expected => right += 1,
            _ => {
                wrong += &format!(
                    "\n{number}\t{}\texpected {expected}, {user}\tgot {said}",
                    row[..4].join("\t")
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{right} of {} actions as expected, but:{wrong}", rows.len());
    replay.no_secret_is_left();
}

fn exchange_of(method: &str, target: &str, exchange: &Value) -> (Request, Answer) {
    let pairs = |name: &str| {
        let pairs = exchange[name].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        pairs.map(|pair| (text(&pair[0]), text(&pair[1]))).collect::<Vec<_>>()
    };
    let text = |name: &str| exchange[name].as_str().unwrap_or_default().as_bytes().to_vec();
    let (method, target) = (method.to_owned(), target.to_owned());
    let request = Request { method, target, headers: pairs("headers"), body: text("body") };
    let status = exchange["status"].as_u64().expect("a status") as u16;
    (request, Answer { status, headers: pairs("answer_headers"), body: text("answer") })
}

/// Each action on WordPress is exactly the event that its administrator expects.
#[test]
fn wordpress() {
    play_table("wordpress", &[]);
}

/// Each action on Nextcloud is exactly the event that its administrator expects.
#[test]
fn nextcloud() {
    let admin = serde_json::json!({
        "headers": [
            ["Cookie", "oc_sessionPassphrase=5ecretphrase"],
            ["Content-Type", "application/x-www-form-urlencoded"]
        ],
        "body": "user=admin&password=5ecret", "status": 303,
        "answer_headers": [
            ["Set-Cookie", "oc1a2b3c4d5e=sess5ecretadmin1; path=/; HttpOnly"],
            ["Set-Cookie", "nc_username=admin; path=/; HttpOnly"],
            ["Location", "/apps/dashboard/"]
        ]
    });
    play_table("nextcloud", &[("POST", "/login", admin)]);
}

/// The parts of a preset's rule that its text shows.
struct PresetRule {
    methods: String,
    path: String,
    text: String,
}

/// The rules of a preset.
fn preset_rules(name: &str) -> Vec<PresetRule> {
    let text: String = preset(name)
        .lines()
        .map(|line| if line.trim_start().starts_with('#') { "" } else { line })
        .collect::<Vec<_>>()
        .join("\n");
    text.split(";\n")
        .filter_map(|statement| statement.trim().strip_prefix("tirreno_event "))
        .map(|text| {
            let words: Vec<_> = text.split_whitespace().map(|w| w.trim_matches('"')).collect();
            let [_, methods, path, ..] = *words else { panic!("{text}") };
            PresetRule { methods: methods.into(), path: path.into(), text: text.into() }
        })
        .collect()
}

/// Whether a rule matches requests of a route, whose segments are `{name}`.
fn is_for(rule: &PresetRule, method: &str, route: &str) -> bool {
    let is_method = rule.methods == "*" || rule.methods.split(',').any(|own| own == method);
    let (mut own, mut asked) = (rule.path.split('/'), route.split('/'));
    is_method
        && loop {
            match (own.next(), asked.next()) {
                (None, None) => break true,
                (Some(own), Some(_)) if own.starts_with("{*") => break true,
                (Some(own), Some(asked)) if own == asked || own.starts_with('{') => {}
                _ => break false,
            }
        }
}

/// Each route that Mattermost itself audits has a rule of its own with Mattermost's name of the event, or a
/// reason why not.
#[test]
fn mattermost_routes() {
    let rules = preset_rules("mattermost.conf");
    let (table, reasons) = (data("mattermost-routes.tsv"), data("mattermost-reasons.tsv"));
    let reasons: HashMap<_, _> = rows(&reasons)
        .map(|row| {
            let [method, route, why] = *row else { panic!("{row:?}") };
            ((method.to_owned(), route.to_owned()), why.to_owned())
        })
        .collect();
    let mut wrong = String::new();
    for row in rows(&table) {
        let [method, route, event, guard, _] = *row else { panic!("{row:?}") };
        let reason = reasons.get(&(method.to_owned(), route.to_owned()));
        let named = |rule: &&PresetRule| {
            is_for(rule, method, route) && rule.text.contains(&format!("audit={event}"))
        };
        match rules.iter().find(named) {
            None if reason.is_none() => wrong += &format!("\n{method} {route} {event}: no rule"),
            None => {}
            Some(_) if reason.is_some() => {
                // The name differs for a known reason.
            }
            Some(rule) => {
                // A rule for a route that requires a session must say so, so that the module notices
                // unknown sessions.
                let says = rule.text.contains("session=required");
                if guard.starts_with("ApiSessionRequired") && !says {
                    wrong += &format!("\n{method} {route}: no session=required");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// No page of a preset contains text that Tirreno's rule B06 takes for an attack, and each rule has a page.
#[test]
fn pages_are_harmless() {
    let substrings = data("b06.txt");
    let substrings: Vec<_> = substrings
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(str::to_lowercase)
        .collect();
    let mut wrong = String::new();
    for entry in fs::read_dir(presets()).expect("the presets") {
        let name = entry.expect("the presets").file_name().into_string().expect("a name");
        for rule in preset_rules(&name) {
            let is_event = !rule.text.starts_with("off ");
            let page = rule.text.split_whitespace().find_map(|word| word.strip_prefix("page="));
            let has_title = rule.text.contains("title=");
            match page {
                None if is_event => wrong += &format!("\n{name}: {} has no page", rule.path),
                Some(page) => {
                    let page = page.to_lowercase();
                    for found in substrings.iter().filter(|s| page.contains(&***s)) {
                        wrong += &format!("\n{name}: {} has {found:?}", page);
                    }
                }
                None => {}
            }
            if is_event && !has_title {
                wrong += &format!("\n{name}: {} has no title", rule.path);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
