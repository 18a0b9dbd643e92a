//! The modes: each is put together in one place.

pub(crate) mod ebpf;
mod iptables;
pub(crate) mod ipvs;
// Windows has a network service; tests have one in memory.
#[cfg(test)]
mod kernelspace;
mod nftables;
pub(crate) mod userspace;

use agent::{ServedFamily, Settings};
use config::{Config, Mode};
use host::Privilege;
use metrics::Metrics;
use model::{Balancer, IpFamily, Proxied};

use crate::endings::Endings;
use crate::limits::Limits;

/// What serves each of these families in a mode. A family for which the host lacks something is left out.
///
/// # Errors
/// No family can be served.
pub(crate) async fn serve(
    config: &Config,
    settings: &Settings,
    families: Vec<IpFamily>,
    metrics: &Metrics,
    endings: &Endings,
    limits: &Limits,
) -> anyhow::Result<Vec<ServedFamily>> {
    nftables::tell_if_untested();
    let proxying = userspace::Proxying::new(config, metrics, limits);
    let served = match config.mode {
        Mode::NfTables | Mode::Userspace => Ok(nftables::serve(config, &families, metrics, &proxying)),
        Mode::IpTables => iptables::serve(config, settings, families, metrics, &proxying).await,
        Mode::Ipvs => ipvs::serve(config, settings, &families, metrics, &proxying),
        Mode::Ebpf => Ok(ebpf::serve(config, settings, &families, (metrics, limits), &proxying)),
        mode @ Mode::Kernelspace => not_built_in(mode),
    };
    proxying.end_with(endings);
    served
}

/// The configuration refuses these.
fn not_built_in<T>(mode: Mode) -> anyhow::Result<T> {
    anyhow::bail!("mode {mode} is not built in")
}

/// Why this host can't run a mode, as far as one can tell without trying.
pub(crate) fn unusable(mode: Mode) -> Option<String> {
    match mode {
        Mode::NfTables | Mode::Ebpf => nftables::unusable(&Balancer::Rules),
        Mode::Userspace => nftables::unusable(&Balancer::Proxies(Proxied::All)),
        Mode::Ipvs => {
            nftables::unusable(&Balancer::Ipvs { node_addresses: Vec::new(), proxied: Some(Proxied::Asking) })
        }
        Mode::IpTables | Mode::Kernelspace => None,
    }
}

/// What a mode goes on needing besides `CAP_NET_ADMIN`.
pub(crate) fn privilege(config: &Config) -> Option<Privilege> {
    match config.mode {
        Mode::IpTables => Some(Privilege::RawSockets),
        Mode::Ebpf if config.ebpf.udp => Some(Privilege::ProgramsAndNamespaces),
        Mode::Ebpf => Some(Privilege::Programs),
        Mode::NfTables | Mode::Ipvs | Mode::Userspace | Mode::Kernelspace => None,
    }
}
