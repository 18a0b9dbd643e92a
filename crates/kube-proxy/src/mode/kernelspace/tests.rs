//! The whole way from an API server to HNS in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::{Input, Notice, Notices, Settings, Taken, Telemetry};
use apiserver::{ApiServer, Config};
use fakes::hns::{FakeHns, Knobs, Objects};
use fakes::objects::{self, Endpoint, NODE, NODE2, Port};
use hcn::{Guid, HcnError, Kind as ObjectKind, network_type};
use metrics::health::SharedHealth;
use metrics::{Metrics, Options as MetricsOptions};
use serde_json::Value;
use source::{ApiConfig, ContentType, SourceEvent, Timings};
use tokio::sync::{RwLock, mpsc};

use super::*;

const SERVICES: u8 = 40;
/// For a machine that is busy.
const LIMIT: Duration = Duration::from_mins(4);

fn host() -> (FakeHns, Guid) {
    let mut objects = Objects::default();
    let network = objects.add_network("cbr0", network_type::L2_BRIDGE, &["10.244.0.0/24"]);
    for last in 1..=SERVICES {
        objects.add_pod(network, &format!("pod-{last}"), &[[10, 244, 0, last].into()]);
    }
    let nat = objects.add_network("nat", "NAT", &["172.20.0.0/16"]);
    let container = objects.add_pod(nat, "container", &[[172, 20, 0, 5].into()]);
    objects.add_balancer(hcn::LoadBalancer {
        host_compute_endpoints: vec![container],
        port_mappings: vec![hcn::PortMapping {
            protocol: 6,
            external_port: 8088,
            ..hcn::PortMapping::default()
        }],
        ..hcn::LoadBalancer::default()
    });
    (FakeHns::with(Knobs::default(), objects), network)
}

fn options() -> Options {
    Options { network_name: "cbr0".to_owned(), ..Options::default() }
}

fn port() -> Port {
    Port { name: "http", protocol: "TCP", port: 80, target: 8080, node_port: None }
}

fn load(server: &ApiServer, n: u8) {
    let name = format!("web-{n}");
    server.apply(objects::service(&name, &[[10, 96, 0, n].into()], &[port()])).unwrap();
    set_endpoints(server, n, n);
}

/// One endpoint here, one elsewhere.
fn set_endpoints(server: &ApiServer, n: u8, remote: u8) {
    let here = Endpoint::ready([10, 244, 0, n].into(), NODE);
    let elsewhere = Endpoint::ready([10, 244, 1, remote].into(), NODE2);
    server.apply(objects::slice(&format!("web-{n}"), "a", &[port()], &[here, elsewhere])).unwrap();
}

fn served(hns: &FakeHns) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let objects = hns.objects();
    let own = objects.balancers.values().filter(|found| !found.frontend_vips.is_empty());
    let addresses = |found: &hcn::LoadBalancer| {
        let endpoints = found.host_compute_endpoints.iter().filter_map(|id| objects.endpoints.get(id));
        endpoints.flat_map(hcn::Endpoint::addresses).collect()
    };
    own.map(|found| (found.frontend_vips.join(" "), addresses(found))).collect()
}

fn expected(services: impl IntoIterator<Item = (u8, u8)>) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let one = |(n, remote)| {
        (format!("10.96.0.{n}"), BTreeSet::from([[10, 244, 0, n].into(), [10, 244, 1, remote].into()]))
    };
    services.into_iter().map(one).collect()
}

/// Runs the agent on HNS until `done` has come to an end.
async fn serve_until(server: &ApiServer, hns: &FakeHns, done: impl Future<Output = ()>) {
    let hns = hns.clone();
    Run::on(move || Box::new(hns.clone())).until(server, done).await;
}

/// A life of the agent.
struct Run {
    open: Arc<dyn Fn() -> Box<dyn Hcn> + Send + Sync>,
    notices: Notices,
    health: SharedHealth,
    families: Vec<IpFamily>,
}

impl Run {
    fn on(open: impl Fn() -> Box<dyn Hcn> + Send + Sync + 'static) -> Self {
        let health = SharedHealth::new(Duration::from_mins(1));
        Self { open: Arc::new(open), notices: Notices::default(), health, families: vec![IpFamily::V4] }
    }

    async fn until(self, server: &ApiServer, done: impl Future<Output = ()>) {
        let Self { open, notices, health, families } = self;
        let dir = tempfile::tempdir().unwrap();
        let api = ApiConfig {
            kubeconfig: Some(server.kubeconfig(dir.path()).unwrap()),
            server: None,
            node_name: NODE.to_owned(),
            content_type: ContentType::Protobuf,
            user_agent: "kube-proxy/test".to_owned(),
            timings: Timings::default(),
        };
        let (sender, events) = mpsc::channel(64);
        let metrics = Arc::new(Metrics::new(&MetricsOptions::default()));
        let _source = source::spawn_api(api, metrics.source.clone(), sender).await.unwrap();
        let connection =
            Connection { open, adapters: Arc::new(BTreeMap::new), subscribe: Arc::new(|_| None) };
        let families = serve(options(), Duration::from_secs(1), &families, &connection);
        let settings = Settings { served_by_hns: true, notices, ..Settings::new(NODE.into()) };
        let telemetry = Telemetry::new(metrics, health);
        let read = |event| match event {
            SourceEvent::Change(change) => Some(Input::Change(change)),
            SourceEvent::Listed(kind) => Some(Input::Listed(kind)),
            _ => None,
        };
        tokio::select! {
            result = agent::run(families, settings, telemetry, events, read) => panic!("it ended: {result:?}"),
            () = done => {}
        }
    }
}

/// HNS whose calls do not return while somebody holds them up.
struct Hanging(FakeHns, Arc<RwLock<()>>);

impl Hanging {
    fn hns(&mut self) -> &mut FakeHns {
        drop(self.1.blocking_read());
        &mut self.0
    }
}

impl Hcn for Hanging {
    fn version(&mut self) -> Result<hcn::Version, HcnError> {
        self.hns().version()
    }

    fn ids(&mut self, kind: ObjectKind) -> Result<Vec<Guid>, HcnError> {
        self.hns().ids(kind)
    }

    fn query(&mut self, kind: ObjectKind, id: Guid) -> Result<Value, HcnError> {
        self.hns().query(kind, id)
    }

    fn create(
        &mut self,
        kind: ObjectKind,
        network: Option<Guid>,
        id: Option<Guid>,
        settings: &Value,
    ) -> Result<(Guid, Value), HcnError> {
        self.hns().create(kind, network, id, settings)
    }

    fn modify(&mut self, kind: ObjectKind, id: Guid, settings: &Value) -> Result<(), HcnError> {
        self.hns().modify(kind, id, settings)
    }

    fn delete(&mut self, kind: ObjectKind, id: Guid) -> Result<(), HcnError> {
        self.hns().delete(kind, id)
    }
}

/// How often somebody asked which load balancers there are.
fn looks(hns: &FakeHns) -> usize {
    hns.calls().iter().filter(|call| **call == hcn::Call::Ids(ObjectKind::LoadBalancer)).count()
}

async fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let begun = tokio::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn services_come_and_go_and_a_restart_writes_nothing() {
    let server = ApiServer::start(Config { tls: true, ..Config::default() }).unwrap();
    server.apply(objects::node(NODE, &[[192, 168, 1, 11].into()])).unwrap();
    let (hns, _) = host();
    let foreign: Vec<_> = hns.objects().balancers.into_iter().collect();
    for n in 1..=SERVICES / 2 {
        load(&server, n);
    }
    serve_until(&server, &hns, async {
        wait_for("the first half", || served(&hns) == expected((1..=SERVICES / 2).map(|n| (n, n)))).await;
        for n in SERVICES / 2 + 1..=SERVICES {
            load(&server, n);
        }
        wait_for("all", || served(&hns) == expected((1..=SERVICES).map(|n| (n, n)))).await;
        set_endpoints(&server, 7, 77);
        server.delete(apiserver::Kind::Service, objects::NAMESPACE, "web-3").unwrap();
        let wanted = (1..=SERVICES).filter(|n| *n != 3).map(|n| (n, if n == 7 { 77 } else { n }));
        wait_for("a change", || served(&hns) == expected(wanted.clone())).await;
        // Somebody deletes one, after what there is has been looked at twice: it is noticed, and made again.
        let begun = looks(&hns);
        wait_for("looks", || looks(&hns) > begun + 2).await;
        hns.tamper(|objects| objects.balancers.retain(|_, found| found.frontend_vips != ["10.96.0.9"]));
        wait_for("a repair", || served(&hns) == expected(wanted.clone())).await;
    })
    .await;
    let (writes, begun) = (hns.writes().len(), looks(&hns));
    serve_until(&server, &hns, async {
        wait_for("a reading, and looks", || looks(&hns) > begun + 2).await;
    })
    .await;
    assert_eq!(hns.writes().len(), writes, "a restart with nothing changed");
    let objects = hns.objects();
    for (id, document) in foreign {
        assert_eq!(objects.balancers.get(&id), Some(&document));
    }
}

/// One HNS for both families, whose workers call it side by side.
#[tokio::test]
async fn both_families_are_served_on_a_network_of_two() {
    let server = ApiServer::start(Config { tls: true, ..Config::default() }).unwrap();
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    server.apply(objects::node(NODE, &[ip("192.168.1.11"), ip("fd00:1::b")])).unwrap();
    let mut there = Objects::default();
    let network = there.add_network("cbr0", network_type::L2_BRIDGE, &["10.244.0.0/24", "fd00:244::/64"]);
    there.add_pod(network, "pod-1", &[ip("10.244.0.1"), ip("fd00:244::1")]);
    let hns = FakeHns::with(Knobs::default(), there);
    let vips = [ip("10.96.0.1"), ip("fd00:96::1")];
    server.apply(objects::service("web", &vips, &[port()])).unwrap();
    for (suffix, here, elsewhere) in
        [("v4", "10.244.0.1", "10.244.1.1"), ("v6", "fd00:244::1", "fd00:244:1::1")]
    {
        let endpoints = [Endpoint::ready(ip(here), NODE), Endpoint::ready(ip(elsewhere), NODE2)];
        server.apply(objects::slice("web", suffix, &[port()], &endpoints)).unwrap();
    }
    // A pod has one endpoint with both addresses.
    let pod = BTreeSet::from([ip("10.244.0.1"), ip("fd00:244::1")]);
    let with = |elsewhere: &str| pod.iter().copied().chain([ip(elsewhere)]).collect::<BTreeSet<_>>();
    let wanted = BTreeMap::from([
        (vips[0].to_string(), with("10.244.1.1")),
        (vips[1].to_string(), with("fd00:244:1::1")),
    ]);
    let run = || {
        let on = hns.clone();
        Run { families: IpFamily::ALL.to_vec(), ..Run::on(move || Box::new(on.clone())) }
    };
    run().until(&server, wait_for("both", || served(&hns) == wanted)).await;
    let (writes, begun) = (hns.writes().len(), looks(&hns));
    run().until(&server, wait_for("readings, and looks", || looks(&hns) > begun + 4)).await;
    assert_eq!((hns.writes().len(), served(&hns)), (writes, wanted), "a restart with nothing changed");
}

/// Services of which there was something to tell, and what.
fn told(notices: &mut mpsc::UnboundedReceiver<Notice>) -> Vec<(String, Vec<String>)> {
    let mut told = Vec::new();
    while let Ok(notice) = notices.try_recv() {
        match notice {
            Notice::FrontendTaken { service, taken, .. } => {
                let Taken { address, port, by, .. } = taken;
                told.push((service.name.to_string(), vec![format!("{}:{port} {by}", address.unwrap())]));
            }
            Notice::NotOnThisPlatform { service, what, .. } => {
                told.push((service.name.to_string(), what.into_iter().map(str::to_owned).collect()));
            }
            _ => {}
        }
    }
    told
}

#[tokio::test]
async fn a_service_hears_who_has_its_address_and_what_this_version_of_hns_lacks() {
    let server = ApiServer::start(Config { tls: true, ..Config::default() }).unwrap();
    server.apply(objects::node(NODE, &[[192, 168, 1, 11].into()])).unwrap();
    let (hns, _) = host();
    // Before Windows Server 2022, somebody else's container answers at the address of web-2.
    hns.turn(|knobs| knobs.version = hcn::Version::new(9, 5));
    let container = hns.objects().balancers.into_values().next().unwrap();
    let mapping = hcn::PortMapping { protocol: 6, external_port: 80, ..hcn::PortMapping::default() };
    let occupant = hcn::LoadBalancer {
        frontend_vips: vec!["10.96.0.2".to_owned()],
        port_mappings: vec![mapping],
        ..container
    };
    let mut id = None;
    hns.tamper(|objects| id = Some(objects.add_balancer(occupant)));
    let id = id.unwrap();
    for n in 1..=3 {
        load(&server, n);
    }
    let mut sticky = objects::service("web-3", &[[10, 96, 0, 3].into()], &[port()]);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    server.apply(sticky).unwrap();
    let (sender, mut notices) = mpsc::unbounded_channel();
    let on = hns.clone();
    let run = Run { notices: Notices::to(sender), ..Run::on(move || Box::new(on.clone())) };
    run.until(&server, async {
        let mut heard = Vec::new();
        let begun = tokio::time::Instant::now();
        while heard.len() < 2 {
            assert!(begun.elapsed() < LIMIT, "{heard:?}");
            heard.extend(told(&mut notices));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        heard.sort();
        let lacks = "there is no session affinity before Windows Server 2022";
        let wanted = [("web-2", format!("10.96.0.2:80 load balancer {id}")), ("web-3", lacks.to_owned())];
        assert_eq!(heard, wanted.map(|(name, what)| (name.to_owned(), vec![what])));
        // Once; and when it has gone, the Service is served.
        hns.tamper(|objects| drop(objects.balancers.remove(&id)));
        wait_for("all three", || served(&hns) == expected((1..=3).map(|n| (n, n)))).await;
        assert_eq!(told(&mut notices), []);
    })
    .await;
}

#[tokio::test]
async fn a_call_that_does_not_return_costs_health_and_nothing_that_was_known() {
    let server = ApiServer::start(Config { tls: true, ..Config::default() }).unwrap();
    server.apply(objects::node(NODE, &[[192, 168, 1, 11].into()])).unwrap();
    let (hns, _) = host();
    load(&server, 1);
    let (on, gate) = (hns.clone(), Arc::new(RwLock::new(())));
    let held_up = gate.clone();
    let health = SharedHealth::new(Duration::from_secs(2));
    let told = health.clone();
    let run = Run { health, ..Run::on(move || Box::new(Hanging(on.clone(), held_up.clone()))) };
    let waits = || {
        let report = told.lock().report(tokio::time::Instant::now());
        !report.healthy && report.families[&IpFamily::V4].pending_since.is_some()
    };
    run.until(&server, async {
        wait_for("the first", || served(&hns) == expected([(1, 1)])).await;
        let blocked = gate.write().await;
        load(&server, 2);
        wait_for("health tells", waits).await;
        // What arrives meanwhile is taken in.
        load(&server, 3);
        assert_eq!(served(&hns), expected([(1, 1)]));
        drop(blocked);
        wait_for("all", || served(&hns) == expected((1..=3).map(|n| (n, n)))).await;
        wait_for("health", || told.lock().report(tokio::time::Instant::now()).healthy).await;
    })
    .await;
}

#[test]
fn the_network_is_named_by_the_configuration_or_the_environment() {
    let variable = || Some("flannel".to_owned());
    assert_eq!(network_name(Some("cbr0"), variable()).unwrap(), "cbr0");
    assert_eq!(network_name(None, variable()).unwrap(), "flannel");
    assert!(network_name(None, None).is_err() && network_name(None, Some(String::new())).is_err());
}

#[test]
fn what_hns_tells_is_passed_on_and_it_is_asked_anew_after_it_went_away() {
    let (hns, _) = host();
    let listeners: Arc<std::sync::Mutex<Vec<Listener>>> = Arc::default();
    let kept = listeners.clone();
    let subscribe: Subscribe = Arc::new(move |listener| {
        kept.lock().unwrap().push(listener);
        Some(Box::new(()))
    });
    let (told, heard) = std::sync::mpsc::channel();
    // The third time nobody wants to know.
    let touches = Touches::new(move |touch| {
        told.send(touch).unwrap();
        touch != Touch::Surroundings("an endpoint was attached")
    });
    let watcher = Watcher::new(Box::new(hns), Vec::new());
    let watching = std::thread::spawn(move || watch(watcher, LIMIT, &subscribe, &touches));
    let tell = |number: usize, event| {
        let begun = tokio::time::Instant::now();
        while listeners.lock().unwrap().len() < number {
            assert!(begun.elapsed() < LIMIT, "it does not subscribe");
            std::thread::sleep(Duration::from_millis(5));
        }
        (listeners.lock().unwrap()[number - 1])(event);
        heard.recv_timeout(LIMIT).unwrap()
    };
    // None of it is tampering: pods start every day.
    assert_eq!(tell(1, Event::NetworkDeleted), Touch::Surroundings("a network was deleted"));
    assert_eq!(tell(1, Event::ServiceGone), Touch::Surroundings("HNS went away"));
    assert_eq!(tell(2, Event::EndpointAttached), Touch::Surroundings("an endpoint was attached"));
    watching.join().unwrap();
}
