//! The order of everything.

use anyhow::Context as _;
use tokio::time::Instant;

use crate::contender::{Contender, Series};
use crate::kernel_share::{self, KernelShare, Measured, settle};
use crate::options::Options;
use crate::report::{Report, machine, say};
use crate::results::{Notebook, Results};
use crate::site::Site;
use crate::world::World;
use crate::{changes, churn, data_path, disturbed, start};

/// Measures everything and publishes it.
///
/// # Errors
/// Something could not be measured; what could be has been published.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    for contender in &options.contenders {
        let program = contender.program.display();
        anyhow::ensure!(contender.program.is_file(), "{program} is not there; build it first");
    }
    if options.disturbed {
        return disturbed::run(options);
    }
    let mut bench = Bench { options, results: Results::default(), begun: Instant::now() };
    bench.small()?;
    for services in &options.sizes {
        bench.size(*services)?;
    }
    let failures = bench.results.failures.len();
    let report = Report {
        endpoints: options.endpoints,
        machine: machine()?,
        flavour: options.flavour,
        contenders: options.contenders.clone(),
        results: bench.results,
    };
    report.publish(&options.folder)?;
    anyhow::ensure!(failures == 0, "{failures} measurements failed, see above");
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    results: Results,
    begun: Instant,
}

impl<'a> Bench<'a> {
    /// A small cluster.
    fn small(&mut self) -> anyhow::Result<()> {
        let (services, _) = start::SMALL;
        for (round, contender) in self.turns() {
            let Options { idle, flavour, .. } = *self.options;
            let mut turn = Turn { bench: self, services, round, contender };
            turn.measure("start and rest", |book| start::small(contender, flavour, idle, book))?;
        }
        Ok(())
    }

    /// Everything at one size.
    fn size(&mut self, services: u32) -> anyhow::Result<()> {
        let Options { endpoints, rounds, effort, .. } = *self.options;
        let world = World::new(services, endpoints)?;
        let ours = self.options.contenders.iter().find(|contender| contender.series == Series::Ours);
        let mut share = None;
        if let Some(mode) = ours.and_then(|contender| Measured::parse(contender.mode())) {
            self.progress(&format!("{services} Services: the kernel alone"))?;
            let measured = kernel_share::measure(mode, &world, rounds, effort);
            share = Some(measured.context("measure the kernel alone")?);
        }
        for (round, contender) in self.turns() {
            let mut turn = Turn { bench: self, services, round, contender };
            // It is noted once, beside ours.
            let is_first = round == 0 && contender.series == Series::Ours;
            turn.everything(&world, share.as_ref().filter(|_| is_first))?;
            settle(world.services());
        }
        Ok(())
    }

    /// Who is measured when: in each round all of them, every other time in the opposite order.
    fn turns(&self) -> Vec<(u32, &'a Contender)> {
        let mut turns = Vec::new();
        for round in 0..self.options.rounds {
            let mut order: Vec<&Contender> = self.options.contenders.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            turns.extend(order.into_iter().map(|contender| (round, contender)));
        }
        turns
    }

    /// Says what is being measured now.
    fn progress(&self, what: &str) -> anyhow::Result<()> {
        say(&format!("[{:6.1} s] {what}", self.begun.elapsed().as_secs_f64()))
    }
}

/// One program at one size in one round.
struct Turn<'b, 'a> {
    bench: &'b mut Bench<'a>,
    services: u32,
    round: u32,
    contender: &'a Contender,
}

impl Turn<'_, '_> {
    fn everything(&mut self, world: &World, share: Option<&KernelShare>) -> anyhow::Result<()> {
        let Options { effort, churn, flavour, .. } = *self.bench.options;
        let contender = self.contender;
        let mut site = Site::build(world, contender.mode(), flavour).context("build the laboratory")?;
        let load = share.map(|share| &share.load);
        let started = self.measure("cold start", |book| start::cold(&site, contender, load, book))?;
        let Some((proxy, is_announced)) = started else { return Ok(()) };
        self.measure("changes by packets", |book| changes::by_packets(&site, &proxy, effort, share, book))?;
        self.measure("changes by connections", |book| changes::by_connections(&site, effort, book))?;
        if is_announced {
            let by_commits =
                |book: &mut Notebook<'_>| changes::by_commits(&mut site, &proxy, effort, share, book);
            self.measure("changes by commits", by_commits)?;
        }
        self.measure("rolling update", |book| churn::rolling(&site, &proxy, book))?;
        self.measure("churn", |book| churn::measure(&mut site, &proxy, churn, book))?;
        self.measure("memory", |book| start::memory(&proxy, book))?;
        self.measure("data path", |book| data_path::measure(&site, book))?;
        self.measure("restart", |book| start::warm(&site, contender, (proxy, is_announced), book))?;
        Ok(())
    }

    /// Takes a measurement. If it can't be taken this is noted, and the others go on.
    fn measure<T>(
        &mut self,
        what: &str,
        take: impl FnOnce(&mut Notebook<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        let (services, round, series) = (self.services, self.round, self.contender.series);
        let what = format!("{services} Services, round {}, {}: {what}", round + 1, series.as_str());
        self.bench.progress(&what)?;
        let results = &mut self.bench.results;
        match take(&mut Notebook { results, services, series, round }) {
            Ok(taken) => Ok(Some(taken)),
            Err(error) => {
                let failure = format!("{what}: {error:#}");
                say(&failure)?;
                self.bench.results.failures.push(failure);
                Ok(None)
            }
        }
    }
}
