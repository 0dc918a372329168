//! The format `plain`: a readable line, `2021-12-04T23:19:32.051Z audit-api login success event=login …`.

use std::fmt::Write as _;

use super::entry::{Entry, Outcome};
use super::{Mistake, escape, flag, is_unseen, json};

/// The format's options.
#[derive(Clone, Debug)]
pub(super) struct Options {
    parts: json::Options,
    delim: String,
    min_level_len: usize,
    min_msg_len: usize,
    /// The end of a record.
    pub(super) line_end: String,
    enable_color: bool,
}

/// The names of the options that only `plain` has.
pub(super) const OPTIONS: [&str; 5] =
    ["delim", "min_level_len", "min_msg_len", "line_end", "enable_color"];

impl Default for Options {
    fn default() -> Self {
        Self {
            parts: json::Options::default(),
            delim: " ".into(),
            min_level_len: 0,
            min_msg_len: 0,
            line_end: "\n".into(),
            enable_color: false,
        }
    }
}

/// The maximum of `min_level_len` and `min_msg_len`.
const MAX_LEN: usize = 200;

fn length(value: &str) -> Result<usize, Mistake> {
    let length = value.parse().ok().filter(|length| *length <= MAX_LEN);
    length.ok_or_else(|| Mistake::MustBe(format!("a number from 0 to {MAX_LEN}")))
}

impl Options {
    pub(super) fn set(&mut self, option: &str, value: &str) -> Result<(), Mistake> {
        match option {
            "delim" => {
                let parts = |c: char| {
                    c == '\t' || !c.is_alphanumeric() && !"\"\\=".contains(c) && !is_unseen(c)
                };
                if value.is_empty() || !value.chars().all(parts) {
                    return Err("spaces, tabs or signs like \"|\", without \", \\ and =".into());
                }
                self.delim = value.to_owned();
            }
            "min_level_len" => self.min_level_len = length(value)?,
            "min_msg_len" => self.min_msg_len = length(value)?,
            "line_end" => {
                // No value contains a newline, so no value can contain a line end that ends with one.
                if !value.ends_with('\n') {
                    return Err("a text with a newline at its end, like \"\\r\\n\"".into());
                }
                self.line_end = value.to_owned();
            }
            "enable_color" => self.enable_color = flag(value)?,
            _ => return self.parts.set(option, value),
        }
        Ok(())
    }

    pub(super) fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        let parts = &self.parts;
        let mut line = String::with_capacity(512);
        if !parts.disable_timestamp {
            line += &parts.timestamp_format.write(entry.time);
            line += &self.delim;
        }
        if !parts.disable_level {
            self.level(entry, &mut line);
            line += &self.delim;
        }
        if !parts.disable_msg {
            let width = self.min_msg_len;
            // Writing to a String does not fail.
            let _ = write!(line, "{:width$}{}", entry.message(), self.delim);
        }
        if !parts.disable_fields {
            for (name, value) in entry.fields() {
                line += &name;
                line.push('=');
                self.quote(&value.into_text(), &mut line);
                line += &self.delim;
            }
        }
        let line = line.strip_suffix(&self.delim).unwrap_or(&line);
        out.extend_from_slice(line.as_bytes());
    }

    fn level(&self, entry: &Entry<'_>, line: &mut String) {
        let (name, width) = (entry.level.name(), self.min_level_len);
        let color = match entry.outcome {
            Outcome::Success => 32,
            Outcome::Attempt => 33,
            Outcome::Fail => 31,
        };
        let _ = if self.enable_color {
            write!(line, "\x1b[{color}m{name:width$}\x1b[0m")
        } else {
            write!(line, "{name:width$}")
        };
    }

    /// Appends a value, in quotes unless it is a plain word.
    fn quote(&self, value: &str, line: &mut String) {
        let sets_off = |c: char| {
            c.is_whitespace() || "\"\\=".contains(c) || self.delim.contains(c) || is_unseen(c)
        };
        if !value.is_empty() && !value.contains(sets_off) {
            return line.push_str(value);
        }
        line.push('"');
        for char in value.chars() {
            match char {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                _ if is_unseen(char) => {
                    let _ = escape(char, line);
                }
                _ => line.push(char),
            }
        }
        line.push('"');
    }
}
