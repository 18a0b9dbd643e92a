//! Single flows.

use conntrack::{Flow, Tuple, lookup};
use netlink::NetlinkError;

use crate::netlink::{Netlink, Protocol};

/// Looks up tracked flows one by one, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct FlowLookup(Netlink);

impl FlowLookup {
    /// Opens a socket.
    ///
    /// # Errors
    /// The system has no netfilter sockets for us.
    pub fn open() -> Result<Self, NetlinkError> {
        Netlink::open(Protocol::Netfilter).map(Self)
    }

    /// The flow that is answered like this, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn answered(&mut self, protocol: u8, reply: &Tuple) -> Result<Option<Flow>, NetlinkError> {
        let mut found = None;
        let asked = self.0.ask(
            |seq| lookup::request(protocol, reply, seq),
            |message| found = lookup::flow(message).or(found.take()),
        );
        match asked {
            Err(error) if error.refusal() == Some(libc::ENOENT) => Ok(None),
            other => other.map(|()| found),
        }
    }
}
