//! The parameters of targets of the types `file`, `console`, `syslog` and `tcp`.

use std::path::{self, PathBuf};
use std::time::Duration;

use nginx_sys::{ngx_conf_t, ngx_str_t};
use tirreno_pipeline::audit::format::FormatConfig;
use tirreno_pipeline::audit::syslog::{Facility, HeaderConfig, Severity};
use tirreno_pipeline::config::{
    Address, AuditConfig, Console, FileConfig, Framing, ServerConfig, Sink, SyslogConfig, Transport,
};

use super::{Argument, CONSOLE, FILE, SYSLOG, Tls, checked_key, read_key};
use crate::conf::ext::{ConfExt, parse_size, parse_time_ms};
use crate::permissions;
use tirreno_pipeline::capture::rule::Place;

/// Of a file, before it is rotated.
const DEFAULT_SIZE: u64 = 100 << 20;
const MAX_BACKUPS: usize = 1_000_000;
/// Of a syslog message, unless `max_message_size` says otherwise: what rsyslog takes as it is shipped. It makes
/// a message of its own of the rest of a longer one.
const DEFAULT_MESSAGE: usize = 8000;
/// Room for what every message says.
const LEAST_MESSAGE: usize = 1 << 10;
/// The ports of syslog over UDP (RFC 5426), and over TLS (RFC 5425). TCP has none of its own.
const SYSLOG_PORT: u16 = 514;
const SYSLOG_TLS_PORT: u16 = 6514;

/// What a block says; `None` is the default.
#[derive(Default)]
pub(super) struct Draft {
    format: Option<FormatConfig>,
    path: Option<(PathBuf, Place)>,
    max_size: Option<Option<u64>>,
    rotate: Option<Duration>,
    max_age: Option<Duration>,
    max_backups: Option<usize>,
    compress: Option<bool>,
    out: Option<Console>,
    server: Option<String>,
    transport: Option<Wanted>,
    facility: Option<Facility>,
    severity: Option<Severity>,
    tag: Option<String>,
    framing: Option<Framing>,
    max_message: Option<usize>,
}

/// The parameter `transport`.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Udp,
    Tcp,
    Tls,
}

impl Draft {
    pub(super) fn set(
        &mut self,
        cf: &mut ngx_conf_t,
        name: &str,
        args: &[ngx_str_t],
    ) -> Result<(), String> {
        let value = Argument { name, text: args[0] };
        let text = value.text.to_string();
        match name {
            "format" => self.format = Some(read_format(cf, args)?),
            "path" => {
                self.path = Some((read_path(cf, &value)?, cf.place()));
            }
            "max_size" => self.max_size = Some(size_or_off(&value)?),
            "rotate" => self.rotate = age_or_off(&value)?,
            "max_age" => self.max_age = age_or_off(&value)?,
            "max_backups" => {
                let count = text.parse().ok().filter(|count| *count <= MAX_BACKUPS);
                let must = format_args!("a number up to {MAX_BACKUPS}; 0 keeps all");
                self.max_backups = Some(count.ok_or_else(|| value.invalid(must))?);
            }
            "compress" => self.compress = Some(value.flag()?),
            "out" => {
                self.out = Some(match &*text {
                    "stdout" => Console::Stdout,
                    "stderr" => Console::Stderr,
                    _ => return Err(value.invalid("\"stdout\" or \"stderr\"")),
                });
            }
            "server" => {
                // Which port it has where none is given depends on what follows.
                Address::parse(&text, Some(SYSLOG_PORT)).map_err(|must| value.invalid(must))?;
                self.server = Some(text);
            }
            "transport" => {
                self.transport = Some(match &*text {
                    "udp" => Wanted::Udp,
                    "tcp" => Wanted::Tcp,
                    "tls" => Wanted::Tls,
                    _ => return Err(value.invalid("\"udp\", \"tcp\" or \"tls\"")),
                });
            }
            "facility" => {
                let facility = Facility::parse(&text);
                self.facility = Some(facility.map_err(|names| value.invalid(one_of(&names)))?);
            }
            "severity" => {
                let severity = Severity::parse(&text);
                self.severity = Some(severity.map_err(|names| value.invalid(one_of(&names)))?);
            }
            "tag" => {
                if !HeaderConfig::is_tag(&text) {
                    return Err(value.invalid("1 to 48 printable ASCII characters, no space"));
                }
                self.tag = Some(text);
            }
            "framing" => {
                self.framing = Some(match &*text {
                    "octet-counting" => Framing::OctetCounting,
                    "newline" => Framing::Newline,
                    "nul" => Framing::Nul,
                    _ => return Err(value.invalid("\"octet-counting\", \"newline\" or \"nul\"")),
                });
            }
            "max_message_size" => {
                let size = parse_size(value.text).filter(|size| *size >= LEAST_MESSAGE);
                let must = "a size from 1k on, like \"8k\"";
                self.max_message = Some(size.ok_or_else(|| value.invalid(must))?);
            }
            _ => return Err(format!("unknown directive \"{name}\" in \"tirreno_target\"")),
        }
        Ok(())
    }

    /// What the whole block of the target `name` says, of the type that `bit` is.
    pub(super) fn finish(self, tls: Tls, name: &str, bit: u8) -> Result<AuditConfig, String> {
        let format = match &self.format {
            Some(format) => format.clone(),
            None => FormatConfig::parse("json", &[])?,
        };
        let sink = match bit {
            FILE => Sink::File(self.file(name)?),
            CONSOLE => Sink::Console(self.out.unwrap_or(Console::Stdout)),
            SYSLOG => {
                let header = HeaderConfig {
                    facility: self.facility.unwrap_or_default(),
                    severity: self.severity,
                    tag: self.tag.clone().unwrap_or_else(|| "nginx".into()),
                };
                let mut server = self.server(tls, name, Some(Framing::OctetCounting))?;
                server.max_message.get_or_insert(DEFAULT_MESSAGE);
                Sink::Syslog(SyslogConfig { server, header })
            }
            _ => {
                let mut server = self.server(tls, name, None)?;
                // As Graylog expects it.
                let default = if format.is_gelf() { Framing::Nul } else { Framing::Newline };
                server.framing.get_or_insert(default);
                Sink::Tcp(server)
            }
        };
        Ok(AuditConfig { format, sink })
    }

    fn file(self, name: &str) -> Result<FileConfig, String> {
        let Some((path, place)) = self.path else {
            return Err(format!(
                "target \"{name}\" has no \"path\", add it like \"path /var/log/audit/nginx.log;\""
            ));
        };
        Ok(FileConfig {
            path,
            place: place.to_string(),
            max_size: self.max_size.unwrap_or(Some(DEFAULT_SIZE)),
            rotate: self.rotate,
            max_age: self.max_age,
            max_backups: self.max_backups.filter(|count| *count > 0),
            compress: self.compress.unwrap_or(false),
        })
    }

    /// `syslog`: how messages of syslog are told apart on a connection.
    fn server(self, tls: Tls, name: &str, syslog: Option<Framing>) -> Result<ServerConfig, String> {
        let is_syslog = syslog.is_some();
        let Some(server) = self.server else {
            return Err(format!(
                "target \"{name}\" has no \"server\", add it like \"server HOST:PORT;\""
            ));
        };
        let default = if is_syslog { Wanted::Udp } else { Wanted::Tcp };
        let transport = self.transport.unwrap_or(default);
        let port = match transport {
            Wanted::Udp => Some(SYSLOG_PORT),
            Wanted::Tls if is_syslog => Some(SYSLOG_TLS_PORT),
            _ => None,
        };
        let address = Address::parse(&server, port).map_err(|_| {
            format!("the \"server\" of target \"{name}\" has no port, add it like \"{server}:601\"")
        })?;
        let is_local = matches!(address, Address::Unix(_));
        if !is_syslog && (is_local || transport == Wanted::Udp) {
            return Err(format!(
                "target \"{name}\" needs a connection: \"transport\" must be \"tcp\" or \"tls\", and \
                 \"server\" like \"HOST:PORT\""
            ));
        }
        if is_local && self.transport.is_some() {
            return Err(format!(
                "target \"{name}\" has a local socket as its \"server\": remove \"transport\""
            ));
        }
        if transport != Wanted::Tls && tls.is_set() {
            return Err(format!(
                "target \"{name}\" has a parameter \"ssl_...\", which needs \"transport tls\""
            ));
        }
        let is_datagram = is_local || transport == Wanted::Udp;
        if is_datagram && self.framing.is_some() {
            return Err(format!(
                "target \"{name}\" sends each message as a datagram: \"framing\" needs \"transport\" \
                 \"tcp\" or \"tls\""
            ));
        }
        let framing = if is_datagram { None } else { self.framing.or(syslog) };
        let transport = match transport {
            Wanted::Udp => Transport::Datagram,
            Wanted::Tcp => Transport::Tcp,
            Wanted::Tls => Transport::Tls(tls.finish(&format!("target \"{name}\""))?),
        };
        Ok(ServerConfig { address, transport, framing, max_message: self.max_message })
    }
}

fn one_of(names: &str) -> String {
    format!("one of {names}")
}

/// The file's one full name, however it is written. That it is no link matters to who renames it.
fn read_path(cf: &mut ngx_conf_t, value: &Argument<'_>) -> Result<PathBuf, String> {
    let must = "a file, not a directory";
    let path = cf.prefix_name(value.text).ok_or("no memory for a path")?;
    // nginx's prefix may be relative itself.
    let path = path::absolute(path).map_err(|error| format!("no working directory: {error}"))?;
    let text = value.text.as_bytes();
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(value.invalid(must));
    };
    if name.as_encoded_bytes().ends_with(b".gz") {
        return Err(value.invalid("a name without \".gz\", which compressed backups end with"));
    }
    if !permissions::answers(&path) {
        // That is said once the whole configuration is read.
        return Ok(path);
    }
    if path.is_dir() || text.ends_with(b"/") || text.ends_with(b"/.") {
        return Err(value.invalid(must));
    }
    if path.is_symlink() {
        return Err(value.invalid("a file, not a symbolic link"));
    }
    // Where the directory does not exist, that is said once the whole configuration is read.
    Ok(directory.canonicalize().map_or_else(|_| path.clone(), |directory| directory.join(name)))
}

/// `name [option=value …]`.
fn read_format(cf: &mut ngx_conf_t, args: &[ngx_str_t]) -> Result<FormatConfig, String> {
    let texts: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
    let mut options = Vec::new();
    for text in &texts[1..] {
        // It is not repeated: it may be a key.
        options.push(text.split_once('=').ok_or_else(|| {
            "invalid parameter in \"format\" directive, it must be OPTION=VALUE".to_owned()
        })?);
    }
    let mut format = FormatConfig::parse(&texts[0], &options)
        .map_err(|error| format!("{error} in \"format\" directive"))?;
    if format.hash_key_file().is_some() {
        let path = args.iter().find_map(|arg| arg.strip_prefix(b"hash_key_file="));
        let (name, what) = ("hash_key_file", "the key of session ids");
        let key = read_key(cf, path.unwrap_or_default(), name, what)?;
        format.set_hash_key(checked_key(&key, name, what)?.as_bytes());
    }
    Ok(format)
}

/// A size; nothing for `off`.
fn size_or_off(value: &Argument<'_>) -> Result<Option<u64>, String> {
    let must = "a size with a unit, \"k\", \"m\" or \"g\", like \"100m\", or \"off\"";
    if value.text.as_bytes() == b"off" {
        return Ok(None);
    }
    let has_unit = value.text.as_bytes().last().is_some_and(u8::is_ascii_alphabetic);
    let size = parse_size(value.text).filter(|size| has_unit && *size > 0);
    size.map(|size| Some(size as u64)).ok_or_else(|| value.invalid(must))
}

/// A time; nothing for `off`.
fn age_or_off(value: &Argument<'_>) -> Result<Option<Duration>, String> {
    let must = "a time with a unit, \"s\", \"m\", \"h\", \"d\", \"w\", \"M\" or \"y\", like \"1d\", or \
                \"off\"";
    if value.text.as_bytes() == b"off" {
        return Ok(None);
    }
    let has_unit = value.text.as_bytes().last().is_some_and(u8::is_ascii_alphabetic);
    let ms = parse_time_ms(value.text).filter(|ms| has_unit && *ms > 0);
    ms.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(|| value.invalid(must))
}
