//! Counters for the status alone: events by type and evidence, how long delivery takes, the last hour.
//!
//! They decide nothing. Every field is an atomic that stays plausible whenever a process is killed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::capture::identity::Identity;
use crate::clock::{monotonic_ns, wall_ms};
use crate::event::EventType;
use crate::shm::MAX_TARGETS;

/// The upper bounds of the histogram from capture to delivery, in milliseconds; one more bucket holds
/// what took longer.
pub const LATENCY_BOUNDS_MS: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 15_000, 60_000, 300_000, 3_600_000, 86_400_000];
/// Seconds of one slot of [`Recent`], and how many slots make an hour.
pub const SLOT_SECONDS: u64 = 30;
/// See [`SLOT_SECONDS`].
pub const SLOTS: usize = 120;

/// The part of the zone with these counters; all zeros is a valid start.
#[repr(C)]
#[derive(Debug)]
pub struct Metrics {
    events: [[AtomicU64; Identity::ALL.len()]; EventType::ALL.len()],
    targets: [TargetMetrics; MAX_TARGETS],
}

#[repr(C)]
#[derive(Debug)]
struct TargetMetrics {
    latency: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
    latency_sum_ms: AtomicU64,
    /// The number of the slot since the machine's boot in the high half, the number of events in the low half.
    recent: [AtomicU64; SLOTS],
}

/// How long events of one target took from capture to delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Events in each bucket alone, by [`LATENCY_BOUNDS_MS`].
    pub buckets: [u64; LATENCY_BOUNDS_MS.len() + 1],
    /// The sum of all, in milliseconds.
    pub sum_ms: u64,
}

/// Events delivered in the last hour.
#[derive(Clone, Debug, PartialEq)]
pub struct Recent {
    /// For each slot the number of events, the oldest first; the last slot is not over.
    pub slots: Vec<u32>,
    /// Events a second over the last one to two slots.
    pub per_second: f64,
}

impl Metrics {
    /// Counts a request that became an event.
    pub fn event(&self, kind: EventType, identity: Identity) {
        self.events[kind as usize][identity as usize].fetch_add(1, Relaxed);
    }

    /// Events of a type whose user is known by this evidence.
    pub fn events(&self, kind: EventType, identity: Identity) -> u64 {
        self.events[kind as usize][identity as usize].load(Relaxed)
    }

    /// Counts `n` events, captured at this time (milliseconds since the epoch) and delivered now.
    pub fn delivered(&self, slot: usize, captured_ms: i64, n: u32) {
        let target = &self.targets[slot];
        // The clock may have been set back.
        let took = u64::try_from(wall_ms() - captured_ms).unwrap_or(0);
        let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < took);
        target.latency[bucket].fetch_add(u64::from(n), Relaxed);
        target.latency_sum_ms.fetch_add(took.saturating_mul(u64::from(n)), Relaxed);
        target.count(now_slot(), n);
    }

    /// How long a target's events took.
    pub fn latency(&self, slot: usize) -> Latency {
        let target = &self.targets[slot];
        Latency {
            buckets: std::array::from_fn(|bucket| target.latency[bucket].load(Relaxed)),
            sum_ms: target.latency_sum_ms.load(Relaxed),
        }
    }

    /// A target's last hour.
    pub fn recent(&self, slot: usize) -> Recent {
        let seconds = monotonic_ns() / 1_000_000_000;
        self.targets[slot].recent(seconds / SLOT_SECONDS, seconds % SLOT_SECONDS)
    }

    /// Resets the counters, because another target gets this index.
    pub fn reset(&self, slot: usize) {
        let target = &self.targets[slot];
        target.latency.iter().chain(&target.recent).for_each(|counter| counter.store(0, Relaxed));
        target.latency_sum_ms.store(0, Relaxed);
    }
}

fn now_slot() -> u64 {
    monotonic_ns() / 1_000_000_000 / SLOT_SECONDS
}

impl TargetMetrics {
    fn count(&self, now: u64, n: u32) {
        let place = &self.recent[now as usize % SLOTS];
        let _ = place.fetch_update(Relaxed, Relaxed, |packed| {
            let events = if packed >> 32 == now & 0xffff_ffff { packed as u32 } else { 0 };
            Some(now << 32 | u64::from(events.saturating_add(n)))
        });
    }

    fn recent(&self, now: u64, elapsed: u64) -> Recent {
        let events = |number: u64| {
            let packed = self.recent[number as usize % SLOTS].load(Relaxed);
            if packed >> 32 == number & 0xffff_ffff { packed as u32 } else { 0 }
        };
        let first = (now + 1).saturating_sub(SLOTS as u64);
        let slots: Vec<u32> = (first..=now).map(events).collect();
        let last_two: u32 = slots.iter().rev().take(2).sum();
        Recent { slots, per_second: f64::from(last_two) / (SLOT_SECONDS + elapsed) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::zone::anonymous;

    #[test]
    fn a_delivery_falls_into_its_bucket() {
        let zone = anonymous(1 << 20).unwrap();
        let metrics = zone.metrics();
        metrics.delivered(0, wall_ms(), 2);
        metrics.delivered(0, wall_ms() - 2_000, 1);
        metrics.delivered(0, wall_ms() - 100_000_000, 1);
        metrics.delivered(0, wall_ms() + 5_000, 1);
        let latency = metrics.latency(0);
        assert_eq!((latency.buckets[0], latency.buckets[5], latency.buckets[12]), (3, 1, 1));
        assert!(latency.sum_ms >= 100_002_000);
        assert_eq!(metrics.recent(0).slots.iter().sum::<u32>(), 5);
        assert_eq!(metrics.latency(1), Latency::default());
        metrics.reset(0);
        assert_eq!(metrics.latency(0), Latency::default());
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let zone = anonymous(1 << 20).unwrap();
        let target = &zone.metrics().targets[3];
        let now = 10_000;
        target.count(now - SLOTS as u64, 7);
        target.count(now - 1, 30);
        target.count(now, 10);
        target.count(now, 5);
        let recent = target.recent(now, 0);
        assert_eq!(recent.slots.len(), SLOTS);
        assert_eq!(recent.slots[SLOTS - 2..], [30, 15]);
        assert_eq!(recent.slots.iter().sum::<u32>(), 45);
        assert!((recent.per_second - 1.5).abs() < 1e-9);
        assert_eq!(target.recent(now + SLOTS as u64, 0).slots.iter().sum::<u32>(), 0);
    }
}
