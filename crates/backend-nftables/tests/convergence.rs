//! Whatever happens, in whatever order, the kernel ends with what the table says, and then nothing is left to do.
//!
//! The oracle is [`Backend::repair`] on what the kernel holds: an empty transaction means that it is all there, and
//! nothing else is.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test fails by panicking and says on the way what it tries"
)]

use std::collections::BTreeSet;

use backend_nftables::{Backend, Config, Extent, table_name};
use fakes::kernel::FakeKernel;
use lab::Namespace;
use model::{
    AddressKind, Affinity, Destination, EndpointNode, Family, Frontend, FrontendAddress, FrontendKey,
    Masquerade, ObjectName, Pool, Protocol, ServicePortName, Table, TrafficPolicy, Uid, V4, Verdict,
};
use nft::{Kernel, Transaction};
use proptest::prelude::*;
use walk::nft::Tracer;
use walk::{Origin, Outcome, Packet};

/// One Service's state: which of eight endpoints it has (none: refused), and whether it has a node port.
#[derive(Clone, Copy, Debug)]
struct State {
    endpoints: u8,
    node_port: bool,
    drop: bool,
    masquerade_never: bool,
    /// The endpoints for flows from inside to the node port; none: no short cut.
    inside: u8,
}

fn state() -> impl Strategy<Value = Option<State>> {
    let fields = (any::<u8>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<u8>());
    let state = fields.prop_map(|(endpoints, node_port, drop, masquerade_never, inside)| State {
        endpoints,
        node_port,
        drop,
        masquerade_never,
        inside,
    });
    proptest::option::weighted(0.8, state)
}

/// Service number and its new state, several at a time.
fn batches() -> impl Strategy<Value = Vec<Vec<(u8, Option<State>)>>> {
    proptest::collection::vec(proptest::collection::vec((0u8..5, state()), 1..4), 1..12)
}

fn name(service: u8) -> ObjectName {
    ObjectName::new("ns", &format!("svc-{service}"))
}

fn frontends(service: u8, state: Option<State>) -> Vec<Frontend<V4>> {
    let Some(state) = state else { return Vec::new() };
    let destination = |bit: u8| Destination {
        address: [10, 244, 0, bit].into(),
        port: 8080,
        node: EndpointNode::this_if(bit.is_multiple_of(2)),
    };
    let endpoints =
        |bits: u8| -> BTreeSet<_> { (0..8).filter(|bit| bits & 1 << bit != 0).map(destination).collect() };
    let when_empty = if state.drop { Verdict::Drop } else { Verdict::Reject };
    let pool = Pool::new(endpoints(state.endpoints), when_empty);
    let inside = (state.inside != 0).then(|| Pool::new(endpoints(state.inside), when_empty));
    let frontend = |kind, address, port, masquerade| Frontend {
        policy: if inside.is_some() { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        affinity: (state.inside % 5 == 1).then(|| Affinity {
            timeout: std::time::Duration::from_secs(u64::from(state.inside)),
            service: Uid::parse(&format!("00000000-0000-0000-0000-00000000000{}", state.endpoints % 3)),
        }),
        masquerade,
        ..Frontend::new(
            FrontendKey { address, protocol: Protocol::Tcp, port },
            kind,
            ServicePortName { service: name(service), port: "http".into(), protocol: Protocol::Tcp },
            pool.clone(),
        )
    };
    let masquerade = if state.masquerade_never { Masquerade::Never } else { Masquerade::UnlessFromPod };
    // Services 3 and 4 claim the same address.
    let ip = FrontendAddress::Ip([10, 96, 0, service.min(3)].into());
    let mut frontends = vec![frontend(AddressKind::ClusterIp, ip, 80, masquerade)];
    if state.node_port {
        let port = 30000 + u16::from(service);
        let node_port = frontend(AddressKind::NodePort, FrontendAddress::Node, port, Masquerade::Always);
        frontends.push(Frontend { internal_pool: inside.clone(), ..node_port });
        // A load-balancer address whose source ranges depend on what else changes, so that they grow and shrink.
        let ip = FrontendAddress::Ip([203, 0, 113, service].into());
        let prefix = 24 + state.inside % 8;
        let range = ipnet::IpNet::new_assert([198, 51, 100, 0].into(), prefix).trunc();
        let load_balancer = frontend(AddressKind::LoadBalancerIp, ip, 80, Masquerade::Always);
        let sources = (state.inside % 3 > 0).then(|| [range].into());
        frontends.push(Frontend { allowed_sources: sources, ..load_balancer });
    }
    frontends
}

/// Nothing is left to do, also for a backend that starts now and knows nothing.
fn assert_settled<F: Family>(kernel: &mut dyn Kernel, table: &Table<F>, config: &Config) {
    let found = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
    let plan = Backend::<F>::new(config.clone()).repair(config, table, found.as_ref(), Extent::Difference);
    assert!(plan.transaction.is_empty(), "left to do:\n{}", plan.transaction);
}

fn started(kernel: &mut dyn Kernel, table: &Table<V4>, config: &Config) -> Backend<V4> {
    let mut backend = Backend::new(config.clone());
    let found = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
    let plan = backend.repair(config, table, found.as_ref(), Extent::Difference);
    if !plan.transaction.is_empty() {
        kernel.apply(&plan.transaction).unwrap();
    }
    backend.committed(plan);
    backend
}

/// Applies a transaction one operation at a time, as a kernel with a tiny socket buffer would get it.
fn apply_in_pieces(kernel: &mut dyn Kernel, tx: &Transaction) {
    for op in &tx.ops {
        let piece = Transaction { ops: vec![op.clone()], ..tx.clone() };
        kernel.apply(&piece).unwrap_or_else(|error| panic!("{error}\n{tx}"));
    }
}

fn config() -> Config {
    Config::default()
}

const NODE: [u8; 4] = [192, 168, 50, 1];

/// Every frontend's packets go where its pools say: from outside, where the source is allowed, and from the node itself.
fn assert_packets_follow(kernel: &mut dyn Kernel, table: &Table<V4>) {
    let ruleset = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap().unwrap();
    let tracer = Tracer::new(ruleset, nft::Family::Ip, [NODE.into()]);
    for frontend in table.iter() {
        let destination = match frontend.key.address {
            FrontendAddress::Ip(ip) => (ip, frontend.key.port).into(),
            FrontendAddress::Node => (NODE, frontend.key.port).into(),
        };
        let packet = |source: [u8; 4], origin| Packet {
            source: (source, 40_000).into(),
            destination,
            protocol: frontend.key.protocol.number(),
            origin,
        };
        let everywhere = |masquerade| outcomes(&frontend.pool, masquerade);
        let from_outside = frontend.masquerade == Masquerade::Always;
        for source in [[198, 51, 100, 1], [198, 51, 100, 130]] {
            let sources = frontend.allowed_sources.as_deref();
            let allowed = sources.is_none_or(|ranges| {
                ranges.iter().any(|range| range.contains(&std::net::IpAddr::from(source)))
            });
            let wanted = if allowed { everywhere(from_outside) } else { BTreeSet::from([Outcome::Dropped]) };
            let found = tracer.outcomes(&packet(source, Origin::Interface("eth0".into()))).unwrap();
            assert_eq!(found, wanted, "{frontend:?}");
        }
        if frontend.allowed_sources.is_none() {
            let inside = frontend.internal_pool.as_ref().map(|pool| outcomes(pool, true));
            let wanted = inside.unwrap_or_else(|| everywhere(from_outside));
            assert_eq!(tracer.outcomes(&packet(NODE, Origin::Host)).unwrap(), wanted, "{frontend:?}");
        }
    }
}

fn outcomes(pool: &Pool<V4>, masqueraded: bool) -> BTreeSet<Outcome> {
    match pool {
        Pool::Empty(Verdict::Reject) => BTreeSet::from([Outcome::Refused]),
        Pool::Empty(Verdict::Drop) => BTreeSet::from([Outcome::Dropped]),
        Pool::Endpoints(endpoints) => endpoints
            .iter()
            .map(|to| Outcome::Delivered { to: (to.address, to.port).into(), masqueraded })
            .collect(),
    }
}

/// Carries batches of changes over one by one. After each there is nothing left to do.
fn carry_over(kernel: &mut dyn Kernel, batches: Vec<Vec<(u8, Option<State>)>>, pieces: bool) {
    let mut table = Table::default();
    let mut backend = started(kernel, &table, &config());
    for batch in batches {
        let mut dirty = BTreeSet::new();
        for (service, state) in batch {
            dirty.extend(table.set_service(&name(service), frontends(service, state)));
        }
        let plan = backend.plan(&table, &dirty);
        if pieces {
            apply_in_pieces(kernel, &plan.transaction);
        } else if !plan.transaction.is_empty() {
            kernel.apply(&plan.transaction).unwrap_or_else(|error| panic!("{error}\n{}", plan.transaction));
        }
        backend.committed(plan);
        assert_settled(kernel, &table, &config());
        assert_packets_follow(kernel, &table);
        assert!(backend.plan(&table, &dirty).transaction.is_empty());
    }
}

proptest! {
    // The real kernel takes its time.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_real_kernel_agrees(batches in batches(), pieces in any::<bool>()) {
        let namespace = Namespace::new("convergence").unwrap();
        let mut kernel = namespace.run(kernel::Nftables::open).unwrap();
        carry_over(&mut kernel, batches, pieces);
    }
}

proptest! {
    #[test]
    fn increments_end_where_a_fresh_start_does(batches in batches(), pieces in any::<bool>()) {
        carry_over(&mut FakeKernel::new(), batches, pieces);
    }

    #[test]
    fn any_state_is_repaired_to_any_other(before in batches(), after in batches(), pieces in any::<bool>()) {
        let mut kernel = FakeKernel::new();
        let mut table = Table::default();
        for (service, state) in before.into_iter().flatten() {
            table.set_service(&name(service), frontends(service, state));
        }
        started(&mut kernel, &table, &config());
        for (service, state) in after.into_iter().flatten() {
            table.set_service(&name(service), frontends(service, state));
        }
        let found = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
        let plan = Backend::new(config()).repair(&config(), &table, found.as_ref(), Extent::Difference);
        if pieces {
            apply_in_pieces(&mut kernel, &plan.transaction);
        } else if !plan.transaction.is_empty() {
            kernel.apply(&plan.transaction).unwrap();
        }
        assert_settled(&mut kernel, &table, &config());
    }

    #[test]
    fn tampering_is_repaired(batches in batches(), damage in proptest::collection::vec((0usize..7, any::<prop::sample::Index>()), 1..6)) {
        let mut kernel = FakeKernel::new();
        let mut table = Table::default();
        for (service, state) in batches.into_iter().flatten() {
            table.set_service(&name(service), frontends(service, state));
        }
        started(&mut kernel, &table, &config());
        for (kind, at) in damage {
            kernel.tamper(nft::Family::Ip, &table_name(), |ruleset| tamper(ruleset, kind, at));
        }
        started(&mut kernel, &table, &config());
        assert_settled(&mut kernel, &table, &config());
        for extent in [Extent::Difference, Extent::Rebuild] {
            let found = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
            let plan = Backend::new(config()).repair(&config(), &table, found.as_ref(), extent);
            if !plan.transaction.is_empty() {
                kernel.apply(&plan.transaction).unwrap();
            }
            assert_settled(&mut kernel, &table, &config());
        }
    }
}

/// What a person with the wrong command may do to our table.
fn tamper(ruleset: &mut nft::Ruleset, kind: usize, at: prop::sample::Index) {
    let sets: Vec<_> = ruleset.sets.values_mut().filter(|set| !set.elements.is_empty()).collect();
    match kind {
        0 | 1 if !sets.is_empty() => {
            let n = at.index(sets.len());
            let elements = &mut sets.into_iter().nth(n).unwrap().elements;
            let n = at.index(elements.len());
            if kind == 0 {
                elements.remove(n);
            } else {
                elements[n].data = elements[(n + 1) % elements.len()].data.clone();
            }
        }
        2 => {
            let n = at.index(ruleset.chains.len());
            ruleset.chains.values_mut().nth(n).unwrap().rules.clear();
        }
        3 => {
            let chain = nft::ChainState::new(None, Vec::new());
            ruleset.chains.insert(nft::Name::from_static("foreign"), chain);
        }
        4 => {
            let n = at.index(ruleset.chains.len());
            let chain = ruleset.chains.values_mut().nth(n).unwrap();
            let again = chain.rules.clone();
            chain.rules.extend(again);
        }
        5 => {
            ruleset.objects.insert((nft::ObjectType(1), nft::Name::from_static("hits")));
            ruleset.flowtables.insert(nft::Name::from_static("fast"));
        }
        _ => {
            if let Some(set) = sets.into_iter().next() {
                set.elements.clear();
            }
        }
    }
}

/// Counters and the like that others put into our table go, also those that rules and maps use; rules of ours are as they were.
#[test]
fn objects_of_others_are_deleted() {
    let table_of = |ruleset: &nft::Ruleset| (ruleset.sets.len(), ruleset.chains.len());
    let mut table = Table::default();
    let state = State { endpoints: 7, node_port: true, drop: false, masquerade_never: false, inside: 5 };
    table.set_service(&name(0), frontends(0, Some(state)));
    let namespace = Namespace::new("objects").unwrap();
    let mut kernel = namespace.run(kernel::Nftables::open).unwrap();
    started(&mut kernel, &table, &config());
    let read = |kernel: &mut kernel::Nftables| {
        kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap().unwrap()
    };
    let before = read(&mut kernel);
    let foreign = "
        add counter ip kube-proxy unused
        add counter ip kube-proxy hits
        add quota ip kube-proxy much { over 10 mbytes }
        add limit ip kube-proxy few { rate 400/minute }
        add ct timeout ip kube-proxy short { protocol tcp; policy = { established: 100 }; }
        add rule ip kube-proxy nat-prerouting counter name hits
        add chain ip kube-proxy theirs { type filter hook input priority 7; }
        add rule ip kube-proxy theirs quota name much drop
        add map ip kube-proxy limits { type ipv4_addr : limit; elements = { 10.0.0.1 : few }; }
        add rule ip kube-proxy theirs limit name ip saddr map @limits
    ";
    for commands in [foreign, "add counter ip kube-proxy alone"] {
        namespace.exec_with_input("nft", &["-f", "-"], commands).unwrap();
        let found = read(&mut kernel);
        assert!(!found.objects.is_empty(), "{found:?}");
        started(&mut kernel, &table, &config());
        let after = read(&mut kernel);
        assert!(after == before, "{:?} and not {:?}", table_of(&after), table_of(&before));
        assert_settled(&mut kernel, &table, &config());
    }
}

#[test]
fn a_lost_table_is_written_again() {
    let mut kernel = FakeKernel::new();
    let mut table = Table::default();
    let state = State { endpoints: 7, node_port: true, drop: false, masquerade_never: false, inside: 5 };
    table.set_service(&name(0), frontends(0, Some(state)));
    started(&mut kernel, &table, &config());
    kernel.delete_table(nft::Family::Ip, &table_name());
    started(&mut kernel, &table, &config());
    assert_settled(&mut kernel, &table, &config());
}

/// The cost of a change is that of the change, however many Services there are.
#[test]
fn a_change_writes_only_what_changed() {
    let mut kernel = FakeKernel::new();
    let mut table = Table::default();
    let state = |endpoints| {
        Some(State { endpoints, node_port: false, drop: false, masquerade_never: false, inside: 0 })
    };
    for service in 0..5 {
        table.set_service(&name(service), frontends(service, state(0b0111)));
    }
    let mut backend = started(&mut kernel, &table, &config());
    let mut change = |endpoints| {
        let dirty = table.set_service(&name(1), frontends(1, state(endpoints)));
        let plan = backend.plan(&table, &dirty);
        kernel.apply(&plan.transaction).unwrap();
        backend.committed(plan);
        kernel.applied().last().unwrap().to_string()
    };
    insta::assert_snapshot!("one_endpoint_replaced", change(0b1110));
    insta::assert_snapshot!("one_endpoint_added", change(0b1111));
    insta::assert_snapshot!("two_endpoints_removed", change(0b0011));
    insta::assert_snapshot!("last_endpoints_removed", change(0));
}
