//! What went through, read beside the work.

use std::sync::mpsc;

use model::{ObjectName, Protocol, ServicePortName};
use netlink::NetlinkError;
use nft::{Applied, Bytes, Counts, Data, Name, Reading, Transaction};

use super::*;

const FAMILY: nft::Family = nft::Family::Ip;

/// A kernel whose counters can be read only by permission.
struct Held {
    kernel: FakeKernel,
    permissions: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Kernel for Held {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        self.kernel.apply(tx)
    }

    fn read(&mut self, family: nft::Family, table: &Name) -> Result<Reading, NetlinkError> {
        self.kernel.read(family, table)
    }

    fn counts(&mut self, family: nft::Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        self.permissions.lock().unwrap().recv().ok();
        self.kernel.counts(family, table, sets)
    }
}

fn counting(kernel: &FakeKernel, meter: mode::OpenTarget<NftablesTarget>) -> Bench {
    let (conntrack, given, telemetry) = (FakeConntrack::new(), Given::default(), common::telemetry());
    let of_mode = of_nftables(&telemetry.metrics);
    let planner = Backend::<V4>::new(Config::default());
    let connection = kernel.clone();
    let open = nftables_target(move || Ok(connection.clone()));
    let observer = Box::new(of_mode.clone());
    let family = common::served_with(planner, open, Some(meter), &conntrack, &given, observer);
    let (inputs, receiver) = channel(1024);
    let agent = tokio::spawn(agent::run(vec![family], settings(), telemetry.clone(), receiver, Some));
    let (kernel, store) = (kernel.clone(), Store::default());
    Bench { kernel, conntrack, given, inputs, store, telemetry, of_mode, agent }
}

fn open_counting(kernel: &FakeKernel) -> Bench {
    let connection = kernel.clone();
    counting(kernel, nftables_target(move || Ok(connection.clone())))
}

fn port(n: u8) -> ServicePortName {
    let service = ObjectName::new("ns", &format!("svc-{n}"));
    ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp }
}

impl Bench {
    /// New flows to an endpoint.
    fn connect(&self, last: u8, flows: u64) {
        let socket = Bytes::new().addr([10, 244, 0, last].into()).port(8080);
        let (name, endpoints) = (table_name(), Name::from("endpoints"));
        let table = self.kernel.table(FAMILY, &name).unwrap();
        let elements = table.sets[&endpoints].elements.iter();
        let mut elements = elements.filter(|element| element.data == Data::Value(socket));
        self.kernel.count(FAMILY, &name, &endpoints, elements.next().unwrap().key, flows);
    }

    /// What is told of a Service port: new flows, and packets refused and dropped.
    fn told(&self, n: u8) -> Option<(u64, u64, u64)> {
        let told = self.telemetry.traffic();
        let total = told.get(&model::IpFamily::V4)?.ports.get(&port(n))?.flow.total;
        Some((total.connections, total.refused, total.dropped))
    }
}

#[tokio::test]
async fn flows_are_counted_by_service_through_changes_and_repairs() {
    let kernel = FakeKernel::new();
    let mut bench = open_counting(&kernel);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.listed().await;
    bench.converged().await;
    bench.connect(1, 7);
    bench.connect(2, 3);
    bench.until("both endpoints are told", |bench| bench.told(1) == Some((10, 0, 0))).await;

    // Another endpoint takes the slot of the first.
    bench.apply(slice(1, &[2, 3])).await;
    bench.converged().await;
    bench.connect(3, 100);
    bench.until("the new endpoint is told", |bench| bench.told(1) == Some((110, 0, 0))).await;

    // Somebody deletes everything; it is written anew, and counters begin anew.
    kernel.delete_table(FAMILY, &table_name());
    bench.foreign_change().await;
    bench.converged().await;
    bench.connect(3, 5);
    bench.until("what came after is added", |bench| bench.told(1) == Some((115, 0, 0))).await;
}

#[tokio::test]
async fn what_is_turned_away_is_counted() {
    let kernel = FakeKernel::new();
    let mut bench = open_counting(&kernel);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    let key = Bytes::new().addr([10, 96, 0, 1].into()).proto(6).port(80);
    kernel.count(FAMILY, &table_name(), &"no-endpoint-services".into(), key, 9);
    bench.until("refusals are told", |bench| bench.told(1) == Some((0, 9, 0))).await;
    bench.apply(slice(1, &[1])).await;
    bench.converged().await;
    bench.connect(1, 2);
    bench.until("they stay told", |bench| bench.told(1) == Some((2, 9, 0))).await;
}

/// Counters are read over a connection of their own, so changes are made while a reading hangs, and so are questions
/// answered.
#[tokio::test]
async fn no_change_waits_for_a_reading_of_counters() {
    let kernel = FakeKernel::new();
    let (permit, permissions) = mpsc::channel();
    let (connection, permissions) = (kernel.clone(), Arc::new(Mutex::new(permissions)));
    let meter =
        nftables_target(move || Ok(Held { kernel: connection.clone(), permissions: permissions.clone() }));
    let mut bench = counting(&kernel, meter);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    for n in 1..=100 {
        bench.apply(slice(1, &[n])).await;
        bench.converged().await;
    }
    assert_eq!(bench.told(1), None);
    let answer = bench.telemetry.service(ObjectName::new("ns", "svc-1")).await.unwrap();
    assert_eq!(answer.unwrap().families[0].ports[0].traffic, None);
    bench.connect(100, 4);
    drop(permit);
    bench.until("it is told at last", |bench| bench.told(1) == Some((4, 0, 0))).await;
}

/// Each turn of the event loop answers one question, and takes in what has arrived: so a change is in the worker's hands after
/// one answer, however many wait.
#[tokio::test]
async fn a_thousand_questions_hold_up_no_change() {
    let kernel = FakeKernel::new();
    let mut bench = open_counting(&kernel);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    let before = bench.telemetry.overview().await.unwrap().generation;
    let asked: Vec<_> = (0..1000).map(|_| bench.telemetry.overview()).collect();
    bench.apply(slice(1, &[1])).await;
    let mut answered_before = 0;
    for answer in asked {
        let overview = answer.await.unwrap();
        let is_taken_up = overview.generation > before;
        answered_before += usize::from(!is_taken_up);
    }
    assert!(answered_before <= 1, "{answered_before} questions were answered before the change");
    bench.converged().await;
}
