//! Why a spool cannot be used.

use std::fmt;

use rusqlite::ErrorCode;

use crate::fault::Fault;

/// Why a spool cannot be used at present, without any content.
#[derive(Debug)]
pub enum SpoolError {
    /// SQLite's error.
    Database(rusqlite::Error),
    /// The file system has less than 8 MB left.
    NoReserve,
    /// Another version of the module made it.
    Layout,
    /// There is something other than a plain file in its place.
    NotPlain,
}

impl SpoolError {
    /// Whether the file system is full.
    pub fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull) || matches!(self, Self::NoReserve)
    }

    /// What the status shows.
    pub fn fault(&self) -> Fault {
        match self.code() {
            _ if self.is_full() => Fault::DiskFull,
            _ if self.is_busy() => Fault::Busy,
            Some(ErrorCode::ReadOnly) => Fault::ReadOnly,
            Some(ErrorCode::CannotOpen) => Fault::NotOpened,
            Some(ErrorCode::PermissionDenied) => Fault::PermissionDenied,
            Some(ErrorCode::SystemIoFailure) => Fault::InputOutput,
            _ => Fault::Database,
        }
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Database(error) => error.sqlite_error_code(),
            Self::NoReserve | Self::Layout | Self::NotPlain => None,
        }
    }

    /// Whether another connection has locked the database.
    pub fn is_busy(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Whether the database is damaged, and not only unavailable.
    pub fn is_corrupt(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }
}

impl From<rusqlite::Error> for SpoolError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.code() {
            _ if matches!(self, Self::Layout) => {
                "another version of the module made it: let that one deliver what is in it, or move \
                 it away"
            }
            _ if matches!(self, Self::NotPlain) => {
                return Fault::NotPlain.fmt(f);
            }
            _ if self.is_full() => "the disk is full",
            Some(ErrorCode::ReadOnly) => "the file system or the file is read-only",
            Some(ErrorCode::CannotOpen) => "the file cannot be opened or made",
            Some(ErrorCode::PermissionDenied) => "permission denied",
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "another program holds the database"
            }
            Some(ErrorCode::DatabaseCorrupt) => "the database is damaged",
            Some(ErrorCode::NotADatabase) => "the file is no database",
            Some(ErrorCode::SystemIoFailure) => "input/output error",
            _ => "the database does not work",
        })
    }
}
