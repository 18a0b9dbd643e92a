//! Policies.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::hash::mixed;
use crate::maglev::Maglev;
use crate::ring::Ring;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// At random.
    Random,
    /// Of two at random, the one that has less to do.
    LeastRequest,
    /// By the client's address, on a ring of hashes.
    RingHash,
    /// By the client's address, in Maglev's table.
    Maglev,
}

impl Policy {
    /// All that there are.
    pub const ALL: [Self; 5] =
        [Self::RoundRobin, Self::Random, Self::LeastRequest, Self::RingHash, Self::Maglev];

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastRequest => "least-request",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
        }
    }

    /// The policy of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name)
    }
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Who asks.
    pub client: IpAddr,
    /// Any number, each as likely as any other.
    pub random: u64,
}

/// The choice among some endpoints by a policy.
#[derive(Debug)]
pub struct Choice {
    n_endpoints: usize,
    method: Method,
}

#[derive(Debug)]
enum Method {
    RoundRobin(AtomicUsize),
    Random,
    LeastRequest,
    Ring(Ring),
    Maglev(Maglev),
}

impl Choice {
    /// Among these, which later are known by their positions.
    pub fn new(policy: Policy, endpoints: &[SocketAddr]) -> Self {
        let method = match policy {
            Policy::RoundRobin => Method::RoundRobin(AtomicUsize::new(0)),
            Policy::Random => Method::Random,
            Policy::LeastRequest => Method::LeastRequest,
            Policy::RingHash => Method::Ring(Ring::new(endpoints)),
            Policy::Maglev => Method::Maglev(Maglev::new(endpoints)),
        };
        Self { n_endpoints: endpoints.len(), method }
    }

    /// The position of an endpoint that is usable; `None` if none is. `load` is what an endpoint has to do.
    pub fn pick(
        &self,
        draw: Draw,
        load: impl Fn(usize) -> usize,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match &self.method {
            Method::RoundRobin(turn) => self.first_from(turn.fetch_add(1, Ordering::Relaxed), &usable),
            Method::Random => self.random(draw.random, &usable),
            Method::LeastRequest => {
                let one = self.random(draw.random, &usable)?;
                let other = self.random(mixed(draw.random.wrapping_add(1)), |at| at != one && usable(at));
                Some(other.filter(|other| load(*other) < load(one)).unwrap_or(one))
            }
            Method::Ring(ring) => ring.starting_at(draw.client).find(|at| usable(*at)),
            Method::Maglev(maglev) => maglev.starting_at(draw.client).find(|at| usable(*at)),
        }
    }

    fn first_from(&self, start: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = start.checked_rem(self.n_endpoints)?;
        (start..self.n_endpoints).chain(0..start).find(|at| usable(*at))
    }

    /// Each of the usable ones as likely as any other.
    fn random(&self, random: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let n_usable = (0..self.n_endpoints).filter(|at| usable(*at)).count();
        let nth = usize::try_from(random % u64::try_from(n_usable).ok()?.max(1)).ok()?;
        (0..self.n_endpoints).filter(|at| usable(*at)).nth(nth)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(n: u16) -> Vec<SocketAddr> {
        (0..n).map(|n| SocketAddr::from(([10, 0, (n >> 8) as u8, n.to_be_bytes()[1]], 80))).collect()
    }

    fn draw(n: u32) -> Draw {
        Draw { client: Ipv4Addr::from(0x0a01_0000 + n).into(), random: mixed(u64::from(n)) }
    }

    fn shares(policy: Policy, n_endpoints: u16, n_draws: u32) -> BTreeMap<usize, u32> {
        let choice = Choice::new(policy, &endpoints(n_endpoints));
        let mut shares = BTreeMap::new();
        for n in 0..n_draws {
            *shares.entry(choice.pick(draw(n), |_| 0, |_| true).unwrap()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        assert_eq!(shares(Policy::RoundRobin, 3, 9), BTreeMap::from([(0, 3), (1, 3), (2, 3)]));
    }

    #[test]
    fn every_policy_is_fair() {
        for (policy, off_by) in [
            (Policy::Random, 150),
            (Policy::LeastRequest, 150),
            (Policy::Maglev, 200),
            // The points of a ring are few.
            (Policy::RingHash, 400),
        ] {
            for (position, share) in shares(policy, 10, 10_000) {
                assert!(share.abs_diff(1000) < off_by, "{policy:?} gives {position} {share} of 10,000");
            }
        }
    }

    #[test]
    fn least_request_passes_over_the_busy_one() {
        let choice = Choice::new(Policy::LeastRequest, &endpoints(3));
        for n in 0..1000 {
            // Whichever two are drawn, the busy one is not the better.
            let picked = choice.pick(draw(n), |at| if at == 1 { 10 } else { 0 }, |_| true);
            assert_ne!(picked, Some(1));
        }
    }

    #[test]
    fn a_client_stays_when_others_endpoints_go() {
        for policy in [Policy::RingHash, Policy::Maglev] {
            let (all, gone) = (endpoints(10), 4);
            let fewer: Vec<_> = all.iter().copied().filter(|endpoint| *endpoint != all[gone]).collect();
            let (before, after) = (Choice::new(policy, &all), Choice::new(policy, &fewer));
            let moved = (0..2000)
                .filter(|n| {
                    let was = all[before.pick(draw(*n), |_| 0, |_| true).unwrap()];
                    let is = fewer[after.pick(draw(*n), |_| 0, |_| true).unwrap()];
                    was != all[gone] && was != is
                })
                .count();
            // A ring moves none at all, Maglev a few.
            let most = if policy == Policy::RingHash { 0 } else { 300 };
            assert!(moved <= most, "{policy:?} moved {moved} of 2000");
        }
    }

    proptest! {
        #[test]
        fn only_usable_endpoints_are_picked_and_one_if_there_is_any(
            n_endpoints in 0..40u16,
            usable in proptest::collection::vec(any::<bool>(), 40),
            n in any::<u32>(),
            policy in proptest::sample::select(Policy::ALL.to_vec()),
        ) {
            let choice = Choice::new(policy, &endpoints(n_endpoints));
            let draw = Draw { random: mixed(u64::from(n)), ..draw(n % 1000) };
            let picked = choice.pick(draw, |at| at, |at| usable[at]);
            let n_endpoints = usize::from(n_endpoints);
            prop_assert_eq!(picked.is_some(), usable[..n_endpoints].contains(&true));
            prop_assert!(picked.is_none_or(|at| at < n_endpoints && usable[at]));
        }
    }
}
