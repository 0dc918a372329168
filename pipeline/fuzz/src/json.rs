//! What is read of JSON is what any reader finds there, in chunks of any size.

use arbitrary::{Result, Unstructured};
use serde_json::Value;
use tirreno_pipeline::capture::extract::{
    BUDGET, BodyFormat, BodyReader, Field, Found, Head, Room, Wanted,
};

use crate::text;

const SECRET: &str = "5ecr3t";
const FIELDS: &[&str] = &["login_id", "user.login", "ids[]", "users[].id", "a.b.c"];
const NAMES: &[&str] =
    &["login_id", "Login_ID", "user", "login", "ids", "users", "id", "a", "b", "c", "password", ""];
const TEXTS: &[&str] = &["ann", "", " ann ", "é\u{1f600}", "a+b&c=d", "\"\\\n\0", "5", "\u{212a}"];
const OTHERS: &[&str] = &["7", "-1.5e3", "true", "null", "[]", "{}", "[[],{}]"];
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\"login_id\"",
    "\"user\":{",
    "\"ids\":[",
    "\"ann\"",
    "\\",
    "\\u00e9",
    "\\ud800",
    "\\udc00",
    "null",
    "1e5",
    " ",
    "-",
    "0",
    "é",
    "\u{feff}",
];

/// What is read, in chunks that the fuzzer chooses.
pub(crate) fn read(
    u: &mut Unstructured<'_>,
    wanted: &Wanted,
    head: &Head<'_>,
    body: &[u8],
) -> Result<Vec<Option<Option<String>>>> {
    let room = Room::new(&BUDGET);
    let mut reader = BodyReader::new(wanted, head, &room);
    let mut rest = body;
    while !rest.is_empty() {
        let len = u.int_in_range(1..=rest.len().min(9)).unwrap_or(1);
        let (chunk, after) = rest.split_at(len);
        reader.push(chunk);
        rest = after;
    }
    reader.finish();
    assert!(reader.values().is_read());
    let found = |field: &Field| match reader.values().name(field.as_str()) {
        Found::Value(value) => Some(Some(value.to_owned())),
        Found::Absent => Some(None),
        Found::Unreadable => None,
        Found::Unread => panic!("{body:?}"),
    };
    Ok(wanted.fields().iter().map(found).collect())
}

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let fields: Vec<_> =
        FIELDS.iter().map(|field| Field::parse(field, BodyFormat::Json).expect("field")).collect();
    let wanted = Wanted::new(BodyFormat::Json, &fields);
    let head = Head { method: b"POST", content_types: &[], length: None };
    if u.arbitrary()? {
        let body = text(u, PIECES, 24)?;
        let found = read(u, &wanted, &head, &body)?;
        if found.iter().any(|found| matches!(found, Some(Some(_)))) {
            let value = serde_json::Deserializer::from_slice(&body).into_iter::<Value>().next();
            compare(&found, &value.expect("a value").expect("JSON"), &body);
        }
        return Ok(());
    }
    let mut body = String::new();
    object(u, 3, &mut body)?;
    if u.arbitrary()? {
        body += " }trailing";
    }
    let value = serde_json::Deserializer::from_str(&body).into_iter::<Value>().next();
    let found = read(u, &wanted, &head, body.as_bytes())?;
    compare(&found, &value.expect("a value").expect("JSON"), body.as_bytes());
    Ok(())
}

/// Where a value was found, it is there, and where none was, there is none.
fn compare(found: &[Option<Option<String>>], value: &Value, body: &[u8]) {
    for (field, found) in FIELDS.iter().zip(found) {
        let Some(found) = found else { continue };
        let body = String::from_utf8_lossy(body);
        let steps: Vec<&str> = field.split('.').collect();
        assert_eq!(*found, first(value, &steps), "{field} {body}");
        assert!(found.as_ref().is_none_or(|found| !found.contains(SECRET)), "{body}");
    }
}

/// The text at the end of the steps: of lists, in the first element that has one.
fn first(value: &Value, steps: &[&str]) -> Option<String> {
    let Some((step, rest)) = steps.split_first() else {
        return value.as_str().map(str::to_owned);
    };
    let name = step.trim_end_matches("[]");
    let value = value.as_object()?.get(name)?;
    match step.len() - name.len() {
        0 => first(value, rest),
        _ => value.as_array()?.iter().find_map(|value| match value {
            Value::Number(_) | Value::Bool(_) if rest.is_empty() => Some(value.to_string()),
            value => first(value, rest),
        }),
    }
}

/// How somebody may write an object.
fn object(u: &mut Unstructured<'_>, depth: u32, out: &mut String) -> Result<()> {
    out.push('{');
    for i in 0..u.int_in_range(0..=4)? {
        if i > 0 {
            out.push(',');
        }
        let name = *u.choose(NAMES)?;
        quoted(u, name, out)?;
        *out += *u.choose(&[":", " : ", "\n:\t"])?;
        if name == "password" {
            quoted(u, SECRET, out)?;
        } else {
            value(u, depth, out)?;
        }
    }
    out.push('}');
    Ok(())
}

fn value(u: &mut Unstructured<'_>, depth: u32, out: &mut String) -> Result<()> {
    match u.int_in_range(0..=5)? {
        0 | 1 if depth > 0 => object(u, depth - 1, out)?,
        2 if depth > 0 => {
            out.push('[');
            for i in 0..u.int_in_range(0..=3)? {
                if i > 0 {
                    out.push(',');
                }
                value(u, depth - 1, out)?;
            }
            out.push(']');
        }
        3 => *out += *u.choose(OTHERS)?,
        _ => {
            let text = *u.choose(TEXTS)?;
            quoted(u, text, out)?;
        }
    }
    Ok(())
}

/// A JSON text in which some characters are escaped that need not be.
fn quoted(u: &mut Unstructured<'_>, text: &str, out: &mut String) -> Result<()> {
    out.push('"');
    for char in text.chars() {
        let code = u32::from(char);
        if char < ' ' || matches!(char, '"' | '\\') || code < 0x80 && u.ratio(1, 6)? {
            *out += &format!("\\u{code:04x}");
        } else {
            out.push(char);
        }
    }
    out.push('"');
    Ok(())
}
