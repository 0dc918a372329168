//! Compares this module with recordings in `tests/bodies` of how the applications' own parsers read bodies:
//! PHP's `$_POST`, Rack's parser, Go's decoder for a map and for a struct, and WordPress's of XML-RPC.
//! `tests/bodies.rs` repeats the recordings of PHP and WordPress if they are installed.

use serde_json::Value;

use super::{BUDGET, BodyFormat, BodyReader, Field, Found, Head, Room, Wanted};

const BODIES: &str = include_str!("../../../../tests/bodies/bodies.jsonl");
const CALLS: &str = include_str!("../../../../tests/bodies/xmlrpc.jsonl");

/// One byte for each character.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

/// A body's bytes: one for each character; `<TEXT*N>` repeats the text N times.
fn bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split('<');
    let mut out = latin1(parts.next().unwrap_or_default());
    for part in parts {
        let (repeated, rest) = part.split_once('>').unwrap();
        let (text, count) = repeated.rsplit_once('*').unwrap();
        out.extend(latin1(text).repeat(count.parse().unwrap()));
        out.extend(latin1(rest));
    }
    out
}

/// What this module reads, in the form of the recordings; `None` if it is unreadable.
fn read(row: &Value, size: usize) -> Option<String> {
    let text = |name: &str| row[name].as_str().unwrap();
    let format = BodyFormat::from_name(text("format")).unwrap();
    let field = Field::parse(text("field"), format).unwrap();
    let wanted = Wanted::new(format, [&field]);
    let types = [text("type").as_bytes()];
    let content_types = if types[0].is_empty() { &[][..] } else { &types };
    let head = Head { method: b"POST", content_types, length: None };
    let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
    bytes(text("body")).chunks(size).for_each(|chunk| reader.push(chunk));
    reader.finish();
    match reader.values().name(field.as_str()) {
        Found::Value(value) => Some(format!("={value}")),
        Found::Absent => Some("Absent".to_owned()),
        Found::Unreadable => None,
        Found::Unread => panic!("{row}"),
    }
}

#[test]
fn where_applications_read_something_else_nobody_is_named() {
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in BODIES.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let ours = read(&row, usize::MAX);
        for size in [1, 5, 4096] {
            assert_eq!(read(&row, size), ours, "{size} {line}");
        }
        let recorded =
            ["php", "rack", "go", "go_struct"].into_iter().filter_map(|by| row[by].as_str());
        let theirs = |text: &str| String::from_utf8(bytes(text)).ok();
        let agrees =
            |ours: &String| recorded.clone().all(|text| theirs(text).as_ref() == Some(ours));
        let is_unreadable = row["unreadable"] == true;
        if ours.is_none() != is_unreadable || !ours.as_ref().is_none_or(agrees) {
            wrong.push(format!("{line}\n  we: {ours:?}"));
        }
        assert!(recorded.clone().next().is_some(), "{line}");
        rows += 1;
    }
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 200);
}

/// `tests/bodies/xmlrpc.jsonl` has bodies, and what WordPress reads of them, or `null` if it refuses them. Those of
/// its values that are not read here are marked: numbers that PHP writes otherwise than the body does, and what
/// stands before the name `system.multicall` or has two names with it.
#[test]
fn calls_are_read_as_wordpress_reads_them() {
    let fields = ["methodName", "params.0", "params.1", "params.2", "params.3", "calls"];
    let fields = fields.map(|field| Field::parse(field, BodyFormat::XmlRpc).unwrap());
    let wanted = Wanted::new(BodyFormat::XmlRpc, &fields);
    let head = Head { method: b"POST", content_types: &[], length: None };
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in CALLS.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let read = |size: usize| {
            let mut reader = BodyReader::new(&wanted, &head, &Room::new(&BUDGET));
            let body = row["body"].as_str().unwrap().as_bytes();
            body.chunks(size).for_each(|chunk| reader.push(chunk));
            reader.finish();
            let found = |field: &Field| match reader.values().get(field.as_str()) {
                Found::Value(value) => format!("={value}"),
                other => format!("{other:?}"),
            };
            fields.each_ref().map(found)
        };
        let ours = read(usize::MAX);
        assert_eq!(read(1), ours, "{line}");
        let is_unreadable = row["unreadable"] == true;
        for (field, ours) in fields.iter().zip(ours) {
            let theirs = row["wordpress"][field.as_str()].as_str();
            let theirs = theirs.and_then(|text| String::from_utf8(latin1(text)).ok());
            let theirs = theirs.filter(|text| text != "List" && !text.contains(char::is_control));
            let is_right = match theirs {
                Some(theirs) if is_unreadable => ours == theirs || ours == "Unreadable",
                Some(theirs) => ours == theirs,
                None => ours == "Unreadable",
            };
            if !is_right {
                wrong.push(format!("{line}\n  {}: {ours}", field.as_str()));
            }
        }
        rows += 1;
    }
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 200);
}
