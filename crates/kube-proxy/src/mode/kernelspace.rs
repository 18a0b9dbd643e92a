//! Mode kernelspace: load balancers of HNS. It knows HNS by its trait alone, so that tests run it on any system.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use ::mode::{Touches, Unobserved};
use agent::{FamilyMode, ServedFamily, with_causes};
use anyhow::Context as _;
use backend_kernelspace::{Activity, Adapters, HnsTarget, KernelspacePlanner, Options, Watcher};
use hcn::Hcn;
use model::{Family, IpFamily, V4, V6};
use tracing::{info, warn};

use crate::watching::spawn_watch;

/// The way to HNS, and what else of the host is needed.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Another connection to HNS.
    pub(crate) open: Arc<dyn Fn() -> Box<dyn Hcn> + Send + Sync>,
    /// The node's adapters.
    pub(crate) adapters: Adapters,
}

/// The network's name: that of the configuration, else that of the variable `KUBE_NETWORK`, as upstream has it.
///
/// # Errors
/// Neither says it.
pub(crate) fn network_name(configured: Option<&str>, variable: Option<String>) -> anyhow::Result<String> {
    let name = configured.map(str::to_owned).or(variable);
    name.filter(|name| !name.is_empty())
        .context("network name not specified: set winkernel.networkName or KUBE_NETWORK")
}

/// What serves these families; load balancers are counted each `period`.
pub(crate) fn serve(
    options: Options,
    period: Duration,
    families: &[IpFamily],
    connection: &Connection,
) -> Vec<ServedFamily> {
    if !options.dsr {
        info!(
            "without winkernel.enableDSR, flows of local pods take ports of the dynamic range, which may run out"
        );
    }
    let activities = families.iter().map(|_| Activity::default()).collect();
    let shared = Shared { options: Arc::new(options), period, connection: connection.clone(), activities };
    let family = |(n, family): (usize, &IpFamily)| match family {
        IpFamily::V4 => ServedFamily::new(shared.served::<V4>(n)),
        IpFamily::V6 => ServedFamily::new(shared.served::<V6>(n)),
    };
    families.iter().enumerate().map(family).collect()
}

/// What families have in common.
struct Shared {
    options: Arc<Options>,
    period: Duration,
    connection: Connection,
    /// Of each family: what one does is nobody else's doing for the other.
    activities: Vec<Activity>,
}

impl Shared {
    fn served<F: Family>(&self, n: usize) -> FamilyMode<F, KernelspacePlanner<F>> {
        let (options, period, activity) = (self.options.clone(), self.period, self.activities[n].clone());
        let (connection, watched) = (self.connection.clone(), self.connection.open.clone());
        let activities = self.activities.clone();
        FamilyMode {
            planner: KernelspacePlanner::new(options.clone()),
            open: Arc::new(move || {
                let target =
                    HnsTarget::new((connection.open)(), options.clone(), connection.adapters.clone());
                Ok(target.telling(activity.clone()))
            }),
            // HNS counts nothing that could be told apart by Service.
            meter: None,
            watch: Some(Box::new(move |touches| {
                spawn_watch(move || watch(Watcher::new(watched(), activities.clone()), period, &touches));
            })),
            // Flows are VFP's, which ends them itself.
            flows: None,
            take_over: None,
            observer: Box::new(Unobserved),
            family: PhantomData,
        }
    }
}

/// Looks which load balancers and networks there are, for as long as somebody wants to know what others do to them.
fn watch(mut watcher: Watcher, period: Duration, touches: &Touches) {
    loop {
        std::thread::sleep(period);
        match watcher.has_changed() {
            Ok(false) => {}
            Ok(true) if touches.tell("networks or load balancers are other ones") => {}
            Ok(true) => return,
            Err(error) => {
                warn!(err = with_causes(&error), retryingTime = ?period, "load balancers can't be counted");
            }
        }
    }
}

#[cfg(test)]
mod tests;
