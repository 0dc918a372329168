//! What the collector has handed to a target, and the target is not done with.
//!
//! The collector adds and never waits; the target's own thread takes, in its own time. What a target
//! makes last (a spool, a file) stays in the ring until it has: the inbox then knows where it lies. A
//! target that is late gets its share in memory, so that the ring serves the others.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::format::Drops;
use crate::capture::rank::Rank;
use crate::clock::monotonic_ns;
use crate::config::TargetConfig;
use crate::delivery::queue::{Entry, Moved, Queue};
use crate::delivery::repeat::{Repeat, Repeats, UNKNOWN_MANY};
use crate::delivery::spool::database::SpoolTotals;
use crate::log_queue::{Level, LogQueue, Once};
use crate::record::Record;
use crate::shm::rejected::Rejected;
use crate::shm::ring::{Place, Taken};
use crate::shm::zone::{DropReason, Fault, Ledger, Zone};

/// How long a target may take nothing, though something is due, before its share goes into memory …
const LATE_NS: u64 = 1_000_000_000;
/// … and before what has no room there is dropped, so that the ring is free for the others.
const GIVE_UP_NS: u64 = 10_000_000_000;
/// From this share of the ring on, nobody's interval is waited for, and what has room in a target's
/// queue leaves the ring.
const HALF: f64 = 0.5;
/// From this share on, what has no room is dropped.
const NEARLY_FULL: f64 = 0.75;
/// So many events that stand for others wait at a time. Where more accounts and addresses are attacked, one
/// more stands for all of them.
const MAX_MERGES: usize = 1024;
/// The same thing is said once in this time.
const REPEAT: Duration = Duration::from_secs(60);

/// What became of the first events that a target took.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// They are where they belong.
    Delivered,
    /// They are refused for good: these events.
    Rejected(&'a [Rejected]),
    /// They are in the spool, which counts this since then.
    Spooled(Option<&'a SpoolTotals>),
    /// They are given up.
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
    /// What an attack repeats is merged here, but for a target with a spool, which does it itself.
    repeats: Option<Repeats>,
    /// Whether the target makes events last.
    durable: bool,
    /// Whether the target tells of what was dropped.
    reports: bool,
    state: Mutex<State>,
    changed: Condvar,
    on_close: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// An event that stands for others, until its minute is over.
struct Merged {
    /// The first of them, …
    bytes: Arc<[u8]>,
    /// … whose user it has, or this one.
    user: Option<&'static [u8]>,
    count: u32,
    until_ns: u64,
}

struct State {
    queue: Queue,
    /// Held, and not yet in the queue.
    merges: HashMap<u64, Merged>,
    /// Events that the target holds outside the queue.
    in_hand: usize,
    /// Something happened that the target's thread has not seen.
    woken: bool,
    /// No interval is waited for.
    hurry: bool,
    /// Nothing that the ring keeps is taken any more: the next collector reads it.
    leaving: bool,
    /// When the target gives up, once it stops.
    deadline: Option<Instant>,
    /// What is left is counted.
    closed: bool,
    degraded: bool,
    /// When the target took something last, or there was nothing to take, by the monotonic clock.
    progress_ns: u64,
    /// Why it takes nothing now, where it knows, and says so itself.
    failing: Option<Fault>,
    said: Once,
    /// How many events were ever handed over.
    handed: u64,
}

impl Inbox {
    /// The inbox of a target. `durable`: it makes events last; `reports`: it tells of what was dropped.
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
            // What waits for its minute is in memory, and what comes behind it with it.
            durable: durable && !merges_here,
            reports,
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
        // The state is valid after each statement, also where a thread panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The target's place in the zone, and its bit in a record.
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

    /// Leaves a message that names the target.
    pub fn log(&self, level: Level, text: &str) {
        self.log.log(level, format!("{}: {text}", self.label));
    }
}

/// The collector's side.
impl Inbox {
    /// Adds this target's part of what was read. Never waits.
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

    /// There was no room for these.
    fn drop_full(&self, drops: Drops) {
        self.ledger.dropped(self.slot, drops.count as u32, DropReason::QueueFull);
        self.leave_unreported(&drops);
    }

    /// Keeps a record that is one of many until their minute is over, or counts it with them.
    fn merge(&self, state: &mut State, bytes: &Arc<[u8]>, record: &Record<'_>) -> bool {
        let Some(repeats) = &self.repeats else { return false };
        let Repeat::Merged { key, until_ns, user } = repeats.decide(record) else { return false };
        let is_known = state.merges.contains_key(&key) || state.merges.len() < MAX_MERGES;
        let (key, user) = if is_known { (key, user) } else { (0, Some(UNKNOWN_MANY)) };
        // What a collector before this one had counted of them is said with the next.
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

    /// Queues the events that stand for others and whose minute is over, or where time is short, all.
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

    /// In what time the next such event is due.
    fn merged_due_in(state: &State) -> Option<Duration> {
        let next = state.merges.values().map(|merged| merged.until_ns).min()?;
        Some(Duration::from_nanos(next.saturating_sub(monotonic_ns())))
    }

    /// Whether the ring keeps records for this target, by the segment's number.
    pub fn mark_backed(&self, segments: &mut [bool]) {
        let state = self.state();
        if state.queue.has_backed() {
            let marks = segments.iter_mut().enumerate();
            marks.for_each(|(number, mark)| *mark |= state.queue.is_backed(number));
        }
    }

    /// Frees the ring of what a late target has not taken; `fill` is the ring's share in use.
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

    /// Moves what the ring keeps into memory.
    fn detach(&self, state: &mut State, all: bool) {
        let (moved, dropped) = state.queue.detach(all);
        self.ledger.collected(self.slot, moved.backed);
        moved.places.iter().for_each(|place| self.zone.took(self.slot, *place));
        if let Some(drops) = dropped {
            self.ledger.dropped(self.slot, drops.count as u32, DropReason::QueueFull);
            self.leave_unreported(&drops);
        }
        if moved.backed > 0 && !mem::replace(&mut state.degraded, true) {
            self.ledger.show_degraded(self.slot, true);
            self.ledger.show_fault(self.slot, state.failing.unwrap_or(Fault::Stalled));
        }
        // Where the target knows why, it says so itself.
        if moved.backed > 0 && state.failing.is_none() && state.said.may(Instant::now()) {
            let text = format!(
                "degraded: {}; its events are kept in memory while it lasts",
                Fault::Stalled
            );
            self.log(Level::Error, &text);
        }
    }

    /// The target takes nothing now. It says so itself.
    pub fn failing(&self, fault: Fault) {
        self.state().failing = Some(fault);
    }

    /// Shows and says what is due; once a second while anything happens.
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

    /// Leaves to the next collector what the ring keeps and nobody is writing. Returns whether that is
    /// all that the ring kept.
    pub fn leave(&self) -> bool {
        let mut state = self.state();
        state.leaving = true;
        state.queue.leave_backed();
        !state.queue.has_backed()
    }

    /// Takes what the ring keeps into memory, whatever room there is: the next collector does not read
    /// it.
    pub fn detach_all(&self) {
        self.detach(&mut self.state(), true);
    }

    /// No event comes any more. What is there is tried until `deadline`.
    pub fn stop(&self, deadline: Instant) {
        let mut state = self.state();
        state.deadline = Some(state.deadline.map_or(deadline, |known| known.min(deadline)));
        state.woken = true;
        self.changed.notify_all();
    }

    /// Whether nothing waits, nor is being sent out of the queue.
    pub fn is_empty(&self) -> bool {
        let mut state = self.state();
        // There may be room since the last one.
        self.report_drops_in(&mut state.queue);
        self.release_merged(&mut state);
        state.queue.is_empty() && state.merges.is_empty()
    }

    /// How long a stopping process tries to deliver what it holds.
    pub fn shutdown_timeout(&self) -> Duration {
        self.shutdown_timeout
    }

    /// Whether the target makes events last.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Counts what is left as dropped, and takes no outcome any more. Where another collector follows,
    /// what the ring keeps is its.
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
        self.ledger.show_degraded(self.slot, false);
        if rest > 0 {
            let why = reason.text();
            let text = format!("{rest} events could not be delivered, {why}; dropped");
            self.log(Level::Error, &text);
        }
        self.say_drops();
        self.changed.notify_all();
    }

    /// What to do first when the inbox is closed. It must not wait.
    pub fn on_close(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_close.set(Box::new(f));
    }
}

/// The side of the target's thread.
impl Inbox {
    /// Waits until something happened, at most `limit`.
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

    /// Something happened that the target's thread shall look at.
    pub fn wake(&self) {
        self.state().woken = true;
        self.changed.notify_all();
    }

    /// In what time entries are due to be taken: a batch is full, the oldest has waited for the
    /// interval, or time is short. Nothing: none waits.
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

    /// The next entries, at most `most` and a batch. They stay here until they are settled.
    pub fn take(&self, most: usize) -> Vec<Entry> {
        self.take_placed(most).into_iter().map(|(entry, _)| entry).collect()
    }

    /// The same, and where each lies in the ring while that keeps it.
    pub fn take_placed(&self, most: usize) -> Vec<(Entry, Option<Place>)> {
        let mut state = self.state();
        if state.closed { Vec::new() } else { state.queue.take_placed(most.min(self.batch_size)) }
    }

    /// What was taken and is not settled will be taken again.
    pub fn put_back(&self) {
        let mut state = self.state();
        if let Some(drops) = state.queue.put_back() {
            self.drop_full(drops);
        }
        if state.leaving {
            state.queue.leave_backed();
        }
    }

    /// The first `count` entries that were taken are done with. Returns how many events they were.
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

    /// Gives away events that are in memory only, in their order, of each rank at most so many: the target holds them, and
    /// counts each that is done with.
    pub fn lend(&self, room: [usize; Rank::ALL.len()]) -> Vec<Arc<[u8]>> {
        let mut state = self.state();
        if state.closed {
            return Vec::new();
        }
        let lent = state.queue.lend(room);
        state.in_hand += lent.len();
        lent
    }

    /// An event of so many bytes that was lent is done with, and counted.
    pub fn returned(&self, bytes: usize) {
        let mut state = self.state();
        state.queue.returned(bytes);
        state.in_hand -= 1;
        self.end_degraded(&mut state);
    }

    /// The target holds so many events more that never were in the queue …
    pub fn hold(&self, events: usize) {
        self.state().in_hand += events;
    }

    /// … or is done with one.
    pub fn let_go(&self) {
        self.state().in_hand -= 1;
    }

    /// How many events the target holds outside the queue.
    pub fn in_hand(&self) -> usize {
        self.state().in_hand
    }

    /// How many events were ever handed over.
    pub fn handed(&self) -> u64 {
        self.state().handed
    }

    /// Whether so much is in memory that other events may soon find no room.
    pub fn is_crowded(&self) -> bool {
        self.state().queue.is_half_full()
    }

    fn end_degraded(&self, state: &mut State) {
        if state.degraded && state.queue.in_memory() == 0 {
            state.degraded = false;
            self.ledger.show_degraded(self.slot, false);
            self.log(Level::Notice, "it keeps up again");
        }
    }

    /// Whether anything waits that is not being sent.
    pub fn has_new(&self) -> bool {
        let mut state = self.state();
        self.release_merged(&mut state);
        self.report_drops_in(&mut state.queue);
        state.queue.has_new()
    }

    /// Whether nothing is counted any more.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// When the target gives up; nothing while it does not stop.
    pub fn deadline(&self) -> Option<Instant> {
        self.state().deadline
    }

    /// Whether the target stops.
    pub fn is_stopping(&self) -> bool {
        self.deadline().is_some()
    }

    /// Whether it is worth trying on.
    pub fn goes_on(&self) -> bool {
        let state = self.state();
        !state.closed && state.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Queues a record of what was dropped, if there is room for events again.
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
