//! However the tables came to be what they are, they end as a fresh start would have them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backend_iptables::{Backend, Config, Extent, NodePortAddresses, PREFIX};
use fakes::iptables::{FakeIptables, Fault};
use iptables::{Edit, Iptables, Restore, Saved, TableName};
use kernel::iptables::{Programs, Tables};
use lab::Namespace;
use mode::RuleCount;
use model::{
    AddressKind, Affinity, Changed, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey,
    Masquerade, ObjectName, Pool, Protocol, ServicePortName, Table, V4, Verdict,
};
use proptest::prelude::*;

/// What a generated Service is like: endpoints as bits of eight addresses, of which the even ones are on this node.
#[derive(Clone, Copy, Debug)]
struct State {
    endpoints: u8,
    /// `internalTrafficPolicy` and `externalTrafficPolicy: Local`.
    local: [bool; 2],
    external: bool,
    sticky: bool,
    /// `loadBalancerSourceRanges`: none if 0.
    ranges: u8,
    /// How many ports it has.
    ports: u8,
}

fn state() -> impl Strategy<Value = Option<State>> {
    let fields = (any::<u8>(), any::<[bool; 2]>(), any::<bool>(), any::<bool>(), 0u8..4, 1u8..3);
    let state = fields.prop_map(|(endpoints, local, external, sticky, ranges, ports)| State {
        // Often the same, so that some changes change little.
        endpoints: if endpoints < 64 { 0 } else { endpoints },
        local,
        external,
        sticky,
        ranges,
        ports,
    });
    proptest::option::weighted(0.8, state)
}

/// Service number and its new state, several at a time.
fn batches() -> impl Strategy<Value = Vec<Vec<(u8, Option<State>)>>> {
    proptest::collection::vec(proptest::collection::vec((0u8..6, state()), 1..4), 1..10)
}

fn name(service: u8) -> ObjectName {
    ObjectName::new("ns", &format!("svc-{service}"))
}

fn pools(state: State) -> [Pool<V4>; 2] {
    let destination = |bit: u8| Destination {
        address: [10, 244, 0, bit].into(),
        port: 8080,
        node: EndpointNode::this_if(bit.is_multiple_of(2)),
    };
    let all: BTreeSet<_> = (0..8).filter(|bit| state.endpoints & 1 << bit != 0).map(destination).collect();
    let when_empty = if all.is_empty() { Verdict::Reject } else { Verdict::Drop };
    let here = all.iter().copied().filter(|endpoint| endpoint.node == EndpointNode::This).collect();
    [Pool::new(all, when_empty), Pool::new(here, when_empty)]
}

/// As `model::view` makes them.
fn frontends(service: u8, state: Option<State>) -> Vec<Frontend<V4>> {
    let Some(state) = state else { return Vec::new() };
    (0..state.ports).flat_map(|port| port_frontends(service, port, state)).collect()
}

fn port_frontends(service: u8, port: u8, state: State) -> Vec<Frontend<V4>> {
    let [cluster, local] = pools(state);
    let by = |is_local| if is_local { local.clone() } else { cluster.clone() };
    let has_any = !cluster.endpoints().is_empty();
    let number = 80 + u16::from(port);
    let frontend = |kind, address, port_number, pool, masquerade| Frontend {
        affinity: state.sticky.then(|| Affinity { timeout: Duration::from_mins(10), service: None }),
        masquerade,
        ..Frontend::new(
            FrontendKey { address, protocol: Protocol::Tcp, port: port_number },
            kind,
            ServicePortName {
                service: name(service),
                port: format!("p{port}").as_str().into(),
                protocol: Protocol::Tcp,
            },
            pool,
        )
    };
    let ip = |addr: [u8; 4]| FrontendAddress::Ip(addr.into());
    // Services 4 and 5 claim the same addresses.
    let shared = service.min(4);
    let cluster_ip = ip([10, 96, 0, shared]);
    let internal =
        frontend(AddressKind::ClusterIp, cluster_ip, number, by(state.local[0]), Masquerade::UnlessFromPod);
    if !state.external {
        return vec![internal];
    }
    let external = |kind, address, port_number| Frontend {
        internal_pool: (state.local[1] && has_any).then(|| cluster.clone()),
        ..frontend(
            kind,
            address,
            port_number,
            by(state.local[1]),
            if state.local[1] { Masquerade::Never } else { Masquerade::Always },
        )
    };
    let ranges = (state.ranges > 0)
        .then(|| [ipnet::IpNet::new_assert([198, 51, 100, 0].into(), 24 + state.ranges)].into());
    let balancer = external(AddressKind::LoadBalancerIp, ip([203, 0, 113, shared]), number);
    vec![
        internal,
        Frontend { allowed_sources: ranges, ..balancer },
        external(AddressKind::ExternalIp, ip([203, 0, 113, 100 + shared]), number),
        external(
            AddressKind::NodePort,
            FrontendAddress::Node,
            30_000 + 10 * u16::from(service) + u16::from(port),
        ),
    ]
}

fn config() -> Config {
    Config { localhost_node_ports: true, ..Config::default() }
}

/// All that is there, with entries of shared chains in any order.
fn contents(tables: &mut dyn Iptables) -> BTreeMap<(TableName, String), Vec<String>> {
    let saved = tables.save("").unwrap();
    let mut contents = BTreeMap::new();
    for table in TableName::ALL {
        for (chain, rules) in &saved.table(table).chains {
            let mut rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
            if ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS"]
                .contains(&&**chain)
            {
                let is_last = |rule: &String| {
                    rule.contains("must be the last rule") || rule.contains("externally-visible")
                };
                let last = rules.iter().rposition(is_last);
                assert!(last.is_none_or(|at| at + 1 == rules.len()), "{rules:?}");
                rules.sort_unstable();
            }
            contents.insert((table, chain.to_string()), rules);
        }
    }
    contents
}

fn repair(
    tables: &mut dyn Iptables,
    table: &Table<V4>,
    config: &Config,
    extent: Extent,
) -> (Backend<V4>, Restore) {
    let mut backend = Backend::new(config.clone());
    let found = tables.save(PREFIX).unwrap();
    let plan = backend.repair(config, table, &found, extent);
    let restore = plan.restore.clone();
    tables.restore(&restore).unwrap_or_else(|error| panic!("{error}\n{restore}"));
    backend.committed(plan);
    (backend, restore)
}

/// Nothing is left to do, and nothing is there that a fresh start would not have made.
fn assert_settled(tables: &mut dyn Iptables, table: &Table<V4>, config: &Config) {
    let found = tables.save(PREFIX).unwrap();
    let plan = Backend::<V4>::new(config.clone()).repair(config, table, &found, Extent::Difference);
    assert!(plan.restore.is_empty(), "left to do:\n{}", plan.restore);
    let mut fresh = FakeIptables::new();
    repair(&mut fresh, table, config, Extent::Difference);
    assert_eq!(contents(tables), contents(&mut fresh));
}

/// The rules are as many as the backend says.
fn assert_counted(backend: &Backend<V4>, tables: &mut dyn Iptables) {
    let found = tables.save("").unwrap();
    for RuleCount { table, held, .. } in backend.rule_counts() {
        let table = TableName::ALL.into_iter().find(|known| known.as_str() == table).unwrap();
        assert_eq!(held, found.table(table).chains.values().map(Vec::len).sum::<usize>(), "{table}");
    }
}

fn filled(batches: Vec<Vec<(u8, Option<State>)>>) -> Table<V4> {
    let mut table = Table::default();
    for (service, state) in batches.into_iter().flatten() {
        table.set_service(&name(service), frontends(service, state));
    }
    table
}

/// Carries batches of changes over one by one. After each there is nothing left to do.
fn apply_batches(tables: &mut dyn Iptables, batches: Vec<Vec<(u8, Option<State>)>>) {
    let mut table = Table::default();
    let (mut backend, _) = repair(tables, &table, &config(), Extent::Difference);
    for batch in batches {
        let mut dirty = BTreeSet::new();
        for (service, state) in batch {
            dirty.extend(table.set_service(&name(service), frontends(service, state)));
        }
        let plan = backend.plan(&table, &Changed::frontends(dirty.clone()));
        tables.restore(&plan.restore).unwrap_or_else(|error| panic!("{error}\n{}", plan.restore));
        backend.committed(plan);
        assert_settled(tables, &table, &config());
        assert_counted(&backend, tables);
        assert!(backend.plan(&table, &Changed::frontends(dirty.clone())).restore.is_empty());
    }
}

proptest! {
    // The real tools take their time.
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn the_real_kernel_agrees(batches in batches(), legacy in any::<bool>()) {
        let namespace = Namespace::new("convergence").unwrap();
        namespace.run(|| {
            let name = if legacy { "iptables-legacy" } else { "iptables-nft" };
            apply_batches(&mut Tables::new(Programs::named(name).unwrap()), batches);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn increments_end_where_a_fresh_start_does(batches in batches()) {
        apply_batches(&mut FakeIptables::new(), batches);
    }

    #[test]
    fn any_state_is_repaired_to_any_other(before in batches(), after in batches(), extent in any::<bool>(), restricted in any::<bool>()) {
        let mut tables = FakeIptables::new();
        let (before, after) = (filled(before), filled(after));
        repair(&mut tables, &before, &config(), Extent::Difference);
        let node_ports = if restricted {
            NodePortAddresses::Within(vec!["127.0.0.0/8".parse().unwrap(), "192.168.0.7/32".parse().unwrap()])
        } else {
            NodePortAddresses::All
        };
        let config = Config { node_ports, ..config() };
        let extent = if extent { Extent::Rebuild } else { Extent::Difference };
        repair(&mut tables, &after, &config, extent);
        assert_settled(&mut tables, &after, &config);
    }

    /// A failure behind some of the tables leaves a state that the next repair brings right.
    #[test]
    fn a_part_of_a_change_is_completed(before in batches(), batch in batches(), after in 0usize..4) {
        let (mut tables, mut table) = (FakeIptables::new(), filled(before));
        let (backend, _) = repair(&mut tables, &table, &config(), Extent::Difference);
        let mut dirty = BTreeSet::new();
        for (service, state) in batch.into_iter().flatten() {
            dirty.extend(table.set_service(&name(service), frontends(service, state)));
        }
        let plan = backend.plan(&table, &Changed::frontends(dirty.clone()));
        tables.fail_next([Some(Fault::After(after))]);
        let outcome = tables.restore(&plan.restore);
        prop_assert_eq!(outcome.is_err(), after < plan.restore.sections.len());
        repair(&mut tables, &table, &config(), Extent::Difference);
        assert_settled(&mut tables, &table, &config());
    }

    #[test]
    fn tampering_is_repaired(batches in batches(), damage in proptest::collection::vec((0usize..7, any::<prop::sample::Index>()), 1..6)) {
        let (mut tables, table) = (FakeIptables::new(), filled(batches));
        repair(&mut tables, &table, &config(), Extent::Difference);
        for (kind, at) in damage {
            let changed = *at.get(&TableName::ALL);
            tables.tamper(changed, |chains| tamper(chains, kind, at));
        }
        repair(&mut tables, &table, &config(), Extent::Difference);
        assert_settled(&mut tables, &table, &config());
    }
}

/// What a person with the wrong command may do to a table.
fn tamper(chains: &mut BTreeMap<String, Vec<String>>, kind: usize, at: prop::sample::Index) {
    let mut ours: Vec<_> =
        chains.iter_mut().filter(|(name, rules)| name.starts_with(PREFIX) && !rules.is_empty()).collect();
    if ours.is_empty() {
        return;
    }
    let n = at.index(ours.len());
    // The kubelet's rules in this chain are left alone.
    let is_shared = ours[n].0 == "KUBE-FIREWALL";
    let rules = &mut *ours[n].1;
    let m = at.index(rules.len());
    match kind {
        0 => drop(rules.remove(m)),
        1 if !is_shared => rules.insert(m, "-m comment --comment foreign -j DROP".into()),
        2 if !is_shared => {
            let again = rules.clone();
            rules.extend(again);
        }
        3 => rules.reverse(),
        4 => rules.clear(),
        // A table is emptied.
        5 => chains.values_mut().for_each(Vec::clear),
        6 => {
            chains.retain(|name, _| !name.starts_with(PREFIX));
            chains.values_mut().for_each(Vec::clear);
        }
        _ => {}
    }
}

/// Chains and rules of others, and jumps where others want them, stay.
#[test]
fn what_belongs_to_others_is_left_alone() {
    let mut tables = FakeIptables::new();
    let state = State { endpoints: 7, local: [false; 2], external: true, sticky: false, ranges: 1, ports: 1 };
    let mut table = Table::default();
    table.set_service(&name(0), frontends(0, Some(state)));
    let (_, _) = repair(&mut tables, &table, &config(), Extent::Difference);
    let mut kept = BTreeMap::new();
    tables.tamper(TableName::Nat, |chains| {
        let service = chains.keys().find(|name| name.starts_with("KUBE-SVC-")).unwrap().clone();
        chains.insert("CNI-HOSTPORT".into(), vec!["-j KUBE-MARK-MASQ".into(), format!("-j {service}")]);
        chains.insert("KUBE-KUBELET-CANARY".into(), Vec::new());
        chains.get_mut("PREROUTING").unwrap().insert(0, "-j CNI-HOSTPORT".into());
        kept.insert("service", service);
    });
    tables.tamper(TableName::Filter, |chains| {
        chains.get_mut("KUBE-FIREWALL").unwrap().insert(0, "-m comment --comment kubelet -j RETURN".into());
        chains.get_mut("INPUT").unwrap().rotate_left(2);
    });
    let listing = [TableName::Filter, TableName::Nat].map(|table| tables.listing(table));
    let (mut backend, restore) = repair(&mut tables, &table, &config(), Extent::Difference);
    assert!(restore.is_empty(), "{restore}");
    assert_eq!([TableName::Filter, TableName::Nat].map(|table| tables.listing(table)), listing);

    // A chain that somebody else refers to can't be deleted: the change is refused, the repair leaves an empty chain.
    let dirty = table.set_service(&name(0), Vec::new());
    let plan = backend.plan(&table, &Changed::frontends(dirty.clone()));
    assert!(tables.restore(&plan.restore).is_err());
    repair(&mut tables, &table, &config(), Extent::Difference);
    let listing = tables.listing(TableName::Nat);
    let service = &kept["service"];
    assert!(
        listing.contains(&format!(":{service} - ")) && !listing.contains(&format!("-A {service} ")),
        "{listing}"
    );
    assert!(listing.contains("-A PREROUTING -j CNI-HOSTPORT"), "{listing}");
    let (again, restore) = repair(&mut tables, &table, &config(), Extent::Difference);
    assert!(restore.is_empty(), "{restore}");
    backend = again;
    assert!(backend.plan(&table, &Changed::frontends(dirty.clone())).restore.is_empty());
}

/// The cost of a change is that of the change, however many Services there are.
#[test]
fn a_change_writes_only_what_changed() {
    let (mut tables, mut table) = (FakeIptables::new(), Table::default());
    let state = |endpoints| {
        Some(State { endpoints, local: [false; 2], external: false, sticky: false, ranges: 0, ports: 1 })
    };
    for service in 0..4 {
        table.set_service(&name(service), frontends(service, state(0b0111)));
    }
    let (mut backend, _) = repair(&mut tables, &table, &config(), Extent::Difference);
    let mut change = |state| {
        let dirty = table.set_service(&name(1), frontends(1, state));
        let plan = backend.plan(&table, &Changed::frontends(dirty.clone()));
        tables.restore(&plan.restore).unwrap();
        backend.committed(plan);
        tables.restored().last().unwrap().clone()
    };
    insta::assert_snapshot!("one_endpoint_replaced", change(state(0b1110)));
    insta::assert_snapshot!(
        "node_port_added",
        change(state(0b1110).map(|state| State { external: true, ..state }))
    );
    insta::assert_snapshot!("last_endpoints_removed", change(state(0)));
    insta::assert_snapshot!("service_deleted", change(None));
}

/// The rules for a Service of ten endpoints elsewhere: upstream's are 11 chains and 32 rules.
#[test]
fn a_service_is_one_chain_and_a_rule_for_each_endpoint() {
    let endpoints = (1..=10u8).map(|n| Destination {
        address: [10, 244, 9, n].into(),
        port: 8080,
        node: EndpointNode::Other,
    });
    let mut frontend = frontends(
        0,
        Some(State { endpoints: 1, local: [false; 2], external: false, sticky: false, ranges: 0, ports: 1 }),
    )
    .remove(0);
    frontend.pool = Pool::new(endpoints.collect(), Verdict::Reject);
    let mut table = Table::default();
    let config = Config {
        pods: Some(backend_iptables::PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
        ..config()
    };
    let mut backend = Backend::new(config.clone());
    let start = backend.repair(&config, &table, &Saved::default(), Extent::Difference);
    backend.committed(start);
    let dirty = table.set_service(&name(0), vec![frontend]);
    let plan = backend.plan(&table, &Changed::frontends(dirty.clone()));
    let edits: Vec<&Edit> = plan.restore.sections.iter().flat_map(|section| &section.edits).collect();
    let chains = edits.iter().filter(|edit| matches!(edit, Edit::Reset(_))).count();
    assert_eq!((chains, edits.len() - chains), (1, 12), "{}", plan.restore);
}
