//! A node changes its mode because its configuration file does: under traffic, to and fro, with endpoints that change on the
//! way, and with a process that is killed in the middle.

mod supervisor;

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use fakes::objects::{self, Port};
use fakes::upstream;
use lab::Host;
use lab::client::{FailureClass, Load, LoadGenerator, Session, Transport, ask_once};
use lab::proxy::{CapabilitySet, Proxy, wait_until};
use serde_json::{Value, json};
use testkit::cluster::{CLUSTER_CIDR, Cluster, Flavour, KEEP_PORT, LINE_PORT, NODE, ProxyMode, UDP_PORT};
use tokio::time::Instant;

use crate::support::{
    NODE_PORT, PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_web, check_load, clean_up, cluster, ip, program,
    wait_for,
};
use supervisor::Supervisor;

const NFTABLES: ProxyMode = ProxyMode::Nftables;
const IPTABLES_NFT: ProxyMode = ProxyMode::Iptables(Flavour::Nft);
const IPTABLES_LEGACY: ProxyMode = ProxyMode::Iptables(Flavour::Legacy);

const LOCAL: [&str; 2] = ["10.96.0.20", "fd00:10:96::20"];
const REMOTE: [&str; 2] = ["10.96.0.21", "fd00:10:96::21"];
const FLIP: [&str; 2] = ["10.96.0.22", "fd00:10:96::22"];
const ROLLING: [&str; 2] = ["10.96.0.25", "fd00:10:96::25"];
const STICKY: [&str; 2] = ["10.96.0.23", "fd00:10:96::23"];
const EXTERNAL: [&str; 2] = ["203.0.113.20", "fd00:203::20"];
const BALANCER: [&str; 2] = ["203.0.113.21", "fd00:203::21"];
/// Where the client outside is, who alone may use [`BALANCER`].
const OUTSIDE: [&str; 2] = ["192.168.50.0/24", "fd00:50::/64"];

const KEEP_PORTS: [Port; 1] =
    [Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None }];
const LINE_PORTS: [Port; 1] =
    [Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None }];
const ROLLING_PORTS: [Port; 2] = [
    Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None },
    Port { name: "dgram", protocol: "UDP", port: 80, target: UDP_PORT, node_port: None },
];

/// A pause that is long for a packet, and nothing for a test.
const MOMENT: Duration = Duration::from_millis(300);
/// How long a datagram or a connection attempt waits that is dropped.
const DROPPED: Duration = Duration::from_millis(300);

/// A Service with cluster IPs of both families and the given fields beside.
fn apply_service(cluster: &Cluster, name: &str, ips: [&str; 2], ports: &[Port], more: &Value) {
    let mut service = objects::service(name, &ips.map(ip), ports);
    let fields = more.as_object().into_iter().flatten();
    for (field, value) in fields {
        let parent = if field == "status" { &mut service } else { &mut service["spec"] };
        parent[field] = value.clone();
    }
    cluster.apply(service).unwrap();
}

/// The endpoints of a Service: those of the cluster with these numbers.
fn apply_slices(cluster: &Cluster, name: &str, ports: &[Port], which: &[usize]) {
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        let all = cluster.endpoints(v6);
        let chosen: Vec<_> = which.iter().map(|&idx| all[idx].clone()).collect();
        cluster.apply(objects::slice(name, suffix, ports, &chosen)).unwrap();
    }
}

/// All Services of the tests here, for a cluster of three pods on the node and one on the other.
fn apply_services(cluster: &Cluster) {
    apply_web(cluster);
    let sticky = json!({ "sessionAffinity": "ClientIP" });
    let guarded = json!({
        "type": "LoadBalancer",
        "externalIPs": EXTERNAL,
        "loadBalancerSourceRanges": OUTSIDE,
        "status": { "loadBalancer": { "ingress": BALANCER.map(|ip| json!({ "ip": ip })) } },
    });
    apply_service(cluster, "local", LOCAL, &KEEP_PORTS, &json!({}));
    apply_service(cluster, "remote", REMOTE, &KEEP_PORTS, &json!({}));
    apply_service(cluster, "flip", FLIP, &LINE_PORTS, &json!({}));
    apply_service(cluster, "rolling", ROLLING, &ROLLING_PORTS, &json!({}));
    apply_service(cluster, "sticky", STICKY, &LINE_PORTS, &sticky);
    apply_service(cluster, "guarded", ["10.96.0.24", "fd00:10:96::24"], &LINE_PORTS, &guarded);
    apply_slices(cluster, "local", &KEEP_PORTS, &[0]);
    apply_slices(cluster, "remote", &KEEP_PORTS, &[3]);
    apply_slices(cluster, "flip", &LINE_PORTS, &[]);
    apply_slices(cluster, "rolling", &ROLLING_PORTS, &[0, 1, 2, 3]);
    apply_slices(cluster, "sticky", &LINE_PORTS, &[0, 1, 2, 3]);
    apply_slices(cluster, "guarded", &LINE_PORTS, &[0, 1, 3]);
}

/// The node, its neighbours' rules, and the configuration file as the kubelet mounts a `ConfigMap`.
struct Site {
    cluster: Cluster,
    neighbours: Vec<String>,
    versions: Cell<usize>,
}

const FLAVOURS: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

fn tool(flavour: Flavour, v6: bool) -> String {
    let family = if v6 { "ip6tables" } else { "iptables" };
    format!("{family}-{}", if flavour == Flavour::Nft { "nft" } else { "legacy" })
}

/// Rules of others in both flavours of iptables, the kubelet's among them.
fn load_neighbours(cluster: &Cluster) {
    for flavour in FLAVOURS {
        for v6 in [false, true] {
            for rules in [upstream::foreign(v6), upstream::kubelet(v6)] {
                let restore = format!("{}-restore", tool(flavour, v6));
                cluster.lab.node().exec_with_input(&restore, &["--noflush", "--counters"], &rules).unwrap();
            }
        }
    }
    // iptables-nft makes a built-in chain with the first rule that leads there, and nobody deletes it.
    for v6 in [false, true] {
        let rule = ["-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "not kube-proxy"];
        cluster.lab.node().exec(&tool(Flavour::Nft, v6), &rule).unwrap();
    }
    cluster.lab.node().nft("table inet others { chain c { ip saddr 198.51.100.9 drop; }; }").unwrap();
}

/// Chains by which the kubelet says which flavour it uses.
const MARKS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// What is in the kernel but for counters and the kubelet's marks: the tables of both flavours of iptables, and all of
/// nftables but what iptables-nft keeps there.
fn rules(cluster: &Cluster) -> Vec<String> {
    let node = cluster.lab.node();
    let saved = FLAVOURS.into_iter().flat_map(|flavour| [(flavour, false), (flavour, true)]);
    let saved = saved.map(|(flavour, v6)| node.exec(&format!("{}-save", tool(flavour, v6)), &[]).unwrap());
    let saved: String = saved.collect();
    let is_rule = |line: &&str| !line.starts_with('#') && !MARKS.iter().any(|mark| line.contains(mark));
    let lines = saved.lines().filter(is_rule);
    let lines = lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned());
    let tables = node.exec("nft", &["list", "tables"]).unwrap();
    let own = tables.lines().filter(|line| line.contains("kube-proxy") || line.contains("others"));
    lines.chain(own.map(str::to_owned)).collect()
}

impl Site {
    fn new() -> Self {
        let cluster = cluster(3, 1);
        load_neighbours(&cluster);
        let neighbours = rules(&cluster);
        apply_services(&cluster);
        let site = Self { cluster, neighbours, versions: Cell::new(0) };
        symlink("..data/config.conf", site.config()).unwrap();
        site
    }

    fn config(&self) -> PathBuf {
        self.cluster.dir().join("config.conf")
    }

    /// Writes the configuration for a mode and has the kubelet's mark say which flavour of iptables it uses. Every other time the
    /// file is swapped by its link, as in a `ConfigMap`, else overwritten.
    fn configure(&self, mode: ProxyMode) {
        let name = match mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Userspace => "userspace",
            ProxyMode::Iptables(flavour) => {
                self.mark(flavour);
                "iptables"
            }
            ProxyMode::Ipvs => "ipvs",
            ProxyMode::Ebpf => "ebpf",
        };
        let kubeconfig = &self.cluster.arguments()[1];
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {name}\n\
             clientConnection: {{ kubeconfig: {kubeconfig} }}\nhostnameOverride: {NODE}\n\
             clusterCIDR: {CLUSTER_CIDR}\nlogging: {{ verbosity: 2 }}\n"
        );
        let version = self.versions.replace(self.versions.get() + 1);
        if version % 2 == 1 {
            return fs::write(self.config(), text).unwrap();
        }
        let (dir, folder) = (self.cluster.dir(), format!("..{version}"));
        fs::create_dir(dir.join(&folder)).unwrap();
        fs::write(dir.join(&folder).join("config.conf"), text).unwrap();
        symlink(&folder, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    }

    fn mark(&self, flavour: Flavour) {
        let node = self.cluster.lab.node();
        for v6 in [false, true] {
            for other in FLAVOURS {
                for mark in MARKS {
                    let action = if other == flavour { "-N" } else { "-X" };
                    // It may be so already.
                    drop(node.exec(&tool(other, v6), &["-t", "mangle", action, mark]));
                }
            }
        }
    }

    fn supervise(&self) -> Supervisor {
        let config = self.config().to_string_lossy().into_owned();
        Supervisor::start(self.cluster.lab.node(), vec!["--config".to_owned(), config])
    }

    /// Changes the configuration, and returns when the process of the new mode has begun.
    #[track_caller]
    fn begin_change(&self, mode: ProxyMode, supervisor: &Supervisor) -> Instant {
        let restarts = supervisor.restarts();
        self.configure(mode);
        assert!(wait_until(PATIENCE, || supervisor.restarts() > restarts), "{}", supervisor.whole_log());
        Instant::now()
    }

    /// Whether the rules of this mode are there, and no other mode's.
    fn is_in(&self, mode: ProxyMode) -> bool {
        let node = self.cluster.lab.node();
        let has_chains = |flavour| {
            [false, true].map(|v6| {
                let saved = node.exec(&format!("{}-save", tool(flavour, v6)), &[]).unwrap();
                ["KUBE-S", "KUBE-PROXY", "KUBE-NODEPORTS"].iter().any(|name| saved.contains(name))
            })
        };
        let tables = node.exec("nft", &["list", "tables"]).unwrap();
        let expected = |of| [mode == of; 2];
        ["ip", "ip6"].map(|family| tables.contains(&format!("table {family} kube-proxy")))
            == expected(NFTABLES)
            && has_chains(Flavour::Nft) == expected(IPTABLES_NFT)
            && has_chains(Flavour::Legacy) == expected(IPTABLES_LEGACY)
    }

    #[track_caller]
    fn wait_until_in(&self, mode: ProxyMode, supervisor: &Supervisor) {
        let reached = wait_until(PATIENCE, || self.is_in(mode));
        assert!(reached, "not in {mode:?}:\n{}\n{:?}", supervisor.whole_log(), rules(&self.cluster));
    }

    /// Two hundred and more new connections a second, of both families.
    fn load(&self) -> Vec<LoadGenerator> {
        let lab = &self.cluster.lab;
        let (outside, pod, node) = (lab.outside(), lab.pod(0), lab.node());
        let to = |address: &str| SocketAddr::from((ip(address), 80));
        let start = |from: &Host, target, transport| {
            LoadGenerator::start(from, Load { target, transport, rate: 20, timeout: REQUEST }).unwrap()
        };
        vec![
            start(outside, to(WEB_V4), Transport::Tcp),
            start(outside, to(WEB_V6), Transport::Udp),
            start(outside, (node.ip4(), NODE_PORT).into(), Transport::Tcp),
            start(outside, (node.ip6(), NODE_PORT).into(), Transport::Udp),
            start(outside, to(EXTERNAL[0]), Transport::Tcp),
            start(outside, to(EXTERNAL[1]), Transport::Tcp),
            start(outside, to(BALANCER[0]), Transport::Tcp),
            start(outside, to(STICKY[1]), Transport::Tcp),
            // Not over UDP: a datagram that waits for its answer while its endpoint goes is forgotten with its flow.
            start(outside, to(ROLLING[0]), Transport::Tcp),
            start(pod, to(ROLLING[1]), Transport::Tcp),
            // One of the endpoints is the pod itself.
            start(pod, to(WEB_V4), Transport::Udp),
            start(pod, to(WEB_V6), Transport::Tcp),
            start(node, to(WEB_V4), Transport::Udp),
            start(node, (node.ip6(), NODE_PORT).into(), Transport::Tcp),
        ]
    }

    /// Connections to an endpoint here and to one elsewhere, from everywhere.
    fn sessions(&self) -> Vec<Session> {
        let lab = &self.cluster.lab;
        let open = |from: &Host, to: &str| from.run(|| Session::open((ip(to), 80).into(), REQUEST)).unwrap();
        let from_all = |to| [lab.outside(), lab.pod(1), lab.node()].map(|from| open(from, to));
        LOCAL.into_iter().chain(REMOTE).flat_map(from_all).collect()
    }

    /// Service `flip` has endpoints or not, and `rolling` other ones; both are seen.
    fn change_endpoints(&self, round: usize) {
        let flipped: &[usize] = if round.is_multiple_of(2) { &[1, 3] } else { &[] };
        apply_slices(&self.cluster, "flip", &LINE_PORTS, flipped);
        apply_slices(&self.cluster, "rolling", &ROLLING_PORTS, &[0, 1, 2, 3][round % 4..]);
    }

    /// What [`Site::change_endpoints`] has asked for is so, whatever rules there were before.
    #[track_caller]
    fn check_endpoints(&self, round: usize) {
        let (lab, names) = (&self.cluster.lab, self.cluster.pod_names());
        for to in FLIP.map(|address| SocketAddr::from((ip(address), 80))) {
            if round.is_multiple_of(2) {
                assert!(wait_until(PATIENCE, || lab
                    .outside()
                    .run(|| ask_once(Transport::Tcp, to, REQUEST))
                    .is_ok()));
            } else {
                wait_for(lab.outside(), Transport::Tcp, to, &Err(FailureClass::Refused));
            }
        }
        for (to, transport) in [(ROLLING[0], Transport::Tcp), (ROLLING[1], Transport::Udp)] {
            let left = &names[round % 4..];
            let is_of_those = || {
                let answer = lab.pod(2).run(|| ask_once(transport, (ip(to), 80).into(), REQUEST));
                left.contains(&answer.unwrap().name.as_str())
            };
            assert!(wait_until(PATIENCE, || (0..12).all(|_| is_of_those())), "not only by {left:?}");
        }
        for to in BALANCER {
            let answer = lab.pod(0).run(|| ask_once(Transport::Tcp, (ip(to), 80).into(), DROPPED));
            assert_eq!(answer.map_err(|failure| failure.class()).unwrap_err(), FailureClass::TimedOut);
        }
    }
}

/// There and back again, by each flavour of iptables: no connection fails, none that is open ends, and each mode leaves nothing
/// to the next but what others had before.
#[test]
fn a_change_of_mode_fails_no_connection() {
    let site = Site::new();
    site.configure(NFTABLES);
    let supervisor = site.supervise();
    site.wait_until_in(NFTABLES, &supervisor);
    let (load, mut sessions) = (site.load(), site.sessions());
    let mut talk = || sessions.iter_mut().for_each(|session| session.exchange(b"still there?").unwrap());
    for (round, mode) in [IPTABLES_NFT, NFTABLES, IPTABLES_LEGACY, NFTABLES].into_iter().enumerate() {
        eprintln!("to {mode:?}");
        site.configure(mode);
        // Some changes meet the old process, some none, some the new one.
        std::thread::sleep(MOMENT * u32::try_from(round % 3).unwrap());
        site.change_endpoints(round);
        talk();
        site.wait_until_in(mode, &supervisor);
        talk();
        site.check_endpoints(round);
        if mode != NFTABLES {
            check_restart(&supervisor);
        }
    }
    std::thread::sleep(MOMENT);
    talk();
    check_load(load, 10, || supervisor.whole_log());
    assert_eq!(supervisor.exit_codes(), [0; 4], "{}", supervisor.whole_log());
    let log = supervisor.whole_log();
    // The lock is the machine's, so that somebody else may hold it.
    let is_warning = |line: &str| line.starts_with('W') && !line.contains("xtables.lock");
    assert!(!log.lines().any(is_warning), "{log}");
    check_end(&site, supervisor);
}

/// A restart right after a change finds nothing to write.
#[track_caller]
fn check_restart(supervisor: &Supervisor) {
    let restarts = supervisor.restarts();
    supervisor.kill();
    let begun = wait_until(PATIENCE, || supervisor.restarts() > restarts);
    let count = |text: &str| supervisor.log().iter().filter(|line| line.contains(text)).count();
    let settled = begun && wait_until(PATIENCE, || count("the kernel's rules") == 2);
    assert!(settled && count("the kernel's rules are right") == 2, "{}", supervisor.whole_log());
}

/// `--cleanup` leaves what others had before.
#[track_caller]
fn check_end(site: &Site, supervisor: Supervisor) {
    drop(supervisor);
    clean_up(&site.cluster, &[]);
    assert_eq!(rules(&site.cluster), site.neighbours);
}

/// A process that is killed on the way is started again, and gets there: before its rules are in place, between those and the
/// removal of the old ones, and afterwards.
#[test]
fn a_kill_in_the_middle_of_a_change_fails_no_connection() {
    const KILLS_IN_EACH: u32 = 3;
    let modes = [IPTABLES_NFT, NFTABLES, IPTABLES_LEGACY, NFTABLES];
    let site = Site::new();
    site.configure(NFTABLES);
    let supervisor = site.supervise();
    site.wait_until_in(NFTABLES, &supervisor);
    let (load, mut sessions) = (site.load(), site.sessions());
    let mut talk = || sessions.iter_mut().for_each(|session| session.exchange(b"still there?").unwrap());
    // How long the process of a new mode takes. Kills are spread over that time.
    let durations = modes.map(|mode| {
        let begun = site.begin_change(mode, &supervisor);
        site.wait_until_in(mode, &supervisor);
        begun.elapsed()
    });
    for kill in 0..KILLS_IN_EACH {
        for (turn, mode) in modes.into_iter().enumerate() {
            site.begin_change(mode, &supervisor);
            site.change_endpoints(turn);
            std::thread::sleep(durations[turn] * (2 * kill + 1) / (2 * KILLS_IN_EACH));
            let steps = ["the kernel's rules", "removed what another"]
                .map(|text| supervisor.log().iter().filter(|line| line.contains(text)).count());
            supervisor.kill();
            eprintln!(
                "to {mode:?}: killed when the rules of {} families were in place and {} things removed",
                steps[0], steps[1]
            );
            talk();
            site.wait_until_in(mode, &supervisor);
            talk();
            site.check_endpoints(turn);
        }
    }
    std::thread::sleep(MOMENT);
    talk();
    check_load(load, 10, || supervisor.whole_log());
    check_end(&site, supervisor);
}

/// After each mode, `--cleanup` leaves what was there before, byte for byte but for counters.
#[test]
fn cleanup_after_each_mode() {
    for mode in [NFTABLES, IPTABLES_NFT, IPTABLES_LEGACY] {
        eprintln!("{mode:?}");
        let cluster = cluster(3, 1);
        load_neighbours(&cluster);
        let site = Site { cluster, neighbours: Vec::new(), versions: Cell::new(0) };
        if let ProxyMode::Iptables(flavour) = mode {
            site.mark(flavour);
        }
        let node = site.cluster.lab.node();
        let ruleset = || node.exec("nft", &["--stateless", "list", "ruleset"]).unwrap();
        let before = (rules(&site.cluster), ruleset());
        apply_services(&site.cluster);
        let mode_name = if mode == NFTABLES { "nftables" } else { "iptables" };
        let mut arguments = site.cluster.arguments();
        arguments.extend(["--proxy-mode", mode_name].map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut proxy = Proxy::start(node, program(), &arguments).unwrap();
        assert!(wait_until(PATIENCE, || site.is_in(mode)), "{}", proxy.log().join("\n"));
        proxy.terminate(PATIENCE).unwrap();
        assert_ne!(rules(&site.cluster), before.0);

        let without = CapabilitySet::empty();
        let mut cleanup = Proxy::start_with(node, program(), &["--cleanup"], without).unwrap();
        assert_eq!(cleanup.wait(PATIENCE).unwrap().code(), Some(1));
        let is_told = |text: &str| cleanup.log().iter().any(|line| line.contains(text));
        let list = || is_told("could not be removed") && is_told("things stay behind");
        assert!(wait_until(PATIENCE, list), "{}", cleanup.log().join("\n"));
        assert!(site.is_in(mode));

        clean_up(&site.cluster, &[]);
        assert_eq!(rules(&site.cluster), before.0);
        assert_eq!(ruleset(), before.1, "{mode:?}");
    }
}
