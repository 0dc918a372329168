//! A queue of messages for nginx's error log.
//!
//! Threads must not call nginx: they put messages into the queue, and the event loop logs them. A message
//! consists of fixed words, numbers and names from the configuration, so it is safe to log.

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

/// How many messages are kept while the event loop is busy.
const CAPACITY: usize = 256;

/// nginx's levels that the module uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Notice,
    Info,
}

/// A line for the error log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its level.
    pub level: Level,
    /// Its text, without the module's name.
    pub text: String,
}

/// The threads' end. It never blocks; messages that do not fit are counted.
#[derive(Clone, Debug)]
pub struct LogQueue {
    messages: Sender<Message>,
    lost: Arc<AtomicU64>,
    /// Wakes the event loop.
    waker: Option<RawFd>,
}

/// The event loop's end.
#[derive(Debug)]
pub struct Reader {
    messages: Receiver<Message>,
    lost: Arc<AtomicU64>,
}

/// A new queue whose reader polls.
pub fn log_queue() -> (LogQueue, Reader) {
    let (sender, receiver) = bounded(CAPACITY);
    let lost = Arc::new(AtomicU64::new(0));
    let queue = LogQueue { messages: sender, lost: lost.clone(), waker: None };
    (queue, Reader { messages: receiver, lost })
}

/// A new queue, and the descriptor that becomes readable when there is a message. The descriptor stays open as
/// long as the process, in each table of open files that its threads have.
///
/// # Errors
/// The system has no descriptor left.
pub fn waking_log_queue() -> std::io::Result<(LogQueue, Reader, RawFd)> {
    use rustix::event::{EventfdFlags, eventfd};
    let waker: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let waker = waker.into_raw_fd();
    let (mut queue, reader) = log_queue();
    queue.waker = Some(waker);
    Ok((queue, reader, waker))
}

/// Resets the descriptor of [`waking_log_queue`] until the next message.
pub fn quieten(waker: BorrowedFd<'_>) {
    // There may be nothing to read.
    let _ = rustix::io::read(waker, &mut [0; 8]);
}

impl LogQueue {
    /// Adds a message.
    pub fn log(&self, level: Level, text: impl Into<String>) {
        if self.messages.try_send(Message { level, text: text.into() }).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
        if let Some(waker) = self.waker {
            // SAFETY: it is never closed while the process lives.
            let waker = unsafe { BorrowedFd::borrow_raw(waker) };
            // The counter cannot overflow; a late reader reads all messages at once.
            let _ = rustix::io::write(waker, &1_u64.to_ne_bytes());
        }
    }
}

impl Reader {
    /// The messages since the last call.
    pub fn drain(&self) -> impl Iterator<Item = Message> + '_ {
        let lost = self.lost.swap(0, Relaxed);
        let note = (lost > 0).then(|| Message {
            level: Level::Warn,
            text: format!("{lost} messages did not fit and are lost"),
        });
        self.messages.try_iter().chain(note)
    }
}

/// Lets a recurring message through at most once in a given time.
#[derive(Clone, Copy, Debug)]
pub struct Once {
    every: Duration,
    last: Option<Instant>,
}

impl Once {
    /// At most once in `every`.
    pub const fn every(every: Duration) -> Self {
        Self { every, last: None }
    }

    /// Whether it may be said now; if so, it counts as said.
    pub fn may(&mut self, now: Instant) -> bool {
        let may = self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.every);
        if may {
            self.last = Some(now);
        }
        may
    }
}
