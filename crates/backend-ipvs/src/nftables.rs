//! The rules of mode nftables, beside IPVS.

use backend_nftables::Backend;
use model::Family;
use nft::Ruleset;

use crate::rules::Rules;

impl<F: Family> Rules<F> for Backend<F> {
    fn choose_endpoints(found: &Option<Ruleset>) -> bool {
        found.as_ref().is_some_and(backend_nftables::chooses_endpoints)
    }
}
