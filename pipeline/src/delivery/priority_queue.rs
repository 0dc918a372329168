//! The queue of one connection: the highest rank goes first, but the last events of a user go before a higher
//! event of the same user.
//!
//! Tirreno's rules look at a user's last 25 events. So many go before one of a higher rank, in the order of
//! capture; older ones follow in the order of their own rank.

use std::collections::VecDeque;

use crate::capture::rank::Rank;

/// How many earlier events of the same user go before an event that overtakes others: as many as Tirreno's
/// rules look at.
pub const BEFORE: usize = 25;

/// See the module.
#[derive(Debug)]
pub struct PriorityQueue<T> {
    ranks: [VecDeque<Waiting<T>>; Rank::ALL.len()],
    /// The number of the next event, in the order in which they come.
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    user: u64,
    number: u64,
    item: T,
}

impl<T> Default for PriorityQueue<T> {
    fn default() -> Self {
        Self { ranks: Default::default(), next: 0 }
    }
}

impl<T> PriorityQueue<T> {
    /// Adds an event. Within a rank, a user's events come in the order of capture. Of events of other ranks
    /// that were captured before, those are known that have come.
    pub fn push(&mut self, rank: Rank, user: u64, item: T) {
        let (own, lower) =
            self.ranks[rank.place()..].split_first_mut().expect("a rank is one of all");
        let is_users = |waiting: &Waiting<T>| waiting.user == user;
        let mut numbers: Vec<_> =
            lower.iter().flatten().filter(|w| is_users(w)).map(|waiting| waiting.number).collect();
        if !numbers.is_empty() {
            numbers.sort_unstable();
            let first = numbers[numbers.len().saturating_sub(BEFORE)];
            let mut before = Vec::new();
            for queue in lower {
                let all = std::mem::take(queue);
                for waiting in all {
                    match is_users(&waiting) && waiting.number >= first {
                        true => before.push(waiting),
                        false => queue.push_back(waiting),
                    }
                }
            }
            before.sort_by_key(|waiting| waiting.number);
            own.extend(before);
        }
        self.next += 1;
        own.push_back(Waiting { user, number: self.next, item });
    }

    /// Removes the next event.
    pub fn pop(&mut self) -> Option<T> {
        self.ranks.iter_mut().find_map(VecDeque::pop_front).map(|waiting| waiting.item)
    }

    /// Removes the events for which this holds, in their order.
    pub fn extract(&mut self, is_one: impl Fn(&T) -> bool) -> Vec<T> {
        let mut extracted = Vec::new();
        for queue in &mut self.ranks {
            let all = std::mem::take(queue).into_iter();
            let (ones, others): (VecDeque<_>, _) = all.partition(|waiting| is_one(&waiting.item));
            *queue = others;
            extracted.extend(ones.into_iter().map(|waiting| waiting.item));
        }
        extracted
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.ranks.iter().map(VecDeque::len).sum()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all events, in their order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.ranks.iter_mut().flat_map(|queue| queue.drain(..)).map(|waiting| waiting.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn popped(queue: &mut PriorityQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn higher_ranks_go_first() {
        let mut queue = PriorityQueue::default();
        for (user, rank) in [Rank::Four, Rank::Three, Rank::One, Rank::Two].into_iter().enumerate()
        {
            queue.push(rank, user as u64, rank as u32);
        }
        assert_eq!(queue.len(), 4);
        assert_eq!(popped(&mut queue), [1, 2, 3, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_last_ones_of_its_user_go_before_it() {
        let mut queue = PriorityQueue::default();
        (0..40).for_each(|n| queue.push(Rank::Four, u64::from(n % 2), n));
        queue.push(Rank::Three, 1, 40);
        queue.push(Rank::Four, 1, 41);
        queue.push(Rank::One, 1, 42);
        queue.push(Rank::Four, 1, 43);
        let user = |n: &u32| *n >= 40 || n % 2 == 1;
        let order = popped(&mut queue);
        let of_user: Vec<_> = order.iter().copied().filter(user).collect();
        assert!(of_user.is_sorted(), "{order:?}");
        let before = order.iter().position(|n| *n == 42).unwrap();
        assert!(order[..before].iter().all(user), "{order:?}");
        assert_eq!(before, 22);
    }

    #[test]
    fn what_is_extracted_leaves_the_order_of_the_others() {
        let mut queue = PriorityQueue::default();
        (0..6).for_each(|n| queue.push(Rank::Four, 1, n));
        queue.push(Rank::One, 2, 6);
        assert_eq!(queue.extract(|n| n % 2 == 0), [6, 0, 2, 4]);
        assert_eq!(popped(&mut queue), [1, 3, 5]);
    }

    #[test]
    fn older_ones_follow() {
        let mut queue = PriorityQueue::default();
        (0..100).for_each(|n| queue.push(Rank::Four, 1, n));
        queue.push(Rank::Four, 2, 1000);
        queue.push(Rank::One, 1, 100);
        let order = popped(&mut queue);
        let expected: Vec<_> = (75..=100).chain(0..75).chain([1000]).collect();
        assert_eq!(order, expected);
    }
}
