//! Connections that prove the programs: to an address that nobody has, which they send to a listener of ours.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use model::IpFamily;
use socket2::{Domain, Socket, Type};

/// Addresses for documentation (RFC 5737, RFC 3849); the port is nobody's.
const NOBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const PORT: u16 = 9;
/// A connection to ourselves that takes longer has failed.
const LIMIT: Duration = Duration::from_millis(500);

/// Who listens.
#[derive(Debug)]
enum Listener {
    Stream(TcpListener),
    Datagrams(UdpSocket),
}

/// A listener, and a socket that is to reach it.
#[derive(Debug)]
pub(crate) struct Canary {
    listener: Listener,
    socket: Socket,
    /// Where it is going to connect to.
    pub(crate) to: SocketAddr,
}

/// An address of a family that nobody has.
pub(crate) fn nobody(family: IpFamily) -> SocketAddr {
    match family {
        IpFamily::V4 => (NOBODY_V4, PORT).into(),
        IpFamily::V6 => (NOBODY_V6, PORT).into(),
    }
}

/// Where the sockets of a family's canaries are sent. An IPv6 socket can name an address of IPv4, too.
pub(crate) fn destinations(family: IpFamily) -> Vec<SocketAddr> {
    let addresses: Vec<IpAddr> = match family {
        IpFamily::V4 => vec![NOBODY_V4.into(), NOBODY_V4.to_ipv6_mapped().into()],
        IpFamily::V6 => vec![NOBODY_V6.into()],
    };
    addresses.into_iter().map(|address| SocketAddr::new(address, PORT)).collect()
}

/// What proves the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Connection,
    /// A datagram whose address is given with it, and its answer.
    Datagram,
}

fn tell(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

impl Canary {
    /// `None`: this host has no such sockets.
    ///
    /// # Errors
    /// There is no loopback address.
    pub(crate) fn new(family: IpFamily, to: SocketAddr, kind: Kind) -> io::Result<Option<Self>> {
        const EAFNOSUPPORT: i32 = 97;
        let loopback: IpAddr = match family {
            IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let (listener, kind) = match kind {
            Kind::Connection => (Listener::Stream(TcpListener::bind((loopback, 0))?), Type::STREAM),
            Kind::Datagram => (Listener::Datagrams(UdpSocket::bind((loopback, 0))?), Type::DGRAM),
        };
        let socket = match Socket::new(Domain::for_address(to), kind, None) {
            Err(error) if error.raw_os_error() == Some(EAFNOSUPPORT) => return Ok(None),
            other => other?,
        };
        // Nothing leaves the host, whatever becomes of it.
        socket.bind_device(Some(b"lo"))?;
        Ok(Some(Self { listener, socket, to }))
    }

    /// By which the programs know the socket.
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        self.socket.cookie()
    }

    /// The listener's port, in network byte order.
    pub(crate) fn port_be(&self) -> io::Result<u64> {
        let address = match &self.listener {
            Listener::Stream(listener) => listener.local_addr()?,
            Listener::Datagrams(listener) => listener.local_addr()?,
        };
        Ok(address.port().to_be().into())
    }

    /// Connects, or sends a datagram; what is wrong with what comes of it.
    pub(crate) fn fly(self) -> Result<(), String> {
        match &self.listener {
            Listener::Stream(listener) => self.connect(listener),
            Listener::Datagrams(listener) => self.exchange(listener),
        }
    }

    fn exchange(&self, listener: &UdpSocket) -> Result<(), String> {
        listener.set_read_timeout(Some(LIMIT)).map_err(tell("can't wait"))?;
        self.socket.set_read_timeout(Some(LIMIT)).map_err(tell("can't wait"))?;
        self.socket.send_to(&[0], &self.to.into()).map_err(tell("was not sent"))?;
        let (_, from) = listener.recv_from(&mut [0; 1]).map_err(tell("did not arrive"))?;
        listener.send_to(&[0], from).map_err(tell("was not answered"))?;
        let (_, shown) =
            self.socket.recv_from(&mut [MaybeUninit::new(0); 1]).map_err(tell("had no answer"))?;
        match shown.as_socket() {
            Some(shown) if shown == self.to => Ok(()),
            shown => Err(format!("shows {shown:?} as its sender")),
        }
    }

    fn connect(&self, listener: &TcpListener) -> Result<(), String> {
        listener.set_nonblocking(true).map_err(tell("can't listen"))?;
        self.socket.connect_timeout(&self.to.into(), LIMIT).map_err(tell("did not arrive"))?;
        let (_, from) = listener.accept().map_err(tell("was accepted by somebody else"))?;
        let own = self.socket.local_addr().map_err(tell("has no name"))?.as_socket();
        if own.map(|own| (own.ip().to_canonical(), own.port())) != Some((from.ip(), from.port())) {
            return Err("was another's".to_owned());
        }
        let peer = self.socket.peer_addr().map_err(tell("has no peer"))?.as_socket();
        if peer != Some(self.to) {
            return Err(format!("shows {peer:?} as its peer"));
        }
        Ok(())
    }
}
