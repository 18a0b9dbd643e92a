//! The PROXY protocol, by which endpoints learn whose a connection is.

use serde::{Deserialize, Serialize};

use crate::text::{InvalidText, Result, quoted};

/// A version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyProtocol {
    /// Reads `v1` or `v2`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            other => Err(InvalidText(format!("{} is no version of it; there are v1 and v2", quoted(other)))),
        }
    }

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::refused;

    #[test]
    fn versions_are_read() {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            assert_eq!(ProxyProtocol::parse(version.as_str()), Ok(version));
        }
        refused(ProxyProtocol::parse("2"), r#""2" is no version of it; there are v1 and v2"#);
    }
}
