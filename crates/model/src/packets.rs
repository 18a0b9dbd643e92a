//! How rules tell packets apart that look alike: settings that backends share.

use ipnet::IpNet;

use crate::Family;

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
