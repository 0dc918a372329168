//! Attacks that try to hide real events in a flood: real events are stored soon and in order all the same,
//! and the attack is recorded with its true number of events.
//!
//! Floods of 20 seconds, or with `TEST_FULL` of two minutes, against a server that takes ten events a
//! second.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use tirreno_tests::client::Connection;
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Rate, Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_for};

/// How soon a real event must be stored.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// How long an attack lasts.
fn length() -> Duration {
    let is_full = std::env::var_os("TEST_FULL").is_some();
    Duration::from_secs(if is_full { 120 } else { 20 })
}

/// The kind of attack.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flood {
    /// Failed logins, each for another account, from this number of addresses.
    Logins { addresses: usize },
    /// Page views of one user with a good session.
    Views,
    /// Logouts, sign-ups and password changes without a user.
    Nobody,
}

impl Flood {
    /// Requests a second.
    fn rate(self) -> u32 {
        match self {
            Self::Views => 200,
            Self::Logins { .. } | Self::Nobody => 60,
        }
    }

    fn request(self, number: usize) -> (&'static str, String) {
        match self {
            Self::Logins { addresses } => {
                let address = number % addresses;
                (
                    "POST",
                    format!(
                        "/login?user=unknown-{number}&ip=198.51.{}.{}",
                        address / 250,
                        address % 250
                    ),
                )
            }
            Self::Views => ("GET", format!("/real/view?user=visitor&n={number}")),
            Self::Nobody => {
                let path = ["logout", "register", "password"][number % 3];
                ("POST", format!("/{path}?ip=198.51.100.7&n={number}"))
            }
        }
    }
}

const RULES: &str = "
    tirreno_event account_login      POST /real/login;
    tirreno_event account_edit       POST /real/role;
    tirreno_event page_edit          POST /real/post;
    tirreno_event page_view          GET  /real/view;
    tirreno_event account_login_fail POST /login status=401;
    tirreno_event account_logout     POST /logout anonymous=on;
    tirreno_event account_registration    POST /register anonymous=on;
    tirreno_event account_password_change POST /password anonymous=on;
    tirreno_default_event off;
    location /real/ { tirreno_user $sent_http_x_user; add_header X-User $arg_user; return 200; }
    location = /login { tirreno_user $arg_user; return 401; }
    location / { tirreno_user $arg_user; return 200; }
    location = /status { tirreno off; tirreno_status; }";

struct Site {
    nginx: Nginx,
    sensor: Sensor,
}

impl Site {
    fn start(parameters: &str, change: impl FnOnce(Builder) -> Builder) -> Self {
        let rate = Some(Rate::new(20, 2));
        let sensor =
            Sensor::start(SensorOptions { rate, record_requests: false, ..Default::default() });
        let builder = Nginx::builder()
            .workers(2)
            .sensor(&sensor.url())
            .http(&format!(
                "tirreno_target {{ url %SENSOR%; api_key test-key; interval 100ms; {parameters} }}
                 tirreno on;
                 tirreno_ip $arg_ip;
                 keepalive_requests 1000000;"
            ))
            .server(RULES);
        let nginx = change(builder).start();
        Self { nginx, sensor }
    }

    fn totals(&self) -> HashMap<String, u64> {
        let status = self.nginx.status("/status");
        let target = status["targets"]["tirreno"].as_object().unwrap();
        let number =
            |(name, value): (&String, &serde_json::Value)| Some((name.clone(), value.as_u64()?));
        target.iter().filter_map(number).collect()
    }

    /// Waits until all events are captured, and the counters add up.
    fn captured(&self, made: &Made) -> HashMap<String, u64> {
        let answered = (made.attack + made.real) as u64;
        let is_all = |captured| match made.with_faults {
            // Requests whose answers were lost have been repeated.
            true => captured >= answered,
            false => captured == answered,
        };
        wait_for(SOON, "the sums", || {
            let t = self.totals();
            let parts = ["delivered", "rejected", "dropped", "merged", "withdrawn", "pending"];
            let sum: u64 = parts.iter().map(|name| t[*name]).sum();
            if is_all(t["captured"]) && sum == t["captured"] {
                Ok(t)
            } else {
                Err(format!("{t:?}"))
            }
        })
    }

    fn open(&self) -> Connection {
        let address = SocketAddr::from(([127, 0, 0, 1], self.nginx.port()));
        wait_for(SOON, "a connection", || Connection::open(address).map_err(|e| e.to_string()))
    }

    /// The worker that delivers.
    fn deliverer(&self) -> u32 {
        let delivers = |pid: &u32| self.nginx.thread_names(*pid).iter().any(|n| n == "tirreno-0");
        let find = || self.nginx.workers().into_iter().find(delivers).ok_or_else(String::new);
        wait_for(SOON, "a deliverer", find)
    }

    /// Makes requests at a rate. Returns the time of each request's answer, by the request's number. A
    /// request without an answer is repeated over a new connection.
    fn send(
        &self,
        rate: u32,
        length: Duration,
        request: impl Fn(usize) -> (&'static str, String),
    ) -> Vec<Instant> {
        let mut connection = self.open();
        let started = Instant::now();
        let mut answered = Vec::new();
        while started.elapsed() < length {
            let due = started + Duration::from_secs(1) / rate * answered.len() as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let (method, path) = request(answered.len());
            while connection.request(method, &path, &[], b"").is_err() {
                connection = self.open();
            }
            answered.push(Instant::now());
            if connection.ended() {
                connection = self.open();
            }
        }
        answered
    }
}

/// The real events, of one user after another: each second a login, a change of a role and a post.
fn real(number: usize) -> (&'static str, String) {
    let path = ["login", "role", "post"][number % 3];
    ("POST", format!("/real/{path}?user=real-{}&n={number}", number / 3 % 5))
}

fn real_number(event: &StoredEvent) -> Option<usize> {
    event.user_name.strip_prefix("real-")?;
    event.url.rsplit_once("n=")?.1.parse().ok()
}

/// How many events an event stands for.
fn repeated(event: &StoredEvent) -> usize {
    let number = event.url.rsplit_once("repeated=").map(|(_, number)| number.parse().unwrap());
    number.unwrap_or(1)
}

/// The faults during an attack.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Faults {
    None,
    Reload,
    /// Also a `kill -9` of the worker that delivers.
    ReloadAndKill,
}

/// How many requests were made and answered.
struct Made {
    attack: usize,
    real: usize,
    with_faults: bool,
}

/// Attacks while real events happen, and asserts that all of these are stored soon and in order.
fn attack(site: &Site, flood: Flood, faults: Faults) -> Made {
    let (answered, attacked) = thread::scope(|scope| {
        let real = scope.spawn(|| site.send(3, length(), real));
        let attack =
            scope.spawn(|| site.send(flood.rate(), length(), |number| flood.request(number)));
        thread::sleep(length().mul_f64(0.6));
        if faults != Faults::None {
            site.nginx.reload();
        }
        thread::sleep(length().mul_f64(0.2));
        if faults == Faults::ReloadAndKill {
            let deliverer = site.deliverer();
            site.nginx.signal_worker(deliverer, Signal::KILL);
        }
        (real.join().unwrap(), attack.join().unwrap().len())
    });
    let stored = wait_for(SOON, "the real events", || {
        let mut stored: Vec<_> =
            site.sensor.stored().into_iter().filter(|event| real_number(event).is_some()).collect();
        // A kill may have repeated some events.
        let mut seen = std::collections::BTreeSet::new();
        stored.retain(|event| seen.insert(real_number(event)));
        let missing: Vec<_> = (0..answered.len()).filter(|n| !seen.contains(&Some(*n))).collect();
        if missing.is_empty() {
            Ok(stored)
        } else {
            Err(format!("{missing:?}, {:?}", site.totals()))
        }
    });
    let mut last = HashMap::new();
    let mut slowest = Duration::ZERO;
    for event in &stored {
        let number = real_number(event).unwrap();
        if let Some(at) = answered.get(number) {
            slowest = slowest.max(event.at.saturating_duration_since(*at));
        }
        let before = last.insert(event.user_name.clone(), number);
        assert!(
            before.is_none_or(|before| before < number),
            "{}: {number} after {before:?}",
            event.user_name
        );
    }
    println!(
        "{flood:?}, {faults:?}: {} real, the slowest after {slowest:?}; {attacked} of the attack",
        stored.len()
    );
    assert!(slowest < STORED_WITHIN, "{slowest:?}");
    Made { attack: attacked, real: answered.len(), with_faults: faults != Faults::None }
}

/// The events of the attack, with their numbers, in the end.
fn attack_stored(site: &Site) -> usize {
    let of_attack = |event: &&std::sync::Arc<StoredEvent>| real_number(event).is_none();
    site.sensor.stored().iter().filter(of_attack).map(|event| repeated(event)).sum()
}

/// A site with a spool in a directory of its own, and one without.
fn with_and_without_spool(parameters: &str, test: impl Fn(&Site, bool)) {
    test(&Site::start(&format!("queue 300; {parameters}"), |b| b), false);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool").display().to_string();
    test(&Site::start(&format!("spool %SPOOL%; {parameters}"), |b| b.var("SPOOL", &path)), true);
}

#[test]
fn failed_logins_from_one_address_are_one_event_a_minute_with_their_number() {
    let mut site = Site::start("shutdown_timeout 20s; login_fail_delay 0;", |b| b);
    let made = attack(&site, Flood::Logins { addresses: 1 }, Faults::None);
    let totals = site.captured(&made);
    assert!(totals["merged"] > made.attack as u64 / 2, "{totals:?}");
    assert_eq!(totals["dropped"], 0, "{totals:?}");
    // nginx sends the merged events when it stops, even before their minute is over.
    assert!(site.nginx.quit().unwrap().success());
    assert_eq!(attack_stored(&site), made.attack);
    let many =
        site.sensor.stored().into_iter().filter(|event| repeated(event) > 1).collect::<Vec<_>>();
    assert!(
        !many.is_empty() && many.len() <= 1 + length().as_secs() as usize / 60 + 1,
        "{}",
        many.len()
    );
    for event in many {
        assert_eq!((&*event.user_name, &*event.event_type), ("unknown-many", "account_login_fail"));
        assert_eq!(event.ip_address, "198.51.0.0");
        assert!(event.url.starts_with("/login?"), "{}", event.url);
    }
}

#[test]
fn a_spool_merges_in_its_transactions_over_a_reload_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool").display().to_string();
    let site = Site::start("spool %SPOOL%; login_fail_delay 0;", |b| b.var("SPOOL", &spool));
    let made = attack(&site, Flood::Logins { addresses: 1 }, Faults::ReloadAndKill);
    let totals = site.captured(&made);
    assert!(totals["merged"] > made.attack as u64 / 2, "{totals:?}");
    assert_eq!(totals["dropped"], 0, "{totals:?}");
}

/// Without a spool, a kill would lose the events in the process's memory.
fn faults(spool: bool) -> Faults {
    if spool { Faults::ReloadAndKill } else { Faults::Reload }
}

#[test]
fn failed_logins_from_many_addresses_hold_up_nobody() {
    with_and_without_spool("login_fail_delay 0;", |site, spool| {
        let made = attack(site, Flood::Logins { addresses: 200 }, faults(spool));
        let totals = site.captured(&made);
        assert_eq!(totals["dropped"] > 0, !spool, "{totals:?}");
    });
}

#[test]
fn page_views_of_one_session_hold_up_nobody() {
    with_and_without_spool("", |site, spool| {
        let made = attack(site, Flood::Views, faults(spool));
        let totals = site.captured(&made);
        assert_eq!(totals["dropped"] > 0, !spool, "{totals:?}");
    });
}

#[test]
fn what_nobody_proved_holds_up_nobody() {
    with_and_without_spool("", |site, spool| {
        let made = attack(site, Flood::Nobody, faults(spool));
        let totals = site.captured(&made);
        assert_eq!(totals["dropped"] > 0, !spool, "{totals:?}");
    });
}
