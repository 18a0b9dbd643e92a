//! Names of tables and chains.

use std::fmt;
use std::sync::Arc;

/// A table of iptables, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableName {
    /// `mangle`.
    Mangle,
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
}

impl TableName {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Filter, Self::Nat];

    /// The name as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The name of a chain. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

/// A text that can't be a [`ChainName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chain name {0:?} is not 1 to 28 letters, digits, `-` and `_` after a letter or digit")]
pub struct NameError(String);

impl ChainName {
    /// Longest name in bytes: `XT_EXTENSION_MAXNAMELEN` of `linux/netfilter/x_tables.h` less the final zero.
    pub const MAX_BYTES: usize = 28;

    /// A name that the tools accept and that needs no quotes.
    ///
    /// # Errors
    /// When the length or a character is not allowed.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let letters_fit = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if letters_fit && name.len() <= Self::MAX_BYTES {
            Ok(Self(name.into()))
        } else {
            Err(NameError(name.to_owned()))
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

impl std::borrow::Borrow<str> for ChainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_tools_accept() {
        for good in ["KUBE-SERVICES", "KUBE-SVC-XPGD46QRK7WJZT7O", "INPUT", "a_b"] {
            assert!(ChainName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-KUBE", "!X", "a b", "a\nb", "KUBE-A-NAME-OF-TWENTY-NINE-CHA", "ä"] {
            assert!(ChainName::new(bad).is_err(), "{bad}");
        }
    }
}
