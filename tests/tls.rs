//! Typical TLS servers, run with OpenSSL: each is accepted, or refused with its reason and the remedy.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tirreno_tests::client::Connection;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::ports::free_port;
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::status::Row;
use tirreno_tests::tls::Authority;
use tirreno_tests::wait::{SOON, wait_for};

/// Makes keys and certificates in a directory with OpenSSL.
struct Maker(TempDir);

/// The extensions of all good certificates.
const NAMES: &str = "subjectAltName=DNS:localhost";

impl Maker {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let run = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.0)
            .output();
        let run = run.unwrap();
        assert!(run.status.success(), "{arguments}: {}", String::from_utf8_lossy(&run.stderr));
    }

    /// A key of that kind, in the words of `openssl req -newkey`.
    fn key(kind: &str) -> String {
        match kind.split_once(':') {
            Some(("ec", curve)) => format!("-newkey ec -pkeyopt ec_paramgen_curve:{curve}"),
            _ => format!("-newkey {kind}"),
        }
    }

    /// `NAME.crt` and `NAME.key`, signed by itself, with these extensions.
    fn signed_by_itself(&self, name: &str, kind: &str, extensions: &[&str]) {
        let subject = if extensions.contains(&NAMES) { "localhost" } else { name };
        let extensions: String = extensions.iter().map(|text| format!(" -addext {text}")).collect();
        let key = Self::key(kind);
        self.openssl(&format!(
            "req -x509 {key} -nodes -days 30 -subj /CN={subject} -keyout {name}.key -out {name}.crt{extensions}"
        ));
    }

    /// `NAME.crt` and `NAME.key`, signed by `issuer`; without extensions it is of X.509 version 1.
    fn signed_by(&self, issuer: &str, name: &str, kind: &str, extensions: &[&str], more: &str) {
        let key = Self::key(kind);
        self.openssl(&format!(
            "req -new {key} -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        let file = match extensions {
            [] => String::new(),
            _ => {
                fs::write(self.path(&format!("{name}.ext")), extensions.join("\n")).unwrap();
                format!("-extfile {name}.ext")
            }
        };
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.crt -CAkey {issuer}.key -CAcreateserial -days 30 {file} {more} \
             -out {name}.crt"
        ));
    }
}

/// `openssl s_server`, which writes what it receives to a file.
struct Server {
    child: Child,
    port: u16,
    output: PathBuf,
}

impl Server {
    fn start(directory: &Path, name: &str, more: &str) -> Self {
        let port = free_port();
        let output = directory.join(format!("{name}.out"));
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &port.to_string()])
            .args(more.split_whitespace())
            .current_dir(directory)
            // It ends when its standard input is closed.
            .stdin(Stdio::piped())
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(directory.join(format!("{name}.err"))).unwrap())
            .spawn()
            .unwrap();
        wait_for(SOON, "openssl s_server", || {
            let said =
                fs::read_to_string(directory.join(format!("{name}.err"))).unwrap_or_default();
            TcpStream::connect(("127.0.0.1", port))
                .map(drop)
                .map_err(|error| format!("{error}: {said}"))
        });
        Self { child, port, output }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone or not, it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, the target's parameters, and the expected result.
struct Case {
    name: &'static str,
    server: &'static str,
    target: &'static str,
    /// The beginning of `last_error`, and the remedy that it names; `None` if the record arrives.
    fails: Option<(&'static str, &'static str)>,
}

const ISSUER: &str = "ssl_trusted_certificate";
const REFUSED: &str = "certificate not accepted: ";

#[test]
fn each_server_is_accepted_or_told_by_its_reason_with_the_cure() {
    let maker = Maker::new();
    let ca = ["basicConstraints=critical,CA:TRUE"];
    maker.signed_by_itself("ca", "ec:P-256", &ca);
    maker.signed_by("ca", "intermediate", "ec:P-256", &ca, "");
    for (name, kind) in [
        ("rsa2048", "rsa:2048"),
        ("rsa4096", "rsa:4096"),
        ("p256", "ec:P-256"),
        ("p521", "ec:P-521"),
        ("ed25519", "ed25519"),
    ] {
        maker.signed_by("ca", name, kind, &[NAMES], "");
    }
    maker.signed_by("intermediate", "below", "ec:P-256", &[NAMES], "");
    maker.signed_by("ca", "address", "ec:P-256", &["subjectAltName=IP:127.0.0.1"], "");
    maker.signed_by("ca", "other", "ec:P-256", &["subjectAltName=DNS:tirreno.example"], "");
    maker.signed_by("ca", "nameless", "ec:P-256", &["basicConstraints=CA:FALSE"], "");
    maker.signed_by("ca", "version1", "ec:P-256", &[], "");
    maker.signed_by("ca", "sha512", "ec:P-256", &[NAMES], "-sha512");
    maker.signed_by("ca", "client", "ec:P-256", &["extendedKeyUsage=clientAuth"], "");
    maker.signed_by("ca", "purpose", "ec:P-256", &[NAMES, "extendedKeyUsage=clientAuth"], "");
    maker.signed_by_itself("authority", "rsa:2048", &[NAMES]);
    maker.signed_by_itself("leaf", "rsa:2048", &[NAMES, "basicConstraints=critical,CA:FALSE"]);
    let dated = Authority::new("dated");
    dated.write_pem(&maker.path("dated.pem"));
    dated.expired_localhost().write(maker.0.path(), "expired");
    dated.future_localhost().write(maker.0.path(), "future");
    fs::write(
        maker.path("chain.pem"),
        [
            fs::read(maker.path("intermediate.crt")).unwrap(),
            fs::read(maker.path("ca.crt")).unwrap(),
        ]
        .concat(),
    )
    .unwrap();

    let case = |name, server, target, fails| Case { name, server, target, fails };
    let cases = [
        // The default of `openssl req -x509`, whose certificate is also an authority.
        case("authority", "-cert authority.crt -key authority.key", "authority.crt", None),
        case("leaf", "-cert leaf.crt -key leaf.key", "leaf.crt", None),
        case(
            "unknown_authority",
            "-cert authority.crt -key authority.key",
            "ca.crt",
            Some(("it is self-signed", ISSUER)),
        ),
        case(
            "unknown_issuer",
            "-cert p256.crt -key p256.key",
            "authority.crt",
            Some(("its issuer is unknown", ISSUER)),
        ),
        case("anchor", "-cert p256.crt -key p256.key", "p256.crt", None),
        case("rsa2048", "-cert rsa2048.crt -key rsa2048.key", "ca.crt", None),
        case("rsa4096", "-cert rsa4096.crt -key rsa4096.key", "ca.crt", None),
        case("p256", "-cert p256.crt -key p256.key", "ca.crt", None),
        case("ed25519", "-cert ed25519.crt -key ed25519.key", "ca.crt", None),
        case(
            "chain",
            "-cert below.crt -key below.key -cert_chain intermediate.crt",
            "ca.crt",
            None,
        ),
        case("intermediate", "-cert below.crt -key below.key", "intermediate.crt", None),
        case("address", "-cert address.crt -key address.key", "ca.crt", None),
        case(
            "expired",
            "-cert expired.crt -key expired.key",
            "dated.pem",
            Some(("it has expired", "it has expired")),
        ),
        case(
            "future",
            "-cert future.crt -key future.key",
            "dated.pem",
            Some(("it is not valid yet", "clocks")),
        ),
        case(
            "other",
            "-cert other.crt -key other.key",
            "ca.crt",
            Some(("it is for another name", "\"server\"")),
        ),
        case(
            "nameless",
            "-cert nameless.crt -key nameless.key",
            "ca.crt",
            Some(("it has no subjectAltName", "issue one")),
        ),
        case(
            "version1",
            "-cert version1.crt -key version1.key",
            "ca.crt",
            Some(("it is X.509 version 1", "version 3")),
        ),
        case(
            "sha512",
            "-cert sha512.crt -key sha512.key",
            "ca.crt",
            Some(("it is signed with an unsupported algorithm", ISSUER)),
        ),
        case(
            "nameless_trusted",
            "-cert nameless.crt -key nameless.key",
            "nameless.crt",
            Some(("it has no subjectAltName", "issue one")),
        ),
        case(
            "version1_trusted",
            "-cert version1.crt -key version1.key",
            "version1.crt",
            Some(("it is X.509 version 1", "version 3")),
        ),
        case("sha512_trusted", "-cert sha512.crt -key sha512.key", "sha512.crt", None),
        case(
            "purpose",
            "-cert purpose.crt -key purpose.key",
            "ca.crt",
            Some(("its extended key usage does not allow servers", "usage")),
        ),
        case(
            "p521",
            "-cert p521.crt -key p521.key",
            "ca.crt",
            Some(("no common TLS version, cipher suite or kind of key", "P-384")),
        ),
        case(
            "rsa_exchange",
            "-cert rsa2048.crt -key rsa2048.key -tls1_2 -cipher AES128-GCM-SHA256",
            "ca.crt",
            Some(("no common TLS version", "ECDHE")),
        ),
        case(
            "cbc",
            "-cert rsa2048.crt -key rsa2048.key -tls1_2 -cipher ECDHE-RSA-AES128-SHA",
            "ca.crt",
            Some(("no common TLS version", "AES-GCM")),
        ),
        case(
            "tls11",
            "-cert rsa2048.crt -key rsa2048.key -tls1_1 -cipher DEFAULT@SECLEVEL=0",
            "ca.crt",
            Some(("no common TLS version", "TLS 1.3")),
        ),
        case(
            "client_missing",
            "-cert p256.crt -key p256.key -Verify 1 -verify_return_error -CAfile ca.crt",
            "ca.crt",
            Some(("the server demands a client certificate", "\"ssl_certificate\"")),
        ),
        case(
            "client_missing12",
            "-cert p256.crt -key p256.key -Verify 1 -verify_return_error -CAfile ca.crt -tls1_2",
            "ca.crt",
            Some(("the server demands a client certificate", "\"ssl_certificate\"")),
        ),
        case(
            "client",
            "-cert p256.crt -key p256.key -Verify 1 -verify_return_error -CAfile ca.crt",
            "ca.crt; ssl_certificate client.crt; ssl_certificate_key client.key",
            None,
        ),
        case(
            "client_refused",
            "-cert p256.crt -key p256.key -Verify 1 -verify_return_error -CAfile dated.pem",
            "ca.crt; ssl_certificate client.crt; ssl_certificate_key client.key",
            Some(("the server refuses the client certificate", "\"ssl_certificate\"")),
        ),
    ];
    let servers: Vec<_> =
        cases.iter().map(|case| Server::start(maker.0.path(), case.name, case.server)).collect();
    let mut targets = String::new();
    for (case, server) in cases.iter().zip(&servers) {
        let host = if case.name == "address" { "127.0.0.1" } else { "localhost" };
        let trust = case
            .target
            .replace("ssl_certificate ", "ssl_certificate %DIR%/")
            .replace("_key ", "_key %DIR%/");
        targets += &format!(
            "tirreno_target {} {{
                 type tcp; server {host}:{}; transport tls; interval 10ms; ssl_trusted_certificate %DIR%/{trust};
             }}\n",
            case.name, server.port
        );
    }
    let nginx = Nginx::builder()
        .var("DIR", maker.0.path().to_str().unwrap())
        .http(&targets)
        .http("tirreno on; tirreno_anonymous on;")
        .server("location / { return 200; } location = /status { tirreno off; tirreno_status; }")
        .start();
    request(&nginx, "/record");
    for (case, server) in cases.iter().zip(&servers) {
        match case.fails {
            None => {
                let row = Row::wait(&nginx, case.name, case.name, |row| row.delivered == 1);
                assert_eq!((row.state.as_str(), row.last_error), ("ok", None), "{}", case.name);
                let got = fs::read_to_string(&server.output).unwrap();
                assert!(got.contains("\"url\":\"/record\""), "{}: {got}", case.name);
            }
            Some((reason, cure)) => {
                let row = Row::wait(&nginx, case.name, case.name, |row| row.state == "retrying");
                let error = row.last_error.unwrap_or_default();
                let said = error.strip_prefix(REFUSED).unwrap_or(&error);
                assert!(said.starts_with(reason) && error.contains(cure), "{}: {error}", case.name);
                assert_eq!((row.delivered, row.pending), (0, 1), "{}", case.name);
                assert_eq!(fs::read_to_string(&server.output).unwrap(), "", "{}", case.name);
            }
        }
    }
}

fn request(nginx: &Nginx, path: &str) {
    let mut connection =
        Connection::open(SocketAddr::from(([127, 0, 0, 1], nginx.port()))).unwrap();
    assert_eq!(connection.request("GET", path, &[("Cookie", "user=u1")], b"").unwrap().status, 200);
}

#[test]
fn a_port_for_tls_and_one_without_are_told_apart() {
    let maker = Maker::new();
    maker.signed_by_itself("server", "ec:P-256", &[NAMES]);
    let tls = Some(Authority::new("test").localhost().server_config());
    let rustls = Sensor::start(SensorOptions { tls, ..SensorOptions::default() });
    let nginx = Nginx::builder()
        .var("DIR", maker.0.path().to_str().unwrap())
        .http(&format!(
            "tirreno_target rustls {{ url http://localhost:{0}/; api_key k; interval 10ms; }}
             tirreno_target nginx {{ url http://localhost:%PORT1%/; api_key k; interval 10ms; }}
             tirreno_target tcp {{ type tcp; server localhost:{0}; interval 10ms; }}
             tirreno_target syslog {{ type syslog; server localhost:{0}; transport tcp; interval 10ms; }}
             tirreno_target plain {{
                 url https://localhost:%PORT2%/; api_key k; interval 10ms; ssl_trusted_certificate %DIR%/server.crt;
             }}
             tirreno_target plain_tcp {{
                 type tcp; server localhost:%PORT2%; transport tls; interval 10ms; ssl_trusted_certificate %DIR%/server.crt;
             }}
             server {{
                 tirreno off; listen 127.0.0.1:%PORT1% ssl; ssl_certificate %DIR%/server.crt; ssl_certificate_key %DIR%/server.key;
             }}
             server {{ tirreno off; listen 127.0.0.1:%PORT2%; }}
             tirreno on; tirreno_anonymous on;",
            rustls.port(),
        ))
        .server("location / { return 200; } location = /status { tirreno off; tirreno_status; }")
        .start();
    request(&nginx, "/record");
    let url = "the server speaks TLS on this port, write \"https://\" in \"url\"";
    let transport = "the server speaks TLS on this port, set \"transport tls\"";
    let none = "the server does not speak TLS on this port, correct the port or the scheme in \"url\", or \
                \"transport\"";
    for (target, expected) in [
        ("rustls", url),
        ("nginx", url),
        ("tcp", transport),
        ("syslog", transport),
        ("plain", none),
        ("plain_tcp", none),
    ] {
        let wanted = |row: &Row| row.last_error.as_deref() == Some(expected);
        let row = Row::wait(&nginx, target, &format!("{target}: {expected}"), wanted);
        assert_eq!(
            (row.delivered, row.rejected, row.dropped, row.pending),
            (0, 0, 0, 1),
            "{target}"
        );
    }
}

/// A port that accepts connections and then sends nothing.
fn silent() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(128).unwrap();
    socket
}

/// A port whose system accepts no more connections, so that attempts to connect get no answer.
fn full() -> (Socket, Vec<Socket>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let waiting = (0..4).map(|_| {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        let _ = client.connect(&socket.local_addr().unwrap());
        client
    });
    let waiting = waiting.collect();
    (socket, waiting)
}

/// A port that sends an endless TLS record, a byte at a time.
fn dripping() -> u16 {
    // A handshake message of a record's maximal length.
    const BEGINNING: [u8; 9] = [0x16, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut sent = stream.write_all(&BEGINNING);
                while sent.is_ok() {
                    thread::sleep(Duration::from_millis(20));
                    sent = stream.write_all(&[0]);
                }
            });
        }
    });
    port
}

fn port(socket: &Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

#[test]
fn servers_that_do_not_answer_are_told_and_cost_requests_nothing() {
    let (silent, (full, _waiting)) = (silent(), full());
    let mut nginx = Nginx::builder()
        .http(&format!(
            "tirreno_target https {{
                 url https://127.0.0.1:{0}/; api_key k; interval 10ms; timeout 1s; shutdown_timeout 100ms; ssl_verify off;
             }}
             tirreno_target http {{ url http://127.0.0.1:{0}/; api_key k; interval 10ms; timeout 1s; shutdown_timeout 100ms; }}
             tirreno_target tcp {{
                 type tcp; server 127.0.0.1:{0}; transport tls; interval 10ms; shutdown_timeout 100ms; ssl_verify off;
             }}
             tirreno_target syslog {{
                 type syslog; server 127.0.0.1:{0}; transport tls; interval 10ms; shutdown_timeout 100ms; ssl_verify off;
             }}
             tirreno_target full {{ url http://127.0.0.1:{1}/; api_key k; interval 10ms; timeout 1s; shutdown_timeout 100ms; }}
             tirreno_target full_tcp {{ type tcp; server 127.0.0.1:{1}; interval 10ms; shutdown_timeout 100ms; }}
             tirreno_target drip {{
                 url https://127.0.0.1:{2}/; api_key k; interval 10ms; timeout 1s; shutdown_timeout 100ms; ssl_verify off;
             }}
             tirreno_target drip_tcp {{
                 type tcp; server 127.0.0.1:{2}; transport tls; interval 10ms; shutdown_timeout 100ms; ssl_verify off;
             }}
             tirreno on; tirreno_anonymous on;",
            port(&silent),
            port(&full),
            dripping(),
        ))
        .server("location / { return 200; } location = /status { tirreno off; tirreno_status; }")
        .start();
    request(&nginx, "/record");
    for target in ["https", "http", "tcp", "syslog", "full", "full_tcp", "drip", "drip_tcp"] {
        let row = Row::wait(&nginx, target, target, |row| row.state == "retrying");
        assert_eq!(row.last_error.as_deref(), Some("timed out"), "{target}");
        assert_eq!((row.delivered, row.dropped, row.pending), (0, 0, 1), "{target}");
    }
    request(&nginx, "/another");
    // A stop waits for none of them.
    assert!(nginx.quit().unwrap().success());
    let log = nginx.error_log();
    assert_eq!(log.matches("2 events could not be delivered").count(), 8, "{log}");
}
