//! Hides secrets in the URLs that an event carries.
//!
//! A secret is the value of an argument whose name is known, wherever the URL has arguments, and a
//! segment of the path that a rule calls one. What is not sure to be harmless is hidden: a secret
//! that is spelled in an unusual way stays one.

use std::ops::Range;

use crate::capture::path;

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";

/// Arguments that are secrets under any application. Case and `-`, `_`, `.` in a name do not count:
/// `api_key` is `apiKey` and `X-Api-Key` is `x_api_key`.
pub const BUILT_IN: &[&str] = &[
    // Tokens. Those that only tell a place (`page_token`) are not among them.
    "token",
    "access_token",
    "api_token",
    "auth_token",
    "authenticity_token",
    "bearer_token",
    "client_token",
    "confirmation_token",
    "csrf_token",
    "deploy_token",
    "feed_token",
    "id_token",
    "invitation_token",
    "invite_token",
    "job_token",
    "login_token",
    "oauth_token",
    "personal_access_token",
    "private_token",
    "refresh_token",
    "request_token",
    "reset_password_token",
    "reset_token",
    "rss_token",
    "security_token",
    "server_token",
    "session_token",
    "unlock_token",
    "verification_token",
    "xsrf_token",
    "jwt",
    // Passwords.
    "credentials",
    "new_password",
    "old_password",
    "otp",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "password_confirmation",
    "pwd",
    // Keys.
    "access_key",
    "api_key",
    "api_secret",
    "app_secret",
    "authorization",
    "client_secret",
    "oauth_token_secret",
    "private_key",
    "secret",
    "secret_access_key",
    "secret_key",
    "x_api_key",
    // Sessions.
    "jsessionid",
    "phpsessid",
    "session_id",
    // Messages of OAuth and SAML.
    "client_assertion",
    "code_verifier",
    "RelayState",
    "SAMLart",
    "SAMLRequest",
    "SAMLResponse",
    // Signed URLs.
    "sig",
    "signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
    "X-Goog-Credential",
    "X-Goog-Signature",
];

/// Adds to the ranges of a normalized path that are secret.
pub type FindSegments<'f> = dyn Fn(&[u8], &mut Vec<Range<usize>>) + 'f;

/// Memory for one redacted URL, to be used again for the next.
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
    out: Vec<u8>,
}

/// The names of the arguments that are secrets.
#[derive(Clone, Debug)]
pub struct Redaction {
    /// Folded and sorted.
    names: Box<[Box<[u8]>]>,
}

impl Default for Redaction {
    /// Only the [built-in](BUILT_IN) names.
    fn default() -> Self {
        Self::new([])
    }
}

impl Redaction {
    /// The [built-in](BUILT_IN) names and those of an application.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let names = BUILT_IN.iter().copied().chain(names).map(|name| {
            // `user[otp]` is compared by its parts; the last of them says what it is.
            let parts = name.as_bytes().split(|b| is_bracket(*b)).rev();
            let fold = |part: &[u8]| part.iter().copied().filter_map(fold).collect::<Box<[u8]>>();
            parts.map(fold).find(|part| !part.is_empty()).unwrap_or_default()
        });
        let mut names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        Self { names: names.into() }
    }

    /// No names: arguments stay as they are.
    pub fn off() -> Self {
        Self { names: Box::default() }
    }

    /// The target of a request, or a URL (`https://host/path`, `host/path`), without its secrets;
    /// `url` itself where it has none.
    ///
    /// `segments`, where some may be secret, gets the normalized path and adds the ranges of it that are.
    /// If it adds any, a path that was not normal is normal afterwards.
    pub fn url<'a>(
        &self,
        url: &'a [u8],
        segments: Option<&FindSegments<'_>>,
        scratch: &'a mut Scratch,
    ) -> &'a [u8] {
        // The target `//a` is a path.
        let start = || if url.starts_with(b"/") { 0 } else { authority(url).end };
        self.hide(url, start, segments, &mut scratch.steps)
    }

    /// A Referer without its secrets, its fragment and its user; `segments` is as for
    /// [`url`](Self::url). Where neither names nor segments are secret, it is the Referer itself.
    pub fn referer<'a>(
        &self,
        referer: &'a [u8],
        segments: Option<&FindSegments<'_>>,
        scratch: &'a mut Scratch,
    ) -> &'a [u8] {
        let Scratch { bare, steps } = scratch;
        let mut url = referer;
        if !self.names.is_empty() || segments.is_some() {
            // Most have neither, which `contains` finds out faster.
            if url.contains(&b'#') {
                url = url.split(|b| *b == b'#').next().unwrap_or_default();
            }
            if url.contains(&b'@') {
                url = drop_user(url, bare);
            }
        }
        self.hide(url, || authority(url).end, segments, steps)
    }

    /// Hides what is secret in `url`, whose path begins at `start`.
    fn hide<'a>(
        &self,
        url: &'a [u8],
        start: impl FnOnce() -> usize,
        segments: Option<&FindSegments<'_>>,
        steps: &'a mut Steps,
    ) -> &'a [u8] {
        let Steps { normalized, ranges, hidden, out } = steps;
        let url = match segments {
            Some(find) => {
                let start = start();
                ranges.clear();
                let normalized = path::normalize(&url[start..], normalized);
                find(normalized, ranges);
                hide_segments(url, start, normalized, ranges, hidden)
            }
            None => url,
        };
        if self.names.is_empty() || !may_name(url) {
            return url;
        }
        self.hide_arguments(url, out)
    }

    /// Masks the values of secret arguments: in the query, in the fragment, and in the path, where
    /// they follow a `;` or, in a link that is broken, a `&`.
    fn hide_arguments<'a>(&self, url: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
        let path_end = url.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(url.len());
        let end_of_argument = |start: usize| {
            let ends = |b: &u8| match b {
                b'&' | b';' | b'#' => true,
                b'/' | b'?' => start <= path_end,
                _ => false,
            };
            url[start..].iter().position(ends).map_or(url.len(), |len| start + len)
        };
        let mut done = 0;
        let mut start = if may_name(&url[..path_end]) { 0 } else { path_end + 1 };
        while start < url.len() {
            let mut end = end_of_argument(start);
            if let Some(secret) = self.secret_in(&url[start..end]) {
                // What follows a `;` and has no name belongs to the value.
                while url.get(end) == Some(&b';') {
                    let next = end_of_argument(end + 1);
                    if url[end..next].contains(&b'=') {
                        break;
                    }
                    end = next;
                }
                if &url[start + secret..end] != MASK {
                    if done == 0 {
                        out.clear();
                    }
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

    /// Where the secret begins in an argument: at its value, or at its start if its name holds one, as
    /// `/login%3Ftoken%3Dabc` does.
    fn secret_in(&self, argument: &[u8]) -> Option<usize> {
        let equals = argument.iter().position(|b| *b == b'=');
        if self.has_secret(&argument[..equals.unwrap_or(argument.len())]) {
            return Some(0);
        }
        let value = equals? + 1;
        self.has_secret(argument).then_some(value)
    }

    /// Whether `text`, decoded once or twice, has an argument that is secret.
    fn has_secret(&self, text: &[u8]) -> bool {
        let once = || path::decode(text.iter().copied());
        may_name(text) && self.names_secret(once())
            || text.contains(&b'%') && self.names_secret(path::decode(once()))
    }

    fn names_secret(&self, mut text: impl Iterator<Item = u8> + Clone) -> bool {
        let is_mark = |b: &u8| matches!(b, b'/' | b'?' | b'&' | b';' | b'#' | b'=');
        loop {
            let name = text.clone().take_while(|b| !is_mark(b));
            match text.find(is_mark) {
                None => return false,
                Some(b'=') if self.is_secret(name) => return true,
                Some(_) => {}
            }
        }
    }

    /// Whether `name`, or a part of one like `user[password]` or `token[]`, is a secret's.
    fn is_secret(&self, mut name: impl Iterator<Item = u8> + Clone) -> bool {
        loop {
            let part = name.clone().take_while(|b| !is_bracket(*b)).filter_map(fold);
            let order = |known: &[u8]| known.iter().copied().cmp(part.clone());
            if self.names.binary_search_by(|known| order(known)).is_ok() {
                return true;
            }
            if !name.any(is_bracket) {
                return false;
            }
        }
    }
}

/// Whether there may be an argument in `text`: a `=`, or one that is encoded.
fn may_name(text: &[u8]) -> bool {
    text.contains(&b'=') || text.contains(&b'%')
}

fn is_bracket(byte: u8) -> bool {
    matches!(byte, b'[' | b']')
}

/// What of a name is compared. A form writes a space as `+`; PHP takes it, and a dot, for `_`. What
/// applications cut off a name (white space, NUL) does not make it another.
fn fold(byte: u8) -> Option<u8> {
    let counts = !matches!(byte, b'-' | b'_' | b'.' | b' ' | b'+') && !byte.is_ascii_control();
    counts.then_some(byte.to_ascii_lowercase())
}

/// Where the authority lies in a URL; empty in one that begins with its path.
fn authority(url: &[u8]) -> Range<usize> {
    let start = if url.starts_with(b"//") { 2 } else { path::scheme_len(url) };
    start..start + path::authority_len(&url[start..])
}

/// Takes `user:password@` out of a URL.
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
    // Without `a@`, `a@//b@c` has another.
    while let Some(user) = user(out) {
        out.drain(user);
    }
    out
}

/// Masks the ranges of the normalized path in `url`, whose own path begins at `start`. If that is not
/// normal, the normalized one takes its place, encoded.
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
        // Where ranges overlap, the mask is there already.
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

/// Adds a decoded path, encoded.
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
        text(Redaction::default().url(target.as_bytes(), None, &mut Scratch::default()))
    }

    fn referer(target: &str) -> String {
        text(Redaction::default().referer(target.as_bytes(), None, &mut Scratch::default()))
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
        for name in BUILT_IN {
            assert_eq!(url(&format!("/?{name}=abc")), format!("/?{name}=***"));
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
            "/?code=1&state=2&key=3&t=4&d=5&page_token=6&tokens=7&atoken=8",
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
            let out = redaction.url(target.as_bytes(), Some(&segments), &mut scratch);
            assert!(std::ptr::eq(out, target.as_bytes()), "{target}");
            assert_eq!(scratch.steps.out.capacity() + scratch.steps.hidden.capacity(), 0);
            let out = redaction.referer(target.as_bytes(), Some(&segments), &mut scratch);
            assert!(std::ptr::eq(out, target.as_bytes()), "{target}");
        }
    }

    #[test]
    fn names_of_an_application() {
        let redaction = Redaction::new(["h", "user[Pin]", "", "-", "[]"]);
        let url = |u: &str| text(redaction.url(u.as_bytes(), None, &mut Scratch::default()));
        assert_eq!(url("/?h=1&H[]=2&hh=3&=4"), "/?h=***&H[]=***&hh=3&=4");
        assert_eq!(url("/?user[pin]=1&a[]=2&token=3"), "/?user[pin]=***&a[]=2&token=***");
        let target = b"/hooks/abc?token=1";
        let mut scratch = Scratch::default();
        assert_eq!(Redaction::off().url(target, None, &mut scratch), target);
        let out = Redaction::off().url(target, Some(&segments), &mut scratch);
        assert_eq!(text(out), "/hooks/***?token=1");
        let target = b"http://a@h/hooks/abc?token=1#b";
        let out = Redaction::off().referer(target, Some(&segments), &mut scratch);
        assert_eq!(text(out), "http://h/hooks/***?token=1");
        assert_eq!(Redaction::off().referer(target, None, &mut scratch), target);
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
                    let out = text(redaction.url(full.as_bytes(), Some(&segments), &mut scratch));
                    assert_eq!(out, expected, "{full}");
                    let again = redaction.url(expected.as_bytes(), Some(&segments), &mut scratch);
                    assert_eq!(text(again), expected);
                }
                // Without an authority, `//a` is one in a Referer.
                if prefix.is_empty() && target.starts_with("//") {
                    continue;
                }
                let out = text(redaction.referer(full.as_bytes(), Some(&segments), &mut scratch));
                assert_eq!(out, expected.split('#').next().unwrap(), "{full}");
            }
        }
    }

    #[test]
    fn ranges_that_overlap_or_lie_outside() {
        let hide = |given: &[Range<usize>]| {
            let add = |_: &[u8], ranges: &mut Vec<_>| ranges.extend_from_slice(given);
            text(Redaction::off().url(b"/ab/cd/ef", Some(&add), &mut Scratch::default()))
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
        let noise =
            ["/", "&", ";", "?", "=", "a", "%", "%2", "%2e", "[", "]", "+", "\u{e9}", "http://"];
        for round in 0..20_000 {
            let mut junk = || -> String {
                let len = random.usize(..6);
                (0..len).map(|_| noise[random.usize(..noise.len())]).collect()
            };
            let (before, after, mut value) = (junk(), junk(), junk());
            // A nameless argument belongs to the value; one with a name is another.
            value.retain(|c| !"&;/?".contains(c));
            let name = match random.usize(..=BUILT_IN.len()) {
                0 => "h",
                n => BUILT_IN[n - 1],
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
        let out = text(redaction.url(target.as_bytes(), Some(&segments), &mut scratch));
        assert!(!out.contains(secret), "{target} {out}");
        let again = text(redaction.url(out.as_bytes(), Some(&segments), &mut scratch));
        assert_eq!(again, out, "{target}");
        let full = format!("https://user:{secret}@host{target}");
        let out = text(redaction.referer(full.as_bytes(), Some(&segments), &mut scratch));
        assert!(!out.contains(secret), "{full} {out}");
        let again = text(redaction.referer(out.as_bytes(), Some(&segments), &mut scratch));
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
            redaction.url(&target, Some(&segments), &mut scratch);
            let once = redaction.referer(&target, Some(&segments), &mut scratch).to_vec();
            let twice = redaction.referer(&once, Some(&segments), &mut scratch);
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
