//! Keys that a block names: the API key, and the keys of hashes. No message repeats one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::file::ConfigFile;

/// The key `what` in the file `path`, which the directive `name` names. Who else can read the file is warned of.
///
/// # Errors
/// The file cannot be read, or holds no key.
pub(crate) fn read(
    file: &mut dyn ConfigFile,
    path: &[u8],
    name: &str,
    what: &str,
) -> Result<String, String> {
    let (path, key) = file.read_file(path).map_err(|error| hide_key(file, path, name, error))?;
    if is_world_readable(&path) {
        let path = path.display();
        file.warn(&format!(
            "\"{path}\" holds {what} and everyone can read it, run \"chmod 600 {path}\""
        ));
    }
    check(&String::from_utf8_lossy(&key), name, what).map(str::to_owned)
}

/// A key without the end of its line.
///
/// # Errors
/// It is none.
pub(crate) fn check<'k>(key: &'k str, name: &str, what: &str) -> Result<&'k str, String> {
    let key = key.trim_ascii_end();
    if key.is_empty() {
        return Err(format!("\"{name}\" is empty, it must hold {what}"));
    }
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "\"{name}\" must hold {what} and nothing else, in one line without spaces"
        ));
    }
    Ok(key)
}

/// Warns where everybody can read the configuration's file, which holds the key `what` itself.
pub(crate) fn warn_of_readers(file: &mut dyn ConfigFile, what: &str) {
    let path = PathBuf::from(&*file.place().file);
    if is_world_readable(&path) {
        let path = path.display();
        file.warn(&format!(
            "\"{path}\" holds {what} and everyone can read it, put the key into a file for \"api_key_file\", or \
             run \"chmod 600 {path}\""
        ));
    }
}

fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

/// A name without a file may be the key itself, written where its file's path belongs: only an
/// absolute path is repeated, and what has a dot, which no key has.
fn hide_key(file: &mut dyn ConfigFile, path: &[u8], name: &str, error: String) -> String {
    let is_path = path.starts_with(b"/") || path.contains(&b'.');
    match file.full_name(path) {
        Ok(full) if !is_path && !full.exists() => {
            let full = full.to_string_lossy();
            let directory = full.strip_suffix(&*String::from_utf8_lossy(path)).unwrap_or_default();
            format!("\"{name}\" names no file below \"{directory}\"")
        }
        _ => error,
    }
}
