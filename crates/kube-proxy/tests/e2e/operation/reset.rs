//! `connectionReset`: clients whose endpoint went without a word hear of it. What ends their connection is seen at their sockets.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fakes::objects::{self, Endpoint, Port};
use lab::Host;
use lab::client::{FailureClass, Session};
use lab::proxy::wait_until;
use serde_json::json;
use testkit::cluster::{Cluster, Flavour, KEEP_PORT, NODE, NODE2, ProxyMode};

use super::start_with;
use crate::support::{REQUEST, cluster_in, ip};

/// Answered on a connection that stays open.
const KEEP: [Port; 1] =
    [Port { name: "keep", protocol: "TCP", port: 81, target: KEEP_PORT, node_port: Some(30081) }];
const ASKING: &str = "10.96.0.20";
const SILENT: &str = "10.96.0.21";
/// Ten seconds until an endpoint is gone for good, and as many until the client sends again what was not acknowledged.
const RESET: Duration = Duration::from_mins(1);

#[test]
fn clients_of_a_dead_endpoint_are_reset_in_mode_nftables() {
    clients_of_a_dead_endpoint_are_reset(ProxyMode::Nftables);
}

#[test]
fn clients_of_a_dead_endpoint_are_reset_in_mode_iptables_nft() {
    clients_of_a_dead_endpoint_are_reset(ProxyMode::Iptables(Flavour::Nft));
}

#[test]
fn clients_of_a_dead_endpoint_are_reset_in_mode_iptables_legacy() {
    clients_of_a_dead_endpoint_are_reset(ProxyMode::Iptables(Flavour::Legacy));
}

/// Both Services have these endpoints.
fn apply(cluster: &Cluster, endpoints: &[(&Host, &str)]) {
    let endpoints: Vec<Endpoint> =
        endpoints.iter().map(|(pod, node)| Endpoint::ready(pod.ip4().into(), node)).collect();
    for name in ["asking", "silent"] {
        cluster.apply(objects::slice(name, "v4", &KEEP, &endpoints)).unwrap();
    }
}

fn open(from: &Host, to: SocketAddr) -> Session {
    let mut opened = None;
    let reached = wait_until(RESET, || {
        opened = from.run(|| Session::open(to, REQUEST)).ok();
        opened.is_some()
    });
    assert!(reached, "nobody answers at {to}");
    opened.unwrap()
}

/// A connection that was greeted, and from then on sends nothing.
fn open_silent(from: &Host, to: SocketAddr) -> TcpStream {
    let mut stream = from.run(|| TcpStream::connect_timeout(&to, REQUEST).unwrap());
    stream.set_read_timeout(Some(RESET)).unwrap();
    assert_ne!(stream.read(&mut [0; 512]).unwrap(), 0);
    stream
}

/// How a connection ends for whoever only waits.
fn end(mut stream: TcpStream) -> Result<usize, ErrorKind> {
    stream.read(&mut [0; 512]).map_err(|error| error.kind())
}

/// The same, but for the kernel's probes, one a second.
fn open_idle(from: &Host, to: SocketAddr) -> TcpStream {
    let stream = open_silent(from, to);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(120);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&probes).unwrap();
    stream
}

/// What a client that talks sees at last.
#[track_caller]
fn check_reset(mut session: Session, whose: &str) {
    let mut last = None;
    let is_reset = wait_until(RESET, || {
        last = session.exchange(b"x").map_err(|failure| failure.class()).err();
        last == Some(FailureClass::Reset)
    });
    assert!(is_reset, "{whose}: {last:?}");
}

fn clients_of_a_dead_endpoint_are_reset(mode: ProxyMode) {
    let cluster = cluster_in(mode, 2, 1);
    let lab = &cluster.lab;
    let (alive, dead) = ((lab.pod(1), NODE), (lab.node2_pod(0), NODE2));
    let mut asking = objects::service("asking", &[ip(ASKING)], &KEEP);
    asking["metadata"]["annotations"] = json!({ "kube-proxy/reset-connections": "true" });
    cluster.apply(asking).unwrap();
    let plain = Port { node_port: None, ..KEEP[0] };
    cluster.apply(objects::service("silent", &[ip(SILENT)], &[plain])).unwrap();
    apply(&cluster, &[dead]);
    let proxy = start_with(&cluster, &["--connection-reset-annotated", "--nodeport-addresses", "0.0.0.0/0"]);

    let service = SocketAddr::from((ip(ASKING), 81));
    let from_pod = open(lab.pod(0), service);
    let from_node = open_silent(lab.node(), service);
    let from_outside = open(lab.outside(), (lab.node().ip4(), 30081).into());
    let idle = open_idle(lab.pod(0), service);
    let mut of_silent = open(lab.pod(0), (ip(SILENT), 81).into());

    // The other node dies, and its pod with it: no FIN, no RST, no ICMP.
    dead.0
        .nft("table inet dead { chain in { type filter hook input priority -300; drop; }; chain out { type filter hook output priority -300; drop; }; }")
        .unwrap();
    apply(&cluster, &[alive]);
    let mut survivor = open(lab.pod(0), service);
    assert_eq!(survivor.reply().name, "pod1");

    check_reset(from_pod, "the pod");
    check_reset(from_outside, "the client outside");
    assert_eq!(end(idle), Err(ErrorKind::ConnectionReset), "{}", proxy.log().join("\n"));
    // The node's own are ended where they are, without a packet of theirs.
    assert_eq!(end(from_node), Err(ErrorKind::ConnectionAborted), "{}", proxy.log().join("\n"));
    // Nobody else is touched: neither connections to who is alive, nor those of Services that do not ask.
    survivor.exchange(b"still there").unwrap();
    let still = of_silent.exchange(b"x").map_err(|failure| failure.class());
    assert_eq!(still, Err(FailureClass::TimedOut));
}
