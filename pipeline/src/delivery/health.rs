//! The state and log messages of targets that write a stream.

use std::mem;
use std::time::{Duration, Instant};

use crate::delivery::inbox::Inbox;
use crate::log_queue::{Level, Once};
use crate::shm::zone::{Fault, State};

/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);

/// Logs and shows how delivery goes.
#[derive(Debug, Default)]
pub struct Health {
    in_trouble: bool,
    said: Option<(Fault, Once)>,
}

impl Health {
    /// An attempt failed; it is repeated.
    pub fn failed(&mut self, inbox: &Inbox, fault: Fault, now: Instant) {
        self.in_trouble = true;
        let waits = matches!(fault, Fault::Busy | Fault::NotPlain);
        let state = if waits { State::Waiting } else { State::Retrying };
        inbox.ledger().show(inbox.slot(), state, Some(fault));
        inbox.ledger().retry(inbox.slot());
        self.say(inbox, fault, "events are kept in memory while it lasts", now);
    }

    /// Events are dropped because the receiver takes none. The connection lasts, and may go on.
    pub fn stalls(&mut self, inbox: &Inbox, now: Instant) {
        if !mem::replace(&mut self.in_trouble, true) {
            inbox.ledger().show(inbox.slot(), State::Retrying, Some(Fault::TimedOut));
            self.say(inbox, Fault::TimedOut, "events are kept in memory while it lasts", now);
        }
    }

    /// One event is refused for good.
    pub fn rejected(&mut self, inbox: &Inbox, fault: Fault, now: Instant) {
        inbox.ledger().show(inbox.slot(), State::Ok, Some(fault));
        self.say(inbox, fault, "this event is rejected", now);
    }

    fn say(&mut self, inbox: &Inbox, fault: Fault, note: &str, now: Instant) {
        if self.said.is_none_or(|(before, _)| before != fault) {
            self.said = Some((fault, Once::every(REPEAT)));
        }
        if self.said.as_mut().is_some_and(|(_, once)| once.may(now)) {
            inbox.log(Level::Error, &format!("{fault}; {note}"));
        }
    }

    /// Events are delivered.
    pub fn succeeded(&mut self, inbox: &Inbox) {
        if mem::take(&mut self.in_trouble) {
            self.said = None;
            inbox.ledger().show(inbox.slot(), State::Ok, None);
            inbox.log(Level::Notice, "it works again");
        }
    }
}
