//! The page `/metrics/slis`: what became of health checks. Source: `component-base/metrics/prometheus/slis`.

use prometheus::{Gauge, IntCounterVec, IntGaugeVec};

use crate::registrar::Registrar;

/// The service level indicators, in a registry of their own.
#[derive(Debug)]
pub struct Slis {
    registrar: Registrar,
    check: IntGaugeVec,
    checks: IntCounterVec,
    start_time: Gauge,
}

impl Default for Slis {
    fn default() -> Self {
        let registrar = Registrar::default();
        Self {
            check: registrar.gauges(
                "kubernetes_healthcheck",
                "[STABLE] The last result of a health check: 1 if it was good",
                &["name", "type"],
            ),
            checks: registrar.counters(
                "kubernetes_healthchecks_total",
                "[STABLE] Results of health checks",
                &["name", "type", "status"],
            ),
            start_time: registrar
                .float_gauge("process_start_time_seconds", "Unix time of the process's start"),
            registrar,
        }
    }
}

impl Slis {
    /// A check of this name, asked for as `healthz` or `livez`, had this result.
    pub fn record(&self, name: &str, kind: &str, ok: bool) {
        self.check.with_label_values(&[name, kind]).set(i64::from(ok));
        let status = if ok { "success" } else { "error" };
        self.checks.with_label_values(&[name, kind, status]).inc();
    }

    /// Forgets all results.
    pub fn reset(&self) {
        self.check.reset();
        self.checks.reset();
    }

    /// The page in the Prometheus text format.
    pub fn render(&self) -> String {
        self.registrar.render()
    }

    /// Unix time of the process's start.
    pub fn set_start_time(&self, seconds: f64) {
        self.start_time.set(seconds);
    }
}
