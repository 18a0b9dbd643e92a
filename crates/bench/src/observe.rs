//! Looks at a program that starts, from outside: packets, the kernel's generation, processor time and memory.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use lab::commits::Generation;
use lab::proxy::Proxy;
use tokio::time::Instant;

use crate::contender::Contender;
use crate::process::{descendants, is_alive, peak_kib, processor_time, resident_kib};
use crate::site::Site;
use crate::world::Probe;

/// How often the kernel is asked for its generation.
const POLL: Duration = Duration::from_micros(500);
/// How often the process is looked at, in polls, and how often its children, for which all processes must be looked at.
const PROCESS_POLLS: u32 = 20;
const CHILDREN_POLLS: u32 = 200;
/// More processor time than this between two looks means that it works.
const BUSY: Duration = Duration::from_millis(1);
/// Who neither works nor commits for this long is at rest. Longer than any usual pause between syncs.
const QUIET: Duration = Duration::from_millis(1500);
/// Who has served everything for this long, and twice the time that it took until then, is not waited for any longer: there
/// are programs that never rest.
const RESTLESS: Duration = Duration::from_secs(5);

/// One start.
pub(crate) struct Started {
    pub(crate) proxy: Proxy,
    /// From before the start until packets to the probes arrived.
    pub(crate) served: Duration,
    /// Until the last transaction was committed.
    pub(crate) committed: Option<Duration>,
    /// How many there were.
    pub(crate) transactions: u32,
    /// Processor time until the program was at rest, with its children.
    pub(crate) processor: Duration,
    /// The most memory, with children as far as they were seen.
    pub(crate) peak_kib: u64,
}

/// Starts a program and waits until each probe is answered by this server, and then until it is at rest.
pub(crate) fn start(
    site: &Site,
    contender: &Contender,
    probes: &[Probe],
    server: usize,
) -> anyhow::Result<Started> {
    let before = site.generation()?;
    let generation = Generation::open(site.lab.node()).context("ask the kernel for its generation")?;
    let begun = Instant::now();
    let mut proxy = site.start(contender)?;
    let observer = Observer::new(proxy.pid(), before, begun);
    let served = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| observer.watch(&generation));
        let served = site.client().run(|| {
            let alive = || observer.seen().is_alive;
            let mut last = begun;
            for probe in probes {
                last = site.reach_while(probe.target(), server, alive)?;
            }
            anyhow::Ok(last - begun)
        });
        if let Ok(served) = served {
            observer.wait_for_rest(2 * served + RESTLESS);
        }
        observer.done.store(true, Ordering::Relaxed);
        watcher.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        served
    });
    let tail = |proxy: &Proxy| {
        let log = proxy.log();
        format!("the end of its log:\n{}", log[log.len().saturating_sub(20)..].join("\n"))
    };
    let served = served.with_context(|| tail(&proxy))?;
    anyhow::ensure!(proxy.is_running(), "the program ended; {}", tail(&proxy));
    let seen = *observer.seen();
    Ok(Started {
        served,
        committed: seen.last_commit.map(|at| at - begun),
        transactions: seen.generation.wrapping_sub(before),
        processor: processor_time(proxy.pid())?,
        peak_kib: seen.peak_kib.max(peak_kib(proxy.pid())?),
        proxy,
    })
}

struct Observer {
    pid: u32,
    seen: Mutex<Seen>,
    done: AtomicBool,
}

/// What has been seen so far.
#[derive(Clone, Copy)]
struct Seen {
    generation: u32,
    last_commit: Option<Instant>,
    last_busy: Instant,
    processor: Duration,
    peak_kib: u64,
    is_alive: bool,
}

impl Observer {
    fn new(pid: u32, generation: u32, begun: Instant) -> Self {
        let seen = Seen {
            generation,
            last_commit: None,
            last_busy: begun,
            processor: Duration::ZERO,
            peak_kib: 0,
            is_alive: true,
        };
        Self { pid, seen: Mutex::new(seen), done: AtomicBool::new(false) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until told to end.
    fn watch(&self, generation: &Generation) -> anyhow::Result<()> {
        let mut polls = 0_u32;
        let mut children = Vec::new();
        while !self.done.load(Ordering::Relaxed) {
            let number = generation.read().context("ask the kernel for its generation")?;
            let now = Instant::now();
            if number != self.seen().generation {
                let mut seen = self.seen();
                (seen.generation, seen.last_commit, seen.last_busy) = (number, Some(now), now);
            }
            if polls.is_multiple_of(CHILDREN_POLLS) {
                children = descendants(self.pid);
            }
            if polls.is_multiple_of(PROCESS_POLLS) {
                self.look_at_processes(&children, now);
            }
            polls += 1;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn look_at_processes(&self, children: &[u32], now: Instant) {
        // Zero for processes that have ended meanwhile.
        let memory = |pid: u32| resident_kib(pid).unwrap_or_default();
        let processor = processor_time(self.pid).unwrap_or_default();
        let kib = memory(self.pid) + children.iter().copied().map(memory).sum::<u64>();
        let mut seen = self.seen();
        if processor > seen.processor + BUSY || children.iter().any(|child| is_alive(*child)) {
            seen.last_busy = now;
        }
        seen.processor = processor;
        seen.peak_kib = seen.peak_kib.max(kib);
        seen.is_alive = is_alive(self.pid);
    }

    /// Waits until the program is at rest or has ended, or the time is over.
    fn wait_for_rest(&self, limit: Duration) {
        let begun = Instant::now();
        loop {
            let seen = *self.seen();
            let is_quiet = seen.last_busy.elapsed() > QUIET;
            if is_quiet || !seen.is_alive || begun.elapsed() > limit {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
