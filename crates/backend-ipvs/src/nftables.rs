//! The rules of mode nftables, beside IPVS.

use backend_nftables::Backend;
use model::Family;
use nft::Ruleset;

use crate::rules::Rules;

impl<F: Family> Rules<F> for Backend<F> {
    fn choose_endpoints(found: &Option<Ruleset>) -> bool {
        let Some(found) = found else { return false };
        backend_nftables::choosing_maps()
            .iter()
            .any(|name| found.sets.get(name).is_some_and(|set| !set.elements.is_empty()))
    }
}
