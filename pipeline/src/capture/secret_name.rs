//! Tells by its name whether an argument is secret.
//!
//! The lists follow the filters of GitLab, Rails, Django, Laravel, Sentry and OWASP's rules, with two
//! differences. A name is split into words (`AWSAccessKeyId`, `user[current_password]`, `x-api-key`), so
//! that `monkey` and `keyword` are not keys. And names of positions in a list (`page_token`, `sort_key`) or
//! of a secret's properties (`token_type`, `password_length`) stay readable. If it is uncertain whether a
//! name is harmless, it is secret.

use std::sync::LazyLock;

use aho_corasick::automaton::Automaton;
use aho_corasick::dfa::DFA;
use aho_corasick::{Anchored, MatchKind, StartKind};

/// The longest name that is examined, in letters and digits; a longer one is secret.
const MAX_NAME: usize = 128;

/// A word that makes a name secret.
struct Noun {
    text: &'static str,
    place: Place,
    before: Before,
    /// Words that contain the noun, or end with it, but mean something else.
    except: &'static [&'static str],
}

/// Where in a name the noun makes the name secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anywhere, even inside a word or across several, unless a word of [`ABOUT`] follows.
    Anywhere,
    /// As one or more whole words, unless a word of [`ABOUT`] follows.
    Word,
    /// At the end, or before words of [`STILL`]. It may be the end of a longer word.
    End,
    /// At the end, or before words of [`STILL`], as one or more whole words.
    EndWord,
}

/// How the words before a noun change its meaning.
#[derive(Clone, Copy)]
enum Before {
    /// Not at all.
    Any,
    /// After one of these words the name is harmless.
    Not(&'static [&'static Words]),
    /// The name is secret only after one of these words.
    Only(&'static Words),
    /// The name is secret after one of these words, or if the noun is the whole name.
    OnlyOrBare(&'static Words),
}

const fn noun(text: &'static str, place: Place) -> Noun {
    Noun { text, place, before: Before::Any, except: &[] }
}

impl Noun {
    const fn before(mut self, before: Before) -> Self {
        self.before = before;
        self
    }

    const fn except(mut self, words: &'static [&'static str]) -> Self {
        self.except = words;
        self
    }
}

use Place::{Anywhere, End, EndWord, Word};

static NOUNS: &[Noun] = &[
    // Passwords.
    noun("password", Anywhere),
    noun("passwd", Anywhere),
    noun("passwort", Anywhere),
    noun("kennwort", Anywhere),
    noun("passphrase", Anywhere),
    noun("passcode", Anywhere),
    noun("motdepasse", Anywhere),
    noun("pass", End).before(Before::Not(&[&PASSES])).except(&[
        "bypass",
        "compass",
        "encompass",
        "impass",
        "overpass",
        "surpass",
        "trespass",
        "underpass",
    ]),
    noun("pwd", End),
    noun("pw", End),
    noun("passw", EndWord),
    noun("psw", EndWord),
    noun("psswd", EndWord),
    noun("pswd", EndWord),
    noun("mdp", EndWord),
    noun("contrasena", EndWord),
    noun("contraseña", EndWord),
    noun("senha", EndWord),
    noun("wachtwoord", EndWord),
    noun("haslo", EndWord),
    noun("heslo", EndWord),
    noun("parola", EndWord),
    noun("salasana", EndWord),
    noun("sifre", EndWord),
    noun("otp", Word),
    noun("otp", End),
    noun("hotp", Word),
    noun("totp", Word),
    noun("totps", EndWord),
    noun("otpauth", Word),
    noun("mtan", EndWord),
    noun("2fa", EndWord),
    noun("mfa", EndWord),
    noun("tfa", EndWord),
    noun("pin", EndWord),
    noun("pincode", EndWord),
    noun("pinno", EndWord),
    noun("pinnumber", EndWord),
    noun("credential", Anywhere),
    noun("cred", EndWord),
    noun("creds", EndWord),
    noun("mnemonic", EndWord),
    noun("phrase", End)
        .before(Before::Only(&Words::new(&["backup", "mnemonic", "recovery", "seed"]))),
    noun("code", End).before(Before::OnlyOrBare(&CODES)),
    noun("codes", End).before(Before::Only(&CODES)),
    noun("answer", End).before(Before::Only(&ANSWERS)),
    noun("answers", End).before(Before::Only(&ANSWERS)),
    // Secrets and keys.
    noun("secret", Anywhere).except(&[
        "secretarial",
        "secretariat",
        "secretaries",
        "secretary",
        "secrete",
        "secretion",
        "secretive",
    ]),
    noun("secretid", Anywhere),
    noun("apikey", Anywhere),
    noun("accesskey", Anywhere),
    noun("accesskeyid", Anywhere),
    noun("privatekey", Anywhere),
    noun("key", End).before(Before::Not(&[&PLACES, &KEYS])).except(&[
        "dickey",
        "donkey",
        "doohickey",
        "flukey",
        "flunkey",
        "hickey",
        "hockey",
        "hokey",
        "hookey",
        "jockey",
        "lackey",
        "latchkey",
        "malarkey",
        "mickey",
        "monkey",
        "okey",
        "pokey",
        "rickey",
        "smokey",
        "turkey",
        "turnkey",
        "whiskey",
    ]),
    noun("keys", End).before(Before::Only(&SECRET)),
    noun("psk", Word),
    noun("pem", EndWord),
    noun("salt", End)
        .before(Before::Not(&[&Words::new(&["bath", "rock", "sea", "table"])]))
        .except(&["basalt"]),
    noun("hmac", End),
    noun("crypt", Word),
    noun("crypted", Word),
    noun("encrypted", Word),
    noun("ciphertext", Word),
    // Tokens.
    noun("token", End).before(Before::Not(&[&PLACES, &TOKENS])).except(&["betoken"]),
    noun("tokens", End).before(Before::Only(&SECRET)),
    noun("jwt", Anywhere),
    noun("csrf", Anywhere),
    noun("xsrf", Anywhere),
    noun("nonce", End).except(&["annonce", "denonce", "enonce", "prononce", "renonce"]),
    noun("auth", End),
    noun("authorization", End),
    noun("authentication", End),
    noun("bearer", EndWord).before(Before::Not(&[&Words::new(&["ring", "standard"])])),
    noun("assertion", End),
    noun("verifier", End),
    noun("idtokenhint", Anywhere),
    noun("logintokenhint", Anywhere),
    noun("captcharesponse", Anywhere),
    noun("turnstileresponse", Anywhere),
    noun("samlart", Anywhere),
    noun("samlrequest", Anywhere),
    noun("samlresponse", Anywhere),
    noun("relaystate", Anywhere),
    noun("wctx", Word),
    noun("wresult", Word),
    noun("ticket", End).before(Before::Not(&[&TICKETS])),
    noun("pgtid", Word),
    noun("pgtiou", Word),
    noun("tgt", EndWord),
    // Sessions.
    noun("session", End).before(Before::Not(&[&SESSIONS])).except(&[
        "dispossession",
        "obsession",
        "possession",
        "repossession",
    ]),
    noun("sess", EndWord),
    noun("sessionid", Anywhere),
    noun("sessid", Word),
    noun("phpsessid", Anywhere),
    noun("sid", EndWord),
    noun("phpsid", EndWord),
    noun("jsid", EndWord),
    noun("cfid", EndWord),
    noun("cfsid", EndWord),
    noun("cookie", End).before(Before::Not(&[&Words::new(&["accept", "fortune"])])),
    // Signatures and certificates.
    noun("signature", End).before(Before::Not(&[&Words::new(&["email", "forum", "mail", "time"])])),
    noun("sig", End),
    noun("authhash", Anywhere),
    noun("securehash", Anywhere),
    noun("cert", End).before(Before::Not(&[&CERTIFICATES])).except(&["concert", "disconcert"]),
    noun("certificate", End).before(Before::Not(&[&CERTIFICATES])),
    // URLs that hold a password or are one.
    noun("dsn", Word),
    noun("url", End).before(Before::Only(&URLS)),
    noun("uri", End).before(Before::Only(&URLS)),
    noun("connectionstring", Anywhere),
    noun("connstr", EndWord),
    noun("connstring", EndWord),
    // Payment cards and identity numbers of persons.
    noun("ssn", Word),
    noun("cvv", Word),
    noun("cvv", End),
    noun("cvc", Word),
    noun("cvc", End),
    noun("ccv", Word),
    noun("creditcard", Anywhere),
    noun("cardnumber", Anywhere),
    noun("cardpan", EndWord),
    noun("ccnumber", Word),
    noun("iban", Word),
    noun("accountnumber", EndWord),
];

/// Before `token` and `key`: a position in a list. Each word list is sorted.
#[rustfmt::skip]
static PLACES: Words = Words::new(&[
    "after", "before", "continuation", "continue", "cursor", "delta", "end", "evaluated",
    "exclusive", "exclusivestart", "first", "from", "last", "lastevaluated", "lastpage",
    "marker", "next", "nextcontinuation", "nextpage", "offset", "page", "pagination", "paging",
    "position", "prev", "previous", "previouspage", "prevpage", "resume", "resumption", "scroll",
    "skip", "sort", "sorting", "start", "starting", "sync",
]);

/// Before `token`.
#[rustfmt::skip]
static TOKENS: Words = Words::new(&[
    "bos", "color", "css", "design", "eos", "iterator", "lexer", "mask", "pad", "punctuation",
    "separator", "special", "stop", "syntax", "theme", "unk",
]);

/// Before `key`.
#[rustfmt::skip]
static KEYS: Words = Words::new(&[
    "alt", "answer", "any", "arrow", "asset", "attribute", "block", "cache", "candidate",
    "category", "chart", "child", "color", "column", "component", "composite", "config",
    "configuration", "control", "ctrl", "dedup", "deduplication", "delete", "dict", "dictionary",
    "element", "enter", "escape", "event", "experiment", "facet", "feature", "field", "filter",
    "flag", "foreign", "function", "group", "grouping", "home", "hot", "i18n", "idempotency",
    "image", "index", "issue", "item", "keyboard", "l10n", "label", "lang", "language", "list",
    "locale", "lookup", "low", "major", "map", "menu", "message", "meta", "metadata", "metric",
    "minor", "modifier", "music", "musical", "natural", "nav", "node", "object", "option",
    "order", "parent", "partition", "path", "piano", "primary", "project", "property", "pub",
    "public", "publishable", "query", "range", "react", "report", "route", "routing", "row",
    "schema", "search", "section", "setting", "shard", "shift", "short", "shortcut", "site",
    "space", "string", "surrogate", "tab", "table", "tag", "template", "text", "title", "topic",
    "translation", "tree", "type", "unique", "view", "widget",
]);

/// Before `pass`.
#[rustfmt::skip]
static PASSES: Words = Words::new(&[
    "all", "band", "boarding", "bus", "day", "event", "first", "hall", "high", "low", "mountain",
    "multi", "next", "parking", "rail", "render", "season", "second", "single", "ski", "third",
    "train", "travel", "vip",
]);

/// Before `session`.
#[rustfmt::skip]
static SESSIONS: Words = Words::new(&[
    "breakout", "class", "conference", "court", "game", "jam", "keynote", "lab", "lecture",
    "live", "parliamentary", "photo", "plenary", "poster", "recording", "study", "therapy",
    "trading", "training", "tutorial", "video", "workout",
]);

/// Before `ticket`.
#[rustfmt::skip]
static TICKETS: Words = Words::new(&[
    "all", "assigned", "bug", "bus", "child", "closed", "concert", "event", "flight", "help",
    "helpdesk", "issue", "jira", "lottery", "movie", "my", "new", "open", "parent", "raffle",
    "season", "support", "train", "trouble", "zendesk",
]);

/// Before `certificate`.
#[rustfmt::skip]
static CERTIFICATES: Words = Words::new(&[
    "birth", "completion", "course", "death", "gift", "marriage", "medical", "training",
]);

/// Before `code`: codes with which somebody proves an identity.
#[rustfmt::skip]
static CODES: Words = Words::new(&[
    "2fa", "access", "activate", "activation", "auth", "authcode", "authentication", "authenticator",
    "authorization", "backup", "bearer", "confirm", "confirmation", "device", "email", "factor",
    "grant", "invitation", "invite", "join", "link", "login", "magic", "mfa", "oauth", "oauth2", "onetime", "otp",
    "pairing", "pass", "phone", "pin", "recovery", "registration", "reset", "secret", "security",
    "session", "signin", "sms", "tfa", "time", "token", "totp", "twofactor", "unlock", "user",
    "validation", "verification", "verify",
]);

/// Before `answer`: what proves an identity.
static ANSWERS: Words = Words::new(&["challenge", "recovery", "security"]);

/// Before `tokens` and `keys`, which otherwise are mostly counts.
#[rustfmt::skip]
static SECRET: Words = Words::new(&[
    "access", "account", "api", "app", "auth", "bearer", "client", "deploy", "encryption",
    "host", "id", "license", "master", "oauth", "personal", "private", "recovery", "refresh",
    "secret", "security", "session", "shared", "signing", "ssh", "unseal", "user", "verification",
]);

/// Before `url`.
#[rustfmt::skip]
static URLS: Words = Words::new(&[
    "amqp", "broker", "callbackhook", "database", "db", "elasticsearch", "hook", "import",
    "jdbc", "mirror", "mongo", "mongodb", "redis", "sentry", "webhook",
]);

/// After a secret's name: a property of the secret.
#[rustfmt::skip]
static ABOUT: Words = Words::new(&[
    "age", "alg", "algo", "algorithm", "allowed", "at", "attempts", "by", "changed", "claim", "class",
    "count", "country", "counts", "created", "date", "disabled", "enabled", "error", "errors", "expiration",
    "expire", "expired", "expires", "expiry", "field", "format", "generator", "hidden",
    "history", "id", "identifier", "ids", "index", "invalid", "kind", "label", "len", "length", "less",
    "level", "lifetime", "limit", "manager", "max", "method", "min", "mode", "modified", "name",
    "names", "optional", "options", "owner", "page", "policies", "policy", "protected", "protection",
    "provider", "rate", "required", "rotation", "scope", "scopes", "settings", "size", "sort",
    "status", "strength", "sub", "subject", "time", "timeout", "timestamp", "ttl", "type", "types", "updated",
    "usage", "username", "valid", "version", "visible",
]);

/// After a secret's name: still the secret itself.
#[rustfmt::skip]
static STILL: Words = Words::new(&[
    "again", "attempt", "base", "confirm", "confirmation", "current", "data", "digest",
    "enc", "encoded", "encrypted", "hash", "hex", "input", "new", "old", "plain", "plaintext", "raw",
    "repeat", "retype", "str", "string", "text", "val", "value", "verification", "verify",
]);

/// Before a name: a yes-or-no question.
#[rustfmt::skip]
static WHETHER: Words = Words::new(&[
    "allow", "allows", "can", "disable", "disables", "enable", "enables", "exclude", "has",
    "have", "hide", "include", "includes", "is", "missing", "need", "needs", "no", "require",
    "required", "requires", "should", "show", "support", "supports", "without",
]);

/// Every name with a noun also contains one of these as written: a noun of one word, or one word of another
/// noun.
static HINTS: LazyLock<DFA> = LazyLock::new(|| {
    let others = [
        "account",
        "captcha",
        "card",
        "conn",
        "connection",
        "relay",
        "saml",
        "secure",
        "turnstile",
    ];
    DFA::builder()
        .match_kind(MatchKind::Standard)
        .start_kind(StartKind::Unanchored)
        .ascii_case_insensitive(true)
        .prefilter(false)
        .build(NOUNS.iter().map(|noun| noun.text).chain(others))
        .expect("a few short words")
});

/// Whether a decoded name may be secret, as a fast check: most names are not.
pub(crate) fn may_be_secret(name: &[u8]) -> bool {
    if name.len() > MAX_NAME {
        return true;
    }
    let hints = &*HINTS;
    let Ok(mut state) = hints.start_state(Anchored::No) else { return true };
    name.iter().any(|byte| {
        state = hints.next_state(Anchored::No, state, *byte);
        hints.is_match(state)
    })
}

/// Finds all nouns in a folded name.
static FINDER: LazyLock<DFA> = LazyLock::new(|| {
    DFA::builder()
        .match_kind(MatchKind::Standard)
        .start_kind(StartKind::Unanchored)
        .prefilter(false)
        .build(NOUNS.iter().map(|noun| noun.text))
        .expect("a few short words")
});

/// A name in the form in which it is compared: its letters and digits in lower case. Any other character
/// separates words, and so does a change of case: `api_key`, `api-key` and `apiKey` have the same two
/// words.
pub(crate) struct Folded {
    bytes: [u8; MAX_NAME],
    len: usize,
    /// A bit for each start of a word, and for the end.
    starts: u128,
    /// A bit for each place where something other than a change of case separates words.
    cuts: u128,
    /// A bit for each start of a part of `user[name]`. A NUL or white space separates parts, too, because
    /// an application may cut a name there.
    parts: u128,
}

/// The kind of a byte in a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lower,
    Upper,
    Digit,
    Separator,
    Bracket,
}

static KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Lower; 256];
    let mut byte = 0;
    while byte < 128 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' => Kind::Lower,
            b'A'..=b'Z' => Kind::Upper,
            b'0'..=b'9' => Kind::Digit,
            b'[' | b']' | 0..=31 | 127 => Kind::Bracket,
            _ => Kind::Separator,
        };
        byte += 1;
    }
    kinds
};

impl Folded {
    /// Folds a decoded name; `None` if it is too long.
    pub(crate) fn new(name: &[u8]) -> Option<Self> {
        let mut folded = Self { bytes: [0; MAX_NAME], len: 0, starts: 1, cuts: 1, parts: 1 };
        let mut last = Kind::Bracket;
        for (i, byte) in name.iter().enumerate() {
            let kind = KINDS[usize::from(*byte)];
            // `accessToken`, `XMLToken`, `token2`.
            let parts = match kind {
                Kind::Lower => false,
                Kind::Upper => match last {
                    Kind::Upper => {
                        name.get(i + 1).is_some_and(|b| KINDS[usize::from(*b)] == Kind::Lower)
                    }
                    _ => true,
                },
                Kind::Digit => last != Kind::Digit,
                Kind::Separator | Kind::Bracket => true,
            };
            last = kind;
            if parts {
                // After the last byte of a full buffer, only the name's end can follow.
                let here = 1_u128.checked_shl(folded.len as u32).unwrap_or(0);
                folded.starts |= here;
                if matches!(kind, Kind::Separator | Kind::Bracket) {
                    folded.cuts |= here;
                    if kind == Kind::Bracket {
                        folded.parts |= here;
                    }
                    continue;
                }
            }
            *folded.bytes.get_mut(folded.len)? = byte.to_ascii_lowercase();
            folded.len += 1;
        }
        Some(folded)
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn has(&self, places: u128, at: usize) -> bool {
        at == self.len || places >> at & 1 == 1
    }

    /// Whether a word begins or ends at `at`.
    fn is_start(&self, at: usize) -> bool {
        self.has(self.starts, at)
    }

    /// The start of the last word that begins at or before `at`.
    fn start_before(&self, at: usize) -> usize {
        last_bit(self.starts, at)
    }

    /// The end of the word that has the byte at `at`.
    fn end_after(&self, at: usize) -> usize {
        next_bit(self.starts, at + 1).min(self.len)
    }

    /// The parts of `user[name]`: `user` and `name`.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        std::iter::from_fn(move || {
            while from < self.len {
                let part = from..next_bit(self.parts, from + 1).min(self.len);
                from = part.end;
                if !part.is_empty() {
                    return Some(&self.text()[part]);
                }
            }
            None
        })
    }

    /// Whether the name is secret, apart from the parts that `is_shown` accepts.
    pub(crate) fn is_secret(&self, is_shown: impl Fn(&[u8]) -> bool) -> bool {
        let finder = &*FINDER;
        let Ok(mut state) = finder.start_state(Anchored::No) else { return true };
        for (i, byte) in self.text().iter().enumerate() {
            state = finder.next_state(Anchored::No, state, *byte);
            if !finder.is_match(state) {
                continue;
            }
            for found in 0..finder.match_len(state) {
                let noun = &NOUNS[finder.match_pattern(state, found).as_usize()];
                let end = i + 1;
                if self.means_secret(noun, end - noun.text.len(), end) && !is_shown(self.part_at(i))
                {
                    return true;
                }
            }
        }
        false
    }

    /// The start of the part that has the byte at `at`.
    fn part_start(&self, at: usize) -> usize {
        last_bit(self.parts, at)
    }

    fn part_at(&self, at: usize) -> &[u8] {
        let start = self.part_start(at);
        &self.text()[start..next_bit(self.parts, at + 1).min(self.len)]
    }

    fn means_secret(&self, noun: &Noun, start: usize, end: usize) -> bool {
        let own_start = self.is_start(start);
        let placed = match noun.place {
            Place::Anywhere => true,
            Place::Word | Place::EndWord => own_start && self.is_start(end),
            Place::End => self.is_start(end) || self.is_numbered(end),
        };
        // `classId` and `s_id` contain no `sid`; `passWord` and `pass_word` are a `password`.
        let is_whole = || {
            noun.place == Place::Anywhere
                || noun.text.len() > 4
                || next_bit(self.cuts, start + 1) >= end
        };
        placed
            && is_whole()
            && !self.is_exception(noun, start, end)
            && self.remains_secret(noun.place, end)
            && self.is_qualified(noun.before, start, end)
            && !self.asks_whether(start)
    }

    /// Whether the letter at `at` and a number are a version or an encoding: `token_v2`, `tokenv2`, `key_b64`.
    fn is_numbered(&self, at: usize) -> bool {
        matches!(self.text().get(at..at + 2), Some([b'v' | b'b', b'0'..=b'9']))
    }

    fn asks_whether(&self, noun: usize) -> bool {
        let start = self.part_start(noun);
        start < noun && WHETHER.contains(&self.text()[start..self.end_after(start)])
    }

    fn is_exception(&self, noun: &Noun, start: usize, end: usize) -> bool {
        if noun.except.is_empty() {
            return false;
        }
        let word_end = if self.is_numbered(end) { end } else { self.end_after(end - 1) };
        let word = &self.text()[self.start_before(start)..word_end];
        noun.except.iter().any(|known| known.as_bytes() == word)
    }

    /// Whether the name is still secret with the words after the noun.
    fn remains_secret(&self, place: Place, end: usize) -> bool {
        let mut at = end;
        while at < self.len && !(at > 0 && self.parts >> at & 1 == 1) {
            let next = self.end_after(at);
            let word = &self.text()[at..next];
            // What follows inside of a word may be the end of a plural.
            let is_plural = word == b"s" && !self.is_start(at);
            let is_numbered = self.is_numbered(at) && word.len() == 1;
            at = next;
            if is_plural || is_numbered || word.iter().all(u8::is_ascii_digit) {
                continue;
            }
            match place {
                Place::Anywhere | Place::Word => return !ABOUT.contains(word),
                Place::End | Place::EndWord if STILL.contains(word) => {}
                Place::End | Place::EndWord => return false,
            }
        }
        true
    }

    /// Whether the name is still secret with the words before the noun.
    fn is_qualified(&self, before: Before, start: usize, end: usize) -> bool {
        match before {
            Before::Any => true,
            Before::Not(lists) => {
                !self.words_before(start).any(|word| lists.iter().any(|list| list.contains(word)))
            }
            Before::Only(list) => self.words_before(start).any(|word| list.contains(word)),
            Before::OnlyOrBare(list) => {
                let is_bare = start == 0 || self.parts >> start & 1 == 1;
                is_bare && self.has(self.parts, end)
                    || self.words_before(start).any(|word| list.contains(word))
            }
        }
    }

    /// The last word before `at`, and the last two as one, as in `i18n`.
    fn words_before(&self, at: usize) -> impl Iterator<Item = &[u8]> {
        let mut before = at;
        let starts = std::iter::from_fn(move || {
            before = last_bit(self.starts, before.checked_sub(1)?);
            Some(before)
        });
        starts.take(2).map(move |start| &self.text()[start..at])
    }
}

/// The first set bit at or after `at`; 128 if there is none.
fn next_bit(places: u128, at: usize) -> usize {
    let from = at.min(MAX_NAME);
    let rest = places.checked_shr(from as u32).unwrap_or(0);
    if rest == 0 { MAX_NAME } else { from + rest.trailing_zeros() as usize }
}

/// The last set bit at or before `at`. Bit 0 must be set.
fn last_bit(places: u128, at: usize) -> usize {
    let up_to = places << (MAX_NAME - 1 - at.min(MAX_NAME - 1));
    at.min(MAX_NAME - 1).saturating_sub(up_to.leading_zeros() as usize)
}

/// Sorted words, with the index of the first word for each first letter.
struct Words {
    words: &'static [&'static str],
    starts: [u8; 27],
}

impl Words {
    const fn new(words: &'static [&'static str]) -> Self {
        let mut starts = [0; 27];
        let mut letter = 0;
        while letter < 27 {
            let mut place = 0;
            while place < words.len() && words[place].as_bytes()[0] < b'a' + letter {
                place += 1;
            }
            starts[letter as usize] = place as u8;
            letter += 1;
        }
        Self { words, starts }
    }

    fn contains(&self, word: &[u8]) -> bool {
        let known = match word.first() {
            Some(letter @ b'a'..=b'z') => {
                let letter = usize::from(letter - b'a');
                usize::from(self.starts[letter])..usize::from(self.starts[letter + 1])
            }
            // `2fa`.
            _ => 0..usize::from(self.starts[0]),
        };
        self.words[known].iter().any(|known| known.len() == word.len() && known.as_bytes() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_secret(name: &str) -> bool {
        Folded::new(name.as_bytes()).is_none_or(|name| name.is_secret(|_| false))
    }

    #[test]
    fn lists_are_sorted() {
        let lists = [
            &PLACES,
            &TOKENS,
            &KEYS,
            &PASSES,
            &SESSIONS,
            &TICKETS,
            &CERTIFICATES,
            &CODES,
            &ANSWERS,
            &SECRET,
            &URLS,
            &ABOUT,
            &STILL,
            &WHETHER,
        ];
        let before = NOUNS.iter().flat_map(|noun| match noun.before {
            Before::Any => vec![],
            Before::Not(lists) => lists.to_vec(),
            Before::Only(list) | Before::OnlyOrBare(list) => vec![list],
        });
        for list in lists.into_iter().chain(before) {
            assert!(list.words.is_sorted(), "{:?}", list.words);
            for word in list.words {
                assert!(list.contains(word.as_bytes()), "{word}");
            }
        }
    }

    #[test]
    fn a_name_with_a_noun_may_be_secret() {
        for noun in NOUNS {
            let upper = noun.text.to_ascii_uppercase();
            assert!(may_be_secret(noun.text.as_bytes()) && may_be_secret(upper.as_bytes()));
        }
        // For a noun of several words, one spelling is enough.
        let spelled = [
            "api-key",
            "pass_word",
            "card_number",
            "captcha-response",
            "connection_string",
            "conn_str",
            "conn_string",
            "secure_hash",
            "account_number",
            "card_pan",
            "auth_hash",
            "pin_no",
            "saml_response",
            "relay_state",
            "session_id",
            "id_token_hint",
            "credit_card",
        ];
        for name in spelled {
            assert!(may_be_secret(name.as_bytes()) && is_secret(name), "{name}");
        }
        assert!(!may_be_secret(b"page") && !may_be_secret(b""));
    }

    #[test]
    fn words() {
        let words = |name: &str| {
            let folded = Folded::new(name.as_bytes()).unwrap();
            let (mut out, mut at) = (Vec::new(), 0);
            while at < folded.len {
                let end = folded.end_after(at);
                out.push(String::from_utf8_lossy(&folded.text()[at..end]).into_owned());
                at = end;
            }
            out.join(" ")
        };
        let cases = [
            ("accessToken", "access token"),
            ("access-token", "access token"),
            ("__access..token__", "access token"),
            ("AWSAccessKeyId", "aws access key id"),
            ("user[current_password]", "user current password"),
            ("password2", "password 2"),
            ("XMLHttp", "xml http"),
            ("APIKEY", "apikey"),
            ("X-Api-Key", "x api key"),
            ("token\0zz", "token zz"),
            ("é_Token", "é token"),
            ("", ""),
            ("-_.", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(words(name), expected, "{name}");
        }
    }

    #[test]
    fn parts() {
        let parts = |name: &str| {
            let folded = Folded::new(name.as_bytes()).unwrap();
            let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
            folded.parts().map(text).collect::<Vec<_>>()
        };
        assert_eq!(parts("user[current_password][]"), ["user", "currentpassword"]);
        assert_eq!(parts("[a]"), ["a"]);
        assert_eq!(parts("token\0z"), ["token", "z"]);
        assert!(parts("").is_empty() && parts("[]").is_empty());
    }

    #[test]
    fn names_too_long_to_read_are_secret() {
        assert!(!is_secret(&"a".repeat(MAX_NAME)));
        assert!(!is_secret(&format!("{}_", "a".repeat(MAX_NAME))));
        assert!(is_secret(&"a".repeat(MAX_NAME + 1)));
        assert!(is_secret(&format!("{}token", "a".repeat(MAX_NAME - 5))));
        assert!(!is_secret(&"_".repeat(10_000)));
    }

    #[test]
    fn strange_cases() {
        for name in ["ToKeN", "tOKEN", "PASSword", "aPI_KEY", "api_kEy", "pIn", "x[PassWord]"] {
            assert!(is_secret(name), "{name}");
        }
    }
}
