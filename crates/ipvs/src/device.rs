//! Messages about network devices and their addresses (`linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`).

use std::fmt;
use std::net::IpAddr;

use netlink::{Attrs, Message, Writer, flag};

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDR: u16 = 20;
const DEL_ADDR: u16 = 21;
const GET_ADDR: u16 = 22;
/// Bytes of `struct ifinfomsg` and of `struct ifaddrmsg`, of which [`Writer::begin_message`] writes the first four.
const LINK_HEADER: usize = 16;
const ADDR_HEADER: usize = 8;
const WRITTEN: usize = 4;
/// `IFLA_IFNAME` and `IFLA_LINKINFO`, with `IFLA_INFO_KIND` in it.
const NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
/// `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_CACHEINFO` and `IFA_FLAGS`.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const CACHE_INFO: u16 = 6;
const FLAGS: u16 = 8;
/// `RT_SCOPE_HOST`
const SCOPE_HOST: u8 = 254;
/// `IFA_F_NODAD`: nobody else on the device can have the address, and it serves at once.
const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// `NLM_F_EXCL`: what is there already is an error.
const EXCL: u16 = 0x200;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// Its kind, such as `dummy`; physical ones have none.
    pub kind: Option<String>,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceAddress {
    /// The device's number.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
}

/// A change of a device's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressChange {
    /// The address alone, without a network. That it is there is no error.
    Add(IpAddr),
    /// Refused with `EADDRNOTAVAIL` if it is not there.
    Delete(IpAddr),
}

impl fmt::Display for AddressChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(address) => write!(f, "add address {address}"),
            Self::Delete(address) => write!(f, "delete address {address}"),
        }
    }
}

/// Asks for the device of this name; refused with `ENODEV` if there is none.
pub fn request(name: &str, seq: u32) -> Vec<u8> {
    by_name(GET_LINK, 0, name, None, seq)
}

/// Deletes the device of this name.
pub fn delete(name: &str, seq: u32) -> Vec<u8> {
    by_name(DEL_LINK, 0, name, None, seq)
}

/// Makes a dummy device; refused with `EEXIST` if there is one of this name, with `EOPNOTSUPP` if the kernel has none and can't
/// load its module.
pub fn create_dummy(name: &str, seq: u32) -> Vec<u8> {
    by_name(NEW_LINK, flag::CREATE | EXCL, name, Some("dummy"), seq)
}

fn by_name(message: u16, flags: u16, name: &str, kind: Option<&str>, seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(message, flag::REQUEST | flag::ACK | flags, seq, 0, 0);
    out.out.extend([0; LINK_HEADER - WRITTEN]);
    out.text(NAME, name);
    if let Some(kind) = kind {
        out.nest(LINK_INFO, |out| out.text(INFO_KIND, kind));
    }
    out.end_message(start);
    out.out
}

/// The device that the message describes.
pub fn device(message: &Message<'_>) -> Option<Device> {
    let payload = message.payload();
    let index = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let attrs = Attrs::new(payload.get(LINK_HEADER..)?);
    let kind = attrs.nest(LINK_INFO).and_then(|info| info.text(INFO_KIND).map(str::to_owned));
    (message.kind == NEW_LINK).then_some(Device { index, kind })
}

/// Asks for the addresses of all devices.
pub fn request_addresses(seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let start = out.begin_message(GET_ADDR, flag::REQUEST | flag::DUMP, seq, 0, 0);
    out.out.extend([0; ADDR_HEADER - WRITTEN]);
    out.end_message(start);
    out.out
}

/// Appends the message that changes an address of a device.
///
/// The kernel never takes such an address as source of anything else, such as masquerading towards a device without an address: in
/// IPv4 it has the scope of the host, in IPv6 it is deprecated from the beginning.
pub fn change_address(out: &mut Writer, index: u32, change: AddressChange, seq: u32, flags: u16) {
    let (kind, address, flags) = match change {
        AddressChange::Add(address) => (NEW_ADDR, address, flags | flag::CREATE),
        AddressChange::Delete(address) => (DEL_ADDR, address, flags),
    };
    let (family, bits) = if address.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
    let start = out.begin_message(kind, flag::REQUEST | flags, seq, family, 0);
    // Behind the family: length of the network, flags, scope.
    let head = start + netlink::NLMSG_HEADER_BYTES;
    if let Some([prefix, _flags, scope]) = out.out.get_mut(head + 1..head + WRITTEN) {
        (*prefix, *scope) = (bits, if address.is_ipv4() { SCOPE_HOST } else { 0 });
    }
    out.out.extend(index.to_ne_bytes());
    let bytes = netlink::octets(address);
    out.bytes(LOCAL, &bytes);
    out.bytes(ADDRESS, &bytes);
    if kind == NEW_ADDR && address.is_ipv6() {
        // `struct ifa_cacheinfo`: preferred for no time, valid for ever, and two times that the kernel sets.
        let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes);
        out.bytes(CACHE_INFO, lifetimes.as_flattened());
        out.bytes(FLAGS, &NO_DUPLICATE_DETECTION.to_ne_bytes());
    }
    out.end_message(start);
}

/// The address that the message tells of.
pub fn address(message: &Message<'_>) -> Option<DeviceAddress> {
    let payload = message.payload();
    let index = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    if message.kind != NEW_ADDR {
        return None;
    }
    let attrs = Attrs::new(payload.get(ADDR_HEADER..)?);
    // On a link between two hosts `IFA_ADDRESS` is the other one's.
    let address = [LOCAL, ADDRESS].into_iter().find_map(|kind| parse_address(attrs.find(kind)?))?;
    Some(DeviceAddress { index, address })
}

/// The device of which the message says that an address came or went.
pub fn changed_device(message: &Message<'_>) -> Option<u32> {
    let number = message.payload().get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    matches!(message.kind, NEW_ADDR | DEL_ADDR | DEL_LINK).then_some(number)
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use netlink::messages;

    use super::*;

    fn told(kind: u16, index: u32, header: usize, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut out = Writer::default();
        let start = out.begin_message(kind, 0, 1, 2, 0);
        out.out.extend(index.to_ne_bytes());
        out.out.resize(16 + header, 0);
        write(&mut out);
        out.end_message(start);
        out.out
    }

    #[test]
    fn addresses_and_devices_are_read() {
        let address_of = |index, bytes: &[u8]| told(NEW_ADDR, index, ADDR_HEADER, |out| out.bytes(1, bytes));
        let bytes = [
            address_of(7, &[10, 96, 0, 10]),
            address_of(8, &[10, 96, 0, 11]),
            address_of(7, &[0xfd; 16]),
            told(NEW_ADDR, 9, ADDR_HEADER, |out| {
                out.bytes(ADDRESS, &[10, 0, 0, 2]);
                out.bytes(LOCAL, &[10, 0, 0, 1]);
            }),
            told(NEW_LINK, 7, LINK_HEADER, |out| {
                out.text(NAME, "kube-ipvs0");
                out.nest(LINK_INFO, |out| out.text(INFO_KIND, "dummy"));
            }),
            told(NEW_LINK, 2, LINK_HEADER, |out| out.text(NAME, "eth0")),
        ]
        .concat();
        let found: Vec<_> = messages(&bytes).filter_map(|message| address(&message)).collect();
        let at = |index, address: &str| DeviceAddress { index, address: address.parse().unwrap() };
        let v6 = DeviceAddress { index: 7, address: IpAddr::from([0xfd; 16]) };
        assert_eq!(found, [at(7, "10.96.0.10"), at(8, "10.96.0.11"), v6, at(9, "10.0.0.1")]);
        let devices: Vec<_> = messages(&bytes).filter_map(|message| device(&message)).collect();
        let dummy = Device { index: 7, kind: Some("dummy".into()) };
        assert_eq!(devices, [dummy, Device { index: 2, kind: None }]);
    }

    #[test]
    fn what_is_added_is_what_is_told() {
        for text in ["10.96.0.10", "fd00:96::10"] {
            let wanted = text.parse().unwrap();
            let mut out = Writer::default();
            change_address(&mut out, 7, AddressChange::Add(wanted), 3, 0);
            change_address(&mut out, 7, AddressChange::Delete(wanted), 4, 0);
            let told: Vec<_> = messages(&out.out).map(|message| address(&message)).collect();
            assert_eq!(told, [Some(DeviceAddress { index: 7, address: wanted }), None]);
            assert_eq!(messages(&out.out).filter_map(|message| changed_device(&message)).count(), 2);
        }
    }
}
