//! The backend: its idea of what the kernel holds, and transactions for what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use model::{Family, FrontendKey, ServicePortName, Table, TrafficPolicy, shrink_if_sparse};
use nft::{Op, Transaction};
use rustc_hash::FxBuildHasher;

use crate::affinity::{Clients, ClientsChange};
use crate::config::Config;
use crate::counted::{Counted, CountedChanges};
use crate::elements::ElementChanges;
use crate::frontend::Programmed;
use crate::layout::{Map, MapElement, address_bytes, hairpin_bytes, table_of};
use crate::pools::{Numbers, Pool, PoolKey, PoolUses};

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
    pub(crate) frontends: HashMap<FrontendKey<F>, Box<Programmed>, FxBuildHasher>,
    pub(crate) pools: BTreeMap<PoolKey, Pool<F>>,
    /// Numbers of pools.
    pub(crate) numbers: Numbers,
    pub(crate) counted: Counted<F>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Held<F> {
    fn default() -> Self {
        Self {
            frontends: HashMap::default(),
            pools: BTreeMap::new(),
            numbers: Numbers::default(),
            counted: Counted::default(),
        }
    }
}

impl<F: Family> Held<F> {
    /// How many endpoints all pools have together.
    pub(crate) fn endpoint_count(&self) -> usize {
        self.pools.values().map(Pool::endpoint_count).sum()
    }

    pub(crate) fn set_pool(&mut self, key: PoolKey, pool: Option<Pool<F>>) {
        let number = pool.as_ref().map(|pool| pool.number);
        let old = match pool {
            Some(pool) => self.pools.insert(key, pool),
            None => self.pools.remove(&key),
        };
        if let Some(old) = old.filter(|old| Some(old.number) != number) {
            self.numbers.give_back(old.number);
        }
        if let Some(number) = number {
            self.numbers.take(number);
        }
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
    /// These differ.
    Delta(Delta<F>),
    /// Everything was looked at.
    Whole { held: Box<Held<F>>, config: Config },
}

/// What differs, each with what the kernel is to hold for it.
#[derive(Debug)]
pub(crate) struct Delta<F: Family> {
    frontends: Vec<(FrontendKey<F>, Option<Box<Programmed>>)>,
    pools: Vec<(PoolKey, Option<Pool<F>>)>,
    counted: CountedChanges<F>,
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
        let mut pools = self.pools_of(table, keys);
        let frontends = self.changed_frontends(table, keys, &pools);
        pools.retain(|key, new| self.held.pools.get(key) != new.as_ref());
        let mut transaction = Transaction::new(F::FAMILY.into(), table_of(&self.config.balancer));
        let mut counted = CountedChanges::default();
        if !frontends.is_empty() || !pools.is_empty() {
            self.fill(&mut transaction.ops, &frontends, &pools, &mut counted);
        }
        let pools = pools.into_iter().collect();
        Plan { transaction, outcome: Outcome::Delta(Delta { frontends, pools, counted }) }
    }

    /// The pools that these frontends lead to, or led to, as they are to be.
    fn pools_of(
        &self,
        table: &Table<F>,
        keys: &BTreeSet<FrontendKey<F>>,
    ) -> BTreeMap<PoolKey, Option<Pool<F>>> {
        let mut uses = PoolUses::default();
        for key in keys {
            if let Some(old) = self.held.frontends.get(key) {
                uses.end(old);
            }
            if let Some(new) = table.get(key) {
                uses.begin(new, &self.config.balancer);
            }
        }
        let mut fresh = self.held.numbers.fresh();
        let changed = uses.0.into_iter().map(|(key, change)| {
            let old = self.held.pools.get(&key);
            let new = change.apply(&key, old, old.map(Pool::as_previous).as_ref(), &mut fresh);
            (key, new)
        });
        changed.collect()
    }

    fn changed_frontends(
        &self,
        table: &Table<F>,
        keys: &BTreeSet<FrontendKey<F>>,
        pools: &BTreeMap<PoolKey, Option<Pool<F>>>,
    ) -> Vec<(FrontendKey<F>, Option<Box<Programmed>>)> {
        let new = |key| {
            let frontend = table.get(key)?;
            let pool = |policy: TrafficPolicy| {
                let key = PoolKey { service: frontend.service.clone(), policy };
                pools.get(&key).and_then(Option::as_ref)
            };
            Some(Box::new(Programmed::new(frontend, &self.config.balancer, pool)))
        };
        let all = keys.iter().map(|key| (*key, new(key)));
        all.filter(|(key, new)| self.held.frontends.get(key) != new.as_ref()).collect()
    }

    fn fill(
        &self,
        ops: &mut Vec<Op>,
        frontends: &[(FrontendKey<F>, Option<Box<Programmed>>)],
        pools: &BTreeMap<PoolKey, Option<Pool<F>>>,
        counted: &mut CountedChanges<F>,
    ) {
        let mut elements = ElementChanges::default();
        let mut clients = ClientsChange::default();
        for (key, new) in pools {
            let (old, new) = (self.held.pools.get(key), new.as_ref());
            if old.zip(new).is_none_or(|(old, new)| !old.has_same_elements(new)) {
                let elements_of =
                    |pool: Option<_>| pool.into_iter().flat_map(|pool: &Pool<F>| pool.elements(key));
                elements.difference(elements_of(old), elements_of(new));
                counted.pool(old, new);
            }
            clients.pool(old.and_then(Clients::of), new.and_then(Clients::of));
        }
        for (key, new) in frontends {
            let (old, new) = (self.held.frontends.get(key).map(Box::as_ref), new.as_deref());
            let elements_of = |frontend: Option<_>| {
                frontend.into_iter().flat_map(|frontend: &Programmed| frontend.elements(key))
            };
            elements.difference(elements_of(old), elements_of(new));
            counted.frontend(&self.config.balancer, key, old, new);
        }
        let held = &self.held.counted;
        elements.members(Map::Hairpin, &held.hairpins, &counted.hairpins, hairpin_bytes::<F>);
        let map = Map::closed_ips(&self.config.balancer);
        elements.members(map, &held.closed_ips, &counted.closed_ips, address_bytes::<F>);
        ops.extend(clients.before);
        elements.into_ops(ops, clients.between);
        ops.extend(clients.after);
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
                text: set.element_text(&element, F::FAMILY.into()).to_string(),
            }
        };
        elements.map(rule).collect()
    }

    /// The pools that are held.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (&PoolKey, &Pool<F>)> {
        self.held.pools.iter()
    }

    /// Whose frontend is held to be there.
    pub(crate) fn held_service(&self, key: &FrontendKey<F>) -> Option<&ServicePortName> {
        self.held.frontends.get(key).map(|programmed| &programmed.service)
    }

    /// Takes note that the kernel took the plan's transaction.
    pub fn committed(&mut self, plan: Plan<F>) {
        match plan.outcome {
            Outcome::Delta(Delta { frontends, pools, counted }) => {
                self.held.counted.apply(counted);
                for (key, pool) in pools {
                    self.held.set_pool(key, pool);
                }
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
