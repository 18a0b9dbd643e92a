//! Names what a message of a batch was about.

use crate::wire::{Attrs, HEADER_BYTES, attr};
use crate::{Bytes, Family, Op, Set, Transaction};

/// The object of one message. `index` counts the messages of the operation within the batch; `message` begins with
/// the message; `offset` is where in it the kernel found fault.
pub(super) fn object(
    tx: &Transaction,
    op: &Op,
    index: usize,
    message: &[u8],
    offset: Option<usize>,
) -> String {
    match op {
        Op::AddTable | Op::DeleteTable => format!("table {} {}", tx.family, tx.table),
        Op::AddSet(set) => format!("{} {}", set.keyword(), set.name),
        Op::DeleteSet(name) => format!("set {name}"),
        Op::AddChain { name, .. } | Op::DeleteChain(name) => format!("chain {name}"),
        Op::DeleteObject(kind, name) => format!("{kind} {name}"),
        Op::DeleteFlowtable(name) => format!("flowtable {name}"),
        Op::SetRules { chain, .. } | Op::CopyRules { chain, .. } if index == 0 => format!("chain {chain}"),
        Op::SetRules { chain, .. } | Op::CopyRules { chain, .. } => format!("rule {index} of chain {chain}"),
        Op::AddElements { set, .. } | Op::ReplaceElements { set, .. } | Op::DeleteElements { set, .. } => {
            element(tx, set, message, offset)
        }
    }
}

/// The element at the offset, or the only one of the message, or else the set.
fn element(tx: &Transaction, set: &Set, message: &[u8], offset: Option<usize>) -> String {
    let keyword = set.keyword();
    let found = offset.and_then(|offset| key_at(message, offset, tx.family));
    match found.or_else(|| only_key(message, tx.family)) {
        Some(key) => {
            format!("element {} of {keyword} {}", set.key_text(&key, tx.family), set.name)
        }
        None => format!("elements of {keyword} {}", set.name),
    }
}

/// The kernel points at the attribute that holds the whole element.
fn key_at(message: &[u8], offset: usize, family: Family) -> Option<Bytes> {
    let (kind, element) = Attrs::new(message.get(offset..)?).next()?;
    (kind == attr::LIST_ELEM).then(|| key_of(element, family))?
}

fn only_key(message: &[u8], family: Family) -> Option<Bytes> {
    let len = u32::from_ne_bytes(*message.first_chunk()?);
    let attributes = message.get(HEADER_BYTES..usize::try_from(len).ok()?)?;
    let list = Attrs::new(attributes).find(attr::ELEM_LIST_ELEMENTS)?;
    let mut elements = Attrs::new(list);
    let (_, first) = elements.next()?;
    elements.next().is_none().then(|| key_of(first, family))?
}

/// The key of an element, with the length of its network's prefix if the end is told with it.
fn key_of(element: &[u8], family: Family) -> Option<Bytes> {
    let element = Attrs::new(element);
    let value = |kind| {
        let key = Attrs::new(element.find(kind)?);
        key.find(attr::DATA_VALUE).and_then(Bytes::from_slice)
    };
    let key: Bytes = value(attr::ELEM_KEY)?;
    let network = value(attr::ELEM_KEY_END).and_then(|last| key.to_network(&last, family));
    Some(network.unwrap_or(key))
}
