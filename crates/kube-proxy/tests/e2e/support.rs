//! What the tests share.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fakes::objects::{self, Endpoint, Port};
use lab::Host;
use lab::client::{ConnectFailure, FailureClass, LoadGenerator, Transport, ask_once};
use lab::proxy::{Proxy, wait_until};
use testkit::cluster::{Cluster, LINE_PORT, ProxyMode, UDP_PORT};

/// The program under test.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kube-proxy"))
}

pub(crate) const WEB_V4: &str = "10.96.0.10";
pub(crate) const WEB_V6: &str = "fd00:10:96::a";
pub(crate) const NODE_PORT: u16 = 30080;

/// Service `web`: TCP and UDP on port 80, and on the same node port.
pub(crate) const WEB_PORTS: [Port; 2] = [
    Port { name: "line", protocol: "TCP", port: 80, target: LINE_PORT, node_port: Some(NODE_PORT) },
    Port { name: "dgram", protocol: "UDP", port: 80, target: UDP_PORT, node_port: Some(NODE_PORT) },
];

/// A limit for something that is expected to happen, on a machine that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A limit for one request. An ICMP error can be late for TCP (see `Lab`), so it is above the first repetition.
pub(crate) const REQUEST: Duration = Duration::from_secs(4);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn cluster(pods: usize, node2_pods: usize) -> Cluster {
    Cluster::new(pods, node2_pods).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Defines tests that run in every mode: functions that take the mode. Those of mode ipvs run in the guest: `make guest-test`.
macro_rules! in_every_mode {
    ($($name:ident),+ $(,)?) => {
        crate::support::in_modes_of_rules!($($name),+);
        mod ipvs {
            use testkit::cluster::ProxyMode;
            $(#[test] #[ignore = "needs a kernel with IPVS"] fn $name() { super::$name(ProxyMode::Ipvs); })+
        }
    };
}

/// The same, for what IPVS does in a way of its own.
macro_rules! in_modes_of_rules {
    ($($name:ident),+ $(,)?) => {
        mod nftables {
            $(#[test] fn $name() { super::$name(testkit::cluster::ProxyMode::Nftables); })+
        }
        mod ebpf {
            $(#[test] fn $name() { super::$name(testkit::cluster::ProxyMode::Ebpf); })+
        }
        mod iptables_nft {
            use testkit::cluster::{Flavour, ProxyMode};
            $(#[test] fn $name() { super::$name(ProxyMode::Iptables(Flavour::Nft)); })+
        }
        mod iptables_legacy {
            use testkit::cluster::{Flavour, ProxyMode};
            $(#[test] fn $name() { super::$name(ProxyMode::Iptables(Flavour::Legacy)); })+
        }
    };
}
pub(crate) use in_every_mode;
pub(crate) use in_modes_of_rules;

pub(crate) fn cluster_in(mode: ProxyMode, pods: usize, node2_pods: usize) -> Cluster {
    cluster(pods, node2_pods).in_mode(mode).unwrap_or_else(|error| panic!("{error:#}"))
}

pub(crate) fn start(cluster: &Cluster) -> Proxy {
    cluster.start_proxy_and_wait(program()).unwrap_or_else(|error| panic!("{error:#}"))
}

/// What a command prints on the node.
pub(crate) fn told(node: &Host, arguments: &[&str]) -> String {
    let output = node.run(|| Command::new(program()).args(arguments).output().unwrap());
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// Takes everything of the proxy's away, with these arguments besides `--cleanup`.
#[track_caller]
pub(crate) fn clean_up(cluster: &Cluster, arguments: &[&str]) {
    let arguments = [arguments, &["--cleanup"]].concat();
    let mut cleanup = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    assert_eq!(cleanup.wait(PATIENCE).unwrap().code(), Some(0), "{}", cleanup.log().join("\n"));
}

/// Service `web` of both families, with all pods of the cluster.
pub(crate) fn apply_web(cluster: &Cluster) {
    cluster.apply(objects::service("web", &[ip(WEB_V4), ip(WEB_V6)], &WEB_PORTS)).unwrap();
    apply_endpoints(cluster, &cluster.endpoints(false), &cluster.endpoints(true));
}

/// The slices of Service `web`.
pub(crate) fn apply_endpoints(cluster: &Cluster, v4: &[Endpoint], v6: &[Endpoint]) {
    cluster.apply(objects::slice("web", "v4", &WEB_PORTS, v4)).unwrap();
    cluster.apply(objects::slice("web", "v6", &WEB_PORTS, v6)).unwrap();
}

/// Who answers a client; `Err` says how it failed.
pub(crate) fn ask(from: &Host, transport: Transport, to: SocketAddr) -> Result<String, FailureClass> {
    let answer = from.run(|| ask_once(transport, to, REQUEST));
    answer.map(|reply| reply.name).map_err(|failure: ConnectFailure| failure.class())
}

/// No connection of these has failed, nor does one until each generator has made more than so many: a fast machine may have
/// been through it all sooner. `log` is what to show otherwise.
#[track_caller]
pub(crate) fn check_load(
    generators: impl IntoIterator<Item = LoadGenerator>,
    more_than: u64,
    log: impl Fn() -> String,
) {
    for (n, generator) in generators.into_iter().enumerate() {
        wait_until(PATIENCE, || generator.snapshot().succeeded > more_than);
        let report = generator.stop();
        let failures = (&report.failures, &report.first_failure);
        assert_eq!(report.failed(), 0, "generator {n}: {failures:?}\n{}", log());
        assert!(report.succeeded > more_than, "{} connections in {:?}", report.succeeded, report.elapsed);
    }
}

/// Waits until a client gets this.
#[track_caller]
pub(crate) fn wait_for(
    from: &Host,
    transport: Transport,
    to: SocketAddr,
    wanted: &Result<&str, FailureClass>,
) {
    let mut last = None;
    let reached = wait_until(PATIENCE, || {
        let answer = ask(from, transport, to);
        let same = match (&answer, wanted) {
            (Ok(name), Ok(wanted)) => name == wanted,
            (Err(class), Err(wanted)) => class == wanted,
            _ => false,
        };
        last = Some(answer);
        same
    });
    assert!(reached, "wanted {wanted:?} from {to}, last got {last:?}");
}

/// The rules list cleanly, whatever the mode.
#[track_caller]
pub(crate) fn listing(cluster: &Cluster) -> String {
    cluster.listing().unwrap_or_else(|error| panic!("{error:#}"))
}

/// The rules of nftables mode list cleanly, and the table is there.
#[track_caller]
pub(crate) fn check_listable(cluster: &Cluster) -> String {
    let listing = cluster.lab.check_listable().unwrap_or_else(|error| panic!("{error}"));
    assert!(listing.text.contains("table ip kube-proxy"), "{}", listing.text);
    assert!(listing.json.to_string().contains("kube-proxy"));
    listing.text
}
