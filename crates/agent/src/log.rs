//! What is logged of a pipeline's progress: facts in fields, one constant text for each kind of event.

use std::time::Duration;

use mode::Target;
use model::{IpFamily, Name, Node, ServiceName};
use tracing::{debug, error, info, warn};

use crate::node::NodeNews;
use crate::notice::{Conflict, Taken};
use crate::pipeline::{Done, Failed, Failing, Reason, Step};

/// One line for each completed step. Single changes are for those who want to see them.
pub(crate) fn log_done(family: IpFamily, done: &Done, took: Duration, settled: bool) {
    let Done { step, writes, kernel_time, latency, .. } = done;
    let (latency_us, kernel_us) = (micros(*latency), kernel_time.map(micros));
    let took_us = micros(took);
    match step {
        Step::Change => {
            debug!(ipFamily = %family, writes, latency_us, took_us, kernel_us, settled, "changed the kernel's rules");
        }
        Step::Repair(reason @ (Reason::ForeignChange | Reason::Audit)) => {
            warn!(ipFamily = %family, ?reason, writes, took_us, kernel_us, "the kernel's rules were wrong and are right again");
        }
        Step::Rebuild(reason @ (Reason::ForeignChange | Reason::Audit | Reason::Failure)) => {
            warn!(ipFamily = %family, ?reason, writes, took_us, kernel_us, "wrote the kernel's rules anew");
        }
        Step::Repair(reason) | Step::Rebuild(reason) => {
            info!(ipFamily = %family, ?reason, writes, latency_us, took_us, kernel_us, "brought the kernel's rules up to date");
        }
        Step::Unchanged(Reason::Start) => {
            info!(ipFamily = %family, latency_us, "the kernel's rules are right as they are");
        }
        Step::Unchanged(reason) => {
            debug!(v = 3, ipFamily = %family, ?reason, "the kernel's rules are right as they are");
        }
    }
}

/// A failure and what is done about it. A reading that goes wrong while what is held is known holds nothing up; what has no chance
/// from the start is told by the event loop, once.
pub(crate) fn log_failed<T: Target>(family: IpFamily, failed: &Failed<T>, was_synced: bool) {
    let Failed { failures, retry_in, refused, steps, .. } = failed;
    let text = failed.text();
    if failed.is_hopeless() && !was_synced {
        debug!(error = text, ipFamily = %family, failures, retryingTime = ?retry_in, "Sync failed");
    } else if failed.during == Failing::Read {
        let is_harmless = failed.is_known;
        warn!(error = text, ipFamily = %family, failures, retryingTime = ?retry_in, is_harmless, "Reading the rules failed");
    } else if failed.is_hopeless() {
        error!(error = text, ipFamily = %family, failures, refused, steps, retryingTime = ?retry_in, "Sync failed");
    } else {
        warn!(error = text, ipFamily = %family, failures, refused, steps, retryingTime = ?retry_in, "Sync failed");
    }
}

/// A claim that began to lose against another Service's, or no longer does.
pub(crate) fn log_conflict(conflict: &Conflict, is_new: bool) {
    let Conflict { family, address, protocol, port, loser, winner, .. } = conflict;
    let address = address.map_or_else(|| "node port".to_owned(), |address| address.to_string());
    if is_new {
        warn!(
            service = %loser, %winner, ipFamily = %family, address, %protocol, port,
            "another Service has this address and port",
        );
    } else {
        info!(
            service = %loser, %winner, ipFamily = %family, address, %protocol, port,
            "no other Service has this address and port any more",
        );
    }
}

/// Somebody who is no Service has a Service's address and port.
pub(crate) fn log_taken(service: &ServiceName, taken: &Taken) {
    let Taken { family, address, protocol, port, by } = taken;
    let address = address.map_or_else(|| "node port".to_owned(), |address| address.to_string());
    warn!(
        %service, ipFamily = %family, address, %protocol, port, by,
        "somebody else has this address and port; trying again until that has gone",
    );
}

/// What became of the Node. `waits`: nothing is programmed without its pod CIDRs.
pub(crate) fn log_node(name: &Name, news: NodeNews, node: Option<&Node>, waits: bool) {
    let list = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let addresses = node.map(|node| list(&node.addresses)).unwrap_or_default();
    match news {
        NodeNews::Missing => warn!(
            node = %name, NodeIPs = addresses,
            "There is no such Node yet; what depends on it follows when it appears",
        ),
        NodeNews::Found => info!(node = %name, NodeIPs = addresses, "Successfully retrieved NodeIPs"),
        NodeNews::Changed { addresses: true, .. } => {
            info!(node = %name, NodeIPs = addresses, "NodeIPs changed for the node");
        }
        NodeNews::Changed { pod_cidrs: true, .. } => info!(node = %name, "PodCIDRs changed for the node"),
        NodeNews::Changed { .. } => debug!(node = %name, v = 3, "the Node changed"),
        NodeNews::Deleted => warn!(node = %name, "the Node was deleted; what was known of it stays in force"),
        NodeNews::Returned => info!(node = %name, "the Node is there again"),
    }
    if waits {
        info!(node = %name, "Waiting for the Node's PodCIDRs; rules stay as they are until then");
    }
}

/// An error and what caused it, as one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
