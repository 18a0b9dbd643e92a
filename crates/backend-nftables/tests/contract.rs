//! The packet contract without a kernel: API objects go the whole way to rules, and every line of [`Contract`] is traced
//! through these. `kube-proxy/tests/e2e/matrix.rs` holds real packets to the same lines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use api::{ManifestFormat, Outcome as ApiOutcome, parse_manifests};
use backend_nftables::{Backend, Config, Extent, NodePortAddresses, PodSource, nft_family, table_name};
use model::view::{ThisNode, frontends};
use model::{Change, Family, Interner, Store, Table, Touched, V4, V6};
use nft::Kernel;
use testkit::cluster::{LINE_PORT, NODE, UDP_PORT};
use testkit::contract::{AddressKind, Answer, Case, Client, Contract, target};
use testkit::fake_kernel::FakeKernel;
use testkit::objects;
use testkit::trace::{Origin, Outcome, Packet, Tracer};

/// Addresses of those who take part, by family.
struct Places {
    node: IpAddr,
    local: IpAddr,
    remote: IpAddr,
    pod: IpAddr,
    outside: IpAddr,
    pods: &'static str,
}

fn places(v6: bool) -> Places {
    let ip = |v4: &str, text: &str| if v6 { text } else { v4 }.parse().unwrap();
    Places {
        node: ip("192.168.50.1", "fd00:50::1"),
        local: ip("10.244.0.2", "fd00:10:244::2"),
        remote: ip("10.244.1.2", "fd00:10:244:1::2"),
        pod: ip("10.244.0.3", "fd00:10:244::3"),
        outside: ip("192.168.50.100", "fd00:50::100"),
        pods: if v6 { "fd00:10:244::/47" } else { "10.244.0.0/16" },
    }
}

/// A store with the objects of the contract.
fn store(contract: &Contract) -> Store {
    let (v4, v6) = (places(false), places(true));
    let services = contract.situations.iter().enumerate();
    let mut values: Vec<_> = services
        .flat_map(|(n, situation)| situation.objects(n, [v4.local, v6.local], [v4.remote, v6.remote]))
        .collect();
    values.push(objects::node(NODE, &[v4.node, v6.node]));
    values.push(objects::service_cidr(&["10.96.0.0/12", "fd00:10:96::/112"]));
    let text = values.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let manifests = parse_manifests(&text, ManifestFormat::Json, &mut Interner::default()).unwrap();
    let mut store = Store::default();
    for parsed in manifests.objects {
        let ApiOutcome::Keep(object) = parsed.outcome else { panic!("{parsed:?}") };
        store.apply(Change::Apply(object), &mut Touched::default());
    }
    store
}

/// The rules for these objects, as a kernel holds them.
fn tracer<F: Family>(store: &Store, config: &Config, places: &Places) -> Tracer {
    let node = ThisNode::new(NODE.into(), store.node(NODE));
    let mut table = Table::<F>::default();
    for (name, entry) in store.entries() {
        table.set_service(name, frontends(&node, entry));
    }
    let plan = Backend::new(config.clone()).repair(config, &table, None, Extent::Difference);
    let mut kernel = FakeKernel::new();
    kernel.apply(&plan.transaction).unwrap();
    let ruleset = kernel.read(nft_family::<F>(), &table_name()).unwrap().unwrap();
    Tracer::new(ruleset, nft_family::<F>(), [places.node])
}

fn config<F: Family>(store: &Store, places: &Places) -> Config {
    Config {
        node_ports: NodePortAddresses::Within(vec![places.node.into()]),
        pods: Some(PodSource::Cidr(places.pods.parse().unwrap())),
        service_cidrs: store.service_cidrs().into_iter().filter(F::owns).collect(),
        ..Config::default()
    }
}

fn check_family<F: Family>(v6: bool) {
    let contract = Contract::read();
    let store = store(&contract);
    let places = places(v6);
    let config = config::<F>(&store, &places);
    let tracer = tracer::<F>(&store, &config, &places);
    let runs = contract.cases.iter().flat_map(|case| [(6, LINE_PORT), (17, UDP_PORT)].map(|run| (case, run)));
    for (case, (protocol, port)) in runs {
        let packet = packet(case, &places, protocol, v6);
        let found = tracer.outcomes(&packet).unwrap();
        assert_eq!(found, expected(case, &places, port), "{case:?}\n{packet:?}");
    }
}

fn packet(case: &Case, places: &Places, protocol: u8, v6: bool) -> Packet {
    let (source, origin) = match case.client {
        Client::Pod => (places.pod, Origin::Interface("veth-pod-1".into())),
        Client::Host => (places.node, Origin::Host),
        Client::Outside => (places.outside, Origin::Interface("eth0".into())),
    };
    Packet {
        source: (source, 40_000).into(),
        destination: target(case.address, case.n, v6, places.node),
        protocol,
        origin,
    }
}

/// What becomes of the packet. To an endpoint that sees the node's address, the packet is masqueraded, unless it has that
/// address already.
fn expected(case: &Case, places: &Places, port: u16) -> BTreeSet<Outcome> {
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

#[test]
fn every_line_holds_for_ipv4() {
    check_family::<V4>(false);
}

#[test]
fn every_line_holds_for_ipv6() {
    check_family::<V6>(true);
}

/// With the switch, the node's processes reach on loopback what they reach on the node's address, always masqueraded; nobody
/// else reaches loopback. Without it, packets are left alone.
#[test]
fn node_ports_on_localhost() {
    let contract = Contract::read();
    let store = store(&contract);
    let places = places(false);
    let off = config::<V4>(&store, &places);
    let on = Config { localhost_node_ports: true, ..off.clone() };
    let [off, on] = [off, on].map(|config| tracer::<V4>(&store, &config, &places));
    let by_node_port = |case: &&Case| case.client == Client::Host && case.address == AddressKind::NodePort;
    for case in contract.cases.iter().filter(by_node_port) {
        let to_node = packet(case, &places, 17, false);
        let port = to_node.destination.port();
        let loopback = Packet {
            source: ([127, 0, 0, 1], 40_000).into(),
            destination: ([127, 0, 0, 1], port).into(),
            ..to_node
        };
        let masqueraded = |outcome| match outcome {
            Outcome::Delivered { to, .. } => Outcome::Delivered { to, masqueraded: true },
            other => other,
        };
        let wanted = expected(case, &places, UDP_PORT).into_iter().map(masqueraded).collect();
        assert_eq!(on.outcomes(&loopback).unwrap(), wanted, "{case:?}");
        let untouched = Outcome::Delivered { to: loopback.destination, masqueraded: false };
        assert_eq!(off.outcomes(&loopback).unwrap(), BTreeSet::from([untouched]));
        let from_outside = Packet { origin: Origin::Interface("eth0".into()), ..loopback };
        assert_eq!(on.outcomes(&from_outside).unwrap(), BTreeSet::from([Outcome::Dropped]));
        let disguised = Packet { destination: (places.node, port).into(), ..from_outside };
        assert_eq!(on.outcomes(&disguised).unwrap(), BTreeSet::from([Outcome::Dropped]));
    }
}
