//! The kernel's own share: the same tables and changes, planned here and sent from a namespace of their own. What is timed is the
//! time inside `sendto`, where the kernel works from the first message to the commit; in mode ipvs, whose messages are answered
//! one by one, sending and reading of answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backend_ipvs::{DEVICE, IpvsPlanner, IpvsTarget, Options};
use backend_nftables::{Backend, Config, NftablesTarget, NodePortAddresses, PodSource};
use kernel::{KernelIpvs, VirtualDevice};
use lab::Namespace;
use mode::{Cause, NeedsReading, PlanOf, Planner, Reading, Target};
use model::{Table, V4};
use tokio::time::Instant;

use crate::changes::{Change, ChangeKind, Effort, sample};
use crate::samples::Samples;
use crate::world::{World, object_name};

/// What the kernel alone takes.
#[derive(Clone, Debug)]
pub(crate) struct KernelShare {
    /// Everything at once, into an empty namespace.
    pub(crate) load: Samples,
    /// For each of [`ChangeKind::ALL`] the times of its steps.
    pub(crate) changes: Vec<Vec<Samples>>,
}

/// A mode whose own share can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measured {
    /// `nftables`
    Nftables,
    /// `ipvs`
    Ipvs,
}

impl Measured {
    /// The mode of this name.
    pub(crate) fn parse(mode: &str) -> Option<Self> {
        match mode {
            "nftables" => Some(Self::Nftables),
            "ipvs" => Some(Self::Ipvs),
            _ => None,
        }
    }
}

/// Measures it.
pub(crate) fn measure(
    mode: Measured,
    world: &World,
    n_loads: u32,
    effort: Effort,
) -> anyhow::Result<KernelShare> {
    match mode {
        Measured::Nftables => measure_with(&nftables, world, n_loads, effort),
        Measured::Ipvs => measure_with(&ipvs, world, n_loads, effort),
    }
}

/// A planner that knows nothing yet, and a target in the calling thread's namespace.
type Made<P> = anyhow::Result<(P, <P as Planner<V4>>::Target)>;
type Make<P> = dyn Fn() -> Made<P> + Sync;

fn nftables() -> Made<Backend<V4>> {
    let rules = NftablesTarget::new(nft::Family::Ip, Box::new(kernel::Nftables::open()?));
    Ok((Backend::new(Config::default()), rules))
}

fn ipvs() -> Made<IpvsPlanner<V4, Backend<V4>>> {
    let (rules, target) = nftables()?;
    let options = Arc::new(Options::default());
    let (ipvs, devices) = (Box::new(KernelIpvs::open()?), Box::new(VirtualDevice::open(DEVICE)?));
    Ok((IpvsPlanner::new(rules, options.clone()), IpvsTarget::new(target, ipvs, devices, options)))
}

fn measure_with<P: Planner<V4>>(
    make: &Make<P>,
    world: &World,
    n_loads: u32,
    effort: Effort,
) -> anyhow::Result<KernelShare>
where
    P::Target: Send,
{
    let mut table = Table::default();
    for service in 0..world.services() {
        table.set_service(&object_name(service), vec![world.frontend(service)]);
    }
    let mut loads = Vec::new();
    for _ in 1..n_loads {
        loads.push(Loaded::new(make, &table)?.took);
        settle(world.services());
    }
    let mut loaded = Loaded::new(make, &table)?;
    loads.push(loaded.took);
    let load = Samples::millis(&loads).context("no loads were asked for")?;
    let mut world = world.clone();
    let of = |kind| {
        let times =
            sample(kind, effort, &mut world, |world, change| loaded.carry(&mut table, world, change))?;
        let samples: Option<Vec<Samples>> = times.iter().map(|times| Samples::millis(times)).collect();
        samples.with_context(|| format!("no {kind:?} was asked for"))
    };
    let changes = ChangeKind::ALL.into_iter().map(of).collect::<anyhow::Result<_>>()?;
    drop(loaded);
    settle(world.services());
    Ok(KernelShare { load, changes })
}

/// Gives the kernel time to free what was deleted, which it does in the background.
pub(crate) fn settle(services: usize) {
    let millis = 200 + u64::try_from(services / 50).unwrap_or_default();
    std::thread::sleep(Duration::from_millis(millis.min(5000)));
}

/// A namespace that holds the table.
struct Loaded<P: Planner<V4>> {
    planner: P,
    target: P::Target,
    settings: P::Settings,
    took: Duration,
    /// Lives as long as the sockets need it.
    _namespace: Namespace,
}

impl<P: Planner<V4>> Loaded<P>
where
    P::Target: Send,
{
    fn new(make: &Make<P>, table: &Table<V4>) -> anyhow::Result<Self> {
        let namespace = Namespace::new("kernel")?;
        let (planner, mut target) = namespace.run(make)?;
        let settings = planner.settings(&config());
        let found = match target.read() {
            Reading::Whole(found) => found,
            Reading::Failed(error) => return Err(error).context("read an empty namespace"),
            Reading::Unstable | Reading::NotReadable => anyhow::bail!("an empty namespace can't be read"),
        };
        let plan = planner.plan(table, &settings, Cause::Found(&found)).map_err(needs_reading)?;
        let mut loaded = Self { planner, target, settings, took: Duration::ZERO, _namespace: namespace };
        loaded.took = loaded.make(plan).context("load the table")?;
        Ok(loaded)
    }

    /// Carries a plan out; gives what that took the kernel.
    fn make(&mut self, plan: PlanOf<P, V4>) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let applied = self.target.apply(plan.steps, &|| false);
        let took = applied.kernel_time.filter(|_| P::NAME == "nftables").unwrap_or_else(|| begun.elapsed());
        let mut results = Vec::with_capacity(applied.results.len());
        for result in applied.results {
            results.push(Ok(result?));
        }
        self.planner.settle(plan.held, results);
        Ok(took)
    }

    fn carry(&mut self, table: &mut Table<V4>, world: &World, change: Change) -> anyhow::Result<Duration> {
        let (service, frontends) = match change {
            Change::Endpoints(service) => (service, vec![world.frontend(service)]),
            Change::Create => (world.extra(), vec![world.frontend(world.extra())]),
            Change::Delete => (world.extra(), Vec::new()),
        };
        let frontends = table.set_service(&object_name(service), frontends);
        let changed = model::Changed { frontends, ..model::Changed::default() };
        let plan = self.planner.plan(table, &self.settings, Cause::Changed(&changed));
        let plan = plan.map_err(needs_reading)?;
        anyhow::ensure!(!plan.steps.is_empty(), "{change:?} changes nothing");
        self.make(plan).with_context(|| format!("apply {change:?}"))
    }
}

fn needs_reading(_: NeedsReading) -> anyhow::Error {
    anyhow::anyhow!("the planner does not know what is held")
}

/// What the proxy derives from its flags and its Node, so that the fixed rules are alike.
fn config() -> Config {
    let range = |text: &str| text.parse().ok();
    Config {
        node_ports: NodePortAddresses::Within(range("192.168.50.1/32").into_iter().collect()),
        pods: range("10.244.0.0/16").map(PodSource::Cidr),
        ..Config::default()
    }
}
