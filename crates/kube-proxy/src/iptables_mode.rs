//! `iptables` mode: what the host has to have, and the way to the kernel.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{ForeignChange, KernelAccess, NodePorts, Settings};
use anyhow::Context as _;
use backend_iptables::{CANARY, Iptables};
use ipnet::{IpNet, Ipv4Net};
use kernel::iptables::{Programs, Tables, wait_for_flush};
use model::IpFamily;
use nft::{Kernel as _, Op, Transaction};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{info, warn};

/// The programs of each family that can be served.
type Families = BTreeMap<IpFamily, Programs>;

/// Sees what the host can do and sets it up. A family whose programs do not work is left out of the settings.
///
/// # Errors
/// No family can be served, or a sysctl can't be set.
pub(crate) fn prepare(settings: &mut Settings) -> anyhow::Result<(Iptables, KernelAccess<Iptables>)> {
    let mut families = Families::new();
    let mut failed = None;
    for family in &settings.families {
        match Programs::find(*family) {
            Ok(programs) => {
                info!(ipFamily = %family, version = %programs.version, "iptables works");
                families.insert(*family, programs);
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
    if settings.families.contains(&IpFamily::V4)
        && settings.localhost_node_ports
        && includes_loopback(settings)
    {
        allow_localhost().context("set up node ports on localhost")?;
    }
    let mode = Iptables { drop_invalid: !tracks_liberally() };
    Ok((mode, kernel_access(families, settings.sync_period)))
}

/// Whether loopback addresses of IPv4 are among those that serve node ports.
fn includes_loopback(settings: &Settings) -> bool {
    let loopback = IpNet::from(Ipv4Net::new_assert([127, 0, 0, 0].into(), 8));
    match &settings.node_ports {
        NodePorts::Primary => false,
        NodePorts::Within(ranges) => {
            let mut own = ranges.iter().filter(|range| range.addr().is_ipv4()).peekable();
            own.peek().is_none() || own.any(|range| range.contains(&loopback) || loopback.contains(range))
        }
    }
}

/// Has the kernel send packets from loopback addresses to elsewhere, which masquerading gives another source. Left alone if it
/// is so already, since the file may be read-only then.
fn allow_localhost() -> anyhow::Result<()> {
    const PATH: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
    if std::fs::read_to_string(PATH).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(PATH, "1").with_context(|| format!("write {PATH}"))
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
            remove_nftables_mode(&watched);
            for (family, programs) in watched.iter() {
                let (family, tables, foreign) = (*family, Tables::new(programs.clone()), foreign.clone());
                let started = std::thread::Builder::new()
                    .name("watch".into())
                    .spawn(move || watch(family, &tables, interval, &foreign));
                if let Err(error) = started {
                    warn!(%error, "a flush of the rules is noticed only by audits");
                }
            }
        }),
    }
}

/// Tells when somebody has emptied tables, for as long as somebody wants to know.
fn watch(family: IpFamily, tables: &Tables, interval: Duration, foreign: &UnboundedSender<ForeignChange>) {
    loop {
        wait_for_flush(interval, |table| tables.has_rules(table, CANARY), std::thread::sleep);
        let family = match family {
            IpFamily::V4 => nft::Family::Ip,
            IpFamily::V6 => nft::Family::Ip6,
        };
        if foreign.send(ForeignChange { family: Some(family), what: "a canary is gone" }).is_err() {
            return;
        }
        // Until then the rules are there again.
        std::thread::sleep(interval);
    }
}

/// Removes what `nftables` mode left, now that it is replaced.
fn remove_nftables_mode(families: &Families) {
    const ENOENT: i32 = 2;
    for family in families.keys() {
        let family = match family {
            IpFamily::V4 => nft::Family::Ip,
            IpFamily::V6 => nft::Family::Ip6,
        };
        let mut transaction = Transaction::new(family, backend_nftables::table_name());
        transaction.ops.push(Op::DeleteTable);
        let outcome = kernel::Nftables::open().and_then(|mut kernel| kernel.apply(&transaction));
        match outcome {
            Ok(_) => info!(family = family.as_str(), "removed the table of nftables mode"),
            Err(error) if error.errno() == Some(ENOENT) => {}
            Err(error) => warn!(%error, "the table of nftables mode can't be removed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranges: &[&str], expected: bool) {
        let ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
        let settings = Settings { node_ports: NodePorts::Within(ranges), ..Settings::new("node".into()) };
        assert_eq!(includes_loopback(&settings), expected);
    }

    #[test]
    fn loopback_is_served_where_the_ranges_have_it() {
        check(&[], true);
        check(&["0.0.0.0/0"], true);
        check(&["127.0.0.1/32"], true);
        check(&["192.168.0.0/16", "127.0.0.0/8"], true);
        check(&["192.168.0.0/16"], false);
        check(&["fd00::/8"], true);
        assert!(!includes_loopback(&Settings::new("node".into())));
    }
}
