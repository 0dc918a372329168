//! TLS to the servers of all targets: one way to verify a certificate, and words for what is wrong.
//!
//! A server's certificate is verified as webpki does. In addition, a certificate that is itself in
//! `ssl_trusted_certificate` is accepted if its name and dates are right: self-hosters trust the certificate
//! that `openssl req -x509` made, and curl accepts it, too.

pub(crate) mod parameters;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError,
    RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};

use crate::fault::{Fault, TlsFault};

/// Trusted certificates, loaded while the configuration is read.
#[derive(Clone)]
pub struct Roots(Arc<Vec<CertificateDer<'static>>>);

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.0.len())
    }
}

impl Roots {
    /// The system's certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` override their places.
    ///
    /// # Errors
    /// There are none.
    pub fn system() -> Result<Self, String> {
        let found = rustls_native_certs::load_native_certs();
        Self::some(found.certs).ok_or_else(|| match found.errors.first() {
            Some(error) => error.to_string(),
            None => "the system has no CA certificates".into(),
        })
    }

    /// The certificates in a PEM file's content.
    ///
    /// # Errors
    /// It holds no certificate, or one that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        Self::some(certificates(pem)?).ok_or_else(|| "it holds no certificate".into())
    }

    fn some(certificates: Vec<CertificateDer<'static>>) -> Option<Self> {
        (!certificates.is_empty()).then(|| Self(Arc::new(certificates)))
    }
}

/// The client's certificate and its key, from `ssl_certificate` and `ssl_certificate_key`.
pub struct ClientCertificate(Arc<CertifiedKey>);

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(***)")
    }
}

impl ClientCertificate {
    /// A certificate, with its chain behind it, and its key; both PEM.
    ///
    /// # Errors
    /// One of them cannot be read or used, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = certificates(chain)?;
        if chain.is_empty() {
            return Err("\"ssl_certificate\" holds no certificate".into());
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| "\"ssl_certificate_key\" holds no unencrypted PEM key")?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                "\"ssl_certificate_key\" is not the key of \"ssl_certificate\""
            }
            _ => "the key in \"ssl_certificate_key\" is of an unsupported kind",
        })?;
        Ok(Self(Arc::new(key)))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| "it is no valid PEM file".into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The TLS configuration of a target's connections.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    client: Arc<Client>,
}

impl Tls {
    /// `roots`: the trusted certificates; `None` accepts any certificate (`ssl_verify off`).
    ///
    /// # Errors
    /// No certificate of `roots` can be used.
    pub fn new(roots: Option<Roots>, client: Option<ClientCertificate>) -> Result<Self, String> {
        let provider = provider();
        let verifier: Arc<dyn ServerCertVerifier> = match roots {
            Some(roots) => Arc::new(Verifier::new(roots, &provider)?),
            None => Arc::new(Anyone(provider.clone())),
        };
        let client = Arc::new(Client {
            certificate: client.map(|client| client.0),
            wanted: AtomicBool::new(false),
        });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(client.clone());
        Ok(Self { config: Arc::new(config), client })
    }

    /// The configuration for rustls.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// The fault for an error of a connection.
    pub fn fault(&self, error: &rustls::Error) -> Fault {
        let wanted = self.client.wanted.load(Relaxed);
        match error {
            rustls::Error::AlertReceived(alert) if wanted && is_about_us(*alert) => {
                Fault::Tls(match self.client.certificate {
                    Some(_) => TlsFault::ClientCertificateRefused,
                    None => TlsFault::ClientCertificateWanted,
                })
            }
            _ => fault(error),
        }
    }

    /// The fault for a connection that the server closed without a word, as many servers do when they miss a
    /// client certificate.
    pub fn closed(&self) -> Fault {
        if self.client.wanted.load(Relaxed) && self.client.certificate.is_none() {
            Fault::Tls(TlsFault::ClientCertificateWanted)
        } else {
            Fault::ConnectionBroken
        }
    }
}

fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
    )
}

fn fault(error: &rustls::Error) -> Fault {
    use rustls::Error::*;
    Fault::Tls(match error {
        InvalidCertificate(error) => match error {
            CertificateError::Other(OtherError(reason)) => {
                reason.downcast_ref().copied().unwrap_or(TlsFault::Certificate)
            }
            _ => TlsFault::Certificate,
        },
        NoCertificatesPresented => TlsFault::Certificate,
        AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity,
        )
        | PeerIncompatible(_) => TlsFault::NothingInCommon,
        InvalidMessage(_) => TlsFault::NotTls,
        _ => return Fault::ConnectionBroken,
    })
}

/// Presents the client's certificate, and notes that the server asked for one.
#[derive(Debug)]
struct Client {
    certificate: Option<Arc<CertifiedKey>>,
    wanted: AtomicBool,
}

impl ResolvesClientCert for Client {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.wanted.store(true, Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

/// Verifies certificates as webpki does, accepts trusted ones themselves, and finds the reason for a refusal.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Roots,
}

impl Verifier {
    fn new(roots: Roots, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.0.iter().cloned());
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build();
        let webpki = webpki.map_err(|_| "no certificate can be used")?;
        Ok(Self { webpki, roots })
    }

    /// Verifies the name and the dates of a certificate that is itself trusted.
    fn check_trusted(
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsFault> {
        let parsed = ParsedCertificate::try_from(certificate);
        let (_, read) =
            X509Certificate::from_der(certificate).map_err(|_| TlsFault::Certificate)?;
        if read.version() == X509Version::V1 {
            return Err(TlsFault::Version1);
        }
        check_dates(&read, now)?;
        if !has_names(&read) {
            return Err(TlsFault::NoName);
        }
        let parsed = parsed.map_err(|_| TlsFault::Certificate)?;
        verify_server_name(&parsed, name).map_err(|_| TlsFault::WrongName)
    }
}

fn check_dates(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), TlsFault> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now > validity.not_after.timestamp() {
        Err(TlsFault::Expired)
    } else if now < validity.not_before.timestamp() {
        Err(TlsFault::NotYetValid)
    } else {
        Ok(())
    }
}

fn has_names(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| {
        let is_host = |name: &GeneralName<'_>| {
            matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
        };
        names.value.general_names.iter().any(is_host)
    })
}

/// Why webpki refuses a certificate.
fn reason(error: &CertificateError, certificate: &CertificateDer<'_>, now: UnixTime) -> TlsFault {
    let Ok((_, read)) = X509Certificate::from_der(certificate) else {
        return TlsFault::Certificate;
    };
    if read.version() == X509Version::V1 {
        return TlsFault::Version1;
    }
    if let Err(fault) = check_dates(&read, now) {
        return fault;
    }
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            if has_names(&read) {
                TlsFault::WrongName
            } else {
                TlsFault::NoName
            }
        }
        // The error concerns another certificate in the chain.
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFault::NotYetValid
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            TlsFault::SignatureAlgorithm
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsFault::NotForServers
        }
        // A certificate with itself as its issuer may be one that webpki calls an authority.
        _ if read.issuer() == read.subject() => TlsFault::SelfSigned,
        CertificateError::UnknownIssuer => TlsFault::UnknownIssuer,
        _ => TlsFault::Certificate,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checked =
            self.webpki.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        let fault = match checked {
            Ok(verified) => return Ok(verified),
            Err(_) if self.roots.0.contains(end_entity) => {
                match Self::check_trusted(end_entity, name, now) {
                    Ok(()) => return Ok(ServerCertVerified::assertion()),
                    Err(fault) => fault,
                }
            }
            Err(rustls::Error::InvalidCertificate(error)) => reason(&error, end_entity, now),
            Err(error) => return Err(error),
        };
        Err(CertificateError::Other(OtherError(Arc::new(fault))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed).map_err(unsupported_key)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed).map_err(unsupported_key)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// The fault behind a handshake's signature that cannot be verified: the server signs it with the key of its
/// certificate, so that key's algorithm is the unsupported one.
fn unsupported_key(error: rustls::Error) -> rustls::Error {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => CertificateError::Other(OtherError(Arc::new(TlsFault::KeyAlgorithm))).into(),
        error => error,
    }
}

/// `ssl_verify off`: accepts any certificate, and verifies only the server's own signature.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_or_told_what_is_wrong() {
        assert!(Roots::from_pem(b"").is_err());
        assert!(
            Roots::from_pem(b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----").is_err()
        );
        let error = ClientCertificate::from_pem(b"", b"").unwrap_err();
        assert!(error.contains("ssl_certificate"), "{error}");
    }
}
