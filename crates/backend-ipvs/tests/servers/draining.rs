//! Endpoints that go, and come back.

use std::time::Duration;

use backend_ipvs::Options;
use ipvs::{Command, Connections};
use mode::Settled;
use model::Protocol;

use crate::world::{World, endpoint, frontend, key, removals, server_id, web};

const BUSY: Connections = Connections { active: 1, inactive: 0, persistent: 0 };
const IDLE: Connections = Connections { active: 0, inactive: 0, persistent: 3 };

fn world(endpoints: &[u8]) -> World {
    let mut world = World::new(Options::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), endpoints)]);
    for last in endpoints {
        world.ipvs.connect(server_id(web()), endpoint(*last), BUSY);
    }
    world
}

#[test]
fn an_endpoint_that_goes_keeps_its_connections_until_they_end() {
    let mut world = world(&[1, 2]);
    world.set("web", vec![frontend("web", web(), &[1])]);
    let draining = ["TCP 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 1, 10.244.0.2:8080 weight 0"];
    assert_eq!(world.servers(), draining);
    assert_eq!(world.rules(web()), [format!("IPVS: {}", draining[0].replace("rr", "rr flags 0x20"))]);
    // Who compares this with what there is misses nothing, and would not miss what drains.
    let rule = draining[0].replace("rr", "rr flags 0x20");
    let held = backend_ipvs::read_pieces(&mut world.ipvs).unwrap();
    let wanted: Vec<String> = backend_ipvs::pieces(&rule).collect();
    assert!(wanted.iter().all(|piece| held.contains(piece)), "{wanted:?} in {held:?}");
    assert_eq!(wanted[1..], ["10.244.0.1:8080 weight 1 of TCP 10.96.0.10:80 rr flags 0x20"]);
    // Looked at again and again, ever more seldom, up to once a minute.
    let mut before = world.wake_at().unwrap();
    for _ in 0..12 {
        assert_eq!(world.wake(), Some(Settled::done()));
        assert!(world.wake_at().unwrap() > before && world.servers() == draining);
        before = world.wake_at().unwrap();
    }
    assert!(before <= tokio::time::Instant::now() + Duration::from_mins(1));
    world.ipvs.connect(server_id(web()), endpoint(2), IDLE);
    world.wake();
    assert_eq!(world.servers(), ["TCP 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 1"]);
    assert_eq!(world.wake_at(), None);
}

#[test]
fn one_that_comes_back_has_its_weight_back_and_keeps_its_connections() {
    let mut world = world(&[1, 2]);
    world.set("web", vec![frontend("web", web(), &[1])]);
    let before = world.ipvs.applied().len();
    world.set("web", vec![frontend("web", web(), &[1, 2, 3])]);
    let commands: Vec<String> = world.ipvs.applied()[before..].iter().map(ToString::to_string).collect();
    let expected = [
        "set real server 10.244.0.2:8080 weight 1 of TCP 10.96.0.10:80",
        "add real server 10.244.0.3:8080 weight 1 to TCP 10.96.0.10:80",
    ];
    assert_eq!(commands, expected);
    assert_eq!(world.wake_at(), None);
}

#[test]
fn the_last_one_takes_the_virtual_server_with_it() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let web = key("10.96.0.10", protocol, 80);
        let mut world = World::new(Options::default());
        world.sync();
        world.set("web", vec![frontend("web", web, &[1])]);
        world.ipvs.connect(server_id(web), endpoint(1), BUSY);
        world.set("web", vec![frontend("web", web, &[])]);
        let draining = format!("{protocol} 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 0");
        assert_eq!(world.servers(), [draining.as_str()]);
        world.wake();
        assert_eq!(world.servers(), [draining.as_str()]);
        world.ipvs.connect(server_id(web), endpoint(1), IDLE);
        world.wake();
        assert!(world.servers().is_empty(), "{:?}", world.servers());
        // And comes with the next one.
        world.set("web", vec![frontend("web", web, &[2])]);
        assert_eq!(world.servers(), [format!("{protocol} 10.96.0.10:80 rr -> 10.244.0.2:8080 weight 1")]);
    }
}

#[test]
fn udp_goes_at_once() {
    let dns = key("10.96.0.10", Protocol::Udp, 53);
    let mut world = World::new(Options::default());
    world.sync();
    world.set("dns", vec![frontend("dns", dns, &[1, 2])]);
    world.ipvs.connect(server_id(dns), endpoint(2), BUSY);
    world.set("dns", vec![frontend("dns", dns, &[1])]);
    assert_eq!(world.servers(), ["UDP 10.96.0.10:53 rr -> 10.244.0.1:8080 weight 1"]);
    world.set("dns", vec![frontend("dns", dns, &[])]);
    assert!(world.servers().is_empty() && world.wake_at().is_none());
}

#[test]
fn a_restart_goes_on_draining() {
    for (endpoints, server) in [
        (&[1][..], "TCP 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 1, 10.244.0.2:8080 weight 0"),
        (&[], "TCP 10.96.0.10:80 rr -> 10.244.0.1:8080 weight 0, 10.244.0.2:8080 weight 0"),
    ] {
        let mut world = world(&[1, 2]);
        world.set("web", vec![frontend("web", web(), endpoints)]);
        let before = world.ipvs.applied().len();
        world.restart(Options::default());
        assert_eq!(world.sync(), Settled::done());
        assert_eq!((world.ipvs.applied().len(), world.servers()), (before, vec![server.to_owned()]));
        for last in [1, 2] {
            world.ipvs.connect(server_id(web()), endpoint(last), IDLE);
        }
        while world.wake().is_some() {}
        assert!(!world.servers().concat().contains("weight 0"));
        assert_eq!(world.servers().is_empty(), endpoints.is_empty());
    }
}

#[test]
fn a_deleted_service_goes_at_once_with_what_it_drained() {
    let mut world = world(&[1, 2]);
    world.set("web", vec![frontend("web", web(), &[1])]);
    let before = world.ipvs.applied().len();
    world.set("web", vec![]);
    let commands = removals(&world.ipvs.applied()[before..]);
    assert_eq!(commands, ["delete virtual server TCP 10.96.0.10:80"]);
    assert!(world.wake_at().is_none() && world.devices.held().device.is_empty());
}

/// Nobody else's servers are read for it.
#[test]
fn waking_costs_only_what_is_drained() {
    let mut world = world(&[1, 2]);
    for n in 0..50 {
        let other = key("10.96.1.1", Protocol::Tcp, 1000 + n);
        world.set(&format!("other-{n}"), vec![frontend(&format!("other-{n}"), other, &[1])]);
    }
    world.set("web", vec![frontend("web", web(), &[1])]);
    let before = (world.ipvs.applied().len(), world.ipvs.readings());
    world.wake();
    assert_eq!(world.ipvs.readings() - before.1, 1);
    world.ipvs.connect(server_id(web()), endpoint(2), IDLE);
    world.wake();
    let expected = [Command::DeleteReal(server_id(web()), endpoint(2))];
    assert_eq!(world.ipvs.applied()[before.0..], expected);
}
