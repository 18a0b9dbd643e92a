//! The one place where the agent's progress becomes metrics and health.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::health::SharedHealth;
use metrics::{FamilyMetrics, Metrics, ModeMetrics};
use model::view::{HealthCheck, HealthChecks, NoLocalEndpoints};
use model::{Change, Family, IpFamily, Kind, Mode, Object, RuleCount, ServiceName, Touched};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::pipeline::{Done, Failed, Failing, Pipeline, Reason, Step};

/// Where the agent tells how it gets on.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health of the proxy.
    pub health: SharedHealth,
    /// Service health checks by family, as of each family's last success.
    pub health_checks: watch::Sender<BTreeMap<IpFamily, HealthChecks>>,
    ask: UnboundedSender<Question>,
    /// Until the agent takes it.
    questions: Arc<Mutex<Option<UnboundedReceiver<Question>>>>,
}

/// What the node makes of a Service, asked of the agent.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) service: ServiceName,
    pub(crate) answer: oneshot::Sender<Option<String>>,
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
        Self { metrics, health, health_checks: watch::Sender::default(), ask, questions }
    }

    /// Asks where packets for a Service go on this node, and why: text for people, `None` if there is no such Service. The
    /// answer comes when the agent gets to it; never, if it has ended.
    pub fn explain(&self, service: ServiceName) -> oneshot::Receiver<Option<String>> {
        let (answer, receiver) = oneshot::channel();
        // Without an agent the answer's sender is dropped, which the receiver notices.
        drop(self.ask.send(Question { service, answer }));
        receiver
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
pub(crate) struct FamilyTelemetry<F: Family> {
    shared: Telemetry,
    metrics: FamilyMetrics,
    /// Trigger times of changes that the kernel may not have yet, and when each became known.
    triggers: Vec<(Instant, SystemTime)>,
    /// Older trigger times say nothing about this program.
    started: SystemTime,
    /// Events that no sync has taken up.
    waiting_services: usize,
    waiting_slices: usize,
    /// A sync was asked for, and nothing has been said of its success.
    asked: bool,
    checks: HealthChecks,
    /// `checks` differ from what has been published.
    checks_differ: bool,
    /// Services with such ports, and the sum.
    no_local: BTreeMap<ServiceName, NoLocalEndpoints>,
    no_local_sum: NoLocalEndpoints,
    family: PhantomData<F>,
}

impl<F: Family> FamilyTelemetry<F> {
    pub(crate) fn start(shared: &Telemetry) -> Self {
        let metrics = shared.metrics.family(F::FAMILY);
        let started = SystemTime::now();
        metrics.last_queued.set(unix_seconds(started));
        shared.health.lock().started(F::FAMILY, started);
        Self {
            shared: shared.clone(),
            metrics,
            triggers: Vec::new(),
            started,
            waiting_services: 0,
            waiting_slices: 0,
            asked: false,
            checks: HealthChecks::default(),
            checks_differ: true,
            no_local: BTreeMap::new(),
            no_local_sum: NoLocalEndpoints::default(),
            family: PhantomData,
        }
    }

    /// Events came in, and touched this.
    pub(crate) fn take_events(&mut self, events: &Events, touched: &Touched, now: Instant) {
        let slices = events.slices(F::FAMILY);
        self.waiting_services += events.services;
        self.waiting_slices += slices;
        let changes = &self.shared.metrics.changes;
        changes.services_total.inc_by(events.services as u64);
        changes.services_pending.add(signed(events.services));
        changes.endpoints_pending.add(signed(slices));
        let own = touched.trigger_times.iter().filter(|(family, _)| *family == F::FAMILY);
        let recent = own.filter(|(_, time)| *time > self.started).take(MAX_TRIGGERS - self.triggers.len());
        self.triggers.extend(recent.map(|(_, time)| (now, *time)));
        if !touched.services.is_empty() || touched.node || touched.service_cidrs {
            self.asked = true;
            self.metrics.last_queued.set(unix_seconds(SystemTime::now()));
        }
    }

    /// A Service was looked at, and this came of it.
    pub(crate) fn looked_at(
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
        let metrics = &self.metrics;
        let latency = done.latency.as_secs_f64();
        match done.step {
            Step::Change | Step::Repair(Reason::Start | Reason::Failure | Reason::Settings) => {
                metrics.commit_latency.observe(latency);
            }
            Step::Repair(Reason::ForeignChange) => metrics.drift_repairs.inc(),
            Step::Repair(Reason::Audit) => {
                metrics.drift_repairs.inc();
                metrics.audit_divergences.inc();
            }
            Step::Unchanged(_) => {}
        }
        if !matches!(done.step, Step::Unchanged(_)) {
            metrics.transactions_ok.inc();
            metrics.elements_written.inc_by(done.elements as u64);
        }
        match &metrics.mode {
            ModeMetrics::Nftables(nftables) => {
                let observe = |time: Duration| nftables.kernel_transaction.observe(time.as_secs_f64());
                done.kernel_time.into_iter().for_each(observe);
            }
            ModeMetrics::Iptables(iptables) => {
                for RuleCount { table, held, written } in rules {
                    let Some(table) = iptables.table(table) else { continue };
                    table.total.set(signed(*held));
                    table.last.set(signed(*written));
                }
            }
        }
        self.attempted(done.duration, done.step == Step::Change);
        self.confirmed(done.planned);
    }

    /// An attempt failed.
    pub(crate) fn failed<M: Mode>(&self, failed: &Failed<M>) {
        match &self.metrics.mode {
            ModeMetrics::Nftables(nftables) => nftables.sync_failures.inc(),
            ModeMetrics::Iptables(iptables) => match failed.during {
                Failing::Read => {}
                Failing::Repair => iptables.restore_failures.inc(),
                Failing::Change => {
                    iptables.restore_failures.inc();
                    iptables.partial_restore_failures.inc();
                }
            },
        }
        match failed.during {
            Failing::Read => self.metrics.read_failures.inc(),
            Failing::Repair | Failing::Change => {
                self.metrics.commit_failures.inc();
                self.metrics.transactions_failed.inc();
            }
        }
        self.attempted(failed.duration, failed.during == Failing::Change);
    }

    /// Stale flows were looked for.
    pub(crate) fn swept(&self, deleted: u64, took: Duration) {
        self.metrics.conntrack_duration.observe(took.as_secs_f64());
        self.metrics.conntrack_deleted.inc_by(deleted);
        self.metrics.deleted_flows.inc_by(deleted);
    }

    /// Something may have happened to the pipeline.
    pub(crate) fn follow<M: Mode>(&mut self, pipeline: &Pipeline<M, F>, now: Instant) {
        let pending = pipeline.pending_since();
        self.shared.health.lock().pending(F::FAMILY, pending);
        let conflicts = pipeline.table().conflict_count();
        self.metrics.frontend_conflicts.set(signed(conflicts));
        if !pipeline.has_waiting() {
            let changes = &self.shared.metrics.changes;
            changes.services_pending.sub(signed(std::mem::take(&mut self.waiting_services)));
            changes.endpoints_pending.sub(signed(std::mem::take(&mut self.waiting_slices)));
        }
        // What was asked for turned out to be there already.
        if self.asked && pending.is_none() {
            self.confirmed(now);
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
        self.shared.health.lock().synced(F::FAMILY, now);
        if std::mem::take(&mut self.checks_differ) {
            let checks = self.checks.clone();
            self.shared.health_checks.send_modify(|published| _ = published.insert(F::FAMILY, checks));
        }
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
