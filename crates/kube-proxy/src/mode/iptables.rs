//! Mode iptables: rules written by iptables' programs.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::mode::{OpenTarget, Touch, Touches, Watch};
use agent::{FamilyMode, ServedFamily, Settings};
use anyhow::Context as _;
use backend_iptables::{CANARY, IptablesPlanner, IptablesTarget, presence};
use backend_nftables::{Backend, NftablesTarget, workers_table_name};
use backend_userspace::{Beside, BesideError, BesideTarget};
use kernel::iptables::{Programs, Tables, wait_for_loss};
use metrics::{IptablesMetrics, Metrics};
use model::{Family, IpFamily, V4, V6};
use tracing::info;

use super::nftables;
use super::userspace::Proxying;
use crate::takeover::{Leftovers, TakeOvers};
use crate::watching::spawn_watch;

/// What serves these families, as far as the host has programs that work for them.
///
/// # Errors
/// No family can be served.
pub(super) async fn serve(
    config: &config::Config,
    settings: &Settings,
    families: Vec<IpFamily>,
    metrics: &Metrics,
    proxying: &Proxying,
) -> anyhow::Result<Vec<ServedFamily>> {
    // Programs are run, which may take long where somebody else holds their lock.
    let find = tokio::task::spawn_blocking(move || working_programs(&families));
    let programs = find.await.context("look for iptables")??;
    let observer = IptablesMetrics::register(metrics);
    let served: Vec<IpFamily> = programs.iter().map(|(family, _)| *family).collect();
    // Of both families: nobody looks after them any more, whether or not there are programs for the family.
    let has_workers = !matches!(proxying, Proxying::Nobody);
    let take_overs = TakeOvers::new(config, Leftovers::OtherThanIptables { has_workers }, &served);
    let shared = Shared { drop_invalid: !tracks_liberally(), period: settings.sync_period };
    let family = |(family, programs): (IpFamily, Programs)| {
        let observer = observer(family);
        match family {
            IpFamily::V4 => beside(proxying, shared.served::<V4>(programs, observer, &take_overs)),
            IpFamily::V6 => beside(proxying, shared.served::<V6>(programs, observer, &take_overs)),
        }
    };
    Ok(programs.into_iter().map(family).collect())
}

/// A family that is served by rules of iptables, and where workers are to be by a table of nftables that hands flows to them.
fn beside<F: Family>(proxying: &Proxying, mode: FamilyMode<F, IptablesPlanner<F>>) -> ServedFamily {
    if matches!(proxying, Proxying::Nobody) {
        return ServedFamily::new(mode);
    }
    let FamilyMode { planner, open, meter, watch, flows, take_over, observer, family } = mode;
    let with_workers = |open: OpenTarget<IptablesTarget>| -> OpenTarget<WithWorkers> {
        Arc::new(move || {
            let workers = nftables::open::<F>().map_err(BesideError::Handing)?.beside_other_rules();
            Ok(BesideTarget::new(open().map_err(BesideError::Choosing)?, workers))
        })
    };
    proxying.beside(FamilyMode {
        planner: Beside::new(planner, Backend::new(backend_nftables::Config::default())),
        open: with_workers(open),
        meter: meter.map(with_workers),
        watch: watch.map(|watch| -> Watch {
            Box::new(move |touches| {
                let of_workers = touches.clone();
                spawn_watch(move || nftables::watch(&workers_table_name(), F::FAMILY.into(), &of_workers));
                watch(touches);
            })
        }),
        flows,
        take_over,
        observer,
        family,
    })
}

type WithWorkers = BesideTarget<IptablesTarget, NftablesTarget>;

/// The programs of each family whose programs work.
fn working_programs(families: &[IpFamily]) -> anyhow::Result<Vec<(IpFamily, Programs)>> {
    let (mut working, mut failed) = (Vec::new(), None);
    for family in families {
        match Programs::find(*family) {
            Ok(programs) => {
                info!(ipFamily = %family, version = %programs.version, "iptables works");
                working.push((*family, programs));
            }
            Err(error) => {
                info!(ipFamily = %family, %error, "no support for this IP family");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if working.is_empty() => Err(error).context("iptables is not available on this host"),
        Some(_) | None => Ok(working),
    }
}

/// Whether connection tracking takes packets out of their window for valid; read once, as upstream does.
fn tracks_liberally() -> bool {
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

/// What both families have.
struct Shared {
    drop_invalid: bool,
    /// `syncPeriod`: how often canaries are looked for.
    period: Duration,
}

impl Shared {
    fn served<F: Family>(
        &self,
        programs: Programs,
        observer: IptablesMetrics,
        take_overs: &TakeOvers,
    ) -> FamilyMode<F, IptablesPlanner<F>> {
        let (period, tables) = (self.period, Tables::new(programs));
        let (watched, counted) = (tables.clone(), tables.clone());
        FamilyMode {
            planner: IptablesPlanner::new(self.drop_invalid),
            open: Arc::new(move || Ok(IptablesTarget(Box::new(tables.clone())))),
            meter: Some(Arc::new(move || Ok(IptablesTarget(Box::new(counted.clone()))))),
            watch: Some(Box::new(move |touches| spawn_watch(move || watch(&watched, period, &touches)))),
            flows: Some(Arc::new(|| Ok(Box::new(kernel::FlowsAndOwnSockets::open()?)))),
            take_over: Some(take_overs.of(F::FAMILY)),
            observer: Box::new(observer),
            family: PhantomData,
        }
    }
}

/// Tells when somebody has emptied tables or deleted jumps, for as long as somebody wants to know.
fn watch(tables: &Tables, period: Duration, touches: &Touches) {
    let (presence, mut checked) = (presence(), tables.clone());
    loop {
        let has_canary = |table| tables.has_rules(table, CANARY);
        wait_for_loss(period, || checked.hold(&presence), has_canary, std::thread::sleep);
        if !touches.tell(Touch::Foreign("a canary or a jump is gone")) {
            return;
        }
        // Until then the rules are there again.
        std::thread::sleep(period);
    }
}
