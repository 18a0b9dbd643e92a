//! What only mode ipvs has: draining, schedulers, a device. Runs in the guest: `make guest-test`.

mod policies;
mod schedulers;
mod switches;
mod upstream;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use fakes::objects::{self, Port};
use lab::Host;
use lab::client::{Load, LoadGenerator, Session, Transport};
use lab::proxy::{Proxy, wait_until};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use testkit::cluster::{Cluster, KEEP_PORT, ProxyMode};

use crate::support::{
    PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_web, ask, check_load, cluster_in, ip, program, start,
};

/// Drained endpoints are looked at once a minute at the longest.
const LONG: Duration = Duration::from_mins(2);

const KEEP: &str = "10.96.0.30";
const KEEP_V6: &str = "fd00:10:96::30";
const KEEP_PORTS: [Port; 1] =
    [Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None }];

fn cluster(pods: usize, node2_pods: usize) -> Cluster {
    cluster_in(ProxyMode::Ipvs, pods, node2_pods)
}

/// Service `keep`, with these pods.
fn apply_keep(cluster: &Cluster, pods: &[usize]) {
    cluster.apply(objects::service("keep", &[ip(KEEP), ip(KEEP_V6)], &KEEP_PORTS)).unwrap();
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        let all = cluster.endpoints(v6);
        let chosen: Vec<_> = pods.iter().map(|&idx| all[idx].clone()).collect();
        cluster.apply(objects::slice("keep", suffix, &KEEP_PORTS, &chosen)).unwrap();
    }
}

/// Virtual and real servers without counters, and the device's addresses.
fn state(cluster: &Cluster) -> String {
    let node = cluster.lab.node();
    let servers = node.exec("ipvsadm", &["-Sn"]).unwrap();
    let addresses = node.exec("ip", &["-o", "addr", "show", "dev", "kube-ipvs0"]).unwrap();
    // Without the device's number.
    let addresses = addresses.lines().filter_map(|line| line.split_once(": ")).map(|(_, rest)| rest);
    format!("{servers}{}", addresses.collect::<Vec<_>>().join("\n"))
}

#[track_caller]
fn wait_for_state(cluster: &Cluster, limit: Duration, right: impl Fn(&str) -> bool) {
    assert!(wait_until(limit, || right(&state(cluster))), "{}", state(cluster));
}

#[track_caller]
fn wait_until_served(cluster: &Cluster, addresses: &[&str]) {
    for address in addresses {
        let asked = || ask(cluster.lab.outside(), Transport::Tcp, (ip(address), 80).into()).is_ok();
        assert!(wait_until(PATIENCE, asked), "{address} is not served:\n{}", state(cluster));
    }
}

fn start_with(cluster: &Cluster, more: &[&str]) -> Proxy {
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    let is_ready = |proxy: &Proxy, family| {
        proxy.log().iter().any(|line| line.contains("the kernel's rules") && line.contains(family))
    };
    let ready = wait_until(LONG, || {
        ["IPv4", "IPv6"].into_iter().all(|family| is_ready(&proxy, family)) || !proxy.is_running()
    });
    assert!(ready, "{}", proxy.log().join("\n"));
    proxy
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn kills_and_restarts_fail_no_connection_and_change_nothing() {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_served(&cluster, &[WEB_V4, WEB_V6]);
    let before = state(&cluster);
    // More would take all of an emulated processor, so that the program hardly starts.
    let load = |address| Load { target: address, transport: Transport::Tcp, rate: 50, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load((ip(WEB_V4), 80).into())).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load((ip(WEB_V6), 80).into())).unwrap(),
    ];
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        proxy.kill().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        proxy = start(&cluster);
    }
    check_load(generators, 100, || proxy.log().join("\n"));
    assert_eq!(state(&cluster), before);
}

/// A connection that is reset when it is dropped, so that IPVS forgets it within seconds.
struct Connection {
    stream: TcpStream,
    /// Who answered.
    server: String,
}

impl Connection {
    fn open(from: &Host, to: SocketAddr) -> Self {
        Self::try_open(from, to).unwrap()
    }

    fn try_open(from: &Host, to: SocketAddr) -> std::io::Result<Self> {
        let stream = from.run(|| TcpStream::connect_timeout(&to, REQUEST))?;
        stream.set_read_timeout(Some(REQUEST))?;
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream.as_fd(), sockopt::Linger, &linger)?;
        let mut greeting = String::new();
        BufReader::new(&stream).read_line(&mut greeting)?;
        let server = greeting.split_whitespace().find_map(|word| word.strip_prefix("name="));
        let server = server.expect("an echo server's greeting").to_owned();
        Ok(Self { stream, server })
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        let mut back = [0; 4];
        self.stream.write_all(b"ping")?;
        self.stream.read_exact(&mut back)
    }
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn a_drain_of_a_thousand_connections_cuts_none_and_ends_with_them() {
    // Both ends of each are in this process.
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 16, 1 << 16).unwrap();
    let cluster = cluster(2, 0);
    apply_keep(&cluster, &[0]);
    let proxy = start(&cluster);
    let to = (ip(KEEP), 80).into();
    wait_for_state(&cluster, PATIENCE, |state| state.contains(&format!("-a -t {KEEP}:80")));
    let mut connections: Vec<_> = (0..1000).map(|_| Connection::open(cluster.lab.outside(), to)).collect();
    let [old, new] = [0, 1].map(|idx| format!("-r {}:{KEEP_PORT} -m -w", cluster.lab.pod(idx).ip4()));
    apply_keep(&cluster, &[1]);
    wait_for_state(&cluster, PATIENCE, |state| {
        state.contains(&format!("{old} 0")) && state.contains(&format!("{new} 1"))
    });
    for connection in &mut connections {
        connection.exchange().expect("it was not cut");
    }
    let fresh = cluster.lab.outside().run(|| Session::open(to, REQUEST)).unwrap();
    assert_eq!(fresh.reply().name, cluster.lab.pod(1).name());
    drop(connections);
    let is_gone = || !state(&cluster).contains(&old);
    let list = || cluster.lab.node().exec("ipvsadm", &["-Ln"]).unwrap();
    assert!(wait_until(LONG, is_gone), "{}\n{}", list(), proxy.log().join("\n"));
}

/// A change of the scheduler needs a restart, as any change of the configuration; connections stay.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn another_scheduler_takes_effect_in_place() {
    let cluster = cluster(2, 1);
    apply_keep(&cluster, &[0, 1, 2]);
    let mut proxy = start(&cluster);
    wait_until_served(&cluster, &[KEEP, KEEP_V6]);
    let clients = [KEEP, KEEP_V6].map(|address| (ip(address), 80).into());
    let mut connections: Vec<_> =
        (0..6).flat_map(|_| clients.map(|to| Connection::open(cluster.lab.outside(), to))).collect();
    for scheduler in ["lc", "mh", "sh", "wlc"] {
        proxy.kill().unwrap();
        proxy = start_with(&cluster, &["--ipvs-scheduler", scheduler]);
        wait_for_state(&cluster, PATIENCE, |state| {
            let used = state.lines().filter(|line| line.starts_with("-A"));
            used.clone().count() == 2 && used.clone().all(|line| line.contains(&format!("-s {scheduler}")))
        });
        for connection in &mut connections {
            connection.exchange().expect("it was not cut");
        }
    }
    drop(proxy);
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn what_others_delete_comes_back() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let proxy = start_with(&cluster, &["--ipvs-sync-period", "1s"]);
    wait_until_served(&cluster, &[WEB_V4, WEB_V6]);
    let before = state(&cluster);
    let is_watched = || proxy.log().iter().filter(|line| line.contains("is noticed")).count() == 2;
    assert!(wait_until(PATIENCE, is_watched), "{}", proxy.log().join("\n"));
    let node = cluster.lab.node();
    for deletion in [&["ip", "link", "del", "kube-ipvs0"][..], &["ipvsadm", "-D", "-t", "10.96.0.10:80"]] {
        node.exec(deletion[0], &deletion[1..]).unwrap();
        let is_back =
            || node.exec("ip", &["link", "show", "kube-ipvs0"]).is_ok() && state(&cluster) == before;
        assert!(wait_until(PATIENCE, is_back), "after {deletion:?}:\n{}", proxy.log().join("\n"));
        wait_until_served(&cluster, &[WEB_V4, WEB_V6]);
    }
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn a_device_of_another_kind_is_told() {
    let cluster = cluster(1, 0);
    cluster.lab.node().exec("ip", &["link", "add", "kube-ipvs0", "type", "bridge"]).unwrap();
    apply_web(&cluster);
    let mut proxy = cluster.start_proxy(program()).unwrap();
    let text = "device kube-ipvs0 is of kind bridge, not dummy";
    assert!(proxy.wait_for_log(text, PATIENCE), "{}", proxy.log().join("\n"));
}
