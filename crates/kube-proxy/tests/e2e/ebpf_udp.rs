//! Mode ebpf with UDP at the socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use fakes::objects::Endpoint;
use lab::Host;
use lab::client::Reply;
use lab::proxy::wait_until;
use testkit::cluster::{Cluster, ProxyMode, UDP_PORT};
use tokio::time::Instant;

use crate::ebpf::{check_contract_while_torn_out, metric, start_with, wait_until_active};
use crate::matrix::check_contract;
use crate::support::{PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_endpoints, apply_web, cluster_in, ip, start};

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

fn cluster(pods: usize, node2_pods: usize) -> Cluster {
    let cluster = cluster_in(ProxyMode::Ebpf, pods, node2_pods);
    cluster.with_datagrams().unwrap_or_else(|error| panic!("{error:#}"))
}

#[track_caller]
fn check_udp(cluster: &Cluster, is_on: bool) {
    for family in FAMILIES {
        assert_eq!(metric(cluster, "kubeproxy_ebpf_udp", family), u64::from(is_on), "{family}");
    }
}

#[test]
fn the_contract_holds_with_udp_at_the_socket() {
    let cluster = cluster(2, 1);
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    check_udp(&cluster, true);
    check_contract(&cluster);
}

#[test]
fn the_contract_holds_while_programs_for_datagrams_are_torn_out() {
    let cluster = cluster(2, 1);
    let _proxy =
        start_with(&cluster, &[("--iptables-sync-period", "1s"), ("--iptables-min-sync-period", "0s")]);
    wait_until_active(&cluster);
    check_contract_while_torn_out(&cluster);
    // What failed again and again is tried again a minute later.
    let is_active = || FAMILIES.iter().all(|family| metric(&cluster, "kubeproxy_ebpf_active", family) == 1);
    assert!(wait_until(Duration::from_mins(3), is_active), "nothing is translated at the socket");
}

#[test]
fn the_contract_holds_where_namespaces_of_pods_can_not_be_found_and_that_is_told() {
    let cluster = cluster(2, 1);
    let proxy = start_with(&cluster, &[("--ebpf-netns-dir", "/nowhere")]);
    wait_until_active(&cluster);
    check_udp(&cluster, false);
    let is_told =
        |line: &&String| line.contains("UDP is not served at the socket") && line.contains("/nowhere");
    assert_eq!(proxy.log().iter().filter(is_told).count(), 2, "{}", proxy.log().join("\n"));
    check_contract(&cluster);
}

/// A socket of a host that has no peer.
fn socket(host: &Host, of: IpAddr) -> UdpSocket {
    let any: IpAddr = match of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    host.run(|| {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(REQUEST)).unwrap();
        socket
    })
}

fn connected(host: &Host, to: SocketAddr) -> UdpSocket {
    let socket = socket(host, to.ip());
    socket.connect(to).unwrap();
    socket
}

/// Who answers what is sent to an address, and whom the socket shows as sender.
fn exchange(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    socket.send_to(b"?", to)?;
    let mut text = [0; 512];
    let (len, from) = socket.recv_from(&mut text)?;
    let reply: Reply = String::from_utf8_lossy(&text[..len]).parse().unwrap();
    Ok((reply.name, from))
}

fn web() -> [SocketAddr; 2] {
    [WEB_V4, WEB_V6].map(|address| (ip(address), 80).into())
}

#[track_caller]
fn wait_until_served(cluster: &Cluster, frontends: u64) {
    let is_so =
        || FAMILIES.iter().all(|family| metric(cluster, "kubeproxy_ebpf_frontends", family) == frontends);
    assert!(wait_until(PATIENCE, is_so));
}

#[test]
fn datagrams_of_one_socket_stay_with_one_endpoint_and_no_flow_is_one_to_the_service() {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_active(&cluster);
    // Cluster IP and node port, of TCP and UDP.
    wait_until_served(&cluster, 4);
    let (node, pod) = (cluster.lab.node(), cluster.lab.pod(0));
    let mut sockets: Vec<(UdpSocket, SocketAddr, String)> = Vec::new();
    for to in web() {
        for host in [node, pod, pod, pod] {
            let socket = socket(host, to.ip());
            let (name, from) = exchange(&socket, to).unwrap();
            assert_eq!(from, to);
            sockets.push((socket, to, name));
        }
    }
    let flows =
        ["ipv4", "ipv6"].map(|family| node.exec("conntrack", &["-L", "-f", family]).unwrap()).concat();
    assert!(!flows.contains(WEB_V4) && !flows.contains(WEB_V6), "{flows}");
    // Also over a restart, and while nobody is there.
    let check = || {
        for (socket, to, name) in &sockets {
            assert_eq!(exchange(socket, *to).unwrap(), (name.clone(), *to));
        }
    };
    check();
    proxy.kill().unwrap();
    check();
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    check();
}

#[test]
fn sockets_of_an_endpoint_that_goes_are_ended_and_unconnected_ones_go_on() {
    let cluster = cluster(3, 0);
    apply_web(&cluster);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    let one = |n: usize, all: &[Endpoint]| vec![all[n].clone()];
    apply_endpoints(&cluster, &one(0, &v4), &one(0, &v6));
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    wait_until_served(&cluster, 4);
    let lab = &cluster.lab;
    let clients = [lab.node(), lab.pod(2)];
    let stale: Vec<(UdpSocket, SocketAddr)> =
        clients.iter().flat_map(|host| web().map(|to| (connected(host, to), to))).collect();
    let unconnected = web().map(|to| (socket(lab.pod(2), to.ip()), to));
    let endpoint = SocketAddr::from((lab.pod(0).ip4(), UDP_PORT));
    let direct = connected(lab.pod(2), endpoint);
    for (socket, to) in &stale {
        assert_eq!(socket.peer_addr().unwrap(), *to);
        socket.send(b"?").unwrap();
        assert_eq!(socket.recv_from(&mut [0; 512]).unwrap().1, *to);
    }
    for (socket, to) in &unconnected {
        assert_eq!(exchange(socket, *to).unwrap(), ("pod0".to_owned(), *to));
    }
    let changed = Instant::now();
    apply_endpoints(&cluster, &one(1, &v4), &one(1, &v6));
    // The aim is a second, which a busy machine may not keep.
    for (socket, to) in &stale {
        let is_ended = || socket.take_error().unwrap().is_some() || socket.peer_addr().is_err();
        assert!(wait_until(PATIENCE, is_ended), "{to}");
    }
    eprintln!("ended within {:?}", changed.elapsed());
    for (socket, to) in &unconnected {
        assert_eq!(exchange(socket, *to).unwrap(), ("pod1".to_owned(), *to));
    }
    assert_eq!(
        (direct.take_error().unwrap().map(|e| e.kind()), direct.peer_addr().unwrap()),
        (None, endpoint)
    );
    // Who connects anew has the other one.
    for (socket, to) in &stale {
        socket.connect(to).unwrap();
        socket.send(b"?").unwrap();
        let mut text = [0; 512];
        let len = socket.recv(&mut text).unwrap();
        assert!(String::from_utf8_lossy(&text[..len]).contains("name=pod1"), "{to}");
    }
    let ended = || {
        FAMILIES
            .iter()
            .map(|family| metric(&cluster, "kubeproxy_ebpf_ended_sockets_total", family))
            .sum::<u64>()
    };
    assert!(wait_until(PATIENCE, || ended() == 4), "{}", ended());
}
