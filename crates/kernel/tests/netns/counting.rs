//! Elements that count the packets they are looked up for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use kernel::Nftables;
use nft::dump::Count;
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Kernel, Name, Op, Rule, Set, SetData,
    Statement,
};

use crate::common::{TABLE, apply, in_netns, ip, nft, read, tx};

const FAMILY: Family = Family::Ip;
const TCP: u8 = 6;

/// Port of a service on 127.0.0.0/8 → endpoint.
fn services() -> Arc<Set> {
    let endpoint = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
    Arc::new(Set::new("services".into(), vec![Field::L4Proto, Field::DestPort], endpoint).counted())
}

fn refused() -> Arc<Set> {
    Arc::new(Set::new("refused".into(), vec![Field::DestPort], SetData::None).counted())
}

fn service(port: u16, endpoint: SocketAddr) -> Element {
    let data = Data::Value(Bytes::new().addr(endpoint.ip()).port(endpoint.port()));
    Element { key: Bytes::new().proto(TCP).port(port), data, comment: None }
}

fn refusal(port: u16) -> Element {
    Element { key: Bytes::new().port(port), data: Data::None, comment: Some("ns/svc".into()) }
}

/// Translates what the node sends to the services, and refuses what is to be.
fn load(services_at: Vec<Element>) {
    let base = |kind, priority| Some(BaseChain { kind, hook: Hook::Output, priority });
    let rule = |statements: &[Statement]| vec![Rule::new(statements.to_vec())];
    let (services, refused) = (services(), refused());
    let dnat = Statement::DnatMap { key: services.key.clone(), map: services.name.clone() };
    let to_refused = Statement::InSet { key: refused.key.clone(), set: refused.name.clone(), negate: false };
    let ops = vec![
        Op::AddTable,
        Op::AddSet(services.clone()),
        Op::AddSet(refused.clone()),
        Op::AddElements { set: services, elements: services_at },
        Op::AddElements { set: refused, elements: vec![refusal(9999)] },
        Op::AddChain { name: "nat".into(), base: base(ChainType::Nat, -100) },
        Op::AddChain { name: "filter".into(), base: base(ChainType::Filter, 0) },
        Op::SetRules { chain: "nat".into(), rules: rule(&[dnat]) },
        Op::SetRules { chain: "filter".into(), rules: rule(&[to_refused, Statement::Reject]) },
    ];
    apply(&tx(FAMILY, ops));
}

fn counts(set: &str) -> Vec<Count> {
    let sets: [Name; 3] = ["services".into(), "refused".into(), "none".into()];
    let mut counts = Nftables::open().unwrap().counts(FAMILY, &TABLE.into(), &sets).unwrap();
    counts.remove(&Name::from(set)).unwrap_or_default()
}

fn listen() -> (TcpListener, SocketAddr) {
    ip(FAMILY, "link set lo up");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

#[test]
fn flows_are_counted_by_the_element_that_translates_them_and_refusals_too() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load(vec![service(80, endpoint), service(81, endpoint)]);
        assert_eq!((counts("services"), counts("refused")), (vec![], vec![]));
        let before = read(FAMILY);
        for _ in 0..5 {
            let mut flow = TcpStream::connect((SERVICE, 80)).unwrap();
            // Packets of an established flow count nothing.
            std::io::Write::write_all(&mut flow, b"x").unwrap();
        }
        TcpStream::connect((SERVICE, 9999)).unwrap_err();
        assert_eq!(counts("services"), [Count { element: service(80, endpoint), packets: 5 }]);
        // An error that comes while the socket is in use is lost, and the packet repeated.
        let [refused] = counts("refused").try_into().unwrap();
        assert_eq!((refused.element, refused.packets.clamp(1, 2)), (refusal(9999), refused.packets));
        assert_eq!(read(FAMILY), before, "what was counted is no difference");
    });
}

#[test]
fn counters_begin_anew_with_their_element_and_with_no_other_change() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load(vec![service(80, endpoint), service(81, endpoint)]);
        let connect = |port| drop(TcpStream::connect((SERVICE, port)).unwrap());
        connect(80);
        connect(81);
        let replace = Op::ReplaceElements { set: services(), elements: vec![service(80, endpoint)] };
        let add = Op::AddElements {
            set: services(),
            // One that is there already stays as it is.
            elements: vec![service(81, endpoint), service(82, endpoint)],
        };
        apply(&tx(FAMILY, vec![replace, add]));
        assert_eq!(counts("services"), [Count { element: service(81, endpoint), packets: 1 }]);
        connect(80);
        let sum = counts("services").iter().map(|count| count.packets).sum::<u64>();
        assert_eq!(sum, 2);
    });
}

/// nft lists what was counted, and loads it again.
#[test]
fn a_listing_keeps_what_was_counted() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load(vec![service(80, endpoint)]);
        drop(TcpStream::connect((SERVICE, 80)).unwrap());
        let (listed, counted) = (nft(&["list", "ruleset"], ""), counts("services"));
        assert!(listed.contains("counter packets 1 bytes"), "{listed}");
        assert!(nft(&["-j", "list", "ruleset"], "").contains(r#""counter": {"packets": 1"#));
        let before = read(FAMILY);
        nft(&["flush", "ruleset"], "");
        nft(&["-f", "-"], &listed);
        assert_eq!((read(FAMILY), counts("services")), (before, counted));
    });
}

/// Large too, and not counted; where the keys are known from.
fn ports() -> Arc<Set> {
    Arc::new(Set::new("ports".into(), vec![Field::DestPort], SetData::None))
}

/// Of these one has gone, so that those behind it have to be asked for one by one.
#[expect(clippy::unnecessary_wraps, reason = "the type of what tells keys")]
fn likely_keys(_set: &Name, others: &nft::Ruleset) -> Option<Vec<Bytes>> {
    let ports = others.sets.get(&ports().name).map_or(&[][..], |state| &state.elements);
    let ports = ports.iter().filter_map(|port| port.key.reader().port());
    Some(ports.map(|port| Bytes::new().proto(TCP).port(port)).collect())
}

#[test]
fn large_sets_are_asked_for_by_key_and_one_that_went_hides_no_other() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load((1..=u16::MAX).map(|port| service(port, endpoint)).collect());
        // The last one is in no key, so that only a reading of the whole would show it.
        let known = (1..u16::MAX).map(|port| Element { comment: None, ..refusal(port) }).collect();
        apply(&tx(
            FAMILY,
            vec![
                Op::DeleteElements { set: services(), elements: vec![Bytes::new().proto(TCP).port(30_000)] },
                Op::AddSet(ports()),
                Op::AddElements { set: ports(), elements: known },
            ],
        ));
        for port in [1, 29_999, 30_001, 65_534, 65_535] {
            drop(TcpStream::connect((SERVICE, port)).unwrap());
        }
        let mut nftables = Nftables::open().unwrap().expecting(likely_keys).with_large_sets_from(50_000);
        let counts = nftables.counts(FAMILY, &TABLE.into(), &["services".into()]).unwrap();
        let keys: Vec<_> = counts[&Name::from("services")].iter().map(|count| count.element.key).collect();
        let expected = [1, 29_999, 30_001, 65_534].map(|port| Bytes::new().proto(TCP).port(port));
        assert_eq!(keys.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    });
}

#[test]
fn without_the_table_nothing_was_counted() {
    in_netns(|| assert_eq!(counts("services"), []));
}
