//! The parameters of a target of the type `tirreno`.

use std::fs;
use std::time::Duration;

use crate::config::block::{Parameter, Setting, parse_age, put};
use crate::config::header::check_header;
use crate::config::key;
use crate::config::secret::Secret;
use crate::delivery::spool::{SpoolConfig, WhenFull};
use crate::delivery::tls::parameters::Draft as Tls;
use crate::text::readable;
use crate::tirreno::config::{Endpoint, TirrenoConfig};

/// How long one POST may take. With 5 s, a slow Tirreno stored events twice: after the time was over, and again.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What `api_key` and `api_key_file` hold.
const API_KEY: &str = "the API key";
const MAX_CONNECTIONS: usize = 64;
const MIN_SPOOL: usize = 1 << 20;

/// Headers of a POST that the module sets itself and a configuration cannot change.
const OURS: [&str; 7] = [
    "Api-Key",
    "Connection",
    "Content-Length",
    "Content-Type",
    "Expect",
    "Transfer-Encoding",
    "X-Request-Id",
];

pub(crate) const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("url", |draft, s| put(&mut draft.endpoint, read_url(s))),
    Parameter::one("api_key", |draft, s| {
        key::warn_of_readers(s.file, API_KEY);
        let text = s.text();
        draft.set_key(key::check(&text, s.name, API_KEY)?)
    }),
    Parameter::one("api_key_file", |draft, s| {
        draft.set_key(&key::read(s.file, s.args[0], s.name, API_KEY)?)
    }),
    Parameter::of("header", 2..=2, |draft: &mut Draft, s| {
        draft.headers.push(read_header(s)?);
        Ok(())
    })
    .repeated(),
    Parameter::one("timeout", |draft, s| put(&mut draft.timeout, s.time(1))),
    Parameter::one("connections", |draft, s| put(&mut draft.connections, s.count(MAX_CONNECTIONS))),
    Parameter::one("rate", |draft, s| put(&mut draft.rate, read_rate(s))),
    Parameter::one("accept_200", |draft, s| put(&mut draft.accept_200, s.flag())),
    Parameter::one("resend", |draft, s| put(&mut draft.resend, s.flag())),
    Parameter::one("login_fail_delay", |draft, s| put(&mut draft.login_fail_delay, s.time(0))),
    Parameter::of("spool", 1..=4, |draft, s| put(&mut draft.spool, read_spool(s))),
];

/// What a block says; `None` is the default.
#[derive(Default)]
pub(crate) struct Draft {
    endpoint: Option<Endpoint>,
    api_key: Option<Secret>,
    headers: Vec<(String, Secret)>,
    timeout: Option<Duration>,
    connections: Option<usize>,
    rate: Option<Option<f64>>,
    accept_200: Option<bool>,
    resend: Option<bool>,
    login_fail_delay: Option<Duration>,
    pub(crate) spool: Option<SpoolConfig>,
}

impl Draft {
    fn set_key(&mut self, key: &str) -> Result<(), String> {
        if self.api_key.is_some() {
            return Err("\"api_key\" and \"api_key_file\" are both set, remove one".into());
        }
        self.api_key = Some(Secret::new(key));
        Ok(())
    }

    /// What the whole block of the target `name` says.
    pub(crate) fn finish(self, tls: Tls, name: &str) -> Result<TirrenoConfig, String> {
        let Some(endpoint) = self.endpoint else {
            return Err(format!(
                "target \"{name}\" has no \"url\", add it like \"url https://HOST/sensor/;\""
            ));
        };
        let Some(api_key) = self.api_key else {
            return Err(format!("target \"{name}\" has no API key, add \"api_key_file PATH;\""));
        };
        if !endpoint.is_https() && tls.is_set() {
            return Err(format!(
                "target \"{name}\" has a parameter \"ssl_...\", which needs a \"url\" that begins with \
                 \"https://\""
            ));
        }
        let tls = match endpoint.is_https() {
            true => Some(tls.finish(&format!("target \"{name}\""))?),
            false => None,
        };
        Ok(TirrenoConfig {
            endpoint,
            api_key,
            headers: self.headers,
            tls,
            timeout: self.timeout.unwrap_or(TIMEOUT),
            connections: self.connections.unwrap_or(1),
            rate: self.rate.flatten(),
            accept_200: self.accept_200.unwrap_or(false),
            resend: self.resend.unwrap_or(false),
            login_fail_delay: self.login_fail_delay.unwrap_or(Duration::from_secs(60)),
        })
    }
}

/// The message has no URL: it may hold a password.
fn read_url(s: &mut Setting<'_>) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(&s.text());
    endpoint.map_err(|e| format!("invalid value in \"url\" directive, {e}"))
}

fn read_header(s: &mut Setting<'_>) -> Result<(String, Secret), String> {
    let (header, value) = (readable(s.args[0]), readable(s.args[1]));
    if OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&header)) {
        return Err(format!(
            "\"header\" directive cannot change \"{header}\", which the module sets"
        ));
    }
    check_header(&header, &value).map_err(|what| {
        let must = match what {
            "name" => "a header's name without \":\"",
            _ => "printable ASCII characters",
        };
        format!("invalid {what} of \"{header}\" in \"header\" directive, it must be {must}")
    })?;
    Ok((header, Secret::new(value)))
}

/// A rate, or `auto`.
fn read_rate(s: &mut Setting<'_>) -> Result<Option<f64>, String> {
    if s.bytes() == b"auto" {
        return Ok(None);
    }
    let must = "\"auto\" or a rate like \"10r/s\" or \"300r/m\"";
    s.rate().map(Some).ok_or_else(|| s.invalid(must))
}

/// `path [max_size=1g] [max_age=7d] [when_full=drop_oldest|drop_newest]`; nginx makes the directory
/// with the worker's owner, as for its temporary files.
fn read_spool(s: &mut Setting<'_>) -> Result<SpoolConfig, String> {
    let (file, args) = (&mut *s.file, s.args);
    if args[0].is_empty() {
        return Err("\"spool\" names no directory".into());
    }
    let mut spool = SpoolConfig::new(file.claim_directory(args[0])?, file.place().to_string());
    // nginx itself takes whatever has this name for its directory.
    if fs::metadata(&spool.path).is_ok_and(|meta| !meta.is_dir()) {
        let path = spool.path.display();
        return Err(format!("the spool's path \"{path}\" is no directory"));
    }
    for (place, arg) in args.iter().enumerate().skip(1) {
        let name = |arg: &&[u8]| arg.split(|b| *b == b'=').next().map(readable);
        if args[1..place].iter().any(|known| name(known) == name(arg)) {
            return Err(format!(
                "duplicate parameter \"{}\" in \"spool\" directive",
                readable(arg)
            ));
        }
        let invalid = |must: &str| {
            let arg = readable(arg);
            format!("invalid parameter \"{arg}\" in \"spool\" directive, it must be {must}")
        };
        if let Some(size) = arg.strip_prefix(b"max_size=") {
            let size = file.parse_size(size).filter(|size| *size >= MIN_SPOOL);
            let must = "a size from 1m on, like \"max_size=1g\"";
            spool.max_size = size.ok_or_else(|| invalid(must))? as u64;
        } else if let Some(age) = arg.strip_prefix(b"max_age=") {
            let must = "a time like \"max_age=7d\"";
            spool.max_age = parse_age(file, age).ok_or_else(|| invalid(must))?;
        } else {
            spool.when_full = match *arg {
                b"when_full=drop_oldest" => WhenFull::DropOldest,
                b"when_full=drop_newest" => WhenFull::DropNewest,
                _ => {
                    return Err(invalid(
                        "\"max_size=\", \"max_age=\", or \"when_full=\" with \"drop_oldest\" or \
                         \"drop_newest\"",
                    ));
                }
            };
        }
    }
    Ok(spool)
}
