//! Good and failed logins of one account from one address.
//!
//! An application with a second factor first answers a good login 401, and then asks for the second
//! factor: that 401 is no attack. So a failed login waits, and one directly before a good login of the
//! same account and address is withdrawn.

use crate::event::{EventType, Param};
use crate::hash::stable_hash;
use crate::record::{Extra, Record};
use crate::tirreno::form::parse_ip;

/// What an application answers when a second factor is missing, or a password is wrong.
const UNAUTHORIZED: u16 = 401;

/// An attempt to log in whose account is known; the number tells accounts and addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It failed, maybe only for want of a second factor.
    Failed(u64),
    /// It was good.
    Good(u64),
}

impl Attempt {
    /// The attempt that a record is, if it is one and its account is known.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let attempt = match record.kind() {
            EventType::AccountLoginFail if record.status() == UNAUTHORIZED => Self::Failed,
            EventType::AccountLogin => Self::Good,
            _ => return None,
        };
        let account = record.extra(Extra::Account)?;
        let address = record.get(Param::IpAddress).and_then(parse_ip).or(record.ip());
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        Some(attempt(stable_hash([account, address.as_bytes()])))
    }
}
