//! The packet contract as a table: who may reach which address of a Service under which policy, which endpoints answer,
//! and whose address they see. Every line is run in both families, over TCP and UDP.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use testkit::client::{ConnectFailure, FailureClass, Reply, Transport, ask_once};
use testkit::cluster::{Cluster, LINE_PORT, NODE, NODE2, UDP_PORT};
use testkit::lab::Host;
use testkit::objects::{self, Port};
use testkit::proxy::wait_until;

use crate::support::{PATIENCE, check_listable, cluster, start};

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

#[test]
fn every_line_of_the_contract_holds() {
    let cluster = cluster(2, 1);
    let _proxy = start(&cluster);
    let lines: Vec<Line> = TABLE.lines().filter_map(Line::parse).collect();
    let situations: BTreeSet<Situation> = lines.iter().map(|line| line.situation).collect();
    let situations: Vec<Situation> = situations.into_iter().collect();
    for (n, situation) in situations.iter().enumerate() {
        situation.create(&cluster, n);
    }
    let cases = lines.iter().flat_map(|line| {
        let n = situations.iter().position(|situation| *situation == line.situation).unwrap();
        line.cases(n)
    });
    let cases: Vec<Case> = cases.collect();
    assert!(cases.len() * 2 >= 120, "{} cases in two families", cases.len());
    wait_for_all(&cluster, situations.len());
    // Drops take their time-out, so clients work side by side.
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = cases
            .chunks(cases.len().div_ceil(12))
            .map(|chunk| scope.spawn(|| chunk.iter().flat_map(|case| case.run(&cluster)).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<String>>()
    });
    assert!(failures.is_empty(), "{} of {} runs:\n{}", failures.len(), cases.len() * 4, failures.join("\n"));
    check_listable(&cluster);
}

/// The policies and endpoints of one Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Situation {
    internal: &'static str,
    external: &'static str,
    local: &'static str,
    remote: &'static str,
}

struct Line {
    situation: Situation,
    clients: &'static str,
    addresses: &'static str,
    answer: &'static str,
    seen: &'static str,
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
            clients,
            addresses,
            answer,
            seen,
        })
    }

    fn cases(&self, n: usize) -> Vec<Case> {
        let pairs =
            self.clients.split(',').flat_map(|client| self.addresses.split(',').map(move |to| (client, to)));
        pairs
            .map(|(client, address)| Case {
                n,
                situation: self.situation,
                client,
                address,
                answer: self.answer,
                seen: self.seen,
            })
            .collect()
    }
}

const PORT: u16 = 80;

fn ports(n: usize) -> [Port; 2] {
    let node_port = Some(31000 + u16::try_from(n).unwrap());
    [
        Port { name: "line", protocol: "TCP", port: PORT, target: LINE_PORT, node_port },
        Port { name: "dgram", protocol: "UDP", port: PORT, target: UDP_PORT, node_port },
    ]
}

fn address(kind: &str, n: usize, v6: bool) -> IpAddr {
    let text = match (kind, v6) {
        ("cluster-ip", false) => format!("10.96.1.{n}"),
        ("cluster-ip", true) => format!("fd00:10:96::1{n:02}"),
        ("external-ip", false) => format!("203.0.113.{n}"),
        ("external-ip", true) => format!("fd00:203::{n}"),
        ("lb-ip", false) => format!("203.0.113.{}", 100 + n),
        ("lb-ip", true) => format!("fd00:203::1:{n}"),
        (kind, _) => panic!("no such kind of address: {kind}"),
    };
    text.parse().unwrap()
}

impl Situation {
    /// Service `s-N`, with all kinds of addresses.
    fn create(&self, cluster: &Cluster, n: usize) {
        let name = format!("s-{n}");
        let both = |kind| [address(kind, n, false), address(kind, n, true)];
        let mut service = objects::service(&name, &both("cluster-ip"), &ports(n));
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["internalTrafficPolicy"] = json!(self.internal);
        service["spec"]["externalTrafficPolicy"] = json!(self.external);
        service["spec"]["externalIPs"] = json!(both("external-ip"));
        let ingress: Vec<Value> = both("lb-ip").iter().map(|ip| json!({ "ip": ip })).collect();
        service["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        if self.external == "Local" {
            service["spec"]["healthCheckNodePort"] = json!(32000 + n);
        }
        cluster.apply(service).unwrap();
        for (suffix, v6) in [("v4", false), ("v6", true)] {
            let ip = |host: &Host| if v6 { IpAddr::from(host.ip6()) } else { host.ip4().into() };
            let hosts =
                [(cluster.lab.pod(0), NODE, self.local), (cluster.lab.node2_pod(0), NODE2, self.remote)];
            let endpoints = hosts.into_iter().filter(|(.., state)| *state != "none");
            let endpoints: Vec<Value> =
                endpoints.map(|(host, node, state)| endpoint(ip(host), node, state)).collect();
            let mut slice = objects::slice(&name, suffix, &ports(n), &[]);
            slice["addressType"] = json!(if v6 { "IPv6" } else { "IPv4" });
            slice["endpoints"] = json!(endpoints);
            cluster.apply(slice).unwrap();
        }
    }
}

fn endpoint(ip: IpAddr, node: &str, state: &str) -> Value {
    let (ready, serving, terminating) = match state {
        "ready" => (true, true, false),
        "ending" => (false, true, true),
        "not-ready" => (false, false, false),
        other => panic!("no such state: {other}"),
    };
    let conditions = json!({ "ready": ready, "serving": serving, "terminating": terminating });
    json!({ "addresses": [ip], "nodeName": node, "conditions": conditions })
}

/// One client and one address of one Service.
struct Case {
    n: usize,
    situation: Situation,
    client: &'static str,
    address: &'static str,
    answer: &'static str,
    seen: &'static str,
}

impl Case {
    /// What is not as it should be, a line each.
    fn run(&self, cluster: &Cluster) -> Vec<String> {
        let lab = &cluster.lab;
        let client: &Host = match self.client {
            "pod" => lab.pod(1),
            "host" => lab.node(),
            "outside" => lab.outside(),
            other => panic!("no such client: {other}"),
        };
        let runs = [false, true].into_iter().flat_map(|v6| [Transport::Tcp, Transport::Udp].map(|t| (v6, t)));
        let failures = runs.filter_map(|(v6, transport)| {
            let ip = |host: &Host| if v6 { IpAddr::from(host.ip6()) } else { host.ip4().into() };
            let to: SocketAddr = match self.address {
                "node-port" => (ip(lab.node()), 31000 + u16::try_from(self.n).unwrap()).into(),
                kind => (address(kind, self.n, v6), PORT).into(),
            };
            let expected_source = if self.seen == "node" { ip(lab.node()) } else { ip(client) };
            let failure = self.check(cluster, client, transport, to, expected_source)?;
            Some(format!(
                "{:?} {} -> {} {to} {transport:?}: {failure}",
                self.situation, self.client, self.address
            ))
        });
        failures.collect()
    }

    fn check(
        &self,
        cluster: &Cluster,
        client: &Host,
        transport: Transport,
        to: SocketAddr,
        source: IpAddr,
    ) -> Option<String> {
        let ask = |limit| client.run(|| ask_once(transport, to, limit));
        let (local, remote) = (cluster.lab.pod(0).name(), cluster.lab.node2_pod(0).name());
        let wanted = match self.answer {
            "refused" => return expect_failure(&ask(crate::support::REQUEST), is_refusal),
            "dropped" => return expect_failure(&ask(DROP_LIMIT), is_drop),
            "local" => BTreeSet::from([local]),
            "remote" => BTreeSet::from([remote]),
            "both" => BTreeSet::from([local, remote]),
            other => panic!("no such answer: {other}"),
        };
        // Of two endpoints, one is not met in 24 tries once in eight million runs.
        let mut met = BTreeSet::new();
        for _ in 0..24 {
            match ask(crate::support::REQUEST) {
                Ok(reply) if reply.client.ip() != source => {
                    return Some(format!("the endpoint sees {}, not {source}", reply.client.ip()));
                }
                Ok(reply) => met.insert(reply.name),
                Err(failure) => return Some(format!("{failure} instead of {}", self.answer)),
            };
        }
        let met: BTreeSet<&str> = met.iter().map(String::as_str).collect();
        (met != wanted).then(|| format!("answered by {met:?} instead of {wanted:?}"))
    }
}

/// How long a client waits before it takes a packet for dropped.
const DROP_LIMIT: std::time::Duration = std::time::Duration::from_millis(700);

fn expect_failure(
    answer: &Result<Reply, ConnectFailure>,
    right: fn(&ConnectFailure) -> bool,
) -> Option<String> {
    match answer {
        Ok(reply) => Some(format!("answered by {}", reply.name)),
        Err(failure) => (!right(failure)).then(|| format!("fails with {failure}")),
    }
}

/// A datagram of the node itself is refused inside the system call, with EPERM.
fn is_refusal(failure: &ConnectFailure) -> bool {
    matches!(failure.class(), FailureClass::Refused) || is_not_permitted(failure)
}

/// So is one that is dropped.
fn is_drop(failure: &ConnectFailure) -> bool {
    matches!(failure.class(), FailureClass::TimedOut) || is_not_permitted(failure)
}

fn is_not_permitted(failure: &ConnectFailure) -> bool {
    matches!(failure, ConnectFailure::Other(error) if error.raw_os_error() == Some(1))
}

/// All Services and slices are in the kernel: the last one created is.
#[track_caller]
fn wait_for_all(cluster: &Cluster, n_services: usize) {
    let last = |v6| address("lb-ip", n_services - 1, v6).to_string();
    let there = || {
        let text = check_listable(cluster);
        text.contains(&last(false)) && text.contains(&last(true))
    };
    assert!(wait_until(PATIENCE, there), "not programmed:\n{}", check_listable(cluster));
    // The slices of the last Service follow its object at once.
    std::thread::sleep(std::time::Duration::from_millis(500));
}
