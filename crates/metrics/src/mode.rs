//! What one mode has and others do not: registered and set by the mode.

use mode::{Attempt, Observer};
use model::IpFamily;
use prometheus::{Histogram, IntCounter, IntGauge};

use crate::{Metrics, buckets};

/// What one family has in mode `nftables`.
#[derive(Clone, Debug)]
pub struct NftablesMetrics {
    /// Attempts that failed.
    pub sync_failures: IntCounter,
    /// Inside the kernel, for one transaction, in seconds.
    pub kernel_transaction: Histogram,
}

/// What one family has in mode `iptables`.
#[derive(Clone, Debug)]
pub struct IptablesMetrics {
    /// Attempts in which `iptables-restore` failed.
    pub restore_failures: IntCounter,
    /// Those of them that carried only changes.
    pub partial_restore_failures: IntCounter,
    /// The table `nat`.
    pub nat: TableMetrics,
    /// The table `filter`.
    pub filter: TableMetrics,
}

/// What one family has in mode `ipvs`.
#[derive(Clone, Debug)]
pub struct IpvsMetrics {
    /// Attempts in which not everything could be programmed.
    pub sync_failures: IntCounter,
    /// Inside the kernel, for one transaction of the rules, in seconds.
    pub kernel_transaction: Histogram,
}

impl IpvsMetrics {
    /// Registers them; gives what makes those of a family. To be called once.
    pub fn register(metrics: &Metrics) -> impl Fn(IpFamily) -> Self + use<> {
        let registrar = &metrics.registrar;
        let sync_failures = registrar.counters(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "[ALPHA] Attempts in which not everything could be programmed; upstream's name, although no iptables-restore is run",
            &["ip_family"],
        );
        let kernel_transaction = registrar.per_family(
            "kubeproxy_kernel_transaction_seconds",
            "Time inside the kernel for a transaction",
            buckets::commit(),
        );
        move |family| Self {
            sync_failures: sync_failures.with_label_values(&[&*family.to_string()]),
            kernel_transaction: kernel_transaction(&family.to_string()),
        }
    }
}

impl Observer for IpvsMetrics {
    fn attempted(&self, attempt: &Attempt<'_>) {
        if !attempt.succeeded {
            self.sync_failures.inc();
        }
        if let Some(time) = attempt.kernel_time {
            self.kernel_transaction.observe(time.as_secs_f64());
        }
    }
}

/// What one family has where workers carry flows: in mode `userspace`, and of Services that ask for it in others.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    /// 1 while new flows are handed to a worker, 0 while they go to endpoints by rules alone.
    pub leased: IntGauge,
    /// Workers that died.
    pub deaths: IntCounter,
    /// Endpoints that are ejected now.
    pub ejected: IntGauge,
    /// Endpoints whose health check fails now.
    pub ill: IntGauge,
    /// Ejections.
    pub ejections: IntCounter,
    /// Health checks that began to fail.
    pub check_failures: IntCounter,
}

impl WorkerMetrics {
    /// Registers them; gives what makes those of a family. To be called once.
    pub fn register(metrics: &Metrics) -> impl Fn(IpFamily) -> Self + use<> {
        let registrar = &metrics.registrar;
        let leased = registrar.gauges(
            "kubeproxy_worker_leased",
            "1 while new flows are handed to a worker, 0 while they go to endpoints by rules alone",
            &["ip_family"],
        );
        let deaths = registrar.counters(
            "kubeproxy_worker_deaths_total",
            "Workers that ended without being asked to",
            &["ip_family"],
        );
        let out = registrar.gauges(
            "kubeproxy_worker_endpoints_out",
            "Endpoints that workers give nothing for now, since they fail (ejection) or since their health check does (health-check)",
            &["ip_family", "cause"],
        );
        let outages = registrar.counters(
            "kubeproxy_worker_endpoint_outages_total",
            "Times that workers have begun to give an endpoint nothing",
            &["ip_family", "cause"],
        );
        move |family| {
            let label = family.to_string();
            Self {
                ejected: out.with_label_values(&[&*label, "ejection"]),
                ill: out.with_label_values(&[&*label, "health-check"]),
                ejections: outages.with_label_values(&[&*label, "ejection"]),
                check_failures: outages.with_label_values(&[&*label, "health-check"]),
                leased: leased.with_label_values(&[&*label]),
                deaths: deaths.with_label_values(&[&*label]),
            }
        }
    }
}

/// Spans on their way to a collector.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    /// Those that a collector has.
    pub exported: IntCounter,
    /// Those for which there was no room.
    pub dropped: IntCounter,
    /// Those that a collector refused, or that never reached one.
    pub failed: IntCounter,
}

impl TraceMetrics {
    /// Registers them. To be called once.
    pub fn register(metrics: &Metrics) -> Self {
        let spans = metrics.registrar.counters(
            "kubeproxy_trace_spans_total",
            "Spans by what became of them: a collector has them (exported), there was no room (dropped), a collector refused them or never had them (failed)",
            &["outcome"],
        );
        let [exported, dropped, failed] =
            ["exported", "dropped", "failed"].map(|outcome| spans.with_label_values(&[outcome]));
        Self { exported, dropped, failed }
    }
}

/// What one family has in mode `ebpf`: besides, what it has in mode `nftables`.
#[derive(Clone, Debug)]
pub struct EbpfMetrics {
    /// Of the rules beneath.
    pub rules: NftablesMetrics,
    /// 1: connections are translated at the socket.
    pub active: IntGauge,
    /// 1: UDP is served at the socket, too.
    pub udp: IntGauge,
    /// Frontends that are.
    pub frontends: IntGauge,
    /// Connected sockets of UDP that were ended, since their endpoint was gone.
    pub ended_sockets: IntCounter,
    /// Writes to maps.
    pub map_writes: IntCounter,
    /// Times that all maps were made anew.
    pub map_rebuilds: IntCounter,
    /// Times that maps or programs were found to be other than they should be.
    pub divergences: IntCounter,
}

impl EbpfMetrics {
    /// Registers them; gives what makes those of a family. To be called once.
    pub fn register(metrics: &Metrics) -> impl Fn(IpFamily) -> Self + use<> {
        let rules = NftablesMetrics::register(metrics);
        let (registrar, labels) = (&metrics.registrar, &["ip_family"]);
        let active =
            registrar.gauges("kubeproxy_ebpf_active", "1: connections are translated at the socket", labels);
        let udp = registrar.gauges("kubeproxy_ebpf_udp", "1: UDP is served at the socket, too", labels);
        let ended_sockets = registrar.counters(
            "kubeproxy_ebpf_ended_sockets_total",
            "Connected sockets of UDP that were ended, since their endpoint was gone",
            labels,
        );
        let frontends =
            registrar.gauges("kubeproxy_ebpf_frontends", "Frontends that are served at the socket", labels);
        let map_writes = registrar.counters("kubeproxy_ebpf_map_writes_total", "Writes to maps", labels);
        let map_rebuilds = registrar.counters(
            "kubeproxy_ebpf_map_rebuilds_total",
            "Times that all maps were made anew",
            labels,
        );
        let divergences = registrar.counters(
            "kubeproxy_ebpf_divergences_total",
            "Times that maps or programs were found to be other than they should be",
            labels,
        );
        move |family| {
            let name = &*family.to_string();
            Self {
                rules: rules(family),
                active: active.with_label_values(&[name]),
                udp: udp.with_label_values(&[name]),
                ended_sockets: ended_sockets.with_label_values(&[name]),
                frontends: frontends.with_label_values(&[name]),
                map_writes: map_writes.with_label_values(&[name]),
                map_rebuilds: map_rebuilds.with_label_values(&[name]),
                divergences: divergences.with_label_values(&[name]),
            }
        }
    }
}

impl Observer for EbpfMetrics {
    fn attempted(&self, attempt: &Attempt<'_>) {
        self.rules.attempted(attempt);
    }
}

/// Rules of one table.
#[derive(Clone, Debug)]
pub struct TableMetrics {
    /// How many are ours.
    pub total: IntGauge,
    /// How many the last successful sync wrote.
    pub last: IntGauge,
}

impl NftablesMetrics {
    /// Registers them; gives what makes those of a family. To be called once.
    pub fn register(metrics: &Metrics) -> impl Fn(IpFamily) -> Self + use<> {
        let registrar = &metrics.registrar;
        let sync_failures = registrar.counters(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "[ALPHA] Failed attempts to sync the nftables rules",
            &["ip_family"],
        );
        let cleanup_failures = registrar.counters(
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
            "[ALPHA] Always 0: what is not needed goes with the same transaction",
            &["ip_family"],
        );
        let kernel_transaction = registrar.per_family(
            "kubeproxy_kernel_transaction_seconds",
            "Time inside the kernel for a transaction",
            buckets::commit(),
        );
        move |family| {
            let family = &*family.to_string();
            // Nothing counts it, but it is on the page.
            cleanup_failures.with_label_values(&[family]);
            Self {
                sync_failures: sync_failures.with_label_values(&[family]),
                kernel_transaction: kernel_transaction(family),
            }
        }
    }
}

impl Observer for NftablesMetrics {
    fn attempted(&self, attempt: &Attempt<'_>) {
        if !attempt.succeeded {
            self.sync_failures.inc();
        }
        if let Some(time) = attempt.kernel_time {
            self.kernel_transaction.observe(time.as_secs_f64());
        }
    }
}

impl IptablesMetrics {
    /// Registers them; gives what makes those of a family. To be called once.
    pub fn register(metrics: &Metrics) -> impl Fn(IpFamily) -> Self + use<> {
        let registrar = &metrics.registrar;
        let restore_failures = registrar.counters(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "[ALPHA] Attempts in which iptables-restore failed",
            &["ip_family"],
        );
        let partial_restore_failures = registrar.counters(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "[ALPHA] Attempts that carried only changes and in which iptables-restore failed",
            &["ip_family"],
        );
        let total = registrar.gauges(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "[ALPHA] Rules of ours",
            &["table", "ip_family"],
        );
        let last = registrar.gauges(
            "kubeproxy_sync_proxy_rules_iptables_last",
            "[ALPHA] Rules that the last successful sync wrote",
            &["table", "ip_family"],
        );
        move |family| {
            let family = &*family.to_string();
            let table = |name: &str| TableMetrics {
                total: total.with_label_values(&[name, family]),
                last: last.with_label_values(&[name, family]),
            };
            Self {
                restore_failures: restore_failures.with_label_values(&[family]),
                partial_restore_failures: partial_restore_failures.with_label_values(&[family]),
                nat: table("nat"),
                filter: table("filter"),
            }
        }
    }

    fn table(&self, name: &str) -> Option<&TableMetrics> {
        match name {
            "nat" => Some(&self.nat),
            "filter" => Some(&self.filter),
            _ => None,
        }
    }
}

impl Observer for IptablesMetrics {
    fn attempted(&self, attempt: &Attempt<'_>) {
        if !attempt.succeeded {
            if !attempt.is_reading {
                self.restore_failures.inc();
            }
            if attempt.is_partial {
                self.partial_restore_failures.inc();
            }
            return;
        }
        for rules in attempt.rules {
            let Some(table) = self.table(rules.table) else { continue };
            table.total.set(signed(rules.held));
            table.last.set(signed(rules.written));
        }
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
