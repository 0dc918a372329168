//! One target inside the deliverer: the bounded queue before its connections.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Sender, bounded};

use crate::capture::login::Attempt;
use crate::config::{TargetConfig, TirrenoConfig};
use crate::delivery::http::Addresses;
use crate::delivery::spool::{Intake, Spool, Stored};
use crate::log_queue::{Level, LogQueue, Once};
use crate::privacy::Privacy;
use crate::record::{MIN_RECORD, Record};
use crate::shm::zone::{DropReason, Ledger, Zone};
use crate::tirreno::connection::Connection;
use crate::tirreno::form;
use crate::tirreno::http::{Outbound, Post, Tirreno};
use crate::tirreno::policy::{Book, EventId, Policy, PolicyConfig};

/// Above this share of the queue, `page_*` events are refused, so that logins find room.
const PAGES_UP_TO: f64 = 0.8;
/// Of a spool so many events, and bytes, are in memory for the connections, …
const WINDOW: usize = 2048;
const WINDOW_BYTES: usize = 4 << 20;
/// … read so many at a time.
const CHUNK: usize = 512;
/// Beyond its interval, what another instance of nginx needs at most to commit what it captured.
const COMMIT: Duration = Duration::from_secs(1);
/// How long events in memory wait for those in a spool that cannot be read.
const UNREAD: Duration = Duration::from_secs(3);
/// Of the queue in memory so great a part may be failed logins that wait: one of that many.
const FAILED: usize = 4;
/// So many more there may be of those that waited, or came late.
const DUE: usize = 512;
/// The longest wait without a look at the state.
const WAKE: Duration = Duration::from_millis(250);
/// Over this time a rate of events is measured …
const RATE_SPAN: Duration = Duration::from_secs(10);
/// … and one above the target's is said this often.
const RATE_REPEAT: Duration = Duration::from_secs(60);

/// An event on its way to a connection.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the order of capture, unique within a deliverer.
    pub id: EventId,
    /// Tells users apart.
    pub user: u64,
    /// What it is.
    pub content: Content,
}

/// What an event is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A record, shared by the targets that get it.
    Record(Arc<[u8]>),
    /// An event of the spool.
    Stored {
        /// The trace id.
        trace: String,
        /// The form.
        body: String,
    },
}

impl Content {
    /// What is sent to a target with this `privacy`; of the spool, what was put into it.
    pub fn post(&self, privacy: &Privacy) -> Post<'_> {
        match self {
            Self::Stored { trace, body } => Post { trace, body: body.as_str().into() },
            Self::Record(bytes) => match Record::parse(bytes) {
                Some(record) => {
                    let body = form::encode(&privacy.view(record));
                    Post { trace: record.trace(), body: body.into() }
                }
                None => Post { trace: "", body: "".into() },
            },
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Record(bytes) => bytes.len(),
            Self::Stored { trace, body } => trace.len() + body.len(),
        }
    }
}

impl Event {
    fn is_stored(&self) -> bool {
        matches!(self.id, EventId::Stored(_))
    }
}

/// Makes a target's connections; tests put scripted ones in their place.
pub type Connect = dyn Fn() -> Box<dyn Outbound> + Send + Sync;

/// What a target's connections share.
pub struct Shared {
    policy: Mutex<Policy>,
    gate_changed: Condvar,
    /// The events that are queued, kept or in flight, with the time they were captured.
    held: Mutex<BTreeMap<EventId, i64>>,
    held_less: Condvar,
    bytes: AtomicUsize,
    closed: AtomicBool,
    /// The next deliverer sends what is in the spool.
    leaving: AtomicBool,
    /// When this target gives up, once it stops.
    deadline: Mutex<Option<Instant>>,
    timeout: Duration,
    privacy: Privacy,
    store: Option<Arc<Spool>>,
    /// The most events that can be held, apart from those that wait for the spool.
    most: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes guard is valid after each statement, also where a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The target's state.
    pub fn policy(&self) -> MutexGuard<'_, Policy> {
        lock(&self.policy)
    }

    /// Waits until the state changed, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let policy = self.policy();
        if !self.is_closed() {
            // Whoever called `wake` just before is not missed for long.
            let _ = self.gate_changed.wait_timeout(policy, limit.min(WAKE));
        }
    }

    /// The state may have changed: whoever waits looks again.
    pub fn wake(&self) {
        self.gate_changed.notify_all();
    }

    /// Whether nothing is sent any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Whether this event is not to be sent any more: it is in the spool, for the next deliverer.
    pub fn leaves(&self, event: &Event) -> bool {
        event.is_stored() && self.leaving.load(Relaxed)
    }

    /// Whether this event was deleted from the spool since it was read.
    pub fn is_gone(&self, event: &Event) -> bool {
        match (event.id, &self.store) {
            (EventId::Stored(id), Some(store)) => store.is_gone(id),
            _ => false,
        }
    }

    /// Whether so many events are held that others may soon find no room.
    pub fn is_crowded(&self) -> bool {
        self.len() * 2 >= self.most
    }

    /// What the target is not to know.
    pub fn privacy(&self) -> &Privacy {
        &self.privacy
    }

    /// How long an attempt may take that starts now.
    pub fn limit(&self) -> Duration {
        let left = lock(&self.deadline).map(|d| d.saturating_duration_since(Instant::now()));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }

    /// An event's fate is decided and counted.
    pub fn release(&self, event: &Event) {
        self.bytes.fetch_sub(event.content.size(), Relaxed);
        lock(&self.held).remove(&event.id);
        self.held_less.notify_all();
    }

    /// How many events are held.
    pub fn len(&self) -> usize {
        lock(&self.held).len()
    }

    /// Whether no event is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wait_empty(&self, deadline: Instant) {
        let mut held = lock(&self.held);
        while !held.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.held_less.wait_timeout(held, left);
            held = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The collector's side of a target.
pub struct Target {
    config: TargetConfig,
    login_fail_delay: Duration,
    label: String,
    shared: Arc<Shared>,
    store: Option<Arc<Spool>>,
    /// Events that could not be spooled yet. They are held.
    unspooled: VecDeque<Event>,
    /// Failed logins in memory, until when each waits for a good one, and which. They are held.
    failed: VecDeque<(Instant, u64, Event)>,
    failed_bytes: usize,
    /// When it could be read last.
    last_read: Instant,
    /// What the spool had no room for, or was too old, since it was last said.
    spool_dropped: u64,
    spool_expired: u64,
    queues: Vec<Sender<Event>>,
    threads: Vec<JoinHandle<()>>,
    zone: Zone,
    ledger: Ledger,
    log: LogQueue,
    reported: [u64; DropReason::ALL.len()],
    /// When the present measurement of the rate began, and the events since.
    measured: (Instant, u64),
    /// The same for what was delivered.
    delivered: (Instant, u64),
    rate_said: Once,
}

impl Target {
    /// Starts the target's connections. `reported` are the drops that were logged before.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        config: &TargetConfig,
        tirreno: &TirrenoConfig,
        connect: Option<Arc<Connect>>,
        (zone, ledger): (Zone, Ledger),
        reported: [u64; DropReason::ALL.len()],
        log: &LogQueue,
    ) -> io::Result<Self> {
        let tirreno = Arc::new(tirreno.clone());
        let label = format!("target \"{}\" {}", config.name, tirreno.endpoint.sensor());
        let policy = PolicyConfig {
            label: label.clone(),
            accept_200: tirreno.accept_200,
            rate: tirreno.rate,
            timeout: tirreno.timeout,
        };
        let now = Instant::now();
        let url = tirreno.endpoint.sensor().to_string();
        let spool = config.spool.as_ref();
        let store = spool
            .map(|s| Arc::new(Spool::new(s, &config.name, &url, zone.instance(), &label, log)));
        let book = Book { ledger, slot: config.slot, store: store.clone() };
        let shared = Arc::new(Shared {
            policy: Mutex::new(Policy::new(policy, book, log.clone(), now)),
            gate_changed: Condvar::new(),
            held: Mutex::default(),
            held_less: Condvar::new(),
            bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            deadline: Mutex::new(None),
            timeout: tirreno.timeout,
            privacy: config.privacy.clone(),
            store: store.clone(),
            most: if store.is_some() { WINDOW } else { config.queue_events },
        });
        let connections = tirreno.connections;
        let login_fail_delay = tirreno.login_fail_delay;
        let connect = connect.unwrap_or_else(|| {
            let addresses = Addresses::default();
            Arc::new(move || Box::new(Tirreno::new(tirreno.clone(), addresses.clone())) as _)
        });
        let mut target = Self {
            config: config.clone(),
            login_fail_delay,
            label,
            shared: shared.clone(),
            store,
            unspooled: VecDeque::new(),
            failed: VecDeque::new(),
            failed_bytes: 0,
            last_read: now,
            spool_dropped: 0,
            spool_expired: 0,
            queues: Vec::new(),
            threads: Vec::new(),
            zone,
            ledger,
            log: log.clone(),
            reported,
            measured: (now, 0),
            delivered: (now, zone.totals(config.slot).delivered),
            rate_said: Once::every(RATE_REPEAT),
        };
        for i in 0..connections {
            // The queue's bounds are checked before: a connection never blocks the collector.
            let (sender, receiver) = bounded(
                config.queue_events.min(config.queue_bytes / MIN_RECORD + 1) + WINDOW + DUE,
            );
            let connection =
                Connection::new(shared.clone(), receiver, connect.clone(), log.clone());
            let thread = thread::Builder::new().name(format!("tirreno-{i}"));
            target.threads.push(thread.spawn(move || connection.run())?);
            target.queues.push(sender);
        }
        Ok(target)
    }

    /// Its account in the zone.
    pub fn slot(&self) -> usize {
        self.config.slot
    }

    /// Queues a record that was counted as collected, or drops it, counted.
    pub fn offer(&mut self, id: EventId, bytes: &Arc<[u8]>, record: &Record<'_>) {
        self.measured.1 += 1;
        let (most, most_bytes) = if record.kind().is_page() {
            let share = |n: usize| (n as f64 * PAGES_UP_TO) as usize;
            (share(self.config.queue_events).max(1), share(self.config.queue_bytes))
        } else {
            (self.config.queue_events, self.config.queue_bytes)
        };
        let fits = {
            let mut held = lock(&self.shared.held);
            let held_bytes = self.shared.bytes.load(Relaxed) + bytes.len();
            let fits = held.len() < most && held_bytes <= most_bytes;
            if fits {
                held.insert(id, record.time_ms());
                self.shared.bytes.fetch_add(bytes.len(), Relaxed);
            }
            fits
        };
        if !fits {
            self.ledger.dropped(self.config.slot, 1, DropReason::QueueFull);
            return;
        }
        let user = self.config.privacy.view(*record).user_key();
        let event = Event { id, user, content: Content::Record(bytes.clone()) };
        let delay = self.login_fail_delay;
        match Attempt::of(record) {
            _ if self.store.is_some() => self.unspooled.push_back(event),
            Some(Attempt::Failed(attempt)) if !delay.is_zero() => {
                self.failed.push_back((Instant::now() + delay, attempt, event));
                self.failed_bytes += bytes.len();
                self.send_failed(Instant::now());
            }
            Some(Attempt::Good(attempt)) => {
                self.withdraw(attempt);
                self.send(event);
            }
            _ => self.send(event),
        }
    }

    /// A login was good: the failed one directly before it was only its first half.
    fn withdraw(&mut self, attempt: u64) {
        let before = self.failed.iter().rposition(|(_, failed, _)| *failed == attempt);
        if let Some((.., event)) = before.and_then(|place| self.failed.remove(place)) {
            self.failed_bytes -= event.content.size();
            self.shared.release(&event);
            self.ledger.withdrawn(self.config.slot);
        }
    }

    /// Sends the failed logins that have waited until `now`, and those that leave too little room for
    /// other events.
    fn send_failed(&mut self, now: Instant) {
        let Self { config, .. } = self;
        let (most, most_bytes) = (config.queue_events / FAILED, config.queue_bytes / FAILED);
        while let Some((due, ..)) = self.failed.front()
            && (*due <= now || self.failed.len() > most || self.failed_bytes > most_bytes)
            && let Some((.., event)) = self.failed.pop_front()
        {
            self.failed_bytes -= event.content.size();
            self.send(event);
        }
    }

    /// Hands a held event to its user's connection.
    fn send(&mut self, event: Event) {
        let connection = (event.user % self.queues.len() as u64) as usize;
        if let Err(error) = self.queues[connection].try_send(event) {
            let event = error.into_inner();
            self.shared.release(&event);
            self.shared.policy().give_up(event.id, DropReason::Internal);
        }
    }

    /// Commits this target's part of a batch to its spool. Where that is not possible, or there is no
    /// spool, the events are the caller's: `false`.
    pub fn spool(&mut self, batch: &[Record<'_>]) -> bool {
        let Some(store) = &self.store else { return false };
        let slot = self.config.slot;
        let ours: Vec<_> = batch
            .iter()
            .filter(|record| record.targets() & (1 << slot) != 0)
            .map(|record| Intake::from(self.config.privacy.view(*record)))
            .collect();
        if ours.is_empty() {
            return true;
        }
        // Those that wait longer come first.
        if !self.unspooled.is_empty() {
            return false;
        }
        let Some(appended) = store.append(&ours, self.login_fail_delay) else {
            return false;
        };
        self.spool_dropped += appended.dropped;
        self.measured.1 += ours.len() as u64;
        true
    }

    /// Moves events between memory, spool and connections, as there is room and the spool works.
    pub fn feed(&mut self) {
        self.send_failed(Instant::now());
        let Some(store) = self.store.clone() else { return };
        self.spool_unspooled(&store);
        self.spool_expired += store.maintain(Instant::now()).0;
        if let Some(totals) = store.totals() {
            self.ledger.show_stored(self.config.slot, &totals);
        }
        let read = if store.may_send() { self.read_spool(&store) } else { Some(false) };
        let now = Instant::now();
        if read.is_some() {
            self.last_read = now;
        }
        // What is in memory comes behind what is in the spool, unless that cannot even be opened, or not
        // be read for a while.
        if read == Some(true) || store.is_shut() || now - self.last_read >= UNREAD {
            self.send_unspooled();
        }
    }

    /// Hands over what is in the spool, as there is room. Returns whether that was all, or nothing when
    /// it cannot be read.
    fn read_spool(&mut self, store: &Spool) -> Option<bool> {
        let room = self.room(0);
        let bytes = WINDOW_BYTES.saturating_sub(self.shared.bytes.load(Relaxed));
        if room == 0 || bytes == 0 && self.in_lanes() > 0 {
            return Some(false);
        }
        let span = self.config.interval + COMMIT;
        // The highest rank always finds some room.
        let events = store.take([DUE, room, room, room], bytes, span)?;
        let is_all = events.len() < room;
        events.into_iter().for_each(|stored| self.send_stored(stored));
        Some(is_all)
    }

    /// How many events of the spool may be read now, where `more` than the window are allowed.
    fn room(&self, more: usize) -> usize {
        (WINDOW + more).saturating_sub(self.in_lanes()).min(CHUNK)
    }

    fn in_lanes(&self) -> usize {
        self.shared.len().saturating_sub(self.unspooled.len())
    }

    fn send_stored(&mut self, stored: Stored) {
        let id = EventId::Stored(stored.id);
        let content = Content::Stored { trace: stored.trace, body: stored.body };
        lock(&self.shared.held).insert(id, stored.time_ms);
        self.shared.bytes.fetch_add(content.size(), Relaxed);
        self.send(Event { id, user: stored.user, content });
    }

    fn spool_unspooled(&mut self, store: &Spool) {
        if self.unspooled.is_empty() {
            return;
        }
        let records: Vec<_> = self
            .unspooled
            .iter()
            .filter_map(|event| match &event.content {
                Content::Record(bytes) => Record::parse(bytes),
                Content::Stored { .. } => None,
            })
            .map(|record| Intake::from(self.config.privacy.view(record)))
            .collect();
        let delay = self.login_fail_delay;
        let Some(appended) = store.append(&records, delay) else { return };
        self.spool_dropped += appended.dropped;
        self.ledger.moved_to_spool(self.config.slot, records.len() as u32);
        self.unspooled.drain(..).for_each(|event| self.shared.release(&event));
    }

    fn send_unspooled(&mut self) {
        while let Some(event) = self.unspooled.pop_front() {
            self.send(event);
        }
    }

    /// Shows and says what is due; once a second.
    pub fn tick(&mut self, now: Instant) {
        let oldest = lock(&self.shared.held).first_key_value().map_or(0, |(_, time)| *time);
        self.ledger.show_oldest(self.config.slot, oldest);
        self.show_drain(now);
        if let Some(store) = &self.store {
            self.ledger.show_reasons(self.config.slot, &store.reasons());
        }
        self.report_drops();

        let (since, count) = self.measured;
        let span = now - since;
        if span < RATE_SPAN {
            return;
        }
        self.measured = (now, 0);
        let captured = count as f64 / span.as_secs_f64();
        let Some(rate) = self.shared.policy().rate() else { return };
        if captured > rate && !self.shared.is_empty() && self.rate_said.may(now) {
            let waiting = self.shared.len();
            self.log(
                Level::Warn,
                format!(
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
        let totals = self.zone.totals(self.config.slot);
        let rate = totals.delivered.saturating_sub(before) as f64 / span.as_secs_f64();
        self.delivered = (now, totals.delivered);
        let seconds = (rate > 0.0).then(|| (totals.pending as f64 / rate).ceil() as u64);
        self.ledger.show_drain(self.config.slot, seconds);
    }

    fn report_drops(&mut self) {
        let totals = self.zone.totals(self.config.slot);
        let dropped = totals.dropped;
        let total: u64 = totals.all_dropped();
        for (new, why) in [
            (std::mem::take(&mut self.spool_dropped), "the spool is full"),
            (std::mem::take(&mut self.spool_expired), "they were in the spool for max_age"),
        ] {
            if new > 0 {
                self.log(Level::Error, format!("{new} events dropped, {why}; {total} in total"));
            }
        }
        for reason in DropReason::ALL {
            let new = dropped[reason as usize].saturating_sub(self.reported[reason as usize]);
            // Who shuts down says so itself.
            if new > 0 && reason != DropReason::Shutdown {
                let why = reason.text();
                self.log(Level::Error, format!("{new} events dropped, {why}; {total} in total"));
            }
        }
        self.reported = dropped;
    }

    /// No event comes any more; what is held is tried until `deadline`.
    pub fn stop(&mut self, deadline: Instant) {
        *lock(&self.shared.deadline) = Some(deadline);
        if let Some(store) = self.store.clone() {
            self.spool_unspooled(&store);
            self.shared.leaving.store(true, Relaxed);
        }
        self.send_unspooled();
        while let Some((.., event)) = self.failed.pop_front() {
            self.send(event);
        }
        self.queues.clear();
        self.shared.policy().last_chance(Instant::now());
        self.shared.wake();
    }

    /// Waits for [`stop`](Self::stop)'s deadline or the last event, and counts the rest as dropped.
    pub fn finish(mut self, deadline: Instant) {
        self.shared.wait_empty(deadline);
        let rest = self.close(DropReason::Shutdown);
        if rest > 0 {
            let why = DropReason::Shutdown.text();
            self.log(Level::Error, format!("{rest} events could not be delivered, {why}; dropped"));
        }
        self.report_drops();
    }

    /// How long a stopping process tries to deliver what it holds.
    pub fn shutdown_timeout(&self) -> Duration {
        self.config.shutdown_timeout
    }

    /// Whether nothing is left to be tried.
    pub fn is_done(&self) -> bool {
        self.shared.is_empty()
    }

    fn close(&mut self, reason: DropReason) -> u32 {
        let rest = self.shared.policy().close(reason);
        if let Some(store) = &self.store {
            store.leave();
            if let Some(totals) = store.totals() {
                self.ledger.show_stored(self.config.slot, &totals);
            }
        }
        self.shared.closed.store(true, Relaxed);
        self.queues.clear();
        self.shared.wake();
        // One that waits for an answer ends by itself when that, or its time-out, comes.
        for thread in self.threads.drain(..) {
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
        rest
    }

    fn log(&self, level: Level, text: String) {
        self.log.log(level, format!("{}: {text}", self.label));
    }
}

impl Drop for Target {
    /// Counts what a deliverer that failed has held.
    fn drop(&mut self) {
        self.close(DropReason::Internal);
    }
}
