//! A worker as a process of this program.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use agent::with_causes;
use backend_userspace::{Teller, Worker, WorkerGone};
use conntrack::Tuple;
use proxy::Listeners;
use proxy::frame::{
    FrameReader, MAX_TO_AGENT_BYTES, MAX_TO_WORKER_BYTES, Routes, Settings, ToAgent, ToWorker, encode,
};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::WORKER;
use super::told::Told;

/// The program itself, also when its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";
/// How long a worker may take to be told something, or to have it in force.
const PATIENCE: Duration = Duration::from_secs(5);

/// A worker's process.
pub(super) struct Process {
    control: Arc<Control>,
    in_force: mpsc::Receiver<u64>,
    generation: u64,
}

/// What is shared with the thread that hears the worker.
struct Control {
    /// Whole frames are written by whoever has it.
    writing: Mutex<UnixStream>,
    child: Mutex<Child>,
    is_alive: AtomicBool,
    is_full: AtomicBool,
    told: Told<Teller>,
}

impl Process {
    /// Starts it, with these listeners.
    pub(super) fn start(
        listeners: &Listeners,
        settings: &Settings,
        verbosity: u32,
        told: Told<Teller>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(PATIENCE))?;
        let child = Command::new(PROGRAM)
            .args([WORKER, &verbosity.to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(if settings.access_log_per_million > 0 { Stdio::inherit() } else { Stdio::null() })
            .stderr(Stdio::inherit())
            .spawn()?;
        let (sender, in_force) = mpsc::channel();
        let reading = ours.try_clone()?;
        let control = Arc::new(Control {
            writing: Mutex::new(ours),
            child: Mutex::new(child),
            is_alive: AtomicBool::new(true),
            is_full: AtomicBool::new(false),
            told,
        });
        let hearing = control.clone();
        let hear = move || hearing.hear(reading, &sender);
        let started = std::thread::Builder::new().name("worker".into()).spawn(hear);
        let begun = started.and_then(|_| {
            proxy::hand_over(&control.writing(), listeners)?;
            control.say(&ToWorker::Settings(settings.clone()))
        });
        if let Err(error) = begun {
            control.kill();
            return Err(error);
        }
        Ok(Self { control, in_force, generation: 0 })
    }
}

impl Worker for Process {
    fn set_routes(&mut self, routes: &Routes) -> Result<(), WorkerGone> {
        self.generation += 1;
        let routes = Routes { generation: self.generation, ..routes.clone() };
        let told = self.control.say(&ToWorker::Routes(routes));
        let in_force =
            told.map_err(|error| WorkerGone(format!("it can't be told: {error}"))).and_then(|()| {
                // Whatever is in force of before does not count.
                let answered = std::iter::from_fn(|| self.in_force.recv_timeout(PATIENCE).ok());
                let is_this = |generation: &u64| *generation == self.generation;
                let mut answered = answered.skip_while(|generation| !is_this(generation));
                answered.next().ok_or_else(|| WorkerGone("it does not answer".to_owned()))
            });
        if in_force.is_err() {
            self.control.kill();
        }
        in_force.map(drop)
    }

    fn is_alive(&mut self) -> bool {
        self.control.is_alive.load(Ordering::Acquire)
    }

    fn is_full(&self) -> bool {
        self.control.is_full.load(Ordering::Relaxed)
    }

    fn drain(&mut self) {
        if let Err(error) = self.control.say(&ToWorker::Drain) {
            debug!(%error, "a worker that is to end is gone");
        }
    }
}

impl Control {
    fn writing(&self) -> std::sync::MutexGuard<'_, UnixStream> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, frame: &ToWorker) -> io::Result<()> {
        let bytes = encode(frame, MAX_TO_WORKER_BYTES).map_err(io::Error::other)?;
        self.writing().write_all(&bytes)
    }

    /// Hears the worker until it is gone, and sees to it that it is.
    fn hear(&self, reading: UnixStream, in_force: &mpsc::Sender<u64>) {
        if let Err(error) = self.converse(reading, in_force) {
            warn!(%error, "a worker does not keep to the protocol");
        }
        self.is_alive.store(false, Ordering::Release);
        self.told.outages.ended();
        self.kill();
    }

    fn converse(&self, mut reading: UnixStream, in_force: &mpsc::Sender<u64>) -> io::Result<()> {
        let mut frames = FrameReader::new(MAX_TO_AGENT_BYTES);
        let mut buffer = [0; 8192];
        let mut flows = None;
        loop {
            while let Some(frame) = frames.next_frame().map_err(io::Error::other)? {
                match frame {
                    // Nobody may wait for it any more.
                    ToAgent::InForce { generation } => drop(in_force.send(generation)),
                    ToAgent::Counted(count) => self.told.carried.add(count),
                    ToAgent::Availability(told) => self.told.outages.tell(told, Instant::now()),
                    ToAgent::Requests(told) => self.told.requests.add(&told),
                    ToAgent::Traced(told) => self.told.trace(&told),
                    ToAgent::TracesLost(n) => self.told.note_lost(n),
                    ToAgent::Full(is_full) => self.is_full.store(is_full, Ordering::Relaxed),
                    ToAgent::WhereTo { id, client, listener } => {
                        let destination = original_destination(&mut flows, client, listener);
                        if self.say(&ToWorker::To { id, destination }).is_err() {
                            return Ok(());
                        }
                    }
                }
            }
            match reading.read(&mut buffer) {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => frames.extend(&buffer[..n]),
            }
        }
    }

    /// Ends the process, if it has not ended, and takes note of that.
    fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself.
        drop(child.kill().and_then(|()| child.wait()));
        self.is_alive.store(false, Ordering::Release);
    }
}

/// Where a UDP flow was sent to before it was translated to a listener.
fn original_destination(
    flows: &mut Option<kernel::FlowLookup>,
    client: SocketAddr,
    listener: SocketAddr,
) -> Option<SocketAddr> {
    const UDP: u8 = 17;
    let reply =
        Tuple { src: listener.ip(), dst: client.ip(), src_port: listener.port(), dst_port: client.port() };
    let found = match flows {
        Some(flows) => flows.answered(UDP, &reply),
        None => kernel::FlowLookup::open().and_then(|opened| flows.insert(opened).answered(UDP, &reply)),
    };
    match found {
        Ok(found) => found.map(|flow| SocketAddr::new(flow.orig.dst, flow.orig.dst_port)),
        Err(error) => {
            debug!(err = with_causes(&error), "a flow can't be looked up");
            *flows = None;
            None
        }
    }
}
