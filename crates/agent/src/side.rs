//! One family: its pipeline, its kernel thread, and the flows that its changes leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use conntrack::ConntrackError;
use model::view::{self, Explanation, ThisNode};
use model::{
    ConflictChange, Family, FrontendAddress, FrontendKey, Mode, Node, NodePortAddresses, Protocol,
    RuleSettings, ServiceEntry, ServiceName, Store,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tracing::{debug, info, trace, warn};

use crate::flows::{Sweep, Sweeper};
use crate::log::{log_conflict, log_done, log_failed, with_causes};
use crate::notice::{Conflict, Notice, Notices};
use crate::outage::Outage;
use crate::pipeline::{Pipeline, Progress, Step};
use crate::run::StartError;
use crate::settings::{self, Settings};
use crate::telemetry::{FamilyTelemetry, Telemetry};
use crate::worker::{Job, OpenKernel, Report, Worker, thread_name};

/// One family: its state and its kernel thread.
pub(crate) struct Side<M: Mode, F: Family> {
    mode: M,
    pub(crate) pipeline: Pipeline<M, F>,
    pub(crate) telemetry: FamilyTelemetry<F>,
    worker: Worker<M>,
    /// What rules depend on besides frontends.
    rules: RuleSettings,
    health_check_ports: HealthCheckPorts,
    /// All has been in the kernel at least once.
    pub(crate) synced: bool,
    /// The frontends whose flows are being looked at.
    sweeping: Option<BTreeSet<FrontendKey<F>>>,
    /// That sweep looks at all flows to Services.
    sweeping_all: bool,
    /// All flows to Services are to be looked at, also those to addresses that no Service has (any more).
    all_due: bool,
    /// No sweep before this.
    sweep_not_before: Instant,
    outage: Outage,
    notices: Notices,
}

/// The `healthCheckNodePort`s of Services.
#[derive(Default)]
struct HealthCheckPorts {
    by_service: BTreeMap<ServiceName, u16>,
    changed: bool,
}

impl HealthCheckPorts {
    fn set(&mut self, service: &ServiceName, port: Option<u16>) {
        let before = match port {
            Some(port) => self.by_service.insert(service.clone(), port),
            None => self.by_service.remove(service),
        };
        self.changed |= before != port;
    }

    /// All of them with the names of their Services, if they changed since this was last asked.
    fn take_changed(&mut self) -> Option<BTreeMap<u16, String>> {
        let named = || self.by_service.iter().map(|(service, port)| (*port, service.to_string())).collect();
        std::mem::take(&mut self.changed).then(named)
    }
}

/// What decides about flows besides frontends.
pub(crate) struct Surroundings<'a> {
    pub(crate) node: Option<&'a Node>,
    pub(crate) store: &'a Store,
}

/// The pause after a sweep, whatever came of it. A sweep walks the kernel's whole table of flows, 30 ms without a pause, and
/// what shares the processor with it waits.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

impl<M: Mode, F: Family> Side<M, F> {
    pub(crate) fn start(
        mode: &M,
        settings: &Settings,
        open: &OpenKernel<M>,
        reports: &UnboundedSender<Report<M>>,
        telemetry: &Telemetry,
    ) -> Result<Self, StartError> {
        let worker = Worker::start(F::FAMILY, open.clone(), reports.clone())
            .map_err(|source| StartError::Thread { what: thread_name(F::FAMILY), source })?;
        let now = Instant::now();
        let rules = settings.rules::<F>(None, &BTreeSet::new());
        let pipeline = Pipeline::new(mode.config(rules.clone()), now);
        Ok(Self {
            mode: mode.clone(),
            pipeline,
            telemetry: FamilyTelemetry::start(telemetry),
            worker,
            rules,
            health_check_ports: HealthCheckPorts::default(),
            synced: false,
            sweeping: None,
            sweeping_all: false,
            all_due: true,
            sweep_not_before: now,
            outage: Outage::new(settings.sync_period * 2),
            notices: settings.notices.clone(),
        })
    }

    pub(crate) fn look_at(
        &mut self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    ) {
        let frontends = entry.map(|entry| view::frontends::<F>(node, entry)).unwrap_or_default();
        let check = entry.and_then(|entry| view::health_check::<F>(node, entry));
        self.telemetry.looked_at(name, check, view::NoLocalEndpoints::of(&frontends));
        self.pipeline.set_service(name, frontends, now);
        let service = entry.and_then(|entry| entry.service.as_ref());
        self.health_check_ports.set(name, service.and_then(|service| service.health_check_node_port));
    }

    /// All that changed together has been looked at.
    pub(crate) fn looked_at_all(&mut self, store: &Store, now: Instant) {
        if let Some(ports) = self.health_check_ports.take_changed() {
            self.rules.health_check_ports = ports;
            self.pipeline.set_config(self.mode.config(self.rules.clone()), now);
        }
        self.tell_conflicts(store);
    }

    /// What this node makes of a Service, in words; `None` if it makes nothing of it.
    pub(crate) fn explain(
        &self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
    ) -> Option<String> {
        let explanation = view::explain::<F>(node, entry);
        if explanation == Explanation::NoService {
            return None;
        }
        let frontends = entry.map(|entry| view::frontends::<F>(node, entry)).unwrap_or_default();
        let lost = frontends.iter().filter_map(|frontend| {
            let winner = &self.pipeline.table().get(&frontend.key)?.service;
            let FrontendKey { address, protocol, port } = frontend.key;
            (winner.service != *name).then(|| {
                format!("  {address} {protocol} {port} is not served here: {winner} claims it, too\n")
            })
        });
        let text = std::iter::once(explanation.to_string()).chain(lost).collect();
        Some(text)
    }

    /// Takes in what rules depend on besides Services.
    pub(crate) fn set_rules(&mut self, rules: RuleSettings, now: Instant) {
        self.telemetry.set_ranges(match &rules.node_ports {
            NodePortAddresses::All => vec![settings::everything::<F>()],
            NodePortAddresses::Within(ranges) => ranges.clone(),
        });
        let health_check_ports = std::mem::take(&mut self.rules.health_check_ports);
        self.rules = RuleSettings { health_check_ports, ..rules };
        self.pipeline.set_config(self.mode.config(self.rules.clone()), now);
    }

    /// Tells what changed about Services that claim the same.
    fn tell_conflicts(&mut self, store: &Store) {
        for ConflictChange { key, loser, before, now } in self.pipeline.take_conflict_changes() {
            let is_new = now.is_some();
            let Some(winner) = now.or(before) else { continue };
            let address = match key.address {
                FrontendAddress::Ip(address) => Some(address.into()),
                FrontendAddress::Node => None,
            };
            let entry = store.entry(&loser.service).and_then(|entry| entry.service.as_ref());
            let uid = entry.and_then(|service| service.uid);
            let FrontendKey { protocol, port, .. } = key;
            let conflict = Conflict { family: F::FAMILY, address, protocol, port, loser, uid, winner };
            log_conflict(&conflict, is_new);
            self.notices.tell(if is_new {
                Notice::ConflictBegan(conflict)
            } else {
                Notice::ConflictEnded(conflict)
            });
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sweep =
            (self.pipeline.has_ready_flows() && self.sweeping.is_none()).then_some(self.sweep_not_before);
        self.pipeline.deadline().into_iter().chain(sweep).min()
    }

    /// Gives the threads something to do, if there is something.
    pub(crate) fn advance(
        &mut self,
        sweeper: &Sweeper,
        around: &Surroundings<'_>,
        now: Instant,
    ) -> Result<(), StartError> {
        let job = self.pipeline.next(now);
        self.submit(job)?;
        self.telemetry.follow(&self.pipeline, now);
        self.sweep(sweeper, around, now)
    }

    /// Has the flows looked at that changes may have left behind; the first time, all flows to Services.
    fn sweep(
        &mut self,
        sweeper: &Sweeper,
        around: &Surroundings<'_>,
        now: Instant,
    ) -> Result<(), StartError> {
        let may_sweep = self.synced && self.sweeping.is_none() && now >= self.sweep_not_before;
        if !may_sweep || !self.all_due && !self.pipeline.has_ready_flows() {
            return Ok(());
        }
        let keys = self.pipeline.take_ready_flows();
        self.sweeping_all = std::mem::take(&mut self.all_due);
        let all_of = if self.sweeping_all {
            around.store.service_cidrs().into_iter().filter(F::owns).collect()
        } else {
            Vec::new()
        };
        let node_addresses = around.node.map(|node| &*node.addresses).unwrap_or_default();
        let sweep = Sweep::new(self.pipeline.table(), &keys, node_addresses, all_of);
        self.sweeping = Some(keys);
        if sweeper.submit(sweep) { Ok(()) } else { Err(StartError::WorkerDied) }
    }

    /// Has all flows looked at again: rules of others, which are gone by now, may have directed some since the last time.
    pub(crate) fn sweep_again(&mut self) {
        let keys = self.pipeline.table().iter().map(|frontend| frontend.key);
        let keys = keys.filter(|key| key.protocol != Protocol::Tcp).collect();
        self.pipeline.put_back_flows(keys);
        self.all_due = true;
    }

    pub(crate) fn take_swept(&mut self, result: Result<u64, ConntrackError>, took: Duration, now: Instant) {
        let keys = self.sweeping.take().unwrap_or_default();
        self.sweep_not_before = now + SWEEP_PAUSE;
        match result {
            Ok(deleted) => {
                self.telemetry.swept(deleted, took);
                if deleted > 0 {
                    debug!(ipFamily = %F::FAMILY, deleted, frontends = keys.len(), "forgot stale flows");
                }
            }
            Err(error) => {
                self.telemetry.swept(error.deleted(), took);
                warn!(ipFamily = %F::FAMILY, %error, deleted = error.deleted(), "stale flows can't be forgotten");
                self.pipeline.put_back_flows(keys);
                self.all_due |= self.sweeping_all;
            }
        }
    }

    /// Takes in what came of a job; says which step that completed.
    pub(crate) fn take_report(&mut self, report: Report<M>) -> Result<Option<Step>, StartError> {
        let took = report.took;
        let (progress, job) = self.pipeline.report(report.answer, took, Instant::now(), fastrand::f64());
        let step = match progress {
            Progress::Working => None,
            Progress::Done(done) => {
                log_done::<F>(&done, took, self.pipeline.is_settled());
                self.telemetry.done(&done, &self.pipeline.rule_counts());
                self.synced = true;
                if let Some(lasted) = self.outage.worked(Instant::now()) {
                    info!(ipFamily = %F::FAMILY, ?lasted, "The kernel takes the rules again");
                    self.notices.tell(Notice::SyncsWork { family: F::FAMILY, lasted });
                }
                Some(done.step)
            }
            Progress::Failed(failed) => {
                log_failed::<M, F>(&failed);
                self.telemetry.failed(&failed);
                if let Some(lasting) = self.outage.failed(Instant::now()) {
                    let error = with_causes(&failed.error);
                    self.notices.tell(Notice::SyncsFail { family: F::FAMILY, lasting, error });
                }
                None
            }
        };
        self.submit(job)?;
        Ok(step)
    }

    fn submit(&self, job: Option<Job<M>>) -> Result<(), StartError> {
        if let Some(Job::Apply(changes)) = &job {
            trace!(v = 9, ipFamily = %F::FAMILY, %changes, "Running {} transaction", M::NAME);
        }
        let accepted = job.is_none_or(|job| self.worker.submit(job));
        if accepted { Ok(()) } else { Err(StartError::WorkerDied) }
    }
}
