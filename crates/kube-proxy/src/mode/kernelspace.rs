//! Mode kernelspace: load balancers of HNS. It knows HNS by its trait alone, so that tests run it on any system.

use std::marker::PhantomData;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ::mode::{Touch, Touches, Unobserved};
use agent::{FamilyMode, ServedFamily, with_causes};
use anyhow::Context as _;
use backend_kernelspace::{Activity, Adapters, Doing, HnsTarget, KernelspacePlanner, Options, Watcher};
use hcn::{Event, Hcn};
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
    /// Has HNS tell what happens, for as long as what is given back lives; `None`: it can't now.
    pub(crate) subscribe: Subscribe,
}

/// Where notifications of HNS go, on threads of HNS'.
pub(crate) type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// See [`Connection::subscribe`].
pub(crate) type Subscribe = Arc<dyn Fn(Listener) -> Option<Box<dyn Send>> + Send + Sync>;

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
        let (connection, watched) = (self.connection.clone(), self.connection.clone());
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
                spawn_watch(move || {
                    let watcher = Watcher::new((watched.open)(), activities.clone());
                    watch(watcher, period, &watched.subscribe, &touches);
                });
            })),
            // Flows are VFP's, which ends them itself.
            flows: None,
            take_over: None,
            observer: Box::new(Unobserved),
            family: PhantomData,
        }
    }
}

/// What comes within this time of a notification is taken in together with it.
const SETTLE: Duration = Duration::from_millis(100);

/// Passes on what HNS tells, and looks which load balancers and networks there are, since it does not tell of all, for as long as
/// somebody wants to know what others do.
fn watch(mut watcher: Watcher, period: Duration, subscribe: &Subscribe, touches: &Touches) {
    let (sender, events) = mpsc::channel();
    let mut subscription = None;
    loop {
        if subscription.is_none() {
            let sender = sender.clone();
            subscription = subscribe(Box::new(move |event| {
                // Nobody may listen any more.
                let _result = sender.send(event);
            }));
        }
        let touched = match events.recv_timeout(period) {
            Ok(first) => {
                std::thread::sleep(SETTLE);
                let all: Vec<Event> = std::iter::once(first).chain(events.try_iter()).collect();
                if all.contains(&Event::ServiceGone) {
                    subscription = None;
                }
                all.into_iter().find_map(meaning).map(Touch::Surroundings)
            }
            Err(_) => look(&mut watcher, period),
        };
        if touched.is_some_and(|touch| !touches.tell(touch)) {
            return;
        }
    }
}

fn meaning(event: Event) -> Option<&'static str> {
    match event {
        Event::NetworkCreated => Some("a network was made"),
        Event::NetworkDeleted => Some("a network was deleted"),
        Event::EndpointAttached => Some("an endpoint was attached"),
        Event::EndpointDetached => Some("an endpoint was detached"),
        Event::ServiceGone => Some("HNS went away"),
        Event::Other(_) => None,
    }
}

fn look(watcher: &mut Watcher, period: Duration) -> Option<Touch> {
    match watcher.look() {
        Ok(Some(Doing::Deleted)) => Some(Touch::Foreign("a load balancer is gone")),
        Ok(Some(Doing::Other)) => Some(Touch::Surroundings("networks or load balancers are other ones")),
        Ok(None) => None,
        Err(error) => {
            warn!(err = with_causes(&error), retryingTime = ?period, "load balancers can't be counted");
            None
        }
    }
}

#[cfg(test)]
#[path = "kernelspace/tests.rs"]
mod tests;
