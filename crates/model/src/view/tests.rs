use std::fmt::Write as _;
use std::net::IpAddr;

use super::*;
use crate::{
    AppProtocol, Change, Conditions, Endpoint, EndpointNode, EndpointSlice, Hints, Object, ObjectName,
    SliceDetails, SliceEndpoints, SlicePort, Store, Touched, V4, V6,
};

fn service(cluster_ips: &[&str], ports: &[(&str, Protocol, u16, Option<u16>)]) -> Service {
    Service {
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|(name, protocol, port, node_port)| ServicePort {
                name: (*name).into(),
                protocol: *protocol,
                port: *port,
                node_port: *node_port,
                app_protocol: AppProtocol::Opaque,
            })
            .collect(),
        ..Service::new(ObjectName::new("shop", "front"))
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
        details: None,
        trigger_time: None,
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

fn this_node() -> ThisNode {
    ThisNode {
        name: "node-1".into(),
        zone: Some("zone-a".into()),
        addresses: ["192.168.0.7", "fd00::7"].map(ip).into(),
        ..ThisNode::default()
    }
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
    let node = this_node();
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
    let FrontendKey { protocol, port, .. } = frontend.key;
    let mut line = format!("{} {address} {protocol} {port} -> {}", frontend.service, pool(&frontend.pool));
    if let Some(inside) = &frontend.internal_pool {
        write!(line, " (from inside: {})", pool(inside)).unwrap();
    }
    if frontend.masquerade == Masquerade::Never {
        line += " (client kept)";
    }
    if let Some(sources) = &frontend.allowed_sources {
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        write!(line, " (only from {})", sources.join(" ")).unwrap();
    }
    if frontend.app_protocol == AppProtocol::Http {
        line += " (HTTP)";
    }
    line
}

fn pool<F: Family>(pool: &Pool<F>) -> String {
    match pool {
        Pool::Empty(verdict) => format!("{verdict:?}"),
        Pool::Endpoints(endpoints) => {
            let show = |d: &Destination<F>| {
                format!("{}:{}{}", d.address, d.port, if d.node == EndpointNode::This { "*" } else { "" })
            };
            endpoints.iter().map(show).collect::<Vec<_>>().join(" ")
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
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

/// One unnamed port 80, and a node port.
fn local_service(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        internal_policy: internal,
        external_policy: external,
        ..service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, Some(30080))])
    }
}

fn tcp_slice(endpoints: &[(&str, Conditions, &str)]) -> EndpointSlice {
    slice("a", &[("", Protocol::Tcp, 80)], endpoints)
}

const CLUSTER: TrafficPolicy = TrafficPolicy::Cluster;
const LOCAL: TrafficPolicy = TrafficPolicy::Local;

#[test]
fn policies_concern_only_their_own_addresses() {
    let endpoints = [("10.244.0.1", READY, "node-1"), ("10.244.1.1", READY, "node-2")];
    check(
        local_service(LOCAL, CLUSTER),
        vec![tcp_slice(&endpoints)],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80*
         shop/front node TCP 30080 -> 10.244.0.1:80* 10.244.1.1:80",
    );
    check(
        local_service(CLUSTER, LOCAL),
        vec![tcp_slice(&endpoints)],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80* 10.244.1.1:80
         shop/front node TCP 30080 -> 10.244.0.1:80* (from inside: 10.244.0.1:80* 10.244.1.1:80) (client kept)",
    );
}

#[test]
fn without_a_local_endpoint_the_local_policy_drops_what_others_could_serve() {
    check(
        local_service(LOCAL, LOCAL),
        vec![tcp_slice(&[("10.244.1.1", READY, "node-2")])],
        "shop/front 10.96.0.10 TCP 80 -> Drop
         shop/front node TCP 30080 -> Drop (from inside: 10.244.1.1:80) (client kept)",
    );
    check(
        local_service(LOCAL, LOCAL),
        vec![tcp_slice(&[("10.244.1.1", NOT_READY, "node-2")])],
        "shop/front 10.96.0.10 TCP 80 -> Reject
         shop/front node TCP 30080 -> Reject (client kept)",
    );
}

#[test]
fn an_endpoint_that_ends_serves_only_where_no_ready_one_does() {
    check(
        local_service(CLUSTER, LOCAL),
        vec![tcp_slice(&[("10.244.0.1", TERMINATING, "node-1"), ("10.244.1.1", READY, "node-2")])],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.1.1:80
         shop/front node TCP 30080 -> 10.244.0.1:80* (from inside: 10.244.1.1:80) (client kept)",
    );
    let gone = Conditions { serving: false, ..TERMINATING };
    check(
        local_service(CLUSTER, CLUSTER),
        vec![tcp_slice(&[("10.244.0.1", TERMINATING, "node-1"), ("10.244.1.1", gone, "node-2")])],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80*
         shop/front node TCP 30080 -> 10.244.0.1:80*",
    );
}

/// Serving but not ready and not terminating: a pod that fails its readiness probe takes nothing new.
#[test]
fn serving_alone_is_not_enough() {
    let failing = Conditions { ready: false, serving: true, terminating: false };
    check(
        service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]),
        vec![tcp_slice(&[("10.244.0.1", failing, "node-1")])],
        "shop/front 10.96.0.10 TCP 80 -> Reject",
    );
}

#[test]
fn external_and_load_balancer_addresses_of_the_family_are_served() {
    let base = service(&["10.96.0.10", "fd00:10:96::a"], &[("", Protocol::Tcp, 80, None)]);
    let service = Service {
        external_ips: ["203.0.113.1", "fd00:203::1"].map(ip).into(),
        load_balancer_ips: ["203.0.113.9"].map(ip).into(),
        source_ranges: ["198.51.100.0/24", "192.168.0.0/24"].map(|net| net.parse().unwrap()).into(),
        ..base
    };
    check(
        service,
        vec![tcp_slice(&[("10.244.0.1", READY, "")])],
        "shop/front 10.96.0.10 TCP 80 -> 10.244.0.1:80
         shop/front 203.0.113.9 TCP 80 -> 10.244.0.1:80 (only from 192.168.0.0/24 198.51.100.0/24 203.0.113.9/32)
         shop/front 203.0.113.1 TCP 80 -> 10.244.0.1:80
         shop/front fd00:10:96::a TCP 80 -> Reject
         shop/front fd00:203::1 TCP 80 -> Reject",
    );
}

#[test]
fn external_ips_are_served_as_far_as_they_are_allowed() {
    let service = Service {
        external_ips: ["203.0.113.1", "198.51.100.7"].map(ip).into(),
        ..service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)])
    };
    let entry = ServiceEntry { service: Some(Box::new(service)), ..ServiceEntry::default() };
    let check = |external_ips: ExternalIps, served: &[&str], unserved: &[&str]| {
        let node = ThisNode { external_ips, ..this_node() };
        let frontends = frontends::<V4>(&node, &entry);
        let external = frontends.iter().filter(|frontend| frontend.kind == AddressKind::ExternalIp);
        let addresses = external.map(|frontend| frontend.key.address);
        let expected: Vec<_> = served.iter().map(|addr| FrontendAddress::Ip(addr.parse().unwrap())).collect();
        assert_eq!(addresses.collect::<Vec<_>>(), expected);
        let Explanation::Ports(ports) = explain::<V4>(&node, Some(&entry)) else { panic!("it has ports") };
        let left_out: Vec<_> = ports[0].unserved.iter().map(ToString::to_string).collect();
        assert_eq!(left_out, unserved);
    };
    let ranges = ["198.51.100.0/24", "fd00::/8"].map(|range| range.parse().unwrap());
    check(ExternalIps::All, &["203.0.113.1", "198.51.100.7"], &[]);
    check(ExternalIps::None, &[], &["203.0.113.1", "198.51.100.7"]);
    check(ExternalIps::Within(ranges.into()), &["198.51.100.7"], &["203.0.113.1"]);
}

#[track_caller]
fn check_sources(ranges: &[&str], expected: Option<&str>) {
    let base = service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]);
    let service = Service {
        load_balancer_ips: ["203.0.113.9"].map(ip).into(),
        source_ranges: ranges.iter().map(|net| net.parse().unwrap()).collect(),
        ..base
    };
    let only = expected.map(|expected| format!(" (only from {expected})")).unwrap_or_default();
    let lines = format!(
        "shop/front 10.96.0.10 TCP 80 -> Reject
         shop/front 203.0.113.9 TCP 80 -> Reject{only}"
    );
    check(service, Vec::new(), &lines);
}

#[test]
fn source_ranges_are_those_of_the_family_unless_they_are_everything() {
    check_sources(&[], None);
    check_sources(&["fd00::/64"], None);
    check_sources(&["198.51.100.0/24", "0.0.0.0/0"], None);
    check_sources(&["198.51.100.0/24"], Some("198.51.100.0/24"));
    check_sources(&["198.51.100.0/25", "198.51.100.128/25", "198.51.100.7/32"], Some("198.51.100.0/24"));
}

/// A ready endpoint with hints.
fn hinted(last: u8, zones: &[&str], nodes: &[&str]) -> Endpoint<V4> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    Endpoint {
        address: [10, 244, 0, last].into(),
        conditions: READY,
        node: Some("node-9".into()),
        hints: (!zones.is_empty() || !nodes.is_empty())
            .then(|| Box::new(Hints { zones: names(zones), nodes: names(nodes) })),
    }
}

/// What a slice says counts before what the Service says; of the others nothing is known.
#[test]
fn weights_are_those_of_slices_and_of_the_service() {
    let slice = |name: &str, endpoints: [(u8, &str); 2], weights| {
        let zones = endpoints.map(|(_, zone)| Some(zone.into()));
        let endpoints: Vec<Endpoint<V4>> = endpoints.map(|(last, _)| hinted(last, &[], &[])).into();
        EndpointSlice {
            name: ObjectName::new("shop", name),
            endpoints: SliceEndpoints::V4(endpoints.into()),
            details: SliceDetails::new(zones, weights),
            ..tcp_slice(&[])
        }
    };
    let slices = vec![
        slice("one", [(1, "a"), (2, "a")], Some(vec![Some(7), None])),
        slice("two", [(3, "a"), (4, "b")], None),
    ];
    let weights = |text: &str| {
        let asked = (!text.is_empty()).then(|| Arc::new(balance::Weights::parse(text).unwrap()));
        let service =
            Service { weights: asked, ..service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]) };
        let entry = ServiceEntry { service: Some(service.into()), slices: slices.clone() };
        let frontends = frontends::<V4>(&this_node(), &entry);
        let weights = frontends[0].weights.as_deref().cloned().unwrap_or_default();
        weights.into_iter().map(|((address, _), weight)| (address.octets()[3], weight)).collect::<Vec<_>>()
    };
    assert_eq!(weights(""), [(1, 7)]);
    assert_eq!(weights("zone:a=3"), [(1, 7), (2, 3), (3, 3)]);
    assert_eq!(weights("10.244.0.4=0,other=2"), [(1, 7), (2, 2), (3, 2), (4, 0)]);
}

#[track_caller]
fn check_hints(endpoints: Vec<Endpoint<V4>>, expected: &str) {
    let slice = EndpointSlice { endpoints: SliceEndpoints::V4(endpoints.into()), ..tcp_slice(&[]) };
    let service = service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None)]);
    check(service, vec![slice], &format!("shop/front 10.96.0.10 TCP 80 -> {expected}"));
}

#[test]
fn hints_count_if_every_ready_endpoint_has_one_and_one_means_us() {
    let both = "10.244.0.1:80 10.244.0.2:80";
    check_hints(vec![hinted(1, &["zone-a"], &[]), hinted(2, &["zone-b"], &[])], "10.244.0.1:80");
    check_hints(vec![hinted(1, &["zone-a", "zone-b"], &[]), hinted(2, &["zone-b"], &[])], "10.244.0.1:80");
    check_hints(vec![hinted(1, &["zone-a"], &[]), hinted(2, &[], &[])], both);
    check_hints(vec![hinted(1, &["zone-c"], &[]), hinted(2, &["zone-b"], &[])], both);
    let node = |last, name| hinted(last, &["zone-a"], &[name]);
    check_hints(vec![node(1, "node-1"), node(2, "node-2")], "10.244.0.1:80");
    check_hints(vec![node(1, "node-3"), node(2, "node-2")], both);
    check_hints(vec![hinted(1, &["zone-b"], &["node-1"]), hinted(2, &["zone-a"], &[])], "10.244.0.2:80");
}

/// The hints of an endpoint that is not ready neither count nor are missed.
#[test]
fn only_ready_endpoints_decide_about_hints() {
    let mut unhinted = hinted(2, &[], &[]);
    unhinted.conditions = NOT_READY;
    check_hints(vec![hinted(1, &["zone-a"], &[]), hinted(3, &["zone-b"], &[]), unhinted], "10.244.0.1:80");
    let mut ours = hinted(1, &["zone-a"], &[]);
    ours.conditions = NOT_READY;
    check_hints(vec![ours, hinted(2, &["zone-b"], &[])], "10.244.0.2:80");
}

/// What new flows no longer get, old ones may keep until it is gone.
#[test]
fn flows_stay_with_whatever_serves() {
    let mut store = Store::default();
    let udp = service(&["10.96.0.10"], &[("", Protocol::Udp, 53, None), ("t", Protocol::Tcp, 53, None)]);
    let ports = [("", Protocol::Udp, 53), ("t", Protocol::Tcp, 53)];
    let endpoints =
        [("10.244.0.1", READY, ""), ("10.244.0.2", TERMINATING, ""), ("10.244.0.3", NOT_READY, "")];
    store.apply(Change::Apply(Object::Service(udp.clone())), &mut Touched::default());
    store
        .apply(Change::Apply(Object::EndpointSlice(slice("a", &ports, &endpoints))), &mut Touched::default());
    let frontends = frontends::<V4>(&ThisNode::default(), store.entry(&udp.name).unwrap());
    let of = |n: usize| frontends[n].flow_endpoints.iter().map(|d| d.address.to_string()).collect::<Vec<_>>();
    assert_eq!(of(0), ["10.244.0.1", "10.244.0.2"]);
    assert_eq!(of(1), [""; 0]);
    assert_eq!(frontends[0].pool.endpoints().len(), 1);
}

/// The explanation of a Service in IPv4, a line for each list and each endpoint.
fn told(explanation: &Explanation<V4>) -> Vec<String> {
    let Explanation::Ports(ports) = explanation else { return vec![format!("{explanation:?}")] };
    let list = |list: &ListExplanation| {
        let ListExplanation { policy, addresses, size, basis, drops } = list;
        let drops = if *drops { ", drops" } else { "" };
        format!("{policy:?}: {size} {basis:?}{drops} ({})", addresses.join(", "))
    };
    let endpoint = |endpoint: &EndpointExplanation<V4>| {
        let place = if endpoint.local { "here" } else { "elsewhere" };
        let uses: Vec<_> =
            endpoint.uses.iter().map(|(policy, usage)| format!("{policy:?}: {usage:?}")).collect();
        format!(
            "{}:{} {place} (slice {}): {}",
            endpoint.address,
            endpoint.port,
            endpoint.slice,
            uses.join("; ")
        )
    };
    ports
        .iter()
        .flat_map(|port| port.lists.iter().map(list).chain(port.endpoints.iter().map(endpoint)))
        .collect()
}

#[track_caller]
fn check_explanation(service: Option<Service>, slices: Vec<EndpointSlice>, expected: &[&str]) {
    let mut store = Store::default();
    let objects =
        service.into_iter().map(Object::Service).chain(slices.into_iter().map(Object::EndpointSlice));
    for object in objects {
        store.apply(Change::Apply(object), &mut Touched::default());
    }
    let entry = store.entry(&ObjectName::new("shop", "front"));
    assert_eq!(told(&explain::<V4>(&this_node(), entry)), expected);
}

#[test]
fn an_explanation_says_who_serves_and_why_not_the_others() {
    let mut elsewhere = hinted(2, &["zone-b"], &[]);
    elsewhere.conditions = TERMINATING;
    let endpoints = vec![hinted(1, &["zone-a"], &[]), elsewhere, hinted(3, &["zone-b"], &[])];
    let slice = EndpointSlice { endpoints: SliceEndpoints::V4(endpoints.into()), ..tcp_slice(&[]) };
    check_explanation(
        Some(service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, Some(30080))])),
        vec![slice],
        &[
            "Cluster: 1 Ready(SameZone) (cluster IP 10.96.0.10, node port 30080)",
            "10.244.0.1:80 elsewhere (slice a): Cluster: Serves",
            "10.244.0.2:80 elsewhere (slice a): Cluster: Terminating",
            "10.244.0.3:80 elsewhere (slice a): Cluster: HintedElsewhere",
        ],
    );
}

#[test]
fn an_explanation_tells_policies_apart() {
    check_explanation(
        Some(local_service(TrafficPolicy::Cluster, TrafficPolicy::Local)),
        vec![tcp_slice(&[("10.244.0.1", TERMINATING, "node-1"), ("10.244.1.1", READY, "node-2")])],
        &[
            "Cluster: 1 Ready(HintsIncomplete) (cluster IP 10.96.0.10, other addresses, from pods and from this node)",
            "Local: 1 TerminatingLocal (node port 30080)",
            "10.244.0.1:80 here (slice a): Cluster: Terminating; Local: Serves",
            "10.244.1.1:80 elsewhere (slice a): Cluster: Serves; Local: OtherNode",
        ],
    );
    check_explanation(
        Some(local_service(TrafficPolicy::Local, TrafficPolicy::Local)),
        vec![tcp_slice(&[("10.244.0.1", NOT_READY, "node-1"), ("10.244.1.1", READY, "node-2")])],
        &[
            "Cluster: 1 Ready(HintsIncomplete) (other addresses, from pods and from this node)",
            "Local: 0 NoneLocal, drops (cluster IP 10.96.0.10, node port 30080)",
            "10.244.0.1:80 here (slice a): Cluster: NotReady; Local: NotReady",
            "10.244.1.1:80 elsewhere (slice a): Cluster: Serves; Local: OtherNode",
        ],
    );
}

#[test]
fn an_explanation_of_nothing() {
    check_explanation(None, vec![tcp_slice(&[])], &["NoService"]);
    let v6 = service(&["fd00::1"], &[("", Protocol::Tcp, 80, None)]);
    check_explanation(Some(v6), vec![], &["NoClusterIp"]);
}

const PUBLISHED_NOT_READY: Conditions = Conditions { ready: true, serving: false, terminating: true };

#[track_caller]
fn check_health(endpoints: &[(&str, Conditions, &str)], expected: usize) {
    let mut store = Store::default();
    let service = Service {
        external_policy: LOCAL,
        health_check_node_port: Some(32000),
        ..service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, None), ("b", Protocol::Udp, 81, None)])
    };
    let name = service.name.clone();
    store.apply(Change::Apply(Object::Service(service)), &mut Touched::default());
    let ports = [("", Protocol::Tcp, 80), ("b", Protocol::Udp, 81), ("unused", Protocol::Tcp, 82)];
    store.apply(Change::Apply(Object::EndpointSlice(slice("a", &ports, endpoints))), &mut Touched::default());
    let node = ThisNode { name: "node-1".into(), ..ThisNode::default() };
    let entry = store.entry(&name).unwrap();
    let expected = HealthCheck { port: 32000, local_endpoints: expected };
    assert_eq!(health_check::<V4>(&node, entry), Some(expected));
    assert_eq!(health_check::<V6>(&node, entry), None, "it has no cluster IP in the family");
}

#[test]
fn health_checks_count_addresses_that_are_ready_and_local() {
    check_health(&[], 0);
    check_health(&[("10.244.0.1", READY, "node-1"), ("10.244.0.2", READY, "node-1")], 2);
    check_health(&[("10.244.1.1", READY, "node-2"), ("10.244.1.2", READY, "")], 0);
    check_health(&[("10.244.0.1", NOT_READY, "node-1"), ("10.244.0.2", TERMINATING, "node-1")], 0);
    check_health(&[("10.244.0.1", PUBLISHED_NOT_READY, "node-1")], 1);
}

#[test]
fn a_service_without_health_check_has_none() {
    let entry = ServiceEntry { service: Some(Box::new(local_service(CLUSTER, LOCAL))), slices: Vec::new() };
    assert_eq!(health_check::<V4>(&ThisNode::default(), &entry), None);
    assert_eq!(health_check::<V4>(&ThisNode::default(), &ServiceEntry::default()), None);
}

#[track_caller]
fn check_no_local(
    policies: (TrafficPolicy, TrafficPolicy),
    endpoints: &[(&str, Conditions, &str)],
    expected: (usize, usize),
) {
    let service = Service {
        external_ips: ["192.0.2.1", "192.0.2.2"].map(ip).into(),
        ..local_service(policies.0, policies.1)
    };
    let entry = ServiceEntry { service: Some(Box::new(service)), slices: vec![tcp_slice(endpoints)] };
    let node = ThisNode { name: "node-1".into(), ..ThisNode::default() };
    let found = NoLocalEndpoints::of(&frontends::<V4>(&node, &entry));
    assert_eq!((found.internal, found.external), expected);
}

#[test]
fn ports_without_local_endpoints_are_counted_by_policy() {
    let elsewhere = [("10.244.1.1", READY, "node-2")];
    check_no_local((LOCAL, LOCAL), &elsewhere, (1, 1));
    check_no_local((CLUSTER, LOCAL), &elsewhere, (0, 1));
    check_no_local((LOCAL, CLUSTER), &elsewhere, (1, 0));
    check_no_local((CLUSTER, CLUSTER), &elsewhere, (0, 0));
    check_no_local((LOCAL, LOCAL), &[], (0, 0));
    check_no_local((LOCAL, LOCAL), &[("10.244.0.1", READY, "node-1")], (0, 0));
}

#[test]
fn every_frontend_of_a_port_says_what_goes_through_it() {
    let ports = [("web", Protocol::Tcp, 80, Some(30080)), ("db", Protocol::Tcp, 5432, None)];
    let mut service = service(&["10.96.0.10"], &ports);
    service.external_ips = [ip("192.0.2.1")].into();
    service.ports[0].app_protocol = AppProtocol::named("kubernetes.io/h2c");
    check(
        service,
        vec![],
        "shop/front:web 10.96.0.10 TCP 80 -> Reject (HTTP)
         shop/front:web 192.0.2.1 TCP 80 -> Reject (HTTP)
         shop/front:web node TCP 30080 -> Reject (HTTP)
         shop/front:db 10.96.0.10 TCP 5432 -> Reject
         shop/front:db 192.0.2.1 TCP 5432 -> Reject",
    );
}

#[test]
fn a_preserved_destination_asks_for_local_endpoints_where_hns_serves() {
    let service = Service {
        preserves_destination: true,
        load_balancer_ips: [ip("203.0.113.9")].into(),
        ..service(&["10.96.0.10"], &[("", Protocol::Tcp, 80, Some(30080))])
    };
    let endpoints = [("10.244.1.2", READY, "node-1"), ("10.244.2.2", READY, "node-2")];
    let mut store = Store::default();
    let name = service.name.clone();
    store.apply(Change::Apply(Object::Service(service)), &mut Touched::default());
    let slice = slice("a", &[("", Protocol::Tcp, 8080)], &endpoints);
    store.apply(Change::Apply(Object::EndpointSlice(slice)), &mut Touched::default());
    let entry = store.entry(&name).unwrap();
    for frontend in frontends::<V4>(&this_node(), entry) {
        assert!(!frontend.preserves_destination && frontend.flow_endpoints.is_empty());
        assert_eq!(frontend.pool.endpoints().len(), 2);
    }
    for frontend in frontends::<V4>(&ThisNode { served_by_hns: true, ..this_node() }, entry) {
        let is_cluster_ip = frontend.kind == AddressKind::ClusterIp;
        assert_eq!(frontend.preserves_destination, !is_cluster_ip);
        assert_eq!(frontend.pool.endpoints().len(), if is_cluster_ip { 2 } else { 1 });
        assert_eq!(frontend.flow_endpoints.len(), 2, "flows of TCP keep their endpoints");
    }
}
