//! The bindings of sessions to users: a table that all workers share and read without a lock.
//!
//! ```text
//! Head      the number of the last change
//! Bucket 0  16 slots: 4 bytes each of the token's hash, of the user's, of the last use, a writer's mark
//! Bucket 1  …
//! Entry 0   what the slot holds, with a checksum
//! Entry 1   …
//! ```
//! A token may lie in one of two buckets, which its hash selects; in a table that is up to four fifths full, no
//! entry has to be evicted. Any process may be killed between two instructions: a torn entry does not match its
//! checksum, and counts as empty.
//!
//! In a fuller table a new session evicts an entry: first a binding that no later request has used, then the
//! oldest binding of the user with the most, then the least recently used one. A user has at most [`PER_USER`],
//! so that nobody evicts others' sessions by signing in again and again.

use std::cmp::Reverse;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::time::Duration;

use crate::capture::identity::Identity;
use crate::capture::session::SessionDigest;
use crate::clock::monotonic_ns;
use crate::identity::keys::{Keys, TokenKey};

/// The longest user id to bind, in bytes: Tirreno's limit of `userName`.
pub const MAX_USER: usize = 100;
/// The most sessions of one user.
pub const PER_USER: usize = 64;
/// Slots of a bucket: as many as fit into a cache line.
const SLOTS: usize = 16;
/// Words of a user's id.
const USER_WORDS: usize = MAX_USER.div_ceil(8);
/// Words of an entry: two of the key, the stamp, time and kind and length, the user's hash, the digest, the
/// user, the checksum.
const WORDS: usize = 9 + USER_WORDS + 1;
const USER_AT: usize = 9;
/// The flag of an entry's fourth word: the binding has ended.
const ENDED: u64 = 1 << 12;
/// Another flag there: the token was another user's before.
const REPLACED: u64 = 1 << 13;
/// The position of the time in that word, in milliseconds since the epoch.
const TIME_AT: u32 = 16;
/// How long a writer may take, in seconds: the mark of a killed writer is ignored after that.
const WRITING: u32 = 2;
/// After how many seconds a use is noted again: each note invalidates the other processors' copies.
const USE_STEP: u32 = 16;
/// The time from which times of use are counted, in seconds, so that they fit into 31 bits: September 2020.
const EPOCH: i64 = 1_600_000_000;

/// The most `tirreno_identity` blocks.
pub const MAX_LOOKUPS: usize = 8;
/// The number of places for questions; tokens of the same place are asked about one after the other.
const QUESTIONS: usize = 256;
/// How much of the rate may be used at once, as time.
const BURST_NS: u64 = 1_000_000_000;

/// The part of the table that exists once.
#[repr(C, align(64))]
struct Head {
    stamp: AtomicU64,
    /// When the next question of each `tirreno_identity` may be asked, in nanoseconds of the monotonic clock.
    turns: [AtomicU64; MAX_LOOKUPS],
    /// Tokens that some worker is asking about: a hash, and the deadline in milliseconds of the monotonic
    /// clock.
    questions: [(AtomicU64, AtomicU64); QUESTIONS],
}

#[repr(C, align(64))]
struct Bucket {
    /// 0: empty.
    tags: [AtomicU32; SLOTS],
    users: [AtomicU32; SLOTS],
    /// The time of the last use; the lowest bit tells whether a later request used the entry.
    uses: [AtomicU32; SLOTS],
    /// When a writer began, in seconds of the monotonic clock; 0: there is none.
    writers: [AtomicU32; SLOTS],
}

#[repr(C)]
struct Entry([AtomicU64; WORDS]);

/// The table. Copies refer to the same memory.
#[derive(Clone, Copy)]
pub struct Bindings {
    head: &'static Head,
    buckets: &'static [Bucket],
    entries: &'static [Entry],
}

/// A binding, copied out of the table.
#[derive(Clone, Copy)]
pub struct Bound {
    words: [u64; WORDS],
    slot: usize,
}

/// How many of an entry's words say something, where the fourth is this one: those behind the user's id are
/// zero.
fn used_words(kind: u64) -> usize {
    USER_AT + ((kind & 0xff) as usize).min(MAX_USER).div_ceil(8)
}

impl Bound {
    /// The token's key.
    pub fn key(&self) -> TokenKey {
        TokenKey([self.words[0], self.words[1]])
    }

    /// The number of the change that made it.
    pub fn stamp(&self) -> u64 {
        self.words[2]
    }

    /// The user's id.
    pub fn user(&self) -> &[u8] {
        let len = (self.words[3] & 0xff) as usize;
        // SAFETY: any byte of a word is a byte.
        let (_, bytes, _) = unsafe { self.words[USER_AT..].align_to::<u8>() };
        &bytes[..len.min(MAX_USER)]
    }

    /// The evidence for the user of the session's requests: `Session` or `Lookup`.
    pub fn identity(&self) -> Identity {
        Identity::from_number((self.words[3] >> 8) as u8 & 0xf).unwrap_or_default()
    }

    /// Whether a request that began at that time, by the event loop's clock, belongs to the user's session. A
    /// request in the millisecond of the session's end does not. One that is older than the binding may be that of
    /// the token's earlier user; if the token was nobody's before, it is this user's.
    pub fn is_of(&self, start_ms: i64) -> bool {
        let is_older = start_ms < self.time_ms();
        match (self.has_ended(), self.words[3] & REPLACED != 0) {
            (false, false) => true,
            (false, true) => !is_older,
            (true, false) => is_older,
            // When it became this user's is not known any more.
            (true, true) => false,
        }
    }

    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        self.words[3] & ENDED != 0
    }

    /// When the binding was made or ended, in milliseconds since the epoch. Of two changes of one token, the
    /// later one has the larger number, even if the clock was set back.
    pub fn time_ms(&self) -> i64 {
        (self.words[3] >> TIME_AT) as i64
    }

    /// The keyed hash of the user and the realm.
    pub(crate) fn user_hash(&self) -> u64 {
        self.words[4]
    }

    /// The SHA-256 of the token, if it is known.
    pub fn digest(&self) -> Option<SessionDigest> {
        let words = &self.words[5..USER_AT];
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        words.iter().any(|word| *word != 0).then_some(digest)
    }
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = String::from_utf8_lossy(self.user());
        f.debug_struct("Bound").field("user", &user).field("ended", &self.has_ended()).finish()
    }
}

/// A token to bind to a user.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The token.
    pub key: TokenKey,
    /// The keyed hash of the user and the realm.
    pub(crate) user_hash: u64,
    /// The user.
    pub user: &'a [u8],
    /// `Session`, or `Lookup` if the application was asked.
    pub identity: Identity,
    /// The SHA-256 of the token, if it was needed before.
    pub digest: Option<SessionDigest>,
}

impl<'a> Binding<'a> {
    /// The binding of a token to a user.
    pub fn new(keys: &Keys, realm: &[u8], key: TokenKey, user: &'a [u8]) -> Self {
        let user_hash = keys.user(realm, user);
        Self { key, user_hash, user, identity: Identity::Session, digest: None }
    }
}

impl Bindings {
    /// How many buckets fit into so many bytes, at least four.
    pub(crate) fn buckets_in(bytes: usize) -> usize {
        (bytes.saturating_sub(size_of::<Head>()) / Self::bucket_size()).max(4)
    }

    /// The bytes of so many buckets with their entries.
    pub(crate) fn size(buckets: usize) -> usize {
        size_of::<Head>() + buckets * Self::bucket_size()
    }

    const fn bucket_size() -> usize {
        size_of::<Bucket>() + SLOTS * size_of::<Entry>()
    }

    /// The table of so many buckets at `start`.
    ///
    /// # Safety
    /// There are [`size`](Self::size) bytes, aligned to 64, which only tables of this size use, and which
    /// were zero at first and stay mapped.
    pub(crate) unsafe fn at(start: *const u8, buckets: usize) -> Self {
        // SAFETY: the caller's promise; all of it is atomic.
        unsafe {
            let first = start.add(size_of::<Head>()).cast::<Bucket>();
            Self {
                head: &*start.cast(),
                buckets: std::slice::from_raw_parts(first, buckets),
                entries: std::slice::from_raw_parts(first.add(buckets).cast(), buckets * SLOTS),
            }
        }
    }

    /// How many sessions fit.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// The number of the last change, which rises with each.
    pub fn changes(&self) -> u64 {
        self.head.stamp.load(Acquire)
    }

    /// The binding of a request's token, whether it holds or has ended. Counts as a use.
    pub fn find(&self, keys: &Keys, key: TokenKey, now_ms: i64) -> Option<Bound> {
        let found = self.newest(keys, key);
        if let Some(bound) = &found {
            let (bucket, i) = self.slot(bound.slot);
            let (used, now) = (bucket.uses[i].load(Relaxed), use_time(now_ms) | 1);
            if used & 1 == 0 || now.wrapping_sub(used) >= USE_STEP << 1 {
                bucket.uses[i].store(now, Relaxed);
            }
        }
        found
    }

    /// Binds a token, even if it is bound to another user. Returns whether that changed anything.
    pub fn bind(&self, keys: &Keys, binding: &Binding<'_>, now_ms: i64) -> bool {
        if binding.user.is_empty() || binding.user.len() > MAX_USER {
            return false;
        }
        let known = self.newest(keys, binding.key);
        if let Some(known) = &known
            && !known.has_ended()
            && known.user() == binding.user
            && known.user_hash() == binding.user_hash
            && known.identity() >= binding.identity
        {
            return false;
        }
        self.put_binding(keys, binding, known.as_ref(), now_ms);
        true
    }

    fn put_binding(&self, keys: &Keys, binding: &Binding<'_>, known: Option<&Bound>, now_ms: i64) {
        let is_others = |known: &Bound| known.user_hash() != binding.user_hash;
        if known.is_none_or(|known| is_others(known) || known.has_ended()) {
            self.make_room_for_user(keys, binding.user_hash);
        }
        let replaces = known.map_or(0, |known| match is_others(known) {
            true => REPLACED,
            false => known.words[3] & REPLACED,
        });
        let kind = replaces | (binding.identity as u64) << 8 | binding.user.len() as u64;
        let mut words = self.new_entry(binding.key, kind, known, now_ms);
        words[4] = binding.user_hash;
        put(&mut words[5..USER_AT], binding.digest.as_ref().map_or(&[], |digest| digest));
        put(&mut words[USER_AT..], binding.user);
        self.put_entry(keys, &mut words, known.map(|known| known.slot), use_time(now_ms));
    }

    /// Restores what another process, or this one before a restart, knew about a token at that time; without a
    /// binding: that it has ended. A newer entry stays. Returns whether that changed anything.
    pub(crate) fn restore(
        &self,
        keys: &Keys,
        key: TokenKey,
        binding: Option<&Binding<'_>>,
        time_ms: i64,
    ) -> bool {
        let known = self.newest(keys, key);
        if known.is_some_and(|known| known.time_ms() >= time_ms) {
            return false;
        }
        match binding {
            Some(binding) if binding.user.is_empty() || binding.user.len() > MAX_USER => {
                return false;
            }
            Some(binding) => self.put_binding(keys, binding, known.as_ref(), time_ms),
            None => match known {
                Some(known) => self.put_end(keys, &known, time_ms),
                None => return false,
            },
        }
        true
    }

    fn new_entry(
        &self,
        key: TokenKey,
        kind: u64,
        known: Option<&Bound>,
        now_ms: i64,
    ) -> [u64; WORDS] {
        let time_ms = known.map_or(now_ms, |known| now_ms.max(known.time_ms() + 1)).max(0);
        let mut words = [0; WORDS];
        words[..2].copy_from_slice(&key.0);
        words[2] = self.head.stamp.fetch_add(1, AcqRel) + 1;
        words[3] = (time_ms as u64) << TIME_AT | kind;
        words
    }

    /// Ends a binding and keeps its user: requests that began before still belong to that user.
    fn put_end(&self, keys: &Keys, known: &Bound, now_ms: i64) {
        let kind = (known.words[3] & ((1 << TIME_AT) - 1)) | ENDED;
        let mut words = self.new_entry(known.key(), kind, Some(known), now_ms);
        words[4..WORDS - 1].copy_from_slice(&known.words[4..WORDS - 1]);
        self.put_entry(keys, &mut words, Some(known.slot), use_time(now_ms));
    }

    /// Binds a token to the user whom the application named when it was asked, even if that is known already.
    /// What an answer to the session itself has told has precedence.
    pub(crate) fn bind_by_lookup(&self, keys: &Keys, binding: &Binding<'_>, now_ms: i64) {
        let known = self.newest(keys, binding.key);
        let is_proven =
            known.is_some_and(|known| !known.has_ended() && known.identity() > binding.identity);
        if !is_proven && !binding.user.is_empty() && binding.user.len() <= MAX_USER {
            self.put_binding(keys, binding, known.as_ref(), now_ms);
        }
    }

    /// Ends a binding that only a lookup has made: the application has refused the token when it was asked.
    pub(crate) fn end_by_lookup(&self, keys: &Keys, key: TokenKey, now_ms: i64) {
        let known = self.newest(keys, key).filter(|known| !known.has_ended());
        if let Some(known) = known.filter(|known| known.identity() == Identity::Lookup) {
            self.put_end(keys, &known, now_ms);
        }
    }

    /// Whether no other worker asks about the token; if so, the caller does from now on, for at most `limit`.
    pub(crate) fn begin_question(&self, key: TokenKey, limit: Duration) -> bool {
        let (asked, until) = &self.head.questions[key.0[1] as usize % QUESTIONS];
        let now = monotonic_ns() / 1_000_000;
        let before = until.load(Acquire);
        let after = now + limit.as_millis() as u64;
        if before > now || until.compare_exchange(before, after, AcqRel, Relaxed).is_err() {
            return false;
        }
        asked.store(key.0[0], Release);
        true
    }

    /// The caller has the answer to its question.
    pub(crate) fn end_question(&self, key: TokenKey) {
        let (asked, until) = &self.head.questions[key.0[1] as usize % QUESTIONS];
        if asked.load(Acquire) == key.0[0] {
            until.store(0, Release);
        }
    }

    /// Whether the rate allows one more question.
    pub(crate) fn take_turn(&self, which: usize, rate: f64) -> bool {
        let Some(next) = self.head.turns.get(which) else { return false };
        let (now, step) = (monotonic_ns(), (1e9 / rate.max(0.001)) as u64);
        let take = |next: u64| {
            let next = next.max(now);
            (next < now + BURST_NS).then_some(next + step)
        };
        next.fetch_update(AcqRel, Relaxed, take).is_ok()
    }

    /// Ends a token's binding. Returns whether there was one.
    pub fn end(&self, keys: &Keys, key: TokenKey, now_ms: i64) -> bool {
        let Some(known) = self.newest(keys, key).filter(|known| !known.has_ended()) else {
            return false;
        };
        self.put_end(keys, &known, now_ms);
        true
    }

    /// Notes the SHA-256 of a bound token.
    pub fn note_digest(&self, keys: &Keys, bound: &Bound, digest: &SessionDigest) {
        let mut words = bound.words;
        put(&mut words[5..USER_AT], digest);
        let Some(writing) = self.write_to(bound.slot) else { return };
        // Another worker may have bound it to another user since.
        if self.read(keys, bound.slot).is_some_and(|now| now.words == bound.words) {
            writing.write(keys, &mut words);
        }
    }

    /// All bindings, in the order of their changes, including ended ones whose slots are not reused yet.
    pub fn all(&self, keys: &Keys) -> Vec<Bound> {
        let taken = (0..self.entries.len()).filter(|slot| {
            let (bucket, i) = self.slot(*slot);
            bucket.tags[i].load(Acquire) != 0
        });
        let mut all: Vec<_> = taken.filter_map(|slot| self.read(keys, slot)).collect();
        all.sort_by_key(Bound::stamp);
        all
    }

    /// Forgets everything: with another key, no hash would be found.
    pub(crate) fn clear(&self) {
        for tag in self.buckets.iter().flat_map(|bucket| &bucket.tags) {
            tag.store(0, Release);
        }
    }

    fn slot(&self, slot: usize) -> (&'static Bucket, usize) {
        (&self.buckets[slot / SLOTS], slot % SLOTS)
    }

    /// The two buckets for a key, which always differ.
    fn homes(&self, key: TokenKey) -> [usize; 2] {
        // The upper half of a product distributes evenly, without a division.
        let of = |hash: u64, n: usize| (((hash & 0xffff_ffff) * n as u64) >> 32) as usize;
        let n = self.buckets.len();
        let first = of(key.0[0], n);
        let second = first + 1 + of(key.0[0] >> 32, n - 1);
        [first, if second < n { second } else { second - n }]
    }

    /// The slots of the two buckets for a key.
    fn slots(&self, key: TokenKey) -> impl Iterator<Item = usize> {
        self.homes(key).into_iter().flat_map(|b| b * SLOTS..(b + 1) * SLOTS)
    }

    /// The slot's entry, unless it is torn.
    fn read(&self, keys: &Keys, slot: usize) -> Option<Bound> {
        let mut bound = Bound { words: [0; WORDS], slot };
        self.read_to(keys, &mut bound).then_some(bound)
    }

    /// Copies the entry of the slot that `bound` names, whose words are zero. Returns whether it is whole.
    fn read_to(&self, keys: &Keys, bound: &mut Bound) -> bool {
        let entry = &self.entries[bound.slot].0;
        let end = used_words(entry[3].load(Relaxed));
        let copy = |(word, place): (&mut u64, &AtomicU64)| {
            *word = place.load(Relaxed);
            *word
        };
        let (first, user) = bound.words.split_at_mut(USER_AT);
        let (first_places, places) = entry.split_at(USER_AT);
        // The compiler unrolls the loop over the first words, whose number it knows.
        let first = first.iter_mut().zip(first_places).map(copy);
        let user = user[..end - USER_AT].iter_mut().zip(places).map(copy);
        keys.check(first.chain(user)) == entry[WORDS - 1].load(Relaxed)
    }

    /// The newest entry of a key: two workers may have written one at the same time.
    fn newest(&self, keys: &Keys, key: TokenKey) -> Option<Bound> {
        let ([first, second], tag) = (self.homes(key), tag(key.0[1]));
        let mut newest = None;
        let mut search = |home: usize| {
            for (i, own) in self.buckets[home].tags.iter().enumerate() {
                if own.load(Acquire) == tag {
                    self.read_newer(keys, key, home * SLOTS + i, &mut newest);
                }
            }
        };
        search(first);
        search(second);
        newest
    }

    /// Replaces `newest` by the slot's entry if that is the key's, and newer. It stays out of the loop over the
    /// tags, almost all of which differ, so that the compiler can unroll that.
    #[cold]
    fn read_newer(&self, keys: &Keys, key: TokenKey, slot: usize, newest: &mut Option<Bound>) {
        match newest {
            None => {
                // In its place, because copying it costs as much as reading it.
                let bound = newest.insert(Bound { words: [0; WORDS], slot });
                if !self.read_to(keys, bound) || bound.key() != key {
                    *newest = None;
                }
            }
            Some(known) => {
                let other = self.read(keys, slot).filter(|bound| bound.key() == key);
                *known = other.filter(|bound| bound.stamp() >= known.stamp()).unwrap_or(*known);
            }
        }
    }

    /// Writes an entry into its old slot, or into the cheapest slot of its buckets.
    fn put_entry(&self, keys: &Keys, words: &mut [u64; WORDS], old: Option<usize>, used: u32) {
        let key = TokenKey([words[0], words[1]]);
        let writing = old
            .and_then(|slot| self.write_to(slot))
            .or_else(|| self.empty_slot(key))
            .or_else(|| self.cheapest_slot(keys, key));
        let Some(writing) = writing else { return };
        let (bucket, i) = self.slot(writing.slot);
        bucket.tags[i].store(0, Release);
        writing.write(keys, words);
        bucket.users[i].store(if words[3] & ENDED == 0 { tag(words[4]) } else { 0 }, Relaxed);
        bucket.uses[i].store(used, Relaxed);
        bucket.tags[i].store(tag(key.0[1]), Release);
        let written = writing.slot;
        drop(writing);
        for slot in self.slots(key).filter(|slot| *slot != written) {
            let (bucket, i) = self.slot(slot);
            let is_older = |bound: Bound| bound.key() == key && bound.stamp() < words[2];
            if bucket.tags[i].load(Acquire) == tag(key.0[1])
                && self.read(keys, slot).is_some_and(is_older)
            {
                self.empty(slot);
            }
        }
    }

    /// An empty slot, in the emptier one of the buckets.
    fn empty_slot(&self, key: TokenKey) -> Option<Writing> {
        let [first, second] = self.homes(key);
        let is_empty = |b: usize, i: usize| self.buckets[b].tags[i].load(Acquire) == 0;
        let room = |b: usize| (0..SLOTS).filter(|i| is_empty(b, *i)).count();
        let homes = if room(second) > room(first) { [second, first] } else { [first, second] };
        let mut empty = homes
            .into_iter()
            .flat_map(|b| (0..SLOTS).filter(move |i| is_empty(b, *i)).map(move |i| b * SLOTS + i));
        // Another worker may just have taken it.
        empty.find_map(|slot| self.write_to(slot).filter(|_| is_empty(slot / SLOTS, slot % SLOTS)))
    }

    fn cheapest_slot(&self, keys: &Keys, key: TokenKey) -> Option<Writing> {
        let mut costs: Vec<_> = self.slots(key).map(|slot| (self.cost(keys, slot), slot)).collect();
        if costs.iter().all(|(cost, _)| cost.class == Cost::USED) {
            self.add_counts(&mut costs);
        }
        costs.sort();
        costs.into_iter().find_map(|(_, slot)| self.write_to(slot))
    }

    fn cost(&self, keys: &Keys, slot: usize) -> Cost {
        let (bucket, i) = self.slot(slot);
        let uses = bucket.uses[i].load(Relaxed);
        match self.read(keys, slot) {
            None => Cost { class: Cost::TORN, count: Reverse(0), age: 0 },
            Some(bound) if bound.has_ended() => {
                Cost { class: Cost::ENDED, count: Reverse(0), age: bound.stamp() }
            }
            Some(bound) if uses & 1 == 0 => {
                Cost { class: Cost::UNUSED, count: Reverse(0), age: bound.stamp() }
            }
            Some(_) => Cost { class: Cost::USED, count: Reverse(0), age: uses.into() },
        }
    }

    /// Adds to the costs of these slots how many bindings their users have: the oldest of the user with the
    /// most goes first; of users with one, the least recently used.
    fn add_counts(&self, costs: &mut [(Cost, usize)]) {
        let mut counts: Vec<(u32, usize)> = Vec::with_capacity(costs.len());
        for (_, slot) in costs.iter() {
            let (bucket, i) = self.slot(*slot);
            counts.push((bucket.users[i].load(Relaxed), 0));
        }
        for user in self.buckets.iter().flat_map(|bucket| &bucket.users) {
            let user = user.load(Relaxed);
            counts.iter_mut().filter(|(known, _)| *known == user).for_each(|(_, n)| *n += 1);
        }
        for ((cost, slot), (_, count)) in costs.iter_mut().zip(counts) {
            if count > 1 {
                cost.count = Reverse(count);
                cost.age = self.entries[*slot].0[2].load(Relaxed);
            }
        }
    }

    /// Evicts the user's oldest bindings until there is room for one more.
    fn make_room_for_user(&self, keys: &Keys, user_hash: u64) {
        let tag = tag(user_hash);
        let mut slots = Vec::new();
        for (b, bucket) in self.buckets.iter().enumerate() {
            for (i, user) in bucket.users.iter().enumerate() {
                if user.load(Relaxed) == tag {
                    slots.push(b * SLOTS + i);
                }
            }
        }
        if slots.len() < PER_USER {
            return;
        }
        let mut own: Vec<_> = slots
            .into_iter()
            .filter_map(|slot| self.read(keys, slot))
            .filter(|bound| bound.user_hash() == user_hash && !bound.has_ended())
            .collect();
        own.sort_by_key(Bound::stamp);
        let surplus = (own.len() + 1).saturating_sub(PER_USER);
        own.iter().take(surplus).for_each(|bound| self.empty(bound.slot));
    }

    fn empty(&self, slot: usize) {
        if let Some(_writing) = self.write_to(slot) {
            let (bucket, i) = self.slot(slot);
            bucket.tags[i].store(0, Release);
            bucket.users[i].store(0, Relaxed);
        }
    }

    /// The right to write to a slot, unless another worker has it.
    fn write_to(&self, slot: usize) -> Option<Writing> {
        let (bucket, i) = self.slot(slot);
        let mark = &bucket.writers[i];
        let now = (monotonic_ns() / 1_000_000_000) as u32 + 1;
        let other = mark.load(Relaxed);
        if other != 0 && now.wrapping_sub(other) < WRITING {
            return None;
        }
        mark.compare_exchange(other, now, AcqRel, Relaxed).ok()?;
        Some(Writing { bindings: *self, slot })
    }
}

/// The right to write to a slot; it ends when this is dropped.
struct Writing {
    bindings: Bindings,
    slot: usize,
}

impl Writing {
    fn write(&self, keys: &Keys, words: &mut [u64; WORDS]) {
        words[WORDS - 1] = keys.check(words[..used_words(words[3])].iter().copied());
        let entry = &self.bindings.entries[self.slot];
        entry.0.iter().zip(words).for_each(|(place, word)| place.store(*word, Relaxed));
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let (bucket, i) = self.bindings.slot(self.slot);
        bucket.writers[i].store(0, Release);
    }
}

/// The cost of evicting a slot; the lowest goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    class: u8,
    count: Reverse<usize>,
    age: u64,
}

impl Cost {
    const TORN: u8 = 0;
    const ENDED: u8 = 1;
    const UNUSED: u8 = 2;
    const USED: u8 = 3;
}

/// Half of a hash, never 0.
fn tag(hash: u64) -> u32 {
    ((hash >> 32) as u32).max(1)
}

/// Two-second steps, without the bit for the use itself.
fn use_time(now_ms: i64) -> u32 {
    (u32::try_from(now_ms / 1000 - EPOCH).unwrap_or(0)) << 1
}

fn put(words: &mut [u64], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
}

impl std::fmt::Debug for Bindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bindings").field("capacity", &self.capacity()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::Secret;

    const NOW: i64 = 1_700_000_000_000;

    /// What so large a zone has.
    fn table(zone: usize) -> (Bindings, Keys) {
        let zone = crate::shm::zone::anonymous(zone).unwrap();
        (zone.bindings(), zone.keys())
    }

    fn token(keys: &Keys, token: &str) -> TokenKey {
        keys.tokens(b"realm").key([token.as_bytes()])
    }

    fn bind(table: &Bindings, keys: &Keys, name: &str, user: &str, now: i64) {
        let key = token(keys, name);
        table.bind(keys, &Binding::new(keys, b"realm", key, user.as_bytes()), now);
    }

    fn user_of(table: &Bindings, keys: &Keys, name: &str, now: i64) -> Option<String> {
        let found = table.find(keys, token(keys, name), now).filter(|found| !found.has_ended());
        found.map(|found| String::from_utf8(found.user().to_vec()).unwrap())
    }

    #[test]
    fn a_token_is_bound_bound_otherwise_and_ended() {
        let (table, keys) = table(1 << 20);
        assert_eq!(user_of(&table, &keys, "t", NOW), None);
        bind(&table, &keys, "t", "ann", NOW);
        assert_eq!(user_of(&table, &keys, "t", NOW).as_deref(), Some("ann"));
        let before = table.changes();
        bind(&table, &keys, "t", "ann", NOW);
        assert_eq!(table.changes(), before);
        bind(&table, &keys, "t", "bob", NOW);
        assert_eq!(user_of(&table, &keys, "t", NOW).as_deref(), Some("bob"));
        assert_eq!(table.all(&keys).len(), 1);
        assert!(table.end(&keys, token(&keys, "t"), NOW));
        assert!(!table.end(&keys, token(&keys, "t"), NOW));
        assert!(!table.end(&keys, token(&keys, "other"), NOW));
        assert_eq!(user_of(&table, &keys, "t", NOW), None);
        // What began before the end is still of the session.
        bind(&table, &keys, "u", "bob", NOW);
        table.end(&keys, token(&keys, "u"), NOW);
        let ended = table.find(&keys, token(&keys, "u"), NOW).unwrap();
        assert_eq!(ended.user(), b"bob");
        assert!(ended.is_of(ended.time_ms() - 1) && !ended.is_of(ended.time_ms()));
        bind(&table, &keys, "t", "ann", NOW);
        assert_eq!(user_of(&table, &keys, "t", NOW).as_deref(), Some("ann"));
        for bad in ["", &"x".repeat(MAX_USER + 1)] {
            bind(&table, &keys, "bad", bad, NOW);
            assert_eq!(user_of(&table, &keys, "bad", NOW), None);
        }
        let longest = "x".repeat(MAX_USER);
        bind(&table, &keys, "long", &longest, NOW);
        assert_eq!(user_of(&table, &keys, "long", NOW), Some(longest));
    }

    #[test]
    fn a_token_with_another_user_is_not_of_older_requests() {
        let (table, keys) = table(1 << 20);
        let found = || table.find(&keys, token(&keys, "t"), NOW).unwrap();
        let are_of = |found: Bound| [-1, 0, 1].map(|after| found.is_of(found.time_ms() + after));
        bind(&table, &keys, "t", "ann", NOW);
        assert_eq!(are_of(found()), [true, true, true], "it was nobody's");
        bind(&table, &keys, "t", "bob", NOW + 10);
        assert_eq!(are_of(found()), [false, true, true]);
        table.end(&keys, token(&keys, "t"), NOW + 20);
        assert_eq!(are_of(found()), [false, false, false], "of whom, is not known");
        bind(&table, &keys, "t", "bob", NOW + 30);
        assert_eq!(are_of(found()), [false, true, true]);
    }

    #[test]
    fn a_refused_lookup_ends_what_a_lookup_has_bound() {
        let (table, keys) = table(1 << 20);
        let key = token(&keys, "t");
        let binding = Binding::new(&keys, b"realm", key, b"ann");
        table.bind_by_lookup(&keys, &Binding { identity: Identity::Lookup, ..binding }, NOW);
        table.end_by_lookup(&keys, key, NOW + 1);
        assert_eq!(user_of(&table, &keys, "t", NOW + 2), None);
        bind(&table, &keys, "t", "ann", NOW + 2);
        table.end_by_lookup(&keys, key, NOW + 3);
        assert_eq!(user_of(&table, &keys, "t", NOW + 4).as_deref(), Some("ann"));
    }

    #[test]
    fn the_digest_and_the_evidence_are_kept() {
        let (table, keys) = table(1 << 20);
        bind(&table, &keys, "t", "ann", NOW);
        let bound = table.find(&keys, token(&keys, "t"), NOW).unwrap();
        assert_eq!((bound.digest(), bound.identity()), (None, Identity::Session));
        table.note_digest(&keys, &bound, &[7; 32]);
        let bound = table.find(&keys, token(&keys, "t"), NOW).unwrap();
        assert_eq!((bound.digest(), bound.user()), (Some([7; 32]), &b"ann"[..]));
        let stale = bound;
        bind(&table, &keys, "t", "bob", NOW);
        table.note_digest(&keys, &stale, &[8; 32]);
        let bound = table.find(&keys, token(&keys, "t"), NOW).unwrap();
        assert_eq!((bound.digest(), bound.user()), (None, &b"bob"[..]));
        // What an answer tells outranks a look-up, and is not weakened by one.
        let looked_up = |user| {
            let binding = Binding::new(&keys, b"realm", token(&keys, "l"), user);
            Binding { identity: Identity::Lookup, ..binding }
        };
        table.bind(&keys, &looked_up(b"eve"), NOW);
        let identity = || table.find(&keys, token(&keys, "l"), NOW).unwrap().identity();
        assert_eq!(identity(), Identity::Lookup);
        bind(&table, &keys, "l", "eve", NOW);
        assert_eq!(identity(), Identity::Session);
        table.bind(&keys, &looked_up(b"eve"), NOW);
        assert_eq!(identity(), Identity::Session);
    }

    #[test]
    fn one_worker_asks_about_a_token_and_no_more_often_than_the_rate() {
        let (table, keys) = table(1 << 20);
        let (one, limit) = (token(&keys, "t"), Duration::from_secs(60));
        assert!(table.begin_question(one, limit));
        assert!(!table.begin_question(one, limit));
        table.end_question(one);
        assert!(table.begin_question(one, Duration::ZERO));
        // Who asked has died.
        assert!(table.begin_question(one, limit));
        let turns = (0..100).filter(|_| table.take_turn(0, 20.0)).count();
        assert!((20..=40).contains(&turns), "{turns}");
        assert!(table.take_turn(1, 20.0));
        assert!(!table.take_turn(MAX_LOOKUPS, 20.0));
    }

    #[test]
    fn the_default_zone_holds_20_000_sessions() {
        let (table, keys) = table(16 << 20);
        let name = |i: usize| (format!("token{i}"), format!("user{i}"));
        for i in 0..20_000 {
            let (token, user) = name(i);
            bind(&table, &keys, &token, &user, NOW);
            assert_eq!(user_of(&table, &keys, &token, NOW), Some(user));
        }
        let lost: Vec<_> = (0..20_000)
            .filter(|i| user_of(&table, &keys, &name(*i).0, NOW) != Some(name(*i).1))
            .collect();
        assert_eq!(lost, [] as [usize; 0]);
    }

    #[test]
    fn nobody_pushes_out_others_by_signing_in() {
        // Nearly full with them.
        let (table, keys) = table(4 << 20);
        let others: Vec<_> = (0..5_000).map(|i| (format!("t{i}"), format!("u{i}"))).collect();
        for (token, user) in &others {
            bind(&table, &keys, token, user, NOW);
        }
        for round in 0..20 {
            // A minute: each of the others is used once, the attacker signs in 5,000 times and uses each
            // token once; another 5,000 tokens are garbage.
            let now = NOW + round * 60_000;
            for (token, user) in &others {
                assert_eq!(user_of(&table, &keys, token, now).as_ref(), Some(user), "{round}");
            }
            for i in 0..5_000 {
                let own = format!("attacker{round}-{i}");
                bind(&table, &keys, &own, "attacker", now);
                assert!(user_of(&table, &keys, &own, now).is_some());
                assert_eq!(user_of(&table, &keys, &format!("garbage{round}-{i}"), now), None);
            }
        }
        let all = table.all(&keys);
        let attacker = all.iter().filter(|bound| bound.user() == b"attacker").count();
        assert_eq!(attacker, PER_USER);
        assert_eq!(all.len(), others.len() + PER_USER);
    }

    #[test]
    fn what_nobody_used_goes_first_then_the_oldest_of_many_then_the_least_recent() {
        // The least zone has few buckets; each session of the test has its own user but for `many`.
        let (table, keys) = table(crate::shm::zone::Zone::min_size(1));
        let capacity = table.capacity();
        let mut names = Vec::new();
        for i in 0..4 * capacity {
            let (token, user) = (format!("t{i}"), format!("u{i}"));
            bind(&table, &keys, &token, &user, NOW + i as i64);
            names.push((token, user));
            // The first ones are used after each new binding, and stay.
            for (token, user) in names.iter().take(8) {
                let now = NOW + i as i64;
                assert_eq!(user_of(&table, &keys, token, now).as_ref(), Some(user), "{i}");
            }
        }
        assert!(table.all(&keys).len() <= capacity);

        // All used: those of the user who has several go before those of users with one.
        table.clear();
        for i in 0..2 {
            bind(&table, &keys, &format!("many{i}"), "many", NOW);
            user_of(&table, &keys, &format!("many{i}"), NOW + 100_000_000);
        }
        let mut i = 0;
        while ["many0", "many1"].iter().all(|t| user_of(&table, &keys, t, NOW).is_some()) {
            let token = format!("single{i}");
            bind(&table, &keys, &token, &token, NOW);
            user_of(&table, &keys, &token, NOW);
            i += 1;
            assert!(i < 16 * capacity, "a single session went instead");
        }
        let single = (0..i).filter(|i| {
            let token = format!("single{i}");
            user_of(&table, &keys, &token, NOW).is_none()
        });
        // Elsewhere buckets were full before, and there the least recent one went.
        assert!(single.count() < i);
    }

    #[test]
    fn a_torn_entry_is_empty_and_a_dead_writer_blocks_no_slot_for_long() {
        let (table, keys) = table(1 << 20);
        bind(&table, &keys, "t", "ann", NOW);
        let slot = table.newest(&keys, token(&keys, "t")).unwrap().slot;
        let entry = &table.entries[slot];
        entry.0[USER_AT].fetch_add(1, Relaxed);
        assert_eq!(user_of(&table, &keys, "t", NOW), None);
        bind(&table, &keys, "t", "bob", NOW);
        assert_eq!(user_of(&table, &keys, "t", NOW).as_deref(), Some("bob"));
        // Somebody writes there, and has just begun: the new one finds another slot, and counts.
        let slot = table.newest(&keys, token(&keys, "t")).unwrap().slot;
        let (bucket, i) = table.slot(slot);
        let seconds = (monotonic_ns() / 1_000_000_000) as u32 + 1;
        bucket.writers[i].store(seconds, Relaxed);
        bind(&table, &keys, "t", "eve", NOW);
        assert_eq!(user_of(&table, &keys, "t", NOW).as_deref(), Some("eve"));
        bucket.writers[i].store(seconds.wrapping_sub(WRITING), Relaxed);
        assert!(table.write_to(slot).is_some());
    }

    #[test]
    fn another_key_finds_nothing() {
        let (table, keys) = table(1 << 20);
        bind(&table, &keys, "t", "ann", NOW);
        let mut secret = Secret::default();
        secret[0] = 1;
        let others = Keys::derive(&secret);
        assert!(table.find(&others, token(&keys, "t"), NOW).is_none());
    }

    #[test]
    fn writers_and_readers_meet_and_never_see_anothers_user() {
        let (table, keys) = table(1 << 20);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let keys = &keys;
                scope.spawn(move || {
                    for i in 0..20_000 {
                        let name = format!("t{}", (i * 7 + writer) % 40);
                        let user = format!("of-{name}-{}", "x".repeat(i % 50));
                        bind(&table, keys, &name, &user, NOW);
                        let found = user_of(&table, keys, &name, NOW);
                        let owner = format!("of-{name}-");
                        assert!(found.is_none_or(|user| user.starts_with(&owner)));
                        if i % 11 == 0 {
                            table.end(keys, token(keys, &name), NOW);
                        }
                    }
                });
            }
        });
    }
}
