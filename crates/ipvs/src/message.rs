//! Requests, and what the kernel answers.

use std::net::IpAddr;
use std::num::NonZeroU32;

use netlink::{Attrs, Message, NLMSG_HEADER_BYTES, Writer, flag};

use crate::command::server_id;
use crate::{
    Connections, Flags, Forwarding, RealServer, RealServerId, Scheduler, ServerId, Statistics, Timeouts,
    VirtualServer,
};

/// The type of messages to the controller of generic netlink, and its command that asks for a family's type.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

pub(crate) const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;

/// `IPVS_CMD_*`
pub(crate) mod command {
    pub(crate) const NEW_SERVICE: u8 = 1;
    pub(crate) const SET_SERVICE: u8 = 2;
    pub(crate) const DEL_SERVICE: u8 = 3;
    pub(crate) const GET_SERVICE: u8 = 4;
    pub(crate) const NEW_DEST: u8 = 5;
    pub(crate) const SET_DEST: u8 = 6;
    pub(crate) const DEL_DEST: u8 = 7;
    pub(crate) const GET_DEST: u8 = 8;
    pub(crate) const SET_CONFIG: u8 = 12;
    pub(crate) const GET_CONFIG: u8 = 13;
}

/// `IPVS_CMD_ATTR_*`, `IPVS_SVC_ATTR_*`, `IPVS_DEST_ATTR_*` and `IPVS_STATS_ATTR_*`
pub(crate) mod attr {
    pub(crate) const SERVICE: u16 = 1;
    pub(crate) const DEST: u16 = 2;
    pub(crate) const TIMEOUT_TCP: u16 = 4;
    pub(crate) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(crate) const TIMEOUT_UDP: u16 = 6;

    pub(crate) const SERVICE_AF: u16 = 1;
    pub(crate) const SERVICE_PROTOCOL: u16 = 2;
    pub(crate) const SERVICE_ADDR: u16 = 3;
    pub(crate) const SERVICE_PORT: u16 = 4;
    pub(crate) const SERVICE_SCHEDULER: u16 = 6;
    pub(crate) const SERVICE_FLAGS: u16 = 7;
    pub(crate) const SERVICE_TIMEOUT: u16 = 8;
    pub(crate) const SERVICE_NETMASK: u16 = 9;
    pub(crate) const SERVICE_STATS: u16 = 10;
    pub(crate) const SERVICE_STATS64: u16 = 12;

    pub(crate) const DEST_ADDR: u16 = 1;
    pub(crate) const DEST_PORT: u16 = 2;
    pub(crate) const DEST_FORWARDING: u16 = 3;
    pub(crate) const DEST_WEIGHT: u16 = 4;
    pub(crate) const DEST_UPPER: u16 = 5;
    pub(crate) const DEST_LOWER: u16 = 6;
    pub(crate) const DEST_ACTIVE: u16 = 7;
    pub(crate) const DEST_INACTIVE: u16 = 8;
    pub(crate) const DEST_PERSISTENT: u16 = 9;
    pub(crate) const DEST_STATS: u16 = 10;
    pub(crate) const DEST_AF: u16 = 11;
    pub(crate) const DEST_STATS64: u16 = 12;

    pub(crate) const STATS_CONNECTIONS: u16 = 1;
    pub(crate) const STATS_PACKETS_IN: u16 = 2;
    pub(crate) const STATS_PACKETS_OUT: u16 = 3;
    pub(crate) const STATS_BYTES_IN: u16 = 4;
    pub(crate) const STATS_BYTES_OUT: u16 = 5;
}

/// Asks which message type IPVS has. Refused with `ENOENT` if the kernel has no IPVS.
pub fn request_family(seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(CONTROLLER, flag::REQUEST | flag::ACK, seq, GET_FAMILY, 0);
    out.text(FAMILY_NAME, "IPVS");
    out.end_message(start);
    out.out
}

/// The message type of IPVS, from the controller's answer.
pub fn family(message: &Message<'_>) -> Option<u16> {
    let id = message.attrs()?.find(FAMILY_ID)?.try_into().ok().map(u16::from_ne_bytes);
    id.filter(|_| message.kind == CONTROLLER)
}

/// Asks for all virtual servers.
pub fn request_virtual_servers(family: u16, seq: u32) -> Vec<u8> {
    request(family, flag::DUMP, seq, command::GET_SERVICE, |_| ())
}

/// Asks for a virtual server's real servers. None are answered if there is no such virtual server.
pub fn request_real_servers(family: u16, id: &ServerId, seq: u32) -> Vec<u8> {
    request(family, flag::DUMP, seq, command::GET_DEST, |out| {
        out.nest(attr::SERVICE, |out| server_id(out, id));
    })
}

/// Asks for the time-outs.
pub fn request_timeouts(family: u16, seq: u32) -> Vec<u8> {
    request(family, flag::ACK, seq, command::GET_CONFIG, |_| ())
}

fn request(family: u16, flags: u16, seq: u32, command: u8, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(family, flag::REQUEST | flags, seq, command, 0);
    if let Some(version) = out.out.get_mut(start + NLMSG_HEADER_BYTES + 1) {
        *version = 1;
    }
    write(&mut out);
    out.end_message(start);
    out.out
}

/// Reads what IPVS answers.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// IPVS's message type.
    pub family: u16,
}

impl Reader {
    fn attrs<'a>(self, message: &Message<'a>) -> Option<Attrs<'a>> {
        message.attrs().filter(|_| message.kind == self.family)
    }

    /// The virtual server that a message tells of; `None` for those by packet mark.
    pub fn virtual_server(self, message: &Message<'_>) -> Option<VirtualServer> {
        let service = self.attrs(message)?.nest(attr::SERVICE)?;
        let flags = service.find(attr::SERVICE_FLAGS)?.first_chunk().copied().map(u32::from_ne_bytes)?;
        let seconds = host_u32(&service, attr::SERVICE_TIMEOUT)?;
        let is_persistent = flags & 0x1 != 0;
        Some(VirtualServer {
            id: ServerId {
                address: address(host_u16(&service, attr::SERVICE_AF)?, service.find(attr::SERVICE_ADDR)?)?,
                protocol: u8::try_from(host_u16(&service, attr::SERVICE_PROTOCOL)?).ok()?,
                port: service.u16(attr::SERVICE_PORT)?,
            },
            scheduler: Scheduler::new(service.text(attr::SERVICE_SCHEDULER)?).ok()?,
            flags: Flags::from_bits(flags),
            persistence: NonZeroU32::new(seconds).filter(|_| is_persistent),
        })
    }

    /// The real server that a message tells of. Kernels before 3.18 do not tell its family: it is then that of the virtual
    /// server.
    pub fn real_server(self, of: &ServerId, message: &Message<'_>) -> Option<(RealServer, Connections)> {
        let dest = self.attrs(message)?.nest(attr::DEST)?;
        let of_family = if of.address.is_ipv4() { AF_INET } else { AF_INET6 };
        let family = host_u16(&dest, attr::DEST_AF).unwrap_or(of_family);
        let id = RealServerId {
            address: address(family, dest.find(attr::DEST_ADDR)?)?,
            port: dest.u16(attr::DEST_PORT)?,
        };
        let forwarding = match host_u32(&dest, attr::DEST_FORWARDING)? & 0x7 {
            0 => Forwarding::Masquerade,
            other => Forwarding::Other(u8::try_from(other).ok()?),
        };
        let count = |kind| host_u32(&dest, kind).unwrap_or_default();
        let connections = Connections {
            active: count(attr::DEST_ACTIVE),
            inactive: count(attr::DEST_INACTIVE),
            persistent: count(attr::DEST_PERSISTENT),
        };
        Some((RealServer { id, weight: host_u32(&dest, attr::DEST_WEIGHT)?, forwarding }, connections))
    }

    /// What went through the virtual server that a message tells of.
    pub fn virtual_statistics(self, message: &Message<'_>) -> Option<Statistics> {
        let service = self.attrs(message)?.nest(attr::SERVICE)?;
        Some(statistics(&service, attr::SERVICE_STATS64, attr::SERVICE_STATS))
    }

    /// What went through the real server that a message tells of.
    pub fn real_statistics(self, message: &Message<'_>) -> Option<Statistics> {
        let dest = self.attrs(message)?.nest(attr::DEST)?;
        Some(statistics(&dest, attr::DEST_STATS64, attr::DEST_STATS))
    }

    /// The time-outs that a message tells.
    pub fn timeouts(self, message: &Message<'_>) -> Option<Timeouts> {
        let attrs = self.attrs(message)?;
        Some(Timeouts {
            tcp: host_u32(&attrs, attr::TIMEOUT_TCP)?,
            tcp_fin: host_u32(&attrs, attr::TIMEOUT_TCP_FIN)?,
            udp: host_u32(&attrs, attr::TIMEOUT_UDP)?,
        })
    }
}

/// Kernels before 4.1 have only the narrow counters, of 32 bits but for bytes.
fn statistics(server: &Attrs<'_>, wide: u16, narrow: u16) -> Statistics {
    let Some(counters) = server.nest(wide).or_else(|| server.nest(narrow)) else {
        return Statistics::default();
    };
    let count = |kind| counters.find(kind).and_then(host_number).unwrap_or_default();
    Statistics {
        connections: count(attr::STATS_CONNECTIONS),
        packets_in: count(attr::STATS_PACKETS_IN),
        packets_out: count(attr::STATS_PACKETS_OUT),
        bytes_in: count(attr::STATS_BYTES_IN),
        bytes_out: count(attr::STATS_BYTES_OUT),
    }
}

/// A number of either width.
fn host_number(bytes: &[u8]) -> Option<u64> {
    let wide = bytes.try_into().ok().map(u64::from_ne_bytes);
    wide.or_else(|| bytes.try_into().ok().map(|narrow| u32::from_ne_bytes(narrow).into()))
}

fn host_u16(attrs: &Attrs<'_>, kind: u16) -> Option<u16> {
    attrs.find(kind)?.try_into().ok().map(u16::from_ne_bytes)
}

fn host_u32(attrs: &Attrs<'_>, kind: u16) -> Option<u32> {
    attrs.find(kind)?.try_into().ok().map(u32::from_ne_bytes)
}

fn address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => bytes.first_chunk::<4>().copied().map(IpAddr::from),
        AF_INET6 => bytes.first_chunk::<16>().copied().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink::messages;

    use super::*;

    const FAMILY: u16 = 0x22;

    /// What is read of a virtual and of a real server whose counters are as `write` has them.
    fn read(kinds: [u16; 2], write: impl Fn(&mut Writer)) -> [Option<Statistics>; 2] {
        let mut out = Writer::default();
        let start = out.begin_message(FAMILY, 0, 1, command::NEW_SERVICE, 0);
        for (server, kind) in [attr::SERVICE, attr::DEST].into_iter().zip(kinds) {
            out.nest(server, |out| out.nest(kind, &write));
        }
        out.end_message(start);
        let message = messages(&out.out).next().unwrap();
        let reader = Reader { family: FAMILY };
        [reader.virtual_statistics(&message), reader.real_statistics(&message)]
    }

    #[test]
    fn counters_of_both_widths_are_read() {
        let expected =
            Statistics { connections: 1, packets_in: 2, packets_out: 3, bytes_in: 4, bytes_out: 5 << 40 };
        let wide = |out: &mut Writer| {
            for (kind, value) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5_u64 << 40), (6, 99)] {
                out.bytes(kind, &value.to_ne_bytes());
            }
        };
        let narrow = |out: &mut Writer| {
            for (kind, value) in [(1, 1_u32), (2, 2), (3, 3)] {
                out.bytes(kind, &value.to_ne_bytes());
            }
            for (kind, value) in [(4, 4_u64), (5, 5 << 40)] {
                out.bytes(kind, &value.to_ne_bytes());
            }
        };
        assert_eq!(read([attr::SERVICE_STATS64, attr::DEST_STATS64], wide), [Some(expected); 2]);
        assert_eq!(read([attr::SERVICE_STATS, attr::DEST_STATS], narrow), [Some(expected); 2]);
        // What is not told is not counted, and other messages tell nothing.
        assert_eq!(read([99, 99], wide), [Some(Statistics::default()); 2]);
        assert_eq!(
            read([attr::SERVICE_STATS64, 99], |out| out.bytes(1, &[7])),
            [Some(Statistics::default()); 2]
        );
    }
}
