//! The format `ecs`: Elastic Common Schema 8, which Filebeat needs no ingest pipeline for.

use serde_json::{Map, Value, json};

use super::entry::{Entry, Outcome, field_name, segment_field};
use super::rfc3339;
use crate::capture::level::Level;
use crate::event::EventType;

/// The version of the schema that Elastic's Mattermost integration writes.
const VERSION: &str = "8.11.0";

/// The ECS document of a record.
pub(super) fn document(entry: &Entry<'_>) -> Value {
    let (category, kind) = categories(entry);
    let field = |name| entry.fields.iter().find(|(known, _)| *known == name).map(|(_, v)| v);
    let target = entry.segment("user_id").or(entry.segment("remove_user_id"));
    let target = target.or(field("user.id").map(|value| &**value));
    let given = |name| entry.given.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
    let drops: Map<_, _> = entry.counts().map(|(name, v)| (name.into(), json!(v))).collect();
    let mut document = json!({
        "@timestamp": rfc3339(entry.time),
        "ecs": {"version": VERSION},
        "log": {"level": entry.level.name()},
        "message": entry.message(),
        "event": {
            "kind": "event",
            "category": category,
            "type": kind,
            "action": entry.event,
            "code": entry.kind.map(EventType::name),
            "outcome": match entry.outcome {
                Outcome::Success => "success",
                Outcome::Attempt => "unknown",
                Outcome::Fail => "failure",
            },
            "dataset": "tirreno.audit",
            "start": drops.get("dropped_first"),
            "end": drops.get("dropped_last"),
        },
        "user": {
            "id": entry.user,
            "email": given("email_address"),
            "full_name": given("full_name"),
            "target": {
                "id": target,
                "name": field("user.name"),
                "roles": field("user.roles"),
            },
        },
        "error": {"code": field("err")},
        "source": {"address": entry.ip, "ip": entry.ip},
        "user_agent": {"original": entry.client},
        "http": {
            "request": {"id": entry.trace, "method": entry.method, "referrer": entry.referer},
            "response": {"status_code": entry.code},
        },
        "url": {
            "original": entry.url,
            "path": entry.api_path(),
            "query": entry.url.as_deref().and_then(query),
        },
        "labels": labels(entry, &drops),
    });
    prune(&mut document);
    document
}

/// The values of `event.category` and `event.type`, which the schema prescribes.
fn categories(entry: &Entry<'_>) -> (&'static [&'static str], &'static [&'static str]) {
    use EventType::*;
    let Some(kind) = entry.kind else { return (&[], &[]) };
    match (kind, entry.event.as_ref()) {
        (AccountLogin | AccountLoginFail, _) => (&["authentication", "session"], &["start"]),
        (AccountLogout, _) => (&["authentication", "session"], &["end"]),
        (_, "revokeSession" | "revokeAllSessionsForUser" | "revokeAllSessionsAllUsers") => {
            (&["session"], &["end"])
        }
        (_, "updateConfig" | "patchConfig" | "configReload") => (&["configuration"], &["change"]),
        (AccountRegistration, _) => (&["iam"], &["user", "creation"]),
        (AccountEmailChange | AccountPasswordChange | AccountEdit | FieldEdit, _) => {
            match entry.method.as_deref() {
                Some("DELETE") => (&["iam"], &["user", "deletion"]),
                _ => (&["iam"], &["user", "change"]),
            }
        }
        _ if entry.level == Level::Permissions => (&["iam"], &["group", "change"]),
        (PageError, _) => (&["web"], &["error"]),
        (PageView | PageEdit | PageDelete | PageSearch, _) => (&["web"], &["access"]),
    }
}

/// The facts for which the schema has no field.
fn labels(entry: &Entry<'_>, drops: &Map<String, Value>) -> Map<String, Value> {
    let mut labels = Map::new();
    let segments = entry.segments.iter().filter(|(name, _)| *name != "user_id");
    labels.extend(segments.map(|(name, value)| (segment_field(name).into(), json!(value))));
    let shown = ["err", "user.id", "user.name", "user.roles"];
    let own = entry.fields.iter().filter(|(name, _)| !shown.contains(name));
    // ECS does not allow dots in the names of labels.
    labels.extend(own.map(|(name, v)| (field_name(name).replace('.', "_"), json!(v))));
    labels.extend(entry.identity.map(|word| ("identity".into(), json!(word))));
    labels.extend(entry.claimed.as_ref().map(|id| ("claimed_user_id".into(), json!(id))));
    labels.extend(entry.session.as_ref().map(|id| ("session_id".into(), json!(id))));
    labels.extend(entry.pinned().map(|pinned| ("pinned".into(), json!(pinned))));
    labels.extend(entry.cluster_id.map(|id| ("cluster_id".into(), json!(id))));
    for name in ["dropped", "repeated", "first_step", "truncated"] {
        labels.extend(drops.get(name).map(|count| (name.into(), count.clone())));
    }
    labels
}

fn query(url: &str) -> Option<&str> {
    let before_fragment = url.split('#').next()?;
    before_fragment.split_once('?').map(|(_, query)| query).filter(|query| !query.is_empty())
}

/// Removes null values and empty objects and lists.
fn prune(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(prune);
        map.retain(|_, value| match value {
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        });
    }
}
