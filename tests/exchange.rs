//! Many bodies that are kept at the same time, and answers to which nginx adds text.

use std::env;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;

use rustix::process::{Resource, getrlimit};
use tirreno_tests::backend::{Answer, Backend};
use tirreno_tests::client;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::wait::{SOON, wait_for, wait_until};
use tirreno_tests::written::written_lines;

/// What a process keeps of all bodies together, and the most that each may cost besides, in bytes.
const BOUND: u64 = 16 << 20;
const EACH: u64 = 1 << 10;

/// The length of the unfinished name that each client has sent.
const NAME: usize = 6000;

/// The part of the body before the name.
const HEAD: &str = "{\"login_id\":\"";

fn start(server: &str, backend: &Backend) -> Nginx {
    let http = "
        log_format user '$request_uri $tirreno_user';
        access_log %PREFIX%/logs/user.log user;
        client_body_timeout 600s;
        tirreno_target { type file; path %PREFIX%/logs/audit.json; }
        tirreno_anonymous on;";
    let builder = Nginx::builder().events("worker_connections 20000;");
    builder.var("BACKEND", &backend.address()).http(http).server(server).start()
}

/// Sends a login without the end of its body.
fn log_in_slowly(port: u16, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let length = HEAD.len() + NAME + 2;
    let name = "x".repeat(NAME);
    let request = format!(
        "POST /login?{number} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{HEAD}{name}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn users(nginx: &Nginx) -> Vec<(String, String)> {
    let log = written_lines(&nginx.prefix().join("logs/user.log"));
    let pair = |line: &str| line.split_once(' ').map(|(url, user)| (url.into(), user.into()));
    log.lines().filter_map(pair).collect()
}

/// As many clients at once as the limit of open files allows.
#[test]
fn slow_logins_have_a_bound_together() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = usize::try_from(limit.saturating_sub(1000)).unwrap_or(usize::MAX).min(10_000);
    assert!(count >= 2000, "a limit of {limit} open files tells nothing");
    let backend = Backend::answering(|_| Answer { status: 401, ..Answer::default() });
    let sites = ["off", "on"].map(|tirreno| {
        let server = format!(
            "tirreno {tirreno};
             tirreno_event account_login_fail POST /login body=json user=body:login_id unknown=send;
             location / {{ proxy_pass http://%BACKEND%; }}
             location /status {{ access_log off; tirreno off; tirreno_status; }}"
        );
        start(&server, &backend)
    });
    let [off, on] = &sites;
    let mut grown = [0, 0];
    for (nginx, grown) in sites.iter().zip(&mut grown) {
        let worker = nginx.workers()[0];
        let before = nginx.rss_anon(worker);
        let mut waiting: Vec<_> =
            (0..count).map(|number| log_in_slowly(nginx.port(), number)).collect();
        // The worker handles events in order, so it has read all bodies before it answers this.
        nginx.status("/status");
        *grown = nginx.rss_anon(worker).saturating_sub(before);

        // The first body found room, the last one did not.
        for number in [0, count - 1] {
            let stream = &mut waiting[number];
            stream.write_all(b"\"}").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
        }
        drop(waiting);
        // After all have ended, there is room again.
        wait_until(SOON, "the end of all", || users(nginx).len() == count);
        client::post(nginx.port(), "/login?new", &[], br#"{"login_id":"ann"}"#).unwrap();
        wait_until(SOON, "the new one", || users(nginx).len() > count);
    }
    let user = |nginx: &Nginx, url: &str| {
        let users = users(nginx);
        users.into_iter().find(|(own, _)| own == url).map(|(_, user)| user).unwrap()
    };
    assert_eq!(user(off, "/login?new"), "-");
    let first = user(on, "/login?0");
    assert!(first.starts_with("xxx") && first.len() == 100, "{first}");
    assert_eq!(user(on, &format!("/login?{}", count - 1)), "unknown-unreadable");
    assert_eq!(user(on, "/login?new"), "ann");
    // The difference excludes the memory that nginx itself needs.
    let (more, count) = (grown[1].saturating_sub(grown[0]), count as u64);
    println!("{count} logins wait: {grown:?} bytes without and with the module");
    let most = (BOUND + count * EACH).min(count * (8 << 10));
    assert!(more <= most, "{more} bytes more for {count} logins, of {grown:?}");
    assert!(on.crashes(&[]).is_empty());
}

/// Whether nginx has a module.
fn has(module: &str) -> bool {
    let binary = env::var_os("TEST_NGINX_BINARY").expect("ci/test sets it");
    let about = Command::new(binary).arg("-V").output().expect("nginx");
    String::from_utf8_lossy(&about.stderr).contains(module)
}

/// Debian's nginx can append to answers; the vendored one can only include.
#[test]
fn what_nginx_adds_is_not_the_applications() {
    const BODY: &str =
        r#"{"user":{"id":"u1"},"x":"<!--# include virtual='/included' -->"}{"user":"#;
    let backend = Backend::answering(|_| Answer {
        status: 200,
        headers: vec![("Content-Type".into(), "text/html".into())],
        body: BODY.into(),
    });
    let added = if has("http_addition_module") {
        "location /before { add_before_body /included; proxy_pass http://%BACKEND%; }
         location /after { add_after_body /included; proxy_pass http://%BACKEND%; }
         location /around {
             ssi on;
             add_before_body /included;
             add_after_body /included;
             proxy_pass http://%BACKEND%;
         }"
    } else {
        ""
    };
    let nginx = start(
        &format!(
            "tirreno on;
             tirreno_event page_view * '/{{*path}}' user=answer:user.id;
             location /plain {{ proxy_pass http://%BACKEND%; }}
             location /ssi {{ ssi on; proxy_pass http://%BACKEND%; }}
             location = /included {{
                 internal;
                 default_type text/html;
                 return 200 '{{\"user\":{{\"id\":\"victim\"}}}}';
             }}
             {added}"
        ),
        &backend,
    );
    let mut urls = vec!["/plain", "/ssi"];
    if !added.is_empty() {
        urls.extend(["/before", "/after", "/around"]);
    }
    for url in &urls {
        let answer = client::get(nginx.port(), url, &[]).unwrap();
        assert_eq!(answer.text().contains("victim"), *url != "/plain", "{}", answer.text());
    }
    let users = wait_for(SOON, "the log", || {
        let users = users(&nginx);
        if users.len() == urls.len() { Ok(users) } else { Err(format!("{users:?}")) }
    });
    let expected: Vec<_> = urls.iter().map(|url| ((*url).to_owned(), "u1".to_owned())).collect();
    assert_eq!(users, expected);
    assert!(nginx.crashes(&[]).is_empty());
}
