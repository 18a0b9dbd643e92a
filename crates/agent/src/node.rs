//! This node's Node object: what is in force of it, what is worth telling, and how long to wait for it. Pure.
//!
//! Rules are programmed without the Node, and follow when it appears or changes. Only its pod CIDRs are waited for, where
//! they are how pods are recognised: without them, replies to pods would be looked for on the wrong path. Until then the
//! kernel keeps what an earlier process left.

use std::net::IpAddr;
use std::time::Duration;

use model::{Name, Node, ObjectName};
use tokio::time::Instant;

use crate::settings::{Pods, Settings};

/// How long a Node may be without pod CIDRs in `NodeCIDR` mode before the program gives up, so that somebody notices.
/// Upstream waits 30 s for the Node, then 5 min for its pod CIDRs (`NodeManager` in `pkg/proxy/node.go`).
const POD_CIDR_LIMIT: Duration = Duration::from_secs(30 + 5 * 60);

/// The Node has not come, or not with what is needed of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such Node.
    #[error("timeout waiting for node {0:?} to exist")]
    Missing(Name),
    /// It has no `spec.podCIDRs`, and `detectLocalMode` is `NodeCIDR`.
    #[error("timeout waiting for PodCIDR allocation on node {0:?}")]
    NoPodCidr(Name),
}

/// What became of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeNews {
    /// There is none, and there never was.
    Missing,
    /// It is there for the first time.
    Found,
    /// It is not the same as before.
    Changed { addresses: bool, pod_cidrs: bool },
    /// It was deleted. What was known of it stays in force.
    Deleted,
    /// A deleted one is there again, as it was.
    Returned,
}

/// The Node as it is in force.
#[derive(Debug)]
pub(crate) struct NodeState {
    name: Name,
    bind_address: Option<IpAddr>,
    needs_pod_cidrs: bool,
    /// What is in force.
    node: Option<Node>,
    /// Whether that is from the API, and not made of `bindAddress` alone.
    is_found: bool,
    /// Whether the API has it, when it was last looked at.
    exists: Option<bool>,
    /// When it was first looked for.
    sought_since: Option<Instant>,
}

impl NodeState {
    pub(crate) fn new(settings: &Settings) -> Self {
        let bind_address = settings.bind_address.filter(|addr| !addr.is_unspecified());
        Self {
            name: settings.node_name.clone(),
            bind_address,
            needs_pod_cidrs: settings.pods == Pods::NodeCidr,
            // An address that was given needs no Node.
            node: bind_address.map(|addr| only_address(&settings.node_name, addr)),
            is_found: false,
            exists: None,
            sought_since: None,
        }
    }

    /// What is in force: the last Node known, whose first address is `bindAddress` if that was given.
    pub(crate) fn get(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Takes in the Node as the API has it; says if that is news.
    pub(crate) fn take(&mut self, found: Option<&Node>, now: Instant) -> Option<NodeNews> {
        self.sought_since.get_or_insert(now);
        let existed = self.exists.replace(found.is_some());
        let Some(found) = found else {
            return match existed {
                None => Some(NodeNews::Missing),
                Some(true) => Some(NodeNews::Deleted),
                Some(false) => None,
            };
        };
        let before = self.node.take();
        let node = self.in_force(found, before.as_ref());
        let was_found = std::mem::replace(&mut self.is_found, true);
        let news = match &before {
            Some(before) if was_found => {
                let addresses = before.addresses != node.addresses;
                let pod_cidrs = before.pod_cidrs != node.pod_cidrs;
                if *before == node {
                    (existed == Some(false)).then_some(NodeNews::Returned)
                } else {
                    Some(NodeNews::Changed { addresses, pod_cidrs })
                }
            }
            Some(_) | None => Some(NodeNews::Found),
        };
        self.node = Some(node);
        news
    }

    /// Whether nothing may be programmed yet, and until when that may last.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        let has_pod_cidrs = self.node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
        let waits = self.needs_pod_cidrs && !has_pod_cidrs;
        waits.then_some(self.sought_since?).map(|since| since + POD_CIDR_LIMIT)
    }

    /// What there is to say when that time is over.
    pub(crate) fn error(&self) -> NodeError {
        if self.exists == Some(true) {
            NodeError::NoPodCidr(self.name.clone())
        } else {
            NodeError::Missing(self.name.clone())
        }
    }

    fn in_force(&self, found: &Node, before: Option<&Node>) -> Node {
        let mut node = found.clone();
        if let Some(bind_address) = self.bind_address {
            let others = found.addresses.iter().copied().filter(|addr| *addr != bind_address);
            node.addresses = std::iter::once(bind_address).chain(others).collect();
        }
        // Pods do not lose their addresses because the Node was made anew.
        if node.pod_cidrs.is_empty()
            && let Some(before) = before
        {
            node.pod_cidrs.clone_from(&before.pod_cidrs);
        }
        node
    }
}

fn only_address(name: &Name, address: IpAddr) -> Node {
    Node {
        name: ObjectName { namespace: Name::default(), name: name.clone() },
        zone: None,
        addresses: [address].into(),
        pod_cidrs: Box::default(),
        is_deleting: false,
        is_scaled_down: false,
        taints: Box::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::NodePorts;

    fn state(pods: Pods, bind_address: Option<&str>) -> NodeState {
        let mut settings = Settings::new("node-1".into());
        settings.node_ports = NodePorts::Primary;
        settings.pods = pods;
        settings.bind_address = bind_address.map(|addr| addr.parse().unwrap());
        NodeState::new(&settings)
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: ObjectName::new("", "node-1"),
            zone: None,
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|net| net.parse().unwrap()).collect(),
            is_deleting: false,
            is_scaled_down: false,
            taints: Box::default(),
        }
    }

    #[test]
    fn news_are_told_once_and_the_last_node_known_stays() {
        let (mut state, now) = (state(Pods::ClusterCidr(Vec::new()), None), Instant::now());
        let first = node(&["10.0.0.1"], &["10.244.0.0/24"]);
        let moved = node(&["10.0.0.2"], &["10.244.0.0/24"]);
        let cleared = node(&["10.0.0.2"], &[]);
        let changed = |addresses, pod_cidrs| Some(NodeNews::Changed { addresses, pod_cidrs });
        let steps = [
            (None, Some(NodeNews::Missing), None),
            (None, None, None),
            (Some(&first), Some(NodeNews::Found), Some(&first)),
            (Some(&first), None, Some(&first)),
            (Some(&moved), changed(true, false), Some(&moved)),
            (Some(&cleared), None, Some(&moved)),
            (None, Some(NodeNews::Deleted), Some(&moved)),
            (None, None, Some(&moved)),
            (Some(&moved), Some(NodeNews::Returned), Some(&moved)),
        ];
        for (i, (found, news, in_force)) in steps.into_iter().enumerate() {
            assert_eq!(state.take(found, now), news, "step {i}");
            assert_eq!(state.get(), in_force, "step {i}");
            assert_eq!(state.waits_until(), None, "step {i}");
        }
    }

    #[test]
    fn an_address_that_was_given_comes_first_and_needs_no_node() {
        let mut state = state(Pods::ClusterCidr(Vec::new()), Some("fd00::7"));
        let addresses = |state: &NodeState| {
            state.get().map(|node| node.addresses.iter().map(ToString::to_string).collect())
        };
        assert_eq!(addresses(&state), Some(vec!["fd00::7".to_owned()]));
        let found = node(&["10.0.0.1", "fd00::1", "fd00::7"], &[]);
        assert_eq!(state.take(Some(&found), Instant::now()), Some(NodeNews::Found));
        assert_eq!(addresses(&state), Some(["fd00::7", "10.0.0.1", "fd00::1"].map(str::to_owned).into()));
        assert_eq!(state.take(Some(&found), Instant::now()), None);
    }

    #[test]
    fn an_unspecified_address_says_nothing() {
        assert_eq!(state(Pods::NodeCidr, Some("0.0.0.0")).get(), None);
        assert_eq!(state(Pods::NodeCidr, Some("::")).get(), None);
    }

    #[test]
    fn pod_cidrs_are_waited_for_where_they_are_needed() {
        let (mut state, now) = (state(Pods::NodeCidr, None), Instant::now());
        assert_eq!(state.waits_until(), None, "nobody has looked yet");
        state.take(None, now);
        let limit = Some(now + Duration::from_secs(330));
        assert_eq!(state.waits_until(), limit);
        assert_eq!(state.error().to_string(), "timeout waiting for node \"node-1\" to exist");
        state.take(Some(&node(&["10.0.0.1"], &[])), now + Duration::from_secs(100));
        assert_eq!(state.waits_until(), limit, "the time is not longer for that");
        assert_eq!(state.error().to_string(), "timeout waiting for PodCIDR allocation on node \"node-1\"");
        state.take(Some(&node(&["10.0.0.1"], &["10.244.0.0/24"])), now);
        assert_eq!(state.waits_until(), None);
        state.take(None, now);
        assert_eq!(state.waits_until(), None, "they are still known");
    }
}
