//! What the maps hold, and the writes that a change asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ebpf::{Capacity, Contents, Endpoint, FrontendValue, Renumbered, Slot, Write};
use model::{Family, FrontendKey, ServicePortName, assign_slots};

use crate::extents::{Extents, order_for};
use crate::served::{PoolName, Served, Socket};

/// What the maps of a family hold, and which numbers are whose.
#[derive(Clone, Debug)]
pub struct State<F: Family> {
    pub(crate) contents: Contents<F>,
    pub(crate) pools: BTreeMap<PoolName, Held<F>>,
    /// Which pool each served frontend has, and whether it is for the host only.
    pub(crate) served: BTreeMap<FrontendKey<F>, (PoolName, bool)>,
    /// Those of each Service port by themselves, since each is counted for its own.
    pub(crate) endpoints: BTreeMap<ServicePortName, BTreeMap<Socket<F>, Numbered>>,
    pub(crate) free: Free,
    /// The last one that was given. Numbers that are used again differ in it, so that nobody takes one for the other.
    pub(crate) epoch: u16,
    /// Pools whose extents elements refer to that are not theirs, and that the next change removes.
    pub(crate) shared: BTreeSet<PoolName>,
    /// Endpoints in the maps that nobody has, and that the next change takes away.
    pub(crate) unclaimed: Vec<u32>,
    /// The last number that was given to a pool.
    pub(crate) last_pool: u32,
    former: Former<F>,
}

/// What was in former maps, and is to be the same in new ones.
#[derive(Clone, Debug)]
struct Former<F: Family> {
    /// Numbers of endpoints, where there is room for them, and epochs. A counter is known by the epoch, and goes on; a socket's
    /// datagrams go on by both.
    endpoints: BTreeMap<ServicePortName, FormerNumbers<F>>,
    pools: BTreeMap<PoolName, u32>,
}

type FormerNumbers<F> = BTreeMap<Socket<F>, (Option<u32>, u16)>;

impl<F: Family> Default for Former<F> {
    fn default() -> Self {
        Self { endpoints: BTreeMap::new(), pools: BTreeMap::new() }
    }
}

/// The extent of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Held<F: Family> {
    pub(crate) base: u32,
    pub(crate) order: u32,
    pub(crate) epoch: u16,
    /// Another one for each pool that is not the same.
    pub(crate) number: u32,
    /// By slot.
    pub(crate) endpoints: Box<[Socket<F>]>,
    pub(crate) users: BTreeSet<FrontendKey<F>>,
}

/// A number, and how many refer to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u32,
    pub(crate) references: usize,
}

/// A counter, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedEndpoint<'a, F: Family> {
    pub(crate) service: &'a ServicePortName,
    pub(crate) socket: Socket<F>,
    /// Of the endpoint, and so of its counter.
    pub(crate) number: u32,
    /// Another one whenever the counter begins anew.
    pub(crate) epoch: u16,
}

/// What is free, the longest first.
#[derive(Clone, Debug)]
pub(crate) struct Free {
    pub(crate) extents: Extents,
    pub(crate) endpoints: VecDeque<u32>,
}

/// There is no room: new maps are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgrown;

/// The writes of a change, in the order in which they are made, and what it makes free.
#[derive(Debug)]
struct Work<F: Family> {
    endpoints: Vec<Write<F>>,
    slots: Vec<Write<F>>,
    /// Frontends to look at when all slots are known.
    dirty: BTreeSet<FrontendKey<F>>,
    /// Pools that a frontend has left.
    left: BTreeSet<PoolName>,
    freed_endpoints: Vec<u32>,
    freed_extents: Vec<(u32, u32)>,
}

/// Room for twice as much as there is, and for some at least.
pub(crate) fn capacity_for<F: Family>(frontends: &BTreeMap<FrontendKey<F>, Served<F>>) -> Capacity {
    let pools: BTreeMap<&PoolName, &Arc<[Socket<F>]>> =
        frontends.values().map(|served| (&served.pool, &served.endpoints)).collect();
    let slots: usize = pools.values().map(|endpoints| endpoints.len().next_power_of_two()).sum();
    let mut sockets: BTreeMap<&ServicePortName, BTreeSet<Socket<F>>> = BTreeMap::new();
    for ((service, _), endpoints) in &pools {
        sockets.entry(service).or_default().extend(endpoints.iter().copied());
    }
    let endpoints = sockets.values().map(BTreeSet::len).sum();
    let room = |count: usize, least: u32| {
        u32::try_from(count.saturating_mul(2)).unwrap_or(1 << 31).max(least).min(1 << 31).next_power_of_two()
    };
    Capacity {
        frontends: room(frontends.len(), 1024),
        slots: room(slots, 4096),
        endpoints: room(endpoints, 1024),
    }
}

impl<F: Family> State<F> {
    /// Nothing, in empty maps.
    pub fn empty(capacity: Capacity) -> Self {
        Self {
            contents: Contents::empty(capacity),
            pools: BTreeMap::new(),
            served: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            free: Free {
                extents: Extents::new(capacity.slots),
                endpoints: (0..capacity.endpoints).collect(),
            },
            epoch: 0,
            shared: BTreeSet::new(),
            unclaimed: Vec::new(),
            last_pool: 0,
            former: Former::default(),
        }
    }

    /// What is wanted, in new maps that have room for it, and which endpoints have which numbers there. They keep their epochs, and
    /// their numbers where there is room.
    ///
    /// # Errors
    /// There is no room however large the maps are.
    pub fn in_new_maps(
        before: Option<&Self>,
        wanted: &BTreeMap<FrontendKey<F>, Served<F>>,
    ) -> Result<(Self, Vec<Renumbered>), Outgrown> {
        let mut state = Self::empty(capacity_for(wanted));
        let Some(before) = before else { return state.set_all(wanted).map(|_| (state, Vec::new())) };
        (state.epoch, state.last_pool) = (before.epoch, before.last_pool);
        state.former.pools = before.pools.iter().map(|(name, pool)| (name.clone(), pool.number)).collect();
        let mut kept = BTreeSet::new();
        for counted in before.counted() {
            let number = Some(counted.number).filter(|number| *number < state.contents.capacity.endpoints);
            let of_service = state.former.endpoints.entry(counted.service.clone()).or_default();
            of_service.insert(counted.socket, (number, counted.epoch));
            kept.extend(number);
        }
        state.free.endpoints.retain(|number| !kept.contains(number));
        state.set_all(wanted)?;
        state.former = Former::default();
        for own in state.endpoints.values().flat_map(BTreeMap::values) {
            kept.remove(&own.number);
        }
        state.free.endpoints.extend(kept);
        let renumbered = before.counted().filter_map(|counted| {
            let to = state.endpoints.get(counted.service)?.get(&counted.socket)?.number;
            Some(Renumbered { from: counted.number, to })
        });
        let renumbered = renumbered.collect();
        Ok((state, renumbered))
    }

    /// What the maps hold.
    pub fn contents(&self) -> &Contents<F> {
        &self.contents
    }

    /// Whose each counter is.
    pub(crate) fn counted(&self) -> impl Iterator<Item = CountedEndpoint<'_, F>> {
        self.endpoints.iter().flat_map(move |(service, own)| {
            own.iter().filter_map(move |(socket, &Numbered { number, .. })| {
                let epoch = self.contents.endpoints.get(number as usize).copied().flatten()?.epoch;
                Some(CountedEndpoint { service, socket: *socket, number, epoch })
            })
        })
    }

    /// Everything that is served, and nothing else, from whatever there is.
    ///
    /// # Errors
    /// There is no room. The state is of no use then.
    pub fn set_all(
        &mut self,
        wanted: &BTreeMap<FrontendKey<F>, Served<F>>,
    ) -> Result<Vec<Write<F>>, Outgrown> {
        let strangers = self.contents.frontends.keys().chain(self.served.keys());
        let gone: BTreeSet<FrontendKey<F>> =
            strangers.filter(|key| !wanted.contains_key(key)).copied().collect();
        let present = wanted.iter().map(|(key, served)| (*key, Some(served.clone())));
        let change = gone.into_iter().map(|key| (key, None)).chain(present).collect();
        self.change(&change)
    }

    /// What is at these keys from now on, and the writes that make it so. Each prefix of them leaves every frontend with endpoints
    /// that it had before or has afterwards.
    ///
    /// # Errors
    /// There is no room. The state is of no use then.
    pub fn change(
        &mut self,
        change: &BTreeMap<FrontendKey<F>, Option<Served<F>>>,
    ) -> Result<Vec<Write<F>>, Outgrown> {
        let mut work = Work {
            endpoints: Vec::new(),
            slots: Vec::new(),
            dirty: change.keys().copied().collect(),
            left: std::mem::take(&mut self.shared),
            freed_endpoints: std::mem::take(&mut self.unclaimed),
            freed_extents: Vec::new(),
        };
        for (key, served) in change {
            work.left.extend(self.set_user(key, served.as_ref()));
        }
        let wanted: BTreeMap<&PoolName, &Served<F>> =
            change.values().flatten().map(|served| (&served.pool, served)).collect();
        for (name, served) in wanted {
            self.set_pool(name, &served.endpoints, &mut work)?;
        }
        self.remove_unused(&mut work);
        let frontends = self.frontend_writes(&work.dirty)?;
        self.release(&work);
        let gone = work.freed_endpoints.into_iter().map(Write::RemoveEndpoint);
        let set = work.endpoints.into_iter().chain(work.slots);
        let writes: Vec<Write<F>> = set.chain(frontends).chain(gone).collect();
        let is_within = writes.iter().all(|write| self.contents.make(write));
        if is_within { Ok(writes) } else { Err(Outgrown) }
    }

    /// Sets the node's addresses.
    pub fn set_node_addresses(&mut self, wanted: &BTreeMap<F::Addr, bool>) -> Vec<Write<F>> {
        let held = &self.contents.node_addresses;
        let gone =
            held.keys().filter(|address| !wanted.contains_key(address)).map(|a| Write::RemoveNodeAddress(*a));
        let new = wanted.iter().filter(|(address, flag)| held.get(address) != Some(flag));
        let writes: Vec<Write<F>> =
            gone.chain(new.map(|(address, flag)| Write::NodeAddress(*address, *flag))).collect();
        for write in &writes {
            self.contents.make(write);
        }
        writes
    }

    /// Gives the pool that the frontend has left for another one, or for none.
    fn set_user(&mut self, key: &FrontendKey<F>, served: Option<&Served<F>>) -> Option<PoolName> {
        let left = self.served.remove(key).map(|(name, _)| name);
        if let Some(pool) = left.as_ref().and_then(|name| self.pools.get_mut(name)) {
            pool.users.remove(key);
        }
        let Some(served) = served else { return left };
        let left = left.filter(|name| *name != served.pool);
        self.served.insert(*key, (served.pool.clone(), served.host_only));
        if !self.pools.contains_key(&served.pool) {
            let former = self.former.pools.get(&served.pool).copied();
            let number = former.unwrap_or_else(|| self.next_pool());
            let (endpoints, users) = (Box::default(), BTreeSet::new());
            let none = Held { base: 0, order: 0, epoch: 0, number, endpoints, users };
            self.pools.insert(served.pool.clone(), none);
        }
        if let Some(pool) = self.pools.get_mut(&served.pool) {
            pool.users.insert(*key);
        }
        left
    }

    fn set_pool(
        &mut self,
        name: &PoolName,
        wanted: &[Socket<F>],
        work: &mut Work<F>,
    ) -> Result<(), Outgrown> {
        let Some(mut pool) = self.pools.remove(name) else { return Ok(()) };
        let slots = assign_slots(&pool.endpoints, wanted);
        let (is_new, order) = (pool.endpoints.is_empty(), order_for(slots.len()));
        if slots != pool.endpoints {
            // New ones first, so that those that stay keep their numbers.
            for socket in &slots {
                self.refer(&name.0, *socket, work)?;
            }
            for socket in &pool.endpoints {
                self.forget(&name.0, *socket, work);
            }
        }
        // Who has left goes on with what was there, until its own element is written.
        let is_left = work.left.contains(name) && slots != pool.endpoints;
        let moves = is_new || order > pool.order || is_left;
        if moves {
            if !is_new {
                work.freed_extents.push((pool.base, pool.order));
            }
            (pool.base, pool.order) = (self.free.extents.take(order).ok_or(Outgrown)?, order);
            pool.epoch = self.next_epoch();
        }
        for (position, socket) in (pool.base..).zip(&slots) {
            self.set_slot(position, self.slot(&name.0, *socket, pool.epoch).ok_or(Outgrown)?, work);
        }
        if moves || slots.len() != pool.endpoints.len() {
            work.dirty.extend(&pool.users);
        }
        pool.endpoints = slots;
        self.pools.insert(name.clone(), pool);
        Ok(())
    }

    fn set_slot(&self, position: u32, slot: Slot, work: &mut Work<F>) {
        if self.contents.slots.get(position as usize) != Some(&slot) {
            work.slots.push(Write::Slot(position, slot));
        }
    }

    fn slot(&self, service: &ServicePortName, socket: Socket<F>, extent_epoch: u16) -> Option<Slot> {
        let endpoint = self.endpoints.get(service)?.get(&socket)?.number;
        let endpoint_epoch = self.contents.endpoints.get(endpoint as usize).copied().flatten()?.epoch;
        Some(Slot { endpoint, extent_epoch, endpoint_epoch })
    }

    /// An endpoint of a Service port is referred to once more.
    fn refer(
        &mut self,
        service: &ServicePortName,
        socket: Socket<F>,
        work: &mut Work<F>,
    ) -> Result<(), Outgrown> {
        if let Some(numbered) = self.endpoints.get_mut(service).and_then(|own| own.get_mut(&socket)) {
            numbered.references += 1;
            return Ok(());
        }
        let former = self.former.endpoints.get(service).and_then(|own| own.get(&socket)).copied();
        let number = match former {
            Some((Some(number), _)) => number,
            _ => self.free.endpoints.pop_front().ok_or(Outgrown)?,
        };
        let epoch = former.map_or_else(|| self.next_epoch(), |(_, epoch)| epoch);
        let write = Write::Endpoint(number, Endpoint { address: socket.address, port: socket.port, epoch });
        self.contents.make(&write);
        work.endpoints.push(write);
        let own = self.endpoints.entry(service.clone()).or_default();
        own.insert(socket, Numbered { number, references: 1 });
        Ok(())
    }

    fn forget(&mut self, service: &ServicePortName, socket: Socket<F>, work: &mut Work<F>) {
        let Some(own) = self.endpoints.get_mut(service) else { return };
        let Some(numbered) = own.get_mut(&socket) else { return };
        numbered.references -= 1;
        if numbered.references > 0 {
            return;
        }
        work.freed_endpoints.push(numbered.number);
        own.remove(&socket);
        if own.is_empty() {
            self.endpoints.remove(service);
        }
    }

    fn remove_unused(&mut self, work: &mut Work<F>) {
        let is_unused = |name: &&PoolName| self.pools.get(*name).is_some_and(|pool| pool.users.is_empty());
        let unused: Vec<PoolName> = work.left.iter().filter(is_unused).cloned().collect();
        for name in unused {
            let Some(pool) = self.pools.remove(&name) else { continue };
            for socket in &pool.endpoints {
                self.forget(&name.0, *socket, work);
            }
            work.freed_extents.push((pool.base, pool.order));
        }
    }

    /// First what is set, then what is removed.
    fn frontend_writes(&self, keys: &BTreeSet<FrontendKey<F>>) -> Result<Vec<Write<F>>, Outgrown> {
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for key in keys {
            let held = self.contents.frontends.get(key);
            match self.value(key) {
                Some(value) if held != Some(&value) => set.push(Write::Frontend(*key, value)),
                None if held.is_some() => removed.push(Write::RemoveFrontend(*key)),
                Some(_) | None => {}
            }
        }
        // The map itself would refuse what is one too many for a moment.
        let new = set.iter().filter(
            |write| matches!(write, Write::Frontend(key, _) if !self.contents.frontends.contains_key(key)),
        );
        if self.contents.frontends.len() + new.count() > self.contents.capacity.frontends as usize {
            return Err(Outgrown);
        }
        set.extend(removed);
        Ok(set)
    }

    /// What a frontend is to have in the map.
    fn value(&self, key: &FrontendKey<F>) -> Option<FrontendValue> {
        let (name, host_only) = self.served.get(key)?;
        let pool = self.pools.get(name)?;
        Some(FrontendValue {
            base: pool.base,
            count: u32::try_from(pool.endpoints.len()).ok()?,
            host_only: *host_only,
            epoch: pool.epoch,
            pool: pool.number,
        })
    }

    /// What became free is so for the next change: programs may still be reading it.
    fn release(&mut self, work: &Work<F>) {
        self.free.endpoints.extend(&work.freed_endpoints);
        for (base, order) in &work.freed_extents {
            self.free.extents.give(*base, *order);
        }
    }

    fn next_pool(&mut self) -> u32 {
        self.last_pool = self.last_pool.wrapping_add(1).max(1);
        self.last_pool
    }

    fn next_epoch(&mut self) -> u16 {
        self.epoch = self.epoch.wrapping_add(1).max(1);
        self.epoch
    }
}
