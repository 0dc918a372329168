//! The formats `mattermost` and `mattermost_v7`: Mattermost's own audit records, from before 7.2 and since
//! 7.2.
//!
//! Elastic's integration reads `mattermost`. Keys are in Mattermost's order.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::entry::{Entry, Outcome, field_name, segment_field};

/// The only form of timestamps that Elastic's pipeline parses.
fn timestamp(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S%.3f Z").to_string()
}

/// A record in the legacy schema.
#[derive(Serialize)]
pub(super) struct Legacy<'a> {
    timestamp: String,
    event: &'a str,
    status: &'static str,
    user_id: &'a str,
    session_id: &'a str,
    ip_address: String,
    /// The fields of this event, in alphabetical order.
    #[serde(flatten)]
    own: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_id: Option<&'a str>,
    client: &'a str,
}

impl<'a> Legacy<'a> {
    pub(super) fn new(entry: &'a Entry<'a>) -> Self {
        let mut own = BTreeMap::new();
        let values = entry.counts().map(|(name, value)| (name.to_owned(), json!(value)));
        own.extend(values);
        own.extend(entry.api_path().map(|path| ("api_path".to_owned(), json!(path))));
        own.extend(entry.failed_login().map(|kind| ("type".to_owned(), json!(kind))));
        let code = entry.code.filter(|_| entry.outcome == Outcome::Fail);
        own.extend(code.map(|code| ("code".to_owned(), json!(code))));
        own.extend(entry.identity.map(|word| ("identity".to_owned(), json!(word))));
        own.extend(entry.claimed.as_ref().map(|name| ("claimed_user_id".to_owned(), json!(name))));
        for (name, value) in &entry.segments {
            let thing = match *name {
                "team_id" => "team",
                "channel_id" => "channel",
                "post_id" => "post",
                "user_id" => "user",
                "file_id" => "file",
                name => {
                    own.insert(segment_field(name).into_owned(), json!(value));
                    continue;
                }
            };
            own.insert(thing.to_owned(), json!({ "id": value }));
            // In these cases, Mattermost writes the id both in the object and beside it.
            if thing == "file" || thing == "post" && entry.event == "deletePost" {
                own.insert((*name).to_owned(), json!(value));
            }
        }
        if let (Some(pinned), Some(Value::Object(post))) = (entry.pinned(), own.get_mut("post")) {
            post.insert("pinned".to_owned(), json!(pinned));
        }
        for (name, value) in &entry.fields {
            put(&mut own, &field_name(name), value);
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
            client: entry.client.as_deref().unwrap_or_default(),
        }
    }
}

/// Inserts a value at a dotted path, unless there is a value already.
fn put(map: &mut BTreeMap<String, Value>, name: &str, value: &str) {
    let mut parts = name.split('.').rev();
    let Some(mut key) = parts.next() else { return };
    let mut value = json!(value);
    for thing in parts {
        value = Value::Object(Map::from_iter([(key.to_owned(), value)]));
        key = thing;
    }
    match map.get_mut(key) {
        Some(known) => merge(known, value),
        None => {
            map.insert(key.to_owned(), value);
        }
    }
}

fn merge(known: &mut Value, more: Value) {
    if let (Value::Object(known), Value::Object(more)) = (known, more) {
        for (name, value) in more {
            match known.get_mut(&name) {
                Some(known) => merge(known, value),
                None => {
                    known.insert(name, value);
                }
            }
        }
    }
}

/// A record in the standardized schema. Mattermost always writes all keys but those of `error`.
#[derive(Serialize)]
pub(super) struct Standard<'a> {
    timestamp: String,
    event_name: &'a str,
    status: &'static str,
    actor: Actor<'a>,
    event: Event,
    meta: Meta<'a>,
    error: Error<'a>,
}

#[derive(Serialize)]
struct Actor<'a> {
    user_id: &'a str,
    session_id: &'a str,
    client: &'a str,
    ip_address: String,
    /// Not captured, because `ip_address` is already the client's.
    x_forwarded_for: &'static str,
}

#[derive(Serialize)]
struct Event {
    parameters: BTreeMap<String, Value>,
    /// The states before and after the request, which are only in bodies.
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
struct Error<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

impl<'a> Standard<'a> {
    pub(super) fn new(entry: &'a Entry<'a>) -> Self {
        let mut parameters = BTreeMap::new();
        parameters.extend(entry.segments.iter().map(|(name, v)| ((*name).to_owned(), json!(v))));
        parameters.extend(entry.pinned().map(|pinned| ("pinned".to_owned(), json!(pinned))));
        parameters.extend(entry.counts().map(|(name, v)| (name.to_owned(), json!(v))));
        parameters.extend(entry.identity.map(|word| ("identity".to_owned(), json!(word))));
        let claimed = entry.claimed.as_ref();
        parameters.extend(claimed.map(|name| ("claimed_user_id".to_owned(), json!(name))));
        let err = entry.fields.iter().find(|(name, _)| *name == "err").map(|(_, value)| &**value);
        for (name, value) in entry.fields.iter().filter(|(name, _)| *name != "err") {
            put(&mut parameters, name, value);
        }
        parameters.extend(entry.failed_login().map(|kind| ("type".to_owned(), json!(kind))));
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
            error: Error {
                status_code: entry.code.filter(|_| entry.outcome == Outcome::Fail),
                description: err,
            },
        }
    }
}
