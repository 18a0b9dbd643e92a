//! Leaving nothing behind of what other modes, or upstream's kube-proxy, did on this node; and giving up the privileges
//! that only the start needs.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use agent::{OldRulesGone, TakeOver, with_causes};
use anyhow::Context as _;
use backend_nftables::hand_over;
use config::Config;
use ebpf::FastPathRemoval;
use host::{Report, Root};
use model::IpFamily;
use nft::Kernel as _;
use tracing::{debug, error, info, warn};

use crate::mode;

/// Pauses before another attempt at what could not be removed. After the last one it stays until the next start.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];

/// What a mode removes once its own rules are complete.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leftovers {
    /// What modes iptables and ipvs left.
    OtherModes,
    /// What mode iptables left, and what mode ipvs of upstream's needed it for; virtual servers and their device are taken over.
    Iptables,
    /// The tables of modes nftables and ipvs, and the latter's virtual servers, for a mode whose own rules are iptables'.
    OtherThanIptables {
        /// Flows are handed to workers, by a table that mode iptables alone has.
        has_workers: bool,
    },
}

/// The take-overs of all families. Each removes its own family's leftovers, so that none waits for another; the last one removes
/// what is no one family's.
pub(crate) struct TakeOvers {
    leftovers: Leftovers,
    /// Where mode ebpf has its programs; `None`: they stay.
    fast_path: Option<PathBuf>,
    /// Families whose rules are not complete.
    incomplete: Arc<Mutex<BTreeSet<IpFamily>>>,
}

impl TakeOvers {
    /// For these families. Programs at the socket go as well: once the rules of all families are complete, nothing is translated
    /// there any more; what shows connected sockets where they wanted to go stays a while longer.
    pub(crate) fn new(config: &Config, leftovers: Leftovers, families: &[IpFamily]) -> Self {
        let incomplete = families.iter().copied().collect();
        let fast_path = Some(config.ebpf.bpffs.clone());
        Self { leftovers, fast_path, incomplete: Arc::new(Mutex::new(incomplete)) }
    }

    /// The same, for the mode whose programs those are.
    pub(crate) fn but_fast_path(self) -> Self {
        Self { fast_path: None, ..self }
    }

    /// That of a family: begins on a thread of its own when it is called.
    pub(crate) fn of(&self, family: IpFamily) -> TakeOver {
        let (leftovers, incomplete, fast_path) =
            (self.leftovers, self.incomplete.clone(), self.fast_path.clone());
        Box::new(move |gone| {
            let is_last = {
                let mut incomplete = incomplete.lock().unwrap_or_else(PoisonError::into_inner);
                incomplete.remove(&family);
                incomplete.is_empty()
            };
            spawn(move || clean_up_leftovers(leftovers, family, is_last), gone);
            if let Some(bpffs) = fast_path.filter(|_| is_last) {
                spawn_removal(bpffs);
            }
        })
    }
}

fn clean_up_leftovers(leftovers: Leftovers, family: IpFamily, is_last: bool) -> Report {
    let report = clean_up_rules(leftovers, family, is_last);
    if matches!(leftovers, Leftovers::OtherThanIptables { has_workers: true }) {
        return report;
    }
    let own = [nft::Family::from(family)];
    let families = if is_last { &nft::Family::ALL[..] } else { &own };
    report.and(host::clean_up_tables(&backend_nftables::workers_table_name(), families))
}

fn clean_up_rules(leftovers: Leftovers, family: IpFamily, is_last: bool) -> Report {
    let (root, family) = (Root::default(), nft::Family::from(family));
    let (table, choosing) = (backend_nftables::table_name(), backend_nftables::choosing_chains());
    let report = match (leftovers, is_last) {
        (Leftovers::OtherModes, true) => host::clean_up_other_modes(&root),
        // The rules shield the host's ports from what mode ipvs left, which is of both families.
        (Leftovers::OtherModes | Leftovers::OtherThanIptables { .. }, false) if host::is_ipvs_left() => {
            Report::default()
        }
        (Leftovers::OtherModes | Leftovers::Iptables, false) => host::clean_up_rules(&root, family),
        (Leftovers::Iptables, true) => host::clean_up_iptables(&root),
        (Leftovers::OtherThanIptables { .. }, true) => {
            host::clean_up_servers(&root).and(host::clean_up_nftables(&table, &choosing, &nft::Family::ALL))
        }
        (Leftovers::OtherThanIptables { .. }, false) => host::clean_up_nftables(&table, &choosing, &[family]),
    };
    report.and(host::clean_up_tables(&hand_over::table_name(), &[family]))
}

fn spawn(clean_up: impl Fn() -> Report + Send + 'static, gone: OldRulesGone) {
    let work = move || take_over(clean_up, &gone);
    if let Err(error) = thread::Builder::new().name("takeover".into()).spawn(work) {
        warn!(%error, "what other modes left can't be removed");
    }
}

fn take_over(clean_up: impl Fn() -> Report, gone: &OldRulesGone) {
    let mut pauses = PAUSES.into_iter();
    loop {
        let report = clean_up();
        log_removed(&report);
        // If nobody listens any more, the program ends.
        let listening = report.removed.is_empty() || gone();
        if report.failures.is_empty() || !listening {
            return;
        }
        let retry_in = pauses.next();
        for failure in &report.failures {
            warn!(err = with_causes(failure), ?retry_in, "what another mode left can't be removed");
        }
        match retry_in {
            Some(pause) => thread::sleep(pause),
            None => return,
        }
    }
}

/// `--cleanup`: removes everything that any mode has left, our own rules included. Tries everything, and fails if
/// something stays.
pub(crate) fn clean_up(config: &Config) -> anyhow::Result<()> {
    let own_tables =
        [backend_nftables::table_name(), backend_nftables::workers_table_name(), hand_over::table_name()];
    let report = host::clean_up_all(&Root::default(), &own_tables);
    log_removed(&report);
    for failure in &report.failures {
        error!(err = with_causes(failure), "could not be removed");
    }
    let is_fast_path_gone = remove_fast_path(&config.ebpf.bpffs, FastPathRemoval::Everything);
    let behind = report.failures.len() + usize::from(!is_fast_path_gone);
    anyhow::ensure!(behind == 0, "{behind} things stay behind");
    Ok(())
}

/// How long copies may serve.
const LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// `--hand-over`: has copies of our tables serve, and removes the tables, so that upstream's kube-proxy finds none. A table of that name that is
/// not ours is left alone.
pub(crate) fn hand_over(config: &Config, lease: Duration) -> anyhow::Result<()> {
    anyhow::ensure!(LEASES.contains(&lease), "--hand-over: {lease:?} is not between a second and an hour");
    for family in nft::Family::ALL {
        hand_over_family(family, lease).with_context(|| format!("hand table {family} kube-proxy over"))?;
    }
    let is_fast_path_gone = remove_fast_path(&config.ebpf.bpffs, FastPathRemoval::Translation);
    anyhow::ensure!(is_fast_path_gone, "programs of mode ebpf stay");
    Ok(())
}

fn hand_over_family(family: nft::Family, lease: Duration) -> anyhow::Result<()> {
    let table = backend_nftables::table_name();
    let mut kernel = kernel::Nftables::open()?.expecting(backend_nftables::slot_keys);
    let Some(found) = kernel.read(family, &table)?.whole()?.filter(hand_over::is_ours) else {
        info!(%family, "there is no table of ours");
        return Ok(());
    };
    let lease_secs = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
    kernel.apply(&hand_over::hand_over(family, &found, lease_secs)?)?;
    let mut report = host::clean_up_tables(&table, &[family]);
    if let Some(failure) = report.failures.pop() {
        return Err(failure.into());
    }
    info!(%family, ?lease, "what our table did is done by its copy");
    Ok(())
}

/// How long connected sockets show where they wanted to go, after mode ebpf was left.
const SHOWN_FOR: Duration = Duration::from_mins(10);

fn spawn_removal(bpffs: PathBuf) {
    let work = move || {
        let mut pauses = PAUSES.into_iter();
        while !remove_fast_path(&bpffs, FastPathRemoval::Translation) {
            let Some(pause) = pauses.next() else { return };
            thread::sleep(pause);
        }
        thread::sleep(SHOWN_FOR);
        remove_fast_path(&bpffs, FastPathRemoval::Everything);
    };
    if let Err(error) = thread::Builder::new().name("takeover".into()).spawn(work) {
        warn!(%error, "programs of mode ebpf can't be removed");
    }
}

/// False if something stays.
fn remove_fast_path(bpffs: &Path, what: FastPathRemoval) -> bool {
    match kernel::remove_fast_path(bpffs, what) {
        Ok(removed) if removed.is_empty() => true,
        Ok(removed) => {
            info!(items = removed.len(), "removed programs and maps of mode ebpf");
            debug!(items = removed.join(", "), "removed");
            true
        }
        Err(error) => {
            warn!(err = with_causes(&error), "programs or maps of mode ebpf stay");
            false
        }
    }
}

/// Keeps only the capabilities that are needed as long as the program runs. To be called before there is a second thread.
pub(crate) fn give_up_privileges(config: &Config) {
    for failure in host::drop_privileges(mode::privilege(config)) {
        debug!(err = with_causes(&failure), "a privilege stays");
    }
}

fn log_removed(report: &Report) {
    for removed in &report.removed {
        info!(from = removed.from, items = removed.items.len(), "removed what another mode left");
        debug!(from = removed.from, items = removed.items.join(", "), "removed");
    }
    for chain in &report.kept {
        info!(chain, "stays, because rules of others need it");
    }
}
