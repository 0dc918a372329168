//! The one safe view of a request and its answer, made once in each callback.

use core::marker::PhantomData;
use core::ptr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nginx_sys::{
    ngx_cached_time, ngx_http_get_indexed_variable, ngx_http_request_t, ngx_palloc, ngx_pnalloc,
    ngx_str_t, ngx_table_elt_t,
};
use ngx::http::{
    HttpModule as _, HttpModuleLocationConf as _, HttpModuleMainConf as _,
    HttpModuleServerConf as _, NgxHttpCoreModule,
};
use tirreno_pipeline::capture::path;
use tirreno_pipeline::identity::keys::{Keys, TokenHash};
use tirreno_pipeline::record::TRACE_LEN;

use crate::conf::value::{ComplexValue, bytes, set_variable, variable_text};
use crate::conf::{LocationConf, MainConf};
use crate::{TirrenoModule, layout, response, worker};

/// A request that nginx is processing, in its event loop. Its texts live while it does.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r> {
    r: *mut ngx_http_request_t,
    life: PhantomData<&'r ngx_http_request_t>,
}

impl<'r> Request<'r> {
    /// # Safety
    /// `r` is a request that nginx is processing for all of `'r`, and this is its event loop.
    pub(crate) unsafe fn new(r: *mut ngx_http_request_t) -> Self {
        Self { r, life: PhantomData }
    }

    /// Evaluating a value uses the pointer and may change the request: do not keep this reference over that.
    fn fields(&self) -> &ngx_http_request_t {
        // SAFETY: the promise of `new`.
        unsafe { &*self.r }
    }

    /// Whether it is a main request.
    pub(crate) fn is_main(&self) -> bool {
        self.fields().main == self.r
    }

    /// The configuration of the location that processes it.
    pub(crate) fn location(&self) -> Option<&'r LocationConf> {
        // SAFETY: the configuration lives while a request that uses it does.
        unsafe { TirrenoModule::location_conf(&*self.r) }
    }

    /// The `http` block's configuration.
    pub(crate) fn main_conf(&self) -> Option<&'r MainConf> {
        // SAFETY: as above.
        unsafe { TirrenoModule::main_conf(&*self.r) }
    }

    /// The module's context of the request.
    pub(crate) fn mark<N>(&self) -> Option<&'r N> {
        // SAFETY: each module has its place in the array; what is there lives while the request does.
        unsafe { (*self.fields().ctx.add(TirrenoModule::module().ctx_index)).cast::<N>().as_ref() }
    }

    /// Sets the module's context: something static, or allocated from the request's pool.
    pub(crate) fn set_mark<N>(&self, note: &'r N) {
        // SAFETY: as above; nothing is written through the pointer.
        unsafe {
            let place = self.fields().ctx.add(TirrenoModule::module().ctx_index);
            *place = ptr::from_ref(note).cast_mut().cast();
        }
    }

    /// Copies the value into the request's pool; `None` without memory. It is not dropped.
    pub(crate) fn keep<N: Copy>(&self, value: N) -> Option<&'r N> {
        // SAFETY: the pool lives while the request does, and aligns what it gives.
        unsafe {
            let place = ngx_palloc(self.fields().pool, size_of::<N>()).cast::<N>();
            if place.is_null() {
                return None;
            }
            place.write(value);
            Some(&*place)
        }
    }

    /// Copies the text into the request's pool; empty without memory.
    pub(crate) fn keep_text(&self, text: &[u8]) -> &'r [u8] {
        // SAFETY: the pool lives while the request does, and gives as many bytes.
        unsafe {
            let data = ngx_pnalloc(self.fields().pool, text.len()).cast::<u8>();
            if data.is_null() {
                return &[];
            }
            ptr::copy_nonoverlapping(text.as_ptr(), data, text.len());
            bytes(data, text.len())
        }
    }

    /// Evaluates a complex value for the request.
    pub(crate) fn evaluate(&self, value: &ComplexValue) -> &'r [u8] {
        // SAFETY: the promise of `new`.
        unsafe { value.evaluate(self.r) }
    }

    /// The target in the request line; empty where nginx could not read it.
    pub(crate) fn target(&self) -> &'r [u8] {
        self.text(self.fields().unparsed_uri)
    }

    /// The path to match rules against: that of the request line, normalized, without the location's prefix. A
    /// request that nginx could not parse has none, so no rule matches it.
    pub(crate) fn path_for_rules<'p>(
        &self,
        location: &LocationConf,
        normalized: &'p mut Vec<u8>,
    ) -> Option<&'p [u8]>
    where
        'r: 'p,
    {
        let target = self.target();
        if target.is_empty() {
            return None;
        }
        path::below(path::normalize(target, normalized), location.event_prefix())
    }

    /// The method in the request line, which an internal redirect may have changed to GET.
    pub(crate) fn method(&self) -> &'r [u8] {
        let (name, line) = (self.text(self.fields().method_name), self.fields().request_line);
        let line = self.text(line);
        match line.iter().position(|b| *b == b' ') {
            Some(end) if end > 0 && !name.is_empty() => &line[..end],
            _ => name,
        }
    }

    fn text(&self, text: ngx_str_t) -> &'r [u8] {
        // SAFETY: the strings of a request live while it does.
        unsafe { bytes(text.data, text.len) }
    }

    /// nginx's own structure, for what this view does not offer.
    pub(crate) fn as_ptr(&self) -> *mut ngx_http_request_t {
        self.r
    }

    /// Whether its response has a header only.
    pub(crate) fn has_no_body(&self) -> bool {
        layout::is_header_only(self.fields())
    }

    /// nginx's cached time in milliseconds since the epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        // SAFETY: nginx has set its time.
        let now = unsafe { &*ngx_cached_time };
        now.sec * 1000 + now.msec as i64
    }

    /// The realm of its users: that of the location, or else that of the server.
    pub(crate) fn realm<'c>(&self, location: &'c LocationConf) -> &'c [u8] {
        location.realm(|| self.server_realm())
    }

    /// The hash of the realm's tokens, by the keys of the `http` block.
    pub(crate) fn tokens<'c>(&self, location: &'c LocationConf, keys: &Keys) -> &'c TokenHash {
        location.tokens(|| keys.tokens(self.realm(location)))
    }

    fn server_realm(&self) -> &'r [u8] {
        // SAFETY: the promise of `new`.
        let server = unsafe { NgxHttpCoreModule::server_conf(&*self.r) };
        let server = server.map(ptr::from_ref);
        let realms = self.main_conf().map_or(&[][..], |main| &main.realms);
        let own = realms.iter().find(|(known, _)| Some(*known) == server);
        own.map_or(&[], |(_, realm)| realm)
    }

    /// When the request began, in milliseconds since the epoch.
    pub(crate) fn start_ms(&self) -> i64 {
        self.fields().start_sec * 1000 + self.fields().start_msec as i64
    }

    /// The answer's status; 0 without an answer.
    pub(crate) fn status(&self) -> u16 {
        response::status(self.fields())
    }

    /// The header `User-Agent`; empty without it.
    pub(crate) fn user_agent(&self) -> &'r [u8] {
        self.known_header(self.fields().headers_in.user_agent)
    }

    /// The header `Referer`; empty without it.
    pub(crate) fn referer(&self) -> &'r [u8] {
        self.known_header(self.fields().headers_in.referer)
    }

    fn known_header(&self, header: *const ngx_table_elt_t) -> &'r [u8] {
        // SAFETY: it is null, or a header of the request.
        unsafe { header.as_ref().map_or(&[], |h| bytes(h.value.data, h.value.len)) }
    }

    /// The value of an indexed variable; empty if it has none.
    pub(crate) fn variable(&self, index: usize) -> &'r [u8] {
        // SAFETY: the index is one of the request's variables.
        unsafe { variable_text(ngx_http_get_indexed_variable(self.r, index)) }
    }

    /// The request's headers.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> {
        // SAFETY: the list is one of headers, and lives while the request does.
        let headers = unsafe { response::headers(&(*self.r).headers_in.headers) };
        // SAFETY: so do the strings.
        headers.map(|h| unsafe { (bytes(h.key.data, h.key.len), bytes(h.value.data, h.value.len)) })
    }

    /// The values of its headers `Cookie`.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = &[u8]> {
        layout::cookies(self.fields()).map(|header| self.text(header.value))
    }

    /// The length that the request's header announces for its body, in bytes, less what nginx has read and
    /// discarded; `None` without such an announcement.
    pub(crate) fn content_length(&self) -> Option<u64> {
        u64::try_from(self.fields().headers_in.content_length_n).ok()
    }

    /// Whether the request's header announces a body. nginx's own counter is of no use alone: it counts down
    /// while nginx discards the body of a refused request.
    pub(crate) fn announces_body(&self) -> bool {
        let headers = &self.fields().headers_in;
        let length = self.known_header(headers.content_length);
        length.iter().any(|digit| *digit != b'0')
            || headers.content_length_n > 0
            || headers.chunked() == 1
    }

    /// The peer's address, which the realip module may have replaced.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        // SAFETY: a request has a connection; the family tells the address's type.
        unsafe {
            let address = (*self.fields().connection).sockaddr.cast::<libc::sockaddr>();
            match i32::from(address.as_ref()?.sa_family) {
                libc::AF_INET => {
                    let v4 = &*address.cast::<libc::sockaddr_in>();
                    Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
                }
                libc::AF_INET6 => {
                    let v6 = &*address.cast::<libc::sockaddr_in6>();
                    Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
                }
                _ => None,
            }
        }
    }

    /// The request's trace id: `$request_id` if it was evaluated before, else a new one that costs no system
    /// call and becomes the value of `$request_id`.
    pub(crate) fn trace_id(&self, main: &MainConf) -> [u8; TRACE_LEN] {
        // SAFETY: the index is one of the request's variables.
        let variable = unsafe { &mut *self.fields().variables.add(main.request_id) };
        // SAFETY: it is the request's.
        if let Ok(known) = unsafe { variable_text(variable) }.try_into() {
            return known;
        }
        let trace = worker::next_trace_id();
        let text = self.keep_text(&trace);
        if !text.is_empty() {
            // SAFETY: the text lives while the request does; nginx only reads it.
            unsafe { set_variable(variable, text.as_ptr().cast_mut(), TRACE_LEN) };
        }
        trace
    }
}
