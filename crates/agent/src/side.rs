//! One family: its pipeline, its kernel thread, and the flows that its changes leave behind.

use std::collections::BTreeSet;
use std::time::Duration;

use backend_nftables::{Config, NodePortAddresses, nft_family};
use conntrack::ConntrackError;
use model::view::{self, ThisNode};
use model::{Family, FrontendKey, Node, ServiceEntry, ServiceName, Store};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::flows::{Sweep, Sweeper};
use crate::log::{log_done, log_failed};
use crate::pipeline::{Pipeline, Progress, Step};
use crate::run::StartError;
use crate::settings::{self, Settings};
use crate::telemetry::{FamilyTelemetry, Telemetry};
use crate::worker::{Job, OpenKernel, Report, Worker};

/// One family: its state and its kernel thread.
pub(crate) struct Side<F: Family> {
    pub(crate) pipeline: Pipeline<F>,
    pub(crate) telemetry: FamilyTelemetry<F>,
    worker: Worker,
    /// All has been in the kernel at least once.
    pub(crate) synced: bool,
    /// The frontends whose flows are being looked at.
    sweeping: Option<BTreeSet<FrontendKey<F>>>,
    /// All flows have been looked at once.
    swept: bool,
    /// No sweep before this.
    sweep_not_before: Instant,
}

/// What decides about flows besides frontends.
pub(crate) struct Surroundings<'a> {
    pub(crate) node: Option<&'a Node>,
    pub(crate) store: &'a Store,
}

/// The pause after a sweep, whatever came of it. A sweep walks the kernel's whole table of flows, 30 ms without a pause, and
/// what shares the processor with it waits.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

impl<F: Family> Side<F> {
    pub(crate) fn start(
        settings: &Settings,
        open: &OpenKernel,
        reports: &UnboundedSender<Report>,
        telemetry: &Telemetry,
    ) -> Result<Self, StartError> {
        let family = nft_family::<F>();
        let worker = Worker::start(family, open.clone(), reports.clone())
            .map_err(|source| StartError::Thread { what: family.as_str(), source })?;
        let now = Instant::now();
        let pipeline = Pipeline::new(settings.config::<F>(None, &BTreeSet::new()), now);
        Ok(Self {
            pipeline,
            telemetry: FamilyTelemetry::start(telemetry),
            worker,
            synced: false,
            sweeping: None,
            swept: false,
            sweep_not_before: now,
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
        for loser in self.pipeline.set_service(name, frontends, now) {
            warn!(
                service = %loser.service, family = %F::FAMILY, address = ?loser.key.address,
                protocol = %loser.key.protocol, port = loser.key.port,
                "another Service has this address and port",
            );
        }
    }

    /// Takes in settings.
    pub(crate) fn set_config(&mut self, config: Config, now: Instant) {
        self.telemetry.set_ranges(match &config.node_ports {
            NodePortAddresses::All => vec![settings::everything::<F>()],
            NodePortAddresses::Within(ranges) => ranges.clone(),
        });
        self.pipeline.set_config(config, now);
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
        if !may_sweep || self.swept && !self.pipeline.has_ready_flows() {
            return Ok(());
        }
        let keys = self.pipeline.take_ready_flows();
        let all_of = if self.swept {
            Vec::new()
        } else {
            around.store.service_cidrs().into_iter().filter(F::owns).collect()
        };
        let node_addresses = around.node.map(|node| &*node.addresses).unwrap_or_default();
        let sweep = Sweep::new(self.pipeline.table(), &keys, node_addresses, all_of);
        self.sweeping = Some(keys);
        if sweeper.submit(sweep) { Ok(()) } else { Err(StartError::WorkerDied) }
    }

    pub(crate) fn take_swept(&mut self, result: Result<u64, ConntrackError>, took: Duration, now: Instant) {
        let keys = self.sweeping.take().unwrap_or_default();
        self.sweep_not_before = now + SWEEP_PAUSE;
        match result {
            Ok(deleted) => {
                self.swept = true;
                self.telemetry.swept(deleted, took);
                if deleted > 0 {
                    debug!(family = %F::FAMILY, deleted, frontends = keys.len(), "forgot stale flows");
                }
            }
            Err(error) => {
                self.telemetry.swept(error.deleted(), took);
                warn!(family = %F::FAMILY, %error, deleted = error.deleted(), "stale flows can't be forgotten");
                self.pipeline.put_back_flows(keys);
            }
        }
    }

    /// Takes in what came of a job; says which step that completed.
    pub(crate) fn take_report(&mut self, report: Report) -> Result<Option<Step>, StartError> {
        let took = report.took;
        let (progress, job) = self.pipeline.report(report.answer, took, Instant::now(), fastrand::f64());
        let step = match progress {
            Progress::Working => None,
            Progress::Done(done) => {
                log_done::<F>(&done, took, self.pipeline.is_settled());
                self.telemetry.done(&done);
                self.synced = true;
                Some(done.step)
            }
            Progress::Failed(failed) => {
                log_failed::<F>(&failed);
                self.telemetry.failed(&failed);
                None
            }
        };
        self.submit(job)?;
        Ok(step)
    }

    fn submit(&self, job: Option<Job>) -> Result<(), StartError> {
        let accepted = job.is_none_or(|job| self.worker.submit(job));
        if accepted { Ok(()) } else { Err(StartError::WorkerDied) }
    }
}
