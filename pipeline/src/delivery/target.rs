//! A target: what takes events, on a thread of its own.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::delivery::inbox::{Inbox, Outcome};
use crate::delivery::thread::{NICE_SENDING, spawn};
use crate::log_queue::Level;
use crate::shm::zone::DropReason;

/// The pause after a failure of a target's thread.
const RESTART: Duration = Duration::from_secs(1);

/// What one type of target does with its events. Each target has a thread of its own, which alone calls
/// this: one that hangs holds up no other.
pub trait Target: Send {
    /// Delivers what comes into `inbox` until that is closed.
    fn run(&mut self, inbox: &Arc<Inbox>);
}

/// A target with its inbox, and its thread once that could be started.
pub struct Running {
    /// What it has to deliver.
    pub inbox: Arc<Inbox>,
    name: &'static str,
    /// Until the thread takes it.
    target: Arc<Mutex<Option<Box<dyn Target>>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// The target; `name` is its thread's.
    pub fn new(target: impl Target + 'static, inbox: Arc<Inbox>, name: &'static str) -> Self {
        Self { inbox, name, target: Arc::new(Mutex::new(Some(Box::new(target)))), thread: None }
    }

    /// Starts the target's thread, if it does not run yet.
    ///
    /// # Errors
    /// It cannot be started now. What comes in waits meanwhile.
    pub fn start(&mut self) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let (inbox, target) = (self.inbox.clone(), self.target.clone());
        self.thread = Some(spawn(self.name, NICE_SENDING, move || {
            let taken = target.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(mut target) = taken else { return };
            while !inbox.is_closed() {
                if catch_unwind(AssertUnwindSafe(|| target.run(&inbox))).is_err() {
                    inbox.log(Level::Error, "its thread failed and starts again");
                    // Should one of these be why, it shall not be so for ever.
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
        // One that waits for a server or a disk ends by itself, or with the process.
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
    /// Counts what a collector that failed has held.
    fn drop(&mut self) {
        self.close(DropReason::Internal, true);
    }
}
