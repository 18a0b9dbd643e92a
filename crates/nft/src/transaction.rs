//! Changes of one table.

use std::sync::Arc;

use crate::{BaseChain, Bytes, Element, Expr, Family, Name, ObjectType, Rule, Set};

/// One change. A transaction is applied in order and atomically, unless it has to be cut to fit a socket buffer:
/// then only between operations and inside the lists of elements. Whoever makes one orders it so that every prefix
/// leaves a correct ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Adds the table unless it exists; wakes it if it is dormant.
    AddTable,
    /// Deletes the table with everything in it; refused if there is none.
    DeleteTable,
    /// Adds a set or map unless it exists; refused if one of another kind has the name.
    AddSet(Arc<Set>),
    /// Deletes a set or map with its elements; refused while a rule uses it.
    DeleteSet(Name),
    /// Adds a chain unless it exists; refused if one of another kind has the name. The policy becomes accept.
    AddChain {
        /// Name within the table.
        name: Name,
        /// Attachment, if it is a base chain.
        base: Option<BaseChain>,
    },
    /// Deletes a chain with its rules; refused while a rule or element refers to it.
    DeleteChain(Name),
    /// Deletes a stateful object; refused while a rule or element uses it.
    DeleteObject(ObjectType, Name),
    /// Deletes a flowtable; refused while a rule uses it.
    DeleteFlowtable(Name),
    /// Replaces all rules of a chain.
    SetRules {
        /// The chain.
        chain: Name,
        /// All its rules, in order.
        rules: Vec<Rule>,
    },
    /// Replaces all rules of a chain by some that were read, from this table or from another one.
    CopyRules {
        /// The chain.
        chain: Name,
        /// The expressions of each rule, in order ([`ChainState::rules`](crate::ChainState)).
        rules: Vec<Vec<Expr>>,
    },
    /// Adds elements; one that exists with the same data is left as it is, with other data it is refused.
    AddElements {
        /// The set or map, which exists already.
        set: Arc<Set>,
        /// What is added.
        elements: Vec<Element>,
    },
    /// Gives existing elements new data (or comments): each is deleted by key and added in the same batch.
    ReplaceElements {
        /// The set or map.
        set: Arc<Set>,
        /// Keys and new data; refused if a key is absent.
        elements: Vec<Element>,
    },
    /// Deletes elements by key; refused if a key is absent.
    DeleteElements {
        /// The set or map.
        set: Arc<Set>,
        /// The keys.
        elements: Vec<Bytes>,
    },
}

impl Op {
    /// Number of elements that it adds, replaces or deletes.
    pub fn element_count(&self) -> usize {
        match self {
            Self::AddElements { elements, .. } | Self::ReplaceElements { elements, .. } => elements.len(),
            Self::DeleteElements { elements, .. } => elements.len(),
            _ => 0,
        }
    }
}

/// Changes of one table, in order. Prints as text that people read and `nft -f -` accepts.
///
/// One exception, a fault of nft 1.0.6: it can't parse a [`DnatMap`](crate::Statement::DnatMap) statement whose map
/// is in the kernel already, only one whose map is declared for the first time by the same text. (It lists both.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: Name,
    /// The changes.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// No changes yet.
    pub fn new(family: Family, table: Name) -> Self {
        Self { family, table, ops: Vec::new() }
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Number of elements that are added, replaced or deleted.
    pub fn element_count(&self) -> usize {
        self.ops.iter().map(Op::element_count).sum()
    }
}
