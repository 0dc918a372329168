//! `tirreno_event` and values, compiled by nginx.
//!
//! A directive in an included file is read once, however many servers include the file; equal rules and equal
//! rule sets are shared.

use std::collections::HashMap;
use std::rc::Rc;

use nginx_sys::{ngx_conf_t, ngx_str_t};
use tirreno_pipeline::capture::rule::{self, Place};
use tirreno_pipeline::capture::rules::Rules;
use tirreno_pipeline::capture::value::{self, Purpose, ValueError};

use super::ext::ConfExt;
use super::value::ComplexValue;

/// A value of a directive or rule.
pub(crate) type Value = value::Value<ComplexValue>;
/// A rule with its pattern.
pub(crate) type Entry = rule::Entry<ComplexValue>;
/// The rules of a location.
pub(crate) type RuleSet = rule::RuleSet<ComplexValue>;

/// What was read so far, by its place in the configuration.
#[derive(Default)]
pub(crate) struct Known {
    entries: HashMap<(Place, Vec<&'static [u8]>), Rc<Entry>>,
    /// By the addresses of the level's own rules and of the outer set, which never move.
    sets: HashMap<(Vec<*const Entry>, *const RuleSet), Rc<RuleSet>>,
}

impl Known {
    /// Reads the arguments of `tirreno_event`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn entry(
        &mut self,
        cf: &mut ngx_conf_t,
        args: &'static [ngx_str_t],
    ) -> Result<Rc<Entry>, String> {
        let args: Vec<_> = args.iter().map(text).collect();
        let key = (cf.place(), args);
        if let Some(known) = self.entries.get(&key) {
            return Ok(known.clone());
        }
        let (place, args) = &key;
        let entry = rule::Rule::parse(args, place.clone(), &mut |text| compile(cf, text))?;
        let entry = Rc::new(entry);
        self.entries.insert(key, entry.clone());
        Ok(entry)
    }

    /// The rule set with a level's `own` rules before the `outer` ones. When the set is new, warns of rules
    /// that no request reaches within a level; an inner rule may well hide an outer one.
    pub(crate) fn set(
        &mut self,
        cf: &mut ngx_conf_t,
        own: &[Rc<Entry>],
        outer: Option<&Rc<RuleSet>>,
    ) -> Option<Rc<RuleSet>> {
        if own.is_empty() {
            return outer.cloned();
        }
        let places = own.iter().map(Rc::as_ptr).collect();
        let key = (places, outer.map_or(std::ptr::null(), Rc::as_ptr));
        if let Some(known) = self.sets.get(&key) {
            return Some(known.clone());
        }
        warn_unreachable(cf, own);
        let set = RuleSet::new(own, outer)?;
        self.sets.insert(key, set.clone());
        Some(set)
    }
}

/// Warns of those of a level's rules that no request reaches. A rule before an include is meant to come before
/// those in the file.
pub(crate) fn warn_unreachable(cf: &mut ngx_conf_t, own: &[Rc<Entry>]) {
    let rules = own
        .iter()
        .map(|entry| (entry.methods.clone(), entry.pattern.clone(), entry.rule.is_unconditional()));
    for (hidden, hiding) in Rules::new(rules.collect()).unreachable(|unconditional| *unconditional)
    {
        let (hidden, hiding) = (&own[hidden].rule.place, &own[hiding].rule.place);
        if hidden.file != hiding.file {
            continue;
        }
        cf.warn_at(
            hidden,
            format_args!(
                "no request reaches this \"tirreno_event\", the one in {hiding} is for all of them,"
            ),
        );
    }
}

/// Reads a value in the arguments of a directive.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_value(
    cf: &mut ngx_conf_t,
    argument: &ngx_str_t,
    purpose: Purpose,
) -> Result<Value, ValueError> {
    Value::parse(text(argument), purpose, None, &mut |text| compile(cf, text))
}

/// The values of a session's token, to be joined.
pub(crate) type Token = Box<[Value]>;

/// Reads `cookie:NAME+header:NAME`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read_token(cf: &mut ngx_conf_t, argument: &ngx_str_t) -> Result<Token, ValueError> {
    let mut compile = |text: &'static [u8]| compile(cf, text);
    let values = value::split_joined(text(argument)).map(|part| {
        // A cookie's name may end with a plus sign, but none does.
        let is_open = part.ends_with(b"+") && !part.contains(&b'~');
        match Value::parse(part, Purpose::Look, None, &mut compile)? {
            value if is_open && value.constant().is_none() => Err(ValueError::Joined),
            value => Ok(value),
        }
    });
    let mut token = values.collect::<Result<Token, _>>()?;
    let constants = token.iter().filter(|value| value.constant().is_some()).count();
    if constants > 0 && constants < token.len() {
        return Err(ValueError::Joined);
    }
    value::tell_apart(&mut token);
    Ok(token)
}

fn compile(cf: &mut ngx_conf_t, text: &'static [u8]) -> Option<ComplexValue> {
    let text = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
    ComplexValue::compile(cf, text).ok()
}

/// An argument's text, which lives as long as the configuration.
fn text(argument: &ngx_str_t) -> &'static [u8] {
    // SAFETY: arguments lie in the configuration's pool, and what is read from them does, too.
    unsafe { super::value::bytes(argument.data, argument.len) }
}
