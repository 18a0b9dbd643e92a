//! What Services cost in memory, counted: a Service with ten endpoints, as objects in the store and as frontends in the
//! table.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says what it counted"
)]

use std::net::Ipv4Addr;

use model::view::{ThisNode, frontends};
use model::{
    AppProtocol, Change, Conditions, Endpoint, EndpointSlice, Interner, Kind, Object, ObjectName, Protocol,
    Service, ServicePort, SliceEndpoints, SlicePort, Store, Table, Touched, Uid, V4,
};

const SERVICES: u32 = 2000;
const ENDPOINTS: u32 = 10;
/// A node of a large cluster has about that many pods.
const PODS_A_NODE: u32 = 100;

/// Numbers 0 of the addresses.
const SERVICE_IP: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const ENDPOINT_IP: u32 = u32::from_be_bytes([10, 128, 0, 0]);

fn name(interner: &mut Interner, name: &str) -> ObjectName {
    ObjectName { namespace: interner.intern("default"), name: interner.intern(name) }
}

fn service(n: u32, interner: &mut Interner) -> Object {
    Object::Service(Service {
        uid: Uid::parse("01234567-0000-4000-8000-000000000000"),
        cluster_ips: [Ipv4Addr::from(SERVICE_IP + n).into()].into(),
        ports: [ServicePort {
            name: interner.intern("http"),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: AppProtocol::Opaque,
        }]
        .into(),
        ..Service::new(name(interner, &format!("svc-{n:06}")))
    })
}

fn slice(n: u32, interner: &mut Interner) -> Object {
    let endpoint = |e: u32| Endpoint {
        address: Ipv4Addr::from(ENDPOINT_IP + e),
        conditions: Conditions::default(),
        node: Some(interner.intern(&format!("node-{}", e / PODS_A_NODE))),
        hints: None,
    };
    let endpoints = (n * ENDPOINTS..(n + 1) * ENDPOINTS).map(endpoint).collect();
    Object::EndpointSlice(EndpointSlice {
        name: name(interner, &format!("svc-{n:06}-abcde")),
        service: name(interner, &format!("svc-{n:06}")),
        ports: [SlicePort { name: interner.intern("http"), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: SliceEndpoints::V4(endpoints),
        details: None,
        trigger_time: None,
    })
}

/// Bytes a Service that what this makes holds on to.
fn held<T>(make: impl FnOnce() -> T) -> (T, i64) {
    let mut made = None;
    let counted = allocation_counter::measure(|| made = Some(make()));
    (made.unwrap(), counted.bytes_current / i64::from(SERVICES))
}

#[test]
fn a_service_with_ten_endpoints_takes_little_memory() {
    let (store, in_store) = held(|| {
        let (mut store, mut interner) = (Store::default(), Interner::default());
        for (kind, object) in [(Kind::Service, service as fn(_, &mut _) -> _), (Kind::EndpointSlice, slice)] {
            let objects = (0..SERVICES).map(|n| object(n, &mut interner)).collect();
            store.apply(Change::Replace { kind, objects, keep: Vec::new() }, &mut Touched::default());
        }
        store
    });
    let (table, in_table) = held(|| {
        let (mut table, node) = (Table::<V4>::default(), ThisNode::default());
        for (name, entry) in store.entries() {
            table.set_service(name, frontends(&node, entry));
        }
        table
    });
    eprintln!("bytes a Service: {in_store} in the store, {in_table} in the table");
    assert_eq!((store.entries().len(), table.len()), (SERVICES as usize, SERVICES as usize));
    assert!(in_store < 785, "{in_store}");
    assert!(in_table < 420, "{in_table}");
}
