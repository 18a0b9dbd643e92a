//! The agent's access to the real kernel in mode nftables.

use std::sync::Arc;
use std::time::Duration;

use agent::{ForeignChange, KernelAccess};
use backend_nftables::Nftables;
use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

use crate::takeover;

/// The pause before a failed watch is opened again.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

/// The kernel of the network namespace that the program runs in.
pub(crate) fn kernel_access() -> KernelAccess<Nftables> {
    KernelAccess {
        open: Arc::new(|_| Ok(Box::new(kernel::Nftables::open()?.expecting(backend_nftables::slot_keys)))),
        open_conntrack: Arc::new(|| Ok(Box::new(kernel::Flows::open()?))),
        watch: Box::new(|foreign| {
            let started = std::thread::Builder::new().name("watch".into()).spawn(move || watch(&foreign));
            if let Err(error) = started {
                warn!(%error, "foreign changes of the rules are noticed only by audits");
            }
        }),
        synced: Box::new(takeover::start),
    }
}

/// Passes on what others do to our tables, for as long as somebody wants to know.
fn watch(foreign: &UnboundedSender<ForeignChange>) {
    loop {
        let failed = match kernel::TableWatch::open(backend_nftables::table_name()) {
            Ok(mut watch) => loop {
                match watch.wait() {
                    Ok(kernel::ForeignChange { family, what }) => {
                        if foreign.send(ForeignChange { family, what }).is_err() {
                            return;
                        }
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        warn!(error = %failed, "changes of the rules can't be watched; trying again");
        std::thread::sleep(WATCH_PAUSE);
    }
}
