//! A thousand changes a second: does the proxy keep up, and how long does a change take meanwhile?

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use testkit::client::udp_once;
use testkit::proxy::Proxy;
use tokio::time::Instant;

use crate::log;
use crate::report::Report;
use crate::samples::Samples;
use crate::site::{LIMIT, Site};
use crate::world::World;

/// Changes a second.
const RATE: u64 = 1000;
/// Time between two marked changes.
const MARK_PAUSE: Duration = Duration::from_millis(20);
/// Time between two packets that look for a marked change.
const LOOK_PAUSE: Duration = Duration::from_micros(100);

/// Changes endpoints at [`RATE`], and all along moves the probe Service from one pod to the other and back, each time
/// sending packets until one reaches the new pod.
pub(crate) fn measure(
    site: &mut Site,
    proxy: &Proxy,
    seconds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut world = site.world.clone();
    let (n_lines, before) = (proxy.log().len(), site.generation()?);
    let n_changes = RATE * u64::from(seconds);
    let writing = AtomicBool::new(true);
    let shared = &*site;
    let (written, marks) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = write(shared, &mut world, n_changes);
            writing.store(false, Ordering::Relaxed);
            written
        });
        let marks = shared.client().run(|| mark(shared, &writing));
        (writer.join().unwrap_or_else(|panic| resume_unwind(panic)), marks)
    });
    let (written, marks) = (written?, marks?);
    site.world = world;
    let transactions = site.generation()?.wrapping_sub(before);
    // The log may be a little behind the kernel.
    std::thread::sleep(Duration::from_millis(100));
    let own = log::micros(&proxy.log()[n_lines..], log::CHANGED, "latency_us");
    let rate = n_changes * 1000 / u64::try_from(written.as_millis()).unwrap_or(u64::MAX).max(1);
    report.count("churn_rate", "churn: changes a second", rate, "1000");
    report.count("churn_transactions", "  transactions", transactions.into(), "");
    report.times(
        "churn_marked",
        "  a marked change: API write -> packets follow",
        marks.during,
        None,
        "p99 10 ms",
    );
    let own = Samples::new(own).context("the proxy's log has no times")?;
    report.times(
        "churn_received",
        "  oldest change of each transaction: received -> committed",
        own,
        None,
        "p99 10 ms",
    );
    let after = Samples::new(vec![marks.after]).context("one mark")?;
    report.times("churn_caught_up", "  a marked change right after the last one", after, None, "");
    Ok(())
}

/// Writes so many changes, as evenly as it can; yields how long that took.
fn write(site: &Site, world: &mut World, n_changes: u64) -> anyhow::Result<Duration> {
    let mut random = fastrand::Rng::with_seed(2);
    let begun = Instant::now();
    for number in 0..n_changes {
        let service = random.usize(world.ordinary());
        world.replace(service, random.usize(..1000));
        site.api.apply(world.slice(service)).context("store a slice")?;
        let due = begun + Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX) / RATE_U32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(begun.elapsed())
}

#[expect(clippy::cast_possible_truncation, reason = "a thousand")]
const RATE_U32: u32 = RATE as u32;

struct Marks {
    during: Samples,
    /// The one that was begun after the last of the other changes.
    after: Duration,
}

/// Moves the probe Service until the writer has ended, and once more.
fn mark(site: &Site, writing: &AtomicBool) -> anyhow::Result<Marks> {
    let mut during = Vec::new();
    for pod in site.probe_pods().into_iter().rev().cycle() {
        // Asked first: the last mark is then wholly after the writer's end.
        let is_last = !writing.load(Ordering::Relaxed);
        let took = move_and_look(site, pod.ip4().into(), pod.name())?;
        if is_last {
            let during = Samples::new(during).context("the churn was too short for any mark")?;
            return Ok(Marks { during, after: took });
        }
        during.push(took);
        std::thread::sleep(MARK_PAUSE);
    }
    anyhow::bail!("there are no pods")
}

fn move_and_look(site: &Site, pod: IpAddr, name: &str) -> anyhow::Result<Duration> {
    let written = Instant::now();
    site.move_probe(pod)?;
    loop {
        let answer =
            udp_once(Site::probe_address(), Duration::from_secs(1)).context("ask the probe Service")?;
        if answer.name == name {
            return Ok(written.elapsed());
        }
        anyhow::ensure!(written.elapsed() < LIMIT, "packets never followed to {name}");
        std::thread::sleep(LOOK_PAUSE);
    }
}
