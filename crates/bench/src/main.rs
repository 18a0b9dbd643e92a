//! `bench [--services N] [--endpoints E] [--json FILE] PROGRAM`: times and memory of the proxy, beside what the kernel
//! alone takes for the same transactions. Timings never decide the exit code; only a measurement that can't be taken
//! makes it 1.
#![forbid(unsafe_code)]

mod changes;
mod churn;
mod kernel_share;
mod log;
mod process;
mod report;
mod samples;
mod site;
mod start;
mod world;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, Command, value_parser};
use testkit::lab::enter_user_namespace;

use crate::report::Report;
use crate::site::Site;
use crate::world::World;

/// What was asked for.
#[derive(Clone, Debug)]
struct Plan {
    services: u32,
    endpoints: u32,
    /// Single changes of each step of each kind.
    n_changes: usize,
    /// Cold starts, restarts and loads by the kernel alone.
    n_starts: usize,
    churn_seconds: u32,
    json: Option<PathBuf>,
    program: PathBuf,
}

fn main() -> ExitCode {
    // Before anything else, because only a process with one thread may.
    let outcome = enter_user_namespace()
        .context("get the right to make network namespaces")
        .and_then(|()| run(&plan()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nowhere to complain to, the exit code has to do.
            drop(writeln!(std::io::stderr(), "bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").default_value(default).help(help)
    };
    Command::new("bench")
        .about("Measures the proxy in network namespaces of its own, beside the kernel's own share")
        .arg(number("services", "10000", "Services").value_parser(value_parser!(u32).range(2..=1_000_000)))
        .arg(
            number("endpoints", "10", "Endpoints of each Service")
                .value_parser(value_parser!(u32).range(1..=1000)),
        )
        .arg(
            number("changes", "200", "Single changes of each kind")
                .value_parser(value_parser!(u32).range(2..)),
        )
        .arg(
            number("starts", "3", "Cold starts, restarts and loads by the kernel alone")
                .value_parser(value_parser!(u32).range(1..)),
        )
        .arg(
            number("churn-seconds", "5", "Duration of the churn").value_parser(value_parser!(u32).range(1..)),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Write the figures to this file, too"),
        )
        .arg(
            Arg::new("PROGRAM")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The proxy, such as target/release/kube-proxy"),
        )
}

fn plan() -> Plan {
    let matches = command().get_matches();
    let number = |name: &str| matches.get_one::<u32>(name).copied().unwrap_or_default();
    let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
    Plan {
        services: number("services"),
        endpoints: number("endpoints"),
        n_changes: number("changes") as usize,
        n_starts: number("starts") as usize,
        churn_seconds: number("churn-seconds"),
        json: path("json"),
        program: path("PROGRAM").unwrap_or_default(),
    }
}

fn run(plan: &Plan) -> anyhow::Result<()> {
    anyhow::ensure!(plan.program.is_file(), "{} is not there; build it first", plan.program.display());
    let world = World::new(plan.services, plan.endpoints)?;
    let mut report = Report::new(plan.services, plan.endpoints)?;
    report.progress("the kernel alone")?;
    let share =
        kernel_share::measure(&world, plan.n_starts, plan.n_changes).context("measure the kernel alone")?;
    let mut site = Site::build(&world, plan.program.clone()).context("build the laboratory")?;
    report.progress("cold starts")?;
    let mut proxy = start::cold(&site, plan.n_starts, &share, &mut report).context("measure cold starts")?;
    report.progress("single changes")?;
    changes::measure(&mut site, &proxy, plan.n_changes, &share, &mut report)
        .context("measure single changes")?;
    report.progress("churn")?;
    churn::measure(&mut site, &proxy, plan.churn_seconds, &mut report).context("measure churn")?;
    start::memory(&proxy, "after all changes", &mut report)?;
    report.progress("restarts")?;
    start::warm(&site, &mut proxy, plan.n_starts, &mut report).context("measure restarts")?;
    report.print()?;
    plan.json.as_deref().map_or(Ok(()), |file| report.write_json(file))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_are_sound() {
        super::command().debug_assert();
    }
}
