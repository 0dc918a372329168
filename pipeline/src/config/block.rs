//! Blocks with parameters of their own, like `tirreno_target { … }`: a table names each parameter, the
//! arguments that it takes, and what they set.

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::capture::rule::Place;
use crate::config::file::ConfigFile;
use crate::text::readable;

/// A block while it is read.
pub trait Block: Sized {
    /// The directive's name.
    const NAME: &'static str;
    /// What the block configures.
    type Config;

    /// An empty block of that name.
    ///
    /// # Errors
    /// What is wrong with the name.
    fn new(name: &str) -> Result<Self, String>;

    /// The tables of its parameters. No name is in two of them.
    fn tables(&mut self) -> Vec<Table<'_>>;

    /// Refuses what no parameter of the block takes.
    ///
    /// # Errors
    /// What is wrong.
    fn check(_setting: &Setting<'_>) -> Result<(), String> {
        Ok(())
    }

    /// What the whole block, which stands in `place` and sets `seen`, says.
    ///
    /// # Errors
    /// What is wrong, or missing.
    fn finish(
        self,
        place: &Place,
        seen: &[Seen],
        file: &mut dyn ConfigFile,
    ) -> Result<Self::Config, BlockError>;
}

/// What is wrong with a block, and where.
#[derive(Debug)]
pub struct BlockError {
    /// The place that the message is about.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

/// A parameter that sets something in `D`.
pub(crate) struct Parameter<D> {
    syntax: Syntax,
    set: Setter<D>,
}

type Setter<D> = fn(&mut D, &mut Setting<'_>) -> Result<(), String>;

/// How a parameter is written.
struct Syntax {
    name: &'static str,
    arguments: RangeInclusive<usize>,
    may_repeat: bool,
}

impl<D> Parameter<D> {
    /// One with one argument.
    pub(crate) const fn one(name: &'static str, set: Setter<D>) -> Self {
        Self::of(name, 1..=1, set)
    }

    /// One with so many arguments.
    pub(crate) const fn of(
        name: &'static str,
        arguments: RangeInclusive<usize>,
        set: Setter<D>,
    ) -> Self {
        Self { syntax: Syntax { name, arguments, may_repeat: false }, set }
    }

    /// It may stand in a block more than once.
    pub(crate) const fn repeated(self) -> Self {
        Self { syntax: Syntax { may_repeat: true, ..self.syntax }, ..self }
    }
}

/// A table of parameters, and the draft that they set.
pub struct Table<'d> {
    kinds: u8,
    rows: Vec<&'static Syntax>,
    set: SetRow<'d>,
}

/// Sets what the row of that number says.
type SetRow<'d> = Box<dyn FnMut(usize, &mut Setting<'_>) -> Result<(), String> + 'd>;

impl<'d> Table<'d> {
    /// The parameters of blocks of these kinds; each bit is a kind.
    pub(crate) fn new<D>(kinds: u8, rows: &'static [Parameter<D>], draft: &'d mut D) -> Self {
        Self {
            kinds,
            rows: rows.iter().map(|row| &row.syntax).collect(),
            set: Box::new(move |row, setting| (rows[row].set)(draft, setting)),
        }
    }
}

/// A parameter with its arguments, as a block has it.
pub struct Setting<'a> {
    /// Where it is read.
    pub(crate) file: &'a mut dyn ConfigFile,
    /// The parameter's name.
    pub(crate) name: &'static str,
    /// Its arguments, at least one.
    pub(crate) args: &'a [&'a [u8]],
}

/// What was set in a block, and where.
#[derive(Debug)]
pub struct Seen {
    /// The parameter's name.
    pub(crate) name: &'static str,
    /// The kinds of blocks that it belongs to.
    pub(crate) kinds: u8,
    /// Where it stands.
    pub(crate) place: Place,
}

/// Reads a block, one parameter after another.
#[derive(Debug)]
pub struct Reader<B> {
    block: B,
    place: Place,
    seen: Vec<Seen>,
}

impl<B: Block> Reader<B> {
    /// For the block of that name, which begins in this place of the file.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn new(file: &dyn ConfigFile, name: &str) -> Result<Self, String> {
        Ok(Self { block: B::new(name)?, place: file.place(), seen: Vec::new() })
    }

    /// Reads the parameter of that name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set(
        &mut self,
        file: &mut dyn ConfigFile,
        name: &[u8],
        args: &[&[u8]],
    ) -> Result<(), String> {
        let written = readable(name);
        let invalid_number = || format!("invalid number of arguments in \"{written}\" directive");
        let mut tables = self.block.tables();
        let row_of = |table: &Table<'_>| table.rows.iter().position(|row| row.name == written);
        let found = tables.iter_mut().find_map(|table| Some((row_of(table)?, table)));
        let Some((row, Table { kinds, rows, set })) = found else {
            return Err(match name {
                b"include" => invalid_number(),
                _ => format!("unknown directive \"{written}\" in \"{}\"", B::NAME),
            });
        };
        let Syntax { name, arguments, may_repeat } = rows[row];
        if args.is_empty() || !arguments.contains(&args.len()) {
            return Err(invalid_number());
        }
        if !may_repeat && self.seen.iter().any(|seen| seen.name == *name) {
            return Err(format!("\"{name}\" directive is duplicate"));
        }
        self.seen.push(Seen { name, kinds: *kinds, place: file.place() });
        let mut setting = Setting { file, name, args };
        B::check(&setting)?;
        set(row, &mut setting)
    }

    /// What the block says, once its end is read.
    ///
    /// # Errors
    /// What is wrong, or missing.
    pub fn finish(self, file: &mut dyn ConfigFile) -> Result<B::Config, BlockError> {
        self.block.finish(&self.place, &self.seen, file)
    }
}

/// Takes a value over, if it is one.
pub(crate) fn put<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

/// A time above 0, for which nginx's own directives in seconds also take months and years.
pub(crate) fn parse_age(file: &dyn ConfigFile, text: &[u8]) -> Option<Duration> {
    let seconds = file.parse_time_s(text).map(Duration::from_secs);
    let age = seconds.or_else(|| file.parse_time_ms(text).map(Duration::from_millis));
    age.filter(|age| !age.is_zero())
}

impl Setting<'_> {
    /// The first argument.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.args[0]
    }

    /// The first argument as text.
    pub(crate) fn text(&self) -> String {
        readable(self.bytes())
    }

    /// What the error says of the first argument.
    pub(crate) fn invalid(&self, must: impl fmt::Display) -> String {
        let (name, text) = (self.name, self.text());
        format!("invalid value \"{text}\" in \"{name}\" directive, it must be {must}")
    }

    /// What the first argument is among `values`; `must` names them.
    pub(crate) fn one_of<T: Copy>(&self, values: &[(&str, T)], must: &str) -> Result<T, String> {
        let found = values.iter().find(|(name, _)| name.as_bytes() == self.bytes());
        found.map(|(_, value)| *value).ok_or_else(|| self.invalid(must))
    }

    /// A time of at least so many milliseconds.
    pub(crate) fn time(&self, least: u64) -> Result<Duration, String> {
        let ms = self.file.parse_time_ms(self.bytes()).filter(|ms| *ms >= least);
        ms.map(Duration::from_millis).ok_or_else(|| match least {
            0 => self.invalid("a time like \"1s\" or \"500ms\""),
            _ => self.invalid("a time above 0 like \"1s\" or \"500ms\""),
        })
    }

    /// A time with its unit, or `off`.
    pub(crate) fn age_or_off(&self) -> Result<Option<Duration>, String> {
        let must = "a time with a unit, \"s\", \"m\", \"h\", \"d\", \"w\", \"M\" or \"y\", like \"1d\", \
                    or \"off\"";
        if self.is_off() {
            return Ok(None);
        }
        let age = parse_age(self.file, self.bytes()).filter(|_| self.has_unit());
        age.map(Some).ok_or_else(|| self.invalid(must))
    }

    /// A size with its unit, or `off`.
    pub(crate) fn size_or_off(&self) -> Result<Option<u64>, String> {
        let must = "a size with a unit, \"k\", \"m\" or \"g\", like \"100m\", or \"off\"";
        if self.is_off() {
            return Ok(None);
        }
        let size = self.file.parse_size(self.bytes()).filter(|size| self.has_unit() && *size > 0);
        size.map(|size| Some(size as u64)).ok_or_else(|| self.invalid(must))
    }

    fn is_off(&self) -> bool {
        self.bytes() == b"off"
    }

    fn has_unit(&self) -> bool {
        self.bytes().last().is_some_and(u8::is_ascii_alphabetic)
    }

    /// A number from 1 on.
    pub(crate) fn count(&self, most: usize) -> Result<usize, String> {
        let count = self.text().parse().ok().filter(|n| (1..=most).contains(n));
        count.ok_or_else(|| self.invalid(format_args!("a number from 1 to {most}")))
    }

    /// `on` or `off`.
    pub(crate) fn flag(&self) -> Result<bool, String> {
        self.one_of(&[("on", true), ("off", false)], "\"on\" or \"off\"")
    }

    /// A number of requests per second or minute, as for `limit_req_zone`, in requests per second.
    pub(crate) fn rate(&self) -> Option<f64> {
        let text = self.text();
        let (number, seconds) = match text.strip_suffix("r/s") {
            Some(number) => (number, 1.0),
            None => (text.strip_suffix("r/m")?, 60.0),
        };
        let number: u32 = number.parse().ok().filter(|n| *n > 0)?;
        Some(f64::from(number) / seconds)
    }
}
