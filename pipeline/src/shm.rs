//! The shared memory of all workers: records on their way, counters, and who collects.

pub mod bindings;
pub mod metrics;
#[cfg(all(test, loom))]
mod model;
pub mod pace;
pub mod rejected;
pub mod repeat_counter;
pub mod ring;
pub mod segment;
mod sync;
mod version;
pub mod zone;

/// The most targets of one zone, over all configurations that used it.
pub const MAX_TARGETS: usize = 32;
