//! The block `tirreno_target [name] { … }`.

use core::ffi::{c_char, c_void};
use core::{fmt, ptr};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nginx_sys::{ngx_command_t, ngx_conf_include, ngx_conf_parse, ngx_conf_t, ngx_str_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use tirreno_pipeline::capture::level::{Level, Routing};
use tirreno_pipeline::config::{AuditConfig, Destination, Sink, TargetConfig, Transport};
use tirreno_pipeline::delivery::tls::{self, ClientCertificate, Roots};
use tirreno_pipeline::event::EventType;
use tirreno_pipeline::privacy::Privacy;
use tirreno_pipeline::shm::zone::MAX_NAME;
use zeroize::Zeroizing;

use super::ext::{ConfExt, parse_size, parse_time_ms};
use crate::guarded;
use tirreno_pipeline::capture::rule::Place;

mod audit;
mod privacy;
mod tirreno;

const MAX_QUEUE: usize = 10_000_000;
/// Of a target of type `tirreno`.
const DEFAULT_REPEAT: u32 = 20;
const DEFAULT_QUEUE: (usize, usize) = (10_000, 16 << 20);

/// The types of targets, a bit each.
const TIRRENO: u8 = 1;
const FILE: u8 = 2;
const CONSOLE: u8 = 4;
const SYSLOG: u8 = 8;
const TCP: u8 = 16;
const STREAM: u8 = FILE | CONSOLE | SYSLOG | TCP;
const ANY: u8 = TIRRENO | STREAM;

/// The values of `type`, but for `none`.
const TYPES: [(&str, u8); 5] =
    [("tirreno", TIRRENO), ("file", FILE), ("console", CONSOLE), ("syslog", SYSLOG), ("tcp", TCP)];

/// Each parameter: its name, the least and the most arguments, and the types that it belongs to.
const PARAMETERS: [(&str, usize, usize, u8); 42] = [
    ("include", 1, 1, ANY),
    ("type", 1, 1, ANY),
    ("events", 1, usize::MAX, ANY),
    ("queue", 1, 2, ANY),
    ("interval", 1, 1, ANY),
    ("batch_size", 1, 1, ANY),
    ("shutdown_timeout", 1, 1, ANY),
    ("repeat", 1, 1, ANY),
    ("ip_mask", 2, 2, ANY),
    ("hash_user", 1, 1, ANY),
    ("omit", 1, usize::MAX, ANY),
    ("query", 1, 1, ANY),
    ("url", 1, 1, TIRRENO),
    ("api_key", 1, 1, TIRRENO),
    ("api_key_file", 1, 1, TIRRENO),
    ("header", 2, 2, TIRRENO),
    ("timeout", 1, 1, TIRRENO),
    ("connections", 1, 1, TIRRENO),
    ("rate", 1, 1, TIRRENO),
    ("accept_200", 1, 1, TIRRENO),
    ("resend", 1, 1, TIRRENO),
    ("login_fail_delay", 1, 1, TIRRENO),
    ("spool", 1, 4, TIRRENO),
    ("ssl_trusted_certificate", 1, 1, TIRRENO | SYSLOG | TCP),
    ("ssl_verify", 1, 1, TIRRENO | SYSLOG | TCP),
    ("ssl_certificate", 1, 1, TIRRENO | SYSLOG | TCP),
    ("ssl_certificate_key", 1, 1, TIRRENO | SYSLOG | TCP),
    ("format", 1, usize::MAX, STREAM),
    ("path", 1, 1, FILE),
    ("max_size", 1, 1, FILE),
    ("rotate", 1, 1, FILE),
    ("max_age", 1, 1, FILE),
    ("max_backups", 1, 1, FILE),
    ("compress", 1, 1, FILE),
    ("out", 1, 1, CONSOLE),
    ("server", 1, 1, SYSLOG | TCP),
    ("transport", 1, 1, SYSLOG | TCP),
    ("framing", 1, 1, SYSLOG | TCP),
    ("max_message_size", 1, 1, SYSLOG | TCP),
    ("facility", 1, 1, SYSLOG),
    ("severity", 1, 1, SYSLOG),
    ("tag", 1, 1, SYSLOG),
];

/// A target while its block is read; `None` is the default.
#[derive(Default)]
struct Draft {
    /// The parameters that were set, the types that they belong to, and where they stand.
    seen: Vec<(String, u8, Place)>,
    off: bool,
    kind: Option<(&'static str, u8)>,
    events: Option<Routing>,
    queue: Option<(usize, usize)>,
    interval: Option<Duration>,
    batch_size: Option<usize>,
    shutdown_timeout: Option<Duration>,
    repeat: Option<Option<u32>>,
    privacy: Privacy,
    tls: Tls,
    tirreno: tirreno::Draft,
    audit: audit::Draft,
}

/// How connections over TLS are made.
#[derive(Default)]
pub(super) struct Tls {
    pub(super) trusted: Option<Roots>,
    pub(super) verify: Option<bool>,
    /// The content of `ssl_certificate` and of `ssl_certificate_key`.
    certificate: Option<Vec<u8>>,
    key: Option<Zeroizing<Vec<u8>>>,
}

impl Tls {
    pub(super) fn is_set(&self) -> bool {
        self.trusted.is_some()
            || self.verify.is_some()
            || self.certificate.is_some()
            || self.key.is_some()
    }

    /// What the block connects with; messages call it `block`.
    pub(super) fn finish(self, block: &str) -> Result<tls::Tls, String> {
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
        tls::Tls::new(roots, client).map_err(of_block)
    }
}

/// Reads the block that follows; nothing for a target that is switched off.
pub(crate) fn read(cf: &mut ngx_conf_t, name: &str) -> Result<Option<TargetConfig>, *mut c_char> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name == "all" || name.len() > MAX_NAME || !name.chars().all(plain) {
        return Err(cf.error(format_args!(
            "invalid target name \"{name}\": at most {MAX_NAME} letters, digits, \"_\", \"-\", \
             \".\", and not \"all\""
        )));
    }
    let place = cf.place();
    let mut draft = Draft::default();
    let mut block = *cf;
    block.handler = Some(parameter);
    block.handler_conf = ptr::addr_of_mut!(draft).cast();
    // SAFETY: `block` is a copy of a valid context, as nginx's own block directives make it.
    let rc = unsafe { ngx_conf_parse(&mut block, ptr::null_mut()) };
    if rc != NGX_CONF_OK {
        return Err(rc);
    }
    draft.finish(cf, name, &place)
}

extern "C" fn parameter(
    cf: *mut ngx_conf_t,
    cmd: *mut ngx_command_t,
    draft: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes the context that `read` made.
        let cf = unsafe { &mut *cf };
        let args = cf.args();
        if let [name, _] = args
            && name.as_bytes() == b"include"
        {
            // SAFETY: as in nginx's own blocks with a handler; it comes back here.
            return unsafe { ngx_conf_include(cf, cmd, draft) };
        }
        // SAFETY: the draft that `read` put into the context.
        let draft = unsafe { &mut *draft.cast::<Draft>() };
        match draft.set(cf, &args[0].to_string(), &args[1..]) {
            Ok(()) => NGX_CONF_OK,
            Err(message) => cf.error(message),
        }
    })
}

/// A parameter's first argument.
pub(super) struct Argument<'a> {
    pub(super) name: &'a str,
    pub(super) text: ngx_str_t,
}

impl Argument<'_> {
    pub(super) fn invalid(&self, must: impl fmt::Display) -> String {
        let Self { name, text } = self;
        format!("invalid value \"{text}\" in \"{name}\" directive, it must be {must}")
    }

    /// A time of at least so many milliseconds.
    pub(super) fn time(&self, least: u64) -> Result<Duration, String> {
        let ms = parse_time_ms(self.text).filter(|ms| *ms >= least);
        ms.map(Duration::from_millis).ok_or_else(|| match least {
            0 => self.invalid("a time like \"1s\" or \"500ms\""),
            _ => self.invalid("a time above 0 like \"1s\" or \"500ms\""),
        })
    }

    pub(super) fn count(&self, most: usize) -> Result<usize, String> {
        let count = self.text.to_str().ok().and_then(|text| text.parse().ok());
        count
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| self.invalid(format_args!("a number from 1 to {most}")))
    }

    pub(super) fn flag(&self) -> Result<bool, String> {
        match self.text.as_bytes() {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Err(self.invalid("\"on\" or \"off\"")),
        }
    }
}

impl Draft {
    fn set(&mut self, cf: &mut ngx_conf_t, name: &str, args: &[ngx_str_t]) -> Result<(), String> {
        let Some((_, least, most, types)) = PARAMETERS.iter().find(|known| known.0 == name) else {
            return Err(format!("unknown directive \"{name}\" in \"tirreno_target\""));
        };
        if args.len() < *least || args.len() > *most {
            return Err(format!("invalid number of arguments in \"{name}\" directive"));
        }
        if name != "header" && self.seen.iter().any(|seen| seen.0 == name) {
            return Err(format!("\"{name}\" directive is duplicate"));
        }
        self.seen.push((name.to_owned(), *types, cf.place()));
        if args.iter().any(|arg| arg.as_bytes().contains(&b'$')) {
            return Err(format!(
                "\"{name}\" in \"tirreno_target\" cannot contain variables or \"$\"{}",
                if name == "api_key" {
                    ", put the key into a file for \"api_key_file\""
                } else {
                    ""
                }
            ));
        }
        let value = Argument { name, text: args[0] };
        match name {
            "type" => match value.text.as_bytes() {
                b"none" => self.off = true,
                text => {
                    let kind = TYPES.into_iter().find(|known| known.0.as_bytes() == text);
                    let names = TYPES.map(|known| format!("\"{}\"", known.0)).join(", ");
                    let must = format!("{names} or \"none\"");
                    self.kind = Some(kind.ok_or_else(|| value.invalid(must))?);
                }
            },
            "events" => self.events = Some(read_events(args)?),
            "queue" => {
                let bytes = match args.get(1) {
                    None => DEFAULT_QUEUE.1,
                    Some(arg) => arg
                        .strip_prefix(b"size=")
                        .and_then(parse_size)
                        .filter(|size| *size > 0)
                        .ok_or_else(|| {
                            format!(
                                "invalid parameter \"{arg}\" in \"queue\" directive, it must be a \
                                 size like \"size=16m\""
                            )
                        })?,
                };
                self.queue = Some((value.count(MAX_QUEUE)?, bytes));
            }
            "interval" => self.interval = Some(value.time(0)?),
            "batch_size" => self.batch_size = Some(value.count(MAX_QUEUE)?),
            "shutdown_timeout" => self.shutdown_timeout = Some(value.time(0)?),
            "repeat" => self.repeat = Some(read_repeat(&value)?),
            "ssl_trusted_certificate" => self.tls.trusted = Some(read_roots(cf, name, value.text)?),
            "ssl_verify" => self.tls.verify = Some(value.flag()?),
            "ssl_certificate" | "ssl_certificate_key" => {
                read_client_certificate(cf, name, value.text, &mut self.tls)?;
            }
            "ip_mask" | "hash_user" | "omit" | "query" => {
                privacy::set(&mut self.privacy, cf, name, args)?;
            }
            _ if types & TIRRENO != 0 => self.tirreno.set(cf, name, args)?,
            _ => self.audit.set(cf, name, args)?,
        }
        Ok(())
    }

    fn finish(
        self,
        cf: &mut ngx_conf_t,
        name: &str,
        place: &Place,
    ) -> Result<Option<TargetConfig>, *mut c_char> {
        if self.off {
            return Ok(None);
        }
        let (kind, bit) = self.kind.unwrap_or(TYPES[0]);
        let unverified = self.tls.verify == Some(false);
        if let Some((parameter, _, place)) = self.seen.iter().find(|seen| seen.1 & bit == 0) {
            let message =
                format_args!("\"{parameter}\" does not belong into a target of type \"{kind}\"");
            return Err(cf.error_at(place, message));
        }
        let spool = self.tirreno.spool.clone();
        let seen = self.seen;
        let destination = if bit == TIRRENO {
            self.tirreno.finish(self.tls, name).map(Destination::Tirreno)
        } else {
            self.audit.finish(self.tls, name, bit).map(Destination::Audit)
        };
        let destination = destination.map_err(|message| cf.error_at(place, message))?;
        let mut warn = |parameter: &str, message: &str| {
            if let Some((.., place)) = seen.iter().find(|seen| seen.0 == parameter) {
                cf.warn_at(place, message);
            }
        };
        if unverified {
            warn(
                "ssl_verify",
                "\"ssl_verify off\" lets anybody pretend to be the server, remove it and \
                                name the server's certificate or its authority in \
                                \"ssl_trusted_certificate\",",
            );
        }
        match &destination {
            Destination::Tirreno(tirreno)
                if !tirreno.endpoint.is_https() && !tirreno.endpoint.is_local() =>
            {
                warn(
                    "url",
                    "\"url\" sends events and the API key to another host over plain http, write \
                             \"https://\",",
                );
            }
            Destination::Audit(AuditConfig { sink: Sink::Syslog(syslog), .. })
                if matches!(syslog.server.transport, Transport::Datagram)
                    && !syslog.server.address.is_local() =>
            {
                warn(
                    "server",
                    "\"server\" is another host and gets its messages over UDP, which loses some, and \
                                shows them to everybody on the way, add \"transport tls\",",
                );
            }
            _ => {}
        }
        let (queue_events, queue_bytes) = self.queue.unwrap_or(DEFAULT_QUEUE);
        Ok(Some(TargetConfig {
            name: name.to_owned(),
            slot: 0,
            events: self.events.unwrap_or(Routing::ALL),
            queue_events,
            queue_bytes,
            interval: self.interval.unwrap_or(Duration::from_secs(1)),
            batch_size: self.batch_size.unwrap_or(512),
            shutdown_timeout: self.shutdown_timeout.unwrap_or(Duration::from_secs(1)),
            repeat: self.repeat.unwrap_or_else(|| (bit == TIRRENO).then_some(DEFAULT_REPEAT)),
            spool,
            privacy: self.privacy,
            destination,
        }))
    }
}

/// `20/m`, or `off`.
fn read_repeat(value: &Argument<'_>) -> Result<Option<u32>, String> {
    if value.text.as_bytes() == b"off" {
        return Ok(None);
    }
    let text = value.text.to_str().unwrap_or_default();
    let number = text.strip_suffix("/m").and_then(|number| number.parse().ok());
    let must = "\"off\" or a number a minute like \"20/m\"";
    number.filter(|number| *number > 0).map(Some).ok_or_else(|| value.invalid(must))
}

fn read_events(args: &[ngx_str_t]) -> Result<Routing, String> {
    let patterns: Vec<_> = args.iter().map(|a| a.to_string()).collect();
    let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
    Routing::from_patterns(&patterns).map_err(|pattern| {
        format!(
            "no event type matches \"{pattern}\" in \"events\" directive, the types are {}, and the \
             levels {}",
            EventType::ALL.map(EventType::name).join(", "),
            Level::ALL.map(Level::name).join(", ")
        )
    })
}

/// `ssl_trusted_certificate`.
pub(super) fn read_roots(
    cf: &mut ngx_conf_t,
    name: &str,
    path: ngx_str_t,
) -> Result<Roots, String> {
    let (path, pem) = read_file(cf, path)?;
    Roots::from_pem(&pem).map_err(|error| {
        format!(
            "\"{}\" cannot be used as \"{name}\": {error}, it must hold certificates of authorities in \
             PEM format",
            path.display()
        )
    })
}

/// `ssl_certificate` or `ssl_certificate_key`.
pub(super) fn read_client_certificate(
    cf: &mut ngx_conf_t,
    name: &str,
    path: ngx_str_t,
    tls: &mut Tls,
) -> Result<(), String> {
    let (_, content) = read_file(cf, path)?;
    match name {
        "ssl_certificate" => tls.certificate = Some(content),
        _ => tls.key = Some(Zeroizing::new(content)),
    }
    Ok(())
}

/// The file's full name and what it holds.
fn read_file(cf: &mut ngx_conf_t, path: ngx_str_t) -> Result<(PathBuf, Vec<u8>), String> {
    let path = cf.full_name(path).ok_or("no memory for a path")?;
    let content = fs::read(&path)
        .map_err(|error| format!("\"{}\" cannot be read: {error}", path.display()))?;
    Ok((path, content))
}

/// The content of a file that holds `what`, named by the directive `name`.
fn read_key(
    cf: &mut ngx_conf_t,
    path: ngx_str_t,
    name: &str,
    what: &str,
) -> Result<String, String> {
    let (path, key) = read_file(cf, path).map_err(|error| hide_key(cf, path, name, error))?;
    if fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
        let path = path.display();
        cf.warn(format_args!(
            "\"{path}\" holds {what} and everyone can read it, run \"chmod 600 {path}\""
        ));
    }
    Ok(String::from_utf8_lossy(&key).into_owned())
}

/// Warns of a file with the key in it that everybody can read.
fn warn_of_readers(cf: &mut ngx_conf_t, what: &str) {
    let path = PathBuf::from(&*cf.place().file);
    if fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
        let path = path.display();
        cf.warn(format_args!(
            "\"{path}\" holds {what} and everyone can read it, put the key into a file for \"api_key_file\", or \
             run \"chmod 600 {path}\""
        ));
    }
}

/// A name without a file may be the key itself, written where its file's path belongs: only an
/// absolute path is repeated, and what has a dot, which no key has.
fn hide_key(cf: &mut ngx_conf_t, path: ngx_str_t, name: &str, error: String) -> String {
    let is_path = path.as_bytes().starts_with(b"/") || path.as_bytes().contains(&b'.');
    match cf.full_name(path) {
        Some(full) if !is_path && !full.exists() => {
            let full = full.to_string_lossy();
            let directory = full.strip_suffix(&*path.to_string()).unwrap_or_default();
            format!("\"{name}\" names no file below \"{directory}\"")
        }
        _ => error,
    }
}

fn checked_key<'k>(key: &'k str, name: &str, what: &str) -> Result<&'k str, String> {
    let key = key.trim_ascii_end();
    if key.is_empty() {
        return Err(format!("\"{name}\" is empty, it must hold {what}"));
    }
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "\"{name}\" must hold {what} and nothing else, in one line without spaces"
        ));
    }
    Ok(key)
}
