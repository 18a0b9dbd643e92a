//! What the node has to do with it: its addresses, the device, others' virtual servers, options.

use std::net::IpAddr;

use backend_ipvs::Options;
use ipvs::{Command, Flags, Scheduler, Timeouts, VirtualServer};
use mode::Settled;
use model::{FrontendKey, NodePortAddresses, Protocol, V4};

use crate::world::{NODE, SECOND, World, frontend, key, removals, server_id, sticky, web};

fn node_port() -> FrontendKey<V4> {
    key("node", Protocol::Tcp, 30080)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn world() -> World {
    let mut world = World::new(Options::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1]), frontend("web", node_port(), &[1])]);
    world
}

const AT_CLUSTER_IP: &str = "TCP 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 1";
const AT_NODE: &str = "TCP 192.168.0.1:30080 rr -> 10.244.0.1:8080 weight 1";
const AT_SECOND: &str = "TCP 192.168.1.1:30080 rr -> 10.244.0.1:8080 weight 1";

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let mut world = world();
    assert_eq!(world.servers(), [AT_CLUSTER_IP, AT_NODE]);
    world.devices.tamper(|addresses| _ = addresses.others.insert(address(SECOND)));
    assert_eq!(world.sync(), Settled::done());
    assert_eq!(world.servers(), [AT_CLUSTER_IP, AT_NODE, AT_SECOND]);
    // Changes go to all of them.
    world.set("web", vec![frontend("web", node_port(), &[2])]);
    assert_eq!(world.servers().len(), 2);
    world.devices.tamper(|addresses| _ = addresses.others.remove(&address(NODE)));
    world.sync();
    assert_eq!(world.servers(), ["TCP 192.168.1.1:30080 rr -> 10.244.0.2:8080 weight 1"]);
}

#[test]
fn node_ports_are_served_where_they_are_accepted() {
    let mut world = world();
    world.devices.tamper(|addresses| _ = addresses.others.insert(address(SECOND)));
    for (ranges, expected) in [
        (vec!["192.168.1.0/24"], vec![AT_CLUSTER_IP, AT_SECOND]),
        (vec!["192.168.0.0/16"], vec![AT_CLUSTER_IP, AT_NODE, AT_SECOND]),
        (vec!["127.0.0.0/8"], vec![AT_CLUSTER_IP]),
        (vec![], vec![AT_CLUSTER_IP]),
    ] {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        world.settings.node_ports = NodePortAddresses::Within(ranges);
        assert_eq!(world.sync(), Settled::done());
        assert_eq!(world.servers(), expected);
    }
}

#[test]
fn a_services_address_that_is_the_nodes_own_stays_where_it_is() {
    let mut world = world();
    let external = key(NODE, Protocol::Tcp, 443);
    world.set("edge", vec![frontend("edge", external, &[2])]);
    assert_eq!(world.devices.held().device, [address("10.96.0.10")].into());
    assert!(world.servers().contains(&"TCP 192.168.0.1:443 rr -> 10.244.0.2:8080 weight 1".to_owned()));
    // It leaves the node, and comes back.
    world.devices.tamper(|addresses| _ = addresses.others.remove(&address(NODE)));
    world.sync();
    assert_eq!(world.devices.held().device, [address("10.96.0.10"), address(NODE)].into());
    world.devices.tamper(|addresses| _ = addresses.others.insert(address(NODE)));
    world.sync();
    assert_eq!(world.devices.held().device, [address("10.96.0.10")].into());
}

#[test]
fn a_services_address_has_precedence_over_a_node_port() {
    let mut world = world();
    let external = key(NODE, Protocol::Tcp, 30080);
    world.set("edge", vec![frontend("edge", external, &[9])]);
    assert_eq!(
        world.servers()[1],
        "TCP 192.168.0.1:30080 rr -> 10.244.0.1:8080 weight 0, 10.244.0.9:8080 weight 1"
    );
    world.set("edge", vec![]);
    world.wake();
    assert_eq!(world.servers()[1], AT_NODE, "the node port takes over");
}

#[test]
fn what_is_others_is_not_touched() {
    let mut world = world();
    let foreign = |text: &str, port| VirtualServer {
        id: server_id(key(text, Protocol::Tcp, port)),
        scheduler: Scheduler::new("wlc").unwrap(),
        flags: Flags::default(),
        persistence: None,
    };
    let theirs = [foreign("203.0.113.9", 80), foreign(NODE, 6443), foreign("10.96.0.10", 9999)];
    for server in theirs {
        world.ipvs.tamper(Command::NewVirtual(server)).unwrap();
    }
    let excluded = Options { exclude_cidrs: vec!["10.96.0.10/32".parse().unwrap()], ..Options::default() };
    world.restart(excluded);
    world.sync();
    assert!(theirs.iter().all(|server| world.ipvs.servers().contains_key(&server.id)));
    // At an address of our device it is one that upstream left, unless it is excluded; our own go wherever they are.
    world.restart(Options::default());
    world.sync();
    let left = theirs.map(|server| world.ipvs.servers().contains_key(&server.id));
    assert_eq!(left, [true, true, false]);
    assert_eq!(world.servers().len(), 4);
}

/// Upstream's servers have no flag of ours, and other settings: they keep their connections.
#[test]
fn upstreams_servers_are_taken_over_in_place() {
    let mut world = world();
    let upstream = VirtualServer {
        id: server_id(web()),
        scheduler: Scheduler::new("wrr").unwrap(),
        flags: Flags::default(),
        persistence: None,
    };
    world.ipvs.tamper(Command::SetVirtual(upstream)).unwrap();
    let before = world.ipvs.applied().len();
    world.restart(Options::default());
    world.sync();
    let commands = removals(&world.ipvs.applied()[before..]);
    assert_eq!(commands, ["set virtual server TCP 10.96.0.10:80 rr flags 0x20"]);
}

#[test]
fn another_scheduler_takes_effect_in_place() {
    let mut world = world();
    for (scheduler, flags) in [("lc", " flags 0x20"), ("mh", " flags 0x38"), ("sh", " flags 0x28")] {
        let before = world.ipvs.applied().len();
        world.restart(Options { scheduler: Scheduler::new(scheduler).unwrap(), ..Options::default() });
        assert_eq!(world.sync(), Settled::done());
        let commands: Vec<String> = world.ipvs.applied()[before..].iter().map(ToString::to_string).collect();
        let expected = ["10.96.0.10:80", "192.168.0.1:30080"]
            .map(|at| format!("set virtual server TCP {at} {scheduler}{flags}"));
        assert_eq!(commands, expected);
    }
}

#[test]
fn persistence_is_affinity() {
    let mut world = world();
    world.set("web", vec![sticky(frontend("web", web(), &[1]), 10_800)]);
    assert_eq!(world.servers(), ["TCP 10.96.0.10:80 rr persistent 10800 -> 10.244.0.1:8080 weight 1"]);
    let before = world.ipvs.applied().len();
    world.set("web", vec![sticky(frontend("web", web(), &[1]), 60)]);
    world.set("web", vec![frontend("web", web(), &[1])]);
    let expected = [" rr persistent 60", " rr"]
        .map(|settings| format!("set virtual server TCP 10.96.0.10:80{settings} flags 0x20"));
    assert_eq!(removals(&world.ipvs.applied()[before..]), expected);
}

#[test]
fn time_outs_are_set_where_they_differ() {
    let timeouts = Timeouts { tcp: 100, tcp_fin: 0, udp: 5 };
    let mut world = World::new(Options { timeouts, ..Options::default() });
    world.sync();
    assert_eq!(world.ipvs.applied(), [Command::SetTimeouts(timeouts)]);
    world.sync();
    world.ipvs.tamper(Command::SetTimeouts(Timeouts { udp: 9, ..Timeouts::default() })).unwrap();
    world.sync();
    assert_eq!(world.ipvs.applied(), [Command::SetTimeouts(timeouts); 2]);
}
