//! Registration, with names and types exactly as given.

use prometheus::{
    Counter, Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

/// The content type of a rendered page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Makes and registers metrics. Names and labels are constants of this crate, so that what the library refuses can only be a
/// slip in it, which every test that makes the metrics finds.
#[derive(Debug, Default)]
pub(crate) struct Registrar {
    registry: Registry,
    /// Upstream's count of what is registered, on the page that has it.
    registered: Option<IntCounter>,
}

pub(crate) const SOUND: &str = "the names of metrics and labels are sound and registered once";

impl Registrar {
    /// One that has upstream's count of what is registered.
    pub(crate) fn counted() -> Self {
        let labels = ["stability_level", "deprecated_version"];
        let mut registrar = Self::default();
        let counts = registrar.counters("registered_metrics_total", "[BETA] Metrics registered", &labels);
        let registered = counts.with_label_values(&["ALPHA", ""]);
        registered.inc();
        registrar.registered = Some(registered);
        for name in ["hidden_metrics_total", "disabled_metrics_total"] {
            registrar.counter(name, "[BETA] Always 0: no metric is hidden or disabled here");
        }
        registrar
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect(SOUND);
        self.registry.register(Box::new(collector.clone())).expect(SOUND);
        self.registered.iter().for_each(IntCounter::inc);
        collector
    }

    /// One that makes its metrics when it is asked.
    pub(crate) fn collector(&self, collector: impl Collector + 'static) {
        self.registry.register(Box::new(collector)).expect(SOUND);
    }

    pub(crate) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(crate) fn float_counter(&self, name: &str, help: &str) -> Counter {
        self.add(Counter::new(name, help))
    }

    pub(crate) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(crate) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    pub(crate) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(crate) fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(crate) fn histogram(&self, opts: HistogramOpts) -> Histogram {
        self.add(Histogram::with_opts(opts))
    }

    pub(crate) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }

    pub(crate) fn per_family(
        &self,
        name: &str,
        help: &str,
        buckets: Vec<f64>,
    ) -> impl Fn(&str) -> Histogram + use<> {
        let histograms = self.histograms(name, help, &["ip_family"], buckets);
        move |family| histograms.with_label_values(&[family])
    }

    /// All of it in the text format, sorted by name.
    pub(crate) fn render(&self) -> String {
        render(&self.registry)
    }
}

/// A registry in the text format.
pub(crate) fn render(registry: &Registry) -> String {
    let mut page = Vec::new();
    // It fails only if writing does, or if a metric has no name.
    TextEncoder::new().encode(&registry.gather(), &mut page).expect(SOUND);
    String::from_utf8(page).expect("names, labels and help texts are text")
}
