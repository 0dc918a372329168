//! From a captured record to a delivered event.
//!
//! This crate knows nothing of nginx, so that all of it runs in unit tests, benchmarks and fuzzers:
//!
//! ```text
//! worker:     Capture ──▶ Producer ──▶ Zone (segments in shared memory)
//! deliverer:  Zone ──▶ Collector ──▶ Target (queue, gate) ──▶ Lane ──▶ Outbound (HTTP)
//!                               └──▶ Stream (queue) ──▶ RotatedFile, or Sender ──▶ Link
//! ```
//!
//! - [`zone`] is the shared memory: the election of the one deliverer, the accounts, the segments.
//! - [`ring`] puts records into segments and takes them out in the order of capture.
//! - [`record`] is the layout of one record, [`event`] the vocabulary of Tirreno's events.
//! - [`path`] normalizes a request's path, [`rules`] finds the rule that it matches, [`redact`] hides
//!   the secrets in its URL.
//! - [`body`] reads the account that a login's body names, [`accounts`] learns whose it is.
//! - [`privacy`] is a record as one target sees it; [`form`] makes an event's POST body out of that,
//!   [`mod@format`] an audit record; [`level`] says what that is about, [`session`] what stands for its
//!   session's token.
//! - [`deliverer`] runs the threads; [`target`] is what they share for one target; [`lane`] is one
//!   connection; [`gate`] decides what an answer means; [`rate`] learns how fast the server takes
//!   events; [`http`] speaks with it.
//! - [`stream`] is a target that takes formatted records ([`format`](mod@format), [`syslog`]): its
//!   [`queue`], and the [`file`](mod@file) that the collector writes, or the [`link`] that a thread
//!   writes to.
//! - [`spool`] is what is not delivered, on disk; [`store`] is how a target uses it, and does without.
//! - [`login`] tells which failed login was only the first half of a good one.
//! - [`journal`] carries messages to nginx's error log.

pub mod accounts;
pub mod body;
pub mod clock;
pub mod config;
pub mod cookie;
pub mod deliverer;
pub mod event;
pub mod file;
pub mod form;
pub mod format;
pub mod gate;
pub mod http;
pub mod journal;
pub mod lane;
pub mod level;
pub mod link;
pub mod login;
pub mod path;
pub mod privacy;
pub mod queue;
pub mod rate;
pub mod record;
pub mod redact;
pub mod ring;
pub mod rules;
pub mod session;
pub mod spool;
pub mod store;
pub mod stream;
pub mod syslog;
pub mod target;
pub mod zone;
