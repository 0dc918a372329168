//! What one connection sends next: the highest rank first, but before an event of a user the last ones of
//! the same user that wait before it.
//!
//! Tirreno's rules see a user's last 25 events. So many go before one of a higher rank, in the order of
//! capture; older ones follow in the order of their own rank.

use std::collections::VecDeque;

use crate::capture::rank::Rank;

/// Of an event's user so many before it go before it, where it goes before others: what Tirreno's rules
/// see.
pub const BEFORE: usize = 25;

/// See the module.
#[derive(Debug)]
pub struct PriorityQueue<T> {
    ranks: [VecDeque<Waiting<T>>; Rank::ALL.len()],
    /// Tells in what order events came.
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
    /// Adds an event. A user's come in the order of capture within a rank; of others that were captured
    /// before it, those that have come.
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

    /// The next event.
    pub fn pop(&mut self) -> Option<T> {
        self.ranks.iter_mut().find_map(VecDeque::pop_front).map(|waiting| waiting.item)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.ranks.iter().map(VecDeque::len).sum()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all that wait, in their order.
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
