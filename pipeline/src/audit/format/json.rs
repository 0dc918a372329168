//! The format `json`, and the JSON writer of all formats.

use std::io;

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use super::entry::Entry;
use super::{Mistake, TimeFormat, escape, flag, is_unseen};

/// Appends a value to `out`, as JSON in one line.
pub(super) fn write(value: &impl Serialize, out: &mut Vec<u8>) {
    // Texts, numbers and maps of them can always be serialized, and writing to a Vec does not fail.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(out, Escaping));
}

/// Also escapes characters that JSON allows but that control a terminal, or end a line for some readers.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Most fragments are printable ASCII, and this check is faster.
        if fragment.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some(at) = rest.find(is_unseen) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut chars = rest[at..].chars();
            let mut escaped = String::new();
            if let Some(char) = chars.next() {
                escape(char, &mut escaped).map_err(io::Error::other)?;
            }
            writer.write_all(escaped.as_bytes())?;
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// The format's options; `plain` has them, too.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) disable_timestamp: bool,
    pub(super) disable_level: bool,
    pub(super) disable_msg: bool,
    pub(super) disable_fields: bool,
    pub(super) timestamp_format: TimeFormat,
}

/// The names of the options.
pub(super) const OPTIONS: [&str; 5] =
    ["disable_timestamp", "disable_level", "disable_msg", "disable_fields", "timestamp_format"];

impl Options {
    pub(super) fn set(&mut self, option: &str, value: &str) -> Result<(), Mistake> {
        match option {
            "disable_timestamp" => self.disable_timestamp = flag(value)?,
            "disable_level" => self.disable_level = flag(value)?,
            "disable_msg" => self.disable_msg = flag(value)?,
            "disable_fields" => self.disable_fields = flag(value)?,
            "timestamp_format" => self.timestamp_format = TimeFormat::parse(value)?,
            _ => return Err(Mistake::Unknown),
        }
        Ok(())
    }

    /// The record as one flat object.
    pub(super) fn record<'a>(&'a self, entry: &'a Entry<'a>) -> Flat<'a> {
        Flat { options: self, entry }
    }
}

pub(super) struct Flat<'a> {
    options: &'a Options,
    entry: &'a Entry<'a>,
}

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { options, entry } = self;
        let time = || options.timestamp_format.write(entry.time);
        let head = [
            (!options.disable_timestamp).then(|| ("timestamp".into(), time().into())),
            (!options.disable_level).then(|| ("level".into(), entry.level.name().into())),
            (!options.disable_msg).then(|| ("msg".into(), entry.message().into())),
        ];
        let fields = if options.disable_fields { Vec::new() } else { entry.fields() };
        serializer.collect_map(head.into_iter().flatten().chain(fields))
    }
}
