//! Mode nftables: a table of `nf_tables` for each family.

use std::marker::PhantomData;
use std::sync::Arc;

use ::mode::{OpenTarget, Touches};
use agent::{FamilyMode, ServedFamily};
use backend_nftables::{Backend, Config, NftablesTarget};
use host::Root;
use metrics::{Metrics, NftablesMetrics};
use model::{Family, IpFamily, V4, V6};
use netlink::NetlinkError;
use tracing::warn;

use super::userspace::Proxying;
use super::{AGAIN_PAUSE, spawn_watch};
use crate::takeover::{Leftovers, TakeOvers};

/// What serves these families.
pub(super) fn serve(
    config: &config::Config,
    families: &[IpFamily],
    metrics: &Metrics,
    proxying: &Proxying,
) -> Vec<ServedFamily> {
    let observer = NftablesMetrics::register(metrics);
    let take_overs = TakeOvers::new(config, Leftovers::OtherModes, families);
    let family = |family: &IpFamily| match family {
        IpFamily::V4 => proxying.beside(served::<V4>(observer(*family), &take_overs)),
        IpFamily::V6 => proxying.beside(served::<V6>(observer(*family), &take_overs)),
    };
    families.iter().map(family).collect()
}

fn served<F: Family>(observer: NftablesMetrics, take_overs: &TakeOvers) -> FamilyMode<F, Backend<F>> {
    let open: OpenTarget<NftablesTarget> = Arc::new(open::<F>);
    FamilyMode {
        planner: Backend::new(Config::default()),
        meter: Some(open.clone()),
        open,
        watch: Some(Box::new(move |touches| spawn_watch(move || watch(F::FAMILY.into(), &touches)))),
        flows: Some(Arc::new(|| Ok(Box::new(kernel::Flows::open()?)))),
        take_over: Some(take_overs.of(F::FAMILY)),
        observer: Box::new(observer),
        family: PhantomData,
    }
}

/// A family's table, for this mode and those that have it beneath.
pub(super) fn open<F: Family>() -> Result<NftablesTarget, NetlinkError> {
    let kernel = kernel::Nftables::open()?.expecting(backend_nftables::slot_keys);
    Ok(NftablesTarget::new(F::FAMILY.into(), Box::new(kernel)))
}

/// Passes on what others do to a family's table, for as long as somebody wants to know.
pub(super) fn watch(own: nft::Family, touches: &Touches) {
    loop {
        let failed = match kernel::TableWatch::open(backend_nftables::table_name()) {
            Ok(mut watch) => loop {
                match watch.wait() {
                    Ok(kernel::ForeignChange { family, what }) => {
                        if family.is_none_or(|family| family == own) && !touches.tell(what) {
                            return;
                        }
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        warn!(error = %failed, "changes of the rules can't be watched; trying again");
        std::thread::sleep(AGAIN_PAUSE);
    }
}

/// The first kernel whose `nf_tables` has all that the rules use (upstream's limit, too).
const NFTABLES_KERNEL: (u32, u32) = (5, 13);
/// Set, and not empty: don't look at the kernel's version.
const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// Why this host's kernel can't run the mode. One that does not tell its version gets its chance.
pub(super) fn unusable() -> Option<String> {
    if std::env::var_os(SKIP_KERNEL_CHECK).is_some_and(|value| !value.is_empty()) {
        return None;
    }
    too_old(&host::kernel_release(&Root::default())?)
}

/// Why a kernel is too old, given its release, such as `6.1.0-18-amd64`.
fn too_old(release: &str) -> Option<String> {
    let (needed_major, needed_minor) = NFTABLES_KERNEL;
    (host::kernel_version(release)? < NFTABLES_KERNEL)
        .then(|| format!("it needs Linux {needed_major}.{needed_minor} and this is {release} (set {SKIP_KERNEL_CHECK} to try)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_13_are_too_old() {
        for release in ["5.13.0", "5.13-rc1", "6.1.0-18-amd64", "10.0", "strange"] {
            assert_eq!(too_old(release), None, "{release}");
        }
        for release in ["5.12.19", "4.19.0-20-cloud-amd64", "5.4"] {
            assert!(too_old(release).is_some(), "{release}");
        }
    }
}
