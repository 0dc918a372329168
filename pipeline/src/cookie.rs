//! `Set-Cookie` (RFC 6265).

/// Whether the value of a `Set-Cookie` header gives the cookie `name` a value that is not empty and
/// lasts. `expired` tells whether an HTTP date is over.
///
/// As in RFC 6265, section 5.3, `Max-Age` counts and `Expires` only without it.
pub fn sets(header: &[u8], name: &[u8], expired: impl Fn(&[u8]) -> bool) -> bool {
    let mut parts = header.split(|b| *b == b';');
    let Some((key, value)) = parts.next().and_then(pair) else { return false };
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    if key != name || value.is_empty() || value == b"\"" {
        return false;
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
    match (max_age, expires) {
        (Some(seconds), _) => !seconds.starts_with(b"-") && seconds.iter().any(|b| *b != b'0'),
        (None, Some(date)) => !expired(date),
        (None, None) => true,
    }
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
            ("MMUSERID=abc", true),
            ("MMUSERID=abc; Path=/; Expires=Sat, 22 May 2032 10:00:00 GMT; HttpOnly", true),
            (" MMUSERID = abc ; Max-Age=15552000", true),
            ("MMUSERID=\"abc\"", true),
            ("MMUSERID=; Path=/", false),
            ("MMUSERID=\"\"", false),
            ("MMUSERID", false),
            ("", false),
            ("mmuserid=abc", false),
            ("XMMUSERID=abc", false),
            ("other=MMUSERID=abc", false),
            ("MMUSERID=abc; Max-Age=", true),
            ("MMUSERID=abc; Max-Age=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT", false),
            ("MMUSERID=abc; Max-Age=0", false),
            ("MMUSERID=abc; max-age=-1; Expires=Sat, 22 May 2032 10:00:00 GMT", false),
            ("MMUSERID=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT", false),
            ("MMUSERID=abc; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60", true),
        ] {
            assert_eq!(sets(header.as_bytes(), b"MMUSERID", past), sets_it, "{header}");
        }
    }
}
