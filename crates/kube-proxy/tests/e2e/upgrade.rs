//! From an earlier version to this one and back, under load: `make upgrade-test` builds the earlier one and names it in
//! `KUBE_PROXY_EARLIER`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fakes::objects::{self, Port};
use lab::Host;
use lab::client::{Load, LoadGenerator, Session, Transport};
use lab::proxy::Proxy;
use testkit::cluster::{Cluster, Flavour, KEEP_PORT, LINE_PORT, ProxyMode};

use crate::support::{
    NODE_PORT, PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_web, check_load, cluster_in, ip, listing, program,
    wait_for,
};

const KEEP: [Port; 1] =
    [Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None }];
const LINE: [Port; 1] =
    [Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None }];
/// Connections that stay.
const KEPT: [&str; 2] = ["10.96.0.20", "fd00:10:96::20"];
/// A Service whose one endpoint tells which proxy has programmed it.
const MOVED: &str = "10.96.0.22";

#[test]
#[ignore = "needs the program of an earlier version: make upgrade-test"]
fn nothing_fails_in_mode_nftables() {
    nothing_fails(ProxyMode::Nftables);
}

#[test]
#[ignore = "needs the program of an earlier version: make upgrade-test"]
fn nothing_fails_in_mode_iptables_nft() {
    nothing_fails(ProxyMode::Iptables(Flavour::Nft));
}

#[test]
#[ignore = "needs the program of an earlier version: make upgrade-test"]
fn nothing_fails_in_mode_iptables_legacy() {
    nothing_fails(ProxyMode::Iptables(Flavour::Legacy));
}

fn earlier() -> PathBuf {
    let path = std::env::var_os("KUBE_PROXY_EARLIER").expect("KUBE_PROXY_EARLIER names the earlier program");
    let path = PathBuf::from(path);
    assert!(path.is_file(), "there is no {}", path.display());
    path
}

/// What the rules are made of, whatever is served: the names of maps, sets and chains of mode nftables with their types.
fn layout(cluster: &Cluster) -> BTreeSet<String> {
    let text = listing(cluster);
    let is_fixed = |line: &&str| {
        let line = line.trim_start();
        ["map ", "set ", "chain ", "type ", "typeof "].iter().any(|kind| line.starts_with(kind))
    };
    text.lines().filter(is_fixed).map(|line| line.trim().to_owned()).collect()
}

fn load(cluster: &Cluster) -> Vec<LoadGenerator> {
    let lab = &cluster.lab;
    let start = |from: &Host, target: SocketAddr, transport| {
        LoadGenerator::start(from, Load { target, transport, rate: 25, timeout: REQUEST }).unwrap()
    };
    vec![
        start(lab.outside(), (ip(WEB_V4), 80).into(), Transport::Tcp),
        start(lab.outside(), (ip(WEB_V6), 80).into(), Transport::Udp),
        start(lab.outside(), (lab.node().ip4(), NODE_PORT).into(), Transport::Tcp),
        start(lab.outside(), (lab.node().ip6(), NODE_PORT).into(), Transport::Udp),
        start(lab.pod(0), (ip(WEB_V4), 80).into(), Transport::Udp),
        start(lab.pod(0), (ip(WEB_V6), 80).into(), Transport::Tcp),
        start(lab.node(), (ip(WEB_V4), 80).into(), Transport::Tcp),
    ]
}

fn sessions(cluster: &Cluster) -> Vec<Session> {
    let lab = &cluster.lab;
    let open = |from: &Host, to: &str| from.run(|| Session::open((ip(to), 80).into(), REQUEST)).unwrap();
    KEPT.iter().flat_map(|to| [lab.outside(), lab.pod(1), lab.node()].map(|from| open(from, to))).collect()
}

/// Has a Service's one endpoint be another pod, and waits until it is.
fn move_endpoint(cluster: &Cluster, to: usize) {
    let endpoint = cluster.endpoints(false).remove(to);
    cluster.apply(objects::slice("moved", "v4", &LINE, &[endpoint])).unwrap();
    let names = cluster.pod_names();
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(MOVED), 80).into(), &Ok(names[to]));
}

/// How the one before ends.
#[derive(Clone, Copy)]
enum End {
    Asked,
    Killed,
}

/// The next version starts where another one has ended, and serves what changes.
fn follow(cluster: &Cluster, mut before: Proxy, end: End, next: &Path, endpoint: usize) -> Proxy {
    match end {
        End::Asked => assert_eq!(before.terminate(PATIENCE).unwrap().code(), Some(0)),
        End::Killed => drop(before.kill().unwrap()),
    }
    // Clients go on meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    let proxy =
        cluster.start_proxy_and_wait(next).unwrap_or_else(|error| panic!("{}: {error:#}", next.display()));
    move_endpoint(cluster, endpoint);
    proxy
}

fn nothing_fails(mode: ProxyMode) {
    let (earlier, this) = (earlier(), program());
    let cluster = cluster_in(mode, 3, 1);
    apply_web(&cluster);
    cluster.apply(objects::service("kept", &KEPT.map(ip), &KEEP)).unwrap();
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        cluster.apply(objects::slice("kept", suffix, &KEEP, &cluster.endpoints(v6)[..1])).unwrap();
    }
    cluster.apply(objects::service("moved", &[ip(MOVED)], &LINE)).unwrap();
    let mut proxy = cluster.start_proxy_and_wait(&earlier).unwrap_or_else(|error| panic!("{error:#}"));
    move_endpoint(&cluster, 0);
    for (to, port) in [(WEB_V4, 80), (WEB_V6, 80)] {
        for transport in [Transport::Tcp, Transport::Udp] {
            let answers = || {
                cluster.lab.outside().run(|| lab::client::ask_once(transport, (ip(to), port).into(), REQUEST))
            };
            assert!(lab::proxy::wait_until(PATIENCE, || answers().is_ok()));
        }
    }
    let layout_before = layout(&cluster);
    let (generators, mut kept) = (load(&cluster), sessions(&cluster));
    let mut layouts = Vec::new();
    let turns = [
        (this, End::Asked),
        (&*earlier, End::Asked),
        (this, End::Killed),
        (&*earlier, End::Killed),
        (this, End::Asked),
    ];
    for (n, (next, end)) in turns.into_iter().enumerate() {
        proxy = follow(&cluster, proxy, end, next, 1 + n % 3);
        for (idx, session) in kept.iter_mut().enumerate() {
            session
                .exchange(b"still here")
                .unwrap_or_else(|failure| panic!("turn {n}, connection {idx}: {failure}"));
        }
        layouts.push(layout(&cluster));
    }
    check_load(generators, 50, || proxy.log().join("\n"));
    // Each version has its own, and comes to the same whatever it found.
    assert_eq!(layouts[0], layouts[2]);
    assert_eq!(layouts[0], layouts[4]);
    assert_eq!(layouts[1], layout_before);
    assert_eq!(layouts[3], layout_before);
    if mode == ProxyMode::Nftables {
        assert_ne!(layouts[0], layout_before, "the layout is the same in both versions: nothing is shown");
    }
}
