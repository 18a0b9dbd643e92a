//! Mode iptables: what the host has to have, and the agent's access to the kernel.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{ForeignChange, KernelAccess, Settings};
use anyhow::Context as _;
use backend_iptables::{CANARY, Iptables, presence};
use kernel::iptables::{Programs, Tables, wait_for_loss};
use model::IpFamily;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

use crate::takeover;

/// The programs of each family that can be served.
type Families = BTreeMap<IpFamily, Programs>;

/// Sees what the host can do. A family whose programs do not work is left out of the settings.
///
/// # Errors
/// No family can be served.
pub(crate) async fn prepare(settings: &mut Settings) -> anyhow::Result<(Iptables, KernelAccess<Iptables>)> {
    let mut families = Families::new();
    let mut failed = None;
    let wanted = settings.families.clone();
    let find = || wanted.into_iter().map(|family| (family, Programs::find(family))).collect::<Vec<_>>();
    // Programs are run, which may take long where somebody else holds their lock.
    for (family, programs) in tokio::task::spawn_blocking(find).await.context("look for iptables")? {
        match programs {
            Ok(programs) => {
                info!(ipFamily = %family, version = %programs.version, "iptables works");
                families.insert(family, programs);
            }
            Err(error) => {
                info!(ipFamily = %family, %error, "no support for this IP family");
                failed = Some(error);
            }
        }
    }
    if let (true, Some(error)) = (families.is_empty(), failed) {
        return Err(error).context("iptables is not available on this host");
    }
    settings.families.retain(|family| families.contains_key(family));
    let mode = Iptables { drop_invalid: !tracks_liberally() };
    Ok((mode, kernel_access(families, settings.sync_period)))
}

/// Whether connection tracking takes packets out of their window for valid; read once, as upstream does.
fn tracks_liberally() -> bool {
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

fn kernel_access(families: Families, interval: Duration) -> KernelAccess<Iptables> {
    let families = Arc::new(families);
    let watched = families.clone();
    KernelAccess {
        open: Arc::new(move |family| match families.get(&family) {
            Some(programs) => Ok(Box::new(Tables::new(programs.clone()))),
            None => Err(iptables::IptablesError::Unsupported {
                program: "iptables".into(),
                message: format!("{family} is not served"),
            }),
        }),
        open_conntrack: Arc::new(|| Ok(Box::new(kernel::Flows::open()?))),
        watch: Box::new(move |foreign| {
            for (family, programs) in watched.iter() {
                let (family, tables, foreign) = (*family, Tables::new(programs.clone()), foreign.clone());
                let started = std::thread::Builder::new()
                    .name("watch".into())
                    .spawn(move || watch(family, &tables, interval, &foreign));
                if let Err(error) = started {
                    warn!(%error, "what others do to the rules is noticed only by audits");
                }
            }
        }),
        synced: Box::new(takeover::start_from_nftables),
    }
}

/// Tells when somebody has emptied tables or deleted jumps, for as long as somebody wants to know.
fn watch(family: IpFamily, tables: &Tables, interval: Duration, foreign: &UnboundedSender<ForeignChange>) {
    let (presence, mut checked) = (presence(), tables.clone());
    loop {
        let has_canary = |table| tables.has_rules(table, CANARY);
        wait_for_loss(interval, || checked.hold(&presence), has_canary, std::thread::sleep);
        let family = match family {
            IpFamily::V4 => nft::Family::Ip,
            IpFamily::V6 => nft::Family::Ip6,
        };
        if foreign.send(ForeignChange { family: Some(family), what: "a canary or a jump is gone" }).is_err() {
            return;
        }
        // Until then the rules are there again.
        std::thread::sleep(interval);
    }
}
