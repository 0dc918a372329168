//! Addresses of servers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

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
pub(crate) fn is_local_host(host: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
