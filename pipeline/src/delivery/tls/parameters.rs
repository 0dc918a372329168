//! The parameters `ssl_…` of a block: how its connections over TLS are made.

use zeroize::Zeroizing;

use super::{ClientCertificate, Roots, Tls};
use crate::config::block::{Parameter, Setting, put};

pub(crate) const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("ssl_trusted_certificate", |draft, s| put(&mut draft.trusted, read_roots(s))),
    Parameter::one("ssl_verify", |draft, s| put(&mut draft.verify, s.flag())),
    Parameter::one("ssl_certificate", |draft, s| put(&mut draft.certificate, read_argument(s))),
    Parameter::one("ssl_certificate_key", |draft, s| {
        put(&mut draft.key, read_argument(s).map(Zeroizing::new))
    }),
];

/// What a block says; `None` is the default.
#[derive(Default)]
pub(crate) struct Draft {
    trusted: Option<Roots>,
    verify: Option<bool>,
    /// The content of `ssl_certificate` and of `ssl_certificate_key`.
    certificate: Option<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

impl Draft {
    /// Whether a parameter was set.
    pub(crate) fn is_set(&self) -> bool {
        self.trusted.is_some()
            || self.verify.is_some()
            || self.certificate.is_some()
            || self.key.is_some()
    }

    /// Whether any server is believed.
    pub(crate) fn is_unverified(&self) -> bool {
        self.verify == Some(false)
    }

    /// What the block connects with; messages call it `block`.
    ///
    /// # Errors
    /// What is wrong, or missing.
    pub(crate) fn finish(self, block: &str) -> Result<Tls, String> {
        let system = |error| {
            format!(
                "{block} cannot verify certificates: {error}, install the package \
                 \"ca-certificates\" or set \"ssl_trusted_certificate\""
            )
        };
        let of_block = |error| format!("{block}: {error}");
        let roots = match (self.verify.unwrap_or(true), self.trusted) {
            (false, _) => None,
            (true, Some(roots)) => Some(roots),
            (true, None) => Some(Roots::system().map_err(system)?),
        };
        let client = match (self.certificate, self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate::from_pem(&certificate, &key).map_err(of_block)?)
            }
            (Some(_), None) => {
                return Err(of_block("\"ssl_certificate\" needs \"ssl_certificate_key\"".into()));
            }
            (None, Some(_)) => {
                return Err(of_block("\"ssl_certificate_key\" needs \"ssl_certificate\"".into()));
            }
        };
        Tls::new(roots, client).map_err(of_block)
    }
}

fn read_roots(s: &mut Setting<'_>) -> Result<Roots, String> {
    let (path, pem) = s.file.read_file(s.args[0])?;
    Roots::from_pem(&pem).map_err(|error| {
        format!(
            "\"{}\" cannot be used as \"{}\": {error}, it must hold certificates of authorities in \
             PEM format",
            path.display(),
            s.name
        )
    })
}

fn read_argument(s: &mut Setting<'_>) -> Result<Vec<u8>, String> {
    Ok(s.file.read_file(s.args[0])?.1)
}
