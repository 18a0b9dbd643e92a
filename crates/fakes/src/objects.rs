//! API objects for tests, as JSON.

use std::net::IpAddr;

use serde_json::{Value, json};

/// The namespace that all objects here are in.
pub const NAMESPACE: &str = "default";
/// The name of the node under test.
pub const NODE: &str = "node-1";
/// The name of the other node.
pub const NODE2: &str = "node-2";
/// Port on which every endpoint answers one line over TCP.
pub const LINE_PORT: u16 = 8080;
/// Port on which every endpoint answers over UDP.
pub const UDP_PORT: u16 = 5353;

/// One port of a Service and of its slices.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Name, which ties the two together.
    pub name: &'static str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// Port of the Service.
    pub port: u16,
    /// Port on the endpoints.
    pub target: u16,
    /// Port on the nodes; a Service with one is of type `NodePort`.
    pub node_port: Option<u16>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Name of the node that it runs on.
    pub node: String,
    /// Whether it is ready.
    pub ready: bool,
}

impl Endpoint {
    /// A ready endpoint.
    pub fn ready(ip: IpAddr, node: &str) -> Self {
        Self { ip, node: node.into(), ready: true }
    }
}

/// A Service with these cluster IPs; the first one's family is the primary one.
pub fn service(name: &str, cluster_ips: &[IpAddr], ports: &[Port]) -> Value {
    let families: Vec<&str> = cluster_ips.iter().map(|ip| family(*ip)).collect();
    let kind = if ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
    let port = |port: &Port| {
        let mut value = json!({
            "name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": port.target,
        });
        if let Some(number) = port.node_port {
            value["nodePort"] = number.into();
        }
        value
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "type": kind,
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ports": ports.iter().map(port).collect::<Vec<_>>(),
        },
    })
}

/// The same Service, which asks for workers by a policy.
#[must_use]
pub fn proxied(mut service: Value, policy: &str) -> Value {
    service["metadata"]["annotations"] = json!({ "kube-proxy/proxying": policy });
    service
}

/// A slice `SERVICE-SUFFIX` of a Service. All endpoints are of one family; without endpoints it is IPv4.
pub fn slice(service: &str, suffix: &str, ports: &[Port], endpoints: &[Endpoint]) -> Value {
    let address_type = endpoints.first().map_or("IPv4", |endpoint| family(endpoint.ip));
    let endpoint = |endpoint: &Endpoint| {
        json!({
            "addresses": [endpoint.ip],
            "conditions": { "ready": endpoint.ready, "serving": endpoint.ready, "terminating": false },
            "nodeName": endpoint.node,
        })
    };
    let port = |port: &Port| json!({ "name": port.name, "protocol": port.protocol, "port": port.target });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{suffix}"),
            "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": address_type,
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": ports.iter().map(port).collect::<Vec<_>>(),
    })
}

/// A Node with these internal addresses.
pub fn node(name: &str, addresses: &[IpAddr]) -> Value {
    let address = |ip: &IpAddr| json!({ "type": "InternalIP", "address": ip });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "addresses": addresses.iter().map(address).collect::<Vec<_>>() },
    })
}

/// The range that cluster IPs come from.
pub fn service_cidr(cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": cidrs },
    })
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}
