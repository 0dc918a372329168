//! What is counted of repeated events, for all collectors.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A key, and one word with a minute since the epoch and the count in it.
#[repr(C)]
#[derive(Debug)]
pub struct Counter {
    pub(crate) key: AtomicU64,
    pub(crate) state: AtomicU64,
}

impl Counter {
    pub(crate) fn minute(&self) -> u64 {
        self.state.load(Relaxed) >> 32
    }

    pub(crate) fn count(&self) -> u64 {
        self.state.load(Relaxed) & u64::from(u32::MAX)
    }

    pub(crate) fn set(&self, minute: u64, count: u64) {
        self.state.store(minute << 32 | count.min(u64::from(u32::MAX)), Relaxed);
    }
}
