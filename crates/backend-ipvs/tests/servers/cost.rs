//! What a change costs: as many messages as it has parts, however many Services there are.

use backend_ipvs::Options;
use model::{FrontendKey, Protocol, V4};

use crate::world::{World, frontend, key, web};

const ENDPOINTS: [u8; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

/// A node with so many Services beside `web`.
fn world(services: u16) -> World {
    let mut world = World::new(Options::default());
    for n in 0..services {
        let [high, low] = n.to_be_bytes();
        let at: FrontendKey<V4> = key(&format!("10.97.{high}.{low}"), Protocol::Tcp, 80);
        let name = format!("other-{n}");
        world.table.set_service(&model::ObjectName::new("ns", &name), vec![frontend(&name, at, &ENDPOINTS)]);
    }
    world.table.set_service(&model::ObjectName::new("ns", "web"), vec![frontend("web", web(), &ENDPOINTS)]);
    world.sync();
    world
}

/// Commands, and readings of real servers, of each change of a life, the end of draining included.
fn costs(services: u16) -> Vec<(usize, usize)> {
    let mut world = world(services);
    let mut costs = Vec::new();
    let lives: [&[u8]; 6] = [&[1, 2, 3], &[1, 2, 4], &[1, 2, 4, 5], &[1, 2, 4], &[], &ENDPOINTS];
    for endpoints in lives {
        let before = (world.ipvs.applied().len(), world.ipvs.readings());
        world.set("web", vec![frontend("web", web(), endpoints)]);
        world.drain();
        costs.push((world.ipvs.applied().len() - before.0, world.ipvs.readings() - before.1));
    }
    costs
}

#[test]
fn a_change_costs_as_many_messages_among_many_services_as_among_few() {
    let few = costs(10);
    // An endpoint that goes has its weight set and is deleted; all that go together are looked at in one reading. The virtual
    // server goes with its last.
    assert_eq!(few, [(14, 1), (3, 1), (1, 0), (2, 1), (7, 1), (11, 0)]);
    assert_eq!(costs(2000), few);
}

#[test]
fn a_start_costs_a_message_for_each_server_and_none_the_second_time() {
    let mut world = world(500);
    assert_eq!(world.ipvs.applied().len(), 501 * (1 + ENDPOINTS.len()));
    world.restart(Options::default());
    world.sync();
    assert_eq!(world.ipvs.applied().len(), 501 * (1 + ENDPOINTS.len()));
}
