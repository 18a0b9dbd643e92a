//! Single changes, one after the other: the same ones for a program and for the kernel alone.

use std::time::Duration;

use anyhow::Context as _;
use apiserver::Kind;
use lab::client::tcp_once;
use lab::commits::Commits;
use lab::proxy::Proxy;
use serde_json::Value;
use tokio::time::Instant;

use crate::kernel_share::KernelShare;
use crate::log;
use crate::process::processor_time;
use crate::results::Notebook;
use crate::samples::{float, millis};
use crate::site::{LIMIT, Site};
use crate::world::{self, Index, Late, MOVING, PROBES, World, moving_slice};

/// How often a change is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// So often,
    pub(crate) changes: usize,
    /// or until this time has passed, but at least once.
    pub(crate) limit: Duration,
}

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

impl ChangeKind {
    /// All, in the order in which they are measured.
    pub(crate) const ALL: [Self; 4] = [Self::Replace, Self::Count, Self::NewCount, Self::Service];

    /// The change, or the two of a pair, as the beginning of a metric's name.
    pub(crate) const fn steps(self) -> &'static [&'static str] {
        match self {
            Self::Replace => &["replace"],
            Self::Count => &["add", "remove"],
            Self::NewCount => &["new_count", "old_count"],
            Self::Service => &["create", "delete"],
        }
    }

    /// Times of changes in the order in which they were made, taken apart by steps.
    fn apart(self, times: &[Duration]) -> Vec<Vec<Duration>> {
        let n_steps = self.steps().len();
        let of = |first| times.iter().copied().skip(first).step_by(n_steps).collect();
        (0..n_steps).map(of).collect()
    }
}

/// Makes changes of a kind in a random but repeatable order; `carry` carries one out and says how long it took. Yields the
/// times of each step, of which there are as many.
pub(crate) fn sample(
    kind: ChangeKind,
    effort: Effort,
    world: &mut World,
    mut carry: impl FnMut(&World, Change) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<Vec<Duration>>> {
    let mut random = fastrand::Rng::with_seed(1);
    let begun = Instant::now();
    let mut taken = Vec::new();
    for number in 0..effort.changes {
        if number > 0 && begun.elapsed() > effort.limit {
            break;
        }
        let service = random.usize(world.ordinary());
        for step in 0..kind.steps().len() {
            let change = make(kind, step == 0, service, random.usize(..1000), world);
            taken.push(carry(world, change)?);
        }
    }
    Ok(kind.apart(&taken))
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

/// Time without a commit before each change, so that each one meets a program at rest.
const PAUSE: Duration = Duration::from_millis(3);
/// `NFPROTO_INET` and `NFPROTO_IPV4`: a commit that is about IPv6 alone is not the one that is waited for.
const FAMILIES: [u8; 2] = [1, 2];

/// Measures a program by the kernel's word.
pub(crate) fn by_commits(
    site: &mut Site,
    proxy: &Proxy,
    effort: Effort,
    share: Option<&KernelShare>,
    book: &mut Notebook<'_>,
) -> anyhow::Result<()> {
    let mut commits = Commits::listen(site.lab.node()).context("listen to the kernel's commits")?;
    let mut world = site.world.clone();
    for (index, kind) in ChangeKind::ALL.into_iter().enumerate() {
        let n_lines = whole_log(proxy).len();
        let written = sample(kind, effort, &mut world, |world, change| {
            std::thread::sleep(PAUSE);
            while commits.next(PAUSE)?.is_some() {}
            let object = object(world, change);
            let written = Instant::now();
            write(site, object)?;
            commits.next_of(&FAMILIES, LIMIT)?.with_context(|| format!("{change:?} was not committed"))?;
            Ok(written.elapsed())
        })?;
        let n_changes: usize = written.iter().map(Vec::len).sum();
        let own = whole_log(proxy).split_off(n_lines);
        let times = |key| Some(log::times(&own, log::CHANGED, key)).filter(|times| times.len() == n_changes);
        let (received, in_kernel) = (times(log::LATENCY), times(log::IN_KERNEL));
        if received.is_none() && !log::times(&own, log::CHANGED, log::LATENCY).is_empty() {
            let other = own.iter().find(|line| !line.contains(log::CHANGED)).map_or("", String::as_str);
            book.note(&format!("its log of {n_changes} changes ({kind:?}) is not a line for each: {other}"));
        }
        let (received, in_kernel) =
            (received.map(|times| kind.apart(&times)), in_kernel.map(|times| kind.apart(&times)));
        for (step, id) in kind.steps().iter().enumerate() {
            let alone = share.map(|share| &share.changes[index][step]);
            let own = [("received", &received), ("kernel", &in_kernel)];
            let own = own.into_iter().filter_map(|(what, times)| Some((what, &times.as_ref()?[step])));
            for (what, times) in std::iter::once(("commit", &written[step])).chain(own) {
                let id = format!("{id}_{what}");
                book.times(&id, times);
                book.floor(&id, alone.cloned());
            }
        }
    }
    site.world = world;
    Ok(())
}

/// What the program has logged, once it logs no more: its last lines may be behind the kernel.
fn whole_log(proxy: &Proxy) -> Vec<String> {
    let mut n_lines = proxy.log().len();
    // Bounded, because there are programs that never are silent.
    for _ in 0..20 {
        std::thread::sleep(LOG_SILENCE);
        let n_lines_now = proxy.log().len();
        if n_lines_now == n_lines {
            break;
        }
        n_lines = n_lines_now;
    }
    proxy.log()
}

/// A log that grows no more for this long is whole.
const LOG_SILENCE: Duration = Duration::from_millis(50);

/// What is written to the API server: an object, or none to delete the extra Service.
fn object(world: &World, change: Change) -> Option<Value> {
    match change {
        Change::Endpoints(service) => Some(world.slice(service)),
        Change::Create => Some(world::service(world.extra())),
        Change::Delete => None,
    }
}

fn write(site: &Site, object: Option<Value>) -> anyhow::Result<()> {
    match object {
        Some(object) => site.apply(object),
        None => site.delete(Kind::Service, &world::name(site.world.extra())),
    }
}

/// Measures a program by packets, which needs nobody's word, and the processor time that it takes.
pub(crate) fn by_packets(
    site: &Site,
    proxy: &Proxy,
    effort: Effort,
    share: Option<&KernelShare>,
    book: &mut Notebook<'_>,
) -> anyhow::Result<()> {
    let scenarios: [(&str, Scenario, usize); 3] =
        [("replace", replace, 0), ("add", add, 1), ("create", create, 3)];
    for (id, scenario, kind) in scenarios {
        let before = processor_time(proxy.pid())?;
        let times =
            site.client().run(|| scenario(site, effort)).with_context(|| format!("{id} by packets"))?;
        let processor = processor_time(proxy.pid())?.saturating_sub(before);
        book.values(&format!("{id}_cpu"), [millis(processor) / float(times.len() as u64)]);
        let id = format!("{id}_packet");
        book.times(&id, &times);
        book.floor(&id, share.map(|share| share.changes[kind][0].clone()));
    }
    Ok(())
}

/// Measures a program by connections of TCP, one after the other, until one arrives where it should: mode ebpf has a way of its
/// own for them.
pub(crate) fn by_connections(site: &Site, effort: Effort, book: &mut Notebook<'_>) -> anyhow::Result<()> {
    let times = site.client().run(|| {
        repeat(effort, |number| {
            let written = Instant::now();
            site.apply(moving_slice(&[site.server_ip(number + 1)]))?;
            while tcp_once(MOVING.into(), CONNECTION_LIMIT)?.name != site.server(number + 1).name() {
                anyhow::ensure!(written.elapsed() < LIMIT, "no connection follows a change");
            }
            Ok(written.elapsed())
        })
    });
    book.times("replace_connect", &times.context("replace by connections")?);
    Ok(())
}

/// How long one connection may take.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);

/// Makes changes and says how long packets took to follow each; on a thread of the client.
type Scenario = fn(&Site, Effort) -> anyhow::Result<Vec<Duration>>;

/// The last Service's only endpoint moves from server to server.
fn replace(site: &Site, effort: Effort) -> anyhow::Result<Vec<Duration>> {
    let [_, probe] = PROBES;
    repeat(effort, |number| {
        let written = Instant::now();
        site.place(&probe, &[number + 1])?;
        Ok(site.reach(probe.target(), number + 1)? - written)
    })
}

/// The last Service gets a second endpoint. Then both are replaced by a third, unmeasured, because that it has arrived is
/// seen by one packet and that an endpoint is gone is not.
fn add(site: &Site, effort: Effort) -> anyhow::Result<Vec<Duration>> {
    let [_, probe] = PROBES;
    site.place(&probe, &[0])?;
    site.reach(probe.target(), 0)?;
    repeat(effort, |number| {
        let written = Instant::now();
        site.place(&probe, &[2 * number, 2 * number + 1])?;
        let took = site.reach(probe.target(), 2 * number + 1)? - written;
        std::thread::sleep(PAUSE);
        site.place(&probe, &[2 * number + 2])?;
        site.reach(probe.target(), 2 * number + 2)?;
        Ok(took)
    })
}

/// Services are created whose slices are there already. Afterwards all of them are deleted.
fn create(site: &Site, effort: Effort) -> anyhow::Result<Vec<Duration>> {
    let late: Vec<Late> = Late::NUMBERS.map(Late).take(effort.changes).collect();
    for late in &late {
        site.apply(late.slice(site.server_ip(0)))?;
    }
    // What comes next is served only after these have been dealt with.
    let [first, _] = PROBES;
    site.place(&first, &[1])?;
    site.reach(first.target(), 1)?;
    let created = repeat(Effort { changes: late.len(), ..effort }, |number| {
        let written = Instant::now();
        site.apply(late[number].service())?;
        Ok(site.reach(late[number].target(), 0)? - written)
    })?;
    for (number, late) in late.iter().enumerate() {
        if number < created.len() {
            site.delete(Kind::Service, &late.name())?;
        }
        site.delete(Kind::EndpointSlice, &format!("{}-v4", late.name()))?;
    }
    site.place(&first, &[0])?;
    site.reach(first.target(), 0)?;
    Ok(created)
}

fn repeat(
    effort: Effort,
    mut change: impl FnMut(usize) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < effort.changes && begun.elapsed() < effort.limit) {
        std::thread::sleep(PAUSE);
        times.push(change(times.len())?);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EFFORT: Effort = Effort { changes: 3, limit: Duration::from_mins(1) };

    fn made(kind: ChangeKind, effort: Effort) -> (Vec<Change>, World) {
        let mut world = World::new(5, 2).unwrap();
        let mut changes = Vec::new();
        let times = sample(kind, effort, &mut world, |_, change| {
            changes.push(change);
            Ok(Duration::ZERO)
        });
        assert!(times.unwrap().iter().all(|times| times.len() * kind.steps().len() == changes.len()));
        (changes, world)
    }

    #[test]
    fn pairs_undo_themselves() {
        for kind in [ChangeKind::Count, ChangeKind::NewCount] {
            let (changes, world) = made(kind, EFFORT);
            assert_eq!(changes.len(), 6);
            for pair in changes.chunks(2) {
                assert_eq!(pair[0], pair[1]);
            }
            let counts = (0..5).map(|service| world.frontend(service).pool.endpoints().len());
            assert_eq!(counts.collect::<Vec<_>>(), [3, 2, 2, 2, 2], "{kind:?}");
        }
        let (changes, _) = made(ChangeKind::Service, EFFORT);
        assert_eq!(changes, [Change::Create, Change::Delete].repeat(3));
    }

    #[test]
    fn both_sides_get_the_same_changes() {
        let effort = Effort { changes: 20, ..EFFORT };
        assert_eq!(made(ChangeKind::Replace, effort).0, made(ChangeKind::Replace, effort).0);
    }

    #[test]
    fn without_time_there_is_still_one_change() {
        let effort = Effort { changes: 20, limit: Duration::ZERO };
        assert_eq!(made(ChangeKind::Service, effort).0, [Change::Create, Change::Delete]);
        assert_eq!(repeat(effort, |_| Ok(Duration::ZERO)).unwrap().len(), 1);
    }

    #[test]
    fn steps_are_taken_apart() {
        let times = [1, 20, 3, 40].map(Duration::from_millis);
        assert_eq!(ChangeKind::Count.apart(&times), [[1, 3], [20, 40]].map(|t| t.map(Duration::from_millis)));
        assert_eq!(ChangeKind::Replace.apart(&times), [times]);
    }
}
