//! Listening sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

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

/// Listens on a socket of the file system that its owner alone may open. One that a former process left is replaced; one that
/// somebody serves is not, and neither is a file of another kind.
pub(crate) fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path)
        && found.file_type().is_socket()
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    // Nobody may open it before its permissions are right, so it gets its name only then.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Stops to listen, so that somebody else can listen there at once. To drop the socket is not enough: a process that is being
/// started has a copy of it until it runs its own program.
pub(crate) fn stop(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).shutdown(Shutdown::Both)
}

fn is_family_missing(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
    matches!(errno, Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL))
}

fn listen(address: SocketAddr, dual_stack: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual_stack)?;
    }
    // A restart must not wait for connections of the last run.
    socket.set_reuse_address(true)?;
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
    async fn a_socket_is_its_owners_alone_and_replaces_only_what_nobody_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kube-proxy.sock");
        let first = bind_socket(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind_socket(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _second = bind_socket(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["kube-proxy.sock"]);
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let first = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let error = bind(first.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
