//! A table's bytes to chains.

use std::collections::HashMap;

use netlink::Family;

use super::entry::{Entry, Target};
use super::{HOOK_NAMES, Info, ParseError};

/// A table, chain by chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    pub(super) chains: Vec<Chain<'a>>,
    /// The entry that ends the table.
    pub(super) end: Entry<'a>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its name; unique in the table.
    pub name: &'a str,
    /// Number of the hook, if it is a built-in chain.
    pub(super) hook: Option<usize>,
    /// The entry with its name, if it is none.
    pub(super) start: Option<Entry<'a>>,
    /// Its rules, and behind them the policy or the final return.
    pub(super) rules: Vec<Entry<'a>>,
}

impl<'a> Rules<'a> {
    /// The chains in the table's order.
    pub fn chains(&self) -> &[Chain<'a>] {
        &self.chains
    }

    /// Offsets that jumps may hold, with the number of the chain.
    pub(super) fn chains_by_offset(&self) -> HashMap<usize, usize> {
        let first = |chain: &Chain<'_>| chain.rules.first().map(|entry| entry.offset);
        self.chains.iter().enumerate().filter_map(|(idx, chain)| Some((first(chain)?, idx))).collect()
    }
}

/// Reads a table.
///
/// # Errors
/// It is not as the tools of iptables would have written it.
pub fn parse<'a>(family: Family, info: &Info, table: &'a [u8]) -> Result<Rules<'a>, ParseError> {
    let mut entries = read_entries(family, table)?;
    let end = entries.pop().ok_or(ParseError { what: "no entry", offset: 0 })?;
    if end.target != Target::ChainStart("ERROR") {
        return Err(ParseError { what: "no end of the table", offset: end.offset });
    }
    let hooks = hooks_by_offset(info)?;
    let mut chains: Vec<Chain<'a>> = Vec::new();
    for entry in entries {
        if let Some(hook) = hooks.get(&entry.offset) {
            let name = HOOK_NAMES[*hook];
            chains.push(Chain { name, hook: Some(*hook), start: None, rules: vec![entry] });
        } else if let Target::ChainStart(name) = entry.target {
            chains.push(Chain { name, hook: None, start: Some(entry), rules: Vec::new() });
        } else {
            let chain = chains.last_mut();
            chain
                .ok_or(ParseError { what: "a rule outside of a chain", offset: entry.offset })?
                .rules
                .push(entry);
        }
    }
    check(info, &chains)?;
    Ok(Rules { chains, end })
}

fn read_entries(family: Family, table: &[u8]) -> Result<Vec<Entry<'_>>, ParseError> {
    let mut entries = Vec::new();
    let mut offset = 0;
    while offset < table.len() {
        let entry = Entry::read(family, table, entries.len(), offset)?;
        offset = entry.end();
        entries.push(entry);
    }
    Ok(entries)
}

fn hooks_by_offset(info: &Info) -> Result<HashMap<usize, usize>, ParseError> {
    let mut hooks = HashMap::new();
    for (hook, offset) in
        info.hook_entry.iter().enumerate().filter(|(hook, _)| info.valid_hooks >> hook & 1 == 1)
    {
        let offset = usize::try_from(*offset).unwrap_or(usize::MAX);
        if hooks.insert(offset, hook).is_some() {
            return Err(ParseError { what: "two hooks with one chain", offset });
        }
    }
    Ok(hooks)
}

/// What editing relies on: all hooks have a chain that ends with its policy, no chain is empty, and jumps lead to
/// beginnings of chains or to the next rule.
fn check(info: &Info, chains: &[Chain<'_>]) -> Result<(), ParseError> {
    let found = chains.iter().filter(|chain| chain.hook.is_some()).count();
    if u32::try_from(found) != Ok(info.valid_hooks.count_ones()) {
        return Err(ParseError { what: "a hook without its chain", offset: 0 });
    }
    let mut starts = Vec::new();
    for chain in chains {
        let last = chain.rules.last();
        let offset = chain.start.map_or(0, |start| start.offset);
        let last = last.ok_or(ParseError { what: "a chain without an end", offset })?;
        let policy_at = chain.hook.map(|hook| info.underflow[hook]);
        if policy_at.is_some_and(|at| usize::try_from(at) != Ok(last.offset)) {
            return Err(ParseError { what: "a policy in the midst of its chain", offset: last.offset });
        }
        starts.push(chain.rules[0].offset);
    }
    starts.sort_unstable();
    for rule in chains.iter().flat_map(|chain| &chain.rules) {
        if let Target::Jump(to) = rule.target
            && to != rule.end()
            && starts.binary_search(&to).is_err()
        {
            return Err(ParseError { what: "a jump into the midst of a chain", offset: rule.offset });
        }
    }
    Ok(())
}
