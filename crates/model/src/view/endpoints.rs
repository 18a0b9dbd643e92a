//! Which endpoints a Service port has, and which of them take new flows.
//!
//! The rules are those of upstream's `CategorizeEndpoints` (`pkg/proxy/topology.go`), KEP-1669 (terminating endpoints),
//! KEP-2433 and KEP-3015 (topology hints), KEP-2086 (internal traffic policy).

use std::collections::{BTreeMap, BTreeSet};

use super::ThisNode;
use crate::{Conditions, Destination, EndpointSlice, Family, Hints, Name, ServicePort};

/// One endpoint of a Service port, with what decides about its use.
pub(super) struct Candidate<'a> {
    conditions: Conditions,
    local: bool,
    hints: Option<&'a Hints>,
    slice: &'a Name,
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
            for endpoint in endpoints {
                let candidate = Candidate {
                    conditions: endpoint.conditions,
                    local: endpoint.node.as_ref() == Some(&node.name),
                    hints: endpoint.hints.as_deref(),
                    slice: &slice.name.name,
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
    /// Smaller is better: not terminating, ready, serving, then the first slice by name.
    fn rank(&self) -> (bool, bool, bool, &Name) {
        (self.conditions.terminating, !self.conditions.ready, !self.conditions.serving, self.slice)
    }
}

/// The endpoints that existing flows may stay with.
pub(super) fn serving<F: Family>(candidates: &Candidates<'_, F>) -> BTreeSet<Destination<F>> {
    select(candidates, |candidate| candidate.conditions.ready || candidate.conditions.serving)
}

/// The addresses of ready endpoints on this node, possibly repeated.
pub(super) fn local_ready<F: Family>(candidates: &Candidates<'_, F>) -> impl Iterator<Item = F::Addr> {
    let ready = candidates.iter().filter(|(_, candidate)| candidate.local && candidate.conditions.ready);
    ready.map(|((address, _), _)| *address)
}

/// The endpoints that take new flows, by traffic policy.
pub(super) struct Choice<F: Family> {
    /// For the `Cluster` policy.
    pub(super) cluster: BTreeSet<Destination<F>>,
    /// For the `Local` policy.
    pub(super) local: BTreeSet<Destination<F>>,
    /// Some node has a usable endpoint. Where it is so and a list is empty, packets are dropped, not refused.
    pub(super) has_any: bool,
}

/// Chooses among the candidates. A list that no policy of the Service uses (`needs_cluster`, `needs_local`) stays empty,
/// and then does not make up for an empty other one either.
pub(super) fn choose<F: Family>(
    node: &ThisNode,
    candidates: &Candidates<'_, F>,
    needs_cluster: bool,
    needs_local: bool,
) -> Choice<F> {
    let cluster = if needs_cluster { cluster_list(node, candidates) } else { BTreeSet::new() };
    let local = if needs_local { local_list(candidates) } else { BTreeSet::new() };
    let usable =
        |candidate: &Candidate<'_>| candidate.conditions.ready || candidate.conditions.is_last_resort();
    let has_any = !cluster.is_empty() || needs_local && candidates.values().any(usable);
    Choice { cluster, local, has_any }
}

/// Ready endpoints, close ones only where the hints say so; if there are none at all, those that still serve while they
/// shut down, wherever they are.
fn cluster_list<F: Family>(node: &ThisNode, candidates: &Candidates<'_, F>) -> BTreeSet<Destination<F>> {
    let topology = topology(node, candidates.values());
    let chosen =
        select(candidates, |candidate| candidate.conditions.ready && topology.takes(node, candidate.hints));
    if chosen.is_empty() {
        select(candidates, |candidate| candidate.conditions.is_last_resort())
    } else {
        chosen
    }
}

/// Ready endpoints of this node; if there are none, those of this node that still serve while they shut down.
fn local_list<F: Family>(candidates: &Candidates<'_, F>) -> BTreeSet<Destination<F>> {
    let ready = select(candidates, |candidate| candidate.local && candidate.conditions.ready);
    if ready.is_empty() {
        select(candidates, |candidate| candidate.local && candidate.conditions.is_last_resort())
    } else {
        ready
    }
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
            local: candidate.local,
        })
        .collect()
}

/// Which hints count for a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    /// None: all endpoints take part.
    Everywhere,
    /// Endpoints hinted for this node.
    SameNode,
    /// Endpoints hinted for this node's zone.
    SameZone,
}

impl Topology {
    fn takes(self, node: &ThisNode, hints: Option<&Hints>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameNode => hints.is_some_and(|hints| hints.nodes.contains(&node.name)),
            Self::SameZone => {
                hints.is_some_and(|hints| node.zone.as_ref().is_some_and(|zone| hints.zones.contains(zone)))
            }
        }
    }
}

/// All or nothing: hints of a kind count only if every ready endpoint has some and one of them means us.
fn topology<'a>(node: &ThisNode, candidates: impl Iterator<Item = &'a Candidate<'a>>) -> Topology {
    let ready: Vec<Option<&Hints>> =
        candidates.filter(|candidate| candidate.conditions.ready).map(|candidate| candidate.hints).collect();
    let counts = |topology: Topology, of: fn(&Hints) -> &[Name]| {
        ready.iter().all(|hints| hints.is_some_and(|hints| !of(hints).is_empty()))
            && ready.iter().any(|hints| topology.takes(node, *hints))
    };
    if counts(Topology::SameNode, |hints| &hints.nodes) {
        Topology::SameNode
    } else if counts(Topology::SameZone, |hints| &hints.zones) {
        Topology::SameZone
    } else {
        Topology::Everywhere
    }
}
