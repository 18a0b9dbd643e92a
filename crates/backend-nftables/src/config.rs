//! What the fixed part of the ruleset depends on.

use ipnet::IpNet;
use model::{NodePortAddresses, PodSource};

/// Settings of one family's ruleset. A change of it changes chains, never elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
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
    /// The packet mark bit, as a mask, that carries "to be masqueraded" from the nat chains to postrouting.
    pub masquerade_mark: u32,
}

/// Upstream's default `iptablesMasqueradeBit` is 14.
pub(crate) const DEFAULT_MASQUERADE_MARK: u32 = 1 << 14;

impl Default for Config {
    fn default() -> Self {
        Self {
            node_ports: NodePortAddresses::All,
            localhost_node_ports: false,
            pods: None,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            masquerade_mark: DEFAULT_MASQUERADE_MARK,
        }
    }
}
