//! The order of events within one rank: users take turns, so that many events of one user do not delay the
//! events of others.
//!
//! An event gets its place, a number, when it comes: in the turn after its user's last one, but never in a turn
//! that is over (start-time fair queuing). A sender that follows these numbers lets users take turns, and keeps
//! the order of each user's events.

use std::collections::HashMap;

use crate::capture::rank::Rank;

/// How many events of one user go in a row, before others of the same rank.
pub const TURN: i64 = 8;
/// How many places a turn has, to number its events.
const PLACES: i64 = 1 << 24;
/// The most users whose turns are known. Further users queue behind all others.
const MAX_USERS: usize = 1 << 18;

/// The turns that were given; see the module.
#[derive(Debug, Default)]
pub struct Turns {
    ranks: [RankTurns; Rank::ALL.len()],
    users: HashMap<u64, UserTurns>,
    /// Whether there were more users than can be known: until the queue is empty, new users queue behind all
    /// others.
    overflowed: bool,
    /// The number of the next event within its turn.
    place: i64,
}

/// The places of one rank.
#[derive(Clone, Copy, Debug, Default)]
struct RankTurns {
    /// The last place that had its turn.
    served: i64,
    /// The last place that was given.
    given: i64,
}

#[derive(Clone, Copy, Debug, Default)]
struct UserTurns {
    /// For each rank, the number of events, counted from the first turn on.
    events: [i64; Rank::ALL.len()],
    last: Option<i64>,
}

impl Turns {
    /// The place of the next event of that user and rank, above 0; and the [`note`](Self::note) of the user's
    /// previous event.
    pub fn give(&mut self, rank: Rank, user: u64) -> (i64, Option<i64>) {
        let r = rank.place();
        self.place += 1;
        if self.place == PLACES {
            // From here on, all events come behind the places that were given.
            self.clear();
            self.place = 0;
        }
        let order = &mut self.ranks[r];
        let now = order.served / PLACES * TURN;
        if !self.users.contains_key(&user) && (self.overflowed || self.users.len() >= MAX_USERS) {
            self.overflowed = true;
            order.given = (order.given / PLACES + 1) * PLACES + self.place;
            return (order.given, None);
        }
        let user = self.users.entry(user).or_default();
        // Turns are counted from one, so that no place is 0.
        user.events[r] = user.events[r].max(now).max(TURN - 1) + 1;
        if user.events[r] / TURN * PLACES + self.place <= order.served {
            // The sender does not go back to a place that it has passed.
            user.events[r] = (user.events[r] / TURN + 1) * TURN;
        }
        let place = user.events[r] / TURN * PLACES + self.place;
        order.given = order.given.max(place);
        (place, user.last)
    }

    /// Notes the user's last event by a number of the caller's.
    pub fn note(&mut self, user: u64, event: i64) {
        if let Some(user) = self.users.get_mut(&user) {
            user.last = Some(event);
        }
    }

    /// An event had its turn.
    pub fn serve(&mut self, rank: Rank, place: i64) {
        let order = &mut self.ranks[rank.place()];
        order.served = order.served.max(place);
    }

    /// The last place of that rank that had its turn.
    pub fn served(&self, rank: Rank) -> i64 {
        self.ranks[rank.place()].served
    }

    /// Whether the next event of that user and rank would come at or behind `last`, the last place of the rank:
    /// then no user has more events waiting.
    pub fn is_last(&self, rank: Rank, user: u64, last: i64) -> bool {
        let events = self.users.get(&user).map_or(0, |user| user.events[rank.place()]);
        (events + 1) / TURN >= last / PLACES
    }

    /// The queue is empty: users start anew, behind the places so far.
    pub fn clear(&mut self) {
        self.users.clear();
        self.overflowed = false;
        for rank in &mut self.ranks {
            rank.served = rank.served.max(rank.given);
        }
    }

    /// Learns of waiting events: the user's first and last place in a rank, and the user's last event.
    pub fn learn(&mut self, rank: Rank, user: u64, (first, last): (i64, i64), event: i64) {
        let order = &mut self.ranks[rank.place()];
        order.served = if order.given == 0 { first - 1 } else { order.served.min(first - 1) };
        order.given = order.given.max(last);
        self.place = self.place.max(last % PLACES);
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&user) {
            self.overflowed = true;
            return;
        }
        let user = self.users.entry(user).or_default();
        // The last turn counts as used up.
        user.events[rank.place()] = last / PLACES * TURN + TURN - 1;
        user.last = user.last.max(Some(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The users of events, in the order of their places.
    fn in_order(mut events: Vec<(i64, u64)>) -> Vec<u64> {
        events.sort_unstable();
        events.into_iter().map(|(_, user)| user).collect()
    }

    #[test]
    fn a_few_are_not_held_up_by_many() {
        let mut turns = Turns::default();
        let users = (0..1000).map(|_| 1).chain([2, 3]);
        let order = in_order(users.map(|user| (turns.give(Rank::Four, user).0, user)).collect());
        let few = order.iter().position(|user| *user == 3).unwrap();
        assert!(few <= TURN as usize + 1, "{few}");
    }

    #[test]
    fn a_users_places_rise_also_where_there_are_too_many_users() {
        let mut turns = Turns::default();
        let mut last = HashMap::new();
        for round in 0..3 {
            for user in 0..MAX_USERS as u64 + 10 {
                let place = turns.give(Rank::Three, user % (MAX_USERS as u64 + 5)).0;
                let before = last.insert(user % (MAX_USERS as u64 + 5), place);
                assert!(before.is_none_or(|before| before < place), "{user} in round {round}");
            }
        }
        assert!(turns.overflowed && turns.users.len() == MAX_USERS);
        turns.clear();
        assert!(turns.give(Rank::Three, 1).0 > turns.served(Rank::Three));
    }

    #[test]
    fn no_place_is_given_that_is_over() {
        // What another sender left; it has come far in its turn.
        let mut turns = Turns::default();
        let left = 3 * PLACES + 5000;
        turns.learn(Rank::Four, 1, (left, left), 7);
        turns.serve(Rank::Four, left);
        for user in [2, 1, 3] {
            let place = turns.give(Rank::Four, user).0;
            assert!(place > left, "{user}: {place}");
        }
        // The numbers of places begin anew.
        turns.place = PLACES - 2;
        let mut last = 0;
        for user in [2, 2, 2, 2] {
            let place = turns.give(Rank::Four, user).0;
            assert!(place > last, "{place} after {last}");
            turns.serve(Rank::Four, place);
            last = place;
        }
    }

    #[test]
    fn what_was_sent_costs_no_later_turn() {
        let mut turns = Turns::default();
        for _ in 0..1000 {
            let (place, _) = turns.give(Rank::Four, 1);
            turns.serve(Rank::Four, place);
        }
        let mut events = Vec::new();
        for _ in 0..40 {
            events.extend([1, 2].map(|user| (turns.give(Rank::Four, user).0, user)));
        }
        let ones = in_order(events)[..40].iter().filter(|user| **user == 1).count();
        assert!((16..=24).contains(&ones), "{ones}");
    }
}
