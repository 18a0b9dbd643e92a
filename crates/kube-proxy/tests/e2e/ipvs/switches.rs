//! Changes of mode under load: no new connection fails, whichever mode comes after which.

use std::net::SocketAddr;
use std::time::Duration;

use lab::Host;
use lab::client::{Load, LoadGenerator, Transport};
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::{Cluster, Flavour, ProxyMode};

use super::{LONG, cluster, start_with, state, wait_until_served};
use crate::support::{NODE_PORT, REQUEST, WEB_V4, WEB_V6, apply_web, check_load, ip, start};

const NFTABLES: ProxyMode = ProxyMode::Nftables;
const IPTABLES: ProxyMode = ProxyMode::Iptables(Flavour::Nft);
const IPVS: ProxyMode = ProxyMode::Ipvs;

#[test]
#[ignore = "needs a kernel with IPVS"]
fn a_change_of_mode_and_back_fails_no_connection() {
    check_changes(&[NFTABLES, IPVS]);
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn fifty_changes_to_and_from_mode_nftables_fail_no_connection() {
    check_changes(&[NFTABLES, IPVS].repeat(25));
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn changes_to_and_from_mode_iptables_fail_no_connection() {
    check_changes(&[IPTABLES, IPVS].repeat(5));
}

/// Through all modes in turn, so that each meets what two others could have left.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn changes_through_all_modes_fail_no_connection() {
    check_changes(&[NFTABLES, IPTABLES, IPVS, IPTABLES, NFTABLES, IPVS]);
}

/// Starts in mode ipvs and goes through these modes.
fn check_changes(modes: &[ProxyMode]) {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_until_served(&cluster, &[WEB_V4, WEB_V6]);
    let generators = load(&cluster);
    for mode in modes {
        proxy.kill().unwrap();
        proxy = start_with(&cluster, &["--proxy-mode", name(*mode)]);
        wait_until_in(&cluster, *mode, &proxy);
    }
    check_load(generators, 20, || proxy.log().join("\n"));
}

fn name(mode: ProxyMode) -> &'static str {
    match mode {
        ProxyMode::Nftables => "nftables",
        ProxyMode::Iptables(_) => "iptables",
        ProxyMode::Ipvs => "ipvs",
        ProxyMode::Ebpf => "ebpf",
        ProxyMode::Userspace => "userspace",
    }
}

/// New connections a second of each generator. In the guest ten times as many take most of its processor, which the program that is
/// started needs.
const RATE: u32 = 4;
/// Between two looks at the node, each of which starts five programs.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// From everywhere, by every kind of address.
fn load(cluster: &Cluster) -> [LoadGenerator; 6] {
    let lab = &cluster.lab;
    let (outside, pod, node) = (lab.outside(), lab.pod(0), lab.node());
    let start = |from: &Host, target: SocketAddr, transport| {
        LoadGenerator::start(from, Load { target, transport, rate: RATE, timeout: REQUEST }).unwrap()
    };
    [
        start(outside, (ip(WEB_V4), 80).into(), Transport::Tcp),
        start(outside, (node.ip6(), NODE_PORT).into(), Transport::Tcp),
        start(outside, (ip(WEB_V6), 80).into(), Transport::Udp),
        start(pod, (ip(WEB_V6), 80).into(), Transport::Tcp),
        start(node, (ip(WEB_V4), 80).into(), Transport::Tcp),
        start(node, (ip(WEB_V6), 80).into(), Transport::Tcp),
    ]
}

/// Waits until what this mode needs is there, and nothing of any other.
#[track_caller]
fn wait_until_in(cluster: &Cluster, mode: ProxyMode, proxy: &Proxy) {
    let node = cluster.lab.node();
    let found = || {
        let chains = ["iptables-nft-save", "ip6tables-nft-save"].map(|save| node.exec(save, &[]).unwrap());
        let chains = chains.map(|saved| saved.contains("KUBE-S"));
        let tables = node.exec("nft", &["list", "tables"]).unwrap();
        let tables = ["ip", "ip6"].map(|family| tables.contains(&format!("table {family} kube-proxy")));
        let has_device = node.exec("ip", &["link", "show", "kube-ipvs0"]).is_ok();
        let has_servers = node.exec("ipvsadm", &["-Sn"]).unwrap().contains("-A");
        (chains, tables, has_device, has_servers)
    };
    let wanted = ([mode == IPTABLES; 2], [mode != IPTABLES; 2], mode == IPVS, mode == IPVS);
    let reached = wait_until(LONG, || {
        let is_there = found() == wanted;
        if !is_there {
            std::thread::sleep(LOOK_PAUSE);
        }
        is_there
    });
    let texts = || (found(), node.exec("ipvsadm", &["-Sn"]).unwrap());
    assert!(reached, "{mode:?}: {:?}\n{}", texts(), proxy.log().join("\n"));
    if mode == IPVS {
        assert!(state(cluster).contains("kube-ipvs0"), "{}", state(cluster));
    }
}
