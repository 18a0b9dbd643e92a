//! What is measured: one entry a figure, in the order in which people read them.

/// A figure that is measured, for each size and each program.
#[derive(Debug)]
pub(crate) struct Metric {
    /// For programs.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) what: &'static str,
    pub(crate) unit: Unit,
    /// What the project asks of itself at 10,000 Services x 10 endpoints on two processors. Nothing here judges it.
    pub(crate) budget: &'static str,
}

/// What the numbers of a figure mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds.
    Millis,
    /// How many.
    Count,
    /// 10^6 bytes.
    Megabytes,
    /// Bytes.
    Bytes,
    /// Hundredths of one processor.
    Percent,
    /// How many a second.
    PerSecond,
    /// 10^9 bits a second.
    Gigabits,
}

impl Unit {
    /// Its sign.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Count => "",
            Self::Megabytes => "MB",
            Self::Bytes => "B",
            Self::Percent => "%",
            Self::PerSecond => "/s",
            Self::Gigabits => "Gbit/s",
        }
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::Gigabits)
    }
}

/// The entry with this name.
///
/// # Panics
/// There is none, which a test of each scenario would show at once.
pub(crate) fn metric(id: &str) -> &'static Metric {
    let found = METRICS.iter().find(|metric| metric.id == id);
    found.unwrap_or_else(|| unreachable!("no metric {id}"))
}

const fn row(id: &'static str, what: &'static str, unit: Unit, budget: &'static str) -> Metric {
    Metric { id, what, unit, budget }
}

use Unit::{Bytes, Count, Gigabits, Megabytes, Millis, PerSecond, Percent};

/// All figures. Those that begin with "of that" are the program's own word, the others are seen from outside.
pub(crate) static METRICS: &[Metric] = &[
    row("cold_served", "cold start: process start -> packets arrive", Millis, ""),
    row("cold_committed", "cold start: process start -> last commit", Millis, ""),
    row("cold_listed", "- of that, start -> all lists decoded", Millis, ""),
    row("cold_carried", "- of that, lists decoded -> committed", Millis, "600, 1.5 x floor"),
    row("cold_kernel", "- of that, inside the kernel", Millis, ""),
    row("cold_maps", "- of that, maps of programs at the socket filled", Millis, "60"),
    row("cold_cpu", "cold start: processor time", Millis, ""),
    row("cold_transactions", "cold start: transactions", Count, ""),
    row("tables_chains", "iptables: chains of IPv4", Count, ""),
    row("tables_rules", "iptables: rules of IPv4", Count, ""),
    row("memory_peak", "memory: peak of the cold start", Megabytes, ""),
    row("memory_cold", "memory: resident after the cold start", Megabytes, "40"),
    row("memory_endpoint", "memory: resident for each endpoint", Bytes, ""),
    row("memory_maps", "memory: maps of programs at the socket", Megabytes, "12"),
    row("memory_changed", "memory: resident after all changes", Megabytes, "40"),
    row("replace_packet", "one endpoint replaced: API write -> packets follow", Millis, ""),
    row("replace_commit", "one endpoint replaced: API write -> commit", Millis, ""),
    row("replace_received", "- of that, received -> committed", Millis, "p99 2"),
    row("replace_kernel", "- of that, inside the kernel", Millis, ""),
    row("replace_cpu", "one endpoint replaced: processor time", Millis, ""),
    row("replace_connect", "one endpoint replaced: API write -> a TCP connection follows", Millis, ""),
    row("add_packet", "one endpoint added: API write -> packets arrive there", Millis, ""),
    row("add_commit", "one endpoint added: API write -> commit", Millis, ""),
    row("add_received", "- of that, received -> committed", Millis, "p99 2"),
    row("add_kernel", "- of that, inside the kernel", Millis, ""),
    row("add_cpu", "one endpoint added, two replaced: processor time", Millis, ""),
    row("remove_commit", "one endpoint removed: API write -> commit", Millis, ""),
    row("remove_received", "- of that, received -> committed", Millis, "p99 2"),
    row("remove_kernel", "- of that, inside the kernel", Millis, ""),
    row("new_count_commit", "first Service with so many endpoints: API write -> commit", Millis, ""),
    row("new_count_received", "- of that, received -> committed", Millis, "p99 2"),
    row("new_count_kernel", "- of that, inside the kernel", Millis, ""),
    row("old_count_commit", "no Service has so many any more: API write -> commit", Millis, ""),
    row("old_count_received", "- of that, received -> committed", Millis, "p99 2"),
    row("old_count_kernel", "- of that, inside the kernel", Millis, ""),
    row("create_packet", "one Service created: API write -> packets arrive", Millis, ""),
    row("create_commit", "one Service created: API write -> commit", Millis, ""),
    row("create_received", "- of that, received -> committed", Millis, "p99 2"),
    row("create_kernel", "- of that, inside the kernel", Millis, ""),
    row("create_cpu", "one Service created: processor time", Millis, ""),
    row("delete_commit", "one Service deleted: API write -> commit", Millis, ""),
    row("delete_received", "- of that, received -> committed", Millis, "p99 2"),
    row("delete_kernel", "- of that, inside the kernel", Millis, ""),
    row("churn_written", "churn: changes a second, written", PerSecond, ""),
    row("churn_packet", "churn: a marked change: API write -> packets follow", Millis, "p99 10"),
    row(
        "churn_received",
        "- of that, oldest change of each transaction: received -> committed",
        Millis,
        "p99 10",
    ),
    row("churn_caught_up", "churn: a marked change right after the last one", Millis, ""),
    row("churn_transactions", "churn: transactions a second", Count, ""),
    row("churn_cpu", "churn: processor time for each change", Millis, ""),
    row("rolling_packet", "rolling update of 1,000 endpoints: last write -> packets follow", Millis, ""),
    row("rolling_transactions", "rolling update: transactions", Count, ""),
    row("rolling_cpu", "rolling update: processor time", Millis, ""),
    row("restart_packet", "restart: process start -> a change made meanwhile is served", Millis, "1000"),
    row("restart_ready", "- of that, start -> rules compared", Millis, "1000"),
    row("restart_cpu", "restart, nothing changed: processor time", Millis, ""),
    row("restart_transactions", "restart, nothing changed: transactions", Count, "none"),
    row("restart_failed", "restart, nothing changed: failed connections", Count, "none"),
    row("small_served", "50 Services: process start -> packets arrive", Millis, "300"),
    row("idle_cpu", "50 Services: processor use at rest", Percent, "0.1"),
    row("first_packet", "data path: first packet of a UDP flow and its answer", Millis, ""),
    row("connect_call", "data path: connect() of TCP", Millis, ""),
    row("tcp_connect", "data path: new TCP connection, one line, closed", Millis, ""),
    row(
        "tcp_rate",
        "data path: new TCP connections a second, one client",
        PerSecond,
        "within 5 % at any size",
    ),
    row("udp_rate", "data path: UDP requests and answers a second on one flow", PerSecond, ""),
    row("throughput", "data path: one long-lived TCP connection", Gigabits, ""),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let ids: BTreeSet<_> = METRICS.iter().map(|metric| metric.id).collect();
        assert_eq!(ids.len(), METRICS.len());
        let what: BTreeSet<_> =
            METRICS.iter().map(|m| m.what).filter(|what| !what.starts_with('-')).collect();
        let own = METRICS.iter().filter(|metric| metric.what.starts_with('-')).count();
        assert_eq!(what.len() + own, METRICS.len());
        assert_eq!(metric("idle_cpu").unit, Unit::Percent);
    }
}
