//! Messages and attributes, written.

use std::net::IpAddr;

use crate::{ATTR_BYTES, MAX_ATTR_BYTES, NESTED};

/// Appends messages and attributes to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    /// What is written so far.
    pub out: Vec<u8>,
}

impl Writer {
    /// Starts an nfnetlink message; [`Writer::end_message`] takes what this returns.
    pub fn begin_message(&mut self, kind: u16, flags: u16, seq: u32, family: u8, res_id: u16) -> usize {
        let start = self.out.len();
        self.out.extend([0; 4]);
        self.out.extend(kind.to_ne_bytes());
        self.out.extend(flags.to_ne_bytes());
        self.out.extend(seq.to_ne_bytes());
        self.out.extend([0; 4]);
        self.out.extend([family, 0]);
        self.out.extend(res_id.to_be_bytes());
        start
    }

    /// Writes the length of the message that began at `start`. All attributes are padded, so the message is.
    pub fn end_message(&mut self, start: usize) {
        let len = u32::try_from(self.out.len() - start).unwrap_or(u32::MAX);
        self.out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets flags of the message that began at `start`.
    pub fn add_flags(&mut self, start: usize, flags: u16) {
        if let Some([low, high]) = self.out.get_mut(start + 6..start + 8) {
            [*low, *high] = (u16::from_ne_bytes([*low, *high]) | flags).to_ne_bytes();
        }
    }

    /// An attribute of bytes. What exceeds the longest attribute is cut; nothing that the kernel would accept does.
    pub fn bytes(&mut self, kind: u16, bytes: &[u8]) {
        let fits = bytes.len().min(MAX_ATTR_BYTES - ATTR_BYTES);
        self.header(kind, fits);
        self.out.extend_from_slice(&bytes[..fits]);
        self.pad();
    }

    /// An attribute of bytes that `write` appends.
    pub fn built(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.header(kind, 0);
        write(&mut self.out);
        let len = u16::try_from(self.out.len() - start).unwrap_or(u16::MAX);
        self.out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// An attribute of text with a final zero.
    pub fn text(&mut self, kind: u16, text: &str) {
        let fits = text.len().min(MAX_ATTR_BYTES - ATTR_BYTES - 1);
        self.header(kind, fits + 1);
        self.out.extend_from_slice(&text.as_bytes()[..fits]);
        self.out.push(0);
        self.pad();
    }

    /// An attribute of an integer in network byte order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.header(kind, 4);
        self.out.extend(value.to_be_bytes());
    }

    /// An attribute of a short integer in network byte order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// An attribute of attributes.
    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.out.len();
        self.header(kind | NESTED, 0);
        write(self);
        let len = u16::try_from(self.out.len() - start).unwrap_or(u16::MAX);
        self.out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn header(&mut self, kind: u16, payload: usize) {
        let len = u16::try_from(payload + ATTR_BYTES).unwrap_or(u16::MAX);
        self.out.extend(len.to_ne_bytes());
        self.out.extend(kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        let padded = self.out.len().next_multiple_of(4);
        self.out.resize(padded, 0);
    }
}

/// An address as messages have it: 4 or 16 bytes, in network byte order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
