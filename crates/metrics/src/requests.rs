//! Requests that workers have carried: sums, and series of Services as far as the operator wants them. Collected when the page is
//! asked for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::IpFamily;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{IntCounterVec, Opts};

use crate::Metrics;
use crate::registrar::{Registrar, SOUND};
use crate::traffic::ServiceSeries;

/// Requests and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestSums {
    /// By the first digit of their status, from `1xx` on.
    pub by_class: [u64; 5],
    /// By how long their answer took to begin: so many for each bound, and then those that took longer.
    pub by_time: Vec<u64>,
    /// How long all of their answers took to begin.
    pub time: Duration,
    /// Requests that were sent again.
    pub retries: u64,
    /// Times that an endpoint was ejected.
    pub ejections: u64,
    /// Times that an endpoint's health check began to fail.
    pub check_failures: u64,
}

impl RequestSums {
    fn total(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        let add = |into: &mut [u64], more: &[u64]| {
            into.iter_mut().zip(more).for_each(|(into, more)| *into = into.saturating_add(*more));
        };
        add(&mut self.by_class, &other.by_class);
        self.by_time.resize(self.by_time.len().max(other.by_time.len()), 0);
        add(&mut self.by_time, &other.by_time);
        self.time = self.time.saturating_add(other.time);
        self.retries = self.retries.saturating_add(other.retries);
        self.ejections = self.ejections.saturating_add(other.ejections);
        self.check_failures = self.check_failures.saturating_add(other.check_failures);
        self
    }
}

/// A Service port: namespace, name, and the port's name, which may be empty.
pub type ServicePort = (String, String, String);

/// Tells what was counted so far in a family, by Service port.
pub type ReadRequests = Box<dyn Fn() -> BTreeMap<ServicePort, RequestSums> + Send + Sync>;

/// Where [`crate::Metrics`] gets it from. Clones are of the same.
#[derive(Clone, Default)]
pub struct RequestMetrics {
    sources: Arc<Mutex<Vec<(IpFamily, ReadRequests)>>>,
    series: Arc<ServiceSeries>,
    /// The upper bounds of times, in milliseconds; what takes longer is in none of them.
    bounds_ms: &'static [u64],
}

impl RequestMetrics {
    /// Registers them, with series of these Service ports and these upper bounds of times, in milliseconds. To be called once.
    pub fn register(metrics: &Metrics, series: ServiceSeries, bounds_ms: &'static [u64]) -> Self {
        Self::registered(&metrics.registrar, series, bounds_ms)
    }

    fn registered(registrar: &Registrar, series: ServiceSeries, bounds_ms: &'static [u64]) -> Self {
        let this = Self { series: Arc::new(series), bounds_ms, ..Self::default() };
        let (name, help) = ("kubeproxy_requests_total".to_owned(), "Requests".to_owned());
        let desc = Desc::new(name, help, Vec::new(), HashMap::new()).expect(SOUND);
        registrar.collector(Requests(this.clone(), desc));
        this
    }

    /// Asks this too from now on.
    pub fn follow(&self, family: IpFamily, read: ReadRequests) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push((family, read));
    }
}

impl fmt::Debug for RequestMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestMetrics")
    }
}

/// With a description, since the registry tells collectors by those.
struct Requests(RequestMetrics, Desc);

impl Collector for Requests {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.1]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let series = &self.0.series;
        let mut all = Families::new("kubeproxy", "of all Services", &["ip_family"]);
        let labels = ["ip_family", "namespace", "service", "port"];
        let mut own = Families::new("kubeproxy_service", "of a Service port", &labels);
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, read) in &*sources {
            let (family, services) = (family.to_string(), read());
            let total = services.values().fold(RequestSums::default(), RequestSums::plus);
            if total != RequestSums::default() {
                all.add(&[&family], &total, self.0.bounds_ms);
            }
            for ((namespace, service, port), sums) in selected(&services, series) {
                own.add(&[&family, namespace, service, port], sums, self.0.bounds_ms);
            }
        }
        let families = all.collect().into_iter().chain(own.collect());
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

/// The Service ports that get series: those with the most requests.
fn selected<'a>(
    services: &'a BTreeMap<ServicePort, RequestSums>,
    series: &ServiceSeries,
) -> Vec<(&'a ServicePort, &'a RequestSums)> {
    let is_meant = |(port, _): &(&ServicePort, _)| series.has_namespace(&port.0);
    let mut selected: Vec<_> = services.iter().filter(is_meant).collect();
    if let Some(limit) = series.limit {
        // Stable: of equals the first by name.
        selected.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.total()));
        selected.truncate(limit);
    }
    selected
}

/// The metrics with the same labels.
struct Families {
    requests: IntCounterVec,
    retries: IntCounterVec,
    outages: IntCounterVec,
    labels: Vec<String>,
    times: (MetricFamily, Vec<Metric>),
}

impl Families {
    fn new(prefix: &str, of: &str, labels: &[&str]) -> Self {
        let vector = |name: &str, help: &str, more: Option<&str>| {
            let opts = Opts::new(format!("{prefix}_{name}_total"), format!("{help} {of}"));
            let labels: Vec<&str> = labels.iter().copied().chain(more).collect();
            IntCounterVec::new(opts, &labels).expect(SOUND)
        };
        let mut times = MetricFamily::default();
        times.set_name(format!("{prefix}_request_duration_seconds"));
        times.set_help(format!("How long answers to requests took to begin, {of}"));
        times.set_field_type(MetricType::HISTOGRAM);
        Self {
            requests: vector("requests", "Requests that workers have answered,", Some("code")),
            retries: vector("request_retries", "Requests that workers have sent again,", None),
            outages: vector(
                "endpoint_outages",
                "Times that workers began to give an endpoint nothing,",
                Some("cause"),
            ),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            times: (times, Vec::new()),
        }
    }

    fn add(&mut self, labels: &[&str], sums: &RequestSums, bounds_ms: &[u64]) {
        let with = |more| labels.iter().copied().chain([more]).collect::<Vec<&str>>();
        for (class, n) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(sums.by_class) {
            if n > 0 {
                self.requests.with_label_values(&with(class)).inc_by(n);
            }
        }
        for (cause, n) in [("ejection", sums.ejections), ("health-check", sums.check_failures)] {
            if n > 0 {
                self.outages.with_label_values(&with(cause)).inc_by(n);
            }
        }
        if sums.total() > 0 {
            self.retries.with_label_values(labels).inc_by(sums.retries);
            let pairs = self.labels.iter().zip(labels).map(|(name, value)| label(name, value)).collect();
            let mut metric = Metric::from_label(pairs);
            metric.set_histogram(histogram(sums, bounds_ms));
            self.times.1.push(metric);
        }
    }

    fn collect(self) -> Vec<MetricFamily> {
        let (mut times, metrics) = self.times;
        times.set_metric(metrics);
        let counters = [self.requests, self.retries, self.outages];
        counters.iter().flat_map(Collector::collect).chain([times]).collect()
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn histogram(sums: &RequestSums, bounds_ms: &[u64]) -> Histogram {
    let mut cumulative = 0;
    let bucket = |(bound_ms, n): (&u64, &u64)| {
        cumulative += n;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(Duration::from_millis(*bound_ms).as_secs_f64());
        bucket.set_cumulative_count(cumulative);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(bounds_ms.iter().zip(&sums.by_time).map(bucket).collect());
    histogram.set_sample_count(sums.by_time.iter().sum());
    histogram.set_sample_sum(sums.time.as_secs_f64());
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(ok: u64) -> RequestSums {
        let mut sums = RequestSums {
            retries: 1,
            ejections: 2,
            time: Duration::from_millis(1500),
            ..RequestSums::default()
        };
        (sums.by_class[1], sums.by_class[4]) = (ok, 1);
        sums.by_time = vec![0, ok, 1];
        sums
    }

    fn page(series: ServiceSeries) -> String {
        let registrar = Registrar::default();
        let metrics = RequestMetrics::registered(&registrar, series, &[3, 5]);
        let port = |service: &str| ("shop".to_owned(), service.to_owned(), "http".to_owned());
        let services = BTreeMap::from([(port("web"), sums(10)), (port("api"), sums(20))]);
        metrics.follow(IpFamily::V4, Box::new(move || services.clone()));
        registrar.render()
    }

    #[test]
    fn all_are_told_and_as_many_services_as_are_wanted() {
        let page_off = page(ServiceSeries::off());
        for line in [
            "kubeproxy_requests_total{code=\"2xx\",ip_family=\"IPv4\"} 30",
            "kubeproxy_requests_total{code=\"5xx\",ip_family=\"IPv4\"} 2",
            "kubeproxy_request_retries_total{ip_family=\"IPv4\"} 2",
            "kubeproxy_endpoint_outages_total{cause=\"ejection\",ip_family=\"IPv4\"} 4",
            "kubeproxy_request_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.003\"} 0",
            "kubeproxy_request_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.005\"} 30",
            "kubeproxy_request_duration_seconds_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 32",
            "kubeproxy_request_duration_seconds_sum{ip_family=\"IPv4\"} 3",
            "kubeproxy_request_duration_seconds_count{ip_family=\"IPv4\"} 32",
        ] {
            assert!(page_off.lines().any(|found| found == line), "{line} is not in\n{page_off}");
        }
        assert!(!page_off.contains("kubeproxy_service_"), "{page_off}");
        let page_top = page(ServiceSeries { limit: Some(1), ..ServiceSeries::default() });
        assert!(page_top.contains("kubeproxy_service_requests_total{code=\"2xx\",ip_family=\"IPv4\",namespace=\"shop\",port=\"http\",service=\"api\"} 20"), "{page_top}");
        assert!(!page_top.contains("service=\"web\""), "{page_top}");
    }

    #[test]
    fn without_a_count_there_is_nothing() {
        let registrar = Registrar::default();
        RequestMetrics::registered(&registrar, ServiceSeries::default(), &[]);
        assert_eq!(registrar.render(), "");
    }
}
