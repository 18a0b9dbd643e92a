//! Names of schedulers.

use std::fmt;

/// `IP_VS_SCHEDNAME_MAXLEN` of `linux/ip_vs.h`, less the final zero.
const MAX_BYTES: usize = 15;

/// Name of a scheduler, whether or not the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scheduler {
    /// Padded with zeros.
    bytes: [u8; MAX_BYTES],
}

/// A text that no scheduler can be called by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a scheduler: it takes 1 to {MAX_BYTES} characters, without blanks")]
pub struct SchedulerNameError(
    /// The text, cut to its first 64 characters.
    pub String,
);

impl Scheduler {
    /// Upstream's default: one after the other.
    pub const ROUND_ROBIN: Self = Self::known("rr");
    /// Maglev hashing.
    pub const MAGLEV: Self = Self::known("mh");
    /// By the client's address.
    pub const SOURCE_HASH: Self = Self::known("sh");

    /// Those that the kernel offers (`net/netfilter/ipvs/Kconfig` of Linux 6.12), as far as its modules are there. `twos` came
    /// with 5.13.
    pub const ALL: [Self; 14] = [
        Self::ROUND_ROBIN,
        Self::known("wrr"),
        Self::known("lc"),
        Self::known("wlc"),
        Self::known("fo"),
        Self::known("ovf"),
        Self::known("lblc"),
        Self::known("lblcr"),
        Self::known("dh"),
        Self::SOURCE_HASH,
        Self::MAGLEV,
        Self::known("sed"),
        Self::known("nq"),
        Self::known("twos"),
    ];

    const fn known(name: &str) -> Self {
        let (name, mut bytes) = (name.as_bytes(), [0; MAX_BYTES]);
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name[at];
            at += 1;
        }
        Self { bytes }
    }

    /// The scheduler of this name.
    ///
    /// # Errors
    /// The text is no possible name.
    pub fn new(name: &str) -> Result<Self, SchedulerNameError> {
        let fits = (1..=MAX_BYTES).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self::known(name)) } else { Err(SchedulerNameError(name.chars().take(64).collect())) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(MAX_BYTES);
        std::str::from_utf8(&self.bytes[..end]).unwrap_or_default()
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_or_refused() {
        for name in ["rr", "lblcr", "a-name-of-15-by"] {
            assert_eq!(Scheduler::new(name).unwrap().as_str(), name);
        }
        for bad in ["", "r r", "rr\n", "a-name-of-16-byt", "\u{e4}"] {
            assert_eq!(Scheduler::new(bad), Err(SchedulerNameError(bad.to_owned())));
        }
        assert_eq!(
            Scheduler::ALL.map(|scheduler| Scheduler::new(scheduler.as_str()).unwrap()),
            Scheduler::ALL
        );
    }
}
