//! Taking a node over from upstream's kube-proxy in each of its modes under traffic, and cleaning up after all of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fakes::objects::{self, Port};
use fakes::upstream::{self, ServicePort};
use lab::client::{Load, LoadGenerator, Session, Transport, UdpFlow};
use lab::proxy::{CapabilitySet, Proxy, wait_until};
use testkit::cluster::{CLUSTER_CIDR, Cluster, KEEP_PORT, LINE_PORT, UDP_PORT};

use crate::support::{
    NODE_PORT, PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_endpoints, apply_web, ask, check_listable,
    check_load, clean_up, cluster, ip, program, start, wait_for,
};

pub(crate) const KEEP_V4: &str = "10.96.0.20";
pub(crate) const KEEP_V6: &str = "fd00:10:96::20";
const KEEP_PORTS: [Port; 1] =
    [Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None }];

/// What left the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    IptablesLegacy,
    IptablesNft,
    Nftables,
}

impl Before {
    fn load(self, cluster: &Cluster) {
        self.load_with(cluster, usize::MAX);
    }

    /// The rules with the first so many endpoints of each Service.
    fn load_with(self, cluster: &Cluster, n_endpoints: usize) {
        let node = cluster.lab.node();
        for v6 in [false, true] {
            let (pods, mut services) = (pods(v6), services(cluster, v6));
            for service in &mut services {
                service.endpoints.truncate(n_endpoints);
            }
            match self {
                Self::Nftables => {
                    let address = if v6 { node.ip6().into() } else { IpAddr::from(node.ip4()) };
                    node.nft(&upstream::nftables(pods, address, &services)).unwrap();
                }
                _ => restore(cluster, &self.tool(v6), &upstream::iptables(pods, &services)),
            }
        }
    }

    /// The tool of iptables that sees the rules. Mode nftables has none of its own; foreign rules are nft's then.
    fn tool(self, v6: bool) -> String {
        let family = if v6 { "ip6tables" } else { "iptables" };
        let flavour = if self == Self::IptablesLegacy { "legacy" } else { "nft" };
        format!("{family}-{flavour}")
    }

    /// The rules of both families as saved; the counters of the policies, which traffic changes, are left out.
    fn saved(self, cluster: &Cluster) -> Vec<String> {
        let save = |v6| cluster.lab.node().exec(&format!("{}-save", self.tool(v6)), &[]).unwrap();
        let text = save(false) + &save(true);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect()
    }

    /// Whether something of what was loaded is still there.
    fn is_left(self, cluster: &Cluster) -> bool {
        match self {
            Self::Nftables => {
                let listed = cluster.lab.node().exec("nft", &["list", "chains"]).unwrap();
                listed.contains("service-endpoints-check") || listed.contains("endpoint-")
            }
            _ => {
                self.saved(cluster).iter().any(|line| line.contains("KUBE-S") || line.contains("KUBE-PROXY"))
            }
        }
    }
}

fn restore(cluster: &Cluster, tool: &str, rules: &str) {
    let args = ["--noflush", "--counters"];
    cluster.lab.node().exec_with_input(&format!("{tool}-restore"), &args, rules).unwrap();
}

pub(crate) fn pods(v6: bool) -> ipnet::IpNet {
    CLUSTER_CIDR.split(',').nth(usize::from(v6)).unwrap().parse().unwrap()
}

/// The Services of [`apply_services`] as upstream would have programmed them, and one without endpoints.
pub(crate) fn services(cluster: &Cluster, v6: bool) -> Vec<ServicePort> {
    let address = |v4, v6_text| ip(if v6 { v6_text } else { v4 });
    let endpoints = |port| cluster.endpoints(v6).iter().map(|pod| SocketAddr::new(pod.ip, port)).collect();
    let service = |name, protocol, cluster_ip, node_port, endpoints| ServicePort {
        name,
        protocol,
        cluster_ip,
        port: 80,
        node_port,
        load_balancer: None,
        endpoints,
    };
    let web = address(WEB_V4, WEB_V6);
    vec![
        service("default/web:line", "tcp", web, Some(NODE_PORT), endpoints(LINE_PORT)),
        service("default/web:dgram", "udp", web, Some(NODE_PORT), endpoints(UDP_PORT)),
        service("default/keep:keep", "tcp", address(KEEP_V4, KEEP_V6), None, endpoints(KEEP_PORT)),
        service("default/none", "tcp", address("10.96.0.30", "fd00:10:96::30"), None, vec![]),
    ]
}

pub(crate) fn apply_services(cluster: &Cluster) {
    apply_web(cluster);
    cluster.apply(objects::service("keep", &[ip(KEEP_V4), ip(KEEP_V6)], &KEEP_PORTS)).unwrap();
    cluster.apply(objects::slice("keep", "v4", &KEEP_PORTS, &cluster.endpoints(false))).unwrap();
    cluster.apply(objects::slice("keep", "v6", &KEEP_PORTS, &cluster.endpoints(true))).unwrap();
}

/// Rules of the kubelet and of others, which are to stay; yields how they are saved.
fn load_neighbours(cluster: &Cluster, before: Before) -> Vec<String> {
    for v6 in [false, true] {
        restore(cluster, &before.tool(v6), &upstream::foreign(v6));
        restore(cluster, &before.tool(v6), &upstream::kubelet(v6));
    }
    before.saved(cluster)
}

/// Two hundred new connections a second, from elsewhere and from a pod, to cluster IPs and a node port, over TCP and UDP,
/// and connections that stay open: none fails while the rules change hands.
#[track_caller]
fn check_takeover(before: Before) {
    let cluster = cluster(3, 1);
    let neighbours = load_neighbours(&cluster, before);
    before.load(&cluster);
    assert!(before.is_left(&cluster));
    apply_services(&cluster);
    let outside = cluster.lab.outside();
    let generators = generators(&cluster);
    let mut sessions = sessions(&cluster);
    let mut talk = || sessions.iter_mut().try_for_each(|session| session.exchange(b"still there?"));
    talk().unwrap();
    let proxy = start(&cluster);
    let gone = wait_until(PATIENCE, || {
        talk().unwrap();
        !before.is_left(&cluster)
    });
    assert!(gone, "{before:?} is left:\n{}", proxy.log().join("\n"));
    // What comes now meets nothing but our rules.
    std::thread::sleep(Duration::from_millis(300));
    talk().unwrap();
    check_load(generators, 10, || format!("{before:?}\n{}", proxy.log().join("\n")));
    assert_eq!(before.saved(&cluster), neighbours, "{before:?}");
    assert!(!proxy.log().iter().any(|line| line.contains("WARN")), "{}", proxy.log().join("\n"));
    assert_eq!(
        ask(outside, Transport::Tcp, (ip("10.96.0.10"), 81).into()),
        refused(),
        "our rules are at work"
    );
}

fn generators(cluster: &Cluster) -> [LoadGenerator; 5] {
    let (outside, pod, node) = (cluster.lab.outside(), cluster.lab.pod(0), cluster.lab.node());
    let load = |from: &lab::Host, target, transport| {
        LoadGenerator::start(from, Load { target, transport, rate: 40, timeout: REQUEST }).unwrap()
    };
    [
        load(outside, (ip(WEB_V4), 80).into(), Transport::Tcp),
        load(outside, (ip(WEB_V6), 80).into(), Transport::Udp),
        load(outside, (node.ip6(), NODE_PORT).into(), Transport::Tcp),
        load(pod, (ip(WEB_V6), 80).into(), Transport::Tcp),
        load(node, (ip(WEB_V4), 80).into(), Transport::Udp),
    ]
}

fn sessions(cluster: &Cluster) -> [Session; 4] {
    let (outside, pod, node) = (cluster.lab.outside(), cluster.lab.pod(0), cluster.lab.node());
    let keep = |from: &lab::Host, to| from.run(|| Session::open((ip(to), 80).into(), REQUEST)).unwrap();
    [keep(outside, KEEP_V4), keep(outside, KEEP_V6), keep(pod, KEEP_V4), keep(node, KEEP_V6)]
}

fn refused() -> Result<String, lab::client::FailureClass> {
    Err(lab::client::FailureClass::Refused)
}

#[test]
fn takeover_from_iptables_legacy_fails_no_connection() {
    check_takeover(Before::IptablesLegacy);
}

#[test]
fn takeover_from_iptables_nft_fails_no_connection() {
    check_takeover(Before::IptablesNft);
}

#[test]
fn takeover_from_upstreams_nftables_fails_no_connection() {
    check_takeover(Before::Nftables);
}

/// Runs the program with `--hand-over` until it ends with this code and has said something.
#[track_caller]
fn hand_over(cluster: &Cluster, lease: &str, (code, text): (i32, &str)) {
    let argument = format!("--hand-over={lease}");
    let mut program = Proxy::start(cluster.lab.node(), program(), &[argument.as_str()]).unwrap();
    assert_eq!(program.wait(PATIENCE).unwrap().code(), Some(code), "{}", program.log().join("\n"));
    assert!(program.wait_for_log(text, PATIENCE), "{lease}: {}", program.log().join("\n"));
}

const HANDED_OVER: (i32, &str) = (0, "what our table did is done by its copy");

fn tables(cluster: &Cluster) -> String {
    cluster.lab.node().exec("nft", &["list", "tables"]).unwrap()
}

/// Back to upstream: its rules come seconds after it has deleted the tables of our name. Nothing fails if they were handed over before, and as
/// soon as its rules are there, they decide.
#[track_caller]
fn check_hand_over(next: Before) {
    let cluster = cluster(3, 1);
    apply_services(&cluster);
    let mut proxy = start(&cluster);
    let generators = generators(&cluster);
    let mut sessions = sessions(&cluster);
    let mut talk = || sessions.iter_mut().for_each(|session| session.exchange(b"still there?").unwrap());
    talk();
    proxy.terminate(PATIENCE).unwrap();
    hand_over(&cluster, "1h", HANDED_OVER);
    let copies = "table ip kube-proxy-hand-over\ntable ip6 kube-proxy-hand-over\n";
    assert_eq!(tables(&cluster), copies);
    check_listable(&cluster);
    talk();
    // Until upstream comes.
    std::thread::sleep(Duration::from_secs(1));
    talk();
    next.load_with(&cluster, 1);
    for _ in 0..20 {
        for address in [WEB_V4, WEB_V6] {
            let answer = ask(cluster.lab.outside(), Transport::Tcp, (ip(address), 80).into());
            assert_eq!(answer.as_deref(), Ok("pod0"), "{next:?}");
        }
    }
    talk();
    check_load(generators, 10, || format!("{next:?}"));
    assert!(next.is_left(&cluster));
}

#[test]
fn back_to_upstreams_iptables_after_a_hand_over_fails_no_connection() {
    check_hand_over(Before::IptablesLegacy);
    check_hand_over(Before::IptablesNft);
}

#[test]
fn back_to_upstreams_nftables_after_a_hand_over_fails_no_connection() {
    check_hand_over(Before::Nftables);
}

/// A hand-over ends by itself, and what is left of it goes when we are back, or with everything else.
#[test]
fn a_hand_over_ends_by_itself() {
    let cluster = cluster(2, 0);
    apply_services(&cluster);
    let web = SocketAddr::new(ip(WEB_V4), 80);
    let (outside, node) = (cluster.lab.outside(), cluster.lab.node());
    for is_back in [true, false] {
        let mut proxy = start(&cluster);
        proxy.terminate(PATIENCE).unwrap();
        hand_over(&cluster, "2s", HANDED_OVER);
        assert!(wait_until(PATIENCE, || ask(outside, Transport::Tcp, web).is_err()), "it never ends");
        let holds_elements = || {
            let sets = ["set ip kube-proxy-hand-over alive", "map ip6 kube-proxy-hand-over endpoints"];
            let list =
                |set: &str| node.exec("nft", &[&["list"], &set.split(' ').collect::<Vec<_>>()[..]].concat());
            sets.iter().any(|set| list(set).unwrap().contains("elements"))
        };
        assert!(wait_until(PATIENCE, || !holds_elements()), "memory is not given back");
        if is_back {
            let proxy = start(&cluster);
            let is_gone = wait_until(PATIENCE, || !tables(&cluster).contains("hand-over"));
            assert!(is_gone, "{}\n{}", tables(&cluster), proxy.log().join("\n"));
            ask(outside, Transport::Tcp, web).unwrap();
        } else {
            clean_up(&cluster, &[]);
            assert_eq!(tables(&cluster), "");
        }
    }
}

#[test]
fn what_is_not_ours_is_not_handed_over() {
    let nothing = (0, "there is no table of ours");
    let cluster = cluster(1, 0);
    hand_over(&cluster, "1m", nothing);
    Before::Nftables.load(&cluster);
    hand_over(&cluster, "1m", nothing);
    assert!(Before::Nftables.is_left(&cluster) && !tables(&cluster).contains("hand-over"));
    for lease in ["2h", "10ms", "-1s"] {
        hand_over(&cluster, lease, (1, "is not between a second and an hour"));
    }
}

/// What the old rules say no longer counts as soon as they are gone: a flow does not go to an endpoint of long ago.
#[test]
fn endpoints_that_only_the_old_rules_know_get_nothing() {
    for before in [Before::IptablesLegacy, Before::IptablesNft] {
        let cluster = cluster(2, 0);
        before.load(&cluster);
        apply_web(&cluster);
        apply_endpoints(&cluster, &cluster.endpoints(false)[..1], &cluster.endpoints(true)[..1]);
        let _proxy = start(&cluster);
        assert!(wait_until(PATIENCE, || !before.is_left(&cluster)), "{before:?}");
        for _ in 0..20 {
            for address in [WEB_V4, WEB_V6] {
                let answer = ask(cluster.lab.outside(), Transport::Tcp, (ip(address), 80).into());
                assert_eq!(answer.as_deref(), Ok("pod0"), "{before:?}");
            }
        }
    }
}

#[test]
fn cleanup_removes_all_that_any_mode_left_and_nothing_else() {
    let cluster = cluster(1, 0);
    let mut neighbours = Vec::new();
    for before in [Before::IptablesLegacy, Before::IptablesNft] {
        neighbours.push(load_neighbours(&cluster, before));
        before.load(&cluster);
    }
    apply_services(&cluster);
    let mut proxy = start(&cluster);
    proxy.terminate(PATIENCE).unwrap();
    let listed = |cluster: &Cluster| cluster.lab.node().exec("nft", &["list", "tables"]).unwrap();
    assert!(listed(&cluster).contains("kube-proxy"));
    for before in [Before::IptablesLegacy, Before::IptablesNft] {
        before.load(&cluster);
    }
    clean_up(&cluster, &[]);
    assert!(!listed(&cluster).contains("kube-proxy"), "{}", listed(&cluster));
    for (before, neighbours) in [Before::IptablesLegacy, Before::IptablesNft].iter().zip(neighbours) {
        assert_eq!(before.saved(&cluster), neighbours, "{before:?}");
    }
    clean_up(&cluster, &[]);
}

#[test]
fn cleanup_without_permission_says_what_stays_and_fails() {
    let cluster = cluster(1, 0);
    Before::IptablesLegacy.load(&cluster);
    Before::Nftables.load(&cluster);
    let arguments = ["--cleanup"];
    let node = cluster.lab.node();
    let mut cleanup = Proxy::start_with(node, program(), &arguments, CapabilitySet::empty()).unwrap();
    assert_eq!(cleanup.wait(PATIENCE).unwrap().code(), Some(1));
    let logged = |text: &str| cleanup.log().iter().any(|line| line.contains(text));
    let complete =
        wait_until(PATIENCE, || logged("table ip6 kube-proxy") && logged("table ip nat of iptables-legacy"));
    assert!(complete, "{}", cleanup.log().join("\n"));
    assert!(Before::IptablesLegacy.is_left(&cluster) && Before::Nftables.is_left(&cluster));
}

/// Everything works with `CAP_NET_ADMIN` alone, the take-over included.
#[test]
fn net_admin_is_enough() {
    let cluster = cluster(2, 1);
    Before::IptablesLegacy.load(&cluster);
    apply_services(&cluster);
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (node, outside) = (cluster.lab.node(), cluster.lab.outside());
    let proxy = Proxy::start_with(node, program(), &arguments, CapabilitySet::NET_ADMIN).unwrap();
    assert!(wait_until(PATIENCE, || !Before::IptablesLegacy.is_left(&cluster)), "{}", proxy.log().join("\n"));
    for address in [ip(WEB_V4), ip(WEB_V6)] {
        for transport in [Transport::Tcp, Transport::Udp] {
            ask(outside, transport, (address, 80).into()).unwrap();
        }
    }
    ask(outside, Transport::Tcp, (node.ip4(), NODE_PORT).into()).unwrap();
    // Tracked flows of UDP are forgotten, and tampering is noticed.
    let flow = outside.run(|| UdpFlow::open(0, (ip(WEB_V4), 80).into(), REQUEST)).unwrap();
    let first = flow.ask().unwrap().name;
    let other = usize::from(first == cluster.pod_names()[0]);
    let only = other..=other;
    apply_endpoints(&cluster, &cluster.endpoints(false)[only.clone()], &cluster.endpoints(true)[only]);
    let name = cluster.pod_names()[other];
    assert!(wait_until(PATIENCE, || flow.ask().is_ok_and(|reply| reply.name == name)), "still at {first}");
    node.nft("delete table ip kube-proxy").unwrap();
    wait_for(outside, Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok(name));
    check_listable(&cluster);
    assert!(!proxy.log().iter().any(|line| line.contains("ERROR")), "{}", proxy.log().join("\n"));
}

/// Whatever it was started with, it keeps no more than it needs.
#[test]
fn other_capabilities_are_given_up() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let proxy = start(&cluster);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name}")).trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(set), "0000000000001000", "{set} of {}", field("Name"));
        }
        assert_eq!((field("CapInh"), field("CapAmb")), ("0".repeat(16), "0".repeat(16)));
        assert_eq!(field("NoNewPrivs"), "1");
        threads += 1;
    }
    assert!(threads > 2, "the kernel threads are among them");
}
