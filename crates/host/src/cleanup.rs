//! Removing what upstream's kube-proxy left behind in other modes, and what we would leave.
//!
//! # Order
//!
//! This comes *after* our own rules are complete, so that no packet ever meets a moment without any. While both are there,
//! nothing is translated twice: the kernel gives a flow one destination and one source translation, by whoever comes first
//! (`nf_nat_inet_fn` of `net/netfilter/nf_nat_core.c`), which at the same priority is the chain that was made last
//! (`nf_hook_entries_grow` of `net/netfilter/core.c`), of whichever mode. A flow that one of the two
//! marks for masquerading is masqueraded by the other as well, since the mark is the same. What iptables' filter chains
//! refuse are packets that still have a Service's address at that point, hence none that either has translated.
//! Established flows no longer ask any rule, so they survive.
//!
//! 1. IPVS and its device: a virtual server sees only packets that our rules have not taken, but the device makes every
//!    virtual address local to the host. It goes before the filter rules that shield the host's own ports from it.
//! 2. Rules: each table goes from old to new in one step. The order of tables is [`::cleanup::upstream::Table::ALL`], and why. In
//!    `nf_tables` all tables of a family go at once.
//! 3. Sets, which the rules have referred to.
//!
//! From mode ipvs to mode iptables virtual servers and their device go first ([`clean_up_servers`]), while the table that marks
//! and masquerades what they direct is still there.
//!
//! From mode nftables to mode iptables ([`clean_up_nftables`]) the table goes in two steps: first the chains that choose
//! endpoints, then the rest. Its postrouting knows by address which flows of an endpoint come back to itself, and does not
//! mark them: a packet for which it has chosen has to find it still there, or its flow would never be masqueraded.

mod compat;
mod error;
mod ipvs;
mod legacy;
mod lock;
mod sockets;

use std::thread;
use std::time::Duration;

use kernel::Nftables;
use nft::{Family, Kernel as _, Name, Op, Transaction};

use crate::file::Root;

pub use error::CleanupError;

/// What came of a clean-up.
#[derive(Debug, Default)]
pub struct Report {
    /// What is gone.
    pub removed: Vec<Removed>,
    /// Chains of upstream's that foreign rules need, which therefore stay.
    pub kept: Vec<String>,
    /// What could not be removed. Nothing keeps the rest from being tried.
    pub failures: Vec<CleanupError>,
}

/// Things that are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Where they were, such as `table ip nat of iptables-legacy`.
    pub from: String,
    /// Names, such as `chain KUBE-SERVICES`.
    pub items: Vec<String>,
}

impl Report {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.failures.is_empty()
    }

    /// This one and then another.
    #[must_use]
    pub fn and(mut self, next: Self) -> Self {
        self.removed.extend(next.removed);
        self.kept.extend(next.kept);
        self.failures.extend(next.failures);
        self
    }

    fn fail(&mut self, error: CleanupError) {
        self.failures.push(error);
    }

    fn removed(&mut self, from: impl Into<String>, items: Vec<String>) {
        if !items.is_empty() {
            self.removed.push(Removed { from: from.into(), items });
        }
    }
}

/// Removes what modes `iptables` and `ipvs` left in the network namespace of the calling thread. To be called when our own
/// rules are complete. Loads no module, and makes no table, that is not in use.
pub fn clean_up_other_modes(root: &Root) -> Report {
    let mut report = Report::default();
    ipvs::remove_servers(root, &mut report);
    for family in Family::ALL {
        legacy::clean(root, family, &mut report);
    }
    for family in Family::ALL {
        compat::clean(family, &mut report);
    }
    ipvs::remove_sets(root, &mut report);
    report
}

/// Removes the virtual servers that mode `ipvs` left, ours or upstream's, and their device: for a mode whose rules, complete by now,
/// direct new flows before IPVS sees them.
pub fn clean_up_servers(root: &Root) -> Report {
    let mut report = Report::default();
    ipvs::remove_servers(root, &mut report);
    report
}

/// Removes all rules of modes `iptables` and `ipvs`, and the sets that they referred to: for a mode that takes virtual servers
/// over.
pub fn clean_up_iptables(root: &Root) -> Report {
    let mut report = Report::default();
    for family in Family::ALL {
        legacy::clean(root, family, &mut report);
        compat::clean(family, &mut report);
    }
    ipvs::remove_sets(root, &mut report);
    report
}

/// Removes one family's rules of modes `iptables` and `ipvs`, and nothing else: for when its own rules are complete, and those of
/// the other family are not. To be called only where [`is_ipvs_left`] says no, or where
/// what it tells of is taken over.
pub fn clean_up_rules(root: &Root, family: Family) -> Report {
    let mut report = Report::default();
    legacy::clean(root, family, &mut report);
    compat::clean(family, &mut report);
    report
}

/// Whether mode `ipvs` has left its device. If that can't be told, too.
pub fn is_ipvs_left() -> bool {
    ipvs::is_left()
}

/// Time for packets that are between a choice of endpoint and postrouting to get there, which takes microseconds, and for endpoints
/// to answer what they were sent last.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// Removes what mode `nftables` left in these families, ours or upstream's: the tables of this name, of which `choosing` are the
/// chains that choose endpoints. To be called when their rules of mode `iptables` are complete.
pub fn clean_up_nftables(own_table: &Name, choosing: &[Name], families: &[Family]) -> Report {
    let delete = |name: &Name| Op::DeleteChain(name.clone());
    let no_choice: Vec<Op> = choosing.iter().map(delete).collect();
    // What goes wrong here goes wrong with the whole table too, which tells it.
    let chosen = families
        .iter()
        .filter(|family| matches!(change_table(**family, own_table, no_choice.clone()), Ok(true)));
    if chosen.count() > 0 {
        thread::sleep(IN_FLIGHT);
    }
    let mut report = Report::default();
    delete_tables(own_table, families, &mut report);
    report
}

/// `--cleanup`: removes what any mode left, our own tables (and upstream's of the same name) included.
pub fn clean_up_all(root: &Root, own_tables: &[Name]) -> Report {
    let report = clean_up_other_modes(root);
    own_tables.iter().fold(report, |report, table| report.and(clean_up_tables(table, &Family::ALL)))
}

/// Removes the tables of this name in these families.
pub fn clean_up_tables(table: &Name, families: &[Family]) -> Report {
    let mut report = Report::default();
    delete_tables(table, families, &mut report);
    report
}

fn delete_tables(table: &Name, families: &[Family], report: &mut Report) {
    for &family in families {
        match change_table(family, table, vec![Op::DeleteTable]) {
            Ok(true) => report.removed("nftables", vec![format!("table {family} {table}")]),
            Ok(false) => {}
            Err(source) => report.fail(CleanupError::OwnTable { family, table: table.clone(), source }),
        }
    }
}

/// Deletes a table of ours, or chains of it; false if something of that was not there.
fn change_table(family: Family, table: &Name, ops: Vec<Op>) -> Result<bool, netlink::NetlinkError> {
    /// `ENOENT`
    const NO_SUCH: i32 = 2;
    let transaction = Transaction { ops, ..Transaction::new(family, table.clone()) };
    match Nftables::open()?.apply(&transaction) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(NO_SUCH) => Ok(false),
        Err(error) => Err(error),
    }
}
