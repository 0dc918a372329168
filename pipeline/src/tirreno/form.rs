//! Encodes the form for `POST /sensor/`, with values that Tirreno can store.
//!
//! Tirreno cuts and decodes values. If the result is not valid UTF-8, Tirreno answers 204 and loses the
//! event. So values are made valid here, and are cut here at character boundaries.

use std::borrow::Cow;
use std::fmt::Write as _;

use chrono::{DateTime, NaiveDateTime};
use serde::de::IgnoredAny;

use crate::event::{EventType, Param};
use crate::privacy::View;
use crate::record::{NO_ADDRESS, Record};
use crate::text;

/// The format in which Tirreno writes times, always in UTC.
pub(crate) const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S%.3f";
/// The format of times that Tirreno reads. Any other time it replaces by the time of arrival.
pub(crate) const TIME_INPUT: &str = "%Y-%m-%d %H:%M:%S%.f";
/// From this `httpCode` on, Tirreno stores every event as `page_error`.
const FIRST_ERROR: u16 = 400;
/// The largest `httpCode` that Tirreno's database takes.
const MAX_CODE: u16 = 32767;

/// The form of an event, with the values for its target.
pub fn encode(view: &View<'_>) -> String {
    let mut pairs: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(Param::COUNT);
    let has_user = view.get(Param::UserName).is_some();
    for param in Param::ALL {
        // For an event with an address but no user, Tirreno takes the address's hash as the user's name,
        // and treats all invalid addresses as one user.
        if param == Param::EmailAddress && !has_user {
            continue;
        }
        if let Some(value) = value(view, param) {
            pairs.push((param.name(), value));
        }
    }
    let form = serde_urlencoded::to_string(&pairs).unwrap_or_default();
    match view.record().repeated() {
        1 => form,
        count => with_repeated(&form, count),
    }
}

/// The form with `repeated=` in its URL, which says how many events it stands for.
pub fn with_repeated(form: &str, count: u32) -> String {
    let start = match form.starts_with("url=") {
        true => 4,
        false => match form.find("&url=") {
            Some(at) => at + 5,
            None => return form.to_owned(),
        },
    };
    let end = form[start..].find('&').map_or(form.len(), |len| start + len);
    let mut url = &form[start..end];
    let argument = format!("repeated%3D{count}");
    // Each `%` begins three bytes of the form for one byte of the URL.
    let len = |text: &str| text.len() - 2 * text.matches('%').count();
    if len(url) + 1 + len(&argument) > Param::Url.limit() {
        url = url.split_once("%3F").map_or(url, |(path, _)| path);
    }
    let before = if url.contains("%3F") { "%26" } else { "%3F" };
    format!("{}{url}{before}{argument}{}", &form[..start], &form[end..])
}

/// The form without the parts to which a firewall may object: User-Agent, Referer, the query, and the
/// search term. `stripped=1` in the URL marks it. `repeated=` stays in the URL.
pub fn stripped(form: &str) -> String {
    let pairs: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        serde_urlencoded::from_str(form).unwrap_or_default();
    let get = |name: Param| pairs.iter().find(|(known, _)| known == name.name()).map(|(_, v)| &**v);
    let url = get(Param::Url).unwrap_or_default();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let repeated = query.rsplit('&').next().filter(|last| last.starts_with("repeated="));
    let mark = ["stripped=1"].into_iter().chain(repeated).collect::<Vec<_>>().join("&");
    let path = &path[..text::cut_before(path, Param::Url.limit() - mark.len() - 1)];
    let stripped = pairs.iter().filter_map(|(name, value)| {
        let value = match Param::ALL.into_iter().find(|param| param.name() == name) {
            Some(Param::UserAgent | Param::HttpReferer) => return None,
            Some(Param::Url) => format!("{path}?{mark}").into(),
            Some(Param::Payload) if get(Param::EventType) == Some(EventType::PageSearch.name()) => {
                serde_json::json!({ "field_id": path, "value": "" }).to_string().into()
            }
            _ => Cow::Borrowed(&**value),
        };
        Some((&**name, value))
    });
    serde_urlencoded::to_string(stripped.collect::<Vec<_>>()).unwrap_or_default()
}

/// The user's name in the form.
pub fn user(view: &View<'_>) -> Option<String> {
    value(view, Param::UserName).map(Cow::into_owned)
}

fn value<'a>(view: &View<'a>, param: Param) -> Option<Cow<'a, str>> {
    if param == Param::Payload {
        return payload(view).map(Into::into);
    }
    if view.omits(param) {
        return None;
    }
    let given = view.get(param);
    let bytes = given.as_deref();
    match param {
        Param::IpAddress => Some(view.ip().unwrap_or(NO_ADDRESS).to_string().into()),
        Param::Url => match view.page() {
            Some(page) => Some(text::valid(&page, param.limit()).into_owned().into()),
            None => Some(uri(bytes.unwrap_or_default(), param.limit(), false).into()),
        },
        Param::EmailAddress if !bytes.is_some_and(is_email) => None,
        Param::HttpReferer => bytes.map(|v| uri(v, param.limit(), true).into()),
        Param::EventTime => Some(bytes.and_then(time).unwrap_or_else(|| start(view)).into()),
        Param::UserCreated => bytes.and_then(|v| time(v).or_else(|| other_time(v))).map(Into::into),
        // With a code of 400 or above, Tirreno would store the event as `page_error`, whatever its type.
        Param::HttpCode if view.record().kind() == EventType::AccountLoginFail => None,
        Param::HttpCode => code(bytes, view.record()),
        Param::EventType => Some(kind(view.record()).name().into()),
        _ => match given? {
            Cow::Borrowed(given) => Some(text::valid(given, param.limit())),
            Cow::Owned(given) => Some(text::valid(&given, param.limit()).into_owned().into()),
        },
    }
}

fn start(view: &View<'_>) -> String {
    DateTime::from_timestamp_millis(view.record().time_ms())
        .unwrap_or_default()
        .format(TIME_FORMAT)
        .to_string()
}

fn time(given: &[u8]) -> Option<String> {
    let given = str::from_utf8(given).ok()?;
    let time = NaiveDateTime::parse_from_str(given, TIME_INPUT).ok()?;
    Some(time.format(TIME_FORMAT).to_string())
}

/// Parses other formats of applications: RFC 3339, and seconds or milliseconds since the epoch.
fn other_time(given: &[u8]) -> Option<String> {
    let given = str::from_utf8(given).ok()?;
    let is_number = given.bytes().all(|b| b.is_ascii_digit());
    let time = match given.len() {
        10 if is_number => DateTime::from_timestamp_secs(given.parse().ok()?)?,
        13 if is_number => DateTime::from_timestamp_millis(given.parse().ok()?)?,
        _ => DateTime::parse_from_rfc3339(given).ok()?.to_utc(),
    };
    Some(time.format(TIME_FORMAT).to_string())
}

/// The longest value in a payload, in bytes.
const MAX_PAYLOAD_VALUE: usize = 1000;

/// The payload in Tirreno's format for the event's type, with the given value in it. A JSON object is sent
/// as it is. Tirreno would store a search without payload, but with a warning each time.
fn payload(view: &View<'_>) -> Option<String> {
    let given = match view.omits(Param::Payload) {
        true => None,
        false => view.get(Param::Payload),
    };
    let given = given.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let is_object = || given.starts_with('{') && serde_json::from_str::<IgnoredAny>(&given).is_ok();
    let value = text::valid(given.as_bytes(), MAX_PAYLOAD_VALUE);
    match view.record().kind() {
        _ if is_object() => Some(given.into_owned()),
        EventType::PageSearch => {
            let url = self::value(view, Param::Url).unwrap_or_default();
            let page = url.split('?').next().unwrap_or_default();
            let of = |page: &str, value: &str| {
                serde_json::json!({ "field_id": page, "value": value }).to_string()
            };
            let whole = of(page, &value);
            // JSON makes six bytes of a control character.
            let cut = |text: &str| text[..text::cut_before(text, MAX_PAYLOAD_VALUE / 2)].to_owned();
            let fits = whole.len() <= Param::Payload.limit();
            Some(if fits { whole } else { of(&cut(page), &cut(&value)) })
        }
        EventType::AccountEmailChange if !value.is_empty() => {
            Some(serde_json::json!({ "new_value": value }).to_string())
        }
        EventType::AccountEmailChange => None,
        _ if given.is_empty() => None,
        _ => Some(text::valid(given.as_bytes(), Param::Payload.limit()).into_owned()),
    }
}

/// The event's type for Tirreno, which has no attempts: a login with an unknown outcome is sent as
/// `page_view`, because it is neither a login nor a failure.
fn kind(record: &Record<'_>) -> EventType {
    let is_unanswered = matches!(record.status(), 0 | FIRST_ERROR..);
    match record.kind() {
        EventType::AccountLogin if record.is_attempt() && is_unanswered => EventType::PageView,
        kind => kind,
    }
}

fn code(given: Option<&[u8]>, record: &Record<'_>) -> Option<Cow<'static, str>> {
    let code = match given {
        Some(given) => str::from_utf8(given).ok()?.parse().ok()?,
        None => record.status(),
    };
    if record.is_attempt() && code >= FIRST_ERROR {
        return None;
    }
    (1..=MAX_CODE).contains(&code).then(|| code.to_string().into())
}

/// Whether it is an email address that Tirreno accepts (PHP's `FILTER_VALIDATE_EMAIL`), except for the
/// forms that nobody uses: quoted local parts and literal addresses.
pub(crate) fn is_email(text: &[u8]) -> bool {
    let Some(at) = text.iter().rposition(|b| *b == b'@') else { return false };
    let (local, domain) = (&text[..at], &text[at + 1..]);
    let is_atom = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(b);
    let is_label = |label: &[u8]| {
        let is_inside = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-';
        (1..=63).contains(&label.len())
            && label.iter().all(is_inside)
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
    };
    let top = domain.rsplit(|b| *b == b'.').next().unwrap_or_default();
    local.len() <= 64
        && text.len() <= 254
        && top.first().is_some_and(u8::is_ascii_alphabetic)
        && local.split(|b| *b == b'.').all(|atom| !atom.is_empty() && atom.iter().all(is_atom))
        && domain.contains(&b'.')
        && domain.split(|b| *b == b'.').all(is_label)
}

/// A URI of at most `limit` bytes, with invalid UTF-8 and NUL percent-encoded. With `twice`, `%` and `+`
/// are encoded once more, because Tirreno decodes the Referer once too often.
pub(crate) fn uri(value: &[u8], limit: usize, twice: bool) -> String {
    if !twice && value.len() <= limit && value.iter().all(|b| matches!(b, 1..=0x7f)) {
        return String::from_utf8_lossy(value).into_owned();
    }
    let percent = if twice { "%25" } else { "%" };
    let mut out = String::with_capacity(value.len());
    let mut piece = String::with_capacity(8);
    for chunk in value.utf8_chunks() {
        let valid = chunk.valid().chars().map(Ok);
        for item in valid.chain(chunk.invalid().iter().map(Err)) {
            piece.clear();
            // Writing to a String does not fail.
            let _ = match item {
                Ok('%') => piece.write_str(percent),
                Ok('+') if twice => piece.write_str("%2B"),
                Ok('\0') => write!(piece, "{percent}00"),
                Ok(char) => piece.write_char(char),
                Err(byte) => write!(piece, "{percent}{byte:02X}"),
            };
            if out.len() + piece.len() > limit {
                return out;
            }
            out.push_str(&piece);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::Privacy;
    use crate::record::{Capture, Record};

    fn pairs(params: &[(Param, &[u8])], kind: EventType, status: u16) -> Vec<(String, String)> {
        let mut capture = Capture::new(1_700_000_000_007);
        capture.kind = kind;
        capture.ip = Some("2001:db8::1".parse().unwrap());
        capture.status = status;
        for (param, value) in params {
            capture.set(*param, value).unwrap();
        }
        let mut bytes = vec![0; capture.record_len()];
        capture.write(1, &mut bytes);
        let privacy = Privacy::default();
        let view = privacy.view(Record::parse(&bytes).unwrap());
        serde_urlencoded::from_str(&encode(&view)).unwrap()
    }

    fn one(param: Param, value: &[u8]) -> Option<String> {
        let pairs = pairs(&[(param, value)], EventType::PageView, 200);
        pairs.into_iter().find(|(name, _)| name == param.name()).map(|(_, value)| value)
    }

    #[test]
    fn a_whole_event() {
        let params: &[(Param, &[u8])] =
            &[(Param::UserName, b"u&userName=victim"), (Param::Url, b"/a?b=1&c=+%20")];
        let expected = [
            ("userName", "u&userName=victim"),
            ("ipAddress", "2001:db8::1"),
            ("url", "/a?b=1&c=+%20"),
            ("eventTime", "2023-11-14 22:13:20.007"),
            ("httpCode", "404"),
            ("eventType", "page_view"),
        ];
        let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(pairs(params, EventType::PageView, 404), expected);
    }

    #[test]
    fn what_is_required_is_always_there() {
        let pairs = pairs(&[(Param::IpAddress, b"nonsense")], EventType::PageView, 0);
        let get = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("ipAddress"), Some("2001:db8::1"));
        assert_eq!(get("url"), Some(""));
        assert_eq!(get("eventTime"), Some("2023-11-14 22:13:20.007"));
        assert_eq!(get("httpCode"), None);
    }

    #[test]
    fn a_form_can_go_without_what_a_firewall_dislikes() {
        let params: &[(Param, &[u8])] = &[
            (Param::UserName, b"u1&x"),
            (Param::Url, b"/a%20b?q=<script>&x=1"),
            (Param::UserAgent, b"sqlmap"),
            (Param::HttpReferer, b"https://x/?q=1"),
            (Param::BrowserLanguage, b"en"),
            (Param::Payload, b"' or 1=1"),
        ];
        let form = |kind| serde_urlencoded::to_string(pairs(params, kind, 200)).unwrap();
        let read = |form: &str| {
            let pairs: Vec<(String, String)> = serde_urlencoded::from_str(form).unwrap();
            pairs
        };
        let whole = form(EventType::PageSearch);
        let url = ("url".to_owned(), "/a%20b?stripped=1".to_owned());
        let payload = ("payload".to_owned(), r#"{"field_id":"/a%20b","value":""}"#.to_owned());
        let gone = ["userAgent", "httpReferer"];
        let expected = read(&whole).into_iter().filter(|(name, _)| !gone.contains(&&**name));
        let expected = expected.map(|pair| match &*pair.0 {
            "url" => url.clone(),
            "payload" => payload.clone(),
            _ => pair,
        });
        assert_eq!(read(&stripped(&whole)), expected.collect::<Vec<_>>());
        let repeated = with_repeated(&form(EventType::PageView), 57);
        let url = read(&stripped(&repeated)).into_iter().find(|(name, _)| name == "url").unwrap().1;
        assert_eq!(url, "/a%20b?stripped=1&repeated=57");
        let long = format!("url=/{}&eventType=page_view", "x".repeat(2046));
        assert_eq!(read(&stripped(&long))[0].1.len(), Param::Url.limit());
    }

    #[test]
    fn the_url_says_for_how_many_events_it_stands() {
        let url = |form: &str| {
            let pairs: Vec<(String, String)> = serde_urlencoded::from_str(form).unwrap();
            pairs.into_iter().find(|(name, _)| name == "url").unwrap().1
        };
        let form = |url: &str| serde_urlencoded::to_string([("url", url), ("a", "?")]).unwrap();
        assert_eq!(url(&with_repeated(&form("/login"), 57)), "/login?repeated=57");
        assert_eq!(url(&with_repeated(&form("/login?a=b&c"), 2)), "/login?a=b&c&repeated=2");
        let long = format!("/login?{}", "x".repeat(2040));
        assert_eq!(url(&with_repeated(&form(&long), 57)), "/login?repeated=57");
        let last = format!("userName=url&{}", form("/é"));
        assert_eq!(url(&with_repeated(&last, 57)), "/é?repeated=57");
        assert_eq!(with_repeated("a=b", 57), "a=b");
    }

    #[test]
    fn a_failed_login_has_no_code() {
        let pairs = pairs(&[], EventType::AccountLoginFail, 401);
        assert!(pairs.iter().all(|(name, _)| name != "httpCode"));
    }

    #[test]
    fn an_attempt_is_no_failure_and_no_login() {
        let sent = |kind, status| {
            let mut capture = Capture::new(0);
            (capture.kind, capture.status, capture.is_attempt) = (kind, status, true);
            let mut bytes = vec![0; capture.record_len()];
            capture.write(1, &mut bytes);
            let privacy = Privacy::default();
            let view = privacy.view(Record::parse(&bytes).unwrap());
            let pairs: Vec<(String, String)> = serde_urlencoded::from_str(&encode(&view)).unwrap();
            let get = |name: &str| pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            (get("eventType").unwrap(), get("httpCode"))
        };
        for status in [0, 499, 504] {
            assert_eq!(sent(EventType::AccountLogin, status), ("page_view".into(), None));
            assert_eq!(sent(EventType::AccountEdit, status), ("account_edit".into(), None));
        }
        assert_eq!(
            sent(EventType::AccountLogin, 200),
            ("account_login".into(), Some("200".into()))
        );
    }

    #[test]
    fn only_valid_addresses_of_mail_are_sent() {
        let good = ["a@example.com", "A.b+c@x-y.example", "o'neil@a.b.c", "1@2.de"];
        let bad = [
            "",
            "a",
            "a@",
            "@b.c",
            "a@b",
            "a@b..c",
            "a@-b.c",
            "a@b-.c",
            ".a@b.c",
            "a..b@c.d",
            "a b@c.d",
            "a@b.c ",
            "a@@b.c",
            "<a@b.c>",
            "m\u{fc}ller@b.c",
            "a@b_c.d",
            "a@b.1",
            "a@192.0.2.1",
        ];
        assert!(good.iter().all(|address| is_email(address.as_bytes())));
        assert!(!bad.iter().any(|address| is_email(address.as_bytes())));
        let all = |address: &'static str| {
            let params =
                [(Param::UserName, &b"ann"[..]), (Param::EmailAddress, address.as_bytes())];
            pairs(&params, EventType::PageView, 200)
        };
        assert!(all("a@b.c").contains(&("emailAddress".into(), "a@b.c".into())));
        assert!(all("a@b").iter().all(|(name, _)| name != "emailAddress"));
    }

    #[test]
    fn no_address_without_a_user() {
        assert_eq!(one(Param::EmailAddress, b"a@example.com"), None);
    }

    #[test]
    fn values_that_lose_an_event() {
        assert_eq!(one(Param::UserAgent, "é".repeat(600).as_bytes()), Some("é".repeat(255)));
        assert_eq!(one(Param::UserAgent, b"a\xffb\xe9"), Some("a\u{fffd}b\u{fffd}".into()));
        assert_eq!(one(Param::UserAgent, b"a\0b"), Some("a\u{fffd}b".into()));
        assert_eq!(one(Param::Url, b"/\xff\xe9?\xc3\xa9"), Some("/%FF%E9?é".into()));
        assert_eq!(one(Param::Url, b"/%ff+"), Some("/%ff+".into()));
        assert_eq!(one(Param::HttpReferer, b"/%E9?a=+"), Some("/%25E9?a=%2B".into()));
        assert_eq!(one(Param::HttpReferer, b"/\xff"), Some("/%25FF".into()));
        assert_eq!(one(Param::HttpReferer, &[b'%'; 2000]), Some("%25".repeat(682)));
        assert_eq!(one(Param::HttpCode, b"32768"), None);
        assert_eq!(one(Param::HttpCode, b"200 "), None);
        assert_eq!(one(Param::HttpCode, b"302"), Some("302".into()));
        assert_eq!(one(Param::IpAddress, b"::ffff:192.0.2.1"), Some("192.0.2.1".into()));
    }

    #[test]
    fn a_search_always_has_a_payload() {
        let of = |kind, params: &[(Param, &[u8])]| {
            let found = pairs(params, kind, 200).into_iter().find(|(name, _)| name == "payload");
            found.map(|(_, payload)| payload)
        };
        let url = (Param::Url, &b"/search/posts?team_id=7"[..]);
        assert_eq!(
            of(EventType::PageSearch, &[url, (Param::Payload, br#"a "b""#)]).as_deref(),
            Some(r#"{"field_id":"/search/posts","value":"a \"b\""}"#)
        );
        let nothing = Some(r#"{"field_id":"/search/posts","value":""}"#);
        assert_eq!(of(EventType::PageSearch, &[url]).as_deref(), nothing);
        let own = br#"{"field_id":"x","value":"y"}"#;
        assert_eq!(
            of(EventType::PageSearch, &[url, (Param::Payload, own)]).as_deref(),
            Some(&*String::from_utf8_lossy(own))
        );
        assert_eq!(
            of(EventType::AccountEmailChange, &[(Param::Payload, b"new@example.com")]).as_deref(),
            Some(r#"{"new_value":"new@example.com"}"#)
        );
        // In JSON, each of these bytes is six.
        let hostile = [&b"/"[..], &[0x10; 2000]].concat();
        let params = [(Param::Url, &*hostile), (Param::Payload, &*hostile)];
        let payload = of(EventType::PageSearch, &params).unwrap();
        assert!(payload.len() <= Param::Payload.limit(), "{}", payload.len());
        assert!(payload.contains(r#""value":"/\u0010"#), "{payload}");
        assert_eq!(of(EventType::AccountEmailChange, &[]), None);
        assert_eq!(of(EventType::PageView, &[]), None);
    }

    #[test]
    fn times_that_tirreno_misreads_are_not_sent() {
        let at = |v: &[u8]| one(Param::UserCreated, v);
        assert_eq!(at(b"2024-02-29 01:02:03"), Some("2024-02-29 01:02:03.000".into()));
        assert_eq!(at(b"2024-02-29 01:02:03.123456"), Some("2024-02-29 01:02:03.123".into()));
        assert_eq!(at(b"2023-02-29 01:02:03"), None);
        assert_eq!(at(b"2024-02-29T01:02:03+01:00"), Some("2024-02-29 00:02:03.000".into()));
        assert_eq!(at(b"1700000000"), Some("2023-11-14 22:13:20.000".into()));
        assert_eq!(at(b"1700000000007"), Some("2023-11-14 22:13:20.007".into()));
        assert_eq!(at(b"17000000"), None);
        assert_eq!(at(b"-170000000"), None);
        let own = one(Param::EventTime, b"yesterday");
        assert_eq!(own, Some("2023-11-14 22:13:20.007".into()));
    }
}
