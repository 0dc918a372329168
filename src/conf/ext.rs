//! Safe equivalents of nginx's C macros and helper functions.

use core::ffi::{CStr, c_char};
use core::{fmt, ptr};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nginx_sys::{
    NGX_ERROR, NGX_LOG_EMERG, NGX_LOG_WARN, ngx_add_path, ngx_conf_full_name, ngx_conf_t,
    ngx_int_t, ngx_parse_offset, ngx_parse_time, ngx_path_t, ngx_pcalloc, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, Status};
use ngx::{ngx_conf_log_error, ngx_log_error};
use tirreno_pipeline::capture::rule::Place;

/// An error text for a directive's handler to return; nginx logs it behind the directive's name, with file and
/// line.
pub(crate) const fn conf_error(text: &'static CStr) -> *mut c_char {
    text.as_ptr().cast_mut()
}

/// `"NAME" directive is duplicate`.
pub(crate) const DUPLICATE: *mut c_char = conf_error(c"is duplicate");

/// Reads a directive's arguments, and logs errors with file and line.
pub(crate) trait ConfExt {
    /// The directive's name and its arguments.
    fn args(&self) -> &'static [ngx_str_t];
    /// Logs an error, which ends the reading of the configuration.
    fn error(&mut self, message: impl fmt::Display) -> *mut c_char;
    /// Logs an error about what stands in another place.
    fn error_at(&mut self, place: &Place, message: impl fmt::Display) -> *mut c_char;
    /// Logs a warning.
    fn warn(&mut self, message: impl fmt::Display);
    /// Logs a warning about what stands in another place.
    fn warn_at(&mut self, place: &Place, message: impl fmt::Display);
    /// Where the directive stands.
    fn place(&self) -> Place;
    /// The path, relative to the configuration's directory.
    fn full_name(&mut self, path: ngx_str_t) -> Option<PathBuf>;
    /// A file's path, relative to the configuration's directory, and what the file holds.
    fn read_file(&mut self, path: ngx_str_t) -> Result<(PathBuf, Vec<u8>), String>;
    /// The path, relative to nginx's prefix.
    fn prefix_name(&mut self, path: ngx_str_t) -> Option<PathBuf>;
    /// A directory, relative to nginx's prefix; nginx creates it and gives it to the workers' user.
    fn add_path(&mut self, path: ngx_str_t) -> Option<PathBuf>;
}

impl ConfExt for ngx_conf_t {
    fn args(&self) -> &'static [ngx_str_t] {
        // SAFETY: `args` is an array of `ngx_str_t`, from the configuration's pool.
        unsafe { self.args.as_ref().map(|args| args.as_slice()).unwrap_or_default() }
    }

    fn error(&mut self, message: impl fmt::Display) -> *mut c_char {
        ngx_conf_log_error!(NGX_LOG_EMERG, self, "{message}");
        NGX_CONF_ERROR
    }

    fn error_at(&mut self, place: &Place, message: impl fmt::Display) -> *mut c_char {
        ngx_log_error!(NGX_LOG_EMERG, self.log, "{message} in {place}");
        NGX_CONF_ERROR
    }

    fn warn(&mut self, message: impl fmt::Display) {
        ngx_conf_log_error!(NGX_LOG_WARN, self, "{message}");
    }

    fn warn_at(&mut self, place: &Place, message: impl fmt::Display) {
        ngx_log_error!(NGX_LOG_WARN, self.log, "{message} in {place}");
    }

    fn place(&self) -> Place {
        // SAFETY: there is a file while directives are read, except for `-g` parameters.
        let file = unsafe { self.conf_file.as_ref() };
        Place {
            file: file.map_or_else(String::new, |f| f.file.name.to_string()).into(),
            line: file.map_or(0, |f| f.line),
        }
    }

    fn full_name(&mut self, path: ngx_str_t) -> Option<PathBuf> {
        named(self, path, 1)
    }

    fn read_file(&mut self, path: ngx_str_t) -> Result<(PathBuf, Vec<u8>), String> {
        let path = self.full_name(path).ok_or("no memory for a path")?;
        let content = fs::read(&path)
            .map_err(|error| format!("\"{}\" cannot be read: {error}", path.display()))?;
        Ok((path, content))
    }

    fn prefix_name(&mut self, path: ngx_str_t) -> Option<PathBuf> {
        named(self, path, 0)
    }

    fn add_path(&mut self, path: ngx_str_t) -> Option<PathBuf> {
        let mut name = path;
        // As in nginx's own path directives.
        while name.len > 1 && name.as_bytes().ends_with(b"/") {
            name.len -= 1;
        }
        // SAFETY: the name is a valid string; the pools hold what is made of it. nginx reads the
        // path, zeroed but for what its own directives set too, as long as the cycle lives.
        unsafe {
            let rc = ngx_conf_full_name(self.cycle, ptr::addr_of_mut!(name), 0);
            let made = ngx_pcalloc(self.pool, size_of::<ngx_path_t>()).cast::<ngx_path_t>();
            let path = made.as_mut().filter(|_| Status(rc).is_ok())?;
            path.name = name;
            if let Some(file) = self.conf_file.as_ref() {
                path.conf_file = file.file.name.data;
                path.line = file.line;
            }
            let mut slot = made;
            let rc = ngx_add_path(self, &mut slot);
            Status(rc).is_ok().then(|| to_path(name))
        }
    }
}

fn named(cf: &mut ngx_conf_t, path: ngx_str_t, below_conf: ngx_uint_t) -> Option<PathBuf> {
    let mut path = path;
    // SAFETY: `path` is a valid string; the cycle's pool holds the result.
    let rc = unsafe { ngx_conf_full_name(cf.cycle, ptr::addr_of_mut!(path), below_conf) };
    Status(rc).is_ok().then(|| to_path(path))
}

fn to_path(name: ngx_str_t) -> PathBuf {
    OsStr::from_bytes(name.as_bytes()).into()
}

/// A time as in nginx's own directives, `500ms` or `1m 30s`, in milliseconds.
pub(crate) fn parse_time_ms(value: ngx_str_t) -> Option<u64> {
    parsed(value, |value| {
        // SAFETY: the string is valid.
        unsafe { ngx_parse_time(value, 0) }
    })
}

/// A size as in nginx's own directives, `16m` or `1g`, in bytes.
pub(crate) fn parse_size(value: ngx_str_t) -> Option<usize> {
    let size = parsed(value, |value| {
        // SAFETY: the string is valid.
        unsafe { ngx_parse_offset(value) as ngx_int_t }
    });
    size.map(|s| s as usize)
}

fn parsed(value: ngx_str_t, parse: impl FnOnce(*mut ngx_str_t) -> ngx_int_t) -> Option<u64> {
    let mut value = value;
    let result = parse(ptr::addr_of_mut!(value));
    if result == NGX_ERROR as ngx_int_t { None } else { u64::try_from(result).ok() }
}
