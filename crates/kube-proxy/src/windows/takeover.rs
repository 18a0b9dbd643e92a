//! Leaving nothing behind, on Windows.

use std::sync::Arc;
use std::time::Duration;

use agent::with_causes;
use config::Config;
use hns::Hns;
use tracing::{error, info};

use crate::mode;

/// `--cleanup`: removes what is ours on the network, and nothing else. Tries everything, and fails if something stays.
pub(crate) fn clean_up(config: &Config) -> anyhow::Result<()> {
    let options = Arc::new(mode::options(config)?);
    match backend_kernelspace::clean_up(Box::new(Hns::load()?), &options) {
        Ok(items) => {
            info!(items, network = options.network_name, "removed load balancers and endpoints");
            Ok(())
        }
        Err(failures) => {
            for failure in &failures {
                error!(err = with_causes(failure), "could not be removed");
            }
            anyhow::bail!("{} things stay behind", failures.len())
        }
    }
}

/// `--hand-over`, which is about tables of Linux.
pub(crate) fn hand_over(_config: &Config, _lease: Duration) -> anyhow::Result<()> {
    anyhow::bail!("--hand-over is for mode nftables, which Windows does not have")
}

/// Windows has no capabilities to give up.
pub(crate) fn give_up_privileges(_config: &Config) {}
