//! What the operator asked for, and what follows from it together with the Node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::view::{ExternalIps, ThisNode};
use model::{
    Balancer, Family, IpFamily, Name, Node, NodePortAddresses, PodSource, ProxyingRules, RuleSettings,
};

use crate::notice::Notices;

/// The settings of a run.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own; together they are no state")]
pub struct Settings {
    /// The name of this node's Node object, and the `nodeName` of local endpoints.
    pub node_name: Name,
    /// `nodePortAddresses`.
    pub node_ports: NodePorts,
    /// Serve node ports on 127.0.0.0/8 too, for the node's own processes.
    pub localhost_node_ports: bool,
    /// Which `externalIPs` of Services are served.
    pub external_ips: ExternalIps,
    /// Services may ask for connections to endpoints that are gone to be reset.
    pub resets_connections: bool,
    /// HNS serves, as on Windows.
    pub served_by_hns: bool,
    /// Which Services ask for proxies.
    pub proxying: Arc<ProxyingRules>,
    /// `detectLocalMode`: how packets from pods are told from others.
    pub pods: Pods,
    /// `masqueradeAll`: masquerade pods' traffic to cluster IPs too.
    pub masquerade_all: bool,
    /// The packet mark bit for masquerading, as a mask.
    pub masquerade_mark: u32,
    /// `bindAddress`: the node's primary address, whatever the Node object says. An unspecified one says nothing.
    pub bind_address: Option<IpAddr>,
    /// `syncPeriod`: people hear of failing syncs after twice this time.
    pub sync_period: Duration,
    /// `minSyncPeriod`: at most one sync begins in this time, and changes wait for it together. None by default.
    pub min_sync_period: Duration,
    /// Who hears of what people should know.
    pub notices: Notices,
    /// Called when large temporary values have been freed, so that the memory can be given back to the system.
    pub release_memory: fn(),
}

/// `nodePortAddresses`: where node ports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// `primary`: on the Node object's first address of each family. On none while the Node is unknown or has no
    /// address of the family.
    Primary,
    /// On the node's addresses in these ranges.
    Within(Vec<IpNet>),
}

/// `detectLocalMode`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// `ClusterCIDR`: by source address in the first of these ranges of the family; not at all if there is none.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`: by source address in the Node's first pod CIDR of the family.
    NodeCidr,
    /// `BridgeInterface`: by the interface that packets arrive on.
    BridgeInterface(String),
    /// `InterfaceNamePrefix`: by the beginning of that interface's name.
    InterfaceNamePrefix(String),
}

impl Settings {
    /// Upstream's defaults for `nftables` mode, and nobody who hears of anything.
    pub fn new(node_name: Name) -> Self {
        Self {
            node_name,
            node_ports: NodePorts::Primary,
            localhost_node_ports: false,
            external_ips: ExternalIps::All,
            resets_connections: false,
            served_by_hns: false,
            proxying: Arc::default(),
            pods: Pods::ClusterCidr(Vec::new()),
            masquerade_all: false,
            masquerade_mark: 1 << 14,
            bind_address: None,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            notices: Notices::default(),
            release_memory: || {},
        }
    }

    /// What decides about Services on this node, given its Node as far as that is known.
    pub(crate) fn this_node(&self, node: Option<&Node>) -> ThisNode {
        let this_node = ThisNode::new(self.node_name.clone(), node);
        ThisNode {
            external_ips: self.external_ips.clone(),
            resets_connections: self.resets_connections,
            served_by_hns: self.served_by_hns,
            proxying: self.proxying.clone(),
            ..this_node
        }
    }

    /// The rules' settings for one family, given the Node as far as it is known, and the `ServiceCIDR`s.
    pub(crate) fn rules<F: Family>(
        &self,
        node: Option<&Node>,
        service_cidrs: &BTreeSet<IpNet>,
    ) -> RuleSettings {
        RuleSettings {
            service_cidrs: service_cidrs.iter().filter(|range| F::owns(range)).copied().collect(),
            node_ports: NodePortAddresses::Within(self.node_port_ranges::<F>(node)),
            localhost_node_ports: self.localhost_node_ports,
            pods: self.pod_source::<F>(node),
            masquerade_all: self.masquerade_all,
            masquerade_mark: self.masquerade_mark,
            balancer: Balancer::Rules,
            node_address: node
                .filter(|_| self.served_by_hns)
                .and_then(|node| node.primary_address(F::FAMILY)),
        }
    }

    /// The ranges of one family. When ranges were given but none of this family, upstream accepts all its addresses,
    /// and so do we: clusters rely on it (`NodePortAddresses` in `pkg/proxy/util/nodeport_addresses.go`).
    fn node_port_ranges<F: Family>(&self, node: Option<&Node>) -> Vec<IpNet> {
        match &self.node_ports {
            NodePorts::Primary => {
                let primary = node.and_then(|node| node.primary_address(F::FAMILY));
                primary.map(IpNet::from).into_iter().collect()
            }
            NodePorts::Within(ranges) => {
                let own = ranges.iter().filter(|range| F::owns(range));
                let own: Vec<IpNet> = own.copied().collect();
                if own.is_empty() { vec![everything::<F>()] } else { own }
            }
        }
    }

    fn pod_source<F: Family>(&self, node: Option<&Node>) -> Option<PodSource> {
        let first = |ranges: &[IpNet]| ranges.iter().find(|range| F::owns(range)).copied();
        match &self.pods {
            Pods::ClusterCidr(ranges) => first(ranges).map(PodSource::Cidr),
            Pods::NodeCidr => first(&node?.pod_cidrs).map(PodSource::Cidr),
            Pods::BridgeInterface(name) => Some(PodSource::Interface(name.clone())),
            Pods::InterfaceNamePrefix(prefix) => Some(PodSource::InterfacePrefix(prefix.clone())),
        }
    }
}

/// The range of all addresses of a family.
pub(crate) fn everything<F: Family>() -> IpNet {
    match F::FAMILY {
        IpFamily::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        IpFamily::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ObjectName, V4, V6};

    fn settings(node_ports: NodePorts, pods: Pods) -> Settings {
        Settings { node_ports, pods, ..Settings::new("node-1".into()) }
    }

    fn node(addresses: &[&str]) -> Node {
        Node {
            name: ObjectName::new("", "node-1"),
            zone: None,
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            pod_cidrs: ["fd00:10:244::/64", "10.244.0.0/24"].map(|net| net.parse().unwrap()).into(),
            is_deleting: false,
            is_scaled_down: false,
            taints: Box::default(),
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[track_caller]
    fn check_node_ports(setting: NodePorts, node: Option<&Node>, v4: &[&str], v6: &[&str]) {
        let settings = settings(setting, Pods::NodeCidr);
        let expected = |nets: &[&str]| NodePortAddresses::Within(nets.iter().map(|text| net(text)).collect());
        assert_eq!(settings.rules::<V4>(node, &BTreeSet::new()).node_ports, expected(v4));
        assert_eq!(settings.rules::<V6>(node, &BTreeSet::new()).node_ports, expected(v6));
    }

    #[test]
    fn primary_is_the_first_address_of_the_family_or_none() {
        let dual = node(&["192.168.0.7", "192.168.0.8", "fd00::7"]);
        check_node_ports(NodePorts::Primary, Some(&dual), &["192.168.0.7/32"], &["fd00::7/128"]);
        check_node_ports(NodePorts::Primary, Some(&node(&["192.168.0.7"])), &["192.168.0.7/32"], &[]);
        check_node_ports(NodePorts::Primary, None, &[], &[]);
    }

    #[test]
    fn ranges_of_one_family_leave_the_other_unrestricted() {
        check_node_ports(NodePorts::Within(vec![net("10.0.0.0/8")]), None, &["10.0.0.0/8"], &["::/0"]);
    }

    #[test]
    fn service_ranges_are_those_of_the_family() {
        let ranges = BTreeSet::from([net("10.96.0.0/12"), net("fd00:10:96::/112")]);
        let settings = settings(NodePorts::Primary, Pods::NodeCidr);
        assert_eq!(settings.rules::<V4>(None, &ranges).service_cidrs, [net("10.96.0.0/12")]);
        assert_eq!(settings.rules::<V6>(None, &ranges).service_cidrs, [net("fd00:10:96::/112")]);
    }

    #[test]
    fn pods_are_told_by_the_first_range_of_the_family() {
        let ranges = ["10.1.0.0/16", "10.2.0.0/16"].map(net).to_vec();
        let by_cluster = settings(NodePorts::Primary, Pods::ClusterCidr(ranges));
        assert_eq!(
            by_cluster.rules::<V4>(None, &BTreeSet::new()).pods,
            Some(PodSource::Cidr(net("10.1.0.0/16")))
        );
        assert_eq!(by_cluster.rules::<V6>(None, &BTreeSet::new()).pods, None);
        let by_node = settings(NodePorts::Primary, Pods::NodeCidr);
        assert_eq!(by_node.rules::<V6>(None, &BTreeSet::new()).pods, None);
        let pods = by_node.rules::<V6>(Some(&node(&[])), &BTreeSet::new()).pods;
        assert_eq!(pods, Some(PodSource::Cidr(net("fd00:10:244::/64"))));
    }
}
