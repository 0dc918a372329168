//! The spool: events on disk that are not delivered yet.
//!
//! The threads of a target use a [`Spool`], which keeps the events in a [`database`]. A [`lock`] allows one
//! process to send them.

pub mod database;
mod handle;
pub mod lock;
mod schema;

pub use database::{
    Appended, Database, Intake, Merge, Outcome, SpoolConfig, SpoolError, Stamp, Stored, WhenFull,
};
pub use handle::{SETTLE, SETTLE_FROM, SETTLE_WITHIN, SetAside, Spool};
