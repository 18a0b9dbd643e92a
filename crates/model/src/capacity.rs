//! Giving memory back.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

/// Tables below this are never shrunk.
const SMALL: usize = 1024;

/// Shrinks a table that is mostly empty, to be called after removals: a hash table keeps the room for the most that it ever
/// held. Over all removals it costs a constant for each.
pub fn shrink_if_sparse<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > SMALL && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mostly_empty_is_shrunk_and_seldom() {
        let mut map: HashMap<u32, u32> = (0..100_000).map(|n| (n, n)).collect();
        let full = map.capacity();
        let mut shrunk = 0;
        for n in 0..100_000 {
            map.remove(&n);
            let before = map.capacity();
            shrink_if_sparse(&mut map);
            shrunk += usize::from(map.capacity() < before);
        }
        assert!(map.capacity() <= SMALL && full > 100_000, "{} of {full}", map.capacity());
        assert!(shrunk < 10, "{shrunk} times");
    }
}
