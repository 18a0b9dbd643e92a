//! A kernel in memory: tables that refuse what the real one refuses, and failures on demand.
//!
//! `crates/kernel/tests/parity.rs` runs the same cases against this one and the real one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink::NetlinkError;
use nft::dump::Count;
use nft::{
    Applied, BaseChain, Bytes, ChainState, ChainType, Counts, Data, Element, Expr, Family, Hook, Kernel,
    LookupResult, Name, Op, Reading, Ruleset, Set, SetState, Transaction, Verdict,
};

const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
/// What a recent kernel (6.18) says of a loop; older ones say ELOOP.
const EMLINK: i32 = 31;
const EOPNOTSUPP: i32 = 95;

/// Tables in memory. Clones are connections to the same tables.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<(Family, Name), Ruleset>,
    /// Transactions that were applied.
    applied: Vec<Transaction>,
    /// Packets by element, of counted sets.
    counts: BTreeMap<(Family, Name, Name, Bytes), u64>,
    /// Answers to give instead of doing the next calls; `None`: do this one.
    faults: VecDeque<Option<Fault>>,
}

/// A failure to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this error number, nothing is done.
    Errno(i32),
    /// A transaction is carried out, but the answer is lost; a reading is unstable.
    AnswerLost,
    /// The call panics before it does anything.
    Panic,
}

impl FakeKernel {
    /// A kernel without tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next calls fail so, in order; `None` lets one pass.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.extend(faults);
    }

    /// The transactions applied so far.
    pub fn applied(&self) -> Vec<Transaction> {
        self.state().applied.clone()
    }

    /// A table as it stands.
    pub fn table(&self, family: Family, name: &Name) -> Option<Ruleset> {
        self.state().tables.get(&(family, name.clone())).cloned()
    }

    /// Packets are looked up that an element of a counted set matches.
    ///
    /// # Panics
    /// There is no such element.
    pub fn count(&self, family: Family, table: &Name, set: &Name, key: Bytes, packets: u64) {
        let mut state = self.state();
        let found = state.tables.get(&(family, table.clone())).and_then(|table| table.sets.get(set));
        let element = found.filter(|state| state.set.is_counted).map(|state| &state.elements);
        assert!(element.is_some_and(|elements| elements.iter().any(|element| element.key == key)));
        *state.counts.entry((family, table.clone(), set.clone(), key)).or_default() += packets;
    }

    /// Changes a table behind everybody's back.
    pub fn tamper(&self, family: Family, name: &Name, change: impl FnOnce(&mut Ruleset)) {
        if let Some(table) = self.state().tables.get_mut(&(family, name.clone())) {
            change(table);
        }
    }

    /// Deletes a table behind everybody's back.
    pub fn delete_table(&self, family: Family, name: &Name) {
        let mut state = self.state();
        state.tables.remove(&(family, name.clone()));
        state.counts.retain(|(of, table, ..), _| *of != family || table != name);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel for FakeKernel {
    fn apply(&mut self, tx: &Transaction) -> Result<Applied, NetlinkError> {
        let mut state = self.state();
        let fault = state.faults.pop_front().flatten();
        if fault == Some(Fault::Panic) {
            panic_on_request();
        }
        if let Some(Fault::Errno(errno)) = fault {
            return Err(NetlinkError::refused("batch", errno, None));
        }
        let key = (tx.family, tx.table.clone());
        let after = apply(tx, state.tables.get(&key).cloned())?;
        match after {
            Some(table) => state.tables.insert(key, table),
            None => state.tables.remove(&key),
        };
        state.counts.retain(|(family, table, set, key), _| {
            *family != tx.family || *table != tx.table || !tx.ops.iter().any(|op| makes_anew(op, set, key))
        });
        state.applied.push(tx.clone());
        if fault.is_some() {
            return Err(NetlinkError::OutcomeUnknown { why: "staged" });
        }
        Ok(Applied { batches: 1, messages: tx.ops.len(), ..Applied::default() })
    }

    fn read(&mut self, family: Family, table: &Name) -> Result<Reading, NetlinkError> {
        let mut state = self.state();
        match state.faults.pop_front().flatten() {
            Some(Fault::Errno(errno)) => Err(NetlinkError::refused("dump", errno, None)),
            Some(Fault::AnswerLost) => Ok(Reading::Unstable),
            Some(Fault::Panic) => panic_on_request(),
            None => Ok(Reading::Whole(state.tables.get(&(family, table.clone())).cloned())),
        }
    }

    fn counts(&mut self, family: Family, table: &Name, sets: &[Name]) -> Result<Counts, NetlinkError> {
        let state = self.state();
        let mut counts = Counts::new();
        for ((of, within, set, key), packets) in &state.counts {
            let found = state.tables.get(&(family, table.clone())).and_then(|table| table.sets.get(set));
            let elements = found.map_or(&[][..], |state| &state.elements);
            let element = elements.iter().find(|element| element.key == *key);
            if let Some(element) = element.filter(|_| (*of, within) == (family, table) && sets.contains(set))
            {
                let count = Count { element: element.clone(), packets: *packets };
                counts.entry(set.clone()).or_default().push(count);
            }
        }
        Ok(counts)
    }
}

/// Whether an element that counted is not the same any more after this.
fn makes_anew(op: &Op, set: &Name, key: &Bytes) -> bool {
    match op {
        Op::DeleteTable => true,
        Op::DeleteSet(name) => name == set,
        Op::DeleteElements { set: of, elements } => of.name == *set && elements.contains(key),
        Op::ReplaceElements { set: of, elements } => {
            of.name == *set && elements.iter().any(|element| element.key == *key)
        }
        _ => false,
    }
}

#[expect(clippy::panic, reason = "to see that its callers survive one")]
fn panic_on_request() -> ! {
    panic!("staged")
}

/// The table after the whole transaction, or the first refusal.
fn apply(tx: &Transaction, mut table: Option<Ruleset>) -> Result<Option<Ruleset>, NetlinkError> {
    for op in &tx.ops {
        match op {
            Op::AddTable => table.get_or_insert_default().dormant = false,
            Op::DeleteTable if table.is_none() => return Err(refused("table", ENOENT)),
            Op::DeleteTable => table = None,
            op => apply_op(tx.family, table.as_mut().ok_or_else(|| refused("table", ENOENT))?, op)?,
        }
    }
    if let Some(table) = &table {
        validate(table)?;
    }
    Ok(table)
}

fn refused(object: impl std::fmt::Display, errno: i32) -> NetlinkError {
    NetlinkError::refused(object.to_string(), errno, None)
}

fn apply_op(family: Family, table: &mut Ruleset, op: &Op) -> Result<(), NetlinkError> {
    match op {
        Op::AddTable | Op::DeleteTable => Ok(()),
        Op::AddSet(set) => add_set(table, set),
        Op::DeleteSet(name) => delete_set(table, name),
        Op::AddChain { name, base } => add_chain(table, name, base.as_ref()),
        Op::DeleteChain(name) => delete_chain(table, name),
        Op::DeleteObject(kind, name) => {
            let found = table.objects.remove(&(*kind, name.clone()));
            if found { Ok(()) } else { Err(refused(name, ENOENT)) }
        }
        Op::DeleteFlowtable(name) if table.flowtables.remove(name) => Ok(()),
        Op::DeleteFlowtable(name) => Err(refused(name, ENOENT)),
        Op::SetRules { chain, rules } => {
            set_rules(table, chain, rules.iter().map(|rule| rule.compile(family)).collect())
        }
        Op::CopyRules { chain, rules } => set_rules(table, chain, rules.clone()),
        Op::AddElements { set, elements } => {
            elements.iter().try_for_each(|element| add_element(table, &set.name, element))
        }
        Op::ReplaceElements { set, elements } => elements.iter().try_for_each(|element| {
            delete_element(table, &set.name, &element.key)?;
            add_element(table, &set.name, element)
        }),
        Op::DeleteElements { set, elements } => {
            elements.iter().try_for_each(|key| delete_element(table, &set.name, key))
        }
    }
}

fn add_set(table: &mut Ruleset, set: &Set) -> Result<(), NetlinkError> {
    match table.sets.get(&set.name) {
        Some(known) if known.matches(set) => {}
        Some(_) => return Err(refused(&set.name, EEXIST)),
        None => {
            table.sets.insert(set.name.clone(), SetState::new(set.clone(), Vec::new()));
        }
    }
    Ok(())
}

fn delete_set(table: &mut Ruleset, name: &Name) -> Result<(), NetlinkError> {
    if !table.sets.contains_key(name) {
        return Err(refused(name, ENOENT));
    }
    if expressions(table).any(|expr| matches!(expr, Expr::Lookup { set, .. } if set == name)) {
        return Err(refused(name, EBUSY));
    }
    table.sets.remove(name);
    Ok(())
}

fn add_chain(table: &mut Ruleset, name: &Name, base: Option<&BaseChain>) -> Result<(), NetlinkError> {
    match table.chains.get(name) {
        None => {
            table.chains.insert(name.clone(), ChainState::new(base.copied(), Vec::new()));
        }
        Some(known) if base.is_some() && known.base.as_ref() != base => {
            return Err(refused(name, EOPNOTSUPP));
        }
        Some(_) => {}
    }
    Ok(())
}

/// Its own rules go with a chain; references from elsewhere keep it.
fn delete_chain(table: &mut Ruleset, name: &Name) -> Result<(), NetlinkError> {
    let Some(chain) = table.chains.remove(name) else { return Err(refused(name, ENOENT)) };
    if targets(table).any(|target| target == name) {
        table.chains.insert(name.clone(), chain);
        return Err(refused(name, EBUSY));
    }
    Ok(())
}

fn set_rules(table: &mut Ruleset, name: &Name, rules: Vec<Vec<Expr>>) -> Result<(), NetlinkError> {
    for expr in rules.iter().flatten() {
        match expr {
            Expr::Lookup { set, dreg, .. } => {
                let known = table.sets.get(set).ok_or_else(|| refused(format!("rule of {name}"), ENOENT))?;
                let is_map = known.set.data != nft::SetData::None;
                if is_map == matches!(dreg, LookupResult::None) {
                    return Err(refused(format!("rule of {name}"), EOPNOTSUPP));
                }
            }
            Expr::Verdict(verdict) => check_target(table, verdict, || format!("rule of {name}"))?,
            _ => {}
        }
    }
    let chain = table.chains.get_mut(name).ok_or_else(|| refused(name, ENOENT))?;
    chain.rules = rules;
    Ok(())
}

fn check_target(table: &Ruleset, verdict: &Verdict, what: impl Fn() -> String) -> Result<(), NetlinkError> {
    let Some(target) = target(verdict) else { return Ok(()) };
    match table.chains.get(target) {
        None => Err(refused(what(), ENOENT)),
        Some(chain) if chain.base.is_some() => Err(refused(what(), EOPNOTSUPP)),
        Some(_) => Ok(()),
    }
}

fn add_element(table: &mut Ruleset, name: &Name, element: &Element) -> Result<(), NetlinkError> {
    let what = || format!("element of {name}");
    if let Data::Verdict(verdict) = &element.data {
        check_target(table, verdict, what)?;
    }
    let set = table.sets.get_mut(name).ok_or_else(|| refused(name, ENOENT))?;
    match set.elements.binary_search_by_key(&element.key, |known| known.key) {
        Ok(idx) if set.elements[idx].data == element.data => {}
        Ok(_) => return Err(refused(what(), EEXIST)),
        Err(idx) => set.elements.insert(idx, element.clone()),
    }
    Ok(())
}

fn delete_element(table: &mut Ruleset, name: &Name, key: &Bytes) -> Result<(), NetlinkError> {
    let set = table.sets.get_mut(name).ok_or_else(|| refused(name, ENOENT))?;
    match set.elements.binary_search_by_key(key, |known| known.key) {
        Ok(idx) => {
            set.elements.remove(idx);
            Ok(())
        }
        Err(_) => Err(refused(format!("element of {name}"), ENOENT)),
    }
}

fn expressions(table: &Ruleset) -> impl Iterator<Item = &Expr> {
    table.chains.values().flat_map(|chain| chain.rules.iter().flatten())
}

/// Every chain that a rule or an element goes or jumps to.
fn targets(table: &Ruleset) -> impl Iterator<Item = &Name> {
    let rules = expressions(table).filter_map(|expr| match expr {
        Expr::Verdict(verdict) => target(verdict),
        _ => None,
    });
    let elements = table.sets.values().flat_map(|set| &set.elements).filter_map(element_target);
    rules.chain(elements)
}

fn element_target(element: &Element) -> Option<&Name> {
    match &element.data {
        Data::Verdict(verdict) => target(verdict),
        Data::None | Data::Value(_) => None,
    }
}

fn target(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Goto(name) | Verdict::Jump(name) => Some(name),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

/// What the kernel checks at commit, on every way from a base chain: no loops, and expressions only on hooks that allow
/// them.
fn validate(table: &Ruleset) -> Result<(), NetlinkError> {
    let base_chains = table.chains.iter().filter_map(|(name, chain)| Some((name, chain.base?)));
    base_chains
        .into_iter()
        .try_for_each(|(name, base)| walk(table, name, base, &mut Vec::new(), &mut BTreeSet::new()))
}

fn walk<'a>(
    table: &'a Ruleset,
    name: &'a Name,
    base: BaseChain,
    path: &mut Vec<&'a Name>,
    checked: &mut BTreeSet<&'a Name>,
) -> Result<(), NetlinkError> {
    if path.contains(&name) {
        return Err(refused(format!("chain {name}"), EMLINK));
    }
    if !checked.insert(name) {
        return Ok(());
    }
    let Some(chain) = table.chains.get(name) else { return Ok(()) };
    path.push(name);
    for expr in chain.rules.iter().flatten() {
        if !allowed(expr, base) {
            return Err(refused(format!("chain {name}"), EOPNOTSUPP));
        }
    }
    for next in next_chains(table, chain) {
        walk(table, next, base, path, checked)?;
    }
    path.pop();
    Ok(())
}

/// The chains that one leads to, directly or through verdict maps, each once.
fn next_chains<'a>(table: &'a Ruleset, chain: &'a ChainState) -> BTreeSet<&'a Name> {
    let mut next = BTreeSet::new();
    for expr in chain.rules.iter().flatten() {
        match expr {
            Expr::Verdict(verdict) => next.extend(target(verdict)),
            Expr::Lookup { set, dreg: LookupResult::Verdict, .. } => {
                let elements = table.sets.get(set).map_or(&[][..], |set| &set.elements);
                next.extend(elements.iter().filter_map(element_target));
            }
            _ => {}
        }
    }
    next
}

/// `nft_chain_validate_dependency` and `nft_chain_validate_hooks` (`nf_tables_api.c`, `nft_reject.c`, `nft_masq.c` and
/// `nft_nat.c` in `net/netfilter`).
fn allowed(expr: &Expr, base: BaseChain) -> bool {
    let nat = base.kind == ChainType::Nat;
    match expr {
        Expr::Dnat { .. } => nat && matches!(base.hook, Hook::Prerouting | Hook::Output),
        Expr::Masquerade { .. } => nat && base.hook == Hook::Postrouting,
        Expr::Reject { .. } => base.hook != Hook::Postrouting,
        _ => true,
    }
}
