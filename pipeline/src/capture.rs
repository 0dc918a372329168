//! The decision in the event loop: which event a request is, which user's, and what of it may be shown.

pub mod cookie;
pub mod decision;
pub mod exchange;
pub mod extract;
#[cfg(test)]
mod facts;
pub mod identity;
pub mod known_accounts;
pub mod level;
pub mod login;
pub mod page;
pub mod path;
pub mod rank;
pub mod redact;
pub mod rule;
pub mod rules;
mod scan;
mod secret_name;
pub mod session;
pub mod value;
