//! The language in which [`tables`](super::tables) describes API types, enough to write them as JSON and as
//! Kubernetes protobuf.
//!
//! Kubernetes' protobuf is proto2 whose optional markers do not tell what is written: Go values (not
//! pointers) are always written, even when they are empty, and pointers only when they are set. JSON omits
//! empty values unless the type says otherwise. Both facts are part of a field here.

/// A message type.
#[derive(Debug)]
pub(super) struct Message {
    /// Fields in the order in which JSON writes them.
    pub(super) fields: &'static [Field],
    /// Positions of `fields` in the order of their tags, in which protobuf writes them.
    pub(super) by_tag: &'static [u8],
}

/// One field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) tag: u32,
    pub(super) ty: Type,
    pub(super) presence: Presence,
}

/// When a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Always in protobuf; in JSON unless it is empty (a message never counts as empty).
    Value,
    /// In both only when it is set.
    Pointer,
    /// Always in both.
    Always,
}

/// The type of a field's value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    Text,
    Int,
    Bool,
    /// `metav1.Time`: RFC 3339 with seconds in JSON, seconds and nanoseconds in protobuf.
    Time,
    /// `metav1.MicroTime`: like [`Type::Time`] with microseconds.
    MicroTime,
    /// `intstr.IntOrString`.
    IntOrText,
    /// `resource.Quantity`.
    Quantity,
    /// `metav1.FieldsV1`: JSON within JSON, bytes in protobuf.
    RawJson,
    Message(&'static Message),
    List(&'static Type),
    /// Map from text.
    Map(&'static Type),
}

/// The positions of `fields` sorted by tag.
pub(super) const fn tag_order<const N: usize>(fields: &[Field]) -> [u8; N] {
    let mut order = [0u8; N];
    let mut i = 0;
    while i < N {
        let mut at = i;
        while at > 0 && fields[order[at - 1] as usize].tag > fields[i].tag {
            order[at] = order[at - 1];
            at -= 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "no message has 256 fields")]
        {
            order[at] = i as u8;
        }
        i += 1;
    }
    order
}

impl Message {
    /// Fields in the order of their tags.
    pub(super) fn by_tag(&self) -> impl Iterator<Item = &'static Field> {
        self.by_tag.iter().map(|&i| &self.fields[usize::from(i)])
    }
}
