//! What went through Services: sums, and series of Services as far as the operator wants them. Collected when the page is asked
//! for, so that what nobody asks for costs nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use model::IpFamily;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};

use crate::registrar::{Registrar, SOUND};

/// Of which Service ports there are series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSeries {
    /// How many at most, those with the most new flows; none: without limit. 0 switches them off.
    pub limit: Option<usize>,
    /// Only those of these namespaces; none means all.
    pub namespaces: BTreeSet<String>,
}

impl ServiceSeries {
    /// Whether there may be any of a namespace.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    /// There are none.
    pub fn off() -> Self {
        Self { limit: Some(0), namespaces: BTreeSet::new() }
    }
}

/// What was counted since the program started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// New flows that were given an endpoint.
    pub connections: u64,
    /// Packets that were refused, since there is no endpoint.
    pub refused: u64,
    /// Packets that were dropped, since their endpoints are on other nodes.
    pub dropped: u64,
    /// Bytes both ways; none in a mode that does not count them.
    pub bytes: Option<u64>,
}

/// One family's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTraffic {
    /// Which.
    pub family: IpFamily,
    /// Everything, that of former Services too.
    pub total: Counted,
    /// By Service port.
    pub services: Vec<ServiceTraffic>,
}

/// One Service port's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The port's name; empty if it has none.
    pub port: String,
    /// The protocol, such as `TCP`.
    pub protocol: String,
    /// What was counted.
    pub counted: Counted,
}

/// Tells what was counted so far; nothing in a mode that does not count.
pub type ReadTraffic = Box<dyn Fn() -> Vec<FamilyTraffic> + Send + Sync>;

/// Where [`crate::Metrics`] gets it from, once somebody counts.
#[derive(Clone)]
pub struct TrafficMetrics(Arc<OnceLock<(ReadTraffic, ServiceSeries)>>);

impl TrafficMetrics {
    pub(crate) fn register(registrar: &Registrar) -> Self {
        let source = Arc::new(OnceLock::new());
        registrar.collector(Traffic { source: source.clone() });
        Self(source)
    }

    /// Asks this from now on; the first one that is given counts.
    pub fn follow(&self, read: ReadTraffic, series: ServiceSeries) {
        drop(self.0.set((read, series)));
    }
}

impl fmt::Debug for TrafficMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficMetrics")
    }
}

struct Traffic {
    source: Arc<OnceLock<(ReadTraffic, ServiceSeries)>>,
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some((read, series)) = self.source.get() else { return Vec::new() };
        let families = read();
        let totals = Vectors::new("kubeproxy", &["ip_family"], "of all Services");
        let of_services = Vectors::new(
            "kubeproxy_service",
            &["ip_family", "namespace", "service", "port", "protocol"],
            "of a Service port",
        );
        for FamilyTraffic { family, total, services } in &families {
            let family = family.to_string();
            totals.set(&[family.as_str()], *total);
            for of in selected(services, series) {
                let labels = [&family, &of.namespace, &of.service, &of.port, &of.protocol];
                of_services.set(&labels.map(String::as_str), of.counted);
            }
        }
        let families = totals.collect().into_iter().chain(of_services.collect());
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

/// The Service ports that get series.
fn selected<'a>(services: &'a [ServiceTraffic], series: &ServiceSeries) -> Vec<&'a ServiceTraffic> {
    let is_meant = |of: &&ServiceTraffic| series.has_namespace(&of.namespace);
    if series.limit == Some(0) {
        return Vec::new();
    }
    let mut selected: Vec<_> = services.iter().filter(is_meant).collect();
    if let Some(limit) = series.limit {
        // Stable: of equals the first by name.
        selected.sort_by_key(|of| std::cmp::Reverse(of.counted.connections));
        selected.truncate(limit);
    }
    selected
}

/// The counters with the same labels.
struct Vectors([IntCounterVec; 4]);

impl Vectors {
    fn new(prefix: &str, labels: &[&str], of: &str) -> Self {
        let vector = |name: &str, help: &str| {
            let opts = Opts::new(format!("{prefix}_{name}_total"), format!("{help} {of}"));
            IntCounterVec::new(opts, labels).expect(SOUND)
        };
        Self([
            vector("connections", "New flows that were given an endpoint,"),
            vector("refused_packets", "Packets that were refused, since there is no endpoint,"),
            vector(
                "dropped_packets",
                "Packets that were dropped, since their endpoints are elsewhere or their sender is not allowed,",
            ),
            vector("bytes", "Bytes both ways"),
        ])
    }

    fn set(&self, labels: &[&str], counted: Counted) {
        let Counted { connections, refused, dropped, bytes } = counted;
        let values = [Some(connections), Some(refused), Some(dropped), bytes];
        for (vector, value) in self.0.iter().zip(values) {
            if let Some(value) = value {
                vector.with_label_values(labels).inc_by(value);
            }
        }
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: &str, service: &str, connections: u64) -> ServiceTraffic {
        ServiceTraffic {
            namespace: namespace.into(),
            service: service.into(),
            port: "http".into(),
            protocol: "TCP".into(),
            counted: Counted { connections, refused: 1, dropped: 0, bytes: Some(7) },
        }
    }

    fn page(series: ServiceSeries) -> String {
        let registrar = Registrar::default();
        let services = vec![of("a", "x", 5), of("a", "y", 50), of("b", "x", 7), of("b", "z", 5)];
        let total = Counted { connections: 100, refused: 4, dropped: 2, bytes: None };
        let traffic = FamilyTraffic { family: IpFamily::V4, total, services };
        TrafficMetrics::register(&registrar).follow(Box::new(move || vec![traffic.clone()]), series);
        registrar.render()
    }

    /// `namespace/service` of the series.
    #[track_caller]
    fn check(series: ServiceSeries, expected: &[&str]) {
        let page = page(series);
        assert!(page.contains("kubeproxy_connections_total{ip_family=\"IPv4\"} 100\n"), "{page}");
        assert!(!page.contains("kubeproxy_bytes_total"), "what is not counted is not told: {page}");
        let lines = page.lines().filter(|line| line.starts_with("kubeproxy_service_connections_total{"));
        let label = |line: &str, name: &str| {
            let rest = line.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.to_owned()
        };
        let found: Vec<_> =
            lines.map(|line| format!("{}/{}", label(line, "namespace"), label(line, "service"))).collect();
        assert_eq!(found, expected, "{page}");
    }

    #[test]
    fn series_are_as_many_as_are_wanted() {
        let namespaces = BTreeSet::from(["b".to_owned()]);
        check(ServiceSeries::off(), &[]);
        check(ServiceSeries::default(), &["a/x", "a/y", "b/x", "b/z"]);
        check(ServiceSeries { limit: Some(2), ..ServiceSeries::default() }, &["a/y", "b/x"]);
        check(ServiceSeries { namespaces: namespaces.clone(), limit: None }, &["b/x", "b/z"]);
        check(ServiceSeries { namespaces, limit: Some(1) }, &["b/x"]);
    }

    #[test]
    fn without_a_count_there_is_nothing() {
        let registrar = Registrar::default();
        TrafficMetrics::register(&registrar);
        assert_eq!(registrar.render(), "");
    }
}
