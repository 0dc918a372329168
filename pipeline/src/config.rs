//! The configuration of the threads, which the module reads from nginx's.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::audit::format::FormatConfig;
use crate::audit::syslog;
use crate::capture::level::Routing;
use crate::delivery::spool::database::SpoolConfig;
use crate::delivery::tls::Tls;
use crate::privacy::Privacy;

/// A value that never appears in a message: an API key, a header.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Makes `value` a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One target, of any type.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Its name.
    pub name: String,
    /// The index of its counters in the zone, and of its bit in a record.
    pub slot: usize,
    /// The events that it gets.
    pub events: Routing,
    /// The most events that wait in memory.
    pub queue_events: usize,
    /// The most bytes of records that wait in memory.
    pub queue_bytes: usize,
    /// How long an event may wait to be collected together with others.
    pub interval: Duration,
    /// With so many events, a collection does not wait for the end of the interval.
    pub batch_size: usize,
    /// How many repetitions a minute are sent one by one (see `repeat`); `None`: all of them.
    pub repeat: Option<u32>,
    /// How long a stopping process tries to deliver what it holds.
    pub shutdown_timeout: Duration,
    /// Where events are kept until they are delivered.
    pub spool: Option<SpoolConfig>,
    /// What is hidden from the target.
    pub privacy: Privacy,
    /// Where its events go.
    pub destination: Destination,
}

impl TargetConfig {
    /// Whether it writes audit records or selects events by their level: both need more of a request than
    /// Tirreno's parameters.
    pub fn needs_audit(&self) -> bool {
        matches!(self.destination, Destination::Audit(_)) || self.events.asks_for_level()
    }

    /// The file that it writes.
    pub fn file(&self) -> Option<&Path> {
        match &self.destination {
            Destination::Audit(AuditConfig { sink: Sink::File(file), .. }) => Some(&file.path),
            _ => None,
        }
    }
}

/// Where a target's events go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Tirreno server, an event a request.
    Tirreno(TirrenoConfig),
    /// A stream of formatted records.
    Audit(AuditConfig),
}

impl Destination {
    /// The parameter `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Tirreno(_) => "tirreno",
            Self::Audit(stream) => match stream.sink {
                Sink::File(_) => "file",
                Sink::Console(_) => "console",
                Sink::Syslog(_) => "syslog",
                Sink::Tcp(_) => "tcp",
            },
        }
    }
}

/// A stream of formatted records.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// How a record is written.
    pub format: FormatConfig,
    /// Where they go.
    pub sink: Sink,
}

/// What takes a stream of records.
#[derive(Clone, Debug)]
pub enum Sink {
    /// A file that is rotated.
    File(FileConfig),
    /// nginx's own output.
    Console(Console),
    /// A syslog server, or the machine's.
    Syslog(SyslogConfig),
    /// A server that takes records one after another.
    Tcp(ServerConfig),
}

/// A file that is rotated. The default is never rotated.
#[derive(Clone, Debug, Default)]
pub struct FileConfig {
    /// Its path.
    pub path: PathBuf,
    /// Where the path stands in the configuration, for messages.
    pub place: String,
    /// It is rotated before it would exceed this number of bytes.
    pub max_size: Option<u64>,
    /// It is rotated at each multiple of this time since the epoch.
    pub rotate: Option<Duration>,
    /// Backups older than this are deleted.
    pub max_age: Option<Duration>,
    /// The most backups that are kept.
    pub max_backups: Option<usize>,
    /// Whether backups are compressed.
    pub compress: bool,
}

/// nginx's own output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Console {
    Stdout,
    Stderr,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host's name or address, and a port.
    Host(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Parses `host:port`, `[address]:port` or `unix:path`; `port` is the default port.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str, port: Option<u16>) -> Result<Self, &'static str> {
        const MUST: &str = "like \"host:port\" or \"unix:/path\"";
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(MUST) };
        }
        let (host, given) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or(MUST)?)),
            None => match text.rsplit_once(':') {
                Some((host, given)) => (host, Some(given)),
                None => (text, None),
            },
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_v6 = text.starts_with('[');
        if is_v6 && host.parse::<Ipv6Addr>().is_err()
            || !is_v6 && (host.is_empty() || !host.chars().all(plain))
        {
            return Err(MUST);
        }
        let port = match given {
            Some(given) => given.parse().ok().filter(|port| *port > 0),
            None => port,
        };
        Ok(Self::Host(host.to_owned(), port.ok_or(MUST)?))
    }
}

impl Address {
    /// Whether it is this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Host(host, _) => is_local_host(host),
            Self::Unix(_) => true,
        }
    }
}

/// Whether a name or an address belongs to this machine.
fn is_local_host(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How records are sent to a server.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A datagram for each record; also over a Unix socket.
    Datagram,
    /// One connection.
    Tcp,
    /// One connection with TLS.
    Tls(Tls),
}

/// How a receiver tells where a record on a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The record's length in decimal digits and a space precede it (RFC 6587, 3.4.1).
    OctetCounting,
    /// The record ends as the format's lines end (RFC 6587, 3.4.2): no record contains a newline.
    Newline,
    /// The record ends with NUL: no record contains one.
    Nul,
}

/// A server that takes records.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub address: Address,
    /// How records get there.
    pub transport: Transport,
    /// The framing of records; `None` for datagrams.
    pub framing: Option<Framing>,
    /// The most bytes of a message, without the length that octet counting puts before it.
    pub max_message: Option<usize>,
}

/// A syslog server.
#[derive(Clone, Debug)]
pub struct SyslogConfig {
    /// The server.
    pub server: ServerConfig,
    /// The header of its messages.
    pub header: syslog::HeaderConfig,
}

/// A Tirreno server.
#[derive(Clone, Debug)]
pub struct TirrenoConfig {
    /// The URL of its sensor.
    pub endpoint: Endpoint,
    /// The header `Api-Key`.
    pub api_key: Secret,
    /// Headers added to each POST.
    pub headers: Vec<(String, Secret)>,
    /// The TLS configuration, if the URL is `https`.
    pub tls: Option<Tls>,
    /// How long one POST may take, connecting included.
    pub timeout: Duration,
    /// The number of connections.
    pub connections: usize,
    /// The most events a second.
    pub rate: Option<f64>,
    /// Whether 200 means success.
    pub accept_200: bool,
    /// Whether what was accepted just before the server failed is sent again.
    pub resend: bool,
    /// How long a failed login waits for a successful one that follows it, as with a second factor; zero: it does not
    /// wait.
    pub login_fail_delay: Duration,
}

/// The URL of a sensor and the URL of its key check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    sensor: Uri,
    key_check: Uri,
}

/// Why a text is not the URL of a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointError {
    /// It is not `http://` or `https://` and a host.
    NotHttp,
    /// Its port is no number from 1 to 65535.
    Port,
    /// It holds a user or a password.
    Credentials,
    /// It has a query or a fragment.
    Query,
    /// Its path does not end with `/sensor/`.
    Path,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "it must be like https://host/sensor/ or http://host:8080/sensor/",
            Self::Port => "its port must be a number from 1 to 65535",
            Self::Credentials => "it must not hold a user or password, use \"header\" instead",
            Self::Query => "it must not have a query or fragment",
            Self::Path => "its path must end with \"/sensor/\"",
        })
    }
}

impl Endpoint {
    const SENSOR: &str = "sensor/";
    const KEY_CHECK: &str = "api/v1/blacklist/search";

    /// Parses `http(s)://host[:port]/…/sensor/`; without a path, `/sensor/` is added.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        if url.contains(['?', '#']) {
            return Err(EndpointError::Query);
        }
        let uri: Uri = url.parse().map_err(|_| EndpointError::NotHttp)?;
        let authority = uri.authority().ok_or(EndpointError::NotHttp)?.as_str();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.starts_with(':') {
            return Err(EndpointError::NotHttp);
        }
        if authority.contains('@') {
            return Err(EndpointError::Credentials);
        }
        let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
        if after_host.contains(':') && uri.port_u16().is_none_or(|port| port == 0) {
            return Err(EndpointError::Port);
        }
        let path = if uri.path() == "/" { "/sensor/" } else { uri.path() };
        let base = path
            .strip_suffix(Self::SENSOR)
            .filter(|base| base.ends_with('/'))
            .ok_or(EndpointError::Path)?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let at = |path: String| {
            format!("{scheme}://{authority}{path}").parse().map_err(|_| EndpointError::NotHttp)
        };
        Ok(Self {
            sensor: at(path.to_owned())?,
            key_check: at(format!("{base}{}", Self::KEY_CHECK))?,
        })
    }

    /// Where events are sent.
    pub fn sensor(&self) -> &Uri {
        &self.sensor
    }

    /// Where the key is checked.
    pub fn key_check(&self) -> &Uri {
        &self.key_check
    }

    /// Whether it is this machine.
    pub fn is_local(&self) -> bool {
        self.sensor.host().is_some_and(is_local_host)
    }

    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.sensor.scheme_str() == Some("https")
    }
}

/// Headers of a POST that the module sets itself and a configuration cannot change.
pub const HEADERS_OF_OURS: [&str; 7] = [
    "Api-Key",
    "Connection",
    "Content-Length",
    "Content-Type",
    "Expect",
    "Transfer-Encoding",
    "X-Request-Id",
];

/// Whether a header can be sent.
///
/// # Errors
/// What is wrong: `"name"` or `"value"`.
pub fn check_header(name: &str, value: &str) -> Result<(), &'static str> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| "name")?;
    HeaderValue::from_str(value).map_err(|_| "value")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let ok = |url, sensor, check| {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.sensor(), sensor);
            assert_eq!(endpoint.key_check(), check);
        };
        ok("http://t", "http://t/sensor/", "http://t/api/v1/blacklist/search");
        ok("https://t:8/", "https://t:8/sensor/", "https://t:8/api/v1/blacklist/search");
        ok(
            "https://[::1]/a/sensor/",
            "https://[::1]/a/sensor/",
            "https://[::1]/a/api/v1/blacklist/search",
        );
        for (url, error) in [
            ("", EndpointError::NotHttp),
            ("tirreno", EndpointError::NotHttp),
            ("/sensor/", EndpointError::NotHttp),
            ("ftp://t/sensor/", EndpointError::NotHttp),
            ("http:///sensor/", EndpointError::NotHttp),
            ("http://t:/sensor/", EndpointError::Port),
            ("http://t:0/sensor/", EndpointError::Port),
            ("http://t:http/sensor/", EndpointError::Port),
            ("http://t:65536/sensor/", EndpointError::Port),
            ("http://[::1]:x/sensor/", EndpointError::Port),
            ("http://t/sensor", EndpointError::Path),
            ("http://t/xsensor/", EndpointError::Path),
            ("http://t/sensor/x", EndpointError::Path),
            ("http://t/sensor/?a", EndpointError::Query),
            ("http://t/sensor/#a", EndpointError::Query),
            ("http://u:p@t/sensor/", EndpointError::Credentials),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap_err(), error, "{url}");
        }
    }

    #[test]
    fn addresses() {
        let parse = |text| Address::parse(text, None).map(|address| address.to_string());
        for good in ["localhost:514", "192.0.2.1:1", "[::1]:65535", "unix:/dev/log"] {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for bad in ["", "host", ":1", "host:", "host:0", "host:65536", "::1:1", "[::1]", "[x]:1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["unix:", "unix:log", "a b:1", "http://a:1", "[::1]x:1", "[::1]1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let with_port = |text| Address::parse(text, Some(514)).unwrap().to_string();
        assert_eq!(with_port("localhost"), "localhost:514");
        assert_eq!(with_port("[::1]"), "[::1]:514");
    }

    #[test]
    fn secrets_hide() {
        assert_eq!(format!("{:?}", Secret::new("k")), "***");
    }
}
