//! What went through, by IPVS's statistics.

use backend_ipvs::Options;
use ipvs::{Command, Connections, Statistics};
use model::Protocol;

use crate::world::{NODE, SECOND, World, endpoint, frontend, key, server_id, web};

fn flows(connections: u64) -> Statistics {
    Statistics {
        connections,
        packets_in: 3 * connections,
        packets_out: 2 * connections,
        bytes_in: 300 * connections,
        bytes_out: 200 * connections,
    }
}

fn line(last: u8, connections: u64) -> (String, String, [u64; 3]) {
    let counted = [connections, 5 * connections, 500 * connections];
    ("ns/web:p".to_owned(), format!("10.244.0.{last}:8080"), counted)
}

fn world(endpoints: &[u8]) -> World {
    let mut world = World::new(Options::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), endpoints)]);
    world
}

#[test]
fn connections_packets_and_bytes_are_counted_by_endpoint() {
    let mut world = world(&[1, 2]);
    assert!(world.counted().is_empty());
    world.ipvs.carry(server_id(web()), endpoint(1), flows(3));
    world.ipvs.carry(server_id(web()), endpoint(2), flows(4));
    assert_eq!(world.counted(), [line(1, 3), line(2, 4)]);
}

/// The kernel counts on while no proxy runs, and while it is not known what is held.
#[test]
fn a_restart_goes_on_counting() {
    let mut world = world(&[1]);
    world.ipvs.carry(server_id(web()), endpoint(1), flows(3));
    assert_eq!(world.counted(), [line(1, 3)]);
    world.ipvs.carry(server_id(web()), endpoint(1), flows(1));
    world.restart(Options::default());
    assert_eq!(world.counted(), [line(1, 4)]);
    world.sync();
    assert_eq!(world.counted(), [line(1, 4)]);
}

#[test]
fn node_ports_are_counted_at_each_address() {
    let mut world = World::new(Options::default());
    world.devices.tamper(|held| held.others.extend([SECOND.parse::<std::net::IpAddr>().unwrap()]));
    world.sync();
    let node_port = key("node", Protocol::Tcp, 30080);
    world.set("web", vec![frontend("web", node_port, &[1])]);
    for address in [NODE, SECOND] {
        world.ipvs.carry(server_id(key(address, Protocol::Tcp, 30080)), endpoint(1), flows(2));
    }
    assert_eq!(world.counted(), [line(1, 2), line(1, 2)]);
}

#[test]
fn a_drained_endpoint_counts_to_its_end_and_others_go_on() {
    let mut world = world(&[1, 2]);
    world.ipvs.carry(server_id(web()), endpoint(2), flows(4));
    world.ipvs.connect(server_id(web()), endpoint(2), Connections { active: 1, ..Connections::default() });
    world.set("web", vec![frontend("web", web(), &[1])]);
    world.ipvs.carry(server_id(web()), endpoint(2), Statistics { packets_in: 5, bytes_in: 500, ..flows(0) });
    let drained = ("ns/web:p".to_owned(), "10.244.0.2:8080".to_owned(), [4, 25, 2500]);
    assert!(world.counted().contains(&drained), "{:?}", world.counted());
    world.ipvs.connect(server_id(web()), endpoint(2), Connections::default());
    world.drain();
    world.ipvs.carry(server_id(web()), endpoint(1), flows(1));
    assert_eq!(world.counted(), [line(1, 1)]);
}

/// As the kernel does with one that was deleted not long ago: what it had counted is not counted again.
#[test]
fn an_endpoint_that_is_made_again_is_not_counted_twice() {
    let dns = key("10.96.0.10", Protocol::Udp, 53);
    for forgotten in [false, true] {
        let mut world = World::new(Options::default());
        world.sync();
        world.set("web", vec![frontend("web", dns, &[1, 2])]);
        world.ipvs.carry(server_id(dns), endpoint(2), flows(100));
        assert!(world.counted().contains(&line(2, 100)));
        world.set("web", vec![frontend("web", dns, &[1])]);
        world.ipvs.carry(server_id(dns), endpoint(1), flows(1));
        assert_eq!(world.counted(), [line(1, 1)]);
        if forgotten {
            world.ipvs.empty_trash();
        }
        world.set("web", vec![frontend("web", dns, &[1, 2])]);
        world.ipvs.carry(server_id(dns), endpoint(2), flows(7));
        assert_eq!(world.counted(), [line(1, 1), line(2, 7)]);
        // And a repair of everything begins anew.
        world.ipvs.tamper(Command::DeleteVirtual(server_id(dns))).unwrap();
        world.sync();
        world.ipvs.carry(server_id(dns), endpoint(2), flows(2));
        assert_eq!(world.counted(), [line(1, 0), line(2, 2)]);
    }
}

#[test]
fn servers_of_others_count_for_nobody() {
    let mut world = world(&[1]);
    let theirs = server_id(key("10.1.1.1", Protocol::Tcp, 80));
    let like_ours = world.ipvs.servers()[&server_id(web())].0;
    world.ipvs.tamper(Command::NewVirtual(ipvs::VirtualServer { id: theirs, ..like_ours })).unwrap();
    world.ipvs.carry(theirs, endpoint(1), flows(9));
    assert!(world.counted().is_empty());
}

/// Real servers are asked for only where something went through.
#[test]
fn a_reading_costs_what_has_traffic() {
    let mut world = world(&[1, 2]);
    for n in 0..50 {
        let other = key("10.96.1.1", Protocol::Tcp, 1000 + n);
        world.set(&format!("other-{n}"), vec![frontend(&format!("other-{n}"), other, &[1])]);
    }
    world.ipvs.carry(server_id(web()), endpoint(1), flows(1));
    let before = world.ipvs.readings();
    world.counted();
    world.counted();
    assert_eq!(world.ipvs.readings() - before, 1);
}
