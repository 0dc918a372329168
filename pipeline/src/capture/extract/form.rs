//! Reads `application/x-www-form-urlencoded`, and the names of form fields as PHP and Rails do.
//!
//! PHP's rules are those of `php_register_variable_ex` (main/php_variables.c), and Rails' those of Rack's
//! query parser. Several versions of Rack are in use; if they differ, the field is unreadable.

use std::borrow::Cow;

use memchr::memchr3;

use super::kept::{Kept, Share};
use super::{Field, FieldError, Slot, State, Step, Values};
use crate::capture::path;

/// The most fields that PHP reads of a form, and of a query (`max_input_vars`).
const MAX_PHP_FIELDS: usize = 1000;

/// The most fields that the strictest version of Rack reads.
const MAX_RACK_FIELDS: usize = 4096;

/// The limit of Rack before 3.1 for the length of all names together (`key_space_limit`), in bytes.
const MAX_RACK_NAMES: usize = 65_536;

/// The deepest nesting in PHP (`max_input_nesting_level`).
const MAX_PHP_NESTING: usize = 64;

/// The longest name that is kept. Wanted names are shorter.
pub(super) const MAX_NAME: usize = 1024;

/// Readers interpret the form differently, or the application reads a list there.
#[derive(Debug, PartialEq, Eq)]
pub struct Unclear;

/// The application whose rules apply to names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    Php,
    Rails,
}

/// The steps of a form field in PHP.
pub(super) fn php_steps(text: &str) -> Result<Vec<Step>, FieldError> {
    let name = PhpName::parse(text.as_bytes()).ok_or(FieldError::Empty)?;
    if name.is_odd || text.starts_with(' ') || has_stray_bracket(text) {
        return Err(FieldError::Bracket);
    }
    steps(name.keys.iter().map(Vec::as_slice))
}

/// The steps of a form field in Rails.
pub(super) fn rails_steps(text: &str) -> Result<Vec<Step>, FieldError> {
    let name = PhpName::parse(text.as_bytes()).ok_or(FieldError::Empty)?;
    if name.is_odd || text.starts_with(' ') || has_stray_bracket(text) {
        return Err(FieldError::Bracket);
    }
    // Unlike PHP, Rails does not change a name.
    let base = text.split('[').next().unwrap_or_default().as_bytes();
    steps(std::iter::once(base).chain(name.keys.iter().skip(1).map(Vec::as_slice)))
}

/// Whether there is text outside of brackets after the first `[`, or a `]` before it.
fn has_stray_bracket(text: &str) -> bool {
    let (base, indexes) = text.split_at(text.find('[').unwrap_or(text.len()));
    base.contains(']') || !(indexes.is_empty() || indexes.ends_with(']'))
}

fn steps<'k>(keys: impl Iterator<Item = &'k [u8]>) -> Result<Vec<Step>, FieldError> {
    let step = |key: &[u8]| match str::from_utf8(key) {
        Ok("") => Ok(Step::Each),
        Ok(name) => Ok(Step::Name(name.into())),
        Err(_) => Err(FieldError::Bracket),
    };
    keys.map(step).collect()
}

/// A field's name, as PHP parses it.
struct PhpName {
    /// The keys from the outermost on. An empty key appends to a list.
    keys: Vec<Vec<u8>>,
    /// Versions of PHP parse the name differently.
    is_odd: bool,
}

impl PhpName {
    /// `None` if PHP ignores the field.
    fn parse(name: &[u8]) -> Option<Self> {
        let start = name.iter().position(|b| *b != b' ')?;
        let name = name[start..].split(|b| *b == 0).next().unwrap_or_default();
        let base = name.iter().position(|b| *b == b'[').unwrap_or(name.len());
        let mut keys = vec![name[..base].iter().map(mangle).collect::<Vec<_>>()];
        if base == 0 {
            return None;
        }
        let (mut rest, mut is_odd) = (&name[base..], false);
        while let Some(inside) = rest.strip_prefix(b"[") {
            // PHP ignores one blank in an empty index.
            let blank = inside.first().is_some_and(|b| is_space(*b));
            if inside.get(usize::from(blank)) == Some(&b']') {
                keys.push(Vec::new());
                rest = &inside[usize::from(blank) + 1..];
            } else if let Some(end) = inside.iter().position(|b| *b == b']') {
                keys.push(inside[..end].to_vec());
                rest = &inside[end + 1..];
            } else {
                // Without a `]` the bracket belongs to the name, and PHP replaces it.
                let [base] = &mut keys[..] else {
                    is_odd = true;
                    break;
                };
                base.push(b'_');
                base.extend(inside.iter());
                is_odd = inside.iter().any(|b| matches!(b, b' ' | b'.' | b'['));
                rest = &[];
            }
            if keys.len() > MAX_PHP_NESTING {
                is_odd = true;
                break;
            }
        }
        // PHP ignores what follows the last index.
        Some(Self { keys, is_odd })
    }
}

/// The byte that replaces `byte` before the first index in PHP.
fn mangle(byte: &u8) -> u8 {
    if matches!(byte, b' ' | b'.') { b'_' } else { *byte }
}

/// Like C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// A cookie's name as PHP may register it: without white space before it, and no bracket has a partner.
pub fn php_cookie_name(name: &[u8]) -> Vec<u8> {
    let name = name.iter().skip_while(|b| is_space(**b));
    name.map(|b| if *b == b'[' { b'_' } else { mangle(b) }).collect()
}

/// Decodes a form's text: `+` is a space, and escapes are undone.
pub fn form_text(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|b| matches!(b, b'+' | b'%')) {
        return text.into();
    }
    let spaced = text.iter().map(|b| if *b == b'+' { b' ' } else { *b });
    path::decode(spaced).collect::<Vec<_>>().into()
}

/// The arguments of a query whose name PHP may read as one that begins with `start`: the decoded name, PHP's, and
/// the value. PHP does not count empty arguments.
fn php_arguments(
    query: &[u8],
    start: Option<u8>,
) -> impl Iterator<Item = (usize, Cow<'_, [u8]>, PhpName, &[u8])> {
    let arguments = query.split(|b| *b == b'&').filter(|argument| !argument.is_empty());
    arguments.enumerate().filter_map(move |(count, argument)| {
        let equals = argument.iter().position(|b| *b == b'=').unwrap_or(argument.len());
        let name = form_text(&argument[..equals]);
        // Most names are others, and need not be parsed.
        let first = name.iter().find(|b| **b != b' ').map(mangle);
        let php = (first == start).then(|| PhpName::parse(&name)).flatten()?;
        Some((count, name, php, argument.get(equals + 1..).unwrap_or_default()))
    })
}

/// What PHP reads in that field of `$_GET`: of several values the last one, of a list the first.
///
/// # Errors
/// There is a list or an object, or the field comes behind the number of variables to which PHP is limited, unless
/// it is configured otherwise.
pub fn php_argument<'q>(query: &'q [u8], field: &Field) -> Result<Option<Cow<'q, [u8]>>, Unclear> {
    let steps = field.steps();
    let [Step::Name(own), ..] = steps else { return Err(Unclear) };
    let is_list = steps.contains(&Step::Each);
    let mut found = Ok(None);
    for (count, name, php, value) in php_arguments(query, own.bytes().next()) {
        found = match php_relation(&php, &name, false, steps) {
            Relation::Other => continue,
            Relation::Unclear => return Err(Unclear),
            _ if count >= MAX_PHP_FIELDS => return Err(Unclear),
            Relation::Replaces => Err(Unclear),
            Relation::Same if is_list && matches!(found, Ok(Some(_))) => continue,
            Relation::Same => Ok(Some(form_text(value))),
        };
    }
    found
}

/// Whether Rails may take that field, or the object that has it, from the query: in `params`, an argument of the
/// query replaces what the body has under its outermost name.
pub fn rails_query_has(query: &[u8], field: &Field) -> bool {
    let [Step::Name(own), ..] = field.steps() else { return true };
    // Some versions of Rack end an argument at a `;`.
    query.split(|b| matches!(b, b'&' | b';')).any(|argument| {
        let name = form_text(argument.split(|b| *b == b'=').next().unwrap_or_default());
        rails_words(&name).next() == Some(own.as_bytes())
    })
}

/// Whether PHP may read something under that name in the query.
pub fn php_has(query: &[u8], name: &str) -> bool {
    php_arguments(query, name.bytes().next()).any(|(_, _, php, _)| php.keys[0] == name.as_bytes())
}

/// What a field of the body does to a wanted field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Nothing.
    Other,
    /// It is the wanted field.
    Same,
    /// It replaces the wanted field, or an object that has it, by a list or a text.
    Replaces,
    /// That depends on the reader.
    Unclear,
}

/// Assigns the values of a form to the wanted fields, in the order in which they come.
#[derive(Debug)]
pub(super) struct Fields {
    pub(super) rules: Rules,
    count: usize,
    /// The index of the wanted field whose value is being read.
    target: Option<usize>,
    /// The wanted fields that are unreadable, whatever follows.
    unclear: u64,
    /// The wanted fields that have come.
    seen: u64,
    value: Kept,
}

impl Fields {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, count: 0, target: None, unclear: 0, seen: 0, value: Kept::default() }
    }

    /// Reads a field's decoded name; `is_cut` says that only its beginning was kept. Returns whether the
    /// value is wanted.
    ///
    /// # Errors
    /// There are more fields than some readers accept.
    pub(super) fn name(
        &mut self,
        name: &[u8],
        is_cut: bool,
        values: &mut Values,
        share: &mut Share,
    ) -> Result<bool, Unclear> {
        self.count += 1;
        let most = match self.rules {
            Rules::Php => MAX_PHP_FIELDS,
            Rules::Rails => MAX_RACK_FIELDS,
        };
        if self.count > most {
            return Err(Unclear);
        }
        self.target = None;
        self.value.clear();
        let php = match self.rules {
            Rules::Php => match PhpName::parse(name) {
                Some(php) => Some(php),
                None => return Ok(false),
            },
            Rules::Rails => None,
        };
        let fields = std::rc::Rc::clone(&values.fields);
        for (place, field) in fields.iter().enumerate().take(super::MAX_FIELDS) {
            let bit = 1 << place;
            let relation = match &php {
                Some(php) => php_relation(php, name, is_cut, field.steps()),
                None => rails_relation(name, is_cut, field.as_str(), field.steps()),
            };
            let is_twice = self.rules == Rules::Rails && self.seen & bit != 0;
            // Of a list, the first element counts.
            let has_one =
                field.steps().contains(&Step::Each) && matches!(values.slots[place], Slot::Text(_));
            match relation {
                Relation::Other => continue,
                Relation::Unclear => self.unclear |= bit,
                _ if is_twice => self.unclear |= bit,
                Relation::Replaces => {
                    release(&mut values.slots[place], share);
                    // It outranks the query's field of that name, and is none itself.
                    values.slots[place] = Slot::Unreadable;
                }
                Relation::Same if has_one => {}
                Relation::Same => {
                    release(&mut values.slots[place], share);
                    self.target = Some(place);
                }
            }
            self.seen |= bit;
        }
        Ok(self.target.is_some())
    }

    /// The last named field has no value.
    pub(super) fn skip_value(&mut self) {
        self.target = None;
    }

    /// Reads a piece of the last named field's value.
    pub(super) fn value(&mut self, bytes: &[u8], values: &mut Values, share: &mut Share) {
        if let Some(place) = self.target
            && self.value.push(bytes, share).is_err()
        {
            self.value.release(share);
            values.slots[place] = Slot::Unreadable;
            self.target = None;
            // Another element of a list is not its first.
            if values.fields[place].steps().contains(&Step::Each) {
                self.unclear |= 1 << place;
            }
        }
    }

    /// The value is complete.
    pub(super) fn end_value(&mut self, values: &mut Values) {
        if let Some(place) = self.target.take() {
            values.slots[place] = Slot::Text(std::mem::take(&mut self.value));
        }
    }

    /// The form is complete.
    pub(super) fn finish(&self, values: &mut Values) {
        for (place, slot) in values.slots.iter_mut().enumerate().take(super::MAX_FIELDS) {
            if self.unclear & 1 << place != 0 {
                *slot = Slot::Unreadable;
            }
        }
        values.state = State::Read;
    }
}

fn release(slot: &mut Slot, share: &mut Share) {
    if let Slot::Text(kept) | Slot::Scalar(kept) = slot {
        kept.release(share);
    }
    *slot = Slot::Absent;
}

fn php_relation(php: &PhpName, name: &[u8], is_cut: bool, steps: &[Step]) -> Relation {
    if php.is_odd || is_cut {
        // Compares the whole name, and the name before an index.
        let Step::Name(own) = &steps[0] else { return Relation::Unclear };
        let is_own = |key: &[u8]| key.iter().map(mangle).eq(own.bytes());
        let base = name.iter().position(|b| *b != b' ').map_or(name, |start| &name[start..]);
        let base = base.split(|b| matches!(b, b'[' | 0)).next().unwrap_or_default();
        let is_like = is_own(base) || php.keys.first().is_some_and(|key| is_own(key));
        return if is_like { Relation::Unclear } else { Relation::Other };
    }
    for (key, step) in php.keys.iter().zip(steps) {
        match (step, &key[..]) {
            (Step::Name(own), key) if own.as_bytes() == key => {}
            (Step::Each, b"") => {}
            // The index of that element depends on the elements before it.
            (Step::Each, _) => return Relation::Unclear,
            (Step::Name(own), b"") if own.bytes().all(|b| b.is_ascii_digit()) => {
                return Relation::Unclear;
            }
            _ => return Relation::Other,
        }
    }
    match php.keys.len() == steps.len() {
        true => Relation::Same,
        // The other elements of a list stay.
        false if php.keys.iter().zip(steps).any(|(_, step)| *step == Step::Each) => {
            Relation::Unclear
        }
        false => Relation::Replaces,
    }
}

fn rails_relation(name: &[u8], is_cut: bool, own: &str, steps: &[Step]) -> Relation {
    if name == own.as_bytes() && !is_cut {
        return Relation::Same;
    }
    // Versions of Rack read unbalanced brackets differently. A name with the same words is unclear, and so
    // is a name that would replace an object that has the field by a list or a text.
    let mut words = rails_words(name);
    let mut names = steps.iter().filter_map(|step| match step {
        Step::Name(name) => Some(name.as_bytes()),
        Step::Each => None,
    });
    loop {
        match (words.next(), names.next()) {
            (Some(word), Some(name)) if word == name => {}
            (Some(_), Some(_)) => return Relation::Other,
            _ => return Relation::Unclear,
        }
    }
}

/// The words of a name between brackets: `user` and `login` of `user[login]`.
fn rails_words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let words = name.split(|b| matches!(b, b'[' | b']' | 0));
    words.map(|word| word.trim_ascii()).filter(|word| !word.is_empty())
}

/// Reads `application/x-www-form-urlencoded`.
#[derive(Debug)]
pub(super) struct UrlEncoded {
    fields: Fields,
    name: Kept,
    is_cut: bool,
    /// The length of all names together.
    names: usize,
    place: Place,
    /// An unfinished escape: its first digit, or `%` if none has come.
    escape: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Name,
    Value,
    /// A value of an unwanted field.
    Skipped,
}

impl UrlEncoded {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            fields: Fields::new(rules),
            name: Kept::default(),
            is_cut: false,
            names: 0,
            place: Place::Name,
            escape: None,
        }
    }

    /// Reads a chunk of the body.
    pub(super) fn push(&mut self, chunk: &[u8], values: &mut Values, share: &mut Share) {
        if !values.is_read() && self.read(chunk, values, share).is_err() {
            values.give_up();
        }
    }

    /// The body is complete.
    pub(super) fn finish(&mut self, values: &mut Values, share: &mut Share) {
        if values.is_read() {
            return;
        }
        match self.end(values, share) {
            Ok(()) => self.fields.finish(values),
            Err(Unclear) => values.give_up(),
        }
    }

    fn end(&mut self, values: &mut Values, share: &mut Share) -> Result<(), Unclear> {
        self.end_escape(values, share)?;
        // No field follows an `&` at the end.
        if self.place == Place::Name && self.name.bytes().is_empty() {
            return Ok(());
        }
        self.end_field(values, share)
    }

    fn read(
        &mut self,
        mut chunk: &[u8],
        values: &mut Values,
        share: &mut Share,
    ) -> Result<(), Unclear> {
        while let Some((&byte, rest)) = chunk.split_first() {
            if let Some(first) = self.escape {
                if !byte.is_ascii_hexdigit() {
                    self.end_escape(values, share)?;
                    // The byte follows the broken escape and is read on its own.
                    continue;
                }
                if first == b'%' {
                    self.escape = Some(byte);
                } else {
                    self.escape = None;
                    let digit = |b: u8| char::from(b).to_digit(16).unwrap_or(0) as u8;
                    self.add(&[digit(first) << 4 | digit(byte)], values, share);
                }
                chunk = rest;
                continue;
            }
            let plain = match self.place {
                // PHP does not decode a value that it skips.
                Place::Skipped if self.fields.rules == Rules::Php => memchr::memchr(b'&', chunk),
                Place::Skipped => memchr3(b'&', b'%', b';', chunk),
                _ => chunk.iter().position(|b| matches!(b, b'&' | b'=' | b'%' | b'+' | b';')),
            };
            let plain = plain.unwrap_or(chunk.len());
            if plain > 0 {
                self.add(&chunk[..plain], values, share);
                chunk = &chunk[plain..];
                continue;
            }
            match byte {
                b'&' => self.end_field(values, share)?,
                b'=' if self.place == Place::Name => self.end_name(values, share)?,
                b'%' => self.escape = Some(b'%'),
                // Some versions of Rack end a field here.
                b';' if self.fields.rules == Rules::Rails => return Err(Unclear),
                b'+' => self.add(b" ", values, share),
                _ => self.add(&[byte], values, share),
            }
            chunk = rest;
        }
        Ok(())
    }

    /// Ends a malformed escape: PHP takes it literally, Ruby refuses the body.
    fn end_escape(&mut self, values: &mut Values, share: &mut Share) -> Result<(), Unclear> {
        let Some(first) = self.escape.take() else { return Ok(()) };
        if self.fields.rules == Rules::Rails {
            return Err(Unclear);
        }
        self.add(b"%", values, share);
        if first != b'%' {
            self.add(&[first], values, share);
        }
        Ok(())
    }

    fn add(&mut self, bytes: &[u8], values: &mut Values, share: &mut Share) {
        match self.place {
            Place::Name => {
                // PHP ignores any number of leading blanks.
                let is_start = self.fields.rules == Rules::Php && self.name.bytes().is_empty();
                let skip = match is_start {
                    true => bytes.iter().position(|b| *b != b' ').unwrap_or(bytes.len()),
                    false => 0,
                };
                let bytes = &bytes[skip..];
                self.names += bytes.len();
                let room = MAX_NAME - self.name.bytes().len();
                let kept = &bytes[..bytes.len().min(room)];
                let is_kept = self.name.push(kept, share).is_ok();
                self.is_cut |= !is_kept || kept.len() < bytes.len();
            }
            Place::Value => self.fields.value(bytes, values, share),
            Place::Skipped => {}
        }
    }

    fn end_name(&mut self, values: &mut Values, share: &mut Share) -> Result<(), Unclear> {
        if self.fields.rules == Rules::Rails && self.names > MAX_RACK_NAMES {
            return Err(Unclear);
        }
        let wanted = self.fields.name(self.name.bytes(), self.is_cut, values, share)?;
        self.place = if wanted { Place::Value } else { Place::Skipped };
        Ok(())
    }

    fn end_field(&mut self, values: &mut Values, share: &mut Share) -> Result<(), Unclear> {
        if self.place == Place::Name {
            self.end_name(values, share)?;
            if self.fields.rules == Rules::Rails {
                // Without `=` the field has no value, not even an empty one.
                self.fields.skip_value();
            }
        }
        self.fields.end_value(values);
        self.name.clear();
        self.is_cut = false;
        self.place = Place::Name;
        Ok(())
    }
}
