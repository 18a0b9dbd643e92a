//! From whatever the tables hold to what they should hold: start-up, recovery after a failure, and audits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use iptables::{ChainName, Rule, Saved, TableName};
use model::{Extent, Family, Table};

use crate::changes::{Changes, texts};
use crate::config::Config;
use crate::fixed::{self, Dispatch, Place, Shared};
use crate::names::is_of_service;
use crate::objects::{ChainId, Counts, Objects, text};
use crate::plan::{Backend, Held, Outcome, Plan};
use crate::render;

impl<F: Family> Backend<F> {
    /// The changes that turn the tables as `found` into what `table` and `config` ask for. What is right stays as it is, with
    /// its counters.
    pub fn repair(&self, config: &Config, table: &Table<F>, found: &Saved, extent: Extent) -> Plan<F> {
        let held = Held::of(table);
        let mut repair = Repair {
            found,
            extent,
            changes: Changes::default(),
            wanted: BTreeMap::new(),
            rules: Counts::default(),
        };
        let mut entries: BTreeMap<ChainId, BTreeSet<Box<str>>> = BTreeMap::new();
        repair.objects(&mut entries, fixed::chains(config));
        repair.objects(&mut entries, fixed::health_checks(held.health_check_ports()));
        for port in held.ports() {
            repair.objects(&mut entries, render::objects(port, config));
        }
        for dispatch in fixed::dispatch::<F>(config) {
            let id = (dispatch.table, dispatch.chain.name());
            repair.dispatch(&dispatch, entries.remove(&id).unwrap_or_default());
        }
        repair.stale();
        for shared in fixed::shared::<F>(config) {
            repair.shared(shared);
        }
        let outcome = Outcome::Whole { held: Box::new(held), config: config.clone() };
        Plan::new(repair.changes.into_restore(), outcome, repair.rules)
    }
}

struct Repair<'a> {
    found: &'a Saved,
    extent: Extent,
    changes: Changes,
    /// Chains of ours that are wanted.
    wanted: BTreeMap<TableName, BTreeSet<ChainName>>,
    /// How many rules are wanted.
    rules: Counts,
}

impl Repair<'_> {
    fn rules(&self, (table, chain): &ChainId) -> Option<&[Box<str>]> {
        self.found.table(*table).rules(chain.as_str())
    }

    /// Writes the chains that differ, and gathers the entries.
    fn objects(&mut self, entries: &mut BTreeMap<ChainId, BTreeSet<Box<str>>>, objects: Objects) {
        self.rules.add_objects(&objects);
        for (id, rules) in objects.chains {
            let right = self.extent == Extent::Difference
                && self.rules(&id).is_some_and(|found| are_equal(found, &rules));
            if !right {
                self.changes.write(id.clone(), texts(&rules));
            }
            self.wanted.entry(id.0).or_default().insert(id.1);
        }
        for (id, rule) in objects.entries {
            entries.entry(id).or_default().insert(rule);
        }
    }

    /// Deletes and adds single rules of a chain with entries, or writes it as a whole where that is less work.
    fn dispatch(&mut self, dispatch: &Dispatch, wanted: BTreeSet<Box<str>>) {
        let id = (dispatch.table, dispatch.chain.name());
        self.wanted.entry(id.0).or_default().insert(id.1.clone());
        let last = texts(&dispatch.last);
        self.rules.add(id.0, last.len());
        let found = self.rules(&id).filter(|_| self.extent == Extent::Difference);
        let difference = found.and_then(|found| EntryDifference::new(found, &wanted, &last));
        // What `filter` refuses has to go after `nat` serves it: see `Changes::into_restore`. So this is for `nat` alone, and for
        // a chain whose last rules are missing, which is not one of ours.
        let is_worth_it = |d: &EntryDifference| {
            dispatch.table != TableName::Nat || 4 * d.edits() <= wanted.len() + MANY_EDITS
        };
        match difference.filter(is_worth_it) {
            Some(EntryDifference { delete, insert }) => {
                for rule in delete {
                    self.changes.delete(id.clone(), rule);
                }
                for rule in insert {
                    self.changes.insert(id.clone(), rule);
                }
            }
            None => self.changes.write(id, wanted.into_iter().chain(last).collect()),
        }
    }

    /// Removes the chains of Services that are gone. Those that somebody else refers to are only emptied, since the
    /// kernel would refuse everything otherwise.
    fn stale(&mut self) {
        for table in TableName::ALL {
            let saved = self.found.table(table);
            let wanted = self.wanted.remove(&table).unwrap_or_default();
            let is_ours = |name: &str| is_of_service(table, name) || wanted.contains(name);
            let is_stale = |name: &&str| is_ours(name) && !wanted.contains(*name);
            let stale: Vec<&str> = saved.chains.keys().map(|name| &**name).filter(is_stale).collect();
            if stale.is_empty() {
                continue;
            }
            let kept = saved.targets_outside(is_ours);
            for name in stale {
                let Ok(chain) = ChainName::new(name) else { continue };
                let is_kept = kept.contains(name);
                let has_rules = saved.rules(name).is_some_and(|rules| !rules.is_empty());
                if !is_kept || has_rules {
                    self.changes.remove((table, chain), !is_kept);
                }
            }
        }
    }

    /// Puts a rule into a chain that is not ours alone, if it is missing.
    fn shared(&mut self, shared: Shared) {
        let id = (shared.table, shared.chain);
        self.rules.add(id.0, 1);
        let rule = text(&shared.rule);
        let found = self.rules(&id);
        if found.is_some_and(|found| found.contains(&rule)) {
            return;
        }
        match shared.place {
            Place::First => self.changes.insert(id, rule),
            Place::Last => {
                if found.is_none() {
                    self.changes.make(id.clone());
                }
                self.changes.append(id, rule);
            }
        }
    }
}

/// Below this many single changes, a chain is never written as a whole.
const MANY_EDITS: usize = 64;

fn are_equal(found: &[Box<str>], wanted: &[Rule]) -> bool {
    let mut text = String::new();
    found.len() == wanted.len()
        && found.iter().zip(wanted).all(|(found, wanted)| {
            text.clear();
            write!(text, "{wanted}").is_ok() && **found == *text
        })
}

/// How the entries of a chain differ.
struct EntryDifference {
    delete: Vec<Box<str>>,
    insert: Vec<Box<str>>,
}

impl EntryDifference {
    /// `None` if the last rules are not in their place.
    fn new(found: &[Box<str>], wanted: &BTreeSet<Box<str>>, last: &[Box<str>]) -> Option<Self> {
        let entries = found.strip_suffix(last)?;
        let mut missing: BTreeSet<&Box<str>> = wanted.iter().collect();
        // What is there a second time is too much as well.
        let delete: Vec<Box<str>> = entries.iter().filter(|rule| !missing.remove(rule)).cloned().collect();
        if delete.iter().any(|rule| last.contains(rule)) {
            return None;
        }
        Some(Self { delete, insert: missing.into_iter().cloned().collect() })
    }

    fn edits(&self) -> usize {
        self.delete.len() + self.insert.len()
    }
}
