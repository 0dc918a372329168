//! The block `tirreno_target [name] { … }`.

use core::ffi::{c_char, c_void};
use core::{fmt, ptr};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nginx_sys::{ngx_command_t, ngx_conf_include, ngx_conf_parse, ngx_conf_t, ngx_str_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use tirreno_pipeline::config::{
    Endpoint, HEADERS_OF_OURS, Roots, Secret, TargetConfig, TirrenoConfig, check_header,
};
use tirreno_pipeline::event::{EventType, EventTypes, Param};
use tirreno_pipeline::privacy::{IpMask, Privacy, UserKey};
use tirreno_pipeline::spool::{SpoolConfig, WhenFull};
use tirreno_pipeline::zone::MAX_NAME;

use super::ext::{ConfExt, Place, parse_size, parse_time_ms};
use crate::guarded;

const MAX_CONNECTIONS: usize = 64;
const MAX_QUEUE: usize = 10_000_000;
const MIN_SPOOL: usize = 1 << 20;
/// A shorter key is easier to guess than what HMAC-SHA-256 makes of it, says RFC 2104.
const MIN_USER_KEY: usize = 32;
/// What Tirreno does not do without.
const REQUIRED: [Param; 3] = [Param::IpAddress, Param::Url, Param::EventTime];

/// A target while its block is read; `None` is the default.
#[derive(Default)]
struct Draft {
    seen: Vec<String>,
    off: bool,
    events: Option<EventTypes>,
    queue: Option<(usize, usize)>,
    interval: Option<Duration>,
    batch_size: Option<usize>,
    shutdown_timeout: Option<Duration>,
    endpoint: Option<Endpoint>,
    api_key: Option<Secret>,
    headers: Vec<(String, Secret)>,
    trusted: Option<Roots>,
    verify: Option<bool>,
    timeout: Option<Duration>,
    connections: Option<usize>,
    rate: Option<Option<f64>>,
    accept_200: Option<bool>,
    login_fail_delay: Option<Duration>,
    spool: Option<SpoolConfig>,
    privacy: Privacy,
}

/// Reads the block that follows; nothing for a target that is switched off.
pub(super) fn read(cf: &mut ngx_conf_t, name: &str) -> Result<Option<TargetConfig>, *mut c_char> {
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

impl Draft {
    fn set(&mut self, cf: &mut ngx_conf_t, name: &str, args: &[ngx_str_t]) -> Result<(), String> {
        let (least, most) = match name {
            "type"
            | "interval"
            | "batch_size"
            | "shutdown_timeout"
            | "url"
            | "api_key"
            | "api_key_file"
            | "ssl_trusted_certificate"
            | "ssl_verify"
            | "timeout"
            | "connections"
            | "rate"
            | "accept_200"
            | "login_fail_delay"
            | "hash_user"
            | "query"
            | "include" => (1, 1),
            "queue" => (1, 2),
            "spool" => (1, 4),
            "header" | "ip_mask" => (2, 2),
            "events" | "omit" => (1, usize::MAX),
            _ => return Err(format!("unknown directive \"{name}\" in \"tirreno_target\"")),
        };
        if args.len() < least || args.len() > most {
            return Err(format!("invalid number of arguments in \"{name}\" directive"));
        }
        if name != "header" {
            if self.seen.iter().any(|seen| seen == name) {
                return Err(format!("\"{name}\" directive is duplicate"));
            }
            self.seen.push(name.to_owned());
        }
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
        let arg = args[0];
        let invalid = |must: &dyn fmt::Display| {
            format!("invalid value \"{arg}\" in \"{name}\" directive, it must be {must}")
        };
        let time = |least: u64| {
            let ms = parse_time_ms(arg).filter(|ms| *ms >= least);
            ms.map(Duration::from_millis).ok_or_else(|| match least {
                0 => invalid(&"a time like \"1s\" or \"500ms\""),
                _ => invalid(&"a time above 0 like \"1s\" or \"500ms\""),
            })
        };
        let count = |most: usize| {
            let count = arg.to_str().ok().and_then(|a| a.parse().ok());
            count
                .filter(|n| (1..=most).contains(n))
                .ok_or_else(|| invalid(&format_args!("a number from 1 to {most}")))
        };
        let flag = || match arg.as_bytes() {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Err(invalid(&"\"on\" or \"off\"")),
        };
        match name {
            "type" => match arg.as_bytes() {
                b"tirreno" => {}
                b"none" => self.off = true,
                _ => return Err(invalid(&"\"tirreno\" or \"none\"")),
            },
            "events" => {
                let patterns: Vec<_> = args.iter().map(|a| a.to_string()).collect();
                let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
                let events = EventTypes::from_patterns(&patterns).map_err(|pattern| {
                    format!(
                        "no event type matches \"{pattern}\" in \"events\" directive, the types \
                         are {}",
                        EventType::ALL.map(EventType::name).join(", ")
                    )
                })?;
                self.events = Some(events);
            }
            "queue" => {
                let bytes = match args.get(1) {
                    None => DEFAULT_QUEUE_BYTES,
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
                self.queue = Some((count(MAX_QUEUE)?, bytes));
            }
            "spool" => self.spool = Some(read_spool(cf, args)?),
            "interval" => self.interval = Some(time(0)?),
            "batch_size" => self.batch_size = Some(count(MAX_QUEUE)?),
            "login_fail_delay" => self.login_fail_delay = Some(time(0)?),
            "shutdown_timeout" => self.shutdown_timeout = Some(time(0)?),
            "url" => {
                // The message has no URL: it may hold a password.
                let endpoint = Endpoint::parse(&arg.to_string());
                let invalid = |e| format!("invalid value in \"url\" directive, {e}");
                self.endpoint = Some(endpoint.map_err(invalid)?);
            }
            "api_key" | "api_key_file" => {
                if self.api_key.is_some() {
                    return Err("\"api_key\" and \"api_key_file\" are both set, remove one".into());
                }
                let key = if name == "api_key" {
                    arg.to_string()
                } else {
                    read_key(cf, arg, name, API_KEY)?
                };
                self.api_key = Some(Secret::new(checked_key(&key, name, API_KEY)?));
            }
            "header" => {
                let (header, value) = (arg.to_string(), args[1].to_string());
                if HEADERS_OF_OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&header)) {
                    return Err(format!(
                        "\"header\" directive cannot change \"{header}\", which the module sets"
                    ));
                }
                check_header(&header, &value).map_err(|what| {
                    format!(
                        "invalid {what} of \"{header}\" in \"header\" directive, it must be {}",
                        match what {
                            "name" => "a header's name without \":\"",
                            _ => "printable ASCII characters",
                        }
                    )
                })?;
                self.headers.push((header, Secret::new(value)));
            }
            "ssl_trusted_certificate" => {
                let (path, pem) = read_file(cf, arg)?;
                let roots = Roots::from_pem(&pem).map_err(|error| {
                    format!(
                        "\"{}\" cannot be used as \"{name}\": {error}, it must hold certificates \
                         of authorities in PEM format",
                        path.display()
                    )
                })?;
                self.trusted = Some(roots);
            }
            "ssl_verify" => self.verify = Some(flag()?),
            "timeout" => self.timeout = Some(time(1)?),
            "connections" => self.connections = Some(count(MAX_CONNECTIONS)?),
            "rate" => {
                let rate = arg.to_str().ok().and_then(parse_rate);
                let must = "\"auto\" or a rate like \"10r/s\" or \"300r/m\"";
                self.rate = Some(rate.ok_or_else(|| invalid(&must))?);
            }
            "accept_200" => self.accept_200 = Some(flag()?),
            "ip_mask" => {
                let prefix = |arg: ngx_str_t, most: u8, what: &str| {
                    let prefix = arg.to_str().ok().and_then(|a| a.parse().ok());
                    prefix.filter(|n| *n <= most).ok_or_else(|| {
                        format!(
                            "invalid value \"{arg}\" in \"{name}\" directive, the prefix of {what} \
                             addresses must be a number from 0 to {most}"
                        )
                    })
                };
                let (v4, v6) = (prefix(arg, 32, "IPv4")?, prefix(args[1], 128, "IPv6")?);
                self.privacy.ip_mask = Some(IpMask { v4, v6 });
            }
            "hash_user" => self.privacy.hash_user = Some(read_user_key(cf, arg)?),
            "omit" => self.privacy.omit = read_omitted(args)?,
            "query" => self.privacy.cut_query = !flag()?,
            _ => {}
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
        let Some(endpoint) = self.endpoint else {
            return Err(cf.error_at(
                place,
                format_args!(
                    "target \"{name}\" has no \"url\", add it like \"url https://HOST/sensor/;\""
                ),
            ));
        };
        let Some(api_key) = self.api_key else {
            return Err(cf.error_at(
                place,
                format_args!("target \"{name}\" has no API key, add \"api_key_file PATH;\""),
            ));
        };
        let verify = self.verify.unwrap_or(true);
        let roots = match self.trusted {
            None if endpoint.is_https() && verify => match Roots::system() {
                Ok(roots) => Some(roots),
                Err(error) => {
                    return Err(cf.error_at(
                        place,
                        format_args!(
                            "target \"{name}\" cannot verify certificates: {error}, install the \
                             package \"ca-certificates\" or set \"ssl_trusted_certificate\""
                        ),
                    ));
                }
            },
            trusted => trusted,
        };
        let (queue_events, queue_bytes) = self.queue.unwrap_or((10_000, DEFAULT_QUEUE_BYTES));
        Ok(Some(TargetConfig {
            name: name.to_owned(),
            slot: 0,
            events: self.events.unwrap_or(EventTypes::ALL),
            queue_events,
            queue_bytes,
            interval: self.interval.unwrap_or(Duration::from_secs(1)),
            batch_size: self.batch_size.unwrap_or(512),
            shutdown_timeout: self.shutdown_timeout.unwrap_or(Duration::from_secs(1)),
            spool: self.spool,
            privacy: self.privacy,
            tirreno: TirrenoConfig {
                endpoint,
                api_key,
                headers: self.headers,
                roots,
                verify,
                timeout: self.timeout.unwrap_or(Duration::from_secs(5)),
                connections: self.connections.unwrap_or(1),
                rate: self.rate.flatten(),
                accept_200: self.accept_200.unwrap_or(false),
                login_fail_delay: self.login_fail_delay.unwrap_or(Duration::from_secs(60)),
            },
        }))
    }
}

const DEFAULT_QUEUE_BYTES: usize = 16 << 20;

/// `auto`, or a number of requests per second or minute, as for `limit_req_zone`.
fn parse_rate(text: &str) -> Option<Option<f64>> {
    if text == "auto" {
        return Some(None);
    }
    let (number, seconds) = match text.strip_suffix("r/s") {
        Some(number) => (number, 1.0),
        None => (text.strip_suffix("r/m")?, 60.0),
    };
    let number: u32 = number.parse().ok().filter(|n| *n > 0)?;
    Some(Some(f64::from(number) / seconds))
}

/// `path [max_size=1g] [max_age=7d] [when_full=drop_oldest|drop_newest]`; nginx makes the directory
/// with the worker's owner, as for its temporary files.
fn read_spool(cf: &mut ngx_conf_t, args: &[ngx_str_t]) -> Result<SpoolConfig, String> {
    let mut spool = SpoolConfig {
        path: cf.add_path(args[0]).ok_or("the spool's path cannot be used")?,
        max_size: 1 << 30,
        max_age: Duration::from_secs(7 * 24 * 60 * 60),
        when_full: WhenFull::DropOldest,
    };
    // nginx itself takes whatever has this name for its directory.
    if fs::metadata(&spool.path).is_ok_and(|meta| !meta.is_dir()) {
        let path = spool.path.display();
        return Err(format!("the spool's path \"{path}\" is no directory"));
    }
    for arg in &args[1..] {
        let invalid = |must: &str| {
            format!("invalid parameter \"{arg}\" in \"spool\" directive, it must be {must}")
        };
        if let Some(size) = arg.strip_prefix(b"max_size=") {
            let size = parse_size(size).filter(|size| *size >= MIN_SPOOL);
            let must = "a size from 1m on, like \"max_size=1g\"";
            spool.max_size = size.ok_or_else(|| invalid(must))? as u64;
        } else if let Some(age) = arg.strip_prefix(b"max_age=") {
            let age = parse_time_ms(age).filter(|age| *age > 0);
            let must = "a time like \"max_age=7d\"";
            spool.max_age = Duration::from_millis(age.ok_or_else(|| invalid(must))?);
        } else {
            spool.when_full = match arg.as_bytes() {
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

/// The file's full name and what it holds.
fn read_file(cf: &mut ngx_conf_t, path: ngx_str_t) -> Result<(PathBuf, Vec<u8>), String> {
    let path = cf.full_name(path).ok_or("no memory for a path")?;
    let content = fs::read(&path)
        .map_err(|error| format!("\"{}\" cannot be read: {error}", path.display()))?;
    Ok((path, content))
}

/// The parameters' bits.
fn read_omitted(names: &[ngx_str_t]) -> Result<u32, String> {
    let mut omitted = 0;
    for name in names {
        let Some(param) = Param::from_name(name.as_bytes()) else {
            return Err(format!(
                "unknown parameter \"{name}\" in \"omit\" directive, it must be one of {}",
                Param::ALL.map(Param::name).join(", ")
            ));
        };
        if REQUIRED.contains(&param) {
            return Err(format!(
                "\"{name}\" in \"omit\" directive is required by Tirreno, see \"ip_mask\" and \
                 \"query\" for less of it"
            ));
        }
        if omitted & param.bit() != 0 {
            return Err(format!("duplicate parameter \"{name}\" in \"omit\" directive"));
        }
        omitted |= param.bit();
    }
    Ok(omitted)
}

fn read_user_key(cf: &mut ngx_conf_t, path: ngx_str_t) -> Result<UserKey, String> {
    const WHAT: &str = "the key for users";
    let key = read_key(cf, path, "hash_user", WHAT)?;
    let key = checked_key(&key, "hash_user", WHAT)?;
    if key.len() < MIN_USER_KEY {
        cf.warn(format_args!(
            "the key of \"hash_user\" is shorter than {MIN_USER_KEY} characters, make one with \
             \"openssl rand -hex 32\""
        ));
    }
    Ok(UserKey::new(key.as_bytes()))
}

/// What `api_key` and `api_key_file` hold.
const API_KEY: &str = "the API key";

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

/// A name without a file may be the key itself, written where its file's path belongs: only an
/// absolute path is repeated.
fn hide_key(cf: &mut ngx_conf_t, path: ngx_str_t, name: &str, error: String) -> String {
    match cf.full_name(path) {
        Some(full) if !path.as_bytes().starts_with(b"/") && !full.exists() => {
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
