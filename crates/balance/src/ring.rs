//! A ring of hashes: an endpoint that comes or goes moves only the clients next to its points.

use std::net::{IpAddr, SocketAddr};

use crate::hash;

/// Points of each endpoint: shares differ by about a tenth.
const POINTS: u64 = 100;

/// The points of all endpoints, sorted, each with its endpoint's position.
#[derive(Clone, Debug)]
pub(crate) struct Ring(Vec<(u64, usize)>);

impl Ring {
    pub(crate) fn new(endpoints: &[SocketAddr]) -> Self {
        let points_of = |(position, endpoint): (usize, &SocketAddr)| {
            let endpoint = *endpoint;
            (0..POINTS).map(move |point| (hash::of_endpoint(endpoint, point), position))
        };
        let mut points: Vec<_> = endpoints.iter().enumerate().flat_map(points_of).collect();
        points.sort_unstable();
        Self(points)
    }

    /// The endpoints from a client's place on, each as often as it has points.
    pub(crate) fn starting_at(&self, client: IpAddr) -> impl Iterator<Item = usize> {
        let place = hash::of_client(client);
        let start = self.0.partition_point(|(point, _)| *point < place);
        let (before, behind) = self.0.split_at(start);
        behind.iter().chain(before).map(|(_, position)| *position)
    }
}
