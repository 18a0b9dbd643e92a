//! What is logged of a pipeline's progress: facts in fields, one constant text for each kind of event.

use std::time::Duration;

use model::Family;
use tracing::{debug, error, info, warn};

use crate::pipeline::{Done, Failed, Reason, Step};

/// One line for each completed step. Single changes are for those who want to see them.
pub(crate) fn log_done<F: Family>(done: &Done, took: Duration, settled: bool) {
    let Done { step, elements, applied, latency, .. } = done;
    let family = F::FAMILY;
    let (latency_us, kernel_us) = (micros(*latency), micros(applied.kernel_time));
    let took_us = micros(took);
    match step {
        Step::Change => {
            debug!(%family, elements, latency_us, took_us, kernel_us, settled, "changed the kernel's rules");
        }
        Step::Repair(reason @ (Reason::ForeignChange | Reason::Audit)) => {
            warn!(%family, ?reason, elements, took_us, kernel_us, "the kernel's rules were wrong and are right again");
        }
        Step::Repair(reason) => {
            info!(%family, ?reason, elements, latency_us, took_us, kernel_us, "brought the kernel's rules up to date");
        }
        Step::Unchanged(Reason::Start) => {
            info!(%family, latency_us, "the kernel's rules are right as they are");
        }
        Step::Unchanged(reason) => debug!(%family, ?reason, "the kernel's rules are right as they are"),
    }
}

/// A failure and what is done about it.
pub(crate) fn log_failed<F: Family>(failed: &Failed) {
    let Failed { error, failures, retry_in, .. } = failed;
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let retry_in_ms = millis(*retry_in);
    if error.is_retryable() {
        warn!(family = %F::FAMILY, %error, source, failures, retry_in_ms, "the kernel refused a change");
    } else {
        error!(family = %F::FAMILY, %error, source, failures, retry_in_ms, "the kernel can't be programmed");
    }
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
