//! Objects of a dump to values. Whatever this crate would not write becomes foreign or unknown; nothing fails.

mod exprs;

use crate::dump::Count;
use crate::encode::elements::INTERVAL_END;
use crate::encode::objects::{data_type, set_flags, type_number};
use crate::wire::{Attrs, COUNTER, attr, be_u32, set_flag};
use crate::{
    BaseChain, Bytes, ChainState, ChainType, Data, Element, Expr, Family, Hook, Name, ObjectType, Set,
    SetData, SetKind, SetState, udata,
};
use exprs::parse_verdict;

/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// `NF_ACCEPT`
const POLICY_ACCEPT: u32 = 1;

/// Whether a table is switched off.
pub(crate) fn is_dormant(attrs: &Attrs<'_>) -> bool {
    attrs.u32(attr::TABLE_FLAGS).is_some_and(|flags| flags & DORMANT != 0)
}

/// A set or map with a name of its own; `None` for an anonymous one.
pub(crate) fn set(attrs: &Attrs<'_>, name: &Name, family: Family) -> Option<SetState> {
    let flags = attrs.u32(attr::SET_FLAGS).unwrap_or_default();
    if flags & set_flag::ANONYMOUS != 0 {
        return None;
    }
    let userdata = attrs.find(attr::SET_USERDATA).unwrap_or_default();
    let (key, fields, comment) = udata::parse_set(userdata, family);
    let data = match attrs.u32(attr::SET_DATA_TYPE) {
        None => SetData::None,
        Some(crate::wire::DATA_TYPE_VERDICT) => SetData::Verdict,
        Some(_) => SetData::Fields(fields),
    };
    let (kind, is_counted) = (set_kind(attrs, flags), is_counter(attrs.nest(attr::SET_EXPR)));
    let declared = Set { name: name.clone(), key, data, kind, is_counted, comment };
    let foreign = !is_as_declared(attrs, &declared, family);
    let set = if foreign { as_foreign(declared) } else { declared };
    Some(SetState { set, foreign, elements: Vec::new() })
}

/// What is left of a declaration that is not ours.
pub(crate) fn as_foreign(set: Set) -> Set {
    Set { comment: set.comment, ..Set::new(set.name, vec![], SetData::None) }
}

fn is_counter(expression: Option<Attrs<'_>>) -> bool {
    expression.is_some_and(|attrs| attrs.text(attr::EXPR_NAME) == Some(COUNTER))
}

/// Whether what is attached to each element is what the declaration would attach: a counter, or nothing.
fn is_attached_as_declared(attrs: &Attrs<'_>, set: &Set) -> bool {
    attrs.find(attr::SET_EXPR).is_some() == set.is_counted && attrs.find(attr::SET_EXPRESSIONS).is_none()
}

/// The kind that the flags suggest; whether they are all is checked with the rest of the declaration.
fn set_kind(attrs: &Attrs<'_>, flags: u32) -> SetKind {
    match set_size(attrs) {
        Some(size) if flags & set_flag::EVAL != 0 => SetKind::Learnt { size },
        _ if flags & set_flag::INTERVAL != 0 => SetKind::Networks,
        _ => match default_timeout_secs(attrs) {
            Some(timeout_secs) => SetKind::Leased { timeout_secs },
            None => SetKind::Exact,
        },
    }
}

/// `None` if there is none, or one that is no number of seconds.
fn default_timeout_secs(attrs: &Attrs<'_>) -> Option<u32> {
    let millis = u64::from_be_bytes(attrs.find(attr::SET_TIMEOUT)?.try_into().ok()?);
    let is_whole = millis % 1000 == 0 && millis > 0;
    is_whole.then(|| u32::try_from(millis / 1000).ok())?
}

fn set_size(attrs: &Attrs<'_>) -> Option<u32> {
    Attrs::new(attrs.find(attr::SET_DESC)?).u32(attr::DESC_SIZE)
}

/// Whether the kernel's types, lengths and flags are those that the declaration would give.
fn is_as_declared(attrs: &Attrs<'_>, set: &Set, family: Family) -> bool {
    let length = |kind| attrs.u32(kind).and_then(|len| usize::try_from(len).ok());
    let size = match set.kind {
        SetKind::Learnt { size } => Some(size),
        SetKind::Exact | SetKind::Networks | SetKind::Leased { .. } => None,
    };
    let is_leased = matches!(set.kind, SetKind::Leased { .. });
    let has_default_timeout = attrs.find(attr::SET_TIMEOUT).is_some();
    let data_fits = match &set.data {
        SetData::None | SetData::Verdict => true,
        SetData::Fields(fields) => {
            !fields.is_empty() && length(attr::SET_DATA_LEN) == Some(set.data_wire_bytes(family))
        }
    };
    !set.key.is_empty()
        && data_fits
        && set_size(attrs) == size
        && has_default_timeout == is_leased
        && is_attached_as_declared(attrs, set)
        && attrs.u32(attr::SET_FLAGS).unwrap_or_default() == set_flags(set)
        && attrs.u32(attr::SET_KEY_TYPE) == Some(type_number(&set.key, family))
        && length(attr::SET_KEY_LEN) == Some(set.key_wire_bytes(family))
        && attrs.u32(attr::SET_DATA_TYPE).unwrap_or_default() == data_type(&set.data, family)
}

/// An element as the kernel lists it.
#[derive(Debug)]
pub(crate) enum ListedElement {
    /// An element with a key of its own, or that begins a range.
    Element(Element),
    /// The last key of the range that is the element of the same message.
    Range(Element, Bytes),
    /// The first key behind a range that another element began.
    End(Bytes),
}

/// The elements of one message.
pub(crate) fn elements(attrs: &Attrs<'_>) -> impl Iterator<Item = ListedElement> {
    let list = attrs.find(attr::ELEM_LIST_ELEMENTS).unwrap_or_default();
    Attrs::new(list).filter_map(|(_, bytes)| listed_element(&Attrs::new(bytes)))
}

/// What the elements of one message have counted, those left out that have counted nothing.
pub(crate) fn counts(attrs: &Attrs<'_>) -> impl Iterator<Item = Count> {
    let list = attrs.find(attr::ELEM_LIST_ELEMENTS).unwrap_or_default();
    Attrs::new(list).filter_map(|(_, bytes)| count(&Attrs::new(bytes)))
}

fn count(attrs: &Attrs<'_>) -> Option<Count> {
    let expression = attrs.nest(attr::ELEM_EXPR);
    let counter =
        expression.clone().filter(|_| is_counter(expression)).and_then(|expr| expr.nest(attr::EXPR_DATA));
    let packets = be_u64(counter?.find(attr::COUNTER_PACKETS)?).filter(|packets| *packets > 0)?;
    Some(Count { element: ToldElement::new(attrs).element()?, packets })
}

fn be_u64(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

fn listed_element(attrs: &Attrs<'_>) -> Option<ListedElement> {
    let told = ToldElement::new(attrs);
    let element = told.element()?;
    if told.flags.and_then(be_u32).unwrap_or_default() & INTERVAL_END != 0 {
        return Some(ListedElement::End(element.key));
    }
    match told.key_end {
        Some(end) => Some(ListedElement::Range(element, key(end)?)),
        None => Some(ListedElement::Element(element)),
    }
}

/// The attributes of an element that say something of it. Found in one pass, since there may be a million elements.
#[derive(Default)]
struct ToldElement<'a> {
    key: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
    userdata: Option<&'a [u8]>,
    flags: Option<&'a [u8]>,
    key_end: Option<&'a [u8]>,
}

impl<'a> ToldElement<'a> {
    fn new(attrs: &Attrs<'a>) -> Self {
        let mut told = Self::default();
        for (kind, payload) in attrs.clone() {
            let place = match kind {
                attr::ELEM_KEY => &mut told.key,
                attr::ELEM_DATA => &mut told.data,
                attr::ELEM_USERDATA => &mut told.userdata,
                attr::ELEM_FLAGS => &mut told.flags,
                attr::ELEM_KEY_END => &mut told.key_end,
                _ => continue,
            };
            place.get_or_insert(payload);
        }
        told
    }

    /// The catch-all element, which has no key, gets an empty one.
    fn element(&self) -> Option<Element> {
        let key = match self.key {
            Some(bytes) => key(bytes)?,
            None => Bytes::new(),
        };
        let data = self.data.and_then(parse_data).unwrap_or(Data::None);
        let comment = self.userdata.and_then(udata::parse_comment);
        Some(Element { key, data, comment })
    }
}

fn key(bytes: &[u8]) -> Option<Bytes> {
    Bytes::from_slice(Attrs::new(bytes).find(attr::DATA_VALUE)?)
}

fn parse_data(bytes: &[u8]) -> Option<Data> {
    let attrs = Attrs::new(bytes);
    match attrs.find(attr::DATA_VALUE) {
        Some(value) => Bytes::from_slice(value).map(Data::Value),
        None => parse_verdict(bytes).map(Data::Verdict),
    }
}

/// A chain without its rules.
pub(crate) fn chain(attrs: &Attrs<'_>) -> Option<(Name, ChainState)> {
    let name = Name::from(attrs.text(attr::CHAIN_NAME)?);
    let Some(hook) = attrs.find(attr::CHAIN_HOOK) else {
        return Some((name, ChainState::default()));
    };
    let base = base_chain(&Attrs::new(hook), attrs.text(attr::CHAIN_TYPE));
    let policy_differs = attrs.u32(attr::CHAIN_POLICY) != Some(POLICY_ACCEPT);
    let foreign = base.is_none() || policy_differs;
    Some((name, ChainState { base, foreign, rules: Vec::new() }))
}

fn base_chain(hook: &Attrs<'_>, kind: Option<&str>) -> Option<BaseChain> {
    let kind = match kind? {
        "filter" => ChainType::Filter,
        "nat" => ChainType::Nat,
        _ => return None,
    };
    let number = hook.u32(attr::HOOK_NUMBER)?;
    let priority = hook.find(attr::HOOK_PRIORITY).and_then(be_u32)?.cast_signed();
    Some(BaseChain { kind, hook: Hook::from_number(number)?, priority })
}

/// A stateful object.
pub(crate) fn object(attrs: &Attrs<'_>) -> Option<(ObjectType, Name)> {
    Some((ObjectType(attrs.u32(attr::OBJECT_TYPE)?), attrs.text(attr::OBJECT_NAME)?.into()))
}

/// The expressions of a rule.
pub(crate) fn rule(attrs: &Attrs<'_>) -> Vec<Expr> {
    let list = attrs.find(attr::RULE_EXPRESSIONS).unwrap_or_default();
    Attrs::new(list).map(|(_, bytes)| exprs::parse(&Attrs::new(bytes))).collect()
}
