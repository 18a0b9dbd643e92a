//! Devices' addresses in memory, with failures on demand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipvs::device::AddressChange;
use ipvs::{Addresses, Devices};
use netlink::NetlinkError;

/// The addresses of a host. Clones are connections to the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeDevices {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    addresses: Addresses,
    /// Changes of these addresses are refused.
    refusing: BTreeMap<IpAddr, i32>,
    changes: Vec<AddressChange>,
}

impl FakeDevices {
    /// A host with these addresses, and none for virtual servers.
    pub fn new(others: impl IntoIterator<Item = IpAddr>) -> Self {
        let fake = Self::default();
        fake.state().addresses.others = others.into_iter().collect();
        fake
    }

    /// What there is.
    pub fn held(&self) -> Addresses {
        self.state().addresses.clone()
    }

    /// The changes that were made so far.
    pub fn changes(&self) -> Vec<AddressChange> {
        self.state().changes.clone()
    }

    /// Changes addresses behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Addresses)) {
        change(&mut self.state().addresses);
    }

    /// Changes of an address are refused with this error from now on; `None`: no more.
    pub fn refuse(&self, address: IpAddr, errno: Option<i32>) {
        match errno {
            Some(errno) => self.state().refusing.insert(address, errno),
            None => self.state().refusing.remove(&address),
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices for FakeDevices {
    fn addresses(&mut self) -> Result<Addresses, NetlinkError> {
        Ok(self.held())
    }

    fn change(&mut self, changes: &[AddressChange]) -> Vec<Result<(), NetlinkError>> {
        changes.iter().map(|change| self.state().change(*change)).collect()
    }
}

impl State {
    fn change(&mut self, change: AddressChange) -> Result<(), NetlinkError> {
        let (AddressChange::Add(address) | AddressChange::Delete(address)) = change;
        if let Some(errno) = self.refusing.get(&address) {
            return Err(NetlinkError::refused(change.to_string(), *errno, None));
        }
        match change {
            AddressChange::Add(address) => self.addresses.device.insert(address),
            AddressChange::Delete(address) => self.addresses.device.remove(&address),
        };
        self.changes.push(change);
        Ok(())
    }
}
