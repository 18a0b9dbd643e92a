//! Leaving nothing behind of what other modes, or upstream's kube-proxy, did on this node; and giving up the privileges
//! that only the start needs.

use std::thread;
use std::time::Duration;

use agent::{OldRulesGone, with_causes};
use config::Mode;
use host::{Report, Root};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, info, warn};

/// Pauses before another attempt at what could not be removed. After the last one it stays until the next start.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];

/// Mode nftables: removes other modes' leftovers on a thread of its own, and tells when rules are gone. To be called when all our
/// rules are in the kernel.
pub(crate) fn start(gone: UnboundedSender<OldRulesGone>) {
    spawn(|| host::clean_up_other_modes(&Root::default()), gone);
}

/// The same for mode iptables, whose rules are not to be removed, but those of mode nftables. Of both families: nobody looks
/// after them any more, whether or not there are programs for the family.
pub(crate) fn start_from_nftables(gone: UnboundedSender<OldRulesGone>) {
    let (table, choosing) = (backend_nftables::table_name(), backend_nftables::choosing_chains());
    spawn(move || host::clean_up_nftables(&table, &choosing), gone);
}

fn spawn(clean_up: impl Fn() -> Report + Send + 'static, gone: UnboundedSender<OldRulesGone>) {
    let work = move || take_over(clean_up, &gone);
    if let Err(error) = thread::Builder::new().name("takeover".into()).spawn(work) {
        warn!(%error, "what other modes left can't be removed");
    }
}

fn take_over(clean_up: impl Fn() -> Report, gone: &UnboundedSender<OldRulesGone>) {
    let mut pauses = PAUSES.into_iter();
    loop {
        let report = clean_up();
        log_removed(&report);
        // If nobody listens any more, the program ends.
        let listening = report.removed.is_empty() || gone.send(OldRulesGone).is_ok();
        if report.failures.is_empty() || !listening {
            return;
        }
        let retry_in = pauses.next();
        for failure in &report.failures {
            warn!(err = with_causes(failure), ?retry_in, "what another mode left can't be removed");
        }
        match retry_in {
            Some(pause) => thread::sleep(pause),
            None => return,
        }
    }
}

/// `--cleanup`: removes everything that any mode has left, our own rules included. Tries everything, and fails if
/// something stays.
pub(crate) fn clean_up() -> anyhow::Result<()> {
    let report = host::clean_up_all(&Root::default(), &backend_nftables::table_name());
    log_removed(&report);
    for failure in &report.failures {
        error!(err = with_causes(failure), "could not be removed");
    }
    anyhow::ensure!(report.failures.is_empty(), "{} things stay behind", report.failures.len());
    Ok(())
}

/// Keeps only the capabilities that are needed as long as the program runs. To be called before there is a second thread.
pub(crate) fn give_up_privileges(mode: Mode) {
    for failure in host::drop_privileges(mode == Mode::IpTables) {
        debug!(err = with_causes(&failure), "a privilege stays");
    }
}

fn log_removed(report: &Report) {
    for removed in &report.removed {
        info!(from = removed.from, items = removed.items.len(), "removed what another mode left");
        debug!(from = removed.from, items = removed.items.join(", "), "removed");
    }
    for chain in &report.kept {
        info!(chain, "stays, because rules of others need it");
    }
}
