//! The modes: each is put together in one place.

pub(crate) mod ebpf;
mod iptables;
pub(crate) mod ipvs;
mod nftables;
pub(crate) mod userspace;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::{ServedFamily, Settings};
use config::{Config, Mode};
use host::Privilege;
use metrics::Metrics;
use model::IpFamily;

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
    let proxying = userspace::Proxying::new(config, metrics);
    let served = match config.mode {
        Mode::NfTables | Mode::Userspace => Ok(nftables::serve(config, &families, metrics, &proxying)),
        Mode::IpTables => iptables::serve(config, settings, families, metrics).await,
        Mode::Ipvs => ipvs::serve(config, settings, &families, metrics),
        Mode::Ebpf => Ok(ebpf::serve(config, settings, &families, metrics, &proxying)),
        mode @ Mode::Kernelspace => not_built_in(mode),
    };
    proxying.end_with(endings);
    served
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
        Mode::NfTables | Mode::Ebpf | Mode::Userspace => nftables::unusable(),
        Mode::IpTables | Mode::Ipvs | Mode::Kernelspace => None,
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

/// The pause before something that ended by itself is begun again.
const AGAIN_PAUSE: Duration = Duration::from_secs(5);

/// Runs a watch on a thread of its own, again if it panics, until it says that nobody listens any more.
fn spawn_watch(watch: impl Fn() + Send + 'static) {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let work = move || {
        while catch_unwind(AssertUnwindSafe(&watch)).is_err() {
            tracing::warn!(retryingTime = ?AGAIN_PAUSE, "the watch of the rules panicked");
            std::thread::sleep(AGAIN_PAUSE);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(work) {
        tracing::warn!(%error, "foreign changes of the rules are noticed only by audits");
    }
}
