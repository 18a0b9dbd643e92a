//! What others do to our tables is told.

use kernel::{ForeignChange, Nftables, TableWatch};
use nft::{Family, Kernel, Op, Transaction};

use crate::common::{FAMILIES, TABLE, apply, fixture, in_netns, nft, pair, read};

fn next(watch: &mut TableWatch) -> (Option<Family>, &'static str) {
    let ForeignChange { family, what } = watch.wait().unwrap();
    (family, what)
}

/// What each kind of object is called, with how to make one and how to delete it.
const OBJECTS: [(&str, &str, &str); 7] = [
    ("counter", "hits", ""),
    ("quota", "much", "{ over 100 mbytes }"),
    ("limit", "few", "{ rate 400/minute }"),
    ("ct helper", "files", "{ type \"ftp\" protocol tcp; }"),
    ("ct timeout", "short", "{ protocol tcp; policy = { established: 100 }; }"),
    ("ct expectation", "soon", "{ protocol udp; dport 9876; timeout 2m; size 12; }"),
    ("synproxy", "flood", "{ mss 1460; wscale 7; timestamp sack-perm; }"),
];

/// The kinds that this kernel knows; counters, quotas and limits at least.
fn added_objects(family: Family) -> Vec<&'static str> {
    let added = OBJECTS.iter().filter(|(kind, name, spec)| {
        let command = format!("add {kind} {family} {TABLE} {name} {spec}\n");
        let output = std::process::Command::new("nft").arg(&command).output().expect("run nft");
        output.status.success()
    });
    let added: Vec<_> = added.map(|(kind, ..)| *kind).collect();
    assert!(added.starts_with(&["counter", "quota", "limit"]), "{added:?}");
    added
}

#[test]
fn objects_of_others_are_told_and_found() {
    for family in FAMILIES {
        in_netns(|| {
            apply(&fixture(family));
            let mut watch = TableWatch::open(TABLE.into()).unwrap();
            let added = added_objects(family);
            for _ in &added {
                assert_eq!(next(&mut watch), (Some(family), "an object was added"));
            }
            let found = read(family).objects;
            let kinds: Vec<_> = found.iter().map(|(kind, _)| kind.to_string()).collect();
            assert_eq!(kinds.len(), added.len());
            assert!(added.iter().all(|kind| kinds.contains(&(*kind).to_owned())), "{kinds:?}");
            // Somebody else's table's are not ours.
            nft(&["add table ip other; add counter ip other c"], "");
            assert_eq!(read(family).objects, found);
            let delete = found.into_iter().map(|(kind, name)| Op::DeleteObject(kind, name)).collect();
            apply(&Transaction { family, table: TABLE.into(), ops: delete });
            assert!(read(family).objects.is_empty());
        });
    }
}

/// Others' tables, and ours that we change ourselves, wake nobody.
#[test]
fn only_foreign_changes_of_our_table_are_told() {
    in_netns(|| {
        apply(&fixture(Family::Ip));
        let mut watch = TableWatch::open(TABLE.into()).unwrap();
        let mut kernel = Nftables::open().unwrap();
        for n in 1000..1100 {
            nft(&["add table ip other; add table inet kube-proxy; flush ruleset inet"], "");
            kernel.apply(&pair(n)).unwrap();
        }
        nft(&["flush chain ip kube-proxy services"], "");
        assert_eq!(next(&mut watch), (Some(Family::Ip), "a rule was deleted"));
    });
}

/// Our own changes do not even take room.
#[test]
fn our_own_changes_are_not_received() {
    in_netns(|| {
        apply(&fixture(Family::Ip));
        let mut kernels = [Nftables::open().unwrap(), Nftables::open().unwrap()];
        let mut watch = TableWatch::with_room(TABLE.into(), 4096).unwrap();
        for n in 1000..1200 {
            kernels[usize::from(n % 2 == 0)].apply(&pair(n)).unwrap();
        }
        nft(&["flush chain ip kube-proxy services"], "");
        assert_eq!(next(&mut watch), (Some(Family::Ip), "a rule was deleted"));
    });
}

/// What was dropped may have been about either of our tables.
#[test]
fn lost_notifications_count_as_a_change() {
    in_netns(|| {
        apply(&fixture(Family::Ip));
        let mut watch = TableWatch::with_room(TABLE.into(), 4096).unwrap();
        for n in 0..100 {
            nft(&["-f", "-"], &format!("add table ip other-{n}\n"));
        }
        assert_eq!(next(&mut watch), (None, "notifications were lost"));
        // And then it goes on.
        nft(&["flush chain ip kube-proxy services"], "");
        assert_eq!(next(&mut watch), (Some(Family::Ip), "a rule was deleted"));
    });
}
