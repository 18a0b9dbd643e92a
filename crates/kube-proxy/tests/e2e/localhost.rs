//! Node ports on localhost: off by default in mode nftables, on with a feature gate, and for nobody but the node itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lab::client::{FailureClass, Transport, ask_once};
use lab::proxy::Proxy;
use testkit::cluster::Cluster;

use crate::support::{
    NODE_PORT, REQUEST, apply_endpoints, apply_web, ask, check_listable, cluster, program, wait_for,
};

const GATE: &str = "--feature-gates=NFTablesLocalhostNodePorts=true";

fn start_with(cluster: &Cluster, extra: &[&str]) -> Proxy {
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(extra.iter().copied()).collect();
    Proxy::start(cluster.lab.node(), program(), &arguments).unwrap()
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, NODE_PORT).into()
}

#[test]
fn the_node_reaches_node_ports_on_localhost_over_tcp_and_udp() {
    let cluster = cluster(1, 1);
    let _proxy = start_with(&cluster, &[GATE]);
    apply_web(&cluster);
    let node = cluster.lab.node();
    let own: IpAddr = node.ip4().into();
    for transport in [Transport::Tcp, Transport::Udp] {
        let to_remote = cluster.endpoints(false)[1..].to_vec();
        apply_endpoints(&cluster, &to_remote, &[]);
        wait_for(node, transport, loopback(), &Ok("node2-pod0"));
        let reply = node.run(|| ask_once(transport, loopback(), REQUEST)).unwrap();
        assert_eq!(reply.client.ip(), own, "a pod can't answer a loopback address");
        let to_local = cluster.endpoints(false)[..1].to_vec();
        apply_endpoints(&cluster, &to_local, &[]);
        wait_for(node, transport, loopback(), &Ok("pod0"));
        // On its own address as well, of course.
        wait_for(node, transport, (own, NODE_PORT).into(), &Ok("pod0"));
    }
    // Nobody serves: refused, as on the node's address.
    apply_endpoints(&cluster, &[], &[]);
    wait_for(node, Transport::Tcp, loopback(), &Err(FailureClass::Refused));
    check_listable(&cluster);
}

#[test]
fn without_the_gate_localhost_is_left_alone() {
    let cluster = cluster(1, 0);
    let _proxy = start_with(&cluster, &[]);
    apply_web(&cluster);
    let node = cluster.lab.node();
    wait_for(node, Transport::Tcp, (IpAddr::from(node.ip4()), NODE_PORT).into(), &Ok("pod0"));
    assert_eq!(ask(node, Transport::Tcp, loopback()), Err(FailureClass::Refused));
    let setting = node.exec("cat", &["/proc/sys/net/ipv4/conf/all/route_localnet"]).unwrap();
    assert_eq!(setting.trim(), "0", "the sysctl stays as it was");
}
