//! The way to the API server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::Kind;
use prometheus::{Gauge, GaugeVec, HistogramVec, IntCounter, IntCounterVec};
use tokio::time::Instant;

use crate::buckets;
use crate::registrar::Registrar;

/// What a source updates. Cloning gives another handle of the same metrics.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    resources: [ResourceMetrics; Kind::ALL.len()],
    /// Requests to the API server.
    pub requests: Requests,
}

/// The metrics of one watched kind.
#[derive(Clone, Debug)]
pub struct ResourceMetrics {
    /// Objects, and items of objects, that can't be used.
    pub rejected: IntCounter,
    bytes: IntCounterVec,
    lag: GaugeVec,
    name: &'static str,
    heard: Arc<Mutex<Option<Heard>>>,
}

/// When something was last heard of a kind.
#[derive(Debug)]
struct Heard {
    at: Instant,
    lag: Gauge,
    bytes: IntCounter,
}

impl SourceMetrics {
    pub(crate) fn register(registrar: &Registrar) -> Self {
        let rejected = registrar.counters(
            "kubeproxy_rejected_objects_total",
            "API objects, and items of objects, that were left out because they can't be used",
            &["resource"],
        );
        let bytes = registrar.counters(
            "kubeproxy_watch_bytes_total",
            "Bytes of list and watch answers received from the API server",
            &["resource"],
        );
        let lag = registrar.float_gauges(
            "kubeproxy_watch_lag_seconds",
            "Seconds since the API server last told something about a resource, which is how old what is known of it may be; errors tell nothing",
            &["resource"],
        );
        let of = |kind| ResourceMetrics {
            rejected: rejected.with_label_values(&[resource(kind)]),
            bytes: bytes.clone(),
            lag: lag.clone(),
            name: resource(kind),
            heard: Arc::default(),
        };
        Self { resources: Kind::ALL.map(of), requests: Requests::register(registrar) }
    }

    /// The metrics of a kind.
    pub fn resource(&self, kind: Kind) -> &ResourceMetrics {
        &self.resources[kind as usize]
    }

    pub(crate) fn set_lags(&self, now: Instant) {
        for resource in &self.resources {
            if let Some(heard) = &*resource.heard.lock().unwrap_or_else(PoisonError::into_inner) {
                heard.lag.set(now.saturating_duration_since(heard.at).as_secs_f64());
            }
        }
    }
}

impl ResourceMetrics {
    /// The server has told something about this kind, in so many bytes. Call it with 0 when the first request is made: from
    /// then on there is something to wait for.
    pub fn heard(&self, now: Instant, bytes: usize) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = heard.get_or_insert_with(|| Heard {
            at: now,
            lag: self.lag.with_label_values(&[self.name]),
            bytes: self.bytes.with_label_values(&[self.name]),
        });
        heard.at = now;
        heard.bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// The server does not have this kind, so there is nothing to wait for until something is heard of it.
    pub fn absent(&self) {
        if self.heard.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            // It is there: whoever heard has made it.
            drop(self.lag.remove_label_values(&[self.name]));
        }
    }
}

/// The resource's name in URLs, which is how upstream's metrics name kinds.
fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::Node => "nodes",
        Kind::ServiceCidr => "servicecidrs",
    }
}

/// client-go's metrics of requests.
#[derive(Clone, Debug)]
pub struct Requests {
    total: IntCounterVec,
    duration: HistogramVec,
    response_size: HistogramVec,
}

impl Requests {
    fn register(registrar: &Registrar) -> Self {
        Self {
            total: registrar.counters(
                "rest_client_requests_total",
                "[ALPHA] Requests to the API server",
                &["code", "method", "host"],
            ),
            duration: registrar.histograms(
                "rest_client_request_duration_seconds",
                "[ALPHA] Time from a request to the beginning of its answer",
                &["verb", "host"],
                buckets::request(),
            ),
            response_size: registrar.histograms(
                "rest_client_response_size_bytes",
                "[ALPHA] Size of answers that come as a whole",
                &["verb", "host"],
                buckets::size_bytes(),
            ),
        }
    }

    /// A request was answered with this code, or not at all.
    pub fn answered(&self, method: &str, host: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.total.with_label_values(&[&code, method, host]).inc();
        self.duration.with_label_values(&[method, host]).observe(took.as_secs_f64());
    }

    /// An answer came as a whole.
    pub fn received(&self, method: &str, host: &str, bytes: usize) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
        self.response_size.with_label_values(&[method, host]).observe(bytes as f64);
    }
}
