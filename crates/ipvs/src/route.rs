//! Messages about the routes by which a device's addresses are local to the host (`linux/rtnetlink.h`).

use std::net::IpAddr;

use netlink::{NLMSG_HEADER_BYTES, Writer, flag, octets};

const NEW_LINK: u16 = 16;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
/// `NLM_F_REPLACE`
const REPLACE: u16 = 0x100;
/// `IFF_UP`
const UP: u32 = 1;
/// `RTA_DST`, `RTA_OIF` and `RTA_PREFSRC`
const DESTINATION: u16 = 1;
const DEVICE: u16 = 4;
const SOURCE: u16 = 7;
/// `RT_TABLE_LOCAL`, `RTPROT_KERNEL`, `RTPROT_STATIC`, `RT_SCOPE_HOST` and `RTN_LOCAL`
const TABLE_LOCAL: u8 = 255;
const BY_KERNEL: u8 = 2;
const STATIC: u8 = 4;
const SCOPE_HOST: u8 = 254;
const LOCAL: u8 = 2;

/// A change of how the host's own flows to an address of a device begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Takes the device up: in IPv6 nothing else can be routed to it.
    Up,
    /// Flows to the first address have the second one as source, unless another route comes first. Both are local.
    Prefer(IpAddr, IpAddr),
    /// Deletes the route that the kernel itself made for an address, by which flows to it have it as source as well. In IPv4
    /// [`RouteChange::Prefer`] has replaced that.
    Forget(IpAddr),
}

impl RouteChange {
    /// What has flows to the first address, one of the device's, come from the second one.
    pub fn all(address: IpAddr, source: IpAddr) -> Vec<Self> {
        let forget = address.is_ipv6().then_some(Self::Forget(address));
        [Self::Prefer(address, source)].into_iter().chain(forget).collect()
    }

    /// Appends the message, for the device of this number.
    pub fn encode(&self, out: &mut Writer, index: u32, seq: u32, flags: u16) {
        match *self {
            Self::Up => up(out, index, seq, flags),
            Self::Prefer(address, source) => {
                let replace = if address.is_ipv4() { REPLACE } else { 0 };
                let start = begin(out, NEW_ROUTE, address, STATIC, seq, flags | flag::CREATE | replace);
                out.bytes(DEVICE, &index.to_ne_bytes());
                out.bytes(SOURCE, &octets(source));
                out.end_message(start);
            }
            Self::Forget(address) => {
                let start = begin(out, DEL_ROUTE, address, BY_KERNEL, seq, flags);
                out.bytes(DEVICE, &index.to_ne_bytes());
                out.end_message(start);
            }
        }
    }
}

/// `struct ifinfomsg`
fn up(out: &mut Writer, index: u32, seq: u32, flags: u16) {
    let start = out.begin_message(NEW_LINK, flag::REQUEST | flags, seq, 0, 0);
    for field in [index, UP, UP] {
        out.out.extend(field.to_ne_bytes());
    }
    out.end_message(start);
}

/// `struct rtmsg` for a route to the address alone, and the address.
fn begin(out: &mut Writer, kind: u16, address: IpAddr, protocol: u8, seq: u32, flags: u16) -> usize {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (family, bits) = if address.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
    let start = out.begin_message(kind, flag::REQUEST | flags, seq, family, 0);
    if let Some(length) = out.out.get_mut(start + NLMSG_HEADER_BYTES + 1) {
        *length = bits;
    }
    out.out.extend([TABLE_LOCAL, protocol, SCOPE_HOST, LOCAL, 0, 0, 0, 0]);
    out.bytes(DESTINATION, &octets(address));
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `strace ip route replace local 10.96.0.10 dev DEVICE table local src 192.168.50.1` shows it.
    #[test]
    fn a_route_is_to_one_address_with_another_as_source() {
        let (address, source) = (IpAddr::from([10, 96, 0, 10]), IpAddr::from([192, 168, 50, 1]));
        let [prefer] = RouteChange::all(address, source)[..] else { unreachable!("one message in IPv4") };
        let mut out = Writer::default();
        prefer.encode(&mut out, 7, 3, 0);
        let head = [2, 32, 0, 0, 255, 4, 254, 2, 0, 0, 0, 0];
        let attrs = [[8, 0, 1, 0, 10, 96, 0, 10], [8, 0, 4, 0, 7, 0, 0, 0], [8, 0, 7, 0, 192, 168, 50, 1]];
        assert_eq!(out.out[NLMSG_HEADER_BYTES..], [&head[..], attrs.as_flattened()].concat());
        assert_eq!(out.out.len(), usize::from(out.out[0]));
        let v6 = IpAddr::from([0xfd; 16]);
        assert_eq!(RouteChange::all(v6, v6), [RouteChange::Prefer(v6, v6), RouteChange::Forget(v6)]);
    }
}
