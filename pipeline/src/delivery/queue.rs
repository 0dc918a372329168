//! The bounded queue of a target: records in the order of capture, and, between them, how many were dropped
//! there for lack of room.
//!
//! When it is full, a record of the lowest rank is dropped, and within a rank, one of the user with the most
//! records.
//!
//! Records that were taken stay in the queue until they are settled, so that they can be sent again. They are
//! taken in the order of capture, and lent in the order of ranks and turns.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::audit::format::Drops;
use crate::capture::rank::Rank;
use crate::delivery::priority_queue::BEFORE;
use crate::delivery::turns::Turns;
use crate::event::Param;
use crate::hash::stable_hash;
use crate::record::Record;
use crate::shm::segment::Place;
use crate::text::parse_ip;

/// Above this share of the queue, events of the lowest rank are refused, so that others find room.
const LOWEST_UP_TO: f64 = 0.8;
/// Below this share, there is room again: drops are reported together, not after each event that just fits.
const ROOM_BELOW: f64 = 0.7;
/// Lent records keep their room, and cannot be dropped. Records of a rank are lent only below this share of the
/// queue, so that a higher rank always finds records to replace.
const LENT_UP_TO: [f64; Rank::ALL.len()] = [1.0, 0.875, 0.75, 0.5];

impl Drops {
    /// One event of that time.
    pub fn one(time_ms: i64) -> Self {
        Self { count: 1, first_ms: time_ms, last_ms: time_ms }
    }

    /// Adds the drops in `other`.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        // Requests that overlap may be captured in another order than they began.
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }
}

/// An entry for a target.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record, shared by all targets that get it.
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

/// An entry, and the place of its record while the ring keeps it.
#[derive(Debug)]
struct Waiting {
    entry: Entry,
    place: Option<Place>,
    /// For a record in memory: its rank, its user, and its turn.
    rank: Rank,
    user: u64,
    turn: i64,
}

impl Waiting {
    fn drops(drops: Drops) -> Self {
        Self { entry: Entry::Drops(drops), place: None, rank: Rank::One, user: 0, turn: 0 }
    }

    fn time_ms(&self) -> i64 {
        match &self.entry {
            Entry::Record(bytes) => Record::parse(bytes).map_or(0, |record| record.time_ms()),
            Entry::Drops(drops) => drops.last_ms,
        }
    }
}

/// A number that differs between users; for anonymous events, between addresses.
fn user_of(record: &Record<'_>) -> u64 {
    match record.get(Param::UserName) {
        Some(name) => stable_hash([name]),
        None => {
            let address = record.get(Param::IpAddress).and_then(parse_ip).or(record.ip());
            stable_hash([b"", address.map(|ip| ip.to_string()).unwrap_or_default().as_bytes()])
        }
    }
}

/// Entries that were settled, or have moved into memory.
#[derive(Debug, Default)]
pub struct Moved {
    /// How many events were in memory only.
    pub memory: u32,
    /// How many events the ring kept.
    pub backed: u32,
    /// How far they reach in each segment.
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
    /// In the order in which they came.
    entries: BTreeMap<u64, Waiting>,
    /// The number of the next entry, and of the first one that is not being sent.
    next: u64,
    first_new: u64,
    /// How many entries are being sent.
    taken: usize,
    /// The records in memory that are not being sent: by rank in the order of turns, and by user.
    in_turn: [BTreeMap<i64, u64>; Rank::ALL.len()],
    users: HashMap<u64, BTreeSet<u64>>,
    turns: Turns,
    /// How many entries are in memory only, and their bytes.
    events: usize,
    bytes: usize,
    /// How many of these are lent.
    lent_events: usize,
    lent_bytes: usize,
    /// How many records of each segment are backed by the ring.
    backed: Vec<u32>,
    all_backed: usize,
    most_events: usize,
    most_bytes: usize,
}

impl Queue {
    /// An empty queue for so many events and so many bytes of records.
    pub fn new(most_events: usize, most_bytes: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            next: 0,
            first_new: 0,
            taken: 0,
            in_turn: Default::default(),
            users: HashMap::new(),
            turns: Turns::default(),
            events: 0,
            bytes: 0,
            lent_events: 0,
            lent_bytes: 0,
            backed: Vec::new(),
            all_backed: 0,
            most_events,
            most_bytes,
        }
    }

    /// Adds a record. Returns what was dropped for it, or the record itself if nothing counts less.
    pub fn offer(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>) -> Option<Drops> {
        let (rank, user) = (record.rank(), user_of(record));
        let (has_room, mut dropped) = self.make_room(bytes.len(), rank, user);
        if !has_room {
            let own = Drops::one(record.time_ms());
            dropped.get_or_insert(Drops { count: 0, ..own }).add(&own);
            return dropped;
        }
        self.events += 1;
        self.bytes += bytes.len();
        let (turn, _) = self.turns.give(rank, user);
        let entry = Entry::Record(bytes.clone());
        let number = self.push(Waiting { entry, place: None, rank, user, turn });
        self.enter(number);
        dropped
    }

    fn push(&mut self, waiting: Waiting) -> u64 {
        self.next += 1;
        self.entries.insert(self.next, waiting);
        self.next
    }

    /// Notes that a record in memory is not being sent, so that it may be dropped or lent.
    fn enter(&mut self, number: u64) {
        if let Some(waiting) = self.entries.get(&number).filter(|waiting| waiting.turn > 0) {
            self.in_turn[waiting.rank.place()].insert(waiting.turn, number);
            self.users.entry(waiting.user).or_default().insert(number);
        }
    }

    /// The reverse of [`enter`](Self::enter).
    fn withdraw(&mut self, number: u64) {
        if let Some(waiting) = self.entries.get(&number).filter(|waiting| waiting.turn > 0) {
            self.in_turn[waiting.rank.place()].remove(&waiting.turn);
            if let Some(numbers) = self.users.get_mut(&waiting.user) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.users.remove(&waiting.user);
                }
            }
        }
    }

    /// Makes room for a record: records of lower ranks are dropped first, and within its own rank the newest
    /// ones of the user with the most. Returns whether there is room, and what was dropped.
    fn make_room(&mut self, bytes: usize, rank: Rank, user: u64) -> (bool, Option<Drops>) {
        let mut dropped: Option<Drops> = None;
        while !self.has_room_for(bytes, rank) {
            let Some(number) = self.least(rank, user) else { return (false, dropped) };
            self.evict(number, &mut dropped);
        }
        (true, dropped)
    }

    /// Drops a record in memory that is not being sent.
    fn evict(&mut self, number: u64, dropped: &mut Option<Drops>) {
        self.withdraw(number);
        if let Some(waiting) = self.entries.remove(&number) {
            self.events -= 1;
            self.bytes -= waiting.entry.size();
            let drops = Drops::one(waiting.time_ms());
            dropped.get_or_insert(Drops { count: 0, ..drops }).add(&drops);
        }
    }

    /// The record that counts least, if it counts less than one of that rank and user.
    fn least(&self, rank: Rank, user: u64) -> Option<u64> {
        let lower = Rank::ALL.into_iter().rev().take_while(|lower| *lower >= rank);
        let last = |lower: Rank| Some((lower, self.in_turn[lower.place()].last_key_value()?));
        let (lower, (turn, number)) = lower.filter_map(last).next()?;
        let is_own = lower == rank
            && (self.entries.get(number).is_some_and(|waiting| waiting.user == user)
                || self.turns.is_last(rank, user, *turn));
        (!is_own).then_some(*number)
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
        let place = Some(place);
        self.push(Waiting { entry, place, rank: Rank::Four, user: 0, turn: 0 });
    }

    /// Whether the ring keeps a record in this segment for the queue.
    pub fn is_backed(&self, segment: usize) -> bool {
        self.backed.get(segment).is_some_and(|count| *count > 0)
    }

    /// Whether the ring keeps any record for the queue.
    pub fn has_backed(&self) -> bool {
        self.all_backed > 0
    }

    /// Moves records from the ring's keeping into memory, as far as there is room. The rest stays backed; with
    /// `all`, it is dropped. Returns what left the ring, and what was dropped.
    pub fn detach(&mut self, all: bool) -> (Moved, Option<Drops>) {
        let mut moved = Moved::default();
        let mut dropped: Option<Drops> = None;
        for number in self.backed_numbers() {
            let Some(waiting) = self.entries.get(&number) else { continue };
            let (Entry::Record(bytes), Some(place)) = (&waiting.entry, waiting.place) else {
                continue;
            };
            let bytes = bytes.clone();
            let Some(record) = Record::parse(&bytes) else { continue };
            let (rank, user) = (record.rank(), user_of(&record));
            // What is being sent may be where it belongs already.
            let is_taken = number < self.first_new;
            let (stays, gone) = match is_taken {
                true => (true, None),
                false => self.make_room(bytes.len(), rank, user),
            };
            if let Some(gone) = gone {
                dropped.get_or_insert(Drops { count: 0, ..gone }).add(&gone);
            }
            if !stays && !all {
                break;
            }
            moved.count(waiting_at(&self.entries, number));
            self.backed[place.segment as usize] -= 1;
            self.all_backed -= 1;
            if !stays {
                let drops = Drops::one(record.time_ms());
                dropped.get_or_insert(Drops { count: 0, ..drops }).add(&drops);
                self.entries.remove(&number);
                continue;
            }
            self.events += 1;
            self.bytes += bytes.len();
            let (turn, _) = self.turns.give(rank, user);
            if let Some(waiting) = self.entries.get_mut(&number) {
                (waiting.place, waiting.rank, waiting.user, waiting.turn) =
                    (None, rank, user, turn);
            }
            if !is_taken {
                self.enter(number);
            }
        }
        (moved, dropped)
    }

    fn backed_numbers(&self) -> Vec<u64> {
        let backed = self.entries.iter().filter(|(_, waiting)| waiting.place.is_some());
        backed.map(|(number, _)| *number).collect()
    }

    /// Counts the records that the ring still keeps as if they were in memory, whatever room there is.
    pub fn take_rest(&mut self) -> Moved {
        let mut moved = Moved::default();
        for waiting in self.entries.values_mut().filter(|waiting| waiting.place.is_some()) {
            moved.count(waiting);
            waiting.place = None;
            self.events += 1;
            self.bytes += waiting.entry.size();
        }
        self.backed.fill(0);
        self.all_backed = 0;
        moved
    }

    /// Forgets the records that the ring keeps and that are not being sent: the next collector reads them.
    pub fn leave_backed(&mut self) {
        for number in self.backed_numbers().into_iter().filter(|number| *number >= self.first_new) {
            if let Some(place) = self.entries.remove(&number).and_then(|waiting| waiting.place) {
                self.backed[place.segment as usize] -= 1;
                self.all_backed -= 1;
            }
        }
    }

    fn has_room_for(&self, bytes: usize, rank: Rank) -> bool {
        self.fits(bytes, if rank == Rank::Four { LOWEST_UP_TO } else { 1.0 })
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

    /// Adds, behind the last record, how many were dropped.
    pub fn report(&mut self, drops: Drops) {
        let first_new = self.first_new;
        match self.entries.last_entry() {
            Some(mut last) if *last.key() >= first_new => {
                if let Entry::Drops(known) = &mut last.get_mut().entry {
                    known.add(&drops);
                    return;
                }
            }
            _ => {}
        }
        self.events += 1;
        self.push(Waiting::drops(drops));
    }

    /// What would be lost with the queue: its records, and the drops that it has not reported.
    pub fn left(&self) -> Option<Drops> {
        let drops = self.entries.values().filter_map(|waiting| match &waiting.entry {
            Entry::Record(bytes) => Record::parse(bytes).map(|record| Drops::one(record.time_ms())),
            Entry::Drops(drops) => Some(*drops),
        });
        drops.reduce(|mut all, drops| {
            all.add(&drops);
            all
        })
    }

    /// Takes the next entries that are not being sent yet, at most `most`.
    pub fn take(&mut self, most: usize) -> Vec<Entry> {
        self.take_placed(most).into_iter().map(|(entry, _)| entry).collect()
    }

    /// Like [`take`](Self::take), with the place of each entry in the ring, if the ring keeps it.
    pub fn take_placed(&mut self, most: usize) -> Vec<(Entry, Option<Place>)> {
        let new = self.entries.range(self.first_new..).take(most);
        let numbers: Vec<_> = new.map(|(number, _)| *number).collect();
        let mut entries = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.withdraw(number);
            let waiting = waiting_at(&self.entries, number);
            if waiting.turn > 0 {
                self.turns.serve(waiting.rank, waiting.turn);
            }
            entries.push((waiting.entry.clone(), waiting.place));
            self.first_new = number + 1;
        }
        self.taken += entries.len();
        entries
    }

    /// Lends records that are in memory only, the highest rank first, at most so many of each rank; the last
    /// records of its user go before one of a higher rank. Each keeps its room until
    /// [`returned`](Self::returned).
    pub fn lend(&mut self, room: [usize; Rank::ALL.len()]) -> Vec<Arc<[u8]>> {
        let mut lent = Vec::new();
        if self.taken > 0 {
            return lent;
        }
        for (rank, room) in Rank::ALL.into_iter().zip(room) {
            for _ in 0..room {
                if !self.may_lend(rank) {
                    break;
                }
                let Some((turn, number)) = self.in_turn[rank.place()].first_key_value() else {
                    break;
                };
                let (turn, number) = (*turn, *number);
                self.turns.serve(rank, turn);
                let user = waiting_at(&self.entries, number).user;
                let before = match (rank, self.users.get(&user)) {
                    (Rank::One | Rank::Two | Rank::Three, Some(numbers)) => {
                        numbers.range(..number).rev().take(BEFORE).copied().collect()
                    }
                    _ => Vec::new(),
                };
                for number in before.into_iter().rev().chain([number]) {
                    self.withdraw(number);
                    if let Some(Waiting { entry: Entry::Record(bytes), .. }) =
                        self.entries.remove(&number)
                    {
                        self.lent_events += 1;
                        self.lent_bytes += bytes.len();
                        lent.push(bytes);
                    }
                }
            }
        }
        lent
    }

    /// Whether a record of that rank may be lent in addition to those that are.
    fn may_lend(&self, rank: Rank) -> bool {
        let part = |most: usize| (most as f64 * LENT_UP_TO[rank.place()]) as usize;
        self.lent_events == 0
            || self.lent_events < part(self.most_events) && self.lent_bytes < part(self.most_bytes)
    }

    /// A lent record of so many bytes has its outcome.
    pub fn returned(&mut self, bytes: usize) {
        self.events -= 1;
        self.bytes -= bytes;
        self.lent_events -= 1;
        self.lent_bytes -= bytes;
        self.forget_turns();
    }

    fn forget_turns(&mut self) {
        if self.events == 0 {
            self.turns.clear();
        }
    }

    /// The records that are being sent will be sent again. Those that left the ring meanwhile and find no room
    /// are dropped.
    pub fn put_back(&mut self) -> Option<Drops> {
        let taken: Vec<_> =
            self.entries.range(..self.first_new).map(|(number, _)| *number).collect();
        (self.taken, self.first_new) = (0, 0);
        taken.into_iter().for_each(|number| self.enter(number));
        let mut dropped: Option<Drops> = None;
        if self.holds_at_most(1.0) {
            return dropped;
        }
        while let Some(number) = self.without_room() {
            self.evict(number, &mut dropped);
        }
        dropped
    }

    /// The record in memory that counts least, if there are more than fit.
    fn without_room(&self) -> Option<u64> {
        let last = |rank: Rank| Some((rank, *self.in_turn[rank.place()].last_key_value()?.1));
        let (rank, number) = Rank::ALL.into_iter().rev().filter_map(last).next()?;
        let share = if rank == Rank::Four { LOWEST_UP_TO } else { 1.0 };
        (!self.holds_at_most(share)).then_some(number)
    }

    fn holds_at_most(&self, share: f64) -> bool {
        let part = |most: usize| (most as f64 * share) as usize;
        self.events <= part(self.most_events).max(1) && self.bytes <= part(self.most_bytes)
    }

    /// When the first `count` taken records were captured, in milliseconds since the epoch.
    pub fn taken_times(&self, count: usize) -> impl Iterator<Item = i64> {
        let taken = self.entries.values().take(count.min(self.taken));
        taken.filter_map(|waiting| match &waiting.entry {
            Entry::Record(bytes) => Record::parse(bytes).map(|record| record.time_ms()),
            Entry::Drops(_) => None,
        })
    }

    /// The first `count` entries that are being sent have their outcome.
    pub fn settle(&mut self, count: usize) -> Moved {
        let mut moved = Moved::default();
        let count = count.min(self.taken);
        for _ in 0..count {
            let Some((_, waiting)) = self.entries.pop_first() else { break };
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
        self.forget_turns();
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
        Self::first_record(self.entries.values())
    }

    /// The oldest record that is not being sent.
    pub fn oldest_new(&self) -> Option<Record<'_>> {
        Self::first_record(self.entries.range(self.first_new..).map(|(_, waiting)| waiting))
    }

    fn first_record<'e>(mut entries: impl Iterator<Item = &'e Waiting>) -> Option<Record<'e>> {
        entries.find_map(|waiting| match &waiting.entry {
            Entry::Record(bytes) => Record::parse(bytes),
            Entry::Drops(_) => None,
        })
    }
}

/// An entry that is there.
fn waiting_at(entries: &BTreeMap<u64, Waiting>, number: u64) -> &Waiting {
    &entries[&number]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::identity::Identity;
    use crate::event::EventType;
    use crate::record::Capture;

    fn record(kind: EventType, time_ms: i64) -> Arc<[u8]> {
        let mut capture = Capture::new(time_ms);
        capture.kind = kind;
        capture.rank = Rank::of(kind, Identity::Claim);
        let mut bytes = vec![0; capture.record_len()];
        capture.write(0, &mut bytes);
        bytes.into()
    }

    fn offer(queue: &mut Queue, kind: EventType, time_ms: i64) -> bool {
        let bytes = record(kind, time_ms);
        let dropped = queue.offer(&bytes, &Record::parse(&bytes).unwrap());
        assert!(dropped.is_none_or(|dropped| dropped == Drops::one(time_ms)), "{dropped:?}");
        dropped.is_none()
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
        let bytes = record(EventType::AccountLogin, 12);
        assert_eq!(queue.offer(&bytes, &Record::parse(&bytes).unwrap()), Some(drops(1, 8, 8)));
        assert_eq!(queue.take(3).len(), 3);
        assert_eq!(queue.settle(3).memory, 3);
        assert!(!queue.has_room());
        assert_eq!(queue.take(1).len(), 1);
        assert_eq!(queue.settle(1).memory, 1);
        assert!(queue.has_room());
        queue.report(drops(3, 9, 13));
        assert!(offer(&mut queue, EventType::PageView, 14));
        assert_eq!(times(&queue.take(10)), [5, 6, 7, 10, 11, 12, -3, 14]);
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
    fn what_was_taken_when_it_left_the_ring_finds_no_more_room_than_other_records() {
        let mut queue = Queue::new(10, 1 << 20);
        (1..=30).for_each(|time| offer_backed(&mut queue, time, 0));
        assert_eq!(queue.take(30).len(), 30);
        // It may be written already.
        let (moved, dropped) = queue.detach(true);
        assert_eq!((moved.backed, dropped), (30, None));
        assert_eq!(queue.put_back(), Some(drops(22, 9, 30)));
        assert_eq!(times(&queue.take(30)), (1..=8).collect::<Vec<_>>());
        assert_eq!(queue.put_back(), None);
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

    fn of(rank: Rank, user: &str, time_ms: i64) -> Arc<[u8]> {
        let mut capture = Capture::new(time_ms);
        capture.rank = rank;
        capture.set(Param::UserName, user.as_bytes()).unwrap();
        let mut bytes = vec![0; capture.record_len()];
        capture.write(0, &mut bytes);
        bytes.into()
    }

    fn offer_of(queue: &mut Queue, rank: Rank, user: &str, time_ms: i64) -> Option<Drops> {
        let bytes = of(rank, user, time_ms);
        queue.offer(&bytes, &Record::parse(&bytes).unwrap())
    }

    fn lent(queue: &mut Queue, room: [usize; 4]) -> Vec<i64> {
        let lent = queue.lend(room);
        lent.iter().map(|bytes| Record::parse(bytes).unwrap().time_ms()).collect()
    }

    #[test]
    fn lower_ranks_make_room() {
        let mut queue = Queue::new(10, 1 << 20);
        for time in 1..=10 {
            let rank = if time <= 8 { Rank::Four } else { Rank::Three };
            assert_eq!(offer_of(&mut queue, rank, "u", time), None);
        }
        assert_eq!(offer_of(&mut queue, Rank::One, "v", 11), Some(drops(1, 8, 8)));
        assert_eq!(offer_of(&mut queue, Rank::Two, "v", 12), Some(drops(1, 7, 7)));
        // What is being sent stays.
        assert_eq!(times(&queue.take(6)), [1, 2, 3, 4, 5, 6]);
        assert_eq!(offer_of(&mut queue, Rank::Two, "v", 13), Some(drops(1, 10, 10)));
        assert_eq!(offer_of(&mut queue, Rank::Two, "v", 14), Some(drops(1, 9, 9)));
        assert_eq!(offer_of(&mut queue, Rank::Two, "v", 15), Some(drops(1, 15, 15)));
        queue.put_back();
        assert_eq!(offer_of(&mut queue, Rank::Two, "v", 16), Some(drops(1, 6, 6)));
        assert_eq!(times(&queue.take(20)), [1, 2, 3, 4, 5, 11, 12, 13, 14, 16]);
        assert_eq!(queue.settle(20).memory, 10);
        assert!(queue.is_empty() && queue.users.is_empty());
    }

    #[test]
    fn nobody_fills_the_queue_alone() {
        let mut queue = Queue::new(100, 1 << 20);
        (1..=80).for_each(|time| assert_eq!(offer_of(&mut queue, Rank::Four, "many", time), None));
        assert_eq!(offer_of(&mut queue, Rank::Four, "many", 81), Some(drops(1, 81, 81)));
        for time in 100..120 {
            let few = offer_of(&mut queue, Rank::Four, &format!("u{time}"), time);
            assert!(few.is_some_and(|dropped| dropped.first_ms <= 80), "{few:?}");
        }
        assert!(offer_of(&mut queue, Rank::Four, "many", 121).is_some());
        let left = times(&queue.take(100));
        assert_eq!(left, (1..=60).chain(100..120).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_lent_goes_by_rank_and_turn_and_takes_the_last_ones_along() {
        let mut queue = Queue::new(1000, 1 << 20);
        (1..=40).for_each(|time| assert_eq!(offer_of(&mut queue, Rank::Four, "u", time), None));
        assert_eq!(offer_of(&mut queue, Rank::Four, "v", 41), None);
        assert_eq!(offer_of(&mut queue, Rank::One, "u", 42), None);
        assert_eq!(offer_of(&mut queue, Rank::Four, "u", 43), None);
        assert_eq!(lent(&mut queue, [0, 9, 9, 2]), [1, 2]);
        assert_eq!(lent(&mut queue, [1, 0, 0, 0]), (16..=40).chain([42]).collect::<Vec<_>>());
        let rest = lent(&mut queue, [9, 9, 9, 100]);
        let place = rest.iter().position(|time| *time == 41).unwrap();
        assert!(place <= 8, "{rest:?}");
        assert_eq!(rest.len(), 15);
        let size = of(Rank::Four, "u", 1).len();
        (0..43).for_each(|_| queue.returned(size));
        assert!(queue.is_empty() && queue.in_memory() == 0);
    }

    #[test]
    fn what_is_lent_leaves_room_for_higher_ranks() {
        let mut queue = Queue::new(80, 1 << 20);
        (0..60).for_each(|time| assert_eq!(offer_of(&mut queue, Rank::Four, "u", time), None));
        assert_eq!(lent(&mut queue, [99; 4]).len(), 40);
        (60..64).for_each(|time| assert_eq!(offer_of(&mut queue, Rank::Four, "u", time), None));
        // Events of a higher rank are still lent, and take the place of those that are not lent.
        for time in 100..116 {
            assert_eq!(offer_of(&mut queue, Rank::Three, "v", time), None);
        }
        for time in 116..124 {
            assert!(offer_of(&mut queue, Rank::Three, "v", time).is_some());
        }
        assert_eq!(lent(&mut queue, [99; 4]).len(), 20);
        for time in 200..220 {
            let dropped = offer_of(&mut queue, Rank::One, "w", time).expect("the queue is full");
            assert!(dropped.count == 1 && dropped.last_ms < 200, "{dropped:?}");
        }
        assert_eq!(lent(&mut queue, [99; 4]), (200..220).collect::<Vec<_>>());
        // The next event of the lowest rank is lent once less than half of the queue is lent.
        let size = of(Rank::One, "w", 1).len();
        (0..40).for_each(|_| queue.returned(size));
        assert_eq!(offer_of(&mut queue, Rank::Four, "u", 300), None);
        assert!(lent(&mut queue, [0, 0, 0, 99]).is_empty());
        queue.returned(size);
        assert_eq!(lent(&mut queue, [0, 0, 0, 99]), [300]);
    }
}
