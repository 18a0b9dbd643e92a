//! Where connections go, and what sockets show.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc;

use backend_ebpf::Condition;
use ebpf::FastPathRemoval;
use kernel::Bpf;
use lab::proxy::wait_until;
use model::{FrontendAddress, Masquerade, V4, V6};

use crate::site::{PATIENCE, Server, Site, VIP, all, apply, ask, frontend, namespace, remove, web};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

fn mapped(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address.to_ipv6_mapped(), port).into()
}

#[track_caller]
fn wait_until_untranslated(site: &Site) {
    assert!(wait_until(PATIENCE, || ask(&site.node, at(VIP, 80)).is_err()), "still translated");
}

#[test]
fn a_connection_goes_to_an_endpoint_and_shows_the_service() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &all(vec![web((LOCALHOST, server.port))]));
    for to in [at(VIP, 80), mapped(VIP, 80)] {
        assert_eq!(ask(&site.node, to).unwrap(), ("web".to_owned(), to));
    }
    // What is no Service's stays as it is, and so does what a socket shows of it.
    for to in [at(LOCALHOST, server.port), mapped(LOCALHOST, server.port)] {
        assert_eq!(ask(&site.node, to).unwrap(), ("web".to_owned(), to));
    }
    assert!(ask(&site.node, at(VIP, 81)).is_err(), "another port");
    server.stop(&site.node, "127.0.0.1");
}

#[test]
fn connections_over_ipv6_are_translated_too() {
    let site = Site::new();
    let server = Server::start(&site.node, "::1", "six");
    let mut path = site.path::<V6>(&Bpf::default());
    let vip: Ipv6Addr = "fd00:10:96::a".parse().unwrap();
    let frontend = frontend::<V6>("web", FrontendAddress::Ip(vip), 80, &[(Ipv6Addr::LOCALHOST, server.port)]);
    apply(&site, &mut path, &all(vec![frontend]));
    let to = SocketAddr::from((vip, 80));
    assert_eq!(ask(&site.node, to).unwrap(), ("six".to_owned(), to));
    server.stop(&site.node, "::1");
}

#[test]
fn all_endpoints_are_met_and_none_that_has_gone() {
    let site = Site::new();
    let servers = ["a", "b", "c"].map(|name| Server::start(&site.node, "127.0.0.1", name));
    let ports: Vec<(Ipv4Addr, u16)> = servers.iter().map(|server| (LOCALHOST, server.port)).collect();
    let mut path = site.path::<V4>(&Bpf::default());
    let of =
        |endpoints: &[(Ipv4Addr, u16)]| all(vec![frontend("web", FrontendAddress::Ip(VIP), 80, endpoints)]);
    let met = || -> std::collections::BTreeSet<String> {
        // One of three is not met in 60 tries once in ten thousand million runs.
        (0..60).map(|_| ask(&site.node, at(VIP, 80)).unwrap().0).collect()
    };
    apply(&site, &mut path, &of(&ports));
    assert_eq!(met().into_iter().collect::<String>(), "abc");
    apply(&site, &mut path, &of(&ports[1..]));
    assert_eq!(met().into_iter().collect::<String>(), "bc");
    for server in servers {
        server.stop(&site.node, "127.0.0.1");
    }
}

#[test]
fn node_ports_are_served_at_the_nodes_addresses_only() {
    let site = Site::new();
    let (node, pod) = (&site.node, namespace("pod"));
    let server = Server::start(node, "127.0.0.1", "node");
    let mut path = site.path::<V4>(&Bpf::default());
    apply(
        &site,
        &mut path,
        &all(vec![frontend("web", FrontendAddress::Node, 30080, &[(LOCALHOST, server.port)])]),
    );
    let own = at(Ipv4Addr::new(10, 0, 0, 1), 30080);
    assert_eq!(ask(node, own).unwrap(), ("node".to_owned(), own));
    assert!(ask(node, at(LOCALHOST, 30080)).is_err(), "loopback is not asked for");
    // From elsewhere it is translated too, to an endpoint that is another one there.
    let there = Server::start(&pod, "127.0.0.1", "pod");
    apply(
        &site,
        &mut path,
        &all(vec![frontend("web", FrontendAddress::Node, 30080, &[(LOCALHOST, there.port)])]),
    );
    assert_eq!(ask(&pod, own).unwrap().0, "pod");
    server.stop(node, "127.0.0.1");
    there.stop(&pod, "127.0.0.1");
}

#[test]
fn what_has_to_be_masqueraded_is_translated_for_the_host_alone() {
    let site = Site::new();
    let (node, pod) = (&site.node, namespace("pod"));
    let server = Server::start(node, "127.0.0.1", "node");
    let there = Server::start(&pod, "127.0.0.1", "pod");
    let mut path = site.path::<V4>(&Bpf::default());
    let masqueraded =
        |port| vec![model::Frontend { masquerade: Masquerade::Always, ..web((LOCALHOST, port)) }];
    apply(&site, &mut path, &all(masqueraded(server.port)));
    assert_eq!(ask(node, at(VIP, 80)).unwrap().0, "node");
    apply(&site, &mut path, &all(masqueraded(there.port)));
    assert!(ask(&pod, at(VIP, 80)).is_err(), "the rules have it");
    apply(&site, &mut path, &all(vec![web((LOCALHOST, there.port))]));
    assert_eq!(ask(&pod, at(VIP, 80)).unwrap().0, "pod");
    server.stop(node, "127.0.0.1");
    there.stop(&pod, "127.0.0.1");
}

/// A socket that is connected once more, directly, to where a Service had sent it.
#[test]
fn a_socket_does_not_show_where_it_went_before() {
    use socket2::{Domain, Socket, Type};
    let site = Site::new();
    let mut path = site.path::<V4>(&Bpf::default());
    // Nobody listens there at first, so that the first connect fails.
    let free = site.node.run(|| std::net::TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap());
    apply(&site, &mut path, &all(vec![web((LOCALHOST, free.port()))]));
    let peer = site.node.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert!(socket.connect(&at(VIP, 80).into()).is_err());
        let _listener = std::net::TcpListener::bind(free).unwrap();
        socket.connect(&free.into()).unwrap();
        socket.peer_addr().unwrap().as_socket().unwrap()
    });
    assert_eq!(peer, free);
}

#[test]
fn what_is_pinned_serves_while_nobody_is_there_and_is_taken_over_without_a_write() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let wanted = all(vec![web((LOCALHOST, server.port))]);
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &wanted);
    assert_eq!(path.statistics().rebuilds, 1);
    drop(path);
    assert_eq!(ask(&site.node, at(VIP, 80)).unwrap().0, "web");
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &wanted);
    let statistics = path.statistics();
    assert_eq!((statistics.rebuilds, statistics.writes, statistics.frontends), (0, 0, 1));
    // Meanwhile nobody else gets them.
    let mut other = site.path::<V4>(&Bpf::default());
    let Condition::Off(why) = site.node.run(|| other.change(&wanted)) else {
        panic!("two have the same maps")
    };
    assert!(why.contains("another process serves"), "{why}");
    server.stop(&site.node, "127.0.0.1");
}

#[test]
fn programs_that_somebody_took_away_are_missed_and_come_back() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let wanted = all(vec![web((LOCALHOST, server.port))]);
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &wanted);
    let link = site.socket_site.bpffs().join("kube-proxy/ipv4/links/kp_connect4");
    std::fs::remove_file(link).unwrap();
    wait_until_untranslated(&site);
    let Condition::Off(why) = site.node.run(|| path.look()) else { panic!("nobody noticed") };
    assert!(why.contains("192.0.2.1"), "{why}");
    assert_eq!(path.statistics().divergences, 1);
    apply(&site, &mut path, &wanted);
    assert_eq!(ask(&site.node, at(VIP, 80)).unwrap().0, "web");
    assert_eq!(site.node.run(|| path.check()), Condition::On);
    server.stop(&site.node, "127.0.0.1");
}

#[test]
fn programs_that_do_not_see_this_process_are_not_switched_on() {
    let site = Site::new();
    let elsewhere = site.socket_site.cgroup().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let place = kernel::FastPathPlace { cgroup_root: elsewhere.clone(), ..site.place() };
    let open = move || {
        let opened = kernel::KernelFastPath::<V4>::open(place.clone(), Bpf::default())?;
        Ok(Box::new(opened) as Box<dyn ebpf::FastPath<V4>>)
    };
    let addresses = || Ok(std::collections::BTreeSet::new());
    let mut path = backend_ebpf::SocketPath::new(Box::new(open), Box::new(addresses), Box::new(|_, _| ()));
    let Condition::Off(why) = site.node.run(|| path.change(&all(vec![web((LOCALHOST, 1))]))) else {
        panic!("nothing was proven")
    };
    assert!(why.contains("does the cgroup"), "{why}");
    drop(path);
    remove(&site, FastPathRemoval::Everything);
    std::fs::remove_dir(elsewhere).unwrap();
}

/// Where two threads wait for each other; if one has panicked, so does the other.
struct Meeting {
    own: mpsc::Sender<()>,
    other: mpsc::Receiver<()>,
}

impl Meeting {
    fn pair() -> [Self; 2] {
        let ((a, from_a), (b, from_b)) = (mpsc::channel(), mpsc::channel());
        [Self { own: a, other: from_b }, Self { own: b, other: from_a }]
    }

    fn wait(&self) {
        self.own.send(()).unwrap();
        self.other.recv().unwrap();
    }
}

/// Two nodes on one machine, each with a cgroup and a file system of its own, and one address.
#[test]
fn two_proxies_with_places_of_their_own_share_nothing() {
    let serve = |name: &'static str, meeting: Meeting, leaves: bool| {
        let site = Site::new();
        let server = Server::start(&site.node, "127.0.0.1", name);
        let mut path = site.path::<V4>(&Bpf::default());
        apply(&site, &mut path, &all(vec![web((LOCALHOST, server.port))]));
        meeting.wait();
        assert_eq!(ask(&site.node, at(VIP, 80)).unwrap().0, name);
        let pins = site.socket_site.pins();
        meeting.wait();
        if leaves {
            drop(path);
            remove(&site, FastPathRemoval::Everything);
            wait_until_untranslated(&site);
            meeting.wait();
        } else {
            meeting.wait();
            assert_eq!(site.node.run(|| path.check()), Condition::On);
            assert_eq!(ask(&site.node, at(VIP, 80)).unwrap().0, name);
            assert_eq!(site.socket_site.pins(), pins);
        }
        server.stop(&site.node, "127.0.0.1");
    };
    let [a, b] = Meeting::pair();
    // A thread is in one cgroup.
    std::thread::scope(|scope| {
        scope.spawn(|| serve("a", a, true));
        scope.spawn(|| serve("b", b, false));
    });
}

#[test]
fn a_removal_leaves_what_shows_connected_sockets_or_nothing() {
    let site = Site::new();
    let server = Server::start(&site.node, "127.0.0.1", "web");
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &all(vec![web((LOCALHOST, server.port))]));
    drop(path);
    let connected = site.node.run(|| std::net::TcpStream::connect(at(VIP, 80)).unwrap());
    remove(&site, FastPathRemoval::Translation);
    wait_until_untranslated(&site);
    assert_eq!(connected.peer_addr().unwrap(), at(VIP, 80));
    let left = [
        "kube-proxy/ipv4/links/kp_peername4",
        "kube-proxy/ipv4/links/kp_peername4in6",
        "kube-proxy/ipv4/original-1",
    ];
    assert_eq!(site.socket_site.pins(), left);
    remove(&site, FastPathRemoval::Everything);
    let is_as_it_is = || connected.peer_addr().unwrap() == at(LOCALHOST, server.port);
    assert!(wait_until(PATIENCE, is_as_it_is), "{:?}", connected.peer_addr());
    assert_eq!(site.socket_site.pins(), [""; 0]);
    assert!(!site.socket_site.bpffs().join("kube-proxy").exists());
    // There is nothing to remove: no error.
    remove(&site, FastPathRemoval::Everything);
    server.stop(&site.node, "127.0.0.1");
}
