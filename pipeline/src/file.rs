//! A file that is rotated.
//!
//! A batch is appended by one `write` under a lock on the file, which the kernel gives on when its
//! holder dies. Several processes may use the file: an old and a new deliverer, those of two masters
//! during a binary upgrade, and `logrotate`, whose work shows in that the path names another file.
//! Whoever is about to write sees to it first that the last line is whole.
//!
//! The file `audit.log` becomes `audit-2026-01-31T23-59-59.999.log`, with the time of its rotation in
//! UTC, as Mattermost names its own, and that with `.gz` at its end when it is compressed. A thread
//! compresses and deletes; what a killed one left undone, the next one does.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use flate2::{Compression, write::GzEncoder};

use crate::config::FileConfig;
use crate::deliverer::{NICE_SENDING, lower_priority};
use crate::journal::{Journal, Level, Once};

/// Mode of a new file: the records are about people.
const MODE: u32 = 0o640;
/// The time of rotation in a backup's name.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";
/// What two of them differ by at least.
const MILLISECOND: TimeDelta = TimeDelta::milliseconds(1);
/// How long another process may hold the lock …
const LOCK: Duration = Duration::from_secs(1);
/// … and how often it is asked for.
const LOCK_POLL: Duration = Duration::from_millis(1);
/// How often the path may name another file while one batch is written.
const MOVES: usize = 8;
/// A torn line is looked for in so many bytes at the end of a file.
const LONGEST_LINE: u64 = 1 << 20;
/// How often backups are looked at that nothing was added to: for `max_age`.
const TIDY: Duration = Duration::from_secs(60 * 60);
/// The same thing is said once in this time.
const REPEAT: Duration = Duration::from_secs(60);

/// See the module.
pub struct RotatedFile {
    config: FileConfig,
    terminator: Vec<u8>,
    file: Option<File>,
    /// The time in the last backup's name.
    rotated: Option<DateTime<Utc>>,
    tidy: Sender<()>,
    label: String,
    journal: Journal,
    said: Once,
}

impl RotatedFile {
    /// The file, not opened yet, and the thread for its backups. Each line ends with `terminator`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        config: &FileConfig,
        terminator: &[u8],
        label: &str,
        journal: &Journal,
    ) -> io::Result<Self> {
        let (tidy, orders) = bounded(1);
        let backups = Backups::new(config);
        let (label, journal) = (label.to_owned(), journal.clone());
        let thread = thread::Builder::new().name("tirreno-file".into());
        thread.spawn({
            let (label, journal) = (label.clone(), journal.clone());
            move || backups.tend(&orders, &label, &journal)
        })?;
        Ok(Self {
            config: config.clone(),
            terminator: terminator.to_vec(),
            file: None,
            rotated: None,
            tidy,
            label,
            journal,
            said: Once::every(REPEAT),
        })
    }

    /// Appends whole lines: all of them, or on an error none.
    ///
    /// # Errors
    /// They cannot be written now.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut may_rotate = true;
        for _ in 0..MOVES {
            let file = match self.file.take() {
                Some(file) if is_at(&file, &self.config.path) => file,
                _ => self.open()?,
            };
            let locked = Locked::wait(file)?;
            if !is_at(&locked.0, &self.config.path) {
                continue;
            }
            let about = locked.0.metadata()?;
            let len = self.cut_torn_line(&locked.0, about.len())?;
            if may_rotate && self.is_due(len, lines.len(), about.modified()?) {
                may_rotate = self.rotate();
                drop(locked);
                // A thread that has not come to the last order yet will see this file too.
                let _ = self.tidy.try_send(());
                continue;
            }
            let written = (&locked.0).write_all(lines);
            if written.is_err() {
                // Should that fail too, a torn line is cut off before the next one.
                let _ = locked.0.set_len(len);
            }
            self.file = Some(locked.unlock()?);
            return written;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(MODE)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.config.path)?;
        // Neither locks nor lengths mean anything elsewhere.
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Cuts off what a killed process left behind the last whole line. Returns the length.
    fn cut_torn_line(&self, file: &File, len: u64) -> io::Result<u64> {
        let end = self.terminator.len() as u64;
        let mut tail = vec![0; end.min(len) as usize];
        file.read_exact_at(&mut tail, len.saturating_sub(end))?;
        if tail == self.terminator || len == 0 {
            return Ok(len);
        }
        let mut tail = vec![0; LONGEST_LINE.min(len) as usize];
        let start = len - tail.len() as u64;
        file.read_exact_at(&mut tail, start)?;
        let last = tail.windows(self.terminator.len()).rposition(|bytes| bytes == self.terminator);
        let whole = match last {
            Some(at) => start + at as u64 + end,
            None if start == 0 => 0,
            // No line of ours is that long.
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        file.set_len(whole)?;
        let text = format!("{}: {} bytes of a torn line were cut off", self.label, len - whole);
        self.journal.log(Level::Warn, text);
        Ok(whole)
    }

    fn is_due(&self, len: u64, more: usize, modified: SystemTime) -> bool {
        let period = |time: SystemTime| {
            let length = self.config.rotate?.as_millis();
            Some(time.duration_since(UNIX_EPOCH).ok()?.as_millis() / length)
        };
        len > 0
            && (self.config.max_size.is_some_and(|most| len + more as u64 > most)
                || period(modified) < period(SystemTime::now()))
    }

    /// Gives the file a backup's name. Whether that worked: a directory that forbids it costs no event.
    fn rotate(&mut self) -> bool {
        let names = Names::new(&self.config.path);
        // Later than the last one, also where that is deleted already: backups are ordered by it.
        let after_last = self.rotated.map_or(DateTime::UNIX_EPOCH, |last| last + MILLISECOND);
        let mut now = DateTime::from(SystemTime::now()).max(after_last);
        while names.plain(now).exists() || names.compressed(now).exists() {
            now += MILLISECOND;
        }
        let renamed = fs::rename(&self.config.path, names.plain(now));
        self.rotated = Some(now);
        if let Err(error) = &renamed
            && self.said.may(Instant::now())
        {
            let text = format!("{}: the file cannot be rotated: {}", self.label, error.kind());
            self.journal.log(Level::Error, text);
        }
        renamed.is_ok()
    }
}

/// Whether `path` names this file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |about: &fs::Metadata| (about.dev(), about.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

/// A locked file; the lock ends with it.
struct Locked(File);

impl Locked {
    fn wait(file: File) -> io::Result<Self> {
        let deadline = Instant::now() + LOCK;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(io::ErrorKind::ResourceBusy.into());
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
            }
        }
    }

    fn unlock(self) -> io::Result<File> {
        self.0.unlock()?;
        Ok(self.0)
    }
}

/// The names of a file's backups.
struct Names {
    directory: PathBuf,
    /// What stands before and behind the time.
    start: String,
    end: String,
}

impl Names {
    fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, end) = match name.rfind('.') {
            Some(dot) if dot > 0 => name.split_at(dot),
            _ => (&*name, ""),
        };
        Self {
            directory: path.parent().unwrap_or(Path::new("/")).to_owned(),
            start: format!("{stem}-"),
            end: end.to_owned(),
        }
    }

    fn plain(&self, time: DateTime<Utc>) -> PathBuf {
        self.directory.join(format!("{}{}{}", self.start, time.format(STAMP), self.end))
    }

    fn compressed(&self, time: DateTime<Utc>) -> PathBuf {
        with_end(&self.plain(time), ".gz")
    }

    /// The time in a backup's name.
    fn time(&self, name: &str) -> Option<DateTime<Utc>> {
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let stamp = name.strip_prefix(&self.start)?.strip_suffix(&self.end)?;
        let time = NaiveDateTime::parse_from_str(stamp, STAMP).ok()?.and_utc();
        // Nothing but what such a time is written as.
        (time.format(STAMP).to_string() == stamp).then_some(time)
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// Compresses and deletes.
struct Backups {
    names: Names,
    config: FileConfig,
}

impl Backups {
    fn new(config: &FileConfig) -> Self {
        Self { names: Names::new(&config.path), config: config.clone() }
    }

    /// Tidies up now, at each order, and once in a while, until nobody can order any more.
    fn tend(&self, orders: &Receiver<()>, label: &str, journal: &Journal) {
        lower_priority(NICE_SENDING);
        let mut said = Once::every(REPEAT);
        loop {
            if let Err(error) = self.tidy(SystemTime::now().into())
                && said.may(Instant::now())
            {
                let text = format!("{label}: backups cannot be tidied up: {}", error.kind());
                journal.log(Level::Error, text);
            }
            match orders.recv_timeout(TIDY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tidy(&self, now: DateTime<Utc>) -> io::Result<()> {
        let mut times = Vec::new();
        for entry in fs::read_dir(&self.names.directory)? {
            times.extend(entry?.file_name().to_str().and_then(|name| self.names.time(name)));
        }
        times.sort_unstable();
        times.dedup();
        let surplus = self.config.max_backups.map_or(0, |most| times.len().saturating_sub(most));
        let too_old = self.config.max_age.and_then(|age| TimeDelta::from_std(age).ok());
        for (i, time) in times.into_iter().enumerate() {
            let plain = self.names.plain(time);
            if i < surplus || too_old.is_some_and(|age| now - time > age) {
                for path in [&plain, &self.names.compressed(time), &with_end(&plain, ".tmp")] {
                    gone(fs::remove_file(path))?;
                }
            } else if self.config.compress {
                gone(compress(&plain, &self.names.compressed(time)))?;
            }
        }
        Ok(())
    }
}

/// What is not there any more, or not there, needs nothing done.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Replaces a file with a compressed one. At each moment one of the two is whole.
fn compress(plain: &Path, compressed: &Path) -> io::Result<()> {
    let file = match Locked::wait(File::open(plain)?) {
        // Another process does it.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(()),
        locked => locked?.0,
    };
    if !is_at(&file, plain) {
        return Ok(());
    }
    let part = with_end(plain, ".tmp");
    let written = (|| {
        let mode = file.metadata()?.mode();
        let out =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
        let mut encoder = GzEncoder::new(out, Compression::default());
        io::copy(&mut BufReader::with_capacity(1 << 16, &file), &mut encoder)?;
        encoder.finish()?;
        fs::rename(&part, compressed)
    })();
    match written {
        Ok(()) => fs::remove_file(plain),
        Err(error) => {
            let _ = fs::remove_file(&part);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use tempfile::TempDir;

    use super::*;
    use crate::journal::journal;

    struct Bench {
        dir: TempDir,
        config: FileConfig,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = FileConfig {
                path: dir.path().join("audit.log"),
                place: String::new(),
                max_size: None,
                rotate: None,
                max_age: None,
                max_backups: None,
                compress: false,
            };
            Self { dir, config }
        }

        fn open(&self) -> RotatedFile {
            RotatedFile::start(&self.config, b"\n", "t", &journal().0).unwrap()
        }

        fn content(&self) -> String {
            fs::read_to_string(&self.config.path).unwrap()
        }

        /// The names beside the file, sorted.
        fn backups(&self) -> Vec<String> {
            let names = fs::read_dir(self.dir.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.filter(|name| name != "audit.log").collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_torn_line_is_cut_off() {
        let bench = Bench::new();
        for (before, after) in
            [("a\nto", "a\nb\n"), ("torn", "b\n"), ("a\n", "a\nb\n"), ("", "b\n")]
        {
            fs::write(&bench.config.path, before).unwrap();
            bench.open().append(b"b\n").unwrap();
            assert_eq!(bench.content(), after);
        }
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let bench = Bench::new();
        let other = vec![b'x'; LONGEST_LINE as usize + 1];
        fs::write(&bench.config.path, &other).unwrap();
        assert!(bench.open().append(b"b\n").is_err());
        assert_eq!(bench.content().len(), other.len());
    }

    #[test]
    fn a_moved_file_is_noticed() {
        let bench = Bench::new();
        let (mut one, mut two) = (bench.open(), bench.open());
        one.append(b"a\n").unwrap();
        two.append(b"b\n").unwrap();
        fs::rename(&bench.config.path, bench.dir.path().join("audit.log.1")).unwrap();
        one.append(b"c\n").unwrap();
        two.append(b"d\n").unwrap();
        assert_eq!(bench.content(), "c\nd\n");
        fs::remove_file(&bench.config.path).unwrap();
        two.append(b"e\n").unwrap();
        assert_eq!(bench.content(), "e\n");
    }

    #[test]
    fn rotation_by_size() {
        let mut bench = Bench::new();
        bench.config.max_size = Some(4);
        let mut file = bench.open();
        for line in [b"a\n", b"b\n", b"c\n", b"d\n", b"e\n"] {
            file.append(line).unwrap();
        }
        assert_eq!(bench.content(), "e\n");
        let backups = bench.backups();
        let read = |name: &String| fs::read_to_string(bench.dir.path().join(name)).unwrap();
        assert_eq!(backups.iter().map(read).collect::<Vec<_>>(), ["a\nb\n", "c\nd\n"]);
        file.append(b"longer than it may be\n").unwrap();
        assert_eq!(bench.content(), "longer than it may be\n");
    }

    #[test]
    fn rotation_by_age() {
        let mut bench = Bench::new();
        bench.config.rotate = Some(Duration::from_secs(24 * 60 * 60));
        let mut file = bench.open();
        file.append(b"a\n").unwrap();
        let day_before = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
        File::options()
            .append(true)
            .open(&bench.config.path)
            .and_then(|file| file.set_modified(day_before))
            .unwrap();
        file.append(b"b\n").unwrap();
        assert_eq!((bench.content().as_str(), bench.backups().len()), ("b\n", 1));
    }

    #[test]
    fn backups_are_compressed_and_deleted() {
        let mut bench = Bench::new();
        bench.config.compress = true;
        bench.config.max_backups = Some(3);
        bench.config.max_age = Some(Duration::from_secs(3600));
        let now = "2026-01-31T12:00:00Z".parse::<DateTime<Utc>>().unwrap();
        let ours = [
            ("audit-2026-01-31T10-00-00.000.log", "too old"),
            ("audit-2026-01-31T11-30-00.000.log", "one too many"),
            ("audit-2026-01-31T11-40-00.000.log.gz", "compressed"),
            ("audit-2026-01-31T11-50-00.000.log", "new"),
            // A killed process left these.
            ("audit-2026-01-31T11-59-00.000.log", "half done"),
            ("audit-2026-01-31T11-59-00.000.log.gz", "ha"),
            ("audit-2026-01-31T11-59-00.000.log.tmp", "ha"),
        ];
        let others = [
            "audit-2020-01-31T10-00-00.000.log.bak",
            "audit-2026-01-31.log",
            "audit-2026-01-31T1-00-00.000.log",
            "audit.log.1",
            "other-2020-01-31T10-00-00.000.log",
        ];
        for (name, text) in ours.into_iter().chain(others.map(|name| (name, ""))) {
            fs::write(bench.dir.path().join(name), text).unwrap();
        }
        let backups = Backups::new(&bench.config);
        backups.tidy(now).unwrap();
        backups.tidy(now).unwrap();
        let (compressed, rest): (Vec<_>, Vec<_>) =
            bench.backups().into_iter().partition(|name| name.ends_with(".gz"));
        assert_eq!(rest, others);
        let expected = ["11-40-00", "11-50-00", "11-59-00"];
        assert_eq!(compressed, expected.map(|time| format!("audit-2026-01-31T{time}.000.log.gz")));
        let read = |name: &String| {
            let mut text = String::new();
            let file = File::open(bench.dir.path().join(name)).unwrap();
            GzDecoder::new(file).read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(read(&compressed[1]).unwrap(), "new");
        assert_eq!(read(&compressed[2]).unwrap(), "half done");
    }

    #[test]
    fn a_file_that_another_process_holds_is_waited_for() {
        let bench = Bench::new();
        let mut file = bench.open();
        file.append(b"a\n").unwrap();
        let other = File::open(&bench.config.path).unwrap();
        other.lock().unwrap();
        assert_eq!(file.append(b"b\n").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(other);
        file.append(b"c\n").unwrap();
        assert_eq!(bench.content(), "a\nc\n");
    }
}
