//! What the tests share: settings, objects, and what a kernel should hold for them.

use std::marker::PhantomData;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{FamilyMode, OldRulesGone, ServedFamily, Settings, Telemetry};
use backend_nftables::{Backend, Config, Extent, NftablesTarget, NodePortAddresses};
use fakes::conntrack::FakeConntrack;
use metrics::health::SharedHealth;
use metrics::{Metrics, NftablesMetrics, Options};
use mode::{Observer, Planner, Touches, Unobserved};
use model::view::{ThisNode, frontends};
use model::{
    AppProtocol, Conditions, Endpoint, EndpointSlice, IpFamily, Object, ObjectName, Protocol, Service,
    ServicePort, SliceEndpoints, SlicePort, Store, Table, V4,
};
use netlink::NetlinkError;
use nft::Kernel;

pub const NODE: &str = "node-1";

pub fn settings() -> Settings {
    Settings::new(NODE.into())
}

/// What a mode has been given by the agent after its first sync.
#[derive(Clone, Default)]
pub struct Given {
    /// Where foreign changes are told, once the agent wants to know.
    pub touches: Arc<Mutex<Option<Touches>>>,
    /// By which the agent hears that others' rules are gone; one for each time that it told of its first sync.
    pub gone: Arc<Mutex<Vec<OldRulesGone>>>,
}

/// IPv4 in a mode whose target is opened so; what went through is not read.
pub fn served<P: Planner<V4>>(
    planner: P,
    open: mode::OpenTarget<P::Target>,
    conntrack: &FakeConntrack,
    given: &Given,
    observer: Box<dyn Observer>,
) -> ServedFamily {
    served_with(planner, open, None, conntrack, given, observer)
}

/// The same; what went through is read over a target that is opened like `meter`.
pub fn served_with<P: Planner<V4>>(
    planner: P,
    open: mode::OpenTarget<P::Target>,
    meter: Option<mode::OpenTarget<P::Target>>,
    conntrack: &FakeConntrack,
    given: &Given,
    observer: Box<dyn Observer>,
) -> ServedFamily {
    let (touches, gone, flows) = (given.touches.clone(), given.gone.clone(), conntrack.clone());
    ServedFamily::new(FamilyMode {
        planner,
        open,
        meter,
        watch: Some(Box::new(move |told| *touches.lock().unwrap() = Some(told))),
        flows: Some(Arc::new(move || Ok(Box::new(flows.clone())))),
        take_over: Some(Box::new(move |told| gone.lock().unwrap().push(told))),
        observer,
        family: PhantomData,
    })
}

/// Opens a kernel for mode nftables.
pub fn nftables_target<K: Kernel + 'static>(
    open: impl Fn() -> Result<K, NetlinkError> + Send + Sync + 'static,
) -> mode::OpenTarget<NftablesTarget> {
    Arc::new(move || Ok(NftablesTarget::new(nft::Family::Ip, Box::new(open()?))))
}

/// IPv4 in mode nftables, and nobody looks.
pub fn served_nftables<K: Kernel + 'static>(
    open: impl Fn() -> Result<K, NetlinkError> + Send + Sync + 'static,
) -> Vec<ServedFamily> {
    let (conntrack, given) = (FakeConntrack::new(), Given::default());
    let planner = Backend::<V4>::new(Config::default());
    vec![served(planner, nftables_target(open), &conntrack, &given, Box::new(Unobserved))]
}

/// The metrics of mode nftables for IPv4.
pub fn of_nftables(metrics: &Metrics) -> NftablesMetrics {
    NftablesMetrics::register(metrics)(IpFamily::V4)
}

pub fn service(n: u8) -> Object {
    let name = ObjectName::new("ns", &format!("svc-{n}"));
    Object::Service(plain_service(name, [10, 96, 0, n].into()))
}

/// A Service with this cluster IP and TCP port 80.
pub fn plain_service(name: ObjectName, cluster_ip: Ipv4Addr) -> Service {
    Service {
        cluster_ips: [cluster_ip.into()].into(),
        ports: [ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            app_protocol: AppProtocol::Opaque,
        }]
        .into(),
        ..Service::new(name)
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
        details: None,
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
