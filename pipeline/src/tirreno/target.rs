//! A target of type `tirreno`: its thread moves events from the inbox, through the spool if there is one,
//! to the connections.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{io, mem};

use crate::capture::login::Attempt;
use crate::capture::rank::Rank;
use crate::config::TargetConfig;
use crate::delivery::http::Addresses;
use crate::delivery::inbox::{Inbox, Outcome};
use crate::delivery::queue::Entry;
use crate::delivery::repeat::{Repeat, Repeats};
use crate::delivery::spool::{Intake, Merge, SetAside, Spool, Stored};
use crate::delivery::target::{Running, Target};
use crate::delivery::thread::{NICE_SENDING, spawn};
use crate::log_queue::{Level, LogQueue, Once};
use crate::record::Record;
use crate::shm::segment::Place;
use crate::shm::zone::{DropReason, Ledger, State, Zone};
use crate::tirreno::config::TirrenoConfig;
use crate::tirreno::connection::Connection;
use crate::tirreno::first_steps::FirstSteps;
use crate::tirreno::http::Tirreno;
use crate::tirreno::policy::{Book, EventId, Policy, PolicyConfig};
use crate::tirreno::shared::{Connect, Content, Event, HeldEvent, Shared, WINDOW, lock};

/// How many bytes from a spool may be on their way to the connections, besides [`WINDOW`], …
const WINDOW_BYTES: usize = 4 << 20;
const RESERVED_BYTES: usize = 64 << 10;
/// … handed over so many at a time.
const CHUNK: usize = 512;
/// How often the thread looks whether something is due, while events are on their way, and while they do not move.
const PROGRESS: Duration = Duration::from_millis(20);
const NO_PROGRESS: Duration = Duration::from_millis(250);
/// How often it looks for events of other processes in the spool, while there may be any; and how often whether
/// there are other processes.
const OTHERS: Duration = Duration::from_millis(250);
const ANY_OTHERS: Duration = Duration::from_secs(5);
/// How often counters are shown and messages logged, and how long after the last event.
const TICK: Duration = Duration::from_secs(1);
const TICKS_AFTER: Duration = Duration::from_secs(3);
/// The pause before a thread that could not be started is tried again, or a spool that does not work.
const RETRY: Duration = Duration::from_secs(1);
/// How long a spool that works again waits for the events that connections give back, so that they are in order.
const RECALL: Duration = Duration::from_millis(250);
/// How long, beyond its interval, another instance of nginx may need to commit what it captured.
const COMMIT: Duration = Duration::from_secs(3);
/// How long events in memory wait for those in a spool that cannot be read.
const UNREAD: Duration = Duration::from_secs(3);
/// Failed logins that wait may fill one part in so many of the queue in memory.
const FAILED: usize = 4;
/// Over this time a rate of events is measured …
const RATE_SPAN: Duration = Duration::from_secs(10);
/// … and one above the target's is said this often.
const RATE_REPEAT: Duration = Duration::from_secs(60);

/// The target, with its inbox.
pub fn new(
    config: &TargetConfig,
    tirreno: &TirrenoConfig,
    connect: Option<Arc<Connect>>,
    (zone, ledger): (Zone, Ledger),
    log: &LogQueue,
) -> Running {
    let tirreno = Arc::new(tirreno.clone());
    let label = format!("target \"{}\" {}", config.name, tirreno.endpoint.sensor());
    let policy = PolicyConfig {
        label: label.clone(),
        accept_200: tirreno.accept_200,
        resend: tirreno.resend,
        rate: tirreno.rate,
        timeout: tirreno.timeout,
    };
    let now = Instant::now();
    let url = tirreno.endpoint.sensor().to_string();
    let spool = config.spool.as_ref();
    let store =
        spool.map(|s| Arc::new(Spool::new(s, &config.name, &url, zone.instance(), &label, log)));
    let is_durable = (store.is_some(), false);
    let inbox = Arc::new(Inbox::new(config, label, is_durable, (zone, ledger), log));
    let mut server = DefaultHasher::new();
    url.hash(&mut server);
    let server = server.finish();
    let book = Book { ledger, slot: config.slot, store: store.clone(), server };
    let shared = Arc::new(Shared {
        policy: Mutex::new(Policy::new(policy, book, log.clone(), now)),
        policy_changed: Condvar::new(),
        held: Mutex::default(),
        stored_bytes: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        leaving: AtomicBool::new(false),
        recalling: AtomicBool::new(false),
        timeout: tirreno.timeout,
        privacy: config.privacy.clone(),
        store: store.clone(),
        inbox: inbox.clone(),
        lanes: Mutex::default(),
        lanes_changed: Condvar::new(),
    });
    inbox.on_close({
        let shared = Arc::downgrade(&shared);
        move || {
            if let Some(shared) = shared.upgrade() {
                shared.close();
            }
        }
    });
    let connections = tirreno.connections;
    let login_fail_delay = tirreno.login_fail_delay;
    let connect = connect.unwrap_or_else(|| {
        let addresses = Addresses::default();
        Arc::new(move || Box::new(Tirreno::new(tirreno.clone(), addresses.clone())) as _)
    });
    let target = TirrenoTarget {
        config: config.clone(),
        login_fail_delay,
        shared,
        store,
        retry_at: None,
        recalled: Vec::new(),
        recall_until: None,
        connections,
        connect,
        started: 0,
        repeats: Repeats::new(config.repeat, config.slot, zone.repeat_counters()),
        next_id: 0,
        first_steps: FirstSteps::new(login_fail_delay),
        last_read: now,
        look_at: Some(now),
        any_others: (now, true),
        stopping: false,
        spool_dropped: 0,
        spool_expired: 0,
        ledger,
        log: log.clone(),
        handed: 0,
        measured: (now, 0),
        delivered: (now, zone.totals(config.slot).delivered),
        rate_said: Once::every(RATE_REPEAT),
        waiting: (false, Once::every(RATE_REPEAT)),
        ticked: now,
        active: now,
    };
    Running::new(target, inbox, "tirreno-target")
}

/// A record on its way into the spool.
struct Decided {
    bytes: Arc<[u8]>,
    ring: Option<u64>,
    merge: Option<Merge>,
}

/// What the target's thread works with.
struct TirrenoTarget {
    config: TargetConfig,
    login_fail_delay: Duration,
    shared: Arc<Shared>,
    store: Option<Arc<Spool>>,
    /// When the spool is tried again, if it did not take what was last put into it.
    retry_at: Option<Instant>,
    /// Events that were wanted back for the spool, and until when it waits for others.
    recalled: Vec<Event>,
    recall_until: Option<Instant>,
    /// How many connections there shall be, and what makes them.
    connections: usize,
    connect: Arc<Connect>,
    /// How many run.
    started: usize,
    repeats: Repeats,
    next_id: u64,
    /// Failed logins in memory that wait for a successful one. They are held.
    first_steps: FirstSteps<Event>,
    /// When the spool could be read last.
    last_read: Instant,
    /// When the spool is read again; nothing: when something is put into it.
    look_at: Option<Instant>,
    /// Whether other processes may put something into it, and when that was asked.
    any_others: (Instant, bool),
    stopping: bool,
    /// What the spool had no room for, or was too old, since it was last said.
    spool_dropped: u64,
    spool_expired: u64,
    ledger: Ledger,
    log: LogQueue,
    /// The events that were handed over when that was last looked at.
    handed: u64,
    /// When the present measurement of the rate began, and the events before it.
    measured: (Instant, u64),
    /// The same for what was delivered.
    delivered: (Instant, u64),
    rate_said: Once,
    /// Whether it is shown that the spool's events wait for another process, and when that was said.
    waiting: (bool, Once),
    /// When what is due was last shown, and when the last event moved.
    ticked: Instant,
    active: Instant,
}

impl Target for TirrenoTarget {
    fn run(&mut self, inbox: &Arc<Inbox>) {
        inbox.put_back();
        while !inbox.is_closed() {
            let pause = match self.start_connections() {
                Ok(()) => self.step(inbox, Instant::now()),
                Err(error) => {
                    inbox.log(Level::Error, &format!("a thread cannot be started: {error}"));
                    Some(RETRY)
                }
            };
            inbox.wait(pause);
        }
        if let Some(store) = &self.store {
            store.leave();
            self.show_spool(store);
        }
    }
}

impl TirrenoTarget {
    fn start_connections(&mut self) -> io::Result<()> {
        while self.started < self.connections && !self.shared.is_closed() {
            lock(&self.shared.lanes).queues.resize_with(self.connections, Default::default);
            let connection = Connection::new(
                self.shared.clone(),
                self.started,
                self.connect.clone(),
                self.log.clone(),
            );
            let name = format!("tirreno-{}", self.started);
            spawn(&name, NICE_SENDING, move || connection.run())?;
            self.started += 1;
        }
        Ok(())
    }

    /// Moves events between inbox, spool and connections, as there is room and the spool works. Returns
    /// how long there is nothing to do.
    fn step(&mut self, inbox: &Inbox, now: Instant) -> Option<Duration> {
        if inbox.is_stopping() && !mem::replace(&mut self.stopping, true) {
            self.stop();
        }
        self.send_failed(now);
        let progressed = lock(&self.shared.held).look();
        if progressed || inbox.handed() != mem::replace(&mut self.handed, inbox.handed()) {
            self.active = now;
        }
        let mut pauses = vec![self.first_steps.due().map(|due| due - now.min(due))];
        match self.store.clone() {
            None => pauses.push(self.send_due(inbox)),
            Some(store) => {
                pauses.push(self.spool_due(inbox, &store, now));
                if !self.stopping {
                    pauses.push(self.send_spooled(inbox, &store, progressed, now));
                } else if self.retry_at.is_some() {
                    self.send_memory(inbox);
                }
            }
        }
        if !self.shared.is_empty() {
            pauses.push(Some(if progressed { PROGRESS } else { NO_PROGRESS }));
        }
        pauses.push(self.tick(inbox, now));
        pauses.into_iter().flatten().min()
    }

    /// How many events of each rank may go on their way now.
    fn room(&self) -> [usize; Rank::ALL.len()] {
        let counts = lock(&self.shared.held).counts;
        let rank = |place: usize| WINDOW[place].saturating_sub(counts[place]).min(CHUNK);
        std::array::from_fn(rank)
    }

    /// Sends what is due and only in memory.
    fn send_due(&mut self, inbox: &Inbox) -> Option<Duration> {
        loop {
            match inbox.due_in() {
                Some(due) if due.is_zero() => {}
                // What took the room wakes this when it is done with.
                later => {
                    lock(&self.shared.held).refilled();
                    return later;
                }
            }
            if self.send_memory(inbox) == 0 {
                lock(&self.shared.held).refilled();
                return None;
            }
        }
    }

    /// Sends events that are only in memory, as there is room; returns how many.
    fn send_memory(&mut self, inbox: &Inbox) -> usize {
        let lent = inbox.lend(self.room());
        for bytes in &lent {
            self.next_id += 1;
            let id = EventId::Memory(self.next_id);
            // It was parsed when it was read from the ring.
            let Some(record) = Record::parse(bytes) else { continue };
            let rank = record.rank();
            let (time_ms, stamp) = (record.time_ms(), Some(record.stamp()));
            lock(&self.shared.held).insert(id, HeldEvent { time_ms, stamp, rank });
            let user = self.config.privacy.view(record).user_key();
            let (kind, content) = (Some(record.kind()), Content::Record(bytes.clone()));
            let event = Event { id, user, rank, kind, content };
            let delay = self.login_fail_delay;
            match Attempt::of(&record) {
                Some(Attempt::Failed(attempt)) if !delay.is_zero() && !self.stopping => {
                    let size = event.content.size();
                    let withdrawn = self.first_steps.failed(attempt, record.stamp(), size, event);
                    self.withdraw(withdrawn);
                    self.send_failed(Instant::now());
                }
                Some(Attempt::Good(attempt)) => {
                    let withdrawn = self.first_steps.good(attempt, record.stamp());
                    self.withdraw(withdrawn);
                    self.send([event]);
                }
                _ => self.send([event]),
            }
        }
        lent.len()
    }

    /// A failed login was only the first half of a successful one.
    fn withdraw(&self, failed: Option<Event>) {
        if let Some(event) = failed {
            self.ledger.withdrawn(self.config.slot);
            self.shared.release(&event);
        }
    }

    /// Sends the failed logins that have waited until `now`, and those that leave too little room for
    /// other events.
    fn send_failed(&mut self, now: Instant) {
        let Self { config, .. } = self;
        let (most, most_bytes) = match self.stopping {
            true => (0, 0),
            false => (
                config.queue_events.min(WINDOW[Rank::Three.place()]) / FAILED,
                config.queue_bytes / FAILED,
            ),
        };
        while let Some(event) = self.first_steps.next(now, most, most_bytes) {
            self.send([event]);
        }
    }

    /// Hands held events to their users' connections.
    fn send(&self, events: impl IntoIterator<Item = Event>) {
        let mut refused = Vec::new();
        let mut lanes = lock(&self.shared.lanes);
        for event in events {
            match lanes.of(event.user) {
                Some(queue) => queue.push(event.rank, event.user, event),
                None => refused.push(event),
            }
        }
        drop(lanes);
        self.shared.lanes_changed.notify_all();
        for event in refused {
            self.shared.policy().give_up(event.id, DropReason::Internal);
            self.shared.release(&event);
        }
    }

    /// Commits what is due to the spool, together with how far it has read the rings. Returns when more
    /// is due.
    fn spool_due(&mut self, inbox: &Inbox, store: &Spool, now: Instant) -> Option<Duration> {
        let (in_memory, oldest) = self.shared.in_memory();
        // It was captured before some of what may be committed before it.
        store.expect_from(oldest);
        if let Some(at) = self.retry_at {
            // Also where nothing is due: what is in memory waits for the spool.
            if at > now {
                self.send_recalled();
                return Some(at - now);
            }
        } else {
            self.shared.recalling.store(in_memory > 0, Relaxed);
            if in_memory > 0 {
                if !self.recall(in_memory, now) {
                    return Some(PROGRESS);
                }
                if !self.spool_recalled(store) {
                    return Some(self.spool_failed(inbox, store));
                }
            }
        }
        let is_due = inbox.due_in().is_some_and(|due| due.is_zero());
        if !is_due && self.retry_at.is_none() {
            return inbox.due_in();
        }
        let entries = if is_due { inbox.take_placed(usize::MAX) } else { Vec::new() };
        let decided: Vec<_> =
            entries.iter().filter_map(|(entry, place)| self.decide(entry, *place)).collect();
        let intake: Vec<_> = decided.iter().filter_map(|decided| self.intake(decided)).collect();
        let Some(appended) = store.append(&intake, self.login_fail_delay) else {
            inbox.put_back();
            return Some(self.spool_failed(inbox, store));
        };
        self.spool_dropped += appended.dropped;
        inbox.settle(entries.len(), Outcome::Spooled(store.totals().as_ref()));
        self.look_at = Some(now);
        if self.retry_at.take().is_some() {
            self.recall_until = Some(Instant::now() + RECALL);
            return Some(Duration::ZERO);
        }
        // One batch, then it is the connections' turn.
        inbox.due_in()
    }

    /// The spool took nothing; returns when to try again.
    fn spool_failed(&mut self, inbox: &Inbox, store: &Spool) -> Duration {
        store.fault().into_iter().for_each(|fault| inbox.failing(fault));
        self.retry_at = Some(Instant::now() + RETRY);
        self.shared.recalling.store(false, Relaxed);
        self.send_recalled();
        RETRY
    }

    /// Sends what was wanted back for a spool that does not work after all.
    fn send_recalled(&mut self) {
        self.recalled.extend(lock(&self.shared.lanes).take_returned());
        let events = mem::take(&mut self.recalled);
        self.send(events);
    }

    /// Wants back what is in memory only, because the spool did not work, and is not being sent. Returns whether all
    /// of it is here, or as much as comes in time.
    fn recall(&mut self, in_memory: usize, now: Instant) -> bool {
        self.shared.wake();
        let mut lanes = lock(&self.shared.lanes);
        self.recalled.extend(lanes.take_returned());
        self.recalled.extend(lanes.take_in_memory());
        let here = self.recalled.len() + self.first_steps.iter().count();
        here >= in_memory || self.recall_until.is_none_or(|until| until <= now)
    }

    /// Commits to the spool what was wanted back; returns whether the spool took it.
    fn spool_recalled(&mut self, store: &Spool) -> bool {
        let mut records: Vec<_> = self.recalled.iter().chain(self.first_steps.iter()).collect();
        if records.is_empty() {
            return true;
        }
        records.sort_unstable_by_key(|event| event.id);
        let intake = records.into_iter().filter_map(|event| {
            let Content::Record(bytes) = &event.content else { return None };
            let view = self.config.privacy.view(Record::parse(bytes)?);
            Some(Intake { view, ring: None, merge: None })
        });
        let intake: Vec<_> = intake.collect();
        let Some(appended) = store.append(&intake, self.login_fail_delay) else { return false };
        self.spool_dropped += appended.dropped;
        let mut events = mem::take(&mut self.recalled);
        events.extend(std::iter::from_fn(|| self.first_steps.next(Instant::now(), 0, 0)));
        let totals = store.totals();
        self.ledger.moved_to_spool(self.config.slot, events.len() as u32, totals.as_ref());
        for event in events {
            self.shared.policy().forget(event.id);
            self.shared.release(&event);
        }
        self.look_at = Some(Instant::now());
        true
    }

    /// A record on its way into the spool: its bytes, its ring, and which events it is one of.
    fn decide(&self, entry: &Entry, place: Option<Place>) -> Option<Decided> {
        let Entry::Record(bytes) = entry else { return None };
        let record = Record::parse(bytes)?;
        let ring = place.map(|place| u64::from(place.segment));
        // A record that says for how many it stands is decided.
        let repeat =
            if record.repeated() > 1 { Repeat::Single } else { self.repeats.decide(&record) };
        Some(match repeat {
            Repeat::Single => Decided { bytes: bytes.clone(), ring, merge: None },
            Repeat::Merged { key, until_ns, user } => {
                let bytes = match user {
                    Some(_) => record.standing_for(1, user).into(),
                    None => bytes.clone(),
                };
                Decided { bytes, ring, merge: Some(Merge { key, until_ns }) }
            }
        })
    }

    fn intake<'a>(&'a self, decided: &'a Decided) -> Option<Intake<'a>> {
        let view = self.config.privacy.view(Record::parse(&decided.bytes)?);
        Some(Intake { view, ring: decided.ring, merge: decided.merge })
    }

    /// Hands over what is in the spool, as there is room, and what is in memory behind it. Returns when
    /// to look again.
    fn send_spooled(
        &mut self,
        inbox: &Inbox,
        store: &Spool,
        progressed: bool,
        now: Instant,
    ) -> Option<Duration> {
        let (asked, any) = self.any_others;
        if now - asked >= if any { OTHERS } else { ANY_OTHERS } {
            self.any_others = (now, !self.ledger.is_alone() || store.is_shared());
            // Also where there are none: an administrator may have changed it.
            self.look_at = Some(now);
        }
        let others = if self.any_others.1 { OTHERS } else { ANY_OTHERS };
        let reads = self.look_at.is_some_and(|at| at <= now) || lock(&self.shared.held).is_low;
        let look = self.look_at.map(|at| at.saturating_duration_since(now));
        let writes = store.unwritten();
        if !reads && !progressed && writes != Some(Duration::ZERO) {
            return [look, writes, Some(others)].into_iter().flatten().min();
        }
        let (expired, again) = store.maintain(now);
        self.spool_expired += expired;
        self.show_spool(store);
        if !reads {
            return [look, again, Some(others)].into_iter().flatten().min();
        }
        let totals = store.totals();
        let read = if store.may_send() { self.read_spool(store) } else { Some(false) };
        if read.is_some() {
            self.last_read = now;
        }
        self.show_waiting(inbox, store, now);
        if store.fault().is_none() {
            inbox.works();
        }
        // What is in memory, because the spool takes nothing, comes behind what is in the spool, unless that
        // cannot even be opened, or not be read for a while.
        if self.retry_at.is_some()
            && (read == Some(true) || store.is_shut() || now - self.last_read >= UNREAD)
        {
            self.send_memory(inbox);
        }
        lock(&self.shared.held).refilled();
        let is_over = totals.is_some_and(|totals| totals.pending == 0) && read == Some(true);
        let look = match store.next_due() {
            _ if is_over && !inbox.has_new() => None,
            // Nothing but failed logins that wait.
            Some(due) if read == Some(true) && self.shared.is_empty() => Some(due),
            _ => Some(NO_PROGRESS),
        };
        self.look_at = [look, again].into_iter().flatten().min().map(|after| now + after);
        [look, again, Some(others)].into_iter().flatten().min()
    }

    /// Shows what the spool counts and keeps.
    fn show_spool(&self, store: &Spool) {
        let slot = self.config.slot;
        if let Some(totals) = store.totals() {
            self.ledger.show_stored(slot, &totals);
        }
        if let Some(SetAside { reasons, last }) = store.set_aside() {
            self.ledger.show_reasons(slot, &reasons);
            self.ledger.list_spooled(slot, &last);
        }
    }

    /// Shows and says that what is in the spool cannot be sent, because another process has the right to.
    fn show_waiting(&mut self, inbox: &Inbox, store: &Spool, now: Instant) {
        let fault =
            store.waits_for().filter(|_| store.totals().is_some_and(|totals| totals.pending > 0));
        let (is_shown, said) = &mut self.waiting;
        match fault {
            Some(fault) => {
                *is_shown = true;
                self.ledger.show(self.config.slot, State::Waiting, Some(fault));
                if said.may(now) {
                    let note = "its lock is not to be had, events wait in it until another process sends \
                                them or lets go";
                    inbox.log(Level::Error, &format!("spool: {fault}: {note}"));
                }
            }
            None if mem::take(is_shown) => {
                self.ledger.show(self.config.slot, State::Ok, None);
                inbox.log(Level::Notice, "spool: its lock is to be had again");
            }
            None => {}
        }
    }

    /// Hands over what is in the spool, as there is room. Returns whether that was all, or nothing when
    /// it cannot be read.
    fn read_spool(&mut self, store: &Spool) -> Option<bool> {
        loop {
            let mut room = self.room();
            let mut bytes = WINDOW_BYTES.saturating_sub(self.shared.stored_bytes.load(Relaxed));
            if bytes == 0 && !self.shared.is_empty() {
                // The highest ranks always find some room.
                room[Rank::Three.place()..].fill(0);
                bytes = RESERVED_BYTES;
            }
            if room == [0; Rank::ALL.len()] {
                return Some(false);
            }
            let span = self.config.interval + COMMIT;
            let events = store.take(room, bytes, span)?;
            let is_all = events.is_empty();
            self.send_stored(events);
            if is_all {
                // Unless it is the room that is missing.
                return Some(room.iter().all(|left| *left > 0));
            }
        }
    }

    fn send_stored(&self, events: Vec<Stored>) {
        self.shared.inbox.hold(events.len());
        let mut held = lock(&self.shared.held);
        let events = events.into_iter().map(|stored| {
            let Stored { user, rank, kind, time_ms, .. } = stored;
            let id = EventId::Stored(stored.id);
            let content = Content::Stored { trace: stored.trace, body: stored.body };
            self.shared.stored_bytes.fetch_add(content.size(), Relaxed);
            held.insert(id, HeldEvent { time_ms, stamp: None, rank });
            Event { id, user, rank, kind, content }
        });
        let events: Vec<_> = events.collect();
        drop(held);
        self.send(events);
    }

    /// No event comes any more.
    fn stop(&mut self) {
        if let Some(store) = &self.store {
            self.shared.leaving.store(true, Relaxed);
            store.hurry();
            self.retry_at = self.retry_at.map(|_| Instant::now());
        }
        self.send_failed(Instant::now());
        self.shared.policy().last_chance(Instant::now());
        self.shared.wake();
    }

    /// Shows and says what is due; returns when it is to be done again.
    fn tick(&mut self, inbox: &Inbox, now: Instant) -> Option<Duration> {
        let is_active = now - self.active < TICKS_AFTER || !self.shared.is_empty();
        let left = TICK.saturating_sub(now - self.ticked);
        if !is_active || !left.is_zero() {
            return is_active.then_some(left);
        }
        self.ticked = now;
        let slot = self.config.slot;
        let oldest = lock(&self.shared.held).events.values().map(|event| event.time_ms).min();
        if let Some(oldest) = oldest {
            self.ledger.show_oldest(slot, oldest);
        }
        self.show_drain(now);
        for (new, why) in [
            (mem::take(&mut self.spool_dropped), "the spool is full"),
            (mem::take(&mut self.spool_expired), "they were in the spool for max_age"),
        ] {
            if new > 0 {
                let total = inbox.zone().totals(slot).all_dropped();
                let text = format!("{new} events dropped, {why}; {total} in total");
                inbox.log(Level::Error, &text);
            }
        }
        self.say_rate(inbox, now);
        Some(TICK)
    }

    fn say_rate(&mut self, inbox: &Inbox, now: Instant) {
        let (since, before) = self.measured;
        let span = now - since;
        if span < RATE_SPAN {
            return;
        }
        let handed = inbox.handed();
        self.measured = (now, handed);
        let captured = (handed - before) as f64 / span.as_secs_f64();
        let Some(rate) = self.shared.policy().rate() else { return };
        if captured > rate && !self.shared.is_empty() && self.rate_said.may(now) {
            let waiting = inbox.zone().totals(self.config.slot).pending;
            inbox.log(
                Level::Warn,
                &format!(
                    "{captured:.1} events a second are captured, but only {rate:.1} a second are \
                     taken, {waiting} wait: raise the limit of the server (Tirreno: \
                     LEAKY_BUCKET_RPS in its configuration) or \"rate\", or capture less \
                     (\"tirreno off\" in a location, \"events\" in the target)"
                ),
            );
        }
    }

    /// Shows how long what is pending will take at the present rate.
    fn show_drain(&mut self, now: Instant) {
        let (since, before) = self.delivered;
        let span = now - since;
        if span < RATE_SPAN {
            return;
        }
        let totals = self.shared.inbox.zone().totals(self.config.slot);
        let rate = totals.delivered.saturating_sub(before) as f64 / span.as_secs_f64();
        self.delivered = (now, totals.delivered);
        let seconds = (rate > 0.0).then(|| (totals.pending as f64 / rate).ceil() as u64);
        self.ledger.show_drain(self.config.slot, seconds);
    }
}
