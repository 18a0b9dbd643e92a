//! What HNS holds of ours.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use hcn::{Guid, LoadBalancer};
use model::{Family, FrontendAddress, FrontendKey, Protocol};
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

use crate::facts::Facts;

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this node: not ours.
    Here,
    /// On another node, by this one on an overlay: ours.
    Elsewhere(Option<IpAddr>),
}

/// An endpoint of our network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldEndpoint {
    pub(crate) id: Guid,
    pub(crate) place: Place,
}

impl HeldEndpoint {
    pub(crate) fn is_here(&self) -> bool {
        self.place == Place::Here
    }
}

/// A load balancer of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldBalancer {
    pub(crate) id: Guid,
    /// What it says; the endpoints sorted.
    pub(crate) document: LoadBalancer,
}

impl HeldBalancer {
    pub(crate) fn new(id: Guid, mut document: LoadBalancer) -> Self {
        document.host_compute_endpoints.sort_unstable();
        Self { id, document }
    }
}

/// What a frontend has to do with, as it was last planned, whatever came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<F: Family> {
    pub(crate) addresses: BTreeSet<F::Addr>,
    pub(crate) health_check: Option<FrontendKey<F>>,
}

// The derived implementation would ask addresses to have a default.
impl<F: Family> Default for Entry<F> {
    fn default() -> Self {
        Self { addresses: BTreeSet::new(), health_check: None }
    }
}

impl<F: Family> Entry<F> {
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.health_check.is_none()
    }
}

/// Whether load balancers can be changed in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Modify {
    /// The version says so, and nobody has looked.
    Untried,
    Works,
    /// It is refused, or done without effect.
    Broken,
}

/// Contents that are looked at at a time, and how often at most.
pub(crate) const CHECKED_AT_ONCE: usize = 4;
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long looking at all contents takes, if there are few.
const CHECK_ROUND: Duration = Duration::from_mins(10);

#[derive(Clone, Debug)]
pub(crate) struct State<F: Family> {
    pub(crate) facts: Facts<F>,
    pub(crate) modify: Modify,
    endpoints: HashMap<F::Addr, HeldEndpoint, FxBuildHasher>,
    addresses: HashMap<Guid, F::Addr, FxBuildHasher>,
    balancers: BTreeMap<FrontendKey<F>, HeldBalancer>,
    /// By endpoint, the load balancers that lead to it.
    leading: HashMap<Guid, BTreeSet<FrontendKey<F>>, FxBuildHasher>,
    /// Load balancers of ours that have not the form of any frontend.
    pub(crate) strays: BTreeSet<Guid>,
    /// Remote endpoints whose address another endpoint has, or that nobody uses.
    pub(crate) spare: BTreeMap<Guid, F::Addr>,
    /// Frontends that load balancers of others have.
    pub(crate) foreign: BTreeMap<FrontendKey<F>, Guid>,
    /// Frontends that load balancers have all of whose endpoints are gone from the host: whosesoever they were, they lead nowhere,
    /// and make room where they are in the way.
    pub(crate) dead: BTreeMap<FrontendKey<F>, Guid>,
    /// What was refused as existing already although everything had just been read.
    pub(crate) blocked: BTreeSet<FrontendKey<F>>,
    entries: HashMap<FrontendKey<F>, Entry<F>, FxBuildHasher>,
    users: HashMap<F::Addr, BTreeSet<FrontendKey<F>>, FxBuildHasher>,
    /// By health check, the frontends that want it.
    checked_by: BTreeMap<FrontendKey<F>, BTreeSet<FrontendKey<F>>>,
    /// When contents are looked at next, and behind which.
    pub(crate) check_at: Instant,
    pub(crate) checked_up_to: Option<FrontendKey<F>>,
}

impl<F: Family> State<F> {
    pub(crate) fn new(facts: Facts<F>, now: Instant) -> Self {
        let modify = if facts.version.has_modify() { Modify::Untried } else { Modify::Broken };
        Self {
            facts,
            modify,
            endpoints: HashMap::default(),
            addresses: HashMap::default(),
            balancers: BTreeMap::new(),
            leading: HashMap::default(),
            strays: BTreeSet::new(),
            spare: BTreeMap::new(),
            foreign: BTreeMap::new(),
            dead: BTreeMap::new(),
            blocked: BTreeSet::new(),
            entries: HashMap::default(),
            users: HashMap::default(),
            checked_by: BTreeMap::new(),
            check_at: now + CHECK_ROUND,
            checked_up_to: None,
        }
    }

    /// The endpoint of an address.
    pub(crate) fn endpoint(&self, address: &F::Addr) -> Option<&HeldEndpoint> {
        self.endpoints.get(address)
    }

    /// All addresses with an endpoint, sorted.
    pub(crate) fn addresses(&self) -> BTreeSet<F::Addr> {
        self.endpoints.keys().copied().collect()
    }

    /// Takes note of the endpoint of an address, or that there is none; gives what there was.
    pub(crate) fn set_endpoint(
        &mut self,
        address: F::Addr,
        endpoint: Option<HeldEndpoint>,
    ) -> Option<HeldEndpoint> {
        let before = match endpoint {
            Some(endpoint) => self.endpoints.insert(address, endpoint),
            None => self.endpoints.remove(&address),
        };
        if let Some(before) = &before {
            self.addresses.remove(&before.id);
        }
        if let Some(endpoint) = endpoint {
            self.addresses.insert(endpoint.id, address);
        }
        before
    }

    /// The address of an endpoint of ours that no load balancer leads to and no frontend uses any more.
    pub(crate) fn let_go(&self, id: &Guid) -> Option<F::Addr> {
        if self.leading.contains_key(id) {
            return None;
        }
        let unused = |address: &&F::Addr| {
            let is_remote = self.endpoints.get(*address).is_some_and(|held| !held.is_here());
            is_remote && !self.users.contains_key(*address)
        };
        self.spare.get(id).or_else(|| self.addresses.get(id).filter(unused)).copied()
    }

    /// The load balancers by frontend.
    pub(crate) fn balancers(&self) -> &BTreeMap<FrontendKey<F>, HeldBalancer> {
        &self.balancers
    }

    pub(crate) fn balancer(&self, key: &FrontendKey<F>) -> Option<&HeldBalancer> {
        self.balancers.get(key)
    }

    /// The load balancers that lead to an endpoint.
    pub(crate) fn leading_to(&self, id: &Guid) -> Vec<FrontendKey<F>> {
        self.leading.get(id).into_iter().flatten().copied().collect()
    }

    /// Takes note of a load balancer, or that there is none; gives what there was.
    pub(crate) fn set_balancer(
        &mut self,
        key: FrontendKey<F>,
        balancer: Option<HeldBalancer>,
    ) -> Option<HeldBalancer> {
        let before = self.balancers.remove(&key);
        for id in before.iter().flat_map(|before| &before.document.host_compute_endpoints) {
            if let Some(leading) = self.leading.get_mut(id) {
                leading.remove(&key);
                if leading.is_empty() {
                    self.leading.remove(id);
                }
            }
        }
        if let Some(balancer) = balancer {
            for id in &balancer.document.host_compute_endpoints {
                self.leading.entry(*id).or_default().insert(key);
            }
            self.balancers.insert(key, balancer);
        }
        before
    }

    pub(crate) fn entry(&self, key: &FrontendKey<F>) -> Option<&Entry<F>> {
        self.entries.get(key)
    }

    /// The frontends that have to do with an address.
    pub(crate) fn users(&self, address: &F::Addr) -> impl Iterator<Item = &FrontendKey<F>> {
        self.users.get(address).into_iter().flatten()
    }

    /// The frontends that want a health check.
    pub(crate) fn checked_by(&self, key: &FrontendKey<F>) -> impl Iterator<Item = &FrontendKey<F>> {
        self.checked_by.get(key).into_iter().flatten()
    }

    /// Takes note of what a frontend has to do with.
    pub(crate) fn set_entry(&mut self, key: FrontendKey<F>, entry: Entry<F>) {
        let before = self.entries.remove(&key).unwrap_or_default();
        for address in before.addresses.difference(&entry.addresses) {
            if let Some(users) = self.users.get_mut(address) {
                users.remove(&key);
                if users.is_empty() {
                    self.users.remove(address);
                }
            }
        }
        for address in entry.addresses.difference(&before.addresses) {
            self.users.entry(*address).or_default().insert(key);
        }
        if before.health_check != entry.health_check {
            if let Some(check) = before.health_check
                && let Some(wanting) = self.checked_by.get_mut(&check)
            {
                wanting.remove(&key);
                if wanting.is_empty() {
                    self.checked_by.remove(&check);
                }
            }
            if let Some(check) = entry.health_check {
                self.checked_by.entry(check).or_default().insert(key);
            }
        }
        if !entry.is_empty() {
            self.entries.insert(key, entry);
        }
    }

    /// Contents were looked at now.
    pub(crate) fn checked(&mut self, now: Instant, up_to: Option<FrontendKey<F>>) {
        self.checked_up_to = up_to;
        let looks = u32::try_from(self.balancers.len().div_ceil(CHECKED_AT_ONCE)).unwrap_or(u32::MAX).max(1);
        self.check_at = now + (CHECK_ROUND / looks).max(CHECK_PAUSE);
    }
}

/// What stands for an endpoint where only frontends have names: no frontend has port 0.
pub(crate) fn endpoint_key<F: Family>(address: F::Addr) -> FrontendKey<F> {
    FrontendKey { address: FrontendAddress::Ip(address), protocol: Protocol::Tcp, port: 0 }
}

/// The same for load balancers that are no frontend's.
pub(crate) fn stray_key<F: Family>() -> FrontendKey<F> {
    FrontendKey { address: FrontendAddress::Node, protocol: Protocol::Tcp, port: 0 }
}

impl<F: Family> State<F> {
    /// The load balancers of ours.
    pub(crate) fn own_balancers(&self) -> impl Iterator<Item = Guid> {
        self.balancers.values().map(|held| held.id).chain(self.strays.iter().copied())
    }

    /// The endpoints of ours, sorted.
    pub(crate) fn own_endpoints(&self) -> impl Iterator<Item = Guid> {
        let remote = self.endpoints.values().filter(|held| !held.is_here()).map(|held| held.id);
        let all: BTreeSet<Guid> = remote.chain(self.spare.keys().copied()).collect();
        all.into_iter()
    }
}
