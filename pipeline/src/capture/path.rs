//! The path of a request, normalized as nginx does it.
//!
//! nginx matches locations against `$uri`: decoded once, without dot segments and repeated slashes. Rules
//! match the same form, so that no spelling of a path slips past them. They match the path of the request
//! line, because `$uri` itself changes with each rewrite.

use std::iter;
use std::ops::Range;

use memchr::{memchr2, memchr3};

/// Normalizes the path of a request target (`/a/%2e%2e/b?x=1`) or of an absolute URL as nginx makes `$uri`.
/// Returns a slice of `target` if nothing changes, else of `scratch`.
///
/// `%2e` is a dot and `%2f` a slash; a trailing `/.` or `/..` leaves a slash. In requests that nginx
/// refuses, a malformed escape stays as it is, and `..` at the root stays at the root. An empty path
/// becomes `/`. A target without a path (`*`, `host:443`) stays as it is, and does not begin with a slash.
pub fn normalize<'a>(target: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    let path = &target[locate(target)];
    match path.first() {
        None => return b"/",
        Some(b'/') if !is_normal(path) => {}
        Some(_) => return path,
    }
    // The result is never longer than the path.
    scratch.clear();
    scratch.resize(path.len(), 0);
    let out = &mut scratch[..];
    out[0] = b'/';
    // The next byte's place in the result, and the start of the last segment.
    let (mut end, mut segment, mut at) = (1, 1, 1);
    while let Some(mut byte) = path.get(at).copied() {
        at += 1;
        if byte == b'%'
            && let Some(decoded) = escape(&path[at..])
        {
            byte = decoded;
            at += 2;
        }
        if byte == b'/' {
            if segment < end {
                end = close(out, segment, end);
                segment = end;
            }
            if out[end - 1] == b'/' {
                continue;
            }
            segment += 1;
        }
        out[end] = byte;
        end += 1;
    }
    let end = close(out, segment, end);
    scratch.truncate(end);
    scratch
}

/// Whether `sent` is the normalized `path` itself, or its ordinary percent-encoding: then the application, too,
/// certainly sees this path. Ordinary are only escapes that clients need or usually write in a segment: of a blank, of
/// marks that do not structure a path, and of text beyond ASCII.
pub fn is_ordinary(sent: &[u8], path: &[u8]) -> bool {
    if sent == path {
        return true;
    }
    let (mut at, mut decoded) = (0, path.iter());
    while let Some(byte) = sent.get(at) {
        at += 1;
        let byte = match byte {
            b'%' => {
                let Some(byte) = escape(&sent[at..]).filter(is_usually_encoded) else {
                    return false;
                };
                at += 2;
                byte
            }
            byte => *byte,
        };
        if decoded.next() != Some(&byte) {
            return false;
        }
    }
    decoded.next().is_none() && str::from_utf8(path).is_ok()
}

/// Never a slash, a backslash, a dot, a semicolon, a percent sign or a control character, which programs take for
/// structure, nor what no client needs to encode.
fn is_usually_encoded(byte: &u8) -> bool {
    byte.is_ascii_graphic() && b"\"<>[]^`{|}#?@:+,&=$!'()*".contains(byte)
        || *byte == b' '
        || !byte.is_ascii()
}

/// The rest of a normalized path below a prefix without a slash at its end; `None` if the path is not below
/// it.
pub fn below<'p>(path: &'p [u8], prefix: &[u8]) -> Option<&'p [u8]> {
    let below = path.strip_prefix(prefix)?;
    match below {
        [] => Some(b"/"),
        [b'/', ..] => Some(below),
        _ => None,
    }
}

/// The range of the path in a request target or an absolute URL.
pub(crate) fn locate(target: &[u8]) -> Range<usize> {
    let start = match scheme_len(target) {
        0 => 0,
        scheme => scheme + authority_len(&target[scheme..]),
    };
    let end = memchr2(b'?', b'#', &target[start..]);
    start..end.map_or(target.len(), |end| start + end)
}

/// The length of a leading `https://` or the like; 0 without one.
pub(crate) fn scheme_len(url: &[u8]) -> usize {
    let is_in_scheme = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    let name = url.iter().take_while(is_in_scheme).count();
    if name > 0 && url[name..].starts_with(b"://") { name + 3 } else { 0 }
}

/// The end of the authority in a URL; 0 if the URL begins with its path.
pub(crate) fn authority_of(url: &[u8]) -> usize {
    let start = if url.starts_with(b"//") { 2 } else { scheme_len(url) };
    if start == 0 { 0 } else { start + authority_len(&url[start..]) }
}

/// The length of the authority at the start of `rest`, which follows the scheme.
pub(crate) fn authority_len(rest: &[u8]) -> usize {
    memchr3(b'/', b'?', b'#', rest).unwrap_or(rest.len())
}

/// The result of [`decode_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// Nothing was encoded; `out` is meaningless.
    Nothing,
    /// Something was encoded, and the result has no escapes.
    All,
    /// Something was encoded, and the result may have escapes again.
    More,
}

/// Writes `text` to `out` with one layer of percent-encoding undone. A malformed escape stays as it is.
pub(crate) fn decode_into(text: &[u8], out: &mut Vec<u8>) -> Decoded {
    // The result is never longer than `text`.
    out.clear();
    out.extend_from_slice(text);
    let (mut at, mut end, mut percents) = (0, 0, 0);
    while let Some(mut byte) = text.get(at).copied() {
        at += 1;
        if byte == b'%' {
            if let Some(decoded) = escape(&text[at..]) {
                byte = decoded;
                at += 2;
            }
            percents += usize::from(byte == b'%');
        }
        out[end] = byte;
        end += 1;
    }
    out.truncate(end);
    match percents {
        _ if end == text.len() => Decoded::Nothing,
        0 => Decoded::All,
        _ => Decoded::More,
    }
}

/// The byte of an escape, from what follows its `%`.
fn escape(digits: &[u8]) -> Option<u8> {
    let [high, low, ..] = digits else { return None };
    let (high, low) = (HEX[usize::from(*high)], HEX[usize::from(*low)]);
    (high | low < 16).then_some(high << 4 | low)
}

/// The values of hexadecimal digits; 255 for other bytes.
static HEX: [u8; 256] = {
    let mut values = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        values[b"0123456789abcdef"[digit] as usize] = digit as u8;
        values[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

/// Undoes one layer of percent-encoding; a malformed escape stays as it is.
pub fn decode(mut bytes: impl Iterator<Item = u8> + Clone) -> impl Iterator<Item = u8> + Clone {
    iter::from_fn(move || {
        let byte = bytes.next()?;
        if byte == b'%' {
            let mut ahead = bytes.clone();
            if let (Some(high), Some(low)) = (hex(ahead.next()), hex(ahead.next())) {
                bytes = ahead;
                return Some(high << 4 | low);
            }
        }
        Some(byte)
    })
}

/// Like [`decode`], with the place in `bytes` of each decoded byte, and of the end.
pub(crate) fn decode_with_places(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let (mut decoded, mut places) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digit = |ahead| hex(bytes.get(at + ahead).copied());
        let escape = (*byte == b'%').then(|| Some(digit(1)? << 4 | digit(2)?)).flatten();
        decoded.push(escape.unwrap_or(*byte));
        places.push(at);
        at += if escape.is_some() { 3 } else { 1 };
    }
    places.push(at);
    (decoded, places)
}

fn hex(digit: Option<u8>) -> Option<u8> {
    Some(HEX[usize::from(digit?)]).filter(|value| *value < 16)
}

/// Whether [`normalize`] changes nothing in a path that begins with a slash.
fn is_normal(path: &[u8]) -> bool {
    may_be_normal(path) || {
        let dots = |segment: &[u8]| matches!(segment, b"." | b"..");
        let mut segments = path[1..].split(|b| *b == b'/').peekable();
        let mut all = iter::from_fn(|| Some((segments.next()?, segments.peek().is_none())));
        all.all(|(segment, is_last)| {
            let is_whole = !dots(segment) && (is_last || !segment.is_empty());
            is_whole
                && memchr::memchr_iter(b'%', segment).all(|at| escape(&segment[at + 1..]).is_none())
        })
    }
}

/// Whether a path contains no `%`, `//` or `/.`.
fn may_be_normal(path: &[u8]) -> bool {
    let odd = path.iter().zip(path.iter().skip(1)).fold(0, |odd, (byte, next)| {
        odd | ODD[usize::from(*byte)] & ODD_BEHIND[usize::from(*next)]
    });
    odd == 0
}

const ESCAPE: u8 = 1;
const SLASH: u8 = 2;

static ODD: [u8; 256] = {
    let mut odd = [0; 256];
    odd[b'%' as usize] = ESCAPE;
    odd[b'/' as usize] = SLASH;
    odd
};

static ODD_BEHIND: [u8; 256] = {
    let mut odd = [ESCAPE; 256];
    odd[b'/' as usize] = ESCAPE | SLASH;
    odd[b'.' as usize] = ESCAPE | SLASH;
    odd
};

/// Resolves the last segment of `path[..end]`, which begins at `segment`, if it is a dot segment. Returns
/// the new end.
fn close(path: &[u8], segment: usize, end: usize) -> usize {
    match &path[segment..end] {
        b"." => segment,
        b".." => path[..segment - 1].iter().rposition(|b| *b == b'/').map_or(1, |slash| slash + 1),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(target: &str) -> String {
        let mut scratch = Vec::new();
        String::from_utf8(normalize(target.as_bytes(), &mut scratch).to_vec()).unwrap()
    }

    #[test]
    fn ordinary_escapes() {
        let is_it = |sent: &str| {
            let mut scratch = Vec::new();
            is_ordinary(sent.as_bytes(), normalize(sent.as_bytes(), &mut scratch))
        };
        for sent in [
            "/",
            "/a/b.c",
            "/my%20photo.jpg",
            "/%C3%A4.txt",
            "/%c3%a4",
            "/eve%40example.com",
            "/a%3Ab%2Bc%2C%26%3D%24%21%27%28%29%2a",
            "/%22%3c%3e%5b%5D%5e%60%7b%7C%7d%23%3F",
            "/ä%20",
        ] {
            assert!(is_it(sent), "{sent}");
        }
        for sent in [
            "//a",
            "/a/",
            "/./a",
            "/a/..%2fb",
            "/a%2fb",
            "/a%5cb",
            "/%2e",
            "/a%25b",
            "/a%3bb",
            "/a%00",
            "/a%0a",
            "/a%7f",
            "/%61",
            "/%35",
            "/%7E",
            "/%2D",
            "/%5f",
            "/%ff",
            "/%c3",
            "/a%20/../b",
            "/a%2",
            "/a%zz",
        ] {
            // A slash at the end stays in the normalized path.
            assert_eq!(is_it(sent), matches!(sent, "/a/" | "/a%2" | "/a%zz"), "{sent}");
        }
        for byte in (0..=127_u8).filter(|b| !b.is_ascii_graphic() || b.is_ascii_alphanumeric()) {
            assert_eq!(is_it(&format!("/a%{byte:02x}b")), byte == b' ', "{byte}");
        }
    }

    #[test]
    fn as_nginx_makes_it() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a?b/../c", "/a"),
            ("/a#b", "/a"),
            ("/a#b?c", "/a"),
            ("/?", "/"),
            ("/%61%2Fb", "/a/b"),
            ("/%2561", "/%61"),
            ("/%3f%23%25?x", "/?#%"),
            ("/a+b", "/a+b"),
            ("//a///b//", "/a/b/"),
            ("/a/%2f/b", "/a/b"),
            ("/.", "/"),
            ("/./", "/"),
            ("/a/.", "/a/"),
            ("/a/./", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/%2e", "/a/"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/..?x", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/%2e%2E/c", "/c"),
            ("/a/.%2e/c", "/c"),
            ("/a/%2e./c", "/c"),
            ("/a//../c", "/c"),
            ("/a/..%2fc", "/c"),
            ("/a/b/../../c", "/c"),
            ("/.../..a/a../.a/a.", "/.../..a/a../.a/a."),
            ("/%252e%252e/a", "/%2e%2e/a"),
        ];
        for (target, expected) in cases {
            assert_eq!(normal(target), expected, "{target}");
        }
    }

    #[test]
    fn what_nginx_refuses() {
        let cases = [
            ("/..", "/"),
            ("/../a", "/a"),
            ("/a/../../../b", "/b"),
            ("/%", "/%"),
            ("/%2", "/%2"),
            ("/%zz/%2", "/%zz/%2"),
            ("/%%61", "/%a"),
            ("/%+f", "/%+f"),
            ("/./%zz", "/%zz"),
            ("/%00", "/\0"),
        ];
        for (target, expected) in cases {
            assert_eq!(normal(target), expected, "{target}");
        }
    }

    #[test]
    fn other_forms_of_a_target() {
        let cases = [
            ("http://host/a//b?c", "/a/b"),
            ("HTTPS://user:pw@host:1/a", "/a"),
            ("http://host", "/"),
            ("http://host?a", "/"),
            ("http://host#/a", "/"),
            ("http://", "/"),
            ("", "/"),
            ("?a", "/"),
            ("*", "*"),
            ("host:443", "host:443"),
            ("://a/b", "://a/b"),
            ("a/../b", "a/../b"),
            ("//host/a", "/host/a"),
        ];
        for (target, expected) in cases {
            assert_eq!(normal(target), expected, "{target}");
        }
    }

    #[test]
    fn what_is_normal_is_not_copied() {
        for target in ["/", "/a/b.c/..d", "/a/%zz?x=%20//", "http://h/a", "*"] {
            let mut scratch = vec![7];
            let path = normalize(target.as_bytes(), &mut scratch);
            assert!(target.as_bytes().as_ptr_range().contains(&path.as_ptr()), "{target}");
            assert_eq!(scratch, [7]);
        }
    }

    #[test]
    fn hostile_targets() {
        let mut random = fastrand::Rng::with_seed(1);
        let pieces =
            ["/", "/", ".", "..", "%2e", "%2F", "%", "a", "%25", "?", "#", "\0", "://", "é"];
        for _ in 0..50_000 {
            let len = random.usize(..12);
            let text: String = (0..len).map(|_| pieces[random.usize(..pieces.len())]).collect();
            let mut scratch = Vec::new();
            let path = normalize(text.as_bytes(), &mut scratch);
            assert!(path.len() <= text.len().max(1));
            if path.starts_with(b"/") {
                let segments: Vec<_> = path[1..].split(|b| *b == b'/').collect();
                let (last, above) = segments.split_last().unwrap();
                let dots: [&[u8]; 2] = [b".", b".."];
                assert!(!dots.contains(last), "{text}");
                assert!(above.iter().all(|s| !s.is_empty() && !dots.contains(s)), "{text}");
            }
        }
    }

    #[test]
    fn long_targets_take_linear_time() {
        let deep = [&b"/a".repeat(1 << 20)[..], &b"/..".repeat(1 << 21)].concat();
        assert_eq!(normalize(&deep, &mut Vec::new()), b"/");
    }
}
