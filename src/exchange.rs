//! A request with its answer, as rules and decisions see them.

use tirreno_pipeline::capture::cookie::{Name, cookie_pairs};
use tirreno_pipeline::capture::exchange::{Exchange, Session};
use tirreno_pipeline::capture::extract::{BodyFormat, Field, Found, php_has};
use tirreno_pipeline::capture::{path, rule};

use crate::conf::value::ComplexValue;
use crate::request::Request;
use crate::{readers, response};

/// Headers by which applications let a client name another method than the request line's.
const OVERRIDES: [&str; 3] = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"];

/// A request with its answer, as the decision sees them.
pub(crate) struct HttpExchange<'r, 'p> {
    pub(crate) request: Request<'r>,
    /// The path to match rules against.
    pub(crate) path: Option<&'p [u8]>,
    pub(crate) status: u16,
    /// Finds the session. The decision does not ask for it if the request is no event, and the name of a session
    /// whose user is unknown costs a hash.
    session: fn(&Self) -> Session<'_>,
}

impl<'r, 'p> HttpExchange<'r, 'p> {
    /// An exchange without a session.
    pub(crate) fn new(request: Request<'r>, path: Option<&'p [u8]>) -> Self {
        Self { request, path, status: request.status(), session: |_| Session::None }
    }

    /// An exchange whose session `session` finds.
    pub(crate) fn with_session(self, session: fn(&Self) -> Session<'_>) -> Self {
        Self { session, ..self }
    }
}

impl Exchange for HttpExchange<'_, '_> {
    type Text = ComplexValue;

    fn method(&self) -> &[u8] {
        self.request.method()
    }

    fn path(&self) -> Option<&[u8]> {
        self.path
    }

    fn query(&self) -> &[u8] {
        let target = self.request.target();
        let target = target.split(|b| *b == b'#').next().unwrap_or_default();
        let question = target.iter().position(|b| *b == b'?');
        question.map_or(&[], |question| &target[question + 1..])
    }

    fn text(&self, text: &ComplexValue) -> &[u8] {
        self.request.evaluate(text)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.request.headers();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, value)| value)
    }

    fn cookies(&self) -> impl Iterator<Item = &[u8]> {
        self.request.cookies()
    }

    fn body(&self, format: BodyFormat, field: &Field, is_name: bool) -> Found<'_> {
        readers::body_field(self.request, format, field.as_str(), is_name)
    }

    fn answer(&self, field: &Field) -> Found<'_> {
        readers::answer_field(self.request, field.as_str())
    }

    fn answer_has(&self, text: &[u8]) -> bool {
        readers::answer_has(self.request, text)
    }

    fn status(&self) -> u16 {
        self.status
    }

    fn answer_header(&self, name: &str) -> Option<&[u8]> {
        // SAFETY: the promise of `Request::new`.
        unsafe { response::header(self.request.as_ptr(), name.as_bytes()) }
    }

    fn location(&self) -> &[u8] {
        self.answer_header("location").unwrap_or_default()
    }

    fn set_cookie(&self, name: &Name) -> Option<&[u8]> {
        // SAFETY: the promise of `Request::new`.
        let (headers, sets) = unsafe {
            let r = self.request.as_ptr();
            (response::fields(r), move |key: &[u8]| response::sets_cookie(r, key))
        };
        let cookies = headers.filter(|(key, _)| key.eq_ignore_ascii_case(b"set-cookie"));
        let values = cookies.filter_map(|(_, line)| {
            let (key, value) = cookie_pairs(line).next()?;
            (name.matches(key) && !value.is_empty() && sets(key)).then_some(value)
        });
        values.last()
    }

    fn clears_cookie(&self, name: &Name) -> bool {
        // SAFETY: the promise of `Request::new`.
        unsafe { response::clears_cookie(self.request.as_ptr(), name) }
    }

    fn is_exact(&self) -> bool {
        let target = self.request.target();
        let end = target.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(target.len());
        let prefix = self.request.location().map_or(&[][..], |location| location.event_prefix());
        let own = target[..end].strip_prefix(prefix);
        let is_normal = own.zip(self.path).is_some_and(|(own, path)| {
            path::is_ordinary(own, path) || own.is_empty() && path == b"/"
        });
        let overrides =
            |name: &[u8]| OVERRIDES.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
        // PHP changes other names to `_method`.
        let named = |name: &&str| php_has(self.query(), name);
        is_normal
            && !self.request.headers().any(|(key, _)| key.len() > 12 && overrides(key))
            && (self.query().is_empty() || !rule::OVERRIDES.iter().any(named))
    }

    fn session(&self) -> Session<'_> {
        (self.session)(self)
    }

    fn is_applications(&self) -> bool {
        // SAFETY: the promise of `Request::new`.
        unsafe { response::is_applications(self.request.as_ptr(), self.status) }
    }

    fn is_refused(&self) -> bool {
        // SAFETY: the promise of `Request::new`.
        unsafe { response::is_refusal(self.request.as_ptr(), self.status) }
    }

    fn is_hung_up(&self) -> bool {
        // SAFETY: the promise of `Request::new`.
        unsafe { response::is_hung_up(self.request.as_ptr(), self.status) }
    }
}
