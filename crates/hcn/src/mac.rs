//! Hardware addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hardware address, written with dashes: `00-15-5D-2A-10-01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text is no hardware address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address")]
pub struct MacError(String);

impl Mac {
    /// That of a remote endpoint, made from its address, as upstream makes it: `02-11` and the address's bytes; of an IPv6 address the
    /// last four, backwards (`conjureMac` of `pkg/proxy/winkernel`).
    pub fn of_remote(address: IpAddr) -> Self {
        let [a, b, c, d] = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [d, c, b, a]
            }
        };
        Self([0x02, 0x11, a, b, c, d])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// With dashes or colons, in either case.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.chars().take(32).collect());
        let parts: Vec<&str> = text.split(['-', ':']).collect();
        let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let byte = |part: &&str| u8::from_str_radix(part, 16).ok().filter(|_| is_byte(part));
        let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if n == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_endpoints_have_upstreams_addresses() {
        assert_eq!(Mac::of_remote([10, 244, 1, 2].into()).to_string(), "02-11-0A-F4-01-02");
        let v6: IpAddr = "fd00::1:203".parse().unwrap();
        assert_eq!(Mac::of_remote(v6).to_string(), "02-11-03-02-01-00");
    }

    #[test]
    fn dashes_and_colons_are_read() {
        let mac = Mac([0, 0x15, 0x5d, 0x2a, 0x10, 1]);
        for text in ["00-15-5D-2A-10-01", "00:15:5d:2a:10:01"] {
            assert_eq!(text.parse(), Ok(mac));
        }
        for text in ["", "00-15-5D-2A-10", "00-15-5D-2A-10-01-02", "0-15-5D-2A-10-01", "00-15-5D-2A-10-+1"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
