//! All figures of a run. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contender::Series;
use crate::metric::{METRICS, Metric, metric};
use crate::samples::Samples;

/// What has been measured so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    /// By size, position in [`METRICS`], series and round.
    figures: BTreeMap<(u32, usize), BTreeMap<Series, BTreeMap<u32, Samples>>>,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
    /// What is odd about figures.
    pub(crate) notes: Vec<String>,
}

/// How our program compares with the peer in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Comparison {
    /// How many times better ours is, by the medians of all rounds.
    pub(crate) ratio: f64,
    /// The same of the worst and the best single round.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Where figures of one program at one size in one round go.
#[derive(Debug)]
pub(crate) struct Notebook<'a> {
    pub(crate) results: &'a mut Results,
    pub(crate) services: u32,
    pub(crate) series: Series,
    pub(crate) round: u32,
}

impl Notebook<'_> {
    /// Notes values in the metric's unit. No values are no figure.
    pub(crate) fn values(&mut self, id: &str, values: impl IntoIterator<Item = f64>) {
        self.samples(self.series, id, Samples::new(values.into_iter().collect()));
    }

    /// Notes durations.
    pub(crate) fn times(&mut self, id: &str, times: &[Duration]) {
        self.samples(self.series, id, Samples::millis(times));
    }

    /// Notes values of what this can't be better than.
    pub(crate) fn floor(&mut self, id: &str, samples: Option<Samples>) {
        let series = if self.series == Series::Peer { Series::PeerFloor } else { Series::Floor };
        self.samples(series, id, samples);
    }

    /// Notes what is odd.
    pub(crate) fn note(&mut self, what: &str) {
        let (services, round, series) = (self.services, self.round + 1, self.series.as_str());
        self.results.notes.push(format!("{services} Services, round {round}, {series}: {what}"));
    }

    fn samples(&mut self, series: Series, id: &str, samples: Option<Samples>) {
        let Some(samples) = samples else { return };
        let index = METRICS.iter().position(|known| std::ptr::eq(known, metric(id))).unwrap_or_default();
        let rounds =
            self.results.figures.entry((self.services, index)).or_default().entry(series).or_default();
        let all = rounds.get(&self.round).map_or_else(|| samples.clone(), |known| known.with(&samples));
        rounds.insert(self.round, all);
    }
}

impl Results {
    /// Sizes with figures, from small to large.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        let mut sizes: Vec<u32> = self.figures.keys().map(|(size, _)| *size).collect();
        sizes.dedup();
        sizes
    }

    /// Metrics with figures at a size, in order.
    pub(crate) fn metrics(&self, services: u32) -> impl Iterator<Item = &'static Metric> {
        self.figures.range((services, 0)..=(services, usize::MAX)).map(|((_, index), _)| &METRICS[*index])
    }

    /// The figures of each round.
    pub(crate) fn rounds(
        &self,
        services: u32,
        metric: &Metric,
        series: Series,
    ) -> Option<&BTreeMap<u32, Samples>> {
        let index = METRICS.iter().position(|known| known.id == metric.id)?;
        self.figures.get(&(services, index))?.get(&series)
    }

    /// The figures of all rounds together.
    pub(crate) fn all(&self, services: u32, metric: &Metric, series: Series) -> Option<Samples> {
        let rounds = self.rounds(services, metric, series)?;
        rounds.values().cloned().reduce(|all, round| all.with(&round))
    }

    /// Ours beside the peer; `None` without both, or where a median is zero. Where both have a floor of their own it is how
    /// far each is above it that counts, because then whatever else the machine did befell both alike.
    pub(crate) fn comparison(&self, services: u32, metric: &Metric) -> Option<Comparison> {
        let all = |series| self.all(services, metric, series);
        let ratio = better(metric, &Series::ALL.map(all))?;
        let of_round = |round: &u32| {
            let of = |series| self.rounds(services, metric, series)?.get(round).cloned();
            better(metric, &Series::ALL.map(of))
        };
        let ratios = self.rounds(services, metric, Series::Ours)?.keys().filter_map(of_round);
        let (low, high) = ratios.fold((ratio, ratio), |(low, high), of| (of.min(low), of.max(high)));
        Some(Comparison { ratio, low, high })
    }

    /// How many times worse than the floor a series's median is.
    pub(crate) fn above_floor(&self, services: u32, metric: &Metric, series: Series) -> Option<f64> {
        let floor = self.all(services, metric, Series::Floor)?.median();
        times_better(metric, floor, self.all(services, metric, series)?.median())
    }
}

/// How many times better ours is than the peer, with their floors if both have one.
fn better(metric: &Metric, [ours, peer, floor, peer_floor]: &[Option<Samples>; 4]) -> Option<f64> {
    let (ours, peer) = (ours.as_ref()?.median(), peer.as_ref()?.median());
    let of_floors = floor.as_ref().zip(peer_floor.as_ref());
    let of_floors = of_floors
        .map_or(Some(1.0), |(floor, peer_floor)| times_better(metric, floor.median(), peer_floor.median()))?;
    Some(times_better(metric, ours, peer)? / of_floors)
}

/// How many times better the first is than the second.
fn times_better(metric: &Metric, first: f64, second: f64) -> Option<f64> {
    let (above, below) = if metric.unit.more_is_better() { (first, second) } else { (second, first) };
    (above > 0.0 && below > 0.0).then(|| above / below)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small run with two rounds and a peer.
    pub(crate) fn example() -> Results {
        let mut results = Results::default();
        let mut note = |services, series, round, id, values: &[f64]| {
            let mut book = Notebook { results: &mut results, services, series, round };
            book.values(id, values.iter().copied());
        };
        for services in [100, 1000] {
            note(services, Series::Ours, 0, "replace_packet", &[0.4, 0.5, 0.6]);
            note(services, Series::Ours, 1, "replace_packet", &[0.5]);
            note(services, Series::Peer, 0, "replace_packet", &[5.0]);
            note(services, Series::Peer, 1, "replace_packet", &[20.0]);
            note(services, Series::Floor, 0, "replace_packet", &[0.1]);
        }
        note(100, Series::Ours, 0, "tcp_rate", &[9000.0]);
        note(100, Series::Peer, 0, "tcp_rate", &[4500.0]);
        note(100, Series::Ours, 0, "restart_transactions", &[0.0]);
        note(100, Series::Peer, 0, "restart_transactions", &[7.0]);
        results.failures.push("peer, 100 Services: churn: it <ended>".to_owned());
        results
    }

    #[test]
    fn better_means_less_time_and_more_connections() {
        let results = example();
        let of = |id| results.comparison(100, metric(id));
        let times = of("replace_packet").unwrap();
        assert!((times.ratio - 40.0).abs() < 1e-9, "{times:?}");
        assert!((times.low - 10.0).abs() < 1e-9 && (times.high - 40.0).abs() < 1e-9, "{times:?}");
        assert!((of("tcp_rate").unwrap().ratio - 2.0).abs() < 1e-9);
        assert_eq!(of("restart_transactions"), None, "nothing is infinitely better");
        let above = results.above_floor(100, metric("replace_packet"), Series::Ours).unwrap();
        assert!((above - 5.0).abs() < 1e-9);
    }

    #[test]
    fn floors_of_their_own_even_out_what_the_machine_did() {
        let mut results = example();
        // The peer had a machine half as fast, as its floor shows, and is as good as ours.
        let mut note = |series, value| {
            let mut book = Notebook { results: &mut results, services: 100, series, round: 0 };
            book.floor("tcp_rate", Samples::new(vec![value]));
        };
        note(Series::Ours, 10_000.0);
        note(Series::Peer, 5000.0);
        let found = results.comparison(100, metric("tcp_rate")).unwrap();
        assert!((found.ratio - 1.0).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn figures_are_found_by_size_in_the_order_of_the_metrics() {
        let results = example();
        assert_eq!(results.sizes(), [100, 1000]);
        let ids: Vec<_> = results.metrics(100).map(|metric| metric.id).collect();
        assert_eq!(ids, ["replace_packet", "restart_transactions", "tcp_rate"]);
        assert_eq!(results.all(100, metric("replace_packet"), Series::Ours).unwrap().count(), 4);
        assert_eq!(results.all(1000, metric("tcp_rate"), Series::Ours), None);
    }
}
