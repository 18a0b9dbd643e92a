//! Changes of IPVS's state.

use std::fmt;
use std::net::IpAddr;

use netlink::{Writer, flag};

use crate::message::{AF_INET, AF_INET6, attr, command};
use crate::{Forwarding, RealServer, RealServerId, ServerId, Timeouts, VirtualServer};

/// One change. Each is done or refused by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes a virtual server; refused with `EEXIST` where there is one.
    NewVirtual(VirtualServer),
    /// Changes a virtual server in place: connections, and what schedulers know of them, stay with their real servers.
    SetVirtual(VirtualServer),
    /// Deletes a virtual server with its real servers.
    DeleteVirtual(ServerId),
    /// Makes a real server; refused with `EEXIST` where there is one.
    NewReal(ServerId, RealServer),
    /// Changes a real server in place.
    SetReal(ServerId, RealServer),
    /// Deletes a real server; its connections end with their next packet.
    DeleteReal(ServerId, RealServerId),
    /// Sets time-outs of the whole network namespace.
    SetTimeouts(Timeouts),
}

impl Command {
    /// Appends the message for IPVS's message type.
    pub fn encode(&self, out: &mut Writer, family: u16, seq: u32, flags: u16) {
        let start = out.begin_message(family, flag::REQUEST | flags, seq, self.number(), 0);
        // The version of the protocol, in the place of `struct nfgenmsg`'s.
        if let Some(version) = out.out.get_mut(start + netlink::NLMSG_HEADER_BYTES + 1) {
            *version = 1;
        }
        match self {
            Self::NewVirtual(server) | Self::SetVirtual(server) => {
                out.nest(attr::SERVICE, |out| virtual_server(out, server));
            }
            Self::DeleteVirtual(id) => out.nest(attr::SERVICE, |out| server_id(out, id)),
            Self::NewReal(id, real) | Self::SetReal(id, real) => {
                out.nest(attr::SERVICE, |out| server_id(out, id));
                out.nest(attr::DEST, |out| real_server(out, real));
            }
            Self::DeleteReal(id, real) => {
                out.nest(attr::SERVICE, |out| server_id(out, id));
                out.nest(attr::DEST, |out| real_server_id(out, real));
            }
            Self::SetTimeouts(timeouts) => set_timeouts(out, timeouts),
        }
        out.end_message(start);
    }

    const fn number(&self) -> u8 {
        match self {
            Self::NewVirtual(_) => command::NEW_SERVICE,
            Self::SetVirtual(_) => command::SET_SERVICE,
            Self::DeleteVirtual(_) => command::DEL_SERVICE,
            Self::NewReal(..) => command::NEW_DEST,
            Self::SetReal(..) => command::SET_DEST,
            Self::DeleteReal(..) => command::DEL_DEST,
            Self::SetTimeouts(_) => command::SET_CONFIG,
        }
    }
}

/// Integers are in host byte order, except for ports and addresses.
fn host_u16(out: &mut Writer, kind: u16, value: u16) {
    out.bytes(kind, &value.to_ne_bytes());
}

fn host_u32(out: &mut Writer, kind: u16, value: u32) {
    out.bytes(kind, &value.to_ne_bytes());
}

const fn family_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// An address field has room for both families.
fn address_field(address: IpAddr) -> [u8; 16] {
    let mut field = [0; 16];
    match address {
        IpAddr::V4(address) => field[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => field = address.octets(),
    }
    field
}

pub(crate) fn server_id(out: &mut Writer, id: &ServerId) {
    host_u16(out, attr::SERVICE_AF, family_of(id.address));
    host_u16(out, attr::SERVICE_PROTOCOL, id.protocol.into());
    out.bytes(attr::SERVICE_ADDR, &address_field(id.address));
    out.u16(attr::SERVICE_PORT, id.port);
}

fn virtual_server(out: &mut Writer, server: &VirtualServer) {
    const PERSISTENT: u32 = 0x1;
    server_id(out, &server.id);
    out.text(attr::SERVICE_SCHEDULER, server.scheduler.as_str());
    let persistent = if server.persistence.is_some() { PERSISTENT } else { 0 };
    let flags = server.flags.bits() | persistent;
    // `struct ip_vs_flags`: the flags, and which of them are meant: all.
    out.bytes(attr::SERVICE_FLAGS, &[flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat());
    host_u32(out, attr::SERVICE_TIMEOUT, server.persistence.map_or(0, std::num::NonZeroU32::get));
    // Clients count by their whole address: a mask in IPv4, a length in IPv6.
    let netmask = if server.id.address.is_ipv4() { u32::MAX } else { 128 };
    host_u32(out, attr::SERVICE_NETMASK, netmask);
}

fn real_server_id(out: &mut Writer, id: &RealServerId) {
    host_u16(out, attr::DEST_AF, family_of(id.address));
    out.bytes(attr::DEST_ADDR, &address_field(id.address));
    out.u16(attr::DEST_PORT, id.port);
}

fn real_server(out: &mut Writer, real: &RealServer) {
    real_server_id(out, &real.id);
    let forwarding = match real.forwarding {
        Forwarding::Masquerade => 0,
        Forwarding::Other(number) => number.into(),
    };
    host_u32(out, attr::DEST_FORWARDING, forwarding);
    host_u32(out, attr::DEST_WEIGHT, real.weight);
    // No limits to the number of connections.
    host_u32(out, attr::DEST_UPPER, 0);
    host_u32(out, attr::DEST_LOWER, 0);
}

fn set_timeouts(out: &mut Writer, timeouts: &Timeouts) {
    host_u32(out, attr::TIMEOUT_TCP, timeouts.tcp);
    host_u32(out, attr::TIMEOUT_TCP_FIN, timeouts.tcp_fin);
    host_u32(out, attr::TIMEOUT_UDP, timeouts.udp);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewVirtual(server) => write!(f, "add virtual server {server}"),
            Self::SetVirtual(server) => write!(f, "set virtual server {server}"),
            Self::DeleteVirtual(id) => write!(f, "delete virtual server {id}"),
            Self::NewReal(id, real) => write!(f, "add real server {real} to {id}"),
            Self::SetReal(id, real) => write!(f, "set real server {real} of {id}"),
            Self::DeleteReal(id, real) => write!(f, "delete real server {real} of {id}"),
            Self::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => {
                write!(f, "set time-outs TCP {tcp} s, after FIN {tcp_fin} s, UDP {udp} s")
            }
        }
    }
}
