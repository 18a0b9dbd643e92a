//! The packet contract as a table: who may reach which address of a Service under which policy, which endpoints answer,
//! and whose address they see.
//!
//! Every line is run in both families, over TCP and UDP: with real packets against a real kernel, and on paper (crate `walk`)
//! against the rules as they are rendered and as they are read from the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::objects::{self, LINE_PORT, NODE, NODE2, Port, UDP_PORT};

/// Columns: internal and external traffic policy; state of the endpoint on this node and of the one on the other node;
/// clients; addresses; who answers (`local`, `remote`, `both`, `refused` or `dropped`); whom the endpoint sees: the
/// client itself or the node.
///
/// `ready`, `ending` (terminating but serving), `not-ready`; `none`: there is no such endpoint.
const TABLE: &str = "
    # All is well: the policies decide.
    Cluster Cluster  ready     ready      pod               cluster-ip                      both     client
    Cluster Cluster  ready     ready      host,outside      cluster-ip                      both     node
    Cluster Cluster  ready     ready      pod,host,outside  external-ip,lb-ip,node-port     both     node
    Local   Local    ready     ready      pod               cluster-ip                      local    client
    Local   Local    ready     ready      host,outside      cluster-ip                      local    node
    Local   Local    ready     ready      pod               external-ip,lb-ip,node-port     both     client
    Local   Local    ready     ready      host              external-ip,lb-ip,node-port     both     node
    Local   Local    ready     ready      outside           external-ip,lb-ip,node-port     local    client
    # A policy is about its own addresses only.
    Local   Cluster  ready     ready      pod               cluster-ip                      local    client
    Local   Cluster  ready     ready      outside           external-ip,lb-ip,node-port     both     node
    Cluster Local    ready     ready      pod               cluster-ip                      both     client
    Cluster Local    ready     ready      outside           external-ip,lb-ip,node-port     local    client
    # Nothing here, but elsewhere: Local drops, so that a load balancer looks elsewhere.
    Cluster Cluster  none      ready      pod               cluster-ip                      remote   client
    Cluster Cluster  none      ready      pod,host,outside  external-ip,lb-ip,node-port     remote   node
    Local   Local    none      ready      pod,host,outside  cluster-ip                      dropped  -
    Local   Local    none      ready      outside           external-ip,lb-ip,node-port     dropped  -
    Local   Local    none      ready      pod               external-ip,lb-ip,node-port     remote   client
    Local   Local    none      ready      host              external-ip,lb-ip,node-port     remote   node
    Local   Local    not-ready ready      outside           external-ip,lb-ip,node-port     dropped  -
    # Nothing anywhere: refused, whatever the policy.
    Cluster Cluster  none      none       pod,host,outside  cluster-ip                      refused  -
    Cluster Cluster  none      none       pod,host,outside  external-ip,lb-ip,node-port     refused  -
    Local   Local    none      none       pod,host,outside  cluster-ip                      refused  -
    Local   Local    none      none       pod,host,outside  external-ip,lb-ip,node-port     refused  -
    Local   Local    not-ready not-ready  pod,outside       cluster-ip,node-port            refused  -
    # An endpoint that ends serves where no ready one does: decided for all endpoints and for local ones separately.
    Cluster Cluster  ending    ready      pod               cluster-ip                      remote   client
    Cluster Cluster  ending    ending     pod               cluster-ip                      both     client
    Cluster Cluster  ending    not-ready  outside           external-ip,lb-ip,node-port     local    node
    Local   Local    ending    ready      pod               cluster-ip                      local    client
    Local   Local    ending    ready      outside           external-ip,lb-ip,node-port     local    client
    Local   Local    ending    ready      pod               external-ip,lb-ip,node-port     remote   client
    Local   Local    none      ending     outside           external-ip,lb-ip,node-port     dropped  -
";

/// All of it.
#[derive(Clone, Debug)]
pub struct Contract {
    /// The Services; a case names one by its position.
    pub situations: Vec<Situation>,
    /// What must hold.
    pub cases: Vec<Case>,
}

/// The policies and endpoints of one Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Situation {
    internal: &'static str,
    external: &'static str,
    local: &'static str,
    remote: &'static str,
}

/// One client and one address of one Service.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The Service, as position in [`Contract::situations`].
    pub n: usize,
    /// The Service's policies and endpoints.
    pub situation: Situation,
    /// Who asks.
    pub client: Client,
    /// Which of the Service's addresses is asked.
    pub address: AddressKind,
    /// What comes of it.
    pub answer: Answer,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A pod of the node under test, which is no endpoint.
    Pod,
    /// The node under test itself.
    Host,
    /// Somebody outside of the cluster.
    Outside,
}

/// Which of a Service's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressKind {
    /// Its cluster IP.
    ClusterIp,
    /// Its external IP.
    ExternalIp,
    /// Its load balancer's address.
    LbIp,
    /// Its node port on the node's own address.
    NodePort,
}

/// What comes of asking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// An ICMP error.
    Refused,
    /// Nothing.
    Dropped,
    /// Each of these endpoints answers at times, nobody else does.
    By {
        /// The endpoint on the node under test.
        local: bool,
        /// The endpoint on the other node.
        remote: bool,
        /// The endpoints see the node's address, not the client's.
        sees_node: bool,
    },
}

impl Contract {
    /// Reads the table.
    ///
    /// # Panics
    /// The table is not well-formed.
    pub fn read() -> Self {
        let lines: Vec<Line> = TABLE.lines().filter_map(Line::parse).collect();
        let situations: BTreeSet<Situation> = lines.iter().map(|line| line.situation).collect();
        let situations: Vec<Situation> = situations.into_iter().collect();
        let cases = lines.iter().flat_map(|line| {
            let n = situations.iter().position(|situation| *situation == line.situation).unwrap_or(0);
            line.cases(n)
        });
        let cases = cases.collect();
        Self { situations, cases }
    }
}

struct Line {
    situation: Situation,
    clients: Vec<Client>,
    addresses: Vec<AddressKind>,
    answer: Answer,
}

impl Line {
    fn parse(line: &'static str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [internal, external, local, remote, clients, addresses, answer, seen] = *words.as_slice() else {
            assert!(words.is_empty() || words[0] == "#", "{line}");
            return None;
        };
        Some(Self {
            situation: Situation { internal, external, local, remote },
            clients: clients.split(',').map(client).collect(),
            addresses: addresses.split(',').map(address_kind).collect(),
            answer: answer_of(answer, seen),
        })
    }

    fn cases(&self, n: usize) -> Vec<Case> {
        let pairs =
            self.clients.iter().flat_map(|client| self.addresses.iter().map(move |to| (*client, *to)));
        let case =
            |(client, address)| Case { n, situation: self.situation, client, address, answer: self.answer };
        pairs.map(case).collect()
    }
}

fn client(word: &str) -> Client {
    match word {
        "pod" => Client::Pod,
        "host" => Client::Host,
        "outside" => Client::Outside,
        other => unreachable!("no such client: {other}"),
    }
}

fn address_kind(word: &str) -> AddressKind {
    match word {
        "cluster-ip" => AddressKind::ClusterIp,
        "external-ip" => AddressKind::ExternalIp,
        "lb-ip" => AddressKind::LbIp,
        "node-port" => AddressKind::NodePort,
        other => unreachable!("no such kind of address: {other}"),
    }
}

fn answer_of(answer: &str, seen: &str) -> Answer {
    let by = |local, remote| Answer::By { local, remote, sees_node: seen == "node" };
    match answer {
        "refused" => Answer::Refused,
        "dropped" => Answer::Dropped,
        "local" => by(true, false),
        "remote" => by(false, true),
        "both" => by(true, true),
        other => unreachable!("no such answer: {other}"),
    }
}

/// The port of all Services.
const PORT: u16 = 80;

fn node_port(n: usize) -> u16 {
    31000 + u16::try_from(n).unwrap_or(0)
}

/// An address of the Service at position `n`; for a node port, the port on the node's address.
pub fn target(kind: AddressKind, n: usize, v6: bool, node: IpAddr) -> SocketAddr {
    match kind {
        AddressKind::NodePort => (node, node_port(n)).into(),
        kind => (virtual_ip(kind, n, v6), PORT).into(),
    }
}

fn virtual_ip(kind: AddressKind, n: usize, v6: bool) -> IpAddr {
    let n = u8::try_from(n).unwrap_or(u8::MAX);
    let group = u16::from(n);
    match (kind, v6) {
        (AddressKind::ClusterIp | AddressKind::NodePort, false) => [10, 96, 1, n].into(),
        (AddressKind::ClusterIp | AddressKind::NodePort, true) => {
            [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + group].into()
        }
        (AddressKind::ExternalIp, false) => [203, 0, 113, n].into(),
        (AddressKind::ExternalIp, true) => [0xfd00, 0x203, 0, 0, 0, 0, 0, group].into(),
        (AddressKind::LbIp, false) => [203, 0, 113, 100 + n].into(),
        (AddressKind::LbIp, true) => [0xfd00, 0x203, 0, 0, 0, 0, 1, group].into(),
    }
}

impl Situation {
    /// The Service `s-N` with all kinds of addresses, and its slices: one endpoint on each node, given by its addresses
    /// (IPv4, IPv6).
    pub fn objects(&self, n: usize, local: [IpAddr; 2], remote: [IpAddr; 2]) -> Vec<Value> {
        let name = format!("s-{n}");
        let ports = [
            Port {
                name: "line",
                protocol: "TCP",
                port: PORT,
                target: LINE_PORT,
                node_port: Some(node_port(n)),
            },
            Port {
                name: "dgram",
                protocol: "UDP",
                port: PORT,
                target: UDP_PORT,
                node_port: Some(node_port(n)),
            },
        ];
        let slices = [("v4", "IPv4"), ("v6", "IPv6")].into_iter().enumerate().map(|(i, (suffix, family))| {
            let hosts = [(local[i], NODE, self.local), (remote[i], NODE2, self.remote)];
            let endpoints: Vec<Value> =
                hosts.into_iter().filter_map(|(ip, node, state)| endpoint(ip, node, state)).collect();
            let mut slice = objects::slice(&name, suffix, &ports, &[]);
            slice["addressType"] = json!(family);
            slice["endpoints"] = json!(endpoints);
            slice
        });
        [self.service(&name, n, &ports)].into_iter().chain(slices).collect()
    }

    fn service(&self, name: &str, n: usize, ports: &[Port]) -> Value {
        let both = |kind| [virtual_ip(kind, n, false), virtual_ip(kind, n, true)];
        let mut service = objects::service(name, &both(AddressKind::ClusterIp), ports);
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["internalTrafficPolicy"] = json!(self.internal);
        service["spec"]["externalTrafficPolicy"] = json!(self.external);
        service["spec"]["externalIPs"] = json!(both(AddressKind::ExternalIp));
        let ingress: Vec<Value> = both(AddressKind::LbIp).iter().map(|ip| json!({ "ip": ip })).collect();
        service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        if self.external == "Local" {
            service["spec"]["healthCheckNodePort"] = json!(32000 + n);
        }
        service
    }
}

/// `None`: there is none.
fn endpoint(ip: IpAddr, node: &str, state: &str) -> Option<Value> {
    let (ready, serving, terminating) = match state {
        "none" => return None,
        "ready" => (true, true, false),
        "ending" => (false, true, true),
        "not-ready" => (false, false, false),
        other => unreachable!("no such state: {other}"),
    };
    let conditions = json!({ "ready": ready, "serving": serving, "terminating": terminating });
    Some(json!({ "addresses": [ip], "nodeName": node, "conditions": conditions }))
}
