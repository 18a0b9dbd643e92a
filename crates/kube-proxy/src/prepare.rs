//! What is set on the host before anything is served: all that needs more privileges than serving.

use agent::with_causes;
use config::Config;
use host::{ConntrackSettings, FileError, Root};
use tracing::{error, info, warn};

use crate::settings;

/// `--init-only`: sets everything, and fails if something can't be set.
pub(crate) fn init_only(config: &Config) -> anyhow::Result<()> {
    prepare(config).map_or(Ok(()), |error| Err(anyhow::Error::from(error)))
}

/// Sets what can be set. A node whose settings can't be changed (by a container with a read-only `/proc/sys`, say) is served
/// all the same: upstream ends here.
pub(crate) fn before_serving(config: &Config) {
    if let Some(failure) = prepare(config) {
        error!(err = with_causes(&failure), "the host's settings could not be changed");
    }
    if let Err(failure) = host::set_oom_score(&Root::default(), config.oom_score_adj) {
        info!(v = 2, err = with_causes(&failure), "Failed to set oom_score_adj for kube-proxy");
    }
}

/// The first failure; what comes after it is tried all the same.
fn prepare(config: &Config) -> Option<FileError> {
    let root = Root::default();
    let conntrack = match host::apply_conntrack(&root, &conntrack(config)) {
        Ok(applied) => {
            for (entry, value) in applied.written {
                info!(%entry, value, "Set sysctl");
            }
            for warning in &applied.warnings {
                warn!(err = with_causes(warning), "conntrack works all the same");
            }
            None
        }
        Err(error) => Some(error),
    };
    let localnet = settings::serves_localhost(config).then(|| host::set_route_localnet(&root));
    conntrack.or(localnet.and_then(Result::err))
}

fn conntrack(config: &Config) -> ConntrackSettings {
    let config::Conntrack {
        max_per_core,
        min,
        tcp_established_timeout,
        tcp_close_wait_timeout,
        tcp_be_liberal,
        udp_timeout,
        udp_stream_timeout,
    } = config.conntrack;
    ConntrackSettings {
        max_per_core: Some(max_per_core),
        min: Some(min),
        tcp_established_timeout,
        tcp_close_wait_timeout,
        tcp_be_liberal,
        udp_timeout,
        udp_stream_timeout,
    }
}
