//! Serving: the source, the agent, and what is around them, until something ends the program.

use std::time::Duration;

use agent::{Input, Settings, Telemetry};
use anyhow::Context as _;
use config::{CommandLine, Config};
use events::Recorder;
use metrics::SourceMetrics;
use model::view::ExternalIps;
use model::{IpFamily, Kind, Node};
use source::{Client, Source, SourceEvent};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::config_file::ConfigFile;
use crate::endings::Endings;
use crate::limits::Limits;
use crate::rejections::Rejections;
use crate::servers::Noted;
use crate::{
    canary, external_ips, mode, notices, platform, servers, service_manager, settings, startup_taint,
};

/// Events that may wait between the source and the agent.
const EVENTS: usize = 4096;
/// How long the end of the program waits for events to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Why serving came to an end that is no failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Somebody wanted it.
    Asked,
    /// The configuration file means something else: whoever starts the program is to start it again.
    ToRestart,
}

/// Serves until a signal asks to end, or the configuration file does by meaning something else. The rules stay in the kernel, so that traffic goes on until the next start, which
/// takes them over.
pub(crate) async fn serve(
    command_line: &CommandLine,
    config: &Config,
    file: Option<ConfigFile>,
    log: &logs::Handle,
    limits: Limits,
) -> anyhow::Result<Ended> {
    // Before anything else: as process 1 of a container the kernel delivers only signals that have a handler.
    let mut stop = platform::stop().context("handle signals")?;
    let version = command_line.version();
    let node_name = config.hostname_override.clone().map_or_else(platform::hostname, Ok)?;
    info!(%version, "Version info");
    info!(node = node_name, "Using {} Proxier", config.mode);

    let families = platform::families();
    let (notices, recorder, listener) =
        notices::outlets(&platform::hostname().unwrap_or_else(|_unreadable| node_name.clone()));
    let checked = settings::checked(config, families.clone());
    let settings = settings::agent(config, &node_name, notices);
    let (events_tx, events) = mpsc::channel(EVENTS);
    let telemetry = servers::telemetry(config, &version);
    let noted = Noted { rejections: Rejections::default(), limits };
    let mut status = servers::start(command_line, config, &telemetry, log, &recorder, &node_name, &noted)
        .context("start the servers")?;
    let lost = telemetry.metrics.log_records_lost.clone();
    log.on_loss(Box::new(move |records| lost.inc_by(records)));
    let metrics = telemetry.metrics.clone();
    let mut source = start_source(config, &node_name, &version, metrics.source.clone(), events_tx).await?;
    start_on_demand(config, source.client(), &node_name, listener.nodes(), &telemetry, &recorder);
    notices::log_watches();
    let allowed = settings::external_ips(config);
    let read = |event| read_event(event, &recorder, &noted.rejections, &allowed);
    let tell = |usable: Result<(), &str>| notices::tell_config_file(usable, &metrics, &recorder, &node_name);
    let file_changed = async {
        match file {
            Some(file) => file.changed(command_line, config, tell).await,
            None => std::future::pending().await,
        }
    };
    let endings = Endings::default();
    let told = telemetry.clone();
    let outcome = tokio::select! {
        result = run(config, families, settings, telemetry, (&endings, &noted.limits), events, read) => result.map(|()| Ended::Asked),
        error = listener.run(source.client(), &node_name, &checked) => Err(error),
        error = status.failed() => {
            recorder.send(servers::failure_event(&error, &node_name));
            Err(error.into())
        }
        () = source.ended() => Err(anyhow::anyhow!("the source ended")),
        () = service_manager::follow(&told) => Ok(Ended::Asked),
        () = file_changed => {
            info!("content of the proxy server's configuration file was updated; ending, to be started with it");
            Ok(Ended::ToRestart)
        }
        () = stop.recv() => Ok(Ended::Asked),
    };
    service_manager::tell_end().await;
    let ended = tokio::task::spawn_blocking(move || endings.run());
    if ended.await.is_err() {
        warn!("not all that was begun was brought to an end");
    }
    recorder.flush(FLUSH).await;
    outcome
}

/// Starts what operators may ask for besides.
fn start_on_demand(
    config: &Config,
    client: Option<Client>,
    node_name: &str,
    nodes: watch::Receiver<Option<Node>>,
    telemetry: &Telemetry,
    recorder: &Recorder,
) {
    if let (Some(key), Some(client)) = (config.startup_taint.clone(), client) {
        let (telemetry, recorder) = (telemetry.clone(), recorder.clone());
        let task = startup_taint::keep_away(key, client, node_name.to_owned(), nodes, telemetry, recorder);
        tokio::spawn(task);
    }
    if let Some(wanted) = config.canary.clone() {
        let (telemetry, recorder) = (telemetry.clone(), recorder.clone());
        tokio::spawn(canary::probe(wanted, telemetry, node_name.to_owned(), recorder));
    }
}

/// Serves in the mode that was chosen.
async fn run(
    config: &Config,
    families: Vec<IpFamily>,
    settings: Settings,
    telemetry: Telemetry,
    (endings, limits): (&Endings, &Limits),
    events: mpsc::Receiver<SourceEvent>,
    read: impl Fn(SourceEvent) -> Option<Input>,
) -> anyhow::Result<()> {
    let families = mode::serve(config, &settings, families, &telemetry.metrics, endings, limits).await?;
    agent::run(families, settings, telemetry, events, read).await.context("serve")
}

async fn start_source(
    config: &Config,
    node_name: &str,
    version: &str,
    metrics: SourceMetrics,
    events: mpsc::Sender<SourceEvent>,
) -> anyhow::Result<Source> {
    if let Some(dir) = &config.manifests {
        return source::spawn_folder(dir.clone(), metrics, events).context("read the manifests");
    }
    let api = settings::api(config, node_name, version);
    source::spawn_api(api, metrics, events).await.context("configure the API client")
}

/// What an event means to the agent; what is only for people is told here.
fn read_event(
    event: SourceEvent,
    recorder: &Recorder,
    rejections: &Rejections,
    allowed: &ExternalIps,
) -> Option<Input> {
    match event {
        SourceEvent::Change(change) => {
            notices::log_change(&change);
            for (rejection, event) in external_ips::not_allowed(&change, allowed) {
                warn!(%rejection, "left out an external IP that is not allowed");
                rejections.add(&rejection);
                recorder.send(event);
            }
            rejections.follow(&change);
            return Some(Input::Change(change));
        }
        SourceEvent::Listed(kind) => {
            notices::log_listed(kind);
            return Some(Input::Listed(kind));
        }
        SourceEvent::Rejected(rejection) => {
            warn!(%rejection, "left out what can't be used");
            rejections.add(&rejection);
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
