//! Messages about elements: many to a message, sized before they are written, nothing allocated for each.

use std::ops::Range;

use crate::encode::Encoder;
use crate::encode::exprs::put_verdict;
use crate::wire::{ATTR_BYTES, HEADER_BYTES, MAX_ATTR_BYTES, Writer, attr, flag, kind};
use crate::{Bytes, Data, Element, Family, Set, SetData, SetKind, Verdict, udata};

/// `NFT_SET_ELEM_INTERVAL_END`
pub(crate) const INTERVAL_END: u32 = 1;
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
                    put_end(out, &element.key, lengths);
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
                    put_end(out, key, lengths);
                }
            });
        });
    }
}

/// The elements attribute with nothing but keys, of a set of [`SetKind::Exact`].
pub(crate) fn put_keys(out: &mut Writer, set: &Set, keys: &[Bytes], family: Family) {
    let lengths = Lengths::new(set, family);
    out.nest(attr::ELEM_LIST_ELEMENTS, |out| {
        for key in keys {
            out.nest(attr::LIST_ELEM, |out| put_key(out, key, &lengths));
        }
    });
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

/// How a set's keys say what they cover.
#[derive(Clone, Copy, Debug)]
enum Cover {
    /// Themselves.
    Exact,
    /// A network, of which the end is in the element.
    KeyEnd(Family),
    /// A network, of which the end is the next element.
    EndElement(Family),
}

/// Lengths of keys and data in the messages about one set.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    key: usize,
    data: usize,
    cover: Cover,
}

impl Lengths {
    fn new(set: &Set, family: Family) -> Self {
        let data = match set.data {
            SetData::Fields(_) => set.data_wire_bytes(family),
            SetData::None | SetData::Verdict => 0,
        };
        let cover = match set.kind {
            SetKind::Exact | SetKind::Learnt { .. } | SetKind::Leased { .. } => Cover::Exact,
            SetKind::Networks if set.has_key_ends() => Cover::KeyEnd(family),
            SetKind::Networks => Cover::EndElement(family),
        };
        Self { key: set.key_wire_bytes(family), data, cover }
    }

    /// Bytes of an element that is only a key: three headers and the value. At most, if it covers a network: the end
    /// is another key, or another element with its flags, or user data which say that there is none.
    fn key(&self) -> usize {
        let value = 2 * ATTR_BYTES + self.key.next_multiple_of(4);
        ATTR_BYTES
            + match self.cover {
                Cover::Exact => value,
                Cover::KeyEnd(_) => 2 * value,
                Cover::EndElement(_) => {
                    let user_data = ATTR_BYTES + (udata::OPEN_INTERVAL_BYTES + 2).next_multiple_of(4);
                    value + (ATTR_BYTES + FLAGS_BYTES + value).max(user_data)
                }
            }
    }

    /// The key of the element that ends the network; none if it goes up to the highest address.
    fn end_element(&self, key: &Bytes) -> Option<Bytes> {
        let Cover::EndElement(family) = self.cover else { return None };
        (!key.is_empty()).then(|| key.last_of_network(family).next_addr(family))?
    }

    /// Whether the network goes up to the highest address and nothing ends it.
    fn is_open(&self, key: &Bytes) -> bool {
        matches!(self.cover, Cover::EndElement(_)) && !key.is_empty() && self.end_element(key).is_none()
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

/// An attribute of an integer.
const FLAGS_BYTES: usize = ATTR_BYTES + 4;

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
    let (comment, open) = (element.comment.as_deref(), lengths.is_open(&element.key));
    if comment.is_some() || open {
        out.built(attr::ELEM_USERDATA, |bytes| {
            if let Some(comment) = comment {
                udata::put_comment(bytes, comment);
            }
            if open {
                udata::put_open_interval(bytes);
            }
        });
    }
}

/// An empty key is the catch-all element, which nobody here adds but a stranger may have.
fn put_key(out: &mut Writer, key: &Bytes, lengths: &Lengths) {
    if key.is_empty() {
        return out.u32(attr::ELEM_FLAGS, CATCH_ALL);
    }
    out.nest(attr::ELEM_KEY, |out| out.bytes(attr::DATA_VALUE, start(key, lengths.key)));
    if let Cover::KeyEnd(family) = lengths.cover {
        let last = key.last_of_network(family);
        out.nest(attr::ELEM_KEY_END, |out| out.bytes(attr::DATA_VALUE, start(&last, lengths.key)));
    }
}

/// The element behind one that begins a network, with the first address that is not in it.
fn put_end(out: &mut Writer, key: &Bytes, lengths: &Lengths) {
    let Some(end) = lengths.end_element(key) else { return };
    out.nest(attr::LIST_ELEM, |out| {
        out.u32(attr::ELEM_FLAGS, INTERVAL_END);
        out.nest(attr::ELEM_KEY, |out| out.bytes(attr::DATA_VALUE, start(&end, lengths.key)));
    });
}

/// A lone field goes without its padding. Bytes of a length that the set does not have go as they are: the kernel
/// refuses them.
fn start(bytes: &Bytes, len: usize) -> &[u8] {
    bytes.as_slice().get(..len).unwrap_or(bytes.as_slice())
}
