//! A file that is rotated.
//!
//! One `write` appends a batch, under a lock that the kernel releases when its holder dies. The lock is on a
//! file beside the log, `.audit.log.lock`, that nobody else may open: a process that may only read the log
//! cannot stop it. Several processes may use the log: an old and a new deliverer, those of two masters during a
//! binary upgrade, and `logrotate`, after which the path names another file. A writer first makes sure that the
//! last line is complete.
//!
//! The file `audit.log` is rotated to `audit-2026-01-31T23-59-59.999.log`, with the time of the rotation in
//! UTC, as Mattermost names its own. After the next rotation it is compressed and ends with `.gz`: until then,
//! a reader that follows the log can read its end. A thread compresses and deletes; the next process finishes
//! what a killed one has not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use flate2::{Compression, write::GzEncoder};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::audit::config::FileConfig;
use crate::clock::monotonic_ns;
use crate::delivery::thread::{NICE_SENDING, spawn};
use crate::log_queue::{Level, LogQueue, Once};

/// Mode of a new file: the records are about people.
const MODE: u32 = 0o640;
/// The time of rotation in a backup's name.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";
/// The least difference between two of them.
const MILLISECOND: TimeDelta = TimeDelta::milliseconds(1);
/// Mode of the lock file: a user that cannot open it cannot lock it.
const LOCK_MODE: u32 = 0o600;
/// How often the path may change to another file while one batch is written.
const MOVES: usize = 8;
/// A torn line has no more bytes than this.
const LONGEST_LINE: u64 = 1 << 20;
/// How often `max_age` is applied to backups while there is no rotation.
const TIDY: Duration = Duration::from_secs(60 * 60);
/// The pause while another process compresses a backup: it may end before it is done.
const BUSY: Duration = Duration::from_secs(1);
/// A wall clock that is this much ahead of the monotonic one has jumped, …
const JUMP: TimeDelta = TimeDelta::hours(2);
/// … and is trusted after this time.
const SURE: Duration = Duration::from_secs(24 * 60 * 60);
/// The minimum time between two equal messages.
const REPEAT: Duration = Duration::from_secs(60);

/// See the module.
pub struct RotatedFile {
    config: FileConfig,
    lock: PathBuf,
    file: Option<File>,
    /// The time in the last backup's name.
    rotated: Option<DateTime<Utc>>,
    /// Wakes the thread for the backups, once it runs.
    tidy: Option<Sender<()>>,
    label: String,
    log: LogQueue,
    said: Once,
}

impl RotatedFile {
    /// The file; it is opened later.
    pub fn new(config: &FileConfig, label: &str, log: &LogQueue) -> Self {
        Self {
            config: config.clone(),
            lock: lock_path(&config.path),
            file: None,
            rotated: None,
            tidy: None,
            label: label.to_owned(),
            log: log.clone(),
            said: Once::every(REPEAT),
        }
    }

    /// Starts the thread for the backups, if it does not run. If it cannot be started, the next rotation tries
    /// again.
    pub fn start_tidying(&mut self) {
        if self.tidy.is_some() {
            return;
        }
        let (tidy, orders) = bounded(1);
        let backups = Backups::new(&self.config);
        let (label, log) = (self.label.clone(), self.log.clone());
        match spawn("tirreno-file", NICE_SENDING, move || backups.tend(&orders, &label, &log)) {
            Ok(_) => self.tidy = Some(tidy),
            Err(error) => {
                let label = &self.label;
                let text = format!("{label}: no thread can be started that tidies up: {error}");
                self.log.log(Level::Error, text);
            }
        }
    }

    /// Appends whole lines, which end with a newline: all of them, or on an error none.
    ///
    /// # Errors
    /// They cannot be written now; `ResourceBusy`: another process writes.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let _lock = lock(&self.lock)?.ok_or(io::ErrorKind::ResourceBusy)?;
        let mut may_rotate = true;
        for _ in 0..MOVES {
            let file = match self.file.take() {
                Some(file) if is_at(&file, &self.config.path) => file,
                _ => self.open()?,
            };
            let about = file.metadata()?;
            let Some(len) = self.cut_torn_line(&file, about.len())? else {
                let backup = self.rotate()?;
                let (label, backup) = (&self.label, backup.display());
                let text =
                    format!("{label}: it ended with no line of ours, and is kept as \"{backup}\"");
                self.log.log(Level::Warn, text);
                continue;
            };
            if may_rotate && self.is_due(len, lines.len(), about.modified()?) {
                // A directory that forbids the rotation costs no event.
                may_rotate = self.rotate().is_ok();
                continue;
            }
            let written = (&file).write_all(lines);
            if written.is_err() {
                // If that fails, too, the next write cuts off the torn line.
                let _ = file.set_len(len);
            }
            self.file = Some(file);
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
            // Else a link would be renamed instead of the file.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&self.config.path)?;
        // Other kinds of files have no length.
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Cuts off an incomplete last line that a killed process left, and returns the length. `None` if the
    /// content may belong to another program: there is no complete line, or the incomplete one is too long.
    fn cut_torn_line(&self, file: &File, len: u64) -> io::Result<Option<u64>> {
        let mut last = *b"\n";
        if len > 0 {
            file.read_exact_at(&mut last, len - 1)?;
        }
        if last == *b"\n" {
            return Ok(Some(len));
        }
        // With the newline before it.
        let mut tail = vec![0; (LONGEST_LINE + 1).min(len) as usize];
        let start = len - tail.len() as u64;
        file.read_exact_at(&mut tail, start)?;
        let Some(newline) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
        let whole = start + newline as u64 + 1;
        file.set_len(whole)?;
        let text = format!("{}: {} bytes of a torn line were cut off", self.label, len - whole);
        self.log.log(Level::Warn, text);
        Ok(Some(whole))
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

    /// The time for the next backup's name. It is later than the last one, even if that is deleted, because
    /// backups are ordered by it; except if the clock was far wrong then.
    fn backup_time(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self.rotated {
            Some(last) if last - now < JUMP => now.max(last + MILLISECOND),
            _ => now,
        }
    }

    /// Renames the file to a backup, and returns the name.
    fn rotate(&mut self) -> io::Result<PathBuf> {
        let names = Names::new(&self.config.path);
        let mut now = self.backup_time(SystemTime::now().into());
        while names.plain(now).exists() || names.compressed(now).exists() {
            now += MILLISECOND;
        }
        let backup = names.plain(now);
        let renamed = fs::rename(&self.config.path, &backup);
        self.rotated = Some(now);
        if let Err(error) = &renamed
            && self.said.may(Instant::now())
        {
            let text = format!("{}: the file cannot be rotated: {}", self.label, error.kind());
            self.log.log(Level::Error, text);
        }
        // A thread that has not handled the last message yet will find this file, too.
        match &self.tidy {
            Some(tidy) => drop(tidy.try_send(())),
            None => self.start_tidying(),
        }
        renamed.map(|()| backup)
    }
}

/// Whether `path` names this file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |about: &fs::Metadata| (about.dev(), about.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

/// The file beside `path` whose lock a writer of `path` holds.
pub fn lock_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

/// Opens or creates a file that only this user may open, and locks it; the lock ends with the result. `None` if
/// another process has it.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(LOCK_MODE)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.nlink() > 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // Its holder may just have renamed it.
        Ok(()) => Ok(is_at(&file, path).then_some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The names of a file's backups.
struct Names {
    directory: PathBuf,
    /// The parts before and behind the time.
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
        // Accept only text that is exactly such a time.
        (time.format(STAMP).to_string() == stamp).then_some(time)
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// A wall clock that is trusted only while it goes as fast as the monotonic one: a jump ahead ages nothing
/// until it has lasted for [`SURE`].
struct Ages {
    /// The trusted time, and the monotonic time of that moment.
    known: (DateTime<Utc>, Duration),
    /// Since when, by the monotonic clock, the wall clock is ahead.
    ahead: Option<Duration>,
}

impl Ages {
    /// `known`: a time that was not long ago.
    fn new(known: DateTime<Utc>, monotonic: Duration) -> Self {
        Self { known: (known, monotonic), ahead: None }
    }

    /// The time by which backups age.
    fn now(&mut self, wall: DateTime<Utc>, monotonic: Duration) -> DateTime<Utc> {
        let (known, at) = self.known;
        let passed = TimeDelta::from_std(monotonic.saturating_sub(at)).unwrap_or_default();
        let expected = known + passed;
        let since = *self.ahead.get_or_insert(monotonic);
        if wall - expected > JUMP && monotonic.saturating_sub(since) < SURE {
            return expected;
        }
        *self = Self::new(wall, monotonic);
        wall
    }
}

/// Compresses and deletes backups.
struct Backups {
    names: Names,
    config: FileConfig,
}

impl Backups {
    fn new(config: &FileConfig) -> Self {
        Self { names: Names::new(&config.path), config: config.clone() }
    }

    /// Tidies up now, at each message, and once in a while, until the sender is gone.
    fn tend(&self, orders: &Receiver<()>, label: &str, log: &LogQueue) {
        let mut said = Once::every(REPEAT);
        let since_boot = || Duration::from_nanos(monotonic_ns());
        let mut ages =
            Ages::new(self.last_known().unwrap_or_else(|| SystemTime::now().into()), since_boot());
        loop {
            let now = ages.now(SystemTime::now().into(), since_boot());
            let pause = match self.tidy(now) {
                Ok(()) => TIDY,
                Err((_, error)) if error.kind() == io::ErrorKind::ResourceBusy => BUSY,
                Err((path, error)) => {
                    if said.may(Instant::now()) {
                        let (path, error) = (path.display(), error.kind());
                        let text = format!("{label}: \"{path}\" cannot be tidied up: {error}");
                        log.log(Level::Error, text);
                    }
                    TIDY
                }
            };
            match orders.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Compresses and deletes the backups that are due. Returns the first error, with its file; `ResourceBusy`,
    /// if there is no other: another process compresses it.
    fn tidy(&self, now: DateTime<Utc>) -> Result<(), (PathBuf, io::Error)> {
        let times = self.times().map_err(|error| (self.names.directory.clone(), error))?;
        let surplus = self.config.max_backups.map_or(0, |most| times.len().saturating_sub(most));
        let too_old = self.config.max_age.and_then(|age| TimeDelta::from_std(age).ok());
        // Names with a future time come from a wrong clock: they are not newer than those of now.
        let (to_come, mut times): (Vec<_>, Vec<_>) =
            times.into_iter().partition(|time| *time - now > JUMP);
        times.splice(0..0, to_come);
        let newest = times.last().copied();
        let mut result = Ok(());
        for (i, time) in times.into_iter().enumerate() {
            let (plain, compressed) = (self.names.plain(time), self.names.compressed(time));
            let done = if i < surplus || too_old.is_some_and(|age| now - time > age) {
                let files = [&plain, &compressed, &with_end(&plain, ".tmp")];
                // Tries every file, even if one fails.
                files.map(|file| gone(fs::remove_file(file))).into_iter().collect()
            } else if self.config.compress && Some(time) != newest {
                gone(compress(&plain, &compressed))
            } else {
                Ok(())
            };
            let is_busy = |(_, error): &(_, io::Error)| error.kind() == io::ErrorKind::ResourceBusy;
            // Another process at work hides no error.
            if done.is_err() && result.as_ref().is_err_and(is_busy) {
                result = Ok(());
            }
            result = result.and(done.map_err(|error| (plain, error)));
        }
        result
    }

    /// The time of the last write or rotation, as far as the files tell.
    fn last_known(&self) -> Option<DateTime<Utc>> {
        let written = fs::metadata(&self.config.path).and_then(|about| about.modified()).ok();
        let rotated = self.times().ok().and_then(|times| times.last().copied());
        written.map(DateTime::from).into_iter().chain(rotated).max()
    }

    /// The times of all backups, sorted.
    fn times(&self) -> io::Result<Vec<DateTime<Utc>>> {
        let mut times = Vec::new();
        for entry in fs::read_dir(&self.names.directory)? {
            times.extend(entry?.file_name().to_str().and_then(|name| self.names.time(name)));
        }
        times.sort_unstable();
        times.dedup();
        Ok(times)
    }
}

/// A file that another process has removed is no error.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Replaces a file by a compressed one. At each moment, one of the two is complete, also on the disk.
///
/// # Errors
/// The file is where it was; `ResourceBusy`: another process is at it.
fn compress(plain: &Path, compressed: &Path) -> io::Result<()> {
    let file = File::open(plain)?;
    let part = with_end(plain, ".tmp");
    let out = lock(&part)?.ok_or(io::ErrorKind::ResourceBusy)?;
    let written = (|| {
        out.set_len(0)?;
        let mut encoder = GzEncoder::new(&out, Compression::default());
        io::copy(&mut BufReader::with_capacity(1 << 16, &file), &mut encoder)?;
        encoder.finish()?;
        out.set_permissions(file.metadata()?.permissions())?;
        out.sync_all()?;
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
    use std::os::unix::fs::{PermissionsExt, symlink};

    use flate2::read::GzDecoder;
    use tempfile::TempDir;

    use super::*;
    use crate::log_queue::log_queue;

    struct Bench {
        dir: TempDir,
        config: FileConfig,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let config = FileConfig { path: dir.path().join("audit.log"), ..FileConfig::default() };
            Self { dir, config }
        }

        fn open(&self) -> RotatedFile {
            RotatedFile::new(&self.config, "t", &log_queue().0)
        }

        fn content(&self) -> String {
            fs::read_to_string(&self.config.path).unwrap()
        }

        /// The names beside the file and its lock, sorted.
        fn backups(&self) -> Vec<String> {
            let names = fs::read_dir(self.dir.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> =
                names.filter(|n| n != "audit.log" && n != ".audit.log.lock").collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_torn_line_is_cut_off() {
        let bench = Bench::new();
        let longest = format!("a\n{}", "x".repeat(LONGEST_LINE as usize));
        for (before, after) in
            [("a\nto", "a\nb\n"), ("a\n", "a\nb\n"), ("", "b\n"), (&longest, "a\nb\n")]
        {
            fs::write(&bench.config.path, before).unwrap();
            bench.open().append(b"b\n").unwrap();
            assert_eq!(bench.content(), after);
            assert_eq!(bench.backups(), [""; 0]);
        }
    }

    #[test]
    fn what_may_be_no_line_of_ours_is_kept() {
        let too_long = format!("a\n{}", "x".repeat(LONGEST_LINE as usize + 1));
        for before in ["somebody's", "a||b||", &too_long] {
            let bench = Bench::new();
            fs::write(&bench.config.path, before).unwrap();
            let (log, lines) = log_queue();
            let mut file = RotatedFile::new(&bench.config, "t", &log);
            file.append(b"b\n").unwrap();
            file.append(b"c\n").unwrap();
            assert_eq!(bench.content(), "b\nc\n");
            let [backup] = bench.backups().try_into().unwrap();
            let kept = fs::read_to_string(bench.dir.path().join(&backup)).unwrap();
            assert!(kept == before, "{} bytes", kept.len());
            let [said] = lines.drain().collect::<Vec<_>>().try_into().unwrap();
            assert!(said.level == Level::Warn && said.text.contains(&backup), "{}", said.text);
        }
    }

    #[test]
    fn a_line_ends_with_more_than_a_newline_or_another_one() {
        // As after a reload with another `line_end`.
        let bench = Bench::new();
        fs::write(&bench.config.path, "a\nb\n").unwrap();
        bench.open().append(b"c\r\n").unwrap();
        bench.open().append(b"d\n--\n").unwrap();
        bench.open().append(b"e\r\n").unwrap();
        assert_eq!(bench.content(), "a\nb\nc\r\nd\n--\ne\r\n");
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
    fn a_clock_that_jumps_makes_nothing_old_at_once() {
        let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let (now, far) = (time("2026-01-31T12:00:00Z"), time("2038-01-19T03:14:07Z"));
        let hour = Duration::from_secs(3600);
        let mut ages = Ages::new(now, hour);
        assert_eq!(ages.now(now, hour), now);
        assert_eq!(ages.now(now + hour, 2 * hour), now + hour);
        // There and back.
        assert_eq!(ages.now(far, 3 * hour), now + 2 * hour);
        assert_eq!(ages.now(far + 10 * hour, 13 * hour), now + 12 * hour);
        assert_eq!(ages.now(now + 13 * hour, 14 * hour), now + 13 * hour);
        // There to stay.
        assert_eq!(ages.now(far, 15 * hour), now + 14 * hour);
        assert_eq!(ages.now(far + 23 * hour, 38 * hour), now + 37 * hour);
        assert_eq!(ages.now(far + 24 * hour, 39 * hour), far + 24 * hour);
        // Back is always believed.
        assert_eq!(ages.now(now, 40 * hour), now);

        let mut bench = Bench::new();
        bench.config.max_age = Some(hour * 24);
        bench.config.max_backups = Some(2);
        let names = ["2026-01-31T10-00-00.000", "2026-01-31T11-00-00.000"];
        let write = |time: &str| {
            fs::write(bench.dir.path().join(format!("audit-{time}.log")), "").unwrap();
        };
        names.iter().for_each(|time| write(time));
        let backups = Backups::new(&bench.config);
        // A machine that starts with a wrong clock knows from its files what time it was.
        assert_eq!(backups.last_known(), Some(time("2026-01-31T11:00:00Z")));
        let mut ages = Ages::new(backups.last_known().unwrap(), hour);
        backups.tidy(ages.now(far, hour)).unwrap();
        assert_eq!(bench.backups().len(), 2);
        // What was rotated then is not taken for the newest one.
        write("2038-01-19T03-14-07.000");
        backups.tidy(now).unwrap();
        assert_eq!(bench.backups(), names.map(|name| format!("audit-{name}.log")));
        let mut file = RotatedFile::new(&bench.config, "t", &log_queue().0);
        file.rotated = Some(far);
        assert_eq!(file.backup_time(now), now);
        file.rotated = Some(now);
        assert_eq!(file.backup_time(now), now + MILLISECOND);
    }

    #[test]
    fn backups_are_compressed_and_deleted() {
        let mut bench = Bench::new();
        bench.config.compress = true;
        bench.config.max_backups = Some(4);
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
            ("audit-2026-01-31T11-59-00.000.log.tmp", "half"),
            ("audit-2026-01-31T11-59-30.000.log", "newest"),
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
        // It is compressed once it is not the newest any more.
        let mut others = others.map(String::from).to_vec();
        others.insert(3, "audit-2026-01-31T11-59-30.000.log".into());
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
    fn one_bad_backup_does_not_keep_the_others() {
        let mut bench = Bench::new();
        bench.config.max_backups = Some(2);
        bench.config.compress = true;
        let name = |hour| format!("audit-2026-01-31T{hour}-00-00.000.log");
        // Too many: the first two.
        for bad in ["01", "03"] {
            fs::create_dir(bench.dir.path().join(name(bad))).unwrap();
        }
        for good in ["02", "04"] {
            fs::write(bench.dir.path().join(name(good)), "a\n").unwrap();
        }
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let (path, _) = Backups::new(&bench.config).tidy(now).unwrap_err();
        assert_eq!(path, bench.dir.path().join(name("01")));
        assert_eq!(bench.backups(), [name("01"), name("03"), name("04")]);
        fs::remove_dir(bench.dir.path().join(name("01"))).unwrap();
        fs::write(bench.dir.path().join(name("05")), "a\n").unwrap();
        bench.config.max_backups = None;
        // Another process compresses the one before.
        let other = lock(&with_end(&bench.dir.path().join(name("02")), ".tmp")).unwrap();
        fs::write(bench.dir.path().join(name("02")), "a\n").unwrap();
        let (path, _) = Backups::new(&bench.config).tidy(now).unwrap_err();
        assert_eq!(path, bench.dir.path().join(name("03")));
        drop(other);
        Backups::new(&bench.config).tidy(now).unwrap_err();
        let gz = |hour| name(hour) + ".gz";
        assert_eq!(bench.backups(), [gz("02"), name("03"), gz("04"), name("05")]);
    }

    #[test]
    fn a_compressed_backup_has_the_mode_of_the_file() {
        let bench = Bench::new();
        let plain = bench.dir.path().join("plain");
        fs::write(&plain, "a\n").unwrap();
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o640)).unwrap();
        let compressed = with_end(&plain, ".gz");
        // Another process is at it.
        let other = lock(&with_end(&plain, ".tmp")).unwrap();
        assert_eq!(compress(&plain, &compressed).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert!(plain.exists() && !compressed.exists());
        drop(other);
        compress(&plain, &compressed).unwrap();
        assert!(!plain.exists());
        assert_eq!(compressed.metadata().unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn what_an_ended_process_left_half_compressed_is_compressed_without_a_rotation() {
        let mut bench = Bench::new();
        bench.config.compress = true;
        let names = Names::new(&bench.config.path);
        let times = [1, 2, 3].map(|hour| format!("2026-01-31T0{hour}:00:00Z").parse().unwrap());
        times.iter().for_each(|time| fs::write(names.plain(*time), "a\n").unwrap());
        let [first, second, _] = times.map(|time| names.plain(time));
        let other = lock(&with_end(&first, ".tmp")).unwrap();
        let (end, orders) = bounded(1);
        let backups = Backups::new(&bench.config);
        let log = log_queue();
        std::thread::scope(|scope| {
            scope.spawn(|| backups.tend(&orders, "t", &log.0));
            let wait_gone = |file: &Path| {
                let started = Instant::now();
                while file.exists() && started.elapsed() < Duration::from_secs(60) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            // The other process ends after this one has passed its file.
            wait_gone(&second);
            drop(other);
            wait_gone(&first);
            drop(end);
        });
        assert_eq!(times.map(|time| names.compressed(time).exists()), [true, true, false]);
    }

    #[test]
    fn another_process_that_writes_is_not_waited_for() {
        let bench = Bench::new();
        let mut file = bench.open();
        file.append(b"a\n").unwrap();
        let other = lock(&lock_path(&bench.config.path)).unwrap().unwrap();
        assert_eq!(other.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(file.append(b"b\n").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(other);
        file.append(b"c\n").unwrap();
        assert_eq!(bench.content(), "a\nc\n");
    }

    #[test]
    fn who_may_read_the_file_cannot_stop_it() {
        let bench = Bench::new();
        let mut file = bench.open();
        file.append(b"a\n").unwrap();
        let reader = File::open(&bench.config.path).unwrap();
        flock(&reader, FlockOperation::LockExclusive).unwrap();
        file.append(b"b\n").unwrap();
        assert_eq!(bench.content(), "a\nb\n");
    }

    #[test]
    fn a_link_is_not_followed() {
        let bench = Bench::new();
        let victim = bench.dir.path().join("victim");
        for (link, other) in [
            (bench.config.path.clone(), lock_path(&bench.config.path)),
            (lock_path(&bench.config.path), bench.config.path.clone()),
        ] {
            symlink(&victim, &link).unwrap();
            assert!(bench.open().append(b"a\n").is_err());
            assert!(!victim.exists());
            fs::remove_file(&link).unwrap();
            let _ = fs::remove_file(&other);
        }
    }
}
