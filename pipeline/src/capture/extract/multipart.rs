//! Reads `multipart/form-data`.
//!
//! The many readers are lenient in different ways: PHP accepts only whole lines as boundaries and reads on
//! after the last one, and Rack decodes names. This module reads only what all of them read alike, which is
//! what browsers, curl and HTTP libraries send. Anything else is unreadable.

use memchr::{memchr2, memchr3};

use super::Values;
use super::form::{Fields, MAX_NAME, Rules, Unclear};
use super::kept::{Kept, Share};

/// The longest boundary (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// The longest line of a part's header.
const MAX_LINE: usize = 2 * MAX_NAME;

/// Reads `multipart/form-data`.
#[derive(Debug)]
pub(super) struct Multipart {
    fields: Fields,
    /// `\r\n--` and the boundary.
    delimiter: Vec<u8>,
    place: Place,
    /// A line of a part's header.
    line: Kept,
    disposition: Option<Disposition>,
    has_type: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the delimiter before the first part, of which this many bytes have come.
    First(usize),
    /// After a delimiter: the first byte of `\r\n` or `--`, if it has come.
    AfterDelimiter(Option<u8>),
    Header,
    /// In a part's content. The last bytes are the delimiter's from `start` to `matched`.
    Content {
        matched: usize,
        start: usize,
    },
    /// After the last delimiter: how many bytes of `\r\n` have come.
    End(usize),
}

/// A part's `Content-Disposition`.
#[derive(Debug)]
struct Disposition {
    name: Kept,
    is_file: bool,
}

impl Multipart {
    /// `None` if readers differ on the boundary in the `Content-Type`.
    pub(super) fn new(content_type: &[u8], rules: Rules) -> Option<Self> {
        let boundary = boundary(content_type)?;
        // Rack also finds a boundary in the middle of a line. This module does so, too, after any number of
        // dashes, if the boundary has dashes only at its start.
        let first = boundary.iter().position(|b| *b != b'-')?;
        if rules == Rules::Rails && boundary[first..].contains(&b'-') {
            return None;
        }
        let delimiter = [b"\r\n--", boundary].concat();
        Some(Self {
            fields: Fields::new(rules),
            delimiter,
            place: Place::First(2),
            line: Kept::default(),
            disposition: None,
            has_type: false,
        })
    }

    /// Reads a chunk of the body.
    pub(super) fn push(&mut self, chunk: &[u8], values: &mut Values, share: &mut Share) {
        if !values.is_read() && self.read(chunk, values, share).is_err() {
            values.give_up();
        }
    }

    /// The body is complete.
    pub(super) fn finish(&mut self, values: &mut Values) {
        if values.is_read() {
            return;
        }
        match self.place {
            Place::End(0 | 2) => self.fields.finish(values),
            _ => values.give_up(),
        }
    }

    fn read(
        &mut self,
        mut chunk: &[u8],
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Unclear> {
        while let Some((&byte, rest)) = chunk.split_first() {
            chunk = match self.place {
                Place::Header => self.read_line(chunk, values, share)?,
                Place::Content { matched: 0, .. } => self.read_content(chunk, values, share),
                Place::Content { matched, start } => {
                    self.read_delimiter(chunk, matched, start, values, share)?
                }
                Place::First(matched) => {
                    if self.delimiter[matched] != byte {
                        return Err(Unclear);
                    }
                    self.place = match matched + 1 {
                        matched if matched == self.delimiter.len() => Place::AfterDelimiter(None),
                        matched => Place::First(matched),
                    };
                    rest
                }
                Place::AfterDelimiter(before) => {
                    self.place = match (before, byte) {
                        (None, b'\r' | b'-') => Place::AfterDelimiter(Some(byte)),
                        (Some(b'\r'), b'\n') => Place::Header,
                        (Some(b'-'), b'-') => Place::End(0),
                        _ => return Err(Unclear),
                    };
                    rest
                }
                Place::End(seen) => {
                    if b"\r\n".get(seen) != Some(&byte) {
                        return Err(Unclear);
                    }
                    self.place = Place::End(seen + 1);
                    rest
                }
            };
        }
        Ok(())
    }

    /// Reads content up to a possible start of a delimiter.
    fn read_content<'c>(
        &mut self,
        chunk: &'c [u8],
        values: &mut Values,
        share: &mut Share,
    ) -> &'c [u8] {
        let end = match self.fields.rules {
            Rules::Php => memchr2(b'\r', b'\n', chunk),
            Rules::Rails => memchr3(b'\r', b'\n', b'-', chunk),
        };
        let (content, rest) = chunk.split_at(end.unwrap_or(chunk.len()));
        self.fields.value(content, values, share);
        let Some((byte, rest)) = rest.split_first() else { return rest };
        self.place = match byte {
            b'\r' => Place::Content { matched: 1, start: 0 },
            b'\n' => Place::Content { matched: 2, start: 1 },
            _ => Place::Content { matched: 3, start: 2 },
        };
        rest
    }

    /// Reads the possible rest of a delimiter. A boundary contains neither `\r` nor `\n`, so a mismatch
    /// makes all matched bytes content, and only the next byte may start a delimiter.
    fn read_delimiter<'c>(
        &mut self,
        chunk: &'c [u8],
        matched: usize,
        start: usize,
        values: &mut Values,
        share: &mut Share,
    ) -> Result<&'c [u8], Unclear> {
        if chunk[0] != self.delimiter[matched] {
            let begun = &self.delimiter[start..matched];
            let is_dashes = matched > 2 && self.delimiter[2..matched].iter().all(|b| *b == b'-');
            if self.fields.rules == Rules::Rails && chunk[0] == b'-' && is_dashes {
                // There is one more dash before the boundary.
                self.fields.value(&self.delimiter[start..2], values, share);
                self.fields.value(b"-", values, share);
                self.place = Place::Content { matched, start: 2 };
                return Ok(&chunk[1..]);
            }
            self.fields.value(begun, values, share);
            self.place = Place::Content { matched: 0, start: 0 };
            return Ok(chunk);
        }
        let matched = matched + 1;
        self.place = Place::Content { matched, start };
        if matched == self.delimiter.len() {
            // PHP accepts a delimiter without its `\r`, and Rack one in the middle of a line.
            if start > 0 {
                return Err(Unclear);
            }
            self.fields.end_value(values);
            self.place = Place::AfterDelimiter(None);
        }
        Ok(&chunk[1..])
    }

    /// Reads a line of a part's header.
    fn read_line<'c>(
        &mut self,
        chunk: &'c [u8],
        values: &mut Values,
        share: &mut Share,
    ) -> Result<&'c [u8], Unclear> {
        let end = memchr2(b'\n', 0, chunk).unwrap_or(chunk.len());
        let (line, rest) = chunk.split_at(end);
        if self.line.bytes().len() + line.len() > MAX_LINE || self.line.push(line, share).is_err() {
            return Err(Unclear);
        }
        let Some((b'\n', rest)) = rest.split_first() else {
            return if rest.is_empty() { Ok(rest) } else { Err(Unclear) };
        };
        let line = self.line.bytes().strip_suffix(b"\r").ok_or(Unclear)?;
        if line.contains(&b'\r') {
            return Err(Unclear);
        }
        if !line.is_empty() {
            let colon = line.iter().position(|b| *b == b':').ok_or(Unclear)?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if !name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-') {
                return Err(Unclear);
            }
            if name.eq_ignore_ascii_case(b"content-disposition") {
                if self.disposition.is_some() {
                    return Err(Unclear);
                }
                self.disposition = Some(disposition(value, share)?);
            } else if name.eq_ignore_ascii_case(b"content-type") {
                self.has_type = true;
            } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
                return Err(Unclear);
            }
            self.line.clear();
            return Ok(rest);
        }
        self.line.clear();
        let mut part = self.disposition.take().ok_or(Unclear)?;
        let has_type = std::mem::take(&mut self.has_type);
        // PHP keeps files apart, Rack has them among the fields.
        if !part.is_file || self.fields.rules == Rules::Rails {
            let wanted = self.fields.name(part.name.bytes(), false, values, share)?;
            // The part's type may declare a text encoding.
            if wanted && has_type && !part.is_file {
                return Err(Unclear);
            }
            if part.is_file {
                self.fields.skip_value();
            }
        }
        part.name.release(share);
        self.place = Place::Content { matched: 0, start: 0 };
        Ok(rest)
    }
}

/// Parses `form-data; name="…"; filename="…"`.
fn disposition(value: &[u8], share: &mut Share) -> Result<Disposition, Unclear> {
    let kind = b"form-data";
    let (start, mut rest) = value.split_at_checked(kind.len()).ok_or(Unclear)?;
    if !start.eq_ignore_ascii_case(kind) {
        return Err(Unclear);
    }
    let (mut name, mut is_file) = (None, false);
    while let Some(parameter) = rest.strip_prefix(b";") {
        let parameter = parameter.trim_ascii_start();
        let equals = parameter.iter().position(|b| *b == b'=').ok_or(Unclear)?;
        let quoted = parameter[equals + 1..].strip_prefix(b"\"").ok_or(Unclear)?;
        let end = quoted.iter().position(|b| *b == b'"').ok_or(Unclear)?;
        let text = &quoted[..end];
        rest = &quoted[end + 1..];
        // Readers differ on backslashes.
        if text.contains(&b'\\') {
            return Err(Unclear);
        }
        let parameter = &parameter[..equals];
        if parameter.eq_ignore_ascii_case(b"name") && name.is_none() && !text.contains(&b'%') {
            let mut kept = Kept::default();
            kept.push(text, share).map_err(|_| Unclear)?;
            name = Some(kept);
        } else if parameter.eq_ignore_ascii_case(b"filename") && !is_file {
            is_file = true;
        } else {
            return Err(Unclear);
        }
    }
    match name {
        Some(name) if rest.is_empty() => Ok(Disposition { name, is_file }),
        _ => Err(Unclear),
    }
}

/// The boundary in a `Content-Type`, if all readers find the same.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let is_boundary = |word: &[u8]| word.eq_ignore_ascii_case(b"boundary");
    let mut places = content_type.windows(8).enumerate().filter(|(_, word)| is_boundary(word));
    let (place, _) = places.next()?;
    let value = content_type[place + 8..].strip_prefix(b"=")?;
    let before = content_type[..place].trim_ascii_end();
    if places.next().is_some() || before.last() != Some(&b';') {
        return None;
    }
    let value = match value.strip_prefix(b"\"") {
        Some(quoted) => &quoted[..quoted.iter().position(|b| *b == b'"')?],
        None => value.split(|b| *b == b';').next()?,
    };
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.'+=".contains(b);
    (1..=MAX_BOUNDARY).contains(&value.len()).then_some(value).filter(|v| v.iter().all(plain))
}
