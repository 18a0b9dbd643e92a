//! From whatever the kernel holds to what it should hold: start-up, recovery after a failure, and audits.

use std::collections::{BTreeMap, HashMap};

use model::{Extent, Family, FrontendKey, Table};
use nft::{Bytes, Data, Op, Ruleset, Transaction};
use rustc_hash::FxBuildHasher;

use crate::chains::{self, ChainId, ChainSpec};
use crate::config::Config;
use crate::elements::{ElementChanges, by_map};
use crate::layout::{
    Map, Scope, Socket, Way, address_bytes, hairpin_bytes, nft_family, parse_numbered, parse_socket,
    table_name,
};
use crate::plan::{Backend, Held, Outcome, Plan};
use crate::programmed::{MapElement, PreviousSlots, Programmed, member};
use crate::shared::SharedChanges;

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
        let slots = found.map(found_slots::<F>).unwrap_or_default();
        let mut held = wanted(table, &slots);
        let kept = found.filter(|found| extent == Extent::Difference && can_be_kept::<F>(found, config));
        let mut transaction = Transaction::new(nft_family::<F>(), table_name());
        let ops = &mut transaction.ops;
        if found.is_none() && extent == Extent::Rebuild {
            // Whether there is one may not be known, and only what is there can be deleted.
            ops.push(Op::AddTable);
        }
        if extent == Extent::Rebuild || found.is_some() && kept.is_none() {
            ops.push(Op::DeleteTable);
        }
        difference(ops, kept.unwrap_or(&Ruleset::default()), config, &mut held);
        Plan { transaction, outcome: Outcome::Whole { held: Box::new(held), config: config.clone() } }
    }
}

/// Whether the table can be brought right without deleting a set or a base chain, which can't be altered in place.
fn can_be_kept<F: Family>(found: &Ruleset, config: &Config) -> bool {
    let sets = Map::all().iter().all(|map| {
        let state = found.sets.get(&map.name());
        state.is_none_or(|state| state.matches(&map.set()))
    });
    let fixed = chains::fixed::<F>(config);
    sets && fixed.iter().all(|chain| {
        let state = found.chains.get(&chain.name);
        state.is_none_or(|state| state.base == chain.base)
    })
}

type FoundSlots<F> = HashMap<FrontendKey<F>, PreviousSlots<F>, FxBuildHasher>;

fn found_slots<F: Family>(found: &Ruleset) -> FoundSlots<F> {
    let mut by_frontend = FoundSlots::<F>::default();
    for scope in Scope::ALL {
        for (key, idx, socket) in slots_of::<F>(found, scope) {
            let sockets = by_frontend.entry(key).or_default().of(scope);
            // Behind a gap, numbers no longer are positions; the difference will tell.
            if u32::try_from(sockets.len()) == Ok(idx) {
                sockets.push(socket);
            }
        }
    }
    by_frontend
}

/// The slots of all frontends in a scope, sorted: what is in them, directly or by the endpoint's number.
fn slots_of<F: Family>(found: &Ruleset, scope: Scope) -> Vec<(FrontendKey<F>, u32, Socket<F>)> {
    let mut slots = Vec::new();
    for way in Way::ALL.into_iter().filter(|way| way.scope == scope) {
        let numbered = |map| numbered::<F>(found, map, way);
        slots.extend(
            numbered(Map::Slots(way))
                .filter_map(|(key, idx, data)| Some((key, idx, parse_socket::<F>(data)?))),
        );
        let endpoints: HashMap<_, _, FxBuildHasher> = numbered(Map::AffinityEndpoints(way))
            .filter_map(|(key, number, data)| Some(((key, number), parse_socket::<F>(data)?)))
            .collect();
        slots.extend(numbered(Map::AffinitySlots(way)).filter_map(|(key, idx, data)| {
            let number = data.reader().index()?;
            Some((key, idx, *endpoints.get(&(key, number))?))
        }));
    }
    slots.sort_unstable();
    slots
}

/// The elements of a map whose keys are a frontend and a number.
fn numbered<F: Family>(
    found: &Ruleset,
    map: Map,
    way: Way,
) -> impl Iterator<Item = (FrontendKey<F>, u32, &Bytes)> {
    let elements = found.sets.get(&map.name()).map_or(&[][..], |state| &state.elements);
    elements.iter().filter_map(move |element| {
        let (key, number) = parse_numbered::<F>(way, &element.key)?;
        match &element.data {
            Data::Value(data) => Some((key, number, data)),
            Data::None | Data::Verdict(_) => None,
        }
    })
}

fn wanted<F: Family>(table: &Table<F>, slots: &FoundSlots<F>) -> Held<F> {
    let mut held = Held::default();
    let mut shared = SharedChanges::default();
    let none = PreviousSlots::default();
    for frontend in table.iter() {
        let programmed = Programmed::new(frontend, slots.get(&frontend.key).unwrap_or(&none));
        shared.frontend(&frontend.key, None, Some(&programmed));
        held.chains.extend(programmed.chains(&frontend.key));
        held.frontends.insert(frontend.key, Box::new(programmed));
    }
    held.shared.apply(shared);
    held
}

/// Everything that makes `found` into what `held` says, in an order that is right at every step.
fn difference<F: Family>(ops: &mut Vec<Op>, found: &Ruleset, config: &Config, held: &mut Held<F>) {
    held.chains.extend(found.chains.keys().filter_map(|name| ChainId::parse(name)));
    held.chains.extend(ChainId::prepared());
    let chains = chains::all::<F>(config, held.chains.iter().copied());
    if *found == Ruleset::default() || found.dormant {
        ops.push(Op::AddTable);
    }
    for map in Map::all().into_iter().filter(|map| !found.sets.contains_key(&map.name())) {
        ops.push(Op::AddSet(map.set()));
    }
    add_chains(ops, found, &chains, |chain| chain.base.is_none());
    set_rules::<F>(ops, found, &chains, |chain| chain.base.is_none());
    element_difference(found, held).into_ops(ops);
    // Packets come in only now that all they can meet is there.
    add_chains(ops, found, &chains, |chain| chain.base.is_some());
    set_rules::<F>(ops, found, &chains, |chain| chain.base.is_some());
    remove_foreign(ops, found, &chains);
}

fn add_chains(
    ops: &mut Vec<Op>,
    found: &Ruleset,
    chains: &BTreeMap<nft::Name, ChainSpec>,
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
    chains: &BTreeMap<nft::Name, ChainSpec>,
    which: impl Fn(&ChainSpec) -> bool,
) {
    let family = nft_family::<F>();
    for chain in chains.values().filter(|chain| which(chain)) {
        let state = found.chains.get(&chain.name);
        if state.is_none_or(|state| !state.rules_match(&chain.rules, family)) {
            ops.push(Op::SetRules { chain: chain.name.clone(), rules: chain.rules.clone() });
        }
    }
}

fn element_difference<F: Family>(found: &Ruleset, held: &Held<F>) -> ElementChanges {
    let shared = &held.shared;
    let hairpins = shared.hairpins.keys().map(|addr| (Map::Hairpin, hairpin_bytes::<F>(addr)));
    let cluster_ips = shared.cluster_ips.keys().map(|addr| (Map::ClusterIps, address_bytes::<F>(addr)));
    let members = hairpins.chain(cluster_ips).map(|(map, key)| MapElement { map, element: member(key) });
    let own = held.frontends.iter().flat_map(|(key, programmed)| programmed.elements(key));
    let chains = held.chains.iter().map(|id| id.element());
    let mut wanted = by_map(own.chain(members).chain(chains));
    let mut changes = ElementChanges::default();
    for map in Map::all() {
        let found = found.sets.get(&map.name()).map_or(&[][..], |state| &state.elements);
        changes.map(map, found, wanted.remove(&map).unwrap_or_default());
    }
    changes
}

/// The table is ours: what we did not write goes. A foreign base chain could eat packets, and a counter or flowtable would
/// otherwise stay for good. All rules are ours or gone before, so nothing refers to those any more.
fn remove_foreign(ops: &mut Vec<Op>, found: &Ruleset, chains: &BTreeMap<nft::Name, ChainSpec>) {
    let foreign: Vec<_> = found.chains.keys().filter(|name| !chains.contains_key(*name)).collect();
    // Emptied first, since they may refer to one another.
    ops.extend(foreign.iter().map(|name| Op::SetRules { chain: (*name).clone(), rules: Vec::new() }));
    ops.extend(foreign.iter().map(|name| Op::DeleteChain((*name).clone())));
    let known: Vec<_> = Map::all().into_iter().map(Map::name).collect();
    let foreign = found.sets.keys().filter(|name| !known.contains(name));
    ops.extend(foreign.map(|name| Op::DeleteSet(name.clone())));
    ops.extend(found.objects.iter().map(|(kind, name)| Op::DeleteObject(*kind, name.clone())));
    ops.extend(found.flowtables.iter().map(|name| Op::DeleteFlowtable(name.clone())));
}
