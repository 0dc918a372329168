//! No secret in a URL or a Referer reaches Tirreno, whatever its name and spelling; harmless values stay
//! readable.

use std::sync::Arc;

use tirreno_tests::client::get;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{Sensor, SensorOptions, StoredEvent};
use tirreno_tests::wait::{SOON, wait_until};

const SECRET: &str = "5ecr3t";

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// An argument as it is, encoded, in a URL, and in JSON.
fn target(name: &str) -> String {
    let url = encode(&format!("https://h/x?b=1&{name}={SECRET}"));
    let json = encode(&format!("{{\"a\":[{{\"{name}\":\"{SECRET}\"}}]}}"));
    let encoded = encode(name);
    format!("/a?a=1&{name}={SECRET}&{encoded}={SECRET}&to={url}&then={}&data={json}", encode(&url))
}

struct Site {
    sensor: Sensor,
    nginx: Nginx,
}

impl Site {
    fn start(server: &str) -> Self {
        let sensor = Sensor::start(SensorOptions::default());
        let nginx = Nginx::builder()
            .sensor(&sensor.url())
            .http(
                "tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }
                 tirreno on;
                 tirreno_anonymous on;",
            )
            .server(server)
            .start();
        Self { sensor, nginx }
    }

    /// The events of these requests; each is a path and a Referer.
    fn events(&self, requests: &[(String, String)]) -> Vec<Arc<StoredEvent>> {
        let before = self.sensor.stored_count();
        for (path, referer) in requests {
            get(self.nginx.port(), path, &[("Referer", referer)]).expect("an answer");
        }
        wait_until(SOON, "the events", || self.sensor.stored_count() == before + requests.len());
        self.sensor.stored().into_iter().skip(before).collect()
    }
}

#[test]
fn by_the_kind_of_their_names() {
    let site = Site::start("location / { return 204; }");
    let request = |name: &&str| (target(name), format!("https://h{}", target(name)));

    let secrets = lines(include_str!("data/secret_names.txt"));
    for (event, name) in
        site.events(&secrets.iter().map(request).collect::<Vec<_>>()).iter().zip(&secrets)
    {
        let hidden = format!("/a?a=1&{name}=***&{}=***&to=***&then=***&data=***", encode(name));
        assert_eq!(event.url, hidden);
        assert_eq!(event.http_referer.as_deref(), Some(&*format!("https://h{hidden}")));
    }
    for post in site.sensor.requests() {
        let body = String::from_utf8_lossy(&post.body).into_owned();
        assert!(!body.contains(SECRET) && !body.contains(&encode(SECRET)), "{body}");
    }

    let harmless = lines(include_str!("data/harmless_names.txt"));
    for (event, name) in
        site.events(&harmless.iter().map(request).collect::<Vec<_>>()).iter().zip(&harmless)
    {
        assert_eq!(event.url, target(name));
        assert_eq!(event.http_referer.as_deref(), Some(&*format!("https://h{}", target(name))));
    }
}

#[test]
fn names_are_added_and_taken_away() {
    let site = Site::start(
        "tirreno_redact color !code;
         location / { return 204; }
         location /inner { tirreno_redact code !color; return 204; }
         location /off { tirreno_redact off; return 204; }",
    );
    let query = "?color=1&code=2&auth_code=3&a[code]=4&b=eyJa.b.c";
    let urls: Vec<_> = ["/", "/inner", "/off"]
        .map(|path| (format!("{path}{query}"), "https://u:p@h/?token=1#x".to_owned()))
        .into();
    let events = site.events(&urls);
    let seen: Vec<_> = events.iter().map(|event| &*event.url).collect();
    assert_eq!(
        seen,
        [
            "/?color=***&code=2&auth_code=***&a[code]=4&b=***",
            "/inner?color=1&code=***&auth_code=***&a[code]=***&b=***",
            "/off?color=1&code=2&auth_code=3&a[code]=4&b=eyJa.b.c",
        ]
    );
}
