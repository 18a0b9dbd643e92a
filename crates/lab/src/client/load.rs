//! A steady stream of new connections, every one of which is accounted for.
//!
//! Ports do not run out: the server of [`crate::echo::Mode::Line`] closes first, so `TIME_WAIT` stays on its side, and
//! the client's port is free as soon as the client has closed. The client reads to the end of the stream before it
//! closes, which makes sure of that order. It never resets a connection to get rid of it, so nothing that goes wrong
//! is hidden: a connection that does not deliver its whole line and a clean end counts as a failure.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{ConnectFailure, FailureClass, Reply, Transport, float, report_icmp_errors, unspecified};
use crate::Namespace;

/// How often the generator catches up with its rate.
const TICK: Duration = Duration::from_millis(1);

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where to connect, usually a Service.
    pub target: SocketAddr,
    /// By which protocol. A UDP "connection" is one datagram from a fresh port and its answer.
    pub transport: Transport,
    /// New connections a second.
    pub rate: u32,
    /// How long each may take until it counts as failed.
    pub timeout: Duration,
}

/// The first thing that went wrong.
#[derive(Clone, Debug)]
pub struct FirstFailure {
    /// When it was noticed.
    pub at: SystemTime,
    /// The same, since the generator started.
    pub after: Duration,
    /// Of which kind it was.
    pub class: FailureClass,
    /// The error in words.
    pub text: String,
}

/// The account of a run. `started` = `succeeded` + all `failures`, once the generator has stopped.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Connections begun.
    pub started: u64,
    /// Connections that delivered the server's whole line and ended cleanly.
    pub succeeded: u64,
    /// The others.
    pub failures: BTreeMap<FailureClass, u64>,
    /// The first of these.
    pub first_failure: Option<FirstFailure>,
    /// How often each server answered.
    pub by_server: BTreeMap<String, u64>,
    /// How long each success took, in microseconds; sorted once the generator has stopped.
    pub latencies_us: Vec<u32>,
    /// From the start until stopping was asked for.
    pub elapsed: Duration,
}

impl LoadReport {
    /// How many connections failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Connections begun a second. Lower than asked for if the machine was too busy.
    pub fn achieved_rate(&self) -> f64 {
        float(self.started) / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The latency that so many thousandths of the successes did not exceed: 500 is the median, 990 the usual p99,
    /// 1000 the maximum. `None` without any success. Only meaningful once the generator has stopped.
    pub fn latency(&self, per_mille: usize) -> Option<Duration> {
        let last = self.latencies_us.len().checked_sub(1)?;
        let index = last * per_mille.min(1000) / 1000;
        Some(Duration::from_micros(self.latencies_us[index].into()))
    }

    fn record(&mut self, outcome: Result<Reply, ConnectFailure>, took: Duration, after: Duration) {
        match outcome {
            Ok(reply) => {
                self.succeeded += 1;
                *self.by_server.entry(reply.name).or_default() += 1;
                self.latencies_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            }
            Err(failure) => {
                let class = failure.class();
                *self.failures.entry(class).or_default() += 1;
                self.first_failure.get_or_insert_with(|| FirstFailure {
                    at: SystemTime::now(),
                    after,
                    class,
                    text: describe(&failure),
                });
            }
        }
    }
}

fn describe(failure: &ConnectFailure) -> String {
    match failure {
        ConnectFailure::Other(source) => source.to_string(),
        plain => plain.to_string(),
    }
}

/// A running generator: one thread in a namespace. Dropping it stops it and forgets the account.
#[derive(Debug)]
pub struct LoadGenerator {
    report: Arc<Mutex<LoadReport>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LoadGenerator {
    /// Starts to connect at once. Raises the process's soft limit of open files to the hard one, because connections
    /// that hang until their timeout add up.
    ///
    /// # Errors
    /// If the runtime cannot be made.
    pub fn start(namespace: &Namespace, load: Load) -> io::Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let report = Arc::new(Mutex::new(LoadReport::default()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&report);
        let thread = namespace.spawn(move || runtime.block_on(generate(load, shared, stopped)));
        Ok(Self { report, stop: Some(stop), thread: Some(thread) })
    }

    /// The account so far, without the connections under way.
    pub fn snapshot(&self) -> LoadReport {
        lock(&self.report).clone()
    }

    /// Opens no more connections, waits for those under way, and returns the account.
    ///
    /// # Panics
    /// If the generator's thread did.
    pub fn stop(mut self) -> LoadReport {
        assert!(self.join(), "the load generator panicked");
        let mut report = std::mem::take(&mut *lock(&self.report));
        report.latencies_us.sort_unstable();
        report
    }

    /// Ends the thread, and says whether it had not panicked.
    fn join(&mut self) -> bool {
        // Dropping the sender wakes the thread as well as a message would.
        self.stop = None;
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for LoadGenerator {
    fn drop(&mut self) {
        if !self.join() {
            tracing::error!("load generator panicked");
        }
    }
}

/// The report behind its lock; nothing that holds the lock can leave it half written.
fn lock(report: &Mutex<LoadReport>) -> std::sync::MutexGuard<'_, LoadReport> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn generate(load: Load, report: Arc<Mutex<LoadReport>>, mut stopped: oneshot::Receiver<()>) {
    let start = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connections = JoinSet::new();
    let mut n_started = 0;
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {}
        }
        // Counted from the start and not from tick to tick: a late tick makes up for what was missed.
        let due = start.elapsed().as_micros() * u128::from(load.rate) / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        for _ in n_started..due {
            connections.spawn(connect(load, start, Arc::clone(&report)));
        }
        n_started = n_started.max(due);
        while connections.try_join_next().is_some() {}
        let mut report = lock(&report);
        report.started = n_started;
        report.elapsed = start.elapsed();
    }
    while connections.join_next().await.is_some() {}
}

async fn connect(load: Load, start: Instant, report: Arc<Mutex<LoadReport>>) {
    let begun = Instant::now();
    let ask = async {
        match load.transport {
            Transport::Tcp => ask_tcp(load.target).await,
            Transport::Udp => ask_udp(load.target).await,
        }
    };
    let outcome = match timeout(load.timeout, ask).await {
        Ok(outcome) => outcome.map_err(ConnectFailure::classify).and_then(|line| line.parse()),
        Err(_elapsed) => Err(ConnectFailure::TimedOut),
    };
    lock(&report).record(outcome, begun.elapsed(), start.elapsed());
}

async fn ask_tcp(target: SocketAddr) -> io::Result<String> {
    let mut line = String::new();
    TcpStream::connect(target).await?.read_to_string(&mut line).await?;
    if line.ends_with('\n') { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn ask_udp(target: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind((unspecified(target), 0)).await?;
    socket.connect(target).await?;
    report_icmp_errors(&socket, target)?;
    socket.send(b"?").await?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
