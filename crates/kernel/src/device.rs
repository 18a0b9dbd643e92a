//! Addresses of the node, and the device that holds those of virtual servers.

use ipvs::device::{self, AddressChange};
use ipvs::{Addresses, Devices};
use netlink::NetlinkError;

use crate::netlink::{Netlink, Protocol, Refusal};

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
/// Changes that are sent in one go: some 80 KiB.
const AT_ONCE: usize = 1000;
const READ_ATTEMPTS: u32 = 10;

fn failed(action: &'static str) -> impl FnOnce(NetlinkError) -> NetlinkError {
    move |error| error.during(action)
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
    pub fn open(name: &'static str) -> Result<Self, NetlinkError> {
        Ok(Self { name, route: Netlink::open(Protocol::Route).map_err(failed("open a socket for devices"))? })
    }

    /// The device's number; `None` if there is none.
    ///
    /// # Errors
    /// There is one of another kind.
    pub fn index(&mut self) -> Result<Option<u32>, NetlinkError> {
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
            kind => Err(other_kind(name, kind.unwrap_or("physical"))),
        }
    }

    /// Makes the device unless it is there; gives its number.
    ///
    /// # Errors
    /// The kernel has no dummy devices, or there is one of another kind.
    pub fn ensure(&mut self) -> Result<u32, NetlinkError> {
        if let Some(index) = self.index()? {
            return Ok(index);
        }
        let name = self.name;
        match self.route.ask(|seq| device::create_dummy(name, seq), |_| ()) {
            Err(error) if error.refusal() == Some(EOPNOTSUPP) => return Err(no_dummies(name)),
            // The other family was faster.
            Err(error) if error.refusal() == Some(EEXIST) => {}
            other => other.map_err(failed("make the device of virtual servers"))?,
        }
        let gone = NetlinkError::OutcomeUnknown {
            why: "the device of virtual servers was made, and was gone at once",
        };
        self.index()?.ok_or(gone)
    }

    fn change_at_once(
        &mut self,
        index: u32,
        changes: &[AddressChange],
        results: &mut Vec<Result<(), NetlinkError>>,
    ) {
        let begin = results.len();
        let sent = self.route.send_each(changes.len(), |out, position, seq, flags| {
            device::change_address(out, index, changes[position], seq, flags);
        });
        match sent {
            Ok(refusals) => {
                results.extend(changes.iter().map(|_| Ok(())));
                for (position, refusal) in refusals {
                    results[begin + position] = refused(changes[position], refusal);
                }
            }
            Err(error) => fail_all(failed("change addresses")(error), changes.len(), results),
        }
    }
}

impl Devices for VirtualDevice {
    fn addresses(&mut self) -> Result<Addresses, NetlinkError> {
        let own = self.index()?;
        let mut attempt = 1;
        loop {
            let mut found = Addresses::default();
            let asked = self.route.ask(device::request_addresses, |message| {
                if let Some(address) = device::address(message) {
                    let of_own = own == Some(address.index);
                    let set = if of_own { &mut found.device } else { &mut found.others };
                    set.insert(address.address);
                }
            });
            match asked {
                Ok(()) => return Ok(found),
                Err(NetlinkError::Interrupted) if attempt < READ_ATTEMPTS => attempt += 1,
                Err(error) => return Err(failed("read the addresses of devices")(error)),
            }
        }
    }

    fn change(&mut self, changes: &[AddressChange]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(changes.len());
        match self.ensure() {
            Ok(index) => {
                for changes in changes.chunks(AT_ONCE) {
                    self.change_at_once(index, changes, &mut results);
                }
            }
            Err(error) => fail_all(error, changes.len(), &mut results),
        }
        results
    }
}

fn other_kind(name: &str, kind: &str) -> NetlinkError {
    let what = "it is somebody else's, and virtual servers need its name";
    NetlinkError::Foreign { what: format!("device {name} is of kind {kind}, not dummy: {what}") }
}

fn no_dummies(name: &str) -> NetlinkError {
    let why = "the kernel's module dummy is not loaded, and could not be";
    NetlinkError::Missing { what: format!("device {name} can't be made: {why}") }
}

/// The first of so many changes failed, and the others with it.
fn fail_all(error: NetlinkError, count: usize, results: &mut Vec<Result<(), NetlinkError>>) {
    let with_it = || Err(NetlinkError::OutcomeUnknown { why: "failed together with another address" });
    results.extend(std::iter::once(Err(error)).chain(std::iter::repeat_with(with_it)).take(count));
}

/// What is there already, or gone already, is as it should be.
fn refused(change: AddressChange, refusal: Refusal) -> Result<(), NetlinkError> {
    const EADDRNOTAVAIL: i32 = 99;
    match (change, refusal.errno) {
        (AddressChange::Add(_), EEXIST) | (AddressChange::Delete(_), EADDRNOTAVAIL) => Ok(()),
        _ => Err(refusal.of(change.to_string())),
    }
}
