//! Blocks with parameters of their own, like `tirreno_target { … }`: a table names each parameter, the
//! arguments that it takes, and what they set.

use core::ffi::{c_char, c_void};
use core::fmt;
use core::ops::RangeInclusive;
use core::ptr;
use std::time::Duration;

use nginx_sys::{ngx_command_t, ngx_conf_include, ngx_conf_parse, ngx_conf_t, ngx_str_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use tirreno_pipeline::capture::rule::Place;

use super::ext::{ConfExt, parse_size, parse_time_ms};
use crate::guarded;

/// What a block says, while it is read.
pub(crate) trait Block: Sized + 'static {
    /// The directive's name.
    const NAME: &'static str;

    /// The row of a parameter, and which of the tables has it.
    fn find(name: &str) -> Option<(usize, &'static Parameter<Self>)> {
        let mut tables = Self::tables().iter().enumerate();
        tables.find_map(|(i, table)| Some((i, table.iter().find(|row| row.name == name)?)))
    }

    /// The tables of parameters. No name is in two of them.
    fn tables() -> &'static [&'static [Parameter<Self>]];

    /// Refuses what no parameter of the block takes.
    ///
    /// # Errors
    /// What is wrong.
    fn check(_setting: &Setting<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// A parameter of the block `B`.
pub(crate) struct Parameter<B> {
    name: &'static str,
    arguments: RangeInclusive<usize>,
    may_repeat: bool,
    set: Setter<B>,
}

type Setter<B> = fn(&mut B, &mut Setting<'_>) -> Result<(), String>;

impl<B> Parameter<B> {
    /// One with one argument.
    pub(crate) const fn one(name: &'static str, set: Setter<B>) -> Self {
        Self::of(name, 1..=1, set)
    }

    /// One with so many arguments.
    pub(crate) const fn of(
        name: &'static str,
        arguments: RangeInclusive<usize>,
        set: Setter<B>,
    ) -> Self {
        Self { name, arguments, may_repeat: false, set }
    }

    /// It may stand in a block more than once.
    pub(crate) const fn repeated(self) -> Self {
        Self { may_repeat: true, ..self }
    }
}

/// A parameter with its arguments, as a block has it.
pub(crate) struct Setting<'a> {
    /// Where it is read.
    pub(crate) cf: &'a mut ngx_conf_t,
    /// The parameter's name.
    pub(crate) name: &'static str,
    /// Its arguments, at least one.
    pub(crate) args: &'a [ngx_str_t],
}

/// What was set in a block, and where.
pub(crate) struct Seen {
    /// The parameter's name.
    pub(crate) name: &'static str,
    /// The place of its table among the block's.
    pub(crate) table: usize,
    /// Where it stands.
    pub(crate) place: Place,
}

struct Reader<'b, B> {
    block: &'b mut B,
    seen: Vec<Seen>,
}

/// Reads the block that follows into `block`; returns what was set.
///
/// # Errors
/// What nginx returns for it, when it has said what is wrong.
pub(crate) fn read<B: Block>(cf: &mut ngx_conf_t, block: &mut B) -> Result<Vec<Seen>, *mut c_char> {
    let mut reader = Reader { block, seen: Vec::new() };
    let mut inner = *cf;
    inner.handler = Some(parameter::<B>);
    inner.handler_conf = ptr::addr_of_mut!(reader).cast();
    // SAFETY: `inner` is a copy of a valid context, as nginx's own block directives make it.
    let rc = unsafe { ngx_conf_parse(&mut inner, ptr::null_mut()) };
    if rc == NGX_CONF_OK { Ok(reader.seen) } else { Err(rc) }
}

extern "C" fn parameter<B: Block>(
    cf: *mut ngx_conf_t,
    cmd: *mut ngx_command_t,
    reader: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes the context that `read` made.
        let cf = unsafe { &mut *cf };
        let args = cf.args();
        if let [name, _] = args
            && name.as_bytes() == b"include"
        {
            // SAFETY: as in nginx's own blocks with a handler; it comes back here.
            return unsafe { ngx_conf_include(cf, cmd, reader) };
        }
        // SAFETY: the reader that `read` put into the context.
        let reader = unsafe { &mut *reader.cast::<Reader<'_, B>>() };
        match reader.set(cf, &args[0].to_string(), &args[1..]) {
            Ok(()) => NGX_CONF_OK,
            Err(message) => cf.error(message),
        }
    })
}

impl<B: Block> Reader<'_, B> {
    fn set(&mut self, cf: &mut ngx_conf_t, name: &str, args: &[ngx_str_t]) -> Result<(), String> {
        let invalid_number = || format!("invalid number of arguments in \"{name}\" directive");
        let Some((table, row)) = B::find(name) else {
            return Err(match name {
                "include" => invalid_number(),
                _ => format!("unknown directive \"{name}\" in \"{}\"", B::NAME),
            });
        };
        if args.is_empty() || !row.arguments.contains(&args.len()) {
            return Err(invalid_number());
        }
        if !row.may_repeat && self.seen.iter().any(|seen| seen.name == row.name) {
            return Err(format!("\"{name}\" directive is duplicate"));
        }
        self.seen.push(Seen { name: row.name, table, place: cf.place() });
        let mut setting = Setting { cf, name: row.name, args };
        B::check(&setting)?;
        (row.set)(self.block, &mut setting)
    }
}

/// Takes a value over, if it is one.
pub(crate) fn put<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

impl Setting<'_> {
    /// The first argument.
    pub(crate) fn text(&self) -> ngx_str_t {
        self.args[0]
    }

    /// What the error says of the first argument.
    pub(crate) fn invalid(&self, must: impl fmt::Display) -> String {
        let (name, text) = (self.name, self.text());
        format!("invalid value \"{text}\" in \"{name}\" directive, it must be {must}")
    }

    /// What the first argument is among `values`; `must` names them.
    pub(crate) fn one_of<T: Copy>(&self, values: &[(&str, T)], must: &str) -> Result<T, String> {
        let text = self.text();
        let found = values.iter().find(|(name, _)| name.as_bytes() == text.as_bytes());
        found.map(|(_, value)| *value).ok_or_else(|| self.invalid(must))
    }

    /// A time of at least so many milliseconds.
    pub(crate) fn time(&self, least: u64) -> Result<Duration, String> {
        let ms = parse_time_ms(self.text()).filter(|ms| *ms >= least);
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
        let ms = parse_time_ms(self.text()).filter(|ms| self.has_unit() && *ms > 0);
        ms.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(|| self.invalid(must))
    }

    /// A size with its unit, or `off`.
    pub(crate) fn size_or_off(&self) -> Result<Option<u64>, String> {
        let must = "a size with a unit, \"k\", \"m\" or \"g\", like \"100m\", or \"off\"";
        if self.is_off() {
            return Ok(None);
        }
        let size = parse_size(self.text()).filter(|size| self.has_unit() && *size > 0);
        size.map(|size| Some(size as u64)).ok_or_else(|| self.invalid(must))
    }

    fn is_off(&self) -> bool {
        self.text().as_bytes() == b"off"
    }

    fn has_unit(&self) -> bool {
        self.text().as_bytes().last().is_some_and(u8::is_ascii_alphabetic)
    }

    /// A number from 1 on.
    pub(crate) fn count(&self, most: usize) -> Result<usize, String> {
        let count = self.text().to_str().ok().and_then(|text| text.parse().ok());
        count
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| self.invalid(format_args!("a number from 1 to {most}")))
    }

    /// `on` or `off`.
    pub(crate) fn flag(&self) -> Result<bool, String> {
        self.one_of(&[("on", true), ("off", false)], "\"on\" or \"off\"")
    }

    /// A number of requests per second or minute, as for `limit_req_zone`, in requests per second.
    pub(crate) fn rate(&self) -> Option<f64> {
        let text = self.text().to_string();
        let (number, seconds) = match text.strip_suffix("r/s") {
            Some(number) => (number, 1.0),
            None => (text.strip_suffix("r/m")?, 60.0),
        };
        let number: u32 = number.parse().ok().filter(|n| *n > 0)?;
        Some(f64::from(number) / seconds)
    }
}
