//! Which chains can be deleted.

use std::collections::{BTreeMap, BTreeSet};

/// What deciding needs to know of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainFacts<'a> {
    /// It is upstream's, so it shall go if it can.
    pub is_upstream: bool,
    /// The chains that its rules lead to, without the rules that are to be deleted.
    pub leads_to: Vec<&'a str>,
    /// Something that is not a rule of the table leads to it.
    pub is_held: bool,
}

/// The chains of upstream's that nothing leads to but what goes as well. A foreign rule that uses one of them goes on to
/// find it with everything that it needs in turn.
pub fn removable<'a>(chains: &BTreeMap<&'a str, ChainFacts<'a>>) -> BTreeSet<&'a str> {
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    let mut to_visit: Vec<&str> = chains
        .iter()
        .filter(|(_, facts)| !facts.is_upstream || facts.is_held)
        .map(|(name, _)| *name)
        .collect();
    while let Some(name) = to_visit.pop() {
        if kept.insert(name) {
            to_visit.extend(chains.get(name).into_iter().flat_map(|facts| &facts.leads_to));
        }
    }
    chains.keys().copied().filter(|name| !kept.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_use_stays_with_all_that_it_needs() {
        let facts = |is_upstream, leads_to: &[&'static str], is_held| ChainFacts {
            is_upstream,
            leads_to: leads_to.to_vec(),
            is_held,
        };
        let chains = BTreeMap::from([
            ("PREROUTING", facts(false, &["OTHER"], false)),
            ("OTHER", facts(false, &["KUBE-EXT-A"], false)),
            ("KUBE-SERVICES", facts(true, &["KUBE-EXT-A", "KUBE-SVC-B"], false)),
            ("KUBE-EXT-A", facts(true, &["KUBE-MARK-MASQ", "KUBE-SVC-A"], false)),
            ("KUBE-SVC-A", facts(true, &[], false)),
            ("KUBE-SVC-B", facts(true, &["KUBE-MARK-MASQ", "KUBE-SEP-B"], false)),
            ("KUBE-SEP-B", facts(true, &[], false)),
            ("KUBE-NODEPORTS", facts(true, &[], true)),
            ("KUBE-MARK-MASQ", facts(true, &[], false)),
        ]);
        let expected = BTreeSet::from(["KUBE-SERVICES", "KUBE-SVC-B", "KUBE-SEP-B"]);
        assert_eq!(removable(&chains), expected);
    }

    #[test]
    fn chains_in_a_ring_go_together() {
        let ring = |to| ChainFacts { is_upstream: true, leads_to: vec![to], is_held: false };
        let chains = BTreeMap::from([("KUBE-A", ring("KUBE-B")), ("KUBE-B", ring("KUBE-A"))]);
        assert_eq!(removable(&chains), BTreeSet::from(["KUBE-A", "KUBE-B"]));
    }
}
