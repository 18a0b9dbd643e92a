//! Starts of a program: with no rules in the kernel, with the right ones, and of a small cluster.

use std::time::Duration;

use anyhow::Context as _;
use lab::client::{Load, LoadGenerator, Transport};
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::Flavour;

use crate::contender::Contender;
use crate::log;
use crate::observe::{Started, start};
use crate::process::{maps_bytes, processor_time, resident_kib};
use crate::results::Notebook;
use crate::samples::{Samples, float, millis};
use crate::site::{EBPF, LIMIT, Site};
use crate::world::{LINE, PROBES, World};

/// Starts with an empty kernel. Yields the program, which runs on, and whether the kernel tells of what it does: it does
/// for nftables, but not for the older iptables, nor for IPVS.
pub(crate) fn cold(
    site: &Site,
    contender: &Contender,
    floor: Option<&Samples>,
    book: &mut Notebook<'_>,
) -> anyhow::Result<(Proxy, bool)> {
    let Started { proxy, served, committed, transactions, processor, peak_kib } =
        start(site, contender, &PROBES, 0)?;
    let committed = committed.filter(|_| contender.mode() != "ipvs");
    book.times("cold_served", &[served]);
    book.times("cold_cpu", &[processor]);
    book.floor("cold_served", floor.cloned());
    if let Some(committed) = committed {
        book.times("cold_committed", &[committed]);
        book.values("cold_transactions", [float(transactions.into())]);
        book.floor("cold_committed", floor.cloned());
    }
    if contender.mode() == EBPF {
        let is_told = || !log::times(&proxy.log(), log::TRANSLATED, log::TOOK).is_empty();
        anyhow::ensure!(wait_until(LIMIT, is_told), "nothing is translated at the socket");
        book.times("cold_maps", &log::times(&proxy.log(), log::TRANSLATED, log::TOOK));
        book.values("memory_maps", [float(maps_bytes(proxy.pid())?) / 1e6]);
    }
    let lines = proxy.log();
    if let Some(listed) = log::listed(&lines) {
        book.times("cold_listed", &[listed]);
    }
    for (id, key) in [("cold_carried", log::LATENCY), ("cold_kernel", log::IN_KERNEL)] {
        let times = log::times(&lines, log::BROUGHT, key);
        if !times.is_empty() {
            book.times(id, &times);
            book.floor(id, floor.cloned());
        }
    }
    if let Some([chains, rules]) = site.tables()? {
        book.values("tables_chains", [float(chains)]);
        book.values("tables_rules", [float(rules)]);
    }
    let resident = resident_kib(proxy.pid())?;
    book.values("memory_peak", [megabytes(peak_kib)]);
    book.values("memory_cold", [megabytes(resident)]);
    book.values("memory_endpoint", [float(resident * 1024) / float(site.world.endpoints().max(1))]);
    Ok((proxy, committed.is_some()))
}

/// Resident memory after all changes.
pub(crate) fn memory(proxy: &Proxy, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    book.values("memory_changed", [megabytes(resident_kib(proxy.pid())?)]);
    Ok(())
}

fn megabytes(kib: u64) -> f64 {
    float(kib) * 1024.0 / 1e6
}

/// Connections a second while the program restarts.
const RESTART_RATE: u32 = 100;

/// Kills the program and starts it again: with nothing changed meanwhile while clients connect, and then with the last
/// Service's endpoint replaced meanwhile.
pub(crate) fn warm(
    site: &Site,
    contender: &Contender,
    (mut proxy, is_announced): (Proxy, bool),
    book: &mut Notebook<'_>,
) -> anyhow::Result<()> {
    let [_, last] = PROBES;
    site.place(&last, &[0])?;
    site.client().run(|| site.reach(last.target(), 0)).context("come back to the first state")?;
    let load = Load {
        target: LINE.into(),
        transport: Transport::Tcp,
        rate: RESTART_RATE,
        timeout: Duration::from_secs(3),
    };
    let clients = LoadGenerator::start(site.client(), load).context("start clients")?;
    proxy.kill().context("kill the program")?;
    let mut started = start(site, contender, &[last], 0)?;
    let clients = clients.stop();
    book.values("restart_failed", [float(clients.failed())]);
    // Zero means nothing where the kernel tells nothing.
    if is_announced {
        book.values("restart_transactions", [float(started.transactions.into())]);
    }
    book.times("restart_cpu", &[started.processor]);
    if let Some(ready) = log::ready(&started.proxy.log()) {
        book.times("restart_ready", &[ready]);
    }
    started.proxy.kill().context("kill the program")?;
    site.place(&last, &[1])?;
    let started = start(site, contender, &[last], 1)?;
    book.times("restart_packet", &[started.served]);
    Ok(())
}

/// Services and endpoints of a small cluster.
pub(crate) const SMALL: (u32, u32) = (50, 5);

/// A start in a small cluster, and what the program does there while nothing happens.
pub(crate) fn small(
    contender: &Contender,
    flavour: Option<Flavour>,
    idle: Duration,
    book: &mut Notebook<'_>,
) -> anyhow::Result<()> {
    let world = World::new(SMALL.0, SMALL.1)?;
    let site = Site::build(&world, contender.mode(), flavour).context("build the laboratory")?;
    let started = start(&site, contender, &PROBES, 0)?;
    book.times("small_served", &[started.served]);
    let before = processor_time(started.proxy.pid())?;
    std::thread::sleep(idle);
    let used = processor_time(started.proxy.pid())?.saturating_sub(before);
    book.values("idle_cpu", [100.0 * millis(used) / millis(idle)]);
    Ok(())
}
