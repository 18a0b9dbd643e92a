use std::collections::BTreeSet;

use super::*;
use crate::{
    Destination, EndpointNode, FrontendAddress, Masquerade, ObjectName, Pool, Protocol, V4, Verdict,
};

fn frontend(service: &str, kind: AddressKind, ip: &str, endpoint: u16) -> Frontend<V4> {
    let destination =
        Destination { address: "10.244.0.1".parse().unwrap(), port: endpoint, node: EndpointNode::Other };
    Frontend {
        masquerade: Masquerade::UnlessFromPod,
        ..Frontend::new(
            FrontendKey {
                address: FrontendAddress::Ip(ip.parse().unwrap()),
                protocol: Protocol::Tcp,
                port: 80,
            },
            kind,
            ServicePortName {
                service: ObjectName::new("ns", service),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            Pool::new(BTreeSet::from([destination]), Verdict::Reject),
        )
    }
}

fn set(table: &mut Table<V4>, service: &str, frontends: Vec<Frontend<V4>>) -> usize {
    table.set_service(&ObjectName::new("ns", service), frontends).len()
}

/// `loser: winner before -> winner now`.
fn changes(table: &mut Table<V4>) -> Vec<String> {
    let name = |winner: Option<ServicePortName>| {
        winner.map_or_else(|| "None".to_owned(), |winner| winner.service.name.to_string())
    };
    let changes = table.take_conflict_changes().into_iter();
    changes
        .map(|change| {
            format!("{}: {} -> {}", change.loser.service.name, name(change.before), name(change.now))
        })
        .collect()
}

#[test]
fn a_conflict_that_lasts_is_reported_once() {
    let mut table = Table::default();
    let (a, b) = (
        frontend("a", AddressKind::ClusterIp, "10.96.0.1", 1),
        frontend("b", AddressKind::ClusterIp, "10.96.0.1", 2),
    );
    set(&mut table, "a", vec![a.clone()]);
    set(&mut table, "b", vec![b.clone()]);
    assert_eq!(changes(&mut table), ["b: None -> a"]);
    // Other endpoints on either side are no news.
    set(&mut table, "b", vec![frontend("b", AddressKind::ClusterIp, "10.96.0.1", 3)]);
    set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.1", 4)]);
    assert_eq!((changes(&mut table), table.conflict_count()), (vec![], 1));
    // Away and back.
    set(&mut table, "a", vec![]);
    set(&mut table, "a", vec![a]);
    assert_eq!(changes(&mut table), [""; 0]);
    set(&mut table, "b", vec![]);
    assert_eq!((changes(&mut table), table.conflict_count()), (vec!["b: a -> None".to_owned()], 0));
}

#[test]
fn memory_is_given_back_when_services_go() {
    let mut table = Table::default();
    let one = |n: u32| {
        let mut frontend = frontend("a", AddressKind::ClusterIp, "10.96.0.1", 80);
        frontend.service.service = ObjectName::new("ns", &format!("svc-{n}"));
        frontend.key.address = FrontendAddress::Ip(std::net::Ipv4Addr::from(0x0a60_0000 + n));
        frontend
    };
    for n in 0..20_000 {
        table.set_service(&one(n).service.service.clone(), vec![one(n)]);
    }
    let full = table.frontends.capacity();
    for n in 0..20_000 {
        table.set_service(&one(n).service.service, Vec::new());
    }
    assert!(table.is_empty() && table.frontends.capacity() < full / 8, "{}", table.frontends.capacity());
}

#[test]
fn a_health_check_port_is_the_first_services_by_name() {
    let mut table = Table::<V4>::default();
    let mut set = |service: &str, port| {
        let changed = table.set_health_check_port(&ObjectName::new("ns", service), port);
        let owner = table.health_check_port(7).map(|owner| owner.name.to_string());
        (changed.into_iter().collect::<Vec<_>>(), owner)
    };
    assert_eq!(set("b", Some(7)), (vec![7], Some("b".to_owned())));
    assert_eq!(set("b", Some(7)), (vec![], Some("b".to_owned())));
    assert_eq!(set("c", Some(7)), (vec![], Some("b".to_owned())));
    assert_eq!(set("a", Some(7)), (vec![7], Some("a".to_owned())));
    assert_eq!(set("a", Some(8)), (vec![7, 8], Some("b".to_owned())));
    assert_eq!(set("c", None), (vec![], Some("b".to_owned())));
    assert_eq!(set("b", None), (vec![7], None));
    assert_eq!(table.health_check_ports().map(|(port, _)| port).collect::<Vec<_>>(), [8]);
}

#[test]
fn only_differences_are_reported() {
    let mut table = Table::default();
    let one = || frontend("a", AddressKind::ClusterIp, "10.96.0.1", 8080);
    assert_eq!(set(&mut table, "a", vec![one()]), 1);
    assert_eq!(set(&mut table, "a", vec![one()]), 0);
    assert_eq!(set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.1", 8081)]), 1);
    assert_eq!(set(&mut table, "a", vec![frontend("a", AddressKind::ClusterIp, "10.96.0.2", 8081)]), 2);
    assert_eq!(set(&mut table, "a", vec![]), 1);
    assert_eq!(table.iter().count(), 0);
}

#[test]
fn a_conflict_has_one_winner_in_any_order_and_the_next_takes_over() {
    let claims = [
        frontend("b", AddressKind::ClusterIp, "10.96.0.1", 1),
        frontend("a", AddressKind::ExternalIp, "10.96.0.1", 2),
        frontend("c", AddressKind::ClusterIp, "10.96.0.1", 3),
    ];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]] {
        let mut table = Table::default();
        for i in order {
            set(&mut table, &claims[i].service.service.name, vec![claims[i].clone()]);
        }
        assert_eq!(table.get(&claims[0].key), Some(&claims[0]));
        assert_eq!(table.conflicts(&claims[0].key), [claims[2].clone(), claims[1].clone()]);
        assert_eq!(table.iter().count(), 1);
        assert_eq!(table.conflict_count(), 2);
        assert_eq!(changes(&mut table), ["a: None -> b", "c: None -> b"], "whatever was between");
        assert_eq!(set(&mut table, "b", vec![]), 1);
        assert_eq!(changes(&mut table), ["a: b -> c", "c: b -> None"]);
        assert_eq!(table.get(&claims[0].key), Some(&claims[2]));
        assert_eq!(set(&mut table, "a", vec![]), 0);
        assert_eq!((changes(&mut table), table.conflict_count()), (vec!["a: c -> None".to_owned()], 0));
        assert_eq!(set(&mut table, "c", vec![]), 1);
        assert_eq!((table.get(&claims[0].key), table.conflict_count()), (None, 0));
    }
}
