//! The one place where the agent's progress becomes metrics and health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::health::SharedHealth;
use metrics::{FamilyMetrics, Metrics};
use mode::{Attempt, Observer, RuleCount, Target};
use model::view::{HealthCheck, HealthChecks, NoLocalEndpoints};
use model::{Change, IpFamily, Kind, Object, ServiceName, Touched};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::counting::Published;
use crate::pipeline::{Done, Failed, Failing, Reason, Step};
use crate::snapshot;

/// Where the agent tells how it gets on.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health of the proxy.
    pub health: SharedHealth,
    /// Service health checks by family, as of each family's last success.
    pub health_checks: watch::Sender<BTreeMap<IpFamily, HealthChecks>>,
    /// Rises whenever an [`snapshot::Overview`] may have changed.
    pub generation: watch::Sender<u64>,
    /// What went through, as of each family's last reading.
    pub traffic: watch::Sender<Published>,
    ask: UnboundedSender<Question>,
    /// Until the agent takes it.
    questions: Arc<Mutex<Option<UnboundedReceiver<Question>>>>,
}

/// Something that somebody wants to know.
#[derive(Debug)]
pub(crate) enum Question {
    Service {
        service: ServiceName,
        answer: oneshot::Sender<Option<snapshot::Service>>,
    },
    Services {
        wanted: snapshot::Wanted,
        answer: oneshot::Sender<snapshot::Page>,
    },
    Overview {
        answer: oneshot::Sender<snapshot::Overview>,
    },
    /// Somebody looks at what went through.
    Traffic,
}

impl Question {
    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Service { answer, .. } => answer.is_closed(),
            Self::Services { answer, .. } => answer.is_closed(),
            Self::Overview { answer } => answer.is_closed(),
            Self::Traffic => false,
        }
    }
}

/// How many events came in, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Events {
    services: usize,
    slices_v4: usize,
    slices_v6: usize,
    /// Of either family.
    deleted_slices: usize,
}

impl Events {
    /// Counts a change.
    pub(crate) fn count(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => self.count_object(object),
            Change::Replace { objects, .. } => objects.iter().for_each(|object| self.count_object(object)),
            Change::Delete(Kind::Service, _) => self.services += 1,
            Change::Delete(Kind::EndpointSlice, _) => self.deleted_slices += 1,
            Change::Delete(Kind::Node | Kind::ServiceCidr, _) => {}
        }
    }

    fn count_object(&mut self, object: &Object) {
        match object {
            Object::Service(_) => self.services += 1,
            Object::EndpointSlice(slice) => match slice.family() {
                IpFamily::V4 => self.slices_v4 += 1,
                IpFamily::V6 => self.slices_v6 += 1,
            },
            Object::Node(_) | Object::ServiceCidr(_) => {}
        }
    }

    /// Events that may concern a family's endpoints.
    fn slices(&self, family: IpFamily) -> usize {
        self.deleted_slices
            + match family {
                IpFamily::V4 => self.slices_v4,
                IpFamily::V6 => self.slices_v6,
            }
    }

    /// All events of slices.
    fn all_slices(&self) -> usize {
        self.slices_v4 + self.slices_v6 + self.deleted_slices
    }
}

impl Telemetry {
    /// Tells these; nobody listens to health checks yet.
    pub fn new(metrics: Arc<Metrics>, health: SharedHealth) -> Self {
        let (ask, questions) = unbounded_channel();
        let questions = Arc::new(Mutex::new(Some(questions)));
        Self {
            metrics,
            health,
            health_checks: watch::Sender::default(),
            generation: watch::Sender::default(),
            traffic: watch::Sender::default(),
            ask,
            questions,
        }
    }

    /// Asks where packets for a Service go on this node, and why; `None` if there is no such Service. The answer comes when the
    /// agent gets to it; never, if it has ended.
    pub fn service(&self, service: ServiceName) -> oneshot::Receiver<Option<snapshot::Service>> {
        self.ask(|answer| Question::Service { service, answer })
    }

    /// Asks for some Services. Otherwise as [`Telemetry::service`].
    pub fn services(&self, wanted: snapshot::Wanted) -> oneshot::Receiver<snapshot::Page> {
        self.ask(|answer| Question::Services { wanted, answer })
    }

    /// Asks how everything is. Otherwise as [`Telemetry::service`].
    pub fn overview(&self) -> oneshot::Receiver<snapshot::Overview> {
        self.ask(|answer| Question::Overview { answer })
    }

    /// Has what went through read soon, at most once a second, and gives what is known now. Asks nothing of the event loop but to
    /// begin a reading.
    pub fn traffic(&self) -> Published {
        drop(self.ask.send(Question::Traffic));
        self.traffic.borrow().clone()
    }

    fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        // Without an agent the answer's sender is dropped, which the receiver notices.
        drop(self.ask.send(question(answer)));
        receiver
    }

    /// Something of the overview may have changed.
    pub(crate) fn tell_news(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The questions; only the first who asks gets them.
    pub(crate) fn take_questions(&self) -> UnboundedReceiver<Question> {
        let taken = self.questions.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| unbounded_channel().1)
    }

    /// Events came in, and touched this; what each family makes of it is its own business.
    pub(crate) fn take_events(&self, events: &Events) {
        self.metrics.changes.endpoints_total.inc_by(events.all_slices() as u64);
    }
}

/// So many trigger times are kept while the kernel refuses everything.
const MAX_TRIGGERS: usize = 1 << 16;

/// One family's part.
pub(crate) struct FamilyTelemetry {
    family: IpFamily,
    shared: Telemetry,
    metrics: FamilyMetrics,
    /// What only the mode has.
    observer: Box<dyn Observer>,
    /// Trigger times of changes that may not be in force yet, and when each became known.
    triggers: Vec<(Instant, SystemTime)>,
    /// Older trigger times say nothing about this program.
    started: SystemTime,
    /// Events that no sync has taken up.
    waiting_services: usize,
    waiting_slices: usize,
    /// A sync was asked for, and nothing has been said of its success.
    asked: bool,
    checks: HealthChecks,
    checks_differ: bool,
    no_local: BTreeMap<ServiceName, NoLocalEndpoints>,
    no_local_sum: NoLocalEndpoints,
}

/// What there is to know of a pipeline at some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation {
    pub(crate) pending_since: Option<Instant>,
    /// Something is known that no plan has taken up.
    pub(crate) has_waiting: bool,
    pub(crate) conflicts: usize,
    pub(crate) refused: usize,
}

impl FamilyTelemetry {
    pub(crate) fn start(shared: &Telemetry, family: IpFamily, observer: Box<dyn Observer>) -> Self {
        let metrics = shared.metrics.family(family);
        let started = SystemTime::now();
        metrics.last_queued.set(unix_seconds(started));
        shared.health.lock().started(family, started);
        Self {
            family,
            shared: shared.clone(),
            metrics,
            observer,
            triggers: Vec::new(),
            started,
            waiting_services: 0,
            waiting_slices: 0,
            asked: false,
            checks: HealthChecks::default(),
            checks_differ: true,
            no_local: BTreeMap::new(),
            no_local_sum: NoLocalEndpoints::default(),
        }
    }

    /// Events came in, and touched this.
    pub(crate) fn take_events(&mut self, events: &Events, touched: &Touched, now: Instant) {
        let slices = events.slices(self.family);
        self.waiting_services += events.services;
        self.waiting_slices += slices;
        let changes = &self.shared.metrics.changes;
        changes.services_total.inc_by(events.services as u64);
        changes.services_pending.add(signed(events.services));
        changes.endpoints_pending.add(signed(slices));
        let own = touched.trigger_times.iter().filter(|(family, _)| *family == self.family);
        let recent = own.filter(|(_, time)| *time > self.started).take(MAX_TRIGGERS - self.triggers.len());
        self.triggers.extend(recent.map(|(_, time)| (now, *time)));
        if !touched.services.is_empty() || touched.node || touched.service_cidrs {
            self.asked = true;
            self.metrics.last_queued.set(unix_seconds(SystemTime::now()));
        }
    }

    /// What this node makes of a Service besides frontends.
    pub(crate) fn set_service(
        &mut self,
        name: &ServiceName,
        check: Option<HealthCheck>,
        no_local: NoLocalEndpoints,
    ) {
        let known = match check {
            Some(check) => self.checks.services.insert(name.clone(), check),
            None => self.checks.services.remove(name),
        };
        self.checks_differ |= known != check;
        let before = if no_local == NoLocalEndpoints::default() {
            self.no_local.remove(name)
        } else {
            self.no_local.insert(name.clone(), no_local)
        };
        self.no_local_sum = self.no_local_sum + no_local - before.unwrap_or_default();
    }

    /// Node ports are served on addresses in these ranges.
    pub(crate) fn set_ranges(&mut self, ranges: Vec<ipnet::IpNet>) {
        self.checks_differ |= self.checks.ranges != ranges;
        self.checks.ranges = ranges;
    }

    /// An attempt succeeded, and there are so many rules now.
    pub(crate) fn done(&mut self, done: &Done, rules: &[RuleCount]) {
        self.shared.tell_news();
        let metrics = &self.metrics;
        self.count_step(done.step, done.latency);
        let is_sent = !matches!(done.step, Step::Unchanged(_));
        if is_sent {
            metrics.transactions_ok.inc();
            metrics.elements_written.inc_by(done.writes as u64);
        }
        let is_partial = done.step == Step::Change;
        self.observer.attempted(&Attempt {
            is_partial,
            is_reading: !is_sent,
            succeeded: true,
            kernel_time: done.kernel_time,
            rules,
        });
        self.attempted(done.duration, is_partial);
        if done.is_complete {
            self.confirmed(done.planned);
        }
    }

    fn count_step(&self, step: Step, latency: Duration) {
        let metrics = &self.metrics;
        match step {
            Step::Change
            | Step::Repair(Reason::Start | Reason::Failure | Reason::Settings | Reason::Surroundings)
            | Step::Rebuild(Reason::Start | Reason::Settings | Reason::Surroundings) => {
                metrics.commit_latency.observe(latency.as_secs_f64());
            }
            Step::Rebuild(Reason::Failure) => {
                metrics.commit_latency.observe(latency.as_secs_f64());
                metrics.rebuilds.inc();
            }
            Step::Repair(Reason::ForeignChange) => metrics.drift_repairs.inc(),
            Step::Repair(Reason::Audit) => {
                metrics.drift_repairs.inc();
                metrics.audit_divergences.inc();
            }
            Step::Rebuild(Reason::ForeignChange | Reason::Audit) => {
                metrics.drift_repairs.inc();
                metrics.rebuilds.inc();
            }
            Step::Unchanged(_) => {}
        }
    }

    /// An attempt failed.
    pub(crate) fn failed<T: Target>(&self, failed: &Failed<T>, rules: &[RuleCount]) {
        self.shared.tell_news();
        let is_partial = failed.during == Failing::Change;
        let is_reading = failed.during == Failing::Read;
        let kernel_time = failed.kernel_time;
        self.observer.attempted(&Attempt { is_partial, is_reading, succeeded: false, kernel_time, rules });
        if is_reading {
            self.metrics.read_failures.inc();
        } else {
            self.metrics.commit_failures.inc();
            self.metrics.transactions_failed.inc();
        }
        self.attempted(failed.duration, is_partial);
    }

    /// Stale flows were looked for.
    pub(crate) fn swept(&self, deleted: u64, took: Duration) {
        self.metrics.conntrack_duration.observe(took.as_secs_f64());
        self.metrics.conntrack_deleted.inc_by(deleted);
        self.metrics.deleted_flows.inc_by(deleted);
    }

    /// Something may have happened to the pipeline.
    pub(crate) fn follow(&mut self, situation: Situation, now: Instant) {
        self.shared.health.lock().pending(self.family, situation.pending_since);
        self.metrics.frontend_conflicts.set(signed(situation.conflicts));
        self.metrics.refused.set(signed(situation.refused));
        if !situation.has_waiting {
            let changes = &self.shared.metrics.changes;
            changes.services_pending.sub(signed(std::mem::take(&mut self.waiting_services)));
            changes.endpoints_pending.sub(signed(std::mem::take(&mut self.waiting_slices)));
        }
        // What was asked for turned out to be there already.
        if self.asked && situation.pending_since.is_none() {
            self.confirmed(now);
        }
    }

    /// Nothing is expected to be in force yet.
    pub(crate) fn nothing_expected(&self) {
        self.shared.health.lock().pending(self.family, None);
    }

    /// When all was last found to be in force, in seconds of Unix time.
    pub(crate) fn last_synced(&self) -> Option<f64> {
        Some(self.metrics.last_synced.get()).filter(|time| *time > 0.0)
    }

    /// What was undone of others' doings so far.
    pub(crate) fn repairs(&self) -> snapshot::Repairs {
        snapshot::Repairs {
            repairs: self.metrics.drift_repairs.get(),
            audit_divergences: self.metrics.audit_divergences.get(),
            rebuilds: self.metrics.rebuilds.get(),
            failed_readings: self.metrics.read_failures.get(),
            failed_syncs: self.metrics.commit_failures.get(),
        }
    }

    fn attempted(&self, duration: Duration, is_partial: bool) {
        let seconds = duration.as_secs_f64();
        self.metrics.sync_duration.observe(seconds);
        let by_extent =
            if is_partial { &self.metrics.partial_sync_duration } else { &self.metrics.full_sync_duration };
        by_extent.observe(seconds);
    }

    /// The kernel has what was known at that moment.
    fn confirmed(&mut self, known_at: Instant) {
        self.asked = false;
        let now = SystemTime::now();
        self.metrics.last_synced.set(unix_seconds(now));
        for (_, time) in self.triggers.extract_if(.., |(received, _)| *received <= known_at) {
            // A clock of another machine that is ahead makes no negative times.
            let since = now.duration_since(time).unwrap_or_default();
            self.metrics.network_programming.observe(since.as_secs_f64());
        }
        self.metrics.no_local_internal.set(signed(self.no_local_sum.internal));
        self.metrics.no_local_external.set(signed(self.no_local_sum.external));
        self.shared.health.lock().synced(self.family, now);
        if std::mem::take(&mut self.checks_differ) {
            let checks = self.checks.clone();
            self.shared.health_checks.send_modify(|published| _ = published.insert(self.family, checks));
        }
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
