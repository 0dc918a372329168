//! A form says what was put into it, and nothing that Tirreno would lose.

use arbitrary::{Result, Unstructured};
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
            // What is given is a value in the payload that is made of it.
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
        // An invalid address is left out, and a payload depends on the event's type.
        let depends = [Param::EventType, Param::EmailAddress, Param::Payload];
        let plain = param.over_limit() != OverLimit::LeftOut && !depends.contains(param);
        let sent = names.contains(&(*param as usize));
        assert!(!plain || sent != (given.is_empty() && *param != Param::Url), "{param:?}");
    }
    Ok(())
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
