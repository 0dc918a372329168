//! What of nginx's request the bindings misplace, or have for one version only. `layout.c` tells why.

use core::ptr;

use nginx_sys::{ngx_http_request_t, ngx_table_elt_t, ngx_uint_t};

unsafe extern "C" {
    fn ngx_http_tirreno_header_only(r: *const ngx_http_request_t) -> ngx_uint_t;
    fn ngx_http_tirreno_error_page(r: *const ngx_http_request_t) -> ngx_uint_t;
    fn ngx_http_tirreno_need_in_memory(r: *mut ngx_http_request_t);
    fn ngx_http_tirreno_set_header_sent(r: *mut ngx_http_request_t);
    fn ngx_http_tirreno_cookie(
        r: *const ngx_http_request_t,
        last: *const ngx_table_elt_t,
        n: ngx_uint_t,
    ) -> *const ngx_table_elt_t;
}

/// Whether the answer is a header alone.
pub(crate) fn is_header_only(request: &ngx_http_request_t) -> bool {
    // SAFETY: reads a bit.
    unsafe { ngx_http_tirreno_header_only(request) == 1 }
}

/// Whether the answer is that of an `error_page`.
pub(crate) fn is_error_page(request: &ngx_http_request_t) -> bool {
    // SAFETY: reads a bit.
    unsafe { ngx_http_tirreno_error_page(request) == 1 }
}

/// Lets buffers in files be read before they come to the filters.
pub(crate) fn need_in_memory(request: &mut ngx_http_request_t) {
    // SAFETY: sets a bit.
    unsafe { ngx_http_tirreno_need_in_memory(request) }
}

/// Says that the answer's header is on its way.
pub(crate) fn set_header_sent(request: &mut ngx_http_request_t) {
    // SAFETY: sets a bit.
    unsafe { ngx_http_tirreno_set_header_sent(request) }
}

/// The headers `Cookie`.
pub(crate) fn cookies(request: &ngx_http_request_t) -> impl Iterator<Item = &ngx_table_elt_t> {
    let mut last = ptr::null();
    (0..).map_while(move |n| {
        // SAFETY: the header before is of this request, and what is found lives while that does.
        unsafe {
            last = ngx_http_tirreno_cookie(request, last, n);
            last.as_ref()
        }
    })
}
