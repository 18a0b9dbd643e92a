//! What the kernel refuses is named, and nothing of the transaction holds.

use std::sync::Arc;

use kernel::Nftables;
use netlink::NetlinkError;
use nft::{Family, Kernel, Op, Rule, Set, SetData, Statement, Verdict};

use crate::common::{
    FAMILIES, Sets, apply, assert_is_fixture, elements, fixture, goto, in_netns, read, service_key, tx,
    verdict,
};

const FAMILY: Family = Family::Ip;

/// Applies the changes to the fixture behind some that are right, expects a refusal of the object, and finds the
/// fixture as it was.
#[track_caller]
fn check(ops: Vec<Op>, object: &str, errno: i32) {
    let refusal = in_netns(|| {
        apply(&fixture(FAMILY));
        let mut all = vec![
            Op::AddTable,
            Op::AddChain { name: "new".into(), base: None },
            Op::AddElements {
                set: Sets::new().services,
                elements: (100..3000).map(|n| goto(service_key(FAMILY, n), "new")).collect(),
            },
            Op::SetRules { chain: "services".into(), rules: vec![] },
        ];
        all.extend(ops);
        all.push(Op::AddChain { name: "newer".into(), base: None });
        let refusal = Nftables::open().unwrap().apply(&tx(FAMILY, all)).unwrap_err();
        assert_is_fixture(&read(FAMILY), FAMILY);
        refusal
    });
    match refusal {
        NetlinkError::Refused { object: refused, errno: number, .. } => {
            assert_eq!((refused.as_str(), number), (object, errno));
        }
        other => panic!("expected a refusal of {object}, not {other:?}"),
    }
}

#[test]
fn an_element_among_thousands_is_named() {
    let services = Sets::new().services;
    let mut elements: Vec<_> = (5000..7000).map(|n| goto(service_key(FAMILY, n), "reject-chain")).collect();
    elements[1500].data = nft::Data::Verdict(Verdict::Goto("absent".into()));
    let ops = vec![Op::AddElements { set: services, elements }];
    check(ops, "element 10.96.25.100 . tcp . 80 of map service-ips", libc::ENOENT);
}

#[test]
fn an_element_with_other_data_is_named() {
    let elements =
        vec![verdict(service_key(FAMILY, 50), Verdict::Drop), goto(service_key(FAMILY, 2), "reject-chain")];
    let ops = vec![Op::AddElements { set: Sets::new().services, elements }];
    check(ops, "element 10.96.0.2 . tcp . 80 of map service-ips", libc::EEXIST);
}

#[test]
fn an_absent_element_is_named() {
    let ops = vec![Op::DeleteElements {
        set: Sets::new().services,
        elements: vec![service_key(FAMILY, 1), service_key(FAMILY, 77)],
    }];
    check(ops, "element 10.96.0.77 . tcp . 80 of map service-ips", libc::ENOENT);
    let elements = vec![verdict(service_key(FAMILY, 77), Verdict::Drop)];
    let ops = vec![Op::ReplaceElements { set: Sets::new().services, elements }];
    check(ops, "element 10.96.0.77 . tcp . 80 of map service-ips", libc::ENOENT);
}

#[test]
fn a_rule_is_named_by_its_place() {
    let rules = vec![
        Rule::new(vec![Statement::Accept]),
        Rule::new(vec![Statement::Vmap { key: vec![nft::Field::L4Proto], map: "absent".into() }]),
    ];
    check(vec![Op::SetRules { chain: "services".into(), rules }], "rule 2 of chain services", libc::ENOENT);
}

#[test]
fn chains_and_sets_are_named() {
    check(vec![Op::DeleteChain("reject-chain".into())], "chain reject-chain", libc::EBUSY);
    check(vec![Op::DeleteChain("absent".into())], "chain absent", libc::ENOENT);
    check(vec![Op::SetRules { chain: "absent".into(), rules: vec![] }], "chain absent", libc::ENOENT);
    check(vec![Op::DeleteSet("hairpin".into())], "set hairpin", libc::EBUSY);
    let other = Set::new("hairpin".into(), vec![nft::Field::DestAddr], SetData::None);
    check(vec![Op::AddSet(Arc::new(other))], "set hairpin", libc::EEXIST);
}

#[test]
fn a_missing_table_is_named() {
    in_netns(|| {
        let error = Nftables::open().unwrap().apply(&tx(FAMILY, vec![Op::DeleteTable])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel refused table ip kube-proxy: No such file or directory (os error 2)"
        );
    });
}

/// More refusals than the receive buffer could hold if it were small are still one refusal.
#[test]
fn thousands_of_refusals_yield_the_first() {
    in_netns(|| {
        let ops = (0..20_000).map(|n| Op::DeleteChain(format!("absent-{n}").as_str().into())).collect();
        let error = Nftables::open().unwrap().apply(&tx(FAMILY, ops)).unwrap_err();
        assert!(error.to_string().starts_with("kernel refused chain absent-0: "), "{error}");
    });
}

/// A chain goes in the same transaction as the last element that refers to it.
#[test]
fn a_chain_is_deleted_with_the_last_element_that_refers_to_it() {
    for family in FAMILIES {
        in_netns(|| {
            apply(&fixture(family));
            let services = Sets::new().services;
            apply(&tx(
                family,
                vec![
                    Op::DeleteElements { set: Arc::clone(&services), elements: vec![service_key(family, 1)] },
                    Op::DeleteChain("service-3-endpoints".into()),
                ],
            ));
            assert!(!read(family).chains.contains_key("service-3-endpoints"));
        });
        // The same when the element gets another chain instead.
        in_netns(|| {
            apply(&fixture(family));
            let elements = vec![goto(service_key(family, 1), "service-4-endpoints")];
            apply(&tx(
                family,
                vec![
                    Op::AddChain { name: "service-4-endpoints".into(), base: None },
                    Op::ReplaceElements { set: Sets::new().services, elements: elements.clone() },
                    Op::DeleteChain("service-3-endpoints".into()),
                ],
            ));
            let ruleset = read(family);
            assert!(!ruleset.chains.contains_key("service-3-endpoints"));
            assert!(ruleset.sets["service-ips"].elements.contains(&elements[0]));
        });
    }
}

/// What reads back can be written again without a change.
#[test]
fn adding_what_is_there_is_not_refused() {
    in_netns(|| {
        apply(&fixture(FAMILY));
        let ops =
            elements(FAMILY).into_iter().map(|(set, elements)| Op::AddElements { set, elements }).collect();
        apply(&tx(FAMILY, ops));
        assert_is_fixture(&read(FAMILY), FAMILY);
    });
}
