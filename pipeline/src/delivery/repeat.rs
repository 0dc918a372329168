//! Merges what an attack repeats: failed logins of one account or address, and new users without a name from
//! one address, are one event a minute with their number.
//!
//! The first ones of each minute go one by one. The counters lie in the shared zone, so that they survive a
//! reload and the death of a collector. Their number is bounded: if more accounts and addresses are active than
//! fit, some of them get more single events.
//!
//! The minute is that of capture: a record that waited long counts in its own minute.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use crate::capture::identity::Identity;
use crate::event::{EventType, Param};
use crate::hash::{stable_hash, stable_hash_words};
use crate::record::{Extra, Record};
use crate::shm::repeat_counter::Counter;
use crate::text::parse_ip;

/// The user of events that stand for failed logins of many unknown accounts.
pub const UNKNOWN_MANY: &[u8] = b"unknown-many";
/// The user of events that stand for many sessions whose users are unknown.
pub const SESSION_MANY: &[u8] = b"session-many";
const SESSION: &[u8] = b"session-";

const MINUTE_NS: u64 = 60_000_000_000;
/// Records of a minute may be read so long after it, and still belong to its event.
const READ_WITHIN_NS: u64 = 2_000_000_000;
/// How many places a key may have.
const WAYS: usize = 4;
/// For how many minutes a user without a name stays known after its last event.
const KNOWN: u64 = 60;

/// What happens to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It is sent as it is.
    Single,
    /// It is merged into an event that stands for many.
    Merged {
        /// The same key for all of one account or address in one minute.
        key: u64,
        /// The stamp after which all records of the minute have been read.
        until_ns: u64,
        /// The user of the merged event, if it is not this event's user.
        user: Option<&'static [u8]>,
    },
}

/// A target's limit, with the counters of the zone.
#[derive(Clone, Copy, Debug)]
pub struct Repeats {
    /// How many a minute go one by one; `None`: all.
    limit: Option<u32>,
    /// The target's index in the zone: each target counts for itself.
    slot: usize,
    counters: &'static [Counter],
}

impl Repeats {
    /// The limit of the target with this place.
    pub fn new(limit: Option<u32>, slot: usize, counters: &'static [Counter]) -> Self {
        Self { limit, slot, counters }
    }

    /// Decides about a record, and counts it.
    pub fn decide(&self, record: &Record<'_>) -> Repeat {
        let Some(limit) = self.limit.filter(|_| !self.counters.is_empty()) else {
            return Repeat::Single;
        };
        let minute = record.stamp() / MINUTE_NS;
        let address = || {
            let ip = record.get(Param::IpAddress).and_then(parse_ip).or(record.ip());
            network(ip)
        };
        let merged = |key, user| {
            let key = stable_hash_words(&[key, minute]);
            let until_ns = (minute + 1) * MINUTE_NS + READ_WITHIN_NS;
            Repeat::Merged { key, until_ns, user }
        };
        let user = record.get(Param::UserName).unwrap_or_default();
        if record.kind() == EventType::AccountLoginFail {
            let account = record.extra(Extra::Account).unwrap_or(user);
            let of_account = (!account.is_empty()).then(|| self.key(b"account", account));
            if let Some(key) = of_account.filter(|key| self.count(*key, minute) >= limit) {
                return merged(key, None);
            }
            let of_address = self.key(b"address", &address());
            if self.count(of_address, minute) >= limit {
                return merged(of_address, Some(UNKNOWN_MANY));
            }
            of_account.into_iter().chain([of_address]).for_each(|key| self.add(key, minute));
        } else if record.identity() == Identity::None && user.starts_with(SESSION) {
            let known = self.key(b"user", user);
            let of_address = self.key(b"new", &address());
            if !self.is_known(known, minute) {
                if self.count(of_address, minute) >= limit {
                    return merged(of_address, Some(SESSION_MANY));
                }
                self.add(of_address, minute);
            }
            self.add(known, minute);
        }
        Repeat::Single
    }

    /// Counts an event that is merged under that key. Returns the number so far, including those that a
    /// collector counted before it died.
    pub fn count_merged(&self, key: u64, record: &Record<'_>) -> u32 {
        let (key, minute) = (self.key(b"merged", &key.to_le_bytes()), record.stamp() / MINUTE_NS);
        self.add(key, minute);
        self.count(key, minute).max(1)
    }

    /// The merged event is on its way.
    pub fn clear_merged(&self, key: u64) {
        if let Some(counter) = self.find(self.key(b"merged", &key.to_le_bytes())) {
            counter.set(0, 0);
        }
    }

    fn key(&self, kind: &[u8], name: &[u8]) -> u64 {
        stable_hash([kind, &self.slot.to_le_bytes(), name]).max(1)
    }

    fn ways(&self, key: u64) -> impl Iterator<Item = &'static Counter> {
        let counters = self.counters;
        let first = (key >> 16) as usize % counters.len();
        (0..WAYS).map(move |way| &counters[(first + way) % counters.len()])
    }

    fn find(&self, key: u64) -> Option<&'static Counter> {
        self.ways(key).find(|counter| counter.key.load(Relaxed) == key)
    }

    fn count(&self, key: u64, minute: u64) -> u32 {
        let now = self.find(key).filter(|counter| counter.minute() == minute);
        now.map_or(0, |counter| counter.count() as u32)
    }

    fn is_known(&self, key: u64, minute: u64) -> bool {
        self.find(key).is_some_and(|counter| counter.minute() + KNOWN >= minute)
    }

    fn add(&self, key: u64, minute: u64) {
        let counter = self.find(key).or_else(|| {
            // Replaces the counter with the oldest minute and the smallest count.
            let place = self.ways(key).min_by_key(|counter| (counter.minute(), counter.count()))?;
            place.set(0, 0);
            place.key.store(key, Relaxed);
            Some(place)
        });
        if let Some(counter) = counter {
            let count = if counter.minute() == minute { counter.count() } else { 0 };
            counter.set(minute, count + 1);
        }
    }
}

/// The part of an address that one attacker controls: of IPv6 the /64.
fn network(ip: Option<IpAddr>) -> [u8; 16] {
    match ip {
        None => [0; 16],
        Some(IpAddr::V4(ip)) => ip.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(ip)) => (ip.to_bits() & !u128::from(u64::MAX)).to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::record::Capture;

    fn counters(count: usize) -> &'static [Counter] {
        let new = || Counter { key: AtomicU64::new(0), state: AtomicU64::new(0) };
        Vec::leak((0..count).map(|_| new()).collect())
    }

    struct Event<'a> {
        kind: EventType,
        user: &'a str,
        ip: &'a str,
        second: u64,
    }

    fn decide(repeats: &Repeats, event: &Event<'_>) -> Repeat {
        let mut capture = Capture::new(0);
        capture.kind = event.kind;
        capture.ip = Some(event.ip.parse().unwrap());
        capture.set(Param::UserName, event.user.as_bytes()).unwrap();
        let mut bytes = vec![0; capture.record_len()];
        capture.write(event.second * 1_000_000_000, &mut bytes);
        repeats.decide(&Record::parse(&bytes).unwrap())
    }

    fn failed<'a>(user: &'a str, ip: &'a str, second: u64) -> Event<'a> {
        Event { kind: EventType::AccountLoginFail, user, ip, second }
    }

    fn merged_key(repeat: Repeat) -> Option<u64> {
        match repeat {
            Repeat::Single => None,
            Repeat::Merged { key, .. } => Some(key),
        }
    }

    #[test]
    fn one_address_that_tries_many_accounts_is_one_event_a_minute() {
        let repeats = Repeats::new(Some(20), 3, counters(1024));
        let attack = |second| {
            let one = |n| decide(&repeats, &failed(&format!("unknown-{n}"), "192.0.2.1", second));
            (0..100).map(one).collect::<Vec<_>>()
        };
        let first = attack(30);
        assert!(first[..20].iter().all(|repeat| *repeat == Repeat::Single));
        let Repeat::Merged { key, until_ns, user } = first[20] else { panic!("{:?}", first[20]) };
        assert_eq!((until_ns, user), (MINUTE_NS + READ_WITHIN_NS, Some(UNKNOWN_MANY)));
        assert!(first[20..].iter().all(|repeat| merged_key(*repeat) == Some(key)));
        // The next minute is another event.
        let next = attack(61);
        assert_eq!(next.iter().filter(|repeat| **repeat == Repeat::Single).count(), 20);
        assert!(merged_key(next[99]).is_some_and(|next| next != key));
        // Others are not touched, and another target counts for itself.
        assert_eq!(decide(&repeats, &failed("unknown-1", "192.0.2.2", 61)), Repeat::Single);
        let other = Repeats::new(Some(20), 4, repeats.counters);
        assert_eq!(decide(&other, &failed("unknown-x", "192.0.2.1", 61)), Repeat::Single);
    }

    #[test]
    fn one_account_that_many_addresses_try_keeps_its_user() {
        let repeats = Repeats::new(Some(5), 0, counters(1024));
        let one = |n: u32| decide(&repeats, &failed("alice", &format!("192.0.2.{n}"), 1));
        let all: Vec<_> = (0..50).map(one).collect();
        assert!(all[..5].iter().all(|repeat| *repeat == Repeat::Single));
        assert!(all[5..].iter().all(|repeat| matches!(repeat, Repeat::Merged { user: None, .. })));
    }

    #[test]
    fn addresses_of_one_network_are_one() {
        let repeats = Repeats::new(Some(5), 0, counters(1024));
        let one =
            |n: u32| decide(&repeats, &failed(&n.to_string(), &format!("2001:db8::{n:x}"), 1));
        let merged = (0..50).map(one).filter(|repeat| *repeat != Repeat::Single).count();
        assert_eq!(merged, 45);
        assert_eq!(decide(&repeats, &failed("x", "2001:db8:0:1::1", 1)), Repeat::Single);
    }

    #[test]
    fn only_new_sessions_are_merged() {
        let repeats = Repeats::new(Some(5), 0, counters(1024));
        let view = |user: &str, second| {
            decide(&repeats, &Event { kind: EventType::PageView, user, ip: "192.0.2.1", second })
        };
        for n in 0..50 {
            let repeat = view(&format!("session-{n}"), 1);
            assert_eq!(repeat == Repeat::Single, n < 5, "{n}");
        }
        // What is known stays what it is, however much it does; so do named users.
        for second in 1..200 {
            assert_eq!(view("session-1", second), Repeat::Single);
            assert_eq!(view("alice", 1), Repeat::Single);
        }
        assert!(matches!(view("session-7", 1), Repeat::Merged { user: Some(SESSION_MANY), .. }));
    }

    #[test]
    fn off_is_off_and_what_is_no_failed_login_is_not_counted() {
        let off = Repeats::new(None, 0, counters(64));
        let on = Repeats::new(Some(1), 0, counters(64));
        for _ in 0..50 {
            assert_eq!(decide(&off, &failed("a", "192.0.2.1", 1)), Repeat::Single);
            let good = Event { kind: EventType::AccountLogin, ..failed("a", "192.0.2.1", 1) };
            assert_eq!(decide(&on, &good), Repeat::Single);
        }
    }

    #[test]
    fn any_number_of_accounts_leaves_an_address_its_limit() {
        // Far more accounts than counters: the address is counted all the same.
        let repeats = Repeats::new(Some(20), 0, counters(256));
        let mut single = 0;
        for n in 0..200_000 {
            let address = format!("192.0.2.{}", n % 20);
            let repeat = decide(&repeats, &failed(&format!("unknown-{n}"), &address, 1));
            single += u32::from(repeat == Repeat::Single);
        }
        assert!(single <= 2 * 20 * 20, "{single}");
    }

    #[test]
    fn the_number_survives_its_collector() {
        let counters = counters(1024);
        let count = |repeats: &Repeats, second: u64| {
            let mut capture = Capture::new(0);
            capture.kind = EventType::AccountLoginFail;
            let mut bytes = vec![0; capture.record_len()];
            capture.write(second * 1_000_000_000, &mut bytes);
            repeats.count_merged(77, &Record::parse(&bytes).unwrap())
        };
        let first = Repeats::new(Some(1), 0, counters);
        assert_eq!([1, 2, 3].map(|second| count(&first, second)), [1, 2, 3]);
        let next = Repeats::new(Some(1), 0, counters);
        assert_eq!(count(&next, 4), 4);
        next.clear_merged(77);
        assert_eq!((count(&next, 5), count(&next, 61)), (1, 1));
    }
}
