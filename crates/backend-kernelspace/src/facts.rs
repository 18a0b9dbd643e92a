//! What HNS and the network are.

use std::net::IpAddr;

use hcn::{Guid, Mac, Network, Version, network_type};
use ipnet::IpNet;
use model::Family;

/// How the network carries packets to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// As they are: `L2Bridge` and `L2Tunnel`.
    Bridge,
    /// Encapsulated: `Overlay`.
    Overlay,
}

impl NetworkKind {
    /// That of a network; `None`: one that this program can't serve.
    pub fn of(network: &Network) -> Option<Self> {
        if network.is(network_type::OVERLAY) {
            Some(Self::Overlay)
        } else if network.is(network_type::L2_BRIDGE) || network.is(network_type::L2_TUNNEL) {
            Some(Self::Bridge)
        } else {
            None
        }
    }
}

/// What load balancers depend on besides frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts<F: Family> {
    /// Of HNS.
    pub version: Version,
    /// Our network.
    pub network: Guid,
    /// Its kind.
    pub kind: NetworkKind,
    /// Its own subnets on this node.
    pub subnets: Vec<IpNet>,
    /// Subnets of other nodes and the addresses of these, on an overlay.
    pub remote_subnets: Vec<(IpNet, IpAddr)>,
    /// The node's address.
    pub node: Option<F::Addr>,
    /// The hardware address of the adapter that has it.
    pub node_mac: Option<Mac>,
    /// The source VIP that is configured, or was found by the names that network plug-ins give it.
    pub source_vip: Option<F::Addr>,
    /// The endpoint that answers health checks of load balancers.
    pub root_endpoint: Option<Guid>,
}

impl<F: Family> Facts<F> {
    /// Whether packets to other nodes are encapsulated.
    pub fn is_overlay(&self) -> bool {
        self.kind == NetworkKind::Overlay
    }

    /// Direct server return is wanted where it can be had.
    pub fn dsr(&self, wanted: bool) -> bool {
        wanted && self.version.has_dsr()
    }

    /// Whether it is the node's own: that of a pod on the node's network.
    pub fn is_node(&self, address: F::Addr) -> bool {
        self.node == Some(address)
    }

    /// The node that has a remote endpoint, on an overlay: that of its subnet, else this one, which knows the way.
    pub fn provider(&self, address: F::Addr) -> Option<IpAddr> {
        if !self.is_overlay() {
            return None;
        }
        self.remote_provider(address).or_else(|| self.node.map(Into::into))
    }

    fn remote_provider(&self, address: F::Addr) -> Option<IpAddr> {
        let address = address.into();
        let subnet = self.remote_subnets.iter().find(|(subnet, _)| subnet.contains(&address));
        subnet.map(|(_, provider)| *provider)
    }

    /// Whether an endpoint is beneath the overlay: a node's own address, or one in no subnet that is known.
    fn is_beneath(&self, address: F::Addr) -> bool {
        let own = |subnet: &IpNet| subnet.contains(&address.into());
        self.remote_provider(address).is_none() && !self.subnets.iter().any(own)
    }

    /// The address that flows to these endpoints get as their source where that is rewritten; `None`: HNS chooses.
    ///
    /// On an overlay endpoints beneath it can answer only the node itself. Elsewhere without a source VIP flows of a pod to itself
    /// would go in circles on Windows Server 2019 (<https://github.com/kubernetes/community/issues/8890>).
    pub fn source_vip(&self, endpoints: &[F::Addr]) -> Option<F::Addr> {
        if self.is_overlay() && endpoints.iter().any(|address| self.is_beneath(*address)) {
            return self.node.or(self.source_vip);
        }
        if self.is_overlay() { self.source_vip } else { self.source_vip.or(self.node) }
    }
}
