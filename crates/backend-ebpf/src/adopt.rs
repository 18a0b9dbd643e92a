//! Taking over what an earlier process left in the maps. Numbers are checked, never trusted: where two things claim one number, or a
//! number leads nowhere, nothing is taken over.

use std::collections::{BTreeMap, BTreeSet};

use ebpf::{Contents, FrontendValue};
use model::{Family, FrontendKey, ServicePortName};

use crate::extents::order_for;
use crate::served::{PoolName, Served, Socket};
use crate::state::{Held, Numbered, State};

/// Numbers that are somebody's.
#[derive(Default)]
struct Taken {
    endpoints: BTreeSet<u32>,
    pools: BTreeSet<u32>,
}

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
        state.last_pool = contents.frontends.values().map(|value| value.pool).max().unwrap_or_default();
        let mut taken = Taken::default();
        for (key, served) in wanted {
            if let Some(value) = contents.frontends.get(key) {
                state.adopt_frontend(&contents, (key, value), served, &mut taken)?;
            }
        }
        let is_there = |number: u32| contents.endpoints.get(number as usize).is_some_and(Option::is_some);
        state.unclaimed =
            (0..capacity.endpoints).filter(|n| is_there(*n) && !taken.endpoints.contains(n)).collect();
        state.free.endpoints.retain(|number| !taken.endpoints.contains(number) && !is_there(*number));
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
        taken: &mut Taken,
    ) -> Option<()> {
        if let Some(pool) = self.pools.get_mut(&served.pool) {
            let same = (pool.base, pool.epoch, pool.number, pool.endpoints.len())
                == (value.base, value.epoch, value.pool, value.count as usize);
            if same {
                pool.users.insert(*key);
                self.served.insert(*key, (served.pool.clone(), value.host_only));
            }
            // Otherwise its extent is another one, of which nobody knows: it is set anew.
            return Some(());
        }
        let numbers = numbers_of(contents, value)?;
        // Two pools in one place, or two Services with one endpoint's number, are what changed while nobody was there: addresses
        // have gone to another Service, or a policy is another one. The second is set anew.
        let is_claimed = taken.pools.contains(&value.pool)
            || self.is_claimed(&served.pool.0, &numbers, &taken.endpoints)
            || !self.take_extent(value);
        if is_claimed {
            return Some(());
        }
        taken.pools.insert(value.pool);
        self.adopt_pool((key, value), served, numbers, taken);
        Some(())
    }

    fn adopt_pool(
        &mut self,
        (key, value): (&FrontendKey<F>, &FrontendValue),
        served: &Served<F>,
        numbers: Vec<(Socket<F>, u32)>,
        taken: &mut Taken,
    ) {
        let own = self.endpoints.entry(served.pool.0.clone()).or_default();
        for (socket, number) in &numbers {
            own.entry(*socket).or_insert(Numbered { number: *number, references: 0 }).references += 1;
            taken.endpoints.insert(*number);
        }
        let pool = Held {
            base: value.base,
            order: order_for(value.count as usize),
            epoch: value.epoch,
            number: value.pool,
            endpoints: numbers.into_iter().map(|(socket, _)| socket).collect(),
            users: BTreeSet::from([*key]),
        };
        self.pools.insert(served.pool.clone(), pool);
        self.served.insert(*key, (served.pool.clone(), value.host_only));
    }

    /// Whether one of the numbers is another endpoint's already, or one of the endpoints has another number.
    fn is_claimed(
        &self,
        service: &ServicePortName,
        numbers: &[(Socket<F>, u32)],
        taken: &BTreeSet<u32>,
    ) -> bool {
        let own = self.endpoints.get(service);
        numbers.iter().any(|(socket, number)| match own.and_then(|own| own.get(socket)) {
            Some(known) => known.number != *number,
            None => taken.contains(number),
        })
    }

    /// False if it is not free.
    fn take_extent(&mut self, value: &FrontendValue) -> bool {
        self.free.extents.take_at(value.base, order_for(value.count as usize))
    }
}

/// The endpoints of a pool, slot by slot, with their numbers; `None`: there can be no such pool.
fn numbers_of<F: Family>(contents: &Contents<F>, value: &FrontendValue) -> Option<Vec<(Socket<F>, u32)>> {
    if value.count == 0 || value.count > contents.capacity.slots {
        return None;
    }
    let mut seen = BTreeSet::new();
    let choices = contents.choices(value).into_iter().zip(value.base..);
    let numbers = choices.map(|(endpoint, position)| {
        let endpoint = endpoint?;
        let socket = Socket { address: endpoint.address, port: endpoint.port };
        let number = contents.slots.get(position as usize)?.endpoint;
        seen.insert(socket).then_some((socket, number))
    });
    numbers.collect()
}

/// Whatever comes next differs from all that is there.
fn last_epoch<F: Family>(contents: &Contents<F>) -> u16 {
    let slots = contents.slots.iter().flat_map(|slot| [slot.extent_epoch, slot.endpoint_epoch]);
    let endpoints = contents.endpoints.iter().flatten().map(|endpoint| endpoint.epoch);
    let frontends = contents.frontends.values().map(|value| value.epoch);
    slots.chain(endpoints).chain(frontends).max().unwrap_or_default()
}
