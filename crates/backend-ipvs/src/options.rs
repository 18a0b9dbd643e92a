//! What the configuration says about this mode.

use ipnet::IpNet;
use ipvs::{Flags, Scheduler, Timeouts, VirtualServer};
use model::Family;

use crate::state::{Id, Seconds};

/// The section `ipvs` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `scheduler`
    pub scheduler: Scheduler,
    /// `tcpTimeout`, `tcpFinTimeout`, `udpTimeout`; 0 leaves what there is.
    pub timeouts: Timeouts,
    /// `excludeCIDRs`: virtual servers there that are not ours stay.
    pub exclude_cidrs: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self { scheduler: Scheduler::ROUND_ROBIN, timeouts: Timeouts::default(), exclude_cidrs: Vec::new() }
    }
}

impl Options {
    /// Ours, and what makes the scheduler pass over real servers that take no new connections: hashes would lead to them. `mh` is
    /// by port too, as upstream has it; `sh` is not, since a client shall come to one endpoint.
    fn flags(&self) -> Flags {
        match self.scheduler {
            Scheduler::MAGLEV => Flags::OWN.with(Flags::FALLBACK).with(Flags::PORT),
            Scheduler::SOURCE_HASH => Flags::OWN.with(Flags::FALLBACK),
            _ => Flags::OWN,
        }
    }

    pub(crate) fn virtual_server<F: Family>(&self, id: &Id<F>, persistence: Seconds) -> VirtualServer {
        VirtualServer { id: id.server_id(), scheduler: self.scheduler, flags: self.flags(), persistence }
    }

    pub(crate) fn excludes<F: Family>(&self, address: F::Addr) -> bool {
        self.exclude_cidrs.iter().any(|range| range.contains(&address.into()))
    }
}
