//! Helpers for text.

use std::borrow::Cow;
use std::net::IpAddr;

/// The largest index, at most `most`, at which `text` can be cut without splitting a character.
///
/// `str::floor_char_boundary` of the standard library needs Rust 1.91.
pub(crate) fn cut_before(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

/// The address in `text`; an IPv4 address mapped to IPv6, `::ffff:192.0.2.1`, becomes IPv4.
pub(crate) fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    str::from_utf8(text).ok()?.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// The value as valid UTF-8 of at most `limit` bytes. U+FFFD replaces invalid bytes, and NUL, at which
/// Tirreno would cut the value.
pub(crate) fn valid(value: &[u8], limit: usize) -> Cow<'_, str> {
    let mut text = String::from_utf8_lossy(value);
    if text.contains('\0') {
        text = text.replace('\0', "\u{fffd}").into();
    }
    if text.len() > limit {
        text = text[..cut_before(&text, limit)].to_owned().into();
    }
    text
}

/// Bytes as text; each byte that is no UTF-8 becomes `\xNN`.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let chunks = bytes.utf8_chunks();
    chunks.map(|chunk| format!("{}{}", chunk.valid(), chunk.invalid().escape_ascii())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_split() {
        let text = "aé€😀";
        assert_eq!(text.len(), 10);
        let places: Vec<_> = (0..=11).map(|most| cut_before(text, most)).collect();
        assert_eq!(places, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]);
        assert_eq!(cut_before("", 5), 0);
    }

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [
            (&b""[..], ""),
            ("a\n\"é😀".as_bytes(), "a\n\"é😀"),
            (b"\xf0\x90\x80", "\\xf0\\x90\\x80"),
            (b"a\xffb\xc3", "a\\xffb\\xc3"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }
}
