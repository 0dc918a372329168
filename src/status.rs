//! The handler of `tirreno_status`: the counters as JSON, as Prometheus text or as a page. It only reads shared
//! memory; `tirreno_pipeline::status` does the formatting.

use core::ptr;

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED,
    NGX_HTTP_NOT_FOUND, NGX_HTTP_OK, NGX_OK, ngx_buf_t, ngx_chain_t, ngx_conf_t,
    ngx_create_temp_buf, ngx_http_arg, ngx_http_discard_request_body, ngx_http_output_filter,
    ngx_http_request_t, ngx_http_send_header, ngx_int_t, ngx_str_t,
};
use ngx::http::{HttpModuleLocationConf as _, HttpModuleMainConf, NgxHttpCoreModule, Request};
use tirreno_pipeline::status::{self, Format, SECURITY_POLICY, Snapshot, Target};

use crate::conf::MainConf;
use crate::{TirrenoModule, guarded, layout};

type Handler = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// Answers a request with the status.
pub(crate) unsafe extern "C" fn handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    guarded(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, || {
        // SAFETY: nginx passes a request.
        let request = unsafe { &mut *r };
        if request.method as u32 & (NGX_HTTP_GET | NGX_HTTP_HEAD) == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        // SAFETY: as above.
        let rc = unsafe { ngx_http_discard_request_body(r) };
        if rc != NGX_OK as ngx_int_t {
            return rc;
        }
        let Some(main) = TirrenoModule::main_conf(request) else {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        };
        let snapshot = snapshot(main);
        let Some(format) = format(request) else {
            return NGX_HTTP_NOT_FOUND as ngx_int_t;
        };
        let body = match format {
            Format::Json => status::json(&snapshot),
            Format::Prometheus => status::prometheus(&snapshot),
            Format::Html => status::page(&snapshot),
        };
        // SAFETY: as above.
        unsafe { send(r, format, &body) }
    })
}

/// Whether the location that is being merged answers with the status: a directive behind `tirreno_status` may have
/// put another handler into its place.
pub(crate) fn is_handler(cf: &ngx_conf_t) -> bool {
    let own: Handler = handler;
    NgxHttpCoreModule::location_conf(cf)
        .and_then(|core| core.handler)
        .is_some_and(|known| ptr::fn_addr_eq(known, own))
}

fn snapshot(main: &MainConf) -> Snapshot {
    let version = env!("CARGO_PKG_VERSION");
    // Without a target there is no zone.
    let Some(zone) = main.zone else {
        return Snapshot::empty(version);
    };
    let targets = main.targets.iter().map(|target| {
        let kind = target.destination.type_name();
        Target::read(zone, target.slot, &target.name, kind, target.spool.is_some())
    });
    Snapshot::read(zone, version, targets.collect())
}

/// The format that the client wants. A subrequest (SSI, `add_after_body`) has the headers of the main request,
/// so there only the argument counts.
fn format(request: &mut ngx_http_request_t) -> Option<Format> {
    let mut value = ngx_str_t::empty();
    // SAFETY: the request is nginx's; the name is not changed.
    let has_argument = unsafe {
        ngx_http_arg(request, c"format".as_ptr().cast_mut().cast(), 6, &mut value)
            == NGX_OK as ngx_int_t
    };
    let is_main = ptr::eq(request, request.main);
    // SAFETY: the request is nginx's.
    let request = unsafe { Request::from_ngx_http_request(request) };
    let headers = request.headers_in_iterator();
    let accept = headers
        .filter(|(name, _)| is_main && name.as_bytes().eq_ignore_ascii_case(b"accept"))
        .map(|(_, value)| value.as_bytes())
        .next();
    Format::wanted(has_argument.then(|| value.as_bytes()), accept.unwrap_or_default())
}

/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn send(r: *mut ngx_http_request_t, format: Format, body: &str) -> ngx_int_t {
    // SAFETY: the caller's promise; nginx owns the buffer, which has room for the body.
    unsafe {
        let buf: *mut ngx_buf_t = ngx_create_temp_buf((*r).pool, body.len());
        let Some(buf) = buf.as_mut() else {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        };
        ptr::copy_nonoverlapping(body.as_ptr(), buf.pos, body.len());
        buf.last = buf.pos.add(body.len());
        // The last buffer of a subrequest is not the last of the response.
        buf.set_last_buf(u32::from(ptr::eq(r, (*r).main)));
        buf.set_last_in_chain(1);

        let out = &mut (*r).headers_out;
        out.status = NGX_HTTP_OK as usize;
        out.content_length_n = body.len() as i64;
        let kind = format.content_type();
        out.content_type = ngx_str_t { len: kind.len(), data: kind.as_ptr().cast_mut() };
        out.content_type_len = out.content_type.len;
        out.content_type_lowcase = ptr::null_mut();
        let request = Request::from_ngx_http_request(r);
        for (name, value) in headers(format) {
            if request.add_header_out(name, value).is_none() {
                return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
            }
        }
        let rc = ngx_http_send_header(r);
        if rc != NGX_OK as ngx_int_t || layout::is_header_only(&*r) {
            return rc;
        }
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &mut chain)
    }
}

fn headers(format: Format) -> impl Iterator<Item = (&'static str, &'static str)> {
    let page = [
        ("Content-Security-Policy", SECURITY_POLICY.as_str()),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ];
    let page = page.into_iter().filter(move |_| format == Format::Html);
    [("Cache-Control", "no-store"), ("Vary", "Accept")].into_iter().chain(page)
}
