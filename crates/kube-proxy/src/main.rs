//! `kube-proxy`: reads the command line and the configuration file, and does what they ask for: to serve, or, with a command, to
//! ask the proxy that serves.

mod canary;
mod config_file;
mod endings;
mod external_ips;
mod first_sync;
mod limits;
mod notices;
mod plausibility;
mod rejections;
mod serve;
mod servers;
mod settings;
mod startup_taint;

// What differs by system: each of these is there twice, with the same face. Linux' are beside this file.
#[cfg_attr(windows, path = "windows/file_watch.rs")]
mod file_watch;
#[cfg_attr(windows, path = "windows/inspected.rs")]
mod inspected;
#[cfg_attr(windows, path = "windows/local.rs")]
mod local;
#[cfg_attr(windows, path = "windows/mode.rs")]
mod mode;
#[cfg_attr(windows, path = "windows/platform.rs")]
mod platform;
#[cfg_attr(windows, path = "windows/prepare.rs")]
mod prepare;
#[cfg_attr(windows, path = "windows/service_manager.rs")]
mod service_manager;
#[cfg_attr(windows, path = "windows/takeover.rs")]
mod takeover;
mod watching;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use config::{Action, CommandLine, Config, Level, Parsed};
use config_file::ConfigFile;
use limits::Limits;
use serve::Ended;
use tracing::{error, info, warn};

/// What failed if the log can't be written.
const LOG_THREAD: &str = "start the thread log";

fn main() -> ExitCode {
    platform::begin();
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    if let Some(code) = platform::own_command(&arguments) {
        return code;
    }
    if std::env::args_os().next().is_some_and(|program| cli::kubectl::is_plugin(&program)) {
        return cli::kubectl::run(arguments);
    }
    if arguments.first().is_some_and(|first| cli::is_command(first)) {
        return cli::run(arguments, &local::ThisNode);
    }
    match CommandLine::parse(arguments) {
        Ok(Parsed::Run(command_line)) => run(&command_line),
        Ok(Parsed::Print(text)) => {
            // Nothing is left to do if nobody reads it.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error),
    }
}

fn run(command_line: &CommandLine) -> ExitCode {
    let file = command_line.config().map(ConfigFile::read);
    let loaded = config::load(command_line, file.as_ref().map(ConfigFile::text), &platform::modes());
    let as_service = loaded.config.as_ref().is_ok_and(|config| config.windows.run_as_service);
    let log = match logs::init(settings::logs(&loaded.logging, as_service)) {
        Ok(log) => log,
        Err(error) => return complain(&error),
    };
    for line in command_line.deprecations() {
        log.write_line(&line);
    }
    for (name, value) in command_line.values() {
        info!(v = 1, "FLAG: --{name}={value:?}");
    }
    for note in &loaded.notes {
        match note.level() {
            Level::Warning => warn!("{note}"),
            Level::Info => info!("{note}"),
        }
    }
    let outcome =
        loaded.config.map_err(anyhow::Error::from).and_then(|config| act(command_line, &config, file, &log));
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(err = format!("{error:#}"), "command failed");
            ExitCode::FAILURE
        }
    };
    log.flush();
    code
}

/// Before there is a log.
fn complain(error: &dyn std::error::Error) -> ExitCode {
    drop(write!(std::io::stderr(), "{error}"));
    ExitCode::FAILURE
}

fn act(
    command_line: &CommandLine,
    config: &Config,
    file: Option<ConfigFile>,
    log: &logs::Handle,
) -> anyhow::Result<()> {
    if command_line.action() != Action::Serve {
        log.start_writing().context(LOG_THREAD)?;
    }
    match command_line.action() {
        Action::WriteConfig(path) => write_config(path, config),
        Action::Cleanup => takeover::clean_up(config),
        Action::HandOver(lease) => takeover::hand_over(config, lease),
        Action::InitOnly => prepare::set_host(config, &Limits::default()),
        Action::Serve => {
            let limits = Limits::default();
            prepare::before_serving(config, &limits)?;
            takeover::give_up_privileges(config);
            // Threads keep the privileges that they were started with.
            log.start_writing().context(LOG_THREAD)?;
            let (command_line, own, log) = (command_line.clone(), config.clone(), log.clone());
            platform::run(config, move || serve(&command_line, &own, file, &log, limits))
        }
    }
}

fn serve(
    command_line: &CommandLine,
    config: &Config,
    file: Option<ConfigFile>,
    log: &logs::Handle,
    limits: Limits,
) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let outcome = runtime.block_on(serve::serve(command_line, config, file, log, limits));
    // A thread may wait for a name server or a file system for ever.
    runtime.shutdown_background();
    outcome
}

fn write_config(path: &Path, config: &Config) -> anyhow::Result<()> {
    std::fs::write(path, config.to_yaml()).with_context(|| format!("write {}", path.display()))?;
    info!(file = %path.display(), "Wrote configuration");
    Ok(())
}
