//! The laboratory itself, under real packets: what other tests conclude from it holds only if these pass.
#![expect(clippy::unwrap_used, reason = "in a test, a failure is a panic; its helpers are no exception")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lab::client::{
    FailureClass, Load, LoadGenerator, Session, Transport, five_sigma, spread, tcp_from, tcp_once, udp_from,
    udp_once,
};
use lab::echo::{EchoServer, Mode};
use lab::proxy::wait_until;
use lab::{Config, Host, IpFamily, Lab};

const FAMILIES: [IpFamily; 2] = IpFamily::ALL;
/// Generous where an answer is expected.
const PATIENT: Duration = Duration::from_secs(5);
/// For what takes several answers.
const LIMIT: Duration = Duration::from_secs(30);
/// Short where none is.
const BRIEF: Duration = Duration::from_millis(300);
const PORT: u16 = 8080;

fn lab(pods: usize, node2_pods: usize) -> Lab {
    Lab::new(&Config { pods, node2_pods, ..Config::default() }).unwrap()
}

/// A server on every host.
fn serve_all(lab: &Lab) -> Vec<EchoServer> {
    lab.hosts()
        .map(|host| EchoServer::start(host, host.name(), &[(PORT, Mode::Line), (PORT, Mode::Udp)]).unwrap())
        .collect()
}

fn service(family: IpFamily) -> SocketAddr {
    match family {
        IpFamily::V4 => "10.96.0.10:80".parse().unwrap(),
        IpFamily::V6 => "[fd00:10:96::10]:80".parse().unwrap(),
    }
}

/// Rules for one Service at port 80 of both protocols, masquerading what comes from outside and what goes back to
/// the pod from which it came.
fn service_rules(endpoints: &[&Host]) -> String {
    let count = endpoints.len();
    FAMILIES
        .into_iter()
        .map(|family| {
            let (word, own) =
                if family == IpFamily::V4 { ("ip", "10.244.0.0/16") } else { ("ip6", "fd00:10:244::/47") };
            let vip = service(family).ip();
            let pods: Vec<String> = endpoints
                .iter()
                .enumerate()
                .map(|(i, pod)| format!("{i} : {} . {PORT}", pod.ip(family)))
                .collect();
            let dnat = ["tcp", "udp"].map(|proto| {
                format!(
                    "{word} daddr {vip} {proto} dport 80 dnat to numgen random mod {count} map {{ {} }}",
                    pods.join(", ")
                )
            });
            let hairpin = endpoints
                .iter()
                .map(|pod| format!("{word} saddr {0} {word} daddr {0} masquerade\n", pod.ip(family)))
                .collect::<Vec<_>>()
                .concat();
            format!(
                "table {word} lab {{
                    chain service {{ {} \n {} \n }}
                    chain prerouting {{ type nat hook prerouting priority dstnat; jump service; }}
                    chain output {{ type nat hook output priority -100; jump service; }}
                    chain postrouting {{ type nat hook postrouting priority srcnat;
                        ct status & dnat == 0 accept
                        {hairpin}
                        {word} saddr != {own} masquerade
                    }}
                }}\n",
                dnat[0], dnat[1]
            )
        })
        .collect::<Vec<_>>()
        .concat()
}

#[test]
fn every_host_reaches_every_other_by_both_families_and_sees_true_addresses() {
    let lab = lab(3, 2);
    let _servers = serve_all(&lab);
    for from in lab.hosts() {
        for to in lab.hosts() {
            let to_pod = lab.pods().iter().chain(lab.node2_pods()).any(|pod| pod.name() == to.name());
            let from_pod = lab.pods().iter().chain(lab.node2_pods()).any(|pod| pod.name() == from.name());
            if (from.name() == "outside" && to_pod) || (to.name() == "outside" && from_pod) {
                continue; // No route by design, see the next test.
            }
            for family in FAMILIES {
                let addr = to.socket(family, PORT);
                let (tcp, udp) = from.run(|| (tcp_once(addr, PATIENT), udp_once(addr, PATIENT)));
                for reply in [tcp, udp] {
                    let reply = reply.unwrap_or_else(|error| panic!("{} -> {addr}: {error}", from.name()));
                    assert_eq!(reply.name, to.name());
                    assert_eq!(reply.client.ip(), from.ip(family), "{} -> {}", from.name(), to.name());
                    assert_eq!(reply.server, addr);
                }
            }
        }
    }
    assert!(lab.check_listable().unwrap().text.is_empty());
}

#[test]
fn outside_reaches_pods_only_if_configured() {
    let closed = lab(1, 0);
    let mut config = Config { pods: 1, node2_pods: 0, ..Config::default() };
    config
        .outside_routes
        .extend(["10.244.0.0/16", "fd00:10:244::/47"].map(|net| net.parse::<IpNet>().unwrap()));
    let open = Lab::new(&config).unwrap();
    let _servers = (serve_all(&closed), serve_all(&open));
    for family in FAMILIES {
        let addr = open.pod(0).socket(family, PORT);
        assert_eq!(
            open.outside().run(|| tcp_once(addr, PATIENT)).unwrap().client.ip(),
            open.outside().ip(family)
        );
        let failure = closed.outside().run(|| tcp_once(addr, BRIEF)).unwrap_err();
        assert_eq!(failure.class(), FailureClass::Unreachable);
    }
}

#[test]
fn a_service_works_from_pod_host_and_outside_and_is_spread_evenly() {
    let lab = lab(2, 1);
    let _servers = serve_all(&lab);
    let endpoints = [lab.pod(0), lab.pod(1), lab.node2_pod(0)];
    lab.node().nft(&service_rules(&endpoints)).unwrap();
    let names = ["pod0", "pod1", "node2-pod0"];
    for family in FAMILIES {
        for client in [lab.pod(0), lab.node(), lab.outside()] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let counts = client
                    .run(|| spread(300, service(family), transport))
                    .unwrap_or_else(|error| panic!("{} {family} {transport:?}: {error}", client.name()));
                five_sigma(&counts, &names).unwrap();
            }
        }
    }
    let listing = lab.check_listable().unwrap();
    assert!(listing.text.contains("table ip6 lab"), "{}", listing.text);
    assert!(listing.json["nftables"].is_array());
}

#[test]
fn masquerade_and_hairpin_show_the_nodes_address() {
    let lab = lab(1, 1);
    let _servers = serve_all(&lab);
    for (endpoint, clients) in [
        // From itself (hairpin) and from outside: masqueraded. From the other pod's node: true address.
        (lab.pod(0), [(lab.pod(0), lab.node()), (lab.outside(), lab.node()), (lab.node(), lab.node())]),
        (lab.node2_pod(0), [(lab.pod(0), lab.pod(0)), (lab.outside(), lab.node()), (lab.node(), lab.node())]),
    ] {
        lab.node().nft(&format!("flush ruleset\n{}", service_rules(&[endpoint]))).unwrap();
        for family in FAMILIES {
            for (client, seen) in clients {
                let (tcp, udp) =
                    client.run(|| (tcp_once(service(family), PATIENT), udp_once(service(family), PATIENT)));
                for reply in [tcp.unwrap(), udp.unwrap()] {
                    assert_eq!(
                        reply.client.ip(),
                        seen.ip(family),
                        "{} to {}",
                        client.name(),
                        endpoint.name()
                    );
                    assert_eq!(reply.server, endpoint.socket(family, PORT));
                }
            }
        }
    }
    lab.check_listable().unwrap();
}

#[test]
fn failures_are_told_apart() {
    let lab = lab(1, 0);
    let _servers = serve_all(&lab);
    let rules = |verdict: &str| {
        format!(
            "flush ruleset; table inet lab {{ chain in {{ type filter hook forward priority 0; {verdict}; }}; }}"
        )
    };
    let classes = |family, patience| {
        lab.pod(0).run(|| {
            let addr = service(family);
            [tcp_once(addr, patience), udp_once(addr, patience)].map(|reply| reply.unwrap_err().class())
        })
    };
    for family in FAMILIES {
        lab.node().nft("flush ruleset").unwrap();
        assert_eq!(classes(family, BRIEF), [FailureClass::TimedOut; 2], "lost at `outside` without rules");
        lab.node().nft(&rules("drop")).unwrap();
        assert_eq!(classes(family, BRIEF), [FailureClass::TimedOut; 2]);
        lab.node().nft(&rules("reject")).unwrap();
        assert_eq!(classes(family, PATIENT), [FailureClass::Refused; 2]);
        // More often than the kernel's default limits on ICMP errors would answer.
        for _ in 0..100 {
            let reply = lab.pod(0).run(|| udp_once(service(family), BRIEF));
            assert_eq!(reply.unwrap_err().class(), FailureClass::Refused);
        }
        lab.node().nft(&rules("reject with icmpx type no-route")).unwrap();
        assert_eq!(classes(family, PATIENT), [FailureClass::Unreachable; 2]);
    }
    let closed = lab.node().socket(IpFamily::V4, 9);
    let failures = lab.pod(0).run(|| [tcp_once(closed, PATIENT), udp_once(closed, PATIENT)]);
    assert_eq!(failures.map(|reply| reply.unwrap_err().class()), [FailureClass::Refused; 2]);
}

#[test]
fn source_ports_can_be_chosen_again_and_again() {
    let lab = lab(1, 0);
    let _servers = serve_all(&lab);
    for family in FAMILIES {
        let addr = lab.pod(0).socket(family, PORT);
        for _ in 0..3 {
            let replies = lab.node().run(|| [tcp_from(5000, addr, PATIENT), udp_from(5001, addr, PATIENT)]);
            assert_eq!(replies.map(|reply| reply.unwrap().client.port()), [5000, 5001]);
        }
    }
    // Nobody answers there, and the limit holds.
    let failure = lab.node().run(|| tcp_from(5002, service(IpFamily::V4), BRIEF)).unwrap_err();
    assert_eq!(failure.class(), FailureClass::TimedOut);
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    let lab = lab(1, 0);
    let _servers = serve_all(&lab);
    let pod = lab.pod(0);
    for (addr, length) in [("10.244.0.200", "32"), ("fd00:10:244::200", "128")] {
        pod.exec("ip", &["addr", "add", &format!("{addr}/{length}"), "dev", "eth0", "nodad"]).unwrap();
        if length == "128" {
            // The kernel makes this route later, and without it packets are lost.
            pod.exec("ip", &["route", "add", "local", addr, "dev", "eth0"]).unwrap();
        }
        lab.node().exec("ip", &["route", "add", addr, "dev", "pod0"]).unwrap();
    }
    for addr in ["10.244.0.200:8080", "[fd00:10:244::200]:8080"] {
        let addr: SocketAddr = addr.parse().unwrap();
        // The client's socket is connected, so that an answer from elsewhere would not be delivered.
        assert_eq!(lab.node().run(|| udp_once(addr, PATIENT)).unwrap().server, addr);
    }
}

#[test]
fn sessions_stay_open_until_the_server_is_dropped() {
    let lab = lab(1, 0);
    let pod = lab.pod(0);
    let server = EchoServer::start(pod, "long", &[(0, Mode::KeepOpen)]).unwrap();
    let addr = pod.socket(IpFamily::V6, server.port(0));
    let mut session = lab.node().run(|| Session::open(addr, PATIENT)).unwrap();
    assert_eq!(session.reply().name, "long");
    session.exchange(b"one\n").unwrap();
    session.exchange(b"two\n").unwrap();
    drop(server);
    session.exchange(b"three\n").unwrap_err();
    // The port is free again as soon as the server is gone.
    EchoServer::start(pod, "next", &[(addr.port(), Mode::KeepOpen)]).unwrap();
    assert_eq!(lab.node().run(|| tcp_once(addr, BRIEF)).unwrap_err().class(), FailureClass::Refused);
}

#[test]
fn a_session_can_send_without_end_to_a_server_that_discards() {
    let lab = lab(1, 0);
    let server = EchoServer::start(lab.pod(0), "sink", &[(0, Mode::Discard)]).unwrap();
    let addr = lab.pod(0).socket(IpFamily::V4, server.port(0));
    let mut session = lab.node().run(|| Session::open(addr, PATIENT)).unwrap();
    assert_eq!(session.reply().name, "sink");
    for _ in 0..100 {
        session.send(&[7; 8192]).unwrap();
    }
    drop(server);
    session.exchange(b"more").unwrap_err();
}

#[test]
fn curl_reads_the_name_from_inside() {
    let lab = lab(1, 0);
    let _server = EchoServer::start(lab.pod(0), "web", &[(80, Mode::Http)]).unwrap();
    let body = lab.node().exec("curl", &["-sS", "http://10.244.0.2/x"]).unwrap();
    assert_eq!(body, "web\n");
    let posted = lab.node().exec("curl", &["-sSi", "-d", "data=1", "http://[fd00:10:244::2]/"]).unwrap();
    assert!(posted.starts_with("HTTP/1.1 200 OK\r\n"), "{posted}");
    assert!(posted.contains("x-echo: name=web client=[fd00:50::1]:"), "{posted}");
    // `command` is for programs that run on; it can be started from any thread.
    let output = lab.node().command("curl").args(["-sS", "http://10.244.0.2/"]).output().unwrap();
    assert_eq!(output.stdout, b"web\n");
    assert!(lab.entrances().contains("pod0         10.244.0.2      fd00:10:244::2     nsenter --net=/proc/"));
}

#[test]
fn the_load_generator_accounts_for_all_connections() {
    let lab = lab(2, 0);
    let _servers = serve_all(&lab);
    lab.node().nft(&service_rules(&[lab.pod(0), lab.pod(1)])).unwrap();
    let load = |family, transport| Load { target: service(family), transport, rate: 500, timeout: PATIENT };
    let generators = [
        LoadGenerator::start(lab.outside(), load(IpFamily::V4, Transport::Tcp)).unwrap(),
        LoadGenerator::start(lab.pod(0), load(IpFamily::V6, Transport::Udp)).unwrap(),
    ];
    std::thread::sleep(Duration::from_secs(2));
    for report in generators.map(LoadGenerator::stop) {
        assert_eq!(report.failed(), 0, "{:?}", report.first_failure);
        assert_eq!(report.started, report.succeeded);
        println!("{:.0} of 500 connections a second", report.achieved_rate());
        assert_eq!(report.latencies_us.len() as u64, report.succeeded);
        assert!(report.latency(500) <= report.latency(990));
        five_sigma(&report.by_server, &["pod0", "pod1"]).unwrap();
    }
    lab.check_listable().unwrap();
}

#[test]
fn the_load_generator_reports_each_failure() {
    let lab = lab(1, 0);
    let server = EchoServer::start(lab.pod(0), "short-lived", &[(PORT, Mode::Line)]).unwrap();
    let target = lab.pod(0).socket(IpFamily::V4, PORT);
    let load = Load { target, transport: Transport::Tcp, rate: 200, timeout: BRIEF };
    let generator = LoadGenerator::start(lab.node(), load).unwrap();
    assert!(wait_until(LIMIT, || generator.snapshot().succeeded >= 20), "{:?}", generator.snapshot());
    drop(server);
    // A connection of which the server knew when it ended is reset.
    let refused = || generator.snapshot().failures.get(&FailureClass::Refused).copied();
    assert!(wait_until(LIMIT, || refused() >= Some(20)), "{:?}", generator.snapshot());
    let report = generator.stop();
    assert_eq!(report.started, report.succeeded + report.failed());
    assert!(report.first_failure.unwrap().after >= Duration::from_millis(90));
    assert_eq!(report.by_server, BTreeMap::from([("short-lived".to_owned(), report.succeeded)]));
}

#[test]
fn a_large_lab_has_all_its_hosts() {
    let start = std::time::SystemTime::now();
    let lab = lab(12, 4);
    println!("19 hosts in {:?}", start.elapsed().unwrap());
    assert_eq!(lab.hosts().count(), 19);
}

#[test]
fn panics_inside_reach_the_caller() {
    let lab = lab(0, 0);
    let panic = std::panic::catch_unwind(|| lab.node().run(|| assert_eq!(1, 2, "inside"))).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("inside"));
    let error = lab.node().nft("nonsense").unwrap_err();
    assert!(error.to_string().contains("nft -f - failed in namespace node (exit status: 1)"), "{error}");
}
