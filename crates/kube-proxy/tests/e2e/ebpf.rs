//! Mode ebpf: what programs at the socket do beside the rules, and that nothing is lost when they come, go, or are torn out. Needs
//! a cgroup of version 2 and a file system of type `bpf`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fakes::objects::{self, Port};
use lab::Host;
use lab::client::{Load, LoadGenerator, Session, Transport};
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::{Cluster, KEEP_PORT, LINE_PORT, ProxyMode};

use crate::matrix::check_contract;
use crate::support::{
    NODE_PORT, PATIENCE, REQUEST, WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, apply_web, ask, check_load,
    cluster_in, ip, program, start, wait_for,
};

const KEEP_V4: &str = "10.96.0.30";
const KEEP_V6: &str = "fd00:10:96::1e";

fn ebpf(pods: usize, node2_pods: usize) -> Cluster {
    cluster_in(ProxyMode::Ebpf, pods, node2_pods)
}

/// The arguments of the cluster's proxy, some with another value.
fn arguments(cluster: &Cluster, other: &[(&str, &str)]) -> Vec<String> {
    let mut arguments = cluster.arguments();
    for (name, value) in other {
        match arguments.iter().position(|argument| argument == name) {
            Some(position) => (*value).clone_into(&mut arguments[position + 1]),
            None => arguments.extend([(*name).to_owned(), (*value).to_owned()]),
        }
    }
    arguments
}

/// Starts the proxy with some arguments other than usual, and waits until its rules are in place.
#[track_caller]
pub(crate) fn start_with(cluster: &Cluster, other: &[(&str, &str)]) -> Proxy {
    let arguments = arguments(cluster, other);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    for family in ["IPv4", "IPv6"] {
        let is_ready = |proxy: &Proxy| {
            proxy.log().iter().any(|line| line.contains("the kernel's rules") && line.contains(family))
        };
        let ended = wait_until(PATIENCE, || is_ready(&proxy) || !proxy.is_running());
        assert!(ended && is_ready(&proxy), "{}", proxy.log().join("\n"));
    }
    proxy
}

/// A metric of a family, 0 if it is not there.
pub(crate) fn metric(cluster: &Cluster, name: &str, family: &str) -> u64 {
    let page =
        cluster.lab.node().exec("curl", &["--silent", "http://127.0.0.1:10249/metrics"]).unwrap_or_default();
    let start = format!("{name}{{ip_family=\"{family}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or_default()
}

#[track_caller]
pub(crate) fn wait_until_active(cluster: &Cluster) {
    let is_active =
        || ["IPv4", "IPv6"].iter().all(|family| metric(cluster, "kubeproxy_ebpf_active", family) == 1);
    assert!(wait_until(PATIENCE, is_active), "nothing is translated at the socket");
}

fn links(cluster: &Cluster) -> Vec<PathBuf> {
    let dirs = ["ipv4", "ipv6"]
        .map(|family| cluster.socket_site().bpffs().join("kube-proxy").join(family).join("links"));
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).collect()
}

fn tear_out(cluster: &Cluster) {
    for link in links(cluster) {
        fs::remove_file(link).unwrap();
    }
}

/// What the socket of a connection that stays shows as its peer.
fn peer(from: &Host, to: SocketAddr) -> SocketAddr {
    from.run(|| std::net::TcpStream::connect_timeout(&to, REQUEST).unwrap().peer_addr().unwrap())
}

/// Service `keep`, whose connections stay open.
fn apply_keep(cluster: &Cluster) {
    let ports = [Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None }];
    cluster.apply(objects::service("keep", &[ip(KEEP_V4), ip(KEEP_V6)], &ports)).unwrap();
    cluster.apply(objects::slice("keep", "v4", &ports, &cluster.endpoints(false))).unwrap();
    cluster.apply(objects::slice("keep", "v6", &ports, &cluster.endpoints(true))).unwrap();
}

#[test]
fn the_contract_holds_where_no_program_can_be_had() {
    let cluster = ebpf(2, 1);
    let no_bpffs = cluster.dir().to_string_lossy().into_owned();
    let proxy = start_with(&cluster, &[("--ebpf-bpffs", &no_bpffs)]);
    check_contract(&cluster);
    assert_eq!(metric(&cluster, "kubeproxy_ebpf_active", "IPv4"), 0);
    let told =
        proxy.log().into_iter().filter(|line| line.contains("is not in a file system of type bpf")).count();
    assert_eq!(told, 2, "once for each family:\n{}", proxy.log().join("\n"));
}

/// Ends what another thread does, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Holds the contract while somebody tears the programs out all the time.
pub(crate) fn check_contract_while_torn_out(cluster: &Cluster) {
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::SeqCst) {
                tear_out(cluster);
                std::thread::sleep(Duration::from_millis(700));
            }
        });
        let _end = End(&ends);
        check_contract(cluster);
    });
}

#[test]
fn the_contract_holds_while_programs_are_torn_out() {
    let cluster = ebpf(2, 1);
    let _proxy =
        start_with(&cluster, &[("--iptables-sync-period", "1s"), ("--iptables-min-sync-period", "0s")]);
    wait_until_active(&cluster);
    check_contract_while_torn_out(&cluster);
    assert!(metric(&cluster, "kubeproxy_ebpf_divergences_total", "IPv4") > 0);
    wait_until_active(&cluster);
}

#[test]
fn a_connection_of_a_pod_shows_the_service_and_is_no_flow_to_it() {
    let cluster = ebpf(2, 1);
    apply_web(&cluster);
    apply_keep(&cluster);
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    let (pod, node) = (cluster.lab.pod(0), cluster.lab.node());
    // Cluster IP and node port of one Service, cluster IP of the other.
    let served =
        || ["IPv4", "IPv6"].iter().all(|family| metric(&cluster, "kubeproxy_ebpf_frontends", family) == 3);
    assert!(wait_until(PATIENCE, served));
    for address in [KEEP_V4, KEEP_V6] {
        let to = SocketAddr::from((ip(address), 80));
        for from in [pod, node] {
            assert_eq!(peer(from, to), to);
        }
    }
    let mapped = std::net::Ipv4Addr::new(10, 96, 0, 30).to_ipv6_mapped();
    let to = SocketAddr::from((IpAddr::from(mapped), 80));
    assert_eq!(peer(pod, to), to);
    let flows =
        ["ipv4", "ipv6"].map(|family| node.exec("conntrack", &["-L", "-f", family]).unwrap()).concat();
    assert!(!flows.contains(KEEP_V4) && !flows.contains(KEEP_V6), "{flows}");
    // Whoever is not of this node goes by the rules.
    let outside = Session::open;
    let session = cluster.lab.outside().run(|| outside((ip(KEEP_V4), 80).into(), REQUEST)).unwrap();
    let flows = node.exec("conntrack", &["-L", "-f", "ipv4"]).unwrap();
    assert!(flows.contains(KEEP_V4), "{flows}");
    drop(session);
}

#[test]
fn node_ports_and_refusals_are_those_of_the_rules() {
    let cluster = ebpf(2, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    let node = cluster.lab.node();
    let own: [IpAddr; 2] = [node.ip4().into(), node.ip6().into()];
    for address in own {
        let to = SocketAddr::from((address, NODE_PORT));
        assert!(wait_until(PATIENCE, || peer(node, to) == to && ask(node, Transport::Tcp, to).is_ok()));
    }
    apply_endpoints(&cluster, &[], &[]);
    let refused = Err(lab::client::FailureClass::Refused);
    for from in [node, cluster.lab.pod(0)] {
        for address in [WEB_V4, WEB_V6] {
            wait_for(from, Transport::Tcp, (ip(address), 80).into(), &refused);
        }
    }
    assert_eq!(metric(&cluster, "kubeproxy_ebpf_frontends", "IPv4"), 0);
}

#[test]
fn programs_that_were_torn_out_are_missed_and_come_back() {
    let cluster = ebpf(1, 1);
    apply_web(&cluster);
    let proxy =
        start_with(&cluster, &[("--iptables-sync-period", "1s"), ("--iptables-min-sync-period", "0s")]);
    wait_until_active(&cluster);
    let before = links(&cluster).len();
    assert_eq!(before, 6, "one for each program");
    tear_out(&cluster);
    let to = SocketAddr::from((ip(WEB_V4), 80));
    assert!(ask(cluster.lab.pod(0), Transport::Tcp, to).is_ok(), "the rules serve");
    let is_missed = || {
        ["IPv4", "IPv6"].iter().all(|family| metric(&cluster, "kubeproxy_ebpf_divergences_total", family) > 0)
    };
    assert!(wait_until(PATIENCE, is_missed), "{}", proxy.log().join("\n"));
    wait_until_active(&cluster);
    assert_eq!(links(&cluster).len(), before);
    assert!(proxy.log().iter().any(|line| line.contains("192.0.2.1")), "{}", proxy.log().join("\n"));
}

/// Gives the maps that are there the name of another layout, as another version would have left them.
fn age_maps(cluster: &Cluster) {
    let own = format!("{}-", ebpf::SCHEMA);
    for family in ["ipv4", "ipv6"] {
        let dir = cluster.socket_site().bpffs().join("kube-proxy").join(family);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if let Some(number) = entry.file_name().to_string_lossy().strip_prefix(&own) {
                fs::rename(entry.path(), dir.join(format!("0-{number}"))).unwrap();
            }
        }
    }
}

fn load(cluster: &Cluster) -> Vec<LoadGenerator> {
    let lab = &cluster.lab;
    let start = |from: &Host, address: &str| {
        let load =
            Load { target: (ip(address), 80).into(), transport: Transport::Tcp, rate: 100, timeout: REQUEST };
        LoadGenerator::start(from, load).unwrap()
    };
    vec![
        start(lab.pod(0), WEB_V4),
        start(lab.pod(1), WEB_V6),
        start(lab.node(), WEB_V4),
        start(lab.node(), WEB_V6),
        start(lab.outside(), WEB_V4),
    ]
}

/// How often each disturbance is repeated.
const TIMES: usize = 20;
/// How many connections are made meanwhile, at least.
const CONNECTIONS: u64 = 10_000;

/// Connections are made from everywhere all the time, while a proxy is killed again and again and another one goes on, after
/// whatever happens in between. None fails, and those that were there before stay.
#[track_caller]
fn no_connection_fails_while(happens_in_between: impl Fn(&Cluster)) {
    let cluster = ebpf(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_active(&cluster);
    wait_for_any(&cluster);
    let load = load(&cluster);
    let mut sessions = open_sessions(&cluster);
    let made = || load.iter().map(|generator| generator.snapshot().succeeded).sum::<u64>();
    let mut times = 0;
    while times < TIMES || made() < CONNECTIONS {
        proxy.kill().unwrap();
        happens_in_between(&cluster);
        proxy = start(&cluster);
        wait_until_active(&cluster);
        for session in &mut sessions {
            session.exchange(b"still there").unwrap();
        }
        times += 1;
    }
    check_load(load, 100, || proxy.log().join("\n"));
}

#[test]
fn ten_thousand_connections_over_twenty_kills_do_not_fail() {
    no_connection_fails_while(|_| ());
}

#[test]
fn ten_thousand_connections_over_twenty_upgrades_between_two_layouts_do_not_fail() {
    no_connection_fails_while(|cluster| {
        age_maps(cluster);
        assert!(links(cluster).iter().any(|link| link.to_string_lossy().contains("connect")));
    });
}

#[test]
fn ten_thousand_connections_over_twenty_changes_of_mode_and_back_do_not_fail() {
    no_connection_fails_while(|cluster| {
        let mut rules = start_with(cluster, &[("--proxy-mode", "nftables")]);
        wait_until_untranslated(cluster, &rules);
        rules.kill().unwrap();
    });
}

/// Frontends for which the smallest maps have room.
const ROOM: u16 = 1024;

fn filling(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    [10, 96, 4 + high, low].into()
}

/// Services of one IPv4 address each, all with the first pod.
fn fill(cluster: &Cluster, numbers: std::ops::Range<u16>) {
    let ports = [Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None }];
    for n in numbers {
        let name = format!("fill-{n}");
        cluster.apply(objects::slice(&name, "v4", &ports, &cluster.endpoints(false)[..1])).unwrap();
        cluster.apply(objects::service(&name, &[filling(n)], &ports)).unwrap();
    }
}

/// Remounts the file system of pins, so that the kernel refuses new ones, or takes them again.
fn set_read_only(cluster: &Cluster, is_read_only: bool) {
    let option = if is_read_only { "remount,ro" } else { "remount,rw" };
    let bpffs = cluster.socket_site().bpffs().to_string_lossy();
    let status = std::process::Command::new("mount").args(["-o", option, &bpffs]).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_service_is_served_when_maps_are_full_and_can_not_grow() {
    let cluster = ebpf(1, 0);
    apply_web(&cluster);
    let proxy = start(&cluster);
    wait_until_active(&cluster);
    // What failed is tried again a minute later at the latest.
    let patience = Duration::from_mins(2);
    let served = |count: u16| {
        let is_so = || metric(&cluster, "kubeproxy_ebpf_frontends", "IPv4") == u64::from(count);
        assert!(wait_until(patience, is_so), "{count}\n{}", proxy.log().join("\n"));
    };
    // Besides cluster IP and node port of `web`.
    fill(&cluster, 0..ROOM - 2);
    served(ROOM);
    assert_eq!(metric(&cluster, "kubeproxy_ebpf_map_rebuilds_total", "IPv4"), 1, "full");
    let (pod, node) = (cluster.lab.pod(0), cluster.lab.node());
    let all_answer = |numbers: &[u16]| {
        for n in numbers {
            for from in [pod, node] {
                let to = SocketAddr::from((filling(*n), 80));
                assert!(wait_until(PATIENCE, || ask(from, Transport::Tcp, to).is_ok()), "{to}");
            }
        }
    };
    let some: Vec<u16> = (0..ROOM - 2).step_by(101).chain([ROOM - 3]).collect();
    all_answer(&some);

    set_read_only(&cluster, true);
    fill(&cluster, ROOM - 2..ROOM - 1);
    let is_off = || metric(&cluster, "kubeproxy_ebpf_active", "IPv4") == 0;
    assert!(wait_until(PATIENCE, is_off), "{}", proxy.log().join("\n"));
    all_answer(&[&some[..], &[ROOM - 2]].concat());
    let is_told = || proxy.log().iter().any(|line| line.contains("Read-only file system"));
    assert!(wait_until(PATIENCE, is_told), "{}", proxy.log().join("\n"));

    set_read_only(&cluster, false);
    served(ROOM + 1);
    all_answer(&[&some[..], &[ROOM - 2]].concat());
}

/// Waits until no program translates, for the mode that this proxy is in.
#[track_caller]
fn wait_until_untranslated(cluster: &Cluster, proxy: &Proxy) {
    let is_gone = || links(cluster).iter().all(|link| !link.to_string_lossy().contains("connect"));
    assert!(wait_until(PATIENCE, is_gone), "{}", proxy.log().join("\n"));
}

/// Whatever mode comes next: programs that nobody keeps right any more would lead to pods that are gone.
#[test]
fn every_other_mode_takes_the_translation_away() {
    let cluster = ebpf(1, 0);
    apply_web(&cluster);
    for mode in ["nftables", "iptables", "userspace"] {
        let mut proxy = start(&cluster);
        wait_until_active(&cluster);
        assert!(links(&cluster).iter().any(|link| link.to_string_lossy().contains("connect")));
        proxy.kill().unwrap();
        let mut other = start_with(&cluster, &[("--proxy-mode", mode)]);
        wait_until_untranslated(&cluster, &other);
        other.kill().unwrap();
    }
}

fn open_sessions(cluster: &Cluster) -> Vec<Session> {
    apply_keep(cluster);
    let lab = &cluster.lab;
    let open = |from: &Host, address: &str| {
        let mut session = None;
        let opened = wait_until(PATIENCE, || {
            session = from.run(|| Session::open((ip(address), 80).into(), REQUEST)).ok();
            session.is_some()
        });
        assert!(opened);
        session.unwrap()
    };
    [lab.pod(0), lab.node(), lab.outside()]
        .into_iter()
        .flat_map(|from| [open(from, KEEP_V4), open(from, KEEP_V6)])
        .collect()
}

#[track_caller]
fn wait_for_any(cluster: &Cluster) {
    for address in [WEB_V4, WEB_V6] {
        let to = SocketAddr::from((ip(address), 80));
        let lab = &cluster.lab;
        let answers = || {
            [lab.pod(0), lab.node(), lab.outside()].iter().all(|from| ask(from, Transport::Tcp, to).is_ok())
        };
        assert!(wait_until(PATIENCE, answers), "{to}");
    }
}

/// A restart on unchanged Services takes the maps as they are.
#[test]
fn an_unchanged_restart_writes_nothing_to_maps() {
    let cluster = ebpf(2, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_active(&cluster);
    let served = || metric(&cluster, "kubeproxy_ebpf_frontends", "IPv4") == 2;
    assert!(wait_until(PATIENCE, served), "{} ports", WEB_PORTS.len());
    proxy.kill().unwrap();
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    assert!(wait_until(PATIENCE, served));
    for family in ["IPv4", "IPv6"] {
        for name in ["kubeproxy_ebpf_map_writes_total", "kubeproxy_ebpf_map_rebuilds_total"] {
            assert_eq!(metric(&cluster, name, family), 0, "{name} {family}");
        }
    }
}

#[test]
fn explain_reads_the_maps() {
    let cluster = ebpf(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_until_active(&cluster);
    let endpoint = SocketAddr::from((cluster.lab.pod(0).ip4(), 8080));
    let wanted = format!("-> {endpoint}");
    let explain = || {
        let url = "http://127.0.0.1:10249/api/v1/services/default/web";
        cluster.lab.node().exec("curl", &["--silent", url]).unwrap_or_default()
    };
    let is_told = || {
        let text = explain();
        text.contains("maps of programs at the socket") && text.contains(&wanted)
    };
    assert!(wait_until(PATIENCE, is_told), "{}", explain());
}

#[test]
fn a_cleanup_leaves_no_program_and_no_map() {
    let cluster = ebpf(1, 0);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_active(&cluster);
    assert!(!cluster.socket_site().pins().is_empty());
    proxy.kill().unwrap();
    let bpffs = cluster.socket_site().bpffs().to_string_lossy().into_owned();
    let program = program().to_string_lossy();
    cluster.lab.node().exec(&program, &["--cleanup", "--ebpf-bpffs", &bpffs]).unwrap();
    assert_eq!(cluster.socket_site().pins(), [""; 0]);
}
