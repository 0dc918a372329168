//! A segment of the shared memory: what one worker writes, the collector reads, and the collector frees.

use std::sync::atomic::Ordering::*;

use crate::record::Record;
#[cfg(not(loom))]
use crate::shm::MAX_TARGETS;
use crate::shm::sync::{AtomicU32, AtomicU64, Room};

/// Bytes of a segment, with its state. Small enough that each of the many old workers on a machine full of
/// WebSockets can hold one, large enough that a busy worker rarely needs a new one.
pub(crate) const SEGMENT: usize = 64 * 1024;
/// In a model there are two targets: one with a cursor, and one without.
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
    /// Bytes that every target has taken; written by the collector only.
    pub(crate) done: AtomicU32,
    pub(crate) cursors: Cursors,
    data: Room<{ Segment::ROOM }>,
}

/// Where a record lies in the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment's number.
    pub segment: u32,
    /// Where the record ends, in bytes.
    pub end: u32,
}

/// How many bytes of a segment each target has taken. In cache lines that the segment's owner does not write.
#[repr(C, align(64))]
pub(crate) struct Cursors([AtomicU32; MAX_TARGETS]);

impl Cursors {
    pub(crate) fn get(&self, slot: usize) -> u32 {
        self.0[slot].load(Acquire)
    }

    /// The target has taken what lies before `end`.
    pub(crate) fn advance(&self, slot: usize, end: u32) {
        self.0[slot].fetch_max(end, Release);
    }

    fn reset(&self) {
        self.0.iter().for_each(|cursor| cursor.store(0, Relaxed));
    }
}

/// The stage of a segment: free; claimed by a worker that resets it; open for that worker's records; closed
/// when the next record does not fit. The collector frees it when every target has taken all records.
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

    /// Another target gets the index `slot`: it has taken nothing yet.
    pub(crate) fn forget_target(&self, slot: usize) {
        self.cursors.0[slot].store(0, Relaxed);
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::unpack(self.owner.load(Acquire))
    }

    /// Claims a free segment for this process, and opens it empty.
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

    /// The owner writes no more records.
    pub(crate) fn close(&self, pid: u32) {
        self.owner.store(Stage::Closed(pid).pack(), Release);
    }

    /// Frees the segment; only the collector, when the segment is over.
    pub(crate) fn free(&self) {
        self.owner.store(Stage::Free.pack(), Release);
    }

    /// Whether there are published records that some target has not taken.
    pub(crate) fn is_waiting(&self) -> bool {
        match self.stage() {
            Stage::Free | Stage::Claimed(_) => false,
            _ => self.written.load(Acquire) > self.done.load(Relaxed),
        }
    }

    /// Whether its owner writes no more records, and all were read.
    pub(crate) fn is_over(&self, read: u32) -> bool {
        // The stage is read first: a closed segment has all its records.
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

    /// The bytes behind the published records.
    ///
    /// # Safety
    /// Only the owner may call it, and must drop the slice before it publishes.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn unpublished(&self) -> &mut [u8] {
        let start = (self.written.load(Relaxed) as usize).min(Self::ROOM);
        // SAFETY: nobody reads behind `written`, and the owner is one thread.
        unsafe { self.data.write(start..Self::ROOM) }
    }

    /// Prefetches the next `len` bytes: the collector's processor has the cache lines from reading the old
    /// records, and without this the next write would wait for them.
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
