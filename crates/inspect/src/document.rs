//! What the API tells, besides the agent's own `agent::snapshot`: each type is a document of `/api/v1` or a part of one.
//!
//! Times are seconds of Unix time, durations seconds. Fields may be added; none changes its meaning within a version.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use agent::snapshot::{Conflict, Overview, Service, TrafficPolicy};
use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// As `--proxy-mode` spells it.
    pub mode: String,
    /// When the program started.
    pub started_at: f64,
    /// When this was told.
    pub now: f64,
    /// What `/healthz` and `/livez` say, with reasons.
    pub health: Health,
    /// What the proxy can't do on this node.
    pub limits: Vec<Limit>,
    /// How everything is.
    pub overview: Overview,
}

/// The proxy's health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Nothing has been waiting for the kernel for too long, and the event loop turns.
    pub healthy: bool,
    /// Load balancers should use this node, as far as its Node object says.
    pub node_eligible: bool,
    /// Every family has had its rules in place at least once.
    pub started: bool,
    /// Each family's own.
    pub families: BTreeMap<String, FamilyHealth>,
    /// What becomes of connections from the node to the canary's Service, by family: `answers`, `idle`, `endpoints-silent` or
    /// `unreachable`; empty without a canary.
    pub canary: BTreeMap<String, String>,
    /// Why it is not healthy or not eligible, in words.
    pub reasons: Vec<String>,
}

/// The health of one family.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyHealth {
    /// Nothing has been waiting for too long.
    pub healthy: bool,
    /// When its rules were last known to be right; before that, when it was started.
    pub last_updated: f64,
    /// For how long the oldest of what waits has been waiting.
    pub pending_seconds: Option<f64>,
}

/// Something that is switched off on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// What can't be done.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// `GET /api/v1/services`: Services in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    /// When this was told.
    pub now: f64,
    /// The Services that were asked for.
    pub items: Vec<ServiceRow>,
}

/// A Service in one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Its load balancer's and external addresses.
    pub external_ips: Vec<IpAddr>,
    /// Its ports, such as `80/TCP` or `80:30080/TCP` with a node port.
    pub ports: Vec<String>,
    /// What governs its cluster IP; none if it has none that is served.
    pub internal_policy: Option<TrafficPolicy>,
    /// What governs its other addresses; none if it has none.
    pub external_policy: Option<TrafficPolicy>,
    /// How long a client stays with its endpoint.
    pub affinity_seconds: Option<u64>,
    /// Its endpoints, each once, however many ports it has.
    pub endpoints: EndpointCounts,
    /// Its addresses that another Service has.
    pub conflicts: usize,
    /// Some of it is not in force yet.
    pub waiting: bool,
    /// New flows, in modes that count them; the other counters likewise.
    pub connections: Option<u64>,
    /// New flows in a second, lately.
    pub connections_per_second: Option<f64>,
    /// Packets that were refused, since there is no endpoint.
    pub refused: Option<u64>,
    /// Packets that were dropped, since their endpoints are on other nodes.
    pub dropped: Option<u64>,
}

/// How many endpoints there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCounts {
    /// All of them.
    pub total: usize,
    /// Those that are ready.
    pub ready: usize,
    /// Those that take new flows under some policy of the Service.
    pub serving: usize,
    /// Those of `serving` that run on this node.
    pub local: usize,
    /// Those that are ending.
    pub terminating: usize,
}

/// `GET /api/v1/endpoints`: endpoints in the order of their Services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointList {
    /// When this was told.
    pub now: f64,
    /// The endpoints that were asked for.
    pub items: Vec<EndpointRow>,
}

/// An endpoint of a Service port in one line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// The Service port, as `namespace/name:port`.
    pub service_port: String,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// The endpoint as it is in the Service.
    #[serde(flatten)]
    pub endpoint: agent::snapshot::Endpoint,
}

/// `GET /api/v1/traffic`: what went through Service ports, in modes that count it. Asking has the counters read soon, at most once
/// a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficList {
    /// When this was told.
    pub now: f64,
    /// How old the oldest reading in it is, in seconds; none: nothing was read yet, or the mode counts nothing.
    pub age_seconds: Option<f64>,
    /// Service ports through which anything went, in the order of their names.
    pub items: Vec<TrafficRow>,
}

/// What went through a Service port, both families together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficRow {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service port, as `namespace/name:port`.
    pub service_port: String,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// New flows that were given an endpoint.
    pub connections: u64,
    /// Packets that were refused, since there is no endpoint.
    pub refused: u64,
    /// Packets that were dropped, since their endpoints are on other nodes.
    pub dropped: u64,
    /// New flows in a second, lately; none: it was read only once. Likewise the others.
    pub connections_per_second: Option<f64>,
    /// Packets that were refused in a second.
    pub refused_per_second: Option<f64>,
    /// Packets that were dropped in a second.
    pub dropped_per_second: Option<f64>,
    /// Packets both ways, where the kernel counts them anyway.
    pub packets: Option<u64>,
    /// Bytes of these; of what they carry, where a worker counts.
    pub bytes: Option<u64>,
    /// Times that an endpoint did not take a flow, so that another one was tried, where a worker does that.
    pub retries: Option<u64>,
    /// New flows by endpoint.
    pub endpoints: Vec<TrafficShare>,
}

/// New flows that an endpoint was given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficShare {
    /// The endpoint's address and port.
    pub address: SocketAddr,
    /// All of them.
    pub connections: u64,
    /// In a second, lately.
    pub connections_per_second: Option<f64>,
    /// Bytes to and from it, where they are counted.
    pub bytes: Option<u64>,
}

/// `GET /api/v1/conflicts`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictList {
    /// Claims that lose against another Service's.
    pub items: Vec<Conflict>,
}

/// `GET /api/v1/rejections`: objects, or parts of objects, that can't be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectionList {
    /// By kind and name.
    pub items: Vec<Rejection>,
}

/// Something of an object that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// The object's kind.
    pub kind: String,
    /// Its namespace; empty if it has none.
    pub namespace: String,
    /// Its name; empty if that can't be read either.
    pub name: String,
    /// The field in the API's spelling; empty when the whole object is meant.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// `GET /api/v1/flows`: tracked flows that were directed to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// In no order, so many at most.
    pub items: Vec<FlowRow>,
    /// There are more than these.
    pub truncated: bool,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// Who began it.
    pub source: SocketAddr,
    /// What it was sent to.
    pub destination: SocketAddr,
    /// Who answers.
    pub endpoint: SocketAddr,
    /// The endpoint has answered.
    pub replied: bool,
    /// The endpoint sees an address of this node.
    pub masqueraded: bool,
}

/// `GET /api/v1/services/NAMESPACE/NAME`
pub type ServiceDocument = Service;

/// `GET /api/v1/findings`: what may break this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingList {
    /// The worst first.
    pub items: Vec<Finding>,
    /// What was looked at, also where nothing was found.
    pub checked: Vec<String>,
}

/// Something that is wrong, or may become so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stands for the kind of finding; stays the same.
    pub id: String,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// The command that mends it, or what to do.
    pub mend: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Packets of Services go wrong.
    Error,
    /// They will under some condition.
    Warning,
    /// Good to know.
    Info,
}

/// `GET /api/v1/packet`: what becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketReport {
    /// The packet.
    pub packet: PacketQuestion,
    /// What can become of it, the most likely first.
    pub endings: Vec<Ending>,
    /// The Service port that it is for.
    pub service_port: Option<String>,
    /// The decision in the words of Kubernetes, step by step.
    pub words: Vec<String>,
    /// The rules that match, in their order, as read from the kernel; where chance decides, those of one way.
    pub rules: Vec<RuleStep>,
    /// What can't be known from here.
    pub unknown: Vec<String>,
}

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketQuestion {
    /// Who sends it.
    pub source: SocketAddr,
    /// What it is sent to.
    pub destination: SocketAddr,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// Where it comes from.
    pub from: Place,
    /// The interface that it arrives on; none from the node itself.
    pub interface: Option<String>,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A pod of this node.
    Pod,
    /// This node itself.
    Node,
    /// Outside of this node.
    Outside,
}

/// What can become of a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ending {
    /// What.
    pub verdict: Verdict,
    /// Where it goes; none if it goes nowhere.
    pub to: Option<SocketAddr>,
    /// With a source address of this node.
    pub masqueraded: bool,
    /// How likely, from 0 to 1.
    pub share: f64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Its destination is rewritten.
    Translated,
    /// A worker of this node takes it, and sends to an endpoint itself.
    Proxied,
    /// The rules of Services leave it alone.
    Untouched,
    /// It is answered with an ICMP error.
    Refused,
    /// It is discarded.
    Dropped,
}

/// A rule that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStep {
    /// netfilter's hook.
    pub hook: String,
    /// The table; empty in mode nftables, which has one.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule as its tool prints it.
    pub rule: String,
    /// What it found in sets and maps.
    pub found: Vec<String>,
}

/// A line of `kube-proxy trace -o json`: a packet of a Service as it passed the rules. Not told by the API, since only a program on
/// the node can trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TracedPacket {
    /// The Service port that it is for; none: that is not known any more.
    pub service_port: Option<String>,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// Who sends it.
    pub source: SocketAddr,
    /// What it was sent to.
    pub destination: SocketAddr,
    /// Where it goes instead.
    pub endpoint: Option<SocketAddr>,
    /// What became of it.
    pub verdict: TracedVerdict,
    /// Who or what did that, if it is known.
    pub by: Option<String>,
}

/// What became of a traced packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TracedVerdict {
    /// No rule of any table kept it.
    Passed,
    /// It was answered with an ICMP error.
    Refused,
    /// It was discarded.
    Dropped,
}

/// An error of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What is wrong.
    pub error: String,
}
