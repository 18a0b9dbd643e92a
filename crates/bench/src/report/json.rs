//! The figures as JSON.

use serde_json::{Value, json};
use testkit::cluster::Flavour;

use super::Report;
use crate::contender::Series;
use crate::metric::Metric;

impl Report {
    /// Every figure of every round, and the comparisons.
    pub(super) fn json(&self) -> Value {
        let contenders = self.contenders.iter().map(|contender| {
            json!({
                "series": contender.series.as_str(),
                "program": contender.program,
                "arguments": contender.arguments("URL"),
            })
        });
        let sizes = self.results.sizes();
        let each = || sizes.iter().flat_map(|size| self.results.metrics(*size).map(|metric| (*size, metric)));
        json!({
            "machine": self.machine,
            "iptables": self.flavour.map(Flavour::suffix),
            "endpoints": self.endpoints,
            "contenders": contenders.collect::<Vec<_>>(),
            "figures": each().flat_map(|(size, metric)| self.figures(size, metric)).collect::<Vec<_>>(),
            "comparisons": each().filter_map(|(size, metric)| self.compared(size, metric)).collect::<Vec<_>>(),
            "failures": self.results.failures,
            "notes": self.results.notes,
        })
    }

    fn figures(&self, services: u32, metric: &Metric) -> Vec<Value> {
        let of_series = |series| self.results.rounds(services, metric, series).map(|rounds| (series, rounds));
        let rounds = Series::ALL.into_iter().filter_map(of_series);
        let figure = |series: Series, round: u32, samples: &crate::samples::Samples| {
            json!({
                "id": metric.id,
                "what": metric.what,
                "unit": metric.unit.sign(),
                "more_is_better": metric.unit.more_is_better(),
                "services": services,
                "series": series.as_str(),
                "round": round,
                "n": samples.count(),
                "min": samples.per_mille(0),
                "median": samples.median(),
                "p99": samples.per_mille(990),
                "max": samples.per_mille(1000),
            })
        };
        rounds.flat_map(|(series, rounds)| rounds.iter().map(move |(n, of)| figure(series, *n, of))).collect()
    }

    fn compared(&self, services: u32, metric: &Metric) -> Option<Value> {
        let found = self.results.comparison(services, metric)?;
        Some(json!({
            "id": metric.id,
            "services": services,
            "times_better": found.ratio,
            "worst_round": found.low,
            "best_round": found.high,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use serde_json::json;

    #[test]
    fn every_round_of_every_side_is_there() {
        let json = example().json();
        let figures = json["figures"].as_array().unwrap();
        assert_eq!(figures.len(), 2 * 5 + 4);
        assert_eq!(figures[0]["median"], 0.5);
        assert_eq!((&figures[0]["unit"], &figures[0]["series"]), (&json!("ms"), &json!("kube-proxy")));
        let first = &json["comparisons"][0];
        assert_eq!((&first["id"], &first["worst_round"]), (&json!("replace_packet"), &json!(10.0)));
        assert_eq!(json["contenders"][1]["arguments"].as_array().unwrap().last(), Some(&json!("<1>")));
    }
}
