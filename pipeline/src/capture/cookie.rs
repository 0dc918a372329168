//! Cookies (RFC 6265): their names and values, as applications and nginx read them, and what `Set-Cookie` does with
//! one.

use std::borrow::Cow;

use crate::capture::{path, scan};

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
    let (_, value) = parts.next().and_then(cookie_pair).filter(|(key, _)| *key == name)?;
    if matches!(value, b"" | b"\"\"") {
        return Some(false);
    }
    let (mut max_age, mut expires) = (None, None);
    for (key, value) in parts.filter_map(cookie_pair) {
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

/// The value of nginx's `$cookie_NAME` in one `Cookie` header, with what follows it behind a semicolon: names are
/// compared without case. `None` also where nginx might find one in a malformed header, or behind a comma: that
/// ends a cookie in nginx 1.28, but not in 1.30.
pub(crate) fn nginx_cookie<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let mut rest = line;
    loop {
        let (start, behind) = rest.split_at_checked(name.len())?;
        // Almost always it is written as in the configuration.
        if start == name || start.eq_ignore_ascii_case(name) {
            return Some(trim_blanks(trim_blanks(behind).strip_prefix(b"=")?));
        }
        let end = rest.iter().position(|b| matches!(b, b';' | b','))?;
        rest = trim_blanks(rest[end..].strip_prefix(b";")?);
    }
}

fn trim_blanks(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    text
}

/// The names and values in a `Cookie` header.
pub fn cookie_pairs(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    cookies(line).filter_map(cookie_pair)
}

/// The value of a cookie with that name. A cookie with another beginning is not parsed. As in Go, only blanks and
/// tabs around the pair do not count: other white space makes a name or a value another one.
#[inline]
pub(crate) fn cookie_value<'l>(cookie: &'l [u8], name: &Name) -> Option<&'l [u8]> {
    let cookie = trim_pair(cookie);
    let rest = cookie.strip_prefix(name.text.as_bytes())?;
    let equals = rest.iter().position(|b| *b == b'=')?;
    let is_it = match name.is_prefix {
        true => name.matches(cookie[..cookie.len() - rest.len() + equals].trim_ascii()),
        false => rest[..equals].trim_ascii_end().is_empty(),
    };
    is_it.then(|| trim_blanks(&rest[equals + 1..]))
}

pub(crate) fn trim_pair(mut pair: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = pair {
        pair = rest;
    }
    trim_pair_start(pair)
}

#[inline]
pub(crate) fn trim_pair_start(mut pair: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = pair {
        pair = rest;
    }
    pair
}

/// The value of the first cookie of that name, if it certainly is that and needs no decoding.
pub(crate) fn plain_cookie<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let mut rest = trim_pair_start(line);
    while !rest.starts_with(name) {
        let end = scan::find_any(rest, [b';'])?;
        rest = trim_pair_start(&rest[end + 1..]);
    }
    let value = rest[name.len()..].strip_prefix(b"=")?;
    let end = scan::find_unplain(value).unwrap_or(value.len());
    (end > 0 && matches!(value.get(end), None | Some(b';'))).then(|| &value[..end])
}

/// The cookies in a `Cookie` header.
pub(crate) fn cookies(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let end = scan::find_any(line, [b';']);
        rest = end.map(|end| &line[end + 1..]);
        Some(&line[..end.unwrap_or(line.len())])
    })
}

fn cookie_pair(cookie: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = cookie.iter().position(|b| *b == b'=')?;
    Some((cookie[..equals].trim_ascii(), cookie[equals + 1..].trim_ascii()))
}

/// A cookie's value without its quotes, percent-decoded if the result is text without controls.
pub(crate) fn cookie_text(value: &[u8]) -> Cow<'_, [u8]> {
    let value = unquote(value);
    if scan::find_any(value, [b'%']).is_none() {
        return value.into();
    }
    let decoded: Vec<u8> = path::decode(value.iter().copied()).collect();
    let is_text = !decoded.iter().any(u8::is_ascii_control) && str::from_utf8(&decoded).is_ok();
    if is_text { decoded.into() } else { value.into() }
}

/// Whether a cookie's value has only bytes that applications read alike: as Go's `net/http`, that is visible ASCII and
/// blanks, but neither quotes (save those around it) nor backslashes.
pub(crate) fn is_cookie_text(value: &[u8]) -> bool {
    unquote(value).iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'))
}

pub(crate) fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_of_a_name_is_as_if_all_were_parsed() {
        let names = ["a", "aa", "ab", "a*", "ab*"].map(|name| Name::parse(name).unwrap());
        let mut cookies = vec![Vec::new()];
        for _ in 0..7 {
            let longer = |cookie: &Vec<u8>| b"ab= ".map(|b| [&cookie[..], &[b]].concat());
            cookies = cookies.iter().flat_map(longer).collect();
            let pairs = cookies.iter().flat_map(|cookie| names.iter().map(move |n| (cookie, n)));
            for (cookie, name) in pairs {
                let parsed = cookie_pair(cookie).filter(|(known, _)| name.matches(known));
                let value = parsed.map(|(_, value)| value);
                assert_eq!(cookie_value(cookie, name), value, "{name:?} {cookie:?}");
            }
        }
    }

    #[test]
    fn what_is_a_cookies_value() {
        for text in ["", "a", "a b,c", "\"a\"", "\"\"", "!#%&'~"] {
            assert!(is_cookie_text(text.as_bytes()), "{text:?}");
        }
        for text in ["\"", "a\"", "\"a\"b\"", "a\\", "a\x01", "a\x7f", "é", "a\tb"] {
            assert!(!is_cookie_text(text.as_bytes()), "{text:?}");
            let line = format!("ab={text}; ab=1");
            assert_eq!(plain_cookie(line.as_bytes(), b"ab"), None, "{text:?}");
        }
    }

    #[test]
    fn a_plain_cookie_is_the_first_one_of_that_name() {
        let name = Name::parse("ab").unwrap();
        let mut lines = vec![Vec::new()];
        let mut plain = 0;
        for _ in 0..7 {
            let longer = |line: &Vec<u8>| b"ab= ;%".map(|b| [&line[..], &[b]].concat());
            lines = lines.iter().flat_map(longer).collect();
            for line in &lines {
                let Some(found) = plain_cookie(line, b"ab") else { continue };
                let mut values = cookies(line).filter_map(|cookie| cookie_value(cookie, &name));
                let first = values.find(|value| !value.is_empty());
                assert_eq!(Some(found), first, "{}", line.escape_ascii());
                assert!(!found.iter().any(|b| b.is_ascii_whitespace() || *b == b'%'));
                plain += 1;
            }
        }
        assert!(plain > 500, "{plain}");
        let token = b" x=\"1\";  MMUSERID=u;ab=1234567890; y=2";
        assert_eq!(plain_cookie(token, b"ab"), Some(&b"1234567890"[..]));
        assert_eq!(plain_cookie(b"ab=\"1\"", b"ab"), None);
        for junk in ["ab=\tx", "ab=x\x0c", "ab=\x0bx", "\tab=x\ty"] {
            let value = cookie_value(junk.as_bytes(), &name);
            assert!(value.is_some_and(|value| !is_cookie_text(value)), "{junk:?}");
        }
        assert_eq!(cookie_value(b"\x0cab=x", &name), None);
        assert_eq!(cookie_value(b"\t ab=x \t", &name), Some(&b"x"[..]));
    }

    #[test]
    fn a_cookie_is_found_as_by_nginx() {
        for (line, found) in [
            ("user=ann", Some("ann")),
            ("a=1; USER=ann; user=eve", Some("ann")),
            ("a=1,user=eve; user=ann", None),
            ("a=1;  user = ann, b ; c", Some("ann, b ")),
            ("user=", Some("")),
            ("xuser=eve; user=ann", Some("ann")),
            ("users=eve; user=ann", None),
            ("user;user=eve", None),
            ("a=user=eve", None),
            ("us", None),
            ("", None),
        ] {
            let value = nginx_cookie(line.as_bytes(), b"user");
            let value = value.and_then(|value| value.split(|b| *b == b';').next());
            assert_eq!(value, found.map(str::as_bytes), "{line}");
        }
    }

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
