//! System settings of all threads of the module.

use std::os::fd::RawFd;
use std::{io, mem, ptr, thread};

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// How much lower than the event loop's the collector's priority is: a ring that nobody empties drops events …
pub(crate) const NICE_COLLECTING: i32 = 5;
/// … and that of the sending threads: what waits for them is kept. Not lower, or a stopping nginx on a busy
/// machine would not send its last events in time.
pub(crate) const NICE_SENDING: i32 = 10;

/// Starts a thread with all signals blocked: they belong to nginx's main thread.
pub(crate) fn spawn(
    name: &str,
    nice: i32,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    let builder = thread::Builder::new().name(name.to_owned());
    with_signals_blocked(|| {
        builder.spawn(move || {
            lower_priority(nice);
            body();
        })
    })
}

/// Runs `f` with all signals blocked; a thread that it starts inherits that.
fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are initialized by the calls that fill them.
    unsafe {
        let mut all = mem::zeroed::<libc::sigset_t>();
        let mut before = mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        result
    }
}

/// Lowers the calling thread's priority, so that the event loop goes first on a busy machine. On Linux,
/// priorities belong to threads; the main thread, whose id is the process's, has the one of `worker_priority`.
fn lower_priority(by: i32) {
    let own = Some(rustix::thread::gettid());
    let main = Pid::from_raw(std::process::id().cast_signed());
    // Where the system forbids it, no event is lost.
    let _ = getpriority_process(main).and_then(|nice| setpriority_process(own, nice + by));
}

/// Gives the calling thread, and the threads that it starts, a table of open files of their own, without those
/// that are open now except the three standard files and `kept`. Returns whether it has one: kernels before 5.9
/// lack the call.
///
/// A thread that hangs in the kernel keeps the files of its table open, and with them their locks, even after its
/// process was killed.
pub(crate) fn own_file_table(kept: Option<RawFd>) -> bool {
    let close = |first: libc::c_uint, last: libc::c_uint| {
        // SAFETY: the thread has opened nothing yet, and its table is its own before anything is
        // closed.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_UNSHARE) }
    };
    let kept = kept.and_then(|fd| libc::c_uint::try_from(fd).ok()).filter(|fd| *fd > 3);
    let rc = match kept {
        None => close(3, libc::c_uint::MAX),
        Some(fd) => close(3, fd - 1) | close(fd + 1, libc::c_uint::MAX),
    };
    rc == 0
}

/// As [`own_file_table`], for a thread whose table is the event loop's. That saves the event loop two atomic
/// operations for each system call, and no thread can keep a connection or a listening socket open.
///
/// Of the three standard files, those in `consoles` are kept in any case.
pub(crate) fn leave_file_table(consoles: [bool; 3], kept: Option<RawFd>) {
    if !own_file_table(kept) {
        return;
    }
    // SAFETY: the descriptors are this thread's own. The structure is initialized by the call that
    // fills it.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        // nginx's standard error is its error log: after a rotation, the old file would stay open here.
        for (standard, keep) in (0..).zip(consoles) {
            let mut about = mem::zeroed::<libc::stat>();
            let is_file = libc::fstat(standard, &mut about) == 0
                && about.st_mode & libc::S_IFMT == libc::S_IFREG;
            if is_file && !keep && null >= 0 {
                libc::dup2(null, standard);
            }
        }
        libc::close(null);
    }
}
