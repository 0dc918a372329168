//! The facts of an audit record, before a format names them.

use std::borrow::Cow;
use std::net::IpAddr;

use chrono::{DateTime, Datelike, NaiveDateTime, Utc};
use hmac::{Hmac, Mac};
use serde::Serialize;
use sha2::Sha256;

use super::{Drops, FormatConfig, Length, rfc3339};
use crate::capture::level::Level;
use crate::capture::path;
use crate::capture::rules::CLIENT_CLOSED_REQUEST;
use crate::event::{EventType, Param};
use crate::privacy::View;
use crate::record::{Extra, Record};
use crate::text::{self, cut_before};
use crate::tirreno::form::{self, TIME_INPUT};

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// There was no answer.
    Attempt,
    Fail,
}

impl Outcome {
    /// A failed sign-in may be a redirect. Only the event's type distinguishes it from a successful one.
    fn of(record: &Record<'_>, code: Option<u16>) -> Self {
        match (code, record.kind()) {
            _ if record.is_attempt() => Self::Attempt,
            (None | Some(CLIENT_CLOSED_REQUEST), _) => Self::Attempt,
            (_, EventType::AccountLoginFail | EventType::PageError) => Self::Fail,
            (Some(400..), _) => Self::Fail,
            _ => Self::Success,
        }
    }

    /// The name of the outcome in Mattermost's records.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Attempt => "attempt",
            Self::Fail => "fail",
        }
    }
}

/// The most bytes of the user's name in a record with only the facts of every record.
const BARE_USER: usize = 48;

/// The event name of a record about dropped events.
const DROPPED: &str = "audit_records_dropped";

/// The facts of one audit record.
pub(super) struct Entry<'a> {
    pub(super) time: DateTime<Utc>,
    pub(super) level: Level,
    pub(super) event: Cow<'a, str>,
    /// `None` in a record about dropped events.
    pub(super) kind: Option<EventType>,
    pub(super) outcome: Outcome,
    pub(super) code: Option<u16>,
    pub(super) user: Option<Cow<'a, str>>,
    pub(super) session: Option<String>,
    pub(super) ip: Option<IpAddr>,
    pub(super) method: Option<Cow<'a, str>>,
    pub(super) url: Option<String>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) referer: Option<String>,
    pub(super) language: Option<Cow<'a, str>>,
    pub(super) trace: Option<&'a str>,
    /// How many events the record stands for.
    pub(super) repeated: u32,
    /// Whether a failed login may be the first half of a good one (`first_step=`).
    pub(super) is_first_step: bool,
    pub(super) segments: Vec<(&'a str, Cow<'a, str>)>,
    /// The fields that the rule adds. A dot in a name separates an object from its property.
    pub(super) fields: Vec<(&'a str, Cow<'a, str>)>,
    /// The evidence for the user.
    pub(super) identity: Option<&'static str>,
    /// The user whom the client claims to be, if that is not `user`.
    pub(super) claimed: Option<Cow<'a, str>>,
    /// Other values of `tirreno_param`, by their names in the format `json`.
    pub(super) given: Vec<(&'static str, Cow<'a, str>)>,
    pub(super) cluster_id: Option<&'a str>,
    pub(super) drops: Option<Drops>,
    /// Whether values are cut or left out because of the receiver's length limit.
    pub(super) truncated: bool,
}

/// Parameters whose only source is `tirreno_param`, with their names in the format `json`.
const GIVEN: [(Param, &str); 9] = [
    (Param::EmailAddress, "email_address"),
    (Param::FirstName, "first_name"),
    (Param::LastName, "last_name"),
    (Param::FullName, "full_name"),
    (Param::PageTitle, "page_title"),
    (Param::PhoneNumber, "phone_number"),
    (Param::UserCreated, "user_created"),
    (Param::Payload, "payload"),
    (Param::FieldHistory, "field_history"),
];

/// Names that a path segment's field cannot have: `user_id` is the acting user, `target_user_id` the user
/// acted on.
const TAKEN: [&str; 36] = [
    "timestamp",
    "level",
    "msg",
    "event",
    "type",
    "status",
    "code",
    "user_id",
    "session_id",
    "ip_address",
    "method",
    "url",
    "api_path",
    "client",
    "referer",
    "language",
    "trace_id",
    "repeated",
    "first_step",
    "truncated",
    "cluster_id",
    "pinned",
    // Names of Mattermost's own fields.
    "err",
    "errors",
    "channeld",
    "login_id",
    "device_id",
    "user",
    "user_ids",
    "identity",
    "claimed_user_id",
    "team",
    "channel",
    "post",
    "patch",
    "patched",
];

/// The names of the facts of every record.
const OWN: [&str; 23] = [
    "timestamp",
    "level",
    "msg",
    "event",
    "type",
    "status",
    "code",
    "user_id",
    "session_id",
    "ip_address",
    "method",
    "url",
    "api_path",
    "client",
    "referer",
    "language",
    "trace_id",
    "first_step",
    "truncated",
    "cluster_id",
    "pinned",
    "identity",
    "claimed_user_id",
];

/// The field name of a path segment: the segment's name, with `target_` before it if the name is taken.
pub(super) fn segment_field(name: &str) -> Cow<'_, str> {
    let taken = TAKEN.contains(&name)
        || GIVEN.iter().any(|(_, given)| *given == name)
        || name.starts_with("target_")
        || name.starts_with("dropped");
    if taken { format!("target_{name}").into() } else { name.into() }
}

/// The name of a field that a rule adds: with `target_` before it if it would replace a fact of every
/// record. Names of Mattermost's own fields are allowed.
pub(super) fn field_name(name: &str) -> Cow<'_, str> {
    match OWN.contains(&name) {
        true => format!("target_{name}").into(),
        false => name.into(),
    }
}

/// The value of a field.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Flag(bool),
}

impl<'a> Value<'a> {
    pub(super) fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string().into(),
            Self::Flag(flag) => flag.to_string().into(),
        }
    }
}

impl<'a, T: Into<Cow<'a, str>>> From<T> for Value<'a> {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

impl<'a> Entry<'a> {
    /// The entry of an event.
    pub(super) fn of(view: &View<'a>, config: &'a FormatConfig) -> Self {
        let record = view.record();
        let text = |param: Param| view.get(param).map(|value| fit(value, param.limit()));
        let url = |param: Param| view.get(param).map(|v| form::uri(&v, param.limit(), false));
        let code = code(view);
        let user = text(Param::UserName);
        let segments = view.segments().filter_map(|(name, value)| {
            let value = fit(value, usize::MAX);
            // Mattermost's alias for the acting user.
            let value = if name == "user_id" && value == "me" { user.clone()? } else { value };
            Some((name, value))
        });
        let event = view.extra(Extra::Audit).map(|name| fit(name, usize::MAX));
        let given = GIVEN.iter().filter_map(|(param, name)| Some((*name, text(*param)?)));
        Self {
            time: time(view, record),
            level: Level::of(record),
            event: event.unwrap_or_else(|| record.kind().name().into()),
            kind: Some(record.kind()),
            outcome: Outcome::of(record, code),
            code,
            session: view.extra(Extra::Session).map(|s| session_id(&config.session_key, &s)),
            ip: view.ip(),
            method: text(Param::HttpMethod),
            url: url(Param::Url),
            client: text(Param::UserAgent),
            referer: url(Param::HttpReferer),
            language: text(Param::BrowserLanguage),
            trace: Some(record.trace()),
            repeated: record.repeated(),
            is_first_step: record.is_first_step(),
            segments: segments.collect(),
            fields: view.fields().map(|(name, value)| (name, fit(value, usize::MAX))).collect(),
            identity: Some(record.identity().name()),
            claimed: view.extra(Extra::Claimed).map(|name| fit(name, usize::MAX)),
            given: given.collect(),
            cluster_id: config.cluster_id.as_deref(),
            drops: None,
            truncated: false,
            user,
        }
    }

    /// The entry with shorter values. The user, the address, the session and the trace id stay whole: they
    /// tell who acted, and where the rest can be found.
    pub(super) fn shortened(mut self, length: Length) -> Self {
        let most = match length {
            Length::Whole => return self,
            Length::Values(most) => most,
            Length::Bare => {
                self.segments.clear();
                self.fields.clear();
                self.given.clear();
                (self.method, self.client, self.referer) = (None, None, None);
                (self.url, self.language, self.claimed) = (None, None, None);
                self.user = self
                    .user
                    .map(|user| text::valid(user.as_bytes(), BARE_USER).into_owned().into());
                self.truncated = true;
                return self;
            }
        };
        let mut cut = false;
        for text in [&mut self.method, &mut self.client, &mut self.language, &mut self.claimed] {
            cut |= text.as_mut().is_some_and(|text| shorten(text, most));
        }
        for uri in [&mut self.url, &mut self.referer].into_iter().flatten() {
            cut |= uri.len() > most;
            uri.truncate(cut_before(uri, most));
        }
        let named = self.segments.iter_mut().chain(&mut self.fields).map(|(_, value)| value);
        for value in named.chain(self.given.iter_mut().map(|(_, value)| value)) {
            cut |= shorten(value, most);
        }
        self.truncated = cut;
        self
    }

    /// The entry of a record about dropped events.
    pub(super) fn dropped(drops: &Drops, config: &'a FormatConfig) -> Self {
        Self {
            time: from_ms(drops.last_ms),
            level: Level::Api,
            event: DROPPED.into(),
            kind: None,
            outcome: Outcome::Fail,
            code: None,
            user: None,
            session: None,
            ip: None,
            method: None,
            url: None,
            client: None,
            referer: None,
            language: None,
            trace: None,
            repeated: 1,
            is_first_step: false,
            segments: Vec::new(),
            fields: Vec::new(),
            identity: None,
            claimed: None,
            given: Vec::new(),
            cluster_id: config.cluster_id.as_deref(),
            drops: Some(*drops),
            truncated: false,
        }
    }

    /// The type, for formats whose records do not have it: only that of a failed login, whose event may have any
    /// name.
    pub(super) fn failed_login(&self) -> Option<&'static str> {
        self.kind.filter(|kind| *kind == EventType::AccountLoginFail).map(EventType::name)
    }

    /// The event and its outcome, as the message.
    pub(super) fn message(&self) -> String {
        format!("{} {}", self.event, self.outcome.name())
    }

    /// The path of the URL as the client wrote it. `tirreno_param` may have added a host before it.
    pub(super) fn api_path(&self) -> Option<&str> {
        let url = self.url.as_deref()?;
        // The path ends before an ASCII character, so the range is on character boundaries.
        let path = url.get(path::locate(url.as_bytes()))?;
        path.find('/').map(|start| &path[start..])
    }

    /// The value of a path segment.
    pub(super) fn segment(&self, name: &str) -> Option<&str> {
        self.segments.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// `true` if the request pinned a post, `false` if it unpinned one.
    pub(super) fn pinned(&self) -> Option<bool> {
        self.segment("post_id").filter(|_| self.outcome == Outcome::Success)?;
        match self.api_path()?.rsplit('/').find(|segment| !segment.is_empty())? {
            "pin" => Some(true),
            "unpin" => Some(false),
            _ => None,
        }
    }

    /// The number of dropped events, and when; how many events the record stands for; whether it may be only the
    /// first half of a login; and whether it is cut.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> + use<'a> {
        let values = self.drops.map(|drops| {
            [
                ("dropped", Value::Number(drops.count)),
                ("dropped_first", rfc3339(from_ms(drops.first_ms)).into()),
                ("dropped_last", rfc3339(from_ms(drops.last_ms)).into()),
            ]
        });
        let many = (self.repeated > 1).then(|| ("repeated", Value::Number(self.repeated.into())));
        let half = self.is_first_step.then_some(("first_step", Value::Flag(true)));
        let truncated = self.truncated.then_some(("truncated", Value::Flag(true)));
        values.into_iter().flatten().chain(many).chain(half).chain(truncated)
    }

    /// All facts but time, level and message, by their names in the format `json`.
    pub(super) fn fields(&self) -> Vec<(Cow<'_, str>, Value<'_>)> {
        let head = [
            ("event", Some(Value::from(&*self.event))),
            ("type", self.kind.map(|kind| kind.name().into())),
            ("status", Some(self.outcome.name().into())),
            ("code", self.code.map(|code| Value::Number(code.into()))),
            ("user_id", self.user.as_deref().map(Value::from)),
            ("identity", self.identity.map(Value::from)),
            ("claimed_user_id", self.claimed.as_deref().map(Value::from)),
            ("session_id", self.session.as_deref().map(Value::from)),
            ("ip_address", self.ip.map(|ip| ip.to_string().into())),
            ("method", self.method.as_deref().map(Value::from)),
            ("url", self.url.as_deref().map(Value::from)),
            ("api_path", self.api_path().map(Value::from)),
            ("client", self.client.as_deref().map(Value::from)),
            ("referer", self.referer.as_deref().map(Value::from)),
            ("language", self.language.as_deref().map(Value::from)),
            ("trace_id", self.trace.map(Value::from)),
        ];
        let segments = self.segments.iter().map(|(n, v)| (segment_field(n), Value::from(&**v)));
        let own = self.fields.iter().map(|(name, v)| (field_name(name), Value::from(&**v)));
        let pinned = self.pinned().map(|pinned| ("pinned", Value::Flag(pinned)));
        let given = self.given.iter().map(|(name, value)| (*name, Value::from(&**value)));
        let cluster_id = self.cluster_id.map(|id| ("cluster_id", id.into()));
        let tail = pinned.into_iter().chain(given).chain(cluster_id).chain(self.counts());
        let head = head.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
        head.chain(segments)
            .chain(own)
            .chain(tail.map(|(name, value)| (name.into(), value)))
            .collect()
    }

    /// The level and all fields as text.
    pub(super) fn texts(&self) -> Vec<(String, String)> {
        let level = ("level".into(), self.level.name().into());
        let fields = self.fields().into_iter();
        let texts = fields.map(|(name, value)| (name.into_owned(), value.into_text().into_owned()));
        std::iter::once(level).chain(texts).collect()
    }
}

/// The value as valid UTF-8 without NUL, of at most `limit` bytes.
fn fit(value: Cow<'_, [u8]>, limit: usize) -> Cow<'_, str> {
    match value {
        Cow::Borrowed(value) => text::valid(value, limit),
        Cow::Owned(value) => text::valid(&value, limit).into_owned().into(),
    }
}

/// Cuts a text at a character boundary, and returns whether it was too long.
fn shorten(text: &mut Cow<'_, str>, most: usize) -> bool {
    let end = cut_before(text, most);
    if end == text.len() {
        return false;
    }
    match text {
        Cow::Borrowed(text) => *text = &text[..end],
        Cow::Owned(text) => text.truncate(end),
    }
    true
}

fn from_ms(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

/// The time from `tirreno_param`, else the start of the request. The year has four digits, as all readers
/// expect.
fn time(view: &View<'_>, record: &Record<'_>) -> DateTime<Utc> {
    let given = view.get(Param::EventTime).and_then(|given| {
        let time = NaiveDateTime::parse_from_str(str::from_utf8(&given).ok()?, TIME_INPUT).ok()?;
        (1000..=9999).contains(&time.year()).then(|| time.and_utc())
    });
    given.unwrap_or_else(|| from_ms(record.time_ms()))
}

fn code(view: &View<'_>) -> Option<u16> {
    let code = match view.get(Param::HttpCode) {
        Some(given) => str::from_utf8(&given).ok()?.parse().ok()?,
        None => view.record().status(),
    };
    (code > 0).then_some(code)
}

fn session_id(key: &Hmac<Sha256>, session: &[u8]) -> String {
    let hash = key.clone().chain_update(session).finalize().into_bytes();
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
