//! Sets, maps and their elements.

use crate::{Bytes, Family, Name};

/// What one field of a set key or of map data is. The kernel pads each field of a concatenation to 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Source address, `ip saddr` or `ip6 saddr`.
    SourceAddr,
    /// Destination address, `ip daddr` or `ip6 daddr`.
    DestAddr,
    /// Transport protocol number, `meta l4proto`.
    L4Proto,
    /// Destination port of whatever transport protocol, `th dport`.
    DestPort,
    /// A random number below `modulus`, `numgen random mod N`. In the declaration of a set the modulus only tells
    /// the reader an upper bound: a rule may draw from fewer.
    NumgenRandom {
        /// Numbers are 0 to this less one; must not be 0.
        modulus: u32,
    },
    /// The packet's priority, `meta priority`: a `u32` in host byte order, which nft prints as two halves in hex,
    /// `1a2b:3c4d`. What [`Statement::SetPriority`](crate::Statement) put there, a later lookup can use.
    Priority,
    /// Some bits of the packet's priority, `meta priority & 3ff0:0`, the others being 0. Only as the one field of a rule's
    /// key: nft 1.0.6 has no way to say it within a concatenation, and a set declares [`Field::Priority`].
    PriorityBits {
        /// The bits that count.
        mask: u32,
    },
}

impl Field {
    /// Bytes of the value without padding.
    pub const fn len_bytes(self, family: Family) -> usize {
        match self {
            Self::SourceAddr | Self::DestAddr => family.addr_len(),
            Self::L4Proto => 1,
            Self::DestPort => 2,
            Self::NumgenRandom { .. } | Self::Priority | Self::PriorityBits { .. } => 4,
        }
    }

    /// Bytes of the value with padding, as in [`Bytes`].
    pub const fn padded_bytes(self, family: Family) -> usize {
        self.len_bytes(family).next_multiple_of(4)
    }
}

/// What the elements of a set map to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetData {
    /// A plain set.
    None,
    /// A verdict map.
    Verdict,
    /// A map to values.
    Fields(Vec<Field>),
}

/// Which elements a set holds, and who puts them there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Single keys that we write.
    #[default]
    Exact,
    /// Networks that we write, `flags interval`: the last field of a key, which must be an address, is a network
    /// ([`Bytes::net`]).
    ///
    /// The kernel refuses (EEXIST) a network that overlaps another one of the same set with the same other fields,
    /// so whoever fills the set merges them first, and deletes before adding.
    Networks,
    /// Keys that rules write as packets pass ([`Statement::Learn`](crate::Statement)), each forgotten after a time:
    /// `flags dynamic,timeout`. Elements are not read from the kernel.
    Learnt {
        /// Most elements; must not be 0. What exceeds them is not remembered. Of [`DEFAULT_LEARNT_SIZE`] the kernel is
        /// told nothing, because it makes room for as many as it is told of from the beginning: 1 MiB for 65,536.
        size: u32,
    },
}

/// The size that the kernel gives a set which rules write and which has none (`nft_dynset_init` of
/// `net/netfilter/nft_dynset.c`), as soon as there is such a rule.
pub const DEFAULT_LEARNT_SIZE: u32 = 65_535;

/// Declaration of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// Name within the table.
    pub name: Name,
    /// The key's fields; one alone is allowed, none is not.
    pub key: Vec<Field>,
    /// What elements map to.
    pub data: SetData,
    /// Which elements it holds, and who puts them there.
    pub kind: SetKind,
    /// Each element counts the packets that a rule has looked it up for ([`crate::dump::Count`]), which is not part of what an
    /// element is: one that has counted is the same as one that has not.
    ///
    /// Elements of maps count too: since Linux 5.7 a lookup runs what is attached to the element that it finds
    /// (`nft_lookup_eval` of `net/netfilter/nft_lookup.c`).
    pub is_counted: bool,
    /// A note for people who list the ruleset; at most 128 bytes.
    pub comment: Option<Box<str>>,
}

impl Set {
    /// A declaration without comment, to be filled with single keys.
    pub fn new(name: Name, key: Vec<Field>, data: SetData) -> Self {
        Self { name, key, data, kind: SetKind::Exact, is_counted: false, comment: None }
    }

    /// A plain set without comment, to be filled with networks.
    pub fn networks(name: Name, key: Vec<Field>) -> Self {
        Self { kind: SetKind::Networks, ..Self::new(name, key, SetData::None) }
    }

    /// A map to values without comment, to be filled by rules with at most `size` elements.
    pub fn learnt(name: Name, key: Vec<Field>, data: Vec<Field>, size: u32) -> Self {
        Self { kind: SetKind::Learnt { size }, ..Self::new(name, key, SetData::Fields(data)) }
    }

    /// The same with elements that count.
    #[must_use]
    pub fn counted(self) -> Self {
        Self { is_counted: true, ..self }
    }

    /// nft's word for it: `set` or `map`.
    pub const fn keyword(&self) -> &'static str {
        match self.data {
            SetData::None => "set",
            SetData::Verdict | SetData::Fields(_) => "map",
        }
    }

    /// Whether each element is a range with an end of its own (of a concatenation), not two elements, one of which
    /// ends the range that the other begins. Only of [`SetKind::Networks`].
    pub(crate) const fn has_key_ends(&self) -> bool {
        self.key.len() > 1
    }

    /// Bytes of a key in [`Bytes`].
    pub fn key_bytes(&self, family: Family) -> usize {
        self.key.iter().map(|field| field.padded_bytes(family)).sum()
    }

    /// Bytes of a key in the kernel's message: a lone field is not padded, a concatenation is.
    pub(crate) fn key_wire_bytes(&self, family: Family) -> usize {
        wire_bytes(&self.key, family)
    }

    /// Bytes of the data in the kernel's message; none for verdicts, whose length nft leaves to the kernel.
    pub(crate) fn data_wire_bytes(&self, family: Family) -> usize {
        match &self.data {
            SetData::Fields(fields) => wire_bytes(fields, family),
            SetData::None | SetData::Verdict => 0,
        }
    }
}

fn wire_bytes(fields: &[Field], family: Family) -> usize {
    match fields {
        [field] => field.len_bytes(family),
        fields => fields.iter().map(|field| field.padded_bytes(family)).sum(),
    }
}

/// Where the evaluation of a packet goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Let the packet through this hook.
    Accept,
    /// Discard the packet.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To another chain, not to return.
    Goto(Name),
    /// To another chain, to return after it.
    Jump(Name),
}

/// What an element maps to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Element of a plain set. A map's element read back has this when its data is nothing that this crate writes.
    None,
    /// Element of a map to values.
    Value(Bytes),
    /// Element of a verdict map.
    Verdict(Verdict),
}

/// Element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Unique within the set; of a set of networks, the key's last field is one.
    pub key: Bytes,
    /// What the key maps to.
    pub data: Data,
    /// A note for people who list the ruleset; at most 128 bytes, what exceeds them is cut.
    pub comment: Option<Box<str>>,
}
