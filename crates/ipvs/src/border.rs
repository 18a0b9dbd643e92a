//! What has the I/O.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::device::AddressChange;
use crate::{Command, Connections, RealServer, RealServerId, ServerId, Statistics, Timeouts, VirtualServer};

/// IPVS of one network namespace.
pub trait Ipvs: Send {
    /// Does what the commands say, in their order, each by itself: one result for each.
    fn apply(&mut self, commands: &[Command]) -> Vec<Result<(), IpvsError>>;

    /// All virtual servers with an address, of both families.
    ///
    /// # Errors
    /// They can't be read.
    fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, IpvsError>;

    /// The real servers of a virtual server; none if there is no such.
    ///
    /// # Errors
    /// They can't be read.
    fn real_servers(&mut self, id: &ServerId) -> Result<Vec<(RealServer, Connections)>, IpvsError>;

    /// What went through each virtual server with an address, of both families: one listing, without real servers.
    ///
    /// # Errors
    /// It can't be read.
    fn virtual_statistics(&mut self) -> Result<Vec<(ServerId, Statistics)>, IpvsError>;

    /// What went through each real server of a virtual server; nothing if there is no such.
    ///
    /// # Errors
    /// It can't be read.
    fn real_statistics(&mut self, id: &ServerId) -> Result<Vec<(RealServerId, Statistics)>, IpvsError>;

    /// The time-outs.
    ///
    /// # Errors
    /// They can't be read.
    fn timeouts(&mut self) -> Result<Timeouts, IpvsError>;
}

/// Why something failed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS.
    #[error("the kernel has no IPVS: its module ip_vs is not loaded, and could not be")]
    Missing,
    /// The kernel refused a command.
    #[error("{command}: {}", io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// What was to be done.
        command: String,
        /// Number of the error.
        errno: i32,
    },
    /// What was read changed meanwhile.
    #[error("the servers changed while they were read")]
    Interrupted,
    /// It is not known what became of a command.
    #[error("{why}")]
    OutcomeUnknown {
        /// Why not.
        why: &'static str,
    },
    /// No conversation with the kernel.
    #[error("{action}")]
    Netlink {
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl IpvsError {
    /// The number of the error, if the kernel refused something.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The device that holds the addresses of virtual servers, among the devices of a network namespace.
pub trait Devices: Send {
    /// What addresses there are.
    ///
    /// # Errors
    /// They can't be read, or somebody else has the device's name.
    fn addresses(&mut self) -> Result<Addresses, DeviceError>;

    /// Changes the device's addresses, each by itself; one result for each. Makes the device if it is not there. What is as
    /// wanted already is no error.
    fn change(&mut self, changes: &[AddressChange]) -> Vec<Result<(), DeviceError>>;
}

/// Addresses of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those of virtual servers' device.
    pub device: BTreeSet<IpAddr>,
    /// Those of all other devices.
    pub others: BTreeSet<IpAddr>,
}

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
    #[error("{change}: {}", io::Error::from_raw_os_error(*.errno))]
    Refused {
        /// What was to be done.
        change: AddressChange,
        /// Number of the error.
        errno: i32,
    },
    /// It is not known what became of a change.
    #[error("{why}")]
    OutcomeUnknown {
        /// Why not.
        why: &'static str,
    },
    /// No conversation with the kernel.
    #[error("{action}")]
    Netlink {
        /// What was being done.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
