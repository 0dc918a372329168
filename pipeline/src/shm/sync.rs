//! What the memory of a ring is made of: the processor's atomics and plain bytes. Built with `--cfg loom`, it is that
//! of loom, which runs the code of the ring in all orders that the memory model allows (see `model.rs`).

pub(crate) use kind::*;

#[cfg(not(loom))]
mod kind {
    use std::cell::UnsafeCell;
    use std::ops::Range;
    use std::slice;
    pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};

    pub(crate) use crate::clock::monotonic_ns;

    /// Bytes that one process writes while others read those that it has published.
    #[repr(transparent)]
    pub(crate) struct Room<const N: usize>(UnsafeCell<[u8; N]>);

    impl<const N: usize> Room<N> {
        /// # Safety
        /// The range lies in the room, and nobody writes it while the slice is used.
        #[inline]
        pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[u8] {
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts(self.at(range.start), range.len()) }
        }

        /// # Safety
        /// The range lies in the room, and nobody else reads or writes it while the slice is used.
        #[allow(clippy::mut_from_ref)]
        #[inline]
        pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [u8] {
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts_mut(self.at(range.start), range.len()) }
        }

        /// The address of a byte.
        #[inline]
        pub(crate) fn at(&self, place: usize) -> *mut u8 {
            self.0.get().cast::<u8>().wrapping_add(place)
        }
    }
}

#[cfg(loom)]
mod kind {
    use std::cell::UnsafeCell;
    use std::ops::Range;
    use std::slice;

    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64};

    /// Records begin and end on these boundaries.
    const WORD: usize = 8;

    /// The same for loom, which watches each word: a model fails if one process may read a word while another
    /// one writes it.
    pub(crate) struct Room<const N: usize> {
        bytes: UnsafeCell<[u8; N]>,
        words: Vec<loom::cell::UnsafeCell<()>>,
    }

    impl<const N: usize> Room<N> {
        pub(crate) fn new() -> Self {
            let words = (0..N / WORD).map(|_| loom::cell::UnsafeCell::new(())).collect();
            Self { bytes: UnsafeCell::new([0; N]), words }
        }

        /// # Safety
        /// The range lies in the room, and nobody writes it while the slice is used.
        pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[u8] {
            self.words(&range).iter().for_each(|word| word.with(|_| ()));
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts(self.at(range.start), range.len()) }
        }

        /// # Safety
        /// As where this is not a model.
        #[allow(clippy::mut_from_ref)]
        pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [u8] {
            self.words(&range).iter().for_each(|word| word.with_mut(|_| ()));
            // SAFETY: the caller's promise.
            unsafe { slice::from_raw_parts_mut(self.at(range.start), range.len()) }
        }

        pub(crate) fn at(&self, place: usize) -> *mut u8 {
            self.bytes.get().cast::<u8>().wrapping_add(place)
        }

        fn words(&self, range: &Range<usize>) -> &[loom::cell::UnsafeCell<()>] {
            &self.words[range.start / WORD..range.end / WORD]
        }
    }

    /// A clock that stands: each run of a model must do the same. Stamps are in order without it.
    pub(crate) fn monotonic_ns() -> u64 {
        0
    }
}
