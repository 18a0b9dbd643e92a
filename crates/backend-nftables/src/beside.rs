//! The chains that hand flows to proxies beside rules of others, which are iptables'.
//!
//! They translate just ahead of these. Once a flow is translated the kernel asks no other chain that could translate it, of `nf_tables` or
//! of iptables (`nf_nat_inet_fn` in `net/netfilter/nf_nat_core.c`; since Linux 4.18, before which there can be no two such chains). So a flow
//! that a proxy has is neither balanced nor marked by the others; what no proxy takes meets them as if nothing had been. They alone
//! refuse, drop and restrict: a sender that may not use an address is not handed over.

use nft::{Name, Rule, Statement};

use crate::chains::{ChainSpec, DSTNAT, rule};
use crate::layout::{Map, ip_key, source_key};
use crate::lease;

/// Before the chains of others, which have [`DSTNAT`].
const BEFORE_OTHERS: i32 = DSTNAT - 5;

/// Makes the chains by which rules choose endpoints those that only hand over.
pub(crate) fn adapt(chains: &mut Vec<ChainSpec>) {
    chains.retain_mut(|chain| match &*chain.name {
        "services" | "internal-services" => true,
        "balance" => {
            chain.rules = lease::rules_beside_others();
            true
        }
        "nat-prerouting" | "nat-output" => {
            chain.name = Name::from_static(if &*chain.name == "nat-output" {
                "workers-output"
            } else {
                "workers-prerouting"
            });
            chain.rules.insert(0, leave_restricted());
            if let Some(base) = &mut chain.base {
                base.priority = BEFORE_OTHERS;
            }
            true
        }
        _ => false,
    });
}

/// Who may not use an address is for the others to keep away.
fn leave_restricted() -> Rule {
    let restricted = Statement::InSet { key: ip_key(), set: Map::Restricted.name(), negate: false };
    let not_allowed = Statement::InSet { key: source_key(), set: Map::AllowedSources.name(), negate: true };
    rule([restricted, not_allowed, Statement::Return])
}
