//! A target's spool for its threads: it is opened when that is possible, set aside when it is damaged, and
//! bypassed while it does not work.
//!
//! Outcomes are committed together: the target's thread does it when there are [`SETTLE_FROM`] of them, or the
//! first has waited for [`SETTLE_WITHIN`], while the connections go on. They wait for the commit when there are
//! [`SETTLE`]. After a kill, events whose outcomes were not committed are sent again.
//!
//! While nothing happens, the database is not used: the needed state is kept here, and the file beside the
//! database shows whether somebody else changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::capture::rank::Rank;
use crate::delivery::spool::database::{
    Appended, Database, Intake, Outcome, SpoolConfig, Stamp, Stored,
};
use crate::delivery::spool::error::SpoolError;
use crate::delivery::spool::lock::{Sender, is_shared, set_aside};
use crate::log_queue::{Level, LogQueue, Once};
use crate::shm::rejected::Rejected;
use crate::shm::zone::{Fault, SpoolTotals};

/// At most so many outcomes wait to be committed.
pub const SETTLE: usize = 64;
/// So many are committed together, and those that come meanwhile, …
pub const SETTLE_FROM: usize = 48;
/// … or after this time at the latest.
pub const SETTLE_WITHIN: Duration = Duration::from_millis(25);
/// The pause between attempts to use a spool that does not work.
const RETRY: Duration = Duration::from_secs(1);
/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);
/// How often expired events are dropped.
const EXPIRE: Duration = Duration::from_secs(60);
/// How often changes by others are looked for.
const LOOK: Duration = Duration::from_millis(250);
/// The pause between two steps of giving space back.
const SHRINK: Duration = Duration::from_millis(50);
/// How long another process may be the sender before the status shows it: an old worker at a reload may.
const PATIENCE: Duration = Duration::from_secs(5);

/// A target's spool.
pub struct Spool {
    config: SpoolConfig,
    target: String,
    file: PathBuf,
    log_file: PathBuf,
    /// The zone's number for this instance of nginx.
    instance: u64,
    label: String,
    log: LogQueue,
    inner: Mutex<Inner>,
    /// Apart from `inner`, so that a reader, or a thread that leaves an outcome, does not wait for a disk.
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Outcomes that are not written yet, and since when.
    unwritten: BTreeMap<u64, Outcome>,
    since: Option<Instant>,
    /// Whether somebody was told that there are enough of them.
    called: bool,
    /// Events that were handed out, and that somebody else deleted.
    gone: BTreeSet<u64>,
    totals: Option<SpoolTotals>,
    /// Until it is shown.
    set_aside: Option<SetAside>,
    /// Why it does not work.
    fault: Option<Fault>,
    /// The stamp of the first event in memory that may still be appended.
    expected: Option<u64>,
}

/// The rejected events that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Why, and how many for each reason.
    pub reasons: Vec<(Fault, u64)>,
    /// Those that were rejected last.
    pub last: Vec<Rejected>,
}

struct Inner {
    database: Option<Database>,
    /// The right to send, which is also the right to set a damaged database aside.
    sender: Option<Sender>,
    /// Since when the right to send cannot be had, and why.
    waits: Option<(Instant, Fault)>,
    /// Device and inode of the database's file.
    opened: Option<(u64, u64)>,
    /// Whether the log was told of other databases in the directory.
    greeted: bool,
    tried: Option<Instant>,
    expired: Option<Instant>,
    /// After a deletion: when the file shrinks next.
    shrink: Option<Instant>,
    /// Whether the kept rejected events may be others than those that were counted last.
    recount: bool,
    /// The last known state of the log beside the database, and when it was read.
    seen: (Seen, Option<Instant>),
    said: Once,
    in_trouble: bool,
}

/// Modification time and length of a file, which change when somebody writes to it.
type Seen = Option<(i64, i64, u64)>;

fn seen(file: &Path) -> Seen {
    let about = fs::metadata(file).ok()?;
    Some((about.mtime(), about.mtime_nsec(), about.len()))
}

/// The file's device and inode.
fn identity(file: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(file).ok().map(|about| (about.dev(), about.ino()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data in the mutexes is valid after each statement, even if a thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// The spool of the target `name` with `url`. The first use opens it.
    pub fn new(
        config: &SpoolConfig,
        name: &str,
        url: &str,
        instance: u64,
        label: &str,
        log: &LogQueue,
    ) -> Self {
        let file = Database::file(config, name, url);
        let mut log_file = file.clone().into_os_string();
        log_file.push("-wal");
        Self {
            file,
            log_file: log_file.into(),
            config: config.clone(),
            target: name.to_owned(),
            instance,
            label: label.to_owned(),
            log: log.clone(),
            inner: Mutex::new(Inner {
                database: None,
                sender: None,
                waits: None,
                opened: None,
                greeted: false,
                tried: None,
                expired: None,
                shrink: None,
                recount: true,
                seen: (None, None),
                said: Once::every(REPEAT),
                in_trouble: false,
            }),
            shared: Mutex::default(),
        }
    }

    /// Takes the right to send if no other process has it. It lasts until [`leave`](Self::leave).
    pub fn may_send(&self) -> bool {
        let mut inner = lock(&self.inner);
        let has_lock = |sender: &Sender| sender.is_locked() && sender.is_in_place(&self.file);
        if !inner.sender.as_ref().is_some_and(has_lock) {
            let (sender, fault) = match Sender::try_lock(&self.file) {
                Ok(sender) => (Some(sender), None),
                Err(fault) => (None, Some(fault)),
            };
            inner.sender = sender;
            let since = inner.waits.map_or_else(Instant::now, |(since, _)| since);
            inner.waits = fault.map(|fault| (since, fault));
        }
        inner.sender.is_some()
    }

    /// Why the right to send cannot be had, after it could not for a while.
    pub fn waits_for(&self) -> Option<Fault> {
        let waits = lock(&self.inner).waits;
        waits.filter(|(since, _)| since.elapsed() >= PATIENCE).map(|(_, fault)| fault)
    }

    /// Whether another instance of nginx captures for this spool too.
    pub fn is_shared(&self) -> bool {
        is_shared(&self.file, self.instance)
    }

    /// Whether the spool cannot even be opened at present.
    pub fn is_shut(&self) -> bool {
        let inner = lock(&self.inner);
        inner.in_trouble && inner.database.is_none()
    }

    /// Makes the next attempt not wait, if the spool does not work.
    pub fn hurry(&self) {
        lock(&self.inner).tried = None;
    }

    /// Writes the outcomes, and gives up the right to send.
    pub fn leave(&self) {
        self.with(|_, _| Ok(()));
        let mut inner = lock(&self.inner);
        if let Some(database) = &mut inner.database {
            database.stop_sending();
        }
        inner.sender = None;
    }

    /// Events in memory, of which this is the first one's stamp, may be appended later, because the spool did not
    /// work. What is appended meanwhile and was captured after the first is not handed out before. It never waits.
    pub fn expect_from(&self, first: Option<u64>) {
        lock(&self.shared).expected = first;
    }

    /// Commits a batch, in which failed logins wait for `delay`, together with how far the rings were read;
    /// `None` if the spool does not work. Records that were stored from a ring before are left out.
    pub fn append(&self, events: &[Intake<'_>], delay: Duration) -> Option<Appended> {
        let may_follow = || lock(&self.shared).expected.is_some() || self.is_shared();
        self.with(|database, _| database.append(events, delay, &may_follow))
    }

    /// Hands out events to send, in their order, each once: at most so many of each rank, and not more than
    /// `bytes` of forms (but at least one event). `None` if they cannot be read at present. Only events that no
    /// earlier one can precede any more: none that is [expected](Self::expect_from), and, while another instance of
    /// nginx captures, too, none of its events, if each takes at most `span` to commit. A full disk does not
    /// matter.
    pub fn take(
        &self,
        room: [usize; Rank::ALL.len()],
        bytes: usize,
        span: Duration,
    ) -> Option<Vec<Stored>> {
        self.look();
        let mut inner = lock(&self.inner);
        if let Some(database) = &mut inner.database
            && database.is_sending()
        {
            if database.next_due().is_none_or(|due| due > database.now()) {
                return Some(Vec::new());
            }
            let until = self.until(database, span);
            if let Ok(events) = database.take(room, bytes, until) {
                return Some(events);
            }
        }
        drop(inner);
        self.with(|database, inner| {
            if inner.sender.is_none() {
                return Ok(Vec::new());
            }
            if !database.is_sending() {
                database.start_sending()?;
            }
            let until = self.until(database, span);
            database.take(room, bytes, until)
        })
    }

    /// Before when no event is captured that may still be appended.
    fn until(&self, database: &Database, span: Duration) -> Stamp {
        // The clock is read first: another instance announces itself before it captures.
        let now = database.now();
        let until = if self.is_shared() { now.before(span) } else { now };
        lock(&self.shared).expected.map_or(until, |first| until.min(database.stamp(first)))
    }

    /// When [`take`](Self::take) may find another event without an [`append`](Self::append): a failed login
    /// that waits.
    pub fn next_due(&self) -> Option<Duration> {
        let inner = lock(&self.inner);
        let database = inner.database.as_ref()?;
        Some(database.next_due()?.since(database.now()))
    }

    /// Notes an event's outcome, which is written with others; after a kill before that, the event is sent
    /// again. If the disk is slow and many outcomes wait, this waits for it.
    pub fn settle(&self, id: u64, outcome: Outcome) {
        let count = {
            let mut shared = lock(&self.shared);
            shared.unwritten.insert(id, outcome);
            shared.gone.remove(&id);
            shared.since.get_or_insert_with(Instant::now);
            shared.unwritten.len()
        };
        if count >= SETTLE {
            self.with(|_, _| Ok(()));
        }
    }

    /// How long outcomes may still wait until [`maintain`](Self::maintain) writes them; `None`: all are
    /// written.
    pub fn unwritten(&self) -> Option<Duration> {
        let shared = lock(&self.shared);
        let waited = shared.since?.elapsed();
        Some(match shared.unwritten.len() {
            // The next attempt writes them.
            _ if shared.fault.is_some() => RETRY,
            SETTLE_FROM.. => Duration::ZERO,
            _ => SETTLE_WITHIN.saturating_sub(waited),
        })
    }

    /// Whether [`maintain`](Self::maintain) is to be called for the outcomes that wait. It says so once.
    pub fn calls(&self) -> bool {
        let mut shared = lock(&self.shared);
        shared.unwritten.len() >= SETTLE_FROM && !std::mem::replace(&mut shared.called, true)
    }

    /// Whether somebody deleted an event that was handed out: it must not be sent.
    pub fn is_gone(&self, id: u64) -> bool {
        lock(&self.shared).gone.contains(&id)
    }

    /// The counters, as far as they are known; `None` before the spool has ever worked. Never waits.
    pub fn totals(&self) -> Option<SpoolTotals> {
        lock(&self.shared).totals
    }

    /// Why the spool does not work, if it does not. Never waits.
    pub fn fault(&self) -> Option<Fault> {
        lock(&self.shared).fault
    }

    /// The rejected events that are kept, if they are others than when that was last asked. It never waits.
    pub fn set_aside(&self) -> Option<SetAside> {
        lock(&self.shared).set_aside.take()
    }

    /// Does what is due: writes outcomes, reads changes by others, drops expired events, and shrinks the file
    /// when it is empty. Returns how many events it dropped, and when it must be called again at the latest, if
    /// that is soon.
    pub fn maintain(&self, now: Instant) -> (u64, Option<Duration>) {
        self.look();
        let (is_open, expires, shrinks, recounts) = {
            let mut inner = lock(&self.inner);
            let is_open = inner.database.is_some() && !inner.in_trouble;
            let totals = lock(&self.shared).totals.unwrap_or_default();
            let expires = inner.expired.is_none_or(|at| now - at >= EXPIRE)
                && (totals.pending > 0 || totals.rejected > 0);
            if expires {
                inner.expired = Some(now);
            }
            let shrinks = totals.pending == 0 && inner.shrink.is_some_and(|at| at <= now);
            (is_open, expires, shrinks, inner.recount)
        };
        let expired = expires.then(|| self.with(|database, _| database.expire())).flatten();
        if !is_open || recounts || self.unwritten().is_some_and(|left| left.is_zero()) {
            self.with(|_, _| Ok(()));
        }
        if shrinks {
            self.with(|database, inner| {
                inner.shrink = None;
                let more = database.shrink()?;
                database.checkpoint()?;
                inner.shrink = more.then(|| now + SHRINK);
                Ok(())
            });
        }
        let pending = self.totals().is_some_and(|totals| totals.pending > 0);
        let shrink = lock(&self.inner).shrink.filter(|_| !pending);
        let again = [self.unwritten(), shrink.map(|at| at.saturating_duration_since(now))];
        (expired.unwrap_or(0), again.into_iter().flatten().min())
    }

    /// Checks, not too often, whether somebody else has changed the database.
    fn look(&self) {
        let now = Instant::now();
        let is_changed = {
            let mut inner = lock(&self.inner);
            if inner.database.is_none() || inner.seen.1.is_some_and(|at| now - at < LOOK) {
                return;
            }
            // Everything written from here on, by this process, too, is seen the next time.
            let before = inner.seen.0;
            inner.seen = (seen(&self.log_file), Some(now));
            inner.seen.0 != before
        };
        if is_changed {
            self.with(|database, inner| {
                if let Some(gone) = database.sync()? {
                    let mut shared = lock(&self.shared);
                    let gone: Vec<_> =
                        gone.into_iter().filter(|id| !shared.unwritten.contains_key(id)).collect();
                    shared.gone.extend(gone);
                    inner.recount = true;
                }
                Ok(())
            });
        }
    }

    /// The file was replaced: nobody would find what is committed to it.
    fn abandon(&self, inner: &mut Inner) {
        inner.database = None;
        inner.recount = true;
        // The new file has other events.
        let mut shared = lock(&self.shared);
        (shared.unwritten, shared.since, shared.called) = (BTreeMap::new(), None, false);
        let file = self.file.display();
        let text = format!(
            "spool: \"{file}\" was deleted or replaced while it was used: what was in it and not yet on its \
             way is lost, unless the file is put back"
        );
        self.log(Level::Error, &text);
    }

    /// Uses the database: opens it if necessary, and writes outcomes first.
    fn with<T>(
        &self,
        use_it: impl FnOnce(&mut Database, &mut Inner) -> Result<T, SpoolError>,
    ) -> Option<T> {
        let mut guard = lock(&self.inner);
        let inner = &mut *guard;
        let now = Instant::now();
        if inner.in_trouble && inner.tried.is_some_and(|at| now - at < RETRY) {
            return None;
        }
        if inner.database.is_some() && inner.opened != identity(&self.file) {
            self.abandon(inner);
        }
        let mut database = inner.database.take();
        let result = self.run(&mut database, inner, use_it);
        inner.database = database;
        if let Some(database) = &inner.database {
            lock(&self.shared).totals = Some(database.totals());
        }
        match result {
            Ok(value) => {
                if !std::mem::replace(&mut inner.greeted, true) {
                    for (file, count) in Database::others(&self.config, &self.target, &self.file) {
                        let file = file.display();
                        let note = "for another url of this target: they wait until it is set \
                                    again, or the file is deleted";
                        self.log(
                            Level::Warn,
                            &format!("spool: {count} events in \"{file}\" {note}"),
                        );
                    }
                }
                if std::mem::take(&mut inner.in_trouble) {
                    lock(&self.shared).fault = None;
                    self.log(Level::Notice, "spool: it works again");
                }
                Some(value)
            }
            Err(error) => {
                self.fail(inner, &error, now);
                None
            }
        }
    }

    fn run<T>(
        &self,
        database: &mut Option<Database>,
        inner: &mut Inner,
        use_it: impl FnOnce(&mut Database, &mut Inner) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let database = match database {
            Some(database) => {
                if inner.in_trouble {
                    // On a full disk, the log must not take the remaining room.
                    let _ = database.checkpoint();
                }
                database
            }
            None => {
                let opened = Database::open(&self.config, &self.file, self.instance)?;
                inner.opened = identity(&self.file);
                database.insert(opened)
            }
        };
        if inner.sender.is_some() && !database.is_sending() {
            database.start_sending()?;
        }
        let outcomes = lock(&self.shared).unwritten.clone();
        if !outcomes.is_empty() {
            database.settle(&outcomes)?;
            let mut shared = lock(&self.shared);
            shared.unwritten.retain(|id, _| !outcomes.contains_key(id));
            shared.since = (!shared.unwritten.is_empty()).then(Instant::now);
            shared.called = false;
            inner.shrink = Some(Instant::now() + SHRINK);
            let is_rejected = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(_));
            inner.recount |= outcomes.values().any(is_rejected);
        }
        if inner.recount {
            let (reasons, last) = (database.rejected_by_reason()?, database.last_rejected()?);
            lock(&self.shared).set_aside = Some(SetAside { reasons, last });
            inner.recount = false;
        }
        use_it(database, inner)
    }

    fn fail(&self, inner: &mut Inner, error: &SpoolError, now: Instant) {
        inner.in_trouble = true;
        inner.tried = Some(now);
        lock(&self.shared).fault = Some(error.fault());
        if inner.said.may(now) {
            let file = self.file.display();
            let note = "events are kept in memory while it lasts";
            self.log(Level::Error, &format!("spool: \"{file}\": {error}; {note}"));
        }
        if error.is_full()
            && let Some(database) = &inner.database
        {
            // The log beside the database can be reused, so that delivered events can be deleted. If that
            // fails, the next attempt follows in a second.
            let _ = database.checkpoint();
        }
        if error.is_corrupt() {
            inner.database = None;
            self.replace(inner);
        }
    }

    fn replace(&self, inner: &mut Inner) {
        if inner.sender.is_none() {
            inner.sender = Sender::try_lock(&self.file).ok();
        }
        let Some(sender) = &inner.sender else { return };
        let text = match set_aside(&self.file, sender) {
            Ok(aside) => {
                inner.in_trouble = false;
                format!("spool: the damaged file is kept as \"{}\"", aside.display())
            }
            Err(error) => format!("spool: the damaged file cannot be set aside: {error}"),
        };
        self.log(Level::Error, &text);
    }

    fn log(&self, level: Level, text: &str) {
        self.log.log(level, format!("{}: {text}", self.label));
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::*;
    use crate::clock::monotonic_ns;
    use crate::event::Param;
    use crate::log_queue::log_queue;
    use crate::privacy::Privacy;
    use crate::record::{Capture, Record};

    fn spool(dir: &TempDir) -> Spool {
        let config = SpoolConfig::new(dir.path().into(), String::new());
        let spool = Spool::new(&config, "t", "http://t/sensor/", 7, "t", &log_queue().0);
        assert!(spool.may_send());
        spool
    }

    /// Appends one event of each stamp.
    fn append(spool: &Spool, stamps: impl Iterator<Item = u64>) {
        let event = |stamp| {
            let mut capture = Capture::new(1);
            capture.set(Param::UserName, b"u").unwrap();
            let mut bytes = vec![0; capture.record_len()];
            capture.write(stamp, &mut bytes);
            bytes
        };
        let events: Vec<_> = stamps.map(event).collect();
        let privacy = Privacy::default();
        let intake: Vec<_> =
            events.iter().map(|bytes| privacy.view(Record::parse(bytes).unwrap()).into()).collect();
        assert_eq!(spool.append(&intake, Duration::ZERO).unwrap().stored, events.len() as u64);
    }

    /// A spool with so many events that were handed out, and their ids.
    fn handed_out(dir: &TempDir, count: usize) -> (Spool, Vec<u64>) {
        let spool = spool(dir);
        let now = monotonic_ns();
        append(&spool, now..now + count as u64);
        let taken = spool.take([count; Rank::ALL.len()], usize::MAX, Duration::ZERO).unwrap();
        (spool, taken.iter().map(|event| event.id).collect())
    }

    #[test]
    fn what_may_come_from_memory_comes_before_what_was_captured_later() {
        let dir = TempDir::new().unwrap();
        let spool = spool(&dir);
        let now = monotonic_ns();
        let take = || {
            let taken = spool.take([9; Rank::ALL.len()], usize::MAX, Duration::ZERO).unwrap();
            taken.iter().map(|event| event.id).collect::<Vec<_>>()
        };
        spool.expect_from(Some(now + 1));
        append(&spool, [now, now + 2].into_iter());
        let first = take();
        assert_eq!(first.len(), 1, "the second waits");
        append(&spool, [now + 1].into_iter());
        spool.expect_from(None);
        assert_eq!(take(), [first[0] + 2, first[0] + 1]);
    }

    #[test]
    fn outcomes_are_committed_when_there_are_enough() {
        let dir = TempDir::new().unwrap();
        let (spool, ids) = handed_out(&dir, SETTLE);
        let pending = || spool.totals().unwrap().pending;
        for id in &ids[..SETTLE_FROM - 1] {
            spool.settle(*id, Outcome::Delivered);
            assert!(!spool.calls());
        }
        assert_eq!(pending(), SETTLE as u64);
        spool.settle(ids[SETTLE_FROM - 1], Outcome::Delivered);
        assert!(spool.calls() && !spool.calls(), "it says so once");
        assert_eq!(spool.unwritten(), Some(Duration::ZERO));
        spool.maintain(Instant::now());
        assert_eq!(pending(), (SETTLE - SETTLE_FROM) as u64);
        assert!(!spool.calls());
        ids[SETTLE_FROM..].iter().for_each(|id| spool.settle(*id, Outcome::Delivered));
        spool.leave();
        assert_eq!((pending(), spool.unwritten()), (0, None));
    }

    #[test]
    fn nobody_commits_more_than_are_allowed_to_wait() {
        let dir = TempDir::new().unwrap();
        let (spool, ids) = handed_out(&dir, SETTLE);
        ids.iter().for_each(|id| spool.settle(*id, Outcome::Delivered));
        assert_eq!(spool.totals().unwrap().delivered, SETTLE as u64);
    }

    #[test]
    fn outcomes_wait_while_the_database_is_held_by_another() {
        let dir = TempDir::new().unwrap();
        let (spool, ids) = handed_out(&dir, SETTLE_FROM);
        let other = Connection::open(&spool.file).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        ids.iter().for_each(|id| spool.settle(*id, Outcome::Delivered));
        let (_, again) = spool.maintain(Instant::now());
        assert_eq!(spool.fault(), Some(Fault::Busy));
        assert!(again.is_some_and(|after| !after.is_zero()), "its thread would not sleep");
        other.execute_batch("ROLLBACK").unwrap();
        while spool.totals().unwrap().delivered < SETTLE_FROM as u64 {
            thread::sleep(Duration::from_millis(50));
            spool.maintain(Instant::now());
        }
        assert_eq!((spool.unwritten(), spool.fault()), (None, None));
    }
}
