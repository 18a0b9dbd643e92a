//! The real programs of both flavours: what they refuse, what they lose, and which are chosen.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backend_iptables::{Backend, CANARY, Config, Extent, PREFIX, presence};
use iptables::{ChainName, Edit, Iptables, IptablesError, Restore, Saved, TableName};
use kernel::iptables::{Flavour, Programs, Tables};
use lab::Namespace;
use model::{IpFamily, Table, V4};

const FLAVOURS: [(&str, Flavour); 2] = [("iptables-nft", Flavour::Nft), ("iptables-legacy", Flavour::Legacy)];

fn in_namespace(test: impl Fn(&Namespace, &str, &mut Tables) + Sync) {
    for (name, flavour) in FLAVOURS {
        let namespace = Namespace::new("tools").unwrap();
        namespace.run(|| {
            let programs = Programs::named(name).unwrap();
            assert_eq!(programs.version.flavour, flavour);
            test(&namespace, name, &mut Tables::new(programs));
        });
    }
}

fn chain() -> ChainName {
    ChainName::from_static("KUBE-X")
}

fn section(table: TableName, edits: Vec<Edit>) -> Restore {
    let mut restore = Restore::default();
    restore.push(table, edits);
    restore
}

/// An emptied or deleted canary is missed; that there is no such chain is no error.
#[test]
fn the_canaries_tell_of_a_flush() {
    in_namespace(|namespace, name, tables| {
        let there = |tables: &Tables| TableName::ALL.map(|table| tables.has_rules(table, CANARY).unwrap());
        assert_eq!(there(tables), [false; 3]);
        let config = Config::default();
        let plan = Backend::<V4>::new(config.clone()).repair(
            &config,
            &Table::default(),
            &Saved::default(),
            Extent::Difference,
        );
        tables.restore(&plan.restore).unwrap();
        assert_eq!(there(tables), [true; 3]);
        namespace.exec(name, &["-t", "nat", "-F"]).unwrap();
        assert_eq!(there(tables), [true, true, false]);
        namespace.exec(name, &["-t", "mangle", "-F"]).unwrap();
        namespace.exec(name, &["-t", "mangle", "-X"]).unwrap();
        assert_eq!(there(tables), [false, true, false]);
    });
}

/// Each jump is missed, and looking changes nothing.
#[test]
fn each_deleted_jump_is_missed() {
    in_namespace(|namespace, name, tables| {
        assert!(!tables.hold(&presence()).unwrap(), "the tables are empty");
        let (config, table) = (Config::default(), Table::default());
        let repaired = |tables: &mut Tables| {
            let found = tables.save(PREFIX).unwrap();
            let backend = Backend::<V4>::new(config.clone());
            let plan = backend.repair(&config, &table, &found, Extent::Difference);
            tables.restore(&plan.restore).unwrap();
        };
        repaired(tables);
        let listing = |tables: &mut Tables| tables.save("").unwrap();
        let before = listing(tables);
        assert!(tables.hold(&presence()).unwrap());
        assert_eq!(listing(tables), before);
        let jumps: Vec<_> = presence()
            .sections
            .into_iter()
            .flat_map(|section| section.edits.into_iter().map(move |edit| (section.table, edit)))
            .collect();
        assert_eq!(jumps.len(), 3 + 12);
        for (of, edit) in jumps {
            let Edit::Check(chain, rule) = edit else { panic!("{edit}") };
            tables.restore(&section(of, vec![Edit::Delete(chain, rule.clone())])).unwrap();
            assert!(!tables.hold(&presence()).unwrap(), "{name}: {rule}");
            repaired(tables);
            assert!(tables.hold(&presence()).unwrap(), "{name}: {rule}");
        }
        namespace.exec(name, &["-t", "nat", "-F"]).unwrap();
        assert!(!tables.hold(&presence()).unwrap());
    });
}

/// A refused line is named, and nothing of its section is done, but what was before it is.
#[test]
fn a_refused_section_is_not_done() {
    in_namespace(|_, _, tables| {
        let drop = || Edit::Append(chain(), "-j ACCEPT".into());
        let mut restore = section(TableName::Filter, vec![Edit::Reset(chain()), drop()]);
        restore.push(
            TableName::Nat,
            vec![Edit::Reset(chain()), drop(), Edit::Delete(chain(), "-j RETURN".into())],
        );
        let error = tables.restore(&restore).unwrap_err();
        let IptablesError::Refused { text, .. } = &error else { panic!("{error:?}") };
        assert_eq!(text.as_deref(), Some("-D KUBE-X -j RETURN"), "{error}");
        let saved = tables.save("KUBE-").unwrap();
        assert_eq!(saved.table(TableName::Filter).rules("KUBE-X"), Some(&["-j ACCEPT".into()][..]));
        assert_eq!(saved.table(TableName::Nat).rules("KUBE-X"), None);
    });
}

/// Where the kubelet has left its mark decides which flavour is used.
#[test]
fn the_flavour_is_that_of_the_node() {
    in_namespace(|namespace, name, _| {
        let found = || Programs::find(IpFamily::V4).unwrap().version.flavour;
        let by_name = Programs::named("iptables").unwrap().version.flavour;
        assert_eq!(found(), by_name);
        namespace.exec(name, &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]).unwrap();
        let expected = FLAVOURS.into_iter().find(|(known, _)| *known == name).map(|(_, flavour)| flavour);
        assert_eq!(Some(found()), expected);
    });
}
