//! A small cluster for tests.

use agent::snapshot::{
    Address, AddressKind, AddressState, Basis, Conflict, Endpoint, Failure, FamilyState, Overview, Policy,
    Port, RecentChange, Repairs, RuleCount, Service, ServiceFamily, Traffic, TrafficPolicy, Usage, Use,
};

/// A node where all is well.
pub(crate) fn overview() -> Overview {
    Overview {
        node: "node-1".into(),
        is_node_known: true,
        node_addresses: vec!["192.168.0.1".parse().unwrap()],
        zone: None,
        generation: 7,
        is_listed: true,
        waits_for_pod_cidrs: false,
        services: 1,
        families: vec![FamilyState {
            family: "IPv4".into(),
            mode: "nftables".into(),
            is_known: true,
            was_synced: true,
            last_synced_at: Some(5.5),
            waiting_seconds: None,
            refused: 0,
            failure: None,
            frontends: 2,
            rules: Vec::new(),
            repairs: Repairs::default(),
        }],
        conflicts: Vec::new(),
        recent_changes: Vec::new(),
    }
}

/// A node where something of everything has happened.
pub(crate) fn eventful_overview() -> Overview {
    let mut overview = overview();
    let family = &mut overview.families[0];
    family.failure = Some(Failure { error: "x".into(), times: 2, retry_in_seconds: 0.5 });
    family.waiting_seconds = Some(1.5);
    family.rules = vec![RuleCount { table: "nat".into(), held: 3, written: 1 }];
    overview.conflicts.push(Conflict {
        family: "IPv4".into(),
        address: None,
        protocol: "TCP".into(),
        port: 30080,
        winner: "a/b:c".into(),
        loser: "d/e:f".into(),
    });
    overview.recent_changes.push(RecentChange {
        family: "IPv4".into(),
        namespace: "shop".into(),
        name: "web".into(),
        known_at: 5.5,
        latency_seconds: None,
    });
    overview
}

/// `shop/NAME` with a cluster IP, a node port, a ready endpoint here and one elsewhere that is ending.
pub(crate) fn service(name: &str, ip: &str) -> Service {
    let address = |kind, address, port| Address {
        kind,
        address,
        port,
        state: AddressState::InForce,
        rules: Vec::new(),
    };
    let endpoint = |text: &str, is_local, usage| Endpoint {
        address: text.parse().unwrap(),
        is_local,
        is_ready: is_local,
        is_serving: true,
        is_terminating: !is_local,
        is_hinted: false,
        slice: format!("{name}-abc"),
        out: None,
        uses: vec![Use { policy: TrafficPolicy::Cluster, usage }],
        traffic: Some(traffic(if is_local { 30 } else { 10 })),
    };
    Service {
        namespace: "shop".into(),
        name: name.into(),
        families: vec![ServiceFamily {
            family: "IPv4".into(),
            has_cluster_ip: true,
            ports: vec![Port {
                service_port: format!("shop/{name}:http"),
                protocol: "TCP".into(),
                addresses: vec![
                    address(AddressKind::ClusterIp, Some(ip.parse().unwrap()), 80),
                    address(AddressKind::NodePort, None, 30080),
                ],
                affinity_seconds: None,
                proxying: None,
                policies: vec![Policy {
                    policy: TrafficPolicy::Cluster,
                    governs: vec![format!("cluster IP {ip}"), "node port 30080".into()],
                    endpoints: 1,
                    basis: Basis::ReadyHintsIncomplete,
                    drops: false,
                }],
                endpoints: vec![
                    endpoint("10.244.0.2:8080", true, Usage::Serves),
                    endpoint("10.244.1.2:8080", false, Usage::Terminating),
                ],
                traffic: Some(traffic(40)),
            }],
            last_change: None,
        }],
    }
}

fn traffic(connections: u64) -> Traffic {
    Traffic {
        connections,
        refused: 2,
        dropped: 0,
        packets: None,
        bytes: None,
        retries: None,
        connections_per_second: Some(1.5),
        refused_per_second: Some(0.0),
        dropped_per_second: None,
        age_seconds: 0.5,
    }
}

/// The first port of a Service.
pub(crate) fn port(service: &mut Service) -> &mut Port {
    &mut service.families[0].ports[0]
}
