//! What iptables-legacy does to forwarded packets that no rule of its accepts.

use cleanup::legacy::{Info, forward_drops};
use kernel::Xtables;
use nft::Family;

use crate::file::Root;

/// The families in which chain FORWARD of table `filter` of iptables-legacy has the policy DROP. Tables that nobody has used in
/// this network namespace are not looked at, since that would make them; nor are those that can't be read.
pub fn legacy_forward_drops(root: &Root) -> Vec<String> {
    let families = [
        ("IPv4", Family::Ip, "proc/thread-self/net/ip_tables_names"),
        ("IPv6", Family::Ip6, "proc/thread-self/net/ip6_tables_names"),
    ];
    let drops = |family: Family, path: &str| {
        let names = std::fs::read_to_string(root.path(path)).ok()?;
        if !names.lines().any(|name| name == TABLE) {
            return None;
        }
        let xtables = Xtables::open(family).ok()?;
        let info = Info::parse(&xtables.info(TABLE).ok()?);
        forward_drops(family, &info, &xtables.entries(TABLE, info.size).ok()?)
    };
    let dropping = families.into_iter().filter(|(_, family, path)| drops(*family, path) == Some(true));
    dropping.map(|(family, ..)| family.to_owned()).collect()
}

const TABLE: &str = "filter";
