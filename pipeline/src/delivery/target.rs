//! A target takes events on a thread of its own.

use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::delivery::inbox::{Inbox, Outcome};
use crate::delivery::thread::{NICE_SENDING, own_file_table, spawn};
use crate::log_queue::Level;
use crate::shm::zone::DropReason;

/// The pause after a failure of a target's thread.
const RESTART: Duration = Duration::from_secs(1);

/// How one type of target delivers its events. Only the target's own thread calls this, so a target that hangs
/// delays no other.
pub trait Target: Send {
    /// Delivers the events in `inbox` until it is closed.
    fn run(&mut self, inbox: &Arc<Inbox>);
}

/// A target with its inbox, and its thread once that is started.
pub struct Running {
    /// The events to deliver.
    pub inbox: Arc<Inbox>,
    name: &'static str,
    /// Whether the thread gets a table of open files of its own, and which descriptor it keeps.
    own_files: Option<Option<RawFd>>,
    /// The target until its thread takes it.
    target: Arc<Mutex<Option<Box<dyn Target>>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// The target; `name` is the name of its thread.
    pub fn new(target: impl Target + 'static, inbox: Arc<Inbox>, name: &'static str) -> Self {
        let target: Box<dyn Target> = Box::new(target);
        Self {
            inbox,
            name,
            own_files: None,
            target: Arc::new(Mutex::new(Some(target))),
            thread: None,
        }
    }

    /// The same, whose thread gets a table of open files of its own, except for the descriptor; `None`: it gets
    /// none. The target must not have opened anything.
    pub fn with_own_files(mut self, own_files: Option<Option<RawFd>>) -> Self {
        self.own_files = own_files;
        self
    }

    /// Starts the target's thread, if it does not run yet.
    ///
    /// # Errors
    /// It cannot be started now. What comes in waits meanwhile.
    pub fn start(&mut self) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (inbox, target, own_files) = (self.inbox.clone(), self.target.clone(), self.own_files);
        self.thread = Some(spawn(self.name, NICE_SENDING, move || {
            if let Some(kept) = own_files {
                own_file_table(kept);
            }
            let taken = target.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(mut target) = taken else { return };
            while !inbox.is_closed() {
                if catch_unwind(AssertUnwindSafe(|| target.run(&inbox))).is_err() {
                    inbox.log(Level::Error, "its thread failed and starts again");
                    // If one of these events caused the failure, it shall not do so for ever.
                    inbox.settle(usize::MAX, Outcome::Dropped(DropReason::Internal));
                    thread::sleep(RESTART);
                }
            }
        })?);
        Ok(())
    }

    /// Whether its thread has nothing left to do.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }

    /// Stops trying, and counts what is left.
    pub fn finish(mut self, another_follows: bool) {
        self.close(DropReason::Shutdown, another_follows);
    }

    fn close(&mut self, reason: DropReason, another_follows: bool) {
        self.inbox.close(reason, another_follows);
        let Some(thread) = self.thread.take() else { return };
        // A thread that waits for a server or a disk ends by itself, or with the process.
        let until = Instant::now() + JOIN;
        while !thread.is_finished() && Instant::now() < until {
            thread::sleep(JOIN / 20);
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

/// How long an idle thread may take to end.
const JOIN: Duration = Duration::from_millis(20);

impl Drop for Running {
    /// Counts the events of a collector that failed.
    fn drop(&mut self) {
        self.close(DropReason::Internal, true);
    }
}
