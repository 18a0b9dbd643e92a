//! What the API reads from this host, on Windows.

use std::net::IpAddr;

use agent::snapshot::{Overview, Service};
use config::Mode;
use inspect::document::{Finding, FlowList, Limit};
use inspect::findings::{self, Evidence};
use walk::{Packet, Paths};

use crate::limits::Limits;
use crate::platform;

/// The host, as the API sees it.
pub(crate) struct ThisHost {
    mode: Mode,
    limits: Limits,
}

impl ThisHost {
    /// For a proxy of this mode, where this is switched off.
    pub(crate) fn new(mode: Mode, limits: Limits) -> Self {
        Self { mode, limits }
    }
}

impl inspect::Host for ThisHost {
    fn walk(&self, _packet: &Packet, _limit: usize) -> Result<Paths, String> {
        Err(format!("rules of mode {} can't be followed", self.mode))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        platform::addresses().unwrap_or_default()
    }

    fn flows(&self, _limit: usize) -> Result<FlowList, String> {
        Err("Windows does not tell its flows".to_owned())
    }

    fn limits(&self) -> Vec<Limit> {
        self.limits.all()
    }

    fn findings(&self, overview: &Overview, services: &[Service]) -> (Vec<Finding>, Vec<String>) {
        let mode = self.mode.to_string();
        let unread = ["the host's settings", "load balancers in HNS: audits compare them"];
        let unread = unread.map(str::to_owned).to_vec();
        let evidence = Evidence { mode: &mode, unread, ..Evidence::default() };
        (findings::findings(&evidence, overview, services), findings::checked(&evidence))
    }
}
