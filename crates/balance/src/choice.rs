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
    /// At random, each as often as its weight says.
    Weighted,
}

impl Policy {
    /// All that there are.
    pub const ALL: [Self; 6] =
        [Self::RoundRobin, Self::Random, Self::LeastRequest, Self::RingHash, Self::Maglev, Self::Weighted];

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastRequest => "least-request",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
            Self::Weighted => "weighted",
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

/// The whole of what is due to an endpoint ([`Choice::pick`]).
pub const WHOLE_SHARE: u32 = 1000;

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
    /// By position; those behind the last have 1.
    Weighted(Box<[u32]>),
}

impl Choice {
    /// Among these, which later are known by their positions. Only [`Policy::Weighted`] looks at weights; an endpoint without one has 1.
    pub fn new(policy: Policy, endpoints: &[SocketAddr], weights: &[u32]) -> Self {
        let method = match policy {
            Policy::RoundRobin => Method::RoundRobin(AtomicUsize::new(0)),
            Policy::Random => Method::Random,
            Policy::LeastRequest => Method::LeastRequest,
            Policy::RingHash => Method::Ring(Ring::new(endpoints)),
            Policy::Maglev => Method::Maglev(Maglev::new(endpoints)),
            Policy::Weighted => Method::Weighted(weights.into()),
        };
        Self { n_endpoints: endpoints.len(), method }
    }

    /// The position of an endpoint that is usable; `None` if none is. `load` is what an endpoint has to do, and `share` how much of what
    /// is due to it it is to get, in thousandths ([`WHOLE_SHARE`]); 0: it is not usable. Where clients decide (ring hash, Maglev), a share is
    /// as good as the whole, since clients would be led elsewhere and come back.
    pub fn pick(
        &self,
        draw: Draw,
        load: impl Fn(usize) -> usize,
        share: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let usable = |at: usize| share(at) > 0;
        match &self.method {
            Method::RoundRobin(turn) => {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                self.first_from(turn, |at| takes_its_turn(draw, at, share(at)))
                    .or_else(|| self.first_from(turn, usable))
            }
            Method::Random => self.random(draw.random, &share),
            Method::LeastRequest => {
                let one = self.random(draw.random, &share)?;
                let of_others = |at| if at == one { 0 } else { share(at) };
                let other = self.random(mixed(draw.random.wrapping_add(1)), of_others);
                Some(other.filter(|other| load(*other) < load(one)).unwrap_or(one))
            }
            Method::Ring(ring) => ring.starting_at(draw.client).find(|at| usable(*at)),
            Method::Maglev(maglev) => maglev.starting_at(draw.client).find(|at| usable(*at)),
            Method::Weighted(weights) => {
                let weight = |at: usize| weights.get(at).copied().unwrap_or(1);
                let weighted = |at| weight(at).saturating_mul(share(at));
                // Those of weight 0 are better than none.
                self.random(draw.random, weighted).or_else(|| self.random(draw.random, &share))
            }
        }
    }

    fn first_from(&self, start: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = start.checked_rem(self.n_endpoints)?;
        (start..self.n_endpoints).chain(0..start).find(|at| usable(*at))
    }

    /// Each as likely as its part of all.
    fn random(&self, random: u64, part: impl Fn(usize) -> u32) -> Option<usize> {
        let all: u64 = (0..self.n_endpoints).map(|at| u64::from(part(at))).sum();
        let mut left = random.checked_rem(all)?;
        (0..self.n_endpoints).find(|at| {
            let part = u64::from(part(*at));
            let is_it = left < part;
            left = left.saturating_sub(part);
            is_it
        })
    }
}

/// Whether an endpoint takes a turn that is its: as often as its share says.
fn takes_its_turn(draw: Draw, at: usize, share: u32) -> bool {
    let at = u64::try_from(at).unwrap_or(u64::MAX);
    share > 0 && mixed(draw.random ^ mixed(at)) % u64::from(WHOLE_SHARE) < u64::from(share)
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
        let choice = Choice::new(policy, &endpoints(n_endpoints), &[]);
        let mut shares = BTreeMap::new();
        for n in 0..n_draws {
            *shares.entry(choice.pick(draw(n), |_| 0, all).unwrap()).or_default() += 1;
        }
        shares
    }

    fn all(_at: usize) -> u32 {
        WHOLE_SHARE
    }

    #[test]
    fn weights_are_shares() {
        let counts = |weights: &[u32], usable: fn(usize) -> u32| {
            let choice = Choice::new(Policy::Weighted, &endpoints(3), weights);
            let mut counts = [0_u32; 3];
            for n in 0..12_000 {
                counts[choice.pick(draw(n), |_| 0, usable).unwrap()] += 1;
            }
            counts
        };
        // Within five sigma, 270 of 12,000 at most.
        for (weights, usable, expected) in [
            (&[3, 1][..], all as fn(usize) -> u32, [7200, 2400, 2400]),
            (&[3, 1, 0], all, [9000, 3000, 0]),
            (&[3, 1, 2], |at| if at == 0 { 0 } else { WHOLE_SHARE }, [0, 4000, 8000]),
            (&[0, 0, 0], all, [4000, 4000, 4000]),
            (&[], all, [4000, 4000, 4000]),
        ] {
            for (found, expected) in counts(weights, usable).into_iter().zip(expected) {
                assert!(found.abs_diff(expected) < 270, "{weights:?} gives {found} in place of {expected}");
                assert!(expected > 0 || found == 0);
            }
        }
    }

    /// Of three endpoints one has a fifth of what is due to it, 1/15 of all in rounds and 1/11 by chance, as two others have the rest.
    #[test]
    fn an_endpoint_with_a_share_gets_less() {
        for (policy, expected) in
            [(Policy::RoundRobin, 800_u32), (Policy::Random, 1091), (Policy::Weighted, 1091)]
        {
            let choice = Choice::new(policy, &endpoints(3), &[]);
            let share = |at| if at == 2 { WHOLE_SHARE / 5 } else { WHOLE_SHARE };
            let met = (0..12_000).filter(|n| choice.pick(draw(*n), |_| 0, share) == Some(2)).count();
            let met = u32::try_from(met).unwrap();
            assert!(met.abs_diff(expected) < 170, "{policy:?} gives {met} in place of {expected}");
        }
        let choice = Choice::new(Policy::LeastRequest, &endpoints(3), &[]);
        let share = |at| if at == 2 { WHOLE_SHARE / 5 } else { WHOLE_SHARE };
        let idle = |at| usize::from(at != 2);
        let met = (0..12_000).filter(|n| choice.pick(draw(*n), idle, share) == Some(2)).count();
        // It is the better of two whenever it is drawn, which would be eight thousand times if it had all of its share.
        assert!((1500..3500).contains(&met), "{met}");
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
            (Policy::Weighted, 150),
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
        let choice = Choice::new(Policy::LeastRequest, &endpoints(3), &[]);
        for n in 0..1000 {
            // Whichever two are drawn, the busy one is not the better.
            let picked = choice.pick(draw(n), |at| if at == 1 { 10 } else { 0 }, all);
            assert_ne!(picked, Some(1));
        }
    }

    #[test]
    fn a_client_stays_when_others_endpoints_go() {
        for policy in [Policy::RingHash, Policy::Maglev] {
            let (every, gone) = (endpoints(10), 4);
            let fewer: Vec<_> = every.iter().copied().filter(|endpoint| *endpoint != every[gone]).collect();
            let (before, after) = (Choice::new(policy, &every, &[]), Choice::new(policy, &fewer, &[]));
            let moved = (0..2000)
                .filter(|n| {
                    let was = every[before.pick(draw(*n), |_| 0, all).unwrap()];
                    let is = fewer[after.pick(draw(*n), |_| 0, all).unwrap()];
                    was != every[gone] && was != is
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
            shares in proptest::collection::vec(prop_oneof![Just(0), 1..=WHOLE_SHARE], 40),
            weights in proptest::collection::vec(0..3u32, 0..40),
            n in any::<u32>(),
            policy in proptest::sample::select(Policy::ALL.to_vec()),
        ) {
            let choice = Choice::new(policy, &endpoints(n_endpoints), &weights);
            let draw = Draw { random: mixed(u64::from(n)), ..draw(n % 1000) };
            let picked = choice.pick(draw, |at| at, |at| shares[at]);
            let n_endpoints = usize::from(n_endpoints);
            prop_assert_eq!(picked.is_some(), shares[..n_endpoints].iter().any(|share| *share > 0));
            prop_assert!(picked.is_none_or(|at| at < n_endpoints && shares[at] > 0));
        }
    }
}
