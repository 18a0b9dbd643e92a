//! Requests for what the kernel has, and its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::decode;
use crate::decode::ListedElement;
use crate::encode::elements::put_keys;
use crate::wire::{Attrs, Writer, attr, flag, kind};
use crate::{Bytes, Element, Expr, Family, Name, Ruleset, Set, SetKind, SetState};

pub use netlink::{Ack, Message, messages};

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
    /// The elements of a set of a table that have these keys; refused with ENOENT if one has none. Each comes as a message
    /// of its own. Keys of [`SetKind::Exact`] only, and [`MAX_KEYS`] at most.
    ///
    /// It costs a lookup for each key, where the cost of [`Request::Elements`] grows with the square of the number of
    /// elements: for each message of a dump the kernel walks the hash table from its start (`nft_rhash_walk` of
    /// `net/netfilter/nft_set_hash.c`).
    Keys(Family, &'a Name, &'a Set, &'a [Bytes]),
    /// The rules of a table, with the names of the chains that they are in.
    Rules(Family, &'a Name),
    /// The chains of a table that have these names, [`MAX_CHAINS`] at most; refused with ENOENT if there is none of one name.
    Chains(Family, &'a Name, &'a [Name]),
    /// The chains of all tables of the family: the kernel can't tell tables apart here, [`RulesetReader`] does. If chains of
    /// others come and go meanwhile, some of ours may be left out.
    AllChains(Family),
    /// The stateful objects of a table.
    Objects(Family, &'a Name),
    /// The flowtables of a table.
    Flowtables(Family, &'a Name),
}

/// So many chains are asked for at once.
pub const MAX_CHAINS: usize = 200;

/// So many keys of any set fit into one attribute.
pub const MAX_KEYS: usize = 1000;

impl Request<'_> {
    /// The message to send.
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        if let Self::Chains(family, table, names) = self {
            return encode_chains(*family, table, names, seq);
        }
        let (kind, flags, family) = match self {
            Self::Generation => (kind::GET_GENERATION, 0, 0),
            Self::Table(family, _) => (kind::GET_TABLE, 0, family.nfproto()),
            Self::Sets(family, _) => (kind::GET_SET, flag::DUMP, family.nfproto()),
            Self::Elements(family, ..) => (kind::GET_ELEMENT, flag::DUMP, family.nfproto()),
            Self::Keys(family, ..) => (kind::GET_ELEMENT, flag::ACK, family.nfproto()),
            Self::Chains(family, ..) | Self::AllChains(family) => {
                (kind::GET_CHAIN, flag::DUMP, family.nfproto())
            }
            Self::Rules(family, _) => (kind::GET_RULE, flag::DUMP, family.nfproto()),
            Self::Objects(family, _) => (kind::GET_OBJECT, flag::DUMP, family.nfproto()),
            Self::Flowtables(family, _) => (kind::GET_FLOWTABLE, flag::DUMP, family.nfproto()),
        };
        let mut out = Writer::default();
        let start = out.begin_message(kind, flag::REQUEST | flags, seq, family, 0);
        match self {
            Self::Generation | Self::Chains(..) | Self::AllChains(_) => {}
            Self::Table(_, table) => out.text(attr::TABLE_NAME, table),
            Self::Sets(_, table) => out.text(attr::SET_TABLE, table),
            Self::Rules(_, table) => out.text(attr::RULE_TABLE, table),
            Self::Objects(_, table) => out.text(attr::OBJECT_TABLE, table),
            Self::Flowtables(_, table) => out.text(attr::FLOWTABLE_TABLE, table),
            Self::Elements(_, table, set) => {
                out.text(attr::ELEM_LIST_TABLE, table);
                out.text(attr::ELEM_LIST_SET, set);
            }
            Self::Keys(family, table, set, keys) => {
                out.text(attr::ELEM_LIST_TABLE, table);
                out.text(attr::ELEM_LIST_SET, &set.name);
                put_keys(&mut out, set, keys, *family);
            }
        }
        out.end_message(start);
        out.out
    }

    /// Whether a message of the answer is its last one.
    pub fn ends_with(&self, message: &Message<'_>) -> bool {
        match self {
            Self::Generation | Self::Table(..) => true,
            Self::Keys(..) | Self::Chains(..) => message.ack().is_some(),
            Self::Sets(..)
            | Self::Elements(..)
            | Self::AllChains(_)
            | Self::Rules(..)
            | Self::Objects(..)
            | Self::Flowtables(..) => message.is_done(),
        }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation => f.write_str("reading of the generation"),
            Self::Table(family, table) => write!(f, "reading of table {family} {table}"),
            Self::Sets(family, table) => write!(f, "reading of the sets of table {family} {table}"),
            Self::Elements(family, table, set) => write!(f, "reading of set {set} of table {family} {table}"),
            Self::Keys(family, table, set, _) => {
                write!(f, "reading of elements of set {} of table {family} {table}", set.name)
            }
            Self::Chains(family, table, _) => write!(f, "reading of the chains of table {family} {table}"),
            Self::AllChains(family) => write!(f, "reading of the chains of family {family}"),
            Self::Objects(family, table) => write!(f, "reading of the objects of table {family} {table}"),
            Self::Flowtables(family, table) => {
                write!(f, "reading of the flowtables of table {family} {table}")
            }
            Self::Rules(family, table) => write!(f, "reading of the rules of table {family} {table}"),
        }
    }
}

/// A message for each chain; the last one asks for an acknowledgement.
fn encode_chains(family: Family, table: &Name, names: &[Name], seq: u32) -> Vec<u8> {
    let mut out = Writer::default();
    for (idx, name) in names.iter().enumerate() {
        let ack = if idx + 1 == names.len() { flag::ACK } else { 0 };
        let start = out.begin_message(kind::GET_CHAIN, flag::REQUEST | ack, seq, family.nfproto(), 0);
        out.text(attr::CHAIN_TABLE, table);
        out.text(attr::CHAIN_NAME, name);
        out.end_message(start);
    }
    out.out
}

/// The generation, if the message is the answer to [`Request::Generation`], or the end of a commit in notifications.
pub fn generation(message: &Message<'_>) -> Option<u32> {
    (message.kind == kind::NEW_GENERATION).then(|| message.attrs()?.u32(attr::GENERATION_ID))?
}

/// The elements in an answer to [`Request::Keys`]; none in any other message.
pub fn elements(message: &Message<'_>) -> Vec<Element> {
    let attrs = message.attrs().filter(|_| message.kind == kind::NEW_ELEMENT);
    let listed = attrs.map(|attrs| decode::elements(&attrs).collect::<Vec<_>>()).unwrap_or_default();
    let element = |listed| match listed {
        ListedElement::Element(element) => Some(element),
        ListedElement::Range(..) | ListedElement::End(_) => None,
    };
    listed.into_iter().filter_map(element).collect()
}

/// What an element has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which element.
    pub element: Element,
    /// Packets that a rule has looked it up for, since it was made; not 0.
    pub packets: u64,
}

/// What elements have counted, those left out that have counted nothing, in an answer to [`Request::Elements`] or
/// [`Request::Keys`]; nothing in any other message, nor of sets that are not counted.
pub fn counts(message: &Message<'_>) -> Vec<Count> {
    let attrs = message.attrs().filter(|_| message.kind == kind::NEW_ELEMENT);
    attrs.map(|attrs| decode::counts(&attrs).collect()).unwrap_or_default()
}

/// Collects one table from the answers to the requests about it.
#[derive(Debug)]
pub struct RulesetReader<'a> {
    family: Family,
    table: &'a Name,
    ruleset: Ruleset,
    /// How many sets, chains, objects and flowtables there are in the table.
    members: Option<u32>,
    anonymous_sets: BTreeSet<Name>,
    /// Number of elements by set.
    counts: BTreeMap<Name, usize>,
    /// The rules of each chain.
    rules: BTreeMap<Name, Vec<Vec<Expr>>>,
    /// The keys behind the ranges of a set, where the kernel tells of them as elements.
    ends: BTreeMap<Name, Vec<Bytes>>,
}

/// One table as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// The table, with elements in the order of their keys.
    pub ruleset: Ruleset,
    /// As many things were told as the kernel says there are: elements of each set, and what is in the table.
    ///
    /// Kernels before 6.17 or so don't say it of sets. It matters because a dump of a hash table that is being resized, which
    /// goes on for a while after many elements were added, leaves elements out and does not say so; and because chains that
    /// others make and delete can hide ours from [`Request::AllChains`].
    pub is_complete: bool,
}

impl<'a> RulesetReader<'a> {
    /// Nothing collected yet.
    pub fn new(family: Family, table: &'a Name) -> Self {
        Self {
            family,
            table,
            ruleset: Ruleset::default(),
            members: None,
            anonymous_sets: BTreeSet::new(),
            counts: BTreeMap::new(),
            rules: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    /// Takes in one message; what is about another table or unknown is left out. Sets are to be read before elements.
    pub fn add(&mut self, message: &Message<'_>) {
        let Some(attrs) = message.attrs() else { return };
        // Every object's attribute 1 is the table that it is in, or its own name if it is a table.
        let is_ours = attrs.text(attr::TABLE_NAME) == Some(self.table.as_str());
        if !is_ours || message.family() != Some(self.family.nfproto()) {
            return;
        }
        match message.kind {
            kind::NEW_TABLE => {
                self.ruleset.dormant = decode::is_dormant(&attrs);
                self.members = attrs.u32(attr::TABLE_USE);
            }
            kind::NEW_SET => self.add_set(&attrs),
            kind::NEW_ELEMENT => {
                let set = attrs.text(attr::ELEM_LIST_SET).and_then(|name| self.ruleset.sets.get_mut(name));
                if let Some(state) = set {
                    for listed in decode::elements(&attrs) {
                        match listed {
                            ListedElement::End(key) => {
                                self.ends.entry(state.set.name.clone()).or_default().push(key);
                            }
                            listed => add_element(listed, state, self.family),
                        }
                    }
                }
            }
            kind::NEW_CHAIN => self.ruleset.chains.extend(decode::chain(&attrs)),
            kind::NEW_RULE => {
                if let Some(chain) = attrs.text(attr::RULE_CHAIN) {
                    self.rules.entry(chain.into()).or_default().push(decode::rule(&attrs));
                }
            }
            kind::NEW_OBJECT => self.ruleset.objects.extend(decode::object(&attrs)),
            kind::NEW_FLOWTABLE => {
                self.ruleset.flowtables.extend(attrs.text(attr::FLOWTABLE_NAME).map(Name::from));
            }
            _ => {}
        }
    }

    fn add_set(&mut self, attrs: &Attrs<'_>) {
        let Some(name) = attrs.text(attr::SET_NAME).map(Name::from) else { return };
        let Some(state) = decode::set(attrs, &name, self.family) else {
            self.anonymous_sets.insert(name);
            return;
        };
        if let Some(count) = attrs.u32(attr::SET_COUNT).and_then(|count| usize::try_from(count).ok()) {
            self.counts.insert(name.clone(), count);
        }
        self.ruleset.sets.insert(name, state);
    }

    /// The chains that have rules, which were read before.
    pub fn chains_with_rules(&self) -> Vec<Name> {
        self.rules.keys().cloned().collect()
    }

    /// Whether all that is in the table was told: sets, chains, objects and flowtables.
    pub fn has_all_members(&self) -> bool {
        let Ruleset { sets, chains, objects, flowtables, dormant: _ } = &self.ruleset;
        let told = self.anonymous_sets.len() + sets.len() + chains.len() + objects.len() + flowtables.len();
        self.members.and_then(|members| usize::try_from(members).ok()) == Some(told)
    }

    /// The sets whose elements are still to be asked for, those with the fewest first, with the number of elements where the
    /// kernel tells it.
    pub fn sets(&self) -> Vec<(Set, Option<usize>)> {
        let sets = self.ruleset.sets.values().filter(|state| !state.foreign && !state.set.is_transient());
        let mut sets: Vec<_> =
            sets.map(|state| (state.set.clone(), self.counts.get(&state.set.name).copied())).collect();
        sets.sort_by_key(|(_, count)| *count);
        sets
    }

    /// What was collected so far.
    pub fn so_far(&self) -> &Ruleset {
        &self.ruleset
    }

    /// Forgets what was collected of a set's elements.
    pub fn forget_elements(&mut self, set: &Name) {
        if let Some(state) = self.ruleset.sets.get_mut(set) {
            state.elements.clear();
        }
    }

    /// What was collected.
    pub fn finish(mut self) -> Collected {
        let mut is_complete = self.has_all_members();
        for (chain, rules) in std::mem::take(&mut self.rules) {
            match self.ruleset.chains.get_mut(&chain) {
                Some(state) => state.rules = rules,
                None => is_complete = false,
            }
        }
        for (name, state) in &mut self.ruleset.sets {
            state.elements.sort_unstable();
            // A hash table that is resized can also yield an element twice.
            state.elements.dedup();
            if state.set.kind == SetKind::Networks {
                let ends = self.ends.remove(name).unwrap_or_default();
                make_networks(state, ends, self.family);
            }
            // The kernel keeps networks in no hash table.
            if state.foreign || state.set.kind != SetKind::Exact {
                continue;
            }
            // The kernel does not count the catch-all element, which has an empty key and sorts first.
            let catch_all = usize::from(state.elements.first().is_some_and(|element| element.key.is_empty()));
            is_complete &= self.counts.get(name) == Some(&(state.elements.len() - catch_all));
        }
        Collected { ruleset: self.ruleset, is_complete }
    }
}

/// A range that is no network can't be said in an element, which makes the set foreign.
fn add_element(listed: ListedElement, state: &mut SetState, family: Family) {
    match listed {
        _ if state.foreign => {}
        ListedElement::Element(element) => state.elements.push(element),
        ListedElement::End(_) => {}
        ListedElement::Range(element, last) => match element.key.to_network(&last, family) {
            Some(key) => state.elements.push(Element { key, ..element }),
            None => make_foreign(state),
        },
    }
}

/// Gives each element, which begins a range, the end that is the first behind it; the highest address if none is.
/// Elements that have their end already are left alone.
fn make_networks(state: &mut SetState, mut ends: Vec<Bytes>, family: Family) {
    if state.set.has_key_ends() {
        return;
    }
    ends.sort_unstable();
    let mut ends = ends.into_iter().peekable();
    let mut elements = std::mem::take(&mut state.elements);
    for element in &mut elements {
        while ends.next_if(|end| *end <= element.key).is_some() {}
        let last = match ends.next() {
            Some(end) => end.previous_addr(family),
            None => Some(Bytes::highest_addr(family)),
        };
        match last.and_then(|last| element.key.to_network(&last, family)) {
            Some(key) => element.key = key,
            None => return make_foreign(state),
        }
    }
    state.elements = elements;
}

fn make_foreign(state: &mut SetState) {
    state.set = decode::as_foreign(state.set.clone());
    state.foreign = true;
    state.elements.clear();
}
