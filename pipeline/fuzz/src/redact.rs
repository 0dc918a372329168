//! No secret is left in a URL, and all else is.

use std::ops::Range;
use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::capture::path::normalize;
use tirreno_pipeline::capture::redact::{Paths, Redaction, Scratch};
use tirreno_pipeline::capture::rules::{Methods, Pattern, Rules};

use crate::{spell, text};

const SECRET: &str = "5ecr3t";
const MASK: &str = "***";
const PIECES: &[&str] = &[
    "/", "?", "&", ";", "=", "#", "@", ":", "%", "%3d", "%3D", "%26", "%253D", "%2f", "[", "]",
    "%5b", "token", "token=", "a", "a=", "hooks", "http://", "//", "..", "+", "***", "é",
];
/// Nothing here names an argument.
const NOISE: &[&str] =
    &["/", "&", ";", "?", "=", "a", "%", "%2", "%2e", "[", "]", "+", "é", "http://"];
const HARMLESS: &[&str] = &["q", "page", "tokens", "keyword", "author", "x.y"];
/// Secret whichever of their letters are in upper case.
const SECRETS: &[&str] =
    &["token", "api_key", "password", "user[secret]", "SAMLResponse", "signature", "x-csrf"];

static REDACTION: LazyLock<Redaction> = LazyLock::new(|| Redaction::new(["h"]));
static RULES: LazyLock<Rules<()>> = LazyLock::new(|| {
    let patterns = ["/hooks/{secret}", "/hooks/{secret}/{id}", "/s/{*secret}"];
    let rule = |p| (Methods::parse("*").expect("methods"), Pattern::parse(p).expect("a path"), ());
    Rules::new(patterns.map(rule).into())
});

const PATHS: Paths<'_> = Paths { own: Some(&segments), nested: Some(&segments), normalized: None };

fn segments(path: &[u8], ranges: &mut Vec<Range<usize>>) {
    RULES.any_method(path, |(), segments| ranges.extend(segments.range("secret")));
}

fn url(target: &[u8]) -> Vec<u8> {
    REDACTION.url(target, PATHS, &mut Scratch::default()).to_vec()
}

fn referer(target: &[u8]) -> Vec<u8> {
    REDACTION.referer(target, PATHS, &mut Scratch::default()).to_vec()
}

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=3)? {
        0 => any_bytes(&text(u, PIECES, 16)?),
        1 => arguments(u)?,
        2 => planted(u)?,
        _ => planted_in_path(u)?,
    }
    Ok(())
}

/// Redacted once is redacted; what is not masked is as it was, and in its place.
fn any_bytes(target: &[u8]) {
    // One after the other, not both at once: a mask in the place of a `%2F` makes another path.
    let off = Redaction::off();
    let own = Paths { own: Some(&segments), ..Paths::default() };
    for (redaction, paths) in [(&*REDACTION, Paths::default()), (&off, own)] {
        let mut scratch = Scratch::default();
        let once = redaction.url(target, paths, &mut scratch).to_vec();
        let twice = redaction.url(&once, paths, &mut scratch);
        assert_eq!(merged(twice), merged(&once), "{target:?}");
        let once = redaction.referer(target, paths, &mut scratch).to_vec();
        let twice = redaction.referer(&once, paths, &mut scratch);
        assert_eq!(merged(twice), merged(&once), "{target:?}");
    }

    // The user in front of a host is left out.
    if !target.starts_with(b"/") && target.contains(&b'@') {
        return;
    }
    let marks = b"=%@{J?#";
    let out = REDACTION.url(target, Paths::default(), &mut Scratch::default()).to_vec();
    if !target.iter().any(|b| marks.contains(b)) {
        assert_eq!(out, target);
    }
    let mut rest = target;
    let mut kept = split(&out);
    let last = kept.pop().expect("a part");
    for (i, part) in kept.iter().enumerate() {
        let at = rest.windows(part.len().max(1)).position(|w| part.is_empty() || w == *part);
        let at = if part.is_empty() { 0 } else { at.expect("what was there before") };
        assert!(i > 0 || at == 0, "{target:?}");
        rest = &rest[at + part.len()..];
    }
    if kept.is_empty() {
        assert_eq!(last, target);
    }
    assert!(rest.ends_with(last), "{target:?}");
}

/// An argument that is all mask has no name any more: it belongs to a secret before it.
fn merged(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in text {
        out.push(*byte);
        if out.ends_with(b"***;***") {
            out.truncate(out.len() - 4);
        }
    }
    out
}

fn split(text: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut start) = (Vec::new(), 0);
    while let Some(at) = text[start..].windows(MASK.len()).position(|w| w == MASK.as_bytes()) {
        parts.push(&text[start..start + at]);
        start += at + MASK.len();
    }
    parts.push(&text[start..]);
    parts
}

/// Of plain arguments exactly the secret ones are masked.
fn arguments(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut given, mut expected) = (String::new(), String::new());
    for i in 0..u.int_in_range(1..=5)? {
        let secret = u.arbitrary()?;
        let name = *u.choose(if secret { SECRETS } else { HARMLESS })?;
        let name = spell(u, name)?;
        let value = *u.choose(&["", "x", "5ecr3t", "a.b-c", "1+2"])?;
        let value = spell(u, value)?;
        let mark = if i == 0 { "?" } else { *u.choose(&["&", ";"])? };
        given += &format!("{mark}{name}={value}");
        expected += &format!("{mark}{name}={}", if secret { MASK } else { &value });
    }
    for start in ["/a/b", "https://h:1/a", "https://h"] {
        let (given, expected) = (format!("{start}{given}"), format!("{start}{expected}"));
        assert_eq!(url(given.as_bytes()), expected.as_bytes(), "{given}");
        assert_eq!(referer(given.as_bytes()), expected.as_bytes(), "{given}");
    }
    Ok(())
}

/// A secret among what is none does not come out, however its name is spelled.
fn planted(u: &mut Unstructured<'_>) -> Result<()> {
    let (before, after) = (noise(u)?, noise(u)?);
    // What ends an argument ends the secret too.
    let value = noise(u)?.replace(['&', ';', '/', '?'], "");
    let name = if u.ratio(1, 8)? { "h" } else { *u.choose(SECRETS)? };
    let suffix = *u.choose(&["", "[]", "[x]", "%5B%5D"])?;
    let mut argument = format!("{}{suffix}={value}{SECRET}{value}", spell(u, name)?);
    if u.arbitrary()? {
        argument = argument.replace('%', "%25").replace('=', "%3D").replace('&', "%26");
        argument = format!("to=%2Fx%3F{argument}");
    }
    let mark = *u.choose(&["?", "&", ";", "#"])?;
    hides_secret(&format!("/{before}{mark}{argument}&{after}"));
    Ok(())
}

/// A segment that is secret does not come out, however its path is spelled.
fn planted_in_path(u: &mut Unstructured<'_>) -> Result<()> {
    let mut dots = || u.choose(&["", "/", "/.", "/x/..", "/%2E", "/y/%2e.", "/%2f"]).copied();
    let (first, second, third) = (dots()?, dots()?, dots()?);
    let value = noise(u)?.replace(['/', '?'], "");
    let after = noise(u)?;
    let hooks = if u.arbitrary()? { "hooks" } else { "%68oo%6bs" };
    let target = format!("{first}/{hooks}{second}/{value}{SECRET}{third}?{after}");
    if normalize(target.as_bytes(), &mut Vec::new()).starts_with(b"/hooks/") {
        hides_secret(&target);
    }
    Ok(())
}

fn noise(u: &mut Unstructured<'_>) -> Result<String> {
    let mut noise = String::new();
    for _ in 0..u.int_in_range(0..=5)? {
        noise += u.choose(NOISE)?;
    }
    Ok(noise)
}

fn hides_secret(target: &str) {
    let full = format!("https://user:{SECRET}@host{target}");
    for out in [url(target.as_bytes()), referer(full.as_bytes())] {
        let found = out.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
        assert!(!found, "{target} {}", String::from_utf8_lossy(&out));
    }
}
