//! The addresses of this network namespace, and when they change.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use ipnet::IpNet;
use model::IpFamily;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (`linux/rtnetlink.h`).
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Where to listen in a family: on the unspecified address if a range holds everything, else on each local address that is in
/// a range.
pub(crate) fn listen_addresses(
    family: IpFamily,
    ranges: &[IpNet],
    local: &BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    let own: Vec<&IpNet> = ranges.iter().filter(|range| IpFamily::of(range.addr()) == family).collect();
    if own.iter().any(|range| range.prefix_len() == 0) {
        let any: IpAddr = match family {
            IpFamily::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        return [SocketAddr::new(any, 0)].into();
    }
    local.iter().filter(|addr| own.iter().any(|range| range.contains(&addr.ip()))).copied().collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(family: IpFamily, ranges: &[&str], expected: &[&str]) {
        let local = ["127.0.0.1:0", "192.168.0.7:0", "10.1.0.7:0", "[::1]:0", "[fd00::7]:0"];
        let local = local.map(|addr| addr.parse().unwrap()).into();
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let found: Vec<String> =
            listen_addresses(family, &ranges, &local).iter().map(|addr| addr.ip().to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_choose_among_local_addresses() {
        check(IpFamily::V4, &["192.168.0.0/24", "10.0.0.0/8", "fd00::/64"], &["10.1.0.7", "192.168.0.7"]);
        check(IpFamily::V6, &["192.168.0.0/24", "fd00::7/128"], &["fd00::7"]);
        check(IpFamily::V4, &["172.16.0.0/12"], &[]);
        check(IpFamily::V4, &[], &[]);
    }

    #[test]
    fn everything_is_one_address() {
        check(IpFamily::V4, &["10.0.0.0/8", "0.0.0.0/0"], &["0.0.0.0"]);
        check(IpFamily::V6, &["::/0"], &["::"]);
        check(IpFamily::V6, &["0.0.0.0/0"], &[]);
    }

    #[test]
    fn loopback_is_an_address() {
        assert!(local_addresses().unwrap().contains(&"127.0.0.1:0".parse().unwrap()));
    }
}
