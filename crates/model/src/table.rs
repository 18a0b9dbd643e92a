//! The load-balancing table: the frontends in force on this node, and who lost a conflict over one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustc_hash::FxBuildHasher;

use crate::capacity::shrink_if_sparse;
use crate::conflicts::{ConflictChange, Conflicts};
use crate::frontend::{AddressKind, Frontend, FrontendKey};
use crate::{Family, ServiceName, ServicePortName};

/// What differs in a table, to be looked up there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<F: Family> {
    /// Keys of frontends that are other ones, or gone.
    pub frontends: BTreeSet<FrontendKey<F>>,
    /// `healthCheckNodePort`s that are another Service's, or gone.
    pub health_check_ports: BTreeSet<u16>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Changed<F> {
    fn default() -> Self {
        Self { frontends: BTreeSet::new(), health_check_ports: BTreeSet::new() }
    }
}

impl<F: Family> Changed<F> {
    /// Only these frontends.
    pub fn frontends(keys: impl IntoIterator<Item = FrontendKey<F>>) -> Self {
        Self { frontends: keys.into_iter().collect(), health_check_ports: BTreeSet::new() }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.health_check_ports.is_empty()
    }

    /// How many things differ.
    pub fn len(&self) -> usize {
        self.frontends.len() + self.health_check_ports.len()
    }

    /// Adds what else differs.
    pub fn extend(&mut self, other: &Self) {
        self.frontends.extend(&other.frontends);
        self.health_check_ports.extend(&other.health_check_ports);
    }
}

/// All frontends of one family, and what else Services ask of a node.
///
/// Several Services may claim one key (the API does not prevent it); the claim of the best [`AddressKind`], then of the
/// first Service by name, is in force, and the next one takes over when it goes.
#[derive(Clone, Debug)]
pub struct Table<F: Family> {
    /// Boxed, since a hash table is up to half empty, and claims are large.
    frontends: HashMap<FrontendKey<F>, Box<Claims<F>>, FxBuildHasher>,
    by_service: BTreeMap<ServiceName, Box<[FrontendKey<F>]>>,
    conflicts: Conflicts<F>,
    /// Who claims each; never empty.
    health_check_ports: BTreeMap<u16, BTreeSet<ServiceName>>,
    health_check_port_of: BTreeMap<ServiceName, u16>,
}

#[derive(Clone, Debug)]
struct Claims<F: Family> {
    winner: Frontend<F>,
    /// Sorted; nearly always empty.
    others: Vec<Frontend<F>>,
}

impl<F: Family> Default for Table<F> {
    fn default() -> Self {
        Self {
            frontends: HashMap::default(),
            by_service: BTreeMap::new(),
            conflicts: Conflicts::default(),
            health_check_ports: BTreeMap::new(),
            health_check_port_of: BTreeMap::new(),
        }
    }
}

impl<F: Family> Table<F> {
    /// Sets the frontends of a Service, replacing all that it had; returns the keys whose frontend in force differs
    /// from before. Of two frontends with one key the better by precedence, then the first, counts.
    pub fn set_service(
        &mut self,
        service: &ServiceName,
        frontends: Vec<Frontend<F>>,
    ) -> BTreeSet<FrontendKey<F>> {
        let new = dedup(frontends);
        let old = self.by_service.remove(service).unwrap_or_default();
        let mut changed = BTreeSet::new();
        for key in old.iter().filter(|key| !new.contains_key(key)) {
            if self.withdraw(service, key) {
                changed.insert(*key);
            }
        }
        let keys: Box<[_]> = new.keys().copied().collect();
        for frontend in new.into_values() {
            let key = frontend.key;
            if self.claim(frontend) {
                changed.insert(key);
            }
        }
        if !keys.is_empty() {
            self.by_service.insert(service.clone(), keys);
        }
        changed
    }

    /// Sets the `healthCheckNodePort` of a Service; returns the ports that are another Service's than before, or gone. Of several
    /// Services with one port, the first by name has it.
    pub fn set_health_check_port(&mut self, service: &ServiceName, port: Option<u16>) -> BTreeSet<u16> {
        let before = match port {
            Some(port) => self.health_check_port_of.insert(service.clone(), port),
            None => self.health_check_port_of.remove(service),
        };
        if before == port {
            return BTreeSet::new();
        }
        let mut changed = BTreeSet::new();
        if let Some(port) = before
            && let Some(claims) = self.health_check_ports.get_mut(&port)
        {
            let was_first = claims.first() == Some(service);
            claims.remove(service);
            if claims.is_empty() {
                self.health_check_ports.remove(&port);
            }
            changed.extend(was_first.then_some(port));
        }
        if let Some(port) = port {
            let claims = self.health_check_ports.entry(port).or_default();
            claims.insert(service.clone());
            changed.extend((claims.first() == Some(service)).then_some(port));
        }
        changed
    }

    /// Whose `healthCheckNodePort` this is: hosts that let nothing in by default have to accept packets to it.
    pub fn health_check_port(&self, port: u16) -> Option<&ServiceName> {
        self.health_check_ports.get(&port).and_then(BTreeSet::first)
    }

    /// All `healthCheckNodePort`s, in their order, and whose they are.
    pub fn health_check_ports(&self) -> impl Iterator<Item = (u16, &ServiceName)> {
        self.health_check_ports.iter().filter_map(|(port, claims)| Some((*port, claims.first()?)))
    }

    /// The frontend in force for a key.
    pub fn get(&self, key: &FrontendKey<F>) -> Option<&Frontend<F>> {
        self.frontends.get(key).map(|claims| &claims.winner)
    }

    /// The claims for a key that lost against the one in force.
    pub fn conflicts(&self, key: &FrontendKey<F>) -> &[Frontend<F>] {
        self.frontends.get(key).map_or(&[], |claims| &claims.others)
    }

    /// How many frontends are in force.
    pub fn len(&self) -> usize {
        self.frontends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// The claims that lose, each with the one in force, in the order of the Services that have that.
    pub fn lost_claims(&self) -> impl Iterator<Item = (&Frontend<F>, &Frontend<F>)> {
        let is_contested = self.conflict_count() > 0;
        let winners = is_contested.then(|| self.iter()).into_iter().flatten();
        winners.flat_map(|winner| self.conflicts(&winner.key).iter().map(move |loser| (loser, winner)))
    }

    /// How many claims lose against another Service's now.
    pub fn conflict_count(&self) -> usize {
        self.conflicts.count()
    }

    /// Whether [`Table::take_conflict_changes`] would give any.
    pub fn has_conflict_changes(&self) -> bool {
        self.conflicts.has_changes()
    }

    /// What changed about conflicts since this was last asked. What came and went again is not in it.
    pub fn take_conflict_changes(&mut self) -> Vec<ConflictChange<F>> {
        self.conflicts.take()
    }

    /// All frontends in force, in the order of their Services' names.
    pub fn iter(&self) -> impl Iterator<Item = &Frontend<F>> {
        let keys =
            self.by_service.iter().flat_map(|(service, keys)| keys.iter().map(move |key| (service, key)));
        keys.filter_map(|(service, key)| {
            self.get(key).filter(|frontend| frontend.service.service == *service)
        })
    }

    /// The frontends of a Service that are in force.
    pub fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = &Frontend<F>> {
        let keys = self.by_service.get(service).map_or(&[][..], |keys| keys);
        let winners = keys.iter().filter_map(|key| self.get(key));
        winners.filter(move |frontend| frontend.service.service == *service)
    }

    /// Adds or updates a claim; true if the frontend in force differs afterwards.
    fn claim(&mut self, frontend: Frontend<F>) -> bool {
        let Some(claims) = self.frontends.get_mut(&frontend.key) else {
            self.frontends.insert(frontend.key, Box::new(Claims { winner: frontend, others: Vec::new() }));
            return true;
        };
        if claims.others.is_empty() && same_owner(&claims.winner, &frontend) {
            let differs = claims.winner != frontend;
            claims.winner = frontend;
            return differs;
        }
        let before = claims.winner.clone();
        let others_before = std::mem::take(&mut claims.others);
        let mut all = others_before.clone();
        all.push(before.clone());
        all.retain(|known| !same_owner(known, &frontend));
        all.push(frontend);
        all.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
        claims.winner = all.remove(0);
        claims.others = all;
        self.conflicts.note((&before, &others_before), Some((&claims.winner, &claims.others)));
        claims.winner != before
    }

    /// Removes a Service's claim; true if the frontend in force differs afterwards.
    fn withdraw(&mut self, service: &ServiceName, key: &FrontendKey<F>) -> bool {
        let Some(claims) = self.frontends.get_mut(key) else { return false };
        let is_in_force = claims.winner.service.service == *service;
        if is_in_force && claims.others.is_empty() {
            self.frontends.remove(key);
            shrink_if_sparse(&mut self.frontends);
            return true;
        }
        let before = claims.clone();
        if is_in_force {
            claims.winner = claims.others.remove(0);
        } else {
            claims.others.retain(|other| other.service.service != *service);
        }
        self.conflicts.note((&before.winner, &before.others), Some((&claims.winner, &claims.others)));
        is_in_force
    }
}

fn same_owner<F: Family>(a: &Frontend<F>, b: &Frontend<F>) -> bool {
    a.service.service == b.service.service
}

fn precedence<F: Family>(frontend: &Frontend<F>) -> (AddressKind, &ServicePortName) {
    (frontend.kind, &frontend.service)
}

fn dedup<F: Family>(frontends: Vec<Frontend<F>>) -> BTreeMap<FrontendKey<F>, Frontend<F>> {
    let mut by_key: BTreeMap<FrontendKey<F>, Frontend<F>> = BTreeMap::new();
    for frontend in frontends {
        let better = by_key.get(&frontend.key).is_none_or(|known| precedence(&frontend) < precedence(known));
        if better {
            by_key.insert(frontend.key, frontend);
        }
    }
    by_key
}

#[cfg(test)]
mod tests;
