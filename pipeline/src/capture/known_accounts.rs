//! The users of accounts' names: learned from successful logins, used for failed ones.
//!
//! The table lies in the shared zone. It contains no name, only a keyed hash of the name, and the user's id. It
//! takes no lock: an entry that was torn by two writers, or by the death of one, does not match its checksum,
//! and counts as empty until the next login.

use std::sync::atomic::{AtomicU64, Ordering::*};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::hash::stable_hash_words;

/// The longest user id that is learned, in bytes.
pub const MAX_ID: usize = 64;

/// How many places an account may have in the table.
const WAYS: usize = 8;
/// Words of an entry: two of the key, the time and the length, the id, the checksum.
const WORDS: usize = 4 + MAX_ID / 8;

/// The bit of an entry's third word that marks an account in dispute: its last two logins were of different
/// users.
const DOUBTFUL: u64 = 0x80;
const _: () = assert!(MAX_ID < DOUBTFUL as usize);

/// The keyed hash of an account's name. Case and white space around the name do not count, because people do
/// not mind them either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountKey {
    /// The value of [`Extra::Account`](crate::record::Extra::Account).
    pub tag: [u8; 8],
    place: [u64; 2],
    alias: [u8; 8],
}

impl AccountKey {
    /// The name that stands for an unknown name.
    pub fn alias(&self) -> String {
        format!("unknown-{:016x}", u64::from_be_bytes(self.alias))
    }
}

/// A place in the table.
#[repr(C)]
pub struct Learned([AtomicU64; WORDS]);

impl Learned {
    fn checksum(words: &[u64]) -> u64 {
        stable_hash_words(words)
    }

    /// The entry, unless it is empty or torn.
    fn read(&self) -> Option<[u64; WORDS]> {
        let words = self.0.each_ref().map(|word| word.load(Relaxed));
        let (checksum, rest) = words.split_last()?;
        (Self::checksum(rest) == *checksum).then_some(words)
    }

    fn write(&self, mut words: [u64; WORDS]) {
        if let Some((checksum, rest)) = words.split_last_mut() {
            *checksum = Self::checksum(rest);
        }
        self.0.iter().zip(words).for_each(|(place, word)| place.store(word, Relaxed));
    }
}

/// The table, and the key of its hashes.
pub struct KnownAccounts {
    secret: Zeroizing<[u8; 32]>,
    changes: &'static AtomicU64,
    table: &'static [Learned],
}

/// An entry, for the state file.
#[derive(Clone, Copy)]
pub(crate) struct Known([u64; WORDS]);

impl Known {
    /// From the values that [`KnownAccounts::all`] gave.
    pub(crate) fn new(place: [u64; 2], id: &[u8], doubtful: bool, time_ms: i64) -> Option<Self> {
        let mut words = [0; WORDS];
        words[..2].copy_from_slice(&place);
        words[2] = (time_ms as u64) << 8 | id.len() as u64 | if doubtful { DOUBTFUL } else { 0 };
        put(&mut words[3..], id);
        (!id.is_empty() && id.len() <= MAX_ID).then_some(Self(words))
    }

    /// The part of the name's hash that selects the entry.
    pub(crate) fn place(&self) -> [u64; 2] {
        [self.0[0], self.0[1]]
    }

    pub(crate) fn id(&self) -> Vec<u8> {
        id_of(&self.0)
    }

    /// Whether the account is in dispute: its last two logins were of different users.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.0[2] & DOUBTFUL != 0
    }

    /// When its last login was, in milliseconds since the epoch.
    pub(crate) fn time_ms(&self) -> i64 {
        (self.0[2] >> 8) as i64
    }
}

impl KnownAccounts {
    /// `table` is shared by all processes that have the same `secret`; `changes` counts changes.
    pub(crate) fn new(
        secret: [u8; 32],
        changes: &'static AtomicU64,
        table: &'static [Learned],
    ) -> Self {
        Self { secret: secret.into(), changes, table }
    }

    /// The number of the last change, which rises with each.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Acquire)
    }

    /// All entries.
    pub(crate) fn all(&self) -> impl Iterator<Item = Known> {
        self.table.iter().filter_map(Learned::read).filter(|words| words[2] != 0).map(Known)
    }

    /// Restores what another process, or this one before a restart, knew. A newer entry stays.
    pub(crate) fn restore(&self, known: &Known) {
        let place = known.place();
        if self.entry(&place).is_some_and(|words| words[2] >> 8 >= known.0[2] >> 8) {
            return;
        }
        self.put(&place, known.0);
    }

    /// The key of an account's name in a realm.
    pub fn key(&self, realm: &[u8], name: &str) -> AccountKey {
        // A key of any length is good.
        let mac = Hmac::<Sha256>::new_from_slice(&*self.secret);
        let digest = mac.map(|mac| {
            let name = Zeroizing::new(name.trim().to_lowercase());
            mac.chain_update(realm).chain_update(b"\0").chain_update(&*name).finalize().into_bytes()
        });
        let digest: [u8; 32] = digest.map_or([0; 32], Into::into);
        let [tag, a, b, alias] = [0, 1, 2, 3].map(|i| digest.as_chunks::<8>().0[i]);
        AccountKey { tag, place: [a, b].map(u64::from_ne_bytes), alias }
    }

    /// Learns from a successful login that the account is `id`'s. If it was another user's before, it is in dispute
    /// until the next login confirms it. An id over [`MAX_ID`] is not learned.
    pub fn learn(&self, key: &AccountKey, id: &[u8], now_ms: i64) {
        if id.is_empty() || id.len() > MAX_ID || self.table.is_empty() {
            return;
        }
        let known = self.entry(&key.place);
        let contradicts = known.is_some_and(|words| id_of(&words) != id);
        if let Some(known) = Known::new(key.place, id, contradicts, now_ms) {
            self.put(&key.place, known.0);
        }
    }

    fn put(&self, own: &[u64; 2], words: [u64; WORDS]) {
        // Its own entry, or an empty one, or that of the oldest login.
        let worth = |place: &&Learned| match place.read() {
            Some(known) if known[..2] == *own => 0,
            Some(known) => known[2].max(2),
            None => 1,
        };
        if let Some(place) = self.ways(own).min_by_key(worth) {
            place.write(words);
            self.changes.fetch_add(1, Release);
        }
    }

    /// The account's user, if that is known.
    pub fn find(&self, key: &AccountKey) -> Option<Vec<u8>> {
        self.entry(&key.place).filter(|words| words[2] & DOUBTFUL == 0).map(|words| id_of(&words))
    }

    /// Whether there is an entry for the account, even one in dispute.
    pub(crate) fn has(&self, key: &AccountKey) -> bool {
        self.entry(&key.place).is_some()
    }

    fn entry(&self, place: &[u64; 2]) -> Option<[u64; WORDS]> {
        self.ways(place).filter_map(Learned::read).find(|words| words[..2] == *place)
    }

    fn ways(&self, place: &[u64; 2]) -> impl Iterator<Item = &'static Learned> {
        let (table, first) = (self.table, place[0] as usize);
        (0..WAYS.min(table.len())).map(move |i| &table[first.wrapping_add(i) % table.len()])
    }
}

fn put(words: &mut [u64], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
}

/// The id in an entry.
fn id_of(words: &[u64; WORDS]) -> Vec<u8> {
    let id = words[3..WORDS - 1].iter().flat_map(|word| word.to_ne_bytes());
    id.take((words[2] & (DOUBTFUL - 1)) as usize).collect()
}

impl std::fmt::Debug for KnownAccounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KnownAccounts").field("table", &self.table.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::zone::{Zone, anonymous};

    /// Of a new zone.
    fn known(size: usize) -> KnownAccounts {
        let zone = anonymous(size).unwrap();
        zone.known_accounts(&zone.keys())
    }

    #[test]
    fn what_is_learned_is_found_by_all() {
        let zone = anonymous(1 << 20).unwrap();
        let keys = zone.keys();
        let (one, other) = (zone.known_accounts(&keys), zone.known_accounts(&keys));
        let key = one.key(b"", "Ann@Example.com");
        assert_eq!(other.find(&key), None);
        one.learn(&key, b"4yqk5pwc", 1);
        assert_eq!(other.find(&other.key(b"", " ann@example.COM ")), Some(b"4yqk5pwc".to_vec()));
        assert_eq!(other.find(&other.key(b"", "bob")), None);
        // Somebody else's: it may be a mistake, until it is so again.
        one.learn(&key, &[b'x'; MAX_ID], 2);
        assert_eq!(other.find(&key), None);
        one.learn(&key, &[b'x'; MAX_ID], 2);
        assert_eq!(other.find(&key), Some(vec![b'x'; MAX_ID]));
        one.learn(&key, &[b'y'; MAX_ID + 1], 3);
        assert_eq!(other.find(&key), Some(vec![b'x'; MAX_ID]));
    }

    #[test]
    fn another_zone_has_another_key() {
        let [a, b] = [(); 2].map(|()| known(1 << 20).key(b"", "ann").alias());
        assert_ne!(a, b);
        assert_eq!(a.len(), "unknown-".len() + 16);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let accounts = known(Zone::min_size(1));
        let keys: Vec<_> = (0..10_000).map(|i| accounts.key(b"", &format!("user{i}"))).collect();
        for (i, key) in keys.iter().enumerate() {
            accounts.learn(key, format!("id{i}").as_bytes(), i as i64);
            assert_eq!(accounts.find(key), Some(format!("id{i}").into_bytes()));
        }
        let known = keys.iter().filter(|key| accounts.find(key).is_some()).count();
        assert!(known <= accounts.table.len() && known > accounts.table.len() / 2, "{known}");
    }

    #[test]
    fn a_torn_entry_is_none() {
        let accounts = known(1 << 20);
        let key = accounts.key(b"", "ann");
        accounts.learn(&key, b"id", 1);
        let entry = accounts.ways(&key.place).find(|entry| entry.read().is_some()).unwrap();
        entry.0[3].fetch_add(1, Relaxed);
        assert_eq!(accounts.find(&key), None);
        accounts.learn(&key, b"id", 2);
        assert_eq!(accounts.find(&key), Some(b"id".to_vec()));
    }
}
