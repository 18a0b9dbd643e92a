//! The agent against a kernel in memory that fails on demand.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking and says on the way what it tries"
)]

#[path = "../common/mod.rs"]
mod common;
mod telemetry;
mod traffic;
mod turns;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Input, Settings, StartError, Telemetry};
use backend_nftables::{Backend, Config, NftablesTarget, table_name};
use common::{Given, difference, nftables_target, of_nftables, served, service, settings, slice};
use fakes::conntrack::{FakeConntrack, flow};
use fakes::kernel::{FakeKernel, Fault};
use metrics::NftablesMetrics;
use mode::{Planner, Touch};
use model::{Change, Kind, Object, ObjectName, Protocol, Store, Touched, V4};
use netlink::NetlinkError;
use nft::Kernel;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

/// An agent that runs, and what it has been told.
struct Bench {
    kernel: FakeKernel,
    conntrack: FakeConntrack,
    given: Given,
    inputs: Sender<Input>,
    store: Store,
    telemetry: Telemetry,
    of_mode: NftablesMetrics,
    agent: JoinHandle<Result<(), StartError>>,
}

impl Bench {
    fn start(kernel: &FakeKernel) -> Self {
        let connection = kernel.clone();
        Self::start_on(kernel, move || Ok(connection.clone()))
    }

    fn start_on<K: Kernel + 'static>(
        kernel: &FakeKernel,
        open: impl Fn() -> Result<K, NetlinkError> + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(kernel, open, settings())
    }

    fn start_with<K: Kernel + 'static>(
        kernel: &FakeKernel,
        open: impl Fn() -> Result<K, NetlinkError> + Send + Sync + 'static,
        settings: Settings,
    ) -> Self {
        Self::start_planning(kernel, open, settings, Backend::<V4>::new(Config::default()))
    }

    fn start_planning<K: Kernel + 'static>(
        kernel: &FakeKernel,
        open: impl Fn() -> Result<K, NetlinkError> + Send + Sync + 'static,
        settings: Settings,
        planner: impl Planner<V4, Target = NftablesTarget>,
    ) -> Self {
        let (inputs, receiver) = channel(1024);
        let (conntrack, given, telemetry) = (FakeConntrack::new(), Given::default(), common::telemetry());
        let of_mode = of_nftables(&telemetry.metrics);
        let family = served(planner, nftables_target(open), &conntrack, &given, Box::new(of_mode.clone()));
        let agent = tokio::spawn(agent::run(vec![family], settings, telemetry.clone(), receiver, Some));
        Self {
            kernel: kernel.clone(),
            conntrack,
            given,
            inputs,
            store: Store::default(),
            telemetry,
            of_mode,
            agent,
        }
    }

    async fn send(&mut self, change: Change) {
        self.store.apply(change.clone(), &mut Touched::default());
        self.inputs.send(Input::Change(change)).await.unwrap();
    }

    async fn apply(&mut self, object: Object) {
        self.send(Change::Apply(object)).await;
    }

    async fn listed(&mut self) {
        for kind in Kind::ALL {
            self.inputs.send(Input::Listed(kind)).await.unwrap();
        }
    }

    /// What is wrong in the kernel; `None` when it holds what the objects ask for.
    fn difference(&self) -> Option<String> {
        // Not through a connection, which would use up the staged faults.
        difference(&self.store, self.kernel.table(nft::Family::Ip, &table_name()).as_ref())
    }

    #[track_caller]
    fn assert_right(&self) {
        assert_eq!(self.difference(), None);
    }

    /// Tells the agent that somebody else changed its table.
    async fn foreign_change(&self) {
        self.until("the watch begins", |bench| bench.given.touches.lock().unwrap().is_some()).await;
        assert!(self.given.touches.lock().unwrap().as_ref().unwrap().tell(Touch::Foreign("staged")));
    }

    /// Waits for something that the agent does by itself.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "{what}");
    }

    /// Waits until the kernel is right.
    async fn converged(&self) {
        let waiting = async {
            while self.difference().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(outcome.is_ok(), "not converged; left to do:\n{}", self.difference().unwrap_or_default());
    }
}

#[tokio::test]
async fn nothing_is_programmed_before_every_kind_is_complete() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        bench.inputs.send(Input::Listed(kind)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(kernel.applied().len(), 0);
    bench.inputs.send(Input::Listed(Kind::ServiceCidr)).await.unwrap();
    bench.converged().await;
    assert_eq!(kernel.applied().len(), 1, "everything in one transaction");
}

/// Other modes' rules may go only when ours are all there.
#[tokio::test]
async fn the_first_complete_sync_is_told_once_and_not_before_it_succeeded() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let told = |bench: &Bench| bench.given.gone.lock().unwrap().len();
    // The reading passes; the transaction fails twice, with a reading in between.
    kernel.fail_next([None, Some(Fault::Errno(16)), None, Some(Fault::Errno(16))]);
    bench.apply(service(1)).await;
    assert_eq!(told(&bench), 0);
    bench.listed().await;
    bench.until("the first sync is told", |bench| told(bench) > 0).await;
    assert_eq!(kernel.applied().len(), 1);
    bench.assert_right();
    bench.apply(slice(1, &[1])).await;
    bench.converged().await;
    assert_eq!(told(&bench), 1);
}

#[tokio::test]
async fn changes_are_carried_over() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.listed().await;
    for round in 0..20u8 {
        bench.apply(service(round % 3)).await;
        bench.apply(slice(round % 3, &[round, round + 1])).await;
        bench.converged().await;
    }
    bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-1"))).await;
    bench
        .send(Change::Replace { kind: Kind::EndpointSlice, objects: vec![slice(2, &[9])], keep: Vec::new() })
        .await;
    bench.converged().await;
}

#[tokio::test]
async fn a_start_on_what_is_there_already_writes_nothing() {
    let kernel = FakeKernel::new();
    let mut first = Bench::start(&kernel);
    first.apply(service(1)).await;
    first.apply(slice(1, &[1, 2, 3])).await;
    first.listed().await;
    first.converged().await;
    // Leaves the slots in another order than a fresh start would choose.
    first.apply(slice(1, &[1, 3, 4])).await;
    first.apply(slice(1, &[3, 4, 5])).await;
    first.converged().await;
    let written = kernel.applied().len();

    let mut second = Bench::start(&kernel);
    second.apply(service(1)).await;
    second.apply(slice(1, &[3, 4, 5])).await;
    second.listed().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(kernel.applied().len(), written);
    second.assert_right();
    // It knows what is there.
    second.apply(slice(1, &[3, 4, 6])).await;
    second.converged().await;
    assert_eq!(kernel.applied().len(), written + 1);
    assert_eq!(kernel.applied().last().unwrap().element_count(), 3, "a slot and two hairpin entries");
}

#[tokio::test]
async fn a_burst_is_few_transactions() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.listed().await;
    bench.apply(service(1)).await;
    bench.converged().await;
    let before = kernel.applied().len();
    for n in 0..200u8 {
        bench.apply(slice(1, &[n])).await;
    }
    bench.converged().await;
    let transactions = kernel.applied().len() - before;
    assert!(transactions < 100, "{transactions} transactions for a burst of 200 changes");
}

/// Every call fails once, in every way and at every step of a life.
#[tokio::test]
async fn every_failure_is_repaired() {
    // EPERM, ENOENT, EINTR, ENOMEM, EBUSY, EEXIST, EINVAL, ENOBUFS.
    let errnos = [1, 2, 4, 12, 16, 17, 22, 105].map(Fault::Errno);
    for fault in errnos.into_iter().chain([Fault::AnswerLost, Fault::Panic]) {
        for at in 0..8 {
            let kernel = FakeKernel::new();
            kernel.fail_next(std::iter::repeat_n(None, at).chain([Some(fault)]));
            let mut bench = Bench::start(&kernel);
            bench.apply(service(1)).await;
            bench.apply(slice(1, &[1, 2])).await;
            bench.listed().await;
            bench.converged().await;
            bench.apply(slice(1, &[2, 3])).await;
            bench.converged().await;
            bench.apply(service(2)).await;
            bench.converged().await;
        }
    }
}

/// Changes that arrive while the kernel refuses everything are all there once it works again.
#[tokio::test]
async fn nothing_is_lost_during_an_outage() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.listed().await;
    bench.converged().await;
    kernel.fail_next([Some(Fault::Errno(16)); 5]);
    for n in 0..50u8 {
        bench.apply(service(n % 10)).await;
        bench.apply(slice(n % 10, &[n])).await;
    }
    bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-3"))).await;
    bench.converged().await;
}

/// A transaction that the kernel never accepts as a difference is replaced by a new table.
#[tokio::test]
async fn what_can_not_be_mended_is_built_anew() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    kernel.tamper(nft::Family::Ip, &table_name(), |ruleset| {
        let chain = ruleset.chains.get_mut("services").unwrap();
        chain.base =
            Some(nft::BaseChain { kind: nft::ChainType::Filter, hook: nft::Hook::Input, priority: 0 });
    });
    bench.apply(service(2)).await;
    bench.apply(slice(2, &[1])).await;
    // The next failure makes the agent look at the table again.
    kernel.fail_next([Some(Fault::Errno(16))]);
    bench.apply(slice(2, &[2])).await;
    bench.converged().await;
}

/// What somebody else breaks is repaired as soon as the kernel tells, by difference.
#[tokio::test]
async fn foreign_changes_are_repaired() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.listed().await;
    bench.converged().await;
    for _ in 0..3 {
        let before = kernel.applied().len();
        kernel.tamper(nft::Family::Ip, &table_name(), |ruleset| {
            ruleset.chains.get_mut("services").unwrap().rules.clear();
            ruleset.sets.get_mut("endpoints").unwrap().elements.remove(0);
        });
        assert!(bench.difference().is_some());
        bench.foreign_change().await;
        bench.converged().await;
        assert_eq!(kernel.applied().len(), before + 1);
        assert_eq!(kernel.applied().last().unwrap().element_count(), 1);
    }
    kernel.delete_table(nft::Family::Ip, &table_name());
    bench.foreign_change().await;
    bench.converged().await;
}

fn udp(object: Object) -> Object {
    match object {
        Object::Service(mut service) => {
            service.ports[0].protocol = Protocol::Udp;
            Object::Service(service)
        }
        Object::EndpointSlice(mut slice) => {
            slice.ports[0].protocol = Protocol::Udp;
            Object::EndpointSlice(slice)
        }
        other => other,
    }
}

/// Flows to an endpoint that is gone are forgotten after the kernel has the change, also when that takes several tries.
#[tokio::test]
async fn stale_flows_are_forgotten() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    bench.apply(udp(service(1))).await;
    bench.apply(udp(slice(1, &[1, 2]))).await;
    bench.listed().await;
    bench.converged().await;
    let client = |port| std::net::SocketAddr::from(([10, 244, 0, 9], port));
    let to = |last| {
        flow(
            17,
            client(4000 + u16::from(last)),
            ([10, 96, 0, 1], 80).into(),
            ([10, 244, 0, last], 8080).into(),
        )
    };
    bench.conntrack.add(to(1));
    bench.conntrack.add(to(2));
    kernel.fail_next([Some(Fault::Errno(16)); 2]);
    bench.conntrack.fail_next([Some(Fault::Errno(16))]);
    bench.apply(udp(slice(1, &[2, 3]))).await;
    bench.converged().await;
    let forgotten = async {
        while bench.conntrack.deleted().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forgotten).await.unwrap();
    let left: Vec<_> = bench.conntrack.flows().iter().map(|flow| flow.answered_by().to_string()).collect();
    assert_eq!(left, ["10.244.0.2:8080"]);
}

/// Others' rules may have directed flows until they were gone: all are looked at again.
#[tokio::test]
async fn flows_that_old_rules_directed_are_forgotten_once_those_are_gone() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let client = std::net::SocketAddr::from(([10, 244, 0, 9], 4000));
    let to = |last| flow(17, client, ([10, 96, 0, 1], 80).into(), ([10, 244, 0, last], 8080).into());
    bench.conntrack.add(to(8));
    bench.apply(udp(service(1))).await;
    bench.apply(udp(slice(1, &[1]))).await;
    bench.listed().await;
    let deleted = async |number| {
        while bench.conntrack.deleted().len() < number {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // The sweep of the start.
    tokio::time::timeout(Duration::from_secs(10), deleted(1)).await.unwrap();
    bench.conntrack.add(to(7));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.conntrack.deleted().len(), 1, "nothing has said that it is to go");
    let gone = bench.given.gone.lock().unwrap().pop().unwrap();
    assert!(gone());
    tokio::time::timeout(Duration::from_secs(10), deleted(2)).await.unwrap();
}
