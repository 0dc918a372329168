//! A target's spool as its threads use it: opened when it can be, set aside when it is damaged, and
//! done without while it does not work.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::wall_ms;
use crate::delivery::spool::database::{
    Appended, Cursor, Sender, Spool, SpoolConfig, SpoolError, SpoolTotals, Stored, is_shared,
    set_aside,
};
use crate::log_queue::{Level, LogQueue, Once};
use crate::privacy::View;
use crate::shm::zone::Fault;

/// How often a spool that does not work is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is said.
const REPEAT: Duration = Duration::from_secs(60);
/// How often events that are too old are looked for.
const EXPIRE: Duration = Duration::from_secs(60);

/// What became of a spooled event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server took it.
    Delivered,
    /// It is refused for good.
    Rejected(Fault),
}

/// A target's spool.
pub struct Store {
    config: SpoolConfig,
    target: String,
    file: PathBuf,
    /// The zone's, which tells this instance of nginx from others.
    instance: u64,
    label: String,
    log: LogQueue,
    inner: Mutex<Inner>,
}

struct Inner {
    spool: Option<Spool>,
    /// The right to send, kept here because it is also the right to set a damaged file aside.
    sender: Option<Sender>,
    /// Whether it was said what else lies in the directory.
    greeted: bool,
    tried: Option<Instant>,
    /// Outcomes that could not be written yet.
    unwritten: BTreeMap<u64, Outcome>,
    expired: Option<Instant>,
    /// Whether something was deleted since the last tidying.
    untidy: bool,
    said: Once,
    in_trouble: bool,
}

impl Store {
    /// The spool of the target `name` with `url`. It is opened with the first use.
    pub fn new(
        config: &SpoolConfig,
        name: &str,
        url: &str,
        instance: u64,
        label: &str,
        log: &LogQueue,
    ) -> Self {
        Self {
            file: Spool::file(config, name, url),
            config: config.clone(),
            target: name.to_owned(),
            instance,
            label: label.to_owned(),
            log: log.clone(),
            inner: Mutex::new(Inner {
                spool: None,
                sender: None,
                greeted: false,
                tried: None,
                unwritten: BTreeMap::new(),
                expired: None,
                untidy: true,
                said: Once::every(REPEAT),
                in_trouble: false,
            }),
        }
    }

    /// Takes the right to send, if no other process has it. It is kept until [`leave`](Self::leave).
    pub fn may_send(&self) -> bool {
        let mut inner = self.lock();
        if !inner.sender.as_ref().is_some_and(Sender::is_locked) {
            inner.sender = Sender::try_lock(&self.file);
        }
        inner.sender.is_some()
    }

    /// Whether the spool cannot even be opened now.
    pub fn is_shut(&self) -> bool {
        let inner = self.lock();
        inner.in_trouble && inner.spool.is_none()
    }

    /// Gives the right to send on.
    pub fn leave(&self) {
        self.lock().sender = None;
    }

    /// Commits a batch, in which failed logins wait for `delay`; nothing when the spool does not work
    /// now.
    pub fn append(&self, events: &[View<'_>], delay: Duration) -> Option<Appended> {
        self.with(|spool| spool.append(events, delay))
    }

    /// Events behind the cursor that do not wait; nothing when they cannot be read now. While another
    /// instance of nginx captures too, only those before which nothing can come any more, where each
    /// needs at most `span` to commit.
    pub fn load(
        &self,
        after: Cursor,
        most: usize,
        bytes: usize,
        span: Duration,
    ) -> Option<Vec<Stored>> {
        let (now, mut events) =
            self.read(|spool| Ok((spool.now(), spool.load(after, most, bytes)?)))?;
        // Asked after loading: another instance says so before it captures.
        if !events.is_empty() && is_shared(&self.file, self.instance) {
            events.retain(|event| event.stamp < now.before(span));
        }
        Some(events)
    }

    /// Events that have waited until now.
    pub fn load_due(&self, after: Cursor, most: usize, bytes: usize) -> Option<Vec<Stored>> {
        self.read(|spool| spool.load_due(after, most, bytes))
    }

    /// Events that were committed behind the cursors, and the key from which on to look the next time.
    pub fn load_late(
        &self,
        known: u64,
        read: Cursor,
        due: Cursor,
        most: usize,
    ) -> Option<(Vec<Stored>, u64)> {
        self.read(|spool| spool.load_late(known, read, due, most))
    }

    /// Reads from the spool. A full disk does not matter.
    fn read<T>(&self, read: impl Fn(&Spool) -> Result<T, SpoolError>) -> Option<T> {
        if let Some(spool) = &self.lock().spool
            && let Ok(result) = read(spool)
        {
            return Some(result);
        }
        self.with(|spool| read(spool))
    }

    /// Whether what became of an event is known, and only not written yet.
    pub fn is_settled(&self, id: u64) -> bool {
        self.lock().unwritten.contains_key(&id)
    }

    /// Writes what became of an event. Should the spool not work, that is written later; killed
    /// before, the event is sent again.
    pub fn settle(&self, id: u64, outcome: Outcome) {
        self.lock().unwritten.insert(id, outcome);
        self.with(|_| Ok(()));
    }

    /// Whether an event was deleted from the spool, so that it is not to be sent.
    pub fn is_gone(&self, id: u64) -> bool {
        self.with(|spool| spool.is_gone(id)).unwrap_or(false)
    }

    /// The counters; nothing when the spool does not work now.
    pub fn totals(&self) -> Option<SpoolTotals> {
        self.with(|spool| spool.totals())
    }

    /// Why events were set aside, and how many are kept; nothing when the spool does not work now.
    pub fn reasons(&self) -> Option<Vec<(Fault, u64)>> {
        let reasons = self.with(|spool| spool.rejected_by_reason())?;
        let known = |(text, count): (String, u64)| Some((Fault::from_answered(&text)?, count));
        Some(reasons.into_iter().filter_map(known).collect())
    }

    /// Drops what is too old, from time to time; returns how many events. Tidies up when nothing is
    /// left.
    pub fn tend(&self, pending: u64, now: Instant) -> u64 {
        let due = {
            let mut inner = self.lock();
            let due = inner.expired.is_none_or(|at| now - at >= EXPIRE);
            if due {
                inner.expired = Some(now);
            }
            due
        };
        self.with(Spool::look);
        let expired = if due { self.with(|spool| spool.expire(wall_ms())) } else { None };
        if pending == 0 && std::mem::take(&mut self.lock().untidy) {
            self.with(|spool| spool.tidy());
        }
        expired.unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the spool, opening it if need be and writing outcomes first.
    fn with<T>(&self, use_it: impl FnOnce(&mut Spool) -> Result<T, SpoolError>) -> Option<T> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let now = Instant::now();
        if inner.in_trouble && inner.tried.is_some_and(|at| now - at < RETRY) {
            return None;
        }
        let result = (|| {
            let spool = match &mut inner.spool {
                Some(spool) => {
                    if inner.in_trouble {
                        // On a full disk the log must not take what room there is.
                        let _ = spool.tidy();
                    }
                    spool
                }
                None => inner.spool.insert(Spool::open(&self.config, &self.file)?),
            };
            while let Some(first) = inner.unwritten.first_entry() {
                match first.get() {
                    Outcome::Delivered => spool.delivered(*first.key())?,
                    Outcome::Rejected(fault) => spool.rejected(*first.key(), &fault.to_string())?,
                }
                first.remove();
                inner.untidy = true;
            }
            use_it(spool)
        })();
        match result {
            Ok(value) => {
                if !std::mem::replace(&mut inner.greeted, true) {
                    for (file, count) in Spool::others(&self.config, &self.target, &self.file) {
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
                    self.log(Level::Notice, "spool: it works again");
                }
                Some(value)
            }
            Err(error) => {
                inner.in_trouble = true;
                inner.tried = Some(now);
                if inner.said.may(now) {
                    let file = self.file.display();
                    let note = "events are kept in memory while it lasts";
                    self.log(Level::Error, &format!("spool: \"{file}\": {error}; {note}"));
                }
                if error.is_full()
                    && let Some(spool) = &inner.spool
                {
                    // The log beside the database can be used again, so that what is delivered can
                    // be deleted. Should that fail, the next try comes in a second.
                    let _ = spool.tidy();
                }
                if error.is_corrupt() {
                    inner.spool = None;
                    self.replace(inner);
                }
                None
            }
        }
    }

    fn replace(&self, inner: &mut Inner) {
        if inner.sender.is_none() {
            inner.sender = Sender::try_lock(&self.file);
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
