//! The thread that keeps the state file: one of each instance of nginx, elected among its workers.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, mem};

use super::state::State;
use crate::delivery::thread::{NICE_COLLECTING, spawn};
use crate::log_queue::{Level, LogQueue, Once};
use crate::shm::zone::Zone;

/// How long a sleeping thread relies on the kernel to wake it.
const SLEEP: Duration = Duration::from_secs(60);
/// How often the shared memory is looked at: what is learned is in the file within a second.
const STEP: Duration = Duration::from_millis(700);
/// How often the file is checked for entries of other processes.
const FOLLOW: Duration = Duration::from_secs(2);
/// How long a worker that exits waits for its last step.
const LAST_STEP: Duration = Duration::from_millis(500);
/// How often a fault is logged.
const REMIND: Duration = Duration::from_secs(60);

/// The thread of one worker.
pub struct Keeper {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Control {
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Default, PartialEq)]
enum Phase {
    /// Another process keeps the file, or this one is about to become the keeper.
    #[default]
    Waiting,
    Keeping,
    /// The worker exits: one more step.
    Ending,
    Ended,
}

impl Keeper {
    /// Starts the thread. Without its file it does its work as soon as it can.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(zone: Zone, path: PathBuf, log: LogQueue) -> io::Result<Self> {
        let control = Arc::new(Control::default());
        let inner = control.clone();
        let body = move || {
            let mut keeping =
                Keeping { state: State::new(path, zone), log, fault: Once::every(REMIND) };
            inner.run(zone, &mut keeping);
            *inner.phase() = Phase::Ended;
            inner.changed.notify_all();
        };
        let thread = spawn("tirreno-state", NICE_COLLECTING, body)?;
        Ok(Self { control, thread: Some(thread) })
    }

    /// The worker exits: what it has learned goes into the file, if this process is the keeper. That takes half
    /// a second at most, whatever hangs.
    pub fn finish(mut self) {
        let mut phase = self.control.phase();
        if mem::replace(&mut *phase, Phase::Ending) == Phase::Waiting {
            // The thread sleeps on the election, and goes with the process.
            return;
        }
        self.control.changed.notify_all();
        let is_over = |phase: &mut Phase| *phase != Phase::Ended;
        let waited = self.control.changed.wait_timeout_while(phase, LAST_STEP, is_over);
        if waited.is_ok_and(|(phase, _)| *phase == Phase::Ended)
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Control {
    fn phase(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, zone: Zone, keeping: &mut Keeping) {
        let term = loop {
            if let Some(term) = zone.state_election().wait(SLEEP) {
                break term;
            }
        };
        let mut phase = self.phase();
        if *phase == Phase::Waiting {
            *phase = Phase::Keeping;
        }
        let mut last = None;
        while *phase != Phase::Ending {
            drop(phase);
            let is_due = last.is_none_or(|last: Instant| last.elapsed() >= FOLLOW);
            if is_due || keeping.state.is_stale() {
                keeping.step();
                last = Some(Instant::now());
            }
            phase = self.phase();
            if *phase != Phase::Ending {
                let waited = self.changed.wait_timeout(phase, STEP);
                phase = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        drop(phase);
        keeping.step();
        drop(term);
    }
}

struct Keeping {
    state: State,
    log: LogQueue,
    fault: Once,
}

impl Keeping {
    fn step(&mut self) {
        if let Err(error) = self.state.step()
            && self.fault.may(Instant::now())
        {
            let error = error.kind();
            self.log.log(
                Level::Warn,
                format!("\"tirreno_state\" cannot be used: {error}; sessions are not kept"),
            );
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}
