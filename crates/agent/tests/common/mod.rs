//! What the tests share: settings, objects, and what a kernel should hold for them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use agent::{Settings, Telemetry};
use backend_nftables::{Backend, Config, Extent, NodePortAddresses};
use metrics::health::SharedHealth;
use metrics::{Metrics, Options};
use model::view::{ThisNode, frontends};
use model::{
    Conditions, Endpoint, EndpointSlice, IpFamily, Object, ObjectName, Protocol, Service, ServicePort,
    SliceEndpoints, SlicePort, Store, Table, TrafficPolicy, V4,
};

pub const NODE: &str = "node-1";

pub fn settings() -> Settings {
    Settings { families: vec![IpFamily::V4], ..Settings::new(NODE.into()) }
}

pub fn service(n: u8) -> Object {
    let name = ObjectName::new("ns", &format!("svc-{n}"));
    Object::Service(plain_service(name, [10, 96, 0, n].into()))
}

/// A Service with this cluster IP and TCP port 80.
pub fn plain_service(name: ObjectName, cluster_ip: Ipv4Addr) -> Service {
    Service {
        name,
        uid: None,
        cluster_ips: [cluster_ip.into()].into(),
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
            .into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
    }
}

pub fn slice(n: u8, endpoints: &[u8]) -> Object {
    let endpoint = |last: &u8| Endpoint::<V4> {
        address: [10, 244, 0, *last].into(),
        conditions: Conditions::default(),
        node: Some(NODE.into()),
        hints: None,
    };
    Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("ns", &format!("svc-{n}-a")),
        service: ObjectName::new("ns", &format!("svc-{n}")),
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: SliceEndpoints::V4(endpoints.iter().map(endpoint).collect()),
        trigger_time: None,
    })
}

/// What is wrong in a kernel that holds this ruleset; `None` when it is what the objects ask for.
pub fn difference(store: &Store, found: Option<&nft::Ruleset>) -> Option<String> {
    let mut table = Table::<V4>::default();
    let node = ThisNode::new(NODE.into(), None);
    for (name, entry) in store.entries() {
        table.set_service(name, frontends(&node, entry));
    }
    let config = Config { node_ports: NodePortAddresses::Within(Vec::new()), ..Config::default() };
    let plan = Backend::new(config.clone()).repair(&config, &table, found, Extent::Difference);
    (!plan.transaction.is_empty()).then(|| plan.transaction.to_string())
}

/// Nobody asks for it.
pub fn telemetry() -> Telemetry {
    let health = SharedHealth::new(Duration::from_mins(1));
    Telemetry::new(Arc::new(Metrics::new(&Options::default())), health)
}
