//! Set keys and map data as the kernel lays them out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Family;

/// Up to 40 bytes inline: a set key or map data in the kernel's layout, each field padded with zeros to 4 bytes.
///
/// Addresses and ports are in network byte order, a numgen index is a `u32` in host byte order, a protocol is one
/// byte. The order of values is the order of their bytes, which is stable but means nothing. Forty bytes hold the
/// longest concatenation in use (two IPv6 addresses, protocol and port).
///
/// The last field may be a network instead of one address, for elements of [`SetKind::Networks`](crate::SetKind).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    // Octets beyond `len` stay zero, so that the derived comparisons are right.
    octets: [u8; Self::CAPACITY],
    len: u8,
    /// Length of the last field's prefix in bits; [`NO_PREFIX`] if it is not a network.
    prefix: u8,
}

/// No network has a prefix this long.
const NO_PREFIX: u8 = u8::MAX;

impl Bytes {
    /// Most bytes that a value holds.
    pub const CAPACITY: usize = 40;

    /// No fields yet.
    pub const fn new() -> Self {
        Self { octets: [0; Self::CAPACITY], len: 0, prefix: NO_PREFIX }
    }

    /// Appends an address: 4 or 16 bytes.
    ///
    /// # Panics
    /// When the fields together exceed [`Bytes::CAPACITY`]; so do the other appending methods.
    #[must_use]
    pub fn addr(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => self.field(&v4.octets()),
            IpAddr::V6(v6) => self.field(&v6.octets()),
        }
    }

    /// Appends a network as the last field; bits behind the prefix are cleared, and a prefix that is longer than the
    /// address is the address alone.
    #[must_use]
    pub fn net(self, addr: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(addr_bits(Family::of(addr)));
        Self { prefix, ..self.addr(network(addr, prefix)) }
    }

    /// Length in bits of the last field's prefix, if that is a network.
    pub fn prefix_bits(&self) -> Option<u8> {
        (self.prefix != NO_PREFIX).then_some(self.prefix)
    }

    /// Appends a transport protocol number.
    #[must_use]
    pub fn proto(self, proto: u8) -> Self {
        self.field(&[proto])
    }

    /// Appends a port, given in host byte order.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Appends what `numgen` yields: a number in host byte order.
    #[must_use]
    pub fn index(self, index: u32) -> Self {
        self.field(&index.to_ne_bytes())
    }

    /// The fields with their padding.
    pub fn as_slice(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    /// Number of bytes with padding.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True when there is no field.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of a kernel's message, padded to a multiple of 4; `None` when they are more than fit.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let padded = bytes.len().next_multiple_of(4);
        (padded <= Self::CAPACITY).then(|| Self::new().field(bytes))
    }

    /// Reads the fields in order.
    pub fn reader(&self) -> Reader<'_> {
        Reader { rest: self.as_slice(), prefix: self.prefix_bits() }
    }

    /// The same fields with the last address of the network that the last field is; these fields if it is none.
    pub(crate) fn last_of_network(&self, family: Family) -> Self {
        let host_bits = u32::from(addr_bits(family)).saturating_sub(self.prefix.into());
        self.last_addr(family).map_or(*self, |addr| self.with_last_addr(family, addr | low_bits(host_bits)))
    }

    /// These fields, the last one as the network that ends with the last field of `last`. `None` when the other fields
    /// differ or the range from here to there is no network.
    pub(crate) fn to_network(self, last: &Self, family: Family) -> Option<Self> {
        let (first_addr, last_addr) = (self.last_addr(family)?, last.last_addr(family)?);
        let span = first_addr ^ last_addr;
        let host_bits = u128::BITS - span.leading_zeros();
        let is_network = span == low_bits(host_bits) && first_addr & span == 0;
        let same_fields = self.with_last_addr(family, last_addr) == *last;
        let prefix = addr_bits(family) - u8::try_from(host_bits).ok()?;
        (is_network && same_fields).then_some(Self { prefix, ..self })
    }

    /// The fields with the last one, an address, raised by one; `None` when it is the highest address.
    pub(crate) fn next_addr(&self, family: Family) -> Option<Self> {
        let next = self.last_addr(family)?.checked_add(1)?;
        (next <= low_bits(addr_bits(family).into())).then(|| self.with_last_addr(family, next))
    }

    /// The fields with the last one, an address, lowered by one; `None` when it is the lowest address.
    pub(crate) fn previous_addr(&self, family: Family) -> Option<Self> {
        Some(self.with_last_addr(family, self.last_addr(family)?.checked_sub(1)?))
    }

    /// The highest address of the family as the only field.
    pub(crate) fn highest_addr(family: Family) -> Self {
        let zeros = vec![0; family.addr_len()];
        Self::new().field(&zeros).with_last_addr(family, u128::MAX)
    }

    fn last_addr(&self, family: Family) -> Option<u128> {
        let start = self.len().checked_sub(family.addr_len())?;
        let mut wide = [0; 16];
        wide[16 - family.addr_len()..].copy_from_slice(&self.octets[start..self.len()]);
        Some(u128::from_be_bytes(wide))
    }

    /// The fields, which end with an address, with another one; no network.
    fn with_last_addr(&self, family: Family, addr: u128) -> Self {
        let mut other = Self { prefix: NO_PREFIX, ..*self };
        let start = self.len() - family.addr_len();
        other.octets[start..self.len()].copy_from_slice(&addr.to_be_bytes()[16 - family.addr_len()..]);
        other
    }

    fn field(mut self, field: &[u8]) -> Self {
        let start = self.len();
        let end = start + field.len().next_multiple_of(4);
        assert!(end <= Self::CAPACITY, "fields of {end} bytes exceed a set key of {} bytes", Self::CAPACITY);
        self.octets[start..start + field.len()].copy_from_slice(field);
        // `end` is at most CAPACITY, which a byte holds.
        self.len = u8::try_from(end).unwrap_or(u8::MAX);
        self
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::new()
    }
}

/// The address with the bits behind the prefix cleared.
pub(crate) fn network(addr: IpAddr, prefix: u8) -> IpAddr {
    let behind = |bits: u32| bits.saturating_sub(u32::from(prefix));
    match addr {
        IpAddr::V4(v4) => (v4 & Ipv4Addr::from(u32::MAX.checked_shl(behind(32)).unwrap_or(0))).into(),
        IpAddr::V6(v6) => (v6 & Ipv6Addr::from(u128::MAX.checked_shl(behind(128)).unwrap_or(0))).into(),
    }
}

/// Bits of one address.
pub(crate) const fn addr_bits(family: Family) -> u8 {
    match family {
        Family::Ip => 32,
        Family::Ip6 => 128,
    }
}

/// A number of which this many of the lowest bits are set.
fn low_bits(count: u32) -> u128 {
    u128::MAX.checked_shr(u128::BITS.saturating_sub(count)).unwrap_or(0)
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.as_slice().iter().enumerate() {
            let gap = if i > 0 && i % 4 == 0 { " " } else { "" };
            write!(f, "{gap}{byte:02x}")?;
        }
        match self.prefix_bits() {
            Some(prefix) => write!(f, "/{prefix}"),
            None => Ok(()),
        }
    }
}

/// Reads the fields of [`Bytes`] in order; each method is `None` once the bytes are used up.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    prefix: Option<u8>,
}

impl Reader<'_> {
    /// An address of the family.
    pub fn addr(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::Ip => Ipv4Addr::from(self.field::<4>()?).into(),
            Family::Ip6 => Ipv6Addr::from(self.field::<16>()?).into(),
        })
    }

    /// The network that is the last field, with its prefix length in bits; one address if it is none.
    pub fn net(&mut self, family: Family) -> Option<(IpAddr, u8)> {
        let addr = self.addr(family)?;
        Some((addr, self.prefix.filter(|_| self.is_empty()).unwrap_or(addr_bits(family))))
    }

    /// A transport protocol number.
    pub fn proto(&mut self) -> Option<u8> {
        self.field::<1>().map(|[proto]| proto)
    }

    /// A port in host byte order.
    pub fn port(&mut self) -> Option<u16> {
        self.field().map(u16::from_be_bytes)
    }

    /// A number in host byte order.
    pub fn index(&mut self) -> Option<u32> {
        self.field().map(u32::from_ne_bytes)
    }

    /// True when every field was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn field<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.rest.split_at_checked(N.next_multiple_of(4))?;
        self.rest = rest;
        field.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_padded_to_four_bytes_in_the_kernels_byte_order() {
        let key = Bytes::new().addr("10.96.0.10".parse().unwrap()).proto(6).port(80).index(1);
        let mut expected = vec![10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0];
        expected.extend(1u32.to_ne_bytes());
        assert_eq!(key.as_slice(), expected);
    }

    #[test]
    fn what_was_written_is_read_and_nothing_more() {
        let addr: IpAddr = "fd00::10".parse().unwrap();
        let key = Bytes::new().addr(addr).proto(17).port(53).index(7);
        let mut reader = key.reader();
        assert_eq!(reader.addr(Family::Ip6), Some(addr));
        assert_eq!(reader.proto(), Some(17));
        assert_eq!(reader.port(), Some(53));
        assert!(!reader.is_empty());
        assert_eq!(reader.index(), Some(7));
        assert!(reader.is_empty());
        assert_eq!(reader.proto(), None);
    }

    #[track_caller]
    fn check_network(addr: &str, prefix: u8, first: &str, last: &str) {
        let [addr, first, last] = [addr, first, last].map(|text| text.parse::<IpAddr>().unwrap());
        let family = Family::of(addr);
        let fields = || Bytes::new().proto(6).port(80);
        let network = fields().net(addr, prefix);
        assert_eq!(network.as_slice(), fields().addr(first).as_slice());
        assert_eq!(network.last_of_network(family), fields().addr(last));
        assert_eq!(fields().addr(first).to_network(&fields().addr(last), family), Some(network));
        let mut reader = network.reader();
        assert_eq!((reader.proto(), reader.port()), (Some(6), Some(80)));
        assert_eq!(reader.net(family), Some((first, prefix)));
    }

    #[test]
    fn networks_are_ranges_and_back() {
        check_network("10.1.2.3", 8, "10.0.0.0", "10.255.255.255");
        check_network("10.1.2.3", 30, "10.1.2.0", "10.1.2.3");
        check_network("10.1.2.3", 32, "10.1.2.3", "10.1.2.3");
        check_network("10.1.2.3", 0, "0.0.0.0", "255.255.255.255");
        check_network("fd00:1::9", 29, "fd00::", "fd00:7:ffff:ffff:ffff:ffff:ffff:ffff");
        check_network("fd00::9", 128, "fd00::9", "fd00::9");
    }

    #[test]
    fn ranges_that_are_no_networks_are_none() {
        let addr = |text: &str| Bytes::new().addr(text.parse().unwrap());
        assert_eq!(addr("10.0.0.1").to_network(&addr("10.0.0.2"), Family::Ip), None);
        assert_eq!(addr("10.0.0.1").to_network(&addr("10.0.0.3"), Family::Ip), None);
        assert_eq!(addr("10.0.0.3").to_network(&addr("10.0.0.0"), Family::Ip), None);
        let other_port = |port| Bytes::new().port(port).addr([10, 0, 0, 1].into());
        assert_eq!(other_port(1).to_network(&other_port(2), Family::Ip), None);
    }

    #[test]
    fn addresses_step_up_to_the_highest_and_down_to_the_lowest() {
        let addr = |text: &str| Bytes::new().port(1).addr(text.parse().unwrap());
        assert_eq!(addr("10.0.255.255").next_addr(Family::Ip), Some(addr("10.1.0.0")));
        assert_eq!(addr("10.1.0.0").previous_addr(Family::Ip), Some(addr("10.0.255.255")));
        assert_eq!(addr("255.255.255.255").next_addr(Family::Ip), None);
        assert_eq!(addr("0.0.0.0").previous_addr(Family::Ip), None);
        assert_eq!(addr("fd00::ffff").next_addr(Family::Ip6), Some(addr("fd00::1:0")));
        let highest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        assert_eq!(addr(highest).next_addr(Family::Ip6), None);
    }

    #[test]
    fn bytes_of_a_message_are_padded_and_bounded() {
        assert_eq!(Bytes::from_slice(&[6]), Some(Bytes::new().proto(6)));
        assert_eq!(Bytes::from_slice(&[1; 40]).unwrap().len(), 40);
        assert_eq!(Bytes::from_slice(&[1; 41]), None);
    }

    #[test]
    #[should_panic(expected = "exceed a set key")]
    fn more_than_fits_is_a_mistake_of_the_caller() {
        let addr: IpAddr = "fd00::10".parse().unwrap();
        assert_eq!(Bytes::new().addr(addr).addr(addr).addr(addr).len(), 48);
    }
}
