//! Linux' addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (`linux/rtnetlink.h`).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// All addresses of all interfaces, with port 0 and, for link-local ones, the interface as scope.
pub(crate) fn local_addresses() -> io::Result<BTreeSet<SocketAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|addr| SocketAddr::new(addr.ip().into(), 0));
        let v6 = || {
            let addr = storage.as_sockaddr_in6()?;
            Some(SocketAddrV6::new(addr.ip(), 0, 0, addr.scope_id()).into())
        };
        v4.or_else(v6)
    };
    Ok(interfaces.filter_map(|interface| interface.address).filter_map(address).collect())
}

/// Tells when addresses come and go.
pub(crate) struct AddressWatch {
    /// A netlink socket. Receiving is the same system call for all sockets that keep messages apart, and this is the type by
    /// which the runtime offers it.
    socket: UnixDatagram,
}

impl AddressWatch {
    /// Watches from now on.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        Ok(Self { socket: UnixDatagram::from_std(socket.into())? })
    }

    /// Returns when addresses may have changed. What has come is taken in together.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        // Whatever it says, the addresses are read anew; the kernel cuts what does not fit.
        let mut buffer = [0; 64];
        let mut received = self.socket.recv(&mut buffer).await;
        loop {
            match received {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // There was too much to keep: something has changed.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(error) => return Err(error),
            }
            received = self.socket.try_recv(&mut buffer);
        }
    }
}
