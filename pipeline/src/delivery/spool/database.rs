//! What is not delivered, on disk.
//!
//! One SQLite database a target and URL, in WAL mode: a batch is committed before its first POST, an
//! event leaves after its 204, and the totals change in the same transactions, so that they are exact
//! whatever is killed when. A killed process loses nothing of what is committed; a power cut may
//! take the last moments (`synchronous=NORMAL`).
//!
//! Any elected deliverer may append, also those of two masters during a binary upgrade. Only the
//! holder of a file lock beside the database, which the kernel gives on when the holder dies, sends.
//! Each commits when its own interval is over, so that the order of commits is not that of capture:
//! what is sent is ordered by the time of capture, and while another instance of nginx captures too,
//! what it may not have committed yet is waited for.
//!
//! Administrators may look into it with `sqlite3`; the tables are documented in the README.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use chrono::DateTime;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use crate::capture::login::Attempt;
use crate::clock::{monotonic_ns, wall_ms};
use crate::privacy::View;
use crate::tirreno::form;

/// How long a commit waits for another process's.
const BUSY: Duration = Duration::from_secs(2);
/// How often opening is tried until then.
const RETRY: Duration = Duration::from_millis(10);
/// What a row takes beside its form: key, index, time, user. The triggers below have it too.
const ROW_OVERHEAD: u64 = 200;
/// So much of the file system is left free: where SQLite's log cannot be moved into the database,
/// nothing can be deleted either. Twice what the log may have.
const RESERVE: u64 = 8 << 20;
/// The most rejected events that are kept to be looked at.
const MAX_REJECTED: u64 = 10_000;
/// Above this share of the size, `page_*` events make room or are refused, so that logins find room.
const PAGES_UP_TO: f64 = 0.8;

/// The tables' layout, as `PRAGMA user_version`.
const LAYOUT: i64 = 1;

/// The triggers count what is pending also where an administrator deletes or adds rows.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pending (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL UNIQUE,
    captured TEXT NOT NULL,
    type     TEXT NOT NULL,
    user     TEXT,
    user_key INTEGER NOT NULL,
    body     TEXT NOT NULL,
    stamp    INTEGER NOT NULL DEFAULT 0,
    due      INTEGER NOT NULL DEFAULT 0,
    attempt  INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS pending_order ON pending (stamp) WHERE due = 0;
CREATE INDEX IF NOT EXISTS pending_due ON pending (due) WHERE due > 0;
CREATE INDEX IF NOT EXISTS pending_attempts ON pending (attempt) WHERE attempt IS NOT NULL;
CREATE INDEX IF NOT EXISTS pending_pages ON pending (id) WHERE type LIKE 'page\\_%' ESCAPE '\\';
CREATE TABLE IF NOT EXISTS rejected (
    id       INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    captured TEXT NOT NULL,
    type     TEXT NOT NULL,
    user     TEXT,
    user_key INTEGER NOT NULL,
    body     TEXT NOT NULL,
    rejected TEXT NOT NULL,
    reason   TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS total (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO total VALUES ('pending', 0), ('bytes', 0);
CREATE TRIGGER IF NOT EXISTS pending_added AFTER INSERT ON pending BEGIN
    UPDATE total SET value = value + 1 WHERE name = 'pending';
    UPDATE total SET value = value + length(new.body) + 200 WHERE name = 'bytes';
END;
CREATE TRIGGER IF NOT EXISTS pending_removed AFTER DELETE ON pending BEGIN
    UPDATE total SET value = value - 1 WHERE name = 'pending';
    UPDATE total SET value = value - length(old.body) - 200 WHERE name = 'bytes';
END;
";

/// Which events go when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest, page views first.
    DropOldest,
    /// The new ones, page views first.
    DropNewest,
}

/// The parameter `spool`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The directory.
    pub path: PathBuf,
    /// The most bytes of events.
    pub max_size: u64,
    /// How long an event is worth keeping.
    pub max_age: Duration,
    /// Which events go when it is full.
    pub when_full: WhenFull,
}

/// Why a spool cannot be used now. It names no content.
#[derive(Debug)]
pub enum SpoolError {
    /// SQLite's error.
    Database(rusqlite::Error),
    /// The file system has less than 8 MB left.
    NoReserve,
    /// Another version of the module made it.
    Layout,
}

impl SpoolError {
    /// Whether the file system has no room.
    pub fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull) || matches!(self, Self::NoReserve)
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Database(error) => error.sqlite_error_code(),
            Self::NoReserve | Self::Layout => None,
        }
    }

    /// Whether another connection holds the database.
    fn is_busy(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Whether the database is damaged, and not only in the way of something.
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

/// A spooled event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub id: u64,
    /// When it was captured, on the spool's own clock.
    pub stamp: Stamp,
    /// Until when it waited; zero where it does not.
    pub due: Stamp,
    /// The trace id.
    pub trace: String,
    /// When it was captured, milliseconds since the epoch.
    pub time_ms: i64,
    /// Tells users apart.
    pub user: u64,
    /// The form.
    pub body: String,
}

/// A time on a spool's clock, in nanoseconds: near that of the wall, but it never goes back, whatever
/// happens to the wall's, and is the same for all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(i64);

impl Stamp {
    /// Later than any event.
    pub const END: Self = Self(i64::MAX);

    /// The time that long after.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_nanos() as i64))
    }

    /// The time that long before.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_nanos() as i64))
    }
}

/// A place in the order of capture: behind the event of that time and key.
pub type Cursor = (Stamp, u64);

/// The counters that live in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SpoolTotals {
    pub collected: u64,
    pub delivered: u64,
    pub rejected: u64,
    pub dropped: u64,
    /// Failed logins that were the first half of a good one. They are not among the collected.
    pub withdrawn: u64,
    pub pending: u64,
    /// Bytes of the pending events.
    pub bytes: u64,
}

/// What came of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Events that are in the spool now.
    pub stored: u64,
    /// Events, of this batch or older, that there was no room for.
    pub dropped: u64,
}

/// What the next good login withdraws: the latest failed one of the same attempt that still waits.
const WITHDRAW: &str = "DELETE FROM pending WHERE id =
    (SELECT id FROM pending WHERE attempt = ?1 AND due > ?2 AND stamp < ?3
     ORDER BY stamp DESC, id DESC LIMIT 1)";
/// What is read of an event.
const COLUMNS: &str = "SELECT id, trace_id, captured, user_key, body, stamp, due FROM pending";

/// The right to send what is in a spool.
#[derive(Debug)]
pub struct Sender {
    /// Where there is no file, nobody can have a lock, and nobody has to.
    lock: Option<File>,
}

/// One target's spool.
pub struct Spool {
    db: Connection,
    config: SpoolConfig,
    /// Another number after each change by another program or process.
    version: i64,
    /// What the spool's clock is ahead of the machine's monotonic one, in nanoseconds.
    epoch: i64,
}

impl Spool {
    /// The database of a target and its URL. After a change of the URL old events stay where they
    /// are.
    pub fn file(config: &SpoolConfig, target: &str, url: &str) -> PathBuf {
        // FNV-1a: the name must be the same in all versions.
        let hash = url
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        config.path.join(format!("{target}-{hash:08x}.db"))
    }

    /// The databases of the same target with other URLs, in which events wait, and how many.
    pub fn others(config: &SpoolConfig, target: &str, file: &Path) -> Vec<(PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(&config.path) else { return Vec::new() };
        let others = entries.flatten().map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hash = name.strip_suffix(".db").and_then(|name| name.strip_prefix(target));
            path != file && hash.is_some_and(|hash| hash.len() == 9 && hash.starts_with('-'))
        });
        let counted = others.filter_map(|path| {
            let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
            let count = db.query_row("SELECT count(*) FROM pending", [], |row| row.get(0)).ok()?;
            Some((path, count))
        });
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Opens the database, or makes it.
    ///
    /// # Errors
    /// It cannot be used now.
    pub fn open(config: &SpoolConfig, file: &Path) -> Result<Self, SpoolError> {
        // Where two processes make it at the same time, SQLite gives one of them up at once.
        let until = Instant::now() + BUSY;
        loop {
            match Self::try_open(config, file) {
                Err(error) if error.is_busy() && Instant::now() < until => thread::sleep(RETRY),
                result => return result,
            }
        }
    }

    fn try_open(config: &SpoolConfig, file: &Path) -> Result<Self, SpoolError> {
        // SQLite gives its other files the mode of this one. One that is there is not opened: closing
        // it would end this process's locks on it.
        let _ = OpenOptions::new().create_new(true).append(true).mode(0o600).open(file);
        let db = Connection::open(file)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "secure_delete", "ON")?;
        let layout: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let is_new = layout == 0 && !db.table_exists(None, "pending")?;
        if layout != LAYOUT && !is_new {
            return Err(SpoolError::Layout);
        }
        if is_new {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {LAYOUT}; COMMIT;"
            ))?;
        }
        let mut spool = Self { db, config: config.clone(), version: 0, epoch: 0 };
        spool.number()?;
        spool.epoch = spool.set_clock()?;
        spool.reconcile()?;
        spool.version = spool.version()?;
        Ok(spool)
    }

    /// The ids of a new database begin with the time: no event has one of a database that was set
    /// aside, whose events may still be on their way.
    fn number(&mut self) -> Result<(), SpoolError> {
        let tx = self.begin()?;
        let first = wall_ms() * 1000;
        let new = tx.execute(
            "INSERT INTO sqlite_sequence SELECT 'pending', ?1
             WHERE NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name = 'pending')",
            [first],
        )?;
        if new == 1 {
            set_total(&tx, "first_id", first as u64)?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Reads the spool's clock, which is set anew after each boot: later than all that is there.
    fn set_clock(&mut self) -> Result<i64, SpoolError> {
        let boot = boot_number();
        let tx = self.begin()?;
        if read_total(&tx, "boot")? != boot {
            let now = monotonic_ns() as i64;
            let newest = tx.query_row("SELECT max(stamp) FROM pending", [], |row| row.get(0))?;
            let newest: Option<i64> = newest;
            let wall = wall_ms().saturating_mul(1_000_000);
            let epoch = wall.max(newest.map_or(0, |stamp| stamp + 1)) - now;
            set_total(&tx, "epoch", epoch.max(0) as u64)?;
            set_total(&tx, "boot", boot)?;
        }
        let epoch = read_total(&tx, "epoch")? as i64;
        tx.commit()?;
        Ok(epoch)
    }

    /// The time of a monotonic stamp on the spool's clock.
    fn stamp(&self, monotonic_ns: u64) -> Stamp {
        Stamp(self.epoch.saturating_add(monotonic_ns as i64))
    }

    /// The time on the spool's clock.
    pub fn now(&self) -> Stamp {
        self.stamp(monotonic_ns())
    }

    fn version(&self) -> Result<i64, SpoolError> {
        Ok(self.db.query_row("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// Counts what somebody else has changed in the database.
    ///
    /// # Errors
    /// It cannot be counted.
    pub fn look(&mut self) -> Result<(), SpoolError> {
        let version = self.version()?;
        if version != self.version {
            self.reconcile()?;
            self.version = version;
        }
        Ok(())
    }

    /// Whether an event was in this database, and was deleted meanwhile.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_gone(&self, id: u64) -> Result<bool, SpoolError> {
        let mut select = self.db.prepare_cached(
            "SELECT ?1 > (SELECT value FROM total WHERE name = 'first_id')
                AND NOT EXISTS (SELECT * FROM pending WHERE id = ?1)",
        )?;
        let gone: Option<bool> = select.query_row([id as i64], |row| row.get(0))?;
        Ok(gone == Some(true))
    }

    /// Rows that somebody else deleted are dropped, rows that somebody else added are collected.
    fn reconcile(&mut self) -> Result<(), SpoolError> {
        let tx = self.begin()?;
        let totals = totals(&tx)?;
        let known = totals.delivered + totals.rejected + totals.dropped + totals.pending;
        add_total(&tx, "dropped", totals.collected.saturating_sub(known))?;
        add_total(&tx, "collected", known.saturating_sub(totals.collected))?;
        tx.commit()?;
        Ok(())
    }

    fn begin(&mut self) -> Result<Transaction<'_>, rusqlite::Error> {
        self.db.transaction_with_behavior(TransactionBehavior::Immediate)
    }

    /// Commits a batch, as the target sees it; failed logins wait for `delay` before they can be read.
    /// A record that is in the spool already, because a deliverer died between its commit and freeing
    /// the ring, is not stored again.
    ///
    /// # Errors
    /// Nothing of it is stored.
    pub fn append(&mut self, events: &[View<'_>], delay: Duration) -> Result<Appended, SpoolError> {
        let space = rustix::fs::statvfs(&self.config.path);
        if space.is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < RESERVE) {
            return Err(SpoolError::NoReserve);
        }
        // What is committed here survives a power cut. That an event was delivered need not: it would
        // be sent again.
        self.db.pragma_update(None, "synchronous", "FULL")?;
        let result = self.insert(events, delay);
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        result
    }

    fn insert(&mut self, events: &[View<'_>], delay: Duration) -> Result<Appended, SpoolError> {
        let (config, epoch) = (self.config.clone(), self.epoch);
        let tx = self.begin()?;
        // Not before: beginning may have waited for another process.
        let now = Stamp(epoch.saturating_add(monotonic_ns() as i64));
        let mut result = Appended::default();
        let mut bytes = read_total(&tx, "bytes")?;
        let (mut refused, mut withdrawn) = (0, 0);
        {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO pending
                 (trace_id, captured, type, user, user_key, body, stamp, due, attempt)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            let mut withdraw = tx.prepare_cached(WITHDRAW)?;
            for view in events {
                let record = view.record();
                let body = form::encode(view);
                let size = body.len() as u64 + ROW_OVERHEAD;
                let page = record.kind().is_page();
                let room = |bytes: u64| {
                    let share = if page { PAGES_UP_TO } else { 1.0 };
                    bytes + size <= (config.max_size as f64 * share) as u64
                };
                if !room(bytes) && config.when_full == WhenFull::DropOldest {
                    let (count, freed) = make_room(&tx, size * 16, page)?;
                    result.dropped += count;
                    bytes -= freed;
                }
                if !room(bytes) {
                    refused += 1;
                    continue;
                }
                let stamp = Stamp(epoch.saturating_add(record.stamp() as i64));
                let attempt = Attempt::of(record);
                let (due, failed) = match attempt {
                    Some(Attempt::Failed(attempt)) if !delay.is_zero() => {
                        (stamp.after(delay), Some(attempt as i64))
                    }
                    _ => (Stamp::default(), None),
                };
                let new = insert.execute(params![
                    record.trace(),
                    time_text(record.time_ms()),
                    record.kind().name(),
                    form::user(view),
                    view.user_key() as i64,
                    body,
                    stamp.0,
                    due.0,
                    failed,
                ])?;
                if new == 1 {
                    bytes += size;
                    result.stored += 1;
                    if let Some(Attempt::Good(attempt)) = attempt {
                        let params = params![attempt as i64, now.0, stamp.0];
                        withdrawn += withdraw.execute(params)? as u64;
                    }
                }
            }
        }
        result.dropped += refused;
        add_total(&tx, "collected", result.stored + refused)?;
        if withdrawn > 0 {
            let collected = read_total(&tx, "collected")?;
            set_total(&tx, "collected", collected.saturating_sub(withdrawn))?;
            add_total(&tx, "withdrawn", withdrawn)?;
        }
        add_total(&tx, "dropped", result.dropped)?;
        tx.commit()?;
        Ok(result)
    }

    /// Of the events that do not wait, at most `most` behind the cursor, in order of capture, and not
    /// more than `bytes` of forms (but one).
    ///
    /// # Errors
    /// They cannot be read.
    pub fn load(
        &self,
        (stamp, id): Cursor,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Stored>, SpoolError> {
        let condition = "due = 0 AND (stamp, id) > (?1, ?2) ORDER BY stamp, id LIMIT ?3";
        self.select(condition, params![stamp.0, id as i64, most as i64], bytes)
    }

    /// The same of the events that have waited until now, in the order of that.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn load_due(
        &self,
        (due, id): Cursor,
        most: usize,
        bytes: usize,
    ) -> Result<Vec<Stored>, SpoolError> {
        let condition = "due > 0 AND due <= ?4 AND (due, id) > (?1, ?2) ORDER BY due, id LIMIT ?3";
        let params = params![due.0, id as i64, most as i64, self.now().0];
        self.select(condition, params, bytes)
    }

    /// At most `most` events with keys above `known` that were committed when the cursors had passed
    /// their places, and the key from which on to look the next time.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn load_late(
        &self,
        known: u64,
        (stamp, id): Cursor,
        (due, due_id): Cursor,
        most: usize,
    ) -> Result<(Vec<Stored>, u64), SpoolError> {
        let newest: Option<i64> =
            self.db.query_row("SELECT max(id) FROM pending", [], |row| row.get(0))?;
        let condition = "id > ?1 AND (due = 0 AND (stamp, id) <= (?2, ?3)
                                   OR due > 0 AND (due, id) <= (?4, ?5)) ORDER BY id LIMIT ?6";
        let params = params![known as i64, stamp.0, id as i64, due.0, due_id as i64, most as i64];
        let mut events = self.select(condition, params, usize::MAX)?;
        let next = match events.last() {
            Some(last) if events.len() == most => last.id,
            _ => newest.map_or(known, |newest| newest as u64),
        };
        events.sort_by_key(|event| (event.stamp, event.id));
        Ok((events, next))
    }

    fn select(
        &self,
        condition: &str,
        params: &[&dyn rusqlite::ToSql],
        bytes: usize,
    ) -> Result<Vec<Stored>, SpoolError> {
        let mut select = self.db.prepare_cached(&format!("{COLUMNS} WHERE {condition}"))?;
        let mut rows = select.query(params)?;
        let (mut events, mut size) = (Vec::new(), 0_usize);
        while let Some(row) = rows.next()? {
            let body: String = row.get(4)?;
            size = size.saturating_add(body.len());
            if size > bytes && !events.is_empty() {
                break;
            }
            let captured: String = row.get(2)?;
            events.push(Stored {
                id: row.get(0)?,
                stamp: Stamp(row.get(5)?),
                due: Stamp(row.get(6)?),
                trace: row.get(1)?,
                time_ms: time_ms(&captured),
                user: row.get::<_, i64>(3)? as u64,
                body,
            });
        }
        Ok(events)
    }

    /// An event was accepted: it leaves.
    ///
    /// # Errors
    /// It is still there.
    pub fn delivered(&mut self, id: u64) -> Result<(), SpoolError> {
        let tx = self.begin()?;
        if remove(&tx, id)? {
            add_total(&tx, "delivered", 1)?;
        }
        tx.commit()?;
        Ok(())
    }

    /// An event is refused for good: it is set aside with the reason.
    ///
    /// # Errors
    /// It is still pending.
    pub fn rejected(&mut self, id: u64, reason: &str) -> Result<(), SpoolError> {
        let tx = self.begin()?;
        tx.execute(
            "INSERT INTO rejected
             SELECT id, trace_id, captured, type, user, user_key, body, ?2, ?3
             FROM pending WHERE id = ?1",
            params![id as i64, time_text(wall_ms()), reason],
        )?;
        tx.execute(
            "DELETE FROM rejected
             WHERE id <= (SELECT id FROM rejected ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            [MAX_REJECTED],
        )?;
        if remove(&tx, id)? {
            add_total(&tx, "rejected", 1)?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Drops what is older than `max_age` at `now_ms`; returns how many pending events.
    ///
    /// # Errors
    /// Nothing is dropped.
    pub fn expire(&mut self, now_ms: i64) -> Result<u64, SpoolError> {
        let before = time_text(now_ms - self.config.max_age.as_millis() as i64);
        let tx = self.begin()?;
        tx.execute("DELETE FROM rejected WHERE rejected < ?1", [&before])?;
        let (count, _) = drop_where(&tx, "captured < ?1", params![before])?;
        add_total(&tx, "dropped", count)?;
        tx.commit()?;
        Ok(count)
    }

    /// The counters.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn totals(&self) -> Result<SpoolTotals, SpoolError> {
        Ok(totals(&self.db)?)
    }

    /// How many rejected events are kept, by reason.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn rejected_by_reason(&self) -> Result<Vec<(String, u64)>, SpoolError> {
        let mut select = self
            .db
            .prepare_cached("SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY 1")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Nothing is left of what was deleted, in the log beside the database either.
    ///
    /// # Errors
    /// The log is as it was.
    pub fn tidy(&self) -> Result<(), SpoolError> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Sender {
    /// Takes the right to send from the spool in `file`, if nobody has it.
    pub fn try_lock(file: &Path) -> Option<Self> {
        // On a file system that has become read-only the lock is still held by somebody.
        let Ok(lock) = lock_file(file).or_else(|_| File::open(file.with_extension("lock"))) else {
            return Some(Self { lock: None });
        };
        // SAFETY: the descriptor is open.
        let rc = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        (rc == 0).then_some(Self { lock: Some(lock) })
    }

    /// Whether the right is guarded by a lock, so that it lasts.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }
}

/// Where in the lock's file an instance of nginx says that it captures: each has a byte of its own.
fn byte_of(instance: u64) -> libc::off_t {
    // The first byte stays free, so that there is something before each.
    (instance >> 1).max(1) as libc::off_t
}

/// A lock on `len` bytes from `start` on; 0: all the rest.
fn bytes_lock(start: libc::off_t, len: libc::off_t) -> libc::flock {
    // SAFETY: zeros are a valid lock.
    let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (start, len);
    lock
}

/// The file beside the database whose locks tell who does what. The directory is the workers' user's,
/// and a master may be root: what lies there under this name is opened only if it is a plain file, and
/// given to that user only if it was made here.
fn lock_file(file: &Path) -> std::io::Result<File> {
    let path = file.with_extension("lock");
    let careful = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(careful);
    match options.clone().create_new(true).open(&path) {
        Ok(made) => {
            if let Some(owner) = file.parent().and_then(|directory| fs::metadata(directory).ok()) {
                let _ = fchown(&made, Some(owner.uid()), Some(owner.gid()));
            }
            Ok(made)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = options.open(&path)?;
            let about = found.metadata()?;
            match about.is_file() && about.nlink() == 1 {
                true => Ok(found),
                false => Err(std::io::Error::other("it is no plain file")),
            }
        }
        Err(error) => Err(error),
    }
}

/// Says that an instance of nginx, a master and its workers, captures for the spool in `file`, while
/// any process has the returned file or inherited it.
///
/// # Errors
/// The lock beside the database cannot be made.
pub fn announce(file: &Path, instance: u64) -> std::io::Result<File> {
    let lock = lock_file(file)?;
    let own = bytes_lock(byte_of(instance), 1);
    // SAFETY: the descriptor is open, the structure is initialized.
    match unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_OFD_SETLK, &own) } {
        0 => Ok(lock),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether an instance of nginx other than this one captures for the spool in `file`.
pub fn is_shared(file: &Path, instance: u64) -> bool {
    let Ok(lock) = lock_file(file) else { return false };
    let own = byte_of(instance);
    [(0, own), (own + 1, 0)].into_iter().any(|(start, len)| {
        let mut found = bytes_lock(start, len);
        // SAFETY: the descriptor is open, the structure is initialized.
        let rc = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_OFD_GETLK, &mut found) };
        rc == 0 && found.l_type != libc::F_UNLCK as libc::c_short
    })
}

/// Sets a damaged database aside under another name; only the holder of `_sender` may. Returns that
/// name.
///
/// # Errors
/// It is where it was.
pub fn set_aside(file: &Path, _sender: &Sender) -> std::io::Result<PathBuf> {
    let stamp = wall_ms();
    let name = |suffix: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = name(&format!(".corrupt-{stamp}"));
    fs::rename(file, &aside)?;
    for suffix in ["-wal", "-shm"] {
        let mut to = aside.as_os_str().to_owned();
        to.push(suffix);
        // There may be none.
        let _ = fs::rename(name(suffix), to);
    }
    let _ = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600));
    Ok(aside)
}

fn read_total(db: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    let mut select = db.prepare_cached("SELECT value FROM total WHERE name = ?1")?;
    Ok(select.query_row([name], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn totals(db: &Connection) -> Result<SpoolTotals, rusqlite::Error> {
    let get = |name| read_total(db, name);
    Ok(SpoolTotals {
        collected: get("collected")?,
        delivered: get("delivered")?,
        rejected: get("rejected")?,
        dropped: get("dropped")?,
        withdrawn: get("withdrawn")?,
        pending: get("pending")?,
        bytes: get("bytes")?,
    })
}

fn set_total(db: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    let mut set = db.prepare_cached("INSERT OR REPLACE INTO total VALUES (?1, ?2)")?;
    set.execute(params![name, value])?;
    Ok(())
}

fn add_total(db: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    if value > 0 {
        set_total(db, name, read_total(db, name)? + value)?;
    }
    Ok(())
}

/// Deletes a pending event, if it is there.
fn remove(db: &Connection, id: u64) -> Result<bool, rusqlite::Error> {
    let mut delete = db.prepare_cached("DELETE FROM pending WHERE id = ?1")?;
    Ok(delete.execute([id as i64])? == 1)
}

/// Deletes the oldest pending events, some `bytes` of them: page views first, others only for an
/// event that is none itself. Returns their number and bytes.
fn make_room(db: &Connection, bytes: u64, for_page: bool) -> Result<(u64, u64), rusqlite::Error> {
    let oldest = |pages: bool| {
        let pattern = if pages { "LIKE" } else { "NOT LIKE" };
        drop_where(
            db,
            &format!(
                "id IN (SELECT id FROM pending WHERE type {pattern} 'page\\_%' ESCAPE '\\'
                        ORDER BY id LIMIT ?1)"
            ),
            params![(bytes / ROW_OVERHEAD / 4).max(1) as i64],
        )
    };
    let pages = oldest(true)?;
    if pages.0 > 0 || for_page { Ok(pages) } else { oldest(false) }
}

/// Deletes the pending events for which `condition` holds. Returns their number and bytes.
fn drop_where(
    db: &Connection,
    condition: &str,
    params: &[&dyn rusqlite::ToSql],
) -> Result<(u64, u64), rusqlite::Error> {
    let sql = format!("DELETE FROM pending WHERE {condition} RETURNING length(body)");
    let mut delete = db.prepare_cached(&sql)?;
    let mut rows = delete.query(params)?;
    let (mut count, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        count += 1;
        bytes += row.get::<_, u64>(0)? + ROW_OVERHEAD;
    }
    Ok((count, bytes))
}

/// Another number for each boot of the machine; containers have that of their host.
fn boot_number() -> u64 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(15).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(1)
}

fn time_text(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).unwrap_or_default().format(form::TIME_FORMAT).to_string()
}

fn time_ms(text: &str) -> i64 {
    chrono::NaiveDateTime::parse_from_str(text, form::TIME_INPUT)
        .map_or(0, |time| time.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, Param};
    use crate::privacy::Privacy;
    use crate::record::{Capture, Extra, Record};
    use std::net::IpAddr;
    use std::sync::LazyLock;
    use tempfile::TempDir;

    const DELAY: Duration = Duration::from_secs(3600);
    const START: Cursor = (Stamp(0), 0);

    struct Bench {
        dir: TempDir,
        config: SpoolConfig,
        next: u32,
    }

    impl Bench {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let config = SpoolConfig {
                path: dir.path().into(),
                max_size: 1 << 30,
                max_age: Duration::from_secs(3600),
                when_full: WhenFull::DropOldest,
            };
            Self { dir, config, next: 0 }
        }

        fn file(&self) -> PathBuf {
            Spool::file(&self.config, "t", "http://t/sensor/")
        }

        fn open(&self) -> Spool {
            Spool::open(&self.config, &self.file()).unwrap()
        }

        fn event(&mut self, kind: EventType) -> Vec<u8> {
            let url = format!("/{}", self.next);
            let mut capture = Capture::new(wall_ms());
            capture.kind = kind;
            capture.trace = format!("{:032x}", self.next).into_bytes().try_into().unwrap();
            capture.set(Param::Url, url.as_bytes()).unwrap();
            capture.set(Param::UserName, b"u").unwrap();
            self.next += 1;
            let mut bytes = vec![0; capture.record_len()];
            capture.write(u64::from(self.next), &mut bytes);
            bytes
        }

        fn append(&mut self, spool: &mut Spool, kind: EventType, count: usize) -> Appended {
            let events: Vec<_> = (0..count).map(|_| self.event(kind)).collect();
            let views: Vec<_> = events.iter().map(|e| view(e)).collect();
            spool.append(&views, DELAY).unwrap()
        }
    }

    /// As a target sees it that may know all.
    fn view(bytes: &[u8]) -> View<'_> {
        static PRIVACY: LazyLock<Privacy> = LazyLock::new(Privacy::default);
        PRIVACY.view(Record::parse(bytes).unwrap())
    }

    fn adds_up(spool: &Spool) -> SpoolTotals {
        let t = spool.totals().unwrap();
        assert_eq!(t.collected, t.delivered + t.rejected + t.dropped + t.pending, "{t:?}");
        let there = spool.load(START, usize::MAX, usize::MAX).unwrap();
        assert_eq!(there.len() as u64, t.pending);
        let bytes = there.iter().map(|e| e.body.len() as u64 + ROW_OVERHEAD).sum::<u64>();
        assert_eq!(bytes, t.bytes);
        t
    }

    #[test]
    fn what_is_committed_comes_back_in_order() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 5);
        let first = spool.load(START, 2, usize::MAX).unwrap();
        assert_eq!(first.len(), 2);
        assert!(first[0].body.contains("url=%2F0") && first[1].body.contains("url=%2F1"));
        spool.delivered(first[0].id).unwrap();
        spool.rejected(first[1].id, "answered 403").unwrap();
        drop(spool);
        let spool = bench.open();
        let rest = spool.load(START, 10, usize::MAX).unwrap();
        assert_eq!(rest.len(), 3);
        assert!(rest[0].body.contains("url=%2F2") && rest[0].id > first[1].id);
        let t = adds_up(&spool);
        assert_eq!((t.collected, t.delivered, t.rejected, t.pending), (5, 1, 1, 3));
        assert_eq!(spool.rejected_by_reason().unwrap(), [("answered 403".to_owned(), 1)]);
    }

    #[test]
    fn a_record_twice_is_one_event() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        let event = bench.event(EventType::PageView);
        let view = view(&event);
        assert_eq!(spool.append(&[view, view], DELAY).unwrap().stored, 1);
        assert_eq!(spool.append(&[view], DELAY).unwrap().stored, 0);
        assert_eq!(adds_up(&spool).collected, 1);
    }

    #[test]
    fn the_order_is_that_of_capture() {
        let mut bench = Bench::new();
        let (mut one, mut other) = (bench.open(), bench.open());
        let (first, second) = (bench.event(EventType::PageView), bench.event(EventType::PageView));
        other.append(&[view(&second)], DELAY).unwrap();
        one.append(&[view(&first)], DELAY).unwrap();
        let there = one.load(START, 10, usize::MAX).unwrap();
        assert!(there[0].body.contains("url=%2F0&") && there[1].body.contains("url=%2F1&"));
        let behind = one.load((there[0].stamp, there[0].id), 10, usize::MAX).unwrap();
        assert_eq!(behind, there[1..]);
    }

    #[test]
    fn what_is_committed_late_is_found() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 5);
        let (all, known) = spool.load_late(0, (Stamp::END, 0), START, 100).unwrap();
        assert_eq!(all.len(), 5);
        let here = (all[2].stamp, all[2].id);
        assert_eq!(spool.load_late(0, here, START, 100).unwrap().0, all[..3]);
        // Page by page.
        let (page, next) = spool.load_late(0, here, START, 2).unwrap();
        assert_eq!((&page[..], next), (&all[..2], all[1].id));
        assert_eq!(spool.load_late(next, here, START, 2).unwrap(), (vec![all[2].clone()], known));
        assert_eq!(spool.load_late(known, here, START, 2).unwrap(), (vec![], known));
        bench.next = 0;
        spool.db.execute("DELETE FROM pending", []).unwrap();
        bench.append(&mut spool, EventType::PageView, 1);
        assert_eq!(spool.load_late(known, here, START, 2).unwrap().0.len(), 1);
    }

    #[test]
    fn another_versions_database_is_left_alone() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 1);
        spool.db.pragma_update(None, "user_version", 0).unwrap();
        drop(spool);
        let error = Spool::open(&bench.config, &bench.file()).unwrap_err();
        assert!(!error.is_corrupt() && error.to_string().contains("another version"), "{error}");
    }

    #[test]
    fn what_lies_in_the_locks_place_is_not_followed() {
        let bench = Bench::new();
        let (lock, victim) = (bench.file().with_extension("lock"), bench.dir.path().join("victim"));
        fs::write(&victim, "").unwrap();
        std::os::unix::fs::symlink(&victim, &lock).unwrap();
        assert!(announce(&bench.file(), 1).is_err());
        fs::remove_file(&lock).unwrap();
        fs::hard_link(&victim, &lock).unwrap();
        assert!(announce(&bench.file(), 1).is_err());
        fs::remove_file(&lock).unwrap();
        let name = std::ffi::CString::new(lock.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path ends with NUL.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(announce(&bench.file(), 1).is_err());
        fs::remove_file(&lock).unwrap();
        assert!(announce(&bench.file(), 1).is_ok());
    }

    #[test]
    fn the_clock_goes_on_after_a_boot() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 1);
        // The wall's clock was an hour ahead, and this is another boot.
        let ahead = spool.now().0 + 3_600_000_000_000;
        spool.db.execute("UPDATE pending SET stamp = ?1", [ahead]).unwrap();
        set_total(&spool.db, "boot", 0).unwrap();
        let again = bench.open();
        assert!(again.now().0 > ahead);
        assert_eq!(bench.open().epoch, again.epoch);
    }

    #[test]
    fn a_good_login_withdraws_the_failed_one_before_it() {
        let mut bench = Bench::new();
        let spool = bench.open();
        let mut writer = bench.open();
        let mut login = |kind, account: [u8; 8], ip: [u8; 4]| {
            let url = format!("/{}", bench.next);
            let mut capture = Capture::new(wall_ms());
            (capture.kind, capture.ip) = (kind, Some(IpAddr::from(ip)));
            capture.status = if kind == EventType::AccountLogin { 200 } else { 401 };
            capture.trace = format!("{:032x}", bench.next).into_bytes().try_into().unwrap();
            capture.set(Param::Url, url.as_bytes()).unwrap();
            capture.set_extra(Extra::Account, &account);
            bench.next += 1;
            let mut bytes = vec![0; capture.record_len()];
            capture.write(monotonic_ns(), &mut bytes);
            writer.append(&[view(&bytes)], DELAY).unwrap();
        };
        let (here, there) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        login(EventType::AccountLoginFail, [1; 8], here);
        login(EventType::AccountLoginFail, [1; 8], here);
        login(EventType::AccountLoginFail, [2; 8], here);
        login(EventType::AccountLoginFail, [1; 8], there);
        login(EventType::AccountLogin, [1; 8], here);
        let totals = spool.totals().unwrap();
        assert_eq!((totals.collected, totals.pending, totals.withdrawn), (4, 4, 1));
        // The failed ones wait.
        assert_eq!(spool.load(START, 10, usize::MAX).unwrap().len(), 1);
        assert!(spool.load_due(START, 10, usize::MAX).unwrap().is_empty());
        spool.db.execute("UPDATE pending SET due = stamp WHERE due > 0", []).unwrap();
        let due = spool.load_due(START, 10, usize::MAX).unwrap();
        assert_eq!(due.len(), 3);
        let urls = ["%2F0&", "%2F2&", "%2F3&"];
        assert!(due.iter().zip(urls).all(|(event, url)| event.body.contains(url)), "{due:?}");
        // What has waited is not withdrawn any more: it may be on its way.
        login(EventType::AccountLogin, [1; 8], here);
        assert_eq!(spool.totals().unwrap().withdrawn, 1);
    }

    #[test]
    fn another_instance_is_seen_while_it_lives() {
        let bench = Bench::new();
        let file = bench.file();
        assert!(!is_shared(&file, 7_000));
        let own = announce(&file, 7_000).unwrap();
        assert!(!is_shared(&file, 7_000) && is_shared(&file, 9_000) && is_shared(&file, 5_000));
        let other = announce(&file, 9_000).unwrap();
        assert!(is_shared(&file, 7_000));
        drop(other);
        assert!(!is_shared(&file, 7_000));
        // The right to send is another lock.
        assert!(Sender::try_lock(&file).is_some());
        drop(own);
    }

    #[test]
    fn ids_are_never_used_again() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 1);
        let first = spool.load(START, 1, usize::MAX).unwrap().remove(0);
        spool.delivered(first.id).unwrap();
        bench.append(&mut spool, EventType::PageView, 1);
        assert!(spool.load(START, 1, usize::MAX).unwrap()[0].id > first.id);
    }

    #[test]
    fn a_full_spool_drops_page_views_first() {
        for when_full in [WhenFull::DropOldest, WhenFull::DropNewest] {
            let mut bench = Bench::new();
            bench.config.when_full = when_full;
            bench.config.max_size = 100_000;
            let mut spool = bench.open();
            bench.append(&mut spool, EventType::AccountLogin, 20);
            let pages = bench.append(&mut spool, EventType::PageView, 500);
            assert!(pages.dropped > 0, "{pages:?}");
            let logins = bench.append(&mut spool, EventType::AccountLogin, 20);
            assert_eq!(logins.stored, 20, "{when_full:?}");
            let t = adds_up(&spool);
            assert!(t.bytes <= 100_000);
            let there = spool.load(START, usize::MAX, usize::MAX).unwrap();
            let count = |kind| there.iter().filter(|e| e.body.contains(kind)).count();
            assert_eq!(count("account_login"), 40);
            let oldest = there.iter().any(|e| e.body.contains("url=%2F20&"));
            assert_eq!(oldest, when_full == WhenFull::DropNewest);
        }
    }

    #[test]
    fn old_events_are_dropped() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 3);
        assert_eq!(spool.expire(wall_ms()).unwrap(), 0);
        assert_eq!(spool.expire(wall_ms() + 3_700_000).unwrap(), 3);
        assert_eq!(adds_up(&spool).dropped, 3);
    }

    #[test]
    fn deleted_by_hand_is_dropped() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 3);
        let second = spool.load(START, 2, usize::MAX).unwrap()[1].id;
        spool.db.execute("DELETE FROM pending WHERE id = ?1", [second as i64]).unwrap();
        drop(spool);
        assert_eq!(adds_up(&bench.open()).dropped, 1);
    }

    #[test]
    fn nothing_is_left_of_a_delivered_event() {
        let bench = Bench::new();
        let mut spool = bench.open();
        let mut capture = Capture::new(0);
        capture.set(Param::UserName, b"find-me-if-you-can").unwrap();
        let mut bytes = vec![0; capture.record_len()];
        capture.write(1, &mut bytes);
        spool.append(&[view(&bytes)], DELAY).unwrap();
        let id = spool.load(START, 1, usize::MAX).unwrap()[0].id;
        spool.delivered(id).unwrap();
        spool.tidy().unwrap();
        for file in fs::read_dir(bench.dir.path()).unwrap() {
            let content = fs::read(file.unwrap().path()).unwrap();
            assert!(!content.windows(14).any(|w| w == b"find-me-if-you"));
        }
    }

    #[test]
    fn events_for_another_url_wait_and_are_found() {
        let mut bench = Bench::new();
        let mut spool = bench.open();
        bench.append(&mut spool, EventType::PageView, 3);
        let other = Spool::file(&bench.config, "t", "http://elsewhere/sensor/");
        assert_ne!(other, bench.file());
        Spool::open(&bench.config, &other).unwrap();
        Spool::open(&bench.config, &Spool::file(&bench.config, "t-2", "http://t/sensor/")).unwrap();
        let found = Spool::others(&bench.config, "t", &other);
        assert_eq!(found, [(bench.file(), 3)]);
        assert!(Spool::others(&bench.config, "t", &bench.file()).is_empty());
    }

    #[test]
    fn a_damaged_database_is_set_aside() {
        let mut bench = Bench::new();
        fs::write(bench.file(), b"this is no database, but a text of some length ......").unwrap();
        let error = Spool::open(&bench.config, &bench.file()).unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        let sender = Sender::try_lock(&bench.file()).unwrap();
        assert!(Sender::try_lock(&bench.file()).is_none());
        let aside = set_aside(&bench.file(), &sender).unwrap();
        assert!(aside.exists());
        let mut spool = bench.open();
        assert_eq!(bench.append(&mut spool, EventType::PageView, 1).stored, 1);
        let mode = fs::metadata(bench.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
