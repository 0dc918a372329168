//! What must hold for any input, however hostile.
//!
//! Each module has one `check`, which makes an input out of a fuzzer's bytes and panics where something
//! does not hold. `ci/fuzz` lets libFuzzer look for such bytes; the tests try some, always the same.

use arbitrary::{Result, Unstructured};

pub mod answer;
pub mod form;
pub mod json;
pub mod path;
pub mod post;
pub mod privacy;
pub mod record;
pub mod redact;
pub mod xmlrpc;

/// A property: it takes what it needs from the fuzzer's bytes.
pub type Check = fn(&mut Unstructured<'_>) -> Result<()>;

/// Checks a property with these bytes; where there are too few of them, it is not checked.
///
/// # Panics
/// It does not hold.
pub fn run(check: Check, data: &[u8]) {
    let _ = check(&mut Unstructured::new(data));
}

/// Some of the `pieces`, and bytes of any value, one after the other.
pub(crate) fn text(u: &mut Unstructured<'_>, pieces: &[&str], most: usize) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for _ in 0..u.int_in_range(0..=most)? {
        match u.int_in_range(0..=7)? {
            0 => text.push(u.arbitrary()?),
            _ => text.extend_from_slice(u.choose(pieces)?.as_bytes()),
        }
    }
    Ok(text)
}

/// `text` as somebody may write it who wants to hide it: some of its bytes encoded, some in upper case.
pub(crate) fn spell(u: &mut Unstructured<'_>, text: &str) -> Result<String> {
    let mut out = String::new();
    for byte in text.bytes() {
        match u.int_in_range(0..=7)? {
            0 => out += &format!("%{byte:02x}"),
            1 => out += &format!("%{byte:02X}"),
            2 => out.push(char::from(byte).to_ascii_uppercase()),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

/// Undoes one percent-encoding.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|d| str::from_utf8(d).ok()) {
            Some(digits) if text[at] == b'%' => {
                out.push(u8::from_str_radix(digits, 16).expect("two digits"));
                at += 3;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough to find what the fuzzers find in their first seconds.
    fn some(check: Check) {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let data: Vec<u8> = (0..random.usize(..512)).map(|_| random.u8(..)).collect();
            run(check, &data);
        }
    }

    #[test]
    fn answer() {
        some(super::answer::check);
    }

    #[test]
    fn json() {
        some(super::json::check);
    }

    #[test]
    fn post() {
        some(super::post::check);
    }

    #[test]
    fn xmlrpc() {
        some(super::xmlrpc::check);
    }

    #[test]
    fn path() {
        some(super::path::check);
    }

    #[test]
    fn redact() {
        some(super::redact::check);
    }

    #[test]
    fn form() {
        some(super::form::check);
    }

    #[test]
    fn record() {
        some(super::record::check);
    }

    #[test]
    fn privacy() {
        some(super::privacy::check);
    }
}
