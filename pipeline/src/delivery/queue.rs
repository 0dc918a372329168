//! The bounded queue of a target: records in the order of capture, and behind those that came before
//! some found no room, how many found none.
//!
//! What is taken out to be sent stays in the queue until it is settled, so that it can be sent again.
//! The last entries may be *backed*: the ring keeps their records until the target has made them last.
//! The ring bounds them, and they count against the queue's bounds only once they are in memory only.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::audit::format::Drops;
use crate::record::Record;
use crate::shm::ring::Place;

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

/// An entry, and where its record lies while the ring keeps it.
#[derive(Debug)]
struct Waiting {
    entry: Entry,
    place: Option<Place>,
}

/// What was settled, or is in memory only from now on.
#[derive(Debug, Default)]
pub struct Moved {
    /// Events that were in memory only.
    pub memory: u32,
    /// Events that the ring kept.
    pub backed: u32,
    /// How far each segment is taken with them.
    pub places: Vec<Place>,
}

impl Moved {
    fn count(&mut self, waiting: &Waiting) {
        match waiting.place {
            _ if !waiting.entry.is_record() => {}
            None => self.memory += 1,
            Some(place) => {
                self.backed += 1;
                match self.places.iter_mut().find(|known| known.segment == place.segment) {
                    Some(known) => *known = place,
                    None => self.places.push(place),
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Waiting>,
    /// Of the entries that are in memory only: how many, and their bytes.
    events: usize,
    bytes: usize,
    /// The first entries, which are being sent.
    taken: usize,
    /// How many of a segment's records are backed, by its number.
    backed: Vec<u32>,
    all_backed: usize,
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
            backed: Vec::new(),
            all_backed: 0,
            most_events,
            most_bytes,
        }
    }

    /// Adds a record; `false`: there is no room for it.
    pub fn offer(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>) -> bool {
        if !self.has_room_for(bytes.len(), record) {
            return false;
        }
        self.events += 1;
        self.bytes += bytes.len();
        self.entries.push_back(Waiting { entry: Entry::Record(bytes.clone()), place: None });
        true
    }

    /// Adds a record that the ring keeps.
    pub fn offer_backed(&mut self, bytes: &Arc<[u8]>, place: Place) {
        let segment = place.segment as usize;
        if self.backed.len() <= segment {
            self.backed.resize(segment + 1, 0);
        }
        self.backed[segment] += 1;
        self.all_backed += 1;
        let entry = Entry::Record(bytes.clone());
        self.entries.push_back(Waiting { entry, place: Some(place) });
    }

    /// Whether the ring keeps a record of this segment for the queue.
    pub fn is_backed(&self, segment: usize) -> bool {
        self.backed.get(segment).is_some_and(|count| *count > 0)
    }

    /// Whether the ring keeps any record for the queue.
    pub fn has_backed(&self) -> bool {
        self.all_backed > 0
    }

    /// Keeps in memory what the ring kept, as far as there is room: the rest stays backed, or where
    /// `all` is to leave the ring, is dropped. Returns what left the ring, and what of that was dropped.
    pub fn detach(&mut self, all: bool) -> (Moved, Option<Drops>) {
        let mut moved = Moved::default();
        let mut dropped: Option<Drops> = None;
        let first = self.entries.iter().position(|waiting| waiting.place.is_some());
        let mut rest = self.entries.split_off(first.unwrap_or(self.entries.len()));
        while let Some(mut waiting) = rest.pop_front() {
            let at = self.entries.len();
            if let (Entry::Record(bytes), Some(place)) = (&waiting.entry, waiting.place) {
                let record = Record::parse(bytes);
                // What is being sent may be where it belongs already.
                let stays = at < self.taken
                    || record.is_some_and(|record| self.has_room_for(bytes.len(), &record));
                if !stays && !all {
                    self.entries.push_back(waiting);
                    self.entries.append(&mut rest);
                    break;
                }
                moved.count(&waiting);
                self.backed[place.segment as usize] -= 1;
                self.all_backed -= 1;
                if !stays {
                    let drops = Drops::one(record.map_or(0, |record| record.time_ms()));
                    dropped.get_or_insert(Drops { count: 0, ..drops }).add(&drops);
                    continue;
                }
                self.events += 1;
                self.bytes += bytes.len();
                waiting.place = None;
            }
            self.entries.push_back(waiting);
        }
        (moved, dropped)
    }

    /// Counts what the ring still keeps as if it were in memory, whatever room there is.
    pub fn take_rest(&mut self) -> Moved {
        let mut moved = Moved::default();
        for waiting in self.entries.iter_mut().filter(|waiting| waiting.place.is_some()) {
            moved.count(waiting);
            waiting.place = None;
            self.events += 1;
            self.bytes += waiting.entry.size();
        }
        self.backed.fill(0);
        self.all_backed = 0;
        moved
    }

    /// Forgets what the ring keeps and is not being sent: the next collector reads it.
    pub fn leave_backed(&mut self) {
        let taken = self.taken;
        let mut at = 0;
        let (backed, all) = (&mut self.backed, &mut self.all_backed);
        self.entries.retain(|waiting| {
            at += 1;
            let leaves = waiting.place.filter(|_| at > taken);
            if let Some(place) = leaves {
                backed[place.segment as usize] -= 1;
                *all -= 1;
            }
            leaves.is_none()
        });
    }

    fn has_room_for(&self, bytes: usize, record: &Record<'_>) -> bool {
        self.fits(bytes, if record.kind().is_page() { PAGES_UP_TO } else { 1.0 })
    }

    fn fits(&self, bytes: usize, share: f64) -> bool {
        let part = |most: usize| (most as f64 * share) as usize;
        self.events < part(self.most_events).max(1) && self.bytes + bytes <= part(self.most_bytes)
    }

    /// Whether at least half of the room is used.
    pub fn is_half_full(&self) -> bool {
        !self.fits(0, 0.5)
    }

    /// Whether there is room again for more than an event or two.
    pub fn has_room(&self) -> bool {
        self.fits(0, ROOM_BELOW)
    }

    /// Adds, behind the last record, what was dropped.
    pub fn report(&mut self, drops: Drops) {
        let is_new = self.has_new();
        match self.entries.back_mut() {
            Some(Waiting { entry: Entry::Drops(last), .. }) if is_new => last.add(&drops),
            _ => {
                self.events += 1;
                self.entries.push_back(Waiting { entry: Entry::Drops(drops), place: None });
            }
        }
    }

    /// What would be lost with the queue: its records, and the drops that it was to tell of.
    pub fn left(&self) -> Option<Drops> {
        let drops = self.entries.iter().filter_map(|waiting| match &waiting.entry {
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
        self.take_placed(most).into_iter().map(|(entry, _)| entry).collect()
    }

    /// The same, and where each lies in the ring while that keeps it.
    pub fn take_placed(&mut self, most: usize) -> Vec<(Entry, Option<Place>)> {
        let new = self.entries.iter().skip(self.taken).take(most);
        let new: Vec<_> = new.map(|waiting| (waiting.entry.clone(), waiting.place)).collect();
        self.taken += new.len();
        new
    }

    /// Gives away the next records that are in memory only, at most `most`. Each keeps its room until
    /// [`returned`](Self::returned).
    pub fn lend(&mut self, most: usize) -> Vec<Arc<[u8]>> {
        let mut lent = Vec::new();
        while lent.len() < most
            && self.taken == 0
            && let Some(Waiting { entry: Entry::Record(_), place: None }) = self.entries.front()
            && let Some(Waiting { entry: Entry::Record(bytes), .. }) = self.entries.pop_front()
        {
            lent.push(bytes);
        }
        lent
    }

    /// A record of so many bytes that was lent is done with.
    pub fn returned(&mut self, bytes: usize) {
        self.events -= 1;
        self.bytes -= bytes;
    }

    /// What is being sent will be sent again.
    pub fn put_back(&mut self) {
        self.taken = 0;
    }

    /// The first `count` of what is being sent are done with.
    pub fn settle(&mut self, count: usize) -> Moved {
        let mut moved = Moved::default();
        let count = count.min(self.taken);
        for waiting in self.entries.drain(..count) {
            moved.count(&waiting);
            match waiting.place {
                Some(place) => {
                    self.backed[place.segment as usize] -= 1;
                    self.all_backed -= 1;
                }
                None => {
                    self.events -= 1;
                    self.bytes -= waiting.entry.size();
                }
            }
        }
        self.taken -= count;
        moved
    }

    /// How many entries wait that are not being sent.
    pub fn new_entries(&self) -> usize {
        self.entries.len() - self.taken
    }

    /// Whether an entry waits that is not being sent.
    pub fn has_new(&self) -> bool {
        self.new_entries() > 0
    }

    /// Whether an entry is being sent.
    pub fn has_taken(&self) -> bool {
        self.taken > 0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries are in memory only.
    pub fn in_memory(&self) -> usize {
        self.events
    }

    /// The oldest record.
    pub fn oldest(&self) -> Option<Record<'_>> {
        Self::first_record(self.entries.iter())
    }

    /// The oldest record that is not being sent.
    pub fn oldest_new(&self) -> Option<Record<'_>> {
        Self::first_record(self.entries.iter().skip(self.taken))
    }

    fn first_record<'e>(mut entries: impl Iterator<Item = &'e Waiting>) -> Option<Record<'e>> {
        entries.find_map(|waiting| match &waiting.entry {
            Entry::Record(bytes) => Record::parse(bytes),
            Entry::Drops(_) => None,
        })
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
        assert_eq!(queue.settle(3).memory, 3);
        assert!(!queue.has_room());
        assert_eq!(queue.take(1).len(), 1);
        assert_eq!(queue.settle(1).memory, 1);
        assert!(queue.has_room());
        queue.report(drops(3, 9, 13));
        assert!(offer(&mut queue, EventType::PageView, 14));
        assert_eq!(times(&queue.take(10)), [5, 6, 7, 8, 10, 11, -3, 14]);
        assert!(!queue.has_new());
        assert_eq!(queue.settle(8).memory, 7);
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
        assert_eq!(queue.settle(1).memory, 1);
        queue.put_back();
        assert_eq!(queue.settle(1).memory, 0);
        assert_eq!(times(&queue.take(9)), [2, 3, 4]);
        assert_eq!(queue.oldest().unwrap().time_ms(), 2);
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

    fn offer_backed(queue: &mut Queue, time_ms: i64, segment: u32) {
        let end = time_ms as u32;
        queue.offer_backed(&record(EventType::PageView, time_ms), Place { segment, end });
    }

    #[test]
    fn what_the_ring_keeps_counts_against_no_bound() {
        let mut queue = Queue::new(1, 1 << 20);
        (1..=5).for_each(|time| offer_backed(&mut queue, time, time as u32 % 2));
        assert!(queue.is_backed(0) && queue.is_backed(1) && !queue.is_backed(2));
        assert_eq!(times(&queue.take(3)), [1, 2, 3]);
        let moved = queue.settle(3);
        assert_eq!((moved.memory, moved.backed), (0, 3));
        let place = |segment, end| Place { segment, end };
        assert_eq!(moved.places, [place(1, 3), place(0, 2)]);
        assert_eq!(times(&queue.take(9)), [4, 5]);
        queue.settle(2);
        assert!(!queue.is_backed(0) && !queue.has_backed() && queue.is_empty());
    }

    #[test]
    fn what_leaves_the_ring_is_bounded() {
        let mut queue = Queue::new(3, 1 << 20);
        (1..=6).for_each(|time| offer_backed(&mut queue, time, 0));
        assert_eq!(times(&queue.take(1)), [1]);
        // Of pages, two find room.
        let (moved, dropped) = queue.detach(false);
        assert_eq!((moved.backed, &moved.places[..]), (2, &[Place { segment: 0, end: 2 }][..]));
        assert_eq!((dropped, queue.in_memory()), (None, 2));
        let (moved, dropped) = queue.detach(true);
        assert_eq!((moved.backed, dropped), (4, Some(drops(4, 3, 6))));
        assert!(!queue.has_backed());
        assert_eq!(queue.settle(1).memory, 1);
        assert_eq!(times(&queue.take(9)), [2]);
    }

    #[test]
    fn what_is_not_being_sent_is_left_to_the_next_collector() {
        let mut queue = Queue::new(10, 1 << 20);
        assert!(offer(&mut queue, EventType::PageView, 1));
        (2..=5).for_each(|time| offer_backed(&mut queue, time, 0));
        assert_eq!(times(&queue.take(2)), [1, 2]);
        queue.leave_backed();
        assert!(!queue.has_new() && queue.is_backed(0));
        let moved = queue.settle(2);
        assert_eq!((moved.memory, moved.backed), (1, 1));
        assert!(queue.is_empty() && !queue.has_backed());
    }
}
