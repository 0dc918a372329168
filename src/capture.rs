//! From a request to a record.
//!
//! Runs in the event loop, once for each request. It encodes the decision about the request by copying bytes;
//! it takes no lock and makes no system call. It allocates from the request's own pool only: the trace id (so
//! that later readers of `$request_id` see the same one), what the module's variables show, and values that
//! differ from what the request contains. A URL with a secret is copied without the secret, into a buffer that
//! is reused.

use core::ops::Range;
use core::ptr;
use std::borrow::Cow;
use std::cell::RefCell;

use nginx_sys::{
    NGX_ERROR, ngx_array_push, ngx_conf_t, ngx_http_get_variable_index, ngx_http_handler_pt,
    ngx_http_phases_NGX_HTTP_LOG_PHASE, ngx_http_phases_NGX_HTTP_PREACCESS_PHASE,
    ngx_http_request_t, ngx_int_t, ngx_str_t,
};
use ngx::core::Status;
use ngx::http::{HttpModuleMainConf as _, NgxHttpCoreModule};
use ngx::ngx_string;
use tirreno_pipeline::capture::decision::{Accounts, Decision, Settings, decide};
use tirreno_pipeline::capture::exchange::Exchange;
use tirreno_pipeline::capture::identity::Identity;
use tirreno_pipeline::capture::level::Level;
use tirreno_pipeline::capture::page::Page;
use tirreno_pipeline::capture::redact::{self, FindSegments, Paths, Redaction};
use tirreno_pipeline::capture::rule::{Rule, is_off, read, read_field};
use tirreno_pipeline::capture::rules::Segments;
use tirreno_pipeline::event::{EventType, Param};
use tirreno_pipeline::record::{Capture, Extra, push_segment};
use tirreno_pipeline::shm::ring::PushError;
use tirreno_pipeline::shm::zone::SkipReason;

use crate::conf::rule::RuleSet;
use crate::conf::value::ComplexValue;
use crate::conf::{LocationConf, MainConf};
use crate::exchange::HttpExchange;
use crate::request::Request;
use crate::worker::Mismatch;
use crate::{guarded, identity, worker};

/// What became of a request.
#[derive(Clone, Copy)]
pub(crate) struct Captured {
    /// The event's type; `None` if the request is no event.
    pub(crate) event: Option<EventType>,
    /// The user; empty if none is known.
    pub(crate) user: ngx_str_t,
    /// The evidence for the user.
    pub(crate) identity: Identity,
    /// The user whom the client claims to be, if that is another one; else empty.
    pub(crate) claimed: ngx_str_t,
    /// `1`, or why there is no event.
    pub(crate) outcome: &'static str,
}

const NOTHING: ngx_str_t = ngx_str_t { len: 0, data: ptr::null_mut() };

/// Stands in a request's place for [`Captured`] while the request is being captured, or if there is no memory.
static CAPTURING: Captured = Captured {
    event: None,
    user: NOTHING,
    identity: Identity::None,
    claimed: NOTHING,
    outcome: "",
};

// SAFETY: it is only read, and its strings are empty.
unsafe impl Sync for Captured {}

/// Buffers for a request's URL, Referer and path; the next request reuses them.
#[derive(Default)]
struct Scratch {
    path: Vec<u8>,
    encoding: EncodingScratch,
}

#[derive(Default)]
struct EncodingScratch {
    url: redact::Scratch,
    referer: redact::Scratch,
    segments: SegmentScratch,
    open: Vec<u8>,
    fields: Vec<u8>,
    page: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct SegmentScratch {
    secret: Vec<Range<usize>>,
    value: redact::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Puts the module into the phase in which a request has its location and nothing else was done, and into the log
/// phase.
pub(crate) fn install(cf: &mut ngx_conf_t, main: &mut MainConf) -> Result<(), Status> {
    main.request_id = variable_index(cf, ngx_string!("request_id"))?;
    main.accept_language = variable_index(cf, ngx_string!("http_accept_language"))?;
    let core = NgxHttpCoreModule::main_conf_mut(cf).ok_or(Status::NGX_ERROR)?;
    let mut put = |phase, handler| {
        let phase = &mut core.phases[phase as usize];
        // SAFETY: the phase's array holds handlers; nginx reads the configuration in one thread.
        unsafe {
            let place = ngx_array_push(&mut phase.handlers).cast::<ngx_http_handler_pt>();
            *place.as_mut().ok_or(Status::NGX_ERROR)? = handler;
        }
        Ok(())
    };
    put(ngx_http_phases_NGX_HTTP_PREACCESS_PHASE, Some(preaccess_handler))?;
    put(ngx_http_phases_NGX_HTTP_LOG_PHASE, Some(log_handler))
}

fn variable_index(cf: &mut ngx_conf_t, name: ngx_str_t) -> Result<usize, Status> {
    let mut name = name;
    // SAFETY: the context is valid, the name is static.
    let index = unsafe { ngx_http_get_variable_index(cf, &mut name) };
    if index == NGX_ERROR as ngx_int_t { Err(Status::NGX_ERROR) } else { Ok(index as usize) }
}

/// The beginning of a request in its location.
unsafe extern "C" fn preaccess_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    let request = unsafe { Request::new(r) };
    guarded((), || identity::begin_request(request));
    Status::NGX_DECLINED.into()
}

/// The end of a request, whatever ended it.
unsafe extern "C" fn log_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request; this is its event loop.
    let request = unsafe { Request::new(r) };
    guarded((), || identity::end_answer(request));
    // SAFETY: as above.
    guarded(None, || unsafe { capture(r) });
    Status::NGX_OK.into()
}

/// Captures the request if it is a main request, shall be captured and was not yet. Returns what became of it.
///
/// # Safety
/// `r` is a request that nginx is processing, and this is its event loop.
pub(crate) unsafe fn capture(r: *mut ngx_http_request_t) -> Option<Captured> {
    // SAFETY: the caller's promise.
    let request = unsafe { Request::new(r) };
    if !request.is_main() {
        return None;
    }
    // Evaluating a value below may call this function again.
    if let Some(captured) = request.mark::<Captured>() {
        return Some(*captured);
    }
    let location = request.location()?;
    let enabled = location.enabled()?;
    if enabled.is_constant_off() || is_off(request.evaluate(enabled)) {
        return None;
    }
    let main = request.main_conf()?;
    if identity::is_own(request, main) {
        return None;
    }
    request.set_mark(&CAPTURING);
    let mut captured = CAPTURING;
    let pushed =
        SCRATCH.with_borrow_mut(|scratch| push(request, main, location, scratch, &mut captured));
    captured.outcome = match pushed {
        Ok(()) => "1",
        Err(NoEvent::Skipped(reason)) => {
            if let Some(zone) = main.zone {
                zone.skip(reason);
            }
            reason.name()
        }
        Err(NoEvent::NoTarget) => "no_target",
        Err(NoEvent::Full) => "full",
        Err(NoEvent::Merged) => "merged",
    };
    if let Some(captured) = request.keep(captured) {
        request.set_mark(captured);
    }
    Some(captured)
}

/// Why a request is no event.
enum NoEvent {
    Skipped(SkipReason),
    /// No target wants it, or this process has no ring.
    NoTarget,
    /// The ring is full; the zone has counted it.
    Full,
    /// `once=`: the same user made a request like it a moment before.
    Merged,
}

/// Decides about the request, and copies what the event needs into the worker's ring.
fn push(
    request: Request<'_>,
    main: &MainConf,
    location: &LocationConf,
    scratch: &mut Scratch,
    captured: &mut Captured,
) -> Result<(), NoEvent> {
    let Scratch { path, encoding } = scratch;
    let path = request.path_for_rules(location, path);
    let exchange = HttpExchange::new(request, path).with_session(identity::session);
    let realm = request.realm(location);
    let accounts = main.accounts.as_ref().map(|known| {
        let time_ms = request.start_ms();
        Accounts { known, realm, time_ms }
    });
    let mut settings = location.settings();
    settings.has_session = identity::has_sessions(location, main);
    let decision = decide(&exchange, &settings, accounts);
    let decision = decision.ok_or(NoEvent::Skipped(SkipReason::EventOff))?;
    let would_differ = location.dry_run().is_some_and(|verify| {
        let tried = decide(&exchange, &Settings { verify, ..settings }, None);
        tried.is_some_and(|tried| tried.whose.user != decision.whose.user)
    });
    if would_differ {
        worker::note_mismatch(Mismatch::DryRun);
    }
    captured.event = Some(decision.kind);
    captured.identity = decision.whose.identity;
    let encoder = Encoder { exchange: &exchange, main, location, decision: &decision };
    let user = encoder.keep(&decision.whose.user);
    let claimed = encoder.keep(&decision.whose.claimed);
    captured.user = ngx_str_t { len: user.len(), data: user.as_ptr().cast_mut() };
    captured.claimed = ngx_str_t { len: claimed.len(), data: claimed.as_ptr().cast_mut() };
    if decision.is_skipped() {
        return Err(NoEvent::Skipped(SkipReason::Anonymous));
    }
    let once = decision.rule().and_then(|rule| rule.once);
    if let (Some(once), Some(zone)) = (once, main.zone) {
        // A refused request and an accepted one are different events.
        let (address, is_failed) = (request.peer(), exchange.status >= 400);
        let what = (decision.kind.name(), is_failed, request.realm(location), exchange.path);
        if !zone.is_first(&(what, user, address), once, request.start_ms()) {
            let level = encoder.level(encoder.is_audited());
            zone.count_merged(encoder.targets(level.unwrap_or(Level::Api)));
            return Err(NoEvent::Merged);
        }
    }
    let is_claimed = !claimed.is_empty();
    if is_claimed {
        worker::note_mismatch(Mismatch::Claim);
    }
    encoder.push(user, claimed, is_claimed || would_differ, encoding)
}

/// Encodes a decision.
struct Encoder<'e, 'r, 'p> {
    exchange: &'e HttpExchange<'r, 'p>,
    main: &'e MainConf,
    location: &'e LocationConf,
    decision: &'e Decision<'e, 'e, ComplexValue>,
}

impl<'e> Encoder<'e, '_, '_> {
    fn push(
        &self,
        user: &[u8],
        claimed: &[u8],
        is_mismatched: bool,
        scratch: &mut EncodingScratch,
    ) -> Result<(), NoEvent> {
        let (decision, location) = (self.decision, self.location);
        let request = self.exchange.request;
        let method = self.exchange.method();
        let is_audited = self.is_audited();
        let level = self.level(is_audited);
        let mut event = Capture::new(request.start_ms());
        event.kind = decision.kind;
        event.identity = decision.whose.identity;
        event.rank = decision.rank;
        event.is_attempt = decision.is_attempt;
        event.is_first_step = decision.is_first_step;
        event.targets = self.targets(level.unwrap_or(Level::Api));
        if event.targets == 0 || !worker::is_ready() {
            return Err(NoEvent::NoTarget);
        }
        event.trace = request.trace_id(self.main);
        event.ip = request.peer();

        // A given value replaces the captured one, even if it is empty.
        let (mut given, mut left_out) = (Param::UserName.bit() | Param::EventType.bit(), false);
        let (mut own_url, mut own_referer) = (None, None);
        for (param, text) in self.params() {
            if given & param.bit() != 0 {
                continue;
            }
            given |= param.bit();
            match param {
                Param::Url => own_url = Some(text),
                Param::HttpReferer => own_referer = Some(text),
                _ => left_out |= event.set(param, text).is_err(),
            }
        }
        if given & Param::HttpCode.bit() == 0 {
            event.status = self.exchange.status;
        }
        let ip = location.ip().map_or(&[][..], |ip| request.evaluate(ip));
        let captured = [
            (Param::HttpMethod, method),
            (Param::UserAgent, request.user_agent()),
            (Param::BrowserLanguage, request.variable(self.main.accept_language)),
            (Param::IpAddress, ip),
        ];
        for (param, value) in captured {
            if given & param.bit() == 0 {
                left_out |= event.set(param, value).is_err();
            }
        }
        left_out |= event.set(Param::UserName, user).is_err();
        event.set_extra(Extra::Claimed, claimed);
        event.set_extra(Extra::Realm, request.realm(location));
        if let Some(account) = &decision.whose.account {
            event.set_extra(Extra::Account, account);
        }

        let off = Redaction::off();
        let redaction = location.redaction().unwrap_or(&off);
        let find = location.rules().filter(|rules| rules.is_redacting()).map(|rules| {
            |path: &[u8], out: &mut Vec<_>| {
                rules.secret_segments(location.event_prefix(), path, out);
            }
        });
        let find = find.as_ref().map(|find| find as &FindSegments<'_>);
        let (target, referer) = (request.target(), request.referer());
        let of_all = self
            .main
            .secret_segments
            .as_ref()
            .map(|segments| |path: &[u8], out: &mut Vec<_>| segments.find(path, out));
        let of_all = of_all.as_ref().map(|find| find as &FindSegments<'_>);
        // The path is the whole one if no prefix was removed.
        let is_whole = own_url.is_none() && location.event_prefix().is_empty();
        let normalized = self.exchange.path.filter(|_| is_whole);
        let paths = Paths { own: find, nested: of_all, normalized };
        let url = redaction.url(own_url.unwrap_or(target), paths, &mut scratch.url);
        let paths = Paths { own: of_all, nested: of_all, normalized: None };
        let referer =
            redaction.referer(own_referer.unwrap_or(referer), paths, &mut scratch.referer);
        left_out |= event.set(Param::Url, url).is_err();
        left_out |= event.set(Param::HttpReferer, referer).is_err();

        if let Some((rule, segments)) = &decision.matched
            && location.url_is_page()
            && own_url.is_none()
        {
            let page = PageOf { exchange: self.exchange, location, rule, segments: *segments };
            page.write(redaction, of_all, &mut scratch.segments, &mut scratch.page);
            event.set_extra(Extra::Page, &scratch.page);
        }
        let (number, session);
        if let Some(level) = level {
            number = level.number().to_ne_bytes();
            session = identity::session_digest(self.exchange);
            event.set_extra(Extra::Level, &number);
            event.set_extra(Extra::Session, session.as_ref().map_or(&[], |session| session));
        }
        if let Some((rule, segments)) = decision.matched.filter(|_| is_audited) {
            event.set_extra(Extra::Audit, rule.audit.as_bytes());
            scratch.open.clear();
            let rules = location.rules();
            each_segment(segments, rules, redaction, &mut scratch.segments, |name, value| {
                if let Some(value) = value {
                    push_segment(&mut scratch.open, name, value);
                }
            });
            event.set_extra(Extra::Segments, &scratch.open);
            scratch.fields.clear();
            for (name, value) in &rule.fields {
                let text = read_field(name, value, rule, self.exchange).text();
                if !text.is_empty() {
                    // What the administrator calls the field says nothing of the value. A longer one is left out.
                    let is_secret = text.len() <= redact::MAX_VALUE
                        && redaction.hides("", &text, of_all, &mut scratch.segments.value);
                    let text = if is_secret { redact::MASK } else { &*text };
                    push_segment(&mut scratch.fields, name, text);
                }
            }
            event.set_extra(Extra::Fields, &scratch.fields);
        }
        if left_out && let Some(zone) = self.main.zone {
            zone.skip(SkipReason::Invalid);
            worker::note_invalid();
        }
        let whose = &decision.whose;
        let is_nobodys = whose.identity == Identity::None && whose.user.starts_with(b"session-");
        if identity::hold_for_lookup(self.exchange, location, self.main, is_nobodys, &event) {
            return Ok(());
        }
        if let Some(zone) = self.main.zone {
            zone.count_identity(whose.identity, is_mismatched, whose.unreadable_session);
        }
        match worker::push(&event) {
            Some(Ok(())) => Ok(()),
            Some(Err(PushError::Full)) => Err(NoEvent::Full),
            Some(Err(PushError::TooLong)) => Err(NoEvent::Skipped(SkipReason::Invalid)),
            None => Err(NoEvent::NoTarget),
        }
    }

    /// The event's level in audit records.
    fn level(&self, is_audited: bool) -> Option<Level> {
        is_audited.then(|| {
            let (decision, exchange) = (self.decision, self.exchange);
            let path = exchange.path.unwrap_or_default();
            let agent = exchange.request.user_agent();
            let derive = || Level::derive(decision.kind, exchange.method(), path, agent);
            decision.rule().and_then(|rule| rule.level).unwrap_or_else(derive)
        })
    }

    /// A text that lives as long as the request.
    fn keep(&self, text: &Cow<'e, [u8]>) -> &'e [u8] {
        match text {
            Cow::Borrowed(text) => text,
            Cow::Owned(text) => self.exchange.request.keep_text(text),
        }
    }

    /// The parameters that the rule gives, then those that the location gives.
    fn params(&self) -> impl Iterator<Item = (Param, &'e [u8])> {
        let rule = self.decision.rule();
        let title = rule.and_then(|rule| rule.title.as_ref());
        let title = title.map(|title| (Param::PageTitle, title));
        let of_rule = rule.into_iter().flat_map(|rule| rule.params.iter());
        let of_location = self.location.params().iter();
        let all = title.into_iter().chain(of_rule.chain(of_location).map(|(p, v)| (*p, v)));
        all.map(move |(param, value)| (param, self.keep(&read(value, rule, self.exchange).text())))
    }

    /// Whether one of the targets that the location selects writes audit records.
    fn is_audited(&self) -> bool {
        let selected = self.location.targets();
        let mut targets = self.main.targets.iter().enumerate();
        targets.any(|(i, target)| selected & (1 << i) != 0 && target.needs_audit())
    }

    /// The slots of the targets that get an event of that level, a bit each.
    fn targets(&self, level: Level) -> u32 {
        let (kind, selected) = (self.decision.kind, self.location.targets());
        let targets = self.main.targets.iter().enumerate();
        targets
            .filter(|(i, target)| selected & (1 << i) != 0 && target.events.contains(kind, level))
            .fold(0, |targets, (_, target)| targets | 1 << target.slot)
    }
}

/// The page that a request is to Tirreno with `tirreno_url page`.
pub(crate) struct PageOf<'e, X> {
    pub(crate) exchange: &'e X,
    pub(crate) location: &'e LocationConf,
    pub(crate) rule: &'e Rule<ComplexValue>,
    pub(crate) segments: Segments<'e, 'e>,
}

impl<X: Exchange<Text = ComplexValue>> PageOf<'_, X> {
    /// Writes its URL. `nested` finds the secret segments of paths inside arguments.
    pub(crate) fn write(
        self,
        redaction: &Redaction,
        nested: Option<&FindSegments<'_>>,
        scratch: &mut SegmentScratch,
        out: &mut Vec<u8>,
    ) {
        let Self { exchange, location, rule, segments } = self;
        let path = rule.page.as_ref().unwrap_or(&rule.path);
        let mut page = Page::new(path, out);
        each_segment(segments, location.rules(), redaction, scratch, |name, value| {
            page.push(name, value);
        });
        for (name, value) in &rule.args {
            let text = read(value, Some(rule), exchange).text();
            if !text.is_empty() {
                let is_open = !redaction.hides(name, &text, nested, &mut scratch.value);
                page.push(name, is_open.then_some(&*text));
            }
        }
    }
}

/// Calls `f` for each named segment of a rule's path; without the value if the URL hides it, too.
fn each_segment(
    segments: Segments<'_, '_>,
    rules: Option<&RuleSet>,
    redaction: &Redaction,
    scratch: &mut SegmentScratch,
    mut f: impl FnMut(&str, Option<&[u8]>),
) {
    let SegmentScratch { secret, value } = scratch;
    secret.clear();
    if let Some(rules) = rules {
        rules.secret_segments(b"", segments.path(), secret);
    }
    for (name, range) in segments.ranges() {
        let overlaps = |s: &Range<usize>| s.start < range.end && range.start < s.end;
        let text = &segments.path()[range.clone()];
        let is_open =
            !secret.iter().any(overlaps) && redaction.url(text, Paths::default(), value) == text;
        f(name, is_open.then_some(text));
    }
}
