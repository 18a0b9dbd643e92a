//! Why new flows to a Service go where they go on this node, in words: worked out on demand by the functions that decide.

use std::fmt;

use super::endpoints::{self, Basis, Candidate, List, TopologyReason};
use super::{Addresses, Policies, ThisNode};
use crate::{Family, Service, ServiceEntry, ServicePort, ServicePortName, TrafficPolicy};

/// What this node makes of a Service in one family. Prints as text for people.
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
    /// The endpoints for each policy that the Service uses, with the addresses that it governs.
    pub lists: Vec<ListExplanation>,
    /// All endpoints, by address and port.
    pub endpoints: Vec<EndpointExplanation<F>>,
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
    Ending,
    /// It is not ready.
    NotReady,
    /// It is meant for other nodes or zones.
    HintedElsewhere,
}

/// Explains a Service in one family.
pub fn explain<F: Family>(node: &ThisNode, entry: Option<&ServiceEntry>) -> Explanation<F> {
    let Some((entry, service)) = entry.and_then(|entry| Some((entry, entry.service.as_ref()?))) else {
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
    let policies = Policies::new(service, port, addresses);
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
    let endpoints = candidates.iter().map(|((address, port), candidate)| EndpointExplanation {
        address: *address,
        port: *port,
        local: candidate.local,
        slice: candidate.slice().to_string(),
        uses: chosen
            .iter()
            .map(|(policy, list)| (*policy, usage(*address, *port, candidate, list)))
            .collect(),
    });
    PortExplanation {
        port: ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        },
        lists: lists.collect(),
        endpoints: endpoints.collect(),
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
    if service.external_policy == policy {
        governed.extend(addresses.load_balancer_ips.iter().map(|ip| format!("load-balancer IP {ip}")));
        governed.extend(addresses.external_ips.iter().map(|ip| format!("external IP {ip}")));
        governed.extend(port.node_port.map(|port| format!("node port {port}")));
    } else if policy == TrafficPolicy::Cluster && policies.externally_accessible {
        governed.push("other addresses, from pods and from this node".to_owned());
    }
    governed
}

fn usage<F: Family>(address: F::Addr, port: u16, candidate: &Candidate<'_>, list: &List<F>) -> Use {
    if list.endpoints.iter().any(|chosen| (chosen.address, chosen.port) == (address, port)) {
        return Use::Serves;
    }
    let only_here = matches!(list.basis, Basis::ReadyHere | Basis::EndingHere | Basis::NobodyHere);
    if only_here && !candidate.local {
        Use::OtherNode
    } else if candidate.conditions.ready {
        Use::HintedElsewhere
    } else if candidate.conditions.is_last_resort() {
        Use::Ending
    } else {
        Use::NotReady
    }
}

impl<F: Family> fmt::Display for Explanation<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoService => f.write_str("no Service of this name that is ours to serve\n"),
            Self::NoClusterIp => writeln!(f, "no cluster IP of family {}", F::FAMILY),
            Self::Ports(ports) => ports.iter().try_for_each(|port| port.fmt(f)),
        }
    }
}

impl<F: Family> fmt::Display for PortExplanation<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.port, F::FAMILY)?;
        for list in &self.lists {
            let outcome = match (list.size, list.drops) {
                (0, true) => "dropped".to_owned(),
                (0, false) => "refused".to_owned(),
                (1, _) => "1 endpoint".to_owned(),
                (n, _) => format!("{n} endpoints"),
            };
            let addresses = list.addresses.join(", ");
            writeln!(f, "  policy {}: {outcome}: {} ({addresses})", policy_name(list.policy), list.basis)?;
        }
        for endpoint in &self.endpoints {
            let place = if endpoint.local { "this node" } else { "another node" };
            let uses: Vec<String> = endpoint
                .uses
                .iter()
                .map(|(policy, usage)| format!("{}: {usage}", policy_name(*policy)))
                .collect();
            let socket = std::net::SocketAddr::new(endpoint.address.into(), endpoint.port);
            writeln!(f, "  {socket} on {place} (slice {}): {}", endpoint.slice, uses.join("; "))?;
        }
        Ok(())
    }
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(topology) => write!(f, "those that are ready{topology}"),
            Self::ReadyHere => f.write_str("those of this node that are ready"),
            Self::Ending => f.write_str("none is ready, so those that still serve while they shut down"),
            Self::EndingHere => f.write_str(
                "none of this node is ready, so those of it that still serve while they shut down",
            ),
            Self::Nobody => f.write_str("no endpoint is usable"),
            Self::NobodyHere => f.write_str("no endpoint of this node is usable"),
        }
    }
}

impl fmt::Display for TopologyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameNode => " and hinted for this node",
            Self::SameZone => " and hinted for this node's zone",
            Self::HintsIncomplete => ", wherever they are, since not every one has a hint",
            Self::ZoneUnknown => ", wherever they are, since this node's zone is not known",
            Self::NoneForThisZone => ", wherever they are, since none is hinted for this node's zone",
        })
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serves => "takes new flows",
            Self::OtherNode => "not used, it is on another node",
            Self::Ending => "not used, it is shutting down",
            Self::NotReady => "not used, it is not ready",
            Self::HintedElsewhere => "not used, it is hinted for elsewhere",
        })
    }
}
