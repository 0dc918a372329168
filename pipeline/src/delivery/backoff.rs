//! The pauses between attempts that fail.

use std::time::{Duration, Instant};

/// First pause after an attempt that failed, and how it grows.
pub const FIRST: Duration = Duration::from_millis(100);
pub(crate) const GROWTH: f64 = 1.5;

/// Pauses that grow up to a limit, each up to a quarter longer or shorter, so that not all clients of a server
/// return at once.
#[derive(Debug)]
pub struct Backoff {
    until: Option<Instant>,
    length: Duration,
    most: Duration,
}

impl Backoff {
    /// For a target without a failure; a pause will be at most `most`.
    pub fn new(most: Duration) -> Self {
        Self { until: None, length: FIRST, most }
    }

    /// An attempt failed.
    pub fn failed(&mut self, now: Instant) {
        let jitter = 0.75 + 0.5 * fastrand::f64();
        self.until = Some(now + self.length.mul_f64(jitter).min(self.most));
        self.length = self.length.mul_f64(GROWTH).min(self.most);
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self) {
        *self = Self::new(self.most);
    }

    /// Whether the pauses have reached their limit.
    pub fn is_longest(&self) -> bool {
        self.length == self.most
    }

    /// The rest of the pause; zero if the next attempt is due.
    pub fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}
