//! The figures as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::samples::Samples;

/// All figures so far.
#[derive(Debug)]
pub(crate) struct Report {
    services: u32,
    endpoints: u32,
    machine: String,
    rows: Vec<Row>,
    begun: Instant,
}

#[derive(Clone, Debug)]
struct Row {
    id: String,
    what: String,
    figure: Figure,
    /// The kernel alone, median.
    kernel: Option<Duration>,
    budget: &'static str,
}

#[derive(Clone, Debug)]
enum Figure {
    Times(Samples),
    Count(u64),
    Kib(u64),
}

impl Report {
    /// Without figures yet.
    pub(crate) fn new(services: u32, endpoints: u32) -> anyhow::Result<Self> {
        let release =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
        let processors = std::thread::available_parallelism().context("count the processors")?;
        let machine = format!("Linux {}, {processors} processors", release.trim());
        Ok(Self { services, endpoints, machine, rows: Vec::new(), begun: Instant::now() })
    }

    /// Says what is being measured now.
    pub(crate) fn progress(&self, what: &str) -> anyhow::Result<()> {
        say(&format!("[{:5.1} s] {what}", self.begun.elapsed().as_secs_f64()))
    }

    /// Adds times; the kernel's median is for the same transactions.
    pub(crate) fn times(
        &mut self,
        id: &str,
        what: &str,
        times: Samples,
        kernel: Option<&Samples>,
        budget: &'static str,
    ) {
        self.row(id, what, Figure::Times(times), kernel.map(Samples::median), budget);
    }

    /// Adds a number.
    pub(crate) fn count(&mut self, id: &str, what: &str, count: u64, budget: &'static str) {
        self.row(id, what, Figure::Count(count), None, budget);
    }

    /// Adds an amount of memory.
    pub(crate) fn kib(&mut self, id: &str, what: &str, kib: u64, budget: &'static str) {
        self.row(id, what, Figure::Kib(kib), None, budget);
    }

    fn row(&mut self, id: &str, what: &str, figure: Figure, kernel: Option<Duration>, budget: &'static str) {
        self.rows.push(Row { id: id.to_owned(), what: what.to_owned(), figure, kernel, budget });
    }

    /// Prints the table and how the figures came about.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        say(&self.table())?;
        say(NOTES)
    }

    fn table(&self) -> String {
        let mut text = format!(
            "\n{} Services x {} endpoints, {}; times in milliseconds\n\n{:<58}{:>5}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}  {}\n",
            self.services,
            self.endpoints,
            self.machine,
            "",
            "n",
            "min",
            "median",
            "p99",
            "max",
            "kernel",
            "ratio",
            "budget"
        );
        for row in &self.rows {
            let cells = match &row.figure {
                Figure::Times(times) => {
                    let [min, median, p99, max] = [0, 500, 990, 1000].map(|m| millis(times.per_mille(m)));
                    let p99 = if times.count() < P99_FROM { String::new() } else { p99 };
                    format!("{:>5}{min:>9}{median:>9}{p99:>9}{max:>9}", times.count())
                }
                Figure::Count(count) => format!("{:>23}{:>18}", count, ""),
                Figure::Kib(kib) => format!("{:>20} MB{:>18}", kib * 1024 / 1_000_000, ""),
            };
            let kernel = row.kernel.map(millis).unwrap_or_default();
            let ratio = row.ratio().map(|ratio| format!("{ratio:.1}")).unwrap_or_default();
            let line = format!("{:<58}{cells}{kernel:>9}{ratio:>7}  {}", row.what, row.budget);
            writeln!(text, "{}", line.trim_end()).expect("writing to a string succeeds");
        }
        text
    }

    /// Writes everything to a file.
    pub(crate) fn write_json(&self, file: &Path) -> anyhow::Result<()> {
        let text = format!("{:#}\n", self.json());
        fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }

    fn json(&self) -> Value {
        json!({
            "services": self.services,
            "endpoints": self.endpoints,
            "machine": self.machine,
            "figures": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }
}

impl Row {
    /// The median beside that of the kernel alone.
    fn ratio(&self) -> Option<f64> {
        match (&self.figure, self.kernel) {
            (Figure::Times(times), Some(kernel)) => Some(times.median().as_secs_f64() / kernel.as_secs_f64()),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        let mut value = match &self.figure {
            Figure::Times(times) => json!({
                "n": times.count(),
                "min_us": micros(times.per_mille(0)),
                "median_us": micros(times.median()),
                "p99_us": micros(times.per_mille(990)),
                "max_us": micros(times.per_mille(1000)),
            }),
            Figure::Count(count) => json!({ "count": count }),
            Figure::Kib(kib) => json!({ "kib": kib }),
        };
        value["id"] = self.id.as_str().into();
        value["what"] = self.what.trim().into();
        if let Some(kernel) = self.kernel {
            value["kernel_median_us"] = micros(kernel).into();
        }
        if !self.budget.is_empty() {
            value["budget"] = self.budget.into();
        }
        value
    }
}

/// With fewer times, the worst one of a hundred is just the worst.
const P99_FROM: usize = 101;

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// With three digits or so.
fn millis(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        ..10.0 => format!("{ms:.3}"),
        10.0..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("write to the terminal")
}

const NOTES: &str = "\
How it was measured. The API server, the writers and all measuring run in this process, the proxy is its child; they
share the processors, so the times include some waiting for them.
- kernel: time inside sendto for the same table or change, planned by the same code but sent from this process to a
  namespace of its own. Median; ratio is median to median. There is no listener, no API server and no second family.
- cold start: from before the process is started until the kernel's generation moved for the last time (asked every
  0.5 ms); then a packet to the last Service must come through at once. Parts of it are from the proxy's own log.
- single changes: in random Services, each change beside its undoing. Timed from before the write to the API server until
  the kernel announces the commit; the proxy is at rest before each. \"received -> committed\" and \"inside the kernel\" are
  from the proxy's own log. One Service has a single endpoint more than the others, so that an added endpoint makes a count
  that exists; the first Service of a count makes a chain. A created or deleted Service has its slice all along.
- churn: one endpoint of a random Service is replaced at each write. Meanwhile one more Service is moved from pod to pod;
  timed until a packet on a new flow reaches the new pod (one each 0.1 ms).
- restart: from before the process is started until it logs that both families' rules are right; the kernel's generation
  tells whether anything was written.
- memory: VmRSS and VmHWM of /proc/PID/status, processor time from /proc/PID/stat, of the proxy alone.
- budgets are for 10,000 Services x 10 endpoints on two processors; nothing here judges them.";

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report {
            services: 2,
            endpoints: 3,
            machine: "m".to_owned(),
            rows: Vec::new(),
            begun: Instant::now(),
        };
        let samples =
            |ms: &[u64]| Samples::new(ms.iter().map(|ms| Duration::from_millis(*ms)).collect()).unwrap();
        report.times("a", "times", samples(&[4, 400, 12]), Some(&samples(&[2])), "p99 1 s");
        report.count("b", "count", 7, "");
        report.kib("c", "  memory", 40_000, "40 MB");
        report
    }

    #[test]
    fn columns_line_up() {
        let table = report().table();
        let lines: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(lines.len(), 4, "{table}");
        let end = |line: &str, cell: &str| line.find(cell).map(|at| at + cell.len());
        assert_eq!(end(lines[0], "median"), end(lines[1], "12.0"));
        assert_eq!(end(lines[0], "kernel"), end(lines[1], "2.000"));
        assert_eq!(end(lines[0], "ratio"), end(lines[1], "6.0"));
        assert_eq!(end(lines[0], "median"), end(lines[2], " 7"));
        assert_eq!(end(lines[0], "median"), end(lines[3], "40 MB"));
        assert_eq!(lines[0].find("budget"), lines[3].rfind("40 MB"));
        assert_eq!(lines[0].find("budget"), lines[1].find("p99 1 s"));
    }

    #[test]
    fn json_has_every_figure_with_its_unit() {
        let json = report().json();
        let figures = &json["figures"];
        assert_eq!(figures[0]["median_us"], 12_000);
        assert_eq!(figures[0]["kernel_median_us"], 2_000);
        assert_eq!((&figures[1]["count"], &figures[1]["budget"]), (&json!(7), &Value::Null));
        assert_eq!((&figures[2]["kib"], &figures[2]["what"]), (&json!(40_000), &json!("memory")));
    }
}
