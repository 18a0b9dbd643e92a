//! The state of a table as read from the kernel, in canonical order.

use std::collections::{BTreeMap, BTreeSet};

use crate::{BaseChain, Element, Expr, Family, Name, ObjectType, Rule, Set};

/// State of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Named sets and maps. Anonymous ones belong to a rule and are left out.
    pub sets: BTreeMap<Name, SetState>,
    /// Chains.
    pub chains: BTreeMap<Name, ChainState>,
    /// Stateful objects, such as counters and quotas. This crate writes none, so they are somebody else's.
    pub objects: BTreeSet<(ObjectType, Name)>,
    /// Flowtables, of which the same is true.
    pub flowtables: BTreeSet<Name>,
    /// Somebody switched the table off (`flags dormant`); [`Op::AddTable`](crate::Op::AddTable) wakes it.
    pub dormant: bool,
}

/// State of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    /// The declaration.
    pub set: Set,
    /// Declared in a way that this crate does not write: other types, flags or sizes. `set` then has only the name
    /// and the comment, the elements are not read, and it matches nothing. Also a set of networks that holds ranges
    /// which are none: an element can't say them, so the set has to be made anew.
    pub foreign: bool,
    /// Elements, sorted by key; none for [`SetKind::Learnt`](crate::SetKind), which holds what nobody planned.
    pub elements: Vec<Element>,
}

impl SetState {
    /// State of a set that is declared as we write it. Sorts the elements.
    pub fn new(set: Set, mut elements: Vec<Element>) -> Self {
        elements.sort_unstable();
        Self { set, foreign: false, elements }
    }

    /// Whether the set is declared as wanted. Comments are not compared, because changing one would mean to delete
    /// the set.
    pub fn matches(&self, wanted: &Set) -> bool {
        !self.foreign
            && self.set.name == wanted.name
            && self.set.key == wanted.key
            && self.set.data == wanted.data
            && self.set.kind == wanted.kind
            && self.set.is_counted == wanted.is_counted
    }
}

/// State of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainState {
    /// Attachment of a base chain.
    pub base: Option<BaseChain>,
    /// A base chain of a type, hook or policy that this crate does not write; it matches nothing. `base` is `None`
    /// unless only the policy differs, which [`Op::AddChain`](crate::Op::AddChain) puts right.
    pub foreign: bool,
    /// The expressions of each rule, in order.
    pub rules: Vec<Vec<Expr>>,
}

impl ChainState {
    /// State of a chain that is declared as we write it.
    pub fn new(base: Option<BaseChain>, rules: Vec<Vec<Expr>>) -> Self {
        Self { base, foreign: false, rules }
    }

    /// Whether the chain is attached as wanted and has exactly the wanted rules. Comments are not compared.
    pub fn matches(&self, base: Option<&BaseChain>, rules: &[Rule], family: Family) -> bool {
        !self.foreign && self.base.as_ref() == base && self.rules_match(rules, family)
    }

    /// Whether the chain has exactly the wanted rules.
    pub fn rules_match(&self, rules: &[Rule], family: Family) -> bool {
        self.rules.len() == rules.len()
            && self.rules.iter().zip(rules).all(|(have, want)| *have == want.compile(family))
    }
}
