//! The worker's life.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_proxy::{Times, Upstream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::access_log::AccessLog;
use crate::control::{self, Control, Incoming};
use crate::frame::{FrameError, Settings, ToAgent, ToWorker};
use crate::handover::{self, Listeners};
use crate::table::{Table, Traffic};
use crate::{tally, tcp, udp};

/// What all tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: Table,
    pub(crate) control: Control,
    pub(crate) own: Arc<tcp::OwnConnections>,
    /// Whose limits all connections for requests share.
    pub(crate) upstream: Upstream,
    /// Becomes true when no more flows are expected: listeners close once nothing waits there, and connections for requests end after
    /// those that are under way.
    pub(crate) closing: watch::Sender<bool>,
    /// Where a Service does not say.
    pub(crate) times: Times,
    pub(crate) udp_idle: Duration,
    pub(crate) access_log: AccessLog,
    /// See [`Settings::traces_per_million`].
    pub(crate) traces_per_million: Option<u32>,
    /// How often a client's connection for requests became idle.
    pub(crate) n_idled: AtomicUsize,
    linger: Duration,
    room: Arc<Semaphore>,
    max_flows: usize,
}

/// Why a worker can't work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No listeners, or they are of no use.
    #[error("take over the listeners")]
    Listeners {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No runtime.
    #[error("start the runtime")]
    Runtime {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent does not keep to the protocol.
    #[error("what the agent says")]
    Agent {
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// The first frame was another one.
    #[error("the agent did not begin with settings")]
    NoSettings,
}

/// More threads don't make a node-local proxy faster.
const MAX_THREADS: usize = 4;
/// Open files of a connection: its ends, and a pipe each way.
const FILES_PER_FLOW: usize = 6;
/// Open files for all else.
const OTHER_FILES: usize = 64;

/// What a worker is given of its process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// Files that may be open.
    pub max_files: usize,
    /// Gives memory that was freed back to the system, which takes a while.
    pub release_memory: fn(),
}

/// Works at what the agent at the other end of this socket says, until there is nothing left to do.
///
/// # Errors
/// It can't work; nothing that was begun goes on.
pub fn run(agent: &UnixStream, process: Process) -> Result<(), WorkerError> {
    let listeners = handover::receive(agent).map_err(|source| WorkerError::Listeners { source })?;
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(n_threads).enable_all().build();
    let runtime = runtime.map_err(|source| WorkerError::Runtime { source })?;
    let outcome = runtime.block_on(work(agent, listeners, process));
    runtime.shutdown_background();
    outcome
}

async fn work(agent: &UnixStream, listeners: Listeners, process: Process) -> Result<(), WorkerError> {
    let io = |source| WorkerError::Listeners { source };
    let nonsense = |source| WorkerError::Agent { source };
    let agent = agent.try_clone().map_err(io)?;
    agent.set_nonblocking(true).map_err(io)?;
    let (read, write) = tokio::net::UnixStream::from_std(agent).map_err(io)?.into_split();
    let mut incoming = Incoming::new(read);
    let first = incoming.next().await.map_err(nonsense)?;
    let Some(ToWorker::Settings(settings)) = first else { return Err(WorkerError::NoSettings) };
    let (control, says) = Control::new();
    let shared = Arc::new(Shared::new(control, &settings, process.max_files));
    tokio::spawn(control::send(says, write));
    tokio::spawn(tally::report(shared.clone()));
    // What waits at the listeners waits on until it is known where it is to go.
    if let Some(ended) = first_routes(&shared, &mut incoming).await.map_err(nonsense)? {
        debug!(?ended, "no flow was expected");
        return Ok(());
    }
    let serving = serve(&shared, listeners).map_err(io)?;
    let ended = obey(&shared, &mut incoming, process.release_memory).await;
    let linger = match &ended {
        Ok(Ended::Told) => DRAIN_LINGER,
        Ok(Ended::AgentGone) | Err(_) => shared.linger,
    };
    debug!(?ended, ?linger, "no more flows are expected");
    tokio::time::sleep(linger).await;
    shared.closing.send_replace(true);
    let empty = async {
        serving.join_all().await;
        shared.wait_until_empty().await;
    };
    if tokio::time::timeout(shared.times.drain, empty).await.is_err() {
        debug!("the time of the connections that are left is over");
    }
    ended.map(drop).map_err(nonsense)
}

/// For how long flows may come that were on their way when capture was turned off.
const DRAIN_LINGER: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Ended {
    /// The agent wants no more.
    Told,
    /// There is nobody to say anything.
    AgentGone,
}

/// Hears of [`Shared::closing`].
pub(crate) type Closing = watch::Receiver<bool>;

fn serve(shared: &Arc<Shared>, listeners: Listeners) -> io::Result<JoinSet<()>> {
    let mut serving = JoinSet::new();
    let pairs = [(listeners.any, Traffic::Any), (listeners.internal, Traffic::Internal)];
    for (pair, traffic) in pairs {
        let tcp = tokio::net::TcpListener::from_std(pair.tcp)?;
        serving.spawn(tcp::serve(shared.clone(), tcp, traffic, shared.closing.subscribe()));
        let udp = tokio::net::UdpSocket::from_std(pair.udp)?;
        serving.spawn(udp::serve(shared.clone(), udp, traffic, shared.closing.subscribe()));
    }
    Ok(serving)
}

/// Waits until the first routes are in force; gives why there will be none.
async fn first_routes(shared: &Shared, incoming: &mut Incoming) -> Result<Option<Ended>, FrameError> {
    loop {
        let frame = incoming.next().await?;
        let is_first = matches!(frame, Some(ToWorker::Routes(_)));
        let ended = heed(shared, frame);
        if is_first || ended.is_some() {
            return Ok(ended);
        }
    }
}

/// Does what the agent says, until it says no more. Tells it meanwhile when there is no room left.
async fn obey(shared: &Shared, incoming: &mut Incoming, release_memory: fn()) -> Result<Ended, FrameError> {
    let (mut full, mut idling) = (false, Idling::default());
    let mut look = tokio::time::interval(LOOK);
    // Whoever ends the agent may well ask all processes to end: connections go on. With no handler a signal would end all.
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate()).ok(), signal(SignalKind::interrupt()).ok());
    loop {
        let frame = tokio::select! {
            frame = incoming.next() => frame?,
            () = received(&mut terminate) => return Ok(Ended::Told),
            () = received(&mut interrupt) => continue,
            now = look.tick() => {
                shared.table.forget_left(now);
                if idling.leaves_much(shared.n_idled.load(Ordering::Relaxed)) {
                    tokio::task::spawn_blocking(release_memory);
                }
                let is_full = shared.room.available_permits() == 0;
                if is_full != full {
                    full = is_full;
                    warn!(full, "the worker's room for flows");
                    shared.control.tell(ToAgent::Full(full));
                }
                continue;
            }
        };
        if let Some(ended) = heed(shared, frame) {
            return Ok(ended);
        }
    }
}

/// Does what one frame says; gives why it was the last.
fn heed(shared: &Shared, frame: Option<ToWorker>) -> Option<Ended> {
    match frame {
        None => return Some(Ended::AgentGone),
        Some(ToWorker::Routes(routes)) => {
            let generation = routes.generation;
            shared.table.apply(routes);
            shared.control.tell(ToAgent::InForce { generation });
        }
        Some(ToWorker::To { id, destination }) => shared.control.answered(id, destination),
        Some(ToWorker::Drain) => return Some(Ended::Told),
        // They came already.
        Some(ToWorker::Settings(_)) => {}
    }
    None
}

async fn received(signal: &mut Option<Signal>) {
    let is_received = match signal {
        Some(signal) => signal.recv().await.is_some(),
        None => false,
    };
    if !is_received {
        std::future::pending::<()>().await;
    }
}

/// How often the worker looks whether it has room.
const LOOK: Duration = Duration::from_millis(200);

/// Connections that became idle, as of the last look.
#[derive(Debug, Default)]
struct Idling {
    n_seen: usize,
    n_released: usize,
}

/// So many connections have left some 16 KB each.
const MANY_IDLE: usize = 1000;

impl Idling {
    /// Whether what they have left is to go back to the system: not while more of them leave something.
    fn leaves_much(&mut self, n_idled: usize) -> bool {
        let is_settled = std::mem::replace(&mut self.n_seen, n_idled) == n_idled;
        let leaves_much = is_settled && n_idled.wrapping_sub(self.n_released) >= MANY_IDLE;
        if leaves_much {
            self.n_released = n_idled;
        }
        leaves_much
    }
}

/// A connection may have many requests of HTTP/2 at a time.
const REQUESTS_PER_FLOW: usize = 4;

fn times(settings: &Settings) -> Times {
    Times {
        connect: Duration::from_millis(settings.connect_timeout_ms),
        idle: settings.idle_ms.map(Duration::from_millis),
        request: settings.request_ms.map(Duration::from_millis),
        drain: Duration::from_millis(settings.drain_ms),
    }
}

fn request_settings(settings: &Settings, max_flows: usize) -> http_proxy::Settings {
    http_proxy::Settings {
        times: times(settings),
        max_requests: max_flows.saturating_mul(REQUESTS_PER_FLOW),
        // A connection to an endpoint takes none of the files for pipes, of which each flow has two.
        max_idle: max_flows,
    }
}

impl Shared {
    pub(crate) fn new(control: Control, settings: &Settings, max_files: usize) -> Self {
        let by_files = (max_files.saturating_sub(OTHER_FILES) / FILES_PER_FLOW).max(1);
        let max_flows = settings.max_flows.unwrap_or(by_files).min(by_files);
        let own = Arc::new(tcp::OwnConnections::default());
        let upstream = Upstream::new(request_settings(settings, max_flows), own.clone());
        Self {
            table: Table::new(settings.policy),
            control,
            own,
            upstream,
            closing: watch::Sender::new(false),
            times: times(settings),
            udp_idle: Duration::from_millis(settings.udp_idle_ms),
            access_log: AccessLog::begin(settings.access_log_per_million),
            traces_per_million: settings.traces_per_million,
            n_idled: AtomicUsize::new(0),
            linger: Duration::from_millis(settings.linger_ms),
            room: Arc::new(Semaphore::new(max_flows)),
            max_flows,
        }
    }

    /// Room for a flow, as soon as there is some.
    pub(crate) async fn room(&self) -> OwnedSemaphorePermit {
        match self.room.clone().acquire_owned().await {
            Ok(room) => room,
            // Nobody closes it.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// Room for a flow, if there is some.
    pub(crate) fn try_room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    async fn wait_until_empty(&self) {
        let all = u32::try_from(self.max_flows).unwrap_or(u32::MAX);
        // Nobody closes it.
        drop(self.room.acquire_many(all).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_once_when_many_connections_have_become_idle() {
        let mut idling = Idling::default();
        let mut looked = |counts: &[usize]| -> Vec<bool> {
            counts.iter().map(|n_idled| idling.leaves_much(*n_idled)).collect()
        };
        assert_eq!(looked(&[0, 999, 999]), [false; 3], "too few");
        assert_eq!(looked(&[1500, 2000, 2000, 2000]), [false, false, true, false]);
        assert_eq!(looked(&[2500, 2500, 3000, 3000]), [false, false, false, true]);
    }
}
