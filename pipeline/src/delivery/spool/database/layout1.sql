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
CREATE INDEX IF NOT EXISTS pending_pages ON pending (id) WHERE type LIKE 'page\_%' ESCAPE '\';
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
PRAGMA user_version = 1;
INSERT INTO pending (id, trace_id, captured, type, user, user_key, body, stamp, due, attempt) VALUES
    (1700000000000010, 'a', '2024-01-01 00:00:00.000', 'page_view', 'alice', 5, 'userName=alice&url=%2F10', 1000, 0, NULL),
    (1700000000000011, 'b', '2024-01-01 00:00:01.000', 'page_view', NULL, 6, 'url=%2F11', 2000, 0, NULL),
    (1700000000000012, 'c', '2024-01-01 00:00:02.000', 'account_login_fail', 'bob', 7, 'userName=bob&url=%2F12', 3000, 3001, 77);
INSERT INTO rejected VALUES
    (1700000000000002, 'd', '2024-01-01 00:00:00.000', 'page_view', 'alice', 5, 'url=%2F2', '2024-01-01 00:01:00.000', 'answered 403'),
    (1700000000000003, 'e', '2024-01-01 00:00:00.000', 'page_view', 'alice', 5, 'url=%2F3', '2024-01-01 00:01:00.000', 'answered 400');
INSERT INTO total VALUES ('collected', 7), ('delivered', 2), ('rejected', 2), ('withdrawn', 1), ('first_id', 1700000000000000);
