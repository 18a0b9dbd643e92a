//! Why new flows to a Service go where they go on this node, as values: worked out on demand by the functions that decide.

use super::endpoints::{self, Basis, Candidate, List};
use super::{Addresses, Policies, ThisNode, own};
use crate::{Conditions, Family, Service, ServiceEntry, ServicePort, ServicePortName, TrafficPolicy};

/// What this node makes of a Service in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation<F: Family> {
    /// There is no such Service, or none that is ours to serve.
    NoService,
    /// It has no cluster IP in the family.
    NoClusterIp,
    /// Its ports, in the object's order.
    Ports(Vec<PortExplanation<F>>),
}

/// Where new flows to one port of a Service go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortExplanation<F: Family> {
    /// The port.
    pub port: ServicePortName,
    /// Its number.
    pub port_number: u16,
    /// The endpoints for each policy that the Service uses, with the addresses that it governs.
    pub lists: Vec<ListExplanation>,
    /// All endpoints, by address and port.
    pub endpoints: Vec<EndpointExplanation<F>>,
    /// `externalIPs` that are not served, since [`ThisNode::external_ips`] does not have them.
    pub unserved: Vec<F::Addr>,
}

/// The endpoints that flows are balanced over under a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListExplanation {
    /// The policy.
    pub policy: TrafficPolicy,
    /// The Service's addresses that it governs, as text; for the short cut of pods and the node itself, that.
    pub addresses: Vec<String>,
    /// How many endpoints there are.
    pub size: usize,
    /// Why these.
    pub basis: Basis,
    /// Packets are dropped rather than refused, since other nodes have endpoints.
    pub drops: bool,
}

/// One endpoint and its use under each of [`PortExplanation::lists`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointExplanation<F: Family> {
    /// Its address.
    pub address: F::Addr,
    /// Its port.
    pub port: u16,
    /// Whether it runs on this node.
    pub local: bool,
    /// What the slice says of it.
    pub conditions: Conditions,
    /// It has topology hints, whatever they say.
    pub hinted: bool,
    /// The slice that it is from.
    pub slice: String,
    /// Its use, by policy.
    pub uses: Vec<(TrafficPolicy, Use)>,
}

/// Whether an endpoint takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// It does.
    Serves,
    /// It is on another node.
    OtherNode,
    /// It is shutting down, and others are ready.
    Terminating,
    /// It is not ready.
    NotReady,
    /// It is meant for other nodes or zones.
    HintedElsewhere,
}

/// Explains a Service in one family.
pub fn explain<F: Family>(node: &ThisNode, entry: Option<&ServiceEntry>) -> Explanation<F> {
    let Some((entry, service)) = entry.and_then(|entry| Some((entry, entry.service.as_deref()?))) else {
        return Explanation::NoService;
    };
    let Some(addresses) = Addresses::<F>::new(node, service) else { return Explanation::NoClusterIp };
    let ports = service.ports.iter();
    Explanation::Ports(ports.map(|port| explain_port(node, entry, service, port, &addresses)).collect())
}

fn explain_port<F: Family>(
    node: &ThisNode,
    entry: &ServiceEntry,
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<F>,
) -> PortExplanation<F> {
    let candidates = endpoints::gather::<F>(node, port, &entry.slices);
    let policies = Policies::new(node, service, port, addresses);
    let choice = endpoints::choose(node, &candidates, policies.needs_cluster(), policies.needs_local());
    let chosen = [(TrafficPolicy::Cluster, choice.cluster), (TrafficPolicy::Local, choice.local)];
    let chosen: Vec<(TrafficPolicy, List<F>)> =
        chosen.into_iter().filter_map(|(policy, list)| Some((policy, list?))).collect();
    let lists = chosen.iter().map(|(policy, list)| ListExplanation {
        policy: *policy,
        addresses: governed(*policy, service, port, addresses, &policies),
        size: list.endpoints.len(),
        basis: list.basis,
        drops: list.endpoints.is_empty() && choice.has_any,
    });
    let endpoints =
        candidates.iter().map(|(socket, candidate)| explain_endpoint(*socket, candidate, &chosen));
    PortExplanation {
        port: ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        },
        port_number: port.port,
        lists: lists.collect(),
        endpoints: endpoints.collect(),
        unserved: own::<F>(&service.external_ips)
            .filter(|addr| !node.external_ips.serves((*addr).into()))
            .collect(),
    }
}

fn explain_endpoint<F: Family>(
    (address, port): (F::Addr, u16),
    candidate: &Candidate<'_>,
    chosen: &[(TrafficPolicy, List<F>)],
) -> EndpointExplanation<F> {
    let use_of = |(policy, list): &(_, _)| (*policy, usage(address, port, candidate, list));
    EndpointExplanation {
        address,
        port,
        local: candidate.is_local(),
        conditions: candidate.conditions,
        hinted: candidate.hints.is_some_and(|hints| !hints.zones.is_empty() || !hints.nodes.is_empty()),
        slice: candidate.slice().to_string(),
        uses: chosen.iter().map(use_of).collect(),
    }
}

/// The addresses whose new flows follow a policy.
fn governed<F: Family>(
    policy: TrafficPolicy,
    service: &Service,
    port: &ServicePort,
    addresses: &Addresses<F>,
    policies: &Policies,
) -> Vec<String> {
    let mut governed = Vec::new();
    if service.internal_policy == policy {
        governed.push(format!("cluster IP {}", addresses.cluster_ip));
    }
    let is_external = service.external_policy == policy;
    // Where destinations are preserved, load balancers' addresses and node ports lead to endpoints of this node.
    let is_preserved = policies.preserves_destination;
    let is_preserving = if is_preserved { policy == TrafficPolicy::Local } else { is_external };
    if is_preserving {
        governed.extend(addresses.load_balancer_ips.iter().map(|ip| format!("load-balancer IP {ip}")));
    }
    if is_external {
        governed.extend(addresses.external_ips.iter().map(|ip| format!("external IP {ip}")));
    }
    if is_preserving {
        governed.extend(port.node_port.map(|port| format!("node port {port}")));
    }
    if !is_external && policy == TrafficPolicy::Cluster && policies.externally_accessible {
        governed.push("other addresses, from pods and from this node".to_owned());
    }
    governed
}

fn usage<F: Family>(address: F::Addr, port: u16, candidate: &Candidate<'_>, list: &List<F>) -> Use {
    if list.endpoints.iter().any(|chosen| (chosen.address, chosen.port) == (address, port)) {
        return Use::Serves;
    }
    let only_here = matches!(list.basis, Basis::ReadyLocal | Basis::TerminatingLocal | Basis::NoneLocal);
    if only_here && !candidate.is_local() {
        Use::OtherNode
    } else if candidate.conditions.ready {
        Use::HintedElsewhere
    } else if candidate.conditions.is_last_resort() {
        Use::Terminating
    } else {
        Use::NotReady
    }
}
