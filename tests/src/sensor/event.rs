//! What becomes of an event inside Tirreno: the fields it stores, the ones it changes and flags,
//! and the values that lose the whole event.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value};

use super::php::{self, Param, Params};

/// Without one of these an event is rejected; each may be empty.
pub const REQUIRED: [&str; 3] = ["ipAddress", "url", "eventTime"];

/// Tirreno's event types.
pub const EVENT_TYPES: [&str; 13] = [
    "page_view",
    "page_edit",
    "page_delete",
    "page_search",
    "page_error",
    "account_login",
    "account_logout",
    "account_login_fail",
    "account_registration",
    "account_email_change",
    "account_password_change",
    "account_edit",
    "field_edit",
];

/// The methods Tirreno knows; others are stored as none.
const METHODS: [&str; 11] = [
    "GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "LINK",
    "UNLINK",
];

/// The longest trace id, bytes.
const TRACE_ID_LIMIT: usize = 36;

/// The highest code that fits the column.
const MAX_CODE: i64 = 32_767;

/// An event as it would stand in Tirreno's tables.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Position in the order of arrival, from 0.
    pub order: usize,
    /// The connection it came over, counted from 1.
    pub connection: u64,
    /// When it arrived.
    pub at: Instant,
    /// The `X-Request-Id` header.
    pub trace_id: Option<String>,
    /// The account's name: `N/A` without a user.
    pub user_name: String,
    /// `0.0.0.0` for what is no address.
    pub ip_address: String,
    /// Path and query.
    pub url: String,
    /// `userAgent`.
    pub user_agent: Option<String>,
    /// UTC, milliseconds.
    pub event_time: NaiveDateTime,
    /// `httpReferer`, decoded once more as Tirreno does.
    pub http_referer: Option<String>,
    /// None also for a method unknown to Tirreno.
    pub http_method: Option<String>,
    /// 0 for what is no number.
    pub http_code: Option<u16>,
    /// `browserLanguage`.
    pub browser_language: Option<String>,
    /// After Tirreno's own decision: `page_error` from code 400 on, `page_view` when unknown.
    pub event_type: String,
    /// `emailAddress`, lower-cased, or `broken@user.local`.
    pub email_address: Option<String>,
    /// `firstName`.
    pub first_name: Option<String>,
    /// `lastName`.
    pub last_name: Option<String>,
    /// `fullName`.
    pub full_name: Option<String>,
    /// `pageTitle`.
    pub page_title: Option<String>,
    /// `phoneNumber` without spaces.
    pub phone_number: Option<String>,
    /// `userCreated`, UTC; none when it could not be read.
    pub user_created: Option<NaiveDateTime>,
    /// `payload`, of a `page_search` or an `account_email_change` only.
    pub payload: Option<Value>,
    /// `fieldHistory`, of a `field_edit` only.
    pub field_history: Option<Value>,
    /// What Tirreno changed: parameter and reason.
    pub flagged: Vec<String>,
}

impl StoredEvent {
    /// The fields that hold a value, by Tirreno's parameter names; the trace id comes last, under
    /// its header's name.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let text = |value: &Option<String>| value.clone();
        let time = |value: NaiveDateTime| value.format("%F %T%.3f").to_string();
        let json = |value: &Option<Value>| value.as_ref().map(Value::to_string);
        [
            ("eventType", Some(self.event_type.clone())),
            ("userName", Some(self.user_name.clone())),
            ("ipAddress", Some(self.ip_address.clone())),
            ("httpMethod", text(&self.http_method)),
            ("url", Some(self.url.clone())),
            ("httpCode", self.http_code.map(|code| code.to_string())),
            ("eventTime", Some(time(self.event_time))),
            ("userAgent", text(&self.user_agent)),
            ("httpReferer", text(&self.http_referer)),
            ("browserLanguage", text(&self.browser_language)),
            ("emailAddress", text(&self.email_address)),
            ("firstName", text(&self.first_name)),
            ("lastName", text(&self.last_name)),
            ("fullName", text(&self.full_name)),
            ("pageTitle", text(&self.page_title)),
            ("phoneNumber", text(&self.phone_number)),
            ("userCreated", self.user_created.map(time)),
            ("payload", json(&self.payload)),
            ("fieldHistory", json(&self.field_history)),
            ("X-Request-Id", text(&self.trace_id)),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect()
    }

    /// One line of `name=value` pairs. A value with a space, a quote or a control character is
    /// quoted as in JSON.
    pub fn to_line(&self) -> String {
        let mut line = String::new();
        for (name, value) in self.fields() {
            let separator = if line.is_empty() { "" } else { " " };
            let plain = !value.is_empty()
                && !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
            let value = if plain { value } else { Value::String(value).to_string() };
            // Writing to a String cannot fail.
            let _ = write!(line, "{separator}{name}={value}");
        }
        for reason in &self.flagged {
            let _ = write!(line, " flagged={}", Value::String(reason.clone()));
        }
        line
    }
}

/// Whether a required parameter is missing: such an event is answered with an empty 200.
pub(super) fn is_invalid(params: &Params) -> bool {
    REQUIRED.iter().any(|name| !params.contains_key(*name))
}

/// How an event arrived.
pub(super) struct Arrival {
    pub(super) order: usize,
    pub(super) connection: u64,
    pub(super) at: Instant,
}

/// What Tirreno stores for `params`.
///
/// # Errors
/// Why the event is lost: it was answered with 204 all the same.
pub(super) fn store(
    params: &Params,
    trace_id: Option<&[u8]>,
    arrival: Arrival,
) -> Result<StoredEvent, String> {
    let mut form = Form { params, flagged: Vec::new() };

    let email_address = form.raw("emailAddress").map(|text| form.email(&text));
    let event_time = form.raw("eventTime").unwrap_or_default();
    let event_time = php::parse_time(&event_time).unwrap_or_else(|| {
        form.flag("eventTime", "not Y-m-d H:i:s.v, replaced by now");
        DateTime::<Utc>::from(SystemTime::now()).naive_utc()
    });
    let user_created = form.raw("userCreated").and_then(|text| {
        let time = php::parse_time(&text);
        if time.is_none() {
            form.flag("userCreated", "not Y-m-d H:i:s.v, left out");
        }
        time
    });
    let http_code = form.raw("httpCode").map(|text| form.code(&text)).transpose()?;
    let ip_address = form.ip();
    let phone_number = form.phone()?;
    let sent_type = form.text("eventType", 100)?;
    let known_type = sent_type.as_deref().and_then(|sent| {
        EVENT_TYPES.iter().find(|known| known.eq_ignore_ascii_case(sent)).copied()
    });
    // The payload follows the type that was sent, the stored type the code.
    let payload = match known_type {
        Some("page_search") => form.object("payload", &["field_id", "value"], &["field_name"]),
        Some("account_email_change") => form.object("payload", &["new_value"], &["old_value"]),
        _ => None,
    };
    let field_history = match known_type {
        Some("field_edit") => form.field_history(),
        _ => None,
    };
    let event_type = match http_code {
        Some(code) if code >= 400 => "page_error",
        _ => known_type.unwrap_or("page_view"),
    };
    let user_name = form.text("userName", 100)?;
    let user_name = match (user_name, &email_address) {
        (Some(name), _) => name,
        (None, Some(email)) => format!("{:x}", md5::compute(email)),
        (None, None) => "N/A".to_owned(),
    };
    Ok(StoredEvent {
        order: arrival.order,
        connection: arrival.connection,
        at: arrival.at,
        trace_id: trace_id.map(stored_trace_id).transpose()?,
        user_name,
        ip_address,
        url: form.text("url", 2047)?.unwrap_or_default(),
        user_agent: form.text("userAgent", 511)?,
        event_time,
        http_referer: form.referer()?,
        http_method: form.text("httpMethod", 100)?.and_then(|sent| {
            METHODS
                .iter()
                .find(|known| known.eq_ignore_ascii_case(&sent))
                .map(|&known| known.to_owned())
        }),
        http_code,
        browser_language: form.text("browserLanguage", 255)?,
        event_type: event_type.to_owned(),
        email_address,
        first_name: form.text("firstName", 100)?,
        last_name: form.text("lastName", 100)?,
        full_name: form.text("fullName", 100)?,
        page_title: form.text("pageTitle", 255)?,
        phone_number,
        user_created,
        payload,
        field_history,
        flagged: form.flagged,
    })
}

/// The parameters, and what was flagged on the way.
struct Form<'a> {
    params: &'a Params,
    flagged: Vec<String>,
}

impl Form<'_> {
    fn flag(&mut self, name: &str, reason: &str) {
        self.flagged.push(format!("{name}: {reason}"));
    }

    /// A parameter as Tirreno's own code sees it: valid UTF-8; an array as JSON.
    fn raw(&self, name: &str) -> Option<String> {
        self.params.get(name).map(|param| match param {
            Param::Text(bytes) => php::clean_utf8(bytes),
            Param::Array(array) => Value::Object(array.clone()).to_string(),
        })
    }

    /// A text column's value.
    fn text(&mut self, name: &str, limit: usize) -> Result<Option<String>, String> {
        self.raw(name).map(|text| self.column(name, text.as_bytes(), limit)).transpose()
    }

    /// The Referer is cut as it was sent and decoded once more after that.
    fn referer(&mut self) -> Result<Option<String>, String> {
        const NAME: &str = "httpReferer";
        let Some(text) = self.raw(NAME) else { return Ok(None) };
        let decoded = php::url_decode(self.cut(NAME, text.as_bytes(), 2047));
        bound(NAME, &decoded).map(Some)
    }

    fn column(&mut self, name: &str, text: &[u8], limit: usize) -> Result<String, String> {
        bound(name, self.cut(name, text, limit))
    }

    fn cut<'t>(&mut self, name: &str, text: &'t [u8], limit: usize) -> &'t [u8] {
        if text.len() <= limit {
            return text;
        }
        self.flag(name, &format!("cut to {limit} bytes"));
        &text[..limit]
    }

    fn email(&mut self, text: &str) -> String {
        let email = text.replace(' ', "").to_ascii_lowercase();
        if is_email(&email) {
            return email;
        }
        self.flag("emailAddress", "no address");
        "broken@user.local".to_owned()
    }

    fn code(&mut self, text: &str) -> Result<u16, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            self.flag("httpCode", "not digits");
            return Ok(0);
        }
        let code = text.parse().unwrap_or(i64::MAX);
        if code > MAX_CODE {
            return Err(format!("httpCode above {MAX_CODE}"));
        }
        u16::try_from(code).map_err(|error| error.to_string())
    }

    fn ip(&mut self) -> String {
        let text = self.raw("ipAddress").unwrap_or_default().replace(' ', "");
        if text.parse::<IpAddr>().is_ok() {
            return text;
        }
        self.flag("ipAddress", "no address");
        "0.0.0.0".to_owned()
    }

    fn phone(&mut self) -> Result<Option<String>, String> {
        const NAME: &str = "phoneNumber";
        let Some(text) = self.raw(NAME) else { return Ok(None) };
        let number = self.column(NAME, text.replace(' ', "").as_bytes(), 19)?;
        Ok(Some(number).filter(|number| !number.is_empty()))
    }

    /// An array parameter, sent as `name[key]=…` or as JSON.
    fn array(&self, name: &str) -> Option<Value> {
        match self.params.get(name)? {
            Param::Array(array) => Some(Value::Object(array.clone())),
            Param::Text(bytes) => serde_json::from_str(&php::clean_utf8(bytes))
                .ok()
                .filter(|value: &Value| value.is_object() || value.is_array()),
        }
    }

    fn object(&mut self, name: &str, required: &[&str], optional: &[&str]) -> Option<Value> {
        let Some(Value::Object(sent)) = self.array(name) else {
            self.flag(name, "missing");
            return None;
        };
        Some(self.item(name, &sent, required, optional))
    }

    fn field_history(&mut self) -> Option<Value> {
        const NAME: &str = "fieldHistory";
        let sent = match self.array(NAME) {
            Some(Value::Array(items)) => items,
            Some(Value::Object(items)) => items.into_iter().map(|(_, item)| item).collect(),
            _ => Vec::new(),
        };
        let mut items = Vec::new();
        for item in sent {
            match item {
                Value::Object(item) => items.push(self.item(
                    NAME,
                    &item,
                    &["field_id", "new_value"],
                    &["field_name", "old_value", "parent_id", "parent_name"],
                )),
                _ => self.flag(NAME, "not an array"),
            }
        }
        if items.is_empty() {
            self.flag(NAME, "missing");
            return None;
        }
        Some(Value::Array(items))
    }

    fn item(
        &mut self,
        name: &str,
        sent: &Map<String, Value>,
        required: &[&str],
        optional: &[&str],
    ) -> Value {
        let convert = |value: &Value| match value {
            Value::String(text) => Value::String(text.clone()),
            other => Value::String(other.to_string()),
        };
        let mut kept = Map::new();
        for &key in required {
            let value = sent.get(key).filter(|value| !value.is_null());
            if value.is_none() {
                self.flag(name, &format!("{key} missing"));
            }
            kept.insert(key.into(), value.map_or_else(|| "unknown".into(), convert));
        }
        for &key in optional {
            let value = sent.get(key).filter(|value| !value.is_null());
            kept.insert(key.into(), value.map_or(Value::Null, convert));
        }
        Value::Object(kept)
    }
}

/// A value on its way into the database: a NUL ends it, and what is not UTF-8 fails the insert.
fn bound(name: &str, value: &[u8]) -> Result<String, String> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    match std::str::from_utf8(&value[..end]) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(format!("{name} is not UTF-8 as the database gets it")),
    }
}

fn stored_trace_id(id: &[u8]) -> Result<String, String> {
    if id.len() > TRACE_ID_LIMIT {
        return Err(format!("X-Request-Id above {TRACE_ID_LIMIT} bytes"));
    }
    bound("X-Request-Id", id)
}

/// Close to PHP's FILTER_VALIDATE_EMAIL: one `@`, a local part, a domain with a dot.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let local_char =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&byte);
    text.len() <= 254
        && (1..=64).contains(&local.len())
        && local.bytes().all(local_char)
        && local.split('.').all(|part| !part.is_empty())
        && domain.contains('.')
        && domain.split('.').all(label)
        && domain
            .rsplit('.')
            .next()
            .is_some_and(|top| top.starts_with(|c: char| c.is_ascii_alphabetic()))
}
