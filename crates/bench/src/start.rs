//! Starts of the proxy: with no rules in the kernel, and with the right ones.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use testkit::commits::Generation;
use testkit::proxy::Proxy;
use tokio::time::Instant;

use crate::kernel_share::{KernelShare, settle};
use crate::log;
use crate::process::{memory_kib, processor_time};
use crate::report::Report;
use crate::samples::Samples;
use crate::site::{LIMIT, Site};

/// How often the kernel is asked for its generation, and the log is looked at.
const POLL: Duration = Duration::from_micros(500);

/// One start.
struct Started {
    proxy: Proxy,
    /// Until the log told of both families' rules.
    ready: Duration,
    /// Until the last transaction was committed.
    committed: Option<Duration>,
    /// How many there were.
    transactions: u32,
}

fn start(site: &Site) -> anyhow::Result<Started> {
    let before = site.generation()?;
    let generation = Generation::open(site.lab.node()).context("ask the kernel for its generation")?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let watcher = scope.spawn(|| last_commit(&generation, before, &done));
        let outcome = site.start_proxy().and_then(|proxy| wait_until_ready(proxy, begun));
        done.store(true, Ordering::Relaxed);
        let last = watcher.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        let (proxy, ready) = outcome?;
        let transactions = site.generation()?.wrapping_sub(before);
        Ok(Started { proxy, ready, committed: last.map(|at| at - begun), transactions })
    })
}

fn wait_until_ready(mut proxy: Proxy, begun: Instant) -> anyhow::Result<(Proxy, Duration)> {
    while !log::is_ready(&proxy.log()) {
        let alive = proxy.is_running() && begun.elapsed() < LIMIT;
        anyhow::ensure!(alive, "the proxy does not get ready; its log:\n{}", proxy.log().join("\n"));
        std::thread::sleep(POLL);
    }
    Ok((proxy, begun.elapsed()))
}

/// Watches the generation until `done`; yields when it moved last.
fn last_commit(generation: &Generation, before: u32, done: &AtomicBool) -> std::io::Result<Option<Instant>> {
    let (mut known, mut last) = (before, None);
    loop {
        // Asked first, so that one more reading follows it.
        let is_last = done.load(Ordering::Relaxed);
        let now = generation.read()?;
        if now != known {
            (known, last) = (now, Some(Instant::now()));
        }
        if is_last {
            return Ok(last);
        }
        std::thread::sleep(POLL);
    }
}

/// Starts with an empty kernel; yields the last proxy, which runs on.
pub(crate) fn cold(
    site: &Site,
    n_starts: usize,
    share: &KernelShare,
    report: &mut Report,
) -> anyhow::Result<Proxy> {
    let mut committed = Vec::new();
    let (mut listed, mut carried, mut in_kernel, mut processor) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut started = start(site)?;
        site.check_served()?;
        processor.push(processor_time(started.proxy.pid())?);
        committed.push(started.committed.context("a cold start committed nothing")?);
        let lines = started.proxy.log();
        listed.extend(log::listed(&lines));
        carried.extend(log::micros(&lines, log::BROUGHT, "latency_us"));
        in_kernel.extend(log::micros(&lines, log::BROUGHT, "kernel_us"));
        if committed.len() == n_starts {
            let kernel = Some(&share.load);
            let times = |samples| Samples::new(samples).context("the proxy's log has no times");
            report.times(
                "cold_start",
                "cold start: process start -> last commit",
                times(committed)?,
                kernel,
                "",
            );
            report.times("cold_listed", "  of that, start -> all lists decoded", times(listed)?, None, "");
            let budget = "0.6 s, 1.5 x kernel";
            report.times(
                "cold_carried",
                "  of that, lists decoded -> committed",
                times(carried)?,
                kernel,
                budget,
            );
            report.times("cold_kernel", "  of that, inside the kernel", times(in_kernel)?, kernel, "");
            report.times("cold_processor", "  processor time (10 ms steps)", times(processor)?, None, "");
            report.count(
                "cold_transactions",
                "  transactions (both families)",
                started.transactions.into(),
                "",
            );
            memory(&started.proxy, "after the cold start", report)?;
            return Ok(started.proxy);
        }
        started.proxy.kill().context("kill the proxy")?;
        site.delete_rules()?;
        settle(site.world.services());
    }
}

/// Resident memory, now and at its peak.
pub(crate) fn memory(proxy: &Proxy, when: &str, report: &mut Report) -> anyhow::Result<()> {
    let id = when.replace(' ', "_");
    let now = memory_kib(proxy.pid(), "VmRSS")?;
    let peak = memory_kib(proxy.pid(), "VmHWM")?;
    report.kib(&format!("memory_{id}"), &format!("resident memory {when}"), now, "40 MB; 300 MB at 1e6 ep.");
    report.kib(&format!("memory_peak_{id}"), "  peak", peak, "");
    Ok(())
}

/// Kills the proxy and starts it again, with nothing changed meanwhile.
pub(crate) fn warm(
    site: &Site,
    proxy: &mut Proxy,
    n_starts: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut ready = Vec::new();
    let mut transactions = 0;
    for _ in 0..n_starts {
        proxy.kill().context("kill the proxy")?;
        let started = start(site)?;
        site.check_served()?;
        ready.push(started.ready);
        transactions += started.transactions;
        *proxy = started.proxy;
    }
    let ready = Samples::new(ready).context("no restarts were asked for")?;
    report.times("restart", "restart, nothing changed: start -> rules compared", ready, None, "1 s");
    report.count("restart_transactions", "  transactions in all restarts", transactions.into(), "none");
    Ok(())
}
