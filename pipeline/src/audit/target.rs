//! A target that takes a stream of formatted records: a file, nginx's output, a server.
//!
//! The ring keeps records for a file until they are written: a killed process loses nothing, and the next one
//! repeats a batch at most.
//!
//! Records for other receivers stay in the inbox until the receiver's system has confirmed them and the
//! connection has lasted a little longer: if it breaks before, they are sent again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audit::config::{AuditConfig, Framing, Sink};
use crate::audit::file::RotatedFile;
use crate::audit::format::{Drops, Formatter, Length};
use crate::audit::socket::{STALLED, Socket};
use crate::audit::syslog::Header;
use crate::config::TargetConfig;
use crate::delivery::backoff::Backoff;
use crate::delivery::health::Health;
use crate::delivery::inbox::{Inbox, Outcome};
use crate::delivery::queue::Entry;
use crate::delivery::target::{Running, Target};
use crate::log_queue::LogQueue;
use crate::privacy::Privacy;
use crate::record::Record;
use crate::shm::rejected::Rejected;
use crate::shm::zone::{Fault, Ledger, State, Zone};

/// The longest pause after attempts that failed.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest for a file: trying costs nothing.
const BACKOFF_MAX_FILE: Duration = Duration::from_secs(1);
/// The most entries written to a connection at once.
const CHUNK: usize = 64;
/// How long a connection must last after a confirmation, or the entry is sent again: the receiver's system may
/// have confirmed data that the receiver never read.
const OUTLIVES: Duration = Duration::from_millis(500);
/// How long a receiver may take nothing until that is told, if events are dropped meanwhile.
const LATE: Duration = Duration::from_secs(1);
/// How often confirmations are checked.
const CONFIRM_POLL: Duration = Duration::from_millis(20);

/// Writes entries in the target's format.
#[derive(Clone)]
struct Writer {
    privacy: Privacy,
    formatter: Formatter,
    /// Written before each record.
    header: Option<Header>,
    frame: Frame,
    /// The most bytes of a message, without the length that octet counting puts before it.
    max_message: Option<usize>,
}

/// The framing of a message.
#[derive(Clone)]
enum Frame {
    /// None: each message is a datagram.
    None,
    /// Its length precedes it (RFC 6587, 3.4.1).
    Counted,
    /// These bytes follow it.
    Terminated(Vec<u8>),
}

/// Values are cut to this many bytes at the least: if a message is still too long, it has only what every
/// message has.
const SHORTEST_VALUE: usize = 16;
/// No value is longer.
const LONGEST_VALUE: usize = 16 << 10;
/// By how many bytes values may be cut shorter than necessary.
const TOO_SHORT: usize = 8;

impl Writer {
    fn new(privacy: &Privacy, config: &AuditConfig) -> Self {
        let formatter = Formatter::new(&config.format);
        let server = match &config.sink {
            Sink::Syslog(syslog) => Some(&syslog.server),
            Sink::Tcp(server) => Some(server),
            Sink::File(_) | Sink::Console(_) => None,
        };
        let line = || Frame::Terminated(formatter.terminator().to_vec());
        let frame = match server.map(|server| server.framing) {
            Some(None) => Frame::None,
            Some(Some(Framing::OctetCounting)) => Frame::Counted,
            Some(Some(Framing::Nul)) => Frame::Terminated(b"\0".to_vec()),
            Some(Some(Framing::Newline)) | None => line(),
        };
        let header = match &config.sink {
            Sink::Syslog(syslog) => Some(Header::new(&syslog.header)),
            _ => None,
        };
        let max_message = server.and_then(|server| server.max_message);
        Self { privacy: privacy.clone(), formatter, header, frame, max_message }
    }

    /// Appends the message of an entry, with at most `limit` bytes if there is a limit; returns whether that is
    /// possible.
    fn entry(&self, entry: &Entry, limit: Option<usize>, out: &mut Vec<u8>) -> bool {
        let limit = [limit, self.max_message].into_iter().flatten().min().unwrap_or(usize::MAX);
        let message = match entry {
            Entry::Record(bytes) => match Record::parse(bytes) {
                Some(record) => self.shortened(limit, |length| self.record(&record, length)),
                None => return false,
            },
            Entry::Drops(drops) => Some(self.drops(drops)).filter(|bytes| bytes.len() <= limit),
        };
        let Some(message) = message else { return false };
        if matches!(self.frame, Frame::Counted) {
            out.extend_from_slice(format!("{} ", message.len()).as_bytes());
        }
        out.extend_from_slice(&message);
        true
    }

    /// The message with the longest values that `limit` leaves room for.
    fn shortened(&self, limit: usize, write: impl Fn(Length) -> Vec<u8>) -> Option<Vec<u8>> {
        let fitting = |length| Some(write(length)).filter(|bytes| bytes.len() <= limit);
        if let Some(whole) = fitting(Length::Whole) {
            return Some(whole);
        }
        let Some(mut best) = fitting(Length::Values(SHORTEST_VALUE)) else {
            return fitting(Length::Bare);
        };
        let (mut fits, mut too_long) = (SHORTEST_VALUE, LONGEST_VALUE.min(limit));
        while too_long > fits + TOO_SHORT {
            let middle = fits.midpoint(too_long);
            match fitting(Length::Values(middle)) {
                Some(message) => (best, fits) = (message, middle),
                None => too_long = middle,
            }
        }
        Some(best)
    }

    fn record(&self, record: &Record<'_>, length: Length) -> Vec<u8> {
        let (view, mut message) = (self.privacy.view(*record), Vec::with_capacity(1024));
        if let Some(header) = &self.header {
            let fields = match length {
                Length::Bare => Vec::new(),
                _ => self.formatter.fields(&view, length),
            };
            header.record(record, &fields, &mut message);
        }
        self.formatter.record(&view, length, &mut message);
        self.terminate(&mut message);
        message
    }

    fn drops(&self, drops: &Drops) -> Vec<u8> {
        let mut message = Vec::new();
        if let Some(header) = &self.header {
            header.drops(&self.formatter.drop_fields(drops), &mut message);
        }
        self.formatter.drops(drops, &mut message);
        self.terminate(&mut message);
        message
    }

    fn terminate(&self, message: &mut Vec<u8>) {
        if let Frame::Terminated(end) = &self.frame {
            message.extend_from_slice(end);
        }
    }
}

/// The target, with its inbox.
pub fn new(
    config: &TargetConfig,
    audit: &AuditConfig,
    counters: (Zone, Ledger),
    log: &LogQueue,
) -> Running {
    let place = match &audit.sink {
        Sink::File(file) => file.path.display().to_string(),
        Sink::Console(_) => "console".into(),
        Sink::Syslog(syslog) => syslog.server.address.to_string(),
        Sink::Tcp(server) => server.address.to_string(),
    };
    let label = format!("target \"{}\" {place}", config.name);
    let writer = Writer::new(&config.privacy, audit);
    let is_file = matches!(audit.sink, Sink::File(_));
    let inbox = Inbox::new(config, label.clone(), (is_file, true), counters, log);
    inbox.ledger().show(config.slot, State::Ok, None);
    let inbox = Arc::new(inbox);
    match &audit.sink {
        Sink::File(file) => {
            let target = FileTarget {
                file: RotatedFile::new(file, &label, log),
                writer,
                backoff: Backoff::new(BACKOFF_MAX_FILE),
                health: Health::default(),
                lines: Vec::new(),
            };
            Running::new(target, inbox, "tirreno-audit")
        }
        sink => Running::new(Sender::new(sink.clone(), writer), inbox, "tirreno-stream"),
    }
}

/// A file: a batch is appended as a whole or not at all, and the ring keeps it until then.
struct FileTarget {
    file: RotatedFile,
    writer: Writer,
    backoff: Backoff,
    health: Health,
    lines: Vec<u8>,
}

impl FileTarget {
    /// Appends entries that are due; returns how long to wait for the next.
    fn step(&mut self, inbox: &Inbox) -> Option<Duration> {
        loop {
            let pause = self.backoff.left(Instant::now());
            match inbox.due_in() {
                None => return None,
                Some(due) if !due.is_zero() || !pause.is_zero() => return Some(due.max(pause)),
                Some(_) => {}
            }
            let entries = inbox.take(usize::MAX);
            if entries.is_empty() {
                return None;
            }
            self.lines.clear();
            // A line may be of any length.
            for entry in &entries {
                self.writer.entry(entry, None, &mut self.lines);
            }
            match self.file.append(&self.lines) {
                Ok(()) => {
                    // First the state: who sees the last event counted sees no fault any more.
                    self.backoff.succeeded();
                    self.health.succeeded(inbox);
                    inbox.settle(entries.len(), Outcome::Delivered);
                }
                Err(error) => {
                    inbox.put_back();
                    let now = Instant::now();
                    let fault = Fault::from(error);
                    inbox.failing(fault);
                    // Another writing process is no fault, unless it never ends.
                    if fault != Fault::Busy || self.backoff.is_longest() {
                        self.health.failed(inbox, fault, now);
                    }
                    self.backoff.failed(now);
                }
            }
        }
    }
}

impl Target for FileTarget {
    fn run(&mut self, inbox: &Arc<Inbox>) {
        inbox.put_back();
        self.file.start_tidying();
        let mut was_stopping = false;
        while !inbox.is_closed() {
            // A stopping process gets one more attempt at once.
            if !mem::replace(&mut was_stopping, inbox.is_stopping()) && was_stopping {
                self.backoff.succeeded();
            }
            let pause = self.step(inbox);
            inbox.wait(pause);
        }
    }
}

/// Entries that were sent and may still be lost.
struct Sent {
    entries: usize,
    /// Entries between them that are too long, and were not sent.
    refused: Refused,
    /// When they were.
    at: Instant,
    /// The socket's count of sent bytes behind them.
    end: u64,
    /// Since when they are confirmed.
    confirmed: Option<Instant>,
}

/// Entries that are refused for good.
struct Refused {
    entries: usize,
    /// Those of them that are events.
    events: Vec<Rejected>,
}

impl Refused {
    /// They are too long.
    fn too_long(entries: &[&Entry]) -> Self {
        let event = |entry: &&Entry| {
            let Entry::Record(bytes) = *entry else { return None };
            let record = Record::parse(bytes)?;
            let (kind, time_ms) = (Some(record.kind()), record.time_ms());
            Some(Rejected::now(record.trace(), kind, time_ms, Fault::TooLong))
        };
        Self { entries: entries.len(), events: entries.iter().filter_map(event).collect() }
    }
}

/// A target that is not a file.
struct Sender {
    sink: Sink,
    writer: Writer,
    backoff: Backoff,
    health: Health,
    /// How many events had found no room when the receiver last took some.
    overflows: u64,
}

impl Target for Sender {
    /// Sends until the target is closed.
    fn run(&mut self, inbox: &Arc<Inbox>) {
        while !inbox.is_closed() {
            if let Err(fault) = self.send_all(inbox) {
                self.pause(inbox, fault);
            }
        }
    }
}

impl Sender {
    fn new(sink: Sink, writer: Writer) -> Self {
        let (backoff, health) = (Backoff::new(BACKOFF_MAX), Health::default());
        Self { sink, writer, backoff, health, overflows: 0 }
    }

    fn pause(&mut self, inbox: &Inbox, fault: Fault) {
        let now = Instant::now();
        self.backoff.failed(now);
        self.health.failed(inbox, fault, now);
        let was_stopping = inbox.is_stopping();
        loop {
            let left = self.backoff.left(Instant::now());
            // A stopping process gets one more attempt at once.
            let is_over = left.is_zero() || inbox.is_stopping() && !was_stopping;
            if is_over || inbox.is_closed() {
                return;
            }
            inbox.wait(Some(left));
        }
    }

    /// Waits until something is due to be sent, at most `limit`; returns whether it is.
    fn wait_due(inbox: &Inbox, limit: Option<Duration>) -> bool {
        match (inbox.due_in(), limit) {
            (Some(due), _) if due.is_zero() => return true,
            (Some(due), limit) => inbox.wait(Some(limit.map_or(due, |limit| due.min(limit)))),
            (None, limit) => inbox.wait(limit),
        }
        inbox.due_in().is_some_and(|due| due.is_zero())
    }

    /// Sends over one connection, for as long as that lasts.
    fn send_all(&mut self, inbox: &Arc<Inbox>) -> Result<(), Fault> {
        inbox.put_back();
        let go_on = || inbox.goes_on();
        // A connection is opened when there is something to send.
        while !Self::wait_due(inbox, None) {
            if inbox.is_closed() {
                return Ok(());
            }
        }
        let mut socket = match &self.sink {
            Sink::Console(console) => Socket::console(*console),
            Sink::Syslog(syslog) => Socket::server(&syslog.server, &go_on),
            Sink::Tcp(server) => Socket::server(server, &go_on),
            // Files are another kind of target.
            Sink::File(_) => return Ok(()),
        }?;
        let most = if socket.takes_one() { 1 } else { CHUNK };
        let limit = socket.limit();
        let mut sent: VecDeque<Sent> = VecDeque::new();
        let mut bytes = Vec::new();
        while !inbox.is_closed() {
            let is_due = Self::wait_due(inbox, (!sent.is_empty()).then_some(CONFIRM_POLL));
            match self.settle(inbox, &mut socket, &mut sent) {
                Ok(()) => {}
                // A server may close a connection that has nothing to do.
                Err(_) if sent.is_empty() => return Ok(()),
                Err(fault) => return Err(fault),
            }
            let entries = if is_due { inbox.take(most) } else { Vec::new() };
            if entries.is_empty() {
                continue;
            }
            bytes.clear();
            let fits = |entry: &&Entry| self.writer.entry(entry, limit, &mut bytes);
            let (fitting, too_long): (Vec<_>, Vec<_>) = entries.iter().partition(fits);
            if !too_long.is_empty() {
                self.health.rejected(inbox, Fault::TooLong, Instant::now());
            }
            let (began, overflows) = (Instant::now(), self.overflows);
            let health = RefCell::new(&mut self.health);
            let written = socket.write(&bytes, &|| {
                if began.elapsed() >= LATE && inbox.overflows() > overflows {
                    health.borrow_mut().stalls(inbox, Instant::now());
                }
                inbox.goes_on()
            });
            match written {
                Ok(()) => {}
                Err(Fault::TooLong) if socket.takes_one() => {
                    self.health.rejected(inbox, Fault::TooLong, Instant::now());
                    self.settled(inbox, 0, &Refused::too_long(&fitting));
                    continue;
                }
                Err(fault) => return Err(fault),
            }
            let refused = Refused::too_long(&too_long);
            if socket.takes_one() {
                self.settled(inbox, fitting.len(), &refused);
            } else {
                sent.push_back(Sent {
                    entries: fitting.len(),
                    refused,
                    at: Instant::now(),
                    end: socket.sent(),
                    confirmed: None,
                });
            }
        }
        Ok(())
    }

    /// Counts confirmed entries as delivered.
    fn settle(
        &mut self,
        inbox: &Inbox,
        socket: &mut Socket,
        sent: &mut VecDeque<Sent>,
    ) -> Result<(), Fault> {
        if socket.takes_one() {
            return Ok(());
        }
        let confirmed = socket.confirmed()?;
        let now = Instant::now();
        for chunk in sent.iter_mut().filter(|chunk| chunk.end <= confirmed) {
            chunk.confirmed.get_or_insert(now);
        }
        if sent.iter().any(|chunk| chunk.confirmed.is_none() && now - chunk.at >= STALLED) {
            return Err(Fault::TimedOut);
        }
        if sent.iter().any(|chunk| chunk.confirmed.is_none() && now - chunk.at >= LATE)
            && inbox.overflows() > self.overflows
        {
            self.health.stalls(inbox, now);
        }
        // A stopping process has no time to watch the connection.
        let outlives = if inbox.is_stopping() { Duration::ZERO } else { OUTLIVES };
        while let Some(chunk) = sent.front()
            && chunk.confirmed.is_some_and(|since| now - since >= outlives)
        {
            self.settled(inbox, chunk.entries, &chunk.refused);
            sent.pop_front();
        }
        Ok(())
    }

    /// So many entries are delivered. Only this shows that delivery works: a receiver that accepts entries and
    /// closes the connection must not get them again and again without a pause.
    fn settled(&mut self, inbox: &Inbox, entries: usize, refused: &Refused) {
        if refused.entries > 0 {
            inbox.settle(refused.entries, Outcome::Rejected(&refused.events));
        }
        if entries == 0 {
            return;
        }
        self.overflows = inbox.overflows();
        self.backoff.succeeded();
        self.health.succeeded(inbox);
        inbox.settle(entries, Outcome::Delivered);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::audit::config::{FileConfig, ServerConfig, Transport};
    use crate::audit::format::FormatConfig;
    use crate::config::Destination;
    use crate::config::address::Address;
    use crate::delivery::backoff::{FIRST, GROWTH};
    use crate::event::EventType;
    use crate::log_queue::log_queue;
    use crate::record::Capture;
    use crate::shm::ring::{Collector, Producer};
    use crate::shm::zone::anonymous;

    fn start(zone: Zone, sink: Sink) -> Running {
        let audit = AuditConfig { format: FormatConfig::parse("json", &[]).unwrap(), sink };
        let config = TargetConfig::of_test(
            zone.target_slot("t", 0).unwrap(),
            Destination::Audit(audit.clone()),
        );
        let ledger = zone.enlist(std::process::id()).unwrap();
        let mut running = new(&config, &audit, (zone, ledger), &log_queue().0);
        running.start().unwrap();
        running
    }

    /// Captures and hands over one event of each time.
    fn hand_over(zone: Zone, target: &Running, times: impl Iterator<Item = i64>) {
        let mut worker = Producer::new(zone, std::process::id());
        for time in times {
            let mut capture = Capture::new(time);
            capture.kind = EventType::PageView;
            capture.targets = 1 << target.inbox.slot();
            worker.push(&capture).unwrap();
        }
        let batch = Collector::new(zone).take(u64::MAX, usize::MAX);
        let records = batch.records.iter();
        let records: Vec<_> =
            records.map(|taken| (taken, Record::parse(&taken.bytes).unwrap())).collect();
        target.inbox.hand_over(&records);
    }

    fn file(path: &Path) -> Sink {
        Sink::File(FileConfig { path: path.into(), ..FileConfig::default() })
    }

    fn wait(what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < until, "not within 20 s: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn the_next_deliverer_reports_what_was_dropped() {
        let zone = anonymous(1 << 20).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let first = start(zone, file(&dir.path().join("none").join("audit.log")));
        hand_over(zone, &first, 1..=10);
        // Eight find room in memory, two do not.
        first.inbox.detach_all();
        first.finish(false);
        let path = dir.path().join("audit.log");
        let next = start(zone, file(&path));
        assert!(!next.inbox.is_empty(), "it shall tell of the drops");
        next.inbox.wake();
        wait("the record", || next.inbox.is_empty());
        let text = std::fs::read_to_string(&path).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).expect("one record");
        assert_eq!(record["dropped"], 10);
        assert_eq!(record["dropped_first"], "1970-01-01T00:00:00.001Z");
        assert_eq!(record["dropped_last"], "1970-01-01T00:00:00.010Z");
        assert_eq!(zone.totals(next.inbox.slot()).all_dropped(), 10);
    }

    #[test]
    fn events_that_are_too_long_are_rejected_and_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = ServerConfig {
            address: Address::Host("127.0.0.1".into(), port),
            transport: Transport::Tcp,
            framing: Some(Framing::Newline),
            // Not even what is always there has room.
            max_message: Some(20),
        };
        let zone = anonymous(1 << 20).unwrap();
        let target = start(zone, Sink::Tcp(server));
        let slot = target.inbox.slot();
        hand_over(zone, &target, 1..=3);
        wait("the rejections", || zone.totals(slot).rejected == 3);
        let totals = zone.totals(slot);
        assert_eq!((totals.delivered, totals.pending), (0, 0));
        let listed = totals.rejected_events.iter().map(|event| (event.captured_ms, event.fault));
        let expected = [3, 2, 1].map(|time| (time, Fault::TooLong));
        assert_eq!(listed.collect::<Vec<_>>(), expected);
        assert_eq!(totals.rejected_events[0].kind, Some(EventType::PageView));
    }

    #[test]
    fn a_receiver_that_takes_and_closes_is_left_in_peace() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = ServerConfig {
            address: Address::Host("127.0.0.1".into(), port),
            transport: Transport::Tcp,
            framing: Some(Framing::Newline),
            max_message: None,
        };
        let zone = anonymous(1 << 20).unwrap();
        let target = start(zone, Sink::Tcp(server));
        hand_over(zone, &target, 1..=1);
        let since = Instant::now();
        for _ in 0..6 {
            let (mut connection, _) = listener.accept().unwrap();
            assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
        }
        // Five pauses, each longer than the one before, by 25 % shorter at the most.
        let least: Duration = (0..5).map(|n| FIRST.mul_f64(0.75 * GROWTH.powi(n))).sum();
        assert!(since.elapsed() >= least, "{:?}", since.elapsed());
    }
}
