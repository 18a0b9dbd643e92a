//! Sockets of the node's own whose connections are deleted.

use conntrack::{Conntrack, Filter, Flow};
use netlink::NetlinkError;
use netlink::sock_diag::{destroy_request, identity};

use super::Flows;
use crate::netlink::{Netlink, Protocol};

const TCP: u8 = 6;

/// Tracked flows; when one of TCP is deleted, so is the socket that began it, if it is in this network namespace. Its owner hears of it at once
/// (`ECONNABORTED`), also one that only waits, and whose next packet would never come.
#[derive(Debug)]
pub struct FlowsAndOwnSockets {
    flows: Flows,
}

impl FlowsAndOwnSockets {
    /// As [`Flows::open`].
    ///
    /// # Errors
    /// As [`Flows::open`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { flows: Flows::open()? })
    }
}

impl Conntrack for FlowsAndOwnSockets {
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        self.flows.each(filter, visit)
    }

    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        if filter.protocol != TCP {
            return self.flows.delete(filter, stale);
        }
        let mut begun = Vec::new();
        let deleted = self.flows.delete(filter, &mut |flow| {
            let is_stale = stale(flow);
            if is_stale {
                begun.push(flow.orig);
            }
            is_stale
        });
        if !begun.is_empty() {
            // What can't be ended, because it is a pod's or the kernel does not do that, ends with the client's next packet.
            drop(end(&begun));
        }
        deleted
    }
}

fn end(begun: &[conntrack::Tuple]) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open(Protocol::SocketDiag)?;
    for tuple in begun {
        let (local, peer) = tuple.ends();
        let (family, id) = identity(local, peer);
        match netlink.ask(|seq| destroy_request(family, TCP, &id, seq), |_| ()) {
            Err(error) if error.refusal().is_none() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
