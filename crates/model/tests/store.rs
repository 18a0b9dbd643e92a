//! The store against a plain map of objects.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use model::{
    Change, Conditions, Endpoint, EndpointSlice, Kind, Node, Object, ObjectName, Service, ServiceCidr,
    ServiceEntry, SliceEndpoints, Store, Touched,
};
use proptest::prelude::*;

fn service(n: u8, version: u8) -> Object {
    Object::Service(Service {
        cluster_ips: [[10, 96, version, n].into()].into(),
        ..Service::new(ObjectName::new("ns", &format!("svc-{n}")))
    })
}

fn slice(n: u8, owner: u8, version: u8) -> Object {
    let endpoint = Endpoint {
        address: [10, 244, version, n].into(),
        conditions: Conditions::default(),
        node: None,
        hints: None,
    };
    Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("ns", &format!("slice-{n}")),
        service: ObjectName::new("ns", &format!("svc-{owner}")),
        ports: Box::default(),
        endpoints: SliceEndpoints::V4([endpoint].into()),
        details: None,
        trigger_time: None,
    })
}

fn node(version: u8) -> Object {
    Object::Node(Node {
        name: ObjectName::new("", "node-1"),
        zone: Some(format!("zone-{version}").as_str().into()),
        addresses: Box::default(),
        pod_cidrs: Box::default(),
        is_deleting: false,
        is_scaled_down: false,
        taints: Box::default(),
    })
}

fn service_cidr(n: u8, version: u8) -> Object {
    let cidr = format!("10.{}.0.0/16", version % 2).parse().unwrap();
    Object::ServiceCidr(ServiceCidr { name: ObjectName::new("", &format!("cidr-{n}")), cidrs: [cidr].into() })
}

fn object(kind: Kind) -> BoxedStrategy<Object> {
    match kind {
        Kind::Service => (0u8..4, 0u8..3).prop_map(|(n, version)| service(n, version)).boxed(),
        Kind::EndpointSlice => {
            (0u8..4, 0u8..4, 0u8..3).prop_map(|(n, owner, version)| slice(n, owner, version)).boxed()
        }
        Kind::Node => (0u8..3).prop_map(node).boxed(),
        Kind::ServiceCidr => (0u8..3, 0u8..3).prop_map(|(n, version)| service_cidr(n, version)).boxed(),
    }
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    kind.prop_flat_map(|kind| {
        let listing = (prop::collection::vec(object(kind), 0..5), prop::collection::vec(object(kind), 0..2));
        prop_oneof![
            4 => object(kind).prop_map(Change::Apply),
            2 => object(kind).prop_map(move |object| Change::Delete(kind, object.name().clone())),
            1 => listing.prop_map(move |(objects, kept)| Change::Replace {
                kind,
                objects: unique(objects),
                keep: kept.iter().map(|object| object.name().clone()).collect(),
            }),
        ]
    })
}

/// A listing names an object once.
fn unique(objects: Vec<Object>) -> Vec<Object> {
    let by_name: BTreeMap<_, _> = objects.into_iter().map(|object| (object.name().clone(), object)).collect();
    by_name.into_values().collect()
}

/// What should be known: the last form of each object.
type Objects = BTreeMap<(Kind, ObjectName), Object>;

fn fold(objects: &mut Objects, change: Change) {
    match change {
        Change::Apply(object) => {
            objects.insert((object.kind(), object.name().clone()), object);
        }
        Change::Delete(kind, name) => {
            objects.remove(&(kind, name));
        }
        Change::Replace { kind, objects: listed, keep } => {
            objects.retain(|(known, name), _| *known != kind || keep.contains(name));
            for object in listed {
                fold(objects, Change::Apply(object));
            }
        }
    }
}

/// The entries that these objects make, built in one go.
fn entries(objects: &Objects) -> BTreeMap<ObjectName, ServiceEntry> {
    let mut entries: BTreeMap<ObjectName, ServiceEntry> = BTreeMap::new();
    for object in objects.values() {
        match object {
            Object::Service(service) => {
                entries.entry(service.name.clone()).or_default().service = Some(Box::new(service.clone()));
            }
            Object::EndpointSlice(slice) => {
                entries.entry(slice.service.clone()).or_default().slices.push(slice.clone());
            }
            Object::Node(_) | Object::ServiceCidr(_) => {}
        }
    }
    entries
}

proptest! {
    #[test]
    fn the_store_knows_the_last_form_of_everything(changes in prop::collection::vec(change(), 0..30)) {
        let mut store = Store::default();
        let mut objects = Objects::new();
        for change in changes {
            let before = objects.clone();
            let mut touched = Touched::default();
            fold(&mut objects, change.clone());
            store.apply(change.clone(), &mut touched);

            let (old, new) = (entries(&before), entries(&objects));
            let known: BTreeMap<_, _> = store.entries().map(|(name, entry)| (name.clone(), entry.clone())).collect();
            prop_assert_eq!(&known, &new);
            let node = ObjectName::new("", "node-1");
            let expected = objects.get(&(Kind::Node, node)).cloned();
            prop_assert_eq!(store.node("node-1").cloned().map(Object::Node), expected);

            // What differs is reported, and a change that changes nothing reports nothing.
            for name in old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)) {
                prop_assert!(touched.services.contains(name), "{} differs", name);
            }
            if before == objects {
                prop_assert_eq!(&touched, &Touched::default());
            }
            let mut again = Touched::default();
            store.apply(change, &mut again);
            prop_assert_eq!(again, Touched::default(), "the same again");
        }
    }
}

#[test]
fn a_range_named_twice_stays_while_one_name_does() {
    let mut store = Store::default();
    let mut touched = Touched::default();
    store.apply(Change::Apply(service_cidr(0, 0)), &mut touched);
    store.apply(Change::Apply(service_cidr(1, 0)), &mut touched);
    store.apply(Change::Delete(Kind::ServiceCidr, ObjectName::new("", "cidr-0")), &mut touched);
    assert_eq!(store.service_cidrs().len(), 1);
    store.apply(Change::Delete(Kind::ServiceCidr, ObjectName::new("", "cidr-1")), &mut touched);
    assert_eq!(store.service_cidrs().len(), 0);
}

#[test]
fn trigger_times_are_told_with_real_changes_only() {
    let mut store = Store::default();
    let time = |seconds| std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let at = |version, seconds| {
        let Object::EndpointSlice(slice) = slice(0, 0, version) else { unreachable!() };
        Change::Apply(Object::EndpointSlice(EndpointSlice { trigger_time: Some(time(seconds)), ..slice }))
    };
    let mut touched = Touched::default();
    for change in [at(0, 10), at(0, 10), at(1, 20), Change::Apply(slice(1, 0, 0))] {
        store.apply(change, &mut touched);
    }
    assert_eq!(touched.trigger_times, [10, 20].map(|seconds| (model::IpFamily::V4, time(seconds))));
}
