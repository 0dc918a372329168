//! A path is what nginx makes of it, and finds the rules that one finds who reads them one by one.

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::capture::path::normalize;
use tirreno_pipeline::capture::rules::{Methods, Pattern, Rules};

use crate::text;

const PIECES: &[&str] = &[
    "/", "/", "/", ".", "..", "/..", "/./", "//", "%", "%2e", "%2E", "%2f", "%2F", "%25", "%3f",
    "%23", "%00", "%61", "?", "#", "a", "b", "users", "http://", "é",
];
const PARTS: &[&str] = &["a", "b", "users", "%", ".a", "é", "{x}", "{y}", "{z}", "{*rest}"];
const METHODS: &[&str] = &["*", "GET", "POST,PUT"];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let mut target = text(u, PIECES, 16)?;
    if u.ratio(7, 8)? {
        target.insert(0, b'/');
    }
    let mut scratch = Vec::new();
    let path = normalize(&target, &mut scratch);
    is_normal(&target, path);
    if let Some(expected) = nginx(&target) {
        assert_eq!(path, expected, "{target:?}");
    }
    finds_its_rules(u, path)
}

fn is_normal(target: &[u8], path: &[u8]) {
    assert!(path.len() <= target.len().max(1));
    let Some(inside) = path.strip_prefix(b"/") else { return };
    let segments: Vec<_> = inside.split(|b| *b == b'/').collect();
    let (last, above) = segments.split_last().expect("a segment");
    assert!(above.iter().all(|s| !matches!(**s, [] | [b'.'] | [b'.', b'.'])), "{target:?}");
    assert!(!matches!(**last, [b'.'] | [b'.', b'.']), "{target:?}");
    // However it is spelled, it stays the same.
    let spelled: String = path
        .iter()
        .map(|byte| if *byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") })
        .collect();
    assert_eq!(normalize(spelled.as_bytes(), &mut Vec::new()), path, "{target:?}");
}

/// What `ngx_http_parse_complex_uri` of nginx 1.28 makes of a path, with `merge_slashes on`; nothing
/// where it refuses the request. A state machine as there, for it must not be ours.
fn nginx(target: &[u8]) -> Option<Vec<u8>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Usual,
        Slash,
        Dot,
        DotDot,
        Quoted,
        QuotedSecond(u8),
    }
    if target.first() != Some(&b'/') {
        return None;
    }
    /// `u -= 4`, and back to the slash before; `u` is one behind what was written last.
    fn up(out: &mut Vec<u8>) -> Option<()> {
        let before = out.len().checked_sub(4)?;
        let slash = out[..=before].iter().rposition(|b| *b == b'/')?;
        out.truncate(slash + 1);
        Some(())
    }
    let mut out = Vec::new();
    let (mut state, mut quoted) = (State::Usual, State::Usual);
    let mut input = target.iter().copied();
    let mut next = input.next();
    while let Some(byte) = next {
        match state {
            State::Quoted | State::QuotedSecond(_) => {
                let digit = char::from(byte).to_digit(16)? as u8;
                let State::QuotedSecond(high) = state else {
                    state = State::QuotedSecond(digit);
                    next = input.next();
                    continue;
                };
                let decoded = high << 4 | digit;
                match decoded {
                    b'%' | b'#' | b'?' => {
                        state = State::Usual;
                        out.push(decoded);
                        next = input.next();
                    }
                    0 => return None,
                    // It is looked at again, in the state before.
                    _ => {
                        state = quoted;
                        next = Some(decoded);
                    }
                }
                continue;
            }
            _ if byte == b'%' => (quoted, state) = (state, State::Quoted),
            State::Usual => match byte {
                b'/' => {
                    state = State::Slash;
                    out.push(byte);
                }
                b'?' | b'#' => return Some(out),
                _ => out.push(byte),
            },
            State::Slash => match byte {
                b'/' => {}
                b'.' => {
                    state = State::Dot;
                    out.push(byte);
                }
                b'?' | b'#' => return Some(out),
                _ => {
                    state = State::Usual;
                    out.push(byte);
                }
            },
            State::Dot => match byte {
                b'/' => {
                    state = State::Slash;
                    out.pop();
                }
                b'.' => {
                    state = State::DotDot;
                    out.push(byte);
                }
                b'?' | b'#' => {
                    out.pop();
                    return Some(out);
                }
                _ => {
                    state = State::Usual;
                    out.push(byte);
                }
            },
            State::DotDot => match byte {
                b'/' | b'?' | b'#' => {
                    up(&mut out)?;
                    if byte != b'/' {
                        return Some(out);
                    }
                    state = State::Slash;
                }
                _ => {
                    state = State::Usual;
                    out.push(byte);
                }
            },
        }
        next = input.next();
    }
    match state {
        State::Quoted | State::QuotedSecond(_) => return None,
        State::Dot => {
            out.pop();
        }
        State::DotDot => up(&mut out)?,
        _ => {}
    }
    Some(out)
}

fn finds_its_rules(u: &mut Unstructured<'_>, path: &[u8]) -> Result<()> {
    let mut given = Vec::new();
    for _ in 0..u.int_in_range(0..=12)? {
        let mut pattern = String::new();
        for _ in 0..u.int_in_range(1..=4)? {
            pattern += &format!("/{}", u.choose(PARTS)?);
        }
        let methods = *u.choose(METHODS)?;
        if let Ok(parsed) = Pattern::parse(&pattern) {
            given.push((methods, pattern, parsed, u.arbitrary::<bool>()?));
        }
    }
    let method = *u.choose(&["GET", "PUT", "DELETE"])?;
    let rules = Rules::new(
        given
            .iter()
            .enumerate()
            .map(|(number, (methods, _, pattern, _))| {
                (Methods::parse(methods).expect("methods"), pattern.clone(), number)
            })
            .collect(),
    );
    let has_method = |methods: &str| methods == "*" || methods.split(',').any(|m| m == method);
    let expected =
        given.iter().enumerate().find_map(|(number, (methods, pattern, _, accepted))| {
            let values = values(pattern, path)?;
            (has_method(methods) && *accepted).then_some((number, values))
        });
    let found = rules.first(method.as_bytes(), path, |number, _| given[*number].3);
    let found = found.map(|(number, segments)| {
        let values = segments.ranges().map(|(name, range)| (name.to_owned(), path[range].to_vec()));
        (*number, values.collect::<Vec<_>>())
    });
    assert_eq!(found, expected, "{path:?}");

    let mut all = Vec::new();
    rules.any_method(path, |number, _| all.push(*number));
    let matching = |number: &usize| values(&given[*number].1, path).is_some();
    assert_eq!(all, (0..given.len()).filter(matching).collect::<Vec<_>>(), "{path:?}");

    let first = rules.first(method.as_bytes(), path, |_, _| true).map(|(number, _)| *number);
    let hidden = rules.unreachable(|_| true);
    assert!(hidden.iter().all(|(hidden, _)| first != Some(*hidden)), "{path:?}");
    Ok(())
}

/// The named segments of a path that a pattern is for.
fn values(pattern: &str, path: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let path = path.strip_prefix(b"/")?;
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let mut segments: Vec<_> = trimmed.split(|b| *b == b'/').collect();
    if path.is_empty() {
        segments.clear();
    }
    let mut values = Vec::new();
    let parts: Vec<_> = pattern.split('/').skip(1).collect();
    for (i, part) in parts.iter().enumerate() {
        let segment = *segments.get(i)?;
        if let Some(name) = part.strip_prefix("{*") {
            let before: usize = segments[..i].iter().map(|s| s.len() + 1).sum();
            values.push((name.trim_end_matches('}').to_owned(), path[before..].to_vec()));
            return Some(values);
        }
        match part.strip_prefix('{') {
            Some(name) => values.push((name.trim_end_matches('}').to_owned(), segment.to_vec())),
            None if part.as_bytes() == segment => {}
            None => return None,
        }
    }
    (parts.len() == segments.len()).then_some(values)
}
