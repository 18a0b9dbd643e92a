//! The packet contract without a kernel: API objects go the whole path to rules, and every line of [`Contract`] is traced
//! through these. `kube-proxy/tests/e2e/matrix.rs` holds real packets to the same lines.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use backend_nftables::{
    Backend, Config, Extent, NodePortAddresses, PodSource, hand_over, lease, table_name, workers_table_name,
};
use fakes::contract::{Case, Client, Contract};
use fakes::kernel::FakeKernel;
use fakes::objects::{LINE_PORT, UDP_PORT};
use fakes::on_paper::{self, Places, expected, packet};
use model::{Balancer, Family, Proxied, Store, Table, V4, V6};
use nft::{Kernel, Name, Ruleset, SetKind};
use walk::nft::Tracer;
use walk::{Origin, Outcome, Packet, Paths};

/// The rules for these objects, as a kernel holds them.
fn tracer<F: Family>(store: &Store, config: &Config, places: &Places) -> Tracer {
    Tracer::new(ruleset(&on_paper::table::<F>(store), config), F::FAMILY.into(), [places.node])
}

fn ruleset<F: Family>(table: &Table<F>, config: &Config) -> Ruleset {
    let plan = Backend::new(config.clone()).repair(config, table, None, Extent::Difference);
    let mut kernel = FakeKernel::new();
    kernel.apply(&plan.transaction).unwrap();
    kernel.read(F::FAMILY.into(), &plan.transaction.table).unwrap().whole().unwrap().unwrap()
}

fn config<F: Family>(store: &Store, places: &Places) -> Config {
    Config {
        node_ports: NodePortAddresses::Within(vec![places.node.into()]),
        pods: Some(PodSource::Cidr(places.pods)),
        service_cidrs: store.service_cidrs().into_iter().filter(F::owns).collect(),
        ..Config::default()
    }
}

fn check_family<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let config = config::<F>(&store, &places);
    check_contract(&contract, &places, &tracer::<F>(&store, &config, &places));
}

/// Each case with TCP and with UDP, and the port of the endpoints for that.
fn runs(contract: &Contract) -> impl Iterator<Item = (&Case, u8, u16)> {
    contract.cases.iter().flat_map(|case| [(case, 6, LINE_PORT), (case, 17, UDP_PORT)])
}

#[track_caller]
fn check_contract(contract: &Contract, places: &Places, tracer: &Tracer) {
    for (case, protocol, port) in runs(contract) {
        let packet = packet(case, places, protocol);
        let found = tracer.outcomes(&packet).unwrap();
        assert_eq!(found, expected(case, places, port), "{case:?}\n{packet:?}");
        check_paths(tracer, &packet, &found);
    }
}

/// The paths come to the same, and the rules of each tell of it: a translated packet was translated by a rule that found its
/// endpoint in a map, with the Service's name somewhere on the path.
fn check_paths(tracer: &Tracer, packet: &Packet, outcomes: &BTreeSet<Outcome>) {
    let Paths { paths, complete, .. } = tracer.paths(packet, 1000).unwrap();
    assert!(complete);
    assert_eq!(&paths.iter().map(|path| path.outcome).collect::<BTreeSet<_>>(), outcomes);
    for path in paths {
        let rules: Vec<&str> = path.steps.iter().map(|step| &*step.rule).collect();
        let found: Vec<&String> = path.steps.iter().flat_map(|step| &step.found).collect();
        assert!(found.iter().any(|found| found.contains("default/s-")), "{rules:?}: {found:?}");
        match path.outcome {
            Outcome::Dropped => assert!(rules.last().unwrap().ends_with("drop"), "{rules:?}"),
            Outcome::Refused => assert!(rules.last().unwrap().ends_with("reject"), "{rules:?}"),
            Outcome::Delivered { to, masqueraded } => {
                let endpoint = format!(": {} . {}", to.ip(), to.port());
                let translation = path.steps.iter().find(|step| step.rule.starts_with("dnat ")).unwrap();
                assert!(translation.found.iter().any(|found| found.ends_with(&endpoint)), "{translation:?}");
                let masquerades = rules.iter().any(|rule| rule.contains("masquerade"));
                assert_eq!(masquerades, masqueraded, "{rules:?}");
            }
        }
    }
}

#[test]
fn every_line_holds_for_ipv4() {
    check_family::<V4>();
}

fn listeners(places: &Places) -> lease::Listeners {
    let ports = |tcp, udp| lease::Ports { tcp, udp };
    lease::Listeners { address: places.node, any: ports(40_001, 40_002), internal: ports(40_003, 40_004) }
}

/// The rules of a table with and without a lease, for Services of which some ask to be handed over.
fn without_and_with_lease<F: Family>(
    store: &Store,
    places: &Places,
    balancer: Balancer,
    table: Name,
) -> [Tracer; 2] {
    let config = Config { balancer, ..config::<F>(store, places) };
    let ruleset = ruleset(&on_paper::asking(&on_paper::table::<F>(store)), &config);
    let begun = lease::begin::<F>(table, &listeners(places));
    let leased = on_paper::with_elements(ruleset.clone(), begun).unwrap();
    [ruleset, leased].map(|ruleset| Tracer::new(ruleset, F::FAMILY.into(), [places.node]))
}

/// How many packets were handed over.
#[derive(Default)]
struct HandedOver {
    any: usize,
    by_the_short_cut: usize,
}

impl HandedOver {
    /// Fails if the packet is not handed over, or comes from outside by the short cut.
    #[track_caller]
    fn note(&mut self, found: &BTreeSet<Outcome>, listeners: &lease::Listeners, protocol: u8, case: &Case) {
        let to = |ports: lease::Ports| {
            let port = if protocol == 6 { ports.tcp } else { ports.udp };
            BTreeSet::from([Outcome::Delivered { to: (listeners.address, port).into(), masqueraded: false }])
        };
        let is_internal = *found == to(listeners.internal);
        assert!(is_internal || *found == to(listeners.any), "{found:?}");
        assert!(!is_internal || case.client != Client::Outside, "{case:?}");
        *if is_internal { &mut self.by_the_short_cut } else { &mut self.any } += 1;
    }

    #[track_caller]
    fn check(&self) {
        let Self { any, by_the_short_cut } = self;
        assert!(*any > 20 && *by_the_short_cut > 4, "{any} to any, {by_the_short_cut} by the short cut");
    }
}

/// Beside rules of others, a table hands over with a lease what endpoints of asking Services would have, and touches nothing else.
fn check_beside_others<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let balancer = Balancer::OtherRules(Proxied::Asking);
    let [without, with] = without_and_with_lease::<F>(&store, &places, balancer, workers_table_name());
    let mut handed_over = HandedOver::default();
    for (case, protocol, port) in runs(&contract) {
        let packet = packet(case, &places, protocol);
        let untouched = BTreeSet::from([Outcome::Delivered { to: packet.destination, masqueraded: false }]);
        assert_eq!(without.outcomes(&packet).unwrap(), untouched, "{case:?}");
        let found = with.outcomes(&packet).unwrap();
        let is_served = expected(case, &places, port)
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Delivered { to, .. } if *to != packet.destination));
        if case.n % 2 != 0 || !is_served {
            assert_eq!(found, untouched, "{case:?}\n{packet:?}");
            continue;
        }
        handed_over.note(&found, &listeners(&places), protocol, case);
    }
    handed_over.check();
}

#[test]
fn beside_rules_of_others_only_flows_of_asking_services_are_handed_over() {
    check_beside_others::<V4>();
    check_beside_others::<V6>();
}

/// With a lease, proxies have each flow that endpoints would have, of those Services that they are to have; what nobody serves is
/// refused or dropped as ever. Without, all is as where rules choose.
fn check_proxies<F: Family>(proxied: Proxied) {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let [without, with] =
        without_and_with_lease::<F>(&store, &places, Balancer::Proxies(proxied), table_name());
    let mut handed_over = HandedOver::default();
    for (case, protocol, port) in runs(&contract) {
        let packet = packet(case, &places, protocol);
        let expected = expected(case, &places, port);
        assert_eq!(without.outcomes(&packet).unwrap(), expected, "{case:?}\n{packet:?}");
        let found = with.outcomes(&packet).unwrap();
        let is_proxied = proxied == Proxied::All || case.n % 2 == 0;
        if !is_proxied || expected.iter().all(|outcome| !matches!(outcome, Outcome::Delivered { .. })) {
            assert_eq!(found, expected, "{case:?}\n{packet:?}");
            continue;
        }
        handed_over.note(&found, &listeners(&places), protocol, case);
    }
    handed_over.check();
}

#[test]
fn proxies_have_what_endpoints_would_have_for_as_long_as_there_is_a_lease() {
    check_proxies::<V4>(Proxied::All);
    check_proxies::<V4>(Proxied::Asking);
    check_proxies::<V6>(Proxied::All);
    check_proxies::<V6>(Proxied::Asking);
}

/// A table that serves under another name does what it did, and nothing at all when its time is over.
fn check_handed_over<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let config = config::<F>(&store, &places);
    let own = ruleset(&on_paper::table::<F>(&store), &config);
    assert!(hand_over::is_ours(&own));
    let mut kernel = FakeKernel::new();
    let transaction = hand_over::hand_over(F::FAMILY.into(), &own, 60).unwrap();
    // A second time it takes the place of the first.
    for _ in 0..2 {
        kernel.apply(&transaction).unwrap();
    }
    let read =
        |kernel: &mut FakeKernel, table| kernel.read(F::FAMILY.into(), &table).unwrap().whole().unwrap();
    assert_eq!(read(&mut kernel, table_name()), None);
    let mut copy = read(&mut kernel, hand_over::table_name()).unwrap();
    let tracer = |ruleset| Tracer::new(ruleset, F::FAMILY.into(), [places.node]);
    check_contract(&contract, &places, &tracer(copy.clone()));
    for state in copy.sets.values_mut().filter(|state| matches!(state.set.kind, SetKind::Leased { .. })) {
        state.elements.clear();
    }
    let elements: usize = copy.sets.values().map(|state| state.elements.len()).sum();
    assert!(elements < 40, "{elements} elements stay");
    let over = tracer(copy);
    for case in &contract.cases {
        for protocol in [6, 17] {
            let packet = packet(case, &places, protocol);
            let untouched = Outcome::Delivered { to: packet.destination, masqueraded: false };
            assert_eq!(over.outcomes(&packet).unwrap(), BTreeSet::from([untouched]), "{case:?}");
        }
    }
}

#[test]
fn every_line_holds_while_the_table_serves_under_another_name() {
    check_handed_over::<V4>();
    check_handed_over::<V6>();
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
    let off = config::<V4>(&store, &places);
    let on = Config { localhost_node_ports: true, ..off.clone() };
    let [off, on] = [off, on].map(|config| tracer::<V4>(&store, &config, &places));
    for (loopback, wanted) in on_paper::on_localhost(&contract, &places) {
        assert_eq!(on.outcomes(&loopback).unwrap(), wanted, "{loopback:?}");
        let untouched = Outcome::Delivered { to: loopback.destination, masqueraded: false };
        assert_eq!(off.outcomes(&loopback).unwrap(), BTreeSet::from([untouched]));
        let from_outside = Packet { origin: Origin::Interface("eth0".into()), ..loopback };
        assert_eq!(on.outcomes(&from_outside).unwrap(), BTreeSet::from([Outcome::Dropped]));
        let port = from_outside.destination.port();
        let disguised = Packet { destination: (places.node, port).into(), ..from_outside };
        assert_eq!(on.outcomes(&disguised).unwrap(), BTreeSet::from([Outcome::Dropped]));
    }
}
