//! Matches requests with rules: by method, path and response, in order of precedence.
//!
//! Patterns are compared byte by byte with the [normalized](crate::capture::path) path. One slash at the
//! end of a request's path is ignored, because many applications ignore it: adding one must not evade a
//! rule.

use std::fmt;
use std::iter;
use std::ops::{Range, RangeInclusive};

use crate::capture::cookie::{Name, is_token};
use crate::capture::exchange::Exchange;
use crate::capture::path;

/// The methods that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Methods(Option<Box<[Box<str>]>>);

/// Why a list of methods is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodsError {
    /// There is an empty name.
    Empty,
    /// A name has characters that no method has.
    NotToken,
    /// A name is not in upper case.
    LowerCase,
    /// `*` stands beside other methods.
    Any,
    /// A name is there twice.
    Duplicate,
}

impl fmt::Display for MethodsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "methods must be \"*\" or names like \"POST,PUT\", without spaces",
            Self::NotToken => "a method has a character that no method can have",
            Self::LowerCase => "methods must be in upper case",
            Self::Any => "\"*\" means every method and must stand alone",
            Self::Duplicate => "a method is named twice",
        })
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("*"),
            Some(names) => f.write_str(&names.join(",")),
        }
    }
}

impl Methods {
    /// Reads `*`, every method, or a list like `POST,PUT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, MethodsError> {
        if text == "*" {
            return Ok(Self(None));
        }
        let mut names: Vec<Box<str>> = Vec::new();
        for name in text.split(',') {
            let error = match name {
                "" => MethodsError::Empty,
                "*" => MethodsError::Any,
                _ if !is_token(name) => MethodsError::NotToken,
                _ if name.contains(|c: char| c.is_ascii_lowercase()) => MethodsError::LowerCase,
                _ if names.iter().any(|n| **n == *name) => MethodsError::Duplicate,
                _ => {
                    names.push(name.into());
                    continue;
                }
            };
            return Err(error);
        }
        Ok(Self(Some(names.into())))
    }

    /// Every method.
    pub fn any() -> Self {
        Self(None)
    }

    /// Whether `method` is one of them.
    pub fn matches(&self, method: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|name| name.as_bytes() == method))
    }

    fn covers(&self, other: &Self) -> bool {
        match &other.0 {
            None => self.0.is_none(),
            Some(names) => names.iter().all(|name| self.matches(name.as_bytes())),
        }
    }
}

/// The paths that a rule matches: `/users/{user_id}/password`, `/plugins/{id}/{*rest}`, `/`.
///
/// `{name}` matches one whole segment; `{*name}` at the end matches the rest of the path, at least one
/// byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<[Part]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Segment(Box<str>),
    Rest(Box<str>),
}

/// Why a pattern is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternError {
    /// It does not begin with a slash.
    NotAbsolute,
    /// It ends with a slash.
    TrailingSlash,
    /// It has `//`.
    EmptySegment,
    /// It has a segment `.` or `..`.
    DotSegment,
    /// It has `?` or `#`.
    Query,
    /// It has a percent-encoded character.
    Encoded,
    /// A brace does not enclose a whole segment.
    Brace,
    /// A name is not like `user_id`.
    Name,
    /// A name is there twice.
    DuplicateName,
    /// `{*name}` is not at the end.
    RestNotLast,
    /// It has a `*` outside of `{*name}`.
    Star,
    /// It has more segments than [`MAX_SEGMENTS`].
    TooDeep,
}

/// The most segments of a pattern.
pub const MAX_SEGMENTS: usize = 64;

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "a path must begin with \"/\"",
            Self::TrailingSlash => {
                "a path must not end with \"/\": without it, it matches requests with and without"
            }
            Self::EmptySegment => "a path must not have \"//\": slashes of requests are merged",
            Self::DotSegment => {
                "a path must not have \".\" or \"..\": those of requests are resolved"
            }
            Self::Query => "a path must not have \"?\" or \"#\": it is matched without arguments",
            Self::Encoded => {
                "a path is matched decoded: write the character itself in the place of its \"%\" and digits"
            }
            Self::Brace => "braces must enclose a whole segment of a path, as in \"/{id}/{*rest}\"",
            Self::Name => "a segment's name must be of a-z, 0-9 and _ and not begin with a digit",
            Self::DuplicateName => "two segments of a path must not have the same name",
            Self::RestNotLast => "\"{*name}\" must be the last segment of a path",
            Self::Star => {
                "a \"*\" in a path matches only itself: write \"{name}\" for a segment, a last \
                 \"{*rest}\" for the rest"
            }
            Self::TooDeep => return write!(f, "a path must not have over {MAX_SEGMENTS} segments"),
        })
    }
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let inside = text.strip_prefix('/').ok_or(PatternError::NotAbsolute)?;
        if inside.is_empty() {
            return Ok(Self(Box::default()));
        }
        if inside.contains(['?', '#']) {
            return Err(PatternError::Query);
        }
        if inside.ends_with('/') {
            return Err(PatternError::TrailingSlash);
        }
        let mut parts: Vec<Part> = Vec::new();
        for segment in inside.split('/') {
            let part = Part::parse(segment)?;
            if parts.len() == MAX_SEGMENTS {
                return Err(PatternError::TooDeep);
            }
            if matches!(parts.last(), Some(Part::Rest(_))) {
                return Err(PatternError::RestNotLast);
            }
            if part.name().is_some() && parts.iter().any(|p| p.name() == part.name()) {
                return Err(PatternError::DuplicateName);
            }
            parts.push(part);
        }
        Ok(Self(parts.into()))
    }

    /// The names of the pattern's segments, from left to right.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(Part::name)
    }

    /// The pattern with a normalized path like `/chat` before it; an empty prefix is the root.
    #[must_use]
    pub fn below(&self, prefix: &[u8]) -> Self {
        let segments = prefix.split(|b| *b == b'/').filter(|segment| !segment.is_empty());
        let above = segments.map(|segment| Part::Literal(segment.into()));
        Self(above.chain(self.0.iter().cloned()).collect())
    }
}

/// Whether a `%` with two hexadecimal digits is in a text.
fn has_encoded(text: &str) -> bool {
    text.as_bytes()
        .windows(3)
        .any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit())
}

impl Part {
    fn parse(segment: &str) -> Result<Self, PatternError> {
        let braced = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        let Some(name) = braced else {
            return match segment {
                "" => Err(PatternError::EmptySegment),
                "." | ".." => Err(PatternError::DotSegment),
                _ if segment.contains(['{', '}']) => Err(PatternError::Brace),
                _ if segment.contains('*') => Err(PatternError::Star),
                _ if has_encoded(segment) => Err(PatternError::Encoded),
                _ => Ok(Self::Literal(segment.as_bytes().into())),
            };
        };
        let (name, part): (_, fn(Box<str>) -> Self) = match name.strip_prefix('*') {
            Some(name) => (name, Self::Rest),
            None => (name, Self::Segment),
        };
        if name.contains(['{', '}']) {
            return Err(PatternError::Brace);
        }
        let is_word = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !is_word || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(PatternError::Name);
        }
        Ok(part(name.into()))
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Segment(name) | Self::Rest(name) => Some(name),
        }
    }
}

/// Splits `path`, without its leading slash, into its first segment and the rest after the next slash.
fn split_segment(path: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'/', path) {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, &[]),
    }
}

/// The named segments of a path that matches a pattern.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'r, 'p> {
    pattern: &'r Pattern,
    path: &'p [u8],
}

impl<'r, 'p> Segments<'r, 'p> {
    /// The path.
    pub fn path(&self) -> &'p [u8] {
        self.path
    }

    /// The range of the named segment in the path.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        self.ranges().find(|(n, _)| *n == name).map(|(_, range)| range)
    }

    /// The names and the ranges of their values in the path, from left to right.
    pub fn ranges(&self) -> impl Iterator<Item = (&'r str, Range<usize>)> + use<'r, 'p> {
        let path = self.path;
        let mut next = 1;
        self.pattern.0.iter().filter_map(move |part| {
            let rest = path.get(next..).unwrap_or_default();
            let value = match part {
                Part::Rest(_) => rest,
                _ => split_segment(rest).0,
            };
            let range = next..next + value.len();
            next = range.end + 1;
            part.name().map(|name| (name, range))
        })
    }
}

/// Rules in order of precedence, with a tree of path segments for the search.
///
/// A search visits each node at most once, whatever the path. If no `{name}` competes with a literal
/// segment, it visits one node for each segment.
#[derive(Clone, Debug)]
pub struct Rules<R> {
    rules: Box<[Rule<R>]>,
    /// The root comes first.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Rule<R> {
    methods: Methods,
    pattern: Pattern,
    payload: R,
}

/// A node for all patterns that begin with the same segments. Rules and nodes are referred to by index.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Sorted by segment.
    literals: Vec<(Box<[u8]>, usize)>,
    segment: Option<usize>,
    /// Rules whose patterns end here, in order.
    exact: Vec<usize>,
    /// Rules whose patterns end with `{*name}` here, in order.
    rest: Vec<usize>,
    /// The first and the last rule in this node's subtree.
    first: usize,
    last: usize,
}

impl Node {
    /// The child for that literal segment.
    fn literal(&self, segment: &[u8]) -> Option<usize> {
        let place = self.literals.binary_search_by(|(literal, _)| (**literal).cmp(segment));
        place.ok().map(|place| self.literals[place].1)
    }
}

impl<R> Rules<R> {
    /// Rules in order of precedence.
    pub fn new(rules: Vec<(Methods, Pattern, R)>) -> Self {
        let rules =
            rules.into_iter().map(|(methods, pattern, payload)| Rule { methods, pattern, payload });
        let mut new = Self { rules: rules.collect(), nodes: vec![Node::default()] };
        let rules = std::mem::take(&mut new.rules);
        for (number, rule) in rules.iter().enumerate() {
            new.place(&rule.pattern, number);
        }
        new.rules = rules;
        new
    }

    /// Inserts a rule. Its number must be higher than those in the tree.
    fn place(&mut self, pattern: &Pattern, number: usize) {
        let nodes = &mut self.nodes;
        let mut at = 0;
        nodes[at].last = number;
        for part in &pattern.0 {
            let new = nodes.len();
            let node = &mut nodes[at];
            at = match part {
                Part::Rest(_) => return node.rest.push(number),
                Part::Segment(_) => *node.segment.get_or_insert(new),
                Part::Literal(literal) => {
                    match node.literals.binary_search_by(|(l, _)| l.cmp(literal)) {
                        Ok(place) => node.literals[place].1,
                        Err(place) => {
                            node.literals.insert(place, (literal.clone(), new));
                            new
                        }
                    }
                }
            };
            if at == new {
                nodes.push(Node { first: number, ..Node::default() });
            }
            nodes[at].last = number;
        }
        nodes[at].exact.push(number);
    }

    /// The first rule, in order of precedence, that matches by method and path and that `accept` accepts.
    /// `accept` sees the matching rules in this order.
    pub fn first<'p>(
        &self,
        method: &[u8],
        path: &'p [u8],
        mut accept: impl FnMut(&R, &Segments<'_, 'p>) -> bool,
    ) -> Option<(&R, Segments<'_, 'p>)> {
        self.matching(path, |methods| methods.matches(method))
            .find(|(payload, segments)| accept(payload, segments))
    }

    /// All rules in order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = (&Methods, &Pattern, &R)> {
        self.rules.iter().map(|rule| (&rule.methods, &rule.pattern, &rule.payload))
    }

    /// Calls `f` for every rule that matches by method and path, in order of precedence.
    pub fn each<'r>(&'r self, method: &[u8], path: &[u8], mut f: impl FnMut(&'r R)) {
        self.matching(path, |methods| methods.matches(method)).for_each(|(payload, _)| f(payload));
    }

    /// Calls `f` for every rule that matches by path, whatever its methods, in order of precedence.
    pub fn any_method<'p>(&self, path: &'p [u8], mut f: impl FnMut(&R, &Segments<'_, 'p>)) {
        self.matching(path, |_| true).for_each(|(payload, segments)| f(payload, &segments));
    }

    /// The rules that can never be the first match, each with the first rule that hides it: an earlier
    /// unconditional rule whose methods and paths include all of its own. Both are indexes in the order of
    /// precedence, `(hidden, hiding)`.
    pub fn unreachable(&self, is_unconditional: impl Fn(&R) -> bool) -> Vec<(usize, usize)> {
        let mut hiding = Self { rules: Box::default(), nodes: vec![Node::default()] };
        let mut found = Vec::new();
        for (number, rule) in self.rules.iter().enumerate() {
            let covers = |earlier: &usize| self.rules[*earlier].methods.covers(&rule.methods);
            match hiding.first_above(0, &rule.pattern.0, &covers) {
                Some(earlier) => found.push((number, earlier)),
                // A hidden rule hides nothing that its hiding rule does not hide.
                None if is_unconditional(&rule.payload) => hiding.place(&rule.pattern, number),
                None => {}
            }
        }
        found
    }

    /// The first rule below node `at` that `covers` accepts and whose pattern covers `parts`.
    fn first_above(
        &self,
        at: usize,
        parts: &[Part],
        covers: &impl Fn(&usize) -> bool,
    ) -> Option<usize> {
        let node = &self.nodes[at];
        let Some((part, below)) = parts.split_first() else {
            return node.exact.iter().copied().find(|rule| covers(rule));
        };
        let here = node.rest.iter().copied().find(|rule| covers(rule));
        let literal = match part {
            Part::Literal(literal) => node.literal(literal),
            _ => None,
        };
        let segment = node.segment.filter(|_| !matches!(part, Part::Rest(_)));
        let deeper = [literal, segment].into_iter().flatten();
        deeper.filter_map(|child| self.first_above(child, below, covers)).chain(here).min()
    }

    fn matching<'r, 'p>(
        &'r self,
        path: &'p [u8],
        wanted: impl Fn(&Methods) -> bool,
    ) -> impl Iterator<Item = (&'r R, Segments<'r, 'p>)> {
        let inside = path.strip_prefix(b"/");
        let mut from = 0;
        iter::from_fn(move || {
            let number = self.search(0, inside?, from, self.rules.len(), &wanted);
            let rule = self.rules.get(number)?;
            from = number + 1;
            Some((&rule.payload, Segments { pattern: &rule.pattern, path }))
        })
    }

    /// The first rule below node `at` with a number in `from..end`, else `end`. `path` is the rest below
    /// the node.
    fn search(
        &self,
        at: usize,
        path: &[u8],
        from: usize,
        end: usize,
        wanted: &impl Fn(&Methods) -> bool,
    ) -> usize {
        let node = &self.nodes[at];
        if node.last < from || node.first >= end {
            return end;
        }
        let here = if path.is_empty() { &node.exact } else { &node.rest };
        let mut first = here[here.partition_point(|number| *number < from)..]
            .iter()
            .copied()
            .take_while(|number| *number < end)
            .find(|number| wanted(&self.rules[*number].methods))
            .unwrap_or(end);
        if path.is_empty() {
            return first;
        }
        let (segment, below) = split_segment(path);
        if let Some(child) = node.literal(segment) {
            first = self.search(child, below, from, first, wanted);
        }
        match node.segment {
            Some(child) if !segment.is_empty() => self.search(child, below, from, first, wanted),
            _ => first,
        }
    }
}

/// The responses that a rule matches: `200,2xx,4xx-5xx,set_cookie:NAME,header:NAME,location:PREFIX,!204`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusKey(Box<[Item]>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    negated: bool,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// The statuses, and whether 499 is one of them.
    Status(RangeInclusive<u16>, bool),
    SetCookie(Name),
    Header(Box<str>),
    Location(Box<[u8]>),
}

/// nginx's own status for a client that closed the connection before the answer. A list matches it only
/// with the number 499 itself, not with `4xx`.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Why a list of responses is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKeyError {
    /// An item is neither a status nor one of the known conditions.
    Status,
    /// A range ends before it begins.
    Reversed,
    /// An item is there with and without `!`.
    Never,
    /// The name of a cookie or header is empty or has invalid characters.
    Name,
    /// `location:` has no value.
    Location,
}

impl fmt::Display for StatusKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => {
                "a status must be like 200, 2xx, 400-404, 4xx-5xx, set_cookie:NAME, header:NAME or \
                 location:PREFIX, or one of them behind \"!\""
            }
            Self::Never => "the same must not stand with and without \"!\"",
            Self::Reversed => "a range of statuses must not end before it begins",
            Self::Name => "\"set_cookie:\" and \"header:\" must be followed by a name",
            Self::Location => "\"location:\" must be followed by the beginning of a URL",
        })
    }
}

impl StatusKey {
    /// Reads a comma-separated list.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, StatusKeyError> {
        let items = text.split(',').map(Item::parse).collect::<Result<_, _>>().map(Self)?;
        let mut negated = text.split(',').filter_map(|item| item.strip_prefix('!'));
        if negated.any(|item| text.split(',').any(|other| other == item)) {
            return Err(StatusKeyError::Never);
        }
        Ok(items)
    }

    /// Whether at least one positive item holds and no item with `!` does. A list of only `!` items holds
    /// if none of them does.
    pub fn holds<X: Exchange>(&self, exchange: &X) -> bool {
        let is_true = |item: &Item| item.condition.holds(exchange);
        let (mut any_wanted, mut holds) = (false, false);
        for item in &self.0 {
            if item.negated {
                if is_true(item) {
                    return false;
                }
            } else {
                any_wanted = true;
                holds = holds || is_true(item);
            }
        }
        holds || !any_wanted
    }
}

impl Item {
    fn parse(text: &str) -> Result<Self, StatusKeyError> {
        let wanted = text.strip_prefix('!');
        let condition = Condition::parse(wanted.unwrap_or(text))?;
        Ok(Self { negated: wanted.is_some(), condition })
    }
}

impl Condition {
    fn parse(item: &str) -> Result<Self, StatusKeyError> {
        let name = |name: &str| match is_token(name) {
            true => Ok(name.into()),
            false => Err(StatusKeyError::Name),
        };
        if let Some(cookie) = item.strip_prefix("set_cookie:") {
            return Name::parse(cookie).map(Self::SetCookie).ok_or(StatusKeyError::Name);
        }
        if let Some(header) = item.strip_prefix("header:") {
            return name(header).map(Self::Header);
        }
        if let Some(prefix) = item.strip_prefix("location:") {
            return match prefix {
                "" => Err(StatusKeyError::Location),
                prefix => Ok(Self::Location(prefix.as_bytes().into())),
            };
        }
        let (from, to) = item.split_once('-').unwrap_or((item, item));
        let range = *statuses(from)?.start()..=*statuses(to)?.end();
        match range.is_empty() {
            true => Err(StatusKeyError::Reversed),
            false => Ok(Self::Status(range, [from, to].contains(&"499"))),
        }
    }

    fn holds<X: Exchange>(&self, exchange: &X) -> bool {
        match self {
            Self::Status(range, with_499) => {
                let status = exchange.status();
                range.contains(&status) && (status != CLIENT_CLOSED_REQUEST || *with_499)
            }
            Self::SetCookie(name) => exchange.set_cookie(name).is_some(),
            Self::Header(name) => exchange.answer_header(name).is_some_and(|v| !v.is_empty()),
            Self::Location(prefix) => {
                let location = exchange.location();
                let target = &location[path::authority_of(location)..];
                let wanted = if prefix.starts_with(b"/") { target } else { location };
                wanted.starts_with(prefix)
            }
        }
    }
}

/// The statuses of `404` or `4xx`.
fn statuses(text: &str) -> Result<RangeInclusive<u16>, StatusKeyError> {
    let digit = |b: u8| u16::from(b - b'0');
    match *text.as_bytes() {
        [a @ b'1'..=b'5', b'x', b'x'] => Ok(digit(a) * 100..=digit(a) * 100 + 99),
        [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            let status = digit(a) * 100 + digit(b) * 10 + digit(c);
            Ok(status..=status)
        }
        _ => Err(StatusKeyError::Status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::facts::Facts;

    fn values<'r, 'p>(
        segments: &Segments<'r, 'p>,
    ) -> impl Iterator<Item = (&'r str, &'p [u8])> + use<'r, 'p> {
        let path = segments.path;
        segments.ranges().map(move |(name, range)| (name, &path[range]))
    }

    fn get<'p>(segments: &Segments<'_, 'p>, name: &str) -> Option<&'p [u8]> {
        values(segments).find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    fn rules<'a>(list: &[(&str, &str, &'a str)]) -> Rules<&'a str> {
        let rule = |&(methods, pattern, name): &(&str, &str, &'a str)| {
            (Methods::parse(methods).unwrap(), Pattern::parse(pattern).unwrap(), name)
        };
        Rules::new(list.iter().map(rule).collect())
    }

    fn first<'a>(rules: &Rules<&'a str>, method: &str, path: &str) -> Option<&'a str> {
        rules.first(method.as_bytes(), path.as_bytes(), |_, _| true).map(|(name, _)| *name)
    }

    #[test]
    fn methods() {
        let list = Methods::parse("POST,M-SEARCH").unwrap();
        assert!(list.matches(b"POST") && list.matches(b"M-SEARCH"));
        assert!(!list.matches(b"PUT") && !list.matches(b"") && !list.matches(b"post"));
        let any = Methods::parse("*").unwrap();
        assert!(any.matches(b"GET") && any.matches(b""));
        let errors = [
            ("", MethodsError::Empty),
            ("GET,", MethodsError::Empty),
            (",GET", MethodsError::Empty),
            ("GET, POST", MethodsError::NotToken),
            ("GET/POST", MethodsError::NotToken),
            ("GÉT", MethodsError::NotToken),
            ("Get", MethodsError::LowerCase),
            ("GET,*", MethodsError::Any),
            ("*,*", MethodsError::Any),
            ("GET,PUT,GET", MethodsError::Duplicate),
        ];
        for (text, error) in errors {
            assert_eq!(Methods::parse(text), Err(error), "{text}");
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn patterns() {
        for text in ["/", "/a", "/a.b/..c", "/{a}/{b_1}", "/{_}/{*rest}", "/%4x é"] {
            assert!(Pattern::parse(text).is_ok(), "{text}");
        }
        let names = Pattern::parse("/a/{b}/c/{*d}").unwrap();
        assert_eq!(names.names().collect::<Vec<_>>(), ["b", "d"]);
        let errors = [
            ("", PatternError::NotAbsolute),
            ("a", PatternError::NotAbsolute),
            ("{a}", PatternError::NotAbsolute),
            ("/a/", PatternError::TrailingSlash),
            ("//", PatternError::TrailingSlash),
            ("/{*a}/", PatternError::TrailingSlash),
            ("/a//b", PatternError::EmptySegment),
            ("//a", PatternError::EmptySegment),
            ("/a/./b", PatternError::DotSegment),
            ("/..", PatternError::DotSegment),
            ("/a?b", PatternError::Query),
            ("/a#b", PatternError::Query),
            ("/a{b}", PatternError::Brace),
            ("/{a}b", PatternError::Brace),
            ("/{a", PatternError::Brace),
            ("/a}", PatternError::Brace),
            ("/{{a}}", PatternError::Brace),
            ("/{a}{b}", PatternError::Brace),
            ("/{", PatternError::Brace),
            ("/{}", PatternError::Name),
            ("/{*}", PatternError::Name),
            ("/{**a}", PatternError::Name),
            ("/{1a}", PatternError::Name),
            ("/{A}", PatternError::Name),
            ("/{a-b}", PatternError::Name),
            ("/{a}/{a}", PatternError::DuplicateName),
            ("/{a}/{*a}", PatternError::DuplicateName),
            ("/*", PatternError::Star),
            ("/api/*", PatternError::Star),
            ("/a*/b", PatternError::Star),
            ("/{*a}/b", PatternError::RestNotLast),
            ("/{*a}/{*b}", PatternError::RestNotLast),
        ];
        for (text, error) in errors {
            assert_eq!(Pattern::parse(text), Err(error), "{text}");
            assert!(!error.to_string().is_empty());
        }
        assert!(Pattern::parse(&"/a".repeat(MAX_SEGMENTS)).is_ok());
        let deep = "/a".repeat(MAX_SEGMENTS + 1);
        assert_eq!(Pattern::parse(&deep), Err(PatternError::TooDeep));
        assert!(PatternError::TooDeep.to_string().contains("64"));
    }

    #[test]
    fn what_matches_what() {
        let cases: [(&str, &[&str], &[&str]); 6] = [
            ("/", &["/"], &["", "/a", "*", "a"]),
            ("/a/b", &["/a/b", "/a/b/"], &["/a", "/a/b/c", "/a/B", "a/b", "/a/b//", "/a/bc"]),
            ("/a/{x}", &["/a/b", "/a/b/", "/a/%"], &["/a", "/a/", "/a//", "/a/b/c"]),
            ("/a/{x}/c", &["/a/b/c", "/a/c/c/"], &["/a//c", "/a/b/b", "/a/b"]),
            ("/a/{*x}", &["/a/b", "/a/b/c/"], &["/a", "/a/", "/b/a"]),
            ("/{*x}", &["/a", "/a/b"], &["/", "", "a/b", "*"]),
        ];
        for (pattern, yes, no) in cases {
            let rules = rules(&[("*", pattern, "")]);
            for (path, expected) in
                yes.iter().map(|p| (p, true)).chain(no.iter().map(|p| (p, false)))
            {
                assert_eq!(first(&rules, "GET", path).is_some(), expected, "{pattern} {path}");
            }
        }
        assert_eq!(first(&rules(&[]), "GET", "/"), None);
    }

    #[test]
    fn values_of_segments() {
        let rules = rules(&[("*", "/a/{x}/b/{*rest}", "rule")]);
        let path = b"/a/1/b/2/3/";
        let (_, segments) = rules.first(b"GET", path, |_, s| get(s, "x") == Some(b"1")).unwrap();
        assert_eq!(get(&segments, "x"), Some(&b"1"[..]));
        assert_eq!(get(&segments, "rest"), Some(&b"2/3/"[..]));
        assert_eq!(get(&segments, "a"), None);
        assert_eq!(segments.range("x"), Some(3..4));
        assert_eq!(segments.range("rest"), Some(7..11));
        let values: Vec<_> = values(&segments).collect();
        assert_eq!(values, [("x", &b"1"[..]), ("rest", b"2/3/")]);
    }

    #[test]
    fn the_first_that_is_accepted() {
        let rules = rules(&[
            ("PUT", "/users/{id}", "put"),
            ("POST", "/users/login", "login"),
            ("POST", "/users/{id}", "user"),
            ("*", "/{*rest}", "any"),
            ("POST", "/users/login", "again"),
            ("*", "/users/{*rest}", "below"),
        ]);
        assert_eq!(first(&rules, "POST", "/users/login"), Some("login"));
        assert_eq!(first(&rules, "PUT", "/users/login"), Some("put"));
        assert_eq!(first(&rules, "GET", "/users/login"), Some("any"));
        assert_eq!(first(&rules, "GET", "/"), None);
        let mut seen = Vec::new();
        let none = rules.first(b"POST", b"/users/login/", |name, _| {
            seen.push(*name);
            false
        });
        assert!(none.is_none());
        assert_eq!(seen, ["login", "user", "any", "again", "below"]);
        let mut seen = Vec::new();
        rules.any_method(b"/users/7", |name, segments| {
            seen.push((*name, values(segments).next().map(|(_, value)| value)));
        });
        let expected: [(_, &[u8]); 4] =
            [("put", b"7"), ("user", b"7"), ("any", b"users/7"), ("below", b"7")];
        assert_eq!(seen, expected.map(|(name, value)| (name, Some(value))));
    }

    #[test]
    fn what_can_never_come_first() {
        let rules = rules(&[
            ("POST,PUT", "/a/{x}", "always"),
            ("PUT", "/a/{y}", "0"),
            ("PUT", "/a/b", "0"),
            ("*", "/a/b", "reachable"),
            ("POST", "/a/{*rest}", "always"),
            ("POST", "/a/b/{c}", "4"),
            ("POST", "/a/{b}/{*rest}", "4"),
            ("POST", "/a", "reachable"),
            ("*", "/", "sometimes"),
            ("*", "/", "always"),
            ("GET", "/", "9"),
            ("*", "/c", "always"),
            ("*", "/c", "11"),
            ("*", "/c/d", "reachable"),
        ]);
        let hidden = rules.unreachable(|name| *name == "always");
        assert_eq!(hidden, [(1, 0), (2, 0), (5, 4), (6, 4), (10, 9), (12, 11)]);
        for (hidden, hiding) in hidden {
            assert_eq!(rules.rules[hidden].payload, hiding.to_string());
        }
    }

    /// The tree finds the same rules as a comparison with one pattern after the other.
    #[test]
    fn random_rules_and_paths() {
        let mut random = fastrand::Rng::with_seed(1);
        let matches = |pattern: &str, path: &str| {
            let path = path.strip_suffix('/').unwrap_or(path);
            let (mut parts, mut segments) = (pattern.split('/').skip(1), path.split('/').skip(1));
            loop {
                match (parts.next(), segments.next()) {
                    (None, None) => return true,
                    (Some(part), Some(_)) if part.starts_with("{*") => return true,
                    (Some(part), Some(segment)) if part.starts_with('{') || part == segment => {}
                    _ => return false,
                }
            }
        };
        for _ in 0..2000 {
            let patterns: Vec<String> = (0..random.usize(..20))
                .map(|_| {
                    let len = random.usize(1..5);
                    let segment = |i| match random.u8(..5) {
                        0 | 1 => format!("/{{s{i}}}"),
                        n => format!("/{n}"),
                    };
                    let mut text: String = (0..len).map(segment).collect();
                    if random.u8(..4) == 0 {
                        text += "/{*rest}";
                    }
                    text
                })
                .collect();
            let list: Vec<_> = patterns.iter().map(|p| ("*", p.as_str(), p.as_str())).collect();
            let rules = rules(&list);
            for _ in 0..20 {
                let mut path: String =
                    (0..random.usize(1..6)).map(|_| format!("/{}", random.u8(1..5))).collect();
                if random.bool() {
                    path.push('/');
                }
                let mut found = Vec::new();
                rules.any_method(path.as_bytes(), |pattern, segments| {
                    assert!(values(segments).all(|(_, value)| !value.is_empty()));
                    found.push(*pattern);
                });
                let expected: Vec<_> = patterns.iter().filter(|p| matches(p, &path)).collect();
                assert_eq!(found, expected, "{path}");
            }
            for (hidden, hiding) in rules.unreachable(|_| true) {
                assert!(hiding < hidden);
                let path = patterns[hidden].replace(['{', '}', '*'], "");
                assert!(matches(&patterns[hiding], &path), "{hidden} {hiding} {patterns:?}");
            }
        }
    }

    #[test]
    fn hostile_paths_and_many_rules() {
        // All patterns of ten segments that are each `a` or a `{name}`: all of them match.
        let patterns: Vec<String> = (0..1024)
            .map(|bits| {
                let segment = |i| match bits >> i & 1 {
                    0 => "/a".to_owned(),
                    _ => format!("/{{s{i}}}"),
                };
                (0..10).map(segment).collect()
            })
            .collect();
        let list: Vec<_> = patterns.iter().map(|p| ("*", p.as_str(), "")).collect();
        let rules = rules(&list);
        let mut count = 0;
        rules.any_method("/a".repeat(10).as_bytes(), |_, _| count += 1);
        assert_eq!(count, 1024);
        let deep = "/a".repeat(1 << 20);
        assert_eq!(first(&rules, "GET", &deep), None);
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..10_000 {
            let path: Vec<u8> = (0..random.usize(..30)).map(|_| random.u8(..)).collect();
            let path = [b"/", &*path].concat();
            rules.any_method(&path, |_, segments| values(segments).for_each(drop));
        }
    }

    #[test]
    fn statuses() {
        let answer_headers = vec![
            ("set-cookie", "SID=1; Path=/"),
            ("token", "t"),
            ("location", "https://example.com/done?ok=1"),
        ];
        let facts = Facts { answer_headers, ..Facts::default() };
        let holds = |text: &str, status| {
            StatusKey::parse(text).unwrap().holds(&Facts { status, ..facts.clone() })
        };
        let cases: [(&str, &[u16], &[u16]); 18] = [
            ("200", &[200], &[0, 201]),
            ("2xx", &[200, 299], &[199, 300]),
            ("200,404", &[200, 404], &[400]),
            ("400-404", &[400, 404], &[399, 405]),
            ("4xx-5xx", &[400, 599], &[399, 600]),
            ("401-4xx", &[401, 498], &[400, 499, 500]),
            ("4xx", &[498], &[499]),
            ("498-500", &[498, 500], &[499]),
            ("499,400", &[499, 400], &[498]),
            ("4xx,!404", &[400], &[404, 200]),
            ("!404,!5xx", &[200, 499], &[404, 500]),
            ("location:/done", &[200], &[]),
            ("location:https://example.com/,!500", &[200], &[500]),
            ("302,set_cookie:SID", &[0, 200, 302], &[]),
            ("302,set_cookie:S,header:tok", &[302], &[200]),
            ("302,set_cookie:S*", &[200, 302], &[]),
            ("302,set_cookie:X*,!set_cookie:s*", &[302], &[200]),
            ("!set_cookie:S*", &[], &[200]),
        ];
        for (text, yes, no) in cases {
            assert!(yes.iter().all(|status| holds(text, *status)), "{text}");
            assert!(!no.iter().any(|status| holds(text, *status)), "{text}");
        }
        assert!(holds("header:Token", 500));
        assert!(!holds("location:done", 200) && !holds("location:/other", 200));
        let errors = [
            ("", StatusKeyError::Status),
            ("200,", StatusKeyError::Status),
            ("099", StatusKeyError::Status),
            ("600", StatusKeyError::Status),
            ("2x", StatusKeyError::Status),
            ("20x", StatusKeyError::Status),
            ("2000", StatusKeyError::Status),
            ("200-", StatusKeyError::Status),
            ("200-300-400", StatusKeyError::Status),
            (" 200", StatusKeyError::Status),
            ("cookie:a", StatusKeyError::Status),
            ("404-400", StatusKeyError::Reversed),
            ("5xx-4xx", StatusKeyError::Reversed),
            ("set_cookie:", StatusKeyError::Name),
            ("header:a b", StatusKeyError::Name),
            ("location:", StatusKeyError::Location),
            ("!", StatusKeyError::Status),
            ("!!200", StatusKeyError::Status),
        ];
        for (text, error) in errors {
            assert_eq!(StatusKey::parse(text), Err(error), "{text}");
            assert!(!error.to_string().is_empty());
        }
    }
}
