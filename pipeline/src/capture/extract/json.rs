//! Reads the first JSON value of a body in chunks of any size.
//!
//! Readers differ on broken JSON, on names that come twice or in another case, and on text that is not
//! UTF-8; all of that is unreadable. They agree on the rest: RFC 8259 without a byte order mark, with at
//! most [`MAX_DEPTH`] levels of nesting.

use memchr::memchr2;

use super::kept::{Kept, Share};
use super::{MAX_STEPS, Slot, State, Step, Values};

/// The deepest nesting that all readers accept. Ruby's limit is the lowest.
const MAX_DEPTH: usize = 100;

/// The longest number that is kept.
const MAX_NUMBER: usize = 64;

/// A set of wanted fields, one bit for each.
type Set = u64;

/// Reads one JSON value.
#[derive(Debug)]
pub(super) struct Json {
    expect: Expect,
    /// One bit for each open object (1) or array (0), the innermost in the lowest bit.
    objects: u128,
    depth: usize,
    /// The open objects and arrays that may have wanted fields, from the JSON value itself on.
    frames: [Frame; MAX_STEPS + 1],
    /// The wanted fields that the next value is, or may contain.
    next: Set,
    capture: Capture,
    /// The name or value that is being read.
    text: Kept,
    /// The name is longer than all wanted ones, and the rest of it is not kept.
    too_long: bool,
    /// The name has a control character.
    has_control: bool,
    utf8: Utf8,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    longest: usize,
    /// Whether nothing may follow the value.
    is_alone: bool,
}

/// An open object or array.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// The wanted fields in it.
    wanted: Set,
    /// The wanted fields whose name has come.
    seen: Set,
}

/// What may come next.
#[derive(Clone, Copy, Debug)]
enum Expect {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    NameOrEnd,
    Name,
    Colon,
    CommaOrEnd,
    /// The rest of a string.
    Text,
    /// After a backslash.
    Escape,
    /// After `\u`: the number of digits that have come, and their value.
    Hex(u8, u16),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    Number(Number),
    /// Nothing: the value has ended.
    Nothing,
}

/// The last part of a number that has come.
#[derive(Clone, Copy, Debug)]
enum Number {
    Minus,
    Zero,
    Digits,
    Dot,
    Fraction,
    E,
    ESign,
    Exponent,
}

/// What is done with the text that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capture {
    /// Only its syntax is checked.
    Nothing,
    Name,
    /// It is the value of the wanted field at this index.
    Value(usize),
    /// It is a name in an object without wanted fields.
    Skipped,
}

/// Readers differ on such a body.
#[derive(Debug)]
struct Broken;

impl Json {
    /// With `is_alone`, the application refuses a body in which something follows the value.
    pub(super) fn new(values: &Values, is_alone: bool) -> Self {
        let all = values.fields.iter().take(super::MAX_FIELDS).enumerate();
        let names =
            all.clone().flat_map(|(_, field)| field.steps()).filter_map(|step| match step {
                Step::Name(name) => Some(name.len()),
                Step::Each => None,
            });
        Self {
            expect: Expect::Value,
            objects: 0,
            depth: 0,
            frames: [Frame::default(); MAX_STEPS + 1],
            longest: names.max().unwrap_or(0),
            next: all.fold(0, |all, (i, _)| all | 1 << i),
            capture: Capture::Nothing,
            text: Kept::default(),
            too_long: false,
            has_control: false,
            utf8: Utf8::default(),
            high: None,
            is_alone,
        }
    }

    /// Reads a chunk of the body. Once `values` is read, further chunks change nothing.
    pub(super) fn push(&mut self, chunk: &[u8], values: &mut Values, share: &mut Share) {
        if values.is_read() {
            return;
        }
        match self.read(chunk, values, share) {
            Ok(()) if matches!(self.expect, Expect::Nothing) && !self.is_alone => {
                values.state = State::Read;
            }
            Ok(()) => {}
            Err(Broken) => values.give_up(),
        }
    }

    /// The body is complete.
    pub(super) fn finish(&mut self, values: &mut Values) {
        if values.is_read() {
            return;
        }
        if let (Expect::Number(number), 0) = (self.expect, self.depth)
            && self.end_number(number, values).is_ok()
        {
            values.state = State::Read;
            return;
        }
        // An empty body has no fields.
        if matches!(self.expect, Expect::Value | Expect::Nothing) && self.depth == 0 {
            values.state = State::Read;
        } else {
            values.give_up();
        }
    }

    fn read(
        &mut self,
        mut chunk: &[u8],
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Broken> {
        while let Some((&byte, rest)) = chunk.split_first() {
            match self.expect {
                Expect::Nothing if !self.is_alone => return Ok(()),
                Expect::Text => {
                    chunk = self.read_text(chunk, values, share)?;
                    continue;
                }
                Expect::Escape => self.escape(byte, values, share)?,
                Expect::Hex(digits, value) => self.hex(digits, value, byte, values, share)?,
                Expect::Word(word) => match word.split_first() {
                    Some((expected, left)) if *expected == byte => match left {
                        [] => self.end_value(),
                        _ => self.expect = Expect::Word(left),
                    },
                    _ => return Err(Broken),
                },
                Expect::Number(number) => match number.next(byte) {
                    Some(number) => {
                        self.keep_number(byte, values, share);
                        self.expect = Expect::Number(number);
                    }
                    None => {
                        self.end_number(number, values)?;
                        // The byte follows the number and is read on its own.
                        continue;
                    }
                },
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
                Expect::Nothing => return Err(Broken),
                Expect::Value => self.begin_value(byte, values, share)?,
                Expect::ValueOrEnd if byte == b']' => self.close(),
                Expect::ValueOrEnd => self.begin_value(byte, values, share)?,
                Expect::NameOrEnd if byte == b'}' => self.close(),
                Expect::NameOrEnd | Expect::Name if byte == b'"' => self.begin_name(),
                Expect::NameOrEnd | Expect::Name => return Err(Broken),
                Expect::Colon if byte == b':' => self.expect = Expect::Value,
                Expect::Colon => return Err(Broken),
                Expect::CommaOrEnd => match (byte, self.in_object()) {
                    (b',', true) => self.expect = Expect::Name,
                    (b',', false) => {
                        self.next = self.frame().wanted;
                        self.expect = Expect::Value;
                    }
                    (b'}', true) | (b']', false) => self.close(),
                    _ => return Err(Broken),
                },
            }
            chunk = rest;
        }
        Ok(())
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// The innermost open object or array; an empty frame below the depth of all wanted fields.
    fn frame(&self) -> Frame {
        self.frames.get(self.depth).copied().unwrap_or_default()
    }

    fn begin_value(
        &mut self,
        byte: u8,
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Broken> {
        self.capture = self.wanted_value(values).map_or(Capture::Nothing, Capture::Value);
        match byte {
            b'"' => {
                self.text.clear();
                self.expect = Expect::Text;
            }
            b'{' | b'[' => self.open(byte == b'{', values)?,
            b't' => self.word("true", values, share),
            b'f' => self.word("false", values, share),
            b'n' => self.expect = Expect::Word(b"ull"),
            b'-' | b'0'..=b'9' => {
                self.text.clear();
                self.keep_number(byte, values, share);
                self.expect = Expect::Number(match byte {
                    b'-' => Number::Minus,
                    b'0' => Number::Zero,
                    _ => Number::Digits,
                });
            }
            _ => return Err(Broken),
        }
        Ok(())
    }

    /// The index of the wanted field that the next value belongs to and that has no value yet. Of a list,
    /// the first element counts.
    fn wanted_value(&self, values: &Values) -> Option<usize> {
        let ends = |place: &usize| values.fields[*place].steps().len() == self.depth;
        let place = members(self.next).find(ends)?;
        matches!(values.slots[place], Slot::Absent).then_some(place)
    }

    fn word(&mut self, word: &'static str, values: &mut Values, share: &mut Share) {
        if let Capture::Value(place) = self.capture {
            let mut kept = Kept::default();
            values.slots[place] = match kept.push(word.as_bytes(), share) {
                Ok(()) => Slot::Scalar(kept),
                Err(_) => Slot::Unreadable,
            };
        }
        self.expect = Expect::Word(&word.as_bytes()[1..]);
    }

    fn open(&mut self, is_object: bool, values: &Values) -> Result<(), Broken> {
        if self.depth == MAX_DEPTH {
            return Err(Broken);
        }
        let on_the_way = |place: &usize| match values.fields[*place].steps().get(self.depth) {
            Some(Step::Name(_)) => is_object,
            Some(Step::Each) => !is_object,
            None => false,
        };
        let wanted = members(self.next).filter(on_the_way).fold(0, |set, i| set | 1 << i);
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(is_object);
        if let Some(frame) = self.frames.get_mut(self.depth) {
            *frame = Frame { wanted, seen: 0 };
        }
        self.next = wanted;
        self.expect = if is_object { Expect::NameOrEnd } else { Expect::ValueOrEnd };
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.end_value();
    }

    fn end_value(&mut self) {
        self.expect = if self.depth == 0 { Expect::Nothing } else { Expect::CommaOrEnd };
    }

    fn begin_name(&mut self) {
        self.text.clear();
        (self.too_long, self.has_control) = (false, false);
        self.capture = if self.frame().wanted == 0 { Capture::Skipped } else { Capture::Name };
        self.expect = Expect::Text;
    }

    /// Finds the fields that begin with the name that was read. A field is unreadable if its name comes
    /// twice, or if only some readers take the name for its own.
    fn end_name(&mut self, values: &mut Values) {
        self.next = 0;
        self.expect = Expect::Colon;
        if self.capture != Capture::Name {
            return;
        }
        let name = str::from_utf8(self.text.bytes()).unwrap_or_default();
        let step = self.depth - 1;
        let Some(frame) = self.frames.get_mut(self.depth) else { return };
        for place in members(frame.wanted) {
            let Some(Step::Name(own)) = values.fields[place].steps().get(step) else { continue };
            let is_own = !self.too_long && **own == *name;
            let is_twice = is_own && frame.seen & 1 << place != 0;
            // Some readers end a name at a NUL.
            if is_twice || self.has_control || !is_own && !self.too_long && is_alias(own, name) {
                values.slots[place] = Slot::Unreadable;
            }
            if is_own {
                self.next |= 1 << place;
            }
        }
        frame.seen |= self.next;
    }

    /// Reads a string up to its end or its next escape.
    fn read_text<'c>(
        &mut self,
        chunk: &'c [u8],
        values: &mut Values,
        share: &mut Share,
    ) -> Result<&'c [u8], Broken> {
        let end = memchr2(b'"', b'\\', chunk).unwrap_or(chunk.len());
        let (run, rest) = chunk.split_at(end);
        if !run.is_empty() {
            if self.high.is_some() || run.iter().fold(false, |any, b| any | (*b < b' ')) {
                return Err(Broken);
            }
            self.utf8.push(run)?;
            self.keep(run, values, share);
        }
        let Some((byte, rest)) = rest.split_first() else { return Ok(rest) };
        self.utf8.end()?;
        if *byte == b'\\' {
            self.expect = Expect::Escape;
            return Ok(rest);
        }
        if self.high.is_some() {
            return Err(Broken);
        }
        match self.capture {
            Capture::Name | Capture::Skipped => self.end_name(values),
            Capture::Value(place) => {
                if matches!(values.slots[place], Slot::Absent) {
                    values.slots[place] = Slot::Text(std::mem::take(&mut self.text));
                }
                self.end_value();
            }
            Capture::Nothing => self.end_value(),
        }
        Ok(rest)
    }

    fn escape(&mut self, byte: u8, values: &mut Values, share: &mut Share) -> Result<(), Broken> {
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.expect = Expect::Hex(0, 0);
                return Ok(());
            }
            _ => return Err(Broken),
        };
        if self.high.is_some() {
            return Err(Broken);
        }
        self.keep(&[plain], values, share);
        self.expect = Expect::Text;
        Ok(())
    }

    fn hex(
        &mut self,
        digits: u8,
        value: u16,
        byte: u8,
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Broken> {
        let digit = char::from(byte).to_digit(16).ok_or(Broken)?;
        let value = value << 4 | digit as u16;
        if digits < 3 {
            self.expect = Expect::Hex(digits + 1, value);
            return Ok(());
        }
        self.expect = Expect::Text;
        let char = match (self.high.take(), value) {
            (None, 0xd800..=0xdbff) => {
                self.high = Some(value);
                return Ok(());
            }
            (None, _) => char::from_u32(value.into()),
            (Some(high), 0xdc00..=0xdfff) => {
                let (high, low) = (u32::from(high) - 0xd800, u32::from(value) - 0xdc00);
                char::from_u32(0x10000 + (high << 10 | low))
            }
            (Some(_), _) => None,
        };
        let mut utf8 = [0; 4];
        let text = char.ok_or(Broken)?.encode_utf8(&mut utf8);
        self.keep(text.as_bytes(), values, share);
        Ok(())
    }

    /// Keeps a piece of the name or value.
    fn keep(&mut self, bytes: &[u8], values: &mut Values, share: &mut Share) {
        match self.capture {
            Capture::Name => {
                self.has_control |= bytes.iter().any(u8::is_ascii_control);
                // In another case, a letter may need up to three times as many bytes.
                self.too_long = self.too_long
                    || self.text.bytes().len() + bytes.len() > 3 * self.longest
                    || self.text.push(bytes, share).is_err();
            }
            Capture::Value(place) => {
                if self.text.push(bytes, share).is_err() {
                    self.text.release(share);
                    values.slots[place] = Slot::Unreadable;
                    self.capture = Capture::Nothing;
                }
            }
            Capture::Nothing | Capture::Skipped => {}
        }
    }

    fn keep_number(&mut self, byte: u8, values: &mut Values, share: &mut Share) {
        if self.text.bytes().len() == MAX_NUMBER
            && let Capture::Value(place) = self.capture
        {
            values.slots[place] = Slot::Unreadable;
            self.capture = Capture::Nothing;
        }
        self.keep(&[byte], values, share);
    }

    fn end_number(&mut self, number: Number, values: &mut Values) -> Result<(), Broken> {
        if !matches!(number, Number::Zero | Number::Digits | Number::Fraction | Number::Exponent) {
            return Err(Broken);
        }
        if let Capture::Value(place) = self.capture {
            values.slots[place] = Slot::Scalar(std::mem::take(&mut self.text));
        }
        self.end_value();
        Ok(())
    }
}

impl Number {
    /// The state after one more byte; `None` if the byte does not belong to the number.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus | Self::Digits, b'0'..=b'9') => Self::Digits,
            (Self::Zero | Self::Digits, b'.') => Self::Dot,
            (Self::Dot | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Self::E,
            (Self::E, b'+' | b'-') => Self::ESign,
            (Self::E | Self::ESign | Self::Exponent, b'0'..=b'9') => Self::Exponent,
            _ => return None,
        })
    }
}

/// The indexes in a set, in ascending order.
fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(place)
    })
}

/// Whether some readers take a different `name` for `own`: Go ignores case, and others also ignore which
/// sign is between letters and digits.
fn is_alias(own: &str, name: &str) -> bool {
    fn folded(name: &str) -> impl Iterator<Item = char> {
        let fold = |c: char| match c {
            // Go takes these for `s` and `k`.
            '\u{17f}' => 's',
            c if c.is_alphanumeric() => c,
            _ => '_',
        };
        name.chars().flat_map(char::to_lowercase).map(fold)
    }
    folded(own).eq(folded(name))
}

/// Validates UTF-8 that comes in pieces.
#[derive(Debug, Default)]
struct Utf8 {
    /// The first bytes of an unfinished character.
    begun: [u8; 4],
    len: usize,
}

impl Utf8 {
    fn push(&mut self, mut text: &[u8]) -> Result<(), Broken> {
        while self.len > 0 {
            let Some((byte, rest)) = text.split_first() else { return Ok(()) };
            self.begun[self.len] = *byte;
            self.len += 1;
            text = rest;
            match str::from_utf8(&self.begun[..self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Broken),
            }
        }
        let Err(error) = str::from_utf8(text) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(Broken);
        }
        let begun = &text[error.valid_up_to()..];
        self.begun[..begun.len()].copy_from_slice(begun);
        self.len = begun.len();
        Ok(())
    }

    fn end(&self) -> Result<(), Broken> {
        if self.len == 0 { Ok(()) } else { Err(Broken) }
    }
}
