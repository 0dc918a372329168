//! Compares this module with recordings in `tests/bodies` of how the applications' own parsers read bodies:
//! PHP's `$_POST`, Rack's parser, and Go's decoder for a map and for a struct. `tests/bodies.rs` repeats
//! the recording of PHP if PHP is installed.

use serde_json::Value;

use super::{BUDGET, BodyFormat, BodyReader, Field, Found, Head, Room, Wanted};

const BODIES: &str = include_str!("../../../../tests/bodies/bodies.jsonl");

/// A body's bytes: one for each character; `<TEXT*N>` repeats the text N times.
fn bytes(text: &str) -> Vec<u8> {
    let latin1 = |text: &str| text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<_>>();
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
