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

/// What an application answers; see [`Backend::answering`].
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status; 0 ends the connection without an answer.
    pub status: u16,
    /// In order; `Content-Length` is added.
    pub headers: Vec<(String, String)>,
    /// The body, which is not sent where there can be none.
    pub body: Vec<u8>,
}

/// What an application does with a request.
type Answering = dyn Fn(&BackendRequest) -> Answer + Send + Sync;

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
        Self::serving(address, scripted)
    }

    /// Starts on a free port of 127.0.0.1, with an application that answers what `answering` says.
    pub fn answering(
        answering: impl Fn(&BackendRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let backend = Self::serving(None, answering);
        backend.unwrap_or_else(|error| panic!("the backend cannot listen: {error}"))
    }

    fn serving(
        address: Option<SocketAddr>,
        answering: impl Fn(&BackendRequest) -> Answer + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let requests = Arc::default();
        let handler = {
            let requests = Arc::clone(&requests);
            move |stream, _| {
                // What ends a connection is the client's business.
                let _ = serve(stream, &requests, &answering);
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

fn serve(
    stream: Arc<TcpStream>,
    requests: &Mutex<Vec<BackendRequest>>,
    answering: &Answering,
) -> io::Result<()> {
    let mut io = Transport::Plain(stream);
    let mut reader = http1::Reader::default();
    while let Some(request) = reader.request(&mut io)? {
        let keep_alive = request.keep_alive;
        let request = BackendRequest {
            method: request.method,
            target: request.target,
            headers: request.headers,
            body: request.body,
        };
        lock(requests).push(request.clone());
        if let Some(key) = http1::header(&request.headers, "Sec-WebSocket-Key") {
            return echo(&mut io, &mut reader, key);
        }
        let answer = answering(&request);
        if answer.status == 0 {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", answer.status);
        let bodyless = matches!(answer.status, 204 | 304);
        if !bodyless {
            head += &format!("Content-Length: {}\r\n", answer.body.len());
        }
        if !keep_alive {
            head += "Connection: close\r\n";
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = if bodyless || request.method == "HEAD" { &[][..] } else { &answer.body };
        io.write_all(&[head.as_bytes(), body].concat())?;
        if !keep_alive {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers as the query asks for.
fn scripted(request: &BackendRequest) -> Answer {
    let mut answer = Answer {
        status: 200,
        headers: vec![("Content-Type".to_owned(), "text/plain".to_owned())],
        body: b"hello\n".to_vec(),
    };
    let mut delay = Duration::ZERO;
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    let mut close = false;
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = clean_utf8(&url_decode(value.as_bytes()));
        match name {
            "status" => answer.status = value.parse().unwrap_or(500),
            "set_cookie" => answer.headers.push(("Set-Cookie".into(), format!("{value}; Path=/"))),
            "header" => {
                let (name, value) = value.split_once(':').unwrap_or((&value, ""));
                answer.headers.push((name.to_owned(), value.to_owned()));
            }
            "body" => answer.body = value.into_bytes(),
            "delay" => delay = Duration::from_millis(value.parse().unwrap_or(0)),
            "close" => close = value == "1",
            _ => {}
        }
    }
    thread::sleep(delay);
    if close { Answer::default() } else { answer }
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
