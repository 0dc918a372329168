//! Events that are not delivered yet, on disk.

pub mod database;
pub mod handle;
