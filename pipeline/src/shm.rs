//! The shared memory of all workers: records on their way, counters, and who collects.

pub mod bindings;
pub mod metrics;
#[cfg(all(test, loom))]
mod model;
mod pace;
pub mod rejected;
pub mod ring;
mod segment;
mod sync;
mod version;
pub mod zone;
