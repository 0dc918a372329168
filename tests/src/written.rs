//! Files that are read while nginx writes them.

use std::fs;
use std::path::Path;

/// The whole lines of a file so far; none if there is no file yet. Who reads while another writes may see only
/// the first part of a line that crosses a page of the kernel's cache.
///
/// # Panics
/// The lines are no UTF-8.
pub fn written_lines(path: &Path) -> String {
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    String::from_utf8(bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
