//! nginx's complex values: texts of directives that may contain variables.

use core::{mem, ptr};

use nginx_sys::{
    NGX_ERROR, NGX_OK, ngx_conf_t, ngx_hash_key_t, ngx_http_compile_complex_value,
    ngx_http_compile_complex_value_t, ngx_http_complex_value, ngx_http_complex_value_t,
    ngx_http_get_flushed_variable, ngx_http_get_variable_index, ngx_http_request_t, ngx_int_t,
    ngx_str_t, ngx_uint_t, ngx_variable_value_t,
};
use ngx::http::{HttpModuleMainConf as _, NgxHttpCoreModule};
use tirreno_pipeline::capture::exchange::Text;
use tirreno_pipeline::capture::rule::is_off;
use tirreno_pipeline::capture::value::variables;

/// A complex value, compiled to its cheapest form.
#[derive(Clone)]
pub(crate) struct ComplexValue {
    kind: Kind,
    /// Whether one of its variables is defined by the configuration, as by a map.
    has_own_variable: bool,
}

#[derive(Clone)]
enum Kind {
    /// No variable.
    Constant(ngx_str_t),
    /// One variable and nothing else: read in place, without a copy.
    Variable(ngx_uint_t),
    /// Anything else.
    Complex(ngx_http_complex_value_t),
}

impl Text for ComplexValue {
    fn constant(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Constant(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    fn has_own_variable(&self) -> bool {
        self.has_own_variable
    }
}

/// nginx has logged what is wrong.
#[derive(Debug)]
pub(crate) struct CompileError;

impl ComplexValue {
    /// Reads a directive's argument.
    pub(crate) fn compile(cf: &mut ngx_conf_t, text: ngx_str_t) -> Result<Self, CompileError> {
        let has_own_variable = variables(text.as_bytes()).any(|name| is_defined(cf, name));
        Ok(Self { kind: Kind::compile(cf, text)?, has_own_variable })
    }

    /// Whether it is always off.
    pub(crate) fn is_constant_off(&self) -> bool {
        self.constant().is_some_and(is_off)
    }

    /// The value for a request; empty if it has none. It is valid as long as the request.
    ///
    /// # Safety
    /// `r` is a request that nginx is processing.
    pub(crate) unsafe fn evaluate<'r>(&self, r: *mut ngx_http_request_t) -> &'r [u8] {
        // SAFETY: the caller's promise. nginx's values are not changed in place.
        unsafe {
            match &self.kind {
                Kind::Constant(text) => bytes(text.data, text.len),
                Kind::Variable(index) => variable_text(ngx_http_get_flushed_variable(r, *index)),
                Kind::Complex(value) => {
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

impl Kind {
    fn compile(cf: &mut ngx_conf_t, text: ngx_str_t) -> Result<Self, CompileError> {
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
}

/// Whether the configuration defines the variable that a text begins with. nginx's own variables for headers of
/// the answer are not defined by name.
fn is_defined(cf: &mut ngx_conf_t, text: &[u8]) -> bool {
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let name = &text[..text.iter().position(|b| !is_name(b)).unwrap_or(text.len())];
    let keys = NgxHttpCoreModule::main_conf(cf).map(|core| core.variables_keys);
    // SAFETY: nginx collects the keys of variables there while it reads the configuration.
    let keys = unsafe { keys.and_then(|keys| keys.as_ref()).map(|keys| keys.keys.as_slice()) };
    let known = keys.unwrap_or_default().iter().map(|key: &ngx_hash_key_t| key.key);
    name.len() > 1 && known.into_iter().any(|key| key.as_bytes().eq_ignore_ascii_case(name))
}

fn is_one_variable(text: &[u8]) -> bool {
    let name = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    matches!(text, [b'$', first, rest @ ..]
        if name(first) && !first.is_ascii_digit() && rest.iter().all(name))
}

/// The word of a variable's value with its length and flags. bindgen's accessors read it bit by bit, which
/// would cost each request as much as copying its record.
#[derive(Clone, Copy)]
struct Packed(u32);

impl Packed {
    const LEN_BITS: u32 = 28;
    const LEN: u32 = (1 << Self::LEN_BITS) - 1;

    /// The flag at that place behind the length.
    const fn flag(place: u32) -> u32 {
        if cfg!(target_endian = "little") {
            1 << (Self::LEN_BITS + place)
        } else {
            1 << (3 - place)
        }
    }

    const VALID: u32 = Self::flag(0);
    const NOT_FOUND: u32 = Self::flag(2);

    fn of(value: &ngx_variable_value_t) -> Self {
        // SAFETY: the structure begins with this word, which is initialized.
        Self(unsafe { ptr::from_ref(value).cast::<u32>().read() })
    }

    /// Of a valid text of that length.
    fn valid(len: usize) -> Self {
        let len = len as u32 & Self::LEN;
        let len = if cfg!(target_endian = "little") { len } else { len << 4 };
        Self(len | Self::VALID)
    }

    fn len(self) -> usize {
        let len = if cfg!(target_endian = "little") { self.0 } else { self.0 >> 4 };
        (len & Self::LEN) as usize
    }
}

/// The text of a variable; empty where it has none.
///
/// # Safety
/// `value` is null, or a request's variable; the text lives while the request does.
pub(crate) unsafe fn variable_text<'r>(value: *const ngx_variable_value_t) -> &'r [u8] {
    // SAFETY: the caller's promise.
    unsafe {
        match value.as_ref() {
            Some(value) => match Packed::of(value) {
                Packed(word) if word & (Packed::VALID | Packed::NOT_FOUND) != Packed::VALID => &[],
                packed => bytes(value.data, packed.len()),
            },
            None => &[],
        }
    }
}

/// Makes `text` the value of a variable.
///
/// # Safety
/// The text lives while the variable's request does.
pub(crate) unsafe fn set_variable(value: &mut ngx_variable_value_t, data: *mut u8, len: usize) {
    value.data = data;
    // SAFETY: the structure begins with this word.
    unsafe { ptr::from_mut(value).cast::<u32>().write(Packed::valid(len).0) };
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
