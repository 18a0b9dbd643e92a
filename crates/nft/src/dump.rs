//! Requests for what the kernel has, and its answers.

use std::collections::BTreeMap;
use std::fmt;

use crate::decode;
use crate::wire::{Attrs, HEADER_BYTES, Writer, attr, flag, kind};
use crate::{Family, Name, Ruleset};

/// Bytes of `struct nlmsghdr`.
const NLMSG_HEADER_BYTES: usize = 16;

/// A question to the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// The number of the ruleset's generation, which every commit in the network namespace raises.
    Generation,
    /// Whether the table exists; refused with ENOENT if not.
    Table(Family, &'a Name),
    /// The sets of a table.
    Sets(Family, &'a Name),
    /// The elements of a set of a table.
    Elements(Family, &'a Name, &'a Name),
    /// The chains of all tables of the family: the kernel can't tell tables apart here, [`RulesetReader`] does.
    Chains(Family),
    /// The rules of a table.
    Rules(Family, &'a Name),
}

impl Request<'_> {
    /// The message to send.
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        let (kind, flags, family) = match self {
            Self::Generation => (kind::GET_GENERATION, 0, 0),
            Self::Table(family, _) => (kind::GET_TABLE, 0, family.nfproto()),
            Self::Sets(family, _) => (kind::GET_SET, flag::DUMP, family.nfproto()),
            Self::Elements(family, ..) => (kind::GET_ELEMENT, flag::DUMP, family.nfproto()),
            Self::Chains(family) => (kind::GET_CHAIN, flag::DUMP, family.nfproto()),
            Self::Rules(family, _) => (kind::GET_RULE, flag::DUMP, family.nfproto()),
        };
        let mut out = Writer::default();
        let start = out.begin_message(kind, flag::REQUEST | flags, seq, family, 0);
        match self {
            Self::Generation | Self::Chains(_) => {}
            Self::Table(_, table) => out.text(attr::TABLE_NAME, table),
            Self::Sets(_, table) => out.text(attr::SET_TABLE, table),
            Self::Rules(_, table) => out.text(attr::RULE_TABLE, table),
            Self::Elements(_, table, set) => {
                out.text(attr::ELEM_LIST_TABLE, table);
                out.text(attr::ELEM_LIST_SET, set);
            }
        }
        out.end_message(start);
        out.out
    }

    /// Whether the answer is several messages that end with [`Message::is_done`], or just one.
    pub const fn is_dump(&self) -> bool {
        !matches!(self, Self::Generation | Self::Table(..))
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation => f.write_str("reading of the generation"),
            Self::Table(family, table) => write!(f, "reading of table {family} {table}"),
            Self::Sets(family, table) => write!(f, "reading of the sets of table {family} {table}"),
            Self::Elements(family, table, set) => write!(f, "reading of set {set} of table {family} {table}"),
            Self::Chains(family) => write!(f, "reading of the chains of family {family}"),
            Self::Rules(family, table) => write!(f, "reading of the rules of table {family} {table}"),
        }
    }
}

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    kind: u16,
    flags: u16,
    /// Sequence number of the request or batch message that this answers.
    pub seq: u32,
    payload: &'a [u8],
}

/// What the kernel says to a message that it refuses or acknowledges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Number of the error; 0 acknowledges.
    pub errno: i32,
    /// Where in the message the fault is, in bytes from its start.
    pub offset: Option<usize>,
    /// Explanation in words.
    pub message: Option<String>,
}

/// Splits what was received into messages; ends where the rest is no message.
pub fn messages(received: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let header: &[u8; NLMSG_HEADER_BYTES] = rest.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = rest.get(NLMSG_HEADER_BYTES..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    })
}

impl<'a> Message<'a> {
    /// The end of a dump.
    pub const fn is_done(&self) -> bool {
        self.kind == kind::DONE
    }

    /// The dump was disturbed by a change and may be inconsistent.
    pub const fn is_interrupted(&self) -> bool {
        self.flags & flag::DUMP_INTR != 0
    }

    /// A refusal or acknowledgement, or the error that ended a dump.
    pub fn ack(&self) -> Option<Ack> {
        let error = i32::from_ne_bytes(*self.payload.first_chunk()?);
        match self.kind {
            kind::ERROR => Some(self.explained(error.checked_neg()?)),
            kind::DONE if error < 0 => Some(Ack { errno: error.checked_neg()?, offset: None, message: None }),
            _ => None,
        }
    }

    /// The generation, in the answer to [`Request::Generation`].
    pub fn generation(&self) -> Option<u32> {
        (self.kind == kind::NEW_GENERATION).then(|| self.attrs()?.u32(attr::GENERATION_ID))?
    }

    /// Behind the error number comes the header of the request, then (unless capped) its payload, then explanations.
    fn explained(&self, errno: i32) -> Ack {
        let request = self.payload.get(4..).unwrap_or_default();
        let request_len = match request.first_chunk() {
            Some(len) if self.flags & flag::CAPPED == 0 => u32::from_ne_bytes(*len) as usize,
            _ => NLMSG_HEADER_BYTES,
        };
        let has_explanation = self.flags & flag::ACK_TLVS != 0;
        let tail =
            request.get(request_len.next_multiple_of(4)..).filter(|_| has_explanation).unwrap_or_default();
        let attrs = Attrs::new(tail);
        // Unlike nf_tables' own integers this one is in host byte order.
        let offset =
            attrs.find(attr::ERROR_OFFSET).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        Ack {
            errno,
            offset: offset.and_then(|offset| usize::try_from(offset).ok()),
            message: attrs.text(attr::ERROR_MESSAGE).map(str::to_owned),
        }
    }

    /// The attributes behind `struct nfgenmsg`.
    fn attrs(&self) -> Option<Attrs<'a>> {
        self.payload.get(HEADER_BYTES - NLMSG_HEADER_BYTES..).map(Attrs::new)
    }
}

/// Collects one table from the answers to the requests about it.
#[derive(Debug)]
pub struct RulesetReader<'a> {
    family: Family,
    table: &'a Name,
    ruleset: Ruleset,
    counts: BTreeMap<Name, usize>,
}

/// One table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The table, with elements in the order of their keys.
    pub ruleset: Ruleset,
    /// The kernel told the number of elements of each set, and that many were read.
    ///
    /// Kernels before 6.17 or so don't tell. It matters because a dump of a hash table that is being resized, which
    /// goes on for a while after many elements were added, leaves elements out and does not say so.
    pub counted: bool,
}

impl<'a> RulesetReader<'a> {
    /// Nothing collected yet.
    pub fn new(family: Family, table: &'a Name) -> Self {
        Self { family, table, ruleset: Ruleset::default(), counts: BTreeMap::new() }
    }

    /// Takes in one message; what is about another table or unknown is left out. Chains are to be read before rules
    /// and sets before elements.
    pub fn add(&mut self, message: &Message<'_>) {
        let Some(attrs) = message.attrs() else { return };
        // Every object's attribute 1 is the table that it is in, or its own name if it is a table.
        let is_ours = attrs.text(attr::TABLE_NAME) == Some(self.table.as_str());
        let family = message.payload.first();
        if !is_ours || family != Some(&self.family.nfproto()) {
            return;
        }
        match message.kind {
            kind::NEW_TABLE => self.ruleset.dormant = decode::is_dormant(&attrs),
            kind::NEW_SET => {
                if let Some((name, state)) = decode::set(&attrs, self.family) {
                    if let Some(count) =
                        attrs.u32(attr::SET_COUNT).and_then(|count| usize::try_from(count).ok())
                    {
                        self.counts.insert(name.clone(), count);
                    }
                    self.ruleset.sets.insert(name, state);
                }
            }
            kind::NEW_ELEMENT => {
                let set = attrs.text(attr::ELEM_LIST_SET).and_then(|name| self.ruleset.sets.get_mut(name));
                if let Some(state) = set {
                    decode::elements(&attrs, &mut state.elements);
                }
            }
            kind::NEW_CHAIN => {
                if let Some((name, state)) = decode::chain(&attrs) {
                    self.ruleset.chains.insert(name, state);
                }
            }
            kind::NEW_RULE => {
                let chain = attrs.text(attr::RULE_CHAIN).and_then(|name| self.ruleset.chains.get_mut(name));
                if let Some(state) = chain {
                    state.rules.push(decode::rule(&attrs));
                }
            }
            _ => {}
        }
    }

    /// The sets whose elements are still to be asked for.
    pub fn sets(&self) -> Vec<Name> {
        self.ruleset
            .sets
            .values()
            .filter(|state| !state.foreign)
            .map(|state| state.set.name.clone())
            .collect()
    }

    /// What was collected.
    pub fn finish(mut self) -> Reading {
        let mut counted = true;
        for (name, state) in self.ruleset.sets.iter_mut().filter(|(_, state)| !state.foreign) {
            state.elements.sort_unstable();
            // A hash table that is resized can also yield an element twice.
            state.elements.dedup();
            // The kernel does not count the catch-all element, which has an empty key and sorts first.
            let catch_all = usize::from(state.elements.first().is_some_and(|element| element.key.is_empty()));
            counted &= self.counts.get(name) == Some(&(state.elements.len() - catch_all));
        }
        Reading { ruleset: self.ruleset, counted }
    }
}
