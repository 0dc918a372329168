//! What the deliverer of a target has learned of the server's limit, for the next one: after a reload it
//! goes on with that, and does not meet the limit anew.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::shm::version::Version;

/// A pacer's knowledge, for the pacer of the next process. Times are relative to now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// The time until the next event may be sent.
    pub wait: Duration,
    /// The knowledge about the limit.
    pub limit: Limit,
}

/// The knowledge about the server's limit, and this host's share of it, by the phase of the pacer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Limit {
    Full {
        since: Duration,
        last: Duration,
    },
    /// `accepted` counts the events accepted within the last `window`.
    Search {
        rate: f64,
        since: Duration,
        window: Duration,
        accepted: u32,
    },
    Settled {
        rate: f64,
        decreased: Duration,
    },
}

/// One target's in shared memory; with zeros nothing is known. Times are by the monotonic clock, in
/// nanoseconds.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct KeptPace {
    version: Version,
    /// Which server it was learned of.
    server: AtomicU64,
    /// [`FULL`], [`SEARCH`], [`SETTLED`], or 0.
    kind: AtomicU32,
    accepted: AtomicU32,
    /// As the bits of a number.
    rate: AtomicU64,
    since_ns: AtomicU64,
    /// When the window was last found full.
    last_ns: AtomicU64,
    window_ns: AtomicU64,
    /// When the next event may be sent.
    next_ns: AtomicU64,
}

const FULL: u32 = 1;
const SEARCH: u32 = 2;
const SETTLED: u32 = 3;

impl KeptPace {
    /// Keeps what is known of a server now.
    pub(crate) fn keep(&self, server: u64, learned: Option<&Pace>) {
        let now = monotonic_ns();
        let (ns, ago) = (nanoseconds, |age| now.saturating_sub(nanoseconds(age)));
        let Some(Pace { wait, limit }) = learned else {
            return self.kind.store(0, Relaxed);
        };
        self.version.change(|| {
            self.server.store(server, Relaxed);
            self.next_ns.store(now.saturating_add(ns(*wait)), Relaxed);
            let kind = match *limit {
                Limit::Full { since, last } => {
                    self.since_ns.store(ago(since), Relaxed);
                    self.last_ns.store(ago(last), Relaxed);
                    FULL
                }
                Limit::Search { rate, since, window, accepted } => {
                    self.rate.store(rate.to_bits(), Relaxed);
                    self.since_ns.store(ago(since), Relaxed);
                    self.window_ns.store(ns(window), Relaxed);
                    self.accepted.store(accepted, Relaxed);
                    SEARCH
                }
                Limit::Settled { rate, decreased } => {
                    self.rate.store(rate.to_bits(), Relaxed);
                    self.since_ns.store(ago(decreased), Relaxed);
                    SETTLED
                }
            };
            self.kind.store(kind, Relaxed);
        });
    }

    /// What is known of that server now.
    pub(crate) fn learned(&self, server: u64) -> Option<Pace> {
        let now = monotonic_ns();
        self.version.read(|| {
            if self.server.load(Relaxed) != server {
                return None;
            }
            let age = |ns: &AtomicU64| Duration::from_nanos(now.saturating_sub(ns.load(Relaxed)));
            let (rate, since) = (f64::from_bits(self.rate.load(Relaxed)), age(&self.since_ns));
            let limit = match self.kind.load(Relaxed) {
                FULL => Limit::Full { since, last: age(&self.last_ns) },
                SEARCH => Limit::Search {
                    rate,
                    since,
                    window: Duration::from_nanos(self.window_ns.load(Relaxed)),
                    accepted: self.accepted.load(Relaxed),
                },
                SETTLED => Limit::Settled { rate, decreased: since },
                _ => return None,
            };
            let wait = Duration::from_nanos(self.next_ns.load(Relaxed).saturating_sub(now));
            Some(Pace { wait, limit })
        })
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::zone::anonymous;

    #[test]
    fn what_is_kept_is_found_for_the_same_server_only() {
        let zone = anonymous(1 << 20).unwrap();
        let ledger = zone.enlist(std::process::id()).unwrap();
        assert_eq!(ledger.pace(0, 1), None);
        let [second, minute] = [1, 60].map(Duration::from_secs);
        for limit in [
            Limit::Full { since: minute, last: second },
            Limit::Search { rate: 1.5, since: second, window: minute, accepted: 9 },
            Limit::Settled { rate: 9.4, decreased: minute },
        ] {
            ledger.keep_pace(0, 1, Some(&Pace { wait: minute, limit }));
            let found = ledger.pace(0, 1).expect("it is kept");
            let moment = Duration::from_secs(30);
            assert!(found.wait <= minute && found.wait > minute - moment);
            // The ages have grown since.
            match (limit, found.limit) {
                (Limit::Full { since, last }, Limit::Full { since: s, last: l }) => {
                    assert!(s >= since && s < since + moment && l >= last && l < last + moment);
                }
                (
                    Limit::Search { since, .. },
                    Limit::Search { rate: 1.5, since: s, window, accepted: 9 },
                ) => assert!(s >= since && s < since + moment && window == minute),
                (Limit::Settled { decreased, .. }, Limit::Settled { rate: 9.4, decreased: d }) => {
                    assert!(d >= decreased && d < decreased + moment)
                }
                other => panic!("{other:?}"),
            }
            assert_eq!((ledger.pace(0, 2), ledger.pace(1, 1)), (None, None));
        }
        ledger.keep_pace(0, 1, None);
        assert_eq!(ledger.pace(0, 1), None);
    }
}
