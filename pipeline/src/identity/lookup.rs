//! `tirreno_identity`: asks the application which user a token belongs to that it has just accepted.
//!
//! A thread of the worker that has the token sends it to the application, and overwrites it afterwards. For
//! many requests with one token there is one question over all workers, and the number of questions a second is
//! limited. An answer binds the token for all workers, with the evidence `lookup`; a refusal (401, 403) ends such a
//! binding. After a failure, the token is not asked about for a while.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use regex::bytes::Regex;
use ureq::Agent;
use ureq::http::{HeaderValue, Uri};
use zeroize::Zeroizing;

use crate::capture::identity::Identity;
use crate::capture::value::user_name;
use crate::clock::wall_ms;
use crate::config::secret::Secret;
use crate::delivery::http::{self, Addresses};
use crate::delivery::thread::{self, NICE_COLLECTING};
use crate::delivery::tls::Tls;
use crate::event::Param;
use crate::identity::keys::{Keys, TokenKey};
use crate::shm::bindings::Binding;
use crate::shm::zone::Zone;

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 64 * 1024;
/// How many questions may wait for a thread.
const QUEUE: usize = 64;
/// How many answers are kept for their ETags, and how many failures; the older half is dropped first.
const MAX_KEPT: usize = 4096;
/// How long a token is not asked about after a failure.
const FAILED_AGAIN: Duration = Duration::from_secs(60);
/// The header that marks the module's own requests, so that they are neither recorded nor asked about.
pub const MARK: &str = "X-Tirreno-Lookup";

/// How the token is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendAs {
    /// `Authorization: Bearer TOKEN`.
    Bearer,
    /// A cookie of that name.
    Cookie(Box<str>),
}

impl SendAs {
    /// Whether the application would read this very token. What stood encoded in the client's cookie could end the
    /// cookie here, or be decoded once more.
    fn may_send(&self, token: &[u8]) -> bool {
        let is_value = |b: &u8| b.is_ascii_graphic() && !b"\"%,;\\".contains(b);
        match self {
            Self::Bearer => token.iter().all(u8::is_ascii_graphic),
            Self::Cookie(_) => token.iter().all(is_value),
        }
    }
}

/// A `tirreno_identity` block.
#[derive(Clone, Debug)]
pub struct LookupConfig {
    /// Its name.
    pub name: String,
    /// The URL to GET.
    pub url: Uri,
    /// How the token is sent.
    pub send: SendAs,
    /// The pattern that a token must match to be asked about.
    pub token_format: Option<Regex>,
    /// The fields of the JSON answer, and the parameters that they set; one is `userName`.
    pub map: Vec<(Box<str>, Param)>,
    /// How long an answer is valid.
    pub cache: Duration,
    /// The most questions at a time, in each worker.
    pub concurrency: usize,
    /// The most questions a second.
    pub rate: f64,
    /// How long one may take.
    pub timeout: Duration,
    /// Further header fields to send.
    pub headers: Vec<(String, Secret)>,
    /// The TLS configuration.
    pub tls: Option<Tls>,
}

/// The URL to ask; `None` if it is not `http://` or `https://` with a host, or contains a password.
pub fn parse_url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let host = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    (is_http && !host.host().is_empty()).then_some(url)
}

/// A regular expression that must match a whole token.
///
/// # Errors
/// What is wrong with the regular expression.
pub fn parse_format(text: &str) -> Result<Regex, String> {
    Regex::new(&format!("^(?:{text})$")).map_err(|error| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default();
        last.trim_start_matches("error: ").to_owned()
    })
}

/// A question.
struct Question {
    key: TokenKey,
    realm: Box<[u8]>,
    token: Zeroizing<Vec<u8>>,
    /// The client's address.
    address: Option<IpAddr>,
    etag: Option<Known>,
}

/// The content of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The user; empty if the answer names none.
    pub user: Vec<u8>,
    /// Further parameters of the user.
    pub params: Vec<(Param, Vec<u8>)>,
    etag: Option<String>,
}

/// What the application says about a token.
enum Answer {
    /// Whose it is.
    Known(Known),
    /// That it is nobody's.
    Refused,
}

/// The result of a request for a token's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The question is under way.
    Waiting,
    /// No question is possible at present, or one has failed shortly before.
    No,
}

/// The questions of one worker.
pub struct Lookups {
    configs: Arc<[LookupConfig]>,
    zone: Zone,
    questions: Vec<Sender<Question>>,
    answers: Receiver<(TokenKey, Known)>,
    known: HashMap<TokenKey, (Known, Instant)>,
    failed: HashMap<TokenKey, Instant>,
}

impl Lookups {
    /// Starts the threads, which sleep until there is a question.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(configs: Arc<[LookupConfig]>, zone: Zone) -> io::Result<Self> {
        let (answer, answers) = bounded(MAX_KEPT);
        let mut questions = Vec::new();
        for config in configs.iter() {
            let (sender, receiver) = bounded(QUEUE);
            questions.push(sender);
            let addresses = Addresses::default();
            for _ in 0..config.concurrency {
                let thread = Asking {
                    config: config.clone(),
                    zone,
                    keys: zone.keys(),
                    addresses: addresses.clone(),
                    agent: http::agent(config.tls.clone(), addresses.clone()),
                    questions: receiver.clone(),
                    answers: answer.clone(),
                };
                spawn(move || thread.run())?;
            }
        }
        let (known, failed) = (HashMap::new(), HashMap::new());
        Ok(Self { configs, zone, questions, answers, known, failed })
    }

    /// Asks for the user of a token that the application has just accepted.
    pub fn ask(
        &mut self,
        which: usize,
        key: TokenKey,
        realm: &[u8],
        token: &[u8],
        address: Option<IpAddr>,
    ) -> Asked {
        let (Some(config), Some(queue)) = (self.configs.get(which), self.questions.get(which))
        else {
            return Asked::No;
        };
        if self.has_failed(key)
            || config.token_format.as_ref().is_some_and(|format| !format.is_match(token))
            || !config.send.may_send(token)
        {
            return Asked::No;
        }
        let limit = config.timeout + Duration::from_secs(1);
        if !self.zone.bindings().begin_question(key, limit) {
            return Asked::Waiting;
        }
        if queue.is_full() || !self.zone.bindings().take_turn(which, config.rate) {
            self.zone.bindings().end_question(key);
            return Asked::No;
        }
        let etag = self.known.get(&key).map(|(known, _)| known.clone());
        let token = Zeroizing::new(token.to_vec());
        let question = Question { key, realm: realm.into(), token, address, etag };
        match queue.try_send(question) {
            Ok(()) => Asked::Waiting,
            Err(_) => {
                self.zone.bindings().end_question(key);
                Asked::No
            }
        }
    }

    /// Whether an answer of that time must be renewed.
    pub fn is_stale(&self, which: usize, time_ms: i64) -> bool {
        let cache = self.configs.get(which).map_or(0, |config| config.cache.as_millis() as i64);
        wall_ms() - time_ms > cache
    }

    /// Handles the answers that have come.
    pub fn take_answers(&mut self) {
        while let Ok((key, known)) = self.answers.try_recv() {
            let now = Instant::now();
            if known.user.is_empty() {
                self.known.remove(&key);
                keep_most(&mut self.failed, |until| *until);
                self.failed.insert(key, now + FAILED_AGAIN);
            } else {
                keep_most(&mut self.known, |(_, at)| *at);
                self.known.insert(key, (known, now));
            }
        }
    }

    /// The further parameters of a token's user, if this worker has asked.
    pub fn known(&self, key: TokenKey) -> Option<&Known> {
        self.known.get(&key).map(|(known, _)| known)
    }

    /// Whether a question about the token has failed shortly before.
    pub fn has_failed(&self, key: TokenKey) -> bool {
        self.failed.get(&key).is_some_and(|until| *until > Instant::now())
    }
}

/// Drops the older half if there are too many.
fn keep_most<V>(map: &mut HashMap<TokenKey, V>, at: impl Fn(&V) -> Instant) {
    if map.len() < MAX_KEPT {
        return;
    }
    let mut times: Vec<_> = map.values().map(&at).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    map.retain(|_, value| at(value) > middle);
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::spawn("tirreno-lookup", NICE_COLLECTING, body)?;
    Ok(())
}

/// One thread that asks.
struct Asking {
    config: LookupConfig,
    zone: Zone,
    keys: Keys,
    addresses: Addresses,
    agent: Agent,
    questions: Receiver<Question>,
    answers: Sender<(TokenKey, Known)>,
}

impl Asking {
    fn run(mut self) {
        while let Ok(question) = self.questions.recv() {
            let asked = http::within(self.config.timeout, || self.ask(&question));
            if asked.is_none() {
                self.agent = http::agent(self.config.tls.clone(), self.addresses.clone());
            }
            let asked = asked.flatten();
            let Question { key, realm, .. } = question;
            let bindings = self.zone.bindings();
            if let Some(Answer::Refused) = asked {
                bindings.end_by_lookup(&self.keys, key, wall_ms());
            }
            let known = match asked {
                Some(Answer::Known(known)) => known,
                _ => Known::default(),
            };
            if !known.user.is_empty() {
                let binding = Binding::new(&self.keys, &realm, key, &known.user);
                let binding = Binding { identity: Identity::Lookup, ..binding };
                bindings.bind_by_lookup(&self.keys, &binding, wall_ms());
            }
            bindings.end_question(key);
            let _ = self.answers.try_send((key, known));
        }
    }

    fn ask(&self, question: &Question) -> Option<Answer> {
        let token = question.token.as_slice();
        let mut request = self.agent.get(&self.config.url);
        let secret = |prefix: &str, separator: u8| {
            let mut value = Zeroizing::new(Vec::with_capacity(prefix.len() + 1 + token.len()));
            value.extend_from_slice(prefix.as_bytes());
            value.push(separator);
            value.extend_from_slice(token);
            // The value is not copied, and overwritten with the request.
            let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        request = match &self.config.send {
            SendAs::Bearer => request.header("Authorization", secret("Bearer", b' ')?),
            SendAs::Cookie(name) => request.header("Cookie", secret(name, b'=')?),
        };
        request = request.header(MARK, self.keys.mark(self.zone.instance()));
        if let Some(address) = question.address {
            request = request.header("X-Forwarded-For", address.to_string());
        }
        let etag = question.etag.as_ref().and_then(|known| known.etag.as_ref());
        if let Some(etag) = etag {
            request = request.header("If-None-Match", etag);
        }
        for (name, value) in &self.config.headers {
            request = request.header(name, value.reveal());
        }
        let timeout = Some(self.config.timeout);
        let mut answer = request.config().timeout_global(timeout).build().call().ok()?;
        match answer.status().as_u16() {
            304 if etag.is_some() => question.etag.clone().map(Answer::Known),
            200 => {
                let etag = answer.headers().get("ETag").and_then(|etag| etag.to_str().ok());
                let etag = etag.map(str::to_owned);
                let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().ok()?;
                Known::read(&self.config.map, &body, etag).map(Answer::Known)
            }
            status => {
                let _ = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
                matches!(status, 401 | 403).then_some(Answer::Refused)
            }
        }
    }
}

impl Known {
    /// The content of a JSON answer; `None` without a user. A text of blanks or with control characters is no value, nor
    /// is a number whose digits are lost in the reader's.
    fn read(map: &[(Box<str>, Param)], body: &[u8], etag: Option<String>) -> Option<Self> {
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        let mut known = Self { etag, ..Self::default() };
        for (field, param) in map {
            let mut value = Some(&body);
            for name in field.split('.') {
                value = value.and_then(|value| value.get(name));
            }
            let text = match value {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(serde_json::Value::Number(number)) if !number.is_f64() => number.to_string(),
                _ => continue,
            };
            if text.trim().is_empty() || text.chars().any(char::is_control) {
                continue;
            }
            if *param == Param::UserName {
                known.user = user_name(text.into_bytes().into(), true).into_owned();
            } else if let Some((_, value)) = known.params.iter_mut().find(|(p, _)| p == param) {
                // A first and a last name.
                value.extend_from_slice(format!(" {text}").trim_end().as_bytes());
            } else {
                known.params.push((*param, text.into_bytes()));
            }
        }
        (!known.user.is_empty()).then_some(known)
    }
}

impl std::fmt::Debug for Lookups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookups").field("configs", &self.configs.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::zone::anonymous;

    #[test]
    fn what_an_answer_says() {
        let map = [("id", Param::UserName), ("first", Param::FullName), ("last", Param::FullName)];
        let map = map.map(|(field, param)| (field.into(), param));
        let read = |body: &str| Known::read(&map, body.as_bytes(), None);
        let user = |body: &str| read(body).map(|known| String::from_utf8(known.user).unwrap());
        assert_eq!(user(r#"{"id":"ann"}"#).as_deref(), Some("ann"));
        assert_eq!(user(r#"{"id":12345678901234567890}"#).as_deref(), Some("12345678901234567890"));
        assert_eq!(user(r#"{"id":" ann "}"#).as_deref(), Some("ann"));
        for none in [
            r#""   ""#,
            r#""""#,
            r#""vic\ntim""#,
            r#""vic\u0000""#,
            r#""\u0085""#,
            "12345678901234567890123",
            "1.5",
            "true",
            "[]",
        ] {
            assert_eq!(user(&format!(r#"{{"id":{none}}}"#)), None, "{none}");
        }
        // Longer names stay apart.
        let long = |end| user(&format!(r#"{{"id":"{}{end}"}}"#, "x".repeat(3000))).unwrap();
        assert_eq!(long("a").len(), 100);
        assert_ne!(long("a"), long("b"));
        let known = read(r#"{"id":"u1","first":"Ann","last":"Example"}"#).unwrap();
        assert_eq!(known.params, [(Param::FullName, b"Ann Example".to_vec())]);
        let known = read(r#"{"id":"u1","first":"A\nB","last":"Example"}"#).unwrap();
        assert_eq!(known.params, [(Param::FullName, b"Example".to_vec())]);
    }

    #[test]
    fn what_can_be_sent() {
        let cookie = SendAs::Cookie("sid".into());
        for token in ["abc", "a=b", "a.b-c_d+e/f~"] {
            assert!(cookie.may_send(token.as_bytes()) && SendAs::Bearer.may_send(token.as_bytes()));
        }
        for token in ["zz;sid=t1", "a,b", "a\"b", "a\\b", "a%41", "a b", "a\nb", "é"] {
            assert!(!cookie.may_send(token.as_bytes()), "{token:?}");
        }
        assert!(!SendAs::Bearer.may_send(b"a b"));
    }

    #[test]
    fn a_failure_is_over_after_a_while() {
        let zone = anonymous(1 << 20).unwrap();
        let mut lookups = Lookups::start(Arc::new([]), zone).unwrap();
        let key = TokenKey([1, 2]);
        let now = Instant::now();
        lookups.failed.insert(key, now + FAILED_AGAIN);
        assert!(lookups.has_failed(key));
        lookups.failed.insert(key, now);
        assert!(!lookups.has_failed(key));
    }
}
