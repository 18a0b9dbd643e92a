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

/// The base chains that choose endpoints, in our tables and in upstream's.
pub fn choosing_chains() -> [Name; 2] {
    ["nat-prerouting", "nat-output"].map(Name::from_static)
}

/// The netfilter family of a table for `F`.
pub fn nft_family<F: Family>() -> nft::Family {
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

/// How packets come to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Way {
    /// Whose flows.
    pub(crate) scope: Scope,
    /// By node port, else by virtual address.
    pub(crate) node_port: bool,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [
        Self { scope: Scope::Everywhere, node_port: false },
        Self { scope: Scope::Everywhere, node_port: true },
        Self { scope: Scope::Inside, node_port: false },
        Self { scope: Scope::Inside, node_port: true },
    ];

    pub(crate) fn new<F: Family>(scope: Scope, address: FrontendAddress<F>) -> Self {
        Self { scope, node_port: address == FrontendAddress::Node }
    }

    /// `by_ip` or `by_port`, with the scope before it.
    fn name(self, by_ip: &str, by_port: &str) -> String {
        let name = if self.node_port { by_port } else { by_ip };
        match self.scope {
            Scope::Everywhere => name.to_owned(),
            Scope::Inside => format!("inside-{name}"),
        }
    }

    /// The key of a frontend: address . protocol . port, or protocol . port.
    pub(crate) fn key(self) -> Vec<Field> {
        if self.node_port { port_key() } else { ip_key() }
    }
}

/// Our sets and maps. The order is that of declaration, and of their changes in a transaction: what is referred to comes
/// before the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Map {
    /// frontend . slot → endpoint.
    Slots(Way),
    /// frontend . number → endpoint, for frontends with affinity: those that serve.
    AffinityEndpoints(Way),
    /// frontend . slot → number of the endpoint in it, for frontends with affinity.
    AffinitySlots(Way),
    /// client . frontend → number of the endpoint that the client was given. Written by rules. Whether by node port.
    Affinity(bool),
    /// source . destination of flows that an endpoint on this node opens to itself through a Service.
    Hairpin,
    /// address . protocol . port . source network.
    AllowedSources,
    /// Addresses, protocols and ports that only `AllowedSources` may use.
    Restricted,
    /// Cluster IPs in use: what is sent to another of their ports is refused.
    ClusterIps,
    /// number → chain that balances.
    Chains(Way),
    /// frontend → number of the chain that balances its packets.
    ///
    /// Not the chain itself: for each new verdict the kernel checks all verdicts of the table, which would make a change of
    /// one Service dearer with every other Service (`nft_chain_validate`). Numbers are data, which cost nothing.
    Dispatch(Way),
    /// Frontends without any endpoint, which are refused. Whether by node port.
    Rejected(bool),
    /// Frontends whose endpoints are all elsewhere, whose packets are dropped. Whether by node port.
    Dropped(bool),
}

/// `numgen random mod N` in the declarations of the slot maps: only a label for the slot's type, since the N of a packet
/// is that of the chain it passes.
const SLOT: Field = Field::NumgenRandom { modulus: 65536 };

/// Clients that are remembered at once, for each of the two maps. Beyond, new clients are served without being remembered.
const MAX_AFFINITIES: u32 = 1 << 18;

impl Map {
    /// All of them, in order.
    pub(crate) fn all() -> Vec<Self> {
        let by_way = |map: fn(Way) -> Self| Way::ALL.map(map);
        let twice = |map: fn(bool) -> Self| [map(false), map(true)];
        [
            &by_way(Self::Slots)[..],
            &by_way(Self::AffinityEndpoints),
            &by_way(Self::AffinitySlots),
            &twice(Self::Affinity),
            &[Self::Hairpin, Self::AllowedSources, Self::Restricted, Self::ClusterIps],
            &by_way(Self::Chains),
            &by_way(Self::Dispatch),
            &twice(Self::Rejected),
            &twice(Self::Dropped),
        ]
        .concat()
    }

    pub(crate) fn name(self) -> Name {
        let either =
            |node_port: bool, by_ip: &str, by_port: &str| if node_port { by_port } else { by_ip }.to_owned();
        let name = match self {
            Self::Slots(way) => way.name("endpoints", "nodeport-endpoints"),
            Self::AffinityEndpoints(way) => way.name("affinity-endpoints", "nodeport-affinity-endpoints"),
            Self::AffinitySlots(way) => way.name("affinity-slots", "nodeport-affinity-slots"),
            Self::Affinity(node_port) => either(node_port, "affinity", "nodeport-affinity"),
            Self::Hairpin => "hairpin-connections".into(),
            Self::AllowedSources => "allowed-sources".into(),
            Self::Restricted => "source-restricted-services".into(),
            Self::ClusterIps => "cluster-ips".into(),
            Self::Chains(way) => way.name("service-chains", "nodeport-chains"),
            Self::Dispatch(way) => way.name("service-ips", "service-nodeports"),
            Self::Rejected(node_port) => either(node_port, "no-endpoint-services", "no-endpoint-nodeports"),
            Self::Dropped(node_port) => {
                either(node_port, "no-local-endpoint-services", "no-local-endpoint-nodeports")
            }
        };
        Name::new(&name).expect("a short name of letters and dashes")
    }

    pub(crate) fn set(self) -> Arc<Set> {
        let name = self.name();
        let endpoint = || SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
        let with = |key: Vec<Field>, field| [key, vec![field]].concat();
        Arc::new(match self {
            Self::Slots(way) => Set::new(name, with(way.key(), SLOT), endpoint()),
            Self::AffinityEndpoints(way) => Set::new(name, with(way.key(), Field::Priority), endpoint()),
            Self::AffinitySlots(way) => {
                Set::new(name, with(way.key(), SLOT), SetData::Fields(vec![Field::Priority]))
            }
            Self::Affinity(node_port) => {
                Set::learnt(name, client_key(node_port), vec![Field::Priority], MAX_AFFINITIES)
            }
            Self::Hairpin => Set::new(name, hairpin_key(), SetData::None),
            Self::AllowedSources => Set::networks(name, source_key()),
            Self::Restricted => Set::new(name, ip_key(), SetData::None),
            Self::ClusterIps => Set::new(name, vec![Field::DestAddr], SetData::None),
            Self::Chains(_) => Set::new(name, vec![Field::Priority], SetData::Verdict),
            Self::Dispatch(way) => Set::new(name, way.key(), SetData::Fields(vec![Field::Priority])),
            Self::Rejected(node_port) | Self::Dropped(node_port) => {
                let way = Way { scope: Scope::Everywhere, node_port };
                Set::new(name, way.key(), SetData::None)
            }
        })
    }
}

/// How a client of a frontend is looked up.
pub(crate) fn client_key(node_port: bool) -> Vec<Field> {
    let way = Way { scope: Scope::Everywhere, node_port };
    [vec![Field::SourceAddr], way.key()].concat()
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

/// Reads back what is held for a frontend under a number: a slot's, or that of an endpoint with affinity. `None` if
/// somebody else wrote it.
pub(crate) fn parse_numbered<F: Family>(way: Way, key: &Bytes) -> Option<(FrontendKey<F>, u32)> {
    let mut fields = key.reader();
    let address = if way.node_port {
        FrontendAddress::Node
    } else {
        FrontendAddress::Ip(F::narrow(fields.addr(nft_family::<F>())?)?)
    };
    let protocol = Protocol::from_number(fields.proto()?)?;
    Some((FrontendKey { address, protocol, port: fields.port()? }, fields.index()?))
}

/// Reads an endpoint back.
pub(crate) fn parse_socket<F: Family>(data: &Bytes) -> Option<Socket<F>> {
    let mut fields = data.reader();
    Some((F::narrow(fields.addr(nft_family::<F>())?)?, fields.port()?))
}
