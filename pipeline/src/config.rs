//! The configuration of the threads, which the module reads from nginx's.

pub mod address;
pub mod block;
pub mod file;
pub mod header;
pub(crate) mod key;
pub mod secret;
pub mod target;

use std::path::Path;
use std::time::Duration;

use crate::audit::config::{AuditConfig, Console, Sink};
use crate::capture::level::Routing;
use crate::delivery::spool::database::SpoolConfig;
use crate::privacy::Privacy;
use crate::tirreno::config::TirrenoConfig;

/// One target, of any type.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Its name.
    pub name: String,
    /// The index of its counters in the zone, and of its bit in a record.
    pub slot: usize,
    /// The events that it gets.
    pub events: Routing,
    /// The most events that wait in memory.
    pub queue_events: usize,
    /// The most bytes of records that wait in memory.
    pub queue_bytes: usize,
    /// How long an event may wait to be collected together with others.
    pub interval: Duration,
    /// With so many events, a collection does not wait for the end of the interval.
    pub batch_size: usize,
    /// How many repetitions a minute are sent one by one (see `repeat`); `None`: all of them.
    pub repeat: Option<u32>,
    /// How long a stopping process tries to deliver what it holds.
    pub shutdown_timeout: Duration,
    /// Where events are kept until they are delivered.
    pub spool: Option<SpoolConfig>,
    /// What is hidden from the target.
    pub privacy: Privacy,
    /// Where its events go.
    pub destination: Destination,
}

impl TargetConfig {
    /// A target that takes ten events and gives up at once.
    #[cfg(test)]
    pub(crate) fn of_test(slot: usize, destination: Destination) -> Self {
        Self {
            name: "t".into(),
            slot,
            events: Routing::ALL,
            queue_events: 10,
            queue_bytes: 1 << 20,
            interval: Duration::ZERO,
            batch_size: 64,
            repeat: None,
            shutdown_timeout: Duration::ZERO,
            spool: None,
            privacy: Privacy::default(),
            destination,
        }
    }

    /// Whether it writes audit records or selects events by their level: both need more of a request than
    /// Tirreno's parameters.
    pub fn needs_audit(&self) -> bool {
        matches!(self.destination, Destination::Audit(_)) || self.events.asks_for_level()
    }

    /// The file that it writes.
    pub fn file(&self) -> Option<&Path> {
        match &self.destination {
            Destination::Audit(AuditConfig { sink: Sink::File(file), .. }) => Some(&file.path),
            _ => None,
        }
    }

    /// Whether it writes to standard output, which a daemon does not have.
    pub fn writes_to_stdout(&self) -> bool {
        let Destination::Audit(audit) = &self.destination else { return false };
        matches!(audit.sink, Sink::Console(Console::Stdout))
    }
}

/// Where a target's events go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A Tirreno server, an event a request.
    Tirreno(TirrenoConfig),
    /// A stream of formatted records.
    Audit(AuditConfig),
}

impl Destination {
    /// The parameter `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Tirreno(_) => "tirreno",
            Self::Audit(stream) => match stream.sink {
                Sink::File(_) => "file",
                Sink::Console(_) => "console",
                Sink::Syslog(_) => "syslog",
                Sink::Tcp(_) => "tcp",
            },
        }
    }
}
