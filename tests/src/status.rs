//! A target's row of the status.

use std::time::Duration;

use crate::nginx::Nginx;
use crate::wait::wait_for;

const SOON: Duration = Duration::from_secs(30);

/// What `tirreno_status` at `/status` says of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `type`.
    pub kind: String,
    /// `state`.
    pub state: String,
    /// `captured`, and the counters that it is the sum of.
    pub captured: u64,
    /// `delivered`.
    pub delivered: u64,
    /// `rejected`.
    pub rejected: u64,
    /// `dropped`.
    pub dropped: u64,
    /// `merged`.
    pub merged: u64,
    /// `withdrawn`.
    pub withdrawn: u64,
    /// `pending`.
    pub pending: u64,
    /// `retries`.
    pub retries: u64,
    /// `last_error`.
    pub last_error: Option<String>,
    /// `spool.events` and `spool.bytes`; 0 without a spool.
    pub spooled: u64,
    /// See [`Row::spooled`].
    pub bytes: u64,
}

impl Row {
    /// The row of a target.
    ///
    /// # Panics
    /// When a counter is missing.
    pub fn of(nginx: &Nginx, target: &str) -> Self {
        let status = nginx.status("/status");
        let row = &status["targets"][target];
        let count = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"));
        Self {
            kind: row["type"].as_str().unwrap_or_default().into(),
            state: row["state"].as_str().unwrap_or_default().into(),
            captured: count("captured"),
            delivered: count("delivered"),
            rejected: count("rejected"),
            dropped: count("dropped"),
            merged: row["merged"].as_u64().unwrap_or(0),
            withdrawn: row["withdrawn"].as_u64().unwrap_or(0),
            pending: count("pending"),
            retries: count("retries"),
            last_error: row["last_error"].as_str().map(Into::into),
            spooled: row["spool"]["events"].as_u64().unwrap_or(0),
            bytes: row["spool"]["bytes"].as_u64().unwrap_or(0),
        }
    }

    /// Whether every event is accounted for.
    pub fn adds_up(&self) -> bool {
        let known = self.delivered + self.rejected + self.dropped + self.merged + self.withdrawn;
        self.captured == known + self.pending
    }

    /// Waits until the row is as `wanted`.
    #[track_caller]
    pub fn wait(nginx: &Nginx, target: &str, what: &str, wanted: impl Fn(&Self) -> bool) -> Self {
        wait_for(SOON, what, || match Self::of(nginx, target) {
            row if wanted(&row) => Ok(row),
            row => Err(format!("{row:?}")),
        })
    }

    /// Waits until nothing is pending and the counts add up.
    #[track_caller]
    pub fn settled(nginx: &Nginx, target: &str) -> Self {
        Self::wait(nginx, target, "all to be settled", |row| row.pending == 0 && row.adds_up())
    }
}
