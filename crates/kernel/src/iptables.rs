//! The programs `iptables`, `iptables-save` and `iptables-restore` behind the trait of the pure crate, for one family.
//!
//! There is no other way that suits both flavours: the legacy one has no stable kernel interface, and the rules of the nft one
//! are known only to its own program.

mod process;
mod programs;
mod verdict;
mod watch;

use std::time::Duration;

use iptables::{CountedRule, Iptables, IptablesError, Restore, Saved, TableName, read_counts};

pub use programs::{Flavour, Programs, Version};
pub use watch::wait_for_loss;

/// One family's tables, by the programs that were found. It is cheap to make: a program is started for each call.
#[derive(Clone, Debug)]
pub struct Tables {
    programs: Programs,
}

/// How long a program may take, besides waiting for the lock: tables can be large and the nft flavour slow.
const LIMIT: Duration = Duration::from_mins(1);
/// What each change may add to that.
const LIMIT_FOR_EDIT: Duration = Duration::from_millis(2);

impl Tables {
    /// The tables that these programs read and write, in the network namespace of the calling thread.
    pub fn new(programs: Programs) -> Self {
        Self { programs }
    }

    /// Whether all rules are there that these changes check ([`iptables::Edit::Check`]).
    ///
    /// # Errors
    /// It can't be told.
    pub fn hold(&mut self, checks: &Restore) -> Result<bool, IptablesError> {
        match self.restore(checks) {
            Ok(()) => Ok(true),
            Err(IptablesError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a chain is there with at least one rule.
    ///
    /// # Errors
    /// It can't be told.
    pub fn has_rules(&self, table: TableName, chain: &str) -> Result<bool, IptablesError> {
        let arguments = ["-t", table.as_str(), "-S", chain];
        match process::run(&self.programs.list, &arguments, None, LIMIT) {
            Ok(listing) => Ok(listing.lines().any(|line| line.starts_with("-A "))),
            Err(IptablesError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Iptables for Tables {
    fn restore(&mut self, restore: &Restore) -> Result<(), IptablesError> {
        if restore.is_empty() {
            return Ok(());
        }
        let edits = u32::try_from(restore.edit_count()).unwrap_or(u32::MAX);
        let limit = LIMIT.saturating_add(LIMIT_FOR_EDIT.saturating_mul(edits));
        let arguments = ["--noflush", "--counters"];
        process::run(&self.programs.restore, &arguments, Some(&restore.to_string().into()), limit).map(drop)
    }

    fn save(&mut self, prefix: &str) -> Result<Saved, IptablesError> {
        let mut saved = Saved::default();
        for table in TableName::ALL {
            // One by one: all at once would be all that there are, and some of others can be large.
            let arguments = ["-t", table.as_str()];
            let output = process::run(&self.programs.save, &arguments, None, 5 * LIMIT)?;
            let read = saved.read(table, prefix, &output);
            read.map_err(|source| IptablesError::Saved { table, source })?;
        }
        Ok(saved)
    }

    fn counts(
        &mut self,
        wanted: &dyn Fn(TableName, &str) -> bool,
    ) -> Result<Vec<CountedRule>, IptablesError> {
        let mut rules = Vec::new();
        for table in [TableName::Filter, TableName::Nat] {
            let arguments = ["-c", "-t", table.as_str()];
            let output = process::run(&self.programs.save, &arguments, None, 5 * LIMIT)?;
            let read = read_counts(table, &output, |chain| wanted(table, chain));
            rules.extend(read.map_err(|source| IptablesError::Saved { table, source })?);
        }
        Ok(rules)
    }
}
