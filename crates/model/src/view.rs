//! What one node makes of a Service: its frontends, with every rule of Kubernetes applied.
//!
//! Pure: the same objects give the same frontends, whatever happened before.

use std::collections::BTreeMap;

use crate::{
    AddressKind, Conditions, Destination, EndpointSlice, Family, Frontend, FrontendAddress, FrontendKey,
    Masquerade, Name, Pool, Service, ServiceEntry, ServicePort, ServicePortName, Verdict,
};

/// The node that the proxy runs on, as far as endpoints are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThisNode {
    /// The node's name: endpoints with this `nodeName` are local.
    pub name: Name,
}

/// The frontends of a Service in one family, in the order of its ports: none if the Service does not exist or has no
/// cluster IP in the family.
pub fn frontends<F: Family>(node: &ThisNode, entry: &ServiceEntry) -> Vec<Frontend<F>> {
    let Some(service) = &entry.service else { return Vec::new() };
    let Some(cluster_ip) = service.cluster_ips.iter().find_map(|addr| F::narrow(*addr)) else {
        return Vec::new();
    };
    let ports = service.ports.iter();
    ports.flat_map(|port| port_frontends(node, service, port, cluster_ip, &entry.slices)).collect()
}

fn port_frontends<F: Family>(
    node: &ThisNode,
    service: &Service,
    port: &ServicePort,
    cluster_ip: F::Addr,
    slices: &[EndpointSlice],
) -> impl Iterator<Item = Frontend<F>> {
    let pool = cluster_pool(&endpoints::<F>(node, port, slices));
    let name =
        ServicePortName { service: service.name.clone(), port: port.name.clone(), protocol: port.protocol };
    let protocol = port.protocol;
    let frontend = move |kind, address, number, masquerade| Frontend {
        key: FrontendKey { address, protocol, port: number },
        kind,
        service: name.clone(),
        pool: pool.clone(),
        internal_pool: None,
        affinity: None,
        masquerade,
        allowed_sources: None,
    };
    let on_cluster_ip = frontend(
        AddressKind::ClusterIp,
        FrontendAddress::Ip(cluster_ip),
        port.port,
        Masquerade::UnlessFromPod,
    );
    let on_node_port = port
        .node_port
        .map(|number| frontend(AddressKind::NodePort, FrontendAddress::Node, number, Masquerade::Always));
    std::iter::once(on_cluster_ip).chain(on_node_port)
}

/// The endpoints for traffic under the `Cluster` policy: all that are ready.
fn cluster_pool<F: Family>(endpoints: &BTreeMap<(F::Addr, u16), Candidate<'_>>) -> Pool<F> {
    let ready = endpoints.iter().filter(|(_, candidate)| candidate.conditions.ready);
    let destinations = ready.map(|((address, port), candidate)| Destination {
        address: *address,
        port: *port,
        local: candidate.local,
    });
    Pool::new(destinations.collect(), Verdict::Reject)
}

/// One endpoint of a Service port, with what decides about its use.
struct Candidate<'a> {
    conditions: Conditions,
    local: bool,
    slice: &'a Name,
}

/// The endpoints of one Service port from all its slices, each address and port once.
///
/// A slice's port serves the Service's port of the same name and protocol, whatever `targetPort` says. An endpoint that
/// two slices name (a pod's address used again) counts with its more useful conditions; then the first slice by name.
fn endpoints<'a, F: Family>(
    node: &ThisNode,
    port: &ServicePort,
    slices: &'a [EndpointSlice],
) -> BTreeMap<(F::Addr, u16), Candidate<'a>> {
    let mut found: BTreeMap<(F::Addr, u16), Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let Some(endpoints) = F::endpoints(&slice.endpoints) else { continue };
        let ports = slice.ports.iter();
        for serving in ports.filter(|serving| serving.name == port.name && serving.protocol == port.protocol)
        {
            for endpoint in endpoints {
                let candidate = Candidate {
                    conditions: endpoint.conditions,
                    local: endpoint.node.as_ref() == Some(&node.name),
                    slice: &slice.name.name,
                };
                let key = (endpoint.address, serving.port);
                if found.get(&key).is_none_or(|known| candidate.rank() < known.rank()) {
                    found.insert(key, candidate);
                }
            }
        }
    }
    found
}

impl Candidate<'_> {
    /// Smaller is better: not terminating, ready, serving, then the first slice by name.
    fn rank(&self) -> (bool, bool, bool, &Name) {
        (self.conditions.terminating, !self.conditions.ready, !self.conditions.serving, self.slice)
    }
}

#[cfg(test)]
mod tests;
