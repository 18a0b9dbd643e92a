//! From whatever the kernel holds to what it should hold: start-up, recovery after a failure, and audits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use model::{Balancer, Extent, Family, Table};
use nft::{Element, Name, Op, Ruleset, Transaction};
use rustc_hash::FxBuildHasher;

use crate::affinity::Clients;
use crate::chains::{self, ChainSpec};
use crate::config::Config;
use crate::counted::CountedChanges;
use crate::elements::{ElementChanges, by_map};
use crate::found::{self, FoundPools};
use crate::frontend::Programmed;
use crate::layout::{FlowCounters, Map, MapElement, address_bytes, hairpin_bytes, parse_slot, table_of};
use crate::plan::{Backend, Held, Outcome, Plan};
use crate::pools::{Pool, PoolKey, PoolUses};
use crate::priority::POOL;

impl<F: Family> Backend<F> {
    /// The transaction that turns the table as `found` in the kernel (`None`: there is none) into what `table` and
    /// `config` ask for. Endpoints keep the slots in which they are found, so an unchanged table gives an empty
    /// transaction.
    pub fn repair(
        &self,
        config: &Config,
        table: &Table<F>,
        found: Option<&Ruleset>,
        extent: Extent,
    ) -> Plan<F> {
        let kept = found.filter(|found| extent == Extent::Difference && can_be_kept::<F>(found, config));
        let mut transaction = Transaction::new(F::FAMILY.into(), table_of(&config.balancer));
        let ops = &mut transaction.ops;
        if found.is_none() && extent == Extent::Rebuild {
            // Whether there is one may not be known, and only what is there can be deleted.
            ops.push(Op::AddTable);
        }
        if extent == Extent::Rebuild || found.is_some() && kept.is_none() {
            ops.push(Op::DeleteTable);
        }
        let nothing = Ruleset::default();
        let held = wanted(table, &config.balancer, found.unwrap_or(&nothing));
        let counters = kept.and_then(FlowCounters::of);
        let counters =
            counters.unwrap_or_else(|| FlowCounters::for_new(&config.balancer, held.endpoint_count()));
        difference(ops, kept.unwrap_or(&nothing), config, counters, &held);
        Plan { transaction, outcome: Outcome::Whole { held: Box::new(held), config: config.clone() } }
    }
}

/// Whether the table can be brought right without deleting a set or a base chain, which can't be altered in place.
fn can_be_kept<F: Family>(found: &Ruleset, config: &Config) -> bool {
    let counters = FlowCounters::of(found).unwrap_or(FlowCounters::OfEndpoints);
    let sets = Map::all(&config.balancer).iter().all(|map| {
        let state = found.sets.get(&map.name());
        state.is_none_or(|state| state.matches(&map.declared(counters)))
    });
    let fixed = chains::fixed::<F>(config);
    sets && counters.suits(&config.balancer)
        && fixed.iter().all(|chain| {
            let state = found.chains.get(&chain.name);
            state.is_none_or(|state| state.base == chain.base)
        })
}

/// What is to be held: pools take their numbers and slots from those that are found under their names.
fn wanted<F: Family>(table: &Table<F>, balancer: &Balancer, found: &Ruleset) -> Held<F> {
    let mut uses = PoolUses::default();
    table.iter().for_each(|frontend| uses.begin(frontend, balancer));
    let mut found = FoundPools::<F>::new(found);
    let previous: Vec<_> = uses.0.keys().map(|key| found.take(key)).collect();
    let taken = std::mem::take(&mut found.numbers);
    let mut fresh = (1..=POOL).filter(|number| !taken.contains(number));
    let mut held = Held::default();
    let mut counted = CountedChanges::default();
    for ((key, change), previous) in uses.0.into_iter().zip(previous) {
        let pool = change.apply(&key, None, previous.as_ref(), &mut fresh);
        counted.pool(None, pool.as_ref());
        held.set_pool(key, pool);
    }
    for frontend in table.iter() {
        let pool = |policy| held.pools.get(&PoolKey { service: frontend.service.clone(), policy });
        let programmed = Programmed::new(frontend, balancer, pool);
        counted.frontend(balancer, &frontend.key, None, Some(&programmed));
        held.frontends.insert(frontend.key, Box::new(programmed));
    }
    held.counted.apply(counted);
    held
}

/// Everything that makes `found` into what `held` says, in an order that is right at every step.
fn difference<F: Family>(
    ops: &mut Vec<Op>,
    found: &Ruleset,
    config: &Config,
    counters: FlowCounters,
    held: &Held<F>,
) {
    let clients = || held.pools.values().filter_map(Clients::of);
    let chains = chains::all::<F>(config, clients().map(Clients::chain));
    if *found == Ruleset::default() || found.dormant {
        ops.push(Op::AddTable);
    }
    let declared = || Map::all(&config.balancer).into_iter().map(|map| map.declared(counters));
    let sets = || declared().chain(clients().map(Clients::set));
    ops.extend(sets().filter(|set| !found.sets.contains_key(&set.name)).map(Op::AddSet));
    add_chains(ops, found, &chains, |chain| chain.base.is_none());
    set_rules::<F>(ops, found, &chains, |chain| chain.base.is_none());
    element_difference(found, &config.balancer, held).into_ops(ops, Vec::new());
    // Packets come in only now that all they can meet is there.
    add_chains(ops, found, &chains, |chain| chain.base.is_some());
    set_rules::<F>(ops, found, &chains, |chain| chain.base.is_some());
    remove_foreign(ops, found, &chains, &sets().map(|set| set.name.clone()).collect());
}

fn add_chains(
    ops: &mut Vec<Op>,
    found: &Ruleset,
    chains: &BTreeMap<Name, ChainSpec>,
    which: impl Fn(&ChainSpec) -> bool,
) {
    for chain in chains.values().filter(|chain| which(chain)) {
        if found.chains.get(&chain.name).is_none_or(|state| state.foreign) {
            ops.push(Op::AddChain { name: chain.name.clone(), base: chain.base });
        }
    }
}

fn set_rules<F: Family>(
    ops: &mut Vec<Op>,
    found: &Ruleset,
    chains: &BTreeMap<Name, ChainSpec>,
    which: impl Fn(&ChainSpec) -> bool,
) {
    let family = nft::Family::from(F::FAMILY);
    for chain in chains.values().filter(|chain| which(chain)) {
        let state = found.chains.get(&chain.name);
        if state.is_none_or(|state| !state.rules_match(&chain.rules, family)) {
            ops.push(Op::SetRules { chain: chain.name.clone(), rules: chain.rules.clone() });
        }
    }
}

fn element_difference<F: Family>(found: &Ruleset, balancer: &Balancer, held: &Held<F>) -> ElementChanges {
    let counted = &held.counted;
    let hairpins = counted.hairpins.keys().map(|addr| (Map::Hairpin, hairpin_bytes::<F>(addr)));
    let closed_ips = Map::closed_ips(balancer);
    let closed_ips = counted.closed_ips.keys().map(|addr| (closed_ips, address_bytes::<F>(addr)));
    let members = hairpins.chain(closed_ips).map(|(map, key)| MapElement::member(map, key));
    let frontends = held.frontends.iter().flat_map(|(key, programmed)| programmed.elements(key));
    let elements = |map: Map| found.sets.get(&map.name()).map_or(&[][..], |state| &state.elements);
    let right = pools_found_right(elements(Map::Endpoints), held);
    let is_right =
        |key: &PoolKey, pool: &Pool<F>| right.contains(&(key.service.protocol.number(), pool.number));
    let of_all = held.pools.iter().flat_map(|(key, pool)| pool.elements_of_all(key));
    let wrong = held.pools.iter().filter(|(key, pool)| !is_right(key, pool));
    let of_slots = wrong.flat_map(|(key, pool)| pool.elements_of_slots(key));
    let mut wanted =
        by_map(frontends.chain(of_all).chain(of_slots).chain(members).chain(chains::choice_elements()));
    let mut changes = ElementChanges::default();
    for map in Map::all(balancer) {
        let found = elements(map).iter().filter(|element| {
            let pool = (map == Map::Endpoints && !right.is_empty()).then(|| parse_slot(&element.key));
            !pool.flatten().is_some_and(|(pool, _)| right.contains(&pool))
        });
        changes.map(map, found, wanted.remove(&map).unwrap_or_default());
    }
    changes
}

/// The pools of whose endpoints nothing differs: nearly all in most cases, and with them go nearly all elements, of which neither
/// a list is made nor sorted then.
fn pools_found_right<F: Family>(found: &[Element], held: &Held<F>) -> HashSet<found::Pool, FxBuildHasher> {
    let found: HashMap<found::Pool, &[Element], FxBuildHasher> = found::by_pool(found).collect();
    let is_right = |(key, pool): (&PoolKey, &Pool<F>)| {
        let id = (key.service.protocol.number(), pool.number);
        let found = found.get(&id)?;
        pool.has_exactly(key.service.protocol, found).then_some(id)
    };
    held.pools.iter().filter_map(is_right).collect()
}

/// The table is ours: what we did not write, or do not need any more, goes. A foreign base chain could eat packets, and a counter
/// or flowtable would otherwise stay for good. All rules are ours or gone before, so nothing refers to those any more.
fn remove_foreign(
    ops: &mut Vec<Op>,
    found: &Ruleset,
    chains: &BTreeMap<Name, ChainSpec>,
    sets: &BTreeSet<Name>,
) {
    let foreign: Vec<_> = found.chains.keys().filter(|name| !chains.contains_key(*name)).collect();
    // Emptied first, since they may refer to one another.
    ops.extend(foreign.iter().map(|name| Op::SetRules { chain: (*name).clone(), rules: Vec::new() }));
    ops.extend(foreign.iter().map(|name| Op::DeleteChain((*name).clone())));
    ops.extend(found.sets.keys().filter(|name| !sets.contains(*name)).cloned().map(Op::DeleteSet));
    ops.extend(found.objects.iter().map(|(kind, name)| Op::DeleteObject(*kind, name.clone())));
    ops.extend(found.flowtables.iter().map(|name| Op::DeleteFlowtable(name.clone())));
}
