//! Undelivered events on disk: outages, kills, restarts, upgrades, and a disk that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection as Database;
use tempfile::TempDir;
use tirreno_tests::client::Connection;
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Answer, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::small_disk::SmallDisk;
use tirreno_tests::wait::{SOON, wait_for, wait_until};

/// The connections of each target in this file.
const CONNECTIONS: usize = 2;
const USERS: usize = 7;
/// So many deliveries are committed together; a kill repeats at most these.
const SETTLE: usize = 64;

fn is_full() -> bool {
    std::env::var_os("TEST_FULL").is_some()
}

/// nginx with two workers and a spool, before a sensor.
struct Bench {
    nginx: Nginx,
    sensor: Sensor,
    dir: TempDir,
}

/// A target's row of the status.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Totals {
    captured: u64,
    delivered: u64,
    rejected: u64,
    dropped: u64,
    pending: u64,
    /// Pending events in the spool, and their bytes.
    spooled: u64,
    bytes: u64,
}

impl Bench {
    /// Started with more `parameters` of the target.
    fn start(parameters: &str) -> Self {
        Self::start_with(parameters, |builder| builder)
    }

    fn start_with(parameters: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let mut bench = Self::build(parameters, change);
        bench.nginx.start();
        bench
    }

    /// With its spool on that disk, if there is one.
    fn start_on(disk: Option<&SmallDisk>, change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_with("", |builder| match disk {
            Some(disk) => {
                change(builder).var("SPOOL", &disk.path().join("spool").display().to_string())
            }
            None => change(builder),
        })
    }

    /// Not started yet.
    fn build(parameters: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let sensor = Sensor::start(SensorOptions { record_requests: false, ..Default::default() });
        let dir = tempfile::tempdir().unwrap();
        // The workers may be another user.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let spool = dir.path().join("spool").display().to_string();
        let interval = if parameters.contains("interval") { "" } else { "interval 20ms;" };
        let path = if parameters.contains("spool") { "" } else { "spool %SPOOL%;" };
        let builder = Nginx::builder()
            .workers(2)
            .sensor(&sensor.url())
            .var("SPOOL", &spool)
            .http(&format!(
                "tirreno_target {{
                     url %SENSOR%; api_key test-key; connections {CONNECTIONS};
                     {interval} {path} {parameters}
                 }}
                 map $arg_type $type {{ login account_login; }}
                 tirreno on;
                 tirreno_user $cookie_user;
                 tirreno_param eventType $type;
                 keepalive_requests 1000000;
                 lingering_close off;"
            ))
            .server(
                "location / { return 200; }
                 location /off/ { tirreno off; return 200; }
                 location = /status { tirreno off; tirreno_status; }",
            );
        Self { nginx: change(builder).build(), sensor, dir }
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    /// The spool's files whose names end with `end`.
    fn files(&self, end: &str) -> Vec<PathBuf> {
        files(&self.spool(), |name| name.ends_with(end))
    }

    /// The database.
    fn file(&self) -> PathBuf {
        wait_for(SOON, "one database", || match &self.files(".db")[..] {
            [file] => Ok(file.clone()),
            files => Err(format!("{files:?}")),
        })
    }

    /// The files that were set aside.
    fn set_aside(&self) -> Vec<PathBuf> {
        files(&self.spool(), |name| {
            let stamp = name.rsplit_once(".corrupt-").map(|(_, stamp)| stamp);
            stamp.is_some_and(|stamp| stamp.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    /// Makes the requests `from` to `from + count` one after another, of some users in turn. Returns once
    /// the last one is captured.
    fn requests(&self, from: usize, count: usize) {
        let mut connection = open(self.nginx.port()).unwrap();
        for number in from..from + count {
            get(&mut connection, &format!("/{number}"), &format!("u{}", number % USERS));
        }
        closed(connection);
    }

    fn totals(&self) -> Totals {
        let status = self.nginx.status("/status");
        let target = &status["targets"]["tirreno"];
        let count = |value: &serde_json::Value| {
            value.as_u64().unwrap_or_else(|| panic!("a count is missing in {status}"))
        };
        Totals {
            captured: count(&target["captured"]),
            delivered: count(&target["delivered"]),
            rejected: count(&target["rejected"]),
            dropped: count(&target["dropped"]),
            pending: count(&target["pending"]),
            spooled: count(&target["spool"]["events"]),
            bytes: count(&target["spool"]["bytes"]),
        }
    }

    fn wait_totals(&self, what: &str, wanted: impl Fn(&Totals) -> bool) -> Totals {
        wait_for(SOON, what, || match self.totals() {
            totals if wanted(&totals) => Ok(totals),
            totals => Err(format!("{totals:?}")),
        })
    }

    /// Waits until `count` events are in the spool, and none elsewhere.
    fn wait_spooled(&self, count: u64) {
        self.wait_totals("events in the spool", |t| (t.spooled, t.pending) == (count, count));
    }

    /// Waits until nothing is pending, and asserts that the totals add up.
    fn settled(&self) -> Totals {
        self.wait_totals("all to be settled", |t| {
            t.pending == 0 && t.captured == t.delivered + t.rejected + t.dropped
        })
    }

    /// Also asserts that all of `count` events were delivered.
    #[track_caller]
    fn assert_delivered(&self, count: u64) {
        let totals = self.settled();
        assert_eq!((totals.captured, totals.delivered), (count, count), "{totals:?}");
    }

    /// The stored requests, each user's in order, and how many events are repeats.
    #[track_caller]
    fn stored(&self) -> (BTreeSet<usize>, usize) {
        stored(&self.sensor)
    }

    /// Asserts that all requests below `count` are stored once, in order.
    #[track_caller]
    fn assert_stored(&self, count: usize) {
        assert_eq!(self.stored(), ((0..count).collect(), 0));
    }

    /// The worker that delivers, once one does.
    fn deliverer(&self) -> u32 {
        let delivers = |pid: &u32| self.nginx.thread_names(*pid).iter().any(|n| n == "tirreno-0");
        let find = || self.nginx.workers().into_iter().find(delivers).ok_or_else(String::new);
        wait_for(SOON, "a deliverer", find)
    }

    fn kill(&self, pid: u32) {
        self.nginx.signal_worker(pid, Signal::KILL);
        self.nginx.wait_gone(pid);
        wait_until(SOON, "two workers", || self.nginx.workers().len() == 2);
    }

    /// How many lines of the error log contain `text`.
    fn logged(&self, text: &str) -> usize {
        self.nginx.error_log().lines().filter(|line| line.contains(text)).count()
    }
}

fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| wanted(path.file_name().unwrap().to_str().unwrap())).collect()
}

fn open(port: u16) -> std::io::Result<Connection> {
    Connection::open(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Ends a connection. nginx closes it once its requests are logged, so requests to other workers after that
/// are captured later.
fn closed(mut connection: Connection) {
    let close = [("Connection", "close")];
    while connection.request("GET", "/off/", &close, b"").is_ok() {}
}

fn get(connection: &mut Connection, path: &str, user: &str) {
    let cookie = format!("user={user}");
    let answer = connection.request("GET", path, &[("Cookie", &cookie)], b"").unwrap();
    assert_eq!(answer.status, 200);
}

#[track_caller]
fn stored(sensor: &Sensor) -> (BTreeSet<usize>, usize) {
    stored_in_order_of(sensor, |event| event.user_name.clone())
}

/// The stored requests, each source's in order, and how many events are repeats.
#[track_caller]
fn stored_in_order_of(
    sensor: &Sensor,
    source: impl Fn(&StoredEvent) -> String,
) -> (BTreeSet<usize>, usize) {
    let stored = sensor.stored();
    let (mut traces, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut last = BTreeMap::new();
    for event in &stored {
        assert!(event.trace_id.is_some());
        if !traces.insert(event.trace_id.clone()) {
            continue;
        }
        let number: usize = event.url.trim_start_matches('/').parse().unwrap();
        assert!(numbers.insert(number), "{number} has two trace ids");
        let source = source(event);
        if let Some(before) = last.insert(source.clone(), number) {
            assert!(before < number, "{source}: {number} after {before}");
        }
    }
    (numbers, stored.len() - traces.len())
}

// Random faults.

/// Clients that together make 500 requests a second, whatever happens to nginx.
struct Load {
    clients: Vec<JoinHandle<BTreeSet<usize>>>,
    ended: Arc<AtomicBool>,
}

impl Load {
    const CLIENTS: usize = 4;
    /// The time between two requests of one client.
    const GAP: Duration = Duration::from_millis(8);

    /// After so many requests, a client opens a new connection, perhaps to another worker.
    const MOVES: usize = 4;

    fn start(port: u16) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let client = |id| {
            let ended = ended.clone();
            thread::spawn(move || Self::run(port, id, &ended))
        };
        Self { clients: (0..Self::CLIENTS).map(client).collect(), ended }
    }

    /// The requests that were answered.
    fn finish(self) -> BTreeSet<usize> {
        self.ended.store(true, SeqCst);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }

    /// Makes one request after another, and none twice.
    fn run(port: u16, id: usize, ended: &AtomicBool) -> BTreeSet<usize> {
        let mut answered = BTreeSet::new();
        let mut connection = None;
        let mut due = Instant::now();
        for n in 0.. {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += Self::GAP;
            if ended.load(SeqCst) {
                break;
            }
            let Some(mut open) = connection.take().or_else(|| open(port).ok()) else {
                continue;
            };
            let number = id + n * Self::CLIENTS;
            let path = format!("/{number}");
            let cookie = format!("user=c{id}-{}", n % 3);
            let last = if n % Self::MOVES == 0 { "close" } else { "keep-alive" };
            let headers = [("Cookie", &*cookie), ("Connection", last)];
            let Ok(answer) = open.request("GET", &path, &headers, b"") else {
                continue;
            };
            assert_eq!(answer.status, 200);
            answered.insert(number);
            if open.ended() {
                closed(open);
            } else {
                connection = Some(open);
            }
        }
        answered
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    KillWorker,
    KillDeliverer,
    Reload,
    Restart,
    SensorStops,
    SensorAnswers(u16),
}

#[test]
fn under_load_no_fault_loses_anything() {
    let seed = match std::env::var("TEST_SEED") {
        Ok(seed) => seed.parse().expect("TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // The output of a test is shown if it fails.
    println!("TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (length, times) = if is_full() { (60, 3) } else { (20, 1) };
    let length = Duration::from_secs(length);

    let mut faults = vec![Fault::Restart];
    for (fault, count) in [
        (Fault::KillWorker, 3),
        (Fault::KillDeliverer, 3),
        (Fault::Reload, 5),
        (Fault::SensorStops, 5),
        (Fault::SensorAnswers(429), 2),
        (Fault::SensorAnswers(500), 2),
    ] {
        faults.extend(vec![fault; count * times]);
    }
    random.shuffle(&mut faults);
    println!("{faults:?}");

    let mut bench = Bench::start("");
    let started = Instant::now();
    let load = Load::start(bench.nginx.port());
    let mut kills = 0;
    for (i, fault) in faults.iter().enumerate() {
        // At random times, one fault in each equal part of the time.
        let at = length.mul_f64((i as f64 + random.f64()) / faults.len() as f64);
        thread::sleep((started + at).saturating_duration_since(Instant::now()));
        let spell = Duration::from_millis(random.u64(50..700));
        match fault {
            Fault::KillWorker | Fault::KillDeliverer => {
                let pid = if *fault == Fault::KillDeliverer {
                    bench.deliverer()
                } else {
                    random.choice(bench.nginx.workers()).expect("a worker")
                };
                bench.kill(pid);
                kills += 1;
            }
            Fault::Reload => bench.nginx.reload(),
            Fault::Restart => {
                assert!(bench.nginx.quit().unwrap().success());
                bench.nginx.start();
            }
            Fault::SensorStops => {
                bench.sensor.refuse();
                thread::sleep(spell);
                bench.sensor.listen_again();
            }
            Fault::SensorAnswers(code) => {
                bench.sensor.set_default(Answer::code(*code));
                thread::sleep(spell);
                bench.sensor.set_default(Answer::normal());
            }
        }
    }
    thread::sleep((started + length).saturating_duration_since(Instant::now()));
    let answered = load.finish();
    // A new master does not know the rate that the 429s taught.
    assert!(bench.nginx.quit().unwrap().success());
    bench.nginx.start();
    // Nothing is counted before the spool is open.
    bench.wait_totals("what the spool counts", |t| t.captured > 0);
    let totals = bench.settled();

    let (stored, repeats) = bench.stored();
    let missing: Vec<_> = answered.difference(&stored).collect();
    let stops = faults.iter().filter(|fault| **fault == Fault::SensorStops).count();
    println!(
        "{} answered, {} stored, {} missing, {repeats} repeats; {totals:?}",
        answered.len(),
        stored.len(),
        missing.len()
    );
    assert!(answered.len() >= 400 * length.as_secs() as usize, "{} answered", answered.len());
    // A worker may be killed after it has answered a request and before it logs it.
    assert!(missing.len() <= kills * Load::CLIENTS, "missing: {missing:?}");
    assert!(repeats <= (kills + stops) * (SETTLE + CONNECTIONS));
    let count = stored.len() as u64;
    assert_eq!((totals.captured, totals.delivered, totals.dropped), (count, count, 0));
    assert!(bench.nginx.crashes(&[Signal::KILL]).is_empty());
}

// Outages and ends.

#[test]
fn an_outage_is_bounded_in_memory_and_drained_in_order_over_a_restart() {
    const QUEUE: u64 = 1 << 20;
    const MORE: u64 = 8 << 20;
    let count = if is_full() { 200_000 } else { 20_000 };
    let mut bench = Bench::start("queue 10000 size=1m;");
    bench.requests(0, 10);
    bench.assert_delivered(10);
    bench.sensor.refuse();
    let worker = bench.deliverer();
    let before = bench.nginx.rss_anon(worker);
    bench.requests(10, count / 2);
    bench.wait_spooled(count as u64 / 2);
    let grown = bench.nginx.rss_anon(worker).saturating_sub(before);
    println!("memory grew by {grown} bytes");
    assert!(grown <= QUEUE + MORE, "{grown} bytes");

    assert!(bench.nginx.quit().unwrap().success());
    bench.nginx.start();
    bench.requests(10 + count / 2, count / 2);
    bench.wait_spooled(count as u64);
    let totals = bench.totals();
    let disk: u64 =
        files(&bench.spool(), |_| true).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    println!("{} bytes of events, {disk} bytes of files", totals.bytes);
    // Each event is stored once, besides SQLite's log of some megabytes.
    assert!(totals.bytes >= count as u64 * 200, "{totals:?}");
    assert!(disk <= totals.bytes * 3 / 2 + (8 << 20), "{disk} bytes, {totals:?}");

    let started = Instant::now();
    bench.sensor.listen_again();
    wait_until(10 * SOON, "the end of the backlog", || bench.totals().pending == 0);
    println!("drained in {:?}", started.elapsed());
    bench.assert_delivered(count as u64 + 10);
    bench.assert_stored(count + 10);
    assert_eq!(bench.totals().bytes, 0);
    wait_until(SOON, "an empty log of the database", || {
        bench.files(".db-wal").iter().all(|file| fs::metadata(file).unwrap().len() == 0)
    });
}

#[test]
fn kills_of_the_deliverer_lose_nothing() {
    const ROUNDS: usize = 6;
    let bench = Bench::start("");
    for round in 0..ROUNDS {
        bench.requests(round * 300, 300);
        bench.kill(bench.deliverer());
    }
    bench.assert_delivered(ROUNDS as u64 * 300);
    let (stored, repeats) = bench.stored();
    assert_eq!(stored, (0..ROUNDS * 300).collect());
    assert!(repeats <= ROUNDS * (SETTLE + CONNECTIONS), "{repeats} repeats");
}

#[test]
fn a_stop_at_once_with_a_backlog_loses_nothing() {
    // The master gives its workers a second, however slow the disk is.
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("disk"), "64m");
    let mut bench = Bench::start_on(disk.as_ref(), |b| b);
    bench.sensor.refuse();
    bench.requests(0, 1000);
    let started = Instant::now();
    assert!(bench.nginx.term().unwrap().success());
    // Well before the master would kill its workers.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    bench.nginx.start();
    bench.wait_spooled(1000);
    bench.sensor.listen_again();
    bench.assert_delivered(1000);
    bench.assert_stored(1000);
}

#[test]
fn killing_all_processes_loses_the_last_moments_at_most() {
    // The interval, and one second more.
    const LAST: Duration = Duration::from_millis(200 + 1000);
    let mut bench = Bench::start("interval 200ms;");
    bench.sensor.refuse();
    let mut connection = open(bench.nginx.port()).unwrap();
    let mut answered = Vec::new();
    let started = Instant::now();
    while started.elapsed() < 2 * LAST {
        get(&mut connection, &format!("/{}", answered.len()), "u");
        answered.push(Instant::now());
        thread::sleep(Duration::from_millis(2));
    }
    let workers = bench.nginx.workers();
    let killed = Instant::now();
    bench.nginx.signal(Signal::KILL);
    workers.iter().for_each(|pid| bench.nginx.signal_worker(*pid, Signal::KILL));
    workers.iter().for_each(|pid| bench.nginx.wait_gone(*pid));
    wait_until(SOON, "the master's end", || !bench.nginx.is_running());
    // No nginx has this process id any more.
    fs::remove_file(bench.nginx.prefix().join("nginx.pid")).unwrap();

    bench.nginx.start();
    bench.sensor.listen_again();
    bench.wait_totals("the spool to be read", |t| t.captured > 0);
    bench.settled();
    let kept = answered.iter().filter(|at| **at + LAST < killed).count();
    let (stored, repeats) = bench.stored();
    println!(
        "{} requests, {kept} of them before the last moments; {} stored",
        answered.len(),
        stored.len()
    );
    assert!(kept >= 100, "{kept} of {}", answered.len());
    assert!(stored.is_superset(&(0..kept).collect()), "{} of {kept}", stored.len());
    assert_eq!(repeats, 0);
}

#[test]
fn two_masters_share_the_spool() {
    let mut bench =
        Bench::start_with("", |builder| builder.daemon().http("tirreno_param pageTitle $pid;"));
    let load = Load::start(bench.nginx.port());
    bench.sensor.wait_stored(300, SOON).unwrap();
    let old = bench.nginx.master_pid();
    let new = bench.nginx.usr2();
    // Workers of both accept connections.
    let goal = bench.sensor.stored_count() + 1000;
    bench.sensor.wait_stored(goal, SOON).unwrap();
    let old_workers = bench.nginx.workers_of(old);
    assert!(!old_workers.is_empty() && !bench.nginx.workers_of(new).is_empty());
    assert_ne!(old, new);
    bench.nginx.signal_worker(old, Signal::QUIT);
    bench.nginx.wait_gone(old);
    bench.sensor.wait_stored(goal + 500, SOON).unwrap();
    let answered = load.finish();
    let totals = bench.settled();
    // Events of two masters are in order while a commit takes less than three seconds, which a busy machine does not
    // promise; those of each are in any case.
    let (stored, repeats) = stored_in_order_of(&bench.sensor, |event| {
        let pid = event.page_title.as_ref().and_then(|pid| pid.parse().ok()).expect("a worker");
        format!("{} by the old master: {}", event.user_name, old_workers.contains(&pid))
    });
    assert!(stored.is_superset(&answered), "{} of {}", stored.len(), answered.len());
    assert_eq!(repeats, 0);
    assert_eq!((totals.delivered, totals.dropped), (stored.len() as u64, 0));
    assert!(bench.nginx.crashes(&[]).is_empty());
}

// A disk that fails.

const DAMAGED: &str = "the damaged file is kept as";
const AGAIN: &str = "spool: it works again";

#[test]
fn a_file_that_is_no_database_is_set_aside_at_the_start() {
    const GARBAGE: &[u8] = &[0x5a; 20_000];
    let mut bench = Bench::start("");
    bench.requests(0, 10);
    bench.assert_delivered(10);
    let file = bench.file();
    assert!(bench.nginx.quit().unwrap().success());
    // SQLite's log may still have the file's content.
    files(&bench.spool(), |name| name.contains(".db-"))
        .iter()
        .for_each(|file| fs::remove_file(file).unwrap());
    fs::write(&file, GARBAGE).unwrap();
    bench.nginx.start();
    bench.requests(10, 50);
    bench.sensor.wait_stored(60, SOON).unwrap();
    bench.assert_stored(60);
    bench.nginx.wait_log(DAMAGED);
    let aside = bench.set_aside();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read(&aside[0]).unwrap(), GARBAGE);
    // The totals in the file are lost.
    bench.assert_delivered(50);
    assert_eq!(bench.logged(DAMAGED), 1);
}

#[test]
fn a_database_that_is_damaged_at_run_time_is_set_aside() {
    let bench = Bench::start("");
    bench.requests(0, 100);
    bench.assert_delivered(100);
    bench.sensor.refuse();
    bench.requests(100, 20);
    bench.wait_spooled(20);
    // Once the next event is in the spool, the earlier ones are on their way to a connection.
    bench.requests(120, 1);
    bench.wait_spooled(21);
    {
        let database = Database::open(bench.file()).unwrap();
        database.pragma_update(None, "writable_schema", true).unwrap();
        let damage = "UPDATE sqlite_schema SET sql = 'damaged' WHERE name = 'pending'";
        assert_eq!(database.execute(damage, []).unwrap(), 1);
        database.pragma_update(None, "schema_version", 1000).unwrap();
    }
    bench.nginx.wait_log(DAMAGED);
    bench.requests(121, 100);
    bench.sensor.listen_again();
    // Events on their way to a connection are sent, too; the last event may be only in the damaged file.
    let wanted: BTreeSet<_> = (0..120).chain(121..221).collect();
    wait_for(SOON, "all to be stored", || {
        let stored = bench.stored().0;
        let missing: Vec<_> = wanted.difference(&stored).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    });
    bench.settled();
    assert_eq!(bench.stored().1, 0, "repeats");
    assert_eq!((bench.set_aside().len(), bench.files(".db").len()), (1, 1));
    // After further kills and restarts, the new file is found.
    bench.kill(bench.deliverer());
    let before = bench.sensor.stored_count();
    bench.requests(221, 50);
    bench.sensor.wait_stored(before + 50, SOON).unwrap();
    assert_eq!(bench.logged(DAMAGED), 1);
}

#[test]
fn a_read_only_directory_is_done_without() {
    if !is_root() {
        println!("skipped: only root can start workers as another user");
        return;
    }
    let bench = Bench::start_with("", |b| b.user("nobody nogroup"));
    bench.requests(0, 100);
    bench.assert_delivered(100);
    let chmod = |dir: u32, file: u32| {
        for path in files(&bench.spool(), |_| true) {
            // SQLite may have deleted its own files already.
            let _ = fs::set_permissions(path, Permissions::from_mode(file));
        }
        fs::set_permissions(bench.spool(), Permissions::from_mode(dir)).unwrap();
    };
    chmod(0o500, 0o400);
    // The next deliverer finds the spool read-only.
    bench.kill(bench.deliverer());
    bench.requests(100, 100);
    bench.sensor.wait_stored(200, SOON).unwrap();
    let line = bench.nginx.wait_log("events are kept in memory while it lasts");
    assert!(line.contains("[error]") && line.contains(&bench.file().display().to_string()));
    assert!(line.contains("read-only") || line.contains("cannot be opened"), "{line}");
    chmod(0o700, 0o600);
    bench.nginx.wait_log(AGAIN);
    bench.sensor.refuse();
    bench.requests(200, 100);
    bench.wait_spooled(100);
    bench.sensor.listen_again();
    bench.sensor.wait_stored(300, SOON).unwrap();
    bench.settled();
    assert_eq!(bench.stored().0, (0..300).collect());
    assert_eq!(bench.logged("events are kept in memory while it lasts"), 1);
}

/// A small file system below that directory, where one can be mounted.
fn small_disk(directory: &Path, size: &str) -> Option<SmallDisk> {
    let disk = SmallDisk::mount(&directory.join("disk"), size);
    if disk.is_none() {
        println!("skipped: a file system cannot be mounted here");
    }
    disk
}

#[test]
fn a_full_disk_is_done_without_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(dir.path(), "16m") else { return };
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 7 << 20]).unwrap();
    let spool = disk.path().join("spool").display().to_string();
    let bench = Bench::start_with("queue 10000;", |b| b.var("SPOOL", &spool));
    bench.sensor.refuse();
    let full = "the disk is full";
    let mut count = 0;
    wait_until(SOON, "a full disk", || {
        bench.requests(count, 100);
        count += 100;
        bench.logged(full) > 0
    });
    // SQLite may have freed some room in its log.
    fs::write(disk.path().join("more"), vec![0; 4 << 20]).unwrap();
    // Requests go on, and no event is dropped: events without room on the disk are in memory.
    bench.requests(count, 500);
    count += 500;
    bench.wait_totals("all to be pending", |t| t.pending == count as u64);
    let totals = bench.totals();
    assert!(totals.spooled < totals.pending && totals.dropped == 0, "{totals:?}");
    // Tirreno is down, too, but that is not why events are in memory.
    let reason = wait_for(SOON, "the disk to be named", || {
        let row = bench.nginx.status("/status")["targets"]["tirreno"].clone();
        if row["state"] == "degraded" {
            Ok(row["last_error"].clone())
        } else {
            Err(row.to_string())
        }
    });
    assert_eq!(reason, "disk full");
    // Another program fills the disk: delivery goes on, and is recorded once there is room.
    let rest = disk.path().join("rest");
    assert!(fs::write(&rest, vec![0; 16 << 20]).is_err());
    bench.sensor.listen_again();
    // Each of thousands of events is noted on a disk that is full.
    bench.sensor.wait_stored(count, 5 * SOON).unwrap();
    fs::remove_file(&rest).unwrap();
    fs::remove_file(disk.path().join("more")).unwrap();
    fs::remove_file(&filler).unwrap();
    bench.nginx.wait_log(AGAIN);
    bench.assert_delivered(count as u64);
    bench.assert_stored(count);
    assert_eq!(bench.logged(full), 1);
    drop(bench);
}

#[test]
fn what_went_to_memory_enters_the_spool_when_that_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(dir.path(), "20m") else { return };
    let spool = disk.path().join("spool").display().to_string();
    let filler = disk.path().join("filler");
    let parameters = "queue 10000; shutdown_timeout 1s; rate 100r/s;";
    let mut bench = Bench::start_with(parameters, |b| b.var("SPOOL", &spool));
    let mut count = 0;
    for ending in ["none", "reload", "quit", "term"] {
        let before = bench.settled().delivered;
        fs::write(&filler, vec![0; 14 << 20]).unwrap();
        bench.requests(count, 300);
        count += 300;
        // They are in memory, and with the connections.
        bench.wait_totals("some to be sent", |t| t.spooled == 0 && t.delivered > before);
        bench.sensor.refuse();
        fs::remove_file(&filler).unwrap();
        match ending {
            "reload" => bench.nginx.reload(),
            "quit" | "term" => {
                let status = if ending == "quit" { bench.nginx.quit() } else { bench.nginx.term() };
                assert!(status.unwrap().success());
                bench.nginx.start();
            }
            // No further event is needed.
            _ => {}
        }
        bench.wait_totals("all to be in the spool", |t| t.spooled > 0 && t.pending == t.spooled);
        for pid in bench.nginx.workers() {
            bench.kill(pid);
        }
        bench.sensor.listen_again();
    }
    bench.settled();
    assert_eq!(bench.stored().0, (0..count).collect());
    assert_eq!(bench.logged("dropped"), 0);
    drop(bench);
}

#[test]
fn a_full_spool_keeps_logins() {
    const LOGINS: usize = 40;
    const VIEWS: usize = 4000;
    for when_full in ["drop_oldest", "drop_newest"] {
        let bench = Bench::start(&format!("spool %SPOOL% max_size=1m when_full={when_full};"));
        bench.sensor.refuse();
        let mut connection = open(bench.nginx.port()).unwrap();
        let mut send = |count: usize, query: &str| {
            for number in 0..count {
                get(&mut connection, &format!("/{number}?{query}"), "u");
            }
        };
        send(LOGINS, "type=login");
        // More than are on their way to Tirreno, because those cannot be displaced.
        send(VIEWS, &format!("long={}", "x".repeat(100)));
        send(LOGINS, "type=login");
        let sent = (VIEWS + 2 * LOGINS) as u64;
        let totals = bench.wait_totals("all in the spool", |t| {
            t.captured == sent && t.pending + t.dropped == sent && t.spooled == t.pending
        });
        assert!(totals.dropped >= 500 && totals.bytes <= 1 << 20, "{totals:?}");
        let full = "events dropped, the spool is full";
        let dropped_in_log = || -> u64 {
            let log = bench.nginx.error_log();
            let lines = log.lines().filter(|line| line.contains(full));
            let count = |line: &str| -> Option<u64> {
                line.split(full).next()?.trim().rsplit(' ').next()?.parse().ok()
            };
            lines
                .map(|line| count(line).unwrap_or_else(|| panic!("no number: {line}")))
                .sum::<u64>()
        };
        wait_until(SOON, "all drops to be said", || dropped_in_log() == totals.dropped);

        bench.sensor.listen_again();
        let delivered = bench.settled().delivered;
        assert_eq!(delivered, sent - totals.dropped);
        let stored = bench.sensor.stored();
        let logins = stored.iter().filter(|event| event.event_type == "account_login").count();
        assert_eq!((logins, stored.len() as u64), (2 * LOGINS, delivered), "{when_full}");
        let last = format!("/{}?long=", VIEWS - 1);
        let last = stored.iter().any(|event| event.url.starts_with(&last));
        assert_eq!(last, when_full == "drop_oldest");
    }
}

// The directory.

/// Whether the tests can change users.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn the_directory_is_for_the_workers_user_only() {
    if !is_root() {
        println!("skipped: only root can start workers as another user");
        return;
    }
    let mut bench = Bench::build("", |b| b.user("nobody nogroup"));
    let nobody = bench.dir.path().join("file");
    fs::write(&nobody, "").unwrap();
    let chown = Command::new("chown").arg("nobody").arg(&nobody).status();
    assert!(chown.unwrap().success());
    let nobody = fs::metadata(&nobody).unwrap().uid();

    bench.nginx.start();
    bench.sensor.refuse();
    bench.requests(0, 10);
    bench.wait_spooled(10);
    let dir = fs::metadata(bench.spool()).unwrap();
    assert_eq!((dir.uid(), dir.mode() & 0o7777), (nobody, 0o700));
    let files = files(&bench.spool(), |_| true);
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (nobody, 0o600), "{}", file.display());
    }

    // If the workers' user replaces the lock by a link, the master as root does not follow it.
    let lock = bench.files(".lock").remove(0);
    let roots = bench.dir.path().join("roots");
    fs::write(&roots, "").unwrap();
    assert!(bench.nginx.quit().unwrap().success());
    fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink(&roots, &lock).unwrap();
    bench.nginx.start();
    bench.nginx.wait_log("cannot be used");
    assert_eq!(fs::metadata(&roots).unwrap().uid(), 0);
}

#[test]
fn a_path_that_cannot_be_used_is_an_error_at_the_start() {
    let spool = |path: &Path| {
        let path = path.display().to_string();
        Bench::build("", |b| b.var("SPOOL", &path))
    };
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing/spool");
    let (good, said) = spool(&missing).nginx.test();
    assert!(!good && said.contains(&format!("mkdir() \"{}\" failed", missing.display())), "{said}");

    let (good, said) = spool(&dir.path().join("spool")).nginx.test();
    assert!(good, "{said}");
}

#[test]
fn a_directory_that_the_workers_cannot_reach_is_an_error_at_the_start() {
    if !is_root() {
        println!("skipped: only root can start workers as another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let above = dir.path().join("above");
    fs::create_dir(&above).unwrap();
    let test = |mode: u32| {
        fs::set_permissions(&above, Permissions::from_mode(mode)).unwrap();
        let path = above.join("spool").display().to_string();
        Bench::build("", |b| b.var("SPOOL", &path).user("nobody nogroup")).nginx.test()
    };
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let (good, said) = test(0o700);
    let must = format!("the workers cannot write in the directory \"{}/spool\"", above.display());
    assert!(!good && said.contains(&must) && said.contains("nginx.conf:"), "{said}");
    let (good, said) = test(0o711);
    assert!(good, "{said}");
}

#[test]
fn a_directory_that_is_somebody_elses_is_not_given_to_the_workers() {
    if !is_root() {
        println!("skipped: only root can start workers as another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("etc");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("passwd"), "").unwrap();
    let test = |user: &str| {
        let path = foreign.display().to_string();
        let bench = Bench::build("", |b| b.var("SPOOL", &path).user(user));
        bench.nginx.test()
    };
    let (good, said) = test("nobody nogroup");
    assert!(!good && said.contains("nginx.conf:"), "{said}");
    let must = format!("the directory \"{}\" holds \"passwd\"", foreign.display());
    assert!(said.contains(&must) && said.contains("name one that does not exist yet"), "{said}");
    assert_eq!(fs::metadata(&foreign).unwrap().uid(), 0, "it is still its owner's");
    // A directory that belongs to the workers' user may contain anything.
    let (good, said) = test("root");
    assert!(good, "{said}");
    // If root owns a restored spool or an empty directory, it is given to the workers' user again.
    fs::rename(foreign.join("passwd"), foreign.join("tirreno-01234567.db")).unwrap();
    let (good, said) = test("nobody nogroup");
    assert!(good, "{said}");
    fs::remove_file(foreign.join("tirreno-01234567.db")).unwrap();
    let (good, said) = test("nobody nogroup");
    assert!(good, "{said}");
}

// What is in it.

#[test]
fn events_for_another_url_wait_until_it_is_set_again() {
    let mut bench = Bench::start("");
    let other = Sensor::start(SensorOptions::default());
    bench.sensor.refuse();
    bench.requests(0, 100);
    bench.wait_spooled(100);
    let old = bench.file();
    bench.nginx.reconfigure(|b| b.sensor(&other.url()));
    bench.nginx.reload();
    bench.requests(100, 50);
    other.wait_stored(50, SOON).unwrap();
    let line = bench.nginx.wait_log("for another url of this target");
    assert!(line.contains(&format!("100 events in \"{}\"", old.display())), "{line}");

    bench.sensor.listen_again();
    let url = bench.sensor.url();
    bench.nginx.reconfigure(|b| b.sensor(&url));
    bench.nginx.reload();
    bench.sensor.wait_stored(100, SOON).unwrap();
    bench.assert_stored(100);
    assert_eq!(stored(&other), ((100..150).collect(), 0));
}

#[test]
fn a_rejected_event_is_kept_with_its_reason_and_can_be_sent_again() {
    let bench = Bench::start("");
    bench.sensor.set_rule("/7", Answer::code(400));
    bench.requests(0, 10);
    let mut count = 10;
    let reasons = wait_for(SOON, "an event to be set aside", || {
        // Other events are accepted meanwhile, so it is the event's fault.
        bench.requests(count * 10, 1);
        count += 1;
        thread::sleep(Duration::from_millis(20));
        let reasons =
            bench.nginx.status("/status")["targets"]["tirreno"]["spool"]["set_aside"].clone();
        if reasons == serde_json::json!({}) { Err(reasons.to_string()) } else { Ok(reasons) }
    });
    assert_eq!(reasons, serde_json::json!({ "answered 400": 1 }));
    let totals = bench.settled();
    assert_eq!((totals.captured, totals.rejected, totals.dropped), (count as u64, 1, 0));

    bench.sensor.clear_rules();
    let mut database = Database::open(bench.file()).unwrap();
    database.busy_timeout(Duration::from_secs(5)).unwrap();
    let (user, reason, body): (String, String, String) = database
        .query_row("SELECT user, reason || ' ' || status, body FROM rejected", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .unwrap();
    assert_eq!((&*user, &*reason), ("u0", "answered 400"));
    assert!(body.contains("url=%2F7&"), "{body}");
    // The statements in the documentation.
    let tx = database.transaction().unwrap();
    tx.execute_batch(
        "INSERT INTO pending (trace_id, captured, type, rank, user, user_key, realm, identity, repeated, body)
             SELECT trace_id, captured, type, rank, user, user_key, realm, identity, repeated, body
             FROM rejected;
         DELETE FROM rejected",
    )
    .unwrap();
    tx.commit().unwrap();
    bench.sensor.wait_stored(count, SOON).unwrap();
    assert_eq!(bench.sensor.stored().last().unwrap().url, "/7");
    wait_until(SOON, "an empty list", || {
        bench.nginx.status("/status")["targets"]["tirreno"]["spool"]["set_aside"]
            == serde_json::json!({})
    });
}
