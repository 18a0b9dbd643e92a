//! The way of a change through store, view and table against a model that is naive and obviously right: it looks at all
//! objects at once, at every rule by itself, and keeps nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::view::{ThisNode, frontends};
use model::{
    AddressKind, AppProtocol, Change, Conditions, Endpoint, EndpointSlice, Family, FrontendAddress, Hints,
    Kind, Masquerade, Node, Object, ObjectName, Pool, Protocol, Service, ServicePort, SliceEndpoints,
    SlicePort, Store, Table, Touched, TrafficPolicy, V4, Verdict,
};
use proptest::prelude::*;

const NODE: &str = "node-1";

// === the model ===

/// What a frontend comes to: who serves it, from outside and from inside, and whether the client is kept.
type Expected = BTreeMap<(FrontendAddress<V4>, u16), (ObjectName, Answer, Answer, Masquerade)>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    By(BTreeSet<IpAddr>),
    Not(Verdict),
}

fn reference(objects: &BTreeMap<(Kind, ObjectName), Object>) -> Expected {
    let node = objects.values().find_map(|object| match object {
        Object::Node(node) if &*node.name.name == NODE => Some(node),
        _ => None,
    });
    let zone = node.and_then(|node| node.zone.as_deref());
    let mut expected = Expected::new();
    let mut claims = Vec::new();
    for object in objects.values() {
        let Object::Service(service) = object else { continue };
        for (kind, address, port) in addresses(service) {
            claims.push((kind, service, address, port));
        }
    }
    // The better kind first, then the first name; who comes first wins.
    claims.sort_by_key(|(kind, service, address, _)| (*kind, service.name.clone(), *address));
    for (kind, service, address, number) in claims {
        let endpoints = endpoints(objects, service, zone);
        let (everywhere, inside, masquerade) = answers(service, kind, &endpoints);
        expected.entry((address, number)).or_insert((service.name.clone(), everywhere, inside, masquerade));
    }
    expected
}

fn addresses(service: &Service) -> Vec<(AddressKind, FrontendAddress<V4>, u16)> {
    let ips = |kind, ips: &[IpAddr]| -> Vec<_> {
        ips.iter().map(|ip| (kind, FrontendAddress::Ip(V4::narrow(*ip).unwrap()), 80)).collect()
    };
    let mut all = ips(AddressKind::ClusterIp, &service.cluster_ips);
    all.extend(ips(AddressKind::LoadBalancerIp, &service.load_balancer_ips));
    all.extend(ips(AddressKind::ExternalIp, &service.external_ips));
    all.extend(service.ports[0].node_port.map(|port| (AddressKind::NodePort, FrontendAddress::Node, port)));
    all
}

/// One endpoint of a Service, each address once.
struct Seen {
    ip: IpAddr,
    conditions: Conditions,
    local: bool,
    hints: Hints,
    zone_is_ours: bool,
}

fn endpoints(
    objects: &BTreeMap<(Kind, ObjectName), Object>,
    service: &Service,
    zone: Option<&str>,
) -> Vec<Seen> {
    let mut all: Vec<(bool, bool, bool, ObjectName, Seen)> = Vec::new();
    for object in objects.values() {
        let Object::EndpointSlice(slice) = object else { continue };
        let SliceEndpoints::V4(endpoints) = &slice.endpoints else { continue };
        if slice.service != service.name {
            continue;
        }
        for endpoint in endpoints {
            let hints = endpoint.hints.as_deref().cloned().unwrap_or_default();
            let seen = Seen {
                ip: endpoint.address.into(),
                conditions: endpoint.conditions,
                local: endpoint.node.as_deref() == Some(NODE),
                zone_is_ours: zone.is_some_and(|zone| hints.zones.iter().any(|hint| **hint == *zone)),
                hints,
            };
            let Conditions { ready, serving, terminating } = endpoint.conditions;
            all.push((terminating, !ready, !serving, slice.name.clone(), seen));
        }
    }
    // Of two with one address, the more useful one counts.
    all.sort_by(|a, b| (a.0, a.1, a.2, &a.3).cmp(&(b.0, b.1, b.2, &b.3)));
    let mut known = BTreeSet::new();
    all.into_iter().map(|(.., seen)| seen).filter(|seen| known.insert(seen.ip)).collect()
}

fn answers(service: &Service, kind: AddressKind, endpoints: &[Seen]) -> (Answer, Answer, Masquerade) {
    let last_resort = |seen: &&Seen| seen.conditions.serving && seen.conditions.terminating;
    let ready: Vec<&Seen> = endpoints.iter().filter(|seen| seen.conditions.ready).collect();
    let for_this_node = |seen: &&Seen| seen.hints.nodes.iter().any(|node| **node == *NODE);
    let by_node = ready.iter().all(|seen| !seen.hints.nodes.is_empty()) && ready.iter().any(for_this_node);
    let by_zone =
        ready.iter().all(|seen| !seen.hints.zones.is_empty()) && ready.iter().any(|seen| seen.zone_is_ours);
    let close = |seen: &&&Seen| if by_node { for_this_node(seen) } else { !by_zone || seen.zone_is_ours };
    let ips = |seen: Vec<&Seen>| -> BTreeSet<IpAddr> { seen.into_iter().map(|seen| seen.ip).collect() };
    let cluster = match ips(ready.iter().filter(close).copied().collect()) {
        none if none.is_empty() => ips(endpoints.iter().filter(last_resort).collect()),
        some => some,
    };
    let local = match ips(ready.iter().filter(|seen| seen.local).copied().collect()) {
        none if none.is_empty() => {
            ips(endpoints.iter().filter(last_resort).filter(|seen| seen.local).collect())
        }
        some => some,
    };
    let anywhere = !ready.is_empty() || endpoints.iter().any(|seen| last_resort(&seen));
    let answer = |ips: &BTreeSet<IpAddr>| match (ips.is_empty(), anywhere) {
        (false, _) => Answer::By(ips.clone()),
        (true, true) => Answer::Not(Verdict::Drop),
        (true, false) => Answer::Not(Verdict::Reject),
    };
    match (kind, service.internal_policy, service.external_policy) {
        (AddressKind::ClusterIp, TrafficPolicy::Cluster, _) => {
            (answer(&cluster), answer(&cluster), Masquerade::UnlessFromPod)
        }
        (AddressKind::ClusterIp, TrafficPolicy::Local, _) => {
            (answer(&local), answer(&local), Masquerade::UnlessFromPod)
        }
        (_, _, TrafficPolicy::Cluster) => (answer(&cluster), answer(&cluster), Masquerade::Always),
        (_, _, TrafficPolicy::Local) => (answer(&local), answer(&cluster), Masquerade::Never),
    }
}

// === the real thing ===

fn actual(table: &Table<V4>) -> Expected {
    let answer = |pool: &Pool<V4>| match pool {
        Pool::Endpoints(endpoints) => Answer::By(endpoints.iter().map(|d| d.address.into()).collect()),
        Pool::Empty(verdict) => Answer::Not(*verdict),
    };
    let frontends = table.iter().map(|frontend| {
        let everywhere = answer(&frontend.pool);
        let inside = frontend.internal_pool.as_ref().map_or(everywhere.clone(), answer);
        let key = (frontend.key.address, frontend.key.port);
        (key, (frontend.service.service.clone(), everywhere, inside, frontend.masquerade))
    });
    frontends.collect()
}

/// Takes a change in as the agent does.
fn carry(store: &mut Store, table: &mut Table<V4>, change: Change) {
    let mut touched = Touched::default();
    store.apply(change, &mut touched);
    let node = ThisNode::new(NODE.into(), store.node(NODE));
    if touched.node {
        touched.services.extend(store.entries().map(|(name, _)| name.clone()));
    }
    for name in &touched.services {
        let entry = store.entry(name);
        table.set_service(name, entry.map(|entry| frontends(&node, entry)).unwrap_or_default());
    }
}

// === random events ===

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn service() -> impl Strategy<Value = Object> {
    let external = prop::collection::btree_set(1u8..4, 0..3);
    (0u8..3, policy(), policy(), external, prop::option::of(0u16..3), 1u8..4).prop_map(
        |(n, internal, external_policy, external, node_port, ip)| {
            let external =
                |high: u8| external.iter().map(move |low| IpAddr::from([203, 0, high, *low])).collect();
            Object::Service(Service {
                // Addresses may collide, and one may be another's external address.
                cluster_ips: [[203, 0, 113, ip].into()].into(),
                ports: [ServicePort {
                    name: "".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: node_port.map(|port| 30000 + port),
                    app_protocol: AppProtocol::Opaque,
                }]
                .into(),
                external_ips: external(113),
                load_balancer_ips: external(114),
                source_ranges: Box::default(),
                affinity: None,
                internal_policy: internal,
                external_policy,
                health_check_node_port: None,
                ..Service::new(name("svc", n))
            })
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint<V4>> {
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating });
    let names = |of: [&'static str; 2]| prop::collection::vec(prop::sample::select(of.to_vec()), 0..2);
    (0u8..4, conditions, prop::option::of(0u8..3), names(["zone-a", "zone-b"]), names([NODE, "node-2"]))
        .prop_map(|(last, conditions, node, zones, nodes)| Endpoint {
            address: [10, 244, 0, last].into(),
            conditions,
            node: node.map(|n| format!("node-{n}").as_str().into()),
            hints: (!zones.is_empty() || !nodes.is_empty()).then(|| {
                let names = |names: Vec<&str>| names.into_iter().map(Into::into).collect();
                Box::new(Hints { zones: names(zones), nodes: names(nodes) })
            }),
        })
}

fn slice() -> impl Strategy<Value = Object> {
    (0u8..4, 0u8..3, prop::collection::vec(endpoint(), 0..4)).prop_map(|(n, owner, endpoints)| {
        Object::EndpointSlice(EndpointSlice {
            name: name("slice", n),
            service: name("svc", owner),
            ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: SliceEndpoints::V4(endpoints.into()),
            details: None,
            trigger_time: None,
        })
    })
}

fn node() -> impl Strategy<Value = Object> {
    prop::option::of(prop_oneof![Just("zone-a"), Just("zone-b")]).prop_map(|zone| {
        Object::Node(Node {
            name: ObjectName::new("", NODE),
            zone: zone.map(Into::into),
            addresses: Box::default(),
            pod_cidrs: Box::default(),
            is_deleting: false,
            is_scaled_down: false,
            taints: Box::default(),
        })
    })
}

fn name(kind: &str, n: u8) -> ObjectName {
    ObjectName::new("ns", &format!("{kind}-{n}"))
}

fn event() -> impl Strategy<Value = (Object, bool)> {
    (prop_oneof![3 => service(), 5 => slice(), 1 => node()], prop::bool::weighted(0.2))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_sequence_of_events_ends_as_the_model_says(events in prop::collection::vec(event(), 1..25)) {
        let (mut store, mut table, mut objects) = (Store::default(), Table::default(), BTreeMap::new());
        for (object, delete) in events {
            let key = (object.kind(), object.name().clone());
            let change = if delete {
                objects.remove(&key);
                Change::Delete(key.0, key.1)
            } else {
                objects.insert(key, object.clone());
                Change::Apply(object)
            };
            carry(&mut store, &mut table, change);
            prop_assert_eq!(actual(&table), reference(&objects));
        }
    }
}
