//! Mode nftables: a table of `nf_tables` for each family.

use std::marker::PhantomData;
use std::sync::Arc;

use ::mode::{OpenTarget, Touch, Touches};
use agent::{FamilyMode, ServedFamily, with_causes};
use backend_nftables::{Backend, Config, NftablesTarget, trial};
use host::Root;
use metrics::{Metrics, NftablesMetrics};
use model::{Balancer, Family, IpFamily, Proxied, V4, V6};
use netlink::NetlinkError;
use nft::Kernel as _;
use tracing::{debug, warn};

use super::userspace::Proxying;
use crate::takeover::{Leftovers, TakeOvers};
use crate::watching::{AGAIN_PAUSE, spawn_watch};

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
        watch: Some(Box::new(move |touches| {
            spawn_watch(move || watch(&backend_nftables::table_name(), F::FAMILY.into(), &touches));
        })),
        flows: Some(Arc::new(|| Ok(Box::new(kernel::FlowsAndOwnSockets::open()?)))),
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
pub(super) fn watch(table: &nft::Name, own: nft::Family, touches: &Touches) {
    loop {
        let failed = match kernel::TableWatch::open(table.clone()) {
            Ok(mut watch) => loop {
                match watch.wait() {
                    Ok(kernel::ForeignChange { family, what }) => {
                        if family.is_none_or(|family| family == own) && !touches.tell(Touch::Foreign(what)) {
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

/// The oldest kernel that the packet contract is tested with (docs/kernels.md). Older ones are tried.
const TESTED_KERNEL: (u32, u32) = (5, 10);
/// Set, and not empty: don't try the kernel, however old.
const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// Why this host's kernel can't run a mode whose rules leave the choice of endpoints to this balancer. One that is too old to be
/// known is given rules like ours, of which nothing stays.
pub(super) fn unusable(balancer: &Balancer) -> Option<String> {
    if std::env::var_os(SKIP_KERNEL_CHECK).is_some_and(|value| !value.is_empty()) {
        return None;
    }
    let release = host::kernel_release(&Root::default())?;
    if !is_older_than_tested(&release) {
        return None;
    }
    let refused = try_rules::<V4>(balancer).or_else(|| try_rules::<V6>(balancer))?;
    let (major, minor) = TESTED_KERNEL;
    Some(format!(
        "Linux {release}, which is older than {major}.{minor}, refuses rules that it needs: {} (set {SKIP_KERNEL_CHECK} to go on)",
        with_causes(&refused)
    ))
}

/// Tells that nobody knows what this kernel does with rules that it takes.
pub(super) fn tell_if_untested() {
    if let Some(release) =
        host::kernel_release(&Root::default()).filter(|release| is_older_than_tested(release))
    {
        let (major, minor) = TESTED_KERNEL;
        warn!(
            kernel = release,
            "older than Linux {major}.{minor}, the oldest that this program is tested with"
        );
    }
}

/// Why this kernel can't have the table that hands flows to workers beside rules of others, if so.
pub(super) fn no_workers() -> Option<String> {
    let balancer = Balancer::OtherRules(Proxied::All);
    let refused = try_rules::<V4>(&balancer).or_else(|| try_rules::<V6>(&balancer))?;
    Some(format!("the kernel refuses the table of nf_tables that this takes: {}", with_causes(&refused)))
}

/// What the kernel refuses of the rules of a family; `None` also if that can't be told: then the start tells.
fn try_rules<F: Family>(balancer: &Balancer) -> Option<NetlinkError> {
    let mut kernel = kernel::Nftables::open().ok()?;
    let answer = kernel.apply(&trial::trial::<F>(balancer.clone()));
    match trial::refused(answer) {
        Ok(refused) => refused,
        Err(error) => {
            debug!(%error, "whether the kernel takes the rules is not known yet");
            None
        }
    }
}

/// Given a kernel's release, such as `6.1.0-18-amd64`.
fn is_older_than_tested(release: &str) -> bool {
    host::kernel_version(release).is_some_and(|version| version < TESTED_KERNEL)
}

#[cfg(test)]
mod tests {
    use lab::Namespace;

    use super::*;

    #[test]
    fn kernels_before_5_10_are_tried() {
        for release in ["5.10.0-46-cloud-amd64", "5.13-rc1", "6.1.0-18-amd64", "10.0", "strange"] {
            assert!(!is_older_than_tested(release), "{release}");
        }
        for release in ["5.9.19", "4.19.0-20-cloud-amd64", "5.4"] {
            assert!(is_older_than_tested(release), "{release}");
        }
    }

    /// In the real kernel, which takes all that we have; needs root.
    #[test]
    fn a_trial_passes_here_and_leaves_nothing() {
        let host = Namespace::new("host").unwrap();
        let ipvs = |proxied| Balancer::Ipvs { node_addresses: Vec::new(), proxied };
        for balancer in [
            Balancer::Rules,
            Balancer::Proxies(Proxied::All),
            Balancer::OtherRules(Proxied::All),
            ipvs(None),
            ipvs(Some(Proxied::Asking)),
        ] {
            let answer = |tx| host.run(|| kernel::Nftables::open()?.apply(&tx));
            let answers =
                [answer(trial::trial::<V4>(balancer.clone())), answer(trial::trial::<V6>(balancer))];
            for answer in answers {
                assert!(answer.is_err());
                assert!(trial::refused(answer).unwrap().is_none());
            }
        }
        assert_eq!(host.exec("nft", &["list", "ruleset"]).unwrap(), "");
    }
}
