//! What a rule says, in nft's terms.

use std::net::IpAddr;

use crate::{Field, Name};

/// Which address of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddrField {
    /// `saddr`
    Source,
    /// `daddr`
    Dest,
}

/// One statement of a rule. Each prints as `nft list ruleset` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `ip daddr . meta l4proto . th dport vmap @service-ips`: a verdict looked up; goes on when there is none.
    Vmap {
        /// The key's fields.
        key: Vec<Field>,
        /// The verdict map.
        map: Name,
    },
    /// `ip saddr . ip daddr @hairpin`
    InSet {
        /// The key's fields.
        key: Vec<Field>,
        /// The set.
        set: Name,
        /// `!=`: matches when the key is not in the set.
        negate: bool,
    },
    /// `ip saddr != 10.244.0.0/16`
    AddrMatch {
        /// Which address.
        field: AddrField,
        /// Network and prefix length in bits; bits behind the prefix are ignored. The address must be of the
        /// table's family.
        net: (IpAddr, u8),
        /// `!=`
        negate: bool,
    },
    /// `iifname "cni0"`, `iifname "veth*"`
    IfnameMatch {
        /// At most 15 bytes, without the asterisk.
        name: String,
        /// Matches every interface whose name starts with `name`.
        prefix: bool,
        /// `!=`
        negate: bool,
    },
    /// `meta l4proto tcp`
    L4Proto(u8),
    /// `fib daddr type local`: the destination is an address of this host.
    DestIsLocal,
    /// `ct state new`
    CtStateNew,
    /// `ct status dnat`: the connection's destination was translated.
    CtStatusDnat,
    /// `meta mark & 0x00004000 != 0x00000000`
    MarkBitSet {
        /// The mask; matches when any of its bits is set.
        bit: u32,
        /// `==`: matches when none of the bits is set.
        negate: bool,
    },
    /// `meta mark set meta mark | 0x00004000`
    SetMarkBit(u32),
    /// `meta mark set meta mark ^ 0x00004000`
    XorMark(u32),
    /// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints`
    ///
    /// A key that the map lacks ends the rule, not the chain. The transport protocol need not be matched before:
    /// it is part of the key.
    DnatMap {
        /// The key's fields.
        key: Vec<Field>,
        /// A map to address and port.
        map: Name,
    },
    /// `masquerade fully-random`
    MasqueradeFullyRandom,
    /// `reject`: with an ICMP or `ICMPv6` port unreachable.
    Reject,
    /// `drop`
    Drop,
    /// `accept`
    Accept,
    /// `return`
    Return,
    /// `goto chain`
    Goto(Name),
    /// `jump chain`
    Jump(Name),
}
