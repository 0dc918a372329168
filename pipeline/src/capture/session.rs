//! Session tokens, and what replaces them in records.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::capture::exchange::{Exchange, Text};
use crate::capture::value::{Source, Value};

/// The digest that replaces a token in a record.
pub type SessionDigest = [u8; 32];

/// Calls `f` with the parts of each token that a request carries, by the joined values of `tirreno_session`,
/// until `f` has enough. Returns whether there is any, even if it is not certain which one the application reads.
pub fn request_tokens<T: Text, X: Exchange<Text = T>>(
    values: &[Value<T>],
    exchange: &X,
    mut f: impl FnMut(&[&[u8]]) -> bool,
) -> bool {
    if let [one] = values
        && let Some(token) = one.plain_cookie(exchange)
    {
        f(&[token]);
        return true;
    }
    if values.iter().any(|value| value.is_ambiguous(exchange)) {
        return true;
    }
    let mut is_there = false;
    if let [one] = values {
        one.each(exchange, |text| {
            word(one, &text).is_some_and(|token| {
                is_there = true;
                f(&[token])
            })
        });
        return is_there;
    }
    let texts: Vec<_> = values.iter().map(|value| value.token(exchange)).collect();
    if let Some(parts) = words(values, &texts) {
        is_there = true;
        f(&parts);
    }
    is_there
}

/// Whether the request has something in these places, which are joined, that may be a token to the application, even
/// if it is not certainly one: a cookie of any content, or else one word.
pub fn may_have_token<T: Text, X: Exchange<Text = T>>(values: &[Value<T>], exchange: &X) -> bool {
    let may_be_token = |value: &Value<T>| match value.get(exchange, None).text() {
        text if matches!(value.source(), Source::Cookie(_)) => !text.is_empty(),
        text => value.is_ambiguous(exchange) || plain_token(&text).is_some(),
    };
    values.iter().all(may_be_token)
}

/// Calls `f` with the parts of the token that an answer sets or carries. A part that the answer lacks is the
/// request's.
pub fn answer_token<'e, T: Text, X: Exchange<Text = T>>(
    values: &[Value<T>],
    exchange: &'e X,
    f: impl FnOnce(&[&[u8]]),
) {
    let mut is_answers = false;
    let text = |value: &Value<T>| -> Cow<'e, [u8]> {
        let answers = value.in_answer(exchange);
        is_answers |= answers.is_some();
        answers.unwrap_or_else(|| value.token(exchange))
    };
    let texts: Vec<_> = values.iter().map(text).collect();
    if let Some(parts) = words(values, &texts)
        && is_answers
    {
        f(&parts);
    }
}

/// Whether an answer clears a cookie that is a session's token, or a part of one.
pub fn is_cleared<T: Text, X: Exchange<Text = T>>(values: &[Value<T>], exchange: &X) -> bool {
    values.iter().any(|value| match value.source() {
        Source::Cookie(name) => exchange.clears_cookie(name),
        _ => false,
    })
}

fn words<'t, T: Text>(values: &[Value<T>], texts: &'t [Cow<'_, [u8]>]) -> Option<Vec<&'t [u8]>> {
    values.iter().zip(texts).map(|(value, text)| word(value, text)).collect()
}

fn word<'t, T: Text>(value: &Value<T>, text: &'t [u8]) -> Option<&'t [u8]> {
    let is_header = match value.source() {
        // `$http_authorization` is known by its scheme.
        Source::Text(..) => text.trim_ascii().iter().any(u8::is_ascii_whitespace),
        _ => value.is_authorization(),
    };
    if is_header { authorization_token(text) } else { plain_token(text) }
}

/// The token in an `Authorization` header, parsed as loosely as applications do: `Bearer` or `token` in any
/// case, and any one character behind it. `None` without a scheme, which RFC 9110 requires, and for other schemes:
/// `Basic` carries a password, which even a hash would reveal.
pub fn authorization_token(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let behind = |scheme: &[u8]| {
        let (start, rest) = value.split_at_checked(scheme.len() + 1)?;
        start[..scheme.len()].eq_ignore_ascii_case(scheme).then_some(rest)
    };
    plain_token(behind(b"bearer").or_else(|| behind(b"token"))?)
}

/// The token in a cookie, an argument or another header; `None` if it is not one word.
pub fn plain_token(value: &[u8]) -> Option<&[u8]> {
    let token = value.trim_ascii();
    let is_one = !token.is_empty() && !token.iter().any(u8::is_ascii_whitespace);
    is_one.then_some(token)
}

/// The SHA-256 of a token from its parts.
pub fn digest<'t>(parts: impl IntoIterator<Item = &'t [u8]>) -> SessionDigest {
    let mut hash = Sha256::new();
    parts.into_iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::facts::{Facts, compile};
    use crate::capture::value::Purpose;

    #[test]
    fn what_may_be_a_token() {
        let parse = |text: &'static str| {
            Value::parse(text.as_bytes(), Purpose::Look, None, &mut compile).unwrap()
        };
        for (text, name, header, query, may_be) in [
            ("cookie:sid", "Cookie", "a=b; sid=x\"y", "", true),
            ("cookie:sid", "Cookie", "a=b; sid=", "", false),
            ("cookie:sid*~^(a+)$", "Cookie", "sid1=b; sid2=aa", "", true),
            ("cookie:sid*~^(a+)$", "Cookie", "sid1=b", "", false),
            ("header:Authorization", "Authorization", "abc", "", true),
            ("header:Authorization", "Authorization", "Basic YTpi", "", false),
            ("arg:t", "X", "", "t=1&t=", true),
            ("arg:t", "X", "", "t=1", true),
            ("arg:t", "X", "", "t=&u=1", false),
        ] {
            let facts = Facts { headers: vec![(name, header)], query, ..Facts::default() };
            assert_eq!(may_have_token(&[parse(text)], &facts), may_be, "{text} {header} {query}");
            // Of joined parts, each has to be there.
            let joined = [parse(text), parse("cookie:none")];
            assert!(!may_have_token(&joined, &facts), "{text} {header} {query}");
        }
    }

    #[test]
    fn one_token_is_one_session() {
        // As `printf abc | sha256sum` has it.
        assert_eq!(digest([&b"abc"[..]])[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(digest([&b"ab"[..], b"c"]), digest([&b"abc"[..]]));
        for same in [
            "Bearer abc",
            "BEARER abc",
            "bearer  abc ",
            "token abc",
            "Token\tabc",
            "Bearer:abc",
            "bearer\tabc",
        ] {
            assert_eq!(authorization_token(same.as_bytes()), Some(&b"abc"[..]), "{same:?}");
        }
        for none in [
            "",
            " ",
            "abc",
            "Bearer",
            "Bearer a b",
            "Basic YWxhZGRpbjpzZXNhbWU=",
            "Digest username=a, b=c",
        ] {
            assert_eq!(authorization_token(none.as_bytes()), None, "{none:?}");
        }
        // A cookie may be any word.
        assert_eq!(plain_token(b"Bearer"), Some(&b"Bearer"[..]));
        assert_eq!(plain_token(b"bearer-abc"), Some(&b"bearer-abc"[..]));
        for none in [&b""[..], b" ", b"a b"] {
            assert_eq!(plain_token(none), None);
        }
    }
}
