//! What has the I/O.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink::NetlinkError;

use crate::device::AddressChange;
use crate::{Command, Connections, RealServer, ServerId, Timeouts, VirtualServer};

/// IPVS of one network namespace.
pub trait Ipvs: Send {
    /// Does what the commands say, in their order, each by itself: one result for each.
    fn apply(&mut self, commands: &[Command]) -> Vec<Result<(), NetlinkError>>;

    /// All virtual servers with an address, of both families.
    ///
    /// # Errors
    /// They can't be read.
    fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, NetlinkError>;

    /// The real servers of a virtual server; none if there is no such.
    ///
    /// # Errors
    /// They can't be read.
    fn real_servers(&mut self, id: &ServerId) -> Result<Vec<(RealServer, Connections)>, NetlinkError>;

    /// The time-outs.
    ///
    /// # Errors
    /// They can't be read.
    fn timeouts(&mut self) -> Result<Timeouts, NetlinkError>;
}

/// The device that holds the addresses of virtual servers, among the devices of a network namespace.
pub trait Devices: Send {
    /// What addresses there are.
    ///
    /// # Errors
    /// They can't be read, or somebody else has the device's name.
    fn addresses(&mut self) -> Result<Addresses, NetlinkError>;

    /// Changes the device's addresses, each by itself; one result for each. Makes the device if it is not there. What is as
    /// wanted already is no error.
    fn change(&mut self, changes: &[AddressChange]) -> Vec<Result<(), NetlinkError>>;
}

/// Addresses of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those of virtual servers' device.
    pub device: BTreeSet<IpAddr>,
    /// Those of all other devices.
    pub others: BTreeSet<IpAddr>,
}
