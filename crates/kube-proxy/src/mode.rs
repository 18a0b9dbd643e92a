//! The modes: each is put together in one place.

pub(crate) mod ebpf;
mod iptables;
pub(crate) mod ipvs;
// Windows has a network service; tests have one in memory.
#[cfg(test)]
mod kernelspace;
mod nftables;
pub(crate) mod userspace;

use std::sync::{Arc, Mutex, PoisonError};

use agent::{ServedFamily, Settings};
use config::{Config, Mode};
use host::Privilege;
use metrics::Metrics;
use model::{Balancer, IpFamily};

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
) -> anyhow::Result<Vec<ServedFamily>> {
    nftables::tell_if_untested();
    match config.mode {
        Mode::NfTables => Ok(nftables::serve(config, &families, metrics)),
        Mode::IpTables => iptables::serve(config, settings, families, metrics).await,
        Mode::Ipvs => ipvs::serve(config, settings, &families, metrics),
        Mode::Userspace => Ok(userspace::serve(config, &families, metrics, endings)),
        Mode::Ebpf => Ok(ebpf::serve(config, settings, &families, metrics)),
        mode @ Mode::Kernelspace => not_built_in(mode),
    }
}

/// What a mode does when the program is asked to end, before it does.
#[derive(Clone, Default)]
pub(crate) struct Endings(Arc<Mutex<Vec<Ending>>>);

type Ending = Box<dyn FnOnce() + Send>;

impl Endings {
    fn add(&self, ending: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(ending));
    }

    /// Does all, each once. May wait; not longer than the limits of the modes.
    pub(crate) fn run(&self) {
        let endings = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for ending in endings {
            ending();
        }
    }
}

/// The configuration refuses these.
fn not_built_in<T>(mode: Mode) -> anyhow::Result<T> {
    anyhow::bail!("mode {mode} is not built in")
}

/// Why this host can't run a mode, as far as one can tell without trying.
pub(crate) fn unusable(mode: Mode) -> Option<String> {
    match mode {
        Mode::NfTables | Mode::Ebpf => nftables::unusable(&Balancer::Rules),
        Mode::Userspace => nftables::unusable(&Balancer::Proxies),
        Mode::Ipvs => nftables::unusable(&Balancer::Ipvs { node_addresses: Vec::new() }),
        Mode::IpTables | Mode::Kernelspace => None,
    }
}

/// What a mode goes on needing besides `CAP_NET_ADMIN`.
pub(crate) fn privilege(mode: Mode) -> Option<Privilege> {
    match mode {
        Mode::IpTables => Some(Privilege::RawSockets),
        Mode::Ebpf => Some(Privilege::Programs),
        Mode::NfTables | Mode::Ipvs | Mode::Userspace | Mode::Kernelspace => None,
    }
}
