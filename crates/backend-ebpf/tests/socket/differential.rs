//! Programs with rules beneath do what the rules do alone: the same endpoints, the same refusals, the same addresses shown.
//!
//! Random Services and settings, the same clients and destinations both times. First with models of both, the rules walked and the
//! maps read, for many cases; then with real sockets between pods and nodes, for some.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use backend_ebpf::{Change, Condition, Options, SocketPath, Wanted};
use backend_nftables::{Backend, Extent, table_name};
use ebpf::{Contents, FastPath as _, FastPathError};
use fakes::ebpf::{FakePrograms, destinations};
use fakes::kernel::FakeKernel;
use kernel::{Bpf, FastPathPlace, KernelFastPath};
use lab::cgroup::SocketSite;
use lab::client::{ConnectFailure, FailureClass, udp_once};
use lab::echo::{EchoServer, Mode};
use lab::{Host, Lab};
use model::{
    AddressKind, Affinity, Destination, EndpointNode, Frontend, FrontendAddress, FrontendKey, Masquerade,
    NodePortAddresses, ObjectName, PodSource, Pool, Protocol, RuleSettings, ServicePortName, Table,
    TrafficPolicy, V4, Verdict,
};
use nft::Kernel;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use walk::nft::Tracer;
use walk::{Origin, Outcome, Packet};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
/// Two pods of the node, and one of another.
const ENDPOINTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 0, 3), Ipv4Addr::new(10, 244, 1, 2)];
/// No endpoint: a pod that talks to itself sees the one address that is documented as different.
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 4);
const PORT: u16 = 8080;
const SERVICES: u8 = 5;
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A Service port, for both protocols.
#[derive(Clone, Debug)]
struct Service {
    /// Bits of [`ENDPOINTS`].
    endpoints: u8,
    inside: u8,
    when_empty: Verdict,
    has_node_port: bool,
    has_affinity: bool,
    has_sources: bool,
    cluster_ip: Masquerade,
    outer: Masquerade,
}

fn service() -> impl Strategy<Value = Service> {
    let masquerade = || prop_oneof![Just(Masquerade::Never), Just(Masquerade::UnlessFromPod)];
    let flags = (any::<bool>(), proptest::bool::weighted(0.2), proptest::bool::weighted(0.2));
    let outer = prop_oneof![Just(Masquerade::Always), Just(Masquerade::Never)];
    let verdict = prop_oneof![4 => Just(Verdict::Reject), 1 => Just(Verdict::Drop)];
    (0u8..8, 0u8..8, verdict, flags, masquerade(), outer).prop_map(
        |(endpoints, inside, when_empty, (has_node_port, has_affinity, has_sources), cluster_ip, outer)| {
            Service {
                endpoints,
                inside,
                when_empty,
                has_node_port,
                has_affinity,
                has_sources,
                cluster_ip,
                outer,
            }
        },
    )
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    proptest::collection::vec(service(), 1..=usize::from(SERVICES))
}

fn settings() -> impl Strategy<Value = RuleSettings> {
    let node_ports = prop_oneof![
        2 => Just(NodePortAddresses::All),
        2 => Just(NodePortAddresses::Within(vec![IpAddr::from(NODE).into()])),
        1 => Just(NodePortAddresses::Within(vec!["198.51.100.0/24".parse().unwrap()])),
    ];
    (node_ports, any::<bool>(), proptest::bool::weighted(0.2)).prop_map(
        |(node_ports, localhost_node_ports, masquerade_all)| RuleSettings {
            node_ports,
            localhost_node_ports,
            masquerade_all,
            pods: Some(PodSource::Cidr("10.244.0.0/16".parse().unwrap())),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            ..RuleSettings::default()
        },
    )
}

fn cluster_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, 10 + n)
}

fn load_balancer(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + n)
}

fn node_port(n: u8) -> u16 {
    30_000 + u16::from(n)
}

fn pool(bits: u8, when_empty: Verdict) -> Pool<V4> {
    let all = (0u8..).zip(ENDPOINTS).filter(|(n, _)| bits & 1 << n != 0);
    let endpoints =
        all.map(|(n, address)| Destination { address, port: PORT, node: EndpointNode::this_if(n < 2) });
    Pool::new(endpoints.collect(), when_empty)
}

fn frontends(n: u8, service: &Service, protocol: Protocol) -> Vec<Frontend<V4>> {
    let name = ServicePortName {
        service: ObjectName::new("ns", &format!("s-{n}-{protocol}")),
        port: "port".into(),
        protocol,
    };
    let cluster = pool(service.endpoints, service.when_empty);
    let frontend = |kind, address, port, masquerade| Frontend {
        masquerade,
        affinity: service.has_affinity.then(|| Affinity { timeout: Duration::from_mins(1), service: None }),
        ..Frontend::new(FrontendKey { address, protocol, port }, kind, name.clone(), cluster.clone())
    };
    let ip = FrontendAddress::Ip;
    let mut frontends = vec![frontend(AddressKind::ClusterIp, ip(cluster_ip(n)), 80, service.cluster_ip)];
    // As externalTrafficPolicy asks for it: with `Local` the client's address is kept, and who is inside takes the short cut.
    let is_local = service.outer == Masquerade::Never;
    let outer = |kind, address, port| Frontend {
        policy: if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        pool: pool(if is_local { service.inside & 3 } else { service.endpoints }, service.when_empty),
        internal_pool: is_local.then(|| cluster.clone()),
        allowed_sources: service.has_sources.then(|| ["198.51.100.0/24".parse().unwrap()].into()),
        ..frontend(kind, address, port, service.outer)
    };
    frontends.push(outer(AddressKind::LoadBalancerIp, ip(load_balancer(n)), 80));
    if service.has_node_port {
        let node_port = outer(AddressKind::NodePort, FrontendAddress::Node, node_port(n));
        frontends.push(Frontend { allowed_sources: None, ..node_port });
    }
    frontends
}

fn table(services: &[Service]) -> Table<V4> {
    let mut table = Table::default();
    for (n, service) in (0u8..).zip(services) {
        for protocol in PROTOCOLS {
            let own = frontends(n, service, protocol);
            table.set_service(&own[0].service.service.clone(), own);
        }
    }
    table
}

/// What clients name, Services' or not.
fn named() -> Vec<(Ipv4Addr, u16)> {
    let of_services = (0..SERVICES).flat_map(|n| {
        let at_node = [NODE, Ipv4Addr::LOCALHOST].map(|address| (address, node_port(n)));
        [(cluster_ip(n), 80), (cluster_ip(n), 81), (load_balancer(n), 80)].into_iter().chain(at_node)
    });
    of_services.chain(ENDPOINTS.map(|address| (address, PORT))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Node,
    Pod,
}

/// What becomes of a connection, as both ends see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// Who answers, and whether it sees the node's address instead of the client's.
    Answered {
        by: SocketAddr,
        sees_node: bool,
    },
    Refused,
    Dropped,
}

fn seen(tracer: &Tracer, client: Client, protocol: Protocol, to: (Ipv4Addr, u16)) -> BTreeSet<Seen> {
    let (source, origin) = match client {
        // As the kernel chooses it by the route.
        Client::Node if to.0.is_loopback() => (Ipv4Addr::LOCALHOST, Origin::Host),
        Client::Node => (NODE, Origin::Host),
        Client::Pod => (POD, Origin::Interface("veth-pod".into())),
    };
    let packet = Packet {
        source: (source, 40_000).into(),
        destination: to.into(),
        protocol: protocol.number(),
        origin,
    };
    let outcomes = tracer.outcomes(&packet).unwrap();
    let of = |outcome| match outcome {
        Outcome::Delivered { to: by, masqueraded } => {
            Seen::Answered { by, sees_node: masqueraded || source == NODE }
        }
        Outcome::Refused => Seen::Refused,
        Outcome::Dropped => Seen::Dropped,
    };
    outcomes.into_iter().map(of).collect()
}

fn tracer(table: &Table<V4>, settings: &RuleSettings) -> Tracer {
    let plan = Backend::<V4>::new(settings.clone()).repair(settings, table, None, Extent::Difference);
    let mut kernel = FakeKernel::new();
    kernel.apply(&plan.transaction).unwrap();
    let ruleset = kernel.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap().unwrap();
    Tracer::new(ruleset, nft::Family::Ip, [NODE.into()])
}

fn wanted(table: &Table<V4>, settings: &RuleSettings) -> Change<V4> {
    Change::All(Wanted::of(table, settings, &Options { datagrams: true, ..Options::default() }))
}

/// The maps for these Services.
fn maps(table: &Table<V4>, settings: &RuleSettings) -> Contents<V4> {
    let programs = FakePrograms::<V4>::default();
    let opened = programs.clone();
    let open = Box::new(move || Ok(opened.open()));
    let addresses = || Ok(BTreeSet::from([NODE.into(), Ipv4Addr::LOCALHOST.into()]));
    let mut path = SocketPath::new(open, Box::new(addresses), Box::new(|_, _| ()));
    assert_eq!(path.change(&wanted(table, settings)), Condition::On);
    programs.contents().unwrap()
}

#[test]
fn models_of_programs_and_rules_agree() {
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    let n_translated = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config).run(&(services(), settings()), |(services, settings)| {
        let table = table(&services);
        let tracer = tracer(&table, &settings);
        let maps = maps(&table, &settings);
        for (client, protocol) in
            [Client::Node, Client::Pod].into_iter().flat_map(|c| PROTOCOLS.map(|p| (c, p)))
        {
            for to in named() {
                if client == Client::Pod && to.0.is_loopback() {
                    // A pod's own.
                    continue;
                }
                let chosen = destinations(&maps, client == Client::Node, protocol, to);
                let with: BTreeSet<Seen> =
                    chosen.iter().flat_map(|to| seen(&tracer, client, protocol, *to)).collect();
                let alone = seen(&tracer, client, protocol, to);
                prop_assert_eq!(&with, &alone, "{:?} by {} to {:?}", client, protocol, to);
                n_translated.set(n_translated.get() + usize::from(!chosen.contains(&to)));
            }
        }
        Ok(())
    });
    outcome.unwrap();
    // Some thousands, by chance.
    assert!(n_translated.get() > 1000, "{}", n_translated.get());
}

/// Nodes and pods with programs and rules in force.
struct Nodes {
    lab: Lab,
    site: SocketSite,
    _servers: Vec<EchoServer>,
    rules: kernel::Nftables,
}

impl Nodes {
    fn new() -> Self {
        let site = SocketSite::enter().unwrap_or_else(|error| panic!("{error:#}"));
        let lab = Lab::new(&lab::Config { pods: 3, node2_pods: 1, ..lab::Config::default() }).unwrap();
        let pods = [lab.pod(0), lab.pod(1), lab.node2_pod(0)];
        let start = |pod: &Host| {
            EchoServer::start(pod, pod.name(), &[(PORT, Mode::Line), (PORT, Mode::Udp)]).unwrap()
        };
        let servers = pods.map(start).into();
        assert_eq!(pods.map(Host::ip4), ENDPOINTS);
        assert_eq!((lab.node().ip4(), lab.pod(2).ip4()), (NODE, POD));
        let rules = lab.node().run(kernel::Nftables::open).unwrap();
        Self { lab, site, _servers: servers, rules }
    }

    fn set_rules(&mut self, table: &Table<V4>, settings: &RuleSettings) {
        let found = self.rules.read(nft::Family::Ip, &table_name()).unwrap().whole().unwrap();
        let backend = Backend::<V4>::new(settings.clone());
        let plan = backend.repair(settings, table, found.as_ref(), Extent::Difference);
        if !plan.transaction.is_empty() {
            self.rules.apply(&plan.transaction).unwrap();
        }
    }

    fn path(&self) -> KernelFastPath<V4> {
        let place =
            FastPathPlace { cgroup_root: self.site.cgroup().to_owned(), bpffs: self.site.bpffs().to_owned() };
        loop {
            match KernelFastPath::open(place.clone(), Bpf::default()).and_then(KernelFastPath::with_datagrams)
            {
                // A process that another test has just begun to start has the lock for a moment.
                Err(FastPathError::Busy { .. }) => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
    }

    fn client(&self, client: Client) -> &Host {
        match client {
            Client::Node => self.lab.node(),
            Client::Pod => self.lab.pod(2),
        }
    }

    /// What one connection comes to, or one datagram.
    fn ask(&self, client: Client, protocol: Protocol, to: SocketAddr, limit: Duration) -> Seen {
        let answer = self.client(client).run(|| match protocol {
            Protocol::Tcp => {
                connect(to, limit).map_err(ConnectFailure::classify).and_then(|line| line.parse())
            }
            // From a socket that is connected, since others do not hear of refusals.
            _ => udp_once(to, limit),
        });
        match answer {
            Ok(reply) => {
                let sees_node = reply.client.ip() == NODE;
                assert!(sees_node || reply.client.ip() == POD, "{reply:?}");
                Seen::Answered { by: reply.server, sees_node }
            }
            Err(error) => match (error.class(), error) {
                (FailureClass::Refused, _) => Seen::Refused,
                (FailureClass::TimedOut, _) => Seen::Dropped,
                // A host's own datagram.
                (_, ConnectFailure::Other(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Seen::Dropped
                }
                (_, error) => panic!("{client:?} to {to}: {error:?}"),
            },
        }
    }

    /// Connects until as much has happened as can, or something that can't.
    fn all_seen(
        &self,
        (client, protocol): (Client, Protocol),
        to: SocketAddr,
        expected: &BTreeSet<Seen>,
        most: usize,
    ) -> BTreeSet<Seen> {
        // Of what is dropped nobody hears; all else has the time that it needs.
        let limit = if expected.contains(&Seen::Dropped) {
            Duration::from_millis(300)
        } else {
            Duration::from_secs(20)
        };
        let mut seen = BTreeSet::new();
        // One of three is not met in 200 tries never.
        for _ in 0..200 {
            seen.insert(felt((client, protocol), self.ask(client, protocol, to, limit)));
            if seen.len() >= most || !seen.is_subset(expected) {
                break;
            }
        }
        seen
    }
}

/// The line of whoever answers a connection.
fn connect(to: SocketAddr, limit: Duration) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    assert_eq!(stream.peer_addr()?, to, "what the socket shows");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// Each case takes some hundred connections.
const REAL_CASES: u32 = 6;

#[test]
fn real_connections_come_to_the_same_with_programs_and_without() {
    let mut nodes = Nodes::new();
    let mut programs = nodes.path();
    let config = Config { cases: REAL_CASES, failure_persistence: None, ..Config::default() };
    let mut n_translated = 0;
    let mut check = |services: Vec<Service>, settings: RuleSettings| {
        // Loopback needs a sysctl, which the node has not.
        let settings = RuleSettings { localhost_node_ports: false, ..settings };
        let table = table(&services);
        nodes.set_rules(&table, &settings);
        let (maps, tracer) = (maps(&table, &settings), tracer(&table, &settings));
        programs.rebuild(&maps, &[]).unwrap();
        nodes.lab.node().run(|| programs.prove()).unwrap();
        for by in [Client::Node, Client::Pod].into_iter().flat_map(|c| PROTOCOLS.map(|p| (c, p))) {
            let (client, protocol) = by;
            for to in named().into_iter().filter(|(address, _)| !address.is_loopback()) {
                let expected: BTreeSet<Seen> =
                    seen(&tracer, client, protocol, to).into_iter().map(|seen| felt(by, seen)).collect();
                if is_lost(to, &expected) {
                    continue;
                }
                // A client with affinity has one endpoint.
                let most = if has_affinity(&services, to) { 1 } else { expected.len() };
                programs.switch(true);
                let with = nodes.all_seen(by, to.into(), &expected, most);
                programs.switch(false);
                let alone = nodes.all_seen(by, to.into(), &expected, most);
                prop_assert_eq!(&with, &alone, "{:?} to {:?}", by, to);
                prop_assert!(with.is_subset(&expected), "{:?} to {:?}: {:?}", by, to, with);
                prop_assert_eq!(with.len(), most, "{:?} to {:?}: {:?}", by, to, with);
                let chosen = destinations(&maps, client == Client::Node, protocol, to);
                n_translated += usize::from(!chosen.contains(&to));
            }
        }
        Ok(())
    };
    // The runner wants a function that changes nothing.
    let check = std::cell::RefCell::new(&mut check);
    let cases = (services(), settings());
    TestRunner::new(config)
        .run(&cases, |(services, settings)| check.borrow_mut()(services, settings))
        .unwrap();
    assert!(n_translated > 20, "{n_translated}");
}

fn has_affinity(services: &[Service], to: (Ipv4Addr, u16)) -> bool {
    let is_of = |n: u8| [(cluster_ip(n), 80), (load_balancer(n), 80), (NODE, node_port(n))].contains(&to);
    (0u8..).zip(services).any(|(n, service)| is_of(n) && service.has_affinity)
}

/// A host's own datagram may fail inside the call whether it is refused or dropped; not where its packet is looked at on the way in.
fn felt(by: (Client, Protocol), seen: Seen) -> Seen {
    match (by, seen) {
        ((Client::Node, Protocol::Udp), Seen::Refused) => Seen::Dropped,
        (_, seen) => seen,
    }
}

/// An address that no Service has, and nobody else.
fn is_lost(to: (Ipv4Addr, u16), expected: &BTreeSet<Seen>) -> bool {
    let stays = |seen: &Seen| matches!(seen, Seen::Answered { by, .. } if *by == to.into());
    !ENDPOINTS.contains(&to.0) && expected.iter().any(stays)
}
