//! A copy of our table under another name, for whoever comes after us.
//!
//! Upstream's kube-proxy deletes the tables of our name as it starts in modes `iptables` and `ipvs`, seconds before its own
//! rules are there, and in mode `nftables` it can't fill them, because our maps have its names and other types. So before it comes, our
//! tables go, and what they did is done by a copy that nobody else knows:
//!
//! - At each hook its chains come after everybody else's of the same kind (priority + 1): a flow that somebody's rules translate is
//!   theirs, since the kernel gives a flow one translation of each kind. What they don't know yet goes on as before.
//! - It ends by itself. Each base chain lets everything pass once set [`ALIVE`] has lost its elements, which the kernel sees to; what the
//!   other sets and maps hold goes at the same time. The chains stay, without effect, until our next start or `--cleanup`.
//!
//! The copy is of what was read, not of what is wanted: nobody has to know the API server's state or the configuration for it.

use std::sync::Arc;

use nft::{
    BaseChain, Bytes, ChainState, Data, Element, Expr, Family, Field, Name, Op, Rule, Ruleset, Set, SetData,
    SetKind, SetState, Statement, Transaction,
};

use crate::layout::Map;

/// The set whose elements are there for as long as the copy serves.
pub const ALIVE: &str = "alive";

/// The name of the copy, in `ip` and in `ip6`.
pub fn table_name() -> Name {
    Name::from_static("kube-proxy-hand-over")
}

/// Something in the table that is not ours, so that a copy would not do the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is nothing that this version writes")]
pub struct Foreign(String);

/// Whether a table of our name is ours: upstream's has no map of pools.
pub fn is_ours(found: &Ruleset) -> bool {
    found.sets.contains_key(&Map::Pools.name())
}

/// Makes the copy of a table that was read, anew if there is one, to serve for so many seconds, which must not be 0. The table itself stays.
///
/// # Errors
/// The table has something that we don't write.
pub fn hand_over(family: Family, found: &Ruleset, lease_secs: u32) -> Result<Transaction, Foreign> {
    check(found)?;
    let alive = Arc::new(leased(Name::from_static(ALIVE), vec![Field::L4Proto], SetData::None, lease_secs));
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable, Op::AddSet(Arc::clone(&alive))];
    ops.push(Op::AddElements { set: alive, elements: PROTOCOLS.map(protocol).into() });
    let sets: Vec<_> = found.sets.values().filter(|state| state.set.name != Map::Pools.name()).collect();
    let sets: Vec<_> = sets.iter().map(|state| (Arc::new(copied(&state.set, lease_secs)), *state)).collect();
    ops.extend(sets.iter().map(|(set, _)| Op::AddSet(Arc::clone(set))));
    let (base, others): (Vec<_>, Vec<_>) = found.chains.iter().partition(|(_, chain)| chain.base.is_some());
    ops.extend(others.iter().map(|(name, _)| Op::AddChain { name: (*name).clone(), base: None }));
    ops.extend(others.iter().map(|(name, chain)| copied_rules(name, chain.rules.clone())));
    ops.extend(sets.iter().filter_map(|(set, state)| elements(set, state)));
    // Only they make a packet meet the rest.
    ops.extend(base.iter().flat_map(|(name, chain)| base_chain(family, name, chain)));
    Ok(Transaction { ops, ..Transaction::new(family, table_name()) })
}

/// TCP, UDP and SCTP: no other packets are for Services.
const PROTOCOLS: [u8; 3] = [6, 17, 132];

fn protocol(number: u8) -> Element {
    Element { key: Bytes::new().proto(number), data: Data::None, comment: None }
}

fn check(found: &Ruleset) -> Result<(), Foreign> {
    let foreign = |what: String| Err(Foreign(what));
    if let Some(state) = found.sets.values().find(|state| state.foreign) {
        return foreign(format!("{} {}", state.set.keyword(), state.set.name));
    }
    if let Some((kind, name)) = found.objects.first() {
        return foreign(format!("{kind} {name}"));
    }
    if let Some(name) = found.flowtables.first() {
        return foreign(format!("flowtable {name}"));
    }
    let is_foreign = |chain: &ChainState| {
        let unknown = |expr: &Expr| matches!(expr, Expr::Unknown { .. });
        chain.foreign || chain.rules.iter().flatten().any(unknown)
    };
    match found.chains.iter().find(|(_, chain)| is_foreign(chain)) {
        Some((name, _)) => foreign(format!("chain {name}")),
        None => Ok(()),
    }
}

fn leased(name: Name, key: Vec<Field>, data: SetData, timeout_secs: u32) -> Set {
    Set { kind: SetKind::Leased { timeout_secs }, ..Set::new(name, key, data) }
}

/// What leads to chains and the networks stay: the former are few, and neither is met without what goes.
fn copied(set: &Set, lease_secs: u32) -> Set {
    match (set.kind, &set.data) {
        (SetKind::Exact, SetData::None | SetData::Fields(_)) => {
            leased(set.name.clone(), set.key.clone(), set.data.clone(), lease_secs)
        }
        _ => Set { is_counted: false, comment: None, ..set.clone() },
    }
}

/// What rules or proxies wrote is not read, and begins anew.
fn elements(set: &Arc<Set>, state: &SetState) -> Option<Op> {
    let elements = state.elements.clone();
    let is_filled = !state.set.is_transient() && !elements.is_empty();
    is_filled.then(|| Op::AddElements { set: Arc::clone(set), elements })
}

fn copied_rules(name: &Name, rules: Vec<Vec<Expr>>) -> Op {
    Op::CopyRules { chain: name.clone(), rules }
}

fn base_chain(family: Family, name: &Name, chain: &ChainState) -> [Op; 2] {
    let base = chain.base.map(|base| BaseChain { priority: base.priority + 1, ..base });
    let over = Statement::InSet { key: vec![Field::L4Proto], set: Name::from_static(ALIVE), negate: true };
    let unless_alive = Rule::new(vec![over, Statement::Return]).compile(family);
    let rules = std::iter::once(unless_alive).chain(chain.rules.iter().cloned()).collect();
    [Op::AddChain { name: name.clone(), base }, copied_rules(name, rules)]
}

#[cfg(test)]
mod tests {
    use nft::ObjectType;

    use super::*;

    fn refused(found: &Ruleset) -> String {
        hand_over(Family::Ip, found, 60).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_ours_is_not_copied() {
        let name = || Name::from_static("strange");
        let mut set = SetState::new(Set::new(name(), vec![Field::DestAddr], SetData::None), Vec::new());
        set.foreign = true;
        let chain = |rules, foreign| ChainState { foreign, ..ChainState::new(None, rules) };
        let unknown = Expr::Unknown { name: "synproxy".into(), bytes: Vec::new() };
        let with_chain = |chain| Ruleset { chains: [(name(), chain)].into(), ..Ruleset::default() };
        let refusals = [
            refused(&Ruleset { sets: [(name(), set)].into(), ..Ruleset::default() }),
            refused(&Ruleset { objects: [(ObjectType(1), name())].into(), ..Ruleset::default() }),
            refused(&Ruleset { flowtables: [name()].into(), ..Ruleset::default() }),
            refused(&with_chain(chain(vec![vec![unknown]], false))),
            refused(&with_chain(chain(Vec::new(), true))),
        ];
        for refusal in refusals {
            assert!(refusal.contains("strange is nothing that this version writes"), "{refusal}");
        }
    }

    #[test]
    fn a_table_without_pools_is_somebody_elses() {
        assert!(!is_ours(&Ruleset::default()));
        assert!(is_ours(&Ruleset {
            sets: [(Map::Pools.name(), SetState::new((*Map::Pools.set()).clone(), Vec::new()))].into(),
            ..Ruleset::default()
        }));
    }
}
