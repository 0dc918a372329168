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
            tries += 1;
            let version = self.0.load(Acquire);
            let changes = !version.is_multiple_of(2);
            // A writer that was killed in the middle leaves an odd number until the next one comes.
            if changes && tries < TRIES {
                // It may wait for this very processor.
                std::thread::yield_now();
                continue;
            }
            let value = read();
            fence(Acquire);
            if tries >= TRIES || !changes && self.0.load(Relaxed) == version {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_changes_meanwhile_is_read_again() {
        let (version, fields) = (Version::default(), [(); 2].map(|()| AtomicU64::new(1)));
        let reads = Cell::new(0);
        let read = version.read(|| {
            let one = fields[0].load(Relaxed);
            reads.set(reads.get() + 1);
            if reads.get() <= 2 {
                version.change(|| fields.iter().for_each(|f| f.store(reads.get() + 1, Relaxed)));
            }
            (one, fields[1].load(Relaxed))
        });
        assert_eq!((read, reads.get()), ((3, 3), 3));
    }

    #[test]
    fn a_writer_that_was_killed_holds_up_nobody() {
        let (version, field) = (Version(AtomicU64::new(7)), AtomicU64::new(1));
        assert_eq!(version.read(|| field.load(Relaxed)), 1);
        version.change(|| field.store(2, Relaxed));
        assert!(version.0.load(Relaxed).is_multiple_of(2));
        assert_eq!(version.read(|| field.load(Relaxed)), 2);
    }
}
