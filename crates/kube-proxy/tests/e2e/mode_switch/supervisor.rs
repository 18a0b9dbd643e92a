//! What the kubelet and systemd do: a program that ends is started again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::Namespace;
use lab::proxy::Proxy;

use crate::support::program;

/// How often it looks whether the program runs.
const LOOK: Duration = Duration::from_millis(5);

/// Keeps the program running until it is dropped.
pub(super) struct Supervisor {
    run: Arc<Mutex<Run>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Run {
    proxy: Proxy,
    /// Exit codes of the runs before that were not killed.
    exits: Vec<Option<i32>>,
    /// Logs of all runs before.
    log: Vec<String>,
}

impl Supervisor {
    /// Starts the program in a namespace.
    pub(super) fn start(namespace: &Namespace, arguments: Vec<String>) -> Self {
        let namespace = namespace.clone();
        let start = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            Proxy::start(&namespace, program(), &arguments).unwrap()
        };
        let run = Arc::new(Mutex::new(Run { proxy: start(), exits: Vec::new(), log: Vec::new() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (run.clone(), stop.clone());
        let keep_running = move || {
            while !stopped.load(Ordering::Relaxed) {
                {
                    let mut run = shared.lock().unwrap();
                    if !run.proxy.is_running() {
                        run.begin_again(start());
                    }
                }
                std::thread::sleep(LOOK);
            }
        };
        Self { run, stop, thread: Some(std::thread::spawn(keep_running)) }
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap()
    }

    /// `kill -9`.
    pub(super) fn kill(&self) {
        self.run().proxy.kill().unwrap();
    }

    /// With which codes it ended, without the runs that a signal ended.
    pub(super) fn exit_codes(&self) -> Vec<i32> {
        self.run().exits.iter().copied().flatten().collect()
    }

    /// How often it was started again.
    pub(super) fn restarts(&self) -> usize {
        self.run().exits.len()
    }

    /// What it logged since it was last started.
    pub(super) fn log(&self) -> Vec<String> {
        self.run().proxy.log()
    }

    /// What it logged in all runs, but for its flags.
    pub(super) fn whole_log(&self) -> String {
        let run = self.run();
        let lines = [run.log.clone(), run.proxy.log()].concat();
        lines.into_iter().filter(|line| !line.contains("FLAG: ")).collect::<Vec<_>>().join("\n")
    }
}

impl Run {
    fn begin_again(&mut self, proxy: Proxy) {
        let mut ended = std::mem::replace(&mut self.proxy, proxy);
        self.exits.push(ended.wait(LOOK).unwrap().code());
        self.log.extend(ended.log());
        self.log.push("---- started again".to_owned());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the test has failed already or sees that nothing is started again.
            drop(thread.join());
        }
    }
}
