//! What a Service port, or all of them, need in the tables.

use std::collections::{BTreeMap, BTreeSet};

use iptables::{ChainName, Edit, Restore, Rule, Saved, TableName};

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

/// How many rules there are in each table; none where there is no entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<TableName, usize>);

impl Counts {
    /// The rules that are written.
    pub(crate) fn written(restore: &Restore) -> Self {
        let mut counts = Self::default();
        for section in &restore.sections {
            let rules =
                section.edits.iter().filter(|edit| matches!(edit, Edit::Append(..) | Edit::Insert(..)));
            counts.add(section.table, rules.count());
        }
        counts
    }

    pub(crate) fn of(&self, table: TableName) -> usize {
        self.0.get(&table).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, table: TableName, rules: usize) {
        *self.0.entry(table).or_default() += rules;
    }

    /// Counts some objects' rules in.
    pub(crate) fn add_objects(&mut self, objects: &Objects) {
        objects.each_count(|table, rules| self.add(table, rules));
    }

    /// Takes the rules of objects that were counted in out again.
    pub(crate) fn remove_objects(&mut self, objects: &Objects) {
        objects.each_count(|table, rules| {
            let count = self.0.entry(table).or_default();
            debug_assert!(*count >= rules, "they were counted in");
            *count = count.saturating_sub(rules);
        });
    }
}

impl Objects {
    fn each_count(&self, mut count: impl FnMut(TableName, usize)) {
        self.chains.iter().for_each(|((table, _), rules)| count(*table, rules.len()));
        self.entries.iter().for_each(|((table, _), _)| count(*table, 1));
    }

    pub(crate) fn chain(&mut self, table: TableName, name: ChainName, rules: Vec<Rule>) {
        self.chains.insert((table, name), rules);
    }

    pub(crate) fn entry(&mut self, table: TableName, chain: FixedChain, rule: &Rule) {
        self.entries.insert(((table, chain.name()), text(rule)));
    }

    /// All rules, as values.
    pub(crate) fn explain(self) -> impl Iterator<Item = mode::Rule> {
        let rules = self.chains.into_iter().flat_map(move |((table, chain), rules)| {
            let place = place(table, chain.as_str());
            rules.into_iter().map(move |rule| mode::Rule { place: place.clone(), text: rule.to_string() })
        });
        let entry = move |((table, chain), text): Entry| mode::Rule {
            place: place(table, chain.as_str()),
            text: text.into(),
        };
        self.entries.into_iter().map(entry).chain(rules)
    }

    /// Takes in another one's objects; they have none in common.
    pub(crate) fn extend(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.entries.extend(other.entries);
    }
}

fn place(table: TableName, chain: &str) -> String {
    format!("chain {chain} of table {table}")
}

/// The rules of tables as they were read, in the words in which those of a frontend are told
/// ([`Planner::rules`](mode::Planner::rules)), so that they can be looked for.
pub fn rules_of(saved: &Saved) -> BTreeSet<mode::Rule> {
    let of_table = |table: TableName| {
        let chains = saved.table(table).chains.iter();
        chains.flat_map(move |(chain, rules)| {
            let place = place(table, chain);
            rules.iter().map(move |text| mode::Rule { place: place.clone(), text: text.to_string() })
        })
    };
    [TableName::Filter, TableName::Nat].into_iter().flat_map(of_table).collect()
}

pub(crate) fn text(rule: &Rule) -> Box<str> {
    rule.to_string().into()
}
