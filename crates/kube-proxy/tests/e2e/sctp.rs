//! SCTP with real sockets, in every mode. The usual test machines' kernels have none: these run in the guest.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use fakes::objects::{self, Port};
use lab::Host;
use lab::proxy::wait_until;
use socket2::{Domain, Protocol, Socket, Type};
use testkit::cluster::{Flavour, ProxyMode};

use crate::support::{PATIENCE, REQUEST, cluster_in, ip, start};

const SERVICE: [&str; 2] = ["10.96.0.40", "fd00:10:96::40"];
const NODE_PORT: u16 = 30040;
const TARGET: u16 = 3868;
const PORTS: [Port; 1] =
    [Port { name: "diameter", protocol: "SCTP", port: 3868, target: TARGET, node_port: Some(NODE_PORT) }];

#[test]
#[ignore = "needs a kernel with SCTP"]
fn sctp_is_served_in_mode_nftables() {
    check(ProxyMode::Nftables);
}

#[test]
#[ignore = "needs a kernel with SCTP"]
fn sctp_is_served_in_mode_iptables() {
    check(ProxyMode::Iptables(Flavour::Nft));
}

#[test]
#[ignore = "needs a kernel with SCTP"]
fn sctp_is_served_in_mode_ipvs() {
    check(ProxyMode::Ipvs);
}

fn check(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 1);
    for host in [cluster.lab.pod(0), cluster.lab.node2_pod(0)] {
        serve(host);
    }
    cluster.apply(objects::service("diameter", &SERVICE.map(ip), &PORTS)).unwrap();
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        let all = cluster.endpoints(v6);
        let chosen = [all[0].clone(), all[2].clone()];
        cluster.apply(objects::slice("diameter", suffix, &PORTS, &chosen)).unwrap();
    }
    let _proxy = start(&cluster);
    let lab = &cluster.lab;
    let wanted = [lab.pod(0).name().to_owned(), lab.node2_pod(0).name().to_owned()];
    let node = [lab.node().ip4().into(), lab.node().ip6().into()];
    for client in [lab.pod(1), lab.node(), lab.outside()] {
        for to in SERVICE.map(|text| (ip(text), 3868)).into_iter().chain(node.map(|node| (node, NODE_PORT))) {
            for wanted in &wanted {
                let met = || client.run(|| ask(to.into())).is_ok_and(|name| name == *wanted);
                assert!(wait_until(PATIENCE, met), "{} -> {to:?}: {wanted} never answered", client.name());
            }
        }
    }
}

fn open(address: IpAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, Some(Protocol::from(SCTP)))
}

/// `IPPROTO_SCTP`
const SCTP: i32 = 132;

/// Has a host answer with its name, in both families, for as long as the test runs.
fn serve(host: &Host) {
    for address in [IpAddr::from(host.ip4()), host.ip6().into()] {
        let name = host.name().to_owned();
        let listener = host.run(|| -> std::io::Result<Socket> {
            let socket = open(address)?;
            socket.bind(&SocketAddr::from((address, TARGET)).into())?;
            socket.listen(16)?;
            Ok(socket)
        });
        let listener = listener.expect("these tests need a kernel with SCTP");
        std::thread::spawn(move || {
            while let Ok((peer, _)) = listener.accept() {
                // A client that is gone already does not matter.
                drop(peer.send(name.as_bytes()));
            }
        });
    }
}

/// Who answers.
fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut socket = open(to.ip())?;
    socket.set_read_timeout(Some(REQUEST))?;
    socket.connect_timeout(&to.into(), REQUEST)?;
    let mut name = String::new();
    socket.read_to_string(&mut name)?;
    Ok(name)
}
