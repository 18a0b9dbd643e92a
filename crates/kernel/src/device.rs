//! Addresses of the node, and the device that holds those of virtual servers.

use std::collections::BTreeSet;
use std::io;

use ipvs::device::{self, AddressChange, DeviceAddress};

use crate::netlink::{Netlink, NetlinkError, Protocol, Refusal};

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
/// Changes that are sent in one go: some 80 KiB.
const AT_ONCE: usize = 1000;
const READ_ATTEMPTS: u32 = 10;

/// Why something about devices failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is a device of this name, but it is not a dummy.
    #[error(
        "device {name} is of kind {kind}, not dummy: it is somebody else's, and virtual servers need its name"
    )]
    OtherKind {
        /// Its name.
        name: &'static str,
        /// Its kind.
        kind: String,
    },
    /// The kernel has no dummy devices.
    #[error("device {name} can't be made: the kernel's module dummy is not loaded, and could not be")]
    NoDummies {
        /// Its name.
        name: &'static str,
    },
    /// An address could not be changed.
    #[error("{} address {address}: {}", if *.added { "add" } else { "delete" }, io::Error::from_raw_os_error(*.errno))]
    Address {
        /// The address.
        address: std::net::IpAddr,
        /// Whether it was to be added.
        added: bool,
        /// Number of the error.
        errno: i32,
    },
    /// No conversation with the kernel, or an unexpected answer.
    #[error("{action}")]
    Netlink {
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: NetlinkError,
    },
}

fn failed(action: &'static str) -> impl FnOnce(NetlinkError) -> DeviceError {
    move |source| DeviceError::Netlink { action, source }
}

/// A dummy device that holds addresses for virtual servers. It stays down, so that it takes part in nothing: an address is
/// local to the host all the same.
#[derive(Debug)]
pub struct VirtualDevice {
    name: &'static str,
    route: Netlink,
}

impl VirtualDevice {
    /// Opens a socket for the device of this name, which need not exist.
    ///
    /// # Errors
    /// The system has no such sockets.
    pub fn open(name: &'static str) -> Result<Self, DeviceError> {
        Ok(Self { name, route: Netlink::open(Protocol::Route).map_err(failed("open a socket for devices"))? })
    }

    /// The device's number; `None` if there is none.
    ///
    /// # Errors
    /// There is one of another kind.
    pub fn index(&mut self) -> Result<Option<u32>, DeviceError> {
        let mut found = None;
        let name = self.name;
        let asked = self.route.ask(
            |seq| device::request(name, seq),
            |message| found = device::device(message).or(found.take()),
        );
        match asked {
            Err(error) if error.refusal() == Some(ENODEV) => return Ok(None),
            other => other.map_err(failed("look for the device of virtual servers"))?,
        }
        let Some(found) = found else { return Ok(None) };
        match found.kind.as_deref() {
            Some("dummy") => Ok(Some(found.index)),
            kind => Err(DeviceError::OtherKind { name, kind: kind.unwrap_or("physical").to_owned() }),
        }
    }

    /// Makes the device unless it is there; gives its number.
    ///
    /// # Errors
    /// The kernel has no dummy devices, or there is one of another kind.
    pub fn ensure(&mut self) -> Result<u32, DeviceError> {
        if let Some(index) = self.index()? {
            return Ok(index);
        }
        let name = self.name;
        match self.route.ask(|seq| device::create_dummy(name, seq), |_| ()) {
            Err(error) if error.refusal() == Some(EOPNOTSUPP) => return Err(DeviceError::NoDummies { name }),
            // The other family was faster.
            Err(error) if error.refusal() == Some(EEXIST) => {}
            other => other.map_err(failed("make the device of virtual servers"))?,
        }
        let gone = NetlinkError::OutcomeUnknown;
        self.index()?
            .ok_or(DeviceError::Netlink { action: "make the device of virtual servers", source: gone })
    }

    /// Changes the device's addresses, each by itself; one result for each.
    ///
    /// # Errors
    /// Of the whole: it is not known what was done.
    pub fn change(
        &mut self,
        index: u32,
        changes: &[AddressChange],
    ) -> Result<Vec<Result<(), DeviceError>>, DeviceError> {
        let mut results = Vec::with_capacity(changes.len());
        for changes in changes.chunks(AT_ONCE) {
            let begin = results.len();
            let refusals = self.route.send_each(changes.len(), |out, position, seq, flags| {
                device::change_address(out, index, changes[position], seq, flags);
            });
            results.extend(changes.iter().map(|_| Ok(())));
            for (position, refusal) in refusals.map_err(failed("change addresses"))? {
                results[begin + position] = refused(changes[position], &refusal);
            }
        }
        Ok(results)
    }

    /// The addresses of all devices, and of this one. (Those of loopback too.)
    ///
    /// # Errors
    /// They can't be read.
    pub fn all_addresses(&mut self) -> Result<BTreeSet<DeviceAddress>, DeviceError> {
        let mut attempt = 1;
        loop {
            let mut found = BTreeSet::new();
            let asked =
                self.route.ask(device::request_addresses, |message| found.extend(device::address(message)));
            match asked {
                Ok(()) => return Ok(found),
                Err(NetlinkError::Interrupted) if attempt < READ_ATTEMPTS => attempt += 1,
                Err(error) => return Err(failed("read the addresses of devices")(error)),
            }
        }
    }
}

/// What is there already, or gone already, is as it should be.
fn refused(change: AddressChange, refusal: &Refusal) -> Result<(), DeviceError> {
    const EADDRNOTAVAIL: i32 = 99;
    match (change, refusal.errno) {
        (AddressChange::Add(_), EEXIST) | (AddressChange::Delete(_), EADDRNOTAVAIL) => Ok(()),
        (AddressChange::Add(address), errno) => Err(DeviceError::Address { address, added: true, errno }),
        (AddressChange::Delete(address), errno) => Err(DeviceError::Address { address, added: false, errno }),
    }
}
