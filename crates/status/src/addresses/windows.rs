//! Windows' addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use network_interface::{NetworkInterface, NetworkInterfaceConfig as _};

/// How often addresses are looked at.
const POLL: Duration = Duration::from_secs(10);

/// All addresses of all interfaces, with port 0 and, for link-local ones, the interface as scope.
pub(crate) fn local_addresses() -> io::Result<BTreeSet<SocketAddr>> {
    let interfaces = NetworkInterface::show().map_err(io::Error::other)?;
    let addresses = |found: NetworkInterface| {
        let index = found.index;
        found.addr.into_iter().map(move |address| with_scope(address.ip(), index))
    };
    Ok(interfaces.into_iter().flat_map(addresses).collect())
}

fn with_scope(ip: IpAddr, interface: u32) -> SocketAddr {
    match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, 0, 0, interface).into(),
        ip => SocketAddr::new(ip, 0),
    }
}

/// Tells when addresses come and go, by looking again and again.
pub(crate) struct AddressWatch;

impl AddressWatch {
    /// Watches from now on.
    #[expect(clippy::unnecessary_wraps, reason = "on other systems a socket is needed")]
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self)
    }

    /// Returns when addresses may have changed.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}
