//! Safe equivalents of nginx's C macros and helper functions.

use core::ffi::{CStr, c_char};
use core::{fmt, ptr};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nginx_sys::{
    NGX_ERROR, NGX_LOG_EMERG, NGX_LOG_WARN, ngx_conf_full_name, ngx_conf_t, ngx_int_t,
    ngx_parse_offset, ngx_parse_time, ngx_str_t,
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
    /// A file's path, relative to nginx's prefix.
    fn prefix_name(&mut self, name: &[u8]) -> Option<PathBuf>;
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

    fn prefix_name(&mut self, name: &[u8]) -> Option<PathBuf> {
        full_name(self, name, false).map(to_path)
    }
}

/// The full name of a file, relative to the configuration's directory or to nginx's prefix. It lives as long as
/// the configuration, and ends with NUL.
pub(crate) fn full_name(cf: &mut ngx_conf_t, name: &[u8], below_conf: bool) -> Option<ngx_str_t> {
    // SAFETY: nginx passes valid pools; the cycle's holds the result.
    unsafe {
        let mut full = ngx_str_t::from_bytes(cf.pool, &with_nul(name))?;
        full.len = name.len();
        let rc = ngx_conf_full_name(cf.cycle, &mut full, below_conf.into());
        Status(rc).is_ok().then_some(full)
    }
}

/// nginx's functions may read one byte behind a text.
fn with_nul(text: &[u8]) -> Vec<u8> {
    [text, b"\0"].concat()
}

/// The path that an nginx string names.
pub(crate) fn to_path(name: ngx_str_t) -> PathBuf {
    OsStr::from_bytes(name.as_bytes()).into()
}

/// A time as in nginx's own directives, `500ms` or `1m 30s`, in milliseconds.
pub(crate) fn parse_time_ms(text: &[u8]) -> Option<u64> {
    // SAFETY: the string is valid.
    parsed(text, |text| unsafe { ngx_parse_time(text, 0) })
}

/// A time as in nginx's own directives in seconds, `1d` or `1M 15d`, in seconds.
pub(crate) fn parse_time_s(text: &[u8]) -> Option<u64> {
    // SAFETY: the string is valid.
    parsed(text, |text| unsafe { ngx_parse_time(text, 1) })
}

/// A size as in nginx's own directives, `16m` or `1g`, in bytes.
pub(crate) fn parse_size(text: &[u8]) -> Option<usize> {
    // SAFETY: the string is valid.
    let size = parsed(text, |text| unsafe { ngx_parse_offset(text) as ngx_int_t });
    size.map(|s| s as usize)
}

fn parsed(text: &[u8], parse: impl FnOnce(*mut ngx_str_t) -> ngx_int_t) -> Option<u64> {
    let mut bytes = with_nul(text);
    let mut text = ngx_str_t { len: text.len(), data: bytes.as_mut_ptr() };
    let result = parse(ptr::addr_of_mut!(text));
    if result == NGX_ERROR as ngx_int_t { None } else { u64::try_from(result).ok() }
}
