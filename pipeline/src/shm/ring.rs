//! The records in shared memory: each worker writes into its own segments, the collector reads all of them.
//!
//! A segment is freed when every target has taken its records. The zone has a cursor for each target, so that
//! the next collector continues there, whenever this one is killed.
//!
//! A worker's ring is the chain of segments that it has filled and that are not freed yet. All workers draw
//! from the same segments, so a busy worker may use the whole zone, and an old worker that a WebSocket keeps
//! alive holds one. Writing takes no lock: a compare-and-swap claims a segment, and a store publishes a record.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;

use crate::capture::rank::Rank;
use crate::record::{Capture, MAX_RECORD, Record};
use crate::shm::segment::{Place, Segment, Stage};
use crate::shm::sync::monotonic_ns;
use crate::shm::zone::{Zone, alive};

#[cfg(not(loom))]
const _: () = assert!(MAX_RECORD <= Segment::ROOM);

/// How long a worker does not search for a segment after it found none, in nanoseconds: the search reads a
/// cache line of each segment of the zone.
const SEARCH_PAUSE_NS: u64 = if cfg!(loom) { 0 } else { 1_000_000 };

/// A worker's end of its ring.
#[derive(Debug)]
pub struct Producer {
    zone: Zone,
    pid: u32,
    current: Option<usize>,
    last_stamp: u64,
    /// By rank.
    search_after: [u64; Rank::ALL.len()],
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
    /// The end for the process `pid`, which must be the calling one.
    pub fn new(zone: Zone, pid: u32) -> Self {
        Self { zone, pid, current: None, last_stamp: 0, search_after: [0; Rank::ALL.len()] }
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
        let Some(segment) = self.segment_for(len, capture.rank, stamp) else {
            self.zone.count_zone_full(capture.targets);
            return Err(PushError::Full);
        };
        self.last_stamp = stamp;
        // SAFETY: this process owns the segment, and the slice ends before the store below.
        let room = unsafe { segment.unpublished() };
        capture.write(stamp, &mut room[..len]);
        // Only this process writes it, so an atomic addition is not necessary.
        let written = segment.written.load(Relaxed);
        segment.written.store(written + len as u32, Release);
        self.zone.count_captured(capture.targets);
        self.zone.metrics().event(capture.kind, capture.identity);
        segment.prefetch(len);
        Ok(())
    }

    fn segment_for(&mut self, len: usize, rank: Rank, now: u64) -> Option<&'static Segment> {
        let segments = self.zone.segments();
        let end = segments.len() - reserved(segments.len(), rank);
        if let Some(current) = self.current.filter(|current| *current < end) {
            let segment = &segments[current];
            if segment.written.load(Relaxed) as usize + len <= Segment::ROOM {
                return Some(segment);
            }
            segment.close(self.pid);
            self.current = None;
        }
        let search_after = &mut self.search_after[rank.place()];
        if now < *search_after {
            return None;
        }
        let Some(found) = segments[..end].iter().position(|s| s.claim(self.pid)) else {
            *search_after = now + SEARCH_PAUSE_NS;
            return None;
        };
        // The new segment is one that is reserved for higher ranks.
        if let Some(current) = self.current.replace(found) {
            segments[current].close(self.pid);
        }
        Some(&segments[found])
    }
}

/// How many of the last segments are reserved for ranks above this one: an eighth for those above page views,
/// half of that for those above failed logins.
fn reserved(segments: usize, rank: Rank) -> usize {
    match rank {
        Rank::One | Rank::Two => 0,
        Rank::Three => segments / 16,
        Rank::Four => segments / 8,
    }
}

/// The collector's end of all rings. Only the holder of the election's [`Term`](crate::shm::zone::Term) may
/// have one.
#[derive(Clone, Debug)]
pub struct Collector {
    zone: Zone,
    /// How many bytes of each segment were read.
    read: Vec<u32>,
}

/// A record that was read.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its bytes, which are a valid record.
    pub bytes: Arc<[u8]>,
    /// Where it lies.
    pub place: Place,
}

/// The result of one round.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of capture.
    pub records: Vec<Taken>,
    /// How many segments had bytes that are no record; the rest of them was skipped.
    pub damaged: u32,
}

impl Collector {
    /// Begins where not every target has taken the records.
    pub fn new(zone: Zone) -> Self {
        let read = |segment: &Segment| match segment.stage() {
            Stage::Open(_) | Stage::Closed(_) => segment.done.load(Relaxed),
            Stage::Free | Stage::Claimed(_) => 0,
        };
        Self { zone, read: zone.segments().iter().map(read).collect() }
    }

    /// Reads at most `most` records with stamps before `before`, in the order of capture over all workers. The
    /// segments keep them until [`free`](Self::free).
    pub fn take(&mut self, before: u64, most: usize) -> Batch {
        let mut batch = Batch::default();
        let mut unread: Vec<_> = self
            .zone
            .segments()
            .iter()
            .zip(&self.read)
            .enumerate()
            .filter(|(_, (segment, _))| {
                matches!(segment.stage(), Stage::Open(_) | Stage::Closed(_))
            })
            .map(|(number, (segment, read))| Unread::new(number, segment, *read))
            .collect();
        let mut oldest: BinaryHeap<_> =
            unread.iter_mut().enumerate().filter_map(|(u, unread)| unread.head(u)).collect();
        while batch.records.len() < most {
            let Some(Reverse((stamp, u))) = oldest.pop() else { break };
            if stamp >= before {
                break;
            }
            batch.records.extend(unread[u].next());
            oldest.extend(unread[u].head(u));
        }
        batch.damaged = unread.iter().filter(|unread| unread.damaged).count() as u32;
        for Unread { number, read, .. } in unread {
            self.read[number] = read;
        }
        batch
    }

    /// Whether the target had taken this record before this collector began.
    pub fn has_taken(&self, slot: usize, place: Place) -> bool {
        self.zone.segments()[place.segment as usize].cursors.get(slot) >= place.end
    }

    /// Frees what every target has taken; `waits` tells whether a target has yet to take records of a segment.
    pub fn free(&mut self, waits: impl Fn(usize) -> bool) {
        for (number, segment) in self.zone.segments().iter().enumerate() {
            let read = &mut self.read[number];
            if *read == segment.done.load(Relaxed) && !segment.is_over(*read) || waits(number) {
                continue;
            }
            segment.done.store(*read, Relaxed);
            if segment.is_over(*read) {
                *read = 0;
                segment.free();
            }
        }
    }

    /// Frees the segments of dead processes; it asks the system about the owner of each segment that has one.
    pub fn free_dead(&mut self, waits: impl Fn(usize) -> bool) {
        for (number, segment) in self.zone.segments().iter().enumerate() {
            match segment.stage() {
                // It was killed before it wrote anything.
                Stage::Claimed(pid) if !alive(pid) => segment.free(),
                // It writes no more.
                Stage::Open(pid) if !alive(pid) => segment.close(pid),
                _ => {}
            }
            if matches!(segment.stage(), Stage::Free) {
                self.read[number] = 0;
            }
        }
        self.free(waits);
    }
}

/// The part of a segment that this round has not read.
struct Unread {
    number: usize,
    read: u32,
    rest: &'static [u8],
    damaged: bool,
}

impl Unread {
    fn new(number: usize, segment: &'static Segment, read: u32) -> Self {
        Self { number, read, rest: segment.published(read), damaged: false }
    }

    /// The next record's stamp, with `u` to find this again.
    fn head(&mut self, u: usize) -> Option<Reverse<(u64, usize)>> {
        match Record::parse(self.rest) {
            Some(record) => Some(Reverse((record.stamp(), u))),
            None => {
                self.damaged |= !self.rest.is_empty();
                self.read += self.rest.len() as u32;
                self.rest = &[];
                None
            }
        }
    }

    fn next(&mut self) -> Option<Taken> {
        let record = Record::parse(self.rest)?;
        let len = record.bytes().len();
        self.rest = &self.rest[len..];
        self.read += len as u32;
        let place = Place { segment: self.number as u32, end: self.read };
        Some(Taken { bytes: record.bytes().into(), place })
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
        let batch = collector.take(before, most);
        collector.free_dead(|_| false);
        batch
    }

    #[test]
    fn what_is_not_freed_comes_again() {
        let zone = anonymous(1 << 20).unwrap();
        Producer::new(zone, std::process::id()).push(&capture(b"/a")).unwrap();
        let mut first = Collector::new(zone);
        assert_eq!(urls(&first.take(ALL, 10)), ["/a"]);
        assert!(first.take(ALL, 10).records.is_empty());
        first.free(|_| true);
        assert!(zone.has_records());
        assert_eq!(urls(&take(zone, ALL, 10)), ["/a"]);
        assert!(take(zone, ALL, 10).records.is_empty() && !zone.has_records());
    }

    #[test]
    fn a_target_that_has_taken_its_part_does_not_get_it_again() {
        let zone = anonymous(1 << 20).unwrap();
        let mut worker = Producer::new(zone, std::process::id());
        let _ = ["/a", "/b"].map(|url| worker.push(&capture(url.as_bytes())).unwrap());
        let batch = Collector::new(zone).take(ALL, 10);
        let [a, b] = [0, 1].map(|i| batch.records[i].place);
        zone.segments()[a.segment as usize].cursors.advance(3, a.end);
        let next = Collector::new(zone);
        assert!(next.has_taken(3, a) && !next.has_taken(3, b) && !next.has_taken(2, a));
    }

    fn urls(batch: &Batch) -> Vec<String> {
        let url = |r: &[u8]| Record::parse(r).unwrap().get(Param::Url).unwrap().to_vec();
        batch.records.iter().map(|r| String::from_utf8(url(&r.bytes)).unwrap()).collect()
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
        assert!(!zone.has_records());
    }

    #[test]
    fn a_round_stops_at_its_bounds() {
        let zone = anonymous(1 << 20).unwrap();
        let mut worker = Producer::new(zone, std::process::id());
        worker.push(&capture(b"/a")).unwrap();
        let between = monotonic_ns();
        worker.push(&capture(b"/b")).unwrap();
        assert_eq!(urls(&take(zone, between, 10)), ["/a"]);
        worker.push(&capture(b"/c")).unwrap();
        assert_eq!(urls(&take(zone, ALL, 1)), ["/b"]);
        assert_eq!(urls(&take(zone, ALL, 10)), ["/c"]);
    }

    #[test]
    fn a_full_zone_drops_and_recovers() {
        let zone = anonymous(Zone::min_size(1)).unwrap();
        zone.target_slot("t", 0).unwrap();
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
        worker.search_after.fill(0);
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

    #[test]
    fn the_last_eighth_is_for_higher_ranks() {
        let zone = anonymous(4 << 20).unwrap();
        let segments = zone.segments().len();
        let mut worker = Producer::new(zone, std::process::id());
        let url = [b'/'; 2047];
        let mut fill = |rank| {
            let mut capture = capture(&url);
            capture.rank = rank;
            while worker.push(&capture).is_ok() {}
            zone.segments().iter().filter(|segment| segment.stage() == Stage::Free).count()
        };
        assert_eq!(fill(Rank::Four), segments / 8);
        assert_eq!(fill(Rank::Three), segments / 16);
        assert_eq!(
            fill(Rank::Four),
            segments / 16,
            "it does not go into what a higher rank opened"
        );
        assert_eq!(fill(Rank::One), 0);
        assert!(segments / 16 > 0);
    }
}
