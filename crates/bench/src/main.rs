//! `bench [--services N,...] [--peer PROGRAM] PROGRAM`: what a kube-proxy costs, beside any other one and beside what the
//! kernel alone takes; with `--disturbed`, what changes while others commit rules. Figures never decide the exit code; only one
//! that can't be taken makes it 1, and with `--disturbed` rules that were written anew and clients that lost their endpoint.
#![forbid(unsafe_code)]

mod changes;
mod churn;
mod contender;
mod data_path;
mod disturbed;
mod kernel_share;
mod log;
mod metric;
mod observe;
mod options;
mod packets;
mod process;
mod report;
mod results;
mod run;
mod samples;
mod site;
mod start;
mod world;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use lab::enter_user_namespace;

fn main() -> ExitCode {
    // Before anything else, because only a process with one thread may.
    let outcome = enter_user_namespace()
        .context("get the right to make network namespaces")
        .and_then(|()| run::run(&options::read()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nowhere to complain to, the exit code has to do.
            drop(writeln!(std::io::stderr(), "bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
