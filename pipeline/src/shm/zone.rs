//! The shared memory that the workers of all configurations map: the elections, the counters of the targets,
//! and the segments with records.
//!
//! # Layout
//! ```text
//! Head        magic, number of segments, election, skipped, targets[32], couriers[64]
//! KnownAccounts, Bindings
//! Segment 0   64 bytes of state, then records
//! Segment 1   …
//! ```
//! The zone lives as long as the master process; a reload reuses it. Every field is an atomic or
//! belongs to one process at a time, because any process may be killed between any two instructions.
//!
//! # Counters
//! Each target has a row of counters. A worker adds to `captured` when it has published a record. The deliverer
//! adds what it takes out of the segments to `collected` and to `held` in its own row, its *courier*; each held
//! event ends in `delivered`, `rejected` or `dropped`. So `pending = captured - collected + Σ held`, and a
//! forgotten event stays visible there. Each courier belongs to one deliverer; the next deliverer counts what a
//! killed one held as dropped. A kill may fall between publishing and counting, which are a few instructions
//! apart: then the sums are off by that one batch. Only a spool is exact over kills.

use std::cell::UnsafeCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::audit::format::Drops;
use crate::capture::identity::Identity;
use crate::capture::known_accounts::{KnownAccounts, Learned};
use crate::clock::{monotonic_ns, wall_ms};
pub use crate::fault::Fault;
use crate::identity::keys::{Keys, Secret};
use crate::shm::MAX_TARGETS;
use crate::shm::bindings::Bindings;
use crate::shm::metrics::Metrics;
use crate::shm::pace::{KeptPace, Pace};
use crate::shm::rejected::{self, Rejected};
use crate::shm::repeat_counter::Counter;
use crate::shm::segment::{Place, SEGMENT, Segment, Stage};
use crate::shm::version::Version;

/// The most reasons for which events of one target are set aside, and shown.
pub const MAX_REASONS: usize = 8;
/// The longest name of a target, in bytes.
pub const MAX_NAME: usize = 63;
/// The most deliverers, running or stopping, at one time.
const MAX_COURIERS: usize = 64;
/// The most workers, of all configurations, that are known at one time. A worker that is not known captures
/// nevertheless; the others take it for one that stays.
const MAX_WORKERS: usize = 1024;
/// How many counters of repeated events there are: for 200 addresses, and their accounts.
const COUNTERS: usize = 4096;
/// The range of how many accounts fit, and which share of the zone they get.
const LEARNED: RangeInclusive<usize> = 64..=16_384;
const LEARNED_SHARE: usize = 16;
/// The share of the zone for sessions: three tenths, 25,000 sessions in 16m.
const BINDINGS_SHARE: (usize, usize) = (3, 10);
/// How many requests of rules with `once=` are remembered.
const ONCE: usize = 2048;
const MAGIC: u64 = u64::from_be_bytes(*b"tirreno2");

/// Why an event was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// No segment of the zone was free.
    ZoneFull,
    /// The target's queue was full.
    QueueFull,
    /// nginx stopped or reloaded, and `shutdown_timeout` was over.
    Shutdown,
    /// The deliverer's process was killed while it held the event.
    DelivererDied,
    /// The target is no longer configured.
    TargetGone,
    /// A thread of the module failed.
    Internal,
}

impl DropReason {
    /// All reasons; a reason's place here is its number.
    pub const ALL: [Self; 6] = [
        Self::ZoneFull,
        Self::QueueFull,
        Self::Shutdown,
        Self::DelivererDied,
        Self::TargetGone,
        Self::Internal,
    ];

    /// What the error log says.
    pub fn text(self) -> &'static str {
        match self {
            Self::ZoneFull => "tirreno_zone is full",
            Self::QueueFull => "queue is full",
            Self::Shutdown => "shutdown_timeout is over",
            Self::DelivererDied => "the delivering worker was killed",
            Self::TargetGone => "the target is no longer configured",
            Self::Internal => "internal error",
        }
    }
}

/// Why a request is not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SkipReason {
    /// It has no user.
    Anonymous,
    /// Its event type is off.
    EventOff,
    /// One of its values cannot be sent, and must not be cut.
    Invalid,
}

impl SkipReason {
    /// All reasons with their key in the status; a reason's place here is its number.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Anonymous, "anonymous"), (Self::EventOff, "event_off"), (Self::Invalid, "invalid")];

    /// Its key in the status.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// How delivery to a target goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// The last attempt was answered.
    Ok,
    /// The last attempt failed; the next follows by itself.
    Retrying,
    /// Nothing is sent until the server accepts the key, or an event.
    Paused,
    /// A disk does not keep up: events that should be on it are in memory only.
    Degraded,
    /// Another process holds a lock or a file that it needs.
    Waiting,
}

impl State {
    /// Its value in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Degraded => "degraded",
            Self::Waiting => "waiting",
        }
    }

    fn from_number(number: u32) -> Self {
        [Self::Ok, Self::Retrying, Self::Paused, Self::Degraded, Self::Waiting]
            .get(number as usize)
            .copied()
            .unwrap_or(Self::Ok)
    }
}

#[repr(C)]
struct Head {
    magic: AtomicU64,
    instance: AtomicU64,
    /// The key of hashes that stay in processes' memory, except in events.
    secret: [AtomicU64; 4],
    segments: AtomicU32,
    learned: AtomicU32,
    /// A number that changes with the known accounts.
    learned_changes: AtomicU64,
    /// The number of buckets of bindings.
    bindings: AtomicU32,
    election: Election,
    /// Elects the worker that keeps the state file.
    state_election: Election,
    skipped: [AtomicU64; SkipReason::ALL.len()],
    /// Events by the evidence for their users.
    identified: [AtomicU64; Identity::ALL.len()],
    mismatched: AtomicU64,
    unreadable_sessions: AtomicU64,
    /// Keyed hashes of recent events of rules with `once=`.
    once: [AtomicU64; ONCE],
    /// The targets of the configuration in force, as bits.
    configured: AtomicU32,
    targets: [TargetCounters; MAX_TARGETS],
    repeats: [Counter; COUNTERS],
    couriers: [Courier; MAX_COURIERS],
    metrics: Metrics,
    workers: [WorkerRow; MAX_WORKERS],
}

/// A process that captures.
#[repr(C)]
struct WorkerRow {
    /// Its process id in the low half, or 0; its [`Stay`] in the high half.
    owner: AtomicU64,
    /// The targets that it captures for, as bits.
    targets: AtomicU32,
}

/// How long a worker will exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stay {
    /// It goes on.
    Stays = 1,
    /// It captures until its last connection is closed.
    Exiting = 2,
    /// It captures no more.
    Stopped = 3,
    /// It stays, but cannot collect.
    OnlyCaptures = 4,
}

#[repr(C, align(64))]
struct TargetCounters {
    name_len: AtomicU32,
    name: UnsafeCell<[u8; MAX_NAME]>,
    captured: CacheLine,
    collected: AtomicU64,
    delivered: AtomicU64,
    rejected: AtomicU64,
    withdrawn: AtomicU64,
    merged: AtomicU64,
    retries: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    /// How many of the dropped events the log has mentioned.
    said: [AtomicU64; DropReason::ALL.len()],
    /// When the deliverer began that shows the state, by the monotonic clock, in nanoseconds.
    shown_by: AtomicU64,
    state: AtomicU32,
    /// If not 0: a disk's fault, which is shown, with [`State::Degraded`], instead of `fault` and `state`, except
    /// instead of [`State::Waiting`].
    degraded: AtomicU32,
    degraded_ms: AtomicU64,
    fault: AtomicU32,
    fault_ms: AtomicU64,
    oldest_ms: AtomicU64,
    /// Plus one; 0: unknown.
    drain_seconds: AtomicU64,
    /// Of `collected`, `spooled` and `stored`, which change together.
    version: Version,
    /// Of `collected`, what went into the spool.
    spooled: AtomicU64,
    stored: StoredCounters,
    unreported: Unreported,
    rejected_events: rejected::List,
    pace: KeptPace,
}

/// Events that a stream target dropped and no record in the target mentions yet; the next deliverer finds them
/// here.
#[repr(C)]
struct Unreported {
    count: AtomicU64,
    /// 0: none.
    first_ms: AtomicU64,
    last_ms: AtomicU64,
}

/// The spool's counters, over all zones that used it, for the status.
#[repr(C)]
struct StoredCounters {
    collected: AtomicU64,
    delivered: AtomicU64,
    rejected: AtomicU64,
    dropped: AtomicU64,
    merged: AtomicU64,
    withdrawn: AtomicU64,
    pending: AtomicU64,
    bytes: AtomicU64,
    /// Why events were set aside, a packed fault each, and how many of them are kept.
    reasons: [(AtomicU32, AtomicU64); MAX_REASONS],
}

/// The counter that all workers write, in another cache line than the deliverer's.
#[repr(C, align(64))]
struct CacheLine(AtomicU64);

#[repr(C, align(64))]
struct Courier {
    pid: AtomicU32,
    held: [AtomicU32; MAX_TARGETS],
}

/// The shared memory, formatted. Copies refer to the same memory.
#[derive(Clone, Copy)]
pub struct Zone {
    head: &'static Head,
    learned: &'static [Learned],
    bindings: Bindings,
    segments: &'static [Segment],
}

// SAFETY: all shared state is atomic, or guarded as its documentation says.
unsafe impl Send for Zone {}
// SAFETY: as above.
unsafe impl Sync for Zone {}

impl std::fmt::Debug for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zone").field("segments", &self.segments.len()).finish()
    }
}

impl Zone {
    /// The least number of bytes for `workers` workers: the head, and two segments for each, so that a reload
    /// finds room.
    pub fn min_size(workers: usize) -> usize {
        let others = size_of::<Head>() + SEGMENT + (2 * workers.max(1) + 2) * SEGMENT;
        // The rest of the zone besides the shares for accounts and bindings.
        let (share, of) = BINDINGS_SHARE;
        let rest = LEARNED_SHARE * (of - share) - of;
        let least =
            LEARNED.start() * size_of::<Learned>() + Bindings::size(Bindings::buckets_in(0));
        (others + least).max((others * LEARNED_SHARE * of).div_ceil(rest))
    }

    /// Formats `len` bytes at `start`, whatever they contain. Only the state of each segment is touched, so
    /// that unused segments cost little memory.
    ///
    /// # Safety
    /// The memory is shared by all processes that will use the zone, is used by nothing else, and stays
    /// mapped while the process lives.
    pub unsafe fn format(start: *mut u8, len: usize) -> Option<Self> {
        let head = start.wrapping_add(start.align_offset(64)).cast::<Head>();
        let learned =
            (len / LEARNED_SHARE / size_of::<Learned>()).clamp(*LEARNED.start(), *LEARNED.end());
        let (share, of) = BINDINGS_SHARE;
        let bindings = Bindings::buckets_in(len / of * share);
        let (.., first) = Self::parts(head, learned, bindings);
        let segments = (start as usize + len).checked_sub(first as usize)? / SEGMENT;
        let mut secret = [0; 32];
        if segments == 0 || getrandom::fill(&mut secret).is_err() {
            return None;
        }
        // SAFETY: the caller's promise; `head` and the segments lie inside, aligned.
        unsafe {
            // The head and the tables behind it, up to the segments.
            let before = first as usize - head as usize;
            head.cast::<u8>().write_bytes(0, before);
            #[cfg(not(loom))]
            (0..segments).for_each(|segment| Segment::format(first.cast_mut().add(segment)));
            (*head).election.init();
            (*head).state_election.init();
            // A model has segments of its own.
            let segments = if cfg!(loom) { 0 } else { segments };
            (*head).segments.store(segments as u32, Relaxed);
            (*head).learned.store(learned as u32, Relaxed);
            (*head).bindings.store(bindings as u32, Relaxed);
            (*head).instance.store(monotonic_ns(), Relaxed);
            for (word, bytes) in (*head).secret.iter().zip(secret.as_chunks().0) {
                word.store(u64::from_ne_bytes(*bytes), Relaxed);
            }
            (*head).magic.store(MAGIC, Release);
            Self::attach(start)
        }
    }

    /// The zone that was formatted at `start`.
    ///
    /// # Safety
    /// As for [`format`](Self::format).
    pub unsafe fn attach(start: *mut u8) -> Option<Self> {
        let place = start.wrapping_add(start.align_offset(64)).cast::<Head>();
        // SAFETY: the caller's promise.
        unsafe {
            let head: &'static Head = &*place;
            if head.magic.load(Acquire) != MAGIC {
                return None;
            }
            let segments = head.segments.load(Relaxed) as usize;
            let learned = head.learned.load(Relaxed) as usize;
            let bindings = head.bindings.load(Relaxed) as usize;
            let (first_learned, first_binding, first_segment) =
                Self::parts(place, learned, bindings);
            Some(Self {
                head,
                learned: std::slice::from_raw_parts(first_learned, learned),
                bindings: Bindings::at(first_binding, bindings),
                segments: std::slice::from_raw_parts(first_segment, segments),
            })
        }
    }

    /// The addresses of the tables behind the head and of the segments, for so many accounts and buckets of
    /// bindings.
    fn parts(
        head: *mut Head,
        learned: usize,
        bindings: usize,
    ) -> (*const Learned, *const u8, *const Segment) {
        let aligned = |place: *mut u8| place.wrapping_add(place.align_offset(64));
        let first = head.wrapping_add(1).cast::<Learned>();
        let binding = aligned(first.wrapping_add(learned).cast::<u8>());
        let segment = aligned(binding.wrapping_add(Bindings::size(bindings)));
        (first, binding, segment.cast())
    }

    /// The bindings of sessions to users.
    pub fn bindings(&self) -> Bindings {
        self.bindings
    }

    /// The keys for the hashes in the zone. Deriving them takes some microseconds.
    pub fn keys(&self) -> Keys {
        Keys::derive(&self.secret())
    }

    fn secret(&self) -> Secret {
        let mut secret = Secret::default();
        for (bytes, word) in secret.as_chunks_mut().0.iter_mut().zip(&self.head.secret) {
            *bytes = word.load(Relaxed).to_ne_bytes();
        }
        secret
    }

    /// Replaces the secret, before any worker of a new configuration begins. What was learned with the old one
    /// is forgotten.
    pub fn set_secret(&self, secret: &Secret) {
        if *self.secret() == **secret {
            return;
        }
        for (word, bytes) in self.head.secret.iter().zip(secret.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Relaxed);
        }
        self.bindings.clear();
    }

    /// The counters of repeated events, by account and address.
    pub fn repeat_counters(&self) -> &'static [Counter] {
        &self.head.repeats
    }

    /// The known accounts, by the [keys](Self::keys) of this zone.
    pub fn known_accounts(&self, keys: &Keys) -> KnownAccounts {
        KnownAccounts::new(*keys.accounts(), &self.head.learned_changes, self.learned)
    }

    /// A number for this instance of nginx (a master and its workers, over reloads) that differs from all
    /// others on the machine.
    pub fn instance(&self) -> u64 {
        self.head.instance.load(Relaxed)
    }

    pub(crate) fn segments(&self) -> &'static [Segment] {
        self.segments
    }

    /// The same zone with the segments of a model.
    #[cfg(loom)]
    pub(crate) fn with_segments(self, segments: &'static [Segment]) -> Self {
        Self { segments, ..self }
    }

    /// Whether a record waits in any segment.
    pub fn has_records(&self) -> bool {
        self.segments.iter().any(Segment::is_waiting)
    }

    /// Whether a record waits that the process `pid` has captured.
    pub fn has_records_of(&self, pid: u32) -> bool {
        let is_own =
            |s: &&Segment| matches!(s.stage(), Stage::Open(p) | Stage::Closed(p) if p == pid);
        self.segments.iter().filter(is_own).any(Segment::is_waiting)
    }

    /// The target has taken its records up to this one.
    pub(crate) fn took(&self, slot: usize, place: Place) {
        self.segments[place.segment as usize].cursors.advance(slot, place.end);
    }

    /// The share of the segments that are in use.
    pub fn fill(&self) -> f64 {
        let used = self.segments.iter().filter(|s| s.stage() != Stage::Free).count();
        used as f64 / self.segments.len() as f64
    }

    /// Counters for the status only.
    pub fn metrics(&self) -> &'static Metrics {
        &self.head.metrics
    }

    /// The election of the collector.
    pub fn election(&self) -> &'static Election {
        &self.head.election
    }

    /// The index of the counters of the target `name`; new ones if it has none. If all are taken, those of a
    /// target are reused for which nobody captures any more.
    ///
    /// Only the master calls it, while it reads a configuration; `others` are the indexes that this
    /// configuration has used so far.
    ///
    /// # Errors
    /// [`MAX_TARGETS`] other names are in use.
    pub fn target_slot(&self, name: &str, others: u32) -> Result<usize, NoSlot> {
        if let Some(slot) = self.known_slot(name) {
            return Ok(slot);
        }
        let is_new = |slot: &usize| self.head.targets[*slot].name().is_none();
        let is_over = |slot: &usize| others & 1 << slot == 0 && self.is_unused(*slot);
        let new = (0..MAX_TARGETS).find(is_new).or_else(|| (0..MAX_TARGETS).find(is_over));
        let slot = new.ok_or(NoSlot)?;
        let counters = &self.head.targets[slot];
        counters.name_len.store(0, Release);
        let len = name.len().min(MAX_NAME);
        // SAFETY: the master is one thread, and nobody reads the name before its length. What the
        // counters were of, nobody uses any more; zeros are valid for all of them.
        unsafe {
            ptr::from_ref(counters).cast_mut().write_bytes(0, 1);
            (&mut *counters.name.get())[..len].copy_from_slice(&name.as_bytes()[..len]);
        }
        for segment in self.segments {
            segment.forget_target(slot);
        }
        counters.name_len.store(len as u32, Release);
        Ok(slot)
    }

    /// The index of the target `name`, if it has one.
    pub fn known_slot(&self, name: &str) -> Option<usize> {
        (0..MAX_TARGETS).find(|slot| self.head.targets[*slot].name() == Some(name))
    }

    /// Whether no configuration in force has the target, no process captures for it, and none of its events is
    /// pending.
    fn is_unused(&self, slot: usize) -> bool {
        let bit = 1 << slot;
        let rows = &self.head.workers;
        let is_full = rows.iter().all(|row| row.owner.load(Relaxed) != 0);
        let captures =
            |row: &WorkerRow| row.pid().is_some() && row.targets.load(Relaxed) & bit != 0;
        self.head.configured.load(Relaxed) & bit == 0
            && !is_full
            && !rows.iter().any(captures)
            && !self.head.couriers.iter().any(|courier| courier.held[slot].load(Relaxed) != 0)
            && !self.segments.iter().any(|segment| segment.has_records_for(bit))
    }

    /// The targets of the configuration in force, as bits.
    pub fn configured(&self) -> u32 {
        self.head.configured.load(Acquire)
    }

    /// The master puts a configuration with these targets into force.
    pub fn configure(&self, targets: u32) {
        self.head.configured.store(targets, Release);
    }

    /// Registers a process that captures for these targets; `None` if there are too many.
    pub fn enrol(&self, pid: u32, targets: u32, stay: Stay) -> Option<Enrolment> {
        let owner = WorkerRow::pack(pid, stay);
        for (place, row) in self.head.workers.iter().enumerate() {
            // A dead process has not unregistered itself.
            if row.pid().is_none() {
                let before = row.owner.load(Relaxed);
                if row.owner.compare_exchange(before, owner, AcqRel, Relaxed).is_ok() {
                    row.targets.store(targets, Release);
                    return Some(Enrolment { zone: *self, place, pid });
                }
            }
        }
        None
    }

    /// Whether a process other than that of `own` is one of `stays`.
    pub fn is_another(&self, own: Option<&Enrolment>, stays: &[Stay]) -> bool {
        self.head.workers.iter().enumerate().any(|(place, row)| {
            let is = |stay: &Stay| row.owner.load(Relaxed) >> 32 == *stay as u64;
            own.is_none_or(|own| own.place != place) && stays.iter().any(is) && row.pid().is_some()
        })
    }

    /// The name of the target with these counters.
    pub fn target_name(&self, slot: usize) -> &'static str {
        self.head.targets[slot].name().unwrap_or_default()
    }

    /// A worker counts a record that it has published.
    pub fn count_captured(&self, targets: u32) {
        for account in self.books(targets) {
            account.captured.0.fetch_add(1, Relaxed);
        }
    }

    /// A worker counts a record for which there was no segment.
    pub fn count_zone_full(&self, targets: u32) {
        for account in self.books(targets) {
            account.captured.0.fetch_add(1, Relaxed);
            account.collected.fetch_add(1, Relaxed);
            account.dropped[DropReason::ZoneFull as usize].fetch_add(1, Relaxed);
        }
    }

    /// A worker counts an event that `once=` merges into an earlier one of the same user.
    pub fn count_merged(&self, targets: u32) {
        for account in self.books(targets) {
            account.captured.0.fetch_add(1, Relaxed);
            account.collected.fetch_add(1, Relaxed);
            account.merged.fetch_add(1, Relaxed);
        }
    }

    fn books(&self, targets: u32) -> impl Iterator<Item = &'static TargetCounters> {
        let head = self.head;
        (0..MAX_TARGETS).filter(move |t| targets & (1 << t) != 0).map(move |t| &head.targets[t])
    }

    /// Counts a request that is not an event.
    pub fn skip(&self, reason: SkipReason) {
        self.head.skipped[reason as usize].fetch_add(1, Relaxed);
    }

    /// The election of the keeper of the state file.
    pub fn state_election(&self) -> &'static Election {
        &self.head.state_election
    }

    /// Counts an event by the evidence for its user.
    pub fn count_identity(&self, identity: Identity, mismatched: bool, unreadable_session: bool) {
        self.head.identified[identity as usize].fetch_add(1, Relaxed);
        if mismatched {
            self.head.mismatched.fetch_add(1, Relaxed);
        }
        if unreadable_session {
            self.head.unreadable_sessions.fetch_add(1, Relaxed);
        }
    }

    /// Events by the evidence for their users, the strongest first; then those whose client claimed to be
    /// another user, and those of an accepted session that could not be read.
    pub fn identified(&self) -> Vec<(&'static str, u64)> {
        let evidence = Identity::ALL.into_iter().rev();
        evidence
            .map(|identity| (identity.name(), &self.head.identified[identity as usize]))
            .chain([
                ("mismatched", &self.head.mismatched),
                ("unreadable_session", &self.head.unreadable_sessions),
            ])
            .map(|(name, count)| (name, count.load(Relaxed)))
            .collect()
    }

    /// Whether no equal facts were seen in this span of time (`time_ms` in milliseconds since the epoch). If
    /// more different facts come than are remembered, known ones may count as new.
    pub fn is_first(&self, facts: &impl Hash, span: Duration, time_ms: i64) -> bool {
        let mut hasher = DefaultHasher::new();
        (*self.secret(), facts).hash(&mut hasher);
        let fact = hasher.finish();
        (span, time_ms.div_euclid(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
            .hash(&mut hasher);
        // A new zone contains zeros only.
        let mark = hasher.finish().max(1);
        self.head.once[fact as usize % ONCE].swap(mark, Relaxed) != mark
    }

    /// How many requests were no events, by reason.
    pub fn skipped(&self) -> [(&'static str, u64); SkipReason::ALL.len()] {
        SkipReason::ALL.map(|(reason, key)| (key, self.head.skipped[reason as usize].load(Relaxed)))
    }

    /// A target's counters as they stand.
    pub fn totals(&self, slot: usize) -> Totals {
        let counters = &self.head.targets[slot];
        // Read before `collected`: events that are counted meanwhile must not make pending negative.
        let held: u64 =
            self.head.couriers.iter().map(|c| u64::from(c.held[slot].load(Relaxed))).sum();
        let (stored, spooled, collected) = counters.stored();
        let captured = counters.captured.0.load(Relaxed);
        let dropped = std::array::from_fn(|r| counters.dropped[r].load(Relaxed));
        let oldest_ms = counters.oldest_ms.load(Relaxed) as i64;
        // Read before the fault, which is written first: a bad state always has a reason.
        let state = State::from_number(counters.state.load(Acquire));
        let degraded = match state {
            // This state tells the reason itself.
            State::Waiting => None,
            _ => Fault::unpack(counters.degraded.load(Acquire)),
        };
        let fault = match degraded {
            Some(fault) => Some((fault, &counters.degraded_ms)),
            None => Fault::unpack(counters.fault.load(Relaxed)).map(|f| (f, &counters.fault_ms)),
        };
        Totals {
            state: if degraded.is_some() { State::Degraded } else { state },
            captured: stored.collected + captured.saturating_sub(spooled),
            delivered: stored.delivered + counters.delivered.load(Relaxed),
            rejected: stored.rejected + counters.rejected.load(Relaxed),
            dropped,
            merged: stored.merged + counters.merged.load(Relaxed),
            withdrawn: stored.withdrawn + counters.withdrawn.load(Relaxed),
            pending: stored.pending + captured.saturating_sub(collected) + held,
            stored,
            set_aside: counters
                .stored
                .reasons
                .iter()
                .filter_map(|(fault, count)| {
                    Some((Fault::unpack(fault.load(Relaxed))?, count.load(Relaxed)))
                })
                .filter(|(_, count)| *count > 0)
                .collect(),
            rejected_events: counters.rejected_events.read(),
            drain_seconds: counters.drain_seconds.load(Relaxed).checked_sub(1),
            retries: counters.retries.load(Relaxed),
            last_fault: fault.map(|(fault, ms)| (fault, ms.load(Relaxed) as i64)),
            oldest_pending_ms: if oldest_ms == 0 { 0 } else { (wall_ms() - oldest_ms).max(0) },
        }
    }

    /// A row of `held` counters for a new deliverer; events that dead deliverers held are counted as dropped.
    /// `None` if living processes have all rows.
    pub fn enlist(&self, pid: u32) -> Option<Ledger> {
        self.bury_couriers();
        let courier = self
            .head
            .couriers
            .iter()
            .position(|c| c.pid.compare_exchange(0, pid, AcqRel, Relaxed).is_ok())?;
        Some(Ledger { zone: *self, courier, since_ns: monotonic_ns() })
    }

    /// Counts what dead deliverers held as dropped. Only the deliverer calls it.
    pub fn bury_couriers(&self) {
        for courier in &self.head.couriers {
            let pid = courier.pid.load(Acquire);
            if pid != 0 && !runs(pid) {
                for (account, held) in self.head.targets.iter().zip(&courier.held) {
                    let lost = u64::from(held.swap(0, Relaxed));
                    account.dropped[DropReason::DelivererDied as usize].fetch_add(lost, Relaxed);
                }
                courier.pid.store(0, Release);
            }
        }
    }
}

/// A registered process; dropping this unregisters it.
#[derive(Debug)]
pub struct Enrolment {
    zone: Zone,
    place: usize,
    pid: u32,
}

impl Enrolment {
    /// Announces how long the process will exist.
    pub fn stay(&self, stay: Stay) {
        let row = &self.zone.head.workers[self.place];
        row.owner.store(WorkerRow::pack(self.pid, stay), Release);
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        let row = &self.zone.head.workers[self.place];
        row.targets.store(0, Relaxed);
        row.owner.store(0, Release);
    }
}

impl WorkerRow {
    fn pack(pid: u32, stay: Stay) -> u64 {
        (stay as u64) << 32 | u64::from(pid)
    }

    /// The process id, if the process still runs.
    fn pid(&self) -> Option<u32> {
        Some(self.owner.load(Acquire) as u32).filter(|pid| *pid != 0 && runs(*pid))
    }
}

/// [`MAX_TARGETS`] names are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSlot;

impl TargetCounters {
    fn name(&self) -> Option<&str> {
        let len = self.name_len.load(Acquire) as usize;
        // SAFETY: the name is written once, before its length.
        let name = unsafe { &*self.name.get() }.get(..len)?;
        if name.is_empty() { None } else { str::from_utf8(name).ok() }
    }

    /// The spool's counters, and `spooled` and `collected` of the same moment.
    fn stored(&self) -> (SpoolTotals, u64, u64) {
        let stored = &self.stored;
        self.version.read(|| {
            let totals = SpoolTotals {
                collected: stored.collected.load(Relaxed),
                delivered: stored.delivered.load(Relaxed),
                rejected: stored.rejected.load(Relaxed),
                dropped: stored.dropped.load(Relaxed),
                merged: stored.merged.load(Relaxed),
                withdrawn: stored.withdrawn.load(Relaxed),
                pending: stored.pending.load(Relaxed),
                bytes: stored.bytes.load(Relaxed),
            };
            (totals, self.spooled.load(Relaxed), self.collected.load(Relaxed))
        })
    }

    /// Changes what [`stored`](Self::stored) reads together.
    fn change_stored(&self, change: impl FnOnce(&Self)) {
        self.version.change(|| change(self));
    }
}

/// A target's counters at one moment.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Totals {
    pub state: State,
    pub captured: u64,
    pub delivered: u64,
    pub rejected: u64,
    /// By [`DropReason`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Events that were merged into others.
    pub merged: u64,
    /// Failed logins that were the first half of a successful one.
    pub withdrawn: u64,
    /// In segments, in queues, in the spool, or on their way.
    pub pending: u64,
    /// The spool's counters; the others include them, except `dropped`.
    pub stored: SpoolTotals,
    /// Why rejected events were set aside, and how many are kept for it.
    pub set_aside: Vec<(Fault, u64)>,
    /// The last rejected events, the last one first.
    pub rejected_events: Vec<Rejected>,
    /// In how many seconds nothing will be pending, at the present rate.
    pub drain_seconds: Option<u64>,
    /// Attempts after which the event was kept.
    pub retries: u64,
    /// The last fault, and its time in milliseconds since the epoch.
    pub last_fault: Option<(Fault, i64)>,
    /// Age of the oldest event that a deliverer holds.
    pub oldest_pending_ms: i64,
}

/// The counters that live in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SpoolTotals {
    pub collected: u64,
    pub delivered: u64,
    pub rejected: u64,
    pub dropped: u64,
    /// Events that others stand for.
    pub merged: u64,
    /// Failed logins that were the first half of a successful one.
    pub withdrawn: u64,
    pub pending: u64,
    /// Bytes of the pending events.
    pub bytes: u64,
}

impl Totals {
    /// All dropped events, for whatever reason.
    pub fn all_dropped(&self) -> u64 {
        self.stored.dropped + self.dropped.iter().sum::<u64>()
    }
}

/// One deliverer's right to change the counters: it alone moves events from `captured` to their outcome.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    zone: Zone,
    courier: usize,
    /// When the deliverer began, by the monotonic clock, in nanoseconds.
    since_ns: u64,
}

impl Ledger {
    fn account(&self, slot: usize) -> &'static TargetCounters {
        &self.zone.head.targets[slot]
    }

    fn held(&self, slot: usize) -> &'static AtomicU32 {
        &self.zone.head.couriers[self.courier].held[slot]
    }

    /// `n` events were read from the segments; the deliverer holds them.
    pub fn collected(&self, slot: usize, n: u32) {
        self.account(slot).collected.fetch_add(u64::from(n), Relaxed);
        self.held(slot).fetch_add(n, Relaxed);
    }

    /// Shows in how many seconds nothing will be pending, if that is known.
    pub fn show_drain(&self, slot: usize, seconds: Option<u64>) {
        self.account(slot).drain_seconds.store(seconds.map_or(0, |s| s.saturating_add(1)), Relaxed);
    }

    /// Shows why events were set aside, and how many are kept.
    pub fn show_reasons(&self, slot: usize, reasons: &[(Fault, u64)]) {
        let shown = &self.account(slot).stored.reasons;
        for (i, (fault, count)) in shown.iter().enumerate() {
            let (new, kept) = reasons.get(i).map_or((0, 0), |(fault, kept)| (fault.pack(), *kept));
            fault.store(new, Relaxed);
            count.store(kept, Relaxed);
        }
    }

    /// Keeps for the next deliverer what is known of the limit of the target's server.
    pub fn keep_pace(&self, slot: usize, server: u64, pace: Option<&Pace>) {
        self.account(slot).pace.keep(server, pace);
    }

    /// What the deliverer before this one knew of the limit of that server.
    pub fn pace(&self, slot: usize, server: u64) -> Option<Pace> {
        self.account(slot).pace.learned(server)
    }

    /// Lists a rejected event that is in no spool.
    pub fn list_rejected(&self, slot: usize, event: &Rejected) {
        self.account(slot).rejected_events.add(event);
    }

    /// Lists the rejected events that the spool has kept last.
    pub fn list_spooled(&self, slot: usize, events: &[Rejected]) {
        self.account(slot).rejected_events.set_spooled(events);
    }

    /// An event that was captured at this time is delivered now; for the status alone.
    pub fn observe(&self, slot: usize, captured_ms: i64) {
        self.zone.metrics().delivered(slot, captured_ms, 1);
    }

    /// Shows what the spool counts.
    pub fn show_stored(&self, slot: usize, totals: &SpoolTotals) {
        self.account(slot).change_stored(|counters| counters.stored.show(totals));
    }

    /// `n` events went from the segments into the spool, whose counters are `totals` since then.
    pub fn spooled(&self, slot: usize, n: u32, totals: Option<&SpoolTotals>) {
        self.account(slot).change_stored(|counters| {
            counters.collected.fetch_add(u64::from(n), Relaxed);
            counters.spooled.fetch_add(u64::from(n), Relaxed);
            totals.into_iter().for_each(|totals| counters.stored.show(totals));
        });
    }

    /// `n` held events went into the spool, whose counters are `totals` since then.
    pub fn moved_to_spool(&self, slot: usize, n: u32, totals: Option<&SpoolTotals>) {
        self.held(slot).fetch_sub(n, Relaxed);
        self.account(slot).change_stored(|counters| {
            counters.spooled.fetch_add(u64::from(n), Relaxed);
            totals.into_iter().for_each(|totals| counters.stored.show(totals));
        });
    }

    /// Events are in memory only that should be on disk, because of this. While it lasts, it is shown instead of what a
    /// server does.
    pub fn show_degraded(&self, slot: usize, fault: Fault) {
        self.show_fault(slot, fault);
        let account = self.account(slot);
        account.degraded_ms.store(wall_ms() as u64, Relaxed);
        account.degraded.store(fault.pack(), Release);
    }

    /// All events are on disk again that should be.
    pub fn end_degraded(&self, slot: usize) {
        self.account(slot).degraded.store(0, Release);
    }

    /// `n` held events were merged into another one.
    pub fn merged(&self, slot: usize, n: u32) {
        self.held(slot).fetch_sub(n, Relaxed);
        self.account(slot).merged.fetch_add(u64::from(n), Relaxed);
    }

    /// Whether no other process delivers, or tries to deliver the rest.
    pub fn is_alone(&self) -> bool {
        let couriers = self.zone.head.couriers.iter().enumerate();
        let mut others = couriers.filter(|(place, _)| *place != self.courier);
        !others.any(|(_, courier)| courier.pid.load(Relaxed) != 0)
    }

    /// How many events of the target this deliverer holds.
    pub fn holds(&self, slot: usize) -> u32 {
        self.held(slot).load(Relaxed)
    }

    /// `n` events went from the segments directly to their destination.
    pub fn written(&self, slot: usize, n: u32) {
        let account = self.account(slot);
        account.collected.fetch_add(u64::from(n), Relaxed);
        account.delivered.fetch_add(u64::from(n), Relaxed);
    }

    /// `n` held events were accepted.
    pub fn delivered(&self, slot: usize, n: u32) {
        self.held(slot).fetch_sub(n, Relaxed);
        self.account(slot).delivered.fetch_add(u64::from(n), Relaxed);
    }

    /// `n` held events are refused for good.
    pub fn rejected(&self, slot: usize, n: u32) {
        self.held(slot).fetch_sub(n, Relaxed);
        self.account(slot).rejected.fetch_add(u64::from(n), Relaxed);
    }

    /// Counts a rejected event of a target without a spool by its reason, as long as there is room for reasons.
    pub fn count_reason(&self, slot: usize, fault: Fault) {
        for (reason, count) in &self.account(slot).stored.reasons {
            // Two threads of a target may find the same free place.
            let known = reason.compare_exchange(0, fault.pack(), Relaxed, Relaxed);
            if known.is_ok() || known == Err(fault.pack()) {
                count.fetch_add(1, Relaxed);
                return;
            }
        }
    }

    /// `n` held events are dropped.
    pub fn dropped(&self, slot: usize, n: u32, reason: DropReason) {
        self.held(slot).fetch_sub(n, Relaxed);
        self.account(slot).dropped[reason as usize].fetch_add(u64::from(n), Relaxed);
    }

    /// How many events were dropped for that reason since the last message about it, including those of a
    /// killed deliverer. The caller must log them.
    pub fn take_unsaid(&self, slot: usize, reason: DropReason) -> u64 {
        let account = self.account(slot);
        let dropped = account.dropped[reason as usize].load(Relaxed);
        let said = account.said[reason as usize].fetch_max(dropped, Relaxed);
        dropped.saturating_sub(said)
    }

    /// Like [`dropped`](Self::dropped), for a caller that logs the drops itself.
    pub fn dropped_and_said(&self, slot: usize, n: u32, reason: DropReason) {
        // Before they are counted, or another deliverer might log them, too.
        self.account(slot).said[reason as usize].fetch_add(u64::from(n), Relaxed);
        self.dropped(slot, n, reason);
    }

    /// Notes drops that a record in the target must mention.
    pub fn leave_unreported(&self, slot: usize, drops: &Drops) {
        let unreported = &self.account(slot).unreported;
        let (first, last) = (drops.first_ms.max(1) as u64, drops.last_ms.max(1) as u64);
        let earlier = |known: u64| Some(if known == 0 { first } else { known.min(first) });
        let _ = unreported.first_ms.fetch_update(Relaxed, Relaxed, earlier);
        unreported.last_ms.fetch_max(last, Relaxed);
        unreported.count.fetch_add(drops.count, Release);
    }

    /// Takes the drops that no record mentions yet: the caller must write one.
    pub fn take_unreported(&self, slot: usize) -> Option<Drops> {
        let unreported = &self.account(slot).unreported;
        if unreported.count.load(Relaxed) == 0 {
            return None;
        }
        let count = unreported.count.swap(0, Acquire);
        let (first, last) =
            (unreported.first_ms.swap(0, Relaxed), unreported.last_ms.swap(0, Relaxed));
        // If two deliverers do this at once, one may get the other's times and not its count.
        let time = |ms: u64| if ms == 0 { wall_ms() } else { ms as i64 };
        (count > 0).then(|| Drops { count, first_ms: time(first), last_ms: time(last) })
    }

    /// A held event was withdrawn.
    pub fn withdrawn(&self, slot: usize) {
        self.held(slot).fetch_sub(1, Relaxed);
        self.account(slot).withdrawn.fetch_add(1, Relaxed);
    }

    /// An attempt has to be repeated.
    pub fn retry(&self, slot: usize) {
        self.account(slot).retries.fetch_add(1, Relaxed);
    }

    /// Shows how delivery goes.
    pub fn show(&self, slot: usize, state: State, fault: Option<Fault>) {
        if self.is_newest(slot) {
            fault.into_iter().for_each(|fault| self.show_fault(slot, fault));
            self.account(slot).state.store(state as u32, Release);
        }
    }

    /// Whether no deliverer that began later has shown the state. After a reload, one with the old configuration
    /// may still try to send: its failures say nothing of the new one.
    fn is_newest(&self, slot: usize) -> bool {
        self.account(slot).shown_by.fetch_max(self.since_ns, Relaxed) <= self.since_ns
    }

    /// Shows what went wrong, whatever else the state is.
    pub fn show_fault(&self, slot: usize, fault: Fault) {
        if self.is_newest(slot) {
            let account = self.account(slot);
            account.fault_ms.store(wall_ms() as u64, Relaxed);
            account.fault.store(fault.pack(), Relaxed);
        }
    }

    /// Shows when the oldest held event was captured, in milliseconds since the epoch; 0: there is none.
    pub fn show_oldest(&self, slot: usize, time_ms: i64) {
        self.account(slot).oldest_ms.store(time_ms.max(0) as u64, Relaxed);
    }

    /// The deliverer holds nothing any more, and leaves.
    pub fn leave(self) {
        self.zone.head.couriers[self.courier].pid.store(0, Release);
    }
}

impl StoredCounters {
    fn show(&self, totals: &SpoolTotals) {
        self.collected.store(totals.collected, Relaxed);
        self.delivered.store(totals.delivered, Relaxed);
        self.rejected.store(totals.rejected, Relaxed);
        self.dropped.store(totals.dropped, Relaxed);
        self.merged.store(totals.merged, Relaxed);
        self.withdrawn.store(totals.withdrawn, Relaxed);
        self.pending.store(totals.pending, Relaxed);
        self.bytes.store(totals.bytes, Relaxed);
    }
}

/// Whether the process still does anything. A killed process may exist as long as the kernel does not release
/// one of its threads, which waits for a disk: its first thread is a zombie then.
fn runs(pid: u32) -> bool {
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next());
    alive(pid) && !matches!(stat().and_then(state), Some(b'Z' | b'X'))
}

/// Whether the process exists. Process ids are reused only after all others were; the zone checks every second.
pub(crate) fn alive(pid: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let rc = unsafe { libc::kill(pid as libc::pid_t, 0) };
    rc == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Elects one process by a robust mutex: when its holder dies, the kernel gives it to another one.
#[repr(C)]
pub struct Election {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}

impl Election {
    /// # Safety
    /// `self` lies in zeroed shared memory, and nobody uses it yet.
    unsafe fn init(&self) {
        // SAFETY: the caller's promise; the attributes live until they are destroyed.
        unsafe {
            let mut attr = std::mem::zeroed::<libc::pthread_mutexattr_t>();
            libc::pthread_mutexattr_init(&mut attr);
            libc::pthread_mutexattr_setpshared(&mut attr, libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(&mut attr, libc::PTHREAD_MUTEX_ROBUST);
            libc::pthread_mutex_init(self.mutex.get(), &attr);
            libc::pthread_mutexattr_destroy(&mut attr);
        }
    }

    /// Becomes the holder if there is none.
    pub fn stand(&self) -> Option<Term<'_>> {
        // SAFETY: the mutex was initialized when the zone was formatted.
        self.became(unsafe { libc::pthread_mutex_trylock(self.mutex.get()) })
    }

    /// Sleeps until it becomes the holder, at most `limit`: the kernel wakes it when the holder releases the
    /// mutex, or dies.
    pub fn wait(&self, limit: Duration) -> Option<Term<'_>> {
        let until = SystemTime::now() + limit;
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = libc::timespec {
            tv_sec: until.as_secs() as libc::time_t,
            tv_nsec: until.subsec_nanos().into(),
        };
        // SAFETY: as above; the time is valid.
        self.became(unsafe { libc::pthread_mutex_timedlock(self.mutex.get(), &until) })
    }

    fn became(&self, rc: libc::c_int) -> Option<Term<'_>> {
        match rc {
            0 => {}
            // The data that the mutex guards is valid after each instruction.
            libc::EOWNERDEAD => {
                // SAFETY: this thread holds the mutex.
                unsafe { libc::pthread_mutex_consistent(self.mutex.get()) };
            }
            _ => return None,
        }
        Some(Term { election: self, not_send: PhantomData })
    }
}

/// The time as the holder; it ends when this is dropped, in the thread that became it.
#[derive(Debug)]
pub struct Term<'a> {
    election: &'a Election,
    not_send: PhantomData<*const ()>,
}

impl Drop for Term<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread holds the mutex.
        unsafe { libc::pthread_mutex_unlock(self.election.mutex.get()) };
    }
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Election").finish_non_exhaustive()
    }
}

/// A zone in anonymous shared memory, for tests and benchmarks. It is never unmapped.
pub fn anonymous(len: usize) -> Option<Zone> {
    // SAFETY: a new mapping, zeroed by the kernel.
    unsafe {
        let start = libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED { None } else { Zone::format(start.cast(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_zone_has_two_segments_for_each_worker() {
        for workers in [1, 2, 16, 64, 200] {
            let zone = anonymous(Zone::min_size(workers)).unwrap();
            assert!(zone.segments().len() >= 2 * workers + 2, "{workers}");
        }
    }

    #[test]
    fn a_deliverer_that_stops_does_not_show_over_the_next() {
        let zone = anonymous(1 << 20).unwrap();
        zone.target_slot("t", 0).unwrap();
        let [old, new] = [(); 2].map(|()| zone.enlist(std::process::id()).unwrap());
        let shown = || (zone.totals(0).state, zone.totals(0).last_fault.map(|(fault, _)| fault));
        old.show(0, State::Retrying, Some(Fault::Answered(404)));
        assert_eq!(shown(), (State::Retrying, Some(Fault::Answered(404))));
        new.show(0, State::Ok, None);
        old.show(0, State::Retrying, Some(Fault::Answered(500)));
        old.show_fault(0, Fault::Stalled);
        assert_eq!(shown(), (State::Ok, Some(Fault::Answered(404))));
    }

    #[test]
    fn the_fault_of_a_disk_is_shown_while_it_lasts() {
        let zone = anonymous(1 << 20).unwrap();
        zone.target_slot("t", 0).unwrap();
        let ledger = zone.enlist(std::process::id()).unwrap();
        let shown = || (zone.totals(0).state, zone.totals(0).last_fault.map(|(fault, _)| fault));
        ledger.show_degraded(0, Fault::DiskFull);
        ledger.show(0, State::Retrying, Some(Fault::ConnectionRefused));
        assert_eq!(shown(), (State::Degraded, Some(Fault::DiskFull)));
        ledger.show(0, State::Waiting, Some(Fault::Busy));
        assert_eq!(shown(), (State::Waiting, Some(Fault::Busy)));
        ledger.show(0, State::Retrying, Some(Fault::ConnectionRefused));
        ledger.end_degraded(0);
        assert_eq!(shown(), (State::Retrying, Some(Fault::ConnectionRefused)));
    }

    #[test]
    fn accounts_are_found_by_name() {
        let zone = anonymous(1 << 20).unwrap();
        assert_eq!(zone.target_slot("a", 0), Ok(0));
        assert_eq!(zone.target_slot("b", 1), Ok(1));
        assert_eq!(zone.target_slot("a", 3), Ok(0));
    }

    #[test]
    fn drops_are_left_for_who_reports_them() {
        let zone = anonymous(1 << 20).unwrap();
        let slot = zone.target_slot("t", 0).unwrap();
        let ledger = zone.enlist(std::process::id()).unwrap();
        assert_eq!(ledger.take_unreported(slot), None);
        ledger.leave_unreported(slot, &Drops { count: 2, first_ms: 5, last_ms: 7 });
        ledger.leave_unreported(slot, &Drops::one(3));
        let next = zone.enlist(std::process::id()).unwrap();
        let all = Drops { count: 3, first_ms: 3, last_ms: 7 };
        assert_eq!(next.take_unreported(slot), Some(all));
        assert_eq!(ledger.take_unreported(slot), None);
        ledger.leave_unreported(slot, &Drops::one(9));
        assert_eq!(next.take_unreported(slot), Some(Drops::one(9)));
    }

    #[test]
    fn a_dead_deliverer_leaves_its_place_and_its_events() {
        let zone = anonymous(1 << 20).unwrap();
        zone.target_slot("t", 0).unwrap();
        // SAFETY: the child only touches the zone and leaves without any handler.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                std::mem::forget(zone.election().stand());
                zone.count_captured(1);
                zone.count_captured(1);
                if let Some(ledger) = zone.enlist(std::process::id()) {
                    ledger.collected(0, 2);
                }
                libc::_exit(0);
            }
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            child
        };
        assert!(!alive(child as u32));
        assert_eq!(zone.totals(0).pending, 2);
        let term = zone.election().stand().expect("the kernel gives the mutex on");
        let ledger = zone.enlist(std::process::id()).unwrap();
        let totals = zone.totals(0);
        assert_eq!((totals.pending, totals.dropped[DropReason::DelivererDied as usize]), (0, 2));
        assert_eq!(ledger.holds(0), 0);
        drop(term);
        assert!(zone.election().stand().is_some());
    }

    #[test]
    fn one_delivers_at_a_time() {
        let zone = anonymous(1 << 20).unwrap();
        let term = zone.election().stand().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| assert!(zone.election().stand().is_none()));
        });
        std::thread::scope(|s| {
            let waits = s.spawn(|| zone.election().wait(Duration::from_secs(60)).is_some());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished());
            drop(term);
            assert!(waits.join().unwrap(), "who waits becomes it at once");
        });
        assert!(zone.election().stand().is_some());
    }

    #[test]
    fn a_zone_needs_no_zeroed_memory() {
        let len = 1 << 20;
        let mut memory = vec![0xa5_u8; len + 64];
        // SAFETY: nobody else uses the memory, which outlives the zone.
        let zone = unsafe { Zone::format(memory.as_mut_ptr(), len) }.unwrap();
        let slot = zone.target_slot("t", 0).unwrap();
        assert!(zone.segments().iter().all(|s| s.stage() == Stage::Free));
        let totals = zone.totals(slot);
        assert_eq!((totals.captured, totals.pending, totals.last_fault), (0, 0, None));
        assert!(zone.enlist(std::process::id()).is_some() && zone.election().stand().is_some());
    }

    #[test]
    fn who_will_stay_is_known() {
        let zone = anonymous(1 << 20).unwrap();
        let own = zone.enrol(std::process::id(), 1, Stay::Stays).unwrap();
        assert!(!zone.is_another(Some(&own), &[Stay::Stays]));
        let other = zone.enrol(std::process::id(), 1, Stay::Stays).unwrap();
        assert!(zone.is_another(Some(&own), &[Stay::Stays]));
        other.stay(Stay::Exiting);
        assert!(!zone.is_another(Some(&own), &[Stay::Stays]));
        assert!(zone.is_another(Some(&own), &[Stay::Stays, Stay::Exiting]));
        drop(other);
        assert!(!zone.is_another(Some(&own), &[Stay::Stays, Stay::Exiting]));
    }

    #[test]
    fn the_place_of_a_target_that_is_gone_is_used_again() {
        let zone = anonymous(1 << 20).unwrap();
        for i in 0..MAX_TARGETS {
            assert_eq!(zone.target_slot(&format!("t{i}"), 0), Ok(i));
        }
        zone.configure(!(1 << 3 | 1 << 4));
        zone.count_captured(1 << 3);
        let worker = zone.enrol(std::process::id(), 1 << 3, Stay::Exiting).unwrap();
        // A process still captures for one of the two, and the other is this configuration's.
        assert_eq!(zone.target_slot("new", 1 << 4), Err(NoSlot));
        drop(worker);
        assert_eq!(zone.target_slot("new", 1 << 4), Ok(3));
        assert_eq!((zone.target_name(3), zone.totals(3).captured), ("new", 0));
    }
}
