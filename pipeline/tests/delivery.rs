//! The whole pipeline without nginx and without a network: producers, the deliverer's threads, and
//! scripted connections.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tirreno_pipeline::capture::level::Routing;
use tirreno_pipeline::clock::wall_ms;
use tirreno_pipeline::config::secret::Secret;
use tirreno_pipeline::config::{Destination, TargetConfig};
use tirreno_pipeline::delivery::deliverer::{Deliverer, Setup};
use tirreno_pipeline::delivery::spool::{Database, SpoolConfig};
use tirreno_pipeline::event::Param;
use tirreno_pipeline::log_queue::{Reader, log_queue};
use tirreno_pipeline::privacy::Privacy;
use tirreno_pipeline::record::Capture;
use tirreno_pipeline::shm::ring::Producer;
use tirreno_pipeline::shm::zone::{DropReason, Fault, State, Zone, anonymous};
use tirreno_pipeline::tirreno::config::{Endpoint, TirrenoConfig};
use tirreno_pipeline::tirreno::http::{Outbound, Post};
use tirreno_pipeline::tirreno::policy::{Answer, KeyAnswer};
use tirreno_pipeline::tirreno::shared::Connect;

/// What a scripted server does with an event's URL.
type Script = dyn Fn(&str) -> Answer + Send + Sync;

#[derive(Default)]
struct Server {
    /// User and URL of each accepted event, in order of arrival, with the connection's number.
    accepted: Mutex<Vec<(String, String, usize)>>,
    connections: AtomicUsize,
}

struct Connection {
    server: Arc<Server>,
    script: Arc<Script>,
    number: usize,
}

impl Outbound for Connection {
    fn post(&mut self, event: &Post<'_>, _limit: Duration) -> Answer {
        let form: HashMap<String, String> = serde_urlencoded::from_str(&event.body).unwrap();
        let url = form["url"].clone();
        let answer = (self.script)(&url);
        if answer == Answer::Status(204) {
            let user = form["userName"].clone();
            self.server.accepted.lock().unwrap().push((user, url, self.number));
        }
        answer
    }

    fn check_key(&mut self, _limit: Duration) -> KeyAnswer {
        KeyAnswer::Good
    }
}

struct Bench {
    zone: Zone,
    server: Arc<Server>,
    setup: Setup,
    log: Reader,
}

impl Bench {
    fn new(connections: usize, script: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let zone = anonymous(4 << 20).unwrap();
        let slot = zone.target_slot("t", 0).unwrap();
        let server = Arc::new(Server::default());
        let script: Arc<Script> = Arc::new(script);
        let connect: Arc<Connect> = {
            let server = server.clone();
            Arc::new(move || {
                let number = server.connections.fetch_add(1, SeqCst);
                Box::new(Connection { server: server.clone(), script: script.clone(), number })
            })
        };
        let target = TargetConfig {
            name: "t".into(),
            slot,
            events: Routing::ALL,
            queue_events: 10_000,
            queue_bytes: 16 << 20,
            interval: Duration::from_millis(1),
            batch_size: 64,
            repeat: None,
            shutdown_timeout: Duration::from_secs(30),
            spool: None,
            privacy: Privacy::default(),
            destination: Destination::Tirreno(TirrenoConfig {
                endpoint: Endpoint::parse("http://localhost/sensor/").unwrap(),
                api_key: Secret::new("k"),
                headers: Vec::new(),
                tls: None,
                timeout: Duration::from_secs(1),
                connections,
                rate: None,
                accept_200: false,
                resend: false,
                login_fail_delay: Duration::from_secs(60),
            }),
        };
        let (log, messages) = log_queue();
        let setup = Setup {
            zone,
            targets: vec![target].into(),
            log,
            connect: Some(connect),
            own_files: None,
        };
        Self { zone, server, setup, log: messages }
    }

    /// The same with another `shutdown_timeout`.
    fn giving_up_after(mut self, shutdown_timeout: Duration) -> Self {
        let target = TargetConfig { shutdown_timeout, ..self.setup.targets[0].clone() };
        self.setup.targets = vec![target].into();
        self
    }

    /// The same with a spool in `dir`.
    fn spooled(mut self, dir: &Path) -> Self {
        let mut target = self.setup.targets[0].clone();
        target.spool = Some(SpoolConfig::new(dir.into(), String::new()));
        self.setup.targets = vec![target].into();
        self
    }

    fn start(&self) -> Deliverer {
        Deliverer::start(self.setup.clone()).unwrap()
    }

    fn worker(&self) -> Producer {
        Producer::new(self.zone, std::process::id())
    }

    fn delivered(&self) -> u64 {
        self.zone.totals(0).delivered
    }

    fn adds_up(&self) {
        let t = self.zone.totals(0);
        let settled = t.delivered + t.rejected + t.all_dropped();
        assert_eq!(t.captured, settled + t.pending, "{t:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if thread::panicking() {
            self.log.drain().for_each(|message| println!("{}", message.text));
            println!("{:?}", self.zone.totals(0));
        }
    }
}

fn push(worker: &mut Producer, user: &str, url: &str) {
    static NEXT_TRACE: AtomicUsize = AtomicUsize::new(0);
    let mut event = Capture::new(wall_ms());
    let trace = format!("{:032x}", NEXT_TRACE.fetch_add(1, SeqCst));
    event.trace = trace.into_bytes().try_into().unwrap();
    event.targets = 1;
    event.set(Param::UserName, user.as_bytes()).unwrap();
    event.set(Param::Url, url.as_bytes()).unwrap();
    worker.push(&event).unwrap();
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn each_users_order_over_connections() {
    let bench = Bench::new(4, |_| Answer::Status(204));
    let deliverer = bench.start();
    let mut workers = [bench.worker(), bench.worker()];
    for i in 0..2000 {
        push(&mut workers[i % 2], &format!("u{}", i % 17), &i.to_string());
    }
    wait("2000 delivered", || bench.delivered() == 2000);
    let mut last: HashMap<String, (usize, usize)> = HashMap::new();
    for (user, url, connection) in bench.server.accepted.lock().unwrap().iter() {
        let number: usize = url.parse().unwrap();
        if let Some((before, same)) = last.insert(user.clone(), (number, *connection)) {
            assert!(before < number, "{user}: {number} after {before}");
            assert_eq!(same, *connection, "{user} over two connections");
        }
    }
    assert_eq!(last.values().map(|(_, c)| c).collect::<std::collections::HashSet<_>>().len(), 4);
    bench.adds_up();
    deliverer.finish(|| None);
}

#[test]
fn a_refused_event_holds_up_its_own_user_only() {
    let others = AtomicUsize::new(0);
    let bench = Bench::new(1, move |url| match url {
        "/bad" if others.load(SeqCst) < 10 => Answer::Status(403),
        "/bad" | "/after" => Answer::Status(204),
        _ => {
            others.fetch_add(1, SeqCst);
            Answer::Status(204)
        }
    });
    let deliverer = bench.start();
    let mut worker = bench.worker();
    push(&mut worker, "a", "/bad");
    push(&mut worker, "a", "/after");
    for i in 0..50 {
        push(&mut worker, "b", &i.to_string());
    }
    wait("all delivered", || bench.delivered() == 52);
    let accepted = bench.server.accepted.lock().unwrap();
    let place = |url: &str| accepted.iter().position(|(_, u, _)| u == url).unwrap();
    assert!(place("/bad") < place("/after"));
    drop(accepted);
    bench.adds_up();
    deliverer.finish(|| None);
}

#[test]
fn a_panic_costs_one_event() {
    let bench = Bench::new(2, |url| {
        assert_ne!(url, "/panic");
        Answer::Status(204)
    });
    let deliverer = bench.start();
    let mut worker = bench.worker();
    for i in 0..10 {
        push(&mut worker, &format!("u{i}"), if i == 3 { "/panic" } else { "/fine" });
    }
    wait("the others delivered", || bench.delivered() == 9);
    let t = bench.zone.totals(0);
    assert_eq!((t.dropped[DropReason::Internal as usize], t.pending), (1, 0));
    bench.adds_up();
    assert!(bench.log.drain().any(|m| m.text.contains("failed and starts again")));
    deliverer.finish(|| None);
}

#[test]
fn one_of_two_delivers_and_the_other_takes_over() {
    let bench = Bench::new(1, |_| Answer::Status(204));
    let (first, second) = (bench.start(), bench.start());
    let mut worker = bench.worker();
    push(&mut worker, "u", "/1");
    wait("one delivered", || bench.delivered() == 1);
    assert_eq!(bench.server.connections.load(SeqCst), 1, "two deliverers");
    // Whichever delivers makes room for the other, which will stay.
    first.exiting();
    first.finish(|| None);
    push(&mut worker, "u", "/2");
    wait("two delivered", || bench.delivered() == 2);
    second.finish(|| None);
    bench.adds_up();
}

#[test]
fn one_that_is_about_to_exit_makes_room() {
    let bench = Bench::new(1, |_| Answer::Status(204));
    let old = bench.start();
    wait("it delivers", || bench.server.connections.load(SeqCst) == 1);
    let new = bench.start();
    old.exiting();
    wait("the other delivers", || bench.server.connections.load(SeqCst) == 2);
    let mut worker = bench.worker();
    push(&mut worker, "u", "/1");
    wait("one delivered", || bench.delivered() == 1);
    new.finish(|| None);
    old.finish(|| None);
}

#[test]
fn one_that_is_about_to_exit_goes_on_where_nobody_else_is() {
    let bench = Bench::new(1, |_| Answer::Status(204));
    let only = bench.start();
    wait("it delivers", || bench.server.connections.load(SeqCst) == 1);
    only.exiting();
    let mut worker = bench.worker();
    for i in 0..5 {
        push(&mut worker, "u", &i.to_string());
        wait("delivered", || bench.delivered() == i + 1);
    }
    only.finish(|| None);
}

#[test]
fn what_cannot_be_delivered_in_time_is_counted_and_said() {
    let patience = Duration::from_millis(300);
    let bench = Bench::new(1, |_| Answer::Status(503)).giving_up_after(patience);
    let deliverer = bench.start();
    let mut worker = bench.worker();
    (0..30).for_each(|i| push(&mut worker, "u", &i.to_string()));
    let stopped = Instant::now();
    deliverer.finish(|| None);
    assert!(stopped.elapsed() < Duration::from_secs(5));
    let t = bench.zone.totals(0);
    assert_eq!((t.dropped[DropReason::Shutdown as usize], t.pending), (30, 0));
    assert!(bench.log.drain().any(|m| m.text.contains("30 events could not be delivered")));
}

#[test]
fn the_last_records_are_delivered_when_the_process_exits() {
    let bench = Bench::new(1, |_| Answer::Status(204));
    let deliverer = bench.start();
    let mut worker = bench.worker();
    (0..500).for_each(|i| push(&mut worker, "u", &i.to_string()));
    deliverer.finish(|| None);
    assert_eq!(bench.delivered(), 500);
}

/// The numbers in the URLs that were accepted, in their order.
fn numbers(bench: &Bench) -> Vec<usize> {
    bench.server.accepted.lock().unwrap().iter().map(|(_, url, _)| url.parse().unwrap()).collect()
}

#[test]
fn a_spool_keeps_what_a_stopping_process_could_not_deliver() {
    let dir = tempfile::tempdir().unwrap();
    let down = Bench::new(2, |_| Answer::Status(503)).spooled(dir.path());
    let deliverer = down.start();
    let mut worker = down.worker();
    (0..300).for_each(|i| push(&mut worker, &format!("u{}", i % 5), &i.to_string()));
    wait("spooled", || down.zone.totals(0).stored.pending == 300);
    deliverer.finish(|| None);
    let t = down.zone.totals(0);
    assert_eq!((t.captured, t.pending, t.all_dropped()), (300, 300, 0), "{t:?}");

    // Another nginx, with a zone of its own.
    let up = Bench::new(2, |_| Answer::Status(204)).spooled(dir.path());
    let mut worker = up.worker();
    let deliverer = up.start();
    (300..400).for_each(|i| push(&mut worker, &format!("u{}", i % 5), &i.to_string()));
    wait("all delivered", || up.delivered() == 400);
    for user in 0..5 {
        let of_user: Vec<_> = numbers(&up).into_iter().filter(|n| n % 5 == user).collect();
        assert!(of_user.is_sorted(), "u{user}: {of_user:?}");
    }
    let t = up.zone.totals(0);
    assert_eq!((t.captured, t.delivered, t.pending), (400, 400, 0));
    up.adds_up();
    deliverer.finish(|| None);
}

#[test]
fn what_a_slow_disk_left_in_memory_goes_into_the_spool() {
    // On a machine that is slow itself the database may be given up meanwhile.
    assert!((0..5).any(|_| a_slow_disk()), "the database was given up each time");
}

/// Returns whether the disk was only slow.
fn a_slow_disk() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(1, |_| Answer::Status(503)).spooled(dir.path());
    let deliverer = bench.start();
    let mut worker = bench.worker();
    push(&mut worker, "u", "0");
    wait("spooled", || bench.zone.totals(0).stored.pending == 1);
    // Whoever writes to the database has to wait.
    let config = bench.setup.targets[0].spool.clone().unwrap();
    let file = Database::file(&config, "t", "http://localhost/sensor/");
    let other = rusqlite::Connection::open(file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (1..300).for_each(|i| push(&mut worker, "u", &i.to_string()));
    wait("degraded", || bench.zone.totals(0).state == State::Degraded);
    other.execute_batch("ROLLBACK").unwrap();
    let given_up = || bench.log.drain().any(|message| message.text.contains("spool: "));
    let mut is_slow = true;
    wait("all spooled", || {
        is_slow &= !given_up();
        !is_slow || bench.zone.totals(0).stored.pending == 300
    });
    deliverer.finish(|| None);
    let t = bench.zone.totals(0);
    assert!(!is_slow || (t.captured, t.pending, t.all_dropped()) == (300, 300, 0), "{t:?}");
    is_slow
}

#[test]
fn one_process_sends_from_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let benches = [0, 1].map(|_| Bench::new(1, |_| Answer::Status(204)).spooled(dir.path()));
    let deliverers = benches.each_ref().map(Bench::start);
    for (b, bench) in benches.iter().enumerate() {
        let mut worker = bench.worker();
        (0..100).for_each(|i| push(&mut worker, "u", &(b * 100 + i).to_string()));
    }
    wait("all delivered", || benches[0].delivered() == 200 && benches[1].delivered() == 200);
    let sent = benches.each_ref().map(|b| numbers(b).len());
    assert!(sent == [200, 0] || sent == [0, 200], "{sent:?}");
    // The one that did not send takes over.
    let [a, b] = deliverers;
    let (first, second, rest) = if sent[0] > 0 { (a, b, &benches[1]) } else { (b, a, &benches[0]) };
    first.finish(|| None);
    push(&mut rest.worker(), "u", "200");
    wait("one more", || numbers(rest).len() == 1);
    second.finish(|| None);
}

#[test]
fn a_spool_that_cannot_be_used_is_done_without_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let bench = Bench::new(1, |_| Answer::Status(204)).spooled(&missing);
    let deliverer = bench.start();
    let mut worker = bench.worker();
    (0..50).for_each(|i| push(&mut worker, "u", &i.to_string()));
    wait("delivered from memory", || bench.delivered() == 50);
    assert!(bench.log.drain().any(|m| m.text.contains("spool: ")));
    let state = || bench.zone.totals(0).state;
    assert_eq!(state(), State::Degraded);
    std::fs::create_dir(&missing).unwrap();
    wait("works", || bench.log.drain().any(|m| m.text.contains("it works again")));
    wait("is no more degraded", || state() == State::Ok);
    (50..100).for_each(|i| push(&mut worker, "u", &i.to_string()));
    wait("delivered from the spool", || bench.zone.totals(0).stored.delivered == 50);
    assert_eq!(bench.delivered(), 100);
    assert!(numbers(&bench).is_sorted());
    bench.adds_up();
    deliverer.finish(|| None);
}

#[test]
fn a_refused_event_is_kept_in_the_spool_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(1, |url| match url {
        // Also without what a firewall may dislike.
        "7" | "7?stripped=1" => Answer::Status(400),
        _ => Answer::Status(204),
    })
    .spooled(dir.path());
    let deliverer = bench.start();
    let mut worker = bench.worker();
    (0..20).for_each(|i| push(&mut worker, "u", &i.to_string()));
    wait("settled", || bench.delivered() == 19 && bench.zone.totals(0).rejected == 1);
    bench.adds_up();
    deliverer.finish(|| None);
    let config = bench.setup.targets[0].spool.clone().unwrap();
    let file = Database::file(&config, "t", "http://localhost/sensor/");
    let reasons = Database::open(&config, &file, 0).unwrap().rejected_by_reason().unwrap();
    assert_eq!(reasons, [(Fault::Answered(400), 1)]);
}
