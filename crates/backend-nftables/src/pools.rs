//! Pools of endpoints: what the kernel holds for each, and its form as map elements.
//!
//! A pool has a number, by which packets find its slots whatever address they were sent to. All addresses of a Service port
//! whose traffic policy is the same share one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use model::{
    Affinity, Balancer, Destination, Family, Frontend, Protocol, ServicePortName, TrafficPolicy, Uid,
    assign_slots,
};
use nft::{Bytes, Data, Element, Verdict};

use crate::frontend::Programmed;
use crate::layout::{
    Map, MapElement, Socket, affinity_name, cut_comment, destination_bytes, parse_slot, pool_bytes,
};
use crate::priority::{self, ChoiceChain, MAX_AFFINITY_ENDPOINTS, MAX_ENDPOINTS, Slots};

/// Which pool: that of a Service port, by traffic policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolKey {
    pub(crate) service: ServicePortName,
    pub(crate) policy: TrafficPolicy,
}

impl PoolKey {
    /// The comment on the pool's element.
    pub(crate) fn comment(&self) -> Box<str> {
        self.comment_with("")
    }

    /// The comment on the map of the pool's clients, which no pool of another Service has.
    fn comment_of_clients(&self, service: Option<Uid>) -> Box<str> {
        self.comment_with(&service.map(|uid| format!(" {uid}")).unwrap_or_default())
    }

    fn comment_with(&self, end: &str) -> Box<str> {
        let policy = match self.policy {
            TrafficPolicy::Cluster => "",
            TrafficPolicy::Local => " local",
        };
        cut_comment(self.service.to_string(), &format!("{policy}{end}"))
    }
}

/// What the kernel holds, or is to hold, for a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool<F: Family> {
    pub(crate) number: u32,
    /// An endpoint in each slot, never none. Shared with the table where the order is the same.
    slots: Arc<[Destination<F>]>,
    affinity: Option<Box<Clients>>,
    /// Frontends in force that lead to it.
    pub(crate) users: usize,
}

/// What makes a pool one with affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Clients {
    timeout_secs: u32,
    /// The comment on the map of clients.
    comment: Box<str>,
    /// A number for the endpoint in each slot, which stays the same when slots move.
    endpoint_numbers: Box<[u32]>,
}

/// What is asked of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a, F: Family> {
    endpoints: &'a Arc<[Destination<F>]>,
    affinity: Option<Affinity>,
}

/// What was there before for the same pool.
#[derive(Clone, Debug)]
pub(crate) struct Previous<F: Family> {
    pub(crate) number: u32,
    /// The endpoints in the slots.
    pub(crate) slots: Vec<Socket<F>>,
    /// With affinity: the numbers of these.
    pub(crate) endpoint_numbers: Vec<u32>,
    /// With affinity: the comment on the map of clients.
    pub(crate) clients: Option<Box<str>>,
}

// The derived implementation would ask `F` itself to have a default.
impl<F: Family> Default for Previous<F> {
    fn default() -> Self {
        Self { number: 0, slots: Vec::new(), endpoint_numbers: Vec::new(), clients: None }
    }
}

impl<F: Family> Pool<F> {
    /// The form of a pool that changes least from what was before. Its number stays, unless that would hand it the clients of
    /// another Service; then, and if it is a new one, it is the next of `fresh`. `None` when all numbers are taken.
    pub(crate) fn new(
        key: &PoolKey,
        wanted: Wanted<'_, F>,
        users: usize,
        previous: Option<&Previous<F>>,
        fresh: &mut impl Iterator<Item = u32>,
    ) -> Option<Self> {
        let comment = wanted.affinity.map(|affinity| key.comment_of_clients(affinity.service));
        let heir = previous.filter(|previous| match (&previous.clients, &comment) {
            (Some(had), Some(wanted)) => had == wanted,
            _ => true,
        });
        let number = heir.map(|previous| previous.number).or_else(|| fresh.next())?;
        let most = if comment.is_some() { MAX_AFFINITY_ENDPOINTS } else { MAX_ENDPOINTS };
        let slots = fill_slots(previous.map_or(&[], |previous| &previous.slots), wanted.endpoints, most);
        let affinity = comment.zip(wanted.affinity).map(|(comment, affinity)| {
            let timeout_secs = u32::try_from(affinity.timeout.as_secs()).unwrap_or(u32::MAX).max(1);
            Box::new(Clients { timeout_secs, comment, endpoint_numbers: number_endpoints(heir, &slots) })
        });
        Some(Self { number, slots, affinity, users })
    }

    /// As [`Pool::new`] wants to see it again.
    pub(crate) fn as_previous(&self) -> Previous<F> {
        let affinity = self.affinity.as_ref();
        Previous {
            number: self.number,
            slots: self.slots.iter().map(socket).collect(),
            endpoint_numbers: affinity.map(|clients| clients.endpoint_numbers.to_vec()).unwrap_or_default(),
            clients: affinity.map(|clients| clients.comment.clone()),
        }
    }

    pub(crate) fn endpoint_count(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn slots(&self) -> Slots {
        Slots::for_endpoints(count(self.slots.len()))
    }

    /// The chain that chooses one of the endpoints.
    pub(crate) fn chain(&self) -> ChoiceChain {
        match self.affinity {
            Some(_) => ChoiceChain::Affinity,
            None => ChoiceChain::Random(self.slots()),
        }
    }

    /// With affinity: for how long clients are remembered, in seconds, and the comment on their map.
    pub(crate) fn clients(&self) -> Option<(u32, &str)> {
        self.affinity.as_ref().map(|clients| (clients.timeout_secs, &*clients.comment))
    }

    /// Whether the kernel holds other elements for the one than for the other.
    pub(crate) fn has_same_elements(&self, other: &Self) -> bool {
        let numbers = |pool: &Self| pool.affinity.as_ref().map(|clients| clients.endpoint_numbers.clone());
        self.number == other.number && self.slots == other.slots && numbers(self) == numbers(other)
    }

    /// All elements of a pool.
    pub(crate) fn elements(&self, key: &PoolKey) -> impl Iterator<Item = MapElement> {
        self.elements_of_slots(key).chain(self.elements_of_all(key))
    }

    /// Those that are of one slot each.
    pub(crate) fn elements_of_slots(&self, key: &PoolKey) -> impl Iterator<Item = MapElement> {
        let protocol = key.service.protocol;
        (0..self.slots.len()).flat_map(move |slot| self.of_slot(protocol, slot))
    }

    /// Those that are not of one slot.
    pub(crate) fn elements_of_all(&self, key: &PoolKey) -> impl Iterator<Item = MapElement> {
        let pool = pool_bytes(key.service.protocol, self.number);
        let data = Data::Value(Bytes::new().index(count(self.slots.len())));
        let size = MapElement::new(Map::Pools, Element { key: pool, data, comment: Some(key.comment()) });
        self.affinity_chain().into_iter().chain([size])
    }

    fn of_slot(&self, protocol: Protocol, slot: usize) -> impl Iterator<Item = MapElement> + use<F> {
        let key = pool_bytes(protocol, self.number).index(count(slot));
        let endpoint = destination_bytes(&self.slots[slot]);
        let elements = match &self.affinity {
            None => [Some(MapElement::value(Map::Endpoints, key, endpoint)), None],
            Some(clients) => {
                let number = priority::endpoint(clients.endpoint_numbers[slot], self.number);
                let by_number = pool_bytes(protocol, number);
                [
                    Some(MapElement::value(Map::AffinitySlots, key, Bytes::new().index(number))),
                    Some(MapElement::value(Map::AffinityEndpoints, by_number, endpoint)),
                ]
            }
        };
        elements.into_iter().flatten()
    }

    /// Whether these, found in [`Map::Endpoints`], are all its elements there, and each is right.
    pub(crate) fn has_exactly(&self, protocol: Protocol, found: &[Element]) -> bool {
        let is_right = |element: &Element| {
            let slot = parse_slot(&element.key).and_then(|(_, slot)| usize::try_from(slot).ok());
            let wanted = slot.filter(|slot| *slot < self.slots.len());
            wanted.is_some_and(|slot| self.of_slot(protocol, slot).all(|wanted| wanted.element == *element))
        };
        self.affinity.is_none() && found.len() == self.slots.len() && found.iter().all(is_right)
    }

    fn affinity_chain(&self) -> Option<MapElement> {
        self.affinity.as_ref()?;
        let data = Data::Verdict(Verdict::Goto(affinity_name(self.number)));
        let element = Element { key: Bytes::new().index(self.number), data, comment: None };
        Some(MapElement::new(Map::AffinityChains, element))
    }

    /// The endpoint in a slot.
    pub(crate) fn socket(&self, slot: usize) -> Option<Socket<F>> {
        self.slots.get(slot).map(socket)
    }

    /// Whether it is one of the endpoints.
    pub(crate) fn has_socket(&self, wanted: Socket<F>) -> bool {
        self.slots.iter().any(|destination| socket(destination) == wanted)
    }

    /// Addresses of the endpoints on this node: only they can send a packet through this node to themselves.
    pub(crate) fn local_addresses(&self) -> impl Iterator<Item = F::Addr> {
        self.slots.iter().filter(|slot| slot.node.may_be_this()).map(|slot| slot.address)
    }
}

fn socket<F: Family>(destination: &Destination<F>) -> Socket<F> {
    (destination.address, destination.port)
}

/// The endpoints, at most so many, each in its slot of before if it had one.
fn fill_slots<F: Family>(
    previous: &[Socket<F>],
    endpoints: &Arc<[Destination<F>]>,
    most: u32,
) -> Arc<[Destination<F>]> {
    let taking_part = &endpoints[..endpoints.len().min(most as usize)];
    let sockets: Vec<Socket<F>> = taking_part.iter().map(socket).collect();
    if taking_part.len() == endpoints.len() && (previous.is_empty() || previous == sockets) {
        return Arc::clone(endpoints);
    }
    let by_socket: HashMap<Socket<F>, &Destination<F>> = sockets.iter().copied().zip(taking_part).collect();
    let slots = assign_slots(previous, &sockets);
    slots.iter().filter_map(|socket| by_socket.get(socket).copied().copied()).collect()
}

/// A number for the endpoint in each slot: the one that it had, or the lowest that none has.
fn number_endpoints<F: Family>(previous: Option<&Previous<F>>, slots: &[Destination<F>]) -> Box<[u32]> {
    let mut had: BTreeMap<Socket<F>, u32> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    if let Some(previous) = previous {
        let known: BTreeSet<Socket<F>> = slots.iter().map(socket).collect();
        for (socket, number) in previous.slots.iter().zip(&previous.endpoint_numbers) {
            let is_number = (1..=MAX_AFFINITY_ENDPOINTS).contains(number);
            if is_number && known.contains(socket) && taken.insert(*number) {
                had.insert(*socket, *number);
            }
        }
    }
    let mut free = (1..).filter(|number| !taken.contains(number));
    slots.iter().map(|slot| had.get(&socket(slot)).copied().or_else(|| free.next()).unwrap_or(1)).collect()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("fewer endpoints than IPv4 has addresses")
}

/// The pools that a frontend is to lead to: that for any traffic, unless IPVS has it, and that for internal traffic where it
/// differs. None where others' rules choose.
fn of_frontend<'a, F: Family>(
    frontend: &'a Frontend<F>,
    balancer: &Balancer,
) -> impl Iterator<Item = (TrafficPolicy, Wanted<'a, F>)> {
    let internal = frontend.internal_pool.as_ref().map(|pool| (TrafficPolicy::Cluster, pool));
    let internal = internal.filter(|_| !matches!(balancer, Balancer::OtherRules(_)));
    let any = Some((frontend.policy, &frontend.pool)).filter(|_| balancer.has_rules_for_all());
    [any, internal].into_iter().flatten().filter_map(|(policy, pool)| match pool {
        model::Pool::Endpoints(endpoints) => {
            Some((policy, Wanted { endpoints, affinity: frontend.affinity }))
        }
        model::Pool::Empty(_) => None,
    })
}

/// Numbers of pools that are taken, and those that are not.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// Every number from here on is free.
    next: u32,
    /// Free ones below.
    free: BTreeSet<u32>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { next: 1, free: BTreeSet::new() }
    }
}

impl Numbers {
    /// Those that are not taken, from the lowest on.
    pub(crate) fn fresh(&self) -> impl Iterator<Item = u32> {
        self.free.iter().copied().chain(self.next..=priority::POOL)
    }

    pub(crate) fn take(&mut self, number: u32) {
        self.free.extend(self.next..number);
        self.next = self.next.max(number.saturating_add(1));
        self.free.remove(&number);
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.insert(number);
    }
}

/// Uses of pools that begin and end when frontends change.
#[derive(Debug)]
pub(crate) struct PoolUses<'a, F: Family>(pub(crate) BTreeMap<PoolKey, UseChange<'a, F>>);

/// How one pool's uses change.
#[derive(Debug)]
pub(crate) struct UseChange<'a, F: Family> {
    users: isize,
    /// What those want that lead to it now.
    wanted: Option<Wanted<'a, F>>,
}

// The derived implementations would ask `F` itself to have a default.
impl<F: Family> Default for PoolUses<'_, F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F: Family> Default for UseChange<'_, F> {
    fn default() -> Self {
        Self { users: 0, wanted: None }
    }
}

impl<'a, F: Family> PoolUses<'a, F> {
    /// A frontend is to lead to its pools.
    pub(crate) fn begin(&mut self, frontend: &'a Frontend<F>, balancer: &Balancer) {
        for (policy, wanted) in of_frontend(frontend, balancer) {
            let change = self.0.entry(PoolKey { service: frontend.service.clone(), policy }).or_default();
            change.users += 1;
            change.wanted = Some(wanted);
        }
    }

    /// A frontend led to its pools.
    pub(crate) fn end(&mut self, frontend: &Programmed) {
        for policy in frontend.pools() {
            let change = self.0.entry(PoolKey { service: frontend.service.clone(), policy }).or_default();
            change.users -= 1;
        }
    }
}

impl<F: Family> UseChange<'_, F> {
    /// The pool as it is to be; `None` if nobody leads to it any more.
    pub(crate) fn apply(
        self,
        key: &PoolKey,
        old: Option<&Pool<F>>,
        previous: Option<&Previous<F>>,
        fresh: &mut impl Iterator<Item = u32>,
    ) -> Option<Pool<F>> {
        let users = old.map_or(0, |old| old.users).saturating_add_signed(self.users);
        match self.wanted {
            _ if users == 0 => None,
            Some(wanted) => Pool::new(key, wanted, users, previous, fresh),
            None => old.map(|old| Pool { users, ..old.clone() }),
        }
    }
}
