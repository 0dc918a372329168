//! The sending rate: a configured limit, and a rate learned from the server's 429s.
//!
//! Tirreno counts accepted events in a sliding window and answers 429 above its limit. It tells neither the
//! limit nor when to retry; a refused event does not count. Several hosts may share one limit without
//! knowing of each other.
//!
//! A pacer goes through four phases. In the phase *start*, it sends the first events faster and faster, and
//! the others without a pause, until the first 429. In the phase *full*, the window is full, and the pacer
//! probes until the server accepts an event again. The size of the first burst says nothing about the host's
//! fair share, so in the phase *search*, all hosts begin at the same rate and grow alike until the window is
//! full again; the events of a host in the window are then its share. In the phase *settled*, a 429 lowers the
//! rate by a factor, and after a while without a 429, the rate grows again by a factor. A host with a higher
//! rate gets more of the 429s, so unequal shares become equal. Growth accelerates while no 429 comes, so that
//! the share of a host that has stopped, or a limit that was lifted, is found soon.
//!
//! The number of 429s depends on how long the rate stays constant after one: about one 429 for each host in
//! that time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::shm::pace::{Limit, Pace};

/// The number of events that may be sent at once at the start, …
const START_BURST: f64 = 5.0;
/// … then the rate in events a second, …
const START: f64 = 8.0;
/// … and its growth a second, as a multiple of the rate. Hosts that start at about the same time get
/// similar shares of a small window.
const START_GROWTH: f64 = 3.0;
/// When the server has accepted so many events, the start is over: in a larger window, what each host gets first
/// matters little, and a server without a limit gets what an outage has left at full speed.
const START_EVENTS: u32 = 10;
/// The rate at the beginning of a search, in events a second, …
const SEARCH: f64 = 1.0;
/// … and its growth a second, as a fraction of the rate.
const SEARCH_GROWTH: f64 = 0.55;
/// How many accepted events a search remembers.
const MEMORY: usize = 1024;
/// The fraction of a found share that is used.
const MARGIN: f64 = 0.94;
/// The factor by which a 429 lowers the rate.
const DECREASE: f64 = 0.88;
/// The time after a 429 in which the rate stays constant; …
const CALM: Duration = Duration::from_secs(22);
/// … after it, the growth a second, as a fraction of the rate, increases by this every second, …
const GROWTH_INCREASE: f64 = 0.001;
/// … up to this, so that the rate does not overshoot the limit by far.
const GROWTH_MAX: f64 = 0.1;
/// A rate counts as tested only while it is used, so one step of growth covers at most this time.
const TRIED: Duration = Duration::from_secs(2);
/// 429s within this time count as one.
const TOGETHER: Duration = Duration::from_secs(2);
/// The pause between attempts while the window is full. Hosts that share a limit should notice at about the
/// same time that there is room.
const PROBE: Duration = Duration::from_millis(900);
/// The shortest window that is assumed: over a shorter time, a burst looks like a rate.
const WINDOW: Duration = Duration::from_secs(4);
/// The bounds of a learned rate, in events a second.
const SLOWEST: f64 = 0.1;
const FASTEST: f64 = 2000.0;
/// The random variation of the pauses between events, as a fraction of a pause. Without it, hosts that send
/// in step would always reach a full window in the same order, and the same host would always be refused.
const JITTER: f64 = 0.1;
/// How much time a sender that woke up late may catch up on.
const LATE: Duration = Duration::from_millis(50);
/// The longest `Retry-After` that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Determines when the next event may be sent to a target, over all its connections.
#[derive(Debug)]
pub struct Pacer {
    ceiling: Option<f64>,
    phase: Phase,
    next: Option<Instant>,
    refused_in_a_row: u32,
}

/// The state of the search for this host's share of the server's limit; see the module.
#[derive(Debug)]
enum Phase {
    /// No 429 has come. The rate grows fast, but only while it is used. So many events were accepted.
    Start { rate: Rate, accepted: u32 },
    /// No limit is known, or it is too high to matter.
    Free,
    /// The server answers 429. These are the times of the first and the last 429.
    Full { since: Instant, last: Instant },
    /// `window` is a lower bound for the length of the server's window, and `accepted` are the last
    /// accepted events.
    Search { rate: Rate, since: Instant, window: Duration, accepted: VecDeque<Instant> },
    /// The last 429 that lowered the rate came at `decreased`; further ones are ignored until `deaf_until`.
    Settled { rate: Rate, decreased: Instant, deaf_until: Instant },
}

/// A rate that grows with time.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Events a second.
    value: f64,
    /// The time of the last growth; `None` before the first event.
    grown: Option<Instant>,
}

impl Rate {
    fn new(value: f64, now: Instant) -> Self {
        Self { value: value.max(SLOWEST), grown: Some(now) }
    }

    /// Lets the rate grow for the time since the last growth, by `share` of the rate a second.
    fn grow(&mut self, share: f64, now: Instant) {
        let tried = self.grown.map_or(Duration::ZERO, |grown| now.saturating_duration_since(grown));
        self.value *= 1.0 + share * tried.min(TRIED).as_secs_f64();
        self.grown = Some(now);
    }
}

/// The pause before the next attempt, if the window has been full for that time.
fn probe(full: Duration) -> Duration {
    match full {
        // The window may be short, so there are two early attempts.
        _ if full < 2 * PROBE => PROBE,
        _ if full < WINDOW => WINDOW - full,
        _ => PROBE,
    }
}

/// The average rate of the events in the last `window`, in events a second.
fn rate_of(events: &VecDeque<Instant>, window: Duration, now: Instant) -> f64 {
    let age = |event: &Instant| now.saturating_duration_since(*event);
    let recent = events.iter().filter(|event| age(event) < window).count();
    // The events before the first remembered one are unknown.
    let known = events.front().map_or(window, age);
    let span = if events.len() == MEMORY { known.min(window) } else { window };
    recent as f64 / span.as_secs_f64().max(0.001)
}

impl Pacer {
    /// A pacer with a limit of `ceiling` events a second.
    pub fn new(ceiling: Option<f64>) -> Self {
        let phase = match ceiling {
            Some(_) => Phase::Free,
            None => Phase::Start { rate: Rate { value: START, grown: None }, accepted: 0 },
        };
        Self { ceiling, phase, next: None, refused_in_a_row: 0 }
    }

    /// A pacer that continues with another pacer's knowledge. The other pacer's events are still in the
    /// server's window.
    pub fn resume(ceiling: Option<f64>, learned: Option<Pace>, now: Instant) -> Self {
        let mut pacer = Self::new(ceiling);
        let Some(Pace { wait, limit }) = learned else { return pacer };
        let ago = |age: Duration| now.checked_sub(age).unwrap_or(now);
        let rate = |value: f64| Rate::new(value.clamp(SLOWEST, FASTEST), now);
        pacer.phase = match limit {
            Limit::Full { since, last } => Phase::Full { since: ago(since), last: ago(last) },
            Limit::Search { rate: value, since, window, accepted } => {
                // The single times are unknown, so the events are spread evenly.
                let count = accepted.min(MEMORY as u32);
                let between = window.min(since) / count.max(1);
                let accepted = (0..count).rev().map(|nth| ago(between * nth)).collect();
                Phase::Search { rate: rate(value), since: ago(since), window, accepted }
            }
            Limit::Settled { rate: value, decreased } => {
                // The other pacer's requests that are under way may still be refused.
                let deaf_until = now + TOGETHER;
                Phase::Settled { rate: rate(value), decreased: ago(decreased), deaf_until }
            }
        };
        pacer.next = Some(now + wait.min(RETRY_AFTER_MAX));
        pacer
    }

    /// The pacer's knowledge; `None` while it knows of no limit.
    pub fn learned(&self, now: Instant) -> Option<Pace> {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        let limit = match &self.phase {
            Phase::Start { .. } | Phase::Free => return None,
            Phase::Full { since, last } => Limit::Full { since: age(since), last: age(last) },
            Phase::Search { rate, since, window, accepted } => {
                let accepted = accepted.iter().filter(|at| age(at) < *window).count() as u32;
                Limit::Search { rate: rate.value, since: age(since), window: *window, accepted }
            }
            Phase::Settled { rate, decreased, .. } => {
                Limit::Settled { rate: rate.value, decreased: age(decreased) }
            }
        };
        Some(Pace { wait: self.wait(now), limit })
    }

    /// The current rate in events a second; `None` if neither the configuration nor the server limits it.
    pub fn rate(&self) -> Option<f64> {
        match self.phase {
            Phase::Start { .. } => None,
            _ => self.pace(),
        }
    }

    /// The current maximum rate, in events a second.
    fn pace(&self) -> Option<f64> {
        match (self.ceiling, self.learned_rate()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn learned_rate(&self) -> Option<f64> {
        match &self.phase {
            Phase::Start { rate, .. }
            | Phase::Search { rate, .. }
            | Phase::Settled { rate, .. } => Some(rate.value),
            Phase::Free | Phase::Full { .. } => None,
        }
    }

    /// Skips the slow start, because the process stops soon: a server that has refused nothing yet gets all
    /// events at once.
    pub fn hurry(&mut self) {
        if let Phase::Start { .. } = self.phase {
            self.phase = Phase::Free;
            self.next = None;
        }
    }

    /// Whether the server has answered 429 more than once in a row.
    pub fn is_probing(&self) -> bool {
        self.refused_in_a_row > 1
    }

    /// The time until the next event may be sent; zero for now.
    pub fn wait(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// Records that an event is sent now.
    pub fn sent(&mut self, now: Instant) {
        if let Phase::Full { .. } = self.phase {
            // One attempt is enough to learn whether there is room.
            self.next = Some(now + PROBE);
            return;
        }
        self.next = self.pace().map(|rate| {
            let late = match self.phase {
                Phase::Start { .. } => Duration::from_secs_f64(START_BURST / rate).max(LATE),
                _ => LATE,
            };
            let late = now.checked_sub(late).unwrap_or(now);
            let jitter = 1.0 + JITTER * (fastrand::f64() - 0.5);
            self.next.unwrap_or(late).max(late) + Duration::from_secs_f64(jitter / rate)
        });
    }

    /// Records that the server accepted an event sent at `sent`; `waiting` says whether more events wait to
    /// be sent.
    pub fn accepted(&mut self, sent: Instant, now: Instant, waiting: bool) {
        self.refused_in_a_row = 0;
        let may_grow = waiting && self.ceiling.is_none_or(|c| self.pace().is_none_or(|r| r < c));
        match &mut self.phase {
            // The rate grows even if no events wait, because a limit is found only by reaching it.
            Phase::Start { rate, accepted } => {
                *accepted += 1;
                rate.grow(START_GROWTH, now);
            }
            Phase::Free => {}
            // The event was under way on another connection when the first 429 came.
            Phase::Full { since, .. } if sent < *since => {}
            Phase::Full { since, last } => {
                // There may have been room since the pause after the last 429, while no event waited to be
                // sent.
                let room = now.min(*last + PROBE);
                let window = room.saturating_duration_since(*since).max(WINDOW);
                let rate = Rate::new(SEARCH, now);
                self.phase = Phase::Search { rate, since: now, window, accepted: [now].into() };
                self.next = Some(now);
            }
            Phase::Search { rate, accepted, .. } => {
                if accepted.len() == MEMORY {
                    accepted.pop_front();
                }
                accepted.push_back(now);
                if may_grow {
                    rate.grow(SEARCH_GROWTH, now);
                }
            }
            Phase::Settled { rate, decreased, .. } => {
                if may_grow {
                    let beyond = now.saturating_duration_since(*decreased).saturating_sub(CALM);
                    rate.grow((GROWTH_INCREASE * beyond.as_secs_f64()).min(GROWTH_MAX), now);
                }
            }
        }
        let has_started = matches!(self.phase, Phase::Start { accepted: START_EVENTS.., .. });
        if has_started || self.learned_rate().is_some_and(|rate| rate >= FASTEST) {
            self.phase = Phase::Free;
            self.next = None;
        }
    }

    /// Records that the server answered 429, with its `Retry-After`.
    pub fn refused(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.refused_in_a_row += 1;
        match &mut self.phase {
            Phase::Start { .. } | Phase::Free => {
                self.phase = Phase::Full { since: now, last: now };
            }
            Phase::Full { last, .. } => *last = now,
            // Other hosts had filled the window before: so short a search has found no share.
            Phase::Search { since, window, .. } if now < *since + *window / 2 => {}
            Phase::Search { accepted, window, .. } => {
                let rate = Rate::new(rate_of(accepted, *window, now) * MARGIN, now);
                let deaf_until = now + *window;
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
        let even = self.pace().map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        let pause = match self.phase {
            Phase::Full { since, .. } => probe(now.saturating_duration_since(since)),
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
    use std::ops::Range;

    use super::*;

    /// A server that accepts at most `most` events in any `window`.
    struct Window {
        most: usize,
        window: Duration,
        taken: VecDeque<Instant>,
    }

    impl Window {
        fn new(most: usize, seconds: u64) -> Self {
            Self { most, window: Duration::from_secs(seconds), taken: VecDeque::new() }
        }

        fn without_limit() -> Self {
            Self::new(usize::MAX, 1)
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
        /// The times when it starts and stops, in seconds.
        active: Range<u64>,
        backlog: usize,
        at: Duration,
        accepted: Vec<Duration>,
        refused: Vec<Duration>,
    }

    impl Host {
        fn new(active: Range<u64>, backlog: usize) -> Self {
            let at = Duration::from_secs(active.start);
            let pacer = Pacer::new(None);
            Self { pacer, active, backlog, at, accepted: Vec::new(), refused: Vec::new() }
        }

        fn is_active(&self) -> bool {
            self.at.as_secs() < self.active.end && self.accepted.len() < self.backlog
        }
    }

    fn count(times: &[Duration], span: &Range<u64>) -> f64 {
        times.iter().filter(|t| span.contains(&t.as_secs())).count() as f64
    }

    /// Simulates hosts and one server until all hosts have stopped. The simulation has its own clock.
    fn play(hosts: &mut [Host], sensor: &mut Window, seed: u64) {
        play_from(Instant::now(), hosts, sensor, seed);
    }

    fn play_from(start: Instant, hosts: &mut [Host], sensor: &mut Window, seed: u64) {
        fastrand::seed(seed);
        while let Some(host) = hosts.iter_mut().filter(|h| h.is_active()).min_by_key(|h| h.at) {
            let now = start + host.at;
            let wait = host.pacer.wait(now);
            if !wait.is_zero() {
                // Threads wake up a little late.
                host.at += wait + Duration::from_micros(fastrand::u64(0..1500));
                continue;
            }
            host.pacer.sent(now);
            host.at += Duration::from_micros(fastrand::u64(500..3000));
            let (sent, now) = (now, start + host.at);
            if sensor.take(now) {
                host.accepted.push(host.at);
                host.pacer.accepted(sent, now, host.accepted.len() < host.backlog);
            } else {
                host.refused.push(host.at);
                host.pacer.refused(now, None);
            }
        }
    }

    #[derive(Debug)]
    struct Outcome {
        /// As a fraction of the limit.
        used: f64,
        /// As a fraction of all attempts.
        refused: f64,
        /// The largest share divided by the smallest.
        unfair: f64,
    }

    fn measure(hosts: &[Host], limit: f64, span: Range<u64>) -> Outcome {
        let accepted: Vec<_> = hosts.iter().map(|h| count(&h.accepted, &span)).collect();
        let refused: f64 = hosts.iter().map(|h| count(&h.refused, &span)).sum();
        let all: f64 = accepted.iter().sum();
        let least = accepted.iter().copied().fold(f64::MAX, f64::min);
        let most = accepted.iter().copied().fold(0.0, f64::max);
        Outcome {
            used: all / (limit * (span.end - span.start) as f64),
            refused: refused / (all + refused),
            unfair: most / least.max(1.0),
        }
    }

    #[test]
    fn hosts_share_a_limit() {
        const SETTLED: Range<u64> = 300..3900;
        for (most, window) in [(25, 5), (200, 20), (100, 10), (500, 5), (5, 1), (600, 60)] {
            let limit = most as f64 / window as f64;
            let of_one = matches!(window, 1 | 60);
            for hosts in if of_one { [1].as_slice() } else { &[1, 3, 10] } {
                for seed in 0..3 {
                    let host = |_| Host::new(0..SETTLED.end, usize::MAX);
                    let mut all: Vec<_> = (0..*hosts).map(host).collect();
                    play(&mut all, &mut Window::new(most, window), seed);
                    let outcome = measure(&all, limit, SETTLED);
                    println!("{hosts} hosts, {most} in {window} s: {outcome:.3?}");
                    assert!(outcome.used >= 0.85);
                    assert!(outcome.refused <= 0.1);
                    assert!(outcome.unfair <= 2.0);
                }
            }
        }
    }

    #[test]
    fn one_host_has_found_the_limit_after_four_windows() {
        for (most, window) in [(25, 5), (40, 4), (200, 20), (500, 5)] {
            let mut host = [Host::new(0..4 * window + 20, usize::MAX)];
            play(&mut host, &mut Window::new(most, window), 1);
            let limit = most as f64 / window as f64;
            let outcome = measure(&host, limit, 4 * window..4 * window + 20);
            println!("{most} in {window} s: {outcome:.3?}");
            assert!(outcome.used >= 0.85 && outcome.refused <= 0.1);
        }
    }

    #[test]
    fn three_hosts_with_a_backlog_end_together() {
        for seed in 0..20 {
            let mut hosts: Vec<_> = (0..3).map(|_| Host::new(0..900, 60)).collect();
            let mut random = fastrand::Rng::with_seed(seed);
            for host in &mut hosts {
                host.at = Duration::from_millis(random.u64(0..300));
            }
            play(&mut hosts, &mut Window::new(25, 5), seed);
            let ends: Vec<_> = hosts.iter().map(|h| h.at.as_secs_f64()).collect();
            let refused: usize = hosts.iter().map(|h| h.refused.len()).sum();
            let last = ends.iter().copied().fold(0.0, f64::max);
            let first = ends.iter().copied().fold(f64::MAX, f64::min);
            let refused = refused as f64 / (180 + refused) as f64;
            let used = 180.0 / (5.0 * last);
            println!("{seed}: {used:.2} used, {refused:.3} refused, {:.2} apart", last / first);
            assert!(used >= 0.85 && refused <= 0.15 && last <= 1.3 * first);
        }
    }

    #[test]
    fn what_others_leave_is_found() {
        for seed in 0..5 {
            let mut hosts = [Host::new(0..400, usize::MAX), Host::new(0..300, usize::MAX)];
            play(&mut hosts, &mut Window::new(25, 5), seed);
            let alone = measure(&hosts[..1], 5.0, 345..400);
            println!("left alone: {alone:.3?}");
            assert!(alone.used >= 0.85 && alone.refused <= 0.1);
        }
    }

    #[test]
    fn who_follows_another_into_a_full_window_is_not_left_with_little() {
        // As after a reload: the old process stops a second after the new one starts.
        for (most, window) in [(20, 2), (25, 5), (100, 10)] {
            for seed in 0..5 {
                let mut hosts = [Host::new(0..101, usize::MAX), Host::new(100..200, usize::MAX)];
                play(&mut hosts, &mut Window::new(most, window), seed);
                let limit = most as f64 / window as f64;
                let from = 100 + 4 * window.max(4);
                let outcome = measure(&hosts[1..], limit, from..from + 20);
                println!("{most} in {window} s: {outcome:.3?}");
                assert!(outcome.used >= 0.5);
            }
        }
    }

    #[test]
    fn who_goes_on_with_what_another_learned_meets_no_limit_anew() {
        /// The outcome of the 30 s from `at` on, when another pacer takes over.
        fn follow(at: u64, seed: u64, follow: impl Fn(&mut Pacer, Instant)) -> Outcome {
            let (most, window) = (100, 10);
            let mut sensor = Window::new(most, window);
            let mut host = [Host::new(0..at, usize::MAX)];
            let start = Instant::now();
            play_from(start, &mut host, &mut sensor, seed);
            let now = start + host[0].at;
            follow(&mut host[0].pacer, now);
            host[0].active = at..at + 30;
            play_from(start, &mut host, &mut sensor, seed + 1);
            measure(&host, most as f64 / window as f64, at..at + 30)
        }
        // While the window is full, during the search, and long after it.
        for at in [5, 15, 25, 60, 300, 303] {
            for seed in 0..3 {
                let resumed = follow(at, seed, |pacer, now| {
                    *pacer = Pacer::resume(None, pacer.learned(now), now);
                });
                let same = follow(at, seed, |_, _| ());
                let anew = follow(at, seed, |pacer, _| *pacer = Pacer::new(None));
                println!("{at}: {resumed:.3?}, not interrupted {same:.3?}, anew {anew:.3?}");
                assert!(resumed.refused <= same.refused + 0.01, "{at}");
                assert!(resumed.used >= same.used - 0.1, "{at}");
            }
        }
    }

    #[test]
    fn one_that_comes_later_gets_its_share() {
        for seed in 0..5 {
            let mut hosts = [Host::new(0..3000, usize::MAX), Host::new(200..3000, usize::MAX)];
            play(&mut hosts, &mut Window::new(25, 5), seed);
            let outcome = measure(&hosts, 5.0, 400..3000);
            println!("one came later: {outcome:.3?}");
            assert!(outcome.used >= 0.85 && outcome.refused <= 0.1 && outcome.unfair <= 2.0);
        }
    }

    #[test]
    fn hosts_that_come_and_go_use_the_limit() {
        for seed in 0..5 {
            // One host is always active, and each of the others in three of every five minutes.
            let mut hosts = vec![Host::new(0..1800, usize::MAX)];
            for start in (60..1500).step_by(300) {
                hosts.push(Host::new(start..start + 180, usize::MAX));
                hosts.push(Host::new(start + 90..start + 270, usize::MAX));
            }
            play(&mut hosts, &mut Window::new(100, 10), seed);
            let outcome = measure(&hosts, 10.0, 60..1800);
            println!("they come and go: {:.3} used, {:.3} refused", outcome.used, outcome.refused);
            assert!(outcome.used >= 0.85 && outcome.refused <= 0.1);
        }
    }

    #[test]
    fn a_lifted_limit_is_found_without_a_refusal() {
        let mut host = [Host::new(0..120, usize::MAX)];
        play(&mut host, &mut Window::new(25, 5), 1);
        host[0].active = 120..400;
        play(&mut host, &mut Window::without_limit(), 2);
        assert_eq!(count(&host[0].refused, &(120..400)), 0.0);
        // Two minutes after the limit was lifted.
        let late = count(&host[0].accepted, &(240..250));
        assert!(late > 500.0, "{late} accepted");
    }

    #[test]
    fn a_ceiling_holds() {
        let mut host = [Host::new(0..60, usize::MAX)];
        host[0].pacer = Pacer::new(Some(10.0));
        play(&mut host, &mut Window::without_limit(), 1);
        let accepted = host[0].accepted.len();
        assert!((595..=605).contains(&accepted), "{accepted}");
        let mut host = [Host::new(0..3600, usize::MAX)];
        host[0].pacer = Pacer::new(Some(10.0));
        play(&mut host, &mut Window::new(25, 5), 1);
        let outcome = measure(&host, 5.0, 60..3600);
        assert!(outcome.used >= 0.85 && outcome.refused <= 0.1, "{outcome:?}");
    }

    #[test]
    fn a_burst_at_the_start_is_gone_in_two_seconds() {
        let mut host = [Host::new(0..60, 300)];
        play(&mut host, &mut Window::without_limit(), 1);
        assert!(host[0].at <= Duration::from_secs(2), "{:?}", host[0].at);
    }

    #[test]
    fn a_server_without_a_limit_gets_all_at_full_speed_after_a_second() {
        let mut host = [Host::new(0..60, 2000)];
        play(&mut host, &mut Window::without_limit(), 1);
        // Events take 1.75 ms on average.
        let full_speed = Duration::from_secs_f64(2000.0 * 0.00175);
        let late = host[0].at.saturating_sub(full_speed);
        assert!(late <= Duration::from_secs(1), "{late:?}");
        assert!(host[0].accepted[9] >= Duration::from_millis(200), "{:?}", host[0].accepted);
    }

    #[test]
    fn who_stops_sends_all_at_once_where_nothing_was_refused() {
        let now = Instant::now();
        let mut pacer = Pacer::new(None);
        (0..7).for_each(|_| pacer.sent(now));
        assert!(!pacer.wait(now).is_zero());
        pacer.hurry();
        for _ in 0..1000 {
            assert!(pacer.wait(now).is_zero());
            pacer.sent(now);
            pacer.accepted(now, now, true);
        }
        pacer.refused(now, None);
        pacer.hurry();
        assert!(!pacer.wait(now).is_zero());
    }

    #[test]
    fn a_search_counts_what_the_server_remembers() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        let mut pacer = Pacer::new(None);
        pacer.refused(at(0.0), None);
        // Events come one at a time: one a minute for an hour, then four a second.
        (1..=60)
            .for_each(|n| pacer.accepted(at(60.0 * f64::from(n)), at(60.0 * f64::from(n)), false));
        for n in 0..80 {
            let now = at(3600.0 + f64::from(n) / 4.0);
            pacer.accepted(now, now, false);
        }
        pacer.refused(at(3620.0), None);
        let rate = pacer.rate().unwrap();
        assert!((3.0..=4.5).contains(&rate), "{rate}");
    }

    #[test]
    fn what_was_under_way_when_the_limit_was_met_tells_nothing() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pacer = Pacer::new(None);
        pacer.refused(at(10), None);
        pacer.accepted(at(5), at(15), true);
        assert!(pacer.wait(at(15)) > Duration::from_millis(500) && pacer.rate().is_none());
        pacer.sent(at(5000));
        // One attempt, however many events wait on other connections.
        assert!(!pacer.wait(at(5000)).is_zero());
        pacer.accepted(at(5000), at(5010), true);
        assert!(pacer.wait(at(5010)).is_zero() && pacer.rate().is_some());
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
