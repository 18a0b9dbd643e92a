//! `demo PROGRAM`: a Service, its pods and a client in network namespaces of this process, told on the terminal.
//!
//! Nothing is left behind: namespaces live as long as the process, and so does the proxy that it starts. Any request
//! that fails makes the exit code 1.
#![forbid(unsafe_code)]

mod interrupt;
mod stage;
mod story;
mod text;
mod traffic;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use lab::{enter_user_namespace, require_privilege};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let outcome = match (arguments.next(), arguments.next()) {
        (Some(program), None) => run(program),
        _ => Err(anyhow::anyhow!("usage: demo PROGRAM, such as: demo target/release/kube-proxy")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With nowhere to complain to, the exit code has to do.
            drop(writeln!(std::io::stderr(), "demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(program: OsString) -> anyhow::Result<()> {
    let program = PathBuf::from(program);
    anyhow::ensure!(program.is_file(), "{} is not there; build it first", program.display());
    let is_root = require_privilege().is_ok();
    // Before anything else, because only a process with one thread may.
    enter_user_namespace().context("get the right to make network namespaces without being root")?;
    let cleanup = interrupt::Cleanup::start().context("handle signals")?;
    let stage = stage::Stage::build(program).context("build the cluster")?;
    cleanup.remove_when_interrupted(stage.cluster.dir());
    story::tell(&stage, is_root)
}
