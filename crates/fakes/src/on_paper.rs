//! The packet contract's world without a kernel: who takes part, the objects, the packets, and what should become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use api::{ManifestFormat, Outcome as ApiOutcome, parse_manifests};
use balance::Policy;
use ipnet::IpNet;
use model::view::{ThisNode, frontends};
use model::{Change, Family, Frontend, Interner, IpFamily, Store, Table, Touched};
use nft::{Op, Ruleset, Transaction};
use serde_json::Value;
use walk::{Origin, Outcome, Packet};

use crate::contract::{AddressKind, Answer, Case, Client, Contract, target};
use crate::objects::{self, NODE, UDP_PORT};

/// `IPPROTO_UDP`
const UDP: u8 = 17;

/// Addresses of those who take part, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The node under test.
    pub node: IpAddr,
    /// The endpoint on it.
    pub local: IpAddr,
    /// The endpoint on the other node.
    pub remote: IpAddr,
    /// Another pod on the node.
    pub pod: IpAddr,
    /// Somebody outside of the cluster.
    pub outside: IpAddr,
    /// All pods.
    pub pods: IpNet,
}

impl Places {
    /// Those of a family.
    pub fn of(family: IpFamily) -> Self {
        let ip = |last: u16, v4: [u8; 3], v6: [u16; 4]| match family {
            IpFamily::V4 => IpAddr::from([v4[0], v4[1], v4[2], last.to_be_bytes()[1]]),
            IpFamily::V6 => IpAddr::from([v6[0], v6[1], v6[2], v6[3], 0, 0, 0, last]),
        };
        let node_net = |last| ip(last, [192, 168, 50], [0xfd00, 0x50, 0, 0]);
        let pods = |last| ip(last, [10, 244, 0], [0xfd00, 0x10, 0x244, 0]);
        let prefix = match family {
            IpFamily::V4 => 16,
            IpFamily::V6 => 47,
        };
        Self {
            node: node_net(1),
            local: pods(2),
            remote: ip(2, [10, 244, 1], [0xfd00, 0x10, 0x244, 1]),
            pod: pods(3),
            outside: node_net(100),
            pods: IpNet::new_assert(pods(0), prefix),
        }
    }
}

/// A store with the objects of the contract.
///
/// # Errors
/// An object is not accepted.
pub fn store(contract: &Contract) -> anyhow::Result<Store> {
    let (v4, v6) = (Places::of(IpFamily::V4), Places::of(IpFamily::V6));
    let services = contract.situations.iter().enumerate();
    let mut values: Vec<_> = services
        .flat_map(|(n, situation)| situation.objects(n, [v4.local, v6.local], [v4.remote, v6.remote]))
        .collect();
    values.push(objects::node(NODE, &[v4.node, v6.node]));
    values.push(objects::service_cidr(&["10.96.0.0/12", "fd00:10:96::/112"]));
    store_of(&values)
}

/// A store with these objects, which go the whole way from their JSON.
///
/// # Errors
/// An object is not accepted.
pub fn store_of(objects: &[Value]) -> anyhow::Result<Store> {
    let text = objects.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let manifests = parse_manifests(&text, ManifestFormat::Json, &mut Interner::default())
        .context("parse the objects")?;
    let mut store = Store::default();
    for parsed in manifests.objects {
        match parsed.outcome {
            ApiOutcome::Keep(object) => store.apply(Change::Apply(object), &mut Touched::default()),
            _ => bail!("{parsed:?}"),
        }
    }
    Ok(store)
}

/// What the node under test makes of these objects.
pub fn table<F: Family>(store: &Store) -> Table<F> {
    let node = ThisNode::new(NODE.into(), store.node(NODE));
    let mut table = Table::default();
    for (name, entry) in store.entries() {
        table.set_service(name, frontends(&node, entry));
    }
    table
}

/// The same, where every other Service (those of even numbers) asks for proxies.
pub fn asking<F: Family>(table: &Table<F>) -> Table<F> {
    let mut by_service = BTreeMap::<_, Vec<Frontend<F>>>::new();
    for frontend in table.iter() {
        let (mut frontend, service) = (frontend.clone(), frontend.service.service.clone());
        let asks = (0..100).step_by(2).any(|n| service.to_string().ends_with(&format!("/s-{n}")));
        frontend.proxying = asks.then_some(Policy::Random);
        by_service.entry(service).or_default().push(frontend);
    }
    let mut table = Table::default();
    for (service, frontends) in by_service {
        table.set_service(&service, frontends);
    }
    table
}

/// A ruleset in which these elements have been added.
///
/// # Errors
/// There is something else in the transaction, or a set that the ruleset does not have.
pub fn with_elements(mut ruleset: Ruleset, added: Transaction) -> anyhow::Result<Ruleset> {
    for op in added.ops {
        let Op::AddElements { set, elements } = op else { bail!("{op:?}") };
        ruleset.sets.get_mut(&set.name).with_context(|| set.name.to_string())?.elements.extend(elements);
    }
    Ok(ruleset)
}

/// The packet of a case.
pub fn packet(case: &Case, places: &Places, protocol: u8) -> Packet {
    let (source, origin) = match case.client {
        Client::Pod => (places.pod, Origin::Interface("veth-pod-1".into())),
        Client::Host => (places.node, Origin::Host),
        Client::Outside => (places.outside, Origin::Interface("eth0".into())),
    };
    Packet {
        source: (source, 40_000).into(),
        destination: target(case.address, case.n, places.node.is_ipv6(), places.node),
        protocol,
        origin,
    }
}

/// What should become of it, if endpoints listen on this port. To an endpoint that sees the node's address, the packet is
/// masqueraded, unless it has that address already.
pub fn expected(case: &Case, places: &Places, port: u16) -> BTreeSet<Outcome> {
    let (local, remote, sees_node) = match case.answer {
        Answer::Refused => return BTreeSet::from([Outcome::Refused]),
        Answer::Dropped => return BTreeSet::from([Outcome::Dropped]),
        Answer::By { local, remote, sees_node } => (local, remote, sees_node),
    };
    let endpoints =
        [(local, places.local), (remote, places.remote)].into_iter().filter(|(wanted, _)| *wanted);
    endpoints
        .map(|(_, ip)| Outcome::Delivered { to: SocketAddr::new(ip, port), masqueraded: sees_node })
        .collect()
}

/// The contract's UDP packets from the node's own processes to node ports, sent to loopback instead, with what should become of
/// each where node ports are served there: the same, always masqueraded. IPv4.
pub fn on_localhost(contract: &Contract, places: &Places) -> Vec<(Packet, BTreeSet<Outcome>)> {
    let by_node_port = |case: &&Case| case.client == Client::Host && case.address == AddressKind::NodePort;
    let masqueraded = |outcome| match outcome {
        Outcome::Delivered { to, .. } => Outcome::Delivered { to, masqueraded: true },
        other => other,
    };
    let on_loopback = |case: &Case| {
        let to_node = packet(case, places, UDP);
        let (source, port) = (([127, 0, 0, 1], 40_000).into(), to_node.destination.port());
        let loopback = Packet { source, destination: ([127, 0, 0, 1], port).into(), ..to_node };
        (loopback, expected(case, places, UDP_PORT).into_iter().map(masqueraded).collect())
    };
    contract.cases.iter().filter(by_node_port).map(on_loopback).collect()
}
