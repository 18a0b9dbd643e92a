//! What each scheduler of the kernel makes of a client's connections, with real packets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fakes::objects::{self, Port};
use lab::client::{Transport, spread};
use lab::proxy::Proxy;
use testkit::cluster::{Cluster, KEEP_PORT, UDP_PORT};

use super::{Connection, cluster, start_with, state, wait_for_state};
use crate::support::{PATIENCE, ip};

const ADDRESSES: [&str; 2] = ["10.96.0.31", "fd00:10:96::31"];
const PORTS: [Port; 2] = [
    Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None },
    Port { name: "dgram", protocol: "UDP", port: 80, target: UDP_PORT, node_port: None },
];

/// Where connections of one client to one address go that stay open, with three endpoints of equal weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// To each endpoint as many.
    Evenly,
    /// The same up to two for each endpoint; more are refused.
    UntilFull,
    /// All to one.
    ToOne,
    /// By chance, or by the client's port: not all to one.
    AtRandom,
}

struct Expected {
    scheduler: &'static str,
    choice: Choice,
    /// As `ipvsadm -Sn` has them, beside the one that tells our servers from others.
    flags: &'static str,
    /// While an endpoint is drained, new connections find another one.
    survives_drain: bool,
}

const fn expected(scheduler: &'static str, choice: Choice) -> Expected {
    Expected { scheduler, choice, flags: "", survives_drain: true }
}

const SCHEDULERS: [Expected; 14] = [
    expected("rr", Choice::Evenly),
    expected("wrr", Choice::Evenly),
    expected("lc", Choice::Evenly),
    expected("wlc", Choice::Evenly),
    expected("sed", Choice::Evenly),
    expected("nq", Choice::Evenly),
    // These two keep to one endpoint for an address until it has more connections than its weight and another has none.
    expected("lblc", Choice::Evenly),
    expected("lblcr", Choice::Evenly),
    expected("fo", Choice::ToOne),
    expected("ovf", Choice::UntilFull),
    // By the address that the client asked for, and without a way out if its endpoint takes no connections: known-gaps.md.
    Expected { survives_drain: false, ..expected("dh", Choice::ToOne) },
    Expected { flags: "sh-fallback", ..expected("sh", Choice::ToOne) },
    Expected { flags: "mh-fallback,mh-port", ..expected("mh", Choice::AtRandom) },
    expected("twos", Choice::AtRandom),
];

fn apply(cluster: &Cluster, endpoints: &[usize]) {
    cluster.apply(objects::service("scheduled", &ADDRESSES.map(ip), &PORTS)).unwrap();
    for (suffix, v6) in [("v4", false), ("v6", true)] {
        let all = cluster.endpoints(v6);
        let chosen: Vec<_> = endpoints.iter().map(|&idx| all[idx].clone()).collect();
        cluster.apply(objects::slice("scheduled", suffix, &PORTS, &chosen)).unwrap();
    }
}

fn targets() -> [SocketAddr; 2] {
    ADDRESSES.map(|address| (ip(address), 80).into())
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn every_scheduler_does_what_its_name_says() {
    let cluster = cluster(2, 1);
    apply(&cluster, &[0, 1, 2]);
    for expected in &SCHEDULERS {
        eprintln!("{}", expected.scheduler);
        let proxy = start_with(&cluster, &["--ipvs-scheduler", expected.scheduler]);
        check_settings(&cluster, expected);
        let mut connections: Vec<_> =
            targets().into_iter().flat_map(|to| check_choice(&cluster, expected, to)).collect();
        check_datagrams(&cluster, expected);
        if expected.survives_drain && expected.choice != Choice::UntilFull {
            check_drain(&cluster, expected);
        }
        for connection in &mut connections {
            connection.exchange().unwrap_or_else(|error| panic!("{}: cut: {error}", expected.scheduler));
        }
        drop(connections);
        give_back(&cluster, proxy);
    }
}

fn check_settings(cluster: &Cluster, expected: &Expected) {
    let state = state(cluster);
    let servers: Vec<&str> = state.lines().filter(|line| line.starts_with("-A")).collect();
    assert_eq!(servers.len(), 4, "{state}");
    for server in servers {
        let scheduler = format!("-s {} ", expected.scheduler);
        assert!(server.contains(&scheduler) && server.contains(expected.flags), "{server}");
    }
}

/// How often each endpoint was chosen.
fn counts(connections: &[Connection]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for connection in connections {
        *counts.entry(connection.server.as_str()).or_default() += 1;
    }
    counts
}

/// Opens connections, which go where they should.
fn check_choice(cluster: &Cluster, expected: &Expected, to: SocketAddr) -> Vec<Connection> {
    let outside = cluster.lab.outside();
    // Of three endpoints, all 24 go to one by chance once in 10^11 runs.
    let n = if expected.choice == Choice::AtRandom { 24 } else { 6 };
    let connections: Vec<_> = (0..n).map(|_| Connection::open(outside, to)).collect();
    let counts = counts(&connections);
    let each: Vec<usize> = counts.values().copied().collect();
    let right = match expected.choice {
        Choice::Evenly | Choice::UntilFull => each == [2, 2, 2],
        Choice::ToOne => each == [6],
        Choice::AtRandom => each.len() > 1,
    };
    assert!(right, "{} to {to}: {counts:?}", expected.scheduler);
    if expected.choice == Choice::UntilFull {
        let refused = Connection::try_open(outside, to).map(drop).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{}", expected.scheduler);
    }
    connections
}

/// Datagrams from new ports are all answered, by one endpoint if that is how it chooses.
fn check_datagrams(cluster: &Cluster, expected: &Expected) {
    for to in targets() {
        let counts = cluster.lab.outside().run(|| spread(12, to, Transport::Udp));
        let counts = counts.unwrap_or_else(|error| panic!("{} to {to}: {error}", expected.scheduler));
        assert_eq!(counts.values().sum::<u64>(), 12);
        assert!(
            expected.choice != Choice::ToOne || counts.len() == 1,
            "{} to {to}: {counts:?}",
            expected.scheduler
        );
    }
}

/// New connections do not go to the endpoint that the first one would.
fn check_drain(cluster: &Cluster, expected: &Expected) {
    let outside = cluster.lab.outside();
    let first = Connection::open(outside, targets()[0]);
    let gone = cluster.pod_names().iter().position(|name| *name == first.server).unwrap();
    let left: Vec<usize> = (0..3).filter(|idx| *idx != gone).collect();
    apply(cluster, &left);
    let endpoints = [false, true].map(|v6| cluster.endpoints(v6)[gone].ip);
    wait_for_state(cluster, PATIENCE, |state| {
        let reals = endpoints.map(|ip| SocketAddr::new(ip, KEEP_PORT).to_string());
        reals.iter().all(|real| {
            let lines = state.lines().filter(|line| line.contains(real.as_str()));
            lines.clone().all(|line| line.ends_with("-w 0"))
        })
    });
    for to in targets() {
        for _ in 0..6 {
            let connection = Connection::try_open(outside, to);
            let connection =
                connection.unwrap_or_else(|error| panic!("{} to {to}: {error}", expected.scheduler));
            assert_ne!(connection.server, first.server, "{} to {to}", expected.scheduler);
        }
    }
}

/// All endpoints serve again, and nothing is left for the next scheduler to count.
fn give_back(cluster: &Cluster, mut proxy: Proxy) {
    apply(cluster, &[0, 1, 2]);
    wait_for_state(cluster, PATIENCE, |state| state.matches("-w 1").count() == 12 && !state.contains("-w 0"));
    proxy.kill().unwrap();
    cluster.lab.node().exec("ipvsadm", &["-C"]).unwrap();
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn an_unknown_scheduler_ends_the_program_and_names_those_that_work() {
    let cluster = cluster(1, 0);
    let mut proxy = start_with(&cluster, &["--ipvs-scheduler", "roundrobin"]);
    assert_eq!(proxy.wait(PATIENCE).unwrap().code(), Some(1));
    let log = proxy.log().join("\n");
    assert!(log.contains("no scheduler roundrobin") && log.contains("it has rr, wrr, lc, wlc"), "{log}");
}
