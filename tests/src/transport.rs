//! A TCP connection, with or without TLS, that another thread can shut down.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::{ClientConnection, ServerConnection};

pub(crate) enum Transport {
    Plain(Arc<TcpStream>),
    Client(Box<ClientConnection>, Arc<TcpStream>),
    Server(Box<ServerConnection>, Arc<TcpStream>),
}

impl Transport {
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) | Self::Client(_, tcp) | Self::Server(_, tcp) => tcp,
        }
    }

    /// Ends the connection in an orderly way: the peer reads end of file.
    pub(crate) fn close(mut self) {
        // The peer may be gone already: there is nobody left to tell.
        match &mut self {
            Self::Plain(_) => {}
            Self::Client(tls, tcp) => {
                tls.send_close_notify();
                let _ = tls.write_tls(&mut &**tcp);
            }
            Self::Server(tls, tcp) => {
                tls.send_close_notify();
                let _ = tls.write_tls(&mut &**tcp);
            }
        }
        let _ = self.tcp().shutdown(Shutdown::Both);
    }
}

/// Reads once, however often a signal interrupts it.
///
/// A read from a socket with a time-out is not restarted (signal(7)), and this process gets a signal whenever one
/// of its children ends.
///
/// # Errors
/// As [`Read::read`].
pub fn read(io: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match io.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => read(&mut &**tcp, buf),
            Self::Client(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).read(buf),
            Self::Server(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).read(buf),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => (&**tcp).write(buf),
            Self::Client(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).write(buf),
            Self::Server(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => (&**tcp).flush(),
            Self::Client(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).flush(),
            Self::Server(tls, tcp) => rustls::Stream::new(&mut **tls, &mut &**tcp).flush(),
        }
    }
}
