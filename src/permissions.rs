//! Whether the workers, which run as another user than the master, can use a file.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, ptr, thread};

use nginx_sys::{NGX_USER, ngx_core_conf_t};
use tirreno_pipeline::audit::file::lock_path;

/// How long a disk may take to answer while a configuration is read, and how often the child is polled.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
const ANSWERS_POLL: Duration = Duration::from_millis(1);

/// The user that the workers become.
pub(crate) struct User {
    id: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl User {
    /// The user of the directive `user`; `None` if the workers keep the master's user.
    pub(crate) fn of(core: &ngx_core_conf_t) -> Option<Self> {
        // SAFETY: no memory is passed.
        if unsafe { libc::geteuid() } != 0 || core.username.is_null() {
            return None;
        }
        let (id, group) = (core.user as libc::uid_t, core.group as libc::gid_t);
        let mut groups = vec![0; 256];
        let mut count = groups.len() as libc::c_int;
        // SAFETY: nginx's name ends with NUL; the array has as many places as `count` says.
        unsafe {
            let name = CStr::from_ptr(core.username);
            libc::getgrouplist(name.as_ptr(), group, groups.as_mut_ptr(), &mut count);
        }
        groups.truncate(usize::try_from(count).unwrap_or(0));
        Some(Self { id, group, groups })
    }
}

/// Whether `user` (without one: this process) can write and rename the file.
///
/// # Errors
/// Why not.
pub(crate) fn check_file(path: &Path, user: Option<&User>) -> Result<(), String> {
    check_directory_of(path, user)?;
    let can = |path: &Path, how| can(user, path, how);
    [path, &lock_path(path)].into_iter().try_for_each(|path| match path.symlink_metadata() {
        Ok(about) if !about.is_file() => Err(format!("\"{}\" is no file", path.display())),
        Ok(_) => can(path, libc::R_OK | libc::W_OK).map_err(|error| {
            format!("the workers cannot read and write \"{}\": {error}", path.display())
        }),
        Err(_) => Ok(()),
    })
}

fn can(user: Option<&User>, path: &Path, how: libc::c_int) -> io::Result<()> {
    match user {
        Some(user) => access_as(user, path, how),
        None => access(path, how),
    }
}

/// Whether `user` (without one: this process) can create and rename files beside `path`.
///
/// # Errors
/// Why not.
pub(crate) fn check_directory_of(path: &Path, user: Option<&User>) -> Result<(), String> {
    check_directory(path.parent().unwrap_or(Path::new("/")), user)
}

/// Whether `user` (without one: this process) can create and rename files in `directory`.
///
/// # Errors
/// Why not.
pub(crate) fn check_directory(directory: &Path, user: Option<&User>) -> Result<(), String> {
    can(user, directory, libc::W_OK | libc::X_OK).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("the directory \"{}\" does not exist, make it", directory.display())
        }
        _ => format!(
            "the workers cannot write in the directory \"{}\": {error}, give it to their user, and let \
             that user enter those above it",
            directory.display()
        ),
    })
}

/// Whether the user can access `path`. A child process becomes that user and asks the kernel.
///
/// A thread could become the user, too. But another process of that user could then signal the thread, and so
/// kill the whole process, which is the master.
fn access_as(user: &User, path: &Path, how: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: it allocates nothing and takes no lock.
    let child = unsafe { in_child(|| become_user(user).and_then(|()| access_path(&path, how)))? };
    let mut status = 0;
    // SAFETY: the call fills the number.
    while unsafe { libc::waitpid(child, &mut status, libc::__WCLONE) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, error) => Err(io::Error::from_raw_os_error(error)),
        (false, _) => Err(io::Error::other("the process that tried was killed")),
    }
}

/// Runs `f` in a child, whose process id it returns; the child's exit status is the error's number.
///
/// # Safety
/// `f` allocates nothing and takes no lock: the child has a copy of all memory, and no other thread.
unsafe fn in_child(f: impl FnOnce() -> io::Result<()>) -> io::Result<libc::pid_t> {
    // Like fork(), but the child sends no SIGCHLD when it ends: nginx waits for its workers at any time, and
    // must not find this child.
    let none = 0_usize;
    // SAFETY: the caller's promise. The child leaves without any handler.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone, none, none, none, none, none);
        if child == 0 {
            let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            libc::_exit(f().map_or_else(number, |()| 0));
        }
        child
    };
    match libc::pid_t::try_from(child) {
        Ok(child) if child > 0 => Ok(child),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The children of [`answers`] that a disk held back, and what each asks for.
static ASKING: Mutex<Vec<(libc::pid_t, PathBuf)>> = Mutex::new(Vec::new());

/// Whether the disk that the file lies on answers within a second. A master that waits for one in the
/// kernel could not even be stopped, so that a child asks; where that cannot be made, it does.
///
/// Nobody else may reap the child, and nginx does not. One that hangs is kept, and asked about by whoever
/// asks for the same file next: however often nginx reloads while the disk hangs, there is one for each file.
pub(crate) fn answers(path: &Path) -> bool {
    let mut asking = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    asking.retain(|(child, _)| !has_ended(*child));
    let child = match asking.iter().position(|(_, asked)| asked == path) {
        Some(place) => asking.swap_remove(place).0,
        None => match ask(path) {
            Ok(child) => child,
            Err(_) => return true,
        },
    };
    let until = Instant::now() + ANSWERS_WITHIN;
    while !has_ended(child) {
        if Instant::now() >= until {
            asking.push((child, path.to_owned()));
            return false;
        }
        thread::sleep(ANSWERS_POLL);
    }
    true
}

/// A child that ends once the disk has answered.
fn ask(path: &Path) -> io::Result<libc::pid_t> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let paths = [directory, path, &lock_path(path)];
    let paths = paths.map(|path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default());
    // SAFETY: it allocates nothing and takes no lock.
    unsafe {
        in_child(|| {
            // Else a child that hangs would keep the sockets open.
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            paths.iter().for_each(|path| drop(access_path(path, libc::F_OK)));
            Ok(())
        })
    }
}

/// Whether the child has ended, or is another process's, as in a worker that was made since. It is reaped.
fn has_ended(child: libc::pid_t) -> bool {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(child, ptr::null_mut(), libc::__WCLONE | libc::WNOHANG) != 0 }
}

/// Makes the calling thread, and no other, that user. There is no way back.
fn become_user(user: &User) -> io::Result<()> {
    let User { id, group, groups } = user;
    // SAFETY: the array has as many places as its length says. glibc's functions of the same names
    // would look for other threads to change.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, *group, *group, *group) == 0
            && libc::syscall(libc::SYS_setresuid, *id, *id, *id) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether nginx may make `path` the spool of the workers' user: nginx changes the owner of that directory. A
/// directory that belongs to somebody else and holds other files keeps its owner.
///
/// # Errors
/// Why not, and the cure.
pub(crate) fn check_spool(path: &Path, core: Option<&ngx_core_conf_t>) -> Result<(), String> {
    let Ok(about) = fs::metadata(path) else { return Ok(()) };
    let owner = workers_id(core);
    if Some(about.uid()) == owner {
        return Ok(());
    }
    let Ok(mut entries) = fs::read_dir(path) else { return Ok(()) };
    let foreign = entries.find_map(|entry| {
        let name = entry.ok()?.file_name();
        (!is_spools(&name.to_string_lossy())).then_some(name)
    });
    foreign.map_or(Ok(()), |name| {
        Err(format!(
            "the directory \"{}\" holds \"{}\" and is not the workers' user's: it cannot be a spool, name \
             one that does not exist yet, or is empty",
            path.display(),
            name.display()
        ))
    })
}

/// Whether a spool contains files of this name, or a new file system directories of it.
fn is_spools(name: &str) -> bool {
    [".db", ".db-wal", ".db-shm", ".lock"].iter().any(|end| name.ends_with(end))
        || name.contains(".db.corrupt-")
        || name == "lost+found"
}

/// The workers' user id; `None` if it is unknown.
fn workers_id(core: Option<&ngx_core_conf_t>) -> Option<u32> {
    // SAFETY: no memory is passed.
    let own = unsafe { libc::geteuid() };
    if own != 0 {
        return Some(own);
    }
    match core.filter(|core| !core.username.is_null()) {
        Some(core) => Some(core.user),
        None => {
            // SAFETY: the name ends with NUL; what is found is copied before the next call.
            unsafe { libc::getpwnam(NGX_USER.as_ptr()).as_ref() }.map(|user| user.pw_uid)
        }
    }
}

/// Whether this process can use `path`.
fn access(path: &Path, how: libc::c_int) -> io::Result<()> {
    access_path(&CString::new(path.as_os_str().as_bytes())?, how)
}

fn access_path(path: &CStr, how: libc::c_int) -> io::Result<()> {
    // SAFETY: the path ends with NUL.
    match unsafe { libc::access(path.as_ptr(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
