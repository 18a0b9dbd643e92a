//! Flows as the kernel tells of them.

use std::net::IpAddr;

use netlink::{Attrs, Message};

use crate::wire::{attr, kind};
use crate::{Flow, Tuple};

/// The flow that a message tells of; `None` if it is about something else, or lacks what every flow has.
pub(crate) fn flow(message: &Message<'_>) -> Option<Flow> {
    if message.kind != kind::NEW {
        return None;
    }
    let attrs = message.attrs()?;
    let (protocol, orig, orig_zone) = tuple(&attrs.nest(attr::TUPLE_ORIG)?)?;
    let (_, reply, reply_zone) = tuple(&attrs.nest(attr::TUPLE_REPLY)?)?;
    // A zone of both directions is an attribute of the flow, one of a single direction is inside its tuple.
    let zone = attrs.u16(attr::ZONE).unwrap_or(0);
    Some(Flow {
        protocol,
        orig,
        reply,
        id: attrs.u32(attr::ID)?,
        status: attrs.u32(attr::STATUS).unwrap_or(0),
        orig_zone: orig_zone.unwrap_or(zone),
        reply_zone: reply_zone.unwrap_or(zone),
    })
}

/// Protocol, addresses and ports, and the zone if it is told here.
fn tuple(attrs: &Attrs<'_>) -> Option<(u8, Tuple, Option<u16>)> {
    let ip = attrs.nest(attr::TUPLE_IP)?;
    let proto = attrs.nest(attr::TUPLE_PROTO)?;
    let [protocol] = *proto.find(attr::PROTO_NUM)? else { return None };
    let tuple = Tuple {
        src: addr(&ip, attr::IP_V4_SRC, attr::IP_V6_SRC)?,
        dst: addr(&ip, attr::IP_V4_DST, attr::IP_V6_DST)?,
        src_port: proto.u16(attr::PROTO_SRC_PORT).unwrap_or(0),
        dst_port: proto.u16(attr::PROTO_DST_PORT).unwrap_or(0),
    };
    Some((protocol, tuple, attrs.u16(attr::TUPLE_ZONE)))
}

fn addr(ip: &Attrs<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    match ip.find(v4) {
        Some(bytes) => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        None => Some(IpAddr::from(<[u8; 16]>::try_from(ip.find(v6)?).ok()?)),
    }
}
