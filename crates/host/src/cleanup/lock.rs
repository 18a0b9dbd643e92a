//! The lock that keeps the tools of iptables-legacy from undoing each other's work: they read a table, change it and write
//! it back.

use std::fs::{File, OpenOptions};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::thread;
use std::time::Duration;

use tracing::debug;

use super::CleanupError;
use crate::file::Root;

/// The lock of today's tools.
const FILE: &str = "run/xtables.lock";
/// The lock of tools before 1.6: whoever is bound to this abstract address.
const ADDRESS: &str = "xtables";

/// How often and how long apart upstream tries: 2 s.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// Holds the lock.
#[derive(Debug)]
pub(super) struct XtablesLock {
    _file: Option<File>,
    _socket: Option<UnixListener>,
}

impl XtablesLock {
    /// Takes both locks, waiting up to two seconds for each.
    ///
    /// A lock that can't be had at all, because the file can't be opened or the system does not have such addresses, is done
    /// without: rules that direct packets to endpoints of long ago do more harm than the race, which lasts microseconds
    /// and is noticed unless the table keeps its number of rules.
    pub(super) fn take(root: &Root) -> Result<Self, CleanupError> {
        let path = root.path(FILE);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file =
            opened.inspect_err(|error| debug!(path = %path.display(), %error, "doing without the lock")).ok();
        if let Some(file) = &file {
            wait_for(|| match file.try_lock() {
                Err(std::fs::TryLockError::WouldBlock) => None,
                Ok(()) | Err(std::fs::TryLockError::Error(_)) => Some(()),
            })
            .ok_or_else(|| CleanupError::Locked { name: path.display().to_string() })?;
        }
        let socket = wait_for(|| match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => None,
            other => Some(other.ok()),
        });
        let socket = socket.ok_or_else(|| CleanupError::Locked { name: format!("@{ADDRESS}") })?;
        Ok(Self { _file: file, _socket: socket })
    }
}

fn bind() -> std::io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(ADDRESS)?)
}

fn wait_for<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 1..ATTEMPTS {
        if let Some(result) = attempt() {
            return Some(result);
        }
        thread::sleep(PAUSE);
    }
    attempt()
}
