//! One connection: a thread that sends the events of its share of the users, in order for each user.
//!
//! An event that waits for another attempt delays only the later events of its user.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::log_queue::{Level, LogQueue};
use crate::shm::zone::DropReason;
use crate::tirreno::http::Outbound;
use crate::tirreno::policy::{Attempt, CONFIRM, Pause, Permit, Verdict};
use crate::tirreno::shared::{Closed, Connect, Event, Shared};

/// The longest wait for an event if no event is kept: a new event ends it …
const IDLE: Duration = Duration::from_secs(3600);
/// … and the longest if events are kept: they may become due earlier.
const KEPT: Duration = Duration::from_millis(100);

/// The pause before this thread restarts after a panic.
const RESTART: Duration = Duration::from_millis(100);

/// The events of a user whose first event waits for another attempt.
struct Kept {
    events: VecDeque<Event>,
    due: Instant,
    /// The event is due at once if the policy's number of recoveries is no longer this one.
    recoveries: Option<u64>,
}

/// One connection's thread.
pub struct Connection {
    shared: Arc<Shared>,
    /// The connection's index in the target.
    number: usize,
    connect: Arc<Connect>,
    log: LogQueue,
    /// The event that is being sent.
    head: Option<Event>,
    kept: HashMap<u64, Kept>,
    /// Kept and new events take turns, so that neither delays the other for ever.
    kept_turn: bool,
    /// Events accepted within the last [`CONFIRM`], and when; only with `resend`.
    accepted: VecDeque<(Instant, Event)>,
    /// Accepted events that are sent again, before all others.
    again: VecDeque<Event>,
    /// The policy's number of failures when it was last read.
    failures: u64,
    ended: bool,
}

impl Connection {
    /// The connection with that index.
    pub fn new(shared: Arc<Shared>, number: usize, connect: Arc<Connect>, log: LogQueue) -> Self {
        Self {
            shared,
            number,
            connect,
            log,
            head: None,
            kept: HashMap::new(),
            kept_turn: false,
            accepted: VecDeque::new(),
            again: VecDeque::new(),
            failures: 0,
            ended: false,
        }
    }

    /// Sends until the queue is closed and empty, or the target is closed.
    pub fn run(mut self) {
        while !self.ended && !self.shared.is_closed() {
            let outbound = (self.connect)();
            if catch_unwind(AssertUnwindSafe(|| self.send_all(outbound))).is_err() {
                self.log.log(Level::Error, "a connection's thread failed and starts again");
                thread::sleep(RESTART);
                if let Some(event) = &self.head {
                    self.shared.policy().give_up(event.id, DropReason::Internal);
                    self.settle();
                }
            }
        }
    }

    fn send_all(&mut self, mut outbound: Box<dyn Outbound>) {
        while !self.shared.is_closed() {
            let now = Instant::now();
            self.confirm(now);
            if self.shared.is_recalling() {
                self.give_back();
            }
            if self.head.is_none() {
                self.head = self.next(now);
            }
            let shared = &self.shared;
            if self.head.as_ref().is_some_and(|e| shared.leaves(e) || shared.is_gone(e)) {
                self.settle();
                continue;
            }
            let permit = match self.head {
                Some(_) => self.shared.policy().permit(now),
                None if self.ended => return,
                None if self.shared.policy().key_is_due(now) => Permit::AskKey,
                None => {
                    self.idle(now);
                    continue;
                }
            };
            match permit {
                Permit::Wait(limit) => self.shared.wait(limit),
                Permit::AskKey => {
                    let answer = outbound.check_key(self.shared.limit());
                    self.shared.policy().key_answered(answer, Instant::now());
                    self.shared.wake();
                }
                Permit::Send => self.send(outbound.as_mut()),
            }
        }
    }

    fn send(&mut self, outbound: &mut dyn Outbound) {
        let Some(event) = &self.head else { return };
        let stripped = self.shared.policy().is_stripped(event.id);
        let post = event.content.post(self.shared.privacy(), stripped);
        let sent = Instant::now();
        let answer = outbound.post(&post, self.shared.limit());
        let attempt = Attempt {
            id: event.id,
            trace: post.trace,
            user: event.user,
            kind: event.kind,
            sent,
            captured_ms: self.shared.captured_ms(event),
            waiting: self.shared.has_next(self.number) || !self.kept.is_empty(),
            crowded: self.shared.is_crowded(),
        };
        let mut verdict = self.shared.policy().answered(attempt, answer, Instant::now());
        if verdict == Verdict::AskKey {
            let key = outbound.check_key(self.shared.limit());
            verdict = self.shared.policy().judged_200(attempt, key, Instant::now());
        }
        self.shared.wake();
        match verdict {
            Verdict::Settled => self.settle(),
            Verdict::Accepted => self.accepted(),
            Verdict::Later(pause) => self.keep(pause),
            Verdict::Again | Verdict::AskKey => {}
        }
    }

    fn settle(&mut self) {
        if let Some(event) = self.done() {
            self.shared.release(&event);
        }
    }

    /// Gives back what is in memory only: the spool takes it, and it will outlive this process.
    fn give_back(&mut self) {
        fn take(events: &mut VecDeque<Event>) -> VecDeque<Event> {
            let (in_memory, others) = mem::take(events).into_iter().partition(Event::is_in_memory);
            *events = others;
            in_memory
        }
        let mut events: Vec<_> = take(&mut self.again).into();
        if self.head.as_ref().is_some_and(Event::is_in_memory) {
            events.extend(self.done());
        }
        self.kept.retain(|_, kept| {
            events.extend(take(&mut kept.events));
            !kept.events.is_empty()
        });
        self.shared.give_back(events);
    }

    /// Holds the event until its acceptance counts as lasting.
    fn accepted(&mut self) {
        if let Some(event) = self.done() {
            self.accepted.push_back((Instant::now(), event));
        }
    }

    /// Confirms events whose acceptance is lasting, and takes back those that were accepted just before the
    /// server failed.
    fn confirm(&mut self, now: Instant) {
        let (failures, failed) = self.shared.policy().failures();
        if failures != mem::replace(&mut self.failures, failures) {
            let lasting = self.accepted.iter().take_while(|(at, _)| *at + CONFIRM < failed).count();
            let before = self.accepted.iter().take_while(|(at, _)| *at <= failed).count();
            for (_, event) in self.accepted.drain(lasting..before).rev() {
                match self.kept.get_mut(&event.user) {
                    Some(kept) => kept.events.push_front(event),
                    None => self.again.push_front(event),
                }
            }
        }
        let is_over = self.shared.is_stopping();
        while let Some((at, _)) = self.accepted.front()
            && (is_over || *at + CONFIRM <= now)
            && let Some((_, event)) = self.accepted.pop_front()
        {
            self.shared.policy().confirm(event.id);
            self.shared.release(&event);
        }
    }

    /// Removes the sent event, so that the next event of its user may follow.
    fn done(&mut self) -> Option<Event> {
        let event = self.head.take()?;
        if let Some(kept) = self.kept.get_mut(&event.user) {
            if kept.events.is_empty() {
                self.kept.remove(&event.user);
            } else {
                (kept.due, kept.recoveries) = (Instant::now(), None);
            }
        }
        Some(event)
    }

    fn keep(&mut self, pause: Pause) {
        let Some(event) = self.head.take() else { return };
        let due = Instant::now() + pause.length;
        let fresh = || Kept { events: VecDeque::new(), due, recoveries: None };
        let kept = self.kept.entry(event.user).or_insert_with(fresh);
        (kept.due, kept.recoveries) = (due, pause.recoveries);
        let user = event.user;
        let again = mem::take(&mut self.again).into_iter();
        let (of_user, others) = again.partition(|event| event.user == user);
        self.again = others;
        let of_user: VecDeque<_> = of_user;
        of_user.into_iter().rev().for_each(|event| kept.events.push_front(event));
        kept.events.push_front(event);
    }

    /// The next event that may be sent now, if any.
    fn next(&mut self, now: Instant) -> Option<Event> {
        if let Some(event) = self.again.pop_front() {
            return Some(event);
        }
        self.kept_turn = !self.kept_turn;
        if self.kept_turn {
            self.next_kept(now).or_else(|| self.next_new())
        } else {
            self.next_new().or_else(|| self.next_kept(now))
        }
    }

    fn next_kept(&mut self, now: Instant) -> Option<Event> {
        let recoveries = self.shared.policy().recoveries();
        let is_due = |kept: &Kept| {
            kept.due <= now
                || kept.recoveries.is_some_and(|before| before != recoveries)
                || kept.events.front().is_some_and(|event| self.shared.leaves(event))
        };
        let first = self.kept.values_mut().filter(|k| is_due(k)).min_by_key(|k| k.due)?;
        first.events.pop_front()
    }

    fn next_new(&mut self) -> Option<Event> {
        loop {
            match self.shared.next(self.number) {
                Ok(Some(event)) => match self.kept.get_mut(&event.user) {
                    Some(kept) => kept.events.push_back(event),
                    None => return Some(event),
                },
                Ok(None) => return None,
                Err(Closed) => {
                    self.ended = self.kept.is_empty();
                    return None;
                }
            }
        }
    }

    /// Waits for a new event, or until a kept one is due.
    fn idle(&mut self, now: Instant) {
        let kept = self.kept.values().map(|k| k.due.saturating_duration_since(now));
        let due = kept.chain(self.shared.policy().key_due_in(now)).min();
        let is_idle = self.kept.is_empty() && self.accepted.is_empty();
        let most = if is_idle { IDLE } else { KEPT };
        let limit = due.map_or(most, |due| due.min(most)).max(Duration::from_millis(1));
        self.shared.wait_next(self.number, limit);
    }
}
