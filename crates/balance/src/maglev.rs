//! Maglev's table: shares are even to about one part in a hundred, and an endpoint that comes or goes moves few clients but its
//! own. (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", section 3.4.)

use std::net::{IpAddr, SocketAddr};

use crate::hash;

/// Sizes of tables, primes: the first that has a hundred places for each endpoint, or the last.
const SIZES: [usize; 4] = [251, 2039, 16_381, 65_537];

/// A place's endpoint, as position.
#[derive(Clone, Debug)]
pub(crate) struct Maglev(Vec<u32>);

impl Maglev {
    pub(crate) fn new(endpoints: &[SocketAddr]) -> Self {
        let is_enough = |size: &&usize| **size >= endpoints.len() * 100;
        let size = *SIZES.iter().find(is_enough).unwrap_or(&SIZES[SIZES.len() - 1]);
        let mut places = vec![u32::MAX; size];
        let taking_part = &endpoints[..endpoints.len().min(size)];
        let mut preferences: Vec<_> =
            taking_part.iter().map(|endpoint| Preferences::new(*endpoint, size)).collect();
        let mut left = if taking_part.is_empty() { 0 } else { size };
        while left > 0 {
            for (position, preferences) in (0..).zip(&mut preferences) {
                if left > 0 {
                    let place = preferences.next_free(&places);
                    places[place] = position;
                    left -= 1;
                }
            }
        }
        Self(places)
    }

    /// The endpoints from a client's place on, each as often as it has places.
    pub(crate) fn starting_at(&self, client: IpAddr) -> impl Iterator<Item = usize> {
        let size = u64::try_from(self.0.len()).unwrap_or(1);
        let start = usize::try_from(hash::of_client(client) % size).unwrap_or(0);
        let (before, behind) = self.0.split_at(start);
        let taken = |place: &u32| usize::try_from(*place).ok().filter(|_| *place != u32::MAX);
        behind.iter().chain(before).filter_map(taken)
    }
}

/// The order in which an endpoint wants places: all of them, since the size is a prime.
struct Preferences {
    next: usize,
    skip: usize,
    size: usize,
}

impl Preferences {
    fn new(endpoint: SocketAddr, size: usize) -> Self {
        let below = |seed, limit: usize| {
            let limit = u64::try_from(limit).unwrap_or(1);
            usize::try_from(hash::of_endpoint(endpoint, seed) % limit).unwrap_or(0)
        };
        Self { next: below(0, size), skip: below(1, size - 1) + 1, size }
    }

    /// Some place is free.
    fn next_free(&mut self, places: &[u32]) -> usize {
        loop {
            let place = self.next;
            self.next = (self.next + self.skip) % self.size;
            if places[place] == u32::MAX {
                return place;
            }
        }
    }
}
