//! Differences between elements, gathered per map and put into an order that is right at every step.

use std::collections::BTreeMap;

use model::{Family, FrontendKey};
use nft::{Bytes, Element, Op};

use crate::layout::{Map, Scope};
use crate::programmed::{MapElement, Programmed};

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
        for scope in Scope::ALL {
            let dispatch = |programmed: Option<&Programmed<F>>| programmed?.dispatch(scope, key);
            self.dispatch(dispatch(old), dispatch(new));
            let slots = |programmed: Option<&Programmed<F>>| -> Vec<Element> {
                programmed.into_iter().flat_map(|programmed| programmed.slot_elements(scope, key)).collect()
            };
            self.slots(Map::slots(scope, key.address), &slots(old), slots(new));
        }
        self.sources(key, old, new);
    }

    /// The difference between who may use a frontend.
    fn sources<F: Family>(
        &mut self,
        key: &FrontendKey<F>,
        old: Option<&Programmed<F>>,
        new: Option<&Programmed<F>>,
    ) {
        let elements = |programmed: Option<&Programmed<F>>| {
            programmed.map(|programmed| programmed.source_elements(key)).unwrap_or_default()
        };
        let (old, new) = (elements(old), elements(new));
        for map in [Map::Restricted, Map::AllowedSources] {
            let of_map = |elements: &[MapElement]| -> Vec<Element> {
                elements
                    .iter()
                    .filter(|element| element.map == map)
                    .map(|element| element.element.clone())
                    .collect()
            };
            self.map(map, &of_map(&old), of_map(&new));
        }
    }

    fn slots(&mut self, map: Map, old: &[Element], new: Vec<Element>) {
        for gone in old.iter().skip(new.len()) {
            self.delete(map, gone.key);
        }
        for (idx, element) in new.into_iter().enumerate() {
            match old.get(idx) {
                Some(same) if *same == element => {}
                Some(_) => self.replace(map, element),
                None => self.add(map, element),
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
        let (references, rest): (Vec<Map>, Vec<Map>) =
            Map::ALL.into_iter().partition(|map| map.is_dispatch());
        for map in rest.iter().chain(&references) {
            let Some(edits) = self.maps.get_mut(map) else { continue };
            let set = map.set();
            if *map == Map::AllowedSources {
                // The kernel refuses a network that overlaps one that is there still. Where a transaction has to be cut,
                // a sender may be kept away for a moment; the other order would let nobody else in either.
                let gone = std::mem::take(&mut edits.delete);
                push(ops, gone, |elements| Op::DeleteElements { set: set.clone(), elements });
            }
            push(ops, std::mem::take(&mut edits.add), |elements| Op::AddElements {
                set: set.clone(),
                elements,
            });
            push(ops, std::mem::take(&mut edits.replace), |elements| Op::ReplaceElements {
                set: set.clone(),
                elements,
            });
        }
        for map in references.iter().chain(&rest) {
            let Some(edits) = self.maps.get_mut(map) else { continue };
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
