//! The connection to the receiver of a stream of records: a server, or nginx's own output.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::audit::config::{Console, ServerConfig, Transport};
use crate::config::address::Address;
use crate::delivery::tls::Tls;
use crate::fault::{Fault, TlsFault};

/// How long connecting to one address may take, and a TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// After this time without progress, a server is connected to anew.
pub const STALLED: Duration = Duration::from_secs(60);
/// How often a waiting write checks whether it shall continue.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait for an ICMP error before the first datagram counts as sent.
const NOBODY: Duration = Duration::from_millis(50);
/// How many times in a row a server is read from before writing has its turn.
const READS: usize = 16;

/// Whether waiting still makes sense; asked again and again.
pub type GoOn<'a> = dyn Fn() -> bool + 'a;

/// An open connection.
pub enum Socket {
    /// nginx's own output, and its place in the process's table of open files.
    Console(File, PathBuf),
    /// A datagram each, over the network …
    Udp(Udp),
    /// … or to the machine's own syslog.
    Unix(UnixDatagram),
    /// One connection.
    Connection(Box<Connection>),
}

impl Socket {
    /// Opens nginx's own output.
    ///
    /// # Errors
    /// It is closed.
    pub fn console(console: Console) -> Result<Self, Fault> {
        let number = match console {
            Console::Stdout => libc::STDOUT_FILENO,
            Console::Stderr => libc::STDERR_FILENO,
        };
        // SAFETY: the borrow ends with this function, and nobody closes these two.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let place = format!("/proc/{}/fd/{number}", std::process::id());
        Ok(Self::Console(fd.try_clone_to_owned()?.into(), place.into()))
    }

    /// Connects to a server.
    ///
    /// # Errors
    /// It cannot be reached now.
    pub fn server(config: &ServerConfig, go_on: &GoOn<'_>) -> Result<Self, Fault> {
        let (host, port) = match &config.address {
            Address::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(POLL))?;
                return Ok(Self::Unix(socket));
            }
            Address::Host(host, port) => (host.as_str(), *port),
        };
        let addresses: Vec<_> =
            (host, port).to_socket_addrs().map_err(|_| Fault::HostNotFound)?.collect();
        let tls = match &config.transport {
            Transport::Datagram => return Udp::open(addresses).map(Self::Udp),
            Transport::Tcp => None,
            Transport::Tls(tls) => Some(tls),
        };
        let mut fault = Fault::HostNotFound;
        for address in addresses {
            match Connection::open(address, host, tls, go_on) {
                Ok(connection) => return Ok(Self::Connection(Box::new(connection))),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    /// Whether each message must be written by itself: as a datagram, or so that the output of nginx's own
    /// processes to the same pipe comes between messages only.
    pub fn takes_one(&self) -> bool {
        !matches!(self, Self::Connection(_))
    }

    /// The most bytes to write at once: in a longer message, the output of nginx's own processes to the same
    /// pipe may come between its parts.
    pub fn limit(&self) -> Option<usize> {
        match self {
            Self::Console(file, _) => is_pipe(file).then_some(libc::PIPE_BUF),
            _ => None,
        }
    }

    /// Writes all bytes, or one datagram; waits as long as `go_on` says.
    ///
    /// # Errors
    /// It was not written, or in part. [`Fault::TooLong`]: it never can be.
    pub fn write(&mut self, bytes: &[u8], go_on: &GoOn<'_>) -> Result<(), Fault> {
        match self {
            Self::Console(file, place) => {
                follow(file, place)?;
                write_console(file, bytes, go_on)
            }
            Self::Udp(udp) => udp.write(bytes),
            Self::Unix(socket) => loop {
                match socket.send(bytes) {
                    Err(error) if is_wait(&error) && go_on() => {}
                    sent => return Ok(sent.map(drop)?),
                }
            },
            Self::Connection(connection) => connection.write(bytes, go_on),
        }
    }

    /// How many bytes were sent.
    pub fn sent(&self) -> u64 {
        match self {
            Self::Connection(connection) => connection.sent,
            _ => 0,
        }
    }

    /// How many of them the other machine has confirmed.
    ///
    /// # Errors
    /// The connection is over.
    pub fn confirmed(&mut self) -> Result<u64, Fault> {
        match self {
            Self::Connection(connection) => connection.confirmed(),
            _ => Ok(0),
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Datagrams to one of a host's addresses.
pub struct Udp {
    addresses: Vec<SocketAddr>,
    /// The address in use.
    at: usize,
    /// `None` before the first datagram.
    socket: Option<UdpSocket>,
}

impl Udp {
    fn open(addresses: Vec<SocketAddr>) -> Result<Self, Fault> {
        match addresses.is_empty() {
            true => Err(Fault::HostNotFound),
            false => Ok(Self { addresses, at: 0, socket: None }),
        }
    }

    /// Sends to the address in use; if nobody listens there, to the next one.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut fault = Fault::HostNotFound;
        for _ in 0..self.addresses.len() {
            match self.send(bytes) {
                Err(Fault::TooLong) => return Err(Fault::TooLong),
                Err(error) => fault = error,
                Ok(()) => return Ok(()),
            }
            self.socket = None;
            self.at = (self.at + 1) % self.addresses.len();
        }
        Err(fault)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let is_first = self.socket.is_none();
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(connect(self.addresses[self.at])?),
        };
        socket.send(bytes)?;
        // Connecting a UDP socket tells nothing. That nobody listens is reported later: at once by this
        // machine, soon by a near one, late or never by others.
        if is_first {
            poll_for(socket.as_fd(), 0, NOBODY);
        }
        socket.take_error()?.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

fn is_pipe(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.file_type().is_fifo())
}

/// When nginx reopens its error log, it replaces its standard error; a thread with its own table of open files
/// would keep the old one.
fn follow(file: &mut File, place: &Path) -> io::Result<()> {
    let Ok(now) = place.metadata() else { return Ok(()) };
    let ours = file.metadata()?;
    if now.is_file() && (now.dev(), now.ino()) != (ours.dev(), ours.ino()) {
        *file = OpenOptions::new().append(true).open(place)?;
    }
    Ok(())
}

/// The reader of a pipe may be slow: the thread must still be able to stop.
fn write_console(file: &mut File, mut bytes: &[u8], go_on: &GoOn<'_>) -> Result<(), Fault> {
    while !bytes.is_empty() {
        if !poll(file.as_fd(), libc::POLLOUT) {
            if go_on() {
                continue;
            }
            return Err(Fault::TimedOut);
        }
        // A writable pipe takes this much without waiting.
        let part = if is_pipe(file) { bytes.len().min(libc::PIPE_BUF) } else { bytes.len() };
        match file.write(&bytes[..part]) {
            Ok(0) => return Err(Fault::ConnectionBroken),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if is_wait(&error) && go_on() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits a little until one of `events` may happen without waiting.
fn poll(fd: BorrowedFd<'_>, events: i16) -> bool {
    poll_for(fd, events, POLL)
}

/// Waits at most `limit` until one of `events`, or an error, may happen without waiting.
fn poll_for(fd: BorrowedFd<'_>, events: i16, limit: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid structure.
    unsafe { libc::poll(&mut poll, 1, limit.as_millis() as libc::c_int) > 0 }
}

/// TLS on a connection.
struct Session {
    connection: ClientConnection,
    tls: Tls,
}

/// A connection over TCP, with TLS or without.
pub struct Connection {
    socket: TcpStream,
    tls: Option<Session>,
    /// Bytes that the system took.
    sent: u64,
}

impl Connection {
    fn open(
        address: SocketAddr,
        host: &str,
        tls: Option<&Tls>,
        go_on: &GoOn<'_>,
    ) -> Result<Self, Fault> {
        let socket = TcpStream::connect_timeout(&address, CONNECT)?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        keep_alive(&socket)?;
        let tls = match tls {
            None => None,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned());
                let name = name.map_err(|_| Fault::Tls(TlsFault::WrongName))?;
                let session = ClientConnection::new(tls.config(), name);
                let session = session.map_err(|error| tls.fault(&error))?;
                Some(Session { connection: session, tls: tls.clone() })
            }
        };
        let mut connection = Self { socket, tls, sent: 0 };
        connection.shake_hands(go_on)?;
        Ok(connection)
    }

    fn shake_hands(&mut self, go_on: &GoOn<'_>) -> Result<(), Fault> {
        let deadline = Instant::now() + CONNECT;
        loop {
            self.write_tls()?;
            self.read()?;
            if !self.tls.as_ref().is_some_and(|tls| tls.connection.is_handshaking()) {
                return Ok(());
            }
            if Instant::now() >= deadline || !go_on() {
                return Err(Fault::TimedOut);
            }
            if !self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write()) {
                poll(self.socket.as_fd(), libc::POLLIN);
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], go_on: &GoOn<'_>) -> Result<(), Fault> {
        let mut moved = Instant::now();
        loop {
            // A closed connection takes nothing more, although the system accepts the bytes.
            self.read()?;
            let before = self.sent;
            match &mut self.tls {
                Some(tls) => {
                    // It takes no more than its buffer holds.
                    let taken = tls.connection.writer().write(bytes)?;
                    bytes = &bytes[taken..];
                    self.write_tls()?;
                }
                None => match self.socket.write(bytes) {
                    Ok(taken) => {
                        bytes = &bytes[taken..];
                        self.sent += taken as u64;
                    }
                    Err(error) if is_wait(&error) => {}
                    Err(error) => return Err(error.into()),
                },
            }
            if bytes.is_empty()
                && !self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write())
            {
                return Ok(());
            }
            if self.sent > before {
                moved = Instant::now();
            } else if moved.elapsed() > STALLED || !go_on() {
                return Err(Fault::TimedOut);
            }
            poll(self.socket.as_fd(), libc::POLLOUT);
        }
    }

    fn write_tls(&mut self) -> Result<(), Fault> {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.connection.wants_write()) {
            match tls.connection.write_tls(&mut self.socket) {
                Ok(written) => self.sent += written as u64,
                Err(error) if is_wait(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads from the server. It should send nothing but the close and TLS's own messages; one that sends
    /// without end must not delay writing.
    fn read(&mut self) -> Result<(), Fault> {
        for _ in 0..READS {
            let mut plain = [0; 1024];
            let read = match &mut self.tls {
                Some(tls) => tls.connection.read_tls(&mut self.socket),
                None => self.socket.read(&mut plain),
            };
            match read {
                // A TLS alert: type, then version 3.x.
                Ok(2..) if self.tls.is_none() && plain.starts_with(&[0x15, 3]) => {
                    return Err(Fault::PlainToTls);
                }
                Ok(0) => {
                    let tls = self.tls.as_ref().map(|session| &session.tls);
                    return Err(tls.map_or(Fault::ConnectionBroken, Tls::closed));
                }
                Ok(_) => {}
                Err(error) if is_wait(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if let Some(tls) = &mut self.tls {
                let Session { connection: session, tls } = tls;
                let state = session.process_new_packets().map_err(|error| tls.fault(&error))?;
                if state.peer_has_closed() {
                    return Err(Fault::ConnectionBroken);
                }
                while state.plaintext_bytes_to_read() > 0
                    && session.reader().read(&mut [0; 1024]).is_ok_and(|read| read > 0)
                {
                }
            }
        }
        Ok(())
    }

    fn confirmed(&mut self) -> Result<u64, Fault> {
        self.read()?;
        let mut waiting: libc::c_int = 0;
        // SAFETY: the socket is open; the call fills the number.
        let rc = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &mut waiting) };
        if rc != 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(self.sent.saturating_sub(u64::try_from(waiting).unwrap_or(0)))
    }
}

/// Makes the system notice a server that vanished, even while there is nothing to send.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let set = |level, name, value: libc::c_int| {
        let (value, len) = ((&raw const value).cast(), size_of_val(&value) as libc::socklen_t);
        // SAFETY: the socket is open, the value and its length are an integer's.
        match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30)?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10)?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_receiver_that_talks_without_end_holds_nothing_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut connection =
            Connection::open(address, "localhost", None, &|| true).expect("it listens");
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.write_all(&[0; 2 * READS * 1024]).unwrap();
        let mut available = [0; 1];
        while connection.socket.peek(&mut available).is_err() {
            poll(connection.socket.as_fd(), libc::POLLIN);
        }
        assert_eq!(connection.read(), Ok(()));
        assert!(connection.socket.peek(&mut available).is_ok(), "all was read at once");
        drop(receiver);
        while connection.read() == Ok(()) {
            poll(connection.socket.as_fd(), libc::POLLIN);
        }
    }

    #[test]
    fn datagrams_go_to_the_address_where_somebody_listens() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listens = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        for addresses in
            [vec![nobody, listens], vec![listens, nobody], vec![nobody, nobody, listens]]
        {
            let mut socket = Socket::Udp(Udp::open(addresses).unwrap());
            for message in [b"1", b"2"] {
                assert_eq!(socket.write(message, &|| true), Ok(()));
                let mut read = [0; 8];
                assert_eq!(receiver.recv(&mut read).unwrap(), 1);
                assert_eq!(read[0], message[0]);
            }
        }
        let mut socket = Socket::Udp(Udp::open(vec![nobody, nobody]).unwrap());
        assert_eq!(socket.write(b"1", &|| true), Err(Fault::ConnectionRefused));
        assert_eq!(Udp::open(Vec::new()).err(), Some(Fault::HostNotFound));
    }

    #[test]
    fn the_console_follows_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("error.log.1"), dir.path().join("error.log"));
        let place = dir.path().join("fd");
        let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
        let mut socket = Socket::Console(open(&first), place.clone());
        std::os::unix::fs::symlink(&first, &place).unwrap();
        socket.write(b"1", &|| true).unwrap();
        open(&second);
        std::fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink(&second, &place).unwrap();
        socket.write(b"2", &|| true).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), b"1");
        assert_eq!(std::fs::read(&second).unwrap(), b"2");
    }
}
