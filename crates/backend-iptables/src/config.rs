//! What the ruleset depends on besides Services.

use model::{Family, IpFamily, NodePortAddresses, PodSource};

/// Settings of one family's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// On which of the node's addresses node ports are served.
    pub node_ports: NodePortAddresses,
    /// `iptables.localhostNodePorts`: serve node ports on loopback addresses too, as far as they are among `node_ports`. Only
    /// IPv4: the kernel does not send a packet whose source was `::1`. It needs the sysctl
    /// `net.ipv4.conf.all.route_localnet`, and the rules keep others away from what that would open.
    pub localhost_node_ports: bool,
    /// How packets from pods are told from others; `None`: not at all, so that `UnlessFromPod` never masquerades
    /// (upstream's behaviour without a local detector).
    pub pods: Option<PodSource>,
    /// Masquerade all traffic to cluster IPs, also from pods (`masqueradeAll`).
    pub masquerade_all: bool,
    /// The packet mark bit, as a mask, that carries "to be masqueraded" to postrouting.
    pub masquerade_mark: u32,
    /// Discard forwarded packets that connection tracking calls invalid: they would reach a client untranslated, who would
    /// reset its connection. Not wanted where the kernel tracks TCP liberally (`nf_conntrack_tcp_be_liberal`).
    pub drop_invalid: bool,
}

/// Upstream's default `iptablesMasqueradeBit` is 14.
const DEFAULT_MASQUERADE_MARK: u32 = 1 << 14;

impl Default for Config {
    fn default() -> Self {
        Self {
            node_ports: NodePortAddresses::All,
            localhost_node_ports: false,
            pods: None,
            masquerade_all: false,
            masquerade_mark: DEFAULT_MASQUERADE_MARK,
            drop_invalid: true,
        }
    }
}

impl Config {
    /// Whether a family serves node ports on loopback addresses.
    pub(crate) fn serves_localhost<F: Family>(&self) -> bool {
        self.localhost_node_ports && F::FAMILY == IpFamily::V4
    }
}
