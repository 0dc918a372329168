//! The content of `tirreno_status`: one snapshot of the counters, as JSON, as Prometheus text, or as a page.
//!
//! It contains configured names, numbers and fixed words only: no user, no URL of a request, no secret.

mod advice;
mod json;
mod page;
mod prometheus;

pub use page::{SECURITY_POLICY, page};
pub use prometheus::prometheus;

use crate::capture::identity::Identity;
use crate::event::EventType;
use crate::shm::metrics::{Latency, Recent};
use crate::shm::zone::{DropReason, State, Totals, Zone};

pub use json::json;

/// The forms of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`, by the schema of docs/status.schema.json.
    Json,
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// A page for people.
    Html,
}

impl Format {
    /// The format that a request wants: by the argument `format`, else by the header `Accept`, else JSON.
    /// `None` if the argument names no format.
    pub fn wanted(argument: Option<&[u8]>, accept: &[u8]) -> Option<Self> {
        match argument {
            Some(b"json") => return Some(Self::Json),
            Some(b"prometheus") => return Some(Self::Prometheus),
            Some(b"html") => return Some(Self::Html),
            Some(_) => return None,
            None => {}
        }
        // The first known format wins: clients that read JSON or metrics ask for nothing else before it.
        let known = accept.split(|b| *b == b',').find_map(|part| {
            let mut part = part.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let name = part.next().unwrap_or_default().to_ascii_lowercase();
            if part.any(is_refusal) {
                return None;
            }
            match name.as_slice() {
                b"text/html" | b"application/xhtml+xml" => Some(Self::Html),
                b"application/openmetrics-text" | b"text/plain" => Some(Self::Prometheus),
                b"application/json" => Some(Self::Json),
                _ => None,
            }
        });
        Some(known.unwrap_or(Self::Json))
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        }
    }
}

/// Whether a parameter in `Accept` says that the type is not wanted: a weight of 0 (RFC 9110, 12.4.2).
fn is_refusal(parameter: &[u8]) -> bool {
    let weight = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    weight.is_some_and(|weight| {
        weight.starts_with(b"0") && weight.iter().all(|b| matches!(b, b'0' | b'.'))
    })
}

/// All counters at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The module's version.
    pub version: &'static str,
    /// The targets of the configuration, in its order.
    pub targets: Vec<Target>,
    /// Requests that are no event, by reason.
    pub skipped: Vec<(&'static str, u64)>,
    /// Events by evidence, those whose client claims to be another user, and those whose session cannot be
    /// read.
    pub identity: Vec<(&'static str, u64)>,
    /// Captured events by type and evidence.
    pub events: Vec<(EventType, [u64; Identity::ALL.len()])>,
    /// The share of the records' shared memory that is in use, 0 to 1.
    pub fill: f64,
}

/// One target's counters.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its configured name.
    pub name: String,
    /// The value of its parameter `type`.
    pub kind: &'static str,
    /// Whether it has a spool.
    pub has_spool: bool,
    /// Its counters.
    pub totals: Totals,
    /// The times from capture to delivery.
    pub latency: Latency,
    /// The last hour.
    pub recent: Recent,
}

impl Target {
    /// The target in `slot` of the zone.
    pub fn read(zone: Zone, slot: usize, name: &str, kind: &'static str, has_spool: bool) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            has_spool,
            totals: zone.totals(slot),
            latency: zone.metrics().latency(slot),
            recent: zone.metrics().recent(slot),
        }
    }

    /// The name of its state.
    fn state(&self) -> &'static str {
        self.totals.state.name()
    }

    fn is_well(&self) -> bool {
        self.totals.state == State::Ok
    }

    /// Drops by reason; those that the spool counts are a reason of their own.
    fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let of_memory = DropReason::ALL
            .into_iter()
            .map(|why| (drop_name(why), self.totals.dropped[why as usize]));
        of_memory
            .chain(self.has_spool.then_some(("spool_full_or_expired", self.totals.stored.dropped)))
    }
}

impl Snapshot {
    /// What the zone counts for these targets.
    pub fn read(zone: Zone, version: &'static str, targets: Vec<Target>) -> Self {
        let metrics = zone.metrics();
        let by_evidence = |kind| Identity::ALL.map(|identity| metrics.events(kind, identity));
        Self {
            version,
            targets,
            skipped: zone.skipped().to_vec(),
            identity: zone.identified(),
            events: EventType::ALL.into_iter().map(|kind| (kind, by_evidence(kind))).collect(),
            fill: zone.fill(),
        }
    }

    /// An empty snapshot, for a configuration without targets.
    pub fn empty(version: &'static str) -> Self {
        Self {
            version,
            targets: Vec::new(),
            skipped: Vec::new(),
            identity: Vec::new(),
            events: Vec::new(),
            fill: 0.0,
        }
    }

    /// The count of that name in `identity`.
    fn identity(&self, name: &str) -> u64 {
        self.identity.iter().find(|(known, _)| *known == name).map_or(0, |(_, n)| *n)
    }
}

/// All states by name.
const STATES: [&str; 5] = ["ok", "retrying", "paused", "degraded", "waiting"];

/// A reason's key in JSON, and its label in metrics.
fn drop_name(why: DropReason) -> &'static str {
    match why {
        DropReason::ZoneFull => "zone_full",
        DropReason::QueueFull => "queue_full",
        DropReason::Shutdown => "shutdown",
        DropReason::DelivererDied => "deliverer_died",
        DropReason::TargetGone => "target_gone",
        DropReason::Internal => "internal",
    }
}

/// The strongest evidence first, as documentation lists it.
const BY_STRENGTH: [Identity; 5] =
    [Identity::Answer, Identity::Session, Identity::Lookup, Identity::Claim, Identity::None];

#[cfg(test)]
mod tests;
