//! The socket that flows are deleted through.

use std::mem;

use conntrack::{Batch, Flow};
use netlink::NetlinkError;

use crate::socket::{Buffer, Channel, Wait};

/// Deletions in one datagram: by then the system call costs nothing compared with the deletions.
const MAX_BATCH: usize = 256;
/// The kernel keeps this much of the send buffer (`netlink_sendmsg`: `len > sk->sk_sndbuf - 32`).
const SEND_OVERHEAD_BYTES: usize = 32;
/// What one answer takes of the receive buffer: 36 bytes, and the kernel's bookkeeping for them.
const ANSWER_BYTES: usize = 1024;
/// An answer and an explanation in words.
const RECEIVE_BYTES: usize = 4096;

/// Gathers flows, deletes them by the batch and counts them. Errors don't stop it: each flow is a matter of its own.
#[derive(Debug)]
pub(super) struct Deleter<C: Channel> {
    socket: C,
    received: Vec<u8>,
    seq: u32,
    max_flows: usize,
    flows: Vec<Flow>,
    deleted: u64,
    /// The first error.
    error: Option<NetlinkError>,
}

impl<C: Channel> Deleter<C> {
    pub(super) fn new(socket: C) -> Self {
        let max_flows = batch_size(Buffer::Send.size(&socket), Buffer::Receive.size(&socket));
        let received = vec![0; RECEIVE_BYTES];
        Self { socket, received, seq: 0, max_flows, flows: Vec::new(), deleted: 0, error: None }
    }

    /// Forgets what an earlier use that panicked has left.
    pub(super) fn begin(&mut self) {
        self.flows.clear();
        self.deleted = 0;
        self.error = None;
    }

    pub(super) fn add(&mut self, flow: Flow) {
        self.flows.push(flow);
        if self.flows.len() >= self.max_flows {
            self.flush();
        }
    }

    /// Deletes what was added.
    pub(super) fn flush(&mut self) {
        if self.flows.is_empty() {
            return;
        }
        let batch = Batch::new(mem::take(&mut self.flows), self.seq);
        self.seq = batch.next_seq();
        let bytes = batch.encode();
        let error = match self.socket.send(&bytes) {
            Ok(()) => self.answers(batch),
            Err(source) => Some(NetlinkError::Send { bytes: bytes.len(), source }),
        };
        self.error = self.error.take().or(error);
    }

    /// Takes in the answers to a batch, all of which came while it was sent.
    fn answers(&mut self, mut batch: Batch) -> Option<NetlinkError> {
        let mut lost = false;
        loop {
            match self.socket.receive(&mut self.received, Wait::Never) {
                Ok(received) => batch.take(received),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(source) => return Some(NetlinkError::Receive { source }),
            }
        }
        let outcome = batch.outcome(lost);
        self.deleted += outcome.deleted;
        outcome.error
    }

    /// Deletes what was added; yields how many flows were deleted since the beginning, and the first error.
    pub(super) fn finish(&mut self) -> (u64, Option<NetlinkError>) {
        self.flush();
        (mem::take(&mut self.deleted), self.error.take())
    }
}

/// Number of deletions that fit into the send buffer, and whose answers fit into the receive buffer even if all fail.
/// At least one: the kernel makes no buffer too small for that.
fn batch_size(send_bytes: usize, receive_bytes: usize) -> usize {
    let sendable = send_bytes.saturating_sub(SEND_OVERHEAD_BYTES) / Batch::MESSAGE_BYTES;
    sendable.min(receive_bytes / ANSWER_BYTES).clamp(1, MAX_BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_the_buffers() {
        assert_eq!(batch_size(212_992, 212_992), 208);
        assert_eq!(batch_size(8 << 20, 8 << 20), MAX_BATCH);
        // The smallest buffers that the kernel makes.
        assert_eq!(batch_size(4608, 2304), 2);
        assert_eq!(batch_size(0, 0), 1);
    }
}
