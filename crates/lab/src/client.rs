//! Clients for the [`crate::echo`] servers, to be run inside a namespace (`namespace.run(|| tcp_once(..))`).
//!
//! A connection counts as a success only when the server's whole line has been read and parsed; whatever happens
//! after that, when both sides close, is no longer of interest to a user of a Service.

mod load;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;

pub use load::{FirstFailure, Load, LoadGenerator, LoadReport};

/// How long [`spread`] waits for each answer.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The protocols that the servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answered.
    pub name: String,
    /// The client as the server saw it, that is after masquerading.
    pub client: SocketAddr,
    /// The server's own address for this connection, that is after destination translation.
    pub server: SocketAddr,
}

/// Reads `name=<pod> client=<ip>:<port> server=<ip>:<port>`.
impl FromStr for Reply {
    type Err = ConnectFailure;

    fn from_str(text: &str) -> Result<Self, ConnectFailure> {
        let field =
            |key: &str| text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let addr = |key: &str| field(key)?.parse().ok();
        if let (Some(name), Some(client), Some(server)) = (field("name"), addr("client"), addr("server")) {
            return Ok(Self { name: name.to_owned(), client, server });
        }
        let what = format!("not an echo server's line: {text:?}");
        Err(ConnectFailure::Other(io::Error::new(io::ErrorKind::InvalidData, what)))
    }
}

/// Why a connection did not work, as a client sees it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// Nobody listens, or a rule rejected with "port unreachable" or a TCP reset (`ECONNREFUSED`).
    ///
    /// Allow TCP several seconds: over these short paths an ICMP error arrives while the connecting system call still
    /// holds the socket, and Linux then only notes it (counter `TcpExtLockDroppedIcmps`). Measured with IPv6, many
    /// connects fail only when the first packet is repeated after one second. A reset is always seen at once.
    #[error("refused")]
    Refused,
    /// No route, or a rule rejected with any other ICMP code (`EHOSTUNREACH`, `ENETUNREACH`, or `EACCES`, which is
    /// IPv6's "administratively prohibited").
    #[error("unreachable")]
    Unreachable,
    /// No answer in time: dropped.
    #[error("timed out")]
    TimedOut,
    /// The connection was established and then reset (`ECONNRESET`, `EPIPE`).
    #[error("reset")]
    Reset,
    /// Anything else, including a connection that was closed without a full line (`UnexpectedEof`), and `EPERM`, by
    /// which Linux tells a UDP client that a rule of its own host dropped the packet.
    #[error("failed otherwise")]
    Other(#[source] io::Error),
}

impl ConnectFailure {
    /// The meaning of an error from a socket.
    pub fn classify(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => Self::Unreachable,
            Some(Errno::ECONNRESET | Errno::EPIPE) => Self::Reset,
            // Blocking sockets with a time limit report EINPROGRESS from connect and EAGAIN from read.
            Some(Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EINPROGRESS) => Self::TimedOut,
            _ if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other(error),
        }
    }

    /// The failure without its details, for counting and comparing.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Refused => FailureClass::Refused,
            Self::Unreachable => FailureClass::Unreachable,
            Self::TimedOut => FailureClass::TimedOut,
            Self::Reset => FailureClass::Reset,
            Self::Other(_) => FailureClass::Other,
        }
    }
}

/// The variants of [`ConnectFailure`] as a plain value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// See [`ConnectFailure::Refused`].
    Refused,
    /// See [`ConnectFailure::Unreachable`].
    Unreachable,
    /// See [`ConnectFailure::TimedOut`].
    TimedOut,
    /// See [`ConnectFailure::Reset`].
    Reset,
    /// See [`ConnectFailure::Other`].
    Other,
}

/// Opens a TCP connection and reads the line of a server in [`crate::echo::Mode::Line`]. The timeout holds for
/// connecting and for each read.
pub fn tcp_once(addr: SocketAddr, timeout: Duration) -> Result<Reply, ConnectFailure> {
    read_line(&TcpStream::connect_timeout(&addr, timeout).map_err(ConnectFailure::classify)?, timeout)
}

/// Like [`tcp_once`], from a fixed source port, also if an earlier connection from it is in `TIME_WAIT`.
pub fn tcp_from(source_port: u16, addr: SocketAddr, timeout: Duration) -> Result<Reply, ConnectFailure> {
    read_line(&connect_from(source_port, addr, timeout).map_err(ConnectFailure::classify)?, timeout)
}

/// Sends one datagram from a fresh port and reads the answer.
pub fn udp_once(addr: SocketAddr, timeout: Duration) -> Result<Reply, ConnectFailure> {
    udp_from(0, addr, timeout)
}

/// Like [`udp_once`], from a fixed source port.
pub fn udp_from(source_port: u16, addr: SocketAddr, timeout: Duration) -> Result<Reply, ConnectFailure> {
    UdpFlow::open(source_port, addr, timeout)?.ask()
}

/// Asks by the given protocol, see [`tcp_once`] and [`udp_once`].
pub fn ask_once(transport: Transport, addr: SocketAddr, timeout: Duration) -> Result<Reply, ConnectFailure> {
    match transport {
        Transport::Tcp => tcp_once(addr, timeout),
        Transport::Udp => udp_once(addr, timeout),
    }
}

/// A connected UDP socket, for several datagrams of one flow.
#[derive(Debug)]
pub struct UdpFlow(UdpSocket);

impl UdpFlow {
    /// Opens a flow from a source port, 0 for a fresh one. Sends nothing. The timeout holds for each answer.
    pub fn open(source_port: u16, addr: SocketAddr, timeout: Duration) -> Result<Self, ConnectFailure> {
        let open = || {
            let socket = UdpSocket::bind((unspecified(addr), source_port))?;
            socket.connect(addr)?;
            report_icmp_errors(&socket, addr)?;
            socket.set_read_timeout(Some(timeout))?;
            Ok(Self(socket))
        };
        open().map_err(ConnectFailure::classify)
    }

    /// Sends a datagram and reads one answer.
    pub fn ask(&self) -> Result<Reply, ConnectFailure> {
        let mut buffer = [0; 512];
        let length =
            self.0.send(b"?").and_then(|_| self.0.recv(&mut buffer)).map_err(ConnectFailure::classify)?;
        String::from_utf8_lossy(&buffer[..length]).parse()
    }
}

/// A TCP connection that stays open, to a server in [`crate::echo::Mode::KeepOpen`].
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    reply: Reply,
}

impl Session {
    /// Connects and reads the greeting. The timeout holds for connecting and for every later read.
    pub fn open(addr: SocketAddr, timeout: Duration) -> Result<Self, ConnectFailure> {
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(ConnectFailure::classify)?;
        let reply = read_line(&stream, timeout)?;
        Ok(Self { stream, reply })
    }

    /// Who answered.
    pub fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Sends some bytes, for a server in [`crate::echo::Mode::Discard`]. Waits only for room in the socket's buffer.
    pub fn send(&mut self, message: &[u8]) -> Result<(), ConnectFailure> {
        self.stream.write_all(message).map_err(ConnectFailure::classify)
    }

    /// Sends some bytes and waits until they have come back.
    pub fn exchange(&mut self, message: &[u8]) -> Result<(), ConnectFailure> {
        let mut back = vec![0; message.len()];
        self.stream
            .write_all(message)
            .and_then(|()| self.stream.read_exact(&mut back))
            .map_err(ConnectFailure::classify)?;
        if back == message {
            return Ok(());
        }
        let what = "something else came back";
        Err(ConnectFailure::Other(io::Error::new(io::ErrorKind::InvalidData, what)))
    }
}

/// Asks `n` times, each time from a new port, and counts who answered.
///
/// # Errors
/// The first failure; none is tolerated.
pub fn spread(
    n: u64,
    addr: SocketAddr,
    transport: Transport,
) -> Result<BTreeMap<String, u64>, ConnectFailure> {
    let mut counts = BTreeMap::new();
    for _ in 0..n {
        *counts.entry(ask_once(transport, addr, SPREAD_TIMEOUT)?.name).or_default() += 1;
    }
    Ok(counts)
}

/// Why a distribution is not even.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Uneven {
    /// An endpoint got too much or too little.
    #[error("{name} answered {count} times, expected {expected:.1} +- {tolerance:.1}")]
    Count {
        /// The endpoint.
        name: String,
        /// How often it answered.
        count: u64,
        /// Its fair share.
        expected: f64,
        /// Five standard deviations.
        tolerance: f64,
    },
    /// Somebody answered who is not an endpoint.
    #[error("{0} answered, which is no endpoint")]
    Stranger(String),
}

/// Checks that each of the named endpoints got its share of the answers within five standard deviations, as it does
/// by chance in all but one of 1.7 million trials, and that nobody else answered. A count is binomial with n trials
/// and probability 1/k, so that its variance is n/k * (1 - 1/k).
///
/// # Errors
/// The first endpoint in the order of the names that is off.
pub fn five_sigma(counts: &BTreeMap<String, u64>, endpoints: &[&str]) -> Result<(), Uneven> {
    if let Some(stranger) = counts.keys().find(|name| !endpoints.contains(&name.as_str())) {
        return Err(Uneven::Stranger(stranger.clone()));
    }
    let share = 1.0 / float(endpoints.len() as u64);
    let expected = float(counts.values().sum()) * share;
    let tolerance = 5.0 * (expected * (1.0 - share)).sqrt();
    for name in endpoints {
        let count = counts.get(*name).copied().unwrap_or(0);
        if (float(count) - expected).abs() > tolerance {
            return Err(Uneven::Count { name: (*name).to_owned(), count, expected, tolerance });
        }
    }
    Ok(())
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Reads up to and including the first line feed, so that it works with servers that close and with those that don't.
fn read_line(mut stream: &TcpStream, timeout: Duration) -> Result<Reply, ConnectFailure> {
    let mut line = Vec::new();
    stream.set_read_timeout(Some(timeout)).map_err(ConnectFailure::classify)?;
    while !line.ends_with(b"\n") {
        let mut buffer = [0; 512];
        match stream.read(&mut buffer).map_err(ConnectFailure::classify)? {
            0 => return Err(ConnectFailure::Other(io::ErrorKind::UnexpectedEof.into())),
            length => line.extend_from_slice(&buffer[..length]),
        }
    }
    String::from_utf8_lossy(&line).parse()
}

/// A blocking connect from a chosen port.
fn connect_from(source_port: u16, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let limit =
        TimeVal::new(timeout.as_secs().try_into().unwrap_or(i64::MAX), timeout.subsec_micros().into());
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    let source = SocketAddr::new(unspecified(addr), source_port);
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    Ok(TcpStream::from(fd))
}

/// Makes a connected UDP socket report every ICMP error about its flow. Otherwise Linux keeps those to itself that it
/// deems passing, such as "network unreachable" (`icmp_err_convert` in net/ipv4/icmp.c), and a rejection looks like a
/// drop.
fn report_icmp_errors(socket: &impl AsFd, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// "Any address" of the same family.
fn unspecified(addr: SocketAddr) -> IpAddr {
    if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_from_its_line() {
        let reply: Reply = "name=pod0 client=10.0.0.1:5 server=[fd00::1]:80\n".parse().unwrap();
        assert_eq!(reply.name, "pod0");
        assert_eq!(reply.client, "10.0.0.1:5".parse().unwrap());
        assert_eq!(reply.server, "[fd00::1]:80".parse().unwrap());
        for wrong in ["", "name=x", "name=x client=10.0.0.1 server=[fd00::1]:80"] {
            assert_eq!(wrong.parse::<Reply>().unwrap_err().class(), FailureClass::Other, "{wrong}");
        }
    }

    #[test]
    fn five_sigma_tells_even_from_uneven() {
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        // 1000 trials among two: the standard deviation is 15.8, five are 79.06.
        assert_eq!(five_sigma(&counts(&[("a", 579), ("b", 421)]), &["a", "b"]), Ok(()));
        assert!(matches!(
            five_sigma(&counts(&[("a", 580), ("b", 420)]), &["a", "b"]),
            Err(Uneven::Count { count: 580, .. })
        ));
        assert!(matches!(
            five_sigma(&counts(&[("a", 1000)]), &["a", "b"]),
            Err(Uneven::Count { count: 1000, .. })
        ));
        assert_eq!(five_sigma(&counts(&[("a", 1), ("c", 1)]), &["a"]), Err(Uneven::Stranger("c".to_owned())));
        assert_eq!(five_sigma(&counts(&[("a", 7)]), &["a"]), Ok(()));
    }

    #[test]
    fn errors_are_classified_by_their_number() {
        let class = |errno: Errno| ConnectFailure::classify(errno.into()).class();
        assert_eq!(class(Errno::ECONNREFUSED), FailureClass::Refused);
        assert_eq!(class(Errno::EHOSTUNREACH), FailureClass::Unreachable);
        assert_eq!(class(Errno::ENETUNREACH), FailureClass::Unreachable);
        assert_eq!(class(Errno::EACCES), FailureClass::Unreachable);
        assert_eq!(class(Errno::ECONNRESET), FailureClass::Reset);
        assert_eq!(class(Errno::EAGAIN), FailureClass::TimedOut);
        assert_eq!(class(Errno::EPERM), FailureClass::Other);
    }
}
