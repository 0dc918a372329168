//! Requests that try to confuse: the sensor stores what the clients sent, cut and made valid as documented,
//! or nginx refuses the request; and the next request is not affected.
//!
//! The tests derive their expectations from the documentation, not with the module's own code. nginx's
//! answer shows what it refuses.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, thread};

use ring::digest::{SHA256, digest};
use tirreno_tests::client::{self, Connection};
use tirreno_tests::nginx::{Nginx, nginx_is_before};
use tirreno_tests::sensor::{Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_until};

use Place::{Agent, Language, Path, Query, Referer, User};

/// The places of a client's bytes in a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    User,
    Agent,
    Path,
    Query,
    Referer,
    Language,
}

const PLACES: [Place; 6] = [User, Agent, Path, Query, Referer, Language];

impl Place {
    /// How many of these bytes Tirreno keeps.
    fn limit(self) -> usize {
        match self {
            User => 100,
            Agent => 511,
            Path | Query | Referer => 2047,
            Language => 255,
        }
    }

    /// The bytes that stand before the client's own.
    fn prefix(self) -> &'static [u8] {
        match self {
            Path => b"/p/",
            Query => b"/q?",
            _ => b"",
        }
    }
}

/// A plain request, except for the values in it.
#[derive(Clone)]
struct Request {
    target: Vec<u8>,
    user: Vec<u8>,
    agent: Vec<u8>,
    referer: Vec<u8>,
    language: Vec<u8>,
}

impl Request {
    fn good(url: &str) -> Self {
        Self {
            target: url.into(),
            user: b"ann".into(),
            agent: b"Agent/1.0".into(),
            referer: b"https://example.com/?a=%20+&b".into(),
            language: b"en".into(),
        }
    }

    fn with(place: Place, value: &[u8]) -> Self {
        let mut request = Self::good("/");
        *request.value(place) = [place.prefix(), value].concat();
        request
    }

    fn value(&mut self, place: Place) -> &mut Vec<u8> {
        match place {
            User => &mut self.user,
            Agent => &mut self.agent,
            Path | Query => &mut self.target,
            Referer => &mut self.referer,
            Language => &mut self.language,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let parts: [&[u8]; 11] = [
            b"GET ",
            &self.target,
            b" HTTP/1.1\r\nHost: a\r\nCookie: user=",
            &self.user,
            b"\r\nUser-Agent: ",
            &self.agent,
            b"\r\nReferer: ",
            &self.referer,
            b"\r\nAccept-Language: ",
            &self.language,
            b"\r\n\r\n",
        ];
        parts.concat()
    }

    /// The values that Tirreno stores: user, URL, User-Agent, Referer, language.
    fn expected(&self) -> Stored {
        let user = trim(&self.user).split(|byte| *byte == b';').next().unwrap_or_default();
        let spaces = user.iter().take_while(|byte| **byte == b' ').count();
        Stored {
            user: user_name(&user[spaces..]),
            url: uri(&self.target, str::len),
            agent: text(trim(&self.agent), Agent.limit()),
            referer: Some(uri(trim(&self.referer), referer_cost)).filter(|uri| !uri.is_empty()),
            language: text(trim(&self.language), Language.limit()),
        }
    }
}

/// nginx ignores spaces around a header's value.
fn trim(value: &[u8]) -> &[u8] {
    let start = value.iter().position(|byte| *byte != b' ').unwrap_or(value.len());
    let end = value.iter().rposition(|byte| *byte != b' ').map_or(start, |last| last + 1);
    &value[start..end]
}

/// Text: what is not UTF-8, and NUL, is U+FFFD; whole characters up to the limit; empty is absent.
fn text(value: &[u8], limit: usize) -> Option<String> {
    let text = String::from_utf8_lossy(value).replace('\0', "\u{fffd}");
    let text = take(text.chars().map(String::from), limit, str::len);
    Some(text).filter(|text| !text.is_empty())
}

/// A user in a cookie: without quotes, percent-decoded if the result is text, without blanks and quotes
/// around that; text that is not UTF-8 is Latin-1. A name longer than Tirreno keeps ends with a hash of the
/// whole name.
fn user_name(cookie: &[u8]) -> String {
    let cookie = unquote(cookie);
    let decoded = percent_decode(cookie);
    let is_text =
        str::from_utf8(&decoded).is_ok_and(|text| !text.contains(|c: char| c.is_ascii_control()));
    let name = unquote((if is_text { &decoded } else { cookie }).trim_ascii());
    let name = match str::from_utf8(name) {
        Ok(name) => name.to_owned(),
        Err(_) => name.iter().map(|byte| char::from(*byte)).collect(),
    };
    if name.len() > User.limit() {
        let hash = digest(&SHA256, name.as_bytes());
        let hash: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let start = take(name.chars().map(String::from), User.limit() - 17, str::len);
        return format!("{start}-{hash}");
    }
    if name.is_empty() { "N/A".into() } else { name }
}

fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// Decodes each `%` with two digits; others stay.
fn percent_decode(value: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = value;
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits =
            digits.filter(|_| *first == b'%').and_then(|digits| str::from_utf8(digits).ok());
        decoded.push(digits.map_or(*first, |digits| u8::from_str_radix(digits, 16).unwrap()));
        rest = if digits.is_some() { &after[2..] } else { after };
    }
    decoded
}

/// A URI: bytes that are not UTF-8 are percent-encoded, never in parts.
fn uri(value: &[u8], cost: fn(&str) -> usize) -> String {
    let pieces = value.utf8_chunks().flat_map(|chunk| {
        let invalid = chunk.invalid().iter().map(|byte| format!("%{byte:02X}"));
        chunk.valid().chars().map(String::from).chain(invalid)
    });
    take(pieces, Path.limit(), cost)
}

/// Tirreno decodes the Referer once too often, so the limit applies to what it gets.
fn referer_cost(piece: &str) -> usize {
    piece.chars().map(|c| if matches!(c, '%' | '+') { 3 } else { c.len_utf8() }).sum()
}

fn take(pieces: impl Iterator<Item = String>, limit: usize, cost: fn(&str) -> usize) -> String {
    let mut left = limit;
    let fits = |piece: &String| match left.checked_sub(cost(piece)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    pieces.take_while(fits).collect()
}

/// The values that a client chooses.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    user: String,
    url: String,
    agent: Option<String>,
    referer: Option<String>,
    language: Option<String>,
}

impl Stored {
    fn of(event: &StoredEvent) -> Self {
        Self {
            user: event.user_name.clone(),
            url: event.url.clone(),
            agent: event.user_agent.clone(),
            referer: event.http_referer.clone(),
            language: event.browser_language.clone(),
        }
    }

    /// Whether each value is the expected one, or absent because nginx refused the request before it read
    /// the value.
    fn is_part_of(&self, whole: &Self) -> bool {
        let absent_or = |have: &Option<String>, all| have.is_none() || have == all;
        (self.user == "N/A" || self.user == whole.user)
            && (self.url.is_empty() || self.url == whole.url)
            && absent_or(&self.agent, &whole.agent)
            && absent_or(&self.referer, &whole.referer)
            && absent_or(&self.language, &whole.language)
    }
}

/// nginx, its sensor, and a connection for the neighbours: ordinary requests that follow each hostile
/// request.
struct Site {
    sensor: Sensor,
    nginx: Nginx,
    neighbour: Connection,
    neighbours: usize,
}

impl Site {
    /// Values are stored as sent, including secrets.
    fn start() -> Self {
        Self::with("tirreno_redact off;")
    }

    /// The port `%PORT1%` speaks HTTP/2.
    fn with(http: &str) -> Self {
        let http2 = if nginx_is_before(25) {
            "listen 127.0.0.1:%PORT1% http2;"
        } else {
            "listen 127.0.0.1:%PORT1%; http2 on;"
        };
        let sensor = Sensor::start(SensorOptions::default());
        let nginx = Nginx::builder()
            .sensor(&sensor.url())
            .http(http)
            .http(
                "tirreno_target {
                     url %SENSOR%;
                     api_key test-key;
                     interval 20ms;
                     queue 100000 size=256m;
                 }
                 tirreno on;
                 tirreno_user $cookie_user;
                 tirreno_anonymous on;
                 # Tells whose an event is: users take turns at being delivered.
                 tirreno_param pageTitle $connection;
                 keepalive_requests 1000000;
                 large_client_header_buffers 4 64k;
                 # So that a refused request is captured before its client can send the next.
                 lingering_close off;",
            )
            .server(
                "location / { return 200; }
                 location /payload {
                     tirreno_param pageTitle $connection;
                     tirreno_param eventType page_search;
                     tirreno_param payload $http_payload;
                     return 200;
                 }
                 location = /status { tirreno off; tirreno_status; }",
            )
            .http(&format!("server {{ {http2} location / {{ return 200; }} }}"))
            .start();
        let neighbour = Connection::open(([127, 0, 0, 1], nginx.port()).into()).unwrap();
        Self { sensor, nginx, neighbour, neighbours: 0 }
    }

    /// Sends bytes, and a neighbour's request after them. Returns the answer's status, 0 for none.
    fn send(&mut self, bytes: &[u8]) -> u16 {
        let answer = client::raw(self.nginx.port(), bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", Shown(bytes)));
        self.send_neighbour();
        let answer = String::from_utf8_lossy(&answer);
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    fn send_neighbour(&mut self) {
        let url = neighbour_url(self.neighbours);
        let headers = [
            ("Cookie", "theme=dark; user=neighbour"),
            ("User-Agent", "Good/1.0 (é)"),
            ("Referer", "/from?x=%2B+1"),
            ("Accept-Language", "fr"),
        ];
        let response = self.neighbour.request("GET", &url, &headers, b"").unwrap();
        assert_eq!(response.status, 200);
        self.neighbours += 1;
    }

    /// The events of each connection in the order of connections, once all have come; asserts that the
    /// neighbours' are intact.
    fn events(&self, count: usize) -> Vec<Vec<Arc<StoredEvent>>> {
        let mut connections: BTreeMap<u64, Vec<Arc<StoredEvent>>> = BTreeMap::new();
        let mut neighbours = 0;
        for event in self.wait_stored(count) {
            assert!(event.flagged.is_empty(), "{}", event.to_line());
            if event.user_name != "neighbour" {
                let number = event.page_title.as_ref().and_then(|title| title.parse().ok());
                let number = number.unwrap_or_else(|| panic!("{}", event.to_line()));
                connections.entry(number).or_default().push(event);
                continue;
            }
            let expected = Stored {
                user: "neighbour".into(),
                url: neighbour_url(neighbours),
                agent: Some("Good/1.0 (é)".into()),
                referer: Some("/from?x=%2B+1".into()),
                language: Some("fr".into()),
            };
            assert_eq!(Stored::of(&event), expected);
            assert_eq!((event.http_code, &*event.event_type), (Some(200), "page_view"));
            neighbours += 1;
        }
        assert_eq!((neighbours, connections.len()), (self.neighbours, self.neighbours));
        connections.into_values().collect()
    }

    /// Asserts that there are `count` events, and returns them.
    fn wait_stored(&self, count: usize) -> Vec<Arc<StoredEvent>> {
        let stored = self.sensor.wait_stored(count, SOON);
        let stored = stored.unwrap_or_else(|e| panic!("{e}\n{:#?}", self.sensor.lost().first()));
        assert_eq!(stored.len(), count);
        stored
    }

    /// Asserts that everything captured has been delivered, and nginx has no errors.
    fn check_end(&self, captured: usize, invalid: usize) {
        wait_until(SOON, "the end of delivery", || {
            self.nginx.status("/status")["targets"]["tirreno"]["pending"] == 0
        });
        let status = self.nginx.status("/status");
        let target = &status["targets"]["tirreno"];
        for (name, count) in
            [("captured", captured), ("delivered", captured), ("rejected", 0), ("dropped", 0)]
        {
            assert_eq!(target[name], count, "{name}: {status}");
        }
        assert_eq!(status["skipped"]["invalid"], invalid, "{status}");
        assert!(self.sensor.lost().is_empty(), "{:?}", self.sensor.lost());
        assert_eq!(self.nginx.crashes(&[]), [""; 0]);
        for line in self.nginx.error_log().lines().filter(|line| line.contains("tirreno:")) {
            assert!(!line.contains("internal error"), "{line}");
            assert!(!line.contains("victim"), "a client's bytes in the log: {line}");
        }
    }
}

fn neighbour_url(number: usize) -> String {
    format!("/neighbour/{number}?a=b&c=%20+")
}

/// Bytes in a failed test's message.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &self.0[..self.0.len().min(300)];
        write!(f, "{} ({} bytes)", start.escape_ascii(), self.0.len())
    }
}

/// Values for every place, with the places in which nginx refuses them.
fn values() -> Vec<(Vec<u8>, &'static [Place])> {
    const NOWHERE: &[Place] = &[];
    const PATH: &[Place] = &[Path];
    const URL: &[Place] = &[Path, Query];
    const ANYWHERE: &[Place] = &PLACES;
    let values: &[(&[u8], &[Place])] = &[
        (b"", NOWHERE),
        (b"x&userName=victim&ipAddress=8.8.8.8", NOWHERE),
        (b"x&httpCode=99999&eventType=account_login", NOWHERE),
        (b"x%26userName=victim", NOWHERE),
        (b"a[b]=c&d[]=", NOWHERE),
        (b"a+b++", NOWHERE),
        (b"%", PATH),
        (b"100%", PATH),
        (b"%zz%4", PATH),
        (b"%E9", NOWHERE),
        (b"%FF%fe%ff", NOWHERE),
        (b"%C3%A9%F0%9F%98%80", NOWHERE),
        (b"%00", PATH),
        (b"a%00b", PATH),
        (b"%25%2B%26%20", NOWHERE),
        (b"%252525", NOWHERE),
        (b"%0d%0aX-Evil:%20victim", NOWHERE),
        (b"\xff", NOWHERE),
        (b"caf\xe9s", NOWHERE),
        (b"\xc0\xaf/\xe0\x80\xaf", NOWHERE),
        (b"\xed\xa0\x80\xed\xb0\x80", NOWHERE),
        (b"\xf0\x9f\x98", NOWHERE),
        (b"\xf0\x9f\x98x", NOWHERE),
        (b"\xf4\x90\x80\x80\xfe", NOWHERE),
        (b"a\0b", ANYWHERE),
        (b"\0", ANYWHERE),
        (b"a\rb", ANYWHERE),
        (b"a\tb", URL),
        (b"a b", URL),
        (b"\x01\x02\x1b[31m", URL),
        (b"a\x7fb", URL),
        (b"\"quoted\" 'text' <b>", URL),
        (b"\"\\'`<>|{}^", NOWHERE),
        (b"${cookie_user}$request_id", NOWHERE),
        (b"${jndi:ldap://victim/x}", NOWHERE),
        (b"a;user=victim;b", NOWHERE),
        (b"a,user=victim", NOWHERE),
        (b"a#b?c#d", NOWHERE),
        (b"a/../b/./c//d", NOWHERE),
        (b"%2e%2e/%2e%2e/%2e%2e/etc/passwd", PATH),
        ("😀".as_bytes(), NOWHERE),
        ("👩‍👩‍👧 \u{202e}\u{2028}\u{feff}e\u{301}".as_bytes(), URL),
        ("\u{fffd}\u{10ffff}".as_bytes(), NOWHERE),
    ];
    let values = values.iter().map(|(value, refused)| (value.to_vec(), *refused));
    let long = [
        vec![b'x'; 3000],
        "é".repeat(600).into(),
        "€".repeat(1000).into(),
        "😀".repeat(700).into(),
        [b"x", "é".repeat(1500).as_bytes()].concat(),
        vec![0xff; 700],
        vec![0xe9; 2047],
        b"%41".repeat(1000),
        b"+".repeat(2047),
        b"\xff\xc3\xa9".repeat(600),
    ];
    values.chain(long.map(|value| (value, NOWHERE))).collect()
}

#[test]
fn every_value_is_stored_as_it_was_sent_in_every_place() {
    let mut cases = Vec::new();
    for place in PLACES {
        for (value, refused) in values() {
            cases.push((place, value, refused.contains(&place)));
        }
        // A character of four bytes, and an invalid one, across the limit.
        let limit = place.limit() - place.prefix().len();
        for length in limit - 5..=limit + 1 {
            for end in ["😀tail".as_bytes(), "éétail".as_bytes(), b"\xf0\x9f\x98\xff\xfftail"] {
                cases.push((place, [&vec![b'x'; length], end].concat(), false));
            }
        }
    }
    assert!(cases.len() > 60, "{}", cases.len());

    let mut site = Site::start();
    let refusals: Vec<_> = cases
        .iter()
        .map(|(place, value, _)| site.send(&Request::with(*place, value).bytes()))
        .collect();
    let events = site.events(2 * cases.len());
    for (((place, value, refused), answer), events) in cases.iter().zip(refusals).zip(events) {
        let case = format!("{place:?} {}", Shown(value));
        assert_eq!(answer, if *refused { 400 } else { 200 }, "{case}");
        let [event] = &*events else { panic!("{case}: {} events", events.len()) };
        check(&Request::with(*place, value), answer, event, &case);
    }
    site.check_end(2 * cases.len(), 0);
}

/// Compares the stored events with what was sent, and with nginx's answer.
#[track_caller]
fn check(request: &Request, answer: u16, event: &StoredEvent, case: &str) {
    let (stored, expected) = (Stored::of(event), request.expected());
    if answer == 400 {
        assert!(stored.is_part_of(&expected), "{case}: {stored:?}, not part of {expected:?}");
    } else {
        assert_eq!(stored, expected, "{case}");
    }
    assert_eq!(event.http_code, Some(answer), "{case}");
    // nginx may refuse the request before it knows the method.
    let unknown = answer == 400 && event.url.is_empty() && event.http_method.is_none();
    assert!(unknown || event.http_method.as_deref() == Some("GET"), "{case}");
    assert_eq!(event.ip_address, "127.0.0.1", "{case}");
    let kind = if answer < 400 { "page_view" } else { "page_error" };
    assert_eq!(event.event_type, kind, "{case}");
}

#[test]
fn whatever_comes_over_a_connection_is_one_event() {
    let client_hello: Vec<u8> =
        b"\x16\x03\x01\x00\xc6\x01\x00\x00\xc2\x03\x03".iter().copied().chain(0..187).collect();
    let every_byte: Vec<u8> = (0..=255).chain(*b"\r\n\r\n").collect();
    let long_method = format!("{} /m HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(3000));
    let many = ["X: y"; 500].join("\r\n");
    let big = format!("X: {}", "x".repeat(100_000));
    let languages = if nginx_is_before(23) { "de" } else { "de, fr" };
    let languages = format!("browserLanguage={languages}");
    let trace_id = format!("X-Request-Id: {}", "f".repeat(37));
    let head = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n").into_bytes()
    };
    let target = |target: &str| head(target, "X: y");
    let headers = |headers: &str| head("/", headers);
    let raw = |text: &str| format!("{text}\r\nHost: a\r\n\r\n").into_bytes();
    const REFUSED: &str = "url=-|httpCode=400|userName=N/A";
    // The bytes, and the stored fields; `-` is no value.
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("HTTP/0.9", b"GET /old?a\r\n".into(), "url=/old?a|httpMethod=GET|httpCode=200"),
        ("TLS", client_hello, REFUSED),
        ("every byte", every_byte, REFUSED),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), REFUSED),
        ("SSH", b"SSH-2.0-x\r\n\r\n".into(), REFUSED),
        ("empty lines", [b"\r\n\r\n\n", &*target("/e")].concat(), "url=/e|httpCode=200"),
        (
            "line feeds",
            b"GET /lf HTTP/1.1\nHost: a\nCookie: user=u\n\n".into(),
            "url=/lf|userName=u",
        ),
        ("an absolute URI", target("http://victim:80/a?b=c"), "url=/a?b=c|httpCode=200"),
        ("an absolute URI without a path", target("http://victim"), "url=/|httpCode=200"),
        ("two slashes", target("//victim//a"), "url=//victim//a|httpCode=200"),
        ("dots", target("/a/./b/../c/%2e%2e/d"), "url=/a/./b/../c/%2e%2e/d|httpCode=200"),
        ("too many dots", target("/a/../../etc/passwd"), REFUSED),
        ("a fragment", target("/a#b?c"), "url=/a#b?c|httpCode=200"),
        ("no slash", target("a"), REFUSED),
        ("no target", raw("GET HTTP/1.1"), REFUSED),
        ("an asterisk", raw("OPTIONS * HTTP/1.1"), REFUSED),
        ("CONNECT", raw("CONNECT victim:443 HTTP/1.1"), "userName=N/A"),
        (
            "TRACE",
            raw("TRACE /t HTTP/1.1\r\nCookie: user=u"),
            "httpMethod=TRACE|httpCode=405|userName=u",
        ),
        ("a method in lower case", raw("get / HTTP/1.1"), REFUSED),
        ("a long method", long_method.into(), "httpMethod=-|url=/m|httpCode=200"),
        ("many headers", head("/many", &many), "url=/many|httpCode=200"),
        ("a big header", head("/big", &big), "url=/big|httpCode=400"),
        ("a folded header", head("/f", "User-Agent: a\r\n b"), "url=/f|httpCode=400"),
        ("a header without a name", head("/n", ": x"), "url=/n|httpCode=400"),
        ("spaces", headers("Cookie:   user=u  \r\nUser-Agent:   a b "), "userName=u|userAgent=a b"),
        (
            "no values",
            headers("Cookie:\r\nUser-Agent:\r\nReferer: \r\nAccept-Language:"),
            "userName=N/A|userAgent=-|httpReferer=-|browserLanguage=-",
        ),
        ("an empty cookie", headers("Cookie: user=; a=b"), "userName=N/A"),
        ("a cookie without a value", headers("Cookie: user"), "userName=N/A"),
        ("a cookie twice", headers("Cookie: user=1; user=2"), "userName=1"),
        ("a cookie in two headers", headers("Cookie: user=1\r\nCookie: user=2"), "userName=1"),
        ("two cookie headers", headers("Cookie: a=b\r\nCookie: user=u"), "userName=u"),
        ("similar cookies", headers("Cookie: xuser=x; user2=y; user=u"), "userName=u"),
        ("a quoted cookie", headers("Cookie: user=\"a;b\"; c=\"d"), "userName=\"a"),
        ("a cookie among separators", headers("Cookie: ;;;=;user=u;;"), "userName=u"),
        ("two User-Agents", headers("User-Agent: 1\r\nUser-Agent: 2"), "userAgent=1"),
        ("two Referers", headers("Referer: /1\r\nReferer: /2"), "httpReferer=/1"),
        ("two languages", headers("Accept-Language: de\r\nAccept-Language: fr"), &languages),
        ("an underscore", headers("User_Agent: x\r\nUser-Agent: y"), "userAgent=y"),
        ("a trace id", headers(&trace_id), "httpCode=200"),
        (
            "an address",
            headers("X-Forwarded-For: 8.8.8.8\r\nX-Real-IP: 8.8.8.8"),
            "ipAddress=127.0.0.1",
        ),
        (
            "a host",
            b"GET /h HTTP/1.1\r\nHost: a&userName=victim\r\n\r\n".into(),
            "url=/h|userName=N/A|httpCode=200",
        ),
        ("a negative length", head("/l", "Content-Length: -1"), "url=/l|httpCode=400"),
        (
            "a huge length",
            head("/l", "Content-Length: 99999999999999999999"),
            "url=/l|httpCode=400",
        ),
        (
            "two lengths",
            head("/l", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
            "url=/l|httpCode=400",
        ),
    ];
    let mut site = Site::start();
    for (_, bytes, _) in cases {
        site.send(bytes);
    }
    for ((name, _, expected), events) in cases.iter().zip(site.events(2 * cases.len())) {
        let [event] = &*events else { panic!("{name}: {} events", events.len()) };
        let fields = event.fields();
        for (field, value) in expected.split('|').filter_map(|pair| pair.split_once('=')) {
            let have = fields.iter().find(|(have, value)| *have == field && !value.is_empty());
            assert_eq!(have.map_or("-", |(_, value)| value), value, "{name}: {}", event.to_line());
        }
        assert!(!event.to_line().contains("=victim "), "{name}: {}", event.to_line());
        let trace_id = event.trace_id.clone().unwrap_or_default();
        assert_eq!(trace_id.len(), 32, "{name}: {}", event.to_line());
    }
    site.check_end(2 * cases.len(), 0);
}

#[test]
fn a_value_that_must_not_be_cut_is_left_out_counted_and_logged() {
    let mut site = Site::start();
    let payload = |length: usize| {
        let frame = r#"{"field_id":"victim","value":""}"#;
        let value = "x".repeat(length - frame.len());
        frame.replace(r#""""#, &format!(r#""{value}""#))
    };
    for length in [100, 8192, 8193, 20_000, 60_000] {
        let payload = payload(length);
        assert_eq!(payload.len(), length);
        let request =
            format!("GET /payload?{length} HTTP/1.1\r\nHost: a\r\nPayload: {payload}\r\n\r\n");
        assert_eq!(site.send(request.as_bytes()), 200);
    }
    let events = site.events(5 + 5);
    // A search without a payload gets an empty one, which Tirreno stores without a warning.
    let value = |length: usize| ("victim", "x".repeat(length - 32));
    let empty = || ("/payload", String::new());
    let expected = [value(100), value(8192), empty(), empty(), empty()];
    let payloads: Vec<_> = events.iter().flatten().map(|event| event.payload.clone()).collect();
    let payloads: Vec<_> = payloads.iter().flatten().collect();
    assert_eq!(payloads.len(), expected.len());
    for (payload, (field, value)) in payloads.iter().zip(expected) {
        assert_eq!((&payload["field_id"], &payload["value"]), (&field.into(), &value.into()));
    }
    site.nginx.wait_log("captured without a value that must not be cut and is too long");
    site.check_end(5 + 5, 3);
}

#[test]
fn random_requests_are_stored_as_they_were_sent() {
    const COUNT: usize = 3000;
    let mut random = Random::new();
    let mut site = Site::start();
    let requests: Vec<_> = (0..COUNT).map(|number| random.request(number)).collect();
    let answers: Vec<_> = requests.iter().map(|request| site.send(&request.bytes())).collect();
    let events = site.events(2 * COUNT);
    for ((request, answer), events) in requests.iter().zip(&answers).zip(events) {
        let case = Shown(&request.bytes()).to_string();
        let [event] = &*events else { panic!("{case}: {} events", events.len()) };
        check(request, *answer, event, &case);
    }
    let refused = answers.iter().filter(|answer| **answer == 400).count();
    assert!((1..COUNT / 2).contains(&refused), "{refused} of {COUNT} are refused");
    site.check_end(2 * COUNT, 0);
}

#[test]
fn redaction_of_random_requests_loses_none() {
    const COUNT: usize = 1000;
    let mut random = Random::new();
    let mut site = Site::with("tirreno_redact b é;");
    let requests: Vec<_> = (0..COUNT).map(|number| random.request(number)).collect();
    requests.iter().for_each(|request| {
        site.send(&request.bytes());
    });
    for (request, events) in requests.iter().zip(site.events(2 * COUNT)) {
        assert_eq!(events.len(), 1, "{}", Shown(&request.bytes()));
    }
    site.check_end(2 * COUNT, 0);
}

#[test]
fn random_headers_over_http2_are_stored_as_they_were_sent() {
    const COUNT: usize = 600;
    let mut random = Random::new();
    let mut site = Site::start();
    let mut requests: Vec<_> = (0..COUNT).map(|number| random.request(number)).collect();
    for (number, request) in requests.iter_mut().enumerate() {
        request.target = format!("/h2/{number}").into();
        for place in [User, Agent, Referer, Language] {
            let value = request.value(place);
            // HTTP/2 cannot express other values.
            value.retain(|byte| *byte == b'\t' || *byte >= 0x20 && *byte != 0x7f);
            *value = trim(value).to_vec();
        }
    }
    for some in requests.chunks(60) {
        let some: Vec<_> = some.iter().map(h2_request).collect();
        let answers = client::h2(site.nginx.port_n(1), &some).unwrap();
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    for event in site.wait_stored(COUNT) {
        let number = event.url.strip_prefix("/h2/").and_then(|n| n.parse::<usize>().ok());
        let request = number.and_then(|number| requests.get(number)).expect("a request's number");
        check(request, 200, &event, &event.to_line());
    }
    site.send_neighbour();
    site.wait_stored(COUNT + 1);
    site.check_end(COUNT + 1, 0);
}

fn h2_request(request: &Request) -> http::Request<Vec<u8>> {
    let target = String::from_utf8_lossy(&request.target);
    let cookie = [b"user=", &*request.user].concat();
    http::Request::builder()
        .uri(format!("http://localhost{target}"))
        .version(http::Version::HTTP_2)
        .header("cookie", &*cookie)
        .header("user-agent", &*request.agent)
        .header("referer", &*request.referer)
        .header("accept-language", &*request.language)
        .body(Vec::new())
        .expect("a request that HTTP/2 can say")
}

/// Random bytes; a failing test prints the seed, and `TEST_FUZZ_SEED` sets it.
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let seed = match env::var("TEST_FUZZ_SEED") {
            Ok(seed) => seed.parse().expect("TEST_FUZZ_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs() << 20 | u64::from(now.subsec_micros())),
        };
        Self { seed, state: seed }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_of<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.below(of.len())]
    }

    fn request(&mut self, number: usize) -> Request {
        let mut request = Request::good(&format!("/random/{number}"));
        // Only one or two hostile values, so that nginx refuses few requests.
        for _ in 0..=self.below(2) {
            let place = PLACES[self.below(PLACES.len())];
            let value = self.value(place);
            match place {
                Path => request.target.extend([b"/", &*value].concat()),
                Query => request.target.extend([b"?", &*value].concat()),
                _ => *request.value(place) = value,
            }
        }
        request
    }

    fn value(&mut self, place: Place) -> Vec<u8> {
        let limit = place.limit();
        let length = match self.below(8) {
            0..5 => self.below(40),
            5 => limit - 8 + self.below(16),
            6 => limit / 3 - 4 + self.below(8),
            _ => self.below(2 * limit),
        };
        let alphabet = self.below(4);
        let in_url = matches!(place, Path | Query);
        let mut value = Vec::with_capacity(length + 8);
        while value.len() < length {
            match alphabet {
                0 => value.push(self.byte(in_url)),
                1 => {
                    let char = char::from_u32(self.below(0x11_0000) as u32).filter(|c| *c > ' ');
                    value.extend(char.unwrap_or('é').encode_utf8(&mut [0; 4]).bytes());
                }
                2 => value.extend(self.one_of(&[
                    b"%",
                    b"%E9",
                    b"%41",
                    b"+",
                    b"&",
                    b"=",
                    b";",
                    b"userName=victim",
                    b"/",
                    b"..",
                    b"?",
                    b"#",
                    b"\"",
                    b"\xff",
                    "é".as_bytes(),
                    "😀".as_bytes(),
                    b"[]",
                    b"%25",
                ])),
                _ => value.push(b'!' + self.below(94) as u8),
            }
        }
        if length > 0 && self.below(50) == 0 {
            // nginx would refuse the request.
            let place = self.below(length);
            value.insert(place, if self.below(2) == 0 { 0 } else { b'\r' });
        }
        value
    }

    /// Any byte except NUL and line ends; in a URL, no byte that nginx refuses there.
    fn byte(&mut self, in_url: bool) -> u8 {
        loop {
            let byte = self.next() as u8;
            let refused = matches!(byte, 0 | b'\r' | b'\n')
                || in_url && (byte <= b' ' || matches!(byte, 0x7f | b'%'));
            if !refused {
                return byte;
            }
        }
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the random requests were those of TEST_FUZZ_SEED={}", self.seed);
        }
    }
}
