//! What happens to a node: restarts, outages, networks that are replaced, others that interfere.

use backend_kernelspace::{Doing, Options, Watcher, clean_up};
use fakes::hns::{InUse, Knobs, Modify};
use hcn::{Call, Kind, LoadBalancer, PortMapping, Version, network_type};
use model::{Frontend, Protocol};

use crate::world::{World, destination, elsewhere, frontend, here, key, options, web};

fn served() -> World {
    let mut world = World::new();
    world.sync();
    world.set(
        "web",
        vec![frontend("web", web(), &[1, 101]), frontend("web", key("node", Protocol::Tcp, 30080), &[1])],
    );
    world.set("dns", vec![frontend("dns", key("10.96.0.53", Protocol::Udp, 53), &[2, 101])]);
    assert!(world.is_settled());
    assert_eq!(world.served(), world.expected());
    world
}

#[track_caller]
fn is_right(world: &World) {
    assert!(world.is_settled());
    assert_eq!(world.served(), world.expected());
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    for knobs in [
        Knobs::default(),
        Knobs { keeps_ids: false, upper_case: true, ..Knobs::default() },
        Knobs { version: Version::SERVER_2019, ..Knobs::default() },
    ] {
        let mut world = served();
        world.hns.turn(|turned| *turned = knobs.clone());
        let writes = world.hns.writes().len();
        world.restart();
        world.sync();
        is_right(&world);
        assert_eq!(world.hns.writes().len(), writes, "{knobs:?}");
    }
}

#[test]
fn a_source_vip_that_hns_chose_is_no_reason_to_write() {
    let mut world = World::new();
    world.settings.node_address = None;
    world.hns.turn(|knobs| knobs.chooses_source_vip = true);
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1])]);
    let writes = world.hns.writes().len();
    world.sync();
    world.restart();
    world.sync();
    assert_eq!(world.hns.writes().len(), writes);
}

#[test]
fn upstreams_objects_are_taken_over_in_place() {
    let mut world = World::new();
    world.hns.tamper(|objects| {
        let pod = *objects.endpoints.iter().find(|(_, endpoint)| endpoint.name == "pod-1").unwrap().0;
        let document = |vip: &str, port| LoadBalancer {
            host_compute_endpoints: vec![pod],
            frontend_vips: vec![vip.to_owned()],
            source_vip: "192.168.1.11".into(),
            port_mappings: vec![PortMapping {
                protocol: 6,
                internal_port: 8080,
                external_port: port,
                ..PortMapping::default()
            }],
            ..LoadBalancer::default()
        };
        objects.add_balancer(document("10.96.0.10", 80));
        objects.add_balancer(document("10.96.0.99", 80));
    });
    world.table.set_service(&model::ObjectName::new("ns", "web"), vec![frontend("web", web(), &[1])]);
    world.sync();
    is_right(&world);
    // The one is as it should be; the other is of a Service that is gone.
    let writes = world.hns.writes();
    assert!(matches!(writes.as_slice(), [Call::Delete(Kind::LoadBalancer, _)]), "{writes:?}");
}

#[test]
fn an_outage_forgets_nothing() {
    let mut world = served();
    world.hns.set_away(true);
    world.set("web", vec![frontend("web", web(), &[1, 102])]);
    assert!(!world.is_settled());
    assert!(!world.sync());
    world.hns.set_away(false);
    let writes = world.hns.writes().len();
    world.settle();
    is_right(&world);
    // The node port goes, the endpoint is replaced: nothing else is written.
    assert!(world.hns.writes().len() - writes <= 4, "{:?}", &world.hns.writes()[writes..]);
}

#[test]
fn a_service_that_lost_its_objects_has_them_again() {
    let mut world = served();
    world.hns.lose_objects();
    world.sync();
    is_right(&world);
}

#[test]
fn a_network_that_was_replaced_is_served_at_once() {
    for balancers_stay in [false, true] {
        let mut world = served();
        world.hns.replace_network("cbr0", balancers_stay);
        world.hns.tamper(|objects| {
            let found = objects.networks.iter().find(|(_, network)| network.name == "cbr0");
            let network = *found.unwrap().0;
            for last in 1..10 {
                objects.add_pod(network, &format!("pod-{last}"), &[here(last).into()]);
            }
        });
        world.sync();
        world.settle();
        is_right(&world);
    }
}

#[test]
fn load_balancers_that_lead_nowhere_make_room() {
    let mut world = World::new();
    world.hns.turn(|knobs| knobs.keeps_ids = false);
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1, 2])]);
    world.restart();
    world.hns.replace_network("cbr0", true);
    world.hns.tamper(|objects| {
        let network = *objects.networks.iter().find(|(_, network)| network.name == "cbr0").unwrap().0;
        for last in 1..3 {
            objects.add_pod(network, &format!("pod-{last}"), &[here(last).into()]);
        }
    });
    world.sync();
    is_right(&world);
}

#[test]
fn what_was_deleted_behind_our_back_is_noticed_and_made_again() {
    let mut world = served();
    let mut watcher = Watcher::new(Box::new(world.hns.clone()), vec![world.activity.clone()]);
    assert_eq!(watcher.look(), Ok(None));
    assert_eq!(watcher.look(), Ok(None));
    world.hns.tamper(|objects| objects.balancers.retain(|_, found| found.frontend_vips.is_empty()));
    assert_eq!(watcher.look(), Ok(Some(Doing::Deleted)));
    world.sync();
    is_right(&world);
    // Our own changes are none of others'.
    assert_eq!(watcher.look(), Ok(None));
    assert_eq!(watcher.look(), Ok(None));
    world.hns.tamper(|objects| {
        objects.add_network("other", network_type::L2_BRIDGE, &["10.9.0.0/24"]);
    });
    assert_eq!(watcher.look(), Ok(Some(Doing::Other)), "that is nothing of ours");
}

#[test]
fn contents_that_were_changed_behind_our_back_are_found_by_and_by() {
    let mut world = served();
    world.hns.tamper(|objects| {
        for balancer in objects.balancers.values_mut().filter(|found| found.frontend_vips == ["10.96.0.10"]) {
            balancer.port_mappings[0].internal_port = 1;
            balancer.host_compute_endpoints.truncate(1);
        }
    });
    let writes = world.hns.writes().len();
    world.wake();
    is_right(&world);
    assert!(world.balancers().contains(&"10.96.0.10 6 80 -> 10.244.1.1 10.244.2.101 port 8080".to_owned()));
    assert_eq!(world.hns.writes().len() - writes, 2, "made anew");
    world.hns.tamper(|objects| objects.balancers.retain(|_, found| found.frontend_vips != ["10.96.0.53"]));
    world.wake();
    is_right(&world);
}

#[test]
fn draining_flows_keep_their_endpoint_until_no_slice_has_it() {
    let mut world = served();
    let mut drained = frontend("web", web(), &[1]);
    drained.flow_endpoints = [destination(1), destination(103)].into();
    world.delete("dns");
    world.set("web", vec![frontend("web", web(), &[1, 103])]);
    assert_eq!(world.remotes(), ["10.244.2.103"]);
    world.set("web", vec![drained]);
    assert_eq!(world.remotes(), ["10.244.2.103"]);
    world.set("web", vec![frontend("web", web(), &[1])]);
    assert_eq!(world.remotes(), [""; 0]);
    is_right(&world);
}

#[test]
fn two_services_of_one_pod_do_not_cut_each_other() {
    let mut world = served();
    world.delete("dns");
    assert_eq!(world.remotes(), ["10.244.2.101"]);
    is_right(&world);
}

#[test]
fn an_address_that_moves_here_leaves_its_remote_endpoint() {
    for in_use in [InUse::Refused, InUse::Emptied] {
        let mut world = served();
        world.hns.turn(|knobs| knobs.in_use = in_use);
        let moved = |service: &str, at| {
            let mut frontend = frontend(service, at, &[]);
            let all = [model::Destination { address: elsewhere(101), port: 8080, local: true }];
            frontend.pool = model::Pool::new(all.into(), model::Verdict::Reject);
            frontend.flow_endpoints = all.into();
            frontend
        };
        world.hns.tamper(|objects| {
            let network = *objects.networks.iter().find(|(_, network)| network.name == "cbr0").unwrap().0;
            objects.add_pod(network, "moved", &[elsewhere(101).into()]);
        });
        // Only one of both Services is told; the other follows.
        world.set("web", vec![moved("web", web())]);
        assert_eq!(world.remotes(), [""; 0]);
        world.settle();
        assert_eq!(world.served(), world.expected());
    }
}

#[test]
fn an_endpoint_that_is_not_there_yet_is_looked_for_again() {
    let mut world = World::new();
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1, 20])]);
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 port 8080"]);
    assert_eq!(world.failed.len(), 1);
    let writes = world.hns.writes().len();
    world.change([]);
    assert_eq!(world.hns.writes().len(), writes, "nothing is written in vain");
    let network = world.network;
    world.hns.tamper(|objects| {
        objects.add_pod(network, "late", &[here(20).into()]);
    });
    world.settle();
    is_right(&world);
}

#[test]
fn a_frontend_that_somebody_else_has_is_theirs() {
    let mut world = World::new();
    world.sync();
    let before = world.hns.objects().balancers;
    let taken = key("node", Protocol::Tcp, 8088);
    world.set("web", vec![frontend("web", taken, &[1]), frontend("web", web(), &[1])]);
    for _ in 0..3 {
        world.change([]);
        if !world.is_settled() {
            world.sync();
        }
    }
    assert_eq!(world.failed.iter().collect::<Vec<_>>(), [&taken]);
    assert_eq!(world.balancers().len(), 1, "the rest is served");
    let (theirs, _) = before.iter().find(|(_, found)| found.port_mappings[0].external_port == 8088).unwrap();
    assert_eq!(world.occupant(taken), Some(format!("load balancer {theirs}")));
    assert_eq!(world.occupant(web()), None);
    for (id, document) in before {
        assert_eq!(world.hns.objects().balancers.get(&id), Some(&document));
    }
}

#[test]
fn a_listener_of_the_host_costs_only_its_node_port() {
    let mut world = World::new();
    world.sync();
    world.hns.listen(6, 30080);
    let blocked = key("node", Protocol::Tcp, 30080);
    world.set("web", vec![frontend("web", blocked, &[1]), frontend("web", web(), &[1])]);
    world.sync();
    assert_eq!(world.failed.iter().collect::<Vec<_>>(), [&blocked]);
    assert_eq!(world.occupant(blocked), None, "HNS knows nothing of it");
    assert_eq!(world.balancers(), ["10.96.0.10 6 80 -> 10.244.1.1 port 8080"]);
}

#[test]
fn changes_in_place_are_not_believed_blindly() {
    for modify in [Modify::Lies, Modify::Refused] {
        let mut world = served();
        world.hns.turn(|knobs| knobs.modify = modify);
        world.set("web", vec![frontend("web", web(), &[3])]);
        is_right(&world);
        let calls = world.hns.calls().len();
        world.set("web", vec![frontend("web", web(), &[4])]);
        is_right(&world);
        let modified = world.hns.calls()[calls..].iter().any(|call| matches!(call, Call::Modify(..)));
        assert!(!modified, "{modify:?}: it was seen once");
    }
}

#[test]
fn clean_up_removes_what_is_ours_and_nothing_else() {
    let (objects, _) = crate::world::objects(network_type::L2_BRIDGE);
    let mut world = served();
    assert!(world.hns.objects().balancers.len() > 1);
    let options = std::sync::Arc::new(options());
    assert!(clean_up(Box::new(world.hns.clone()), &options).unwrap() > 3);
    assert_eq!(world.hns.objects().balancers, objects.balancers);
    assert_eq!(world.hns.objects().endpoints, objects.endpoints);
    assert_eq!(clean_up(Box::new(world.hns.clone()), &options).unwrap(), 0);
    let absent = std::sync::Arc::new(Options { network_name: "other".into(), ..Options::default() });
    assert_eq!(clean_up(Box::new(world.hns.clone()), &absent).unwrap(), 0);
    world.sync();
    is_right(&world);
}

#[test]
fn source_ranges_and_short_cuts_are_told() {
    let mut world = World::new();
    world.sync();
    let at = key("203.0.113.9", Protocol::Tcp, 80);
    let restricted = Frontend {
        allowed_sources: Some(["198.51.100.0/24".parse().unwrap()].into()),
        internal_pool: Some(frontend("web", at, &[1, 101]).pool),
        ..frontend("web", at, &[1])
    };
    world.set("web", vec![restricted]);
    assert_eq!(world.shortcomings(at).len(), 2);
    assert_eq!(world.balancers().len(), 1);
}
