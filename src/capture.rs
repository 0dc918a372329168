//! From a request to a record.
//!
//! Runs in the event loop, for each request: it evaluates the configured values, which nginx caches,
//! and copies bytes. It takes no lock and makes no system call; the only allocation is the trace id,
//! from the request's own pool, so that later readers of `$request_id` see the same.

use core::ptr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nginx_sys::{
    NGX_ERROR, ngx_array_push, ngx_conf_t, ngx_connection_t, ngx_http_get_indexed_variable,
    ngx_http_get_variable_index, ngx_http_handler_pt, ngx_http_output_header_filter_pt,
    ngx_http_phases_NGX_HTTP_LOG_PHASE, ngx_http_request_t, ngx_http_top_header_filter, ngx_int_t,
    ngx_pnalloc, ngx_table_elt_t,
};
use ngx::core::Status;
use ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf, NgxHttpCoreModule};
use ngx::ngx_string;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::record::{Capture, TRACE_LEN, TooLong};
use tirreno_pipeline::zone::SkipReason;

use crate::conf::value::{bytes, is_off, set_variable, variable_text};
use crate::conf::{LocationConf, MainConf};
use crate::{TirrenoModule, guarded, worker};

const SWITCHING_PROTOCOLS: usize = 101;

/// The next header filter of nginx's chain, set while the configuration is read.
static mut NEXT_HEADER_FILTER: ngx_http_output_header_filter_pt = None;

/// Marks a request that is captured already; only its address counts.
static CAPTURED: u8 = 1;

/// Puts the module into nginx's phases and filters.
pub(crate) fn install(cf: &mut ngx_conf_t, main: &mut MainConf) -> Result<(), Status> {
    main.request_id = variable_index(cf, ngx_string!("request_id"))?;
    main.accept_language = variable_index(cf, ngx_string!("http_accept_language"))?;
    let core = NgxHttpCoreModule::main_conf_mut(cf).ok_or(Status::NGX_ERROR)?;
    let phase = &mut core.phases[ngx_http_phases_NGX_HTTP_LOG_PHASE as usize];
    // SAFETY: the phase's array holds handlers; nginx reads the configuration in one thread.
    unsafe {
        let handler = ngx_array_push(&mut phase.handlers).cast::<ngx_http_handler_pt>();
        *handler.as_mut().ok_or(Status::NGX_ERROR)? = Some(log_handler);
        NEXT_HEADER_FILTER = ngx_http_top_header_filter;
        ngx_http_top_header_filter = Some(header_filter);
    }
    Ok(())
}

fn variable_index(cf: &mut ngx_conf_t, name: nginx_sys::ngx_str_t) -> Result<usize, Status> {
    let mut name = name;
    // SAFETY: the context is valid, the name is static.
    let index = unsafe { ngx_http_get_variable_index(cf, &mut name) };
    if index == NGX_ERROR as ngx_int_t { Err(Status::NGX_ERROR) } else { Ok(index as usize) }
}

/// The end of a request, whatever ended it.
unsafe extern "C" fn log_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    guarded((), || unsafe { capture(r) });
    Status::NGX_OK.into()
}

/// The log phase of a WebSocket comes when it closes, maybe after days: it is captured when it opens.
unsafe extern "C" fn header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    unsafe {
        if (*r).headers_out.status == SWITCHING_PROTOCOLS {
            guarded((), || capture(r));
        }
        match NEXT_HEADER_FILTER {
            Some(next) => next(r),
            None => Status::NGX_OK.into(),
        }
    }
}

/// Captures the request, if it is a main request, is not captured yet, and is to be.
///
/// # Safety
/// `r` is a request that nginx is processing, and this is its event loop.
unsafe fn capture(r: *mut ngx_http_request_t) {
    // SAFETY: the caller's promise. Evaluating a value goes through the pointer and may change the
    // request: a reference is not used after that.
    let request = unsafe { &*r };
    if request.main != r {
        return;
    }
    let module = TirrenoModule::module();
    // SAFETY: each module has its place in the array.
    let mark = unsafe { request.ctx.add(module.ctx_index) };
    // SAFETY: as above.
    if unsafe { !(*mark).is_null() } {
        return;
    }
    let Some(location) = TirrenoModule::location_conf(request) else { return };
    let Some(enabled) = location.enabled() else { return };
    // SAFETY: the caller's promise.
    if enabled.is_constant_off() || is_off(unsafe { enabled.evaluate(r) }) {
        return;
    }
    // SAFETY: as above.
    let Some(main) = TirrenoModule::main_conf(unsafe { &*r }) else { return };
    // SAFETY: as above; the mark is only compared with null.
    unsafe { *mark = ptr::from_ref(&CAPTURED).cast_mut().cast() };
    // SAFETY: the caller's promise.
    if let Err(reason) = unsafe { push(r, main, location) }
        && let Some(zone) = main.zone
    {
        zone.skip(reason);
        if reason == SkipReason::Invalid {
            worker::note_invalid();
        }
    }
}

/// Copies what the event needs into the worker's ring.
///
/// # Safety
/// As for [`capture`].
unsafe fn push(
    r: *mut ngx_http_request_t,
    main: &MainConf,
    location: &LocationConf,
) -> Result<(), SkipReason> {
    // SAFETY: the caller's promise.
    let mut event = Capture::new(unsafe { (*r).start_sec * 1000 + (*r).start_msec as i64 });

    // Also an empty value replaces what would be captured.
    let mut given = 0;
    let mut user = &[][..];
    let mut refused = Ok(());
    for (param, value) in location.params() {
        // SAFETY: the caller's promise; the value lives while the request does.
        let value = unsafe { value.evaluate(r) };
        given |= param.bit();
        match param {
            Param::UserName => user = value,
            Param::EventType => event.kind = EventType::from_name(value).unwrap_or(event.kind),
            _ => refused = refused.and(event.set(*param, value)),
        }
    }
    if given & Param::UserName.bit() == 0 {
        // SAFETY: as above.
        let mut values = location.users().iter().map(|user| unsafe { user.evaluate(r) });
        user = values.find(|user| !user.is_empty()).unwrap_or_default();
    }
    if user.is_empty() && !location.anonymous() {
        return Err(SkipReason::Anonymous);
    }
    refused.map_err(|TooLong(_)| SkipReason::Invalid)?;
    event.targets = targets(main, location, event.kind);
    if event.targets == 0 || !worker::is_ready() {
        return Ok(());
    }

    // SAFETY: nginx's strings live while the request does; a request has a connection.
    let captured = unsafe {
        event.trace = trace_id(r, main);
        let ip = location.ip().map_or(&[][..], |ip| ip.evaluate(r));
        let language = variable_text(ngx_http_get_indexed_variable(r, main.accept_language));
        let request = &*r;
        event.ip = peer(request.connection);
        if given & Param::HttpCode.bit() == 0 {
            event.status = status(request);
        }
        [
            (Param::UserName, user),
            (Param::Url, bytes(request.unparsed_uri.data, request.unparsed_uri.len)),
            (Param::HttpMethod, bytes(request.method_name.data, request.method_name.len)),
            (Param::UserAgent, header(request.headers_in.user_agent)),
            (Param::HttpReferer, header(request.headers_in.referer)),
            (Param::BrowserLanguage, language),
            (Param::IpAddress, ip),
        ]
    };
    for (param, value) in captured {
        if given & param.bit() == 0 || param == Param::UserName {
            event.set(param, value).map_err(|TooLong(_)| SkipReason::Invalid)?;
        }
    }
    worker::push(&event)
}

/// The accounts of the targets that get an event of that type.
fn targets(main: &MainConf, location: &LocationConf, kind: EventType) -> u32 {
    let selected = location.targets();
    main.targets
        .iter()
        .enumerate()
        .filter(|(i, target)| selected & (1 << i) != 0 && target.events.contains(kind))
        .fold(0, |targets, (_, target)| targets | 1 << target.slot)
}

/// The response's status, as nginx's `$status` has it.
fn status(request: &ngx_http_request_t) -> u16 {
    let status = match request.err_status {
        0 => request.headers_out.status,
        status => status,
    };
    u16::try_from(status).unwrap_or(0)
}

/// The peer's address, which the realip module may have replaced.
///
/// # Safety
/// `connection` is valid.
unsafe fn peer(connection: *const ngx_connection_t) -> Option<IpAddr> {
    // SAFETY: the caller's promise; the family tells the address's type.
    unsafe {
        let address = (*connection).sockaddr.cast::<libc::sockaddr>();
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

/// The value of a request header; empty when there is none.
///
/// # Safety
/// `header` is null, or a header of a request that lives for `'a`.
unsafe fn header<'a>(header: *const ngx_table_elt_t) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { header.as_ref().map_or(&[], |h| bytes(h.value.data, h.value.len)) }
}

/// The request's trace id: nginx's `$request_id` where something has evaluated it, else one that
/// costs no system call, and which `$request_id` has from now on.
///
/// # Safety
/// As for [`capture`].
unsafe fn trace_id(r: *mut ngx_http_request_t, main: &MainConf) -> [u8; TRACE_LEN] {
    // SAFETY: the index is one of the request's variables.
    unsafe {
        let variable = &mut *(*r).variables.add(main.request_id);
        if let Ok(known) = variable_text(variable).try_into() {
            return known;
        }
        let trace = worker::next_trace_id();
        let data = ngx_pnalloc((*r).pool, TRACE_LEN).cast::<u8>();
        if !data.is_null() {
            ptr::copy_nonoverlapping(trace.as_ptr(), data, TRACE_LEN);
            set_variable(variable, data, TRACE_LEN);
        }
        trace
    }
}
