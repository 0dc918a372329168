//! The keys that all workers of one nginx share, derived from one secret.
//!
//! Neither the shared memory nor the state file contains a token or an account's name: only hashes, which
//! reveal nothing without the secret.

use std::hash::Hasher;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13Of128};
use zeroize::Zeroizing;

/// Bytes of the secret.
pub const SECRET_LEN: usize = 32;

/// The secret, as the key file and the shared memory hold it.
pub type Secret = Zeroizing<[u8; SECRET_LEN]>;

/// A session's token in a realm, hashed: 128 bits, so that no two tokens ever share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey(pub(crate) [u64; 2]);

/// The keys.
pub struct Keys {
    token: SipHasher13Of128,
    alias: SipHasher24,
    user: SipHasher24,
    check: u64,
    accounts: Zeroizing<[u8; 32]>,
    state: Zeroizing<[u8; 32]>,
    mark: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// Derives the keys: each has one purpose, so that a leak of one reveals nothing about another.
    pub fn derive(secret: &Secret) -> Self {
        let key = |purpose: &str| {
            // A key of any length is good.
            let mac = Hmac::<Sha256>::new_from_slice(&secret[..]);
            let digest = mac.map(|mac| mac.chain_update(purpose).finalize().into_bytes().into());
            Zeroizing::new(digest.unwrap_or([0_u8; 32]))
        };
        let half =
            |key: Zeroizing<[u8; 32]>| Zeroizing::new(std::array::from_fn::<u8, 16, _>(|i| key[i]));
        Self {
            token: SipHasher13Of128::new_with_key(&half(key("token"))),
            alias: SipHasher24::new_with_key(&half(key("alias"))),
            user: SipHasher24::new_with_key(&half(key("user"))),
            check: u64::from_ne_bytes(std::array::from_fn(|i| key("check")[i])) | 1,
            accounts: key("account"),
            state: key("state"),
            mark: key("mark"),
        }
    }

    /// The hash of a realm's tokens, which requests have in common.
    pub fn tokens(&self, realm: &[u8]) -> TokenHash {
        let mut hasher = self.token;
        write_realm(&mut hasher, realm);
        TokenHash(hasher)
    }

    /// The name that stands for a session whose user is unknown.
    pub fn session_alias<'t>(
        &self,
        realm: &[u8],
        parts: impl IntoIterator<Item = &'t [u8]>,
    ) -> String {
        let mut hasher = self.alias;
        write_realm(&mut hasher, realm);
        write_parts(&mut hasher, parts);
        format!("session-{:016x}", hasher.finish())
    }

    /// A number that differs between users and realms.
    pub(crate) fn user(&self, realm: &[u8], user: &[u8]) -> u64 {
        let mut hasher = self.user;
        write_realm(&mut hasher, realm);
        write_parts(&mut hasher, [user]);
        hasher.finish()
    }

    /// A checksum of words that two writers, or the death of one, may have torn. A process that can write the
    /// words cannot compute it without the key.
    pub(crate) fn check(&self, words: impl IntoIterator<Item = u64>) -> u64 {
        let mix = |sum: u64, word: u64| (sum.rotate_left(29) ^ word).wrapping_mul(self.check);
        words.into_iter().fold(self.check, mix)
    }

    /// The mark of this start's own requests to the application.
    pub fn mark(&self, instance: u64) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(&self.mark[..]);
        let digest =
            mac.map(|mac| mac.chain_update(instance.to_ne_bytes()).finalize().into_bytes());
        let digest: [u8; 32] = digest.map_or([0; 32], Into::into);
        digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of accounts' names.
    pub(crate) fn accounts(&self) -> &[u8; 32] {
        &self.accounts
    }

    /// The key of the state file's entries.
    pub(crate) fn state(&self) -> &[u8; 32] {
        &self.state
    }
}

/// The keyed hash of a realm's tokens.
#[derive(Clone)]
pub struct TokenHash(SipHasher13Of128);

impl TokenHash {
    /// The key of a session's token. The parts of a token are those that `tirreno_session` joins.
    pub fn key<'t>(&self, parts: impl IntoIterator<Item = &'t [u8]>) -> TokenKey {
        let mut hasher = self.0;
        write_parts(&mut hasher, parts);
        let hash = hasher.finish128();
        TokenKey([hash.h1, hash.h2])
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenHash").finish_non_exhaustive()
    }
}

// No realm with a list of parts is the same bytes as another one: none of the bytes that nginx takes in a header
// or a cookie separates them.

fn write_realm(hasher: &mut impl Hasher, realm: &[u8]) {
    hasher.write(realm);
    hasher.write_u8(0);
}

fn write_parts<'t>(hasher: &mut impl Hasher, parts: impl IntoIterator<Item = &'t [u8]>) {
    for (number, part) in parts.into_iter().enumerate() {
        if number > 0 {
            hasher.write_u8(0);
        }
        hasher.write(part);
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(first: u8) -> Keys {
        let mut secret = Secret::default();
        secret[0] = first;
        Keys::derive(&secret)
    }

    #[test]
    fn realm_parts_and_secret_count() {
        let (a, b) = (keys(1), keys(2));
        let one = a.tokens(b"chat").key([&b"token"[..]]);
        assert_eq!(a.tokens(b"chat").key([&b"token"[..]]), one);
        for (keys, realm, parts) in [
            (&b, &b"chat"[..], &[&b"token"[..]][..]),
            (&a, b"wiki", &[b"token"]),
            (&a, b"chat", &[b"tok", b"en"]),
            (&a, b"chat", &[b"token", b""]),
            (&a, b"cha", &[b"ttoken"]),
        ] {
            assert_ne!(keys.tokens(realm).key(parts.iter().copied()), one, "{realm:?} {parts:?}");
        }
        let alias = a.session_alias(b"chat", [&b"token"[..]]);
        assert_eq!(alias.len(), "session-".len() + 16);
        assert_ne!(b.session_alias(b"chat", [&b"token"[..]]), alias);
        // The alias is shown: it tells nothing of where the token's binding lies.
        assert!(!one.0.iter().any(|word| alias.ends_with(&format!("{word:016x}"))));
    }

    #[test]
    fn each_word_changes_the_checksum() {
        let keys = keys(1);
        let words = [1, 2, 3, u64::MAX, 0];
        for at in 0..words.len() {
            for bit in 0..64 {
                let mut torn = words;
                torn[at] ^= 1 << bit;
                assert_ne!(keys.check(torn), keys.check(words), "{at} {bit}");
            }
        }
        assert_ne!(keys.check([0; 5]), 0);
    }
}
