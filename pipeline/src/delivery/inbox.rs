//! The events that the collector has handed to a target, and whose outcome is open.
//!
//! The collector adds records and never waits; the target's own thread takes them when it is ready. Records for
//! a durable target (spool, file) stay in the ring until the target has written them: the inbox knows their
//! places. The records of a target that is late move into memory, so that the ring serves the others.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::format::Drops;
use crate::capture::rank::Rank;
use crate::clock::monotonic_ns;
use crate::config::TargetConfig;
use crate::delivery::queue::{Entry, Moved, Queue};
use crate::delivery::repeat::{Repeat, Repeats, UNKNOWN_MANY};
use crate::log_queue::{Level, LogQueue, Once};
use crate::record::Record;
use crate::shm::rejected::Rejected;
use crate::shm::ring::Taken;
use crate::shm::segment::Place;
use crate::shm::zone::{DropReason, Fault, Ledger, SpoolTotals, Zone};

/// How long a target may take nothing, though something is due, before its records go into memory …
const LATE_NS: u64 = 1_000_000_000;
/// … and before records that do not fit there are dropped, so that the ring is free for the other targets.
const GIVE_UP_NS: u64 = 10_000_000_000;
/// From this share of the ring on, no interval is waited for, and records that fit into a target's queue leave
/// the ring.
const HALF: f64 = 0.5;
/// From this share of the ring on, records that do not fit into the queue are dropped.
const NEARLY_FULL: f64 = 0.75;
/// The most events that stand for others and wait at a time. If more accounts and addresses are attacked, one
/// more event stands for all further ones.
const MAX_MERGES: usize = 1024;
/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);

/// The outcome of the first events that a target took.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// They are delivered.
    Delivered,
    /// They are refused for good: these events.
    Rejected(&'a [Rejected]),
    /// They are in the spool, which counts this since then.
    Spooled(Option<&'a SpoolTotals>),
    /// They are dropped.
    Dropped(DropReason),
}

/// See the module.
pub struct Inbox {
    zone: Zone,
    ledger: Ledger,
    slot: usize,
    label: String,
    log: LogQueue,
    interval_ns: u64,
    batch_size: usize,
    shutdown_timeout: Duration,
    /// Merges repeated events here; a target with a spool merges them itself.
    repeats: Option<Repeats>,
    /// Whether the target is durable: events survive in what it writes.
    durable: bool,
    /// Whether the target writes records about dropped events.
    reports: bool,
    /// How many events found no room in memory.
    overflows: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    on_close: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// An event that stands for others; it waits until their minute is over.
struct Merged {
    /// The first of them.
    bytes: Arc<[u8]>,
    /// The user of the merged event, if it is not that of the first one.
    user: Option<&'static [u8]>,
    count: u32,
    until_ns: u64,
}

struct State {
    queue: Queue,
    /// Merged events that are not yet in the queue.
    merges: HashMap<u64, Merged>,
    /// How many events the target holds outside of the queue.
    in_hand: usize,
    /// Whether the target's thread shall look for news.
    woken: bool,
    /// Whether intervals are ignored.
    hurry: bool,
    /// Whether nothing more is taken from the ring: the next collector reads it.
    leaving: bool,
    /// When a stopping target gives up.
    deadline: Option<Instant>,
    /// Whether the rest was counted.
    closed: bool,
    degraded: bool,
    /// When the target last took something, or had nothing to take, by the monotonic clock.
    progress_ns: u64,
    /// Why the target takes nothing at present, if it knows; it logs that itself.
    failing: Option<Fault>,
    said: Once,
    /// How many events were handed over so far.
    handed: u64,
}

impl Inbox {
    /// The inbox of a target. `durable`: what it writes lasts; `reports`: it writes records about dropped
    /// events.
    pub fn new(
        config: &TargetConfig,
        label: String,
        (durable, reports): (bool, bool),
        (zone, ledger): (Zone, Ledger),
        log: &LogQueue,
    ) -> Self {
        let repeats = Repeats::new(config.repeat, config.slot, zone.repeat_counters());
        let merges_here = config.repeat.is_some() && config.spool.is_none();
        Self {
            zone,
            ledger,
            slot: config.slot,
            label,
            log: log.clone(),
            interval_ns: config.interval.as_nanos() as u64,
            batch_size: config.batch_size,
            shutdown_timeout: config.shutdown_timeout,
            repeats: merges_here.then_some(repeats),
            // Merged events wait in memory, and so do the events behind them.
            durable: durable && !merges_here,
            reports,
            overflows: AtomicU64::new(0),
            state: Mutex::new(State {
                queue: Queue::new(config.queue_events, config.queue_bytes),
                merges: HashMap::new(),
                in_hand: 0,
                woken: false,
                hurry: false,
                leaving: false,
                deadline: None,
                closed: false,
                degraded: false,
                progress_ns: 0,
                failing: None,
                said: Once::every(REPEAT),
                handed: 0,
            }),
            changed: Condvar::new(),
            on_close: OnceLock::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after each statement, even if a thread panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of the target's counters in the zone, and of its bit in a record.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// The zone's counters.
    pub fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// The shared memory.
    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// Logs a message that names the target.
    pub fn log(&self, level: Level, text: &str) {
        self.log.log(level, format!("{}: {text}", self.label));
    }
}

/// The collector's side.
impl Inbox {
    /// Adds this target's share of the records. Never waits.
    pub fn hand_over(&self, records: &[(&Taken, Record<'_>)]) {
        let bit = 1 << self.slot;
        let mut ours = records.iter().filter(|(_, record)| record.targets() & bit != 0).peekable();
        if ours.peek().is_none() {
            return;
        }
        let mut state = self.state();
        let had_new = state.queue.has_new();
        if state.queue.is_empty() {
            state.progress_ns = monotonic_ns();
        }
        for (taken, record) in ours {
            state.handed += 1;
            if self.durable && !state.closed {
                state.queue.offer_backed(&taken.bytes, taken.place);
                continue;
            }
            self.ledger.collected(self.slot, 1);
            self.zone.took(self.slot, taken.place);
            self.report_drops_in(&mut state.queue);
            if state.closed {
                self.drop_full(Drops::one(record.time_ms()));
            } else if !self.merge(&mut state, &taken.bytes, record)
                && let Some(drops) = state.queue.offer(&taken.bytes, record)
            {
                self.drop_full(drops);
            }
        }
        if !had_new || state.queue.new_entries() >= self.batch_size {
            state.woken = true;
            self.changed.notify_all();
        }
    }

    /// Counts events that found no room.
    fn drop_full(&self, drops: Drops) {
        self.overflows.fetch_add(drops.count, Relaxed);
        self.ledger.dropped(self.slot, drops.count as u32, DropReason::QueueFull);
        self.leave_unreported(&drops);
    }

    /// Holds the first of many equal events until their minute is over, or counts one of them.
    fn merge(&self, state: &mut State, bytes: &Arc<[u8]>, record: &Record<'_>) -> bool {
        let Some(repeats) = &self.repeats else { return false };
        let Repeat::Merged { key, until_ns, user } = repeats.decide(record) else { return false };
        let is_known = state.merges.contains_key(&key) || state.merges.len() < MAX_MERGES;
        let (key, user) = if is_known { (key, user) } else { (0, Some(UNKNOWN_MANY)) };
        // What an earlier collector had counted is included in the next event.
        let count = repeats.count_merged(key, record);
        match state.merges.get_mut(&key) {
            Some(merged) => {
                merged.count = count.max(merged.count + 1);
                self.ledger.merged(self.slot, 1);
            }
            None => {
                let bytes = bytes.clone();
                state.merges.insert(key, Merged { bytes, user, count, until_ns });
            }
        }
        true
    }

    /// Queues the merged events whose minute is over; if time is short, all of them.
    fn release_merged(&self, state: &mut State) {
        if state.merges.is_empty() {
            return;
        }
        let all = state.deadline.is_some() || state.leaving;
        let now = monotonic_ns();
        let due: Vec<_> =
            state.merges.extract_if(|_, merged| all || merged.until_ns <= now).collect();
        for (key, Merged { bytes, user, count, .. }) in due {
            let Some(record) = Record::parse(&bytes) else { continue };
            if let Some(repeats) = &self.repeats {
                repeats.clear_merged(key);
            }
            let many: Arc<[u8]> = record.standing_for(count, user).into();
            let Some(record) = Record::parse(&many) else { continue };
            if let Some(drops) = state.queue.offer(&many, &record) {
                self.drop_full(drops);
            }
        }
    }

    /// The time until the next merged event is due.
    fn merged_due_in(state: &State) -> Option<Duration> {
        let next = state.merges.values().map(|merged| merged.until_ns).min()?;
        Some(Duration::from_nanos(next.saturating_sub(monotonic_ns())))
    }

    /// Marks the segments whose records the ring keeps for this target.
    pub fn mark_backed(&self, segments: &mut [bool]) {
        let state = self.state();
        if state.queue.has_backed() {
            let marks = segments.iter_mut().enumerate();
            marks.for_each(|(number, mark)| *mark |= state.queue.is_backed(number));
        }
    }

    /// Frees the ring of records that a late target has not taken; `fill` is the share of the ring in use.
    pub fn relieve(&self, fill: f64) {
        let mut state = self.state();
        if !state.queue.has_backed() {
            return;
        }
        if fill > HALF && !mem::replace(&mut state.hurry, true) {
            state.woken = true;
            self.changed.notify_all();
            return;
        }
        let oldest = state.queue.oldest().map_or(u64::MAX, |record| record.stamp());
        let due = oldest.saturating_add(self.interval_ns);
        let waited = monotonic_ns().saturating_sub(due.max(state.progress_ns));
        if waited > LATE_NS || fill > HALF {
            self.detach(&mut state, waited > GIVE_UP_NS || fill > NEARLY_FULL);
        }
    }

    /// Moves records from the ring's keeping into memory.
    fn detach(&self, state: &mut State, all: bool) {
        let (moved, dropped) = state.queue.detach(all);
        self.ledger.collected(self.slot, moved.backed);
        moved.places.iter().for_each(|place| self.zone.took(self.slot, *place));
        if let Some(drops) = dropped {
            self.ledger.dropped(self.slot, drops.count as u32, DropReason::QueueFull);
            self.leave_unreported(&drops);
        }
        if moved.backed > 0 && !mem::replace(&mut state.degraded, true) {
            self.ledger.show_degraded(self.slot, state.failing.unwrap_or(Fault::Stalled));
        }
        // If the target knows the reason, it logs that itself.
        if moved.backed > 0 && state.failing.is_none() && state.said.may(Instant::now()) {
            let text = format!(
                "degraded: {}; its events are kept in memory while it lasts",
                Fault::Stalled
            );
            self.log(Level::Error, &text);
        }
    }

    /// The target takes nothing at present, and logs the reason itself.
    pub fn failing(&self, fault: Fault) {
        let mut state = self.state();
        if state.failing.replace(fault) != Some(fault) && state.degraded {
            self.ledger.show_degraded(self.slot, fault);
        }
    }

    /// The target can take events again.
    pub fn works(&self) {
        let mut state = self.state();
        state.failing = None;
        self.end_degraded(&mut state);
    }

    /// Shows counters and logs messages that are due; called once a second while anything happens.
    pub fn tick(&self) {
        let state = self.state();
        let oldest = state.queue.oldest().map_or(0, |record| record.time_ms());
        if state.in_hand == 0 {
            self.ledger.show_oldest(self.slot, oldest);
        }
        self.say_drops();
    }

    fn say_drops(&self) {
        for reason in DropReason::ALL {
            let new = self.ledger.take_unsaid(self.slot, reason);
            if new > 0 {
                let (why, total) = (reason.text(), self.zone.totals(self.slot).all_dropped());
                self.log(Level::Error, &format!("{new} events dropped, {why}; {total} in total"));
            }
        }
    }

    /// Leaves those records to the next collector that the ring keeps and nobody is writing. Returns whether
    /// the ring keeps no others.
    pub fn leave(&self) -> bool {
        let mut state = self.state();
        state.leaving = true;
        state.queue.leave_backed();
        !state.queue.has_backed()
    }

    /// Moves all records from the ring's keeping into memory, even if there is no room: the next collector does
    /// not read them.
    pub fn detach_all(&self) {
        self.detach(&mut self.state(), true);
    }

    /// No event comes any more. The target tries to deliver the rest until `deadline`.
    pub fn stop(&self, deadline: Instant) {
        let mut state = self.state();
        state.deadline = Some(state.deadline.map_or(deadline, |known| known.min(deadline)));
        state.woken = true;
        self.changed.notify_all();
    }

    /// Whether no event waits in the queue, or is being sent from it.
    pub fn is_empty(&self) -> bool {
        let mut state = self.state();
        // There may be room again since the last event.
        self.report_drops_in(&mut state.queue);
        self.release_merged(&mut state);
        state.queue.is_empty() && state.merges.is_empty()
    }

    /// How long a stopping process tries to deliver the rest.
    pub fn shutdown_timeout(&self) -> Duration {
        self.shutdown_timeout
    }

    /// Whether what the target writes lasts.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Counts the rest as dropped, and ignores further outcomes. If another collector follows, the records in
    /// the ring are left to it.
    pub fn close(&self, reason: DropReason, another_follows: bool) {
        if let Some(on_close) = self.on_close.get() {
            on_close();
        }
        let mut state = self.state();
        if mem::replace(&mut state.closed, true) {
            return;
        }
        if !another_follows {
            let moved = state.queue.take_rest();
            self.ledger.collected(self.slot, moved.backed);
            moved.places.iter().for_each(|place| self.zone.took(self.slot, *place));
        }
        let rest = self.ledger.holds(self.slot);
        self.ledger.dropped_and_said(self.slot, rest, reason);
        if let Some(drops) = state.queue.left() {
            self.leave_unreported(&drops);
        }
        self.ledger.show_oldest(self.slot, 0);
        self.ledger.end_degraded(self.slot);
        if rest > 0 {
            let why = reason.text();
            let text = format!("{rest} events could not be delivered, {why}; dropped");
            self.log(Level::Error, &text);
        }
        self.say_drops();
        self.changed.notify_all();
    }

    /// Sets a function to call first when the inbox is closed. It must not wait.
    pub fn on_close(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_close.set(Box::new(f));
    }
}

/// The side of the target's thread.
impl Inbox {
    /// Waits for news, at most `limit`.
    pub fn wait(&self, limit: Option<Duration>) {
        let mut state = self.state();
        let until = limit.map(|limit| Instant::now() + limit);
        while !mem::take(&mut state.woken) && !state.closed {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match left {
                Some(left) if left.is_zero() => return,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Wakes the target's thread to look for news.
    pub fn wake(&self) {
        self.state().woken = true;
        self.changed.notify_all();
    }

    /// The time until entries are due: a batch is full, the oldest has waited for the interval, or time is
    /// short. `None` if there are none.
    pub fn due_in(&self) -> Option<Duration> {
        let mut state = self.state();
        self.release_merged(&mut state);
        self.report_drops_in(&mut state.queue);
        let merged = Self::merged_due_in(&state);
        if !state.queue.has_new() {
            state.hurry = false;
            return merged;
        }
        let now_or_never = state.hurry || state.deadline.is_some() || state.leaving;
        if now_or_never || state.queue.new_entries() >= self.batch_size {
            return Some(Duration::ZERO);
        }
        let due = state.queue.oldest_new().map_or(0, |record| record.stamp() + self.interval_ns);
        let due = Duration::from_nanos(due.saturating_sub(monotonic_ns()));
        Some(merged.map_or(due, |merged| merged.min(due)))
    }

    /// The next entries, at most `most` and a batch. They stay in the queue until they are settled.
    pub fn take(&self, most: usize) -> Vec<Entry> {
        self.take_placed(most).into_iter().map(|(entry, _)| entry).collect()
    }

    /// Like [`take`](Self::take), with the place of each entry in the ring, if the ring keeps it.
    pub fn take_placed(&self, most: usize) -> Vec<(Entry, Option<Place>)> {
        let mut state = self.state();
        if state.closed { Vec::new() } else { state.queue.take_placed(most.min(self.batch_size)) }
    }

    /// Entries that were taken and not settled will be taken again.
    pub fn put_back(&self) {
        let mut state = self.state();
        if let Some(drops) = state.queue.put_back() {
            self.drop_full(drops);
        }
        if state.leaving {
            state.queue.leave_backed();
        }
    }

    /// The outcome of the first `count` entries that were taken. Returns how many events they were.
    pub fn settle(&self, count: usize, outcome: Outcome<'_>) -> u32 {
        let mut state = self.state();
        if state.closed {
            return 0;
        }
        let (ledger, slot) = (self.ledger, self.slot);
        if count > 0 {
            (state.progress_ns, state.failing) = (monotonic_ns(), None);
        }
        if matches!(outcome, Outcome::Delivered) {
            state.queue.taken_times(count).for_each(|time_ms| ledger.observe(slot, time_ms));
        }
        let Moved { memory, backed, places } = state.queue.settle(count);
        match outcome {
            Outcome::Delivered => {
                ledger.delivered(slot, memory);
                ledger.written(slot, backed);
            }
            Outcome::Spooled(totals) => {
                ledger.moved_to_spool(slot, memory, None);
                ledger.spooled(slot, backed, totals);
            }
            Outcome::Rejected(events) => {
                events.iter().for_each(|event| ledger.list_rejected(slot, event));
                ledger.collected(slot, backed);
                ledger.rejected(slot, memory + backed);
            }
            Outcome::Dropped(reason) => {
                ledger.collected(slot, backed);
                ledger.dropped(slot, memory + backed, reason);
            }
        }
        places.iter().for_each(|place| self.zone.took(slot, *place));
        self.end_degraded(&mut state);
        memory + backed
    }

    /// Lends events that are in memory only, in their order, at most so many of each rank: the target holds
    /// them, and counts each one's outcome.
    pub fn lend(&self, room: [usize; Rank::ALL.len()]) -> Vec<Arc<[u8]>> {
        let mut state = self.state();
        if state.closed {
            return Vec::new();
        }
        let lent = state.queue.lend(room);
        state.in_hand += lent.len();
        lent
    }

    /// A lent event of so many bytes has its outcome, and is counted.
    pub fn returned(&self, bytes: usize) {
        let mut state = self.state();
        state.queue.returned(bytes);
        state.in_hand -= 1;
        self.end_degraded(&mut state);
    }

    /// The target holds so many more events that were never in the queue …
    pub fn hold(&self, events: usize) {
        self.state().in_hand += events;
    }

    /// … and one fewer.
    pub fn let_go(&self) {
        self.state().in_hand -= 1;
    }

    /// How many events the target holds outside of the queue.
    pub fn in_hand(&self) -> usize {
        self.state().in_hand
    }

    /// How many events were handed over so far.
    pub fn handed(&self) -> u64 {
        self.state().handed
    }

    /// How many events found no room in memory so far.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Relaxed)
    }

    /// Whether memory is so full that further events may soon find no room.
    pub fn is_crowded(&self) -> bool {
        self.state().queue.is_half_full()
    }

    fn end_degraded(&self, state: &mut State) {
        if state.degraded && state.failing.is_none() && state.queue.in_memory() == 0 {
            state.degraded = false;
            self.ledger.end_degraded(self.slot);
            self.log(Level::Notice, "it keeps up again");
        }
    }

    /// Whether any event waits that is not being sent.
    pub fn has_new(&self) -> bool {
        let mut state = self.state();
        self.release_merged(&mut state);
        self.report_drops_in(&mut state.queue);
        state.queue.has_new()
    }

    /// Whether outcomes are ignored.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// When a stopping target gives up; `None` if it does not stop.
    pub fn deadline(&self) -> Option<Instant> {
        self.state().deadline
    }

    /// Whether the target stops.
    pub fn is_stopping(&self) -> bool {
        self.deadline().is_some()
    }

    /// Whether further attempts make sense.
    pub fn goes_on(&self) -> bool {
        let state = self.state();
        !state.closed && state.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Queues a record about dropped events, if there is room for events again.
    fn report_drops_in(&self, queue: &mut Queue) {
        if self.reports
            && queue.has_room()
            && let Some(drops) = self.ledger.take_unreported(self.slot)
        {
            queue.report(drops);
        }
    }

    fn leave_unreported(&self, drops: &Drops) {
        if self.reports {
            self.ledger.leave_unreported(self.slot, drops);
        }
    }
}
