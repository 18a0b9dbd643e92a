//! Against chains and rules of iptables-nft as a kernel told them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use cleanup::compat::{Plan, Reader};
use cleanup::upstream::Table;
use netlink::{Family, messages};
use proptest::prelude::*;

const IP: &[u8] = include_bytes!("captured/nft-ip.bin");
const IP6: &[u8] = include_bytes!("captured/nft-ip6.bin");

fn plan(family: Family, told: &[u8]) -> Option<Plan> {
    let mut reader = Reader::new(family);
    messages(told).for_each(|message| reader.add(&message));
    reader.plan()
}

#[track_caller]
fn check(family: Family, told: &[u8], gone: &[(Table, &str)], kept: &[(Table, &str)], objects: &[&str]) {
    let plan = plan(family, told).unwrap();
    let named = |names: &[(Table, &str)]| -> Vec<(Table, String)> {
        names.iter().map(|(table, name)| (*table, (*name).to_owned())).collect()
    };
    assert_eq!(plan.chains, named(gone));
    assert_eq!(plan.kept, named(kept));
    // Handles of rules are the kernel's choice.
    let without_handle = |object: &String| match object.strip_prefix("rule ") {
        Some(rest) => format!("rule of{}", rest.split_once(" of").unwrap().1),
        None => object.clone(),
    };
    assert_eq!(plan.objects.iter().map(without_handle).collect::<Vec<_>>(), objects);
    let sent: Vec<u32> = messages(&plan.batch).map(|message| message.seq).collect();
    let expected: Vec<u32> = (0..=u32::try_from(objects.len() + 1).unwrap()).collect();
    assert_eq!(sent, expected);
}

#[test]
fn jumps_go_then_rules_then_chains() {
    let filter = [(Table::Filter, "KUBE-FORWARD"), (Table::Filter, "KUBE-SERVICES")];
    let nat = [
        (Table::Nat, "KUBE-SEP-SXIVWICOYRO3J4NJ"),
        (Table::Nat, "KUBE-SERVICES"),
        (Table::Nat, "KUBE-SVC-XPGD46QRK7WJZT7O"),
    ];
    let in_filter = [
        "rule of chain FORWARD of table ip6 filter",
        "rule of chain FORWARD of table ip6 filter",
        "rules of chain KUBE-FORWARD of table ip6 filter",
        "rules of chain KUBE-SERVICES of table ip6 filter",
        "chain KUBE-FORWARD of table ip6 filter",
        "chain KUBE-SERVICES of table ip6 filter",
    ];
    let in_nat = [
        "rule of chain OUTPUT of table ip6 nat",
        "rule of chain PREROUTING of table ip6 nat",
        "rules of chain KUBE-SEP-SXIVWICOYRO3J4NJ of table ip6 nat",
        "rules of chain KUBE-SERVICES of table ip6 nat",
        "rules of chain KUBE-SVC-XPGD46QRK7WJZT7O of table ip6 nat",
        "chain KUBE-SEP-SXIVWICOYRO3J4NJ of table ip6 nat",
        "chain KUBE-SERVICES of table ip6 nat",
        "chain KUBE-SVC-XPGD46QRK7WJZT7O of table ip6 nat",
    ];
    let gone = [&nat[..], &filter].concat();
    let objects = [&in_nat[..], &in_filter].concat();
    check(Family::Ip6, IP6, &gone, &[(Table::Nat, "KUBE-MARK-MASQ")], &objects);
}

/// A foreign jump, which has a condition more, keeps the chain and all that it needs.
#[test]
fn a_foreign_jump_keeps_what_it_leads_to() {
    let plan = plan(Family::Ip, IP).unwrap();
    let kept: Vec<&str> = plan.kept.iter().map(|(_, name)| name.as_str()).collect();
    let expected =
        ["KUBE-MARK-MASQ", "KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-SERVICES", "KUBE-SVC-XPGD46QRK7WJZT7O"];
    assert_eq!((kept, plan.jumps, plan.chains.len()), (expected.to_vec(), 4, 2));
}

#[test]
fn answers_about_the_other_family_are_left_out() {
    assert_eq!(plan(Family::Ip, IP6), None);
}

proptest! {
    #[test]
    fn damaged_answers_do_no_harm(at in 0..IP.len(), value: u8, len in 0..=IP.len()) {
        let mut damaged = IP.to_vec();
        damaged[at] = value;
        damaged.truncate(len);
        // Whatever it makes of them: the kernel checks what is deleted.
        drop(plan(Family::Ip, &damaged));
    }
}
