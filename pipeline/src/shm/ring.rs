//! Records through shared memory: each worker writes into segments of its own, the deliverer reads
//! all of them.
//!
//! A worker's ring is the chain of segments that it has filled and not yet got taken. Segments are
//! shared, so a busy worker may use the whole zone and an old worker, kept by a WebSocket, holds
//! one. Writing takes no lock: a segment is claimed by one compare-and-swap, a record is published by
//! one store.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;

use crate::clock::monotonic_ns;
use crate::record::{Capture, MAX_RECORD, Record};
use crate::shm::zone::{MAX_TARGETS, Segment, Stage, Zone, alive};

const _: () = assert!(MAX_RECORD <= Segment::ROOM);

/// How long a worker does not look for a segment after it found none, in nanoseconds: the search
/// reads a cache line for each segment of the zone.
const SEARCH_PAUSE_NS: u64 = 1_000_000;

/// A worker's end.
#[derive(Debug)]
pub struct Producer {
    zone: Zone,
    pid: u32,
    current: Option<usize>,
    last_stamp: u64,
    search_after: u64,
}

/// Why a record was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// Every segment is in use.
    Full,
    /// The record is longer than [`MAX_RECORD`].
    TooLong,
}

impl Producer {
    /// The end of the process `pid`, which must be the calling one.
    pub fn new(zone: Zone, pid: u32) -> Self {
        Self { zone, pid, current: None, last_stamp: 0, search_after: 0 }
    }

    /// Publishes one record and counts it.
    ///
    /// # Errors
    /// The record was not written. One that is [`Full`](PushError::Full) is counted as dropped.
    pub fn push(&mut self, capture: &Capture<'_>) -> Result<(), PushError> {
        let len = capture.record_len();
        if len > MAX_RECORD {
            return Err(PushError::TooLong);
        }
        let stamp = monotonic_ns().max(self.last_stamp + 1);
        let Some(segment) = self.segment_for(len, stamp) else {
            self.zone.count_zone_full(capture.targets);
            return Err(PushError::Full);
        };
        self.last_stamp = stamp;
        // SAFETY: this process owns the segment, and the slice ends before the store below.
        let room = unsafe { segment.unpublished() };
        capture.write(stamp, &mut room[..len]);
        // No other process writes it: this needs no atomic addition.
        let written = segment.written.load(Relaxed);
        segment.written.store(written + len as u32, Release);
        self.zone.count_captured(capture.targets);
        segment.prefetch(len);
        Ok(())
    }

    fn segment_for(&mut self, len: usize, now: u64) -> Option<&'static Segment> {
        let segments = self.zone.segments();
        if let Some(current) = self.current {
            let segment = &segments[current];
            if segment.written.load(Relaxed) as usize + len <= Segment::ROOM {
                return Some(segment);
            }
            segment.close(self.pid);
            self.current = None;
        }
        if now < self.search_after {
            return None;
        }
        self.current = segments.iter().position(|s| s.claim(self.pid));
        if self.current.is_none() {
            self.search_after = now + SEARCH_PAUSE_NS;
        }
        self.current.map(|i| &segments[i])
    }
}

/// The deliverer's end. Only the holder of the election's [`Term`](crate::shm::zone::Term) may have one.
#[derive(Debug)]
pub struct Collector {
    zone: Zone,
}

/// What one round read.
#[derive(Default)]
pub struct Batch {
    /// The records' bytes, in the order of capture.
    pub records: Vec<Arc<[u8]>>,
    /// How many of them each target gets.
    pub per_target: [u32; MAX_TARGETS],
    /// Segments with bytes that are no record; what followed in them was given up.
    pub damaged: u32,
}

/// How far a round has read. Until [`Collector::commit`], the segments still hold all of it.
#[must_use]
pub struct Progress(Vec<Cursor>);

impl Collector {
    /// Reads `zone`.
    pub fn new(zone: Zone) -> Self {
        Self { zone }
    }

    /// Whether at least `enough` records wait, or the oldest was captured before `before`
    /// (a stamp), so that a round is worth its while.
    pub fn is_due(&self, enough: usize, before: u64) -> bool {
        let mut count = 0;
        for segment in self.zone.segments() {
            if matches!(segment.stage(), Stage::Free | Stage::Claimed(_)) {
                continue;
            }
            let mut rest = segment.published(segment.taken.load(Relaxed));
            while let Some(record) = Record::parse(rest) {
                count += 1;
                if record.stamp() < before || count >= enough {
                    return true;
                }
                rest = &rest[record.bytes().len()..];
            }
            if !rest.is_empty() {
                return true;
            }
        }
        false
    }

    /// Reads at most `most` records that were captured before the stamp `before`, in the order of
    /// capture over all workers.
    pub fn take(&mut self, before: u64, most: usize) -> (Batch, Progress) {
        let mut batch = Batch::default();
        let mut cursors: Vec<Cursor> = Vec::new();
        for segment in self.zone.segments() {
            match segment.stage() {
                Stage::Free => {}
                Stage::Claimed(pid) => {
                    if !alive(pid) {
                        segment.free();
                    }
                }
                Stage::Open(_) | Stage::Closed(_) => cursors.push(Cursor::new(segment)),
            }
        }

        let mut oldest: BinaryHeap<_> =
            cursors.iter_mut().enumerate().filter_map(|(c, cursor)| cursor.head(c)).collect();
        while batch.records.len() < most {
            let Some(Reverse((stamp, c))) = oldest.pop() else { break };
            if stamp >= before {
                break;
            }
            let cursor = &mut cursors[c];
            if let Some(record) = Record::parse(cursor.rest) {
                batch.records.push(record.bytes().into());
                let mut targets = record.targets();
                while targets != 0 {
                    batch.per_target[targets.trailing_zeros() as usize] += 1;
                    targets &= targets - 1;
                }
                cursor.rest = &cursor.rest[record.bytes().len()..];
            }
            oldest.extend(cursor.head(c));
        }

        batch.damaged = cursors.iter().filter(|cursor| cursor.damaged).count() as u32;
        (batch, Progress(cursors))
    }

    /// Frees what was read: whoever reads next starts behind it.
    pub fn commit(&mut self, progress: Progress) {
        progress.0.into_iter().for_each(Cursor::finish);
    }
}

/// How far a round has read one segment.
struct Cursor {
    segment: &'static Segment,
    end: u32,
    rest: &'static [u8],
    damaged: bool,
}

impl Cursor {
    fn new(segment: &'static Segment) -> Self {
        let taken = segment.taken.load(Relaxed);
        let rest = segment.published(taken);
        Self { segment, end: taken + rest.len() as u32, rest, damaged: false }
    }

    /// The next record's stamp, with `c` to find the cursor again.
    fn head(&mut self, c: usize) -> Option<Reverse<(u64, usize)>> {
        match Record::parse(self.rest) {
            Some(record) => Some(Reverse((record.stamp(), c))),
            None => {
                self.damaged |= !self.rest.is_empty();
                self.rest = &[];
                None
            }
        }
    }

    fn finish(self) {
        let taken = self.end - self.rest.len() as u32;
        self.segment.taken.store(taken, Relaxed);
        // The stage is read first: what is closed, or whose owner is dead, has all its records.
        let over = match self.segment.stage() {
            Stage::Closed(_) => true,
            Stage::Open(pid) => !alive(pid),
            Stage::Free | Stage::Claimed(_) => false,
        };
        if over && self.segment.published(taken).is_empty() {
            self.segment.free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Param;
    use crate::shm::zone::{DropReason, anonymous};

    const ALL: u64 = u64::MAX;

    fn capture(url: &[u8]) -> Capture<'_> {
        let mut capture = Capture::new(0);
        capture.targets = 1;
        capture.set(Param::Url, url).unwrap();
        capture
    }

    fn take(zone: Zone, before: u64, most: usize) -> Batch {
        let mut collector = Collector::new(zone);
        let (batch, progress) = collector.take(before, most);
        collector.commit(progress);
        batch
    }

    #[test]
    fn what_is_not_committed_comes_again() {
        let zone = anonymous(1 << 20).unwrap();
        Producer::new(zone, std::process::id()).push(&capture(b"/a")).unwrap();
        assert_eq!(urls(&Collector::new(zone).take(ALL, 10).0), ["/a"]);
        assert_eq!(urls(&take(zone, ALL, 10)), ["/a"]);
        assert!(take(zone, ALL, 10).records.is_empty());
    }

    fn urls(batch: &Batch) -> Vec<String> {
        let url = |r: &[u8]| Record::parse(r).unwrap().get(Param::Url).unwrap().to_vec();
        batch.records.iter().map(|r| String::from_utf8(url(r)).unwrap()).collect()
    }

    #[test]
    fn order_of_capture_over_workers() {
        let zone = anonymous(1 << 20).unwrap();
        let pid = std::process::id();
        let mut workers = [Producer::new(zone, pid), Producer::new(zone, pid)];
        for i in 0..100 {
            workers[i % 3 % 2].push(&capture(format!("/{i}").as_bytes())).unwrap();
        }
        let batch = take(zone, ALL, 1000);
        assert_eq!(urls(&batch), (0..100).map(|i| format!("/{i}")).collect::<Vec<_>>());
        assert_eq!(batch.per_target[0], 100);
        assert!(!zone.has_records());
    }

    #[test]
    fn a_round_stops_at_its_bounds() {
        let zone = anonymous(1 << 20).unwrap();
        let mut worker = Producer::new(zone, std::process::id());
        let collector = Collector::new(zone);
        assert!(!collector.is_due(1, 0));
        worker.push(&capture(b"/a")).unwrap();
        let between = monotonic_ns();
        worker.push(&capture(b"/b")).unwrap();
        assert!(collector.is_due(2, 0) && !collector.is_due(3, 0) && collector.is_due(3, between));
        assert_eq!(urls(&take(zone, between, 10)), ["/a"]);
        worker.push(&capture(b"/c")).unwrap();
        assert_eq!(urls(&take(zone, ALL, 1)), ["/b"]);
        assert_eq!(urls(&take(zone, ALL, 10)), ["/c"]);
    }

    #[test]
    fn a_full_zone_drops_and_recovers() {
        let zone = anonymous(Zone::min_size(1)).unwrap();
        zone.target_slot("t").unwrap();
        let mut worker = Producer::new(zone, std::process::id());
        let url = [b'/'; 2047];
        let mut stored = 0;
        while worker.push(&capture(&url)).is_ok() {
            stored += 1;
        }
        assert_eq!(worker.push(&capture(&url)), Err(PushError::Full));
        let totals = zone.totals(0);
        assert_eq!(totals.captured, stored + 2);
        assert_eq!(totals.dropped[DropReason::ZoneFull as usize], 2);
        assert_eq!(totals.pending, stored);
        let batch = take(zone, ALL, usize::MAX);
        assert_eq!(batch.records.len() as u64, stored);
        worker.search_after = 0;
        worker.push(&capture(&url)).unwrap();
    }

    #[test]
    fn a_dead_worker_loses_nothing_and_keeps_nothing() {
        let zone = anonymous(Zone::min_size(1)).unwrap();
        // SAFETY: the child only writes into the zone and leaves without any handler.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let pid = std::process::id();
                let mut worker = Producer::new(zone, pid);
                let _ = worker.push(&capture(b"/last"));
                libc::_exit(0);
            }
            libc::waitpid(child, &mut 0, 0);
        }
        assert_eq!(urls(&take(zone, ALL, 10)), ["/last"]);
        assert!(zone.segments().iter().all(|s| s.stage() == Stage::Free));
    }

    #[test]
    fn damage_stays_in_its_segment() {
        let zone = anonymous(1 << 20).unwrap();
        let pid = std::process::id();
        let (mut good, mut bad) = (Producer::new(zone, pid), Producer::new(zone, pid));
        bad.push(&capture(b"/before")).unwrap();
        // SAFETY: the test is the owner.
        let room = unsafe { zone.segments()[0].unpublished() };
        room[..4].copy_from_slice(&7u32.to_ne_bytes());
        zone.segments()[0].written.fetch_add(8, Release);
        good.push(&capture(b"/other")).unwrap();
        let batch = take(zone, ALL, 10);
        assert_eq!((urls(&batch), batch.damaged), (vec!["/before".into(), "/other".into()], 1));
        assert_eq!(take(zone, ALL, 10).damaged, 0);
    }
}
