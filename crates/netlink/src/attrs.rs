//! Attributes, read.

use crate::{ATTR_BYTES, TYPE_MASK};

/// Iterates over attributes, as type and payload; ends at the first that is malformed.
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes that the bytes consist of.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The payload of the first attribute of the kind.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(k, payload)| (k == kind).then_some(payload))
    }

    /// The attribute as attributes.
    pub fn nest(&self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self::new)
    }

    /// The attribute as an integer in network byte order.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(be_u32)
    }

    /// The attribute as a short integer in network byte order.
    pub fn u16(&self, kind: u16) -> Option<u16> {
        self.find(kind).and_then(be_u16)
    }

    /// The attribute as text.
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(text)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header: &[u8; ATTR_BYTES] = self.rest.first_chunk()?;
        let [l0, l1, k0, k1] = *header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let payload = self.rest.get(ATTR_BYTES..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, payload))
    }
}

/// A payload of exactly four bytes in network byte order.
pub fn be_u32(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

/// A payload of exactly two bytes in network byte order.
pub fn be_u16(payload: &[u8]) -> Option<u16> {
    payload.try_into().ok().map(u16::from_be_bytes)
}

/// A payload of text up to its first zero.
pub fn text(payload: &[u8]) -> Option<&str> {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()
}
