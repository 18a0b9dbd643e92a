//! What each kind of frontend is in HNS.

use fakes::hns::Knobs;
use hcn::{Version, network_type};
use model::{AddressKind, Destination, EndpointNode, Frontend, Masquerade, Pool, Protocol, V4};

use crate::world::{NODE, SOURCE_VIP, World, destination, frontend, key, options, sticky, web};

fn load_balancer_ip() -> model::FrontendKey<V4> {
    key("203.0.113.9", Protocol::Tcp, 80)
}

fn node_port() -> model::FrontendKey<V4> {
    key("node", Protocol::Tcp, 30080)
}

fn local(frontend: Frontend<V4>) -> Frontend<V4> {
    Frontend { masquerade: Masquerade::Never, ..frontend }
}

#[test]
fn each_kind_of_address_has_upstreams_flags() {
    let mut world = World::new();
    world.sync();
    let external = Frontend {
        kind: AddressKind::ExternalIp,
        ..frontend("web", key("203.0.113.5", Protocol::Tcp, 80), &[1])
    };
    world.set(
        "web",
        vec![
            frontend("web", web(), &[1, 101]),
            external,
            local(frontend("web", load_balancer_ip(), &[1])),
            frontend("web", node_port(), &[1, 101]),
            sticky(frontend("web", key("10.96.0.10", Protocol::Udp, 53), &[1])),
        ],
    );
    assert_eq!(
        world.balancers(),
        [
            "10.96.0.10 17 53 -> 10.244.1.1 port 8080 distribution 1",
            "10.96.0.10 6 80 -> 10.244.1.1 10.244.2.101 port 8080",
            "203.0.113.5 6 80 -> 10.244.1.1 port 8080 mapping 16",
            "203.0.113.9 6 80 -> 10.244.1.1 port 8080 flags 1 mapping 16",
            "node 6 30080 -> 10.244.1.1 10.244.2.101 port 8080 mapping 18",
        ]
    );
    assert_eq!(world.remotes(), ["10.244.2.101"]);
    assert!(world.is_settled());
}

#[test]
fn direct_server_return_is_had_where_it_is_asked_for_and_there() {
    let dsr = backend_kernelspace::Options { dsr: true, ..options() };
    let mut world = World::of(network_type::L2_TUNNEL, dsr, Knobs::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1])]);
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 port 8080 flags 1"]);
    let old = Knobs { version: Version::new(10, 1), ..Knobs::default() };
    let mut world = World::of(network_type::L2_BRIDGE, options(), old);
    world.sync();
    world.set("web", vec![local(frontend("web", load_balancer_ip(), &[1]))]);
    assert_eq!(world.balancers(), ["203.0.113.9 6 80 -> 10.244.1.1 port 8080 mapping 16"]);
}

#[test]
fn what_hns_lacks_for_good_is_told() {
    let dsr = backend_kernelspace::Options { dsr: true, ..options() };
    let old = |major, minor| Knobs { version: Version::new(major, minor), ..Knobs::default() };
    let mut world = World::of(network_type::L2_BRIDGE, dsr, old(10, 0));
    assert_eq!(world.refusal(), "HNS 10.0 has no direct server return (winkernel.enableDSR)");
    let mut world = World::of(network_type::L2_BRIDGE, options(), old(9, 1));
    assert!(world.refusal().starts_with("HNS 9.1 is too old"));
    let mut world = World::of("Transparent", options(), Knobs::default());
    assert!(world.refusal().contains("is of type \"Transparent\""));
    let absent = backend_kernelspace::Options { network_name: "flannel".into(), ..options() };
    let mut world = World::of(network_type::L2_BRIDGE, absent, Knobs::default());
    assert_eq!(world.refusal(), "there is no HNS network \"flannel\"");
}

#[test]
fn a_preserved_destination_needs_direct_server_return() {
    let preserving = |mut frontend: Frontend<V4>| {
        frontend.preserves_destination = true;
        frontend
    };
    let frontends = || {
        vec![
            preserving(frontend("web", load_balancer_ip(), &[1])),
            preserving(frontend("web", node_port(), &[1])),
        ]
    };
    let mut world = World::new();
    world.sync();
    world.set("web", frontends());
    assert_eq!(
        world.balancers(),
        [
            "203.0.113.9 6 80 -> 10.244.1.1 port 8080 flags 1 mapping 28",
            "node 6 30080 -> 10.244.1.1 port 8080 flags 1 mapping 18",
        ]
    );
    let old = Knobs { version: Version::new(9, 2), ..Knobs::default() };
    let mut world = World::of(network_type::L2_BRIDGE, options(), old);
    world.sync();
    world.set("web", frontends());
    assert_eq!(world.balancers()[0], "203.0.113.9 6 80 -> 10.244.1.1 port 8080 mapping 16");
}

#[test]
fn affinity_before_server_2022_is_told_and_left_out() {
    let old = Knobs { version: Version::SERVER_2019, ..Knobs::default() };
    let mut world = World::of(network_type::L2_BRIDGE, options(), old);
    world.sync();
    world.set("web", vec![sticky(frontend("web", web(), &[1]))]);
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 port 8080"]);
    assert_eq!(world.shortcomings(web()), ["there is no session affinity before Windows Server 2022"]);
}

#[test]
fn endpoints_of_the_most_common_port_serve_and_the_rest_is_told() {
    let mut world = World::new();
    world.sync();
    let mut mixed = frontend("web", web(), &[1, 2]);
    let odd = Destination { port: 9090, ..destination(3) };
    let all = mixed.pool.endpoints().iter().copied().chain([odd]).collect();
    mixed.pool = Pool::new(all, model::Verdict::Reject);
    world.set("web", vec![mixed]);
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 10.244.1.2 port 8080"]);
    assert_eq!(world.shortcomings(web()), ["endpoints whose port is not the most common one take no flows"]);
}

#[test]
fn pods_on_the_nodes_own_network_are_left_out_of_a_bridge() {
    let mut world = World::new();
    world.sync();
    let mut mixed = frontend("web", web(), &[1]);
    let host = Destination { address: NODE, port: 8080, node: EndpointNode::This };
    let all = mixed.pool.endpoints().iter().copied().chain([host]).collect();
    mixed.pool = Pool::new(all, model::Verdict::Reject);
    world.set("web", vec![mixed.clone()]);
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 port 8080"]);
    assert_eq!(world.shortcomings(web()).len(), 1);
    assert!(world.is_settled());
    let mut overlay = World::of(network_type::OVERLAY, options(), Knobs::default());
    overlay.sync();
    overlay.set("web", vec![mixed]);
    assert_eq!(overlay.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 192.168.1.11 port 8080"]);
}

#[test]
fn an_overlay_has_providers_service_endpoints_and_a_source_vip() {
    let mut world = World::of(network_type::OVERLAY, options(), Knobs::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1, 101]), frontend("web", node_port(), &[101])]);
    let source = SOURCE_VIP;
    assert_eq!(
        world.balancers(),
        [
            format!("10.96.0.10 6 80 -> 10.244.1.1 10.244.2.101 port 8080 source {source}"),
            format!("node 6 30080 -> 10.244.2.101 port 8080 mapping 18 source {source}"),
        ]
    );
    let objects = world.hns.objects();
    let by_address = |text: &str| {
        let is_it = |endpoint: &&hcn::Endpoint| endpoint.addresses().any(|found| found.to_string() == text);
        objects.endpoints.values().find(is_it).unwrap().clone()
    };
    assert_eq!(by_address("10.244.2.101").provider_address(), Some([192, 168, 1, 12].into()));
    let service = by_address("10.96.0.10");
    assert_eq!(service.provider_address(), Some(NODE.into()));
    assert_eq!(service.mac_address, "00-15-5D-01-01-0B");
    world.delete("web");
    assert_eq!(world.remotes(), [""; 0]);
}

#[test]
fn a_source_vip_that_is_configured_is_made_where_it_is_missing() {
    let vip = backend_kernelspace::Options { source_vip: Some([10, 244, 1, 222].into()), ..options() };
    let mut world = World::of(network_type::OVERLAY, vip, Knobs::default());
    world.sync();
    let objects = world.hns.objects();
    let made = objects.endpoints.values().find(|endpoint| {
        endpoint.addresses().any(|address| address == std::net::IpAddr::from([10, 244, 1, 222]))
    });
    assert!(made.is_some_and(|endpoint| !endpoint.is_remote()));
    assert!(world.is_settled());
}

#[test]
fn an_overlay_without_a_source_vip_waits_for_it() {
    let mut world = World::of(network_type::OVERLAY, options(), Knobs::default());
    world.hns.tamper(|objects| objects.endpoints.retain(|_, endpoint| endpoint.name != "sourcevip"));
    assert!(world.refusal().contains("needs winkernel.sourceVip"));
    world.hns.tamper(|objects| {
        let network = *objects.networks.iter().find(|(_, network)| network.name == "cbr0").unwrap().0;
        objects.add_pod(network, "Calico_ep", &[[10, 244, 1, 77].into()]);
    });
    assert!(world.sync());
}

#[test]
fn health_checks_of_load_balancers_are_forwarded() {
    let forwarding = backend_kernelspace::Options {
        forward_health_checks: true,
        root_endpoint: "pod-9".to_owned(),
        healthz_port: Some(10256),
        ..options()
    };
    let mut world = World::of(network_type::L2_BRIDGE, forwarding, Knobs::default());
    world.sync();
    let with_port = |port| {
        let frontend = frontend("web", load_balancer_ip(), &[1]);
        vec![Frontend { health_check_port: port, ..frontend }]
    };
    let own = "203.0.113.9 6 80 -> 10.244.1.1 port 8080 mapping 16";
    world.set("web", with_port(Some(32000)));
    assert_eq!(world.balancers(), ["203.0.113.9 6 32000 -> 10.244.1.9 port 32000", own]);
    world.set("web", with_port(None));
    assert_eq!(world.balancers(), ["203.0.113.9 6 10256 -> 10.244.1.9 port 10256", own]);
    // Another Service port with the same address has the same one.
    world.set("tls", vec![frontend("tls", key("203.0.113.9", Protocol::Tcp, 443), &[1])]);
    world.delete("web");
    assert_eq!(world.balancers()[0], "203.0.113.9 6 10256 -> 10.244.1.9 port 10256");
    let writes = world.hns.writes().len();
    world.restart();
    world.sync();
    assert_eq!(world.hns.writes().len(), writes);
    world.delete("tls");
    assert_eq!(world.balancers(), [""; 0]);
}

#[test]
fn the_explanation_is_the_document() {
    let mut world = World::new();
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1])]);
    let rules = world.rules(web());
    assert_eq!(rules.len(), 1);
    assert!(rules[0].contains("\"FrontendVIPs\":[\"10.96.0.10\"]"), "{}", rules[0]);
}
