//! Whose session a token is: how it is known, kept over restarts, and asked for.
//!
//! - [`keys`] are what tokens and names are hashed with,
//! - [`state`] is the file that keeps them over restarts, [`keeper`] the thread that writes it,
//! - [`lookup`] asks the application.

pub mod keeper;
pub mod keys;
pub mod lookup;
pub mod state;
