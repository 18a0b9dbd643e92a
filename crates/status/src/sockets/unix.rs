//! What sockets are on Unix: those of the file system, and a switch of the others.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use nix::libc::{
    EADDRNOTAVAIL, EAFNOSUPPORT, EBADF, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, EOPNOTSUPP,
};
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::serve::Listener;

/// There is no such family of addresses.
pub(crate) const FAMILY_MISSING: [i32; 2] = [EAFNOSUPPORT, EADDRNOTAVAIL];
/// Too many connections for the process or the system.
pub(crate) const SHORTAGE: [i32; 4] = [EMFILE, ENFILE, ENOBUFS, ENOMEM];
/// The listener itself is of no more use.
pub(crate) const LISTENER_UNUSABLE: [i32; 4] = [EBADF, EINVAL, ENOTSOCK, EOPNOTSUPP];

/// Lets a restart listen where connections of the last run have not quite ended.
pub(crate) fn survive_last_run(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Stops to listen, so that somebody else can listen there at once. To drop the socket is not enough: a process that is being
/// started has a copy of it until it runs its own program.
pub(crate) fn stop(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).shutdown(Shutdown::Both)
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
