//! Syslog messages by RFC 5424, with the record's fields as structured data.
//!
//! ```text
//! <134>1 2026-01-31T23:59:59.999Z host nginx 1234 page_view [tirreno@32473 user="u1" …] RECORD
//! ```
//!
//! This is our own code because the crates that write structured data are unmaintained (`syslog5424`), or
//! have their own transport, which cannot keep a message until it is confirmed (`syslog-rs`).

use std::fmt;
use std::io::Write;

use chrono::{DateTime, SecondsFormat};

use crate::audit::format::is_unseen;
use crate::clock::wall_ms;
use crate::event::EventType;
use crate::record::Record;

/// The SD-ID. RFC 5612 reserves the enterprise number 32473 for those who have none of their own.
pub const SD_ID: &str = "tirreno@32473";

/// The most bytes of APP-NAME, of HOSTNAME, and of an SD-NAME.
const MAX_TAG: usize = 48;
const MAX_HOST: usize = 255;
const MAX_NAME: usize = 32;

/// A record's field: its name and its value.
pub type Field = (String, String);

/// The names of the facilities; the index is the code.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

/// The names of the severities; the index is the code.
const SEVERITIES: [&str; 8] =
    ["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"];

/// The facility of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facility(u8);

impl Facility {
    /// Parses the name of a facility, as in RFC 5424 and nginx's `syslog:facility=`.
    ///
    /// # Errors
    /// The list of all names.
    pub fn parse(name: &str) -> Result<Self, String> {
        code(&FACILITIES, name).map(Self)
    }
}

impl Default for Facility {
    fn default() -> Self {
        Self(23)
    }
}

/// The severity of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Severity(u8);

impl Severity {
    const WARN: Self = Self(4);
    const NOTICE: Self = Self(5);
    const INFO: Self = Self(6);

    /// Parses the name of a severity, as in nginx's `syslog:severity=`.
    ///
    /// # Errors
    /// The list of all names.
    pub fn parse(name: &str) -> Result<Self, String> {
        code(&SEVERITIES, name).map(Self)
    }

    /// The default severity for an event type.
    fn of(kind: EventType) -> Self {
        match kind {
            EventType::AccountLoginFail => Self::WARN,
            kind if kind.is_page() => Self::INFO,
            _ => Self::NOTICE,
        }
    }
}

fn code(names: &[&str], name: &str) -> Result<u8, String> {
    let place = names.iter().position(|known| *known == name);
    place.map(|place| place as u8).ok_or_else(|| names.join(", "))
}

/// The configured parts of the header.
#[derive(Clone, Debug)]
pub struct HeaderConfig {
    /// The facility in PRI.
    pub facility: Facility,
    /// The severity in PRI; if `None`, it depends on the event's type.
    pub severity: Option<Severity>,
    /// APP-NAME.
    pub tag: String,
}

impl HeaderConfig {
    /// Whether a text can be APP-NAME.
    pub fn is_tag(text: &str) -> bool {
        (1..=MAX_TAG).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

/// Writes the headers of messages.
#[derive(Clone, Debug)]
pub struct Header {
    config: HeaderConfig,
    host: String,
}

impl Header {
    /// A header with this machine's host name.
    pub fn new(config: &HeaderConfig) -> Self {
        let host = host_name().filter(|host| {
            (1..=MAX_HOST).contains(&host.len()) && host.bytes().all(|byte| byte.is_ascii_graphic())
        });
        Self { config: config.clone(), host: host.unwrap_or_else(|| "-".into()) }
    }

    /// Appends the header of a record, with its fields as structured data if there are any.
    pub fn record(&self, record: &Record<'_>, fields: &[Field], out: &mut Vec<u8>) {
        let kind = record.kind();
        self.start(Severity::of(kind), record.time_ms(), kind.name(), out);
        structured_data(fields, out);
    }

    /// Appends the header of a record about dropped events.
    pub fn drops(&self, fields: &[Field], out: &mut Vec<u8>) {
        self.start(Severity::WARN, wall_ms(), "dropped", out);
        structured_data(fields, out);
    }

    fn start(&self, severity: Severity, time_ms: i64, id: &str, out: &mut Vec<u8>) {
        let HeaderConfig { facility, severity: configured, tag } = &self.config;
        let priority = facility.0 * 8 + configured.unwrap_or(severity).0;
        let time = DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
        let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let (host, pid) = (&self.host, std::process::id());
        push(out, format_args!("<{priority}>1 {time} {host} {tag} {pid} {id} "));
    }
}

/// Appends an SD-ELEMENT or the NILVALUE, and a space.
fn structured_data(fields: &[Field], out: &mut Vec<u8>) {
    if fields.is_empty() {
        return out.extend_from_slice(b"- ");
    }
    push(out, format_args!("[{SD_ID}"));
    for (name, value) in fields.iter().filter(|(name, _)| is_name(name)) {
        push(out, format_args!(" {name}=\"{}\"", Value(value)));
    }
    out.extend_from_slice(b"] ");
}

/// Whether a text can be an SD-NAME.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain)
}

fn push(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
}

/// A PARAM-VALUE. It escapes the three characters that would end the value, and replaces characters that
/// control a terminal or end a line by U+FFFD.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for c in self.0.chars() {
            match c {
                '"' | '\\' | ']' => {
                    f.write_char('\\')?;
                    f.write_char(c)?;
                }
                c if is_unseen(c) => f.write_char(char::REPLACEMENT_CHARACTER)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn host_name() -> Option<String> {
    let mut name = [0u8; MAX_HOST + 1];
    // SAFETY: the buffer has that length.
    let rc = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|byte| *byte == 0)?;
    (rc == 0).then(|| String::from_utf8(name[..end].to_vec()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Capture;

    fn message(config: HeaderConfig, capture: &Capture<'_>, fields: &[(&str, &str)]) -> String {
        let mut bytes = vec![0; capture.record_len()];
        capture.write(0, &mut bytes);
        let mut header = Header::new(&config);
        header.host = "host".into();
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut out = Vec::new();
        header.record(&Record::parse(&bytes).unwrap(), &fields, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn config() -> HeaderConfig {
        HeaderConfig { facility: Facility::default(), severity: None, tag: "nginx".into() }
    }

    #[test]
    fn a_message() {
        let capture = Capture::new(1_700_000_000_123);
        let fields = [("user", "u1"), ("url", "/a?b=c"), ("no name", ""), ("code", "302")];
        let pid = std::process::id();
        assert_eq!(
            message(config(), &capture, &fields),
            format!(
                "<190>1 2023-11-14T22:13:20.123Z host nginx {pid} page_view [tirreno@32473 \
                 user=\"u1\" url=\"/a?b=c\" code=\"302\"] "
            )
        );
    }

    #[test]
    fn priorities() {
        let priority = |config, kind| {
            let mut capture = Capture::new(0);
            capture.kind = kind;
            message(config, &capture, &[]).split('>').next().unwrap().to_owned()
        };
        assert_eq!(priority(config(), EventType::AccountLoginFail), "<188");
        assert_eq!(priority(config(), EventType::AccountLogin), "<189");
        assert_eq!(priority(config(), EventType::FieldEdit), "<189");
        assert_eq!(priority(config(), EventType::PageError), "<190");
        let config = HeaderConfig {
            facility: Facility::parse("authpriv").unwrap(),
            severity: Some(Severity::parse("debug").unwrap()),
            ..config()
        };
        assert_eq!(priority(config, EventType::AccountLoginFail), "<87");
        assert!(Facility::parse("local8").unwrap_err().contains("local7"));
        assert!(Severity::parse("").is_err());
    }

    #[test]
    fn no_value_forges_another() {
        let hostile = "x\" user=\"root\"] <0>1 - \\\n\0\x1b[31m\u{9b}\u{2028}";
        let message = message(config(), &Capture::new(0), &[("user", hostile)]);
        let data = message.split_once('[').unwrap().1;
        assert_eq!(
            data,
            "tirreno@32473 user=\"x\\\" user=\\\"root\\\"\\] <0>1 - \\\\\u{fffd}\u{fffd}\u{fffd}[31m\
             \u{fffd}\u{fffd}\"] "
        );
    }

    #[test]
    fn tags() {
        assert!(HeaderConfig::is_tag("nginx-1.2/x") && HeaderConfig::is_tag(&"x".repeat(48)));
        for bad in ["", "a b", "ä", "a\n", &"x".repeat(49)] {
            assert!(!HeaderConfig::is_tag(bad), "{bad}");
        }
    }
}
