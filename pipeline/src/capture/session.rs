//! Sessions without their tokens.

use sha2::{Digest, Sha256};

/// What stands for a session in a record.
pub type SessionDigest = [u8; 32];

/// The SHA-256 of the session token in the value of a cookie, or of an `Authorization` header with the
/// scheme `Bearer` or `token` in any case. Nothing where it holds none: other schemes (`Basic`) carry
/// passwords, which even a hash would give away.
pub fn digest(value: &[u8]) -> Option<SessionDigest> {
    let value = value.trim_ascii();
    let token = match value.iter().position(u8::is_ascii_whitespace) {
        Some(end) => {
            let scheme = &value[..end];
            let known = [&b"bearer"[..], b"token"].iter().any(|s| scheme.eq_ignore_ascii_case(s));
            known.then(|| value[end..].trim_ascii_start())?
        }
        None => value,
    };
    let is_one = !token.is_empty() && !token.iter().any(u8::is_ascii_whitespace);
    is_one.then(|| Sha256::digest(token).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_is_one_session() {
        let session = digest(b"abc").unwrap();
        // As `printf abc | sha256sum` has it.
        assert_eq!(session[..4], [0xba, 0x78, 0x16, 0xbf]);
        for same in ["Bearer abc", "BEARER abc", "bearer  abc ", "token abc", "Token\tabc", " abc"]
        {
            assert_eq!(digest(same.as_bytes()), Some(session), "{same:?}");
        }
        for none in ["", " ", "Bearer a b", "Basic YWxhZGRpbjpzZXNhbWU=", "Digest username=a, b=c"]
        {
            assert_eq!(digest(none.as_bytes()), None, "{none:?}");
        }
        // A cookie may be any word.
        assert_ne!(digest(b"Bearer"), None);
        assert_ne!(digest(b"abcd"), Some(session));
    }
}
