//! The events that a target refused last, for the status: enough to find each in an audit file, a spool or
//! a log, and nothing of its user or its request.

use std::array;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::clock::wall_ms;
use crate::event::EventType;
use crate::fault::Fault;
use crate::shm::version::Version;

/// So many rejected events of a target are listed.
pub const LISTED: usize = 50;
/// Room for the longest trace id that Tirreno takes, in words of 8 bytes.
const TRACE_WORDS: usize = 5;

/// A rejected event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its key in the spool's table `rejected`; nothing where it is not there.
    pub id: Option<u64>,
    /// Its trace id.
    pub trace: TraceId,
    /// What it is.
    pub kind: Option<EventType>,
    /// When it was captured, in milliseconds since the epoch.
    pub captured_ms: i64,
    /// When it was rejected, the same.
    pub rejected_ms: i64,
    /// Why.
    pub fault: Fault,
}

impl Rejected {
    /// An event that is in no spool and is rejected now.
    pub fn now(trace: &str, kind: Option<EventType>, captured_ms: i64, fault: Fault) -> Self {
        let trace = TraceId::of(trace);
        Self { id: None, trace, kind, captured_ms, rejected_ms: wall_ms(), fault }
    }
}

/// A trace id of letters, digits and hyphens. Other programs can write to a spool; a text with any other character
/// in the place of a trace id becomes an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceId(String);

impl TraceId {
    /// The trace id in that text; empty where it is none.
    pub fn of(text: &str) -> Self {
        let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let fits = text.len() < TRACE_WORDS * 8;
        Self(if is_plain && fits { text.to_owned() } else { String::new() })
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The list of one target in shared memory; zeros are an empty one.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct List {
    version: Version,
    rows: [Row; LISTED],
}

/// A row is empty while `rejected_ms` is 0.
#[repr(C)]
#[derive(Debug)]
struct Row {
    /// Plus one; 0: in no spool.
    id: AtomicU64,
    trace: [AtomicU64; TRACE_WORDS],
    captured_ms: AtomicU64,
    rejected_ms: AtomicU64,
    fault: AtomicU32,
    /// Plus one; 0: unknown.
    kind: AtomicU32,
}

impl Row {
    fn read(&self) -> Option<Rejected> {
        let rejected_ms = self.rejected_ms.load(Relaxed) as i64;
        if rejected_ms == 0 {
            return None;
        }
        let words = self.trace.each_ref().map(|word| word.load(Relaxed).to_ne_bytes());
        let bytes = words.as_flattened();
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let kind = self.kind.load(Relaxed).checked_sub(1);
        Some(Rejected {
            id: self.id.load(Relaxed).checked_sub(1),
            trace: TraceId::of(str::from_utf8(&bytes[..len]).unwrap_or_default()),
            kind: kind.and_then(|kind| EventType::from_number(u8::try_from(kind).ok()?)),
            captured_ms: self.captured_ms.load(Relaxed) as i64,
            rejected_ms,
            fault: Fault::unpack(self.fault.load(Relaxed))?,
        })
    }

    fn write(&self, event: Option<&Rejected>) {
        let Some(event) = event else {
            return self.rejected_ms.store(0, Relaxed);
        };
        let mut bytes = [0; TRACE_WORDS * 8];
        let trace = event.trace.as_str().as_bytes();
        bytes[..trace.len()].copy_from_slice(trace);
        for (word, bytes) in self.trace.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Relaxed);
        }
        self.id.store(event.id.map_or(0, |id| id.saturating_add(1)), Relaxed);
        self.captured_ms.store(event.captured_ms as u64, Relaxed);
        self.rejected_ms.store(event.rejected_ms.max(1) as u64, Relaxed);
        self.fault.store(event.fault.pack(), Relaxed);
        self.kind.store(event.kind.map_or(0, |kind| kind as u32 + 1), Relaxed);
    }
}

impl List {
    /// The events, the last rejected one first.
    pub(crate) fn read(&self) -> Vec<Rejected> {
        self.version.read(|| self.rows.iter().filter_map(Row::read).collect())
    }

    /// An event that is in no spool is rejected.
    pub(crate) fn add(&self, event: &Rejected) {
        self.change(|events| events.push(event.clone()));
    }

    /// These are what the spool has kept last.
    pub(crate) fn set_spooled(&self, spooled: &[Rejected]) {
        self.change(|events| {
            events.retain(|event| event.id.is_none());
            events.extend_from_slice(spooled);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Rejected>)) {
        self.version.change(|| {
            let mut events: Vec<_> = self.rows.iter().filter_map(Row::read).collect();
            events.reverse();
            change(&mut events);
            // Of those of one moment, the order in which they came is kept.
            events.sort_by_key(|event| event.rejected_ms);
            let last: [_; LISTED] = array::from_fn(|place| events.iter().rev().nth(place));
            self.rows.iter().zip(last).for_each(|(row, event)| row.write(event));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::zone::anonymous;

    fn event(number: i64, id: Option<u64>) -> Rejected {
        Rejected {
            id,
            trace: TraceId::of(&format!("trace-{number}")),
            kind: Some(EventType::AccountLogin),
            captured_ms: 1_000 + number,
            rejected_ms: 2_000 + number,
            fault: Fault::Answered(403),
        }
    }

    #[test]
    fn the_last_ones_are_listed_the_newest_first() {
        let zone = anonymous(1 << 20).unwrap();
        let ledger = zone.enlist(std::process::id()).unwrap();
        assert_eq!(zone.totals(0).rejected_events, []);
        for number in 1..=LISTED as i64 + 5 {
            ledger.list_rejected(0, &event(number, None));
        }
        let newest_first = (6..=LISTED as i64 + 5).rev().map(|number| event(number, None));
        assert_eq!(zone.totals(0).rejected_events, newest_first.collect::<Vec<_>>());
        assert_eq!(zone.totals(1).rejected_events, []);
    }

    #[test]
    fn what_the_spool_keeps_takes_the_place_of_what_it_kept() {
        let zone = anonymous(1 << 20).unwrap();
        let ledger = zone.enlist(std::process::id()).unwrap();
        let (memory, kept) = (event(2, None), [event(1, Some(7)), event(3, Some(9))]);
        ledger.list_spooled(0, &kept);
        ledger.list_rejected(0, &memory);
        let all = [kept[1].clone(), memory.clone(), kept[0].clone()];
        assert_eq!(zone.totals(0).rejected_events, all);
        ledger.list_spooled(0, &kept[..1]);
        assert_eq!(zone.totals(0).rejected_events, [memory.clone(), kept[0].clone()]);
        ledger.list_spooled(0, &[]);
        assert_eq!(zone.totals(0).rejected_events, [memory]);
    }

    #[test]
    fn nothing_but_a_trace_id_is_shown_as_one() {
        assert_eq!(TraceId::of("7f3a-00").as_str(), "7f3a-00");
        for text in ["<b>", "a b", "user@example.com", "ü", &"a".repeat(40)] {
            assert_eq!(TraceId::of(text).as_str(), "", "{text}");
        }
    }
}
