//! Values of directives that may contain variables.

use core::{mem, ptr};

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_conf_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value, ngx_http_complex_value_t,
    ngx_http_get_flushed_variable, ngx_http_get_variable_index, ngx_http_request_t, ngx_int_t,
    ngx_str_t, ngx_uint_t,
};

/// A value, as cheap to evaluate as it can be.
#[derive(Clone)]
pub(crate) enum Value {
    /// No variable.
    Constant(ngx_str_t),
    /// One variable and nothing else: read in place, without a copy.
    Variable(ngx_uint_t),
    /// Anything else.
    Complex(ngx_http_complex_value_t),
}

/// nginx has said what is wrong.
#[derive(Debug)]
pub(crate) struct CompileError;

impl Value {
    /// Reads a directive's argument.
    pub(crate) fn compile(cf: &mut ngx_conf_t, text: ngx_str_t) -> Result<Self, CompileError> {
        let mut name = text;
        if is_one_variable(text.as_bytes()) {
            // SAFETY: the text is longer than its `$`, and lives as long as the configuration.
            let index = unsafe {
                name.data = name.data.add(1);
                name.len -= 1;
                ngx_http_get_variable_index(cf, &mut name)
            };
            if index == NGX_ERROR as ngx_int_t {
                return Err(CompileError);
            }
            return Ok(Self::Variable(index as ngx_uint_t));
        }
        // SAFETY: zeros are what nginx starts from; the value and the text live as long as the
        // configuration.
        unsafe {
            let mut value = mem::zeroed::<ngx_http_complex_value_t>();
            let mut compile = mem::zeroed::<ngx_http_compile_complex_value_t>();
            compile.cf = cf;
            compile.value = &mut name;
            compile.complex_value = &mut value;
            if ngx_http_compile_complex_value(&mut compile) != NGX_OK as ngx_int_t {
                return Err(CompileError);
            }
            let constant = value.lengths.is_null();
            Ok(if constant { Self::Constant(value.value) } else { Self::Complex(value) })
        }
    }

    /// The value when no request changes it.
    pub(crate) fn constant(&self) -> Option<&[u8]> {
        match self {
            Self::Constant(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// Whether every request gives nothing.
    pub(crate) fn is_constant_empty(&self) -> bool {
        self.constant().is_some_and(<[u8]>::is_empty)
    }

    /// Whether no request switches it on.
    pub(crate) fn is_constant_off(&self) -> bool {
        self.constant().is_some_and(is_off)
    }

    /// The value for a request; empty where it has none. It is valid while the request is.
    ///
    /// # Safety
    /// `r` is a request that nginx is processing.
    pub(crate) unsafe fn evaluate<'r>(&self, r: *mut ngx_http_request_t) -> &'r [u8] {
        // SAFETY: the caller's promise. nginx's values are not changed in place.
        unsafe {
            match self {
                Self::Constant(text) => bytes(text.data, text.len),
                Self::Variable(index) => {
                    let value = ngx_http_get_flushed_variable(r, *index);
                    match value.as_ref() {
                        Some(v) if v.not_found() == 0 => bytes(v.data, v.len() as usize),
                        _ => &[],
                    }
                }
                Self::Complex(value) => {
                    let mut text = ngx_str_t { len: 0, data: ptr::null_mut() };
                    let value = ptr::from_ref(value).cast_mut();
                    if ngx_http_complex_value(r, value, &mut text) != NGX_OK as ngx_int_t {
                        return &[];
                    }
                    bytes(text.data, text.len)
                }
            }
        }
    }
}

/// What switches a directive like `tirreno` off, as in nginx's own `if=` parameters.
pub(crate) fn is_off(value: &[u8]) -> bool {
    matches!(value, b"" | b"0" | b"off")
}

fn is_one_variable(text: &[u8]) -> bool {
    let name = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    matches!(text, [b'$', first, rest @ ..]
        if name(first) && !first.is_ascii_digit() && rest.iter().all(name))
}

/// The bytes of an nginx string, which has no data when it is empty.
///
/// # Safety
/// `data` points to `len` bytes that stay as they are for `'a`, or `len` is 0.
pub(crate) unsafe fn bytes<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if len == 0 || data.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(data, len) }
}
