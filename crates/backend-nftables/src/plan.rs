//! The backend: its idea of what the kernel holds, and transactions for what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use model::{Family, FrontendKey, Table};
use nft::{Data, Element, Op, Transaction};
use rustc_hash::FxBuildHasher;

use crate::chains::ChainId;
use crate::config::Config;
use crate::elements::ElementChanges;
use crate::layout::{Map, hairpin_bytes, nft_family, table_name};
use crate::programmed::Programmed;

/// One family's ruleset: what it depends on, and what the kernel holds of it.
///
/// Invariant: `held` is what the last transaction reported by [`Backend::committed`] left in the kernel.
#[derive(Clone, Debug)]
pub struct Backend<F: Family> {
    config: Config,
    held: Held<F>,
}

/// What the kernel holds.
#[derive(Clone, Debug)]
pub(crate) struct Held<F: Family> {
    pub(crate) frontends: HashMap<FrontendKey<F>, Programmed<F>, FxBuildHasher>,
    pub(crate) shared: Shared<F>,
}

impl<F: Family> Default for Held<F> {
    fn default() -> Self {
        Self { frontends: HashMap::default(), shared: Shared::default() }
    }
}

/// Objects that several frontends use, with the number of those that do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared<F: Family> {
    /// Chains. A number of 0 is a chain that exists without need; it goes with the next planned transaction.
    pub(crate) chains: BTreeMap<ChainId, usize>,
    /// Addresses in the hairpin set.
    pub(crate) hairpins: BTreeMap<F::Addr, usize>,
}

impl<F: Family> Default for Shared<F> {
    fn default() -> Self {
        Self { chains: BTreeMap::new(), hairpins: BTreeMap::new() }
    }
}

/// A transaction together with what is held once the kernel took it.
#[derive(Debug)]
#[must_use]
pub struct Plan<F: Family> {
    /// What to send to the kernel. Empty: nothing to do, nothing to send.
    pub transaction: Transaction,
    pub(crate) outcome: Outcome<F>,
}

#[derive(Debug)]
pub(crate) enum Outcome<F: Family> {
    /// These frontends differ.
    Delta { frontends: Vec<(FrontendKey<F>, Option<Programmed<F>>)>, shared: Shared<F> },
    /// Everything was looked at.
    Whole { held: Box<Held<F>>, config: Config },
}

impl<F: Family> Backend<F> {
    /// A backend that knows nothing of the kernel yet: [`Backend::repair`] comes first.
    pub fn new(config: Config) -> Self {
        Self { config, held: Held::default() }
    }

    /// The settings that the kernel's ruleset follows.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The transaction that carries the frontends with these keys into the kernel. The work is proportional to their
    /// number and endpoints.
    pub fn plan(&self, table: &Table<F>, keys: &BTreeSet<FrontendKey<F>>) -> Plan<F> {
        let mut shared = self.held.shared.clone();
        let mut changes = ElementChanges::default();
        let mut frontends = Vec::with_capacity(keys.len());
        for key in keys {
            let old = self.held.frontends.get(key);
            let sockets = old.map(Programmed::sockets).unwrap_or_default();
            let new = table.get(key).map(|frontend| Programmed::new(frontend, &sockets));
            if old != new.as_ref() {
                changes.frontend(key, old, new.as_ref());
                shared.count(key, old, new.as_ref());
                frontends.push((*key, new));
            }
        }
        let mut transaction = Transaction::new(nft_family::<F>(), table_name());
        if !frontends.is_empty() {
            self.fill(&mut transaction.ops, changes, &mut shared);
        }
        Plan { transaction, outcome: Outcome::Delta { frontends, shared } }
    }

    fn fill(&self, ops: &mut Vec<Op>, mut changes: ElementChanges, shared: &mut Shared<F>) {
        let before = &self.held.shared;
        for id in shared.chains.keys().filter(|id| !before.chains.contains_key(id)) {
            let spec = id.spec::<F>(&self.config);
            ops.push(Op::AddChain { name: spec.name.clone(), base: None });
            ops.push(Op::SetRules { chain: spec.name, rules: spec.rules });
        }
        for addr in shared.hairpins.keys().filter(|addr| !before.hairpins.contains_key(addr)) {
            changes.add(Map::Hairpin, hairpin_element::<F>(*addr));
        }
        for addr in before.hairpins.keys().filter(|addr| !shared.hairpins.contains_key(addr)) {
            changes.delete(Map::Hairpin, hairpin_bytes::<F>(*addr));
        }
        changes.into_ops(ops);
        let unused = shared.chains.extract_if(.., |_, users| *users == 0);
        ops.extend(unused.map(|(id, _)| Op::DeleteChain(id.name())));
    }

    /// Takes note that the kernel took the plan's transaction.
    pub fn committed(&mut self, plan: Plan<F>) {
        match plan.outcome {
            Outcome::Delta { frontends, shared } => {
                self.held.shared = shared;
                for (key, programmed) in frontends {
                    match programmed {
                        Some(programmed) => self.held.frontends.insert(key, programmed),
                        None => self.held.frontends.remove(&key),
                    };
                }
            }
            Outcome::Whole { held, config } => {
                self.held = *held;
                self.config = config;
            }
        }
    }
}

pub(crate) fn hairpin_element<F: Family>(addr: F::Addr) -> Element {
    Element { key: hairpin_bytes::<F>(addr), data: Data::None, comment: None }
}

impl<F: Family> Shared<F> {
    /// Counts the users of shared objects anew after one frontend changed.
    pub(crate) fn count(
        &mut self,
        key: &FrontendKey<F>,
        old: Option<&Programmed<F>>,
        new: Option<&Programmed<F>>,
    ) {
        if let Some(new) = new {
            if let Some(chain) = new.chain(key) {
                *self.chains.entry(chain).or_default() += 1;
            }
            for addr in new.local_addresses() {
                *self.hairpins.entry(addr).or_default() += 1;
            }
        }
        let Some(old) = old else { return };
        if let Some(users) = old.chain(key).and_then(|chain| self.chains.get_mut(&chain)) {
            *users -= 1;
        }
        for addr in old.local_addresses() {
            let users = self.hairpins.get_mut(&addr).expect("every held frontend is counted");
            *users -= 1;
            if *users == 0 {
                self.hairpins.remove(&addr);
            }
        }
    }
}
