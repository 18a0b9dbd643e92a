//! Mode ipvs: the kernel's load balancer, a device for its addresses, and a table of `nf_tables` for what it does not do.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use ::mode::{Touch, Touches};
use agent::{FamilyMode, ServedFamily, Settings, with_causes};
use anyhow::Context as _;
use backend_ipvs::{Activity, DEVICE, IpvsPlanner, IpvsTarget, Options, TargetError, Watcher};
use backend_nftables::{Backend, Config as Rules, NftablesTarget};
use config::Config;
use host::Root;
use ipvs::{Devices, Ipvs, Scheduler, Timeouts};
use kernel::{KernelIpvs, VirtualDevice};
use metrics::{IpvsMetrics, Metrics};
use model::{Family, IpFamily, V4, V6};
use tracing::{info, warn};

use super::nftables;
use super::userspace::Proxying;
use crate::limits::Limits;
use crate::prepare;
use crate::takeover::{Leftovers, TakeOvers};
use crate::watching::spawn_watch;

/// Sets what this mode needs on the host, with the privileges that only the start has; has the kernel load what it needs.
///
/// # Errors
/// There is no IPVS, or not this scheduler, or flows can't be tracked.
pub(crate) fn set_host(config: &Config, limits: &Limits) -> anyhow::Result<()> {
    const CANT: &str = "can't use the IPVS proxier";
    let mut ipvs = KernelIpvs::open().context(CANT)?;
    kernel::check_scheduler(&mut ipvs, scheduler(config)?).context(CANT)?;
    let applied = host::apply_ipvs(&Root::default(), config.ipvs.strict_arp).context(CANT)?;
    for (entry, value) in applied.written {
        info!(%entry, value, "Set sysctl");
    }
    for (entry, failure) in applied.warnings {
        warn!(%entry, err = with_causes(&failure), "a setting of the host can't be changed; it stays as it is");
        prepare::note_setting(limits, &failure);
    }
    Ok(())
}

fn scheduler(config: &Config) -> anyhow::Result<Scheduler> {
    Scheduler::new(&config.ipvs.scheduler).context("ipvs.scheduler")
}

fn options(config: &Config) -> anyhow::Result<Options> {
    let seconds = |timeout: Option<Duration>| {
        timeout.map_or(0, |timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX))
    };
    let ipvs = &config.ipvs;
    Ok(Options {
        scheduler: scheduler(config)?,
        timeouts: Timeouts {
            tcp: seconds(ipvs.tcp_timeout),
            tcp_fin: seconds(ipvs.tcp_fin_timeout),
            udp: seconds(ipvs.udp_timeout),
        },
        exclude_cidrs: ipvs.exclude_cidrs.clone(),
    })
}

/// What serves these families.
///
/// # Errors
/// The scheduler's name can't be one.
pub(super) fn serve(
    config: &Config,
    settings: &Settings,
    families: &[IpFamily],
    metrics: &Metrics,
    proxying: &Proxying,
) -> anyhow::Result<Vec<ServedFamily>> {
    let observer = IpvsMetrics::register(metrics);
    let take_overs = TakeOvers::new(config, Leftovers::Iptables, families);
    let shared = Shared { options: Arc::new(options(config)?), period: settings.sync_period };
    let family = |family: &IpFamily| match family {
        IpFamily::V4 => proxying.beside(shared.served::<V4>(observer(*family), &take_overs)),
        IpFamily::V6 => proxying.beside(shared.served::<V6>(observer(*family), &take_overs)),
    };
    Ok(families.iter().map(family).collect())
}

/// What both families have.
struct Shared {
    options: Arc<Options>,
    /// `syncPeriod`: how often virtual servers and addresses are looked at.
    period: Duration,
}

impl Shared {
    fn served<F: Family>(
        &self,
        observer: IpvsMetrics,
        take_overs: &TakeOvers,
    ) -> FamilyMode<F, IpvsPlanner<F, Backend<F>>> {
        let (options, activity, period) = (self.options.clone(), Activity::default(), self.period);
        let (watched, of_meter) = (activity.clone(), options.clone());
        FamilyMode {
            planner: IpvsPlanner::new(Backend::new(Rules::default()), options.clone()),
            open: Arc::new(move || Ok(open(options.clone())?.telling(activity.clone()))),
            meter: Some(Arc::new(move || open(of_meter.clone()))),
            watch: Some(Box::new(move |touches| {
                let of_rules = touches.clone();
                spawn_watch(move || {
                    nftables::watch(&backend_nftables::table_name(), F::FAMILY.into(), &of_rules);
                });
                spawn_watch(move || watch::<F>(&watched, period, &touches));
            })),
            flows: Some(Arc::new(|| Ok(Box::new(kernel::Flows::open()?)))),
            take_over: Some(take_overs.of(F::FAMILY)),
            observer: Box::new(observer),
            family: PhantomData,
        }
    }
}

type RulesError = netlink::NetlinkError;

fn open<F: Family>(options: Arc<Options>) -> Result<IpvsTarget<F, NftablesTarget>, TargetError<RulesError>> {
    let rules = nftables::open::<F>().map_err(|error| TargetError::Rules(Arc::new(error)))?;
    let (ipvs, devices) = open_ipvs()?;
    Ok(IpvsTarget::new(rules, ipvs, devices, options))
}

type Kernel = (Box<dyn Ipvs>, Box<dyn Devices>);

fn open_ipvs<E: std::error::Error>() -> Result<Kernel, TargetError<E>> {
    let ipvs = KernelIpvs::open().map_err(TargetError::Ipvs)?;
    let devices = VirtualDevice::open(DEVICE).map_err(TargetError::Devices)?;
    Ok((Box::new(ipvs), Box::new(devices)))
}

/// Looks at virtual servers and addresses, for as long as somebody wants to know what others do to them.
fn watch<F: Family>(activity: &Activity, period: Duration, touches: &Touches) {
    let mut watcher: Option<Watcher<F>> = None;
    loop {
        std::thread::sleep(period);
        let looked = match &mut watcher {
            Some(watcher) => watcher.has_changed(),
            None => open_ipvs().map(|(ipvs, devices)| {
                watcher = Some(Watcher::new(ipvs, devices, activity.clone()));
                false
            }),
        };
        match looked {
            Ok(false) => {}
            Ok(true) if touches.tell(Touch::Foreign("virtual servers or addresses are other ones")) => {}
            Ok(true) => return,
            Err(error) => {
                watcher = None;
                warn!(err = with_causes(&error), retryingTime = ?period, "virtual servers can't be looked at");
            }
        }
    }
}
