//! Which endpoints a Service port has, and which of them take new flows.
//!
//! The rules are those of upstream's `CategorizeEndpoints` (`pkg/proxy/topology.go`), KEP-1669 (terminating endpoints),
//! KEP-2433 and KEP-3015 (topology hints), KEP-2086 (internal traffic policy).

use std::collections::{BTreeMap, BTreeSet};

use balance::{Called, Weights};

use super::ThisNode;
use crate::{
    Conditions, Destination, EndpointNode, EndpointSlice, EndpointWeights, Family, Hints, Name, ServicePort,
};

/// One endpoint of a Service port, with what decides about its use.
pub(super) struct Candidate<'a> {
    pub(super) conditions: Conditions,
    pub(super) node: EndpointNode,
    pub(super) hints: Option<&'a Hints>,
    slice: &'a Name,
    node_name: Option<&'a Name>,
    zone: Option<&'a Name>,
    /// What its slice says.
    weight: Option<u32>,
}

/// The endpoints of one Service port, each address and port once.
pub(super) type Candidates<'a, F> = BTreeMap<(<F as Family>::Addr, u16), Candidate<'a>>;

/// Gathers the endpoints of a Service port from all its slices.
///
/// A slice's port serves the Service's port of the same name and protocol, whatever `targetPort` says. An endpoint that
/// two slices name (a pod's address used again) counts with its more useful conditions; then the first slice by name.
pub(super) fn gather<'a, F: Family>(
    node: &ThisNode,
    port: &ServicePort,
    slices: &'a [EndpointSlice],
) -> Candidates<'a, F> {
    let mut found: Candidates<'a, F> = BTreeMap::new();
    for slice in slices {
        let Some(endpoints) = F::endpoints(&slice.endpoints) else { continue };
        let ports = slice.ports.iter();
        for serving in ports.filter(|serving| serving.name == port.name && serving.protocol == port.protocol)
        {
            for (at, endpoint) in endpoints.iter().enumerate() {
                let candidate = Candidate {
                    conditions: endpoint.conditions,
                    node: endpoint
                        .node
                        .as_ref()
                        .map_or(EndpointNode::Unknown, |name| EndpointNode::this_if(*name == node.name)),
                    hints: endpoint.hints.as_deref(),
                    slice: &slice.name.name,
                    node_name: endpoint.node.as_ref(),
                    zone: slice.details.as_ref().and_then(|details| details.zone(at)),
                    weight: slice.details.as_ref().and_then(|details| details.weight(at)),
                };
                let key = (endpoint.address, serving.port);
                if found.get(&key).is_none_or(|known| candidate.rank() < known.rank()) {
                    found.insert(key, candidate);
                }
            }
        }
    }
    found
}

impl Candidate<'_> {
    /// Whether it runs on this node, as far as anybody says.
    pub(super) fn is_local(&self) -> bool {
        self.node == EndpointNode::This
    }

    /// The name of the slice that it is from.
    pub(super) fn slice(&self) -> &Name {
        self.slice
    }

    /// Smaller is better: not terminating, ready, serving, then the first slice by name.
    fn rank(&self) -> (bool, bool, bool, &Name) {
        (self.conditions.terminating, !self.conditions.ready, !self.conditions.serving, self.slice)
    }
}

/// The weights of endpoints of which something is said, by their slices or else by their Service.
pub(super) fn weights<F: Family>(
    candidates: &Candidates<'_, F>,
    of_service: Option<&Weights>,
) -> EndpointWeights<F> {
    let weight = |((address, port), candidate): (&(F::Addr, u16), &Candidate<'_>)| {
        let (node, zone) = (candidate.node_name, candidate.zone);
        let called = Called {
            address: (*address).into(),
            pod: None,
            node: node.map(Name::as_str),
            zone: zone.map(Name::as_str),
        };
        let weight = candidate.weight.or_else(|| of_service?.of(called))?;
        Some(((*address, *port), weight))
    };
    candidates.iter().filter_map(weight).collect()
}

/// All endpoints, in whatever condition.
pub(super) fn all<F: Family>(candidates: &Candidates<'_, F>) -> BTreeSet<Destination<F>> {
    select(candidates, |_| true)
}

/// The endpoints that existing flows may stay with.
pub(super) fn serving<F: Family>(candidates: &Candidates<'_, F>) -> BTreeSet<Destination<F>> {
    select(candidates, |candidate| candidate.conditions.ready || candidate.conditions.serving)
}

/// The addresses of ready endpoints on this node, possibly repeated.
pub(super) fn local_ready<F: Family>(candidates: &Candidates<'_, F>) -> impl Iterator<Item = F::Addr> {
    let ready = candidates.iter().filter(|(_, candidate)| candidate.is_local() && candidate.conditions.ready);
    ready.map(|((address, _), _)| *address)
}

/// The endpoints that take new flows, by traffic policy.
pub(super) struct Choice<F: Family> {
    /// For the `Cluster` policy; `None` if no policy of the Service asks for it.
    pub(super) cluster: Option<List<F>>,
    /// For the `Local` policy; `None` if no policy of the Service asks for it.
    pub(super) local: Option<List<F>>,
    /// Some node has a usable endpoint. Where it is so and a list is empty, packets are dropped, not refused.
    pub(super) has_any: bool,
}

/// Endpoints that were chosen, and why these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List<F: Family> {
    pub(super) endpoints: BTreeSet<Destination<F>>,
    pub(super) basis: Basis,
}

/// Why a list of endpoints is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Basis {
    /// Ready endpoints on all nodes, as far as topology allows.
    Ready(TopologyReason),
    /// Ready endpoints of this node.
    ReadyLocal,
    /// None is ready, so those that still serve while they shut down.
    Terminating,
    /// None of this node is ready, so those of this node that still serve while they shut down.
    TerminatingLocal,
    /// No endpoint is usable.
    None,
    /// No endpoint of this node is usable.
    NoneLocal,
}

/// Which hints count for a Service port, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopologyReason {
    /// Those for this node: every ready endpoint has a node hint, and some mean this node.
    SameNode,
    /// Those for this node's zone: every ready endpoint has a zone hint, and some mean this zone.
    SameZone,
    /// None, since some ready endpoint has no zone hint.
    HintsIncomplete,
    /// None, since this node's zone is not known.
    ZoneUnknown,
    /// None, since no endpoint is meant for this node's zone.
    NoneForThisZone,
}

/// Chooses among the candidates. A list that no policy of the Service uses (`needs_cluster`, `needs_local`) is not made,
/// and then does not make up for an empty other one either.
pub(super) fn choose<F: Family>(
    node: &ThisNode,
    candidates: &Candidates<'_, F>,
    needs_cluster: bool,
    needs_local: bool,
) -> Choice<F> {
    let cluster = needs_cluster.then(|| cluster_list(node, candidates));
    let local = needs_local.then(|| local_list(candidates));
    let usable =
        |candidate: &Candidate<'_>| candidate.conditions.ready || candidate.conditions.is_last_resort();
    let has_any = cluster.as_ref().is_some_and(|list| !list.endpoints.is_empty())
        || needs_local && candidates.values().any(usable);
    Choice { cluster, local, has_any }
}

/// Ready endpoints, close ones only where the hints say so; if there are none at all, those that still serve while they
/// shut down, wherever they are.
fn cluster_list<F: Family>(node: &ThisNode, candidates: &Candidates<'_, F>) -> List<F> {
    let topology = topology(node, candidates.values());
    let chosen =
        select(candidates, |candidate| candidate.conditions.ready && topology.takes(node, candidate.hints));
    or_terminating(chosen, Basis::Ready(topology), [Basis::Terminating, Basis::None], || {
        select(candidates, |candidate| candidate.conditions.is_last_resort())
    })
}

/// Ready endpoints of this node; if there are none, those of this node that still serve while they shut down.
fn local_list<F: Family>(candidates: &Candidates<'_, F>) -> List<F> {
    let ready = select(candidates, |candidate| candidate.is_local() && candidate.conditions.ready);
    or_terminating(ready, Basis::ReadyLocal, [Basis::TerminatingLocal, Basis::NoneLocal], || {
        select(candidates, |candidate| candidate.is_local() && candidate.conditions.is_last_resort())
    })
}

fn or_terminating<F: Family>(
    ready: BTreeSet<Destination<F>>,
    basis: Basis,
    [when_ending, when_nobody]: [Basis; 2],
    ending: impl FnOnce() -> BTreeSet<Destination<F>>,
) -> List<F> {
    if !ready.is_empty() {
        return List { endpoints: ready, basis };
    }
    let endpoints = ending();
    let basis = if endpoints.is_empty() { when_nobody } else { when_ending };
    List { endpoints, basis }
}

fn select<F: Family>(
    candidates: &Candidates<'_, F>,
    which: impl Fn(&Candidate<'_>) -> bool,
) -> BTreeSet<Destination<F>> {
    let chosen = candidates.iter().filter(|(_, candidate)| which(candidate));
    chosen
        .map(|((address, port), candidate)| Destination {
            address: *address,
            port: *port,
            node: candidate.node,
        })
        .collect()
}

impl TopologyReason {
    pub(super) fn takes(self, node: &ThisNode, hints: Option<&Hints>) -> bool {
        match self {
            Self::SameNode => hints.is_some_and(|hints| hints.nodes.contains(&node.name)),
            Self::SameZone => {
                hints.is_some_and(|hints| node.zone.as_ref().is_some_and(|zone| hints.zones.contains(zone)))
            }
            Self::HintsIncomplete | Self::ZoneUnknown | Self::NoneForThisZone => true,
        }
    }
}

/// All or nothing: hints of a kind count only if every ready endpoint has some and one of them means us.
fn topology<'a>(node: &ThisNode, candidates: impl Iterator<Item = &'a Candidate<'a>>) -> TopologyReason {
    let ready: Vec<Option<&Hints>> =
        candidates.filter(|candidate| candidate.conditions.ready).map(|candidate| candidate.hints).collect();
    let complete = |of: fn(&Hints) -> &[Name]| {
        ready.iter().all(|hints| hints.is_some_and(|hints| !of(hints).is_empty()))
    };
    let means_us = |reason: TopologyReason| ready.iter().any(|hints| reason.takes(node, *hints));
    if complete(|hints| &hints.nodes) && means_us(TopologyReason::SameNode) {
        TopologyReason::SameNode
    } else if !complete(|hints| &hints.zones) {
        TopologyReason::HintsIncomplete
    } else if node.zone.is_none() {
        TopologyReason::ZoneUnknown
    } else if means_us(TopologyReason::SameZone) {
        TopologyReason::SameZone
    } else {
        TopologyReason::NoneForThisZone
    }
}
