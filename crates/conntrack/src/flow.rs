//! A tracked flow.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink::Family;

/// Bits of [`Flow::status`]: `IPS_*` of `linux/netfilter/nf_conntrack_common.h`.
pub mod status {
    /// There were packets in both directions.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// The flow is not dropped early when the table is full.
    pub const ASSURED: u32 = 1 << 2;
    /// The flow's source is rewritten.
    pub const SRC_NAT: u32 = 1 << 4;
    /// Rules rewrite the flow's destination: it goes to an endpoint.
    pub const DST_NAT: u32 = 1 << 5;
}

/// Addresses and ports of packets in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Source port; 0 if the protocol has none.
    pub src_port: u16,
    /// Destination port; 0 if the protocol has none.
    pub dst_port: u16,
}

impl Tuple {
    /// Source and destination with their ports.
    pub const fn ends(&self) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(self.src, self.src_port), SocketAddr::new(self.dst, self.dst_port))
    }
}

/// One flow of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Packets of the side that began, as they come in: the destination is the virtual address.
    pub orig: Tuple,
    /// Packets of the answering side, as they come in: the source is the endpoint, or still the virtual address if
    /// the flow was never translated.
    pub reply: Tuple,
    /// The kernel's number of the flow, a hash of where it is in memory and of [`Flow::orig`]. After the flow is gone
    /// another may get the same one, but only if it has the same `orig`.
    pub id: u32,
    /// Bits of [`status`].
    pub status: u32,
    /// Zone in which `orig` is unique; 0 unless something sets zones.
    pub orig_zone: u16,
    /// Zone in which `reply` is unique; 0 unless something sets zones.
    pub reply_zone: u16,
}

impl Flow {
    /// Family of the addresses.
    pub const fn family(&self) -> Family {
        Family::of(self.orig.dst)
    }

    /// Who answers the flow: the endpoint, or the virtual address if the flow was never translated.
    pub const fn answered_by(&self) -> SocketAddr {
        SocketAddr::new(self.reply.src, self.reply.src_port)
    }

    /// Whether somebody else answers than was asked: rules or IPVS have directed the flow. IPVS rewrites the reply alone
    /// (`ip_vs_update_conntrack`), so that [`Flow::status`] says nothing of it.
    pub fn is_directed(&self) -> bool {
        self.answered_by() != self.orig.ends().1
    }

    /// Whether rules rewrite the destination.
    pub const fn is_dnat(&self) -> bool {
        self.status & status::DST_NAT != 0
    }

    /// Whether there was an answer.
    pub const fn is_replied(&self) -> bool {
        self.status & status::SEEN_REPLY != 0
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.orig.ends();
        write!(f, "{} {from} -> {to} (answered by {})", ProtocolName(self.protocol), self.answered_by())?;
        match (self.orig_zone, self.reply_zone) {
            (0, 0) => Ok(()),
            (orig, reply) if orig == reply => write!(f, " in zone {orig}"),
            (orig, reply) => write!(f, " in zones {orig} and {reply}"),
        }
    }
}

/// An IP protocol number for people.
pub(crate) struct ProtocolName(pub(crate) u8);

impl fmt::Display for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            132 => f.write_str("sctp"),
            other => write!(f, "protocol {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ipvs_directs_has_no_translation_in_its_status() {
        let (client, service, endpoint) = ("192.0.2.1:40000", "10.96.0.10:80", "10.244.0.2:8080");
        let flow = |answered_by: &str, status| {
            let ends = [client, service, answered_by].map(|end| end.parse::<SocketAddr>().unwrap());
            let tuple = |from: SocketAddr, to: SocketAddr| Tuple {
                src: from.ip(),
                dst: to.ip(),
                src_port: from.port(),
                dst_port: to.port(),
            };
            let (orig, reply) = (tuple(ends[0], ends[1]), tuple(ends[2], ends[0]));
            Flow { protocol: 6, orig, reply, id: 1, status, orig_zone: 0, reply_zone: 0 }
        };
        for (answered_by, status, is_directed) in [
            (endpoint, status::SEEN_REPLY, true),
            (endpoint, status::SEEN_REPLY | status::DST_NAT, true),
            ("10.96.0.10:8080", status::DST_NAT, true),
            (service, status::SEEN_REPLY, false),
        ] {
            assert_eq!(flow(answered_by, status).is_directed(), is_directed, "{answered_by} {status:#x}");
        }
    }
}
