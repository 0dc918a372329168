//! A segment of the shared memory: what one worker writes, the collector reads, and the collector frees.

use std::sync::atomic::Ordering::*;

use crate::record::Record;
use crate::shm::sync::{AtomicU32, AtomicU64, Room};
#[cfg(not(loom))]
use crate::shm::zone::MAX_TARGETS;

/// Bytes of a segment, state included. Small enough that the many old workers of a machine full of
/// WebSockets can each hold one, large enough that a busy worker takes a new one rarely.
pub(crate) const SEGMENT: usize = 64 * 1024;
/// In a model: a target has a cursor, another one has none.
#[cfg(loom)]
const MAX_TARGETS: usize = 2;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Segment>() == SEGMENT);

/// See the module.
#[repr(C, align(64))]
pub(crate) struct Segment {
    /// The owner's process id in the low half, the [`Stage`] in the high half.
    owner: AtomicU64,
    /// Bytes of whole records; written by the owner only.
    pub(crate) written: AtomicU32,
    /// Bytes that every target is done with; written by the collector only.
    pub(crate) done: AtomicU32,
    pub(crate) cursors: Cursors,
    data: Room<{ Segment::ROOM }>,
}

/// How far each target has taken its records of a segment, in bytes. Apart from what the owner writes.
#[repr(C, align(64))]
pub(crate) struct Cursors([AtomicU32; MAX_TARGETS]);

impl Cursors {
    pub(crate) fn get(&self, slot: usize) -> u32 {
        self.0[slot].load(Acquire)
    }

    /// What lies before `end` is taken.
    pub(crate) fn advance(&self, slot: usize, end: u32) {
        self.0[slot].fetch_max(end, Release);
    }

    fn reset(&self) {
        self.0.iter().for_each(|cursor| cursor.store(0, Relaxed));
    }
}

/// Stage of a segment. A segment is free, is claimed and reset by a worker, is open for its records,
/// is closed when the next record does not fit, and is freed by the deliverer when all is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Free,
    Claimed(u32),
    Open(u32),
    Closed(u32),
}

impl Stage {
    fn pack(self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Claimed(pid) => 1 << 32 | u64::from(pid),
            Self::Open(pid) => 2 << 32 | u64::from(pid),
            Self::Closed(pid) => 3 << 32 | u64::from(pid),
        }
    }

    fn unpack(packed: u64) -> Self {
        let pid = packed as u32;
        match packed >> 32 {
            1 => Self::Claimed(pid),
            2 => Self::Open(pid),
            3 => Self::Closed(pid),
            _ => Self::Free,
        }
    }
}

impl Segment {
    /// Bytes for records.
    #[cfg(not(loom))]
    pub(crate) const ROOM: usize = SEGMENT - 64 - size_of::<Cursors>();
    /// In a model: for two records of [`model`](crate::shm::model).
    #[cfg(loom)]
    pub(crate) const ROOM: usize = 192;

    /// Makes the memory at `place` a free segment; its records are not touched.
    ///
    /// # Safety
    /// The memory is large enough, aligned and in nobody's use.
    #[cfg(not(loom))]
    pub(crate) unsafe fn format(place: *mut Self) {
        // SAFETY: the caller's promise; every byte is a valid atomic.
        unsafe { (*place).owner.store(Stage::Free.pack(), Relaxed) };
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let cursors = Cursors(std::array::from_fn(|_| zero()));
        let owner = AtomicU64::new(Stage::Free.pack());
        Self { owner, written: zero(), done: zero(), cursors, data: Room::new() }
    }

    /// Another target gets the place `slot`: it has taken nothing yet.
    pub(crate) fn forget_target(&self, slot: usize) {
        self.cursors.0[slot].store(0, Relaxed);
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::unpack(self.owner.load(Acquire))
    }

    /// Makes a free segment this process's own, empty and open.
    pub(crate) fn claim(&self, pid: u32) -> bool {
        let (free, claimed) = (Stage::Free.pack(), Stage::Claimed(pid).pack());
        if self.owner.load(Relaxed) != free
            || self.owner.compare_exchange(free, claimed, AcqRel, Relaxed).is_err()
        {
            return false;
        }
        self.written.store(0, Relaxed);
        self.done.store(0, Relaxed);
        self.cursors.reset();
        self.owner.store(Stage::Open(pid).pack(), Release);
        true
    }

    /// The owner writes no more.
    pub(crate) fn close(&self, pid: u32) {
        self.owner.store(Stage::Closed(pid).pack(), Release);
    }

    /// Gives the segment back; only the deliverer, when the owner is through with it.
    pub(crate) fn free(&self) {
        self.owner.store(Stage::Free.pack(), Release);
    }

    /// Whether records are published that some target has not taken.
    pub(crate) fn is_waiting(&self) -> bool {
        match self.stage() {
            Stage::Free | Stage::Claimed(_) => false,
            _ => self.written.load(Acquire) > self.done.load(Relaxed),
        }
    }

    /// Whether its owner writes no more, and nothing lies behind `read`.
    pub(crate) fn is_over(&self, read: u32) -> bool {
        // The stage is read first: what is closed has all its records.
        matches!(self.stage(), Stage::Closed(_)) && self.written.load(Acquire) == read
    }

    /// Whether a record waits for one of `targets`.
    pub(crate) fn has_records_for(&self, targets: u32) -> bool {
        if !self.is_waiting() {
            return false;
        }
        let mut rest = self.published(self.done.load(Relaxed));
        while let Some(record) = Record::parse(rest) {
            if record.targets() & targets != 0 {
                return true;
            }
            rest = &rest[record.bytes().len()..];
        }
        !rest.is_empty()
    }

    /// The published records from `from` on.
    pub(crate) fn published(&self, from: u32) -> &[u8] {
        let end = (self.written.load(Acquire) as usize).min(Self::ROOM);
        let start = (from as usize).min(end);
        // SAFETY: what lies before `written` is never written again while the segment has an owner,
        // and only the deliverer, the caller, can take the owner away.
        unsafe { self.data.read(start..end) }
    }

    /// The bytes behind what is published.
    ///
    /// # Safety
    /// Only the owner may call it, and must drop the slice before it publishes.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn unpublished(&self) -> &mut [u8] {
        let start = (self.written.load(Relaxed) as usize).min(Self::ROOM);
        // SAFETY: nobody reads behind `written`, and the owner is one thread.
        unsafe { self.data.write(start..Self::ROOM) }
    }

    /// Asks the processor for the next `len` bytes: the deliverer's has read what was there before,
    /// and without this the next record would wait for them.
    pub(crate) fn prefetch(&self, len: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let start = self.written.load(Relaxed) as usize;
            for at in (start..Self::ROOM.min(start + len)).step_by(64) {
                // SAFETY: the address is one of this segment's.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(self.data.at(at).cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = len;
    }
}
