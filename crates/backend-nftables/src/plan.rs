//! The backend: its idea of what the kernel holds, and transactions for what changed.

use std::collections::{BTreeSet, HashMap};

use model::{Family, FrontendKey, Table, shrink_if_sparse};
use nft::{Op, Transaction};
use rustc_hash::FxBuildHasher;

use crate::chains::ChainId;
use crate::config::Config;
use crate::elements::ElementChanges;
use crate::layout::{Map, address_bytes, hairpin_bytes, nft_family, table_name};
use crate::programmed::{MapElement, Programmed};
use crate::shared::{Shared, SharedChanges};

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
    /// Boxed, since a hash table is up to half empty.
    pub(crate) frontends: HashMap<FrontendKey<F>, Box<Programmed<F>>, FxBuildHasher>,
    pub(crate) shared: Shared<F>,
    /// Chains that balance. Once made they stay: making one is dear, since the kernel walks the whole slot map that its
    /// rule refers to (`nf_tables_bind_set`), and there is at most one for each number of endpoints that a Service had.
    pub(crate) chains: BTreeSet<ChainId>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Held<F> {
    fn default() -> Self {
        Self { frontends: HashMap::default(), shared: Shared::default(), chains: BTreeSet::new() }
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

/// A frontend and what the kernel is to hold for it.
type Differing<F> = (FrontendKey<F>, Option<Box<Programmed<F>>>);

#[derive(Debug)]
pub(crate) enum Outcome<F: Family> {
    /// These frontends differ.
    Delta {
        frontends: Vec<Differing<F>>,
        shared: SharedChanges<F>,
        /// New chains.
        chains: BTreeSet<ChainId>,
    },
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
        let mut shared = SharedChanges::default();
        let mut elements = ElementChanges::default();
        let mut chains = BTreeSet::new();
        let mut frontends = Vec::with_capacity(keys.len());
        for key in keys {
            let old = self.held.frontends.get(key).map(Box::as_ref);
            let slots = old.map(Programmed::previous_slots).unwrap_or_default();
            let new = table.get(key).map(|frontend| Programmed::new(frontend, &slots));
            if old != new.as_ref() {
                elements.frontend(key, old, new.as_ref());
                shared.frontend(key, old, new.as_ref());
                let used = new.iter().flat_map(|new| new.chains(key));
                chains.extend(used.filter(|id| !self.held.chains.contains(id)));
                frontends.push((*key, new.map(Box::new)));
            }
        }
        let mut transaction = Transaction::new(nft_family::<F>(), table_name());
        if !frontends.is_empty() {
            self.fill(&mut transaction.ops, &chains, elements, &shared);
        }
        Plan { transaction, outcome: Outcome::Delta { frontends, shared, chains } }
    }

    fn fill(
        &self,
        ops: &mut Vec<Op>,
        chains: &BTreeSet<ChainId>,
        mut elements: ElementChanges,
        changes: &SharedChanges<F>,
    ) {
        let Held { shared, .. } = &self.held;
        for id in chains {
            let spec = id.spec::<F>(&self.config);
            ops.push(Op::AddChain { name: spec.name.clone(), base: None });
            ops.push(Op::SetRules { chain: spec.name, rules: spec.rules });
            elements.add(id.element());
        }
        elements.members(Map::Hairpin, &shared.hairpins, &changes.hairpins, hairpin_bytes::<F>);
        elements.members(Map::ClusterIps, &shared.cluster_ips, &changes.cluster_ips, address_bytes::<F>);
        elements.into_ops(ops);
    }

    /// The elements that are a frontend's alone, as far as they are held.
    pub(crate) fn explain(&self, key: &FrontendKey<F>) -> Vec<mode::Rule> {
        let held = self.held.frontends.get(key).into_iter();
        let elements = held.flat_map(|programmed| programmed.elements(key));
        let rule = |MapElement { map, element }: MapElement| {
            let set = map.set();
            let kind = set.keyword();
            mode::Rule {
                place: format!("{kind} {}", set.name),
                text: set.element_text(&element, nft_family::<F>()).to_string(),
            }
        };
        elements.map(rule).collect()
    }

    /// Takes note that the kernel took the plan's transaction.
    pub fn committed(&mut self, plan: Plan<F>) {
        match plan.outcome {
            Outcome::Delta { frontends, shared, chains } => {
                self.held.shared.apply(shared);
                self.held.chains.extend(chains);
                for (key, programmed) in frontends {
                    match programmed {
                        Some(programmed) => self.held.frontends.insert(key, programmed),
                        None => self.held.frontends.remove(&key),
                    };
                }
                shrink_if_sparse(&mut self.held.frontends);
            }
            Outcome::Whole { held, config } => {
                self.held = *held;
                self.config = config;
            }
        }
    }
}
