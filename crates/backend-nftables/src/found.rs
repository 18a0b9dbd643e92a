//! Pools as they are found in the kernel, so that each keeps its number, and each endpoint its slot.

use std::collections::{BTreeSet, HashMap};

use model::Family;
use nft::{Bytes, Data, Element, Ruleset};
use rustc_hash::FxBuildHasher;

use crate::layout::{Map, Socket, clients, parse_affinity_name, parse_pool, parse_slot, parse_socket};
use crate::pools::{PoolKey, Previous};
use crate::priority::{POOL, parse_endpoint};

/// Protocol and number.
pub(crate) type Pool = (u8, u32);

/// What is found.
pub(crate) struct FoundPools<F: Family> {
    /// By protocol and comment.
    pools: HashMap<(u8, Box<str>), Previous<F>, FxBuildHasher>,
    /// Numbers that something is found under.
    pub(crate) numbers: BTreeSet<u32>,
}

impl<F: Family> FoundPools<F> {
    pub(crate) fn new(found: &Ruleset) -> Self {
        let mut slots = found_slots::<F>(found);
        let mut pools: HashMap<_, _, FxBuildHasher> = HashMap::default();
        let mut numbers = BTreeSet::new();
        for Element { key, comment, .. } in elements(found, Map::Pools) {
            let Some(pool) = parse_pool(key) else { continue };
            let is_first = (1..=POOL).contains(&pool.1) && numbers.insert(pool.1);
            if let Some(comment) = comment.as_ref().filter(|_| is_first) {
                let previous = Previous {
                    number: pool.1,
                    clients: comment_of_clients(found, pool.1),
                    ..slots.remove(&pool).unwrap_or_default()
                };
                pools.entry((pool.0, comment.clone())).or_insert(previous);
            }
        }
        numbers.extend(found.sets.keys().filter_map(|name| parse_affinity_name(name)));
        Self { pools, numbers }
    }

    /// What is found of a pool; it is nobody else's then.
    pub(crate) fn take(&mut self, key: &PoolKey) -> Option<Previous<F>> {
        self.pools.remove(&(key.service.protocol.number(), key.comment()))
    }
}

fn elements(found: &Ruleset, map: Map) -> &[Element] {
    found.sets.get(&map.name()).map_or(&[], |state| &state.elements)
}

/// The comment on a pool's map of clients; empty if the map is not as we would make it, and then no pool takes it over.
fn comment_of_clients(found: &Ruleset, number: u32) -> Option<Box<str>> {
    let wanted = clients(number, "");
    let state = found.sets.get(&wanted.name)?;
    Some(state.set.comment.clone().filter(|_| state.matches(&wanted)).unwrap_or_default())
}

/// What is in the slots, directly or by the endpoint's number.
fn found_slots<F: Family>(found: &Ruleset) -> HashMap<Pool, Previous<F>, FxBuildHasher> {
    let mut previous: HashMap<Pool, Previous<F>, FxBuildHasher> = HashMap::default();
    for (pool, elements) in by_pool(elements(found, Map::Endpoints)) {
        let mut sockets = Vec::with_capacity(elements.len());
        for (slot, data) in slots(elements) {
            // Behind a gap, numbers no longer are positions; the difference will tell.
            if u32::try_from(sockets.len()) == Ok(slot) {
                sockets.extend(parse_socket::<F>(data));
            }
        }
        previous.insert(pool, Previous { slots: sockets, ..Previous::default() });
    }
    let endpoints: HashMap<Pool, Socket<F>, FxBuildHasher> = elements(found, Map::AffinityEndpoints)
        .iter()
        .filter_map(|element| Some((parse_pool(&element.key)?, parse_socket::<F>(value(element)?)?)))
        .collect();
    for (pool, elements) in by_pool(elements(found, Map::AffinitySlots)) {
        let previous = previous.entry(pool).or_default();
        for (slot, data) in slots(elements) {
            let Some(bits) = data.reader().index() else { continue };
            let (number, of_pool) = parse_endpoint(bits);
            let endpoint = endpoints.get(&(pool.0, bits)).filter(|_| of_pool == pool.1);
            if let Some(socket) = endpoint.filter(|_| u32::try_from(previous.slots.len()) == Ok(slot)) {
                previous.slots.push(*socket);
                previous.endpoint_numbers.push(number);
            }
        }
    }
    previous
}

/// The elements of a map of slots, which are sorted by key, pool by pool.
pub(crate) fn by_pool(elements: &[Element]) -> impl Iterator<Item = (Pool, &[Element])> {
    let pool = |element: &Element| parse_slot(&element.key).map(|(pool, _)| pool);
    let pools = elements.chunk_by(move |a, b| pool(a) == pool(b));
    pools.filter_map(move |elements| Some((pool(elements.first()?)?, elements)))
}

/// What is in the slots of a pool, in their order. Not that of keys, which have numbers in the host's byte order.
fn slots(elements: &[Element]) -> Vec<(u32, &Bytes)> {
    let slots = elements.iter().filter_map(|element| Some((parse_slot(&element.key)?.1, value(element)?)));
    let mut slots: Vec<_> = slots.collect();
    slots.sort_unstable();
    slots
}

/// What an element leads to, where that is a value.
pub(crate) fn value(element: &Element) -> Option<&Bytes> {
    match &element.data {
        Data::Value(data) => Some(data),
        Data::None | Data::Verdict(_) => None,
    }
}
