//! A stand-in for Tirreno's sensor.
//!
//! It answers, decodes, changes and loses events as the real server does (release 0.10.0, measured
//! under Apache and under nginx with php-fpm), keeps what would have been stored, and can be told
//! at any time to misbehave.

mod event;
mod php;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection};
use socket2::SockRef;

pub use event::{EVENT_TYPES, REQUIRED, StoredEvent};
pub use php::{Param, Params, clean_utf8, parse_form, parse_time, url_decode};

use crate::http1::{self, Headers};
use crate::server::{Server, lock};
use crate::transport::Transport;

/// The key a sensor knows unless told otherwise.
pub const DEFAULT_KEY: &str = "test-key";

/// Called with each event as it is stored, on its connection's thread.
pub type Observer = Box<dyn Fn(&StoredEvent) + Send + Sync>;

/// How a sensor starts. The default: plain HTTP on a free port of 127.0.0.1, kept-alive
/// connections, no rate limit, the key [`DEFAULT_KEY`].
pub struct SensorOptions {
    /// Where to listen; `None` for a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// What stands before `/sensor/` and `/api/…`, such as `/tirreno`; empty for none.
    pub prefix: String,
    /// The keys that are known.
    pub keys: Vec<String>,
    /// The rate limit; `None` for none.
    pub rate: Option<Rate>,
    /// Answer `Connection: close` to everything, as Apache without FPM does.
    pub close: bool,
    /// Close a connection that was idle this long.
    pub idle_close: Option<Duration>,
    /// Close a connection after this many requests (nginx's `keepalive_requests`: 1,000).
    pub max_requests: Option<u32>,
    /// Speak TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Keep every request for [`Sensor::requests`]. Without, only what is stored or lost is kept:
    /// for hundreds of thousands of events.
    pub record_requests: bool,
    /// Told of each stored event.
    pub observer: Option<Observer>,
}

impl Default for SensorOptions {
    fn default() -> Self {
        Self {
            listen: None,
            prefix: String::new(),
            keys: vec![DEFAULT_KEY.to_owned()],
            rate: None,
            close: false,
            idle_close: None,
            max_requests: None,
            tls: None,
            record_requests: true,
            observer: None,
        }
    }
}

/// A sliding window: over `events` of them in `window`, the answer is 429.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Events a window.
    pub events: usize,
    /// The window's length.
    pub window: Duration,
}

impl Rate {
    /// `events` in `seconds`.
    pub fn new(events: usize, seconds: u64) -> Self {
        Self { events, window: Duration::from_secs(seconds) }
    }
}

/// What the sensor does with a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    reply: Reply,
    delay: Duration,
    store: bool,
    /// Header fields of the answer, each with its line's end.
    fields: String,
    /// Answers that come before it, whole.
    interim: String,
    /// What comes behind it, in the same piece.
    rest: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Reply {
    ByTheRules,
    Code { code: u16, location: Option<String> },
    Hang,
    Endless(Duration),
    Reset,
    Close,
}

impl Answer {
    /// Answers by the server's own rules.
    pub fn normal() -> Self {
        Self::new(Reply::ByTheRules)
    }

    /// Always this status, with an empty body; nothing is stored.
    pub fn code(code: u16) -> Self {
        Self::new(Reply::Code { code, location: None })
    }

    /// A redirect: `code` (301, 302, …) to `location`.
    pub fn redirect(code: u16, location: &str) -> Self {
        Self::new(Reply::Code { code, location: Some(location.to_owned()) })
    }

    /// Never answers; the connection stays open until the client gives up.
    pub fn hang() -> Self {
        Self::new(Reply::Hang)
    }

    /// Answers with header fields without an end, and this pause between them, until the client gives up.
    pub fn endless(pause: Duration) -> Self {
        Self::new(Reply::Endless(pause))
    }

    /// Reads the request, then resets the connection (RST).
    pub fn reset() -> Self {
        Self::new(Reply::Reset)
    }

    /// Reads the request, then closes the connection without an answer.
    pub fn close() -> Self {
        Self::new(Reply::Close)
    }

    /// The same, later: the server does its work at once and answers after `delay`.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The same, but a valid event is stored whatever the answer (a connection lost after the
    /// work was done; a server whose success is 200). The key and the rate are not looked at.
    pub fn storing(mut self) -> Self {
        self.store = true;
        self
    }

    /// The same, with `Retry-After`.
    pub fn retry_after(mut self, value: &str) -> Self {
        self.fields = format!("Retry-After: {value}\r\n");
        self
    }

    /// The same, behind an interim answer such as 103 (Early Hints).
    pub fn with_interim(mut self, code: u16) -> Self {
        self.interim += &format!("HTTP/1.1 {code} Stand-in\r\nLink: </x.css>; rel=preload\r\n\r\n");
        self
    }

    /// The same, with so many header fields more.
    pub fn with_fields(mut self, count: usize) -> Self {
        (0..count).for_each(|n| self.fields += &format!("X-Field-{n}: value\r\n"));
        self
    }

    /// The same, with these bytes behind it that belong to no answer.
    pub fn with_rest(mut self, rest: &str) -> Self {
        self.rest = rest.to_owned();
        self
    }

    fn new(reply: Reply) -> Self {
        let (fields, interim, rest) = (String::new(), String::new(), String::new());
        Self { reply, delay: Duration::ZERO, store: false, fields, interim, rest }
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// When it had arrived completely.
    pub at: Instant,
    /// The connection it came over, counted from 1.
    pub connection: u64,
    /// `POST`, …
    pub method: String,
    /// The request target as sent.
    pub path: String,
    /// In order, values as received.
    pub headers: Headers,
    /// As sent.
    pub body: Vec<u8>,
    /// The form as PHP decodes it; empty for any other content type.
    pub params: Params,
    /// The status answered; `None` when there was no answer, or none yet.
    pub answer: Option<u16>,
}

impl RequestRecord {
    /// The header's first value, lossily.
    pub fn header(&self, name: &str) -> Option<String> {
        http1::header(&self.headers, name).map(clean_utf8)
    }

    /// A parameter's text, lossily; `None` when it is absent or an array.
    pub fn param(&self, name: &str) -> Option<String> {
        text_param(&self.params, name)
    }
}

/// An event that was answered with 204 and never stored.
#[derive(Clone, Debug)]
pub struct LostEvent {
    /// Which value did it.
    pub reason: String,
    /// As decoded.
    pub params: Params,
    /// The `X-Request-Id` header, lossily.
    pub trace_id: Option<String>,
}

/// Too few events arrived in time.
#[derive(Debug)]
pub struct TooFew {
    /// How many were waited for.
    pub wanted: usize,
    /// How many were stored.
    pub stored: usize,
    /// How many were lost inside.
    pub lost: usize,
    /// How many event requests came in all, and the last ones' answers.
    pub requests: (usize, Vec<Option<u16>>),
    /// How long the wait was.
    pub waited: Duration,
}

impl fmt::Display for TooFew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, stored, lost, requests: (requests, answers), waited } = self;
        write!(
            f,
            "{stored} of {wanted} events stored after {waited:?}, {lost} lost; \
             {requests} requests, the last answered {answers:?}"
        )
    }
}

impl std::error::Error for TooFew {}

/// A running stand-in. Dropping it ends its connections and frees its port.
pub struct Sensor {
    shared: Arc<Shared>,
    server: Server,
}

struct Shared {
    prefix: String,
    close: bool,
    idle_close: Option<Duration>,
    max_requests: Option<u32>,
    record_requests: bool,
    observer: Option<Observer>,
    state: Mutex<State>,
    /// Signalled after each event and when the sensor stops.
    changed: Condvar,
}

struct State {
    keys: BTreeSet<String>,
    default: Answer,
    rules: Vec<(&'static str, String, Answer)>,
    key_check: Answer,
    rate: Option<Rate>,
    window: VecDeque<Instant>,
    tls: Option<Arc<ServerConfig>>,
    requests: Vec<RequestRecord>,
    events_received: usize,
    stored: Vec<Arc<StoredEvent>>,
    lost: Vec<LostEvent>,
    stopping: bool,
}

impl Sensor {
    /// Starts a sensor.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(options: SensorOptions) -> Self {
        Self::try_start(options).unwrap_or_else(|error| panic!("the sensor cannot listen: {error}"))
    }

    /// Starts a sensor.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn try_start(options: SensorOptions) -> io::Result<Self> {
        let state = State {
            keys: options.keys.into_iter().collect(),
            default: Answer::normal(),
            rules: Vec::new(),
            key_check: Answer::normal(),
            rate: options.rate,
            window: VecDeque::new(),
            tls: options.tls,
            requests: Vec::new(),
            events_received: 0,
            stored: Vec::new(),
            lost: Vec::new(),
            stopping: false,
        };
        let shared = Arc::new(Shared {
            prefix: options.prefix,
            close: options.close,
            idle_close: options.idle_close,
            max_requests: options.max_requests,
            record_requests: options.record_requests,
            observer: options.observer,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let handler = {
            let shared = Arc::clone(&shared);
            move |stream, number| shared.serve(stream, number)
        };
        let server = Server::start(options.listen, handler)?;
        Ok(Self { shared, server })
    }

    /// The sensor's URL, for `url` in `tirreno_target`: by address, or by the name `localhost`
    /// with TLS.
    pub fn url(&self) -> String {
        let address = self.server.address();
        let prefix = &self.shared.prefix;
        if self.shared.state().tls.is_some() {
            format!("https://localhost:{}{prefix}/sensor/", address.port())
        } else {
            format!("http://{address}{prefix}/sensor/")
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// What becomes of events that no rule matches. [`Answer::normal`] restores the start.
    pub fn set_default(&self, answer: Answer) {
        self.shared.state().default = answer;
    }

    /// What becomes of events whose decoded `url` contains `substring`; the first rule that
    /// matches decides, one for the same substring is replaced.
    pub fn set_rule(&self, substring: &str, answer: Answer) {
        self.set_rule_of("url", substring, answer);
    }

    /// As [`set_rule`](Self::set_rule), for another parameter than `url`: as a firewall has them.
    pub fn set_rule_of(&self, param: &'static str, substring: &str, answer: Answer) {
        let mut state = self.shared.state();
        match state.rules.iter_mut().find(|(name, have, _)| *name == param && have == substring) {
            Some(rule) => rule.2 = answer,
            None => state.rules.push((param, substring.to_owned(), answer)),
        }
    }

    /// Forgets all rules.
    pub fn clear_rules(&self) {
        self.shared.state().rules.clear();
    }

    /// The keys that are known from now on.
    pub fn set_keys<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        self.shared.state().keys = keys.into_iter().map(str::to_owned).collect();
    }

    /// What the key check answers: a closed path is `Answer::code(404)`.
    pub fn set_key_check(&self, answer: Answer) {
        self.shared.state().key_check = answer;
    }

    /// The rate limit from now on, with an empty window.
    pub fn set_rate(&self, rate: Option<Rate>) {
        let mut state = self.shared.state();
        state.rate = rate;
        state.window.clear();
    }

    /// The certificate of connections from now on; `None` for plain HTTP.
    pub fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        self.shared.state().tls = tls;
    }

    /// What is stored, in order of arrival.
    pub fn stored(&self) -> Vec<Arc<StoredEvent>> {
        self.shared.state().stored.clone()
    }

    /// How many events are stored.
    pub fn stored_count(&self) -> usize {
        self.shared.state().stored.len()
    }

    /// What was accepted and lost inside, in order of arrival.
    pub fn lost(&self) -> Vec<LostEvent> {
        self.shared.state().lost.clone()
    }

    /// Every request, in order of arrival, key checks and wrong paths included.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.state().requests.clone()
    }

    /// The key checks, in order of arrival.
    pub fn key_checks(&self) -> Vec<RequestRecord> {
        let path = self.shared.key_check_path();
        let state = self.shared.state();
        state.requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// How many POSTs to the sensor's path came, whatever became of them.
    pub fn events_received(&self) -> usize {
        self.shared.state().events_received
    }

    /// How many connections were accepted since the start.
    pub fn connections(&self) -> u64 {
        self.server.accepted()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.server.open_connections()
    }

    /// Waits until at least `count` events are stored, and returns all that are.
    ///
    /// # Errors
    /// After `timeout`.
    pub fn wait_stored(
        &self,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Arc<StoredEvent>>, TooFew> {
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), timeout, |state| state.stored.len() < count)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stored.len() >= count {
            return Ok(state.stored.clone());
        }
        let mut answers: Vec<_> =
            state.requests.iter().rev().take(5).map(|request| request.answer).collect();
        answers.reverse();
        Err(TooFew {
            wanted: count,
            stored: state.stored.len(),
            lost: state.lost.len(),
            requests: (state.events_received, answers),
            waited: timeout,
        })
    }

    /// Forgets all requests and events; rules, keys and the rate's window stay.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.requests.clear();
        state.stored.clear();
        state.lost.clear();
        state.events_received = 0;
    }

    /// Goes down: open connections end, new ones are refused.
    pub fn refuse(&self) {
        self.server.refuse();
        self.server.drop_connections();
    }

    /// Comes up again on the same port.
    pub fn listen_again(&self) {
        self.server.listen_again();
    }

    /// Ends the open connections, as an idle time-out does; new ones are welcome.
    pub fn drop_connections(&self) {
        self.server.drop_connections();
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_all();
    }
}

/// What to do about a request, decided.
struct Decision {
    reply: Reply,
    delay: Duration,
    fields: String,
    interim: String,
    rest: String,
    body: Vec<u8>,
    /// Where the request is recorded.
    record: Option<usize>,
    stored: Option<Arc<StoredEvent>>,
}

/// What follows an answer.
enum Next {
    Continue,
    Close,
    Reset,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn sensor_path(&self) -> String {
        format!("{}/sensor/", self.prefix)
    }

    fn key_check_path(&self) -> String {
        format!("{}/api/v1/blacklist/search", self.prefix)
    }

    fn serve(&self, stream: Arc<TcpStream>, number: u64) {
        let tls = self.state().tls.clone();
        let mut io = match tls {
            None => Transport::Plain(stream),
            Some(config) => match ServerConnection::new(config) {
                Ok(tls) => Transport::Server(Box::new(tls), stream),
                Err(_) => return,
            },
        };
        // Only a closed socket refuses a time-out, and reading tells that.
        let _ = io.tcp().set_read_timeout(self.idle_close);
        let mut reader = http1::Reader::default();
        let mut served = 0;
        // A request that cannot be read, a failed handshake and a time-out end the connection.
        while let Ok(Some(request)) = reader.request(&mut io) {
            served += 1;
            let last = self.close
                || !request.keep_alive
                || self.max_requests.is_some_and(|max| served >= max);
            let decision = self.decide(request, number);
            if let (Some(observer), Some(event)) = (&self.observer, &decision.stored) {
                observer(event);
            }
            self.pause(decision.delay);
            match self.answer(&mut io, &decision, last) {
                Ok(Next::Continue) => {}
                // Without the orderly end below: the socket's own end sends the RST.
                Ok(Next::Reset) => return,
                Ok(Next::Close) | Err(_) => break,
            }
        }
        io.close();
    }

    /// Records the request, does the work, and says what to answer.
    fn decide(&self, request: http1::Request, connection: u64) -> Decision {
        let at = Instant::now();
        let path = request.target.split('?').next().unwrap_or_default();
        let is_event = path == self.sensor_path();
        let is_key_check = path == self.key_check_path();
        let is_form = http1::header(&request.headers, "Content-Type")
            .is_some_and(|value| value.starts_with(b"application/x-www-form-urlencoded"));
        let params = if is_form && request.method == "POST" {
            parse_form(&request.body)
        } else {
            Params::new()
        };
        let key = http1::header(&request.headers, "Api-Key").map(clean_utf8);
        let trace_id = http1::header(&request.headers, "X-Request-Id").map(<[u8]>::to_vec);

        let mut state = self.state();
        let mut answer_body = Vec::new();
        let mut stored = None;
        let mut answer = if is_event {
            state.events_received += 1;
            state.answer_for(&params)
        } else if is_key_check {
            state.key_check.clone()
        } else {
            Answer::code(404)
        };
        if answer.reply == Reply::ByTheRules {
            let known = key.as_ref().map(|key| state.keys.contains(key));
            let code = if is_event {
                state.judge(&params, known == Some(true), at)
            } else {
                answer_body = key_check_body(&request.body);
                match known {
                    None => 400,
                    Some(false) => 401,
                    Some(true) => 200,
                }
            };
            answer.store = is_event && code == 204;
            answer.reply = Reply::Code { code, location: None };
        }
        if answer.store && is_event && !event::is_invalid(&params) {
            let arrival = event::Arrival { order: state.stored.len(), connection, at };
            match event::store(&params, trace_id.as_deref(), arrival) {
                Ok(event) => {
                    let event = Arc::new(event);
                    state.stored.push(Arc::clone(&event));
                    stored = Some(event);
                }
                Err(reason) => state.lost.push(LostEvent {
                    reason,
                    params: params.clone(),
                    trace_id: trace_id.as_deref().map(clean_utf8),
                }),
            }
        }
        let record = (self.record_requests || !is_event).then(|| {
            state.requests.push(RequestRecord {
                at,
                connection,
                method: request.method,
                path: request.target,
                headers: request.headers,
                body: request.body,
                params,
                answer: None,
            });
            state.requests.len() - 1
        });
        drop(state);
        self.changed.notify_all();
        let Answer { reply, delay, fields, interim, rest, .. } = answer;
        Decision { reply, delay, fields, interim, rest, body: answer_body, record, stored }
    }

    /// Waits, but not beyond the sensor's end.
    fn pause(&self, delay: Duration) {
        if !delay.is_zero() {
            let _ = self.changed.wait_timeout_while(self.state(), delay, |state| !state.stopping);
        }
    }

    fn answer(&self, io: &mut Transport, decision: &Decision, last: bool) -> io::Result<Next> {
        match &decision.reply {
            Reply::Hang => {
                // The client's bytes no longer matter, its leaving does.
                io.tcp().set_read_timeout(None)?;
                while io.tcp().read(&mut [0; 1024])? > 0 {}
                Ok(Next::Close)
            }
            Reply::Endless(pause) => {
                io.write_all(b"HTTP/1.1 204 Stand-in\r\n")?;
                // It ends when the client closes the connection.
                loop {
                    io.write_all(b"X-Field: value\r\n")?;
                    io.flush()?;
                    self.pause(*pause);
                }
            }
            Reply::Reset => {
                SockRef::from(io.tcp()).set_linger(Some(Duration::ZERO))?;
                Ok(Next::Reset)
            }
            Reply::Close | Reply::ByTheRules => Ok(Next::Close),
            Reply::Code { code, location } => {
                // Recorded first: who sees the answer finds it recorded.
                if let Some(record) = decision.record
                    && let Some(record) = self.state().requests.get_mut(record)
                {
                    record.answer = Some(*code);
                }
                let body: &[u8] = if *code == 200 { &decision.body } else { &[] };
                let connection = if last { "close" } else { "keep-alive" };
                let mut head =
                    format!("HTTP/1.1 {code:03} Stand-in\r\nConnection: {connection}\r\n");
                if let Some(location) = location {
                    head += &format!("Location: {location}\r\n");
                }
                if *code != 204 && *code != 304 {
                    let kind = if body.is_empty() { "text/html" } else { "application/json" };
                    head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
                }
                let Decision { fields, interim, rest, .. } = decision;
                head += &format!("{fields}\r\n");
                let whole = [interim.as_bytes(), head.as_bytes(), body, rest.as_bytes()].concat();
                io.write_all(&whole)?;
                io.flush()?;
                Ok(if last { Next::Close } else { Next::Continue })
            }
        }
    }
}

impl State {
    fn answer_for(&self, params: &Params) -> Answer {
        let holds = |(name, substring, _): &&(&str, String, Answer)| {
            text_param(params, name).is_some_and(|value| value.contains(substring))
        };
        let rule = self.rules.iter().find(holds);
        rule.map_or(&self.default, |(.., answer)| answer).clone()
    }

    /// The real server's order: the rate of a known key, then the required parameters, then the
    /// key. An invalid event counts in the window; a refused one and a bad key do not.
    fn judge(&mut self, params: &Params, known_key: bool, now: Instant) -> u16 {
        if !known_key {
            return 200;
        }
        if let Some(rate) = self.rate {
            while self.window.front().is_some_and(|&at| now.duration_since(at) >= rate.window) {
                self.window.pop_front();
            }
            if self.window.len() >= rate.events {
                return 429;
            }
            self.window.push_back(now);
        }
        if event::is_invalid(params) { 200 } else { 204 }
    }
}

fn text_param(params: &Params, name: &str) -> Option<String> {
    match params.get(name)? {
        Param::Text(bytes) => Some(clean_utf8(bytes)),
        Param::Array(_) => None,
    }
}

fn key_check_body(request: &[u8]) -> Vec<u8> {
    let value = serde_json::from_slice(request)
        .ok()
        .and_then(|json: serde_json::Value| json.get("value").cloned())
        .unwrap_or_default();
    serde_json::json!({ "value": value, "blacklisted": false }).to_string().into_bytes()
}
