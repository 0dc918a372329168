//! What one worker process owns: its end of the ring, its threads, and the queue by which the threads' messages
//! reach the error log.
//!
//! Nothing wakes an idle worker. A thread that leaves a message writes to a descriptor that the event
//! loop watches; that descriptor's connection counts as idle, so that nginx itself calls its handler
//! when the worker is to exit. A timer runs only while there is something to do by the clock.

use core::{mem, ptr};
use std::cell::RefCell;
use std::os::fd::{BorrowedFd, RawFd};
use std::panic;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nginx_sys::{
    NGX_CMD_TERMINATE, NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, NGX_OK,
    NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_channel, ngx_close_connection, ngx_connection_t,
    ngx_cycle_t, ngx_event_actions, ngx_event_t, ngx_exiting, ngx_free_connection,
    ngx_get_connection, ngx_int_t, ngx_log_t, ngx_msec_t, ngx_process, ngx_socket_t, ngx_terminate,
    ngx_uint_t,
};
use ngx::log::ngx_cycle_log;
use ngx::ngx_log_error;
use tirreno_pipeline::delivery::deliverer::{self, Deliverer, Setup};
use tirreno_pipeline::identity::keeper::Keeper;
use tirreno_pipeline::log_queue::{
    Level, LogQueue, Once, Reader, log_queue, quieten, waking_log_queue,
};
use tirreno_pipeline::record::{Capture, TRACE_LEN};
use tirreno_pipeline::shm::ring::{Producer, PushError};

use crate::conf::MainConf;
use crate::guarded;
use crate::timer::Timer;

/// How long a line about invalid requests waits for more of them, in milliseconds; and how often messages are
/// polled if the event loop cannot watch the descriptor.
const TICK: ngx_msec_t = 250;
/// The minimum time between two lines about clients that claim to be somebody else.
const MISMATCH_NOTE: Duration = Duration::from_secs(60);
/// How long a line that is logged at most once a minute waits, in milliseconds.
const LATER: ngx_msec_t = 1000;
/// The pause before the next try to start a thread, in milliseconds.
const RESTART: ngx_msec_t = 1000;
/// The time that is left after SIGTERM: the master kills its workers after 1.5 s.
const TERM_LIMIT: Duration = Duration::from_secs(1);
/// nginx's `NGX_READ_EVENT` on Linux, which is a macro.
const READ_EVENT: ngx_int_t = (libc::EPOLLIN | libc::EPOLLRDHUP) as ngx_int_t;

/// What this process owns; only the event loop uses it.
struct Worker {
    producer: Producer,
    setup: Setup,
    /// `None` while its thread cannot be started: other workers collect what this one captures.
    deliverer: Option<Deliverer>,
    messages: Reader,
    /// The connection through which messages wake the event loop.
    waker: Option<ptr::NonNull<ngx_connection_t>>,
    trace: TraceIds,
    /// Invalid requests since the last line about them.
    invalid: u64,
    /// Requests whose client claims to be somebody else, and those that a dry run would decide otherwise, since
    /// the last line about them; and when the next line may follow.
    mismatches: [u64; 2],
    mismatch_note: Once,
    /// Keeps the state file.
    keeper: Option<Keeper>,
    timer: Timer,
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// The log for the panic hook, which may run in any thread.
static LOG_QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Starts what a worker needs; other processes (cache manager, `nginx -s`) get nothing.
pub(crate) fn start(cycle: &ngx_cycle_t, main: &MainConf) {
    // SAFETY: nginx sets it before it calls modules.
    let process = unsafe { ngx_process } as u32;
    let (Some(zone), Some(targets)) = (main.zone, &main.running) else { return };
    if !matches!(process, NGX_PROCESS_WORKER | NGX_PROCESS_SINGLE) || targets.is_empty() {
        return;
    }
    make_system_calls_cheap();
    let (log, messages, descriptor) = match waking_log_queue() {
        Ok((log, messages, descriptor)) => (log, messages, Some(descriptor)),
        Err(_) => {
            let (log, messages) = log_queue();
            (log, messages, None)
        }
    };
    hook_panics(&log);
    let keeper = main.state_file.as_ref().and_then(|file| {
        let keeper = Keeper::start(zone, file.clone(), log.clone());
        keeper.map_err(|error| thread_failed(cycle.log, &error)).ok()
    });
    let own_files = Some(descriptor);
    let setup = Setup { zone, targets: targets.clone(), log, connect: None, own_files };
    let mut worker = Worker {
        producer: Producer::new(zone, std::process::id()),
        setup,
        deliverer: None,
        messages,
        waker: descriptor.and_then(|descriptor| watch(descriptor, cycle.log)),
        trace: TraceIds::new(),
        invalid: 0,
        mismatches: [0; 2],
        mismatch_note: Once::every(MISMATCH_NOTE),
        keeper,
        timer: Timer::new(on_timer, cycle.log),
    };
    worker.start_thread(cycle.log);
    worker.set_timer();
    WORKER.set(Some(worker));
}

/// Makes the event loop watch the descriptor. `None` if no connection is free.
fn watch(descriptor: RawFd, log: *mut ngx_log_t) -> Option<ptr::NonNull<ngx_connection_t>> {
    // SAFETY: called in the event loop of a process whose connections are set up; nginx returns a
    // connection whose events are valid, or null.
    unsafe {
        let connection = ptr::NonNull::new(ngx_get_connection(descriptor, log))?;
        let c = connection.as_ptr();
        (*c).log = log;
        // nginx calls the handler of an idle connection when the worker is to exit.
        (*c).set_idle(1);
        let read = (*c).read;
        (*read).handler = Some(on_message);
        (*read).log = log;
        (*(*c).write).log = log;
        let add = ngx_event_actions.add;
        if add.is_some_and(|add| add(read, READ_EVENT, 0) == NGX_OK as ngx_int_t) {
            return Some(connection);
        }
        ngx_free_connection(c);
        None
    }
}

/// In a process with threads, glibc before 2.41 switches the caller of each blocking system call to cancellable
/// and back: two atomic operations, 0.3 µs a request. Nothing ever cancels nginx's main thread, so it can stay
/// cancellable.
fn make_system_calls_cheap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PTHREAD_CANCEL_ASYNCHRONOUS: core::ffi::c_int = 1;
        unsafe extern "C" {
            fn pthread_setcanceltype(
                kind: core::ffi::c_int,
                before: *mut core::ffi::c_int,
            ) -> core::ffi::c_int;
        }
        // SAFETY: glibc takes null for the place of the former type; only this thread is affected.
        unsafe { pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, ptr::null_mut()) };
    }
}

/// The process exits: delivers what is only in memory, and logs the rest.
pub(crate) fn stop(cycle: &ngx_cycle_t) {
    let Some(mut worker) = WORKER.take() else { return };
    worker.timer.cancel();
    worker.log_messages(cycle.log);
    if let Some(keeper) = worker.keeper.take() {
        keeper.finish();
    }
    match worker.deliverer.take() {
        Some(deliverer) => {
            deliverer.finish(|| is_terminated(cycle.log).then_some(TERM_LIMIT));
        }
        None => deliverer::give_up(&worker.setup),
    }
    log_all(&worker.messages, cycle.log);
    if let Some(waker) = worker.waker.take() {
        // SAFETY: nginx's own, which nobody else closes.
        unsafe { ngx_close_connection(waker.as_ptr()) };
    }
}

/// nginx's `ngx_channel_t`, which its bindings lack.
#[repr(C)]
struct Channel {
    command: ngx_uint_t,
    pid: libc::pid_t,
    slot: ngx_int_t,
    fd: RawFd,
}

unsafe extern "C" {
    fn ngx_read_channel(
        socket: ngx_socket_t,
        channel: *mut Channel,
        size: usize,
        log: *mut ngx_log_t,
    ) -> ngx_int_t;
}

/// Whether this process, whose event loop has ended, shall exit at once. A master that gets SIGTERM does not
/// signal its workers, but writes to their channels.
fn is_terminated(log: *mut ngx_log_t) -> bool {
    // SAFETY: nginx's own, which its signal handler and its event loop set, in this thread. The channel
    // of a worker does not block, and is open until the process ends.
    unsafe {
        if ngx_process as u32 == NGX_PROCESS_WORKER {
            let mut message = mem::zeroed::<Channel>();
            let size = mem::size_of::<Channel>();
            while ngx_read_channel(ngx_channel, &mut message, size, log) > 0 {
                if message.command == NGX_CMD_TERMINATE as ngx_uint_t {
                    ngx_terminate = 1;
                }
            }
        }
        ptr::addr_of!(ngx_terminate).read_volatile() != 0
    }
}

/// Writes a record into this worker's ring; `None` if this process has no ring.
pub(crate) fn push(event: &Capture<'_>) -> Option<Result<(), PushError>> {
    with_worker(|worker| worker.producer.push(event))
}

/// Counts an invalid request; the next messages mention it.
pub(crate) fn note_invalid() {
    with_worker(|worker| {
        worker.invalid += 1;
        worker.set_timer();
    });
}

/// Why a request's user differs from the one whom the client names.
#[derive(Clone, Copy)]
pub(crate) enum Mismatch {
    /// The session belongs to somebody else.
    Claim,
    /// `tirreno_verify` would reject the claim if it were no dry run.
    DryRun,
}

/// Counts a request whose user differs from the one whom the client names; the log tells at most once a minute.
pub(crate) fn note_mismatch(mismatch: Mismatch) {
    with_worker(|worker| {
        worker.mismatches[mismatch as usize] += 1;
        worker.set_timer();
    });
}

pub(crate) fn thread_failed(log: *mut ngx_log_t, error: &std::io::Error) {
    ngx_log_error!(NGX_LOG_ERR, log, "tirreno: a thread cannot be started: {error}");
}

/// Whether this process has a ring: helper processes have none.
pub(crate) fn is_ready() -> bool {
    WORKER.with_borrow(Option::is_some)
}

/// A trace id that no other request of any process has.
pub(crate) fn next_trace_id() -> [u8; TRACE_LEN] {
    with_worker(|worker| worker.trace.next()).unwrap_or([b'0'; TRACE_LEN])
}

fn with_worker<T>(f: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with_borrow_mut(|worker| worker.as_mut().map(f))
}

unsafe extern "C" fn on_timer(_event: *mut ngx_event_t) {
    guarded((), || {
        with_worker(|worker| {
            worker.look();
            worker.start_thread(ngx_cycle_log().as_ptr());
            worker.set_timer();
        });
    });
}

/// Called when a thread left a message, or the worker is to exit.
unsafe extern "C" fn on_message(event: *mut ngx_event_t) {
    guarded((), || {
        // SAFETY: nginx passes the event of the connection that `watch` made, whose descriptor is open.
        quieten(unsafe { BorrowedFd::borrow_raw((*(*event).data.cast::<ngx_connection_t>()).fd) });
        with_worker(Worker::look);
    });
}

impl Worker {
    /// Logs messages, and checks whether nginx wants the process to exit.
    fn look(&mut self) {
        self.log_messages(ngx_cycle_log().as_ptr());
        // SAFETY: nginx's own flag, read in its event loop.
        if unsafe { ngx_exiting } != 0
            && let Some(deliverer) = &self.deliverer
        {
            deliverer.exiting();
        }
    }

    /// Starts the thread, if it does not run yet.
    fn start_thread(&mut self, log: *mut ngx_log_t) {
        if self.deliverer.is_some() {
            return;
        }
        match Deliverer::start(self.setup.clone()) {
            Ok(deliverer) => self.deliverer = Some(deliverer),
            Err(error) => {
                ngx_log_error!(
                    NGX_LOG_ERR,
                    log,
                    "tirreno: a thread cannot be started: {error}; events are captured, another \
                     worker delivers them; trying again"
                );
            }
        }
    }

    /// Sets the timer if something is due later.
    fn set_timer(&mut self) {
        let pause = match &self.deliverer {
            None => RESTART,
            Some(_) if self.waker.is_none() || self.invalid > 0 => TICK,
            Some(_) if self.mismatches != [0; 2] => LATER,
            Some(_) => return,
        };
        self.timer.set(pause);
    }

    fn log_messages(&mut self, log: *mut ngx_log_t) {
        let invalid = mem::take(&mut self.invalid);
        if invalid > 0 {
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "tirreno: {invalid} events were captured without a value that must not be cut and is \
                 too long"
            );
        }
        if self.mismatches != [0; 2] && self.mismatch_note.may(Instant::now()) {
            let [claims, dry] = mem::take(&mut self.mismatches);
            if claims > 0 {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    log,
                    "tirreno: {claims} requests claimed to be of another user than their session's"
                );
            }
            if dry > 0 {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    log,
                    "tirreno: {dry} requests would have another user, or none, without \"dry_run\" \
                     in \"tirreno_verify\""
                );
            }
        }
        log_all(&self.messages, log);
    }
}

fn log_all(messages: &Reader, log: *mut ngx_log_t) {
    for message in messages.drain() {
        let level = match message.level {
            Level::Error => NGX_LOG_ERR,
            Level::Warn => NGX_LOG_WARN,
            Level::Notice => NGX_LOG_NOTICE,
            Level::Info => NGX_LOG_INFO,
        };
        ngx_log_error!(level, log, "tirreno: {}", message.text);
    }
}

/// A panic's message may hold a client's bytes: only its place is logged.
fn hook_panics(log: &LogQueue) {
    if LOG_QUEUE.set(log.clone()).is_err() {
        return;
    }
    panic::set_hook(Box::new(|info| {
        let place = info.location().map_or_else(String::new, |l| format!(" at {l}"));
        if let Some(log) = LOG_QUEUE.get() {
            log.log(Level::Error, format!("internal error{place}"));
        }
    }));
}

/// Trace ids: 16 digits of a random seed for the process, and 16 of a counter.
struct TraceIds {
    seed: [u8; TRACE_LEN / 2],
    next: u64,
}

impl TraceIds {
    fn new() -> Self {
        let mut bytes = [0u8; 16];
        // SAFETY: the buffer has that length. Up to 256 bytes are never given in parts.
        let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        let [seed, next] = if len == bytes.len() as isize {
            let (a, b) = bytes.split_at(8);
            [a, b].map(|half| half.try_into().map_or(0, u64::from_ne_bytes))
        } else {
            use std::hash::{BuildHasher, RandomState};
            [RandomState::new().hash_one(0u64), RandomState::new().hash_one(1u64)]
        };
        Self { seed: hex(seed), next }
    }

    fn next(&mut self) -> [u8; TRACE_LEN] {
        self.next = self.next.wrapping_add(1);
        let mut id = [0; TRACE_LEN];
        let (seed, count) = id.split_at_mut(TRACE_LEN / 2);
        seed.copy_from_slice(&self.seed);
        count.copy_from_slice(&hex(self.next));
        id
    }
}

fn hex(number: u64) -> [u8; TRACE_LEN / 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|i| DIGITS[(number >> (60 - 4 * i)) as usize & 15])
}
