//! Mode userspace: a worker for each family carries connections and datagrams, beside the rules of mode nftables.

mod process;
mod site;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use agent::{FamilyMode, ServedFamily, with_causes};
use anyhow::Context as _;
use backend_nftables::{Backend, lease::LEASE_SECS};
use backend_userspace::{Carried, Supervisor, UserspacePlanner, UserspaceTarget, Worker};
use config::Config;
use metrics::{Metrics, UserspaceMetrics};
use model::{Family, IpFamily, RuleSettings, V4, V6};
use proxy::frame::Settings;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use self::process::Process;
use self::site::KernelSite;
use super::{Endings, nftables};
use crate::takeover::{Leftovers, TakeOvers};
use crate::watching::spawn_watch;

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

/// What serves these families.
pub(super) fn serve(
    config: &Config,
    families: &[IpFamily],
    metrics: &Metrics,
    endings: &Endings,
) -> Vec<ServedFamily> {
    let observer = UserspaceMetrics::register(metrics);
    let take_overs = TakeOvers::new(config, Leftovers::OtherModes, families);
    let shared = Shared {
        settings: settings(config),
        verbosity: config.logging.verbosity,
        take_overs,
        families: RefCell::default(),
    };
    let family = |family: &IpFamily| match family {
        IpFamily::V4 => ServedFamily::new(shared.served::<V4>(observer(*family))),
        IpFamily::V6 => ServedFamily::new(shared.served::<V6>(observer(*family))),
    };
    let served = families.iter().map(family).collect();
    let ending = shared.families.take();
    endings.add(move || end(ending));
    served
}

fn settings(config: &Config) -> Settings {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let forgotten = [config.conntrack.udp_timeout, config.conntrack.udp_stream_timeout];
    let forgotten = forgotten.into_iter().flatten().filter(|timeout| !timeout.is_zero()).min();
    Settings {
        connect_timeout_ms: millis(CONNECT_TIMEOUT),
        udp_idle_ms: millis(forgotten.map_or(UDP_IDLE, |timeout| (timeout * 2 / 3).min(UDP_IDLE))),
        drain_ms: millis(DRAIN),
        linger_ms: u64::from(LEASE_SECS) * 2000,
        policy: config.userspace_policy,
        max_flows: None,
    }
}

/// What both families have.
struct Shared {
    settings: Settings,
    verbosity: u32,
    take_overs: TakeOvers,
    families: RefCell<Vec<ShutDown>>,
}

type Planner<F> = UserspacePlanner<Backend<F>, KernelSite<F>>;

impl Shared {
    fn served<F: Family>(&self, metrics: UserspaceMetrics) -> FamilyMode<F, Planner<F>> {
        let carried = Carried::default();
        let site = KernelSite::new(self.settings.clone(), self.verbosity, carried.clone());
        let supervisor = Arc::new(Mutex::new(Supervisor::new(site)));
        look_after(Arc::downgrade(&supervisor), metrics.clone());
        let (ended, of_meter) = (supervisor.clone(), supervisor.clone());
        let shut_down = move || ended.lock().unwrap_or_else(PoisonError::into_inner).shut_down();
        self.families.borrow_mut().push(Box::new(shut_down));
        FamilyMode {
            planner: UserspacePlanner::new(Backend::new(RuleSettings::default())),
            meter: Some(Arc::new(move || {
                let target = UserspaceTarget::new(nftables::open::<F>()?, of_meter.clone());
                Ok(target.counting(carried.clone()))
            })),
            open: Arc::new(move || Ok(UserspaceTarget::new(nftables::open::<F>()?, supervisor.clone()))),
            watch: Some(Box::new(move |touches| {
                spawn_watch(move || nftables::watch(F::FAMILY.into(), &touches));
            })),
            flows: Some(Arc::new(|| Ok(Box::new(kernel::Flows::open()?)))),
            take_over: Some(self.take_overs.of(F::FAMILY)),
            observer: Box::new(metrics),
            family: PhantomData,
        }
    }
}

/// Looks after a family's worker and lease on a thread of its own, for as long as somebody has them.
fn look_after<F: Family>(supervisor: Weak<Mutex<Supervisor<KernelSite<F>>>>, metrics: UserspaceMetrics) {
    let mut told = 0;
    let turn = move || loop {
        std::thread::sleep(Supervisor::<KernelSite<F>>::PERIOD);
        let Some(supervisor) = supervisor.upgrade() else { return };
        let condition = {
            let mut supervisor = supervisor.lock().unwrap_or_else(PoisonError::into_inner);
            supervisor.look_after(Instant::now());
            supervisor.condition()
        };
        metrics.leased.set(i64::from(condition.is_leased));
        metrics.deaths.inc_by(condition.deaths - told);
        told = condition.deaths;
    };
    let name = format!("worker-{}", if F::FAMILY == IpFamily::V4 { "ip" } else { "ip6" });
    if let Err(error) = std::thread::Builder::new().name(name).spawn(turn) {
        // Without it there is no lease for long.
        warn!(%error, "nobody looks after the worker");
    }
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
    proxy::run(&UnixStream::from(agent), usize::try_from(limit).unwrap_or(usize::MAX)).context("work")
}

/// That of any process.
const WORKER_OOM_SCORE: i32 = 0;
