//! Differences between elements, gathered per map and put into an order that is right at every step.

use std::collections::BTreeMap;

use model::{Family, FrontendKey};
use nft::{Bytes, Element, Op};

use crate::layout::Map;
use crate::programmed::{MapElement, Programmed, slot_map};

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
    pub(crate) fn add(&mut self, map: Map, element: Element) {
        self.maps.entry(map).or_default().add.push(element);
    }

    pub(crate) fn replace(&mut self, map: Map, element: Element) {
        self.maps.entry(map).or_default().replace.push(element);
    }

    pub(crate) fn delete(&mut self, map: Map, key: Bytes) {
        self.maps.entry(map).or_default().delete.push(key);
    }

    /// The difference for one frontend.
    pub(crate) fn frontend<F: Family>(
        &mut self,
        key: &FrontendKey<F>,
        old: Option<&Programmed<F>>,
        new: Option<&Programmed<F>>,
    ) {
        self.dispatch(old.map(|old| old.dispatch(key)), new.map(|new| new.dispatch(key)));
        let map = slot_map(key);
        let mut old_slots = old.into_iter().flat_map(|old| old.slot_elements(key));
        let mut new_slots = new.into_iter().flat_map(|new| new.slot_elements(key));
        loop {
            match (old_slots.next(), new_slots.next()) {
                (Some(old), Some(new)) if old == new => {}
                (Some(_), Some(new)) => self.replace(map, new),
                (None, Some(new)) => self.add(map, new),
                (Some(old), None) => self.delete(map, old.key),
                (None, None) => break,
            }
        }
    }

    fn dispatch(&mut self, old: Option<MapElement>, new: Option<MapElement>) {
        match (old, new) {
            (Some(old), Some(new)) if old.map == new.map => {
                if old.element != new.element {
                    self.replace(new.map, new.element);
                }
            }
            (old, new) => {
                if let Some(new) = new {
                    self.add(new.map, new.element);
                }
                if let Some(old) = old {
                    self.delete(old.map, old.element.key);
                }
            }
        }
    }

    /// The difference between two sorted lists of a map's elements.
    pub(crate) fn map(&mut self, map: Map, found: &[Element], wanted: Vec<Element>) {
        let mut found = found.iter().peekable();
        for element in wanted {
            while let Some(extra) = found.next_if(|found| found.key < element.key) {
                self.delete(map, extra.key);
            }
            match found.next_if(|found| found.key == element.key) {
                Some(same) if *same == element => {}
                Some(_) => self.replace(map, element),
                None => self.add(map, element),
            }
        }
        for extra in found {
            self.delete(map, extra.key);
        }
    }

    /// The operations, ordered so that packets are served rightly after each of them: what is referred to exists before
    /// the reference, and goes after it. Chains are the caller's to add before and to delete after.
    pub(crate) fn into_ops(mut self, ops: &mut Vec<Op>) {
        for map in BEFORE_REFERENCES.into_iter().chain(REFERENCES) {
            let Some(edits) = self.maps.get_mut(&map) else { continue };
            let set = map.set();
            push(ops, std::mem::take(&mut edits.add), |elements| Op::AddElements {
                set: set.clone(),
                elements,
            });
            push(ops, std::mem::take(&mut edits.replace), |elements| Op::ReplaceElements {
                set: set.clone(),
                elements,
            });
        }
        for map in REFERENCES.into_iter().chain(BEFORE_REFERENCES) {
            let Some(edits) = self.maps.get_mut(&map) else { continue };
            let set = map.set();
            push(ops, std::mem::take(&mut edits.delete), |elements| Op::DeleteElements { set, elements });
        }
    }
}

fn push<T>(ops: &mut Vec<Op>, elements: Vec<T>, op: impl FnOnce(Vec<T>) -> Op) {
    if !elements.is_empty() {
        ops.push(op(elements));
    }
}

const BEFORE_REFERENCES: [Map; 3] = [Map::Hairpin, Map::Endpoints, Map::NodePortEndpoints];
const REFERENCES: [Map; 4] =
    [Map::ServiceIps, Map::ServiceNodePorts, Map::NoEndpointServices, Map::NoEndpointNodePorts];
