//! Noticing what others do.

use backend_ipvs::{Options, Watcher};
use ipvs::Command;
use model::V4;

use crate::world::{SECOND, World, frontend, server_id, web};

fn world() -> (World, Watcher<V4>) {
    let mut world = World::new(Options::default());
    world.sync();
    world.set("web", vec![frontend("web", web(), &[1])]);
    let (ipvs, devices) = (Box::new(world.ipvs.clone()), Box::new(world.devices.clone()));
    let watcher = Watcher::new(ipvs, devices, world.activity.clone());
    (world, watcher)
}

#[test]
fn our_own_changes_are_no_news() {
    let (mut world, mut watcher) = world();
    for endpoints in [&[1][..], &[1, 2], &[]] {
        assert!(!watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
        world.set("web", vec![frontend("web", web(), endpoints)]);
    }
    assert!(!watcher.has_changed().unwrap());
}

#[test]
fn what_others_change_is_noticed_once() {
    let (world, mut watcher) = world();
    assert!(!watcher.has_changed().unwrap());
    world.ipvs.tamper(Command::DeleteVirtual(server_id(web()))).unwrap();
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| addresses.device.clear());
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| _ = addresses.others.insert(SECOND.parse().unwrap()));
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| _ = addresses.others.insert("fd00::2".parse().unwrap()));
    assert!(!watcher.has_changed().unwrap(), "it is of the other family");
}
