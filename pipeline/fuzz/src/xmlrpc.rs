//! What is read of a call of XML-RPC is what was written into it, in chunks of any size; any other text does no
//! harm.

use arbitrary::{Result, Unstructured};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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
    ("]]&gt;", "]]>"),
    ("<!-- <string>x</string> - > -->", ""),
    ("<![CDATA[<b>&amp;]]]]>", "<b>&amp;]]"),
    ("<?x <string> > ?>", ""),
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

/// A parameter.
enum Value {
    Text(String),
    /// An array with at most one value.
    List(Option<String>),
}

impl Value {
    fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::List(_) => None,
        }
    }
}

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
    for _ in 0..u.int_in_range(0..=5)? {
        let (text, says) = words(u)?;
        let (value, found) = match u.int_in_range(0..=3)? {
            // Blanks around a value with a type, and around the name of a call, are no part of it.
            0 => {
                let says = says.trim_ascii().to_owned();
                (format!("x<string a='>'>{text}</string>"), Some(Value::Text(says)))
            }
            1 => (format!("<base64>{}</base64>", STANDARD.encode(&says)), Some(Value::Text(says))),
            // WordPress does not count a value of nothing.
            2 if says.trim_ascii().is_empty() => (text, None),
            2 => (text, Some(Value::Text(says))),
            _ => (
                format!("<array><data><value>{text}</value></data></array>"),
                Some(Value::List((!says.trim_ascii().is_empty()).then_some(says))),
            ),
        };
        body += &format!("<param><value>{value}</value></param>");
        values.extend(found);
    }
    body += "</params></methodCall>";
    let found = read(u, &wanted, &head, body.as_bytes())?;
    // The elements of an array are the parameters if there are no others.
    let params: Vec<_> = match &values[..] {
        [Value::List(element)] => element.iter().cloned().map(Some).collect(),
        values => values.iter().map(Value::text).collect(),
    };
    // Unreadable, absent, or a text.
    let param = |number: usize| match params.get(number) {
        Some(None) => None,
        Some(text) => Some(text.clone()),
        None => Some(None),
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
