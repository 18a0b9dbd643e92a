//! Messages about network devices (`linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`).

use std::net::IpAddr;

use netlink::{Attrs, Message, Writer, flag};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDR: u16 = 20;
const GET_ADDR: u16 = 22;
/// Bytes of `struct ifinfomsg` and of `struct ifaddrmsg`, of which [`Writer::begin_message`] writes the first four.
const LINK_HEADER: usize = 16;
const ADDR_HEADER: usize = 8;
const WRITTEN: usize = 4;
/// `IFLA_IFNAME`
const NAME: u16 = 3;
/// `IFA_ADDRESS` and `IFA_LOCAL`
const ADDRESSES: [u16; 2] = [1, 2];

/// Asks for the device of this name; refused with `ENODEV` if there is none.
pub fn request(name: &str, seq: u32) -> Vec<u8> {
    by_name(GET_LINK, name, seq)
}

/// Deletes the device of this name.
pub fn delete(name: &str, seq: u32) -> Vec<u8> {
    by_name(DEL_LINK, name, seq)
}

fn by_name(kind: u16, name: &str, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(kind, flag::REQUEST | flag::ACK, seq, 0, 0);
    out.out.extend([0; LINK_HEADER - WRITTEN]);
    out.text(NAME, name);
    out.end_message(start);
    out.out
}

/// The device's number, if the message describes one.
pub fn index(message: &Message<'_>) -> Option<u32> {
    let number = message.payload().get(4..8)?;
    (message.kind == NEW_LINK).then(|| number.try_into().ok().map(u32::from_ne_bytes))?
}

/// Asks for the addresses of all devices.
pub fn request_addresses(seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(GET_ADDR, flag::REQUEST | flag::DUMP, seq, 0, 0);
    out.out.extend([0; ADDR_HEADER - WRITTEN]);
    out.end_message(start);
    out.out
}

/// The address that the message tells of, and the number of its device.
pub fn address(message: &Message<'_>) -> Option<(u32, IpAddr)> {
    let payload = message.payload();
    let number = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    if message.kind != NEW_ADDR {
        return None;
    }
    let attrs = Attrs::new(payload.get(ADDR_HEADER..)?);
    let address = ADDRESSES.into_iter().find_map(|kind| parse_address(attrs.find(kind)?))?;
    Some((number, address))
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use netlink::messages;

    use super::*;

    fn told(kind: u16, index: u32, header: usize, attr: (u16, &[u8])) -> Vec<u8> {
        let mut out = Writer::default();
        let start = out.begin_message(kind, 0, 1, 2, 0);
        out.out.extend(index.to_ne_bytes());
        out.out.resize(16 + header, 0);
        out.bytes(attr.0, attr.1);
        out.end_message(start);
        out.out
    }

    #[test]
    fn addresses_and_devices_are_read() {
        let bytes = [
            told(NEW_ADDR, 7, ADDR_HEADER, (1, &[10, 96, 0, 10])),
            told(NEW_ADDR, 8, ADDR_HEADER, (1, &[10, 96, 0, 11])),
            told(NEW_ADDR, 7, ADDR_HEADER, (1, &[0xfd; 16])),
            told(NEW_LINK, 7, LINK_HEADER, (NAME, b"kube-ipvs0\0")),
        ]
        .concat();
        let found: Vec<_> = messages(&bytes).filter_map(|message| address(&message)).collect();
        let v4 = |last| IpAddr::from([10, 96, 0, last]);
        assert_eq!(found, [(7, v4(10)), (8, v4(11)), (7, IpAddr::from([0xfd; 16]))]);
        assert_eq!(messages(&bytes).find_map(|message| index(&message)), Some(7));
    }
}
