//! What looks wrong about the settings once the Node is known. Pure.
//!
//! Source: `checkBadConfig` and `checkBadIPConfig` in upstream's `cmd/kube-proxy/app/server.go`. Nothing is said about
//! `nodePortAddresses: primary`, which is never wrong here: a family without address serves no node ports.

use std::net::IpAddr;

use agent::{NodePorts, Pods};
use ipnet::IpNet;
use model::{IpFamily, Node};

/// The settings that are looked at.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    /// The families that this host can serve.
    pub(crate) families: Vec<IpFamily>,
    /// `detectLocalMode`.
    pub(crate) pods: Pods,
    /// `clusterCIDR`, whatever `detectLocalMode` is.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    /// `nodePortAddresses`.
    pub(crate) node_ports: NodePorts,
    /// `ipvs.excludeCIDRs`.
    pub(crate) ipvs_exclude_cidrs: Vec<IpNet>,
    /// Names and addresses of the listeners: `healthzBindAddress`, `metricsBindAddress`.
    pub(crate) listeners: Vec<(&'static str, IpAddr)>,
}

/// What looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Somebody should know.
    Doubt(String),
    /// It can't work.
    Fatal(String),
}

/// The node's primary family: that of its first address; IPv4 without any.
pub(crate) fn primary_family(node: &Node) -> IpFamily {
    node.addresses.first().map_or(IpFamily::V4, |addr| IpFamily::of(*addr))
}

/// What looks wrong on this node.
pub(crate) fn check(checked: &Checked, node: &Node) -> Vec<Finding> {
    let primary = primary_family(node);
    if !checked.families.contains(&primary) {
        return vec![Finding::Fatal(format!("no support for primary IP family \"{primary}\""))];
    }
    let node_ports = node_port_finding(checked, node, primary);
    node_ports.into_iter().chain(mismatches(checked, node, primary)).collect()
}

/// Node ports that are open where nobody may have meant them to be.
fn node_port_finding(checked: &Checked, node: &Node, primary: IpFamily) -> Option<Finding> {
    let NodePorts::Within(ranges) = &checked.node_ports else { return None };
    let other = other(primary);
    let lists = [&checked.cluster_cidrs, ranges, &checked.ipvs_exclude_cidrs, &node.pod_cidrs.to_vec()];
    let is_dual_stack = lists.iter().any(|list| has(list, primary) && has(list, other));
    let text = if ranges.is_empty() {
        "nodePortAddresses is empty, so node ports are open on all addresses; consider \"primary\"".to_owned()
    } else if !has(ranges, primary) {
        format!(
            "the node is {primary} first, but nodePortAddresses has only {other} ranges, so node ports are open on all \
             its {primary} addresses"
        )
    } else if is_dual_stack && !has(ranges, other) {
        format!(
            "the cluster seems to be dual-stack, but nodePortAddresses has only {primary} ranges, so node ports are open \
             on all {other} addresses"
        )
    } else {
        return None;
    };
    Some(Finding::Doubt(text))
}

/// Settings all of whose entries are of the family that is not the primary one.
fn mismatches(checked: &Checked, node: &Node, primary: IpFamily) -> Vec<Finding> {
    let is_single_stack = checked.families.len() == 1;
    let by_cluster = matches!(checked.pods, Pods::ClusterCidr(_));
    let text = |what: &str| format!("the node is {primary} first, but {what} has only {}", other(primary));
    let finding = |what: &str, is_fatal: bool| {
        if is_fatal { Finding::Fatal(text(what)) } else { Finding::Doubt(text(what)) }
    };
    let is_other = |ranges: &[IpNet]| !ranges.is_empty() && !has(ranges, primary);
    let mut findings = Vec::new();
    if is_other(&checked.cluster_cidrs) {
        findings.push(finding("clusterCIDR", by_cluster && is_single_stack));
    }
    if is_other(&node.pod_cidrs) {
        findings.push(finding("the Node's podCIDRs", checked.pods == Pods::NodeCidr));
    }
    if is_single_stack && is_other(&checked.ipvs_exclude_cidrs) {
        findings.push(finding("ipvs.excludeCIDRs", false));
    }
    let of_other = |addr: &IpAddr| !addr.is_unspecified() && IpFamily::of(*addr) != primary;
    let listeners = checked.listeners.iter().filter(|(_, addr)| is_single_stack && of_other(addr));
    findings.extend(listeners.map(|(name, _)| finding(name, false)));
    findings
}

fn has(ranges: &[IpNet], family: IpFamily) -> bool {
    ranges.iter().any(|range| IpFamily::of(range.addr()) == family)
}

fn other(family: IpFamily) -> IpFamily {
    match family {
        IpFamily::V4 => IpFamily::V6,
        IpFamily::V6 => IpFamily::V4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ObjectName;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: ObjectName::new("", "node-1"),
            zone: None,
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            pod_cidrs: nets(pod_cidrs).into(),
            is_deleting: false,
            is_scaled_down: false,
            taints: Box::default(),
        }
    }

    fn sound() -> Checked {
        Checked {
            families: IpFamily::ALL.to_vec(),
            pods: Pods::ClusterCidr(Vec::new()),
            cluster_cidrs: Vec::new(),
            node_ports: NodePorts::Primary,
            ipvs_exclude_cidrs: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// `F` for what is fatal, `D` for a doubt, and words that must occur in the texts.
    #[track_caller]
    fn expect(checked: &Checked, node: &Node, expected: &[(char, &str)]) {
        let found = check(checked, node);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, (kind, words)) in found.iter().zip(expected) {
            let (found_kind, text) = match found {
                Finding::Doubt(text) => ('D', text),
                Finding::Fatal(text) => ('F', text),
            };
            assert!(found_kind == *kind && text.contains(words), "{found:?} is not {kind} {words}");
        }
    }

    const V4: &[&str] = &["192.168.0.1"];
    const V6_FIRST: &[&str] = &["fd00::1", "192.168.0.1"];

    #[test]
    fn defaults_are_sound_on_any_node() {
        for addresses in [V4, V6_FIRST, &[]] {
            expect(&sound(), &node(addresses, &[]), &[]);
        }
    }

    #[test]
    fn a_primary_family_that_the_host_lacks_is_fatal() {
        let checked = Checked { families: vec![IpFamily::V4], ..sound() };
        expect(&checked, &node(V6_FIRST, &[]), &[('F', "no support for primary IP family \"IPv6\"")]);
        expect(&checked, &node(V4, &[]), &[]);
    }

    #[test]
    fn open_node_ports_are_doubted() {
        let with = |ranges: &[&str]| Checked { node_ports: NodePorts::Within(nets(ranges)), ..sound() };
        expect(&with(&[]), &node(V4, &[]), &[('D', "is empty")]);
        expect(&with(&["10.0.0.0/8"]), &node(V4, &[]), &[]);
        expect(&with(&["10.0.0.0/8"]), &node(V4, &["10.1.0.0/24", "fd00::/64"]), &[('D', "dual-stack")]);
        let cluster = Checked { cluster_cidrs: nets(&["10.1.0.0/16", "fd00::/56"]), ..with(&["10.0.0.0/8"]) };
        expect(&cluster, &node(V4, &[]), &[('D', "all IPv6 addresses")]);
        expect(&with(&["fd00::/8"]), &node(V4, &[]), &[('D', "only IPv6")]);
        expect(&with(&["fd00::/8", "10.0.0.0/8"]), &node(V4, &["10.1.0.0/24", "fd00::/64"]), &[]);
    }

    #[test]
    fn pods_of_the_other_family_alone_are_fatal_where_they_count() {
        let cluster = Checked { cluster_cidrs: nets(&["fd00::/56"]), ..sound() };
        expect(&cluster, &node(V4, &[]), &[('D', "clusterCIDR")]);
        let single = Checked { families: vec![IpFamily::V4], ..cluster };
        expect(&single, &node(V4, &[]), &[('F', "clusterCIDR")]);
        let by_node = Checked { pods: Pods::NodeCidr, ..single };
        expect(&by_node, &node(V4, &[]), &[('D', "clusterCIDR")]);
        expect(&by_node, &node(V4, &["fd00::/64"]), &[('D', "clusterCIDR"), ('F', "podCIDRs")]);
        expect(&sound(), &node(V4, &["fd00::/64"]), &[('D', "podCIDRs")]);
        expect(&sound(), &node(V4, &["10.1.0.0/24", "fd00::/64"]), &[]);
    }

    #[test]
    fn listeners_and_exclusions_count_only_on_single_stack_hosts() {
        let checked = Checked {
            ipvs_exclude_cidrs: nets(&["fd00::/64"]),
            listeners: vec![
                ("healthzBindAddress", "::1".parse().unwrap()),
                ("metricsBindAddress", "::".parse().unwrap()),
            ],
            ..sound()
        };
        expect(&checked, &node(V4, &[]), &[]);
        let single = Checked { families: vec![IpFamily::V4], ..checked };
        expect(&single, &node(V4, &[]), &[('D', "ipvs.excludeCIDRs"), ('D', "healthzBindAddress")]);
    }
}
