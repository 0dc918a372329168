//! Several targets with different settings: none affects another, whatever its interval, its batch size or
//! its disk; and the cost of idle targets.
//!
//! The comments on tests describe what version 0.1.0 does in them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::client::{self, Connection};
use tirreno_tests::hanging_disk::HangingDisk;
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Answer, Sensor, SensorOptions};
use tirreno_tests::slow_sync::SlowSync;
use tirreno_tests::small_disk::SmallDisk;
use tirreno_tests::status::Row;
use tirreno_tests::wait::{SOON, wait_for, wait_until};
use tirreno_tests::written::written_lines;

/// nginx, a sensor and a directory that workers may write in.
struct Bench {
    nginx: Nginx,
    sensor: Sensor,
    /// The directory, if it is not in `dir`.
    disk: Option<SmallDisk>,
    dir: TempDir,
}

impl Bench {
    /// With these targets; `%DIR%` is the directory, `%SENSOR%` the sensor's URL.
    fn build(targets: &str, workers: usize) -> Self {
        Self::build_on(None, targets, workers, |builder| builder)
    }

    /// The same, with the directory on that disk.
    fn build_on(
        disk: Option<SmallDisk>,
        targets: &str,
        workers: usize,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let sensor = Sensor::start(SensorOptions { record_requests: false, ..Default::default() });
        let dir = tempfile::tempdir().unwrap();
        let builder = Nginx::builder()
            .sensor(&sensor.url())
            .var("DIR", disk.as_ref().map_or(dir.path(), SmallDisk::path).to_str().unwrap())
            .workers(workers)
            .http(&with_targets(targets))
            .server(
                "location / { return 200; }
                 location = /status { tirreno off; tirreno_status; }",
            );
        Self { nginx: change(builder).build(), sensor, disk, dir }
    }

    fn start(targets: &str, workers: usize) -> Self {
        let mut bench = Self::build(targets, workers);
        bench.nginx.start();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.as_ref().map_or(self.dir.path(), SmallDisk::path).join(name)
    }

    /// Requests the numbers over several connections, so that several workers get some.
    fn requests(&self, numbers: std::ops::Range<usize>) {
        let port = self.nginx.port();
        thread::scope(|scope| {
            for part in 0..4 {
                let numbers = numbers.clone();
                scope.spawn(move || {
                    let mut connection = open(port);
                    for number in numbers.skip(part).step_by(4) {
                        get(&mut connection, number);
                    }
                });
            }
        });
    }

    fn row(&self, target: &str) -> Value {
        self.nginx.status("/status")["targets"][target].clone()
    }

    fn count(&self, target: &str, key: &str) -> u64 {
        let row = self.row(target);
        row[key].as_u64().unwrap_or_else(|| panic!("{key} of {target}: {row}"))
    }

    fn wait_count(&self, target: &str, key: &str, count: u64) {
        wait_for(SOON, &format!("{count} {key} of {target}"), || match self.row(target) {
            row if row[key].as_u64() == Some(count) => Ok(()),
            row => Err(row.to_string()),
        });
    }

    /// The numbers of the rejected events in the spool.
    fn rejected(&self) -> BTreeSet<usize> {
        let database = rusqlite::Connection::open(self.spool_file(".db")).unwrap();
        database.busy_timeout(SOON).unwrap();
        let mut bodies = database.prepare("SELECT body FROM rejected").unwrap();
        let bodies = bodies.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let number = |body: String| {
            let url = body.split('&').find_map(|pair| pair.strip_prefix("url=%2F"));
            url.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{body}"))
        };
        bodies.map(|body| number(body.unwrap())).collect()
    }

    /// How many events wait in the spool's database.
    fn spooled(&self) -> u64 {
        let files = fs::read_dir(self.path("spool")).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let databases = files.filter(|path| path.extension().is_some_and(|end| end == "db"));
        let count = |path: PathBuf| {
            let database = rusqlite::Connection::open(path).unwrap();
            // Its tables are made after the file.
            let has_table = database.table_exists(None, "pending").unwrap();
            let count = "SELECT count(*) FROM pending";
            let count = || database.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
            if has_table { count() as u64 } else { 0 }
        };
        databases.map(count).sum()
    }

    /// The numbers in the file, in order.
    fn written(&self, name: &str) -> Vec<usize> {
        let text = written_lines(&self.path(name));
        let lines = text.lines().map(|line| serde_json::from_str(line).expect(line));
        let number = |line: Value| line["url"].as_str()?.strip_prefix('/')?.parse().ok();
        lines.filter_map(number).collect()
    }

    /// All threads of all processes, and how often each was put to sleep and woken up.
    fn wake_ups(&self) -> u64 {
        let mut pids = self.nginx.workers();
        pids.push(self.nginx.master_pid());
        let tasks = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap());
        let count = |task: fs::DirEntry| -> u64 {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |count| count.trim().parse().unwrap())
        };
        tasks.map(|task| count(task.unwrap())).sum()
    }
}

fn with_targets(targets: &str) -> String {
    format!("{targets} tirreno on; tirreno_user $cookie_user; keepalive_requests 1000000;")
}

fn reconfigured(builder: Builder, targets: &str) -> Builder {
    builder.clear_http().http(&with_targets(targets)).server(
        "location / { return 200; }
         location = /status { tirreno off; tirreno_status; }",
    )
}

fn open(port: u16) -> Connection {
    Connection::open(SocketAddr::from(([127, 0, 0, 1], port))).unwrap()
}

fn get(connection: &mut Connection, number: usize) {
    let headers = [("Host", "localhost"), ("Cookie", "user=u1")];
    let answer = connection.request("GET", &format!("/{number}"), &headers, b"").unwrap();
    assert_eq!(answer.status, 200);
}

const DOWN: &str =
    "tirreno_target tirreno { url http://127.0.0.1:1/sensor/; api_key k; spool %DIR%/spool; }";

/// 0.1.0: 5,000 requests are in the spool after 8.3 s; after 20,000 requests and QUIT, 1,077 are in it,
/// 18,923 are lost, and nothing is logged.
#[test]
fn a_targets_batch_size_does_not_decide_for_a_spool() {
    let file = "tirreno_target file { type file; path %DIR%/audit.log; format json; batch_size 1;
                                      interval 0s; }";
    let mut bench = Bench::start(&format!("{DOWN} {file}"), 2);
    bench.requests(0..20_000);
    let status = bench.nginx.quit();
    assert!(status.is_none_or(|status| status.success()));
    assert_eq!(bench.spooled(), 20_000);
    let written: BTreeSet<_> = bench.written("audit.log").into_iter().collect();
    let log = bench.nginx.error_log();
    let dropped: usize = log
        .lines()
        .filter(|line| line.contains("target \"file\"") && line.contains("dropped"))
        .filter_map(|line| line.split(" events ").next()?.rsplit(' ').next()?.parse::<usize>().ok())
        .sum();
    assert!(written.len() + dropped >= 20_000, "{} written, {dropped} said", written.len());
}

/// Sets a flag when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// 0.1.0: `captured` goes from 1047 back to 666, and `pending` up and down, while a spool takes batches.
#[test]
fn counters_never_go_backwards_and_add_up() {
    let bench = Bench::start(&format!("{DOWN} {}", file("file", "")), 2);
    let stop = Arc::new(AtomicBool::new(false));
    let captured = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut last = 0;
            while !stop.load(SeqCst) {
                let now = bench.count("tirreno", "captured");
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
            last
        });
        // The watching thread ends even if the test fails.
        let _stop = Stop(&stop);
        bench.requests(0..5_000);
        wait_until(SOON, "all in the spool", || bench.spooled() == 5_000);
        stop.store(true, SeqCst);
        watch.join().unwrap()
    });
    assert!(captured <= 5_000);
    for target in ["tirreno", "file"] {
        let row = wait_for(SOON, "all to be captured", || match bench.row(target) {
            row if row["captured"] == 5_000 => Ok(row),
            row => Err(row.to_string()),
        });
        let count = |key: &str| row[key].as_u64().unwrap_or(0);
        let ends = ["delivered", "rejected", "dropped", "merged", "withdrawn", "pending"];
        assert_eq!(ends.map(count).iter().sum::<u64>(), 5_000, "{row}");
    }
}

fn file(name: &str, more: &str) -> String {
    format!("tirreno_target {name} {{ type file; path %DIR%/{name}.log; format json; {more} }}")
}

/// 0.1.0: each new target occupies its place for ever: the 33rd name makes the reload fail.
#[test]
fn targets_that_come_and_go_for_ever_find_a_place() {
    let mut bench = Bench::start(&file("t0", "interval 20ms;"), 1);
    for round in 1..40 {
        let name = format!("t{round}");
        bench.requests(0..3);
        let old = bench.nginx.workers();
        bench.nginx.reconfigure(|builder| reconfigured(builder, &file(&name, "interval 20ms;")));
        bench.nginx.reload();
        old.iter().for_each(|pid| bench.nginx.wait_gone(*pid));
        bench.requests(3..6);
        bench.wait_count(&name, "delivered", 3);
        assert_eq!(bench.written(&format!("{name}.log")).len(), 3);
    }
    assert!(!bench.nginx.error_log().contains("too many targets"));
}

/// 0.1.0: 8 of 34 events of the last moments are dropped.
#[test]
fn what_was_captured_for_a_removed_target_is_delivered() {
    let (a, b) = (file("a", "interval 10s;"), file("b", "interval 10s;"));
    let mut bench = Bench::start(&format!("{a} {b}"), 2);
    bench.requests(0..50);
    wait_until(SOON, "all to be captured", || bench.count("a", "captured") == 50);
    let old = bench.nginx.workers();
    bench.nginx.reconfigure(|builder| reconfigured(builder, &b));
    bench.nginx.reload();
    old.iter().for_each(|pid| bench.nginx.wait_gone(*pid));
    let written: BTreeSet<_> = bench.written("a.log").into_iter().collect();
    assert_eq!(written.len(), 50, "{}", bench.nginx.error_log());
    bench.nginx.quit();
    assert_eq!(bench.written("b.log").len(), 50);
}

/// 0.1.0: 45 wake-ups a second with one worker, 925 with 64, and a query each 25 ms.
#[test]
fn idle_targets_wake_nobody() {
    let listener = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let syslog = listener.local_addr().unwrap();
    let targets = format!(
        "tirreno_target tirreno {{ url %SENSOR%; api_key test-key; spool %DIR%/spool; }} {}
         tirreno_target syslog {{ type syslog; server {syslog}; transport udp; format json; }}",
        file("file", "")
    );
    for (workers, most) in [(1, 6), (64, 10)] {
        let mut bench = Bench::start(&targets, workers);
        bench.requests(0..2_000);
        for target in ["tirreno", "file", "syslog"] {
            bench.wait_count(target, "delivered", 2_000);
        }
        // Work that follows the last event is over by then: the spool's file has shrunk, and the last lines
        // are logged.
        thread::sleep(Duration::from_secs(6));
        let span = Duration::from_secs(10);
        let before = bench.wake_ups();
        thread::sleep(span);
        let rate = (bench.wake_ups() - before) as f64 / span.as_secs_f64();
        println!("{rate} wake-ups a second with {workers} workers");
        assert!(rate <= f64::from(most), "{rate} wake-ups a second with {workers} workers");
        // Events are still collected in time: an interval of a second, and 0.3 s.
        let since = Instant::now();
        bench.requests(2_000..2_001);
        wait_until(SOON, "one more", || bench.written("file.log").len() == 2_001);
        let took = since.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        bench.nginx.quit();
    }
}

/// 0.1.0: a worker's death is noticed only when another worker next tries to become the collector.
#[test]
fn a_killed_collector_is_replaced_at_once() {
    let bench = Bench::start(&file("file", "interval 20ms;"), 4);
    let collects =
        |pid: &u32| bench.nginx.thread_names(*pid).iter().any(|name| name == "tirreno-audit");
    let find =
        || bench.nginx.workers().into_iter().find(|pid| collects(pid)).ok_or_else(String::new);
    let mut number = 0;
    for _ in 0..5 {
        let old = wait_for(SOON, "a collector", find);
        bench.requests(number..number + 40);
        number += 40;
        // nginx answers a request before it captures it.
        bench.wait_count("file", "captured", number as u64);
        bench.nginx.signal_worker(old, Signal::KILL);
        let new = wait_for(SOON, "another collector", || match find()? {
            pid if pid != old => Ok(pid),
            _ => Err(String::new()),
        });
        assert_ne!(old, new);
        wait_until(SOON, "nothing to be pending", || bench.count("file", "pending") == 0);
    }
    let written: BTreeSet<_> = bench.written("file.log").into_iter().collect();
    assert_eq!(written, (0..number).collect::<BTreeSet<_>>());
}

/// 0.1.0: with more than about 115 workers, nginx refuses to start.
#[test]
fn the_zone_sizes_itself() {
    let bench = Bench::build(&file("file", ""), 250);
    let (ok, output) = bench.nginx.test();
    assert!(ok, "{output}");
}

/// 0.1.0: 70 MB after the start.
#[test]
fn a_long_queue_costs_no_memory_at_the_start() {
    let target = "tirreno_target tirreno { url %SENSOR%; api_key test-key; queue 200000 size=64m;
                                           connections 4; }";
    let bench = Bench::start(target, 1);
    bench.requests(0..10);
    bench.wait_count("tirreno", "delivered", 10);
    assert_eq!(bench.sensor.stored_count(), 10);
    let memory: u64 = bench.nginx.workers().into_iter().map(|pid| bench.nginx.rss_anon(pid)).sum();
    assert!(memory < 24 << 20, "{memory} bytes");
}

// The workers' user is not trusted, because other programs may share it.

const SPOOL: &str = "tirreno_target tirreno {
                         url %SENSOR%; api_key test-key; interval 20ms; spool %DIR%/spool;
                     }
                     tirreno_target audit { type file; path %DIR%/audit.log; interval 20ms; }";

/// The replacement for a file.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Pipe,
    Link,
    Directory,
}

impl Instead {
    const ALL: [Self; 3] = [Self::Pipe, Self::Link, Self::Directory];

    fn put(self, path: &Path) {
        match self {
            Self::Pipe => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
            Self::Link => std::os::unix::fs::symlink("/dev/null", path).unwrap(),
            Self::Directory => fs::create_dir(path).unwrap(),
        }
    }

    fn remove(self, path: &Path) {
        match self {
            Self::Pipe | Self::Link => fs::remove_file(path).unwrap(),
            Self::Directory => fs::remove_dir(path).unwrap(),
        }
    }
}

impl Bench {
    /// The spool's file whose name ends so.
    fn spool_file(&self, end: &str) -> PathBuf {
        wait_for(SOON, "the spool", || {
            let files = fs::read_dir(self.path("spool")).map_err(|error| error.to_string())?;
            let mut paths = files.flatten().map(|entry| entry.path());
            paths.find(|path| path.to_string_lossy().ends_with(end)).ok_or_else(String::new)
        })
    }

    /// Waits until the target is `waiting` for this reason, and the other one has all of its events.
    fn wait_waiting(&self, target: &str, other: &str, reason: &str) {
        let row = Row::wait(&self.nginx, target, "the reason", |row| row.state == "waiting");
        assert_eq!(row.last_error.as_deref(), Some(reason), "{row:?}");
        let other = Row::settled(&self.nginx, other);
        assert_eq!((other.state.as_str(), other.delivered), ("ok", other.captured), "{other:?}");
        assert_eq!(row.dropped, 0, "{row:?}");
        self.nginx.wait_log(reason);
    }

    /// Waits until both have all events.
    fn wait_all(&self, count: u64) {
        for target in ["tirreno", "audit"] {
            let row = Row::settled(&self.nginx, target);
            assert_eq!(
                (row.captured, row.delivered, row.state.as_str()),
                (count, count, "ok"),
                "{row:?}"
            );
        }
    }
}

const NOT_PLAIN: &str = "a link, a pipe or a directory lies where a plain file belongs";

#[test]
fn a_spools_lock_that_another_program_holds_is_told() {
    let mut bench = Bench::start(SPOOL, 1);
    bench.requests(0..5);
    bench.wait_all(5);
    let lock = bench.spool_file(".lock");
    bench.nginx.quit();
    let held = fs::File::options().read(true).write(true).open(&lock).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    bench.nginx.start();
    bench.requests(5..10);
    bench.wait_waiting("tirreno", "audit", "held by another process");
    assert_eq!(bench.sensor.stored_count(), 5);
    drop(held);
    wait_until(SOON, "the events", || bench.sensor.stored_count() == 10);
    Row::settled(&bench.nginx, "tirreno");
}

#[test]
fn something_else_in_the_place_of_a_spools_lock_is_told() {
    for instead in Instead::ALL {
        let mut bench = Bench::start(SPOOL, 1);
        bench.requests(0..5);
        bench.wait_all(5);
        let lock = bench.spool_file(".lock");
        bench.nginx.quit();
        fs::remove_file(&lock).unwrap();
        instead.put(&lock);
        bench.nginx.start();
        bench.requests(5..10);
        bench.wait_waiting("tirreno", "audit", NOT_PLAIN);
        instead.remove(&lock);
        wait_until(SOON, "the events", || bench.sensor.stored_count() == 10);
        Row::settled(&bench.nginx, "tirreno");
    }
}

#[test]
fn something_else_in_the_place_of_a_database_is_told_and_done_without() {
    for instead in Instead::ALL {
        let mut bench = Bench::start(SPOOL, 1);
        bench.requests(0..5);
        bench.wait_all(5);
        let database = bench.spool_file(".db");
        bench.nginx.quit();
        fs::remove_file(&database).unwrap();
        instead.put(&database);
        bench.nginx.start();
        bench.requests(5..10);
        wait_until(SOON, "the events", || bench.sensor.stored_count() == 10);
        bench.nginx.wait_log(NOT_PLAIN);
        assert_eq!(Row::settled(&bench.nginx, "audit").state, "ok");
    }
}

#[test]
fn a_database_that_is_swapped_is_noticed() {
    let bench = Bench::start(SPOOL, 1);
    bench.requests(0..5);
    bench.wait_all(5);
    let database = bench.spool_file(".db");
    // Another file replaces the database.
    fs::rename(&database, database.with_extension("moved")).unwrap();
    bench.requests(5..10);
    bench.nginx.wait_log("was deleted or replaced while it was used");
    wait_until(SOON, "the events", || bench.sensor.stored_count() == 10);
    wait_until(SOON, "the new database", || database.exists());
    assert_eq!(Row::settled(&bench.nginx, "audit").delivered, 10);
}

#[test]
fn something_else_in_the_place_of_an_audit_file_is_told() {
    for (name, instead) in ["audit.log", ".audit.log.lock"]
        .into_iter()
        .flat_map(|name| Instead::ALL.map(|i| (name, i)))
    {
        let bench = Bench::start(SPOOL, 1);
        bench.requests(0..5);
        bench.wait_all(5);
        let path = bench.path(name);
        fs::rename(&path, path.with_extension("moved")).unwrap();
        instead.put(&path);
        bench.requests(5..10);
        bench.wait_waiting("audit", "tirreno", NOT_PLAIN);
        instead.remove(&path);
        bench.wait_all(10);
    }
}

// Chaos, without kills, which are in the tests of spools.

/// A temporary fault.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// A firewall before the sensor refuses requests with a 7 in their URL.
    Firewall,
    /// The sensor answers that these events are invalid; some of them may be rejected.
    Invalid,
    /// Interim answers precede the final ones.
    Interim,
    /// The server sends `Retry-After`.
    RetryAfter,
    /// Connections break.
    Reset,
    /// Another program locks the database of the spool …
    DatabaseLock,
    /// … or the audit file.
    FileLock,
    /// The disk of the spool and the audit file is full …
    FullDisk,
    /// … or confirms writes slowly.
    SlowDisk,
    /// A receiver stops reading …
    StopsReading,
    /// … or breaks the connection.
    Breaks,
}

const TROUBLES: [Trouble; 11] = [
    Trouble::Firewall,
    Trouble::Invalid,
    Trouble::Interim,
    Trouble::RetryAfter,
    Trouble::Reset,
    Trouble::DatabaseLock,
    Trouble::FileLock,
    Trouble::FullDisk,
    Trouble::SlowDisk,
    Trouble::StopsReading,
    Trouble::Breaks,
];

/// A receiver of lines on several connections that can be told to stop reading.
#[derive(Clone, Default)]
struct Receiver {
    lines: Arc<Mutex<Vec<u8>>>,
    stopped: Arc<AtomicBool>,
    breaks: Arc<AtomicBool>,
}

impl Receiver {
    /// Starts it; returns its port.
    fn start(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let receiver = receiver.clone();
                thread::spawn(move || receiver.read(stream));
            }
        });
        port
    }

    fn read(&self, mut stream: TcpStream) {
        let (mut line, mut part) = (Vec::new(), [0; 256]);
        while let Ok(read @ 1..) = stream.read(&mut part) {
            if self.breaks.swap(false, SeqCst) {
                return;
            }
            line.extend_from_slice(&part[..read]);
            // Only whole lines are counted.
            if let Some(end) = line.iter().rposition(|byte| *byte == b'\n') {
                self.lines.lock().unwrap().extend(line.drain(..=end));
            }
            while self.stopped.load(SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn numbers(&self) -> BTreeSet<usize> {
        let lines = self.lines.lock().unwrap();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let number = |line: &[u8]| {
            let line: Value = serde_json::from_slice(line).expect("a whole line");
            line["url"].as_str()?.strip_prefix('/')?.parse().ok()
        };
        lines.filter_map(number).collect()
    }
}

#[test]
fn a_receiver_that_stops_reading_is_told_when_events_are_dropped_for_it() {
    let receiver = Receiver::default();
    receiver.stopped.store(true, SeqCst);
    let port = receiver.start();
    let target = format!(
        "tirreno_target tcp {{ type tcp; server 127.0.0.1:{port}; interval 20ms; queue 10000; format json; }}"
    );
    let bench = Bench::start(&target, 1);
    let mut count = 0;
    // Long before the connection is given up.
    let row = wait_for(SOON / 2, "the reason", || {
        bench.requests(count..count + 1000);
        count += 1000;
        match bench.row("tcp") {
            row if row["state"] == "ok" => Err(row.to_string()),
            row => Ok(row),
        }
    });
    assert_eq!((&row["state"], &row["last_error"]), (&"retrying".into(), &"timed out".into()));
    assert!(row["dropped"].as_u64() > Some(0), "{row}");
    receiver.stopped.store(false, SeqCst);
    wait_for(SOON, "it to go on", || match bench.row("tcp") {
        row if row["state"] == "ok" && row["pending"] == 0 => Ok(()),
        row => Err(row.to_string()),
    });
}

#[test]
fn no_trouble_of_a_receiver_loses_anything() {
    const EACH: usize = 60;
    let seed = match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse().expect("TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // The output of a test is shown if it fails.
    println!("TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let rounds = if std::env::var_os("TEST_FULL").is_some() { 6 } else { 2 };
    let mut troubles = TROUBLES.repeat(rounds);
    random.shuffle(&mut troubles);
    println!("{troubles:?}");

    let receiver = Receiver::default();
    let stream = format!(
        "tirreno_target stream {{ type tcp; server 127.0.0.1:{}; interval 20ms; }}",
        receiver.start()
    );
    let directory = tempfile::tempdir().unwrap();
    let slow = SlowSync::compile(directory.path());
    let disk = SmallDisk::mount(&directory.path().join("disk"), "32m");
    if disk.is_none() {
        println!("no file system can be mounted here: no disk gets full");
        troubles.retain(|trouble| !matches!(trouble, Trouble::FullDisk));
    }
    let targets = format!("{SPOOL} {stream}");
    let mut bench =
        Bench::build_on(disk, &targets, 2, |builder| builder.env("LD_PRELOAD", slow.library()));
    bench.nginx.start();
    bench.requests(0..EACH);
    bench.wait_all(EACH as u64);
    let (database, lock) = (bench.spool_file(".db"), bench.path(".audit.log.lock"));
    let mut next = EACH;
    for trouble in &troubles {
        let mut connection = None;
        let mut file = None;
        let (filler, calls) = (bench.path("filler"), slow.calls());
        match trouble {
            Trouble::Firewall => bench.sensor.set_rule("7", Answer::code(403)),
            Trouble::Invalid => bench.sensor.set_rule("7", Answer::code(400)),
            Trouble::Interim => {
                let answer = Answer::code(204).storing().with_interim(103).with_interim(102);
                bench.sensor.set_default(answer);
            }
            Trouble::RetryAfter => bench.sensor.set_default(Answer::code(503).retry_after("1")),
            Trouble::Reset => bench.sensor.set_default(Answer::reset()),
            Trouble::DatabaseLock => {
                let database = rusqlite::Connection::open(&database).unwrap();
                database.busy_timeout(SOON).unwrap();
                database.execute_batch("BEGIN IMMEDIATE").unwrap();
                connection = Some(database);
            }
            Trouble::FileLock => {
                let held = fs::File::options().read(true).write(true).open(&lock).unwrap();
                flock(&held, FlockOperation::LockExclusive).unwrap();
                file = Some(held);
            }
            Trouble::FullDisk => {
                let mut filler = fs::File::create(&filler).unwrap();
                while filler.write_all(&[0; 4096]).is_ok() {}
            }
            Trouble::SlowDisk => slow.begin(),
            Trouble::StopsReading => receiver.stopped.store(true, SeqCst),
            Trouble::Breaks => {
                // What it had accepted before and not read, nobody can know.
                let has_all = || receiver.numbers().len() == next;
                wait_until(SOON, "the receiver to have read all so far", has_all);
                receiver.breaks.store(true, SeqCst);
            }
        }
        bench.requests(next..next + EACH);
        next += EACH;
        if matches!(trouble, Trouble::SlowDisk) {
            wait_until(SOON, "a commit", || slow.calls() > calls);
        }
        thread::sleep(Duration::from_millis(random.u64(50..700)));
        slow.end();
        // The file exists only during that fault.
        let _ = fs::remove_file(&filler);
        bench.sensor.clear_rules();
        bench.sensor.set_default(Answer::normal());
        receiver.stopped.store(false, SeqCst);
        drop((connection, file));
    }
    bench.requests(next..next + EACH);
    next += EACH;

    let all: BTreeSet<_> = (0..next).collect();
    let count = Row::settled(&bench.nginx, "tirreno").rejected;
    // The last outcomes are written to the spool after they are counted.
    wait_until(SOON, "the rejected ones", || bench.rejected().len() as u64 >= count);
    let rejected = bench.rejected();
    println!("{} rejected", rejected.len());
    for (target, rejected) in [("tirreno", rejected.len()), ("audit", 0), ("stream", 0)] {
        let row = Row::settled(&bench.nginx, target);
        let counts = (row.captured, row.delivered + row.rejected, row.rejected, row.dropped);
        assert_eq!(counts, (next as u64, next as u64, rejected as u64, 0), "{target} {row:?}");
    }
    let url = |url: &str| url.split('?').next()?.strip_prefix('/')?.parse().ok();
    let stored = bench.sensor.stored();
    let stored: BTreeSet<usize> = stored.iter().filter_map(|event| url(&event.url)).collect();
    assert!(stored.is_disjoint(&rejected));
    assert_eq!(&stored | &rejected, all);
    wait_until(SOON, "the list of the rejected ones", || {
        let listed = bench.row("tirreno")["rejected_events"].as_array().map(Vec::len);
        listed == Some(rejected.len().min(50))
    });
    let written = bench.written("audit.log");
    assert_eq!(written.len(), next, "a file has each once");
    assert_eq!(written.into_iter().collect::<BTreeSet<_>>(), all);
    assert_eq!(receiver.numbers(), all);
    assert_eq!(bench.nginx.crashes(&[]), Vec::<String>::new());
}

/// A client that makes 200 requests a second, whatever happens to nginx.
struct Steady {
    stop: Arc<AtomicBool>,
    client: thread::JoinHandle<(BTreeSet<usize>, Duration)>,
}

impl Steady {
    const GAP: Duration = Duration::from_millis(5);

    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = thread::spawn({
            let stop = stop.clone();
            move || {
                let (mut answered, mut longest) = (BTreeSet::new(), Duration::ZERO);
                for number in 0.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    let since = Instant::now();
                    let headers = [("Cookie", "user=u1")];
                    if client::get(port, &format!("/{number}"), &headers).is_ok() {
                        answered.insert(number);
                    }
                    longest = longest.max(since.elapsed());
                    thread::sleep(Self::GAP.saturating_sub(since.elapsed()));
                }
                (answered, longest)
            }
        });
        Self { stop, client }
    }

    /// The requests that were answered, and how long the slowest took.
    fn finish(self) -> (BTreeSet<usize>, Duration) {
        self.stop.store(true, SeqCst);
        self.client.join().unwrap()
    }
}

impl Bench {
    /// The workers that have a thread of that name.
    fn with_thread(&self, name: &str) -> Vec<u32> {
        let mut pids = self.nginx.workers();
        pids.retain(|pid| self.nginx.thread_names(*pid).iter().any(|thread| thread == name));
        pids
    }

    fn written_set(&self, name: &str) -> BTreeSet<usize> {
        numbers_in(&written_lines(&self.path(name)))
    }

    /// The numbers that the sensor has stored.
    fn stored_set(&self) -> BTreeSet<usize> {
        let stored = self.sensor.stored();
        stored.iter().filter_map(|event| event.url.strip_prefix('/')?.parse().ok()).collect()
    }

    /// Waits until this number of further events is delivered.
    fn wait_more(&self, target: &str, count: u64) {
        let goal = self.count(target, "delivered") + count;
        wait_until(SOON, &format!("{count} more events for {target}"), || {
            self.count(target, "delivered") >= goal
        });
    }

    /// Asserts that the other targets get everything captured, without a gap.
    fn go_on(&self, when: &str) {
        let since = Instant::now();
        ["file", "tirreno"].iter().for_each(|target| self.wait_more(target, 100));
        let took = since.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?} for 100 events when {when}");
    }

    /// How many events of a target are lost, by the log.
    fn lost_in_log(&self, target: &str) -> usize {
        let (log, name) = (self.nginx.error_log(), format!("target \"{target}\""));
        let lines = log.lines().filter(|line| line.contains(&name) && line.contains("dropped"));
        let count =
            |line: &str| line.split(" events ").next()?.rsplit(' ').next()?.parse::<usize>().ok();
        lines.filter_map(count).sum()
    }
}

/// The numbers in the whole lines of a file.
fn numbers_in(text: &str) -> BTreeSet<usize> {
    let whole = text.rfind('\n').map_or("", |last| &text[..=last]);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter_map(|line| line["url"].as_str()?.strip_prefix('/')?.parse().ok()).collect()
}

/// A killed process lives on while one of its threads hangs in the kernel, and so do the locks of all files that the
/// thread could use.
#[test]
fn a_thread_that_writes_a_file_has_no_other_targets_files() {
    let targets = [file("one", "interval 20ms;"), file("two", "interval 20ms;"), SPOOL.into()];
    let bench = Bench::start(&targets.concat(), 1);
    bench.requests(0..3);
    ["one", "two"].iter().for_each(|target| bench.wait_count(target, "delivered", 3));
    bench.wait_all(3);
    let worker = bench.nginx.workers()[0];
    let mut found: Vec<BTreeSet<_>> = Vec::new();
    for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap().flatten() {
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let Ok(open) = fs::read_dir(task.path().join("fd")) else { continue };
        if name.trim() == "tirreno-audit" {
            let paths = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            found.push(paths.filter(|path| path.starts_with(bench.dir.path())).collect());
        }
    }
    found.sort();
    let own = |name: &str| BTreeSet::from([bench.path(name)]);
    assert_eq!(found, [own("audit.log"), own("one.log"), own("two.log")]);
}

/// 0.1.0: one thread writes all files and feeds all targets, so all targets stop while the disk hangs, and
/// a worker's exit waits for the disk.
#[test]
fn a_disk_that_hangs_in_the_kernel_costs_the_other_targets_nothing() {
    // The tolerance for a busy machine.
    const SLACK: Duration = Duration::from_secs(8);
    let spell = match std::env::var_os("TEST_FULL") {
        Some(_) => Duration::from_secs(60),
        None => Duration::from_secs(10),
    };
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = HangingDisk::mount(directory.path()) else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let targets = format!(
        "tirreno_target tirreno {{ url %SENSOR%; api_key test-key; interval 20ms; rate 1000r/s;
                                   shutdown_timeout 30s; }}
         {}
         tirreno_target hung {{ type file; path {}; format json; interval 20ms; queue 500; }}",
        file("file", "interval 20ms;"),
        disk.file("hung.log").display()
    );
    let mut bench = Bench::start(&targets, 3);
    let load = Steady::start(bench.nginx.port());
    bench.wait_more("hung", 100);
    let hangs = Instant::now();
    disk.hang();

    let degraded = wait_for(SOON, "the disk to be named", || match bench.row("hung") {
        row if row["state"] == "degraded" => Ok(row),
        row => Err(row.to_string()),
    });
    assert_eq!(degraded["last_error"], "no answer from the disk", "{degraded}");
    bench.nginx.wait_log("target \"hung\"");
    bench.nginx.wait_log("degraded: no answer from the disk");
    bench.go_on("the disk hangs");

    // The hanging thread keeps the killed process alive.
    let [collector] = bench.with_thread("tirreno-target")[..] else { panic!("one collector") };
    let killed = Instant::now();
    bench.nginx.signal_worker(collector, Signal::KILL);
    wait_until(SOON, "another collector", || {
        bench.with_thread("tirreno-target").iter().any(|pid| *pid != collector)
    });
    assert!(killed.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", killed.elapsed());
    bench.go_on("the collector was killed");

    let old = bench.nginx.workers();
    bench.nginx.reload();
    bench.nginx.wait_log("does not answer");
    wait_until(SOON, "a collector of the new workers", || {
        bench.with_thread("tirreno-target").iter().any(|pid| !old.contains(pid))
    });
    bench.go_on("the reload");
    thread::sleep(spell.saturating_sub(hangs.elapsed()));

    let (answered, slowest) = load.finish();
    assert!(slowest < spell / 2, "a request took {slowest:?}");
    let workers = bench.nginx.workers();
    bench.nginx.signal(Signal::QUIT);
    // A killed worker may have answered one request without capturing it.
    let all_in =
        |found: BTreeSet<usize>, said| match answered.difference(&found).collect::<Vec<_>>() {
            missing if missing.len() <= 1 + said => Ok(()),
            missing => Err(format!("{} are missing, {said} said: {missing:?}", missing.len())),
        };
    wait_for(SOON, "all in the other file", || all_in(bench.written_set("file.log"), 0));
    // Events in the memory of the killed collector are lost, and the log has their number.
    let said = bench.lost_in_log("tirreno");
    wait_for(SOON, "all at the sensor", || all_in(bench.stored_set(), said));
    bench.nginx.signal(Signal::TERM);
    let told = Instant::now();
    workers.iter().for_each(|pid| bench.nginx.wait_gone(*pid));
    assert!(told.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", told.elapsed());

    disk.release();
    bench.nginx.term();
    let text = fs::read_to_string(disk.file("hung.log")).unwrap();
    let written = numbers_in(&text);
    let lost = answered.difference(&written).count();
    let of_hung = bench.lost_in_log("hung");
    println!("{} answered, {} written, {of_hung} said to be lost", answered.len(), written.len());
    assert!(lost <= of_hung + 1, "{lost} lost, {of_hung} said");
    assert_eq!((bench.lost_in_log("file"), bench.lost_in_log("tirreno")), (0, said));
}

/// How many processes check the disk for the master: all its children that are not workers.
fn askers(nginx: &Nginx) -> usize {
    // In this order, so that a worker that changes its title meanwhile does not count.
    let mut workers = nginx.workers();
    let all = nginx.children();
    workers.extend(nginx.exiting_workers());
    workers.extend(nginx.workers());
    all.iter().filter(|pid| !workers.contains(pid)).count()
}

/// 0.1.0: each configuration that is read while the disk hangs leaves a process behind, for ever.
#[test]
fn reloads_while_a_disk_hangs_leave_one_process_until_it_answers() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = HangingDisk::mount(directory.path()) else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let hung = disk.file("hung.log");
    let target = format!("tirreno_target hung {{ type file; path {}; }}", hung.display());
    let bench = Bench::start(&target, 1);
    assert_eq!(askers(&bench.nginx), 0);
    disk.hang();
    for round in 1..=3 {
        bench.nginx.reload();
        wait_until(SOON, "the configuration to be in force", || {
            bench.nginx.error_log().matches("does not answer").count() == round
        });
        // A worker may not have its title yet, or may have lost it already.
        wait_until(SOON, &format!("one process after {round} reloads"), || {
            askers(&bench.nginx) == 1
        });
    }
    disk.release();
    bench.nginx.reload();
    wait_until(SOON, "all to be reaped", || {
        askers(&bench.nginx) == 0 && bench.nginx.zombies().is_empty()
    });
    assert_eq!(bench.nginx.crashes(&[]), Vec::<String>::new());
}
