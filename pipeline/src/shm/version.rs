//! Several fields of shared memory that change together.

use std::sync::atomic::{AtomicU64, Ordering::*, fence};

/// How often what is changed together is read, or waited for, until it is whole.
const TRIES: usize = 1000;

/// Tells whoever reads the fields whether somebody changed them meanwhile; zeros are its beginning. The
/// fields themselves are atomics.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(crate) struct Version(
    /// Odd while they change.
    AtomicU64,
);

impl Version {
    /// Reads the fields, until nobody changes them meanwhile.
    pub(crate) fn read<T>(&self, read: impl Fn() -> T) -> T {
        let mut tries = 0;
        loop {
            let version = self.0.load(Acquire);
            let value = read();
            fence(Acquire);
            tries += 1;
            let is_whole = version.is_multiple_of(2) && self.0.load(Relaxed) == version;
            // A writer that was killed in the middle leaves an odd number until the next one comes.
            if is_whole || tries == TRIES {
                return value;
            }
        }
    }

    /// Changes the fields, while no other process does.
    pub(crate) fn change(&self, change: impl FnOnce()) {
        let mut version = self.0.load(Relaxed);
        // Where another process is at it for so long, it was killed.
        for _ in 0..TRIES {
            if version.is_multiple_of(2) {
                match self.0.compare_exchange(version, version + 1, Acquire, Relaxed) {
                    Ok(_) => break,
                    Err(other) => version = other,
                }
            } else {
                std::thread::yield_now();
                version = self.0.load(Relaxed);
            }
        }
        let version = version | 1;
        self.0.store(version, Relaxed);
        fence(Release);
        change();
        self.0.store(version + 1, Release);
    }
}
