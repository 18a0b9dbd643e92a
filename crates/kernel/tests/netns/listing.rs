//! What we write lists well, means the same as our text does to `nft`, and reads back as it was.

use std::sync::Arc;

use kernel::Nftables;
use nft::{Bytes, Data, Element, Kernel, Op, Transaction};

use crate::common::{
    FAMILIES, Sets, TABLE, addr, apply, assert_is_fixture, fixture, goto, in_netns, listing, nft, read,
    service_key, tx,
};

#[test]
fn bytes_and_text_make_the_same_ruleset() {
    for family in FAMILIES {
        let fixture = fixture(family);
        let (by_bytes, bytes_read) = in_netns(|| {
            apply(&fixture);
            (listing(), read(family))
        });
        let (by_text, text_read) = in_netns(|| {
            nft(&["-f", "-"], &fixture.to_string());
            (listing(), read(family))
        });
        assert_eq!(by_bytes, by_text);
        assert_eq!(bytes_read, text_read);
        assert_is_fixture(&bytes_read, family);
    }
}

#[test]
fn the_listing_shows_our_text_and_can_be_fed_back() {
    for family in FAMILIES {
        in_netns(|| {
            apply(&fixture(family));
            let listed = nft(&["list", "ruleset"], "");
            for chain in crate::common::chains(family) {
                for rule in chain.rules {
                    let text = rule.text(family).to_string();
                    assert!(listed.lines().any(|line| line.trim() == text), "{text:?} is not in\n{listed}");
                }
            }
            let json = nft(&["-j", "list", "ruleset"], "");
            assert!(json.contains("service-3-endpoints"), "{json}");
            let ours = read(family);
            nft(&["flush", "ruleset"], "");
            nft(&["-f", "-"], &listed);
            assert_eq!(read(family), ours);
        });
    }
}

/// The text of each change does to `nft` what its bytes do to the kernel.
#[test]
fn changes_do_the_same_by_bytes_and_by_text() {
    for family in FAMILIES {
        let sets = Sets::new();
        let endpoint = |index| service_key(family, 1).index(index);
        let replaced = Element {
            key: endpoint(1),
            data: Data::Value(Bytes::new().addr(addr(family, 700)).port(9090)),
            comment: Some("moved".into()),
        };
        let mut ops = vec![
            Op::ReplaceElements { set: Arc::clone(&sets.endpoints), elements: vec![replaced.clone()] },
            Op::DeleteElements { set: Arc::clone(&sets.endpoints), elements: vec![endpoint(0), endpoint(2)] },
            Op::ReplaceElements {
                set: Arc::clone(&sets.services),
                elements: vec![goto(service_key(family, 1), "reject-chain")],
            },
            Op::SetRules { chain: "filter-input".into(), rules: vec![] },
            Op::DeleteChain("filter-forward".into()),
            Op::DeleteSet("ports".into()),
        ];
        // What exists already is left alone.
        ops.splice(
            0..0,
            fixture(family).ops.into_iter().filter(|op| matches!(op, Op::AddTable | Op::AddSet(_))),
        );
        let change = tx(family, ops);
        let run = |change_it: &(dyn Fn(&Transaction) + Sync)| {
            in_netns(|| {
                apply(&fixture(family));
                change_it(&change);
                (listing(), read(family))
            })
        };
        let (by_bytes, ruleset) = run(&|change| apply(change));
        let (by_text, _) = run(&|change| {
            nft(&["-f", "-"], &change.to_string());
        });
        assert_eq!(by_bytes, by_text);
        assert_eq!(ruleset.sets["endpoints"].elements, [replaced]);
        assert!(ruleset.chains["filter-input"].rules.is_empty());
        assert!(!ruleset.chains.contains_key("filter-forward"));
    }
}

#[test]
fn a_table_that_is_absent_or_deleted_reads_as_none() {
    for family in FAMILIES {
        in_netns(|| {
            let mut kernel = Nftables::open().unwrap();
            assert_eq!(kernel.read(family, &TABLE.into()).unwrap().whole().unwrap(), None);
            kernel.apply(&fixture(family)).unwrap();
            kernel.apply(&tx(family, vec![Op::DeleteTable])).unwrap();
            assert_eq!(kernel.read(family, &TABLE.into()).unwrap().whole().unwrap(), None);
            assert_eq!(nft(&["list", "ruleset"], ""), "");
        });
    }
}

#[test]
fn an_empty_transaction_sends_nothing() {
    in_netns(|| {
        let applied = Nftables::open().unwrap().apply(&tx(FAMILIES[0], vec![])).unwrap();
        assert_eq!(applied, nft::Applied::default());
    });
}

#[test]
fn tables_of_others_are_neither_read_nor_changed() {
    in_netns(|| {
        let family = FAMILIES[0];
        let others = "table ip kube-proxy2 {\n chain services { counter; }\n set endpoints { type ipv4_addr; }\n }\n\
                      table ip6 kube-proxy {\n chain theirs { drop; }\n }\n\
                      table inet kube-proxy {\n chain theirs { drop; }\n }\n";
        nft(&["-f", "-"], others);
        let before = nft(&["list", "ruleset"], "");
        apply(&fixture(family));
        assert_is_fixture(&read(family), family);
        apply(&tx(family, vec![Op::DeleteTable]));
        assert_eq!(nft(&["list", "ruleset"], ""), before);
    });
}

/// The kernel resizes hash tables behind our back for a while, and dumps meanwhile leave elements out.
#[test]
fn a_big_set_is_read_whole_right_after_loading() {
    in_netns(|| {
        let family = FAMILIES[0];
        let mut tx = fixture(family);
        let elements =
            (10_000..110_000).map(|n| goto(service_key(family, n), "service-3-endpoints")).collect();
        tx.ops.push(Op::AddElements { set: Sets::new().services, elements });
        let mut kernel = Nftables::open().unwrap();
        kernel.apply(&tx).unwrap();
        let ruleset = kernel.read(family, &TABLE.into()).unwrap().whole().unwrap().unwrap();
        assert_eq!(ruleset.sets["service-ips"].elements.len(), 100_002);
    });
}
