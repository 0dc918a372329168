//! The lock beside a spool's database: who sends what is in it, and which instances of nginx capture for
//! it. The kernel gives it on when its holder dies.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::clock::wall_ms;
use crate::fault::Fault;

/// The right to send what is in a spool.
#[derive(Debug)]
pub struct Sender {
    /// Where there is no file, nobody can have a lock, and nobody has to.
    lock: Option<File>,
}

impl Sender {
    /// Takes the right to send from the spool in `file`, if nobody has it.
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
            // On a file system that has become read-only the lock is still held by somebody.
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

    /// Whether others find this lock where they look for it.
    pub fn is_in_place(&self, file: &Path) -> bool {
        let lock = self.lock.as_ref().and_then(|lock| lock.metadata().ok());
        let found = fs::symlink_metadata(file.with_extension("lock")).ok();
        let id = |about: fs::Metadata| (about.dev(), about.ino());
        lock.map(id) == found.map(id)
    }

    /// Whether the right is guarded by a lock, so that it lasts.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }
}

/// Neither is a link followed nor somebody waited for.
const CAREFUL: libc::c_int = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Whether it is a plain file, under this name alone.
pub fn is_plain(about: &fs::Metadata) -> bool {
    about.is_file() && about.nlink() == 1
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
