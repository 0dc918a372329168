//! The threads of one worker: one waits to be elected, and then collects from the rings of all workers
//! and runs all targets.
//!
//! Exactly one worker collects at a time; the others sleep until the kernel gives them the election. A worker
//! that will exit makes room for one that stays; if none stays, because all of nginx stops, it continues to the
//! end. A worker that stops first gives up the election, then tries to deliver what it has taken.
//!
//! Workers learn of an exit at different moments, and each only of its own. So another worker counts as one
//! that stays only if it still does a little later.

use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::audit::config::{Console, Sink};
use crate::clock::monotonic_ns;
use crate::config::{Destination, TargetConfig};
use crate::delivery::collector::Collection;
use crate::delivery::inbox::Inbox;
use crate::delivery::target::Running;
use crate::delivery::thread::{NICE_COLLECTING, leave_file_table, spawn};
use crate::log_queue::{Level, LogQueue};
use crate::shm::zone::{DropReason, Enrolment, Ledger, Stay, Term, Zone};
use crate::tirreno::shared::Connect;
use crate::{audit, tirreno};

/// How often a sleeping thread checks by itself whether it is elected; the kernel should have woken it before.
const SLEEP: Duration = Duration::from_secs(60);
/// Within this time, all workers that got the same signal know of it.
const ALL_KNOW_NS: u64 = 300_000_000;
/// How long a worker that will exit leaves the election to others after it gave it up.
const STAND_BACK: Duration = Duration::from_millis(1500);
/// How often a stopping thread polls.
const POLL_STOPPING: Duration = Duration::from_millis(5);
/// The pause after a failure of the collector.
const RESTART: Duration = Duration::from_secs(1);
/// How long an exiting process waits for the collector to read its records.
const RING_LIMIT: Duration = Duration::from_secs(2);
/// How long an exiting process tries to write its events to a slow disk.
const DISK_LIMIT: Duration = Duration::from_secs(30);
/// How long a thread without work may take to end.
const JOIN: Duration = Duration::from_millis(20);
/// How long `finish` waits beyond the targets' time-outs.
const GRACE: Duration = Duration::from_millis(300);

/// The threads of one worker.
pub struct Deliverer {
    control: Arc<Control>,
    thread: JoinHandle<()>,
    zone: Zone,
    /// The longest time that the thread may need to deliver what it holds.
    longest: Duration,
}

#[derive(Default)]
struct Control {
    /// Since when the process is known to exit (which may take hours); 0 while it stays.
    exiting_ns: AtomicU64,
    enrolment: Mutex<Option<Enrolment>>,
    stop: Mutex<Option<Stop>>,
    phase: Mutex<Phase>,
    phase_changed: Condvar,
    /// What the thread delivers.
    inboxes: Mutex<Vec<Arc<Inbox>>>,
}

/// What the thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// It waits to be elected.
    #[default]
    Waits,
    /// It collects, or tries to deliver what it took.
    Delivers,
    /// It has ended.
    Ended,
}

/// The process exits now.
#[derive(Clone, Copy, Debug)]
struct Stop {
    since: Instant,
    /// The most time for everything since then.
    limit: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data in the mutexes is valid after each statement, even if a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    fn stop(&self) -> Option<Stop> {
        *lock(&self.stop)
    }

    /// Since when the process is known to exit.
    fn exiting(&self) -> Option<u64> {
        Some(self.exiting_ns.load(Relaxed)).filter(|since| *since > 0)
    }

    fn stay(&self, stay: Stay) {
        if let Some(enrolment) = &*lock(&self.enrolment) {
            enrolment.stay(stay);
        }
    }

    /// Whether another process is one of `stays`.
    fn is_another(&self, zone: Zone, stays: &[Stay]) -> bool {
        zone.is_another(lock(&self.enrolment).as_ref(), stays)
    }

    fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
        self.phase_changed.notify_all();
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
    /// Makes connections; without it, they are made as the targets' configurations say.
    pub connect: Option<Arc<Connect>>,
    /// Whether the threads get a table of open files of their own, and which descriptor they keep. SQLite
    /// relies on one table per process, so only one of a process's deliverers may use spools then.
    pub own_files: Option<Option<RawFd>>,
}

impl Setup {
    /// The targets, as bits.
    fn mask(&self) -> u32 {
        self.targets.iter().fold(0, |mask, target| mask | 1 << target.slot)
    }

    fn target(&self, config: &TargetConfig, ledger: Ledger) -> Running {
        let counters = (self.zone, ledger);
        match &config.destination {
            Destination::Tirreno(tirreno) => {
                tirreno::target::new(config, tirreno, self.connect.clone(), counters, &self.log)
            }
            // The threads of the other targets share what they open, see `own_files`.
            Destination::Audit(audit) => audit::target::new(config, audit, counters, &self.log)
                .with_own_files(self.own_files),
        }
    }

    fn leave_file_table(&self, kept: Option<RawFd>) {
        let is_console = |wanted| {
            self.targets.iter().any(|target| match &target.destination {
                Destination::Audit(audit) => matches!(audit.sink, Sink::Console(c) if c == wanted),
                Destination::Tirreno(_) => false,
            })
        };
        let consoles = [false, is_console(Console::Stdout), is_console(Console::Stderr)];
        leave_file_table(consoles, kept);
    }
}

/// Called by an exiting process that never had a thread: counts the records that it leaves in the rings, if no
/// other process is there to collect them.
pub fn give_up(setup: &Setup) {
    let zone = setup.zone;
    if !zone.has_records() || zone.is_another(None, &[Stay::Stays, Stay::Exiting]) {
        return;
    }
    let Some(_term) = zone.election().stand() else { return };
    let Some(ledger) = zone.enlist(std::process::id()) else { return };
    let _leave = Leave(ledger);
    let targets = setup.targets.iter().map(|config| setup.target(config, ledger)).collect();
    let mut collection = Collection::idle((zone, ledger), targets, &setup.log);
    collection.collect(u64::MAX);
    collection.report_gone();
    collection.into_targets().into_iter().for_each(|target| target.finish(false));
}

impl Deliverer {
    /// Starts the thread.
    ///
    /// # Errors
    /// It cannot be started. The process captures all the same, and another one collects.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let zone = setup.zone;
        let control = Arc::new(Control::default());
        let longest = setup.targets.iter().map(|t| t.shutdown_timeout).max().unwrap_or_default();
        let enrolment = zone.enrol(std::process::id(), setup.mask(), Stay::Stays);
        *lock(&control.enrolment) = enrolment;
        let inner = control.clone();
        let thread = spawn("tirreno", NICE_COLLECTING, move || {
            if let Some(kept) = setup.own_files {
                setup.leave_file_table(kept);
            }
            Worker { setup, control: &inner }.run();
            inner.set_phase(Phase::Ended);
        })?;
        Ok(Self { control, thread, zone, longest: RING_LIMIT + longest.max(DISK_LIMIT) })
    }

    /// The process will exit when its last connection is closed.
    pub fn exiting(&self) {
        let now = monotonic_ns();
        if self.control.exiting_ns.compare_exchange(0, now, Relaxed, Relaxed).is_ok() {
            self.control.stay(Stay::Exiting);
            self.thread.thread().unpark();
        }
    }

    /// The process exits now. What is in the rings and in memory goes into spools and files at once; events of
    /// targets without them are sent within `shutdown_timeout`. A slow disk may take longer. `limit` is asked
    /// again and again, and cuts all of this short.
    ///
    /// Threads that hang in the kernel are not waited for.
    pub fn finish(self, limit: impl Fn() -> Option<Duration>) {
        self.exiting();
        let since = Instant::now();
        let mut most = limit();
        let set = |most: Option<Duration>| {
            let limit = most.unwrap_or(Duration::MAX);
            *lock(&self.control.stop) = Some(Stop { since, limit });
        };
        set(most);
        self.control.stay(Stay::Stopped);
        self.thread.thread().unpark();
        let pid = std::process::id();
        let mut phase = lock(&self.control.phase);
        let mut patience = Patience { since, longest: self.longest, waits_since: None };
        loop {
            let is_over = match *phase {
                Phase::Waits if !self.is_needed(pid) => true,
                phase => patience.is_over(phase, most, Instant::now()),
            };
            if is_over {
                break;
            }
            let waited = self.control.phase_changed.wait_timeout(phase, POLL_STOPPING * 2);
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
            if most.is_none()
                && let Some(new) = limit()
            {
                // Counted from now, not from when the process was first told to exit.
                most = Some(since.elapsed() + new);
                set(most);
            }
        }
        let ended = *phase == Phase::Ended;
        drop(phase);
        if !ended {
            // The processors are busy, or a disk hangs: the thread would not tell what is lost.
            let stays = [Stay::Stays, Stay::Exiting, Stay::Stopped];
            let another_follows = self.control.is_another(self.zone, &stays);
            for inbox in &*lock(&self.control.inboxes) {
                inbox.close(DropReason::Shutdown, another_follows);
            }
        }
        lock(&self.control.enrolment).take();
        if ended {
            let _ = self.thread.join();
        }
    }
}

impl Deliverer {
    /// Whether the rings hold records of the exiting process `pid`, or records that nobody else collects:
    /// another exiting collector may have left them to this process.
    fn is_needed(&self, pid: u32) -> bool {
        self.zone.has_records_of(pid)
            || self.zone.has_records()
                && !self.control.is_another(self.zone, &[Stay::Stays, Stay::Exiting])
    }
}

/// How long a process that exits waits for its thread.
struct Patience {
    /// When it was told to exit.
    since: Instant,
    /// What its thread may take at most to deliver what it holds.
    longest: Duration,
    /// Since when the thread waits to be elected, without a break.
    waits_since: Option<Instant>,
}

impl Patience {
    /// Whether it is over, where all may take `most` since the process was told to exit.
    fn is_over(&mut self, phase: Phase, most: Option<Duration>, now: Instant) -> bool {
        let took = now.saturating_duration_since(self.since);
        let is_late = match phase {
            Phase::Ended => true,
            // Another one has the election, or this one is about to get it back, having left the rings to
            // one that then stopped, too.
            Phase::Waits => {
                let since = *self.waits_since.get_or_insert(now);
                now.saturating_duration_since(since) >= RING_LIMIT + GRACE
            }
            // The thread keeps the times itself.
            Phase::Delivers => {
                self.waits_since = None;
                took >= self.longest + GRACE
            }
        };
        is_late || most.is_some_and(|most| took >= most + GRACE)
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
            let stops = self.control.stop().is_some();
            if stops && !zone.has_records() {
                return;
            }
            let Some(term) = election.wait(SLEEP) else { continue };
            if self.control.stop().is_some() && !zone.has_records() {
                return;
            }
            if self.shall_leave() {
                drop(term);
                if self.control.stop().is_some() {
                    return;
                }
                thread::park_timeout(STAND_BACK);
                continue;
            }
            self.control.set_phase(Phase::Delivers);
            if catch_unwind(AssertUnwindSafe(|| self.deliver(term))).is_err() {
                self.setup.log.log(Level::Error, "the deliverer failed and starts again");
                thread::park_timeout(RESTART);
            }
            self.control.set_phase(Phase::Waits);
        }
    }

    /// Whether this process exits and another one stays, so that the other one shall collect.
    fn shall_leave(&self) -> bool {
        let zone = self.setup.zone;
        if self.control.stop().is_some() {
            // Any process that still runs goes on capturing, and collects.
            return self.control.is_another(zone, &[Stay::Stays, Stay::Exiting]);
        }
        let exiting = self.control.exiting();
        exiting.is_some_and(|since| monotonic_ns().saturating_sub(since) > ALL_KNOW_NS)
            && self.control.is_another(zone, &[Stay::Stays])
    }

    /// Collects until the process stops or another one takes over.
    fn deliver(&self, term: Term<'_>) {
        let Setup { zone, targets, log, .. } = &self.setup;
        let Some(ledger) = zone.enlist(std::process::id()) else {
            drop(term);
            thread::park_timeout(RESTART);
            return;
        };
        let _leave = Leave(ledger);
        let targets: Vec<_> =
            targets.iter().map(|config| self.setup.target(config, ledger)).collect();
        *lock(&self.control.inboxes) = targets.iter().map(|target| target.inbox.clone()).collect();
        let mut collection = Collection::new((*zone, ledger), targets, log);
        let another_follows = loop {
            if self.shall_leave() {
                collection.collect_for_removed();
                collection.leave();
                break true;
            }
            if self.control.stop().is_some() {
                collection.collect(u64::MAX);
                // Another process that was still there may have captured since.
                break false;
            }
            let pause = collection.poll();
            let since_exiting = self.control.exiting();
            let pause = since_exiting.map_or(pause, |_| pause.min(POLL_STOPPING * 10));
            thread::park_timeout(pause);
        };
        collection.report_gone();
        if another_follows {
            drop(term);
            self.finish(collection.into_targets(), true);
        } else {
            // The term lasts until nothing is left, because nobody is there to take over.
            self.finish(collection.into_targets(), false);
            drop(term);
        }
        lock(&self.control.inboxes).clear();
    }

    /// Tries to deliver what the targets hold: disks get as long as they need, within limits, servers the
    /// target's `shutdown_timeout`.
    fn finish(&self, mut targets: Vec<Running>, another_follows: bool) {
        let left = Instant::now();
        let deadline = |target: &Running| {
            let timeout = target.inbox.shutdown_timeout();
            let timeout = if target.inbox.is_durable() { timeout.max(DISK_LIMIT) } else { timeout };
            let own = left + timeout;
            // The process may be told to exit now at any time.
            let stop = self.control.stop();
            let limit = stop.and_then(|stop| stop.since.checked_add(stop.limit));
            limit.map_or(own, |limit| limit.min(own))
        };
        targets.iter().for_each(|target| target.inbox.stop(deadline(target)));
        // Closed targets, each with the time until which its thread may take to end.
        let mut ending: Vec<(Instant, Running)> = Vec::new();
        while !targets.is_empty() || !ending.is_empty() {
            let now = Instant::now();
            let is_over = |target: &mut Running| {
                let inbox = &target.inbox;
                // Events on their way to a server are in the spool, if there is one.
                let is_late = || now >= left + inbox.shutdown_timeout();
                now >= deadline(target) || inbox.is_empty() && (inbox.in_hand() == 0 || is_late())
            };
            ending.extend(targets.extract_if(.., is_over).map(|target| {
                target.inbox.close(DropReason::Shutdown, another_follows);
                // A thread that waits for a server ends by itself, or with the process. A disk's thread still
                // has something to write.
                let until = if target.inbox.is_durable() { deadline(&target) } else { now };
                (until.max(now + JOIN), target)
            }));
            ending.retain(|(until, target)| now < *until && !target.has_ended());
            targets.iter().for_each(|target| target.inbox.stop(deadline(target)));
            if !targets.is_empty() || !ending.is_empty() {
                thread::park_timeout(POLL_STOPPING);
            }
        }
    }
}

/// Gives back the deliverer's row of counters, however delivery ends.
struct Leave(Ledger);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::config::{AuditConfig, FileConfig};
    use crate::audit::format::FormatConfig;
    use crate::log_queue::log_queue;
    use crate::record::Capture;
    use crate::shm::ring::Producer;
    use crate::shm::zone::anonymous;

    const LONGEST: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(1);

    fn patience() -> (Patience, Instant) {
        let since = Instant::now();
        (Patience { since, longest: LONGEST, waits_since: None }, since)
    }

    #[test]
    fn a_thread_may_wait_to_be_elected_for_a_while_each_time() {
        let (mut patience, since) = patience();
        let limit = RING_LIMIT + GRACE;
        assert!(!patience.is_over(Phase::Waits, None, since));
        assert!(!patience.is_over(Phase::Waits, None, since + limit - MOMENT));
        // It was elected, and left the rings to another one: the time begins anew.
        assert!(!patience.is_over(Phase::Delivers, None, since + limit));
        let again = since + 2 * limit;
        assert!(!patience.is_over(Phase::Waits, None, again));
        assert!(!patience.is_over(Phase::Waits, None, again + limit - MOMENT));
        assert!(patience.is_over(Phase::Waits, None, again + limit));
    }

    #[test]
    fn a_thread_that_delivers_keeps_its_times_itself_unless_they_are_cut_short() {
        let (mut patience, since) = patience();
        let limit = LONGEST + GRACE;
        assert!(!patience.is_over(Phase::Delivers, None, since + limit - MOMENT));
        assert!(patience.is_over(Phase::Delivers, None, since + limit));
        let most = Duration::from_secs(1);
        assert!(!patience.is_over(Phase::Delivers, Some(most), since + most + GRACE - MOMENT));
        for phase in [Phase::Delivers, Phase::Waits] {
            assert!(patience.is_over(phase, Some(most), since + most + GRACE));
        }
        assert!(patience.is_over(Phase::Ended, None, since));
    }

    #[test]
    fn what_a_thread_that_hangs_holds_is_counted_and_said() {
        let zone = anonymous(1 << 20).unwrap();
        let format = FormatConfig::parse("json", &[]).unwrap();
        let target = TargetConfig::of_test(
            zone.target_slot("t", 0).unwrap(),
            Destination::Audit(AuditConfig { format, sink: Sink::File(FileConfig::default()) }),
        );
        let (log, messages) = log_queue();
        let setup = Setup { zone, targets: [target].into(), log, connect: None, own_files: None };
        let ledger = zone.enlist(std::process::id()).unwrap();
        let mut worker = Producer::new(zone, std::process::id());
        let mut capture = Capture::new(1);
        capture.targets = 1;
        (0..3).for_each(|_| worker.push(&capture).unwrap());
        let targets = vec![setup.target(&setup.targets[0], ledger)];
        let inbox = targets[0].inbox.clone();
        let mut collection = Collection::idle((zone, ledger), targets, &setup.log);
        collection.collect(u64::MAX);
        let control = Arc::new(Control::default());
        control.set_phase(Phase::Delivers);
        *lock(&control.inboxes) = vec![inbox];
        let (thread_ends, ended) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let _ = ended.recv();
        });
        let deliverer = Deliverer { control, thread, zone, longest: LONGEST };
        deliverer.finish(|| Some(Duration::ZERO));
        let totals = zone.totals(0);
        assert_eq!((totals.captured, totals.all_dropped(), totals.pending), (3, 3, 0));
        let said = messages.drain().map(|message| message.text).collect::<Vec<_>>();
        let expected = "3 events could not be delivered, shutdown_timeout is over; dropped";
        assert!(said.iter().any(|text| text.ends_with(expected)), "{said:?}");
        drop(thread_ends);
    }
}
