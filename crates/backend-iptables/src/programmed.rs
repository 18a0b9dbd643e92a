//! What the tables hold, or are to hold, for one Service port.

use std::sync::Arc;

use ipnet::IpNet;
use model::{AddressKind, Destination, Family, Frontend, FrontendKey, Masquerade, Pool, ServicePortName};

use crate::names::Kind;

/// The frontends of one Service port that are in force.
///
/// All its external frontends treat packets alike, as `model::view` makes them: they share a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Programmed<F: Family> {
    pub(crate) name: ServicePortName,
    /// How long a client stays with its endpoint, in seconds.
    pub(crate) affinity: Option<u32>,
    pub(crate) internal: Option<Internal<F>>,
    pub(crate) external: Option<External<F>>,
}

/// The cluster IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Internal<F: Family> {
    pub(crate) key: FrontendKey<F>,
    pub(crate) pool: Pool<F>,
    pub(crate) masquerade: Masquerade,
}

/// All other addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct External<F: Family> {
    /// By which packets come in; never none.
    pub(crate) entrances: Vec<Entrance<F>>,
    pub(crate) pool: Pool<F>,
    /// For flows from pods and from the node itself, where that differs; never empty.
    pub(crate) short_cut: Option<Pool<F>>,
    pub(crate) masquerade: Masquerade,
}

/// One of the other addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrance<F: Family> {
    pub(crate) key: FrontendKey<F>,
    pub(crate) kind: AddressKind,
    /// Networks that alone may use it.
    pub(crate) allowed_sources: Option<Arc<[IpNet]>>,
}

impl<F: Family> Programmed<F> {
    /// From a Service port's frontends in force, of which there is at least one.
    pub(crate) fn new(name: &ServicePortName, frontends: &[&Frontend<F>]) -> Self {
        let affinity = frontends.first().and_then(|frontend| frontend.affinity);
        let (internal, external): (Vec<&Frontend<F>>, Vec<_>) =
            frontends.iter().partition(|frontend| frontend.kind == AddressKind::ClusterIp);
        Self {
            name: name.clone(),
            affinity: affinity
                .map(|affinity| u32::try_from(affinity.timeout.as_secs()).unwrap_or(u32::MAX).max(1)),
            internal: internal.first().map(|frontend| Internal {
                key: frontend.key,
                pool: frontend.pool.clone(),
                masquerade: frontend.masquerade,
            }),
            external: External::new(&external),
        }
    }

    /// Whether it has this frontend.
    pub(crate) fn has(&self, key: &FrontendKey<F>) -> bool {
        let is_internal = self.internal.as_ref().is_some_and(|internal| internal.key == *key);
        is_internal
            || self
                .external
                .as_ref()
                .is_some_and(|external| external.entrances.iter().any(|entrance| entrance.key == *key))
    }

    /// The endpoints of the chain `KUBE-SVC-`: those of the `Cluster` policy, where it is told apart.
    pub(crate) fn cluster_list(&self) -> &[Destination<F>] {
        match (&self.external, &self.internal) {
            (Some(external), _) => external.short_cut.as_ref().unwrap_or(&external.pool).endpoints(),
            (None, Some(internal)) => internal.pool.endpoints(),
            (None, None) => &[],
        }
    }

    /// The endpoints of the chain `KUBE-SVL-`: those of the `Local` policy, where something uses them.
    pub(crate) fn local_list(&self) -> &[Destination<F>] {
        let by_external = self.external.as_ref().filter(|external| external.short_cut.is_some());
        let by_internal = self.internal.as_ref().filter(|_| self.internal_list() == Kind::Local);
        let of_external = by_external.map(|external| external.pool.endpoints()).unwrap_or_default();
        let of_internal = by_internal.map(|internal| internal.pool.endpoints()).unwrap_or_default();
        debug_assert!(
            of_internal.is_empty() || of_external.is_empty() || of_internal == of_external,
            "one list of local endpoints"
        );
        if of_external.is_empty() { of_internal } else { of_external }
    }

    /// Which of the two lists is that of the cluster IP.
    pub(crate) fn internal_list(&self) -> Kind {
        match &self.internal {
            Some(internal) if internal.pool.endpoints() != self.cluster_list() => Kind::Local,
            Some(_) | None => Kind::Cluster,
        }
    }
}

impl<F: Family> External<F> {
    fn new(frontends: &[&Frontend<F>]) -> Option<Self> {
        let first = frontends.first()?;
        let entrance = |frontend: &&Frontend<F>| Entrance {
            key: frontend.key,
            kind: frontend.kind,
            allowed_sources: frontend.allowed_sources.clone(),
        };
        let short_cut = first.internal_pool.as_ref().filter(|pool| !pool.endpoints().is_empty());
        Some(Self {
            entrances: frontends.iter().map(entrance).collect(),
            pool: first.pool.clone(),
            short_cut: short_cut.cloned(),
            masquerade: first.masquerade,
        })
    }

    /// Whether anybody at all is served.
    pub(crate) fn is_served(&self) -> bool {
        self.short_cut.is_some() || !self.pool.endpoints().is_empty()
    }
}
