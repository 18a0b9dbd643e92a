//! Messages about virtual servers of IPVS (`linux/ip_vs.h`, `linux/genetlink.h`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink::{Message, Writer, flag};

/// The type of messages to the controller of generic netlink, and its command that asks for a family's type.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
/// The attribute that holds a service.
const SERVICE: u16 = 1;
const SERVICE_AF: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDR: u16 = 3;
const SERVICE_PORT: u16 = 4;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A virtual server with an address. (Those by packet mark are never kube-proxy's.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port, 0 for all.
    pub port: u16,
    /// Number of the protocol.
    pub protocol: u16,
}

/// What tells upstream's virtual servers from those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Addresses of upstream's device: cluster IPs and the like.
    pub addresses: BTreeSet<IpAddr>,
    /// Addresses of the node's other devices, at which node ports are served.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Protocols and numbers of node ports.
    pub node_ports: BTreeSet<(u16, u16)>,
}

impl Own {
    /// Whether the virtual server is upstream's.
    pub fn has(&self, server: &VirtualServer) -> bool {
        let is_node_port = self.node_ports.contains(&(server.protocol, server.port));
        self.addresses.contains(&server.address)
            || is_node_port && self.node_addresses.contains(&server.address)
    }
}

/// Asks which message type IPVS has. Refused with `ENOENT` if the kernel has no IPVS; makes it load the module, if there
/// is one.
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
pub fn request_servers(family: u16, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(family, flag::REQUEST | flag::DUMP, seq, GET_SERVICE, 0);
    out.end_message(start);
    out.out
}

/// The virtual server that a message tells of.
pub fn server(message: &Message<'_>) -> Option<VirtualServer> {
    let service = message.attrs()?.nest(SERVICE)?;
    let short = |kind| service.find(kind)?.try_into().ok().map(u16::from_ne_bytes);
    Some(VirtualServer {
        address: address(short(SERVICE_AF)?, service.find(SERVICE_ADDR)?)?,
        port: service.u16(SERVICE_PORT)?,
        protocol: short(SERVICE_PROTOCOL)?,
    })
}

/// An address field has room for both families.
fn address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => bytes.first_chunk::<4>().copied().map(IpAddr::from),
        AF_INET6 => bytes.first_chunk::<16>().copied().map(IpAddr::from),
        _ => None,
    }
}

/// Deletes a virtual server with its real servers.
pub fn delete_server(family: u16, server: &VirtualServer, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(family, flag::REQUEST | flag::ACK, seq, DEL_SERVICE, 0);
    out.nest(SERVICE, |out| {
        let mut field = [0; 16];
        let af = match server.address {
            IpAddr::V4(address) => {
                field[..4].copy_from_slice(&address.octets());
                AF_INET
            }
            IpAddr::V6(address) => {
                field = address.octets();
                AF_INET6
            }
        };
        out.bytes(SERVICE_AF, &af.to_ne_bytes());
        out.bytes(SERVICE_PROTOCOL, &server.protocol.to_ne_bytes());
        out.bytes(SERVICE_ADDR, &field);
        out.u16(SERVICE_PORT, server.port);
    });
    out.end_message(start);
    out.out
}

#[cfg(test)]
mod tests {
    use netlink::messages;

    use super::*;

    /// A server is told with the same attributes that it is deleted by.
    #[test]
    fn what_is_deleted_is_what_was_told() {
        for address in [IpAddr::from([10, 96, 0, 10]), IpAddr::from([0xfd; 16])] {
            let wanted = VirtualServer { address, port: 443, protocol: 6 };
            let bytes = delete_server(0x1f, &wanted, 9);
            let message = messages(&bytes).next().unwrap();
            assert_eq!((message.kind, message.seq), (0x1f, 9));
            assert_eq!(server(&message), Some(wanted));
        }
    }

    #[test]
    fn servers_are_upstreams_by_address_or_as_node_ports() {
        let address = |last| IpAddr::from([192, 168, 0, last]);
        let own = Own {
            addresses: [address(1)].into(),
            node_addresses: [address(2)].into(),
            node_ports: [(6, 30080)].into(),
        };
        let server = |last, port, protocol| VirtualServer { address: address(last), port, protocol };
        assert!(own.has(&server(1, 443, 6)) && own.has(&server(1, 53, 17)) && own.has(&server(2, 30080, 6)));
        for other in [server(2, 443, 6), server(2, 30080, 17), server(3, 30080, 6), server(3, 443, 6)] {
            assert!(!own.has(&other), "{other:?}");
        }
    }

    #[test]
    fn a_server_by_mark_is_not_ours() {
        let mut out = Writer::default();
        let start = out.begin_message(0x1f, 0, 1, GET_SERVICE, 0);
        out.nest(SERVICE, |out| {
            out.bytes(SERVICE_AF, &AF_INET.to_ne_bytes());
            out.bytes(5, &7_u32.to_ne_bytes());
        });
        out.end_message(start);
        assert_eq!(messages(&out.out).find_map(|message| server(&message)), None);
    }
}
