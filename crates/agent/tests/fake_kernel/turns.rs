//! The event loop's turns, and what it tells of itself and of Services.

use std::net::Ipv4Addr;

use agent::snapshot::{AddressState, Usage, Wanted};
use agent::{Pods, StartError};
use backend_nftables::Outcome;
use mode::{Cause, NeedsReading, PlanOf, Settled, StepResults};
use model::{FrontendKey, Kind, Node, Object, RuleSettings, Table};
use nft::Ruleset;
use tokio::time::Instant;

use super::common::{NODE, plain_service};
use super::*;

const SERVICES: u16 = 1000;

fn many(n: u16) -> Object {
    let ip = Ipv4Addr::from(u32::from_be_bytes([10, 96, 1, 0]) + u32::from(n));
    Object::Service(plain_service(ObjectName::new("ns", &format!("svc-{n}")), ip))
}

fn endpoints(n: u16, version: u8) -> Object {
    let Object::EndpointSlice(slice) = slice(0, &[version, version + 1, version + 2]) else { unreachable!() };
    Object::EndpointSlice(model::EndpointSlice {
        name: ObjectName::new("ns", &format!("svc-{n}-a")),
        service: ObjectName::new("ns", &format!("svc-{n}")),
        ..slice
    })
}

fn listing(kind: Kind, objects: Vec<Object>) -> Change {
    Change::Replace { kind, objects, keep: Vec::new() }
}

fn node(zone: &str) -> Object {
    Object::Node(Node {
        name: ObjectName::new("", NODE),
        zone: Some(zone.into()),
        addresses: [[192, 168, 0, 1].into()].into(),
        pod_cidrs: Box::default(),
        is_deleting: false,
        is_scaled_down: false,
        taints: Box::default(),
    })
}

/// Mode nftables, which counts plans of everything: those that were made on the worker's thread, and those for which the event
/// loop had to wait.
struct Counting(Backend<V4>);

static ON_WORKER: Mutex<usize> = Mutex::new(0);
static ON_LOOP: Mutex<usize> = Mutex::new(0);

impl Planner<V4> for Counting {
    const NAME: &'static str = "nftables";
    type Settings = Config;
    type Target = NftablesTarget;
    type Held = Outcome<V4>;

    fn settings(&self, rules: &RuleSettings) -> Config {
        self.0.settings(rules)
    }

    fn held_settings(&self) -> Option<&Config> {
        self.0.held_settings()
    }

    fn plan(
        &self,
        table: &Table<V4>,
        settings: &Config,
        cause: Cause<'_, V4, Option<Ruleset>>,
    ) -> Result<PlanOf<Self, V4>, NeedsReading> {
        if cause.is_whole() {
            let is_on_worker = std::thread::current().name() == Some("kernel-ip");
            *if is_on_worker { &ON_WORKER } else { &ON_LOOP }.lock().unwrap() += 1;
        }
        Planner::plan(&self.0, table, settings, cause)
    }

    fn detached(&self) -> Self {
        Self(self.0.detached())
    }

    fn settle(&mut self, held: Outcome<V4>, results: StepResults<NftablesTarget>) -> Settled<V4> {
        self.0.settle(held, results)
    }

    fn rules(&self, key: &FrontendKey<V4>) -> Vec<mode::Rule> {
        self.0.rules(key)
    }
}

/// Whatever goes wrong around it, the loop does a limited piece of work in a turn: it looks at some Services, and never compares
/// the whole table.
#[tokio::test]
async fn turns_are_bounded_under_every_fault() {
    let faults = [1, 4, 12, 16, 105].map(Fault::Errno).into_iter().chain([Fault::AnswerLost, Fault::Panic]);
    let kernel = FakeKernel::new();
    let (connection, planner) = (kernel.clone(), Counting(Backend::new(Config::default())));
    let mut bench = Bench::start_planning(&kernel, move || Ok(connection.clone()), settings(), planner);
    bench.send(listing(Kind::Service, (0..SERVICES).map(many).collect())).await;
    bench.send(listing(Kind::EndpointSlice, (0..SERVICES).map(|n| endpoints(n, 1)).collect())).await;
    bench.listed().await;
    bench.converged().await;
    for (version, fault) in (2..).zip(faults) {
        kernel.fail_next([None, Some(fault), None, Some(fault)]);
        bench.conntrack.fail_next([Some(fault)]);
        // Every Service at once, by a listing, and by the Node; somebody else at work; and somebody who asks.
        let relisted = (0..SERVICES).map(|n| endpoints(n, version)).collect();
        bench.send(listing(Kind::EndpointSlice, relisted)).await;
        bench.apply(node(&format!("zone-{version}"))).await;
        kernel.tamper(nft::Family::Ip, &table_name(), |ruleset| {
            ruleset.chains.get_mut("services").unwrap().rules.clear();
        });
        bench.foreign_change().await;
        let page = bench.telemetry.services(Wanted::default()).await.unwrap();
        assert_eq!(page.services.len(), agent::snapshot::MAX_PAGE);
        bench.until("it is right again", Bench::right_on_the_node).await;
    }
    let turns = &bench.telemetry.metrics.loop_turn;
    eprintln!("longest turn: {:?}; most Services in one: {}", turns.longest(), turns.most_services());
    assert!(turns.most_services() <= 256, "{}", turns.most_services());
    let (on_worker, on_loop) = (*ON_WORKER.lock().unwrap(), *ON_LOOP.lock().unwrap());
    assert!(on_worker > 7 && on_loop == 0, "{on_worker} on the worker, {on_loop} on the loop");
}

impl Bench {
    /// As [`Bench::difference`], for a node with an address.
    fn right_on_the_node(&self) -> bool {
        let report = self.telemetry.health.lock().report(Instant::now());
        report.families.values().all(|family| family.pending_since.is_none())
            && self.kernel.table(nft::Family::Ip, &table_name()).is_some_and(|ruleset| {
                let endpoints = &ruleset.sets["endpoints"].elements;
                !ruleset.chains["services"].rules.is_empty() && endpoints.len() == usize::from(SERVICES) * 3
            })
    }
}

/// What has no chance is said once, and ends the program.
#[tokio::test]
async fn a_start_that_can_not_succeed_ends() {
    let kernel = FakeKernel::new();
    kernel.fail_next([Some(Fault::Errno(1)); 100]);
    let mut bench = Bench::start(&kernel);
    bench.apply(service(1)).await;
    bench.listed().await;
    let ended = tokio::time::timeout(Duration::from_secs(30), &mut bench.agent).await.unwrap().unwrap();
    assert!(matches!(ended, Err(StartError::Refused(_))), "{ended:?}");
}

/// A later refusal of the kind does not end what serves.
#[tokio::test]
async fn what_once_served_goes_on_trying() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    kernel.fail_next([Some(Fault::Errno(1)); 8]);
    bench.apply(service(2)).await;
    bench.converged().await;
    assert!(!bench.agent.is_finished());
}

/// While the Node's pod CIDRs are waited for, nothing is expected to be in force; what waits begins to wait when they come.
#[tokio::test(start_paused = true)]
async fn waiting_for_pod_cidrs_is_healthy_until_it_ends_the_program() {
    let kernel = FakeKernel::new();
    let connection = kernel.clone();
    let wait = Settings { pods: Pods::NodeCidr, ..settings() };
    let mut bench = Bench::start_with(&kernel, move || Ok(connection.clone()), wait);
    bench.apply(service(1)).await;
    bench.apply(node("zone-a")).await;
    bench.listed().await;
    for _ in 0..32 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(bench.telemetry.health.lock().report(Instant::now()).healthy);
        bench.apply(slice(1, &[1])).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), &mut bench.agent).await.unwrap().unwrap();
    assert!(matches!(ended, Err(StartError::Node(_))), "{ended:?}");
}

/// Who asks gets values.
#[tokio::test]
async fn services_and_changes_are_told_as_values() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let overview = bench.telemetry.overview().await.unwrap();
    assert!(!overview.is_listed && overview.families.iter().all(|family| !family.is_known));
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    bench.until("the start", |bench| bench.pending_since().is_none()).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.apply(Object::Service(plain_service(ObjectName::new("ns", "svc-9"), [10, 96, 0, 1].into()))).await;
    bench.converged().await;
    bench.until("the change", |bench| bench.pending_since().is_none()).await;

    let service = bench.telemetry.service(ObjectName::new("ns", "svc-1")).await.unwrap().unwrap();
    let family = &service.families[0];
    let port = &family.ports[0];
    assert_eq!((port.service_port.as_str(), port.protocol.as_str()), ("ns/svc-1:http", "TCP"));
    assert_eq!(port.addresses[0].state, AddressState::InForce);
    assert!(port.addresses[0].rules.iter().any(|rule| rule.place == "map service-ips"), "{port:?}");
    let endpoints: Vec<_> =
        port.endpoints.iter().map(|e| (e.is_local, e.is_ready, e.uses[0].usage)).collect();
    assert_eq!(endpoints, [(true, true, Usage::Serves); 2]);
    assert!(family.last_change.as_ref().is_some_and(|change| change.latency_seconds.is_some()));

    let lost = bench.telemetry.service(ObjectName::new("ns", "svc-9")).await.unwrap().unwrap();
    let winner = "ns/svc-1:http".to_owned();
    assert_eq!(lost.families[0].ports[0].addresses[0].state, AddressState::Lost { winner: winner.clone() });
    assert!(bench.telemetry.service(ObjectName::new("ns", "none")).await.unwrap().is_none());
    for (wanted, names) in [
        (Wanted { after: Some(ObjectName::new("ns", "svc-1")), ..Wanted::default() }, &["svc-9"][..]),
        (Wanted { address: Some([10, 96, 0, 1].into()), ..Wanted::default() }, &["svc-1", "svc-9"]),
        (Wanted { address: Some([10, 244, 0, 1].into()), ..Wanted::default() }, &["svc-1"]),
        (Wanted { address: Some([10, 96, 0, 99].into()), node_port: Some(1), after: None }, &[]),
    ] {
        let page = bench.telemetry.services(wanted.clone()).await.unwrap();
        let found: Vec<_> = page.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!((found.as_slice(), page.next), (names, None), "{wanted:?}");
    }

    let overview = bench.telemetry.overview().await.unwrap();
    let state = &overview.families[0];
    assert!(overview.is_listed && state.is_known && state.was_synced && state.waiting_seconds.is_none());
    assert_eq!((state.family.as_str(), state.mode.as_str(), state.frontends), ("IPv4", "nftables", 1));
    assert_eq!((overview.services, overview.conflicts.len()), (2, 1));
    assert_eq!(overview.conflicts[0].winner, winner);
    assert!(overview.recent_changes.iter().any(|change| change.name == "svc-1"));
}

/// A sweep that panics is made again.
#[tokio::test]
async fn panics_of_a_sweep_are_survived() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let to = |last| {
        let client = ([10, 244, 0, 9], 4000 + u16::from(last));
        flow(17, client.into(), ([10, 96, 0, 1], 80).into(), ([10, 244, 0, last], 8080).into())
    };
    bench.conntrack.add(to(7));
    bench.conntrack.fail_next([Some(Fault::Panic)]);
    bench.apply(udp(service(1))).await;
    bench.apply(udp(slice(1, &[1]))).await;
    bench.listed().await;
    bench.until("the flow is forgotten", |bench| bench.conntrack.deleted().len() == 1).await;
    assert!(!bench.agent.is_finished());
}
