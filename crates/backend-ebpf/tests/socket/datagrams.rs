//! Where datagrams go whose address is given with each, and whose their answers are.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ebpf::FastPathRemoval;
use kernel::Bpf;
use lab::Namespace;
use lab::client::Reply;
use lab::echo::{EchoServer, Mode};
use lab::proxy::wait_until;
use model::{Family, V4, V6};

use crate::site::{PATIENCE, Site, all, all_with_datagrams, apply, datagram_frontend, namespace, remove};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn vip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, n)
}

fn at(address: Ipv4Addr) -> SocketAddr {
    (address, 53).into()
}

fn server(namespace: &Namespace, name: &str) -> EchoServer {
    EchoServer::start(namespace, name, &[(0, Mode::Udp)]).unwrap()
}

/// A socket that has no peer.
fn socket(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    namespace
        .run(|| {
            let socket = UdpSocket::bind((address, 0))?;
            // Nobody answers what goes to nobody, and says so only to those who are connected.
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            io::Result::Ok(socket)
        })
        .unwrap()
}

/// Who answers, and whom the socket shows as the sender of the answer.
fn ask(socket: &UdpSocket, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    socket.send_to(b"?", to)?;
    let mut text = [0; 256];
    let (len, from) = socket.recv_from(&mut text)?;
    let reply: Reply = String::from_utf8_lossy(&text[..len]).parse().unwrap();
    Ok((reply.name, from))
}

fn is_answered_by<F: Family>(own: IpAddr, loopback: F::Addr, vip: F::Addr, named: IpAddr) {
    let site = Site::new();
    let server = server(&site.node, "dns");
    let mut path = site.datagram_path::<F>(&Bpf::default());
    let frontend = datagram_frontend("dns", vip, &[(loopback, server.port(0))]);
    apply(&site, &mut path, &all_with_datagrams(vec![frontend]));
    let to = SocketAddr::new(named, 53);
    let socket = socket(&site.node, own);
    for _ in 0..3 {
        assert_eq!(ask(&socket, to).unwrap(), ("dns".to_owned(), to));
    }
    // What is sent to a server itself is answered by itself.
    let direct: IpAddr = loopback.into();
    let direct = match (named, direct) {
        (IpAddr::V6(_), IpAddr::V4(direct)) => direct.to_ipv6_mapped().into(),
        _ => direct,
    };
    let direct = SocketAddr::new(direct, server.port(0));
    assert_eq!(ask(&socket, direct).unwrap(), ("dns".to_owned(), direct));
    // And a socket that is connected to a Service hears of the Service.
    socket.connect(to).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), to);
    socket.send(b"?").unwrap();
    let (_, from) = socket.recv_from(&mut [0; 256]).unwrap();
    assert_eq!(from, to);
    // Also if it names it once more.
    assert_eq!(ask(&socket, to).unwrap(), ("dns".to_owned(), to));
}

/// One that was connected before there was a program hears of its peer alone: what it sends is left to the rules.
#[test]
fn a_socket_that_was_connected_before_is_left_alone() {
    let site = Site::new();
    let servers = ["old", "new"].map(|name| server(&site.node, name));
    let old = servers[0].port(0);
    let named =
        [LOCALHOST.into(), LOCALHOST.to_ipv6_mapped().into()].map(|ip: IpAddr| SocketAddr::new(ip, old));
    let sockets = named.map(|to| {
        let own: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = socket(&site.node, own);
        socket.connect(to).unwrap();
        socket
    });
    // Its peer's address becomes a Service's.
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let mut frontend = datagram_frontend("dns", LOCALHOST, &[(LOCALHOST, servers[1].port(0))]);
    frontend.key.port = old;
    apply(&site, &mut path, &all_with_datagrams(vec![frontend]));
    for (socket, to) in sockets.iter().zip(named) {
        socket.send(b"?").unwrap();
        let mut text = [0; 256];
        let (len, from) = socket.recv_from(&mut text).unwrap();
        assert!(String::from_utf8_lossy(&text[..len]).contains("name=old"), "{to}");
        assert_eq!(from, to);
    }
    let fresh = socket(&site.node, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(ask(&fresh, named[0]).unwrap().0, "new");
}

#[test]
fn answers_are_those_of_the_service_over_ipv4() {
    is_answered_by::<V4>(Ipv4Addr::UNSPECIFIED.into(), LOCALHOST, vip(1), vip(1).into());
}

#[test]
fn answers_are_those_of_the_service_over_ipv6() {
    let vip: Ipv6Addr = "fd00:10:96::a".parse().unwrap();
    is_answered_by::<V6>(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST, vip, vip.into());
}

#[test]
fn answers_are_those_of_the_service_for_ipv6_sockets_that_name_addresses_of_ipv4() {
    is_answered_by::<V4>(Ipv6Addr::UNSPECIFIED.into(), LOCALHOST, vip(1), vip(1).to_ipv6_mapped().into());
}

#[test]
fn a_socket_stays_with_one_endpoint_until_that_is_gone() {
    let site = Site::new();
    let servers = ["a", "b", "c", "d"].map(|name| server(&site.node, name));
    let endpoints: Vec<_> = servers.iter().map(|server| (LOCALHOST, server.port(0))).collect();
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let set = |path: &mut _, endpoints: &[(Ipv4Addr, u16)], others: Vec<_>| {
        let own = datagram_frontend("dns", vip(1), endpoints);
        let all = [vec![own], others].concat();
        apply(&site, path, &all_with_datagrams(all));
    };
    set(&mut path, &endpoints, Vec::new());
    let sockets: Vec<UdpSocket> = (0..40).map(|_| socket(&site.node, Ipv4Addr::UNSPECIFIED.into())).collect();
    let who = |socket: &UdpSocket| {
        let (name, from) = ask(socket, at(vip(1))).unwrap();
        assert_eq!(from, at(vip(1)));
        name
    };
    let first: Vec<String> = sockets.iter().map(who).collect();
    // By the sockets' numbers, as if by chance: forty do not meet the same one of four.
    let met: BTreeSet<&String> = first.iter().collect();
    assert!(met.len() >= 2, "{met:?}");
    let again = || sockets.iter().map(who).collect::<Vec<_>>();
    assert_eq!(again(), first);
    // Others come and go, maps grow, and another process goes on.
    let many: Vec<_> = (0..1100).map(|n| (LOCALHOST, 1000 + n)).collect();
    set(&mut path, &endpoints, vec![datagram_frontend("many", vip(9), &many)]);
    assert_eq!(path.statistics().rebuilds, 2, "maps have grown");
    assert_eq!(again(), first);
    drop(path);
    assert_eq!(again(), first);
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    set(&mut path, &endpoints, Vec::new());
    assert_eq!(again(), first);
    // One is gone.
    let (gone, left) = (servers[0].name().to_owned(), &endpoints[1..]);
    set(&mut path, left, Vec::new());
    for (now, before) in again().into_iter().zip(&first) {
        assert_ne!(now, gone);
        assert!(now == *before || *before == gone, "{before} is there, and {now} answers");
    }
}

#[test]
fn what_a_socket_can_not_tell_apart_is_left_to_the_rules() {
    let site = Site::new();
    let servers = ["a", "b", "c", "d", "e"].map(|name| server(&site.node, name));
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let frontend = |n: u8, server: &EchoServer| {
        datagram_frontend(&format!("s-{n}"), vip(n), &[(LOCALHOST, server.port(0))])
    };
    let mut frontends: Vec<_> = (1..).zip(&servers).map(|(n, server)| frontend(n, server)).collect();
    frontends.push(frontend(7, &servers[0]));
    apply(&site, &mut path, &all_with_datagrams(frontends));
    let any = Ipv4Addr::UNSPECIFIED.into();
    let one = socket(&site.node, any);
    assert_eq!(ask(&one, at(vip(1))).unwrap().0, "a");
    // Whose would its answers be? There are no rules here, and no route.
    ask(&one, at(vip(7))).unwrap_err();
    assert_eq!(ask(&one, at(vip(1))).unwrap(), ("a".to_owned(), at(vip(1))));
    for (n, name) in [(2, "b"), (3, "c"), (4, "d")] {
        assert_eq!(ask(&one, at(vip(n))).unwrap(), (name.to_owned(), at(vip(n))));
    }
    ask(&one, at(vip(5))).expect_err("a fifth");
    assert_eq!(ask(&one, at(vip(4))).unwrap().0, "d");
    // For others they are as good as any.
    let other = socket(&site.node, any);
    assert_eq!(ask(&other, at(vip(7))).unwrap(), ("a".to_owned(), at(vip(7))));
    assert_eq!(ask(&other, at(vip(5))).unwrap().0, "e");
    // Once it names the endpoint itself, that is whose answers they are.
    let direct = SocketAddr::from((LOCALHOST, servers[0].port(0)));
    assert_eq!(ask(&other, direct).unwrap(), ("a".to_owned(), direct));
    assert_eq!(ask(&other, at(vip(1))).unwrap(), ("a".to_owned(), at(vip(1))));
}

#[test]
fn many_threads_send_with_one_socket() {
    let site = Site::new();
    let servers = ["a", "b", "c", "d"].map(|name| server(&site.node, name));
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let endpoints: Vec<_> = servers.iter().map(|server| (LOCALHOST, server.port(0))).collect();
    let frontends = (1..=4).map(|n| {
        // Each with endpoints of its own.
        let own = [endpoints[usize::from(n) - 1]];
        datagram_frontend(&format!("s-{n}"), vip(n), &own)
    });
    apply(&site, &mut path, &all_with_datagrams(frontends.collect()));
    for _ in 0..50 {
        let socket = socket(&site.node, Ipv4Addr::UNSPECIFIED.into());
        std::thread::scope(|scope| {
            for n in 1..=4 {
                let socket = &socket;
                scope.spawn(move || socket.send_to(b"?", at(vip(n))).unwrap());
            }
        });
        let mut answers = BTreeSet::new();
        for _ in 0..4 {
            let mut text = [0; 256];
            let (len, from) = socket.recv_from(&mut text).unwrap();
            let reply: Reply = String::from_utf8_lossy(&text[..len]).parse().unwrap();
            answers.insert((reply.name, from));
        }
        let expected = (1..=4).zip(["a", "b", "c", "d"]).map(|(n, name)| (name.to_owned(), at(vip(n))));
        assert_eq!(answers, expected.collect());
    }
}

#[test]
fn host_and_pods_are_told_apart_and_what_is_switched_off_is_untranslated() {
    let site = Site::new();
    let pod = namespace("pod");
    let (own, there) = (server(&site.node, "node"), server(&pod, "pod"));
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    let masqueraded = |server: &EchoServer| model::Frontend {
        masquerade: model::Masquerade::Always,
        ..datagram_frontend("dns", vip(1), &[(LOCALHOST, server.port(0))])
    };
    let any = Ipv4Addr::UNSPECIFIED.into();
    let (from_node, from_pod) = (socket(&site.node, any), socket(&pod, any));
    apply(&site, &mut path, &all_with_datagrams(vec![masqueraded(&own)]));
    assert_eq!(ask(&from_node, at(vip(1))).unwrap().0, "node");
    apply(&site, &mut path, &all_with_datagrams(vec![masqueraded(&there)]));
    ask(&from_pod, at(vip(1))).expect_err("the rules have it");
    let plain = datagram_frontend("dns", vip(1), &[(LOCALHOST, there.port(0))]);
    apply(&site, &mut path, &all_with_datagrams(vec![plain.clone()]));
    assert_eq!(ask(&from_pod, at(vip(1))).unwrap(), ("pod".to_owned(), at(vip(1))));
    // UDP is not asked for any more.
    drop(path);
    let mut path = site.path::<V4>(&Bpf::default());
    apply(&site, &mut path, &all(vec![plain]));
    assert!(wait_until(PATIENCE, || ask(&from_pod, at(vip(1))).is_err()), "still translated");
    assert_eq!(path.statistics().frontends, 0);
}

#[test]
fn programs_for_datagrams_that_were_torn_out_are_missed_and_come_back() {
    let site = Site::new();
    let server = server(&site.node, "dns");
    let wanted = all_with_datagrams(vec![datagram_frontend("dns", vip(1), &[(LOCALHOST, server.port(0))])]);
    let mut path = site.datagram_path::<V4>(&Bpf::default());
    for name in ["kp_sendmsg4", "kp_recvmsg4", "kp_recvmsg4in6"] {
        apply(&site, &mut path, &wanted);
        assert_eq!(site.node.run(|| path.check()), backend_ebpf::Condition::On);
        std::fs::remove_file(site.socket_site.bpffs().join("kube-proxy/ipv4/links").join(name)).unwrap();
        // The kernel takes a program off some time after its link is gone.
        let is_missed = || matches!(site.node.run(|| path.look()), backend_ebpf::Condition::Off(why) if why.contains("192.0.2.1"));
        assert!(wait_until(PATIENCE, is_missed), "{name}");
    }
    apply(&site, &mut path, &wanted);
    drop(path);
    let socket = socket(&site.node, Ipv4Addr::UNSPECIFIED.into());
    assert_eq!(ask(&socket, at(vip(1))).unwrap(), ("dns".to_owned(), at(vip(1))));
    remove(&site, FastPathRemoval::Translation);
    assert!(wait_until(PATIENCE, || ask(&socket, at(vip(1))).is_err()), "still translated");
    let left = [
        "kube-proxy/ipv4/datagrams-1",
        "kube-proxy/ipv4/links/kp_peername4",
        "kube-proxy/ipv4/links/kp_peername4in6",
        "kube-proxy/ipv4/links/kp_recvmsg4",
        "kube-proxy/ipv4/links/kp_recvmsg4in6",
        "kube-proxy/ipv4/original-1",
    ];
    assert_eq!(site.socket_site.pins(), left);
    remove(&site, FastPathRemoval::Everything);
    assert_eq!(site.socket_site.pins(), [""; 0]);
}
