//! What a packet's priority says on its way through our chains. A rule can hand on one number to the next, and this is the
//! only place for it that no other software reads behind our hooks; it is cleared before the packet leaves.
//!
//! Bits 0 to 19 are a pool's number. Above, at first, is what to do with it ([`ChoiceChain`], [`MasqueradeWhen`]); later, for a client with affinity,
//! the number of its endpoint.

use model::Masquerade;

/// The bits of a pool's number, which is never 0.
pub(crate) const POOL: u32 = 0x000f_ffff;
/// The bits of a chain's number.
pub(crate) const CHAIN: u32 = 0x3ff0_0000;
/// The bits that say when to masquerade.
pub(crate) const MASQUERADE: u32 = 0xc000_0000;

/// Among the bits of a chain's number, where proxies balance: a proxy takes the flow if there is a lease.
pub(crate) const PROXIED: u32 = 0x1000_0000;
/// The same, for internal flows that take the short cut.
pub(crate) const PROXIED_INTERNAL: u32 = 0x0800_0000;

/// Where the numbers of chains and of endpoints begin.
const SHIFT: u32 = 20;
/// Endpoints of a pool with affinity that take part: what is left of 32 bits for their numbers, of which 0 is none.
pub(crate) const MAX_AFFINITY_ENDPOINTS: u32 = (1 << (u32::BITS - SHIFT)) - 1;
/// Endpoints of any other pool that take part.
pub(crate) const MAX_ENDPOINTS: u32 = 1 << 16;

/// The chain that chooses an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChoiceChain {
    /// At random, among as many slots as the next power of two from the number of endpoints on.
    Random(Slots),
    /// The one that the client was given before.
    Affinity,
}

impl ChoiceChain {
    /// Its number, in the bits of [`CHAIN`]; never 0.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Random(Slots { log2 }) => (log2 + 1) << SHIFT,
            Self::Affinity => 0x200 << SHIFT,
        }
    }
}

/// A number of slots: a power of two, so that there are few such numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slots {
    log2: u32,
}

impl Slots {
    /// Enough for as many endpoints.
    pub(crate) const fn for_endpoints(n_endpoints: u32) -> Self {
        Self { log2: n_endpoints.next_power_of_two().trailing_zeros() }
    }

    /// Each number up to that for `max` endpoints.
    pub(crate) fn up_to(max: u32) -> impl Iterator<Item = Self> {
        (0..=Self::for_endpoints(max).log2).map(|log2| Self { log2 })
    }

    pub(crate) const fn count(self) -> u32 {
        1 << self.log2
    }

    /// Half as many, which all have an endpoint if these are needed; itself if it is one slot.
    pub(crate) const fn half(self) -> Self {
        Self { log2: self.log2.saturating_sub(1) }
    }
}

/// When a flow's source is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MasqueradeWhen {
    /// As the frontend says.
    Frontend(Masquerade),
    /// If the node itself is the sender: internal flows that take the short cut.
    FromNode,
}

impl MasqueradeWhen {
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Frontend(Masquerade::UnlessFromPod) => 0,
            Self::Frontend(Masquerade::Always) => 0x4000_0000,
            Self::Frontend(Masquerade::Never) => 0x8000_0000,
            Self::FromNode => MASQUERADE,
        }
    }
}

/// What a frontend's packets get as their priority.
pub(crate) const fn choice(masquerade: MasqueradeWhen, chain: ChoiceChain, pool: u32) -> u32 {
    masquerade.bits() | chain.bits() | pool
}

/// What leads to an endpoint of a pool with affinity: its number in the pool (1 to [`MAX_AFFINITY_ENDPOINTS`]) and the pool.
pub(crate) const fn endpoint(number: u32, pool: u32) -> u32 {
    number << SHIFT | pool
}

/// The endpoint's number and the pool.
pub(crate) const fn parse_endpoint(bits: u32) -> (u32, u32) {
    (bits >> SHIFT, bits & POOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_enough_and_half_of_them_is_not() {
        for n_endpoints in (1..1000).chain([MAX_ENDPOINTS - 1, MAX_ENDPOINTS]) {
            let slots = Slots::for_endpoints(n_endpoints);
            assert!(slots.count() >= n_endpoints);
            assert!(slots.half().count() <= n_endpoints);
            assert!(n_endpoints == 1 || slots.half().count() < n_endpoints);
        }
    }

    #[test]
    fn no_part_of_a_priority_meets_another() {
        let chains = Slots::up_to(MAX_ENDPOINTS).map(ChoiceChain::Random).chain([ChoiceChain::Affinity]);
        let bits: Vec<u32> = chains.map(ChoiceChain::bits).collect();
        let distinct: std::collections::BTreeSet<_> = bits.iter().collect();
        assert_eq!(distinct.len(), 18);
        for bits in bits {
            assert!(bits != 0 && bits & !CHAIN == 0 && bits & (PROXIED | PROXIED_INTERNAL) == 0);
            for masquerade in [Masquerade::UnlessFromPod, Masquerade::Always, Masquerade::Never] {
                assert_eq!(MasqueradeWhen::Frontend(masquerade).bits() & !MASQUERADE, 0);
            }
        }
        assert_eq!(MASQUERADE | CHAIN | POOL, u32::MAX);
        assert_eq!((PROXIED | PROXIED_INTERNAL) & !CHAIN, 0);
        assert_eq!(parse_endpoint(endpoint(MAX_AFFINITY_ENDPOINTS, POOL)), (MAX_AFFINITY_ENDPOINTS, POOL));
    }
}
