//! What is read of a call of XML-RPC is what was written into it, in chunks of any size; any other text does no
//! harm.

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::capture::extract::{BodyFormat, Field, Head, Wanted};

use crate::json::read;
use crate::text;

const FIELDS: &[&str] = &["methodName", "params.0", "params.1", "params.3"];
/// As they are written, and what they say.
const WORDS: &[(&str, &str)] = &[
    ("ann", "ann"),
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&#x41;", "A"),
    ("&#233;", "é"),
    ("]]>", "]]>"),
    (" ", " "),
    ("\u{1f600}", "\u{1f600}"),
    ("5ecr3t", "5ecr3t"),
];
const PIECES: &[&str] = &[
    "<?xml version=\"1.0\"?>",
    "<methodCall>",
    "</methodCall>",
    "<methodName>",
    "</methodName>",
    "<params>",
    "<param>",
    "<value>",
    "</value>",
    "<string>",
    "</string>",
    "<string/>",
    "<struct><member><name>",
    "</name>",
    "<array><data>",
    "<!--",
    "<![CDATA[",
    "<",
    ">",
    "&",
    "&amp;",
    "&#0;",
    ";",
    "ann",
    " ",
];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let format = BodyFormat::XmlRpc;
    let fields: Vec<_> =
        FIELDS.iter().map(|field| Field::parse(field, format).expect("field")).collect();
    let wanted = Wanted::new(format, &fields);
    let head = Head { method: b"POST", content_types: &[], length: None };
    if u.arbitrary()? {
        let body = text(u, PIECES, 24)?;
        let found = read(u, &wanted, &head, &body)?;
        let whole = read(&mut Unstructured::new(&[]), &wanted, &head, &body)?;
        assert_eq!(found, whole, "{body:?}");
        return Ok(());
    }
    let (name, named) = words(u)?;
    let mut body = format!("<methodCall><methodName>{name}</methodName><params>");
    let mut values = Vec::new();
    // Servers differ on whether an empty value counts: with others behind it, nobody knows which is which.
    let mut first_empty = None;
    for place in 0..u.int_in_range(0..=5)? {
        let (text, says) = words(u)?;
        let (value, found) = match u.int_in_range(0..=2)? {
            // Blanks around a value with a type, and around the name of a call, are no part of it.
            0 => {
                let says = says.trim_ascii().to_owned();
                (format!("<string>{text}</string>"), Some(Some(says)))
            }
            1 if says.trim().is_empty() => {
                first_empty.get_or_insert(place);
                (text, Some(None))
            }
            1 => (text, Some(Some(says))),
            // An array is one parameter, and none that can be read.
            _ => (format!("<array><data><value>{text}</value></data></array>"), None),
        };
        body += &format!("<param><value>{value}</value></param>");
        values.push(found);
    }
    body += "</params></methodCall>";
    let found = read(u, &wanted, &head, body.as_bytes())?;
    let is_doubtful =
        first_empty.is_some_and(|place| values[place..].iter().any(|v| *v != Some(None)));
    let param = |number: usize| match first_empty {
        Some(place) if number >= place && is_doubtful => None,
        _ => values.get(number).cloned().unwrap_or(Some(None)),
    };
    let expected = [Some(Some(named.trim_ascii().to_owned())), param(0), param(1), param(3)];
    assert_eq!(found, expected, "{body}");
    Ok(())
}

/// Some words as they are written, and what they say.
fn words(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    let (mut written, mut says) = (String::new(), String::new());
    for _ in 0..u.int_in_range(0..=4)? {
        let (text, meaning) = u.choose(WORDS)?;
        written += text;
        says += meaning;
    }
    Ok((written, says))
}
