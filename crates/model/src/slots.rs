//! Stable numbering of endpoints.

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;

/// Numbers `wanted` from 0 without gaps, keeping each one's place in `previous` where possible, so that replacing one
/// endpoint of many changes one slot, and removing one changes two (the last one fills the gap).
///
/// `wanted` has no duplicates; `previous` may be anything.
pub fn assign_slots<T: Copy + Eq + Ord + Hash>(previous: &[T], wanted: &[T]) -> Box<[T]> {
    if previous == wanted {
        return wanted.into();
    }
    let mut missing: BTreeSet<T> = wanted.iter().copied().collect();
    let mut slots: Vec<Option<T>> = previous.iter().map(|old| missing.take(old)).collect();
    slots.resize(slots.len().max(wanted.len()), None);
    // Endpoints beyond the new end lose their place; they join those that never had one.
    missing.extend(slots.drain(wanted.len()..).flatten());
    let mut missing = missing.into_iter();
    let filled = slots.into_iter().map(|slot| slot.or_else(|| missing.next()));
    let filled: Box<[T]> = filled.flatten().collect();
    debug_assert_eq!(filled.iter().collect::<HashSet<_>>().len(), wanted.len());
    filled
}

#[cfg(test)]
mod tests {
    use super::assign_slots;
    use proptest::prelude::*;

    #[track_caller]
    fn check(previous: &[u8], wanted: &[u8], expected: &[u8]) {
        assert_eq!(&*assign_slots(previous, wanted), expected);
    }

    #[test]
    fn slots_stay_where_they_can() {
        check(&[], &[1, 2, 3], &[1, 2, 3]);
        check(&[3, 1, 2], &[1, 2, 3], &[3, 1, 2]);
        check(&[1, 2, 3], &[1, 3, 9], &[1, 9, 3]);
        check(&[1, 2, 3, 4], &[1, 3, 4], &[1, 4, 3]);
        check(&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3, 4]);
        check(&[7, 7, 8], &[7, 8], &[7, 8]);
        check(&[1, 2], &[], &[]);
    }

    proptest! {
        #[test]
        fn all_wanted_are_there_once_and_few_move(
            previous in proptest::collection::vec(0u8..20, 0..12),
            wanted in proptest::collection::btree_set(0u8..20, 0..12),
        ) {
            let wanted: Vec<u8> = wanted.into_iter().collect();
            let slots = assign_slots(&previous, &wanted);
            let mut sorted = slots.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &wanted);
            for (idx, old) in previous.iter().enumerate().take(wanted.len()) {
                let first = previous.iter().position(|p| p == old) == Some(idx);
                prop_assert!(!first || !wanted.contains(old) || slots[idx] == *old);
            }
        }
    }
}
