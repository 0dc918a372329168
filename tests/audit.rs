//! Audit targets: files, syslog, connections and nginx's own output, each with real receivers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flate2::read::GzDecoder;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::client::{self, Connection};
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::receivers::{
    Input, Listener, Message, Rsyslog, SyslogNg, program, read_records,
};
use tirreno_tests::tls::Authority;
use tirreno_tests::transport;
use tirreno_tests::wait::{SOON, wait_for, wait_until};
use tirreno_tests::written::written_lines;

/// The name of the thread that each deliverer with a file target has.
const FILE_THREAD: &str = "tirreno-file";

/// nginx, and a directory in which its workers may write.
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

    /// Builds it without starting it.
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

    /// The worker that delivers, once one does.
    fn deliverer(&self) -> u32 {
        let delivers = |pid: &u32| self.nginx.thread_names(*pid).iter().any(|n| n == FILE_THREAD);
        let find = || self.nginx.workers().into_iter().find(delivers).ok_or_else(String::new);
        wait_for(SOON, "a deliverer", find)
    }

    /// The sorted names in the directory that begin with `start`.
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

/// How many dropped events a record reports.
fn dropped_in(record: &Value) -> u64 {
    record["dropped"].as_u64().unwrap_or_else(|| panic!("{record}"))
}

#[track_caller]
fn numbers(lines: &[u8]) -> Vec<usize> {
    let number = |record| number(record).unwrap_or_else(|| panic!("{record}"));
    records(lines).iter().map(number).collect()
}

fn read_backup(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    let mut file = File::open(path).unwrap();
    match path.extension() {
        Some(end) if end == "gz" => GzDecoder::new(file).read_to_end(&mut content).unwrap(),
        _ => file.read_to_end(&mut content).unwrap(),
    };
    content
}

/// Whether all backups but the newest are compressed.
fn are_compressed(backups: &[String]) -> bool {
    let [older @ .., newest] = backups else { return true };
    older.iter().all(|name| name.ends_with(".log.gz")) && newest.ends_with(".log")
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
fn a_field_has_no_secret() {
    let bench = Bench::start_with(FILE, |builder| {
        builder.http("tirreno_event page_view * \"/{n}\" field=q:arg:q;")
    });
    let mut connection = open(bench.nginx.port()).unwrap();
    let values =
        ["a%20b", "Bearer%205ecret", "https://u%3A5ecret%40h", "{%22password%22:%225ecret%22}"];
    for value in values {
        get(&mut connection, &format!("/1?q={value}"), "u1");
    }
    // A record has no room for this value, which is no secret.
    get(&mut connection, &format!("/1?q={}", "x".repeat(2500)), "u1");
    bench.settled("audit");
    let file = fs::read(bench.path("audit.log")).unwrap();
    let fields: Vec<_> = records(&file).iter().map(|record| record["q"].clone()).collect();
    let left_out = serde_json::Value::Null;
    assert_eq!(fields, ["a b".into(), "***".into(), "***".into(), "***".into(), left_out]);
    assert!(!String::from_utf8_lossy(&file).contains("5ecret"));
}

#[test]
fn targets_choose_levels() {
    let bench = Bench::start(
        "tirreno_target content {
             type file; path %DIR%/content.log; interval 20ms; events audit-content;
         }
         tirreno_target rest {
             type file; path %DIR%/rest.log; interval 20ms; events !audit-content !page_search;
         }",
    );
    let mut connection = open(bench.nginx.port()).unwrap();
    for path in ["/posts/1", "/users/2"] {
        let headers = [("Cookie", "user=u1")];
        assert_eq!(connection.request("POST", path, &headers, b"").unwrap().status, 200);
    }
    assert_eq!((bench.settled("content").captured, bench.settled("rest").captured), (1, 1));
    let url = |name: &str| {
        let records = records(&fs::read(bench.path(name)).unwrap());
        records.iter().map(|record| record["url"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(url("content.log"), ["\"/posts/1\""]);
    assert_eq!(url("rest.log"), ["\"/users/2\""]);
}

#[test]
fn a_target_shows_only_what_it_may_know() {
    let rsyslog = Rsyslog::start(&Input::Tcp);
    let privacy = "ip_mask 8 16; hash_user user.key; omit userAgent; query off;";
    let bench = Bench::start_with(
        &format!(
            "tirreno_target plain {{ type file; path %DIR%/plain.log; interval 20ms; }}
             tirreno_target masked {{
                 type file; path %DIR%/masked.log; interval 20ms; {privacy}
             }}
             tirreno_target siem {{
                 type syslog; server 127.0.0.1:{}; transport tcp; interval 20ms; {privacy}
             }}",
            rsyslog.port()
        ),
        |builder| builder.file("user.key", &"k".repeat(64)),
    );
    let mut connection = open(bench.nginx.port()).unwrap();
    let headers = [("Cookie", "user=somebody"), ("User-Agent", "an agent")];
    connection.request("GET", "/7?q=word", &headers, b"").unwrap();
    for target in ["plain", "masked", "siem"] {
        assert_eq!(bench.settled(target).delivered, 1);
    }
    let plain = fs::read_to_string(bench.path("plain.log")).unwrap();
    let masked = fs::read_to_string(bench.path("masked.log")).unwrap();
    let message = &rsyslog.wait_messages(1)[0];
    let siem = format!("{} {}", message.text, message.data);
    for secret in ["somebody", "an agent", "word", "127.0.0.1"] {
        assert!(plain.contains(secret), "{plain}");
        assert!(!masked.contains(secret), "{masked}");
        assert!(!siem.contains(secret), "{siem}");
    }
    assert!(masked.contains("127.0.0.0") && siem.contains("127.0.0.0"), "{masked}{siem}");
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
    let config = bench.path("logrotate.conf");
    let log = bench.path("audit.log");
    // The workers are root here, and the file begins like Debian's logrotate.conf.
    let shipped = include_str!("../nginx-conf/monitoring/logrotate/tirreno");
    let directory = format!("{}/", log.parent().unwrap().display());
    let ours =
        shipped.replace("/var/log/nginx-audit/", &directory).replace("www-data adm", "root root");
    assert!(ours.contains(&directory) && ours.contains("su root root"), "{ours}");
    fs::write(&config, format!("create\n{ours}")).unwrap();
    fs::set_permissions(&config, Permissions::from_mode(0o644)).unwrap();
    let state = bench.path("state");
    let status = program("logrotate").arg("-f").arg("-s").arg(&state).arg(&config).status();
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

/// Limits the size of the files that the deliverer may write.
fn limit_files(pid: u32, bytes: &str) {
    let (pid, limit) = (format!("--pid={pid}"), format!("--fsize={bytes}:"));
    assert!(Command::new("prlimit").args([pid, limit]).status().unwrap().success());
}

/// Appends whole lines to a file, more than nginx's own log accepts.
fn fill(path: &Path) -> u64 {
    fs::write(path, "{\"url\":\"/0\"}\n".repeat(100_000)).unwrap();
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_full_disk_tears_nothing_and_loses_nothing() {
    let mut bench = Bench::build(FILE, |builder| builder);
    let size = fill(&bench.path("audit.log"));
    bench.nginx.start();
    // There is only room for about half of the batch.
    limit_files(bench.deliverer(), &(size + 700).to_string());
    bench.requests(1..=20);
    let row = bench.wait_row("audit", "the full disk", |row| {
        row.state == "retrying" && row.pending + row.delivered == 20 && row.pending > 0
    });
    assert_eq!(row.last_error.as_deref(), Some("disk full"));
    // Each attempt writes what fits and cuts it off.
    wait_until(SOON, "the end of an attempt", || {
        fs::read(bench.path("audit.log")).unwrap().ends_with(b"\n")
    });
    bench.requests(21..=40);
    limit_files(bench.deliverer(), "unlimited");
    bench.settled("audit");
    let row = bench.wait_row("audit", "the state", |row| row.state == "ok");
    assert_eq!((row.delivered, row.dropped), (40, 0));
    let numbers: Vec<_> =
        bench.numbers("audit.log").into_iter().filter(|number| *number > 0).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[test]
fn a_lock_stops_the_file_only_for_who_may_write_it() {
    let bench = Bench::start(FILE);
    bench.requests([0]);
    bench.settled("audit");
    let reader = File::open(bench.path("audit.log")).unwrap();
    flock(&reader, FlockOperation::LockExclusive).unwrap();
    bench.requests([1]);
    bench.settled("audit");
    let writer = File::open(bench.path(".audit.log.lock")).unwrap();
    flock(&writer, FlockOperation::LockExclusive).unwrap();
    bench.requests(2..5);
    let row = bench.wait_row("audit", "the lock", |row| row.state == "waiting");
    assert_eq!(row.last_error.as_deref(), Some("held by another process"));
    assert_eq!(bench.numbers("audit.log"), [0, 1]);
    drop(writer);
    let row = bench.wait_row("audit", "the end of the lock", |row| row.state == "ok");
    assert_eq!((row.delivered, row.dropped), (5, 0));
    assert_eq!(bench.numbers("audit.log"), [0, 1, 2, 3, 4]);
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
    // Page views fill at most 80 % of the queue.
    let row = bench.wait_row("audit", "drops", |row| row.dropped == 22);
    assert_eq!((row.captured, row.pending), (30, 8));
    limit_files(deliverer, "unlimited");
    bench.wait_row("audit", "the rest", |row| row.delivered == 8);
    let dropped = || {
        let records = records(written_lines(&bench.path("audit.log")).as_bytes());
        records.iter().filter(|record| number(record).is_none()).cloned().collect::<Vec<_>>()
    };
    wait_until(SOON, "the record of the drops", || dropped().len() == 1);
    assert_eq!(dropped_in(&dropped()[0]), 22);
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

    /// The numbers that were surely captured, and how many requests were tried.
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
        // A connection, and the last request that it answered. That request is surely captured once the
        // next one is answered.
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
    // There is room for all, however slowly they are written.
    let bench = Bench::start_with(
        "tirreno_zone 64m;
         tirreno_target audit {
             type file; path %DIR%/audit.log; interval 50ms; queue 200000 size=128m;
             max_size 1m; compress on;
         }",
        |builder| builder.workers(4),
    );
    let load = Load::start(bench.nginx.port(), count);
    let (mut reloads, mut reopens, mut kills) = (0, 0, 0);
    let mut moved = Vec::new();
    // Spread over the load, in this order: R reloads, U moves the file and reopens, K kills.
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

    // The thread that compresses is the last to get a processor.
    wait_for(SOON * 5, "all but the newest to be compressed", || match bench.names("audit-") {
        names if are_compressed(&names) => Ok(()),
        names => Err(format!("{names:?}")),
    });
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    let backups = bench.names("audit-");
    let mut add = |lines: &[u8], name: &str| {
        assert!(lines.len() <= 1 << 20, "{name} has {} bytes", lines.len());
        numbers(lines).into_iter().for_each(|number| *found.entry(number).or_default() += 1);
    };
    backups.iter().for_each(|name| add(&read_backup(&bench.path(name)), name));
    moved.iter().for_each(|name| add(&fs::read(bench.path(name)).unwrap(), name));
    add(&fs::read(bench.path("audit.log")).unwrap(), "audit.log");
    assert!(backups.len() >= count * 100 / (1 << 20), "{backups:?}");

    let lost: Vec<_> = certain.iter().filter(|number| !found.contains_key(number)).collect();
    assert!(lost.is_empty(), "{} of {tried} are lost: {lost:?}", lost.len());
    assert!(found.len() <= tried);
    // A kill may come after a batch was written and before its events are released.
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
        names if names.len() == 3 && are_compressed(&names) => Ok(()),
        names => Err(format!("{names:?}")),
    });
    // The newest records are kept.
    let names = bench.names("audit-");
    let mut found: Vec<_> =
        names.iter().flat_map(|name| numbers(&read_backup(&bench.path(name)))).collect();
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
        let found = numbers(written_lines(&bench.path("audit.log")).as_bytes());
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
    // The files belong to another user, under whom workers ran before.
    fs::rename(&log, bench.path(".audit.log.lock")).unwrap();
    let (ok, output) = say(0o777, "root:root");
    assert!(!ok && output.contains(".audit.log.lock"), "{output}");
}

#[test]
fn no_thread_of_the_master_is_ever_another_user() {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        return;
    }
    let file = |n| format!("tirreno_target t{n} {{ type file; path %DIR%/{n}.log; }}\n");
    let mut bench =
        Bench::build(&(0..24).map(file).collect::<String>(), |b| b.user("nobody nogroup"));
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o777)).unwrap();
    bench.nginx.start();
    let tasks = format!("/proc/{}/task", bench.nginx.master_pid());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !ended.load(SeqCst) {
                for task in fs::read_dir(&tasks).unwrap().flatten() {
                    // The thread may have ended meanwhile.
                    let about = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                    let users = about.lines().find_map(|line| line.strip_prefix("Uid:"));
                    if users.is_some_and(|users| users.split_whitespace().any(|id| id != "0")) {
                        return Some(about);
                    }
                }
            }
            None
        });
        (0..5).for_each(|_| bench.nginx.reload());
        ended.store(true, SeqCst);
        assert_eq!(watcher.join().unwrap(), None, "that user may kill the master");
    });
    assert!(!bench.nginx.error_log().contains("unknown process"), "nginx has seen our child");
}

// syslog.

/// A target of type `syslog` with these parameters, and one request of each kind.
fn assert_rsyslog_understands(rsyslog: &Rsyslog, parameters: &str, ca: &str) {
    let bench = Bench::start_with(
        &format!("tirreno_target audit {{ type syslog; interval 20ms; {parameters} }}"),
        |builder| builder.file("ca.pem", ca),
    );
    let mut connection = open(bench.nginx.port()).unwrap();
    let agent = "a \"quoted\\\" ] agent \u{e4}\u{20ac}";
    let cookie = ("Cookie", "user=u1");
    for path in ["/1?type=login", "/2?type=fail", "/3"] {
        let headers = [cookie, ("User-Agent", agent)];
        assert_eq!(connection.request("GET", path, &headers, b"").unwrap().status, 200);
    }
    let row = bench.settled("audit");
    assert_eq!((row.kind.as_str(), row.delivered, row.dropped), ("syslog", 3, 0));
    let messages = rsyslog.wait_messages(3);
    assert_eq!(messages.len(), 3, "{messages:?}");
    let expected = [
        ("account_login", 13 * 8 + 5),
        ("account_login_fail", 13 * 8 + 4),
        ("page_view", 13 * 8 + 6),
    ];
    for ((n, message), (kind, priority)) in (1..).zip(&messages).zip(expected) {
        assert_eq!(message.header["msgid"], kind);
        assert_eq!(message.header["pri"], priority.to_string());
        assert_eq!(message.header["app-name"], "portal");
        assert!(message.header["procid"].parse::<u32>().is_ok(), "{message:?}");
        let record: Value = serde_json::from_str(message.text.trim_start()).unwrap();
        assert_eq!(number(&record), Some(n), "{message:?}");
        let data = &message.data["tirreno@32473"];
        assert_eq!(data["url"], record["url"], "{message:?}");
        assert!(data.to_string().contains(&Value::from(agent).to_string()), "{message:?}");
        assert!(record.to_string().contains(&Value::from(agent).to_string()), "{message:?}");
    }
}

#[test]
fn rsyslog_understands_datagrams() {
    let rsyslog = Rsyslog::start(&Input::Udp);
    let server = format!("server 127.0.0.1:{}; facility audit; tag portal;", rsyslog.port());
    assert_rsyslog_understands(&rsyslog, &server, "");
}

#[test]
fn rsyslog_understands_a_connection() {
    let rsyslog = Rsyslog::start(&Input::Tcp);
    let server = format!("server 127.0.0.1:{}; transport tcp;", rsyslog.port());
    assert_rsyslog_understands(&rsyslog, &format!("{server} facility audit; tag portal;"), "");
}

#[test]
fn rsyslog_understands_tls() {
    let authority = Authority::new("test");
    let rsyslog = Rsyslog::start(&Input::Tls(&authority.localhost()));
    let server = format!("server 127.0.0.1:{}; transport tls;", rsyslog.port());
    let trust = "ssl_trusted_certificate %PREFIX%/ca.pem;";
    let parameters = format!("{server} {trust} facility audit; tag portal;");
    assert_rsyslog_understands(&rsyslog, &parameters, &authority.pem());
}

#[test]
fn rsyslog_understands_the_local_socket() {
    let rsyslog = Rsyslog::start(&Input::Unix);
    let server = format!("server unix:{};", rsyslog.socket().display());
    assert_rsyslog_understands(&rsyslog, &format!("{server} facility audit; tag portal;"), "");
}

#[test]
fn an_rsyslog_that_restarts_loses_nothing() {
    let mut rsyslog = Rsyslog::start(&Input::Tcp);
    let bench = Bench::start(&format!(
        "tirreno_target audit {{
             type syslog; server 127.0.0.1:{}; transport tcp; interval 20ms;
         }}",
        rsyslog.port()
    ));
    bench.requests(0..10);
    rsyslog.wait_messages(10);
    bench.settled("audit");
    rsyslog.stop();
    bench.requests(10..20);
    let refused = |row: &Row| row.last_error.as_deref() == Some("connection refused");
    let row = bench.wait_row("audit", "the refusal", refused);
    assert_eq!((row.delivered, row.pending, row.state.as_str()), (10, 10, "retrying"));
    rsyslog.resume();
    bench.settled("audit");
    let row = bench.wait_row("audit", "the state", |row| row.state == "ok");
    assert_eq!((row.delivered, row.dropped), (20, 0));
    let numbers: Vec<_> = rsyslog
        .wait_messages(20)
        .iter()
        .map(|message| number(&serde_json::from_str(message.text.trim_start()).unwrap()).unwrap())
        .collect();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
}

#[test]
fn a_server_with_another_certificate_gets_nothing() {
    let rsyslog = Rsyslog::start(&Input::Tls(&Authority::new("theirs").localhost()));
    let bench = Bench::start_with(
        &format!(
            "tirreno_target audit {{
                 type syslog; server localhost:{0}; transport tls; interval 20ms;
                 ssl_trusted_certificate %PREFIX%/ca.pem;
             }}
             tirreno_target trusting {{
                 type syslog; server localhost:{0}; transport tls; interval 20ms; ssl_verify off;
                 tag trusting;
             }}",
            rsyslog.port()
        ),
        |builder| builder.file("ca.pem", &Authority::new("ours").pem()),
    );
    bench.requests([1]);
    let row = bench.wait_row("audit", "the refusal", |row| row.state == "retrying");
    assert!(
        row.last_error.as_deref().is_some_and(|e| e.starts_with("certificate not accepted: ")),
        "{row:?}"
    );
    bench.settled("trusting");
    let messages = rsyslog.wait_messages(1);
    assert_eq!(messages[0].header["app-name"], "trusting");
}

/// A line that would appear in an authentication log.
const FORGED: &str = "<86>1 2026-01-01T00:00:00Z host sshd 999 - - Accepted password for root ";

/// Requests whose records exceed rsyslog's limit for a message, with FORGED at all offsets.
fn request_forged_lines(port: u16, count: usize) {
    let mut connection = open(port).unwrap();
    let repeated = FORGED.repeat(40);
    for n in 0..count {
        let referer = &repeated[n % FORGED.len()..][..2000];
        let path = format!("/{n}/{}", "x".repeat(1000 + n / FORGED.len()));
        let headers = [("Cookie", "user=u1"), ("Referer", referer)];
        assert_eq!(connection.request("GET", &path, &headers, b"").unwrap().status, 200);
    }
}

/// The record of a complete message of ours.
fn own_record(message: &Message) -> Option<Value> {
    let record: Value = serde_json::from_str(message.text.trim_start()).ok()?;
    let data = &message.data["tirreno@32473"];
    let is_same = data["user_id"] == "u1" && data["referer"] == record["referer"];
    (message.header["app-name"] == "nginx" && is_same).then_some(record)
}

#[test]
fn no_request_forges_a_message_of_its_own() {
    let count = if std::env::var_os("TEST_FULL").is_some() { 5000 } else { 500 };
    let authority = Authority::new("test");
    let leaf = authority.localhost();
    let (tcp, tls) = (Rsyslog::as_shipped(&Input::Tcp), Rsyslog::as_shipped(&Input::Tls(&leaf)));
    let target = |name: &str, port: u16, more: &str| {
        format!(
            "tirreno_target {name} {{
                 type syslog; server 127.0.0.1:{port}; interval 20ms; queue 10000 size=64m;
                 {more}
             }}"
        )
    };
    let trust = "transport tls; ssl_trusted_certificate %PREFIX%/ca.pem;";
    let targets = target("tcp", tcp.port(), "transport tcp;") + &target("tls", tls.port(), trust);
    let bench = Bench::start_with(&targets, |builder| builder.file("ca.pem", &authority.pem()));
    request_forged_lines(bench.nginx.port(), count);
    for (name, rsyslog) in [("tcp", tcp), ("tls", tls)] {
        let row = bench.settled(name);
        assert_eq!((row.delivered, row.rejected, row.dropped), (count as u64, 0, 0));
        let messages = rsyslog.wait_messages(count);
        let records: Vec<_> = messages.iter().filter_map(own_record).collect();
        assert_eq!((messages.len(), records.len()), (count, count), "{name}");
        for (n, record) in records.iter().enumerate() {
            let url = record["url"].as_str().unwrap();
            assert!(url.starts_with(&format!("/{n}/xxx")), "{record}");
            assert_eq!(record["truncated"], true, "{record}");
            // The value is cut no shorter than necessary.
            assert!(record["referer"].as_str().unwrap().len() > 1000, "{record}");
        }
    }
}

/// Shows that longer messages would make the forgery of the previous test possible.
#[test]
fn longer_messages_than_the_receiver_takes_could_be_forged() {
    let rsyslog = Rsyslog::as_shipped(&Input::Tcp);
    let bench = Bench::start(&format!(
        "tirreno_target audit {{
             type syslog; server 127.0.0.1:{}; transport tcp; max_message_size 64k; interval 20ms;
         }}",
        rsyslog.port()
    ));
    request_forged_lines(bench.nginx.port(), 3 * FORGED.len());
    bench.settled("audit");
    wait_until(SOON, "a forged message", || {
        rsyslog.messages().iter().any(|message| message.header["app-name"] == "sshd")
    });
}

#[test]
fn a_message_is_as_long_as_it_may_be() {
    let listener = Listener::default();
    let bench = Bench::start(&format!(
        "tirreno_target audit {{
             type tcp; server 127.0.0.1:{}; framing octet-counting; max_message_size 2k; interval 20ms;
         }}",
        listener.port()
    ));
    let mut connection = open(bench.nginx.port()).unwrap();
    // Also with characters of two bytes, and with characters that are escaped.
    for (n, fill) in ["x", "\u{e4}", "\"", "\u{9b}"].into_iter().enumerate() {
        for length in [10, 200, 255] {
            let agent = fill.repeat(length);
            let path = format!("/{n}?{}", "y".repeat(2000));
            let headers = [("Cookie", "user=u1"), ("User-Agent", &*agent), ("Referer", &*agent)];
            assert_eq!(connection.request("GET", &path, &headers, b"").unwrap().status, 200);
        }
    }
    let mut stream = listener.accept();
    for message in 0..12 {
        let length = read_records(&mut stream, b' ', 1).unwrap().remove(0);
        let length: usize = str::from_utf8(&length).unwrap().parse().unwrap();
        assert!((1900..=2048).contains(&length), "{length}");
        let mut text = vec![0; length];
        stream.read_exact(&mut text).unwrap();
        let record: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(number(&record), Some(message / 3), "{record}");
        assert_eq!((&record["truncated"], &record["user_id"]), (&true.into(), &"u1".into()));
    }
}

#[test]
fn syslog_ng_understands_lines_and_counted_messages() {
    let lines = "network(ip(127.0.0.1) port(%PORT%) transport(tcp) flags(syslog-protocol));";
    let counted = "syslog(ip(127.0.0.1) port(%PORT%) transport(tcp));";
    let authority = Authority::new("test");
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.localhost().write(directory.path(), "syslog-ng");
    let tls = format!(
        "syslog(ip(127.0.0.1) port(%PORT%) transport(tls)
                tls(cert-file(\"{}\") key-file(\"{}\") peer-verify(optional-untrusted)));",
        certificate.display(),
        key.display()
    );
    let over_tls = "transport tls; ssl_trusted_certificate %PREFIX%/ca.pem;";
    for (source, parameters) in
        [(lines, "transport tcp; framing newline;"), (counted, "transport tcp;"), (&*tls, over_tls)]
    {
        let Some(syslog_ng) = SyslogNg::start(source) else {
            return eprintln!("TEST_SYSLOG_NG is not set: skipped");
        };
        let bench = Bench::start_with(
            &format!(
                "tirreno_target audit {{
                     type syslog; server 127.0.0.1:{}; {parameters} interval 20ms;
                 }}",
                syslog_ng.port()
            ),
            |builder| builder.file("ca.pem", &authority.pem()),
        );
        bench.requests(0..3);
        // While the connection stays open.
        for (n, line) in syslog_ng.wait_lines(3).iter().enumerate() {
            let record = line.strip_prefix(&format!("nginx /{n} ")).expect(line);
            assert_eq!(number(&serde_json::from_str(record).unwrap()), Some(n));
        }
        bench.settled("audit");
    }
}

// Connections.

/// The bytes that a syslog target with this `framing` writes for two requests.
fn syslog_stream(framing: &str, end: u8) -> Vec<String> {
    let listener = Listener::default();
    let bench = Bench::start(&format!(
        "tirreno_target audit {{
             type syslog; server 127.0.0.1:{}; transport tcp; framing {framing}; interval 20ms;
         }}",
        listener.port()
    ));
    bench.requests(0..2);
    let records = read_records(&mut listener.accept(), end, 2).unwrap();
    records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect()
}

#[test]
fn receivers_of_lines_get_lines() {
    for (framing, end) in [("newline", b'\n'), ("nul", 0)] {
        for (n, message) in syslog_stream(framing, end).iter().enumerate() {
            assert!(message.starts_with("<190>1 "), "{message}");
            let (_, record) = message.split_once("] ").unwrap();
            assert_eq!(number(&serde_json::from_str(record).unwrap()), Some(n), "{message}");
        }
    }
}

#[test]
fn gelf_ends_with_nul_and_json_with_a_line() {
    let (gelf, json) = (Listener::default(), Listener::default());
    let bench = Bench::start(&format!(
        "tirreno_target gelf {{
             type tcp; server 127.0.0.1:{}; format gelf; interval 20ms;
         }}
         tirreno_target json {{ type tcp; server 127.0.0.1:{}; interval 20ms; }}",
        gelf.port(),
        json.port()
    ));
    bench.requests(1..=3);
    let messages = read_records(&mut gelf.accept(), 0, 3).unwrap();
    for (n, message) in (1..).zip(&messages) {
        let message: Value = serde_json::from_slice(message).unwrap();
        assert_eq!(message["version"], "1.1");
        assert!(message["host"].is_string() && message["short_message"].is_string());
        assert!(message["timestamp"].is_number(), "{message}");
        assert_eq!(message["_url"], format!("/{n}"), "{message}");
    }
    let lines = read_records(&mut json.accept(), b'\n', 3).unwrap().join(&b'\n');
    assert_eq!(numbers(&[lines, b"\n".to_vec()].concat()), [1, 2, 3]);
}

/// The numbers that a connection brings until it ends, and whether the last record is incomplete.
fn drain(mut stream: TcpStream) -> Vec<usize> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    numbers(&bytes[..whole])
}

#[test]
fn what_was_in_flight_when_the_receiver_closed_is_sent_again() {
    let listener = Listener::default();
    let mut bench = Bench::start(&format!(
        "tirreno_target audit {{ type tcp; server 127.0.0.1:{}; interval 20ms; }}",
        listener.port()
    ));
    bench.requests(0..5);
    // The receiver closes in the middle of a record, without reading the rest.
    let mut first = listener.accept();
    first.read_exact(&mut [0; 10]).unwrap();
    drop(first);
    let mut second = listener.accept();
    let lines = read_records(&mut second, b'\n', 5).unwrap();
    assert_eq!(numbers(&[lines.join(&b'\n'), b"\n".to_vec()].concat()), [0, 1, 2, 3, 4]);
    bench.requests(5..10);
    let row = bench.settled("audit");
    assert_eq!((row.delivered, row.dropped), (10, 0));
    bench.nginx.quit();
    assert_eq!(drain(second), [5, 6, 7, 8, 9]);
}

#[test]
fn a_stopped_receiver_costs_requests_nothing_and_memory_a_bound() {
    let listener = Listener::default();
    let mut bench = Bench::start(&format!(
        "tirreno_target audit {{
             type tcp; server 127.0.0.1:{}; interval 20ms; queue 2000 size=1m;
         }}",
        listener.port()
    ));
    bench.requests(0..100);
    // The receiver stops reading, until all buffers and the queue are full.
    let mut stream = listener.accept();
    let mut next = 100;
    let row = loop {
        bench.requests(next..next + 2000);
        next += 2000;
        let row = bench.row("audit");
        assert!(next < 1_000_000, "{row:?}");
        if row.dropped > 500 {
            break row;
        }
    };
    assert!(row.pending <= 2000 + row.captured - row.delivered - row.dropped, "{row:?}");
    let memory = bench.nginx.rss_anon(bench.nginx.workers()[0]);
    assert!(memory < 64 << 20, "{memory}");
    // The receiver reads again: it gets all events that were not dropped, in order, and a record with the
    // number of drops.
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let row = bench.settled("audit");
    assert_eq!(row.captured, row.delivered + row.dropped);
    bench.requests(next..next + 1);
    bench.settled("audit");
    bench.nginx.quit();
    let bytes = reader.join().unwrap();
    let records = records(&bytes);
    let found: Vec<_> = records.iter().filter_map(number).collect();
    assert!(found.is_sorted(), "not in order");
    assert_eq!(found.len() as u64, row.delivered + 1);
    let reports: Vec<_> = records.iter().filter(|record| number(record).is_none()).collect();
    assert!(!reports.is_empty());
    let reported: u64 = reports.iter().map(|report| dropped_in(report)).sum();
    assert_eq!(reported, row.dropped, "{reports:?}");
    assert_eq!(found.last(), Some(&next));
}

/// Bytes that the receiver's system accepts count as delivered; bytes for which it has no room do not.
#[test]
fn a_receiver_that_never_reads_is_left_after_a_minute_and_another_gets_the_rest() {
    if std::env::var_os("TEST_FULL").is_none() {
        return println!("skipped without TEST_FULL");
    }
    let listener = Listener::default();
    let bench = Bench::start(&format!(
        "tirreno_target audit {{
             type tcp; server 127.0.0.1:{}; interval 20ms; queue 100000 size=64m;
         }}",
        listener.port()
    ));
    // More than the buffers on both sides can store.
    bench.requests(0..30_000);
    let _never_read = listener.accept();
    let row = wait_for(Duration::from_secs(150), "the end of patience", || {
        let row = bench.row("audit");
        if row.state == "retrying" { Ok(row) } else { Err(format!("{row:?}")) }
    });
    assert_eq!(row.last_error.as_deref(), Some("timed out"), "{row:?}");
    assert!(row.delivered > 0 && row.pending > 0 && row.dropped == 0, "{row:?}");
    let mut next = listener.accept();
    let rest = usize::try_from(row.pending).unwrap();
    let lines = read_records(&mut next, b'\n', rest).unwrap();
    let found = numbers(&[lines.join(&b'\n'), b"\n".to_vec()].concat());
    assert_eq!(found, (30_000 - rest..30_000).collect::<Vec<_>>());
    let row = bench.settled("audit");
    assert_eq!((row.delivered, row.dropped), (30_000, 0));
}

#[test]
fn a_slow_receiver_gets_everything_in_order() {
    let listener = Listener::default();
    let mut bench = Bench::start(&format!(
        "tirreno_target audit {{
             type tcp; server 127.0.0.1:{}; interval 20ms; queue 20000 size=64m;
         }}",
        listener.port()
    ));
    bench.requests(0..1);
    let mut stream = listener.accept();
    let ended = Arc::new(AtomicBool::new(false));
    let reader = thread::spawn({
        let ended = ended.clone();
        move || {
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            loop {
                match transport::read(&mut stream, &mut part).unwrap() {
                    0 => return bytes,
                    read => bytes.extend(&part[..read]),
                }
                // Reads much more slowly than the events come, while they come.
                if !ended.load(SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    });
    // More than the sockets' buffers can store.
    bench.requests(1..15_000);
    let row = bench.row("audit");
    assert!(row.pending > 0 && row.dropped == 0, "{row:?}");
    ended.store(true, SeqCst);
    let row = bench.settled("audit");
    assert_eq!((row.delivered, row.dropped), (15_000, 0));
    bench.nginx.quit();
    assert_eq!(numbers(&reader.join().unwrap()), (0..15_000).collect::<Vec<_>>());
}

#[test]
fn a_server_that_comes_late_gets_everything_over_tls() {
    let authority = Authority::new("test");
    let port = tirreno_tests::ports::free_port();
    let mut bench = Bench::start_with(
        &format!(
            "tirreno_target audit {{
                 type tcp; server localhost:{port}; transport tls; interval 20ms;
                 ssl_trusted_certificate %PREFIX%/ca.pem;
             }}"
        ),
        |builder| builder.file("ca.pem", &authority.pem()),
    );
    bench.requests(0..500);
    let row = bench.wait_row("audit", "the refusal", |row| row.state == "retrying");
    assert_eq!(row.last_error.as_deref(), Some("connection refused"));
    let listener = Listener::at(port);
    let config = authority.localhost().server_config();
    let server = thread::spawn(move || {
        let session = rustls::ServerConnection::new(config).unwrap();
        let mut stream = rustls::StreamOwned::new(session, listener.accept());
        let lines = read_records(&mut stream, b'\n', 500).unwrap();
        // If the connection closed now, all records would be sent again.
        (lines, stream)
    });
    bench.wait_row("audit", "all events", |row| row.delivered == 500);
    let (lines, _stream) = server.join().unwrap();
    let lines = lines.join(&b'\n');
    let found = numbers(&[lines, b"\n".to_vec()].concat());
    assert_eq!(found, (0..500).collect::<Vec<_>>());
    bench.nginx.quit();
}

#[test]
fn what_cannot_be_delivered_when_nginx_stops_is_counted() {
    let port = tirreno_tests::ports::free_port();
    let mut bench = Bench::start(&format!(
        "tirreno_target audit {{
             type tcp; server 127.0.0.1:{port}; interval 20ms; shutdown_timeout 100ms;
         }}"
    ));
    bench.requests(0..7);
    bench.wait_row("audit", "the refusal", |row| row.state == "retrying");
    bench.nginx.quit();
    let log = bench.nginx.error_log();
    assert!(log.contains("7 events could not be delivered, shutdown_timeout is over"), "{log}");
}

// nginx's own output.

#[test]
fn the_console_is_standard_output_or_standard_error() {
    let mut bench = Bench::start_with(
        "tirreno_target out { type console; interval 20ms; }
         tirreno_target err { type console; out stderr; interval 20ms; events account_*; }",
        // By default, standard error is the error log.
        |builder| builder.main("error_log stderr;"),
    );
    bench.requests(0..5);
    get(&mut open(bench.nginx.port()).unwrap(), "/5?type=login", "u1");
    bench.settled("out");
    bench.settled("err");
    bench.nginx.quit();
    let read = |name: &str| fs::read(bench.nginx.prefix().join("logs").join(name)).unwrap();
    assert_eq!(numbers(&read("stdout.log")), [0, 1, 2, 3, 4, 5]);
    let errors = read("stderr.log");
    let lines = errors.split_inclusive(|byte| *byte == b'\n');
    let ours: Vec<u8> = lines.filter(|line| line.starts_with(b"{")).flatten().copied().collect();
    assert_eq!(numbers(&ours), [5]);
}

#[test]
fn standard_error_is_the_new_error_log_after_a_rotation() {
    let bench = Bench::start_with(
        "tirreno_target err { type console; out stderr; interval 20ms; }",
        |builder| builder.user("nobody nogroup"),
    );
    let log = bench.nginx.prefix().join("logs/error.log");
    let moved = log.with_extension("log.1");
    bench.requests([0]);
    bench.settled("err");
    fs::rename(&log, &moved).unwrap();
    bench.nginx.signal(Signal::USR1);
    wait_until(SOON, "the workers to have it", || {
        let has_it = |pid| fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|now| now == log);
        bench.nginx.workers().into_iter().all(has_it)
    });
    bench.requests([1]);
    bench.settled("err");
    let ours = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|line| line.starts_with('{'));
        numbers(lines.map(|line| format!("{line}\n")).collect::<String>().as_bytes())
    };
    assert_eq!((ours(&moved), ours(&log)), (vec![0], vec![1]));
}

#[test]
fn no_long_record_is_torn_in_a_pipe() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut bench = Bench::build("tirreno_target out { type console; interval 5ms; }", |builder| {
        let format = "log_format long \"log $request_uri\"; access_log /dev/stdout long;";
        builder.workers(2).http(format)
    });
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    bench.nginx.start_with_output(writer);
    let count = 1000;
    let mut connection = open(bench.nginx.port()).unwrap();
    for n in 0..count {
        let path = format!("/{n}?{}", "x".repeat(1900));
        let referer = "y".repeat(1000);
        let headers = [("Cookie", "user=u1"), ("Referer", &*referer)];
        assert_eq!(connection.request("GET", &path, &headers, b"").unwrap().status, 200);
    }
    assert_eq!(bench.settled("out").delivered, count);
    bench.nginx.quit();
    let text = String::from_utf8(reader.join().unwrap()).unwrap();
    let (ours, theirs): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('{'));
    assert!(theirs.iter().all(|line| line.starts_with("log /")), "{theirs:?}");
    assert!(ours.iter().all(|line| line.len() < 4096));
    assert_eq!(numbers((ours.join("\n") + "\n").as_bytes()).len() as u64, count);
}

// Hostile values.

#[test]
fn no_value_forges_a_line_or_a_field() {
    let rsyslog = Rsyslog::start(&Input::Tcp);
    let listener = Listener::default();
    let bench = Bench::start(&format!(
        "tirreno_target file {{ type file; path %DIR%/audit.log; interval 20ms; }}
         tirreno_target plain {{ type file; path %DIR%/plain.log; format plain; interval 20ms; }}
         tirreno_target gelf {{ type tcp; server 127.0.0.1:{}; format gelf; interval 20ms; }}
         tirreno_target syslog {{
             type syslog; server 127.0.0.1:{}; transport tcp; interval 20ms;
         }}",
        listener.port(),
        rsyslog.port()
    ));
    let long = "x".repeat(2048);
    let values = [
        "a\",\"user\":\"root",
        "a\\\",\\\"user\\\":\\\"root",
        "a\"] [forged user=\"root\"] <0>1 - - - - - - x",
        "a\u{1b}[31m\u{9b}31m",
        "\u{2028}\u{2029}\u{85}",
        "%0a%00%22",
        "a\\n{\"url\":\"/forged\"}\\0",
        &long,
    ];
    for (n, value) in values.iter().enumerate() {
        let mut connection = open(bench.nginx.port()).unwrap();
        let headers = [("Cookie", "user=u1"), ("User-Agent", value), ("Referer", value)];
        let answer = connection.request("GET", &format!("/{n}?{}", n), &headers, b"");
        assert_eq!(answer.unwrap().status, 200);
    }
    let raw = b"GET /8 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: user=u1\r\n\
                User-Agent: \xff\xfe\xc3(\xed\xa0\x80\r\n\r\n";
    client::raw(bench.nginx.port(), raw).unwrap();
    let count = values.len() + 1;
    for target in ["file", "plain", "gelf", "syslog"] {
        bench.wait_row(target, "all events", |row| row.captured == count as u64);
    }
    let found = |target| bench.settled(target).delivered == count as u64;
    assert!(found("file") && found("plain") && found("syslog"));
    let expected: Vec<_> = (0..count).collect();
    let records = records(&fs::read(bench.path("audit.log")).unwrap());
    assert_eq!(records.iter().map(|r| number(r).unwrap()).collect::<Vec<_>>(), expected);
    let keys =
        |record: &Value| record.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert!(records.iter().all(|record| keys(record).is_subset(&keys(&records[0]))));
    let plain = fs::read_to_string(bench.path("plain.log")).unwrap();
    assert_eq!(plain.lines().count(), count, "{plain}");
    assert!(!plain.contains('\u{1b}') && !plain.contains('\u{9b}'));
    for message in read_records(&mut listener.accept(), 0, count).unwrap() {
        serde_json::from_slice::<Value>(&message).unwrap();
    }
    let messages = rsyslog.wait_messages(count);
    assert_eq!(messages.len(), count);
    for (n, message) in messages.iter().enumerate() {
        let data = message.data.as_object().unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["tirreno@32473"], "{message:?}");
        let record: Value = serde_json::from_str(message.text.trim_start()).unwrap();
        assert_eq!(number(&record), Some(n));
        assert_eq!(data["tirreno@32473"]["url"], record["url"]);
    }
}
