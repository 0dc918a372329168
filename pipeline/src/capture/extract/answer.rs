//! Reads an answer: fields of its JSON, and whether it contains texts.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::json::Json;
use super::kept::{Room, Share};
use super::text::Search;
use super::{Found, MAX_SCANNED, Reads, State, Values};

/// The memory for decompressing gzip, in bytes: the window and the tables of one stream, and one buffer.
const GZIP_ROOM: usize = 80 << 10;

/// The header `Content-Encoding` of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// None, or `identity`.
    Plain,
    /// `gzip` or `x-gzip`.
    Gzip,
    /// Any other: the answer is unreadable.
    Other,
}

impl Encoding {
    /// Parses the header's value, which is empty without a header.
    pub fn parse(value: &[u8]) -> Self {
        match value.trim_ascii() {
            b"" => Self::Plain,
            value if value.eq_ignore_ascii_case(b"identity") => Self::Plain,
            value if value.eq_ignore_ascii_case(b"gzip") => Self::Gzip,
            value if value.eq_ignore_ascii_case(b"x-gzip") => Self::Gzip,
            _ => Self::Other,
        }
    }
}

/// Reads an answer in chunks of any size.
#[derive(Debug)]
pub struct AnswerReader {
    decoder: Decoder,
    state: State,
}

#[derive(Debug)]
enum Decoder {
    Plain(Plain),
    Gzip(Box<MultiGzDecoder<Sink>>),
    /// The answer is unreadable.
    Nothing,
}

/// Reads an answer that is not compressed.
#[derive(Debug)]
struct Plain {
    json: Option<Box<Json>>,
    // Declared before the share, because fields are dropped in this order and the values' room belongs to
    // the share.
    values: Values,
    texts: Vec<Search>,
    scanned: usize,
    share: Share,
}

impl AnswerReader {
    /// A reader for the parts of the answer in `reads`. Without room for a reader, the answer is
    /// unreadable.
    pub fn new(reads: &Reads, encoding: Encoding, room: &Room) -> Self {
        let mut share = room.share();
        let texts: Vec<_> = reads.texts.iter().map(Search::new).collect();
        let fields = reads.answer.as_ref();
        let values = fields.map(Values::new).unwrap_or_default();
        let json = fields.map(|_| Box::new(Json::new(&values, false)));
        let own = size_of::<Self>()
            + json.as_ref().map_or(0, |_| size_of::<Json>())
            + texts.iter().map(Search::room).sum::<usize>();
        let gzip = if encoding == Encoding::Gzip { GZIP_ROOM } else { 0 };
        if encoding == Encoding::Other || !share.take(own + gzip) {
            return Self { decoder: Decoder::Nothing, state: State::Unreadable };
        }
        let plain = Plain { json, values, texts, scanned: 0, share };
        let decoder = match encoding {
            Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(Sink(Some(plain))))),
            _ => Decoder::Plain(plain),
        };
        Self { decoder, state: State::Reading }
    }

    /// Reads a chunk of the answer.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.state != State::Reading || self.plain().is_none_or(Plain::is_done) {
            return;
        }
        let pushed = match &mut self.decoder {
            Decoder::Plain(plain) => plain.push(chunk),
            Decoder::Gzip(gzip) => gzip.write_all(chunk).map_err(|_| Stop),
            Decoder::Nothing => Ok(()),
        };
        // The answer may be malformed after the wanted parts.
        if pushed.is_err() && !self.plain().is_some_and(Plain::is_done) {
            self.give_up();
        }
    }

    /// Makes the answer unreadable, because it is cut off, or is only a part.
    pub fn give_up(&mut self) {
        self.decoder = Decoder::Nothing;
        self.state = State::Unreadable;
    }

    /// The answer is complete.
    pub fn finish(&mut self) {
        if self.state != State::Reading {
            return;
        }
        if let Decoder::Gzip(gzip) = &mut self.decoder {
            let is_done = |sink: &Sink| sink.0.as_ref().is_some_and(Plain::is_done);
            let is_sound =
                is_done(gzip.get_ref()) || gzip.try_finish().is_ok() || is_done(gzip.get_ref());
            match gzip.get_mut().0.take().filter(|_| is_sound) {
                Some(plain) => self.decoder = Decoder::Plain(plain),
                None => return self.give_up(),
            }
        }
        if let Decoder::Plain(plain) = &mut self.decoder {
            plain.finish();
        }
        self.state = State::Read;
    }

    /// Whether the answer is complete, or known to be unreadable.
    pub fn is_read(&self) -> bool {
        self.state != State::Reading
    }

    /// The value of the field; JSON numbers and booleans as they are written. `Unread` if the field is not
    /// wanted.
    pub fn get(&self, field: &str) -> Found<'_> {
        match (self.state, self.plain()) {
            (State::Reading, _) => Found::Unread,
            (State::Read, Some(plain)) => plain.values.get(field),
            _ => Found::Unreadable,
        }
    }

    /// Whether the text is in the first [`MAX_TEXT_SCANNED`](super::MAX_TEXT_SCANNED) bytes. `None` if the
    /// answer is unreadable or incomplete, or if the text is not wanted.
    pub fn has(&self, text: &[u8]) -> Option<bool> {
        let plain = self.plain().filter(|_| self.state == State::Read)?;
        plain.texts.iter().find(|own| own.text().bytes() == text).map(Search::found)
    }

    fn plain(&self) -> Option<&Plain> {
        match &self.decoder {
            Decoder::Plain(plain) => Some(plain),
            Decoder::Gzip(gzip) => gzip.get_ref().0.as_ref(),
            Decoder::Nothing => None,
        }
    }
}

/// Ends reading, because no more is wanted.
#[derive(Debug)]
struct Stop;

impl Plain {
    fn push(&mut self, chunk: &[u8]) -> Result<(), Stop> {
        let within = &chunk[..chunk.len().min(MAX_SCANNED - self.scanned)];
        self.scanned += within.len();
        if let Some(json) = &mut self.json {
            json.push(within, &mut self.values, &mut self.share);
            if self.scanned == MAX_SCANNED && !self.values.is_read() {
                self.values.give_up();
            }
        }
        self.texts.iter_mut().for_each(|text| text.push(within));
        if self.is_done() { Err(Stop) } else { Ok(()) }
    }

    fn finish(&mut self) {
        if let Some(json) = &mut self.json {
            json.finish(&mut self.values);
        }
        self.json = None;
    }

    /// Whether the rest of the answer changes nothing.
    fn is_done(&self) -> bool {
        (self.json.is_none() || self.values.is_read()) && self.texts.iter().all(Search::is_done)
    }
}

/// The destination of decompressed bytes.
#[derive(Debug)]
struct Sink(Option<Plain>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.as_mut().map(|plain| plain.push(bytes)) {
            Some(Ok(())) => Ok(bytes.len()),
            // Ends decompressing, however much more there is.
            _ => Err(io::ErrorKind::Other.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
