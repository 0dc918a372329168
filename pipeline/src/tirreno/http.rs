//! HTTP to one target over one connection.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::{StatusCode, Uri};

use crate::config::TirrenoConfig;
use crate::delivery::http::{self, Addresses};
use crate::fault::Fault;
use crate::tirreno::policy::{Answer, KeyAnswer};

/// The most bytes of a body that are read, so that the connection can be used again.
const MAX_BODY: u64 = 64 * 1024;

/// What is sent for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// The trace id.
    pub trace: &'a str,
    /// The form.
    pub body: Cow<'a, str>,
}

/// Sends events to a server. One connection's thread owns it.
pub trait Outbound: Send {
    /// Sends one event within `limit`.
    fn post(&mut self, event: &Post<'_>, limit: Duration) -> Answer;

    /// Asks within `limit` whether the API key is good.
    fn check_key(&mut self, limit: Duration) -> KeyAnswer;
}

/// A connection to a Tirreno server. It is opened when it is needed and kept open.
pub struct Tirreno {
    agent: Agent,
    addresses: Addresses,
    config: Arc<TirrenoConfig>,
}

impl Tirreno {
    /// A connection; `addresses` are shared by all of the target's.
    pub fn new(config: Arc<TirrenoConfig>, addresses: Addresses) -> Self {
        Self { agent: http::agent(config.tls.clone(), addresses.clone()), addresses, config }
    }

    /// Sends a request, and once more on a fresh connection when the one that was open has died.
    fn send(
        &self,
        uri: &Uri,
        content_type: &str,
        trace: Option<&str>,
        body: &str,
        limit: Duration,
    ) -> Result<StatusCode, Fault> {
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
            let sent = request
                .config()
                .timeout_global(Some(left.max(Duration::from_millis(1))))
                .build()
                .send(body);
            match sent {
                Ok(mut response) => {
                    // What is left unread would close the connection; the content is of no use.
                    let _ = response.body_mut().with_config().limit(MAX_BODY).read_to_vec();
                    return Ok(response.status());
                }
                Err(error) => {
                    let fault = http::fault(&error, self.config.tls.as_ref());
                    self.addresses.forget();
                    let was_open = http::connects() == connects;
                    if was_open && fault == Fault::ConnectionBroken {
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
        let uri = self.config.endpoint.sensor();
        match self.send(
            uri,
            "application/x-www-form-urlencoded",
            Some(event.trace),
            &event.body,
            limit,
        ) {
            Ok(status) => Answer::Status(status.as_u16()),
            Err(fault) => Answer::None(fault),
        }
    }

    fn check_key(&mut self, limit: Duration) -> KeyAnswer {
        let uri = self.config.endpoint.key_check();
        match self.send(uri, "application/json", None, r#"{"value":"ngx-tirreno"}"#, limit) {
            Ok(StatusCode::OK) => KeyAnswer::Good,
            Ok(code @ (StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST)) => {
                KeyAnswer::Refused(code.as_u16())
            }
            Ok(code) => KeyAnswer::Unknown(Fault::Answered(code.as_u16())),
            Err(fault) => KeyAnswer::Unknown(fault),
        }
    }
}
