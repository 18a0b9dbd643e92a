//! What the kernel refuses.

use backend_ipvs::Options;
use fakes::kernel::Fault;
use ipvs::Command;
use mode::Settled;
use model::{Changed, Protocol};

use crate::world::{World, endpoint, frontend, key, server_id, web};

const ENOMEM: i32 = 12;

fn world() -> World {
    let mut world = World::new(Options::default());
    world.sync();
    world
}

#[test]
fn one_server_that_is_refused_costs_only_itself() {
    let mut world = world();
    let other = key("10.96.0.11", Protocol::Tcp, 80);
    world.ipvs.refuse(server_id(web()), Some(ENOMEM));
    let keys = world.table.set_service(
        &model::ObjectName::new("ns", "both"),
        vec![frontend("both", web(), &[1, 2]), frontend("both", other, &[1])],
    );
    let settled = world.change(keys);
    assert_eq!(settled, Settled { failed: Changed::frontends([web()]), ..Settled::done() });
    assert_eq!(world.servers(), ["TCP 10.96.0.11:80 rr -> 10.244.0.1:8080 weight 1"]);
    // Only that one is tried again.
    world.ipvs.refuse(server_id(web()), None);
    let before = world.ipvs.applied().len();
    assert_eq!(world.change([web()]), Settled::done());
    assert_eq!(world.ipvs.applied().len() - before, 3);
    assert_eq!(world.servers().len(), 2);
}

#[test]
fn each_command_of_a_life_fails_once() {
    let life: [&[u8]; 4] = [&[1, 2], &[2, 3], &[], &[4]];
    for nth in 0..12 {
        let mut world = world();
        world.ipvs.fail_next((0..nth).map(|_| None).chain([Some(Fault::Errno(ENOMEM))]));
        for endpoints in life {
            let settled = world.set("web", vec![frontend("web", web(), endpoints)]);
            assert!(settled.is_known, "{nth}");
            if !settled.failed.is_empty() {
                assert_eq!(settled.failed, Changed::frontends([web()]));
                assert_eq!(world.change([web()]), Settled::done(), "{nth}");
            }
            world.drain();
            let expected: Vec<_> = world.expected().into_values().collect();
            let found = world.ipvs.servers().into_values();
            let found: Vec<_> = found.map(|(server, reals)| (server, reals.into_iter().collect())).collect();
            assert_eq!(found, expected, "{nth}");
        }
    }
}

#[test]
fn what_was_changed_behind_our_back_is_noticed_and_read_anew() {
    let id = server_id(web());
    for tampering in [Command::DeleteVirtual(id), Command::DeleteReal(id, endpoint(1))] {
        let mut world = world();
        world.set("web", vec![frontend("web", web(), &[1, 2])]);
        world.ipvs.tamper(tampering).unwrap();
        let settled = world.set("web", vec![frontend("web", web(), &[2, 3])]);
        assert!(!settled.is_known, "{tampering}");
        world.sync();
        assert_eq!(
            world.servers()[0].replace(", 10.244.0.1:8080 weight 0", ""),
            "TCP 10.96.0.10:80 rr -> 10.244.0.2:8080 weight 1, 10.244.0.3:8080 weight 1"
        );
    }
}

#[test]
fn an_answer_that_is_lost_leads_to_a_reading() {
    let mut world = world();
    world.ipvs.fail_next([None, Some(Fault::AnswerLost)]);
    assert!(!world.set("web", vec![frontend("web", web(), &[1, 2])]).is_known);
    // It was done: the reading finds nothing wrong.
    let before = world.ipvs.applied().len();
    assert_eq!(world.change([web()]), Settled::done());
    assert_eq!(world.ipvs.applied().len(), before);
}

#[test]
fn one_address_that_is_refused_costs_only_its_frontends() {
    let mut world = world();
    let bad = key("10.96.0.66", Protocol::Tcp, 80);
    let address = server_id(bad).address;
    world.devices.refuse(address, Some(ENOMEM));
    world.set("web", vec![frontend("web", web(), &[1])]);
    let failed = Settled { failed: Changed::frontends([bad]), ..Settled::done() };
    assert_eq!(world.set("bad", vec![frontend("bad", bad, &[1])]), failed);
    assert_eq!(world.change([bad]), failed, "again and again");
    assert_eq!(world.sync(), failed);
    world.devices.refuse(address, None);
    assert_eq!(world.change([bad]), Settled::done());
    assert!(world.devices.held().device.contains(&address) && world.devices.held().device.len() == 2);
}
