//! What only `iptables` mode has: localhost, rules beside those of others, restarts and flushes.

use std::net::SocketAddr;
use std::time::Duration;

use apiserver::Kind;
use lab::client::Transport;
use lab::proxy::{Proxy, wait_until};
use serde_json::json;
use testkit::cluster::{Cluster, Flavour, ProxyMode};

use crate::support::{
    NODE_PORT, PATIENCE, WEB_V4, WEB_V6, apply_web, ask, cluster_in, ip, listing, program, start, wait_for,
};

/// A cluster for each flavour, and the names of its programs.
fn in_both_flavours(test: impl Fn(Cluster, [&str; 2])) {
    for (flavour, programs) in [
        (Flavour::Nft, ["iptables-nft", "ip6tables-nft"]),
        (Flavour::Legacy, ["iptables-legacy", "ip6tables-legacy"]),
    ] {
        test(cluster_in(ProxyMode::Iptables(flavour), 1, 0), programs);
    }
}

fn targets(cluster: &Cluster) -> [SocketAddr; 4] {
    let node = cluster.lab.node();
    [
        (ip(WEB_V4), 80).into(),
        (ip(WEB_V6), 80).into(),
        (node.ip4(), NODE_PORT).into(),
        (node.ip6(), NODE_PORT).into(),
    ]
}

fn is_served(cluster: &Cluster) -> bool {
    targets(cluster).iter().all(|to| ask(cluster.lab.outside(), Transport::Tcp, *to).is_ok())
}

#[track_caller]
fn wait_until_served(cluster: &Cluster) {
    assert!(wait_until(PATIENCE, || is_served(cluster)), "{}", listing(cluster));
}

fn started_with(cluster: &Cluster, more: &[&str]) -> Proxy {
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Proxy::start(cluster.lab.node(), program(), &arguments).unwrap()
}

/// The node's own processes reach node ports on loopback addresses, unless that is switched off.
#[test]
fn node_ports_on_localhost() {
    in_both_flavours(|cluster, _| {
        let node = cluster.lab.node();
        let loopback = (ip("127.0.0.1"), NODE_PORT).into();
        apply_web(&cluster);
        let mut proxy = start(&cluster);
        for transport in [Transport::Tcp, Transport::Udp] {
            wait_for(node, transport, loopback, &Ok("pod0"));
        }
        assert!(listing(&cluster).contains("-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8"));
        proxy.terminate(PATIENCE).unwrap();
        let _proxy = started_with(&cluster, &["--iptables-localhost-nodeports=false"]);
        let is_left_alone = || ask(node, Transport::Tcp, loopback).is_err();
        assert!(wait_until(PATIENCE, is_left_alone), "{}", listing(&cluster));
        wait_until_served(&cluster);
    });
}

/// A restart takes the rules over as they are, counters included; nothing is written.
#[test]
fn a_restart_writes_nothing() {
    in_both_flavours(|cluster, programs| {
        apply_web(&cluster);
        let mut proxy = start(&cluster);
        wait_until_served(&cluster);
        let nat = || cluster.lab.node().exec(&format!("{}-save", programs[0]), &["-t", "nat", "-c"]).unwrap();
        // Other counters see the proxy's own connections to the API server.
        let is_of_service = |line: &&str| line.contains("default/web");
        let rules = || nat().lines().filter(is_of_service).map(str::to_owned).collect::<Vec<_>>();
        let before = rules();
        assert!(before.iter().any(|line| !line.starts_with("[0:0]")), "{before:?}");
        proxy.kill().unwrap();
        let proxy = start(&cluster);
        let unchanged =
            proxy.log().iter().filter(|line| line.contains("the kernel's rules are right")).count();
        assert_eq!(unchanged, 2, "{}", proxy.log().join("\n"));
        assert_eq!(rules(), before);
    });
}

/// A flushed table is noticed and written again; so is one whose chains were deleted. Chains of others are left alone.
#[test]
fn flushed_tables_come_back() {
    in_both_flavours(|cluster, programs| {
        let node = cluster.lab.node();
        node.exec(programs[0], &["-t", "nat", "-N", "OTHERS"]).unwrap();
        node.exec(programs[0], &["-t", "nat", "-A", "OTHERS", "-j", "RETURN"]).unwrap();
        apply_web(&cluster);
        let _proxy = start(&cluster);
        wait_until_served(&cluster);
        assert!(listing(&cluster).contains("-A OTHERS -j RETURN"));
        for program in programs {
            node.exec(program, &["-t", "nat", "-F"]).unwrap();
        }
        assert!(!is_served(&cluster));
        // It is looked for every 30 s, and then waited for 5 s whether more is flushed.
        assert!(wait_until(Duration::from_mins(1), || is_served(&cluster)), "{}", listing(&cluster));
    });
}

/// A jump that somebody deletes, without which no packet comes to our chains, is noticed like a flush.
#[test]
fn deleted_jumps_come_back() {
    in_both_flavours(|cluster, programs| {
        let node = cluster.lab.node();
        apply_web(&cluster);
        let _proxy = started_with(&cluster, &["--iptables-sync-period=2s"]);
        wait_until_served(&cluster);
        let comment = ["-m", "comment", "--comment", "kubernetes service portals"];
        for program in programs {
            let jump = [&["-t", "nat", "-D", "PREROUTING"], &comment[..], &["-j", "KUBE-SERVICES"]].concat();
            node.exec(program, &jump).unwrap();
        }
        assert!(!is_served(&cluster));
        wait_until_served(&cluster);
    });
}

/// A node whose policy is to forward nothing forwards what is masqueraded, and the answers.
#[test]
fn masqueraded_flows_are_forwarded_whatever_the_policy() {
    in_both_flavours(|cluster, programs| {
        for program in programs {
            cluster.lab.node().exec(program, &["-P", "FORWARD", "DROP"]).unwrap();
        }
        apply_web(&cluster);
        let _proxy = start(&cluster);
        wait_until_served(&cluster);
    });
}

/// Health checks of load balancers are let in, whatever stands behind.
#[test]
fn health_check_ports_are_accepted() {
    in_both_flavours(|cluster, _| {
        apply_web(&cluster);
        let _proxy = start(&cluster);
        wait_until_served(&cluster);
        let rule = "-A KUBE-NODEPORTS -p tcp -m comment --comment \"default/web health check node port\" -m tcp --dport 32123 -j ACCEPT";
        let mut service = cluster.api.get(Kind::Service, "default", "web").unwrap();
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service["spec"]["healthCheckNodePort"] = json!(32123);
        cluster.apply(service.clone()).unwrap();
        let count = || listing(&cluster).matches(rule).count();
        // In both families.
        assert!(wait_until(PATIENCE, || count() == 2), "{}", listing(&cluster));
        service["spec"]["externalTrafficPolicy"] = json!("Cluster");
        service["spec"]["healthCheckNodePort"] = json!(null);
        cluster.apply(service).unwrap();
        assert!(wait_until(PATIENCE, || count() == 0), "{}", listing(&cluster));
        wait_until_served(&cluster);
    });
}
