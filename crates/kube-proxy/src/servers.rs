//! What the program tells about itself: metrics, health and the servers for them.

use std::sync::Arc;
use std::time::SystemTime;

use agent::Telemetry;
use config::{CommandLine, Config, Gate, Stage};
use events::{Event, Reason, Recorder, Regarding};
use inspect::{About, Api};
use metrics::health::SharedHealth;
use metrics::{BuildInfo, Feature, Metrics, Options};
use model::IpFamily;
use serde_json::json;
use status::{Limits as ClientLimits, ServeError, Server, Sources, Status};

use crate::inspected::ThisHost;
use crate::limits::Limits;
use crate::platform;
use crate::rejections::Rejections;

/// What the API tells besides what the agent and the host do.
#[derive(Clone)]
pub(crate) struct Noted {
    /// Objects that can't be used.
    pub(crate) rejections: Rejections,
    /// What is switched off.
    pub(crate) limits: Limits,
}

/// Metrics at zero, and a proxy that is healthy so far.
pub(crate) fn telemetry(config: &Config, version: &str) -> Telemetry {
    let options = Options { build: build_info(version), features: features(config) };
    let metrics = Arc::new(Metrics::new(&options));
    let telemetry = Telemetry::new(metrics.clone(), SharedHealth::new(config.health_timeout()));
    let published = telemetry.traffic.subscribe();
    let read = move || published.borrow().iter().map(|(family, traffic)| counted(*family, traffic)).collect();
    metrics.traffic.follow(Box::new(read), series(&config.service_metrics));
    telemetry
}

/// Of which Services there are series.
pub(crate) fn series(wanted: &config::ServiceMetrics) -> metrics::ServiceSeries {
    metrics::ServiceSeries {
        limit: match wanted.series {
            config::ServiceSeries::Off => Some(0),
            config::ServiceSeries::Top(count) => Some(usize::try_from(count).unwrap_or(usize::MAX)),
            config::ServiceSeries::All => None,
        },
        namespaces: wanted.namespaces.iter().cloned().collect(),
    }
}

/// What metrics tell of a family: what was counted since the program started, so that a restart is no sudden growth.
fn counted(family: IpFamily, traffic: &agent::Traffic) -> metrics::FamilyTraffic {
    let counted = |now: agent::Counters, then: agent::Counters| metrics::Counted {
        connections: now.connections - then.connections,
        refused: now.refused - then.refused,
        dropped: now.dropped - then.dropped,
        bytes: now.bytes.map(|bytes| bytes - then.bytes.unwrap_or_default()),
    };
    let service = |(name, port): (&model::ServicePortName, &agent::PortTraffic)| metrics::ServiceTraffic {
        namespace: name.service.namespace.to_string(),
        service: name.service.name.to_string(),
        port: name.port.to_string(),
        protocol: name.protocol.to_string(),
        counted: counted(port.flow.total, port.found),
    };
    metrics::FamilyTraffic {
        family,
        total: counted(traffic.since_start, agent::Counters::default()),
        services: traffic.ports.iter().map(service).collect(),
    }
}

/// Descriptors for everything but clients: the runtime, the API server, the kernel, programs, service health checks.
const OWN_DESCRIPTORS: u64 = 64;
/// The limit of descriptors where the system does not tell.
const DESCRIPTORS: u64 = 1024;
/// Clients that are served however few descriptors there are.
const MIN_CONNECTIONS: usize = 8;

/// What clients may take, given how many descriptors the process may have: at most half of those that are left.
fn limits(descriptors: u64) -> ClientLimits {
    let defaults = ClientLimits::default();
    let left = usize::try_from(descriptors.saturating_sub(OWN_DESCRIPTORS) / 2).unwrap_or(usize::MAX);
    ClientLimits { connections: left.clamp(MIN_CONNECTIONS, defaults.connections), ..defaults }
}

/// Starts the servers, before anything else can take long. A Service whose health check can't be served hears of it by an
/// Event.
pub(crate) fn start(
    command_line: &CommandLine,
    config: &Config,
    telemetry: &Telemetry,
    log: &logs::Handle,
    recorder: &Recorder,
    node_name: &str,
    noted: &Noted,
) -> std::io::Result<Status> {
    let about = About {
        version: command_line.version(),
        mode: config.mode.to_string(),
        node: node_name.to_owned(),
        started: SystemTime::now(),
    };
    let further = further(api(config, telemetry, noted.clone(), about));
    let served = served(command_line, config, log.clone(), further);
    let sources = Sources {
        metrics: telemetry.metrics.clone(),
        health: telemetry.health.clone(),
        health_checks: telemetry.health_checks.subscribe(),
    };
    let (recorder, node_name) = (recorder.clone(), node_name.to_owned());
    let notify = move |failed: status::ServiceCheckFailed| {
        let error = format!("listen on {}: {}", failed.address, failed.error);
        recorder.send(Event::service_healthcheck(&node_name, &failed.service, None, failed.port, &error));
    };
    Status::start(served, sources, Arc::new(notify))
}

fn served(
    command_line: &CommandLine,
    config: &Config,
    log: logs::Handle,
    further: status::Further,
) -> status::Config {
    status::Config {
        metrics_address: config.metrics_bind_address,
        socket: config.inspect_socket.clone(),
        health_address: config.healthz_bind_address,
        bind_hard_fail: config.bind_address_hard_fail,
        profiling: config.enable_profiling,
        mode: config.mode.to_string(),
        configz: json!({ "kubeproxy.config.k8s.io": config.to_json() }).to_string(),
        flags: config.gates.enabled(config::COMPONENT_FLAGZ).then(|| {
            command_line.values().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        }),
        serves_statusz: config.gates.enabled(config::COMPONENT_STATUSZ),
        version: command_line.version(),
        set_verbosity: Arc::new(move |verbosity| {
            // klog takes any number; below 0 is as quiet as 0.
            log.set_verbosity(u32::try_from(verbosity).unwrap_or_default());
            Ok(())
        }),
        further,
        limits: limits(platform::descriptor_limit().unwrap_or(DESCRIPTORS)),
    }
}

/// The API, and the page.
fn api(config: &Config, telemetry: &Telemetry, noted: Noted, about: About) -> Api {
    let Noted { rejections, limits } = noted;
    let (one, many, all) = (telemetry.clone(), telemetry.clone(), telemetry.clone());
    let counted = telemetry.clone();
    Api::new(inspect::Sources {
        service: Arc::new(move |name| one.service(name)),
        services: Arc::new(move |wanted| many.services(wanted)),
        overview: Arc::new(move |()| all.overview()),
        news: telemetry.generation.subscribe(),
        traffic: Arc::new(move || counted.traffic()),
        health: telemetry.health.clone(),
        rejections: Arc::new(move || rejections.all()),
        host: Arc::new(ThisHost::new(config.mode, limits)),
        about,
    })
}

fn further(api: Api) -> status::Further {
    let answer = move |request| -> status::Answering {
        let api = api.clone();
        Box::pin(async move { api.answer(&request).await })
    };
    status::Further { paths: &Api::PATHS, answer: Arc::new(answer) }
}

/// The event for a main server that can't serve, which ends the program.
pub(crate) fn failure_event(error: &ServeError, node_name: &str) -> Event {
    let reason = match error.server {
        Server::Metrics => Reason::FailedToStartMetricServer,
        Server::Health => Reason::FailedToStartProxierHealthcheck,
    };
    Event::new(reason, Regarding::Node(node_name.to_owned())).note(agent::with_causes(error))
}

fn features(config: &Config) -> Vec<Feature> {
    let feature = |(gate, enabled): (&Gate, bool)| Feature {
        name: gate.name.to_owned(),
        stage: match gate.stage {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
            Stage::Ga => "",
            Stage::Deprecated => "DEPRECATED",
        }
        .to_owned(),
        enabled,
    };
    config.gates.all().map(feature).collect()
}

fn build_info(version: &str) -> BuildInfo {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    BuildInfo {
        git_version: version.to_owned(),
        compiler: "rustc".into(),
        platform: format!("{}/{arch}", std::env::consts::OS),
        ..BuildInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_descriptors_for_the_work() {
        for (descriptors, connections) in [(1 << 20, 256), (1024, 256), (256, 96), (64, 8), (0, 8)] {
            assert_eq!(limits(descriptors).connections, connections, "{descriptors}");
        }
    }
}
