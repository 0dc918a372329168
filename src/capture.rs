//! From a request to a record.
//!
//! Runs in the event loop, for each request: it finds the rule, evaluates the configured values, which
//! nginx caches, and copies bytes. It takes no lock and makes no system call; what it allocates lies in
//! the request's own pool: the trace id, so that later readers of `$request_id` see the same, and what
//! the module's variables show. A URL with a secret is copied without it, into memory that is used
//! again.

use core::ops::Range;
use core::{ptr, slice};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use nginx_sys::{
    NGX_ERROR, ngx_array_push, ngx_conf_t, ngx_connection_t, ngx_http_get_indexed_variable,
    ngx_http_get_variable_index, ngx_http_handler_pt, ngx_http_output_header_filter_pt,
    ngx_http_phases_NGX_HTTP_LOG_PHASE, ngx_http_request_t, ngx_http_top_header_filter, ngx_int_t,
    ngx_palloc, ngx_pnalloc, ngx_pool_t, ngx_str_t, ngx_table_elt_t,
};
use ngx::core::Status;
use ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf, NgxHttpCoreModule};
use ngx::ngx_string;
use tirreno_pipeline::capture::known_accounts::{AccountKey, KnownAccounts};
use tirreno_pipeline::capture::level::Level;
use tirreno_pipeline::capture::path;
use tirreno_pipeline::capture::redact::{self, FindSegments, Paths, Redaction};
use tirreno_pipeline::capture::rules::{Rules, Segments};
use tirreno_pipeline::capture::session;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::record::{Capture, Extra, TRACE_LEN, TooLong, push_segment};
use tirreno_pipeline::shm::zone::SkipReason;

use crate::conf::rule::{Rule, RuleSet, Unknown, User};
use crate::conf::value::{Sourced, bytes, is_off, set_variable, variable_text};
use crate::conf::{LocationConf, MainConf};
use crate::{TirrenoModule, body, guarded, response, worker};

const SWITCHING_PROTOCOLS: usize = 101;

/// The next header filter of nginx's chain, set while the configuration is read.
static mut NEXT_HEADER_FILTER: ngx_http_output_header_filter_pt = None;

/// What became of a request.
#[derive(Clone, Copy)]
pub(crate) struct Captured {
    /// The event's type; nothing where it is none.
    pub(crate) event: Option<EventType>,
    /// The user; empty where none is known.
    pub(crate) user: ngx_str_t,
    /// `1`, or why there is no event.
    pub(crate) outcome: &'static str,
}

/// In place of a request's [`Captured`] while that is being found out, or when there is no memory.
static CAPTURING: Captured =
    Captured { event: None, user: ngx_str_t { len: 0, data: ptr::null_mut() }, outcome: "" };

// SAFETY: it is only read, and its string is empty.
unsafe impl Sync for Captured {}

/// Memory for what is made of a request's URL, Referer and path, used again for the next.
#[derive(Default)]
struct Scratch {
    path: Vec<u8>,
    url: redact::Scratch,
    referer: redact::Scratch,
    segments: SegmentScratch,
}

#[derive(Default)]
struct SegmentScratch {
    secret: Vec<Range<usize>>,
    value: redact::Scratch,
    out: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

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
    body::install();
    Ok(())
}

fn variable_index(cf: &mut ngx_conf_t, name: ngx_str_t) -> Result<usize, Status> {
    let mut name = name;
    // SAFETY: the context is valid, the name is static.
    let index = unsafe { ngx_http_get_variable_index(cf, &mut name) };
    if index == NGX_ERROR as ngx_int_t { Err(Status::NGX_ERROR) } else { Ok(index as usize) }
}

/// The end of a request, whatever ended it.
unsafe extern "C" fn log_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    guarded(None, || unsafe { capture(r) });
    Status::NGX_OK.into()
}

/// The log phase of a WebSocket comes when it closes, maybe after days: it is captured when it opens.
unsafe extern "C" fn header_filter(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    unsafe {
        if (*r).headers_out.status == SWITCHING_PROTOCOLS {
            guarded(None, || capture(r));
        }
        match NEXT_HEADER_FILTER {
            Some(next) => next(r),
            None => Status::NGX_OK.into(),
        }
    }
}

/// Captures the request, if it is a main request, is not captured yet, and is to be. Returns what
/// became of it.
///
/// # Safety
/// `r` is a request that nginx is processing, and this is its event loop.
pub(crate) unsafe fn capture(r: *mut ngx_http_request_t) -> Option<Captured> {
    // SAFETY: the caller's promise. Evaluating a value goes through the pointer and may change the
    // request: a reference is not used after that.
    let request = unsafe { &*r };
    if request.main != r {
        return None;
    }
    let module = TirrenoModule::module();
    // SAFETY: each module has its place in the array, and only this function writes there; it may be
    // called again by a value that it evaluates.
    let mark = unsafe { request.ctx.add(module.ctx_index).cast::<*const Captured>() };
    // SAFETY: what is there lives while the request does.
    if let Some(captured) = unsafe { (*mark).as_ref() } {
        return Some(*captured);
    }
    let location = TirrenoModule::location_conf(request)?;
    let enabled = location.enabled()?;
    // SAFETY: the caller's promise.
    if enabled.is_constant_off() || is_off(unsafe { enabled.evaluate(r) }) {
        return None;
    }
    // SAFETY: as above.
    let main = TirrenoModule::main_conf(unsafe { &*r })?;
    // SAFETY: as above.
    unsafe { *mark = &raw const CAPTURING };
    let mut captured = CAPTURING;
    // SAFETY: the caller's promise.
    let pushed = SCRATCH
        .with_borrow_mut(|scratch| unsafe { push(r, main, location, scratch, &mut captured) });
    captured.outcome = match pushed {
        Ok(()) => "1",
        Err(NoEvent::Skipped(reason)) => {
            if let Some(zone) = main.zone {
                zone.skip(reason);
            }
            if reason == SkipReason::Invalid {
                worker::note_invalid();
            }
            reason.name()
        }
        Err(NoEvent::NoTarget) => "no_target",
        Err(NoEvent::Full) => "full",
    };
    // SAFETY: the pool lives while the request does, and aligns what it gives.
    unsafe {
        let place = ngx_palloc((*r).pool, size_of::<Captured>()).cast::<Captured>();
        if !place.is_null() {
            place.write(captured);
            *mark = place;
        }
    }
    Some(captured)
}

/// Why a request is no event.
pub(crate) enum NoEvent {
    Skipped(SkipReason),
    /// No target wants it, or this process has no ring.
    NoTarget,
    /// The ring is full; the zone has counted it.
    Full,
}

impl From<TooLong> for NoEvent {
    fn from(_: TooLong) -> Self {
        Self::Skipped(SkipReason::Invalid)
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
    scratch: &mut Scratch,
    captured: &mut Captured,
) -> Result<(), NoEvent> {
    // SAFETY: the caller's promise; nginx's strings live while the request does.
    let (mut event, status, target, method) = unsafe {
        let request = &*r;
        let target = bytes(request.unparsed_uri.data, request.unparsed_uri.len);
        (Capture::new(start_ms(request)), response::status(request), target, method(request))
    };
    // SAFETY: the caller's promise.
    let refused = location.verifies() && unsafe { response::is_refusal(r, status) };

    let audited = is_audited(main, location);
    let rules = location.rules();
    let path = if rules.is_none() && !audited {
        None
    } else {
        path_for_rules(target, location.event_prefix(), &mut scratch.path)
    };
    let matched = rules.zip(path).and_then(|(rules, path)| {
        // SAFETY: the caller's promise.
        rules.rules.first(method, path, |rule, _| unsafe { rule.holds(r, status) })
    });
    let found = matched.as_ref().map(|(rule, _)| rule.as_ref());
    let kind = found.map_or(location.default_event(), |rule| rule.event);

    // Also an empty value replaces what would be captured.
    let mut given = 0;
    let (mut named, mut confirmed) = (&[][..], false);
    let (mut own_url, mut own_referer) = (None, None);
    let mut fits = Ok(());
    event.kind = kind.ok_or(NoEvent::Skipped(SkipReason::EventOff))?;
    for (param, value) in location.params() {
        // SAFETY: the caller's promise; the value lives while the request does.
        let text = unsafe { value.value.evaluate(r) };
        given |= param.bit();
        match param {
            Param::UserName if refused && !value.trusted => {}
            Param::UserName => named = text,
            Param::EventType => event.kind = EventType::from_name(text).unwrap_or(event.kind),
            Param::Url => own_url = Some(text),
            Param::HttpReferer => own_referer = Some(text),
            _ => fits = fits.and(event.set(*param, text)),
        }
    }
    captured.event = Some(event.kind);
    // SAFETY: as above.
    let account = found.and_then(|rule| unsafe { Account::named(r, rule, main) });
    if given & Param::UserName.bit() == 0 {
        // SAFETY: as above.
        (named, confirmed) = unsafe {
            match found.filter(|rule| !rule.users.is_empty()) {
                Some(rule) => rules_user(r, rule, account.as_ref(), refused, event.kind),
                None => (user(r, location.users(), refused), false),
            }
        };
    }
    captured.user = ngx_str_t { len: named.len(), data: named.as_ptr().cast_mut() };
    let anonymous = found.and_then(|rule| rule.anonymous).unwrap_or(location.anonymous());
    if named.is_empty() && !anonymous {
        return Err(NoEvent::Skipped(SkipReason::Anonymous));
    }
    fits?;
    let level = audited.then(|| {
        // SAFETY: the caller's promise.
        let agent = unsafe { header((*r).headers_in.user_agent) };
        let derive = || Level::derive(event.kind, method, path.unwrap_or_default(), agent);
        found.and_then(|rule| rule.level).unwrap_or_else(derive)
    });
    event.targets = targets(main, location, event.kind, level.unwrap_or(Level::Api));
    if event.targets == 0 || !worker::is_ready() {
        return Err(NoEvent::NoTarget);
    }

    // SAFETY: nginx's strings live while the request does; a request has a connection.
    let (values, referer) = unsafe {
        event.trace = trace_id(r, main);
        let ip = location.ip().map_or(&[][..], |ip| ip.evaluate(r));
        let language = variable_text(ngx_http_get_indexed_variable(r, main.accept_language));
        let request = &*r;
        event.ip = peer(request.connection);
        if given & Param::HttpCode.bit() == 0 {
            event.status = status;
        }
        let values = [
            (Param::HttpMethod, method),
            (Param::UserAgent, header(request.headers_in.user_agent)),
            (Param::BrowserLanguage, language),
            (Param::IpAddress, ip),
        ];
        (values, header(request.headers_in.referer))
    };
    for (param, value) in values {
        if given & param.bit() == 0 {
            event.set(param, value)?;
        }
    }
    event.set(Param::UserName, named)?;
    if let Some(account) = &account
        && (confirmed || event.kind == EventType::AccountLoginFail)
    {
        event.set_extra(Extra::Account, &account.key.tag);
    }
    let off = Redaction::off();
    let redaction = location.redaction().unwrap_or(&off);
    let find = location.rules().and_then(|rules| rules.redacting.as_ref()).map(|rules| {
        |path: &[u8], out: &mut Vec<_>| {
            secret_segments(rules, location.event_prefix(), path, out);
        }
    });
    let find = find.as_ref().map(|find| find as &FindSegments<'_>);
    let paths = Paths { own: find, nested: find, normalized: None };
    let url = redaction.url(own_url.unwrap_or(target), paths, &mut scratch.url);
    let referer = redaction.referer(own_referer.unwrap_or(referer), paths, &mut scratch.referer);
    event.set(Param::Url, url)?;
    event.set(Param::HttpReferer, referer)?;

    let (number, session);
    if let Some(level) = level {
        number = level.number().to_ne_bytes();
        let mut sessions = location.sessions().iter();
        // SAFETY: the caller's promise.
        session = sessions.find_map(|value| session::digest(unsafe { value.evaluate(r) }));
        event.set_extra(Extra::Level, &number);
        event.set_extra(Extra::Session, session.as_ref().map_or(&[], |session| session));
    }
    if let Some((rule, segments)) = matched.filter(|_| audited) {
        event.set_extra(Extra::Audit, rule.audit.as_bytes());
        let segments = open_segments(segments, rules, redaction, &mut scratch.segments);
        event.set_extra(Extra::Segments, segments);
    }
    worker::push(&event)
}

/// The path that rules are for: that of the request line, normalized, below the prefix. A request that
/// nginx could not read has no target, and no rule is for it.
pub(crate) fn path_for_rules<'p>(
    target: &'p [u8],
    prefix: &[u8],
    normalized: &'p mut Vec<u8>,
) -> Option<&'p [u8]> {
    if target.is_empty() {
        return None;
    }
    below(path::normalize(target, normalized), prefix)
}

/// Whether one of the targets that a location selects writes audit records.
fn is_audited(main: &MainConf, location: &LocationConf) -> bool {
    let selected = location.targets();
    main.targets.iter().enumerate().any(|(i, t)| selected & (1 << i) != 0 && t.needs_audit())
}

/// The named segments of a rule's path, as [`Extra::Segments`] holds them, without those that the URL
/// does not show either.
fn open_segments<'s>(
    segments: Segments<'_, '_>,
    rules: Option<&RuleSet>,
    redaction: &Redaction,
    scratch: &'s mut SegmentScratch,
) -> &'s [u8] {
    let SegmentScratch { secret, value, out } = scratch;
    secret.clear();
    out.clear();
    if let Some(rules) = rules.and_then(|rules| rules.redacting.as_ref()) {
        secret_segments(rules, b"", segments.path(), secret);
    }
    for (name, range) in segments.ranges() {
        let overlaps = |s: &Range<usize>| s.start < range.end && range.start < s.end;
        let text = &segments.path()[range.clone()];
        if !secret.iter().any(overlaps) && redaction.url(text, Paths::default(), value) == text {
            push_segment(out, name, text);
        }
    }
    out
}

/// What lies below the prefix in a path.
fn below<'p>(path: &'p [u8], prefix: &[u8]) -> Option<&'p [u8]> {
    let below = path.strip_prefix(prefix)?;
    match below {
        [] => Some(b"/"),
        [b'/', ..] => Some(below),
        _ => None,
    }
}

/// The first user that is named; where the request was refused, only one that it does not name itself.
///
/// # Safety
/// As for [`capture`]; the text lives while the request does.
unsafe fn user<'r>(r: *mut ngx_http_request_t, users: &[Sourced], refused: bool) -> &'r [u8] {
    let believed = users.iter().filter(|user| user.trusted || !refused);
    // SAFETY: the caller's promise.
    let mut values = believed.map(|user| unsafe { user.value.evaluate(r) });
    values.find(|user| !user.is_empty()).unwrap_or_default()
}

/// The account that the body of a request names.
struct Account<'r> {
    name: &'r str,
    key: AccountKey,
    accounts: KnownAccounts,
    pool: *mut ngx_pool_t,
    /// When the request began, milliseconds since the epoch.
    time_ms: i64,
}

impl<'r> Account<'r> {
    /// # Safety
    /// As for [`capture`].
    unsafe fn named(r: *const ngx_http_request_t, rule: &Rule, main: &MainConf) -> Option<Self> {
        // SAFETY: the caller's promise.
        let (name, pool, time_ms) = unsafe {
            let name = rule.body_fields().find_map(|fields| body::account(r, fields))?;
            (name, (*r).pool, start_ms(&*r))
        };
        let accounts = main.zone?.known_accounts();
        Some(Self { name, key: accounts.key(b"", name), accounts, pool, time_ms })
    }

    /// The user whose account it is, or what stands for an unknown one.
    fn user(&self, unknown: Unknown) -> &'r [u8] {
        let known = self.accounts.find(&self.key);
        match (known, unknown) {
            (Some(id), _) => self.copy(&id),
            (None, Unknown::Hash) => self.copy(self.key.alias().as_bytes()),
            (None, Unknown::Send) => self.name.as_bytes(),
            (None, Unknown::Omit) => &[],
        }
    }

    /// Text that lives as long as the request; empty when there is no memory.
    fn copy(&self, text: &[u8]) -> &'r [u8] {
        // SAFETY: the pool is the request's, and gives as many bytes.
        unsafe {
            let data = ngx_pnalloc(self.pool, text.len()).cast::<u8>();
            if data.is_null() {
                return &[];
            }
            ptr::copy_nonoverlapping(text.as_ptr(), data, text.len());
            bytes(data, text.len())
        }
    }
}

/// The first user of a rule that is named, and whether the response confirms that the account in the body
/// is that user's: a good login teaches so. A failed one is of whose account it names, also where the
/// application answers 401.
///
/// # Safety
/// As for [`user`].
unsafe fn rules_user<'r>(
    r: *mut ngx_http_request_t,
    rule: &Rule,
    account: Option<&Account<'r>>,
    refused: bool,
    kind: EventType,
) -> (&'r [u8], bool) {
    for source in &rule.users {
        let named = match source {
            // SAFETY: the caller's promise.
            User::Value(value) => unsafe { user(r, slice::from_ref(value), refused) },
            User::Body(_) => account.map_or(&[][..], |account| account.user(rule.unknown)),
        };
        if named.is_empty() {
            continue;
        }
        let answered = matches!(source, User::Value(value) if value.answered);
        let mut confirmed = false;
        if let Some(account) = account.filter(|_| answered && kind == EventType::AccountLogin) {
            confirmed = account.accounts.find(&account.key).is_none_or(|known| known == named);
            account.accounts.learn(&account.key, named, account.time_ms);
        }
        return (named, confirmed);
    }
    (&[], false)
}

/// The start of a request, in milliseconds since the epoch.
fn start_ms(request: &ngx_http_request_t) -> i64 {
    request.start_sec * 1000 + request.start_msec as i64
}

/// The method in the request line: an internal redirect may have made it GET.
///
/// # Safety
/// The request's strings live for `'r`.
pub(crate) unsafe fn method<'r>(request: &ngx_http_request_t) -> &'r [u8] {
    // SAFETY: the caller's promise.
    let (name, line) = unsafe {
        let (name, line) = (request.method_name, request.request_line);
        (bytes(name.data, name.len), bytes(line.data, line.len))
    };
    match line.iter().position(|b| *b == b' ') {
        Some(end) if end > 0 && !name.is_empty() => &line[..end],
        _ => name,
    }
}

/// Adds to `out` which parts of a normalized path the rules of a location call secret.
fn secret_segments(
    rules: &Rules<Rc<Rule>>,
    prefix: &[u8],
    path: &[u8],
    out: &mut Vec<Range<usize>>,
) {
    let Some(below) = below(path, prefix) else { return };
    let start = path.len() - below.len();
    rules.any_method(below, |rule, segments| {
        let ranges = rule.redact.iter().filter_map(|name| segments.range(name));
        out.extend(ranges.map(|range| range.start + start..range.end + start));
    });
}

/// The accounts of the targets that get an event of that type and level.
fn targets(main: &MainConf, location: &LocationConf, kind: EventType, level: Level) -> u32 {
    let selected = location.targets();
    main.targets
        .iter()
        .enumerate()
        .filter(|(i, target)| selected & (1 << i) != 0 && target.events.contains(kind, level))
        .fold(0, |targets, (_, target)| targets | 1 << target.slot)
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
pub(crate) unsafe fn header<'a>(header: *const ngx_table_elt_t) -> &'a [u8] {
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
