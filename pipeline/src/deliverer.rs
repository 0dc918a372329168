//! The threads of one worker: stand for election, and while elected collect from the rings of all
//! workers and deliver to all targets.
//!
//! Exactly one worker delivers at a time. One that is about to exit makes room as soon as another
//! wants to deliver; where none does, because all of nginx stops, it goes on to the end. Whoever stops
//! gives the election on first, then tries to deliver what it has taken out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use crate::clock::monotonic_ns;
use crate::config::TargetConfig;
use crate::journal::{Journal, Level};
use crate::record::Record;
use crate::ring::Collector;
use crate::target::{Connect, Event, Target};
use crate::zone::{DropReason, Ledger, MAX_TARGETS, Term, Zone};

/// How often the deliverer looks for records: nobody wakes it, so that capturing costs no system call.
const POLL: Duration = Duration::from_millis(25);
/// A record is read at the earliest this long after its capture: by then those that other workers
/// captured before it are published too.
const HOLD_BACK_NS: u64 = 5_000_000;
/// How often a worker that stays stands for election, and one that is about to exit: it leaves the
/// time to the others.
const STAND: Duration = Duration::from_millis(100);
const STAND_EXITING: Duration = Duration::from_millis(1500);
/// The pause after the deliverer failed.
const RESTART: Duration = Duration::from_secs(1);
/// How often what is due is shown and said.
const TICK: Duration = Duration::from_secs(1);
/// What `finish` waits beyond the time-outs of the targets.
const GRACE: Duration = Duration::from_millis(300);

/// The threads of one worker.
#[derive(Debug)]
pub struct Deliverer {
    control: Arc<Control>,
    thread: JoinHandle<()>,
    /// The longest `shutdown_timeout`.
    timeout: Duration,
}

#[derive(Debug, Default)]
struct Control {
    /// The process will exit, maybe only after hours.
    exiting: AtomicBool,
    /// The process exits now; at most so much of each `shutdown_timeout` is left.
    stop: Mutex<Option<Duration>>,
    ended: Mutex<bool>,
    ended_changed: Condvar,
}

impl Control {
    fn stop(&self) -> Option<Duration> {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the threads work with.
#[derive(Clone)]
pub struct Setup {
    /// The shared memory.
    pub zone: Zone,
    /// The configured targets.
    pub targets: Arc<[TargetConfig]>,
    /// Takes messages for the error log.
    pub journal: Journal,
    /// Makes connections; `None`: those that the targets' configurations name.
    pub connect: Option<Arc<Connect>>,
}

impl Deliverer {
    /// Starts the thread, with all signals blocked: they belong to nginx's main thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let control = Arc::new(Control::default());
        let timeout = setup.targets.iter().map(|t| t.shutdown_timeout).max().unwrap_or_default();
        let inner = control.clone();
        let thread = with_signals_blocked(|| {
            thread::Builder::new().name("tirreno".into()).spawn(move || {
                lower_priority();
                Worker { setup, control: &inner }.run();
                *inner.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
                inner.ended_changed.notify_all();
            })
        })?;
        Ok(Self { control, thread, timeout })
    }

    /// The process will exit, once its last connection is closed.
    pub fn exiting(&self) {
        self.control.exiting.store(true, Relaxed);
    }

    /// The process exits now: delivers what is only in memory, within each target's
    /// `shutdown_timeout` and `limit`, and returns.
    pub fn finish(self, limit: Option<Duration>) {
        let limit = limit.unwrap_or(Duration::MAX);
        self.exiting();
        *self.control.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(limit);
        self.thread.thread().unpark();
        let ended = self.control.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.timeout.min(limit) + GRACE;
        let waited = self.control.ended_changed.wait_timeout_while(ended, wait, |ended| !*ended);
        let ended = waited.is_ok_and(|(ended, _)| *ended);
        if ended {
            let _ = self.thread.join();
        }
    }
}

struct Worker<'a> {
    setup: Setup,
    control: &'a Control,
}

impl Worker<'_> {
    fn run(&self) {
        let zone = self.setup.zone;
        let mut stopped_since = None;
        loop {
            if let Some(limit) = self.control.stop() {
                let since = *stopped_since.get_or_insert_with(Instant::now);
                if !zone.has_records() || since.elapsed() > limit.min(STAND_EXITING) {
                    return;
                }
                zone.ask_flush();
            }
            let exiting = self.control.exiting.load(Relaxed);
            let leave_to_others = exiting && zone.election().is_wanted();
            match zone.election().stand().filter(|_| !leave_to_others) {
                Some(term) => {
                    if catch_unwind(AssertUnwindSafe(|| self.deliver(term))).is_err() {
                        self.setup
                            .journal
                            .log(Level::Error, "the deliverer failed and starts again");
                        thread::park_timeout(RESTART);
                    }
                }
                None => {
                    if !exiting {
                        zone.election().want();
                    }
                    let stopping = self.control.stop().is_some();
                    let calm = exiting && !stopping;
                    let pause = if calm { STAND_EXITING } else { STAND };
                    thread::park_timeout(if stopping { POLL } else { pause });
                }
            }
        }
    }

    /// Delivers until the process stops or another one takes over.
    fn deliver(&self, term: Term<'_>) {
        let Setup { zone, targets, journal, connect } = &self.setup;
        let before = targets.iter().map(|t| zone.totals(t.slot).dropped).collect::<Vec<_>>();
        let Some(ledger) = zone.enlist(std::process::id()) else {
            drop(term);
            thread::park_timeout(RESTART);
            return;
        };
        let _leave = Leave(ledger);
        let mut running = Vec::new();
        for (target, reported) in targets.iter().zip(before) {
            match Target::start(target, connect.clone(), (*zone, ledger), reported, journal) {
                Ok(target) => running.push(target),
                Err(error) => {
                    journal.log(Level::Error, format!("a thread cannot be started: {error}"));
                    drop(term);
                    thread::park_timeout(RESTART);
                    return;
                }
            }
        }
        let mut collection = Collection::new(*zone, ledger, running, journal.clone(), targets);

        let mut next_tick = Instant::now() + TICK;
        let limit = loop {
            let now = Instant::now();
            if now >= next_tick {
                zone.bury_couriers();
                collection.targets.iter_mut().for_each(|t| t.tick(now));
                next_tick = now + TICK;
            }
            if let Some(limit) = self.control.stop() {
                collection.collect(u64::MAX);
                break limit;
            }
            if self.control.exiting.load(Relaxed) && zone.election().is_wanted() {
                break Duration::MAX;
            }
            collection.collect_if_due();
            thread::park_timeout(POLL);
        };
        drop(term);

        let now = Instant::now();
        let deadlines: Vec<_> = collection
            .targets
            .iter_mut()
            .map(|target| {
                let deadline = now + target.shutdown_timeout().min(limit);
                target.stop(deadline);
                deadline
            })
            .collect();
        for (target, deadline) in collection.targets.into_iter().zip(deadlines) {
            target.finish(deadline);
        }
    }
}

/// Gives the deliverer's row of the accounts back, however delivering ends.
struct Leave(Ledger);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The way from the segments to the targets' queues.
struct Collection {
    collector: Collector,
    zone: Zone,
    ledger: Ledger,
    targets: Vec<Target>,
    journal: Journal,
    interval_ns: u64,
    batch_size: usize,
    next_id: u64,
}

impl Collection {
    fn new(
        zone: Zone,
        ledger: Ledger,
        targets: Vec<Target>,
        journal: Journal,
        configs: &[TargetConfig],
    ) -> Self {
        let interval = configs.iter().map(|t| t.interval).min().unwrap_or_default();
        let batch_size = configs.iter().map(|t| t.batch_size).min().unwrap_or(1);
        Self {
            collector: Collector::new(zone),
            zone,
            ledger,
            targets,
            journal,
            interval_ns: interval.as_nanos() as u64,
            batch_size,
            next_id: 0,
        }
    }

    /// Collects when a batch is full, an event has waited for the interval, or a worker asks for it.
    fn collect_if_due(&mut self) {
        let now = monotonic_ns();
        let waited = now.saturating_sub(self.interval_ns);
        if self.zone.flush_asked() || self.collector.is_due(self.batch_size, waited) {
            self.collect(now - HOLD_BACK_NS);
        }
    }

    /// Collects all that was captured before the stamp `before`.
    fn collect(&mut self, before: u64) {
        loop {
            let batch = self.collector.take(before, self.batch_size);
            if batch.damaged > 0 {
                self.journal.log(Level::Error, "a segment of tirreno_zone is damaged");
            }
            for (slot, count) in batch.per_target.iter().enumerate().filter(|(_, n)| **n > 0) {
                self.ledger.collected(slot, *count);
            }
            let full = batch.records.len() == self.batch_size;
            for bytes in batch.records {
                self.hand_over(bytes.into());
            }
            if !full {
                return;
            }
        }
    }

    fn hand_over(&mut self, bytes: Arc<[u8]>) {
        let Some(record) = Record::parse(&bytes) else { return };
        let (kind, time_ms, user) = (record.kind(), record.time_ms(), record.user_key());
        self.next_id += 1;
        for slot in (0..MAX_TARGETS).filter(|slot| record.targets() & (1 << slot) != 0) {
            match self.targets.iter_mut().find(|t| t.slot() == slot) {
                Some(target) => {
                    let event = Event { id: self.next_id, user, record: bytes.clone() };
                    target.offer(event, kind, time_ms);
                }
                None => self.ledger.dropped(slot, 1, DropReason::TargetGone),
            }
        }
    }
}

/// Runs `f` with all signals blocked; a thread that it starts inherits that.
fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are initialized by the calls that fill them.
    unsafe {
        let mut all = mem::zeroed::<libc::sigset_t>();
        let mut before = mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        result
    }
}

/// Lets the event loop go first on a busy machine. Each of the module's threads calls it for itself.
pub(crate) fn lower_priority() {
    const NICE: libc::c_int = 5;
    // SAFETY: no memory is passed. On Linux the priority of a thread id is that thread's alone.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid) as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread, NICE);
    }
}
