//! The meaning of an answer for the event, and for the target.
//!
//! Tirreno's sensor answers 204 when it accepts an event, 429 above its rate limit, and 200 with an empty body
//! when it refuses the event *or* the API key; the key check tells which. A proxy or a firewall before it may
//! answer anything, depending on the content of one event.
//!
//! The policy is the state of one target, shared by its connections: whether an event may be sent now, and what
//! follows from each answer. It does no I/O and reads no clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat};

use crate::delivery::spool::{Outcome, Spool};
use crate::event::EventType;
use crate::log_queue::{Level, LogQueue, Once};
use crate::shm::pace::Pace;
use crate::shm::rejected::{Rejected, TraceId};
use crate::shm::zone::{DropReason, Fault, Ledger, State};
use crate::tirreno::rate::Pacer;

/// The first and the longest pause after a failed attempt.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a target is paused before the key is checked again.
const KEY_PAUSE: Duration = Duration::from_secs(30);
/// How long a good key is trusted.
const KEY_TRUST: Duration = Duration::from_secs(60);
/// If an event is refused this often with the same status while others are accepted, the event is the cause.
const STRIKES: u8 = 5;
/// If this many different events in a row are refused, the server is the cause …
const SUSPECTS: u32 = 5;
/// … or this many with a 5xx, which is the server's own fault.
const SUSPECTS_5XX: u32 = 2;
/// If this many different events in a row are answered 200 or 400, the server is the cause.
const PUZZLE: u32 = 3;
/// For how many users it is remembered that an event was set aside.
const MAX_STRUCK_OUT: usize = 1024;
/// The longest `Retry-After` that is followed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// How many rejected events the log names within [`REPEAT`].
const MAX_NAMED: u32 = 10;
/// How often the pace is kept for the next deliverer while events are accepted.
const PACE_KEPT: Duration = Duration::from_millis(100);
/// With `resend`: how long after its acceptance an event is sent again if the server fails.
pub const CONFIRM: Duration = Duration::from_secs(1);
/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);

/// The outcome of a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server answered with this status.
    Status(u16),
    /// It did, and asks not to be tried for so long (`Retry-After`).
    Later(u16, Duration),
    /// No answer came.
    None(Fault),
}

/// The outcome of a key check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAnswer {
    /// The server knows the key.
    Good,
    /// The server answered that it does not, with this status.
    Refused(u16),
    /// The check cannot be reached, or answered something else.
    Unknown(Fault),
}

/// What a connection may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Send one event.
    Send,
    /// Ask whether the key is good, and report that.
    AskKey,
    /// Wait, then ask again.
    Wait(Duration),
}

/// What happens to an event after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is settled and counted: delivered or rejected.
    Settled,
    /// It is accepted, and counts when [`Policy::confirm`] says that it stays so.
    Accepted,
    /// It is kept and comes next.
    Again,
    /// It is kept, and other users' events come first.
    Later(Pause),
    /// Ask whether the key is good, then call [`Policy::judged_200`].
    AskKey,
}

/// How long an event waits before it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// At most so long.
    pub length: Duration,
    /// The wait ends early when [`Policy::recoveries`] changes: then the server was the cause, and works again.
    pub recoveries: Option<u64>,
}

impl Pause {
    const NONE: Self = Self { length: Duration::ZERO, recoveries: None };
}

/// An event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventId {
    /// It is in the spool, with that key.
    Stored(u64),
    /// It is in memory only.
    Memory(u64),
}

/// Where a target's events are counted: those in memory in the zone, those in the spool there.
#[derive(Clone)]
pub struct Book {
    /// The zone's accounts.
    pub ledger: Ledger,
    /// The target's place in them.
    pub slot: usize,
    /// Its spool, if it has one.
    pub store: Option<Arc<Spool>>,
    /// Tells its server from others.
    pub server: u64,
}

impl Book {
    fn delivered(&self, id: EventId) {
        match (id, &self.store) {
            (EventId::Stored(id), Some(store)) => store.settle(id, Outcome::Delivered),
            _ => self.ledger.delivered(self.slot, 1),
        }
    }

    fn rejected(&self, attempt: &Attempt<'_>, fault: Fault) {
        match (attempt.id, &self.store) {
            (EventId::Stored(id), Some(store)) => store.settle(id, Outcome::Rejected(fault)),
            _ => {
                let Attempt { trace, kind, captured_ms, .. } = *attempt;
                let event = Rejected::now(trace, kind, captured_ms, fault);
                self.ledger.list_rejected(self.slot, &event);
                self.ledger.rejected(self.slot, 1);
                if self.store.is_none() {
                    self.ledger.count_reason(self.slot, fault);
                }
            }
        }
    }

    fn given_up(&self, id: EventId, reason: DropReason) {
        match id {
            // It stays in the spool, and is tried again by the next deliverer.
            EventId::Stored(_) => {}
            EventId::Memory(_) => self.ledger.dropped(self.slot, 1, reason),
        }
    }

    fn keep_pace(&self, learned: Option<&Pace>) {
        self.ledger.keep_pace(self.slot, self.server, learned);
    }

    fn retry(&self) {
        self.ledger.retry(self.slot);
    }

    fn show(&self, state: State, fault: Option<Fault>) {
        self.ledger.show(self.slot, state, fault);
    }
}

/// An attempt to send an event.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The event.
    pub id: EventId,
    /// Its trace id.
    pub trace: &'a str,
    /// A number that differs between users.
    pub user: u64,
    /// What it is, where that is known.
    pub kind: Option<EventType>,
    /// When it was sent.
    pub sent: Instant,
    /// Whether more events wait.
    pub waiting: bool,
    /// Whether there is little room left for them.
    pub crowded: bool,
    /// When it was captured, in milliseconds since the epoch.
    pub captured_ms: i64,
}

/// The settings that decide what answers mean.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// The target's name and URL as they stand in the configuration, for messages.
    pub label: String,
    /// Whether 200 means success.
    pub accept_200: bool,
    /// Whether what was accepted just before the server failed is sent again.
    pub resend: bool,
    /// Events a second at the most.
    pub rate: Option<f64>,
    /// How long an attempt may take.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Hold {
    Open,
    /// The server is in trouble: the next attempt is at `until`.
    Backoff {
        since: Instant,
        until: Instant,
        tries: u32,
    },
    /// The key must be checked at `until`.
    Paused {
        until: Instant,
    },
}

/// What the log says of events while their server has a fault of its own.
const KEPT: &str = "events are kept";

/// The failures of one event.
#[derive(Clone, Copy, Debug)]
struct Strikes {
    fault: Fault,
    /// How often it failed in this way; failures count only if other events were accepted in between.
    count: u8,
    /// How often it failed at all.
    attempts: u32,
    /// Whether it goes without what a firewall may dislike.
    stripped: bool,
    /// [`Policy::accepted`] when it failed last.
    accepted: u64,
}

/// One target's state; see the module.
pub struct Policy {
    config: PolicyConfig,
    book: Book,
    log: LogQueue,
    pacer: Pacer,
    /// When the pace was kept for the next deliverer; nothing: that one may be there.
    pace_kept: Option<Instant>,
    hold: Hold,
    closed: bool,
    /// How many events the server took since the start.
    accepted: u64,
    /// What is held against events that were tried; by their ids.
    strikes: HashMap<EventId, Strikes>,
    /// Users of whom an event was set aside, and none accepted since: the fault, and `accepted` at that time.
    struck_out: HashMap<u64, (Fault, u64)>,
    /// How many events were refused for the first time since the last accepted one.
    suspects: u32,
    /// Whether an event failed since the last accepted one.
    in_trouble: bool,
    recoveries: u64,
    /// How often the server failed, and when it did last.
    failures: (u64, Instant),
    /// Whether the key was asked for since the start.
    key_asked: bool,
    /// Whether the last answer about the key was good.
    key_good: bool,
    /// Until when a 200 needs no further question about the key.
    key_trusted_until: Option<Instant>,
    /// Different events answered 200 since the last accepted one, and the last of them.
    answered_200: (u32, Option<EventId>),
    /// The same for 400.
    answered_400: (u32, Option<EventId>),
    /// How long the server asks not to be tried, with its last answer.
    asked: Duration,
    /// Whether the log says that events are not accepted.
    complained: bool,
    /// Since when rejected events are counted that the log named, and how many.
    named: (Instant, u32),
    /// When each message was last logged.
    said: HashMap<(Fault, &'static str), Once>,
}

impl Policy {
    /// The state at the start, at `now`: the key is asked for before anything is sent. The pace is that of
    /// the deliverer before.
    pub fn new(config: PolicyConfig, book: Book, log: LogQueue, now: Instant) -> Self {
        let learned = book.ledger.pace(book.slot, book.server);
        Self {
            pacer: Pacer::resume(config.rate, learned, now),
            pace_kept: Some(now),
            config,
            book,
            log,
            hold: Hold::Paused { until: now },
            closed: false,
            accepted: 0,
            strikes: HashMap::new(),
            struck_out: HashMap::new(),
            suspects: 0,
            in_trouble: false,
            recoveries: 0,
            failures: (0, now),
            key_asked: false,
            key_good: false,
            key_trusted_until: None,
            answered_200: (0, None),
            answered_400: (0, None),
            asked: Duration::ZERO,
            complained: false,
            named: (now, 0),
            said: HashMap::new(),
        }
    }

    /// The rate in force in events a second, if there is one.
    pub fn rate(&self) -> Option<f64> {
        self.pacer.rate()
    }

    /// Ignores further answers: the inbox counts the rest.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// An event is dropped for another reason than an answer.
    pub fn give_up(&mut self, id: EventId, reason: DropReason) {
        if !self.closed {
            self.strikes.remove(&id);
            self.book.given_up(id, reason);
        }
    }

    /// An event goes another way, under another id.
    pub fn forget(&mut self, id: EventId) {
        self.strikes.remove(&id);
    }

    /// How often events were accepted again after a failure.
    pub fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// The process stops: pauses after failures are cut short for one more attempt, and a server without a
    /// known limit gets events as fast as it accepts them.
    pub fn last_chance(&mut self, now: Instant) {
        self.recoveries += 1;
        self.pace_kept = None;
        self.pacer.hurry();
        if let Hold::Backoff { until, .. } = &mut self.hold {
            *until = now;
        }
    }

    /// Whether it is time to check the key, even without an event to send. The caller must then check it.
    pub fn key_is_due(&mut self, now: Instant) -> bool {
        match self.hold {
            Hold::Paused { until } if now >= until => {
                self.hold = Hold::Paused { until: now + KEY_PAUSE };
                true
            }
            _ => false,
        }
    }

    /// In what time the key has to be asked for; nothing while it has not.
    pub fn key_due_in(&self, now: Instant) -> Option<Duration> {
        match self.hold {
            Hold::Paused { until } => Some(until.saturating_duration_since(now)),
            _ => None,
        }
    }

    /// Whether an event may be sent now. After [`Permit::Send`] its answer must be reported.
    pub fn permit(&mut self, now: Instant) -> Permit {
        if self.key_is_due(now) {
            return Permit::AskKey;
        }
        match &mut self.hold {
            Hold::Paused { until } => return Permit::Wait(*until - now),
            Hold::Backoff { until, .. } if now < *until => return Permit::Wait(*until - now),
            _ => {}
        }
        let wait = self.pacer.wait(now);
        if !wait.is_zero() {
            return Permit::Wait(wait);
        }
        if let Hold::Backoff { until, .. } = &mut self.hold {
            // The other connections wait for the result of this attempt.
            *until = now + self.config.timeout;
        }
        self.pacer.sent(now);
        Permit::Send
    }

    /// An attempt was answered.
    pub fn answered(&mut self, attempt: Attempt<'_>, answer: Answer, now: Instant) -> Verdict {
        if self.closed {
            return Verdict::Settled;
        }
        let Attempt { id, sent, .. } = attempt;
        let (answer, asked) = match answer {
            Answer::Later(code, after) => (Answer::Status(code), Some(after.min(RETRY_AFTER_MAX))),
            answer => (answer, None),
        };
        self.asked = asked.unwrap_or_default();
        let has_failed = matches!(
            answer,
            Answer::Status(500..)
                | Answer::None(Fault::ConnectionBroken | Fault::ConnectionRefused)
        );
        // Another refusal of the same event tells nothing new.
        if has_failed && !self.strikes.contains_key(&id) {
            self.failures = (self.failures.0 + 1, now);
        }
        match answer {
            Answer::Status(204) => self.accepted(attempt, now),
            Answer::Status(200) if self.config.accept_200 => self.accepted(attempt, now),
            Answer::Status(200) => match self.key_trusted_until {
                Some(until) if now < until => self.judged_200(attempt, KeyAnswer::Good, now),
                _ => Verdict::AskKey,
            },
            Answer::Status(429) => {
                self.end_backoff();
                self.pacer.refused(now, asked);
                self.keep_pace(now, Duration::ZERO);
                self.say_429(now);
                self.book.retry();
                Verdict::Again
            }
            Answer::Status(code @ (400 | 413)) => self.answered_invalid(attempt, code, now),
            Answer::Status(401) => {
                self.refuse_key(401, now);
                self.keep(Pause::NONE, Fault::KeyRefused(401), State::Paused)
            }
            Answer::Status(code @ (201..=299)) => {
                let fault = Fault::NotUnderstood(code);
                self.refused(attempt, fault, now)
            }
            Answer::Status(code) => self.refused(attempt, Fault::Answered(code), now),
            Answer::Later(..) => Verdict::Again,
            Answer::None(fault @ Fault::Unreadable) => self.refused(attempt, fault, now),
            Answer::None(fault) => self.failed(id, fault, sent, now),
        }
    }

    /// How often the server failed, and when it did last: a connection broke, or it answered 5xx.
    pub fn failures(&self) -> (u64, Instant) {
        self.failures
    }

    /// The event with [`Verdict::Accepted`] stays accepted, and counts.
    pub fn confirm(&mut self, id: EventId) {
        if !self.closed {
            self.book.delivered(id);
        }
    }

    /// Whether the event goes without what a firewall may dislike.
    pub fn is_stripped(&self, id: EventId) -> bool {
        self.strikes.get(&id).is_some_and(|strikes| strikes.stripped)
    }

    /// The server, or a firewall before it, says that the event itself is at fault.
    fn answered_invalid(&mut self, attempt: Attempt<'_>, code: u16, now: Instant) -> Verdict {
        let (id, fault) = (attempt.id, Fault::Answered(code));
        let (count, last) = &mut self.answered_400;
        if *last != Some(id) {
            (*count, *last) = (*count + 1, Some(id));
        }
        // If the server has accepted nothing, or accepts nothing any more, the status may mean anything.
        if self.accepted == 0 || *count >= PUZZLE {
            return self.refused(attempt, fault, now);
        }
        self.end_backoff();
        if self.strip(id, fault) {
            return self.again(fault);
        }
        if code != 400 {
            return self.refused(attempt, fault, now);
        }
        self.say(fault, now, Level::Error, "this event is invalid and set aside");
        self.reject(attempt, fault, now)
    }

    /// Makes the event go without what a firewall may dislike; returns whether that is new.
    fn strip(&mut self, id: EventId, fault: Fault) -> bool {
        let new =
            Strikes { fault, count: 1, attempts: 0, stripped: false, accepted: self.accepted };
        let strikes = self.strikes.entry(id).or_insert(new);
        !std::mem::replace(&mut strikes.stripped, true)
    }

    /// The event is kept, and comes next in its other form.
    fn again(&mut self, fault: Fault) -> Verdict {
        self.show(Some(fault));
        self.book.retry();
        Verdict::Again
    }

    /// An attempt was answered 200, and the key check `key`.
    pub fn judged_200(&mut self, attempt: Attempt<'_>, key: KeyAnswer, now: Instant) -> Verdict {
        let Attempt { id, sent, .. } = attempt;
        if self.closed {
            return Verdict::Settled;
        }
        match key {
            KeyAnswer::Good => {}
            KeyAnswer::Refused(code) => {
                self.refuse_key(code, now);
                return self.keep(Pause::NONE, Fault::KeyRefused(code), State::Paused);
            }
            KeyAnswer::Unknown(fault) => {
                let note = "the event was answered 200, and the key check does not tell why; \
                            events are kept";
                self.complain(fault, now, note);
                let news = self.strike(id, fault).attempts == 1;
                return self.back_off(id, fault, news, sent, now);
            }
        }
        self.key_good = true;
        self.key_trusted_until = Some(now + KEY_TRUST);
        let (count, last) = &mut self.answered_200;
        if *last != Some(id) {
            (*count, *last) = (*count + 1, Some(id));
        }
        if *count >= PUZZLE {
            self.hold = Hold::Paused { until: now + KEY_PAUSE };
            let note = "the key is good, so the server is not understood: is it another version \
                        (then set \"accept_200 on\"), or does a proxy answer for it?";
            self.complain_of_configuration(Fault::Puzzled, now, note);
            return self.keep(Pause::NONE, Fault::Puzzled, State::Paused);
        }
        let fault = Fault::Answered(200);
        if self.accepted > 0 {
            self.end_backoff();
            let note =
                "the key is good: this event lacks what the server requires and is set aside";
            self.say(fault, now, Level::Error, note);
            return self.reject(attempt, fault, now);
        }
        self.refused(attempt, Fault::Answered(200), now)
    }

    /// The key was asked for, at the start or during a pause.
    pub fn key_answered(&mut self, key: KeyAnswer, now: Instant) {
        if self.closed {
            return;
        }
        let first = !std::mem::replace(&mut self.key_asked, true);
        match key {
            KeyAnswer::Good => {
                if !std::mem::replace(&mut self.key_good, true) {
                    self.log(Level::Notice, "key accepted");
                }
                self.hold = Hold::Open;
                self.show(None);
            }
            KeyAnswer::Refused(code) => {
                self.refuse_key(code, now);
                self.show(Some(Fault::KeyRefused(code)));
            }
            KeyAnswer::Unknown(fault) => {
                // The key is still unknown: the answers to events will tell.
                self.hold = Hold::Open;
                self.show(Some(fault));
                if first {
                    let note = "the API key could not be checked; events are sent all the same";
                    self.log(Level::Error, format!("key check: {fault}: {note}"));
                }
            }
        }
    }

    /// The pause before the `attempts`th repetition.
    fn pause(attempts: u32) -> Duration {
        let full = BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(6)).min(BACKOFF_MAX);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn accepted(&mut self, attempt: Attempt<'_>, now: Instant) -> Verdict {
        let Attempt { id, waiting, .. } = attempt;
        // A firewall will dislike the next one, too.
        if !self.is_stripped(id) {
            self.struck_out.remove(&attempt.user);
        }
        self.hold = Hold::Open;
        self.answered_200 = (0, None);
        self.answered_400 = (0, None);
        self.strikes.remove(&id);
        self.suspects = 0;
        self.accepted += 1;
        if std::mem::take(&mut self.in_trouble) {
            self.recoveries += 1;
        }
        self.pacer.accepted(attempt.sent, now, waiting);
        self.keep_pace(now, PACE_KEPT);
        self.book.ledger.observe(self.book.slot, attempt.captured_ms);
        if !self.config.resend {
            self.book.delivered(id);
        }
        let complained = std::mem::take(&mut self.complained);
        if self.accepted == 1 {
            self.log(Level::Notice, "first event accepted");
        } else if complained {
            self.log(Level::Notice, "events are accepted again");
        }
        self.show(None);
        if self.config.resend { Verdict::Accepted } else { Verdict::Settled }
    }

    /// Keeps the pace for the next deliverer, if it was not kept within this time.
    fn keep_pace(&mut self, now: Instant, within: Duration) {
        if let Some(kept) = &mut self.pace_kept
            && now.saturating_duration_since(*kept) >= within
        {
            *kept = now;
            self.book.keep_pace(self.pacer.learned(now).as_ref());
        }
    }

    /// The server answered, but did not take the event: is it the event, or the server?
    fn refused(&mut self, attempt: Attempt<'_>, fault: Fault, now: Instant) -> Verdict {
        let Attempt { id, user, sent, crowded, .. } = attempt;
        let (code, is_understood) = match fault {
            Fault::Answered(code) => (code, true),
            Fault::NotUnderstood(code) => (code, false),
            _ => (0, false),
        };
        let strikes = self.strike(id, fault);
        // Once a user is known for it, one refusal of each event suffices: the events must not pile up before
        // those of others.
        let known = self.struck_out.get(&user).is_some_and(|(known, accepted)| {
            *known == fault && (*accepted != self.accepted || crowded)
        });
        if is_understood && (strikes.count >= STRIKES || known) {
            if self.struck_out.len() >= MAX_STRUCK_OUT {
                self.struck_out.clear();
            }
            if code != 200 && self.strip(id, fault) {
                self.struck_out.entry(user).or_insert((fault, self.accepted));
                // Further refusals count only if other events are accepted meanwhile.
                self.strikes.entry(id).and_modify(|strikes| strikes.count = STRIKES - 1);
                self.end_backoff();
                return self.again(fault);
            }
            self.struck_out.insert(user, (fault, self.accepted));
            let note = "one event was refused five times while others were accepted, also without \
                        User-Agent, Referer and query, and is set aside";
            self.say(fault, now, Level::Error, note);
            self.end_backoff();
            return self.reject(attempt, fault, now);
        }
        match code {
            _ if !is_understood => {
                let note =
                    "the server is not understood: is the URL right, does a proxy answer for it?";
                self.complain_of_configuration(fault, now, note);
            }
            500..=599 => self.complain(fault, now, KEPT),
            300..=399 => {
                let note = "redirects are not followed; is the URL right?";
                self.complain_of_configuration(fault, now, note);
            }
            _ => {
                let note = "is the URL right, does a firewall refuse it?";
                self.complain_of_configuration(fault, now, note);
            }
        }
        // Further refusals of one event tell nothing about the server.
        let news = strikes.attempts == 1;
        self.suspects += u32::from(news);
        let enough = if code >= 500 { SUSPECTS_5XX } else { SUSPECTS };
        if matches!(self.hold, Hold::Open) && !(news && self.suspects >= enough) {
            return self.keep(self.own_pause(id), fault, State::Retrying);
        }
        self.back_off(id, fault, news, sent, now)
    }

    fn failed(&mut self, id: EventId, fault: Fault, sent: Instant, now: Instant) -> Verdict {
        self.strike(id, fault);
        self.complain(fault, now, KEPT);
        self.back_off(id, fault, true, sent, now)
    }

    /// Counts a failure of the event.
    fn strike(&mut self, id: EventId, fault: Fault) -> Strikes {
        let accepted = self.accepted;
        let new = Strikes { fault, count: 1, attempts: 0, stripped: false, accepted };
        let strikes = self.strikes.entry(id).or_insert(new);
        if strikes.fault != fault {
            let Strikes { attempts, stripped, .. } = *strikes;
            *strikes = Strikes { attempts, stripped, ..new };
        } else if strikes.accepted != accepted {
            strikes.count = strikes.count.saturating_add(1);
        }
        strikes.accepted = accepted;
        strikes.attempts += 1;
        *strikes
    }

    /// The pause of an event that failed, apart from what the server's state asks for.
    fn own_pause(&self, id: EventId) -> Pause {
        let Some(strikes) = self.strikes.get(&id) else { return Pause::NONE };
        let recoveries = (strikes.count == 1).then_some(self.recoveries);
        Pause { length: Self::pause(strikes.attempts).max(self.asked), recoveries }
    }

    /// The server is in trouble; `news` tells whether the trouble is worse than known.
    fn back_off(
        &mut self,
        id: EventId,
        fault: Fault,
        news: bool,
        sent: Instant,
        now: Instant,
    ) -> Verdict {
        let pause = self.own_pause(id);
        let tries = match self.hold {
            // Several connections saw the same failure.
            Hold::Backoff { since, .. } if since > sent => {
                return self.keep(pause, fault, State::Retrying);
            }
            Hold::Paused { .. } => return self.keep(pause, fault, State::Paused),
            Hold::Backoff { tries, .. } => tries + u32::from(news),
            Hold::Open => 1,
        };
        let until = now + Self::pause(tries).max(self.asked);
        self.hold = Hold::Backoff { since: now, until, tries };
        self.keep(pause, fault, State::Retrying)
    }

    fn keep(&mut self, pause: Pause, fault: Fault, state: State) -> Verdict {
        self.in_trouble = true;
        self.book.show(state, Some(fault));
        self.book.retry();
        Verdict::Later(pause)
    }

    fn reject(&mut self, attempt: Attempt<'_>, fault: Fault, now: Instant) -> Verdict {
        self.strikes.remove(&attempt.id);
        let (since, named) = &mut self.named;
        if now.saturating_duration_since(*since) >= REPEAT {
            (*since, *named) = (now, 0);
        }
        if *named < MAX_NAMED {
            *named += 1;
            let is_last = *named == MAX_NAMED;
            self.log(Level::Error, rejection(&attempt, fault, is_last));
        }
        self.show(Some(fault));
        self.book.rejected(&attempt, fault);
        Verdict::Settled
    }

    /// The server is there again.
    fn end_backoff(&mut self) {
        if matches!(self.hold, Hold::Backoff { .. }) {
            self.hold = Hold::Open;
        }
    }

    fn refuse_key(&mut self, code: u16, now: Instant) {
        self.key_good = false;
        self.key_trusted_until = None;
        self.hold = Hold::Paused { until: now + KEY_PAUSE };
        let note = "check api_key or api_key_file, then reload; delivery is paused.";
        self.complain_of_configuration(Fault::KeyRefused(code), now, note);
    }

    fn show(&self, fault: Option<Fault>) {
        let state = match self.hold {
            Hold::Open => State::Ok,
            Hold::Paused { .. } => State::Paused,
            Hold::Backoff { .. } => State::Retrying,
        };
        self.book.show(state, fault);
    }

    fn say_429(&mut self, now: Instant) {
        let fault = Fault::Answered(429);
        let state = if self.pacer.is_probing() { State::Retrying } else { State::Ok };
        self.book.show(state, Some(fault));
        self.say(fault, now, Level::Info, "slowing down; events are kept");
    }

    /// Logs that events are not accepted.
    fn complain(&mut self, fault: Fault, now: Instant, note: &'static str) {
        self.complained |= self.say(fault, now, Level::Error, note);
    }

    /// The same if the cure is another configuration: also says what a reload does to the events that wait.
    fn complain_of_configuration(&mut self, fault: Fault, now: Instant, note: &'static str) {
        if self.may_say(fault, note, now) {
            let kept = match self.book.store {
                Some(_) => "Events are kept in the spool",
                None => {
                    "Events are kept in memory; a reload drops those that are not accepted within \
                     shutdown_timeout"
                }
            };
            self.log(Level::Error, format!("{fault}: {note} {kept}"));
            self.complained = true;
        }
    }

    /// Logs a message, unless that was done a short while ago.
    fn say(&mut self, fault: Fault, now: Instant, level: Level, note: &'static str) -> bool {
        let may = self.may_say(fault, note, now);
        if may {
            self.log(level, format!("{fault}: {note}"));
        }
        may
    }

    fn may_say(&mut self, fault: Fault, note: &'static str, now: Instant) -> bool {
        self.said.entry((fault, note)).or_insert(Once::every(REPEAT)).may(now)
    }

    fn log(&self, level: Level, text: impl std::fmt::Display) {
        self.log.log(level, format!("{}: {text}", self.config.label));
    }
}

/// What the log says of a rejected event; `is_last`: of further ones it says nothing for a while.
fn rejection(attempt: &Attempt<'_>, fault: Fault, is_last: bool) -> String {
    let time = DateTime::from_timestamp_millis(attempt.captured_ms).unwrap_or_default();
    let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
    let kind = attempt.kind.map_or("unknown type", EventType::name);
    // From a spool it may be any text.
    let trace = TraceId::of(attempt.trace);
    let kept = match attempt.id {
        EventId::Stored(id) => format!(", kept in the spool with the id {id}"),
        EventId::Memory(_) => String::new(),
    };
    let more = if is_last { "; for a minute, others are only in the status" } else { "" };
    format!(
        "{fault}: the event {} is rejected: {kind}, captured {time}{kept}{more}",
        trace.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_queue::{Reader, log_queue};
    use crate::shm::zone::{Zone, anonymous};

    const KEY_WORDS: &str = "key";

    struct Bench {
        policy: Policy,
        zone: Zone,
        log: Reader,
        now: Instant,
    }

    impl Bench {
        /// A policy that holds 100 events and has seen a good key.
        fn new() -> Self {
            let zone = anonymous(1 << 20).unwrap();
            zone.target_slot("t", 0).unwrap();
            (0..100).for_each(|_| zone.count_captured(1));
            let ledger = zone.enlist(std::process::id()).unwrap();
            ledger.collected(0, 100);
            let (log, messages) = log_queue();
            let config = PolicyConfig {
                label: "t".into(),
                accept_200: false,
                resend: false,
                rate: None,
                timeout: Duration::from_secs(5),
            };
            let now = Instant::now();
            let mut policy =
                Policy::new(config, Book { ledger, slot: 0, store: None, server: 1 }, log, now);
            assert_eq!(policy.permit(now), Permit::AskKey);
            assert!(matches!(policy.permit(now), Permit::Wait(_)));
            policy.key_answered(KeyAnswer::Good, now);
            Self { policy, zone, log: messages, now }
        }

        /// Waits for the permission to send, sends `id`, and reports `answer`.
        fn post(&mut self, id: u64, answer: Answer) -> Verdict {
            loop {
                match self.policy.permit(self.now) {
                    Permit::Send => break,
                    Permit::Wait(wait) => self.now += wait,
                    Permit::AskKey => panic!("asks for the key"),
                }
            }
            self.answered(id, answer, self.now, self.now, true)
        }

        fn answered(
            &mut self,
            id: u64,
            answer: Answer,
            sent: Instant,
            now: Instant,
            waiting: bool,
        ) -> Verdict {
            let attempt = Attempt { waiting, ..attempt(id, sent) };
            self.policy.answered(attempt, answer, now)
        }

        /// Whether there is a pause after a failure; what the pace asks for is shorter.
        fn is_held_up(&mut self) -> bool {
            matches!(self.policy.permit(self.now), Permit::Wait(wait) if wait >= BACKOFF / 2)
        }

        /// As [`post`](Self::post), for an event that must be kept; returns its own pause.
        fn post_in_vain(&mut self, id: u64, answer: Answer) -> Pause {
            match self.post(id, answer) {
                Verdict::Later(pause) => pause,
                other => panic!("{other:?}"),
            }
        }

        /// Posts `id`, which is answered 200, and asks for the key.
        fn post_200(&mut self, id: u64, key: KeyAnswer) -> Verdict {
            assert_eq!(self.post(id, Status(200)), Verdict::AskKey);
            self.policy.judged_200(attempt(id, self.now), key, self.now)
        }

        fn counts(&self) -> (u64, u64, u64, u64) {
            let t = self.zone.totals(0);
            assert_eq!(
                t.captured,
                t.delivered + t.rejected + t.dropped.iter().sum::<u64>() + t.pending
            );
            (t.delivered, t.rejected, t.dropped.iter().sum(), t.pending)
        }

        fn lines(&self) -> Vec<String> {
            self.log.drain().map(|m| m.text).collect()
        }
    }

    /// The user has the event's number.
    fn attempt(id: u64, sent: Instant) -> Attempt<'static> {
        Attempt {
            id: EventId::Memory(id),
            trace: "7f3a",
            user: id,
            kind: Some(EventType::PageEdit),
            sent,
            captured_ms: 0,
            waiting: true,
            crowded: false,
        }
    }

    use Answer::Status;

    #[test]
    fn accepted_and_invalid() {
        let mut b = Bench::new();
        assert_eq!(b.post(1, Status(204)), Verdict::Settled);
        assert_eq!(b.post(2, Status(400)), Verdict::Again);
        assert!(b.policy.is_stripped(EventId::Memory(2)));
        assert_eq!(b.post(2, Status(400)), Verdict::Settled);
        assert_eq!(b.counts(), (1, 1, 0, 98));
        assert_eq!(b.zone.totals(0).set_aside, [(Fault::Answered(400), 1)]);
        let lines = b.lines();
        assert!(lines.iter().any(|line| line.ends_with(
            "answered 400: the event 7f3a is rejected: page_edit, captured 1970-01-01T00:00:00.000Z"
        )));
        let [event] = &b.zone.totals(0).rejected_events[..] else { panic!("one event") };
        assert_eq!(
            (event.id, event.trace.as_str(), event.fault),
            (None, "7f3a", Fault::Answered(400))
        );
        assert!(lines[0].ends_with("key accepted") && lines[1].ends_with("first event accepted"));
    }

    #[test]
    fn a_user_known_for_refused_events_holds_up_nobody() {
        let mut b = Bench::new();
        let refuse = |b: &mut Bench, id: u64, crowded: bool| {
            let attempt = Attempt { user: 7, crowded, ..attempt(id, b.now) };
            b.policy.answered(attempt, Status(403), b.now)
        };
        for round in 0..4 {
            assert!(matches!(refuse(&mut b, 1, false), Verdict::Later(_)));
            assert_eq!(b.post(100 + round, Status(204)), Verdict::Settled);
        }
        assert_eq!(refuse(&mut b, 1, false), Verdict::Again);
        assert!(b.policy.is_stripped(EventId::Memory(1)));
        // Nobody else was accepted since: it may be the server.
        assert!(matches!(refuse(&mut b, 1, false), Verdict::Later(_)));
        assert_eq!(b.post(104, Status(204)), Verdict::Settled);
        assert_eq!(refuse(&mut b, 1, false), Verdict::Settled);
        assert!(matches!(refuse(&mut b, 2, false), Verdict::Later(_)));
        assert_eq!(b.post(105, Status(204)), Verdict::Settled);
        assert_eq!(refuse(&mut b, 2, false), Verdict::Again);
        assert_eq!(refuse(&mut b, 2, false), Verdict::Settled);
        assert_eq!(refuse(&mut b, 3, true), Verdict::Again, "there is no room to wait");
        assert_eq!(refuse(&mut b, 3, true), Verdict::Settled, "there is no room to wait");
        // One that is accepted without what a firewall dislikes tells nothing of the next one.
        assert_eq!(refuse(&mut b, 6, true), Verdict::Again);
        b.policy.answered(Attempt { user: 7, ..attempt(6, b.now) }, Status(204), b.now);
        assert_eq!(refuse(&mut b, 7, true), Verdict::Again);
        assert_eq!(refuse(&mut b, 7, true), Verdict::Settled);
        // An accepted event clears the user's name.
        b.policy.answered(Attempt { user: 7, ..attempt(4, b.now) }, Status(204), b.now);
        assert!(matches!(refuse(&mut b, 5, true), Verdict::Later(_)));
        assert_eq!(b.counts(), (8, 4, 0, 88));
    }

    #[test]
    fn a_429_keeps_the_event_in_its_place() {
        let mut b = Bench::new();
        assert_eq!(b.post(1, Status(429)), Verdict::Again);
        assert!(matches!(b.policy.permit(b.now), Permit::Wait(_)));
        assert_eq!(b.counts(), (0, 0, 0, 100));
    }

    #[test]
    fn no_answer_backs_off_and_recovers_at_once() {
        let mut b = Bench::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            b.post_in_vain(1, Answer::None(Fault::ConnectionRefused));
            let Permit::Wait(pause) = b.policy.permit(b.now) else { panic!("no pause") };
            pauses.push(pause);
        }
        assert!(pauses[0] >= Duration::from_millis(250) && pauses[0] <= BACKOFF);
        assert!(pauses[11] >= BACKOFF_MAX / 2 && pauses[11] <= BACKOFF_MAX);
        assert_eq!(b.zone.totals(0).state, State::Retrying);
        assert_eq!(b.post(1, Status(204)), Verdict::Settled);
        assert_eq!(b.policy.permit(b.now), Permit::Send);
        assert_eq!(b.zone.totals(0).state, State::Ok);
        assert_eq!(b.counts(), (1, 0, 0, 99));
    }

    #[test]
    fn one_connection_tries_for_all() {
        let mut b = Bench::new();
        b.post(1, Answer::None(Fault::TimedOut));
        let Permit::Wait(pause) = b.policy.permit(b.now) else { panic!("no pause") };
        b.now += pause;
        assert_eq!(b.policy.permit(b.now), Permit::Send);
        assert!(matches!(b.policy.permit(b.now), Permit::Wait(_)));
    }

    #[test]
    fn failures_at_the_same_time_are_one() {
        let mut b = Bench::new();
        let sent = b.now;
        assert_eq!(b.policy.permit(sent), Permit::Send);
        assert_eq!(b.policy.permit(sent), Permit::Send);
        let later = sent + Duration::from_secs(1);
        b.answered(1, Answer::None(Fault::TimedOut), sent, later, true);
        b.answered(2, Answer::None(Fault::TimedOut), sent, later, true);
        let Permit::Wait(pause) = b.policy.permit(later) else { panic!("no pause") };
        assert!(pause <= BACKOFF);
    }

    #[test]
    fn events_that_a_firewall_dislikes_are_set_aside() {
        let mut b = Bench::new();
        let mut others = 100..;
        for round in 0..4 {
            for id in [1, 2] {
                b.post_in_vain(id, Status(403));
                assert!(!b.is_held_up(), "others are held up in {round}");
                let other = others.next().unwrap();
                b.answered(other, Status(204), b.now, b.now, true);
            }
        }
        // Nothing new is learned from these.
        assert_eq!(b.post(1, Status(403)), Verdict::Again);
        assert_eq!(b.post(2, Status(403)), Verdict::Again);
        assert_eq!(b.post(others.next().unwrap(), Status(204)), Verdict::Settled);
        assert_eq!(b.post(1, Status(403)), Verdict::Settled);
        assert_eq!(b.post(2, Status(403)), Verdict::Settled);
        assert!(!b.is_held_up());
        assert_eq!(b.counts(), (9, 2, 0, 89));
        let set_aside = b.lines().iter().filter(|l| l.contains("set aside")).count();
        assert_eq!(set_aside, 1, "the second is within the minute");
    }

    #[test]
    fn a_400_of_a_server_that_takes_nothing_rejects_nothing() {
        let mut b = Bench::new();
        for id in 1..20 {
            b.post_in_vain(id, Status(400));
        }
        assert_eq!(b.post(20, Status(204)), Verdict::Settled);
        // Two in a row are at fault themselves; more are the server's fault.
        for id in [21, 22] {
            assert_eq!(b.post(id, Status(400)), Verdict::Again);
            assert_eq!(b.post(id, Status(400)), Verdict::Settled);
        }
        for id in 23..40 {
            b.post_in_vain(id, Status(400));
        }
        assert_eq!(b.counts(), (1, 2, 0, 97));
    }

    #[test]
    fn an_event_that_is_too_long_goes_without_what_makes_it_long() {
        let mut b = Bench::new();
        assert_eq!(b.post(1, Status(204)), Verdict::Settled);
        assert_eq!(b.post(2, Status(413)), Verdict::Again);
        assert!(b.policy.is_stripped(EventId::Memory(2)));
        assert_eq!(b.post(2, Status(204)), Verdict::Settled);
        assert_eq!(b.counts(), (2, 0, 0, 98));
        assert!(!b.policy.is_stripped(EventId::Memory(2)), "it is forgotten");
    }

    #[test]
    fn another_2xx_is_not_understood_and_rejects_nothing() {
        let mut b = Bench::new();
        for round in 0..20 {
            b.post_in_vain(1, Status(202));
            assert_eq!(b.zone.totals(0).state, State::Retrying);
            assert_eq!(b.zone.totals(0).last_fault.unwrap().0, Fault::NotUnderstood(202));
            assert_eq!(b.post(100 + round, Status(204)), Verdict::Settled);
        }
        assert_eq!(b.counts(), (20, 0, 0, 80));
        assert!(
            b.lines().iter().any(|line| line.contains("answered 202, which is not understood"))
        );
    }

    #[test]
    fn retry_after_is_followed_within_a_bound() {
        let minute = Duration::from_secs(60);
        let wait = |b: &mut Bench| match b.policy.permit(b.now) {
            Permit::Wait(wait) => wait,
            other => panic!("{other:?}"),
        };
        for (asked, least, most) in
            [(minute, minute, 2 * minute), (1000 * minute, RETRY_AFTER_MAX, 2 * RETRY_AFTER_MAX)]
        {
            let mut b = Bench::new();
            assert_eq!(b.post(1, Answer::Later(429, asked)), Verdict::Again);
            let waits = wait(&mut b);
            assert!((least..most).contains(&waits), "{waits:?}");
            // One event's 503 is its own; those of several are the server's.
            let mut b = Bench::new();
            let pause = b.post_in_vain(1, Answer::Later(503, asked));
            assert!((least..most).contains(&pause.length), "{pause:?}");
            assert_eq!(b.policy.permit(b.now), Permit::Send);
            b.post_in_vain(2, Answer::Later(503, asked));
            let waits = wait(&mut b);
            assert!((least..most).contains(&waits), "{waits:?}");
        }
    }

    #[test]
    fn many_different_events_refused_in_a_row_are_the_servers_fault() {
        for (code, most) in [(403, SUSPECTS), (503, SUSPECTS_5XX)] {
            let mut b = Bench::new();
            for id in 1..u64::from(most) {
                b.post_in_vain(id, Status(code));
                assert!(!b.is_held_up(), "{code}: others may be accepted");
            }
            b.post_in_vain(100, Status(code));
            assert!(b.is_held_up());
        }
    }

    #[test]
    fn refusals_without_an_acceptance_between_them_are_one() {
        let mut b = Bench::new();
        for _ in 0..20 {
            b.post_in_vain(1, Status(403));
            assert!(!b.is_held_up(), "others may be accepted");
        }
        b.post(2, Status(204));
        b.post_in_vain(1, Status(403));
        assert_eq!(b.counts(), (1, 0, 0, 99));
    }

    #[test]
    fn a_pause_ends_when_it_was_the_servers_fault() {
        let mut b = Bench::new();
        let broken = Answer::None(Fault::ConnectionBroken);
        let pauses = [1, 2, 1, 2, 1].map(|id| b.post_in_vain(id, broken));
        assert!(pauses[4].length >= Duration::from_secs(1));
        assert!(pauses.iter().all(|p| p.recoveries == Some(b.policy.recoveries())));
        b.post(3, Status(204));
        assert!(pauses.iter().all(|p| p.recoveries != Some(b.policy.recoveries())));
        // Others are accepted: from now on it is this event's own.
        assert_eq!(b.post_in_vain(1, broken).recoveries, None);
    }

    #[test]
    fn a_server_that_refuses_all_rejects_none() {
        let mut b = Bench::new();
        let start = b.now;
        for id in 1..40 {
            b.post_in_vain(id % 7, Status(403));
        }
        // It comes back, and goes again: no event was refused while others were accepted.
        for id in 0..7 {
            assert_eq!(b.post(id, Status(204)), Verdict::Settled);
        }
        assert_eq!(b.counts(), (7, 0, 0, 93));
        let minutes = (b.now - start).as_secs() / 60;
        let said = b.lines().iter().filter(|l| l.contains("403")).count() as u64;
        assert!(said <= minutes + 1, "{said} lines in {minutes} minutes");
    }

    #[test]
    fn a_bad_key_pauses_and_a_good_one_resumes() {
        let mut b = Bench::new();
        b.post(1, Status(204));
        assert!(matches!(b.post_200(2, KeyAnswer::Refused(401)), Verdict::Later(_)));
        assert_eq!(b.zone.totals(0).state, State::Paused);
        for _ in 0..10 {
            let Permit::Wait(pause) = b.policy.permit(b.now) else { panic!("not paused") };
            assert!(pause <= KEY_PAUSE);
            b.now += pause;
            assert_eq!(b.policy.permit(b.now), Permit::AskKey);
            b.policy.key_answered(KeyAnswer::Refused(401), b.now);
        }
        assert_eq!(b.counts(), (1, 0, 0, 99));
        let said = b.lines().iter().filter(|l| l.contains("refused with 401")).count();
        assert!((5..=6).contains(&said), "one line a minute in 300 s, not {said}");
        b.now += KEY_PAUSE;
        assert!(b.policy.key_is_due(b.now));
        b.policy.key_answered(KeyAnswer::Good, b.now);
        assert_eq!(b.post(2, Status(204)), Verdict::Settled);
        assert!(b.lines().iter().any(|l| l.contains(KEY_WORDS) && l.ends_with("accepted")));
    }

    #[test]
    fn a_401_means_the_key() {
        let mut b = Bench::new();
        b.post_in_vain(1, Status(401));
        assert_eq!(b.zone.totals(0).state, State::Paused);
        assert_eq!(b.counts(), (0, 0, 0, 100));
    }

    #[test]
    fn a_200_with_a_good_key_rejects_only_what_a_working_server_rejects() {
        let mut b = Bench::new();
        // Before the first 204 nobody knows what a 200 means.
        assert!(matches!(b.post_200(1, KeyAnswer::Good), Verdict::Later(_)));
        assert_eq!(b.post(2, Status(204)), Verdict::Settled);
        assert_eq!(b.post(1, Status(200)), Verdict::Settled);
        assert_eq!(b.counts(), (1, 1, 0, 98));
        // The same event again and again is one; three different ones are a puzzle.
        assert_eq!(b.post(3, Status(200)), Verdict::Settled);
        b.post_in_vain(4, Status(200));
        assert_eq!(b.zone.totals(0).state, State::Paused);
        assert_eq!(b.counts(), (1, 2, 0, 97));
        b.now += KEY_PAUSE;
        assert_eq!(b.policy.permit(b.now), Permit::AskKey);
        b.policy.key_answered(KeyAnswer::Good, b.now);
        assert_eq!(b.post(5, Status(204)), Verdict::Settled);
        assert_eq!(b.post(4, Status(200)), Verdict::Settled);
        assert_eq!(b.counts(), (2, 3, 0, 95));
        // A good key is not believed for ever.
        b.now += KEY_TRUST;
        assert_eq!(b.post_200(6, KeyAnswer::Good), Verdict::Settled);
    }

    #[test]
    fn an_unreachable_key_check_is_a_503() {
        let mut b = Bench::new();
        let unknown = KeyAnswer::Unknown(Fault::Answered(404));
        assert!(matches!(b.post_200(1, unknown), Verdict::Later(_)));
        assert!(matches!(b.policy.permit(b.now), Permit::Wait(_)));
        assert_eq!(b.counts(), (0, 0, 0, 100));
    }

    #[test]
    fn recovery_is_said_once_for_each_complaint() {
        let mut b = Bench::new();
        b.post(1, Status(204));
        for id in 2..10 {
            b.post_in_vain(100, Answer::None(Fault::TimedOut));
            b.post(id, Status(204));
        }
        let said = b.lines().iter().filter(|l| l.ends_with("events are accepted again")).count();
        assert_eq!(said, 1);
    }

    #[test]
    fn accept_200() {
        let mut b = Bench::new();
        b.policy.config.accept_200 = true;
        assert_eq!(b.post(1, Status(200)), Verdict::Settled);
        assert_eq!(b.counts(), (1, 0, 0, 99));
    }

    #[test]
    fn nothing_counts_after_closing() {
        let mut b = Bench::new();
        b.post(1, Status(204));
        b.policy.close();
        assert_eq!(b.answered(2, Status(204), b.now, b.now, true), Verdict::Settled);
        assert_eq!(b.counts(), (1, 0, 0, 99));
    }
}
