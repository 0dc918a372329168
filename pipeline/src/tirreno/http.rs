//! HTTP to one target over one connection.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector,
};
use ureq::{Agent, Error, Timeout};

use crate::audit::socket::tls_fault;
use crate::config::TirrenoConfig;
use crate::shm::zone::Fault;
use crate::tirreno::policy::{Answer, KeyAnswer};

/// How long addresses of a host are used before it is looked up again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
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

/// The addresses of a target's host, for all its connections.
///
/// `ureq` looks a host up for each request, also on a connection that is open.
#[derive(Clone, Debug, Default)]
pub struct Addresses(Arc<Mutex<Option<Resolved>>>);

#[derive(Clone, Debug)]
struct Resolved {
    at: Instant,
    addresses: Vec<SocketAddr>,
}

impl Addresses {
    fn known(&self) -> MutexGuard<'_, Option<Resolved>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        *self.known() = None;
    }
}

impl Resolver for Addresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        if let Some(known) = &*self.known()
            && known.at.elapsed() < RESOLVE_AGAIN
        {
            let mut resolved = self.empty();
            known.addresses.iter().copied().for_each(|a| resolved.push(a));
            return Ok(resolved);
        }
        let resolved = match DefaultResolver::default().resolve(uri, config, timeout) {
            Err(Error::Io(_)) => return Err(Error::HostNotFound),
            other => other?,
        };
        *self.known() = Some(Resolved { at: Instant::now(), addresses: resolved.to_vec() });
        Ok(resolved)
    }
}

thread_local! {
    /// Connections that this thread has tried to open.
    static CONNECTS: Cell<u64> = const { Cell::new(0) };
}

/// Counts attempts to connect.
#[derive(Debug, Default)]
struct CountingConnector(TcpConnector);

impl Connector<()> for CountingConnector {
    type Out = <TcpConnector as Connector<()>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        CONNECTS.set(CONNECTS.get() + 1);
        self.0.connect(details, chained)
    }
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
        let roots = config.roots.as_ref().map(|r| r.0.clone()).unwrap_or_default();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(roots))
            .disable_verification(!config.verify)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .max_idle_age(Duration::from_secs(3600))
            .user_agent(concat!("ngx-tirreno/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .tls_config(tls)
            .build();
        let connector = CountingConnector::default().chain(RustlsConnector::default());
        Self { agent: Agent::with_parts(settings, connector, addresses.clone()), addresses, config }
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
            let connects = CONNECTS.get();
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
                    let fault = fault(&error);
                    self.addresses.forget();
                    let was_open = CONNECTS.get() == connects;
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

/// An error in words that hold nothing of the remote's.
fn fault(error: &Error) -> Fault {
    match error {
        Error::HostNotFound | Error::Timeout(Timeout::Resolve) => Fault::HostNotFound,
        Error::Timeout(_) => Fault::TimedOut,
        Error::Rustls(error) => tls_fault(error),
        Error::Io(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused => Fault::ConnectionRefused,
            io::ErrorKind::TimedOut => Fault::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Fault::HostUnreachable
            }
            _ => e
                .get_ref()
                .and_then(|inner| inner.downcast_ref())
                .map_or(Fault::ConnectionBroken, tls_fault),
        },
        _ => Fault::ConnectionBroken,
    }
}
