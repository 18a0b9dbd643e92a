//! What a Service port, or all of them, need in the tables.

use std::collections::{BTreeMap, BTreeSet};

use iptables::{ChainName, Rule, TableName};

use crate::names::FixedChain;

/// A chain of a table.
pub(crate) type ChainId = (TableName, ChainName);

/// A rule of a chain that many share, where its place does not matter.
pub(crate) type Entry = (ChainId, Box<str>);

/// Chains that nobody else has a part in, with all their rules, and entries of shared chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) chains: BTreeMap<ChainId, Vec<Rule>>,
    pub(crate) entries: BTreeSet<Entry>,
}

impl Objects {
    pub(crate) fn chain(&mut self, table: TableName, name: ChainName, rules: Vec<Rule>) {
        self.chains.insert((table, name), rules);
    }

    pub(crate) fn entry(&mut self, table: TableName, chain: FixedChain, rule: &Rule) {
        self.entries.insert(((table, chain.name()), text(rule)));
    }

    /// Takes in another one's objects; they have none in common.
    pub(crate) fn extend(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.entries.extend(other.entries);
    }
}

pub(crate) fn text(rule: &Rule) -> Box<str> {
    rule.to_string().into()
}
