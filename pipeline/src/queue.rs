//! The bounded queue of a stream target: records in the order of capture, and between them, where some
//! found no room, how many those were.
//!
//! What is taken out to be sent stays in the queue until it is settled, so that it can be sent again.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::format::Drops;
use crate::record::Record;

/// Above this share of the queue, `page_*` events are refused, so that logins find room.
const PAGES_UP_TO: f64 = 0.8;

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
    events: usize,
    bytes: usize,
    /// The first entries, which are being sent.
    taken: usize,
    /// What found no room since there last was some.
    drops: Option<Drops>,
    most_events: usize,
    most_bytes: usize,
}

impl Queue {
    /// An empty queue for so many events and bytes of records.
    pub fn new(most_events: usize, most_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            events: 0,
            bytes: 0,
            taken: 0,
            drops: None,
            most_events,
            most_bytes,
        }
    }

    /// Adds a record; without room for it, it is only noted, and `false`.
    pub fn offer(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>) -> bool {
        let pages_fit = self.fits(bytes.len(), PAGES_UP_TO);
        let fits = pages_fit || !record.kind().is_page() && self.fits(bytes.len(), 1.0);
        if !fits {
            let time = record.time_ms();
            let new = Drops { count: 0, first_ms: time, last_ms: time };
            let drops = self.drops.get_or_insert(new);
            drops.count += 1;
            // Requests that overlap may be captured in another order than they began.
            drops.first_ms = drops.first_ms.min(time);
            drops.last_ms = drops.last_ms.max(time);
            return false;
        }
        if pages_fit {
            self.report_drops();
        }
        self.events += 1;
        self.bytes += bytes.len();
        self.entries.push_back(Entry::Record(bytes.clone()));
        true
    }

    fn fits(&self, bytes: usize, share: f64) -> bool {
        let part = |most: usize| (most as f64 * share) as usize;
        self.events < part(self.most_events).max(1) && self.bytes + bytes <= part(self.most_bytes)
    }

    /// What was dropped is reported behind the last event, if there is room for events again.
    pub fn report_drops(&mut self) {
        if self.fits(0, PAGES_UP_TO)
            && let Some(drops) = self.drops.take()
        {
            self.entries.push_back(Entry::Drops(drops));
        }
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
        self.events -= events as usize;
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

    fn times(entries: &[Entry]) -> Vec<i64> {
        let time = |entry: &Entry| match entry {
            Entry::Record(bytes) => Record::parse(bytes).unwrap().time_ms(),
            Entry::Drops(drops) => -i64::try_from(drops.count).unwrap(),
        };
        entries.iter().map(time).collect()
    }

    #[test]
    fn what_finds_no_room_is_reported_when_there_is_some_again() {
        let mut queue = Queue::new(10, 1 << 20);
        for time in 1..=8 {
            assert!(offer(&mut queue, EventType::PageView, time));
        }
        assert!(!offer(&mut queue, EventType::PageView, 9));
        assert!(offer(&mut queue, EventType::AccountLogin, 10));
        assert!(offer(&mut queue, EventType::AccountLogin, 11));
        assert!(!offer(&mut queue, EventType::AccountLogin, 12));
        assert_eq!(queue.take(4).len(), 4);
        assert!(!offer(&mut queue, EventType::PageView, 13));
        assert_eq!(queue.settle(4), 4);
        assert!(offer(&mut queue, EventType::PageView, 14));
        assert_eq!(times(&queue.take(10)), [5, 6, 7, 8, 10, 11, -3, 14]);
        assert!(!queue.has_new());
        assert_eq!(queue.settle(8), 7);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_last_drops_are_reported_without_another_event() {
        let mut queue = Queue::new(1, 1 << 20);
        assert!(offer(&mut queue, EventType::PageView, 1));
        assert!(!offer(&mut queue, EventType::PageView, 7));
        assert!(!offer(&mut queue, EventType::PageView, 5));
        queue.report_drops();
        assert_eq!(times(&queue.take(10)), [1]);
        queue.settle(1);
        queue.report_drops();
        match &queue.take(10)[..] {
            [Entry::Drops(drops)] => {
                assert_eq!((drops.count, drops.first_ms, drops.last_ms), (2, 5, 7));
            }
            other => panic!("{other:?}"),
        }
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
