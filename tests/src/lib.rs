//! The helpers of the integration tests.
//!
//! * [`sensor`]: a stand-in for Tirreno's sensor that answers, decodes and loses events as the
//!   measured server does.
//! * [`nginx`]: starts, signals and inspects a real nginx in a directory of its own.
//! * [`application`]: what tries a preset on a real application.
//! * [`backend`]: the application behind nginx.
//! * [`cases`]: requests with names, and their events.
//! * [`client`]: HTTP/1, HTTP/2, WebSocket and raw clients.
//! * [`hanging_disk`]: a file system whose calls hang in the kernel.
//! * [`receivers`]: receivers of audit records, among them rsyslog.
//! * [`slow_sync`]: a disk that confirms writes slowly.
//! * [`small_disk`]: a small file system, which is soon full.
//! * [`status`]: a target's row of the status.
//! * [`tls`]: certificates made for one test.
//! * [`transport`]: connections, and reads that signals do not end.
//! * [`wait`]: waiting for conditions. No test sleeps for a fixed time.
//! * [`written`]: files that are read while nginx writes them.
//!
//! Everything here may panic: a panic is how a test fails.

pub mod application;
pub mod backend;
pub mod cases;
pub mod client;
pub mod hanging_disk;
mod http1;
pub mod nginx;
pub mod ports;
pub mod receivers;
pub mod sensor;
mod server;
pub mod slow_sync;
pub mod small_disk;
pub mod status;
pub mod tls;
pub mod transport;
pub mod wait;
pub mod written;
