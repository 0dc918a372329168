//! Hides secrets in the URLs of events.
//!
//! These are secrets: the value of an argument whose name sounds secret (see `secret_name`) or is in the
//! configuration; a value that looks like a secret (a JSON Web Token, `Bearer …`, `user:password@`); and a
//! path segment that a rule marks as secret, even in a path inside an argument. A secret is found under
//! several layers of percent-encoding, and in JSON or a form inside a value. What cannot be checked is
//! hidden.
//!
//! The code runs in nginx's event loop on input from clients. Its work is linear in the length of the
//! input, at most about 20 instructions a byte, and it examines a bounded number of arguments.

use std::ops::Range;

use memchr::{memchr, memchr2, memchr3};

use crate::capture::path;
use crate::capture::rules::{Methods, Pattern, Rules};
use crate::capture::secret_name::{Folded, may_be_secret};

/// The replacement for a secret.
pub const MASK: &[u8] = b"***";

/// How many arguments, and names inside their values, are examined in one URL. The rest of the URL is
/// hidden.
pub const MAX_ARGUMENTS: usize = 160;

/// The longest name or value that is examined, in bytes; a longer one is hidden. Tirreno takes no longer
/// URL.
pub const MAX_VALUE: usize = 2047;

/// How many paths inside arguments are examined.
const MAX_PATHS: usize = 64;

/// How many layers of percent-encoding a value may have. A value with more is hidden.
const MAX_LAYERS: usize = 4;

/// Appends the secret ranges of a normalized path.
pub type FindSegments<'f> = dyn Fn(&[u8], &mut Vec<Range<usize>>) + 'f;

/// Finds the secret segments of paths.
#[derive(Clone, Copy, Default)]
pub struct Paths<'f> {
    /// For the URL's own path. If it finds a secret, the result has the normalized path.
    pub own: Option<&'f FindSegments<'f>>,
    /// For paths inside arguments.
    pub nested: Option<&'f FindSegments<'f>>,
    /// The URL's own path from [`path::normalize`], if the caller has it already.
    pub normalized: Option<&'f [u8]>,
}

/// The secret segments of many rules, for URLs of any application.
#[derive(Debug)]
pub struct SecretSegments(Rules<Box<[String]>>);

impl SecretSegments {
    /// Takes patterns, the names of their secret segments, and the prefix of their paths (`/chat`, or
    /// empty).
    pub fn new<'p>(rules: impl IntoIterator<Item = (Pattern, Box<[String]>, &'p [u8])>) -> Self {
        let rule = |(pattern, names, prefix): (Pattern, _, &[u8])| {
            (Methods::any(), pattern.below(prefix), names)
        };
        Self(Rules::new(rules.into_iter().map(rule).collect()))
    }

    /// Appends the secret ranges of a normalized path.
    pub fn find(&self, path: &[u8], out: &mut Vec<Range<usize>>) {
        self.0.any_method(path, |names, segments| {
            out.extend(names.iter().filter_map(|name| segments.range(name)));
        });
    }
}

/// Memory for a redacted URL, reused for the next one.
#[derive(Debug, Default)]
pub struct Scratch {
    bare: Vec<u8>,
    steps: Steps,
}

#[derive(Debug, Default)]
struct Steps {
    normalized: Vec<u8>,
    ranges: Vec<Range<usize>>,
    hidden: Vec<u8>,
    text: TextScratch,
    out: Vec<u8>,
}

/// Memory for decoding names and values of arguments.
#[derive(Debug, Default)]
struct TextScratch {
    decoded: [Vec<u8>; 2],
    plain: Vec<u8>,
    path: Vec<u8>,
    normalized: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

/// The configuration of `tirreno_redact`: which arguments are secret.
#[derive(Clone, Debug)]
pub struct Redaction {
    /// Whether arguments are redacted at all.
    on: bool,
    /// Secret besides the names that sound secret; folded and sorted.
    hidden: Box<[Box<[u8]>]>,
    /// Not secret although their names sound so; folded and sorted.
    shown: Box<[Box<[u8]>]>,
}

impl Default for Redaction {
    /// Only the names that sound secret.
    fn default() -> Self {
        Self::new([])
    }
}

impl Redaction {
    /// The names that sound secret, and an application's own `names`; `!name` is not secret. If a name is
    /// given twice, the first one counts.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let (mut hidden, mut shown) = (Vec::new(), Vec::new());
        for name in names {
            let (name, list, other) = match name.strip_prefix('!') {
                Some(name) => (name, &mut shown, &hidden),
                None => (name, &mut hidden, &shown),
            };
            // `user[otp]` is compared part by part, and the last part is the name of the value.
            let folded = Folded::new(name.as_bytes());
            let last = folded.and_then(|name| name.parts().last().map(Box::<[u8]>::from));
            list.extend(last.filter(|name| !other.contains(name)));
        }
        let sorted = |mut names: Vec<Box<[u8]>>| {
            names.sort_unstable();
            names.dedup();
            names.into()
        };
        Self { on: true, hidden: sorted(hidden), shown: sorted(shown) }
    }

    /// Redacts no arguments, only the paths of rules.
    pub fn off() -> Self {
        Self { on: false, hidden: Box::default(), shown: Box::default() }
    }

    /// Returns a request target, or a URL (`https://host/path`, `host/path`), without its secrets; `url`
    /// itself if it has none.
    pub fn url<'a>(&self, url: &'a [u8], paths: Paths<'_>, scratch: &'a mut Scratch) -> &'a [u8] {
        // A target `//a` is a path, not an authority.
        if url.starts_with(b"/") {
            return self.hide(url, || 0, paths, &mut scratch.steps);
        }
        let Scratch { bare, steps } = scratch;
        let bare = self.without_user(url, paths, bare);
        self.hide(bare, || authority(bare).end, paths, steps)
    }

    /// Whether an argument of that name and value is a secret, or has one, in any URL.
    pub fn hides(
        &self,
        name: &str,
        value: &[u8],
        nested: Option<&FindSegments<'_>>,
        scratch: &mut Scratch,
    ) -> bool {
        let Scratch { bare, steps } = scratch;
        bare.clear();
        bare.push(b'?');
        bare.extend_from_slice(name.as_bytes());
        bare.push(b'=');
        // Bytes that have a meaning in a query would cut the value.
        for byte in value {
            match byte {
                b'%' | b'&' | b';' | b'#' | b'+' => {
                    bare.extend_from_slice(percent_encoding::percent_encode_byte(*byte).as_bytes());
                }
                byte => bare.push(*byte),
            }
        }
        let paths = Paths { nested, ..Paths::default() };
        self.hide(bare, || 0, paths, steps) != &bare[..]
    }

    /// Returns a Referer without its secrets, its fragment and its user; the Referer itself if nothing is
    /// secret.
    pub fn referer<'a>(
        &self,
        referer: &'a [u8],
        paths: Paths<'_>,
        scratch: &'a mut Scratch,
    ) -> &'a [u8] {
        let Scratch { bare, steps } = scratch;
        let mut url = referer;
        if (self.on || paths.own.is_some()) && url.contains(&b'#') {
            url = url.split(|b| *b == b'#').next().unwrap_or_default();
        }
        url = self.without_user(url, paths, bare);
        self.hide(url, || authority(url).end, paths, steps)
    }

    fn without_user<'a>(&self, url: &'a [u8], paths: Paths<'_>, out: &'a mut Vec<u8>) -> &'a [u8] {
        // Most Referers have no user, and `contains` is the faster check.
        if (self.on || paths.own.is_some()) && url.contains(&b'@') {
            drop_user(url, out)
        } else {
            url
        }
    }

    /// Hides the secrets in `url`, whose path begins at `start`.
    fn hide<'a>(
        &self,
        url: &'a [u8],
        start: impl FnOnce() -> usize,
        paths: Paths<'_>,
        steps: &'a mut Steps,
    ) -> &'a [u8] {
        let Steps { normalized, ranges, hidden, text, out } = steps;
        let url = match paths.own {
            Some(find) => {
                let start = start();
                let normalized = match paths.normalized {
                    Some(path) => path,
                    None => path::normalize(&url[start..], normalized),
                };
                ranges.clear();
                find(normalized, ranges);
                if ranges.is_empty() && normalized.contains(&b'%') {
                    find_encoded(normalized, find, ranges, text);
                }
                hide_segments(url, start, normalized, ranges, hidden)
            }
            None => url,
        };
        if !(self.on || paths.nested.is_some()) {
            return url;
        }
        let path_end = memchr2(b'?', b'#', url).unwrap_or(url.len());
        let start = if has_mark(&url[..path_end]) { 0 } else { path_end + 1 };
        if start >= url.len() {
            return url;
        }
        let (nested, left) = (paths.nested, MAX_ARGUMENTS);
        let look = Look { redaction: self, nested, left, left_paths: MAX_PATHS, text };
        look.hide_arguments(url, start, path_end, out)
    }

    /// Whether a decoded name, or a part of one like `user[password]` or `token[]`, is secret.
    fn is_secret(&self, name: &[u8]) -> bool {
        if self.hidden.is_empty() && !may_be_secret(name) {
            return false;
        }
        let Some(name) = Folded::new(name) else { return true };
        let is_in = |list: &[Box<[u8]>], part: &[u8]| {
            list.binary_search_by(|known| known.as_ref().cmp(part)).is_ok()
        };
        !self.hidden.is_empty() && name.parts().any(|part| is_in(&self.hidden, part))
            || name.is_secret(|part| is_in(&self.shown, part))
    }
}

/// Whether a path may contain more than plain segments: an argument, an encoded byte, a user, JSON, a JSON
/// Web Token.
fn has_mark(path: &[u8]) -> bool {
    path.iter().fold(0, |seen, byte| seen | CLASSES[usize::from(*byte)]) & MARK != 0
}

/// A search for secrets in the arguments of one URL.
struct Look<'r, 's> {
    redaction: &'r Redaction,
    nested: Option<&'r FindSegments<'r>>,
    /// How many more arguments and names may be examined.
    left: usize,
    /// How many more paths inside arguments may be examined.
    left_paths: usize,
    text: &'s mut TextScratch,
}

/// Where the secret of a name or value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// After it: it ends with a secret name.
    Behind,
    /// Inside it.
    Inside,
}

impl Look<'_, '_> {
    /// Masks the values of secret arguments in the query, in the fragment, and in the path, where arguments
    /// follow a `;` or, in a broken link, a `&`.
    fn hide_arguments<'a>(
        mut self,
        url: &'a [u8],
        start: usize,
        path_end: usize,
        out: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        let (mut start, mut done) = (start, 0);
        out.clear();
        while start < url.len() {
            let mut argument = Argument::at(url, start, path_end);
            let secret = match self.left.checked_sub(1) {
                Some(left) => {
                    self.left = left;
                    self.secret_in(&url[start..argument.end], &argument)
                }
                None => {
                    argument.end = url.len();
                    Some(0)
                }
            };
            let mut end = argument.end;
            if let Some(secret) = secret {
                // A piece after `;` without a name belongs to the value.
                while url.get(end) == Some(&b';') {
                    let next = Argument::at(url, end + 1, path_end);
                    if next.equals.is_some() {
                        break;
                    }
                    end = next.end;
                }
                if &url[start + secret..end] != MASK {
                    out.extend_from_slice(&url[done..start + secret]);
                    out.extend_from_slice(MASK);
                    done = end;
                }
            }
            start = end + 1;
        }
        if done == 0 {
            return url;
        }
        out.extend_from_slice(&url[done..]);
        out
    }

    /// Where the secret begins in an argument: at its value, or at its start if the name contains a secret,
    /// as in `/login%3Ftoken%3Dabc`.
    fn secret_in(&mut self, text: &[u8], argument: &Argument) -> Option<usize> {
        let Some(equals) = argument.equals else {
            return (self.read(text, argument.name, false) == Found::Inside).then_some(0);
        };
        match self.read(&text[..equals], argument.name, true) {
            Found::Inside => Some(0),
            Found::Behind => Some(equals + 1),
            Found::Nothing => {
                let found = self.read(&text[equals + 1..], argument.value, false);
                (found == Found::Inside).then_some(equals + 1)
            }
        }
    }

    /// Examines a name or value, decoded; `seen` are the classes of its bytes. `is_named`: a `=` follows
    /// it.
    fn read(&mut self, raw: &[u8], seen: u8, is_named: bool) -> Found {
        let TextScratch { decoded, plain, path, normalized, ranges } = &mut *self.text;
        let (mut text, mut seen) = (raw, seen);
        if self.redaction.on && raw.len() > MAX_VALUE {
            return Found::Inside;
        }
        if seen & PERCENT != 0 {
            match decode_all(raw, decoded) {
                Some(decoded) => text = decoded,
                None => return Found::Inside,
            }
            seen = text.iter().fold(0, |seen, byte| seen | CLASSES[usize::from(*byte)]);
        }
        if seen & BACKSLASH != 0 {
            text = unescape(text, plain);
        }
        let mut last_name = 0;
        if self.redaction.on && seen & SPECIAL != 0 {
            let mut scan = Scan { redaction: self.redaction, left: &mut self.left, name: 0 };
            if scan.has_secret(text) {
                return Found::Inside;
            }
            last_name = scan.name;
        }
        if seen & SLASH != 0
            && let Some(find) = self.nested
            && has_secret_path(text, find, &mut self.left_paths, path, normalized, ranges)
        {
            return Found::Inside;
        }
        match self.redaction.on && is_named && self.redaction.is_secret(&text[last_name..]) {
            true => Found::Behind,
            false => Found::Nothing,
        }
    }
}

/// An argument. In the path, the end of a segment ends it, too.
struct Argument {
    /// Where it ends.
    end: usize,
    /// The place of its first `=`.
    equals: Option<usize>,
    /// The classes of the bytes before the `=`, and after it.
    name: u8,
    value: u8,
}

impl Argument {
    /// Reads the argument that begins at `start`.
    fn at(url: &[u8], start: usize, path_end: usize) -> Self {
        let ends = if start <= path_end { IN_PATH } else { IN_QUERY };
        let until = |start: usize, stop: u8| {
            let (mut at, mut seen) = (start, 0);
            while let Some(byte) = url.get(at) {
                let class = CLASSES[usize::from(*byte)];
                if class & stop != 0 {
                    break;
                }
                seen |= class;
                at += 1;
            }
            (at, seen)
        };
        let (mut end, mut name) = until(start, ends | EQUALS | PERCENT);
        if url.get(end) == Some(&b'%') {
            name |= PERCENT;
            end = match ends {
                IN_QUERY => {
                    let most = end_of_argument(url, end);
                    memchr(b'=', &url[end..most]).map_or(most, |len| end + len)
                }
                _ => until(end, ends | EQUALS).0,
            };
        }
        if url.get(end) != Some(&b'=') {
            return Self { end, equals: None, name, value: 0 };
        }
        let equals = Some(end - start);
        let mut value;
        (end, value) = until(end + 1, ends | PERCENT);
        if url.get(end) == Some(&b'%') {
            // The classes of the remaining bytes do not matter: the value will be decoded and examined.
            value |= PERCENT;
            end = match ends {
                IN_QUERY => end_of_argument(url, end),
                _ => until(end, ends).0,
            };
        }
        Self { end, equals, name, value }
    }
}

/// Where an argument of the query ends.
fn end_of_argument(url: &[u8], start: usize) -> usize {
    memchr3(b'&', b';', b'#', &url[start..]).map_or(url.len(), |len| start + len)
}

/// Bytes that end an argument in the query, and in the path; and the byte between name and value.
const IN_QUERY: u8 = 1;
const IN_PATH: u8 = 2;
const EQUALS: u8 = 4;
/// Bytes that make it necessary to examine more than the name.
const PERCENT: u8 = 8;
const SLASH: u8 = 16;
const BACKSLASH: u8 = 32;
/// Any byte that ends a word of any kind, or that [`Scan`] looks for.
const SPECIAL: u8 = 64;
/// Any byte that is rare in a path without secrets.
const MARK: u8 = 128;

static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let b = byte as u8;
        let is_plain = (b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            && !matches!(b, b'J' | b'B' | b'b');
        let own = match b {
            b'&' | b';' | b'#' => IN_QUERY | IN_PATH,
            b'/' => IN_PATH | SLASH,
            b'?' => IN_PATH,
            b'=' => EQUALS,
            b'%' => PERCENT,
            b'\\' => BACKSLASH,
            _ => 0,
        };
        let special = if is_plain { 0 } else { SPECIAL };
        let mark = if matches!(b, b'=' | b'%' | b'@' | b'{' | b'J') { MARK } else { 0 };
        classes[byte] = own | special | mark;
        byte += 1;
    }
    classes
};

/// Decodes `text` until nothing in it is encoded; `None` if it has too many layers.
fn decode_all<'t>(text: &'t [u8], memory: &'t mut [Vec<u8>; 2]) -> Option<&'t [u8]> {
    let [one, other] = memory;
    let (mut now, mut next) = (one, other);
    match path::decode_into(text, now) {
        path::Decoded::Nothing => return Some(text),
        path::Decoded::All => return Some(now),
        path::Decoded::More => {}
    }
    for _ in 1..MAX_LAYERS {
        match path::decode_into(now, next) {
            path::Decoded::Nothing => return Some(now),
            path::Decoded::All => return Some(next),
            path::Decoded::More => (now, next) = (next, now),
        }
    }
    (path::decode_into(now, next) == path::Decoded::Nothing).then_some(now)
}

/// Undoes JSON's escapes of slashes, `\/`, and of quotes in nested JSON, `\"`.
fn unescape<'t>(text: &[u8], out: &'t mut Vec<u8>) -> &'t [u8] {
    out.clear();
    for byte in text {
        if matches!(byte, b'"' | b'/') {
            while out.last() == Some(&b'\\') {
                out.pop();
            }
        }
        out.push(*byte);
    }
    out
}

/// A search for a secret in a decoded name or value.
struct Scan<'r, 'l> {
    redaction: &'r Redaction,
    left: &'l mut usize,
    /// The start of a possible argument name.
    name: usize,
}

impl Scan<'_, '_> {
    fn has_secret(&mut self, text: &[u8]) -> bool {
        // For `user:password@`: its start, its first colon, the number of colons, and whether it follows
        // `//`.
        let (mut user, mut colon, mut colons, mut behind_slashes) = (0, 0, 0, false);
        // For a JSON Web Token: how many of its dots have come.
        let mut dots = None;
        let mut in_json = false;
        for (i, byte) in text.iter().enumerate() {
            if CLASSES[usize::from(*byte)] & SPECIAL == 0 {
                continue;
            }
            // Of several `=`, the value follows the last.
            if *byte == b'=' && text.get(i + 1) == Some(&b'=') {
                dots = None;
                continue;
            }
            match byte {
                b'J' => {
                    let is_next = i >= 2 && text[i - 2] == b'e' && text[i - 1] == b'y';
                    if is_next && is_word_start(text, i - 2) {
                        dots = dots.or(Some(0));
                    }
                    continue;
                }
                b'B' | b'b' => {
                    let is_next = matches!(text.get(i + 1), Some(b'e' | b'E' | b'a' | b'A'));
                    if is_next && is_word_start(text, i) && is_authorization(&text[i..]) {
                        return true;
                    }
                    continue;
                }
                b'.' => {
                    dots = dots.map(|dots| dots + 1);
                    if dots == Some(2) {
                        return true;
                    }
                    continue;
                }
                _ => dots = None,
            }
            match byte {
                // A `=` at the end has no value.
                b'=' => {
                    if i + 1 < text.len() {
                        if self.is_secret(&text[self.name..i]) {
                            return true;
                        }
                        self.name = i + 1;
                    }
                    if colons == 0 {
                        user = i + 1;
                    }
                }
                b':' => {
                    let name = &text[self.name..i];
                    let name = name.trim_ascii();
                    if in_json || matches!(name.last(), Some(b'"' | b'\'')) {
                        // A name with an escape like `\u0070` is not decoded, and counts as secret.
                        if name.contains(&b'\\') || self.is_secret(name) {
                            return true;
                        }
                        self.name = i + 1;
                    }
                    if colons == 0 {
                        colon = i;
                    }
                    colons += 1;
                }
                b'@' => {
                    let is_address =
                        || colons == 0 || colons == 1 && is_scheme_of_address(&text[user..colon]);
                    if behind_slashes || !is_address() {
                        return true;
                    }
                }
                b'/' => {
                    behind_slashes = i > 0 && text[i - 1] == b'/';
                    (user, colons) = (i + 1, 0);
                    self.name = i + 1;
                }
                b'?' | b'&' | b';' | b'#' | b',' | b'{' | b'}' => {
                    in_json |= *byte == b'{';
                    behind_slashes = false;
                    (user, colons) = (i + 1, 0);
                    self.name = i + 1;
                }
                b'"' | b'\'' | b'<' | b'>' | b'(' | b')' | b'|' | 0..=b' ' => {
                    behind_slashes = false;
                    (user, colons) = (i + 1, 0);
                }
                _ => {}
            }
        }
        false
    }

    /// Whether a name inside a value is secret, or too many names came.
    fn is_secret(&mut self, name: &[u8]) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => *self.left = left,
            None => return true,
        }
        self.redaction.is_secret(name)
    }
}

fn is_word_start(text: &[u8], at: usize) -> bool {
    at == 0 || !matches!(text[at - 1], b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// Whether it is `mailto` or the like: an `@` then follows without a password.
fn is_scheme_of_address(text: &[u8]) -> bool {
    let schemes: [&[u8]; 7] = [b"mailto", b"acct", b"sip", b"sips", b"xmpp", b"im", b"skype"];
    schemes.iter().any(|scheme| text.eq_ignore_ascii_case(scheme))
}

/// Whether `text` begins with the value of a header `Authorization`: `Bearer …`, `Basic …`.
fn is_authorization(text: &[u8]) -> bool {
    let after = |scheme: &[u8]| {
        let (name, rest) = text.split_at_checked(scheme.len())?;
        if !name.eq_ignore_ascii_case(scheme) || !matches!(rest.first(), Some(b' ' | b'+' | b'\t'))
        {
            return None;
        }
        let start = rest.iter().position(|b| !matches!(b, b' ' | b'+' | b'\t'))?;
        Some(&rest[start..])
    };
    after(b"bearer").is_some() || after(b"basic").is_some_and(is_base64)
}

/// Whether `text` begins with base64, and not with a word as in `basic training`.
fn is_base64(text: &[u8]) -> bool {
    let (mut len, mut upper, mut lower, mut digit, mut mark) = (0, false, false, false, false);
    for byte in text.iter().take(64) {
        match byte {
            // A word may begin with a capital letter.
            b'A'..=b'Z' => upper |= len > 0,
            b'a'..=b'z' => lower = true,
            b'0'..=b'9' => digit = true,
            b'/' => {}
            b'=' => mark = true,
            _ => break,
        }
        len += 1;
    }
    len >= 4 && (upper && lower || digit && (upper || lower) || mark)
}

/// Whether a path in a decoded text has a secret segment: `/hooks/abc`, `https://host/hooks/abc`,
/// `host/hooks/abc`.
fn has_secret_path(
    text: &[u8],
    find: &FindSegments<'_>,
    left: &mut usize,
    path: &mut Vec<u8>,
    normalized: &mut Vec<u8>,
    ranges: &mut Vec<Range<usize>>,
) -> bool {
    let ends = |at: usize| match text[at] {
        0..=b' ' | b'?' | b'#' | b'&' | b'=' | b'"' | b'\'' | b'<' | b'>' => true,
        b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'|' | b'\\' => true,
        b',' | b';' | b'+' => text.get(at + 1) == Some(&b'/'),
        _ => false,
    };
    ranges.clear();
    let mut start = 0;
    while start < text.len() {
        let end = (start..text.len()).find(|at| ends(*at)).unwrap_or(text.len());
        let url = &text[start..end];
        start = end + 1;
        if !url.contains(&b'/') {
            continue;
        }
        match left.checked_sub(1) {
            Some(less) => *left = less,
            None => return true,
        }
        let has_scheme = path::scheme_len(url) > 0;
        let may_have_host = !has_scheme && (url.starts_with(b"//") || !url.starts_with(b"/"));
        let url = if has_scheme || url.starts_with(b"/") {
            url
        } else {
            path.clear();
            path.push(b'/');
            path.extend_from_slice(url);
            &*path
        };
        let found = path::normalize(url, normalized);
        find(found, ranges);
        // The first segment may be a host.
        let second = found.iter().skip(1).position(|b| *b == b'/').map(|at| at + 1);
        if let Some(second) = second.filter(|_| may_have_host && ranges.is_empty()) {
            find(&found[second..], ranges);
        }
        if !ranges.is_empty() {
            return true;
        }
    }
    false
}

/// Appends the whole range of a normalized path that has a secret segment once it is decoded again.
fn find_encoded(
    normalized: &[u8],
    find: &FindSegments<'_>,
    ranges: &mut Vec<Range<usize>>,
    text: &mut TextScratch,
) {
    let is_secret = match decode_all(normalized, &mut text.decoded) {
        None => true,
        Some(decoded) if decoded.len() == normalized.len() => false,
        Some(decoded) => {
            find(path::normalize(decoded, &mut text.normalized), ranges);
            !ranges.is_empty()
        }
    };
    ranges.clear();
    if is_secret && normalized.len() > 1 {
        ranges.push(1..normalized.len());
    }
}

/// The range of the authority in a URL; empty if the URL begins with its path.
fn authority(url: &[u8]) -> Range<usize> {
    let start = if url.starts_with(b"//") { 2 } else { path::scheme_len(url) };
    start..start + path::authority_len(&url[start..])
}

/// Removes `user:password@` from a URL.
fn drop_user<'a>(url: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
    let user = |url: &[u8]| {
        let Range { start, end } = authority(url);
        let at = url[start..end].iter().rposition(|b| *b == b'@')?;
        Some(start..=start + at)
    };
    if user(url).is_none() {
        return url;
    }
    out.clear();
    out.extend_from_slice(url);
    // Removing `a@` from `a@//b@c` reveals another user.
    while let Some(user) = user(out) {
        out.drain(user);
    }
    out
}

/// Masks ranges of the normalized path in `url`, whose own path begins at `start`. If that path is not
/// normal, the normalized one replaces it, encoded.
fn hide_segments<'a>(
    url: &'a [u8],
    start: usize,
    normalized: &[u8],
    ranges: &mut [Range<usize>],
    out: &'a mut Vec<u8>,
) -> &'a [u8] {
    if ranges.is_empty() {
        return url;
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let raw = &url[start..];
    let raw = &raw[..path::locate(raw).end];
    let copy = if raw == normalized { Vec::extend_from_slice } else { encode };
    out.clear();
    out.extend_from_slice(&url[..start]);
    let mut done = 0;
    for range in ranges {
        let end = range.end.min(normalized.len());
        if range.start >= end || end <= done {
            continue;
        }
        // Of overlapping ranges, the second needs no mask of its own.
        if range.start >= done {
            copy(out, &normalized[done..range.start]);
            out.extend_from_slice(MASK);
        }
        done = end;
    }
    copy(out, &normalized[done..]);
    out.extend_from_slice(&url[start + raw.len()..]);
    out
}

/// Appends a decoded path, encoded.
fn encode(out: &mut Vec<u8>, path: &[u8]) {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    for byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(byte) {
            out.push(*byte);
        } else {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(&[b'%', digits[0], digits[1]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::capture::rules::{Methods, Pattern, Rules};

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn url(target: &str) -> String {
        let redaction = Redaction::default();
        text(redaction.url(target.as_bytes(), Paths::default(), &mut Scratch::default()))
    }

    fn referer(target: &str) -> String {
        let redaction = Redaction::default();
        text(redaction.referer(target.as_bytes(), Paths::default(), &mut Scratch::default()))
    }

    /// Searches both the URL's own path and paths inside arguments.
    fn paths<'f>(find: &'f FindSegments<'f>) -> Paths<'f> {
        Paths { own: Some(find), nested: Some(find), normalized: None }
    }

    const SECRET_NAMES: &str = include_str!("../../../tests/data/secret_names.txt");
    const HARMLESS_NAMES: &str = include_str!("../../../tests/data/harmless_names.txt");

    /// Every letter and digit percent-encoded.
    fn encode_all(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    /// A secret argument in each place and spelling in which it must be found.
    fn spellings(name: &str) -> Vec<String> {
        let plain = format!("{name}=5ecr3t");
        let json = format!("{{\"a\":1,\"{name}\":\"5ecr3t\"}}");
        let escaped = format!("{{\"a\":\"{{\\\"{name}\\\":\\\"5ecr3t\\\"}}\"}}");
        let relaxed = format!("{{{name}: '5ecr3t'}}");
        let nested = format!("/a?b=1&{plain}");
        let mut all = vec![
            format!("/?a=1&{plain}"),
            format!("/?{}=5ecr3t", encode_all(name)),
            format!("/?{}=5ecr3t", encode_all(&encode_all(name))),
            format!("/?{name}%00zz=5ecr3t"),
            format!("/?%00{name}%00=5ecr3t"),
            format!("/?x[{name}]=5ecr3t"),
            format!("/?x%5B{name}%5D%5B%5D=5ecr3t"),
            format!("/?a;{plain}"),
            format!("/a;{plain}/b"),
            format!("/a#{plain}"),
            format!("/?a={json}"),
            format!("/?{json}"),
        ];
        for inner in [&plain, &json, &escaped, &relaxed, &nested] {
            let once = encode_all(inner);
            all.push(format!("/?a={once}"));
            all.push(format!("/?a={}&b=1", encode_all(&once)));
            all.push(format!("/?{once}"));
            all.push(format!("/go/{once}"));
        }
        all
    }

    #[test]
    fn names_of_secrets() {
        assert!(SECRET_NAMES.lines().count() >= 130);
        let shows = |out: &str| out.contains("5ecr3t");
        let mut wrong = Vec::new();
        for name in SECRET_NAMES.lines() {
            let mut all = spellings(name);
            all.extend(
                [name.to_uppercase(), name.to_lowercase()].map(|name| format!("/?{name}=5ecr3t")),
            );
            wrong.extend(all.into_iter().find(|target| {
                shows(&url(target)) || shows(&referer(&format!("https://h{target}")))
            }));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn names_that_are_harmless() {
        assert!(HARMLESS_NAMES.lines().count() >= 60);
        let mut wrong = Vec::new();
        for name in HARMLESS_NAMES.lines() {
            wrong.extend(spellings(name).into_iter().find(|target| url(target) != *target));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn names_given_and_names_shown() {
        let redaction = Redaction::new(["State", "h", "user[x]", "!key", "!t", "t", "u", "!u"]);
        let cases = [
            ("/?state=a&H=b&x=c&user=d", "/?state=***&H=***&x=***&user=d"),
            ("/?a[h]=a&h[a]=b&hh=c", "/?a[h]=***&h[a]=***&hh=c"),
            (
                "/?key=a&a[key]=b&api_key=c&key[token]=d",
                "/?key=a&a[key]=b&api_key=***&key[token]=***",
            ),
            ("/?t=a&u=b", "/?t=a&u=***"),
        ];
        for (target, expected) in cases {
            let mut scratch = Scratch::default();
            let out = redaction.url(target.as_bytes(), Paths::default(), &mut scratch);
            assert_eq!(text(out), expected);
        }
    }

    #[test]
    fn values_of_the_shape_of_a_secret() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_1";
        let secrets = [
            jwt,
            "eyJhbGciOiJkaXIifQ..aaa.bbb.ccc",
            "Bearer abc",
            "bearer+abc",
            "x,Bearer abc",
            "BASIC dXNlcjpwYXNz",
            "Basic dTpw",
            "basic+dXNlcg==",
            "user:pw@h",
            "https://user:pw@h/x",
            "https://token@h/x",
            "git clone ssh://user:pw@h",
            "a=b:c@d",
            "mailto:user:pw@h",
        ];
        for secret in secrets {
            for spelled in [secret.to_owned(), encode_all(secret), encode_all(&encode_all(secret))]
            {
                // In a path, a `+` is not a space.
                if !spelled.contains(['/', ' ', '+', '=']) {
                    assert_eq!(url(&format!("/a/{spelled}/b")), "/a/***/b");
                    assert_eq!(url(&format!("/{spelled}")), "/***");
                    assert_eq!(url(&format!("/?{spelled}")), "/?***");
                }
                let (given, hidden) = (format!("/?a={spelled}&b=1"), "/?a=***&b=1");
                assert_eq!(url(&given), hidden);
                assert_eq!(referer(&format!("https://h{given}")), format!("https://h{hidden}"));
                let json = encode_all(&format!("{{\"a\":[\"{secret}\"]}}"));
                assert_eq!(url(&format!("/?a={json}")), "/?a=***");
            }
        }
        let harmless = [
            "keyJob.a.b",
            "eyJob.a",
            "eyJob-a.b_c",
            "basic+training",
            "Basic%20Income%20now",
            "bearer",
            "basic",
            "mailto:ann@h",
            "acct:ann@h",
            "ann@h",
            "@ann:h",
            "https://h:1/@ann",
            "http://h/a:b/c@d",
            "10:30",
            "a.b.c.d",
            "1:2,3@4",
        ];
        for value in harmless {
            for value in [value.to_owned(), encode_all(value)] {
                let target = format!("/?a={value}&b=1");
                assert_eq!(url(&target), target);
                if !value.contains('/') {
                    let target = format!("/a/{value}");
                    assert_eq!(url(&target), target);
                }
            }
        }
    }

    #[test]
    fn arguments_that_a_rule_names() {
        let segments = |path: &[u8], out: &mut Vec<Range<usize>>| {
            if path.starts_with(b"/hooks/") {
                out.push(7..path.len());
            }
        };
        let nested: &FindSegments<'_> = &segments;
        let mut scratch = Scratch::default();
        let mut hides = |redaction: &Redaction, name: &str, value: &str| {
            redaction.hides(name, value.as_bytes(), Some(nested), &mut scratch)
        };
        let on = Redaction::new(["own", "!token"]);
        for (name, value) in [
            ("q", "Bearer 5ecret5ecret5ecret"),
            ("q", "https://u:5ecret@h"),
            ("q", r#"{"password":"5ecret"}"#),
            ("q", "a=1&password=5ecret"),
            ("q", "/hooks/5ecret"),
            ("access_key", "x"),
            ("own", "x"),
        ] {
            assert!(hides(&on, name, value), "{name} {value}");
        }
        for (name, value) in [("q", "a b&c=d"), ("calls", "20"), ("token", "x"), ("q", "/hook/x")] {
            assert!(!hides(&on, name, value), "{name} {value}");
        }
        assert!(hides(&Redaction::off(), "q", "/hooks/5ecret"));
        assert!(!hides(&Redaction::off(), "password", "x"));
    }

    #[test]
    fn json_that_hides_its_names() {
        let hidden = [
            r#"{"p\u0061ssword":"x"}"#,
            r#"{"a":{"b":[{"password":"x"}]}}"#,
            r#"{"url":"https:\/\/user:pw@h"}"#,
            r#"{"url":"https:\/\/token@h\/x"}"#,
            r#"[{"password" : "x"}]"#,
            r#"{ user(password: "x") { id } }"#,
            r#""password":"x""#,
        ];
        for json in hidden {
            let json = json.replace("\\\\", "\\");
            assert_eq!(url(&format!("/?a={}", encode_all(&json))), "/?a=***", "{json}");
        }
        for json in [r#"{"a":"password"}"#, r#"{"a":["token",{"b":"c:d"}]}"#, "{}", "{:}"] {
            let target = format!("/?a={}", encode_all(json));
            assert_eq!(url(&target), target);
        }
    }

    #[test]
    fn secret_paths_in_arguments() {
        let redaction = Redaction::off();
        let show = |target: &str| {
            let mut scratch = Scratch::default();
            text(redaction.url(target.as_bytes(), paths(&segments), &mut scratch))
        };
        let hidden = [
            "/hooks/abc",
            "/x/../hooks//abc?a=1",
            "https://h/hooks/abc",
            "//h/hooks/abc",
            "h/hooks/abc",
            "h:80/hooks/abc#x",
            "hooks/abc",
            "see /hooks/abc",
            "/a,/hooks/abc",
            "{\"to\":\"/hooks/abc\"}",
            "{\"to\":\"\\/hooks\\/abc\"}",
        ];
        for value in hidden {
            for spelled in [value.to_owned(), encode_all(value), encode_all(&encode_all(value))] {
                if spelled.contains(['#', ' ']) {
                    continue;
                }
                assert_eq!(show(&format!("/?to={spelled}&b=1")), "/?to=***&b=1", "{value}");
                if !spelled.contains('=') {
                    assert_eq!(show(&format!("/?{spelled}")), "/?***", "{value}");
                }
                if !spelled.contains(['/', '?']) {
                    assert_eq!(show(&format!("/go/{spelled}/x")), "/go/***/x", "{value}");
                }
            }
        }
        for value in ["/hooks", "/a/hooks/abc", "https://hooks/abc", "/hooks?/abc", "abc"] {
            let target = format!("/?to={}&token=x", encode_all(value));
            assert_eq!(show(&target), target);
        }
        // A Referer that is encoded as a whole, or twice.
        for referer in ["https%3A%2F%2Fh%2Fhooks%2Fabc", "https://h/%2568ooks/abc"] {
            let mut scratch = Scratch::default();
            let out = text(redaction.referer(referer.as_bytes(), paths(&segments), &mut scratch));
            assert!(!out.contains("abc"), "{out}");
        }
    }

    #[test]
    fn segments_below_a_prefix() {
        let rule = |pattern: &str, prefix| {
            let names: Box<[String]> = ["key".to_owned()].into();
            (Pattern::parse(pattern).unwrap(), names, prefix)
        };
        let secrets = SecretSegments::new([
            rule("/hooks/{key}", &b""[..]),
            rule("/s/{a}/{key}", b"/chat"),
            rule("/{*key}", b"/all/of"),
        ]);
        let cases = [
            ("/hooks/abc", "/hooks/***"),
            ("/chat/s/1/abc", "/chat/s/1/***"),
            ("/s/1/abc", "/s/1/abc"),
            ("/all/of/a/b", "/all/of/***"),
            ("/all/of", "/all/of"),
        ];
        for (path, expected) in cases {
            let find: &FindSegments<'_> = &|path, out| secrets.find(path, out);
            let out = Redaction::off()
                .url(path.as_bytes(), paths(find), &mut Scratch::default())
                .to_vec();
            assert_eq!(text(&out), expected);
        }
    }

    #[test]
    fn what_is_too_much_to_look_at_is_hidden() {
        let show = |target: &str| {
            let mut scratch = Scratch::default();
            let redaction = Redaction::default();
            text(redaction.url(target.as_bytes(), paths(&segments), &mut scratch))
        };
        let most = vec!["a=b"; MAX_ARGUMENTS - 1].join("&");
        // Names inside values count against the bound, and so does a path that has something to examine.
        assert_eq!(show(&format!("/?{most}&c=d")), format!("/?{most}&c=d"));
        assert_eq!(show(&format!("/?{most}&c=d&e=f&token=x")), format!("/?{most}&c=d&***"));
        assert_eq!(show(&format!("/?{most}&c=d&***")), format!("/?{most}&c=d&***"));
        assert_eq!(show(&format!("/?a={}", "b%3Dc,".repeat(MAX_ARGUMENTS + 1))), "/?a=***");
        let marks = "%3D".repeat(MAX_VALUE / 3);
        assert_eq!(show(&format!("/?{marks}")), format!("/?{marks}"));
        let longest = "a".repeat(MAX_VALUE);
        assert_eq!(show(&format!("/?q={longest}")), format!("/?q={longest}"));
        assert_eq!(show(&format!("/?q={longest}a&p=1")), "/?q=***&p=1");
        let urls = |many| format!("/?q={}", "/a,".repeat(many));
        assert_eq!(show(&urls(MAX_PATHS)), urls(MAX_PATHS));
        assert_eq!(show(&urls(MAX_PATHS + 1)), "/?q=***");
        let deep = "/%61".repeat(MAX_ARGUMENTS);
        assert!(show(&format!("{deep}/x?token=5ecr3t")).ends_with("/%61/***"));
        // Encoded four times, and once more.
        let encoded = |layers| format!("/?a=%{}41", "25".repeat(layers - 1));
        assert_eq!(show(&encoded(MAX_LAYERS)), encoded(MAX_LAYERS));
        assert_eq!(show(&encoded(MAX_LAYERS + 1)), "/?a=***");
    }

    static RULES: LazyLock<Rules<()>> = LazyLock::new(|| {
        let patterns =
            ["/hooks/{secret}", "/hooks/{secret}/{id}", "/s/{*secret}", "/s/{id}/{secret}"];
        let rule = |p| (Methods::parse("*").unwrap(), Pattern::parse(p).unwrap(), ());
        Rules::new(patterns.map(rule).into())
    });

    fn segments(path: &[u8], ranges: &mut Vec<Range<usize>>) {
        RULES.any_method(path, |(), segments| ranges.extend(segments.range("secret")));
    }

    #[test]
    fn arguments() {
        let cases = [
            ("/?token=abc", "/?token=***"),
            ("/?a=1&token=abc&b=2", "/?a=1&token=***&b=2"),
            ("/?a=1;token=abc;b=2", "/?a=1;token=***;b=2"),
            ("/?token=a;b;c&d", "/?token=***&d"),
            ("/?a=1&amp;token=abc", "/?a=1&amp;token=***"),
            ("/?token=a=b&password=c&token=d", "/?token=***&password=***&token=***"),
            ("/?TOKEN=a&Access_Token=b", "/?TOKEN=***&Access_Token=***"),
            (
                "/?accessToken=a&api-key=b&x-api-key=c",
                "/?accessToken=***&api-key=***&x-api-key=***",
            ),
            ("/?%74oken=a&to%6Ben=b&+token=c", "/?%74oken=***&to%6Ben=***&+token=***"),
            ("/?%2574oken=a", "/?%2574oken=***"),
            ("/?%0atoken=a&%00token=b&token%09=c", "/?%0atoken=***&%00token=***&token%09=***"),
            ("/?token[]=a&token%5B%5D=b&token[x]=c", "/?token[]=***&token%5B%5D=***&token[x]=***"),
            ("/?user[password]=a&user[name]=b", "/?user[password]=***&user[name]=b"),
            ("/?token=", "/?token=***"),
            ("/#access_token=abc&state=x", "/#access_token=***&state=x"),
            ("/?a#token=abc", "/?a#token=***"),
            ("?token=abc", "?token=***"),
            ("token=abc", "token=***"),
            ("/a;jsessionid=abc/b?c", "/a;jsessionid=***/b?c"),
            ("/a&token=abc", "/a&token=***"),
            ("http://h/?token=abc", "http://h/?token=***"),
            ("h/?token=abc", "h/?token=***"),
        ];
        for (target, expected) in cases {
            assert_eq!(url(target), expected, "{target}");
            assert_eq!(url(expected), expected);
        }
    }

    #[test]
    fn nested_urls() {
        let cases = [
            ("/?to=%2Fx%3Ftoken%3Dabc&a=1", "/?to=***&a=1"),
            ("/?to=%252Fx%253Ftoken%253Dabc", "/?to=***"),
            ("/?to=/x?token=abc", "/?to=***"),
            ("/?to=/x%3Fa%3D1%26to%6ben%3dabc", "/?to=***"),
            ("/?to=/x%23access_token%3Dabc", "/?to=***"),
            ("/?to=/x%3Ftoken=abc", "/?to=***"),
            ("/?to=token%3Dabc", "/?to=***"),
            ("/?to=/x%3Ftoken%5B%5D%3Dabc", "/?to=***"),
            ("/?%2Fx%3Ftoken%3Dabc", "/?***"),
            ("/?/x?token=abc", "/?/x?token=***"),
            ("/?%2Fx%3Ftoken%3Dabc=1", "/?***"),
            ("/go/%2Fx%3Ftoken%3Dabc/on", "/go/***/on"),
            ("/go/http://h/?token=abc", "/go/http://h/?token=***"),
        ];
        for (target, expected) in cases {
            assert_eq!(url(target), expected, "{target}");
            assert_eq!(url(expected), expected);
        }
    }

    #[test]
    fn what_is_no_secret_is_not_copied() {
        let cases = [
            "",
            "/",
            "*",
            "/a//../%zz?b=%zz&c",
            "/token/abc?token",
            "/?page=1&state=2&keys=3&t=4&d=5&page_token=6&tokens=7&monkey=8",
            "/?token&password",
            "/?token=***&a=1",
            "/?q=my+token&to=/x%3Fa%3D1",
            "/?q=token%20is",
            "/?=abc&[]=1&-=2",
            "https://h:1/a@b?c@d",
        ];
        for target in cases {
            let mut scratch = Scratch::default();
            let redaction = Redaction::default();
            let out = redaction.url(target.as_bytes(), paths(&segments), &mut scratch);
            assert!(std::ptr::eq(out, target.as_bytes()), "{target}");
            assert_eq!(scratch.steps.out.capacity() + scratch.steps.hidden.capacity(), 0);
            let out = redaction.referer(target.as_bytes(), paths(&segments), &mut scratch);
            assert!(std::ptr::eq(out, target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn names_of_an_application() {
        let redaction = Redaction::new(["h", "user[Pin]", "", "-", "[]"]);
        let url =
            |u: &str| text(redaction.url(u.as_bytes(), Paths::default(), &mut Scratch::default()));
        assert_eq!(url("/?h=1&H[]=2&hh=3&=4"), "/?h=***&H[]=***&hh=3&=4");
        assert_eq!(url("/?user[pin]=1&a[]=2&token=3"), "/?user[pin]=***&a[]=2&token=***");
        let target = b"/hooks/abc?token=1";
        let mut scratch = Scratch::default();
        assert_eq!(Redaction::off().url(target, Paths::default(), &mut scratch), target);
        let out = Redaction::off().url(target, paths(&segments), &mut scratch);
        assert_eq!(text(out), "/hooks/***?token=1");
        let target = b"http://a@h/hooks/abc?token=1#b";
        let out = Redaction::off().referer(target, paths(&segments), &mut scratch);
        assert_eq!(text(out), "http://h/hooks/***?token=1");
        assert_eq!(Redaction::off().referer(target, Paths::default(), &mut scratch), target);
    }

    #[test]
    fn referers() {
        let cases = [
            ("https://h/a?token=abc#token=abc", "https://h/a?token=***"),
            ("https://h/a#b", "https://h/a"),
            ("https://user:pw@h:1/a@b", "https://h:1/a@b"),
            ("https://u@s:p@h", "https://h"),
            ("https://user:pw@h?token=abc", "https://h?token=***"),
            ("//user:pw@h/a", "//h/a"),
            ("user:pw@h/a", "h/a"),
            ("a@//user:pw@h/a", "//h/a"),
            ("#a", ""),
            ("/a?b@c", "/a?b@c"),
            ("about:blank", "about:blank"),
        ];
        for (target, expected) in cases {
            assert_eq!(referer(target), expected, "{target}");
            assert_eq!(referer(expected), expected);
        }
    }

    #[test]
    fn segments_of_paths() {
        let cases = [
            ("/hooks/abc", "/hooks/***"),
            ("/hooks/abc/?token=abc", "/hooks/***/?token=***"),
            ("/hooks/abc/7#x", "/hooks/***/7#x"),
            ("/hooks/%61bc?a=%61", "/hooks/***?a=%61"),
            ("//hooks/./abc", "/hooks/***"),
            ("/x/../hooks%2fabc/a%20%25b\u{e9}%3f", "/hooks/***/a%20%25b%C3%A9%3F"),
            ("/hooks/x/%2e%2e/abc", "/hooks/***"),
            ("/%68ooks/abc/%7", "/hooks/***/%257"),
            ("/hooks/abc/%7", "/hooks/***/%7"),
            ("/s/abc/def/ghi", "/s/***"),
            ("/s/abc/def", "/s/***"),
            ("/hooks", "/hooks"),
            ("//hooks/%2e", "//hooks/%2e"),
        ];
        for (target, expected) in cases {
            for prefix in ["", "https://h:1", "h", "//h"] {
                let (full, expected) = (format!("{prefix}{target}"), format!("{prefix}{expected}"));
                let mut scratch = Scratch::default();
                let redaction = Redaction::default();
                if prefix != "//h" {
                    let out = text(redaction.url(full.as_bytes(), paths(&segments), &mut scratch));
                    assert_eq!(out, expected, "{full}");
                    let again = redaction.url(expected.as_bytes(), paths(&segments), &mut scratch);
                    assert_eq!(text(again), expected);
                }
                // Without an authority, the `//a` of a Referer would be one.
                if prefix.is_empty() && target.starts_with("//") {
                    continue;
                }
                let out = text(redaction.referer(full.as_bytes(), paths(&segments), &mut scratch));
                assert_eq!(out, expected.split('#').next().unwrap(), "{full}");
            }
        }
    }

    #[test]
    fn ranges_that_overlap_or_lie_outside() {
        let hide = |given: &[Range<usize>]| {
            let add = |_: &[u8], ranges: &mut Vec<_>| ranges.extend_from_slice(given);
            text(Redaction::off().url(b"/ab/cd/ef", paths(&add), &mut Scratch::default()))
        };
        assert_eq!(hide(&[4..6, 1..3, 4..6]), "/***/***/ef");
        assert_eq!(hide(&[4..9, 4..6, 7..9]), "/ab/***");
        assert_eq!(hide(&[1..6, 4..9]), "/***");
        assert_eq!(hide(&[7..99, 99..100, 3..3]), "/ab/cd/***");
    }

    /// `text` with some of its bytes encoded, once or twice.
    fn spell(text: &str, random: &mut fastrand::Rng) -> String {
        let mut out = String::new();
        for byte in text.bytes() {
            match random.u8(..8) {
                0 => out += &format!("%{byte:02x}"),
                1 => out += &format!("%{byte:02X}"),
                2 => out += &char::from(byte).to_ascii_uppercase().to_string(),
                _ => out.push(char::from(byte)),
            }
        }
        out
    }

    #[test]
    fn a_planted_secret_never_comes_out() {
        const SECRET: &str = "5ecr3t";
        let mut random = fastrand::Rng::with_seed(1);
        let redaction = Redaction::new(["h"]);
        // Changing the case of letters can split a name into other words; these names stay secret all the
        // same.
        let names = ["token", "api_key", "password", "user[secret]", "SAMLResponse", "signature"];
        let noise =
            ["/", "&", ";", "?", "=", "a", "%", "%2", "%2e", "[", "]", "+", "\u{e9}", "http://"];
        for round in 0..20_000 {
            let mut junk = || -> String {
                let len = random.usize(..6);
                (0..len).map(|_| noise[random.usize(..noise.len())]).collect()
            };
            let (before, after, mut value) = (junk(), junk(), junk());
            // A piece without a name belongs to the value; a piece with a name is an argument of its own.
            value.retain(|c| !"&;/?".contains(c));
            let name = match random.usize(..=names.len()) {
                0 => "h",
                n => names[n - 1],
            };
            let mut argument =
                format!("{}{}", spell(name, &mut random), ["", "[]", "[x]"][round % 3]);
            argument += &format!("={value}{SECRET}{value}");
            if random.bool() {
                argument = argument.replace('%', "%25").replace('=', "%3D").replace('&', "%26");
                argument = format!("to=%2Fx%3F{argument}");
            }
            let mark = ["?", "&", ";", "#"][random.usize(..4)];
            let target = format!("/{before}{mark}{argument}&{after}");
            check(&redaction, &target, SECRET);

            let dots = ["", "/", "/.", "/x/..", "/%2E", "/y/%2e."][random.usize(..6)];
            let hooks = spell("hooks", &mut random).replace(char::is_uppercase, "o");
            let hooks = if random.bool() { "hooks".into() } else { hooks };
            let target = format!("{dots}/{hooks}{dots}/{value}{SECRET}{dots}?{after}");
            if path::normalize(target.as_bytes(), &mut Vec::new()).starts_with(b"/hooks/") {
                check(&redaction, &target, SECRET);
            }
        }
    }

    fn check(redaction: &Redaction, target: &str, secret: &str) {
        let mut scratch = Scratch::default();
        let out = text(redaction.url(target.as_bytes(), paths(&segments), &mut scratch));
        assert!(!out.contains(secret), "{target} {out}");
        let again = text(redaction.url(out.as_bytes(), paths(&segments), &mut scratch));
        assert_eq!(again, out, "{target}");
        let full = format!("https://user:{secret}@host{target}");
        let out = text(redaction.referer(full.as_bytes(), paths(&segments), &mut scratch));
        assert!(!out.contains(secret), "{full} {out}");
        let again = text(redaction.referer(out.as_bytes(), paths(&segments), &mut scratch));
        assert_eq!(again, out, "{full}");
    }

    #[test]
    fn random_bytes() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut scratch = Scratch::default();
        let redaction = Redaction::default();
        for _ in 0..50_000 {
            let alphabet = b"/?&;#=%25[]@:.+token*\0\xff";
            let byte = |_| match random.u8(..8) {
                0 => random.u8(..),
                _ => alphabet[random.usize(..alphabet.len())],
            };
            let target: Vec<u8> = (0..24).map(byte).collect();
            redaction.url(&target, paths(&segments), &mut scratch);
            let once = redaction.referer(&target, paths(&segments), &mut scratch).to_vec();
            let twice = redaction.referer(&once, paths(&segments), &mut scratch);
            assert_eq!(text(&once), text(twice), "{}", text(&target));
        }
    }

    #[test]
    fn long_targets_take_linear_time() {
        let pieces = ["%25", "[", "&", "token", "token=", "-", "%3D", "%253D", "/", ";", "a;"];
        for piece in pieces {
            for start in ["/", "/?", "/?token=", "/?a="] {
                let target = format!("{start}{}=", piece.repeat(1 << 14));
                url(&target);
            }
        }
    }
}
