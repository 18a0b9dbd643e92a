//! Tables of iptables-legacy, as the kernel gives and takes them: one block of bytes for a whole table.
//!
//! The block is a sequence of entries. An entry is a header (`struct ipt_entry` or `struct ip6t_entry`), matches and a
//! target. A chain is a run of entries: a built-in one begins at its hook's entry point and ends with its policy, another
//! begins with an entry whose target is `ERROR` and that has the chain's name, and ends with a `RETURN`. A jump holds the
//! offset of the first entry of its chain behind the name. So taking out an entry moves all that follows, and the offsets
//! are computed anew; everything else of a rule is kept byte for byte. (libiptc of iptables works alike.)
//!
//! Layouts are those of 64-bit systems: `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`,
//! `linux/netfilter/x_tables.h`.

mod edit;
mod entry;
mod parse;
#[cfg(test)]
mod tests;

use netlink::Family;

pub use edit::{Edited, without_upstream};
pub(crate) use entry::is_state_new;
pub use parse::{Chain, Rules, parse};

/// Number of hooks (`NF_INET_NUMHOOKS`).
const HOOKS: usize = 5;
/// Names of the built-in chains by number of the hook.
const HOOK_NAMES: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Bytes of a table's name (`XT_TABLE_MAXNAMELEN`).
const TABLE_NAME_BYTES: usize = 32;

/// What the kernel tells of a table besides its entries (`struct ipt_getinfo`, which IPv6 shares).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bit N: hook N has a chain in this table.
    valid_hooks: u32,
    /// Offset of each hook's first entry.
    hook_entry: [u32; HOOKS],
    /// Offset of each hook's policy.
    underflow: [u32; HOOKS],
    /// Number of entries.
    pub num_entries: u32,
    /// Bytes of all entries.
    pub size: u32,
}

impl Info {
    /// Size of the structure.
    pub const BYTES: usize = TABLE_NAME_BYTES + 4 + 2 * 4 * HOOKS + 4 + 4;

    /// Reads the structure.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |idx: usize| read_u32(bytes, TABLE_NAME_BYTES + 4 * idx).unwrap_or_default();
        Self {
            valid_hooks: word(0),
            hook_entry: std::array::from_fn(|hook| word(1 + hook)),
            underflow: std::array::from_fn(|hook| word(1 + HOOKS + hook)),
            num_entries: word(1 + 2 * HOOKS),
            size: word(2 + 2 * HOOKS),
        }
    }
}

/// Number of the hook of FORWARD.
const FORWARD: usize = 2;

/// Whether chain FORWARD of a table drops what no rule of it accepts; `None` if it has no such chain, or can't be understood.
pub fn forward_drops(family: Family, info: &Info, table: &[u8]) -> Option<bool> {
    /// `-NF_DROP - 1`
    const DROP: i32 = -1;
    let has_chain = info.valid_hooks & 1 << FORWARD != 0;
    let offset = usize::try_from(info.underflow[FORWARD]).ok().filter(|_| has_chain)?;
    let policy = entry::Entry::read(family, table, 0, offset).ok()?;
    let verdict = read_u32(policy.bytes, policy.jump_at())?.cast_signed();
    (policy.target == entry::Target::Verdict).then_some(verdict == DROP)
}

/// A table that can't be understood. It is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table can't be understood: {what} at byte {offset}")]
pub struct ParseError {
    what: &'static str,
    offset: usize,
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Text up to the first zero.
fn read_text(bytes: &[u8]) -> Option<&str> {
    netlink::text(bytes)
}
