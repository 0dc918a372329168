//! Of a body only the account comes out, and it is the one that any application reads.

use arbitrary::{Result, Unstructured};
use serde_json::Value;
use tirreno_pipeline::capture::body::{Fields, Values};

use crate::text;

const SECRET: &str = "5ecr3t";
const FIELDS: &[&str] = &["login_id,id", "id", "id,user[login]", "login_id"];
const NAMES: &[&str] = &["login_id", "id", "user[login]", "password", "device_id", "", ALIAS];
/// A name that some applications take for `login_id`.
const ALIAS: &str = " Login.ID";
const FORM: &[u8] = b"application/x-www-form-urlencoded";
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
    let account = |content_type: &[u8], body: &[u8]| {
        Values::read(content_type, body, &fields).first(&fields).map(str::to_owned)
    };
    match u.int_in_range(0..=2)? {
        0 => {
            let body = text(u, PIECES, 24)?;
            let found = account(b"application/json", &body);
            if found.is_some() {
                let object: Value = serde_json::from_slice(&body).expect("JSON");
                let value = |name: &str| object.get(name)?.as_str().map(str::to_owned);
                assert_eq!(found, first(names, value), "{body:?}");
            }
        }
        1 => {
            let (body, object, there) = json(u)?;
            let parsed: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(parsed, object, "{body}");
            let value = |name: &str| object.get(name)?.as_str().map(str::to_owned);
            let found = account(b"", body.as_bytes());
            let expected = first(names, value).filter(|_| !is_ambiguous(names, &there));
            assert_eq!(found, expected, "{body}");
            assert!(found.is_none_or(|account| !account.contains(SECRET)), "{body}");
        }
        _ => {
            let (body, pairs) = form(u)?;
            let there: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
            let pair = |name: &str| pairs.iter().find(|(n, _)| n == name);
            let value = |name: &str| pair(name).map(|(_, value)| value.clone());
            let found = account(FORM, body.as_bytes());
            let expected = first(names, value).filter(|_| !is_ambiguous(names, &there));
            assert_eq!(found, expected, "{body}");
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

/// Whether one of the fields is there twice, or under a name that is its own only for some.
fn is_ambiguous(names: &str, there: &[&str]) -> bool {
    let count = |name: &str| there.iter().filter(|n| **n == name).count();
    let mut names = names.split(',');
    names.any(|name| count(name) > 1 || name == "login_id" && count(ALIAS) > 0)
}

fn pair(u: &mut Unstructured<'_>) -> Result<(&'static str, &'static str)> {
    let name = *u.choose(NAMES)?;
    Ok((name, if name == "password" { SECRET } else { *u.choose(ACCOUNTS)? }))
}

/// How somebody may write an object, the object, and the names in it.
fn json(u: &mut Unstructured<'_>) -> Result<(String, Value, Vec<&'static str>)> {
    let (mut body, mut object) = (String::from("{"), serde_json::Map::new());
    let mut there = Vec::new();
    for i in 0..u.int_in_range(0..=6)? {
        let (name, account) = pair(u)?;
        let value = match u.int_in_range(0..=3)? {
            0 => (*u.choose(OTHERS)?).to_owned(),
            _ => quoted(u, account)?,
        };
        let comma = if i == 0 { "" } else { "," };
        let space = *u.choose(&["", " ", "\n"])?;
        body += &format!("{comma}{space}{}:{space}{value}", quoted(u, name)?);
        there.push(name);
        object.insert(name.to_owned(), serde_json::from_str(&value).expect("JSON"));
    }
    Ok((body + "}", object.into(), there))
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
    Ok((body.join("&"), pairs))
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
