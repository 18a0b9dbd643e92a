//! A load balancer that takes packets between rules, as IPVS does.

use std::net::SocketAddr;

use nft::Hook;

use super::state::State;
use super::{Pick, TraceError, Tracer};
use crate::Step;

/// A load balancer of the kernel, besides the rules.
pub trait Balancer: Send + Sync {
    /// What takes packets that are sent to an address.
    ///
    /// # Errors
    /// Why that can't be learnt.
    fn find(&self, protocol: u8, to: SocketAddr) -> Result<Option<Balanced>, String>;
}

/// Where packets to one address are distributed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balanced {
    /// What does it, as its tool prints it.
    pub server: String,
    /// Where new flows can go, and how the tool prints that. Each is taken to be as probable as any other.
    pub endpoints: Vec<(SocketAddr, String)>,
}

/// What its steps have as their chain.
pub const BALANCER_CHAIN: &str = "IPVS";

/// The last priority of chains that a packet for the host passes before IPVS sees it: behind the packet filter
/// (`NF_IP_PRI_NAT_SRC - 1`; `ip_vs_ops4` in Linux' `net/netfilter/ipvs/ip_vs_core.c`).
pub(super) const IN: i32 = 99;
/// The same for one that the host sends itself: before the packet filter (`NF_IP_PRI_NAT_DST + 2`).
pub(super) const OUT: i32 = -98;

/// What became of a packet.
pub(super) enum Taken {
    /// It goes on as it was.
    No,
    /// It has an endpoint's address now.
    Sent,
    /// There is no endpoint for it.
    Refused,
}

impl Tracer {
    /// The same host, with a load balancer.
    #[must_use]
    pub fn beside(self, balancer: std::sync::Arc<dyn Balancer>) -> Self {
        Self { balancer: Some(balancer), ..self }
    }

    /// Has the load balancer see a packet.
    pub(super) fn balance(
        &mut self,
        hook: Hook,
        state: &mut State,
        pick: Pick<'_>,
    ) -> Result<Taken, TraceError> {
        let Some(balancer) = &self.balancer else { return Ok(Taken::No) };
        let found = balancer.find(state.packet.protocol, state.packet.destination);
        let Some(found) = found.map_err(|why| TraceError::Balancer { why })? else { return Ok(Taken::No) };
        let chosen = match u32::try_from(found.endpoints.len()).unwrap_or(u32::MAX) {
            0 => None,
            n_endpoints => {
                self.n_drawn += 1;
                found.endpoints.get(pick(n_endpoints) as usize)
            }
        };
        if let Some(steps) = &mut state.steps {
            let (hook, chain) = (hook.as_str(), BALANCER_CHAIN.to_owned());
            let to = chosen.iter().map(|(_, text)| format!("-> {text}")).collect();
            steps.push(Step { hook, table: "", chain, rule: found.server, found: to });
        }
        Ok(match chosen {
            Some((endpoint, _)) => {
                // Not a translation as rules make them: `ct status` does not have it.
                state.packet.destination = *endpoint;
                Taken::Sent
            }
            None => Taken::Refused,
        })
    }
}
