//! Taking over what an earlier process left in the maps. Numbers are checked, never trusted: where two things claim one number, or a
//! number leads nowhere, nothing is taken over.

use std::collections::{BTreeMap, BTreeSet};

use ebpf::{Contents, FrontendValue};
use model::{Family, FrontendKey, ServicePortName};

use crate::extents::order_for;
use crate::served::{PoolName, Served, Socket};
use crate::state::{Held, Numbered, State};

impl<F: Family> State<F> {
    /// The state that these contents are, as far as it is wanted. What else is in the maps counts as free; [`State::set_all`]
    /// removes it. `None`: they contradict themselves, and can't be had.
    pub fn adopt(contents: Contents<F>, wanted: &BTreeMap<FrontendKey<F>, Served<F>>) -> Option<Self> {
        let capacity = contents.capacity;
        if contents.unreadable > 0 || !capacity.slots.is_power_of_two() {
            return None;
        }
        let mut state = Self::empty(capacity);
        state.epoch = last_epoch(&contents);
        let mut service_of = BTreeMap::new();
        for (key, served) in wanted {
            if let Some(value) = contents.frontends.get(key) {
                state.adopt_frontend(&contents, (key, value), served, &mut service_of)?;
            }
        }
        let taken: BTreeSet<u32> = state.endpoints.values().map(|numbered| numbered.number).collect();
        state.free.endpoints.retain(|number| !taken.contains(number));
        state.free.services.retain(|number| !service_of.contains_key(number));
        let name_at: BTreeMap<u32, &PoolName> =
            state.pools.iter().map(|(name, pool)| (pool.base, name)).collect();
        let strangers = contents.frontends.iter().filter(|(key, _)| !state.served.contains_key(key));
        let shared = strangers.filter_map(|(_, value)| name_at.get(&value.base).copied().cloned());
        state.shared = shared.collect();
        state.contents = contents;
        Some(state)
    }

    fn adopt_frontend(
        &mut self,
        contents: &Contents<F>,
        (key, value): (&FrontendKey<F>, &FrontendValue),
        served: &Served<F>,
        service_of: &mut BTreeMap<u32, ServicePortName>,
    ) -> Option<()> {
        if let Some(pool) = self.pools.get_mut(&served.pool) {
            let same = (pool.base, pool.epoch, pool.endpoints.len())
                == (value.base, value.epoch, value.count as usize);
            if same {
                pool.users.insert(*key);
                self.served.insert(*key, (served.pool.clone(), value.host_only));
            }
            // Otherwise its extent is another one, of which nobody knows: it is set anew.
            return Some(());
        }
        if value.service >= contents.capacity.services {
            return None;
        }
        let owner = service_of.get(&value.service).is_none_or(|owner| *owner == served.pool.0);
        let known = self.services.get(&served.pool.0).is_none_or(|known| known.number == value.service);
        // Two Services with one number, or two pools in one place, are what changed while nobody was there: addresses have gone to
        // another Service, or a policy is another one. The second is set anew.
        if !owner || !known || !self.take_extent(contents, value)? {
            return Some(());
        }
        service_of.insert(value.service, served.pool.0.clone());
        let pool = self.adopt_pool(contents, (key, value))?;
        self.services
            .entry(served.pool.0.clone())
            .or_insert(Numbered { number: value.service, references: 0 })
            .references += 1;
        self.pools.insert(served.pool.clone(), pool);
        self.served.insert(*key, (served.pool.clone(), value.host_only));
        Some(())
    }

    /// False if it is not free; `None` if there can be no such one.
    fn take_extent(&mut self, contents: &Contents<F>, value: &FrontendValue) -> Option<bool> {
        let is_within = value.count > 0 && value.count <= contents.capacity.slots;
        is_within.then(|| self.free.extents.take_at(value.base, order_for(value.count as usize)))
    }

    fn adopt_pool(
        &mut self,
        contents: &Contents<F>,
        (key, value): (&FrontendKey<F>, &FrontendValue),
    ) -> Option<Held<F>> {
        let (mut endpoints, mut seen) = (Vec::with_capacity(value.count as usize), BTreeSet::new());
        for (choice, position) in contents.choices(value).into_iter().zip(value.base..) {
            let endpoint = choice?;
            let socket = Socket { address: endpoint.address, port: endpoint.port };
            let number = contents.slots.get(position as usize)?.endpoint;
            let numbered = self.endpoints.entry(socket).or_insert(Numbered { number, references: 0 });
            numbered.references += 1;
            if numbered.number != number || !seen.insert(socket) {
                return None;
            }
            endpoints.push(socket);
        }
        Some(Held {
            base: value.base,
            order: order_for(value.count as usize),
            epoch: value.epoch,
            endpoints: endpoints.into(),
            users: BTreeSet::from([*key]),
        })
    }
}

/// Whatever comes next differs from all that is there.
fn last_epoch<F: Family>(contents: &Contents<F>) -> u16 {
    let slots = contents.slots.iter().flat_map(|slot| [slot.extent_epoch, slot.endpoint_epoch]);
    let endpoints = contents.endpoints.iter().flatten().map(|endpoint| endpoint.epoch);
    let frontends = contents.frontends.values().map(|value| value.epoch);
    slots.chain(endpoints).chain(frontends).max().unwrap_or_default()
}
