//! Names and declarations of our table's sets and maps, and the layout of their keys and data.

use std::sync::Arc;

use ipnet::IpNet;
use model::{Destination, Family, FrontendAddress, FrontendKey, IpFamily, Protocol};
use nft::{Bytes, Field, Name, Set, SetData};

/// The table that is ours, in `ip` and in `ip6`: the name that upstream uses, which its clean-up and other software
/// look for.
pub fn table_name() -> Name {
    Name::from_static("kube-proxy")
}

/// The netfilter family of a table for `F`.
pub(crate) fn nft_family<F: Family>() -> nft::Family {
    match F::FAMILY {
        IpFamily::V4 => nft::Family::Ip,
        IpFamily::V6 => nft::Family::Ip6,
    }
}

/// Whose flows: `externalTrafficPolicy: Local` has pods and the node itself take a short cut to all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// Flows from anywhere.
    Everywhere,
    /// Flows from pods and from the node itself, where they are treated differently.
    Inside,
}

impl Scope {
    pub(crate) const ALL: [Self; 2] = [Self::Everywhere, Self::Inside];
}

/// Our sets and maps. The order is that of declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Map {
    /// address . protocol . port → chain that balances.
    ServiceIps,
    /// protocol . port → chain that balances.
    ServiceNodePorts,
    /// As `ServiceIps`, for flows from inside that take the short cut.
    InsideServiceIps,
    /// As `ServiceNodePorts`, for flows from inside that take the short cut.
    InsideServiceNodePorts,
    /// address . protocol . port . slot → endpoint.
    Endpoints,
    /// protocol . port . slot → endpoint.
    NodePortEndpoints,
    /// As `Endpoints`, for the short cut.
    InsideEndpoints,
    /// As `NodePortEndpoints`, for the short cut.
    InsideNodePortEndpoints,
    /// address . protocol . port → refusal.
    NoEndpointServices,
    /// protocol . port → refusal.
    NoEndpointNodePorts,
    /// Addresses, protocols and ports that only `AllowedSources` may use.
    Restricted,
    /// address . protocol . port . source network.
    AllowedSources,
    /// Cluster IPs in use: what is sent to another of their ports is refused.
    ClusterIps,
    /// source . destination of flows that an endpoint on this node opens to itself through a Service.
    Hairpin,
}

/// `numgen random mod N` in the declarations of the slot maps: only a label for the slot's type, since the N of a packet
/// is that of the chain it passes.
const SLOT: Field = Field::NumgenRandom { modulus: 65536 };

impl Map {
    pub(crate) const ALL: [Self; 14] = [
        Self::ServiceIps,
        Self::ServiceNodePorts,
        Self::InsideServiceIps,
        Self::InsideServiceNodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::InsideEndpoints,
        Self::InsideNodePortEndpoints,
        Self::NoEndpointServices,
        Self::NoEndpointNodePorts,
        Self::Restricted,
        Self::AllowedSources,
        Self::ClusterIps,
        Self::Hairpin,
    ];

    /// The map that sends packets to a chain that balances.
    pub(crate) fn dispatch<F: Family>(scope: Scope, address: FrontendAddress<F>) -> Self {
        match (scope, address) {
            (Scope::Everywhere, FrontendAddress::Ip(_)) => Self::ServiceIps,
            (Scope::Everywhere, FrontendAddress::Node) => Self::ServiceNodePorts,
            (Scope::Inside, FrontendAddress::Ip(_)) => Self::InsideServiceIps,
            (Scope::Inside, FrontendAddress::Node) => Self::InsideServiceNodePorts,
        }
    }

    /// The map that holds the slots.
    pub(crate) fn slots<F: Family>(scope: Scope, address: FrontendAddress<F>) -> Self {
        Self::slots_for(scope, address == FrontendAddress::Node)
    }

    pub(crate) fn slots_for(scope: Scope, node_port: bool) -> Self {
        match (scope, node_port) {
            (Scope::Everywhere, false) => Self::Endpoints,
            (Scope::Everywhere, true) => Self::NodePortEndpoints,
            (Scope::Inside, false) => Self::InsideEndpoints,
            (Scope::Inside, true) => Self::InsideNodePortEndpoints,
        }
    }

    /// The map that refuses.
    pub(crate) fn refusal<F: Family>(address: FrontendAddress<F>) -> Self {
        match address {
            FrontendAddress::Ip(_) => Self::NoEndpointServices,
            FrontendAddress::Node => Self::NoEndpointNodePorts,
        }
    }

    /// Whether its elements decide about packets: they come after, and go before, what they need.
    pub(crate) fn is_dispatch(self) -> bool {
        match self {
            Self::Endpoints
            | Self::NodePortEndpoints
            | Self::InsideEndpoints
            | Self::InsideNodePortEndpoints
            | Self::AllowedSources
            | Self::Hairpin => false,
            Self::ServiceIps
            | Self::ServiceNodePorts
            | Self::InsideServiceIps
            | Self::InsideServiceNodePorts
            | Self::NoEndpointServices
            | Self::NoEndpointNodePorts
            | Self::Restricted
            | Self::ClusterIps => true,
        }
    }

    pub(crate) fn name(self) -> Name {
        Name::from_static(match self {
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::InsideServiceIps => "inside-service-ips",
            Self::InsideServiceNodePorts => "inside-service-nodeports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::InsideEndpoints => "inside-endpoints",
            Self::InsideNodePortEndpoints => "inside-nodeport-endpoints",
            Self::NoEndpointServices => "no-endpoint-services",
            Self::NoEndpointNodePorts => "no-endpoint-nodeports",
            Self::Restricted => "source-restricted-services",
            Self::AllowedSources => "allowed-sources",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin-connections",
        })
    }

    pub(crate) fn set(self) -> Arc<Set> {
        let slot = |key: Vec<Field>| [key, vec![SLOT]].concat();
        let endpoint = || SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
        let (key, data) = match self {
            Self::AllowedSources => return Arc::new(Set::networks(self.name(), source_key())),
            Self::ServiceIps | Self::InsideServiceIps | Self::NoEndpointServices => {
                (ip_key(), SetData::Verdict)
            }
            Self::ServiceNodePorts | Self::InsideServiceNodePorts | Self::NoEndpointNodePorts => {
                (port_key(), SetData::Verdict)
            }
            Self::Endpoints | Self::InsideEndpoints => (slot(ip_key()), endpoint()),
            Self::NodePortEndpoints | Self::InsideNodePortEndpoints => (slot(port_key()), endpoint()),
            Self::Restricted => (ip_key(), SetData::None),
            Self::ClusterIps => (vec![Field::DestAddr], SetData::None),
            Self::Hairpin => (hairpin_key(), SetData::None),
        };
        Arc::new(Set::new(self.name(), key, data))
    }
}

/// How a packet to a virtual address is looked up.
pub(crate) fn ip_key() -> Vec<Field> {
    vec![Field::DestAddr, Field::L4Proto, Field::DestPort]
}

/// How a packet to a virtual address is looked up together with its sender.
pub(crate) fn source_key() -> Vec<Field> {
    [ip_key(), vec![Field::SourceAddr]].concat()
}

/// How a packet to a node port is looked up.
pub(crate) fn port_key() -> Vec<Field> {
    vec![Field::L4Proto, Field::DestPort]
}

/// How a flow back to its sender is looked up, after its destination was rewritten.
pub(crate) fn hairpin_key() -> Vec<Field> {
    vec![Field::SourceAddr, Field::DestAddr]
}

/// The key of a frontend in its dispatch map.
pub(crate) fn frontend_bytes<F: Family>(key: &FrontendKey<F>) -> Bytes {
    let bytes = match key.address {
        FrontendAddress::Ip(addr) => Bytes::new().addr(addr.into()),
        FrontendAddress::Node => Bytes::new(),
    };
    bytes.proto(key.protocol.number()).port(key.port)
}

/// A network that may use a frontend, as set key.
pub(crate) fn source_bytes<F: Family>(key: &FrontendKey<F>, range: &IpNet) -> Bytes {
    frontend_bytes(key).net(range.addr(), range.prefix_len())
}

/// The key of one of a frontend's slots.
pub(crate) fn slot_bytes<F: Family>(key: &FrontendKey<F>, index: u32) -> Bytes {
    frontend_bytes(key).index(index)
}

/// An endpoint as map data.
pub(crate) fn destination_bytes<F: Family>(destination: &Destination<F>) -> Bytes {
    Bytes::new().addr(destination.address.into()).port(destination.port)
}

/// A cluster IP, as set key.
pub(crate) fn address_bytes<F: Family>(addr: F::Addr) -> Bytes {
    Bytes::new().addr(addr.into())
}

/// An endpoint that hairpins, as set key.
pub(crate) fn hairpin_bytes<F: Family>(addr: F::Addr) -> Bytes {
    Bytes::new().addr(addr.into()).addr(addr.into())
}

/// An endpoint's address and port.
pub(crate) type Socket<F> = (<F as Family>::Addr, u16);

/// Reads a slot back: the frontend, the slot's number and the endpoint in it. `None` if somebody else wrote it.
pub(crate) fn parse_slot<F: Family>(
    map: Map,
    key: &Bytes,
    data: &Bytes,
) -> Option<(FrontendKey<F>, u32, Socket<F>)> {
    let family = nft_family::<F>();
    let mut fields = key.reader();
    let address = match map {
        Map::Endpoints | Map::InsideEndpoints => FrontendAddress::Ip(F::narrow(fields.addr(family)?)?),
        _ => FrontendAddress::Node,
    };
    let protocol = Protocol::from_number(fields.proto()?)?;
    let key = FrontendKey { address, protocol, port: fields.port()? };
    let index = fields.index()?;
    let mut fields = data.reader();
    Some((key, index, (F::narrow(fields.addr(family)?)?, fields.port()?)))
}
