//! The program under test, as a process in a namespace.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::io::Errno;
pub use rustix::thread::CapabilitySet;
use rustix::thread::remove_capability_from_bounding_set;
use tokio::time::Instant;

use crate::Namespace;

/// A running proxy. Killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: Arc<Mutex<Log>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
}

impl Proxy {
    /// Starts a program in a namespace; its standard error is kept as [`Proxy::log`].
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start(namespace: &Namespace, program: &Path, args: &[&str]) -> io::Result<Self> {
        let mut command = namespace.command(&program.to_string_lossy());
        piped(&mut command, args).spawn().map(Self::new)
    }

    /// Like [`Proxy::start`], with no other capabilities than these, nor the means to get any.
    ///
    /// # Errors
    /// The program can't be started, or capabilities can't be given up (which takes `CAP_SETPCAP`).
    pub fn start_with(
        namespace: &Namespace,
        program: &Path,
        args: &[&str],
        capabilities: CapabilitySet,
    ) -> io::Result<Self> {
        // A program inherits from the thread that starts it, and this thread ends right afterwards. As root the program
        // gets whatever is in the bounding set.
        let child = namespace.run(|| {
            for capability in CapabilitySet::all().difference(capabilities).iter() {
                match remove_capability_from_bounding_set(capability) {
                    // The kernel does not know it.
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            piped(&mut Command::new(program), args).spawn()
        })?;
        Ok(Self::new(child))
    }

    fn new(mut child: Child) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let reader = child.stderr.take().map(|stderr| {
            let sink = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
                }
            })
        });
        Self { child, log, reader }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far, a line each.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Waits until a line of the log contains the text; false when the time is over or the program, with all that wrote to its log,
    /// ended without it.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> bool {
        let found = |this: &Self| this.log().iter().any(|line| line.contains(text));
        wait_until(limit, || found(self) || !self.is_running() && self.is_read()) && found(self)
    }

    /// Whether its log is read to the end.
    fn is_read(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It can't be signalled or waited for.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// It can't be signalled, or has not ended in time.
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw).map_err(io::Error::other)?;
        kill(pid, Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// It has not ended in time.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        if wait_until(limit, || !self.is_running()) {
            return self.child.wait();
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the program has not ended"))
    }
}

/// Lines of what a program prints, for readers that don't wait for ever.
#[derive(Debug)]
pub struct Lines(Receiver<String>);

impl Lines {
    /// Reads to the end, in a thread of its own.
    pub fn of(printed: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(printed).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// The next line; none when there are no more, or none came in time (see [`wait_until`]).
    pub fn next(&self, limit: Duration) -> Option<String> {
        self.0.recv_timeout(limit * patience()).ok()
    }
}

fn piped<'c>(command: &'c mut Command, args: &[&str]) -> &'c mut Command {
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped())
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// Asks again and again until the condition holds; false when the time is over. An emulated machine is slow: there `LAB_PATIENCE`
/// in the environment says by what to multiply all limits.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit * patience();
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A variable of the environment: a whole number.
const PATIENCE: &str = "LAB_PATIENCE";

fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(1))
}
