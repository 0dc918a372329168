//! Bytes kept from bodies, with a limit for each request and for the process, and overwritten in the end.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use zeroize::Zeroize;

use super::Found;

/// The most bytes that are kept for one request.
pub const MAX_KEPT: usize = 8 << 10;

/// The most bytes that one process keeps for all its requests.
const MAX_KEPT_OF_ALL: usize = 16 << 20;

/// The limit for all requests of this process.
pub static BUDGET: Budget = Budget::new(MAX_KEPT_OF_ALL);

/// A limit for all requests together.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    refused: AtomicU64,
    most: usize,
}

impl Budget {
    /// A limit of `most` bytes.
    pub const fn new(most: usize) -> Self {
        Self { used: AtomicUsize::new(0), refused: AtomicU64::new(0), most }
    }

    /// The number of bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many times a request found no room, which made its body unreadable.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.most);
        let fits = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !fits {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The room of one request.
#[derive(Clone, Debug)]
pub struct Room {
    budget: &'static Budget,
    /// The rest of [`MAX_KEPT`].
    left: Rc<Cell<usize>>,
}

impl Room {
    /// The whole room of a new request.
    pub fn new(budget: &'static Budget) -> Self {
        Self { budget, left: Rc::new(Cell::new(MAX_KEPT)) }
    }

    /// A share of the room, for one reader.
    pub(super) fn share(&self) -> Share {
        Share { room: self.clone(), taken: 0, kept: 0 }
    }
}

/// One reader's share of a request's room. Dropping it gives the room back.
#[derive(Debug)]
pub(super) struct Share {
    room: Room,
    /// The bytes taken from the budget.
    taken: usize,
    /// The bytes among them that are for values.
    kept: usize,
}

impl Share {
    /// Takes room for the reader itself, which does not count against [`MAX_KEPT`].
    #[must_use]
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.room.budget.take(bytes);
        if fits {
            self.taken += bytes;
        }
        fits
    }

    fn take_kept(&mut self, bytes: usize) -> bool {
        let left = self.room.left.get();
        let fits = bytes <= left && self.take(bytes);
        if fits {
            self.kept += bytes;
            self.room.left.set(left - bytes);
        }
        fits
    }

    fn give_back_kept(&mut self, bytes: usize) {
        self.taken -= bytes;
        self.kept -= bytes;
        self.room.left.set(self.room.left.get() + bytes);
        self.room.budget.give_back(bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.left.set(self.room.left.get() + self.kept);
        self.room.budget.give_back(self.taken);
    }
}

/// The bytes of a value or a name, overwritten when they are moved or dropped. They occupy room of the
/// share until they are [released](Self::release), or the share is dropped.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<u8>);

/// There is no room for more.
#[derive(Debug)]
pub(super) struct Full;

impl Kept {
    pub(super) fn push(&mut self, bytes: &[u8], share: &mut Share) -> Result<(), Full> {
        let len = self.0.len() + bytes.len();
        if len > self.0.capacity() {
            let capacity = len.next_power_of_two().max(32);
            if !share.take_kept(capacity - self.0.capacity()) {
                return Err(Full);
            }
            let mut grown = Vec::with_capacity(capacity);
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = grown;
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Removes the blanks and line ends around the text.
    pub(super) fn trim(&mut self) {
        self.0.truncate(self.0.trim_ascii_end().len());
        self.0.drain(..self.0.len() - self.0.trim_ascii_start().len());
    }

    /// Overwrites the bytes, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }

    /// Overwrites the bytes, and gives the room back.
    pub(super) fn release(&mut self, share: &mut Share) {
        share.give_back_kept(self.0.capacity());
        self.0.zeroize();
        self.0 = Vec::new();
    }

    /// The bytes as a value.
    pub(super) fn text(&self) -> Found<'_> {
        match str::from_utf8(&self.0) {
            Ok(text) if !text.contains(char::is_control) => Found::Value(text),
            _ => Found::Unreadable,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_for_one_and_for_all_and_comes_back() {
        static SMALL: Budget = Budget::new(10_000);
        let room = Room::new(&SMALL);
        let mut share = room.share();
        let mut kept = Kept::default();
        for _ in 0..MAX_KEPT / 8 {
            kept.push(b"12345678", &mut share).unwrap();
        }
        assert_eq!(SMALL.used(), MAX_KEPT);
        assert!(kept.push(b"9", &mut share).is_err());
        let mut other = Room::new(&SMALL).share();
        assert!(!other.take(2000));
        assert_eq!(SMALL.refused(), 1);
        assert!(other.take(1000));
        kept.release(&mut share);
        assert_eq!((SMALL.used(), kept.bytes()), (1000, &b""[..]));
        kept.push(b"more", &mut share).unwrap();
        assert_eq!(SMALL.used(), 1032);
        drop((share, other));
        assert_eq!(SMALL.used(), 0);
    }

    #[test]
    fn only_text_is_a_value() {
        let mut share = Room::new(&BUDGET).share();
        for (bytes, found) in [
            (&b""[..], Found::Value("")),
            (b"ann", Found::Value("ann")),
            ("é".as_bytes(), Found::Value("é")),
            (b"\xff", Found::Unreadable),
            (b"a\0b", Found::Unreadable),
            (b"a\nb", Found::Unreadable),
        ] {
            let mut kept = Kept::default();
            kept.push(bytes, &mut share).unwrap();
            assert_eq!(kept.text(), found, "{bytes:?}");
        }
    }
}
