//! The parsed form of the API objects that the proxy watches: only the fields it uses, already valid.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use balance::{Policy, Resilience, Weights};
use ipnet::IpNet;

use crate::{Family, Label, Name, ObjectName, Protocol, ServiceName, Uid, V4, V6};

/// A watched kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `v1` Node: only this node.
    Node,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// Every kind, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// The kind as manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One parsed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An `EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// A Node.
    Node(Node),
    /// A `ServiceCIDR`.
    ServiceCidr(ServiceCidr),
}

impl Object {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// The object's name.
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Service(service) => &service.name,
            Self::EndpointSlice(slice) => &slice.name,
            Self::Node(node) => &node.name,
            Self::ServiceCidr(cidr) => &cidr.name,
        }
    }
}

/// What a source tells the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object exists in this form now.
    Apply(Object),
    /// The object is gone, or no longer concerns the proxy. Unknown names are fine.
    Delete(Kind, ObjectName),
    /// A complete listing: objects of the kind that are not in it are gone, except those named in `keep`.
    Replace {
        /// The kind that was listed.
        kind: Kind,
        /// All objects of the kind.
        objects: Vec<Object>,
        /// Objects that exist but whose present form was rejected: an earlier accepted form stays in force.
        keep: Vec<ObjectName>,
    },
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`. Unknown strings mean `Cluster`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// A Service that has a cluster IP and is ours to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `metadata.uid`, for events about it.
    pub uid: Option<Uid>,
    /// `clusterIPs`, at most one of each family.
    pub cluster_ips: Box<[IpAddr]>,
    /// `ports`, in the object's order.
    pub ports: Box<[ServicePort]>,
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP (the default).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `loadBalancerSourceRanges`, masked. Empty for a family: unrestricted in that family.
    pub source_ranges: Box<[IpNet]>,
    /// `sessionAffinity: ClientIP` with its timeout; `None` when there is no affinity.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`, which counts only for Services that accept external traffic by definition of the API:
    /// type `LoadBalancer`, type `NodePort`, or `externalIPs` not empty. `Cluster` for all others.
    pub external_policy: TrafficPolicy,
    /// `healthCheckNodePort`, for type `LoadBalancer` with `externalTrafficPolicy: Local` only.
    pub health_check_node_port: Option<u16>,
    /// `metadata.labels`, sorted by key.
    pub labels: Box<[Label]>,
    /// The policy by which proxies on each node are to choose endpoints, if the Service itself asks for such
    /// ([`ProxyingRules`](crate::ProxyingRules)).
    pub proxying: Option<Policy>,
    /// What proxies are to do besides choosing endpoints, if the Service asks for anything.
    pub resilience: Option<Arc<Resilience>>,
    /// How often proxies are to choose which endpoint, by policy `weighted`.
    pub weights: Option<Arc<Weights>>,
    /// Annotation `kube-proxy/reset-connections: "true"`: connections to endpoints that are gone are to be reset.
    pub resets_connections: bool,
    /// Annotation `preserve-destination: "true"`, which only nodes that run Windows honour.
    pub preserves_destination: bool,
}

impl Service {
    /// A Service that asks for nothing: neither addresses nor ports, and all policies `Cluster`.
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            uid: None,
            cluster_ips: Box::default(),
            ports: Box::default(),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: Box::default(),
            affinity: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            labels: Box::default(),
            proxying: None,
            resilience: None,
            weights: None,
            resets_connections: false,
            preserves_destination: false,
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for a single unnamed port.
    pub name: Name,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the virtual addresses; never 0.
    pub port: u16,
    /// Port on the nodes.
    pub node_port: Option<u16>,
    /// `appProtocol`.
    pub app_protocol: AppProtocol,
}

/// What clients and endpoints say to each other, as far as a proxy may understand it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppProtocol {
    /// Bytes.
    #[default]
    Opaque,
    /// HTTP without TLS, of whatever version: requests, each of which may go to another endpoint.
    Http,
}

impl AppProtocol {
    /// By the name in a port's `appProtocol`: IANA's, or one of Kubernetes' own (KEP-3726). Names are of either case (RFC 6335,
    /// section 5.1).
    pub fn named(name: &str) -> Self {
        const HTTP: [&str; 4] = ["http", "kubernetes.io/h2c", "kubernetes.io/ws", "grpc"];
        if HTTP.iter().any(|known| known.eq_ignore_ascii_case(name)) { Self::Http } else { Self::Opaque }
    }
}

/// A slice of the endpoints of one Service, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: ObjectName,
    /// The Service that it belongs to (label `kubernetes.io/service-name`).
    pub service: ServiceName,
    /// Ports; each applies to all endpoints of the slice.
    pub ports: Box<[SlicePort]>,
    /// Endpoints.
    pub endpoints: SliceEndpoints,
    /// What is seldom needed; `None`: nothing is said.
    pub details: Option<Box<SliceDetails>>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: when the change of a pod or Service happened that this
    /// form of the slice came from.
    pub trigger_time: Option<SystemTime>,
}

impl EndpointSlice {
    /// The family of its endpoints.
    pub fn family(&self) -> crate::IpFamily {
        match self.endpoints {
            SliceEndpoints::V4(_) => crate::IpFamily::V4,
            SliceEndpoints::V6(_) => crate::IpFamily::V6,
        }
    }
}

/// What weights of a slice's endpoints depend on. It is not with the endpoints, of which there may be very many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceDetails {
    /// Each once.
    zones: Box<[Name]>,
    /// By endpoint, the position of its zone, or [`SliceDetails::NOWHERE`].
    zone_of: Box<[u8]>,
    /// What the slice itself says about each endpoint's weight; `None`: nothing about any.
    weights: Option<Box<[Option<u32>]>>,
}

impl SliceDetails {
    const NOWHERE: u8 = u8::MAX;

    /// Of endpoints with these zones and weights, both in their order; `None`: nothing is said of any. More zones than a slice may sensibly
    /// have (255) are left out.
    pub fn new(
        zone_of: impl IntoIterator<Item = Option<Name>>,
        weights: Option<Vec<Option<u32>>>,
    ) -> Option<Box<Self>> {
        let mut zones: Vec<Name> = Vec::new();
        let mut position = |zone: Option<Name>| {
            let Some(zone) = zone else { return Self::NOWHERE };
            let known = zones.iter().position(|known| *known == zone).unwrap_or_else(|| {
                zones.push(zone);
                zones.len() - 1
            });
            u8::try_from(known).unwrap_or(Self::NOWHERE)
        };
        let zone_of = zone_of.into_iter().map(&mut position).collect();
        let says_something = !zones.is_empty() || weights.is_some();
        let details = Self { zones: zones.into(), zone_of, weights: weights.map(Into::into) };
        says_something.then(|| Box::new(details))
    }

    /// The zone of the endpoint at a position.
    pub fn zone(&self, at: usize) -> Option<&Name> {
        let position = self.zone_of.get(at).filter(|position| **position != Self::NOWHERE)?;
        self.zones.get(usize::from(*position))
    }

    /// What the slice says about the weight of the endpoint at a position.
    pub fn weight(&self, at: usize) -> Option<u32> {
        *self.weights.as_ref()?.get(at)?
    }
}

/// One port of a slice. It serves the Service port of the same name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; matches the Service port's name, also when empty.
    pub name: Name,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the endpoint; never 0.
    pub port: u16,
}

/// The endpoints of a slice, by its `addressType`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceEndpoints {
    /// `addressType: IPv4`.
    V4(Box<[Endpoint<V4>]>),
    /// `addressType: IPv6`.
    V6(Box<[Endpoint<V6>]>),
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint<F: Family> {
    /// `addresses[0]`.
    pub address: F::Addr,
    /// Conditions.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Name>,
    /// `hints`; `None` when there are none, which is most of the time.
    pub hints: Option<Box<Hints>>,
}

/// An endpoint's conditions after the API's defaults: absent `ready` and `serving` mean true, absent `terminating`
/// means false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new traffic (it is ready and not terminating, or the Service publishes not-ready addresses).
    pub ready: bool,
    /// Would take traffic if it has to, also while terminating.
    pub serving: bool,
    /// Is shutting down.
    pub terminating: bool,
}

impl Conditions {
    /// Takes new flows as long as there is nothing better: it is shutting down, but still serves.
    pub(crate) fn is_last_resort(self) -> bool {
        self.serving && self.terminating
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

/// Topology hints of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Box<[Name]>,
    /// `forNodes[].name`.
    pub nodes: Box<[Name]>,
}

/// What the proxy uses of its Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's name (no namespace).
    pub name: ObjectName,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// Usable addresses: `InternalIP`s in order, then `ExternalIP`s.
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[IpNet]>,
    /// `metadata.deletionTimestamp` is set.
    pub is_deleting: bool,
    /// A taint with the key `ToBeDeletedByClusterAutoscaler`, whatever its value and effect: the autoscaler drains the node.
    pub is_scaled_down: bool,
    /// The keys of `spec.taints`, in their order there; a key may be there twice, with different effects.
    pub taints: Box<[Name]>,
}

impl Node {
    /// Whether load balancers should send new traffic to this node (KEP-3836; upstream's `NodeEligible` in
    /// `pkg/proxy/healthcheck/proxy_health.go`).
    pub fn is_eligible(&self) -> bool {
        !self.is_deleting && !self.is_scaled_down
    }

    /// The node's primary address of a family: the first one listed.
    pub fn primary_address(&self, family: crate::IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|addr| crate::IpFamily::of(*addr) == family)
    }
}

/// A range that cluster IPs are allocated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// The object's name (no namespace).
    pub name: ObjectName,
    /// `spec.cidrs`.
    pub cidrs: Box<[IpNet]>,
}
