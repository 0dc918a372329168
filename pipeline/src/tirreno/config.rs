//! The configuration of a target of the type `tirreno`.

use std::fmt;
use std::time::Duration;

use ureq::http::Uri;

use crate::config::address::is_local_host;
use crate::config::secret::Secret;
use crate::delivery::tls::Tls;

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
}
