//! `docs/metrics.md` says what there is, no more and no less.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics::{
    BuildInfo, Counted, EbpfMetrics, FamilyTraffic, Feature, IptablesMetrics, Metrics, NftablesMetrics,
    Options, ProcessReading, RequestMetrics, RequestSums, ServiceSeries, ServiceTraffic, TraceMetrics,
    WorkerMetrics,
};
use model::{IpFamily, Kind};
use prometheus_parse::{Scrape, Value};
use tokio::time::Instant;

/// Type and labels by name.
type Catalogue = BTreeMap<String, (String, BTreeSet<String>)>;

#[derive(Clone, Copy, Debug)]
enum Mode {
    Nftables,
    Iptables,
    Ebpf,
    /// `nftables`, with workers.
    Workers,
}

impl Mode {
    /// Puts the metrics of a family that is served in this mode on the page.
    fn serve(self, metrics: &Metrics, families: &[IpFamily]) {
        for family in families {
            metrics.family(*family);
        }
        match self {
            Self::Nftables => {
                families.iter().copied().map(NftablesMetrics::register(metrics)).for_each(drop);
            }
            Self::Iptables => {
                families.iter().copied().map(IptablesMetrics::register(metrics)).for_each(drop);
            }
            Self::Workers => {
                Self::Nftables.serve(metrics, families);
                serve_workers(metrics, families);
            }
            Self::Ebpf => families.iter().copied().map(EbpfMetrics::register(metrics)).for_each(drop),
        }
    }
}

fn serve_workers(metrics: &Metrics, families: &[IpFamily]) {
    families.iter().copied().map(WorkerMetrics::register(metrics)).for_each(drop);
    TraceMetrics::register(metrics);
    let requests = RequestMetrics::register(metrics, ServiceSeries::default(), &[1]);
    let sums = RequestSums {
        by_class: [1; 5],
        by_time: vec![5, 0],
        retries: 1,
        ejections: 1,
        check_failures: 1,
        ..RequestSums::default()
    };
    let port = ("ns".to_owned(), "svc".to_owned(), "http".to_owned());
    requests.follow(IpFamily::V4, Box::new(move || BTreeMap::from([(port.clone(), sums.clone())])));
}

/// All metrics, each updated where it appears only then.
fn metrics(mode: Mode) -> Metrics {
    let feature = Feature { name: "ComponentFlagz".into(), stage: "BETA".into(), enabled: true };
    let build = BuildInfo { git_version: "v1.2.3".into(), ..BuildInfo::default() };
    let metrics = Metrics::new(&Options { build, features: vec![feature] });
    mode.serve(&metrics, &IpFamily::ALL);
    for kind in Kind::ALL {
        metrics.source.resource(kind).heard(Instant::now(), 1);
    }
    metrics.source.requests.answered("GET", "10.0.0.1:6443", Some(200), Duration::from_millis(3));
    metrics.source.requests.answered("GET", "10.0.0.1:6443", None, Duration::from_millis(3));
    metrics.source.requests.received("GET", "10.0.0.1:6443", 1000);
    let counted = Counted { connections: 1, refused: 1, dropped: 1, bytes: Some(1) };
    let service = ServiceTraffic {
        namespace: "ns".into(),
        service: "svc".into(),
        port: "http".into(),
        protocol: "TCP".into(),
        counted,
    };
    let traffic = FamilyTraffic { family: IpFamily::V4, total: counted, services: vec![service] };
    metrics.traffic.follow(Box::new(move || vec![traffic.clone()]), ServiceSeries::default());
    drop(metrics.canary(IpFamily::V4));
    metrics.slis.record("ping", "healthz", true);
    metrics
}

fn parse(page: &str) -> Scrape {
    Scrape::parse(page.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

fn exposed(page: &str) -> Catalogue {
    let mut catalogue = Catalogue::new();
    for sample in parse(page).samples {
        let kind = match sample.value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(_) => "histogram",
            Value::Summary(_) => "summary",
            Value::Untyped(_) => "untyped",
        };
        // Parts of a histogram that the parser shows by themselves.
        let part = ["_sum", "_count"].iter().find_map(|end| sample.metric.strip_suffix(end));
        if part.is_some_and(|name| page.contains(&format!("# TYPE {name} histogram"))) {
            continue;
        }
        let labels: BTreeSet<String> = sample.labels.keys().cloned().collect();
        let known = catalogue.entry(sample.metric).or_insert_with(|| (kind.to_owned(), labels.clone()));
        assert_eq!(*known, (kind.to_owned(), labels), "all series of a metric have the same labels");
    }
    catalogue
}

/// The tables of a section of the page.
fn documented(section: &str) -> Catalogue {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?.to_owned();
        assert_eq!(cells.len(), 5, "{line}");
        assert!(
            ["upstream", "ours", "client-go", "component-base", "Prometheus"].contains(&cells[3]),
            "{line}"
        );
        assert!(!cells[4].is_empty(), "{line}");
        let labels =
            cells[2].split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
        Some((name, (cells[1].to_owned(), labels.collect())))
    };
    section.lines().filter_map(row).collect()
}

/// What the sections with these headings say; the first has none.
fn document(headings: [&str; 5]) -> [Catalogue; 6] {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let sections: BTreeMap<&str, &str> =
        text.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let common = text.split("\n## ").next().unwrap();
    let [first, second, third, fourth, fifth] = headings.map(|heading| documented(sections[heading]));
    [documented(common), first, second, third, fourth, fifth]
}

#[test]
fn the_document_is_what_the_program_exposes() {
    let [common, nftables, iptables, ebpf, workers, slis] = document([
        "In modes `nftables` and `ebpf`",
        "In mode `iptables` alone",
        "In mode `ebpf` alone",
        "Where workers carry flows",
        "`/metrics/slis`",
    ]);
    let ebpf = nftables.clone().into_iter().chain(ebpf).collect();
    let workers = nftables.clone().into_iter().chain(workers).collect();
    for (mode, more) in
        [(Mode::Nftables, nftables), (Mode::Iptables, iptables), (Mode::Ebpf, ebpf), (Mode::Workers, workers)]
    {
        assert!(!more.is_empty());
        let metrics = metrics(mode);
        let all: Catalogue = common.clone().into_iter().chain(more).collect();
        assert_eq!(exposed(&metrics.render(None, Instant::now())), all, "{mode:?}");
        assert_eq!(exposed(&metrics.slis.render()), slis);
    }
}

#[test]
fn every_metric_says_what_it_is() {
    let page = [Mode::Nftables, Mode::Iptables, Mode::Ebpf, Mode::Workers]
        .map(|mode| metrics(mode).render(None, Instant::now()))
        .concat();
    let help: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let types: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(help, types);
}

/// So that `rate()` sees a first failure.
#[test]
fn all_series_of_a_family_are_there_from_the_start() {
    let metrics = Metrics::new(&Options::default());
    Mode::Nftables.serve(&metrics, &[IpFamily::V4]);
    let page = metrics.render(None, Instant::now());
    for series in [
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 0",
        "kubeproxy_transactions_total{ip_family=\"IPv4\",result=\"failed\"} 0",
        "kubeproxy_sync_failures_total{ip_family=\"IPv4\",reason=\"read\"} 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 0",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 0",
        "kubeproxy_rejected_objects_total{resource=\"endpointslices\"} 0",
    ] {
        assert!(page.lines().any(|line| line == series), "no {series} in\n{page}");
    }
    assert!(!page.contains("IPv6"), "it is not served");
    let metrics = Metrics::new(&Options::default());
    Mode::Iptables.serve(&metrics, &[IpFamily::V6]);
    let page = metrics.render(None, Instant::now());
    for series in [
        "kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv6\",table=\"filter\"} 0",
        "kubeproxy_sync_proxy_rules_iptables_last{ip_family=\"IPv6\",table=\"nat\"} 0",
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family=\"IPv6\"} 0",
    ] {
        assert!(page.lines().any(|line| line == series), "no {series} in\n{page}");
    }
    assert!(!page.contains("nftables"), "that is another mode");
}

#[test]
fn values_come_out_as_they_went_in() {
    let metrics = metrics(Mode::Nftables);
    let reading = ProcessReading {
        cpu_seconds: 1.5,
        start_time_seconds: 1_767_323_045.25,
        ..ProcessReading::default()
    };
    let later = Instant::now() + Duration::from_secs(30);
    metrics.render(Some(&reading), later);
    metrics.family(IpFamily::V4).commit_latency.observe(0.000_07);
    let page = metrics.render(Some(&reading), later);
    let value = |series: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_default().trim().parse().unwrap()
    };
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(near(value("process_cpu_seconds_total "), 1.5), "a reading replaces the one before");
    assert!(near(value("process_start_time_seconds "), 1_767_323_045.25));
    let bucket =
        |le: &str| format!("kubeproxy_commit_latency_seconds_bucket{{ip_family=\"IPv4\",le=\"{le}\"}}");
    assert!(near(value(&bucket("0.00005")), 0.0) && near(value(&bucket("0.0001")), 1.0));
    let lag = value("kubeproxy_watch_lag_seconds{resource=\"nodes\"}");
    assert!((29.0..=60.0).contains(&lag), "{lag}");
}
