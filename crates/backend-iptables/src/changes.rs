//! Differences, gathered by table and put into an order that is right at every step.

use std::collections::{BTreeMap, BTreeSet};

use iptables::{ChainName, Edit, Restore, Rule, TableName};

use crate::objects::{ChainId, Entry, Objects, text};

/// What to do to the tables.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    tables: BTreeMap<TableName, TableChanges>,
}

#[derive(Debug, Default)]
struct TableChanges {
    /// Chains to be written, with all their rules.
    write: BTreeMap<ChainName, Vec<Box<str>>>,
    insert: Vec<(ChainName, Box<str>)>,
    append: Vec<(ChainName, Box<str>)>,
    delete: Vec<(ChainName, Box<str>)>,
    /// Chains to be emptied, and deleted if no rule of somebody else's refers to them.
    remove: BTreeMap<ChainName, bool>,
}

impl Changes {
    fn table(&mut self, table: TableName) -> &mut TableChanges {
        self.tables.entry(table).or_default()
    }

    /// Makes a chain, or writes it anew.
    pub(crate) fn write(&mut self, (table, chain): ChainId, rules: Vec<Box<str>>) {
        self.table(table).write.insert(chain, rules);
    }

    /// Makes a chain without rules.
    pub(crate) fn make(&mut self, id: ChainId) {
        self.write(id, Vec::new());
    }

    /// Adds a rule before all others.
    pub(crate) fn insert(&mut self, (table, chain): ChainId, rule: Box<str>) {
        self.table(table).insert.push((chain, rule));
    }

    /// Adds a rule behind all others.
    pub(crate) fn append(&mut self, (table, chain): ChainId, rule: Box<str>) {
        self.table(table).append.push((chain, rule));
    }

    pub(crate) fn delete(&mut self, (table, chain): ChainId, rule: Box<str>) {
        self.table(table).delete.push((chain, rule));
    }

    /// Empties a chain and, if `for_good`, deletes it.
    pub(crate) fn remove(&mut self, (table, chain): ChainId, for_good: bool) {
        self.table(table).remove.insert(chain, for_good);
    }

    /// The difference between what some Service ports needed and what they need.
    pub(crate) fn objects(&mut self, old: Objects, new: Objects) {
        let mut gone = old.chains;
        for (id, rules) in new.chains {
            if gone.remove(&id).is_none_or(|known| known != rules) {
                self.write(id, texts(&rules));
            }
        }
        for id in gone.into_keys() {
            self.remove(id, true);
        }
        self.entries(&old.entries, &new.entries);
    }

    fn entries(&mut self, old: &BTreeSet<Entry>, new: &BTreeSet<Entry>) {
        for (id, rule) in new.difference(old) {
            self.insert(id.clone(), rule.clone());
        }
        for (id, rule) in old.difference(new) {
            self.delete(id.clone(), rule.clone());
        }
    }

    /// The changes in an order in which packets are served rightly after each section: `filter` refuses before `nat` gives
    /// up, and `nat` serves before `filter` stops to refuse. (A packet that `nat` translated has another destination by the
    /// time that `filter` sees it.)
    pub(crate) fn into_restore(mut self) -> Restore {
        let mut take = |table| self.tables.remove(&table).unwrap_or_default();
        let (mangle, mut filter, nat) =
            (take(TableName::Mangle), take(TableName::Filter), take(TableName::Nat));
        let leaving = TableChanges {
            delete: std::mem::take(&mut filter.delete),
            remove: std::mem::take(&mut filter.remove),
            ..TableChanges::default()
        };
        let mut restore = Restore::default();
        restore.push(TableName::Filter, filter.into_edits());
        restore.push(TableName::Nat, nat.into_edits());
        restore.push(TableName::Filter, leaving.into_edits());
        restore.push(TableName::Mangle, mangle.into_edits());
        restore
    }
}

impl TableChanges {
    /// In an order in which every chain exists before a rule refers to it, and none does when it goes.
    fn into_edits(self) -> Vec<Edit> {
        let reset = self.write.keys().chain(self.remove.keys()).cloned().map(Edit::Reset);
        let mut edits: Vec<Edit> = reset.collect();
        let edit = |edit: fn(ChainName, Box<str>) -> Edit| move |(chain, rule)| edit(chain, rule);
        edits.extend(self.delete.into_iter().map(edit(Edit::Delete)));
        let rules = self
            .write
            .into_iter()
            .flat_map(|(chain, rules)| rules.into_iter().map(move |rule| (chain.clone(), rule)));
        edits.extend(rules.chain(self.append).map(edit(Edit::Append)));
        edits.extend(self.insert.into_iter().map(edit(Edit::Insert)));
        let gone = self.remove.into_iter().filter(|(_, for_good)| *for_good);
        edits.extend(gone.map(|(chain, _)| Edit::Remove(chain)));
        edits
    }
}

pub(crate) fn texts(rules: &[Rule]) -> Vec<Box<str>> {
    rules.iter().map(text).collect()
}
