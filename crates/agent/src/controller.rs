//! One family in a mode: its pipeline, its worker, and the flows that its changes leave behind.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use mode::{OutageCause, Planner, Touch, Watch};
use model::view::{self, ThisNode};
use model::{
    ConflictChange, Family, FrontendAddress, FrontendKey, IpFamily, Node, NodePortAddresses, ServiceEntry,
    ServiceName, ServicePortName, Store, Touched, Uid,
};
use tokio::time::Instant;
use tracing::{debug, info, trace, warn};

use crate::counting::{self, Counted, Counting};
use crate::family::{Cluster, FamilyController, FamilyMode, Start, TakeOver};
use crate::flows::{self, Sweeps, Swept};
use crate::history::History;
use crate::inbox::{Event, Inbox};
use crate::log::{log_conflict, log_done, log_failed, log_taken, with_causes};
use crate::notice::{Conflict, Notice, Notices, Taken};
use crate::outage::Outage;
use crate::pipeline::{Failing, Pipeline, Progress, Step, Turn};
use crate::run::StartError;
use crate::settings::{self, Settings};
use crate::snapshot::{self, Failure, FamilyState, ServiceFamily, build};
use crate::telemetry::{Events, FamilyTelemetry, Situation};
use crate::worker::{self, Job, Worker};

/// One family in a mode.
pub(crate) struct Controller<F: Family, P: Planner<F>> {
    pipeline: Pipeline<F, P>,
    telemetry: FamilyTelemetry,
    inbox: Inbox<P::Target>,
    worker: Worker<P::Target>,
    sweeps: Option<Sweeps<F>>,
    /// What follows the first complete sync; gone once it was called.
    watch: Option<Watch>,
    take_over: Option<TakeOver>,
    /// All has been in force at least once.
    was_synced: bool,
    started: Instant,
    outage: Outage,
    notices: Notices,
    history: History,
    failure: Option<Failure>,
    /// Failures in a row, before anything was in force, after which trying again has no chance.
    hopeless_in_a_row: u32,
    counting: Option<Counting>,
    /// What the mode can't do of what Services ask for, as far as there is something.
    shortcomings: BTreeMap<ServiceName, BTreeSet<&'static str>>,
    /// Which of their frontends somebody else stands for, as far as one is.
    taken: BTreeMap<ServiceName, BTreeSet<Taken>>,
    /// Endpoints of which it was told that they get nothing for now.
    outages_told: BTreeSet<(ServicePortName, SocketAddr, OutageCause)>,
}

/// From so many failures in a row a start is given up that has no chance.
const HOPELESS_AFTER: u32 = 3;
/// So many reports are taken in before the event loop looks after others.
const MAX_EVENTS_AT_ONCE: usize = 16;
/// Plan and results of more writes than this take megabytes while they are under way.
const MANY_WRITES: usize = 10_000;

impl<F: Family, P: Planner<F>> Controller<F, P> {
    pub(crate) fn start(mode: FamilyMode<F, P>, start: Start<'_>) -> Result<Self, StartError> {
        let Start { settings, telemetry, wake } = start;
        let FamilyMode { planner, open, meter, watch, flows, take_over, observer, family: _ } = mode;
        let (inbox, now) = (Inbox::new(wake.clone()), Instant::now());
        let sender = inbox.sender();
        let worker = Worker::start(F::FAMILY, open, move |report| sender.send(Event::Report(report)))
            .map_err(|source| StartError::Thread { what: worker::thread_name(F::FAMILY), source })?;
        let sweeps = |open| {
            let sender = inbox.sender();
            Sweeps::start(open, move |swept| sender.send(Event::Swept(swept)), now)
                .map_err(|source| StartError::Thread { what: flows::thread_name(F::FAMILY), source })
        };
        let sweeps = flows.map(sweeps).transpose()?;
        let counting = |open| {
            let sender = inbox.sender();
            let report = move |counted| sender.send(Event::Counted(counted));
            Counting::start(F::FAMILY, open, telemetry.traffic.clone(), report)
                .map_err(|source| StartError::Thread { what: counting::thread_name(F::FAMILY), source })
        };
        let counting = meter.map(counting).transpose()?;
        let rules = planner.settings(&settings.rules::<F>(None, &BTreeSet::new()));
        Ok(Self {
            pipeline: Pipeline::new(planner, rules, settings.min_sync_period, now),
            telemetry: FamilyTelemetry::start(telemetry, F::FAMILY, observer),
            inbox,
            worker,
            sweeps,
            watch,
            take_over,
            was_synced: false,
            started: now,
            outage: Outage::new(settings.sync_period * 2),
            notices: settings.notices.clone(),
            history: History::default(),
            failure: None,
            hopeless_in_a_row: 0,
            counting,
            shortcomings: BTreeMap::new(),
            taken: BTreeMap::new(),
            outages_told: BTreeSet::new(),
        })
    }

    /// Says what something came to, and hands over what follows. True: a large temporary value has been
    /// freed, after a comparison of everything or a large change.
    fn carry_on(&mut self, turn: Turn<P::Target>, took: Duration, now: Instant) -> Result<bool, StartError> {
        let (progress, job) = turn;
        let mut has_freed = false;
        match progress {
            Progress::Working => {}
            Progress::Done(done) => {
                has_freed = done.step != Step::Change || done.writes > MANY_WRITES;
                log_done(F::FAMILY, &done, took, self.pipeline.is_settled());
                self.telemetry.done(&done, &self.pipeline.rule_counts());
                let (pipeline, table) = (&self.pipeline, self.pipeline.table());
                self.history.in_force(done.planned, now, |service| {
                    table.of_service(service).all(|frontend| pipeline.is_in_force(&frontend.key))
                });
                self.worked(done.is_complete, now);
            }
            Progress::Failed(failed) => {
                log_failed(F::FAMILY, &failed, self.was_synced);
                self.telemetry.failed(&failed, &self.pipeline.rule_counts());
                let is_harmless = failed.during == Failing::Read && failed.is_known;
                if !is_harmless {
                    self.failed(failed.text(), failed.failures, failed.retry_in, failed.is_hopeless(), now);
                }
            }
        }
        self.submit(job)?;
        Ok(has_freed)
    }

    fn worked(&mut self, is_complete: bool, now: Instant) {
        self.failure = None;
        self.hopeless_in_a_row = 0;
        if is_complete && !std::mem::replace(&mut self.was_synced, true) {
            self.first_synced(now);
        }
        if let Some(lasted) = self.outage.worked(now) {
            info!(ipFamily = %F::FAMILY, ?lasted, "The kernel takes the rules again");
            self.notices.tell(Notice::SyncsWork { family: F::FAMILY, lasted });
        }
    }

    fn failed(&mut self, error: String, times: u32, retry_in: Duration, is_hopeless: bool, now: Instant) {
        if let Some(lasting) = self.outage.failed(now) {
            self.notices.tell(Notice::SyncsFail { family: F::FAMILY, lasting, error: error.clone() });
        }
        self.hopeless_in_a_row = if is_hopeless && !self.was_synced { self.hopeless_in_a_row + 1 } else { 0 };
        self.failure = Some(Failure { error, times, retry_in_seconds: retry_in.as_secs_f64() });
    }

    fn first_synced(&mut self, now: Instant) {
        if let Some(counting) = &mut self.counting {
            counting.begin_after_start(now.saturating_duration_since(self.started), now);
        }
        if let Some(take_over) = self.take_over.take() {
            let sender = self.inbox.sender();
            take_over(Box::new(move || sender.send(Event::OldRulesGone)));
        }
    }

    fn submit(&self, job: Option<Job<P::Target>>) -> Result<(), StartError> {
        if let Some(Job::Apply(steps)) = &job {
            for step in steps {
                trace!(v = 9, ipFamily = %F::FAMILY, %step, "Running {} transaction", P::NAME);
            }
        }
        let accepted = job.is_none_or(|job| self.worker.submit(job));
        if accepted { Ok(()) } else { Err(StartError::WorkerDied) }
    }

    /// Tells what the mode can't do of what a Service asks for, if that is not what was told last.
    fn tell_shortcomings(&mut self, name: &ServiceName, uid: Option<Uid>) {
        let lacks = self.pipeline.shortcomings(name);
        if lacks.is_empty() {
            self.shortcomings.remove(name);
        } else if self.shortcomings.get(name) != Some(&lacks) {
            let what: Vec<&'static str> = lacks.iter().copied().collect();
            warn!(ipFamily = %F::FAMILY, service = %name, what = what.join("; "), "a Service asks for what this mode can't do");
            self.shortcomings.insert(name.clone(), lacks);
            self.notices.tell(Notice::NotOnThisPlatform { service: name.clone(), uid, what });
        }
    }

    /// Tells who else has a Service's addresses and ports, if that is not what was told last.
    fn tell_taken(&mut self, name: &ServiceName, uid: Option<Uid>) {
        let taken = self.pipeline.taken(name).into_iter().map(|(key, by)| {
            let FrontendKey { protocol, port, .. } = key;
            Taken { family: F::FAMILY, address: address_of(&key), protocol, port, by }
        });
        let taken: BTreeSet<Taken> = taken.collect();
        let told = self.taken.remove(name).unwrap_or_default();
        for taken in taken.difference(&told) {
            log_taken(name, taken);
            let (service, taken) = (name.clone(), taken.clone());
            self.notices.tell(Notice::FrontendTaken { service, uid, taken });
        }
        if !taken.is_empty() {
            self.taken.insert(name.clone(), taken);
        }
    }

    /// Tells Services what is new to them.
    fn tell_services(&mut self, store: &Store) {
        for name in self.pipeline.take_unheard() {
            let service = store.entry(&name).and_then(|entry| entry.service.as_deref());
            let uid = service.and_then(|service| service.uid);
            self.tell_shortcomings(&name, uid);
            self.tell_taken(&name, uid);
        }
    }

    fn take_swept(&mut self, swept: &Swept, now: Instant) {
        let Some(sweeps) = &mut self.sweeps else { return };
        let deleted = sweeps.take(&swept.result, now);
        self.telemetry.swept(deleted, swept.took);
        if let Err(error) = &swept.result {
            warn!(ipFamily = %F::FAMILY, %error, deleted, "stale flows can't be forgotten");
        } else if deleted > 0 {
            debug!(ipFamily = %F::FAMILY, deleted, "forgot stale flows");
        }
    }

    /// Tells which endpoints have begun to get nothing, each once for as long as it lasts.
    fn tell_outages(&mut self, now: Instant) {
        let outages = self.pipeline.outages(now).into_iter();
        let found: BTreeSet<_> =
            outages.map(|outage| (outage.service, outage.endpoint, outage.cause)).collect();
        for (service, endpoint, cause) in found.difference(&self.outages_told).cloned() {
            self.notices.tell(Notice::EndpointOut { service, endpoint, cause });
        }
        self.outages_told = found;
    }

    /// What was counted is somebody's.
    fn take_counted(&mut self, counted: Counted<P::Target>, now: Instant) {
        self.tell_outages(now);
        let Some(counting) = &mut self.counting else { return };
        counting.took(counted.took, now);
        match counted.counted {
            Ok(Some(counted)) => {
                let table = self.pipeline.table();
                let is_gone = |port: &&ServicePortName| {
                    !table.of_service(&port.service).any(|frontend| frontend.service == **port)
                };
                let known = counting.latest();
                let known = known.iter().flat_map(|traffic| traffic.ports.keys());
                let gone = known.filter(is_gone).cloned().collect();
                counting.record(self.pipeline.meters(counted), gone, now);
            }
            Ok(None) => {}
            Err(error) => {
                debug!(ipFamily = %F::FAMILY, error = with_causes(&error), "what went through can't be read");
            }
        }
    }

    /// Has the flows looked at that changes may have left behind; the first time, all flows to Services.
    fn sweep(&mut self, cluster: &Cluster<'_>, now: Instant) -> Result<(), StartError> {
        let keys = self.pipeline.take_ready_flows();
        let Some(sweeps) = self.sweeps.as_mut() else { return Ok(()) };
        sweeps.want(keys, now);
        if !self.was_synced {
            return Ok(());
        }
        let node_addresses = cluster.node.map(|node| &*node.addresses).unwrap_or_default();
        let service_cidrs = || cluster.store.service_cidrs().into_iter().filter(F::owns).collect();
        let is_alive = sweeps.next(self.pipeline.table(), node_addresses, service_cidrs, now);
        if is_alive { Ok(()) } else { Err(StartError::WorkerDied) }
    }

    fn situation(&self) -> Situation {
        Situation {
            pending_since: self.pipeline.pending_since(),
            has_waiting: self.pipeline.has_waiting(),
            conflicts: self.pipeline.table().conflict_count(),
            refused: self.pipeline.refused(),
        }
    }
}

/// `None`: the node's own.
fn address_of<F: Family>(key: &FrontendKey<F>) -> Option<IpAddr> {
    match key.address {
        FrontendAddress::Ip(address) => Some(address.into()),
        FrontendAddress::Node => None,
    }
}

impl<F: Family, P: Planner<F>> FamilyController for Controller<F, P> {
    fn take_events(&mut self, events: &Events, touched: &Touched, now: Instant) {
        self.telemetry.take_events(events, touched, now);
    }

    fn set_service(
        &mut self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    ) {
        let frontends = entry.map(|entry| view::frontends::<F>(node, entry)).unwrap_or_default();
        let check = entry.and_then(|entry| view::health_check::<F>(node, entry));
        self.telemetry.set_service(name, check, view::NoLocalEndpoints::of(&frontends));
        let service = entry.and_then(|entry| entry.service.as_deref());
        let health_check_port = service.and_then(|service| service.health_check_node_port);
        let has_changed = self.pipeline.set_service(name, frontends, health_check_port, now);
        if has_changed && self.was_synced {
            self.history.changed(name, now, SystemTime::now());
        }
    }

    fn tell_conflicts(&mut self, store: &Store) {
        for ConflictChange { key, loser, before, now } in self.pipeline.take_conflict_changes() {
            let is_new = now.is_some();
            let Some(winner) = now.or(before) else { continue };
            let address = address_of(&key);
            let entry = store.entry(&loser.service).and_then(|entry| entry.service.as_deref());
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

    fn set_rules(
        &mut self,
        settings: &Settings,
        node: Option<&Node>,
        service_cidrs: &BTreeSet<IpNet>,
        now: Instant,
    ) {
        let rules = settings.rules::<F>(node, service_cidrs);
        self.telemetry.set_ranges(match &rules.node_ports {
            NodePortAddresses::All => vec![settings::everything::<F>()],
            NodePortAddresses::Within(ranges) => ranges.clone(),
        });
        self.pipeline.set_settings(&rules, now);
    }

    fn request(&mut self, now: Instant) {
        self.pipeline.request(now);
    }

    fn read_ahead(&mut self, now: Instant) -> Result<(), StartError> {
        let job = self.pipeline.read_ahead(now);
        self.submit(job)
    }

    fn take_reports(&mut self, now: Instant) -> Result<bool, StartError> {
        let mut has_freed = false;
        for _ in 0..MAX_EVENTS_AT_ONCE {
            match self.inbox.try_recv() {
                Some(Event::Report(report)) => {
                    let turn = self.pipeline.report(report.answer, report.took, now, fastrand::f64());
                    has_freed |= self.carry_on(turn, report.took, now)?;
                }
                Some(Event::Swept(swept)) => self.take_swept(&swept, now),
                Some(Event::Counted(counted)) => self.take_counted(counted, now),
                Some(Event::Touched(Touch::Foreign(what))) => {
                    warn!(ipFamily = %F::FAMILY, what, "somebody else changed our table");
                    self.pipeline.note_foreign_change(now);
                }
                Some(Event::Touched(Touch::Surroundings(what))) => {
                    debug!(ipFamily = %F::FAMILY, what, "what rules depend on is another one; comparing");
                    self.pipeline.note_surroundings(now);
                }
                Some(Event::OldRulesGone) => {
                    if let Some(sweeps) = &mut self.sweeps {
                        sweeps.want_all(self.pipeline.table(), now);
                    }
                }
                None => return Ok(has_freed),
            }
        }
        // The rest has its turn.
        self.inbox.wake();
        Ok(has_freed)
    }

    fn advance(&mut self, cluster: &Cluster<'_>, now: Instant) -> Result<(), StartError> {
        let turn = self.pipeline.next(now, fastrand::f64());
        self.carry_on(turn, Duration::ZERO, now)?;
        self.tell_services(cluster.store);
        if self.pipeline.wants_room() {
            self.worker.make_room();
        }
        self.telemetry.follow(self.situation(), now);
        if let Some(counting) = self.counting.as_mut().filter(|_| self.was_synced) {
            counting.advance(now);
        }
        self.sweep(cluster, now)
    }

    fn hold(&mut self, now: Instant) {
        self.pipeline.hold(now);
        self.telemetry.nothing_expected();
    }

    fn deadline(&self) -> Option<Instant> {
        let sweep = self.sweeps.as_ref().filter(|_| self.was_synced).and_then(Sweeps::deadline);
        let counting = self.counting.as_ref().filter(|_| self.was_synced).and_then(Counting::deadline);
        self.pipeline.deadline().into_iter().chain(sweep).chain(counting).min()
    }

    fn family(&self) -> IpFamily {
        F::FAMILY
    }

    fn was_synced(&self) -> bool {
        self.was_synced
    }

    fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn start_watch(&mut self) {
        if self.was_synced
            && let Some(watch) = self.watch.take()
        {
            watch(self.inbox.sender().touches());
        }
    }

    fn is_settled(&self) -> bool {
        self.pipeline.is_settled()
    }

    fn hopeless(&self) -> Option<&str> {
        let failure = self.failure.as_ref().filter(|_| self.hopeless_in_a_row >= HOPELESS_AFTER);
        failure.map(|failure| failure.error.as_str())
    }

    fn state(&self, now: Instant) -> FamilyState {
        self.family_state(now)
    }

    fn conflicts(&self) -> Vec<snapshot::Conflict> {
        let claims = self.pipeline.table().lost_claims().take(snapshot::MAX_CONFLICTS);
        claims.map(|(loser, winner)| build::conflict(loser, winner)).collect()
    }

    fn recent_changes(&self) -> Vec<snapshot::RecentChange> {
        self.history.all(F::FAMILY).collect()
    }

    fn service(
        &self,
        node: &ThisNode,
        name: &ServiceName,
        entry: Option<&ServiceEntry>,
        now: Instant,
    ) -> Option<ServiceFamily> {
        self.explain_service(node, name, entry, now)
    }

    fn want_traffic(&mut self) {
        if let Some(counting) = &mut self.counting {
            counting.want();
        }
    }
}
