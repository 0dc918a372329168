//! Whether the workers, which are another user than the master, can use a file.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{io, thread};

use nginx_sys::ngx_core_conf_t;
use tirreno_pipeline::file::lock_path;

/// The user that the workers become.
pub(crate) struct User {
    id: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl User {
    /// The directive `user`; nothing where the workers stay what the master is.
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

/// Whether `user` can write the file and rename it; or, without a user, this process.
///
/// # Errors
/// Why not.
pub(crate) fn check_file(path: &Path, user: Option<&User>) -> Result<(), String> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let check = || {
        if let Some(user) = user {
            become_user(user).map_err(|error| error.to_string())?;
        }
        access(directory, libc::W_OK | libc::X_OK).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                format!("the directory \"{}\" does not exist, make it", directory.display())
            }
            _ => format!(
                "the workers cannot write in the directory \"{}\": {error}, give it to their user",
                directory.display()
            ),
        })?;
        [path, &lock_path(path)].into_iter().try_for_each(|path| match path.symlink_metadata() {
            Ok(about) if !about.is_file() => Err(format!("\"{}\" is no file", path.display())),
            Ok(_) => access(path, libc::R_OK | libc::W_OK).map_err(|error| {
                format!("the workers cannot read and write \"{}\": {error}", path.display())
            }),
            Err(_) => Ok(()),
        })
    };
    // A thread can be another user than its process: the kernel's own check then says what the
    // workers will meet.
    thread::scope(|scope| scope.spawn(check).join())
        .unwrap_or_else(|_| Err("internal error".into()))
}

/// Makes the calling thread, and no other, that user. There is no way back.
fn become_user(user: &User) -> io::Result<()> {
    let User { id, group, groups } = user;
    // SAFETY: the system calls change this thread only, unlike glibc's functions of the same names;
    // the array has as many places as its length says.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, *group, *group, *group) == 0
            && libc::syscall(libc::SYS_setresuid, *id, *id, *id) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process, or the user that this thread has become, can use `path`.
pub(crate) fn access(path: &Path, how: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with NUL.
    match unsafe { libc::access(path.as_ptr(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
