//! What a pool with session affinity has to itself: the map of its clients, and the chain that leads them back.
//!
//! Only such pools have objects of their own, because only so can the clients of one be told from all others in the kernel:
//! they go with it, they are bounded for themselves, and their time-out is its own.

use std::sync::Arc;

use model::Family;
use nft::{Field, Name, Op, Set, Statement};

use crate::chains::{ChainSpec, rule};
use crate::layout::{Map, affinity_name, clients, pool_key, slot_key};
use crate::pools::Pool;
use crate::priority::{POOL, Slots};

/// How clients of a pool are led back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clients<'a> {
    pool: u32,
    timeout_secs: u32,
    slots: Slots,
    comment: &'a str,
}

impl<'a> Clients<'a> {
    /// `None` for a pool without affinity.
    pub(crate) fn of<F: Family>(pool: &'a Pool<F>) -> Option<Self> {
        let (timeout_secs, comment) = pool.clients()?;
        Some(Self { pool: pool.number, timeout_secs, slots: pool.slots(), comment })
    }

    pub(crate) fn name(self) -> Name {
        affinity_name(self.pool)
    }

    pub(crate) fn set(self) -> Arc<Set> {
        clients(self.pool, self.comment)
    }

    /// A client that is remembered goes to its endpoint and is remembered anew, unless the endpoint is gone: then the first
    /// rule's jump comes back, and the client is forgotten and given another one. When the map is full, only remembering
    /// fails.
    ///
    /// The packet's priority has the pool's number at first, then that of an endpoint as well.
    pub(crate) fn chain(self) -> ChainSpec {
        let (map, key, data) = (self.name(), vec![Field::SourceAddr], vec![Field::Priority]);
        let learn = || Statement::Learn {
            map: map.clone(),
            key: key.clone(),
            data: data.clone(),
            timeout_secs: self.timeout_secs,
        };
        let go = || Statement::Jump(dnat_name());
        let rules = vec![
            rule([Statement::SetPriority { key: key.clone(), map: map.clone() }, learn(), go()]),
            rule([Statement::Forget { map: map.clone(), key: key.clone(), data: data.clone() }]),
            rule([Statement::MaskPriority(POOL)]),
            rule([Statement::Jump(choice_name(self.slots))]),
            rule([learn()]),
            rule([go()]),
        ];
        ChainSpec { name: map, base: None, rules }
    }
}

fn dnat_name() -> Name {
    Name::from_static("affinity-dnat")
}

/// The chain that translates to the endpoint whose number the packet's priority has, and comes back if it does not serve.
///
/// It is one chain for all pools, since for each new element of a map the kernel looks at all rules that translate by the map
/// (`nft_add_set_elem`), and each new one of those makes it walk the map (`nf_tables_bind_set`).
pub(crate) fn dnat() -> ChainSpec {
    let rules = vec![rule([Statement::DnatMap { key: pool_key(), map: Map::AffinityEndpoints.name() }])];
    ChainSpec { name: dnat_name(), base: None, rules }
}

fn choice_name(slots: Slots) -> Name {
    Name::new(&format!("affinity-choice-{}", slots.count()))
        .expect("a short name of letters, digits and dashes")
}

/// The chain that gives a new client a number: the packet's priority becomes that of an endpoint. See
/// [`tries`](crate::chains::tries) for how it chooses.
pub(crate) fn choice(slots: Slots) -> ChainSpec {
    let try_slot = |slots: Slots| {
        let key = slot_key(Field::NumgenRandom { modulus: slots.count() });
        [Statement::SetPriority { key, map: Map::AffinitySlots.name() }, Statement::Return]
    };
    let rules = crate::chains::tries(slots).map(|slots| rule(try_slot(slots))).collect();
    ChainSpec { name: choice_name(slots), base: None, rules }
}

/// What to do to the objects of pools with affinity.
#[derive(Debug, Default)]
pub(crate) struct ClientsChange {
    /// Before anything is changed that leads to them.
    pub(crate) before: Vec<Op>,
    /// While both old and new endpoints are there.
    pub(crate) between: Vec<Op>,
    /// When nothing leads to them any more.
    pub(crate) after: Vec<Op>,
}

impl ClientsChange {
    /// Takes in that a pool changes.
    pub(crate) fn pool(&mut self, old: Option<Clients<'_>>, new: Option<Clients<'_>>) {
        match (old, new) {
            (Some(old), Some(new)) if old.pool == new.pool => {
                if old != new {
                    let ChainSpec { name, rules, .. } = new.chain();
                    self.between.push(Op::SetRules { chain: name, rules });
                }
            }
            (old, new) => {
                if let Some(new) = new {
                    self.begin(new);
                }
                if let Some(old) = old {
                    self.after.extend([Op::DeleteChain(old.name()), Op::DeleteSet(old.name())]);
                }
            }
        }
    }

    fn begin(&mut self, new: Clients<'_>) {
        let ChainSpec { name, rules, .. } = new.chain();
        self.before.push(Op::AddSet(new.set()));
        self.before.push(Op::AddChain { name: name.clone(), base: None });
        self.before.push(Op::SetRules { chain: name, rules });
    }
}
