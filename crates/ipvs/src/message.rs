//! Requests, and what the kernel answers.

use std::net::IpAddr;
use std::num::NonZeroU32;

use netlink::{Attrs, Message, NLMSG_HEADER_BYTES, Writer, flag};

use crate::command::server_id;
use crate::{
    Connections, Flags, Forwarding, RealServer, RealServerId, Scheduler, ServerId, Timeouts, VirtualServer,
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

/// `IPVS_CMD_ATTR_*`, `IPVS_SVC_ATTR_*` and `IPVS_DEST_ATTR_*`
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

    pub(crate) const DEST_ADDR: u16 = 1;
    pub(crate) const DEST_PORT: u16 = 2;
    pub(crate) const DEST_FORWARDING: u16 = 3;
    pub(crate) const DEST_WEIGHT: u16 = 4;
    pub(crate) const DEST_UPPER: u16 = 5;
    pub(crate) const DEST_LOWER: u16 = 6;
    pub(crate) const DEST_ACTIVE: u16 = 7;
    pub(crate) const DEST_INACTIVE: u16 = 8;
    pub(crate) const DEST_PERSISTENT: u16 = 9;
    pub(crate) const DEST_AF: u16 = 11;
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
