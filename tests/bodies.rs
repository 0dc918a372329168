//! Rules that read bodies and answers as they pass, in all ways in which these may arrive.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tirreno_tests::backend::Backend;
use tirreno_tests::client::{self, RequestHeaders};
use tirreno_tests::nginx::{Builder, Nginx, nginx_is_before};
use tirreno_tests::ports::free_port;
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_until};

/// The name for an account whose name cannot be read.
const UNREADABLE: &str = "unknown-unreadable";

/// Each padding exceeds another limit: nginx's buffers, the bytes that 0.1.0 read, the bytes that are
/// searched for texts.
const PADDINGS: [usize; 4] = [4_200, 63 << 10, 65 << 10, 900 << 10];

/// nginx, the application behind it and the sensor.
struct Site {
    sensor: Sensor,
    backend: Backend,
    nginx: Nginx,
}

impl Site {
    fn start(server: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let (sensor, backend) = (Sensor::start(SensorOptions::default()), Backend::start());
        let http = "
            access_log off;
            client_max_body_size 4m;
            tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; login_fail_delay 0; repeat off; }
            tirreno on;
            tirreno_default_event off;
            proxy_http_version 1.1;";
        let builder = Nginx::builder().sensor(&sensor.url()).var("BACKEND", &backend.address());
        let nginx = more(builder.http(http).server(server)).start();
        Self { sensor, backend, nginx }
    }

    /// The user of the one event.
    #[track_caller]
    fn user(&self) -> String {
        self.sensor.wait_stored(1, SOON).unwrap();
        let events = self.sensor.stored();
        assert_eq!(events.len(), 1, "{events:#?}");
        self.sensor.forget();
        events[0].user_name.clone()
    }

    /// The user of a POST; asserts that its body has passed unchanged.
    #[track_caller]
    fn posted(&self, path: &str, headers: RequestHeaders<'_>, body: &[u8]) -> String {
        client::post(self.nginx.port(), path, headers, body).unwrap();
        assert_eq!(self.backend.requests().pop().expect("a request").body, body);
        self.user()
    }
}

/// Percent-encodes a query argument of the stand-in application.
fn argument(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02x}")).collect()
}

const FAILURES: &str = "
    tirreno_event account_login_fail POST /json body=json user=body:login_id unknown=send anonymous=on;
    tirreno_event account_login_fail POST /php body=php user=body:log unknown=send anonymous=on;
    tirreno_event account_login_fail POST /rails body=rails user=body:user[login] unknown=send
        anonymous=on;
    location / { proxy_pass http://%BACKEND%; }";

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");

#[test]
fn the_rule_says_how_a_body_is_read() {
    let site = Site::start(FAILURES, |builder| builder);
    let json = br#"{"login_id":"ann","x":"&log=victim&user[login]=victim&"}"#;
    assert_eq!(site.posted("/json", &[FORM], json), "ann");
    assert_eq!(site.posted("/json", &[("Content-Type", "text/plain")], json), "ann");
    assert_eq!(site.posted("/json", &[("Content-Encoding", "gzip")], json), "ann");
    let json = ("Content-Type", "application/json");
    assert_eq!(site.posted("/php", &[json], b"log=victim"), UNREADABLE);
    let form = b"log=victim&log%00z=ann";
    let charset = ("Content-Type", "application/x-www-form-urlencoded; charset=utf-16");
    assert_eq!(site.posted("/php", &[FORM, ("Content-Encoding", "br")], form), "ann");
    assert_eq!(site.posted("/php", &[charset], form), "ann");
    let multipart = ("Content-Type", "multipart/form-data; boundary=X");
    let part = b"--X\r\nContent-Disposition: form-data; name=\"log\"\r\n\r\nann\r\n--X--\r\n";
    assert_eq!(site.posted("/php", &[multipart], part), "ann");
    let form = b"user%5Blogin%5D=ann&user%5Bpassword%5D=5ecret";
    assert_eq!(site.posted("/rails", &[FORM], form), "ann");
    let twice = b"user[login]=victim&user[login]=me";
    assert_eq!(site.posted("/rails", &[FORM], twice), UNREADABLE);
    let twice = br#"{"login_id":"victim","Login_ID":"me"}"#;
    assert_eq!(site.posted("/json", &[], twice), UNREADABLE);
    assert!(site.nginx.crashes(&[]).is_empty());
}

#[test]
fn padding_and_pieces_hide_nobody() {
    let http2 = if nginx_is_before(25) { "http2;" } else { "; http2 on;" };
    let more = |builder: Builder| {
        let server = |listen: &str, text: &str| {
            format!("server {{ listen 127.0.0.1:{listen} {FAILURES} {text} }}")
        };
        builder
            .http(&server("%PORT1%;", "proxy_request_buffering off;"))
            .http(&server("%PORT2%;", "client_body_in_file_only clean;"))
            .http(&server(&format!("%PORT7% {http2}"), ""))
    };
    let site = Site::start(FAILURES, more);
    for size in PADDINGS {
        let pad = "x".repeat(size);
        let bodies = [
            ("/json", format!(r#"{{"pad":"{pad}","login_id":"ann"}}"#)),
            ("/json", format!(r#"{{"login_id":"ann","pad":"{pad}"}}"#)),
            ("/json", format!(r#"{{"login_id":"ann"}} {pad}"#)),
            ("/php", format!("pad={pad}&log=ann")),
            ("/php", format!("log=ann&pad={pad}")),
            ("/rails", format!("user[login]=ann&pad={pad}")),
        ];
        for (path, body) in bodies {
            assert_eq!(site.posted(path, &[FORM], body.as_bytes()), "ann", "{path} {size}");
            for port in [1, 2] {
                client::post(site.nginx.port_n(port), path, &[FORM], body.as_bytes()).unwrap();
                assert_eq!(site.user(), "ann", "{path} {size} {port}");
            }
            let request = client::h2_request("POST", path, &[FORM], body.as_bytes());
            client::h2(site.nginx.port_n(7), &[request]).unwrap();
            assert_eq!(site.user(), "ann", "{path} {size} h2");
        }
    }
    let long = format!(r#"{{"login_id":"ann","pad":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(site.posted("/json", &[], long.as_bytes()), UNREADABLE);

    for (path, body) in [
        ("/json", r#"{"x":"é\ud83d\ude00","login_id":"\u0061nn"}"#),
        ("/php", "x=%41&l%6fg=%61nn&y"),
        ("/rails", "user[login]=a%6En"),
    ] {
        for port in [site.nginx.port(), site.nginx.port_n(1)] {
            let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
            stream.set_nodelay(true).unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\n\
                 Transfer-Encoding: chunked\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            for byte in body.bytes() {
                stream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
            drop(stream);
            assert_eq!(site.user(), "ann", "{path}");
        }
    }
    assert!(site.nginx.crashes(&[]).is_empty());
}

/// The user is a field of the answer.
const ANSWERS: &str = "
    tirreno_event page_view * \"/{*path}\" user=answer:user.id user=none anonymous=on;";

const BODY: &str = r#"{"user":{"id":"u1","name":"ann"},"pad":"<!-- ssi -->"}"#;

/// The user of a request whose answer is not read.
const UNREAD: &str = "none";

#[test]
fn answers_are_read_as_they_are_sent() {
    let http2 = if nginx_is_before(25) { "http2;" } else { "; http2 on;" };
    let more = |builder: Builder| {
        let http = format!(
            "proxy_cache_path %PREFIX%/cache keys_zone=cache:1m;
             server {{
                 listen 127.0.0.1:%PORT1%;
                 tirreno off;
                 location / {{
                     gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; gzip_http_version 1.0;
                     proxy_pass http://%BACKEND%;
                 }}
             }}
             server {{
                 listen 127.0.0.1:%PORT7% {http2}
                 {ANSWERS}
                 location / {{ proxy_pass http://%BACKEND%; }}
             }}"
        );
        builder.http(&http).file("static.json", BODY)
    };
    let server = format!(
        "{ANSWERS}
         sendfile on;
         proxy_buffer_size 4k;
         proxy_buffers 4 4k;
         proxy_busy_buffers_size 8k;
         location / {{ proxy_pass http://%BACKEND%; }}
         location /unbuffered {{ proxy_buffering off; proxy_pass http://%BACKEND%; }}
         location /gzip {{ proxy_pass http://127.0.0.1:%PORT1%; }}
         location /own {{ gzip on; gzip_types *; gzip_min_length 1; proxy_pass http://%BACKEND%; }}
         location /cache {{
             proxy_cache cache; proxy_cache_valid any 1h; proxy_ignore_headers Cache-Control;
             proxy_pass http://%BACKEND%;
         }}
         location /ssi {{ ssi on; ssi_types *; proxy_pass http://%BACKEND%; }}
         location /included {{ return 200 '{{\"user\":{{\"id\":\"victim\"}}}}'; }}
         location /error {{
             error_page 401 = /page;
             proxy_intercept_errors on;
             proxy_pass http://%BACKEND%;
         }}
         location = /page {{ internal; proxy_pass http://%BACKEND%/page?body={}; }}
         location = /static.json {{ root %PREFIX%; }}",
        argument(&BODY.replace("u1", "u2"))
    );
    let site = Site::start(&server, more);
    let port = site.nginx.port();
    let get = |path: &str, headers: RequestHeaders<'_>| client::get(port, path, headers).unwrap();
    let body = format!("body={}", argument(BODY));
    for path in ["/plain", "/unbuffered", "/static.json"] {
        assert_eq!(get(&format!("{path}?{body}"), &[]).text(), BODY);
        assert_eq!(site.user(), "u1", "{path}");
    }
    // Answers that nginx writes to a file from the first byte on, and sends from the cache with sendfile.
    for from in ["MISS", "HIT"] {
        let answer = get(&format!("/cache?{body}&header=ETag:%22e%22"), &[]);
        assert_eq!((answer.text(), site.user()), (BODY.to_owned(), "u1".to_owned()), "{from}");
    }
    // Answers to HEAD and with 304 have no body; a partial answer is not read.
    let answer = get(&format!("/cache?{body}&header=ETag:%22e%22"), &[("If-None-Match", "\"e\"")]);
    assert_eq!((answer.status, &*site.user()), (304, UNREAD));
    assert_eq!(get(&format!("/plain?status=304&{body}"), &[]).status, 304);
    assert_eq!(site.user(), UNREAD);
    client::raw(port, format!("HEAD /plain?{body} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(site.user(), UNREAD);
    let answer = get("/static.json", &[("Range", "bytes=0-30")]);
    assert_eq!((answer.status, &*site.user()), (206, UNREAD));
    // Compressed by the application, by nginx itself for the client, and with another encoding.
    let answer = get(&format!("/gzip?{body}"), &[("Accept-Encoding", "gzip")]);
    assert_eq!(answer.header("Content-Encoding").as_deref(), Some("gzip"));
    assert_eq!(site.user(), "u1");
    let answer = get(&format!("/own?{body}"), &[("Accept-Encoding", "gzip")]);
    assert_eq!(answer.header("Content-Encoding").as_deref(), Some("gzip"));
    assert_eq!(site.user(), "u1");
    get(&format!("/plain?header=Content-Encoding:br&{body}"), &[]);
    assert_eq!(site.user(), UNREAD);
    // Text that nginx adds is not the application's answer.
    let included = BODY
        .replace("u1", "")
        .replace("<!-- ssi -->", "<!--# include virtual=\\\"/included\\\" -->");
    let included = included.replace("\\\"", "'");
    let answer = get(&format!("/ssi?body={}", argument(&included.replace('\'', "\""))), &[]);
    assert!(answer.text().contains("victim"), "{}", answer.text());
    assert_ne!(site.user(), "victim");
    get(&format!("/error?status=401&{body}"), &[]);
    assert_eq!(site.user(), "u2");
    let request = client::h2_request("GET", &format!("/h2?{body}"), &[], b"");
    assert_eq!(client::h2(site.nginx.port_n(7), &[request]).unwrap()[0].body, BODY.as_bytes());
    assert_eq!(site.user(), "u1");
    assert!(site.nginx.crashes(&[]).is_empty());
}

/// Serves one long answer, and breaks off in the middle if told so.
fn serve_once(body: Vec<u8>, announced: usize) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    });
    address
}

#[test]
fn long_answers_spill_and_cut_ones_say_nothing() {
    let pad = "x".repeat(900 << 10);
    let body = format!(r#"{{"pad":"{pad}","user":{{"id":"u1"}}}}"#);
    let whole = serve_once(body.clone().into_bytes(), body.len());
    let cut = serve_once(br#"{"user":{"id":"victim"}"#.to_vec(), 1000);
    // The kernel does not accept the whole answer while the client reads nothing.
    let server = format!(
        "server {{
             listen 127.0.0.1:%PORT1% sndbuf=16k;
             {ANSWERS}
             proxy_buffer_size 4k;
             proxy_buffers 4 4k;
             proxy_busy_buffers_size 8k;
             location /whole {{ proxy_pass http://{whole}; }}
             location /cut {{ proxy_pass http://{cut}; }}
         }}"
    );
    let site = Site::start("", |builder| builder.log_level("info").http(&server));
    let port = site.nginx.port_n(1);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /whole HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    // While the client reads nothing, nginx writes the rest of the answer to a file.
    site.nginx.wait_log("an upstream response is buffered to a temporary file");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    drop(stream);
    assert!(answer.ends_with(body.as_bytes()));
    assert_eq!(site.user(), "u1");
    let _ = client::get(port, "/cut", &[]);
    assert_eq!(site.user(), UNREAD);
}

#[test]
fn texts_in_answers_decide_on_rules() {
    let server = "
        tirreno_event account_login_fail POST /xmlrpc.php if=answer~faultCode user=fault;
        tirreno_event page_edit POST /xmlrpc.php user=good;
        location / { proxy_pass http://%BACKEND%; }";
    let site = Site::start(server, |builder| builder);
    let post = |body: &str| {
        client::post(site.nginx.port(), &format!("/xmlrpc.php?body={}", argument(body)), &[], b"")
            .unwrap();
        site.user()
    };
    assert_eq!(post("<methodResponse><fault><name>faultCode</name>"), "fault");
    assert_eq!(post("<methodResponse><params>"), "good");
    assert_eq!(post(&format!("{}faultCode", " ".repeat(2000))), "fault");
}

/// PHP's own web server, with a script that returns what PHP has read.
struct Php(Child, u16);

impl Php {
    /// `None` if PHP is not installed.
    fn start() -> Option<Self> {
        let router = Path::new(env!("CARGO_MANIFEST_DIR")).join("bodies/php.php");
        let port = free_port();
        let settings = ["post_max_size=16M", "display_errors=0", "log_errors=0"];
        let php = Command::new("php")
            .args(settings.iter().flat_map(|setting| ["-d", setting]))
            .arg("-S")
            .arg(format!("127.0.0.1:{port}"))
            .arg(router)
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let php = Self(php, port);
        wait_until(SOON, "PHP", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(php)
    }
}

impl Drop for Php {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As recorded: each character is a byte, and `<TEXT*N>` stands for N times the text.
fn recorded(text: &str) -> Vec<u8> {
    let latin1 = |text: &str| text.chars().map(|c| u8::try_from(c).unwrap()).collect::<Vec<_>>();
    let mut parts = text.split('<');
    let mut out = latin1(parts.next().unwrap_or_default());
    for part in parts {
        let (repeated, rest) = part.split_once('>').unwrap();
        let (text, count) = repeated.rsplit_once('*').unwrap();
        out.extend(latin1(text).repeat(count.parse().unwrap()));
        out.extend(latin1(rest));
    }
    out
}

#[test]
fn php_reads_what_is_recorded_of_it() {
    let Some(php) = Php::start() else {
        eprintln!("there is no php: what is recorded of it is not compared");
        return;
    };
    let bodies = include_str!("bodies/bodies.jsonl");
    let mut compared = 0;
    for line in bodies.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let Some(expected) = row["php"].as_str() else { continue };
        let field = STANDARD.encode(row["field"].as_str().unwrap());
        let mut headers = vec![("X-Field", &*field)];
        let content_type = row["type"].as_str().unwrap();
        if !content_type.is_empty() {
            headers.push(("Content-Type", content_type));
        }
        let body = recorded(row["body"].as_str().unwrap());
        let answer = client::post(php.1, "/", &headers, &body).unwrap();
        assert_eq!(answer.body, recorded(expected), "{line}");
        compared += 1;
    }
    assert!(compared >= 200, "{compared}");
}
