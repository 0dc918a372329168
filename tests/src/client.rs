//! Small HTTP clients. Every read and write gives up after [`TIMEOUT`].

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::http1::{self, Headers};
use crate::transport::{self, Transport};

/// How long a read or write may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Request headers: names and values.
pub type RequestHeaders<'a> = &'a [(&'a str, &'a str)];

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// In order, values as received.
    pub headers: Headers,
    /// Without transfer coding.
    pub body: Vec<u8>,
    /// From before the request was written until the whole response was read.
    pub latency: Duration,
}

impl Response {
    /// The header's first value, lossily.
    pub fn header(&self, name: &str) -> Option<String> {
        http1::header(&self.headers, name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The body, lossily.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A GET over a connection of its own.
pub fn get(port: u16, path: &str, headers: RequestHeaders<'_>) -> io::Result<Response> {
    Connection::open(local(port))?.request("GET", path, headers, b"")
}

/// A POST over a connection of its own.
pub fn post(
    port: u16,
    path: &str,
    headers: RequestHeaders<'_>,
    body: &[u8],
) -> io::Result<Response> {
    Connection::open(local(port))?.request("POST", path, headers, body)
}

/// Sends `bytes` as they are and returns what comes back, head included: until one response is
/// complete, or until the server closes or resets the connection.
///
/// The sending side stays open: nginx takes its end for the client's leaving (499).
pub fn raw(port: u16, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(local(port))?;
    stream.write_all(bytes)?;
    let method = if bytes.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match transport::read(&mut stream, &mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(answer),
            Err(error) => return Err(error),
        }
        let complete = http1::Reader::default().response(&mut &*answer, method);
        if complete.is_ok_and(|response| response.keep_alive) {
            return Ok(answer);
        }
    }
}

/// A kept-alive HTTP/1.1 connection.
pub struct Connection {
    io: Transport,
    reader: http1::Reader,
    host: String,
    ended: bool,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let io = Transport::Plain(Arc::new(connect(address)?));
        Ok(Self { io, reader: http1::Reader::default(), host: address.to_string(), ended: false })
    }

    /// Connects with TLS to a server that must show a certificate for `name`.
    pub fn open_tls(
        address: SocketAddr,
        name: &str,
        config: Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let tls = ClientConnection::new(config, server).map_err(io::Error::other)?;
        let io = Transport::Client(Box::new(tls), Arc::new(connect(address)?));
        let host = format!("{name}:{}", address.port());
        Ok(Self { io, reader: http1::Reader::default(), host, ended: false })
    }

    /// Sends a request and reads its response. `Host` and, with a body, `Content-Length` are
    /// added unless given.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: RequestHeaders<'_>,
        body: &[u8],
    ) -> io::Result<Response> {
        let started = Instant::now();
        self.send(method, path, headers, body)?;
        let response = self.reader.response(&mut self.io, method)?;
        self.ended = !response.keep_alive;
        Ok(Response {
            status: response.status,
            headers: response.headers,
            body: response.body,
            latency: started.elapsed(),
        })
    }

    /// Whether the server said that the last response ends the connection.
    pub fn ended(&self) -> bool {
        self.ended
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: RequestHeaders<'_>,
        body: &[u8],
    ) -> io::Result<()> {
        let given = |name: &str| headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
        let mut message = format!("{method} {path} HTTP/1.1\r\n");
        if !given("Host") {
            message += &format!("Host: {}\r\n", self.host);
        }
        if !(body.is_empty() && method != "POST" || given("Content-Length")) {
            message += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            message += &format!("{name}: {value}\r\n");
        }
        message += "\r\n";
        self.io.write_all(&[message.as_bytes(), body].concat())?;
        self.io.flush()
    }
}

/// An open WebSocket.
pub struct WebSocket {
    connection: Connection,
}

impl WebSocket {
    /// Upgrades a connection at `path`.
    ///
    /// # Errors
    /// Also when the server answers anything but a proper 101.
    pub fn open(port: u16, path: &str, headers: RequestHeaders<'_>) -> io::Result<Self> {
        // The sample key of RFC 6455: the server need not be surprised.
        const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
        let mut all = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        all.extend_from_slice(headers);
        let mut connection = Connection::open(local(port))?;
        let response = connection.request("GET", path, &all, b"")?;
        if response.status != 101
            || response.header("Sec-WebSocket-Accept") != Some(websocket_accept(KEY.as_bytes()))
        {
            return Err(io::Error::other(format!("no upgrade: status {}", response.status)));
        }
        Ok(Self { connection })
    }

    /// Sends a text message and returns the answer to it.
    pub fn echo(&mut self, text: &str) -> io::Result<String> {
        write_frame(&mut self.connection.io, Some([1, 2, 3, 4]), text.as_bytes())?;
        let (_, answer) = read_frame(&mut self.connection.reader, &mut self.connection.io)?;
        String::from_utf8(answer).map_err(io::Error::other)
    }
}

/// Sends all requests at once over one HTTP/2 connection without TLS (prior knowledge) and returns
/// their responses in the same order.
pub fn h2(port: u16, requests: &[http::Request<Vec<u8>>]) -> io::Result<Vec<Response>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let all = tokio::time::timeout(TIMEOUT, h2_requests(local(port), requests));
        all.await.map_err(io::Error::other)?
    })
}

/// A request for [`h2()`].
///
/// # Panics
/// When `path` or a header is nothing HTTP/2 can say; for such bytes there is [`raw`].
pub fn h2_request(
    method: &str,
    path: &str,
    headers: RequestHeaders<'_>,
    body: &[u8],
) -> http::Request<Vec<u8>> {
    let uri = format!("http://localhost{path}");
    let mut request =
        http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_vec()).expect("a request that HTTP/2 can say")
}

async fn h2_requests(
    address: SocketAddr,
    requests: &[http::Request<Vec<u8>>],
) -> io::Result<Vec<Response>> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    let (mut client, connection) = h2::client::handshake(tcp).await.map_err(io::Error::other)?;
    // Its end, good or bad, ends the requests below.
    let driver = tokio::spawn(connection);
    let mut pending = Vec::new();
    for request in requests {
        let (parts, body) = request.clone().into_parts();
        client = client.ready().await.map_err(io::Error::other)?;
        let started = Instant::now();
        let (response, mut stream) = client
            .send_request(http::Request::from_parts(parts, ()), body.is_empty())
            .map_err(io::Error::other)?;
        if !body.is_empty() {
            stream.send_data(body.into(), true).map_err(io::Error::other)?;
        }
        pending.push((started, response));
    }
    let mut responses = Vec::new();
    for (started, response) in pending {
        let (head, mut stream) = response.await.map_err(io::Error::other)?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data: bytes::Bytes = data.map_err(io::Error::other)?;
            stream.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
            body.extend_from_slice(&data);
        }
        let headers = head.headers.iter();
        responses.push(Response {
            status: head.status.as_u16(),
            headers: headers
                .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                .collect(),
            body,
            latency: started.elapsed(),
        });
    }
    driver.abort();
    Ok(responses)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The answer to a `Sec-WebSocket-Key`, by RFC 6455.
pub(crate) fn websocket_accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finish())
}

/// Writes a text frame; a client's must be masked.
pub(crate) fn write_frame(
    io: &mut impl Write,
    mask: Option<[u8; 4]>,
    payload: &[u8],
) -> io::Result<()> {
    const FINAL_TEXT: u8 = 0x81;
    const MASKED: u8 = 0x80;
    let masked = if mask.is_some() { MASKED } else { 0 };
    let mut frame = vec![FINAL_TEXT];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => frame.push(masked | length),
        (_, Ok(length)) => {
            frame.push(masked | 126);
            frame.extend(length.to_be_bytes());
        }
        _ => return Err(io::Error::other("a message of more than 65,535 bytes")),
    }
    let mask_bytes = mask.unwrap_or_default();
    frame.extend(mask.iter().flatten());
    frame.extend(payload.iter().zip(mask_bytes.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    io.write_all(&frame)?;
    io.flush()
}

/// Reads a frame: its opcode and its payload, unmasked.
pub(crate) fn read_frame(
    reader: &mut http1::Reader,
    io: &mut impl Read,
) -> io::Result<(u8, Vec<u8>)> {
    let head = reader.exactly(io, 2)?;
    let length = match head[1] & 0x7F {
        127 => return Err(io::Error::other("a message of more than 65,535 bytes")),
        126 => {
            let length = reader.exactly(io, 2)?;
            usize::from(u16::from_be_bytes([length[0], length[1]]))
        }
        length => usize::from(length),
    };
    let mask = if head[1] & 0x80 != 0 { reader.exactly(io, 4)? } else { vec![0; 4] };
    let payload = reader.exactly(io, length)?;
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Ok((head[0] & 0x0F, unmasked.collect()))
}

/// A text as it is in a query or a form.
pub fn percent_encode(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The body of a form: names and values.
pub fn form(fields: &[(&str, &str)]) -> Vec<u8> {
    let pair = |(name, value): &(&str, &str)| {
        format!("{}={}", percent_encode(name), percent_encode(value))
    };
    fields.iter().map(pair).collect::<Vec<_>>().join("&").into_bytes()
}
