//! The tracked flows of the network namespace in which the sockets were opened.

mod deleter;
mod lookup;
mod own_sockets;
mod reader;

use conntrack::{Conntrack, Filter, Flow};
use netlink::NetlinkError;

use crate::socket::{Channel, Socket, explained};
use deleter::Deleter;
pub use lookup::FlowLookup;
pub use own_sockets::FlowsAndOwnSockets;
use reader::Reader;

/// What is counted.
const DELETED: &str = "deleted flows";
/// How often the table is read when each reading is disturbed.
const PASSES: u32 = 3;

/// The kernel's table of tracked flows, read and deleted from through two sockets.
///
/// Flows are deleted while the table is still being read. What this holds is one datagram of flows on their way in, and
/// up to 256 flows on their way out, however many there are.
#[derive(Debug)]
pub struct Flows<C: Channel = Socket> {
    reader: Reader<C>,
    deleter: Deleter<C>,
}

impl Flows {
    /// Opens sockets in the network namespace of the calling thread. All later calls must be made from threads of that
    /// namespace: after a failure a socket is opened anew.
    ///
    /// # Errors
    /// When the system has no netfilter sockets for us. That conntrack or permission is lacking shows later.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::over_channel()
    }
}

impl<C: Channel> Flows<C> {
    /// As [`Flows::open`], over another kind of socket.
    ///
    /// # Errors
    /// As [`Flows::open`].
    pub fn over_channel() -> Result<Self, NetlinkError> {
        Ok(Self { reader: Reader::new(open_socket()?), deleter: Deleter::new(open_socket()?) })
    }

    /// Whether the kernel selects the flows of a filter (the default), or only the address family. A kernel that
    /// refuses the former is noticed without this, and one that does not know it does no harm.
    pub fn set_kernel_filter(&mut self, kernel_filter: bool) {
        self.reader.set_kernel_filter(kernel_filter);
    }

    /// Reads until a reading was complete; what is stale is deleted on the way.
    fn read_and_delete(
        &mut self,
        filter: &Filter,
        stale: &mut dyn FnMut(&Flow) -> bool,
    ) -> Result<(), NetlinkError> {
        let Self { reader, deleter } = self;
        for _ in 0..PASSES {
            let is_complete = reader.pass(filter, &mut |flow| {
                if stale(flow) {
                    deleter.add(*flow);
                }
            })?;
            deleter.flush();
            if is_complete {
                return Ok(());
            }
        }
        Err(NetlinkError::Interrupted)
    }
}

impl<C: Channel> Conntrack for Flows<C> {
    fn each(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<(), NetlinkError> {
        if self.reader.pass(filter, visit)? { Ok(()) } else { Err(NetlinkError::Interrupted) }
    }

    fn delete(&mut self, filter: &Filter, stale: &mut dyn FnMut(&Flow) -> bool) -> Result<u64, NetlinkError> {
        self.deleter.begin();
        let read = self.read_and_delete(filter, stale);
        let (deleted, refusal) = self.deleter.finish();
        match read.err().or(refusal) {
            Some(error) => Err(error.besides(deleted, DELETED)),
            None => Ok(deleted),
        }
    }
}

fn open_socket<C: Channel>() -> Result<C, NetlinkError> {
    C::open().and_then(explained).map_err(|source| NetlinkError::Open { source })
}
