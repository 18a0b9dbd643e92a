//! Which slots are free: extents whose sizes are powers of two, at multiples of their size.

use std::collections::BTreeSet;

/// Free extents, by the power of two that is their size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    free: Vec<BTreeSet<u32>>,
}

impl Extents {
    /// All of so many slots, a power of two.
    pub(crate) fn new(slots: u32) -> Self {
        let order = slots.max(1).ilog2() as usize;
        let mut free = vec![BTreeSet::new(); order + 1];
        free[order].insert(0);
        Self { free }
    }

    /// Takes the smallest that is large enough; `None`: there is none.
    pub(crate) fn take(&mut self, order: u32) -> Option<u32> {
        let wanted = order as usize;
        let found = (wanted..self.free.len()).find(|order| !self.free[*order].is_empty())?;
        let base = self.free[found].pop_first()?;
        for half in wanted..found {
            self.free[half].insert(base + (1 << half));
        }
        Some(base)
    }

    /// Takes this one; false if part of it is not free.
    pub(crate) fn take_at(&mut self, base: u32, order: u32) -> bool {
        let wanted = order as usize;
        let start = |order: usize| base >> order << order;
        let Some(found) = (wanted..self.free.len()).find(|order| self.free[*order].contains(&start(*order)))
        else {
            return false;
        };
        if start(wanted) != base {
            return false;
        }
        self.free[found].remove(&start(found));
        for half in wanted..found {
            self.free[half].insert(start(half) ^ (1 << half));
        }
        true
    }

    /// Gives one back.
    pub(crate) fn give(&mut self, mut base: u32, order: u32) {
        let mut order = order as usize;
        while order + 1 < self.free.len() && self.free[order].remove(&(base ^ (1 << order))) {
            base &= !(1 << order);
            order += 1;
        }
        if let Some(free) = self.free.get_mut(order) {
            free.insert(base);
        }
    }
}

/// The smallest extent for so many slots, as power of two.
pub(crate) fn order_for(count: usize) -> u32 {
    count.next_power_of_two().ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_never_overlap_and_all_come_back(
            takes in proptest::collection::vec((0u32..5, any::<bool>(), 0u32..64), 0..60),
        ) {
            let mut extents = Extents::new(64);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (order, gives, base) in takes {
                if gives && !held.is_empty() {
                    let (base, order) = held.remove(base as usize % held.len());
                    extents.give(base, order);
                    continue;
                }
                let aligned = base >> order << order;
                let taken = if gives { extents.take_at(aligned, order).then_some(aligned) } else { extents.take(order) };
                let overlaps = |at: u32, size: u32| held.iter().any(|(base, order)| at < base + (1 << order) && *base < at + size);
                match taken {
                    Some(base) => {
                        prop_assert!(base + (1 << order) <= 64 && base % (1 << order) == 0);
                        prop_assert!(!overlaps(base, 1 << order));
                        held.push((base, order));
                    }
                    None if gives => prop_assert!(overlaps(aligned, 1 << order)),
                    None => prop_assert!((0..64 >> order).all(|n| overlaps(n << order, 1 << order))),
                }
            }
            for (base, order) in held {
                extents.give(base, order);
            }
            prop_assert_eq!(extents, Extents::new(64));
        }
    }
}
