//! The mode of Windows.

use agent::{ServedFamily, Settings};
use config::{Config, Mode};
use metrics::Metrics;
use model::IpFamily;

use crate::endings::Endings;

/// What serves each of these families. A family that HNS or the network lacks is left out.
///
/// # Errors
/// No family can be served.
pub(crate) async fn serve(
    config: &Config,
    _settings: &Settings,
    _families: Vec<IpFamily>,
    _metrics: &Metrics,
    _endings: &Endings,
) -> anyhow::Result<Vec<ServedFamily>> {
    anyhow::bail!("mode {} is not built in", config.mode)
}

/// Why this host can't run a mode, as far as one can tell without trying.
pub(crate) fn unusable(_mode: Mode) -> Option<String> {
    None
}
