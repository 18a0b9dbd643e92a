//! Names of tables and of what is in them.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Name of a table, chain, set or map. Cheap to clone.
///
/// Only [`Name::new`] checks; the unchecked conversions are for names that the program itself makes. The kernel
/// refuses what is not 1 to 255 bytes; `nft` can only parse names that start with a letter, go on with letters,
/// digits, `-`, `_`, `.` or `/`, and are not one of its keywords.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A text that can't be a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name {name:?} is not 1 to 255 bytes of letters, digits, `-`, `_`, `.` and `/` after a first letter")]
pub struct NameError {
    name: String,
}

impl Name {
    /// Longest name in bytes: `NFT_NAME_MAXLEN` of `linux/netfilter/nf_tables.h` less the final zero.
    pub const MAX_BYTES: usize = 255;

    /// A name that both the kernel and `nft` accept (keywords of nft are not checked).
    ///
    /// # Errors
    /// When the length or a character is not allowed.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let letters_fit = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if letters_fit && name.len() <= Self::MAX_BYTES {
            Ok(Self(name.into()))
        } else {
            Err(NameError { name: name.to_owned() })
        }
    }

    /// A name known when the program is written; not checked.
    pub fn from_static(name: &'static str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    /// Not checked: see [`Name`].
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for Name {
    /// Not checked: see [`Name`].
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nft_can_parse_are_accepted() {
        for name in ["a", "service-ips", "service-3-endpoints", "A_b.c/d", &"x".repeat(255)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_nft_or_the_kernel_refuse_are_refused() {
        for name in ["", "3a", "-a", "a b", "a\0", "a;b", "é", &"x".repeat(256)] {
            assert!(Name::new(name).is_err(), "{name:?}");
        }
    }
}
