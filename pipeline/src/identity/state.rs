//! `tirreno_state`: the file that keeps bindings of sessions and known accounts over restarts.
//!
//! The file is a sequence of entries of one size. Each has a MAC whose key only the master can read: the
//! workers' user, who writes the file, can remove entries but not forge any. An entry with a wrong MAC is
//! skipped, and so is one that is older than what is known. The file contains tokens and account names as keyed
//! hashes, and user ids in clear.
//!
//! Each instance of nginx appends what it learns within a second, while it holds the file's lock, and reads
//! what others have appended. When the file is rewritten, outdated entries are left out.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::keys::{Keys, SECRET_LEN, Secret, TokenKey};
use crate::capture::identity::Identity;
use crate::capture::known_accounts::Known;
use crate::shm::bindings::{Binding, Bound, MAX_USER};
use crate::shm::zone::Zone;

/// Bytes of an entry: kind, evidence or doubt, the id's length, five zeros; the time; the hash of the token
/// or name; the hash of the user; the id; the MAC.
const ENTRY: usize = 8 + 8 + 16 + 8 + ID_LEN + MAC_LEN;
const ID_LEN: usize = MAX_USER.next_multiple_of(8);
const MAC_LEN: usize = 16;
/// How much of a file is read at most, and in pieces of which size.
const MAX_READ: u64 = 64 << 20;
const PIECE: usize = 256 * ENTRY;
/// The file is rewritten when it has twice as many entries as are known, and this many more.
const SPARE: u64 = 4096;
/// After how many milliseconds a login of a known account is noted again.
const ACCOUNT_STEP: i64 = 24 * 3600 * 1000;

/// The file of `tirreno_state path`: the path itself, or `sessions` in it if it is a directory.
pub fn file_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("sessions") } else { path.into() }
}

/// The file of the key: beside that of the sessions.
pub fn key_file_of(file: &Path) -> PathBuf {
    with_suffix(file, ".key")
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads the key, in hexadecimal digits. `None` if there is no file.
///
/// # Errors
/// The file is not one that only this process's user can read and write, or holds no key.
pub fn read_key(file: &Path) -> Result<Option<Secret>, String> {
    let wrong = |what: &str| format!("the key \"{}\" {what}", file.display());
    let mut key = match open(file, false) {
        Ok(key) => key,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(&format!("cannot be read: {error}"))),
    };
    let about = key.metadata().map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    // SAFETY: no memory is passed.
    if about.uid() != unsafe { libc::geteuid() } || about.mode() & 0o077 != 0 || about.nlink() != 1
    {
        return Err(wrong(
            "must belong to the user who starts nginx, and to nobody else: \"chown root\" and \
             \"chmod 600\" it, or remove it to have a new one made",
        ));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(4 * SECRET_LEN));
    let read = Read::by_ref(&mut key).take(4 * SECRET_LEN as u64).read_to_end(&mut text);
    read.map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let digits = text.trim_ascii();
    let mut secret = Secret::default();
    if digits.len() != 2 * SECRET_LEN {
        return Err(wrong("must be 64 hexadecimal digits; remove it to have a new one made"));
    }
    for (byte, pair) in secret.iter_mut().zip(digits.chunks(2)) {
        let pair = str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
        *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(|| {
            wrong("must be 64 hexadecimal digits; remove it to have a new one made")
        })?;
    }
    Ok(Some(secret))
}

/// Makes a key: random, and readable by this process's user only.
///
/// # Errors
/// It cannot be written.
pub fn make_key(file: &Path) -> Result<Secret, String> {
    let mut secret = Secret::default();
    let made = getrandom::fill(&mut secret[..]).map_err(io::Error::other).and_then(|()| {
        let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_LEN + 1));
        for byte in secret.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
        replace(file, |new| new.write_all(text.as_bytes()))
    });
    made.map_err(|error| format!("the key \"{}\" cannot be made: {error}", file.display()))?;
    Ok(secret)
}

/// Opens a regular file, whatever lies in its place: follows no link, and waits for nothing.
fn open(file: &Path, write: bool) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(write).create(write).mode(0o600).custom_flags(flags);
    let opened = options.open(file)?;
    let about = opened.metadata()?;
    if about.is_file() { Ok(opened) } else { Err(ErrorKind::InvalidInput.into()) }
}

/// Replaces a file: a reader finds either the whole new content or the old one.
fn replace(file: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let new_name = with_suffix(file, ".new");
    match fs::remove_file(&new_name) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new_name)?;
    write(&mut new).and_then(|()| new.sync_data()).and_then(|()| fs::rename(&new_name, file))
}

/// An entry of the file.
enum Entry {
    Session { key: TokenKey, user_hash: u64, user: Vec<u8>, identity: Identity, time_ms: i64 },
    Ended { key: TokenKey, time_ms: i64 },
    Account(Known),
}

impl Entry {
    const SESSION: u8 = 1;
    const ENDED: u8 = 2;
    const ACCOUNT: u8 = 3;

    fn write(&self, mac: &Hmac<Sha256>, out: &mut Vec<u8>) {
        let (kind, detail, time_ms, hash, user_hash, id) = match self {
            Self::Session { key, user_hash, user, identity, time_ms } => {
                (Self::SESSION, *identity as u8, *time_ms, key.0, *user_hash, user.clone())
            }
            Self::Ended { key, time_ms } => (Self::ENDED, 0, *time_ms, key.0, 0, Vec::new()),
            Self::Account(known) => {
                let (doubt, time) = (known.is_doubtful().into(), known.time_ms());
                (Self::ACCOUNT, doubt, time, known.place(), 0, known.id())
            }
        };
        let start = out.len();
        out.extend([kind, detail, id.len() as u8, 0, 0, 0, 0, 0]);
        out.extend(time_ms.to_le_bytes());
        [hash[0], hash[1], user_hash].iter().for_each(|word| out.extend(word.to_le_bytes()));
        out.extend(&id);
        out.resize(start + ENTRY - MAC_LEN, 0);
        let tag = mac.clone().chain_update(&out[start..]).finalize().into_bytes();
        out.extend(&tag[..MAC_LEN]);
    }

    /// The entry, if its MAC is right.
    fn read(mac: &Hmac<Sha256>, bytes: &[u8]) -> Option<Self> {
        let (signed, tag) = bytes.split_at_checked(ENTRY - MAC_LEN)?;
        mac.clone().chain_update(signed).verify_truncated_left(tag).ok()?;
        let word = |at: usize| signed.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (time_ms, hash, user_hash) = (word(8)? as i64, [word(16)?, word(24)?], word(32)?);
        let id = signed.get(40..40 + usize::from(signed[2]))?;
        let key = TokenKey(hash);
        Some(match signed[0] {
            Self::SESSION => {
                let identity = Identity::from_number(signed[1])?;
                Self::Session { key, user_hash, user: id.into(), identity, time_ms }
            }
            Self::ENDED => Self::Ended { key, time_ms },
            Self::ACCOUNT => Self::Account(Known::new(hash, id, signed[1] != 0, time_ms)?),
            _ => return None,
        })
    }

    fn of(bound: &Bound) -> Self {
        let (key, time_ms) = (bound.key(), bound.time_ms());
        if bound.has_ended() {
            return Self::Ended { key, time_ms };
        }
        let (user, identity) = (bound.user().into(), bound.identity());
        Self::Session { key, user_hash: bound.user_hash(), user, identity, time_ms }
    }

    /// The entry's hash, and its mark.
    fn mark(&self) -> (Hash, Mark) {
        match self {
            Self::Session { key, time_ms, .. } | Self::Ended { key, time_ms } => {
                (Hash::Token(*key), Mark::Token(*time_ms))
            }
            Self::Account(known) => {
                let mark = Mark::Account(known.time_ms(), known.id(), known.is_doubtful());
                (Hash::Account(known.place()), mark)
            }
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
enum Hash {
    Token(TokenKey),
    Account([u64; 2]),
}

enum Mark {
    Token(i64),
    Account(i64, Vec<u8>, bool),
}

impl Mark {
    /// Whether an entry with this mark makes one with the mark `new` unnecessary.
    fn covers(&self, new: &Self) -> bool {
        match (self, new) {
            (Self::Token(known), Self::Token(new)) => known >= new,
            (Self::Account(known, id, doubt), Self::Account(new, new_id, new_doubt)) => {
                known >= new || id == new_id && doubt == new_doubt && new - known < ACCOUNT_STEP
            }
            _ => false,
        }
    }
}

/// The state file of one instance of nginx.
pub struct State {
    path: PathBuf,
    zone: Zone,
    keys: Keys,
    mac: Hmac<Sha256>,
    /// The open file, and its inode.
    file: Option<(File, u64)>,
    /// How much of the file this process has read or written.
    offset: u64,
    /// The newest mark in the file for each token and account.
    marks: HashMap<Hash, Mark>,
    /// The numbers of the zone's changes that are in the file.
    changes: Option<(u64, u64)>,
    /// How many entries, besides twice the known ones, the file may have before it is rewritten.
    spare: u64,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How many entries were read from the file.
    pub read: usize,
    /// How many complete entries had a wrong MAC.
    pub foreign: usize,
    /// How many entries were written to the file.
    pub written: usize,
}

impl State {
    /// Nothing is read or written yet.
    pub fn new(path: PathBuf, zone: Zone) -> Self {
        let keys = zone.keys();
        // A key of any length is good.
        let mac = Hmac::new_from_slice(keys.state()).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
        Self {
            path,
            zone,
            keys,
            mac,
            file: None,
            offset: 0,
            marks: HashMap::new(),
            changes: None,
            spare: SPARE,
        }
    }

    /// Reads what the file has into the zone, and writes nothing.
    ///
    /// # Errors
    /// It cannot be read; a missing one is empty.
    pub fn load(&mut self) -> io::Result<Step> {
        let mut step = Step::default();
        match open(&self.path, false) {
            Ok(file) => self.read_from(&file, &mut step)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(step)
    }

    /// Whether the zone has changed since the last step. Only reads the shared memory.
    pub fn is_stale(&self) -> bool {
        self.changes != Some(self.zone_changes())
    }

    fn zone_changes(&self) -> (u64, u64) {
        (self.zone.bindings().changes(), self.zone.known_accounts(&self.keys).changes())
    }

    /// Reads what others appended to the file, and appends what the zone has learned. If another process is
    /// writing, the next step does it.
    ///
    /// # Errors
    /// The file cannot be used. What the zone has learned is for the next step.
    pub fn step(&mut self) -> io::Result<Step> {
        let mut step = Step::default();
        let Some(file) = self.lock()? else { return Ok(step) };
        let result = self.exchange(&file, &mut step);
        // SAFETY: the file is open.
        unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&file), libc::LOCK_UN) };
        result.map(|()| step)
    }

    /// Locks the file that the path names now; `None` if another process holds the lock.
    fn lock(&mut self) -> io::Result<Option<File>> {
        for _ in 0..8 {
            let file = match open(&self.path, true) {
                Ok(file) => file,
                // There is something else in its place: a link, or a pipe.
                Err(error) if is_no_file(&error, &self.path) => {
                    replace(&self.path, |_| Ok(()))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // SAFETY: the file is open.
            let rc = unsafe {
                libc::flock(std::os::fd::AsRawFd::as_raw_fd(&file), libc::LOCK_EX | libc::LOCK_NB)
            };
            if rc != 0 {
                return Ok(None);
            }
            // It may have been replaced while it was opened.
            let named = fs::symlink_metadata(&self.path).map(|about| about.ino());
            if named.is_ok_and(|ino| file.metadata().is_ok_and(|about| about.ino() == ino)) {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn exchange(&mut self, file: &File, step: &mut Step) -> io::Result<()> {
        // What is learned from here on is left to the next step, if this one does not see it.
        let changes = self.zone_changes();
        self.read_from(file, step)?;
        let len = file.metadata()?.len();
        let bindings = self.zone.bindings().all(&self.keys);
        let accounts = self.zone.known_accounts(&self.keys);
        let entries: Vec<_> =
            bindings.iter().map(Entry::of).chain(accounts.all().map(Entry::Account)).collect();
        let mut out = Vec::new();
        for entry in &entries {
            let (hash, mark) = entry.mark();
            if !self.marks.get(&hash).is_some_and(|known| known.covers(&mark)) {
                entry.write(&self.mac, &mut out);
                step.written += 1;
                self.marks.insert(hash, mark);
            }
        }
        let known = entries.len() as u64;
        let after = (len + out.len() as u64) / ENTRY as u64;
        if after > 2 * known + self.spare {
            return self.write_anew(&entries, changes);
        }
        if !out.is_empty() {
            // Overwrites an incomplete entry of a killed process.
            let start = len - len % ENTRY as u64;
            if let Err(error) = file.write_all_at(&out, start) {
                // It is unknown how much of it was written.
                self.forget();
                return Err(error);
            }
            self.offset = start + out.len() as u64;
        }
        self.changes = Some(changes);
        Ok(())
    }

    fn write_anew(&mut self, entries: &[Entry], changes: (u64, u64)) -> io::Result<()> {
        self.forget();
        let mut out = Vec::with_capacity(entries.len() * ENTRY);
        entries.iter().for_each(|entry| entry.write(&self.mac, &mut out));
        replace(&self.path, |new| new.write_all(&out))?;
        self.marks = entries.iter().map(Entry::mark).collect();
        self.offset = out.len() as u64;
        self.file = open(&self.path, false).ok().and_then(with_inode);
        self.changes = Some(changes);
        Ok(())
    }

    fn forget(&mut self) {
        (self.file, self.offset, self.changes) = (None, 0, None);
        self.marks.clear();
    }

    /// Reads what was appended since the last time; everything if the file was replaced or truncated.
    fn read_from(&mut self, file: &File, step: &mut Step) -> io::Result<()> {
        let about = file.metadata()?;
        let is_same = self.file.as_ref().is_some_and(|(_, ino)| *ino == about.ino());
        if !is_same || about.len() < self.offset {
            self.forget();
            self.file = with_inode(file.try_clone()?);
        }
        let mut reader = file.try_clone()?;
        reader.seek(SeekFrom::Start(self.offset))?;
        let mut piece = vec![0; PIECE];
        let mut read = 0;
        while read < MAX_READ {
            let len = read_full(&mut reader, &mut piece)?;
            for bytes in piece[..len].chunks_exact(ENTRY) {
                match Entry::read(&self.mac, bytes) {
                    Some(entry) => {
                        step.read += 1;
                        self.take(entry);
                    }
                    None => step.foreign += 1,
                }
            }
            // An incomplete entry at the end is read when it is complete.
            let whole = len - len % ENTRY;
            self.offset += whole as u64;
            read += whole as u64;
            if len < piece.len() {
                break;
            }
        }
        piece.zeroize();
        Ok(())
    }

    fn take(&mut self, entry: Entry) {
        let bindings = self.zone.bindings();
        match &entry {
            Entry::Session { key, user_hash, user, identity, time_ms } => {
                let (user_hash, identity) = (*user_hash, *identity);
                let binding = Binding { key: *key, user_hash, user, identity, digest: None };
                bindings.restore(&self.keys, *key, Some(&binding), *time_ms);
            }
            Entry::Ended { key, time_ms } => {
                bindings.restore(&self.keys, *key, None, *time_ms);
            }
            Entry::Account(known) => self.zone.known_accounts(&self.keys).restore(known),
        }
        let (hash, mark) = entry.mark();
        if !self.marks.get(&hash).is_some_and(|known| known.covers(&mark)) {
            self.marks.insert(hash, mark);
        }
    }
}

fn with_inode(file: File) -> Option<(File, u64)> {
    let ino = file.metadata().ok()?.ino();
    Some((file, ino))
}

fn is_no_file(error: &io::Error, path: &Path) -> bool {
    let is_odd = fs::symlink_metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir());
    is_odd && error.kind() != ErrorKind::PermissionDenied
}

fn read_full(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < piece.len() {
        match file.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::shm::zone::anonymous;

    const NOW: i64 = 1_700_000_000_000;

    struct Instance {
        zone: Zone,
        keys: Keys,
        state: State,
    }

    impl Instance {
        fn new(path: &Path, secret: &Secret) -> Self {
            let zone = anonymous(1 << 20).unwrap();
            zone.set_secret(secret);
            Self { zone, keys: zone.keys(), state: State::new(path.into(), zone) }
        }

        fn token(&self, token: &str) -> TokenKey {
            self.keys.tokens(b"r").key([token.as_bytes()])
        }

        fn bind(&self, token: &str, user: &str, now: i64) {
            let binding = Binding::new(&self.keys, b"r", self.token(token), user.as_bytes());
            self.zone.bindings().bind(&self.keys, &binding, now);
        }

        fn user(&self, token: &str) -> Option<String> {
            let found = self.zone.bindings().find(&self.keys, self.token(token), NOW);
            let found = found.filter(|found| !found.has_ended());
            found.map(|found| String::from_utf8(found.user().to_vec()).unwrap())
        }
    }

    fn secret(first: u8) -> Secret {
        let mut secret = Secret::default();
        secret[0] = first;
        secret
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        (directory, path)
    }

    #[test]
    fn what_was_learned_is_known_after_a_restart() {
        let (_directory, path) = directory();
        let mut one = Instance::new(&path, &secret(1));
        one.bind("t1", "ann", NOW);
        one.bind("t2", "bob", NOW);
        one.bind("t3", "eve", NOW);
        assert!(one.state.is_stale());
        assert_eq!(one.state.step().unwrap().written, 3);
        assert!(!one.state.is_stale());
        one.bind("t2", "carl", NOW);
        one.zone.bindings().end(&one.keys, one.token("t3"), NOW);
        let accounts = one.zone.known_accounts(&one.keys);
        accounts.learn(&accounts.key(b"r", "Ann"), b"ann", NOW);
        accounts.learn(&accounts.key(b"r", "dan"), b"dan", NOW);
        accounts.learn(&accounts.key(b"r", "dan"), b"other", NOW + 1);
        assert_eq!(one.state.step().unwrap().written, 4);
        assert_eq!(one.state.step().unwrap().written, 0);

        let mut two = Instance::new(&path, &secret(1));
        assert_eq!(two.state.load().unwrap().foreign, 0);
        assert_eq!(two.user("t1").as_deref(), Some("ann"));
        assert_eq!(two.user("t2").as_deref(), Some("carl"));
        assert_eq!(two.user("t3"), None);
        let accounts = two.zone.known_accounts(&two.keys);
        assert_eq!(accounts.find(&accounts.key(b"r", "ann")), Some(b"ann".to_vec()));
        assert_eq!(accounts.find(&accounts.key(b"r", "dan")), None);
        assert_eq!(accounts.find(&accounts.key(b"other", "ann")), None);
        // Nothing of it is new.
        assert_eq!(two.state.step().unwrap().written, 0);
        for secret in ["t1", "t2", "Ann"] {
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret}");
        }
    }

    #[test]
    fn another_key_reads_nothing() {
        let (_directory, path) = directory();
        let mut one = Instance::new(&path, &secret(1));
        one.bind("t", "ann", NOW);
        one.state.step().unwrap();
        let mut two = Instance::new(&path, &secret(2));
        assert_eq!(two.state.load().unwrap(), Step { read: 0, foreign: 1, written: 0 });
        assert!(two.zone.bindings().all(&two.keys).is_empty());
    }

    #[test]
    fn instances_follow_each_other() {
        let (_directory, path) = directory();
        let (mut one, mut two) =
            (Instance::new(&path, &secret(1)), Instance::new(&path, &secret(1)));
        one.bind("t", "ann", NOW);
        two.bind("u", "bob", NOW);
        for _ in 0..2 {
            one.state.step().unwrap();
            two.state.step().unwrap();
        }
        assert_eq!(
            (one.user("u").as_deref(), two.user("t").as_deref()),
            (Some("bob"), Some("ann"))
        );
        // The newer one counts, whoever writes first.
        one.bind("t", "carl", NOW + 5);
        two.bind("t", "dan", NOW + 3);
        for _ in 0..2 {
            two.state.step().unwrap();
            one.state.step().unwrap();
        }
        assert_eq!(
            (one.user("t").as_deref(), two.user("t").as_deref()),
            (Some("carl"), Some("carl"))
        );
        two.zone.bindings().end(&two.keys, two.token("t"), NOW + 9);
        two.state.step().unwrap();
        one.state.step().unwrap();
        assert_eq!(one.user("t"), None);
    }

    #[test]
    fn the_workers_user_removes_entries_and_makes_none() {
        let (_directory, path) = directory();
        let mut one = Instance::new(&path, &secret(1));
        for (i, name) in ["a", "b", "c", "d"].iter().enumerate() {
            one.bind(&format!("t-{name}"), &format!("user-{name}"), NOW + i as i64);
        }
        one.state.step().unwrap();
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), 4 * ENTRY);
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let mut two = Instance::new(&path, &secret(1));
            two.state.load().unwrap();
            for name in ["a", "b", "c", "d"] {
                let user = two.user(&format!("t-{name}"));
                assert!(user.is_none_or(|user| user == format!("user-{name}")));
            }
            two.zone.bindings().all(&two.keys).len()
        };
        assert_eq!(check(&good), 4);
        for at in 0..ENTRY {
            let mut edited = good.clone();
            edited[at] ^= 1;
            assert_eq!(check(&edited), 3, "{at}");
        }
        for len in (0..good.len()).step_by(7) {
            assert_eq!(check(&good[..len]), len / ENTRY);
        }
        // One entry's token with another's user.
        let mut mixed = good.clone();
        mixed.copy_within(ENTRY + 32..2 * ENTRY, 32);
        assert_eq!(check(&mixed), 3);
        // An old entry once more, behind a newer one.
        one.bind("t-a", "user-x", NOW + 10);
        one.state.step().unwrap();
        let mut replayed = fs::read(&path).unwrap();
        replayed.extend(&good[..ENTRY]);
        fs::write(&path, &replayed).unwrap();
        let mut two = Instance::new(&path, &secret(1));
        two.state.load().unwrap();
        assert_eq!(two.user("t-a").as_deref(), Some("user-x"));
    }

    #[test]
    fn whatever_lies_there_is_replaced_and_nothing_hangs() {
        let (directory, path) = directory();
        let other = directory.path().join("other");
        fs::write(&other, "precious").unwrap();
        let mut one = Instance::new(&path, &secret(1));
        one.bind("t", "ann", NOW);
        one.state.step().unwrap();
        let places: [(&str, &dyn Fn()); 5] = [
            ("link", &|| symlink(&other, &path).unwrap()),
            ("link to nowhere", &|| symlink("/nonexistent", &path).unwrap()),
            ("pipe", &|| {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::Fifo,
                    0o666.into(),
                    0,
                )
                .unwrap()
            }),
            ("text", &|| fs::write(&path, "x".repeat(ENTRY * 3 + 5)).unwrap()),
            ("nothing", &|| {}),
        ];
        for (what, put) in places {
            fs::remove_file(&path).unwrap();
            put();
            let mut two = Instance::new(&path, &secret(1));
            let _ = two.state.load();
            assert_eq!(two.user("t"), None, "{what}");
            one.state.step().unwrap();
            let mut two = Instance::new(&path, &secret(1));
            two.state.load().unwrap();
            assert_eq!(two.user("t").as_deref(), Some("ann"), "{what}");
        }
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        // A directory stays, and is told of.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(one.state.step().is_err());
        fs::remove_dir(&path).unwrap();
        assert!(one.state.step().is_ok());
    }

    #[test]
    fn the_file_does_not_grow_without_bound() {
        let (_directory, path) = directory();
        let mut one = Instance::new(&path, &secret(1));
        one.state.spare = 50;
        for i in 0..200 {
            one.bind("t", if i % 2 == 0 { "ann" } else { "bob" }, NOW + i);
            one.state.step().unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() <= 53 * ENTRY as u64);
        let mut two = Instance::new(&path, &secret(1));
        two.state.load().unwrap();
        assert_eq!(two.user("t").as_deref(), Some("bob"));
    }

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let (_directory, path) = directory();
        let file = key_file_of(&path);
        assert_eq!(read_key(&file).unwrap(), None);
        let made = make_key(&file).unwrap();
        assert_eq!(read_key(&file).unwrap(), Some(made));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            assert!(read_key(&file).unwrap_err().contains("chmod 600"), "{mode:o}");
        }
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        for text in ["", "abc", &"x".repeat(64), &"a".repeat(66)] {
            fs::write(&file, text).unwrap();
            assert!(read_key(&file).unwrap_err().contains("64 hexadecimal digits"), "{text}");
        }
        fs::remove_file(&file).unwrap();
        symlink("/dev/zero", &file).unwrap();
        assert!(read_key(&file).is_err());
    }
}
