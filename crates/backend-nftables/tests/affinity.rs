//! Session affinity with real packets: a client of a Service port comes back to its endpoint, whichever of the port's addresses
//! it takes, and nothing is left in the kernel of clients whose Service is gone.
//!
//! Clients, endpoints, virtual addresses and the node's address are all on the loopback interface of a namespace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use backend_nftables::{Backend, Config, Extent, table_name};
use kernel::Nftables;
use lab::Namespace;
use model::{
    AddressKind, Affinity, Destination, EndpointNode, Family, Frontend, FrontendAddress, FrontendKey,
    IpFamily, Masquerade, ObjectName, Pool, Protocol, ServicePortName, Table, TrafficPolicy, Uid, V4, V6,
    Verdict,
};
use nft::{Kernel, Ruleset};

const ENDPOINTS: u8 = 8;
const CLIENTS: u8 = 6;
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

/// Kinds of addresses, as a part of them.
const CLIENT: u8 = 1;
const ENDPOINT: u8 = 2;
const NODE: u8 = 3;
const CLUSTER_IP: u8 = 96;
const EXTERNAL_IP: u8 = 97;
const LOAD_BALANCER_IP: u8 = 98;

fn addr<F: Family>(kind: u8, n: u8) -> F::Addr {
    let addr = match F::FAMILY {
        IpFamily::V4 => IpAddr::from([10, kind, 0, n]),
        IpFamily::V6 => IpAddr::from([0xfd, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]),
    };
    F::narrow(addr).unwrap()
}

fn uid(n: u8) -> Option<Uid> {
    Uid::parse(&format!("00000000-0000-0000-0000-0000000000{n:02x}"))
}

/// A Service `web-N`.
#[derive(Clone, Copy)]
struct Service {
    n: u8,
    endpoints: u8,
    timeout_secs: u64,
    uid: u8,
    policy: TrafficPolicy,
}

/// The usual one.
const WEB: Service =
    Service { n: 1, endpoints: ENDPOINTS, timeout_secs: 600, uid: 1, policy: TrafficPolicy::Cluster };

impl Service {
    fn name(self) -> ObjectName {
        ObjectName::new("shop", &format!("web-{}", self.n))
    }

    fn frontends<F: Family>(self) -> Vec<Frontend<F>> {
        let destination =
            |n| Destination { address: addr::<F>(ENDPOINT, n), port: 8080, node: EndpointNode::This };
        let endpoints: BTreeSet<_> = (1..=self.endpoints).map(destination).collect();
        let cluster = Pool::new(endpoints, Verdict::Reject);
        let protocol = Protocol::Udp;
        let frontend = |kind, address, port| Frontend {
            affinity: Some(Affinity {
                timeout: Duration::from_secs(self.timeout_secs),
                service: uid(self.uid),
            }),
            masquerade: Masquerade::Never,
            ..Frontend::new(
                FrontendKey { address, protocol, port },
                kind,
                ServicePortName { service: self.name(), port: "dns".into(), protocol },
                cluster.clone(),
            )
        };
        let ip = |kind| FrontendAddress::Ip(addr::<F>(kind, self.n));
        let external = |kind, address, port| Frontend {
            policy: self.policy,
            // All endpoints are on this node.
            internal_pool: (self.policy == TrafficPolicy::Local).then(|| cluster.clone()),
            ..frontend(kind, address, port)
        };
        vec![
            frontend(AddressKind::ClusterIp, ip(CLUSTER_IP), PORT),
            external(AddressKind::ExternalIp, ip(EXTERNAL_IP), PORT),
            external(AddressKind::LoadBalancerIp, ip(LOAD_BALANCER_IP), PORT),
            external(AddressKind::NodePort, FrontendAddress::Node, NODE_PORT + u16::from(self.n)),
        ]
    }

    /// All ways to reach it.
    fn targets<F: Family>(self) -> [SocketAddr; 4] {
        let at = |kind, n, port| SocketAddr::new(addr::<F>(kind, n).into(), port);
        [
            at(CLUSTER_IP, self.n, PORT),
            at(EXTERNAL_IP, self.n, PORT),
            at(LOAD_BALANCER_IP, self.n, PORT),
            at(NODE, 1, NODE_PORT + u16::from(self.n)),
        ]
    }
}

/// A proxy without an API server.
struct World<F: Family> {
    kernel: Nftables,
    table: Table<F>,
    backend: Backend<F>,
}

impl<F: Family> World<F> {
    fn new() -> Self {
        let mut world = Self {
            kernel: Nftables::open().unwrap(),
            table: Table::default(),
            backend: Backend::new(Config::default()),
        };
        world.restart();
        world
    }

    fn read(&mut self) -> Option<Ruleset> {
        self.kernel.read(F::FAMILY.into(), &table_name()).and_then(nft::Reading::whole).unwrap()
    }

    /// A new proxy that finds what the former one left.
    fn restart(&mut self) {
        self.backend = Backend::new(Config::default());
        let found = self.read();
        let config = Config::default();
        let plan = self.backend.repair(&config, &self.table, found.as_ref(), Extent::Difference);
        self.kernel.apply(&plan.transaction).unwrap_or_else(|error| panic!("{error}\n{}", plan.transaction));
        self.backend.committed(plan);
        self.assert_settled();
    }

    fn assert_settled(&mut self) {
        let (found, config) = (self.read(), Config::default());
        let plan = Backend::<F>::new(config.clone()).repair(
            &config,
            &self.table,
            found.as_ref(),
            Extent::Difference,
        );
        assert!(plan.transaction.is_empty(), "left to do:\n{}", plan.transaction);
    }

    /// Returns how many elements changed.
    fn set(&mut self, service: Service) -> usize {
        self.set_frontends(service, service.frontends())
    }

    fn delete(&mut self, service: Service) -> usize {
        self.set_frontends(service, Vec::new())
    }

    fn set_frontends(&mut self, service: Service, frontends: Vec<Frontend<F>>) -> usize {
        let changed = self.table.set_service(&service.name(), frontends);
        let plan = self.backend.plan(&self.table, &changed);
        let elements = plan.transaction.element_count();
        self.kernel.apply(&plan.transaction).unwrap_or_else(|error| panic!("{error}\n{}", plan.transaction));
        self.backend.committed(plan);
        elements
    }

    /// Clients that the kernel remembers.
    fn remembered() -> usize {
        listing().matches(" expires ").count()
    }

    /// The names of sets and chains.
    fn objects(&mut self) -> BTreeSet<String> {
        let ruleset = self.read().unwrap();
        ruleset.sets.keys().chain(ruleset.chains.keys()).map(ToString::to_string).collect()
    }
}

fn listing() -> String {
    run("nft", &["list", "ruleset"])
}

fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn ip<F: Family>(args: &str) {
    let version = if F::FAMILY == IpFamily::V4 { "-4" } else { "-6" };
    run("ip", &[&[version], &args.split(' ').collect::<Vec<_>>()[..]].concat());
}

/// Addresses, and endpoints that answer every datagram with their number.
fn start_network<F: Family>() {
    let hosts = (1..=CLIENTS).map(|n| (CLIENT, n)).chain((1..=ENDPOINTS).map(|n| (ENDPOINT, n)));
    for (kind, n) in hosts.chain([(NODE, 1)]) {
        let addr: IpAddr = addr::<F>(kind, n).into();
        match F::FAMILY {
            IpFamily::V4 => ip::<F>(&format!("address add {addr} dev lo")),
            IpFamily::V6 => {
                ip::<F>(&format!("address add {addr} dev lo nodad"));
                // The kernel makes this route later (`addrconf_dad_start`), and without it a packet is lost.
                ip::<F>(&format!("route add local {addr} dev lo"));
            }
        }
    }
    for (kind, n) in
        [CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER_IP].into_iter().flat_map(|kind| [(kind, 1), (kind, 2)])
    {
        let addr: IpAddr = addr::<F>(kind, n).into();
        ip::<F>(&format!("route add {addr} dev lo"));
    }
    for n in 1..=ENDPOINTS {
        let socket = UdpSocket::bind((addr::<F>(ENDPOINT, n).into(), 8080)).unwrap();
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0]) {
                socket.send_to(&[n], from).unwrap();
            }
        });
    }
}

/// A new flow of the client; yields the endpoint that answers. Its port was never used before: the kernel may choose one of a flow
/// that is still tracked, which goes where it went.
fn ask<F: Family>(client: u8, to: SocketAddr) -> u8 {
    static PORTS: [AtomicU16; 256] = [const { AtomicU16::new(1024) }; 256];
    let port = PORTS[usize::from(client)].fetch_add(1, Ordering::Relaxed);
    assert!(port >= 1024, "there is no port left");
    let socket = UdpSocket::bind((addr::<F>(CLIENT, client).into(), port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.connect(to).unwrap();
    socket.send(&[0]).unwrap();
    let mut answer = [0];
    socket.recv(&mut answer).unwrap_or_else(|error| panic!("{client} -> {to}: {error}"));
    answer[0]
}

/// The endpoint of each client, the same by every way.
fn ask_all<F: Family>(service: Service) -> BTreeMap<u8, u8> {
    let one = |client| {
        let answers: BTreeSet<u8> =
            service.targets::<F>().into_iter().map(|to| ask::<F>(client, to)).collect();
        assert_eq!(answers.len(), 1, "client {client}: {answers:?} answered");
        (client, answers.into_iter().next().unwrap())
    };
    (1..=CLIENTS).map(one).collect()
}

/// Runs a test in both families.
fn in_network(test_v4: impl Fn(World<V4>) + Sync, test_v6: impl Fn(World<V6>) + Sync) {
    Namespace::new("affinity").unwrap().run(|| {
        start_network::<V4>();
        test_v4(World::new());
    });
    Namespace::new("affinity").unwrap().run(|| {
        start_network::<V6>();
        test_v6(World::new());
    });
}

macro_rules! in_both_families {
    ($($name:ident),+ $(,)?) => { mod families {
        $(#[test] fn $name() { super::in_network(super::$name, super::$name); })+
    } };
}

in_both_families!(
    a_client_has_one_endpoint_by_whichever_address_it_comes,
    clients_of_an_endpoint_that_goes_move_and_the_others_stay,
    nothing_is_left_of_a_service_that_goes,
    a_service_made_anew_starts_without_clients,
    a_service_made_anew_while_nobody_looked_starts_without_clients,
    clients_outlive_a_restart_and_another_time_out,
    a_time_out_edited_often_leaves_nothing_behind,
    what_is_remembered_lists_and_loads_again,
);

fn a_client_has_one_endpoint_by_whichever_address_it_comes<F: Family>(mut world: World<F>) {
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let service = Service { policy, ..WEB };
        world.set(service);
        let first = ask_all::<F>(service);
        assert!(first.values().collect::<BTreeSet<_>>().len() > 1, "{first:?}");
        assert_eq!(ask_all::<F>(service), first);
        assert_eq!(World::<F>::remembered(), usize::from(CLIENTS), "each once");
        world.delete(service);
    }
}

fn clients_of_an_endpoint_that_goes_move_and_the_others_stay<F: Family>(mut world: World<F>) {
    world.set(WEB);
    let mut before = ask_all::<F>(WEB);
    for endpoints in (1..ENDPOINTS).rev() {
        world.set(Service { endpoints, ..WEB });
        let after = ask_all::<F>(WEB);
        for (client, endpoint) in &before {
            assert!(after[client] == *endpoint || *endpoint > endpoints, "{before:?} {after:?}");
        }
        assert!(after.values().all(|endpoint| *endpoint <= endpoints), "{after:?}");
        assert_eq!(ask_all::<F>(WEB), after, "the new choice is remembered too");
        before = after;
    }
    world.set(WEB);
    assert_eq!(ask_all::<F>(WEB), before, "more endpoints move nobody");
}

fn nothing_is_left_of_a_service_that_goes<F: Family>(mut world: World<F>) {
    let other = Service { n: 2, ..WEB };
    world.set(other);
    let (of_other, objects) = (ask_all::<F>(other), world.objects());
    world.set(WEB);
    ask_all::<F>(WEB);
    assert_eq!(World::<F>::remembered(), 2 * usize::from(CLIENTS));
    world.delete(WEB);
    assert_eq!((World::<F>::remembered(), world.objects()), (usize::from(CLIENTS), objects.clone()));
    world.assert_settled();

    // The same if it goes while no proxy runs.
    world.set(WEB);
    ask_all::<F>(WEB);
    world.table.set_service(&WEB.name(), Vec::new());
    world.restart();
    assert_eq!((World::<F>::remembered(), world.objects()), (usize::from(CLIENTS), objects));
    assert_eq!(ask_all::<F>(other), of_other, "nobody else is forgotten");
}

fn a_service_made_anew_starts_without_clients<F: Family>(mut world: World<F>) {
    world.set(WEB);
    ask_all::<F>(WEB);
    // Both changes arrive at once.
    world.set(Service { uid: 2, ..WEB });
    assert_eq!(World::<F>::remembered(), 0);
    world.assert_settled();
    ask_all::<F>(WEB);
    assert_eq!(World::<F>::remembered(), usize::from(CLIENTS));
}

fn a_service_made_anew_while_nobody_looked_starts_without_clients<F: Family>(mut world: World<F>) {
    world.set(WEB);
    ask_all::<F>(WEB);
    let anew = Service { uid: 2, ..WEB };
    world.table.set_service(&WEB.name(), anew.frontends());
    world.restart();
    assert_eq!(World::<F>::remembered(), 0);
    ask_all::<F>(anew);
}

fn clients_outlive_a_restart_and_another_time_out<F: Family>(mut world: World<F>) {
    world.set(WEB);
    let first = ask_all::<F>(WEB);
    world.restart();
    assert_eq!(ask_all::<F>(WEB), first);
    world.set(Service { timeout_secs: 86_400, ..WEB });
    assert_eq!(ask_all::<F>(WEB), first);
    // The kernel tells whole ticks, so that one which was just renewed may have all of its day.
    let listed = listing();
    let in_a_day = listed.matches(" expires 23h59m").count() + listed.matches(" expires 1d ").count();
    assert_eq!(in_a_day, usize::from(CLIENTS), "{listed}");
    // While no proxy runs.
    world.table.set_service(&WEB.name(), Service { timeout_secs: 700, ..WEB }.frontends());
    world.restart();
    assert_eq!(ask_all::<F>(WEB), first);
}

fn a_time_out_edited_often_leaves_nothing_behind<F: Family>(mut world: World<F>) {
    world.set(WEB);
    let (first, objects) = (ask_all::<F>(WEB), world.objects());
    for timeout_secs in 601..=900 {
        let elements = world.set(Service { timeout_secs, ..WEB });
        assert_eq!(elements, 0, "an edit is one chain's rules");
    }
    assert_eq!(world.objects(), objects);
    world.assert_settled();
    assert_eq!(ask_all::<F>(WEB), first);
}

fn what_is_remembered_lists_and_loads_again<F: Family>(mut world: World<F>) {
    world.set(WEB);
    let first = ask_all::<F>(WEB);
    let before = listing();
    assert!(before.contains("comment \"shop/web-1:dns 00000000-0000-0000-0000-000000000001\""), "{before}");
    assert!(run("nft", &["-j", "list", "ruleset"]).contains("affinity-1"));
    let path = std::env::temp_dir().join(format!("kube-proxy-affinity-{}.nft", std::process::id()));
    std::fs::write(&path, &before).unwrap();
    run("nft", &["flush", "ruleset"]);
    run("nft", &["-f", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(World::<F>::remembered(), usize::from(CLIENTS));
    world.restart();
    assert_eq!(World::<F>::remembered(), usize::from(CLIENTS));
    assert_eq!(ask_all::<F>(WEB), first);
}

/// The ruleset of version 0.1, which had no pools, becomes that of today in one transaction: no moment without rules, and
/// flows go on.
#[test]
fn the_ruleset_of_an_earlier_version_is_replaced_in_one_piece() {
    let captured = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captured/release-0.1-ipv4.nft");
    // One listener for both flows: a second one at the same address could find the first still open, in a child that another
    // test has forked and that has not yet called `exec`.
    let answer = |listener: TcpListener, flows| {
        thread::spawn(move || {
            for stream in listener.incoming().take(flows) {
                let (mut stream, mut byte) = (stream.unwrap(), [0]);
                while stream.read(&mut byte).unwrap() > 0 {
                    stream.write_all(&byte).unwrap();
                }
            }
        })
    };
    let echo = |stream: &mut TcpStream, byte: u8| {
        let mut answer = [0];
        stream.write_all(&[byte]).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [byte]);
    };
    Namespace::new("upgrade").unwrap().run(|| {
        ip::<V4>("address add 10.244.0.1 dev lo");
        ip::<V4>("route add 10.96.0.10 dev lo");
        run("nft", &["-f", captured]);
        let virtual_address = SocketAddr::from(([10, 96, 0, 10], 80));
        let endpoint = SocketAddr::from(([10, 244, 0, 1], 8080));
        let answering = answer(TcpListener::bind(endpoint).unwrap(), 2);
        // The other endpoint of the captured rules is nowhere: a flow that is sent there fails at once.
        let mut flow = (0..1000).find_map(|_| TcpStream::connect(virtual_address).ok()).unwrap();
        echo(&mut flow, 1);

        let protocol = Protocol::Tcp;
        let destination =
            Destination { address: [10, 244, 0, 1].into(), port: 8080, node: EndpointNode::This };
        let name = ObjectName::new("shop", "web");
        let frontend = Frontend::<V4>::new(
            FrontendKey { address: FrontendAddress::Ip([10, 96, 0, 10].into()), protocol, port: 80 },
            AddressKind::ClusterIp,
            ServicePortName { service: name.clone(), port: "main".into(), protocol },
            Pool::new([destination].into(), Verdict::Reject),
        );
        let mut table = Table::default();
        table.set_service(&name, vec![frontend]);
        let mut kernel = Nftables::open().unwrap();
        let config = Config::default();
        let mut repair = || {
            let found = kernel.read(nft::Family::Ip, &table_name()).and_then(nft::Reading::whole).unwrap();
            let backend = Backend::<V4>::new(config.clone());
            let plan = backend.repair(&config, &table, found.as_ref(), Extent::Difference);
            let batches = kernel.apply(&plan.transaction).unwrap().batches;
            (batches, plan.transaction)
        };
        assert_eq!(repair().0, 1);
        assert!(repair().1.is_empty());
        echo(&mut flow, 2);
        drop(flow);
        echo(&mut TcpStream::connect(virtual_address).unwrap(), 3);
        answering.join().unwrap();
    });
}
