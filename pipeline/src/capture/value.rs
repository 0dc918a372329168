//! Values of a request and its answer, as rules and directives name them.
//!
//! `VALUE` is a text of nginx with variables, or one of the sources `cookie:NAME`, `cookie:NAME*`,
//! `header:NAME`, `arg:NAME`, `set_cookie:NAME`, `body:FIELD`, `request:NAME` and `answer:FIELD`. Each may
//! be followed by `~REGEX`: the value is then the first group of the match. This crate does not compile or
//! evaluate nginx's texts; they are the type parameter `T`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};
use sha2::{Digest, Sha256};

use crate::capture::cookie::{
    Name, cookie_text, cookie_value, cookies, is_cookie_text, is_token, nginx_cookie, plain_cookie,
    trim_pair, unquote,
};
use crate::capture::exchange::{Exchange, Text};
use crate::capture::extract::{
    BodyFormat, Field, FieldError, Found, form_text, php_argument, php_cookie_name, rails_query_has,
};
use crate::capture::scan;
use crate::capture::secret_name::Folded;
use crate::event::Param;
use crate::text::cut_before;

/// The memory limit of a compiled regular expression, in bytes. It matches in linear time.
const REGEX_SIZE: usize = 256 << 10;

/// The result of reading a value from an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read<'e> {
    /// There is no value.
    Absent,
    /// The request was answered before its body came.
    Unread,
    /// There is a value that cannot be read with certainty.
    Unreadable,
    /// The value.
    Text(Cow<'e, [u8]>),
}

impl<'e> Read<'e> {
    /// The value; empty if there is none.
    pub fn text(self) -> Cow<'e, [u8]> {
        match self {
            Self::Text(text) => text,
            _ => Cow::Borrowed(&[]),
        }
    }

    fn from_option(value: Option<Cow<'e, [u8]>>) -> Self {
        value.map_or(Self::Absent, Self::Text)
    }

    /// Applies the value's regular expression.
    fn and<T: Text>(self, value: &Value<T>) -> Self {
        match self {
            Self::Text(text) => value.take(text),
            other => other,
        }
    }
}

impl<'e> From<Found<'e>> for Read<'e> {
    fn from(found: Found<'e>) -> Self {
        match found {
            Found::Absent => Self::Absent,
            Found::Unread => Self::Unread,
            Found::Unreadable => Self::Unreadable,
            Found::Value(text) => Self::Text(text.as_bytes().into()),
        }
    }
}

/// How far a value is trusted as the user of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// The client sent it.
    Claim,
    /// nginx or the configuration vouches for it.
    Verified,
    /// The application's answer has it.
    Answer,
}

/// The source of a value.
#[derive(Clone, Debug)]
pub enum Source<T> {
    /// nginx's text; whether it is exactly one cookie.
    Text(T, bool),
    /// A cookie of the request.
    Cookie(Name),
    /// A header of the request.
    Header(Box<str>),
    /// An argument of the query, also as PHP names it.
    Arg(Box<str>, Option<Field>),
    /// A cookie that the answer sets.
    SetCookie(Name),
    /// Fields of the body; the first one with a value counts.
    Body(BodyFormat, Box<[Field]>),
    /// A field of the body, or else an argument of the query.
    Request(BodyFormat, Field),
    /// Fields of the JSON answer; the first one with a value counts.
    Answer(Box<[Field]>),
}

/// Why a value is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// nginx has logged the error.
    Text,
    /// The name of a cookie, header, argument or field is missing or has invalid characters.
    Name(&'static str),
    /// A value of that name is a secret.
    Secret,
    /// It is a constant that was meant to be something else.
    Everybodys,
    /// A name has a variable.
    Variable,
    /// A part of what `+` joins is no source.
    Joined,
    /// The name of a field is invalid.
    Field(FieldError),
    /// It reads the request's body, whose format is not configured.
    NoFormat,
    /// The regular expression is invalid.
    Regex(String),
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("its variables are not valid"),
            Self::Name(source) => write!(f, "\"{source}\" must be followed by a name"),
            Self::Secret => f.write_str("what has such a name is a secret, and no user"),
            Self::Joined => f.write_str(
                "on both sides of a \"+\" stands a source, as in \"cookie:USER+cookie:SESSION\"",
            ),
            Self::Everybodys => f.write_str(
                "it would be everybody's name: a source is like \"cookie:NAME\", a variable like \
                 \"$remote_user\", \"verified\" stands once and first, and \"session\" or \"basic\" in \
                 \"user=\" of a rule",
            ),
            Self::Variable => f.write_str("a name cannot contain variables"),
            Self::Field(error) => error.fmt(f),
            Self::NoFormat => f.write_str(
                "a rule that reads the request's body needs \"body=json\", \"body=php\", \
                 \"body=rails\" or \"body=xmlrpc\": as the application reads it",
            ),
            Self::Regex(error) => write!(f, "the regular expression is wrong: {error}"),
        }
    }
}

/// The purpose of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is the name of a user.
    Name,
    /// It becomes part of an event.
    Send,
    /// It is only examined.
    Look,
}

/// A value.
#[derive(Clone, Debug)]
pub struct Value<T> {
    source: Source<T>,
    regex: Option<Regex>,
    trust: Trust,
    purpose: Purpose,
    /// Whether it is a text that has a header or cookie of the request.
    has_header: bool,
    /// NAME, if its text is exactly nginx's `$cookie_NAME`.
    cookie: Option<Box<[u8]>>,
}

/// Compiles nginx's text.
pub type Compile<'c, T> = dyn FnMut(&'static [u8]) -> Option<T> + 'c;

const SOURCES: [&str; 7] =
    ["cookie:", "header:", "arg:", "set_cookie:", "body:", "request:", "answer:"];

impl<T: Text> Value<T> {
    /// Parses a value. `format` is the format in which the application reads the request's body, if known.
    /// The text lives as long as the configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(
        text: &'static [u8],
        purpose: Purpose,
        format: Option<BodyFormat>,
        compile: &mut Compile<'_, T>,
    ) -> Result<Self, ValueError> {
        let source = SOURCES.into_iter().find(|source| text.starts_with(source.as_bytes()));
        let end = regex_start(text, source.is_some());
        let regex = match text.get(end + 1..) {
            Some(regex) => Some(compile_regex(regex)?),
            None => None,
        };
        let text = &text[..end];
        let (source, trust) = match source {
            None => {
                let compiled = compile(text).ok_or(ValueError::Text)?;
                let is_own = compiled.has_own_variable();
                let trust = if is_own { Trust::Claim } else { trust_of(text) };
                (Source::Text(compiled, cookie_variable(text).is_some()), trust)
            }
            Some(source) => {
                let name =
                    str::from_utf8(&text[source.len()..]).map_err(|_| ValueError::Name(source))?;
                named(source, name, purpose, format)?
            }
        };
        if purpose == Purpose::Name && is_meant_otherwise(&source, text) {
            return Err(ValueError::Everybodys);
        }
        let takes_part = regex.as_ref().is_some_and(|regex| regex.captures_len() > 1);
        if purpose != Purpose::Look && !takes_part && names_secret(&source, text, purpose) {
            return Err(ValueError::Secret);
        }
        let of_header = |name: &[u8]| name.starts_with(b"http_") || name.starts_with(b"cookie_");
        let has_header = matches!(source, Source::Text(..)) && variables(text).any(of_header);
        let is_text = matches!(source, Source::Text(..));
        let cookie = cookie_variable(text).filter(|_| is_text);
        let cookie = cookie.and_then(|name| name.strip_prefix(b"cookie_")).map(Into::into);
        Ok(Self { source, regex, trust, purpose, has_header, cookie })
    }

    /// Marks a value that nginx, or a module, vouches for.
    pub fn verified(mut self) -> Self {
        self.trust = self.trust.max(Trust::Verified);
        self
    }

    /// How many groups its regular expression has; `None` without one.
    pub fn groups(&self) -> Option<usize> {
        self.regex.as_ref().map(|regex| regex.captures_len() - 1)
    }

    /// How far the value is trusted as the user of a request.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// Whether it comes from a header or cookie of the request, which any client can write.
    pub fn is_of_client(&self) -> bool {
        self.trust == Trust::Claim
            && (self.has_header || matches!(self.source, Source::Cookie(_) | Source::Header(_)))
    }

    /// The value's source.
    pub fn source(&self) -> &Source<T> {
        &self.source
    }

    /// Whether events would have the whole cookie or header of the request that `secret` is.
    pub fn sends(&self, secret: &Self) -> bool {
        let is_whole = self.groups().is_none_or(|groups| groups == 0);
        let is_cookie = |own: &[u8], name: &Name| own.eq_ignore_ascii_case(name.text.as_bytes());
        let is_it = match (&self.source, &secret.source) {
            (Source::Cookie(own), Source::Cookie(name)) => {
                own.matches(name.text.as_bytes()) || name.matches(own.text.as_bytes())
            }
            (Source::Header(own), Source::Header(name)) => own.eq_ignore_ascii_case(name),
            (Source::Text(..), Source::Cookie(name)) => {
                self.cookie.as_ref().is_some_and(|own| is_cookie(own, name))
            }
            (Source::Cookie(own), Source::Text(..)) => {
                secret.cookie.as_ref().is_some_and(|name| is_cookie(name, own))
            }
            (Source::Text(..), Source::Text(..)) => {
                self.cookie.is_some() && self.cookie == secret.cookie
            }
            _ => false,
        };
        self.purpose != Purpose::Look && is_whole && is_it
    }

    /// Whether it needs the request's body.
    pub fn reads_body(&self) -> bool {
        matches!(self.source, Source::Body(..) | Source::Request(..))
    }

    /// Whether it needs the answer's body.
    pub fn reads_answer(&self) -> bool {
        matches!(self.source, Source::Answer(_))
    }

    /// The value, if it does not depend on the request.
    pub fn constant(&self) -> Option<&[u8]> {
        match &self.source {
            Source::Text(text, _) if self.regex.is_none() => text.constant(),
            _ => None,
        }
    }

    /// Whether the value is empty for every request.
    pub fn is_nothing(&self) -> bool {
        self.constant().is_some_and(<[u8]>::is_empty)
    }

    /// Reads the value from an exchange whose body the application reads as `format`.
    pub fn get<'e, X: Exchange<Text = T>>(
        &self,
        exchange: &'e X,
        format: Option<BodyFormat>,
    ) -> Read<'e> {
        match &self.source {
            Source::Text(text, is_cookie) => {
                let text = exchange.text(text);
                self.take(if *is_cookie { cookie_text(text) } else { Cow::Borrowed(text) })
            }
            Source::Cookie(name) => {
                let cookies = exchange.cookies().flat_map(cookies);
                let values = cookies.filter_map(|cookie| cookie_value(cookie, name));
                self.first(values.map(cookie_text))
            }
            Source::SetCookie(name) => {
                Read::from_option(exchange.set_cookie(name).map(cookie_text)).and(self)
            }
            Source::Header(name) => {
                self.first(exchange.header(name).map(Cow::Borrowed).into_iter())
            }
            Source::Arg(name, php) => self.argument(exchange, name, php.as_ref(), format),
            Source::Body(format, fields) => {
                first_field(fields, |field| match is_outranked(exchange, *format, field) {
                    true => Read::Unreadable,
                    false => self.body(exchange, *format, field),
                })
            }
            Source::Answer(fields) => {
                first_field(fields, |field| Read::from(exchange.answer(field)).and(self))
            }
            Source::Request(format, field) => match self.body(exchange, *format, field) {
                Read::Absent => self.argument(exchange, field.as_str(), Some(field), Some(*format)),
                _ if is_outranked(exchange, *format, field) => Read::Unreadable,
                found => found,
            },
        }
    }

    /// Whether the value certainly is this text, because the cookie that it stands for is. That costs much less
    /// than evaluating nginx's variable.
    pub fn is_cookie_of<X: Exchange<Text = T>>(&self, exchange: &X, text: &[u8]) -> bool {
        let (Some(name), None) = (&self.cookie, &self.regex) else { return false };
        let line = exchange.cookies().next();
        let Some(found) = line.and_then(|line| nginx_cookie(line, name)) else { return false };
        let is_it = found.strip_prefix(text).is_some_and(|rest| matches!(rest, [] | [b';', ..]));
        // A quoted or percent-encoded value stands for another text.
        is_it && !matches!(text, [] | [b'"', ..]) && scan::find_any(text, [b';', b'%']).is_none()
    }

    fn argument<'e, X: Exchange<Text = T>>(
        &self,
        exchange: &'e X,
        name: &str,
        php: Option<&Field>,
        format: Option<BodyFormat>,
    ) -> Read<'e> {
        let query = exchange.query();
        let found = match (format, php) {
            (Some(BodyFormat::Php), Some(field)) => php_argument(query, field),
            // PHP gives no argument such a name.
            (Some(BodyFormat::Php), None) => Ok(None),
            _ => Ok(arg(query, name, format)),
        };
        found.map_or(Read::Unreadable, |found| self.first(found.into_iter()))
    }

    fn body<'e, X: Exchange<Text = T>>(
        &self,
        exchange: &'e X,
        format: BodyFormat,
        field: &Field,
    ) -> Read<'e> {
        let is_name = self.purpose == Purpose::Name;
        Read::from(exchange.body(format, field, is_name)).and(self)
    }

    /// Calls `f` with each possible token in the request until `f` returns true. Several cookies may match a
    /// prefix. Some applications (Go) skip a cookie with bytes that RFC 6265 does not allow, others take it for a
    /// session that does not exist: so that is no token for any of them.
    pub fn each<'e, X: Exchange<Text = T>>(
        &self,
        exchange: &'e X,
        mut f: impl FnMut(Cow<'e, [u8]>) -> bool,
    ) {
        let mut give = |found| match found {
            Read::Text(text) if !text.is_empty() => Some(f(text)),
            _ => None,
        };
        let Source::Cookie(name) = &self.source else {
            if !self.is_ambiguous(exchange) {
                give(self.get(exchange, None));
            }
            return;
        };
        for line in exchange.cookies() {
            let values = cookies(line).filter_map(|cookie| cookie_value(cookie, name));
            for value in values.filter(|value| is_cookie_text(value)) {
                let is_enough = give(self.take(cookie_text(value)));
                if is_enough.is_some_and(|is_enough| is_enough || !name.is_prefix) {
                    return;
                }
            }
        }
    }

    /// The first possible token in the request; empty if there is none.
    pub fn token<'e, X: Exchange<Text = T>>(&self, exchange: &'e X) -> Cow<'e, [u8]> {
        let mut token = Cow::Borrowed(&[][..]);
        self.each(exchange, |text| {
            token = text;
            true
        });
        token
    }

    /// The value of a cookie as most clients write it: neither quoted nor encoded, and without a blank. `None` does
    /// not say that there is none.
    pub fn plain_cookie<'e, X: Exchange<Text = T>>(&self, exchange: &'e X) -> Option<&'e [u8]> {
        match &self.source {
            Source::Cookie(name) if !name.is_prefix && self.regex.is_none() => {
                plain_cookie(exchange.cookies().next()?, name.text.as_bytes())
            }
            _ => None,
        }
    }

    /// The same value in the answer: the cookie that the answer sets, or its header of that name.
    pub fn in_answer<'e, X: Exchange<Text = T>>(&self, exchange: &'e X) -> Option<Cow<'e, [u8]>> {
        let text = match &self.source {
            Source::Cookie(name) => cookie_text(exchange.set_cookie(name)?),
            Source::Header(name) => exchange.answer_header(name)?.into(),
            _ => return None,
        };
        match self.take(text) {
            Read::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Whether it is the whole header `Authorization`, in which a scheme precedes the token.
    pub fn is_authorization(&self) -> bool {
        self.regex.is_none()
            && matches!(&self.source, Source::Header(name) if name.eq_ignore_ascii_case("authorization"))
    }

    /// Whether the request has several cookies of that name or prefix, also as PHP reads names: the application has
    /// checked one of them, and nobody knows which.
    pub fn has_several_cookies<X: Exchange<Text = T>>(&self, exchange: &X) -> bool {
        let is_meant = |name: &[u8]| match &self.source {
            Source::Cookie(own) => own.matches(name) || own.matches(&php_cookie_name(name)),
            _ => self.cookie.as_ref().is_some_and(|own| {
                name.eq_ignore_ascii_case(own) || php_cookie_name(name).eq_ignore_ascii_case(own)
            }),
        };
        let names = exchange.cookies().flat_map(cookies).map(|cookie| {
            let end = cookie.iter().position(|b| *b == b'=').unwrap_or(cookie.len());
            trim_pair(&cookie[..end])
        });
        names.filter(|name| is_meant(name)).nth(1).is_some()
    }

    /// Whether it is an argument that the query has with different values: of several, Go takes the first, PHP and
    /// Rails the last.
    pub fn is_ambiguous<X: Exchange<Text = T>>(&self, exchange: &X) -> bool {
        let Source::Arg(name, _) = &self.source else { return false };
        let mut values = args(exchange.query(), |key| key == name.as_bytes());
        values.next().is_some_and(|first| values.any(|value| value != first))
    }

    /// The first text with a value.
    fn first<'e>(&self, mut texts: impl Iterator<Item = Cow<'e, [u8]>>) -> Read<'e> {
        let found = texts.find_map(|text| match self.take(text) {
            Read::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        });
        Read::from_option(found)
    }

    /// Applies the regular expression to a text.
    fn take<'e>(&self, text: Cow<'e, [u8]>) -> Read<'e> {
        let Some(regex) = &self.regex else { return Read::Text(text) };
        let range = regex.captures(&text).and_then(|found| found.get(1).or(found.get(0)));
        let Some(range) = range.map(|found| found.range()) else { return Read::Absent };
        Read::Text(part(text, range))
    }
}

fn part(text: Cow<'_, [u8]>, range: Range<usize>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
        Cow::Owned(text) => text[range].to_vec().into(),
    }
}

/// Whether the application may read another value in the query than the body has.
fn is_outranked<X: Exchange>(exchange: &X, format: BodyFormat, field: &Field) -> bool {
    format == BodyFormat::Rails && rails_query_has(exchange.query(), field)
}

/// The first field with a value; without one, the reason why the first unreadable field cannot be read.
fn first_field<'e>(fields: &[Field], mut get: impl FnMut(&Field) -> Read<'e>) -> Read<'e> {
    let mut hindered = Read::Absent;
    for field in fields {
        match get(field) {
            Read::Text(text) if !text.trim_ascii().is_empty() => return Read::Text(text),
            Read::Text(_) | Read::Absent => {}
            other if hindered == Read::Absent => hindered = other,
            _ => {}
        }
    }
    hindered
}

/// Makes joined values disjoint: a cookie that one value names is not matched by another value's prefix.
pub fn tell_apart<T>(values: &mut [Value<T>]) {
    let exact = values.iter().filter_map(|value| match &value.source {
        Source::Cookie(name) if !name.is_prefix => Some(name.text.clone()),
        _ => None,
    });
    let exact: Box<[Box<str>]> = exact.collect();
    for value in values {
        if let Source::Cookie(name) = &mut value.source {
            name.except = exact.clone();
        }
    }
}

/// The parts of a value that are joined by `+`. A `+` joins only before a source or a variable.
pub fn split_joined(text: &'static [u8]) -> impl Iterator<Item = &'static [u8]> {
    let begins_value = |rest: &[u8]| {
        rest.starts_with(b"$") || SOURCES.iter().any(|source| rest.starts_with(source.as_bytes()))
    };
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let is_join = |(at, byte): (usize, &u8)| *byte == b'+' && begins_value(&text[at + 1..]);
        let join = text.iter().enumerate().position(is_join);
        rest = join.map(|at| &text[at + 1..]);
        Some(&text[..join.unwrap_or(text.len())])
    })
}

/// The start of `~REGEX` in a value, else the value's end. In a text without a variable, `~` is an ordinary
/// character.
fn regex_start(text: &[u8], has_source: bool) -> usize {
    let tilde = text.iter().position(|b| *b == b'~').unwrap_or(text.len());
    if has_source || text[..tilde].contains(&b'$') { tilde } else { text.len() }
}

fn compile_regex(text: &[u8]) -> Result<Regex, ValueError> {
    let text = str::from_utf8(text).map_err(|_| ValueError::Regex("it is not UTF-8".into()))?;
    if text.is_empty() {
        return Err(ValueError::Regex("it is empty".into()));
    }
    let mut builder = RegexBuilder::new(text);
    builder.unicode(false).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE);
    builder.build().map_err(|error| {
        let error = error.to_string();
        // The last line has the reason; the lines before it repeat the expression.
        let last = error.lines().last().unwrap_or_default();
        ValueError::Regex(last.trim_start_matches("error: ").to_owned())
    })
}

fn named<T>(
    source: &'static str,
    name: &str,
    purpose: Purpose,
    format: Option<BodyFormat>,
) -> Result<(Source<T>, Trust), ValueError> {
    let missing = || ValueError::Name(source);
    if name.contains('$') {
        return Err(ValueError::Variable);
    }
    let is_refused = |name: &str| match (purpose, source) {
        (Purpose::Look, _) => false,
        // An application may name its user anywhere.
        (Purpose::Name, "answer:") => false,
        // A name that people type may be their password, in a field with such a word.
        (Purpose::Name, _) => is_secret(name),
        // An answer's code is an error's, or a kind's.
        (Purpose::Send, "answer:") if name == "code" || name.ends_with(".code") => false,
        (Purpose::Send, _) => sounds_secret(name.as_bytes()),
    };
    let field = |name: &str, format| match name {
        name if is_refused(name) => Err(ValueError::Secret),
        name => Field::parse(name, format).map_err(ValueError::Field),
    };
    let list = |format| name.split(',').map(|name| field(name, format)).collect::<Result<_, _>>();
    let format = format.ok_or(ValueError::NoFormat);
    let token = |name: &str| is_token(name).then(|| name.into()).ok_or_else(missing);
    Ok(match source {
        "cookie:" => (Source::Cookie(Name::parse(name).ok_or_else(missing)?), Trust::Claim),
        "set_cookie:" => (Source::SetCookie(Name::parse(name).ok_or_else(missing)?), Trust::Answer),
        "header:" => (Source::Header(token(name)?), Trust::Claim),
        "arg:" if name.is_empty() => return Err(missing()),
        "arg:" => {
            let php = Field::parse(name, BodyFormat::Php).ok();
            (Source::Arg(name.into(), php), Trust::Claim)
        }
        "body:" => (Source::Body(format.clone()?, list(format?)?), Trust::Claim),
        "request:" => (Source::Request(format.clone()?, field(name, format?)?), Trust::Claim),
        _ => (Source::Answer(list(BodyFormat::Json)?), Trust::Answer),
    })
}

/// Whether a constant looks like a source or a variable with a typo, or like a word of the directives: as the name of
/// a user it would make all users one.
fn is_meant_otherwise<T: Text>(source: &Source<T>, text: &[u8]) -> bool {
    const WORDS: [&[u8]; 4] = [b"verified", b"session", b"basic", b"remote_user"];
    const VARIABLES: [&[u8]; 5] = [b"cookie_", b"http_", b"arg_", b"upstream_", b"sent_http_"];
    let Source::Text(compiled, _) = source else { return false };
    if compiled.constant().is_none() {
        return false;
    }
    let text = text.to_ascii_lowercase();
    let word = text.split(|b| *b == b':').next().unwrap_or_default();
    let is_source = word.len() < text.len()
        && !word.is_empty()
        && word.iter().all(|b| b.is_ascii_alphabetic() || *b == b'_');
    is_source
        || WORDS.contains(&&*text)
        || VARIABLES.iter().any(|variable| text.starts_with(variable))
}

fn sounds_secret(name: &[u8]) -> bool {
    Folded::new(name).is_none_or(|name| name.is_secret(|_| false))
}

/// Whether the names of the cookie, header, argument or variables say that the value is a secret. Of the answer an
/// application may name its user anywhere. What is a field of a body or of an answer is checked where it is parsed.
fn names_secret<T>(source: &Source<T>, text: &[u8], purpose: Purpose) -> bool {
    const REQUEST: [&[u8]; 3] = [b"cookie_", b"http_", b"arg_"];
    const ANSWER: [&[u8]; 3] = [b"upstream_cookie_", b"upstream_http_", b"sent_http_"];
    let is_sent = purpose == Purpose::Send;
    match source {
        Source::Cookie(name) => sounds_secret(name.text.as_bytes()),
        Source::SetCookie(name) => is_sent && sounds_secret(name.text.as_bytes()),
        Source::Header(name) | Source::Arg(name, _) => sounds_secret(name.as_bytes()),
        Source::Text(..) => variables(text).any(|variable| {
            let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            let end = variable.iter().position(|b| !is_name(b)).unwrap_or(variable.len());
            let of_answer = ANSWER.iter().filter(|_| is_sent);
            let mut of = REQUEST.iter().chain(of_answer);
            of.any(|of| variable[..end].strip_prefix(*of).is_some_and(sounds_secret))
        }),
        Source::Body(..) | Source::Request(..) | Source::Answer(_) => false,
    }
}

/// The names of the variables in a text of nginx, each with the text that follows it.
pub fn variables(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let names = text.split(|b| *b == b'$').skip(1);
    names.map(|name| name.strip_prefix(b"{").unwrap_or(name))
}

/// A constant comes from the configuration. Only nginx's own variables of the answer are surely not from
/// the request, in which a client can name anybody; other variables may be a map's.
fn trust_of(text: &[u8]) -> Trust {
    const ANSWER: [&[u8]; 3] = [b"upstream_http_", b"upstream_cookie_", b"sent_http_"];
    let mut names = variables(text).peekable();
    if names.peek().is_none() {
        return Trust::Verified;
    }
    let answered = names.all(|name| ANSWER.iter().any(|prefix| name.starts_with(prefix)));
    if answered { Trust::Answer } else { Trust::Claim }
}

/// The name of the variable that the text is, if that is a cookie of the request or the answer.
fn cookie_variable(text: &[u8]) -> Option<&[u8]> {
    let name = text.strip_prefix(b"$")?;
    let braced = name.strip_prefix(b"{").and_then(|name| name.strip_suffix(b"}"));
    let name = braced.unwrap_or(name);
    let is_cookie = name.starts_with(b"cookie_") || name.starts_with(b"upstream_cookie_");
    let is_whole = name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
    (is_cookie && is_whole).then_some(name)
}

/// The argument of a query, decoded as in a form. Of several, the last one counts, as in Rails; for an
/// application that reads JSON the first one, as in Go.
fn arg<'q>(query: &'q [u8], name: &str, format: Option<BodyFormat>) -> Option<Cow<'q, [u8]>> {
    let mut values = args(query, |key| key == name.as_bytes());
    if format == Some(BodyFormat::Json) { values.next() } else { values.last() }
}

/// The values of the arguments whose name `is_it`, decoded as in a form.
fn args<'q>(query: &'q [u8], is_it: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = Cow<'q, [u8]>> {
    query.split(|b| *b == b'&').filter_map(move |pair| {
        let equals = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
        is_it(&form_text(&pair[..equals]))
            .then(|| form_text(pair.get(equals + 1..).unwrap_or_default()))
    })
}

/// The name in HTTP basic authentication, as `Authorization` carries it.
pub fn basic_name(authorization: &[u8]) -> Option<Vec<u8>> {
    let value = authorization.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace)?;
    if !value[..end].eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = zeroize::Zeroizing::new(decode_base64(value[end..].trim_ascii())?);
    let colon = decoded.iter().position(|b| *b == b':')?;
    (colon > 0).then(|| decoded[..colon].to_vec())
}

fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// The number of hash digits at the end of a name that was too long.
const HASH_DIGITS: usize = 16;

/// A user's name in its recorded form: without quotes and blanks around it; in lower case, unless case
/// distinguishes users; as valid UTF-8, where any other text is taken for Latin-1; and not longer than
/// Tirreno keeps. A longer name ends with a hash of the whole name.
pub fn user_name(name: Cow<'_, [u8]>, case_matters: bool) -> Cow<'_, [u8]> {
    let limit = Param::UserName.limit();
    let is_plain = |b: &u8| matches!(b, b'!'..=b'~') & (*b != b'"');
    let is_kept = |b: &u8| is_plain(b) & (case_matters | !b.is_ascii_uppercase());
    // A loop without branches over whole blocks: the compiler makes each a few instructions.
    let all = |part: &[u8]| part.iter().fold(true, |all, b| all & is_kept(b));
    let is_as_recorded = || match name.last_chunk::<16>() {
        Some(last) => name.as_chunks::<16>().0.iter().all(|block| all(block)) && all(last),
        None => all(&name),
    };
    if name.len() <= limit && is_as_recorded() { name } else { changed_name(&name, case_matters) }
}

/// The recorded form of a name that differs from the name itself.
#[cold]
fn changed_name(name: &[u8], case_matters: bool) -> Cow<'static, [u8]> {
    let limit = Param::UserName.limit();
    let text = unquote(name.trim_ascii());
    let text: Cow<'_, str> = match str::from_utf8(text) {
        Ok(text) => text.into(),
        Err(_) => text.iter().map(|b| char::from(*b)).collect::<String>().into(),
    };
    let mut text = if case_matters { text.into_owned() } else { text.to_lowercase() };
    if text.len() > limit {
        let hash = Sha256::digest(text.as_bytes());
        text.truncate(cut_before(&text, limit - HASH_DIGITS - 1));
        text.push('-');
        for byte in &hash[..HASH_DIGITS / 2] {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or_default());
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or_default());
        }
    }
    text.into_bytes().into()
}

/// A name without the differences that some applications ignore: case, blanks, and the choice of the sign
/// between letters and digits.
fn canonical(name: &str) -> String {
    let sign = |c: char| if c.is_alphanumeric() { c } else { '_' };
    let name: String = name.to_lowercase().chars().map(sign).collect();
    name.trim_matches('_').to_owned()
}

/// Whether a field of that name may hold a secret: common names, and parts of names, of passwords, tokens
/// and second factors.
fn is_secret(name: &str) -> bool {
    const PARTS: [&str; 9] = [
        "passw",
        "passphrase",
        "passcode",
        "passkey",
        "pwd",
        "psw",
        "secret",
        "token",
        "credential",
    ];
    const WORDS: [&str; 9] =
        ["pass", "pin", "otp", "totp", "code", "mfa", "key", "answer", "private"];
    let name = canonical(name);
    let mut words = name.split('_').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    PARTS.iter().any(|part| name.contains(part)) || words.any(|word| WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::extract::php_has;
    use crate::capture::facts::{Facts, compile, value};

    fn read(text: &'static str, facts: &Facts) -> String {
        match value(text).get(facts, None) {
            Read::Text(text) => String::from_utf8(text.into_owned()).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn fields_that_may_become_a_part_of_an_event() {
        let is_taken = |text: &'static str, purpose| {
            Value::parse(text.as_bytes(), purpose, Some(BodyFormat::Json), &mut compile).is_ok()
        };
        for text in ["answer:code", "answer:error.code", "body:country_code", "body:sort_key"] {
            assert!(is_taken(text, Purpose::Send), "{text}");
        }
        for text in ["answer:token", "answer:user.api_key", "body:password", "request:otp"] {
            assert!(!is_taken(text, Purpose::Send), "{text}");
            assert!(is_taken(text, Purpose::Look), "{text}");
        }
        assert!(is_taken("answer:member.key", Purpose::Name));
        assert!(!is_taken("body:pass", Purpose::Name));
    }

    #[test]
    fn several_cookies_may_be_one_to_php() {
        let has_several = |text: &'static str, cookies: &'static str| {
            let headers = vec![("Cookie", cookies)];
            value(text).has_several_cookies(&Facts { headers, ..Facts::default() })
        };
        for name in ["in.a", "in a", "in[a", " \x0bin_a", "in_b", "in_a "] {
            let cookies = format!("{name}=x|1; in_a=y|2").leak();
            assert!(has_several("cookie:in_*~^([^|]+)", cookies), "{name:?}");
        }
        for name in ["in.a", "IN_A", "in_a"] {
            assert!(has_several("$cookie_in_a", format!("{name}=x; in_a=y").leak()), "{name:?}");
        }
        assert!(!has_several("cookie:in_*", "on_a=x; in_a=y; ina=z"));
        assert!(!has_several("cookie:in_a", "in_b=x; in_a=y"));
    }

    #[test]
    fn every_source_gives_its_value() {
        let facts = Facts {
            query: "a=1&b=x%20y+z&a=2&Action=no&%61ction=yes&user[id]=5",
            variables: vec![("http_x", "head"), ("cookie_c", "%41nn"), ("empty", "")],
            headers: vec![
                (
                    "Cookie",
                    "c=%22q%22; wp_abc=ann%40example.com|9; wp_d=bob|1; quoted=\"v\"; bad=%ff%00",
                ),
                ("X-User", "ann"),
                ("x-user", "bob"),
            ],
            body: vec![
                ("log", Found::Value("joe")),
                ("blank", Found::Value("  ")),
                ("odd", Found::Unreadable),
                ("late", Found::Unread),
            ],
            answer: vec![("id", Found::Value("u1")), ("user.name", Found::Value("Ann"))],
            answer_headers: vec![("set-cookie", "uid=%41b; Path=/"), ("set-cookie", "wp_x=eve|2")],
            ..Facts::default()
        };
        for (text, found) in [
            ("text", "text"),
            ("$http_x", "head"),
            ("$cookie_c", "Ann"),
            ("${cookie_c}~(.)nn", "A"),
            ("$empty", ""),
            ("cookie:c", "\"q\""),
            ("cookie:quoted", "v"),
            ("cookie:bad", "%ff%00"),
            ("cookie:C", "Absent"),
            ("cookie:wp_*~^([^|]+)", "ann@example.com"),
            ("cookie:wp_*~^(b[^|]+)", "bob"),
            ("cookie:wp_*~never", "Absent"),
            ("header:X-USER", "ann"),
            ("header:none", "Absent"),
            ("arg:a", "2"),
            ("arg:b", "x y z"),
            ("arg:action", "yes"),
            ("arg:user[id]", "5"),
            ("arg:none", "Absent"),
            ("body:log", "joe"),
            ("body:none,blank,log", "joe"),
            ("body:odd,late", "Unreadable"),
            ("body:late", "Unread"),
            ("body:none", "Absent"),
            ("request:log", "joe"),
            ("request:b", "x y z"),
            ("request:odd", "Unreadable"),
            ("answer:id", "u1"),
            ("answer:none,user.name", "Ann"),
            ("set_cookie:uid", "Ab"),
            ("set_cookie:wp_*~^([^|]+)", "eve"),
            ("set_cookie:c", "Absent"),
            // In a constant, `~` is an ordinary character.
            ("/~ann", "/~ann"),
            ("header:x-user~^(?i:(A)NN)$", "a"),
            ("header:x-user~n", "n"),
        ] {
            assert_eq!(read(text, &facts), found, "{text}");
        }
        let first = arg(b"a=1&a=2", "a", Some(BodyFormat::Json));
        assert_eq!(first.as_deref(), Some(&b"1"[..]));
    }

    /// Otherwise a password that WordPress tries would pass for what the query says.
    #[test]
    fn arguments_are_read_as_by_php() {
        let many = |before: &str, after: &str| format!("{before}{}{after}", "a&&".repeat(1000));
        for (query, found) in [
            ("+a.b=1", "1"),
            ("a%20b=1", "1"),
            ("%00=x&a_b=1", "1"),
            ("a_b=1&A_b=2", "1"),
            ("a_b%00c=1", "1"),
            ("a_b=2&a_b=1", "1"),
            ("a_b=1&a_b[]=2", "Unreadable"),
            ("a_b[x]=1", "Unreadable"),
            ("a_b[]=2&a_b=1", "1"),
            (&many("", "a_b=1"), "Unreadable"),
            (&many("a_b=1&", "a_b=2"), "Unreadable"),
            (&many("a_b=1&", "c=2"), "1"),
            (&"a&&".repeat(999), "Absent"),
            (&("a&&".repeat(999) + "a_b=1"), "1"),
        ] {
            let query: &str = Box::leak(query.into());
            let facts = Facts { query, ..Facts::default() };
            let php = |text| match value(text).get(&facts, Some(BodyFormat::Php)) {
                Read::Text(text) => String::from_utf8(text.into_owned()).unwrap(),
                other => format!("{other:?}"),
            };
            assert_eq!(php("arg:a_b"), found, "{query}");
            assert_eq!(php("request:a_b"), found, "{query}");
            assert_eq!(php_has(query.as_bytes(), "a_b"), query.contains("a_b") || found == "1");
            let facts = Facts { body: vec![("a_b", Found::Unreadable)], ..facts.clone() };
            assert_eq!(value("request:a_b").get(&facts, None), Read::Unreadable, "{query}");
        }
    }

    /// Otherwise an attacker who signs in to his own account would do so under the name of a victim.
    #[test]
    fn the_query_outranks_the_body_in_rails() {
        let rails = |text: &'static str, facts: &Facts| {
            let format = Some(BodyFormat::Rails);
            let value = Value::parse(text.as_bytes(), Purpose::Name, format, &mut compile).unwrap();
            match value.get(facts, format) {
                Read::Text(text) => String::from_utf8(text.into_owned()).unwrap(),
                other => format!("{other:?}"),
            }
        };
        for (query, found) in [
            ("", "ann"),
            ("page=user&login=1&users[login]=x&x=user[login]", "ann"),
            ("user[login]=me", "Unreadable"),
            ("a=1&us%65r%5Bpassword%5D=x", "Unreadable"),
            ("user", "Unreadable"),
            ("+[user][x", "Unreadable"),
            ("a;user[]=x", "Unreadable"),
        ] {
            let body = vec![("user[login]", Found::Value("ann"))];
            let facts = Facts { query, body, ..Facts::default() };
            assert_eq!(rails("body:user[login]", &facts), found, "{query}");
            assert_eq!(rails("body:no,user[login]", &facts), found, "{query}");
            assert_eq!(rails("request:user[login]", &facts), found, "{query}");
            assert_eq!(read("body:user[login]", &facts), "ann");
        }
        let facts = Facts { query: "user[login]=me", ..Facts::default() };
        assert_eq!(rails("body:user[login]", &facts), "Unreadable");
        assert_eq!(rails("request:user[login]", &facts), "me");
    }

    #[test]
    fn who_says_so() {
        for (text, trust) in [
            ("ann", Trust::Verified),
            ("", Trust::Verified),
            ("$remote_user", Trust::Claim),
            ("$cookie_id", Trust::Claim),
            ("$upstream_http_x_user", Trust::Answer),
            ("x-${sent_http_x}-$upstream_cookie_y", Trust::Answer),
            ("$upstream_cookie_y$cookie_y", Trust::Claim),
            // A map's variable may have such a name.
            ("$upstream_http_map", Trust::Claim),
            ("$upstream_user", Trust::Claim),
            ("$sent_user", Trust::Claim),
            ("cookie:id", Trust::Claim),
            ("header:x", Trust::Claim),
            ("body:x", Trust::Claim),
            ("set_cookie:x", Trust::Answer),
            ("answer:x", Trust::Answer),
        ] {
            assert_eq!(value(text).trust(), trust, "{text}");
        }
        assert_eq!(value("$remote_user").verified().trust(), Trust::Verified);
    }

    #[test]
    fn what_is_no_value() {
        for (text, purpose, error) in [
            ("$none", Purpose::Name, ValueError::Text),
            ("cookie:", Purpose::Name, ValueError::Name("cookie:")),
            ("cookie:a b", Purpose::Name, ValueError::Name("cookie:")),
            ("cookie:a*b*", Purpose::Name, ValueError::Name("cookie:")),
            ("header:", Purpose::Name, ValueError::Name("header:")),
            ("arg:", Purpose::Name, ValueError::Name("arg:")),
            ("body:", Purpose::Name, ValueError::Field(FieldError::Empty)),
            ("answer:a,", Purpose::Name, ValueError::Field(FieldError::Empty)),
            ("body:$x", Purpose::Name, ValueError::Variable),
            ("body:password", Purpose::Name, ValueError::Secret),
            ("body:token", Purpose::Send, ValueError::Secret),
            ("arg:access_token", Purpose::Send, ValueError::Secret),
            ("cookie:PHPSESSID", Purpose::Name, ValueError::Secret),
            ("cookie:sid*", Purpose::Send, ValueError::Secret),
            ("cookie:session~abc", Purpose::Send, ValueError::Secret),
            ("set_cookie:token", Purpose::Send, ValueError::Secret),
            ("header:Cookie", Purpose::Send, ValueError::Secret),
            ("header:set-cookie", Purpose::Send, ValueError::Secret),
            ("header:Authorization", Purpose::Name, ValueError::Secret),
            ("header:Proxy-Authorization", Purpose::Send, ValueError::Secret),
            ("header:X-Api-Key", Purpose::Send, ValueError::Secret),
            ("$http_authorization", Purpose::Send, ValueError::Secret),
            ("a-${http_cookie}b", Purpose::Send, ValueError::Secret),
            ("$cookie_session", Purpose::Name, ValueError::Secret),
            ("$arg_token", Purpose::Send, ValueError::Secret),
            ("$upstream_cookie_token", Purpose::Send, ValueError::Secret),
            ("$sent_http_set_cookie", Purpose::Send, ValueError::Secret),
        ] {
            let found =
                Value::parse(text.as_bytes(), purpose, Some(BodyFormat::Json), &mut compile);
            // A `*` inside a cookie's name is an ordinary character.
            if text != "cookie:a*b*" {
                assert_eq!(found.unwrap_err(), error, "{text}");
            }
            assert!(!error.to_string().is_empty());
        }
        let look = |text: &'static str, format| {
            Value::parse(text.as_bytes(), Purpose::Look, format, &mut compile)
        };
        for text in ["header:Authorization", "$http_cookie", "cookie:sid", "arg:token"] {
            assert!(look(text, None).is_ok(), "{text}");
        }
        for text in [
            "cookie:session~^(ann)",
            "$http_cookie~u=(a)",
            "$cookie_user",
            "header:X-User",
            "arg:q",
        ] {
            let sent = Value::parse(text.as_bytes(), Purpose::Send, None, &mut compile);
            assert!(sent.is_ok(), "{text}");
        }
        assert!(look("body:token", Some(BodyFormat::Json)).is_ok());
        assert_eq!(look("body:x", None).unwrap_err(), ValueError::NoFormat);
        assert_eq!(look("request:x", None).unwrap_err(), ValueError::NoFormat);
        for text in ["cookie:a~", "cookie:a~(", "$http_x~[", "cookie:a~(a{1000}){1000}"] {
            let error = look(text, None).unwrap_err();
            assert!(matches!(&error, ValueError::Regex(text) if !text.contains('\n')), "{error:?}");
        }
    }

    #[test]
    fn a_session_is_sent_by_the_values_of_its_name() {
        let parse = |text: &'static str, purpose| {
            Value::parse(text.as_bytes(), purpose, None, &mut compile).unwrap()
        };
        for (own, secret, sends) in [
            ("cookie:S", "cookie:S", true),
            ("cookie:S*", "cookie:Sx", true),
            ("cookie:Sx", "cookie:S*", true),
            ("cookie:S~a", "cookie:S", true),
            ("cookie:S~^(a)", "cookie:S", false),
            ("cookie:s", "cookie:S", false),
            ("$cookie_s", "cookie:S", true),
            ("cookie:S", "$cookie_s", true),
            ("$cookie_s", "$cookie_s", true),
            ("$cookie_t", "$cookie_s", false),
            ("$http_x", "$http_y", false),
            ("header:X-S", "header:x-s", true),
            ("header:X-S", "cookie:X-S", false),
        ] {
            let secret = parse(secret, Purpose::Look);
            assert_eq!(parse(own, Purpose::Send).sends(&secret), sends, "{own}");
            assert!(!parse(own, Purpose::Look).sends(&secret), "{own}");
        }
    }

    #[test]
    fn values_are_joined_by_a_plus() {
        let split = |text: &'static str| {
            let parts = split_joined(text.as_bytes());
            parts.map(|part| str::from_utf8(part).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(split("cookie:a"), ["cookie:a"]);
        assert_eq!(split("cookie:a+cookie:b*+$http_x"), ["cookie:a", "cookie:b*", "$http_x"]);
        assert_eq!(split("cookie:a~x+"), ["cookie:a~x+"]);
    }

    #[test]
    fn names_of_users() {
        let name = |text: &[u8], case| user_name(text.into(), case).into_owned();
        let text = |text: &str| name(text.as_bytes(), true);
        assert_eq!(text("ann@example.com"), b"ann@example.com");
        assert_eq!(text(" \"Ann\" "), b"Ann");
        assert_eq!(text("\"ann"), b"\"ann");
        assert_eq!(name(b"AnN", false), b"ann");
        assert_eq!(name("ÄNN".as_bytes(), false), "änn".as_bytes());
        // Latin-1.
        assert_eq!(name(b"m\xfcller", true), "müller".as_bytes());
        assert_ne!(name(b"m\xfcller", true), name(b"m\xf6ller", true));
        let long = |end: &str| text(&format!("{}{end}", "é".repeat(60)));
        assert_eq!(long("").len(), 99);
        assert_ne!(long("a"), long("b"));
        assert_eq!(long("a"), long("a"));
        assert!(str::from_utf8(&long("a")).is_ok());
        assert_eq!(text(&"a".repeat(100)), "a".repeat(100).as_bytes());
        assert_eq!(text(&"a".repeat(101)).len(), 100);
        // Wherever in the name the one byte is that is changed.
        for (len, at) in (1..=40).flat_map(|len| (0..len).map(move |at| (len, at))) {
            let with = |byte: u8| {
                let mut name = vec![b'a'; len];
                name[at] = byte;
                name
            };
            assert_eq!(name(&with(b'N'), false), with(b'n'), "{len} {at}");
            assert_eq!(name(&with(b'N'), true), with(b'N'), "{len} {at}");
            assert_ne!(name(&with(0xe4), true), with(0xe4), "{len} {at}");
        }
    }

    #[test]
    fn basic_authentication() {
        assert_eq!(basic_name(b"Basic YW5uOnNlY3JldA=="), Some(b"ann".to_vec()));
        assert_eq!(basic_name(b" basic  YW5uOjo= "), Some(b"ann".to_vec()));
        // `müller` in Latin-1.
        assert_eq!(basic_name(b"Basic bfxsbGVyOng="), Some(b"m\xfcller".to_vec()));
        for none in
            ["", "Basic", "Basic %", "Bearer YW5uOnNlY3JldA==", "Basic YW5u", "Basic OnNlY3JldA=="]
        {
            assert_eq!(basic_name(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn passwords_are_no_users() {
        for name in ["password", "Passwd", "new_password", "user[password]", "pwd", "token", "code"]
        {
            assert!(is_secret(name), "{name}");
        }
        for name in ["login_id", "id", "username", "user[login]", "log", "email", "passenger"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
