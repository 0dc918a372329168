//! Which user a request's session belongs to, and what the answer tells about sessions.
//!
//! A session is looked up when its request begins, and if it is nobody's then, once more when the answer's header
//! comes. The result stays in the request's pool over internal redirects: a logout, or an upload that outlives its
//! session, still belongs to the session's user, whoever has the token meanwhile. What the answer tells is learned
//! before the client can use it: from headers when they are sent, from a JSON body before its last part is.

use core::ffi::c_void;
use core::ptr;
use std::borrow::Cow;
use std::cell::Cell;

use nginx_sys::{ngx_http_request_t, ngx_pool_cleanup_add};
use tirreno_pipeline::capture::decision::{Lesson, lesson};
use tirreno_pipeline::capture::exchange::{Exchange as _, Session};
use tirreno_pipeline::capture::identity::Identity;
use tirreno_pipeline::capture::session::{
    SessionDigest, answer_token, digest, is_cleared, may_have_token, request_tokens,
};
use tirreno_pipeline::capture::value::Source;
use tirreno_pipeline::clock::wall_ms;
use tirreno_pipeline::identity::keys::{Keys, TokenKey};
use tirreno_pipeline::identity::lookup::MARK;
use tirreno_pipeline::record::Capture;
use tirreno_pipeline::shm::bindings::{Binding, Bindings, Bound};

use crate::conf::rule::{Token, Value};
use crate::conf::{LocationConf, MainConf};
use crate::exchange::HttpExchange;
use crate::lookup::{self, Accepted};
use crate::request::Request;

/// The session of a request. It lives in the request's pool, because an internal redirect clears the module's
/// context.
struct Known<'r> {
    /// Where it was looked up.
    location: &'r LocationConf,
    /// The key of the token that the request carries.
    token: Option<TokenKey>,
    /// Whether that is of the first value of `tirreno_session` that has any: an answer may tell of that one only.
    is_first: bool,
    /// The session's user, and the evidence.
    user: Cell<Option<(&'r [u8], Identity)>>,
    /// When that was learned, in milliseconds since the epoch.
    time_ms: i64,
    /// The SHA-256 of the token, once it was needed.
    digest: Option<SessionDigest>,
    /// Whether the answer's content has been learned.
    is_learned: Cell<bool>,
}

/// What all requests of this nginx share.
#[derive(Clone, Copy)]
struct Shared<'c> {
    bindings: Bindings,
    keys: &'c Keys,
}

fn shared(main: &MainConf) -> Option<Shared<'_>> {
    let (zone, keys) = main.zone.zip(main.keys.as_ref())?;
    Some(Shared { bindings: zone.bindings(), keys })
}

/// Called when the header of the request has been read, and again after each internal redirect. By the time of the
/// answer, a token may be another user's.
pub(crate) fn begin_request(request: Request<'_>) {
    let Some((location, main)) = place(request) else { return };
    if kept(request).is_none_or(|known| !known.is_of(request, location)) {
        let known = Known::find(request, location, main, |bound| !bound.has_ended());
        if known.user.get().is_some() {
            keep(request, known);
        }
    }
}

/// Called when the header of the answer is about to be sent.
pub(crate) fn begin_answer(request: Request<'_>) {
    if let Some((known, main)) = known(request) {
        learn(request, known, main, request.has_no_body());
    }
}

/// Called when the answer has been read and its last part is about to be sent, or when the request ends without
/// one.
pub(crate) fn end_answer(request: Request<'_>) {
    if kept(request).is_some_and(|known| known.is_learned.get()) {
        return;
    }
    if let Some((known, main)) = known(request) {
        learn(request, known, main, true);
    }
}

/// The location and the zone of the request, if sessions matter there.
fn place<'r>(request: Request<'r>) -> Option<(&'r LocationConf, &'r MainConf)> {
    if !request.is_main() {
        return None;
    }
    let (location, main) = (request.location()?, request.main_conf()?);
    let is_on = location.enabled().is_some_and(|enabled| !enabled.is_constant_off());
    let counts = is_on && has_sessions(location, main) && !is_own(request, main);
    counts.then_some((location, main))
}

/// Whether sessions can identify users here: the module uses them anywhere, or claims are not believed here, so
/// that the session itself stands for its user.
pub(crate) fn has_sessions(location: &LocationConf, main: &MainConf) -> bool {
    !location.sessions().is_empty() && (main.uses_sessions() || location.verifies())
}

/// The session that the request belongs to.
pub(crate) fn session<'e>(exchange: &'e HttpExchange<'_, '_>) -> Session<'e> {
    let request = exchange.request;
    let Some((known, main)) = known(request) else { return Session::None };
    let may_have_token =
        || known.location.sessions().iter().any(|values| may_have_token(values, exchange));
    match (known.user.get(), known.token) {
        (Some((user, identity)), _) => Session::Bound(user.into(), identity),
        (None, Some(_)) => {
            let alias = alias(exchange, known.location, main);
            alias.map_or(Session::None, |alias| Session::Unknown(alias.into_bytes().into()))
        }
        (None, None) if may_have_token() => Session::Unreadable,
        (None, None) => Session::None,
    }
}

/// The name that stands for a session whose user is unknown.
fn alias(
    exchange: &HttpExchange<'_, '_>,
    location: &LocationConf,
    main: &MainConf,
) -> Option<String> {
    let (shared, mut alias) = (shared(main)?, None);
    let realm = exchange.request.realm(location);
    own_token(exchange, location, |parts, _| {
        alias = Some(shared.keys.session_alias(realm, parts.iter().copied()));
        true
    });
    alias
}

/// Calls `f` with each token that the request carries, from the first value of `tirreno_session` that has any,
/// until `f` has enough. Behind a value of a prefix, other such values have tokens, too: which of these cookies count
/// is known by what is bound. `f` is told whether the token is of the first value that has any.
fn own_token(
    exchange: &HttpExchange<'_, '_>,
    location: &LocationConf,
    mut f: impl FnMut(&[&[u8]], bool) -> bool,
) {
    let mut has_any = false;
    for values in location.sessions() {
        let is_by_prefix = matches!(&values[..], [value] if is_by_prefix(value));
        if has_any && !is_by_prefix {
            return;
        }
        let (is_first, mut is_enough) = (!has_any, false);
        has_any |= request_tokens(values, exchange, |parts| {
            is_enough = f(parts, is_first);
            is_enough
        });
        if is_enough || has_any && !is_by_prefix {
            return;
        }
    }
}

fn is_by_prefix(value: &Value) -> bool {
    matches!(value.source(), Source::Cookie(name) if name.is_prefix)
}

/// Whether the answer clears a cookie of the value of `tirreno_session` that has the request's token.
fn clears_own_token(exchange: &HttpExchange<'_, '_>, location: &LocationConf) -> bool {
    let is_cleared = |values: &Token| is_cleared(values, exchange);
    let has_token = |values: &&Token| request_tokens(values, exchange, |_| true);
    // Hardly any answer clears a cookie.
    location.sessions().iter().any(is_cleared)
        && location.sessions().iter().find(has_token).is_some_and(is_cleared)
}

/// Whether the request is one of the module's own lookups, sent through this nginx.
pub(crate) fn is_own(request: Request<'_>, main: &MainConf) -> bool {
    let is_mark = |(name, value): (&[u8], &[u8])| {
        name.eq_ignore_ascii_case(MARK.as_bytes()) && value == main.lookup_mark.as_bytes()
    };
    !main.lookups.is_empty() && request.headers().any(is_mark)
}

/// Starts a lookup for the event's session if nothing else tells its user, and returns whether the event waits
/// for the result. `is_nobodys`: the application has accepted the session, and its user is unknown.
pub(crate) fn hold_for_lookup(
    exchange: &HttpExchange<'_, '_>,
    location: &LocationConf,
    main: &MainConf,
    is_nobodys: bool,
    event: &Capture<'_>,
) -> bool {
    let request = exchange.request;
    let (Some(which), Some(known)) = (location.lookup_place(main), kept(request)) else {
        return false;
    };
    let is_by_lookup = known.user.get().is_some_and(|(_, identity)| identity == Identity::Lookup);
    let (Some(key), true) = (known.token, is_nobodys || is_by_lookup) else { return false };
    let (realm, mut waits) = (request.realm(location), false);
    let Some(shared) = shared(main) else { return false };
    own_token(exchange, location, |parts, _| {
        let [token] = parts else { return true };
        if request.tokens(location, shared.keys).key(parts.iter().copied()) != key {
            return false;
        }
        let accepted = Accepted { which, key, realm, token };
        if is_nobodys {
            waits = lookup::hold(&accepted, event);
        } else {
            lookup::refresh(&accepted, known.time_ms, event);
        }
        true
    });
    waits
}

/// The SHA-256 of the token that the request carries, for audit records.
pub(crate) fn session_digest(exchange: &HttpExchange<'_, '_>) -> Option<SessionDigest> {
    let request = exchange.request;
    let (location, main) = (request.location()?, request.main_conf()?);
    let known = known(request).map(|(known, _)| known);
    if let Some(digest) = known.and_then(|known| known.digest) {
        return Some(digest);
    }
    let (wanted, shared) = (known.and_then(|known| known.token), shared(main));
    let tokens = shared.map(|shared| request.tokens(location, shared.keys));
    let mut found = None;
    own_token(exchange, location, |parts, _| {
        let key = tokens.map(|tokens| tokens.key(parts.iter().copied()));
        if wanted.is_none() || wanted == key {
            found = Some((key, digest(parts.iter().copied())));
        }
        found.is_some()
    });
    let (key, digest) = found?;
    if let (Some(shared), Some(key)) = (shared, key)
        && let Some(bound) = shared.bindings.find(shared.keys, key, wall_ms())
        && bound.digest().is_none()
    {
        shared.bindings.note_digest(shared.keys, &bound, &digest);
    }
    Some(digest)
}

/// The request's session, if sessions matter there; looks it up unless that was done before.
fn known<'r>(request: Request<'r>) -> Option<(&'r Known<'r>, &'r MainConf)> {
    let kept = kept(request).filter(|_| request.is_main());
    if let Some(known) = kept
        && ptr::eq(known.location, request.location()?)
    {
        return Some((known, request.main_conf()?));
    }
    let (location, main) = place(request)?;
    let known = kept.filter(|known| known.is_of(request, location)).unwrap_or_else(|| {
        let start_ms = request.start_ms();
        keep(request, Known::find(request, location, main, |bound| bound.is_of(start_ms)))
    });
    Some((known, main))
}

impl<'r> Known<'r> {
    /// Looks up the tokens that the request carries; a binding counts if it `is_valid`.
    fn find(
        request: Request<'r>,
        location: &'r LocationConf,
        main: &MainConf,
        is_valid: impl Fn(&Bound) -> bool,
    ) -> Self {
        let (user, is_learned) = (Cell::new(None), Cell::new(false));
        let mut known = Self {
            location,
            token: None,
            is_first: true,
            user,
            time_ms: 0,
            digest: None,
            is_learned,
        };
        let Some(shared) = shared(main) else { return known };
        // Tokens never come from the path.
        let exchange = HttpExchange::new(request, None);
        let tokens = request.tokens(location, shared.keys);
        own_token(&exchange, location, |parts, is_first| {
            let token = tokens.key(parts.iter().copied());
            known.token.get_or_insert(token);
            let found = shared.bindings.find(shared.keys, token, request.now_ms());
            let Some(bound) = found.as_ref().filter(|bound| is_valid(bound)) else { return false };
            (known.token, known.is_first) = (Some(token), is_first);
            known.user.set(Some((request.keep_text(bound.user()), bound.identity())));
            known.time_ms = bound.time_ms();
            known.digest = bound.digest();
            true
        });
        known
    }

    /// The token of which an answer may tell.
    fn own(&self) -> Option<TokenKey> {
        self.token.filter(|_| self.is_first)
    }

    /// Whether it is what a lookup in that location would look up.
    fn is_of(&self, request: Request<'r>, location: &LocationConf) -> bool {
        ptr::eq(self.location, location)
            || ptr::eq(self.location.sessions(), location.sessions())
                && request.realm(self.location) == request.realm(location)
    }
}

/// Learns what the answer tells about sessions, once, as soon as the answer is complete enough.
fn learn<'r>(request: Request<'r>, known: &Known<'r>, main: &'r MainConf, is_read: bool) {
    if known.is_learned.get() {
        return;
    }
    let Some(location) = request.location() else { return };
    let mut exchange = HttpExchange::new(request, None);
    if !exchange.is_applications() {
        known.is_learned.set(true);
        return;
    }
    let (Some(shared), Some(rules)) = (shared(main), location.rules()) else { return };
    known.is_learned.set(true);
    let mut path = Vec::new();
    exchange.path = request.path_for_rules(location, &mut path);
    let may_teach = exchange.path.is_some_and(|path| rules.may_teach(request.method(), path));
    let lesson = match may_teach {
        true => lesson(&exchange, rules, location.user_case(), is_read),
        false => Lesson::Nothing,
    };
    match lesson {
        Lesson::InBody => known.is_learned.set(false),
        Lesson::User(user) => {
            let user = match user {
                Cow::Borrowed(user) => user,
                Cow::Owned(user) => request.keep_text(&user),
            };
            bind(&exchange, location, shared, known.own(), user, wall_ms());
            let user = request.keep_text(user);
            known.user.set(Some((user, Identity::Answer)));
        }
        Lesson::Ended => end(shared, known.own(), request.now_ms()),
        Lesson::Nothing => {
            if known.own().is_some() && clears_own_token(&exchange, location) {
                end(shared, known.own(), request.now_ms());
            }
        }
    }
}

/// Binds the tokens that the answer sets or carries to the user; if it has none, the request's token, unless
/// several cookies might be it.
fn bind(
    exchange: &HttpExchange<'_, '_>,
    location: &LocationConf,
    shared: Shared<'_>,
    own: Option<TokenKey>,
    user: &[u8],
    now_ms: i64,
) {
    let (Shared { bindings, keys }, realm) = (shared, exchange.request.realm(location));
    let mut is_answers = false;
    for values in location.sessions() {
        answer_token(values, exchange, |parts| {
            is_answers = true;
            let key = exchange.request.tokens(location, keys).key(parts.iter().copied());
            bindings.bind(keys, &Binding::new(keys, realm, key, user), now_ms);
        });
    }
    let mut prefixes = location.sessions().iter().flatten().filter(|value| is_by_prefix(value));
    let is_one = !prefixes.any(|value| value.has_several_cookies(exchange));
    if let Some(key) = own.filter(|_| !is_answers && is_one) {
        bindings.bind(keys, &Binding::new(keys, realm, key, user), now_ms);
    }
}

fn end(shared: Shared<'_>, token: Option<TokenKey>, now_ms: i64) {
    if let Some(token) = token {
        shared.bindings.end(shared.keys, token, now_ms);
    }
}

const KEPT: unsafe extern "C" fn(*mut c_void) = kept_no_longer;

/// The pool frees the memory; this function only marks the cleanup entry as this module's.
unsafe extern "C" fn kept_no_longer(_known: *mut c_void) {}

fn kept<'r>(request: Request<'r>) -> Option<&'r Known<'r>> {
    let r: *mut ngx_http_request_t = request.as_ptr();
    // SAFETY: the request's pool and its cleanups live while it does; what has this handler was made by
    // `keep`.
    unsafe {
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry.handler.is_some_and(|handler| ptr::fn_addr_eq(handler, KEPT)) {
                return entry.data.cast::<Known<'r>>().as_ref();
            }
            cleanup = entry.next;
        }
    }
    None
}

/// Keeps what has been found; `kept` returns the latest.
fn keep<'r>(request: Request<'r>, known: Known<'r>) -> &'r Known<'r> {
    let r: *mut ngx_http_request_t = request.as_ptr();
    // SAFETY: the pool gives so many bytes, aligned, that live while the request does; without memory
    // they are leaked once.
    unsafe {
        let cleanup = ngx_pool_cleanup_add((*r).pool, size_of::<Known<'r>>());
        let Some(cleanup) = cleanup.as_mut() else { return Box::leak(Box::new(known)) };
        let place = cleanup.data.cast::<Known<'r>>();
        place.write(known);
        cleanup.handler = Some(KEPT);
        &*place
    }
}
