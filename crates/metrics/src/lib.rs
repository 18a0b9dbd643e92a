//! What the program tells about itself: metrics in the Prometheus text format, and health.
//!
//! Flow: whoever does something updates a typed handle of [`Metrics`] or [`health::Health`]; whoever is asked (crate `status`)
//! renders. No I/O: readings of the process are passed in, and so is the time.
//!
//! Names, types, labels and buckets of upstream's metrics are upstream's (`pkg/proxy/metrics/metrics.go`). All label
//! combinations exist from the start, so that `rate()` sees a first failure. `docs/metrics.md` lists every metric.
#![forbid(unsafe_code)]

mod buckets;
mod family;
pub mod health;
mod mode;
mod process;
mod registrar;
mod requests;
mod sli;
mod source;
mod traffic;
mod turn;

use std::sync::{Mutex, PoisonError};

use model::IpFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::time::Instant;

pub use family::FamilyMetrics;
pub use mode::{
    EbpfMetrics, IptablesMetrics, IpvsMetrics, NftablesMetrics, TableMetrics, TraceMetrics, WorkerMetrics,
};
pub use process::ProcessReading;
pub use registrar::CONTENT_TYPE;
pub use requests::{ReadRequests, RequestMetrics, RequestSums, ServicePort};
pub use sli::Slis;
pub use source::{Requests, ResourceMetrics, SourceMetrics};
pub use traffic::{Counted, FamilyTraffic, ReadTraffic, ServiceSeries, ServiceTraffic, TrafficMetrics};
pub use turn::LoopTurn;

use process::ProcessMetrics;
use registrar::Registrar;

/// What is known of the program when it starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Labels of `kubernetes_build_info`.
    pub build: BuildInfo,
    /// Feature gates, for `kubernetes_feature_enabled`.
    pub features: Vec<Feature>,
}

/// The labels of `kubernetes_build_info`. What is unknown, or has no meaning for this program, is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the labels")]
pub struct BuildInfo {
    pub major: String,
    pub minor: String,
    pub git_version: String,
    pub git_commit: String,
    pub git_tree_state: String,
    pub build_date: String,
    pub go_version: String,
    pub compiler: String,
    pub platform: String,
}

/// A feature gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Name.
    pub name: String,
    /// `ALPHA`, `BETA`, `DEPRECATED`, or empty for one that is generally available.
    pub stage: String,
    /// Whether it is on.
    pub enabled: bool,
}

/// All metrics that every mode has; see [`NftablesMetrics::register`] and the like for a mode's own.
pub struct Metrics {
    registrar: Registrar,
    family: Box<dyn Fn(IpFamily) -> FamilyMetrics + Send + Sync>,
    /// Changes of API objects.
    pub changes: ChangeMetrics,
    /// Answers of the health server.
    pub health_answers: HealthAnswers,
    /// Log records that nobody took.
    pub log_records_lost: IntCounter,
    /// 1 while the configuration file, as it is now, can be used; 0 while the one before stays in force.
    pub config_file_usable: IntGauge,
    canary_probes: IntCounterVec,
    /// The way to the API server.
    pub source: SourceMetrics,
    /// Turns of the event loop.
    pub loop_turn: LoopTurn,
    /// What went through Services.
    pub traffic: TrafficMetrics,
    /// The registry of `/metrics/slis`.
    pub slis: Slis,
    process: Mutex<ProcessMetrics>,
}

/// Changes of API objects. Pending: known, and not yet part of a sync; the sum over the families.
#[derive(Debug)]
pub struct ChangeMetrics {
    /// Changed `EndpointSlices` that wait.
    pub endpoints_pending: IntGauge,
    /// `EndpointSlice` events.
    pub endpoints_total: IntCounter,
    /// Changed Services that wait.
    pub services_pending: IntGauge,
    /// Service events, once for each family.
    pub services_total: IntCounter,
}

/// Answers of the health server by code.
#[derive(Debug)]
pub struct HealthAnswers {
    healthz: [IntCounter; 2],
    livez: [IntCounter; 2],
}

impl ChangeMetrics {
    fn register(registrar: &Registrar) -> Self {
        Self {
            endpoints_pending: registrar.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "[ALPHA] EndpointSlice changes that no sync has taken up yet",
            ),
            endpoints_total: registrar
                .counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "[ALPHA] EndpointSlice events"),
            services_pending: registrar.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "[ALPHA] Service changes that no sync has taken up yet",
            ),
            services_total: registrar.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "[ALPHA] Service events, once for each IP family",
            ),
        }
    }
}

impl HealthAnswers {
    fn register(registrar: &Registrar) -> Self {
        let by_code = |name, help| {
            let answers = registrar.counters(name, help, &["code"]);
            ["200", "503"].map(|code| answers.with_label_values(&[code]))
        };
        Self {
            healthz: by_code(
                "kubeproxy_proxy_healthz_total",
                "[ALPHA] Answers of the health server's /healthz",
            ),
            livez: by_code("kubeproxy_proxy_livez_total", "[ALPHA] Answers of the health server's /livez"),
        }
    }

    /// Counts an answer of `/healthz`.
    pub fn healthz(&self, ok: bool) {
        self.healthz[usize::from(!ok)].inc();
    }

    /// Counts an answer of `/livez`.
    pub fn livez(&self, ok: bool) {
        self.livez[usize::from(!ok)].inc();
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new(options: &Options) -> Self {
        let registrar = Registrar::counted();
        let family = Box::new(family::register(&registrar));
        let changes = ChangeMetrics::register(&registrar);
        let health_answers = HealthAnswers::register(&registrar);
        let log_records_lost =
            registrar.counter("kubeproxy_log_records_lost_total", "Log records that nobody read in time");
        let config_file_usable = registrar.gauge(
            "kubeproxy_config_file_usable",
            "0 while the configuration file was changed to something that can't be used, else 1",
        );
        config_file_usable.set(1);
        let canary_probes = registrar.counters(
            "kubeproxy_canary_probes_total",
            "Connections to the canary's Service, by what became of them",
            &["ip_family", "result"],
        );
        register_static(&registrar, options);
        let source = SourceMetrics::register(&registrar);
        let process = Mutex::new(ProcessMetrics::register(&registrar));
        let loop_turn = LoopTurn::register(&registrar);
        let traffic = TrafficMetrics::register(&registrar);
        Self {
            registrar,
            family,
            changes,
            health_answers,
            log_records_lost,
            config_file_usable,
            canary_probes,
            source,
            loop_turn,
            traffic,
            slis: Slis::default(),
            process,
        }
    }

    /// The probes of the canary in a family, by result; on the page from the first call on.
    pub fn canary(&self, family: IpFamily) -> impl Fn(health::CanaryState) + Send + use<> {
        let family = family.to_string();
        let counter = |state: &health::CanaryState| {
            (*state, self.canary_probes.with_label_values(&[family.as_str(), state.as_str()]))
        };
        let counters: Vec<_> = health::CanaryState::ALL.iter().map(counter).collect();
        move |came_to| {
            for (_, counter) in counters.iter().filter(|(state, _)| *state == came_to) {
                counter.inc();
            }
        }
    }

    /// The metrics of a family that is served. They are on the page from the first call on.
    pub fn family(&self, family: IpFamily) -> FamilyMetrics {
        (self.family)(family)
    }

    /// The page `/metrics` in the Prometheus text format ([`CONTENT_TYPE`]). Without a reading of the process its metrics
    /// stay as they were.
    pub fn render(&self, process: Option<&ProcessReading>, now: Instant) -> String {
        if let Some(reading) = process {
            self.process.lock().unwrap_or_else(PoisonError::into_inner).set(reading);
            self.slis.set_start_time(reading.start_time_seconds);
        }
        self.source.set_lags(now);
        self.registrar.render()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What never changes.
fn register_static(registrar: &Registrar, options: &Options) {
    let BuildInfo {
        major,
        minor,
        git_version,
        git_commit,
        git_tree_state,
        build_date,
        go_version,
        compiler,
        platform,
    } = &options.build;
    let labels = [
        ("major", major),
        ("minor", minor),
        ("git_version", git_version),
        ("git_commit", git_commit),
        ("git_tree_state", git_tree_state),
        ("build_date", build_date),
        ("go_version", go_version),
        ("compiler", compiler),
        ("platform", platform),
    ];
    let build = registrar.gauges(
        "kubernetes_build_info",
        "[ALPHA] Always 1; the labels say which build this is",
        &labels.map(|(name, _)| name),
    );
    build.with_label_values(&labels.map(|(_, value)| value.as_str())).set(1);
    let features = registrar.gauges(
        "kubernetes_feature_enabled",
        "[BETA] 1 for each feature gate that is on, 0 for each that is off",
        &["name", "stage"],
    );
    for Feature { name, stage, enabled } in &options.features {
        features.with_label_values(&[name, stage]).set(i64::from(*enabled));
    }
}
