//! The application behind nginx.
//!
//! Any path answers 200 with a small body. The query changes that, each argument url-encoded:
//! `status=404`, `set_cookie=MMUSERID%3Dabc` (may repeat), `header=Name:value` (may repeat),
//! `body=text`, `delay=MILLISECONDS`, `close=1` (ends the connection without an answer).
//! A WebSocket upgrade is accepted on any path; its messages are echoed until the client leaves.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::client::{read_frame, websocket_accept, write_frame};
use crate::http1::{self, Headers};
use crate::sensor::{clean_utf8, url_decode};
use crate::server::{Server, lock};
use crate::transport::Transport;

/// A frame that ends a WebSocket.
const CLOSE_FRAME: u8 = 8;

/// A request as the application saw it.
#[derive(Clone, Debug)]
pub struct BackendRequest {
    /// `GET`, …
    pub method: String,
    /// As nginx sent it.
    pub target: String,
    /// In order, values as received.
    pub headers: Headers,
    /// As received.
    pub body: Vec<u8>,
}

impl BackendRequest {
    /// The header's first value, lossily.
    pub fn header(&self, name: &str) -> Option<String> {
        http1::header(&self.headers, name).map(clean_utf8)
    }
}

/// A running application. Dropping it ends its connections.
pub struct Backend {
    server: Server,
    requests: Arc<Mutex<Vec<BackendRequest>>>,
}

impl Backend {
    /// Starts on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on(None).unwrap_or_else(|error| panic!("the backend cannot listen: {error}"))
    }

    /// Starts on `address`, or on a free port of 127.0.0.1.
    pub fn start_on(address: Option<SocketAddr>) -> io::Result<Self> {
        let requests = Arc::default();
        let handler = {
            let requests = Arc::clone(&requests);
            move |stream, _| {
                // What ends a connection is the client's business.
                let _ = serve(stream, &requests);
            }
        };
        Ok(Self { server: Server::start(address, handler)?, requests })
    }

    /// `127.0.0.1:PORT`, for `proxy_pass http://…`.
    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// The requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<BackendRequest> {
        lock(&self.requests).clone()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.server.open_connections()
    }

    /// Goes down: open connections end, new ones are refused.
    pub fn refuse(&self) {
        self.server.refuse();
        self.server.drop_connections();
    }

    /// Comes up again on the same port.
    pub fn listen_again(&self) {
        self.server.listen_again();
    }
}

fn serve(stream: Arc<TcpStream>, requests: &Mutex<Vec<BackendRequest>>) -> io::Result<()> {
    let mut io = Transport::Plain(stream);
    let mut reader = http1::Reader::default();
    while let Some(request) = reader.request(&mut io)? {
        lock(requests).push(BackendRequest {
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body: request.body,
        });
        if let Some(key) = http1::header(&request.headers, "Sec-WebSocket-Key") {
            return echo(&mut io, &mut reader, key);
        }
        let script = Script::read(&request.target);
        thread::sleep(script.delay);
        if script.close {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", script.status);
        if !matches!(script.status, 204 | 304) {
            head += &format!("Content-Length: {}\r\n", script.body.len());
        }
        if !request.keep_alive {
            head += "Connection: close\r\n";
        }
        for header in &script.headers {
            head += &format!("{header}\r\n");
        }
        head += "\r\n";
        let bodyless = request.method == "HEAD" || matches!(script.status, 204 | 304);
        let body = if bodyless { "" } else { &*script.body };
        io.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        if !request.keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

/// What the query asks for.
struct Script {
    status: u16,
    headers: Vec<String>,
    body: String,
    delay: Duration,
    close: bool,
}

impl Script {
    fn read(target: &str) -> Self {
        let mut script = Self {
            status: 200,
            headers: vec!["Content-Type: text/plain".to_owned()],
            body: "hello\n".to_owned(),
            delay: Duration::ZERO,
            close: false,
        };
        let query = target.split_once('?').map_or("", |(_, query)| query);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = clean_utf8(&url_decode(value.as_bytes()));
            match name {
                "status" => script.status = value.parse().unwrap_or(500),
                "set_cookie" => script.headers.push(format!("Set-Cookie: {value}; Path=/")),
                "header" => script.headers.push(value),
                "body" => script.body = value,
                "delay" => script.delay = Duration::from_millis(value.parse().unwrap_or(0)),
                "close" => script.close = value == "1",
                _ => {}
            }
        }
        script
    }
}

fn echo(io: &mut Transport, reader: &mut http1::Reader, key: &[u8]) -> io::Result<()> {
    let accept = websocket_accept(key);
    write!(
        io,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    loop {
        let (opcode, payload) = read_frame(reader, io)?;
        if opcode == CLOSE_FRAME {
            return Ok(());
        }
        write_frame(io, None, &payload)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{self, Connection, WebSocket};

    #[test]
    fn the_query_scripts_the_answer() {
        let backend = Backend::start();
        let mut connection = Connection::open(backend.server.address()).unwrap();
        let mut get = |path: &str| connection.request("GET", path, &[("X-A", "b")], b"").unwrap();
        let answer = get("/");
        assert_eq!((answer.status, &*answer.text()), (200, "hello\n"));
        let answer = get("/login?status=401&set_cookie=a%3Db&header=X-Y:z&body=no&delay=10");
        assert_eq!((answer.status, &*answer.text()), (401, "no"));
        assert_eq!(answer.header("Set-Cookie").as_deref(), Some("a=b; Path=/"));
        assert_eq!(answer.header("X-Y").as_deref(), Some("z"));
        assert!(answer.latency >= Duration::from_millis(10));
        assert_eq!(get("/?status=204").status, 204);
        let head = connection.request("HEAD", "/", &[], b"").unwrap();
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert!(connection.request("GET", "/?close=1", &[], b"").is_err());
        let requests = backend.requests();
        assert_eq!(requests.len(), 5);
        assert_eq!(requests[0].header("x-a").as_deref(), Some("b"));
    }

    #[test]
    fn websockets_echo() {
        let backend = Backend::start();
        let port = backend.server.address().port();
        let mut socket = WebSocket::open(port, "/ws", &[]).unwrap();
        let long = "é".repeat(1000);
        for message in ["", "hello", &long] {
            assert_eq!(socket.echo(message).unwrap(), message);
        }
        assert!(WebSocket::open(port, "/ws", &[("Cookie", "a=b")]).is_ok());
        assert_eq!(client::raw(port, b"nonsense\r\n\r\n").unwrap(), b"");
    }
}
