//! From a captured record to a delivered event.
//!
//! This crate knows nothing of nginx, so that all of it runs in unit tests, benchmarks and fuzzers:
//!
//! ```text
//! worker:     Capture ──▶ Producer ──▶ ring (segments in shared memory)
//! collector:  ring ──▶ Collector ──▶ Inbox of each target
//! target:     Inbox ──▶ (Spool) ──▶ connections of a Tirreno server
//!             Inbox ──▶ file, console, syslog or TCP
//! ```
//!
//! - [`capture`] decides in the event loop which event a request is, and which user's.
//! - [`record`] is the layout of one captured request, [`event`] the vocabulary of Tirreno's events.
//! - [`shm`] is the shared memory: rings of records, counters, the election of the one collector.
//! - [`delivery`] reads the rings and hands records over to the targets, some of which have a spool.
//! - [`privacy`] is a record as one target sees it.
//! - [`tirreno`] posts events to a Tirreno server, [`audit`] writes audit records.
//! - [`status`] shows the counters as JSON, as metrics and as a page.
//! - [`config`] is what a target is configured to do, and how a block is read.
//! - [`log_queue`] carries messages to nginx's error log.

pub mod audit;
pub mod capture;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod event;
pub mod fault;
pub mod hash;
pub mod identity;
pub mod log_queue;
pub mod privacy;
pub mod record;
pub mod shm;
pub mod status;
mod text;
pub mod tirreno;
