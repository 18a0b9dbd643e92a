//! The figures for people (a Markdown table and a plot) and for programs (JSON).

mod json;
mod markdown;
mod plot;

pub(crate) use markdown::aligned;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use testkit::cluster::Flavour;

use crate::contender::Contender;
use crate::metric::Unit;
use crate::results::Results;

/// A finished run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) endpoints: u32,
    pub(crate) machine: String,
    /// In mode iptables, which kind of iptables the node had.
    pub(crate) flavour: Option<Flavour>,
    /// With the words by which each was started.
    pub(crate) contenders: Vec<Contender>,
    pub(crate) results: Results,
}

impl Report {
    /// Prints the table, and writes it, the figures and the plot to a folder as `bench.md`, `bench.json` and `bench.svg`.
    pub(crate) fn publish(&self, folder: &Path) -> anyhow::Result<()> {
        let markdown = self.markdown();
        say(&format!("\n{markdown}"))?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let json = format!("{:#}\n", self.json());
        for (name, text) in [("bench.md", markdown), ("bench.json", json), ("bench.svg", self.plot())] {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            say(&format!("wrote {}", file.display()))?;
        }
        Ok(())
    }
}

/// Kernel and processors.
pub(crate) fn machine() -> anyhow::Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let processors = std::thread::available_parallelism().context("count the processors")?;
    Ok(format!("Linux {}, {processors} processors", release.trim()))
}

/// Prints a line.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("write to the terminal")
}

/// With about three digits.
fn digits(value: f64, unit: Unit) -> String {
    match value {
        _ if unit == Unit::Count && value.fract() == 0.0 => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Series;

    pub(super) fn example() -> Report {
        let contender = |series, extra: &str| Contender {
            series,
            program: "/bin/kp".into(),
            mode: "nftables".into(),
            extra: extra.split_whitespace().map(str::to_owned).collect(),
        };
        Report {
            endpoints: 10,
            machine: "Linux x".to_owned(),
            flavour: Some(Flavour::Legacy),
            contenders: vec![contender(Series::Ours, ""), contender(Series::Peer, "--x <1>")],
            results: crate::results::tests::example(),
        }
    }

    #[test]
    fn three_digits_are_enough() {
        let all = [0.0, 0.0123, 1.239, 12.39, 1239.4].map(|value| digits(value, Unit::Millis));
        assert_eq!(all, ["0.000", "0.012", "1.24", "12.4", "1239"]);
        assert_eq!(digits(7.0, Unit::Count), "7");
        assert_eq!(digits(7.5, Unit::Count), "7.50");
    }
}
