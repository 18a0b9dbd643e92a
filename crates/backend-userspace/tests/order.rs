//! Rules and routes in their order: a worker knows of each frontend for as long as rules hand its flows over.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use backend_nftables::{Backend, NftablesTarget, table_name};
use backend_userspace::{Site, Supervisor, UserspacePlanner, UserspaceTarget, Worker, WorkerGone};
use fakes::contract::Contract;
use fakes::kernel::FakeKernel;
use fakes::on_paper;
use mode::{Cause, Planner, Reading, Target};
use model::{Changed, Family as _, RuleSettings, Table, V4};
use netlink::NetlinkError;
use nft::{Applied, Counts, Kernel, Name, Transaction};
use proxy::frame::Routes;

/// What was done, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    Reading,
    Rules,
    Set(usize),
    Gone(usize),
    Lease,
}

type Log = Arc<Mutex<Vec<Done>>>;

struct LoggedKernel(FakeKernel, Log);

impl Kernel for LoggedKernel {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        self.1.lock().unwrap().push(Done::Rules);
        self.0.apply(tx)
    }

    fn read(&mut self, family: nft::Family, table: &Name) -> Result<nft::Reading, NetlinkError> {
        self.1.lock().unwrap().push(Done::Reading);
        self.0.read(family, table)
    }

    fn counts(&mut self, family: nft::Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        self.0.counts(family, table, sets)
    }
}

struct LoggedSite(Log);

struct LoggedWorker(Log);

impl Site for LoggedSite {
    type Listeners = ();
    type Worker = LoggedWorker;

    fn address(&mut self, _in_use: Option<IpAddr>) -> Option<IpAddr> {
        Some([192, 168, 0, 7].into())
    }

    fn listen(&mut self, _address: IpAddr) -> io::Result<()> {
        Ok(())
    }

    fn start(&mut self, _listeners: &()) -> io::Result<LoggedWorker> {
        Ok(LoggedWorker(self.0.clone()))
    }

    fn renew(&mut self, _listeners: &()) -> Result<(), String> {
        self.0.lock().unwrap().push(Done::Lease);
        Ok(())
    }

    fn end(&mut self) {}

    fn udp(&self, _listeners: &()) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn forget(&mut self, _listeners: &[SocketAddr]) {}
}

impl Worker for LoggedWorker {
    fn set_routes(&mut self, routes: &Routes) -> Result<(), WorkerGone> {
        let mut log = self.0.lock().unwrap();
        if !routes.set.is_empty() {
            log.push(Done::Set(routes.set.len()));
        }
        if !routes.gone.is_empty() {
            log.push(Done::Gone(routes.gone.len()));
        }
        Ok(())
    }

    fn is_alive(&mut self) -> bool {
        true
    }

    fn is_full(&self) -> bool {
        false
    }

    fn drain(&mut self) {}
}

struct Setup {
    planner: UserspacePlanner<Backend<V4>, LoggedSite, true>,
    target: UserspaceTarget<NftablesTarget, LoggedSite>,
    kernel: FakeKernel,
    log: Log,
}

impl Setup {
    fn new() -> Self {
        let (kernel, log) = (FakeKernel::new(), Log::default());
        Self::on(kernel, log)
    }

    /// Another agent on the same kernel.
    fn on(kernel: FakeKernel, log: Log) -> Self {
        let logged = Box::new(LoggedKernel(kernel.clone(), log.clone()));
        let supervisor = Arc::new(Mutex::new(Supervisor::new(LoggedSite(log.clone()))));
        let target = UserspaceTarget::new(NftablesTarget::new(V4::FAMILY.into(), logged), supervisor);
        let planner = UserspacePlanner::new(Backend::new(RuleSettings::default()));
        Self { planner, target, kernel, log }
    }

    /// Plans for a cause and does it; gives what was done.
    fn perform(&mut self, table: &Table<V4>, changed: Option<&Changed<V4>>) -> Vec<Done> {
        let settings = Planner::<V4>::settings(&self.planner, &RuleSettings::default());
        let plan = if let Some(changed) = changed {
            self.planner.plan(table, &settings, Cause::Changed(changed))
        } else {
            let Reading::Whole(found) = self.target.read() else { panic!("the kernel can't be read") };
            Planner::<V4>::detached(&self.planner).plan(table, &settings, Cause::Found(&found))
        };
        let plan = plan.unwrap();
        let results = self.target.apply(plan.steps, &|| false).results;
        let results = results.into_iter().map(|result| result.map_err(Arc::new)).collect();
        let settled = Planner::<V4>::settle(&mut self.planner, plan.held, results);
        assert!(settled.is_known);
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn contract() -> Table<V4> {
    on_paper::table(&on_paper::store(&Contract::read()).unwrap())
}

fn all(table: &Table<V4>) -> Changed<V4> {
    Changed::frontends(table.iter().map(|frontend| frontend.key))
}

#[test]
fn a_worker_hears_first_of_what_comes_and_last_of_what_goes() {
    let (mut setup, table) = (Setup::new(), contract());
    let begun = setup.perform(&table, None);
    // What a worker knows when it starts is what rules were written for.
    let [Done::Reading, Done::Rules, Done::Set(n), Done::Lease] = begun[..] else { panic!("{begun:?}") };
    assert!(n > 50, "{n} routes");
    let mut fewer = table.clone();
    let services: BTreeSet<_> = table.iter().map(|frontend| frontend.service.service.clone()).collect();
    let changed: BTreeSet<_> =
        services.iter().flat_map(|service| fewer.set_service(service, Vec::new())).collect();
    let changed = Changed { frontends: changed, ..Changed::default() };
    assert_eq!(setup.perform(&fewer, Some(&changed)), [Done::Rules, Done::Gone(n)]);
    assert_eq!(setup.perform(&table, Some(&changed)), [Done::Set(n), Done::Rules]);
}

#[test]
fn a_start_on_an_unchanged_table_writes_nothing() {
    let (mut setup, table) = (Setup::new(), contract());
    setup.perform(&table, None);
    let mut next = Setup::on(setup.kernel.clone(), Log::default());
    let begun = next.perform(&table, None);
    assert!(matches!(begun[..], [Done::Reading, Done::Set(_), Done::Lease]), "{begun:?}");
    // Neither does an audit, during which the lease can't be renewed.
    assert_eq!(next.perform(&table, None), [Done::Lease, Done::Reading, Done::Lease, Done::Lease]);
    assert_eq!(next.perform(&table, Some(&all(&table))), []);
}

#[test]
fn what_is_there_lists_maps_for_a_lease() {
    let (mut setup, table) = (Setup::new(), contract());
    setup.perform(&table, None);
    let found = setup.kernel.clone().read(V4::FAMILY.into(), &table_name()).unwrap();
    let found = found.whole().unwrap().unwrap();
    for name in ["proxies", "internal-proxies"] {
        assert!(found.sets[name].set.is_transient());
    }
}
