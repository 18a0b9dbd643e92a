//! How rules tell packets apart that look alike: settings that backends share.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Family, Frontend};

/// What one family's rules depend on besides frontends. A mode leaves aside what does not concern it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSettings {
    /// On which of the node's addresses node ports are served.
    pub node_ports: NodePortAddresses,
    /// Serve node ports on loopback addresses too, for the node's own processes. Only IPv4: the kernel does not send a
    /// packet whose source was `::1`. It needs the sysctl `net.ipv4.conf.*.route_localnet`, and the rules keep others
    /// away from what that would open.
    pub localhost_node_ports: bool,
    /// How packets from pods are told from others; `None`: not at all, so that `UnlessFromPod` never masquerades
    /// (upstream's behaviour without a local detector).
    pub pods: Option<PodSource>,
    /// Masquerade all traffic to cluster IPs, also from pods (`masqueradeAll`).
    pub masquerade_all: bool,
    /// Ranges that cluster IPs are allocated from, of the family: new flows to their addresses that no Service has are
    /// dropped. Empty: unknown, nothing is dropped.
    pub service_cidrs: Vec<IpNet>,
    /// What chooses endpoints.
    pub balancer: Balancer,
    /// The node's primary address of the family, where HNS serves and its endpoints have to know it.
    pub node_address: Option<IpAddr>,
    /// The packet mark bit, as a mask, that carries "to be masqueraded" from the nat chains to postrouting.
    pub masquerade_mark: u32,
}

/// Upstream's default `iptablesMasqueradeBit` is 14.
const DEFAULT_MASQUERADE_MARK: u32 = 1 << 14;

impl Default for RuleSettings {
    fn default() -> Self {
        Self {
            node_ports: NodePortAddresses::All,
            localhost_node_ports: false,
            pods: None,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            balancer: Balancer::Rules,
            node_address: None,
            masquerade_mark: DEFAULT_MASQUERADE_MARK,
        }
    }
}

/// What chooses endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// The rules themselves.
    Rules,
    /// Virtual servers of IPVS, except for internal traffic that takes a short cut. Their addresses are the host's own.
    Ipvs {
        /// Addresses that the node has besides, of the family: what listens at them stays open even if a Service has one of
        /// them too.
        node_addresses: Vec<IpAddr>,
        /// Services of which proxies on this node have flows of TCP and UDP ahead of virtual servers, for as long as they hold a lease
        /// on it.
        proxied: Option<Proxied>,
    },
    /// Proxies on this node for TCP and UDP of these Services, for as long as they hold a lease on it; the rules themselves for all
    /// else, and whenever there is no lease.
    Proxies(Proxied),
    /// Rules of others, as those of iptables are. These ones do nothing but hand flows of TCP and UDP of these Services to proxies on
    /// this node, ahead of the others and for as long as there is a lease.
    OtherRules(Proxied),
}

/// Services whose flows proxies are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// All.
    All,
    /// Those that ask for it.
    Asking,
}

impl Proxied {
    /// Whether a frontend's Service is one of them.
    pub const fn has<F: Family>(self, frontend: &Frontend<F>) -> bool {
        match self {
            Self::All => true,
            Self::Asking => frontend.proxying.is_some(),
        }
    }
}

impl Balancer {
    /// Whether rules lead to endpoints of all pools.
    pub const fn has_rules_for_all(&self) -> bool {
        match self {
            Self::Rules | Self::Proxies(_) => true,
            Self::Ipvs { .. } | Self::OtherRules(_) => false,
        }
    }

    /// The Services whose flows proxies are to have.
    pub const fn proxied(&self) -> Option<Proxied> {
        match self {
            Self::Rules => None,
            Self::Ipvs { proxied, .. } => *proxied,
            Self::Proxies(proxied) | Self::OtherRules(proxied) => Some(*proxied),
        }
    }

    /// Whether proxies are to have the flows of a frontend.
    pub const fn leaves_to_proxies<F: Family>(&self, frontend: &Frontend<F>) -> bool {
        match self.proxied() {
            Some(proxied) => proxied.has(frontend),
            None => false,
        }
    }
}

/// `nodePortAddresses`. Whether loopback addresses are among them is a setting of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every local address.
    All,
    /// Local addresses in these ranges; none when empty. Ranges of the other family are ignored.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The ranges of a family, sorted; `None` for "all".
    pub fn ranges<F: Family>(&self) -> Option<Vec<IpNet>> {
        match self {
            Self::All => None,
            Self::Within(ranges) => {
                let own = ranges.iter().filter(|range| F::owns(range));
                let mut ranges: Vec<IpNet> = own.copied().collect();
                ranges.sort_unstable();
                ranges.dedup();
                if ranges.iter().any(|range| range.prefix_len() == 0) { None } else { Some(ranges) }
            }
        }
    }
}

/// How a packet from a pod is recognised (`detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// By its source address (`ClusterCIDR`, `NodeCIDR`).
    Cidr(IpNet),
    /// By the interface that it arrives on (`BridgeInterface`).
    Interface(String),
    /// By the beginning of that interface's name (`InterfaceNamePrefix`).
    InterfacePrefix(String),
}

/// How much of what is in the kernel a repair may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Only what differs.
    Difference,
    /// Everything of ours is written anew, as atomically as the kernel allows. The way out when a difference was refused.
    Rebuild,
}
