//! Elements read one by one are those that a reading of the whole table finds.

use kernel::TableReader;
use nft::{Bytes, Data, Element, Name, SetKind};

use crate::common::{FAMILIES, Sets, TABLE, addr, apply, fixture, in_netns, nft, read};

#[test]
fn single_elements_are_those_of_the_whole_table() {
    in_netns(|| {
        for family in FAMILIES {
            let table = Name::from(TABLE);
            let mut reader = TableReader::open().unwrap();
            assert_eq!(reader.rules(family, &table).unwrap(), None);
            apply(&fixture(family));
            let whole = read(family);
            let rules = reader.rules(family, &table).unwrap().unwrap();
            assert_eq!(rules.chains, whole.chains);
            assert_eq!(rules.sets.keys().collect::<Vec<_>>(), whole.sets.keys().collect::<Vec<_>>());
            let mut n = 0;
            for (name, state) in &whole.sets {
                if state.set.kind == SetKind::Networks {
                    assert_eq!(rules.sets[name].elements, state.elements);
                    continue;
                }
                for element in state.elements.iter().filter(|element| !element.key.is_empty()) {
                    let found = reader.element(family, &table, &state.set, &element.key).unwrap();
                    assert_eq!(found.as_ref(), Some(element), "{name}");
                    n += 1;
                }
            }
            assert!(n > 10, "{n}");
            let absent = Bytes::new().addr(addr(family, 9999)).proto(17).port(9);
            let services = &Sets::new().services;
            assert_eq!(reader.element(family, &table, services, &absent).unwrap(), None);
        }
    });
}

#[test]
fn what_rules_learnt_can_be_looked_up() {
    in_netns(|| {
        for family in FAMILIES {
            apply(&fixture(family));
            let affinity = &Sets::new().affinity;
            let client = addr(family, 77);
            let key = Bytes::new().addr(client);
            let mut reader = TableReader::open().unwrap();
            let table = Name::from(TABLE);
            assert_eq!(reader.element(family, &table, affinity, &key).unwrap(), None);
            let element = format!("{{ {client} timeout 1h : 1:2 }}");
            nft(&["add", "element", family.as_str(), TABLE, "affinity", &element], "");
            let data = Data::Value(Bytes::new().index(0x1_0002));
            let wanted = Element { key, data, comment: None };
            assert_eq!(reader.element(family, &table, affinity, &key).unwrap(), Some(wanted));
        }
    });
}

#[test]
fn chains_of_others_are_told() {
    in_netns(|| {
        let rules = "table ip theirs { chain forward { type filter hook forward priority 7; policy drop; }\n chain side { }\n }";
        nft(&["-f", "-"], rules);
        let mut chains = TableReader::open().unwrap().all_chains(nft::Family::Ip).unwrap();
        chains.sort();
        let hook = nft::Attached { kind: "filter".into(), hook: 2, priority: 7, drops: true };
        let chain =
            |name: &str, hook| nft::AnyChain { family: 2, table: "theirs".into(), name: name.into(), hook };
        assert_eq!(chains, [chain("forward", Some(hook)), chain("side", None)]);
    });
}
