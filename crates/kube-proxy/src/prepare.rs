//! What is set on the host before anything is served: all that needs more privileges than serving.

use agent::with_causes;
use config::{Config, Mode};
use host::{ConntrackSettings, Root};
use tracing::{info, warn};

use crate::limits::Limits;
use crate::{mode, settings};

/// `--init-only`: sets everything that is the host's. A node whose settings can't be changed (by a container with a read-only
/// `/proc/sys`, say) is served all the same, with a warning for each: upstream ends here.
///
/// # Errors
/// The mode can't be used here.
pub(crate) fn set_host(config: &Config, limits: &Limits) -> anyhow::Result<()> {
    let root = Root::default();
    let applied = host::apply_conntrack(&root, &conntrack(config));
    for (entry, value) in applied.written {
        info!(%entry, value, "Set sysctl");
    }
    let localnet = settings::serves_localhost(config).then(|| host::set_route_localnet(&root));
    for failure in applied.failures.into_iter().chain(localnet.and_then(Result::err)) {
        warn!(err = with_causes(&failure), "a setting of the host can't be changed; it stays as it is");
        note_setting(limits, &failure);
    }
    match config.mode {
        Mode::Ipvs => mode::ipvs::set_host(config, limits),
        Mode::NfTables | Mode::IpTables | Mode::Ebpf | Mode::Userspace | Mode::Kernelspace => Ok(()),
    }
}

/// Takes note of a setting of the host that stays as it is.
pub(crate) fn note_setting(limits: &Limits, failure: &dyn std::error::Error) {
    let why = match failure.source() {
        Some(cause) => with_causes(cause),
        None => "it is refused".to_owned(),
    };
    limits.note(&format!("a setting of the host, {failure}"), Some(why));
}

/// Sets what is the host's, and what is this process's.
///
/// # Errors
/// The mode can't be used here, or privileges are missing.
pub(crate) fn before_serving(config: &Config, limits: &Limits) -> anyhow::Result<()> {
    host::require_net_admin()?;
    set_host(config, limits)?;
    if let Err(failure) = host::set_oom_score(&Root::default(), config.oom_score_adj) {
        info!(v = 2, err = with_causes(&failure), "Failed to set oom_score_adj for kube-proxy");
    }
    if let Err(failure) = host::raise_descriptor_limit() {
        info!(v = 2, err = with_causes(&failure), "the limit of open files stays as it is");
    }
    if config.mode == Mode::Ebpf
        && counts_maps_as_locked_memory()
        && let Err(failure) = host::lift_locked_memory_limit()
    {
        warn!(
            err = with_causes(&failure),
            "the limit of locked memory stays; maps may not find room below it"
        );
    }
    Ok(())
}

/// Linux before 5.11.
fn counts_maps_as_locked_memory() -> bool {
    let version = host::kernel_release(&Root::default()).and_then(|release| host::kernel_version(&release));
    version.is_some_and(|version| version < (5, 11))
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
