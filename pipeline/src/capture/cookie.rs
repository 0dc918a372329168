//! Cookies (RFC 6265): their names, and what `Set-Cookie` does with one.

/// A cookie's name, or a prefix of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Without `*`.
    pub text: Box<str>,
    /// Whether it is a prefix.
    pub is_prefix: bool,
    /// Names that have this prefix but belong to other values.
    pub(crate) except: Box<[Box<str>]>,
}

impl Name {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |name| (name, true));
        is_token(name).then(|| Self { text: name.into(), is_prefix, except: Box::default() })
    }

    /// Whether a cookie of that name is meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        let own = self.text.as_bytes();
        match self.is_prefix {
            true => {
                let is_other = || self.except.iter().any(|other| other.as_bytes() == name);
                name.starts_with(own) && !is_other()
            }
            false => name == own,
        }
    }
}

/// Whether `text` is a token of RFC 9110: the name of a method, a header or a cookie.
pub(crate) fn is_token(text: &str) -> bool {
    let is_mark = |b| b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || is_mark(b))
}

/// What the value of a `Set-Cookie` header does with the cookie `name`: `true` where it gives it a value
/// that is not empty and lasts, `false` where it clears it, nothing where it is about another cookie.
/// `expired` tells whether an HTTP date is over.
///
/// As in RFC 6265, section 5.3, `Max-Age` counts and `Expires` only without it.
pub fn sets(header: &[u8], name: &[u8], expired: impl Fn(&[u8]) -> bool) -> Option<bool> {
    let mut parts = header.split(|b| *b == b';');
    let (_, value) = parts.next().and_then(pair).filter(|(key, _)| *key == name)?;
    if matches!(value, b"" | b"\"\"") {
        return Some(false);
    }
    let (mut max_age, mut expires) = (None, None);
    for (key, value) in parts.filter_map(pair) {
        // What is no number does not count.
        if key.eq_ignore_ascii_case(b"max-age") && is_number(value) {
            max_age = Some(value);
        } else if key.eq_ignore_ascii_case(b"expires") {
            expires = Some(value);
        }
    }
    Some(match (max_age, expires) {
        (Some(seconds), _) => !seconds.starts_with(b"-") && seconds.iter().any(|b| *b != b'0'),
        (None, Some(date)) => !expired(date),
        (None, None) => true,
    })
}

fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

fn pair(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = part.iter().position(|b| *b == b'=')?;
    Some((part[..equals].trim_ascii(), part[equals + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_set_or_cleared() {
        let past = |date: &[u8]| date.ends_with(b"1970 00:00:00 GMT");
        for (header, sets_it) in [
            ("MMUSERID=abc", Some(true)),
            ("MMUSERID=abc; Path=/; Expires=Sat, 22 May 2032 10:00:00 GMT; HttpOnly", Some(true)),
            (" MMUSERID = abc ; Max-Age=15552000", Some(true)),
            ("MMUSERID=\"abc\"", Some(true)),
            ("MMUSERID=; Path=/", Some(false)),
            ("MMUSERID=\"\"", Some(false)),
            ("MMUSERID", None),
            ("", None),
            ("mmuserid=abc", None),
            ("XMMUSERID=abc", None),
            ("other=MMUSERID=abc", None),
            ("MMUSERID=abc; Max-Age=", Some(true)),
            ("MMUSERID=abc; Max-Age=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(false)),
            ("MMUSERID=abc; Max-Age=0", Some(false)),
            ("MMUSERID=abc; max-age=-1; Expires=Sat, 22 May 2032 10:00:00 GMT", Some(false)),
            ("MMUSERID=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT", Some(false)),
            ("MMUSERID=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60", Some(true)),
        ] {
            assert_eq!(sets(header.as_bytes(), b"MMUSERID", past), sets_it, "{header}");
        }
    }
}
