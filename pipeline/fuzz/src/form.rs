//! A form says what was put into it, and nothing that Tirreno would lose.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use regex::bytes::Regex;
use serde_json::{Value, json};
use tirreno_pipeline::event::{EventType, OverLimit, Param};
use tirreno_pipeline::privacy::Privacy;
use tirreno_pipeline::record::{Capture, Record};
use tirreno_pipeline::tirreno::form::encode;

use crate::{decode, text};

const PIECES: &[&str] = &[
    "&",
    "=",
    "+",
    "%",
    "%41",
    "%e9",
    ";",
    " ",
    "\0",
    "é",
    "\u{1f600}",
    "userName=",
    "a",
    "/",
    "?",
    "2024-02-29 01:02:03",
    "192.0.2.1",
    "::ffff:1.2.3.4",
    "200",
    "99999",
    "ann@example.org",
    "@",
    ".",
    "-",
    "ann+b'c@x-1.org",
    "{\"value\":\"a\"}",
    "{\"",
    "\"}",
    "[]",
];

/// Values of parameters, in their order.
pub(crate) type Values = Vec<(Param, Vec<u8>)>;

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let given = values(u)?;
    let capture = capture(u, &given)?;
    let mut bytes = vec![0; capture.record_len()];
    capture.write(1, &mut bytes);
    let record = Record::parse(&bytes).expect("what was written");
    let form = encode(&Privacy::default().view(record));
    let pairs = pairs(&form);

    let names: Vec<_> = pairs.iter().map(|(param, _)| *param as usize).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "{form}");
    for required in [Param::IpAddress, Param::Url, Param::EventTime, Param::EventType] {
        assert!(names.contains(&(required as usize)), "{form}");
    }
    let value = |param| given.iter().find(|(p, _)| *p == param).map(|(_, v)| &**v);
    for (param, sent) in &pairs {
        is_fit(*param, sent);
        let Some(given) = value(*param) else {
            let made = [Param::IpAddress, Param::Url, Param::EventTime, Param::EventType];
            let others = [Param::HttpCode, Param::Payload];
            assert!(made.contains(param) || others.contains(param), "{form}");
            continue;
        };
        let whole = str::from_utf8(given).is_ok() && !given.contains(&0);
        let exact = match param {
            Param::HttpReferer => whole && sent.len() < param.limit() - 8,
            // See below.
            Param::EventType | Param::Payload => false,
            _ => whole && given.len() <= param.limit() && param.over_limit() != OverLimit::LeftOut,
        };
        if exact {
            let stored =
                if *param == Param::HttpReferer { decode_plus(sent) } else { sent.clone() };
            assert_eq!(stored, given, "{param:?}");
        }
    }
    for (param, given) in &given {
        // See below.
        let depends = [Param::EventType, Param::EmailAddress, Param::Payload];
        let plain = param.over_limit() != OverLimit::LeftOut && !depends.contains(param);
        let sent = names.contains(&(*param as usize));
        assert!(!plain || sent != (given.is_empty() && *param != Param::Url), "{param:?}");
    }
    let given = |param| value(param).filter(|value| !value.is_empty());
    let has_user = given(Param::UserName).is_some();
    let address = given(Param::EmailAddress).filter(|address| has_user && is_address(address));
    assert_eq!(sent(&pairs, Param::EmailAddress), address, "{form}");
    check_payload(record.kind(), given(Param::Payload), &pairs);
    Ok(())
}

fn sent(pairs: &Values, param: Param) -> Option<&[u8]> {
    pairs.iter().find(|(known, _)| *known == param).map(|(_, value)| &**value)
}

/// Whether PHP's `FILTER_VALIDATE_EMAIL` takes it: its expression, without names in quotes and addresses in
/// brackets.
pub(crate) fn is_address(text: &[u8]) -> bool {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
        let atom = r"[!#-'*+\-/-9=?^-~]+";
        let label = "[a-z0-9]+(-+[a-z0-9]+)*";
        let top = "[a-z][a-z0-9]*(-+[a-z0-9]+)*";
        let all = format!(r"(?i-u)\A{atom}(\.{atom})*@({label}\.)+{top}\z");
        Regex::new(&all).expect("an expression")
    });
    let at = text.iter().rposition(|b| *b == b'@').unwrap_or(0);
    let labels = || text[at..].split(|b| matches!(b, b'@' | b'.'));
    ADDRESS.is_match(text) && text.len() < 255 && at < 65 && labels().all(|label| label.len() < 64)
}

/// What Tirreno wants of the event's type: a search always has a payload, and what is given is the value in
/// it, unless it is a JSON object.
///
/// # Panics
/// The form has another.
pub(crate) fn check_payload(kind: EventType, given: Option<&[u8]>, pairs: &Values) {
    let payload = sent(pairs, Param::Payload);
    let read = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    if given.is_some_and(|given| given.starts_with(b"{") && read(given).is_some()) {
        return assert_eq!(payload, given);
    }
    let value = given.map(|given| shortened(given, 1000)).unwrap_or_default();
    let wanted = match kind {
        EventType::PageSearch => {
            let url = sent(pairs, Param::Url).unwrap_or_default();
            let page = url.split(|b| *b == b'?').next().unwrap_or_default();
            let of = |page: &str, value: &str| json!({ "field_id": page, "value": value });
            let whole = of(str::from_utf8(page).expect("text"), &value);
            match whole.to_string().len() {
                ..=8192 => whole,
                _ => of(&shortened(page, 500), &shortened(value.as_bytes(), 500)),
            }
        }
        EventType::AccountEmailChange if given.is_some() => json!({ "new_value": value }),
        _ => {
            let kind_has_none = kind == EventType::AccountEmailChange;
            let text = given.filter(|_| !kind_has_none).map(|given| shortened(given, 8192));
            return assert_eq!(payload, text.as_ref().map(String::as_bytes));
        }
    };
    assert_eq!(payload.and_then(read), Some(wanted), "{payload:?}");
}

/// As much of a text as fits whole characters, with what is none, and NUL, replaced.
fn shortened(value: &[u8], most: usize) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(value).chars() {
        let c = if c == '\0' { '\u{fffd}' } else { c };
        if text.len() + c.len_utf8() > most {
            break;
        }
        text.push(c);
    }
    text
}

/// Any parameters with any values.
pub(crate) fn values(u: &mut Unstructured<'_>) -> Result<Values> {
    let mut values = Vec::new();
    for param in Param::ALL {
        if u.ratio(1, 3)? {
            let repeat = if u.ratio(1, 8)? { 200 } else { 1 };
            values.push((param, text(u, PIECES, 6)?.repeat(repeat)));
        }
    }
    values
        .retain(|(param, v)| param.over_limit() != OverLimit::Counted || v.len() <= param.limit());
    Ok(values)
}

/// A request with these values and anything else.
pub(crate) fn capture<'a>(u: &mut Unstructured<'_>, values: &'a Values) -> Result<Capture<'a>> {
    let mut capture = Capture::new(u.arbitrary()?);
    capture.kind = *u.choose(&EventType::ALL)?;
    capture.status = u.arbitrary()?;
    capture.ip = u.arbitrary()?;
    capture.targets = u.arbitrary()?;
    for (param, value) in values {
        capture.set(*param, value).expect("no value that is refused");
    }
    Ok(capture)
}

/// The form as PHP decodes it.
///
/// # Panics
/// It is no form of Tirreno's parameters.
pub(crate) fn pairs(form: &str) -> Values {
    form.split('&')
        .map(|pair| {
            let (name, value) = pair.split_once('=').expect("a name and a value");
            assert!(pair.bytes().all(|b| b.is_ascii_graphic()), "{form}");
            let param = Param::from_name(&decode_plus(name.as_bytes())).expect("a parameter");
            (param, decode_plus(value.as_bytes()))
        })
        .collect()
}

fn decode_plus(text: &[u8]) -> Vec<u8> {
    let spaces = text.iter().map(|b| if *b == b'+' { b' ' } else { *b });
    decode(&spaces.collect::<Vec<_>>())
}

/// Whether Tirreno stores a value as it is.
pub(crate) fn is_fit(param: Param, value: &[u8]) {
    assert!(value.len() <= param.limit(), "{param:?} {value:?}");
    assert!(!value.contains(&0), "{param:?} {value:?}");
    assert!(str::from_utf8(value).is_ok(), "{param:?} {value:?}");
    if param == Param::HttpReferer {
        assert!(str::from_utf8(&decode_plus(value)).is_ok(), "{value:?}");
    }
}
