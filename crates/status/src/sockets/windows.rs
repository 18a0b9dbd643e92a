//! What sockets are on Windows. It has those of the file system, but no library offers them to the runtime.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use socket2::Socket;
use tokio::net::TcpListener;
use windows_sys::Win32::Networking::WinSock::{
    WSAEADDRNOTAVAIL, WSAEAFNOSUPPORT, WSAEBADF, WSAEINVAL, WSAEMFILE, WSAENOBUFS, WSAENOTSOCK, WSAEOPNOTSUPP,
};

use crate::serve::Listener;

/// There is no such family of addresses.
pub(crate) const FAMILY_MISSING: [i32; 2] = [WSAEAFNOSUPPORT, WSAEADDRNOTAVAIL];
/// Too many connections for the process or the system.
pub(crate) const SHORTAGE: [i32; 2] = [WSAEMFILE, WSAENOBUFS];
/// The listener itself is of no more use.
pub(crate) const LISTENER_UNUSABLE: [i32; 4] = [WSAEBADF, WSAEINVAL, WSAENOTSOCK, WSAEOPNOTSUPP];

/// Nothing is needed for a restart; the switch of that name would let others take over the port.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it may fail")]
pub(crate) fn survive_last_run(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// Who stops to listen drops the socket, of which no other process has a copy.
#[expect(clippy::unnecessary_wraps, reason = "elsewhere it may fail")]
pub(crate) fn stop(_listener: &TcpListener) -> io::Result<()> {
    Ok(())
}

/// None.
pub(crate) struct NoListener(Infallible);

impl Listener for NoListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<tokio::net::TcpStream> {
        match self.0 {}
    }
}

/// Refuses, which the configuration does before.
pub(crate) fn bind_socket(_path: &Path) -> io::Result<NoListener> {
    Err(io::ErrorKind::Unsupported.into())
}
