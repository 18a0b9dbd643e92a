//! Listening sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::sockets;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on an address; the unspecified address of either family means both families where the system has both, as in
/// Go's network "tcp".
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen(address, false);
    }
    let any = |ip: IpAddr| SocketAddr::new(ip, address.port());
    match listen(any(Ipv6Addr::UNSPECIFIED.into()), true) {
        Err(error) if is_family_missing(&error) => listen(any(Ipv4Addr::UNSPECIFIED.into()), false),
        result => result,
    }
}

/// Listens on an address of one family, also if it is the unspecified one.
pub(crate) fn bind_family(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address, false)
}

fn is_family_missing(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| sockets::FAMILY_MISSING.contains(&code))
}

fn listen(address: SocketAddr, dual_stack: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    sockets::survive_last_run(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reaches(ip: IpAddr, port: u16) -> bool {
        std::net::TcpStream::connect((ip, port)).is_ok()
    }

    #[tokio::test]
    async fn the_unspecified_address_is_for_both_families() {
        for unspecified in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let listener = bind((unspecified, 0).into()).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert!(reaches(Ipv4Addr::LOCALHOST.into(), port));
            assert!(reaches(Ipv6Addr::LOCALHOST.into(), port));
        }
    }

    #[tokio::test]
    async fn one_family_leaves_the_other_alone() {
        let v6 = bind_family((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = v6.local_addr().unwrap().port();
        assert!(reaches(Ipv6Addr::LOCALHOST.into(), port) && !reaches(Ipv4Addr::LOCALHOST.into(), port));
        let _v4 = bind_family((Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
        assert!(reaches(Ipv4Addr::LOCALHOST.into(), port));
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let first = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let error = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
