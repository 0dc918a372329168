//! `tirreno_event`: a rule's conditions and settings, and the order in which rules are tried.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::exchange::{Exchange, Text};
use crate::capture::extract::{self, BodyFormat, Field, Reads, TextError, Wanted};
use crate::capture::level::Level;
use crate::capture::path;
use crate::capture::rules::{Methods, Pattern, Rules, Segments, StatusKey};
use crate::capture::value::{Compile, Purpose, Read, Source, Trust, Value, ValueError};
use crate::event::{EventType, Param};

/// The longest name of an audit record, or of a field in it.
const MAX_NAME: usize = 100;

/// The longest `once=`, in seconds.
const MAX_ONCE: u64 = 24 * 3600;

/// A place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file's name.
    pub file: Arc<str>,
    /// The line in it, from 1 on.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A source of a rule's user.
#[derive(Debug)]
pub enum User<T> {
    /// A value.
    Value(Value<T>),
    /// The session that the request belongs to.
    Session,
    /// The session of the request.
    Basic,
}

/// `unknown=`: what replaces an unknown account name, because people type passwords into the wrong field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A keyed hash stands for the name.
    Hash,
    /// The name is sent.
    Send,
    /// There is no user.
    Omit,
}

/// `if=` or `first_step=`.
#[derive(Debug)]
pub struct Condition<T> {
    /// As it is written.
    pub text: String,
    negated: bool,
    test: Test<T>,
}

#[derive(Debug)]
enum Test<T> {
    /// The value is not empty, `0` or `off`.
    On(Value<T>),
    /// The value is one of these.
    OneOf(Value<T>, Box<[Box<[u8]>]>),
    /// These bytes are in the answer's beginning.
    AnswerHas(extract::Text),
}

/// A rule's settings.
#[derive(Debug)]
pub struct Rule<T> {
    /// The event's type; `None` if such a request is no event.
    pub event: Option<EventType>,
    /// `user=`: replaces `tirreno_user`, unless it is empty.
    pub users: Box<[User<T>]>,
    /// `confirmed=body`: the user of a successful login is the account that the body names.
    pub confirmed: bool,
    /// `unknown=`: what replaces an account name from a body if the account is unknown.
    pub unknown: Unknown,
    /// `anonymous=`: whether the request is an event even without a user; `None` if the location decides.
    pub anonymous: Option<bool>,
    /// `redact=`: the names of the secret segments.
    pub redact: Box<[String]>,
    /// `audit=`: the event's name in audit records; if it is empty, the name of the type.
    pub audit: String,
    /// `level=`: the event's level in audit records; `None` to derive it.
    pub level: Option<Level>,
    /// `body=`: how the application reads the request's body.
    pub body: Option<BodyFormat>,
    /// `bind=`: the value in the answer that names the user of the session.
    pub bind: Option<Value<T>>,
    /// `session=required`: the application gives this answer only to requests with a valid session.
    pub session: Option<Required>,
    /// `first_step=`: conditions that all hold if a failed login is only the first step of a login.
    pub first_step: Box<[Condition<T>]>,
    /// `param=`: parameters of Tirreno.
    pub params: Box<[(Param, Value<T>)]>,
    /// `field=`: fields of audit records.
    pub fields: Box<[(Box<str>, Value<T>)]>,
    /// `arg=`: arguments of the URL that Tirreno gets with `tirreno_url page`.
    pub args: Box<[(Box<str>, Value<T>)]>,
    /// `page=`: the URL that Tirreno gets with `tirreno_url page`; if `None`, the rule's path.
    pub page: Option<Box<str>>,
    /// `title=`.
    pub title: Option<Value<T>>,
    /// `outcome=attempt`.
    pub is_attempt: bool,
    /// `once=`: equal requests of one user within this time are one event.
    pub once: Option<Duration>,
    /// The path, as written in the configuration.
    pub path: Box<str>,
    /// The place of the rule in the configuration.
    pub place: Place,
    status: Option<StatusKey>,
    conditions: Box<[Condition<T>]>,
}

/// `session=required[:LIST]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required(Option<StatusKey>);

impl Required {
    /// Whether this answer of the application shows that the request has a valid session.
    pub fn holds<X: Exchange>(&self, exchange: &X) -> bool {
        match &self.0 {
            None => (200..300).contains(&exchange.status()),
            Some(list) => list.holds(exchange),
        }
    }
}

/// Why a rule with a matching method and path does not match a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch<'r> {
    /// `status=` does not hold.
    Status,
    /// This `if=` does not hold.
    Condition(&'r str),
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("\"status=\" does not hold"),
            Self::Condition(text) => write!(f, "\"{text}\" does not hold"),
        }
    }
}

/// Whether a value means "off", as in nginx's own `if=` parameters.
pub fn is_off(value: &[u8]) -> bool {
    matches!(value, b"" | b"0" | b"off")
}

impl<T: Text> Condition<T> {
    fn parse(
        key: &Key<'_>,
        format: Option<BodyFormat>,
        compile: &mut Compile<'_, T>,
    ) -> Result<Self, String> {
        let wrong = |error: ValueError| key.wrong(error);
        let text = key.value;
        let (negated, text) = text.strip_prefix(b"!").map_or((false, text), |text| (true, text));
        let test = match text.strip_prefix(b"answer~") {
            Some(wanted) => {
                let text = extract::Text::new(wanted);
                Test::AnswerHas(text.map_err(|error: TextError| key.wrong(error))?)
            }
            None => {
                let mut value = |text| Value::parse(text, Purpose::Look, format, compile);
                let equals = text.iter().enumerate().filter(|(_, byte)| **byte == b'=');
                // A regular expression may hold a `=`, too. Behind its first group, where something follows, a
                // `=` begins the list, because only a group is worth a comparison.
                let split = equals.map(|(at, _)| at).find_map(|at| match value(&text[..at]) {
                    Err(ValueError::Regex(_)) => None,
                    Ok(value) if value.groups() == Some(0) => None,
                    Ok(value) if value.groups().is_some() && text[at + 1..].is_empty() => None,
                    value => Some((at, value)),
                });
                match split {
                    Some((at, value)) => {
                        let list = text[at + 1..].split(|b| *b == b',').map(Into::into);
                        Test::OneOf(value.map_err(wrong)?, list.collect())
                    }
                    None => Test::On(value(text).map_err(wrong)?),
                }
            }
        };
        Ok(Self { text: key.text.to_owned(), negated, test })
    }

    fn value(&self) -> Option<&Value<T>> {
        match &self.test {
            Test::On(value) | Test::OneOf(value, _) => Some(value),
            Test::AnswerHas(_) => None,
        }
    }

    fn reads_answer(&self) -> bool {
        self.value().is_none_or(Value::reads_answer)
    }

    fn holds<X: Exchange<Text = T>>(&self, exchange: &X, format: Option<BodyFormat>) -> bool {
        let is_true = match &self.test {
            Test::AnswerHas(text) => exchange.answer_has(text.bytes()),
            Test::On(value) => !is_off(&value.get(exchange, format).text()),
            Test::OneOf(value, list) => {
                let text = value.get(exchange, format).text();
                list.iter().any(|known| **known == *text)
            }
        };
        is_true != self.negated
    }

    /// Whether it is about the answer.
    fn asks_for_answer(&self) -> bool {
        self.reads_answer() || self.value().is_some_and(|v| v.trust() == Trust::Answer)
    }

    /// Whether the value is known for certain, also that there is none.
    fn is_certain<X: Exchange<Text = T>>(&self, exchange: &X, format: Option<BodyFormat>) -> bool {
        let read = self.value().map(|value| value.get(exchange, format));
        !matches!(read, Some(Read::Unread | Read::Unreadable))
    }
}

impl<T: Text> Rule<T> {
    /// Whether the rule matches an exchange whose method and path match. Without an answer, conditions on
    /// the answer are skipped.
    ///
    /// # Errors
    /// The condition that does not hold.
    pub fn check<X: Exchange<Text = T>>(
        &self,
        exchange: &X,
        is_answered: bool,
    ) -> Result<(), Mismatch<'_>> {
        if is_answered && self.status.as_ref().is_some_and(|key| !key.holds(exchange)) {
            return Err(Mismatch::Status);
        }
        let mut counting = self.conditions.iter().filter(|c| is_answered || !c.asks_for_answer());
        match counting.find(|condition| !condition.holds(exchange, self.body)) {
            Some(condition) => Err(Mismatch::Condition(&condition.text)),
            None => Ok(()),
        }
    }

    /// Whether it matches with some answers only.
    pub(crate) fn asks_for_answer(&self) -> bool {
        self.status.is_some() || self.conditions.iter().any(Condition::asks_for_answer)
    }

    /// Whether its events would have the cookie or header of the request that `secret` is.
    pub fn sends(&self, secret: &Value<T>) -> bool {
        self.values().any(|value| value.sends(secret))
    }

    /// Whether a condition reads the answer's body.
    pub fn depends_on_answer(&self) -> bool {
        self.conditions.iter().any(Condition::reads_answer)
    }

    /// Whether the rule can bind a session to a user, or end one.
    fn teaches(&self) -> bool {
        self.bind.is_some() || self.event == Some(EventType::AccountLogout)
    }

    /// Whether the rule trusts an answer as evidence. Such an answer proves nothing if the application has
    /// handled another method.
    fn proves(&self) -> bool {
        let by_answer = |user: &User<T>| matches!(user, User::Value(value) if value.reads_answer());
        self.bind.is_some() || self.session.is_some() || self.users.iter().any(by_answer)
    }

    /// Whether a failed login was only the first step of a login.
    pub fn is_first_step<X: Exchange<Text = T>>(&self, exchange: &X) -> bool {
        let holds = |condition: &Condition<T>| {
            condition.is_certain(exchange, self.body) && condition.holds(exchange, self.body)
        };
        !self.first_step.is_empty() && self.first_step.iter().all(holds)
    }

    /// Whether the rule matches every request with its methods and path.
    pub fn is_unconditional(&self) -> bool {
        self.status.is_none() && self.conditions.is_empty()
    }

    fn values(&self) -> impl Iterator<Item = &Value<T>> {
        let users = self.users.iter().filter_map(|user| match user {
            User::Value(value) => Some(value),
            _ => None,
        });
        let conditions = self.conditions.iter().chain(&self.first_step);
        let params = self.params.iter().map(|(_, value)| value);
        let fields = self.fields.iter().chain(&self.args).map(|(_, value)| value);
        users
            .chain(conditions.filter_map(Condition::value))
            .chain(&self.bind)
            .chain(params)
            .chain(fields)
            .chain(&self.title)
    }

    /// Whether the rule reads a body, of the request or of the answer.
    fn reads(&self) -> bool {
        let answer_texts = self.conditions.iter().chain(&self.first_step);
        self.values().any(|value| value.reads_body() || value.reads_answer())
            || answer_texts.into_iter().any(|condition| condition.value().is_none())
    }

    /// Reads `type methods path [key=value …]`. The arguments live as long as the configuration.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn parse(
        args: &[&'static [u8]],
        place: Place,
        compile: &mut Compile<'_, T>,
    ) -> Result<Entry<T>, String> {
        let [kind, methods, path, keys @ ..] = args else {
            return Err("it must be \"tirreno_event TYPE METHODS PATH [KEY=VALUE ...]\"".into());
        };
        let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let event = match *kind {
            b"off" => None,
            name => Some(EventType::from_name(name).ok_or_else(|| unknown_type(name))?),
        };
        let methods_text = lossy(methods);
        let methods = Methods::parse(&methods_text)
            .map_err(|error| format!("invalid methods \"{methods_text}\", {error}"))?;
        let path_text = lossy(path);
        let pattern = Pattern::parse(&path_text)
            .map_err(|error| format!("invalid path \"{path_text}\", {error}"))?;
        let mut draft = Draft::new(event, &path_text, place);
        // The body's format is needed to parse the keys that read the body.
        let (formats, others): (Vec<_>, Vec<_>) =
            keys.iter().partition(|key| key.starts_with(b"body="));
        for key in formats.into_iter().chain(others) {
            let text = lossy(key);
            let Some(equals) = key.iter().position(|b| *b == b'=') else {
                return Err(format!("invalid \"{text}\", it must be KEY=VALUE"));
            };
            let name = text.get(..equals).unwrap_or_default();
            let key = Key { name, text: &text, value: &key[equals + 1..] };
            draft.set(key, &pattern, compile)?;
        }
        let rule = draft.finish()?;
        Ok(Entry { methods, pattern, rule: Rc::new(rule) })
    }
}

/// The error message for an unknown event type.
pub fn unknown_type(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let all = EventType::ALL.map(EventType::name).join(", ");
    format!("unknown event type \"{name}\", it must be \"off\" or one of {all}")
}

/// A rule while it is parsed.
struct Draft<T> {
    rule: Rule<T>,
    seen: Vec<String>,
    users: Vec<User<T>>,
    conditions: Vec<Condition<T>>,
    first_step: Vec<Condition<T>>,
    redact: Vec<String>,
    params: Vec<(Param, Value<T>)>,
    fields: Vec<(Box<str>, Value<T>)>,
    args: Vec<(Box<str>, Value<T>)>,
}

/// `KEY=VALUE`.
struct Key<'k> {
    name: &'k str,
    text: &'k str,
    value: &'static [u8],
}

impl Key<'_> {
    fn must_be(&self, what: impl fmt::Display) -> String {
        format!("invalid \"{}\", it must be {what}", self.text)
    }

    fn wrong(&self, error: impl fmt::Display) -> String {
        format!("invalid \"{}\", {error}", self.text)
    }

    fn utf8(&self) -> Result<&'static str, String> {
        str::from_utf8(self.value).map_err(|_| self.wrong("it is not UTF-8"))
    }
}

/// Parses a key.
type SetKey<T> = fn(&mut Draft<T>, &Key<'_>, &Pattern, &mut Compile<'_, T>) -> Result<(), String>;

/// A key, whether it may be repeated, and its parser.
struct KeyRow<T: 'static> {
    name: &'static str,
    repeats: bool,
    set: SetKey<T>,
}

impl<T: Text> Draft<T> {
    const KEYS: [KeyRow<T>; 20] = [
        KeyRow {
            name: "status",
            repeats: false,
            set: |draft, key, _, _| {
                let status = StatusKey::parse(key.utf8()?).map_err(|error| key.wrong(error))?;
                draft.rule.status = Some(status);
                Ok(())
            },
        },
        KeyRow {
            name: "if",
            repeats: true,
            set: |draft, key, _, compile| {
                draft.conditions.push(condition(key, draft.rule.body, compile)?);
                Ok(())
            },
        },
        KeyRow {
            name: "body",
            repeats: false,
            set: |draft, key, _, _| {
                let format = BodyFormat::from_name(key.utf8()?);
                let must = || key.must_be("\"json\", \"php\", \"rails\" or \"xmlrpc\"");
                draft.rule.body = Some(format.ok_or_else(must)?);
                Ok(())
            },
        },
        KeyRow {
            name: "user",
            repeats: true,
            set: |draft, key, _, compile| {
                draft.users.push(match key.value {
                    b"session" => User::Session,
                    b"basic" => User::Basic,
                    text => User::Value(value(key, text, Purpose::Name, draft.rule.body, compile)?),
                });
                Ok(())
            },
        },
        KeyRow {
            name: "confirmed",
            repeats: false,
            set: |draft, key, _, _| {
                draft.rule.confirmed = key.value == b"body";
                if draft.rule.confirmed { Ok(()) } else { Err(key.must_be("\"body\"")) }
            },
        },
        KeyRow {
            name: "unknown",
            repeats: false,
            set: |draft, key, _, _| {
                draft.rule.unknown = match key.value {
                    b"hash" => Unknown::Hash,
                    b"send" => Unknown::Send,
                    b"omit" => Unknown::Omit,
                    _ => return Err(key.must_be("\"hash\", \"send\" or \"omit\"")),
                };
                Ok(())
            },
        },
        KeyRow {
            name: "bind",
            repeats: false,
            set: |draft, key, _, compile| {
                let value = value(key, key.value, Purpose::Name, draft.rule.body, compile)?;
                if value.constant().is_some() {
                    let like =
                        "a value of the answer, like \"set_cookie:NAME\" or \"answer:FIELD\"";
                    return Err(key.must_be(like));
                }
                if value.reads_body() {
                    return Err(key.wrong("a body is the client's word, bind what the answer says"));
                }
                draft.rule.bind = Some(value);
                Ok(())
            },
        },
        KeyRow {
            name: "session",
            repeats: false,
            set: |draft, key, _, _| {
                let must =
                    || key.must_be("\"required\" or \"required:LIST\", the list as in \"status=\"");
                let rest = key.utf8()?.strip_prefix("required").ok_or_else(must)?;
                let list = match rest.strip_prefix(':') {
                    Some(list) => Some(StatusKey::parse(list).map_err(|error| key.wrong(error))?),
                    None if rest.is_empty() => None,
                    None => return Err(must()),
                };
                draft.rule.session = Some(Required(list));
                Ok(())
            },
        },
        KeyRow {
            name: "first_step",
            repeats: true,
            set: |draft, key, _, compile| {
                draft.first_step.push(condition(key, draft.rule.body, compile)?);
                Ok(())
            },
        },
        KeyRow {
            name: "param",
            repeats: true,
            set: |draft, key, _, compile| {
                let (name, text) = named_value(key)?;
                let param = Param::from_name(name.as_bytes()).filter(|param| {
                    !matches!(param, Param::UserName | Param::EventType | Param::IpAddress)
                });
                let Some(param) = param else {
                    let names = Param::ALL.iter().map(|param| param.name());
                    let names =
                        names.filter(|n| !matches!(*n, "userName" | "eventType" | "ipAddress"));
                    let names: Vec<_> = names.collect();
                    return Err(format!(
                        "unknown parameter in \"{}\", it must be one of {}",
                        key.text,
                        names.join(", ")
                    ));
                };
                if draft.params.iter().any(|(known, _)| *known == param) {
                    return Err(format!("duplicate parameter in \"{}\"", key.text));
                }
                draft
                    .params
                    .push((param, value(key, text, Purpose::Send, draft.rule.body, compile)?));
                Ok(())
            },
        },
        KeyRow {
            name: "field",
            repeats: true,
            set: |draft, key, _, compile| {
                let (name, text) = plainly_named_value(key)?;
                if draft.fields.iter().any(|(known, _)| **known == *name) {
                    return Err(format!("duplicate field in \"{}\"", key.text));
                }
                let text = value(key, text, Purpose::Send, draft.rule.body, compile)?;
                draft.fields.push((name.into(), text));
                Ok(())
            },
        },
        KeyRow {
            name: "arg",
            repeats: true,
            set: |draft, key, pattern, compile| {
                let (name, text) = plainly_named_value(key)?;
                let is_known = draft.args.iter().any(|(known, _)| **known == *name);
                if is_known || pattern.names().any(|known| known == name) {
                    return Err(format!("duplicate argument in \"{}\"", key.text));
                }
                let text = value(key, text, Purpose::Send, draft.rule.body, compile)?;
                draft.args.push((name.into(), text));
                Ok(())
            },
        },
        KeyRow {
            name: "page",
            repeats: false,
            set: |draft, key, pattern, _| {
                let page = key.utf8()?;
                let is_page = page.starts_with('/')
                    && !page.contains(|c: char| matches!(c, '?' | '#' | '$') || c.is_control());
                if !is_page {
                    return Err(key.must_be(
                        "a path that begins with \"/\", without \"?\", \"#\" and variables",
                    ));
                }
                let braced = |segment: &'static str| {
                    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
                    Some(name.strip_prefix('*').unwrap_or(name))
                };
                let mut names = page.split('/').filter_map(braced);
                if names.any(|name| !pattern.names().any(|known| known == name)) {
                    return Err(no_segment(key, &draft.rule.path));
                }
                draft.rule.page = Some(page.into());
                Ok(())
            },
        },
        KeyRow {
            name: "title",
            repeats: false,
            set: |draft, key, _, compile| {
                draft.rule.title =
                    Some(value(key, key.value, Purpose::Send, draft.rule.body, compile)?);
                Ok(())
            },
        },
        KeyRow {
            name: "outcome",
            repeats: false,
            set: |draft, key, _, _| {
                draft.rule.is_attempt = key.value == b"attempt";
                if draft.rule.is_attempt { Ok(()) } else { Err(key.must_be("\"attempt\"")) }
            },
        },
        KeyRow {
            name: "anonymous",
            repeats: false,
            set: |draft, key, _, _| {
                draft.rule.anonymous = match key.value {
                    b"on" => Some(true),
                    b"off" => Some(false),
                    _ => return Err(key.must_be("\"on\" or \"off\"")),
                };
                Ok(())
            },
        },
        KeyRow {
            name: "redact",
            repeats: true,
            set: |draft, key, pattern, _| {
                let name = key.utf8()?;
                if !pattern.names().any(|known| known == name) {
                    return Err(no_segment(key, &draft.rule.path));
                }
                draft.redact.push(name.to_owned());
                Ok(())
            },
        },
        KeyRow {
            name: "audit",
            repeats: false,
            set: |draft, key, _, _| {
                let name = key.utf8()?;
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
                if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
                    let most =
                        format!("1 to {MAX_NAME} letters, digits, \"_\", \"-\", \".\" and \":\"");
                    return Err(key.must_be(most));
                }
                name.clone_into(&mut draft.rule.audit);
                Ok(())
            },
        },
        KeyRow {
            name: "level",
            repeats: false,
            set: |draft, key, _, _| {
                let level = Level::parse(key.utf8()?).ok_or_else(|| {
                    let names = Level::ALL.map(Level::name).join(", ");
                    key.must_be(format_args!("one of {names}, or 100 to 103"))
                });
                draft.rule.level = Some(level?);
                Ok(())
            },
        },
        KeyRow {
            name: "once",
            repeats: false,
            set: |draft, key, _, _| {
                let text = key.utf8()?;
                let units = [('s', 1), ('m', 60), ('h', 3600)];
                let read = |(unit, seconds): (char, u64)| {
                    let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
                    number.checked_mul(seconds)
                };
                let seconds = units.into_iter().find_map(read).unwrap_or(0);
                if !(1..=MAX_ONCE).contains(&seconds) {
                    return Err(key.must_be("a time of 1s to 24h, as \"1m\""));
                }
                draft.rule.once = Some(Duration::from_secs(seconds));
                Ok(())
            },
        },
    ];

    fn new(event: Option<EventType>, path: &str, place: Place) -> Self {
        Self {
            rule: Rule {
                event,
                users: Box::default(),
                confirmed: false,
                unknown: Unknown::Hash,
                anonymous: None,
                redact: Box::default(),
                audit: String::new(),
                level: None,
                body: None,
                bind: None,
                session: None,
                first_step: Box::default(),
                params: Box::default(),
                fields: Box::default(),
                args: Box::default(),
                page: None,
                title: None,
                is_attempt: false,
                once: None,
                path: path.into(),
                place,
                status: None,
                conditions: Box::default(),
            },
            seen: Vec::new(),
            users: Vec::new(),
            conditions: Vec::new(),
            first_step: Vec::new(),
            redact: Vec::new(),
            params: Vec::new(),
            fields: Vec::new(),
            args: Vec::new(),
        }
    }

    fn set(
        &mut self,
        key: Key<'_>,
        pattern: &Pattern,
        compile: &mut Compile<'_, T>,
    ) -> Result<(), String> {
        let Some(row) = Self::KEYS.iter().find(|row| row.name == key.name) else {
            let names: Vec<_> = Self::KEYS.iter().map(|row| format!("\"{}=\"", row.name)).collect();
            return Err(key.must_be(format_args!("one of {}", names.join(", "))));
        };
        if !row.repeats && self.seen.iter().any(|seen| seen == key.name) {
            return Err(format!("duplicate key \"{}=\"", key.name));
        }
        self.seen.push(key.name.to_owned());
        (row.set)(self, &key, pattern, compile)
    }

    fn finish(self) -> Result<Rule<T>, String> {
        let mut rule = self.rule;
        rule.users = self.users.into();
        rule.conditions = self.conditions.into();
        rule.first_step = self.first_step.into();
        rule.redact = self.redact.into();
        rule.params = self.params.into();
        rule.fields = self.fields.into();
        rule.args = self.args.into();
        let saw = |name: &str| self.seen.iter().any(|seen| seen == name);
        let names_account = rule.users.iter().any(User::is_written);
        for key in ["unknown", "confirmed"] {
            if saw(key) && !names_account {
                return Err(format!(
                    "\"{key}=\" needs \"user=body:FIELD\", \"user=request:NAME\" or \"user=basic\""
                ));
            }
        }
        if rule.session.is_none() && rule.bind.as_ref().is_some_and(|v| v.trust() == Trust::Claim) {
            return Err(
                "\"bind=\" with what the client says needs \"session=required\" beside it, \
                        which says that the application has accepted it"
                    .into(),
            );
        }
        if !rule.first_step.is_empty() && rule.event != Some(EventType::AccountLoginFail) {
            return Err("\"first_step=\" belongs into a rule of the type account_login_fail".into());
        }
        if rule.title.is_some() && rule.params.iter().any(|(param, _)| *param == Param::PageTitle) {
            return Err("\"title=\" is the parameter \"pageTitle\", use one of them".into());
        }
        Ok(rule)
    }
}

impl<T: Text> User<T> {
    /// Whether the client sends the name in its request, where people also type passwords.
    pub fn is_written(&self) -> bool {
        match self {
            Self::Basic => true,
            Self::Value(value) => value.reads_body(),
            Self::Session => false,
        }
    }
}

fn no_segment(key: &Key<'_>, path: &str) -> String {
    format!("\"{}\" names no segment of \"{path}\"", key.text)
}

fn condition<T: Text>(
    key: &Key<'_>,
    format: Option<BodyFormat>,
    compile: &mut Compile<'_, T>,
) -> Result<Condition<T>, String> {
    if matches!(key.value, b"" | b"!") {
        return Err(key.must_be("a value"));
    }
    let condition = Condition::parse(key, format, compile)?;
    if condition.value().is_some_and(|value| value.constant().is_some()) {
        return Err(key.must_be(
            "what differs from request to request, like \"arg:NAME\", \"$VARIABLE\" or \"answer~TEXT\"",
        ));
    }
    Ok(condition)
}

fn value<T: Text>(
    key: &Key<'_>,
    text: &'static [u8],
    purpose: Purpose,
    format: Option<BodyFormat>,
    compile: &mut Compile<'_, T>,
) -> Result<Value<T>, String> {
    Value::parse(text, purpose, format, compile).map_err(|error| key.wrong(error))
}

/// `NAME:VALUE`.
fn named_value(key: &Key<'_>) -> Result<(&'static str, &'static [u8]), String> {
    let must = || key.must_be("NAME:VALUE");
    let colon = key.value.iter().position(|b| *b == b':').ok_or_else(must)?;
    let name = str::from_utf8(&key.value[..colon]).map_err(|_| must())?;
    Ok((name, &key.value[colon + 1..]))
}

/// `NAME:VALUE`, where a dot in the name separates an object from its property: `user.roles`.
fn plainly_named_value(key: &Key<'_>) -> Result<(&'static str, &'static [u8]), String> {
    let (name, text) = named_value(key)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = |part: &str| !part.is_empty() && part.chars().all(is_plain);
    if name.len() > MAX_NAME || !name.split('.').all(is_name) {
        let most = format!(
            "NAME of at most {MAX_NAME} letters, digits, \"_\" and single dots, and a value"
        );
        return Err(key.must_be(most));
    }
    Ok((name, text))
}

/// A rule with its methods and path.
#[derive(Debug)]
pub struct Entry<T> {
    /// The methods that it matches.
    pub methods: Methods,
    /// The paths that it matches.
    pub pattern: Pattern,
    /// Its settings.
    pub rule: Rc<Rule<T>>,
}

/// The rules of a location in the order in which they are tried: its own, then those of the outer levels,
/// which many locations share.
#[derive(Debug)]
pub struct RuleSet<T> {
    own: Rules<Rc<Rule<T>>>,
    /// The own rules with secret segments, if any.
    redacting: Option<Rules<Rc<Rule<T>>>>,
    /// The own rules that read a body, if any.
    reading: Option<Rules<Rc<Rule<T>>>>,
    /// The own rules that can bind or end a session, if any.
    teaching: Option<Rules<Rc<Rule<T>>>>,
    /// The own rules that trust an answer as evidence, if any.
    proving: Option<Rules<Rc<Rule<T>>>>,
    /// The form fields with which a client may override the method.
    overrides: Box<[(BodyFormat, Field)]>,
    outer: Option<Rc<Self>>,
}

/// The field names with which frameworks let a POST's form, or the query, override the method.
pub const OVERRIDES: [&str; 2] = ["_method", "X-HTTP-Method-Override"];

/// These fields, in the form formats that the rules name with `body=`; if no rule has `body=`, in all form
/// formats.
fn overrides<'r, T: 'r>(
    rules: impl Iterator<Item = &'r Rule<T>>,
) -> impl Iterator<Item = (BodyFormat, Field)> {
    let mut formats: Vec<_> = rules.filter_map(|rule| rule.body).collect();
    if formats.is_empty() {
        formats = BodyFormat::ALL.into();
    }
    let forms = [BodyFormat::Php, BodyFormat::Rails].into_iter();
    let forms = forms.filter(move |form| formats.contains(form));
    forms.flat_map(|form| {
        OVERRIDES.into_iter().filter_map(move |name| Some((form, Field::parse(name, form).ok()?)))
    })
}

impl<T: Text> RuleSet<T> {
    /// `own` rules are tried before the `outer` ones; `None` if there are none.
    pub fn new(own: &[Rc<Entry<T>>], outer: Option<&Rc<Self>>) -> Option<Rc<Self>> {
        if own.is_empty() {
            return outer.cloned();
        }
        let some = |wanted: fn(&Rule<T>) -> bool| {
            let wanted = own.iter().filter(|entry| wanted(&entry.rule));
            let parts = |e: &Rc<Entry<T>>| (e.methods.clone(), e.pattern.clone(), e.rule.clone());
            let wanted: Vec<_> = wanted.map(parts).collect();
            (!wanted.is_empty()).then(|| Rules::new(wanted))
        };
        Some(Rc::new(Self {
            own: some(|_| true)?,
            redacting: some(|rule| !rule.redact.is_empty()),
            reading: some(Rule::reads),
            teaching: some(Rule::teaches),
            proving: some(Rule::proves),
            overrides: overrides(
                own.iter()
                    .map(|entry| entry.rule.as_ref())
                    .chain(outer.iter().flat_map(|set| set.iter()).map(|(.., rule)| rule)),
            )
            .collect(),
            outer: outer.cloned(),
        }))
    }

    fn levels(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |set| set.outer.as_deref())
    }

    /// All rules in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = (&Methods, &Pattern, &Rule<T>)> {
        let all = self.levels().flat_map(|set| set.own.iter());
        all.map(|(methods, pattern, rule)| (methods, pattern, rule.as_ref()))
    }

    /// The first rule that matches by method and path, and that `accept` accepts.
    pub fn first<'s, 'p>(
        &'s self,
        method: &[u8],
        path: &'p [u8],
        mut accept: impl FnMut(&Rule<T>, &Segments<'_, 'p>) -> bool,
    ) -> Option<(&'s Rule<T>, Segments<'s, 'p>)> {
        let first = |set: &'s Self| set.own.first(method, path, |rule, s| accept(rule, s));
        self.levels().find_map(first).map(|(rule, segments)| (rule.as_ref(), segments))
    }

    /// Whether any rule reads a body.
    pub fn may_read(&self) -> bool {
        self.levels().any(|set| set.reading.is_some())
    }

    /// Whether the body of a request with that method may be needed.
    pub fn may_read_of(&self, method: &[u8]) -> bool {
        self.may_read()
            || may_be_overridden(method) && self.levels().any(|set| set.proving.is_some())
    }

    /// What the rules for a request read from bodies; `None` if nothing.
    pub fn reads(&self, method: &[u8], path: &[u8]) -> Option<Reads> {
        let mut wishes = Wishes::default();
        for rules in self.levels().filter_map(|set| set.reading.as_ref()) {
            rules.each(method, path, |rule| wishes.add(rule));
        }
        let mut proving = self.levels().filter_map(|set| set.proving.as_ref());
        if may_be_overridden(method)
            && proving.any(|rules| rules.first(method, path, |_, _| true).is_some())
        {
            wishes.body.extend(self.overrides.iter().map(|(format, field)| (*format, field)));
        }
        let reads = wishes.reads();
        (!reads.is_empty()).then_some(reads)
    }

    /// Whether the request's body may override the method: it has such a field, or is unreadable.
    pub fn is_overridden<X: Exchange<Text = T>>(&self, exchange: &X) -> bool {
        may_be_overridden(exchange.method())
            && self.overrides.iter().any(|(form, field)| exchange.has_field(*form, field))
    }

    /// Appends the ranges of a normalized path that the rules below `prefix` mark as secret.
    pub fn secret_segments(&self, prefix: &[u8], path: &[u8], out: &mut Vec<Range<usize>>) {
        let Some(below) = path::below(path, prefix) else { return };
        let start = path.len() - below.len();
        for rules in self.levels().filter_map(|set| set.redacting.as_ref()) {
            rules.any_method(below, |rule, segments| {
                let ranges = rule.redact.iter().filter_map(|name| segments.range(name));
                out.extend(ranges.map(|range| range.start + start..range.end + start));
            });
        }
    }

    /// Whether any rule has secret segments.
    pub fn is_redacting(&self) -> bool {
        self.levels().any(|set| set.redacting.is_some())
    }

    /// Whether any rule can yield an event: it names a user, or needs none.
    pub fn may_capture(&self) -> bool {
        self.iter().any(|(.., rule)| rule.anonymous == Some(true) || !rule.users.is_empty())
    }

    /// Whether a rule for a request can bind or end its session.
    pub fn may_teach(&self, method: &[u8], path: &[u8]) -> bool {
        let mut teaching = self.levels().filter_map(|set| set.teaching.as_ref());
        teaching.any(|rules| rules.first(method, path, |_, _| true).is_some())
    }

    /// Whether any rule can bind or end a session.
    pub fn teaches(&self) -> bool {
        self.levels().any(|set| set.teaching.is_some())
    }

    /// Whether any rule binds sessions to users.
    pub fn binds(&self) -> bool {
        self.iter().any(|(.., rule)| rule.bind.is_some())
    }

    /// Whether any rule says which requests need a session.
    pub fn requires_sessions(&self) -> bool {
        self.iter().any(|(.., rule)| rule.session.is_some())
    }
}

/// Whether frameworks let the body of a request with this method override the method.
fn may_be_overridden(method: &[u8]) -> bool {
    method == b"POST"
}

/// What several rules read from bodies.
#[derive(Default)]
struct Wishes<'r> {
    body: Vec<(BodyFormat, &'r Field)>,
    answer: Vec<&'r Field>,
    texts: Vec<&'r extract::Text>,
}

impl<'r> Wishes<'r> {
    fn add<T: Text>(&mut self, rule: &'r Rule<T>) {
        for value in rule.values() {
            match value.source() {
                Source::Body(format, fields) => {
                    self.body.extend(fields.iter().map(|field| (*format, field)));
                }
                Source::Request(format, field) => self.body.push((*format, field)),
                Source::Answer(fields) => self.answer.extend(fields),
                _ => {}
            }
        }
        for condition in rule.conditions.iter().chain(&rule.first_step) {
            if let Test::AnswerHas(text) = &condition.test
                && !self.texts.contains(&text)
            {
                self.texts.push(text);
            }
        }
    }

    fn reads(self) -> Reads {
        let of = |format| self.body.iter().filter(move |(f, _)| *f == format).map(|(_, f)| *f);
        let formats = BodyFormat::ALL.into_iter().filter(|format| of(*format).next().is_some());
        Reads {
            bodies: formats.map(|format| Wanted::new(format, of(format))).collect(),
            answer: (!self.answer.is_empty())
                .then(|| Wanted::new(BodyFormat::Json, self.answer.iter().copied())),
            texts: self.texts.into_iter().cloned().collect(),
        }
    }
}

/// A value of an exchange, with the body's format from the rule.
pub fn read<'e, T: Text, X: Exchange<Text = T>>(
    value: &Value<T>,
    rule: Option<&Rule<T>>,
    exchange: &'e X,
) -> Read<'e> {
    // The fields of a refusing answer describe an error.
    if value.reads_answer() && exchange.status() >= 400 {
        return Read::Absent;
    }
    value.get(exchange, rule.and_then(|rule| rule.body))
}

/// The audit record's field for the application's error.
pub const ERROR_FIELD: &str = "err";

/// The value of an audit field that a rule adds. `err` exists only for errors; other fields are not read
/// from the answer of an error.
pub fn read_field<'e, T: Text, X: Exchange<Text = T>>(
    name: &str,
    value: &Value<T>,
    rule: &Rule<T>,
    exchange: &'e X,
) -> Read<'e> {
    match (name, exchange.status()) {
        (ERROR_FIELD, ..400) => Read::Absent,
        (ERROR_FIELD, _) => value.get(exchange, rule.body),
        _ => read(value, Some(rule), exchange),
    }
}
