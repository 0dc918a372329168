//! What is captured of a request, through the directives that a user writes.

use std::time::Duration;

use tirreno_tests::client;
use tirreno_tests::nginx::{Builder, Nginx};
use tirreno_tests::sensor::{Sensor, SensorOptions};

const SOON: Duration = Duration::from_secs(20);

/// nginx with one target, `interval 20ms`, and `tirreno_user` from the cookie `user`.
fn nginx(sensor: &Sensor, server: &str) -> Builder {
    Nginx::builder()
        .sensor(&sensor.url())
        .http(
            "tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }
             tirreno on;
             tirreno_user $cookie_user;",
        )
        .server(server)
}

#[test]
fn all_fields() {
    let sensor = Sensor::start(SensorOptions::default());
    let nginx = nginx(&sensor, "location / { return 201; }").start();
    let headers = [
        ("Cookie", "a=b; user=u1; c=d"),
        ("User-Agent", "Agent/1.0 (x; y)"),
        ("Referer", "http://example.com/?a=1&b=%20+"),
        ("Accept-Language", "de-DE,de;q=0.9"),
    ];
    client::get(nginx.port(), "/a/b?c=d&e=%20+", &headers).unwrap();
    let stored = sensor.wait_stored(1, SOON).unwrap();
    let event = &stored[0];
    assert_eq!(event.user_name, "u1");
    assert_eq!(event.ip_address, "127.0.0.1");
    println!("{}", event.to_line());
    println!("{}", nginx.error_log());
}
