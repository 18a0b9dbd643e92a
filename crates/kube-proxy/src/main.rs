//! `kube-proxy`: reads flags, wires the source to the agent and the agent to the kernel, and waits for a signal.

mod flags;
mod host;
mod logs;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::{ForeignChange, Input, KernelAccess, NodePorts, Settings};
use anyhow::Context as _;
use flags::Flags;
use metrics::SourceMetrics;
use model::Kind;
use source::{ApiConfig, ContentType, Source, SourceEvent, Timings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let matches = flags::command().get_matches();
    let flags = match Flags::new(&matches) {
        Ok(flags) => flags,
        Err(error) => flags::command().error(clap::error::ErrorKind::ValueValidation, error).exit(),
    };
    let set_verbosity = logs::init(flags.log_format, flags.verbosity);
    let servers = servers::config(&matches, &flags, set_verbosity);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome =
        runtime.context("start the runtime").and_then(|runtime| runtime.block_on(serve(flags, servers)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(err = format!("{error:#}"), "command failed");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal asks to end. The rules stay in the kernel, so that traffic goes on until the next start, which
/// takes them over.
async fn serve(flags: Flags, servers: status::Config) -> anyhow::Result<()> {
    // Before anything else: as process 1 of a container the kernel delivers only signals that have a handler.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let settings = settings(&flags)?;
    info!(version = env!("CARGO_PKG_VERSION"), node = %settings.node_name, families = ?settings.families, "Using nftables Proxier");
    let (events_tx, events) = mpsc::channel(EVENTS);
    let (telemetry, mut servers) = servers::start(servers)?;
    let mut source = start_source(&flags, telemetry.metrics.source.clone(), events_tx).await?;
    tokio::select! {
        result = agent::run(settings, kernel_access(), telemetry, events, read_event) => result.context("serve"),
        () = source.ended() => anyhow::bail!("the source ended"),
        error = servers.failed() => Err(error.into()),
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
    flags: &Flags,
    metrics: SourceMetrics,
    events: mpsc::Sender<SourceEvent>,
) -> anyhow::Result<Source> {
    if let Some(dir) = &flags.manifests {
        return source::spawn_folder(dir.clone(), metrics, events).context("read the manifests");
    }
    let config = ApiConfig {
        kubeconfig: flags.kubeconfig.clone(),
        server: flags.master.clone(),
        node_name: node_name(flags)?,
        content_type: if flags.json_only { ContentType::Json } else { ContentType::Protobuf },
        user_agent: source::user_agent(env!("CARGO_PKG_VERSION")),
        timings: Timings::default(),
    };
    source::spawn_api(config, metrics, events).await.context("configure the API client")
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

fn node_name(flags: &Flags) -> anyhow::Result<String> {
    flags.hostname_override.clone().map_or_else(host::hostname, Ok)
}

fn settings(flags: &Flags) -> anyhow::Result<Settings> {
    let node_name = node_name(flags)?;
    let node_ports = if flags.nodeport_addresses.is_empty() {
        NodePorts::Primary
    } else {
        NodePorts::Within(flags.nodeport_addresses.clone())
    };
    Ok(Settings {
        node_name: node_name.as_str().into(),
        families: host::families(),
        node_ports,
        pods: flags.pods.clone(),
        masquerade_all: flags.masquerade_all,
        masquerade_mark: 1 << 14,
        release_memory: kernel::release_memory,
    })
}
