//! What rules can ask about a response.

use nginx_sys::{
    NGX_HTTP_CACHE_HIT, NGX_HTTP_CACHE_REVALIDATED, NGX_HTTP_CACHE_STALE, NGX_HTTP_CACHE_UPDATING,
    ngx_cached_time, ngx_http_request_t, ngx_http_upstream_state_t, ngx_list_part_t, ngx_list_t,
    ngx_parse_http_time, ngx_table_elt_t,
};
use tirreno_pipeline::capture::cookie::{self, Name, cookie_pairs};
use tirreno_pipeline::capture::rules::CLIENT_CLOSED_REQUEST;

use crate::conf::value::bytes;
use crate::layout;

/// nginx's status for an application that does not answer in time; an application may send it, too.
const GATEWAY_TIMEOUT: u16 = 504;
/// Also nginx's status for a body that breaks off.
const BAD_REQUEST: u16 = 400;
/// Also nginx's status for a body that stops coming.
const REQUEST_TIME_OUT: u16 = 408;

/// The response's status, as nginx's `$status` has it.
pub(crate) fn status(request: &ngx_http_request_t) -> u16 {
    let status = match request.err_status {
        0 => request.headers_out.status,
        status => status,
    };
    u16::try_from(status).unwrap_or(0)
}

/// Whether the application has answered 401, or nginx itself has refused the request, even if an error page
/// changed the status.
///
/// # Safety
/// `r` is a request that nginx is processing.
pub(crate) unsafe fn is_refusal(r: *const ngx_http_request_t, status: u16) -> bool {
    // SAFETY: the caller's promise; the array holds states.
    unsafe {
        let request = &*r;
        let states = request.upstream_states.as_ref().map_or(&[][..], |states| {
            match states.elts.cast::<ngx_http_upstream_state_t>() {
                elts if elts.is_null() => &[],
                elts => core::slice::from_raw_parts(elts, states.nelts),
            }
        });
        let application = request.upstream.as_ref().map(|upstream| upstream.headers_in.status_n);
        let answered = application == Some(usize::from(status));
        let only_nginx = layout::is_error_page(request) && states.is_empty();
        status == 401
            || states.iter().any(|state| state.status == 401)
            || status >= 400 && !answered
            || only_nginx
    }
}

/// Whether the response sets the cookie `name` to a value that is neither empty nor expired. If it sets and
/// clears the cookie, the last one counts.
///
/// # Safety
/// `r` is a request that nginx is processing.
pub(crate) unsafe fn sets_cookie(r: *const ngx_http_request_t, name: &[u8]) -> bool {
    // SAFETY: the caller's promise.
    unsafe { fate_of_cookies(r, |known| known == name) == Some(true) }
}

/// Whether the response clears a cookie of that name. If it sets and clears the cookie, the last one counts.
///
/// # Safety
/// `r` is a request that nginx is processing.
pub(crate) unsafe fn clears_cookie(r: *const ngx_http_request_t, name: &Name) -> bool {
    // SAFETY: the caller's promise.
    unsafe { fate_of_cookies(r, |known| name.matches(known)) == Some(false) }
}

/// Whether the last `Set-Cookie` with a `wanted` name sets a lasting value (true) or clears it (false).
///
/// # Safety
/// `r` is a request that nginx is processing.
unsafe fn fate_of_cookies(
    r: *const ngx_http_request_t,
    wanted: impl Fn(&[u8]) -> bool,
) -> Option<bool> {
    // SAFETY: the caller's promise; nginx has set its time.
    unsafe {
        let now = (*ngx_cached_time).sec;
        let expired = |date: &[u8]| {
            let mut text = [0; 40];
            let Some(text) = text.get_mut(..date.len()) else { return false };
            text.copy_from_slice(date);
            let mut time = ngx_parse_http_time(text.as_mut_ptr(), text.len());
            if time < 0 {
                // In cookies, dates may have dashes even with a year of four digits; nginx parses those with
                // spaces only.
                text.iter_mut().skip(4).filter(|b| **b == b'-').for_each(|b| *b = b' ');
                time = ngx_parse_http_time(text.as_mut_ptr(), text.len());
            }
            time >= 0 && time <= now
        };
        let is_cookie = |key: &[u8]| key.eq_ignore_ascii_case(b"set-cookie");
        let cookies = fields(r).filter(|(key, _)| is_cookie(key));
        let fates = cookies.filter_map(|(_, line)| {
            let (name, _) = cookie_pairs(line).next().filter(|(name, _)| wanted(name))?;
            cookie::sets(line, name, expired)
        });
        fates.last()
    }
}

/// Whether the application itself gave this answer, and neither nginx nor a cache.
///
/// # Safety
/// `r` is a request that nginx is processing.
pub(crate) unsafe fn is_applications(r: *const ngx_http_request_t, status: u16) -> bool {
    // SAFETY: the caller's promise.
    let upstream = unsafe { (*r).upstream.as_ref() };
    upstream.is_some_and(|upstream| {
        let is_cached = matches!(
            upstream.cache_status(),
            NGX_HTTP_CACHE_STALE
                | NGX_HTTP_CACHE_UPDATING
                | NGX_HTTP_CACHE_REVALIDATED
                | NGX_HTTP_CACHE_HIT
        );
        !is_cached && upstream.headers_in.status_n == usize::from(status)
    })
}

/// Whether the client went away, or nginx stopped waiting, before the application's header came.
///
/// # Safety
/// `r` is a request that nginx is processing.
pub(crate) unsafe fn is_hung_up(r: *const ngx_http_request_t, status: u16) -> bool {
    // SAFETY: the caller's promise.
    let (upstream, body) = unsafe { ((*r).upstream.as_ref(), (*r).request_body.as_ref()) };
    let answered = upstream.map(|upstream| upstream.headers_in.status_n == usize::from(status));
    match status {
        0 | CLIENT_CLOSED_REQUEST => true,
        GATEWAY_TIMEOUT => answered == Some(false),
        // nginx's own statuses for a client that goes away, or is silent, within the body.
        BAD_REQUEST | REQUEST_TIME_OUT => {
            answered != Some(true) && body.is_some_and(|body| body.rest > 0)
        }
        _ => false,
    }
}

/// The response's header `name`, where it is not empty.
///
/// # Safety
/// `r` is a request that nginx is processing; the text lives while it does.
pub(crate) unsafe fn header<'r>(r: *const ngx_http_request_t, name: &[u8]) -> Option<&'r [u8]> {
    // SAFETY: the caller's promise. nginx itself has these two elsewhere.
    unsafe {
        let is_it =
            |(key, value): &(&[u8], &[u8])| key.eq_ignore_ascii_case(name) && !value.is_empty();
        if let Some((_, value)) = fields(r).find(is_it) {
            return Some(value);
        }
        let own = &(*r).headers_out;
        let known = if name.eq_ignore_ascii_case(b"location") {
            own.location.as_ref().map(|location| location.value)
        } else if name.eq_ignore_ascii_case(b"content-type") {
            Some(own.content_type)
        } else {
            None
        };
        known.map(|text| bytes(text.data, text.len)).filter(|text| !text.is_empty())
    }
}

/// A header of the response to the client; headers of the application that nginx hides do not count.
///
/// # Safety
/// `r` is a request that nginx is processing; the value lives while it does.
pub(crate) unsafe fn sent_header<'r>(
    r: *const ngx_http_request_t,
    name: &[u8],
) -> Option<&'r [u8]> {
    // SAFETY: the caller's promise. A header without a hash is deleted.
    unsafe {
        let present = headers(&(*r).headers_out.headers).filter(|h| h.hash != 0);
        let mut own = present.filter(|h| bytes(h.key.data, h.key.len).eq_ignore_ascii_case(name));
        own.next().map(|h| bytes(h.value.data, h.value.len))
    }
}

/// The header fields of the application's answer, including those that nginx hides from the client, then those
/// of the response.
///
/// # Safety
/// `r` is a request that nginx is processing; the fields live while it does.
pub(crate) unsafe fn fields<'r>(
    r: *const ngx_http_request_t,
) -> impl Iterator<Item = (&'r [u8], &'r [u8])> {
    // SAFETY: the caller's promise. A header without a hash is deleted.
    unsafe {
        let upstream = (*r).upstream.as_ref().map(|upstream| &upstream.headers_in.headers);
        let lists = [upstream, Some(&(*r).headers_out.headers)].into_iter().flatten();
        let present = lists.flat_map(|list| headers(list)).filter(|h| h.hash != 0);
        present.map(|h| (bytes(h.key.data, h.key.len), bytes(h.value.data, h.value.len)))
    }
}

/// The headers in an nginx list.
///
/// # Safety
/// The list is one of headers, or zero.
pub(crate) unsafe fn headers(list: &ngx_list_t) -> impl Iterator<Item = &ngx_table_elt_t> {
    let mut part: *const ngx_list_part_t = &list.part;
    let mut next = 0;
    core::iter::from_fn(move || {
        // SAFETY: the caller's promise: each part holds that many headers.
        unsafe {
            while let Some(current) = part.as_ref() {
                if next < current.nelts && !current.elts.is_null() {
                    next += 1;
                    return Some(&*current.elts.cast::<ngx_table_elt_t>().add(next - 1));
                }
                (part, next) = (current.next, 0);
            }
            None
        }
    })
}
