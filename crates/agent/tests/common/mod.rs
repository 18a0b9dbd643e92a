//! What the tests share: settings, objects, and what a kernel should hold for them.

use agent::Settings;
use backend_nftables::{Backend, Config, Extent, NodePortAddresses};
use model::view::{ThisNode, frontends};
use model::{
    Conditions, Endpoint, EndpointSlice, IpFamily, Object, ObjectName, Protocol, Service, ServicePort,
    SliceEndpoints, SlicePort, Store, Table, TrafficPolicy, V4,
};

const NODE: &str = "node-1";

pub fn settings() -> Settings {
    Settings { families: vec![IpFamily::V4], ..Settings::new(NODE.into()) }
}

pub fn service(n: u8) -> Object {
    Object::Service(Service {
        name: ObjectName::new("ns", &format!("svc-{n}")),
        uid: None,
        cluster_ips: [[10, 96, 0, n].into()].into(),
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
            .into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
    })
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
