//! The bounded queue of a stream target: records in the order of capture, and behind those that came
//! before some found no room, how many found none.
//!
//! What is taken out to be sent stays in the queue until it is settled, so that it can be sent again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::audit::format::Drops;
use crate::record::Record;

/// Above this share of the queue, `page_*` events are refused, so that logins find room.
const PAGES_UP_TO: f64 = 0.8;
/// Below this share, there is room again: what was dropped is told of once, not after each event that
/// just fits.
const ROOM_BELOW: f64 = 0.7;

impl Drops {
    /// One event of that time.
    pub fn one(time_ms: i64) -> Self {
        Self { count: 1, first_ms: time_ms, last_ms: time_ms }
    }

    /// These and `other` together.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        // Requests that overlap may be captured in another order than they began.
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }
}

/// What is written for a target.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record, shared by the targets that get it.
    Record(Arc<[u8]>),
    /// Events that found no room here.
    Drops(Drops),
}

impl Entry {
    fn size(&self) -> usize {
        match self {
            Self::Record(bytes) => bytes.len(),
            Self::Drops(_) => 0,
        }
    }

    fn is_record(&self) -> bool {
        matches!(self, Self::Record(_))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The first entries, which are being sent.
    taken: usize,
    most_events: usize,
    most_bytes: usize,
}

impl Queue {
    /// An empty queue for so many events and bytes of records.
    pub fn new(most_events: usize, most_bytes: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, taken: 0, most_events, most_bytes }
    }

    /// Adds a record; `false`: there is no room for it.
    pub fn offer(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>) -> bool {
        let share = if record.kind().is_page() { PAGES_UP_TO } else { 1.0 };
        if !self.fits(bytes.len(), share) {
            return false;
        }
        self.bytes += bytes.len();
        self.entries.push_back(Entry::Record(bytes.clone()));
        true
    }

    fn fits(&self, bytes: usize, share: f64) -> bool {
        let part = |most: usize| (most as f64 * share) as usize;
        self.entries.len() < part(self.most_events).max(1)
            && self.bytes + bytes <= part(self.most_bytes)
    }

    /// Whether there is room again for more than an event or two.
    pub fn has_room(&self) -> bool {
        self.fits(0, ROOM_BELOW)
    }

    /// Adds, behind the last record, what was dropped.
    pub fn report(&mut self, drops: Drops) {
        let is_new = self.has_new();
        match self.entries.back_mut() {
            Some(Entry::Drops(last)) if is_new => last.add(&drops),
            _ => self.entries.push_back(Entry::Drops(drops)),
        }
    }

    /// What would be lost with the queue: its records, and the drops that it was to tell of.
    pub fn left(&self) -> Option<Drops> {
        let drops = self.entries.iter().filter_map(|entry| match entry {
            Entry::Record(bytes) => Record::parse(bytes).map(|record| Drops::one(record.time_ms())),
            Entry::Drops(drops) => Some(*drops),
        });
        drops.reduce(|mut all, drops| {
            all.add(&drops);
            all
        })
    }

    /// The next entries that are not being sent yet, at most `most`; they are from now on.
    pub fn take(&mut self, most: usize) -> Vec<Entry> {
        let new: Vec<_> = self.entries.iter().skip(self.taken).take(most).cloned().collect();
        self.taken += new.len();
        new
    }

    /// What is being sent will be sent again.
    pub fn put_back(&mut self) {
        self.taken = 0;
    }

    /// The first `count` of what is being sent are done with. Returns how many of them are events.
    pub fn settle(&mut self, count: usize) -> u32 {
        let mut events = 0;
        for entry in self.entries.drain(..count.min(self.taken)) {
            events += u32::from(entry.is_record());
            self.bytes -= entry.size();
        }
        self.taken -= count.min(self.taken);
        events
    }

    /// Whether an entry waits that is not being sent.
    pub fn has_new(&self) -> bool {
        self.entries.len() > self.taken
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest event began, in milliseconds since the epoch; 0: there is none.
    pub fn oldest_ms(&self) -> i64 {
        let first = self.entries.iter().find_map(|entry| match entry {
            Entry::Record(bytes) => Record::parse(bytes),
            Entry::Drops(_) => None,
        });
        first.map_or(0, |record| record.time_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventType;
    use crate::record::Capture;

    fn record(kind: EventType, time_ms: i64) -> Arc<[u8]> {
        let mut capture = Capture::new(time_ms);
        capture.kind = kind;
        let mut bytes = vec![0; capture.record_len()];
        capture.write(0, &mut bytes);
        bytes.into()
    }

    fn offer(queue: &mut Queue, kind: EventType, time_ms: i64) -> bool {
        let bytes = record(kind, time_ms);
        queue.offer(&bytes, &Record::parse(&bytes).unwrap())
    }

    fn drops(count: u64, first_ms: i64, last_ms: i64) -> Drops {
        Drops { count, first_ms, last_ms }
    }

    fn times(entries: &[Entry]) -> Vec<i64> {
        let time = |entry: &Entry| match entry {
            Entry::Record(bytes) => Record::parse(bytes).unwrap().time_ms(),
            Entry::Drops(drops) => -i64::try_from(drops.count).unwrap(),
        };
        entries.iter().map(time).collect()
    }

    #[test]
    fn drops_are_reported_when_there_is_room_again() {
        let mut queue = Queue::new(10, 1 << 20);
        for time in 1..=8 {
            assert!(offer(&mut queue, EventType::PageView, time));
        }
        assert!(!offer(&mut queue, EventType::PageView, 9));
        assert!(offer(&mut queue, EventType::AccountLogin, 10));
        assert!(offer(&mut queue, EventType::AccountLogin, 11));
        assert!(!offer(&mut queue, EventType::AccountLogin, 12));
        assert_eq!(queue.take(3).len(), 3);
        assert_eq!(queue.settle(3), 3);
        assert!(!queue.has_room());
        assert_eq!(queue.take(1).len(), 1);
        assert_eq!(queue.settle(1), 1);
        assert!(queue.has_room());
        queue.report(drops(3, 9, 13));
        assert!(offer(&mut queue, EventType::PageView, 14));
        assert_eq!(times(&queue.take(10)), [5, 6, 7, 8, 10, 11, -3, 14]);
        assert!(!queue.has_new());
        assert_eq!(queue.settle(8), 7);
        assert!(queue.is_empty());
    }

    #[test]
    fn reports_are_bounded_and_merged_until_they_are_taken() {
        let mut queue = Queue::new(10, 1 << 20);
        queue.report(drops(2, 5, 7));
        queue.report(drops(1, 3, 4));
        match &queue.take(10)[..] {
            [Entry::Drops(all)] => assert_eq!(*all, drops(3, 3, 7)),
            other => panic!("{other:?}"),
        }
        while queue.has_room() {
            queue.report(drops(1, 8, 8));
            queue.take(1);
        }
        assert_eq!(queue.left(), Some(drops(9, 3, 8)));
    }

    #[test]
    fn there_is_no_room_near_the_limit_of_bytes() {
        let size = record(EventType::PageView, 0).len();
        let mut queue = Queue::new(1000, 100 * size);
        (1..=80).for_each(|time| assert!(offer(&mut queue, EventType::PageView, time)));
        assert!(!offer(&mut queue, EventType::PageView, 81));
        queue.take(2);
        queue.settle(2);
        assert!(offer(&mut queue, EventType::PageView, 82));
        assert!(!queue.has_room());
    }

    #[test]
    fn what_is_left_is_told() {
        let mut queue = Queue::new(10, 1 << 20);
        assert_eq!(queue.left(), None);
        queue.report(drops(2, 5, 7));
        assert!(offer(&mut queue, EventType::PageView, 9));
        queue.take(1);
        assert_eq!(queue.left(), Some(drops(3, 5, 9)));
    }

    #[test]
    fn what_was_not_settled_comes_again() {
        let mut queue = Queue::new(10, 1 << 20);
        (1..=4).for_each(|time| assert!(offer(&mut queue, EventType::PageView, time)));
        assert_eq!(times(&queue.take(2)), [1, 2]);
        assert_eq!(times(&queue.take(9)), [3, 4]);
        assert_eq!(queue.settle(1), 1);
        queue.put_back();
        assert_eq!(queue.settle(1), 0);
        assert_eq!(times(&queue.take(9)), [2, 3, 4]);
        assert_eq!(queue.oldest_ms(), 2);
    }

    #[test]
    fn bytes_are_bounded() {
        let size = record(EventType::AccountLogin, 0).len();
        let mut queue = Queue::new(100, 2 * size);
        assert!(offer(&mut queue, EventType::AccountLogin, 1));
        assert!(offer(&mut queue, EventType::AccountLogin, 2));
        assert!(!offer(&mut queue, EventType::AccountLogin, 3));
        queue.take(1);
        queue.settle(1);
        assert!(offer(&mut queue, EventType::AccountLogin, 4));
    }
}
