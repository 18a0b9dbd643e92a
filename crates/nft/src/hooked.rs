//! The chains of all tables of a network namespace, whosever they are.

use netlink::Message;

use crate::wire::{Attrs, attr, be_u32, kind};

/// A chain of any table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnyChain {
    /// Number of the table's family (`NFPROTO_*`): 1 inet, 2 ip, 10 ip6.
    pub family: u8,
    /// The table.
    pub table: String,
    /// The chain.
    pub name: String,
    /// Attachment; none for a chain that others go or jump to.
    pub hook: Option<Attached>,
}

/// How a chain is attached to the packet's path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attached {
    /// `filter`, `nat`, `route`.
    pub kind: String,
    /// Number of the hook (`NF_INET_*`).
    pub hook: u32,
    /// Order among the chains of the hook.
    pub priority: i32,
    /// What its rules let pass is dropped.
    pub drops: bool,
}

/// The chain in an answer to [`Request::AllChains`](crate::dump::Request::AllChains); none in any other message.
pub fn any_chain(message: &Message<'_>) -> Option<AnyChain> {
    if message.kind != kind::NEW_CHAIN {
        return None;
    }
    let attrs = message.attrs()?;
    let text = |number| attrs.text(number).unwrap_or_default().to_owned();
    let attached = |hook: &[u8]| {
        let hook = Attrs::new(hook);
        Some(Attached {
            kind: text(attr::CHAIN_TYPE),
            hook: hook.u32(attr::HOOK_NUMBER)?,
            priority: hook.find(attr::HOOK_PRIORITY).and_then(be_u32)?.cast_signed(),
            drops: attrs.u32(attr::CHAIN_POLICY) == Some(0),
        })
    };
    Some(AnyChain {
        family: message.family()?,
        table: text(attr::CHAIN_TABLE),
        name: text(attr::CHAIN_NAME),
        hook: attrs.find(attr::CHAIN_HOOK).and_then(attached),
    })
}
