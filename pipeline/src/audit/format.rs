//! Audit records: what file, console, syslog and TCP targets write, in a format that their readers know.
//!
//! [`Formatter`] turns a [`View`] into one record's bytes; every format has the same facts, under its own
//! names. Values are hostile: none can end a record, or begin a field or a line.

mod ecs;
mod entry;
mod gelf;
mod json;
mod mattermost;
mod plain;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, SecondsFormat, Utc};
use hmac::{Hmac, KeyInit};
use sha2::Sha256;

use self::entry::Entry;
use crate::privacy::View;

/// `format`, as the configuration has it.
#[derive(Clone, Debug)]
pub struct FormatConfig {
    format: Format,
    cluster_id: Option<String>,
    hash_key_file: Option<String>,
    /// Makes session ids.
    session_key: Hmac<Sha256>,
}

#[derive(Clone, Debug)]
enum Format {
    Json(json::Options),
    Plain(plain::Options),
    Gelf { hostname: String },
    Mattermost,
    MattermostV7,
    Ecs,
}

/// Events that a target's queue had no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops {
    /// How many.
    pub count: u64,
    /// When the first of them was captured, milliseconds since the epoch, UTC.
    pub first_ms: i64,
    /// When the last of them was.
    pub last_ms: i64,
}

/// How much of a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Everything.
    Whole,
    /// At most so many bytes of each value that a client chooses, except the user's name.
    Values(usize),
    /// Only what every record has.
    Bare,
}

const NAMES: &str = "\"json\", \"plain\", \"gelf\", \"mattermost\", \"mattermost_v7\" or \"ecs\"";

impl FormatConfig {
    /// Reads `name [option=value …]`. Options of every format are `cluster_id` and `hash_key_file`, which
    /// the caller reads for [`set_hash_key`](Self::set_hash_key).
    ///
    /// # Errors
    /// What is wrong, with what it must be.
    pub fn parse(name: &str, options: &[(&str, &str)]) -> Result<Self, String> {
        let mut format = match name {
            "json" => Format::Json(json::Options::default()),
            "plain" => Format::Plain(plain::Options::default()),
            "gelf" => {
                let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
                Format::Gelf { hostname }
            }
            "mattermost" => Format::Mattermost,
            "mattermost_v7" => Format::MattermostV7,
            "ecs" => Format::Ecs,
            _ => return Err(format!("unknown format \"{name}\", it must be {NAMES}")),
        };
        let (mut cluster_id, mut hash_key_file) = (None, None);
        let mut seen: Vec<&str> = Vec::new();
        for &(option, value) in options {
            if seen.contains(&option) {
                return Err(format!("duplicate option \"{option}\" of format \"{name}\""));
            }
            seen.push(option);
            let read = match (option, &mut format) {
                ("cluster_id" | "hash_key_file" | "hostname", _) if value.is_empty() => {
                    Err("a text that is not empty".into())
                }
                ("cluster_id", _) => {
                    cluster_id = Some(value.to_owned());
                    Ok(())
                }
                ("hash_key_file", _) => {
                    hash_key_file = Some(value.to_owned());
                    Ok(())
                }
                ("hostname", Format::Gelf { hostname }) => {
                    *hostname = value.to_owned();
                    Ok(())
                }
                (_, Format::Json(options)) => options.set(option, value),
                (_, Format::Plain(options)) => options.set(option, value),
                _ => Err(Mistake::Unknown),
            };
            read.map_err(|mistake| match mistake {
                // It is not repeated: it may be the start of a key, which may end with `=`.
                Mistake::Unknown => format!(
                    "unknown option of format \"{name}\", it must be one of {}",
                    format.options().map(|o| format!("\"{o}\"")).collect::<Vec<_>>().join(", ")
                ),
                Mistake::MustBe(what) => format!(
                    "invalid value \"{}\" of option \"{option}\", it must be {what}",
                    value.escape_debug()
                ),
            })?;
        }
        let session_key = Hmac::new_from_slice(random_key()?).map_err(|e| e.to_string())?;
        Ok(Self { format, cluster_id, hash_key_file, session_key })
    }

    /// Whether a record ends with NUL on a connection, as Graylog expects it of GELF.
    pub fn is_gelf(&self) -> bool {
        matches!(self.format, Format::Gelf { .. })
    }

    /// The file that holds the key of session ids.
    pub fn hash_key_file(&self) -> Option<&str> {
        self.hash_key_file.as_deref()
    }

    /// Sets the key of session ids. The default is a random key for each start of nginx, which reloads keep:
    /// then session ids can be compared neither over a restart nor with those of another server.
    pub fn set_hash_key(&mut self, key: &[u8]) {
        // A key of any length is one.
        if let Ok(key) = Hmac::new_from_slice(key) {
            self.session_key = key;
        }
    }
}

impl Format {
    /// The names of its options.
    fn options(&self) -> impl Iterator<Item = &'static str> {
        let (shared, own): (&[_], &[_]) = match self {
            Self::Json(_) => (&json::OPTIONS, &[]),
            Self::Plain(_) => (&json::OPTIONS, &plain::OPTIONS),
            Self::Gelf { .. } => (&[], &["hostname"]),
            Self::Mattermost | Self::MattermostV7 | Self::Ecs => (&[], &[]),
        };
        shared.iter().chain(own).copied().chain(["cluster_id", "hash_key_file"])
    }
}

/// What is wrong with an option.
enum Mistake {
    /// The format has none of that name.
    Unknown,
    /// What its value must be.
    MustBe(String),
}

impl From<&str> for Mistake {
    fn from(what: &str) -> Self {
        Self::MustBe(what.to_owned())
    }
}

/// `on` or `off`, or as Mattermost's configuration has it.
fn flag(value: &str) -> Result<bool, Mistake> {
    match value {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("\"on\" or \"off\"".into()),
    }
}

/// This process's own key.
fn random_key() -> Result<&'static [u8; 32], String> {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    if let Some(key) = KEY.get() {
        return Ok(key);
    }
    let mut key = [0; 32];
    match getrandom::fill(&mut key) {
        Ok(()) => Ok(KEY.get_or_init(|| key)),
        Err(_) => Err("the system has no random numbers for a key, set \"hash_key_file\"".into()),
    }
}

/// Makes audit records in one format.
#[derive(Clone, Debug)]
pub struct Formatter(FormatConfig);

impl Formatter {
    /// Of a configured format.
    pub fn new(config: &FormatConfig) -> Self {
        Self(config.clone())
    }

    /// Adds the audit record of an event to `out`, without its [`terminator`](Self::terminator).
    pub fn record(&self, view: &View<'_>, length: Length, out: &mut Vec<u8>) {
        self.write(&Entry::of(view, &self.0).shortened(length), out);
    }

    /// Adds a record that says how many events were dropped.
    pub fn drops(&self, drops: &Drops, out: &mut Vec<u8>) {
        self.write(&Entry::dropped(drops, &self.0), out);
    }

    /// What stands between records in a stream.
    pub fn terminator(&self) -> &[u8] {
        match &self.0.format {
            Format::Plain(options) => options.line_end.as_bytes(),
            _ => b"\n",
        }
    }

    /// The record's fields as names and values, which are those of the format `json`, in its order; for
    /// the structured data of syslog. Values may hold any character but NUL.
    pub fn fields(&self, view: &View<'_>, length: Length) -> Vec<(String, String)> {
        Entry::of(view, &self.0).shortened(length).texts()
    }

    /// [`fields`](Self::fields) of the record that says how many events were dropped.
    pub fn drop_fields(&self, drops: &Drops) -> Vec<(String, String)> {
        Entry::dropped(drops, &self.0).texts()
    }

    fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match &self.0.format {
            Format::Json(options) => json::write(&options.record(entry), out),
            Format::Plain(options) => options.write(entry, out),
            Format::Gelf { hostname } => json::write(&gelf::Message::new(entry, hostname), out),
            Format::Mattermost => json::write(&mattermost::Legacy::new(entry), out),
            Format::MattermostV7 => json::write(&mattermost::Standard::new(entry), out),
            Format::Ecs => json::write(&ecs::document(entry), out),
        }
    }
}

/// How a record writes its time, always in UTC.
#[derive(Clone, Debug, Default)]
enum TimeFormat {
    #[default]
    Rfc3339,
    Strftime(Vec<Item<'static>>),
}

impl TimeFormat {
    fn parse(text: &str) -> Result<Self, Mistake> {
        let must = "\"rfc3339\" or a strftime format like \"%Y-%m-%d %H:%M:%S%.3f\"";
        if text == "rfc3339" {
            return Ok(Self::Rfc3339);
        }
        let items: Vec<_> = StrftimeItems::new(text).map(Item::to_owned).collect();
        let is_time = items.iter().any(|i| matches!(i, Item::Numeric(..) | Item::Fixed(_)));
        let mut sample = String::new();
        let written = write!(sample, "{}", DateTime::UNIX_EPOCH.format_with_items(items.iter()));
        if items.contains(&Item::Error) || written.is_err() || !is_time {
            return Err(must.into());
        }
        if sample.contains(char::is_control) {
            return Err(Mistake::MustBe(format!("{must}, without line breaks")));
        }
        Ok(Self::Strftime(items))
    }

    fn write(&self, time: DateTime<Utc>) -> String {
        match self {
            Self::Rfc3339 => rfc3339(time),
            Self::Strftime(items) => {
                let mut text = String::new();
                // `parse` has seen that it can be written.
                let _ = write!(text, "{}", time.format_with_items(items.iter()));
                text
            }
        }
    }
}

/// `2021-12-04T23:19:32.051Z`.
fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Whether a character does something to a terminal, a line or the text around it instead of being seen:
/// controls, line and paragraph separators, changes of direction.
pub(crate) fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Writes `\u001b`, as JSON does; all of [`is_unseen`] fit into four digits.
fn escape(char: char, out: &mut impl fmt::Write) -> fmt::Result {
    write!(out, "\\u{:04x}", char as u32)
}
