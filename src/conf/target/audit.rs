//! The parameters of targets of the types `file`, `console`, `syslog` and `tcp`.

use std::path::{self, PathBuf};
use std::time::Duration;

use tirreno_pipeline::audit::config::{
    AuditConfig, Console, FileConfig, Framing, ServerConfig, Sink, SyslogConfig, Transport,
};
use tirreno_pipeline::audit::format::FormatConfig;
use tirreno_pipeline::audit::syslog::{Facility, HeaderConfig, Severity};
use tirreno_pipeline::config::address::Address;

use super::{CONSOLE, FILE, SYSLOG};
use crate::conf::block::{Parameter, Setting, put};
use crate::conf::ext::{ConfExt, parse_size};
use crate::conf::key;
use crate::conf::tls::Tls;
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

pub(super) const OF_STREAMS: &[Parameter<super::Draft>] =
    &[Parameter::of("format", 1..=usize::MAX, |draft, s| {
        put(&mut draft.audit.format, read_format(s))
    })];

pub(super) const OF_FILES: &[Parameter<super::Draft>] = &[
    Parameter::one("path", |draft, s| {
        let place = s.cf.place();
        put(&mut draft.audit.path, read_path(s).map(|path| (path, place)))
    }),
    Parameter::one("max_size", |draft, s| put(&mut draft.audit.max_size, s.size_or_off())),
    Parameter::one("rotate", |draft, s| put(&mut draft.audit.rotate, s.age_or_off())),
    Parameter::one("max_age", |draft, s| put(&mut draft.audit.max_age, s.age_or_off())),
    Parameter::one("max_backups", |draft, s| put(&mut draft.audit.max_backups, read_backups(s))),
    Parameter::one("compress", |draft, s| put(&mut draft.audit.compress, s.flag())),
];

pub(super) const OF_CONSOLES: &[Parameter<super::Draft>] = &[Parameter::one("out", |draft, s| {
    let outs = [("stdout", Console::Stdout), ("stderr", Console::Stderr)];
    put(&mut draft.audit.out, s.one_of(&outs, "\"stdout\" or \"stderr\""))
})];

pub(super) const OF_SERVERS: &[Parameter<super::Draft>] = &[
    Parameter::one("server", |draft, s| {
        let text = s.text().to_string();
        // Which port it has where none is given depends on what follows.
        Address::parse(&text, Some(SYSLOG_PORT)).map_err(|must| s.invalid(must))?;
        put(&mut draft.audit.server, Ok(text))
    }),
    Parameter::one("transport", |draft, s| {
        let transports = [("udp", Wanted::Udp), ("tcp", Wanted::Tcp), ("tls", Wanted::Tls)];
        put(&mut draft.audit.transport, s.one_of(&transports, "\"udp\", \"tcp\" or \"tls\""))
    }),
    Parameter::one("framing", |draft, s| {
        let framings = [
            ("octet-counting", Framing::OctetCounting),
            ("newline", Framing::Newline),
            ("nul", Framing::Nul),
        ];
        let must = "\"octet-counting\", \"newline\" or \"nul\"";
        put(&mut draft.audit.framing, s.one_of(&framings, must))
    }),
    Parameter::one("max_message_size", |draft, s| {
        let size = parse_size(s.text()).filter(|size| *size >= LEAST_MESSAGE);
        let must = "a size from 1k on, like \"8k\"";
        put(&mut draft.audit.max_message, size.ok_or_else(|| s.invalid(must)))
    }),
];

pub(super) const OF_SYSLOG: &[Parameter<super::Draft>] = &[
    Parameter::one("facility", |draft, s| {
        let facility = Facility::parse(&s.text().to_string());
        put(&mut draft.audit.facility, facility.map_err(|names| s.invalid(one_of(&names))))
    }),
    Parameter::one("severity", |draft, s| {
        let severity = Severity::parse(&s.text().to_string());
        put(&mut draft.audit.severity, severity.map_err(|names| s.invalid(one_of(&names))))
    }),
    Parameter::one("tag", |draft, s| {
        let text = s.text().to_string();
        if !HeaderConfig::is_tag(&text) {
            return Err(s.invalid("1 to 48 printable ASCII characters, no space"));
        }
        put(&mut draft.audit.tag, Ok(text))
    }),
];

/// What a block says; `None` is the default.
#[derive(Default)]
pub(super) struct Draft {
    format: Option<FormatConfig>,
    path: Option<(PathBuf, Place)>,
    max_size: Option<Option<u64>>,
    rotate: Option<Option<Duration>>,
    max_age: Option<Option<Duration>>,
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
            rotate: self.rotate.flatten(),
            max_age: self.max_age.flatten(),
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
fn read_path(value: &mut Setting<'_>) -> Result<PathBuf, String> {
    let must = "a file, not a directory";
    let path = value.cf.prefix_name(value.text()).ok_or("no memory for a path")?;
    // nginx's prefix may be relative itself.
    let path = path::absolute(path).map_err(|error| format!("no working directory: {error}"))?;
    let written = value.text();
    let text = written.as_bytes();
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

/// 0 keeps all.
fn read_backups(s: &mut Setting<'_>) -> Result<usize, String> {
    let count = s.text().to_string().parse().ok().filter(|count| *count <= MAX_BACKUPS);
    count.ok_or_else(|| s.invalid(format_args!("a number up to {MAX_BACKUPS}; 0 keeps all")))
}

/// `name [option=value …]`.
fn read_format(s: &mut Setting<'_>) -> Result<FormatConfig, String> {
    let texts: Vec<_> = s.args.iter().map(|arg| arg.to_string()).collect();
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
        let path = s.args.iter().find_map(|arg| arg.strip_prefix(b"hash_key_file="));
        let path = path.unwrap_or_default();
        let key = key::read(s.cf, path, "hash_key_file", "the key of session ids")?;
        format.set_hash_key(key.as_bytes());
    }
    Ok(format)
}
