//! Messages about elements: many to a message, sized before they are written, nothing allocated for each.

use std::ops::Range;

use crate::encode::Encoder;
use crate::encode::exprs::put_verdict;
use crate::wire::{ATTR_BYTES, HEADER_BYTES, MAX_ATTR_BYTES, Writer, attr, flag, kind};
use crate::{Bytes, Data, Element, Family, Set, SetData, Verdict, udata};

/// `NFT_SET_ELEM_CATCHALL`
const CATCH_ALL: u32 = 2;

/// What happens to a list of elements.
#[derive(Debug)]
pub(super) enum ElementChange<'a> {
    Add(&'a [Element]),
    Replace(&'a [Element]),
    Delete(&'a [Bytes]),
}

impl ElementChange<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Add(elements) | Self::Replace(elements) => elements.len(),
            Self::Delete(keys) => keys.len(),
        }
    }

    /// Bytes of one element in the deleting and in the adding message.
    fn cost(&self, i: usize, lengths: &Lengths) -> (usize, usize) {
        match self {
            Self::Add(elements) => (0, lengths.element(&elements[i])),
            Self::Replace(elements) => (lengths.key(), lengths.element(&elements[i])),
            Self::Delete(_) => (lengths.key(), 0),
        }
    }
}

impl Encoder<'_> {
    /// Encodes elements from the cursor on as far as they fit; false if some are left.
    pub(super) fn put_elements(&mut self, set: &Set, change: &ElementChange<'_>, limit: usize) -> bool {
        let lengths = Lengths::new(set, self.tx.family);
        let framing = HEADER_BYTES + 4 * ATTR_BYTES + self.tx.table.len() + set.name.len() + 8;
        while self.cursor.element < change.len() {
            let first = self.cursor.element;
            let room = limit.saturating_sub(self.out.out.len() + 2 * framing);
            let mut count = fitting(change, first, room, &lengths);
            if count == 0 {
                if !self.messages.is_empty() {
                    return false;
                }
                count = 1;
            }
            self.put_chunk(set, change, first..first + count, &lengths);
            self.cursor.element += count;
        }
        true
    }

    fn put_chunk(&mut self, set: &Set, change: &ElementChange<'_>, range: Range<usize>, lengths: &Lengths) {
        match change {
            ElementChange::Add(elements) => self.put_new(set, &elements[range], lengths),
            ElementChange::Replace(elements) => {
                let elements = &elements[range];
                self.put_deleted(set, elements.iter().map(|element| &element.key), lengths);
                self.put_new(set, elements, lengths);
            }
            ElementChange::Delete(keys) => self.put_deleted(set, keys[range].iter(), lengths),
        }
    }

    fn put_new(&mut self, set: &Set, elements: &[Element], lengths: &Lengths) {
        self.put_message(kind::NEW_ELEMENT, flag::REQUEST | flag::CREATE, attr::ELEM_LIST_TABLE, |out| {
            out.text(attr::ELEM_LIST_SET, &set.name);
            out.nest(attr::ELEM_LIST_ELEMENTS, |out| {
                for element in elements {
                    out.nest(attr::LIST_ELEM, |out| put_element(out, element, lengths));
                }
            });
        });
    }

    fn put_deleted<'k>(&mut self, set: &Set, keys: impl Iterator<Item = &'k Bytes>, lengths: &Lengths) {
        self.put_message(kind::DEL_ELEMENT, flag::REQUEST, attr::ELEM_LIST_TABLE, |out| {
            out.text(attr::ELEM_LIST_SET, &set.name);
            out.nest(attr::ELEM_LIST_ELEMENTS, |out| {
                for key in keys {
                    out.nest(attr::LIST_ELEM, |out| put_key(out, key, lengths));
                }
            });
        });
    }
}

/// How many elements from `first` on fit into one message each way, and those messages into the room.
fn fitting(change: &ElementChange<'_>, first: usize, room: usize, lengths: &Lengths) -> usize {
    const NEST: usize = MAX_ATTR_BYTES - ATTR_BYTES;
    let (mut deleted, mut added) = (0, 0);
    (first..change.len())
        .take_while(|&i| {
            let (delete, add) = change.cost(i, lengths);
            deleted += delete;
            added += add;
            deleted <= NEST && added <= NEST && deleted + added <= room
        })
        .count()
}

/// Lengths of keys and data in the messages about one set.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    key: usize,
    data: usize,
}

impl Lengths {
    fn new(set: &Set, family: Family) -> Self {
        let data = match set.data {
            SetData::Fields(_) => set.data_wire_bytes(family),
            SetData::None | SetData::Verdict => 0,
        };
        Self { key: set.key_wire_bytes(family), data }
    }

    /// Bytes of an element that is only a key: three headers and the value.
    fn key(&self) -> usize {
        3 * ATTR_BYTES + self.key.next_multiple_of(4)
    }

    /// Bytes of an element with everything.
    fn element(&self, element: &Element) -> usize {
        let data = match &element.data {
            Data::None => 0,
            Data::Value(_) => 2 * ATTR_BYTES + self.data.next_multiple_of(4),
            Data::Verdict(verdict) => 2 * ATTR_BYTES + 8 + chain_bytes(verdict),
        };
        let comment = element
            .comment
            .as_deref()
            .map_or(0, |comment| ATTR_BYTES + udata::comment_bytes(comment).next_multiple_of(4));
        self.key() + data + comment
    }
}

fn chain_bytes(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Goto(chain) | Verdict::Jump(chain) => ATTR_BYTES + (chain.len() + 1).next_multiple_of(4),
        Verdict::Accept | Verdict::Drop | Verdict::Return => 0,
    }
}

fn put_element(out: &mut Writer, element: &Element, lengths: &Lengths) {
    put_key(out, &element.key, lengths);
    match &element.data {
        Data::None => {}
        Data::Value(value) => out.nest(attr::ELEM_DATA, |out| {
            out.bytes(attr::DATA_VALUE, start(value, lengths.data));
        }),
        Data::Verdict(verdict) => out.nest(attr::ELEM_DATA, |out| put_verdict(out, verdict)),
    }
    if let Some(comment) = element.comment.as_deref() {
        out.built(attr::ELEM_USERDATA, |bytes| udata::put_comment(bytes, comment));
    }
}

/// An empty key is the catch-all element, which nobody here adds but a stranger may have.
fn put_key(out: &mut Writer, key: &Bytes, lengths: &Lengths) {
    if key.is_empty() {
        return out.u32(attr::ELEM_FLAGS, CATCH_ALL);
    }
    out.nest(attr::ELEM_KEY, |out| out.bytes(attr::DATA_VALUE, start(key, lengths.key)));
}

/// A lone field goes without its padding. Bytes of a length that the set does not have go as they are: the kernel
/// refuses them.
fn start(bytes: &Bytes, len: usize) -> &[u8] {
    bytes.as_slice().get(..len).unwrap_or(bytes.as_slice())
}
