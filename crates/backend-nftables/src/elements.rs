//! Differences between elements, gathered per map and put into an order that is right at every step.

use std::collections::BTreeMap;

use nft::{Bytes, Element, Op};

use crate::counted::{UseChanges, Uses};
use crate::layout::{Map, MapElement};

/// What to do to the elements of all maps.
#[derive(Debug, Default)]
pub(crate) struct ElementChanges {
    maps: BTreeMap<Map, Edits>,
}

#[derive(Debug, Default)]
struct Edits {
    add: Vec<Element>,
    replace: Vec<Element>,
    delete: Vec<Bytes>,
}

impl ElementChanges {
    /// An element that is not there yet.
    fn add(&mut self, MapElement { map, element }: MapElement) {
        self.maps.entry(map).or_default().add.push(element);
    }

    fn replace(&mut self, map: Map, element: Element) {
        self.maps.entry(map).or_default().replace.push(element);
    }

    fn delete(&mut self, map: Map, key: Bytes) {
        self.maps.entry(map).or_default().delete.push(key);
    }

    /// The difference between two lists of elements.
    pub(crate) fn difference(
        &mut self,
        old: impl Iterator<Item = MapElement>,
        new: impl Iterator<Item = MapElement>,
    ) {
        let mut old = by_map(old);
        for (map, wanted) in by_map(new) {
            self.map(map, old.remove(&map).unwrap_or_default().iter(), wanted);
        }
        for (map, gone) in old {
            self.map(map, gone.iter(), Vec::new());
        }
    }

    /// The difference for a set of shared objects.
    pub(crate) fn members<K: Copy + Ord>(
        &mut self,
        map: Map,
        uses: &Uses<K>,
        changes: &UseChanges<K>,
        key: impl Fn(K) -> Bytes,
    ) {
        for object in uses.beginning(changes) {
            self.add(MapElement::member(map, key(object)));
        }
        for object in uses.ending(changes) {
            self.delete(map, key(object));
        }
    }

    /// The difference between two sorted lists of a map's elements.
    pub(crate) fn map<'a>(
        &mut self,
        map: Map,
        found: impl Iterator<Item = &'a Element>,
        wanted: Vec<Element>,
    ) {
        let mut found = found.peekable();
        for element in wanted {
            while let Some(extra) = found.next_if(|found| found.key < element.key) {
                self.delete(map, extra.key);
            }
            match found.next_if(|found| found.key == element.key) {
                Some(same) if *same == element => {}
                Some(_) => self.replace(map, element),
                None => self.add(MapElement { map, element }),
            }
        }
        for extra in found {
            self.delete(map, extra.key);
        }
    }

    /// The operations, ordered so that packets are served rightly after each of them: what is referred to exists before
    /// the reference, and goes after it. Chains and sets are the caller's to add before and to delete after.
    pub(crate) fn into_ops(self, ops: &mut Vec<Op>, before_deletions: Vec<Op>) {
        let mut deletions = Vec::new();
        for (map, Edits { add, replace, delete }) in self.maps {
            let set = map.set();
            let deleted = |elements| Op::DeleteElements { set: set.clone(), elements };
            if map == Map::AllowedSources {
                // The kernel refuses a network that overlaps one that is there still. Where a transaction has to be cut,
                // a sender may be kept away for a moment; the other order would let nobody else in either.
                push(ops, delete, deleted);
            } else {
                push(&mut deletions, delete, deleted);
            }
            push(ops, add, |elements| Op::AddElements { set: set.clone(), elements });
            push(ops, replace, |elements| Op::ReplaceElements { set: set.clone(), elements });
        }
        ops.extend(before_deletions);
        ops.extend(deletions.into_iter().rev());
    }
}

/// Elements by map, sorted by key.
pub(crate) fn by_map(elements: impl Iterator<Item = MapElement>) -> BTreeMap<Map, Vec<Element>> {
    let mut by_map: BTreeMap<Map, Vec<Element>> = BTreeMap::new();
    for MapElement { map, element } in elements {
        by_map.entry(map).or_default().push(element);
    }
    for elements in by_map.values_mut() {
        elements.sort_unstable_by_key(|element| element.key);
    }
    by_map
}

fn push<T>(ops: &mut Vec<Op>, elements: Vec<T>, op: impl FnOnce(Vec<T>) -> Op) {
    if !elements.is_empty() {
        ops.push(op(elements));
    }
}
