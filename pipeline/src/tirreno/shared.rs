//! What the thread of a target and its connections share: the events on their way, and the target's state.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::capture::rank::Rank;
use crate::delivery::inbox::Inbox;
use crate::delivery::priority_queue::PriorityQueue;
use crate::delivery::spool::Spool;
use crate::event::EventType;
use crate::privacy::Privacy;
use crate::record::Record;
use crate::tirreno::form;
use crate::tirreno::http::{Outbound, Post};
use crate::tirreno::policy::{EventId, Policy};

/// How many events of each rank may be on their way to the connections.
pub(super) const WINDOW: [usize; Rank::ALL.len()] = [256, 256, 512, 1024];
/// The longest wait without a look at the state.
const WAKE: Duration = Duration::from_secs(1);

/// An event on its way to a connection.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its place in the order of capture, unique within a deliverer.
    pub id: EventId,
    /// A number that differs between users.
    pub user: u64,
    /// Its rank.
    pub rank: Rank,
    /// Its type, where that is known.
    pub kind: Option<EventType>,
    /// What it holds.
    pub content: Content,
}

/// What an event holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// A record, shared by the targets that get it.
    Record(Arc<[u8]>),
    /// An event of the spool.
    Stored {
        /// The trace id.
        trace: String,
        /// The form.
        body: String,
    },
}

impl Content {
    /// What is sent to a target with this `privacy`; of the spool, what was put into it. `stripped`: without
    /// what a firewall may dislike.
    pub fn post(&self, privacy: &Privacy, stripped: bool) -> Post<'_> {
        let Post { trace, body } = self.whole(privacy);
        let body = if stripped { form::stripped(&body).into() } else { body };
        Post { trace, body }
    }

    fn whole(&self, privacy: &Privacy) -> Post<'_> {
        match self {
            Self::Stored { trace, body } => Post { trace, body: body.as_str().into() },
            Self::Record(bytes) => match Record::parse(bytes) {
                Some(record) => {
                    let body = form::encode(&privacy.view(record));
                    Post { trace: record.trace(), body: body.into() }
                }
                None => Post { trace: "", body: "".into() },
            },
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Record(bytes) => bytes.len(),
            Self::Stored { trace, body } => trace.len() + body.len(),
        }
    }
}

impl Event {
    fn is_stored(&self) -> bool {
        matches!(self.id, EventId::Stored(_))
    }

    /// Whether it is in memory only.
    pub(super) fn is_in_memory(&self) -> bool {
        !self.is_stored()
    }
}

/// Makes a target's connections; tests put scripted ones in their place.
pub type Connect = dyn Fn() -> Box<dyn Outbound> + Send + Sync;

/// No further event comes.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

/// What a target's connections share.
pub struct Shared {
    pub(super) policy: Mutex<Policy>,
    pub(super) policy_changed: Condvar,
    pub(super) held: Mutex<Held>,
    /// The bytes of those from the spool.
    pub(super) stored_bytes: AtomicUsize,
    pub(super) closed: AtomicBool,
    /// The next deliverer sends what is in the spool.
    pub(super) leaving: AtomicBool,
    /// What is in memory only and not being sent is wanted back: the spool takes it.
    pub(super) recalling: AtomicBool,
    pub(super) timeout: Duration,
    pub(super) privacy: Privacy,
    pub(super) store: Option<Arc<Spool>>,
    pub(super) inbox: Arc<Inbox>,
    /// The events for each connection.
    pub(super) lanes: Mutex<Lanes>,
    pub(super) lanes_changed: Condvar,
}

/// What is known of an event that is on its way or kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldEvent {
    /// When it was captured, in milliseconds since the epoch.
    pub(super) time_ms: i64,
    /// The same by the monotonic clock, in nanoseconds, if it is in memory only.
    pub(super) stamp: Option<u64>,
    pub(super) rank: Rank,
}

/// The events that are on their way or kept.
#[derive(Default)]
pub(super) struct Held {
    pub(super) events: BTreeMap<EventId, HeldEvent>,
    /// How many there are of each rank, …
    pub(super) counts: [usize; Rank::ALL.len()],
    /// … and how few may be left until more are handed over. Handing them over one by one would cost more than
    /// sending them.
    low: [usize; Rank::ALL.len()],
    /// Whether so few are left of a rank, or none at all.
    pub(super) is_low: bool,
    /// Whether one has had its outcome since the target's thread looked, …
    progressed: bool,
    /// … and whether that thread looks again soon without being woken.
    looks_soon: bool,
}

impl Held {
    pub(super) fn insert(&mut self, id: EventId, event: HeldEvent) {
        if self.events.insert(id, event).is_none() {
            self.counts[event.rank.place()] += 1;
        }
    }

    /// Removes an event that has had its outcome; returns whether the target's thread is to be woken.
    fn remove(&mut self, id: EventId) -> bool {
        let is_news = !mem::replace(&mut self.progressed, true) && !self.looks_soon;
        let Some(HeldEvent { rank, .. }) = self.events.remove(&id) else { return is_news };
        let (count, low) = (&mut self.counts[rank.place()], self.low[rank.place()]);
        *count -= 1;
        let is_low = *count == low || self.events.is_empty();
        self.is_low |= is_low;
        is_news || is_low
    }

    /// The target's thread looks: whether events have had their outcomes since it did the last time. If so, it
    /// looks again soon.
    pub(super) fn look(&mut self) -> bool {
        self.looks_soon = mem::take(&mut self.progressed);
        self.looks_soon
    }

    /// As many as there was room for were handed over.
    pub(super) fn refilled(&mut self) {
        self.low = self.counts.map(|count| count / 2);
        self.is_low = false;
    }
}

/// The events for each connection; each user's events go over the same one.
#[derive(Default)]
pub(super) struct Lanes {
    pub(super) queues: Vec<PriorityQueue<Event>>,
    /// What connections have given back.
    returned: Vec<Event>,
    /// No event comes any more.
    closed: bool,
}

impl Lanes {
    /// The events for that user's connection, if any may still come.
    pub(super) fn of(&mut self, user: u64) -> Option<&mut PriorityQueue<Event>> {
        let lane = user % self.queues.len().max(1) as u64;
        if self.closed { None } else { self.queues.get_mut(lane as usize) }
    }

    /// Takes what connections have given back.
    pub(super) fn take_returned(&mut self) -> Vec<Event> {
        mem::take(&mut self.returned)
    }

    /// Takes what waits for connections, and is in memory only.
    pub(super) fn take_in_memory(&mut self) -> Vec<Event> {
        let queues = self.queues.iter_mut();
        queues.flat_map(|queue| queue.extract(Event::is_in_memory)).collect()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data in the mutexes is valid after each statement, even if a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The target's state.
    pub fn policy(&self) -> MutexGuard<'_, Policy> {
        lock(&self.policy)
    }

    /// Waits until the state changed, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let policy = self.policy();
        if !self.is_closed() {
            // A `wake` just before this is missed, but not for long.
            let _ = self.policy_changed.wait_timeout(policy, limit.min(WAKE));
        }
    }

    /// The state may have changed: whoever waits looks again.
    pub fn wake(&self) {
        self.policy_changed.notify_all();
    }

    /// Whether nothing is sent any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Whether no event comes any more, and what is there has to be settled.
    pub fn is_stopping(&self) -> bool {
        self.inbox.is_stopping()
    }

    /// Whether this event is not to be sent any more: it is in the spool, for the next deliverer.
    pub fn leaves(&self, event: &Event) -> bool {
        event.is_stored() && self.leaving.load(Relaxed)
    }

    /// Whether connections are to give back what is in memory only.
    pub fn is_recalling(&self) -> bool {
        self.recalling.load(Relaxed)
    }

    /// Gives events back to the target's thread.
    pub fn give_back(&self, events: Vec<Event>) {
        if !events.is_empty() {
            lock(&self.lanes).returned.extend(events);
            self.inbox.wake();
        }
    }

    /// Whether this event was deleted from the spool since it was read.
    pub fn is_gone(&self, event: &Event) -> bool {
        match (event.id, &self.store) {
            (EventId::Stored(id), Some(store)) => store.is_gone(id),
            _ => false,
        }
    }

    /// Whether so many events are held that others may soon find no room.
    pub fn is_crowded(&self) -> bool {
        match self.store {
            Some(_) => self.len() * 2 >= WINDOW.iter().sum(),
            None => self.inbox.is_crowded(),
        }
    }

    /// What the target is not to know.
    pub fn privacy(&self) -> &Privacy {
        &self.privacy
    }

    /// How long an attempt may take that starts now.
    pub fn limit(&self) -> Duration {
        let deadline = self.inbox.deadline();
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        left.map_or(self.timeout, |left| left.min(self.timeout))
    }

    /// When a held event was captured, in milliseconds since the epoch.
    pub fn captured_ms(&self, event: &Event) -> i64 {
        lock(&self.held).events.get(&event.id).map_or(0, |event| event.time_ms)
    }

    /// An event's fate is decided and counted.
    pub fn release(&self, event: &Event) {
        let wakes = lock(&self.held).remove(event.id);
        match &event.content {
            Content::Record(bytes) => self.inbox.returned(bytes.len()),
            Content::Stored { .. } => {
                self.stored_bytes.fetch_sub(event.content.size(), Relaxed);
                self.inbox.let_go();
            }
        }
        let calls = self.store.as_ref().is_some_and(|store| event.is_stored() && store.calls());
        if wakes || calls {
            self.inbox.wake();
        }
    }

    /// The next event for that connection; an error when none comes any more.
    pub fn next(&self, connection: usize) -> Result<Option<Event>, Closed> {
        let mut lanes = lock(&self.lanes);
        let event = lanes.queues.get_mut(connection).and_then(PriorityQueue::pop);
        if event.is_none() && lanes.closed { Err(Closed) } else { Ok(event) }
    }

    /// Whether there are events for that connection.
    pub fn has_next(&self, connection: usize) -> bool {
        lock(&self.lanes).queues.get(connection).is_some_and(|queue| !queue.is_empty())
    }

    /// Waits for an event for that connection, or until none comes any more, at most `limit`.
    pub fn wait_next(&self, connection: usize, limit: Duration) {
        let is_idle = |lanes: &mut Lanes| {
            !lanes.closed && lanes.queues.get(connection).is_none_or(PriorityQueue::is_empty)
        };
        let _ = self.lanes_changed.wait_timeout_while(lock(&self.lanes), limit, is_idle);
    }

    /// How many of the held events are in memory only, and the stamp of the one that was captured first.
    pub fn in_memory(&self) -> (usize, Option<u64>) {
        let held = lock(&self.held);
        let mut stamps =
            held.events.range(EventId::Memory(0)..).filter_map(|(_, event)| event.stamp);
        let Some(first) = stamps.next() else { return (0, None) };
        stamps.fold((1, Some(first)), |(count, oldest), stamp| (count + 1, oldest.min(Some(stamp))))
    }

    /// How many events are held.
    pub fn len(&self) -> usize {
        lock(&self.held).events.len()
    }

    /// Whether no event is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no answer any more.
    pub(super) fn close(&self) {
        self.policy().close();
        self.closed.store(true, Relaxed);
        // One that waits for an answer ends by itself when that, or its time-out, comes.
        lock(&self.lanes).closed = true;
        self.lanes_changed.notify_all();
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_events_are_handed_over_when_half_of_a_rank_is_gone() {
        let mut held = Held::default();
        for id in 1..=8 {
            let rank = if id <= 2 { Rank::One } else { Rank::Four };
            held.insert(EventId::Memory(id), HeldEvent { time_ms: 1, stamp: Some(id), rank });
        }
        assert_eq!(held.counts, [2, 0, 0, 6]);
        held.refilled();
        // The first one ends a long wait.
        assert!(held.remove(EventId::Memory(3)) && !held.is_low);
        assert!(held.look());
        assert!(!held.remove(EventId::Memory(4)) && !held.is_low);
        assert!(held.remove(EventId::Memory(5)) && held.is_low);
        held.refilled();
        assert!(held.remove(EventId::Memory(1)) && held.is_low, "there may be more of a high rank");
        held.refilled();
        // Nothing more was there: it is asked again less and less often.
        let wakes = [2, 6, 7, 8].map(|id| {
            let wakes = held.remove(EventId::Memory(id));
            if wakes {
                held.refilled();
            }
            wakes
        });
        assert_eq!(wakes, [true, false, true, true]);
        assert!(held.look() && !held.look());
        assert!(held.remove(EventId::Memory(9)), "it does not look again soon");
    }
}
