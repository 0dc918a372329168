//! From the rings to the targets: the elected worker's thread reads the rings of all workers in the order of
//! capture, and hands each target its share. It does no disk or network I/O, and waits for no target.

use std::collections::BTreeSet;
use std::mem;
use std::time::{Duration, Instant};

use crate::clock::monotonic_ns;
use crate::delivery::target::Running;
use crate::log_queue::{Level, LogQueue, Once};
use crate::record::Record;
use crate::shm::MAX_TARGETS;
use crate::shm::ring::{Collector, Taken};
use crate::shm::zone::{DropReason, Ledger, Zone};

/// The minimum age of a record when it is read. By then, all records that other workers captured before it are
/// published, too.
const HOLD_BACK_NS: u64 = 5_000_000;
/// The most records to read before the targets get them.
const BATCH: usize = 512;
/// The pause between two looks at the rings while there are records …
const POLL: Duration = Duration::from_millis(25);
/// … and, while there are none, the factor by which each pause is longer than the one before, up to the
/// longest. Nobody wakes the collector, so that capturing costs no system call.
const POLL_GROWTH: u32 = 2;
const POLL_IDLE: Duration = Duration::from_millis(200);
/// How often counters are shown and messages are logged.
const TICK: Duration = Duration::from_secs(1);
/// For how many ticks this goes on after the last event, or while any is pending.
const TICKS_AFTER: u32 = 3;
/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Collection {
    collector: Collector,
    zone: Zone,
    ledger: Ledger,
    targets: Vec<Running>,
    log: LogQueue,
    pause: Duration,
    next_tick: Instant,
    ticks: u32,
    cannot_start: Once,
    /// Targets that this configuration lacks, and of which events were dropped since the last message about it.
    gone: BTreeSet<usize>,
}

impl Collection {
    /// Starts the targets.
    pub(crate) fn new(counters: (Zone, Ledger), targets: Vec<Running>, log: &LogQueue) -> Self {
        let mut collection = Self::idle(counters, targets, log);
        collection.start_targets();
        collection
    }

    /// Starts no target.
    pub(crate) fn idle(
        (zone, ledger): (Zone, Ledger),
        targets: Vec<Running>,
        log: &LogQueue,
    ) -> Self {
        Self {
            collector: Collector::new(zone),
            zone,
            ledger,
            targets,
            log: log.clone(),
            pause: POLL,
            next_tick: Instant::now() + TICK,
            ticks: TICKS_AFTER,
            cannot_start: Once::every(REPEAT),
            gone: BTreeSet::new(),
        }
    }

    fn start_targets(&mut self) {
        for target in &mut self.targets {
            if let Err(error) = target.start()
                && self.cannot_start.may(Instant::now())
            {
                let text = "a thread cannot be started";
                target.inbox.log(Level::Error, &format!("{text}: {error}; trying again"));
            }
        }
    }

    /// Reads the rings, hands the records over, and returns how long to sleep.
    pub(crate) fn poll(&mut self) -> Duration {
        let read = self.collect(monotonic_ns() - HOLD_BACK_NS);
        let waits = self.relieve();
        if read > 0 || waits {
            self.pause = POLL;
            self.ticks = TICKS_AFTER;
        } else {
            self.pause = (self.pause * POLL_GROWTH).min(POLL_IDLE);
        }
        self.tick();
        self.pause
    }

    /// Collects the records that were captured before the stamp `before`; returns how many.
    pub(crate) fn collect(&mut self, before: u64) -> usize {
        let mut all = 0;
        loop {
            let batch = self.collector.take(before, BATCH);
            if batch.damaged > 0 {
                self.log.log(Level::Error, "a segment of tirreno_zone is damaged");
            }
            self.hand_over(&batch.records, u32::MAX);
            all += batch.records.len();
            // After each batch, so that the rings have room while many records are read.
            self.free();
            if batch.records.len() < BATCH {
                break;
            }
        }
        all
    }

    /// Hands the records over to those of their targets that are in `wanted`.
    fn hand_over(&mut self, records: &[Taken], wanted: u32) {
        // The collector has parsed each record before: none is left out here.
        let parsed = records.iter().filter_map(|taken| Some((taken, Record::parse(&taken.bytes)?)));
        let parsed: Vec<_> = parsed.collect();
        let mut known = 0;
        for target in &self.targets {
            let slot = target.inbox.slot();
            known |= 1 << slot;
            if wanted & 1 << slot == 0 {
                continue;
            }
            let is_new =
                |(taken, _): &&(&Taken, Record<'_>)| !self.collector.has_taken(slot, taken.place);
            let ours = 1 << slot;
            if parsed.iter().any(|(taken, record)| {
                record.targets() & ours != 0 && self.collector.has_taken(slot, taken.place)
            }) {
                let new: Vec<_> = parsed.iter().filter(is_new).copied().collect();
                target.inbox.hand_over(&new);
            } else {
                target.inbox.hand_over(&parsed);
            }
        }
        for (taken, record) in &parsed {
            let mut gone = record.targets() & wanted & !known;
            while gone != 0 {
                let slot = gone.trailing_zeros() as usize;
                gone &= gone - 1;
                if slot < MAX_TARGETS && !self.collector.has_taken(slot, taken.place) {
                    self.ledger.collected(slot, 1);
                    self.zone.took(slot, taken.place);
                    self.ledger.dropped(slot, 1, DropReason::TargetGone);
                    self.gone.insert(slot);
                }
            }
        }
    }

    /// Frees the ring of records that late targets have not taken. Returns whether it still holds any.
    fn relieve(&mut self) -> bool {
        let fill = self.zone.fill();
        self.targets.iter().for_each(|target| target.inbox.relieve(fill));
        self.free();
        self.zone.has_records()
    }

    fn backed(&self) -> Vec<bool> {
        let mut backed = vec![false; self.zone.segments().len()];
        self.targets.iter().for_each(|target| target.inbox.mark_backed(&mut backed));
        backed
    }

    fn free(&mut self) {
        let backed = self.backed();
        self.collector.free(|segment| backed[segment]);
    }

    /// Shows counters and logs messages, if they are due.
    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.zone.bury_couriers();
        let backed = self.backed();
        self.collector.free_dead(|segment| backed[segment]);
        self.start_targets();
        if self.targets.iter().any(|target| !target.inbox.is_empty() || target.inbox.in_hand() > 0)
        {
            self.ticks = TICKS_AFTER;
        }
        if self.ticks > 0 {
            self.ticks -= 1;
            self.targets.iter().for_each(|target| target.inbox.tick());
            self.report_gone();
        }
    }

    /// Hands over the records of targets that the configuration in force lacks: the next collector cannot
    /// deliver them.
    pub(crate) fn collect_for_removed(&mut self) {
        let removed = !self.zone.configured();
        if self.targets.iter().all(|target| removed & 1 << target.inbox.slot() == 0) {
            return;
        }
        let batch = self.collector.clone().take(u64::MAX, usize::MAX);
        let known = self.targets.iter().fold(0, |known, target| known | 1 << target.inbox.slot());
        self.hand_over(&batch.records, removed & known);
    }

    /// Leaves the rings to the next collector. Waits a moment for batches that are being written, so that they
    /// are not written twice.
    pub(crate) fn leave(&mut self) {
        let until = Instant::now() + LEAVE;
        let removed = !self.zone.configured();
        let is_removed = |target: &&Running| removed & 1 << target.inbox.slot() != 0;
        self.targets.iter().filter(is_removed).for_each(|target| target.inbox.detach_all());
        // Asks every target to leave before it waits for any.
        while self.targets.iter().filter(|target| !target.inbox.leave()).count() > 0 {
            if Instant::now() >= until {
                self.targets.iter().for_each(|target| target.inbox.detach_all());
                break;
            }
            std::thread::sleep(LEAVE / 100);
        }
    }

    pub(crate) fn report_gone(&mut self) {
        for slot in mem::take(&mut self.gone) {
            let new = self.ledger.take_unsaid(slot, DropReason::TargetGone);
            let (name, why) = (self.zone.target_name(slot), DropReason::TargetGone.text());
            let total = self.zone.totals(slot).all_dropped();
            let text = format!("target \"{name}\": {new} events dropped, {why}; {total} in total");
            self.log.log(Level::Error, text);
        }
    }

    /// The targets, which continue with the events that they hold.
    pub(crate) fn into_targets(self) -> Vec<Running> {
        self.targets
    }
}

/// How long a leaving collector waits for batches that are being written.
const LEAVE: Duration = Duration::from_millis(500);
