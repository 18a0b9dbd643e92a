//! Taking a node over from upstream's mode ipvs in place, and giving it back.
//!
//! What upstream leaves is laid down by the tools that tell of it; where `KUBERNETES_BIN` names a folder with upstream's own program, that
//! programs it, and takes the node over again afterwards.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fakes::upstream;
use lab::Host;
use lab::client::{Load, LoadGenerator, Session, Transport};
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::{Cluster, Flavour, ProxyMode};

use super::{LONG, start_with, state};
use crate::support::{NODE_PORT, PATIENCE, REQUEST, WEB_V4, WEB_V6, ask, check_load, cluster_in, ip};
use crate::takeover::{KEEP_V4, KEEP_V6, apply_services, pods, services};

#[test]
#[ignore = "needs a kernel with IPVS"]
fn a_takeover_from_upstream_fails_and_ends_no_connection() {
    let cluster = cluster_in(ProxyMode::Ipvs, 3, 1);
    apply_services(&cluster);
    let real = upstreams_program().map(|program| run_upstream(&cluster, &program));
    if real.is_none() {
        lay_down(&cluster);
    }
    assert!(is_left(&cluster));
    let generators = load(&cluster);
    let mut sessions = sessions(&cluster);
    let mut talk = |when: &str| {
        for (n, session) in sessions.iter_mut().enumerate() {
            let exchanged = session.exchange(b"still there?");
            exchanged.unwrap_or_else(|failure| panic!("session {n} {when}: {failure}"));
        }
    };
    talk("before");
    drop(real);
    talk("while nobody runs");
    let proxy = start_with(&cluster, &[]);
    let gone = wait_until(LONG, || {
        talk("at the change");
        !is_left(&cluster)
    });
    assert!(gone, "upstream's rules are left:\n{}", proxy.log().join("\n"));
    // What comes now meets nothing but ours.
    std::thread::sleep(Duration::from_secs(1));
    talk("afterwards");
    check_load(generators, 10, || proxy.log().join("\n"));
    check_taken_over(&cluster);
    // That setting is the whole machine's, which a network namespace can't change.
    let is_warning = |line: &String| line.starts_with('W') && !line.contains("nf_conntrack_max");
    let warnings: Vec<_> = proxy.log().into_iter().filter(is_warning).collect();
    assert!(warnings.is_empty(), "{}", warnings.join("\n"));
    drop(proxy);
    if let Some(program) = upstreams_program() {
        give_back(&cluster, &program, talk);
    }
}

/// Every virtual server is ours now; the one of a Service without endpoints is gone, with its address.
#[track_caller]
fn check_taken_over(cluster: &Cluster) {
    let state = state(cluster);
    let servers: Vec<&str> = state.lines().filter(|line| line.starts_with("-A")).collect();
    assert!(servers.len() >= 10 && servers.iter().all(|server| server.contains("flag-3")), "{state}");
    assert!(!state.contains("10.96.0.30") && state.contains("10.96.0.10"), "{state}");
    for (from, to) in clients(cluster) {
        ask(from, Transport::Tcp, to).unwrap_or_else(|class| panic!("{} -> {to}: {class:?}", from.name()));
    }
}

/// Upstream's program serves as before. It deletes our table when it starts, so new connections may fail until it has written its
/// rules; established ones go on.
fn give_back(cluster: &Cluster, program: &Path, mut talk: impl FnMut(&str)) {
    talk("while nobody runs again");
    let _upstream = run_upstream(cluster, program);
    talk("when it was given back");
    let tables = cluster.lab.node().exec("nft", &["list", "tables"]).unwrap();
    assert!(!tables.contains("kube-proxy"), "{tables}");
    for (from, to) in clients(cluster) {
        let served = wait_until(PATIENCE, || ask(from, Transport::Tcp, to).is_ok());
        assert!(served, "{} -> {to}\n{}", from.name(), state(cluster));
    }
}

fn upstreams_program() -> Option<PathBuf> {
    std::env::var_os("KUBERNETES_BIN").map(|folder| PathBuf::from(folder).join("kube-proxy"))
}

/// What it would otherwise want to set, which is the whole machine's, and end because it can't.
const UNSET: [&str; 3] = [
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
];

/// Starts upstream's program and waits until it has written its last rules.
fn run_upstream(cluster: &Cluster, program: &Path) -> Proxy {
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(UNSET).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program, &arguments).unwrap();
    let is_served = || {
        let mut all = clients(cluster);
        all.extend(keepers(cluster));
        is_left(cluster) && all.iter().all(|(from, to)| ask(from, Transport::Tcp, *to).is_ok())
    };
    let served = wait_until(LONG, || is_served() || !proxy.is_running());
    assert!(served && proxy.is_running(), "{}", proxy.log().join("\n"));
    proxy
}

/// Lays down what upstream's program would have left, with the settings that it would have made.
fn lay_down(cluster: &Cluster) {
    let node = cluster.lab.node();
    for setting in ["conntrack", "expire_nodest_conn", "expire_quiescent_template"] {
        node.exec("sysctl", &["-w", &format!("net.ipv4.vs.{setting}=1")]).unwrap();
    }
    node.exec("ip", &["link", "add", "kube-ipvs0", "type", "dummy"]).unwrap();
    for v6 in [false, true] {
        let address = if v6 { IpAddr::from(node.ip6()) } else { node.ip4().into() };
        let left = upstream::ipvs(pods(v6), address, &services(cluster, v6));
        for address in &left.addresses {
            node.exec("ip", &["addr", "add", &address.to_string(), "dev", "kube-ipvs0"]).unwrap();
        }
        node.exec_with_input("ipset", &["restore"], &left.sets).unwrap();
        let restore = if v6 { "ip6tables-restore" } else { "iptables-restore" };
        node.exec_with_input(restore, &["--noflush"], &left.rules).unwrap();
        node.exec_with_input("ipvsadm", &["--restore"], &left.servers).unwrap();
    }
}

/// Whether something of upstream's rules and sets is there.
fn is_left(cluster: &Cluster) -> bool {
    let node = cluster.lab.node();
    let sets = node.exec("ipset", &["list", "-n"]).unwrap();
    let saved = Flavour::Nft.save(node).unwrap().concat();
    sets.contains("KUBE-") || saved.contains("KUBE-IPVS") || saved.contains("KUBE-SERVICES")
}

fn clients(cluster: &Cluster) -> Vec<(&Host, SocketAddr)> {
    let lab = &cluster.lab;
    let node = lab.node();
    vec![
        (lab.outside(), (ip(WEB_V4), 80).into()),
        (lab.outside(), (node.ip6(), NODE_PORT).into()),
        (lab.outside(), (node.ip4(), NODE_PORT).into()),
        (lab.pod(0), (ip(WEB_V6), 80).into()),
        (node, (ip(WEB_V4), 80).into()),
    ]
}

fn load(cluster: &Cluster) -> Vec<LoadGenerator> {
    let start = |(from, target): (&Host, SocketAddr)| {
        let load = Load { target, transport: Transport::Tcp, rate: 20, timeout: REQUEST };
        LoadGenerator::start(from, load).unwrap()
    };
    clients(cluster).into_iter().map(start).collect()
}

/// Who keeps connections to Service `keep`.
fn keepers(cluster: &Cluster) -> [(&Host, SocketAddr); 4] {
    let lab = &cluster.lab;
    let [v4, v6] = [KEEP_V4, KEEP_V6].map(|address| SocketAddr::from((ip(address), 80)));
    [(lab.outside(), v4), (lab.outside(), v6), (lab.pod(0), v4), (lab.node(), v6)]
}

fn sessions(cluster: &Cluster) -> Vec<Session> {
    let open = |(from, to): (&Host, SocketAddr)| from.run(|| Session::open(to, REQUEST)).unwrap();
    keepers(cluster).into_iter().map(open).collect()
}
