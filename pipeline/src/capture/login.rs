//! Successful and failed logins of one account from one address.
//!
//! An application with a second factor first answers a right password with a failure, and then asks for the
//! second factor: that failure is no attack. A failure that a rule's `first_step=` describes waits, and a
//! successful login of the same account and address withdraws it. Every other failure is sent at once.

use crate::event::{EventType, Param};
use crate::hash::stable_hash;
use crate::record::{Extra, Record};
use crate::text::parse_ip;

/// A step of a login whose account is known; the number differs between accounts and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It failed because the second factor was missing.
    Failed(u64),
    /// It succeeded.
    Good(u64),
}

impl Attempt {
    /// The step that a record is, if it is one and its account is known.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let attempt = match record.kind() {
            EventType::AccountLoginFail if record.is_first_step() => Self::Failed,
            EventType::AccountLogin => Self::Good,
            _ => return None,
        };
        let account = record.extra(Extra::Account)?;
        let address = record.get(Param::IpAddress).and_then(parse_ip).or(record.ip());
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        Some(attempt(stable_hash([account, address.as_bytes()])))
    }
}
