//! The packet contract without a kernel: API objects go the whole path to virtual servers and rules, and every line of
//! [`Contract`] is traced through these. `kube-proxy/tests/e2e/matrix.rs` holds real packets to the same lines.

use std::collections::BTreeSet;
use std::sync::Arc;

use backend_ipvs::{IpvsPlanner, IpvsTarget, Options, VirtualServers};
use backend_nftables::{Backend, Config, NftablesTarget, PodSource, lease, table_name};
use fakes::contract::{Case, Client, Contract};
use fakes::devices::FakeDevices;
use fakes::ipvs::FakeIpvs;
use fakes::kernel::FakeKernel;
use fakes::objects::{LINE_PORT, UDP_PORT};
use fakes::on_paper::{self, Places, expected, packet};
use ipvs::{Devices, Ipvs};
use mode::{Cause, Planner, Reading, Target};
use model::{Balancer, Family, Proxied, RuleSettings, Store, Table, V4, V6};
use nft::{Kernel, Ruleset};
use walk::nft::{BALANCER_CHAIN, Tracer};
use walk::{Outcome, Packet};

/// A node with these objects, as who follows a packet finds it.
fn tracer<F: Family>(store: &Store, places: &Places) -> Tracer {
    let (ruleset, beside) = node(store, &on_paper::table::<F>(store), places, Balancer::Rules);
    beside(ruleset)
}

type Beside = Box<dyn Fn(Ruleset) -> Tracer>;

/// The rules of a node with this table, and what makes a node of rules beside its virtual servers.
fn node<F: Family>(
    store: &Store,
    table: &Table<F>,
    places: &Places,
    balancer: Balancer,
) -> (Ruleset, Beside) {
    let kernel = FakeKernel::new();
    let (ipvs, mut devices) = (FakeIpvs::new(), FakeDevices::new([places.node]));
    let options = Arc::new(Options::default());
    let rules = NftablesTarget::new(F::FAMILY.into(), Box::new(kernel.clone()));
    let (of_target, held) = (Box::new(ipvs.clone()), Box::new(devices.clone()));
    let mut target = IpvsTarget::<F, _>::new(rules, of_target, held, options.clone());
    let settings = RuleSettings {
        pods: Some(PodSource::Cidr(places.pods)),
        service_cidrs: store.service_cidrs().into_iter().filter(F::owns).collect(),
        balancer,
        ..RuleSettings::default()
    };
    let mut planner = IpvsPlanner::new(Backend::<F>::new(Config::default()), options);
    let Reading::Whole(found) = target.read() else { panic!("it can be read") };
    let plan = planner.plan(table, &settings, Cause::Found(&found)).unwrap();
    let applied = target.apply(plan.steps, &|| false);
    let results = applied.results.into_iter().map(|result| result.map_err(Arc::new)).collect();
    assert!(planner.settle(plan.held, results).is_known);

    let ruleset = kernel.clone().read(F::FAMILY.into(), &table_name()).unwrap().whole().unwrap().unwrap();
    let addresses = devices.addresses().unwrap();
    let addresses: Vec<_> = addresses.device.into_iter().chain(addresses.others).collect();
    let beside = move |ruleset| {
        let ipvs: Box<dyn Ipvs> = Box::new(ipvs.clone());
        Tracer::new(ruleset, F::FAMILY.into(), addresses.clone())
            .beside(Arc::new(VirtualServers::read(ipvs).unwrap()))
    };
    (ruleset, Box::new(beside))
}

/// What the node itself sends to a virtual server is always masqueraded: its source is the virtual server's address.
fn as_seen(case: &Case, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Delivered { to, .. } if case.client == Client::Host => {
            Outcome::Delivered { to, masqueraded: true }
        }
        other => other,
    }
}

fn check_family<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let tracer = tracer::<F>(&store, &places);
    let runs = contract.cases.iter().flat_map(|case| [(6, LINE_PORT), (17, UDP_PORT)].map(|run| (case, run)));
    let mut n_balanced = 0;
    for (case, (protocol, port)) in runs {
        let packet = packet(case, &places, protocol);
        let found = tracer.outcomes(&packet).unwrap();
        let wanted: BTreeSet<_> =
            expected(case, &places, port).into_iter().map(|outcome| as_seen(case, outcome)).collect();
        assert_eq!(found, wanted, "{case:?}\n{packet:?}");
        n_balanced += usize::from(check_paths(&tracer, &packet, &found));
    }
    assert!(n_balanced > 30, "{n_balanced}");
}

/// The paths come to the same, and say where the endpoint was chosen; whether that was by IPVS.
fn check_paths(tracer: &Tracer, packet: &Packet, outcomes: &BTreeSet<Outcome>) -> bool {
    let paths = tracer.paths(packet, 1000).unwrap().paths;
    assert_eq!(&paths.iter().map(|path| path.outcome).collect::<BTreeSet<_>>(), outcomes);
    let share: f64 = paths.iter().map(|path| path.probability).sum();
    assert!((share - 1.0).abs() < 1e-9);
    let mut by_ipvs = false;
    for path in paths {
        let Outcome::Delivered { to, .. } = path.outcome else { continue };
        let step = path.steps.iter().find(|step| step.chain == BALANCER_CHAIN);
        let Some(step) = step else {
            assert!(path.steps.iter().any(|step| step.rule.starts_with("dnat ")), "{:?}", path.steps);
            continue;
        };
        assert!(step.rule.ends_with(" rr flags 0x20"), "{step:?}");
        assert_eq!(step.found, [format!("-> {to} weight 1")]);
        by_ipvs = true;
    }
    by_ipvs
}

/// With a lease, proxies have each flow of those Services that ask for them, unmasqueraded; without, virtual servers have it.
fn check_proxies<F: Family>() {
    let contract = Contract::read();
    let store = on_paper::store(&contract).unwrap();
    let places = Places::of(F::FAMILY);
    let ports = |tcp, udp| lease::Ports { tcp, udp };
    let (any, internal) = (ports(40_001, 40_002), ports(40_003, 40_004));
    let listeners = lease::Listeners { address: places.node, any, internal };
    let table = on_paper::asking(&on_paper::table::<F>(&store));
    let (ruleset, beside) = node(&store, &table, &places, Balancer::Proxies(Proxied::Asking));
    let with = on_paper::with_elements(ruleset.clone(), lease::begin::<F>(table_name(), &listeners)).unwrap();
    let (without, with) = (beside(ruleset), beside(with));
    let runs = contract.cases.iter().flat_map(|case| [(6, LINE_PORT), (17, UDP_PORT)].map(|run| (case, run)));
    let (mut n_any, mut n_internal) = (0, 0);
    for (case, (protocol, port)) in runs {
        let packet = packet(case, &places, protocol);
        let wanted: BTreeSet<_> =
            expected(case, &places, port).into_iter().map(|outcome| as_seen(case, outcome)).collect();
        assert_eq!(without.outcomes(&packet).unwrap(), wanted, "{case:?}\n{packet:?}");
        let found = with.outcomes(&packet).unwrap();
        if case.n % 2 == 1 || wanted.iter().all(|outcome| !matches!(outcome, Outcome::Delivered { .. })) {
            assert_eq!(found, wanted, "{case:?}\n{packet:?}");
            continue;
        }
        let to = |ports: lease::Ports| {
            let port = if protocol == 6 { ports.tcp } else { ports.udp };
            BTreeSet::from([Outcome::Delivered { to: (places.node, port).into(), masqueraded: false }])
        };
        let is_internal = found == to(internal);
        assert!(is_internal || found == to(any), "{case:?}\n{found:?}");
        (n_any, n_internal) = (n_any + usize::from(!is_internal), n_internal + usize::from(is_internal));
    }
    assert!(n_any > 10 && n_internal > 2, "{n_any} to any, {n_internal} by the short cut");
}

#[test]
fn proxies_have_what_virtual_servers_would_have_for_as_long_as_there_is_a_lease() {
    check_proxies::<V4>();
    check_proxies::<V6>();
}

#[test]
fn every_line_holds() {
    check_family::<V4>();
    check_family::<V6>();
}
