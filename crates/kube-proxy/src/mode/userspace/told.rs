//! Where goes what workers tell, and what of it is traced.

use std::sync::Arc;

use backend_userspace::{Carried, Outages, Requests, Teller};
use config::{BuildInfo, Collector, Config, Tracing};
use metrics::{Metrics, TraceMetrics};
use otlp::{Endpoint, Outcome, Spans};
use proxy::frame::RequestTrace;
use tracing::warn;

use crate::platform;

/// Where goes what a family's workers tell, or what one of them does.
#[derive(Clone)]
pub(super) struct Told<O> {
    pub(super) carried: Carried,
    pub(super) outages: O,
    pub(super) requests: Requests,
    pub(super) traces: Option<Spans>,
}

impl Told<Outages> {
    /// Another worker is at work.
    pub(super) fn new_worker(&self) -> Told<Teller> {
        let Self { carried, outages, requests, traces } = self.clone();
        Told { carried, outages: outages.new_worker(), requests, traces }
    }
}

impl Told<Teller> {
    pub(super) fn trace(&self, told: &RequestTrace) {
        if let Some(traces) = &self.traces {
            for span in backend_userspace::spans(told) {
                traces.add(span);
            }
        }
    }

    /// A worker had no room for so many requests' traces.
    pub(super) fn note_lost(&self, n: u64) {
        if let Some(traces) = &self.traces {
            traces.note_dropped(n);
        }
    }
}

/// Begins to export spans, if that is wanted.
pub(super) fn begin_traces(config: &Config, metrics: &Metrics) -> Option<Spans> {
    let Tracing { collector, .. } = config.tracing.as_ref()?;
    let endpoint = match collector {
        Collector::Tcp(address) => Endpoint::Tcp(address.clone()),
        Collector::Unix(path) => Endpoint::Unix(path.clone()),
    };
    let node = config.hostname_override.clone().or_else(|| platform::hostname().ok());
    let version = BuildInfo::of_this_program().git_version;
    let mut resource = vec![("service.name", "kube-proxy".into()), ("service.version", version.into())];
    resource.extend(node.map(|node| ("k8s.node.name", node.into())));
    let metrics = TraceMetrics::register(metrics);
    let count = move |outcome, spans| match outcome {
        Outcome::Exported => metrics.exported.inc_by(spans),
        Outcome::Dropped => metrics.dropped.inc_by(spans),
        Outcome::Failed => metrics.failed.inc_by(spans),
    };
    match otlp::begin(endpoint, resource, Arc::new(count)) {
        Ok(spans) => Some(spans),
        Err(error) => {
            warn!(%error, "nothing is traced");
            None
        }
    }
}
