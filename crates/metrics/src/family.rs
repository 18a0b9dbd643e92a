//! What each family has of its own.

use model::IpFamily;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntGauge, IntGaugeVec};

use crate::buckets;
use crate::registrar::Registrar;

/// The metrics of one family. Histograms and timestamps are in seconds.
#[derive(Clone, Debug)]
pub struct FamilyMetrics {
    /// Every sync attempt, whatever came of it.
    pub sync_duration: Histogram,
    /// Attempts that read the table and compared all of it.
    pub full_sync_duration: Histogram,
    /// Attempts that carried only changes.
    pub partial_sync_duration: Histogram,
    /// Unix time when a sync was last asked for.
    pub last_queued: Gauge,
    /// Unix time of the last success.
    pub last_synced: Gauge,
    /// From an endpoint's change in the cluster to the rules being in place.
    pub network_programming: Histogram,
    /// Service ports without local endpoints, by internal policy.
    pub no_local_internal: IntGauge,
    /// Service ports without local endpoints, by external policy.
    pub no_local_external: IntGauge,
    /// Attempts that failed because the kernel's state could not be read.
    pub read_failures: IntCounter,
    /// Attempts that failed because the kernel did not take the changes.
    pub commit_failures: IntCounter,
    /// From a change's arrival to its commit.
    pub commit_latency: Histogram,
    /// Map and set elements written or deleted; in mode iptables, rules and chains.
    pub elements_written: IntCounter,
    /// Transactions that the kernel took.
    pub transactions_ok: IntCounter,
    /// Transactions that it did not.
    pub transactions_failed: IntCounter,
    /// Times that somebody else's change was undone.
    pub drift_repairs: IntCounter,
    /// Audits that found something wrong that nobody had told of.
    pub audit_divergences: IntCounter,
    /// Times that everything was written anew.
    pub rebuilds: IntCounter,
    /// Frontends that were refused alone and wait for another try.
    pub refused: IntGauge,
    /// Addresses and ports claimed by a Service but held by another.
    pub frontend_conflicts: IntGauge,
    /// Looking for stale flows and deleting them.
    pub conntrack_duration: Histogram,
    /// Flows deleted; upstream's name.
    pub conntrack_deleted: IntCounter,
    /// Flows deleted.
    pub deleted_flows: IntCounter,
}

/// Registers them; gives what makes those of one family.
pub(crate) fn register(registrar: &Registrar) -> impl Fn(IpFamily) -> FamilyMetrics + Send + Sync + use<> {
    let (durations, results) = (durations(registrar), results(registrar));
    let (repairs, gauges, flows) = (repairs(registrar), gauges(registrar), flows(registrar));
    move |family| {
        let name = &*family.to_string();
        let [sync_duration, full_sync_duration, partial_sync_duration, network_programming, commit_latency] =
            durations.each_ref().map(|duration| duration.with_label_values(&[name]));
        let [read_failures, commit_failures, transactions_ok, transactions_failed] = results(name);
        let [elements_written, drift_repairs, audit_divergences, rebuilds] = repairs(name);
        let Gauges { queued, synced, no_local, refused, conflicts } = &gauges;
        let (conntrack_duration, [conntrack_deleted, deleted_flows]) = flows(name);
        FamilyMetrics {
            sync_duration,
            full_sync_duration,
            partial_sync_duration,
            last_queued: queued.with_label_values(&[name]),
            last_synced: synced.with_label_values(&[name]),
            network_programming,
            no_local_internal: no_local.with_label_values(&["internal", name]),
            no_local_external: no_local.with_label_values(&["external", name]),
            read_failures,
            commit_failures,
            commit_latency,
            elements_written,
            transactions_ok,
            transactions_failed,
            drift_repairs,
            audit_divergences,
            rebuilds,
            refused: refused.with_label_values(&[name]),
            frontend_conflicts: conflicts.with_label_values(&[name]),
            conntrack_duration,
            conntrack_deleted,
            deleted_flows,
        }
    }
}

const BY_FAMILY: &[&str] = &["ip_family"];

/// Of syncs: all of them, those that compare everything, those that do not; of changes: from the cluster, from here.
fn durations(registrar: &Registrar) -> [HistogramVec; 5] {
    [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "[ALPHA] Duration of sync attempts", buckets::sync()),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "[ALPHA] Duration of sync attempts that compare the whole table",
            buckets::sync(),
        ),
        (
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "[ALPHA] Duration of sync attempts that carry only changes",
            buckets::sync(),
        ),
        (
            "kubeproxy_network_programming_duration_seconds",
            "[ALPHA] From the change of an endpoint in the cluster to the rules being in place",
            buckets::network_programming(),
        ),
        (
            "kubeproxy_commit_latency_seconds",
            "From a change's arrival at the proxy to its commit in the kernel",
            buckets::commit(),
        ),
    ]
    .map(|(name, help, buckets)| registrar.histograms(name, help, BY_FAMILY, buckets))
}

/// Failed readings, failed commits, transactions that were taken, and those that were not.
fn results(registrar: &Registrar) -> impl Fn(&str) -> [IntCounter; 4] + use<> {
    let failures = registrar.counters(
        "kubeproxy_sync_failures_total",
        "Failed sync attempts, by what failed",
        &["ip_family", "reason"],
    );
    let transactions = registrar.counters(
        "kubeproxy_transactions_total",
        "Transactions sent to the kernel, by result",
        &["ip_family", "result"],
    );
    move |family| {
        let failures = |what| failures.with_label_values(&[family, what]);
        let transactions = |result| transactions.with_label_values(&[family, result]);
        [failures("read"), failures("commit"), transactions("ok"), transactions("failed")]
    }
}

/// What was written, somebody else's changes that were undone, what audits found wrong, and what was written anew.
fn repairs(registrar: &Registrar) -> impl Fn(&str) -> [IntCounter; 4] + use<> {
    counters(
        registrar,
        [
            (
                "kubeproxy_elements_written_total",
                "What was written to or deleted from the kernel: map and set elements, or rules and chains",
            ),
            ("kubeproxy_drift_repairs_total", "Repairs of rules that something else had changed"),
            (
                "kubeproxy_audit_divergences_total",
                "Audits that found rules wrong although no change had been noticed",
            ),
            (
                "kubeproxy_rebuilds_total",
                "Times that all rules were written anew, because differences were refused or they could not be read",
            ),
        ],
    )
}

struct Gauges {
    queued: GaugeVec,
    synced: GaugeVec,
    no_local: IntGaugeVec,
    refused: IntGaugeVec,
    conflicts: IntGaugeVec,
}

fn gauges(registrar: &Registrar) -> Gauges {
    Gauges {
        queued: registrar.float_gauges(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "[ALPHA] Unix time when a sync was last asked for",
            BY_FAMILY,
        ),
        synced: registrar.float_gauges(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "[ALPHA] Unix time when the rules were last known to be right",
            BY_FAMILY,
        ),
        no_local: registrar.gauges(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "[ALPHA] Service ports with a traffic policy Local, endpoints somewhere, and none on this node",
            &["traffic_policy", "ip_family"],
        ),
        refused: registrar.gauges(
            "kubeproxy_refused_frontends",
            "Frontends that were refused alone and wait for another try",
            BY_FAMILY,
        ),
        conflicts: registrar.gauges(
            "kubeproxy_frontend_conflicts",
            "Addresses and ports claimed by a Service but held by another",
            BY_FAMILY,
        ),
    }
}

/// How long looking for stale flows took; how many were deleted, by upstream's name and by ours.
fn flows(registrar: &Registrar) -> impl Fn(&str) -> (Histogram, [IntCounter; 2]) + use<> {
    let durations = registrar.histograms(
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "[ALPHA] Duration of looking for stale flows and deleting them",
        BY_FAMILY,
        buckets::sync(),
    );
    let deleted = counters(
        registrar,
        [
            ("kubeproxy_conntrack_reconciler_deleted_entries_total", "[ALPHA] Stale flows deleted"),
            ("kubeproxy_conntrack_deleted_flows_total", "Stale flows deleted"),
        ],
    );
    move |family| (durations.with_label_values(&[family]), deleted(family))
}

fn counters<const N: usize>(
    registrar: &Registrar,
    names: [(&str, &str); N],
) -> impl Fn(&str) -> [IntCounter; N] + use<N> {
    let counters = names.map(|(name, help)| registrar.counters(name, help, BY_FAMILY));
    move |family| counters.each_ref().map(|counters| counters.with_label_values(&[family]))
}
