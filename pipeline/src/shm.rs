//! The shared memory of all workers: records on their way, counters, and who collects.

pub mod bindings;
pub mod metrics;
pub mod ring;
pub mod zone;
