//! The filters: they give a request's body and its answer to [`Readers`], as the bytes pass.
//!
//! The filters of the answer stand right behind the copy filter, as `HTTP_AUX_FILTER` in `config` and
//! `ngx_module_order` say: buffers in files have been read where a rule asks for the answer, headers say
//! what the client is told (304), and neither nginx's own compression nor what it adds to an answer has
//! come yet. Only the main request is looked at.

use core::slice;

use nginx_sys::{
    NGX_HTTP_PARTIAL_CONTENT, NGX_HTTP_SWITCHING_PROTOCOLS, ngx_buf_t, ngx_chain_t,
    ngx_http_output_body_filter_pt, ngx_http_output_header_filter_pt,
    ngx_http_request_body_filter_pt, ngx_http_request_t, ngx_http_top_body_filter,
    ngx_http_top_header_filter, ngx_http_top_request_body_filter, ngx_int_t,
};
use ngx::core::Status;
use tirreno_pipeline::capture::extract::{AnswerReader, BodyReader, Encoding, Head, Reads, Room};

use crate::conf::rule::RuleSet;
use crate::readers::Readers;
use crate::request::Request;
use crate::{capture, guarded, identity, layout, response};

static mut NEXT_HEADER_FILTER: ngx_http_output_header_filter_pt = None;
static mut NEXT_BODY_FILTER: ngx_http_output_body_filter_pt = None;
static mut NEXT_REQUEST_BODY_FILTER: ngx_http_request_body_filter_pt = None;

/// Puts the filters into nginx's chains.
pub(crate) fn install() {
    // SAFETY: nginx reads the configuration in one thread.
    unsafe {
        NEXT_HEADER_FILTER = ngx_http_top_header_filter;
        ngx_http_top_header_filter = Some(header_filter);
        NEXT_BODY_FILTER = ngx_http_top_body_filter;
        ngx_http_top_body_filter = Some(body_filter);
        NEXT_REQUEST_BODY_FILTER = ngx_http_top_request_body_filter;
        ngx_http_top_request_body_filter = Some(request_body_filter);
    }
}

unsafe extern "C" fn request_body_filter(
    r: *mut ngx_http_request_t,
    chain: *mut ngx_chain_t,
) -> ngx_int_t {
    // SAFETY: nginx passes a request and a part of its body; this is its event loop.
    unsafe {
        guarded((), || read_body(r, chain));
        match NEXT_REQUEST_BODY_FILTER {
            Some(next) => next(r, chain),
            None => Status::NGX_OK.into(),
        }
    }
}

unsafe extern "C" fn header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request whose answer begins; this is its event loop.
    unsafe {
        guarded((), || begin_answer(r));
        guarded((), || identity::begin_answer(Request::new(r)));
        guarded((), || capture_websocket(r));
        match NEXT_HEADER_FILTER {
            Some(next) => next(r),
            None => Status::NGX_OK.into(),
        }
    }
}

unsafe extern "C" fn body_filter(r: *mut ngx_http_request_t, chain: *mut ngx_chain_t) -> ngx_int_t {
    // SAFETY: nginx passes a request and a part of its answer; this is its event loop.
    unsafe {
        guarded((), || read_answer(r, chain));
        match NEXT_BODY_FILTER {
            Some(next) => next(r, chain),
            None => Status::NGX_OK.into(),
        }
    }
}

/// # Safety
/// `r` is a request that nginx is processing, `chain` is null or a part of its body.
unsafe fn read_body(r: *mut ngx_http_request_t, chain: *const ngx_chain_t) {
    // SAFETY: the caller's promise; nothing else refers to the readers meanwhile.
    unsafe {
        if (*r).main != r {
            return;
        }
        let request = Request::new(r);
        let bodies = match Readers::of_mut(request) {
            Some(Readers { bodies: Some(bodies), .. }) => bodies,
            known => {
                let may_read = |rules: &RuleSet, method: &[u8]| rules.may_read_of(method);
                let Some(reads) = wanted(r, may_read, Reads::wants_body) else { return };
                let Some(readers) = known.or_else(|| Readers::attach(request)) else { return };
                let new = body_readers(request, &reads, &readers.room);
                readers.bodies.insert(new)
            }
        };
        for buf in bufs(chain) {
            for body in &mut *bodies {
                match content(buf) {
                    Some(part) => body.push(part),
                    None => body.give_up(),
                }
                if buf.last_buf() == 1 {
                    body.finish();
                }
            }
        }
    }
}

fn body_readers(request: Request<'_>, reads: &Reads, room: &Room) -> Vec<BodyReader> {
    let is_type = |(key, _): &(&[u8], _)| key.eq_ignore_ascii_case(b"content-type");
    let content_types: Vec<_> = request.headers().filter(is_type).map(|(_, value)| value).collect();
    let head = Head {
        method: request.method(),
        content_types: &content_types,
        length: request.content_length(),
    };
    reads.bodies.iter().map(|wanted| BodyReader::new(wanted, &head, room)).collect()
}

/// Captures a WebSocket when it opens: its log phase comes when it closes, maybe days later.
///
/// # Safety
/// `r` is a request that nginx is processing, and that has an answer.
unsafe fn capture_websocket(r: *mut ngx_http_request_t) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*r).headers_out.status == NGX_HTTP_SWITCHING_PROTOCOLS as usize {
            capture::capture(r);
        }
    }
}

/// # Safety
/// `r` is a request that nginx is processing, and that has an answer.
unsafe fn begin_answer(r: *mut ngx_http_request_t) {
    // SAFETY: the caller's promise; nothing else refers to the readers meanwhile.
    unsafe {
        if (*r).main != r {
            return;
        }
        // A response without a body will not be read.
        let may_read = |rules: &RuleSet, _: &[u8]| rules.may_read();
        let reads =
            wanted(r, may_read, Reads::wants_answer).filter(|_| !layout::is_header_only(&*r));
        let Some(reads) = reads else { return };
        let request = Request::new(r);
        let readers = Readers::of_mut(request).or_else(|| Readers::attach(request));
        let Some(readers) = readers else { return };
        let encoding = response::sent_header(r, b"content-encoding").unwrap_or_default();
        readers.answer = Some(AnswerReader::new(&reads, Encoding::parse(encoding), &readers.room));
        layout::need_in_memory(&mut *r);
    }
}

/// # Safety
/// `r` is a request that nginx is processing, `chain` is null or a part of its answer.
unsafe fn read_answer(r: *mut ngx_http_request_t, chain: *const ngx_chain_t) {
    // SAFETY: the caller's promise; nothing else refers to the readers meanwhile.
    unsafe {
        if (*r).main != r || chain.is_null() {
            return;
        }
        let request = Request::new(r);
        let readers = Readers::of_mut(request);
        let Some(answer) = readers.and_then(|readers| readers.answer.as_mut()) else { return };
        // The range filter has set this status after this module's header filter ran.
        if (*r).headers_out.status == NGX_HTTP_PARTIAL_CONTENT as usize {
            answer.give_up();
        }
        for buf in bufs(chain) {
            match content(buf) {
                Some(part) => answer.push(part),
                None => answer.give_up(),
            }
            if buf.last_buf() == 1 {
                answer.finish();
                // The session's user is learned before the client has the whole answer.
                identity::end_answer(request);
                return;
            }
        }
    }
}

/// What the location's rules want to read of this request's body or answer, by `asked`; `may` tells cheaply
/// whether they want anything.
///
/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn wanted(
    r: *mut ngx_http_request_t,
    may: fn(&RuleSet, &[u8]) -> bool,
    asked: fn(&Reads) -> bool,
) -> Option<Reads> {
    // SAFETY: the caller's promise; this is the event loop.
    let request = unsafe { Request::new(r) };
    let location = request.location()?;
    if location.enabled().is_none_or(|enabled| enabled.is_constant_off()) {
        return None;
    }
    let method = request.method();
    let rules = location.rules().filter(|rules| may(rules, method))?;
    let mut path = Vec::new();
    let path = request.path_for_rules(location, &mut path)?;
    rules.reads(method, path).filter(asked)
}

/// The buffers of a chain.
///
/// # Safety
/// `chain` is null or a chain of valid buffers that lives for `'c`.
unsafe fn bufs<'c>(mut chain: *const ngx_chain_t) -> impl Iterator<Item = &'c ngx_buf_t> {
    core::iter::from_fn(move || {
        // SAFETY: the caller's promise.
        unsafe {
            let link = chain.as_ref()?;
            chain = link.next;
            link.buf.as_ref()
        }
    })
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
