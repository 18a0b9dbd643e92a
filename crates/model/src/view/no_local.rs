//! How often a policy `Local` leaves traffic without an endpoint, for a metric.

use std::collections::BTreeSet;
use std::ops::{Add, Sub};

use crate::{AddressKind, Family, Frontend, Pool, Verdict};

/// Numbers of Service ports that have endpoints somewhere but none on this node, where the policy asks for local ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// `externalTrafficPolicy: Local`.
    pub external: usize,
}

impl NoLocalEndpoints {
    /// Counts among the frontends of one Service.
    pub fn of<F: Family>(frontends: &[Frontend<F>]) -> Self {
        // Exactly these frontends drop: endpoints elsewhere, and none that the policy allows.
        let unserved =
            frontends.iter().filter(|frontend| matches!(frontend.pool, Pool::Empty(Verdict::Drop)));
        let (internal, external): (Vec<_>, Vec<_>) =
            unserved.partition(|frontend| frontend.kind == AddressKind::ClusterIp);
        // A port may have many external addresses.
        let ports = |frontends: &[&Frontend<F>]| {
            frontends.iter().map(|frontend| frontend.service.clone()).collect::<BTreeSet<_>>().len()
        };
        Self { internal: ports(&internal), external: ports(&external) }
    }
}

impl Add for NoLocalEndpoints {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { internal: self.internal + other.internal, external: self.external + other.external }
    }
}

impl Sub for NoLocalEndpoints {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { internal: self.internal - other.internal, external: self.external - other.external }
    }
}
