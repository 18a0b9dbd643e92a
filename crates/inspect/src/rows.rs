//! A Service in one line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent::snapshot::{Address, AddressKind, AddressState, Service, Traffic, TrafficPolicy, Usage};

use crate::document::{EndpointCounts, EndpointRow, ServiceRow};
use crate::select::ports;

/// The line of a Service.
pub(crate) fn service_row(service: &Service) -> ServiceRow {
    let addresses: Vec<&Address> = ports(service).flat_map(|port| &port.addresses).collect();
    let of = |kinds: &[AddressKind]| {
        let mut ips = Vec::new();
        let is_meant = |a: &&&Address| kinds.contains(&a.kind) && a.state != AddressState::NotAllowed;
        for ip in addresses.iter().filter(is_meant).filter_map(|a| a.address) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    };
    let conflicts = addresses.iter().filter(|a| matches!(a.state, AddressState::Lost { .. })).count();
    let waiting = addresses.iter().any(|a| a.state == AddressState::Waiting);
    let traffic: Vec<Traffic> = ports(service).filter_map(|port| port.traffic).collect();
    let sum = |of: fn(&Traffic) -> u64| (!traffic.is_empty()).then(|| traffic.iter().map(of).sum());
    ServiceRow {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        cluster_ips: of(&[AddressKind::ClusterIp]),
        external_ips: of(&[AddressKind::LoadBalancerIp, AddressKind::ExternalIp]),
        ports: port_texts(service),
        internal_policy: policy(service, |governed| governed.starts_with("cluster IP")),
        external_policy: policy(service, is_external),
        affinity_seconds: ports(service).find_map(|port| port.affinity_seconds),
        endpoints: counts(service),
        conflicts,
        waiting,
        connections: sum(|traffic| traffic.connections),
        connections_per_second: traffic
            .iter()
            .filter_map(|traffic| traffic.connections_per_second)
            .reduce(|sum, more| sum + more),
        refused: sum(|traffic| traffic.refused),
        dropped: sum(|traffic| traffic.dropped),
    }
}

fn is_external(governed: &str) -> bool {
    ["load-balancer IP", "external IP", "node port"].iter().any(|kind| governed.starts_with(kind))
}

/// The policy that governs addresses of a kind.
fn policy(service: &Service, is_meant: impl Fn(&str) -> bool) -> Option<TrafficPolicy> {
    let policies = ports(service).flat_map(|port| &port.policies);
    let mut governing = policies.filter(|policy| policy.governs.iter().any(|governed| is_meant(governed)));
    governing.next().map(|policy| policy.policy)
}

/// `80:30080/TCP`, each once.
fn port_texts(service: &Service) -> Vec<String> {
    let mut texts = Vec::new();
    for port in ports(service) {
        let of = |is_node_port: bool| {
            let mut own = port.addresses.iter().filter(|a| (a.kind == AddressKind::NodePort) == is_node_port);
            own.next().map(|address| address.port)
        };
        let text = match (of(false), of(true)) {
            (Some(own), Some(node)) => format!("{own}:{node}/{}", port.protocol),
            (Some(own), None) | (None, Some(own)) => format!("{own}/{}", port.protocol),
            (None, None) => continue,
        };
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

/// An endpoint counts once, however many ports it has.
fn counts(service: &Service) -> EndpointCounts {
    let mut by_address: BTreeMap<IpAddr, EndpointState> = BTreeMap::new();
    for endpoint in ports(service).flat_map(|port| &port.endpoints) {
        let state = by_address.entry(endpoint.address.ip()).or_default();
        state.ready |= endpoint.is_ready;
        state.terminating |= endpoint.is_terminating;
        let serves = endpoint.uses.iter().any(|used| used.usage == Usage::Serves);
        state.serves |= serves;
        state.serves_here |= serves && endpoint.is_local;
    }
    let count =
        |is_meant: fn(&EndpointState) -> bool| by_address.values().filter(|state| is_meant(state)).count();
    EndpointCounts {
        total: by_address.len(),
        ready: count(|state| state.ready),
        serving: count(|state| state.serves),
        local: count(|state| state.serves_here),
        terminating: count(|state| state.terminating),
    }
}

/// What holds for some port of an endpoint.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is counted by itself")]
struct EndpointState {
    ready: bool,
    terminating: bool,
    serves: bool,
    serves_here: bool,
}

/// The lines of a Service's endpoints.
pub(crate) fn endpoint_rows(service: &Service) -> impl Iterator<Item = EndpointRow> {
    ports(service).flat_map(|port| {
        port.endpoints.iter().map(|endpoint| EndpointRow {
            namespace: service.namespace.clone(),
            service_port: port.service_port.clone(),
            protocol: port.protocol.clone(),
            endpoint: endpoint.clone(),
        })
    })
}
