//! What is written is read, and what was damaged since is refused or harmless.

use arbitrary::{Result, Unstructured};
use tirreno_pipeline::event::Param;
use tirreno_pipeline::record::{Capture, Extra, Record};
use tirreno_pipeline::tirreno::form::encode;

use crate::form::{capture, is_fit, pairs, values};
use crate::privacy::privacy;

const EXTRAS: [Extra; 5] =
    [Extra::Account, Extra::Audit, Extra::Level, Extra::Segments, Extra::Session];

/// # Panics
/// It does not hold.
/// # Errors
/// There are too few bytes.
pub fn check(u: &mut Unstructured<'_>) -> Result<()> {
    let given = values(u)?;
    let segments = crate::text(u, &["a", "b\0", "\0"], 6)?;
    let mut capture = capture(u, &given)?;
    capture.set_extra(Extra::Segments, &segments);
    let stamp = u.arbitrary()?;
    let mut bytes = vec![0; capture.record_len()];
    capture.write(stamp, &mut bytes);
    let record = Record::parse(&bytes).expect("what was written");
    assert_eq!((record.stamp(), record.bytes()), (stamp, &*bytes));
    assert_eq!(record.time_ms(), capture.time_ms);
    assert_eq!((record.status(), record.kind()), (capture.status, capture.kind));
    assert_eq!(
        (record.targets(), record.trace().as_bytes()),
        (capture.targets, &capture.trace[..])
    );
    assert_eq!(record.ip(), capture.ip.map(|ip| ip.to_canonical()));
    for (param, value) in &given {
        let read = record.get(*param).unwrap_or_default();
        assert!(value.starts_with(read), "{param:?}");
        assert!(value.len() > param.limit() || read == value, "{param:?}");
    }
    assert_eq!(record.extra(Extra::Segments).unwrap_or_default(), segments);

    for _ in 0..u.int_in_range(1..=4)? {
        let at = u.int_in_range(0..=bytes.len() - 1)?;
        bytes[at] = u.arbitrary()?;
    }
    bytes.truncate(u.int_in_range(0..=bytes.len())?.max(bytes.len() / 2));
    match Record::parse(&bytes) {
        Some(record) => is_harmless(u, record),
        None => Ok(()),
    }
}

fn is_harmless(u: &mut Unstructured<'_>, record: Record<'_>) -> Result<()> {
    assert!(record.trace().len() <= 32);
    let privacy = privacy(u)?;
    let view = privacy.view(record);
    let _ = (view.user_key(), EXTRAS.map(|extra| view.extra(extra)));
    for (param, value) in pairs(&encode(&view)) {
        // Those are not cut where they are read.
        if !matches!(param, Param::Payload | Param::FieldHistory) {
            is_fit(param, &value);
        }
    }
    // Written once more it is the same.
    let mut copy = Capture::new(record.time_ms());
    (copy.targets, copy.status, copy.kind) = (record.targets(), record.status(), record.kind());
    copy.ip = record.ip();
    let fits = |param| record.get(param).is_none_or(|value| value.len() <= param.limit());
    for param in Param::ALL.into_iter().filter(|param| fits(*param)) {
        copy.set(param, record.get(param).unwrap_or_default()).expect("no value that is refused");
    }
    for extra in EXTRAS {
        copy.set_extra(extra, record.extra(extra).unwrap_or_default());
    }
    let mut bytes = vec![0; copy.record_len()];
    copy.write(record.stamp(), &mut bytes);
    let copy = Record::parse(&bytes).expect("what was written");
    assert_eq!(
        (copy.stamp(), copy.time_ms(), copy.ip()),
        (record.stamp(), record.time_ms(), record.ip())
    );
    for param in Param::ALL.into_iter().filter(|param| fits(*param)) {
        assert_eq!(copy.get(param).unwrap_or_default(), record.get(param).unwrap_or_default());
    }
    Ok(())
}
