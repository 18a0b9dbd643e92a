//! Tables of iptables-nft.

use cleanup::compat::{Plan, Reader, request_chains, request_rules};
use kernel::{Netlink, Protocol};
use netlink::NetlinkError;
use nft::Family;

use super::{CleanupError, Report};

/// How often the rules are read anew that others have changed meanwhile. Between reading and the commit nothing has to be
/// locked: rules are deleted by handle, which the kernel never gives twice, and a chain to which somebody has added a jump is
/// refused.
const ATTEMPTS: u32 = 10;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;

/// Removes upstream's rules from the tables of a family, all at once.
pub(super) fn clean(family: Family, report: &mut Report) {
    match remove(family) {
        Ok(None) => {}
        Ok(Some(plan)) => {
            let name = |(table, chain): &(_, String)| format!("chain {chain} of table {family} {table}");
            report.kept.extend(plan.kept.iter().map(|chain| format!("{} of iptables-nft", name(chain))));
            let mut items: Vec<String> = plan.chains.iter().map(name).collect();
            items.extend((plan.jumps > 0).then(|| format!("{} jumps", plan.jumps)));
            report.removed(format!("iptables-nft ({family})"), items);
        }
        Err(error) => report.fail(error),
    }
}

/// Removes what is upstream's; `None` if nothing is.
fn remove(family: Family) -> Result<Option<Plan>, CleanupError> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |source| CleanupError::Compat { action, family, source }
    };
    let mut netlink = Netlink::open(Protocol::Netfilter).map_err(failed("open a socket for the rules"))?;
    let mut outcome = Ok(None);
    for _ in 0..ATTEMPTS {
        let (plan, complete) = match plan(&mut netlink, family) {
            Ok(read) => read,
            Err(error) => return Err(failed("read the rules")(error)),
        };
        let Some(plan) = plan else {
            if complete {
                return Ok(None);
            }
            outcome = Err(failed("read the rules")(NetlinkError::Interrupted));
            continue;
        };
        let last_seq = u32::try_from(plan.objects.len()).unwrap_or(u32::MAX);
        match netlink.commit(&plan.batch, last_seq, |seq| object(&plan, seq)) {
            Ok(()) => return Ok(Some(plan)),
            Err(error) => {
                let may_pass = error.refusal().is_some_and(|errno| matches!(errno, ENOENT | EBUSY));
                outcome = Err(failed("delete upstream's chains")(error));
                if !may_pass {
                    break;
                }
            }
        }
    }
    outcome
}

/// What to send, and whether all was read: what is missing makes no plan wrong, but may make it too small.
fn plan(netlink: &mut Netlink, family: Family) -> Result<(Option<Plan>, bool), NetlinkError> {
    let mut reader = Reader::new(family);
    let mut complete = true;
    let mut read = |result| match result {
        // Disturbed, or the table went between the two requests.
        Err(NetlinkError::Interrupted | NetlinkError::Refused { errno: ENOENT, .. }) => {
            complete = false;
            Ok(())
        }
        other => other,
    };
    read(netlink.ask(|seq| request_chains(family, seq), |message| reader.add(message)))?;
    for table in reader.tables() {
        read(netlink.ask(|seq| request_rules(family, table, seq), |message| reader.add(message)))?;
    }
    Ok((reader.plan(), complete))
}

/// What a message of the plan's batch deletes.
fn object(plan: &Plan, seq: u32) -> String {
    let position = usize::try_from(seq).ok().and_then(|seq| seq.checked_sub(1));
    let object = position.and_then(|position| plan.objects.get(position));
    object.map_or_else(|| "upstream's chains".to_owned(), Clone::clone)
}
