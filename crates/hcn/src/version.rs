//! What a version of HNS can do.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of HNS, which says what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// Windows Server 2019 has 9, 2022 has 13.
    pub major: u32,
    /// Grows with updates.
    pub minor: u32,
}

/// Where HNS tells its version: a `GET` by the older interface, `HNSCall`, since HCN has no call for it.
pub const VERSION_PATH: &str = "/globals/version";

/// The answer of `HNSCall`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OldAnswer {
    /// Whether it was done.
    pub success: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// What was asked for.
    pub output: Value,
}

/// The answer is no version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It is not what `HNSCall` answers.
    #[error("the answer is no JSON of HNS")]
    Malformed(#[source] serde_json::Error),
    /// HNS refuses it.
    #[error("HNS refuses to tell its version: {0}")]
    Refused(String),
}

impl Version {
    /// Of Windows Server 2019 at first.
    pub const SERVER_2019: Self = Self::new(9, 3);
    /// Of Windows Server 2022 at first.
    pub const SERVER_2022: Self = Self::new(13, 2);
    /// The first that changes load balancers in place.
    pub const WITH_MODIFY: Self = Self::new(16, 0);

    /// A version.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From the answer to [`VERSION_PATH`].
    ///
    /// # Errors
    /// It is not one.
    pub fn from_answer(answer: &str) -> Result<Self, VersionError> {
        let answer: OldAnswer = serde_json::from_str(answer).map_err(VersionError::Malformed)?;
        if !answer.success {
            return Err(VersionError::Refused(answer.error));
        }
        serde_json::from_value(answer.output).map_err(VersionError::Malformed)
    }

    const fn at_least(self, major: u32, minor: u32) -> bool {
        self.major > major || self.major == major && self.minor >= minor
    }

    /// HCN v2 and remote subnets: below it, this program can't work.
    pub const fn is_supported(self) -> bool {
        self.at_least(9, 2)
    }

    /// Direct server return: replies do not come back through the load balancer.
    pub const fn has_dsr(self) -> bool {
        self.major == 9 && self.minor >= 3 || self.at_least(10, 2)
    }

    /// Load balancers of both families on one network; never on an overlay.
    pub const fn has_dual_stack(self) -> bool {
        self.at_least(11, 10)
    }

    /// Distribution by client. Earlier ones take the setting without effect.
    pub const fn has_affinity(self) -> bool {
        self.at_least(12, 0)
    }

    /// Load balancers can be changed in place. 15.4 takes the call and changes nothing.
    pub const fn has_modify(self) -> bool {
        self.major == 15 && self.minor >= 5 || self.at_least(16, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_begin_with_their_versions() {
        let v = Version::new;
        assert!(v(9, 2).is_supported() && !v(9, 1).is_supported() && !v(8, 9).is_supported());
        for (version, has) in
            [((9, 2), false), ((9, 3), true), ((10, 1), false), ((10, 2), true), ((13, 0), true)]
        {
            assert_eq!(v(version.0, version.1).has_dsr(), has, "{version:?}");
        }
        assert!(v(11, 10).has_dual_stack() && !v(11, 9).has_dual_stack() && v(12, 0).has_dual_stack());
        assert!(v(12, 0).has_affinity() && !v(11, 99).has_affinity());
        for (version, has) in [((15, 4), false), ((15, 5), true), ((16, 0), true), ((14, 9), false)] {
            assert_eq!(v(version.0, version.1).has_modify(), has, "{version:?}");
        }
    }

    #[test]
    fn the_older_interface_tells_the_version() {
        let answer = r#"{"Success":true,"Output":{"Major":13,"Minor":3}}"#;
        assert_eq!(Version::from_answer(answer).unwrap(), Version::new(13, 3));
        let refused = r#"{"Success":false,"Error":"no","Output":null}"#;
        assert!(matches!(Version::from_answer(refused), Err(VersionError::Refused(why)) if why == "no"));
        for bad in ["", "[]", r#"{"Success":true}"#, r#"{"Success":true,"Output":{"Major":"x"}}"#] {
            assert!(Version::from_answer(bad).is_err(), "{bad}");
        }
    }
}
