//! Names and declarations of our table's sets and maps, and the layout of their keys and data.

use std::sync::Arc;

use ipnet::IpNet;
use model::{Balancer, Destination, Family, FrontendAddress, FrontendKey, Masquerade, Protocol};
use nft::{Bytes, DEFAULT_LEARNT_SIZE, Data, Element, Field, Name, Ruleset, Set, SetData};

use crate::lease::LEASE_SECS;
use crate::priority::PROXIED;

/// The table that is ours, in `ip` and in `ip6`: the name that upstream uses, which its clean-up and other software
/// look for.
pub fn table_name() -> Name {
    Name::from_static("kube-proxy")
}

/// The table that hands flows to proxies beside rules of others ([`Balancer::OtherRules`]). It is another one than [`table_name`], which others
/// take for one that serves.
pub fn workers_table_name() -> Name {
    Name::from_static("kube-proxy-workers")
}

/// Our table with this balancer.
pub(crate) fn table_of(balancer: &Balancer) -> Name {
    match balancer {
        Balancer::Rules | Balancer::Ipvs { .. } | Balancer::Proxies(_) => table_name(),
        Balancer::OtherRules(_) => workers_table_name(),
    }
}

/// The base chains that choose endpoints, in our tables and in upstream's.
pub fn choosing_chains() -> [Name; 2] {
    ["nat-prerouting", "nat-output"].map(Name::from_static)
}

/// Whether a table sends packets of Services to endpoints, whoever they are from, and does not leave that to IPVS.
pub fn chooses_endpoints(found: &Ruleset) -> bool {
    let maps = [false, true].map(|by_node_port| Map::Frontends(Traffic::Any, by_node_port).name());
    let leads_to_a_pool = |data: &Data| *data != Data::Value(Bytes::new().index(PROXIED));
    let mut elements = maps.iter().filter_map(|name| found.sets.get(name)).flat_map(|set| &set.elements);
    elements.any(|element| leads_to_a_pool(&element.data))
}

/// Whose flows a map is for: `externalTrafficPolicy: Local` has internal ones take a short cut to all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Traffic {
    /// From anywhere.
    Any,
    /// From pods and from the node itself, where they are treated differently.
    Internal,
}

impl Traffic {
    pub(crate) const ALL: [Self; 2] = [Self::Any, Self::Internal];
}

/// Our sets and maps that exist whatever Services there are. The order is that of declaration, and of their changes in a
/// transaction: what is referred to comes before the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Map {
    /// protocol . pool . slot → endpoint.
    Endpoints,
    /// protocol . endpoint's number and pool → endpoint, for pools with affinity: those that serve.
    AffinityEndpoints,
    /// protocol . pool . slot → number of the endpoint in it and pool, for pools with affinity.
    AffinitySlots,
    /// protocol → where a proxy of this node listens: written by whoever renews the [lease](crate::lease). Whose flows.
    Proxies(Traffic),
    /// source . destination of flows that an endpoint on this node opens to itself through a Service.
    Hairpin,
    /// address . protocol . port . source network.
    AllowedSources,
    /// The same as `Restricted`: packets of all others find it, so that its elements count them.
    SourceDropped,
    /// Addresses, protocols and ports that only `AllowedSources` may use.
    Restricted,
    /// Cluster IPs in use: what is sent to another of their ports is refused.
    ClusterIps,
    /// pool → chain of its own, for pools with affinity.
    AffinityChains,
    /// number of a chain → chain that chooses an endpoint.
    Chains,
    /// protocol . pool → how many endpoints it has, and in the comment whose it is. Not for packets: for people, and for
    /// whoever reads the table.
    Pools,
    /// frontend → what the packet's priority is to be ([`priority`](crate::priority)). Whose flows, and whether by node
    /// port.
    ///
    /// Not a verdict: for each new one the kernel checks all verdicts of the table, which would make a change of one Service
    /// dearer with every other Service (`nft_chain_validate`). Numbers are data, which cost nothing.
    Frontends(Traffic, bool),
    /// Frontends whose endpoints IPVS chooses, by whether they are masqueraded, and by whether they are node ports.
    Ipvs(IpvsMasquerade, bool),
    /// Addresses of virtual servers of IPVS: what is sent to another of their ports is refused.
    VirtualIps,
    /// Frontends without any endpoint, which are refused. Whether by node port.
    Rejected(bool),
    /// Frontends whose endpoints are all elsewhere, whose packets are dropped. Whether by node port.
    Dropped(bool),
}

/// [`Masquerade`], in the order of its sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IpvsMasquerade(pub(crate) Masquerade);

impl IpvsMasquerade {
    pub(crate) const ALL: [Self; 3] =
        [Self(Masquerade::UnlessFromPod), Self(Masquerade::Always), Self(Masquerade::Never)];
}

/// `numgen random mod N` in the declarations of maps: only a label for the slot's type, since the N of a packet is that of
/// the chain it passes.
const SLOT: Field = Field::NumgenRandom { modulus: 65536 };

impl Map {
    /// All that there are with this balancer, in order.
    pub(crate) fn all(balancer: &Balancer) -> Vec<Self> {
        let mut maps = Self::of_rules();
        match balancer {
            Balancer::Rules | Balancer::Proxies(_) => {}
            Balancer::OtherRules(_) => {
                maps.retain(|map| {
                    matches!(map, Self::Frontends(..) | Self::AllowedSources | Self::Restricted)
                });
            }
            Balancer::Ipvs { .. } => {
                let balanced = IpvsMasquerade::ALL.into_iter();
                maps.extend(balanced.flat_map(|when| [false, true].map(|by| Self::Ipvs(when, by))));
                maps.push(Self::VirtualIps);
            }
        }
        if balancer.proxied().is_some() {
            maps.extend(Traffic::ALL.map(Self::Proxies));
        }
        maps.sort_unstable();
        maps
    }

    /// Addresses whose other ports are refused.
    pub(crate) fn closed_ips(balancer: &Balancer) -> Self {
        match balancer {
            Balancer::Rules | Balancer::Proxies(_) | Balancer::OtherRules(_) => Self::ClusterIps,
            Balancer::Ipvs { .. } => Self::VirtualIps,
        }
    }

    fn of_rules() -> Vec<Self> {
        let either = [false, true];
        let frontends =
            Traffic::ALL.into_iter().flat_map(|traffic| either.map(|by| Self::Frontends(traffic, by)));
        [
            &[Self::Endpoints, Self::AffinityEndpoints, Self::AffinitySlots, Self::Hairpin][..],
            &[Self::AllowedSources, Self::SourceDropped, Self::Restricted, Self::ClusterIps],
            &[Self::AffinityChains, Self::Chains, Self::Pools],
            &frontends.collect::<Vec<_>>(),
            &either.map(Self::Rejected),
            &either.map(Self::Dropped),
        ]
        .concat()
    }

    pub(crate) fn name(self) -> Name {
        Name::from_static(match self {
            Self::Endpoints => "endpoints",
            Self::AffinityEndpoints => "affinity-endpoints",
            Self::AffinitySlots => "affinity-slots",
            Self::Proxies(Traffic::Any) => "proxies",
            Self::Proxies(Traffic::Internal) => "internal-proxies",
            Self::Hairpin => "hairpin-connections",
            Self::AllowedSources => "allowed-sources",
            Self::SourceDropped => "source-dropped-services",
            Self::Restricted => "source-restricted-services",
            Self::ClusterIps => "cluster-ips",
            Self::AffinityChains => "affinity-chains",
            Self::Chains => "service-chains",
            Self::Pools => "pools",
            Self::Frontends(Traffic::Any, false) => "service-ips",
            Self::Frontends(Traffic::Any, true) => "service-nodeports",
            Self::Frontends(Traffic::Internal, false) => "internal-service-ips",
            Self::Frontends(Traffic::Internal, true) => "internal-service-nodeports",
            Self::Ipvs(IpvsMasquerade(Masquerade::UnlessFromPod), false) => "ipvs-services",
            Self::Ipvs(IpvsMasquerade(Masquerade::UnlessFromPod), true) => "ipvs-nodeports",
            Self::Ipvs(IpvsMasquerade(Masquerade::Always), false) => "ipvs-services-masq",
            Self::Ipvs(IpvsMasquerade(Masquerade::Always), true) => "ipvs-nodeports-masq",
            Self::Ipvs(IpvsMasquerade(Masquerade::Never), false) => "ipvs-services-nomasq",
            Self::Ipvs(IpvsMasquerade(Masquerade::Never), true) => "ipvs-nodeports-nomasq",
            Self::VirtualIps => "virtual-ips",
            Self::Rejected(false) => "no-endpoint-services",
            Self::Rejected(true) => "no-endpoint-nodeports",
            Self::Dropped(false) => "no-local-endpoint-services",
            Self::Dropped(true) => "no-local-endpoint-nodeports",
        })
    }

    pub(crate) fn set(self) -> Arc<Set> {
        let endpoint = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
        let number = SetData::Fields(vec![Field::Priority]);
        let (key, data) = match self {
            Self::Endpoints => (slot_key(SLOT), endpoint),
            Self::AffinityEndpoints => (pool_key(), endpoint),
            Self::AffinitySlots => (slot_key(SLOT), number),
            Self::Proxies(_) => {
                let (key, data) = (proxy_key(), vec![Field::DestAddr, Field::DestPort]);
                return Arc::new(Set::leased(self.name(), key, data, LEASE_SECS));
            }
            Self::Hairpin => (hairpin_key(), SetData::None),
            Self::AllowedSources => return Arc::new(Set::networks(self.name(), source_key())),
            Self::SourceDropped | Self::Restricted => (ip_key(), SetData::None),
            Self::ClusterIps | Self::VirtualIps => (vec![Field::DestAddr], SetData::None),
            Self::AffinityChains | Self::Chains => (vec![Field::Priority], SetData::Verdict),
            Self::Pools => (pool_key(), SetData::Fields(vec![SLOT])),
            Self::Frontends(_, by_node_port) => (frontend_key(by_node_port), number),
            Self::Ipvs(_, by_node_port) | Self::Rejected(by_node_port) | Self::Dropped(by_node_port) => {
                (frontend_key(by_node_port), SetData::None)
            }
        };
        Arc::new(Set::new(self.name(), key, data))
    }

    /// The set or map as it is to be declared. Elements of some count what is theirs: new flows (only the first packet of a flow
    /// gets there), packets that are refused, and packets that are dropped. The counters are part of no rule and of no element, so
    /// nothing compares them.
    pub(crate) fn declared(self, counters: FlowCounters) -> Arc<Set> {
        let set = self.set();
        if self.is_counted(counters) { Arc::new(Arc::unwrap_or_clone(set).counted()) } else { set }
    }

    fn is_counted(self, counters: FlowCounters) -> bool {
        match self {
            Self::Endpoints | Self::AffinityEndpoints => counters == FlowCounters::OfEndpoints,
            Self::Frontends(..) => counters == FlowCounters::OfFrontends,
            Self::SourceDropped | Self::Rejected(_) | Self::Dropped(_) => true,
            _ => false,
        }
    }

    /// Those that are counted, whichever flow counters there are.
    pub(crate) const COUNTED: [Self; 11] = [
        Self::Endpoints,
        Self::AffinityEndpoints,
        Self::Frontends(Traffic::Any, false),
        Self::Frontends(Traffic::Any, true),
        Self::Frontends(Traffic::Internal, false),
        Self::Frontends(Traffic::Internal, true),
        Self::SourceDropped,
        Self::Rejected(false),
        Self::Rejected(true),
        Self::Dropped(false),
        Self::Dropped(true),
    ];
}

/// Whose elements count new flows. A counter takes the kernel memory for each processor, and a good part of the time in which an
/// element is loaded and read back; so a large table counts by Service alone.
///
/// Counters are part of a map's declaration, which can't be altered in place. So what a table was made with stays, however
/// many endpoints come and go: only a table that is written as a whole anyway has the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowCounters {
    /// Those of endpoints.
    OfEndpoints,
    /// Those of frontends: how a Service's flows are shared among its endpoints is not known.
    OfFrontends,
}

impl FlowCounters {
    /// Tables with more endpoints than this, those of all pools together, do not count by endpoint.
    const MOST_ENDPOINTS: usize = 10_000;

    /// What a table of so many endpoints is made with. Where proxies carry flows, which they count themselves, frontends see
    /// these as well.
    pub(crate) fn for_new(balancer: &Balancer, endpoints: usize) -> Self {
        if endpoints > Self::MOST_ENDPOINTS && Self::OfFrontends.suits(balancer) {
            Self::OfFrontends
        } else {
            Self::OfEndpoints
        }
    }

    /// Whether nothing would be counted twice.
    pub(crate) fn suits(self, balancer: &Balancer) -> bool {
        match (self, balancer) {
            (Self::OfEndpoints, _) | (Self::OfFrontends, Balancer::Rules | Balancer::Ipvs { .. }) => true,
            (Self::OfFrontends, Balancer::Proxies(_) | Balancer::OtherRules(_)) => false,
        }
    }

    /// What a table was made with, as far as that can be told from one map.
    pub(crate) fn of(found: &Ruleset) -> Option<Self> {
        let is_counted = |map: Map| found.sets.get(&map.name()).map(|state| state.set.is_counted);
        match (is_counted(Map::Endpoints), is_counted(Map::Frontends(Traffic::Any, false))) {
            (None, None) => None,
            (Some(false) | None, Some(true)) => Some(Self::OfFrontends),
            _ => Some(Self::OfEndpoints),
        }
    }
}

/// One element of one map.
pub(crate) struct MapElement {
    pub(crate) map: Map,
    pub(crate) element: Element,
}

impl MapElement {
    pub(crate) const fn new(map: Map, element: Element) -> Self {
        Self { map, element }
    }

    /// An element of a map to values.
    pub(crate) const fn value(map: Map, key: Bytes, data: Bytes) -> Self {
        Self::new(map, Element { key, data: Data::Value(data), comment: None })
    }

    /// An element of a set.
    pub(crate) const fn member(map: Map, key: Bytes) -> Self {
        Self::new(map, Element { key, data: Data::None, comment: None })
    }
}

/// A comment holds at most 128 bytes (`NFTNL_UDATA_COMMENT_MAXLEN`), names may be longer.
const MAX_COMMENT_BYTES: usize = 128;

/// A comment of a name, of which as much is kept as there is room for, and an end.
pub(crate) fn cut_comment(mut name: String, end: &str) -> Box<str> {
    while name.len() + end.len() > MAX_COMMENT_BYTES && name.pop().is_some() {}
    name.push_str(end);
    name.into()
}

/// The clients of a pool with affinity → number of the endpoint that each was given, and pool: written by rules. It has a
/// map of its own so that nothing is left when the pool goes, and no Service's clients take the room of another's.
pub(crate) fn clients(pool: u32, comment: &str) -> Arc<Set> {
    let (key, data) = (vec![Field::SourceAddr], vec![Field::Priority]);
    let set = Set::learnt(affinity_name(pool), key, data, DEFAULT_LEARNT_SIZE);
    Arc::new(Set { comment: Some(comment.into()), ..set })
}

/// The map of a pool's clients, and the chain that leads them back.
pub(crate) fn affinity_name(pool: u32) -> Name {
    Name::new(&format!("affinity-{pool}")).expect("a short name of letters, digits and a dash")
}

/// The pool whose clients a map of this name has.
pub(crate) fn parse_affinity_name(name: &str) -> Option<u32> {
    let pool = name.strip_prefix("affinity-")?.parse().ok()?;
    (*affinity_name(pool) == *name).then_some(pool)
}

/// How a frontend is looked up.
pub(crate) fn frontend_key(by_node_port: bool) -> Vec<Field> {
    if by_node_port { port_key() } else { ip_key() }
}

/// How a pool is looked up, or an endpoint of one, once the packet's priority has its number. The protocol tells nothing
/// new, but nft wants to hear of one before it accepts a translation of ports.
pub(crate) fn pool_key() -> Vec<Field> {
    vec![Field::L4Proto, Field::Priority]
}

/// How a pool's slot is looked up.
pub(crate) fn slot_key(slot: Field) -> Vec<Field> {
    vec![Field::L4Proto, Field::Priority, slot]
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

/// How the proxy of a protocol is looked up.
pub(crate) fn proxy_key() -> Vec<Field> {
    vec![Field::L4Proto]
}

/// How a flow back to its sender is looked up, after its destination was rewritten.
pub(crate) fn hairpin_key() -> Vec<Field> {
    vec![Field::SourceAddr, Field::DestAddr]
}

/// The key of a frontend in its maps.
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

/// The key of a pool, or of an endpoint's number and pool.
pub(crate) fn pool_bytes(protocol: Protocol, number: u32) -> Bytes {
    Bytes::new().proto(protocol.number()).index(number)
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

/// Reads back the key of a pool: protocol and number.
pub(crate) fn parse_pool(key: &Bytes) -> Option<(u8, u32)> {
    let mut fields = key.reader();
    let pool = (fields.proto()?, fields.index()?);
    fields.is_empty().then_some(pool)
}

/// Reads back the key of a slot: protocol, number of the pool, and slot.
pub(crate) fn parse_slot(key: &Bytes) -> Option<((u8, u32), u32)> {
    let mut fields = key.reader();
    Some(((fields.proto()?, fields.index()?), fields.index()?))
}

/// Reads an endpoint back.
pub(crate) fn parse_socket<F: Family>(data: &Bytes) -> Option<Socket<F>> {
    let mut fields = data.reader();
    Some((F::narrow(fields.addr(F::FAMILY.into())?)?, fields.port()?))
}
