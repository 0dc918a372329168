//! A target that takes a stream of formatted records: a file, nginx's output, a server.
//!
//! A file is written by the collector, before the records' segments are freed: a deliverer that is
//! killed loses nothing, and the next one at most repeats a batch. While the file cannot be written,
//! events wait in the queue.
//!
//! Everything else has a thread, the `Sender`, that sends what is in the queue. What it has sent stays
//! there until the receiver's system confirmed it and the connection outlived that a little: it is sent
//! again when the connection breaks before.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use crate::audit::file::RotatedFile;
use crate::audit::format::{Drops, Formatter};
use crate::audit::socket::Socket;
use crate::audit::syslog::Header;
use crate::config::{AuditConfig, Sink, TargetConfig, Transport};
use crate::delivery::deliverer::{NICE_SENDING, lower_priority};
use crate::delivery::queue::{Entry, Queue};
use crate::log_queue::{Level, LogQueue, Once};
use crate::privacy::Privacy;
use crate::record::Record;
use crate::shm::zone::{DropReason, Fault, Ledger, State, Zone};

/// First pause after an attempt that failed, how it grows, and the longest.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_GROWTH: f64 = 1.5;
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest for a file: trying costs nothing.
const BACKOFF_MAX_FILE: Duration = Duration::from_secs(1);
/// The most entries written to a connection at once.
const CHUNK: usize = 64;
/// A connection outlives a confirmed entry by so much, or that is sent again: the receiver's system
/// may have confirmed what the receiver never read.
const OUTLIVES: Duration = Duration::from_millis(500);
/// How often confirmations are looked for …
const CONFIRM_POLL: Duration = Duration::from_millis(20);
/// … and whether a connection that has nothing to do is still there.
const IDLE: Duration = Duration::from_millis(250);
/// The pause after a failure of a sender's thread.
const RESTART: Duration = Duration::from_secs(1);
/// The same thing is said once in this time.
const REPEAT: Duration = Duration::from_secs(60);

/// Writes entries as the target wants them.
#[derive(Clone)]
struct Writer {
    privacy: Privacy,
    formatter: Formatter,
    frame: Frame,
}

/// What is around a record.
#[derive(Clone)]
enum Frame {
    /// Behind it, what ends it.
    Terminated(Vec<u8>),
    /// Before it, a syslog header, and on a connection before that the length (RFC 6587, 3.4.1).
    Syslog { header: Header, counted: bool },
}

impl Writer {
    fn new(privacy: &Privacy, config: &AuditConfig) -> Self {
        let formatter = Formatter::new(&config.format);
        let frame = match &config.sink {
            Sink::Syslog(syslog) => Frame::Syslog {
                header: Header::new(&syslog.header),
                counted: !matches!(syslog.server.transport, Transport::Datagram),
            },
            Sink::Tcp(_) if config.format.is_gelf() => Frame::Terminated(b"\0".to_vec()),
            _ => Frame::Terminated(formatter.terminator().to_vec()),
        };
        Self { privacy: privacy.clone(), formatter, frame }
    }

    fn entry(&self, entry: &Entry, out: &mut Vec<u8>) {
        match entry {
            Entry::Record(bytes) => {
                if let Some(record) = Record::parse(bytes) {
                    self.record(&record, out);
                }
            }
            Entry::Drops(drops) => self.framed(
                out,
                |header, out| header.drops(&self.formatter.drop_fields(drops), out),
                |formatter, out| formatter.drops(drops, out),
            ),
        }
    }

    fn record(&self, record: &Record<'_>, out: &mut Vec<u8>) {
        let view = self.privacy.view(*record);
        self.framed(
            out,
            |header, out| header.record(record, &self.formatter.fields(&view), out),
            |formatter, out| formatter.record(&view, out),
        );
    }

    fn framed(
        &self,
        out: &mut Vec<u8>,
        header_into: impl Fn(&Header, &mut Vec<u8>),
        body_into: impl Fn(&Formatter, &mut Vec<u8>),
    ) {
        match &self.frame {
            Frame::Terminated(terminator) => {
                body_into(&self.formatter, out);
                out.extend_from_slice(terminator);
            }
            Frame::Syslog { header, counted } => {
                let mut message = Vec::with_capacity(1024);
                header_into(header, &mut message);
                body_into(&self.formatter, &mut message);
                if *counted {
                    out.extend_from_slice(format!("{} ", message.len()).as_bytes());
                }
                out.append(&mut message);
            }
        }
    }
}

/// When the next attempt is due, after some that failed.
struct Backoff {
    until: Option<Instant>,
    length: Duration,
    most: Duration,
}

impl Backoff {
    fn new(most: Duration) -> Self {
        Self { until: None, length: BACKOFF, most }
    }

    fn failed(&mut self, now: Instant) {
        // Not all that lost a server come back at once.
        let jitter = 0.75 + 0.5 * fastrand::f64();
        self.until = Some(now + self.length.mul_f64(jitter).min(self.most));
        self.length = self.length.mul_f64(BACKOFF_GROWTH).min(self.most);
    }

    fn succeeded(&mut self) {
        *self = Self::new(self.most);
    }

    fn is_longest(&self) -> bool {
        self.length == self.most
    }

    fn left(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

/// What the collector and the sender's thread share.
struct Shared {
    state: Mutex<Waiting>,
    changed: Condvar,
    ledger: Ledger,
    slot: usize,
    label: String,
    log: LogQueue,
}

struct Waiting {
    queue: Queue,
    /// When the target gives up, once it stops.
    deadline: Option<Instant>,
    /// What is left is counted as dropped.
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        // The state is valid after each statement, also where a thread panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, at most `limit`.
    fn wait(&self, limit: Duration) {
        let state = self.state();
        if !state.closed {
            let _ = self.changed.wait_timeout(state, limit);
        }
    }

    fn goes_on(&self) -> bool {
        let state = self.state();
        !state.closed && state.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    fn is_stopping(&self) -> bool {
        self.state().deadline.is_some()
    }

    /// The first `count` entries that were taken are done with.
    fn settle(&self, count: usize, count_events: impl Fn(&Ledger, usize, u32)) {
        let mut state = self.state();
        if !state.closed {
            let events = state.queue.settle(count);
            count_events(&self.ledger, self.slot, events);
        }
    }

    /// Queues a record of what was dropped, if there is room for events again.
    fn report_drops(&self, queue: &mut Queue) {
        if queue.has_room()
            && let Some(drops) = self.ledger.take_unreported(self.slot)
        {
            queue.report(drops);
        }
    }

    fn log(&self, level: Level, text: &str) {
        self.log.log(level, format!("{}: {text}", self.label));
    }
}

/// Says and shows how it goes.
struct Health {
    in_trouble: bool,
    said: Option<(Fault, Once)>,
}

impl Health {
    fn new() -> Self {
        Self { in_trouble: false, said: None }
    }

    fn failed(&mut self, shared: &Shared, fault: Fault, now: Instant) {
        self.in_trouble = true;
        shared.ledger.show(shared.slot, State::Retrying, Some(fault));
        shared.ledger.retry(shared.slot);
        self.say(shared, fault, "events are kept in memory while it lasts", now);
    }

    fn rejected(&mut self, shared: &Shared, fault: Fault, now: Instant) {
        shared.ledger.show(shared.slot, State::Ok, Some(fault));
        self.say(shared, fault, "this event is set aside", now);
    }

    fn say(&mut self, shared: &Shared, fault: Fault, note: &str, now: Instant) {
        if self.said.is_none_or(|(before, _)| before != fault) {
            self.said = Some((fault, Once::every(REPEAT)));
        }
        if self.said.as_mut().is_some_and(|(_, once)| once.may(now)) {
            shared.log(Level::Error, &format!("{fault}; {note}"));
        }
    }

    fn succeeded(&mut self, shared: &Shared) {
        if mem::take(&mut self.in_trouble) {
            self.said = None;
            shared.ledger.show(shared.slot, State::Ok, None);
            shared.log(Level::Notice, "it works again");
        }
    }
}

/// The collector's side of a stream target.
pub struct Stream {
    config: TargetConfig,
    shared: Arc<Shared>,
    outlet: Outlet,
    zone: Zone,
    reported: [u64; DropReason::ALL.len()],
}

enum Outlet {
    /// Written by the collector.
    File(Box<FileOutlet>),
    /// Written by a thread.
    Thread(Option<JoinHandle<()>>),
}

struct FileOutlet {
    file: RotatedFile,
    writer: Writer,
    backoff: Backoff,
    health: Health,
    lines: Vec<u8>,
}

impl FileOutlet {
    /// Appends what `fill` writes, as a whole or not at all.
    fn append(&mut self, shared: &Shared, fill: impl FnOnce(&Writer, &mut Vec<u8>)) -> bool {
        self.lines.clear();
        fill(&self.writer, &mut self.lines);
        match self.file.append(&self.lines) {
            Ok(()) => {
                self.backoff.succeeded();
                self.health.succeeded(shared);
                true
            }
            Err(error) => {
                let now = Instant::now();
                // Another process that writes is no trouble, unless it does not end.
                if error.kind() != io::ErrorKind::ResourceBusy || self.backoff.is_longest() {
                    self.health.failed(shared, error.into(), now);
                }
                self.backoff.failed(now);
                false
            }
        }
    }
}

impl Stream {
    /// Starts the target. `reported` are the drops that were logged before.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        config: &TargetConfig,
        stream: &AuditConfig,
        (zone, ledger): (Zone, Ledger),
        reported: [u64; DropReason::ALL.len()],
        log: &LogQueue,
    ) -> io::Result<Self> {
        let place = match &stream.sink {
            Sink::File(file) => file.path.display().to_string(),
            Sink::Console(_) => "console".into(),
            Sink::Syslog(syslog) => syslog.server.address.to_string(),
            Sink::Tcp(server) => server.address.to_string(),
        };
        let label = format!("target \"{}\" {place}", config.name);
        let shared = Arc::new(Shared {
            state: Mutex::new(Waiting {
                queue: Queue::new(config.queue_events, config.queue_bytes),
                deadline: None,
                closed: false,
            }),
            changed: Condvar::new(),
            ledger,
            slot: config.slot,
            label,
            log: log.clone(),
        });
        let writer = Writer::new(&config.privacy, stream);
        let outlet = match &stream.sink {
            Sink::File(file) => {
                let file = RotatedFile::start(file, &shared.label, log)?;
                let (backoff, health) = (Backoff::new(BACKOFF_MAX_FILE), Health::new());
                Outlet::File(Box::new(FileOutlet {
                    file,
                    writer,
                    backoff,
                    health,
                    lines: Vec::new(),
                }))
            }
            sink => {
                let sender = Sender::new(shared.clone(), sink.clone(), writer);
                let thread = thread::Builder::new().name("tirreno-stream".into());
                Outlet::Thread(Some(thread.spawn(move || sender.run())?))
            }
        };
        ledger.show(config.slot, State::Ok, None);
        Ok(Self { config: config.clone(), shared, outlet, zone, reported })
    }

    /// Its account in the zone.
    pub fn slot(&self) -> usize {
        self.config.slot
    }

    /// Writes this target's part of a batch, if that is the collector's to do and nothing waits before
    /// it; else the events are the caller's: `false`.
    pub fn write(&mut self, batch: &[Record<'_>]) -> bool {
        let Outlet::File(outlet) = &mut self.outlet else { return false };
        let state = self.shared.state();
        if !state.queue.is_empty() || !outlet.backoff.left(Instant::now()).is_zero() {
            return false;
        }
        drop(state);
        let ours = batch.iter().filter(|record| record.targets() & (1 << self.config.slot) != 0);
        let mut ours = ours.peekable();
        ours.peek().is_none()
            || outlet.append(&self.shared, |writer, lines| {
                ours.for_each(|record| writer.record(record, lines));
            })
    }

    /// Queues a record that was counted as collected, or drops it, counted.
    pub fn offer(&mut self, bytes: &Arc<[u8]>, record: &Record<'_>) {
        let Shared { ledger, slot, .. } = *self.shared;
        let queue = &mut self.shared.state().queue;
        self.shared.report_drops(queue);
        if !queue.offer(bytes, record) {
            ledger.dropped(slot, 1, DropReason::QueueFull);
            ledger.leave_unreported(slot, &Drops::one(record.time_ms()));
        }
    }

    /// Moves on what waits.
    pub fn feed(&mut self) {
        let mut state = self.shared.state();
        self.shared.report_drops(&mut state.queue);
        if !state.queue.has_new() {
            return;
        }
        drop(state);
        match &mut self.outlet {
            Outlet::Thread(_) => self.shared.changed.notify_all(),
            Outlet::File(outlet) => {
                while outlet.backoff.left(Instant::now()).is_zero() {
                    let entries = self.shared.state().queue.take(self.config.batch_size);
                    if entries.is_empty() {
                        return;
                    }
                    let written = outlet.append(&self.shared, |writer, lines| {
                        entries.iter().for_each(|entry| writer.entry(entry, lines));
                    });
                    if written {
                        self.shared.settle(entries.len(), Ledger::delivered);
                    } else {
                        self.shared.state().queue.put_back();
                    }
                }
            }
        }
    }

    /// Shows and says what is due; once a second.
    pub fn tick(&mut self) {
        let oldest = self.shared.state().queue.oldest_ms();
        self.shared.ledger.show_oldest(self.config.slot, oldest);
        self.report_drops();
    }

    fn report_drops(&mut self) {
        let totals = self.zone.totals(self.config.slot);
        for reason in DropReason::ALL {
            let place = reason as usize;
            let new = totals.dropped[place].saturating_sub(self.reported[place]);
            // Who shuts down says so itself.
            if new > 0 && reason != DropReason::Shutdown {
                let (why, total) = (reason.text(), totals.all_dropped());
                let text = format!("{new} events dropped, {why}; {total} in total");
                self.shared.log(Level::Error, &text);
            }
        }
        self.reported = totals.dropped;
    }

    /// No event comes any more; what is held is tried until `deadline`.
    pub fn stop(&mut self, deadline: Instant) {
        self.shared.state().deadline = Some(deadline);
        if let Outlet::File(outlet) = &mut self.outlet {
            outlet.backoff.succeeded();
        }
        self.shared.changed.notify_all();
    }

    /// Whether nothing is left to be tried.
    pub fn is_done(&mut self) -> bool {
        self.feed();
        let mut state = self.shared.state();
        // There may be room since then.
        self.shared.report_drops(&mut state.queue);
        state.queue.is_empty()
    }

    /// Counts what is left as dropped.
    pub fn finish(mut self) {
        let rest = self.close(DropReason::Shutdown);
        if rest > 0 {
            let why = DropReason::Shutdown.text();
            let text = format!("{rest} events could not be delivered, {why}; dropped");
            self.shared.log(Level::Error, &text);
        }
        self.report_drops();
    }

    /// How long a stopping process tries to deliver what it holds.
    pub fn shutdown_timeout(&self) -> Duration {
        self.config.shutdown_timeout
    }

    fn close(&mut self, reason: DropReason) -> u32 {
        let (ledger, slot) = (self.shared.ledger, self.config.slot);
        let mut state = self.shared.state();
        if mem::replace(&mut state.closed, true) {
            return 0;
        }
        let rest = ledger.holds(slot);
        ledger.dropped(slot, rest, reason);
        if let Some(drops) = state.queue.left() {
            ledger.leave_unreported(slot, &drops);
        }
        ledger.show_oldest(slot, 0);
        drop(state);
        self.shared.changed.notify_all();
        // One that waits for a server ends by itself, within a moment or with the process.
        if let Outlet::Thread(thread) = &mut self.outlet
            && let Some(thread) = thread.take_if(|thread| thread.is_finished())
        {
            let _ = thread.join();
        }
        rest
    }
}

impl Drop for Stream {
    /// Counts what a deliverer that failed has held.
    fn drop(&mut self) {
        self.close(DropReason::Internal);
    }
}

/// Entries that were sent and may still be lost.
struct Sent {
    entries: usize,
    /// What the socket has sent behind them.
    end: u64,
    /// Since when they are confirmed.
    confirmed: Option<Instant>,
}

/// The thread of a target that is no file.
struct Sender {
    shared: Arc<Shared>,
    sink: Sink,
    writer: Writer,
    backoff: Backoff,
    health: Health,
}

impl Sender {
    fn new(shared: Arc<Shared>, sink: Sink, writer: Writer) -> Self {
        Self { shared, sink, writer, backoff: Backoff::new(BACKOFF_MAX), health: Health::new() }
    }

    /// Sends until the target is closed.
    fn run(mut self) {
        lower_priority(NICE_SENDING);
        while !self.shared.state().closed {
            match catch_unwind(AssertUnwindSafe(|| self.send_all())) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => self.pause(fault),
                Err(_) => {
                    self.shared.log(Level::Error, "its thread failed and starts again");
                    // Should one of these be why, it shall not be so for ever.
                    self.shared.settle(usize::MAX, |ledger, slot, events| {
                        ledger.dropped(slot, events, DropReason::Internal);
                    });
                    thread::sleep(RESTART);
                }
            }
        }
    }

    fn pause(&mut self, fault: Fault) {
        let now = Instant::now();
        self.backoff.failed(now);
        self.health.failed(&self.shared, fault, now);
        let was_stopping = self.shared.is_stopping();
        loop {
            let left = self.backoff.left(Instant::now());
            // A process that stops has one more attempt at once.
            let is_over = left.is_zero() || self.shared.is_stopping() && !was_stopping;
            if is_over || self.shared.state().closed {
                return;
            }
            self.shared.wait(left.min(IDLE));
        }
    }

    /// Sends over one connection, for as long as that lasts.
    fn send_all(&mut self) -> Result<(), Fault> {
        self.shared.state().queue.put_back();
        let shared = self.shared.clone();
        let go_on = || shared.goes_on();
        // A connection is opened when there is something to send.
        while !shared.state().queue.has_new() {
            if shared.state().closed {
                return Ok(());
            }
            shared.wait(IDLE);
        }
        let mut socket = match &self.sink {
            Sink::Console(console) => Socket::console(*console),
            Sink::Syslog(syslog) => Socket::server(&syslog.server, &go_on),
            Sink::Tcp(server) => Socket::server(server, &go_on),
            // The collector writes it.
            Sink::File(_) => return Ok(()),
        }?;
        let most = if socket.takes_one() { 1 } else { CHUNK };
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let mut bytes = Vec::new();
        while !shared.state().closed {
            match self.settle(&mut socket, &mut sent) {
                Ok(()) => {}
                // A server may close a connection that has nothing to do.
                Err(_) if sent.is_empty() && !shared.state().queue.has_new() => return Ok(()),
                Err(fault) => return Err(fault),
            }
            let entries = shared.state().queue.take(most);
            if entries.is_empty() {
                shared.wait(if sent.is_empty() { IDLE } else { CONFIRM_POLL });
                continue;
            }
            bytes.clear();
            entries.iter().for_each(|entry| self.writer.entry(entry, &mut bytes));
            match socket.write(&bytes, &go_on) {
                Ok(()) => {}
                Err(Fault::TooLong) if socket.takes_one() => {
                    self.health.rejected(&shared, Fault::TooLong, Instant::now());
                    shared.settle(1, Ledger::rejected);
                    continue;
                }
                Err(fault) => return Err(fault),
            }
            if socket.takes_one() {
                self.settled(1);
            } else {
                sent.push_back(Sent {
                    entries: entries.len(),
                    end: socket.sent(),
                    confirmed: None,
                });
            }
        }
        Ok(())
    }

    /// Counts what is confirmed as delivered.
    fn settle(&mut self, socket: &mut Socket, sent: &mut VecDeque<Sent>) -> Result<(), Fault> {
        if socket.takes_one() {
            return Ok(());
        }
        let confirmed = socket.confirmed()?;
        let now = Instant::now();
        for chunk in sent.iter_mut().filter(|chunk| chunk.end <= confirmed) {
            chunk.confirmed.get_or_insert(now);
        }
        // A stopping process has no time to see what becomes of the connection.
        let outlives = if self.shared.is_stopping() { Duration::ZERO } else { OUTLIVES };
        while let Some(chunk) = sent.front()
            && chunk.confirmed.is_some_and(|since| now - since >= outlives)
        {
            self.settled(chunk.entries);
            sent.pop_front();
        }
        Ok(())
    }

    /// So many entries are delivered. Only this tells that it works: a receiver that takes what it is
    /// sent and closes shall not get it over and over without a pause.
    fn settled(&mut self, entries: usize) {
        self.shared.settle(entries, Ledger::delivered);
        self.backoff.succeeded();
        self.health.succeeded(&self.shared);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;
    use crate::audit::format::FormatConfig;
    use crate::capture::level::Routing;
    use crate::config::{Address, Destination, FileConfig, ServerConfig};
    use crate::event::EventType;
    use crate::log_queue::log_queue;
    use crate::record::Capture;
    use crate::shm::zone::anonymous;

    fn start(zone: Zone, sink: Sink) -> Stream {
        let stream = AuditConfig { format: FormatConfig::parse("json", &[]).unwrap(), sink };
        let config = TargetConfig {
            name: "t".into(),
            slot: zone.target_slot("t").unwrap(),
            events: Routing::ALL,
            queue_events: 10,
            queue_bytes: 1 << 20,
            interval: Duration::ZERO,
            batch_size: 64,
            shutdown_timeout: Duration::ZERO,
            spool: None,
            privacy: Privacy::default(),
            destination: Destination::Audit(stream.clone()),
        };
        let ledger = zone.enlist(std::process::id()).unwrap();
        Stream::start(&config, &stream, (zone, ledger), Default::default(), &log_queue().0).unwrap()
    }

    fn offer(stream: &mut Stream, times: impl Iterator<Item = i64>) {
        for time in times {
            let mut capture = Capture::new(time);
            capture.kind = EventType::PageView;
            let mut bytes = vec![0; capture.record_len()];
            capture.write(1 << stream.slot(), &mut bytes);
            stream.shared.ledger.collected(stream.slot(), 1);
            stream.offer(&bytes.clone().into(), &Record::parse(&bytes).unwrap());
        }
    }

    fn file(path: &Path) -> Sink {
        Sink::File(FileConfig { path: path.into(), ..FileConfig::default() })
    }

    #[test]
    fn the_next_deliverer_reports_what_was_dropped() {
        let zone = anonymous(1 << 20).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut first = start(zone, file(&dir.path().join("none").join("audit.log")));
        // Eight wait for ever, two find no room.
        offer(&mut first, 1..=10);
        first.feed();
        first.finish();
        let path = dir.path().join("audit.log");
        let mut next = start(zone, file(&path));
        assert!(next.is_done());
        let text = std::fs::read_to_string(&path).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).expect("one record");
        assert_eq!(record["dropped"], 10);
        assert_eq!(record["dropped_first"], "1970-01-01T00:00:00.001Z");
        assert_eq!(record["dropped_last"], "1970-01-01T00:00:00.010Z");
        assert_eq!(zone.totals(next.slot()).all_dropped(), 10);
    }

    #[test]
    fn a_receiver_that_takes_and_closes_is_left_in_peace() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = ServerConfig {
            address: Address::Host("127.0.0.1".into(), port),
            transport: Transport::Tcp,
        };
        let mut stream = start(anonymous(1 << 20).unwrap(), Sink::Tcp(server));
        offer(&mut stream, 1..=1);
        stream.feed();
        let since = Instant::now();
        for _ in 0..6 {
            let (mut connection, _) = listener.accept().unwrap();
            assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
        }
        // Five pauses, each longer than the one before, by 25 % shorter at the most.
        let least: Duration = (0..5).map(|n| BACKOFF.mul_f64(0.75 * BACKOFF_GROWTH.powi(n))).sum();
        assert!(since.elapsed() >= least, "{:?}", since.elapsed());
    }
}
