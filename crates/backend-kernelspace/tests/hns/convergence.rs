//! Whatever happens: increments end where a fresh start does, any state is repaired, and a start on what is right writes nothing.

use std::collections::BTreeSet;

use fakes::hns::{Fault, InUse, Knobs, Modify};
use hcn::{Code, Version, network_type};
use model::{Frontend, Protocol, V4};
use proptest::prelude::*;

use crate::world::{World, frontend, here, key, options, ours, sticky};

#[derive(Clone, Debug)]
enum Event {
    /// Service, its port's protocol, its endpoints, affinity, whether it has a node port.
    Set(u8, Protocol, BTreeSet<u8>, bool, bool),
    Delete(u8),
    /// The n-th call from now on fails.
    Fail(u8, Fault),
    /// Somebody deletes the n-th load balancer, changes its endpoints, or deletes a remote endpoint.
    Tamper(u8, u8),
    Restart,
    LoseObjects,
    ReplaceNetwork(bool),
    Away(bool),
    Wake,
    Audit,
}

fn fault() -> impl Strategy<Value = Fault> {
    let codes = vec![
        Code::NOT_FOUND,
        Code::ENDPOINT_NOT_FOUND,
        Code::INVALID_POLICY,
        Code::PORT_EXISTS,
        Code::NOT_IMPLEMENTED,
        Code::RPC_UNAVAILABLE,
        Code::FAIL,
    ];
    let code = prop::sample::select(codes);
    (code, any::<bool>())
        .prop_map(|(code, is_lost)| if is_lost { Fault::AnswerLost(code) } else { Fault::Refused(code) })
}

fn event() -> impl Strategy<Value = Event> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let last = prop_oneof![1_u8..5, 101_u8..105];
    let endpoints = prop::collection::btree_set(last, 0..4);
    let set = (0_u8..4, protocol, endpoints, any::<bool>(), any::<bool>());
    prop_oneof![
        8 => set.prop_map(|(n, p, e, affinity, node_port)| Event::Set(n, p, e, affinity, node_port)),
        2 => (0_u8..4).prop_map(Event::Delete),
        3 => (0_u8..8, fault()).prop_map(|(n, fault)| Event::Fail(n, fault)),
        2 => (0_u8..8, 0_u8..3).prop_map(|(n, how)| Event::Tamper(n, how)),
        1 => Just(Event::Restart),
        1 => Just(Event::LoseObjects),
        1 => any::<bool>().prop_map(Event::ReplaceNetwork),
        1 => any::<bool>().prop_map(Event::Away),
        1 => Just(Event::Wake),
        1 => Just(Event::Audit),
    ]
}

fn knobs() -> impl Strategy<Value = Knobs> {
    let version = prop::sample::select(vec![Version::SERVER_2019, Version::SERVER_2022, Version::new(16, 2)]);
    let modify = prop::sample::select(vec![Modify::Works, Modify::Lies, Modify::Refused]);
    let in_use = prop::sample::select(vec![InUse::Refused, InUse::Emptied]);
    (version, modify, in_use, any::<[bool; 4]>()).prop_map(|(version, modify, in_use, [a, b, c, d])| Knobs {
        version,
        modify,
        in_use,
        allows_twins: a,
        keeps_ids: b,
        upper_case: c,
        chooses_source_vip: d,
    })
}

fn network() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![network_type::L2_BRIDGE, network_type::L2_TUNNEL, network_type::OVERLAY])
}

fn frontends(event: &Event) -> Vec<Frontend<V4>> {
    let Event::Set(n, protocol, endpoints, affinity, node_port) = event else { return Vec::new() };
    let service = format!("s{n}");
    let endpoints: Vec<u8> = endpoints.iter().copied().collect();
    let mut keys = vec![key(&format!("10.96.0.{}", n + 1), *protocol, 80)];
    keys.extend(node_port.then(|| key("node", *protocol, 30000 + u16::from(*n))));
    let made = keys.into_iter().map(|key| frontend(&service, key, &endpoints));
    made.map(|frontend| if *affinity { sticky(frontend) } else { frontend }).collect()
}

fn tamper(world: &World, nth: u8, how: u8) {
    let network = world.network;
    world.hns.tamper(|objects| {
        let own = ours(objects, network);
        let remote = objects.endpoints.iter().filter(|(_, endpoint)| endpoint.is_remote()).map(|(id, _)| *id);
        match how {
            0 => {
                if let Some((id, _)) = own.get(usize::from(nth)) {
                    objects.balancers.remove(id);
                }
            }
            1 => {
                let found = own.get(usize::from(nth)).and_then(|(id, _)| objects.balancers.get_mut(id));
                if let Some(found) = found.filter(|found| found.host_compute_endpoints.len() > 1) {
                    found.host_compute_endpoints.truncate(1);
                }
            }
            _ => {
                let remote: Vec<_> = remote.collect();
                if let Some(id) = remote.get(usize::from(nth)) {
                    objects.endpoints.remove(id);
                    for balancer in objects.balancers.values_mut() {
                        balancer.host_compute_endpoints.retain(|endpoint| endpoint != id);
                    }
                }
            }
        }
    });
}

/// HNS was restarted without what we made.
fn lose_objects(world: &World) {
    let network = world.network;
    world.hns.tamper(|objects| {
        for (id, _) in ours(objects, network) {
            objects.balancers.remove(&id);
        }
        objects.endpoints.retain(|_, endpoint| !endpoint.is_remote());
    });
}

fn replace_network(world: &World, balancers_stay: bool) {
    world.hns.replace_network("cbr0", balancers_stay);
    world.hns.tamper(|objects| {
        let network = *objects.networks.iter().find(|(_, network)| network.name == "cbr0").unwrap().0;
        objects.add_pod(network, "sourcevip", &[crate::world::SOURCE_VIP.into()]);
        for last in 1..10 {
            objects.add_pod(network, &format!("pod-{last}"), &[here(last).into()]);
        }
    });
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Set(n, ..) | Event::Delete(n) => world.set(&format!("s{n}"), frontends(event)),
        Event::Fail(n, fault) => world.hns.fail_next((0..*n).map(|_| None).chain([Some(*fault)])),
        Event::Tamper(nth, how) => tamper(world, *nth, *how),
        Event::Restart => world.restart(),
        Event::LoseObjects => lose_objects(world),
        // Without their ids, load balancers that lead nowhere are nobody's, and stay where they are not in the way.
        Event::ReplaceNetwork(balancers_stay) => {
            replace_network(world, *balancers_stay && world.hns.knobs().keeps_ids);
        }
        Event::Away(is_away) => world.hns.set_away(*is_away),
        Event::Wake => {
            if world.is_settled() {
                world.wake();
            }
        }
        Event::Audit => drop(world.sync()),
    }
}

/// Everything is looked at once more when nothing fails any more.
fn repair(world: &mut World) {
    world.hns.heal();
    // A new connection reads all contents.
    world.reopen();
    world.sync();
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_where_a_start_does(
        kind in network(), knobs in knobs(), events in prop::collection::vec(event(), 1..30),
    ) {
        let mut world = World::of(kind, options(), knobs);
        let foreign = world.hns.objects().balancers;
        world.sync();
        for event in &events {
            happen(&mut world, event);
        }
        repair(&mut world);
        prop_assert_eq!(world.served(), world.expected());
        let objects = world.hns.objects();
        for (id, balancer) in foreign {
            prop_assert_eq!(objects.balancers.get(&id), Some(&balancer));
        }
        let writes = world.hns.writes().len();
        world.restart();
        world.sync();
        prop_assert!(world.is_settled());
        prop_assert_eq!(world.hns.writes().len(), writes, "a start on what is right writes nothing");
        // Remote endpoints are those that are used.
        for n in 0..4 {
            world.delete(&format!("s{n}"));
        }
        world.settle();
        prop_assert_eq!(world.remotes(), Vec::<String>::new());
        prop_assert_eq!(world.balancers(), Vec::<String>::new());
    }

    /// Without faults, increments alone are right after each of them.
    #[test]
    fn increments_are_right_at_each_step(
        kind in network(), knobs in knobs(), events in prop::collection::vec(event(), 1..25),
    ) {
        let mut world = World::of(kind, options(), knobs);
        world.sync();
        for event in &events {
            if matches!(event, Event::Set(..) | Event::Delete(_) | Event::Wake | Event::Audit) {
                happen(&mut world, event);
                prop_assert!(world.is_settled());
                prop_assert_eq!(world.served(), world.expected());
            }
        }
    }
}
