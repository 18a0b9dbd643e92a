//! What Services take: the endpoints of one with many addresses are there once, and a change of them is one element; one with
//! session affinity does not make the others dearer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backend_nftables::{Backend, Config, Extent};
use model::{
    AddressKind, Affinity, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, Masquerade,
    ObjectName, Pool, Protocol, ServicePortName, Table, V4, Verdict,
};
use nft::{Name, Op, Statement};

const SERVICES: u16 = 100;
const ENDPOINTS: u8 = 10;

/// A Service of type `LoadBalancer` with node port and two external addresses: five frontends.
fn frontends(n: u16, endpoints: std::ops::Range<u8>) -> Vec<Frontend<V4>> {
    let [high, low] = n.to_be_bytes();
    let destination = |last| Destination {
        address: [10 + high, 128, low, last].into(),
        port: 80,
        node: EndpointNode::Other,
    };
    let pool = Pool::new(endpoints.map(destination).collect::<BTreeSet<_>>(), Verdict::Reject);
    let protocol = Protocol::Tcp;
    let frontend = |kind, address, port| Frontend {
        masquerade: Masquerade::Always,
        ..Frontend::new(
            FrontendKey { address, protocol, port },
            kind,
            ServicePortName { service: name(n), port: "http".into(), protocol },
            pool.clone(),
        )
    };
    let ip = |first| FrontendAddress::Ip([first, 0, high, low].into());
    vec![
        frontend(AddressKind::ClusterIp, ip(11), 80),
        frontend(AddressKind::LoadBalancerIp, ip(12), 80),
        frontend(AddressKind::ExternalIp, ip(13), 80),
        frontend(AddressKind::ExternalIp, ip(14), 80),
        frontend(AddressKind::NodePort, FrontendAddress::Node, 30_000 + n),
    ]
}

fn name(n: u16) -> ObjectName {
    ObjectName::new("ns", &format!("svc-{n}"))
}

/// Elements that a table of Services takes.
fn elements(table: &Table<V4>) -> (Backend<V4>, usize) {
    let config = Config::default();
    let mut backend = Backend::new(config.clone());
    let plan = backend.repair(&config, table, None, Extent::Difference);
    let count = plan.transaction.element_count();
    backend.committed(plan);
    (backend, count)
}

#[test]
fn endpoints_are_held_once_and_changed_once_for_all_addresses() {
    let mut table = Table::default();
    let (_, of_none) = elements(&table);
    for n in 0..SERVICES {
        table.set_service(&name(n), frontends(n, 0..ENDPOINTS));
    }
    let (mut backend, of_all) = elements(&table);
    // Five frontends, a cluster IP, a pool, and its endpoints.
    assert_eq!(of_all - of_none, usize::from(SERVICES) * (5 + 1 + 1 + usize::from(ENDPOINTS)));

    let mut change = |endpoints| {
        let changed = table.set_service(&name(7), frontends(7, endpoints));
        assert_eq!(changed.len(), 5);
        let plan = backend.plan(&table, &changed);
        let count = plan.transaction.element_count();
        backend.committed(plan);
        count
    };
    assert_eq!(change(1..ENDPOINTS + 1), 1, "another endpoint");
    assert_eq!(change(1..ENDPOINTS + 2), 2, "one more, and the pool's size");
    assert_eq!(change(2..ENDPOINTS + 2), 3, "one less: the last one moves, and the pool's size");
    assert_eq!(change(2..18), 6 + 1, "six more: still one chain");
    assert_eq!(change(2..19), 1 + 1 + 5, "17 are drawn from by another chain, which all frontends are told");
    assert_eq!(change(0..0), 17 + 1 + 2 * 5, "none: all are refused");
}

/// How many rules of a table of Services with session affinity refer to each set.
fn rules_by_set(services: u16) -> BTreeMap<Name, usize> {
    let mut table = Table::<V4>::default();
    for n in 0..services {
        let mut frontends = frontends(n, 0..ENDPOINTS);
        for frontend in &mut frontends {
            frontend.affinity = Some(Affinity { timeout: Duration::from_mins(10), service: None });
        }
        table.set_service(&name(n), frontends);
    }
    let config = Config::default();
    let plan = Backend::<V4>::new(config.clone()).repair(&config, &table, None, Extent::Difference);
    let rules = plan.transaction.ops.iter().flat_map(|op| match op {
        Op::SetRules { rules, .. } => &rules[..],
        _ => &[],
    });
    let mut by_set = BTreeMap::new();
    for statement in rules.flat_map(|rule| &rule.statements) {
        if let Some(set) = set_of(statement) {
            *by_set.entry(set.clone()).or_default() += 1;
        }
    }
    by_set
}

fn set_of(statement: &Statement) -> Option<&Name> {
    match statement {
        Statement::InSet { set, .. } => Some(set),
        Statement::Vmap { map, .. }
        | Statement::DnatMap { map, .. }
        | Statement::SetPriority { map, .. }
        | Statement::Learn { map, .. }
        | Statement::Forget { map, .. } => Some(map),
        _ => None,
    }
}

/// For each new element of a map the kernel looks at all rules that refer to it.
#[test]
fn no_service_adds_a_rule_to_a_set_of_all() {
    let (one, many) = (rules_by_set(1), rules_by_set(SERVICES));
    assert!(
        one["affinity-endpoints"] > 0 && one["affinity-slots"] > 0 && one["affinity-chains"] > 0,
        "{one:?}"
    );
    for (set, rules) in one {
        assert_eq!(many[&set], rules, "{set}");
    }
}
