//! From the rings to the targets.
//!
//! ```text
//! deliverer ─ elected ─▶ collector ─▶ inbox ─▶ target (a thread each) ─▶ spool, server, file
//! ```
//!
//! - [`deliverer`] is the thread of a worker that waits to be elected, and how it ends.
//! - `collector` reads the rings and hands records over to the targets; it waits for nobody.
//! - [`inbox`] holds what one target has to deliver, in a [`queue`]; [`target`] is what all types of targets
//!   have in common; [`backoff`] and [`health`] are shared helpers.
//! - [`spool`] keeps on disk what a server has not taken yet.

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
