//! How a record is written for a stream target.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat};

use crate::event::Param;
use crate::privacy::View;

/// The parameter `format`.
#[derive(Clone, Debug, Default)]
pub struct FormatConfig {}

impl FormatConfig {
    /// Reads a format's name and its options.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(name: &str, options: &[(&str, &str)]) -> Result<Self, String> {
        match (name, options) {
            ("json", []) => Ok(Self {}),
            ("json", [(option, _), ..]) => Err(format!("unknown option \"{option}\"")),
            _ => Err(format!("unknown format \"{name}\"")),
        }
    }

    /// The key of hashes.
    pub fn set_hash_key(&mut self, _key: &[u8]) {}
}

/// Events that found no room in a target's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops {
    /// How many.
    pub count: u64,
    /// When the first and the last of them began, milliseconds since the epoch, UTC.
    pub first_ms: i64,
    #[allow(missing_docs)]
    pub last_ms: i64,
}

/// Writes records.
#[derive(Clone, Debug)]
pub struct Formatter {}

impl Formatter {
    /// A formatter of that configuration.
    pub fn new(_config: &FormatConfig) -> Self {
        Self {}
    }

    /// Appends a record, without what ends it.
    pub fn record(&self, view: &View<'_>, out: &mut Vec<u8>) {
        let record = view.record();
        let mut text = format!(
            "{{\"timestamp\":\"{}\",\"type\":\"{}\",\"code\":{}",
            time(record.time_ms()),
            record.kind().name(),
            record.status(),
        );
        for param in [Param::UserName, Param::Url, Param::UserAgent] {
            if let Some(value) = view.get(param) {
                let _ = write!(text, ",\"{}\":\"", param.name());
                for c in String::from_utf8_lossy(&value).chars() {
                    let _ = match c {
                        '"' | '\\' => write!(text, "\\{c}"),
                        c if c < ' ' => write!(text, "\\u{:04x}", u32::from(c)),
                        c => write!(text, "{c}"),
                    };
                }
                text.push('"');
            }
        }
        text.push('}');
        out.extend_from_slice(text.as_bytes());
    }

    /// What ends a record.
    pub fn terminator(&self) -> &[u8] {
        b"\n"
    }

    /// Appends a record of what was dropped.
    pub fn drops(&self, drops: &Drops, out: &mut Vec<u8>) {
        let text = format!(
            "{{\"dropped\":{},\"first\":\"{}\",\"last\":\"{}\"}}",
            drops.count,
            time(drops.first_ms),
            time(drops.last_ms),
        );
        out.extend_from_slice(text.as_bytes());
    }
}

fn time(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
