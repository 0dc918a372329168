//! The threads of one worker: stand for election, and while elected collect from the rings of all
//! workers and deliver to all targets.
//!
//! Exactly one worker delivers at a time. One that is about to exit makes room as soon as another,
//! which will stay, wants to deliver; where none does, because all of nginx stops, it goes on to the
//! end. Whoever stops gives the election on first, then tries to deliver what it has taken out.
//!
//! A worker knows of its own exit only, and not at the same moment as the others: that another one
//! wants to deliver counts when it still does so a little later.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use crate::audit::target::Stream;
use crate::clock::monotonic_ns;
use crate::config::{Console, Destination, Sink, TargetConfig};
use crate::log_queue::{Level, LogQueue};
use crate::record::Record;
use crate::shm::ring::Collector;
use crate::shm::zone::{DropReason, Ledger, MAX_TARGETS, Term, Zone};
use crate::tirreno::policy::EventId;
use crate::tirreno::target::{Connect, Target};

/// How much less urgent than the event loop collecting is: a ring that nobody empties drops events …
const NICE: i32 = 5;
/// … and sending: what waits for it is kept. Not less than that, or a stopping nginx on a busy machine
/// would not get its last events out in time.
pub(crate) const NICE_SENDING: i32 = 10;
/// How often the deliverer looks for records: nobody wakes it, so that capturing costs no system call.
const POLL: Duration = Duration::from_millis(25);
/// The same for the end of what a stopping deliverer holds.
const POLL_FINISHING: Duration = Duration::from_millis(5);
/// A record is read at the earliest this long after its capture: by then those that other workers
/// captured before it are published too.
const HOLD_BACK_NS: u64 = 5_000_000;
/// How often a worker that stays stands for election, and one that is about to exit: it leaves the
/// time to the others.
const STAND: Duration = Duration::from_millis(100);
const STAND_EXITING: Duration = Duration::from_millis(1500);
/// In this time a worker that stays has stood for election …
const YIELD_NS: u64 = 200_000_000;
/// … and all workers that a signal told to exit know it.
const ALL_KNOW_NS: u64 = 300_000_000;
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
    /// Since when it is known that the process will exit, maybe only after hours; a stamp, 0 while it
    /// will stay.
    exiting_ns: AtomicU64,
    stop: Mutex<Option<Stop>>,
    ended: Mutex<bool>,
    ended_changed: Condvar,
}

/// The process exits now.
#[derive(Clone, Copy, Debug)]
struct Stop {
    since: Instant,
    /// The most that is left of each `shutdown_timeout`.
    limit: Duration,
}

impl Stop {
    fn deadline(&self, shutdown_timeout: Duration) -> Instant {
        self.since + shutdown_timeout.min(self.limit)
    }
}

impl Control {
    fn stop(&self) -> Option<Stop> {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when it is known that the process will exit.
    fn exiting(&self) -> Option<u64> {
        Some(self.exiting_ns.load(Relaxed)).filter(|since| *since > 0)
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
    pub log: LogQueue,
    /// Makes connections; `None`: those that the targets' configurations name.
    pub connect: Option<Arc<Connect>>,
    /// Whether the threads leave the process's table of open files. SQLite takes for granted that a
    /// process has one: of a process's deliverers only one may use spools then.
    pub own_files: bool,
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
                lower_priority(NICE);
                if setup.own_files {
                    leave_file_table(&setup.targets);
                }
                Worker { setup, control: &inner }.run();
                *inner.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
                inner.ended_changed.notify_all();
            })
        })?;
        Ok(Self { control, thread, timeout })
    }

    /// The process will exit, once its last connection is closed.
    pub fn exiting(&self) {
        let _ = self.control.exiting_ns.compare_exchange(0, monotonic_ns(), Relaxed, Relaxed);
    }

    /// The process exits now: delivers what is only in memory, within each target's
    /// `shutdown_timeout` and `limit`, and returns.
    pub fn finish(self, limit: Option<Duration>) {
        let limit = limit.unwrap_or(Duration::MAX);
        self.exiting();
        let stop = Stop { since: Instant::now(), limit };
        *self.control.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
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
        let election = zone.election();
        loop {
            let exiting = self.control.exiting();
            let stops = self.control.stop().is_some();
            if stops && !zone.has_records() {
                return;
            }
            let wanted = exiting.is_some_and(|since| election.is_wanted(since));
            let early =
                exiting.is_some_and(|since| monotonic_ns().saturating_sub(since) < YIELD_NS);
            if !wanted
                && !early
                && let Some(term) = election.stand()
            {
                if catch_unwind(AssertUnwindSafe(|| self.deliver(term))).is_err() {
                    let text = "the deliverer failed and starts again";
                    self.setup.log.log(Level::Error, text);
                    thread::park_timeout(RESTART);
                }
                continue;
            }
            if stops && (wanted || !early) {
                // Another one delivers, or will, and does not leave while records wait.
                return;
            }
            thread::park_timeout(match exiting {
                None => {
                    election.want();
                    STAND
                }
                Some(_) if stops => POLL,
                Some(_) => STAND_EXITING,
            });
        }
    }

    /// Delivers until the process stops or another one takes over.
    fn deliver(&self, term: Term<'_>) {
        let Setup { zone, targets, log, connect, .. } = &self.setup;
        let before = targets.iter().map(|t| zone.totals(t.slot).dropped).collect::<Vec<_>>();
        let Some(ledger) = zone.enlist(std::process::id()) else {
            drop(term);
            thread::park_timeout(RESTART);
            return;
        };
        let _leave = Leave(ledger);
        let mut running = Vec::new();
        for (target, reported) in targets.iter().zip(before) {
            match Running::start(target, connect.clone(), (*zone, ledger), reported, log) {
                Ok(target) => running.push(target),
                Err(error) => {
                    log.log(Level::Error, format!("a thread cannot be started: {error}"));
                    drop(term);
                    thread::park_timeout(RESTART);
                    return;
                }
            }
        }
        let mut collection = Collection::new(*zone, ledger, running, log.clone(), targets);

        if targets.iter().any(|target| target.spool.is_some()) {
            // A deliverer that died between committing records to a spool and freeing their segments
            // left them in both: they come together before anything is sent.
            collection.collect(monotonic_ns() - HOLD_BACK_NS);
        }
        let mut next_tick = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            if now >= next_tick {
                zone.bury_couriers();
                collection.tick(now);
                next_tick = now + TICK;
            }
            if self.control.stop().is_some() {
                // On a reload the next deliverer takes what is in the segments. Should there be none,
                // this one comes back.
                if !zone.election().is_wanted(0) {
                    collection.collect(u64::MAX);
                }
                break;
            }
            let exiting = self.control.exiting();
            if exiting.is_some_and(|since| zone.election().is_wanted(since + ALL_KNOW_NS)) {
                break;
            }
            collection.collect_if_due();
            collection.targets.iter_mut().for_each(Running::feed);
            thread::park_timeout(POLL);
        }
        drop(term);
        collection.report_gone();
        self.finish(collection.targets);
    }

    /// Tries to deliver what the targets hold, each within its `shutdown_timeout`.
    fn finish(&self, mut targets: Vec<Running>) {
        let left = Instant::now();
        let deadline = |target: &Running| {
            let timeout = target.shutdown_timeout();
            // The process may be told to exit now at any time.
            let stop = self.control.stop().map(|stop| stop.deadline(timeout));
            stop.map_or(left + timeout, |deadline| deadline.min(left + timeout))
        };
        targets.iter_mut().for_each(|target| target.stop(deadline(target)));
        while !targets.is_empty() {
            let now = Instant::now();
            let is_over = |t: &mut Running| t.is_done() || now >= deadline(t);
            targets.extract_if(.., is_over).for_each(|target| target.finish(now));
            if !targets.is_empty() {
                thread::park_timeout(POLL_FINISHING);
            }
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

/// What became of a target's part of a batch before the segments are freed.
enum Committed {
    /// Nothing: it goes into the target's queue.
    No,
    /// It is in the target's spool.
    Spooled,
    /// It is where it belongs.
    Delivered,
}

/// A target of either kind.
enum Running {
    Tirreno(Box<Target>),
    Stream(Box<Stream>),
}

impl Running {
    fn start(
        config: &TargetConfig,
        connect: Option<Arc<Connect>>,
        accounts: (Zone, Ledger),
        reported: [u64; DropReason::ALL.len()],
        log: &LogQueue,
    ) -> io::Result<Self> {
        Ok(match &config.destination {
            Destination::Tirreno(tirreno) => Self::Tirreno(Box::new(Target::start(
                config, tirreno, connect, accounts, reported, log,
            )?)),
            Destination::Audit(stream) => {
                let stream = Stream::start(config, stream, accounts, reported, log)?;
                Self::Stream(Box::new(stream))
            }
        })
    }

    fn slot(&self) -> usize {
        match self {
            Self::Tirreno(target) => target.slot(),
            Self::Stream(stream) => stream.slot(),
        }
    }

    fn commit(&mut self, batch: &[Record<'_>]) -> Committed {
        let (is_committed, how) = match self {
            Self::Tirreno(target) => (target.spool(batch), Committed::Spooled),
            Self::Stream(stream) => (stream.write(batch), Committed::Delivered),
        };
        if is_committed { how } else { Committed::No }
    }

    fn offer(&mut self, id: EventId, bytes: &Arc<[u8]>, record: &Record<'_>) {
        match self {
            Self::Tirreno(target) => target.offer(id, bytes, record),
            Self::Stream(stream) => stream.offer(bytes, record),
        }
    }

    fn feed(&mut self) {
        match self {
            Self::Tirreno(target) => target.feed(),
            Self::Stream(stream) => stream.feed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        match self {
            Self::Tirreno(target) => target.tick(now),
            Self::Stream(stream) => stream.tick(),
        }
    }

    fn stop(&mut self, deadline: Instant) {
        match self {
            Self::Tirreno(target) => target.stop(deadline),
            Self::Stream(stream) => stream.stop(deadline),
        }
    }

    fn is_done(&mut self) -> bool {
        match self {
            Self::Tirreno(target) => target.is_done(),
            Self::Stream(stream) => stream.is_done(),
        }
    }

    fn finish(self, deadline: Instant) {
        match self {
            Self::Tirreno(target) => target.finish(deadline),
            Self::Stream(stream) => stream.finish(),
        }
    }

    fn shutdown_timeout(&self) -> Duration {
        match self {
            Self::Tirreno(target) => target.shutdown_timeout(),
            Self::Stream(stream) => stream.shutdown_timeout(),
        }
    }
}

/// The way from the segments to the targets' queues.
struct Collection {
    collector: Collector,
    zone: Zone,
    ledger: Ledger,
    targets: Vec<Running>,
    log: LogQueue,
    interval_ns: u64,
    batch_size: usize,
    next_id: u64,
    /// Accounts whose target is no longer configured, with the events dropped since that was said.
    gone: BTreeMap<usize, u64>,
}

impl Collection {
    fn new(
        zone: Zone,
        ledger: Ledger,
        targets: Vec<Running>,
        log: LogQueue,
        configs: &[TargetConfig],
    ) -> Self {
        let interval = configs.iter().map(|t| t.interval).min().unwrap_or_default();
        let batch_size = configs.iter().map(|t| t.batch_size).min().unwrap_or(1);
        Self {
            collector: Collector::new(zone),
            zone,
            ledger,
            targets,
            log,
            interval_ns: interval.as_nanos() as u64,
            batch_size,
            next_id: 0,
            gone: BTreeMap::new(),
        }
    }

    /// Shows and says what is due; once a second.
    fn tick(&mut self, now: Instant) {
        self.targets.iter_mut().for_each(|target| target.tick(now));
        self.report_gone();
    }

    fn report_gone(&mut self) {
        for (slot, new) in mem::take(&mut self.gone) {
            let (name, why) = (self.zone.target_name(slot), DropReason::TargetGone.text());
            let total: u64 = self.zone.totals(slot).dropped.iter().sum();
            let text = format!("target \"{name}\": {new} events dropped, {why}; {total} in total");
            self.log.log(Level::Error, text);
        }
    }

    /// Collects when a batch is full or an event has waited for the interval.
    fn collect_if_due(&mut self) {
        let now = monotonic_ns();
        let waited = now.saturating_sub(self.interval_ns);
        if self.collector.is_due(self.batch_size, waited) {
            self.collect(now - HOLD_BACK_NS);
        }
    }

    /// Collects all that was captured before the stamp `before`.
    fn collect(&mut self, before: u64) {
        loop {
            let (batch, progress) = self.collector.take(before, self.batch_size);
            if batch.damaged > 0 {
                self.log.log(Level::Error, "a segment of tirreno_zone is damaged");
            }
            // The collector has parsed each: none is left out here.
            let records: Vec<_> = batch.records.iter().filter_map(|r| Record::parse(r)).collect();
            let mut committed = [const { Committed::No }; MAX_TARGETS];
            for target in &mut self.targets {
                committed[target.slot()] = target.commit(&records);
            }
            let counts = batch.per_target.iter().enumerate().filter(|(_, count)| **count > 0);
            // Killed between this and freeing the segments, the next deliverer finds these in the spool,
            // which alone counts them then. Counted later, they would be pending for ever.
            for (slot, count) in counts.clone() {
                if matches!(committed[slot], Committed::Spooled) {
                    self.ledger.spooled(slot, *count);
                }
            }
            self.collector.commit(progress);
            let mut queued = 0;
            for (slot, count) in counts {
                match committed[slot] {
                    Committed::No => {
                        self.ledger.collected(slot, *count);
                        queued |= 1 << slot;
                    }
                    Committed::Spooled => {}
                    Committed::Delivered => self.ledger.written(slot, *count),
                }
            }
            for (bytes, record) in batch.records.iter().zip(&records) {
                self.hand_over(bytes, record, queued);
            }
            if batch.records.len() < self.batch_size {
                return;
            }
        }
    }

    /// Queues a record for those of its targets that are among `targets`.
    fn hand_over(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>, targets: u32) {
        self.next_id += 1;
        let targets = record.targets() & targets;
        for slot in (0..MAX_TARGETS).filter(|slot| targets & (1 << slot) != 0) {
            match self.targets.iter_mut().find(|t| t.slot() == slot) {
                Some(target) => target.offer(EventId::Memory(self.next_id), bytes, record),
                None => {
                    self.ledger.dropped(slot, 1, DropReason::TargetGone);
                    *self.gone.entry(slot).or_default() += 1;
                }
            }
        }
    }
}

/// Runs `f` with all signals blocked; a thread that it starts inherits that.
pub(crate) fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
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
pub(crate) fn lower_priority(by: i32) {
    // SAFETY: no memory is passed. On Linux a priority is a thread's; the main thread, which has the
    // process's id, has the one that nginx's "worker_priority" says.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid) as libc::id_t;
        let nice = libc::getpriority(libc::PRIO_PROCESS, std::process::id()) + by;
        libc::setpriority(libc::PRIO_PROCESS, thread, nice);
    }
}

/// Gives the calling thread, and those that it starts, a table of open files of their own, without the
/// event loop's. Linux then spares the event loop two atomic operations with each system call, and no
/// connection or listening socket can be kept open by a thread. Kernels before 5.9 cannot: there
/// nothing changes.
fn leave_file_table(targets: &[TargetConfig]) {
    let is_console = |wanted| {
        targets.iter().any(|target| match &target.destination {
            Destination::Audit(stream) => matches!(stream.sink, Sink::Console(c) if c == wanted),
            Destination::Tirreno(_) => false,
        })
    };
    let kept = [false, is_console(Console::Stdout), is_console(Console::Stderr)];
    // SAFETY: the thread has opened nothing yet, and its table is its own before anything is closed.
    // The structure is initialized by the call that fills it.
    unsafe {
        let rc =
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
        if rc != 0 {
            return;
        }
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        // nginx's standard error is its error log: after a rotation the old file would stay open here.
        for (standard, keep) in (0..).zip(kept) {
            let mut about = mem::zeroed::<libc::stat>();
            let is_file = libc::fstat(standard, &mut about) == 0
                && about.st_mode & libc::S_IFMT == libc::S_IFREG;
            if is_file && !keep && null >= 0 {
                libc::dup2(null, standard);
            }
        }
        libc::close(null);
    }
}
