//! How everything is at a moment, as values for those who ask: commands, pages, programs. Nothing in here is text for people.
//!
//! The types stand for themselves, so that they can be kept stable while what is inside changes.

pub(crate) mod build;

use std::net::{IpAddr, SocketAddr};

use model::ServiceName;
use serde::{Deserialize, Serialize};

/// At most so many Services are told at once: telling more would hold up the event loop.
pub const MAX_PAGE: usize = 200;
/// For the same reason, no more are looked at for one question, whether they are told or not.
pub const MAX_LOOK: usize = 2000;
/// For the same reason, at most so many claims that lose, of each family.
pub const MAX_CONFLICTS: usize = 1000;

/// How everything is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The name of this node's Node object.
    pub node: String,
    /// There is such a Node object, or was one since the start.
    pub is_node_known: bool,
    /// Its addresses.
    pub node_addresses: Vec<IpAddr>,
    /// Its zone, by which topology hints are honoured.
    pub zone: Option<String>,
    /// Rises whenever something of this may have changed.
    pub generation: u64,
    /// Every kind of object has been listed completely. Before, nothing is programmed.
    pub is_listed: bool,
    /// Nothing is programmed because the Node has no pod CIDRs, by which pods are recognised.
    pub waits_for_pod_cidrs: bool,
    /// Services, and owners of slices, that are known.
    pub services: usize,
    /// Each family that is served.
    pub families: Vec<FamilyState>,
    /// Claims that lose against another Service's, at most [`MAX_CONFLICTS`] of each family.
    pub conflicts: Vec<Conflict>,
    /// The last changes of each family, oldest first; those of the start are not in it.
    pub recent_changes: Vec<RecentChange>,
}

/// Services that are asked for, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only those behind this one.
    pub after: Option<ServiceName>,
    /// Only those that have this address, or one of the others that are given: an address of whatever kind, an endpoint.
    pub address: Option<IpAddr>,
    /// Only those that have this node port, or one of the others.
    pub node_port: Option<u16>,
}

/// Some of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// At most [`MAX_PAGE`].
    pub services: Vec<Service>,
    /// Behind this one may be more; none: these are the last.
    pub next: Option<ServiceName>,
}

/// How a family is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyState {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// As `--proxy-mode` spells it.
    pub mode: String,
    /// What the kernel holds is known. If not, it is about to be read or made anew.
    pub is_known: bool,
    /// All that was known at some moment has been in force at least once.
    pub was_synced: bool,
    /// When all that was known was last found to be in force, in seconds of Unix time; none: never yet.
    pub last_synced_at: Option<f64>,
    /// For how long the oldest of what is known and not in force has been waiting, in seconds; none: all is.
    pub waiting_seconds: Option<f64>,
    /// Frontends that were refused alone and are tried again.
    pub refused: usize,
    /// The last failure, while it lasts.
    pub failure: Option<Failure>,
    /// Frontends that are wanted.
    pub frontends: usize,
    /// Rules by table, in modes that count them.
    pub rules: Vec<RuleCount>,
    /// What was undone, and what failed.
    pub repairs: Repairs,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// With its causes.
    pub error: String,
    /// So many in a row.
    pub times: u32,
    /// In which it is tried again.
    pub retry_in_seconds: f64,
}

/// How often something went wrong since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repairs {
    /// Times that others' changes were undone.
    pub repairs: u64,
    /// Those of them that only an audit found.
    pub audit_divergences: u64,
    /// Times that everything was made anew.
    pub rebuilds: u64,
    /// Readings that came to nothing.
    pub failed_readings: u64,
    /// Syncs that were refused, wholly or in part.
    pub failed_syncs: u64,
}

/// Rules of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleCount {
    /// The table's name.
    pub table: String,
    /// How many are ours.
    pub held: usize,
    /// How many the last sync wrote.
    pub written: usize,
}

/// Two Services claim the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The address; none: a node port.
    pub address: Option<IpAddr>,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// The port.
    pub port: u16,
    /// The Service port whose claim is in force.
    pub winner: String,
    /// The one whose claim is not.
    pub loser: String,
}

/// A change of a Service on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentChange {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it became known, in seconds of Unix time.
    pub known_at: f64,
    /// From then until it was in force, in seconds; none: it is not yet.
    pub latency_seconds: Option<f64>,
}

/// A Service on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What each family makes of it.
    pub families: Vec<ServiceFamily>,
}

/// A Service in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFamily {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// It has a cluster IP of the family. If not, it is not served.
    pub has_cluster_ip: bool,
    /// Its ports, in the object's order.
    pub ports: Vec<Port>,
    /// Its last change, if that is among the recent ones. If not, what is in force has been so for longer.
    pub last_change: Option<RecentChange>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The Service port, as `namespace/name:port`.
    pub service_port: String,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// The addresses by which it is reached.
    pub addresses: Vec<Address>,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u64>,
    /// How workers of this node choose endpoints, and who asks for them; none if they are not asked for.
    pub proxying: Option<String>,
    /// Which endpoints new flows are balanced over, by traffic policy.
    pub policies: Vec<Policy>,
    /// All its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What went through, in modes that count it.
    pub traffic: Option<Traffic>,
}

/// An address of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Which of the Service's addresses it is.
    pub kind: AddressKind,
    /// The address; none: any of the node's that serve node ports.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether packets to it go where this says.
    pub state: AddressState,
    /// What serves it, in modes that can tell.
    pub rules: Vec<Rule>,
}

/// Which of a Service's addresses one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "Kubernetes' names")]
pub enum AddressKind {
    ClusterIp,
    LoadBalancerIp,
    ExternalIp,
    NodePort,
}

/// Whether an address is served as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum AddressState {
    /// It is.
    InForce,
    /// It is about to be.
    Waiting,
    /// Another Service claims it too, and has it.
    #[serde(rename_all = "camelCase")]
    Lost {
        /// That Service's port.
        winner: String,
    },
    /// It is an external IP that the configuration does not allow.
    NotAllowed,
}

/// Something that serves an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Where it is.
    pub place: String,
    /// As the mode's own tools print it.
    pub text: String,
}

/// The endpoints of a traffic policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Which.
    pub policy: TrafficPolicy,
    /// The addresses that it governs, in words such as `cluster IP 10.96.0.1`.
    pub governs: Vec<String>,
    /// How many endpoints there are.
    pub endpoints: usize,
    /// Why these.
    pub basis: Basis,
    /// Without any, packets are dropped rather than refused, since other nodes have some.
    pub drops: bool,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "Kubernetes' names")]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// Why a policy has the endpoints that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Basis {
    /// Those that are ready and hinted for this node.
    ReadySameNode,
    /// Those that are ready and hinted for this zone.
    ReadySameZone,
    /// Those that are ready: not every one has a hint.
    ReadyHintsIncomplete,
    /// Those that are ready: this node's zone is not known.
    ReadyZoneUnknown,
    /// Those that are ready: none is hinted for this zone.
    ReadyNoneForThisZone,
    /// Those of this node that are ready.
    ReadyLocal,
    /// None is ready: those that still serve while they end.
    Terminating,
    /// None of this node is ready: those of it that still serve while they end.
    TerminatingLocal,
    /// None is usable.
    None,
    /// None of this node is usable.
    NoneLocal,
}

/// An endpoint.
#[expect(clippy::struct_excessive_bools, reason = "Kubernetes' conditions are such")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// It runs on this node.
    pub is_local: bool,
    /// The condition `ready`.
    pub is_ready: bool,
    /// The condition `serving`.
    pub is_serving: bool,
    /// The condition `terminating`.
    pub is_terminating: bool,
    /// It has topology hints, whatever they say.
    pub is_hinted: bool,
    /// The `EndpointSlice` that it is from.
    pub slice: String,
    /// Why workers of this node give it nothing for now; none if they do, or if there are none.
    pub out: Option<String>,
    /// Its use, by policy.
    pub uses: Vec<Use>,
    /// What went to it, in modes that count it.
    pub traffic: Option<Traffic>,
}

/// The use of an endpoint under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// Which policy.
    pub policy: TrafficPolicy,
    /// Whether it takes new flows, or why not.
    pub usage: Usage,
}

/// Whether an endpoint takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Usage {
    /// It does.
    Serves,
    /// It is on another node.
    OtherNode,
    /// It is ending, and others are ready.
    Terminating,
    /// It is not ready.
    NotReady,
    /// It is meant for other nodes or zones.
    HintedElsewhere,
}

/// What went through a Service port, or to one of its endpoints. It is counted by the kernel, outlives this program there, and
/// never goes backwards in here. (Workers of mode userspace count until they end.)
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// New flows that were given an endpoint.
    pub connections: u64,
    /// Packets that were refused, since there is no endpoint.
    pub refused: u64,
    /// Packets that were dropped, since their endpoints are on other nodes.
    pub dropped: u64,
    /// Packets both ways, where the kernel counts them anyway.
    pub packets: Option<u64>,
    /// Bytes of these; of what they carry, where a worker counts.
    pub bytes: Option<u64>,
    /// Times that an endpoint did not take a flow, so that another one was tried, where a worker does that.
    pub retries: Option<u64>,
    /// New flows in a second, lately; none: it was read only once.
    pub connections_per_second: Option<f64>,
    /// Packets that were refused in a second, lately.
    pub refused_per_second: Option<f64>,
    /// Packets that were dropped in a second, lately.
    pub dropped_per_second: Option<f64>,
    /// How old this is, in seconds.
    pub age_seconds: f64,
}
