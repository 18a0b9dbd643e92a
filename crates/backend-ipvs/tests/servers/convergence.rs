//! Whatever happens: increments end where a fresh start does, and a start on what is right writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use backend_ipvs::Options;
use fakes::kernel::Fault;
use ipvs::{Command, Flags, RealServer, Scheduler, ServerId, VirtualServer};
use mode::Settled;
use model::{Frontend, Protocol, V4};
use proptest::prelude::*;

use crate::world::{NODE, SECOND, World, endpoint, frontend, key, sticky};

#[derive(Clone, Debug)]
enum Event {
    /// Service, its port's protocol, its endpoints, seconds of affinity, whether it has a node port, and an external IP.
    Set(u8, Protocol, BTreeSet<u8>, Option<u64>, bool, Option<&'static str>),
    Delete(u8),
    /// The commands with these positions from now on fail.
    Fail(u8, i32),
    LoseAnswer(u8),
    /// Somebody else deletes the n-th server, sets its scheduler, or adds a real server.
    Tamper(u8, u8),
    Address(bool),
    Restart,
    Wake,
}

fn event() -> impl Strategy<Value = Event> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let endpoints = prop::collection::btree_set(1_u8..6, 0..5);
    let affinity = prop_oneof![3 => Just(None), 1 => (1_u64..3).prop_map(Some)];
    let external = prop_oneof![3 => Just(None), 1 => Just(Some(NODE)), 1 => Just(Some("203.0.113.5"))];
    let set = (0_u8..4, protocol, endpoints, affinity, any::<bool>(), external);
    prop_oneof![
        8 => set.prop_map(|(n, p, e, a, node_port, ip)| Event::Set(n, p, e, a, node_port, ip)),
        2 => (0_u8..4).prop_map(Event::Delete),
        1 => (0_u8..6, prop_oneof![Just(12), Just(3), Just(2), Just(17)]).prop_map(|(n, e)| Event::Fail(n, e)),
        1 => (0_u8..6).prop_map(Event::LoseAnswer),
        2 => (0_u8..8, 0_u8..3).prop_map(|(n, how)| Event::Tamper(n, how)),
        1 => any::<bool>().prop_map(Event::Address),
        1 => Just(Event::Restart),
        2 => Just(Event::Wake),
    ]
}

fn frontends(event: &Event) -> Vec<Frontend<V4>> {
    let Event::Set(n, protocol, endpoints, affinity, node_port, external) = event else { return Vec::new() };
    let service = format!("s{n}");
    let endpoints: Vec<u8> = endpoints.iter().copied().collect();
    let mut keys = vec![key(&format!("10.96.0.{n}"), *protocol, 80)];
    // Two Services may have one node port's number, with an external IP that is the node's.
    keys.extend(node_port.then(|| key("node", *protocol, 30000 + u16::from(*n))));
    keys.extend(external.map(|ip| key(ip, *protocol, 30000)));
    let made = keys.into_iter().map(|key| frontend(&service, key, &endpoints));
    made.map(|frontend| affinity.map_or(frontend.clone(), |seconds| sticky(frontend, seconds))).collect()
}

fn tamper(world: &World, nth: u8, how: u8) {
    let servers = world.ipvs.servers();
    let mut ours = servers.iter().filter(|(_, (server, _))| server.flags.contains(Flags::OWN));
    let Some((id, (settings, _))) = ours.nth(usize::from(nth)) else { return };
    let other = VirtualServer { scheduler: Scheduler::new("lc").unwrap(), ..*settings };
    let command = match how {
        0 => Command::DeleteVirtual(*id),
        1 => Command::SetVirtual(other),
        _ => Command::NewReal(*id, RealServer::new(endpoint(77), 1)),
    };
    if let Err(errno) = world.ipvs.tamper(command) {
        assert_eq!(errno, 17, "there is such a real server");
    }
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Set(n, ..) | Event::Delete(n) => {
            let settled = world.set(&format!("s{n}"), frontends(event));
            // As the event loop: what failed is tried again, what is unknown is read.
            if !settled.failed.is_empty() {
                world.change(settled.failed.frontends);
            }
        }
        Event::Fail(n, errno) => {
            world.ipvs.fail_next((0..*n).map(|_| None).chain([Some(Fault::Errno(*errno))]));
        }
        Event::LoseAnswer(n) => {
            world.ipvs.fail_next((0..*n).map(|_| None).chain([Some(Fault::AnswerLost)]));
        }
        Event::Tamper(nth, how) => tamper(world, *nth, *how),
        Event::Address(there) => world.devices.tamper(|addresses| {
            let address = SECOND.parse().unwrap();
            if *there {
                addresses.others.insert(address);
            } else {
                addresses.others.remove(&address);
            }
        }),
        Event::Restart => {
            world.restart(Options::default());
            world.sync();
        }
        Event::Wake => drop(world.wake()),
    }
}

/// What is there, without what is being drained.
fn serving(world: &World) -> BTreeMap<ServerId, (VirtualServer, BTreeSet<RealServer>)> {
    let servers = world.ipvs.servers().into_iter();
    let serving = servers.map(|(id, (server, reals))| {
        (id, (server, reals.into_iter().filter(|real| real.weight > 0).collect::<BTreeSet<_>>()))
    });
    serving.filter(|(_, (server, reals))| !reals.is_empty() || !server.flags.contains(Flags::OWN)).collect()
}

/// Syncs until nothing fails any more.
fn settle(world: &mut World) {
    for _ in 0..20 {
        let settled = world.sync();
        if settled == Settled::done() {
            return;
        }
    }
    panic!("faults end");
}

#[track_caller]
fn check(world: &World, foreign: &VirtualServer) {
    let mut expected = world.expected();
    expected.insert(foreign.id, (*foreign, BTreeSet::new()));
    assert_eq!(serving(world), expected);
    let device: BTreeSet<_> = world.devices.held().device;
    let others = world.devices.held().others;
    let wanted = world.table.iter().filter_map(|frontend| match frontend.key.address {
        model::FrontendAddress::Ip(address) => Some(address.into()),
        model::FrontendAddress::Node => None,
    });
    assert_eq!(device, wanted.filter(|address| !others.contains(address)).collect());
}

fn with_foreign() -> (World, VirtualServer) {
    let world = World::new(Options::default());
    let foreign = VirtualServer {
        id: ServerId { address: "198.18.0.1".parse().unwrap(), protocol: 6, port: 6443 },
        scheduler: Scheduler::new("wrr").unwrap(),
        flags: Flags::default(),
        persistence: None,
    };
    world.ipvs.tamper(Command::NewVirtual(foreign)).unwrap();
    (world, foreign)
}

proptest! {
    #[test]
    fn any_history_ends_where_a_start_does(events in prop::collection::vec(event(), 1..40)) {
        let (mut world, foreign) = with_foreign();
        world.sync();
        for event in &events {
            happen(&mut world, event);
        }
        settle(&mut world);
        check(&world, &foreign);
        world.drain();
        check(&world, &foreign);
        let expected = world.expected().len() + 1;
        prop_assert_eq!(world.ipvs.servers().len(), expected, "nothing is left of what was drained");
        // A start on what is right does nothing.
        let before = (world.ipvs.applied(), world.devices.changes());
        world.restart(Options::default());
        prop_assert_eq!(world.sync(), Settled::done());
        prop_assert_eq!((world.ipvs.applied(), world.devices.changes()), before);
    }

    /// Without faults, increments alone are right after each of them.
    #[test]
    fn increments_are_right_at_each_step(events in prop::collection::vec(event(), 1..25)) {
        let (mut world, foreign) = with_foreign();
        world.sync();
        for event in &events {
            if matches!(event, Event::Set(..) | Event::Delete(_) | Event::Wake | Event::Restart) {
                happen(&mut world, event);
                check(&world, &foreign);
            }
        }
    }
}
