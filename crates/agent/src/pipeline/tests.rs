//! Since when something waits. What is planned is the business of the tests against a kernel in memory.

use std::time::Duration;

use backend_nftables::{Config, Nftables, NodePortAddresses};
use model::{
    AddressKind, Destination, FrontendAddress, Masquerade, ObjectName, Pool, ServicePortName, TrafficPolicy,
    V4, Verdict,
};

use nft::KernelError;

use super::*;

/// A pipeline and its clock.
struct Bench {
    pipeline: Pipeline<Nftables, V4>,
    begin: Instant,
}

fn config(node_port: u8) -> Config {
    let address = std::net::IpAddr::from([192, 168, 0, node_port]);
    Config { node_ports: NodePortAddresses::Within(vec![address.into()]), ..Config::default() }
}

fn frontend(last: u8) -> Frontend<V4> {
    let endpoint = Destination { address: [10, 244, 0, last].into(), port: 80, local: false };
    Frontend {
        key: FrontendKey {
            address: FrontendAddress::Ip([10, 96, 0, 1].into()),
            protocol: Protocol::Tcp,
            port: 80,
        },
        kind: AddressKind::ClusterIp,
        service: ServicePortName { service: name(), port: "".into(), protocol: Protocol::Tcp },
        pool: Pool::new([endpoint].into(), Verdict::Reject),
        policy: TrafficPolicy::Cluster,
        internal_pool: None,
        affinity: None,
        masquerade: Masquerade::Never,
        allowed_sources: None,
        flow_endpoints: [].into(),
    }
}

fn name() -> ServiceName {
    ObjectName::new("ns", "svc")
}

fn refused() -> KernelError {
    KernelError::refused("batch".into(), 1, None)
}

impl Bench {
    fn new() -> Self {
        let begin = Instant::now();
        Self { pipeline: Pipeline::new(config(1), begin), begin }
    }

    /// One that has its rules in the kernel at second 1.
    fn synced() -> Self {
        let mut bench = Self::new();
        assert!(bench.next(0).is_some_and(|job| matches!(job, Job::Read)));
        assert!(bench.report(1, Answer::Read(Ok(None))).is_some());
        bench.applied(1);
        bench
    }

    fn at(&self, second: u64) -> Instant {
        self.begin + Duration::from_secs(second)
    }

    fn next(&mut self, second: u64) -> Option<Job<Nftables>> {
        self.pipeline.next(self.at(second))
    }

    fn report(&mut self, second: u64, answer: Answer<Nftables>) -> Option<Job<Nftables>> {
        let (_, job) = self.pipeline.report(answer, Duration::ZERO, self.at(second), 0.0);
        job
    }

    fn applied(&mut self, second: u64) {
        assert!(self.report(second, Answer::Applied(Ok(None))).is_none());
    }

    fn change(&mut self, second: u64, endpoint: u8) {
        let now = self.at(second);
        self.pipeline.set_service(&name(), vec![frontend(endpoint)], now);
    }

    #[track_caller]
    fn waits_since(&self, second: Option<u64>) {
        assert_eq!(self.pipeline.pending_since(), second.map(|second| self.at(second)));
    }
}

#[test]
fn a_change_waits_until_its_own_commit() {
    let mut bench = Bench::synced();
    bench.waits_since(None);
    bench.change(10, 1);
    assert!(bench.next(11).is_some());
    bench.waits_since(Some(10));
    bench.change(12, 2);
    bench.waits_since(Some(10));
    bench.applied(13);
    bench.waits_since(Some(12));
    assert!(bench.next(14).is_some());
    bench.applied(15);
    bench.waits_since(None);
}

#[test]
fn what_failed_waits_since_it_was_asked_for() {
    let mut bench = Bench::synced();
    bench.change(10, 1);
    assert!(bench.next(11).is_some());
    bench.change(12, 2);
    bench.report(13, Answer::Applied(Err(refused())));
    bench.waits_since(Some(10));
    // One reading takes up both.
    assert!(bench.next(20).is_some_and(|job| matches!(job, Job::Read)));
    assert!(bench.report(21, Answer::Read(Ok(None))).is_some());
    bench.waits_since(Some(10));
    bench.applied(22);
    bench.waits_since(None);
}

#[test]
fn a_failure_that_nobody_asked_for_waits_since_it_happened() {
    let mut bench = Bench::synced();
    let hour = 3600;
    assert!(bench.next(hour).is_some_and(|job| matches!(job, Job::Read)), "an audit");
    bench.waits_since(None);
    bench.report(hour + 1, Answer::Read(Err(refused())));
    bench.waits_since(Some(hour + 1));
    assert!(bench.next(hour + 2).is_some());
    bench.report(hour + 3, Answer::Read(Err(refused())));
    bench.waits_since(Some(hour + 1));
    assert!(bench.next(hour + 20).is_some());
    // Everything is gone from the kernel.
    assert!(bench.report(hour + 21, Answer::Read(Ok(None))).is_some());
    bench.waits_since(Some(hour + 1));
    bench.applied(hour + 22);
    bench.waits_since(None);
}

#[test]
fn a_foreign_change_waits_for_its_repair() {
    let mut bench = Bench::synced();
    let now = bench.at(10);
    bench.pipeline.doubt(now);
    bench.waits_since(Some(10));
    assert!(bench.next(11).is_some_and(|job| matches!(job, Job::Read)));
    bench.waits_since(Some(10));
    // Another one, while the table is read.
    let now = bench.at(12);
    bench.pipeline.doubt(now);
    assert!(bench.report(13, Answer::Read(Ok(None))).is_some());
    bench.waits_since(Some(10));
    bench.applied(14);
    bench.waits_since(Some(12));
}

#[test]
fn what_is_as_it_was_does_not_wait() {
    let mut bench = Bench::synced();
    let (first, second) = (config(1), config(2));
    let now = bench.at(10);
    bench.pipeline.set_config(second.clone(), now);
    bench.waits_since(Some(10));
    bench.pipeline.set_config(first.clone(), now);
    bench.waits_since(None);
    // The same while a transaction is in flight.
    bench.change(20, 1);
    assert!(bench.next(20).is_some());
    let now = bench.at(21);
    bench.pipeline.set_config(second, now);
    bench.pipeline.set_config(first, now);
    bench.applied(22);
    bench.waits_since(None);
    // And a Service that changed back is found to need nothing.
    bench.change(30, 2);
    bench.change(31, 1);
    bench.waits_since(Some(30));
    assert!(bench.next(32).is_none());
    bench.waits_since(None);
}

#[test]
fn a_request_waits_for_a_look_at_the_kernel_even_if_there_is_nothing_to_do() {
    let mut bench = Bench::new();
    bench.waits_since(None);
    let now = bench.at(5);
    bench.pipeline.request(now);
    assert!(bench.next(6).is_some());
    bench.waits_since(Some(5));
    assert!(bench.report(7, Answer::Read(Ok(None))).is_some());
    bench.waits_since(Some(5));
    bench.applied(8);
    bench.waits_since(None);
}
