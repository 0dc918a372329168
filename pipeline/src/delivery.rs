//! From the rings to the targets: the collector, the queues, and the spool on disk.

pub mod deliverer;
pub mod http;
pub mod priority_queue;
pub mod queue;
pub mod repeat;
pub mod spool;
pub mod tls;
pub mod turns;
