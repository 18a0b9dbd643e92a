//! The whole way from an API server to HNS in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::{Input, Settings, Telemetry};
use apiserver::{ApiServer, Config};
use fakes::hns::{FakeHns, Knobs, Objects};
use fakes::objects::{self, Endpoint, NODE, NODE2, Port};
use hcn::{Guid, Kind as ObjectKind, network_type};
use metrics::health::SharedHealth;
use metrics::{Metrics, Options as MetricsOptions};
use source::{ApiConfig, ContentType, SourceEvent, Timings};
use tokio::sync::mpsc;

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
    let hns = hns.clone();
    let connection =
        Connection { open: Arc::new(move || Box::new(hns.clone())), adapters: Arc::new(BTreeMap::new) };
    let families = serve(options(), Duration::from_secs(1), &[IpFamily::V4], &connection);
    let settings = Settings { served_by_hns: true, ..Settings::new(NODE.into()) };
    let telemetry = Telemetry::new(metrics, SharedHealth::new(Duration::from_mins(1)));
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

#[test]
fn the_network_is_named_by_the_configuration_or_the_environment() {
    let variable = || Some("flannel".to_owned());
    assert_eq!(network_name(Some("cbr0"), variable()).unwrap(), "cbr0");
    assert_eq!(network_name(None, variable()).unwrap(), "flannel");
    assert!(network_name(None, None).is_err() && network_name(None, Some(String::new())).is_err());
}
