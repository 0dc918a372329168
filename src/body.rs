//! The request body filter: reads the account that a login names, where a rule asks for it.

use core::ffi::c_void;
use core::{ptr, slice};

use nginx_sys::{
    ngx_buf_t, ngx_chain_t, ngx_http_headers_in_t, ngx_http_request_body_filter_pt,
    ngx_http_request_t, ngx_http_top_request_body_filter, ngx_int_t, ngx_pool_cleanup_add,
};
use ngx::core::Status;
use ngx::http::HttpModuleLocationConf;
use tirreno_pipeline::capture::body::{Fields, MAX_BODY, Values};
use tirreno_pipeline::capture::extract::Found;
use zeroize::Zeroizing;

use crate::conf::value::bytes;
use crate::request::Request;
use crate::{TirrenoModule, capture, guarded, response};

/// The next filter of nginx's chain, set while the configuration is read.
static mut NEXT_BODY_FILTER: ngx_http_request_body_filter_pt = None;

/// What is read of a request's body. It belongs to the request's pool, and not to the module's place in
/// the request: that is emptied by an internal redirect, as to an error page.
struct Body {
    /// What came so far, where the body comes in pieces. Its memory is never moved, so that nothing of
    /// it is left behind.
    pieces: Zeroizing<Vec<u8>>,
    state: State,
}

enum State {
    /// Parts of it come, and these fields are wanted.
    Reading(Fields),
    Read(Values),
    /// Nothing of it is wanted, or it cannot be read. Noted with the first part: what came before a
    /// request changed its location is not there any more.
    Unread,
}

/// Puts the filter into nginx's chain.
pub(crate) fn install() {
    // SAFETY: nginx reads the configuration in one thread.
    unsafe {
        NEXT_BODY_FILTER = ngx_http_top_request_body_filter;
        ngx_http_top_request_body_filter = Some(filter);
    }
}

/// A field of the request's body.
///
/// # Safety
/// `r` is a request that nginx is processing; the text lives while it does.
pub(crate) unsafe fn field<'r>(r: *const ngx_http_request_t, field: &str) -> Found<'r> {
    // SAFETY: the caller's promise.
    unsafe {
        match find(r).map(|body| &body.state) {
            Some(State::Read(values)) => match values.get(field) {
                Some(value) => Found::Value(value),
                None => Found::Unreadable,
            },
            Some(State::Reading(..)) => Found::Unread,
            Some(State::Unread) => Found::Unreadable,
            None if (*r).headers_in.content_length_n > 0 => Found::Unread,
            None => Found::Absent,
        }
    }
}

unsafe extern "C" fn filter(r: *mut ngx_http_request_t, chain: *mut ngx_chain_t) -> ngx_int_t {
    // SAFETY: nginx passes a request and a part of its body; this is its event loop.
    unsafe {
        guarded((), || read(r, chain));
        match NEXT_BODY_FILTER {
            Some(next) => next(r, chain),
            None => Status::NGX_OK.into(),
        }
    }
}

/// # Safety
/// `r` is a request that nginx is processing, `chain` is null or a part of its body.
unsafe fn read(r: *mut ngx_http_request_t, chain: *const ngx_chain_t) {
    // SAFETY: the caller's promise; nothing else refers to the body's state meanwhile.
    unsafe {
        if (*r).main != r {
            return;
        }
        let body = match find(r) {
            Some(body) => Some(body),
            None => wanted(&*r).and_then(|fields| attach(r, fields)),
        };
        if let Some(body) = body {
            body.add(chain, &(*r).headers_in);
        }
    }
}

/// The fields that the rules for the request ask for; nothing where the location has no such rules.
///
/// # Safety
/// The request's strings live while it does.
unsafe fn wanted(request: &ngx_http_request_t) -> Option<Option<Fields>> {
    let location = TirrenoModule::location_conf(request)?;
    if location.enabled().is_none_or(|enabled| enabled.is_constant_off())
        || request.headers_in.content_length_n > MAX_BODY as i64
    {
        return None;
    }
    let rules = location.rules()?;
    // SAFETY: the caller's promise; this is the event loop.
    let view = unsafe { Request::new(ptr::from_ref(request).cast_mut()) };
    let mut scratch = Vec::new();
    let path = capture::path_for_rules(view.target(), location.event_prefix(), &mut scratch)?;
    let reads = rules.reads(view.method(), path)?;
    let fields: Vec<_> = reads.bodies.first()?.fields().iter().map(|f| f.as_str()).collect();
    Some(Some(Fields::of(&fields)))
}

/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn find<'r>(r: *const ngx_http_request_t) -> Option<&'r mut Body> {
    // SAFETY: the caller's promise; what `detach` frees was made by `attach`.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry.handler.is_some_and(|handler| ptr::fn_addr_eq(handler, DETACH)) {
                return entry.data.cast::<Body>().as_mut();
            }
            cleanup = entry.next;
        }
    }
    None
}

/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn attach<'r>(r: *mut ngx_http_request_t, fields: Option<Fields>) -> Option<&'r mut Body> {
    // SAFETY: the caller's promise; the pool calls `detach` at its end.
    unsafe {
        let cleanup = ngx_pool_cleanup_add((*r).pool, 0).as_mut()?;
        let state = fields.map_or(State::Unread, State::Reading);
        let body = Body { pieces: Zeroizing::default(), state };
        cleanup.data = Box::into_raw(Box::new(body)).cast();
        cleanup.handler = Some(DETACH);
        cleanup.data.cast::<Body>().as_mut()
    }
}

const DETACH: unsafe extern "C" fn(*mut c_void) = detach;

unsafe extern "C" fn detach(body: *mut c_void) {
    // SAFETY: the pool passes what `attach` has put there, once.
    guarded((), || drop(unsafe { Box::from_raw(body.cast::<Body>()) }));
}

impl Body {
    /// # Safety
    /// `chain` is null or a part of the body, the headers are the request's.
    unsafe fn add(&mut self, mut chain: *const ngx_chain_t, headers: &ngx_http_headers_in_t) {
        // SAFETY: the caller's promise.
        unsafe {
            while let Some(link) = chain.as_ref() {
                let Some(buf) = link.buf.as_ref() else { return };
                self.add_part(content(buf), buf.last_buf() == 1, headers);
                chain = link.next;
            }
        }
    }

    /// Reads the body once it is whole: where it comes in one part, from where nginx has it.
    ///
    /// # Safety
    /// The headers are the request's.
    unsafe fn add_part(
        &mut self,
        part: Option<&[u8]>,
        last: bool,
        headers: &ngx_http_headers_in_t,
    ) {
        let State::Reading(fields) = &self.state else { return };
        let whole = match part {
            Some(part) if last && self.pieces.is_empty() => Some(part),
            Some(part) if self.pieces.len() + part.len() <= MAX_BODY => {
                if self.pieces.capacity() == 0 {
                    self.pieces.reserve_exact(MAX_BODY);
                }
                self.pieces.extend_from_slice(part);
                if !last {
                    return;
                }
                Some(&self.pieces[..])
            }
            _ => None,
        };
        // SAFETY: the caller's promise.
        let (content_type, encoded) = unsafe {
            let mut names =
                response::headers(&headers.headers).map(|h| bytes(h.key.data, h.key.len));
            let encoded = names.any(|name| name.eq_ignore_ascii_case(b"content-encoding"));
            let content_type = headers.content_type.as_ref();
            let content_type = content_type.map_or(&[][..], |h| bytes(h.value.data, h.value.len));
            (content_type, encoded)
        };
        let whole = whole.filter(|whole| whole.len() <= MAX_BODY && !encoded);
        let values = whole.map(|whole| Values::read(content_type, whole, fields));
        self.state = values.map_or(State::Unread, State::Read);
        self.pieces = Zeroizing::default();
    }
}

/// A buffer's bytes; nothing where they are in a file.
///
/// # Safety
/// The buffer is valid.
unsafe fn content(buf: &ngx_buf_t) -> Option<&[u8]> {
    if buf.temporary() == 0 && buf.memory() == 0 && buf.mmap() == 0 {
        return (buf.in_file() == 0).then_some(&[]);
    }
    // SAFETY: nginx's buffers have their bytes between these two.
    unsafe {
        let len = usize::try_from(buf.last.offset_from(buf.pos)).ok()?;
        Some(if len == 0 { &[] } else { slice::from_raw_parts(buf.pos, len) })
    }
}
