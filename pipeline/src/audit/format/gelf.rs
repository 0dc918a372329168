//! The format `gelf`: Graylog's GELF 1.1.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::entry::{Entry, Outcome, Value};

/// Names whose additional fields would replace fields of GELF or Graylog.
const TAKEN: [&str; 8] =
    ["id", "version", "host", "short_message", "full_message", "message", "source", "facility"];

#[derive(Serialize)]
pub(super) struct Message<'a> {
    version: &'static str,
    host: &'a str,
    short_message: String,
    /// Seconds since the epoch.
    timestamp: f64,
    /// A syslog severity.
    level: u8,
    #[serde(flatten)]
    additional: BTreeMap<String, Value<'a>>,
}

impl<'a> Message<'a> {
    pub(super) fn new(entry: &'a Entry<'a>, host: &'a str) -> Self {
        let additional = |(name, value): (Cow<'a, str>, Value<'a>)| {
            let target = if TAKEN.contains(&name.as_ref()) { "target_" } else { "" };
            (format!("_{target}{name}"), value)
        };
        let level = ("audit_level".into(), entry.level.name().into());
        Self {
            version: "1.1",
            host,
            short_message: entry.message(),
            timestamp: entry.time.timestamp_millis() as f64 / 1000.0,
            level: match entry.outcome {
                Outcome::Success => 6,
                Outcome::Attempt => 5,
                Outcome::Fail => 4,
            },
            additional: entry.fields().into_iter().chain([level]).map(additional).collect(),
        }
    }
}
