//! Which elements count flows: endpoints in a table of few, frontends alone in a table of many; and nothing that is in force is
//! written anew for that.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use backend_nftables::{Backend, Config, Extent, table_name};
use fakes::kernel::FakeKernel;
use lab::Namespace;
use mode::{Counters, Planner as _};
use model::{
    AddressKind, Balancer, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, ObjectName,
    Pool, Protocol, Proxied, ServicePortName, Table, V4, Verdict,
};
use nft::{Bytes, Family, Kernel, Name, Op, Ruleset, Transaction};

/// Services that have more endpoints than are counted, and fewer.
const MANY: u16 = 1001;
const FEW: u16 = 3;
const ENDPOINTS: u8 = 10;

fn service(n: u16) -> ObjectName {
    ObjectName::new("ns", &format!("svc-{n}"))
}

fn address(first: u8, n: u16, last: u8) -> std::net::Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    [first, high, low, last].into()
}

/// By cluster IP and by node port.
fn frontends(n: u16) -> Vec<Frontend<V4>> {
    let destination =
        |last| Destination { address: address(10, n, last), port: 80, node: EndpointNode::Other };
    let pool = Pool::new((0..ENDPOINTS).map(destination).collect::<BTreeSet<_>>(), Verdict::Reject);
    let protocol = Protocol::Tcp;
    let port = ServicePortName { service: service(n), port: "http".into(), protocol };
    let ip = FrontendKey { address: FrontendAddress::Ip(address(11, n, 1)), protocol, port: 80 };
    let node = FrontendKey { address: FrontendAddress::Node, protocol, port: 30_000 + n };
    [(ip, AddressKind::ClusterIp), (node, AddressKind::NodePort)]
        .map(|(key, kind)| Frontend::new(key, kind, port.clone(), pool.clone()))
        .into()
}

fn table(services: u16) -> Table<V4> {
    let mut table = Table::default();
    for n in 0..services {
        table.set_service(&service(n), frontends(n));
    }
    table
}

/// A planner and a kernel that hold a table.
struct Node {
    backend: Backend<V4>,
    kernel: FakeKernel,
}

impl Node {
    fn new() -> Self {
        Self { backend: Backend::new(Config::default()), kernel: FakeKernel::new() }
    }

    fn found(&self) -> Option<Ruleset> {
        self.kernel.table(Family::Ip, &table_name())
    }

    /// Makes the kernel hold this, from what is found there.
    fn repair(&mut self, config: &Config, table: &Table<V4>, extent: Extent) -> Transaction {
        let plan = self.backend.repair(config, table, self.found().as_ref(), extent);
        let transaction = plan.transaction.clone();
        self.kernel.apply(&transaction).unwrap();
        self.backend.committed(plan);
        transaction
    }

    fn start(&mut self, services: u16) -> Transaction {
        self.repair(&Config::default(), &table(services), Extent::Difference)
    }

    /// The maps whose elements count flows.
    fn counted(&self) -> Vec<Name> {
        let found = self.found().unwrap();
        let flows =
            ["endpoints", "affinity-endpoints", "service-ips", "service-nodeports", "internal-service-ips"];
        flows.map(Name::from).into_iter().filter(|name| found.sets[name].set.is_counted).collect()
    }
}

fn of_endpoints() -> Vec<Name> {
    ["endpoints", "affinity-endpoints"].map(Name::from).into()
}

fn of_frontends() -> Vec<Name> {
    ["service-ips", "service-nodeports", "internal-service-ips"].map(Name::from).into()
}

#[test]
fn only_a_table_that_is_written_as_a_whole_has_the_choice() {
    let mut node = Node::new();
    node.start(FEW);
    assert_eq!(node.counted(), of_endpoints());
    // It grows, and another process takes it over.
    let grown = table(MANY);
    let keys = grown.iter().map(|frontend| frontend.key).collect();
    let plan = node.backend.plan(&grown, &keys);
    assert!(plan.transaction.ops.iter().all(|op| !matches!(op, Op::AddSet(_) | Op::DeleteTable)));
    node.kernel.apply(&plan.transaction).unwrap();
    node.backend.committed(plan);
    assert!(node.start(MANY).is_empty());
    assert_eq!(node.counted(), of_endpoints());
    // It is written anew, and shrinks.
    node.repair(&Config::default(), &table(MANY), Extent::Rebuild);
    assert_eq!(node.counted(), of_frontends());
    assert!(node.start(MANY).is_empty());
    assert!(!node.start(FEW).ops.contains(&Op::DeleteTable));
    assert_eq!(node.counted(), of_frontends());
}

#[test]
fn what_counts_in_two_ways_or_in_none_is_not_ours() {
    for counted in [[true, true], [false, false]] {
        let mut node = Node::new();
        node.start(FEW);
        node.kernel.tamper(Family::Ip, &table_name(), |ruleset| {
            for (map, is_counted) in ["endpoints", "service-ips"].into_iter().zip(counted) {
                ruleset.sets.get_mut(map).unwrap().set.is_counted = is_counted;
            }
        });
        assert!(node.start(FEW).ops.contains(&Op::DeleteTable), "{counted:?}");
        assert_eq!(node.counted(), of_endpoints());
    }
}

/// They count what they carry themselves.
#[test]
fn frontends_are_not_counted_where_proxies_carry_flows() {
    let proxied = Config { balancer: Balancer::Proxies(Proxied::All), ..Config::default() };
    let mut node = Node::new();
    node.start(MANY);
    assert!(node.repair(&proxied, &table(MANY), Extent::Difference).ops.contains(&Op::DeleteTable));
    assert_eq!(node.counted(), of_endpoints());
}

#[test]
fn flows_of_frontends_are_their_service_ports() {
    let mut node = Node::new();
    node.start(MANY);
    let count = |map: &str, key, packets| {
        node.kernel.count(Family::Ip, &table_name(), &map.into(), key, packets);
    };
    count("service-ips", Bytes::new().addr(address(11, 7, 1).into()).proto(6).port(80), 5);
    count("service-nodeports", Bytes::new().proto(6).port(30_007), 2);
    count("service-nodeports", Bytes::new().proto(6).port(30_008), 1);
    let sets = ["endpoints", "service-ips", "service-nodeports"].map(Name::from);
    let counts = node.kernel.counts(Family::Ip, &table_name(), &sets).unwrap();
    let meters = node.backend.meters(&table(MANY), counts);
    let mut told: Vec<_> =
        meters.iter().map(|meter| (meter.service.service.clone(), meter.counters)).collect();
    told.sort_by_key(|(service, counters)| (service.clone(), counters.connections));
    let expected = [(7, 2), (7, 5), (8, 1)].map(|(n, flows)| (service(n), Counters::connections(flows)));
    assert_eq!(told, expected);
    assert!(meters.iter().all(|meter| meter.endpoint.is_none()));
    assert_ne!(meters[0].id, meters[1].id);
}

/// In the real kernel: what `nft` lists of such a table, it loads back; needs root.
#[test]
fn a_table_that_counts_by_frontend_lists_and_loads_back() {
    let table = table(MANY);
    let plan =
        Backend::<V4>::new(Config::default()).repair(&Config::default(), &table, None, Extent::Rebuild);
    let host = Namespace::new("counters").unwrap();
    // Not the rules, of which nft makes others that mean the same.
    let read = || {
        let read = || kernel::Nftables::open().unwrap().read(Family::Ip, &table_name()).unwrap();
        host.run(read).whole().unwrap().unwrap().sets
    };
    host.run(|| kernel::Nftables::open().unwrap().apply(&plan.transaction).unwrap());
    let written = read();
    assert!(written["service-ips"].set.is_counted);
    let listing = host.exec("nft", &["list", "ruleset"]).unwrap();
    host.exec("nft", &["flush", "ruleset"]).unwrap();
    host.exec_with_input("nft", &["-f", "-"], &listing).unwrap();
    let loaded = read();
    for (name, state) in written {
        assert!(loaded[&name] == state, "{name} is something else");
    }
}
