//! The parameters of targets of the types `file`, `console`, `syslog` and `tcp`.

use std::path::{self, PathBuf};
use std::time::Duration;

use crate::audit::config::{
    AuditConfig, Console, FileConfig, Framing, ServerConfig, Sink, SyslogConfig, Transport,
};
use crate::audit::format::FormatConfig;
use crate::audit::syslog::{Facility, HeaderConfig, Severity};
use crate::capture::rule::Place;
use crate::config::address::Address;
use crate::config::block::{Parameter, Setting, put};
use crate::config::key;
use crate::delivery::tls::parameters::Draft as Tls;
use crate::text::readable;

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

/// Of all these types.
pub(crate) const OF_STREAMS: &[Parameter<Option<FormatConfig>>] =
    &[Parameter::of("format", 1..=usize::MAX, |format, s| put(format, read_format(s)))];

/// Of the type `file`.
pub(crate) const OF_FILES: &[Parameter<File>] = &[
    Parameter::one("path", |file, s| {
        let place = s.file.place();
        put(&mut file.path, read_path(s).map(|path| (path, place)))
    }),
    Parameter::one("max_size", |file, s| put(&mut file.max_size, s.size_or_off())),
    Parameter::one("rotate", |file, s| put(&mut file.rotate, s.age_or_off())),
    Parameter::one("max_age", |file, s| put(&mut file.max_age, s.age_or_off())),
    Parameter::one("max_backups", |file, s| put(&mut file.max_backups, read_backups(s))),
    Parameter::one("compress", |file, s| put(&mut file.compress, s.flag())),
];

/// Of the type `console`.
pub(crate) const OF_CONSOLES: &[Parameter<Option<Console>>] = &[Parameter::one("out", |out, s| {
    let outs = [("stdout", Console::Stdout), ("stderr", Console::Stderr)];
    put(out, s.one_of(&outs, "\"stdout\" or \"stderr\""))
})];

/// Of the types `syslog` and `tcp`.
pub(crate) const OF_SERVERS: &[Parameter<Server>] = &[
    Parameter::one("server", |server, s| {
        let text = s.text();
        // Which port it has where none is given depends on what follows.
        Address::parse(&text, Some(SYSLOG_PORT)).map_err(|must| s.invalid(must))?;
        put(&mut server.server, Ok(text))
    }),
    Parameter::one("transport", |server, s| {
        let transports = [("udp", Wanted::Udp), ("tcp", Wanted::Tcp), ("tls", Wanted::Tls)];
        put(&mut server.transport, s.one_of(&transports, "\"udp\", \"tcp\" or \"tls\""))
    }),
    Parameter::one("framing", |server, s| {
        let framings = [
            ("octet-counting", Framing::OctetCounting),
            ("newline", Framing::Newline),
            ("nul", Framing::Nul),
        ];
        let must = "\"octet-counting\", \"newline\" or \"nul\"";
        put(&mut server.framing, s.one_of(&framings, must))
    }),
    Parameter::one("max_message_size", |server, s| {
        let size = s.file.parse_size(s.bytes()).filter(|size| *size >= LEAST_MESSAGE);
        let must = "a size from 1k on, like \"8k\"";
        put(&mut server.max_message, size.ok_or_else(|| s.invalid(must)))
    }),
];

/// Of the type `syslog`.
pub(crate) const OF_SYSLOG: &[Parameter<Syslog>] = &[
    Parameter::one("facility", |header, s| {
        let facility = Facility::parse(&s.text());
        put(&mut header.facility, facility.map_err(|names| s.invalid(one_of(&names))))
    }),
    Parameter::one("severity", |header, s| {
        let severity = Severity::parse(&s.text());
        put(&mut header.severity, severity.map_err(|names| s.invalid(one_of(&names))))
    }),
    Parameter::one("tag", |header, s| {
        let text = s.text();
        if !HeaderConfig::is_tag(&text) {
            return Err(s.invalid("1 to 48 printable ASCII characters, no space"));
        }
        put(&mut header.tag, Ok(text))
    }),
];

/// What the block of a target says that writes a stream; `None` is the default.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) format: Option<FormatConfig>,
    pub(crate) file: File,
    pub(crate) out: Option<Console>,
    pub(crate) server: Server,
    pub(crate) syslog: Syslog,
}

/// What the block says of the file.
#[derive(Default)]
pub(crate) struct File {
    path: Option<(PathBuf, Place)>,
    max_size: Option<Option<u64>>,
    rotate: Option<Option<Duration>>,
    max_age: Option<Option<Duration>>,
    max_backups: Option<usize>,
    compress: Option<bool>,
}

/// What the block says of the server.
#[derive(Default)]
pub(crate) struct Server {
    server: Option<String>,
    transport: Option<Wanted>,
    framing: Option<Framing>,
    max_message: Option<usize>,
}

/// What the block says of the header of syslog messages.
#[derive(Default)]
pub(crate) struct Syslog {
    facility: Option<Facility>,
    severity: Option<Severity>,
    tag: Option<String>,
}

/// The parameter `transport`.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Udp,
    Tcp,
    Tls,
}

impl Draft {
    /// A target `name` of the type `file`.
    pub(crate) fn file(self, name: &str) -> Result<AuditConfig, String> {
        let File { path, max_size, rotate, max_age, max_backups, compress } = self.file;
        let Some((path, place)) = path else {
            return Err(format!(
                "target \"{name}\" has no \"path\", add it like \"path /var/log/audit/nginx.log;\""
            ));
        };
        let sink = Sink::File(FileConfig {
            path,
            place: place.to_string(),
            max_size: max_size.unwrap_or(Some(DEFAULT_SIZE)),
            rotate: rotate.flatten(),
            max_age: max_age.flatten(),
            max_backups: max_backups.filter(|count| *count > 0),
            compress: compress.unwrap_or(false),
        });
        Ok(AuditConfig { format: or_json(self.format)?, sink })
    }

    /// A target of the type `console`.
    pub(crate) fn console(self) -> Result<AuditConfig, String> {
        let sink = Sink::Console(self.out.unwrap_or(Console::Stdout));
        Ok(AuditConfig { format: or_json(self.format)?, sink })
    }

    /// A target `name` of the type `syslog`.
    pub(crate) fn syslog(self, name: &str, tls: Tls) -> Result<AuditConfig, String> {
        let mut server = self.server.finish(tls, name, Some(Framing::OctetCounting))?;
        server.max_message.get_or_insert(DEFAULT_MESSAGE);
        let Syslog { facility, severity, tag } = self.syslog;
        let header = HeaderConfig {
            facility: facility.unwrap_or_default(),
            severity,
            tag: tag.unwrap_or_else(|| "nginx".into()),
        };
        let sink = Sink::Syslog(SyslogConfig { server, header });
        Ok(AuditConfig { format: or_json(self.format)?, sink })
    }

    /// A target `name` of the type `tcp`.
    pub(crate) fn tcp(self, name: &str, tls: Tls) -> Result<AuditConfig, String> {
        let format = or_json(self.format)?;
        let mut server = self.server.finish(tls, name, None)?;
        // As Graylog expects it.
        let default = if format.is_gelf() { Framing::Nul } else { Framing::Newline };
        server.framing.get_or_insert(default);
        Ok(AuditConfig { format, sink: Sink::Tcp(server) })
    }
}

impl Server {
    /// `syslog`: how messages of syslog are told apart on a connection.
    fn finish(self, tls: Tls, name: &str, syslog: Option<Framing>) -> Result<ServerConfig, String> {
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

/// The default of `format` is `json`.
fn or_json(format: Option<FormatConfig>) -> Result<FormatConfig, String> {
    format.map_or_else(|| FormatConfig::parse("json", &[]), Ok)
}

fn one_of(names: &str) -> String {
    format!("one of {names}")
}

/// The file's one full name, however it is written. That it is no link matters to who renames it.
fn read_path(s: &mut Setting<'_>) -> Result<PathBuf, String> {
    let must = "a file, not a directory";
    let written = s.args[0];
    let path = s.file.prefix_name(written)?;
    // nginx's prefix may be relative itself.
    let path = path::absolute(path).map_err(|error| format!("no working directory: {error}"))?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(s.invalid(must));
    };
    if name.as_encoded_bytes().ends_with(b".gz") {
        return Err(s.invalid("a name without \".gz\", which compressed backups end with"));
    }
    if !s.file.answers(&path) {
        // That is said once the whole configuration is read.
        return Ok(path);
    }
    if path.is_dir() || written.ends_with(b"/") || written.ends_with(b"/.") {
        return Err(s.invalid(must));
    }
    if path.is_symlink() {
        return Err(s.invalid("a file, not a symbolic link"));
    }
    // Where the directory does not exist, that is said once the whole configuration is read.
    Ok(directory.canonicalize().map_or_else(|_| path.clone(), |directory| directory.join(name)))
}

/// 0 keeps all.
fn read_backups(s: &mut Setting<'_>) -> Result<usize, String> {
    let count = s.text().parse().ok().filter(|count| *count <= MAX_BACKUPS);
    count.ok_or_else(|| s.invalid(format_args!("a number up to {MAX_BACKUPS}; 0 keeps all")))
}

/// `name [option=value …]`.
fn read_format(s: &mut Setting<'_>) -> Result<FormatConfig, String> {
    let texts: Vec<_> = s.args.iter().map(|arg| readable(arg)).collect();
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
        let key = key::read(s.file, path, "hash_key_file", "the key of session ids")?;
        format.set_hash_key(key.as_bytes());
    }
    Ok(format)
}
