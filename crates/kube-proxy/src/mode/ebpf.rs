//! Mode ebpf: programs that translate at the socket, over the complete table of mode nftables.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use ::mode::{OpenTarget, Rule, Touch, Touches};
use agent::{FamilyMode, OpenConntrack, ServedFamily, Settings, with_causes};
use backend_ebpf::{Condition, EbpfPlanner, EbpfTarget, Options, PLACE, SocketPath, Statistics, share};
use backend_nftables::{Backend, NftablesTarget};
use config::Config;
use host::Root;
use kernel::{Bpf, Endings, FastPathPlace, KernelFastPath};
use metrics::{EbpfMetrics, Metrics};
use model::{Family, FrontendKey, IpFamily, V4, V6};
use tracing::{info, warn};

use super::nftables;
use super::userspace::Proxying;
use crate::limits::Limits;
use crate::platform;
use crate::takeover::{Leftovers, TakeOvers};
use crate::watching::spawn_watch;

/// What serves these families.
pub(super) fn serve(
    config: &Config,
    settings: &Settings,
    families: &[IpFamily],
    (metrics, limits): (&Metrics, &Limits),
    proxying: &Proxying,
) -> Vec<ServedFamily> {
    let observer = EbpfMetrics::register(metrics);
    let take_overs = TakeOvers::new(config, Leftovers::OtherModes, families).but_fast_path();
    let ebpf = &config.ebpf;
    let place = FastPathPlace { cgroup_root: ebpf.cgroup_root.clone(), bpffs: ebpf.bpffs.clone() };
    let namespaces = ebpf.udp.then(|| ebpf.netns_dir.clone());
    let shared = Shared {
        place,
        namespaces,
        options: options(),
        period: settings.sync_period,
        limits: limits.clone(),
    };
    let family = |family: &IpFamily| match family {
        IpFamily::V4 => proxying.beside(shared.served::<V4>(observer(*family), &take_overs)),
        IpFamily::V6 => proxying.beside(shared.served::<V6>(observer(*family), &take_overs)),
    };
    families.iter().map(family).collect()
}

/// NFS, SMB, iSCSI, and Ceph's monitors.
const KERNEL_CLIENTS: [u16; 5] = [2049, 445, 3260, 6789, 3300];
/// The first kernel whose own clients keep the Service's address (commit 0bdf399342c5). Older ones that have it by a backport are
/// left out too: it costs them only speed.
const CLIENTS_KEEP_ADDRESS: (u32, u32) = (6, 6);

fn options() -> Options {
    let version = host::kernel_release(&Root::default()).and_then(|release| host::kernel_version(&release));
    let is_new = version.is_some_and(|version| version >= CLIENTS_KEEP_ADDRESS);
    let excluded_ports = if is_new { BTreeSet::new() } else { BTreeSet::from(KERNEL_CLIENTS) };
    Options { excluded_ports, datagrams: false }
}

/// What both families have.
struct Shared {
    place: FastPathPlace,
    /// Where namespaces of pods have names, if UDP is asked for.
    namespaces: Option<PathBuf>,
    options: Options,
    /// `syncPeriod`: how often the programs are proven.
    period: Duration,
    limits: Limits,
}

type SharedPath<F> = Arc<Mutex<SocketPath<F>>>;

impl Shared {
    fn served<F: Family>(
        &self,
        metrics: EbpfMetrics,
        take_overs: &TakeOvers,
    ) -> FamilyMode<F, EbpfPlanner<F, Backend<F>>> {
        let datagrams = self.proven_endings::<F>();
        metrics.udp.set(i64::from(datagrams.is_some()));
        let path = self.path::<F>(datagrams.is_some(), metrics.clone());
        let options = Options { datagrams: datagrams.is_some(), ..self.options.clone() };
        let (opened, explained, watched, period) = (path.clone(), path.clone(), path, self.period);
        let rules = Backend::new(backend_nftables::Config::default());
        let open: OpenTarget<EbpfTarget<F, NftablesTarget>> =
            Arc::new(move || Ok(EbpfTarget::new(nftables::open::<F>()?, opened.clone())));
        FamilyMode {
            planner: EbpfPlanner::new(rules, options, Box::new(move |key| explain(&explained, key))),
            meter: Some(open.clone()),
            open,
            watch: Some(Box::new(move |touches| {
                let of_rules = touches.clone();
                let table = backend_nftables::table_name();
                spawn_watch(move || nftables::watch(&table, F::FAMILY.into(), &of_rules));
                spawn_watch(move || watch(&watched, period, &touches));
            })),
            flows: Some(Self::flows(datagrams, &metrics)),
            take_over: Some(take_overs.of(F::FAMILY)),
            observer: Box::new(metrics),
            family: PhantomData,
        }
    }

    fn path<F: Family>(&self, has_datagrams: bool, metrics: EbpfMetrics) -> SharedPath<F> {
        let place = self.place.clone();
        let open = move || {
            let opened = KernelFastPath::<F>::open(place.clone(), Bpf::default())?;
            let opened = if has_datagrams { opened.with_datagrams()? } else { opened };
            Ok(Box::new(opened) as Box<dyn ebpf::FastPath<F>>)
        };
        share(SocketPath::new(
            Box::new(open),
            Box::new(addresses),
            Box::new(tell(F::FAMILY, metrics, self.limits.clone())),
        ))
    }

    /// What ends connected sockets of UDP. Without that UDP is left to the rules: such a socket would send
    /// to an endpoint that is gone for as long as its program likes.
    fn proven_endings<F: Family>(&self) -> Option<Arc<Endings>> {
        match Endings::proven::<F>(&self.place.bpffs, self.namespaces.as_ref()?) {
            Ok(endings) => Some(Arc::new(endings)),
            Err(error) => {
                let why = with_causes(&error);
                warn!(ipFamily = %F::FAMILY, why, "UDP is not served at the socket; the rules serve it");
                None
            }
        }
    }

    /// Tracked flows, and sockets beside them.
    fn flows(endings: Option<Arc<Endings>>, metrics: &EbpfMetrics) -> OpenConntrack {
        let ended = metrics.ended_sockets.clone();
        Arc::new(move || {
            let flows = Box::new(kernel::FlowsAndOwnSockets::open()?);
            let Some(endings) = endings.clone() else { return Ok(flows) };
            let ended = ended.clone();
            let tell = Box::new(move |count| ended.inc_by(count));
            Ok(Box::new(kernel::FlowsAndSockets::new(flows, endings, tell)))
        })
    }
}

/// The node's own addresses.
fn addresses() -> Result<BTreeSet<IpAddr>, String> {
    let found = platform::addresses().map_err(|errno| format!("read the node's addresses: {errno}"))?;
    Ok(found.map(|(_, address)| address).collect())
}

/// Sets the metrics after each work, and logs what is news.
fn tell(family: IpFamily, metrics: EbpfMetrics, limits: Limits) -> impl Fn(&Condition, &Statistics) + Send {
    let last = Mutex::new((None::<Condition>, Statistics::default()));
    move |condition, statistics| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.active.set(i64::from(*condition == Condition::On));
        metrics.frontends.set(i64::try_from(statistics.frontends).unwrap_or(i64::MAX));
        metrics.map_writes.inc_by(statistics.writes - last.1.writes);
        metrics.map_rebuilds.inc_by(statistics.rebuilds - last.1.rebuilds);
        metrics.divergences.inc_by(statistics.divergences - last.1.divergences);
        if last.0.as_ref() != Some(condition) {
            let what = format!("translation at the socket, {family}");
            match condition {
                Condition::On => {
                    limits.note(&what, None);
                    let took_us = u64::try_from(statistics.took.as_micros()).unwrap_or(u64::MAX);
                    info!(ipFamily = %family, frontends = statistics.frontends, took_us, "connections are translated at the socket");
                }
                Condition::Off(why) => {
                    limits.note(&what, Some(why.clone()));
                    warn!(ipFamily = %family, why, "nothing is translated at the socket; the rules serve");
                }
            }
        }
        *last = (Some(condition.clone()), *statistics);
    }
}

/// The element of a frontend as it is in the map now. The event loop does not wait for work on the maps.
fn explain<F: Family>(path: &SharedPath<F>, key: &FrontendKey<F>) -> Vec<Rule> {
    let text = match path.try_lock() {
        Ok(mut path) => match path.explain(key) {
            Ok(Some(found)) => {
                let endpoint = |endpoint: &Option<ebpf::Endpoint<F>>| match endpoint {
                    Some(endpoint) => SocketAddr::new(endpoint.address.into(), endpoint.port).to_string(),
                    None => "left to the rules".to_owned(),
                };
                let endpoints: Vec<String> = found.endpoints.iter().map(endpoint).collect();
                format!("{} -> {}", found.value, endpoints.join(", "))
            }
            Ok(None) => return Vec::new(),
            Err(error) => format!("can't be read: {}", with_causes(&error)),
        },
        Err(TryLockError::WouldBlock) => "can't be read while the maps are written".to_owned(),
        Err(TryLockError::Poisoned(_)) => return Vec::new(),
    };
    vec![Rule { place: PLACE.to_owned(), text }]
}

/// Proves the programs now and then, for as long as somebody wants to know what others do to them.
fn watch<F: Family>(path: &SharedPath<F>, period: Duration, touches: &Touches) {
    loop {
        std::thread::sleep(period);
        let looked = {
            let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
            // What is off is tried again by the planner.
            if path.is_known() { path.look() } else { Condition::On }
        };
        if let Condition::Off(_) = looked
            && !touches.tell(Touch::Foreign("programs at the socket do not run as they should"))
        {
            return;
        }
    }
}
