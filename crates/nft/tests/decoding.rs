//! Whatever the kernel might say is read without harm, and what we write is read as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use nft::dump::{Collected, RulesetReader, generation, messages};
use nft::{
    Bytes, Data, Element, Family, Field, Name, ObjectType, Op, Rule, Ruleset, Set, SetData, SetKind,
    Statement, Transaction, Verdict, encode,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

const TABLE: &str = "kube-proxy";

/// Reads a batch as if it were a dump: the kernel tells of objects with the messages that make them.
fn read_back(tx: &Transaction, limit: Option<usize>) -> Ruleset {
    let table = Name::from(TABLE);
    let mut reader = RulesetReader::new(tx.family, &table);
    for batch in encode(tx, limit).batches {
        for message in messages(&batch.bytes) {
            reader.add(&message);
        }
    }
    reader.finish().ruleset
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ip), Just(Family::Ip6)]
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        Just(Field::SourceAddr),
        Just(Field::DestAddr),
        Just(Field::L4Proto),
        Just(Field::DestPort),
        Just(Field::Priority),
        any::<u32>().prop_map(|modulus| Field::NumgenRandom { modulus }),
    ]
}

fn set(family: Family) -> impl Strategy<Value = Set> {
    let data = prop_oneof![
        Just(SetData::None),
        Just(SetData::Verdict),
        vec(field(), 1..3).prop_map(SetData::Fields)
    ];
    let kind = prop_oneof![
        3 => Just(SetKind::Exact),
        2 => Just(SetKind::Networks),
        1 => (1..=u32::MAX).prop_map(|size| SetKind::Learnt { size }),
    ];
    let comment = option::of("[a-z/:]{1,128}".prop_map(Into::into));
    (vec(field(), 1..5), data, kind, any::<bool>(), comment)
        .prop_map(|(mut key, data, kind, is_counted, comment)| {
            if kind == SetKind::Networks {
                let last = key.len() - 1;
                key[last] = Field::SourceAddr;
            }
            Set { name: "s".into(), key, data, kind, is_counted, comment }
        })
        .prop_filter("longer than any set in use", move |set| set.key_bytes(family) <= Bytes::CAPACITY)
}

fn address(family: Family, n: u128) -> IpAddr {
    match family {
        Family::Ip => Ipv4Addr::from(u32::try_from(n >> 96).unwrap_or(u32::MAX)).into(),
        Family::Ip6 => Ipv6Addr::from(n).into(),
    }
}

fn fields(fields: &[Field], family: Family) -> impl Strategy<Value = Bytes> + use<> {
    let fields = fields.to_vec();
    vec(any::<u128>(), fields.len()).prop_map(move |numbers| {
        fields.iter().zip(numbers).fold(Bytes::new(), |bytes, (field, n)| {
            let [a, b, c, d, ..] = n.to_be_bytes();
            match field {
                Field::SourceAddr | Field::DestAddr => bytes.addr(address(family, n)),
                Field::L4Proto => bytes.proto(a),
                Field::DestPort => bytes.port(u16::from_be_bytes([a, b])),
                Field::NumgenRandom { .. } | Field::Priority | Field::PriorityBits { .. } => {
                    bytes.index(u32::from_be_bytes([a, b, c, d]))
                }
            }
        })
    })
}

fn data(data: &SetData, family: Family) -> BoxedStrategy<Data> {
    let chain = "[a-z][a-z0-9-]{0,254}".prop_map(Name::from);
    match data {
        SetData::None => Just(Data::None).boxed(),
        SetData::Fields(data) => fields(data, family).prop_map(Data::Value).boxed(),
        SetData::Verdict => prop_oneof![
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Return),
            chain.clone().prop_map(Verdict::Goto),
            chain.prop_map(Verdict::Jump),
        ]
        .prop_map(Data::Verdict)
        .boxed(),
    }
}

/// The keys of a set; those of one field are networks which don't overlap, as the kernel has it.
fn keys(set: &Set, family: Family) -> BoxedStrategy<Bytes> {
    let Some((_, before)) = set.key.split_last().filter(|_| set.kind == SetKind::Networks) else {
        return fields(&set.key, family).boxed();
    };
    let prefixes = match (before, family) {
        ([], _) => 8..=8,
        (_, Family::Ip) => 0..=32,
        (_, Family::Ip6) => 0..=128_u8,
    };
    (fields(before, family), any::<u128>(), prefixes)
        .prop_map(move |(before, n, prefix)| before.net(address(family, n), prefix))
        .boxed()
}

/// A set with elements of different keys, in the order of keys.
fn filled() -> impl Strategy<Value = (Family, Set, Vec<Element>)> {
    let set = family().prop_flat_map(|family| (Just(family), set(family)));
    set.prop_flat_map(|(family, set)| {
        let comment = option::of("[ -~é]{0,60}".prop_map(Into::into));
        let rest = (data(&set.data, family), comment);
        let elements = btree_map(keys(&set, family), rest, 0..50).prop_map(|elements| {
            elements.into_iter().map(|(key, (data, comment))| Element { key, data, comment }).collect()
        });
        (Just(family), Just(set), elements)
    })
}

proptest! {
    #[test]
    fn sets_and_elements_are_read_as_they_were((family, set, elements) in filled(), limit in option::of(0..3000_usize)) {
        let declared = Arc::new(set);
        let ops = vec![
            Op::AddSet(Arc::clone(&declared)),
            Op::AddElements { set: Arc::clone(&declared), elements: elements.clone() },
        ];
        let read = read_back(&Transaction { family, table: TABLE.into(), ops }, limit);
        let state = &read.sets["s"];
        prop_assert!(state.matches(&declared), "{state:?}");
        prop_assert_eq!(&state.set, &*declared);
        prop_assert_eq!(&state.elements, &elements);
    }

    #[test]
    fn batches_are_whole_and_as_short_as_can_be((family, set, elements) in filled(), limit in 600..3000_usize) {
        let set = Arc::new(set);
        let ops = vec![Op::ReplaceElements { set, elements: elements.clone() }];
        let tx = Transaction { family, table: TABLE.into(), ops };
        let batches = encode(&tx, Some(limit)).batches;
        let whole = encode(&tx, None).batches;
        prop_assert_eq!(whole.len(), 1);
        for batch in &batches {
            prop_assert!(batch.bytes.len() <= limit.max(1000), "{} > {limit}", batch.bytes.len());
            let seqs: Vec<_> = messages(&batch.bytes).map(|message| message.seq).collect();
            prop_assert_eq!(seqs, (0..=batch.last_seq() + 1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn garbage_is_read_without_harm(garbage in vec(any::<u8>(), 0..600)) {
        read_garbage(&garbage);
    }

    /// Real messages with some bytes changed reach further than garbage.
    #[test]
    fn damaged_messages_are_read_without_harm(
        (family, set, elements) in filled(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let set = Arc::new(set);
        let rules = vec![Rule::new(vec![
            Statement::DnatMap { key: set.key.clone(), map: "m".into() },
            Statement::SetMarkBit(0x4000),
            Statement::Reject,
        ])];
        let ops = vec![
            Op::AddTable,
            Op::AddSet(Arc::clone(&set)),
            Op::AddChain { name: "c".into(), base: None },
            Op::SetRules { chain: "c".into(), rules },
            Op::AddElements { set, elements },
        ];
        let mut bytes = encode(&Transaction { family, table: TABLE.into(), ops }, None).batches.remove(0).bytes;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        read_garbage(&bytes);
    }
}

fn read_garbage(bytes: &[u8]) {
    let table = Name::from(TABLE);
    for family in [Family::Ip, Family::Ip6] {
        let mut reader = RulesetReader::new(family, &table);
        for message in messages(bytes) {
            message.ack();
            generation(&message);
            reader.add(&message);
        }
        reader.finish();
    }
}

/// Laid out as `linux/netlink.h` says: the end of a dump, and a refusal with the place of the fault.
#[test]
fn answers_of_the_kernel_are_understood() {
    let done = [20_u8, 0, 0, 0, 3, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let message = messages(&done).next().unwrap();
    assert!(message.is_done() && !message.is_interrupted());
    assert_eq!((message.seq, message.ack()), (7, None));
    let mut error = vec![44_u8, 0, 0, 0, 2, 0, 0, 3, 9, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255];
    error.extend([36, 0, 0, 0, 1, 10, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    error.extend([8, 0, 2, 0, 20, 0, 0, 0]);
    let ack = messages(&error).next().unwrap().ack().unwrap();
    assert_eq!((ack.errno, ack.offset, ack.message), (2, Some(20), None));
}

/// Made by hand after `linux/netfilter/nf_tables.h`: a table that says it has four things in it, a counter, a flowtable, a
/// chain without rules and a set without a name.
#[test]
fn what_others_made_is_read_by_its_name_and_counted() {
    const NEW_TABLE: u16 = 10 << 8;
    let message = |kind: u16, attrs: &[(u16, &[u8])]| {
        let mut writer = netlink::Writer::default();
        let start = writer.begin_message(NEW_TABLE + kind, 2, 7, 2, 0);
        writer.text(1, TABLE);
        for (kind, value) in attrs {
            writer.bytes(*kind, value);
        }
        writer.end_message(start);
        writer.out
    };
    let told = [
        message(0, &[(2, &[0; 4]), (3, &4_u32.to_be_bytes())]),
        message(9, &[(2, b"__set0\0"), (3, &3_u32.to_be_bytes())]),
        message(18, &[(2, b"hits\0"), (3, &1_u32.to_be_bytes())]),
        message(22, &[(2, b"fast\0")]),
        message(3, &[(3, b"empty\0")]),
    ];
    let table = Name::from(TABLE);
    let read = |told: &[Vec<u8>]| {
        let mut reader = RulesetReader::new(Family::Ip, &table);
        for message in told.iter().flat_map(|bytes| messages(bytes)) {
            reader.add(&message);
        }
        reader.finish()
    };
    let Collected { ruleset, is_complete } = read(&told);
    assert!(is_complete);
    assert_eq!(ruleset.objects, [(ObjectType(1), Name::from("hits"))].into());
    assert_eq!(ruleset.flowtables, [Name::from("fast")].into());
    assert!(ruleset.chains["empty"].rules.is_empty() && ruleset.sets.is_empty());
    for missing in 1..told.len() {
        let rest = [&told[..missing], &told[missing + 1..]].concat();
        assert!(!read(&rest).is_complete, "{missing} is missing");
    }
}
