//! Against tables as a kernel told them (`tests/captured`).

use netlink::Family;
use proptest::prelude::*;

use super::entry::{Entry, Target};
use super::*;
use crate::upstream::Table;

const IP_NAT: &[u8] = include_bytes!("../../tests/captured/legacy-ip-nat.bin");
const IP_FILTER: &[u8] = include_bytes!("../../tests/captured/legacy-ip-filter.bin");
const IP6_NAT: &[u8] = include_bytes!("../../tests/captured/legacy-ip6-nat.bin");
const IP6_FILTER: &[u8] = include_bytes!("../../tests/captured/legacy-ip6-filter.bin");

/// What follows the hooks' offsets in the message that replaces a table.
const REPLACE_HEADER: usize = 96;

fn split(captured: &[u8]) -> (Info, &[u8]) {
    let (info, entries) = captured.split_first_chunk().unwrap();
    (Info::parse(info), entries)
}

/// A chain with its rules: each with where it leads to, and its bytes without that.
type Described = (String, Vec<(String, Vec<u8>)>);

fn describe(rules: &Rules<'_>) -> Vec<Described> {
    let starts = rules.chains_by_offset();
    let rule = |entry: &Entry<'_>| {
        let mut bytes = entry.bytes.to_vec();
        let to = match entry.target {
            Target::Jump(to) => {
                bytes[entry.jump_at()..entry.jump_at() + 4].fill(0);
                if to == entry.end() { "next".to_owned() } else { rules.chains[starts[&to]].name.to_owned() }
            }
            other => format!("{other:?}"),
        };
        (to, bytes)
    };
    rules.chains.iter().map(|chain| (chain.name.to_owned(), chain.rules.iter().map(rule).collect())).collect()
}

/// Takes out what is upstream's and reads the result: it has the other chains, with all rules but these jumps.
#[track_caller]
fn check(
    family: Family,
    table: Table,
    captured: &[u8],
    gone: &[&str],
    kept: &[&str],
    jumps: &[(&str, usize)],
) {
    let (info, entries) = split(captured);
    let rules = parse(family, &info, entries).unwrap();
    let edited = without_upstream(table, &info, &rules).unwrap().unwrap();
    assert_eq!((&edited.chains[..], &edited.kept[..]), (&texts(gone)[..], &texts(kept)[..]));
    assert_eq!(edited.jumps, jumps.len());

    let (new_info, new_entries) = replaced(&edited.replacement, table);
    assert_eq!(usize::try_from(new_info.num_entries).unwrap(), edited.old_entries.len());
    assert_eq!(usize::try_from(new_info.size).unwrap(), new_entries.len());
    let new_rules = parse(family, &new_info, new_entries).unwrap();
    let mut expected = describe(&rules);
    expected.retain(|(name, _)| !gone.contains(&name.as_str()));
    for (name, idx) in jumps {
        expected.iter_mut().find(|(chain, _)| chain == name).unwrap().1.remove(*idx);
    }
    assert_eq!(describe(&new_rules), expected);
    assert_eq!(without_upstream(table, &new_info, &new_rules), Ok(None), "nothing is left to take out");
    let same = |(new, old): (Entry<'_>, &usize)| {
        let old = all(&rules).find(|entry| entry.idx == *old).unwrap();
        new.bytes.len() == old.bytes.len()
    };
    assert!(
        all(&new_rules).zip(&edited.old_entries).all(same),
        "counters go to the rules that they come from"
    );
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn all<'a>(rules: &'a Rules<'a>) -> impl Iterator<Item = Entry<'a>> {
    let of_chain = |chain: &'a Chain<'a>| chain.start.into_iter().chain(chain.rules.iter().copied());
    rules.chains.iter().flat_map(of_chain).chain([rules.end])
}

/// The replacement as the kernel would tell of it.
fn replaced(replacement: &[u8], table: Table) -> (Info, &[u8]) {
    assert_eq!(read_text(&replacement[..TABLE_NAME_BYTES]), Some(table.as_str()));
    let word = |idx: usize| read_u32(replacement, TABLE_NAME_BYTES + 4 * idx).unwrap();
    let info = Info {
        valid_hooks: word(0),
        num_entries: word(1),
        size: word(2),
        hook_entry: std::array::from_fn(|hook| word(3 + hook)),
        underflow: std::array::from_fn(|hook| word(3 + HOOKS + hook)),
    };
    (info, &replacement[REPLACE_HEADER..])
}

#[test]
fn tables_are_read_chain_by_chain() {
    let (info, entries) = split(IP_NAT);
    let rules = parse(Family::Ip, &info, entries).unwrap();
    let names: Vec<&str> = rules.chains().iter().map(|chain| chain.name).collect();
    let expected = [
        "PREROUTING",
        "INPUT",
        "OUTPUT",
        "POSTROUTING",
        "AGENT",
        "KUBE-MARK-MASQ",
        "KUBE-SEP-SXIVWICOYRO3J4NJ",
        "KUBE-SERVICES",
        "KUBE-SVC-XPGD46QRK7WJZT7O",
    ];
    assert_eq!(names, expected);
}

/// A foreign jump, which has a condition more, keeps the chain and all that it needs.
#[test]
fn a_foreign_jump_keeps_what_it_leads_to() {
    let kept = ["KUBE-MARK-MASQ", "KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-SERVICES", "KUBE-SVC-XPGD46QRK7WJZT7O"];
    check(Family::Ip, Table::Nat, IP_NAT, &[], &kept, &[("PREROUTING", 0), ("OUTPUT", 0)]);
}

#[test]
fn chains_go_and_jumps_of_what_stays_are_moved() {
    let gone = ["KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-SERVICES", "KUBE-SVC-XPGD46QRK7WJZT7O"];
    check(Family::Ip6, Table::Nat, IP6_NAT, &gone, &["KUBE-MARK-MASQ"], &[("PREROUTING", 0), ("OUTPUT", 0)]);
    let gone = ["KUBE-FORWARD", "KUBE-SERVICES"];
    let jumps = [("FORWARD", 0), ("FORWARD", 0)];
    check(Family::Ip, Table::Filter, IP_FILTER, &gone, &[], &jumps);
    check(Family::Ip6, Table::Filter, IP6_FILTER, &gone, &[], &jumps);
}

#[test]
fn the_wrong_family_is_an_error() {
    let (info, entries) = split(IP_NAT);
    assert!(parse(Family::Ip6, &info, entries).is_err());
}

proptest! {
    /// Whatever the kernel told, nothing panics, and what is made of it can be read.
    #[test]
    fn damaged_tables_are_errors_or_tables(at in 0..IP6_NAT.len(), value: u8, len in 0..=IP6_NAT.len()) {
        let mut damaged = IP6_NAT.to_vec();
        damaged[at] = value;
        damaged.truncate(len.max(Info::BYTES));
        let (info, entries) = split(&damaged);
        if let Ok(rules) = parse(Family::Ip6, &info, entries)
            && let Ok(Some(edited)) = without_upstream(Table::Nat, &info, &rules)
        {
            let (info, entries) = replaced(&edited.replacement, Table::Nat);
            prop_assert!(parse(Family::Ip6, &info, entries).is_ok());
        }
    }
}
