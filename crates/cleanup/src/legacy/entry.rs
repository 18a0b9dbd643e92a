//! One entry.

use netlink::Family;

use super::{ParseError, read_text, read_u16, read_u32};
use crate::upstream::Jump;

/// Where things are in an entry's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes of the conditions on addresses, interfaces and protocol, from the start (`struct ipt_ip`).
    conditions: usize,
    /// Offset of the two lengths: to the target, and to the next entry.
    lengths: usize,
    /// Bytes of the whole header.
    header: usize,
}

impl Layout {
    pub(super) const fn of(family: Family) -> Self {
        match family {
            Family::Ip => Self { conditions: 84, lengths: 88, header: 112 },
            Family::Ip6 => Self { conditions: 136, lengths: 140, header: 168 },
        }
    }
}

/// Header of a match or target: length, name, revision (`struct xt_entry_match`).
const EXTENSION_HEADER: usize = 32;
const EXTENSION_NAME: std::ops::Range<usize> = 2..31;
const EXTENSION_REVISION: usize = 31;
/// The target that begins a chain.
const ERROR_TARGET: &str = "ERROR";
/// The target that holds a verdict or the offset of a jump.
const STANDARD_TARGET: &str = "";

/// What an entry's target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// Beginning of a chain.
    ChainStart(&'a str),
    /// Accept, drop, return and the like: a negative number.
    Verdict,
    /// Offset of the entry to go on with.
    Jump(usize),
    /// Anything else.
    Extension,
}

/// One entry, where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    family: Family,
    /// Number in the table.
    pub(super) idx: usize,
    /// Offset in the table.
    pub(super) offset: usize,
    /// All of it, to the next entry.
    pub(super) bytes: &'a [u8],
    target_offset: usize,
    pub(super) target: Target<'a>,
}

impl<'a> Entry<'a> {
    /// Reads the entry at an offset.
    pub(super) fn read(
        family: Family,
        table: &'a [u8],
        idx: usize,
        offset: usize,
    ) -> Result<Self, ParseError> {
        let layout = Layout::of(family);
        let error = |what| ParseError { what, offset };
        let rest = table.get(offset..).unwrap_or_default();
        let length = |at| read_u16(rest, layout.lengths + at).map(usize::from).ok_or(error("a cut entry"));
        let (target_offset, next) = (length(0)?, length(2)?);
        let bytes = rest.get(..next).ok_or(error("an entry that exceeds the table"))?;
        if target_offset < layout.header {
            return Err(error("a target inside its entry's header"));
        }
        let target = target(bytes.get(target_offset..).unwrap_or_default()).ok_or(error("a cut target"))?;
        Ok(Self { family, idx, offset, bytes, target_offset, target })
    }

    /// Offset of the next entry.
    pub(super) fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// Where in the entry the offset of a jump is.
    pub(super) fn jump_at(&self) -> usize {
        self.target_offset + EXTENSION_HEADER
    }

    /// The comment, and whether only new flows match, if the rule does nothing else than jump.
    pub(super) fn plain_jump(&self, from: &'a str, to: &'a str) -> Option<Jump<'a>> {
        let layout = Layout::of(self.family);
        // The flag that makes a jump a goto is among the conditions.
        if self.bytes.get(..layout.conditions)?.iter().any(|byte| *byte != 0) {
            return None;
        }
        let (mut comment, mut only_new) = (None, false);
        let mut rest = self.bytes.get(layout.header..self.target_offset)?;
        while !rest.is_empty() {
            let len = usize::from(read_u16(rest, 0)?);
            let data = rest.get(EXTENSION_HEADER..len)?;
            let (name, revision) = (read_text(&rest[EXTENSION_NAME])?, rest[EXTENSION_REVISION]);
            match name {
                "comment" if comment.is_none() => comment = Some(read_text(data)?),
                "conntrack" if !only_new && is_state_new(revision, data) => only_new = true,
                _ => return None,
            }
            rest = &rest[len..];
        }
        Some(Jump { from, to, comment: comment?, only_new })
    }
}

fn target(bytes: &[u8]) -> Option<Target<'_>> {
    let data = bytes.get(EXTENSION_HEADER..)?;
    Some(match read_text(bytes.get(EXTENSION_NAME)?)? {
        ERROR_TARGET => Target::ChainStart(read_text(data)?),
        STANDARD_TARGET => {
            usize::try_from(read_u32(data, 0)?.cast_signed()).map_or(Target::Verdict, Target::Jump)
        }
        _ => Target::Extension,
    })
}

/// `-m conntrack --ctstate NEW` and nothing else (`struct xt_conntrack_mtinfo1` to 3 of `linux/netfilter/xt_conntrack.h`).
pub(crate) fn is_state_new(revision: u8, data: &[u8]) -> bool {
    /// What is behind the addresses, the expiry and the ports.
    const MATCH_FLAGS: usize = 146;
    const INVERT_FLAGS: usize = 148;
    const STATE_MASK: usize = 150;
    /// `XT_CONNTRACK_STATE`
    const STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_BIT(IP_CT_NEW)`
    const NEW: u16 = 8;
    let states = match revision {
        1 => data.get(STATE_MASK).copied().map(u16::from),
        2 | 3 => read_u16(data, STATE_MASK),
        _ => None,
    };
    read_u16(data, MATCH_FLAGS) == Some(STATE)
        && read_u16(data, INVERT_FLAGS) == Some(0)
        && states == Some(NEW)
}
