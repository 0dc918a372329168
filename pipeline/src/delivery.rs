//! From the rings to the targets: the collector, the queues, and the spool on disk.

pub mod deliverer;
pub mod queue;
pub mod spool;
