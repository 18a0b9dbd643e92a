//! Protobuf, as far as spans need it. (Protocol Buffers, "Encoding".)

use bytes::{BufMut as _, BytesMut};

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LEN: u32 = 2;

/// A message that is being written.
#[derive(Debug, Default)]
pub(crate) struct Message(BytesMut);

impl Message {
    pub(crate) fn bytes(self) -> BytesMut {
        self.0
    }

    /// What is empty is left out, as what has its default value.
    pub(crate) fn text(&mut self, field: u32, text: &str) {
        self.raw(field, text.as_bytes());
    }

    /// The same for bytes.
    pub(crate) fn raw(&mut self, field: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.delimited(field, bytes);
        }
    }

    /// Also if it is empty, since it is there.
    pub(crate) fn message(&mut self, field: u32, message: &Self) {
        self.delimited(field, &message.0);
    }

    /// A number of type `int64`, `enum` or the like.
    pub(crate) fn number(&mut self, field: u32, number: i64) {
        self.tag(field, VARINT);
        self.varint(number.cast_unsigned());
    }

    pub(crate) fn fixed64(&mut self, field: u32, number: u64) {
        self.tag(field, FIXED64);
        self.0.put_u64_le(number);
    }

    /// Also if it is empty.
    pub(crate) fn delimited(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, LEN);
        // A length is never as large.
        self.varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.put_slice(bytes);
    }

    fn tag(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn varint(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                return self.0.put_u8(low & 0x7f);
            }
            self.0.put_u8(low | 0x80);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Encoding".
    #[test]
    fn messages_are_as_the_specification_has_them() {
        let mut message = Message::default();
        message.number(1, 150);
        message.text(2, "testing");
        message.number(3, -1);
        message.fixed64(4, 1);
        let mut inner = Message::default();
        inner.number(1, 0);
        message.message(16, &inner);
        message.text(5, "");
        let expected = [
            &b"\x08\x96\x01"[..],
            b"\x12\x07testing",
            b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x21\x01\0\0\0\0\0\0\0",
            b"\x82\x01\x02\x08\0",
        ];
        assert_eq!(message.bytes(), expected.concat());
    }
}
