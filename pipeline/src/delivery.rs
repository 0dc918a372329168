//! From the rings to the targets.
//!
//! ```text
//! deliverer ─ elected ─▶ collector ─▶ inbox ─▶ target (a thread each) ─▶ spool, server, file
//! ```
//!
//! - [`deliverer`] is the thread of a worker that waits to be elected, and how it ends.
//! - `collector` reads the rings and hands over; it waits for nobody.
//! - [`inbox`] is what one target has to deliver, with its [`queue`]; [`target`] is what all types of
//!   targets are; [`backoff`] and [`health`] are what they share.
//! - [`spool`] keeps on disk what a server did not take yet.

pub mod backoff;
mod collector;
pub mod deliverer;
pub mod health;
pub mod http;
pub mod inbox;
pub mod priority_queue;
pub mod queue;
pub mod repeat;
pub mod spool;
pub mod target;
pub(crate) mod thread;
pub mod tls;
pub mod turns;
