//! Workers that start, stop and die: whatever happens to nginx's processes, each answered request is
//! delivered once, or is counted as dropped, and the error log has the number of drops.
//!
//! The clients of [`Load`] know exactly which requests were answered: they repeat number N until it is
//! answered, and never request it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, Connection, WebSocket};
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Answer, Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_for, wait_until};

/// The tolerance for a busy machine. Without the promised limit, the tested wait would take a minute.
const SLACK: Duration = Duration::from_secs(8);
/// Clients that are ahead of the sensor by at most this number leave few events for the moment of a stop.
const NEAR: usize = 50;
const FAR: usize = usize::MAX;
/// Requests that are answered at once, and slow ones, of which some are always in progress.
const FAST: &str = "";
const SLOW: &str = "/slow";

/// For tests in which a stopping worker shall lose nothing, however slow the machine is.
const PATIENT: &str = "shutdown_timeout 60s;";

const SHUTDOWN: &str = "shutdown_timeout is over";
const DIED: &str = "the delivering worker was killed";
const QUEUE_FULL: &str = "queue is full";
const ZONE_FULL: &str = "tirreno_zone is full";

/// nginx, started, between a sensor and an application.
struct Bench {
    nginx: Nginx,
    sensor: Arc<Sensor>,
    backend: Backend,
}

/// A target's row of the status.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Totals {
    captured: u64,
    delivered: u64,
    rejected: u64,
    dropped: u64,
    pending: u64,
}

impl Bench {
    /// With those `parameters` of the target.
    fn start(parameters: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let sensor = Sensor::start(SensorOptions { record_requests: false, ..Default::default() });
        let backend = Backend::start();
        let builder = Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address());
        let http = format!("{}\ntirreno on;", target("tirreno", "%SENSOR%", parameters));
        let nginx = change(site(builder, &http)).start();
        Self { nginx, sensor: Arc::new(sensor), backend }
    }

    fn port(&self) -> u16 {
        self.nginx.port()
    }

    /// One request over a connection of its own.
    fn get(&self, path: &str) {
        pid_of(&mut open(self.port()), path);
    }

    /// `count` requests over one connection.
    fn get_many(&self, count: u64) {
        let mut connection = open(self.port());
        for n in 0..count {
            pid_of(&mut connection, &format!("/r/{n}"));
        }
    }

    fn web_socket(&self) -> WebSocket {
        WebSocket::open(self.port(), "/app/ws", &[("Cookie", "user=ws")]).unwrap()
    }

    /// A WebSocket that goes through the worker `pid`.
    fn web_socket_of(&self, pid: u32) -> WebSocket {
        let mut others = Vec::new();
        wait_for(SOON, "a WebSocket through the worker", || {
            let socket = self.web_socket();
            let last = self.backend.requests().pop().and_then(|r| r.header("X-Worker"));
            if last == Some(pid.to_string()) {
                return Ok(socket);
            }
            // Other connections stay open, because nginx gives a busy worker fewer new ones.
            others.push(socket);
            Err(String::new())
        })
    }

    /// A connection to one of the `wanted` workers, made without an event.
    fn connection_to(&self, wanted: impl Fn(u32) -> bool) -> Connection {
        let port = self.nginx.port_n(1);
        wait_for(SOON, "a connection to the worker", || {
            let mut connection = open(port);
            let answer = connection.request("GET", "/pid", &[], b"").unwrap();
            let pid = answer.text().parse().unwrap();
            if wanted(pid) { Ok(connection) } else { Err(format!("it is to {pid}")) }
        })
    }

    fn totals(&self) -> Totals {
        self.totals_of("tirreno")
    }

    fn totals_of(&self, target: &str) -> Totals {
        Totals::read(&self.nginx.status("/status"), target)
    }

    /// Waits until nothing is pending and the totals add up.
    fn settled(&self) -> Totals {
        wait_for(SOON, "all to be settled", || {
            let totals @ Totals { captured, delivered, rejected, dropped, pending } = self.totals();
            let settled = pending == 0 && captured == delivered + rejected + dropped;
            if settled { Ok(totals) } else { Err(format!("{totals:?}")) }
        })
    }

    /// Waits until `count` events are captured: nginx answers a request before it logs it.
    fn wait_captured(&self, count: u64) {
        wait_for(SOON, "capture", || match self.totals() {
            totals if totals.captured == count => Ok(()),
            totals => Err(format!("{totals:?}")),
        });
    }

    /// Waits until `count` events are stored, and no more.
    fn wait_stored(&self, count: usize) {
        let stored = self.sensor.wait_stored(count, SOON).unwrap();
        assert_eq!(stored.len(), count);
    }

    /// Waits until exactly one process delivers, and returns its id.
    fn deliverer(&self) -> u32 {
        wait_for(SOON, "one deliverer", || match &self.deliverers()[..] {
            &[pid] => Ok(pid),
            pids => Err(format!("{pids:?} deliver")),
        })
    }

    /// The processes that have connections' threads.
    fn deliverers(&self) -> Vec<u32> {
        let mut pids = self.nginx.children();
        if pids.is_empty() {
            pids = self.nginx.workers();
        }
        pids.retain(|&pid| self.nginx.thread_names(pid).iter().any(|n| n.starts_with("tirreno-")));
        pids
    }

    fn wait_deliverer(&self, pid: u32, limit: Duration) {
        wait_until(limit, "the deliverer's change", || self.deliverers() == [pid]);
    }

    /// Asserts that every event arrived once, with a trace id of its own, and that they are those of
    /// `answered`.
    #[track_caller]
    fn assert_stored(&self, answered: &BTreeSet<u64>) {
        let numbers = self.stored_numbers();
        let stored: BTreeSet<u64> = numbers.iter().copied().collect();
        let missing: Vec<_> = answered.difference(&stored).collect();
        let unasked: Vec<_> = stored.difference(answered).collect();
        assert!(missing.is_empty(), "{} missing: {missing:?}", missing.len());
        assert!(unasked.is_empty(), "{} stored without an answer: {unasked:?}", unasked.len());
        assert_eq!(numbers.len(), stored.len(), "stored twice");
        let events = self.sensor.stored();
        let traces: BTreeSet<_> = events.iter().map(|e| e.trace_id.clone()).collect();
        assert!(traces.len() == events.len() && !traces.contains(&None));
    }

    /// The numbers of the requests that are stored, in order of arrival.
    fn stored_numbers(&self) -> Vec<u64> {
        let stored = self.sensor.stored();
        stored.iter().filter_map(|e| e.url.split_once("/r/")?.1.parse().ok()).collect()
    }

    /// How many events were dropped for `reason`, by the error log.
    fn dropped_in_log(&self, reason: &str) -> u64 {
        let log = self.nginx.error_log();
        let lines = log.lines().filter(|line| line.contains(reason));
        let count = |line: &str| -> Option<u64> {
            line.split(" events ").next()?.rsplit(' ').next()?.parse().ok()
        };
        lines.map(|line| count(line).unwrap_or_else(|| panic!("no number: {line}"))).sum()
    }

    /// Asserts that nothing went wrong in any process, except in workers that the test has killed.
    #[track_caller]
    fn assert_clean_log(&self, killed: &[u32]) {
        const BAD: [&str; 6] =
            ["[alert]", "[emerg]", "[crit]", "internal error", "starts again", "damaged"];
        let ours = |line: &str| {
            let tells = |pid: &u32| line.contains(&format!("process {pid} exited on signal 9"));
            killed.iter().any(tells)
        };
        let log = self.nginx.error_log();
        let bad = |line: &&str| BAD.iter().any(|bad| line.contains(bad)) && !ours(line);
        assert_eq!(log.lines().filter(bad).collect::<Vec<_>>(), [""; 0]);
    }

    /// Stops nginx, asserts that it ends well, and returns how long that took.
    #[track_caller]
    fn stop(&mut self, signal: Signal, killed: &[u32]) -> Duration {
        let started = Instant::now();
        let status = if signal == Signal::QUIT { self.nginx.quit() } else { self.nginx.term() };
        let took = started.elapsed();
        assert!(status.is_none_or(|status| status.success()), "{status:?}");
        self.assert_clean_log(killed);
        took
    }
}

impl Totals {
    fn read(status: &serde_json::Value, target: &str) -> Self {
        let count = |key: &str| {
            let count = status["targets"][target][key].as_u64();
            count.unwrap_or_else(|| panic!("no {key} of {target} in {status}"))
        };
        Self {
            captured: count("captured"),
            delivered: count("delivered"),
            rejected: count("rejected"),
            dropped: count("dropped"),
            pending: count("pending"),
        }
    }
}

/// `tirreno_target` with an interval of 20 ms and the sensor's key, unless `parameters` have others.
fn target(name: &str, url: &str, parameters: &str) -> String {
    let interval = if parameters.contains("interval") { "" } else { "interval 20ms;" };
    let key = if parameters.contains("api_key") { "" } else { "api_key test-key;" };
    format!("tirreno_target {name} {{ url {url}; {key} {interval} {parameters} }}")
}

/// The server, with `http` before it: any path is answered with the worker's process id, `/app/` by
/// the application, and `/slow/` by the application after 3 ms.
fn site(builder: Builder, http: &str) -> Builder {
    let status = if http.contains("tirreno") { "tirreno off; tirreno_status;" } else { "" };
    let user = if http.contains("tirreno") { "tirreno_user $cookie_user;" } else { "" };
    builder.http(http).http("keepalive_requests 1000000; keepalive_timeout 1h;").server(&format!(
        "listen 127.0.0.1:%PORT1% reuseport;
             {user}
             location / {{ return 200 $pid; }}
             location /status {{ {status} }}
             location /slow/ {{
                 rewrite ^ /?delay=3 break;
                 proxy_pass http://%BACKEND%;
             }}
             location /app/ {{
                 proxy_pass http://%BACKEND%;
                 proxy_http_version 1.1;
                 proxy_set_header Upgrade $http_upgrade;
                 proxy_set_header Connection $http_connection;
                 proxy_set_header X-Worker $pid;
                 proxy_read_timeout 1h;
             }}"
    ))
}

/// Another configuration of `http`, with the same server.
fn with_http(builder: Builder, http: &str) -> Builder {
    site(builder.clear_http(), http)
}

fn open(port: u16) -> Connection {
    Connection::open(SocketAddr::from(([127, 0, 0, 1], port))).unwrap()
}

/// The worker that answered a request.
fn pid_of(connection: &mut Connection, path: &str) -> u32 {
    let answer = connection.request("GET", path, &[("Cookie", "user=u")], b"").unwrap();
    assert_eq!(answer.status, 200);
    answer.text().parse().unwrap()
}

/// Clients that request `/r/0`, `/r/1`, … at the same time, below [`FAST`] or [`SLOW`].
struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<u64>>>,
}

struct Shared {
    port: u16,
    path: &'static str,
    sensor: Arc<Sensor>,
    /// How many events may be answered but not yet stored.
    ahead: usize,
    most: u64,
    next: AtomicU64,
    answered: AtomicUsize,
    ended: AtomicBool,
}

impl Load {
    const CLIENTS: usize = 8;

    /// Starts the clients; they end after `most` requests, when nobody listens, or in
    /// [`finish`](Self::finish).
    fn start(bench: &Bench, path: &'static str, ahead: usize, most: u64) -> Self {
        let shared = Arc::new(Shared {
            port: bench.port(),
            path,
            sensor: bench.sensor.clone(),
            ahead,
            most,
            next: AtomicU64::new(0),
            answered: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let client = |_| {
            let shared = shared.clone();
            thread::spawn(move || shared.run())
        };
        let clients = (0..Self::CLIENTS).map(client).collect();
        Self { shared, clients }
    }

    fn answered(&self) -> usize {
        self.shared.answered.load(SeqCst)
    }

    /// Waits until `count` more requests are answered.
    fn wait_more(&self, count: usize) {
        let goal = self.answered() + count;
        wait_for(SOON, "answers", || match (self.answered(), self.shared.sensor.stored_count()) {
            (answered, _) if answered >= goal => Ok(()),
            (answered, stored) => Err(format!("{answered} answered, {stored} stored")),
        });
    }

    /// The requests that were answered, once the clients have ended by themselves.
    fn join(self) -> BTreeSet<u64> {
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }

    /// Ends the clients.
    fn finish(self) -> BTreeSet<u64> {
        self.shared.ended.store(true, SeqCst);
        self.join()
    }
}

impl Shared {
    fn run(&self) -> Vec<u64> {
        let mut answered = Vec::new();
        let mut connection = None;
        loop {
            let number = self.next.fetch_add(1, SeqCst);
            if number >= self.most {
                return answered;
            }
            while self.answered.load(SeqCst).saturating_sub(self.sensor.stored_count()) > self.ahead
                && !self.ended.load(SeqCst)
            {
                thread::sleep(Duration::from_millis(1));
            }
            if self.ended.load(SeqCst) || !self.request(number, &mut connection) {
                return answered;
            }
            self.answered.fetch_add(1, SeqCst);
            answered.push(number);
        }
    }

    /// Repeats the request until there is an answer, because nginx may close a kept-alive connection while
    /// a request is on its way. Returns false if nobody listens any more.
    fn request(&self, number: u64, connection: &mut Option<Connection>) -> bool {
        let cookie = format!("user=u{}", number % 7);
        loop {
            let mut open = match connection.take() {
                Some(open) => open,
                None => match Connection::open(SocketAddr::from(([127, 0, 0, 1], self.port))) {
                    Ok(open) => open,
                    Err(_) => return false,
                },
            };
            let path = format!("{}/r/{number}", self.path);
            if let Ok(answer) = open.request("GET", &path, &[("Cookie", &cookie)], b"") {
                assert_eq!(answer.status, 200);
                if !open.ended() {
                    *connection = Some(open);
                }
                return true;
            }
        }
    }
}

// Reload, upgrade, stop.

#[test]
fn ten_reloads_under_load_with_a_websocket_open_lose_and_repeat_nothing() {
    const REQUESTS: u64 = 10_000;
    let parameters = "connections 2; shutdown_timeout 10s;";
    let mut bench = Bench::start(parameters, |b| b.workers(2));
    let mut socket = bench.web_socket();
    let load = Load::start(&bench, SLOW, 4 * NEAR, REQUESTS);
    for _ in 0..10 {
        load.wait_more(REQUESTS as usize / 25);
        bench.nginx.reload();
    }
    assert!(load.answered() < REQUESTS as usize, "the reloads came too late");
    let answered = load.join();
    assert_eq!(answered, (0..REQUESTS).collect());

    let totals = bench.settled();
    assert_eq!((totals.captured, totals.delivered), (REQUESTS + 1, REQUESTS + 1));
    bench.wait_stored(REQUESTS as usize + 1);
    bench.assert_stored(&answered);
    assert_eq!(socket.echo("still there").unwrap(), "still there");
    drop(socket);
    bench.stop(Signal::QUIT, &[]);
    bench.wait_stored(REQUESTS as usize + 1);
}

fn stop_under_load(signal: Signal) {
    let mut bench = Bench::start(PATIENT, |b| b.workers(2));
    let load = Load::start(&bench, SLOW, NEAR, u64::MAX);
    load.wait_more(2000);
    bench.stop(signal, &[]);
    let answered = load.join();
    bench.assert_stored(&answered);
}

#[test]
fn quit_under_load_delivers_every_answered_request() {
    stop_under_load(Signal::QUIT);
}

#[test]
fn term_under_load_delivers_every_answered_request() {
    stop_under_load(Signal::TERM);
}

#[test]
fn a_binary_upgrade_under_load_loses_and_repeats_nothing() {
    let mut bench = Bench::start(PATIENT, |b| b.workers(2).daemon());
    let load = Load::start(&bench, SLOW, NEAR, u64::MAX);
    load.wait_more(500);
    let old = bench.nginx.master_pid();
    bench.nginx.usr2();
    load.wait_more(1000);
    bench.nginx.signal_worker(old, Signal::QUIT);
    bench.nginx.wait_gone(old);
    load.wait_more(500);
    let answered = load.finish();
    bench.settled();
    bench.wait_stored(answered.len());
    bench.assert_stored(&answered);
    bench.deliverer();
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn a_reload_that_finds_the_sensor_down_costs_what_was_in_memory_and_nothing_else() {
    let mut bench = Bench::start("shutdown_timeout 500ms;", |b| b.workers(2));
    bench.sensor.refuse();
    bench.deliverer();
    bench.get_many(150);
    wait_until(SOON, "a failed attempt", || {
        bench.nginx.status("/status")["targets"]["tirreno"]["retries"] != 0
    });
    bench.nginx.reload();
    bench.nginx.wait_log(SHUTDOWN);
    bench.sensor.listen_again();
    bench.get_many(50);

    let totals = bench.settled();
    // The new deliverer takes what the old one had left in the rings.
    let lost = bench.dropped_in_log(SHUTDOWN);
    assert!((1..=150).contains(&lost), "{lost} lost");
    let (captured, delivered) = (200, 200 - lost);
    assert_eq!(totals, Totals { captured, delivered, rejected: 0, dropped: lost, pending: 0 });
    bench.wait_stored(delivered as usize);
    bench.stop(Signal::QUIT, &[]);
}

fn stop_with_a_hanging_sensor(signal: Signal, parameters: &str) -> Duration {
    let mut bench = Bench::start(&format!("timeout 60s; {parameters}"), |b| b.workers(2));
    bench.sensor.set_default(Answer::hang());
    bench.get_many(100);
    wait_until(SOON, "an attempt", || bench.sensor.events_received() > 0);
    // Some of these events are still in the rings.
    bench.get_many(200);
    bench.wait_captured(300);
    let took = bench.stop(signal, &[]);
    assert_eq!(bench.dropped_in_log(SHUTDOWN), 300);
    took
}

#[test]
fn quit_with_a_hanging_sensor_takes_the_shutdown_timeout_and_counts_the_rest() {
    let took = stop_with_a_hanging_sensor(Signal::QUIT, "shutdown_timeout 2s;");
    assert!((2.0..2.0 + SLACK.as_secs_f64()).contains(&took.as_secs_f64()), "{took:?}");
}

#[test]
fn term_with_a_hanging_sensor_takes_a_second_and_counts_the_rest() {
    let took = stop_with_a_hanging_sensor(Signal::TERM, "shutdown_timeout 1m;");
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
}

#[test]
fn term_cuts_short_what_quit_began() {
    let mut bench = Bench::start("shutdown_timeout 1m; timeout 60s;", |b| b.workers(2));
    bench.sensor.set_default(Answer::hang());
    bench.get_many(10);
    wait_until(SOON, "an attempt", || bench.sensor.events_received() > 0);
    bench.nginx.signal(Signal::QUIT);
    wait_until(SOON, "only the deliverer to be left", || bench.nginx.children().len() == 1);
    let took = bench.stop(Signal::TERM, &[]);
    assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    assert_eq!(bench.dropped_in_log(SHUTDOWN), 10);
}

#[test]
fn what_a_worker_that_ends_first_leaves_in_the_rings_is_the_last_ones() {
    // After a second, nginx kills a worker that has not ended. On a busy machine, the first one needs longer.
    for _ in 0..10 {
        let mut bench = Bench::start("timeout 60s; shutdown_timeout 10s;", |b| b.workers(2));
        bench.sensor.set_default(Answer::hang());
        let deliverer = bench.deliverer();
        let other = *bench.nginx.workers().iter().find(|pid| **pid != deliverer).unwrap();
        let mut connection = bench.connection_to(|pid| pid == deliverer);
        // The deliverer does not notice that this worker exits, because it is stopped.
        bench.nginx.signal_worker(other, Signal::STOP);
        for n in 0..300 {
            pid_of(&mut connection, &format!("/r/{n}"));
        }
        bench.nginx.signal(Signal::TERM);
        bench.nginx.wait_gone(deliverer);
        bench.nginx.signal_worker(other, Signal::CONT);
        bench.nginx.term();
        if bench.nginx.crashes(&[Signal::KILL]).len() == bench.nginx.crashes(&[]).len() {
            bench.assert_clean_log(&[]);
            assert_eq!(bench.dropped_in_log(SHUTDOWN), 300);
            return;
        }
    }
    panic!("nginx has killed a worker each time");
}

#[test]
fn term_cuts_short_what_an_old_worker_still_tries_after_a_reload() {
    let mut bench = Bench::start("shutdown_timeout 1m; timeout 60s;", |b| b);
    bench.sensor.set_default(Answer::hang());
    let _socket = bench.web_socket();
    bench.get_many(10);
    wait_until(SOON, "an attempt", || bench.sensor.events_received() > 0);
    bench.nginx.reload();
    let new = bench.nginx.workers()[0];
    wait_until(SOON, "the new deliverer", || bench.deliverers().contains(&new));
    let asked = Instant::now();
    assert!(bench.nginx.term().is_some_and(|status| status.success()));
    assert!(asked.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", asked.elapsed());
    // nginx 1.22 itself logs alerts about the WebSocket's sockets then.
    assert_eq!(bench.nginx.crashes(&[]), [""; 0]);
    // These include the WebSocket's own event.
    assert_eq!(bench.dropped_in_log(SHUTDOWN), 11);
}

// WebSockets keep old workers.

#[test]
fn an_old_worker_kept_by_a_websocket_captures_and_the_new_one_delivers() {
    let mut bench = Bench::start("", |b| b);
    let old = bench.deliverer();
    let mut socket = bench.web_socket();
    bench.wait_stored(1);
    bench.nginx.reload();
    let new = bench.nginx.workers()[0];
    bench.wait_deliverer(new, Duration::from_secs(1) + SLACK);
    assert_eq!(bench.nginx.exiting_workers(), [old]);
    assert_eq!(bench.nginx.thread_names(old), ["nginx", "tirreno"]);
    bench.get("/");
    bench.wait_stored(2);
    // The new worker stays the deliverer: the two do not take turns.
    let connections = bench.sensor.connections();
    for n in 3..20 {
        bench.get("/");
        bench.wait_stored(n);
        assert_eq!(bench.deliverers(), [new]);
    }
    assert_eq!(bench.sensor.connections(), connections);
    assert_eq!(socket.echo("still there").unwrap(), "still there");
    drop(socket);
    bench.nginx.wait_gone(old);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn what_an_old_worker_captures_while_it_exits_is_delivered_by_the_new_one() {
    let mut bench = Bench::start("", |b| b);
    let old = bench.deliverer();
    let port = bench.port();
    let slow = thread::spawn(move || {
        client::get(port, "/app/slow?delay=2000", &[("Cookie", "user=u")]).unwrap()
    });
    wait_until(SOON, "the slow request", || !bench.backend.requests().is_empty());
    bench.nginx.reload();
    let new = bench.nginx.workers()[0];
    bench.wait_deliverer(new, Duration::from_secs(1) + SLACK);
    assert_eq!(bench.sensor.stored_count(), 0);
    assert_eq!(slow.join().unwrap().status, 200);
    bench.wait_stored(1);
    bench.nginx.wait_gone(old);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn after_quit_the_workers_that_websockets_keep_still_deliver() {
    let mut bench = Bench::start("", |b| b.workers(2));
    let first = bench.web_socket();
    bench.nginx.reload();
    let second = bench.web_socket();
    bench.get_many(20);
    let port = bench.port();
    let slow = thread::spawn(move || {
        client::get(port, "/app/slow?delay=1000", &[("Cookie", "user=u")]).unwrap()
    });
    wait_until(SOON, "the slow request", || bench.backend.requests().len() == 3);
    bench.nginx.signal(Signal::QUIT);
    bench.wait_stored(22);
    // This event was captured after all of nginx had begun to stop.
    assert_eq!(slow.join().unwrap().status, 200);
    bench.wait_stored(23);
    assert!(bench.nginx.is_running());

    drop(second);
    wait_until(SOON, "the second generation's end", || bench.nginx.children().len() == 1);
    bench.wait_deliverer(bench.nginx.children()[0], SOON);
    drop(first);
    bench.stop(Signal::QUIT, &[]);
    bench.wait_stored(23);
}

#[test]
fn after_quit_a_worker_that_a_websocket_keeps_does_not_give_up_what_is_in_memory() {
    let mut bench = Bench::start("shutdown_timeout 100ms;", |b| b.workers(3));
    let deliverer = bench.deliverer();
    let socket = bench.web_socket_of(deliverer);
    let opened = bench.backend.requests().len();
    bench.wait_stored(opened);
    bench.sensor.set_default(Answer::code(503));
    bench.get_many(20);
    bench.nginx.signal(Signal::QUIT);
    wait_until(SOON, "the other workers' end", || bench.nginx.children() == [deliverer]);
    // The first of them may be a last attempt, the second may not.
    let attempts = bench.sensor.events_received();
    wait_until(SOON, "more attempts", || bench.sensor.events_received() >= attempts + 2);
    bench.sensor.set_default(Answer::normal());
    bench.wait_stored(opened + 20);
    assert_eq!(bench.dropped_in_log(SHUTDOWN), 0);
    drop(socket);
    bench.stop(Signal::QUIT, &[]);
}

// Killed workers.

#[test]
fn killed_workers_under_load_are_replaced_and_the_totals_add_up() {
    let mut bench = Bench::start("", |b| b.workers(3));
    let load = Load::start(&bench, SLOW, FAR, u64::MAX);
    load.wait_more(300);
    let deliverer = bench.deliverer();
    bench.nginx.signal_worker(deliverer, Signal::KILL);
    bench.nginx.wait_gone(deliverer);
    let stored = bench.sensor.stored_count();
    wait_until(Duration::from_secs(1) + SLACK, "delivery to go on", || {
        bench.sensor.stored_count() > stored + Load::CLIENTS
    });
    let next = bench.deliverer();
    assert_ne!(next, deliverer);

    let other = *bench.nginx.workers().iter().find(|&&pid| pid != next).unwrap();
    bench.nginx.signal_worker(other, Signal::KILL);
    bench.nginx.wait_gone(other);
    load.wait_more(300);
    assert_eq!(bench.deliverer(), next);
    let answered = load.finish();
    let killed = [deliverer, other];

    let totals = bench.settled();
    wait_until(SOON, "the drops to be said", || bench.dropped_in_log(DIED) == totals.dropped);
    // A kill may come between an answer and its capture, or between the sensor's answer and its count.
    let uncaptured = answered.len() as u64 - totals.captured;
    assert!(uncaptured <= killed.len() as u64, "{uncaptured} answered and not captured");
    let stored = distinct(bench.stored_numbers());
    assert!(stored.is_subset(&answered));
    let uncounted = stored.len() as u64 - totals.delivered;
    assert!(uncounted <= 1, "{uncounted} stored and not counted");
    bench.stop(Signal::QUIT, &killed);
}

#[test]
fn what_killed_workers_had_captured_is_delivered() {
    const REQUESTS: u64 = 20;
    let mut bench = Bench::start("", |b| b.workers(2));
    let workers = bench.nginx.workers();
    let deliverer = bench.deliverer();
    let mut connection = bench.connection_to(|pid| pid != deliverer);
    // Nobody collects the events of the other worker.
    bench.nginx.signal_worker(deliverer, Signal::STOP);
    for n in 0..REQUESTS {
        pid_of(&mut connection, &format!("/r/{n}"));
    }
    // The last request is surely captured once the next one is answered.
    connection.request("GET", "/pid", &[], b"").unwrap();
    // The deliverer is killed last, so that no other worker takes over.
    for worker in workers.iter().filter(|pid| **pid != deliverer).chain([&deliverer]) {
        bench.nginx.signal_worker(*worker, Signal::KILL);
        bench.nginx.wait_gone(*worker);
    }
    let totals = bench.settled();
    assert_eq!((totals.captured, totals.delivered), (REQUESTS, REQUESTS));
    bench.wait_stored(REQUESTS as usize);
    assert_eq!(distinct(bench.stored_numbers()), (0..REQUESTS).collect());
    bench.stop(Signal::QUIT, &workers);
}

#[test]
fn what_a_killed_deliverer_held_is_counted_and_said() {
    let mut bench = Bench::start("batch_size 100000;", |b| b.workers(2));
    let deliverer = bench.deliverer();
    bench.sensor.refuse();
    bench.get_many(40);
    bench.wait_captured(40);
    // Some events are in the deliverer's memory: the oldest has an age.
    wait_until(SOON, "events in memory", || {
        let status = bench.nginx.status("/status");
        status["targets"]["tirreno"]["oldest_pending_seconds"] != 0
    });
    bench.nginx.signal_worker(deliverer, Signal::KILL);
    bench.nginx.wait_log(DIED);
    bench.sensor.listen_again();
    bench.get_many(10);
    let totals = bench.settled();
    // Events that it had not taken from the rings are delivered.
    let lost = totals.dropped;
    assert!((1..=40).contains(&lost), "{lost} lost");
    assert_eq!((totals.captured, totals.delivered), (50, 50 - lost));
    bench.nginx.wait_log(&format!("{lost} events dropped, {DIED}; {lost} in total"));
    bench.stop(Signal::QUIT, &[deliverer]);
}

// Who delivers, and how.

#[test]
fn of_four_workers_one_delivers() {
    let mut bench = Bench::start("connections 3;", |b| b.workers(4));
    let deliverer = bench.deliverer();
    let load = Load::start(&bench, FAST, NEAR, 3000);
    while load.answered() < 3000 {
        assert_eq!(bench.deliverers(), [deliverer]);
    }
    let answered = load.join();
    bench.wait_stored(3000);
    bench.assert_stored(&answered);
    let names = bench.nginx.thread_names(deliverer);
    assert_eq!(
        names,
        ["nginx", "tirreno", "tirreno-target", "tirreno-0", "tirreno-1", "tirreno-2"]
    );
    for other in bench.nginx.workers().into_iter().filter(|&pid| pid != deliverer) {
        assert_eq!(bench.nginx.thread_names(other), ["nginx", "tirreno"]);
    }
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn one_users_requests_keep_their_order_over_workers_and_connections() {
    const REQUESTS: u64 = 400;
    let mut bench = Bench::start("connections 4;", |b| b.workers(4));
    let port = bench.nginx.port_n(1);
    let mut connections = BTreeMap::new();
    wait_until(SOON, "connections to all workers", || {
        let mut connection = open(port);
        let answer = connection.request("GET", "/pid", &[], b"").unwrap();
        connections.insert(answer.text(), connection);
        connections.len() == 4
    });
    let mut connections: Vec<Connection> = connections.into_values().collect();
    for n in 0..REQUESTS {
        let (user, connection) = (format!("user=u{}", n % 5), &mut connections[n as usize % 4]);
        let answer = connection.request("GET", &format!("/r/{n}"), &[("Cookie", &user)], b"");
        assert_eq!(answer.unwrap().status, 200);
        bench.wait_captured(n + 1);
    }
    bench.wait_stored(REQUESTS as usize);
    let mut by_user: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for event in bench.sensor.stored() {
        let number = event.url.strip_prefix("/r/").unwrap().parse().unwrap();
        by_user.entry(event.user_name.clone()).or_default().push(number);
    }
    assert_eq!(by_user.len(), 5);
    for (user, numbers) in by_user {
        assert_eq!(numbers.len() as u64, REQUESTS / 5);
        assert!(numbers.is_sorted(), "{user}: {numbers:?}");
    }
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn a_single_process_captures_delivers_and_ends_well() {
    for signal in [Signal::QUIT, Signal::TERM] {
        let mut bench = Bench::start(PATIENT, Builder::single_process);
        bench.get_many(100);
        bench.wait_stored(100);
        bench.get_many(100);
        bench.stop(signal, &[]);
        bench.wait_stored(200);
    }
}

#[test]
fn the_cache_manager_and_the_loader_get_no_threads() {
    let mut bench = Bench::start("", |b| b.http("proxy_cache_path %PREFIX%/cache keys_zone=c:1m;"));
    bench.get_many(10);
    bench.wait_stored(10);
    let worker = bench.nginx.workers()[0];
    assert_eq!(bench.nginx.threads(worker), 4);
    let others: Vec<u32> =
        bench.nginx.children().into_iter().filter(|&pid| pid != worker).collect();
    assert_eq!(others.len(), 2, "the manager and the loader");
    for other in others {
        assert_eq!(bench.nginx.thread_names(other), ["nginx"]);
    }
    bench.nginx.reload();
    bench.get_many(10);
    bench.wait_stored(20);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn ten_reloads_leak_no_thread_no_descriptor_and_no_memory() {
    let mut bench = Bench::start("", |b| b);
    let counts = |bench: &Bench| {
        let (worker, master) = (bench.nginx.workers()[0], bench.nginx.master_pid());
        let maps = fs::read_to_string(format!("/proc/{master}/maps")).unwrap();
        let shared = maps.lines().filter(|line| line.contains("/dev/zero")).count();
        let files = (bench.nginx.open_files(worker), bench.nginx.open_files(master));
        (bench.nginx.thread_names(worker), files, shared)
    };
    let mut stored = 0;
    let mut reload = |bench: &Bench| {
        let old = bench.nginx.workers()[0];
        bench.nginx.reload();
        bench.nginx.wait_gone(old);
        bench.get("/");
        stored += 1;
        bench.wait_stored(stored);
    };
    reload(&bench);
    let before = counts(&bench);
    assert_eq!(before.0, ["nginx", "tirreno", "tirreno-target", "tirreno-0"]);
    assert!(before.2 > 0, "no shared memory");
    (0..10).for_each(|_| reload(&bench));
    wait_for(SOON, "the counts from before", || match counts(&bench) {
        after if after == before => Ok(()),
        after => Err(format!("{after:?}, not {before:?}")),
    });
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn the_threads_take_no_signal_no_file_and_let_the_event_loop_go_first() {
    const PRIORITY: i32 = 3;
    let bench = Bench::start("", |b| b.main(&format!("worker_priority {PRIORITY};")));
    let worker = bench.deliverer();
    // The event loop, the collector, the target and its connection. Each has its starter's name at first.
    wait_until(SOON, "four threads", || {
        bench.nginx.thread_names(worker).into_iter().collect::<BTreeSet<_>>().len() == 4
    });
    let mut seen = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let task = task.unwrap().path();
        let read = |name: &str| fs::read_to_string(task.join(name)).ok();
        // The look-up of a host's name is a thread of its own, which ends.
        let (Some(name), Some(status), Some(stat), Ok(links)) =
            (read("comm"), read("status"), read("stat"), fs::read_dir(task.join("fd")))
        else {
            continue;
        };
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        let blocked = u64::from_str_radix(blocked.trim(), 16).unwrap();
        // The fields after the name, which is in parentheses, begin with the third.
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let nice: i32 = fields[19 - 3].parse().unwrap();
        let links = links.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        // Sockets, and files like its logs, which after a rotation nobody must keep open.
        let is_nginxs = |to: &PathBuf| {
            let to = to.to_string_lossy();
            to.starts_with("socket:") || to.starts_with('/') && !to.starts_with("/dev/")
        };
        let open: Vec<_> = links.filter(is_nginxs).collect();
        seen.insert(name.trim().to_owned(), (blocked, nice, open));
    }
    // Bit n - 1 is signal n; nobody can block KILL and STOP.
    let classic = (1u64 << 31) - 1;
    let all = classic & !(1 << (Signal::KILL.as_raw() - 1)) & !(1 << (Signal::STOP.as_raw() - 1));
    assert_eq!(seen.len(), 4, "{seen:?}");
    let nginx = seen.remove("nginx").unwrap();
    assert_eq!((nginx.0 & all, nginx.1), (0, PRIORITY));
    assert!(nginx.2.iter().any(|file| file.ends_with("error.log")), "{nginx:?}");
    for (name, (blocked, nice, open)) in seen {
        let by = if name.starts_with("tirreno-") { 10 } else { 5 };
        assert_eq!((blocked & all, nice), (all, PRIORITY + by), "{name}");
        assert!(open.iter().all(|file| !nginx.2.contains(file)), "{name} has nginx's: {open:?}");
    }
}

// Other configurations.

#[test]
fn targets_come_and_go_with_reloads() {
    let mut bench = Bench::start("", |b| b.workers(2));
    let second = Sensor::start(SensorOptions::default());
    let (one, two) = (target("tirreno", "%SENSOR%", ""), target("two", "%SECOND%", ""));
    let both = format!("{one}\n{two}\ntirreno on;");
    let one = format!("{one}\ntirreno on;");
    let reload = |bench: &mut Bench, http: &str| {
        bench.nginx.reconfigure(|b| with_http(b, http).var("SECOND", &second.url()));
        bench.nginx.reload();
    };
    bench.get_many(10);
    bench.wait_stored(10);

    reload(&mut bench, &both);
    bench.get_many(10);
    bench.wait_stored(20);
    second.wait_stored(10, SOON).unwrap();
    assert_eq!(bench.settled().delivered, 20);

    reload(&mut bench, &one);
    bench.get_many(10);
    bench.wait_stored(30);
    assert_eq!(bench.settled().delivered, 30);
    assert!(bench.nginx.status("/status")["targets"]["two"].is_null());

    reload(&mut bench, &both);
    bench.get_many(10);
    second.wait_stored(20, SOON).unwrap();
    assert_eq!(bench.settled().delivered, 40);
    wait_until(SOON, "the second target's total", || bench.totals_of("two").delivered == 20);

    // Without a target, and with one again: a new zone counts from 0.
    reload(&mut bench, "");
    for worker in bench.nginx.workers() {
        assert_eq!(bench.nginx.thread_names(worker), ["nginx"]);
    }
    bench.get_many(10);
    reload(&mut bench, &one);
    bench.get_many(10);
    bench.wait_stored(50);
    assert_eq!(bench.settled().captured, 10);
    assert_eq!(second.stored_count(), 20);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn what_was_captured_for_a_removed_target_is_counted_and_said() {
    let mut bench = Bench::start("", |b| b);
    let second = Sensor::start(SensorOptions::default());
    let one = target("tirreno", "%SENSOR%", "");
    let two = target("two", "%SECOND%", "");
    let http = format!("{one}\n{two}\ntirreno on;");
    bench.nginx.reconfigure(|b| with_http(b, &http).var("SECOND", &second.url()));
    bench.nginx.reload();
    // The old worker captures an event for both targets, after a reload has removed one of them.
    let port = bench.port();
    let slow = thread::spawn(move || {
        client::get(port, "/app/slow?delay=2000", &[("Cookie", "user=u")]).unwrap()
    });
    wait_until(SOON, "the slow request", || !bench.backend.requests().is_empty());
    bench.nginx.reconfigure(|b| with_http(b, &format!("{one}\ntirreno on;")));
    bench.nginx.reload();
    bench.wait_deliverer(bench.nginx.workers()[0], Duration::from_secs(1) + SLACK);
    assert_eq!(slow.join().unwrap().status, 200);
    bench.wait_stored(1);
    let line = bench.nginx.wait_log("1 events dropped, the target is no longer configured");
    assert!(line.contains("\"two\""), "{line}");
    assert_eq!(second.stored_count(), 0);
    bench.settled();
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn another_url_or_key_is_used_from_the_reload_on() {
    let mut bench = Bench::start("", |b| b);
    let options = SensorOptions { keys: vec!["other".into()], ..Default::default() };
    let other = Sensor::start(options);
    bench.get_many(10);
    bench.wait_stored(10);
    let http = format!("{}\ntirreno on;", target("tirreno", "%OTHER%", "api_key other;"));
    bench.nginx.reconfigure(|b| with_http(b, &http).var("OTHER", &other.url()));
    bench.nginx.reload();
    bench.get_many(10);
    other.wait_stored(10, SOON).unwrap();
    let totals = bench.settled();
    assert_eq!((totals.captured, totals.delivered), (20, 20));
    assert_eq!(bench.sensor.stored_count(), 10);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn more_and_fewer_workers_and_another_zone_lose_nothing_under_load() {
    let mut bench = Bench::start(PATIENT, |b| b);
    let load = Load::start(&bench, SLOW, NEAR, u64::MAX);
    for workers in [4, 1, 2] {
        load.wait_more(300);
        bench.nginx.reconfigure(|b| b.workers(workers));
        bench.nginx.reload();
    }
    load.wait_more(300);
    let captured = bench.totals().captured;
    // nginx captures a request after it has answered it, …
    let fewest = 1200 - Load::CLIENTS as u64;
    assert!(captured >= fewest, "the totals of the same zone go on");
    bench.nginx.reconfigure(|b| b.http("tirreno_zone 2m;"));
    bench.nginx.reload();
    load.wait_more(300);
    let answered = load.finish();
    bench.wait_stored(answered.len());
    bench.assert_stored(&answered);
    let totals = bench.settled();
    // … and an old worker may have captured requests that were in progress during the reload.
    let fewest = 300 - Load::CLIENTS as u64;
    assert!(totals.captured >= fewest && totals.captured < captured, "{totals:?}");
    bench.stop(Signal::QUIT, &[]);
}

// Bounds.

#[test]
fn a_full_zone_drops_and_counts_and_never_delays_a_request() {
    let mut bench = Bench::start("", |b| b.workers(2).http("tirreno_zone 1200k;"));
    let deliverer = bench.deliverer();
    // A connection to the other worker, because the stopped worker would not answer.
    let mut connection = bench.connection_to(|pid| pid != deliverer);
    let status = |connection: &mut Connection| {
        let answer = connection.request("GET", "/status", &[], b"").unwrap();
        Totals::read(&serde_json::from_slice(&answer.body).unwrap(), "tirreno")
    };
    bench.nginx.signal_worker(deliverer, Signal::STOP);
    let long = "x".repeat(1500);
    let mut sent = 0;
    wait_until(SOON, "drops", || {
        for _ in 0..50 {
            pid_of(&mut connection, &format!("/r/{sent}?{long}"));
            sent += 1;
        }
        status(&mut connection).dropped >= 100
    });
    let full = status(&mut connection);
    assert_eq!((full.captured, full.delivered + full.rejected), (sent, 0));
    assert_eq!(full.pending, sent - full.dropped);

    bench.nginx.signal_worker(deliverer, Signal::CONT);
    let line = bench.nginx.wait_log(ZONE_FULL);
    let dropped = format!("{0} events dropped, {ZONE_FULL}; {0} in total", full.dropped);
    assert!(line.contains(&dropped), "{line}");
    bench.wait_stored((sent - full.dropped) as usize);
    bench.get("/again");
    bench.wait_stored((sent - full.dropped) as usize + 1);
    let totals = bench.settled();
    assert_eq!((totals.captured, totals.dropped), (sent + 1, full.dropped));
    assert_eq!(bench.dropped_in_log(ZONE_FULL), full.dropped);
    drop(connection);
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn a_queue_keeps_its_last_fifth_for_what_is_no_page_view() {
    const QUEUE: u64 = 100;
    let http = format!(
        "map $arg_type $type {{ login account_login; }}
         tirreno_param eventType $type;
         {}
         tirreno on;",
        target("tirreno", "%SENSOR%", &format!("queue {QUEUE};"))
    );
    let mut bench = Bench::start("", |b| with_http(b, &http));
    bench.deliverer();
    bench.sensor.refuse();
    let mut connection = open(bench.port());
    let mut send = |count: u64, path: &str, expected: (u64, u64)| {
        for _ in 0..count {
            pid_of(&mut connection, path);
        }
        wait_for(SOON, "the queue", || match bench.totals() {
            totals if (totals.pending, totals.dropped) == expected => Ok(()),
            totals => Err(format!("{totals:?}, not {expected:?}")),
        });
    };
    send(70, "/page", (70, 0));
    send(30, "/page", (80, 20));
    send(15, "/?type=login", (95, 20));
    send(10, "/?type=login", (100, 25));
    send(10, "/page", (100, 35));

    // The message is logged at most once a second, however many events are dropped.
    let lines = |bench: &Bench| bench.nginx.error_log().matches(QUEUE_FULL).count();
    let (started, before) = (Instant::now(), lines(&bench));
    let mut dropped = 35;
    wait_until(SOON, "three more lines", || {
        dropped += 1;
        send(1, "/page", (100, dropped));
        lines(&bench) >= before + 3
    });
    assert!(started.elapsed() >= Duration::from_secs(2), "three lines in {:?}", started.elapsed());
    wait_until(SOON, "all drops to be said", || bench.dropped_in_log(QUEUE_FULL) == dropped);
    assert!(bench.nginx.error_log().contains(&format!("{QUEUE_FULL}; {dropped} in total")));

    bench.sensor.listen_again();
    bench.wait_stored(QUEUE as usize);
    let mut kinds = BTreeMap::new();
    for event in bench.sensor.stored() {
        *kinds.entry(event.event_type.clone()).or_insert(0) += 1;
    }
    // Each login has displaced a page view.
    assert_eq!(kinds, [("account_login".into(), 25), ("page_view".into(), 75)].into());
    bench.settled();
    bench.stop(Signal::QUIT, &[]);
}

#[test]
fn with_the_sensor_down_memory_grows_by_the_queue_and_little_more() {
    const QUEUE: u64 = 4 << 20;
    const MORE: u64 = 8 << 20;
    let requests = if std::env::var_os("TEST_FULL").is_some() { 1_000_000 } else { 20_000 };
    // The limit on bytes is reached, not the one on events.
    let http = format!(
        "{}\ntirreno on;\ntirreno_param userAgent {};",
        target("tirreno", "%SENSOR%", "queue 10000 size=4m;"),
        "x".repeat(500)
    );
    let mut bench = Bench::start("", |b| with_http(b, &http));
    let worker = bench.deliverer();
    bench.get_many(10);
    bench.wait_stored(10);
    bench.sensor.refuse();
    // Without the rings: how much of them is in use depends on the processors.
    let before = bench.nginx.rss_anon(worker);
    let answered = Load::start(&bench, FAST, FAR, requests).join();
    assert_eq!(answered.len() as u64, requests);
    bench.wait_captured(requests + 10);
    wait_until(SOON, "the queue to be full", || bench.dropped_in_log(QUEUE_FULL) > 0);
    let grown = bench.nginx.rss_anon(worker).saturating_sub(before);
    assert!(grown <= QUEUE + MORE, "{grown} bytes");
    bench.stop(Signal::TERM, &[]);
    let held = bench.dropped_in_log(SHUTDOWN);
    assert!((3000..7000).contains(&held), "{held} were held");
    assert_eq!(held + bench.dropped_in_log(QUEUE_FULL), requests);
}

fn distinct(numbers: Vec<u64>) -> BTreeSet<u64> {
    numbers.into_iter().collect()
}
