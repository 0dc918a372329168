//! Keys that a block names: the API key, and the keys of hashes. No message repeats one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nginx_sys::{ngx_conf_t, ngx_str_t};

use super::ext::ConfExt;

/// The key `what` in a file, which the directive `name` names. Who else can read the file is warned of.
///
/// # Errors
/// The file cannot be read, or holds no key.
pub(super) fn read(
    cf: &mut ngx_conf_t,
    path: ngx_str_t,
    name: &str,
    what: &str,
) -> Result<String, String> {
    let (path, key) = cf.read_file(path).map_err(|error| hide_key(cf, path, name, error))?;
    if is_world_readable(&path) {
        let path = path.display();
        cf.warn(format_args!(
            "\"{path}\" holds {what} and everyone can read it, run \"chmod 600 {path}\""
        ));
    }
    check(&String::from_utf8_lossy(&key), name, what).map(str::to_owned)
}

/// A key without the end of its line.
///
/// # Errors
/// It is none.
pub(super) fn check<'k>(key: &'k str, name: &str, what: &str) -> Result<&'k str, String> {
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
pub(super) fn warn_of_readers(cf: &mut ngx_conf_t, what: &str) {
    let path = PathBuf::from(&*cf.place().file);
    if is_world_readable(&path) {
        let path = path.display();
        cf.warn(format_args!(
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
fn hide_key(cf: &mut ngx_conf_t, path: ngx_str_t, name: &str, error: String) -> String {
    let is_path = path.as_bytes().starts_with(b"/") || path.as_bytes().contains(&b'.');
    match cf.full_name(path) {
        Some(full) if !is_path && !full.exists() => {
            let full = full.to_string_lossy();
            let directory = full.strip_suffix(&*path.to_string()).unwrap_or_default();
            format!("\"{name}\" names no file below \"{directory}\"")
        }
        _ => error,
    }
}
