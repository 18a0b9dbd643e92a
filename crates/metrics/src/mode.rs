//! What one mode has and others do not.

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use crate::buckets;
use crate::registrar::Registrar;

/// A mode with metrics of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `nftables`.
    #[default]
    Nftables,
    /// `iptables`.
    Iptables,
}

/// The metrics that one family has only in this mode.
#[derive(Clone, Debug)]
pub enum ModeMetrics {
    /// In mode `nftables`.
    Nftables(NftablesMetrics),
    /// In mode `iptables`.
    Iptables(IptablesMetrics),
}

/// What mode `nftables` has.
#[derive(Clone, Debug)]
pub struct NftablesMetrics {
    /// Attempts that failed.
    pub sync_failures: IntCounter,
    /// Inside the kernel, for one transaction, in seconds.
    pub kernel_transaction: Histogram,
}

/// What mode `iptables` has.
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

/// Rules of one table.
#[derive(Clone, Debug)]
pub struct TableMetrics {
    /// How many are ours.
    pub total: IntGauge,
    /// How many the last successful sync wrote.
    pub last: IntGauge,
}

/// What has been registered, for all families.
enum Registered {
    Nftables {
        sync_failures: IntCounterVec,
        cleanup_failures: IntCounterVec,
        kernel_transaction: HistogramVec,
    },
    Iptables {
        restore_failures: IntCounterVec,
        partial_restore_failures: IntCounterVec,
        total: IntGaugeVec,
        last: IntGaugeVec,
    },
}

/// Registers them; gives what makes those of a family of this name.
pub(crate) fn register(
    registrar: &Registrar,
    mode: Mode,
) -> impl Fn(&str) -> ModeMetrics + Send + Sync + use<> {
    let registered = match mode {
        Mode::Nftables => nftables(registrar),
        Mode::Iptables => iptables(registrar),
    };
    move |family| registered.family(family)
}

fn nftables(registrar: &Registrar) -> Registered {
    Registered::Nftables {
        sync_failures: registrar.counters(
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "[ALPHA] Failed attempts to sync the nftables rules",
            &["ip_family"],
        ),
        cleanup_failures: registrar.counters(
            "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
            "[ALPHA] Always 0: what is not needed goes with the same transaction",
            &["ip_family"],
        ),
        kernel_transaction: registrar.histograms(
            "kubeproxy_kernel_transaction_seconds",
            "Time inside the kernel for a transaction",
            &["ip_family"],
            buckets::commit(),
        ),
    }
}

fn iptables(registrar: &Registrar) -> Registered {
    Registered::Iptables {
        restore_failures: registrar.counters(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "[ALPHA] Attempts in which iptables-restore failed",
            &["ip_family"],
        ),
        partial_restore_failures: registrar.counters(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "[ALPHA] Attempts that carried only changes and in which iptables-restore failed",
            &["ip_family"],
        ),
        total: registrar.gauges(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "[ALPHA] Rules of ours",
            &["table", "ip_family"],
        ),
        last: registrar.gauges(
            "kubeproxy_sync_proxy_rules_iptables_last",
            "[ALPHA] Rules that the last successful sync wrote",
            &["table", "ip_family"],
        ),
    }
}

impl Registered {
    fn family(&self, family: &str) -> ModeMetrics {
        match self {
            Self::Nftables { sync_failures, cleanup_failures, kernel_transaction } => {
                // Nothing counts it, but it is on the page.
                cleanup_failures.with_label_values(&[family]);
                ModeMetrics::Nftables(NftablesMetrics {
                    sync_failures: sync_failures.with_label_values(&[family]),
                    kernel_transaction: kernel_transaction.with_label_values(&[family]),
                })
            }
            Self::Iptables { restore_failures, partial_restore_failures, total, last } => {
                let table = |name: &str| TableMetrics {
                    total: total.with_label_values(&[name, family]),
                    last: last.with_label_values(&[name, family]),
                };
                ModeMetrics::Iptables(IptablesMetrics {
                    restore_failures: restore_failures.with_label_values(&[family]),
                    partial_restore_failures: partial_restore_failures.with_label_values(&[family]),
                    nat: table("nat"),
                    filter: table("filter"),
                })
            }
        }
    }
}

impl IptablesMetrics {
    /// The metrics of the table of this name, if it has any.
    pub fn table(&self, name: &str) -> Option<&TableMetrics> {
        match name {
            "nat" => Some(&self.nat),
            "filter" => Some(&self.filter),
            _ => None,
        }
    }
}
