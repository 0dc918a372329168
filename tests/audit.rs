//! Audit targets: files, syslog, connections and nginx's own output, each with real receivers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flate2::read::GzDecoder;
use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::client::Connection;
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::wait::{wait_for, wait_until};

const SOON: Duration = Duration::from_secs(60);
/// The name of the thread that each deliverer with a file has.
const FILE_THREAD: &str = "tirreno-file";

/// nginx and a directory that its workers may write in.
struct Bench {
    nginx: Nginx,
    dir: TempDir,
}

/// A target's row of the status.
#[derive(Clone, Debug)]
struct Row {
    kind: String,
    state: String,
    captured: u64,
    delivered: u64,
    rejected: u64,
    dropped: u64,
    pending: u64,
    last_error: Option<String>,
}

impl Bench {
    /// With these targets; `%DIR%` is the directory.
    fn start(targets: &str) -> Self {
        Self::start_with(targets, |builder| builder)
    }

    fn start_with(targets: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let mut bench = Self::build(targets, change);
        bench.nginx.start();
        bench
    }

    /// Not started yet.
    fn build(targets: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = Nginx::builder()
            .var("DIR", dir.path().to_str().unwrap())
            .http(targets)
            .http(
                "map $arg_type $type { login account_login; fail account_login_fail; }
                 tirreno on;
                 tirreno_user $cookie_user;
                 tirreno_param eventType $type;
                 keepalive_requests 1000000;
                 lingering_close off;",
            )
            .server(
                "location / { return 200; }
                 location = /status { tirreno off; tirreno_status; }",
            );
        Self { nginx: change(builder).build(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Requests the numbers one after another, each as its path.
    fn requests(&self, numbers: impl IntoIterator<Item = usize>) {
        let mut connection = open(self.nginx.port()).unwrap();
        for number in numbers {
            get(&mut connection, &format!("/{number}"), "u1");
        }
    }

    fn row(&self, target: &str) -> Row {
        let status = self.nginx.status("/status");
        let row = &status["targets"][target];
        let count = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {status}"));
        Row {
            kind: row["type"].as_str().unwrap().into(),
            state: row["state"].as_str().unwrap().into(),
            captured: count("captured"),
            delivered: count("delivered"),
            rejected: count("rejected"),
            dropped: count("dropped"),
            pending: count("pending"),
            last_error: row["last_error"].as_str().map(Into::into),
        }
    }

    fn wait_row(&self, target: &str, what: &str, wanted: impl Fn(&Row) -> bool) -> Row {
        wait_for(SOON, what, || match self.row(target) {
            row if wanted(&row) => Ok(row),
            row => Err(format!("{row:?}")),
        })
    }

    /// Waits until nothing is pending and the counts add up.
    fn settled(&self, target: &str) -> Row {
        self.wait_row(target, "all to be settled", |row| {
            row.pending == 0 && row.captured == row.delivered + row.rejected + row.dropped
        })
    }

    /// The worker that delivers, once there is one.
    fn deliverer(&self) -> u32 {
        let delivers = |pid: &u32| self.nginx.thread_names(*pid).iter().any(|n| n == FILE_THREAD);
        let find = || self.nginx.workers().into_iter().find(delivers).ok_or_else(String::new);
        wait_for(SOON, "a deliverer", find)
    }

    /// The names in the directory that start so, sorted.
    fn names(&self, start: &str) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(start)).collect();
        names.sort();
        names
    }

    /// The numbers in a file, in order; each line must be whole.
    fn numbers(&self, name: &str) -> Vec<usize> {
        numbers(&fs::read(self.path(name)).unwrap())
    }
}

fn open(port: u16) -> std::io::Result<Connection> {
    Connection::open(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn get(connection: &mut Connection, path: &str, user: &str) {
    let cookie = format!("user={user}");
    let answer = connection.request("GET", path, &[("Cookie", &cookie)], b"").unwrap();
    assert_eq!(answer.status, 200);
}

/// The JSON objects of some lines.
#[track_caller]
fn records(lines: &[u8]) -> Vec<Value> {
    assert!(lines.is_empty() || lines.ends_with(b"\n"), "the last line is torn");
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let text = String::from_utf8_lossy(line);
            serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {text}"))
        })
        .collect()
}

/// The number that was requested.
fn number(record: &Value) -> Option<usize> {
    record["url"].as_str()?.trim_start_matches('/').split('?').next()?.parse().ok()
}

#[track_caller]
fn numbers(lines: &[u8]) -> Vec<usize> {
    records(lines).iter().map(|record| number(record).unwrap()).collect()
}

fn unzip(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut content).unwrap();
    content
}

// Files.

const FILE: &str = "tirreno_target audit { type file; path %DIR%/audit.log; interval 20ms; }";

#[test]
fn a_file_gets_the_events_that_are_for_it() {
    let bench = Bench::start(
        "tirreno_target every { type file; path %DIR%/all.log; interval 20ms; }
         tirreno_target logins {
             type file; path %DIR%/logins.log; interval 20ms; events account_*;
         }",
    );
    bench.requests(0..3);
    let mut connection = open(bench.nginx.port()).unwrap();
    get(&mut connection, "/3?type=login", "u1");
    let row = bench.settled("every");
    assert_eq!((row.kind.as_str(), row.state.as_str(), row.delivered), ("file", "ok", 4));
    assert_eq!(bench.settled("logins").captured, 1);
    assert_eq!(bench.numbers("all.log"), [0, 1, 2, 3]);
    assert_eq!(bench.numbers("logins.log"), [3]);
    let mode = fs::metadata(bench.path("all.log")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[test]
fn logrotate_may_move_the_file() {
    let bench = Bench::start(FILE);
    for round in 0..3 {
        bench.requests(2 * round..2 * round + 2);
        bench.settled("audit");
        fs::rename(bench.path("audit.log"), bench.path(&format!("audit.log.{round}"))).unwrap();
        bench.nginx.signal(Signal::USR1);
    }
    bench.requests(6..8);
    bench.settled("audit");
    for (round, name) in
        ["audit.log.0", "audit.log.1", "audit.log.2", "audit.log"].iter().enumerate()
    {
        assert_eq!(bench.numbers(name), [2 * round, 2 * round + 1]);
    }
}

#[test]
fn the_real_logrotate_works() {
    let bench = Bench::start(FILE);
    bench.requests(0..5);
    bench.settled("audit");
    let Some(logrotate) = ["/usr/sbin/logrotate", "/usr/bin/logrotate"]
        .into_iter()
        .find(|path| Path::new(path).exists())
    else {
        return;
    };
    let config = bench.path("logrotate.conf");
    let log = bench.path("audit.log");
    fs::write(&config, format!("{} {{ create 0640\n rotate 2\n su root root }}\n", log.display()))
        .unwrap();
    fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
    let state = bench.path("state");
    let status = Command::new(logrotate).arg("-f").arg("-s").arg(&state).arg(&config).status();
    assert!(status.unwrap().success());
    bench.requests(5..8);
    bench.settled("audit");
    assert_eq!(bench.numbers("audit.log.1"), [0, 1, 2, 3, 4]);
    assert_eq!(bench.numbers("audit.log"), [5, 6, 7]);
}

#[test]
fn what_a_kill_left_torn_is_cut_off() {
    let mut bench = Bench::build(FILE, |builder| builder);
    fs::write(bench.path("audit.log"), "{\"url\":\"/7\"}\n{\"url\":\"/8").unwrap();
    bench.nginx.start();
    bench.requests([9]);
    bench.settled("audit");
    assert_eq!(bench.numbers("audit.log"), [7, 9]);
    bench.nginx.wait_log("10 bytes of a torn line were cut off");
}

/// Limits the size of the files that the deliverer writes.
fn limit_files(pid: u32, bytes: &str) {
    let (pid, limit) = (format!("--pid={pid}"), format!("--fsize={bytes}:"));
    assert!(Command::new("prlimit").args([pid, limit]).status().unwrap().success());
}

/// Fills a file with whole lines, beyond what nginx's own log takes.
fn fill(path: &Path) -> u64 {
    fs::write(path, "{\"url\":\"/0\"}\n".repeat(100_000)).unwrap();
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_full_disk_tears_nothing_and_loses_nothing() {
    let mut bench = Bench::build(FILE, |builder| builder);
    let size = fill(&bench.path("audit.log"));
    bench.nginx.start();
    // Half of the batch would fit.
    limit_files(bench.deliverer(), &(size + 700).to_string());
    bench.requests(1..=20);
    let row = bench.wait_row("audit", "the full disk", |row| {
        row.state == "retrying" && row.pending + row.delivered == 20 && row.pending > 0
    });
    assert_eq!(row.last_error.as_deref(), Some("disk full"));
    bench.numbers("audit.log");
    bench.requests(21..=40);
    limit_files(bench.deliverer(), "unlimited");
    let row = bench.settled("audit");
    assert_eq!((row.delivered, row.dropped, row.state.as_str()), (40, 0, "ok"));
    let numbers: Vec<_> =
        bench.numbers("audit.log").into_iter().filter(|number| *number > 0).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[test]
fn what_the_queue_has_no_room_for_is_reported_in_the_file() {
    let target = FILE.replace("interval", "queue 10; interval");
    let mut bench = Bench::build(&target, |builder| builder);
    let size = fill(&bench.path("audit.log"));
    bench.nginx.start();
    let deliverer = bench.deliverer();
    limit_files(deliverer, &(size + 10).to_string());
    bench.requests(1..=30);
    // Up to 80 % of the queue is for page views.
    let row = bench.wait_row("audit", "drops", |row| row.dropped == 22);
    assert_eq!((row.captured, row.pending), (30, 8));
    limit_files(deliverer, "unlimited");
    bench.wait_row("audit", "the rest", |row| row.delivered == 8);
    let dropped = || {
        let records = records(&fs::read(bench.path("audit.log")).unwrap());
        records.iter().filter(|record| number(record).is_none()).cloned().collect::<Vec<_>>()
    };
    wait_until(SOON, "the record of the drops", || dropped().len() == 1);
    assert!(dropped()[0].to_string().contains("22"), "{:?}", dropped());
    bench.requests([31]);
    let row = bench.settled("audit");
    assert_eq!((row.captured, row.delivered, row.dropped), (31, 9, 22));
    let records = records(&fs::read(bench.path("audit.log")).unwrap());
    assert_eq!(number(&records[records.len() - 1]), Some(31));
    assert_eq!(dropped().len(), 1);
}

/// Clients that request numbers, each once, until they are told to stop.
struct Load {
    clients: Vec<JoinHandle<(BTreeSet<usize>, usize)>>,
    answered: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Load {
    const CLIENTS: usize = 4;

    fn start(port: u16, count: usize) -> Self {
        let (answered, ended) = (Arc::default(), Arc::default());
        let client = |id| {
            let (answered, ended) = (Arc::clone(&answered), Arc::clone(&ended));
            thread::spawn(move || Self::run(port, id, count / Self::CLIENTS, &answered, &ended))
        };
        Self { clients: (0..Self::CLIENTS).map(client).collect(), answered, ended }
    }

    /// The numbers that are certainly captured, and how many were tried.
    fn finish(self) -> (BTreeSet<usize>, usize) {
        let clients = self.clients.into_iter().map(|client| client.join().unwrap());
        let all = clients.reduce(|(mut a, n), (b, m)| {
            a.extend(b);
            (a, n + m)
        });
        all.unwrap()
    }

    fn run(
        port: u16,
        id: usize,
        least: usize,
        answered: &AtomicUsize,
        ended: &AtomicBool,
    ) -> (BTreeSet<usize>, usize) {
        let mut certain = BTreeSet::new();
        // A connection, and the last request that it answered: that one is certainly captured when
        // the next one is answered.
        let mut connection: Option<(Connection, Option<usize>)> = None;
        let mut tried = 0;
        while certain.len() < least || !ended.load(SeqCst) {
            if certain.len() >= least {
                thread::sleep(Duration::from_millis(2));
            }
            let Some((mut open, before)) =
                connection.take().or_else(|| Some((open(port).ok()?, None)))
            else {
                continue;
            };
            let number = id + tried * Self::CLIENTS;
            tried += 1;
            let cookie = format!("user=c{id}");
            let path = format!("/{number}");
            let agent = ("User-Agent", "an audit of twenty thousand requests and some faults");
            let Ok(answer) = open.request("GET", &path, &[("Cookie", &cookie), agent], b"") else {
                continue;
            };
            assert_eq!(answer.status, 200);
            certain.extend(before);
            answered.fetch_add(1, SeqCst);
            if !open.ended() {
                connection = Some((open, Some(number)));
            }
        }
        (certain, tried)
    }
}

#[test]
fn no_fault_tears_or_loses_a_line() {
    let count = if std::env::var_os("TEST_FULL").is_some() { 100_000 } else { 20_000 };
    let bench = Bench::start_with(
        "tirreno_target audit {
             type file; path %DIR%/audit.log; interval 50ms;
             max_size 1m; compress on;
         }",
        |builder| builder.workers(4),
    );
    let load = Load::start(bench.nginx.port(), count);
    let (mut reloads, mut reopens, mut kills) = (0, 0, 0);
    let mut moved = Vec::new();
    // Over the whole of the load, in turn: R reloads, U moves the file and reopens, K kills.
    for (step, fault) in "RURKRURKRURRURKRUR".chars().enumerate() {
        let due = count * (step + 1) / 20;
        wait_until(SOON * 5, "the load", || load.answered.load(SeqCst) >= due);
        match fault {
            'R' => {
                bench.nginx.reload();
                reloads += 1;
            }
            'U' => {
                let name = format!("moved.{step}");
                // It may just have been rotated.
                wait_until(SOON, "the file", || {
                    fs::rename(bench.path("audit.log"), bench.path(&name)).is_ok()
                });
                moved.push(name);
                bench.nginx.signal(Signal::USR1);
                reopens += 1;
            }
            _ => {
                let deliverer = bench.deliverer();
                bench.nginx.signal_worker(deliverer, Signal::KILL);
                bench.nginx.wait_gone(deliverer);
                wait_until(SOON, "four workers", || bench.nginx.workers().len() == 4);
                kills += 1;
            }
        }
    }
    assert_eq!((reloads, reopens, kills), (10, 5, 3));
    load.ended.store(true, SeqCst);
    let (certain, tried) = load.finish();
    bench.wait_row("audit", "the end", |row| row.pending == 0);

    let uncompressed = |name: &String| !name.ends_with(".gz");
    wait_for(SOON, "all to be compressed", || {
        let rest: Vec<_> = bench.names("audit-").into_iter().filter(uncompressed).collect();
        if rest.is_empty() { Ok(()) } else { Err(format!("{rest:?}")) }
    });
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    let backups = bench.names("audit-");
    let mut add = |lines: &[u8], name: &str| {
        assert!(lines.len() <= 1 << 20, "{name} has {} bytes", lines.len());
        numbers(lines).into_iter().for_each(|number| *found.entry(number).or_default() += 1);
    };
    backups.iter().for_each(|name| add(&unzip(&bench.path(name)), name));
    moved.iter().for_each(|name| add(&fs::read(bench.path(name)).unwrap(), name));
    add(&fs::read(bench.path("audit.log")).unwrap(), "audit.log");
    assert!(backups.len() >= count * 100 / (1 << 20), "{backups:?}");

    let lost: Vec<_> = certain.iter().filter(|number| !found.contains_key(number)).collect();
    assert!(lost.is_empty(), "{} of {tried} are lost: {lost:?}", lost.len());
    assert!(found.len() <= tried);
    // A kill can fall between writing a batch and freeing it.
    let repeats: usize = found.values().map(|times| times - 1).sum();
    println!("{tried} requests, {repeats} repeats");
    assert!(repeats <= kills * 512, "{repeats} repeats");
    assert_eq!(bench.nginx.crashes(&[Signal::KILL]), Vec::<String>::new());
}

#[test]
fn backups_are_kept_as_configured() {
    let bench = Bench::start(
        "tirreno_target audit {
             type file; path %DIR%/audit.log; interval 10ms; batch_size 10;
             max_size 2k; max_backups 3; compress on;
         }",
    );
    bench.requests(0..300);
    bench.settled("audit");
    wait_for(SOON, "three backups", || match bench.names("audit-") {
        names if names.len() == 3 && names.iter().all(|name| name.ends_with(".log.gz")) => Ok(()),
        names => Err(format!("{names:?}")),
    });
    // They are the newest ones.
    let mut found: Vec<_> =
        bench.names("audit-").iter().flat_map(|name| numbers(&unzip(&bench.path(name)))).collect();
    found.extend(bench.numbers("audit.log"));
    assert_eq!(found, (300 - found.len()..300).collect::<Vec<_>>());
}

#[test]
fn a_file_is_rotated_by_age() {
    let bench = Bench::start(
        "tirreno_target audit { type file; path %DIR%/audit.log; interval 10ms; rotate 1h; }",
    );
    bench.requests([0]);
    bench.settled("audit");
    let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(60 * 60);
    let log = File::options().append(true).open(bench.path("audit.log")).unwrap();
    log.set_modified(an_hour_ago).unwrap();
    bench.requests([1]);
    bench.settled("audit");
    assert_eq!(bench.numbers("audit.log"), [1]);
    assert_eq!(bench.names("audit-").len(), 1);
}

#[test]
fn two_nginxes_share_a_file_during_an_upgrade() {
    let mut bench = Bench::start_with(FILE, Builder::daemon);
    bench.requests(0..10);
    let old = bench.nginx.master_pid();
    bench.nginx.usr2();
    bench.requests(10..60);
    let mut found = wait_for(SOON, "all events", || {
        let log = fs::read(bench.path("audit.log")).map_err(|error| error.to_string())?;
        let found = numbers(&log);
        if found.len() == 60 { Ok(found) } else { Err(format!("{found:?}")) }
    });
    found.sort_unstable();
    assert_eq!(found, (0..60).collect::<Vec<_>>());
    assert_ne!(old, bench.nginx.master_pid());
}

#[test]
fn workers_of_another_user_must_be_able_to_rotate() {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        return;
    }
    let bench = Bench::build(FILE, |builder| builder.user("nobody nogroup"));
    let say = |mode: u32, owner: &str| {
        let chown = Command::new("chown").arg(owner).arg(bench.dir.path()).status().unwrap();
        assert!(chown.success());
        fs::set_permissions(bench.dir.path(), Permissions::from_mode(mode)).unwrap();
        bench.nginx.test()
    };
    let (ok, output) = say(0o755, "root:root");
    assert!(!ok && output.contains("the workers cannot write in the directory"), "{output}");
    assert!(output.contains("nginx.conf:"), "{output}");
    for (mode, owner) in [(0o755, "nobody:root"), (0o775, "root:nogroup"), (0o777, "root:root")] {
        let (ok, output) = say(mode, owner);
        assert!(ok, "{mode:o} {owner}: {output}");
    }
    let log = bench.path("audit.log");
    File::create(&log).unwrap().write_all(b"\n").unwrap();
    fs::set_permissions(&log, Permissions::from_mode(0o644)).unwrap();
    let (ok, output) = say(0o777, "root:root");
    assert!(!ok && output.contains("cannot read and write"), "{output}");
}
