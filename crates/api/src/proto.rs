//! A reader of protobuf fields: borrows, allocates nothing, and checks every length.
//!
//! Source of the encoding: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The message ends inside a field.
    Truncated,
    /// A varint longer than ten bytes, a field number 0, or a wire type that proto3 does not have.
    Malformed,
    /// A field of another wire type than its definition says.
    WrongType,
    /// A text that is not UTF-8.
    NotUtf8,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the message ends too early",
            Self::Malformed => "the message is not protobuf",
            Self::WrongType => "the field has the wrong wire type",
            Self::NotUtf8 => "the text is not UTF-8",
        })
    }
}

/// A fault and the field it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireError {
    /// Field names, innermost first.
    path: Vec<&'static str>,
    fault: Fault,
}

impl WireError {
    fn new(fault: Fault) -> Self {
        Self { path: Vec::new(), fault }
    }

    /// The same error, seen from the message that holds `field`.
    pub(crate) fn within(mut self, field: &'static str) -> Self {
        self.path.push(field);
        self
    }

    /// The field, as `spec.ports`.
    pub(crate) fn path(&self) -> String {
        self.path.iter().rev().copied().collect::<Vec<_>>().join(".")
    }

    /// What is wrong with it.
    pub(crate) fn fault(&self) -> Fault {
        self.fault
    }
}

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Int(u64),
    /// A length-delimited value: text, bytes or a message.
    Bytes(&'a [u8]),
    /// A fixed-width value; none of the fields that we read has one.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes of a text, of bytes or of a message.
    pub(crate) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Int(_) | Self::Fixed => Err(WireError::new(Fault::WrongType)),
        }
    }

    /// A text.
    pub(crate) fn text(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_not_utf8| WireError::new(Fault::NotUtf8))
    }

    /// A signed integer (`int32` and `int64`: sign-extended, not zigzag).
    pub(crate) fn int(self) -> Result<i64, WireError> {
        match self {
            Self::Int(value) => Ok(value.cast_signed()),
            Self::Bytes(_) | Self::Fixed => Err(WireError::new(Fault::WrongType)),
        }
    }

    /// A boolean.
    pub(crate) fn bool(self) -> Result<bool, WireError> {
        self.int().map(|value| value != 0)
    }
}

/// The fields of one message, in the order of the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's number and value; `None` at the end of the message.
    pub(crate) fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Int(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(WireError::new(Fault::Malformed)),
        };
        match tag >> 3 {
            0 => Err(WireError::new(Fault::Malformed)),
            number => Ok(Some((number, value))),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(WireError::new(Fault::Truncated))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (idx, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * idx);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[idx + 1..];
                return Ok(value);
            }
        }
        let fault = if self.rest.len() < 10 { Fault::Truncated } else { Fault::Malformed };
        Err(WireError::new(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Result<Vec<(u64, Value<'_>)>, WireError> {
        let mut fields = Fields::new(message);
        std::iter::from_fn(|| fields.next_field().transpose()).take(message.len() + 1).collect()
    }

    #[test]
    fn fields_of_every_wire_type() {
        let message = [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8];
        let expected =
            vec![(1, Value::Int(150)), (2, Value::Bytes(b"hi")), (3, Value::Fixed), (4, Value::Fixed)];
        assert_eq!(read(&message), Ok(expected));
    }

    #[test]
    fn negative_integers_are_sign_extended() {
        let message = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let fields = read(&message).unwrap();
        assert_eq!(fields[0].1.int(), Ok(-1));
    }

    #[test]
    fn broken_messages_are_refused() {
        let fault = |message: &[u8]| read(message).unwrap_err().fault();
        assert_eq!(fault(&[0x12, 5, b'h']), Fault::Truncated);
        assert_eq!(fault(&[0x80]), Fault::Truncated);
        assert_eq!(fault(&[0x80; 11]), Fault::Malformed);
        assert_eq!(fault(&[0x02, 0]), Fault::Malformed);
        assert_eq!(fault(&[0x0b]), Fault::Malformed);
        assert_eq!(
            fault(&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            Fault::Truncated
        );
        assert_eq!(Value::Bytes(&[0xff]).text().unwrap_err().fault(), Fault::NotUtf8);
        assert_eq!(Value::Fixed.int().unwrap_err().fault(), Fault::WrongType);
    }
}
