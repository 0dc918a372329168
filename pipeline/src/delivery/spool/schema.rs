//! The tables of a spool's database, and the conversion of older layouts.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::capture::identity::Identity;
use crate::capture::rank::Rank;
use crate::delivery::spool::error::SpoolError;
use crate::event::EventType;
use crate::hash::stable_hash;

/// The version of the layout, as `PRAGMA user_version`.
pub(super) const LAYOUT: i64 = 2;
/// The bytes of a row besides its form: key, index, time, user. The triggers below have the same number.
pub(super) const ROW_OVERHEAD: u64 = 200;

/// The triggers count pending events, even if an administrator deletes or adds rows.
///
/// `turn` orders what is sent within a rank; 0: it has no place yet. `previous` is the user's event
/// before this one. Events with a `merge_key` stand for `repeated` ones. `cursor` says how far each ring of each instance of nginx is stored.
const SCHEMA: &str = "
CREATE TABLE pending (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL,
    captured TEXT NOT NULL,
    type     TEXT NOT NULL,
    rank     INTEGER NOT NULL DEFAULT 4,
    user     TEXT,
    user_key INTEGER NOT NULL,
    realm    TEXT,
    identity TEXT NOT NULL DEFAULT 'none',
    repeated INTEGER NOT NULL DEFAULT 1,
    body     TEXT NOT NULL,
    stamp    INTEGER NOT NULL DEFAULT 0,
    due      INTEGER NOT NULL DEFAULT 0,
    turn     INTEGER NOT NULL DEFAULT 0,
    previous INTEGER,
    attempt  INTEGER,
    merge_key INTEGER
) STRICT;
CREATE INDEX pending_order ON pending (rank, turn, user_key) WHERE turn > 0;
CREATE INDEX pending_unordered ON pending (stamp, due) WHERE turn = 0;
CREATE INDEX pending_attempts ON pending (attempt) WHERE attempt IS NOT NULL;
CREATE INDEX pending_merges ON pending (merge_key) WHERE turn = 0 AND merge_key IS NOT NULL;
CREATE TABLE rejected (
    id       INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    captured TEXT NOT NULL,
    type     TEXT NOT NULL,
    rank     INTEGER NOT NULL DEFAULT 4,
    user     TEXT,
    user_key INTEGER NOT NULL,
    realm    TEXT,
    identity TEXT NOT NULL DEFAULT 'none',
    repeated INTEGER NOT NULL DEFAULT 1,
    body     TEXT NOT NULL,
    rejected TEXT NOT NULL,
    stamp    INTEGER NOT NULL DEFAULT 0,
    reason   TEXT NOT NULL,
    status   INTEGER
) STRICT;
CREATE TABLE cursor (
    instance INTEGER NOT NULL,
    ring     INTEGER NOT NULL,
    stamp    INTEGER NOT NULL,
    PRIMARY KEY (instance, ring)
) STRICT, WITHOUT ROWID;
CREATE TABLE total (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE size (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    pending INTEGER NOT NULL,
    bytes   INTEGER NOT NULL
) STRICT;
INSERT INTO size VALUES (1, 0, 0);
";

const TRIGGERS: &str = "
CREATE TRIGGER pending_added AFTER INSERT ON pending BEGIN
    UPDATE size SET pending = pending + 1, bytes = bytes + length(new.body) + 200;
END;
CREATE TRIGGER pending_removed AFTER DELETE ON pending BEGIN
    UPDATE size SET pending = pending - 1, bytes = bytes - length(old.body) - 200;
END;
";

/// Renames the tables that 0.1.0 made.
const SET_OLD_APART: &str = "
DROP TRIGGER pending_added;
DROP TRIGGER pending_removed;
DROP INDEX IF EXISTS pending_order;
DROP INDEX IF EXISTS pending_due;
DROP INDEX IF EXISTS pending_attempts;
DROP INDEX IF EXISTS pending_pages;
ALTER TABLE pending RENAME TO old_pending;
ALTER TABLE rejected RENAME TO old_rejected;
ALTER TABLE total RENAME TO old_total;
";

/// The keys of events continue after those of the old table.
const COPY_OLD: &str = "
INSERT INTO pending (id, trace_id, captured, type, user, user_key, body, stamp, due, attempt)
    SELECT id, trace_id, captured, type, user, user_key, body, stamp, due, attempt FROM old_pending;
UPDATE sqlite_sequence SET seq = max(seq,
    (SELECT seq FROM sqlite_sequence WHERE name = 'old_pending')) WHERE name = 'pending';
INSERT INTO sqlite_sequence SELECT 'pending', seq FROM sqlite_sequence
    WHERE name = 'old_pending' AND NOT EXISTS (SELECT * FROM sqlite_sequence WHERE name = 'pending');
INSERT INTO rejected (id, trace_id, captured, type, user, user_key, body, rejected, reason, status)
    SELECT id, trace_id, captured, type, user, user_key, body, rejected,
        CASE WHEN reason LIKE 'answered %' THEN 'answered' ELSE 'other' END,
        CASE WHEN reason LIKE 'answered %' THEN CAST(substr(reason, 10) AS INTEGER) END
    FROM old_rejected;
INSERT INTO total SELECT name, value FROM old_total WHERE name NOT IN ('pending', 'bytes');
UPDATE total SET value = value + coalesce((SELECT value FROM old_total WHERE name = 'withdrawn'), 0)
    WHERE name = 'collected';
UPDATE size SET pending = (SELECT count(*) FROM pending),
    bytes = (SELECT coalesce(sum(length(body) + 200), 0) FROM pending);
DROP TABLE old_pending;
DROP TABLE old_rejected;
DROP TABLE old_total;
";

/// Creates the tables, or converts an older layout. Another process may do the same at the same time.
pub(super) fn prepare(db: &mut Connection) -> Result<(), SpoolError> {
    if layout(db)? == LAYOUT {
        return Ok(());
    }
    // Before the first table; an existing database gets it by `VACUUM`.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match layout(&tx)? {
        LAYOUT => return Ok(()),
        0 if !tx.table_exists(None, "pending")? => {
            tx.execute_batch(SCHEMA)?;
        }
        1 => {
            tx.execute_batch(SET_OLD_APART)?;
            tx.execute_batch(SCHEMA)?;
            tx.execute_batch(COPY_OLD)?;
            rank_old(&tx)?;
            rename_old(&tx, "pending")?;
            rename_old(&tx, "rejected")?;
        }
        _ => return Err(SpoolError::Layout),
    }
    tx.execute_batch(TRIGGERS)?;
    tx.pragma_update(None, "user_version", LAYOUT)?;
    tx.commit()?;
    Ok(())
}

fn layout(db: &Connection) -> Result<i64, rusqlite::Error> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Layout 1 did not store the evidence for the user.
fn rank_old(db: &Connection) -> Result<(), rusqlite::Error> {
    for table in ["pending", "rejected"] {
        for kind in EventType::ALL {
            let rank = Rank::of(kind, Identity::Claim) as i64;
            let sql = format!("UPDATE {table} SET rank = ?1 WHERE type = ?2 AND rank <> ?1");
            db.execute(&sql, params![rank, kind.name()])?;
        }
    }
    Ok(())
}

/// Layout 1 identified users by a different hash.
fn rename_old(db: &Connection, table: &str) -> Result<(), rusqlite::Error> {
    let mut select = db.prepare(&format!(
        "SELECT id, user FROM {table} WHERE id > ?1 AND user IS NOT NULL ORDER BY id LIMIT 1"
    ))?;
    let mut update = db.prepare(&format!("UPDATE {table} SET user_key = ?2 WHERE id = ?1"))?;
    let mut last = i64::MIN;
    let next = |select: &mut rusqlite::Statement<'_>, last: i64| {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        select.query_row([last], row).optional()
    };
    while let Some((id, user)) = next(&mut select, last)? {
        update.execute(params![id, stable_hash([user.as_bytes()]) as i64])?;
        last = id;
    }
    Ok(())
}
