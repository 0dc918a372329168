//! A listener with a thread for each connection, which can be closed and opened again.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::ports;
use crate::wait;

/// What a connection's thread runs: the connection and its number, counted from 1.
type Handler = Arc<dyn Fn(Arc<TcpStream>, u64) + Send + Sync>;

pub(crate) struct Server {
    address: SocketAddr,
    handler: Handler,
    open: Arc<Connections>,
    listening: Mutex<Option<Listening>>,
}

#[derive(Default)]
struct Connections {
    accepted: AtomicU64,
    streams: Mutex<HashMap<u64, Arc<TcpStream>>>,
}

struct Listening {
    listener: Arc<TcpListener>,
    closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Listens on `address`, or on a free port of 127.0.0.1.
    pub(crate) fn start(
        address: Option<SocketAddr>,
        handler: impl Fn(Arc<TcpStream>, u64) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let mut server = Self {
            address: address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
            handler: Arc::new(handler),
            open: Arc::default(),
            listening: Mutex::new(None),
        };
        if address.is_some() {
            server.listen()?;
            return Ok(server);
        }
        // Between finding a free port and listening, another process may have taken it.
        let mut tries = 5;
        loop {
            server.address.set_port(ports::free_port());
            match server.listen() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => tries -= 1,
                result => return result.map(|()| server),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.open.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn open_connections(&self) -> usize {
        lock(&self.open.streams).len()
    }

    /// Closes the listener: the port refuses connections from now on.
    pub(crate) fn refuse(&self) {
        let Some(listening) = lock(&self.listening).take() else { return };
        listening.closed.store(true, Ordering::Relaxed);
        // On Linux this wakes the thread out of accept().
        let _ = SockRef::from(&*listening.listener).shutdown(Shutdown::Both);
        let _ = listening.thread.join();
    }

    /// Opens the port again. A connection of the listener before may still hold it for a moment.
    pub(crate) fn listen_again(&self) {
        wait::wait_for(Duration::from_secs(10), "the port to be free again", || {
            self.listen().map_err(|error| error.to_string())
        });
    }

    /// Ends every open connection.
    pub(crate) fn drop_connections(&self) {
        for stream in lock(&self.open.streams).values() {
            // Closed by the peer already: as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn listen(&self) -> io::Result<()> {
        let mut listening = lock(&self.listening);
        if listening.is_some() {
            return Ok(());
        }
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&self.address.into())?;
        socket.listen(1024)?;
        let listener = Arc::new(TcpListener::from(socket));
        let closed = Arc::new(AtomicBool::new(false));
        let thread = {
            let (listener, closed) = (Arc::clone(&listener), Arc::clone(&closed));
            let (handler, open) = (Arc::clone(&self.handler), Arc::clone(&self.open));
            thread::Builder::new()
                .name("accept".into())
                .spawn(move || accept(&listener, &closed, &handler, &open))?
        };
        *listening = Some(Listening { listener, closed, thread });
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.refuse();
        self.drop_connections();
    }
}

fn accept(listener: &TcpListener, closed: &AtomicBool, handler: &Handler, open: &Arc<Connections>) {
    while !closed.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            // Woken by refuse(), or short of descriptors: then waiting is all that helps.
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let number = open.accepted.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&open.streams).insert(number, Arc::clone(&stream));
        let (handler, connections) = (Arc::clone(handler), Arc::clone(open));
        let spawned =
            thread::Builder::new().name(format!("connection {number}")).spawn(move || {
                // The socket closes with its last owner: forgotten here first, so that the handler's
                // end is the connection's end.
                let forget = Forget { connections: &connections, number };
                handler(stream, number);
                drop(forget);
            });
        if spawned.is_err() {
            lock(&open.streams).remove(&number);
        }
    }
}

/// Takes a connection out of the list, also when its handler panics.
struct Forget<'a> {
    connections: &'a Connections,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.connections.streams).remove(&self.number);
    }
}

/// Locks, whatever became of other threads: a panic of theirs is reported by their own test.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
