//! Transactions that are cut to fit a limited send buffer.

use std::process::Command;
use std::sync::Arc;

use kernel::Nftables;
use netlink::NetlinkError;
use nft::{Element, Family, Kernel, Op, Transaction};

use crate::common::{
    FAMILIES, Sets, TABLE, addr, apply, fixture, goto, in_netns, listing, read, service_key, tx,
};

/// Set for the child process that runs without privileges in the initial user namespace.
const UNPRIVILEGED: &str = "NFT_TEST_UNPRIVILEGED";

fn many(family: Family, count: u32) -> Vec<Element> {
    (10_000..10_000 + count).map(|n| goto(service_key(family, n), "service-3-endpoints")).collect()
}

fn big(family: Family, count: u32) -> Transaction {
    let mut tx = fixture(family);
    tx.ops.push(Op::AddElements { set: Sets::new().services, elements: many(family, count) });
    tx
}

#[test]
fn a_tiny_limit_gives_the_same_ruleset() {
    for family in FAMILIES {
        let change = |kernel: &mut Nftables| {
            let mut replaced = many(family, 500);
            for element in &mut replaced {
                element.comment = Some("again".into());
            }
            let keys = replaced.split_off(300).iter().map(|element| element.key).collect();
            let services = Sets::new().services;
            let ops = vec![
                Op::ReplaceElements { set: Arc::clone(&services), elements: replaced },
                Op::DeleteElements { set: services, elements: keys },
            ];
            let first = kernel.apply(&big(family, 500)).unwrap();
            let second = kernel.apply(&tx(family, ops)).unwrap();
            (first, second, listing(), read(family))
        };
        let whole = in_netns(|| change(&mut Nftables::open().unwrap()));
        let cut = in_netns(|| {
            let mut kernel = Nftables::open().unwrap();
            kernel.set_batch_limit(Some(2000));
            change(&mut kernel)
        });
        assert_eq!((whole.0.batches, whole.1.batches), (1, 1));
        assert!(cut.0.batches > 10 && cut.1.batches > 10, "{cut:?}");
        assert_eq!(cut.2, whole.2);
        assert_eq!(cut.3, whole.3);
    }
}

#[test]
fn a_batch_of_megabytes_is_one() {
    in_netns(|| {
        let applied = Nftables::open().unwrap().apply(&big(Family::Ip, 50_000)).unwrap();
        assert_eq!(applied.batches, 1);
        assert!(applied.bytes > 2_000_000, "{applied:?}");
        assert_eq!(read(Family::Ip).sets["service-ips"].elements.len(), 50_002);
    });
}

#[test]
fn a_failure_on_the_way_tells_how_much_holds() {
    in_netns(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.set_batch_limit(Some(4000));
        kernel.apply(&fixture(Family::Ip)).unwrap();
        let mut elements = many(Family::Ip, 500);
        elements[400].data = nft::Data::Verdict(nft::Verdict::Goto("absent".into()));
        let refused = elements[400].key;
        let services = Sets::new().services;
        let name = format!("element {} of map service-ips", services.key_text(&refused, Family::Ip));
        let error =
            kernel.apply(&tx(Family::Ip, vec![Op::AddElements { set: services, elements }])).unwrap_err();
        let NetlinkError::Partial { done, source, .. } = error else { panic!("{error}") };
        assert!(done > 2, "{done}");
        assert!(source.to_string().starts_with(&format!("kernel refused {name}: ")), "{source}");
        let held = read(Family::Ip).sets["service-ips"].elements.len();
        assert!(held > 100 && held < 402, "{held}");
    });
}

/// Without privileges in the initial user namespace the send buffer can't be forced.
#[test]
fn a_limited_send_buffer_is_found_out_and_cut_to() {
    if std::env::var_os(UNPRIVILEGED).is_some() {
        return apply_with_limited_buffer();
    }
    let test = "cutting::a_limited_send_buffer_is_found_out_and_cut_to";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(UNPRIVILEGED, "1")
        .output()
        .expect("run unshare");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn apply_with_limited_buffer() {
    let mut kernel = Nftables::open().unwrap();
    // Long comments, to exceed what a system may allow everybody.
    let mut elements = many(Family::Ip, 50_000);
    for element in &mut elements {
        element.comment = Some("x".repeat(128).into());
    }
    let mut tx = fixture(Family::Ip);
    tx.ops.push(Op::AddElements { set: Sets::new().services, elements });
    let applied = kernel.apply(&tx).unwrap();
    let limit = kernel.batch_limit().expect("the send buffer is limited");
    assert!(applied.batches > 1 && applied.bytes > limit, "{applied:?}, limit {limit}");
    let ruleset = kernel.read(Family::Ip, &TABLE.into()).unwrap().whole().unwrap().unwrap();
    assert_eq!(ruleset.sets["service-ips"].elements.len(), 50_002);
    // What fits is still sent in one piece.
    let one = goto(Sets::first_key(), "service-3-endpoints");
    let applied = kernel.apply(&crate::common::tx(
        Family::Ip,
        vec![Op::AddElements { set: Sets::new().services, elements: vec![one] }],
    ));
    assert_eq!(applied.unwrap().batches, 1);
}

impl Sets {
    fn first_key() -> nft::Bytes {
        nft::Bytes::new().addr(addr(Family::Ip, 1_000_000)).proto(17).port(53)
    }
}

/// A single piece that does not fit and can't be cut is an error that says so, not a loop.
#[test]
fn a_piece_that_can_not_be_cut_is_sent_whole() {
    in_netns(|| {
        let mut kernel = Nftables::open().unwrap();
        kernel.set_batch_limit(Some(100));
        apply(&fixture(Family::Ip));
        let chain = crate::common::chains(Family::Ip).into_iter().find(|c| &*c.name == "services").unwrap();
        let ops = vec![Op::SetRules { chain: chain.name, rules: chain.rules }];
        let applied = kernel.apply(&tx(Family::Ip, ops)).unwrap();
        assert_eq!(applied.batches, 1);
        assert!(applied.bytes > 1000, "{applied:?}");
    });
}
