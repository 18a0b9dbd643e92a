//! What has the I/O.

use std::io;

use crate::{Command, Connections, RealServer, ServerId, Timeouts, VirtualServer};

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

    /// What is there is not what the command presumed.
    pub fn contradicts(&self) -> bool {
        /// `EEXIST`; `ENOENT` for real servers; `ESRCH` for virtual ones.
        const CONTRADICTIONS: [i32; 3] = [17, 2, 3];
        self.errno().is_some_and(|errno| CONTRADICTIONS.contains(&errno))
    }
}
