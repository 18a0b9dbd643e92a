//! Which virtual servers of IPVS are upstream's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipvs::{Flags, VirtualServer};

/// What tells upstream's virtual servers, and ours, from those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Addresses of upstream's device: cluster IPs and the like.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of the node's other devices, at which node ports are served.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Protocols and numbers of node ports.
    pub node_ports: BTreeSet<(u8, u16)>,
}

impl Own {
    /// Whether the virtual server is upstream's or ours.
    pub fn has(&self, server: &VirtualServer) -> bool {
        let id = &server.id;
        let is_node_port = self.node_ports.contains(&(id.protocol, id.port));
        server.flags.contains(Flags::OWN)
            || self.addresses.contains(&id.address)
            || is_node_port && self.node_addresses.contains(&id.address)
    }
}

#[cfg(test)]
mod tests {
    use ipvs::{Scheduler, ServerId};

    use super::*;

    #[test]
    fn servers_are_upstreams_by_address_or_as_node_ports() {
        let address = |last| IpAddr::from([192, 168, 0, last]);
        let own = Own {
            addresses: [address(1)].into(),
            node_addresses: [address(2)].into(),
            node_ports: [(6, 30080)].into(),
        };
        let server = |last, port, protocol| VirtualServer {
            id: ServerId { address: address(last), port, protocol },
            scheduler: Scheduler::ROUND_ROBIN,
            flags: Flags::default(),
            persistence: None,
        };
        assert!(own.has(&server(1, 443, 6)) && own.has(&server(1, 53, 17)) && own.has(&server(2, 30080, 6)));
        for other in [server(2, 443, 6), server(2, 30080, 17), server(3, 30080, 6), server(3, 443, 6)] {
            assert!(!own.has(&other), "{other:?}");
            assert!(own.has(&VirtualServer { flags: Flags::OWN, ..other }), "ours wherever it is");
        }
    }
}
