//! What the agent tells people, and how long it waits for what it needs of the Node.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking and says on the way what it tries; not all that tests share is used here"
)]

mod common;

use std::time::Duration;

use agent::{Conflict, Input, Notice, Notices, Pods, Settings, StartError};
use common::{NODE, plain_service, served_nftables, telemetry};
use fakes::kernel::{FakeKernel, Fault};
use model::{Change, IpFamily, Kind, Node, Object, ObjectName, Protocol, Service, Uid};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio::task::JoinHandle;

const UID: &str = "0a1b2c3d-4e5f-4789-abcd-ef0123456789";

/// A Service with this cluster IP.
fn service(name: &str, ip: [u8; 4]) -> Object {
    let service = plain_service(ObjectName::new("ns", name), ip.into());
    Object::Service(Service { uid: Uid::parse(UID), ..service })
}

fn node(pod_cidrs: &[&str]) -> Object {
    Object::Node(Node {
        name: ObjectName::new("", NODE),
        zone: None,
        addresses: [[192, 168, 0, 1].into()].into(),
        pod_cidrs: pod_cidrs.iter().map(|net| net.parse().unwrap()).collect(),
        is_deleting: false,
        is_scaled_down: false,
        taints: Box::default(),
    })
}

struct Bench {
    kernel: FakeKernel,
    inputs: Sender<Input>,
    notices: UnboundedReceiver<Notice>,
    agent: JoinHandle<Result<(), StartError>>,
}

impl Bench {
    fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let (sender, notices) = unbounded_channel();
        let mut settings = Settings { notices: Notices::to(sender), ..Settings::new(NODE.into()) };
        change(&mut settings);
        let (inputs, receiver) = channel(1024);
        let kernel = FakeKernel::new();
        let connection = kernel.clone();
        let families = served_nftables(move || Ok(connection.clone()));
        let agent = tokio::spawn(agent::run(families, settings, telemetry(), receiver, Some));
        Self { kernel, inputs, notices, agent }
    }

    async fn send(&self, change: Change) {
        self.inputs.send(Input::Change(change)).await.unwrap();
    }

    async fn apply(&self, object: Object) {
        self.send(Change::Apply(object)).await;
    }

    async fn listed(&self) {
        for kind in Kind::ALL {
            self.inputs.send(Input::Listed(kind)).await.unwrap();
        }
    }

    /// The next notice, which must come.
    async fn next(&mut self) -> Notice {
        let next = tokio::time::timeout(Duration::from_secs(30), self.notices.recv()).await;
        next.expect("a notice in time").expect("an agent that runs")
    }

    async fn programmed(&self) {
        let programmed = async {
            while self.kernel.applied().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), programmed).await.expect("a transaction");
    }
}

#[tokio::test]
async fn conflicts_are_told_when_they_begin_and_end() {
    let mut bench = Bench::start(|_| {});
    bench.apply(service("b", [10, 96, 0, 1])).await;
    bench.apply(service("a", [10, 96, 0, 1])).await;
    bench.listed().await;
    assert_eq!(bench.next().await, Notice::Node(None));
    let Notice::ConflictBegan(conflict) = bench.next().await else { panic!("a conflict") };
    let Conflict { family, address, protocol, port, ref loser, uid, ref winner } = conflict;
    assert_eq!(
        (family, address, protocol, port),
        (IpFamily::V4, Some([10, 96, 0, 1].into()), Protocol::Tcp, 80)
    );
    assert_eq!((loser.service.to_string(), winner.service.to_string()), ("ns/b".into(), "ns/a".into()));
    assert_eq!(uid, Uid::parse(UID));
    // The same again is no news; nor is what goes and comes within a listing.
    bench.apply(service("b", [10, 96, 0, 1])).await;
    let objects = vec![service("c", [10, 96, 0, 1]), service("b", [10, 96, 0, 2])];
    bench.send(Change::Replace { kind: Kind::Service, objects, keep: Vec::new() }).await;
    let Notice::ConflictEnded(ended) = bench.next().await else { panic!("an end") };
    assert_eq!(ended, Conflict { uid: ended.uid, ..conflict });
    bench.apply(service("a", [10, 96, 0, 2])).await;
    assert!(
        matches!(bench.next().await, Notice::ConflictBegan(conflict) if *conflict.winner.service.name == *"a")
    );
    assert!(bench.notices.try_recv().is_err());
}

#[tokio::test]
async fn failing_syncs_are_told_once_they_last() {
    let mut bench = Bench::start(|settings| settings.sync_period = Duration::from_millis(100));
    bench.kernel.fail_next([Some(Fault::Errno(16)); 7]);
    bench.listed().await;
    assert_eq!(bench.next().await, Notice::Node(None));
    let Notice::SyncsFail { family: IpFamily::V4, lasting, error } = bench.next().await else {
        panic!("a failure")
    };
    assert!(lasting > Duration::from_millis(200), "{lasting:?}");
    assert!(!error.is_empty());
    let Notice::SyncsWork { family: IpFamily::V4, lasted } = bench.next().await else { panic!("an end") };
    assert!(lasted > lasting);
}

#[tokio::test]
async fn short_failures_are_not_told() {
    let mut bench = Bench::start(|_| {});
    bench.kernel.fail_next([Some(Fault::Errno(16)); 2]);
    bench.listed().await;
    bench.programmed().await;
    assert_eq!(bench.next().await, Notice::Node(None));
    assert!(bench.notices.try_recv().is_err());
}

#[tokio::test]
async fn rules_wait_for_pod_cidrs_only_where_they_are_needed() {
    let bench = Bench::start(|_| {});
    bench.listed().await;
    bench.programmed().await;

    let mut bench = Bench::start(|settings| settings.pods = Pods::NodeCidr);
    bench.listed().await;
    assert_eq!(bench.next().await, Notice::Node(None));
    bench.apply(node(&[])).await;
    assert!(matches!(bench.next().await, Notice::Node(Some(_))));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.kernel.applied().len(), 0);
    bench.apply(node(&["10.244.7.0/24"])).await;
    bench.programmed().await;
    let text = |bench: &Bench| bench.kernel.applied().last().unwrap().to_string();
    assert!(text(&bench).contains("10.244.7.0/24"), "{}", text(&bench));
    // A change is followed while it runs; a deletion changes nothing.
    bench.apply(node(&["10.244.8.0/24"])).await;
    let followed = async {
        while !text(&bench).contains("10.244.8.0/24") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), followed).await.expect("the new range");
    let n_applied = bench.kernel.applied().len();
    bench.send(Change::Delete(Kind::Node, ObjectName::new("", NODE))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.kernel.applied().len(), n_applied);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_comes_ends_the_program_where_it_is_needed() {
    for (object, expected) in [
        (None, "timeout waiting for node \"node-1\" to exist"),
        (Some(node(&[])), "timeout waiting for PodCIDR allocation on node \"node-1\""),
    ] {
        let bench = Bench::start(|settings| settings.pods = Pods::NodeCidr);
        let begin = tokio::time::Instant::now();
        if let Some(object) = object {
            bench.apply(object).await;
        }
        bench.listed().await;
        let error = bench.agent.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(begin.elapsed().as_secs(), 330);
        assert_eq!(bench.kernel.applied().len(), 0);
    }
}
