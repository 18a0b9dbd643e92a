//! What a family's maps hold, and single writes to them.

use std::collections::BTreeMap;
use std::fmt;

use model::{Family, FrontendKey};

use crate::maps::Capacity;
use crate::schema::{Endpoint, FrontendValue, Slot};

/// What the maps of a family hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents<F: Family> {
    /// How much they can hold.
    pub capacity: Capacity,
    /// Frontends.
    pub frontends: BTreeMap<FrontendKey<F>, FrontendValue>,
    /// As many slots as there is room for.
    pub slots: Vec<Slot>,
    /// As many endpoints as there is room for.
    pub endpoints: Vec<Option<Endpoint<F>>>,
    /// The node's addresses; true: its node ports are reached only from the host's network namespace.
    pub node_addresses: BTreeMap<F::Addr, bool>,
    /// Elements that could not be read as what they should be.
    pub unreadable: usize,
}

/// One write to one map. Each is atomic for programs that run meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<F: Family> {
    /// Sets an endpoint that no slot refers to, and its counter to 0.
    Endpoint(u32, Endpoint<F>),
    /// Takes away an endpoint that no slot refers to any more.
    RemoveEndpoint(u32),
    /// Sets a slot.
    Slot(u32, Slot),
    /// Sets a frontend.
    Frontend(FrontendKey<F>, FrontendValue),
    /// Removes a frontend.
    RemoveFrontend(FrontendKey<F>),
    /// Sets an address of the node.
    NodeAddress(F::Addr, bool),
    /// Removes an address of the node.
    RemoveNodeAddress(F::Addr),
}

impl<F: Family> Contents<F> {
    /// Nothing, with room for this.
    pub fn empty(capacity: Capacity) -> Self {
        Self {
            capacity,
            frontends: BTreeMap::new(),
            slots: vec![Slot::default(); index(capacity.slots)],
            endpoints: vec![None; index(capacity.endpoints)],
            node_addresses: BTreeMap::new(),
            unreadable: 0,
        }
    }

    /// Does what the write does to maps. What is out of range is not done, and false.
    pub fn make(&mut self, write: &Write<F>) -> bool {
        match *write {
            Write::Endpoint(id, endpoint) => {
                let Some(place) = self.endpoints.get_mut(index(id)) else { return false };
                *place = Some(endpoint);
            }
            Write::RemoveEndpoint(id) => {
                let Some(place) = self.endpoints.get_mut(index(id)) else { return false };
                *place = None;
            }
            Write::Slot(position, slot) => {
                let Some(place) = self.slots.get_mut(index(position)) else { return false };
                *place = slot;
            }
            Write::Frontend(key, value) => {
                self.frontends.insert(key, value);
                return self.frontends.len() <= index(self.capacity.frontends);
            }
            Write::RemoveFrontend(key) => drop(self.frontends.remove(&key)),
            Write::NodeAddress(address, host_only) => drop(self.node_addresses.insert(address, host_only)),
            Write::RemoveNodeAddress(address) => drop(self.node_addresses.remove(&address)),
        }
        true
    }

    /// The endpoints that a program may choose for a frontend, slot by slot; `None` where it would leave the connection to the
    /// rules. What the programs do, without the choice.
    pub fn choices(&self, value: &FrontendValue) -> Vec<Option<Endpoint<F>>> {
        let choose = |n: u32| {
            let slot = self.slots.get(index(value.base.checked_add(n)?))?;
            let endpoint = (*self.endpoints.get(index(slot.endpoint))?)?;
            let is_current = slot.extent_epoch == value.epoch && endpoint.epoch == slot.endpoint_epoch;
            is_current.then_some(endpoint)
        };
        // More than there are slots is nonsense that was read.
        (0..value.count.min(self.capacity.slots)).map(choose).collect()
    }
}

/// An index into what has been counted in 32 bits.
fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn write_key<F: Family>(f: &mut fmt::Formatter<'_>, key: &FrontendKey<F>) -> fmt::Result {
    write!(f, "{} port {}/{}", key.address, key.port, key.protocol)
}

impl<F: Family> fmt::Display for Write<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(id, endpoint) => {
                let address: std::net::IpAddr = endpoint.address.into();
                write!(
                    f,
                    "endpoint {id}@{} = {}",
                    endpoint.epoch,
                    std::net::SocketAddr::new(address, endpoint.port)
                )
            }
            Self::RemoveEndpoint(id) => write!(f, "remove endpoint {id}"),
            Self::Slot(position, slot) => {
                write!(f, "slot {position}@{} = {}@{}", slot.extent_epoch, slot.endpoint, slot.endpoint_epoch)
            }
            Self::Frontend(key, value) => {
                f.write_str("frontend ")?;
                write_key(f, key)?;
                write!(f, " = {value}")
            }
            Self::RemoveFrontend(key) => {
                f.write_str("remove frontend ")?;
                write_key(f, key)
            }
            Self::NodeAddress(address, false) => write!(f, "node address {address}"),
            Self::NodeAddress(address, true) => write!(f, "node address {address} for the host only"),
            Self::RemoveNodeAddress(address) => write!(f, "remove node address {address}"),
        }
    }
}

impl fmt::Display for FrontendValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, count, host_only, epoch, pool: _ } = self;
        write!(f, "{base}+{count}@{epoch}")?;
        if *host_only { f.write_str(", for the host only") } else { Ok(()) }
    }
}
