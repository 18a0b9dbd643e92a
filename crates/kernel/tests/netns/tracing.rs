//! The kernel's own tracing of packets, which ends with its socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kernel::Tracing;
use nft::trace::{Ends, Event, Traced, Traces, Verdict, What};
use nft::{
    BaseChain, Bytes, ChainType, Data, Element, Family, Field, Hook, Name, Op, Rule, Set, SetData, Statement,
};

use crate::common::{TABLE, apply, in_netns, ip, nft, tx};

const FAMILY: Family = Family::Ip;
const TCP: u8 = 6;
const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const TRACING: &str = "trace-test";

/// The service at port 80 leads to the endpoint, port 81 is refused.
fn load(endpoint: SocketAddr) {
    let data = SetData::Fields(vec![Field::DestAddr, Field::DestPort]);
    let services = Arc::new(Set::new("services".into(), vec![Field::L4Proto, Field::DestPort], data));
    let refused = Arc::new(Set::new("refused".into(), vec![Field::DestPort], SetData::None));
    let to = Data::Value(Bytes::new().addr(endpoint.ip()).port(endpoint.port()));
    let elements = vec![Element { key: Bytes::new().proto(TCP).port(80), data: to, comment: None }];
    let refusals = vec![Element { key: Bytes::new().port(81), data: Data::None, comment: None }];
    let base = |kind, priority| Some(BaseChain { kind, hook: Hook::Output, priority });
    let dnat = Statement::DnatMap { key: services.key.clone(), map: services.name.clone() };
    let is_refused = Statement::InSet { key: refused.key.clone(), set: refused.name.clone(), negate: false };
    apply(&tx(
        FAMILY,
        vec![
            Op::AddTable,
            Op::AddSet(services.clone()),
            Op::AddSet(refused.clone()),
            Op::AddElements { set: services, elements },
            Op::AddElements { set: refused, elements: refusals },
            Op::AddChain { name: "nat".into(), base: base(ChainType::Nat, -100) },
            Op::AddChain { name: "filter".into(), base: base(ChainType::Filter, 0) },
            Op::SetRules { chain: "nat".into(), rules: vec![Rule::new(vec![dnat])] },
            Op::SetRules {
                chain: "filter".into(),
                rules: vec![Rule::new(vec![is_refused, Statement::Reject])],
            },
        ],
    ));
}

fn traced(port: u16) -> Traced {
    Traced { address: Some(SERVICE), protocol: TCP, port }
}

/// What happens until nothing more does.
fn events(tracing: &mut Tracing) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        match tracing.wait(Duration::from_millis(300)).unwrap() {
            Traces::Events(events) => all.extend(events),
            Traces::Nothing => return all,
            Traces::Lost => panic!("events were lost"),
        }
    }
}

fn listen() -> (TcpListener, SocketAddr) {
    ip(FAMILY, "link set lo up");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn packets_are_followed_to_their_endpoint_and_to_their_refusal() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load(endpoint);
        let node_port = Traced { address: None, protocol: TCP, port: 7 };
        let mut tracing =
            Tracing::begin(&Name::from(TRACING), &[traced(80), traced(81), node_port], 100).unwrap();
        let flow = TcpStream::connect((SERVICE, 80)).unwrap();
        let told = events(&mut tracing);
        let ends: Vec<Ends> = told.iter().filter_map(|event| event.ends).collect();
        let source = flow.local_addr().unwrap();
        let sent = Ends { protocol: TCP, source, destination: SocketAddr::new(SERVICE, 80) };
        assert_eq!(ends.first(), Some(&sent), "{told:?}");
        assert!(ends.iter().any(|ends| ends.destination == endpoint), "{told:?}");
        let drops = |event: &Event| matches!(event.what, What::Rule { verdict: Verdict::Drop, .. });
        assert!(!told.iter().any(drops), "{told:?}");

        TcpStream::connect((SERVICE, 81)).unwrap_err();
        let told = events(&mut tracing);
        let drop = told.iter().find(|event| drops(event)).unwrap_or_else(|| panic!("{told:?}"));
        assert_eq!((drop.table.as_str(), drop.chain.as_str()), (TABLE, "filter"));
    });
}

#[test]
fn the_table_belongs_to_the_socket_and_lists_well() {
    in_netns(|| {
        ip(FAMILY, "link set lo up");
        let tracing = Tracing::begin(&Name::from(TRACING), &[traced(80)], 20).unwrap();
        let listed = nft(&["list", "ruleset"], "");
        let rule = "ip daddr 127.0.0.9 tcp dport 80 limit rate 20/second meta nftrace set 1";
        assert_eq!(listed.matches(rule).count(), 2, "{listed}");
        assert!(listed.contains("flags owner"), "{listed}");
        drop(tracing);
        assert_eq!(nft(&["list", "ruleset"], ""), "");
    });
}

#[test]
fn no_more_packets_are_traced_than_is_said() {
    in_netns(|| {
        let (_listener, endpoint) = listen();
        load(endpoint);
        let mut tracing = Tracing::begin(&Name::from(TRACING), &[traced(80)], 1).unwrap();
        for _ in 0..60 {
            drop(TcpStream::connect((SERVICE, 80)).unwrap());
        }
        let told = events(&mut tracing);
        let packets: std::collections::BTreeSet<_> =
            told.iter().filter(|event| event.table == TRACING).map(|event| event.id).collect();
        assert!(!packets.is_empty() && packets.len() < 60, "{} packets", packets.len());
    });
}
