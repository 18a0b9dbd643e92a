//! What HNS refuses.

use fakes::hns::{Fault, InUse, Knobs, Modify};
use hcn::{Code, Version, network_type};
use model::Protocol;

use crate::world::{World, frontend, key, options, web};

/// The ways in which a call can fail: each code of which something is made, with and without having been done.
fn faults() -> Vec<Fault> {
    let codes = [
        Code::NOT_FOUND,
        Code::NETWORK_NOT_FOUND,
        Code::ENDPOINT_NOT_FOUND,
        Code::SWITCH_PORT_NOT_FOUND,
        Code::INVALID_POLICY,
        Code::PORT_EXISTS,
        Code::ALREADY_EXISTS,
        Code::ADDRESS_INVALID,
        Code::NOT_IMPLEMENTED,
        Code::RPC_UNAVAILABLE,
        Code::RPC_CALL_FAILED,
        Code::SERVICE_NOT_ACTIVE,
        Code::FAIL,
    ];
    let refused = codes.map(Fault::Refused);
    let lost = [Code::RPC_CALL_FAILED, Code::RPC_UNAVAILABLE, Code::FAIL].map(Fault::AnswerLost);
    refused.into_iter().chain(lost).collect()
}

fn knobs() -> Vec<Knobs> {
    let new = Knobs::default();
    vec![
        new.clone(),
        Knobs { in_use: InUse::Emptied, keeps_ids: false, upper_case: true, ..new.clone() },
        Knobs { version: Version::SERVER_2022, modify: Modify::Refused, allows_twins: false, ..new.clone() },
        Knobs { modify: Modify::Lies, ..new },
    ]
}

/// Services come, change, lose their endpoints and go; the process begins anew; an audit.
fn live(world: &mut World) {
    let node_port = key("node", Protocol::Tcp, 30080);
    let dns = key("10.96.0.53", Protocol::Udp, 53);
    world.change([]);
    world.set("web", vec![frontend("web", web(), &[1, 101]), frontend("web", node_port, &[1])]);
    world.set("dns", vec![frontend("dns", dns, &[2, 101])]);
    world.set("web", vec![frontend("web", web(), &[1, 102]), frontend("web", node_port, &[1, 102])]);
    world.set("dns", vec![frontend("dns", dns, &[])]);
    world.wake();
    world.restart();
    world.change([]);
    world.set("dns", vec![frontend("dns", dns, &[3])]);
    world.delete("web");
    world.set("last", vec![frontend("last", web(), &[103, 104])]);
}

fn calls_of_a_life(kind: &str, knobs: &Knobs) -> usize {
    let mut world = World::of(kind, options(), knobs.clone());
    live(&mut world);
    world.settle();
    world.hns.calls().len()
}

#[test]
fn each_call_of_a_life_fails_once_in_each_way() {
    let bridges = knobs().into_iter().map(|knobs| (network_type::L2_BRIDGE, knobs));
    for (kind, knobs) in bridges.chain([(network_type::OVERLAY, Knobs::default())]) {
        let calls = calls_of_a_life(kind, &knobs);
        assert!(calls > 30);
        for fault in faults() {
            for nth in 0..calls {
                fails_once(kind, &knobs, fault, nth);
            }
        }
    }
}

#[track_caller]
fn fails_once(kind: &str, knobs: &Knobs, fault: Fault, nth: usize) {
    let mut world = World::of(kind, options(), knobs.clone());
    let foreign = world.hns.objects();
    world.hns.fail_next((0..nth).map(|_| None).chain([Some(fault)]));
    live(&mut world);
    world.settle();
    let what = format!("{kind}, {knobs:?}, {fault:?} at call {nth}");
    // What came of a call whose answer was lost is found at the latest by the next reading.
    world.sync();
    world.settle();
    assert_eq!(world.served(), world.expected(), "{what}");
    assert_eq!(world.failed.len(), 0, "{what}");
    let remotes = world.remotes();
    let n_service_ips = if kind == network_type::OVERLAY { 2 } else { 0 };
    assert_eq!(remotes.len(), 2 + n_service_ips, "{what}: {remotes:?}");
    for (id, balancer) in foreign.balancers {
        assert_eq!(world.hns.objects().balancers.get(&id), Some(&balancer), "{what}");
    }
    for (id, endpoint) in foreign.endpoints {
        assert_eq!(world.hns.objects().endpoints.get(&id), Some(&endpoint), "{what}");
    }
    let writes = world.hns.writes().len();
    world.restart();
    world.sync();
    assert_eq!(world.hns.writes().len(), writes, "{what}");
}
