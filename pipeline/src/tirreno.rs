//! Delivery to a Tirreno server: the form, the connections, and what its answers mean.

pub mod config;
pub mod connection;
mod first_steps;
pub mod form;
pub mod http;
pub(crate) mod parameters;
pub mod policy;
pub mod rate;
pub mod shared;
pub mod target;
