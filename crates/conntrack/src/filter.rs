//! Which flows are meant.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink::{Family, Writer};

use crate::flow::ProtocolName;
use crate::wire::{attr, compare};
use crate::{Flow, Tuple};

/// Selects flows: all fields that are given must match. It applies to flows of every zone.
///
/// The kernel walks its whole table for each filter (30 ms for 100,000 flows in a table of 262,144 buckets), so
/// one wide filter is better than many narrow ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Family of the addresses; an address of the other family matches nothing.
    pub family: Family,
    /// IP protocol number.
    pub protocol: u8,
    /// Where the side that began sends to: the virtual address.
    pub orig_dst: Option<IpAddr>,
    /// Its port.
    pub orig_dst_port: Option<u16>,
    /// Who answers: the endpoint.
    pub reply_src: Option<IpAddr>,
    /// Its port.
    pub reply_src_port: Option<u16>,
}

impl Filter {
    /// All flows of a family and protocol.
    pub const fn new(family: Family, protocol: u8) -> Self {
        Self { family, protocol, orig_dst: None, orig_dst_port: None, reply_src: None, reply_src_port: None }
    }

    /// Only those to this port.
    #[must_use]
    pub const fn to_port(self, port: u16) -> Self {
        Self { orig_dst_port: Some(port), ..self }
    }

    /// Only those to this address and port.
    #[must_use]
    pub const fn to(self, addr: SocketAddr) -> Self {
        Self { orig_dst: Some(addr.ip()), orig_dst_port: Some(addr.port()), ..self }
    }

    /// Only those that this endpoint answers.
    #[must_use]
    pub const fn answered_by(self, addr: SocketAddr) -> Self {
        Self { reply_src: Some(addr.ip()), reply_src_port: Some(addr.port()), ..self }
    }

    /// Whether the flow is selected.
    pub fn matches(&self, flow: &Flow) -> bool {
        let Tuple { dst, dst_port, .. } = flow.orig;
        let Tuple { src, src_port, .. } = flow.reply;
        self.family == flow.family()
            && self.protocol == flow.protocol
            && self.orig_dst.is_none_or(|wanted| wanted == dst)
            && self.orig_dst_port.is_none_or(|wanted| wanted == dst_port)
            && self.reply_src.is_none_or(|wanted| wanted == src)
            && self.reply_src_port.is_none_or(|wanted| wanted == src_port)
    }

    /// The filter as attributes of a reading's request. The kernel makes of it what it can: before 5.8 nothing, and
    /// ports only for TCP and UDP (`ctnetlink_filter_match_tuple` of `net/netfilter/nf_conntrack_netlink.c`). What it
    /// does with IPv6 addresses is the opposite of what is asked, up to 6.18 at least (there is a `!` too many before
    /// `ipv6_addr_cmp`), so they are not sent.
    pub(crate) fn put(&self, out: &mut Writer) {
        let v4 = |addr: Option<IpAddr>| addr.filter(IpAddr::is_ipv4);
        let to = End { addr: v4(self.orig_dst), port: self.orig_dst_port, is_source: false };
        let from = End { addr: v4(self.reply_src), port: self.reply_src_port, is_source: true };
        out.nest(attr::TUPLE_ORIG, |out| to.put(out, self.protocol));
        out.nest(attr::TUPLE_REPLY, |out| from.put(out, self.protocol));
        out.nest(attr::FILTER, |out| {
            // Unlike other integers of netfilter these are in host byte order.
            out.bytes(attr::FILTER_ORIG_FLAGS, &to.compared().to_ne_bytes());
            out.bytes(attr::FILTER_REPLY_FLAGS, &from.compared().to_ne_bytes());
        });
    }
}

/// What is asked of one end of a tuple.
struct End {
    addr: Option<IpAddr>,
    port: Option<u16>,
    is_source: bool,
}

impl End {
    fn put(&self, out: &mut Writer, protocol: u8) {
        if let Some(addr) = self.addr {
            out.nest(attr::TUPLE_IP, |out| put_addr(out, addr, self.is_source));
        }
        out.nest(attr::TUPLE_PROTO, |out| {
            out.u8(attr::PROTO_NUM, protocol);
            if let Some(port) = self.port {
                out.u16(if self.is_source { attr::PROTO_SRC_PORT } else { attr::PROTO_DST_PORT }, port);
            }
        });
    }

    /// A port can be compared only together with the protocol.
    fn compared(&self) -> u32 {
        let (addr, port) = if self.is_source {
            (compare::IP_SRC, compare::SRC_PORT)
        } else {
            (compare::IP_DST, compare::DST_PORT)
        };
        compare::PROTO_NUM | self.addr.map_or(0, |_| addr) | self.port.map_or(0, |_| port)
    }
}

/// One address of a tuple.
pub(crate) fn put_addr(out: &mut Writer, addr: IpAddr, is_source: bool) {
    match (addr, is_source) {
        (IpAddr::V4(addr), true) => out.bytes(attr::IP_V4_SRC, &addr.octets()),
        (IpAddr::V4(addr), false) => out.bytes(attr::IP_V4_DST, &addr.octets()),
        (IpAddr::V6(addr), true) => out.bytes(attr::IP_V6_SRC, &addr.octets()),
        (IpAddr::V6(addr), false) => out.bytes(attr::IP_V6_DST, &addr.octets()),
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} flows", self.family, ProtocolName(self.protocol))?;
        write_end(f, " to", self.orig_dst, self.orig_dst_port)?;
        write_end(f, " answered by", self.reply_src, self.reply_src_port)
    }
}

fn write_end(f: &mut fmt::Formatter<'_>, what: &str, addr: Option<IpAddr>, port: Option<u16>) -> fmt::Result {
    match (addr, port) {
        (None, None) => Ok(()),
        (None, Some(port)) => write!(f, "{what} port {port}"),
        (Some(addr), None) => write!(f, "{what} {addr}"),
        (Some(addr), Some(port)) => write!(f, "{what} {}", SocketAddr::new(addr, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(src: &str, dst: &str) -> Tuple {
        let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        Tuple { src: src.ip(), dst: dst.ip(), src_port: src.port(), dst_port: dst.port() }
    }

    fn flow() -> Flow {
        Flow {
            protocol: 17,
            orig: tuple("10.0.0.1:5000", "10.96.0.10:53"),
            reply: tuple("10.244.0.3:5353", "10.0.0.1:5000"),
            id: 1,
            status: crate::status::DST_NAT,
            orig_zone: 0,
            reply_zone: 0,
        }
    }

    fn service() -> SocketAddr {
        "10.96.0.10:53".parse().unwrap()
    }

    fn endpoint() -> SocketAddr {
        "10.244.0.3:5353".parse().unwrap()
    }

    #[test]
    fn every_given_field_must_match() {
        let udp = Filter::new(Family::Ip, 17);
        let full = udp.to(service()).answered_by(endpoint());
        for filter in [udp, udp.to_port(53), udp.to(service()), udp.answered_by(endpoint()), full] {
            assert!(filter.matches(&flow()), "{filter}");
        }
        let other = Some("10.96.0.11".parse().unwrap());
        for filter in [
            Filter { family: Family::Ip6, ..full },
            Filter { protocol: 6, ..full },
            Filter { orig_dst: other, ..full },
            Filter { orig_dst_port: Some(54), ..full },
            Filter { reply_src: other, ..full },
            Filter { reply_src_port: Some(53), ..full },
        ] {
            assert!(!filter.matches(&flow()), "{filter}");
        }
    }

    /// The side that began and the endpoint's own destination are nobody's business.
    #[test]
    fn other_ends_do_not_matter() {
        let client = "10.0.0.1:5000".parse().unwrap();
        let udp = Filter::new(Family::Ip, 17);
        assert!(!udp.to(client).matches(&flow()));
        assert!(!udp.answered_by(client).matches(&flow()));
    }

    #[test]
    fn texts_are_for_people() {
        let udp = Filter::new(Family::Ip, 17);
        assert_eq!(udp.to_string(), "ip udp flows");
        assert_eq!(udp.to_port(53).to_string(), "ip udp flows to port 53");
        assert_eq!(
            udp.to(service()).answered_by(endpoint()).to_string(),
            "ip udp flows to 10.96.0.10:53 answered by 10.244.0.3:5353"
        );
        let to_address =
            Filter { orig_dst: Some("fd00::10".parse().unwrap()), ..Filter::new(Family::Ip6, 132) };
        assert_eq!(to_address.to_string(), "ip6 sctp flows to fd00::10");
        assert_eq!(flow().to_string(), "udp 10.0.0.1:5000 -> 10.96.0.10:53 (answered by 10.244.0.3:5353)");
        let ends =
            Tuple { src: "::1".parse().unwrap(), dst: "::2".parse().unwrap(), src_port: 1, dst_port: 2 };
        let zoned = Flow { protocol: 47, orig: ends, reply: ends, orig_zone: 7, ..flow() };
        assert_eq!(
            zoned.to_string(),
            "protocol 47 [::1]:1 -> [::2]:2 (answered by [::1]:1) in zones 7 and 0"
        );
        assert!(Flow { reply_zone: 7, ..zoned }.to_string().ends_with(" in zone 7"));
    }
}
