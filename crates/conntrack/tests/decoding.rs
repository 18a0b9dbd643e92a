//! Whatever the kernel might say is read without harm, and what it says of a flow is read as it was.

use std::net::IpAddr;

use conntrack::{Batch, Family, Filter, Flow, Pass, Tuple};
use netlink::{Attrs, Writer, messages};
use proptest::collection::vec;
use proptest::prelude::*;

const SEQ: u32 = 7;
const DELETE: u16 = (1 << 8) | 2;

fn addr(family: Family) -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>().prop_map(move |bytes| match (family, bytes) {
        (Family::Ip, [a, b, c, d, ..]) => IpAddr::from([a, b, c, d]),
        (Family::Ip6, bytes) => IpAddr::from(bytes),
    })
}

fn tuple(family: Family) -> impl Strategy<Value = Tuple> {
    (addr(family), addr(family), any::<u16>(), any::<u16>())
        .prop_map(|(src, dst, src_port, dst_port)| Tuple { src, dst, src_port, dst_port })
}

fn flow() -> impl Strategy<Value = Flow> {
    let family = prop_oneof![Just(Family::Ip), Just(Family::Ip6)];
    let tuples = family.prop_flat_map(|family| (tuple(family), tuple(family)));
    (tuples, any::<u8>(), any::<u32>(), any::<u32>(), 0..3_u16, 0..3_u16).prop_map(
        |((orig, reply), protocol, id, status, orig_zone, reply_zone)| Flow {
            protocol,
            orig,
            reply,
            id,
            status,
            orig_zone,
            reply_zone,
        },
    )
}

/// The flow as the kernel tells of it (`ctnetlink_fill_info` of `net/netfilter/nf_conntrack_netlink.c`).
fn put_flow(out: &mut Writer, flow: &Flow) {
    let start = out.begin_message(1 << 8, 2, SEQ, flow.family().nfproto(), 0);
    let one_zone = flow.orig_zone == flow.reply_zone;
    for (kind, tuple, zone) in [(1, &flow.orig, flow.orig_zone), (2, &flow.reply, flow.reply_zone)] {
        out.nest(kind, |out| {
            out.nest(1, |out| {
                for (kind, addr) in [(1, tuple.src), (2, tuple.dst)] {
                    match addr {
                        IpAddr::V4(addr) => out.bytes(kind, &addr.octets()),
                        IpAddr::V6(addr) => out.bytes(kind + 2, &addr.octets()),
                    }
                }
            });
            out.nest(2, |out| {
                out.u8(1, flow.protocol);
                out.u16(2, tuple.src_port);
                out.u16(3, tuple.dst_port);
            });
            if zone != 0 && !one_zone {
                out.u16(3, zone);
            }
        });
    }
    if one_zone && flow.orig_zone != 0 {
        out.u16(18, flow.orig_zone);
    }
    out.u32(3, flow.status);
    out.u32(8, 0);
    out.u32(12, flow.id);
    out.end_message(start);
}

fn read(filter: &Filter, bytes: &[u8]) -> Vec<Flow> {
    let mut read = Vec::new();
    // What garbage says of errors is of no interest here, only that it does no harm.
    drop(Pass::new(filter, SEQ).take(bytes, &mut |flow| read.push(*flow)));
    read
}

/// Takes everything for an answer of every sort.
fn read_garbage(bytes: &[u8], flow: Flow) {
    for family in [Family::Ip, Family::Ip6] {
        read(&Filter::new(family, 17), bytes);
    }
    let mut batch = Batch::new(vec![flow; 3], SEQ);
    batch.take(bytes);
    assert!(batch.outcome(false).deleted <= 3);
}

proptest! {
    #[test]
    fn flows_are_read_as_they_were(flows in vec(flow(), 1..20)) {
        let mut out = Writer::default();
        for flow in &flows {
            put_flow(&mut out, flow);
        }
        for flow in &flows {
            let filter = Filter::new(flow.family(), flow.protocol).to(flow.orig.ends().1).answered_by(flow.answered_by());
            let wanted: Vec<_> = flows.iter().copied().filter(|other| filter.matches(other)).collect();
            prop_assert!(wanted.contains(flow));
            prop_assert_eq!(read(&filter, &out.out), wanted);
        }
    }

    /// A deletion without a tuple would empty the table, and one without an id could hit another flow.
    #[test]
    fn every_deletion_has_a_tuple_and_an_id(flows in vec(flow(), 0..20), first_seq in any::<u32>()) {
        let bytes = Batch::new(flows.clone(), first_seq).encode();
        let deletions: Vec<_> = messages(&bytes).collect();
        prop_assert_eq!(deletions.len(), flows.len());
        for (message, flow) in deletions.iter().zip(&flows) {
            let attrs = message.attrs().unwrap();
            prop_assert_eq!((message.kind, message.family()), (DELETE, Some(flow.family().nfproto())));
            prop_assert_eq!(attrs.u32(12), Some(flow.id));
            prop_assert_eq!(attrs.u16(18).unwrap_or(0), flow.reply_zone);
            let tuple = attrs.nest(2).unwrap();
            prop_assert_eq!(tuple.nest(1).unwrap().count(), 2);
            let proto = tuple.nest(2).unwrap();
            prop_assert_eq!(proto.find(1), Some(&[flow.protocol][..]));
            prop_assert_eq!((proto.u16(2), proto.u16(3)), (Some(flow.reply.src_port), Some(flow.reply.dst_port)));
        }
        prop_assert!(bytes.len() <= flows.len() * Batch::MESSAGE_BYTES);
    }

    #[test]
    fn garbage_is_read_without_harm(garbage in vec(any::<u8>(), 0..600), flow in flow()) {
        read_garbage(&garbage, flow);
        Attrs::new(&garbage).count();
    }

    /// Real messages with some bytes changed reach further than garbage.
    #[test]
    fn damaged_messages_are_read_without_harm(
        flows in vec(flow(), 1..5),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut out = Writer::default();
        for flow in &flows {
            put_flow(&mut out, flow);
        }
        let mut bytes = out.out;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        read_garbage(&bytes, flows[0]);
    }
}
