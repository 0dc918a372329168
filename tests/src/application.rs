//! What the programs and tests that try a preset on a real application share: its clients, their actions, and the
//! records of these.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::*;
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::cases::{self, CASE};
use crate::client::{Connection, Response, form};
use crate::nginx::Nginx;
use crate::sensor::{RequestRecord, Sensor, StoredEvent, url_decode};
use crate::wait::wait_for;

/// The password of all users.
pub const PASSWORD: &str = "Correct-horse-1";

/// The `User-Agent` of a browser.
pub const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";

/// Longer than a failed first step waits for the login that withdraws it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The options of a command line, by their names; each has a value.
pub type Options = HashMap<&'static str, String>;

/// The main function of the program `name`, which tries a preset: reads the options, and fails if `run` finds a
/// record that is not as expected.
pub fn main(
    name: &str,
    usage: &str,
    (required, optional): (&[&'static str], &[&'static str]),
    run: fn(&Options) -> Result<bool, Box<dyn Error>>,
) -> ExitCode {
    match options(usage, required, optional).and_then(|o| o.map_or(Ok(true), |o| run(&o))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `None`: the usage was asked for.
fn options(
    usage: &str,
    required: &[&'static str],
    optional: &[&'static str],
) -> Result<Option<Options>, Box<dyn Error>> {
    let mut options = Options::new();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        let known = match &argument {
            Long("help") => {
                print!("{usage}");
                return Ok(None);
            }
            Long(name) => required.iter().chain(optional).find(|known| *known == name).copied(),
            _ => None,
        };
        let Some(name) = known else { return Err(argument.unexpected().into()) };
        options.insert(name, arguments.value()?.string()?);
    }
    match required.iter().find(|name| !options.contains_key(**name)) {
        Some(name) => Err(format!("--{name} is missing").into()),
        None => Ok(Some(options)),
    }
}

/// The body of a request, with its `Content-Type`.
#[derive(Default)]
pub struct Body {
    /// `None`: there is no body.
    pub kind: Option<&'static str>,
    /// As it is sent.
    pub bytes: Vec<u8>,
}

impl Body {
    /// A body of that `Content-Type`.
    pub fn new(kind: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind: Some(kind), bytes: bytes.into() }
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self::new("application/json", value.to_string())
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self::new("text/plain", text)
    }
}

impl<const N: usize> From<&[(&str, &str); N]> for Body {
    fn from(fields: &[(&str, &str); N]) -> Self {
        Self::new("application/x-www-form-urlencoded", form(fields))
    }
}

/// A request whose record is expected.
pub struct Step {
    /// In words.
    pub what: String,
    /// Its name in nginx's log.
    pub case: String,
    /// `GET`, say.
    pub method: String,
    /// Without arguments.
    pub path: String,
    /// The actual and the expected status.
    pub status: (u16, u16),
    /// The expected type and user of its event; `None` if no event is expected.
    pub expected: Option<(String, String)>,
}

/// A request.
pub struct Request<'a> {
    /// Its name in nginx's log.
    pub case: &'a str,
    /// Its method and its target.
    pub line: &'a str,
    /// Beside `Host` and its name.
    pub headers: &'a [(&'a str, &'a str)],
    /// As it is sent.
    pub body: &'a [u8],
}

/// nginx before an application, and the actions so far.
pub struct Stage {
    /// The nginx.
    pub nginx: Nginx,
    /// The actions, in order.
    pub steps: Vec<Step>,
    /// Texts that may only be in requests and answers.
    pub secrets: BTreeSet<String>,
    host: &'static str,
    tls: Arc<ClientConfig>,
    requests: usize,
}

impl Stage {
    /// An nginx that serves that host over TLS at `%PORT2%`.
    pub fn new(nginx: Nginx, host: &'static str, tls: Arc<ClientConfig>) -> Self {
        Self { nginx, steps: Vec::new(), secrets: BTreeSet::new(), host, tls, requests: 0 }
    }

    /// The name of the next step.
    pub fn next_case(&self) -> String {
        format!("s{}", self.steps.len())
    }

    /// Sends a request over a connection of its own.
    #[track_caller]
    pub fn send(&mut self, request: &Request<'_>) -> Response {
        self.requests += 1;
        let (method, target) = request.line.split_once(' ').expect("a method and a target");
        let mut headers = vec![("Host", self.host), (CASE, request.case)];
        headers.extend(request.headers);
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.port_n(2)));
        Connection::open_tls(address, self.host, Arc::clone(&self.tls))
            .and_then(|mut connection| connection.request(method, target, &headers, request.body))
            .unwrap_or_else(|error| panic!("{}: {error}", request.line))
    }

    /// Notes what is expected of a request that was answered with that status: `expected` is the status and, where
    /// there is to be an event, its type and its user. Whether the status is the expected one.
    pub fn expect(&mut self, what: &str, line: &str, status: u16, expected: &str) -> bool {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let mut words = expected.split(' ');
        let wanted = words.next().and_then(|status| status.parse().ok()).expect("a status");
        self.steps.push(Step {
            what: what.into(),
            case: self.next_case(),
            method: method.into(),
            path: target.split('?').next().unwrap_or_default().into(),
            status: (status, wanted),
            expected: words
                .next()
                .map(|kind| (kind.into(), words.next().unwrap_or("nobody").into())),
        });
        status == wanted
    }

    /// How many requests were made.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Waits until all events are delivered; returns the status of each target.
    pub fn settle(&self) -> BTreeMap<String, Value> {
        wait_for(PATIENCE, "the events to arrive", || {
            let targets = self.nginx.status("/status")["targets"].clone();
            let targets: BTreeMap<String, Value> = match targets {
                Value::Object(targets) => targets.into_iter().collect(),
                _ => return Err("no targets".into()),
            };
            match targets.values().all(|target| target["pending"] == json!(0)) {
                true => Ok(targets),
                false => Err(format!("{targets:?}")),
            }
        })
    }

    /// The events, by the names of their requests in nginx's log.
    ///
    /// # Panics
    /// An event has no request.
    pub fn events(&self, sensor: &Sensor) -> HashMap<String, Vec<Arc<StoredEvent>>> {
        let log = fs::read_to_string(self.nginx.prefix().join("cases.log")).expect("the log");
        let cases: HashMap<&str, &str> = log
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                Some((words.next()?, words.next()?)).map(|(case, id)| (id, case))
            })
            .collect();
        let mut events: HashMap<String, Vec<Arc<StoredEvent>>> = HashMap::new();
        for event in sensor.stored() {
            let id = event.trace_id.clone().unwrap_or_default();
            let case =
                cases.get(&*id).unwrap_or_else(|| panic!("of no request: {}", event.to_line()));
            events.entry((*case).to_owned()).or_default().push(event);
        }
        events
    }

    /// Prints the numbers of requests and events; reports events that were rejected or dropped.
    pub fn print_counts(&self, targets: &BTreeMap<String, Value>, wrong: &mut Vec<String>) {
        let events = self.steps.iter().filter(|step| step.expected.is_some()).count();
        println!(
            "\n{} actions, {events} of them events; {} requests in all.",
            self.steps.len(),
            self.requests
        );
        for (name, target) in targets {
            let counts = ["captured", "delivered", "rejected", "dropped", "merged", "withdrawn"];
            let counts =
                counts.map(|count| format!("{} {count}", target[count].as_u64().unwrap_or(0)));
            println!("Target `{name}`: {}.", counts.join(", "));
            if target["rejected"] != 0 || target["dropped"] != 0 {
                wrong.push(format!("{name}: {target}"));
            }
        }
    }

    /// Reports secrets in sent data, in nginx's files except its configuration, and in its shared memory.
    pub fn print_secrets(&self, sensor: &Sensor, wrong: &mut Vec<String>) {
        let sent = |request: RequestRecord| ("sent".to_owned(), url_decode(&request.body));
        let mut remains = self.nginx.remains(&self.nginx.prefix().join("logs"));
        remains.extend(sensor.requests().into_iter().map(sent));
        let mut found = 0;
        // Shorter texts would be found by chance.
        let secrets: Vec<_> = self.secrets.iter().filter(|secret| secret.len() >= 8).collect();
        for secret in &secrets {
            for (name, bytes) in &remains {
                if bytes.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                    found += 1;
                    wrong.push(format!("a secret is in {name}: {secret}"));
                }
            }
        }
        println!("{} secrets were looked for, {found} found.", secrets.len());
    }
}

/// Puts the cookies of an answer among those of a client.
pub fn take_cookies(cookies: &mut BTreeMap<String, String>, response: &Response) {
    for (name, value) in &response.headers {
        if !name.eq_ignore_ascii_case("Set-Cookie") {
            continue;
        }
        let value = String::from_utf8_lossy(value).into_owned();
        let pair = value.split(';').next().unwrap_or_default();
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        // WordPress clears with a blank.
        match matches!(text, "" | "%20" | "+") || value.contains("Max-Age=0") {
            true => cookies.remove(name),
            false => cookies.insert(name.to_owned(), text.to_owned()),
        };
    }
}

/// The header `Cookie` with a client's cookies.
pub fn cookie_header(cookies: &BTreeMap<String, String>) -> String {
    let pair = |(name, value): (&String, &String)| format!("{name}={value}");
    cookies.iter().map(pair).collect::<Vec<_>>().join("; ")
}

/// The name of an event's user in a table: one word for all users without a known name.
pub fn user_name(user: &str) -> &str {
    match user {
        "N/A" => "nobody",
        user if cases::is_alias(user) => "unknown",
        user if user.starts_with("session-") => "session",
        user => user,
    }
}

/// What a row of a table says beside the expectation: `yes`, or what was expected.
pub fn as_expected(step: &Step, good: bool) -> String {
    let (status, wanted) = step.status;
    let expected = match &step.expected {
        Some((kind, user)) => format!("{kind} of {user}"),
        None => "nothing".into(),
    };
    match good {
        true => "yes".into(),
        false if status == wanted => format!("**no: {expected}**"),
        false => format!("**no: {wanted}, {expected}**"),
    }
}

/// What a cell of a table says of several values.
pub fn cell(values: &[&str]) -> String {
    match values.is_empty() {
        true => "–".to_owned(),
        false => values.join(", "),
    }
}
