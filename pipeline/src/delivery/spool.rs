//! What is not delivered yet, on disk.
//!
//! [`Spool`] is what a target's threads use, [`database`] what lies behind it; [`lock`] decides which
//! process sends.

pub mod database;
mod handle;
pub mod lock;
mod schema;

pub use database::{
    Appended, Database, Intake, Merge, Outcome, SpoolConfig, SpoolError, SpoolTotals, Stamp,
    Stored, WhenFull,
};
pub use handle::{SETTLE, SETTLE_WITHIN, SetAside, Spool};
