//! What a change costs: as many calls and bytes as it has parts, however many Services there are.

use hcn::Call;
use model::{ObjectName, Protocol};

use crate::world::{World, frontend, key, web};

/// A node with so many Services beside `web`.
fn world(services: u16) -> World {
    let mut world = World::new();
    for n in 0..services {
        let [high, low] = n.to_be_bytes();
        let at = key(&format!("10.97.{high}.{low}"), Protocol::Tcp, 80);
        let name = format!("other-{n}");
        world.table.set_service(&ObjectName::new("ns", &name), vec![frontend(&name, at, &[1, 2, 101, 102])]);
    }
    world.table.set_service(&ObjectName::new("ns", "web"), vec![frontend("web", web(), &[1, 103])]);
    world.sync();
    assert!(world.is_settled());
    // From here on changes in place are believed.
    world.set("web", vec![frontend("web", web(), &[1, 104])]);
    world
}

/// Calls by kind, and bytes of documents, of each change of a life.
fn costs(services: u16) -> Vec<(Vec<String>, usize)> {
    let mut world = world(services);
    let mut costs = Vec::new();
    let lives: [&[u8]; 6] = [&[1, 105], &[1, 2, 105], &[2, 105], &[], &[3, 106], &[3, 106]];
    for endpoints in lives {
        let before = (world.hns.calls().len(), world.hns.bytes());
        world.set("web", vec![frontend("web", web(), endpoints)]);
        let calls = &world.hns.calls()[before.0..];
        costs.push((calls.iter().map(kind).collect(), world.hns.bytes() - before.1));
    }
    costs
}

fn kind(call: &Call) -> String {
    match call {
        Call::Version => "version".to_owned(),
        Call::Ids(kind) => format!("ids of {kind}"),
        Call::Query(kind, _) => format!("query {kind}"),
        Call::Create(kind) => format!("create {kind}"),
        Call::Modify(kind, _) => format!("modify {kind}"),
        Call::Delete(kind, _) => format!("delete {kind}"),
    }
}

#[test]
fn a_change_costs_as_many_calls_among_many_services_as_among_few() {
    let few = costs(100);
    let calls: Vec<Vec<&str>> =
        few.iter().map(|(calls, _)| calls.iter().map(String::as_str).collect()).collect();
    assert_eq!(
        calls,
        [
            vec!["create endpoint", "modify load balancer", "delete endpoint"],
            vec!["modify load balancer"],
            vec!["modify load balancer"],
            vec!["delete load balancer", "delete endpoint"],
            vec!["create endpoint", "create load balancer"],
            vec![],
        ]
    );
    assert_eq!(costs(5000), few);
}

#[test]
fn a_start_reads_each_object_once_and_an_audit_only_lists() {
    let mut world = world(300);
    world.restart();
    let before = world.hns.calls().len();
    world.sync();
    let objects = world.hns.objects();
    let all = objects.networks.len() + objects.endpoints.len() + objects.balancers.len();
    let calls = world.hns.calls().len() - before;
    assert!(calls <= 4 + all, "{calls}");
    let before = world.hns.calls().len();
    world.sync();
    let calls = world.hns.calls()[before..].to_vec();
    assert!(calls.len() <= 4 + objects.networks.len(), "{calls:?}");
    assert!(world.hns.calls()[before..].iter().all(|call| !call.writes()));
}
