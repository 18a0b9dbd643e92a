//! Noticing what others do.

use backend_ipvs::{Options, Watcher};
use ipvs::Command;
use model::{Protocol, V4};

use crate::world::{SECOND, World, frontend, key, server_id, web};

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
    assert!(!watcher.has_seen());
    assert!(!watcher.has_changed().unwrap() && watcher.has_seen());
    world.ipvs.tamper(Command::DeleteVirtual(server_id(web()))).unwrap();
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| addresses.device.clear());
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| _ = addresses.others.insert(SECOND.parse().unwrap()));
    assert!(watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
    world.devices.tamper(|addresses| _ = addresses.others.insert("fd00::2".parse().unwrap()));
    assert!(!watcher.has_changed().unwrap(), "it is of the other family");
}

/// Between a change of ours and the next look, and before the first.
#[test]
fn what_others_change_right_after_us_is_noticed() {
    let (mut world, mut watcher) = world();
    world.ipvs.tamper(Command::DeleteVirtual(server_id(web()))).unwrap();
    assert!(watcher.has_changed().unwrap());
    world.sync();
    assert!(!watcher.has_changed().unwrap());
    world.set("web", vec![frontend("web", web(), &[1, 2])]);
    world.devices.tamper(|addresses| addresses.device.clear());
    assert!(watcher.has_changed().unwrap());
    world.sync();
    world.set("web", Vec::new());
    assert!(!watcher.has_changed().unwrap());
}

/// What was refused is not there, and nobody took it away.
#[test]
fn what_we_could_not_do_is_no_news() {
    let (mut world, mut watcher) = world();
    let refused = key("10.96.0.53", Protocol::Tcp, 53);
    world.ipvs.refuse(server_id(refused), Some(12));
    world.set("dns", vec![frontend("dns", refused, &[1])]);
    assert!(!watcher.has_changed().unwrap() && !watcher.has_changed().unwrap());
}
