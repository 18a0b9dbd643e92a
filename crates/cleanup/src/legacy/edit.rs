//! A table without what upstream's kube-proxy put into it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::entry::{Entry, Target};
use super::parse::{Chain, Rules};
use super::{HOOKS, Info, ParseError, TABLE_NAME_BYTES};
use crate::graph::{ChainFacts, removable};
use crate::upstream::{self, Table};

/// A table without the leftovers, as the kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// `struct ipt_replace` with the entries. The number of the old entries and the pointer to their counters are zero.
    pub replacement: Vec<u8>,
    /// For each entry of the new table, the number of the old one that it was: it is to go on with that one's counters.
    pub old_entries: Vec<usize>,
    /// Names of the chains that go.
    pub chains: Vec<String>,
    /// How many jumps to such chains go.
    pub jumps: usize,
    /// Upstream's chains that stay, because foreign rules need them.
    pub kept: Vec<String>,
}

/// Takes out upstream's chains and the jumps to them. `None` if there is nothing to take out.
///
/// # Errors
/// The new table would be too large for its own offsets, which can't be: it is smaller than the old one.
pub fn without_upstream(table: Table, info: &Info, rules: &Rules<'_>) -> Result<Option<Edited>, ParseError> {
    let starts = rules.chains_by_offset();
    let target = |entry: &Entry<'_>| jump_target(entry, &starts).map(|idx| rules.chains[idx].name);
    let jumps: BTreeSet<usize> = rules
        .chains
        .iter()
        .filter(|chain| chain.hook.is_some())
        .flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
        .filter(|(chain, rule)| is_upstream_jump(table, chain, rule, target(rule)))
        .map(|(_, rule)| rule.idx)
        .collect();
    let facts: BTreeMap<&str, ChainFacts<'_>> = rules
        .chains
        .iter()
        .map(|chain| {
            let staying = chain.rules.iter().filter(|rule| !jumps.contains(&rule.idx));
            let is_upstream = chain.hook.is_none() && upstream::is_chain(table, chain.name);
            let facts =
                ChainFacts { is_upstream, leads_to: staying.filter_map(target).collect(), is_held: false };
            (chain.name, facts)
        })
        .collect();
    let gone = removable(&facts);
    if gone.is_empty() && jumps.is_empty() {
        return Ok(None);
    }
    let staying: Vec<&Chain<'_>> = rules.chains.iter().filter(|chain| !gone.contains(chain.name)).collect();
    let layout = Layout::new(&staying, rules.end, |entry| !jumps.contains(&entry.idx));
    let kept = facts.iter().filter(|(name, facts)| facts.is_upstream && !gone.contains(*name));
    Ok(Some(Edited {
        replacement: layout.write(table, info, &staying, &starts, rules)?,
        old_entries: layout.entries.iter().map(|entry| entry.idx).collect(),
        jumps: jumps.len(),
        kept: kept.map(|(name, _)| (*name).to_owned()).collect(),
        chains: gone.into_iter().map(str::to_owned).collect(),
    }))
}

fn jump_target(entry: &Entry<'_>, starts: &HashMap<usize, usize>) -> Option<usize> {
    match entry.target {
        // A rule without a target goes on with the next one, which may happen to begin a chain.
        Target::Jump(to) if to != entry.end() => starts.get(&to).copied(),
        _ => None,
    }
}

fn is_upstream_jump(table: Table, chain: &Chain<'_>, rule: &Entry<'_>, to: Option<&str>) -> bool {
    let jump = to.and_then(|to| rule.plain_jump(chain.name, to));
    jump.is_some_and(|jump| upstream::is_jump(table, &jump))
}

/// Where everything goes in the new table.
struct Layout<'a> {
    /// All entries, in order.
    entries: Vec<Entry<'a>>,
    /// New offset of each entry, by number in the old table.
    offsets: HashMap<usize, usize>,
    size: usize,
}

impl<'a> Layout<'a> {
    fn new(chains: &[&Chain<'a>], end: Entry<'a>, stays: impl Fn(&Entry<'a>) -> bool) -> Self {
        let of_chain = |chain: &Chain<'a>| {
            chain.start.into_iter().chain(chain.rules.iter().copied()).collect::<Vec<_>>()
        };
        let all = chains.iter().flat_map(|chain| of_chain(chain)).chain([end]);
        let entries: Vec<Entry<'a>> = all.filter(stays).collect();
        let mut offsets = HashMap::new();
        let mut size = 0;
        for entry in &entries {
            offsets.insert(entry.idx, size);
            size += entry.bytes.len();
        }
        Self { entries, offsets, size }
    }

    /// New offset of the first entry of a chain that stays, behind its name. That is never past the chain's end, since the
    /// policy and the final return stay.
    fn start(&self, chain: &Chain<'_>) -> Option<usize> {
        chain.rules.iter().find_map(|rule| self.offsets.get(&rule.idx)).copied()
    }

    fn write(
        &self,
        table: Table,
        info: &Info,
        chains: &[&Chain<'a>],
        starts: &HashMap<usize, usize>,
        rules: &Rules<'a>,
    ) -> Result<Vec<u8>, ParseError> {
        let (mut hook_entry, mut underflow) = ([0; HOOKS], [0; HOOKS]);
        for chain in chains {
            if let (Some(hook), Some(policy)) = (chain.hook, chain.rules.last()) {
                hook_entry[hook] = word(self.start(chain).unwrap_or_default())?;
                underflow[hook] = word(self.offsets.get(&policy.idx).copied().unwrap_or_default())?;
            }
        }
        let mut out =
            header(table, info.valid_hooks, self.entries.len(), self.size, &hook_entry, &underflow)?;
        for entry in &self.entries {
            let begin = out.len();
            out.extend_from_slice(entry.bytes);
            if let Some(to) = self.new_target(entry, starts, rules) {
                let at = begin + entry.jump_at();
                out[at..at + 4].copy_from_slice(&word(to)?.to_ne_bytes());
            }
        }
        Ok(out)
    }

    /// What a jump is to hold in the new table.
    fn new_target(
        &self,
        entry: &Entry<'_>,
        starts: &HashMap<usize, usize>,
        rules: &Rules<'_>,
    ) -> Option<usize> {
        let Target::Jump(to) = entry.target else { return None };
        if to == entry.end() {
            return Some(self.offsets[&entry.idx] + entry.bytes.len());
        }
        self.start(&rules.chains[*starts.get(&to)?])
    }
}

/// `struct ipt_replace` up to the entries.
fn header(
    table: Table,
    valid_hooks: u32,
    entries: usize,
    size: usize,
    hook_entry: &[u32; HOOKS],
    underflow: &[u32; HOOKS],
) -> Result<Vec<u8>, ParseError> {
    let mut out = vec![0; TABLE_NAME_BYTES];
    out[..table.as_str().len()].copy_from_slice(table.as_str().as_bytes());
    let numbers = [valid_hooks, word(entries)?, word(size)?];
    for number in numbers.iter().chain(hook_entry).chain(underflow) {
        out.extend(number.to_ne_bytes());
    }
    // The number of old entries and the pointer to where their counters go: for whoever makes the call.
    out.extend([0; 4 + 8]);
    Ok(out)
}

fn word(number: usize) -> Result<u32, ParseError> {
    u32::try_from(number)
        .map_err(|_too_large| ParseError { what: "an offset beyond 32 bits", offset: number })
}
