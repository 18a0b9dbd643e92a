//! Which programs there are, and what they can do.

use std::fmt;
use std::time::Duration;

use iptables::IptablesError;
use model::IpFamily;

use super::process::{self, Program};

/// The programs of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// What their version is.
    pub version: Version,
    pub(super) list: Program,
    pub(super) save: Program,
    pub(super) restore: Program,
}

/// What `iptables --version` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Which kernel interface is used.
    pub flavour: Flavour,
    /// Major, minor, patch.
    pub number: [u16; 3],
}

/// Which kernel interface iptables uses. Rules of the one are not seen by the other, but both work on packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The old one, with tables of its own.
    Legacy,
    /// Tables of nftables.
    Nft,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.number;
        write!(f, "{major}.{minor}.{patch} ({})", self.flavour)
    }
}

/// How long the lock of the tables is waited for, in seconds (`WaitSecondsValue` in `pkg/util/iptables/iptables.go`).
const WAIT: [&str; 2] = ["-w", "5"];
/// The first version whose `iptables-restore` waits for the lock, and that knows `MASQUERADE --random-fully`.
const OLDEST: [u16; 3] = [1, 6, 2];
/// A program that only looks takes no longer than this.
const LIMIT: Duration = Duration::from_secs(30);

impl Programs {
    /// Finds the programs of a family and sees that they work, as [`Programs::named`].
    ///
    /// Where both flavours are there by their own names, it is the one in which the kubelet has left its mark; else the one that
    /// is called `iptables`.
    ///
    /// # Errors
    /// As [`Programs::named`].
    pub fn find(family: IpFamily) -> Result<Self, IptablesError> {
        let (name, tables) = match family {
            IpFamily::V4 => ("iptables", "/proc/thread-self/net/ip_tables_names"),
            IpFamily::V6 => ("ip6tables", "/proc/thread-self/net/ip6_tables_names"),
        };
        let (nft, legacy) = (format!("{name}-nft"), format!("{name}-legacy"));
        // Looking at a legacy table makes it, so only at one that is there.
        let has_legacy_table = || std::fs::read_to_string(tables).is_ok_and(|names| names.contains("mangle"));
        if is_marked(&nft) {
            Self::named(&nft)
        } else if has_legacy_table() && is_marked(&legacy) {
            Self::named(&legacy)
        } else {
            Self::named(name)
        }
    }

    /// The programs whose names begin so, such as `ip6tables-nft`: they have to be there, not be too old, and the process must
    /// be allowed to list the kernel's table.
    ///
    /// # Errors
    /// Says which of that is not so.
    pub fn named(name: &str) -> Result<Self, IptablesError> {
        let output = process::run(&Program::new(name, &["--version"]), &[], None, LIMIT)?;
        let unsupported = |message| IptablesError::Unsupported { program: name.to_owned(), message };
        let version = Version::parse(&output)
            .ok_or_else(|| unsupported(format!("its version is not understood: {output:?}")))?;
        if version.number < OLDEST {
            return Err(unsupported(format!("version {version} is older than 1.6.2")));
        }
        let list = Program::new(name, &WAIT);
        process::run(&list, &["-t", "nat", "-S", "POSTROUTING"], None, LIMIT)?;
        Ok(Self {
            version,
            list,
            save: Program::new(&format!("{name}-save"), &[]),
            restore: Program::new(&format!("{name}-restore"), &WAIT),
        })
    }
}

/// Chains that the kubelet makes in the flavour that the node uses (KEP-3178).
const MARKS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

fn is_marked(name: &str) -> bool {
    let save = Program::new(&format!("{name}-save"), &["-t", "mangle"]);
    let listing = process::run(&save, &[], None, LIMIT);
    listing.is_ok_and(|text| MARKS.iter().any(|mark| text.contains(mark)))
}

impl Version {
    /// Reads `iptables v1.8.9 (nf_tables)`. Before 1.8 there was one flavour only, and it had no name.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.trim().split_once(" v")?;
        let number = rest.split(' ').next()?;
        let mut parts = number.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        let mut part = || parts.next().unwrap_or(Some(0));
        let number = [part()?, part()?, part()?];
        let flavour = if rest.contains("(nf_tables)") { Flavour::Nft } else { Flavour::Legacy };
        Some(Self { flavour, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(Version::parse(text).map(|version| version.to_string()).as_deref(), expected);
    }

    #[test]
    fn versions_are_read() {
        check("iptables v1.8.9 (nf_tables)\n", Some("1.8.9 (nft)"));
        check("ip6tables v1.8.9 (legacy)\n", Some("1.8.9 (legacy)"));
        check("iptables v1.6.1\n", Some("1.6.1 (legacy)"));
        check("iptables v1.8\n", Some("1.8.0 (legacy)"));
        check("BusyBox v1.36.1 () multi-call binary\n", Some("1.36.1 (legacy)"));
        check("iptables\n", None);
        check("iptables version unknown\n", None);
    }
}
