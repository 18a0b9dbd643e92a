//! What went through.

use std::net::SocketAddr;

use model::ServicePortName;

/// What went through in some time. Sums of several stay sums: what one of them does not know is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New flows that were given an endpoint.
    pub connections: u64,
    /// Packets that were refused, since there is no endpoint; connections, where a worker found none that answers.
    pub refused: u64,
    /// Packets that were dropped, since their endpoints are on other nodes, or since their sender is in none of
    /// `loadBalancerSourceRanges`.
    pub dropped: u64,
    /// Packets both ways, where the kernel counts them anyway.
    pub packets: Option<u64>,
    /// Bytes of these; of what they carry, where a worker counts.
    pub bytes: Option<u64>,
    /// Times that an endpoint did not take a flow, so that another one was tried, where a worker does that.
    pub retries: Option<u64>,
}

impl Counters {
    /// So many new flows, and nothing else.
    pub fn connections(connections: u64) -> Self {
        Self { connections, ..Self::default() }
    }

    /// Combines each counter with its like.
    fn with(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        let either = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(combine(a.unwrap_or_default(), b.unwrap_or_default())),
        };
        Self {
            connections: combine(self.connections, other.connections),
            refused: combine(self.refused, other.refused),
            dropped: combine(self.dropped, other.dropped),
            packets: either(self.packets, other.packets),
            bytes: either(self.bytes, other.bytes),
            retries: either(self.retries, other.retries),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What has been counted since a counter stood there. One that stands lower has begun anew, so that all it says is since.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        self.with(earlier, |now, then| if now < then { now } else { now - then })
    }
}

/// One of the target's counters, as it was read: an element's, a rule's, a server's. It may begin anew at any time, as when
/// what counts is made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    /// Whose it is.
    pub service: ServicePortName,
    /// The endpoint that is counted, where that is one.
    pub endpoint: Option<SocketAddr>,
    /// Which of the counters of this Service port and endpoint it is. Two readings with the same number are of the same counter,
    /// unless that began anew meanwhile.
    pub id: u64,
    /// What it says.
    pub counters: Counters,
}
