//! A file system of one directory, in memory, whose calls hang in the kernel while it is told so: no
//! signal, not even SIGKILL, gets a thread out of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags, spawn_mount,
};

/// The kernel caches nothing.
const NO_TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
const HANDLE: FileHandle = FileHandle(0);

/// A mounted disk; it is unmounted when this is dropped.
pub struct HangingDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
}

#[derive(Default)]
struct Shared {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl HangingDisk {
    /// Mounts the disk at an empty directory; `None` if this machine does not allow it.
    pub fn mount(path: &Path) -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let disk = Disk { shared: shared.clone(), files: Mutex::default() };
        let session = spawn_mount(disk, path, &Config::default());
        let session = session.inspect_err(|error| println!("no FUSE here: {error}")).ok()?;
        Some(Self { path: path.to_owned(), shared, session: Some(session) })
    }

    /// A file of that name there.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// From now on all calls hang, …
    pub fn hang(&self) {
        *lock(&self.shared.hangs) = true;
    }

    /// … until now.
    pub fn release(&self) {
        *lock(&self.shared.hangs) = false;
        self.shared.changed.notify_all();
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        self.release();
        // Lazily, because some process of a failed test may still be running.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        drop(self.session.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Disk {
    shared: Arc<Shared>,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    names: BTreeMap<OsString, u64>,
    files: BTreeMap<u64, File>,
}

struct File {
    content: Vec<u8>,
    mode: u16,
    modified: SystemTime,
}

impl Disk {
    /// The files, once nothing hangs.
    fn files(&self) -> MutexGuard<'_, Files> {
        let hangs = lock(&self.shared.hangs);
        let hangs = self.shared.changed.wait_while(hangs, |hangs| *hangs);
        drop(hangs.unwrap_or_else(PoisonError::into_inner));
        lock(&self.files)
    }
}

impl Files {
    fn about(&self, number: INodeNo) -> Option<FileAttr> {
        let (size, mode, modified, kind) = match self.files.get(&number.0) {
            Some(file) => (file.content.len(), file.mode, file.modified, FileType::RegularFile),
            None if number == INodeNo::ROOT => (0, 0o755, UNIX_EPOCH, FileType::Directory),
            None => return None,
        };
        Some(FileAttr {
            ino: number,
            size: size as u64,
            blocks: (size as u64).div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm: mode,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            flags: 0,
            blksize: 4096,
        })
    }

    fn named(&self, name: &OsStr) -> Option<FileAttr> {
        self.about(INodeNo(*self.names.get(name)?))
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.files().named(name) {
            Some(about) => reply.entry(&NO_TTL, &about, GENERATION),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.files().about(number) {
            Some(about) => reply.attr(&NO_TTL, &about),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut files = self.files();
        if let Some(file) = files.files.get_mut(&number.0) {
            file.mode = mode.map_or(file.mode, |mode| mode as u16 & 0o7777);
            if let Some(size) = size {
                file.content.resize(size as usize, 0);
            }
        }
        match files.about(number) {
            Some(about) => reply.attr(&NO_TTL, &about),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut files = self.files();
        let number = files.files.last_key_value().map_or(INodeNo::ROOT.0, |(last, _)| *last) + 1;
        let mode = (mode & !umask) as u16 & 0o7777;
        let file = File { content: Vec::new(), mode, modified: SystemTime::now() };
        files.files.insert(number, file);
        files.names.insert(name.to_owned(), number);
        match files.named(name) {
            Some(about) => {
                reply.created(&NO_TTL, &about, GENERATION, HANDLE, FopenFlags::FOPEN_DIRECT_IO);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        drop(self.files());
        reply.opened(HANDLE, FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let files = self.files();
        let content = files.files.get(&number.0).map_or(&[][..], |file| &file.content);
        let rest = content.get(offset as usize..).unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut files = self.files();
        let Some(file) = files.files.get_mut(&number.0) else { return reply.error(Errno::EBADF) };
        let (start, end) = (offset as usize, offset as usize + data.len());
        if file.content.len() < end {
            file.content.resize(end, 0);
        }
        file.content[start..end].copy_from_slice(data);
        file.modified = SystemTime::now();
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut files = self.files();
        match files.names.remove(name) {
            Some(number) => {
                files.names.insert(new.to_owned(), number);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let files = self.files();
        for (place, (name, number)) in (1..).zip(&files.names).skip(offset as usize) {
            if reply.add(INodeNo(*number), place, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}
