//! The agent in mode iptables, on tables in memory that fail on demand.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking; not all that tests share is used here"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use agent::{Input, Telemetry};
use backend_iptables::{Backend, Config, Extent, IptablesPlanner, IptablesTarget, NodePortAddresses, PREFIX};
use common::{Given, NODE, served, service, settings, slice};
use fakes::conntrack::FakeConntrack;
use fakes::iptables::{FakeIptables, Fault};
use iptables::{Saved, TableName};
use metrics::health::SharedHealth;
use metrics::{IptablesMetrics, Metrics, Options};
use mode::Touch;
use model::view::{ThisNode, frontends};
use model::{Change, IpFamily, Kind, Object, ObjectName, Store, Table, Touched, V4};
use tokio::sync::mpsc::{Sender, channel};

/// An agent that runs, and what it has been told.
struct Bench {
    tables: FakeIptables,
    given: Given,
    inputs: Sender<Input>,
    store: Store,
    of_mode: IptablesMetrics,
}

/// Rules of somebody else, one of them in a chain that we write to as well.
const OTHERS: [(&str, &str); 2] = [("OTHERS", "-j RETURN"), ("PREROUTING", "-s 192.0.2.0/24 -j OTHERS")];

impl Bench {
    /// On empty tables but for somebody else's rules.
    fn start(faults: impl IntoIterator<Item = Option<Fault>>) -> Self {
        let tables = FakeIptables::new();
        tables.tamper(TableName::Nat, |chains| {
            for (chain, rule) in OTHERS {
                chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
        });
        tables.fail_next(faults);
        let (inputs, receiver) = channel(1024);
        let (given, connection) = (Given::default(), tables.clone());
        let metrics = Arc::new(Metrics::new(&Options::default()));
        let of_mode = IptablesMetrics::register(&metrics)(IpFamily::V4);
        let open: mode::OpenTarget<IptablesTarget> =
            Arc::new(move || Ok(IptablesTarget(Box::new(connection.clone()))));
        let (conntrack, planner) = (FakeConntrack::new(), IptablesPlanner::<V4>::new(true));
        let family = served(planner, open, &conntrack, &given, Box::new(of_mode.clone()));
        let telemetry = Telemetry::new(metrics, SharedHealth::new(Duration::from_mins(1)));
        tokio::spawn(agent::run(vec![family], settings(), telemetry, receiver, Some));
        Self { tables, given, inputs, store: Store::default(), of_mode }
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

    /// What the tables hold. Not through a connection, which would use up the staged faults.
    fn saved(&self) -> Saved {
        let mut saved = Saved::default();
        for table in TableName::ALL {
            saved.read(table, PREFIX, &self.tables.listing(table)).unwrap();
        }
        saved
    }

    /// What is wrong in the tables; `None` when they hold what the objects ask for.
    fn difference(&self) -> Option<String> {
        let mut table = Table::<V4>::default();
        let node = ThisNode::new(NODE.into(), None);
        for (name, entry) in self.store.entries() {
            table.set_service(name, frontends(&node, entry));
        }
        let config = Config { node_ports: NodePortAddresses::Within(Vec::new()), ..Config::default() };
        let backend = Backend::new(config.clone());
        let plan = backend.repair(&config, &table, &self.saved(), Extent::Difference);
        (!plan.restore.is_empty()).then(|| plan.restore.to_string())
    }

    /// Waits until the tables are right, and sees that nobody else's rules are missing.
    async fn converged(&self) {
        let waiting = async {
            while self.difference().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(outcome.is_ok(), "not converged; left to do:\n{}", self.difference().unwrap_or_default());
        let nat = self.tables.listing(TableName::Nat);
        for (chain, rule) in OTHERS {
            assert_eq!(nat.matches(&format!("-A {chain} {rule}\n")).count(), 1, "{nat}");
        }
    }

    /// Waits until the agent knows that all is well, too.
    async fn until(&self, what: &str, holds: impl Fn(&IptablesMetrics) -> bool) {
        let metrics = &self.of_mode;
        let waiting = async {
            while !holds(metrics) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "{what}: {metrics:?}");
    }
}

/// Every call fails once, in every way and at every step of a life.
#[tokio::test]
async fn every_failure_is_repaired() {
    let parts = [0, 1, 2, 3].map(Fault::After);
    for fault in parts.into_iter().chain([Fault::Busy, Fault::AnswerLost, Fault::Panic]) {
        for at in 0..10 {
            let mut bench = Bench::start(std::iter::repeat_n(None, at).chain([Some(fault)]));
            bench.apply(service(1)).await;
            bench.apply(slice(1, &[1, 2])).await;
            bench.listed().await;
            bench.converged().await;
            bench.apply(slice(1, &[2, 3])).await;
            bench.converged().await;
            bench.apply(service(2)).await;
            bench.converged().await;
            // From refused in `filter` to served in `nat`: both tables change.
            bench.apply(slice(2, &[4])).await;
            bench.converged().await;
            bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-1"))).await;
            bench.converged().await;
        }
    }
}

/// Changes that arrive while nothing can be restored are all there once it works again, whatever was done in part.
#[tokio::test]
async fn nothing_is_lost_during_an_outage() {
    for fault in [Fault::Busy, Fault::After(1), Fault::AnswerLost] {
        let mut bench = Bench::start([]);
        bench.listed().await;
        bench.converged().await;
        bench.tables.fail_next([Some(fault); 5]);
        for n in 0..50u8 {
            bench.apply(service(n % 10)).await;
            bench.apply(slice(n % 10, &[n])).await;
        }
        bench.send(Change::Delete(Kind::Service, ObjectName::new("ns", "svc-3"))).await;
        bench.converged().await;
        assert!(!bench.tables.listing(TableName::Nat).contains("svc-3"));
    }
}

/// What is never taken as a difference is written anew as a whole, beside what others have.
#[tokio::test]
async fn what_can_not_be_mended_is_written_anew() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1])).await;
    bench.listed().await;
    bench.converged().await;
    // The change fails, and two repairs, each with a reading before it.
    let refused = || [Some(Fault::After(0)), None];
    bench.tables.fail_next([refused(), refused(), refused()].into_iter().flatten());
    bench.apply(slice(1, &[2])).await;
    bench.converged().await;
    bench.until("the third repair", |of_mode| of_mode.restore_failures.get() == 3).await;
    let written = bench.tables.restored();
    assert!(written.last().unwrap().contains(":KUBE-MARK-MASQ - [0:0]"), "{}", written.last().unwrap());
}

/// What somebody else breaks is repaired as soon as the watch tells, by difference.
#[tokio::test]
async fn foreign_changes_are_repaired() {
    let mut bench = Bench::start([]);
    bench.apply(service(1)).await;
    bench.apply(slice(1, &[1, 2])).await;
    bench.listed().await;
    bench.converged().await;
    bench.until("the watch begins", |_| bench.given.touches.lock().unwrap().is_some()).await;
    let before = bench.tables.restored().len();
    bench.tables.tamper(TableName::Nat, |chains| {
        chains.get_mut("PREROUTING").unwrap().retain(|rule| !rule.ends_with("-j KUBE-SERVICES"));
    });
    assert!(bench.difference().is_some());
    assert!(bench.given.touches.lock().unwrap().as_ref().unwrap().tell(Touch::Foreign("staged")));
    bench.converged().await;
    let restored = &bench.tables.restored()[before..];
    assert_eq!(
        restored,
        [
            "*nat\n-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n"
        ]
    );
}

/// Rules are counted by table, and failures of `iptables-restore` by what it was to do.
#[tokio::test]
async fn rules_and_failures_are_counted() {
    let mut bench = Bench::start([Some(Fault::Busy), None, Some(Fault::After(1))]);
    bench.apply(service(1)).await;
    bench.listed().await;
    bench.converged().await;
    let counted = |bench: &Bench, table| {
        let rules = bench.tables.listing(table).matches("\n-A ").count();
        i64::try_from(rules).unwrap()
    };
    // Reading failed first, which is no failure of `iptables-restore`; then the start failed behind one table.
    let filter = counted(&bench, TableName::Filter);
    bench.until("the start", |of_mode| of_mode.filter.total.get() == filter).await;
    let of_mode = bench.of_mode.clone();
    assert_eq!((of_mode.restore_failures.get(), of_mode.partial_restore_failures.get()), (1, 0));
    assert_eq!(of_mode.nat.total.get(), counted(&bench, TableName::Nat) - 2, "two are somebody else's");
    assert_eq!(of_mode.filter.last.get(), 0, "the first attempt wrote them");

    bench.tables.fail_next([Some(Fault::Busy)]);
    bench.apply(slice(1, &[1])).await;
    bench.converged().await;
    let nat = counted(&bench, TableName::Nat) - 2;
    bench.until("the change", |of_mode| of_mode.nat.total.get() == nat).await;
    assert_eq!((of_mode.restore_failures.get(), of_mode.partial_restore_failures.get()), (2, 1));
    assert!((1..20).contains(&of_mode.nat.last.get()), "{of_mode:?}");
    // One that was refused no longer is.
    assert_eq!(of_mode.filter.total.get(), filter - 1);
}
