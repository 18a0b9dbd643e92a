//! The figures as a Markdown table for each size, columns aligned so that it can be read as it is.

use std::fmt::Write as _;

use super::{Report, digits};
use crate::contender::Series;
use crate::metric::Metric;
use crate::samples::Samples;
use crate::start::SMALL;

impl Report {
    /// All tables and how they came about.
    pub(super) fn markdown(&self) -> String {
        let iptables = self.flavour.map(|flavour| format!(", iptables-{}", flavour.suffix()));
        let mut text =
            format!("# Benchmark\n\n{}{}. Started as:\n\n", self.machine, iptables.unwrap_or_default());
        for contender in &self.contenders {
            let (program, arguments) = (contender.program.display(), contender.arguments("URL").join(" "));
            line(&mut text, &format!("- {}: `{program} {arguments}`", contender.series.as_str()));
        }
        for services in self.results.sizes() {
            let (small, of_small) = SMALL;
            let endpoints = if services == small { of_small } else { self.endpoints };
            line(&mut text, &format!("\n## {services} Services x {endpoints} endpoints\n"));
            text.push_str(&self.table(services));
        }
        for (title, lines) in [("Not measured", &self.results.failures), ("Odd", &self.results.notes)] {
            if !lines.is_empty() {
                line(&mut text, &format!("\n## {title}\n"));
                for entry in lines {
                    line(&mut text, &format!("- {entry}"));
                }
            }
        }
        text + "\n" + NOTES
    }

    fn has_peer(&self) -> bool {
        self.contenders.iter().any(|contender| contender.series == Series::Peer)
    }

    fn table(&self, services: u32) -> String {
        let mut rows: Vec<Vec<String>> = vec![self.head()];
        rows.extend(self.results.metrics(services).map(|metric| self.row(services, metric)));
        aligned(&rows)
    }

    fn head(&self) -> Vec<String> {
        let ours = ["", "unit", "n", "median", "p99", "floor", "x floor"];
        let peer = ["peer median", "peer p99", "times better (rounds)"];
        let peer = peer.into_iter().filter(|_| self.has_peer());
        ours.into_iter().chain(peer).chain(["budget"]).map(str::to_owned).collect()
    }

    fn row(&self, services: u32, metric: &Metric) -> Vec<String> {
        let results = &self.results;
        let all = |series| results.all(services, metric, series);
        let (ours, peer, floor) = (all(Series::Ours), all(Series::Peer), all(Series::Floor));
        let median = |samples: &Option<Samples>| {
            samples.as_ref().map(|samples| digits(samples.median(), metric.unit)).unwrap_or_default()
        };
        let p99 = |samples: &Option<Samples>| {
            let enough = samples.as_ref().filter(|samples| samples.count() >= P99_FROM);
            enough.map(|samples| digits(samples.per_mille(990), metric.unit)).unwrap_or_default()
        };
        let count = ours.as_ref().map(|samples| samples.count().to_string()).unwrap_or_default();
        let above = results.above_floor(services, metric, Series::Ours);
        let mut cells = vec![metric.what.to_owned(), metric.unit.sign().to_owned(), count];
        cells.extend([median(&ours), p99(&ours), median(&floor)]);
        cells.push(above.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
        if self.has_peer() {
            let compared = results.comparison(services, metric);
            let compared = compared.map(|of| format!("{:.2} ({:.2} - {:.2})", of.ratio, of.low, of.high));
            cells.extend([median(&peer), p99(&peer), compared.unwrap_or_default()]);
        }
        cells.push(metric.budget.to_owned());
        cells
    }
}

/// With fewer values, the worst one of a hundred is just the worst.
const P99_FROM: usize = 101;

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string succeeds");
}

/// A table of which the first row is the head; the first column and the last are text, the others numbers.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let is_text = |column: usize| column == 0 || column + 1 == columns;
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let cell = |column: usize, text: &str| {
        let width = widths[column];
        if is_text(column) { format!("{text:<width$}") } else { format!("{text:>width$}") }
    };
    let rule = |column: usize| {
        let dashes = "-".repeat(widths[column] - 1);
        if is_text(column) { format!(":{dashes}") } else { format!("{dashes}:") }
    };
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().enumerate().map(|(column, text)| cell(column, text)).collect();
        line(&mut text, &format!("| {} |", cells.join(" | ")));
        if number == 0 {
            let rules: Vec<String> = (0..columns).map(rule).collect();
            line(&mut text, &format!("| {} |", rules.join(" | ")));
        }
    }
    text
}

const NOTES: &str = "\
## How it was measured

The API server, the writers, the clients and all measuring run in one process, the program under test is its child; they
share the processors, so the times include some waiting for them. Each round of each program has an API server and network
namespaces of its own; the programs take turns.

- Everything is seen from outside, by packets and by the kernel's word, except the rows \"of that\", which are from our
  program's log and therefore missing for others. `n` values of all rounds.
- times better: median to median, more than 1 where this project's program is better; in brackets the worst and the best
  single round. For the data path: how far each is above the exchanges with a pod that were made in turns with its own.
- floor: what the kernel alone takes for the same table or change in nftables mode, planned by our code and timed inside
  `sendto` in a namespace of its own: no listener, no API server, no second family; in other modes there is none. For the
  data path: the same exchange with a pod itself. x floor: how far above it our median is.
- chains, rules: lines of `iptables-save` after the cold start, with the built-in chains.
- packets arrive, packets follow: a datagram, each on a new flow, is answered by the right pod; one each 0.1 ms, or, where it
  takes longer, each 1 % of the time passed. Of the cold start: the first and the last Service.
- commit: the end of a transaction that changed something of IPv4, as the kernel announces it. Listening makes the kernel
  describe each change, which the rows by packets are free of. iptables-legacy announces nothing and has no such rows.
- single changes meet a program at rest; in random Services, each change beside its undoing. One Service has a single
  endpoint more than the others, so that an added endpoint makes a count that exists; the first Service of a count makes a
  chain. A created or deleted Service has its slice all along.
- churn: one endpoint of a random Service is replaced at each write. Meanwhile one more Service is moved from pod to pod.
- rolling update: ten slices of 100 endpoints, ten endpoints replaced each 10 ms; from a change written right after the last.
- restart: after SIGKILL. Failed connections are of clients that open 100 a second all along.
- processor time: of the program with its threads and the children that it has waited for, until it was at rest where it was
  started. Memory: VmRSS; the peak is VmHWM, or that of all processes together where the program starts others.
- budgets are for 10,000 Services x 10 endpoints on two processors; nothing here judges them.
";

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn rows_line_up_and_compare() {
        let text = example().markdown();
        let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(table.len(), 2 + 3 + 2 + 1, "{text}");
        assert_eq!(
            table[..5].iter().map(|line| line.len()).collect::<std::collections::BTreeSet<_>>().len(),
            1
        );
        for cell in [" 0.500 |", " 0.100 |", " 5.00 |", " 40.00 (10.00 - 40.00) |"] {
            assert!(table[2].contains(cell), "{cell} in {}", table[2]);
        }
        assert!(text.contains("Linux x, iptables-legacy. Started as:"), "{text}");
        assert!(text.contains("- peer: `/bin/kp --master URL"), "{text}");
        assert!(text.contains("- peer, 100 Services: churn: it <ended>"), "{text}");
    }

    #[test]
    fn without_a_peer_there_are_no_columns_for_it() {
        let mut report = example();
        report.contenders.pop();
        assert!(!report.markdown().contains("peer median"));
    }
}
