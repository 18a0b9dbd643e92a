//! Set keys and map data as the kernel lays them out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Family;

/// Up to 40 bytes inline: a set key or map data in the kernel's layout, each field padded with zeros to 4 bytes.
///
/// Addresses and ports are in network byte order, a numgen index is a `u32` in host byte order, a protocol is one
/// byte. The order of values is the order of their bytes, which is stable but means nothing. Forty bytes hold the
/// longest concatenation in use (two IPv6 addresses, protocol and port).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    // Bytes beyond `len` stay zero, so that the derived comparisons are right.
    bytes: [u8; Self::CAPACITY],
    len: u8,
}

impl Bytes {
    /// Most bytes that a value holds.
    pub const CAPACITY: usize = 40;

    /// No fields yet.
    pub const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
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
        &self.bytes[..usize::from(self.len)]
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
        Reader { rest: self.as_slice() }
    }

    fn field(mut self, field: &[u8]) -> Self {
        let start = self.len();
        let end = start + field.len().next_multiple_of(4);
        assert!(end <= Self::CAPACITY, "fields of {end} bytes exceed a set key of {} bytes", Self::CAPACITY);
        self.bytes[start..start + field.len()].copy_from_slice(field);
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

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.as_slice().iter().enumerate() {
            let gap = if i > 0 && i % 4 == 0 { " " } else { "" };
            write!(f, "{gap}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Reads the fields of [`Bytes`] in order; each method is `None` once the bytes are used up.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// An address of the family.
    pub fn addr(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::Ip => Ipv4Addr::from(self.field::<4>()?).into(),
            Family::Ip6 => Ipv6Addr::from(self.field::<16>()?).into(),
        })
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
