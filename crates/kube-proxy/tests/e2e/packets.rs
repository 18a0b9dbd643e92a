//! Which packet reaches which pod.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use fakes::objects::{self, Endpoint, Port};
use lab::Host;
use lab::client::{FailureClass, Transport, UdpFlow, ask_once, five_sigma, spread, tcp_once};
use testkit::cluster::{Cluster, LINE_PORT, ProxyMode};

use crate::support::{
    NODE_PORT, PATIENCE, REQUEST, WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, apply_web, ask, check_listable,
    cluster, cluster_in, in_every_mode, ip, listing, start, wait_for,
};

in_every_mode!(
    every_client_reaches_every_pod_by_every_address,
    connections_are_spread_evenly,
    without_a_ready_endpoint_clients_are_refused_at_once,
    endpoints_come_and_go,
    a_pod_reaches_itself_through_its_service,
    source_addresses_are_rewritten_only_where_they_must_be,
    ports_of_one_service_are_independent,
    source_ranges_keep_others_away_from_load_balancer_addresses,
    udp_clients_follow_the_endpoints,
);

const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Every kind of client, with the addresses by which it reaches Service `web`.
fn clients(cluster: &Cluster) -> Vec<(&Host, Vec<SocketAddr>)> {
    let lab = &cluster.lab;
    let cluster_ips = [(ip(WEB_V4), 80).into(), (ip(WEB_V6), 80).into()];
    let node = lab.node();
    let node_ports = [(node.ip4(), NODE_PORT).into(), (node.ip6(), NODE_PORT).into()];
    let all = [cluster_ips, node_ports].concat();
    vec![
        (lab.pod(0), all.clone()),
        (node, all.clone()),
        (lab.outside(), all),
        (lab.node2(), node_ports.into()),
    ]
}

fn every_client_reaches_every_pod_by_every_address(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 2);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    wait_until_served(&cluster);
    let pods: BTreeSet<String> = cluster.pod_names().into_iter().map(str::to_owned).collect();
    for (client, addresses) in clients(&cluster) {
        for address in addresses {
            for transport in BOTH {
                // Four pods are all met in 60 tries but for one case in ten million.
                let counts = client.run(|| spread(60, address, transport));
                let counts = counts
                    .unwrap_or_else(|error| panic!("{} -> {address} {transport:?}: {error}", client.name()));
                let met: BTreeSet<String> = counts.into_keys().collect();
                assert_eq!(met, pods, "{} -> {address} {transport:?}", client.name());
            }
        }
    }
    let text = listing(&cluster);
    let dispatch = match mode {
        ProxyMode::Nftables | ProxyMode::Ebpf | ProxyMode::Userspace => {
            "10.96.0.10 . tcp . 80 comment \"default/web:line\" : 30:"
        }
        ProxyMode::Ipvs => "TCP  10.96.0.10:80 rr",
        ProxyMode::Iptables(_) => {
            "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment \"default/web:line cluster IP\" -m tcp --dport 80 -j KUBE-SVC-"
        }
    };
    assert!(text.contains(dispatch), "{text}");
}

/// Ten endpoints, 2,000 connections: each endpoint within five sigma of its share.
fn connections_are_spread_evenly(mode: ProxyMode) {
    let cluster = cluster_in(mode, 6, 4);
    // The rules are there before the first packet: in mode iptables, the kernel tracks a flow to what no Service has yet, and does
    // not translate it later, nor one that has its source port again.
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_until_served(&cluster);
    let client = cluster.lab.outside();
    for address in [(ip(WEB_V4), 80), (ip(WEB_V6), 80), (cluster.lab.node().ip4().into(), NODE_PORT)] {
        for transport in BOTH {
            let counts = client.run(|| spread(2000, address.into(), transport));
            let counts = counts.unwrap_or_else(|error| panic!("{address:?} {transport:?}: {error}"));
            five_sigma(&counts, &cluster.pod_names())
                .unwrap_or_else(|error| panic!("{address:?} {transport:?}: {error}"));
        }
    }
    listing(&cluster);
}

fn without_a_ready_endpoint_clients_are_refused_at_once(mode: ProxyMode) {
    let cluster = cluster_in(mode, 1, 0);
    let _proxy = start(&cluster);
    let not_ready = |v6| -> Vec<Endpoint> {
        let endpoints = cluster.endpoints(v6);
        endpoints.into_iter().map(|endpoint| Endpoint { ready: false, ..endpoint }).collect()
    };
    apply_web(&cluster);
    wait_until_served(&cluster);
    apply_endpoints(&cluster, &not_ready(false), &not_ready(true));
    for (client, addresses) in clients(&cluster) {
        for address in addresses {
            for transport in BOTH {
                // The node's own datagram to elsewhere is refused before it is sent: the system call fails with EPERM.
                let is_own = client.name() == cluster.lab.node().name();
                let to_service = [ip(WEB_V4), ip(WEB_V6)].contains(&address.ip());
                let early = transport == Transport::Udp && is_own && to_service;
                let failure = if early { FailureClass::Other } else { FailureClass::Refused };
                wait_for(client, transport, address, &Err(failure));
            }
        }
    }
    let text = listing(&cluster);
    let refusal = match mode {
        ProxyMode::Nftables | ProxyMode::Ipvs | ProxyMode::Ebpf | ProxyMode::Userspace => {
            let (_, refused) = text.split_once("set no-endpoint-services").unwrap();
            // What was counted stands before the comment.
            let (_, element) = refused.split_once("10.96.0.10 . tcp . 80 ").unwrap();
            let element = element.split([',', '}']).next().unwrap();
            element.contains("counter packets") && element.contains("comment \"default/web:line\"")
        }
        ProxyMode::Iptables(_) => text.contains("--comment \"default/web:line has no endpoints\""),
    };
    assert!(refusal, "{text}");
}

fn endpoints_come_and_go(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 1);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    wait_until_served(&cluster);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    let (client, node) = (cluster.lab.outside(), cluster.lab.node());
    for round in [0, 1, 2, 0] {
        apply_endpoints(&cluster, &v4[round..=round], &v6[round..=round]);
        let only = cluster.pod_names()[round];
        for address in [(ip(WEB_V4), 80), (ip(WEB_V6), 80), (node.ip4().into(), NODE_PORT)] {
            // Before the change is in place another one may answer, after it none.
            let names = || client.run(|| spread(20, address.into(), Transport::Tcp)).map(BTreeMap::into_keys);
            let alone = || names().is_ok_and(|names| names.eq([only]));
            assert!(lab::proxy::wait_until(PATIENCE, alone), "{address:?}: not only {only} answers");
            assert!(alone(), "{address:?}: another than {only} answers again");
        }
    }
    apply_endpoints(&cluster, &[], &v6);
    wait_for(client, Transport::Tcp, (ip(WEB_V4), 80).into(), &Err(FailureClass::Refused));
    assert!(
        ask(client, Transport::Tcp, (ip(WEB_V6), 80).into()).is_ok(),
        "the other family is not concerned"
    );
    listing(&cluster);
}

/// A pod that is sent to itself sees its node as the client, or it would answer itself directly; also where its slice, written
/// by hand, does not say which node it runs on.
fn a_pod_reaches_itself_through_its_service(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 0);
    let _proxy = start(&cluster);
    let pod = cluster.lab.pod(0);
    let ports = WEB_PORTS.map(|port| Port { node_port: None, ..port });
    let by_hand =
        [("10.96.0.60", "v4", cluster.endpoints(false)), ("fd00:10:96::60", "v6", cluster.endpoints(true))];
    cluster.apply(objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS)).unwrap();
    apply_endpoints(&cluster, &cluster.endpoints(false)[..1], &cluster.endpoints(true)[..1]);
    for (address, family, endpoints) in &by_hand {
        let service = format!("by-hand-{family}");
        cluster.apply(objects::service(&service, &[ip(address)], &ports)).unwrap();
        // The second pod is in no other slice: nothing else makes it known as one of this node.
        let mut slice = objects::slice(&service, family, &ports, &endpoints[1..]);
        slice["endpoints"][0].as_object_mut().unwrap().remove("nodeName").unwrap();
        cluster.apply(slice).unwrap();
    }
    for (address, ..) in &by_hand {
        for transport in BOTH {
            wait_for(cluster.lab.pod(1), transport, (ip(address), 80).into(), &Ok("pod1"));
        }
    }
    for address in [(ip(WEB_V4), 80), (ip(WEB_V6), 80)] {
        for transport in BOTH {
            wait_for(pod, transport, address.into(), &Ok("pod0"));
        }
    }
    listing(&cluster);
}

/// Who the endpoint sees: the client itself, unless answers would not come back through this node.
fn source_addresses_are_rewritten_only_where_they_must_be(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 0);
    let _proxy = start(&cluster);
    cluster.apply(objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS)).unwrap();
    let lab = &cluster.lab;
    apply_endpoints(&cluster, &cluster.endpoints(false)[1..], &cluster.endpoints(true)[1..]);
    for v6 in [false, true] {
        let host = |host: &Host| if v6 { host.ip6().into() } else { host.ip4().into() };
        let service = SocketAddr::new(ip(if v6 { WEB_V6 } else { WEB_V4 }), 80);
        let node_port = SocketAddr::new(host(lab.node()), NODE_PORT);
        wait_for(lab.pod(0), Transport::Tcp, service, &Ok("pod1"));
        let seen = |client: &Host, to| client.run(|| tcp_once(to, REQUEST)).unwrap().client.ip();
        assert_eq!(seen(lab.pod(0), service), host(lab.pod(0)), "pod -> cluster IP keeps its address");
        assert_eq!(seen(lab.outside(), service), host(lab.node()), "outside -> cluster IP is masqueraded");
        assert_eq!(seen(lab.pod(0), node_port), host(lab.node()), "pod -> node port is masqueraded");
        assert_eq!(seen(lab.outside(), node_port), host(lab.node()), "outside -> node port is masqueraded");
    }
    listing(&cluster);
}

/// Node ports are served on the Node object's addresses only, unless asked otherwise.
#[test]
fn node_ports_are_not_served_on_other_addresses() {
    let cluster = cluster(1, 0);
    let node = cluster.lab.node();
    node.exec("ip", &["addr", "add", "192.168.50.77/32", "dev", "lo"]).unwrap();
    let _proxy = start(&cluster);
    apply_web(&cluster);
    wait_until_served(&cluster);
    let other: SocketAddr = (ip("192.168.50.77"), NODE_PORT).into();
    let loopback: SocketAddr = (ip("127.0.0.1"), NODE_PORT).into();
    for address in [other, loopback] {
        assert_eq!(
            ask(node, Transport::Tcp, address),
            Err(FailureClass::Refused),
            "{address}: nobody listens there"
        );
    }
    assert!(ask(node, Transport::Tcp, node.socket(lab::IpFamily::V4, NODE_PORT)).is_ok());
    check_listable(&cluster);
}

/// Service ports, slice ports and their numbers are tied by name alone; several ports, several slices.
fn ports_of_one_service_are_independent(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 0);
    let _proxy = start(&cluster);
    let port = |name, port, target| Port { name, protocol: "TCP", port, target, node_port: None };
    let ports = [port("a", 81, LINE_PORT), port("b", 82, LINE_PORT)];
    let v4 = cluster.endpoints(false);
    cluster.apply(objects::service("multi", &[ip("10.96.0.20")], &ports)).unwrap();
    cluster.apply(objects::slice("multi", "a", &ports[..1], &v4[..1])).unwrap();
    cluster.apply(objects::slice("multi", "b", &ports[1..], &v4[1..])).unwrap();
    let client = cluster.lab.outside();
    wait_for(client, Transport::Tcp, (ip("10.96.0.20"), 81).into(), &Ok("pod0"));
    wait_for(client, Transport::Tcp, (ip("10.96.0.20"), 82).into(), &Ok("pod1"));
    listing(&cluster);
}

/// A port that the Service does not have is refused; an address that no Service has is dropped, as soon as the ranges of
/// cluster IPs are known.
#[test]
fn what_no_service_has_goes_nowhere() {
    let cluster = cluster(1, 0);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    wait_until_served(&cluster);
    let (pod, unused) = (cluster.lab.pod(0), SocketAddr::from((ip("10.96.0.99"), 80)));
    for address in [(ip(WEB_V4), 81), (ip(WEB_V6), 81)] {
        assert_eq!(ask(pod, Transport::Tcp, address.into()), Err(FailureClass::Refused), "{address:?}");
    }
    let short = |address| pod.run(|| ask_once(Transport::Tcp, address, Duration::from_millis(500)));
    assert_eq!(short(unused).unwrap_err().class(), FailureClass::TimedOut);
    let text = check_listable(&cluster);
    assert!(text.contains("ip daddr 10.96.0.0/12 drop"), "{text}");
    cluster.apply(objects::service_cidr(&["10.112.0.0/12"])).unwrap();
    let moved = || check_listable(&cluster).contains("ip daddr 10.112.0.0/12 drop");
    assert!(lab::proxy::wait_until(PATIENCE, moved), "{}", check_listable(&cluster));
    assert!(ask(pod, Transport::Tcp, (ip(WEB_V4), 80).into()).is_ok());
}

/// A load-balancer address serves only its source ranges; the Service's other addresses are not concerned.
fn source_ranges_keep_others_away_from_load_balancer_addresses(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 0);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    let lab = &cluster.lab;
    let load_balancer = [ip("203.0.113.50"), ip("fd00:203::50")];
    let restrict = |ranges: &[&str]| {
        let mut service = cluster.api.get(apiserver::Kind::Service, "default", "web").unwrap();
        service["spec"]["type"] = serde_json::json!("LoadBalancer");
        service["spec"]["loadBalancerSourceRanges"] = serde_json::json!(ranges);
        let ingress = load_balancer.map(|ip| serde_json::json!({ "ip": ip }));
        service["status"] = serde_json::json!({ "loadBalancer": { "ingress": ingress } });
        cluster.apply(service).unwrap();
    };
    let answers = |client: &Host, address| {
        client.run(|| ask_once(Transport::Tcp, (address, 80).into(), Duration::from_millis(700))).is_ok()
    };
    let check = |client: &Host, allowed: bool| {
        for address in load_balancer {
            let right = lab::proxy::wait_until(PATIENCE, || answers(client, address) == allowed);
            assert!(right, "{} -> {address}: allowed is {}", client.name(), !allowed);
        }
        assert!(answers(client, ip(WEB_V4)), "the cluster IP is not concerned");
    };
    restrict(&["192.168.50.0/24", "fd00:50::/64"]);
    check(lab.outside(), true);
    check(lab.pod(0), false);
    check(lab.node(), true);
    restrict(&["10.244.0.0/16", "fd00:10:244::/47", "10.244.0.0/24"]);
    check(lab.pod(0), true);
    check(lab.outside(), false);
    restrict(&["192.168.50.100/32", "fd00:50::100/128"]);
    check(lab.outside(), true);
    check(lab.node(), false);
    restrict(&[]);
    check(lab.pod(0), true);
    check(lab.node(), true);
    listing(&cluster);
}

/// A client that keeps its source port gets answers from the new endpoint, though its flow never ends: after a replacement,
/// by the node port, and after a time without any endpoint.
fn udp_clients_follow_the_endpoints(mode: ProxyMode) {
    let cluster = cluster_in(mode, 3, 0);
    let _proxy = start(&cluster);
    apply_web(&cluster);
    wait_until_served(&cluster);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    let lab = &cluster.lab;
    let targets: [SocketAddr; 3] =
        [(ip(WEB_V4), 80).into(), (ip(WEB_V6), 80).into(), (lab.node().ip4(), NODE_PORT).into()];
    let flows = lab.outside().run(|| {
        let limit = Duration::from_millis(300);
        [0u16, 1, 2].map(|n| UdpFlow::open(5000 + n, targets[usize::from(n)], limit).unwrap())
    });
    for round in [Some(0), Some(1), None, Some(2)] {
        let now = |endpoints: &[Endpoint]| {
            round.map(|n: usize| endpoints[n].clone()).into_iter().collect::<Vec<_>>()
        };
        apply_endpoints(&cluster, &now(&v4), &now(&v6));
        for (flow, target) in flows.iter().zip(targets) {
            let wanted = round.map(|n| cluster.pod_names()[n]);
            let mut last = None;
            let follows = lab::proxy::wait_until(PATIENCE, || {
                last = lab.outside().run(|| flow.ask()).ok().map(|reply| reply.name);
                last.as_deref() == wanted
            });
            assert!(follows, "{target}: wanted {wanted:?}, last {last:?}");
        }
    }
    listing(&cluster);
}

#[track_caller]
fn wait_until_served(cluster: &Cluster) {
    let served = |address: SocketAddr| {
        let client = cluster.lab.outside();
        lab::proxy::wait_until(PATIENCE, || ask(client, Transport::Tcp, address).is_ok())
    };
    assert!(served((ip(WEB_V4), 80).into()) && served((ip(WEB_V6), 80).into()), "the Service is not served");
}
