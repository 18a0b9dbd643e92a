//! Servers that say who they are and whom they see, for tests that ask where a packet went.
//!
//! One [`EchoServer`] stands for one pod: a thread that serves any number of ports, in both IP families at once. Its
//! answer is one line, `name=<pod> client=<ip>:<port> server=<ip>:<port>`, where the addresses are those that the
//! server's own socket shows, that is after every translation on the way ([`crate::client::Reply`] reads it).
//!
//! Sockets belong to the namespace in which they were made, whoever serves them; the thread itself is outside.

mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, getsockname, listen, setsockopt, socket,
    sockopt,
};
use tokio::sync::oneshot;

use crate::Namespace;

/// How a port is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TCP: writes the line and closes at once, so that the server keeps the connection's `TIME_WAIT` and clients can
    /// reuse their ports. Does not read: a client that sends something first may see a reset instead of the line.
    Line,
    /// TCP: writes the line, then sends back whatever arrives until the client closes, for connections that last.
    KeepOpen,
    /// TCP: one HTTP/1.1 response for each connection, status 200, the pod's name and a newline as body, and the
    /// line in the header `x-echo`. Any method and path; a body is not read.
    Http,
    /// TCP: writes the line, then reads whatever arrives and throws it away, for measuring throughput.
    Discard,
    /// UDP: answers every datagram with the line, from the address to which it was sent.
    Udp,
}

/// What a server tells about itself, and what it has counted.
#[derive(Debug)]
struct Identity {
    name: String,
    answered: AtomicU64,
}

impl Identity {
    /// The answer to a client, counted.
    fn line(&self, client: SocketAddr, server: SocketAddr) -> String {
        self.answered.fetch_add(1, Ordering::Relaxed);
        format!("name={} client={} server={}\n", self.name, canonical(client), canonical(server))
    }
}

/// The plain IPv4 form of an IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d`.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A running server. Dropping it closes its sockets, with every open connection, before the drop returns.
#[derive(Debug)]
pub struct EchoServer {
    identity: Arc<Identity>,
    ports: Vec<u16>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Opens the given ports in a namespace and serves them. Port 0 takes a free one, see [`EchoServer::port`]. The
    /// name must not contain white space. When this returns, connections are accepted.
    ///
    /// # Errors
    /// If a port cannot be opened, or the thread not be started.
    pub fn start(namespace: &Namespace, name: &str, listens: &[(u16, Mode)]) -> io::Result<Self> {
        let sockets = namespace
            .run(|| listens.iter().map(|&(port, mode)| open(port, mode)).collect::<io::Result<Vec<_>>>())?;
        let ports = sockets.iter().map(|(_, port, _)| *port).collect();
        let identity = Arc::new(Identity { name: name.to_owned(), answered: AtomicU64::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&identity);
        let thread = thread::Builder::new()
            .name(format!("echo {name}"))
            .spawn(move || runtime.block_on(serve(sockets, &shared, stopped)))?;
        Ok(Self { identity, ports, stop: Some(stop), thread: Some(thread) })
    }

    /// The port of the entry with this index in what was given to [`EchoServer::start`].
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn port(&self, index: usize) -> u16 {
        self.ports[index]
    }

    /// The server's name.
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// How many connections and datagrams were answered so far.
    pub fn answered(&self) -> u64 {
        self.identity.answered.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Dropping the sender wakes the thread as well as a message would.
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(name = %self.identity.name, "echo server panicked");
        }
    }
}

/// Serves until told to stop; then the runtime is dropped with every task and socket.
async fn serve(sockets: Vec<(OwnedFd, u16, Mode)>, identity: &Arc<Identity>, stopped: oneshot::Receiver<()>) {
    for (fd, _, mode) in sockets {
        let identity = Arc::clone(identity);
        match mode {
            Mode::Udp => tokio::spawn(udp::serve(fd, identity)),
            Mode::Line | Mode::KeepOpen | Mode::Http | Mode::Discard => {
                tokio::spawn(tcp::serve(fd, mode, identity))
            }
        };
    }
    // Only ever ends by the sender's being dropped, which is no failure.
    stopped.await.unwrap_or_default();
}

/// Opens a dual-stack socket in the calling thread's namespace and returns it with its port.
fn open(port: u16, mode: Mode) -> io::Result<(OwnedFd, u16, Mode)> {
    let kind = if mode == Mode::Udp { SockType::Datagram } else { SockType::Stream };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet6, kind, flags, None)?;
    // Set explicitly: the default is a setting of the machine.
    setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    if mode == Mode::Udp {
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(
        fd.as_raw_fd(),
        &SockaddrIn6::from(std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0)),
    )?;
    if mode != Mode::Udp {
        // The longest queue that the kernel allows, since bursts must not be lost here.
        listen(&fd, Backlog::MAXALLOWABLE)?;
    }
    let port = getsockname::<SockaddrIn6>(fd.as_raw_fd())?.port();
    Ok((fd, port, mode))
}
