//! Stateful objects.

use std::fmt;

/// What a stateful object is (`NFT_OBJECT_*` of `linux/netfilter/nf_tables.h`). Objects of different types may have the same
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectType(pub u32);

impl ObjectType {
    /// As `nft` calls it, which has no word for some.
    const fn keyword(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "counter",
            2 => "quota",
            3 => "ct helper",
            4 => "limit",
            6 => "tunnel",
            7 => "ct timeout",
            8 => "secmark",
            9 => "ct expectation",
            10 => "synproxy",
            _ => return None,
        })
    }
}

impl fmt::Display for ObjectType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keyword() {
            Some(keyword) => f.write_str(keyword),
            None => write!(f, "object of type {}", self.0),
        }
    }
}
