//! The kernel's own share: the same tables and changes, planned here and sent from a namespace of their own. What is
//! timed is the time inside `sendto`, where the kernel works from the first message to the commit.

use std::time::Duration;

use anyhow::Context as _;
use backend_nftables::{Backend, Config, Extent, NodePortAddresses, PodSource};
use lab::Namespace;
use model::{Table, V4};
use nft::Kernel as _;

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

/// Measures it.
pub(crate) fn measure(world: &World, n_loads: u32, effort: Effort) -> anyhow::Result<KernelShare> {
    let mut table = Table::default();
    for service in 0..world.services() {
        table.set_service(&object_name(service), vec![world.frontend(service)]);
    }
    let mut loads = Vec::new();
    for _ in 1..n_loads {
        loads.push(Loaded::new(&table)?.took);
        settle(world.services());
    }
    let mut loaded = Loaded::new(&table)?;
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
struct Loaded {
    kernel: kernel::Nftables,
    backend: Backend<V4>,
    took: Duration,
    /// Lives as long as the socket needs it.
    _namespace: Namespace,
}

impl Loaded {
    fn new(table: &Table<V4>) -> anyhow::Result<Self> {
        let namespace = Namespace::new("kernel")?;
        let mut kernel = namespace.run(kernel::Nftables::open)?;
        let mut backend = Backend::new(config());
        let plan = backend.repair(&config(), table, None, Extent::Difference);
        let took = kernel.apply(&plan.transaction).context("load the table")?.kernel_time;
        backend.committed(plan);
        Ok(Self { kernel, backend, took, _namespace: namespace })
    }

    fn carry(&mut self, table: &mut Table<V4>, world: &World, change: Change) -> anyhow::Result<Duration> {
        let (service, frontends) = match change {
            Change::Endpoints(service) => (service, vec![world.frontend(service)]),
            Change::Create => (world.extra(), vec![world.frontend(world.extra())]),
            Change::Delete => (world.extra(), Vec::new()),
        };
        let dirty = table.set_service(&object_name(service), frontends);
        let plan = self.backend.plan(table, &dirty);
        anyhow::ensure!(!plan.transaction.is_empty(), "{change:?} changes nothing");
        let applied = self.kernel.apply(&plan.transaction).with_context(|| format!("apply {change:?}"))?;
        self.backend.committed(plan);
        Ok(applied.kernel_time)
    }
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
