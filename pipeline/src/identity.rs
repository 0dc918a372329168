//! Which user a session's token belongs to: the keys for its hashes, its file, and lookups.
//!
//! - [`keys`] are the keys for hashes of tokens and names,
//! - [`state`] is the file that keeps bindings and accounts over restarts, [`keeper`] the thread that writes it,
//! - [`lookup`] asks the application.

pub mod keeper;
pub mod keys;
pub mod lookup;
pub mod parameters;
pub mod state;
