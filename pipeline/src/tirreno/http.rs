//! Sends HTTP requests to a target over one connection.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, NaiveDateTime, Utc};
use memchr::memmem;
use ureq::Agent;
use ureq::http::{HeaderValue, StatusCode, Uri, header};

use crate::delivery::http::{self, Addresses};
use crate::fault::Fault;
use crate::tirreno::config::TirrenoConfig;
use crate::tirreno::policy::{Answer, CONFIRM, KeyAnswer};

/// How many bytes of an answer's body are read, so that the connection can be reused.
const MAX_BODY: u64 = 64 * 1024;

/// The words of nginx, Apache and Go in an answer with status 400 to plain HTTP on a TLS port.
const SPEAKS_TLS: [&[u8]; 3] = [
    b"plain HTTP request was sent to HTTPS port",
    b"speaking plain HTTP to an SSL-enabled server port",
    b"Client sent an HTTP request to an HTTPS server",
];

/// The forms of dates that servers sent before RFC 1123, and that are still to be understood.
const OLD_DATES: [&str; 2] = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3, and 5.6.7).
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let value = value.to_str().ok()?;
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // There may be more digits than any number here has.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let old = |form: &&'static str| NaiveDateTime::parse_from_str(value, form).ok();
    let until = match DateTime::parse_from_rfc2822(value) {
        Ok(date) => date.with_timezone(&Utc),
        Err(_) => OLD_DATES.iter().find_map(old)?.and_utc(),
    };
    // A date in the past asks for no pause.
    Some((until - DateTime::<Utc>::from(SystemTime::now())).to_std().unwrap_or_default())
}

/// The request for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// The trace id.
    pub trace: &'a str,
    /// The form.
    pub body: Cow<'a, str>,
}

/// Sends events to a server. The thread of one connection owns it.
pub trait Outbound: Send {
    /// Sends one event within `limit`.
    fn post(&mut self, event: &Post<'_>, limit: Duration) -> Answer;

    /// Checks within `limit` whether the server accepts the API key.
    fn check_key(&mut self, limit: Duration) -> KeyAnswer;
}

/// A connection to a Tirreno server, opened on demand and kept open.
pub struct Tirreno {
    agent: Agent,
    addresses: Addresses,
    config: Arc<TirrenoConfig>,
    /// The time of the last answer.
    answered: Cell<Option<Instant>>,
}

impl Tirreno {
    /// A connection. All connections of the target share `addresses`.
    pub fn new(config: Arc<TirrenoConfig>, addresses: Addresses) -> Self {
        let agent = http::agent(config.tls.clone(), addresses.clone());
        Self { agent, addresses, config, answered: Cell::default() }
    }

    /// Sends a request. If the open connection turns out to be dead, sends it once more on a new one.
    fn send(
        &mut self,
        uri: &Uri,
        content_type: &str,
        trace: Option<&str>,
        body: &str,
        limit: Duration,
    ) -> Result<(StatusCode, Option<Duration>), Fault> {
        let deadline = Instant::now() + limit;
        loop {
            let connects = http::connects();
            let left = deadline.saturating_duration_since(Instant::now());
            let mut request = self
                .agent
                .post(uri)
                .header("Content-Type", content_type)
                .header("Api-Key", self.config.api_key.reveal());
            if let Some(trace) = trace {
                request = request.header("X-Request-Id", trace);
            }
            for (name, value) in &self.config.headers {
                request = request.header(name, value.reveal());
            }
            let left = left.max(Duration::from_millis(1));
            let request = request.config().timeout_global(Some(left)).build();
            let sent = http::within(left, || {
                let mut response = request.send(body)?;
                // An unread body would close the connection.
                let body = response.body_mut().with_config().limit(MAX_BODY).read_to_vec();
                Ok((response, body))
            });
            let Some(sent) = sent else {
                self.agent = http::agent(self.config.tls.clone(), self.addresses.clone());
                return Err(Fault::Unreadable);
            };
            match sent {
                Ok((response, body)) => {
                    self.answered.set(Some(Instant::now()));
                    let retry_after =
                        response.headers().get(header::RETRY_AFTER).and_then(retry_after);
                    let status = response.status();
                    if status == StatusCode::BAD_REQUEST && !self.config.endpoint.is_https() {
                        let body = body.unwrap_or_default();
                        if SPEAKS_TLS.iter().any(|words| memmem::find(&body, words).is_some()) {
                            return Err(Fault::HttpToTls);
                        }
                    }
                    return Ok((status, retry_after));
                }
                Err(error) => {
                    let fault = http::fault(&error, self.config.tls.as_ref());
                    self.addresses.forget();
                    let was_open = http::connects() == connects;
                    // With `resend`, events that were accepted just before must be sent again before this
                    // one.
                    let in_use = self.answered.get().is_some_and(|at| at.elapsed() <= CONFIRM);
                    let is_failure = self.config.resend && in_use;
                    if was_open && fault == Fault::ConnectionBroken && !is_failure {
                        continue;
                    }
                    return Err(fault);
                }
            }
        }
    }
}

impl Outbound for Tirreno {
    fn post(&mut self, event: &Post<'_>, limit: Duration) -> Answer {
        let config = self.config.clone();
        let uri = config.endpoint.sensor();
        match self.send(
            uri,
            "application/x-www-form-urlencoded",
            Some(event.trace),
            &event.body,
            limit,
        ) {
            Ok((status, Some(after))) => Answer::Later(status.as_u16(), after),
            Ok((status, None)) => Answer::Status(status.as_u16()),
            Err(fault) => Answer::None(fault),
        }
    }

    fn check_key(&mut self, limit: Duration) -> KeyAnswer {
        let config = self.config.clone();
        let uri = config.endpoint.key_check();
        let sent = self.send(uri, "application/json", None, r#"{"value":"ngx-tirreno"}"#, limit);
        match sent.map(|(status, _)| status) {
            Ok(StatusCode::OK) => KeyAnswer::Good,
            Ok(code @ (StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST)) => {
                KeyAnswer::Refused(code.as_u16())
            }
            Ok(code) => KeyAnswer::Unknown(Fault::Answered(code.as_u16())),
            Err(fault) => KeyAnswer::Unknown(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |value: &str| retry_after(&HeaderValue::from_str(value).unwrap());
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        assert_eq!(read("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        let soon = DateTime::<Utc>::from(SystemTime::now() + Duration::from_secs(90));
        let left = read(&soon.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap();
        assert!((60..=90).contains(&left.as_secs()), "{left:?}");
        for form in ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
            let left = read(&soon.format(form).to_string()).unwrap();
            assert!((60..=90).contains(&left.as_secs()), "{form}: {left:?}");
        }
        assert_eq!(read("18446744073709551616"), Some(Duration::from_secs(u64::MAX)));
        for bad in ["", "-1", "+1", "soon", "1.5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
