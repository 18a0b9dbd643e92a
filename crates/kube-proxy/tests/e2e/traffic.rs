//! What goes through Services: counted by the kernel, shown by commands, followed packet by packet.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use apiserver::Kind;
use fakes::objects::NAMESPACE;
use lab::Host;
use lab::client::{FailureClass, Transport};
use lab::proxy::{Lines, Proxy, wait_until};
use serde_json::Value;
use testkit::cluster::{Cluster, ProxyMode};

use crate::support::{
    PATIENCE, WEB_V4, apply_endpoints, apply_web, ask, check_listable, cluster, cluster_in, ip, program,
    start, told, wait_for,
};

fn web() -> SocketAddr {
    SocketAddr::new(ip(WEB_V4), 80)
}

/// The line of Service `web`.
fn row(cluster: &Cluster) -> Value {
    let list = told(cluster.lab.node(), &["list", "services", "web", "-o", "json"]);
    let list: Value = serde_json::from_str(&list).unwrap_or_default();
    list["items"][0].clone()
}

#[track_caller]
fn wait_for_count(cluster: &Cluster, what: &str, expected: u64) {
    let mut last = Value::Null;
    let reached = wait_until(PATIENCE, || {
        last = row(cluster);
        last[what] == expected
    });
    assert!(reached, "wanted {expected} {what}, got {last}");
}

fn connect(cluster: &Cluster, times: usize) {
    for _ in 0..times {
        ask(cluster.lab.outside(), Transport::Tcp, web()).unwrap();
    }
}

crate::support::in_every_mode!(what_goes_through_is_counted_in_every_mode);

mod userspace {
    #[test]
    fn what_goes_through_is_counted_in_every_mode() {
        super::what_goes_through_is_counted_in_every_mode(testkit::cluster::ProxyMode::Userspace);
    }
}

fn what_goes_through_is_counted_in_every_mode(mode: ProxyMode) {
    let cluster = cluster_in(mode, 1, 1);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    connect(&cluster, 10);
    wait_for_count(&cluster, "connections", 10);
    let mut list = Value::Null;
    // Each family is read by itself.
    let all_counted = wait_until(PATIENCE, || {
        let text = told(cluster.lab.node(), &["list", "endpoints", "web", "-o", "json"]);
        list = serde_json::from_str(&text).unwrap();
        let tcp = list["items"].as_array().unwrap().iter().filter(|row| row["protocol"] == "TCP");
        let counted: Vec<u64> = tcp.filter_map(|row| row["traffic"]["connections"].as_u64()).collect();
        (counted.len(), counted.iter().sum::<u64>()) == (4, 10)
    });
    assert!(all_counted, "{list}");
    cluster.api.delete(Kind::EndpointSlice, NAMESPACE, "web-v4");
    wait_for(cluster.lab.outside(), Transport::Tcp, web(), &Err(FailureClass::Refused));
    let refused = wait_until(PATIENCE, || row(&cluster)["refused"].as_u64() >= Some(1));
    assert!(refused, "{}", row(&cluster));
    // Those that still got through while the endpoints went are counted, too.
    assert!(row(&cluster)["connections"].as_u64() >= Some(10), "{}", row(&cluster));
    let traffic = || -> Value {
        serde_json::from_str(&told(cluster.lab.node(), &["top", "-o", "json"])).unwrap_or_default()
    };
    let bytes = || traffic()["items"][0]["bytes"].as_u64();
    if matches!(mode, ProxyMode::Ipvs | ProxyMode::Userspace) {
        assert!(wait_until(PATIENCE, || bytes() > Some(100)), "{}", traffic());
    } else {
        assert_eq!(bytes(), None);
    }
}

/// Service `web` with 14 connections, four of them while no proxy runs, since the kernel goes on counting; gives the proxy that
/// runs then.
fn count_through_a_kill(cluster: &Cluster) -> Proxy {
    apply_web(cluster);
    let mut proxy = start(cluster);
    connect(cluster, 10);
    wait_for_count(cluster, "connections", 10);
    proxy.kill().unwrap();
    connect(cluster, 4);
    let proxy = start(cluster);
    wait_for_count(cluster, "connections", 14);
    proxy
}

/// IPVS counts while no proxy runs, and for what drains.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn ipvs_counts_through_restarts_and_drains() {
    let cluster = cluster_in(ProxyMode::Ipvs, 2, 0);
    let _proxy = count_through_a_kill(&cluster);

    // One endpoint drains, and comes back.
    apply_endpoints(&cluster, &cluster.endpoints(false)[1..], &cluster.endpoints(true));
    let drains = || cluster.lab.node().exec("ipvsadm", &["-Ln"]).unwrap().contains("Masq    0 ");
    assert!(wait_until(PATIENCE, drains));
    connect(&cluster, 3);
    wait_for_count(&cluster, "connections", 17);
    apply_endpoints(&cluster, &cluster.endpoints(false), &cluster.endpoints(true));
    assert!(wait_until(PATIENCE, || !drains()));
    connect(&cluster, 2);
    wait_for_count(&cluster, "connections", 19);
}

/// Connections that the rules never see.
#[test]
fn connections_at_the_socket_are_counted_through_restarts_and_beside_the_rules() {
    let cluster = cluster_in(ProxyMode::Ebpf, 1, 1);
    apply_web(&cluster);
    let mut proxy = start(&cluster);
    let ask_from_pod = |times: usize| {
        for _ in 0..times {
            ask(cluster.lab.pod(0), Transport::Tcp, web()).unwrap();
        }
    };
    assert!(proxy.wait_for_log("connections are translated at the socket", PATIENCE), "{:?}", proxy.log());
    ask_from_pod(10);
    wait_for_count(&cluster, "connections", 10);
    connect(&cluster, 3);
    wait_for_count(&cluster, "connections", 13);
    let mut counted = 0;
    let by_endpoint = wait_until(PATIENCE, || {
        let text = told(cluster.lab.node(), &["list", "endpoints", "web", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        let rows = list["items"].as_array().unwrap().iter();
        counted = rows.filter_map(|row| row["traffic"]["connections"].as_u64()).sum();
        counted == 13
    });
    assert!(by_endpoint, "{counted}");

    // Programs and rules go on counting while no proxy runs.
    proxy.kill().unwrap();
    ask_from_pod(4);
    connect(&cluster, 2);
    let _proxy = start(&cluster);
    wait_for_count(&cluster, "connections", 19);
}

#[test]
fn flows_are_counted_through_restarts_repairs_and_changes() {
    let cluster = cluster(2, 0);
    let _proxy = count_through_a_kill(&cluster);

    // Somebody deletes everything; it is written anew, with counters at zero.
    cluster.lab.node().exec("nft", &["delete", "table", "ip", "kube-proxy"]).unwrap();
    let is_back = || ask(cluster.lab.outside(), Transport::Tcp, web()).is_ok();
    assert!(wait_until(PATIENCE, is_back));
    wait_for_count(&cluster, "connections", 15);

    // Endpoints go, and their counts stay with the Service.
    let left = cluster.endpoints(false)[1..].to_vec();
    apply_endpoints(&cluster, &left, &cluster.endpoints(true));
    let names = cluster.pod_names().iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut asked = 0;
    let only_one = wait_until(PATIENCE, || {
        let answers: Vec<_> =
            (0..5).map(|_| ask(cluster.lab.outside(), Transport::Tcp, web()).unwrap()).collect();
        asked += answers.len() as u64;
        answers.iter().all(|name| *name == names[1])
    });
    assert!(only_one);
    let total = row(&cluster)["connections"].as_u64().unwrap();
    assert!(total >= 15);
    let explained = told(cluster.lab.node(), &["explain", "service", "default/web:line"]);
    assert!(explained.contains("new flows ("), "{explained}");

    // Nobody is left, and clients are refused.
    cluster.api.delete(Kind::EndpointSlice, NAMESPACE, "web-v4");
    wait_for(cluster.lab.outside(), Transport::Tcp, web(), &Err(FailureClass::Refused));
    let refused = wait_until(PATIENCE, || row(&cluster)["refused"].as_u64() >= Some(1));
    assert!(refused, "{}", row(&cluster));
    assert!(row(&cluster)["connections"].as_u64().unwrap() >= total, "{}", row(&cluster));
    let listing = check_listable(&cluster);
    assert!(listing.contains("counter packets"), "{listing}");
}

/// A terminal in the node's namespace, with a shell in it.
struct Tmux<'a> {
    node: &'a Host,
    socket: String,
}

impl<'a> Tmux<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let socket = cluster.dir().join("tmux").to_string_lossy().into_owned();
        let tmux = Self { node: cluster.lab.node(), socket };
        tmux.run(&["new-session", "-d", "-x", "132", "-y", "16", "env", "PS1=ready$ ", "sh"]);
        tmux
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let all = [&["-f", "/dev/null", "-S", &self.socket], arguments].concat();
        self.node.exec("tmux", &all).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    #[track_caller]
    fn wait_for(&self, what: &str) -> String {
        self.wait_until_screen(what, |screen| screen.contains(what))
    }

    /// Waits for the shell to want a command, which is not before the last one has given the terminal back.
    #[track_caller]
    fn wait_for_prompt(&self) {
        self.wait_until_screen("prompt", |screen| screen.trim_end().ends_with("ready$"));
    }

    #[track_caller]
    fn wait_until_screen(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        let shown = wait_until(PATIENCE, || {
            screen = self.run(&["capture-pane", "-p"]);
            shows(&screen)
        });
        assert!(shown, "no {what:?} in\n{screen}");
        screen
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        drop(self.node.exec("tmux", &["-S", &self.socket, "kill-server"]));
    }
}

#[test]
fn top_shows_a_terminal_what_goes_through_and_gives_it_back() {
    let cluster = cluster(2, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    connect(&cluster, 20);
    wait_for_count(&cluster, "connections", 20);
    let tmux = Tmux::start(&cluster);
    tmux.wait_for_prompt();
    let command = format!("{} top", program().display());
    tmux.press(&[&command, "Enter"]);
    let screen = tmux.wait_for("default/web:line");
    for part in ["kube-proxy top: http://127.0.0.1:10249", "NEW/S", " 20 ", "sorted by rate", "q quit"] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
    // Counts change while it runs.
    connect(&cluster, 7);
    tmux.wait_for(" 27 ");
    tmux.press(&["n"]);
    tmux.wait_for("sorted by name");
    tmux.press(&["/"]);
    tmux.press(&["nothing"]);
    tmux.wait_for("0 Service ports");
    tmux.press(&["Escape"]);
    tmux.wait_for("default/web:line");
    tmux.press(&["Enter"]);
    let endpoint = cluster.endpoints(false)[0].ip.to_string();
    tmux.wait_for(&format!("%  {endpoint}"));
    tmux.press(&["q"]);
    tmux.wait_for_prompt();

    // However it ends, the terminal is as it was: it echoes, and shows the cursor.
    tmux.press(&[&command, "Enter"]);
    tmux.wait_for("sorted by rate");
    let pid = tmux.node.exec("pgrep", &["-f", &format!("^{command}$")]).unwrap();
    tmux.node.exec("kill", &["-TERM", pid.trim()]).unwrap();
    tmux.wait_for_prompt();
    tmux.press(&["stty -a | tr ' ' '\\n' | grep -c -x -e echo -e icanon", "Enter"]);
    tmux.wait_for("\n2\n");
    assert_eq!(tmux.run(&["display-message", "-p", "#{cursor_flag} #{alternate_on}"]).trim(), "1 0");
}

/// `kube-proxy trace`, killed when dropped.
struct Trace(Child);

impl Trace {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = cluster.lab.node().command(&program().to_string_lossy());
        let child = command.arg("trace").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let trace = Self(child.spawn().unwrap());
        assert!(wait_until(PATIENCE, || traces(cluster)), "it does not trace");
        trace
    }

    fn lines(&mut self) -> Lines {
        Lines::of(self.0.stdout.take().unwrap())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// Whether something has the kernel trace.
fn traces(cluster: &Cluster) -> bool {
    cluster.lab.node().exec("nft", &["list", "tables"]).unwrap().contains("kube-proxy-trace")
}

#[test]
fn packets_are_followed_and_nothing_is_left_however_that_ends() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    let mut trace = Trace::start(&cluster, &["default/web", "-o", "json", "--count", "2"]);
    let lines = trace.lines();
    connect(&cluster, 1);
    let packet: Value = serde_json::from_str(&lines.next(PATIENCE).expect("a line")).unwrap();
    let endpoint = &cluster.endpoints(false)[0];
    assert_eq!(packet["servicePort"], "default/web:line", "{packet}");
    assert_eq!((&packet["protocol"], &packet["verdict"]), (&"TCP".into(), &"passed".into()), "{packet}");
    assert_eq!(packet["destination"], format!("{WEB_V4}:80"), "{packet}");
    assert!(packet["endpoint"].as_str().unwrap().starts_with(&endpoint.ip.to_string()), "{packet}");
    assert!(
        packet["source"].as_str().unwrap().starts_with(&cluster.lab.outside().ip4().to_string()),
        "{packet}"
    );
    check_listable(&cluster);
    // After as many as were asked for it ends by itself.
    connect(&cluster, 1);
    assert!(wait_until(PATIENCE, || matches!(trace.0.try_wait(), Ok(Some(status)) if status.success())));
    assert!(wait_until(PATIENCE, || !traces(&cluster)));

    let mut killed = Trace::start(&cluster, &[]);
    killed.0.kill().unwrap();
    killed.0.wait().unwrap();
    assert!(wait_until(PATIENCE, || !traces(&cluster)), "a killed command leaves its table");

    // Without an endpoint the packet is refused.
    cluster.api.delete(Kind::EndpointSlice, NAMESPACE, "web-v4");
    wait_for(cluster.lab.outside(), Transport::Tcp, web(), &Err(FailureClass::Refused));
    let mut trace = Trace::start(&cluster, &["default/web", "--count", "1"]);
    drop(ask(cluster.lab.outside(), Transport::Tcp, web()));
    let line = trace.lines().next(PATIENCE).expect("a line");
    assert!(line.ends_with(&format!("-> {WEB_V4}:80: refused: there is no endpoint")), "{line}");
}

#[test]
fn the_socket_answers_to_its_owner() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let socket = cluster.dir().join("kube-proxy.sock");
    let (option, server) =
        (format!("--inspect-socket={}", socket.display()), format!("--server=unix:{}", socket.display()));
    let mut arguments = cluster.arguments();
    arguments.push(option);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut proxy = Proxy::start(cluster.lab.node(), program(), &arguments).unwrap();
    assert!(proxy.wait_for_log("the kernel's rules", PATIENCE), "{:?}", proxy.log());
    let asked = || told(cluster.lab.node(), &["list", "services", "-o", "name", &server]);
    assert!(wait_until(PATIENCE, || asked() == "service/default/web\n"), "{}", asked());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

/// A kubectl that knows two pods on one node, and executes in them on this one.
fn stub_kubectl(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("kubectl");
    let script = format!(
        r#"#!/bin/sh
echo "$*" >> {dir}/asked
case "$1" in
--context=test) shift ;;
esac
case "$1" in
get) test -e {dir}/more && exec cat {dir}/more
    echo '{{"items": [{{"metadata": {{"name": "kube-proxy-a"}}, "spec": {{"nodeName": "a"}}}},
    {{"metadata": {{"name": "kube-proxy-b"}}, "spec": {{"nodeName": "b"}}}}]}}' ;;
exec) case "$*" in *kube-proxy-dead*) echo 'error: unable to upgrade connection' >&2; exit 1 ;; *kube-proxy-mute*) exec sleep 100000 ;; esac
    while [ "$1" != -- ]; do shift; done; shift 2; exec {program} "$@" ;;
esac
"#,
        dir = dir.display(),
        program = program().display(),
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_plugin_asks_nodes_through_kubectl() {
    let cluster = cluster(1, 0);
    apply_web(&cluster);
    let _proxy = start(&cluster);
    connect(&cluster, 3);
    wait_for_count(&cluster, "connections", 3);
    let kubectl = stub_kubectl(cluster.dir());
    let plugin = cluster.dir().join("kubectl-kproxy");
    std::os::unix::fs::symlink(program(), &plugin).unwrap();
    let run = |arguments: &str| {
        let mut command = cluster.lab.node().command(&plugin.to_string_lossy());
        let output = command.args(arguments.split_whitespace()).env("KUBE_PROXY_KUBECTL", &kubectl).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (text, output.status.code().unwrap())
    };
    assert_eq!(run("list services -o name --node a"), ("service/default/web\n".to_owned(), 0));
    let both = "Node a:\nservice/default/web\n\nNode b:\nservice/default/web\n\n".to_owned();
    assert_eq!(run("--context test list services -o name --all-nodes"), (both, 0));
    let (sum, code) = run("top --all-nodes -o json");
    let sum: Value = serde_json::from_str(&sum).unwrap_or_else(|error| panic!("{error}: {sum}"));
    assert_eq!((&sum["items"][0]["connections"], code), (&6.into(), 0));
    // One node that fails and one that is silent are named, and cost nobody else's answer.
    let pod = |name: &str| serde_json::json!({ "metadata": { "name": format!("kube-proxy-{name}") }, "spec": { "nodeName": name } });
    let pods = serde_json::json!({ "items": [pod("a"), pod("dead"), pod("mute"), pod("z")] });
    std::fs::write(cluster.dir().join("more"), pods.to_string()).unwrap();
    let expected = "Node a:\nservice/default/web\n\nNode dead: no answer: unable to upgrade connection\n\n\
                    Node mute: no answer: nothing came within 30 s\n\nNode z:\nservice/default/web\n\n";
    let some = run("list services -o name --all-nodes --node-timeout 30");
    assert_eq!(some, (expected.to_owned(), 3));
    std::fs::write(cluster.dir().join("more"), pods.to_string().replace("mute", "dead")).unwrap();
    let (sum, code) = run("top --all-nodes");
    assert_eq!(code, 3, "{sum}");
    for part in ["default/web:line", " 6 ", "Node dead is not in it, no answer: "] {
        assert!(sum.contains(part), "no {part:?} in {sum}");
    }
    std::fs::remove_file(cluster.dir().join("more")).unwrap();
    assert_eq!(run("status").1, 1);
    assert!(run("status").0.contains("name a node with --node, or ask --all-nodes; there are a, b"));
    assert!(run("status --node c").0.contains("no pod of kube-proxy runs on c"));
    let asked = std::fs::read_to_string(cluster.dir().join("asked")).unwrap();
    assert!(
        asked
            .contains("--context=test exec --namespace=kube-system kube-proxy-b -- kube-proxy list services"),
        "{asked}"
    );
}
