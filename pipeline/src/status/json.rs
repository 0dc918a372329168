//! The status as JSON; docs/status.schema.json describes it.

use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value, json};

use super::{BY_STRENGTH, Snapshot, Target};
use crate::event::EventType;
use crate::shm::metrics::LATENCY_BOUNDS_MS;
use crate::shm::rejected::Rejected;

/// The snapshot as JSON, indented, with a newline at its end.
pub fn json(snapshot: &Snapshot) -> String {
    let targets: Map<_, _> =
        snapshot.targets.iter().map(|target| (target.name.clone(), account(target))).collect();
    let skipped: Map<_, _> = counts(snapshot.skipped.iter().copied());
    let identity = counts(snapshot.identity.iter().copied());
    let events: Map<_, _> = snapshot
        .events
        .iter()
        .filter(|(_, counts)| counts.iter().any(|n| *n > 0))
        .map(|(kind, by)| {
            let by = BY_STRENGTH.map(|identity| (identity.name(), by[identity as usize]));
            (kind.name().to_owned(), Value::Object(counts(by)))
        })
        .collect();
    let status = json!({
        "version": snapshot.version,
        "targets": targets,
        "skipped": skipped,
        "identity": identity,
        "events": events,
        "zone": { "fill": rounded(snapshot.fill) },
    });
    format!("{status:#}\n")
}

fn counts(pairs: impl IntoIterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    pairs.into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect()
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

fn account(target: &Target) -> Value {
    let totals = &target.totals;
    let fault = totals.last_fault;
    let mut account = json!({
        "type": target.kind,
        "state": totals.state.name(),
        "captured": totals.captured,
        "delivered": totals.delivered,
        "rejected": totals.rejected,
        "dropped": totals.all_dropped(),
        "merged": totals.merged,
        "withdrawn": totals.withdrawn,
        "pending": totals.pending,
        "retries": totals.retries,
        "last_error": fault.map(|(fault, _)| fault.to_string()),
        "last_error_time": fault.and_then(|(_, ms)| DateTime::from_timestamp_millis(ms))
            .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        "oldest_pending_seconds": totals.oldest_pending_ms / 1000,
        "dropped_by_reason": counts(target.drops()),
        "delivered_per_second": rounded(target.recent.per_second),
        "delivery_seconds": latency(target),
    });
    account["rejected_events"] = totals.rejected_events.iter().map(rejected).collect();
    let set_aside: Map<_, _> =
        totals.set_aside.iter().map(|(why, n)| (why.to_string(), (*n).into())).collect();
    if target.kind == "tirreno" && !target.has_spool {
        account["rejected_by_reason"] = set_aside.into();
    } else if target.has_spool {
        account["spool"] = json!({
            "events": totals.stored.pending,
            "bytes": totals.stored.bytes,
            "drain_seconds": totals.drain_seconds,
            "set_aside": set_aside,
        });
    }
    account
}

fn rejected(event: &Rejected) -> Value {
    let time = |ms| DateTime::from_timestamp_millis(ms).unwrap_or_default();
    let time = |ms| time(ms).to_rfc3339_opts(SecondsFormat::Millis, true);
    json!({
        "trace_id": event.trace.as_str(),
        "type": event.kind.map(EventType::name),
        "captured": time(event.captured_ms),
        "rejected": time(event.rejected_ms),
        "reason": event.fault.to_string(),
        "spool_id": event.id,
    })
}

/// As in Prometheus, a bucket holds those before it.
fn latency(target: &Target) -> Value {
    let (mut count, mut buckets) = (0, Map::new());
    for (at, n) in target.latency.buckets.iter().enumerate() {
        count += n;
        if let Some(bound) = LATENCY_BOUNDS_MS.get(at) {
            buckets.insert((*bound as f64 / 1000.0).to_string(), count.into());
        }
    }
    json!({ "count": count, "sum": target.latency.sum_ms as f64 / 1000.0, "buckets": buckets })
}
