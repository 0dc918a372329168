//! What is not delivered, on disk: outages, restarts, kills.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tirreno_tests::client::Connection;
use tirreno_tests::nginx::{Builder, Nginx, Signal};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::wait_until;

const SOON: Duration = Duration::from_secs(60);

/// nginx with a spool in `dir` and two connections.
fn nginx(sensor: &Sensor, dir: &Path) -> Builder {
    Nginx::builder()
        .workers(2)
        .sensor(&sensor.url())
        .var("SPOOL", &dir.display().to_string())
        .http(
            "tirreno_target {
                 url %SENSOR%; api_key test-key; interval 20ms; connections 2; spool %SPOOL%;
             }
             tirreno on;
             tirreno_user $cookie_user;
             keepalive_requests 100000;",
        )
        .server(
            "location / { return 200; }
             location = /status { tirreno off; tirreno_status; }",
        )
}

/// Makes `count` requests of 7 users, one after another; their numbers continue from `from`.
fn requests(nginx: &Nginx, from: usize, count: usize) {
    let mut connection = Connection::open(([127, 0, 0, 1], nginx.port()).into()).unwrap();
    for i in from..from + count {
        let cookie = format!("user=u{}", i % 7);
        let headers = [("Cookie", cookie.as_str())];
        let response = connection.request("GET", &format!("/{i}"), &headers, b"").unwrap();
        assert_eq!(response.status, 200);
    }
}

fn status(nginx: &Nginx) -> HashMap<String, u64> {
    let status = nginx.status("/status");
    let target = &status["targets"]["tirreno"];
    ["captured", "delivered", "rejected", "dropped", "pending"]
        .into_iter()
        .map(|key| (key.to_owned(), target[key].as_u64().unwrap()))
        .collect()
}

fn pending(nginx: &Nginx) -> u64 {
    status(nginx)["pending"]
}

/// Each trace id once but for `repeats`, and each user's events in order.
fn check(sensor: &Sensor, count: usize, repeats: usize) {
    let stored = sensor.stored();
    let mut traces = HashMap::new();
    let mut last: HashMap<String, usize> = HashMap::new();
    for event in &stored {
        let first = traces.insert(event.trace_id.clone(), ()).is_none();
        let number: usize = event.url.trim_start_matches('/').parse().unwrap();
        if first && let Some(before) = last.insert(event.user_name.clone(), number) {
            assert!(before < number, "{}: {number} after {before}", event.user_name);
        }
    }
    assert_eq!(traces.len(), count);
    assert!(stored.len() <= count + repeats, "{} events of {count}", stored.len());
}

#[test]
fn an_outage_and_a_restart_lose_nothing() {
    let sensor = Sensor::start(SensorOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    sensor.refuse();
    let mut first = nginx(&sensor, &spool).start();
    requests(&first, 0, 2000);
    wait_until(SOON, "all is pending", || pending(&first) == 2000);
    assert!(first.quit().unwrap().success());
    drop(first);
    let mut second = nginx(&sensor, &spool).start();
    requests(&second, 2000, 500);
    sensor.listen_again();
    wait_until(SOON, "nothing is pending", || pending(&second) == 0);
    check(&sensor, 2500, 0);
    let totals = status(&second);
    assert_eq!((totals["captured"], totals["delivered"]), (2500, 2500));
    second.term();
}

#[test]
fn kills_of_workers_lose_nothing() {
    let sensor = Sensor::start(SensorOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let nginx = nginx(&sensor, &dir.path().join("spool")).start();
    for round in 0..6 {
        requests(&nginx, round * 300, 300);
        let deliverer = |pid: &u32| nginx.thread_names(*pid).iter().any(|n| n == "tirreno-0");
        if let Some(pid) = nginx.workers().into_iter().find(deliverer) {
            nginx.signal_worker(pid, Signal::KILL);
            nginx.wait_gone(pid);
        }
        wait_until(SOON, "two workers", || nginx.workers().len() == 2);
    }
    wait_until(SOON, "nothing is pending", || pending(&nginx) == 0);
    check(&sensor, 1800, 6 * 2);
    let totals = status(&nginx);
    assert_eq!((totals["captured"], totals["delivered"], totals["dropped"]), (1800, 1800, 0));
}
