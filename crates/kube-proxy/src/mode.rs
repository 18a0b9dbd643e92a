//! The modes: each is put together in one place.

mod iptables;
pub(crate) mod ipvs;
mod nftables;

use std::time::Duration;

use agent::{ServedFamily, Settings};
use config::{Config, Mode};
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
) -> anyhow::Result<Vec<ServedFamily>> {
    match config.mode {
        Mode::NfTables => Ok(nftables::serve(&families, metrics)),
        Mode::IpTables => iptables::serve(settings, families, metrics).await,
        Mode::Ipvs => ipvs::serve(config, settings, &families, metrics),
        mode @ (Mode::Ebpf | Mode::Userspace | Mode::Kernelspace) => not_built_in(mode),
    }
}

/// The configuration refuses these.
fn not_built_in<T>(mode: Mode) -> anyhow::Result<T> {
    anyhow::bail!("mode {mode} is not built in")
}

/// Why this host can't run a mode, as far as one can tell without trying.
pub(crate) fn unusable(mode: Mode) -> Option<String> {
    match mode {
        Mode::NfTables => nftables::unusable(),
        Mode::IpTables | Mode::Ipvs | Mode::Ebpf | Mode::Userspace | Mode::Kernelspace => None,
    }
}

/// Whether a mode goes on needing what lets it run programs as another user.
pub(crate) fn runs_programs(mode: Mode) -> bool {
    match mode {
        Mode::IpTables => true,
        Mode::NfTables | Mode::Ipvs | Mode::Ebpf | Mode::Userspace | Mode::Kernelspace => false,
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
