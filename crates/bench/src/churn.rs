//! Many changes a second, and a rolling update of a large Service: does the program keep up, and how long does a change
//! take meanwhile?

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::Kind;
use lab::proxy::Proxy;
use tokio::time::Instant;

use crate::log;
use crate::process::processor_time;
use crate::results::Notebook;
use crate::samples::{float, millis};
use crate::site::Site;
use crate::world::{PROBES, Rolling, World};

/// How much churn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Churn {
    /// Changes a second.
    pub(crate) rate: u32,
    pub(crate) time: Duration,
}

/// Time between two marked changes.
const MARK_PAUSE: Duration = Duration::from_millis(20);

/// Changes endpoints at a rate, and all along moves the last Service from one server to another, each time sending
/// packets until one reaches the new one.
pub(crate) fn measure(
    site: &mut Site,
    proxy: &Proxy,
    churn: Churn,
    book: &mut Notebook<'_>,
) -> anyhow::Result<()> {
    let (n_lines, before, processor) = (proxy.log().len(), site.generation()?, processor_time(proxy.pid())?);
    let mut world = site.world.clone();
    let Churned { n_changes, took, marks } = make(site, &mut world, churn)?;
    site.world = world;
    let transactions = site.generation()?.wrapping_sub(before);
    let processor = processor_time(proxy.pid())?.saturating_sub(processor);
    book.values("churn_written", [float(n_changes.into()) / took.as_secs_f64()]);
    book.times("churn_packet", &marks.during);
    book.times("churn_caught_up", &[marks.after]);
    book.values("churn_cpu", [millis(processor) / float(n_changes.into())]);
    if transactions > 0 {
        book.values("churn_transactions", [float(transactions.into()) / took.as_secs_f64()]);
    }
    // The log may be a little behind the kernel.
    std::thread::sleep(Duration::from_millis(100));
    book.times("churn_received", &log::times(&proxy.log()[n_lines..], log::CHANGED, log::LATENCY));
    Ok(())
}

/// What came of it.
pub(crate) struct Churned {
    /// How many changes were written, besides those that are marked,
    n_changes: u32,
    /// and in what time.
    took: Duration,
    pub(crate) marks: Marks,
}

/// Changes endpoints at a rate, and moves the last Service all along.
pub(crate) fn make(site: &Site, world: &mut World, churn: Churn) -> anyhow::Result<Churned> {
    let writing = AtomicBool::new(true);
    let (written, marks) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = write(site, world, churn);
            writing.store(false, Ordering::Relaxed);
            written
        });
        let marks = site.client().run(|| mark(site, &writing));
        (writer.join().unwrap_or_else(|panic| resume_unwind(panic)), marks)
    });
    let ((n_changes, took), marks) = (written?, marks?);
    Ok(Churned { n_changes, took, marks })
}

/// Writes changes, as evenly as it can; yields how many and how long that took.
fn write(site: &Site, world: &mut World, churn: Churn) -> anyhow::Result<(u32, Duration)> {
    let mut random = fastrand::Rng::with_seed(2);
    let begun = Instant::now();
    let mut n_changes = 0;
    loop {
        let due = begun + Duration::from_secs(1) * n_changes / churn.rate;
        if due - begun >= churn.time {
            return Ok((n_changes, begun.elapsed()));
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let service = random.usize(world.ordinary());
        world.replace(service, random.usize(..1000));
        site.apply(world.slice(service))?;
        n_changes += 1;
    }
}

/// How long packets took to follow the changes that are marked.
pub(crate) struct Marks {
    pub(crate) during: Vec<Duration>,
    /// The one that was begun after the last of the other changes.
    after: Duration,
}

/// Moves the last Service, which is at server 0, until the writer has ended, and once more.
fn mark(site: &Site, writing: &AtomicBool) -> anyhow::Result<Marks> {
    let mut during = Vec::new();
    loop {
        // Asked first: the last mark is then wholly after the writer's end.
        let is_last = !writing.load(Ordering::Relaxed);
        let took = mark_once(site, during.len() + 1)?;
        if is_last {
            return Ok(Marks { during, after: took });
        }
        during.push(took);
        std::thread::sleep(MARK_PAUSE);
    }
}

fn mark_once(site: &Site, server: usize) -> anyhow::Result<Duration> {
    let [_, probe] = PROBES;
    let written = Instant::now();
    site.place(&probe, &[server])?;
    Ok(site.reach(probe.target(), server)? - written)
}

/// Time between two writes of the rolling update: a controller's usual pace.
const ROLLING_PAUSE: Duration = Duration::from_millis(10);

/// A Service of 1,000 endpoints in ten slices, all of which are replaced; ten at a time.
pub(crate) fn rolling(site: &Site, proxy: &Proxy, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let mut rolling = Rolling::new();
    let [_, probe] = PROBES;
    site.api.load(rolling.objects()).context("store the Service that rolls")?;
    site.client().run(|| mark_once(site, 1)).context("wait for the Service that rolls")?;
    let (before, processor) = (site.generation()?, processor_time(proxy.pid())?);
    let took = site.client().run(|| {
        for slice in rolling.roll() {
            site.apply(slice)?;
            std::thread::sleep(ROLLING_PAUSE);
        }
        // Watches are in order, so packets that follow this change have the update behind them.
        let written = Instant::now();
        site.place(&probe, &[2])?;
        anyhow::Ok(site.reach(probe.target(), 2)? - written)
    })?;
    let transactions = site.generation()?.wrapping_sub(before);
    let processor = processor_time(proxy.pid())?.saturating_sub(processor);
    book.times("rolling_packet", &[took]);
    book.times("rolling_cpu", &[processor]);
    if transactions > 0 {
        book.values("rolling_transactions", [float(transactions.into())]);
    }
    let (service, slices) = rolling.names();
    site.delete(Kind::Service, service)?;
    for slice in slices {
        site.delete(Kind::EndpointSlice, &slice)?;
    }
    site.client().run(|| mark_once(site, 0)).map(drop).context("wait for the end of the Service that rolled")
}
