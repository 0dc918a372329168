//! How fast events may be sent: a configured rate, and what the server's 429s teach.
//!
//! Tirreno counts accepted events in a sliding window and answers 429 above its limit, without saying
//! what the limit is or when to come back; a 429 itself does not count. So the pacer sends freely
//! until the first 429, then waits until an event is accepted again. By then the window has passed
//! once, so what was accepted in that time is the rate. From there on it sends evenly, goes up
//! slowly while events wait, and down at each further 429.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much a 429 takes off the rate.
const DECREASE: f64 = 0.9;
/// How much a second without a 429 adds, as a share of the rate …
const INCREASE: f64 = 0.01;
/// … doubling each time such a while has passed, so that a limit that was lifted is found soon, …
const INCREASE_DOUBLES: Duration = Duration::from_secs(30);
/// … up to this.
const INCREASE_MAX: f64 = 0.16;
/// 429s that come together are one.
const TOGETHER: Duration = Duration::from_secs(1);
/// The first pause between attempts while the window is full, and the longest.
const PROBE: Duration = Duration::from_millis(500);
const PROBE_MAX: Duration = Duration::from_secs(2);
/// The shortest time from which a rate is learned: below it a burst looks like a rate.
const SPAN: Duration = Duration::from_secs(4);
/// Below and above this, in events a second, a learned rate means nothing.
const SLOWEST: f64 = 0.1;
const FASTEST: f64 = 2000.0;
/// Accepted events that are remembered to learn from.
const MEMORY: usize = 1024;
/// A sender that woke up late may catch up on this much.
const LATE: Duration = Duration::from_millis(50);

/// Tells when the next event may be sent to one target, over all its connections.
#[derive(Debug)]
pub struct Pacer {
    ceiling: Option<f64>,
    learned: Option<f64>,
    next: Option<Instant>,
    accepted: VecDeque<Instant>,
    refused_in_a_row: u32,
    decreased: Option<Instant>,
}

impl Pacer {
    /// A pacer that never exceeds `ceiling` events a second.
    pub fn new(ceiling: Option<f64>) -> Self {
        Self {
            ceiling,
            learned: None,
            next: None,
            accepted: VecDeque::new(),
            refused_in_a_row: 0,
            decreased: None,
        }
    }

    /// The rate in force in events a second, if there is one.
    pub fn rate(&self) -> Option<f64> {
        match (self.ceiling, self.learned) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Whether the server answered 429 more than once in a row.
    pub fn is_probing(&self) -> bool {
        self.refused_in_a_row > 1
    }

    /// How long to wait before the next event; zero: send now.
    pub fn wait(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// An event is sent now.
    pub fn sent(&mut self, now: Instant) {
        self.next = self.rate().map(|rate| {
            let late = now.checked_sub(LATE).unwrap_or(now);
            self.next.unwrap_or(now).max(late) + Duration::from_secs_f64(1.0 / rate)
        });
    }

    /// The server took an event; `waiting` tells whether more wait to be sent.
    pub fn accepted(&mut self, now: Instant, waiting: bool) {
        if self.accepted.len() == MEMORY {
            self.accepted.pop_front();
        }
        self.accepted.push_back(now);
        let was_full = std::mem::take(&mut self.refused_in_a_row) > 0;
        match self.learned {
            None if was_full => {
                self.learned = Some(self.observed(now));
                self.decreased = Some(now);
                self.next = Some(now);
            }
            Some(rate) if waiting && self.ceiling.is_none_or(|c| rate < c) => {
                let calm = self.decreased.map_or(Duration::ZERO, |at| now - at);
                let doublings = calm.as_secs_f64() / INCREASE_DOUBLES.as_secs_f64();
                let share = (INCREASE * doublings.floor().exp2()).min(INCREASE_MAX);
                // One of `rate` events a second adds its part of the second's increase.
                let rate = rate * (1.0 + share / rate.max(1.0));
                self.learned = (rate < FASTEST).then_some(rate);
            }
            _ => {}
        }
    }

    /// The server answered 429.
    pub fn refused(&mut self, now: Instant) {
        self.refused_in_a_row += 1;
        if let Some(rate) = self.learned
            && self.decreased.is_none_or(|at| now - at >= TOGETHER)
        {
            self.learned = Some((rate * DECREASE).max(SLOWEST));
            self.decreased = Some(now);
        }
        let probe = PROBE.mul_f64(1.3f64.powi(self.refused_in_a_row.min(16) as i32 - 1));
        let even = self.rate().map_or(PROBE, |r| Duration::from_secs_f64(1.0 / r));
        let pause = match self.learned {
            Some(_) if self.refused_in_a_row == 1 => even,
            _ => probe.min(PROBE_MAX).max(even),
        };
        self.next = Some(now + pause);
    }

    /// The highest rate at which events were accepted over some span that ends now.
    fn observed(&self, now: Instant) -> f64 {
        let count = self.accepted.len();
        let rates = self.accepted.iter().enumerate().filter_map(|(i, at)| {
            let span = now - *at;
            (span >= SPAN).then(|| (count - i) as f64 / span.as_secs_f64())
        });
        let all = count as f64 / SPAN.as_secs_f64();
        rates
            .fold(None, |best: Option<f64>, r| Some(best.map_or(r, |b| b.max(r))))
            .unwrap_or(all)
            .max(SLOWEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sensor that takes `most` events in any `window`, and what it did in some time.
    struct Window {
        most: usize,
        window: Duration,
        taken: VecDeque<Instant>,
    }

    impl Window {
        fn take(&mut self, now: Instant) -> bool {
            while self.taken.front().is_some_and(|at| now - *at >= self.window) {
                self.taken.pop_front();
            }
            let free = self.taken.len() < self.most;
            if free {
                self.taken.push_back(now);
            }
            free
        }
    }

    /// Runs a backlog that never ends against a window: accepted and refused from `from` to `to`
    /// seconds.
    fn run(pacer: &mut Pacer, most: usize, window: u64, from: u64, to: u64) -> (f64, f64) {
        let start = Instant::now();
        let mut sensor =
            Window { most, window: Duration::from_secs(window), taken: VecDeque::new() };
        let mut now = start;
        let (mut accepted, mut refused) = (0.0, 0.0);
        while now < start + Duration::from_secs(to) {
            let wait = pacer.wait(now);
            if !wait.is_zero() {
                now += wait;
                continue;
            }
            pacer.sent(now);
            now += Duration::from_millis(15);
            let counts = now >= start + Duration::from_secs(from);
            if sensor.take(now) {
                pacer.accepted(now, true);
                accepted += f64::from(counts);
            } else {
                pacer.refused(now);
                refused += f64::from(counts);
            }
        }
        (accepted, refused)
    }

    #[test]
    fn learns_a_limit() {
        for (most, window) in [(25, 5), (200, 20), (5, 1), (600, 60)] {
            let (accepted, refused) = run(&mut Pacer::new(None), most, window, 60, 360);
            let allowed = most as f64 / window as f64 * 300.0;
            println!("{most} in {window} s: {:.3} used", accepted / allowed);
            println!("  {:.3} refused", refused / (accepted + refused));
            assert!(accepted >= 0.85 * allowed, "{most}/{window}: {accepted} of {allowed}");
            assert!(refused <= 0.1 * (accepted + refused), "{most}/{window}: {refused} refused");
        }
    }

    #[test]
    fn a_lifted_limit_is_found() {
        let mut pacer = Pacer::new(None);
        run(&mut pacer, 25, 5, 0, 120);
        let (accepted, refused) = run(&mut pacer, 100_000, 1, 240, 250);
        assert!(accepted > 500.0 && refused == 0.0, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn a_ceiling_holds() {
        let mut pacer = Pacer::new(Some(10.0));
        let (accepted, _) = run(&mut pacer, 100_000, 1, 0, 60);
        assert!((595.0..=605.0).contains(&accepted), "{accepted}");
        let (accepted, refused) = run(&mut Pacer::new(Some(10.0)), 25, 5, 60, 360);
        assert!(accepted >= 0.85 * 1500.0 && refused <= 0.1 * (accepted + refused));
    }

    #[test]
    fn no_limit_no_wait() {
        let mut pacer = Pacer::new(None);
        let now = Instant::now();
        for _ in 0..100 {
            assert!(pacer.wait(now).is_zero());
            pacer.sent(now);
            pacer.accepted(now, true);
        }
    }
}
