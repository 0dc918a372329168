//! The block `tirreno_target [name] { … }`, for all types of targets.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::audit::config::{AuditConfig, Sink, Transport};
use crate::audit::parameters as audit;
use crate::capture::level::{Level, Routing};
use crate::capture::rule::Place;
use crate::config::block::{Block, BlockError, Parameter, Seen, Setting, Table, put};
use crate::config::file::ConfigFile;
use crate::config::{Destination, TargetConfig};
use crate::delivery::tls::parameters as tls;
use crate::event::EventType;
use crate::privacy::{self, Privacy};
use crate::shm::zone::MAX_NAME;
use crate::text::readable;
use crate::tirreno::parameters as tirreno;

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

const PARAMETERS: &[Parameter<Draft>] = &[
    Parameter::one("type", |draft, s| put(&mut draft.kind, read_type(s))),
    Parameter::of("events", 1..=usize::MAX, |draft, s| put(&mut draft.events, read_events(s))),
    Parameter::of("queue", 1..=2, |draft, s| put(&mut draft.queue, read_queue(s))),
    Parameter::one("interval", |draft, s| put(&mut draft.interval, s.time(0))),
    Parameter::one("batch_size", |draft, s| put(&mut draft.batch_size, s.count(MAX_QUEUE))),
    Parameter::one("shutdown_timeout", |draft, s| put(&mut draft.shutdown_timeout, s.time(0))),
    Parameter::one("repeat", |draft, s| put(&mut draft.repeat, read_repeat(s))),
];

/// A target while its block is read.
#[derive(Default)]
pub struct TargetBlock {
    name: String,
    general: Draft,
    privacy: Privacy,
    tls: tls::Draft,
    tirreno: tirreno::Draft,
    audit: audit::Draft,
}

/// What a block of any type says; `None` stands for the default.
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
}

impl Block for TargetBlock {
    const NAME: &'static str = "tirreno_target";
    /// Nothing for a target that is switched off.
    type Config = Option<TargetConfig>;

    fn new(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name == "all" || name.len() > MAX_NAME || !name.chars().all(plain) {
            return Err(format!(
                "invalid target name \"{name}\": at most {MAX_NAME} letters, digits, \"_\", \"-\", \
                 \".\", and not \"all\""
            ));
        }
        Ok(Self { name: name.to_owned(), ..Self::default() })
    }

    /// Each with the types that it belongs to.
    fn tables(&mut self) -> Vec<Table<'_>> {
        let Self { general, privacy, tls, tirreno, audit, .. } = self;
        vec![
            Table::new(ANY, PARAMETERS, general),
            Table::new(ANY, privacy::parameters::PARAMETERS, privacy),
            Table::new(TIRRENO, tirreno::PARAMETERS, tirreno),
            Table::new(TIRRENO | SYSLOG | TCP, tls::PARAMETERS, tls),
            Table::new(STREAM, audit::OF_STREAMS, &mut audit.format),
            Table::new(FILE, audit::OF_FILES, &mut audit.file),
            Table::new(CONSOLE, audit::OF_CONSOLES, &mut audit.out),
            Table::new(SYSLOG | TCP, audit::OF_SERVERS, &mut audit.server),
            Table::new(SYSLOG, audit::OF_SYSLOG, &mut audit.syslog),
        ]
    }

    fn check(s: &Setting<'_>) -> Result<(), String> {
        if !s.args.iter().any(|arg| arg.contains(&b'$')) {
            return Ok(());
        }
        let cure = match s.name {
            "api_key" => ", put the key into a file for \"api_key_file\"",
            _ => "",
        };
        let name = s.name;
        Err(format!("\"{name}\" in \"tirreno_target\" cannot contain variables or \"$\"{cure}"))
    }

    fn finish(
        self,
        place: &Place,
        seen: &[Seen],
        file: &mut dyn ConfigFile,
    ) -> Result<Self::Config, BlockError> {
        let Self { name, general, privacy, tls, tirreno, audit } = self;
        let Some((kind, bit)) = general.kind.unwrap_or(Some(TYPES[0])) else { return Ok(None) };
        if let Some(Seen { name, place, .. }) = seen.iter().find(|seen| seen.kinds & bit == 0) {
            let message = format!("\"{name}\" does not belong into a target of type \"{kind}\"");
            return Err(BlockError { place: place.clone(), message });
        }
        let is_unverified = tls.is_unverified();
        let spool = tirreno.spool.clone();
        let destination = match bit {
            TIRRENO => tirreno.finish(tls, &name).map(Destination::Tirreno),
            FILE => audit.file(&name).map(Destination::Audit),
            CONSOLE => audit.console().map(Destination::Audit),
            SYSLOG => audit.syslog(&name, tls).map(Destination::Audit),
            _ => audit.tcp(&name, tls).map(Destination::Audit),
        };
        let destination =
            destination.map_err(|message| BlockError { place: place.clone(), message })?;
        let mut warn = |parameter: &str, message: &str| {
            if let Some(seen) = seen.iter().find(|seen| seen.name == parameter) {
                file.warn_at(&seen.place, message);
            }
        };
        if is_unverified {
            warn(
                "ssl_verify",
                "\"ssl_verify off\" lets anybody pretend to be the server, remove it and name the \
                 server's certificate or its authority in \"ssl_trusted_certificate\",",
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
        let (queue_events, queue_bytes) = general.queue.unwrap_or(DEFAULT_QUEUE);
        Ok(Some(TargetConfig {
            name,
            slot: 0,
            events: general.events.unwrap_or(Routing::ALL),
            queue_events,
            queue_bytes,
            interval: general.interval.unwrap_or(Duration::from_secs(1)),
            batch_size: general.batch_size.unwrap_or(512),
            shutdown_timeout: general.shutdown_timeout.unwrap_or(Duration::from_secs(1)),
            repeat: general.repeat.unwrap_or_else(|| (bit == TIRRENO).then_some(DEFAULT_REPEAT)),
            spool,
            privacy,
            destination,
        }))
    }
}

/// The type with its bit; nothing for `none`.
fn read_type(s: &mut Setting<'_>) -> Result<Option<(&'static str, u8)>, String> {
    let text = s.text();
    if text == "none" {
        return Ok(None);
    }
    let kind = TYPES.into_iter().find(|known| known.0 == text);
    let names = TYPES.map(|known| format!("\"{}\"", known.0)).join(", ");
    kind.map(Some).ok_or_else(|| s.invalid(format_args!("{names} or \"none\"")))
}

/// `events [size=bytes]`.
fn read_queue(s: &mut Setting<'_>) -> Result<(usize, usize), String> {
    let bytes = match s.args.get(1) {
        None => DEFAULT_QUEUE.1,
        Some(arg) => {
            let size = arg.strip_prefix(b"size=").and_then(|size| s.file.parse_size(size));
            let size = size.filter(|size| *size > 0);
            size.ok_or_else(|| {
                format!(
                    "invalid parameter \"{}\" in \"queue\" directive, it must be a size like \
                     \"size=16m\"",
                    readable(arg)
                )
            })?
        }
    };
    Ok((s.count(MAX_QUEUE)?, bytes))
}

/// `20/m`, or `off`.
fn read_repeat(s: &mut Setting<'_>) -> Result<Option<u32>, String> {
    let text = s.text();
    if text == "off" {
        return Ok(None);
    }
    let number = text.strip_suffix("/m").and_then(|number| number.parse().ok());
    let must = "\"off\" or a number a minute like \"20/m\"";
    number.filter(|number| *number > 0).map(Some).ok_or_else(|| s.invalid(must))
}

fn read_events(s: &mut Setting<'_>) -> Result<Routing, String> {
    let patterns: Vec<_> = s.args.iter().map(|arg| readable(arg)).collect();
    let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
    let routing = Routing::from_patterns(&patterns).map_err(|pattern| {
        format!(
            "no event type matches \"{pattern}\" in \"events\" directive, the types are {}, and the \
             levels {}",
            EventType::ALL.map(EventType::name).join(", "),
            Level::ALL.map(Level::name).join(", ")
        )
    })?;
    if routing.is_empty() {
        return Err("\"events\" directive leaves no event for the target".into());
    }
    Ok(routing)
}
