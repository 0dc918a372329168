//! HTTP requests with `ureq`: addresses that are cached for all connections, the TLS of all targets, and
//! answers that are simplified before `ureq` parses them.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport,
    TransportAdapter, time,
};
use ureq::{Agent, Error, Timeout};
use zeroize::Zeroize;

use crate::delivery::tls::Tls;
use crate::fault::{Fault, TlsFault};

/// How long the addresses of a host are used before the next look-up.
const RESOLVE_AGAIN: Duration = Duration::from_secs(30);
/// The most bytes and the most fields of an answer's head.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 1024;
/// The header fields of an answer that the module uses.
const FIELDS: [&str; 6] = [
    "Connection",
    "Content-Encoding",
    "Content-Length",
    "ETag",
    "Retry-After",
    "Transfer-Encoding",
];

/// The addresses of a host, for all connections to it.
///
/// `ureq` looks up the host for each request, even on an open connection.
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

    /// Makes the next connection look up the host again.
    pub fn forget(&self) {
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
    /// How many connections this thread has tried to open.
    static CONNECTS: Cell<u64> = const { Cell::new(0) };
    /// When the request that this thread makes has to be over.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Makes a request that may take so long in all. The time-outs of `ureq` begin anew with each part that a
/// server sends of what is read as one: an answer's head, a record of TLS.
///
/// `None`: the request panicked. What a server sends must not end the thread that asks it; its agent may not be
/// whole any more.
pub fn within<T>(limit: Duration, request: impl FnOnce() -> T) -> Option<T> {
    DEADLINE.set(Instant::now().checked_add(limit));
    let result = catch_unwind(AssertUnwindSafe(request)).ok();
    DEADLINE.set(None);
    result
}

/// How many connections this thread has tried to open. If a request does not change the number, it used a
/// connection that was open.
pub fn connects() -> u64 {
    CONNECTS.get()
}

/// An agent that keeps one connection open, follows no redirect and uses no proxy; each belongs to one thread.
pub fn agent(tls: Option<Tls>, addresses: Addresses) -> Agent {
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
        .build();
    let connector = CountingConnector::default().chain(TlsConnector(tls)).chain(AnswerConnector);
    Agent::with_parts(settings, connector, addresses)
}

/// The fault for an error, in fixed words without a byte that the remote has sent.
pub fn fault(error: &Error, tls: Option<&Tls>) -> Fault {
    let of_tls =
        |error: &rustls::Error| tls.map_or(Fault::ConnectionBroken, |tls| tls.fault(error));
    match error {
        Error::HostNotFound | Error::Timeout(Timeout::Resolve) => Fault::HostNotFound,
        Error::Timeout(_) => Fault::TimedOut,
        Error::Rustls(error) => of_tls(error),
        Error::Tls(_) => Fault::Tls(TlsFault::WrongName),
        Error::Io(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused => Fault::ConnectionRefused,
            io::ErrorKind::TimedOut => Fault::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Fault::HostUnreachable
            }
            _ => match e.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => of_tls(error),
                None => match e.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(NoAnswer::TlsRecord) => Fault::HttpToTls,
                    Some(NoAnswer::NoStatus) => Fault::Unreadable,
                    None => tls.map_or(Fault::ConnectionBroken, Tls::closed),
                },
            },
        },
        _ => tls.map_or(Fault::ConnectionBroken, Tls::closed),
    }
}

/// Counts attempts to connect.
#[derive(Debug, Default)]
struct CountingConnector(TcpConnector);

impl Connector<()> for CountingConnector {
    type Out = InTime<<TcpConnector as Connector<()>>::Out>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        /// More than `ureq` rounds the time-out down by.
        const ROUNDING: Duration = Duration::from_millis(10);
        CONNECTS.set(CONNECTS.get() + 1);
        let start = Instant::now();
        match self.0.connect(details, chained) {
            // So `ureq` calls a time-out, too, if its rounded one is over a moment before the whole.
            Err(Error::Io(e))
                if e.kind() == io::ErrorKind::ConnectionRefused
                    && start.elapsed() + ROUNDING >= *details.timeout.after =>
            {
                Err(Error::Timeout(details.timeout.reason))
            }
            connected => Ok(connected?.map(InTime)),
        }
    }
}

/// A connection that waits no longer than the request may take; see [`within`].
#[derive(Debug)]
struct InTime<T>(T);

/// What is left of a time-out and of the request's time.
fn left(timeout: NextTimeout) -> Result<NextTimeout, Error> {
    let Some(deadline) = DEADLINE.get() else { return Ok(timeout) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    let after = if left < *timeout.after { time::Duration::Exact(left) } else { timeout.after };
    Ok(NextTimeout { after, ..timeout })
}

impl<T: Transport> Transport for InTime<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, left(timeout)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        loop {
            match self.0.await_input(left(timeout)?) {
                // So ends a read with a time-out whose process was stopped or frozen meanwhile, see signal(7).
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}

/// Adds TLS to a connection if the URL is `https`.
#[derive(Debug)]
struct TlsConnector(Option<Tls>);

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Box::new(transport)));
        }
        let tls = self.0.as_ref().ok_or(Error::Tls("no TLS configured"))?;
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Tls("no host name"))?;
        let connection = ClientConnection::new(tls.config(), name)?;
        let inner: Box<dyn Transport> = Box::new(transport);
        let stream = StreamOwned::new(connection, TransportAdapter::new(inner));
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Box::new(TlsTransport { buffers, stream })))
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Adds an [`AnswerTransport`] to a connection.
#[derive(Debug)]
struct AnswerConnector;

impl Connector<Box<dyn Transport>> for AnswerConnector {
    type Out = AnswerTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<Box<dyn Transport>>,
    ) -> Result<Option<Self::Out>, Error> {
        let (input, output) =
            (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(chained.map(|inner| AnswerTransport {
            inner,
            buffers: LazyBuffers::new(input.max(MAX_CLEAN), output),
            head: Some(Vec::new()),
            unsent: 0,
        }))
    }
}

/// Room for a simplified head: a line and six fields of at most 1 KB each.
const MAX_CLEAN: usize = 16 * 1024;
/// The longest value of a field that is passed on.
const MAX_VALUE: usize = 1024;

/// Simplifies answers: interim answers (1xx) are dropped, of the header fields only [`FIELDS`] pass, and a
/// connection that delivers more than the answer is not used again.
///
/// `ureq` would repeat a request whose answer it cannot parse, and the event would be stored twice.
#[derive(Debug)]
struct AnswerTransport {
    inner: Box<dyn Transport>,
    buffers: LazyBuffers,
    /// The received part of the answer's head; `None` once the head has passed.
    head: Option<Vec<u8>>,
    /// How much in the inner output buffer is not sent yet.
    unsent: usize,
}

impl AnswerTransport {
    /// Moves what was received behind the head to where `ureq` reads.
    fn pass(&mut self) -> usize {
        let free = self.buffers.input_append_buf();
        let input = self.inner.buffers().input();
        let amount = input.len().min(free.len());
        free[..amount].copy_from_slice(&input[..amount]);
        self.buffers.input_appended(amount);
        self.inner.buffers().input_consume(amount);
        amount
    }

    /// Reads the head; returns whether it has passed.
    fn read_head(&mut self) -> Result<bool, Error> {
        let Some(head) = &mut self.head else { return Ok(true) };
        let before = head.len();
        head.extend_from_slice(self.inner.buffers().input());
        let coming = head.len() - before;
        loop {
            let mut few = [httparse::EMPTY_HEADER; 64];
            let mut many = Vec::new();
            let mut answer = httparse::Response::new(&mut few);
            let mut parsed = answer.parse(head);
            if parsed == Err(httparse::Error::TooManyHeaders) {
                many.resize(MAX_FIELDS, httparse::EMPTY_HEADER);
                answer = httparse::Response::new(&mut many);
                parsed = answer.parse(head);
            }
            match parsed {
                Ok(httparse::Status::Complete(len)) => {
                    let code = answer.code.unwrap_or_default();
                    if (100..200).contains(&code) && code != 101 {
                        head.drain(..len);
                        continue;
                    }
                    // `ureq` panics at what is no status (RFC 9110, 15).
                    if code < 100 {
                        return Err(Error::Io(io::Error::other(NoAnswer::NoStatus)));
                    }
                    let clean = clean(&answer);
                    // The rest stays in its place behind the head.
                    let rest = head.len() - len;
                    self.inner.buffers().input_consume(coming.saturating_sub(rest));
                    self.head = None;
                    let free = self.buffers.input_append_buf();
                    let free = free.get_mut(..clean.len()).ok_or_else(no_room)?;
                    free.copy_from_slice(&clean);
                    self.buffers.input_appended(clean.len());
                    return Ok(true);
                }
                Ok(httparse::Status::Partial) if head.len() <= MAX_HEAD => {
                    self.inner.buffers().input_consume(coming);
                    return Ok(false);
                }
                // The beginning of a TLS alert: the type, then version 3.x.
                Err(_) if head.starts_with(&[0x15, 3]) => {
                    return Err(Error::Io(io::Error::other(NoAnswer::TlsRecord)));
                }
                _ => return Err(no_room()),
            }
        }
    }
}

/// Sends what was kept of the output.
fn flush(
    inner: &mut Box<dyn Transport>,
    unsent: &mut usize,
    timeout: NextTimeout,
) -> Result<(), Error> {
    let amount = std::mem::take(unsent);
    if amount == 0 {
        return Ok(());
    }
    let sent = inner.transmit_output(amount, timeout);
    // Buffers stay with the connection, and tokens and keys are sent.
    inner.buffers().output()[..amount].zeroize();
    sent
}

fn no_room() -> Error {
    Error::Io(io::ErrorKind::InvalidData.into())
}

/// What a server sends that is no answer of HTTP.
#[derive(Debug)]
enum NoAnswer {
    /// A server of TLS was asked over plain HTTP.
    TlsRecord,
    /// The status is below 100.
    NoStatus,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsRecord => "a TLS record",
            Self::NoStatus => "no HTTP status",
        })
    }
}

impl std::error::Error for NoAnswer {}

/// An answer's head with the fields that mean something.
fn clean(answer: &httparse::Response<'_, '_>) -> Vec<u8> {
    let code = answer.code.unwrap_or_default();
    let mut head = format!("HTTP/1.{} {code:03} \r\n", answer.version.unwrap_or(1)).into_bytes();
    for field in answer.headers.iter() {
        let known = FIELDS.iter().any(|known| known.eq_ignore_ascii_case(field.name));
        if known && field.value.len() <= MAX_VALUE && head.len() + MAX_VALUE < MAX_CLEAN / 2 {
            head.extend_from_slice(field.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(field.value);
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl Drop for AnswerTransport {
    /// A request that was given up before it was sent: it may hold a token or a key.
    fn drop(&mut self) {
        let unsent = std::mem::take(&mut self.unsent);
        self.inner.buffers().output()[..unsent].zeroize();
    }
}

impl Transport for AnswerTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    /// Keeps the output as far as there is room: the head and the body of a request go in one packet.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.head.get_or_insert_default();
        let all = &mut self.buffers.output()[..amount];
        let (mut rest, mut sent) = (&*all, Ok(()));
        while sent.is_ok() && !rest.is_empty() {
            let room = &mut self.inner.buffers().output()[self.unsent..];
            let part = rest.len().min(room.len());
            room[..part].copy_from_slice(&rest[..part]);
            rest = &rest[part..];
            self.unsent += part;
            if part == room.len() {
                sent = flush(&mut self.inner, &mut self.unsent, timeout);
            }
        }
        all.zeroize();
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        flush(&mut self.inner, &mut self.unsent, timeout)?;
        while self.head.is_some() {
            if !self.inner.maybe_await_input(timeout)? {
                return Ok(false);
            }
            if self.read_head()? {
                self.pass();
                return Ok(true);
            }
        }
        if self.inner.buffers().input().is_empty() && !self.inner.await_input(timeout)? {
            return Ok(false);
        }
        Ok(self.pass() > 0)
    }

    fn is_open(&mut self) -> bool {
        // What comes behind an answer belongs to none.
        self.buffers.input().is_empty()
            && self.inner.buffers().input().is_empty()
            && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that answers each request, and keeps what is sent in one piece each.
    #[derive(Debug)]
    struct Wire {
        buffers: LazyBuffers,
        sent: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Transport for Wire {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            let piece = self.buffers.output()[..amount].to_vec();
            self.sent.lock().unwrap().push(piece);
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
            self.buffers.input_append_buf()[..answer.len()].copy_from_slice(answer);
            self.buffers.input_appended(answer.len());
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    impl Drop for Wire {
        fn drop(&mut self) {
            self.sent.lock().unwrap().push(self.buffers.output().to_vec());
        }
    }

    const FOREVER: NextTimeout =
        NextTimeout { after: time::Duration::NotHappening, reason: Timeout::Global };

    /// A connection that was given those parts of a request, and what it has sent.
    fn given(room: usize, parts: &[&[u8]]) -> (AnswerTransport, Arc<Mutex<Vec<Vec<u8>>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let wire = Wire { buffers: LazyBuffers::new(1024, room), sent: sent.clone() };
        let mut transport = AnswerTransport {
            inner: Box::new(wire),
            buffers: LazyBuffers::new(MAX_CLEAN, 1024),
            head: None,
            unsent: 0,
        };
        for part in parts {
            transport.buffers().output()[..part.len()].copy_from_slice(part);
            transport.transmit_output(part.len(), FOREVER).unwrap();
        }
        (transport, sent)
    }

    /// The pieces in which those parts of a request are sent, and what is left in the last buffer.
    fn pieces(room: usize, parts: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut transport, sent) = given(room, parts);
        assert!(transport.await_input(FOREVER).unwrap());
        assert!(transport.buffers().input().starts_with(b"HTTP/1.1 204"));
        let left = transport.inner.buffers().output().to_vec();
        (std::mem::take(&mut *sent.lock().unwrap()), left)
    }

    #[test]
    fn a_request_that_panics_is_one_without_an_answer() {
        assert_eq!(within(Duration::from_secs(1), || 204), Some(204));
        assert_eq!(within(Duration::from_secs(1), || -> u16 { panic!("an answer") }), None);
        assert_eq!(DEADLINE.get(), None);
    }

    #[test]
    fn head_and_body_are_sent_in_one_piece_and_forgotten() {
        let (sent, left) = pieces(64, &[b"POST / HTTP/1.1\r\n\r\n", b"a=1"]);
        assert_eq!(sent, [b"POST / HTTP/1.1\r\n\r\na=1"]);
        assert_eq!(left, [0; 64]);
    }

    #[test]
    fn what_was_given_up_before_it_was_sent_is_forgotten() {
        let (transport, sent) = given(64, &[b"Authorization: Bearer token"]);
        drop(transport);
        assert_eq!(*sent.lock().unwrap(), [[0; 64]], "nothing but the last buffer");
    }

    #[test]
    fn what_is_longer_than_the_buffer_is_sent_whole() {
        let (sent, left) = pieces(4, &[b"abcdef", b"", b"ghijkl", b"m"]);
        assert_eq!(sent, [&b"abcd"[..], b"efgh", b"ijkl", b"m"]);
        assert_eq!(left, [0; 4]);
    }
}
