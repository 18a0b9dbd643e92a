//! `kube-proxy`: reads flags, wires the source to the agent and the agent to the kernel, and waits for a signal.

mod flags;
mod host;
mod iptables_mode;
mod nftables_mode;
mod notices;
mod plausibility;

use std::process::ExitCode;
use std::time::Duration;

use agent::{Input, NodePorts, Settings};
use anyhow::Context as _;
use flags::{Flags, LogFormat, ProxyMode};
use model::Kind;
use source::{ApiConfig, ContentType, Source, SourceEvent, Timings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let matches = flags::command().get_matches();
    let flags = match Flags::new(&matches) {
        Ok(flags) => flags,
        Err(error) => flags::command().error(clap::error::ErrorKind::ValueValidation, error).exit(),
    };
    let log = match logs::init(logs_config(&flags)) {
        Ok(log) => log,
        Err(error) => flags::command().error(clap::error::ErrorKind::Io, error).exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("start the runtime").and_then(|runtime| runtime.block_on(serve(flags)));
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

fn logs_config(flags: &Flags) -> logs::Config {
    let format = match flags.log_format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    logs::Config { format, verbosity: u32::from(flags.verbosity), ..logs::Config::default() }
}

/// Serves until a signal asks to end. The rules stay in the kernel, so that traffic goes on until the next start, which
/// takes them over.
async fn serve(flags: Flags) -> anyhow::Result<()> {
    // Before anything else: as process 1 of a container the kernel delivers only signals that have a handler.
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let (notices, recorder, listener) =
        notices::outlets(&host::hostname().or_else(|_unreadable| node_name(&flags))?);
    let settings = settings(&flags, notices)?;
    let checked = checked(&flags, &settings);
    let node_name = settings.node_name.clone();
    info!(version = env!("CARGO_PKG_VERSION"), "Version info");
    info!(node = %node_name, "Using {} Proxier", flags.mode.as_str());
    let (events_tx, events) = mpsc::channel(EVENTS);
    let mut source = start_source(&flags, events_tx).await?;
    notices::log_watches();
    let read = |event| read_event(event, &recorder);
    let outcome = tokio::select! {
        result = run(flags.mode, settings, events, read) => result,
        error = listener.run(source.client(), &node_name, &checked) => Err(error),
        () = source.ended() => Err(anyhow::anyhow!("the source ended")),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    recorder.flush(FLUSH).await;
    outcome
}

/// Serves in a mode.
async fn run(
    mode: ProxyMode,
    mut settings: Settings,
    events: mpsc::Receiver<SourceEvent>,
    read: impl Fn(SourceEvent) -> Option<Input>,
) -> anyhow::Result<()> {
    let served = match mode {
        ProxyMode::Nftables => {
            agent::run(backend_nftables::Nftables, settings, nftables_mode::kernel_access(), events, read)
                .await
        }
        ProxyMode::Iptables => {
            let (mode, kernel) = iptables_mode::prepare(&mut settings)?;
            agent::run(mode, settings, kernel, events, read).await
        }
    };
    served.context("serve")
}

/// How long the end of the program waits for events to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Events that may wait between the source and the agent.
const EVENTS: usize = 4096;

async fn start_source(flags: &Flags, events: mpsc::Sender<SourceEvent>) -> anyhow::Result<Source> {
    if let Some(dir) = &flags.manifests {
        return source::spawn_folder(dir.clone(), events).context("read the manifests");
    }
    let config = ApiConfig {
        kubeconfig: flags.kubeconfig.clone(),
        server: flags.master.clone(),
        node_name: node_name(flags)?,
        content_type: if flags.json_only { ContentType::Json } else { ContentType::Protobuf },
        user_agent: source::user_agent(env!("CARGO_PKG_VERSION")),
        timings: Timings::default(),
    };
    source::spawn_api(config, events).await.context("configure the API client")
}

/// What an event means to the agent; what is only for people is told here.
fn read_event(event: SourceEvent, recorder: &events::Recorder) -> Option<Input> {
    match event {
        SourceEvent::Change(change) => {
            notices::log_change(&change);
            return Some(Input::Change(change));
        }
        SourceEvent::Listed(kind) => {
            notices::log_listed(kind);
            return Some(Input::Listed(kind));
        }
        SourceEvent::Rejected(rejection) => {
            warn!(%rejection, "left out what can't be used");
            if let Some(event) = notices::rejection_event(&rejection) {
                recorder.send(event);
            }
        }
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

fn settings(flags: &Flags, notices: agent::Notices) -> anyhow::Result<Settings> {
    let node_name = node_name(flags)?;
    let node_ports = match flags.mode {
        _ if flags.primary_node_port_addresses => NodePorts::Primary,
        ProxyMode::Nftables if flags.nodeport_addresses.is_empty() => NodePorts::Primary,
        // In iptables mode, none means all.
        ProxyMode::Nftables | ProxyMode::Iptables => NodePorts::Within(flags.nodeport_addresses.clone()),
    };
    Ok(Settings {
        families: host::families(),
        node_ports,
        localhost_node_ports: flags.mode == ProxyMode::Iptables && flags.localhost_node_ports,
        pods: flags.pods.clone(),
        masquerade_all: flags.masquerade_all,
        notices,
        release_memory: kernel::release_memory,
        ..Settings::new(node_name.as_str().into())
    })
}

/// What is looked at once the Node is known.
fn checked(flags: &Flags, settings: &Settings) -> plausibility::Checked {
    let cluster_cidrs = match &flags.pods {
        agent::Pods::ClusterCidr(ranges) => ranges.clone(),
        _ => Vec::new(),
    };
    plausibility::Checked {
        families: settings.families.clone(),
        pods: settings.pods.clone(),
        cluster_cidrs,
        node_ports: settings.node_ports.clone(),
        ipvs_exclude_cidrs: Vec::new(),
        listeners: Vec::new(),
    }
}
