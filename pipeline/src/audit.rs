//! Audit targets: records in their formats, written to a file, the console, syslog or a TCP server.

pub mod config;
pub mod file;
pub mod format;
pub(crate) mod parameters;
pub mod socket;
pub mod syslog;
pub mod target;
