//! `kube-proxy`: reads flags and file, wires the source to the agent and the agent to the kernel, and waits for a signal.

mod config_file;
mod host;
mod logs;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::{ForeignChange, Input, KernelAccess, NodePorts, Pods, Settings};
use anyhow::Context as _;
use config::{Action, CommandLine, Config, DetectLocal, Level, NodePortAddresses, Parsed};
use config_file::ConfigFile;
use model::Kind;
use source::{ApiConfig, ContentType, Source, SourceEvent, Timings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    match CommandLine::parse(arguments) {
        Ok(Parsed::Run(command_line)) => run(&command_line),
        // Nothing is left to do if nobody reads it.
        Ok(Parsed::Print(text)) => {
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(write!(std::io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: &CommandLine) -> ExitCode {
    for line in command_line.deprecations() {
        drop(writeln!(std::io::stderr(), "{line}"));
    }
    let file = command_line.config().map(ConfigFile::read);
    let loaded = config::load(command_line, file.as_ref().map(ConfigFile::text), &host::modes());
    logs::init(loaded.logging.format, u8::try_from(loaded.logging.verbosity).unwrap_or(u8::MAX));
    if loaded.logging.verbosity >= 1 {
        for (name, value) in command_line.values() {
            info!("FLAG: --{name}={value:?}");
        }
    }
    for note in &loaded.notes {
        match note.level() {
            Level::Warning => warn!("{note}"),
            Level::Info => info!("{note}"),
        }
    }
    let outcome =
        loaded.config.map_err(anyhow::Error::from).and_then(|config| act(command_line, &config, file));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(err = format!("{error:#}"), "command failed");
            ExitCode::FAILURE
        }
    }
}

fn act(command_line: &CommandLine, config: &Config, file: Option<ConfigFile>) -> anyhow::Result<()> {
    match command_line.action() {
        Action::WriteConfig(path) => write_config(path, config),
        Action::Cleanup | Action::InitOnly => anyhow::bail!("--cleanup and --init-only are not built in yet"),
        Action::Serve => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let outcome = runtime
                .context("start the runtime")
                .and_then(|runtime| runtime.block_on(serve(command_line, config, file)));
            outcome.inspect_err(|error| error!(err = format!("{error:#}"), "Error running ProxyServer"))
        }
    }
}

fn write_config(path: &Path, config: &Config) -> anyhow::Result<()> {
    std::fs::write(path, config.to_yaml()).with_context(|| format!("write {}", path.display()))?;
    info!(file = %path.display(), "Wrote configuration");
    Ok(())
}

/// Serves until a signal asks to end. The rules stay in the kernel, so that traffic goes on until the next start, which
/// takes them over.
async fn serve(command_line: &CommandLine, config: &Config, file: Option<ConfigFile>) -> anyhow::Result<()> {
    // Before anything else: as process 1 of a container the kernel delivers only signals that have a handler.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let settings = settings(config)?;
    let version = command_line.version();
    info!(%version, node = %settings.node_name, families = ?settings.families, "Using {} Proxier", config.mode);
    let (events_tx, events) = mpsc::channel(EVENTS);
    let mut source = start_source(config, &version, events_tx).await?;
    let file_changed = async {
        match file {
            Some(file) => file.changed(command_line, config).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = agent::run(settings, kernel_access(), events, read_event) => result.context("serve"),
        () = source.ended() => anyhow::bail!("the source ended"),
        () = file_changed => anyhow::bail!("content of the proxy server's configuration file was updated"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// The real kernel.
fn kernel_access() -> KernelAccess {
    KernelAccess {
        open: Arc::new(|| Ok(Box::new(kernel::Nftables::open()?))),
        open_conntrack: Arc::new(|| Ok(Box::new(kernel::Flows::open()?))),
        watch: Box::new(|foreign| {
            let started = std::thread::Builder::new().name("watch".into()).spawn(move || watch(&foreign));
            if let Err(error) = started {
                warn!(%error, "foreign changes of the rules are noticed only by audits");
            }
        }),
    }
}

/// Passes on what others do to our tables, for as long as somebody wants to know.
fn watch(foreign: &UnboundedSender<ForeignChange>) {
    loop {
        let failed = match kernel::TableWatch::open(agent::table_name()) {
            Ok(mut watch) => loop {
                match watch.wait() {
                    Ok(kernel::ForeignChange { family, what }) => {
                        if foreign.send(ForeignChange { family, what }).is_err() {
                            return;
                        }
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        warn!(error = %failed, "changes of the rules can't be watched; trying again");
        std::thread::sleep(WATCH_PAUSE);
    }
}

/// The pause before a failed watch is opened again.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

/// Events that may wait between the source and the agent.
const EVENTS: usize = 4096;

async fn start_source(
    config: &Config,
    version: &str,
    events: mpsc::Sender<SourceEvent>,
) -> anyhow::Result<Source> {
    if let Some(dir) = &config.manifests {
        return source::spawn_folder(dir.clone(), events).context("read the manifests");
    }
    let config = ApiConfig {
        kubeconfig: config.client_connection.kubeconfig.clone(),
        server: config.client_connection.server.clone(),
        node_name: node_name(config)?,
        content_type: match config.client_connection.content_type {
            config::ContentType::Protobuf => ContentType::Protobuf,
            config::ContentType::Json => ContentType::Json,
        },
        user_agent: source::user_agent(version),
        timings: Timings::default(),
    };
    source::spawn_api(config, events).await.context("configure the API client")
}

/// What an event means to the agent; what is only for people is logged here.
fn read_event(event: SourceEvent) -> Option<Input> {
    match event {
        SourceEvent::Change(change) => return Some(Input::Change(change)),
        SourceEvent::Listed(kind) => return Some(Input::Listed(kind)),
        SourceEvent::Rejected(rejection) => warn!(%rejection, "left out what can't be used"),
        SourceEvent::Problem { kind, text } => {
            warn!(kind = kind.map_or("all", Kind::as_str), problem = text, "the source has a problem");
        }
        SourceEvent::Recovered(kind) => info!(%kind, "the source works again"),
    }
    None
}

fn node_name(config: &Config) -> anyhow::Result<String> {
    config.hostname_override.clone().map_or_else(host::hostname, Ok)
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let node_name = node_name(config)?;
    let node_ports = match &config.node_port_addresses {
        NodePortAddresses::All => NodePorts::Within(Vec::new()),
        NodePortAddresses::Primary => NodePorts::Primary,
        NodePortAddresses::Within(ranges) => NodePorts::Within(ranges.clone()),
    };
    let pods = match config.detect_local.clone() {
        DetectLocal::ClusterCidr(ranges) => Pods::ClusterCidr(ranges),
        DetectLocal::NodeCidr => Pods::NodeCidr,
        DetectLocal::BridgeInterface(name) => Pods::BridgeInterface(name),
        DetectLocal::InterfaceNamePrefix(prefix) => Pods::InterfaceNamePrefix(prefix),
    };
    Ok(Settings {
        node_name: node_name.as_str().into(),
        families: host::families(),
        node_ports,
        pods,
        masquerade_all: config.masquerade_all,
        masquerade_mark: 1 << config.masquerade_bit,
        release_memory: kernel::release_memory,
    })
}
