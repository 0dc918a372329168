//! Events that wait for a lookup: the application is asked which user their session belongs to.
//!
//! They wait outside of the ring, in a bounded queue of the worker that captured them, for five seconds at
//! most. An event that finds no room, or whose answer is late, goes with the user `session-…`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use nginx_sys::{ngx_cycle_t, ngx_event_t, ngx_msec_t};
use tirreno_pipeline::capture::identity::Identity;
use tirreno_pipeline::capture::rank::Rank;
use tirreno_pipeline::clock::wall_ms;
use tirreno_pipeline::event::Param;
use tirreno_pipeline::identity::keys::{Keys, TokenKey};
use tirreno_pipeline::identity::lookup::{Asked, Lookups};
use tirreno_pipeline::record::{Capture, Held};
use tirreno_pipeline::shm::zone::Zone;

use crate::conf::MainConf;
use crate::timer::Timer;
use crate::{guarded, worker};

/// How long an event waits at most, in milliseconds.
const PATIENCE: i64 = 5_000;
/// How many events wait at most, and how many bytes.
const MAX_EVENTS: usize = 1_000;
const MAX_BYTES: usize = 1 << 20;
/// How often answers are looked for while events wait, in milliseconds.
const TICK: ngx_msec_t = 20;

/// Lookups that this process has started, and the events that wait for them; only the event loop uses it.
struct Waiting {
    lookups: Lookups,
    zone: Zone,
    keys: Keys,
    events: VecDeque<Event>,
    bytes: usize,
    timer: Timer,
}

struct Event {
    key: TokenKey,
    until_ms: i64,
    held: Held,
}

thread_local! {
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
}

/// Starts what a worker needs; does nothing without `tirreno_identity`.
pub(crate) fn start(cycle: &ngx_cycle_t, main: &MainConf) {
    let Some(zone) = main.zone.filter(|_| !main.lookups.is_empty()) else { return };
    let configs: Arc<[_]> = main.lookups.as_slice().into();
    let lookups = match Lookups::start(configs, zone) {
        Ok(lookups) => lookups,
        Err(error) => return worker::thread_failed(cycle.log, &error),
    };
    WAITING.set(Some(Waiting {
        lookups,
        zone,
        keys: zone.keys(),
        events: VecDeque::new(),
        bytes: 0,
        timer: Timer::new(on_timer, cycle.log),
    }));
}

/// The process exits: the waiting events go without the answer.
pub(crate) fn stop() {
    let Some(mut waiting) = WAITING.take() else { return };
    waiting.timer.cancel();
    waiting.lookups.take_answers();
    waiting.settle(i64::MAX);
}

/// The token of a request that the application has just accepted.
pub(crate) struct Accepted<'t> {
    /// The index of its `tirreno_identity` block.
    pub(crate) which: usize,
    pub(crate) key: TokenKey,
    pub(crate) realm: &'t [u8],
    pub(crate) token: &'t [u8],
}

/// Starts a lookup for the token and holds the event until the answer comes. Returns whether it is held.
pub(crate) fn hold(accepted: &Accepted<'_>, event: &Capture<'_>) -> bool {
    WAITING.with_borrow_mut(|waiting| {
        let Some(waiting) = waiting else { return false };
        let Accepted { which, key, realm, token } = *accepted;
        let asked = waiting.lookups.ask(which, key, realm, token, event.ip);
        let is_behind = || waiting.events.iter().any(|event| event.key == key);
        if asked == Asked::No && !is_behind() {
            return false;
        }
        let held = event.hold();
        if waiting.events.len() >= MAX_EVENTS || waiting.bytes + held.len() > MAX_BYTES {
            return false;
        }
        waiting.bytes += held.len();
        waiting.events.push_back(Event { key, until_ms: wall_ms() + PATIENCE, held });
        waiting.set_timer();
        true
    })
}

/// The session is known from a lookup at that time: repeats the lookup if that is long ago.
pub(crate) fn refresh(accepted: &Accepted<'_>, time_ms: i64, event: &Capture<'_>) {
    WAITING.with_borrow_mut(|waiting| {
        if let Some(waiting) = waiting
            && waiting.lookups.is_stale(accepted.which, time_ms)
        {
            let Accepted { which, key, realm, token } = *accepted;
            waiting.lookups.ask(which, key, realm, token, event.ip);
        }
    });
}

unsafe extern "C" fn on_timer(_event: *mut ngx_event_t) {
    guarded((), || {
        WAITING.with_borrow_mut(|waiting| {
            let Some(waiting) = waiting else { return };
            waiting.lookups.take_answers();
            waiting.settle(wall_ms());
            waiting.set_timer();
        });
    });
}

impl Waiting {
    fn set_timer(&mut self) {
        if !self.events.is_empty() {
            self.timer.set(TICK);
        }
    }

    /// Releases the events whose session is known, cannot be known, or whose time is over.
    fn settle(&mut self, now_ms: i64) {
        for event in mem::take(&mut self.events) {
            let bound = self.zone.bindings().find(&self.keys, event.key, wall_ms());
            let bound = bound.filter(|bound| !bound.has_ended());
            let is_over = event.until_ms <= now_ms || self.lookups.has_failed(event.key);
            if bound.is_none() && !is_over {
                self.events.push_back(event);
                continue;
            }
            self.bytes -= event.held.len();
            let mut capture = event.held.capture();
            if let Some(bound) = &bound {
                let _ = capture.replace(Param::UserName, bound.user());
                capture.identity = Identity::Lookup.max(bound.identity());
                capture.rank = Rank::of(capture.kind, capture.identity);
                let known = self.lookups.known(event.key).map(|known| known.params.as_slice());
                for (param, value) in known.unwrap_or_default() {
                    let _ = capture.replace(*param, value);
                }
            }
            self.zone.count_identity(capture.identity, false, false);
            // If the ring is full, that was counted.
            let _ = worker::push(&capture);
        }
    }
}
