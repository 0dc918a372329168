//! The formats `mattermost` and `mattermost_v7`: Mattermost's own audit records, before 7.2 and since.
//!
//! The first is what Elastic's integration reads. Keys stand in Mattermost's order.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::entry::{Entry, Outcome, Value, segment_field};

/// Elastic's pipeline reads no other form.
fn timestamp(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.3f Z").to_string()
}

/// A record of the legacy schema.
#[derive(Serialize)]
pub(super) struct Legacy<'a> {
    timestamp: String,
    event: &'a str,
    status: &'static str,
    user_id: &'a str,
    session_id: &'a str,
    ip_address: String,
    /// The event's own, in the order of the alphabet.
    #[serde(flatten)]
    own: BTreeMap<Cow<'a, str>, Own<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Own<'a> {
    Value(Value<'a>),
    Thing {
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pinned: Option<bool>,
    },
}

impl<'a> Legacy<'a> {
    pub(super) fn new(entry: &'a Entry<'a>) -> Self {
        let mut own = BTreeMap::new();
        own.extend(entry.drop_values().map(|(name, value)| (name.into(), Own::Value(value))));
        own.extend(entry.api_path().map(|path| ("api_path".into(), Own::Value(path.into()))));
        let code = entry.code.filter(|_| entry.outcome == Outcome::Fail);
        own.extend(code.map(|code| ("code".into(), Own::Value(Value::Number(code.into())))));
        for (name, value) in &entry.segments {
            let thing = |pinned| Own::Thing { id: value, pinned };
            let (key, value) = match *name {
                "team_id" => ("team".into(), thing(None)),
                "channel_id" => ("channel".into(), thing(None)),
                "post_id" => ("post".into(), thing(entry.pinned())),
                "user_id" => ("user".into(), thing(None)),
                name => (segment_field(name), Own::Value(value.as_ref().into())),
            };
            own.insert(key, value);
        }
        Self {
            timestamp: timestamp(entry.time),
            event: &entry.event,
            status: entry.outcome.name(),
            user_id: entry.user.as_deref().unwrap_or_default(),
            session_id: entry.session.as_deref().unwrap_or_default(),
            ip_address: entry.ip.map(|ip| ip.to_string()).unwrap_or_default(),
            own,
            cluster_id: entry.cluster_id,
            client: entry.client.as_deref(),
        }
    }
}

/// A record of the standardized schema. Mattermost writes every key of it but the error's.
#[derive(Serialize)]
pub(super) struct Standard<'a> {
    timestamp: String,
    event_name: &'a str,
    status: &'static str,
    actor: Actor<'a>,
    event: Event<'a>,
    meta: Meta<'a>,
    error: Error,
}

#[derive(Serialize)]
struct Actor<'a> {
    user_id: &'a str,
    session_id: &'a str,
    client: &'a str,
    ip_address: String,
    /// Not captured: `ip_address` is the client's already.
    x_forwarded_for: &'static str,
}

#[derive(Serialize)]
struct Event<'a> {
    parameters: BTreeMap<&'a str, Value<'a>>,
    /// What things were and have become: only bodies know.
    prior_state: Nothing,
    resulting_state: Nothing,
    object_type: &'static str,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Meta<'a> {
    api_path: &'a str,
    cluster_id: &'a str,
}

#[derive(Serialize)]
struct Error {
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
}

impl<'a> Standard<'a> {
    pub(super) fn new(entry: &'a Entry<'a>) -> Self {
        let mut parameters = BTreeMap::new();
        parameters.extend(entry.segments.iter().map(|(name, v)| (*name, v.as_ref().into())));
        parameters.extend(entry.pinned().map(|pinned| ("pinned", Value::Flag(pinned))));
        parameters.extend(entry.drop_values());
        Self {
            timestamp: timestamp(entry.time),
            event_name: &entry.event,
            status: entry.outcome.name(),
            actor: Actor {
                user_id: entry.user.as_deref().unwrap_or_default(),
                session_id: entry.session.as_deref().unwrap_or_default(),
                client: entry.client.as_deref().unwrap_or_default(),
                ip_address: entry.ip.map(|ip| ip.to_string()).unwrap_or_default(),
                x_forwarded_for: "",
            },
            event: Event {
                parameters,
                prior_state: Nothing {},
                resulting_state: Nothing {},
                object_type: "",
            },
            meta: Meta {
                api_path: entry.api_path().unwrap_or_default(),
                cluster_id: entry.cluster_id.unwrap_or_default(),
            },
            error: Error { status_code: entry.code.filter(|_| entry.outcome == Outcome::Fail) },
        }
    }
}
