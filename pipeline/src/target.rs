//! One target inside the deliverer: the bounded queue before its connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Sender, bounded};

use crate::config::TargetConfig;
use crate::event::EventType;
use crate::gate::{Gate, GateConfig};
use crate::http::{Addresses, Outbound, Tirreno};
use crate::journal::{Journal, Level, Once};
use crate::lane::Lane;
use crate::record::MIN_RECORD;
use crate::zone::{DropReason, Ledger, Zone};

/// Above this share of the queue, `page_*` events are refused, so that logins find room.
const PAGES_UP_TO: f64 = 0.8;
/// Over this time a rate of events is measured …
const RATE_SPAN: Duration = Duration::from_secs(10);
/// … and one above the target's is said this often.
const RATE_REPEAT: Duration = Duration::from_secs(60);

/// An event on its way to a connection.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the order of capture, unique within a deliverer.
    pub id: u64,
    /// Tells users apart.
    pub user: u64,
    /// The record, shared by the targets that get it.
    pub record: Arc<[u8]>,
}

/// Makes a target's connections; tests put scripted ones in their place.
pub type Connect = dyn Fn() -> Box<dyn Outbound> + Send + Sync;

/// What a target's connections share.
pub struct Shared {
    gate: Mutex<Gate>,
    gate_changed: Condvar,
    /// The events that are queued, kept or in flight, with the time they were captured.
    held: Mutex<BTreeMap<u64, i64>>,
    held_less: Condvar,
    bytes: AtomicUsize,
    closed: AtomicBool,
    /// When this target gives up, once it stops.
    deadline: Mutex<Option<Instant>>,
    timeout: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes guard is valid after each statement, also where a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The target's state.
    pub fn gate(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }

    /// Waits until the state changed, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let gate = self.gate();
        if !self.is_closed() {
            let _ = self.gate_changed.wait_timeout(gate, limit);
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

    /// How long an attempt may take that starts now.
    pub fn limit(&self) -> Duration {
        let left = lock(&self.deadline).map(|d| d.saturating_duration_since(Instant::now()));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }

    /// An event's fate is decided and counted.
    pub fn release(&self, event: &Event) {
        self.bytes.fetch_sub(event.record.len(), Relaxed);
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
    label: String,
    shared: Arc<Shared>,
    lanes: Vec<Sender<Event>>,
    threads: Vec<JoinHandle<()>>,
    zone: Zone,
    ledger: Ledger,
    journal: Journal,
    reported: [u64; DropReason::ALL.len()],
    /// When the present measurement of the rate began, and the events since.
    measured: (Instant, u64),
    rate_said: Once,
}

impl Target {
    /// Starts the target's connections. `reported` are the drops that were logged before.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        config: &TargetConfig,
        connect: Option<Arc<Connect>>,
        (zone, ledger): (Zone, Ledger),
        reported: [u64; DropReason::ALL.len()],
        journal: &Journal,
    ) -> io::Result<Self> {
        let tirreno = Arc::new(config.tirreno.clone());
        let label = format!("target \"{}\" {}", config.name, tirreno.endpoint.sensor());
        let gate = GateConfig {
            label: label.clone(),
            accept_200: tirreno.accept_200,
            rate: tirreno.rate,
            timeout: tirreno.timeout,
        };
        let now = Instant::now();
        let shared = Arc::new(Shared {
            gate: Mutex::new(Gate::new(gate, ledger, config.slot, journal.clone(), now)),
            gate_changed: Condvar::new(),
            held: Mutex::default(),
            held_less: Condvar::new(),
            bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            deadline: Mutex::new(None),
            timeout: tirreno.timeout,
        });
        let connections = tirreno.connections;
        let connect = connect.unwrap_or_else(|| {
            let addresses = Addresses::default();
            Arc::new(move || Box::new(Tirreno::new(tirreno.clone(), addresses.clone())) as _)
        });
        let mut target = Self {
            config: config.clone(),
            label,
            shared: shared.clone(),
            lanes: Vec::new(),
            threads: Vec::new(),
            zone,
            ledger,
            journal: journal.clone(),
            reported,
            measured: (now, 0),
            rate_said: Once::every(RATE_REPEAT),
        };
        for i in 0..connections {
            // The queue's bounds are checked before: a lane never blocks the collector.
            let (sender, receiver) =
                bounded(config.queue_events.min(config.queue_bytes / MIN_RECORD + 1));
            let lane = Lane::new(shared.clone(), receiver, connect.clone(), journal.clone());
            let thread = thread::Builder::new().name(format!("tirreno-{i}"));
            target.threads.push(thread.spawn(move || lane.run())?);
            target.lanes.push(sender);
        }
        Ok(target)
    }

    /// Its account in the zone.
    pub fn slot(&self) -> usize {
        self.config.slot
    }

    /// Queues an event that was counted as collected, or drops it, counted.
    pub fn offer(&mut self, event: Event, kind: EventType, time_ms: i64) {
        self.measured.1 += 1;
        let (most, most_bytes) = if kind.is_page() {
            let share = |n: usize| (n as f64 * PAGES_UP_TO) as usize;
            (share(self.config.queue_events).max(1), share(self.config.queue_bytes))
        } else {
            (self.config.queue_events, self.config.queue_bytes)
        };
        let size = event.record.len();
        let lane = (event.user % self.lanes.len() as u64) as usize;
        let id = event.id;
        let fits = {
            let mut held = lock(&self.shared.held);
            let fits = held.len() < most && self.shared.bytes.load(Relaxed) + size <= most_bytes;
            if fits {
                held.insert(id, time_ms);
                self.shared.bytes.fetch_add(size, Relaxed);
            }
            fits
        };
        if fits {
            if let Err(error) = self.lanes[lane].try_send(event) {
                self.shared.release(&error.into_inner());
                self.ledger.dropped(self.config.slot, 1, DropReason::Internal);
            }
        } else {
            self.ledger.dropped(self.config.slot, 1, DropReason::QueueFull);
        }
    }

    /// Shows and says what is due; once a second.
    pub fn tick(&mut self, now: Instant) {
        let oldest = lock(&self.shared.held).first_key_value().map_or(0, |(_, time)| *time);
        self.ledger.show_oldest(self.config.slot, oldest);
        self.report_drops();

        let (since, count) = self.measured;
        let span = now - since;
        if span < RATE_SPAN {
            return;
        }
        self.measured = (now, 0);
        let captured = count as f64 / span.as_secs_f64();
        let Some(rate) = self.shared.gate().rate() else { return };
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

    fn report_drops(&mut self) {
        let dropped = self.zone.totals(self.config.slot).dropped;
        let total: u64 = dropped.iter().sum();
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
        self.lanes.clear();
        self.shared.gate().last_chance(Instant::now());
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

    fn close(&mut self, reason: DropReason) -> u32 {
        let rest = self.shared.gate().close(reason);
        self.shared.closed.store(true, Relaxed);
        self.lanes.clear();
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
        self.journal.log(level, format!("{}: {text}", self.label));
    }
}

impl Drop for Target {
    /// Counts what a deliverer that failed has held.
    fn drop(&mut self) {
        self.close(DropReason::Internal);
    }
}
