//! Trouble that has nothing to do with packets: files, readers of the log, clients, the configuration, the host's settings.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use apiserver::Kind;
use fakes::objects;
use lab::client::Transport;
use lab::echo::{EchoServer, Mode};
use lab::proxy::{Proxy, wait_until};
use lab::{Config, Host, Lab};
use serde_json::json;
use testkit::cluster::NODE;

use crate::status::get;
use crate::support::{PATIENCE, WEB_V4, cluster, ip, program, wait_for};

const METRICS: u16 = 10249;
const HEALTH: u16 = 10256;
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
/// Runs a program with standard error to a named pipe, which is full (64 KiB), stays open and is not read.
const UNREAD: &str = "pipe=$1; shift; exec 3<>\"$pipe\"; head -c 65536 /dev/zero >&3; exec \"$@\" 2>&3";

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn metric(node: &Host, name: &str) -> Option<f64> {
    let page = get(node, local(METRICS), "/metrics")?.body;
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[track_caller]
fn is_live(node: &Host) {
    assert_eq!(get(node, local(HEALTH), "/livez").map(|reply| reply.status), Some(200));
}

fn make_pipe(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Folders of manifests and of the configuration.
struct Folders {
    _dir: tempfile::TempDir,
    manifests: PathBuf,
    config: PathBuf,
    pipe: PathBuf,
}

impl Folders {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (manifests, config, pipe) = (at("manifests"), at("config"), at("pipe"));
        fs::create_dir(&manifests).unwrap();
        fs::write(&config, HEAD).unwrap();
        make_pipe(&pipe);
        Self { _dir: dir, manifests, config, pipe }
    }

    /// What does not belong into a folder of manifests.
    fn litter(&self) {
        let at = |name: &str| self.manifests.join(name);
        make_pipe(&at("pipe.yaml"));
        std::os::unix::fs::symlink("/dev/zero", at("zero.json")).unwrap();
        std::os::unix::fs::symlink("loop.yaml", at("loop.yaml")).unwrap();
        fs::create_dir(at("folder.yaml")).unwrap();
        fs::File::create(at("huge.yaml")).unwrap().set_len(1 << 40).unwrap();
        let list = |i: usize| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "));
        let lists = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        fs::write(at("bomb.yaml"), lists + &(1..8).map(list).collect::<String>()).unwrap();
    }

    /// Service `web` with one endpoint, as files that take the place of those before at once.
    fn serve(&self, pod: IpAddr) {
        let ports =
            [objects::Port { name: "line", protocol: "TCP", port: 80, target: 8080, node_port: None }];
        let endpoint = objects::Endpoint::ready(pod, NODE);
        let service = objects::service("web", &[ip(WEB_V4)], &ports);
        let slice = objects::slice("web", "v4", &ports, &[endpoint]);
        self.put("web.json", &format!("{service}\n{slice}\n"));
    }

    /// Many Services with long names, other ones for each round, so that there is much to log.
    fn crowd(&self, round: usize) {
        let service = |i: usize| {
            let address = format!("10.97.{}.{}", i / 250, i % 250 + 1);
            let port = 1000 + round;
            let spec = json!({"clusterIP": address, "ports": [{"name": "p".repeat(15), "port": port, "protocol": "TCP"}]});
            let (name, namespace) = (format!("s{i:x<62}"), "n".repeat(63));
            json!({"kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
                .to_string()
        };
        self.put("crowd.json", &(0..1000).map(service).collect::<Vec<_>>().join("\n"));
    }

    fn put(&self, name: &str, text: &str) {
        let new = self.manifests.join(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.manifests.join(name)).unwrap();
    }

    fn configure(&self, rest: &str) {
        let new = self.config.with_extension("new");
        fs::write(&new, format!("{HEAD}{rest}")).unwrap();
        fs::rename(new, &self.config).unwrap();
    }
}

/// The folder holds what can't be read, nobody reads the log, idle clients take all descriptors, the configuration is changed to
/// nonsense: changes come into force, health answers, and each trouble shows in a metric. A change of the configuration ends the
/// program all the same.
#[test]
fn trouble_from_all_sides_stops_nothing() {
    let lab = Lab::new(&Config { pods: 2, node2_pods: 0, ..Config::default() }).unwrap();
    let servers =
        [0, 1].map(|n| EchoServer::start(lab.pod(n), lab.pod(n).name(), &[(8080, Mode::Line)]).unwrap());
    let folders = Folders::new();
    folders.litter();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (pipe, config, manifests) = (path(&folders.pipe), path(&folders.config), path(&folders.manifests));
    let program = program().to_string_lossy();
    let command = ["--nofile=128:256", "sh", "-c", UNREAD, "sh", &pipe, &program];
    let arguments = ["--config", &config, "--manifests", &manifests, "--hostname-override", NODE, "-v", "9"];
    let mut proxy =
        Proxy::start(lab.node(), "prlimit".as_ref(), &[&command[..], &arguments].concat()).unwrap();
    let node = lab.node();
    assert!(wait_until(PATIENCE, || get(node, local(HEALTH), "/livez").is_some()), "{:?}", proxy.log());
    let _idle: Vec<TcpStream> =
        node.run(|| (0..300).map(|_| TcpStream::connect(local(HEALTH)).unwrap()).collect());

    let web = (ip(WEB_V4), 80).into();
    let mut round = 0;
    let loses = || metric(node, "kubeproxy_log_records_lost_total").is_some_and(|lost| lost > 0.0);
    while round < 2 || !loses() {
        assert!(round < 100, "a log that nobody reads takes everything");
        folders.configure(["mode: userspace", "mode: ["][round % 2]);
        folders.serve(lab.pod(round % 2).ip4().into());
        folders.crowd(round);
        wait_for(lab.outside(), Transport::Tcp, web, &Ok(servers[round % 2].name()));
        is_live(node);
        round += 1;
    }
    assert!(wait_until(PATIENCE, || metric(node, "kubeproxy_config_file_usable") == Some(0.0)));
    folders.configure("# sound again, and the same\n");
    assert!(wait_until(PATIENCE, || metric(node, "kubeproxy_config_file_usable") == Some(1.0)));
    assert_eq!(metric(node, "process_max_fds"), Some(256.0), "the limit is raised");
    folders.configure("mode: nftables\nnftables: { masqueradeAll: true }\n");
    assert_eq!(proxy.wait(PATIENCE).unwrap().code(), Some(0));
    lab.check_listable().unwrap();
}

/// The API has an Event about a configuration that is not used.
#[test]
fn an_unusable_configuration_is_told_on_the_node() {
    let cluster = cluster(0, 0);
    let folders = Folders::new();
    let kubeconfig = &cluster.arguments()[1];
    folders.configure(&format!("clientConnection: {{ kubeconfig: {kubeconfig} }}\n"));
    let config = folders.config.to_string_lossy();
    let arguments = ["--config", &*config, "--hostname-override", NODE];
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    assert!(wait_until(PATIENCE, || get(cluster.lab.node(), local(HEALTH), "/healthz")
        .is_some_and(|reply| reply.status == 200)));
    folders.configure(&format!("clientConnection: {{ kubeconfig: {kubeconfig} }}\nmode: userspace\n"));
    let told =
        || cluster.api.list(Kind::Event).into_iter().find(|event| event["reason"] == "InvalidConfiguration");
    assert!(wait_until(PATIENCE, || told().is_some()), "{:?}", proxy.log());
    let event = told().unwrap();
    assert_eq!((&event["type"], &event["regarding"]["name"]), (&json!("Warning"), &json!(NODE)));
    assert!(event["note"].as_str().unwrap().contains("mode"), "{event}");
    assert!(proxy.is_running());
}

/// As in a container whose `/proc/sys` is read-only: told, and no reason not to start.
#[test]
fn settings_that_cant_be_changed_are_a_warning() {
    let lab = Lab::new(&Config { pods: 0, node2_pods: 0, ..Config::default() }).unwrap();
    let program = program().to_string_lossy();
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let command = ["--mount", "sh", "-c", read_only, "sh", &*program, "--init-only"];
    let settings = ["--conntrack-udp-timeout=77s", "--conntrack-tcp-timeout-close-wait=77s"];
    let mut proxy =
        Proxy::start(lab.node(), "unshare".as_ref(), &[&command[..], &settings].concat()).unwrap();
    assert_eq!(proxy.wait(PATIENCE).unwrap().code(), Some(0), "{:?}", proxy.log());
    for name in ["nf_conntrack_udp_timeout", "nf_conntrack_tcp_timeout_close_wait"] {
        let is_told = |line: &String| line.starts_with('W') && line.contains(name);
        assert!(wait_until(PATIENCE, || proxy.log().iter().any(is_told)), "{:?}", proxy.log());
    }
}
