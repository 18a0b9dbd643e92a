//! Tables of iptables-legacy.

use std::fs;
use std::io;

use cleanup::legacy::{Edited, Info, parse, without_upstream};
use cleanup::upstream::Table;
use kernel::{Counters, Xtables};
use nft::Family;
use tracing::debug;

use super::lock::XtablesLock;
use super::{CleanupError, Report};
use crate::file::Root;

/// How often a table is read anew that changed before it was replaced. With the lock that should not happen at all.
const ATTEMPTS: u32 = 10;

/// Removes upstream's rules from the tables of a family.
pub(super) fn clean(root: &Root, family: Family, report: &mut Report) {
    match tables_in_use(root, family) {
        Ok(tables) => tables.into_iter().for_each(|table| clean_table(root, family, table, report)),
        Err(error) => report.fail(error),
    }
}

/// The tables that exist, in the order in which they are to be cleaned. The file is not there if the kernel has no
/// iptables-legacy, and empty if nobody in this network namespace has used it.
fn tables_in_use(root: &Root, family: Family) -> Result<Vec<Table>, CleanupError> {
    let path = root.path(match family {
        Family::Ip => "proc/thread-self/net/ip_tables_names",
        Family::Ip6 => "proc/thread-self/net/ip6_tables_names",
    });
    match fs::read_to_string(&path) {
        Ok(names) => Ok(Table::ALL
            .into_iter()
            .filter(|table| names.lines().any(|name| name == table.as_str()))
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(CleanupError::TableNames { path, source }),
    }
}

fn clean_table(root: &Root, family: Family, table: Table, report: &mut Report) {
    let place = format!("table {family} {table} of iptables-legacy");
    match replace(root, family, table) {
        Ok(None) => {}
        Ok(Some(edited)) => {
            let kept = edited.kept.iter().map(|chain| format!("chain {chain} of {place}"));
            report.kept.extend(kept);
            let mut items: Vec<String> = edited.chains.iter().map(|chain| format!("chain {chain}")).collect();
            items.extend((edited.jumps > 0).then(|| format!("{} jumps", edited.jumps)));
            report.removed(place, items);
        }
        Err(error) => report.fail(error),
    }
}

/// Replaces a table by itself without upstream's rules; `None` if it has none.
fn replace(root: &Root, family: Family, table: Table) -> Result<Option<Edited>, CleanupError> {
    let failed = |action| move |source| CleanupError::Legacy { action, family, table, source };
    let xtables = Xtables::open(family).map_err(failed("open a socket for"))?;
    if plan(&xtables, family, table)?.is_none() {
        return Ok(None);
    }
    // Only now: a host without leftovers gets no lock file from us.
    let _lock = XtablesLock::take(root)?;
    for attempt in 1.. {
        let Some((edited, old_entries)) = plan(&xtables, family, table)? else { return Ok(None) };
        match xtables.replace(edited.replacement.clone(), old_entries) {
            Ok(counters) => {
                restore_counters(&xtables, table, &edited, &counters);
                return Ok(Some(edited));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {}
            Err(error) => return Err(failed("replace")(error)),
        }
    }
    Ok(None)
}

/// What the table is to be replaced by, and how many entries it has now.
fn plan(xtables: &Xtables, family: Family, table: Table) -> Result<Option<(Edited, u32)>, CleanupError> {
    let unreadable = |source| CleanupError::Unreadable { family, table, source };
    let read = |_| {
        let info = Info::parse(&xtables.info(table.as_str())?);
        Ok((xtables.entries(table.as_str(), info.size)?, info))
    };
    let changed = |read: &io::Result<_>| {
        read.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::WouldBlock)
    };
    let mut readings = (0..ATTEMPTS).map(read);
    let reading = readings.find(|reading| !changed(reading)).unwrap_or(Err(io::ErrorKind::WouldBlock.into()));
    let (entries, info) =
        reading.map_err(|source| CleanupError::Legacy { action: "read", family, table, source })?;
    let rules = parse(family, &info, &entries).map_err(unreadable)?;
    let edited = without_upstream(table, &info, &rules).map_err(unreadable)?;
    Ok(edited.map(|edited| (edited, info.num_entries)))
}

/// Gives the rules that stayed the counts that they had. They may have counted meanwhile, so it is added.
fn restore_counters(xtables: &Xtables, table: Table, edited: &Edited, old: &[Counters]) {
    let counters: Vec<Counters> =
        edited.old_entries.iter().map(|idx| old.get(*idx).copied().unwrap_or_default()).collect();
    if let Err(error) = xtables.add_counters(table.as_str(), &counters) {
        debug!(%table, %error, "counters of foreign rules begin anew");
    }
}
