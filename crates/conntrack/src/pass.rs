//! One pass over the table.

use netlink::NetlinkError;
use netlink::{Writer, flag, messages};

use crate::wire::kind;
use crate::{Filter, Flow, decode};

/// One reading of the table, from the request to its end. Flows are passed on as they come; none is kept.
///
/// What the kernel guarantees of a reading (`ctnetlink_dump_table` of `net/netfilter/nf_conntrack_netlink.c`): a flow
/// that is there from its start to its end is told of, unless it says that the reading was disturbed. A flow may be
/// told of twice, when the one before it went away meanwhile. Flows may be deleted while the reading goes on.
#[derive(Debug)]
pub struct Pass<'f> {
    filter: &'f Filter,
    seq: u32,
    disturbed: bool,
}

impl<'f> Pass<'f> {
    /// A reading whose request has this sequence number.
    pub const fn new(filter: &'f Filter, seq: u32) -> Self {
        Self { filter, seq, disturbed: false }
    }

    /// The message to send. Without `kernel_filter` the kernel is only asked to leave out the other address family,
    /// and [`Pass::take`] does the rest.
    pub fn request(&self, kernel_filter: bool) -> Vec<u8> {
        let mut out = Writer::default();
        let family = self.filter.family.nfproto();
        let start = out.begin_message(kind::GET, flag::REQUEST | flag::DUMP, self.seq, family, 0);
        if kernel_filter {
            self.filter.put(&mut out);
        }
        out.end_message(start);
        out.out
    }

    /// Takes in a datagram and passes on the flows in it that the filter selects; true at the end of the reading.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel refuses the request or gives up. It sends no more then.
    pub fn take(&mut self, received: &[u8], visit: &mut dyn FnMut(&Flow)) -> Result<bool, NetlinkError> {
        for message in messages(received).filter(|message| message.seq == self.seq) {
            self.disturbed |= message.is_interrupted();
            if let Some(ack) = message.ack().filter(|ack| ack.errno != 0) {
                let object = format!("reading of {}", self.filter);
                return Err(NetlinkError::Refused { object, errno: ack.errno, message: ack.message });
            }
            if message.is_done() {
                return Ok(true);
            }
            // Old kernels send more than was asked for, and a kernel's idea of a filter need not be ours.
            if let Some(flow) = decode::flow(&message).filter(|flow| self.filter.matches(flow)) {
                visit(&flow);
            }
        }
        Ok(false)
    }

    /// Whether flows may have been left out.
    pub const fn is_disturbed(&self) -> bool {
        self.disturbed
    }
}
