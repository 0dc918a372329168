//! The lock beside a spool's database: it shows which process sends, and which instances of nginx capture for
//! the spool. The kernel releases it when its holder dies.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::clock::wall_ms;
use crate::fault::Fault;

/// The right to send what is in a spool.
#[derive(Debug)]
pub struct Sender {
    /// `None` if there can be no file: then nobody can hold a lock.
    lock: Option<File>,
}

impl Sender {
    /// Takes the right to send from the spool in `file`, if no other process has it.
    ///
    /// # Errors
    /// Somebody has it, or something else than a file lies in the place of the lock.
    pub fn try_lock(file: &Path) -> Result<Self, Fault> {
        let path = file.with_extension("lock");
        let lock = match lock_file(file) {
            Ok(lock) => lock,
            Err(_) if fs::symlink_metadata(&path).is_ok_and(|about| !is_plain(&about)) => {
                return Err(Fault::NotPlain);
            }
            // On a file system that has become read-only, another process may still hold the lock.
            Err(_) => match OpenOptions::new().read(true).custom_flags(CAREFUL).open(&path) {
                Ok(lock) => lock,
                Err(_) => return Ok(Self { lock: None }),
            },
        };
        // SAFETY: the descriptor is open.
        match unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
            0 => Ok(Self { lock: Some(lock) }),
            _ => Err(Fault::Busy),
        }
    }

    /// Whether other processes find this lock in its place.
    pub fn is_in_place(&self, file: &Path) -> bool {
        let lock = self.lock.as_ref().and_then(|lock| lock.metadata().ok());
        let found = fs::symlink_metadata(file.with_extension("lock")).ok();
        let id = |about: fs::Metadata| (about.dev(), about.ino());
        lock.map(id) == found.map(id)
    }

    /// Whether a lock guards the right, so that it lasts.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }
}

/// Flags with which opening follows no link, and waits for nobody.
const CAREFUL: libc::c_int = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Whether it is a plain file with only this name.
pub fn is_plain(about: &fs::Metadata) -> bool {
    about.is_file() && about.nlink() == 1
}

/// The byte of the lock file that an instance of nginx locks while it captures.
fn byte_of(instance: u64) -> libc::off_t {
    // The first byte stays free, so that each byte has one before it.
    (instance >> 1).max(1) as libc::off_t
}

/// A lock on `len` bytes from `start` on; with 0, on all the rest.
fn bytes_lock(start: libc::off_t, len: libc::off_t) -> libc::flock {
    // SAFETY: zeros are a valid lock.
    let mut lock = unsafe { std::mem::zeroed::<libc::flock>() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (start, len);
    lock
}

/// Opens or creates the lock file. Its directory belongs to the workers' user, and a master may be root: an
/// existing file is opened only if it is a plain file, and only a file that was created here is given to that
/// user.
fn lock_file(file: &Path) -> std::io::Result<File> {
    let path = file.with_extension("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(CAREFUL);
    match options.clone().create_new(true).open(&path) {
        Ok(made) => {
            if let Some(owner) = file.parent().and_then(|directory| fs::metadata(directory).ok()) {
                let _ = fchown(&made, Some(owner.uid()), Some(owner.gid()));
            }
            Ok(made)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = options.open(&path)?;
            match is_plain(&found.metadata()?) {
                true => Ok(found),
                false => Err(std::io::Error::other("it is no plain file")),
            }
        }
        Err(error) => Err(error),
    }
}

/// Locks the instance's byte as long as any process has the returned file or inherited it: this instance of
/// nginx, a master and its workers, captures for the spool in `file`.
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

/// Renames a damaged database; only the holder of `_sender` may. Returns the new name.
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
        // There may be no such file.
        let _ = fs::rename(name(suffix), to);
    }
    let _ = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600));
    Ok(aside)
}
