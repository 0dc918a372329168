//! HTTP/1 messages: just enough for both ends of a test.

use std::io::{self, Read};

const MAX_HEADERS: usize = 128;

/// A message's headers, in order, values as received.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// False when the client asked for the connection's end, or speaks HTTP/1.0.
    pub(crate) keep_alive: bool,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// False when the connection ends with this response.
    pub(crate) keep_alive: bool,
}

/// The first value of the header `name`.
pub(crate) fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
}

/// Reads messages from a connection, keeping what follows the current one.
#[derive(Default)]
pub(crate) struct Reader {
    buf: Vec<u8>,
}

impl Reader {
    /// The next request; `None` when the peer closed the connection before one began.
    pub(crate) fn request(&mut self, io: &mut impl Read) -> io::Result<Option<Request>> {
        let (mut request, head) = loop {
            let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Request::new(&mut storage);
            match parsed.parse(&self.buf).map_err(invalid)? {
                httparse::Status::Complete(head) => {
                    let headers = owned(parsed.headers);
                    let keep_alive = parsed.version == Some(1) && !asks_to_close(&headers);
                    let request = Request {
                        method: parsed.method.unwrap_or_default().to_owned(),
                        target: parsed.path.unwrap_or_default().to_owned(),
                        headers,
                        body: Vec::new(),
                        keep_alive,
                    };
                    break (request, head);
                }
                httparse::Status::Partial => {
                    if self.fill(io)? == 0 {
                        return if self.buf.is_empty() { Ok(None) } else { Err(cut_short()) };
                    }
                }
            }
        };
        self.buf.drain(..head);
        request.body = if is_chunked(&request.headers) {
            self.chunked(io)?
        } else {
            self.exactly(io, content_length(&request.headers)?.unwrap_or(0))?
        };
        Ok(Some(request))
    }

    /// The next final response to a request with `method`; informational ones are skipped, but
    /// 101 is final.
    pub(crate) fn response(&mut self, io: &mut impl Read, method: &str) -> io::Result<Response> {
        let (mut response, head) = loop {
            let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Response::new(&mut storage);
            match parsed.parse(&self.buf).map_err(invalid)? {
                httparse::Status::Complete(head) => {
                    let status = parsed.code.unwrap_or(0);
                    if (100..200).contains(&status) && status != 101 {
                        self.buf.drain(..head);
                        continue;
                    }
                    let headers = owned(parsed.headers);
                    let keep_alive = parsed.version == Some(1) && !asks_to_close(&headers);
                    break (Response { status, headers, body: Vec::new(), keep_alive }, head);
                }
                httparse::Status::Partial => {
                    if self.fill(io)? == 0 {
                        return Err(cut_short());
                    }
                }
            }
        };
        self.buf.drain(..head);
        let bodyless = method == "HEAD" || matches!(response.status, 101 | 204 | 304);
        if !bodyless {
            response.body = if is_chunked(&response.headers) {
                self.chunked(io)?
            } else if let Some(length) = content_length(&response.headers)? {
                self.exactly(io, length)?
            } else {
                response.keep_alive = false;
                while self.fill(io)? > 0 {}
                std::mem::take(&mut self.buf)
            };
        }
        Ok(response)
    }

    /// Exactly `length` bytes.
    pub(crate) fn exactly(&mut self, io: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < length {
            if self.fill(io)? == 0 {
                return Err(cut_short());
            }
        }
        Ok(self.buf.drain(..length).collect())
    }

    fn chunked(&mut self, io: &mut impl Read) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let (start, size) = loop {
                match httparse::parse_chunk_size(&self.buf)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "chunk size"))?
                {
                    httparse::Status::Complete(found) => break found,
                    httparse::Status::Partial if self.fill(io)? == 0 => return Err(cut_short()),
                    httparse::Status::Partial => {}
                }
            };
            self.buf.drain(..start);
            let size = usize::try_from(size).map_err(invalid)?;
            body.extend(self.exactly(io, size)?);
            // No trailers: the line's end after the data, or after the last chunk, remains.
            self.exactly(io, 2)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn fill(&mut self, io: &mut impl Read) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let read = io.read(&mut chunk)?;
        self.buf.extend_from_slice(&chunk[..read]);
        Ok(read)
    }
}

fn owned(headers: &[httparse::Header<'_>]) -> Headers {
    headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect()
}

fn asks_to_close(headers: &Headers) -> bool {
    header(headers, "Connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"))
}

fn is_chunked(headers: &Headers) -> bool {
    header(headers, "Transfer-Encoding").is_some_and(|value| value.eq_ignore_ascii_case(b"chunked"))
}

fn content_length(headers: &Headers) -> io::Result<Option<usize>> {
    header(headers, "Content-Length")
        .map(|value| std::str::from_utf8(value).map_err(invalid)?.trim().parse().map_err(invalid))
        .transpose()
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection in a message")
}
