//! The socket that the table is read through.

use std::mem;

use conntrack::{Filter, Flow, Pass};
use netlink::NetlinkError;

use super::open_socket;
use crate::socket::{Channel, Wait};

/// The kernel fills readings into datagrams of at most 32 KiB (`netlink_dump` of `net/netlink/af_netlink.c`).
const RECEIVE_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Reader<C: Channel> {
    socket: C,
    received: Vec<u8>,
    seq: u32,
    kernel_filter: bool,
    /// A reading was begun on the socket and has not come to its end. The kernel refuses to begin another one there.
    is_reading: bool,
}

impl<C: Channel> Reader<C> {
    pub(super) fn new(socket: C) -> Self {
        Self { socket, received: vec![0; RECEIVE_BYTES], seq: 0, kernel_filter: true, is_reading: false }
    }

    pub(super) fn set_kernel_filter(&mut self, kernel_filter: bool) {
        self.kernel_filter = kernel_filter;
    }

    /// Reads the table once; false if flows may be missing.
    pub(super) fn pass(
        &mut self,
        filter: &Filter,
        visit: &mut dyn FnMut(&Flow),
    ) -> Result<bool, NetlinkError> {
        match self.pass_once(filter, visit) {
            // A kernel that does not like the filter, as some say EOPNOTSUPP to one of a deletion. If it is the reading
            // itself that it does not like, it says so again.
            Err(NetlinkError::Refused { errno: libc::EINVAL | libc::EOPNOTSUPP, .. })
                if self.kernel_filter =>
            {
                self.kernel_filter = false;
                self.pass_once(filter, visit)
            }
            result => result,
        }
    }

    fn pass_once(&mut self, filter: &Filter, visit: &mut dyn FnMut(&Flow)) -> Result<bool, NetlinkError> {
        // After a failure, and after a panic of `visit`, a new socket takes the place of the one that is still busy.
        if mem::replace(&mut self.is_reading, true) {
            self.socket = open_socket()?;
        }
        self.seq = self.seq.wrapping_add(1);
        let mut pass = Pass::new(filter, self.seq);
        let request = pass.request(self.kernel_filter);
        self.socket.send(&request).map_err(|source| NetlinkError::Send { bytes: request.len(), source })?;
        loop {
            match self.socket.receive(&mut self.received, Wait::Block) {
                Ok(received) => {
                    if pass.take(received, visit)? {
                        self.is_reading = false;
                        return Ok(!pass.is_disturbed());
                    }
                }
                // The kernel had no memory for the next part and won't try again: `netlink_recvmsg` makes the next part
                // only after it has delivered one.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => {
                    return Ok(false);
                }
                Err(source) => return Err(NetlinkError::Receive { source }),
            }
        }
    }
}
