//! Requests over HTTP/3, if the nginx under test supports it; `TEST_HTTP3` says that it must.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use bytes::Bytes;
use h3::client::{RequestStream, SendRequest};
use h3::error::Code;
use h3_quinn::{BidiStream, OpenStreams};
use quinn::crypto::rustls::QuicClientConfig;
use serde_json::Value;
use tirreno_tests::backend::{Answer, Backend, BackendRequest};
use tirreno_tests::client::{RequestHeaders, TIMEOUT};
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{Sensor, SensorOptions, StoredEvent};
use tirreno_tests::tls::Authority;
use tirreno_tests::transport;
use tirreno_tests::wait::{SOON, wait_until};
use tirreno_tests::written::written_lines;
use tokio::runtime::Runtime;

const SERVER: &str = "
    tirreno on;
    tirreno_anonymous on;
    tirreno_session cookie:sid;
    tirreno_verify session;
    tirreno_event account_login POST /login status=2xx body=json user=answer:user.id bind=answer:user.id;
    tirreno_event account_login_fail POST /login status=4xx body=json user=body:account.name unknown=send;
    tirreno_event page_edit * '/posts/{id}' session=required;
    location / { proxy_pass http://%BACKEND%; }
    location /posts/slow { proxy_pass http://%SLOW%; }";

/// A login of `ann` that succeeds, and one that fails.
const LOGIN: &[u8] = br#"{"account": {"name": "ann"}, "password": "right"}"#;
const WRONG: &[u8] = br#"{"account": {"name": "bob"}, "password": "wrong"}"#;

/// How Tirreno shows an event without a user.
const NOBODY: &str = "N/A";

/// An application in which only `ann` has an account.
fn application(request: &BackendRequest) -> Answer {
    let is_signed_in = request.header("Cookie").is_some_and(|cookies| cookies.contains("sid=s1"));
    match &*request.target {
        "/login" if request.body.starts_with(LOGIN) => Answer {
            status: 200,
            headers: vec![("Set-Cookie".into(), "sid=s1; Path=/; Secure".into())],
            body: br#"{"token": "none", "user": {"name": "Ann", "id": "ann-id"}}"#.into(),
        },
        path if path.starts_with("/posts") && is_signed_in => {
            Answer { status: 201, ..Answer::default() }
        }
        _ => Answer { status: 401, ..Answer::default() },
    }
}

/// Whether the nginx under test speaks HTTP/3.
fn has_http3() -> bool {
    let nginx = env::var_os("TEST_NGINX_BINARY").expect("TEST_NGINX_BINARY is set");
    let about = Command::new(nginx).arg("-V").output().expect("nginx runs").stderr;
    let has = String::from_utf8_lossy(&about).contains("--with-http_v3_module");
    assert!(has || env::var_os("TEST_HTTP3").is_none(), "this nginx has no ngx_http_v3_module");
    has
}

/// nginx before the application, the sensor, and a client with a connection.
struct Site {
    sensor: Sensor,
    _backend: Backend,
    /// Another application, which never answers.
    slow: TcpListener,
    nginx: Nginx,
    client: Client,
}

impl Site {
    /// `None` if nginx does not support HTTP/3.
    fn start() -> Option<Self> {
        if !has_http3() {
            eprintln!("no HTTP/3 in this nginx: not tested");
            return None;
        }
        let (sensor, backend) =
            (Sensor::start(SensorOptions::default()), Backend::answering(application));
        let http = "
            log_format version '$server_protocol $status $tirreno_event $tirreno_user $tirreno_identity';
            access_log %PREFIX%/logs/version.log version;
            tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; }
            tirreno_target audit { type file; path %PREFIX%/audit.log; interval 20ms; }
            ssl_certificate %PREFIX%/nginx.crt;
            ssl_certificate_key %PREFIX%/nginx.key;";
        let slow = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = format!("server {{ listen 127.0.0.1:%PORT% quic; {SERVER} }}");
        let mut nginx = Nginx::builder()
            .sensor(&sensor.url())
            .var("BACKEND", &backend.address())
            .var("SLOW", &slow.local_addr().unwrap().to_string())
            .http(http)
            .http(&server)
            .build();
        let authority = Authority::new("tirreno test");
        authority.localhost().write(nginx.prefix(), "nginx");
        nginx.start();
        let client = Client::connect(nginx.port(), &authority);
        Some(Self { sensor, _backend: backend, slow, nginx, client })
    }

    /// The one event since the last call.
    #[track_caller]
    fn event(&self) -> Arc<StoredEvent> {
        self.sensor.wait_stored(1, SOON).unwrap();
        let mut events = self.sensor.stored();
        assert_eq!(events.len(), 1, "{events:#?}");
        self.sensor.forget();
        events.remove(0)
    }

    /// Signs `ann` in.
    fn sign_in(&mut self) {
        assert_eq!(self.client.request("POST", "/login", &[], LOGIN), 200);
        let event = self.event();
        assert_eq!((&*event.event_type, &*event.user_name), ("account_login", "ann-id"));
    }

    /// The last audit record, once there are `count`.
    fn record(&self, count: usize) -> Value {
        let path = self.nginx.prefix().join("audit.log");
        let text = || written_lines(&path);
        wait_until(SOON, "the audit records", || text().lines().count() >= count);
        let text = text();
        assert_eq!(text.lines().count(), count, "{text}");
        serde_json::from_str(text.lines().last().expect("a record")).expect("JSON")
    }

    /// Asserts that the request of a client that went away is an attempt of that user.
    #[track_caller]
    fn assert_attempt(&self, url: &str, user: &str, records: usize) {
        let event = self.event();
        let found = (&*event.event_type, &*event.url, event.http_code, &*event.user_name);
        assert_eq!(found, ("page_edit", url, None, user));
        assert_eq!(self.record(records)["status"], "attempt");
    }

    /// The slow application's connection, once it has a request.
    fn accept(&self) -> TcpStream {
        let (mut stream, _) = self.slow.accept().unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert!(transport::read(&mut stream, &mut [0; 1024]).unwrap() > 0);
        stream
    }
}

/// A connection. Waiting ends after [`TIMEOUT`].
struct Client {
    /// The runtime has a thread, so that data are sent even while no test waits for an answer.
    runtime: Runtime,
    endpoint: quinn::Endpoint,
    requests: SendRequest<OpenStreams, Bytes>,
}

type Stream = RequestStream<BidiStream<Bytes>, Bytes>;

impl Client {
    fn connect(port: u16, authority: &Authority) -> Self {
        let mut tls = Arc::unwrap_or_clone(authority.client_config());
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = QuicClientConfig::try_from(tls).expect("a cipher suite of TLS 1.3");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (endpoint, requests) = within(&runtime, async {
            let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let connecting = endpoint.connect_with(config, address, "localhost").unwrap();
            let connection = h3_quinn::Connection::new(connecting.await.expect("a connection"));
            let mut http3 = h3::client::builder();
            // nginx treats a frame of an unknown type after a body as an error.
            http3.send_grease(false);
            let (mut driver, requests) = http3.build(connection).await.expect("HTTP/3");
            // If the connection ends, its requests end, too.
            tokio::spawn(async move { poll_fn(|context| driver.poll_close(context)).await });
            (endpoint, requests)
        });
        Self { runtime, endpoint, requests }
    }

    /// A request, its body in pieces of 1,000 bytes, and the status of its answer.
    fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: RequestHeaders<'_>,
        body: &[u8],
    ) -> u16 {
        let mut stream = self.begin(method, path, headers, body);
        within(&self.runtime, async {
            stream.finish().await.expect("the end of a request");
            let response = stream.recv_response().await.expect("an answer");
            while stream.recv_data().await.expect("an answer's body").is_some() {}
            response.status().as_u16()
        })
    }

    /// A request that may be continued.
    fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: RequestHeaders<'_>,
        body: &[u8],
    ) -> Stream {
        let mut request =
            http::Request::builder().method(method).uri(format!("https://localhost{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request that HTTP/3 can say");
        within(&self.runtime, async {
            let mut stream = self.requests.send_request(request).await.expect("a request's head");
            for piece in body.chunks(1000) {
                stream.send_data(Bytes::copy_from_slice(piece)).await.expect("a request's body");
            }
            stream
        })
    }
}

#[track_caller]
fn within<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, work).await.expect("no more waiting") })
}

#[test]
fn a_session_is_its_users_over_http3() {
    let Some(mut site) = Site::start() else { return };
    site.sign_in();
    // A browser sends each cookie as a field line of its own.
    let crumbs =
        [("cookie", "a=b"), ("cookie", "sid=s1"), ("cookie", "c=d"), ("user-agent", "three")];
    for (method, status) in [("GET", 201), ("PUT", 201)] {
        let body: &[u8] = if method == "PUT" { b"text" } else { b"" };
        assert_eq!(site.client.request(method, "/posts/1?a=%20b", &crumbs, body), status);
        let event = site.event();
        let found = (&*event.event_type, &*event.user_name, &*event.ip_address, &*event.url);
        assert_eq!(found, ("page_edit", "ann-id", "127.0.0.1", "/posts/1?a=%20b"));
        let found = (event.http_method.as_deref(), event.http_code, event.user_agent.as_deref());
        assert_eq!(found, (Some(method), Some(status), Some("three")));
    }
    // With another user's cookie, there is no user.
    assert_eq!(site.client.request("GET", "/posts/1", &[("cookie", "sid=s2")], b""), 401);
    assert_eq!(site.event().user_name, NOBODY);
    let log = fs::read_to_string(site.nginx.prefix().join("logs/version.log")).unwrap();
    let login = log.lines().next().unwrap();
    assert_eq!(login, "HTTP/3.0 200 account_login ann-id answer");
    assert_eq!(log.matches("HTTP/3.0 201 page_edit ann-id session\n").count(), 2, "{log}");
}

#[test]
fn a_body_is_read_over_http3() {
    let Some(mut site) = Site::start() else { return };
    // In one QUIC packet, in several, and more than nginx keeps in memory.
    for size in [0, 5_000, 300_000] {
        let body = [&vec![b' '; size][..], WRONG].concat();
        assert_eq!(site.client.request("POST", "/login", &[], &body), 401);
        let event = site.event();
        let found = (&*event.event_type, &*event.user_name);
        assert_eq!(found, ("account_login_fail", "bob"), "{size}");
    }
}

#[test]
fn a_cancelled_request_is_an_attempt() {
    let Some(mut site) = Site::start() else { return };
    site.sign_in();
    let session = [("cookie", "sid=s1")];

    // While the application works.
    let mut stream = site.client.begin("POST", "/posts/slow", &session, b"");
    within(&site.client.runtime, stream.finish()).unwrap();
    let application = site.accept();
    stream.stop_sending(Code::H3_REQUEST_CANCELLED);
    site.assert_attempt("/posts/slow", "ann-id", 2);
    drop(application);

    // While its body is incomplete: nginx answers 400 itself, and the application never sees the request.
    let length = [("cookie", "sid=s1"), ("content-length", "100")];
    let mut stream = site.client.begin("POST", "/posts/2", &length, b"half");
    // nginx has the beginning of the body once it has answered what was sent after it.
    assert_eq!(site.client.request("GET", "/posts/3", &session, b""), 201);
    assert_eq!(site.event().url, "/posts/3");
    stream.stop_stream(Code::H3_REQUEST_CANCELLED);
    stream.stop_sending(Code::H3_REQUEST_CANCELLED);
    site.assert_attempt("/posts/2", "ann-id", 4);

    // The whole connection ends.
    let mut stream = site.client.begin("POST", "/posts/slow", &session, b"");
    within(&site.client.runtime, stream.finish()).unwrap();
    let application = site.accept();
    site.client.endpoint.close(quinn::VarInt::from_u32(0x100), b"");
    site.assert_attempt("/posts/slow", "ann-id", 5);
    drop(application);
}
