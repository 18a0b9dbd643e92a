//! Ids of objects.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The id of an object. HNS gives them in either case, so they are never compared as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(u128);

/// A text is no GUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no GUID")]
pub struct GuidError(String);

/// Where the groups of a GUID's text begin, in hexadecimal digits from the left.
const GROUPS: [usize; 4] = [8, 12, 16, 20];
const DIGITS: usize = 32;

impl Guid {
    /// From its number: the text's digits from the left.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// The number, whose digits from the left are those of the text.
    pub const fn to_u128(self) -> u128 {
        self.0
    }

    /// The id of what has this name, always the same (UUID version 8 of RFC 9562, from SHA-256).
    pub fn named(name: &str) -> Self {
        const VERSION: u128 = 0xF << 76;
        const VARIANT: u128 = 0b11 << 62;
        let digest = Sha256::digest(name.as_bytes());
        let number = digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte));
        Self(number & !VERSION & !VARIANT | 0x8 << 76 | 0b10 << 62)
    }
}

impl FromStr for Guid {
    type Err = GuidError;

    /// In either case, with or without braces.
    fn from_str(text: &str) -> Result<Self, GuidError> {
        let error = || GuidError(text.chars().take(64).collect());
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let digits: String = inner.split('-').collect();
        let has_groups = GROUPS.iter().enumerate().all(|(n, at)| inner.as_bytes().get(at + n) == Some(&b'-'));
        let is_hex = digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_hex || !has_groups || inner.len() != DIGITS + GROUPS.len() {
            return Err(error());
        }
        u128::from_str_radix(&digits, 16).map(Self).map_err(|_malformed| error())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        for (n, digit) in digits.chars().enumerate() {
            if GROUPS.contains(&n) {
                f.write_str("-")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn either_case_and_braces_are_read() {
        let upper: Guid = "{0F2C8B3A-1D4E-4F5A-9B6C-7D8E9FA0B1C2}".parse().unwrap();
        assert_eq!(upper.to_string(), "0f2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1c2");
        assert_eq!(upper, upper.to_string().parse().unwrap());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "x",
            "0f2c8b3a1d4e4f5a9b6c7d8e9fa0b1c2",
            "0f2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1c",
            "0f2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1cg",
            "{0f2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1c2",
            "0f2c8b3a-1d4e-4f5a-9b6c7-d8e9fa0b1c2",
            "é2c8b3a-1d4e-4f5a-9b6c-7d8e9fa0b1c2",
        ] {
            assert!(text.parse::<Guid>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_always_has_the_same_id() {
        let id = Guid::named("load balancer 10.96.0.1 TCP 80");
        assert_eq!(id, Guid::named("load balancer 10.96.0.1 TCP 80"));
        assert_ne!(id, Guid::named("load balancer 10.96.0.1 TCP 81"));
        let text = id.to_string();
        assert!(text[14..].starts_with('8') && "89ab".contains(&text[19..20]), "{text}");
    }

    proptest! {
        #[test]
        fn text_and_back(number in any::<u128>()) {
            let id = Guid::from_u128(number);
            prop_assert_eq!(id.to_string().parse::<Guid>().unwrap(), id);
            prop_assert_eq!(id.to_string().to_uppercase().parse::<Guid>().unwrap(), id);
        }

        #[test]
        fn no_panic(text in "\\PC{0,45}") {
            let _result = text.parse::<Guid>();
        }
    }
}
