//! What each family has of its own.

use model::IpFamily;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

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
#[expect(clippy::too_many_lines, reason = "a table")]
pub(crate) fn register(registrar: &Registrar) -> impl Fn(IpFamily) -> FamilyMetrics + Send + Sync + use<> {
    let histogram = |name, help, buckets: fn() -> Vec<f64>| registrar.per_family(name, help, buckets());
    let counter = |name, help| {
        let counters = registrar.counters(name, help, &["ip_family"]);
        move |family: &str| counters.with_label_values(&[family])
    };
    let timestamp = |name, help| {
        let gauges = registrar.float_gauges(name, help, &["ip_family"]);
        move |family: &str| gauges.with_label_values(&[family])
    };
    let sync_duration = histogram(
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "[ALPHA] Duration of sync attempts",
        buckets::sync,
    );
    let full_sync_duration = histogram(
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "[ALPHA] Duration of sync attempts that compare the whole table",
        buckets::sync,
    );
    let partial_sync_duration = histogram(
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "[ALPHA] Duration of sync attempts that carry only changes",
        buckets::sync,
    );
    let last_queued = timestamp(
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "[ALPHA] Unix time when a sync was last asked for",
    );
    let last_synced = timestamp(
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "[ALPHA] Unix time when the rules were last known to be right",
    );
    let network_programming = histogram(
        "kubeproxy_network_programming_duration_seconds",
        "[ALPHA] From the change of an endpoint in the cluster to the rules being in place",
        buckets::network_programming,
    );
    let no_local = registrar.gauges(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "[ALPHA] Service ports with a traffic policy Local, endpoints somewhere, and none on this node",
        &["traffic_policy", "ip_family"],
    );
    let failures = registrar.counters(
        "kubeproxy_sync_failures_total",
        "Failed sync attempts, by what failed",
        &["ip_family", "reason"],
    );
    let commit_latency = histogram(
        "kubeproxy_commit_latency_seconds",
        "From a change's arrival at the proxy to its commit in the kernel",
        buckets::commit,
    );
    let elements_written = counter(
        "kubeproxy_elements_written_total",
        "What was written to or deleted from the kernel: map and set elements, or rules and chains",
    );
    let transactions = registrar.counters(
        "kubeproxy_transactions_total",
        "Transactions sent to the kernel, by result",
        &["ip_family", "result"],
    );
    let drift_repairs =
        counter("kubeproxy_drift_repairs_total", "Repairs of rules that something else had changed");
    let audit_divergences = counter(
        "kubeproxy_audit_divergences_total",
        "Audits that found rules wrong although no change had been noticed",
    );
    let rebuilds = counter(
        "kubeproxy_rebuilds_total",
        "Times that all rules were written anew, because differences were refused or they could not be read",
    );
    let refused = registrar.gauges(
        "kubeproxy_refused_frontends",
        "Frontends that were refused alone and wait for another try",
        &["ip_family"],
    );
    let conflicts = registrar.gauges(
        "kubeproxy_frontend_conflicts",
        "Addresses and ports claimed by a Service but held by another",
        &["ip_family"],
    );
    let conntrack_duration = histogram(
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "[ALPHA] Duration of looking for stale flows and deleting them",
        buckets::sync,
    );
    let conntrack_deleted =
        counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "[ALPHA] Stale flows deleted");
    let deleted_flows = counter("kubeproxy_conntrack_deleted_flows_total", "Stale flows deleted");
    move |family| {
        let name = &*family.to_string();
        FamilyMetrics {
            sync_duration: sync_duration(name),
            full_sync_duration: full_sync_duration(name),
            partial_sync_duration: partial_sync_duration(name),
            last_queued: last_queued(name),
            last_synced: last_synced(name),
            network_programming: network_programming(name),
            no_local_internal: no_local.with_label_values(&["internal", name]),
            no_local_external: no_local.with_label_values(&["external", name]),
            read_failures: failures.with_label_values(&[name, "read"]),
            commit_failures: failures.with_label_values(&[name, "commit"]),
            commit_latency: commit_latency(name),
            elements_written: elements_written(name),
            transactions_ok: transactions.with_label_values(&[name, "ok"]),
            transactions_failed: transactions.with_label_values(&[name, "failed"]),
            drift_repairs: drift_repairs(name),
            audit_divergences: audit_divergences(name),
            rebuilds: rebuilds(name),
            refused: refused.with_label_values(&[name]),
            frontend_conflicts: conflicts.with_label_values(&[name]),
            conntrack_duration: conntrack_duration(name),
            conntrack_deleted: conntrack_deleted(name),
            deleted_flows: deleted_flows(name),
        }
    }
}
