//! The block `tirreno_target [name] { … }`.

use core::ffi::c_char;
use std::time::Duration;

use nginx_sys::ngx_conf_t;
use tirreno_pipeline::audit::config::{AuditConfig, Sink, Transport};
use tirreno_pipeline::capture::level::{Level, Routing};
use tirreno_pipeline::capture::rule::Place;
use tirreno_pipeline::config::{Destination, TargetConfig};
use tirreno_pipeline::event::EventType;
use tirreno_pipeline::privacy::Privacy;
use tirreno_pipeline::shm::zone::MAX_NAME;

use super::block::{self, Block, Parameter, Seen, Setting, put};
use super::ext::{ConfExt, parse_size};
use super::tls::{self, HasTls, Tls};

mod audit;
mod privacy;
mod tirreno;

const MAX_QUEUE: usize = 10_000_000;
/// The default of `repeat` for a target of type `tirreno`.
const DEFAULT_REPEAT: u32 = 20;
const DEFAULT_QUEUE: (usize, usize) = (10_000, 16 << 20);

/// The types of targets, as bits.
const TIRRENO: u8 = 1;
const FILE: u8 = 2;
const CONSOLE: u8 = 4;
const SYSLOG: u8 = 8;
const TCP: u8 = 16;
const STREAM: u8 = FILE | CONSOLE | SYSLOG | TCP;
const ANY: u8 = TIRRENO | STREAM;

/// The values of `type`, without `none`.
const TYPES: [(&str, u8); 5] =
    [("tirreno", TIRRENO), ("file", FILE), ("console", CONSOLE), ("syslog", SYSLOG), ("tcp", TCP)];

/// All parameters, by the types that they belong to.
const TABLES: [(u8, &[Parameter<Draft>]); 9] = [
    (ANY, PARAMETERS),
    (ANY, privacy::PARAMETERS),
    (TIRRENO, tirreno::PARAMETERS),
    (TIRRENO | SYSLOG | TCP, &tls::parameters()),
    (STREAM, audit::OF_STREAMS),
    (FILE, audit::OF_FILES),
    (CONSOLE, audit::OF_CONSOLES),
    (SYSLOG | TCP, audit::OF_SERVERS),
    (SYSLOG, audit::OF_SYSLOG),
];

const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("type", |draft, s| put(&mut draft.kind, read_type(s))),
    Parameter::of("events", 1..=usize::MAX, |draft, s| put(&mut draft.events, read_events(s))),
    Parameter::of("queue", 1..=2, |draft, s| put(&mut draft.queue, read_queue(s))),
    Parameter::one("interval", |draft, s| put(&mut draft.interval, s.time(0))),
    Parameter::one("batch_size", |draft, s| put(&mut draft.batch_size, s.count(MAX_QUEUE))),
    Parameter::one("shutdown_timeout", |draft, s| put(&mut draft.shutdown_timeout, s.time(0))),
    Parameter::one("repeat", |draft, s| put(&mut draft.repeat, read_repeat(s))),
];

/// A target while its block is being read; `None` stands for the default.
#[derive(Default)]
struct Draft {
    /// Nothing in it: `none`.
    kind: Option<Option<(&'static str, u8)>>,
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

impl Block for Draft {
    const NAME: &'static str = "tirreno_target";

    fn tables() -> &'static [&'static [Parameter<Self>]] {
        const ROWS: [&[Parameter<Draft>]; TABLES.len()] = {
            let mut rows: [&[Parameter<Draft>]; TABLES.len()] = [&[]; TABLES.len()];
            let mut i = 0;
            while i < TABLES.len() {
                rows[i] = TABLES[i].1;
                i += 1;
            }
            rows
        };
        &ROWS
    }

    fn check(s: &Setting<'_>) -> Result<(), String> {
        if !s.args.iter().any(|arg| arg.as_bytes().contains(&b'$')) {
            return Ok(());
        }
        let cure = match s.name {
            "api_key" => ", put the key into a file for \"api_key_file\"",
            _ => "",
        };
        let name = s.name;
        Err(format!("\"{name}\" in \"tirreno_target\" cannot contain variables or \"$\"{cure}"))
    }
}

impl HasTls for Draft {
    fn tls(&mut self) -> &mut Tls {
        &mut self.tls
    }
}

/// Reads the block that follows; `None` for a target that is switched off.
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
    let seen = block::read(cf, &mut draft)?;
    draft.finish(cf, name, &place, &seen)
}

impl Draft {
    fn finish(
        self,
        cf: &mut ngx_conf_t,
        name: &str,
        place: &Place,
        seen: &[Seen],
    ) -> Result<Option<TargetConfig>, *mut c_char> {
        let Some((kind, bit)) = self.kind.unwrap_or(Some(TYPES[0])) else { return Ok(None) };
        let is_unverified = self.tls.is_unverified();
        if let Some(Seen { name, place, .. }) = seen.iter().find(|s| TABLES[s.table].0 & bit == 0) {
            let message = format!("\"{name}\" does not belong into a target of type \"{kind}\"");
            return Err(cf.error_at(place, message));
        }
        let spool = self.tirreno.spool.clone();
        let destination = if bit == TIRRENO {
            self.tirreno.finish(self.tls, name).map(Destination::Tirreno)
        } else {
            self.audit.finish(self.tls, name, bit).map(Destination::Audit)
        };
        let destination = destination.map_err(|message| cf.error_at(place, message))?;
        let mut warn = |parameter: &str, message: &str| {
            if let Some(seen) = seen.iter().find(|seen| seen.name == parameter) {
                cf.warn_at(&seen.place, message);
            }
        };
        if is_unverified {
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

/// The type with its bit; nothing for `none`.
fn read_type(s: &mut Setting<'_>) -> Result<Option<(&'static str, u8)>, String> {
    let text = s.text();
    if text.as_bytes() == b"none" {
        return Ok(None);
    }
    let kind = TYPES.into_iter().find(|known| known.0.as_bytes() == text.as_bytes());
    let names = TYPES.map(|known| format!("\"{}\"", known.0)).join(", ");
    kind.map(Some).ok_or_else(|| s.invalid(format_args!("{names} or \"none\"")))
}

/// `events [size=bytes]`.
fn read_queue(s: &mut Setting<'_>) -> Result<(usize, usize), String> {
    let bytes = match s.args.get(1) {
        None => DEFAULT_QUEUE.1,
        Some(arg) => {
            let size = arg.strip_prefix(b"size=").and_then(parse_size).filter(|size| *size > 0);
            size.ok_or_else(|| {
                format!(
                    "invalid parameter \"{arg}\" in \"queue\" directive, it must be a size like \
                     \"size=16m\""
                )
            })?
        }
    };
    Ok((s.count(MAX_QUEUE)?, bytes))
}

/// `20/m`, or `off`.
fn read_repeat(s: &mut Setting<'_>) -> Result<Option<u32>, String> {
    let text = s.text().to_string();
    if text == "off" {
        return Ok(None);
    }
    let number = text.strip_suffix("/m").and_then(|number| number.parse().ok());
    let must = "\"off\" or a number a minute like \"20/m\"";
    number.filter(|number| *number > 0).map(Some).ok_or_else(|| s.invalid(must))
}

fn read_events(s: &mut Setting<'_>) -> Result<Routing, String> {
    let patterns: Vec<_> = s.args.iter().map(|arg| arg.to_string()).collect();
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
