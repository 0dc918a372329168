//! The configuration of a target of the type `file`, `console`, `syslog` or `tcp`.

use std::path::PathBuf;
use std::time::Duration;

use crate::audit::format::FormatConfig;
use crate::audit::syslog;
use crate::config::address::Address;
use crate::delivery::tls::Tls;

/// A stream of formatted records.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// How a record is written.
    pub format: FormatConfig,
    /// Where they go.
    pub sink: Sink,
}

/// What takes a stream of records.
#[derive(Clone, Debug)]
pub enum Sink {
    /// A file that is rotated.
    File(FileConfig),
    /// nginx's own output.
    Console(Console),
    /// A syslog server, or the machine's.
    Syslog(SyslogConfig),
    /// A server that takes records one after another.
    Tcp(ServerConfig),
}

/// A file that is rotated. The default is never rotated.
#[derive(Clone, Debug, Default)]
pub struct FileConfig {
    /// Its path.
    pub path: PathBuf,
    /// Where the path stands in the configuration, for messages.
    pub place: String,
    /// It is rotated before it would exceed this number of bytes.
    pub max_size: Option<u64>,
    /// It is rotated at each multiple of this time since the epoch.
    pub rotate: Option<Duration>,
    /// Backups older than this are deleted.
    pub max_age: Option<Duration>,
    /// The most backups that are kept.
    pub max_backups: Option<usize>,
    /// Whether backups are compressed.
    pub compress: bool,
}

/// nginx's own output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Console {
    Stdout,
    Stderr,
}

/// How records are sent to a server.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A datagram for each record; also over a Unix socket.
    Datagram,
    /// One connection.
    Tcp,
    /// One connection with TLS.
    Tls(Tls),
}

/// How a receiver tells where a record on a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The record's length in decimal digits and a space precede it (RFC 6587, 3.4.1).
    OctetCounting,
    /// The record ends as the format's lines end (RFC 6587, 3.4.2): no record contains a newline.
    Newline,
    /// The record ends with NUL: no record contains one.
    Nul,
}

/// A server that takes records.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub address: Address,
    /// How records get there.
    pub transport: Transport,
    /// The framing of records; `None` for datagrams.
    pub framing: Option<Framing>,
    /// The most bytes of a message, without the length that octet counting puts before it.
    pub max_message: Option<usize>,
}

/// A syslog server.
#[derive(Clone, Debug)]
pub struct SyslogConfig {
    /// The server.
    pub server: ServerConfig,
    /// The header of its messages.
    pub header: syslog::HeaderConfig,
}
