//! Objects that several frontends or pools share, counted: they exist while somebody uses them.

use std::collections::BTreeMap;

use model::{AddressKind, Balancer, Family, FrontendAddress, FrontendKey};

use crate::frontend::Programmed;
use crate::pools::Pool;

/// How many use each object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uses<K>(BTreeMap<K, usize>);

impl<K> Default for Uses<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// Uses that begin (positive) or end (negative).
#[derive(Clone, Debug)]
pub(crate) struct UseChanges<K>(BTreeMap<K, isize>);

impl<K> Default for UseChanges<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Copy + Ord> Uses<K> {
    /// The objects in use.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        self.0.keys().copied()
    }

    /// The objects that come into use by these changes.
    pub(crate) fn beginning(&self, changes: &UseChanges<K>) -> Vec<K> {
        let unused = |key: &K| !self.0.contains_key(key);
        changes.0.iter().filter(|(key, change)| **change > 0 && unused(key)).map(|(key, _)| *key).collect()
    }

    /// The objects that nobody uses any more after these changes.
    pub(crate) fn ending(&self, changes: &UseChanges<K>) -> Vec<K> {
        let after =
            |key: &K, change: isize| self.0.get(key).copied().unwrap_or(0).saturating_add_signed(change);
        let ending = changes.0.iter().filter(|(key, change)| **change < 0 && after(key, **change) == 0);
        ending.map(|(key, _)| *key).collect()
    }

    pub(crate) fn apply(&mut self, changes: UseChanges<K>) {
        for (key, change) in changes.0 {
            let users = self.0.get(&key).copied().unwrap_or(0).saturating_add_signed(change);
            if users == 0 {
                self.0.remove(&key);
            } else {
                self.0.insert(key, users);
            }
        }
    }
}

impl<K: Copy + Ord> UseChanges<K> {
    fn count(&mut self, keys: impl IntoIterator<Item = K>, change: isize) {
        for key in keys {
            *self.0.entry(key).or_default() += change;
        }
    }
}

/// All such objects of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted<F: Family> {
    /// Addresses in the hairpin set, used by pools, and by frontends whose endpoints IPVS chooses.
    pub(crate) hairpins: Uses<F::Addr>,
    /// Addresses whose other ports are refused, used by the Service's ports: cluster IPs; where IPVS chooses endpoints, all
    /// addresses of Services.
    pub(crate) closed_ips: Uses<F::Addr>,
}

/// Changes to them.
#[derive(Clone, Debug)]
pub(crate) struct CountedChanges<F: Family> {
    pub(crate) hairpins: UseChanges<F::Addr>,
    pub(crate) closed_ips: UseChanges<F::Addr>,
}

// The derived implementations would ask `F` itself to have a default.
impl<F: Family> Default for Counted<F> {
    fn default() -> Self {
        Self { hairpins: Uses::default(), closed_ips: Uses::default() }
    }
}

impl<F: Family> Default for CountedChanges<F> {
    fn default() -> Self {
        Self { hairpins: UseChanges::default(), closed_ips: UseChanges::default() }
    }
}

impl<F: Family> Counted<F> {
    pub(crate) fn apply(&mut self, changes: CountedChanges<F>) {
        self.hairpins.apply(changes.hairpins);
        self.closed_ips.apply(changes.closed_ips);
    }
}

impl<F: Family> CountedChanges<F> {
    /// Takes in that a frontend changes.
    pub(crate) fn frontend(
        &mut self,
        balancer: &Balancer,
        key: &FrontendKey<F>,
        old: Option<&Programmed>,
        new: Option<&Programmed>,
    ) {
        for (programmed, change) in [(old, -1), (new, 1)] {
            let Some(programmed) = programmed else { continue };
            self.hairpins.count(programmed.local_addresses::<F>(), change);
            let FrontendAddress::Ip(addr) = key.address else { continue };
            let is_closed = match balancer {
                Balancer::Rules | Balancer::Proxies(_) => programmed.kind == AddressKind::ClusterIp,
                Balancer::Ipvs { .. } => true,
                Balancer::OtherRules(_) => false,
            };
            if is_closed {
                self.closed_ips.count([addr], change);
            }
        }
    }

    /// Takes in that a pool changes.
    pub(crate) fn pool(&mut self, old: Option<&Pool<F>>, new: Option<&Pool<F>>) {
        for (pool, change) in [(old, -1), (new, 1)] {
            self.hairpins.count(pool.into_iter().flat_map(Pool::local_addresses), change);
        }
    }
}
