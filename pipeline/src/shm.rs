//! The shared memory of all workers: records on their way, counters, and who collects.

pub mod bindings;
pub mod metrics;
mod pace;
pub mod rejected;
pub mod ring;
mod version;
pub mod zone;
