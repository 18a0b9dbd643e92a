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
    /// `fib saddr type local`: the source is an address of this host.
    SourceIsLocal,
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
    /// `meta priority set ip saddr . ip daddr . meta l4proto . th dport map @affinity`: keeps what a map yields where
    /// the next lookup can have it as [`Field::Priority`]; goes on with the next rule when the map lacks the key.
    ///
    /// It goes the way of the packet because that is the only way that nft can print: a lookup which feeds another one
    /// directly makes `nft list ruleset` 1.0.6 abort. [`Statement::ClearPriority`] removes it.
    SetPriority {
        /// The key's fields.
        key: Vec<Field>,
        /// A map to [`Field::Priority`].
        map: Name,
    },
    /// `meta priority set meta priority & f:ffff`: clears the other bits of the packet's priority.
    MaskPriority(u32),
    /// `meta priority & c000:0 == 4000:0`
    PriorityBitsAre {
        /// The bits that count.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// `meta priority set none`: 0, as for a packet of which nobody said anything.
    ClearPriority,
    /// `update @affinity { ip saddr . ip daddr . meta l4proto . th dport timeout 3h : meta priority }`: remembers data
    /// under a key, or sets the timeout of what is remembered anew **without changing the data**. Goes on with the
    /// next rule, not the next statement, when the map is full.
    ///
    /// nft 1.0.6 prints this with any key, but aborts when it has to parse it with one of more than 16 bytes.
    Learn {
        /// The map, of [`SetKind::Learnt`](crate::SetKind).
        map: Name,
        /// The key's fields.
        key: Vec<Field>,
        /// The data's fields.
        data: Vec<Field>,
        /// Seconds until it is forgotten; must not be 0.
        timeout_secs: u32,
    },
    /// `delete @affinity { ip saddr . ip daddr . meta l4proto . th dport : meta priority }`: forgets a key if it is
    /// there. Both nft and the kernel want to be told data, which means nothing. What [`Statement::Learn`] says of
    /// parsing holds here too.
    Forget {
        /// The map, of [`SetKind::Learnt`](crate::SetKind).
        map: Name,
        /// The key's fields.
        key: Vec<Field>,
        /// The data's fields.
        data: Vec<Field>,
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
