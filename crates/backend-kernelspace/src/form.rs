//! What load balancers should be, by frontend.

use std::collections::{BTreeMap, BTreeSet};

use hcn::{
    Distribution, Guid, LoadBalancer, LoadBalancerFlags as Flags, PortMapping,
    PortMappingFlags as MappingFlags,
};
use model::{
    AddressKind, Destination, EndpointNode, Family, Frontend, FrontendAddress, FrontendKey, IpFamily,
    Masquerade, Protocol,
};

use crate::facts::Facts;
use crate::options::Options;

/// An endpoint of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member<F: Family> {
    /// By its address on our network.
    Address(F::Addr),
    /// By its id.
    Id(Guid),
}

/// A load balancer, but for the ids of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form<F: Family> {
    /// The address that it captures; `None`: any of the node's.
    pub vip: Option<F::Addr>,
    /// Protocol, ports, how it chooses.
    pub mapping: PortMapping,
    /// Of the load balancer.
    pub flags: Flags,
    /// See [`Facts::source_vip`].
    pub source_vip: Option<F::Addr>,
    /// Its endpoints; sorted, never empty.
    pub members: Vec<Member<F>>,
}

impl<F: Family> Form<F> {
    /// The document, with these endpoints.
    pub fn document(&self, endpoints: Vec<Guid>) -> LoadBalancer {
        LoadBalancer {
            host_compute_endpoints: endpoints,
            source_vip: self.source_vip.map(|address| address.to_string()).unwrap_or_default(),
            frontend_vips: self.vip.iter().map(ToString::to_string).collect(),
            port_mappings: vec![self.mapping],
            flags: self.flags,
            ..LoadBalancer::default()
        }
    }

    /// Whether a document says the same but for its endpoints. A source VIP that HNS chose is as good as none.
    pub fn is_as(&self, document: &LoadBalancer) -> bool {
        let wanted = self.document(Vec::new());
        let source_vip = &document.source_vip;
        document.port_mappings == wanted.port_mappings
            && document.flags == wanted.flags
            && same_vips::<F>(&document.frontend_vips, self.vip)
            && (wanted.source_vip.is_empty() || *source_vip == wanted.source_vip)
    }
}

fn same_vips<F: Family>(found: &[String], wanted: Option<F::Addr>) -> bool {
    let parsed: Vec<Option<F::Addr>> =
        found.iter().map(|text| text.parse().ok().and_then(F::narrow)).collect();
    match wanted {
        Some(vip) => parsed == [Some(vip)],
        None => parsed.is_empty(),
    }
}

/// What a frontend needs of HNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs<F: Family> {
    /// Its load balancer; `None`: it has no endpoints that can be served.
    pub(crate) form: Option<Form<F>>,
    /// Addresses of endpoints of this node.
    pub(crate) local: BTreeSet<F::Addr>,
    /// Addresses that need a remote endpoint, if no endpoint of this node has them.
    pub(crate) remote: BTreeSet<F::Addr>,
    /// Addresses whose remote endpoints are to stay if they are there, for flows that go on.
    pub(crate) kept: BTreeSet<F::Addr>,
    /// Its cluster IP on an overlay, which needs an endpoint of its own.
    pub(crate) service_ip: Option<F::Addr>,
    /// Where its health check is to be found.
    pub(crate) health_check: Option<FrontendKey<F>>,
}

// The derived implementation would ask addresses to have a default.
impl<F: Family> Default for Needs<F> {
    fn default() -> Self {
        Self {
            form: None,
            local: BTreeSet::new(),
            remote: BTreeSet::new(),
            kept: BTreeSet::new(),
            service_ip: None,
            health_check: None,
        }
    }
}

impl<F: Family> Needs<F> {
    /// All addresses that it has something to do with.
    pub(crate) fn addresses(&self) -> BTreeSet<F::Addr> {
        let all = self.local.iter().chain(&self.remote).chain(&self.kept).copied();
        all.chain(self.service_ip).collect()
    }
}

/// The port that most of the endpoints have, the smallest if there are several: a load balancer has only one.
pub(crate) fn common_port<F: Family>(endpoints: &[Destination<F>]) -> Option<u16> {
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for endpoint in endpoints {
        *counts.entry(endpoint.port).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(port, _)| port)
}

/// A pod of this node on the node's own network, which has no endpoint of its own, where none can be made for it.
pub(crate) fn is_unreachable<F: Family>(facts: &Facts<F>, endpoint: &Destination<F>) -> bool {
    endpoint.node == EndpointNode::This && facts.is_node(endpoint.address) && !facts.is_overlay()
}

/// What a frontend needs.
pub(crate) fn needs<F: Family>(frontend: &Frontend<F>, facts: &Facts<F>, options: &Options) -> Needs<F> {
    let kept = frontend.flow_endpoints.iter().map(|endpoint| endpoint.address).collect();
    let mut needs = Needs { kept, ..Needs::default() };
    let Some(port) = common_port(frontend.pool.endpoints()) else { return needs };
    for endpoint in frontend.pool.endpoints() {
        if endpoint.port != port || is_unreachable(facts, endpoint) {
            continue;
        }
        let is_on_our_network = endpoint.node == EndpointNode::This && !facts.is_node(endpoint.address);
        let addresses = if is_on_our_network { &mut needs.local } else { &mut needs.remote };
        addresses.insert(endpoint.address);
    }
    let members: BTreeSet<F::Addr> = needs.local.union(&needs.remote).copied().collect();
    let members: Vec<F::Addr> = members.into_iter().collect();
    if members.is_empty() {
        return needs;
    }
    needs.form = Some(form(frontend, port, members, facts, options));
    if let (FrontendAddress::Ip(address), true) = (frontend.key.address, facts.is_overlay())
        && frontend.kind == AddressKind::ClusterIp
    {
        needs.service_ip = Some(address);
    }
    needs.health_check = health_check(frontend, options);
    needs
}

fn form<F: Family>(
    frontend: &Frontend<F>,
    internal_port: u16,
    members: Vec<F::Addr>,
    facts: &Facts<F>,
    options: &Options,
) -> Form<F> {
    let mapping = PortMapping {
        protocol: frontend.key.protocol.number().into(),
        internal_port,
        external_port: frontend.key.port,
        distribution_type: distribution(frontend, facts),
        flags: mapping_flags(frontend, facts),
    };
    let dsr = match frontend.kind {
        AddressKind::ClusterIp => facts.dsr(options.dsr),
        // The client's address is kept only so.
        AddressKind::LoadBalancerIp | AddressKind::ExternalIp | AddressKind::NodePort => {
            facts.dsr(frontend.masquerade == Masquerade::Never || frontend.preserves_destination)
        }
    };
    Form {
        vip: vip(&frontend.key),
        mapping,
        flags: balancer_flags::<F>(dsr),
        source_vip: facts.source_vip(&members),
        members: members.into_iter().map(Member::Address).collect(),
    }
}

fn vip<F: Family>(key: &FrontendKey<F>) -> Option<F::Addr> {
    match key.address {
        FrontendAddress::Ip(address) => Some(address),
        FrontendAddress::Node => None,
    }
}

fn balancer_flags<F: Family>(dsr: bool) -> Flags {
    let family = match F::FAMILY {
        IpFamily::V4 => Flags::default(),
        IpFamily::V6 => Flags::IPV6,
    };
    if dsr { family.with(Flags::DSR) } else { family }
}

fn distribution<F: Family>(frontend: &Frontend<F>, facts: &Facts<F>) -> Distribution {
    if frontend.affinity.is_some() && facts.version.has_affinity() {
        Distribution::Client
    } else {
        Distribution::Flow
    }
}

fn mapping_flags<F: Family>(frontend: &Frontend<F>, facts: &Facts<F>) -> MappingFlags {
    let preserved = if frontend.preserves_destination && facts.version.has_dsr() {
        MappingFlags::USE_MUX.with(MappingFlags::PRESERVE_DESTINATION)
    } else {
        MappingFlags::default()
    };
    match frontend.kind {
        AddressKind::ClusterIp => MappingFlags::default(),
        AddressKind::NodePort => MappingFlags::LOCAL_ROUTED_VIP.with(MappingFlags::EXTERNAL_VIP),
        AddressKind::ExternalIp => MappingFlags::EXTERNAL_VIP,
        AddressKind::LoadBalancerIp => MappingFlags::EXTERNAL_VIP.with(preserved),
    }
}

/// Where the load balancer outside asks whether this node serves, at its own address.
fn health_check<F: Family>(frontend: &Frontend<F>, options: &Options) -> Option<FrontendKey<F>> {
    if !options.forward_health_checks || frontend.kind != AddressKind::LoadBalancerIp {
        return None;
    }
    let port = frontend.health_check_port.or(options.healthz_port)?;
    let key = FrontendKey { address: frontend.key.address, protocol: Protocol::Tcp, port };
    (key != frontend.key).then_some(key)
}

/// The load balancer of a health check.
pub(crate) fn health_check_form<F: Family>(
    key: &FrontendKey<F>,
    preserves_destination: bool,
    facts: &Facts<F>,
) -> Option<Form<F>> {
    let flags = if preserves_destination && facts.version.has_dsr() {
        MappingFlags::USE_MUX.with(MappingFlags::PRESERVE_DESTINATION)
    } else {
        MappingFlags::default()
    };
    Some(Form {
        vip: vip(key),
        mapping: PortMapping {
            protocol: key.protocol.number().into(),
            internal_port: key.port,
            external_port: key.port,
            distribution_type: Distribution::Flow,
            flags,
        },
        flags: balancer_flags::<F>(false),
        source_vip: facts.source_vip(&[]),
        members: vec![Member::Id(facts.root_endpoint?)],
    })
}

/// The frontend that a load balancer is, if it has the form of ours: one address or none, one port.
pub(crate) fn key_of<F: Family>(document: &LoadBalancer) -> Option<FrontendKey<F>> {
    let [mapping] = document.port_mappings.as_slice() else { return None };
    let is_own_family = document.flags.contains(Flags::IPV6) == (F::FAMILY == IpFamily::V6);
    let address = match document.frontend_vips.as_slice() {
        [] if is_own_family => FrontendAddress::Node,
        [vip] => FrontendAddress::Ip(F::narrow(vip.parse().ok()?)?),
        _ => return None,
    };
    let protocol = Protocol::from_number(u8::try_from(mapping.protocol).ok()?)?;
    Some(FrontendKey { address, protocol, port: mapping.external_port })
}

/// Whether a load balancer is about addresses of the family, whatever its form.
pub(crate) fn is_of_family<F: Family>(document: &LoadBalancer) -> bool {
    match document.frontend_vips.first() {
        Some(vip) => vip.parse().ok().and_then(F::narrow).is_some(),
        None => document.flags.contains(Flags::IPV6) == (F::FAMILY == IpFamily::V6),
    }
}
