//! The status in each of its forms, and its interpretation by monitoring systems.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tirreno_tests::client::{self, Response};
use tirreno_tests::nginx::{Builder, Nginx};
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_for, wait_until};
use tirreno_tests::written::written_lines;

const SERVER: &str = "
    tirreno on;
    tirreno_user $arg_user;
    location / { return 200; }
    location /login {
        tirreno_event account_login_fail POST /login audit=login;
        tirreno_ip $http_x_address;
        return 401;
    }
    location /signin {
        tirreno_event account_login_fail POST \"/signin/{how}\" status=401 audit=loginWith first_step=arg:second_factor;
        tirreno_event account_login POST \"/signin/{how}\" audit=login;
        tirreno_ip $http_x_address;
        if ($arg_broken) { return 502; }
        return 401;
    }
    location = /status { tirreno off; tirreno_status; }
    location = /page { tirreno off; ssi on; ssi_types *; default_type text/html; alias %PREFIX%/page; }";
/// Needs a module that not every nginx has.
const AFTER: &str = "
    location = /after { tirreno off; add_after_body /status; default_type text/html; alias %PREFIX%/page; }";

/// Whether nginx has the module ngx_http_addition_module.
fn has_addition() -> bool {
    let nginx = std::env::var_os("TEST_NGINX_BINARY").expect("TEST_NGINX_BINARY");
    let about = std::process::Command::new(nginx).arg("-V").output().expect("nginx runs").stderr;
    String::from_utf8_lossy(&about).contains("http_addition_module")
}

struct Site {
    sensor: Sensor,
    nginx: Nginx,
}

impl Site {
    fn start(key: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let sensor = Sensor::start(SensorOptions::default());
        let target = format!(
            "access_log off;
             tirreno_target {{ url %SENSOR%; api_key {key}; interval 20ms; spool %PREFIX%/spool; }}"
        );
        let after = if has_addition() { AFTER } else { "" };
        let server = format!("{SERVER}{after}");
        let builder = Nginx::builder().sensor(&sensor.url()).http(&target).server(&server);
        let page = "<p>before</p><!--# include virtual=\"/status\" --><p>after</p>";
        Self { nginx: more(builder.file("page", page)).start(), sensor }
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        client::get(self.nginx.port(), path, headers)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Requests of users, all delivered.
    fn deliver(&self, count: usize) {
        (0..count).for_each(|n| {
            self.get(&format!("/?user={n}"), &[]);
        });
        wait_until(SOON, "the delivery", || {
            self.status()["targets"]["tirreno"]["delivered"] == count
        });
    }

    fn status(&self) -> Value {
        self.nginx.status("/status")
    }

    fn go_down(&self) {
        self.sensor.refuse();
        self.sensor.drop_connections();
    }
}

#[test]
fn a_client_gets_the_form_that_it_accepts() {
    let site = Site::start("test-key", |builder| builder);
    site.deliver(3);
    let kind = |response: &Response| response.header("content-type").unwrap();
    let json = site.get("/status", &[("Accept", "*/*")]);
    assert_eq!((json.status, kind(&json).as_str()), (200, "application/json"));
    assert_eq!(json.header("cache-control").unwrap(), "no-store");
    assert_eq!(json.header("vary").unwrap(), "Accept");

    let page = site.get("/status", &[("Accept", "text/html,*/*;q=0.8")]);
    assert_eq!(kind(&page), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; img-src data:; style-src 'sha256-"),
        "{policy}"
    );

    let metrics = site.get("/status?format=prometheus", &[("Accept", "text/html")]);
    assert_eq!(kind(&metrics), "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text().contains("tirreno_delivered_events_total{target=\"tirreno\"} 3\n"));
    assert_eq!(site.get("/status?format=xml", &[]).status, 404);
    let post = client::post(site.nginx.port(), "/status", &[], b"").unwrap();
    assert_eq!(post.status, 405);
}

#[test]
fn the_json_is_as_its_schema_says() {
    let site = Site::start("test-key", |builder| builder);
    let schema: Value = serde_json::from_str(include_str!("../docs/status.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let check = |status: &Value| {
        let errors: Vec<_> = validator.iter_errors(status).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{status:#}");
    };
    check(&site.status());
    site.deliver(5);
    let status = site.status();
    check(&status);
    let target = &status["targets"]["tirreno"];
    assert_eq!(target["delivery_seconds"]["count"], 5);
    assert_eq!(
        status["events"]["page_view"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(Value::as_u64)
            .sum::<u64>(),
        5
    );
    let identities = ["answer", "session", "lookup", "claim", "none"];
    assert_eq!(
        identities.iter().filter_map(|name| status["identity"][name].as_u64()).sum::<u64>(),
        5
    );
    site.go_down();
    site.get("/?user=late", &[]);
    wait_until(SOON, "a failed attempt", || {
        site.status()["targets"]["tirreno"]["state"] == "retrying"
    });
    check(&site.status());
}

#[test]
fn a_response_that_includes_the_status_goes_on_behind_it() {
    let site = Site::start("test-key", |builder| builder);
    for (path, end) in [("/page", "<p>after</p>"), ("/after", "}\n")] {
        if path == "/after" && !has_addition() {
            continue;
        }
        let text = site.get(path, &[("Accept", "text/html")]).text();
        assert!(text.starts_with("<p>before</p>") && text.ends_with(end), "{path}: {text}");
        assert!(text.contains("\"targets\": {"), "{path}: {text}");
    }
}

/// A monitoring program from the directory that ci/test fills with Debian's packages, or the system's. If
/// there is none, the test is skipped.
fn program(name: &str) -> Option<Command> {
    let root = env::var_os("TEST_MONITORING").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let path = root.join("usr/bin").join(name);
    if !path.exists() {
        assert!(env::var_os("TEST_MONITORING").is_none(), "{} does not exist", path.display());
        eprintln!("no {name} here: not tested");
        return None;
    }
    let mut command = Command::new(path);
    command.env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"));
    Some(command)
}

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf/monitoring")
}

#[test]
fn prometheus_takes_metrics_and_rules() {
    let site = Site::start("test-key", |builder| builder);
    site.deliver(2);
    let Some(mut check) = program("promtool") else { return };
    let metrics = site.get("/status?format=prometheus", &[]).text();
    let file = site.nginx.prefix().join("metrics");
    std::fs::write(&file, metrics).unwrap();
    check.args(["check", "metrics"]).stdin(std::fs::File::open(file).unwrap());
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");

    let mut check = program("promtool").unwrap();
    let output =
        check.args(["check", "rules"]).arg(monitoring().join("alerts.yml")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_metric_that_monitoring_names_exists() {
    let site = Site::start("test-key", |builder| builder);
    let text = site.get("/status?format=prometheus", &[]).text();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut known = BTreeSet::new();
    for (name, kind) in families.filter_map(|family| family.split_once(' ')) {
        known.insert(name.to_owned());
        if kind == "histogram" {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        }
    }
    let mut seen = 0;
    for file in ["alerts.yml", "grafana-dashboard.json"] {
        let text = std::fs::read_to_string(monitoring().join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("tirreno_") && *word != "tirreno_status") {
            assert!(known.contains(word), "{file}: {word}");
            seen += 1;
        }
    }
    assert!(seen > 30);
}

#[test]
fn the_schema_names_the_types_that_there_are() {
    let schema = include_str!("../docs/status.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let types = ["tirreno", "file", "console", "syslog", "tcp"];
    assert_eq!(schema["$defs"]["target"]["properties"]["type"]["enum"], serde_json::json!(types));
}

#[test]
fn an_event_without_a_value_that_is_too_long_is_told_as_one() {
    let site = Site::start("test-key", |builder| {
        builder.http("server { listen 127.0.0.1:%PORT1%; tirreno on; tirreno_user u; tirreno_param payload $arg_p;
                      large_client_header_buffers 4 16k; location / { return 200; } }")
    });
    let long = format!("/?p={}", "x".repeat(9000));
    client::get(site.nginx.port_n(1), &long, &[]).unwrap();
    let target = || site.status()["targets"]["tirreno"].clone();
    wait_until(SOON, "the event", || target()["delivered"] == 1);
    assert_eq!(
        (&target()["captured"], &site.status()["skipped"]["invalid"]),
        (&1.into(), &1.into())
    );
    let metrics = site.get("/status?format=prometheus", &[]).text();
    assert!(metrics.contains("invalid: also events without a value that is too long"), "{metrics}");
    assert!(site.get("/status?format=html", &[]).text().contains("sent without it"));
}

/// Names and user agents that try to end a line or to add another address.
const HOSTILE: [&str; 4] = [
    "x\",\"ip_address\":\"203.0.113.99",
    "\\\",\"type\":\"account_login_fail\",\"ip_address\":\"203.0.113.99\"",
    "{\"timestamp\":\"2026-11-26 03:30:01.051 Z\",\"event\":\"login\",\"status\":\"fail\"",
    "\",\"source\":{\"address\":\"203.0.113.99\"",
];

#[test]
fn fail2ban_sees_failed_logins_and_their_addresses_only() {
    if program("fail2ban-regex").is_none() {
        return;
    }
    for format in ["json", "mattermost", "mattermost_v7", "ecs"] {
        let site = Site::start("test-key", |builder| {
            let target = format!(
                "tirreno_target audit {{ type file; path %PREFIX%/audit.log; interval 20ms; format {format}; }}"
            );
            builder.http(&target)
        });
        let mut expected = Vec::new();
        for (n, agent) in HOSTILE.iter().chain(&["plain"]).enumerate() {
            let address = format!("192.0.2.{n}");
            let headers = [("X-Address", address.as_str()), ("User-Agent", agent)];
            client::post(site.nginx.port(), "/login?user=u", &headers, b"").unwrap();
            site.get("/?user=u", &headers);
            expected.push(address);
        }
        // By another way, whose event has a name of its own; with a second factor to follow; of an application with
        // a fault; and with a name that looks like the mark of a first step.
        for (n, counts, target) in [
            (10, true, "/signin/desktop?user=u"),
            (11, false, "/signin/desktop?user=u&second_factor=1"),
            (12, false, "/signin/desktop?user=u&broken=1"),
            (13, true, "/signin/%22first_step%22:true?user=%22first_step%22:true"),
        ] {
            let address = format!("192.0.2.{n}");
            let headers = [("X-Address", address.as_str()), ("User-Agent", "\"first_step\":true")];
            client::post(site.nginx.port(), target, &headers, b"").unwrap();
            expected.extend(counts.then_some(address));
        }
        let log = site.nginx.prefix().join("audit.log");
        wait_until(SOON, "the audit records", || {
            written_lines(&log).lines().count() == 2 * (HOSTILE.len() + 1) + 4
        });
        let mut command = program("fail2ban-regex").unwrap();
        let filter = monitoring().join("fail2ban/filter.d/tirreno-login.conf");
        let output = command.args(["--out", "ip"]).arg(&log).arg(filter).output().unwrap();
        let found = String::from_utf8_lossy(&output.stdout);
        let found: Vec<_> = found.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(found, expected, "{format}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Chromium's view of the page: its content after its scripts ran for some seconds, and what it wrote to the
/// console. With `TEST_SCREENSHOTS` set, pictures in light and dark colours go into that directory.
fn browse(chromium: &Path, url: &str, name: &str) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(chromium);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args([
                "--enable-logging=stderr",
                "--disable-extensions",
                "--no-first-run",
                "--lang=en",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(arguments)
            .arg(url)
            .stdin(Stdio::null());
        let output = command.output().expect("chromium runs");
        let [out, err] =
            [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
        assert!(output.status.success(), "{err}");
        (out, err)
    };
    if let Some(directory) = env::var_os("TEST_SCREENSHOTS") {
        for (colours, scheme) in [("dark", 0), ("light", 1)] {
            let picture = Path::new(&directory).join(format!("{name}-{colours}.png"));
            run(&[
                "--window-size=1100,1250",
                &format!("--blink-settings=preferredColorScheme={scheme}"),
                &format!("--screenshot={}", picture.display()),
            ]);
        }
    }
    let (page, said) = run(&["--virtual-time-budget=12000", "--dump-dom"]);
    // The browser's own pages write there, too.
    let is_ours = |line: &&str| line.contains("CONSOLE") && !line.contains("source: chrome://");
    let console = said.lines().filter(is_ours).collect::<Vec<_>>().join("\n");
    (page, console)
}

/// The value that the page has under a key.
fn shown<'a>(page: &'a str, key: &str) -> &'a str {
    let start = page
        .split_once(&format!("data-key=\"{key}\" data-value=\""))
        .unwrap_or_else(|| panic!("no {key}: {page}"));
    start.1.split('"').next().unwrap()
}

#[test]
fn a_browser_shows_the_page() {
    let Some(chromium) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .flat_map(|name| ["/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(name)))
        .find(|path| path.exists())
    else {
        eprintln!("no chromium here: not tested");
        return;
    };
    let site = Site::start("test-key", |builder| builder);
    site.deliver(40);
    site.get("/", &[]);
    let url = format!("http://127.0.0.1:{}/status", site.nginx.port());
    let (page, console) = browse(&chromium, &url, "well");
    assert_eq!(console, "");
    assert!(page.contains("All is well") && page.contains("renewed at"), "{page}");
    let status = site.status();
    for key in [
        "captured",
        "delivered",
        "dropped",
        "rejected",
        "pending",
        "retries",
        "merged",
        "withdrawn",
    ] {
        assert_eq!(shown(&page, key), status["targets"]["tirreno"][key].to_string(), "{key}");
    }
    assert_eq!(shown(&page, "state"), "ok");
    assert_eq!(shown(&page, "skipped.anonymous"), status["skipped"]["anonymous"].to_string());
    for identity in ["answer", "session", "lookup", "claim", "none"] {
        assert_eq!(
            shown(&page, &format!("identity.{identity}")),
            status["identity"][identity].to_string()
        );
    }

    site.go_down();
    (0..7).for_each(|n| {
        site.get(&format!("/?user=late{n}"), &[]);
    });
    wait_for(SOON, "the outage", || {
        let status = site.status();
        let target = &status["targets"]["tirreno"];
        if target["state"] == "retrying" && target["pending"] == 7 {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let (page, console) = browse(&chromium, &url, "down");
    assert_eq!(console, "");
    assert_eq!((shown(&page, "state"), shown(&page, "pending")), ("retrying", "7"));
    assert!(page.contains("needs attention") && page.contains("Is Tirreno running?"), "{page}");

    let site = Site::start("wrong-key", |builder| builder);
    site.get("/?user=u", &[]);
    wait_until(SOON, "the refusal", || site.status()["targets"]["tirreno"]["state"] == "paused");
    let url = format!("http://127.0.0.1:{}/status", site.nginx.port());
    let (page, console) = browse(&chromium, &url, "key");
    assert_eq!(console, "");
    assert!(page.contains("does not know the API key"), "{page}");
}
