//! The spool: events on disk that are not delivered yet.
//!
//! The threads of a target use a [`Spool`], which keeps the events in a [`database`]. A [`lock`] allows one
//! process to send them.

pub mod database;
mod error;
mod handle;
pub mod lock;
mod schema;

pub use database::{
    Appended, Database, Intake, Merge, Outcome, SpoolConfig, Stamp, Stored, WhenFull,
};
pub use error::SpoolError;
pub use handle::{SETTLE, SETTLE_FROM, SETTLE_WITHIN, SetAside, Spool};
