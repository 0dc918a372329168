//! What is read of forms is what PHP finds there, in chunks of any size; what Rails' reader says is no more.

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::capture::extract::{BodyFormat, Field, Head, Wanted};

use crate::json::read;
use crate::{decode, text};

const FIELDS: &[&str] = &["log", "user[login]"];
const PIECES: &[&str] = &[
    "log=",
    "log",
    "user[login]=",
    "user",
    "[login]",
    "[",
    "]",
    "&",
    "&",
    "=",
    "ann",
    "bob",
    "%",
    "%00",
    "%20",
    "+",
    "%5B",
    "%5d",
    "%6c",
    "%zz",
    ";",
    " ",
    "x",
    "pwd=5ecr3t",
    "é",
];
const PARTS: &[&str] = &[
    "--X\r\nContent-Disposition: form-data; name=\"log\"\r\n\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"user[login]\"\r\n\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"f\"; filename=\"log\"\r\n\r\n",
    "ann\r\n",
    "bob\r\n",
    "\r\n",
    "\r",
    "\n",
    "--X--",
    "--X",
    "-",
    "\r\n\r\n",
    "X",
    ";",
    "name=\"log\"",
];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let format = *u.choose(&[BodyFormat::Php, BodyFormat::Rails])?;
    let fields: Vec<_> =
        FIELDS.iter().map(|field| Field::parse(field, format).expect("field")).collect();
    let wanted = Wanted::new(format, &fields);
    let is_multipart = u.ratio(1, 3)?;
    let content_type: &[u8] = match is_multipart {
        true => b"multipart/form-data; boundary=X",
        false => b"application/x-www-form-urlencoded",
    };
    let head = Head { method: b"POST", content_types: &[content_type], length: None };
    let body = text(u, if is_multipart { PARTS } else { PIECES }, 24)?;
    let found = read(u, &wanted, &head, &body)?;
    let whole = read(&mut Unstructured::new(&[]), &wanted, &head, &body)?;
    assert_eq!(found, whole, "{body:?}");
    if is_multipart {
        return Ok(());
    }
    let simple = [simple(&body, "log"), simple(&body, "user[login]")];
    for (found, simple) in found.into_iter().zip(simple) {
        let Some(found) = found else { continue };
        match simple {
            // A name that is not what it seems: only that it is not read as something else counts.
            Simple::Unclear => {}
            Simple::Value(value) => assert_eq!(found, value, "{}", String::from_utf8_lossy(&body)),
        }
    }
    Ok(())
}

enum Simple {
    Unclear,
    Value(Option<String>),
}

/// The last value of a field in a form that has no other name like it.
fn simple(body: &[u8], field: &str) -> Simple {
    let base = field.split('[').next().expect("a base");
    let mut value = None;
    for pair in body.split(|b| *b == b'&') {
        let end = pair.iter().position(|b| *b == b'=');
        let plus = |text: &[u8]| {
            decode(&text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect::<Vec<_>>())
        };
        let name = plus(&pair[..end.unwrap_or(pair.len())]);
        let text = String::from_utf8_lossy(&name);
        if text == field && end.is_some() {
            value =
                Some(String::from_utf8_lossy(&plus(&pair[end.unwrap_or(0) + 1..])).into_owned());
        } else if text.contains(base) {
            return Simple::Unclear;
        }
    }
    Simple::Value(value)
}
