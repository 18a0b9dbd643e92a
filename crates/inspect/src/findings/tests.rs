use agent::snapshot::{Conflict, Failure};
use host::ConntrackFacts;
use nft::Attached;

use super::*;
use crate::fixture;

/// A node where all is well.
fn evidence() -> Evidence<'static> {
    let facts = Facts {
        forwards_v4: Some(true),
        forwards_v6: Some(false),
        bridge_calls_iptables: Some(true),
        has_bridges: true,
        conntrack: Some(ConntrackFacts { count: 10, max: 100, insert_failed: 0, drop: 0 }),
        listeners: [("TCP", "10.0.0.1:10250".parse().unwrap()), ("UDP", "0.0.0.0:30080".parse().unwrap())]
            .into(),
        ..Facts::default()
    };
    Evidence {
        mode: "nftables",
        facts,
        chains: vec![chain("kube-proxy", "services", None)],
        ..Evidence::default()
    }
}

fn chain(table: &str, name: &str, drops: Option<bool>) -> AnyChain {
    let hook = drops.map(|drops| Attached { kind: "filter".into(), hook: 2, priority: 0, drops });
    AnyChain { family: 2, table: table.into(), name: name.into(), hook }
}

/// Changes that make one thing wrong, and the finding that this is.
#[track_caller]
fn check(expected: &[&str], change: impl FnOnce(&mut Evidence<'_>, &mut Overview, &mut Service)) {
    let (mut evidence, mut overview, mut service) =
        (evidence(), fixture::overview(), fixture::service("web", "10.96.0.10"));
    change(&mut evidence, &mut overview, &mut service);
    let found = findings(&evidence, &overview, &[service]);
    assert_eq!(found.iter().map(|finding| finding.id.as_str()).collect::<Vec<_>>(), expected);
    for finding in found {
        assert!(!finding.what.is_empty() && !finding.why.is_empty() && !finding.mend.is_empty());
    }
}

#[test]
fn nothing_is_found_where_all_is_well() {
    check(&[], |_, _, _| {});
    // A family that is not served does not have to be forwarded.
    check(&[], |evidence, _, _| evidence.facts.forwards_v6 = Some(false));
    check(&[], |evidence, _, _| evidence.facts.conntrack = None);
    check(&[], |evidence, _, _| evidence.chains.push(chain("filter", "FORWARD", Some(false))));
}

#[test]
fn the_proxys_own_troubles() {
    check(&["not-listed"], |_, overview, _| overview.is_listed = false);
    check(&["no-node"], |_, overview, _| overview.is_node_known = false);
    check(&["no-node-addresses"], |_, overview, _| overview.node_addresses.clear());
    check(&["clock-not-synchronized"], |evidence, _, _| evidence.is_clock_synchronized = Some(false));
    check(&["forward-policy-drop"], |evidence, _, _| evidence.legacy_forward_drops.push("IPv4".into()));
    check(&["no-pod-cidrs"], |_, overview, _| overview.waits_for_pod_cidrs = true);
    check(&["rules-refused"], |_, overview, _| {
        overview.families[0].failure = Some(Failure { error: "x".into(), times: 3, retry_in_seconds: 1.0 });
    });
    check(&["addresses-refused"], |_, overview, _| overview.families[0].refused = 2);
    check(&["rules-changed-by-others"], |_, overview, _| overview.families[0].repairs.audit_divergences = 1);
    check(&["rule-missing"], |evidence, _, _| {
        evidence.missing.push(("shop/web:http".into(), "map x: y".into()));
    });
    check(&["nothing-served"], |_, overview, _| overview.families[0].frontends = 0);
}

#[test]
fn troubles_of_objects() {
    check(&["conflict"], |_, overview, _| {
        overview.conflicts.push(Conflict {
            family: "IPv4".into(),
            address: None,
            protocol: "TCP".into(),
            port: 30080,
            winner: "a/b:c".into(),
            loser: "d/e:f".into(),
        });
    });
    check(&["no-endpoints"], |_, _, service| fixture::port(service).endpoints.truncate(0));
    check(&["hints-zone-unknown"], |_, _, service| {
        fixture::port(service).policies[0].basis = Basis::ReadyZoneUnknown;
    });
    check(&["hints-incomplete"], |_, _, service| {
        let endpoints = &mut fixture::port(service).endpoints;
        (endpoints[0].is_hinted, endpoints[1].is_ready) = (true, true);
    });
    // One that is ending needs none.
    check(&[], |_, _, service| fixture::port(service).endpoints[0].is_hinted = true);
    check(&["hints-not-for-this-zone"], |_, _, service| {
        fixture::port(service).policies[0].basis = Basis::ReadyNoneForThisZone;
    });
}

#[test]
fn troubles_of_the_host() {
    check(&["forwarding-off"], |evidence, _, _| evidence.facts.forwards_v4 = Some(false));
    // A node of an IPv4 cluster, where IPv6 is served and has nothing, and one of two families.
    for (frontends, expected) in [(0, &[][..]), (1, &["forwarding-off"])] {
        check(expected, |_, overview, _| {
            let v4 = overview.families[0].clone();
            overview.families.push(FamilyState { family: "IPv6".to_owned(), frontends, ..v4 });
        });
    }
    check(&["bridge-netfilter-off"], |evidence, _, _| evidence.facts.bridge_calls_iptables = Some(false));
    check(&["rp-filter-strict"], |evidence, _, _| evidence.facts.strict_interfaces.push("eth0".into()));
    check(&["forward-policy-drop"], |evidence, _, _| {
        evidence.chains.push(chain("filter", "FORWARD", Some(true)));
    });
    check(&["node-port-taken"], |evidence, _, _| {
        evidence.facts.listeners.insert(("TCP", "0.0.0.0:30080".parse().unwrap()));
    });
    for (count, dropped, failed, expected) in
        [(80, 0, 0, "conntrack-full"), (10, 1, 0, "conntrack-dropped"), (10, 0, 1, "conntrack-insert-failed")]
    {
        check(&[expected], |evidence, _, _| {
            evidence.facts.conntrack =
                Some(ConntrackFacts { count, max: 100, insert_failed: failed, drop: dropped });
        });
    }
}

#[test]
fn other_proxies() {
    check(&["other-proxy"], |evidence, _, _| evidence.chains.push(chain("nat", "KUBE-SVC-ABC", None)));
    check(&["other-proxy"], |evidence, _, _| evidence.mode = "iptables");
    for mode in ["ipvs", "userspace", "ebpf"] {
        check(&[], |evidence, _, _| evidence.mode = mode);
    }
    check(&["other-proxy"], |evidence, _, _| evidence.facts.ipvs_servers = 1);
    check(&["other-proxy"], |evidence, _, _| evidence.facts.has_ipvs_device = true);
}
