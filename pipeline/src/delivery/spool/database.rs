//! The database of one spool: SQLite in WAL mode.
//!
//! A batch is committed before its first POST, an event is deleted after its 204, and the totals change in the
//! same transactions: they are exact, whatever is killed when. A killed process loses nothing that is
//! committed. A power cut may undo the last deletions of delivered events (`synchronous=NORMAL`), but never the
//! intake of events (`FULL`).
//!
//! Any process may append, also the processes of two masters during a binary upgrade. With each batch, a
//! process commits how far it has read each ring: the next process does not store again what this one stored
//! and could not yet free in the ring. Only the holder of the lock beside the database sends, and only it
//! orders events.
//!
//! # Order
//! Ranks first; within a rank, users take turns of some events each, so that many events of one user do not
//! delay those of others. An event's place, its `turn`, is set when it is stored, from its user's state at that
//! moment (start-time fair queuing): one index suffices. An event of a higher rank takes the last events of its
//! user along; `previous` leads to them without an index of users. A user's events of one rank stay in the
//! order of capture. While another instance of nginx captures, too, the sender waits for what that may not have
//! committed yet, and places it by the time of capture.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use chrono::DateTime;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};

use crate::capture::login::Attempt;
use crate::capture::rank::Rank;
use crate::clock::{monotonic_ns, wall_ms};
use crate::delivery::priority_queue::BEFORE;
use crate::delivery::spool::error::SpoolError;
use crate::delivery::spool::lock::is_plain;
use crate::delivery::spool::schema::{ROW_OVERHEAD, prepare};
use crate::delivery::turns::Turns;
use crate::event::EventType;
use crate::privacy::View;
use crate::record::{Extra, Record};
use crate::shm::rejected::{LISTED, Rejected, TraceId};
use crate::shm::zone::{Fault, SpoolTotals};
use crate::tirreno::form;

/// How long a commit waits for another process's commit.
const BUSY: Duration = Duration::from_secs(2);
/// How often a waiting commit tries again.
const BUSY_POLL: Duration = Duration::from_millis(1);
/// By how much events age, at the most, while the machine is off.
const MAX_OFF: Duration = Duration::from_secs(24 * 60 * 60);
/// The pause between attempts to open the database.
const RETRY: Duration = Duration::from_millis(10);
/// How much of the file system is left free: without room to move SQLite's log into the database, nothing can
/// be deleted. Twice the log's limit.
const RESERVE: u64 = 8 << 20;
/// The most rejected events that are kept for inspection.
const MAX_REJECTED: u64 = 10_000;
/// Above this share of the size, events of the lowest rank are dropped or refused, so that others find room.
const LOWEST_UP_TO: f64 = 0.8;
/// The most events to drop at a time.
const MAKE_ROOM: usize = 16;
/// How many rows are searched for a user's last events.
const LOOK_BACK: usize = 4 * BEFORE;
/// How many events get their places in one transaction.
const ORDER: usize = 4096;
/// How long the cursors of other instances' rings are kept.
const KEEP_CURSORS: Duration = Duration::from_secs(3600);
/// How many pages are given back to the file system at a time.
const SHRINK: u32 = 256;
/// A database of an older layout is converted so that it can shrink, if it has at most so many pages.
const VACUUM: u32 = 4096;
/// How many expired events are dropped in one transaction.
const EXPIRE: usize = 512;

/// Which events are dropped when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest, page views first.
    DropOldest,
    /// The new ones, page views first.
    DropNewest,
}

/// The parameter `spool`.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// The directory.
    pub path: PathBuf,
    /// Where the directory stands in the configuration, for messages.
    pub place: String,
    /// The most bytes of events.
    pub max_size: u64,
    /// The maximum age of an event.
    pub max_age: Duration,
    /// Which events are dropped when it is full.
    pub when_full: WhenFull,
}

impl SpoolConfig {
    /// A spool in that directory, which the configuration names in that place, with the defaults.
    pub fn new(path: PathBuf, place: String) -> Self {
        Self {
            path,
            place,
            max_size: 1 << 30,
            max_age: Duration::from_secs(7 * 24 * 60 * 60),
            when_full: WhenFull::DropOldest,
        }
    }
}

/// A record to store.
#[derive(Clone, Copy, Debug)]
pub struct Intake<'a> {
    /// The record, as the target sees it.
    pub view: View<'a>,
    /// The number of the ring that it was read from, which the caller keeps the same while this instance of
    /// nginx lives. The stamps of each ring rise: a record with a stamp up to the last one stored from that
    /// ring is not stored again. `None`: the record comes from memory.
    pub ring: Option<u64>,
    /// Set for an event that is merged into one that stands for many.
    pub merge: Option<Merge>,
}

/// How to merge an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The same for all events to merge.
    pub key: u64,
    /// The stamp after which there are no more of them.
    pub until_ns: u64,
}

impl<'a> From<View<'a>> for Intake<'a> {
    /// A record from memory that is not merged.
    fn from(view: View<'a>) -> Self {
        Self { view, ring: None, merge: None }
    }
}

/// A spooled event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub id: u64,
    /// When it was captured, on the spool's own clock.
    pub stamp: Stamp,
    /// The trace id.
    pub trace: String,
    /// When it was captured, milliseconds since the epoch.
    pub time_ms: i64,
    /// Its rank.
    pub rank: Rank,
    /// A number that differs between users.
    pub user: u64,
    /// What it is, where that is known.
    pub kind: Option<EventType>,
    /// The form.
    pub body: String,
}

/// A time on a spool's clock, in nanoseconds: near the wall clock, but it never goes back, even if the wall
/// clock does, and it is the same for all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(i64);

impl Stamp {
    /// Later than any event.
    pub const END: Self = Self(i64::MAX);

    /// This time plus `span`.
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_nanos() as i64))
    }

    /// The time from `now` until then; zero if it is past.
    pub fn since(self, now: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0).max(0) as u64)
    }

    /// This time minus `span`.
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_nanos() as i64))
    }
}

/// The outcome of a spooled event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted it.
    Delivered,
    /// It is refused for good.
    Rejected(Fault),
}

/// The result of storing a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// How many events were stored.
    pub stored: u64,
    /// How many events, of this batch or older ones, were dropped for lack of room.
    pub dropped: u64,
}

/// A successful login withdraws the latest failed one of the same attempt that still waits.
const WITHDRAW: &str = "DELETE FROM pending WHERE id =
    (SELECT id FROM pending WHERE attempt = ?1 AND due > ?2 AND stamp < ?3 AND turn = 0
     ORDER BY stamp DESC, id DESC LIMIT 1)";
const INSERT: &str = "INSERT INTO pending (trace_id, captured, type, rank, user, user_key, realm,
        identity, repeated, body, stamp, due, turn, previous, attempt, merge_key)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
/// Counts an event into the waiting one that stands for it.
const MERGE: &str = "UPDATE pending SET repeated = repeated + 1 WHERE merge_key = ?1 AND turn = 0";
/// What is read of an event.
const SELECT: &str = "SELECT id, trace_id, captured, rank, user_key, body, stamp, turn, previous, repeated, type FROM pending";
const SET_ASIDE: &str = "INSERT INTO rejected (id, trace_id, captured, type, rank, user, user_key,
        realm, identity, repeated, body, rejected, stamp, reason, status)
    SELECT id, trace_id, captured, type, rank, user, user_key, realm, identity, repeated, body,
        ?2, ?3, ?4, ?5
    FROM pending WHERE id = ?1";

/// One target's database.
pub struct Database {
    db: Connection,
    config: SpoolConfig,
    /// The number of this instance of nginx.
    instance: u64,
    /// A number that changes when another program or process changes the database.
    version: i64,
    /// How much the spool's clock is ahead of the machine's monotonic one, in nanoseconds.
    epoch: i64,
    /// As of the last transaction.
    totals: SpoolTotals,
    /// The sender's state.
    sending: Option<Sending>,
}

/// The sender's state of the order.
#[derive(Default)]
struct Sending {
    turns: Turns,
    /// For each rank: how far it is handed out, and whether there may be more.
    read: [(i64, bool); Rank::ALL.len()],
    /// The time from which on there may be events without a place.
    unordered: Option<Stamp>,
    /// Events that were handed out.
    taken: BTreeSet<u64>,
}

impl Sending {
    /// The place of the next event of that user and rank, and the event before it.
    fn give(&mut self, rank: Rank, user: u64) -> (i64, Option<i64>) {
        self.read[rank.place()].1 = true;
        self.turns.give(rank, user)
    }

    /// Notes that there may be an event without a place from `due` on.
    fn leave_unordered(&mut self, due: Stamp) {
        self.unordered = Some(self.unordered.unwrap_or(Stamp::END).min(due));
    }

    /// Whether there may be an event that gets its place now.
    fn may_order(&self, now: Stamp) -> bool {
        self.unordered.is_some_and(|first| first <= now)
    }
}

impl Database {
    /// The path of the database for a target and its URL. If the URL changes, old events stay in the old
    /// database.
    pub fn file(config: &SpoolConfig, target: &str, url: &str) -> PathBuf {
        // FNV-1a: the name must be the same in all versions.
        let hash = url
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        config.path.join(format!("{target}-{hash:08x}.db"))
    }

    /// The databases of the same target for other URLs in which events wait, with their numbers.
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
            Some((path, unsigned(count)))
        });
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Opens or creates the database, for the instance of nginx `instance`.
    ///
    /// # Errors
    /// It cannot be used now.
    pub fn open(config: &SpoolConfig, file: &Path, instance: u64) -> Result<Self, SpoolError> {
        // If two processes create it at the same time, SQLite lets one of them fail at once.
        let until = Instant::now() + BUSY;
        loop {
            match Self::try_open(config, file, instance) {
                Err(error) if error.is_busy() && Instant::now() < until => thread::sleep(RETRY),
                result => return result,
            }
        }
    }

    fn try_open(config: &SpoolConfig, file: &Path, instance: u64) -> Result<Self, SpoolError> {
        // SQLite gives its other files the mode of this one. An existing file is not opened: closing it would
        // release this process's locks on it.
        let _ = OpenOptions::new().create_new(true).append(true).mode(0o600).open(file);
        // SQLite follows links.
        if fs::symlink_metadata(file).is_ok_and(|about| !is_plain(&about)) {
            return Err(SpoolError::NotPlain);
        }
        let mut db = Connection::open(file)?;
        wait_for_others(&mut db)?;
        // The journal of a statement is kept in memory, not in a file in another directory.
        db.pragma_update(None, "temp_store", "MEMORY")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "secure_delete", "ON")?;
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            // It must be set before the first page, or the database can never shrink.
            db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            db.pragma_update(None, "journal_mode", "WAL")?;
        }
        prepare(&mut db)?;
        let mut database = Self {
            db,
            config: config.clone(),
            instance: instance & i64::MAX as u64,
            version: 0,
            epoch: 0,
            totals: SpoolTotals::default(),
            sending: None,
        };
        database.number()?;
        database.epoch = database.set_clock()?;
        database.version = data_version(&database.db)?;
        database.reconcile()?;
        Ok(database)
    }

    /// The ids of a new database begin with the time: they differ from the ids in a database that was set
    /// aside, whose events may still be under way.
    fn number(&mut self) -> Result<(), SpoolError> {
        let tx = begin(&mut self.db)?;
        let first = wall_ms() * 1000;
        let new = tx.execute(
            "INSERT INTO sqlite_sequence SELECT 'pending', ?1
             WHERE NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name = 'pending')",
            [first],
        )?;
        if new == 1 {
            set_total(&tx, "first_id", first)?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Reads the spool's clock. After each boot it is set again, later than all events.
    fn set_clock(&mut self) -> Result<i64, SpoolError> {
        let boot = boot_number();
        let now = monotonic_ns() as i64;
        let tx = begin(&mut self.db)?;
        if read_total(&tx, "boot")? != boot {
            let newest: Option<i64> =
                tx.query_row("SELECT max(stamp) FROM pending", [], |row| row.get(0))?;
            let wall = wall_ms().saturating_mul(1_000_000);
            // If the wall clock jumped, that does not make events expire at once.
            let start = newest.map_or(wall, |newest| {
                wall.min(newest.saturating_add(MAX_OFF.as_nanos() as i64)).max(newest + 1)
            });
            let epoch = start - now;
            set_total(&tx, "epoch", epoch.max(0))?;
            set_total(&tx, "boot", boot)?;
            // The rings of the previous boot are gone, and so is the clock of their stamps.
            tx.execute("DELETE FROM cursor", [])?;
        }
        tx.execute(
            "DELETE FROM cursor WHERE instance <> ?1 AND stamp < ?2",
            params![self.instance as i64, now - KEEP_CURSORS.as_nanos() as i64],
        )?;
        let epoch = read_total(&tx, "epoch")?;
        tx.commit()?;
        Ok(epoch)
    }

    /// Converts a monotonic stamp to the spool's clock.
    pub fn stamp(&self, monotonic_ns: u64) -> Stamp {
        Stamp(self.epoch.saturating_add(monotonic_ns as i64))
    }

    /// The present time on the spool's clock.
    pub fn now(&self) -> Stamp {
        self.stamp(monotonic_ns())
    }

    /// Reads what another process, or an administrator, has changed. Returns the events that were handed out
    /// and since deleted, which must not be sent; `None` if nobody else changed anything.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn sync(&mut self) -> Result<Option<Vec<u64>>, SpoolError> {
        let version = data_version(&self.db)?;
        if version == self.version {
            return Ok(None);
        }
        self.reconcile()?;
        self.version = version;
        let Some(sending) = &mut self.sending else { return Ok(Some(Vec::new())) };
        sending.unordered = Some(Stamp::default());
        sending.read.iter_mut().for_each(|(_, more)| *more = true);
        let mut gone = Vec::new();
        let mut select = self.db.prepare_cached("SELECT 1 FROM pending WHERE id = ?1")?;
        for id in &sending.taken {
            if !select.exists([*id as i64])? {
                gone.push(*id);
            }
        }
        Ok(Some(gone))
    }

    /// Counts rows that others deleted as dropped, and rows that others added as collected.
    fn reconcile(&mut self) -> Result<(), SpoolError> {
        let tx = begin(&mut self.db)?;
        let totals = totals(&tx)?;
        let known = totals.delivered
            + totals.rejected
            + totals.dropped
            + totals.merged
            + totals.withdrawn
            + totals.pending;
        add_total(&tx, "dropped", totals.collected.saturating_sub(known))?;
        add_total(&tx, "collected", known.saturating_sub(totals.collected))?;
        self.totals = finish(tx)?;
        Ok(())
    }

    /// This process becomes the sender: it orders the events.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn start_sending(&mut self) -> Result<(), SpoolError> {
        let mut sending = Sending { unordered: Some(Stamp::default()), ..Sending::default() };
        let mut select = self.db.prepare_cached(
            "SELECT rank, user_key, min(turn), max(turn), max(id) FROM pending
             WHERE turn > 0 GROUP BY rank, user_key",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (rank, user) = (rank(row.get(0)?), row.get::<_, i64>(1)? as u64);
            sending.turns.learn(rank, user, (row.get(2)?, row.get(3)?), row.get(4)?);
        }
        for rank in Rank::ALL {
            sending.read[rank.place()] = (sending.turns.served(rank), true);
        }
        drop(rows);
        drop(select);
        self.sending = Some(sending);
        Ok(())
    }

    /// Another process becomes the sender.
    pub fn stop_sending(&mut self) {
        self.sending = None;
    }

    /// Whether this process sends.
    pub fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Commits a batch; failed logins wait for `delay` before they can be taken. `may_follow` tells, whenever it is
    /// called, whether an event that was captured before one of these may be appended later.
    ///
    /// # Errors
    /// Nothing of it is stored.
    pub fn append(
        &mut self,
        events: &[Intake<'_>],
        delay: Duration,
        may_follow: &dyn Fn() -> bool,
    ) -> Result<Appended, SpoolError> {
        let space = rustix::fs::statvfs(&self.config.path);
        if space.is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < RESERVE) {
            return Err(SpoolError::NoReserve);
        }
        // The clock is read first: another instance announces itself before it captures.
        let now = self.now();
        if self.is_sending() && !may_follow() {
            // Events without a place come before these.
            while self.order(now)? {}
        }
        // This commit must survive a power cut. The deletion of a delivered event need not: the event would be
        // sent again.
        self.db.pragma_update(None, "synchronous", "FULL")?;
        let result = self.insert(events, delay, may_follow);
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        result
    }

    fn insert(
        &mut self,
        events: &[Intake<'_>],
        delay: Duration,
        may_follow: &dyn Fn() -> bool,
    ) -> Result<Appended, SpoolError> {
        let Self { db, config, epoch, instance, version, .. } = self;
        let sending = &mut self.sending;
        let tx = begin(db)?;
        // Read and asked only now, because beginning may have waited for another process.
        let now = Stamp(epoch.saturating_add(monotonic_ns() as i64));
        let has_earlier = sending.as_ref().is_some_and(|sending| sending.may_order(now))
            || data_version(&tx)? != *version;
        let in_order = !has_earlier && !may_follow();
        let mut room = Room { bytes: totals(&tx)?.bytes, dropped: 0, config };
        let mut cursors = Cursors { instance: *instance as i64, rings: BTreeMap::new() };
        let mut result = Appended::default();
        let (mut collected, mut refused, mut merged, mut withdrawn) = (0, 0, 0, 0);
        {
            let mut insert = tx.prepare_cached(INSERT)?;
            let mut withdraw = tx.prepare_cached(WITHDRAW)?;
            let mut merge_into = tx.prepare_cached(MERGE)?;
            for Intake { view, ring, merge } in events {
                let record = view.record();
                if let Some(ring) = ring
                    && !cursors.pass(&tx, *ring, record.stamp())?
                {
                    continue;
                }
                collected += u64::from(record.repeated());
                merged += u64::from(record.repeated() - 1);
                if let Some(merge) = merge
                    && merge_into.execute([merge.key as i64])? > 0
                {
                    merged += 1;
                    continue;
                }
                let body = form::encode(view);
                let size = body.len() as u64 + ROW_OVERHEAD;
                let (rank, user) = (record.rank(), view.user_key());
                if !room.make(&tx, size, rank, user, sending.as_ref())? {
                    refused += 1;
                    continue;
                }
                let stamp = Stamp(epoch.saturating_add(record.stamp() as i64));
                let attempt = Attempt::of(record);
                let (due, failed) = match (attempt, merge) {
                    (_, Some(merge)) => (Stamp(epoch.saturating_add(merge.until_ns as i64)), None),
                    (Some(Attempt::Failed(attempt)), _) if !delay.is_zero() => {
                        (stamp.after(delay), Some(attempt as i64))
                    }
                    _ => (Stamp::default(), None),
                };
                let (turn, previous) = match sending {
                    Some(sending) if in_order && due == Stamp::default() => {
                        sending.give(rank, user)
                    }
                    Some(sending) => {
                        sending.leave_unordered(due);
                        (0, None)
                    }
                    None => (0, None),
                };
                insert.execute(params![
                    record.trace(),
                    time_text(record.time_ms()),
                    record.kind().name(),
                    rank as i64,
                    form::user(view),
                    user as i64,
                    text(record, Extra::Realm),
                    record.identity().name(),
                    record.repeated(),
                    body,
                    stamp.0,
                    due.0,
                    turn,
                    previous,
                    failed,
                    merge.map(|merge| merge.key as i64),
                ])?;
                if turn > 0
                    && let Some(sending) = sending
                {
                    sending.turns.note(user, tx.last_insert_rowid());
                }
                room.bytes += size;
                result.stored += 1;
                if let Some(Attempt::Good(attempt)) = attempt {
                    withdrawn += withdraw.execute(params![attempt as i64, now.0, stamp.0])? as u64;
                }
            }
        }
        result.dropped = room.dropped + refused;
        cursors.write(&tx)?;
        add_total(&tx, "collected", collected)?;
        add_total(&tx, "merged", merged)?;
        add_total(&tx, "withdrawn", withdrawn)?;
        add_total(&tx, "dropped", result.dropped)?;
        self.totals = finish(tx)?;
        Ok(result)
    }

    /// Gives places to events that have none, in the order of capture: those captured before `until` that need
    /// not wait any longer. Works on a part at a time; returns whether there may be more.
    fn order(&mut self, until: Stamp) -> Result<bool, SpoolError> {
        let is_changed = data_version(&self.db)? != self.version;
        let now = self.now();
        let Some(sending) = &mut self.sending else { return Ok(false) };
        if is_changed {
            // Another instance of nginx may have committed earlier events.
            sending.unordered = Some(Stamp::default());
        }
        if !sending.may_order(now) {
            return Ok(false);
        }
        let tx = begin(&mut self.db)?;
        let is_all = {
            let mut select = tx.prepare_cached(
                "SELECT id, rank, user_key, stamp FROM pending
                 WHERE turn = 0 AND due <= ?1 AND stamp < ?2 ORDER BY stamp, id LIMIT ?3",
            )?;
            let mut update = tx.prepare_cached(
                "UPDATE pending SET turn = ?2, previous = ?3, stamp = ?4 WHERE id = ?1",
            )?;
            let found = select
                .query_map(params![now.0, until.0, ORDER as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
                })?
                .collect::<Result<Vec<_>, _>>()?;
            for (id, number, user, stamp) in &found {
                let (turn, previous) = sending.give(rank(*number), *user as u64);
                // Rows that an administrator added have no stamp.
                let stamp = if *stamp > 0 { *stamp } else { now.0 };
                update.execute(params![id, turn, previous, stamp])?;
                sending.turns.note(*user as u64, *id);
            }
            found.len() < ORDER
        };
        sending.unordered = match is_all {
            false => Some(now),
            true => tx
                .query_row(
                    "SELECT min(max(due, ?1)) FROM pending WHERE turn = 0",
                    [now.0],
                    |row| row.get::<_, Option<i64>>(0),
                )?
                .map(Stamp),
        };
        tx.commit()?;
        Ok(!is_all)
    }

    /// When [`take`](Self::take) may find further events; `None`: only after the next commit.
    pub fn next_due(&self) -> Option<Stamp> {
        let sending = self.sending.as_ref()?;
        if sending.read.iter().any(|(_, more)| *more) {
            Some(Stamp::default())
        } else {
            sending.unordered
        }
    }

    /// Hands out events to send, in their order, each once: at most so many of each rank, and not more than
    /// `bytes` of forms (but at least one event). Only those captured before `until`, because another instance
    /// of nginx may still commit earlier ones. The last events of a user go before one of a higher rank.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn take(
        &mut self,
        room: [usize; Rank::ALL.len()],
        bytes: usize,
        until: Stamp,
    ) -> Result<Vec<Stored>, SpoolError> {
        self.order(until)?;
        let Some(sending) = &mut self.sending else { return Ok(Vec::new()) };
        let (mut events, mut size) = (Vec::new(), 0_usize);
        let mut select = self.db.prepare_cached(&format!(
            "{SELECT} WHERE rank = ?1 AND turn > ?2 AND turn > 0 ORDER BY turn LIMIT ?3"
        ))?;
        for (rank, room) in Rank::ALL.into_iter().zip(room) {
            let (read, more) = sending.read[rank.place()];
            if !more || room == 0 {
                continue;
            }
            let mut rows = select.query(params![rank as i64, read, room as i64])?;
            let mut found = 0;
            let is_full = loop {
                let Some(row) = rows.next()? else { break false };
                if size >= bytes && size > 0 {
                    break true;
                }
                found += 1;
                let (event, turn, previous) = stored(row)?;
                sending.read[rank.place()].0 = turn;
                sending.turns.serve(rank, turn);
                if sending.taken.contains(&event.id) {
                    continue;
                }
                if rank != Rank::Four {
                    let before = before(&self.db, &event, previous, &sending.taken)?;
                    sending.taken.extend(before.iter().map(|event| event.id));
                    size += before.iter().map(|event| event.body.len()).sum::<usize>();
                    events.extend(before);
                }
                size += event.body.len();
                sending.taken.insert(event.id);
                events.push(event);
            };
            sending.read[rank.place()].1 = is_full || found == room;
        }
        Ok(events)
    }

    /// Writes the outcomes of events, and deletes them.
    ///
    /// # Errors
    /// They are still pending.
    pub fn settle(&mut self, outcomes: &BTreeMap<u64, Outcome>) -> Result<(), SpoolError> {
        let now = self.now();
        let tx = begin(&mut self.db)?;
        let (mut delivered, mut rejected) = (0, 0);
        for (id, outcome) in outcomes {
            if let Outcome::Rejected(fault) = outcome {
                let (reason, status) = reason_of(*fault);
                let at = time_text(wall_ms());
                let params = params![*id as i64, at, now.0, reason, status];
                tx.prepare_cached(SET_ASIDE)?.execute(params)?;
            }
            // Somebody else may have deleted it.
            let mut delete = tx.prepare_cached("DELETE FROM pending WHERE id = ?1")?;
            if delete.execute([*id as i64])? == 1 {
                match outcome {
                    Outcome::Delivered => delivered += 1,
                    Outcome::Rejected(_) => rejected += 1,
                }
            }
        }
        if rejected > 0 {
            tx.execute(
                "DELETE FROM rejected
                 WHERE id <= (SELECT id FROM rejected ORDER BY id DESC LIMIT 1 OFFSET ?1)",
                [MAX_REJECTED as i64],
            )?;
        }
        add_total(&tx, "delivered", delivered)?;
        add_total(&tx, "rejected", rejected)?;
        self.totals = finish(tx)?;
        if let Some(sending) = &mut self.sending {
            for id in outcomes.keys() {
                sending.taken.remove(id);
            }
            if self.totals.pending == 0 {
                sending.turns.clear();
            }
        }
        Ok(())
    }

    /// Drops expired events by the spool's clock, some at a time; returns how many pending ones.
    ///
    /// # Errors
    /// Nothing is dropped.
    pub fn expire(&mut self) -> Result<u64, SpoolError> {
        let before = self.now().before(self.config.max_age);
        self.expire_before(before)
    }

    fn expire_before(&mut self, before: Stamp) -> Result<u64, SpoolError> {
        let tx = begin(&mut self.db)?;
        tx.execute("DELETE FROM rejected WHERE stamp < ?1", [before.0])?;
        // The ids rise nearly with the time of capture.
        let old = tx
            .prepare_cached("SELECT id, stamp FROM pending ORDER BY id LIMIT ?1")?
            .query_map([EXPIRE as i64], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?
            .filter(|row| row.as_ref().is_ok_and(|(_, stamp)| (1..before.0).contains(stamp)))
            .collect::<Result<Vec<_>, _>>()?;
        for (id, _) in &old {
            tx.prepare_cached("DELETE FROM pending WHERE id = ?1")?.execute([id])?;
        }
        add_total(&tx, "dropped", old.len() as u64)?;
        self.totals = finish(tx)?;
        Ok(old.len() as u64)
    }

    /// The counters, as of the last transaction or [`sync`](Self::sync).
    pub fn totals(&self) -> SpoolTotals {
        self.totals
    }

    /// How many rejected events are kept, by reason.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn rejected_by_reason(&self) -> Result<Vec<(Fault, u64)>, SpoolError> {
        let mut select = self.db.prepare_cached(
            "SELECT reason, status, count(*) FROM rejected GROUP BY reason, status ORDER BY 1, 2",
        )?;
        let rows = select.query_map([], |row| {
            let (reason, status): (String, Option<i64>) = (row.get(0)?, row.get(1)?);
            Ok((fault_of(&reason, status), unsigned(row.get(2)?)))
        })?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        Ok(rows.into_iter().filter_map(|(fault, count)| Some((fault?, count))).collect())
    }

    /// The rejected events that are kept and were rejected last.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn last_rejected(&self) -> Result<Vec<Rejected>, SpoolError> {
        let mut select = self.db.prepare_cached(
            "SELECT id, trace_id, type, captured, rejected, reason, status FROM rejected
             ORDER BY stamp DESC, id DESC LIMIT ?1",
        )?;
        let rows = select.query_map([LISTED as i64], |row| {
            let text = |column| row.get::<_, String>(column);
            let event = |fault| -> Result<Rejected, rusqlite::Error> {
                Ok(Rejected {
                    id: Some(row.get::<_, i64>(0)? as u64),
                    trace: TraceId::of(&text(1)?),
                    kind: EventType::from_name(text(2)?.as_bytes()),
                    captured_ms: time_ms(&text(3)?),
                    rejected_ms: time_ms(&text(4)?),
                    fault,
                })
            };
            fault_of(&text(5)?, row.get(6)?).map(event).transpose()
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Nothing is left of what was deleted, in the log beside the database either.
    ///
    /// # Errors
    /// The log is as it was.
    pub fn checkpoint(&self) -> Result<(), SpoolError> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Gives some free pages back to the file system. Returns whether there are more.
    ///
    /// # Errors
    /// The file is as long as it was.
    pub fn shrink(&mut self) -> Result<bool, SpoolError> {
        let number = |pragma: &str| -> Result<u32, SpoolError> {
            Ok(self.db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))?)
        };
        let free = number("freelist_count")?;
        if number("auto_vacuum")? == 0 {
            // The database has an older layout.
            if number("page_count")? - free <= VACUUM {
                self.db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
                self.db.execute_batch("VACUUM")?;
            }
            return Ok(false);
        }
        if free > 0 {
            let mut vacuum = self.db.prepare(&format!("PRAGMA incremental_vacuum({SHRINK})"))?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(free > SHRINK)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How far each ring is stored, while a batch is being stored.
struct Cursors {
    instance: i64,
    /// The last stamps, and whether they are new.
    rings: BTreeMap<u64, (u64, bool)>,
}

impl Cursors {
    /// Advances to a ring's record; `false`: it was stored before.
    fn pass(&mut self, db: &Connection, ring: u64, stamp: u64) -> Result<bool, rusqlite::Error> {
        let known = match self.rings.get(&ring) {
            Some((known, _)) => *known,
            None => {
                let mut select = db
                    .prepare_cached("SELECT stamp FROM cursor WHERE instance = ?1 AND ring = ?2")?;
                let known = select
                    .query_row(params![self.instance, ring as i64], |row| row.get(0))
                    .optional()?
                    .map_or(0, unsigned);
                self.rings.insert(ring, (known, false));
                known
            }
        };
        if stamp <= known {
            return Ok(false);
        }
        self.rings.insert(ring, (stamp, true));
        Ok(true)
    }

    fn write(self, db: &Connection) -> Result<(), rusqlite::Error> {
        let mut set = db.prepare_cached("INSERT OR REPLACE INTO cursor VALUES (?1, ?2, ?3)")?;
        for (ring, (stamp, _)) in self.rings.iter().filter(|(_, (_, is_new))| *is_new) {
            set.execute(params![self.instance, *ring as i64, *stamp as i64])?;
        }
        Ok(())
    }
}

/// The room that is left while a batch is being stored.
struct Room<'a> {
    bytes: u64,
    dropped: u64,
    config: &'a SpoolConfig,
}

impl Room<'_> {
    fn has(&self, size: u64, rank: Rank) -> bool {
        let share = if rank == Rank::Four { LOWEST_UP_TO } else { 1.0 };
        self.bytes + size <= (self.config.max_size as f64 * share) as u64
    }

    /// Whether there is room for an event, or can be made: lower ranks are dropped first; within its own rank,
    /// events of the user with the most.
    fn make(
        &mut self,
        db: &Connection,
        size: u64,
        rank: Rank,
        user: u64,
        sending: Option<&Sending>,
    ) -> Result<bool, rusqlite::Error> {
        while !self.has(size, rank) {
            if !self.drop_some(db, rank, user, sending)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops some events for one of that rank and user; `false`: none counts less.
    fn drop_some(
        &mut self,
        db: &Connection,
        rank: Rank,
        user: u64,
        sending: Option<&Sending>,
    ) -> Result<bool, rusqlite::Error> {
        let is_taken = |id: i64| sending.is_some_and(|s| s.taken.contains(&(id as u64)));
        for lower in Rank::ALL.into_iter().rev().take_while(|lower| *lower >= rank) {
            // The user with the most events is last in turn. Events without a place are few and young.
            let last: Option<(i64, i64)> = db
                .prepare_cached(
                    "SELECT turn, user_key FROM pending WHERE rank = ?1 AND turn > 0
                     ORDER BY turn DESC LIMIT 1",
                )?
                .query_row([lower as i64], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let own = lower == rank
                && last.is_none_or(|(top, heaviest)| {
                    heaviest as u64 == user
                        || sending.is_some_and(|sending| sending.turns.is_last(rank, user, top))
                });
            if own && self.config.when_full == WhenFull::DropNewest {
                return Ok(false);
            }
            let whose = match last {
                _ if own => user as i64,
                Some((_, heaviest)) => heaviest,
                None => continue,
            };
            let order = match self.config.when_full {
                WhenFull::DropOldest => "ASC",
                WhenFull::DropNewest => "DESC",
            };
            let sql = format!(
                "SELECT id, length(body) FROM pending
                 WHERE rank = ?1 AND user_key = ?2 AND turn > 0 ORDER BY turn {order} LIMIT ?3"
            );
            // At most so many events are under way.
            let most = MAKE_ROOM + sending.map_or(0, |sending| sending.taken.len());
            let found = db
                .prepare_cached(&sql)?
                .query_map(params![lower as i64, whose, most as i64], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
                })?
                .collect::<Result<Vec<_>, _>>()?;
            let mut count = 0;
            for (id, len) in found.into_iter().filter(|(id, _)| !is_taken(*id)).take(MAKE_ROOM) {
                db.prepare_cached("DELETE FROM pending WHERE id = ?1")?.execute([id])?;
                self.bytes = self.bytes.saturating_sub(unsigned(len) + ROW_OVERHEAD);
                count += 1;
            }
            self.dropped += count;
            if count > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The last events of the user that wait before `event`, in the order of capture, without those that were
/// handed out.
fn before(
    db: &Connection,
    event: &Stored,
    previous: Option<i64>,
    taken: &BTreeSet<u64>,
) -> Result<Vec<Stored>, rusqlite::Error> {
    let mut select = db.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
    let (mut events, mut count) = (Vec::new(), 0);
    let mut next = previous;
    for _ in 0..LOOK_BACK {
        // An event that was sent took its own earlier ones along: older ones are no longer among the last.
        let Some(id) = next.filter(|_| count < BEFORE) else { break };
        let Some((found, _, previous)) = select.query_row([id], stored).optional()? else { break };
        next = previous;
        if found.user == event.user && found.stamp <= event.stamp {
            count += 1;
            if !taken.contains(&found.id) {
                events.push(found);
            }
        }
    }
    events.sort_by_key(|event| (event.stamp, event.id));
    Ok(events)
}

/// An event, its turn, and its user's previous event.
fn stored(row: &Row<'_>) -> Result<(Stored, i64, Option<i64>), rusqlite::Error> {
    let captured: String = row.get(2)?;
    let (body, repeated): (String, u32) = (row.get(5)?, row.get(9)?);
    let kind: String = row.get(10)?;
    let event = Stored {
        id: row.get::<_, i64>(0)? as u64,
        trace: row.get(1)?,
        time_ms: time_ms(&captured),
        rank: rank(row.get(3)?),
        user: row.get::<_, i64>(4)? as u64,
        kind: EventType::from_name(kind.as_bytes()),
        body: if repeated > 1 { form::with_repeated(&body, repeated) } else { body },
        stamp: Stamp(row.get(6)?),
    };
    Ok((event, row.get(7)?, row.get(8)?))
}

/// The rank for that number; an administrator may have written a wrong one.
fn rank(number: i64) -> Rank {
    u8::try_from(number).ok().and_then(Rank::from_number).unwrap_or(Rank::Four)
}

/// Why an event was set aside, as the database stores it.
fn reason_of(fault: Fault) -> (&'static str, Option<u16>) {
    match fault {
        Fault::Answered(status) => ("answered", Some(status)),
        Fault::KeyRefused(status) => ("key_refused", Some(status)),
        Fault::Puzzled => ("not_understood", None),
        _ => ("other", None),
    }
}

/// The reverse of [`reason_of`], if it is known.
fn fault_of(reason: &str, status: Option<i64>) -> Option<Fault> {
    let status = || u16::try_from(status?).ok();
    match reason {
        "answered" => status().map(Fault::Answered),
        "key_refused" => status().map(Fault::KeyRefused),
        "not_understood" => Some(Fault::Puzzled),
        _ => None,
    }
}

fn text(record: &Record<'_>, extra: Extra) -> Option<String> {
    record.extra(extra).map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Makes commits wait for those of other processes. The pauses of SQLite's own handler grow so long that a
/// process with many commits would leave others no moment.
fn wait_for_others(db: &mut Connection) -> Result<(), rusqlite::Error> {
    thread_local! {
        /// When the commit that this thread waits for began to wait.
        static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    db.busy_handler(Some(|count| {
        if count == 0 {
            SINCE.set(Some(Instant::now()));
        }
        thread::sleep(BUSY_POLL);
        SINCE.get().is_some_and(|since| since.elapsed() < BUSY)
    }))
}

/// A number that is another one after somebody else's commit.
fn data_version(db: &Connection) -> Result<i64, rusqlite::Error> {
    db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

fn begin(db: &mut Connection) -> Result<Transaction<'_>, rusqlite::Error> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Commits, and returns the totals.
fn finish(tx: Transaction<'_>) -> Result<SpoolTotals, rusqlite::Error> {
    let totals = totals(&tx)?;
    tx.commit()?;
    Ok(totals)
}

/// SQLite's numbers have a sign; counts do not.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn read_total(db: &Connection, name: &str) -> Result<i64, rusqlite::Error> {
    let mut select = db.prepare_cached("SELECT value FROM total WHERE name = ?1")?;
    Ok(select.query_row([name], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn totals(db: &Connection) -> Result<SpoolTotals, rusqlite::Error> {
    let mut totals = SpoolTotals::default();
    let mut select = db.prepare_cached("SELECT name, value FROM total")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let value = unsigned(row.get(1)?);
        match row.get_ref(0)?.as_str().unwrap_or_default() {
            "collected" => totals.collected = value,
            "delivered" => totals.delivered = value,
            "rejected" => totals.rejected = value,
            "dropped" => totals.dropped = value,
            "merged" => totals.merged = value,
            "withdrawn" => totals.withdrawn = value,
            _ => {}
        }
    }
    drop(rows);
    let mut select = db.prepare_cached("SELECT pending, bytes FROM size")?;
    let (pending, bytes) = select.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    (totals.pending, totals.bytes) = (unsigned(pending), unsigned(bytes));
    Ok(totals)
}

fn set_total(db: &Connection, name: &str, value: i64) -> Result<(), rusqlite::Error> {
    let mut set = db.prepare_cached("INSERT OR REPLACE INTO total VALUES (?1, ?2)")?;
    set.execute(params![name, value])?;
    Ok(())
}

fn add_total(db: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    if value > 0 {
        set_total(db, name, read_total(db, name)?.saturating_add_unsigned(value))?;
    }
    Ok(())
}

/// A number that differs for each boot of the machine; containers have their host's.
fn boot_number() -> i64 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(15).collect();
    i64::from_str_radix(&digits, 16).unwrap_or(1)
}

fn time_text(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).unwrap_or_default().format(form::TIME_FORMAT).to_string()
}

fn time_ms(text: &str) -> i64 {
    chrono::NaiveDateTime::parse_from_str(text, form::TIME_INPUT)
        .map_or(0, |time| time.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests;
