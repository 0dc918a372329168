//! Of a body only the account comes out, and it is the one that the application reads.

use arbitrary::{Result, Unstructured};
use serde_json::Value;
use tirreno_pipeline::body::{Fields, Values};

use crate::text;

const SECRET: &str = "5ecr3t";
const FIELDS: &[&str] = &["login_id,id", "id", "id,user[login]", "login_id"];
const NAMES: &[&str] = &["login_id", "id", "user[login]", "password", "device_id", ""];
const ACCOUNTS: &[&str] =
    &["ann", "", " ", "a@b.c", " ann ", "é\u{1f600}", "a+b&c=d", "\"\\\n\0", "5"];
/// What a JSON field may hold instead of a text.
const OTHERS: &[&str] = &[
    "7",
    "-1.5",
    "true",
    "null",
    "[\"id\",{\"id\":\"no\"}]",
    "{\"login_id\":\"no\"}",
    "\"\\ud83d\\ude00\"",
];
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\"login_id\"",
    "\"id\":",
    "\"ann\"",
    "\\",
    "\\u00e9",
    "\\ud800",
    "null",
    "1e5",
    " ",
    "login_id=",
    "id=ann",
    "&",
    "=",
    "%",
    "%69d",
    "+",
    "é",
];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let names = *u.choose(FIELDS)?;
    let fields = Fields::parse(names).expect("fields");
    let account =
        |body: &[u8]| Values::read(body, &fields).first(&fields).map(|account| account.to_owned());
    match u.int_in_range(0..=2)? {
        0 => {
            let body = text(u, PIECES, 24)?;
            let found = account(&body);
            if let Ok(Value::Object(object)) = serde_json::from_slice(&body) {
                let value = |name: &str| object.get(name)?.as_str().map(str::to_owned);
                assert_eq!(found, first(names, value), "{body:?}");
            }
        }
        1 => {
            let (body, object) = json(u)?;
            let parsed: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(parsed, object, "{body}");
            let value = |name: &str| object.get(name)?.as_str().map(str::to_owned);
            let found = account(body.as_bytes());
            assert_eq!(found, first(names, value), "{body}");
            assert!(found.is_none_or(|account| !account.contains(SECRET)), "{body}");
        }
        _ => {
            let (body, pairs) = form(u)?;
            let last = |name: &str| pairs.iter().rev().find(|(n, _)| n == name);
            let value = |name: &str| last(name).map(|(_, value)| value.clone());
            let found = account(body.as_bytes());
            assert_eq!(found, first(names, value), "{body}");
            assert!(found.is_none_or(|account| !account.contains(SECRET)), "{body}");
        }
    }
    Ok(())
}

/// The first of the fields that is not blank.
fn first(names: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let values = names.split(',').filter_map(value);
    values.map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
}

fn pair(u: &mut Unstructured<'_>) -> Result<(&'static str, &'static str)> {
    let name = *u.choose(NAMES)?;
    Ok((name, if name == "password" { SECRET } else { *u.choose(ACCOUNTS)? }))
}

/// An object, and how somebody may write it.
fn json(u: &mut Unstructured<'_>) -> Result<(String, Value)> {
    let (mut body, mut object) = (String::from("{"), serde_json::Map::new());
    for i in 0..u.int_in_range(0..=6)? {
        let (name, account) = pair(u)?;
        let value = match u.int_in_range(0..=3)? {
            0 => (*u.choose(OTHERS)?).to_owned(),
            _ => quoted(u, account)?,
        };
        let comma = if i == 0 { "" } else { "," };
        let space = *u.choose(&["", " ", "\n"])?;
        body += &format!("{comma}{space}{}:{space}{value}", quoted(u, name)?);
        object.insert(name.to_owned(), serde_json::from_str(&value).expect("JSON"));
    }
    Ok((body + "}", object.into()))
}

/// A JSON text in which some characters are escaped that need not be.
fn quoted(u: &mut Unstructured<'_>, text: &str) -> Result<String> {
    let mut out = String::from("\"");
    for char in text.chars() {
        let code = u32::from(char);
        if char < ' ' || matches!(char, '"' | '\\') || code < 0x80 && u.ratio(1, 6)? {
            out += &format!("\\u{code:04x}");
        } else {
            out.push(char);
        }
    }
    Ok(out + "\"")
}

/// A form, and what it says.
fn form(u: &mut Unstructured<'_>) -> Result<(String, Vec<(String, String)>)> {
    let (mut body, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..u.int_in_range(0..=6)? {
        let (name, value) = pair(u)?;
        body.push(format!("{}={}", encoded(u, name)?, encoded(u, value)?));
        pairs.push((name.to_owned(), value.to_owned()));
    }
    let body = body.join("&");
    // That would be taken for JSON.
    assert!(!body.starts_with('{'));
    Ok((body, pairs))
}

fn encoded(u: &mut Unstructured<'_>, text: &str) -> Result<String> {
    let mut out = String::new();
    for char in text.chars() {
        if char.is_ascii_alphanumeric() && u.ratio(7, 8)? || matches!(char, '_' | '.' | '[' | ']') {
            out.push(char);
        } else if char == ' ' && u.arbitrary()? {
            out.push('+');
        } else {
            out += &char.to_string().bytes().map(|b| format!("%{b:02X}")).collect::<String>();
        }
    }
    Ok(out)
}
