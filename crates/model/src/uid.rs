//! `metadata.uid` in 16 bytes.

use std::fmt;

/// An object's `metadata.uid`: a UUID in lower case with its four hyphens, which is what API servers give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid([u8; 16]);

/// Where the hyphens are.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

impl Uid {
    /// Reads a UID; `None` if it has any other form. Who has to name the object then goes without.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 36 || HYPHENS.iter().any(|at| text[*at] != b'-') {
            return None;
        }
        let digit = |byte: &u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut digits =
            text.iter().enumerate().filter(|(at, _)| !HYPHENS.contains(at)).map(|(_, byte)| byte);
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            *byte = digits.next().and_then(digit)? << 4 | digits.next().and_then(digit)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_and_written() {
        let text = "0a1b2c3d-4e5f-4789-abcd-ef0123456789";
        assert_eq!(Uid::parse(text).unwrap().to_string(), text);
        for bad in [
            "",
            "0a1b2c3d4e5f4789abcdef0123456789",
            "0A1b2c3d-4e5f-4789-abcd-ef0123456789",
            "0a1b2c3d-4e5f-4789-abcd-ef01234567-9",
            "0a1b2c3d-4e5f-4789-abcd-ef012345678é",
        ] {
            assert_eq!(Uid::parse(bad), None, "{bad}");
        }
    }
}
