//! A hash that is the same in every process, release and version of Rust, for values that are stored or
//! compared between processes. It protects no secret: for that, HMAC is used.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// SipHash-1-3 of the parts. It depends on where parts end: `["a", "bc"]` is not `["ab", "c"]`.
pub fn stable_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = SipHasher13::new();
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish()
}

/// The same for numbers, on machines of either byte order.
pub fn stable_hash_words(words: &[u64]) -> u64 {
    let mut hasher = SipHasher13::new();
    words.iter().for_each(|word| hasher.write(&word.to_le_bytes()));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_what_they_are() {
        // Spools on disk contain such values.
        assert_eq!(stable_hash([&b"alice"[..]]), 1_514_558_949_617_676_251);
        assert_eq!(stable_hash([]), 0xd1fb_a762_150c_532c);
        assert_ne!(stable_hash([&b"a"[..], b"bc"]), stable_hash([&b"ab"[..], b"c"]));
    }
}
