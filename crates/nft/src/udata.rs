//! User data: what nft keeps with sets, rules and elements for its own listings. The kernel only stores it.
//!
//! A list of (type, length, value), each of the first two one byte. Byte for byte what nft 1.0.6 writes, learnt from
//! its messages: without it `nft` prints a set's fields as bare types and refuses a key with a random number.

use crate::{Family, Field, Set, SetData};

/// Longest comment in bytes that nft reads back (`NFTNL_UDATA_COMMENT_MAXLEN`).
const MAX_COMMENT_BYTES: usize = 128;

/// Types of a set's user data.
mod kind {
    pub(super) const KEY_BYTEORDER: u8 = 0;
    pub(super) const DATA_BYTEORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const DATA_INTERVAL: u8 = 6;
    pub(super) const COMMENT: u8 = 7;
    /// In the user data of rules and elements.
    pub(super) const OBJECT_COMMENT: u8 = 0;
    /// In the user data of elements.
    pub(super) const ELEMENT_FLAGS: u8 = 1;
}

/// nft's numbers of expression types.
mod expression {
    pub(super) const VERDICT: u32 = 1;
    pub(super) const PAYLOAD: u32 = 7;
    pub(super) const META: u32 = 9;
    pub(super) const CONCAT: u32 = 13;
    pub(super) const NUMGEN: u32 = 23;
}

/// nft's numbers of byte orders.
const BYTEORDER_NONE: u32 = 0;
const BYTEORDER_HOST: u32 = 1;
const BYTEORDER_NETWORK: u32 = 2;

/// `NFT_META_L4PROTO`
const META_L4PROTO: u32 = 16;
/// `NFT_META_PRIORITY`
const META_PRIORITY: u32 = 2;
/// `SET_ELEM_F_INTERVAL_OPEN`, nft's own: the interval goes up to the highest value.
const INTERVAL_OPEN: u32 = 1;
/// `NFT_NG_RANDOM`
const NUMGEN_RANDOM: u32 = 1;

/// User data of a set's declaration.
pub(crate) fn set(set: &Set, family: Family) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    put_u32(&mut out, kind::KEY_BYTEORDER, byteorder(&set.key));
    match &set.data {
        SetData::None => {}
        SetData::Verdict => put_u32(&mut out, kind::DATA_BYTEORDER, BYTEORDER_NONE),
        SetData::Fields(fields) => put_u32(&mut out, kind::DATA_BYTEORDER, byteorder(fields)),
    }
    put(&mut out, kind::KEY_TYPEOF, &type_of(&set.key, family));
    match &set.data {
        SetData::None => {}
        SetData::Verdict => put(&mut out, kind::DATA_TYPEOF, &expr(expression::VERDICT, &[])),
        SetData::Fields(fields) => put(&mut out, kind::DATA_TYPEOF, &type_of(fields, family)),
    }
    if set.data != SetData::None {
        put_u32(&mut out, kind::DATA_INTERVAL, 0);
    }
    if let Some(comment) = &set.comment {
        put_text(&mut out, kind::COMMENT, comment);
    }
    out
}

/// The key's fields that a set's user data declares, its data fields (of a map to values), and its comment.
pub(crate) fn parse_set(bytes: &[u8], family: Family) -> (Vec<Field>, Vec<Field>, Option<Box<str>>) {
    let fields = |kind| find(bytes, kind).and_then(|value| parse_type_of(value, family)).unwrap_or_default();
    let comment = find(bytes, kind::COMMENT).and_then(parse_text);
    (fields(kind::KEY_TYPEOF), fields(kind::DATA_TYPEOF), comment)
}

/// Appends user data of a rule or element: its comment.
pub(crate) fn put_comment(out: &mut Vec<u8>, comment: &str) {
    put_text(out, kind::OBJECT_COMMENT, comment);
}

/// Appends user data of an element whose network goes up to the highest address.
pub(crate) fn put_open_interval(out: &mut Vec<u8>) {
    put_u32(out, kind::ELEMENT_FLAGS, INTERVAL_OPEN);
}

/// Bytes that [`put_open_interval`] appends.
pub(crate) const OPEN_INTERVAL_BYTES: usize = 6;

/// Bytes that [`put_comment`] appends.
pub(crate) fn comment_bytes(comment: &str) -> usize {
    cut(comment).len() + 3
}

/// The comment in the user data of a rule or element.
pub(crate) fn parse_comment(bytes: &[u8]) -> Option<Box<str>> {
    find(bytes, kind::OBJECT_COMMENT).and_then(parse_text)
}

fn byteorder(fields: &[Field]) -> u32 {
    match fields {
        [Field::L4Proto | Field::NumgenRandom { .. } | Field::Priority | Field::PriorityBits { .. }] => {
            BYTEORDER_HOST
        }
        [Field::SourceAddr | Field::DestAddr | Field::DestPort] => BYTEORDER_NETWORK,
        _ => BYTEORDER_NONE,
    }
}

fn type_of(fields: &[Field], family: Family) -> Vec<u8> {
    if let [field] = fields {
        return field_expr(*field, family);
    }
    let mut parts = Vec::new();
    for (i, field) in (0..=u8::MAX).zip(fields) {
        put(&mut parts, i, &field_expr(*field, family));
    }
    expr(expression::CONCAT, &parts)
}

fn field_expr(field: Field, family: Family) -> Vec<u8> {
    if let Some((header, member)) = payload_numbers(field, family) {
        return expr(expression::PAYLOAD, &pairs(&[header, member]));
    }
    match field {
        Field::NumgenRandom { modulus } => expr(expression::NUMGEN, &pairs(&[NUMGEN_RANDOM, modulus, 0])),
        Field::Priority | Field::PriorityBits { .. } => expr(expression::META, &pairs(&[META_PRIORITY])),
        _ => expr(expression::META, &pairs(&[META_L4PROTO])),
    }
}

/// nft's number of the protocol header, and of the field in its table of that header's fields.
const fn payload_numbers(field: Field, family: Family) -> Option<(u32, u32)> {
    Some(match (field, family) {
        (Field::SourceAddr, Family::Ip) => (12, 11),
        (Field::DestAddr, Family::Ip) => (12, 12),
        (Field::SourceAddr, Family::Ip6) => (13, 8),
        (Field::DestAddr, Family::Ip6) => (13, 9),
        (Field::DestPort, _) => (11, 2),
        (Field::L4Proto | Field::NumgenRandom { .. } | Field::Priority | Field::PriorityBits { .. }, _) => {
            return None;
        }
    })
}

fn expr(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, 0, number);
    put(&mut out, 1, data);
    out
}

fn pairs(values: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in (0..=u8::MAX).zip(values) {
        put_u32(&mut out, kind, *value);
    }
    out
}

fn parse_type_of(bytes: &[u8], family: Family) -> Option<Vec<Field>> {
    if find_u32(bytes, 0)? != expression::CONCAT {
        return parse_field(bytes, family).map(|field| vec![field]);
    }
    entries(find(bytes, 1)?).map(|(_, part)| parse_field(part, family)).collect()
}

fn parse_field(bytes: &[u8], family: Family) -> Option<Field> {
    let data = find(bytes, 1)?;
    let modulus = find_u32(data, 1).unwrap_or_default();
    let candidates = [
        Field::SourceAddr,
        Field::DestAddr,
        Field::L4Proto,
        Field::DestPort,
        Field::NumgenRandom { modulus },
        Field::Priority,
    ];
    candidates.into_iter().find(|field| field_expr(*field, family) == bytes)
}

/// Appends an entry. Values longer than a length can say are left out; no declaration of up to five fields is.
fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    if let Ok(len) = u8::try_from(value.len()) {
        out.extend([kind, len]);
        out.extend_from_slice(value);
    }
}

fn put_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

fn put_text(out: &mut Vec<u8>, kind: u8, text: &str) {
    let text = cut(text);
    // At most MAX_COMMENT_BYTES and the final zero.
    out.extend([kind, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)]);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// The longest start of the text that is whole characters and not too long.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_COMMENT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn parse_text(value: &[u8]) -> Option<Box<str>> {
    crate::wire::text(value).map(Into::into)
}

fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [kind, len, rest @ ..] = bytes else { return None };
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        bytes = rest;
        Some((*kind, value))
    })
}

fn find(bytes: &[u8], kind: u8) -> Option<&[u8]> {
    entries(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

fn find_u32(bytes: &[u8], kind: u8) -> Option<u32> {
    find(bytes, kind)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, SetKind};

    const DNAT_KEY: [Field; 4] =
        [Field::DestAddr, Field::L4Proto, Field::DestPort, Field::NumgenRandom { modulus: 65536 }];

    #[track_caller]
    fn round_trip(key: &[Field], data: SetData, family: Family) {
        let declared = Set {
            name: Name::from_static("s"),
            key: key.to_vec(),
            data: data.clone(),
            kind: SetKind::Exact,
            is_counted: false,
            comment: Some("why".into()),
        };
        let (parsed_key, parsed_data, comment) = parse_set(&set(&declared, family), family);
        assert_eq!(parsed_key, key);
        assert_eq!(parsed_data, if let SetData::Fields(fields) = data { fields } else { vec![] });
        assert_eq!(comment.as_deref(), Some("why"));
    }

    #[test]
    fn declarations_are_read_back() {
        for family in [Family::Ip, Family::Ip6] {
            round_trip(&DNAT_KEY, SetData::Fields(vec![Field::DestAddr, Field::DestPort]), family);
            round_trip(&DNAT_KEY[1..3], SetData::Verdict, family);
            round_trip(&[Field::SourceAddr, Field::DestAddr], SetData::None, family);
            round_trip(&[Field::L4Proto], SetData::Fields(vec![Field::DestPort]), family);
            round_trip(&[Field::SourceAddr, Field::Priority], SetData::Fields(vec![Field::Priority]), family);
        }
    }

    #[test]
    fn long_comments_are_cut_between_characters() {
        let comment = "é".repeat(100);
        let mut out = Vec::new();
        put_comment(&mut out, &comment);
        assert_eq!(out.len(), comment_bytes(&comment));
        assert_eq!(parse_comment(&out).as_deref(), Some(&*"é".repeat(64)));
    }

    #[test]
    fn user_data_that_is_cut_off_says_nothing() {
        assert_eq!(parse_comment(&[0, 5, b'a']), None);
        assert_eq!(parse_set(&[3, 200, 1], Family::Ip), (vec![], vec![], None));
    }
}
