//! Mode userspace: workers, and what becomes of flows when workers or their agent are gone.

mod asking;
mod carriage;
mod memory;
mod resilience;
mod tracing;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use apiserver::Kind;
use fakes::objects::{self, Endpoint, Port};
use lab::Host;
use lab::client::{Load, LoadGenerator, Reply, Transport, ask_once, udp_from};
use lab::proxy::{Proxy, wait_until};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testkit::cluster::{Cluster, Flavour, KEEP_PORT, LINE_PORT, NODE, ProxyMode, UDP_PORT};

use crate::support::{
    PATIENCE, REQUEST, WEB_PORTS, WEB_V4, WEB_V6, apply_endpoints, apply_web, check_listable, check_load,
    clean_up, cluster_in, ip, listing, program, start, told,
};

fn cluster(pods: usize, node2_pods: usize) -> Cluster {
    cluster_in(ProxyMode::Userspace, pods, node2_pods)
}

fn own_ip(host: &Host, v6: bool) -> IpAddr {
    if v6 { host.ip6().into() } else { host.ip4().into() }
}

fn web(v6: bool) -> SocketAddr {
    (ip(if v6 { WEB_V6 } else { WEB_V4 }), 80).into()
}

fn ask(from: &Host, transport: Transport, to: SocketAddr) -> Reply {
    let answer = from.run(|| ask_once(transport, to, REQUEST));
    answer.unwrap_or_else(|failure| panic!("{transport:?} to {to}: {failure}"))
}

/// Waits until a worker carries the Service's flows of both families, or until none does: a pod's address is seen only then. The
/// node's is seen without a worker too, when a pod meets itself; so it has to be seen some times.
#[track_caller]
fn wait_for_capture(cluster: &Cluster, captured: bool) {
    let (pod, node) = (cluster.lab.pod(1), cluster.lab.node());
    for v6 in [false, true] {
        let seen = own_ip(if captured { node } else { pod }, v6);
        let is_seen = || {
            let answer = pod.run(|| ask_once(Transport::Tcp, web(v6), REQUEST));
            answer.is_ok_and(|reply| reply.client.ip() == seen)
        };
        let is_so = || (0..if captured { 12 } else { 1 }).all(|_| is_seen());
        assert!(wait_until(PATIENCE, is_so), "captured: {captured}, {}", web(v6));
    }
}

/// The workers of a proxy, of any age.
fn workers(proxy: &Proxy) -> Vec<i32> {
    let children = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap().flat_map(|task| {
        std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default().into_bytes()
    });
    let children = String::from_utf8(children.collect()).unwrap();
    // In mode iptables it runs other programs now and then.
    let is_worker = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == b"proxy-worker")
    };
    children.split_whitespace().map(|pid| pid.parse().unwrap()).filter(is_worker).collect()
}

/// Kills them, and waits until they are dead: until then they can accept a connection, which ends with them.
fn kill_all(pids: &[i32]) {
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    let is_dead = |pid: &i32| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        threads == 0 || threads == 1 && status.contains("\nState:\tZ")
    };
    assert!(wait_until(PATIENCE, || pids.iter().all(is_dead)), "{pids:?} live on");
}

#[test]
fn flows_go_through_a_worker_each_to_the_next_endpoint() {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let all: BTreeSet<&str> = cluster.pod_names().into_iter().collect();
    for (from, v6, transport) in [
        (cluster.lab.pod(0), false, Transport::Tcp),
        (cluster.lab.outside(), true, Transport::Tcp),
        (cluster.lab.pod(1), true, Transport::Udp),
        (cluster.lab.node(), false, Transport::Udp),
    ] {
        let replies: Vec<Reply> = (0..8).map(|_| ask(from, transport, web(v6))).collect();
        for reply in &replies {
            assert_eq!(reply.client.ip(), own_ip(cluster.lab.node(), v6), "the endpoint sees the node");
        }
        // One after the other: each is met within four.
        for round in replies.chunks(4) {
            assert_eq!(round.iter().map(|reply| &*reply.name).collect::<BTreeSet<_>>(), all);
        }
    }
    check_listable(&cluster);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_the_client_notices_nothing() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let (mut v4, mut v6) = (cluster.endpoints(false), cluster.endpoints(true));
    // Nobody listens there: the node itself refuses.
    v4.insert(0, Endpoint::ready(own_ip(cluster.lab.node(), false), NODE));
    v6.insert(0, Endpoint::ready(own_ip(cluster.lab.node(), true), NODE));
    apply_endpoints(&cluster, &v4, &v6);
    let listing = || check_listable(&cluster);
    let added = own_ip(cluster.lab.node(), true).to_string();
    assert!(wait_until(PATIENCE, || listing().contains(&format!("{added} . "))), "{}", listing());
    for v6 in [false, true] {
        let met: BTreeSet<String> =
            (0..12).map(|_| ask(cluster.lab.outside(), Transport::Tcp, web(v6)).name).collect();
        assert_eq!(met.len(), 2);
    }
}

/// Kills an agent with its workers, which it can't start again in between.
fn kill_with_workers(proxy: &mut Proxy) {
    let workers = workers(proxy);
    kill(Pid::from_raw(i32::try_from(proxy.pid()).unwrap()), Signal::SIGSTOP).unwrap();
    kill_all(&workers);
    proxy.kill().unwrap();
}

/// Waits until Events tell of objects that can't be used as they are, each in such words.
#[track_caller]
fn wait_for_notes(cluster: &Cluster, notes: &[&str]) {
    let events = || cluster.api.list(Kind::Event);
    let says = |event: &Value, what: &str| {
        event["reason"] == "InvalidObject" && event["note"].as_str().is_some_and(|note| note.contains(what))
    };
    let is_told = |what: &&str| events().iter().any(|event| says(event, what));
    assert!(wait_until(PATIENCE, || notes.iter().all(is_told)), "{:?}", events());
}

/// A pod that answers each request of HTTP with its number.
fn serve_http(pod: &Host, n: usize) {
    let listener = pod.run(|| TcpListener::bind(("::", HTTP_PORT))).unwrap();
    let serve = move |stream: TcpStream| {
        while read_head(&stream).is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-pod: {n}\r\n\r\n");
            (&stream).write_all(answer.as_bytes()).unwrap();
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || serve(stream));
        }
    });
}

const HTTP_PORT: u16 = 8090;

/// Up to the empty line; `None` at the end of the connection.
fn read_head(mut stream: &TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    String::from_utf8(head).ok()
}

#[test]
fn requests_of_one_connection_go_each_to_the_next_endpoint() {
    let cluster = cluster(3, 0);
    for n in 0..3 {
        serve_http(cluster.lab.pod(n), n);
    }
    let port = Port { name: "web", protocol: "TCP", port: 80, target: HTTP_PORT, node_port: None };
    let mut service = objects::service("requests", &[ip("10.96.0.21")], &[port]);
    service["spec"]["ports"][0]["appProtocol"] = "http".into();
    cluster.apply(service).unwrap();
    cluster.apply(objects::slice("requests", "v4", &[port], &cluster.endpoints(false))).unwrap();
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let to: SocketAddr = (ip("10.96.0.21"), 80).into();
    let stream = cluster.lab.outside().run(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = (0..9).map(|_| {
        (&stream).write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        read_head(&stream).expect("an answer")
    });
    let all: BTreeSet<String> = (0..3).map(|n| format!("x-pod: {n}")).collect();
    for _ in 0..3 {
        let pod =
            |answer: String| answer.lines().find(|line| line.starts_with("x-pod: ")).unwrap().to_owned();
        let met = answers.by_ref().take(3).map(pod).collect();
        assert_eq!(all, met);
    }
}

/// One connection is held open, and one side of it closed, while endpoints change and the agent restarts.
#[test]
fn connections_outlive_changes_and_the_agent() {
    let cluster = cluster(2, 0);
    let port = Port { name: "keep", protocol: "TCP", port: 80, target: KEEP_PORT, node_port: None };
    cluster.apply(objects::service("keep", &[ip("10.96.0.20")], &[port])).unwrap();
    cluster.apply(objects::slice("keep", "v4", &[port], &cluster.endpoints(false)[..1])).unwrap();
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let to: SocketAddr = (ip("10.96.0.20"), 80).into();
    let stream = cluster.lab.outside().run(|| TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let line = |wanted: &str| {
        let mut found = Vec::new();
        while found.last() != Some(&b'\n') {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).unwrap();
            found.extend(byte);
        }
        let found = String::from_utf8(found).unwrap();
        assert!(found.contains(wanted), "{found}");
    };
    line("name=");
    cluster.apply(objects::slice("keep", "v4", &[port], &cluster.endpoints(false)[1..])).unwrap();
    proxy.terminate(PATIENCE).unwrap();
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    (&stream).write_all(b"still there?\n").unwrap();
    line("still there?");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&stream).read_to_end(&mut Vec::new()).unwrap(), 0, "the end is told both ways");
}

/// A connection that is made while there is no worker waits for the next one.
#[test]
fn new_connections_wait_for_the_next_worker() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    for _ in 0..3 {
        let before = workers(&proxy);
        assert_eq!(before.len(), 2, "one for each family");
        kill_all(&before);
        for v6 in [false, true] {
            let reply = ask(cluster.lab.pod(1), Transport::Tcp, web(v6));
            assert_eq!(reply.client.ip(), own_ip(cluster.lab.node(), v6), "it goes through a worker");
        }
        let others = || {
            let now = workers(&proxy);
            now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
        };
        assert!(wait_until(PATIENCE, others), "{:?} are not others than {before:?}", workers(&proxy));
    }
}

#[test]
fn workers_that_die_again_and_again_are_given_up() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    check_given_up(&cluster);
}

/// A Service that asks for workers goes by the rules of mode nftables then.
#[test]
fn a_service_that_asks_is_served_when_workers_are_given_up() {
    let cluster = cluster_in(ProxyMode::Nftables, 2, 0).proxying();
    apply_web(&cluster);
    let web = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    cluster.apply(objects::proxied(web, "random")).unwrap();
    check_given_up(&cluster);
}

/// Service `web` goes through workers at first, and by rules when these have died for often enough.
fn check_given_up(cluster: &Cluster) {
    let proxy = start(cluster);
    wait_for_capture(cluster, true);
    let given_up = |proxy: &Proxy| {
        proxy.log().iter().filter(|line| line.contains("workers die again and again")).count() >= 2
    };
    let killed = || {
        // One may have ended by itself meanwhile.
        for pid in workers(&proxy) {
            assert!(matches!(kill(Pid::from_raw(pid), Signal::SIGKILL), Ok(()) | Err(Errno::ESRCH)));
        }
        given_up(&proxy)
    };
    assert!(wait_until(PATIENCE * 2, killed), "{}", proxy.log().join("\n"));
    wait_for_capture(cluster, false);
    check_listable(cluster);
}

/// Restarts in both ways under new connections all the time: none fails, whether it is carried by a worker of before, by one
/// of after, or goes by the rules in between.
#[test]
fn restarts_of_the_agent_fail_no_connection() {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let load = |transport, v6| Load { target: web(v6), transport, rate: 100, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load(Transport::Tcp, false)).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load(Transport::Tcp, true)).unwrap(),
    ];
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        if round % 2 == 0 {
            assert_eq!(proxy.terminate(PATIENCE).unwrap().code(), Some(0));
        } else {
            proxy.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        proxy = start(&cluster);
    }
    let enough = || generators.iter().all(|generator| generator.snapshot().succeeded > 200);
    assert!(wait_until(PATIENCE, enough), "too few connections");
    check_load(generators, 200, || proxy.log().join("\n"));
}

/// A flow that is with a worker is not stale when its Service changes: the kernel goes on telling it from the next one of the same
/// client, which may be to another Service.
#[test]
fn a_udp_client_of_two_services_is_answered_by_each() {
    let cluster = cluster(2, 0);
    let port = Port { name: "dgram", protocol: "UDP", port: 53, target: UDP_PORT, node_port: None };
    let (v4, names) = (cluster.endpoints(false), cluster.pod_names());
    let (one, other) = (ip("10.96.0.31"), ip("10.96.0.32"));
    for (name, address, endpoints) in [("one", one, &v4[..1]), ("other", other, &v4[1..])] {
        cluster.apply(objects::service(name, &[address], &[port])).unwrap();
        cluster.apply(objects::slice(name, "v4", &[port], endpoints)).unwrap();
    }
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let ask =
        |address| cluster.lab.outside().run(|| udp_from(40_053, (address, 53).into(), REQUEST)).unwrap();
    assert_eq!(ask(one).name, names[0]);
    // Stale flows are looked for after each change, a second later at most.
    for endpoints in [&v4[..], &v4[..1]] {
        cluster.apply(objects::slice("one", "v4", &[port], endpoints)).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
    }
    assert_eq!(ask(other).name, names[1]);
    assert_eq!(ask(one).name, names[0]);
}

/// A Service goes through a worker for as long as it asks for it, and no other does; no connection fails when that changes.
#[test]
fn a_service_goes_through_a_worker_for_as_long_as_it_asks() {
    check_that_asks(ProxyMode::Nftables);
}

#[test]
fn a_service_goes_through_a_worker_for_as_long_as_it_asks_beside_iptables_nft() {
    check_that_asks(ProxyMode::Iptables(Flavour::Nft));
}

#[test]
fn a_service_goes_through_a_worker_for_as_long_as_it_asks_beside_iptables_legacy() {
    check_that_asks(ProxyMode::Iptables(Flavour::Legacy));
}

fn check_that_asks(mode: ProxyMode) {
    let cluster = cluster_in(mode, 3, 1).proxying();
    apply_web(&cluster);
    let port = Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: None };
    let plain = ip("10.96.0.40");
    cluster.apply(objects::service("plain", &[plain], &[port])).unwrap();
    cluster.apply(objects::slice("plain", "v4", &[port], &cluster.endpoints(false)[..1])).unwrap();
    let proxy = start(&cluster);
    wait_for_capture(&cluster, false);
    assert!(workers(&proxy).is_empty(), "nobody asks");
    let load = |transport, v6| Load { target: web(v6), transport, rate: 100, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load(Transport::Tcp, false)).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load(Transport::Tcp, true)).unwrap(),
    ];
    let web_service = || objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    for _ in 0..2 {
        cluster.apply(objects::proxied(web_service(), "maglev")).unwrap();
        wait_for_capture(&cluster, true);
        let ask_web = || ask(cluster.lab.pod(1), Transport::Tcp, web(false)).name;
        let met: BTreeSet<String> = (0..8).map(|_| ask_web()).collect();
        assert_eq!(met.len(), 1, "by Maglev's table a client has one endpoint");
        let reply = ask(cluster.lab.pod(1), Transport::Tcp, (plain, 80).into());
        assert_eq!(reply.client.ip(), own_ip(cluster.lab.pod(1), false), "it did not ask");
        cluster.apply(web_service()).unwrap();
        wait_for_capture(&cluster, false);
    }
    check_load(generators, 0, || proxy.log().join("\n"));
    listing(&cluster);
}

/// Tables of nftables that are ours, or mode iptables' beside its rules.
fn has_table(cluster: &Cluster, name: &str) -> bool {
    let tables = cluster.lab.node().exec("nft", &["list", "tables"]).unwrap();
    ["ip", "ip6"].iter().any(|family| tables.lines().any(|line| line == format!("table {family} {name}")))
}

const WORKERS_TABLE: &str = "kube-proxy-workers";

#[track_caller]
fn wait_until_without_table(cluster: &Cluster, proxy: &Proxy) {
    let is_gone = || !has_table(cluster, WORKERS_TABLE);
    assert!(wait_until(PATIENCE, is_gone), "{}", proxy.log().join("\n"));
}

fn apply_asking_web(cluster: &Cluster) {
    apply_web(cluster);
    let web = objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS);
    cluster.apply(objects::proxied(web, "random")).unwrap();
}

/// Beside iptables' rules a table of nftables hands flows over: it lists cleanly, is made anew if somebody deletes it, and goes with the
/// mode, without a connection that fails.
#[test]
fn the_table_beside_iptables_is_repaired_and_goes_with_the_mode() {
    let cluster = cluster_in(ProxyMode::Iptables(Flavour::Nft), 3, 1).proxying();
    apply_asking_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    assert!(has_table(&cluster, WORKERS_TABLE) && !has_table(&cluster, "kube-proxy"));
    let nft = |arguments: &[&str]| cluster.lab.node().exec("nft", arguments).unwrap();
    nft(&["-j", "list", "table", "ip6", WORKERS_TABLE]);
    nft(&["delete", "table", "ip", WORKERS_TABLE]);
    wait_for_capture(&cluster, true);
    let checked = told(cluster.lab.node(), &["check"]);
    assert!(!checked.contains("default/web"), "{checked}");
    let load = |transport, v6| Load { target: web(v6), transport, rate: 50, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load(Transport::Tcp, false)).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load(Transport::Tcp, true)).unwrap(),
    ];
    proxy.terminate(PATIENCE).unwrap();
    let cluster = cluster.in_mode(ProxyMode::Nftables).unwrap();
    proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    wait_until_without_table(&cluster, &proxy);
    proxy.terminate(PATIENCE).unwrap();
    let cluster = cluster.in_mode(ProxyMode::Iptables(Flavour::Legacy)).unwrap();
    proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let is_alone = || has_table(&cluster, WORKERS_TABLE) && !has_table(&cluster, "kube-proxy");
    assert!(wait_until(PATIENCE, is_alone), "{}", proxy.log().join("\n"));
    check_load(generators, 0, || proxy.log().join("\n"));
    proxy.terminate(PATIENCE).unwrap();
    clean_up(&cluster, &[]);
    assert!(!has_table(&cluster, WORKERS_TABLE));
}

/// What is killed leaves a table that does nothing any more, and iptables' rules go on; it is removed where nobody may ask.
#[test]
fn iptables_goes_on_alone_when_everything_is_killed() {
    let cluster = cluster_in(ProxyMode::Iptables(Flavour::Legacy), 3, 1).proxying();
    apply_asking_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    kill_with_workers(&mut proxy);
    wait_for_capture(&cluster, false);
    assert!(has_table(&cluster, WORKERS_TABLE));
    let arguments = cluster.arguments();
    let arguments: Vec<&str> =
        arguments.iter().map(|argument| &**argument).filter(|argument| *argument != ASK).collect();
    let proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    wait_until_without_table(&cluster, &proxy);
    wait_for_capture(&cluster, false);
}

const ASK: &str = "--service-proxying-annotated";

/// From mode nftables and back: the table stays, and flows are handed over or not.
#[test]
fn a_change_of_mode_fails_no_connection() {
    let cluster = cluster_in(ProxyMode::Nftables, 3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, false);
    let load = |transport, v6| Load { target: web(v6), transport, rate: 100, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load(Transport::Tcp, false)).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load(Transport::Tcp, true)).unwrap(),
    ];
    proxy.terminate(PATIENCE).unwrap();
    let cluster = cluster.in_mode(ProxyMode::Userspace).unwrap();
    proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    proxy.terminate(PATIENCE).unwrap();
    let cluster = cluster.in_mode(ProxyMode::Nftables).unwrap();
    let proxy = start(&cluster);
    wait_for_capture(&cluster, false);
    check_load(generators, 0, || proxy.log().join("\n"));
    let listing = check_listable(&cluster);
    assert!(!listing.contains("proxies"), "{listing}");
}

/// Nobody is left to do anything: what was handed over to workers goes to endpoints by the rules as soon as the lease is over.
#[test]
fn the_rules_go_on_alone_when_everything_is_killed() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    kill_with_workers(&mut proxy);
    wait_for_capture(&cluster, false);
    check_listable(&cluster);
}

#[test]
fn workers_have_no_privileges() {
    let cluster = cluster(1, 0);
    let proxy = start(&cluster);
    for pid in workers(&proxy) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        // The bounding set, which the agent may not narrow any more, gives nothing without new privileges.
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = status.lines().find(|line| line.starts_with(set)).unwrap();
            assert!(line.ends_with("\t0000000000000000"), "{line}");
        }
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    }
}

/// A client of UDP keeps its endpoint, until that is gone; then it has another at once.
#[test]
fn a_udp_client_is_moved_when_its_endpoint_goes() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    wait_for_capture(&cluster, true);
    let socket = cluster.lab.outside().run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(REQUEST)).unwrap();
    socket.connect(web(false)).unwrap();
    let asked = || {
        let mut answer = [0; 512];
        socket.send(b"who?").unwrap();
        let len = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..len]).into_owned())
    };
    let names = cluster.pod_names();
    let named = |answer: &str| names.iter().position(|name| answer.contains(name));
    let first = named(&asked().unwrap()).unwrap();
    for _ in 0..5 {
        assert_eq!(named(&asked().unwrap()), Some(first));
    }
    let other = 1 - first;
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    apply_endpoints(&cluster, &v4[other..=other], &v6[other..=other]);
    let moved = || asked().and_then(|answer| named(&answer)) == Some(other);
    assert!(wait_until(PATIENCE, moved), "the client stays with {}", names[first]);
}
