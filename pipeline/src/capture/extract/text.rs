//! Searches an answer for texts of rules.

use std::fmt;
use std::rc::Rc;

use memchr::memmem::{self, Finder};

/// How many bytes of an answer are searched.
pub const MAX_TEXT_SCANNED: usize = 64 << 10;

/// The longest text to search for, in bytes.
const MAX_TEXT: usize = 256;

/// Why a text is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// It is empty.
    Empty,
    /// It is longer than 256 bytes.
    TooLong,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the text is missing"),
            Self::TooLong => write!(f, "a text must not be longer than {MAX_TEXT} bytes"),
        }
    }
}

/// A text to search for in the first [`MAX_TEXT_SCANNED`] bytes of an answer.
#[derive(Clone, Debug)]
pub struct Text(Rc<Finder<'static>>);

impl Text {
    /// Parses a text to search for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &[u8]) -> Result<Self, TextError> {
        match text.len() {
            0 => Err(TextError::Empty),
            1..=MAX_TEXT => Ok(Self(Rc::new(memmem::Finder::new(text).into_owned()))),
            _ => Err(TextError::TooLong),
        }
    }

    /// The text's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.needle()
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Text {}

/// Searches chunks for a text.
#[derive(Debug)]
pub(super) struct Search {
    text: Text,
    /// The last bytes searched, fewer than the text has, which may be its beginning.
    tail: Vec<u8>,
    scanned: usize,
    found: bool,
}

impl Search {
    pub(super) fn new(text: &Text) -> Self {
        Self { text: text.clone(), tail: Vec::new(), scanned: 0, found: false }
    }

    pub(super) fn text(&self) -> &Text {
        &self.text
    }

    /// The most memory that the search takes, in bytes.
    pub(super) fn room(&self) -> usize {
        size_of::<Self>() + 2 * self.text.bytes().len()
    }

    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// Whether more bytes cannot change the result.
    pub(super) fn is_done(&self) -> bool {
        self.found || self.scanned == MAX_TEXT_SCANNED
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        if self.is_done() {
            return;
        }
        let chunk = &chunk[..chunk.len().min(MAX_TEXT_SCANNED - self.scanned)];
        self.scanned += chunk.len();
        let before = self.text.bytes().len() - 1;
        if !self.tail.is_empty() {
            let old = self.tail.len();
            self.tail.extend_from_slice(&chunk[..chunk.len().min(before)]);
            self.found = self.text.0.find(&self.tail).is_some();
            self.tail.truncate(old);
        }
        self.found = self.found || self.text.0.find(chunk).is_some();
        if chunk.len() >= before {
            self.tail.clear();
        } else {
            let surplus = (self.tail.len() + chunk.len()).saturating_sub(before);
            self.tail.drain(..surplus);
        }
        self.tail.extend_from_slice(&chunk[chunk.len().saturating_sub(before)..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(text: &str, chunks: &[&[u8]]) -> bool {
        let mut search = Search::new(&Text::new(text.as_bytes()).unwrap());
        chunks.iter().for_each(|chunk| search.push(chunk));
        search.found()
    }

    #[test]
    fn texts_are_found_over_the_borders_of_chunks() {
        let body = b"xxaababcxx";
        for size in 1..body.len() {
            let chunks: Vec<_> = body.chunks(size).collect();
            for text in ["ababc", "x", "xx", "aab", "xxaababcxx", "cxx"] {
                assert!(search(text, &chunks), "{text} {size}");
            }
            for text in ["abb", "xxx", "ababcxxx"] {
                assert!(!search(text, &chunks), "{text} {size}");
            }
        }
    }

    #[test]
    fn only_the_beginning_is_searched() {
        let padding = vec![b'.'; MAX_TEXT_SCANNED - 4];
        assert!(search("text", &[&padding, b"text"]));
        assert!(!search("text", &[&padding, b".text"]));
        assert!(!search("text", &[&padding, b".", b"t", b"ext"]));
        assert_eq!(Text::new(b""), Err(TextError::Empty));
        assert_eq!(Text::new(&[b'a'; MAX_TEXT + 1]), Err(TextError::TooLong));
    }
}
