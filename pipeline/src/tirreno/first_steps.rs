//! Holds failed logins in memory that may be the first step of a login with two.
//!
//! Successful logins are sent with priority, so one may arrive here before the failure that it withdraws.
//! It is remembered for a while, and the stamps tell which was captured first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many successful logins are remembered.
const MOST_GOOD: usize = 1024;

/// The failed logins that wait, and the successful ones that have not withdrawn any.
#[derive(Debug)]
pub(super) struct FirstSteps<E> {
    delay: Duration,
    waiting: VecDeque<Waiting<E>>,
    bytes: usize,
    /// The attempt and the stamp of the latest successful logins.
    good: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Waiting<E> {
    due: Instant,
    attempt: u64,
    stamp: u64,
    bytes: usize,
    event: E,
}

impl<E> FirstSteps<E> {
    /// Failed logins wait for `delay`; if it is zero, they do not wait.
    pub(super) fn new(delay: Duration) -> Self {
        Self { delay, waiting: VecDeque::new(), bytes: 0, good: VecDeque::new() }
    }

    /// Adds a failed login with that stamp. Returns it if a successful one has followed.
    pub(super) fn failed(&mut self, attempt: u64, stamp: u64, bytes: usize, event: E) -> Option<E> {
        let next = self.good.iter().enumerate().filter(|(_, (known, good))| {
            *known == attempt && stamp < *good && u128::from(*good - stamp) < self.delay.as_nanos()
        });
        if let Some((place, _)) = next.min_by_key(|(_, (_, good))| *good) {
            self.good.remove(place);
            return Some(event);
        }
        let due = Instant::now() + self.delay;
        self.waiting.push_back(Waiting { due, attempt, stamp, bytes, event });
        self.bytes += bytes;
        None
    }

    /// Adds a successful login with that stamp. Returns the failed login directly before it, which was only
    /// its first step.
    pub(super) fn good(&mut self, attempt: u64, stamp: u64) -> Option<E> {
        if self.delay.is_zero() {
            return None;
        }
        let is_before = |failed: &Waiting<E>| failed.attempt == attempt && failed.stamp < stamp;
        let Some(place) = self.waiting.iter().rposition(is_before) else {
            if self.good.len() == MOST_GOOD {
                self.good.pop_front();
            }
            self.good.push_back((attempt, stamp));
            return None;
        };
        let failed = self.waiting.remove(place)?;
        self.bytes -= failed.bytes;
        Some(failed.event)
    }

    /// The next failed login that has waited until `now`, or that has to go because more than `most` of
    /// them, or more than `most_bytes`, wait.
    pub(super) fn next(&mut self, now: Instant, most: usize, most_bytes: usize) -> Option<E> {
        let first = self.waiting.front()?;
        if first.due > now && self.waiting.len() <= most && self.bytes <= most_bytes {
            return None;
        }
        let failed = self.waiting.pop_front()?;
        self.bytes -= failed.bytes;
        Some(failed.event)
    }

    /// All that wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = &E> {
        self.waiting.iter().map(|failed| &failed.event)
    }

    /// When the next failed login has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|failed| failed.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(60);
    const ALL: (usize, usize) = (usize::MAX, usize::MAX);

    fn steps() -> FirstSteps<&'static str> {
        FirstSteps::new(DELAY)
    }

    #[test]
    fn a_successful_login_withdraws_the_failure_directly_before_it() {
        let mut steps = steps();
        for (stamp, name) in [(1, "first"), (2, "second"), (9, "later")] {
            assert_eq!(steps.failed(7, stamp, 10, name), None);
        }
        assert_eq!(steps.good(8, 3), None);
        assert_eq!(steps.good(7, 3), Some("second"));
        assert_eq!(steps.good(7, 4), Some("first"));
        assert_eq!(steps.good(7, 5), None);
        assert_eq!((steps.waiting.len(), steps.bytes), (1, 10));
    }

    #[test]
    fn also_where_the_good_one_came_here_first() {
        let mut steps = steps();
        assert_eq!(steps.good(7, 3), None);
        assert_eq!(steps.failed(7, 4, 1, "after"), None);
        assert_eq!(steps.failed(8, 2, 1, "another's"), None);
        assert_eq!(steps.failed(7, 2, 1, "before"), Some("before"));
        // A successful login withdraws only one failure.
        assert_eq!(steps.failed(7, 1, 1, "long before"), None);
        // A failure that had already waited long enough is not withdrawn.
        let late = DELAY.as_nanos() as u64;
        assert_eq!(steps.good(9, late + 5), None);
        assert_eq!(steps.failed(9, 5, 1, "too early"), None);
        assert_eq!(steps.failed(9, 6, 1, "in time"), Some("in time"));
        for stamp in 0..5000 {
            steps.good(stamp, 1);
        }
        assert_eq!(steps.good.len(), MOST_GOOD);
    }

    #[test]
    fn what_has_waited_or_is_too_much_is_given_back() {
        let mut steps = steps();
        let now = Instant::now();
        for (stamp, name) in [(1, "a"), (2, "b"), (3, "c")] {
            steps.failed(stamp, stamp, 10, name);
        }
        assert_eq!(steps.next(now, ALL.0, ALL.1), None);
        assert_eq!(steps.next(now, 2, ALL.1), Some("a"));
        assert_eq!(steps.next(now, ALL.0, 19), Some("b"));
        assert!(steps.due().is_some_and(|due| due > now));
        assert_eq!(steps.next(now + 2 * DELAY, ALL.0, ALL.1), Some("c"));
        assert_eq!((steps.next(now + 2 * DELAY, 0, 0), steps.due()), (None, None));
    }
}
