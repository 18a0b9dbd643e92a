//! `sessionAffinity: ClientIP`: which endpoint each client was given.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustc_hash::FxBuildHasher;

/// Clients that are remembered for one pool, as many as the kernel's modes remember.
pub const MAX_CLIENTS: usize = 65_535;

/// The clients of one pool. Times are since any moment that stays the same.
#[derive(Debug, Default)]
pub struct Affinity {
    clients: HashMap<IpAddr, (SocketAddr, Duration), FxBuildHasher>,
}

impl Affinity {
    /// The endpoint that a client was given less than the time-out ago.
    pub fn endpoint(&self, client: IpAddr, now: Duration, timeout: Duration) -> Option<SocketAddr> {
        let (endpoint, seen) = self.clients.get(&client)?;
        (now.saturating_sub(*seen) < timeout).then_some(*endpoint)
    }

    /// Takes note of what a client was given. One that finds no room is not remembered, as in the kernel.
    pub fn give(&mut self, client: IpAddr, endpoint: SocketAddr, now: Duration, timeout: Duration) {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            self.clients.retain(|_, (_, seen)| now.saturating_sub(*seen) < timeout);
        }
        if self.clients.len() < MAX_CLIENTS || self.clients.contains_key(&client) {
            self.clients.insert(client, (endpoint, now));
        }
    }

    /// Forgets clients of endpoints that are gone.
    pub fn retain(&mut self, is_there: impl Fn(SocketAddr) -> bool) {
        self.clients.retain(|_, (endpoint, _)| is_there(*endpoint));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn client(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    fn endpoint(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 80).into()
    }

    #[test]
    fn a_client_is_remembered_for_the_time_out_after_its_last_connection() {
        let mut affinity = Affinity::default();
        affinity.give(client(1), endpoint(1), secs(0), TIMEOUT);
        assert_eq!(affinity.endpoint(client(1), secs(9), TIMEOUT), Some(endpoint(1)));
        affinity.give(client(1), endpoint(1), secs(9), TIMEOUT);
        assert_eq!(affinity.endpoint(client(1), secs(18), TIMEOUT), Some(endpoint(1)));
        assert_eq!(affinity.endpoint(client(1), secs(19), TIMEOUT), None);
        assert_eq!(affinity.endpoint(client(2), secs(0), TIMEOUT), None);
    }

    #[test]
    fn clients_of_an_endpoint_that_went_are_forgotten() {
        let mut affinity = Affinity::default();
        affinity.give(client(1), endpoint(1), secs(0), TIMEOUT);
        affinity.give(client(2), endpoint(2), secs(0), TIMEOUT);
        affinity.retain(|found| found != endpoint(1));
        assert_eq!(affinity.endpoint(client(1), secs(0), TIMEOUT), None);
        assert_eq!(affinity.endpoint(client(2), secs(0), TIMEOUT), Some(endpoint(2)));
    }

    #[test]
    fn memory_is_bounded_and_room_comes_from_those_whose_time_is_over() {
        let mut affinity = Affinity::default();
        let n_clients = u32::try_from(MAX_CLIENTS).unwrap();
        for n in 0..n_clients {
            affinity.give(client(n), endpoint(1), secs(u64::from(n % 2) * 5), TIMEOUT);
        }
        affinity.give(client(n_clients), endpoint(2), secs(9), TIMEOUT);
        assert_eq!(affinity.endpoint(client(n_clients), secs(9), TIMEOUT), None);
        // One that is known moves all the same.
        affinity.give(client(0), endpoint(2), secs(9), TIMEOUT);
        assert_eq!(affinity.endpoint(client(0), secs(9), TIMEOUT), Some(endpoint(2)));
        affinity.give(client(n_clients), endpoint(2), secs(11), TIMEOUT);
        assert_eq!(affinity.endpoint(client(n_clients), secs(11), TIMEOUT), Some(endpoint(2)));
        assert_eq!(affinity.clients.len(), MAX_CLIENTS / 2 + 2);
    }
}
