//! Frontends: where packets are captured and where they go, in terms that every mode shares.
//!
//! Every rule of Kubernetes has been decided when a [`Frontend`] exists. A mode reads frontends and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use balance::{Policy, Resilience};
use ipnet::IpNet;

use crate::{AppProtocol, Family, Protocol, ServicePortName, TrafficPolicy, Uid};

/// Which of a Service's addresses a frontend is. The order is that of precedence when two Services claim the same
/// address, protocol and port: the first wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// `clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancerIp,
    /// `externalIPs`.
    ExternalIp,
    /// `ports[].nodePort`, on every address of the node that is accepted for node ports.
    NodePort,
}

/// The address that packets are captured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress<F: Family> {
    /// A virtual address.
    Ip(F::Addr),
    /// Any address of the node that is accepted for node ports.
    Node,
}

impl<F: Family> std::fmt::Display for FrontendAddress<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(addr) => {
                let addr: std::net::IpAddr = (*addr).into();
                addr.fmt(f)
            }
            Self::Node => f.write_str("node port"),
        }
    }
}

/// What a packet must match to belong to a frontend. At most one frontend has each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<F: Family> {
    /// Destination address.
    pub address: FrontendAddress<F>,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port, in host byte order.
    pub port: u16,
}

/// One endpoint as packets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination<F: Family> {
    /// Address.
    pub address: F::Addr,
    /// Port, in host byte order.
    pub port: u16,
    /// Which node the endpoint runs on.
    pub node: EndpointNode,
}

/// Which node an endpoint runs on, by `nodeName` in its EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointNode {
    /// This one.
    This,
    /// Another one.
    Other,
    /// Any: the slice does not say, as is usual where somebody wrote it by hand. Policy `Local` leaves such an endpoint out.
    Unknown,
}

impl EndpointNode {
    /// Where it is known: this node, or another one.
    #[must_use]
    pub fn this_if(is_here: bool) -> Self {
        if is_here { Self::This } else { Self::Other }
    }

    /// Whether the endpoint may send to itself through this node (hairpin).
    pub fn may_be_this(self) -> bool {
        self != Self::Other
    }
}

/// What happens to a new flow that finds no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Refused with ICMP port unreachable: no node has a usable endpoint.
    Reject,
    /// Silently dropped: other nodes have usable endpoints and a load balancer should look there (`Local` policy).
    Drop,
}

/// Where new flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pool<F: Family> {
    /// To one of these, each as likely as any other. Sorted, without duplicates, never empty.
    Endpoints(Arc<[Destination<F>]>),
    /// Nowhere.
    Empty(Verdict),
}

impl<F: Family> Pool<F> {
    /// A pool of these endpoints, or the verdict when there are none.
    pub fn new(endpoints: BTreeSet<Destination<F>>, when_empty: Verdict) -> Self {
        if endpoints.is_empty() {
            Self::Empty(when_empty)
        } else {
            Self::Endpoints(endpoints.into_iter().collect())
        }
    }

    /// The endpoints; empty when there are none.
    pub fn endpoints(&self) -> &[Destination<F>] {
        match self {
            Self::Endpoints(endpoints) => endpoints,
            Self::Empty(_) => &[],
        }
    }
}

/// When the source address of a flow is rewritten to one of this node's, besides the flows that return to their own
/// sender (hairpin), which always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Never: the endpoint sees the client.
    Never,
    /// Unless the client is a pod, as far as the node can tell one: replies to others must come back through this node.
    UnlessFromPod,
    /// Always.
    Always,
}

/// Weights of endpoints, by address and port.
pub type EndpointWeights<F> = BTreeMap<(<F as Family>::Addr, u16), u32>;

/// `sessionAffinity: ClientIP` of a Service port: a client stays with its endpoint, by whichever address it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// For how long after its last new flow.
    pub timeout: Duration,
    /// The Service, so that another one of the same name does not inherit its clients. `None` if it has no usable UID.
    pub service: Option<Uid>,
}

/// One captured address, protocol and port, and everything that decides where its packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend<F: Family> {
    /// What packets match.
    pub key: FrontendKey<F>,
    /// Which of the Service's addresses this is.
    pub kind: AddressKind,
    /// The Service's port that it serves.
    pub service: ServicePortName,
    /// Where new flows go.
    pub pool: Pool<F>,
    /// Which of the Service's endpoints `pool` has: all frontends of a Service port whose policy is the same have the same
    /// pool.
    pub policy: TrafficPolicy,
    /// Where new flows from pods and from this node itself go, where that differs from `pool`: the short cut of
    /// `externalTrafficPolicy: Local`. It is the pool of policy `Cluster`.
    pub internal_pool: Option<Pool<F>>,
    /// `ClientIP` affinity.
    pub affinity: Option<Affinity>,
    /// The policy by which a proxy is to choose endpoints, if the Service asks for one.
    pub proxying: Option<Policy>,
    /// What proxies are to do besides choosing endpoints, if the Service asks for anything.
    pub resilience: Option<Arc<Resilience>>,
    /// How often proxies are to choose which endpoint by policy `weighted`, where that is said; all others have weight 1.
    pub weights: Option<Arc<EndpointWeights<F>>>,
    /// What goes through it. Modes without a proxy have no use for it.
    pub app_protocol: AppProtocol,
    /// Source address rewriting.
    pub masquerade: Masquerade,
    /// `loadBalancerSourceRanges`: new flows from elsewhere are dropped. `None`: no restriction.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// The endpoints that existing flows may stay with, which are all that serve, whatever policies and hints say: of UDP and SCTP,
    /// and of TCP where HNS serves. Flows to others have to be forgotten, or they would go nowhere for as long as their client sends. Sorted;
    /// empty for TCP elsewhere, whose flows end by themselves; unless
    /// `resets_connections` is set: then all that there are, in whatever condition.
    pub flow_endpoints: Arc<[Destination<F>]>,
    /// Of TCP: connections to endpoints that are gone are to be reset.
    pub resets_connections: bool,
    /// Endpoints see the frontend's address, not their own, as the destination (annotation `preserve-destination`). Only where HNS
    /// serves ([`ThisNode::served_by_hns`](crate::view::ThisNode::served_by_hns)).
    pub preserves_destination: bool,
    /// `healthCheckNodePort`, of a load balancer's address: where the load balancer asks whether this node has endpoints.
    pub health_check_port: Option<u16>,
}

impl<F: Family> Frontend<F> {
    /// The frontend of a Service port that asks for nothing but that: policy `Cluster`, open to all, without affinity.
    pub fn new(key: FrontendKey<F>, kind: AddressKind, service: ServicePortName, pool: Pool<F>) -> Self {
        Self {
            key,
            kind,
            service,
            pool,
            policy: TrafficPolicy::Cluster,
            internal_pool: None,
            affinity: None,
            proxying: None,
            resilience: None,
            weights: None,
            app_protocol: AppProtocol::Opaque,
            masquerade: match kind {
                AddressKind::ClusterIp => Masquerade::UnlessFromPod,
                AddressKind::LoadBalancerIp | AddressKind::ExternalIp | AddressKind::NodePort => {
                    Masquerade::Always
                }
            },
            allowed_sources: None,
            flow_endpoints: Arc::default(),
            resets_connections: false,
            preserves_destination: false,
            health_check_port: None,
        }
    }
}
