//! What the agent tells of itself.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use model::view::{HealthCheck, HealthChecks};
use model::{EndpointSlice, IpFamily, Node, Object, Service, SliceEndpoints, TrafficPolicy};
use netlink::NetlinkError;
use nft::{Applied, Counts, Name, Reading, Transaction};
use tokio::time::Instant;

use super::common::NODE;
use super::*;

/// A kernel whose transactions wait for a permission each.
struct Slow {
    kernel: FakeKernel,
    permissions: Arc<Mutex<mpsc::Receiver<()>>>,
    asked: Arc<AtomicUsize>,
}

/// Where permissions are given.
struct Permit {
    sender: mpsc::Sender<()>,
    /// How many were asked for.
    asked: Arc<AtomicUsize>,
}

impl Permit {
    fn send(&self, permission: ()) -> Result<(), mpsc::SendError<()>> {
        self.sender.send(permission)
    }
}

impl Kernel for Slow {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.permissions.lock().unwrap().recv().unwrap();
        self.kernel.apply(tx)
    }

    fn read(&mut self, family: nft::Family, table: &Name) -> Result<Reading, NetlinkError> {
        self.kernel.read(family, table)
    }

    fn counts(&mut self, family: nft::Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        self.kernel.counts(family, table, sets)
    }
}

impl Bench {
    fn start_slow(kernel: &FakeKernel) -> (Self, Permit) {
        let (sender, permissions) = mpsc::channel();
        let permit = Permit { sender, asked: Arc::default() };
        let asked = permit.asked.clone();
        let (connection, permissions) = (kernel.clone(), Arc::new(Mutex::new(permissions)));
        let open = move || {
            let (kernel, permissions) = (connection.clone(), permissions.clone());
            Ok(Slow { kernel, permissions, asked: asked.clone() })
        };
        (Self::start_on(kernel, open), permit)
    }

    /// Since when something has been waiting for the kernel.
    pub(super) fn pending_since(&self) -> Option<Instant> {
        let report = self.telemetry.health.lock().report(Instant::now());
        report.families.get(&IpFamily::V4).and_then(|family| family.pending_since)
    }
}

/// A change that arrives during a commit is not excused by that commit's success.
#[tokio::test]
async fn what_waits_is_known_until_the_kernel_has_it() {
    let kernel = FakeKernel::new();
    let (mut bench, permit) = Bench::start_slow(&kernel);
    assert_eq!(bench.pending_since(), None, "nothing is expected before all is listed");
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.until("the first sync", |_| permit.asked.load(Ordering::SeqCst) == 1).await;
    let first = bench.pending_since().unwrap();
    let report = bench.telemetry.health.lock().report(first + Duration::from_mins(1));
    assert!(!report.healthy && !report.started, "a kernel that does not answer shows: {report:?}");

    let before_second = Instant::now();
    bench.apply(slice(1, &[1])).await;
    let events = || bench.telemetry.metrics.changes.endpoints_total.get();
    bench.until("the second change was taken in", |_| events() == 1).await;
    assert_eq!(bench.pending_since(), Some(first));
    permit.send(()).unwrap();
    bench.until("the first commit", |bench| bench.pending_since() != Some(first)).await;
    let second = bench.pending_since().unwrap();
    assert!(second >= before_second, "the second change has been waiting since it came");
    assert!(bench.telemetry.health.lock().report(Instant::now()).started);
    permit.send(()).unwrap();
    bench.until("the second commit", |bench| bench.pending_since().is_none()).await;
    bench.assert_right();
}

#[tokio::test]
async fn failures_wait_for_their_repair_and_are_counted() {
    let kernel = FakeKernel::new();
    kernel.fail_next([Some(Fault::Errno(16)); 3]);
    let mut bench = Bench::start(&kernel);
    bench.listed().await;
    let metrics = bench.telemetry.metrics.family(IpFamily::V4);
    bench.until("two failures", |bench| bench.of_mode.sync_failures.get() >= 2).await;
    assert!(bench.pending_since().is_some());
    bench.converged().await;
    bench.until("all is well", |bench| bench.pending_since().is_none()).await;
    assert_eq!(metrics.read_failures.get(), 3);
    assert_eq!(metrics.commit_failures.get() + metrics.transactions_failed.get(), 0);

    kernel.fail_next([Some(Fault::Errno(12))]);
    bench.apply(service(1)).await;
    bench.converged().await;
    bench.until("all is well", |bench| bench.pending_since().is_none()).await;
    assert_eq!((metrics.commit_failures.get(), metrics.transactions_failed.get()), (1, 1));
    assert_eq!(bench.of_mode.sync_failures.get(), 4);
    // The repair of a failure is no drift.
    assert_eq!(metrics.drift_repairs.get(), 0);
}

#[tokio::test]
async fn progress_is_counted() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let metrics = bench.telemetry.metrics.family(IpFamily::V4);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    bench.until("the start", |_| metrics.full_sync_duration.get_sample_count() == 1).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.converged().await;
    bench.until("the change", |_| metrics.partial_sync_duration.get_sample_count() == 1).await;
    kernel.delete_table(nft::Family::Ip, &table_name());
    bench.foreign_change().await;
    bench.converged().await;
    bench.until("the repair", |_| metrics.drift_repairs.get() == 1).await;
    assert_eq!(metrics.sync_duration.get_sample_count(), 3);
    assert_eq!(metrics.transactions_ok.get(), 3);
    assert_eq!(bench.of_mode.kernel_transaction.get_sample_count(), 3);
    assert_eq!(metrics.commit_latency.get_sample_count(), 2, "a repair is no change");
    let elements: usize = kernel.applied().iter().map(Transaction::element_count).sum();
    assert_eq!(metrics.elements_written.get(), elements as u64);
    assert!(metrics.last_synced.get() >= metrics.last_queued.get());
    let telemetry = bench.telemetry.clone();
    let changes = &telemetry.metrics.changes;
    assert_eq!((changes.services_total.get(), changes.endpoints_total.get()), (1, 1));
    bench
        .until("nothing waits", |_| changes.services_pending.get() + changes.endpoints_pending.get() == 0)
        .await;

    let before = metrics.last_queued.get();
    bench.apply(service(1)).await;
    bench.until("the event", |_| changes.services_total.get() == 2).await;
    bench.until("nothing waits", |_| changes.services_pending.get() == 0).await;
    assert!(metrics.last_queued.get() <= before, "nothing differs, so nothing is asked for");
}

fn triggered(object: Object, time: SystemTime) -> Object {
    let Object::EndpointSlice(slice) = object else { unreachable!() };
    Object::EndpointSlice(EndpointSlice { trigger_time: Some(time), ..slice })
}

#[tokio::test]
async fn programming_latency_is_measured_once_the_kernel_has_the_change() {
    let kernel = FakeKernel::new();
    let (mut bench, permit) = Bench::start_slow(&kernel);
    let latency = bench.telemetry.metrics.family(IpFamily::V4).network_programming;
    bench.apply(service(1)).await;
    // From before the program's start: it would measure how long that was ago.
    bench.apply(triggered(slice(1, &[1]), SystemTime::now() - Duration::from_hours(1))).await;
    bench.listed().await;
    permit.send(()).unwrap();
    bench.converged().await;
    let future = SystemTime::now() + Duration::from_secs(5);
    bench.apply(triggered(slice(1, &[2]), future)).await;
    bench.until("it waits", |bench| bench.pending_since().is_some()).await;
    assert_eq!(latency.get_sample_count(), 0);
    // It fails, and is not lost.
    kernel.fail_next([Some(Fault::Errno(12))]);
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    bench.converged().await;
    bench.until("the sample", |_| latency.get_sample_count() == 1).await;
    assert!(latency.get_sample_sum() <= 0.0, "a clock that is ahead makes no negative times");
    // The same endpoints for another reason: the kernel has them already.
    bench.apply(triggered(slice(1, &[2]), SystemTime::now())).await;
    bench.until("the sample", |_| latency.get_sample_count() == 2).await;
}

fn checked(n: u8) -> Object {
    let Object::Service(service) = service(n) else { unreachable!() };
    Object::Service(Service {
        health_check_node_port: Some(32000),
        external_policy: TrafficPolicy::Local,
        ..service
    })
}

#[tokio::test]
async fn health_checks_are_published_after_successes() {
    let kernel = FakeKernel::new();
    let (mut bench, permit) = Bench::start_slow(&kernel);
    let checks = bench.telemetry.health_checks.subscribe();
    let published = |endpoints| {
        let check = HealthCheck { port: 32000, local_endpoints: endpoints };
        let services = [(ObjectName::new("ns", "svc-1"), check)].into();
        Some(HealthChecks { ranges: Vec::new(), services })
    };
    let now = || checks.borrow().get(&IpFamily::V4).cloned();
    bench.apply(checked(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.listed().await;
    bench.until("it waits", |bench| bench.pending_since().is_some()).await;
    assert_eq!(now(), None);
    permit.send(()).unwrap();
    bench.until("two endpoints", |_| now() == published(2)).await;
    bench.apply(slice(1, &[])).await;
    permit.send(()).unwrap();
    bench.until("no endpoint", |_| now() == published(0)).await;
    bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-1"))).await;
    permit.send(()).unwrap();
    bench.until("no service", |_| now() == Some(HealthChecks::default())).await;
}

fn node(is_deleting: bool) -> Object {
    Object::Node(Node {
        name: ObjectName::new("", NODE),
        zone: None,
        addresses: Box::default(),
        pod_cidrs: Box::default(),
        is_deleting,
        is_scaled_down: false,
        taints: Box::default(),
    })
}

#[tokio::test]
async fn the_node_decides_about_eligibility() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let is_eligible = |bench: &Bench| bench.telemetry.health.lock().report(Instant::now()).node_eligible;
    assert!(!is_eligible(&bench));
    // Also before everything is listed.
    bench.apply(node(false)).await;
    bench.until("eligible", is_eligible).await;
    bench.listed().await;
    bench.apply(node(true)).await;
    bench.until("deleting", |bench| !is_eligible(bench)).await;
    bench.apply(node(false)).await;
    bench.until("eligible", is_eligible).await;
    bench.send(Change::Delete(Kind::Node, ObjectName::new("", NODE))).await;
    bench.until("gone", |bench| !is_eligible(bench)).await;
}

#[tokio::test]
async fn conflicts_and_missing_local_endpoints_are_gauges() {
    let kernel = FakeKernel::new();
    let mut bench = Bench::start(&kernel);
    let metrics = bench.telemetry.metrics.family(IpFamily::V4);
    bench.listed().await;
    let Object::Service(first) = service(1) else { unreachable!() };
    let rival =
        Service { name: ObjectName::new("ns", "svc-2"), internal_policy: TrafficPolicy::Local, ..first };
    bench.apply(service(1)).await;
    bench.apply(Object::Service(rival)).await;
    bench.until("a conflict", |_| metrics.frontend_conflicts.get() == 1).await;
    let Object::EndpointSlice(mut elsewhere) = slice(2, &[1]) else { unreachable!() };
    if let SliceEndpoints::V4(endpoints) = &mut elsewhere.endpoints {
        endpoints[0].node = Some("node-2".into());
    }
    bench.apply(Object::EndpointSlice(elsewhere)).await;
    bench.until("no local endpoint", |_| metrics.no_local_internal.get() == 1).await;
    bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-2"))).await;
    bench
        .until("both are over", |_| {
            metrics.no_local_internal.get() == 0 && metrics.frontend_conflicts.get() == 0
        })
        .await;
}

/// Without anything to do, the loop shows that it turns; a loop that has stopped is found out.
#[tokio::test(start_paused = true)]
async fn an_idle_loop_stays_healthy_and_a_dead_one_does_not() {
    let bench = Bench::start(&FakeKernel::new());
    tokio::time::sleep(Duration::from_mins(10)).await;
    let health = bench.telemetry.health.clone();
    assert!(health.lock().report(Instant::now()).healthy);
    // The agent ends with its source.
    drop(bench);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(health.lock().report(Instant::now()).healthy);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!health.lock().report(Instant::now()).healthy);
}
