use std::net::IpAddr;

use super::*;
use crate::{
    Change, Endpoint, Object, ObjectName, Protocol, SliceEndpoints, SlicePort, Store, Touched, TrafficPolicy,
    V4, V6,
};

fn service(cluster_ips: &[&str], ports: &[(&str, Protocol, u16, Option<u16>)]) -> Service {
    Service {
        name: ObjectName::new("shop", "front"),
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|(name, protocol, port, node_port)| ServicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
                node_port: *node_port,
            })
            .collect(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
    }
}

fn slice(
    name: &str,
    ports: &[(&str, Protocol, u16)],
    endpoints: &[(&str, Conditions, &str)],
) -> EndpointSlice {
    let parse = |ip: &str| ip.parse::<IpAddr>().unwrap();
    let is_v6 = endpoints.first().is_some_and(|(ip, ..)| parse(ip).is_ipv6());
    EndpointSlice {
        name: ObjectName::new("shop", name),
        service: ObjectName::new("shop", "front"),
        ports: ports
            .iter()
            .map(|(name, protocol, port)| SlicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
            })
            .collect(),
        endpoints: if is_v6 {
            SliceEndpoints::V6(family_endpoints(endpoints))
        } else {
            SliceEndpoints::V4(family_endpoints(endpoints))
        },
    }
}

fn family_endpoints<F: Family>(endpoints: &[(&str, Conditions, &str)]) -> Box<[Endpoint<F>]> {
    let one = |(ip, conditions, node): &(&str, Conditions, &str)| Endpoint {
        address: F::narrow(ip.parse().unwrap()).unwrap(),
        conditions: *conditions,
        node: (!node.is_empty()).then(|| (*node).into()),
        hints: None,
    };
    endpoints.iter().map(one).collect()
}

/// Renders the frontends of both families, one a line, as documentation of the case.
#[track_caller]
fn check(service: Service, slices: Vec<EndpointSlice>, expected: &str) {
    let mut store = Store::default();
    let name = service.name.clone();
    store.apply(Change::Apply(Object::Service(service)), &mut Touched::default());
    for slice in slices {
        store.apply(Change::Apply(Object::EndpointSlice(slice)), &mut Touched::default());
    }
    let node = ThisNode { name: "node-1".into() };
    let entry = store.entry(&name).unwrap();
    let mut lines: Vec<String> = frontends::<V4>(&node, entry).iter().map(line).collect();
    lines.extend(frontends::<V6>(&node, entry).iter().map(line));
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, expected);
}

fn line<F: Family>(frontend: &Frontend<F>) -> String {
    let address = match frontend.key.address {
        FrontendAddress::Ip(ip) => ip.to_string(),
        FrontendAddress::Node => "node".into(),
    };
    let pool = match &frontend.pool {
        Pool::Empty(verdict) => format!("{verdict:?}"),
        Pool::Endpoints(endpoints) => {
            let show =
                |d: &Destination<F>| format!("{}:{}{}", d.address, d.port, if d.local { "*" } else { "" });
            endpoints.iter().map(show).collect::<Vec<_>>().join(" ")
        }
    };
    let FrontendKey { protocol, port, .. } = frontend.key;
    format!("{} {address} {protocol} {port} -> {pool}", frontend.service)
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const NOT_READY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };

#[test]
fn cluster_ip_and_node_port_share_the_ready_endpoints() {
    check(
        service(&["10.96.0.10"], &[("http", Protocol::Tcp, 80, Some(30080))]),
        vec![slice(
            "a",
            &[("http", Protocol::Tcp, 8080)],
            &[
                ("10.244.0.1", READY, "node-1"),
                ("10.244.1.1", READY, "node-2"),
                ("10.244.1.2", NOT_READY, "node-2"),
            ],
        )],
        "shop/front:http 10.96.0.10 TCP 80 -> 10.244.0.1:8080* 10.244.1.1:8080
         shop/front:http node TCP 30080 -> 10.244.0.1:8080* 10.244.1.1:8080",
    );
}

#[test]
fn no_ready_endpoint_rejects() {
    check(
        service(&["10.96.0.10"], &[("", Protocol::Udp, 53, Some(30053))]),
        vec![slice("a", &[("", Protocol::Udp, 53)], &[("10.244.0.1", NOT_READY, "node-1")])],
        "shop/front 10.96.0.10 UDP 53 -> Reject
         shop/front node UDP 30053 -> Reject",
    );
}

#[test]
fn families_are_separate() {
    check(
        service(&["fd00:10:96::a", "10.96.0.10"], &[("", Protocol::Tcp, 80, None)]),
        vec![
            slice("a", &[("", Protocol::Tcp, 80)], &[("10.244.0.1", READY, "")]),
            slice("b", &[("", Protocol::Tcp, 80)], &[("fd00:10:244::1", READY, "node-1")]),
        ],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80
         shop/front fd00:10:96::a TCP 80 -> fd00:10:244::1:80*",
    );
}

#[test]
fn ports_match_by_name_and_protocol_and_targets_may_differ_by_slice() {
    check(
        service(&["10.96.0.10"], &[("web", Protocol::Tcp, 80, None), ("dns", Protocol::Udp, 53, None)]),
        vec![
            slice(
                "a",
                &[("web", Protocol::Tcp, 8080), ("dns", Protocol::Tcp, 53)],
                &[("10.244.0.1", READY, "")],
            ),
            slice(
                "b",
                &[("web", Protocol::Tcp, 9090)],
                &[("10.244.0.1", READY, ""), ("10.244.0.2", READY, "")],
            ),
        ],
        "shop/front:web 10.96.0.10 TCP 80 -> 10.244.0.1:8080 10.244.0.1:9090 10.244.0.2:9090
         shop/front:dns 10.96.0.10 UDP 53 -> Reject",
    );
}

#[test]
fn a_duplicated_endpoint_counts_once_with_its_better_conditions() {
    check(
        service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]),
        vec![
            slice("a", &[("", Protocol::Tcp, 80)], &[("10.244.0.1", TERMINATING, "node-2")]),
            slice("b", &[("", Protocol::Tcp, 80)], &[("10.244.0.1", READY, "node-1")]),
        ],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80*",
    );
}
