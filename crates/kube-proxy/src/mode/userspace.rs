//! A worker for each family that carries connections and datagrams, beside rules: of all Services in mode userspace, of those that ask
//! for it in other modes.

mod process;
mod site;
mod told;

use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ::mode::{OpenTarget, Planner};
use agent::{FamilyMode, OpenConntrack, ServedFamily, with_causes};
use anyhow::Context as _;
use backend_nftables::lease::LEASE_SECS;
use backend_userspace::{
    Carried, OutageCounts, Outages, Requests, ServicePort, Site, Sums, Supervisor, UncarriedFlows,
    UserspacePlanner, UserspaceTarget, Worker,
};
use config::{Config, Mode};
use metrics::{Metrics, RequestMetrics, RequestSums, WorkerMetrics};
use model::{Family, IpFamily};
use proxy::frame::{ANSWER_BOUNDS_MS, RequestCounts, Settings};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use self::process::Process;
use self::site::KernelSite;
use self::told::Told;
use super::{Endings, nftables};
use crate::limits::Limits;
use crate::platform;

/// The command by which the program runs itself as a worker; not for people.
pub(crate) const WORKER: &str = "proxy-worker";

/// For how long a connection to an endpoint is tried. A packet that is lost is sent again after one second, and then after three.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// For how long a client of UDP keeps its endpoint, unless the kernel forgets flows earlier: that is after 30 s, if there was no
/// answer.
const UDP_IDLE: Duration = Duration::from_secs(20);
/// For how long connections may stay with an endpoint that is gone: longer than most pods are given to end.
const DRAIN: Duration = Duration::from_hours(1);
/// How long the end of the program, as the first process of a container, waits for connections. Kubernetes gives 30 s.
const END_LIMIT: Duration = Duration::from_secs(25);

/// Whose flows workers carry.
pub(super) enum Proxying {
    /// Nobody's.
    Nobody,
    /// Those of Services that ask for it, beside a mode of rules.
    Asking(Workers),
    /// Those of all Services.
    All(Workers),
}

impl Proxying {
    pub(super) fn new(config: &Config, metrics: &Metrics, limits: &Limits) -> Self {
        match config.mode {
            Mode::Userspace => Self::All(Workers::new(config, metrics, limits)),
            _ if config.service_proxying.is_none() => Self::Nobody,
            Mode::IpTables if let Some(why) = nftables::no_workers() => {
                warn!(reason = why, "Services that ask for workers are served by iptables' rules");
                limits.note("workers", Some(why));
                Self::Nobody
            }
            _ => Self::Asking(Workers::new(config, metrics, limits)),
        }
    }

    /// A family that is served by rules, and by workers where these are to be.
    pub(super) fn beside<F: Family, P: Planner<F>>(&self, mode: FamilyMode<F, P>) -> ServedFamily {
        match self {
            Self::Nobody => ServedFamily::new(mode),
            Self::Asking(workers) => ServedFamily::new(workers.beside::<F, P, false>(mode)),
            Self::All(workers) => ServedFamily::new(workers.beside::<F, P, true>(mode)),
        }
    }

    /// Has workers end with the program.
    pub(super) fn end_with(self, endings: &Endings) {
        if let Self::Asking(workers) | Self::All(workers) = self {
            let families = workers.families.into_inner();
            endings.add(move || end(families));
        }
    }
}

fn settings(config: &Config) -> Settings {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timeouts = config.worker_timeouts;
    let forgotten = [config.conntrack.udp_timeout, config.conntrack.udp_stream_timeout];
    let forgotten = forgotten.into_iter().flatten().filter(|timeout| !timeout.is_zero()).min();
    Settings {
        connect_timeout_ms: millis(timeouts.connect.unwrap_or(CONNECT_TIMEOUT)),
        udp_idle_ms: millis(forgotten.map_or(UDP_IDLE, |timeout| (timeout * 2 / 3).min(UDP_IDLE))),
        drain_ms: millis(timeouts.drain.unwrap_or(DRAIN)),
        idle_ms: timeouts.idle_limit().map(millis),
        request_ms: timeouts.request_limit().map(millis),
        linger_ms: u64::from(LEASE_SECS) * 2000,
        policy: config.userspace_policy,
        max_flows: None,
        access_log_per_million: config.access_log_per_million,
        traces_per_million: config.tracing.as_ref().map(|tracing| tracing.per_million),
    }
}

/// What metrics tell of a Service port.
fn sums((port, sums): (ServicePort, Sums)) -> (ServicePort, RequestSums) {
    let Sums { counts, ejections, check_failures } = sums;
    let RequestCounts { by_class, by_time, micros, retries } = counts;
    let time = Duration::from_micros(micros);
    (port, RequestSums { by_class, by_time: by_time.into(), time, retries, ejections, check_failures })
}

/// The workers of both families.
pub(super) struct Workers {
    limits: Limits,
    settings: Settings,
    verbosity: u32,
    metrics: Box<dyn Fn(IpFamily) -> WorkerMetrics + Send>,
    requests: RequestMetrics,
    traces: Option<otlp::Spans>,
    /// Where rules hand flows over.
    table: nft::Name,
    families: RefCell<Vec<ShutDown>>,
}

type Beside<F, P, const ALL: bool> = UserspacePlanner<P, KernelSite<F>, ALL>;

impl Workers {
    fn new(config: &Config, metrics: &Metrics, limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            settings: settings(config),
            verbosity: config.logging.verbosity,
            metrics: Box::new(WorkerMetrics::register(metrics)),
            requests: RequestMetrics::register(
                metrics,
                crate::servers::series(&config.service_metrics),
                &ANSWER_BOUNDS_MS,
            ),
            traces: told::begin_traces(config, metrics),
            table: match config.mode {
                Mode::IpTables => backend_nftables::workers_table_name(),
                _ => backend_nftables::table_name(),
            },
            families: RefCell::default(),
        }
    }

    /// What serves a family by rules, with a worker that carries what these hand over.
    fn beside<F: Family, P: Planner<F>, const ALL: bool>(
        &self,
        mode: FamilyMode<F, P>,
    ) -> FamilyMode<F, Beside<F, P, ALL>> {
        let FamilyMode { planner, open, meter, watch, flows, take_over, observer, family } = mode;
        let (carried, requests) = (Carried::default(), Requests::default());
        let outages = Outages::default().counting(&requests);
        let counted = requests.clone();
        self.requests.follow(F::FAMILY, Box::new(move || counted.read().into_iter().map(sums).collect()));
        let (traces, told) = (self.traces.clone(), carried.clone());
        let told = Told { carried: told, outages: outages.clone(), requests, traces };
        let supervisor = self.supervisor::<F>(ALL, told);
        let with_worker = lock(&supervisor).with_worker();
        let beside = |open: OpenTarget<P::Target>| {
            let (supervisor, carried) = (supervisor.clone(), carried.clone());
            let opened: OpenTarget<UserspaceTarget<P::Target, KernelSite<F>>> = Arc::new(move || {
                Ok(UserspaceTarget::new(open()?, supervisor.clone()).counting(carried.clone()))
            });
            opened
        };
        let uncarried = |flows: OpenConntrack| -> OpenConntrack {
            Arc::new(move || Ok(Box::new(UncarriedFlows::new(flows()?, with_worker.clone()))))
        };
        FamilyMode {
            planner: UserspacePlanner::new(planner).hearing(outages),
            open: beside(open),
            meter: meter.map(beside),
            watch,
            flows: flows.map(uncarried),
            take_over,
            observer,
            family,
        }
    }

    fn supervisor<F: Family>(&self, is_for_all: bool, told: Told<Outages>) -> SharedSupervisor<F> {
        let outages = told.outages.clone();
        let site = KernelSite::new(self.table.clone(), (self.settings.clone(), self.verbosity), told);
        let supervisor = Supervisor::new(site);
        let supervisor = Arc::new(Mutex::new(if is_for_all { supervisor } else { supervisor.lazy() }));
        look_after(Arc::downgrade(&supervisor), (outages, self.limits.clone()), (self.metrics)(F::FAMILY));
        let ended = supervisor.clone();
        self.families.borrow_mut().push(Box::new(move || lock(&ended).shut_down()));
        supervisor
    }
}

type SharedSupervisor<F> = Arc<Mutex<Supervisor<KernelSite<F>>>>;

fn lock<S: Site>(supervisor: &Mutex<Supervisor<S>>) -> MutexGuard<'_, Supervisor<S>> {
    supervisor.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks after a family's worker and lease on a thread of its own, for as long as somebody has them.
fn look_after<F: Family>(
    supervisor: Weak<Mutex<Supervisor<KernelSite<F>>>>,
    (outages, limits): (Outages, Limits),
    metrics: WorkerMetrics,
) {
    let (mut told, mut outages_told) = (0, OutageCounts::default());
    let turn = move || loop {
        std::thread::sleep(Supervisor::<KernelSite<F>>::PERIOD);
        let Some(supervisor) = supervisor.upgrade() else { return };
        let (condition, complaint) = {
            let mut supervisor = lock(&supervisor);
            supervisor.look_after(Instant::now());
            (supervisor.condition(), supervisor.complaint().map(str::to_owned))
        };
        limits.note(&format!("workers, {}", F::FAMILY), complaint);
        metrics.leased.set(i64::from(condition.is_leased));
        metrics.deaths.inc_by(condition.deaths - told);
        told = condition.deaths;
        let counts = outages.counts(Instant::now());
        set_outages(&metrics, counts, outages_told);
        outages_told = counts;
    };
    let name = format!("worker-{}", if F::FAMILY == IpFamily::V4 { "ip" } else { "ip6" });
    if let Err(error) = std::thread::Builder::new().name(name).spawn(turn) {
        // Without it there is no lease for long.
        warn!(%error, "nobody looks after the worker");
    }
}

fn set_outages(metrics: &WorkerMetrics, counts: OutageCounts, told: OutageCounts) {
    let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.ejected.set(gauge(counts.ejected));
    metrics.ill.set(gauge(counts.ill));
    metrics.ejections.inc_by(counts.ejections - told.ejections);
    metrics.check_failures.inc_by(counts.check_failures - told.check_failures);
}

/// Has a family's flows handed over no more; gives the worker that still has some.
type ShutDown = Box<dyn FnOnce() -> Option<Process> + Send>;

/// New flows go to endpoints by rules at once. Workers go on with those that they have; they are waited for only where the end of
/// this process would be theirs.
fn end(families: Vec<ShutDown>) {
    let mut workers: Vec<Process> = families.into_iter().filter_map(|shut_down| shut_down()).collect();
    let deadline = Instant::now() + END_LIMIT;
    let is_first = std::process::id() == 1;
    while is_first && workers.iter_mut().any(Worker::is_alive) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Is a worker: its agent is at the other end of standard input.
pub(crate) fn run_worker(arguments: &[String]) -> ExitCode {
    let verbosity = arguments.first().and_then(|text| text.parse().ok()).unwrap_or_default();
    let log = match logs::init(logs::Config { verbosity, ..logs::Config::default() }) {
        Ok(log) => log,
        Err(_is_set_up) => return ExitCode::FAILURE,
    };
    let outcome = work(&log);
    if let Err(error) = &outcome {
        error!(err = format!("{error:#}"), "the worker failed");
    }
    log.flush();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(log: &logs::Handle) -> anyhow::Result<()> {
    // Before there is a second thread, and before anything is received.
    host::drop_all_privileges().context("give up privileges")?;
    // The kernel is to kill a worker rather than its agent. It may refuse.
    if let Err(error) = host::set_oom_score(&host::Root::default(), WORKER_OOM_SCORE) {
        debug!(err = with_causes(&error), "the worker's oom_score_adj stays as it is");
    }
    if let Err(error) = host::restrict_system_calls() {
        debug!(err = with_causes(&error), "the worker's system calls are not restricted");
    }
    log.start_writing().context("start the thread log")?;
    let agent = std::io::stdin().as_fd().try_clone_to_owned().context("find the agent")?;
    let limit = host::descriptor_limit().context("ask for the limit of open files")?;
    let process = proxy::Process {
        max_files: usize::try_from(limit).unwrap_or(usize::MAX),
        release_memory: platform::release_memory,
    };
    proxy::run(&UnixStream::from(agent), process).context("work")
}

/// That of any process.
const WORKER_OOM_SCORE: i32 = 0;
