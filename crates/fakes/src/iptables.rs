//! Tables of iptables in memory, which refuse what `iptables-restore` refuses, and failures on demand.
//!
//! It is given the very text that the tool would read, and is read as the text that `iptables-save` would print.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iptables::{CountedRule, Iptables, IptablesError, Restore, Saved, TableName, read_counts};

/// One family's tables in memory. Clones are connections to the same tables.
#[derive(Clone, Debug)]
pub struct FakeIptables {
    state: Arc<Mutex<State>>,
}

type Chains = BTreeMap<String, Vec<String>>;

#[derive(Debug)]
struct State {
    tables: BTreeMap<TableName, Chains>,
    /// What was restored.
    restored: Vec<String>,
    /// Answers to give instead of doing the next calls; `None`: do this one.
    faults: VecDeque<Option<Fault>>,
}

/// A failure to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody else holds the lock; nothing is done.
    Busy,
    /// Only so many tables are written, then the input is refused.
    After(usize),
    /// Everything is written, and nobody hears of it in time.
    AnswerLost,
    /// The caller's thread panics.
    Panic,
}

impl Default for FakeIptables {
    fn default() -> Self {
        let table =
            |name| (name, built_in(name).iter().map(|chain| ((*chain).to_owned(), Vec::new())).collect());
        let state =
            State { tables: TableName::ALL.map(table).into(), restored: Vec::new(), faults: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

fn built_in(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        TableName::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        TableName::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    }
}

impl FakeIptables {
    /// Empty tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next calls fail so, in order; `None` lets one pass.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().faults.extend(faults);
    }

    /// The inputs restored so far.
    pub fn restored(&self) -> Vec<String> {
        self.state().restored.clone()
    }

    /// Changes a table behind everybody's back.
    pub fn tamper(&self, table: TableName, change: impl FnOnce(&mut BTreeMap<String, Vec<String>>)) {
        if let Some(chains) = self.state().tables.get_mut(&table) {
            change(chains);
        }
    }

    /// What `iptables-save -t TABLE` prints.
    pub fn listing(&self, table: TableName) -> String {
        let state = self.state();
        let chains = &state.tables[&table];
        let declaration = |name: &String| {
            let policy = if built_in(table).contains(&name.as_str()) { "ACCEPT" } else { "-" };
            format!(":{name} {policy} [0:0]")
        };
        let rules =
            chains.iter().flat_map(|(name, rules)| rules.iter().map(move |rule| format!("-A {name} {rule}")));
        let lines: Vec<String> = chains.keys().map(declaration).chain(rules).collect();
        format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Iptables for FakeIptables {
    fn restore(&mut self, restore: &Restore) -> Result<(), IptablesError> {
        let mut state = self.state();
        let fault = state.faults.pop_front().flatten();
        let limit = match fault {
            Some(Fault::Busy) => return Err(busy()),
            Some(Fault::Panic) => panic_as_staged(),
            Some(Fault::After(limit)) => Some(limit),
            Some(Fault::AnswerLost) | None => None,
        };
        let text = restore.to_string();
        for (n, section) in text.split_inclusive("COMMIT\n").enumerate() {
            if limit == Some(n) {
                return Err(refused("staged", section));
            }
            let (table, changed) = commit(&state.tables, section)?;
            state.tables.insert(table, changed);
        }
        state.restored.push(text);
        if fault == Some(Fault::AnswerLost) { Err(too_late()) } else { Ok(()) }
    }

    fn save(&mut self, prefix: &str) -> Result<Saved, IptablesError> {
        let fault = self.state().faults.pop_front().flatten();
        match fault {
            Some(Fault::Busy | Fault::After(_)) => return Err(busy()),
            Some(Fault::AnswerLost) => return Err(too_late()),
            Some(Fault::Panic) => panic_as_staged(),
            None => {}
        }
        let mut saved = Saved::default();
        for table in TableName::ALL {
            let read = saved.read(table, prefix, &self.listing(table));
            read.map_err(|source| IptablesError::Saved { table, source })?;
        }
        Ok(saved)
    }

    /// Nothing passes here, so nothing was counted.
    fn counts(
        &mut self,
        wanted: &dyn Fn(TableName, &str) -> bool,
    ) -> Result<Vec<CountedRule>, IptablesError> {
        let mut rules = Vec::new();
        for table in [TableName::Filter, TableName::Nat] {
            let listing = self.listing(table).replace("\n-A ", "\n[0:0] -A ");
            let read = read_counts(table, &listing, |chain| wanted(table, chain));
            rules.extend(read.map_err(|source| IptablesError::Saved { table, source })?);
        }
        Ok(rules)
    }
}

fn busy() -> IptablesError {
    IptablesError::Busy { program: "fake".into(), message: "another app holds the xtables lock".into() }
}

fn too_late() -> IptablesError {
    IptablesError::TimedOut { program: "fake".into(), limit: Duration::ZERO }
}

#[expect(clippy::panic, reason = "it was asked for")]
fn panic_as_staged() -> ! {
    panic!("a staged panic")
}

fn refused(message: &str, line: &str) -> IptablesError {
    IptablesError::Refused {
        program: "fake".into(),
        text: Some(line.to_owned()),
        message: message.to_owned(),
    }
}

/// The table after a whole section.
fn commit(tables: &BTreeMap<TableName, Chains>, section: &str) -> Result<(TableName, Chains), IptablesError> {
    let mut lines = section.lines();
    let header = lines.next().unwrap_or_default();
    let is_named = |table: &TableName| header == format!("*{table}");
    let table = TableName::ALL.into_iter().find(is_named).ok_or_else(|| refused("no table", header))?;
    let mut chains = tables[&table].clone();
    for line in lines {
        if line == "COMMIT" {
            return Ok((table, chains));
        }
        edit(table, &mut chains, line).map_err(|why| refused(why, line))?;
    }
    Err(refused("COMMIT expected", section))
}

fn edit(table: TableName, chains: &mut Chains, line: &str) -> Result<(), &'static str> {
    if let Some(declaration) = line.strip_prefix(':') {
        let name = declaration.strip_suffix(" - [0:0]").ok_or("not a chain of ours")?;
        if built_in(table).contains(&name) || name.len() > 28 || name.contains(' ') {
            return Err("no name for a chain");
        }
        chains.insert(name.to_owned(), Vec::new());
        return Ok(());
    }
    let mut words = line.splitn(3, ' ');
    let (verb, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let rule = words.next().unwrap_or_default().to_owned();
    if verb == "-X" {
        return remove(table, chains, name);
    }
    check_target(chains, &rule)?;
    let rules = chains.get_mut(name).ok_or("No chain/target/match by that name")?;
    match verb {
        "-A" => rules.push(rule),
        "-I" => rules.insert(0, rule),
        "-C" if rules.contains(&rule) => {}
        "-D" => {
            let at = rules
                .iter()
                .position(|known| *known == rule)
                .ok_or("Bad rule (does a matching rule exist?)")?;
            rules.remove(at);
        }
        "-C" => return Err("Bad rule (does a matching rule exist?)"),
        _ => return Err("unknown command"),
    }
    Ok(())
}

fn remove(table: TableName, chains: &mut Chains, name: &str) -> Result<(), &'static str> {
    if built_in(table).contains(&name) {
        return Err("a built-in chain");
    }
    if !chains.get(name).ok_or("No chain/target/match by that name")?.is_empty() {
        return Err("Directory not empty");
    }
    if chains.values().flatten().any(|rule| target(rule) == Some(name)) {
        return Err("Too many links");
    }
    chains.remove(name);
    Ok(())
}

const TARGETS: [&str; 7] = ["ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT"];

fn check_target(chains: &Chains, rule: &str) -> Result<(), &'static str> {
    match target(rule) {
        Some(target) if !TARGETS.contains(&target) && !chains.contains_key(target) => {
            Err("No chain/target/match by that name")
        }
        _ => Ok(()),
    }
}

fn target(rule: &str) -> Option<&str> {
    rule.rsplit_once("-j ").and_then(|(_, target)| target.split(' ').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One section for each text; what came of it, and the rules of chain `A`.
    fn restore(tables: &FakeIptables, section: &str) -> Result<(), &'static str> {
        let mut state = tables.state();
        let mut chains = state.tables[&TableName::Nat].clone();
        section.lines().try_for_each(|line| edit(TableName::Nat, &mut chains, line))?;
        state.tables.insert(TableName::Nat, chains);
        Ok(())
    }

    #[test]
    fn what_the_tool_refuses_is_refused() {
        let tables = FakeIptables::new();
        assert_eq!(restore(&tables, ":A - [0:0]\n:B - [0:0]\n-A A -j B\n-I A -j DROP"), Ok(()));
        for (section, why) in [
            ("-A C -j DROP", "No chain/target/match by that name"),
            ("-A A -j C", "No chain/target/match by that name"),
            ("-X B", "Too many links"),
            ("-X A", "Directory not empty"),
            ("-D A -j ACCEPT", "Bad rule (does a matching rule exist?)"),
            ("-C A -j ACCEPT", "Bad rule (does a matching rule exist?)"),
            (":INPUT - [0:0]", "no name for a chain"),
        ] {
            assert_eq!(restore(&tables, section), Err(why), "{section}");
        }
        assert_eq!(restore(&tables, "-C A -j B"), Ok(()));
        assert!(tables.listing(TableName::Nat).contains("]\n-A A -j DROP\n-A A -j B\nCOMMIT"));
        assert_eq!(restore(&tables, ":A - [0:0]\n-X A\n-X B"), Ok(()));
    }
}
