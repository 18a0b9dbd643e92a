//! A network namespace held by a file descriptor, and ways to run code and programs inside.
//!
//! A namespace lives as long as anything refers to it, and an open descriptor does: no mount, no thread and no process
//! has to keep it. A thread of this process enters by `setns`, which concerns that thread alone; the threads that run a
//! caller's code are therefore always fresh ones, so that no thread of a test runner is ever left in a namespace.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};

use super::{LabError, require_privilege};

/// Where the administrator's tools live, for users whose `PATH` lacks them.
const ADMIN_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A network namespace. Cheap to clone: clones are the same namespace, which ends when the last one is dropped and
/// no process, thread or socket is left in it.
///
/// `/sys/class/net` shows the host's devices even inside, because no file system is mounted anew; ask `ip` instead.
/// `/proc/sys/net` and `/proc/thread-self/net` show the namespace.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    handle: File,
    /// Where threads go that enter: see [`Namespace::is_of_another_node`].
    cgroup: OnceLock<PathBuf>,
}

impl Namespace {
    /// Makes an empty namespace whose loopback interface is up. The name is only for messages.
    ///
    /// # Errors
    /// [`LabError::MissingPrivilege`] first of all; otherwise the step that failed.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let namespace = Self::without_loopback(name)?;
        namespace.exec("ip", &["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Like [`Namespace::new`], for callers that set the loopback interface up together with the rest.
    pub(super) fn without_loopback(name: &str) -> Result<Self, LabError> {
        require_privilege()?;
        let handle = join(thread::scope(|scope| {
            thread::Builder::new()
                .name(format!("netns {name}"))
                .spawn_scoped(scope, unshared_handle)
                .map(thread::ScopedJoinHandle::join)
        }))??;
        Ok(Self(Arc::new(Inner { name: name.to_owned(), handle, cgroup: OnceLock::new() })))
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A path that stands for the namespace while this process lives, for `nsenter --net=PATH PROGRAM` and for
    /// `ip link set DEVICE netns PATH`. (`ip netns exec` wants names in `/run/netns`, and would hide cgroups.)
    pub fn path(&self) -> PathBuf {
        Path::new("/proc").join(std::process::id().to_string()).join("fd").join(self.fd().to_string())
    }

    fn fd(&self) -> i32 {
        self.0.handle.as_raw_fd()
    }

    /// Runs a closure on a fresh thread inside the namespace and returns its result. Sockets that it opens stay in the
    /// namespace wherever they are used later; programs that it starts run inside. May borrow from the caller, and may
    /// be called from several threads at once.
    ///
    /// # Panics
    /// With the closure's own panic, so that assertions work inside; and if the thread cannot be started or the
    /// privilege to enter was given up meanwhile.
    pub fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let outcome = thread::scope(|scope| {
            thread::Builder::new()
                .name(self.0.name.clone())
                .spawn_scoped(scope, || {
                    self.enter();
                    f()
                })
                .expect("a thread can be started")
                .join()
        });
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts a thread inside the namespace; threads that it starts are inside as well. The namespace lives at least
    /// as long as the thread.
    ///
    /// # Panics
    /// If the thread cannot be started.
    pub fn spawn<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let namespace = self.clone();
        thread::Builder::new()
            .name(self.0.name.clone())
            .spawn(move || {
                namespace.enter();
                f()
            })
            .expect("a thread can be started")
    }

    /// Moves the calling thread, which must be one of ours, into the namespace.
    fn enter(&self) {
        setns(&self.0.handle, CloneFlags::CLONE_NEWNET)
            .expect("a thread may enter a namespace of its own process");
        if let Some(cgroup) = self.0.cgroup.get() {
            let thread = nix::unistd::gettid().to_string();
            fs::write(cgroup.join("cgroup.threads"), thread).expect("a thread may leave the node's cgroup");
        }
    }

    /// From now on threads that enter move to this cgroup, so that programs at the sockets of the node under test don't meet
    /// them. Programs started by [`Namespace::command`] stay where they are.
    pub fn is_of_another_node(&self, cgroup: &Path) {
        // Said twice, it is the same.
        drop(self.0.cgroup.set(cgroup.to_owned()));
    }

    /// A command that runs inside, to be completed and started by the caller from any thread (also as a tokio
    /// command). It goes through `nsenter`, which replaces itself with the program: the child's id is the program's.
    /// It can be started only while this process lives and holds the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program)
            .env("PATH", admin_path());
        command
    }

    /// Runs a program inside to its end and returns what it printed to its standard output.
    ///
    /// # Errors
    /// [`LabError::Spawn`] if it does not start, [`LabError::Command`] with its standard error if it fails.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String, LabError> {
        self.exec_with_input(program, args, "")
    }

    /// Like [`Namespace::exec`], with the given standard input.
    ///
    /// # Errors
    /// As [`Namespace::exec`].
    pub fn exec_with_input(&self, program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
        let command = || [&[program], args].concat().join(" ");
        let output = self
            .run(|| run_program(program, args, input))
            .map_err(|source| LabError::Spawn { command: command(), source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Command {
            command: command(),
            namespace: self.0.name.clone(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Loads rules in nft's language with `nft -f -`.
    ///
    /// # Errors
    /// As [`Namespace::exec`].
    pub fn nft(&self, rules: &str) -> Result<(), LabError> {
        self.exec_with_input("nft", &["-f", "-"], rules).map(drop)
    }

    /// Writes kernel settings of the namespace, as paths below `/proc/sys/net` and values.
    ///
    /// # Errors
    /// [`LabError::Sysctl`] for the first that is refused.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| settings.iter().try_for_each(|(key, value)| write_sysctl(key, value)))
    }
}

/// Moves the calling thread to a new network namespace and returns a descriptor of it. The thread must end afterwards.
fn unshared_handle() -> Result<File, LabError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|source| LabError::Namespace { action: "call unshare(CLONE_NEWNET)", source })?;
    File::open("/proc/thread-self/ns/net")
        .map_err(|source| LabError::Resource { action: "open the handle", source })
}

/// The result of a thread that may have failed to start or have panicked.
fn join<R>(outcome: io::Result<thread::Result<R>>) -> Result<R, LabError> {
    let outcome = outcome.map_err(|source| LabError::Resource { action: "start a thread", source })?;
    Ok(outcome.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// This process's `PATH` with the administrator's folders after it.
fn admin_path() -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    format!("{path}:{ADMIN_PATH}")
}

/// Runs a program in the calling thread's namespace, with piped standard streams.
fn run_program(program: &str, args: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", admin_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take();
    thread::scope(|scope| {
        // Written from another thread: a program that answers while it reads would block on a full pipe otherwise.
        let writer = (!input.is_empty()).then(|| {
            let stdin = stdin.take();
            scope.spawn(move || stdin.map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes())))
        });
        drop(stdin);
        let output = child.wait_with_output()?;
        // A program that fails early closes its input; its own message says more than our broken pipe.
        match writer.map(thread::ScopedJoinHandle::join) {
            Some(Ok(Err(error))) if output.status.success() => Err(error),
            _ => Ok(output),
        }
    })
}

/// Writes one setting in the calling thread's namespace.
pub(super) fn write_sysctl(key: &str, value: &str) -> Result<(), LabError> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).map_err(|source| LabError::Sysctl { path, source })
}
