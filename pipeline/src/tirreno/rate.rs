//! How fast events may be sent: a configured rate, and what the server's 429s teach.
//!
//! Tirreno counts accepted events in a sliding window and answers 429 above its limit, without saying
//! what the limit is or when to come back; a 429 itself does not count. Several hosts may share one
//! limit and know nothing of each other.
//!
//! So the pacer sends freely until the first 429, and probes until an event is accepted again: by then
//! the window has passed. What a host got out of that first burst says nothing about its fair share.
//! Hence all start again at the same rate and grow alike until the window is full once more: what a
//! host got in that time is its share. From there on the rate grows by the same amount for all hosts
//! (additive increase), and falls by a part of itself with a 429 (multiplicative decrease), which makes
//! unequal shares equal. The longer there was no 429, the faster it grows, so that the share of a host
//! that has stopped, or a limit that was lifted, is found soon.

use std::time::{Duration, Instant};

/// What of a share that was found is used.
const MARGIN: f64 = 1.05;
/// What a 429 leaves of the rate.
const DECREASE: f64 = 0.88;
/// By how much the rate grows, in events a second, each second …
const INCREASE: f64 = 0.002;
/// … for so long after a 429; from then on the increase …
const CALM: Duration = Duration::from_secs(20);
/// … doubles each time this has passed, …
const INCREASE_DOUBLES: Duration = Duration::from_millis(2500);
/// … up to this share of the rate, so that the limit is not left far behind when it is reached.
const INCREASE_MAX: f64 = 0.1;
/// So many events are sent at once at the start, …
const START_BURST: f64 = 8.0;
/// … then so many a second, …
const START: f64 = 5.0;
/// … and each second adds this share of it: hosts that start within the same moment get like shares of
/// what the window takes.
const START_GROWTH: f64 = 2.0;
/// The rate with which a search for the share begins …
const SEARCH: f64 = 1.0;
/// … and what each second adds to it: this much, …
const SEARCH_INCREASE: f64 = 0.5;
/// … or this share of it, whichever is more.
const SEARCH_GROWTH: f64 = 0.35;
/// A rate that was not used was not tried: a longer pause adds no more than this one.
const TRIED: Duration = Duration::from_secs(2);
/// 429s that come together are one.
const TOGETHER: Duration = Duration::from_secs(1);
/// The pause between attempts while the window is full, and about the time when a short one is over.
const PROBE: Duration = Duration::from_secs(1);
const PROBE_SOON: Duration = Duration::from_millis(350);
/// The shortest window: below it a burst looks like a rate.
const WINDOW: Duration = Duration::from_secs(4);
/// Below and above this, in events a second, a learned rate means nothing.
const SLOWEST: f64 = 0.1;
const FASTEST: f64 = 2000.0;
/// How much the pauses between events differ, as a share of them. Hosts that send in step would always
/// meet in the same order at a full window, and the same one would always be refused.
const JITTER: f64 = 0.2;
/// A sender that woke up late may catch up on this much.
const LATE: Duration = Duration::from_millis(50);
/// The longest `Retry-After` that is followed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Tells when the next event may be sent to one target, over all its connections.
#[derive(Debug)]
pub struct Pacer {
    ceiling: Option<f64>,
    phase: Phase,
    next: Option<Instant>,
    refused_in_a_row: u32,
}

/// What is known of this host's share in the server's limit.
#[derive(Debug)]
enum Phase {
    /// There was no 429 yet. The rate grows fast, and only while it is used.
    Start { rate: Rate },
    /// The limit, if there is one, is too high to matter.
    Free,
    /// The server answers 429, since then.
    Full { since: Instant },
    /// The share is searched for; `window` is how long the server remembers, at the least.
    Search { rate: Rate, since: Instant, accepted: u32, window: Duration },
    /// The share is known; the last 429 came at `decreased`.
    Settled { rate: Rate, decreased: Instant, deaf_until: Instant },
}

/// A rate that grows with time.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Events a second.
    value: f64,
    /// Until when it has grown; nothing before the first event.
    grown: Option<Instant>,
}

impl Rate {
    fn new(value: f64, now: Instant) -> Self {
        Self { value: value.max(SLOWEST), grown: Some(now) }
    }

    /// Grows by `increase` a second.
    fn grow(&mut self, increase: f64, now: Instant) {
        let tried = self.grown.map_or(Duration::ZERO, |grown| now.saturating_duration_since(grown));
        self.value += increase * tried.min(TRIED).as_secs_f64();
        self.grown = Some(now);
    }
}

/// The pause before the next attempt, so long after the window was found full. Where several hosts
/// share a limit, they shall notice at nearly the same time that there is room again.
fn probe(full: Duration) -> Duration {
    if full < PROBE {
        PROBE
    } else if full < WINDOW {
        WINDOW - full
    } else if full < 2 * WINDOW {
        PROBE_SOON
    } else {
        2 * PROBE
    }
}

impl Pacer {
    /// A pacer that never exceeds `ceiling` events a second.
    pub fn new(ceiling: Option<f64>) -> Self {
        let phase = match ceiling {
            Some(_) => Phase::Free,
            None => Phase::Start { rate: Rate { value: START, grown: None } },
        };
        Self { ceiling, phase, next: None, refused_in_a_row: 0 }
    }

    /// The rate in force in events a second, if there is one.
    pub fn rate(&self) -> Option<f64> {
        let learned = match &self.phase {
            Phase::Start { rate } | Phase::Search { rate, .. } | Phase::Settled { rate, .. } => {
                Some(rate.value)
            }
            Phase::Free | Phase::Full { .. } => None,
        };
        match (self.ceiling, learned) {
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
            let late = match self.phase {
                Phase::Start { .. } => Duration::from_secs_f64(START_BURST / rate).max(LATE),
                _ => LATE,
            };
            let late = now.checked_sub(late).unwrap_or(now);
            let jitter = 1.0 + JITTER * (fastrand::f64() - 0.5);
            self.next.unwrap_or(late).max(late) + Duration::from_secs_f64(jitter / rate)
        });
    }

    /// The server took an event; `waiting` tells whether more wait to be sent.
    pub fn accepted(&mut self, now: Instant, waiting: bool) {
        self.refused_in_a_row = 0;
        let may_grow = waiting && self.ceiling.is_none_or(|c| self.rate().is_none_or(|r| r < c));
        match &mut self.phase {
            // Nothing is known of a limit yet: what is not tried is never found.
            Phase::Start { rate } => rate.grow(rate.value * START_GROWTH, now),
            Phase::Free => {}
            Phase::Full { since } => {
                let window = now.saturating_duration_since(*since).max(WINDOW);
                let rate = Rate::new(SEARCH, now);
                self.phase = Phase::Search { rate, since: now, accepted: 1, window };
                self.next = Some(now);
            }
            Phase::Search { rate, accepted, .. } => {
                *accepted += 1;
                if may_grow {
                    rate.grow(SEARCH_INCREASE.max(rate.value * SEARCH_GROWTH), now);
                }
            }
            Phase::Settled { rate, decreased, .. } => {
                if may_grow {
                    let beyond = now.saturating_duration_since(*decreased).saturating_sub(CALM);
                    let doublings = beyond.as_secs_f64() / INCREASE_DOUBLES.as_secs_f64();
                    let most = (rate.value * INCREASE_MAX).max(INCREASE);
                    rate.grow((INCREASE * doublings.exp2()).min(most), now);
                }
            }
        }
        if self.rate().is_some_and(|rate| rate >= FASTEST) {
            self.phase = Phase::Free;
            self.next = None;
        }
    }

    /// The server answered 429; `retry_after` is what its header of that name says.
    pub fn refused(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.refused_in_a_row += 1;
        match &mut self.phase {
            Phase::Start { .. } | Phase::Free => self.phase = Phase::Full { since: now },
            Phase::Full { .. } => {}
            Phase::Search { since, accepted, window, .. } => {
                let span = now.saturating_duration_since(*since).max(*window);
                let share = f64::from(*accepted) / span.as_secs_f64();
                let deaf_until = now + *window;
                let rate = Rate::new(share * MARGIN, now);
                self.phase = Phase::Settled { rate, decreased: now, deaf_until };
            }
            Phase::Settled { rate, decreased, deaf_until } => {
                if now >= *deaf_until {
                    *rate = Rate::new(rate.value * DECREASE, now);
                    *decreased = now;
                    *deaf_until = now + TOGETHER;
                }
            }
        }
        let even = self.rate().map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        let pause = match self.phase {
            Phase::Full { since } => probe(now.saturating_duration_since(since)),
            _ if self.refused_in_a_row == 1 => even,
            _ => even.max(PROBE),
        };
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.next = Some(now + pause.max(asked));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A sensor that takes `most` events in any `window`.
    struct Window {
        most: usize,
        window: Duration,
        taken: VecDeque<Instant>,
    }

    impl Window {
        fn new(most: usize, seconds: u64) -> Self {
            Self { most, window: Duration::from_secs(seconds), taken: VecDeque::new() }
        }

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

    /// A host with a backlog, on one connection.
    struct Host {
        pacer: Pacer,
        /// When it begins and ends, in seconds.
        active: std::ops::Range<u64>,
        backlog: usize,
        at: Duration,
        accepted: Vec<Duration>,
        refused: Vec<Duration>,
    }

    impl Host {
        fn new(active: std::ops::Range<u64>, backlog: usize) -> Self {
            let at = Duration::from_secs(active.start);
            let pacer = Pacer::new(None);
            Self { pacer, active, backlog, at, accepted: Vec::new(), refused: Vec::new() }
        }

        fn is_active(&self) -> bool {
            self.at.as_secs() < self.active.end && self.accepted.len() < self.backlog
        }

        fn count(times: &[Duration], span: &std::ops::Range<u64>) -> f64 {
            times.iter().filter(|t| span.contains(&t.as_secs())).count() as f64
        }
    }

    /// Plays hosts against one sensor until all are done. The time is the simulation's own.
    fn play(hosts: &mut [Host], sensor: &mut Window, random: &mut fastrand::Rng) {
        let start = Instant::now();
        while let Some(host) = hosts.iter_mut().filter(|h| h.is_active()).min_by_key(|h| h.at) {
            let now = start + host.at;
            let wait = host.pacer.wait(now);
            if !wait.is_zero() {
                // A thread wakes up a little late.
                host.at += wait + Duration::from_micros(random.u64(0..1500));
                continue;
            }
            host.pacer.sent(now);
            host.at += Duration::from_micros(random.u64(500..3000));
            let now = start + host.at;
            if sensor.take(now) {
                host.accepted.push(host.at);
                host.pacer.accepted(now, host.accepted.len() < host.backlog);
            } else {
                host.refused.push(host.at);
                host.pacer.refused(now, None);
            }
        }
    }

    struct Outcome {
        used: f64,
        refused: f64,
        /// The largest share over the smallest.
        unfair: f64,
    }

    fn measure(hosts: &[Host], limit: f64, span: std::ops::Range<u64>) -> Outcome {
        let accepted: Vec<_> = hosts.iter().map(|h| Host::count(&h.accepted, &span)).collect();
        let refused: f64 = hosts.iter().map(|h| Host::count(&h.refused, &span)).sum();
        let all: f64 = accepted.iter().sum();
        let (least, most) =
            accepted.iter().fold((f64::MAX, 0.0_f64), |(l, m), a| (l.min(*a), m.max(*a)));
        Outcome {
            used: all / (limit * (span.end - span.start) as f64),
            refused: refused / (all + refused),
            unfair: most / least.max(1.0),
        }
    }

    #[test]
    fn hosts_share_a_limit() {
        for hosts in [1, 3, 10] {
            for (most, window) in [(25, 5), (200, 20), (100, 10), (500, 5)] {
                let mut random = fastrand::Rng::with_seed(7);
                let mut all: Vec<_> = (0..hosts).map(|_| Host::new(0..900, usize::MAX)).collect();
                play(&mut all, &mut Window::new(most, window), &mut random);
                let limit = most as f64 / window as f64;
                let Outcome { used, refused, unfair } = measure(&all, limit, 120..900);
                let what = format!(
                    "{hosts} hosts, {most} in {window} s: {used:.2} used, {refused:.3} refused, \
                     {unfair:.2} unfair"
                );
                println!("{what}");
                assert!(used >= 0.8, "{what}");
                assert!(refused <= 0.2, "{what}");
                assert!(unfair <= 3.0, "{what}");
            }
        }
    }

    #[test]
    fn three_hosts_with_a_backlog_end_together() {
        let mut good = 0;
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut hosts: Vec<_> = (0..3).map(|_| Host::new(0..900, 60)).collect();
            for host in &mut hosts {
                host.at = Duration::from_millis(random.u64(0..300));
            }
            play(&mut hosts, &mut Window::new(25, 5), &mut random);
            let ends: Vec<_> = hosts.iter().map(|h| h.at.as_secs_f64()).collect();
            let refused: usize = hosts.iter().map(|h| h.refused.len()).sum();
            let last = ends.iter().fold(0.0_f64, |a, b| a.max(*b));
            let first = ends.iter().fold(f64::MAX, |a, b| a.min(*b));
            let refused = refused as f64 / (180 + refused) as f64;
            let used = 180.0 / (5.0 * last);
            println!("{seed}: {used:.2} used, {refused:.3} refused, {:.2} apart", last / first);
            good += u32::from(used >= 0.85 && refused <= 0.15 && last <= 1.3 * first);
        }
        assert!(good >= 14, "{good} of 20");
    }

    #[test]
    fn what_others_leave_is_found() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut hosts = [Host::new(0..600, usize::MAX), Host::new(0..300, usize::MAX)];
        play(&mut hosts, &mut Window::new(25, 5), &mut random);
        let alone = Host::count(&hosts[0].accepted, &(360..600)) / 240.0;
        assert!(alone >= 0.85 * 5.0, "{alone} a second");
        let mut hosts = [Host::new(0..600, usize::MAX), Host::new(200..600, usize::MAX)];
        play(&mut hosts, &mut Window::new(25, 5), &mut random);
        let Outcome { used, unfair, .. } = measure(&hosts, 5.0, 400..600);
        assert!(used >= 0.85 && unfair <= 2.0, "{used} used, {unfair} unfair");
    }

    #[test]
    fn a_lifted_limit_is_found() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut host = [Host::new(0..120, usize::MAX)];
        play(&mut host, &mut Window::new(25, 5), &mut random);
        let [host] = &mut host;
        host.active = 120..400;
        play(std::slice::from_mut(host), &mut Window::new(100_000, 1), &mut random);
        let late = Host::count(&host.accepted, &(390..400));
        assert!(late > 500.0, "{late} accepted");
    }

    #[test]
    fn a_ceiling_holds() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut host = [Host::new(0..60, usize::MAX)];
        host[0].pacer = Pacer::new(Some(10.0));
        play(&mut host, &mut Window::new(100_000, 1), &mut random);
        let accepted = host[0].accepted.len();
        assert!((560..=605).contains(&accepted), "{accepted}");
    }

    #[test]
    fn a_server_says_when_to_come_back() {
        let now = Instant::now();
        let mut pacer = Pacer::new(None);
        pacer.refused(now, Some(Duration::from_secs(30)));
        assert_eq!(pacer.wait(now), Duration::from_secs(30));
        pacer.refused(now, Some(Duration::from_secs(86_400)));
        assert_eq!(pacer.wait(now), RETRY_AFTER_MAX);
    }
}
