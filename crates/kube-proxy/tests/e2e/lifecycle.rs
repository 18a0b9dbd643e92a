//! Starts, ends and accidents.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use fakes::objects;
use lab::client::{Load, LoadGenerator, Transport};
use lab::commits::Generation;
use lab::proxy::{Proxy, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::cluster::NODE;

use crate::support::{
    PATIENCE, REQUEST, WEB_V4, WEB_V6, apply_endpoints, apply_web, check_listable, check_load, cluster, ip,
    program, start, wait_for,
};

/// Ten kills and restarts under 500 new connections a second: none fails, and nothing is written, because nothing
/// changed.
#[test]
fn kills_and_restarts_fail_no_connection_and_write_nothing() {
    let cluster = cluster(3, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_any(&cluster);
    let generation = Generation::open(cluster.lab.node()).unwrap();
    let before = generation.read().unwrap();
    let load = |transport, address| Load { target: address, transport, rate: 250, timeout: REQUEST };
    let generators = [
        LoadGenerator::start(cluster.lab.outside(), load(Transport::Tcp, (ip(WEB_V4), 80).into())).unwrap(),
        LoadGenerator::start(cluster.lab.pod(0), load(Transport::Tcp, (ip(WEB_V6), 80).into())).unwrap(),
    ];
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        proxy.kill().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        proxy = start(&cluster);
    }
    assert_eq!(generation.read().unwrap(), before, "no transaction was committed");
    check_load(generators, 500, || proxy.log().join("\n"));
    check_listable(&cluster);
}

/// A proxy that is killed at any moment leaves a table that the next one brings right.
#[test]
fn fifty_starts_and_kills_in_a_row_converge() {
    let cluster = cluster(3, 0);
    apply_web(&cluster);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    for round in 0..50u64 {
        let mut proxy = cluster.start_proxy(program()).unwrap();
        let which = usize::try_from(round % 3).unwrap();
        apply_endpoints(&cluster, &v4[which..=which], &v6[which..=which]);
        // From before it has begun to after it has finished.
        std::thread::sleep(Duration::from_millis(round * 2));
        proxy.kill().unwrap();
    }
    let mut proxy = start(&cluster);
    for address in [ip(WEB_V4), ip(WEB_V6)] {
        wait_for(cluster.lab.outside(), Transport::Tcp, (address, 80).into(), &Ok("pod1"));
    }
    let listed = check_listable(&cluster);
    proxy.kill().unwrap();
    let generation = Generation::open(cluster.lab.node()).unwrap();
    let before = generation.read().unwrap();
    let _proxy = start(&cluster);
    assert_eq!(generation.read().unwrap(), before, "nothing was left to do after:\n{listed}");
}

/// What changed while the proxy was away is in place after its start, and what did not change was never away.
#[test]
fn a_restart_catches_up() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let (v4, v6) = (cluster.endpoints(false), cluster.endpoints(true));
    apply_endpoints(&cluster, &v4[..1], &v6[..1]);
    let mut proxy = start(&cluster);
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    proxy.kill().unwrap();
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod0"));
    apply_endpoints(&cluster, &v4[1..], &v6[1..]);
    cluster.apply(objects::service("new", &[ip("10.96.0.30")], &crate::support::WEB_PORTS[..0])).unwrap();
    let _proxy = start(&cluster);
    wait_for(cluster.lab.outside(), Transport::Tcp, (ip(WEB_V4), 80).into(), &Ok("pod1"));
    check_listable(&cluster);
}

#[test]
fn sigterm_ends_it_with_0_and_leaves_the_rules() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    wait_for_any(&cluster);
    let status = proxy.terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0));
    wait_for_any(&cluster);
    check_listable(&cluster);
}

/// In a container it is process 1, for which the kernel ignores signals that nobody handles.
#[test]
fn sigterm_ends_it_as_process_1_too() {
    let cluster = cluster(1, 0);
    let proxy = program().to_string_lossy().into_owned();
    let arguments = cluster.arguments();
    let mut unshare = vec!["--pid", "--fork", "--kill-child", proxy.as_str()];
    unshare.extend(arguments.iter().map(String::as_str));
    let mut parent = Proxy::start(cluster.lab.node(), "unshare".as_ref(), &unshare).unwrap();
    assert!(parent.wait_for_log("the kernel's rules", PATIENCE), "{:?}", parent.log());
    let children = format!("/proc/{0}/task/{0}/children", parent.pid());
    let child = std::fs::read_to_string(&children).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap();
    let inner = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert!(inner.ends_with("\t1"), "it is process 1 of its namespace: {inner}");
    kill(Pid::from_raw(child.trim().parse().unwrap()), Signal::SIGTERM).unwrap();
    // Its parent ends with its exit code.
    assert_eq!(parent.wait(PATIENCE).unwrap().code(), Some(0));
}

/// The API server may come up after the proxy.
#[test]
fn it_waits_for_the_api_server() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.api.faults().refuse_connections(true);
    let mut proxy = cluster.start_proxy(program()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(proxy.is_running(), "{:?}", proxy.log());
    cluster.api.faults().refuse_connections(false);
    wait_for_any(&cluster);
}

/// A service manager hears of the start, of the rules, of life and of the end, in this order, and nothing too early.
#[test]
fn a_service_manager_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    cluster.api.faults().refuse_connections(true);
    let proxy = program().to_string_lossy().into_owned();
    let environment = [format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=200000".to_owned(), proxy];
    let arguments = cluster.arguments();
    let arguments: Vec<&str> = environment.iter().chain(&arguments).map(String::as_str).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), "env".as_ref(), &arguments).unwrap();

    assert!(heard(&manager).starts_with("STATUS=waiting for"), "{:?}", proxy.log());
    std::thread::sleep(Duration::from_millis(300));
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut [0]).is_err(), "it is not ready without an API server");
    manager.set_nonblocking(false).unwrap();
    cluster.api.faults().refuse_connections(false);
    assert_eq!(heard(&manager), "READY=1\nSTATUS=serving\n");
    wait_for_any(&cluster);
    assert_eq!([heard(&manager), heard(&manager)], ["WATCHDOG=1\n", "WATCHDOG=1\n"]);
    assert_eq!(proxy.terminate(PATIENCE).unwrap().code(), Some(0));
    let last = std::iter::repeat_with(|| heard(&manager)).find(|text| text != "WATCHDOG=1\n");
    assert_eq!(last.unwrap(), "STOPPING=1\n");
}

fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let n = manager.recv(&mut buffer).expect("the program tells its state in time");
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

#[test]
fn the_node_name_is_taken_in_lower_case() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let mut arguments = cluster.arguments();
    let at = arguments.iter().position(|argument| argument == NODE).unwrap();
    arguments[at] = NODE.to_uppercase();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    // Node ports depend on the Node object having been found.
    let node_port = (cluster.lab.node().ip4(), crate::support::NODE_PORT).into();
    wait_for(cluster.lab.outside(), Transport::Tcp, node_port, &Ok("pod0"));
}

#[track_caller]
fn wait_for_any(cluster: &testkit::cluster::Cluster) {
    let client = cluster.lab.outside();
    for address in [ip(WEB_V4), ip(WEB_V6)] {
        let asked = || crate::support::ask(client, Transport::Tcp, (address, 80).into()).is_ok();
        assert!(wait_until(PATIENCE, asked), "{address} is not served");
    }
}

/// What somebody deletes or changes in our table is back within a second, and other tables are left alone.
#[test]
fn tampering_is_repaired_at_once() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let node = cluster.lab.node();
    node.nft("table ip other { chain c { type filter hook input priority 5; counter; }; }").unwrap();
    let mut proxy = start(&cluster);
    wait_for_any(&cluster);
    let before = table(&cluster);
    let tampering = [
        "flush map ip kube-proxy service-ips",
        "delete element ip kube-proxy endpoints { tcp . 0:2 . 0 }",
        "flush chain ip kube-proxy nat-prerouting",
        "add rule ip kube-proxy services drop",
        "add chain ip kube-proxy foreign { type filter hook input priority 3; policy drop; }",
        "delete table ip kube-proxy",
    ];
    // The watch begins after the first sync; what happens before it is not seen.
    let watched = wait_until(PATIENCE, || {
        node.nft("add chain ip kube-proxy probe").unwrap();
        wait_until(Duration::from_millis(300), || !table(&cluster).contains("probe"))
    });
    assert!(watched, "{}", proxy.log().join("\n"));
    for command in tampering {
        node.nft(command).unwrap_or_else(|error| panic!("{command}: {error}"));
        let repaired = || table(&cluster) == before;
        assert!(
            wait_until(PATIENCE, repaired),
            "{command}:\n{}\n{}",
            table(&cluster),
            proxy.log().join("\n")
        );
    }
    assert!(proxy.wait_for_log("somebody else changed our table", PATIENCE));
    wait_for_any(&cluster);
    assert!(check_listable(&cluster).contains("table ip other"));
}

/// Our IPv4 table as text, without what was counted. Elements have no order, so its pieces are sorted.
fn table(cluster: &testkit::cluster::Cluster) -> String {
    let listed =
        cluster.lab.node().exec("nft", &["-s", "list", "table", "ip", "kube-proxy"]).unwrap_or_default();
    let pieces = listed
        .split(['\n', ','])
        .map(|piece| piece.trim().trim_start_matches("elements = {").trim_end_matches('}'));
    let mut pieces: Vec<&str> = pieces.map(str::trim).collect();
    pieces.sort_unstable();
    pieces.join("\n")
}
