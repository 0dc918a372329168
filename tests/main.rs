//! The integration tests, in one program: it links once, and a long test of one file leaves no processor idle.

mod audit;
mod bodies;
mod capture;
mod cases;
mod conf;
mod delivery;
mod docs;
mod exchange;
mod explain;
mod flood;
mod hostile;
mod http3;
mod identity;
mod lifecycle;
mod logins;
mod messages;
mod presets;
mod privacy;
mod redact;
mod rules;
mod spool;
mod status;
mod targets;
mod tls;
mod wordpress;
