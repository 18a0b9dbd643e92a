//! Flows that are deleted together.

use netlink::NetlinkError;
use netlink::{Writer, flag, messages};

use crate::Flow;
use crate::filter::put_addr;
use crate::wire::{attr, kind};

const ENOENT: i32 = 2;

/// Deletions that go in one datagram, and the kernel's answers to them.
///
/// The kernel does each as it stands in the datagram, inside the call that sends it. It answers those that fail, and
/// the last one in any case because that asks for it. So all answers are there when the call returns, and one that
/// is not answered was done.
#[derive(Debug)]
pub struct Batch {
    flows: Vec<Flow>,
    first_seq: u32,
    failed: usize,
    refused: Option<NetlinkError>,
    acknowledged: bool,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Outcome {
    /// Number of flows deleted; those that were gone already don't count. 0 if it is not known.
    pub deleted: u64,
    /// The first refusal, or that answers were lost.
    pub error: Option<NetlinkError>,
}

impl Batch {
    /// Longest message of a batch, that of an IPv6 flow in a zone.
    pub const MESSAGE_BYTES: usize = 112;

    /// Deletions of these flows; their sequence numbers count from `first_seq`.
    pub const fn new(flows: Vec<Flow>, first_seq: u32) -> Self {
        Self { flows, first_seq, failed: 0, refused: None, acknowledged: false }
    }

    /// Sequence number after the last.
    pub fn next_seq(&self) -> u32 {
        self.first_seq.wrapping_add(u32::try_from(self.flows.len()).unwrap_or(u32::MAX))
    }

    /// The datagram; empty if there are no flows.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer { out: Vec::with_capacity(self.flows.len() * Self::MESSAGE_BYTES) };
        let mut seq = self.first_seq;
        for (idx, flow) in self.flows.iter().enumerate() {
            let ack = if idx + 1 == self.flows.len() { flag::ACK } else { 0 };
            put_deletion(&mut out, flow, flag::REQUEST | ack, seq);
            seq = seq.wrapping_add(1);
        }
        out.out
    }

    /// Takes in a datagram of answers.
    pub fn take(&mut self, received: &[u8]) {
        for (seq, ack) in messages(received).filter_map(|message| Some((message.seq, message.ack()?))) {
            let idx = usize::try_from(seq.wrapping_sub(self.first_seq)).unwrap_or(usize::MAX);
            let Some(flow) = self.flows.get(idx) else { continue };
            self.acknowledged |= idx + 1 == self.flows.len();
            if ack.errno != 0 {
                self.failed += 1;
            }
            if ack.errno != 0 && ack.errno != ENOENT && self.refused.is_none() {
                let object = format!("deletion of {flow}");
                self.refused = Some(NetlinkError::Refused { object, errno: ack.errno, message: ack.message });
            }
        }
    }

    /// What became of it, after all answers were taken in; `lost` if some could not be received.
    pub fn outcome(self, lost: bool) -> Outcome {
        let unknown = |why| Outcome { deleted: 0, error: Some(NetlinkError::OutcomeUnknown { why }) };
        if lost {
            unknown("the receive buffer overflowed")
        } else if !self.acknowledged {
            unknown("the last deletion was not answered")
        } else {
            let deleted = u64::try_from(self.flows.len().saturating_sub(self.failed)).unwrap_or(u64::MAX);
            Outcome { deleted, error: self.refused }
        }
    }
}

/// Deletes exactly this flow (`ctnetlink_del_conntrack` of `net/netfilter/nf_conntrack_netlink.c`).
///
/// The kernel looks up one tuple and then compares the id. The tuple is that of the answers, because the other one is
/// in the id already: thus a new flow of the same client, which by now goes to another endpoint, is not hit even if
/// it got the old one's id.
fn put_deletion(out: &mut Writer, flow: &Flow, flags: u16, seq: u32) {
    let start = out.begin_message(kind::DELETE, flags, seq, flow.family().nfproto(), 0);
    let reply = &flow.reply;
    out.nest(attr::TUPLE_REPLY, |out| {
        out.nest(attr::TUPLE_IP, |out| {
            put_addr(out, reply.src, true);
            put_addr(out, reply.dst, false);
        });
        out.nest(attr::TUPLE_PROTO, |out| {
            out.u8(attr::PROTO_NUM, flow.protocol);
            out.u16(attr::PROTO_SRC_PORT, reply.src_port);
            out.u16(attr::PROTO_DST_PORT, reply.dst_port);
        });
    });
    if flow.reply_zone != 0 {
        out.u16(attr::ZONE, flow.reply_zone);
    }
    out.u32(attr::ID, flow.id);
    out.end_message(start);
}
