//! What is read of an answer does not depend on how it comes, plain or compressed.

use std::io::Write;

use arbitrary::{Result, Unstructured};
use flate2::Compression;
use flate2::write::GzEncoder;
use tirreno_pipeline::capture::extract::{
    AnswerReader, BUDGET, BodyFormat, Encoding, Field, Reads, Room, Text, Wanted,
};

use crate::text;

const PIECES: &[&str] =
    &["{", "}", "\"id\":\"u1\"", ",", "\"x\":", "[", "]", "sorry", "so", "rry", " ", "1"];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let field = Field::parse("id", BodyFormat::Json).expect("field");
    let reads = Reads {
        bodies: Vec::new(),
        answer: Some(Wanted::new(BodyFormat::Json, [&field])),
        texts: vec![Text::new(b"sorry").expect("text")],
    };
    let body = text(u, PIECES, 24)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&body).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let mut read = |encoding: Encoding, bytes: &[u8], most: usize| {
        let mut reader = AnswerReader::new(&reads, encoding, &Room::new(&BUDGET));
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = u.int_in_range(1..=rest.len().min(most)).unwrap_or(1);
            let (chunk, after) = rest.split_at(len);
            reader.push(chunk);
            rest = after;
        }
        reader.finish();
        (format!("{:?}", reader.get("id")), reader.has(b"sorry"))
    };
    let plain = read(Encoding::Plain, &body, usize::MAX);
    assert_eq!(read(Encoding::Plain, &body, 3), plain, "{body:?}");
    assert_eq!(read(Encoding::Gzip, &gzip, 3), plain, "{body:?}");
    let found = body.windows(5).any(|part| part == b"sorry");
    assert_eq!(plain.1, Some(found), "{body:?}");
    // Any bytes under that name, and a part of what it should be, do no harm.
    let _ = read(Encoding::Gzip, &body, 3);
    let _ = read(Encoding::Gzip, &gzip[..gzip.len() / 2], 3);
    Ok(())
}
