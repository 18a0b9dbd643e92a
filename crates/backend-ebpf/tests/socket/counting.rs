//! What was counted stays counted, whatever becomes of maps and processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use backend_ebpf::{Condition, SocketPath};
use fakes::ebpf::FakePrograms;
use kernel::Bpf;
use mode::Meter;
use model::{Frontend, FrontendAddress, FrontendKey, Protocol, ServicePortName, V4};
use proptest::prelude::*;

use crate::site::{Server, Site, VIP, all, apply, ask, frontend};

/// More than new maps have room for at first.
const MANY: u16 = 1100;

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    /// A connection to a Service.
    Connect(u8),
    /// A Service has other endpoints.
    Endpoints(u8, BTreeSet<u8>),
    /// Another process goes on.
    Restart,
    /// A Service of many endpoints comes or goes.
    Many(bool),
    /// The next call of the kernel's fails.
    Failure,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0u8..3).prop_map(Event::Connect),
        4 => (0u8..3, proptest::collection::btree_set(1u8..6, 0..4)).prop_map(|(n, of)| Event::Endpoints(n, of)),
        2 => Just(Event::Restart),
        1 => any::<bool>().prop_map(Event::Many),
        2 => Just(Event::Failure),
    ]
}

fn key(service: u8) -> FrontendKey<V4> {
    let address = FrontendAddress::Ip(Ipv4Addr::new(10, 96, 0, service));
    FrontendKey { address, protocol: Protocol::Tcp, port: 80 }
}

/// All Services have their endpoints among the same addresses.
fn frontends(endpoints: &[BTreeSet<u8>; 3], has_many: bool) -> Vec<Frontend<V4>> {
    let small = (0u8..).zip(endpoints).filter(|(_, endpoints)| !endpoints.is_empty());
    let small = small.map(|(n, endpoints)| {
        let endpoints: Vec<_> = endpoints.iter().map(|n| (Ipv4Addr::new(10, 244, 0, *n), 8080)).collect();
        frontend(&format!("s-{n}"), key(n).address, 80, &endpoints)
    });
    let many: Vec<_> = (0..MANY).map(|n| (Ipv4Addr::new(10, 244, 1, 1), 1000 + n)).collect();
    small.chain(has_many.then(|| frontend("many", key(100).address, 80, &many))).collect()
}

type Counts = BTreeMap<(ServicePortName, SocketAddr), (u64, u64)>;

/// Number of the counter, and what it says.
fn counts(meters: Vec<Meter>) -> Counts {
    let of = |meter: Meter| {
        let endpoint = meter.endpoint.unwrap();
        ((meter.service, endpoint), (meter.id, meter.counters.connections))
    };
    meters.into_iter().map(of).collect()
}

fn open(programs: &FakePrograms<V4>) -> SocketPath<V4> {
    let programs = programs.clone();
    let addresses = || Ok(BTreeSet::from([IpAddr::from([10, 0, 0, 1])]));
    SocketPath::new(Box::new(move || Ok(programs.open())), Box::new(addresses), Box::new(|_, _| ()))
}

/// A change, tried again for as long as calls fail.
fn change_to(path: &mut SocketPath<V4>, wanted: Vec<Frontend<V4>>) {
    let wanted = all(wanted);
    assert!((0..3).any(|_| path.change(&wanted) == Condition::On));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counters_of_endpoints_that_stay_go_on(events in proptest::collection::vec(event(), 1..40)) {
        let programs = FakePrograms::<V4>::default();
        let mut path = open(&programs);
        let (mut endpoints, mut has_many) = ([const { BTreeSet::new() }; 3], false);
        let mut expected = Counts::new();
        for event in events {
            let connected = match &event {
                Event::Connect(service) => programs.connect(&key(*service)),
                Event::Endpoints(service, wanted) => {
                    endpoints[usize::from(*service)].clone_from(wanted);
                    None
                }
                Event::Restart => {
                    path = open(&programs);
                    None
                }
                Event::Many(wanted) => {
                    has_many = *wanted;
                    None
                }
                Event::Failure => {
                    programs.fail_at(1);
                    None
                }
            };
            change_to(&mut path, frontends(&endpoints, has_many));
            let found = counts(path.meters());
            // What is no endpoint any more is forgotten.
            expected.retain(|(service, endpoint), _| {
                let IpAddr::V4(address) = endpoint.ip() else { return false };
                let is_of = |n: u8| service.service.to_string().ends_with(&format!("s-{n}"));
                (0u8..3).any(|n| is_of(n) && endpoints[usize::from(n)].contains(&address.octets()[3]))
            });
            if let (Event::Connect(service), Some(endpoint)) = (event, connected) {
                let socket = SocketAddr::from((endpoint.address, endpoint.port));
                let name = frontends(&endpoints, has_many)[..]
                    .iter().find(|frontend| frontend.key == key(service)).unwrap().service.clone();
                let id = u64::from(endpoint.epoch);
                let counted = expected.entry((name, socket)).or_insert((id, 0));
                prop_assert_eq!(counted.0, id, "the same counter");
                counted.1 += 1;
            }
            prop_assert_eq!(&found, &expected);
        }
    }
}

#[test]
fn connections_are_counted_by_endpoint_through_restarts_and_growth() {
    let site = Site::new();
    let servers = ["a", "b"].map(|name| Server::start(&site.node, "127.0.0.1", name));
    let endpoints: Vec<_> = servers.iter().map(|server| (Ipv4Addr::LOCALHOST, server.port)).collect();
    let web = frontend("web", FrontendAddress::Ip(VIP), 80, &endpoints);
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &all(vec![web.clone()]));
    let mut asked = BTreeMap::<String, u64>::new();
    let mut connect = |times: u32| {
        for _ in 0..times {
            *asked.entry(ask(&site.node, (VIP, 80).into()).unwrap().0).or_default() += 1;
        }
        asked.clone()
    };
    let by_name = |path: &mut SocketPath<V4>| -> BTreeMap<String, u64> {
        let name = |endpoint: SocketAddr| {
            let server = servers.iter().position(|server| server.port == endpoint.port()).unwrap();
            ["a", "b"][server].to_owned()
        };
        let meters = path.meters().into_iter();
        meters.map(|meter| (name(meter.endpoint.unwrap()), meter.counters.connections)).collect()
    };
    let expected = connect(12);
    assert_eq!(by_name(&mut path), expected);
    // The canary is no connection of a Service's.
    assert_eq!(site.node.run(|| path.check()), Condition::On);
    drop(path);
    let expected_after = connect(5);
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &all(vec![web.clone()]));
    assert_eq!(by_name(&mut path), expected_after);
    let rebuilds = path.statistics().rebuilds;
    let ids = |path: &mut SocketPath<V4>| path.meters().into_iter().map(|meter| meter.id).collect::<Vec<_>>();
    let before = ids(&mut path);
    let many: Vec<_> = (0..MANY).map(|n| (Ipv4Addr::LOCALHOST, 1000 + n)).collect();
    let many = frontend("many", FrontendAddress::Ip(Ipv4Addr::new(10, 96, 0, 100)), 80, &many);
    apply(&site, &mut path, &all(vec![web, many]));
    assert_eq!(path.statistics().rebuilds, rebuilds + 1, "maps have grown");
    assert_eq!((by_name(&mut path), ids(&mut path)), (expected_after, before));
    let expected = connect(4);
    assert_eq!(by_name(&mut path), expected);
    for server in servers {
        server.stop(&site.node, "127.0.0.1");
    }
}
