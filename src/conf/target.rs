//! The block `tirreno_target [name] { … }`.

use core::ffi::{c_char, c_void};
use core::ptr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use std::{fs, io};

use nginx_sys::{ngx_command_t, ngx_conf_parse, ngx_conf_t, ngx_str_t};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use tirreno_pipeline::config::{
    Endpoint, HEADERS_OF_OURS, Roots, Secret, TargetConfig, TirrenoConfig, check_header,
};
use tirreno_pipeline::event::EventTypes;
use tirreno_pipeline::zone::MAX_NAME;

use super::ext::{ConfExt, parse_size, parse_time_ms};
use crate::guarded;

const MAX_CONNECTIONS: usize = 64;
const MAX_QUEUE: usize = 10_000_000;

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
    let mut draft = Draft::default();
    let mut block = *cf;
    block.handler = Some(parameter);
    block.handler_conf = ptr::addr_of_mut!(draft).cast();
    // SAFETY: `block` is a copy of a valid context, as nginx's own block directives make it.
    let rc = unsafe { ngx_conf_parse(&mut block, ptr::null_mut()) };
    if rc != NGX_CONF_OK {
        return Err(rc);
    }
    draft.finish(cf, name)
}

extern "C" fn parameter(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    draft: *mut c_void,
) -> *mut c_char {
    guarded(NGX_CONF_ERROR, || {
        // SAFETY: nginx passes what `read` put into the context.
        let (cf, draft) = unsafe { (&mut *cf, &mut *draft.cast::<Draft>()) };
        let args = cf.args();
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
            | "accept_200" => (1, 1),
            "queue" => (1, 2),
            "header" => (2, 2),
            "events" => (1, usize::MAX),
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
                "\"{name}\" in \"tirreno_target\" cannot contain variables{}",
                if name == "api_key" {
                    ", put the key into a file for \"api_key_file\""
                } else {
                    ""
                }
            ));
        }
        let arg = args[0];
        let invalid = || format!("invalid value \"{arg}\" in \"{name}\" directive");
        let time = |least: u64| {
            let ms = parse_time_ms(arg).filter(|ms| *ms >= least).ok_or_else(invalid)?;
            Ok::<_, String>(Duration::from_millis(ms))
        };
        let count = |most: usize| {
            let count = arg.to_str().ok().and_then(|a| a.parse().ok());
            count.filter(|n| (1..=most).contains(n)).ok_or_else(invalid)
        };
        let flag = || match arg.as_bytes() {
            b"on" => Ok(true),
            b"off" => Ok(false),
            _ => Err(format!("{}, it must be \"on\" or \"off\"", invalid())),
        };
        match name {
            "type" => match arg.as_bytes() {
                b"tirreno" => {}
                b"none" => self.off = true,
                _ => return Err(format!("unknown target type \"{arg}\"")),
            },
            "events" => {
                let patterns: Vec<_> = args.iter().map(|a| a.to_string()).collect();
                let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
                let events = EventTypes::from_patterns(&patterns)
                    .map_err(|pattern| format!("no event type matches \"{pattern}\""))?;
                self.events = Some(events);
            }
            "queue" => {
                let bytes = match args.get(1) {
                    None => DEFAULT_QUEUE_BYTES,
                    Some(arg) => arg
                        .strip_prefix(b"size=")
                        .and_then(parse_size)
                        .filter(|size| *size > 0)
                        .ok_or_else(|| format!("invalid parameter \"{arg}\""))?,
                };
                self.queue = Some((count(MAX_QUEUE)?, bytes));
            }
            "interval" => self.interval = Some(time(0)?),
            "batch_size" => self.batch_size = Some(count(MAX_QUEUE)?),
            "shutdown_timeout" => self.shutdown_timeout = Some(time(0)?),
            "url" => {
                let text = arg.to_str().map_err(|_| invalid())?;
                let endpoint = Endpoint::parse(text)
                    .map_err(|error| format!("invalid URL \"{text}\": {error}"))?;
                self.endpoint = Some(endpoint);
            }
            "api_key" | "api_key_file" => {
                if self.api_key.is_some() {
                    return Err("\"api_key\" and \"api_key_file\" cannot be used together".into());
                }
                let key = if name == "api_key" { arg.to_string() } else { read_key(cf, arg)? };
                self.api_key = Some(checked_key(key, name)?);
            }
            "header" => {
                let (header, value) = (arg.to_string(), args[1].to_string());
                if HEADERS_OF_OURS.iter().any(|ours| ours.eq_ignore_ascii_case(&header)) {
                    return Err(format!("the header \"{header}\" is set by the module"));
                }
                check_header(&header, &value)
                    .map_err(|what| format!("invalid {what} of the header \"{header}\""))?;
                self.headers.push((header, Secret::new(value)));
            }
            "ssl_trusted_certificate" => {
                let path = cf.full_name(arg).ok_or_else(invalid)?;
                let roots =
                    fs::read(&path).map_err(|error| unreadable(arg, &error)).and_then(|pem| {
                        Roots::from_pem(&pem).map_err(|e| format!("\"{arg}\" cannot be used: {e}"))
                    })?;
                self.trusted = Some(roots);
            }
            "ssl_verify" => self.verify = Some(flag()?),
            "timeout" => self.timeout = Some(time(1)?),
            "connections" => self.connections = Some(count(MAX_CONNECTIONS)?),
            "rate" => {
                let rate = arg.to_str().ok().and_then(parse_rate);
                self.rate = Some(rate.ok_or_else(|| {
                    format!("{}, it must be \"auto\" or like \"10r/s\"", invalid())
                })?);
            }
            "accept_200" => self.accept_200 = Some(flag()?),
            _ => {}
        }
        Ok(())
    }

    fn finish(self, cf: &mut ngx_conf_t, name: &str) -> Result<Option<TargetConfig>, *mut c_char> {
        if self.off {
            return Ok(None);
        }
        let Some(endpoint) = self.endpoint else {
            return Err(cf.error(format_args!("no \"url\" is set for the target \"{name}\"")));
        };
        let Some(api_key) = self.api_key else {
            return Err(cf.error(format_args!(
                "no \"api_key_file\" or \"api_key\" is set for the target \"{name}\""
            )));
        };
        let verify = self.verify.unwrap_or(true);
        let roots = match self.trusted {
            None if endpoint.is_https() && verify => match Roots::system() {
                Ok(roots) => Some(roots),
                Err(error) => {
                    return Err(cf.error(format_args!(
                        "no CA certificates are found for the target \"{name}\" ({error}): \
                         install the package \"ca-certificates\", or set \
                         \"ssl_trusted_certificate\""
                    )));
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

fn unreadable(path: ngx_str_t, error: &io::Error) -> String {
    format!("\"{path}\" cannot be read: {error}")
}

fn read_key(cf: &mut ngx_conf_t, path: ngx_str_t) -> Result<String, String> {
    let file = cf.full_name(path).ok_or_else(|| format!("invalid path \"{path}\""))?;
    let key = fs::read_to_string(&file).map_err(|error| unreadable(path, &error))?;
    if fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
        cf.warn(format_args!(
            "\"{path}\" holds the API key and can be read by everyone: use \"chmod 600\""
        ));
    }
    Ok(key)
}

fn checked_key(key: String, name: &str) -> Result<Secret, String> {
    let key = key.trim_end();
    if key.is_empty() {
        return Err(format!("\"{name}\" holds no key"));
    }
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("\"{name}\" must hold one line of printable characters"));
    }
    Ok(Secret::new(key))
}
