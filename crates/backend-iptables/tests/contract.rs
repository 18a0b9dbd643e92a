//! The packet contract without a kernel: API objects go the whole path to rules, and every line of [`Contract`] is traced
//! through the text of these. `kube-proxy/tests/e2e/matrix.rs` holds real packets to the same lines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use backend_iptables::{Backend, Config, Extent, NodePortAddresses, PREFIX, PodSource};
use fakes::contract::Contract;
use fakes::iptables::FakeIptables;
use fakes::objects::{self, Endpoint, Port};
use fakes::objects::{LINE_PORT, NODE, NODE2, UDP_PORT};
use fakes::on_paper::{self, Places, expected, packet};
use iptables::Iptables;
use model::{Family, Store, Table, V4, V6};
use serde_json::json;
use walk::iptables::Tracer;
use walk::{Origin, Outcome, Packet, Paths};

/// The rules for these frontends, as a kernel holds them.
fn tracer<F: Family>(table: &Table<F>, config: &Config, places: &Places) -> Tracer {
    let mut tables = FakeIptables::new();
    let found = tables.save(PREFIX).unwrap();
    let plan = Backend::new(config.clone()).repair(config, table, &found, Extent::Difference);
    tables.restore(&plan.restore).unwrap();
    Tracer::new(tables.save(PREFIX).unwrap(), [places.node])
}

fn config(places: &Places) -> Config {
    Config {
        node_ports: NodePortAddresses::Within(vec![places.node.into()]),
        pods: Some(PodSource::Cidr(places.pods)),
        ..Config::default()
    }
}

fn outcomes(tracer: &Tracer, packet: &Packet) -> BTreeSet<Outcome> {
    tracer.outcomes(packet).unwrap().into_keys().collect()
}

fn check_family<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let tracer = tracer(&on_paper::table::<F>(&store), &config(&places), &places);
    let runs = contract.cases.iter().flat_map(|case| [(6, LINE_PORT), (17, UDP_PORT)].map(|run| (case, run)));
    for (case, (protocol, port)) in runs {
        let packet = packet(case, &places, protocol);
        assert_eq!(outcomes(&tracer, &packet), expected(case, &places, port), "{case:?}\n{packet:?}");
        check_paths(&tracer, &packet);
    }
}

/// The paths come to the same, and the rules of each tell of it.
fn check_paths(tracer: &Tracer, packet: &Packet) {
    let Paths { paths, complete, .. } = tracer.paths(packet, 1000).unwrap();
    assert!(complete);
    assert_eq!(paths.iter().map(|path| path.outcome).collect::<BTreeSet<_>>(), outcomes(tracer, packet));
    let sum: f64 = paths.iter().map(|path| path.probability).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    for path in paths {
        let rules: Vec<&str> = path.steps.iter().map(|step| &*step.rule).collect();
        let has = |target: &str| rules.iter().any(|rule| rule.contains(&format!("-j {target}")));
        assert!(rules.iter().any(|rule| rule.contains("default/s-")), "{rules:?}");
        match path.outcome {
            Outcome::Dropped => assert!(has("DROP"), "{rules:?}"),
            Outcome::Refused => assert!(has("REJECT"), "{rules:?}"),
            Outcome::Delivered { to, masqueraded } => {
                assert!(has(&format!("DNAT --to-destination {to}")), "{rules:?}");
                assert_eq!(has("MASQUERADE"), masqueraded, "{rules:?}");
            }
        }
    }
}

#[test]
fn every_line_holds_for_ipv4() {
    check_family::<V4>();
}

#[test]
fn every_line_holds_for_ipv6() {
    check_family::<V6>();
}

/// With the switch, the node's processes reach on loopback what they reach on the node's address, always masqueraded; nobody
/// else reaches loopback. Without it, packets are left alone.
#[test]
fn node_ports_on_localhost() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(V4::FAMILY);
    let off = Config { node_ports: NodePortAddresses::All, ..config(&places) };
    let on = Config { localhost_node_ports: true, ..off.clone() };
    let [off, on] = [off, on].map(|config| tracer(&on_paper::table::<V4>(&store), &config, &places));
    for (loopback, wanted) in on_paper::on_localhost(&contract, &places) {
        assert_eq!(outcomes(&on, &loopback), wanted, "{loopback:?}");
        let untouched = Outcome::Delivered { to: loopback.destination, masqueraded: false };
        assert_eq!(outcomes(&off, &loopback), BTreeSet::from([untouched]));
        // A port that nobody serves: what listens there on loopback is for the node alone.
        let stranger = Packet {
            source: (places.outside, 40_000).into(),
            destination: ([127, 0, 0, 1], 9).into(),
            origin: Origin::Interface("eth0".into()),
            ..loopback
        };
        assert_eq!(outcomes(&on, &stranger), BTreeSet::from([Outcome::Dropped]));
    }
}

const PORTS: [Port; 1] =
    [Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: Some(30_080) }];

/// A store with one Service `web` of an address of each kind, changed by `change`, and these endpoints.
fn web(endpoints: &[Endpoint], change: impl FnOnce(&mut serde_json::Value)) -> Store {
    let mut service = objects::service("web", &["10.96.0.10".parse().unwrap()], &PORTS);
    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.50" }] } });
    change(&mut service);
    let node = objects::node(NODE, &[Places::of(V4::FAMILY).node]);
    on_paper::store_of(&[service, node, objects::slice("web", "a", &PORTS, endpoints)]).unwrap()
}

fn tcp(from: &str, to: &str, origin: Origin) -> Packet {
    let source = SocketAddr::new(from.parse().unwrap(), 40_000);
    Packet { source, destination: to.parse().unwrap(), protocol: 6, origin }
}

fn from_pod(from: &str, to: &str) -> Packet {
    tcp(from, to, Origin::Interface("veth-pod-1".into()))
}

fn endpoints(n: u8) -> Vec<Endpoint> {
    let node = |i: u8| if i.is_multiple_of(2) { NODE } else { NODE2 };
    (1..=n).map(|i| Endpoint::ready([10, 244, 7, i].into(), node(i))).collect()
}

/// Each endpoint is as likely as any other, however many there are and wherever they run; a flow to itself, and only that one,
/// is masqueraded where this node can see it.
#[test]
fn endpoints_are_equally_likely() {
    let places = Places::of(V4::FAMILY);
    for n in [1, 2, 3, 7, 12] {
        let store = web(&endpoints(n), |_| {});
        let tracer = tracer(&on_paper::table::<V4>(&store), &config(&places), &places);
        for client in ["10.244.7.2", "10.244.0.9"] {
            let found = tracer.outcomes(&from_pod(client, "10.96.0.10:80")).unwrap();
            assert_eq!(found.len(), usize::from(n));
            for (outcome, probability) in found {
                let Outcome::Delivered { to, masqueraded } = outcome else { panic!("{outcome:?}") };
                assert!((probability - 1.0 / f64::from(n)).abs() < 1e-6, "{n} endpoints: {to} {probability}");
                assert_eq!(masqueraded, to.ip().to_string() == client, "{client} -> {to}");
            }
        }
    }
}

/// A client stays with its endpoint by whatever address it comes, and moves when the endpoint goes.
#[test]
fn clients_stay_with_their_endpoint() {
    let places = Places::of(V4::FAMILY);
    let sticky = |service: &mut serde_json::Value| service["spec"]["sessionAffinity"] = json!("ClientIP");
    let table = |endpoints: &[Endpoint]| on_paper::table::<V4>(&web(endpoints, sticky));
    let all = endpoints(4);
    let mut tracer = tracer(&table(&all), &config(&places), &places);
    let mut chosen = BTreeMap::new();
    for client in 1..=40u8 {
        let packet = from_pod(&format!("10.244.0.{client}"), "10.96.0.10:80");
        // Some choose the first, some the last of the endpoints, and so on.
        let mut left = client % 4;
        let mut chance = |_| {
            left = left.wrapping_sub(1);
            left == u8::MAX
        };
        let Outcome::Delivered { to, .. } = tracer.trace(&packet, &mut chance).unwrap() else { panic!() };
        chosen.insert(client, to);
    }
    let met: BTreeSet<&SocketAddr> = chosen.values().collect();
    assert_eq!(met.len(), 4);
    for (client, to) in &chosen {
        for target in ["10.96.0.10:80", "203.0.113.50:80", &format!("{}:30080", places.node)] {
            let found = outcomes(&tracer, &from_pod(&format!("10.244.0.{client}"), target));
            let only: Vec<_> = found.into_iter().collect();
            assert!(
                matches!(&only[..], [Outcome::Delivered { to: again, .. }] if again == to),
                "{target}: {only:?}"
            );
        }
    }
}

/// Who may use a load-balancer address: others are dropped whether or not there are endpoints, and those who may are refused
/// where there are none.
#[test]
fn source_ranges() {
    let places = Places::of(V4::FAMILY);
    let restrict = |service: &mut serde_json::Value| {
        service["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "192.168.50.1/32"]);
    };
    let delivered = |outcomes: BTreeSet<Outcome>| matches!(outcomes.first(), Some(Outcome::Delivered { .. }));
    let outside = |from, to| tcp(from, to, Origin::Interface("eth0".into()));
    for served in [true, false] {
        let endpoints = if served { endpoints(3) } else { Vec::new() };
        let tracer = tracer(&on_paper::table::<V4>(&web(&endpoints, restrict)), &config(&places), &places);
        // The node itself is in a range, so a host may use the address as its own source too.
        for allowed in [
            outside("198.51.100.9", "203.0.113.50:80"),
            tcp("192.168.50.1", "203.0.113.50:80", Origin::Host),
            outside("203.0.113.50", "203.0.113.50:80"),
        ] {
            let found = outcomes(&tracer, &allowed);
            assert!(
                if served { delivered(found) } else { found == BTreeSet::from([Outcome::Refused]) },
                "{allowed:?}"
            );
        }
        for kept_away in
            [outside("192.168.50.100", "203.0.113.50:80"), from_pod("10.244.0.9", "203.0.113.50:80")]
        {
            assert_eq!(outcomes(&tracer, &kept_away), BTreeSet::from([Outcome::Dropped]), "{kept_away:?}");
        }
        for unconcerned in ["10.96.0.10:80", "192.168.50.1:30080"] {
            let found = outcomes(&tracer, &outside("192.168.50.100", unconcerned));
            assert_eq!(delivered(found), served, "{unconcerned}");
        }
        // Another port of the address is nobody's business.
        let other_port = outside("192.168.50.100", "203.0.113.50:81");
        assert!(delivered(outcomes(&tracer, &other_port)));
    }
}

/// How pods are told from others decides who is masqueraded.
#[test]
fn pods_are_told_in_many_ways() {
    let places = Places::of(V4::FAMILY);
    let store = web(&endpoints(1), |_| {});
    let masqueraded = |config: &Config, packet: &Packet| {
        let tracer = tracer(&on_paper::table::<V4>(&store), config, &places);
        let found = outcomes(&tracer, packet);
        let Some(Outcome::Delivered { masqueraded, .. }) = found.first() else { panic!("{found:?}") };
        *masqueraded
    };
    let pod = from_pod("10.244.0.9", "10.96.0.10:80");
    let outside = tcp("192.168.50.100", "10.96.0.10:80", Origin::Interface("eth0".into()));
    let host = tcp("192.168.50.1", "10.96.0.10:80", Origin::Host);
    let with = |pods| Config { pods, ..config(&places) };
    let cidr = |text: &str| Some(PodSource::Cidr(text.parse().unwrap()));
    for (pods, expected) in [
        (cidr("10.244.0.0/16"), [false, true, true]),
        (Some(PodSource::InterfacePrefix("veth".into())), [false, true, true]),
        (Some(PodSource::Interface("veth-pod-1".into())), [false, true, true]),
        (Some(PodSource::Interface("veth-pod".into())), [true, true, true]),
        (cidr("0.0.0.0/0"), [false, false, false]),
        (cidr("fd00::/8"), [false, false, false]),
        (None, [false, false, false]),
    ] {
        let config = with(pods.clone());
        assert_eq!([&pod, &outside, &host].map(|packet| masqueraded(&config, packet)), expected, "{pods:?}");
    }
    let all = Config { masquerade_all: true, ..with(None) };
    assert!(masqueraded(&all, &pod));
}
