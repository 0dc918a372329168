//! `tirreno_url page`: the URL that Tirreno gets instead of the request's own.
//!
//! Tirreno's rules look for words in paths, and long ids contain such words by chance; and Tirreno lists
//! each path once. So the path is the rule's pattern, and the variable segments become arguments.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::event::Param;

/// The replacement for a secret.
const MASK: &str = "***";
/// The argument that says that arguments are left out.
const TRUNCATED: &str = "truncated=1";
/// Everything except the characters that are safe in all parts of a URL (RFC 3986, 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Writes such a URL.
#[derive(Debug)]
pub struct Page<'o> {
    out: &'o mut Vec<u8>,
    /// The length of the path.
    path: usize,
    /// The length to which the URL is cut if the mark has to be appended.
    marked: usize,
    is_full: bool,
}

impl<'o> Page<'o> {
    /// Starts with the path alone, replacing the content of `out`.
    pub fn new(path: &str, out: &'o mut Vec<u8>) -> Self {
        out.clear();
        out.extend_from_slice(path.as_bytes());
        Self { path: out.len(), marked: out.len(), out, is_full: false }
    }

    /// Appends a segment as an argument; without a value it is a secret. Whole arguments at the end are
    /// left out so that the URL is no longer than Tirreno keeps.
    pub fn push(&mut self, name: &str, value: Option<&[u8]>) {
        if self.is_full {
            return;
        }
        let limit = Param::Url.limit();
        let value = value.map_or(Cow::Borrowed(MASK), |v| percent_encode(v, ENCODED).into());
        if self.out.len() + 1 + name.len() + 1 + value.len() > limit {
            self.is_full = true;
            self.out.truncate(self.marked);
            self.push_sign();
            self.out.extend_from_slice(TRUNCATED.as_bytes());
            return;
        }
        self.push_sign();
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'=');
        self.out.extend_from_slice(value.as_bytes());
        if self.out.len() + 1 + TRUNCATED.len() <= limit {
            self.marked = self.out.len();
        }
    }

    fn push_sign(&mut self) {
        self.out.push(if self.out.len() == self.path { b'?' } else { b'&' });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(page: &str, segments: &[(&str, Option<&[u8]>)]) -> String {
        let mut out = b"old".to_vec();
        let mut url = Page::new(page, &mut out);
        segments.iter().for_each(|(name, value)| url.push(name, *value));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn segments_become_arguments() {
        assert_eq!(page("/a", &[]), "/a");
        let segments: &[(&str, Option<&[u8]>)] =
            &[("id", Some(b"x/y z&\xff")), ("token", None), ("e", Some(b""))];
        assert_eq!(page("/a/{id}", segments), "/a/{id}?id=x%2Fy%20z%26%FF&token=***&e=");
    }

    #[test]
    fn whole_arguments_are_left_out_from_the_end() {
        let value = [b'x'; 1000];
        let two =
            page("/a", &[("b", Some(&value)), ("c", Some(&value)), ("d", Some(&value[..34]))]);
        assert_eq!(two.len(), 2 + 2 * 1003 + 37);
        let none = page("/a", &[("b", Some(&[b'%'; 1000]))]);
        assert_eq!(none, "/a?truncated=1");
        let one =
            page("/a", &[("b", Some(&value)), ("c", Some(&value)), ("d", Some(&value[..40]))]);
        assert!(
            one.ends_with("x&truncated=1") && one.contains("&c=") && !one.contains("&d="),
            "{one}"
        );
        // The mark needs room, too.
        let last =
            page("/a", &[("b", Some(&value)), ("c", Some(&[b'x'; 1030])), ("d", Some(b"1234567"))]);
        assert!(last.ends_with("x&truncated=1") && !last.contains("&c="), "{last}");
        for len in 0..200 {
            let value = vec![b'x'; 1900 + len];
            for segments in
                [&[("b", Some(&value[..]))][..], &[("b", Some(&value)), ("c", Some(b"12345"))]]
            {
                assert!(page("/a", segments).len() <= 2047, "{len}");
            }
        }
    }
}
