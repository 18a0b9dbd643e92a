//! One flow, by how it is answered.

use netlink::{Message, Writer, flag};

use crate::filter::put_addr;
use crate::wire::{attr, kind};
use crate::{Family, Flow, Tuple, decode};

/// Asks for the flow that is answered like this, outside of any zone; the kernel refuses with ENOENT if there is none
/// (`ctnetlink_get_conntrack` of `net/netfilter/nf_conntrack_netlink.c`).
pub fn request(protocol: u8, reply: &Tuple, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let family = Family::of(reply.src).nfproto();
    let start = out.begin_message(kind::GET, flag::REQUEST | flag::ACK, seq, family, 0);
    put_reply(&mut out, protocol, reply);
    out.end_message(start);
    out.out
}

/// The flow that an answer tells of.
pub fn flow(message: &Message<'_>) -> Option<Flow> {
    decode::flow(message)
}

/// The tuple of a flow's answers.
pub(crate) fn put_reply(out: &mut Writer, protocol: u8, reply: &Tuple) {
    out.nest(attr::TUPLE_REPLY, |out| {
        out.nest(attr::TUPLE_IP, |out| {
            put_addr(out, reply.src, true);
            put_addr(out, reply.dst, false);
        });
        out.nest(attr::TUPLE_PROTO, |out| {
            out.u8(attr::PROTO_NUM, protocol);
            out.u16(attr::PROTO_SRC_PORT, reply.src_port);
            out.u16(attr::PROTO_DST_PORT, reply.dst_port);
        });
    });
}
