//! What one node makes of a Service: its frontends, with every rule of Kubernetes applied.
//!
//! Pure: the same objects give the same frontends, whatever happened before.

mod endpoints;
mod explain;
mod health_check;
mod no_local;

use std::net::IpAddr;
use std::sync::Arc;

use balance::Policy;
use ipnet::IpNet;

use crate::{
    AddressKind, Affinity, Destination, EndpointWeights, Family, Frontend, FrontendAddress, FrontendKey,
    IpFamily, Masquerade, Name, Node, Pool, Protocol, ProxyingRules, Service, ServiceEntry, ServicePort,
    ServicePortName, TrafficPolicy, Verdict,
};
use endpoints::{Choice, List};

pub use endpoints::{Basis, TopologyReason};
pub use explain::{EndpointExplanation, Explanation, ListExplanation, PortExplanation, Use, explain};

pub use health_check::{HealthCheck, HealthChecks, health_check};
pub use no_local::NoLocalEndpoints;

/// The node that the proxy runs on, as far as Services are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisNode {
    /// The node's name: endpoints with this `nodeName` are local.
    pub name: Name,
    /// Its zone, for topology hints.
    pub zone: Option<Name>,
    /// Its primary address of each family, for the exception to source ranges.
    pub addresses: Box<[IpAddr]>,
    /// Which `externalIPs` are served.
    pub external_ips: ExternalIps,
    /// Services may ask for connections to endpoints that are gone to be reset.
    pub resets_connections: bool,
    /// HNS serves, as on Windows: annotation `preserve-destination` counts, and flows of TCP need their endpoints to be kept.
    pub served_by_hns: bool,
    /// Which Services ask for proxies.
    pub proxying: Arc<ProxyingRules>,
}

/// Which `externalIPs` of Services are served. Whoever may write a Service may claim any address with them, and so get what the nodes and
/// their pods send there (CVE-2020-8554).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// All, as upstream.
    #[default]
    All,
    /// None (feature gate `AllowServiceExternalIPs`, KEP-5707).
    None,
    /// Those in these ranges; never empty.
    Within(Arc<[IpNet]>),
}

impl ExternalIps {
    /// Whether an address is served.
    pub fn serves(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Within(ranges) => ranges.iter().any(|range| range.contains(&address)),
        }
    }
}

impl ThisNode {
    /// The node of this name, as far as its object is known.
    pub fn new(name: Name, object: Option<&Node>) -> Self {
        let primary = |family| object.and_then(|node| node.primary_address(family));
        let addresses = IpFamily::ALL.into_iter().filter_map(primary).collect();
        let zone = object.and_then(|node| node.zone.clone());
        Self { name, zone, addresses, ..Self::default() }
    }
}

/// The frontends of a Service in one family, in the order of its ports: none if the Service does not exist or has no
/// cluster IP in the family.
pub fn frontends<F: Family>(node: &ThisNode, entry: &ServiceEntry) -> Vec<Frontend<F>> {
    let Some(service) = entry.service.as_deref() else { return Vec::new() };
    let Some(addresses) = Addresses::new(node, service) else { return Vec::new() };
    let mut frontends = Vec::new();
    let proxying = node.proxying.policy(service).map(|(policy, _)| policy);
    for port in &service.ports {
        let candidates = endpoints::gather::<F>(node, port, &entry.slices);
        let policy = Policies::new(node, service, port, &addresses);
        let choice = endpoints::choose(node, &candidates, policy.needs_cluster(), policy.needs_local());
        let weights = endpoints::weights::<F>(&candidates, service.weights.as_deref());
        let resets_connections =
            node.resets_connections && service.resets_connections && port.protocol == Protocol::Tcp;
        let flow_endpoints = match port.protocol {
            Protocol::Tcp if resets_connections => endpoints::all(&candidates).into_iter().collect(),
            Protocol::Tcp if !node.served_by_hns => Arc::default(),
            Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
                endpoints::serving(&candidates).into_iter().collect()
            }
        };
        port_frontends(
            &mut frontends,
            service,
            port,
            &addresses,
            &Pools {
                proxying,
                weights: (!weights.is_empty()).then(|| Arc::new(weights)),
                resets_connections,
                ..Pools::new(service, choice, flow_endpoints, policy.preserves_destination)
            },
        );
    }
    frontends
}

fn own<F: Family>(addresses: &[IpAddr]) -> impl Iterator<Item = F::Addr> {
    addresses.iter().filter_map(|addr| F::narrow(*addr))
}

/// A Service's addresses in one family.
struct Addresses<F: Family> {
    cluster_ip: F::Addr,
    external_ips: Vec<F::Addr>,
    load_balancer_ips: Vec<F::Addr>,
    allowed_sources: Option<Arc<[IpNet]>>,
}

impl<F: Family> Addresses<F> {
    /// `None` if the Service has no cluster IP in the family.
    fn new(node: &ThisNode, service: &Service) -> Option<Self> {
        Some(Self {
            cluster_ip: own::<F>(&service.cluster_ips).next()?,
            external_ips: own::<F>(&service.external_ips)
                .filter(|addr| node.external_ips.serves((*addr).into()))
                .collect(),
            load_balancer_ips: own::<F>(&service.load_balancer_ips).collect(),
            allowed_sources: allowed_sources::<F>(node, service),
        })
    }
}

/// What traffic policies ask for one port of a Service.
struct Policies {
    internal: TrafficPolicy,
    external: TrafficPolicy,
    /// There is a way in besides the cluster IP.
    externally_accessible: bool,
    /// Load balancers' addresses and node ports lead to endpoints of this node only, which see the frontend's address.
    preserves_destination: bool,
}

impl Policies {
    fn new<F: Family>(
        node: &ThisNode,
        service: &Service,
        port: &ServicePort,
        addresses: &Addresses<F>,
    ) -> Self {
        Self {
            internal: service.internal_policy,
            external: service.external_policy,
            externally_accessible: port.node_port.is_some()
                || !addresses.external_ips.is_empty()
                || !addresses.load_balancer_ips.is_empty(),
            preserves_destination: node.served_by_hns && service.preserves_destination,
        }
    }

    /// External traffic needs it under both policies: under `Local` for the short cut of pods and of the node itself.
    fn needs_cluster(&self) -> bool {
        self.internal == TrafficPolicy::Cluster || self.externally_accessible
    }

    fn needs_local(&self) -> bool {
        self.internal == TrafficPolicy::Local
            || self.external == TrafficPolicy::Local && self.externally_accessible
            || self.preserves_destination && self.externally_accessible
    }
}

/// Where new flows to one port of a Service go, by the way they come in.
struct Pools<F: Family> {
    /// To the cluster IP.
    internal: Pool<F>,
    /// To any other address.
    external: Pool<F>,
    /// To a load balancer's address or a node port, where destinations are preserved.
    preserved: Option<Pool<F>>,
    /// To any other address, from pods and from the node itself, where that differs.
    short_cut: Option<Pool<F>>,
    external_masquerade: Masquerade,
    flow_endpoints: Arc<[Destination<F>]>,
    /// How proxies are to choose among them, if they are asked for.
    proxying: Option<Policy>,
    /// How often, by policy `weighted`.
    weights: Option<Arc<EndpointWeights<F>>>,
    resets_connections: bool,
}

impl<F: Family> Pools<F> {
    fn new(
        service: &Service,
        choice: Choice<F>,
        flow_endpoints: Arc<[Destination<F>]>,
        preserves_destination: bool,
    ) -> Self {
        // Only a list for the Local policy can be empty although there are endpoints somewhere.
        let when_empty = if choice.has_any { Verdict::Drop } else { Verdict::Reject };
        let pool = |list: Option<List<F>>| {
            Pool::new(list.map(|list| list.endpoints).unwrap_or_default(), when_empty)
        };
        let (cluster, local) = (pool(choice.cluster), pool(choice.local));
        let by = |policy| match policy {
            TrafficPolicy::Cluster => cluster.clone(),
            TrafficPolicy::Local => local.clone(),
        };
        let is_local = service.external_policy == TrafficPolicy::Local;
        Self {
            internal: by(service.internal_policy),
            external: by(service.external_policy),
            preserved: preserves_destination.then(|| by(TrafficPolicy::Local)),
            short_cut: (is_local && choice.has_any).then_some(cluster.clone()),
            external_masquerade: if is_local { Masquerade::Never } else { Masquerade::Always },
            flow_endpoints,
            proxying: None,
            weights: None,
            resets_connections: false,
        }
    }
}

fn port_frontends<F: Family>(
    frontends: &mut Vec<Frontend<F>>,
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<F>,
    pools: &Pools<F>,
) {
    let name =
        ServicePortName { service: service.name.clone(), port: port.name.clone(), protocol: port.protocol };
    let key = |address, port_number| FrontendKey { address, protocol: port.protocol, port: port_number };
    let affinity = service.affinity.map(|timeout| Affinity { timeout, service: service.uid });
    let frontend = |kind, key, pool: &Pool<F>| Frontend {
        affinity,
        proxying: pools.proxying,
        resilience: service.resilience.clone(),
        weights: pools.weights.clone(),
        app_protocol: port.app_protocol,
        flow_endpoints: pools.flow_endpoints.clone(),
        resets_connections: pools.resets_connections,
        ..Frontend::new(key, kind, name.clone(), pool.clone())
    };
    let cluster_ip = key(FrontendAddress::Ip(addresses.cluster_ip), port.port);
    frontends.push(Frontend {
        policy: service.internal_policy,
        ..frontend(AddressKind::ClusterIp, cluster_ip, &pools.internal)
    });
    let external = |kind, key, allowed_sources| Frontend {
        policy: service.external_policy,
        internal_pool: pools.short_cut.clone(),
        masquerade: pools.external_masquerade,
        allowed_sources,
        ..frontend(kind, key, &pools.external)
    };
    let ip = |addr: &F::Addr| key(FrontendAddress::Ip(*addr), port.port);
    frontends.extend(addresses.load_balancer_ips.iter().map(|addr| {
        let allowed_sources = addresses.allowed_sources.clone();
        let frontend = external(AddressKind::LoadBalancerIp, ip(addr), allowed_sources);
        let health_check_port = service.health_check_node_port;
        preserving(Frontend { health_check_port, ..frontend }, pools)
    }));
    frontends
        .extend(addresses.external_ips.iter().map(|addr| external(AddressKind::ExternalIp, ip(addr), None)));
    frontends.extend(port.node_port.map(|number| {
        preserving(external(AddressKind::NodePort, key(FrontendAddress::Node, number), None), pools)
    }));
}

/// The frontend, with the destination preserved if the Service asks for it: then only endpoints of this node can answer.
fn preserving<F: Family>(frontend: Frontend<F>, pools: &Pools<F>) -> Frontend<F> {
    match &pools.preserved {
        Some(pool) => Frontend {
            pool: pool.clone(),
            policy: TrafficPolicy::Local,
            preserves_destination: true,
            ..frontend
        },
        None => frontend,
    }
}

/// The ranges from which load-balancer addresses may be used: `None` for no restriction, which is also what ranges of
/// the other family alone, or a range of all addresses, mean.
///
/// If the node itself is in a range, the load-balancer addresses are allowed too: the node may own one and use it as its
/// source address.
fn allowed_sources<F: Family>(node: &ThisNode, service: &Service) -> Option<Arc<[IpNet]>> {
    let own_ranges = service.source_ranges.iter().filter(|range| F::owns(range));
    let mut ranges: Vec<IpNet> = own_ranges.copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    if node.addresses.iter().any(|addr| ranges.iter().any(|range| range.contains(addr))) {
        ranges.extend(own::<F>(&service.load_balancer_ips).map(|addr| IpNet::from(addr.into())));
    }
    Some(IpNet::aggregate(&ranges).into())
}

#[cfg(test)]
mod tests;
