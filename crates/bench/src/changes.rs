//! Single changes, one after the other: the same ones for the proxy and for the kernel alone.

use std::time::Duration;

use anyhow::Context as _;
use testkit::apiserver::Kind;
use testkit::commits::Commits;
use testkit::objects::NAMESPACE;
use testkit::proxy::{Proxy, wait_until};
use tokio::time::Instant;

use crate::kernel_share::KernelShare;
use crate::log;
use crate::report::Report;
use crate::samples::Samples;
use crate::site::{LIMIT, Site};
use crate::world::{self, Index, World};

/// One change, of which the world knows already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The endpoints of a Service.
    Endpoints(Index),
    /// The extra Service is created, with its endpoints.
    Create,
    /// The extra Service is deleted.
    Delete,
}

/// The kinds of change that are measured. All but the first come in pairs of which the second undoes the first, so
/// that the size stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// One endpoint replaced.
    Replace,
    /// One endpoint added or removed. Another Service has each of the two counts.
    Count,
    /// Two endpoints added or removed. No other Service has the higher count, so that chains come and go.
    NewCount,
    /// A Service created with its endpoints, or deleted.
    Service,
}

/// What one figure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// For programs.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) what: &'static str,
}

impl ChangeKind {
    /// All, in the order in which they are measured.
    pub(crate) const ALL: [Self; 4] = [Self::Replace, Self::Count, Self::NewCount, Self::Service];

    /// The change, or the two of a pair.
    pub(crate) const fn steps(self) -> &'static [Step] {
        match self {
            Self::Replace => &[Step { id: "replace", what: "one endpoint replaced" }],
            Self::Count => &[
                Step { id: "add", what: "one endpoint added" },
                Step { id: "remove", what: "one endpoint removed" },
            ],
            Self::NewCount => &[
                Step { id: "new_count", what: "first Service with so many endpoints" },
                Step { id: "old_count", what: "no Service has so many any more" },
            ],
            Self::Service => &[
                Step { id: "create", what: "one Service created" },
                Step { id: "delete", what: "one Service deleted" },
            ],
        }
    }

    /// Times of changes in the order in which they were made, taken apart by steps.
    fn apart(self, times: &[Duration]) -> anyhow::Result<Vec<Samples>> {
        let n_steps = self.steps().len();
        let of = |first| Samples::new(times.iter().copied().skip(first).step_by(n_steps).collect());
        (0..n_steps).map(of).collect::<Option<_>>().with_context(|| format!("too few times of {self:?}"))
    }
}

/// Makes so many changes of each step of a kind in a random but repeatable order; `carry` carries one out and says how long it took.
/// Yields the times of each step.
pub(crate) fn sample(
    kind: ChangeKind,
    n_changes: usize,
    world: &mut World,
    mut carry: impl FnMut(&World, Change) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<Samples>> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut service = 0;
    let n_changes = n_changes * kind.steps().len();
    let mut taken = Vec::with_capacity(n_changes);
    for number in 0..n_changes {
        let first = number % 2 == 0;
        if first || kind == ChangeKind::Replace {
            service = random.usize(world.ordinary());
        }
        let change = make(kind, first, service, random.usize(..1000), world);
        taken.push(carry(world, change)?);
    }
    kind.apart(&taken)
}

/// Makes one change in the world; `which` chooses an endpoint.
fn make(kind: ChangeKind, first: bool, service: Index, which: usize, world: &mut World) -> Change {
    match (kind, first) {
        (ChangeKind::Replace, _) => world.replace(service, which),
        (ChangeKind::Count, true) => world.add(service),
        (ChangeKind::Count, false) => world.remove(service, which),
        (ChangeKind::NewCount, true) => {
            world.add(service);
            world.add(service);
        }
        (ChangeKind::NewCount, false) => {
            world.remove(service, which);
            world.remove(service, which);
        }
        (ChangeKind::Service, true) => return Change::Create,
        (ChangeKind::Service, false) => return Change::Delete,
    }
    Change::Endpoints(service)
}

/// Time between two changes, so that each one meets a proxy at rest.
const PAUSE: Duration = Duration::from_millis(3);

/// Measures the proxy.
pub(crate) fn measure(
    site: &mut Site,
    proxy: &Proxy,
    n_changes: usize,
    share: &KernelShare,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut commits = Commits::listen(site.lab.node()).context("listen to the kernel's commits")?;
    let mut world = site.world.clone();
    for (kind, alone) in ChangeKind::ALL.into_iter().zip(&share.changes) {
        let n_lines = proxy.log().len();
        let written = sample(kind, n_changes, &mut world, |world, change| {
            std::thread::sleep(PAUSE);
            while commits.next(Duration::ZERO)?.is_some() {}
            let object = object(world, change);
            let written = Instant::now();
            write(site, object)?;
            commits.next(LIMIT)?.with_context(|| format!("{change:?} was not committed"))?;
            Ok(written.elapsed())
        })?;
        let logged = |key| {
            log_times(proxy, n_lines, n_changes * kind.steps().len(), key)
                .and_then(|times| kind.apart(&times))
        };
        let (received, in_kernel) = (logged("latency_us")?, logged("kernel_us")?);
        let own = received.into_iter().zip(in_kernel);
        for (((step, written), (received, in_kernel)), alone) in
            kind.steps().iter().zip(written).zip(own).zip(alone)
        {
            let Step { id, what } = step;
            report.times(
                &format!("{id}_written"),
                &format!("{what}: API write -> commit"),
                written,
                Some(alone),
                "",
            );
            report.times(
                &format!("{id}_received"),
                "  of that, received -> committed",
                received,
                Some(alone),
                "p99 2 ms",
            );
            report.times(&format!("{id}_kernel"), "  of that, inside the kernel", in_kernel, Some(alone), "");
        }
    }
    site.world = world;
    Ok(())
}

/// The times that the proxy logged for its last changes, once all of them are there.
fn log_times(proxy: &Proxy, n_lines: usize, n_changes: usize, key: &str) -> anyhow::Result<Vec<Duration>> {
    let times = || log::micros(&proxy.log()[n_lines..], log::CHANGED, key);
    let complete = wait_until(LOG_LIMIT, || times().len() >= n_changes);
    let times = times();
    anyhow::ensure!(
        complete && times.len() == n_changes,
        "{n_changes} changes but {} in the proxy's log",
        times.len()
    );
    Ok(times)
}

/// How long the log may be behind the kernel.
const LOG_LIMIT: Duration = Duration::from_secs(2);

/// What is written to the API server: an object, or none to delete the extra Service.
fn object(world: &World, change: Change) -> Option<serde_json::Value> {
    match change {
        Change::Endpoints(service) => Some(world.slice(service)),
        Change::Create => Some(world::service(world.extra())),
        Change::Delete => None,
    }
}

fn write(site: &Site, object: Option<serde_json::Value>) -> anyhow::Result<()> {
    if let Some(object) = object {
        return site.api.apply(object).map(drop).context("store an object");
    }
    let deleted = site.api.delete(Kind::Service, NAMESPACE, &world::name(site.world.extra()));
    deleted.map(drop).context("there is no extra Service to delete")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(kind: ChangeKind, n_changes: usize) -> (Vec<Change>, World) {
        let mut world = World::new(5, 2).unwrap();
        let mut changes = Vec::new();
        let samples = sample(kind, n_changes, &mut world, |_, change| {
            changes.push(change);
            Ok(Duration::ZERO)
        });
        assert!(samples.unwrap().iter().all(|samples| samples.count() == n_changes));
        (changes, world)
    }

    #[test]
    fn pairs_undo_themselves() {
        for kind in [ChangeKind::Count, ChangeKind::NewCount] {
            let (changes, world) = made(kind, 3);
            for pair in changes.chunks(2) {
                assert_eq!(pair[0], pair[1]);
            }
            let counts = (0..5).map(|service| world.frontend(service).pool.endpoints().len());
            assert_eq!(counts.collect::<Vec<_>>(), [3, 2, 2, 2, 2], "{kind:?}");
        }
        let (changes, _) = made(ChangeKind::Service, 2);
        assert_eq!(changes, [Change::Create, Change::Delete, Change::Create, Change::Delete]);
    }

    #[test]
    fn both_sides_get_the_same_changes() {
        assert_eq!(made(ChangeKind::Replace, 20).0, made(ChangeKind::Replace, 20).0);
    }

    #[test]
    fn steps_are_taken_apart() {
        let times = [1, 20, 3, 40].map(Duration::from_millis);
        let medians =
            |kind: ChangeKind| kind.apart(&times).unwrap().iter().map(Samples::median).collect::<Vec<_>>();
        assert_eq!(medians(ChangeKind::Count), [3, 40].map(Duration::from_millis));
        assert_eq!(medians(ChangeKind::Replace).len(), 1);
        assert!(ChangeKind::Count.apart(&times[..1]).is_err());
    }
}
