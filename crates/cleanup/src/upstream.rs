//! The names that upstream's kube-proxy uses: chains, the jumps to them, sets, the device.
//!
//! From `CleanupLeftovers` of `pkg/proxy/iptables` and `pkg/proxy/ipvs` at v1.36. Chains of the kubelet (`KUBE-FIREWALL`,
//! `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`) are deliberately not here.

use std::fmt;

/// A table of iptables that kube-proxy writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Choice of endpoints, masquerading.
    Nat,
    /// Refusals.
    Filter,
    /// Holds nothing but a canary.
    Mangle,
}

impl Table {
    /// All, in the order in which they are to be cleaned.
    ///
    /// `nat` first: as long as its old rules are there, they translate new flows, with endpoints that grow stale. Rules of
    /// `filter` without those of `nat` do no harm: they refuse or drop only packets that still have a Service's address
    /// behind the choice of endpoints, which our own table refuses too, and accept marked ones.
    pub const ALL: [Self; 3] = [Self::Nat, Self::Filter, Self::Mangle];

    /// The table's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Mangle => "mangle",
        }
    }

    /// Reverse of [`Table::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.as_str() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A rule that does nothing but jump, to whatever packet or to the first of each flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump<'a> {
    /// The built-in chain that the rule is in.
    pub from: &'a str,
    /// The chain that it jumps to.
    pub to: &'a str,
    /// The rule's comment.
    pub comment: &'a str,
    /// Only packets in conntrack state NEW.
    pub only_new: bool,
}

const NAT_CHAINS: [&str; 7] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
];
/// Beginnings of the names of chains for a Service or an endpoint.
const NAT_PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-"];
const FILTER_CHAINS: [&str; 10] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Whether a chain with this name is kube-proxy's.
pub fn is_chain(table: Table, name: &str) -> bool {
    match table {
        Table::Nat => {
            NAT_CHAINS.contains(&name) || NAT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        }
        Table::Filter => FILTER_CHAINS.contains(&name),
        Table::Mangle => name == "KUBE-PROXY-CANARY",
    }
}

/// Whether kube-proxy writes exactly this rule.
pub fn is_jump(table: Table, jump: &Jump<'_>) -> bool {
    match table {
        Table::Nat => NAT_JUMPS.contains(jump),
        Table::Filter => FILTER_JUMPS.contains(jump),
        Table::Mangle => false,
    }
}

const fn every(from: &'static str, to: &'static str, comment: &'static str) -> Jump<'static> {
    Jump { from, to, comment, only_new: false }
}

const fn first(from: &'static str, to: &'static str, comment: &'static str) -> Jump<'static> {
    Jump { from, to, comment, only_new: true }
}

const PORTALS: &str = "kubernetes service portals";
const EXTERNAL: &str = "kubernetes externally-visible service portals";
const FIREWALL: &str = "kubernetes load balancer firewall";
const IPVS_FIREWALL: &str = "kube-proxy firewall rules";
const IPVS_ACCESS: &str = "kubernetes ipvs access filter";

const NAT_JUMPS: [Jump<'static>; 3] = [
    every("OUTPUT", "KUBE-SERVICES", PORTALS),
    every("PREROUTING", "KUBE-SERVICES", PORTALS),
    every("POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
];

const FILTER_JUMPS: [Jump<'static>; 14] = [
    first("INPUT", "KUBE-EXTERNAL-SERVICES", EXTERNAL),
    first("FORWARD", "KUBE-EXTERNAL-SERVICES", EXTERNAL),
    every("INPUT", "KUBE-NODEPORTS", "kubernetes health check service ports"),
    first("FORWARD", "KUBE-SERVICES", PORTALS),
    first("OUTPUT", "KUBE-SERVICES", PORTALS),
    every("FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
    first("INPUT", "KUBE-PROXY-FIREWALL", FIREWALL),
    first("OUTPUT", "KUBE-PROXY-FIREWALL", FIREWALL),
    first("FORWARD", "KUBE-PROXY-FIREWALL", FIREWALL),
    // Mode ipvs; its jump to KUBE-FORWARD is the one above.
    every("INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    every("INPUT", "KUBE-PROXY-FIREWALL", IPVS_FIREWALL),
    every("FORWARD", "KUBE-PROXY-FIREWALL", IPVS_FIREWALL),
    every("INPUT", "KUBE-IPVS-FILTER", IPVS_ACCESS),
    every("OUTPUT", "KUBE-IPVS-OUT-FILTER", IPVS_ACCESS),
];

/// The device that holds all virtual addresses in mode ipvs.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Sets of mode ipvs, without what tells the families apart.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// `IPSET_MAXNAMELEN` less the final zero, to which upstream cuts the names of IPv6's sets.
const MAX_SET_NAME: usize = 31;

/// Sets of mode ipvs that hold node ports, with the number of the protocol.
pub const NODE_PORT_SETS: [(&str, u8); 6] = [
    ("KUBE-NODE-PORT-TCP", 6),
    ("KUBE-NODE-PORT-UDP", 17),
    ("KUBE-NODE-PORT-SCTP-HASH", 132),
    ("KUBE-6-NODE-PORT-TCP", 6),
    ("KUBE-6-NODE-PORT-UDP", 17),
    ("KUBE-6-NODE-PORT-SCTP-HASH", 132),
];

/// Names of the ipsets of mode ipvs, of both families.
pub fn ipsets() -> Vec<String> {
    let v4 = SETS.iter().map(|name| format!("KUBE-{name}"));
    let v6 = SETS.iter().map(|name| {
        let mut name = format!("KUBE-6-{name}");
        name.truncate(MAX_SET_NAME);
        name
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_the_kubelet_and_of_others_are_not_kube_proxys() {
        for name in
            ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-MARK-DROP", "KUBE-XYZ"]
        {
            for table in Table::ALL {
                assert!(!is_chain(table, name), "{table} {name}");
            }
        }
        assert!(is_chain(Table::Nat, "KUBE-SEP-SXIVWICOYRO3J4NJ"));
        assert!(!is_chain(Table::Filter, "KUBE-SEP-SXIVWICOYRO3J4NJ"));
        assert!(is_chain(Table::Mangle, "KUBE-PROXY-CANARY"));
        assert!(!is_chain(Table::Mangle, "KUBE-SERVICES"));
    }

    #[test]
    fn a_jump_counts_only_with_its_comment_and_its_state() {
        let jump = first("FORWARD", "KUBE-SERVICES", PORTALS);
        assert!(is_jump(Table::Filter, &jump));
        assert!(!is_jump(Table::Filter, &Jump { only_new: false, ..jump }));
        assert!(!is_jump(Table::Filter, &Jump { comment: "", ..jump }));
        assert!(!is_jump(Table::Nat, &jump));
        let in_nat = Jump { from: "PREROUTING", only_new: false, ..jump };
        assert!(is_jump(Table::Nat, &in_nat));
    }

    #[test]
    fn set_names_of_ipv6_are_cut() {
        let names = ipsets();
        assert_eq!(names.len(), 34);
        assert!(names.contains(&"KUBE-6-LOAD-BALANCER-SOURCE-CID".to_owned()), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= MAX_SET_NAME));
        assert!(NODE_PORT_SETS.iter().all(|(name, _)| names.iter().any(|known| known == name)));
    }
}
